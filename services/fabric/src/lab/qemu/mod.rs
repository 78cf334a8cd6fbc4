//! Lab guests that are whole machines: QEMU with a Linux of its own, ext4 on the protected disks.
//!
//! - [`image`]: where kernel and initramfs come from
//!
//! A guest has no network, and QEMU may neither start programs nor gain rights. It answers as the process
//! guest does, one line of JSON each time, on a Unix socket that is its second serial port. When its block
//! server goes away, QEMU connects again for a minute before the guest sees an error.

pub mod image;

use super::guest::GuestConfig;
use crate::nbd::{Place, Uri};
use continuum_model::fault::Fault;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// How long QEMU waits for a block server that went away, in seconds.
const RECONNECT_SECONDS: u32 = 60;

/// How the guests of a lab are run: `guest.json` beside their kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hypervisor {
    /// The program.
    pub program: String,
    /// `tcg`, or what the host offers. A setting and never guessed: a device may be present and hang.
    pub accel: String,
    /// Memory of a guest, in MiB.
    pub memory_mib: u32,
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self { program: "qemu-system-x86_64".into(), accel: "tcg".into(), memory_mib: 160 }
    }
}

impl Hypervisor {
    /// Reads `guest.json`; the usual where there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        match std::fs::read(dir.join("guest.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Whether the program is there.
    pub fn check(&self) -> Result<(), Fault> {
        image::output(Command::new(&self.program).arg("--version"), &self.program).map(drop)
    }

    /// Writes `guest.json`.
    pub fn store(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let new = dir.join("guest.json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, dir.join("guest.json"))
    }

    /// The command that runs a guest on `config`'s disks with the kernel in `dir`.
    pub fn command(&self, dir: &Path, config: &GuestConfig) -> io::Result<Command> {
        let heartbeat = config.heartbeat.to_str().filter(|path| !path.contains(','));
        let heartbeat = heartbeat.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, "the heartbeat's path cannot be given to QEMU")
        })?;
        let mut command = Command::new(&self.program);
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"])
            .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"])
            .arg("-machine")
            .arg(format!("pc,accel={}", self.accel))
            .args(["-cpu", "max", "-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(dir.join("vmlinuz"))
            .arg("-initrd")
            .arg(dir.join("initrd.img"))
            .arg("-append")
            .arg(format!(
                "console=ttyS0 panic=-1 lab.disks={} lab.replica={} lab.pause_us={}",
                config.disks.len(),
                u8::from(!config.format),
                1_000_000 / config.rate.max(1)
            ))
            .args(["-chardev", "stdio,id=log,signal=off", "-serial", "chardev:log"])
            .arg("-chardev")
            .arg(format!("socket,id=heartbeat,path={heartbeat},server=on,wait=off"))
            .args(["-serial", "chardev:heartbeat"]);
        for (n, disk) in config.disks.iter().enumerate() {
            let uri = Uri::parse(disk)?;
            let server = match uri.place() {
                Place::Unix(path) => serde_json::json!({ "type": "unix", "path": path }),
                Place::Tcp(address) => {
                    let (host, port) = address.rsplit_once(':').unwrap_or((address, "10809"));
                    serde_json::json!({ "type": "inet", "host": host, "port": port })
                }
            };
            let node = serde_json::json!({
                "driver": "raw",
                "node-name": format!("disk{n}"),
                "discard": "unmap",
                "file": {
                    "driver": "nbd",
                    "server": server,
                    "export": uri.export,
                    "reconnect-delay": RECONNECT_SECONDS,
                    "open-timeout": RECONNECT_SECONDS,
                },
            });
            command.arg("-blockdev").arg(node.to_string());
            command.arg("-device").arg(format!("virtio-blk-pci,drive=disk{n}"));
        }
        Ok(command)
    }
}

/// Becomes the guest. Returns only when that failed.
pub fn become_guest(dir: &Path, config: &GuestConfig) -> io::Error {
    let _ = std::fs::remove_file(&config.heartbeat);
    match Hypervisor::open(dir).and_then(|hypervisor| hypervisor.command(dir, config)) {
        Ok(mut command) => command.exec(),
        Err(error) => error,
    }
}

/// Makes a disk with an empty ext4, unless it exists. Whole or not at all.
pub fn make_disk(path: &Path, bytes: u64) -> Result<(), Fault> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new");
    let sized = std::fs::File::create(&new).and_then(|file| file.set_len(bytes));
    let failed = |error: io::Error| {
        use continuum_model::fault::FaultClass;
        Fault::new(FaultClass::Failed, "lab.disk", format!("{}: {error}", path.display()))
            .affects("this machine of the lab")
            .remedy("make room or mend the cause, and start the lab again")
    };
    sized.map_err(failed)?;
    image::output(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&new), "mke2fs")?;
    std::fs::rename(&new, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_no_network_and_its_disks_are_never_guessed() {
        let config = GuestConfig {
            disks: vec!["nbd+unix:///disk0?socket=/run/m0.sock".into(), "nbd://[::1]:10809/b".into()],
            heartbeat: "/run/m0.hb".into(),
            rate: 10,
            format: false,
            hook: None,
        };
        let command = Hypervisor::default().command(Path::new("/guest"), &config).unwrap();
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let after = |flag: &str| {
            words
                .iter()
                .zip(&words[1..])
                .filter(|(word, _)| *word == flag)
                .map(|(_, next)| next)
                .collect::<Vec<_>>()
        };
        assert_eq!(after("-nic"), ["none"]);
        assert!(after("-append")[0].contains("lab.replica=1"), "{words:?}");
        let nodes: Vec<serde_json::Value> =
            after("-blockdev").iter().map(|node| serde_json::from_str(node).unwrap()).collect();
        assert_eq!(nodes[0]["file"]["server"]["path"], "/run/m0.sock");
        assert_eq!(
            (nodes[1]["file"]["server"]["host"].as_str(), nodes[0]["driver"].as_str()),
            (Some("[::1]"), Some("raw"))
        );
        let odd = GuestConfig { heartbeat: "/a,b".into(), ..config };
        assert!(Hypervisor::default().command(Path::new("/guest"), &odd).is_err());
    }
}
