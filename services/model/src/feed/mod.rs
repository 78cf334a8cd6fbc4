//! The feed: every change of one machine, over all its disks, in one order.
//!
//! ```text
//! feed   = frame 1, frame 2, …              numbered without holes, for the life of the replica
//! frame  = head (header + record table)     made by the agent, never changed on its way
//!        + payload                          the records' data; compressed on the way, checked by the head
//! ```
//!
//! - [`record`]: what a record is, its 64 bytes, and which positions of a feed may be brought up
//! - [`frame`]: the head's bytes, its checksums and the digest chain
//! - [`envelope`]: a frame as it is sent, spooled and stored: head + payload in some codec
//!
//! Every reader here takes hostile bytes: limits are checked before anything is allocated, and a
//! frame is either wholly good or refused with the reason.

pub mod envelope;
pub mod frame;
pub mod record;

pub use envelope::{Codec, Envelope};
pub use frame::{Frame, FrameBuilder, FrameError, FrameHead, Identity};
pub use record::{Barrier, BarrierKind, Change, Legality, Record};
