//! The workload and the prover: whether the image of a disk is a state in which the source was.
//!
//! - [`mod@stamp`]: what every 512-byte block says of itself
//! - [`history`]: what was written when and with what outcome, in a log on another medium than the disks
//! - [`workload`]: writers of our own; `tests/writers/libnbd_writer.py` is one that shares no code with them
//! - [`mod@prove`]: the proof
//!
//! Knows nothing of Continuum but an NBD client; `cargo run -p continuum-tests --bin oracle` points it at any
//! NBD server.

pub mod history;
pub mod prove;
pub mod stamp;
pub mod workload;

pub use history::{History, Log, Outcome, What, Write};
pub use prove::{Violation, prove};
pub use stamp::{BLOCK, stamp};
pub use workload::{Workload, read_image};

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds of UTC.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}
