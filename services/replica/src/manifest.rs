//! What a store is and how far it is folded; and how small files are replaced.
//!
//! Bytes of `manifest` and `marks`: JSON, a newline, `xxh3 ` and 16 hexadecimal digits of the xxh3-64 of
//! everything before that line. Replaced by writing `<name>.new`, syncing it, renaming, syncing the folder.

use crate::medium::Medium;
use crate::planted::{self, Bug};
use crate::store::ReplicaError;
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// The version of the format as a whole.
pub const FORMAT: u32 = 1;
const BYTES_MAX: u64 = 64 << 20;

/// One disk of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Its number in frames.
    pub index: DiskIndex,
    /// Its id.
    pub id: DiskId,
    /// Its size in bytes.
    pub size: u64,
}

/// What a store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Must be [`FORMAT`].
    pub format: u32,
    /// Whose replica.
    pub machine: MachineId,
    /// Its disks.
    pub disks: Vec<DiskSpec>,
    /// The newest epoch that was announced; older writers are refused.
    pub epoch: Epoch,
    /// The base holds everything up to this record.
    pub base_sequence: Sequence,
    /// That record's moment.
    pub base_time: Timestamp,
    /// The last frame that the base holds; 0: none.
    pub base_frame: FrameNumber,
    /// That frame's digest.
    pub base_digest: String,
    /// Whether the base itself is a state that may be brought up.
    pub base_legal: bool,
}

/// Reads a small file; `None` where there is none.
pub fn read<T: serde::de::DeserializeOwned>(
    medium: &dyn Medium,
    name: &str,
) -> Result<Option<T>, ReplicaError> {
    let damaged = |reason: String| ReplicaError::Damaged { file: name.to_owned(), reason };
    let file = match medium.open(name, false) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ReplicaError::io(name, error)),
    };
    let length = file.len().map_err(|error| ReplicaError::io(name, error))?;
    if length > BYTES_MAX {
        return Err(damaged(format!("it is {length} bytes long, more than it can be")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_at(0, &mut bytes).map_err(|error| ReplicaError::io(name, error))?;
    decode(&bytes).map(Some).map_err(damaged)
}

/// The value of a small file's bytes; else what is wrong with them.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let tail = bytes.len().checked_sub(22).ok_or("it is too short")?;
    let expected = format!("xxh3 {:016x}\n", xxh3_64(&bytes[..tail]));
    if bytes[tail..] != *expected.as_bytes() {
        return Err("it does not match its checksum".into());
    }
    serde_json::from_slice(&bytes[..tail]).map_err(|error| error.to_string())
}

/// The bytes of a small file with this value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    let sum = format!("xxh3 {:016x}\n", xxh3_64(&bytes));
    bytes.extend_from_slice(sum.as_bytes());
    Ok(bytes)
}

/// Replaces a small file, durably.
pub fn replace<T: Serialize>(medium: &dyn Medium, name: &str, value: &T) -> Result<(), ReplicaError> {
    let io = |error| ReplicaError::io(name, error);
    let bytes = encode(value).map_err(|error| io(std::io::Error::other(error)))?;
    let temporary = format!("{name}.new");
    let file = medium.open(&temporary, true).map_err(io)?;
    file.set_len(0).map_err(io)?;
    file.write_at(0, &[&bytes]).map_err(io)?;
    if !planted::is(Bug::RenamedUnsynced) {
        file.sync().map_err(io)?;
    }
    medium.rename(&temporary, name).map_err(io)?;
    medium.sync_folder("").map_err(io)
}
