//! The lab: machines that are programs on this host, with their disks on NBD.
//!
//! - [`ledger`]: a small crash-safe ledger, the program that proves a disk by living on it
//! - [`guest`]: that program as a process of its own, with a heartbeat
//! - `hook`: how that process is told to hold still
//! - [`qemu`]: a Linux of its own that does the same, as a whole machine
//! - [`compute`]: starting, asking and stopping such processes

pub mod compute;
pub mod guest;
mod hook;
pub mod ledger;
pub mod qemu;

pub use compute::LabCompute;
