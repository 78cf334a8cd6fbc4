//! Seeing writes: a block server with the write splitter inside.
//!
//! - [`nbd`]: an NBD server for any [`nbd::BlockDevice`]; knows nothing of replication
//! - [`disk`]: the source's disks, as a trait and for files and devices; [`simulated`]: one in memory that fails
//! - [`ranges`]: range locks: overlapping I/O in one order, the rest beside one another
//! - [`bits`], [`map`]: the change map and its file; [`activity`]: what makes it survive a power cut; [`kept`]: such files
//! - [`feed`]: the state machine of a feed: records, frames, acknowledgements, modes. No threads
//! - [`hold`]: acknowledgements that wait, so that several machines cut one barrier
//! - [`hrl`]: replication logs in the published format; [`exchange`]: from and to a feed's frames, and onto an image
//! - [`staging`], [`progress`]: what survives of a feed when its process dies
//! - [`source`]: one machine with all its disks, as the agent drives it
//! - [`interval`]: a source whose changes come in cycles, what its front end must hold to; `cycles`: who drives it
//! - [`splitter`]: a guest's requests; [`background`]: the threads beside it; [`scan`]: digests while it runs
//! - [`block_server`]: a source with its disks on NBD
//! - [`freeze`]: file systems frozen for an instant, with a watchdog that thaws them
//! - `kernel`: the calls that need `unsafe`
//!
//! Invariants: a bit is set before the write it stands for is applied, and cleared only when the target
//! made that data durable. The guest waits for its own disk, never for a network.

pub mod activity;
pub mod background;
pub use continuum_model::bits;
pub mod block_server;
pub mod compare;
mod cycles;
pub mod disk;
pub mod exchange;
pub mod feed;
pub mod freeze;
pub mod hold;
pub mod hrl;
pub mod interval;
pub mod kept;
mod kernel;
pub mod map;
pub mod nbd;
#[cfg(test)]
mod outage;
mod planted;
pub mod progress;
pub mod ranges;
pub mod scan;
pub mod simulated;
pub mod source;
pub mod splitter;
pub mod staging;

pub use block_server::BlockServer;
pub use compare::ReplicaSums;
pub use disk::{FileDisk, SourceDisk};
pub use feed::interval::Intervals;
pub use feed::{AckAhead, Connected, ModeChange, Next, ReplicaState};
pub use hold::{Held, Ticket};
pub use interval::ChangeTracker;
pub use source::{Cut, Source, SourceConfig, SourceError, SourceStatus};
