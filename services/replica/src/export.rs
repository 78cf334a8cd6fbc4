//! A disk as of a moment, written into a plain file: sparse, durable, and read back before it counts.

use crate::store::ReplicaError;
use crate::view::View;
use continuum_model::digest::{BlockSum, Digest, DiskDigest};
use continuum_model::units::{DiskIndex, REGION_BYTES};
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What is read and written at once.
const CHUNK_BYTES: u64 = 4 << 20;
/// Zeroes of this length stay holes.
const HOLE_BYTES: usize = 4096;

/// Why an export did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The replica cannot give it.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The file cannot take it.
    #[error("the image could not be {doing} after {done} bytes")]
    File {
        /// What was being done to it.
        doing: &'static str,
        /// How far that was.
        done: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read back is not what was written.
    #[error(
        "the image reads back with digest {found} where {expected} was written: its disk does not keep what it is given"
    )]
    Differs {
        /// What the moment has.
        expected: Digest,
        /// What the file has.
        found: Digest,
    },
    /// Whoever ordered it changed their mind.
    #[error("it was stopped")]
    Stopped,
}

/// Hears how far it is, of how much; answers whether to go on.
pub type Told<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Writes a disk of a view into an empty file. Returns its digest; durable when this returns.
///
/// Shape: the file is as long as the disk; what reads as zeroes is a hole.
pub fn write_raw(view: &View, disk: DiskIndex, file: &File, told: Told<'_>) -> Result<Digest, ExportError> {
    let spec = view.disks().iter().find(|spec| spec.index == disk).ok_or(ReplicaError::NoDisk(disk))?;
    let size = spec.size;
    let mut digest = DiskDigest::new(size);
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let failed = |doing, done| move |source| ExportError::File { doing, done, source };
    file.set_len(size).map_err(failed("made", 0))?;
    let mut at = 0;
    while at < size {
        if !told(at, size) {
            return Err(ExportError::Stopped);
        }
        let length = (size - at).min(CHUNK_BYTES);
        let out = &mut buffer[..length as usize];
        if view.extents(disk, at, length)?.iter().any(|(_, data)| *data) {
            view.read_at(disk, at, out)?;
            for (start, end) in runs_of_data(out) {
                file.write_all_at(&out[start..end], at + start as u64).map_err(failed("written", at))?;
            }
            for block in out.chunks(REGION_BYTES as usize) {
                digest.push(BlockSum::of(block));
            }
        } else {
            sums_of_zeroes(&mut digest, length);
        }
        at += length;
    }
    told(size, size);
    file.sync_all().map_err(failed("made durable", size))?;
    Ok(digest.finish())
}

/// Reads a file back, from its disk where the system lets us, and holds it against a digest.
pub fn check_raw(file: &File, size: u64, expected: Digest, told: Told<'_>) -> Result<(), ExportError> {
    let failed = |done| move |source| ExportError::File { doing: "read back", done, source };
    // What is still in memory proves nothing. Where it cannot be dropped it is read from there.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
    let mut digest = DiskDigest::new(size);
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    let mut at = 0;
    // Holes are skipped as long as whole chunks of them follow one another.
    let mut data_at = 0;
    while at < size {
        if !told(at, size) {
            return Err(ExportError::Stopped);
        }
        let length = (size - at).min(CHUNK_BYTES);
        if data_at <= at {
            data_at = match seek(file, SeekFrom::Data(at)) {
                Ok(next) => next,
                Err(rustix::io::Errno::NXIO) => size,
                Err(_) => at,
            };
        }
        if data_at >= at + length {
            sums_of_zeroes(&mut digest, length);
        } else {
            let out = &mut buffer[..length as usize];
            file.read_exact_at(out, at).map_err(failed(at))?;
            for block in out.chunks(REGION_BYTES as usize) {
                digest.push(BlockSum::of(block));
            }
        }
        at += length;
    }
    told(size, size);
    let found = digest.finish();
    if found == expected { Ok(()) } else { Err(ExportError::Differs { expected, found }) }
}

fn sums_of_zeroes(digest: &mut DiskDigest, mut length: u64) {
    while length >= REGION_BYTES {
        digest.push(BlockSum::of_zeroes());
        length -= REGION_BYTES;
    }
    if length > 0 {
        digest.push(BlockSum::of(&vec![0; length as usize]));
    }
}

/// Stretches that are not all zeroes, in steps of a hole.
fn runs_of_data(bytes: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (number, part) in bytes.chunks(HOLE_BYTES).enumerate() {
        if part.iter().all(|byte| *byte == 0) {
            continue;
        }
        let start = number * HOLE_BYTES;
        match runs.last_mut() {
            Some(last) if last.1 == start => last.1 += part.len(),
            _ => runs.push((start, start + part.len())),
        }
    }
    runs
}
