//! How far the target was, and which frames it may hold: what makes a replica that went back in time, or that
//! is somebody else's, known as such after any restart.
//!
//! ```text
//! 0    magic "CTMPROG1"   8 machine [16]   24 acknowledged number u64   32 its digest u128
//! 48   sum u64 (xxh3-64 of bytes 0..48)
//! 4096 a ring of 65,536 slots of 32 bytes: number u64 · digest u128 · sum u64 (xxh3-64 of the 24 before)
//!      slot = number modulo 65,536; durable before the frame is handed out
//! ```
//!
//! Durable, because a machine that was put back to an older state of itself looks like one that lost power:
//! only what its replica holds tells them apart. One sync serves all frames that wait.
//!
//! A replica is **known** when its last frame is the acknowledged one or stands in the ring. One that is not
//! known, or is behind what was acknowledged, gets everything again. So does a known one of which this file
//! was lost: doubt is never silence.

use crate::kept::{Kept, KeptFile};
use continuum_model::id::MachineId;
use continuum_model::units::FrameNumber;
use std::io;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"CTMPROG1";
const RING_AT: u64 = 4096;
const SLOTS: u64 = 65_536;
const SLOT: usize = 32;
const LENGTH: u64 = RING_AT + SLOTS * SLOT as u64;

/// A frame as the chain names it.
pub type Link = (FrameNumber, u128);

/// The record of a feed's progress.
pub struct Progress {
    file: Arc<dyn Kept>,
    machine: MachineId,
    acked: Link,
    is_stored: bool,
}

impl Progress {
    /// Opens or makes the file. The flag says whether it was there, and whole, and this machine's; if not, it
    /// is not until something is stored: first whoever asks must have made it durable that everything is sent.
    pub fn open(path: &Path, machine: MachineId) -> io::Result<(Self, bool)> {
        Self::open_kept(Arc::new(KeptFile::open(path)?), machine)
    }

    /// The same with a file of any kind.
    pub fn open_kept(file: Arc<dyn Kept>, machine: MachineId) -> io::Result<(Self, bool)> {
        let mut head = [0; 56];
        let believed = file.read(0, &mut head).is_ok()
            && &head[..8] == MAGIC
            && head[8..24] == *machine.as_bytes()
            && xxh3_64(&head[..48]).to_le_bytes() == head[48..];
        let mut progress = Self { file, machine, acked: (FrameNumber(0), 0), is_stored: believed };
        if believed {
            progress.acked = link(&head[24..48]);
        } else {
            // Written, not only set aside: a later sync then has nothing of the file system's own to write.
            progress.file.allocate(LENGTH)?;
            progress.file.write(0, &vec![0; LENGTH as usize])?;
            progress.file.sync()?;
        }
        Ok((progress, believed))
    }

    /// The last acknowledged frame that was stored, or none at all.
    pub const fn acked(&self) -> Link {
        self.acked
    }

    /// Whether the file says so.
    pub fn says(&self, acked: Link) -> bool {
        self.is_stored && self.acked == acked
    }

    /// What is to be stored to say that the target is there. Storing waits for the disk: not under a lock.
    pub fn prepare(&self, acked: Link) -> ProgressStore {
        ProgressStore { file: self.file.clone(), machine: self.machine, acked }
    }

    /// That was stored.
    pub const fn stored(&mut self, stored: &ProgressStore) {
        self.acked = stored.acked;
        self.is_stored = true;
    }

    /// What is to be noted before these frames leave. Noting waits for the disk: not under a lock.
    pub fn leaves(&self, links: Vec<Link>) -> ProgressNote {
        ProgressNote { file: self.file.clone(), links }
    }

    /// Whether this source once sent that frame, or never sent any and the replica has none.
    pub fn knows(&self, asked: Link) -> bool {
        if asked == self.acked {
            return true;
        }
        let mut slot = [0; SLOT];
        asked.0.0 > 0
            && self.file.read(place(asked.0), &mut slot).is_ok()
            && xxh3_64(&slot[..24]).to_le_bytes() == slot[24..]
            && link(&slot[..24]) == asked
    }
}

/// Frames that are about to leave.
pub struct ProgressNote {
    file: Arc<dyn Kept>,
    links: Vec<Link>,
}

impl ProgressNote {
    /// Notes them, durably.
    pub fn write(&self) -> io::Result<()> {
        for (number, digest) in &self.links {
            let mut slot = [0; SLOT];
            slot[..8].copy_from_slice(&number.0.to_le_bytes());
            slot[8..24].copy_from_slice(&digest.to_le_bytes());
            let sum = xxh3_64(&slot[..24]);
            slot[24..].copy_from_slice(&sum.to_le_bytes());
            self.file.write(place(*number), &slot)?;
        }
        self.file.sync()
    }
}

/// How far the target is, about to be stored.
pub struct ProgressStore {
    file: Arc<dyn Kept>,
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
        self.file.write(0, &head)?;
        self.file.sync()
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
        progress.leaves(vec![(FrameNumber(7), 70), (FrameNumber(8), 80)]).write().unwrap();
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
        let (other, believed) = Progress::open(&path, MachineId::from_bytes([2; 16])).unwrap();
        assert!(!believed && !other.says((FrameNumber(0), 0)), "another machine's");
        assert!(!Progress::open(&path, machine).unwrap().1, "and now it is gone");
    }
}
