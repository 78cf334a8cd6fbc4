//! Comparing before sending again: after doubt, what the replica holds already does not travel.
//!
//! ```text
//! doubt ─► catching up: Break ─► every frame before the Break acknowledged ─► slice after slice:
//!          sums of the source's regions ─► sums of the replica's ─► equal: not stale, bit cleared
//!                                                                   else:  injected as ever
//! ```
//!
//! **Why a skipped region is right.** Skipped is where the sum of what the source holds is equal to the sum of what the
//! replica holds behind frame q, and
//!
//! 1. q is a frame of this stream, and not older than the last one before the Break;
//! 2. no change of the region began since the Break, nor was one under way then ([`Feed::begin`] takes a
//!    region off the list for good).
//!
//! So no record after the Break touches the region, and what the replica has in it is the same at q, now, and until the
//! next change, whatever still arrives or gets lost. Equal is equal then. What the feed never carried (writes dropped
//! in bitmap mode, or before a crash) happened before the sum was made, and is in it.
//!
//! The region's bit is cleared with it; that the replica is at q is taken for an acknowledgement first, so that
//! a replica which goes back before q later is doubted.
//!
//! The sums are xxh3-128: no proof against somebody who may write chosen blocks on both sides (see `model::digest`).

use super::{Feed, Mode};
use crate::bits::Bits;
use crate::progress::Link;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, FrameNumber, REGION_BYTES};
use std::ops::Range;

/// Regions that are compared at once: 4 GiB of disk, one node of level 2 of the disk's sums.
pub const SLICE: u64 = 65_536;

/// What is to be compared.
pub(super) struct Comparison {
    /// The map could not be believed, or the replica is not what it should be.
    doubted: bool,
    /// Which catching up this is: what was summed in an earlier one is worth nothing.
    round: u64,
    /// Regions that are compared before they are injected, and did not change since the Break.
    wanted: Vec<Bits>,
    /// How many those were at first, in bytes.
    wanted_bytes: u64,
    /// The last frame before the Break.
    start: Link,
}

/// How far a resync is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It cannot begin: nothing is shipped now.
    Waiting,
    /// Both sides' sums are being compared.
    Comparing,
    /// What differs is being sent.
    Sending,
}

impl Phase {
    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Comparing => "comparing",
            Self::Sending => "sending",
        }
    }
}

/// A resync under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resync {
    /// How far it is.
    pub phase: Phase,
    /// Bytes that were compared.
    pub compared_bytes: u64,
    /// Of so many.
    pub to_compare_bytes: u64,
}

/// A slice of a disk that is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The disk.
    pub disk: DiskIndex,
    /// Its regions.
    pub regions: Range<u64>,
    round: u64,
}

/// What the injector is to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// This slice.
    Slice(Slice),
    /// Nothing until what was sent before is acknowledged.
    Wait,
    /// Nothing.
    Nothing,
}

impl Comparison {
    pub(super) fn new(lengths: impl Iterator<Item = u64>) -> Self {
        Self {
            doubted: false,
            round: 0,
            wanted: lengths.map(Bits::new).collect(),
            wanted_bytes: 0,
            start: Link::default(),
        }
    }

    /// A change of these regions begins.
    pub(super) fn changes(&mut self, disk: u16, first: u64, last: u64) {
        let wanted = &mut self.wanted[usize::from(disk)];
        if !wanted.is_empty() {
            (first..=last).for_each(|region| {
                wanted.clear(region);
            });
        }
    }

    fn left_bytes(&self) -> u64 {
        self.wanted.iter().map(|wanted| wanted.ones() * REGION_BYTES).sum()
    }

    pub(super) const fn settled(&mut self) {
        self.doubted = false;
    }
}

impl Feed {
    /// What is stale now is so for want of knowledge: it is compared before it is sent.
    pub fn doubt(&mut self) {
        self.comparison.doubted = true;
    }

