//! The mobility agent: serves a machine's disks and sees every write, or follows in cycles what changed on disks that
//! others serve, and feeds it to a process server.
//!
//! - [`control`]: the session with the vault: what should be, barriers and digests on request
//! - [`sender`]: one stream to the process server, opened again whenever it breaks
//! - [`home`]: the reverse direction: what the machine wrote at the recovery site comes back to its disks
//! - [`hooks`]: what a machine does before and after an application-consistent point
//! - `sums`: asking for sums of the replica, so that after doubt only what differs is sent
//! - `together`: points that the machines of a consistency group share
//!
//! Disks that are served here are so before anything else and whatever else fails: the guest never waits for a network.

pub mod control;
pub mod home;
pub mod hooks;
pub mod sender;
mod sums;
mod together;

pub use control::{AgentConfig, AgentDisk, FrontEnd, run};
pub use hooks::Hooks;
