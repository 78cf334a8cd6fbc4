//! Assembling roles: configuration, the lab's supervisor, and the programs `continuumd` and `continuum role`.
//!
//! - [`role`]: one service as a process of its own, from a file that says what it needs
//! - [`config`] reads `continuumd.toml`
//! - [`lab`]: two sites on this machine, with every service and guest a process of its own
//! - [`control`]: what a running lab answers on its socket
//! - [`log`]: where words go

pub mod config;
pub mod control;
pub mod lab;
pub mod log;
pub mod role;

/// Stores by hand, for the verbs that need no vault.
pub use continuum_master_target::bare;
/// What old sources held before machines came home, by hand.
pub use continuum_mobility_agent::home::branch;
