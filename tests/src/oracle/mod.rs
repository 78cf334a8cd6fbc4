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

/// The files below a folder with a sum of each, in order.
pub fn sums(folder: &std::path::Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                found.push((path, xxhash_rust::xxh3::xxh3_64(&bytes)));
            }
        }
    }
    found.sort();
    found
}
