//! What a running lab answers on its socket: one JSON line asked, one answered. For its owner only.

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Its processes.
    Status,
    /// End.
    Stop,
    /// A machine more.
    Add(NewMachine),
}

/// A machine to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMachine {
    /// Its name.
    pub name: String,
    /// The sizes of its disks.
    pub disks: Vec<u64>,
    /// What runs on it: `process`, `qemu`, `none`.
    pub guest: String,
    /// Protect it at once.
    pub protect: bool,
}

/// One process of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `vault`, `process-server`, `master-target`, `agent`, `guest`.
    pub role: String,
    /// Which one.
    pub name: String,
    /// Its number; 0 while it is being started again.
    pub pid: i32,
    /// How often it was started again.
    pub restarts: u32,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Empty: it was done.
    pub error: String,
    /// `starting`, `running`.
    pub state: String,
    /// Its directory.
    pub dir: String,
    /// Its processes.
    pub processes: Vec<Process>,
}

/// Longest line.
const LINE_MAX: u64 = 1 << 20;

/// Asks a lab. Errors: none runs there.
pub fn ask(socket: &Path, ask: &Ask, patience: Duration) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    let mut line = serde_json::to_string(ask)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut answer)?;
    serde_json::from_str(&answer).map_err(std::io::Error::other)
}
