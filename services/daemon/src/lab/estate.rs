//! What a lab is made of, and its folder.
//!
//! ```text
//! <dir>/lab.json             this file's content: what the lab is; replaced atomically
//! <dir>/lab.lock             held by the supervisor for as long as it lives
//! <dir>/profile/             owner's credentials and the vault's address, for console and verbs
//! <dir>/vault/  <dir>/process-server/  <dir>/master-target/   a process each
//! <dir>/machines/m0001/      an agent each, with the machine's disks
//! <dir>/guests/              the machines' guests
//! <dir>/logs/                what processes have to say
//! <dir>/run  or another      sockets: another place where the paths would be too long for a socket
//! ```
//!
//! Paths are made of numbers, never of names.

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::DiskId;
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, Entropy, SystemClock, SystemEntropy};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The name of the site where the machines are.
pub const PRIMARY: &str = "primary";
/// The name of the site where they are recovered.
pub const RECOVERY: &str = "recovery";
/// The kind of both.
pub const FABRIC: &str = "lab";
/// What the history of all machines together may take.
pub const HISTORY_BYTES_MAX: u64 = 1 << 30;
/// A socket's path has at most 107 bytes, and a guest's is `<16 characters>.hb` in the folder.
const RUN_DIR_BYTES_MAX: usize = 80;
const VERSION: u32 = 1;
/// Everything that a lab makes in its folder.
const OURS: [&str; 9] =
    ["lab.json", "profile", "vault", "process-server", "master-target", "machines", "guests", "logs", "run"];

/// What a lab is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estate {
    version: u32,
    /// Tells labs apart.
    pub id: String,
    /// From which the choices of its guests follow.
    pub seed: u64,
    /// Where its sockets are.
    pub run_dir: PathBuf,
    /// Its machines, by their numbers.
    pub machines: Vec<Machine>,
}

/// One machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Its number: of its folder and its socket.
    pub number: u32,
    /// What people call it. May be anything.
    pub name: String,
    /// What runs on it.
    pub guest: String,
    /// How often that writes.
    pub writes_per_second: u32,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// It is to be protected, and the order was not yet given.
    pub protect: bool,
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its id.
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// The lab that is meant where none is named.
pub fn default_dir() -> Option<PathBuf> {
    Some(directories::ProjectDirs::from("", "", "continuum")?.data_dir().join("lab"))
}

/// Something is wrong with a lab's folder.
pub(super) fn trouble(path: &Path, what: impl std::fmt::Display) -> Fault {
    let path = shown(&path.display().to_string());
    Fault::new(FaultClass::Failed, "lab.folder", format!("{path}: {what}"))
        .affects("this lab")
        .spares("everything outside its folder")
        .remedy("mend the cause, or use another folder with --dir")
}

