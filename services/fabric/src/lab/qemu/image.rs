//! Kernel and initramfs of a QEMU lab guest: Debian's cloud kernel, Debian's static busybox, our `init.sh`.
//!
//! ```text
//! <dir>/vmlinuz       the kernel, as Debian ships it
//! <dir>/initrd.img    cpio (newc): /init, /bin/busybox, /lib/*.ko; written last, so that it marks the whole
//! ```
//!
//! The kernel comes from a `.deb`, from a folder in which one was unpacked, or is fetched by `apt-get
//! download`, which needs no root and installs nothing.

use continuum_model::fault::{Fault, FaultClass};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// In the order in which they are loaded; everything else that a guest needs is built into that kernel.
const MODULES: [&str; 6] = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];
const INIT: &[u8] = include_bytes!("init.sh");

fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Fault {
    Fault::new(
        FaultClass::Configuration,
        "lab.guest-image",
        format!("no Linux guest can be made: {what}: {why}"),
    )
    .affects("machines of the lab that run in QEMU")
    .spares("all other machines")
    .remedy(
        "apt-get install qemu-system-x86 busybox-static e2fsprogs; without apt, name a kernel of Debian's \
             package linux-image-…-cloud-amd64 with --kernel",
    )
}

/// Makes kernel and initramfs in `dir`, unless they are there. `kernel`: a `.deb`, or the folder in which
/// one was unpacked; `None` fetches one.
pub fn prepare(dir: &Path, kernel: Option<&Path>) -> Result<(), Fault> {
    if dir.join("initrd.img").exists() && dir.join("vmlinuz").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|error| failed(dir.display(), error))?;
    let work = dir.join("unpacked");
    let root = match kernel {
        Some(path) if path.is_dir() => path.to_owned(),
        Some(path) => unpack(path, &work)?,
        None => unpack(&fetch(dir)?, &work)?,
    };
    let vmlinuz = only(&root.join("boot"), "vmlinuz-")?;
    let release = only(&root.join("lib/modules"), "")?;
    let mut archive = Cpio::default();
    for folder in ["bin", "lib", "dev", "proc", "sys"] {
        archive.folder(folder);
    }
    archive.file("init", INIT, true);
    let busybox = busybox()?;
    archive.file("bin/busybox", &read(&busybox)?, true);
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        let path = release.join("kernel/drivers").join(format!("{module}.ko"));
        archive.file(&format!("lib/{name}.ko"), &read(&path)?, false);
    }
    put(&dir.join("vmlinuz"), &read(&vmlinuz)?)?;
    put(&dir.join("initrd.img"), &archive.finish())?;
    // Only there to be read from; left over by a crash it is written over.
    let _ = std::fs::remove_dir_all(&work);
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    std::fs::read(path).map_err(|error| failed(path.display(), error))
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        std::fs::write(&new, bytes)?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|error| failed(path.display(), error))
}

/// The one entry of a folder whose name begins so; the newest by name where there are several.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf, Fault> {
    let entries = std::fs::read_dir(folder).map_err(|error| failed(folder.display(), error))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.pop().ok_or_else(|| failed(folder.display(), format!("nothing named {prefix}… is there")))
}

/// A busybox that needs no libraries.
fn busybox() -> Result<PathBuf, Fault> {
    let known = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let is_static = |path: &PathBuf| {
        // A program that needs a loader names it; a static one has no reason to.
        std::fs::read(path)
            .is_ok_and(|bytes| !bytes.windows(12).take(8192).any(|part| part == b"/lib64/ld-li"))
    };
    let found = known.into_iter().find(|path| path.exists() && is_static(path));
    found.ok_or_else(|| failed("busybox", "there is no static one in /bin or /usr/bin"))
}

fn fetch(dir: &Path) -> Result<PathBuf, Fault> {
    let depends = output(Command::new("apt-cache").args(["depends", META_PACKAGE]), "apt-cache depends")?;
    let name = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-") && name.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| {
            failed("apt-cache depends", format!("it knows no {META_PACKAGE}; try apt-get update"))
        })?;
    output(Command::new("apt-get").args(["-q", "download", name]).current_dir(dir), "apt-get download")?;
    only(dir, "linux-image-")
}

fn unpack(package: &Path, to: &Path) -> Result<PathBuf, Fault> {
    let _ = std::fs::remove_dir_all(to);
    output(Command::new("dpkg-deb").arg("-x").arg(package).arg(to), "dpkg-deb -x")?;
    Ok(to.to_owned())
}

/// Runs a program to its end.
pub(super) fn output(command: &mut Command, what: &str) -> Result<String, Fault> {
    let ended = command.output().map_err(|error| failed(what, error))?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(failed(what, said.lines().next_back().unwrap_or("it failed without a word")))
}

/// A cpio archive in the form that kernels unpack ("newc").
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (length, name_length) = (content.len() as u32, name.len() as u32 + 1);
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, mtime, size, device (2), device it is (2), name, checksum
        for field in [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8], executable: bool) {
        self.entry(name, if executable { 0o100_755 } else { 0o100_644 }, content);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_itself_reads_what_we_pack() {
        let dir = std::env::temp_dir().join(format!("continuum-cpio-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut archive = Cpio::default();
        archive.folder("bin");
        archive.file("bin/odd", b"12345", true);
        archive.file("even", b"", false);
        std::fs::write(dir.join("archive"), archive.finish()).unwrap();
        let listed = Command::new("busybox")
            .args(["cpio", "-i", "-d", "-F", "archive"])
            .current_dir(&dir)
            .output()
            .expect("busybox runs");
        assert!(listed.status.success(), "{listed:?}");
        assert_eq!(std::fs::read(dir.join("bin/odd")).unwrap(), b"12345");
        assert_eq!(std::fs::read(dir.join("even")).unwrap(), b"");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_is_missing_is_named_with_its_remedy() {
        let dir = std::env::temp_dir().join(format!("continuum-image-{}", std::process::id()));
        let fault = prepare(&dir.join("guest"), Some(Path::new("/nowhere.deb"))).unwrap_err();
        assert!(fault.message.contains("dpkg-deb"), "{fault}");
        assert!(fault.remedy.contains("apt-get install qemu-system-x86"), "{fault}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
