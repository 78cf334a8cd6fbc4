//! The way home: what the machine wrote at the recovery site comes back to the disks it left.
//!
//! - `receiver`: the stream from the master target; dialled from here, so that a source needs no open port
//! - `landing`: frames onto disks, so that a crash leaves them at a frame's boundary
//! - [`branch`]: what the disks held before, block by block, kept before it is overwritten
//!
//! While the direction is reversed guests' writes are refused here. Nothing is shipped either: what lands becomes
//! stale in the change map, and so is sent to the replica when the machine is home again.

pub mod branch;
pub(crate) mod landing;
pub(crate) mod receiver;

pub(crate) use receiver::{Receiver, Wanted};
