//! Digests of all disks as of one barrier, while the machine runs on.
//!
//! The barrier is cut while nothing is under way. Then every block is summed, in order, under its range lock;
//! a change to a block that was not summed yet first sums what it will overwrite. So each sum is of the block
//! as it was at the barrier, and a guest waits for at most the reading of the blocks it overwrites.

use crate::source::SourceError;
use crate::splitter::Shared;
use continuum_model::digest::{BlockSum, Digest, DiskDigest};
use continuum_model::time::Timestamp;
use continuum_model::units::{REGION_BYTES, Sequence};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Sums of overwritten blocks that are kept at most: 64 MiB of memory.
const KEPT_MAX: usize = 1 << 20;

/// The digest under way, if any.
#[derive(Default)]
pub(crate) struct Scanner {
    /// One at a time.
    turn: Mutex<()>,
    active: AtomicBool,
    scan: Mutex<Scan>,
}

#[derive(Default)]
struct Scan {
    /// Blocks before this one are summed.
    reached: (usize, u64),
    kept: HashMap<(usize, u64), BlockSum>,
    failed: Option<String>,
}

impl Scanner {
    fn scan(&self) -> MutexGuard<'_, Scan> {
        self.scan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before a guest's change, whose range lock is held: sums what it will overwrite, where that is needed.
    pub(crate) fn before_change(&self, shared: &Shared, disk: usize, offset: u64, length: u64) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        for region in offset / REGION_BYTES..=(offset + length - 1) / REGION_BYTES {
            // Held while the block is read: of two changes side by side in one block the first one sums it.
            let mut scan = self.scan();
            if scan.failed.is_some() {
                return;
            }
            if (disk, region) < scan.reached || scan.kept.contains_key(&(disk, region)) {
                continue;
            }
            if scan.kept.len() >= KEPT_MAX {
                scan.failed = Some(
                    "too much was overwritten while the disks were read: try again when less is written"
                        .into(),
                );
                return;
            }
            match shared.sum(disk, region) {
                Ok(sum) => {
                    scan.kept.insert((disk, region), sum);
                }
                Err(error) => scan.failed = Some(error.to_string()),
            }
        }
    }
}

impl Shared {
    fn sum(&self, disk: usize, region: u64) -> io::Result<BlockSum> {
        let start = region * REGION_BYTES;
        let mut block = vec![0; REGION_BYTES.min(self.sizes[disk] - start) as usize];
        self.disks[disk].disk.read(start, &mut block)?;
        Ok(BlockSum::of(&block))
    }

    /// Cuts a barrier with `cut` and digests every disk as of it.
    pub(crate) fn digest(
        &self,
        cut: impl FnOnce() -> Result<(Sequence, Timestamp), SourceError>,
    ) -> Result<(Sequence, Timestamp, Vec<Digest>), SourceError> {
        let _turn = self.scanner.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (sequence, time) = {
            // Nothing under way while the barrier is cut and the scan begins.
            let _held: Vec<_> = self
                .disks
                .iter()
                .zip(&self.sizes)
                .map(|(part, size)| part.locks.exclusive(0, *size))
                .collect();
            let cut = cut()?;
            *self.scanner.scan() = Scan::default();
            self.scanner.active.store(true, Ordering::Release);
            cut
        };
        let digests = self.sum_all();
        self.scanner.active.store(false, Ordering::Release);
        let scan = std::mem::take(&mut *self.scanner.scan());
        match scan.failed {
            Some(reason) => Err(SourceError::Digest { reason }),
            None => Ok((sequence, time, digests?)),
        }
    }

    /// Digests of all disks as they are now: those of a machine that takes no writes, or views, which do not change.
    pub(crate) fn digest_at_rest(&self) -> Result<Vec<Digest>, SourceError> {
        let _turn = self.scanner.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *self.scanner.scan() = Scan::default();
        self.sum_all()
    }

    fn sum_all(&self) -> Result<Vec<Digest>, SourceError> {
        let mut digests = Vec::new();
        let mut extents = Vec::new();
        for (disk, size) in self.sizes.iter().enumerate() {
            let mut digest = DiskDigest::new(*size);
            for region in 0..size.div_ceil(REGION_BYTES) {
                let part = &self.disks[disk];
                let start = region * REGION_BYTES;
                let _held = part.locks.shared(start, REGION_BYTES);
                let kept = {
                    let mut scan = self.scanner.scan();
                    if let Some(reason) = &scan.failed {
                        return Err(SourceError::Digest { reason: reason.clone() });
                    }
                    scan.reached = (disk, region + 1);
                    scan.kept.remove(&(disk, region))
                };
                let full = size - start >= REGION_BYTES;
                extents.clear();
                digest.push(match kept {
                    Some(sum) => sum,
                    None if full
                        && part.disk.extents(start, REGION_BYTES, &mut extents).is_ok()
                        && matches!(extents.as_slice(), [hole] if !hole.data && hole.length >= REGION_BYTES) =>
                    {
                        BlockSum::of_zeroes()
                    }
                    None => self.sum(disk, region)?,
                });
            }
            digests.push(digest.finish());
        }
        Ok(digests)
    }
}
