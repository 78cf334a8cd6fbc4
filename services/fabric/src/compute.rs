//! Replica compute: running a machine on disks that somebody serves over NBD.
//!
//! Lives here: the trait, its records and its errors. Lives elsewhere: what a kind of guest is (the
//! adapters), where the disks come from (whoever calls).
//!
//! Invariants: a guest is a process of its own and outlives whoever started it; what runs is told by a
//! record on disk and never by a bare process number, so that a recycled number is never killed. Every
//! call may be repeated: starting what runs returns it, stopping what does not exist is a success.

use crate::process::ProcessRecord;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDisk {
    /// What the machine calls it; a label.
    pub name: String,
    /// Where it is served: `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST:PORT/EXPORT`.
    pub uri: String,
}

/// What is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Its place among the guests of this adapter: letters, digits and `-`, made by us and never by a
    /// person. Becomes a folder's name.
    pub id: String,
    /// The machine's name; a label.
    pub name: String,
    /// The kind of guest, as the machine's own site names it.
    pub kind: String,
    /// Its disks, in order.
    pub disks: Vec<GuestDisk>,
    /// No network beyond itself: a rehearsal must not meet the machine it rehearses.
    pub isolated: bool,
    /// The disks hold a machine already. Only a machine of its own, at its first start, may format an
    /// empty disk; a replica never.
    pub replica: bool,
    /// Settings of the kind.
    #[serde(default)]
    pub settings: GuestSettings,
}

/// What can be chosen about a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuestSettings {
    /// Memory of a virtual machine, in MiB.
    pub memory_mib: u32,
    /// How often it writes, in transactions per second; 0: it stands by.
    pub writes_per_second: u32,
    /// From which its choices follow.
    pub seed: u64,
    /// Acceleration of a virtual machine: `tcg`, or what the host offers. A setting and never guessed: a
    /// device may be present and hang.
    pub accel: String,
    /// Numbers of acknowledged transactions are appended to this file, on another medium than the disks.
    pub acknowledged: Option<PathBuf>,
}

impl Default for GuestSettings {
    fn default() -> Self {
        Self { memory_mib: 192, writes_per_second: 10, seed: 1, accel: "tcg".into(), acknowledged: None }
    }
}

/// What runs: enough to find, ask and stop it after any crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestRecord {
    /// As in its [`GuestSpec`].
    pub id: String,
    /// As in its [`GuestSpec`].
    pub kind: String,
    /// Its process; none where the kind needs none.
    pub process: Option<ProcessRecord>,
    /// Where it answers: a Unix socket.
    pub socket: PathBuf,
    /// Its folder.
    pub dir: PathBuf,
    /// Its disks, for probes that need no guest.
    pub disks: Vec<GuestDisk>,
}

/// One proof that a guest works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What was tried.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was found, in words. May hold text of the guest: whoever shows it escapes it.
    pub detail: String,
}

/// Brings machines up on disks.
///
/// All calls block; none longer than it says.
pub trait Compute: Send + Sync {
    /// The kinds of guest it can run.
    fn kinds(&self) -> Vec<String>;

    /// Starts a guest, or returns the one that runs under this id already.
    ///
    /// Returns when the process is on record, not when the machine has booted: [`Compute::probe`] tells that.
    fn start(&self, spec: &GuestSpec) -> Result<GuestRecord, ComputeError>;

    /// Ends a guest and removes everything of it but its disks. `grace` is what it may take to end by
    /// itself before it is killed.
    fn stop(&self, guest: &GuestRecord, grace: Duration) -> Result<(), ComputeError>;

    /// Asks a guest to prove itself, within `timeout` in all. Every probe of its kind is in the answer,
    /// those that were not reached as failed.
    fn probe(&self, guest: &GuestRecord, timeout: Duration) -> Vec<Probe>;

    /// Whether its process lives.
    fn is_running(&self, guest: &GuestRecord) -> bool;

    /// What is on record under `id`, after a crash of ours for instance.
    fn find(&self, id: &str) -> Result<Option<GuestRecord>, ComputeError>;
}

/// Why a guest could not be started, stopped or found.
#[derive(Debug, thiserror::Error)]
pub enum ComputeError {
    /// Another kind of site runs these.
    #[error("this site cannot run guests of kind `{kind}`; it runs {known}")]
    UnknownKind {
        /// The kind asked for, escaped.
        kind: String,
        /// What it could be.
        known: String,
    },
    /// An id that could leave its folder.
    #[error("`{id}` is no id of a guest: letters, digits and - only")]
    BadId {
        /// The id, escaped.
        id: String,
    },
    /// Something this kind needs is not on this machine.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        remedy: String,
    },
    /// A file or folder of the guest.
    #[error("guest {id}: {what} {path}")]
    File {
        /// Which guest.
        id: String,
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
    /// It ended before it was up.
    #[error("guest {id} did not start: {reason}; its log is {log}")]
    Start {
        /// Which guest.
        id: String,
        /// Its last words, escaped.
        reason: String,
        /// Where more stands.
        log: PathBuf,
    },
    /// It lives on after being killed.
    #[error("guest {id} (process {pid}) did not end: {reason}; look at it with `ps` and stop it again")]
    Stop {
        /// Which guest.
        id: String,
        /// Its process.
        pid: i32,
        /// Why.
        reason: String,
    },
}