impl Estate {
    /// Reads what the lab in `dir` is; `None`: there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>, Fault> {
        let path = dir.join("lab.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(trouble(&path, error)),
        };
        let estate: Self = serde_json::from_slice(&bytes)
            .map_err(|error| trouble(&path, format!("no lab of ours: {error}")))?;
        if estate.version != VERSION {
            return Err(trouble(&path, format!("made by another version ({})", estate.version)));
        }
        Ok(Some(estate))
    }

    /// A new lab for `dir`, which holds none. Writes nothing yet.
    pub fn make(dir: &Path, machines: u32, guest: &str, seed: Option<u64>) -> Result<Self, Fault> {
        if let Some(taken) = OURS.iter().find(|name| dir.join(name).exists()) {
            return Err(trouble(&dir.join(taken), "is there, but no lab of ours; it is left alone"));
        }
        let mut random = [0; 16];
        SystemEntropy.fill(&mut random);
        let number = u128::from_le_bytes(random);
        let id = format!("{number:032x}");
        let seed = seed.unwrap_or((number >> 64) as u64);
        let mut estate =
            Self { version: VERSION, run_dir: run_dir(dir, &id), id, seed, machines: Vec::new() };
        const MIB: u64 = 1 << 20;
        for at in 0..machines {
            let (name, disks): (String, &[(&str, u64)]) = match at {
                0 => ("web-01".into(), &[("system", 64 * MIB)]),
                1 => ("db-01".into(), &[("log", 64 * MIB), ("data", 128 * MIB)]),
                2 => ("app-01".into(), &[("system", 96 * MIB)]),
                3 => ("files-01".into(), &[("system", 256 * MIB)]),
                _ => (format!("vm-{:02}", at + 1), &[("system", 64 * MIB)]),
            };
            estate.add(name, guest, disks.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)), true)?;
        }
        Ok(estate)
    }

    /// Adds a machine. Returns its place in the list.
    pub fn add(
        &mut self,
        name: String,
        guest: &str,
        disks: impl IntoIterator<Item = (String, u64)>,
        protect: bool,
    ) -> Result<usize, Fault> {
        let refused = |code: &str, class, message: String, remedy: &str| {
            Err(Fault::new(class, code, message)
                .affects("this machine: it was not added")
                .spares("the lab")
                .remedy(remedy))
        };
        if name.is_empty() || name.len() > 253 || name.contains('\0') {
            return refused(
                "machine.name",
                FaultClass::Usage,
                "a machine needs a name of 1 to 253 bytes".into(),
                "choose another",
            );
        }
        if self.machines.iter().any(|machine| machine.name == name) {
            return refused(
                "machine.exists",
                FaultClass::Conflict,
                format!("the lab has a machine {} already", shown(&name)),
                "choose another name",
            );
        }
        if !["process", "qemu", "none"].contains(&guest) {
            return refused(
                "machine.guest",
                FaultClass::Usage,
                format!("{} is no kind of guest", shown(guest)),
                "choose process, qemu or none",
            );
        }
        let disks: Vec<(String, u64)> = disks.into_iter().collect();
        let smallest: u64 = if guest == "none" {
            4096
        } else if guest == "qemu" {
            32 << 20
        } else {
            4 << 20
        };
        if disks.is_empty() || disks.len() > 16 {
            return refused(
                "machine.disks",
                FaultClass::Usage,
                "a machine of the lab has 1 to 16 disks".into(),
                "name --disk SIZE once for each",
            );
        }
        if let Some((_, bytes)) =
            disks.iter().find(|(_, bytes)| !(smallest..=1 << 40).contains(bytes) || bytes % 512 != 0)
        {
            return refused(
                "machine.disk-size",
                FaultClass::Usage,
                format!("a disk of {bytes} bytes cannot be used by a guest of kind {guest}"),
                "choose a multiple of 512 B, at least 4 KiB for none, 4 MiB for process, 32 MiB for qemu, at most 1 TiB",
            );
        }
        let now = SystemClock::default().wall();
        let disks = disks
            .into_iter()
            .map(|(name, bytes)| Disk { id: DiskId::make(now, &mut SystemEntropy), name, bytes })
            .collect();
        let number = self.machines.iter().map(|machine| machine.number).max().unwrap_or(0) + 1;
        let guest = guest.to_owned();
        self.machines.push(Machine { number, name, guest, writes_per_second: 10, disks, protect });
        Ok(self.machines.len() - 1)
    }

    /// Makes it durable.
    pub fn write(&self, dir: &Path) -> Result<(), Fault> {
        let path = dir.join("lab.json");
        let text = serde_json::to_vec_pretty(self).map_err(|error| trouble(&path, error))?;
        continuum_fabric::process::replace_file(&path, &text).map_err(|error| trouble(&path, error))
    }

    /// Makes its folders, for us alone.
    pub fn make_folders(&self, dir: &Path) -> Result<(), Fault> {
        for folder in
            [dir, &dir.join("machines"), &dir.join("guests"), &dir.join("logs"), &dir.join("profile")]
        {
            private_folder(folder)?;
        }
        private_folder(&self.run_dir)?;
        // Somebody else may have made a folder of that name where everybody may: it is not ours then.
        let metadata =
            std::fs::symlink_metadata(&self.run_dir).map_err(|error| trouble(&self.run_dir, error))?;
        let own = metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw();
        if !own || metadata.mode() & 0o077 != 0 {
            return Err(trouble(&self.run_dir, "is not a folder of ours alone (0700); remove it"));
        }
        Ok(())
    }

    /// Removes everything that a lab makes, and nothing else. The lab must not run.
    pub fn remove(&self, dir: &Path) -> Result<(), Fault> {
        let gone = |path: &Path, result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(trouble(path, error)),
            Ok(()) | Err(_) => Ok(()),
        };
        if self
            .run_dir
            .file_name()
            .is_some_and(|name| name == "run" || name.to_string_lossy().contains(&self.id))
        {
            gone(&self.run_dir, std::fs::remove_dir_all(&self.run_dir))?;
        }
        // What says that it is a lab goes last: a removal that was cut off can be repeated.
        for name in OURS.iter().rev().filter(|name| **name != "lab.json") {
            let path = dir.join(name);
            gone(&path, std::fs::remove_dir_all(&path))?;
        }
        for name in ["lab.lock", "lab.json"] {
            gone(&dir.join(name), std::fs::remove_file(dir.join(name)))?;
        }
        // Only where nothing of anybody else is in it.
        let _ = std::fs::remove_dir(dir);
        Ok(())
    }
}

