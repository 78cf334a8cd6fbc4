//! Replica compute: starting a machine on disks that are served over NBD, asking whether it works, stopping it.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A machine to bring up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// What kind of machine, as its fabric calls it.
    pub kind: String,
    /// A label.
    pub name: String,
    /// Its disks, as NBD URIs, in order.
    pub disks: Vec<String>,
    /// Where its socket and log are kept.
    pub dir: PathBuf,
    /// A short name of our own making for its files.
    pub handle: String,
    /// It was brought up from a replica: its disks are never formatted.
    pub replica: bool,
}

/// A machine that was started: enough to find, ask and stop it after we were started again ourselves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    /// What kind.
    pub kind: String,
    /// Its process; `None`: there is nothing to run.
    pub process: Option<ProcessRecord>,
    /// Where it answers.
    pub heartbeat: Option<PathBuf>,
    /// Its disks.
    pub disks: Vec<String>,
}

/// A process, told from a later one with the same number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

/// What was asked of a machine that was brought up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// What was seen. Text from outside.
    pub detail: String,
}

/// Brings machines up.
pub trait Compute: Send + Sync {
    /// Starts a machine. Returns as soon as it runs, not when it answers.
    fn start(&self, spec: &GuestSpec) -> io::Result<GuestRecord>;
    /// Whether it runs.
    fn is_running(&self, guest: &GuestRecord) -> bool;
    /// Asks it whether it works, for at most `patience`.
    fn probe(&self, guest: &GuestRecord, patience: Duration) -> Vec<Probe>;
    /// Stops it; one that is gone is fine.
    fn stop(&self, guest: &GuestRecord) -> io::Result<()>;
}

impl ProcessRecord {
    /// Of a process that runs now.
    pub fn of(pid: i32) -> Option<Self> {
        started(pid).map(|started| Self { pid, started })
    }
    /// Whether it is still that process.
    pub fn is_alive(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a process started; `None` for one that is gone or dead.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything but ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}
