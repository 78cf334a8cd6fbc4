//! Machines that run in QEMU on this host, with KVM or without, started by whoever owns them: plain QEMU, or anything
//! that gives QEMU a monitor socket.
//!
//! - [`qmp`]: QEMU's monitor, as a client
//! - [`guest_agent`]: the agent inside the guest: file systems at rest, and let go on in time
//! - [`tracker`]: interval capture by QEMU's own dirty bitmaps, without touching how disks are attached
//! - [`inventory`]: which machines run here, by the monitors in a folder

pub mod guest_agent;
pub mod inventory;
pub mod qmp;
pub mod tracker;

pub use tracker::{KvmMachine, KvmTracker};