    /// Catching up begins. Where there was doubt it begins out of bitmap mode, and no frame is being filled.
    pub(super) fn begin_comparing(&mut self) {
        let compares = self.comparison.doubted && !self.fresh;
        for (wanted, stale) in self.comparison.wanted.iter_mut().zip(&self.stale) {
            if compares { wanted.copy_from(stale) } else { wanted.clear_all() }
        }
        for &(disk, first, last) in &self.pending {
            self.comparison.changes(disk, first, last);
        }
        self.comparison.wanted_bytes = self.comparison.left_bytes();
        self.comparison.round += 1;
        self.comparison.start = (FrameNumber(self.next_number.0.saturating_sub(1)), self.last_digest);
    }

    /// The resync under way, where what is stale is so for want of knowledge.
    pub fn resync(&self) -> Option<Resync> {
        if !self.comparison.doubted || self.fresh {
            return None;
        }
        let (total, left) = (self.comparison.wanted_bytes, self.comparison.left_bytes());
        let phase = match self.mode {
            Mode::Data | Mode::Interval => return None,
            Mode::Bitmap => Phase::Waiting,
            Mode::CatchingUp if left > 0 => Phase::Comparing,
            Mode::CatchingUp => Phase::Sending,
        };
        let (compared, total) =
            if phase == Phase::Waiting { (0, 0) } else { (total - left.min(total), total) };
        Some(Resync { phase, compared_bytes: compared, to_compare_bytes: total })
    }

    /// What to compare now.
    pub fn next_comparison(&self) -> Compare {
        if self.mode != Mode::CatchingUp || !self.has_views() {
            return Compare::Nothing;
        }
        for (disk, wanted) in self.comparison.wanted.iter().enumerate() {
            if let Some(region) = wanted.next_one(0) {
                if self.queue.acked().0 < self.comparison.start.0 {
                    return Compare::Wait;
                }
                let first = region / SLICE * SLICE;
                return Compare::Slice(Slice {
                    disk: DiskIndex(disk as u16),
                    regions: first..(first + SLICE).min(wanted.len()),
                    round: self.comparison.round,
                });
            }
        }
        Compare::Nothing
    }

    /// The next run of regions of a slice that are still to be compared, at or after `from`. To be summed under
    /// their range lock: a change that comes later takes them off the list.
    pub fn next_to_sum(&self, slice: &Slice, from: u64, most: u64) -> Option<Range<u64>> {
        let (start, end) = self.comparison.wanted[usize::from(slice.disk.0)].next_run(from, most)?;
        (self.is_current(slice) && start < slice.regions.end).then_some(start..end.min(slice.regions.end))
    }

    fn is_current(&self, slice: &Slice) -> bool {
        self.mode == Mode::CatchingUp && slice.round == self.comparison.round
    }

    /// The replica's sums of states behind these frames were seen: whether they may be relied on.
    ///
    /// Errors: why not.
    pub fn rely_on(&mut self, behind: &[Link], now: Timestamp) -> Result<(), String> {
        let start = self.comparison.start;
        for link in behind {
            let known = *link == start || (link.0 > start.0 && self.progress.knows(*link));
            if !known {
                return Err(format!("the target told sums of frame {}, which is not of this stream", link.0));
            }
            self.acknowledge(link.0, now).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Part of a slice was compared; `differ` counts from the slice's first region. What is equal is not sent.
    pub fn compared(&mut self, slice: &Slice, part: Range<u64>, differ: &Bits, size: u64) {
        if !self.is_current(slice) {
            return;
        }
        let index = usize::from(slice.disk.0);
        for region in part {
            if self.comparison.wanted[index].clear(region) && !differ.get(region - slice.regions.start) {
                let length = REGION_BYTES.min(size - region * REGION_BYTES);
                self.no_longer_stale(slice.disk, region * REGION_BYTES, length);
                self.totals.equal += length;
                self.clear_unless_held(slice.disk.0, region);
            }
        }
    }

    /// It cannot be compared: everything that is stale travels.
    pub fn stop_comparing(&mut self, why: &str) {
        if self.comparison.wanted.iter().any(|wanted| !wanted.is_empty()) {
            tracing::warn!(machine = %self.machine, why, "source and replica cannot be compared: everything that may differ is sent");
        }
        self.comparison.wanted.iter_mut().for_each(Bits::clear_all);
        self.events.inject = true;
    }
}
