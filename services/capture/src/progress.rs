//! How far the target was, and which frames it may hold: what makes a replica that went back in time, or that
//! is somebody else's, known as such after any restart.
//!
//! ```text
//! 0    magic "CTMPROG1"   8 machine [16]   24 acknowledged number u64   32 its digest u128
//! 48   sum u64 (xxh3-64 of bytes 0..48)
//! 4096 a ring of 65,536 slots of 32 bytes: number u64 · digest u128 · sum u64 (xxh3-64 of the 24 before)
//!      slot = number modulo 65,536; written before the frame is handed out
//! ```
//!
//! A replica is **known** when its last frame is the acknowledged one or stands in the ring. One that is not
//! known, or is behind what was acknowledged, gets everything again. So does a known one of which this file
//! was lost: doubt is never silence.

use continuum_model::id::MachineId;
use continuum_model::units::FrameNumber;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"CTMPROG1";
const RING_AT: u64 = 4096;
const SLOTS: u64 = 65_536;
const SLOT: usize = 32;

/// A frame as the chain names it.
pub type Link = (FrameNumber, u128);

/// The record of a feed's progress.
pub struct Progress {
    file: Arc<File>,
    machine: MachineId,
    acked: Link,
}

impl Progress {
    /// Opens or makes the file. The flag says whether it was there, and whole, and this machine's.
    pub fn open(path: &Path, machine: MachineId) -> io::Result<(Self, bool)> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut head = [0; 56];
        let believed = file.read_exact_at(&mut head, 0).is_ok()
            && &head[..8] == MAGIC
            && head[8..24] == *machine.as_bytes()
            && xxh3_64(&head[..48]).to_le_bytes() == head[48..];
        let mut progress = Self { file: Arc::new(file), machine, acked: (FrameNumber(0), 0) };
        if believed {
            progress.acked = link(&head[24..48]);
        } else {
            progress.file.set_len(0)?;
            progress.prepare(progress.acked).write()?;
        }
        Ok((progress, believed))
    }

    /// The last acknowledged frame that was stored.
    pub const fn acked(&self) -> Link {
        self.acked
    }

    /// What is to be stored to say that the target is there. Storing waits for the disk: not under a lock.
    pub fn prepare(&self, acked: Link) -> ProgressStore {
        ProgressStore { file: self.file.clone(), machine: self.machine, acked }
    }

    /// That was stored.
    pub const fn stored(&mut self, stored: &ProgressStore) {
        self.acked = stored.acked;
    }

    /// Notes that a frame leaves. Should that fail, the frame is unknown later: doubt, not silence.
    pub fn leaves(&self, link: Link) {
        let mut slot = [0; SLOT];
        slot[..8].copy_from_slice(&link.0.0.to_le_bytes());
        slot[8..24].copy_from_slice(&link.1.to_le_bytes());
        let sum = xxh3_64(&slot[..24]);
        slot[24..].copy_from_slice(&sum.to_le_bytes());
        if let Err(error) = self.file.write_all_at(&slot, place(link.0)) {
            tracing::warn!(frame = link.0.0, %error, "a frame could not be noted: after a restart everything may be sent again");
        }
    }

    /// Whether this source once sent that frame, or never sent any and the replica has none.
    pub fn knows(&self, asked: Link) -> bool {
        if asked == self.acked {
            return true;
        }
        let mut slot = [0; SLOT];
        asked.0.0 > 0
            && self.file.read_exact_at(&mut slot, place(asked.0)).is_ok()
            && xxh3_64(&slot[..24]).to_le_bytes() == slot[24..]
            && link(&slot[..24]) == asked
    }
}

/// How far the target is, about to be stored.
pub struct ProgressStore {
    file: Arc<File>,
    machine: MachineId,
    acked: Link,
}

impl ProgressStore {
    /// Stores it, durably.
    pub fn write(&self) -> io::Result<()> {
        let mut head = [0; 56];
        head[..8].copy_from_slice(MAGIC);
        head[8..24].copy_from_slice(self.machine.as_bytes());
        head[24..32].copy_from_slice(&self.acked.0.0.to_le_bytes());
        head[32..48].copy_from_slice(&self.acked.1.to_le_bytes());
        let sum = xxh3_64(&head[..48]);
        head[48..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&head, 0)?;
        self.file.sync_data()
    }
}

fn place(number: FrameNumber) -> u64 {
    RING_AT + number.0 % SLOTS * SLOT as u64
}

fn link(bytes: &[u8]) -> Link {
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
    (FrameNumber(number), u128::from_le_bytes(bytes[8..24].try_into().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("progress");
        let machine = MachineId::from_bytes([1; 16]);
        let (progress, believed) = Progress::open(&path, machine).unwrap();
        assert!(!believed && progress.knows((FrameNumber(0), 0)));
        progress.leaves((FrameNumber(7), 70));
        progress.leaves((FrameNumber(8), 80));
        progress.prepare((FrameNumber(6), 60)).write().unwrap();
        drop(progress);
        let (progress, believed) = Progress::open(&path, machine).unwrap();
        assert!(believed);
        for (why, number, digest, known) in [
            ("acknowledged", 6, 60, true),
            ("sent", 8, 80, true),
            ("another history", 8, 81, false),
            ("never sent", 9, 90, false),
            ("its slot is empty", 0, 0, false),
            ("the slot of 8, a turn later", 8 + SLOTS, 80, false),
        ] {
            assert_eq!(progress.knows((FrameNumber(number), digest)), known, "{why}");
        }
        drop(progress);
        assert!(!Progress::open(&path, MachineId::from_bytes([2; 16])).unwrap().1, "another machine's");
        assert!(!Progress::open(&path, machine).unwrap().1, "and now it is gone");
    }
}
