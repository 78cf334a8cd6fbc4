//! Range locks of one disk: I/O that overlaps goes one after the other, the rest side by side.
//!
//! Reads wait for overlapping writes, too: otherwise a guest could read data whose write is not in the
//! feed yet, act on it, and have the consequence recorded before its cause. Reads do not wait for reads.
//! Who comes first goes first: nobody starves, neither the injector behind a busy guest nor the guest behind
//! the injector. There are never more entries than requests under way, so a plain list beats any tree.

use std::sync::{Condvar, Mutex, PoisonError};

/// The locks of one disk.
#[derive(Default)]
pub struct RangeLocks {
    held: Mutex<Held>,
    released: Condvar,
}

#[derive(Default)]
struct Held {
    /// Held and waited for, in the order of arrival.
    ranges: Vec<Range>,
    waiting: usize,
    next_ticket: u64,
}

#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    exclusive: bool,
    ticket: u64,
}

/// A held range; released when dropped.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    ticket: u64,
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

    fn acquire(&self, start: u64, length: u64, exclusive: bool) -> RangeGuard<'_> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = held.next_ticket;
        held.next_ticket += 1;
        let mine = Range { start, end: start.saturating_add(length), exclusive, ticket };
        held.ranges.push(mine);
        while held
            .ranges
            .iter()
            .take_while(|other| other.ticket != ticket)
            .any(|other| other.conflicts(&mine))
        {
            held.waiting += 1;
            held = self.released.wait(held).unwrap_or_else(PoisonError::into_inner);
            held.waiting -= 1;
        }
        RangeGuard { locks: self, ticket }
    }
}

impl Range {
    const fn conflicts(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end && (self.exclusive || other.exclusive)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Not `swap_remove`: the order is the queue.
        if let Some(at) = held.ranges.iter().position(|range| range.ticket == self.ticket) {
            held.ranges.remove(at);
        }
        if held.waiting > 0 {
            self.locks.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

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

    #[test]
    fn a_writer_is_not_starved_by_readers_that_come_and_go() {
        let locks = RangeLocks::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let first = locks.shared(0, 10);
            for _ in 0..2 {
                scope.spawn(|| {
                    // Without a queue one of these two would always hold the range.
                    while !done.load(Ordering::Acquire) {
                        drop(locks.shared(0, 10));
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..100 {
                    drop(locks.exclusive(0, 10));
                }
                done.store(true, Ordering::Release);
            });
            drop(first);
        });
    }
}
