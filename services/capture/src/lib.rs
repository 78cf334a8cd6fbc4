//! Seeing writes: a block server with the write splitter inside.
//!
//! - [`nbd`]: an NBD server for any [`nbd::BlockDevice`]; knows nothing of replication
//! - [`disk`]: the source's disks, as a trait with a real and a simulated implementation
//! - [`ranges`]: range locks: overlapping I/O in one order, the rest beside one another
//! - [`map`]: the change map's file
//! - [`feed`]: the state machine of a feed: records, frames, acknowledgements, modes. No threads, no I/O
//! - [`source`]: one machine with all its disks: splitter, injector, ticker
//!
//! Invariants: a bit is set before the write it stands for is applied, and cleared only when the target
//! made that data durable. The guest waits for its own disk, never for a network.

pub mod disk;
pub mod feed;
pub mod map;
pub mod nbd;
pub mod ranges;
pub mod source;

pub use source::{Source, SourceConfig, SourceError, SourceStatus};
