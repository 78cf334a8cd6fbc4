//! The injector's work before it injects, where there is doubt: a slice of the source is summed, and the replica's sums
//! are asked for. Why what is equal need not be sent is told in `feed::compare`.
//!
//! The source is read once for it, a run of at most 1 MiB at a time under its range lock; a guest's write waits for no
//! more than that. Of the replica's sums only those travel that lie under a difference.

use crate::feed::compare::{Compare, SLICE, Slice};
use crate::progress::Link;
use crate::splitter::Shared;
use continuum_model::digest::{BlockSum, FAN_OUT, Nodes, differing};
use continuum_model::units::{DiskIndex, REGION_BYTES};
use std::sync::{Arc, PoisonError};

/// The level of which a slice is one node.
const LEVELS: u8 = 2;
const _: () = assert!(SLICE == FAN_OUT * FAN_OUT);
/// Regions that are read at once.
const RUN: u64 = 16;
/// Regions that are settled with the feed held.
const SETTLED: u64 = 4096;

/// The replica's sums of a stretch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSums {
    /// They are of the state behind this frame.
    pub behind: Link,
    /// In order; [`BlockSum::UNKNOWN`] where the replica has none.
    pub sums: Vec<BlockSum>,
}

/// Asks the replica for sums, and waits for the answer. Must end soon when the source closes.
///
/// Errors: why there is no answer.
pub type AskReplica = Arc<dyn Fn(DiskIndex, &Nodes) -> Result<ReplicaSums, String> + Send + Sync>;

impl Shared {
    /// Compares a slice, if there is one to be compared. `None`: injecting may go on.
    pub(crate) fn compare_next(&self) -> Option<Compare> {
        let next = self.feed().next_comparison();
        match &next {
            Compare::Nothing => return None,
            Compare::Wait => {}
            Compare::Slice(slice) => self.compare(slice),
        }
        Some(next)
    }

    fn compare(&self, slice: &Slice) {
        let (disk, regions) = (slice.disk, &slice.regions);
        let ask = self.ask_replica.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(ask) = ask else {
            return self.with_feed(|feed| feed.stop_comparing("nobody here can ask the target for its sums"));
        };
        let mine = self.sum_slice(slice);
        let mut behind: Vec<Link> = Vec::new();
        let differ = differing(regions.start, &mine, LEVELS, |nodes| {
            if self.is_stopping() {
                return Err("the agent stops".to_owned());
            }
            let told = ask(disk, &nodes)?;
            if behind.last() != Some(&told.behind) {
                behind.push(told.behind);
            }
            Ok(told.sums)
        });
        let differ = differ.and_then(|differ| {
            self.with_feed(|feed| feed.rely_on(&behind, self.clock.wall()))?;
            Ok(differ)
        });
        let differ = match differ {
            Ok(differ) => differ,
            Err(why) => return self.with_feed(|feed| feed.stop_comparing(&why)),
        };
        let size = self.sizes[usize::from(disk.0)];
        let mut at = regions.start;
        while at < regions.end {
            let stop = (at + SETTLED).min(regions.end);
            self.with_feed(|feed| feed.compared(slice, at..stop, &differ, size));
            at = stop;
        }
        tracing::debug!(machine = %self.machine, disk = disk.0, first = regions.start,
            differ = differ.ones(), of = differ.len(), "compared with the replica");
    }

    /// The sums of a slice's regions; what need not be compared, or cannot be read, has none.
    fn sum_slice(&self, slice: &Slice) -> Vec<BlockSum> {
        let (disk, regions) = (slice.disk, &slice.regions);
        let (part, size) = (&self.disks[usize::from(disk.0)], self.sizes[usize::from(disk.0)]);
        let mut sums = vec![BlockSum::UNKNOWN; (regions.end - regions.start) as usize];
        let (mut buffer, mut extents) = (Vec::new(), Vec::new());
        let mut at = regions.start;
        while !self.is_stopping() {
            let Some(run) = self.feed().next_to_sum(slice, at, RUN) else { break };
            at = run.end;
            let offset = run.start * REGION_BYTES;
            let length = (run.end * REGION_BYTES).min(size) - offset;
            let out = &mut sums[(run.start - regions.start) as usize..(run.end - regions.start) as usize];
            let _held = part.locks.shared(offset, length);
            extents.clear();
            let hole = length == (run.end - run.start) * REGION_BYTES
                && part.disk.extents(offset, length, &mut extents).is_ok()
                && matches!(extents.as_slice(), [hole] if !hole.data && hole.length >= length);
            if hole {
                out.fill(BlockSum::of_zeroes());
            } else {
                buffer.resize(length as usize, 0);
                // What cannot be read is told when it is injected.
                if part.disk.read(offset, &mut buffer).is_err() {
                    continue;
                }
                for (sum, region) in out.iter_mut().zip(buffer.chunks(REGION_BYTES as usize)) {
                    *sum = BlockSum::of(region);
                }
            }
        }
        sums
    }
}
