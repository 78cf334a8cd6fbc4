//! The process server: the replication gateway near the source. Receives, spools, compresses, forwards.
//!
//! - [`server`]: which machines are relayed, who may send what, how it goes
//! - [`relay`]: one machine's stream, from its agent to its master target, and acknowledgements back
//! - [`order`]: which frame may come next on a stream
//! - [`spool`]: frames between the two, bounded, in memory first and on disk beyond
//! - [`pace`]: how fast frames may leave, and whose turn it is
//! - [`compress`]: what makes a payload smaller, when it is worth it
//! - [`control`]: the session with the vault
//!
//! It holds nothing that cannot be lost: acknowledgements come from the target only, so whatever dies here
//! is still known at the source. Kill it, wipe its disk, start another one.

pub mod compress;
pub mod control;
pub mod order;
pub mod pace;
pub mod relay;
pub mod server;
pub mod spool;

pub use control::{ProcessServerConfig, run};
pub use server::{Assigned, Limits, ProcessServer, RelayStatus, Status};