impl Machine {
    /// Its agent's folder.
    pub fn dir(&self, lab: &Path) -> PathBuf {
        lab.join("machines").join(format!("m{:04}", self.number))
    }
    /// Where its disks are served.
    pub fn socket(&self, run_dir: &Path) -> PathBuf {
        run_dir.join(format!("m{:04}.nbd", self.number))
    }
    /// Where a disk is found.
    pub fn endpoint(&self, run_dir: &Path, disk: &Disk) -> String {
        continuum_capture_uri(&self.socket(run_dir), &disk.name)
    }
}

/// An NBD address of an export on a Unix socket. Names and paths that a URI cannot hold are escaped.
fn continuum_capture_uri(socket: &Path, export: &str) -> String {
    let escaped = |text: &str, keep: &[u8]| {
        text.bytes().fold(String::new(), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || keep.contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02x}"));
            }
            out
        })
    };
    format!("nbd+unix:///{}?socket={}", escaped(export, b"-_."), escaped(&socket.to_string_lossy(), b"-_./"))
}

/// Where sockets go: in the lab's folder where their paths fit, else where the user's sockets are.
fn run_dir(dir: &Path, id: &str) -> PathBuf {
    let own = dir.join("run");
    if own.as_os_str().len() <= RUN_DIR_BYTES_MAX {
        return own;
    }
    let users = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|users| users.is_dir());
    let named = |base: PathBuf| base.join(format!("continuum-{id}"));
    users
        .map(named)
        .filter(|path| path.as_os_str().len() <= RUN_DIR_BYTES_MAX)
        .unwrap_or_else(|| named(PathBuf::from("/tmp")))
}

/// Makes a folder for us alone, where there is none.
pub(super) fn private_folder(path: &Path) -> Result<(), Fault> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| trouble(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_fit_whatever_the_folder_is_called() {
        let short = run_dir(Path::new("/tmp/lab"), "0123");
        assert_eq!(short, Path::new("/tmp/lab/run"));
        let long = run_dir(&PathBuf::from("/tmp").join("x".repeat(200)), &"a".repeat(32));
        assert!(
            long.as_os_str().len() <= RUN_DIR_BYTES_MAX
                && long.ends_with(format!("continuum-{}", "a".repeat(32)))
        );
    }

    #[test]
    fn a_lab_survives_its_file_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Estate::read(dir.path()).unwrap(), None);
        let mut estate = Estate::make(dir.path(), 5, "process", Some(7)).unwrap();
        assert_eq!(
            estate.machines.iter().map(|machine| machine.name.as_str()).collect::<Vec<_>>(),
            ["web-01", "db-01", "app-01", "files-01", "vm-05"]
        );
        estate.make_folders(dir.path()).unwrap();
        estate.write(dir.path()).unwrap();
        assert_eq!(Estate::read(dir.path()).unwrap(), Some(estate.clone()));
        // Names are data: what would leave the folder does not become a path.
        let hostile = "../../\u{1b}[2J\n";
        let at = estate.add(hostile.into(), "none", [("d".into(), 4096)], false).unwrap();
        assert_eq!(estate.machines[at].dir(dir.path()), dir.path().join("machines/m0006"));
        for (name, guest, disks) in [
            ("web-01", "none", vec![4096]),
            ("", "none", vec![4096]),
            ("a", "vmware", vec![4096]),
            ("a", "process", vec![4096]),
            ("a", "none", vec![]),
            ("a", "none", vec![1 << 41]),
            ("a", "none", vec![4097]),
        ] {
            let disks = disks.into_iter().map(|bytes| ("d".to_owned(), bytes));
            assert!(estate.add(name.into(), guest, disks, false).is_err(), "{name:?} {guest}");
        }
        std::fs::write(dir.path().join("mine.txt"), "mine").unwrap();
        estate.remove(dir.path()).unwrap();
        let left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["mine.txt"]);
        std::fs::create_dir(dir.path().join("vault")).unwrap();
        assert!(Estate::make(dir.path(), 1, "process", None).unwrap_err().message.contains("left alone"));
    }
}
