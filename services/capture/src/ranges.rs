//! Range locks of one disk: I/O that overlaps goes one after the other, the rest side by side.
//!
//! Reads wait for overlapping writes, too: otherwise a guest could read data whose write is not in the
//! feed yet, act on it, and have the consequence recorded before its cause. Reads do not wait for reads.
//! There are never more entries than workers, so a plain list beats any tree.

use std::sync::{Condvar, Mutex, PoisonError};

/// The locks of one disk.
#[derive(Default)]
pub struct RangeLocks {
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Default)]
struct Held {
    ranges: Vec<(u64, u64, bool)>,
    waiting: usize,
}

/// A held range; released when dropped.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: (u64, u64, bool),
}

impl RangeLocks {
    /// Waits until nothing overlaps, and holds the range alone.
    pub fn exclusive(&self, offset: u64, length: u64) -> RangeGuard<'_> {
        self.acquire(offset, length, true)
    }
    /// Waits until no write overlaps.
    pub fn shared(&self, offset: u64, length: u64) -> RangeGuard<'_> {
        self.acquire(offset, length, false)
    }

    fn acquire(&self, offset: u64, length: u64, exclusive: bool) -> RangeGuard<'_> {
        let range = (offset, offset.saturating_add(length), exclusive);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held
            .ranges
            .iter()
            .any(|&(start, end, alone)| start < range.1 && range.0 < end && (alone || exclusive))
        {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        held.ranges.push(range);
        RangeGuard { locks: self, range }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.ranges.iter().position(|range| *range == self.range) {
            held.ranges.swap_remove(at);
        }
        if held.waiting > 0 {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn overlapping_writers_never_meet() {
        let locks = RangeLocks::default();
        let cells: Vec<AtomicU32> = (0..16).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for worker in 0..4u64 {
                let (locks, cells) = (&locks, &cells);
                scope.spawn(move || {
                    for turn in 0..2_000u64 {
                        let start = (turn * 7 + worker * 5) % 12;
                        let _held = locks.exclusive(start, 4);
                        let mine = &cells[start as usize..start as usize + 4];
                        assert!(mine.iter().all(|cell| cell.fetch_add(1, Ordering::AcqRel) == 0));
                        mine.iter().for_each(|cell| cell.store(0, Ordering::Release));
                    }
                });
            }
        });
    }

    #[test]
    fn readers_share() {
        let locks = RangeLocks::default();
        let _one = locks.shared(0, 10);
        let _two = locks.shared(5, 10);
        let _apart = locks.exclusive(15, 1);
    }
}
