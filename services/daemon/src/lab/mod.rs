//! The lab: two sites on this machine, with everything real between them.
//!
//! ```text
//! supervisor (this module, in `continuum lab` or in the console's process)
//!   ├─ vault, process server, master target      `continuum role …`, one process each
//!   └─ for each machine: its agent, its guest     one process each
//! ```
//!
//! - [`estate`]: what a lab is made of, and its folder
//! - [`keeper`]: one process, kept alive
//! - [`enrol`]: tokens, and the first protection of each machine
//! - [`supervisor`]: all of it, from start to stop; [`control`]: how it is asked
//!
//! Invariants: a process that dies is started again at once, alone. All of them end when the supervisor
//! does, whatever ended it: they wait for the lock that it holds. Nothing outside the lab's folder and its
//! folder for sockets is written. Two labs in two folders never meet: no fixed port, no shared name.

pub mod control;
pub mod enrol;
pub mod estate;
pub mod keeper;
pub mod supervisor;

pub use control::{AddMachine, Added, ProcessStatus, Status, add, is_running, reset, status, stop};
pub use estate::default_dir;
pub use supervisor::run;

use std::path::PathBuf;

/// Which lab, and what a new one is made of. What exists already stays as it is.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// How many machines a new lab has; none: four.
    pub machines: Option<u32>,
    /// What runs on them: `process`, `qemu` or `none`; none: `process`.
    pub guests: Option<String>,
    /// From which the choices of a new lab's guests follow.
    pub seed: Option<u64>,
    /// The program that becomes the lab's processes when started with `role …`; none: this one.
    pub program: Option<PathBuf>,
}

impl LabOptions {
    /// The lab in `dir`, with the defaults.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), machines: None, guests: None, seed: None, program: None }
    }
}

/// How far the start of a lab is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// What happens now.
    pub stage: Stage,
    /// In words.
    pub detail: String,
    /// How many are done …
    pub done: u32,
    /// … of how many.
    pub total: u32,
}

/// The stages of a start, in order. From [`Stage::Enrolling`] on the vault answers, and the profile in
/// `DIR/profile` can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Reading what the lab is, or making a new one.
    Preparing,
    /// The vault starts.
    Vault,
    /// Servers and machines get their identities.
    Enrolling,
    /// Machines get their protection and their first copy.
    Protecting,
    /// Everything that is to be protected is.
    Ready,
    /// Everything is being ended.
    Stopping,
}
