//! The replica store of one machine: a base image per disk and a journal of frames since.
//!
//! - [`medium`]: a folder of files, as a trait with a real and a simulated implementation
//! - [`segment`]: the journal's files; what survives a crash and how we know
//! - [`extents`]: newest-wins maps of a disk
//! - [`base`]: base images with a sum for every block, and the redo log of folding
//! - [`store`]: opening, appending, positions, points
//! - [`cache`]: what was read and verified, in memory, bounded; `read`: from files to content
//! - `fold`: the oldest history becomes part of the base; [`thin`]: old history keeps one state of each hour or day
//! - [`view`]: a disk as of a position; [`overlay`]: what is written on top of one
//! - [`bare`]: a store opened without its owner, [`snapshot`]: and without changing a byte of it
//! - [`export`]: a moment written into a plain file
//! - [`inspect`]: what a file or a folder is, and what of it is damaged
//! - [`digests`]: the sums of the newest state, so that comparing reads nothing that did not change
//! - [`scrub`]: reading everything before somebody needs it
//! - [`seed`]: a copy that was brought by other means, as a beginning
//! - [`remote`]: a store kept as objects
//! - [`marks`]: pins and proofs of points; [`manifest`]: what the store is and how far it is folded
//!
//! ```text
//! <store>/manifest          what this store is: replaced atomically
//! <store>/marks             pins and proofs: replaced atomically
//! <store>/scrub             how far the scrub is, and what it found
//! <store>/lock              held by the one process that has it open
//! <store>/journal/00000001  segments, in order
//! <store>/base/0.img .sum   the oldest retained state of disk 0
//! <store>/base/redo         a fold under way
//! <store>/digests/0         the sums of the newest state of disk 0; can be lost
//! <store>/views/<id>.cow    overlays
//! ```
//!
//! Knows nothing of networks. Invariants: what `append` returned is on stable storage; nothing is returned
//! whose checksum was not verified; a failed flush poisons the store until it is opened again.

#[cfg(test)]
extern crate self as continuum_replica;

pub mod bare;
pub mod base;
pub mod cache;
pub mod digests;
mod entries;
pub mod export;
pub mod extents;
mod fold;
pub mod inspect;
pub mod manifest;
pub mod marks;
pub mod medium;
pub mod overlay;
mod planted;
mod read;
pub mod remote;
pub mod scrub;
pub mod seed;
pub mod segment;
pub mod snapshot;
pub mod store;
pub mod thin;
pub mod view;

pub use cache::Cache;
pub use digests::{DigestAt, Digested, SumsAt, Unreadable};
pub use manifest::DiskSpec;
pub use medium::{Folder, Medium};
pub use overlay::Overlay;
pub use scrub::{Affects, Finding, Scrubbed};
pub use store::{Appended, Limits, PointInfo, ReplicaError, Resolved, State, Store};
pub use thin::Stretch;
pub use view::View;
