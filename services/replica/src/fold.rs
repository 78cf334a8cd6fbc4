//! Folding: the oldest history becomes part of the base, a bounded slice at a time.
//!
//! ```text
//! target   the last frame of the slice: never beyond an open view, a pinned point or the newest state
//! redo     the new content of every block that changed, durable: from here on the fold happens
//! base     blocks and sums written, then synced
//! manifest says how far the base is; the index forgets; segments that nobody needs any more go
//! redo     removed
//! ```
//!
//! Ingest waits only while the index forgets; views only while blocks are written, not while they are synced.
//! A thinned stretch (see [`crate::thin`]) may be greater than a slice. It is folded a few blocks at a time, with the
//! position of the base given up first: until the last of its blocks is there, the base is no state that was, and
//! every position after it still finds the stretch's records in the journal.
//!
//! A fold that failed after its redo was durable is neither done nor undone until the store is opened again:
//! until then nothing older than its end is brought up, and nothing more is folded.

use crate::base::{self, Base, Blocks};
use crate::cache::Key;
use crate::manifest::{self, Manifest};
use crate::marks::Mark;
use crate::planted::{self, Bug};
use crate::segment;
use crate::store::{Core, FrameAt, ReplicaError, Store};
use crate::view::{Source, newest_of};
use continuum_model::feed::frame::RowKind;
use continuum_model::id::PointId;
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, FrameNumber, REGION_BYTES, Sequence};
use std::collections::BTreeSet;
use std::collections::btree_map::Entry::Vacant;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Where folding is.
#[derive(Default)]
pub(crate) struct Folding {
    /// One failed half-way.
    pub(crate) half_way: bool,
    /// Blocks up to here of the stretch that leads to this position are in the base.
    cursor: Option<(Sequence, (DiskIndex, u64))>,
    /// Stretches of which thinning would leave nearly everything: first and last frame.
    pub(crate) dense: BTreeSet<(FrameNumber, FrameNumber)>,
}

impl Store {
    /// Folds one slice of history older than `until` (or beyond `bytes_max`) into the base. Returns whether
    /// there is more to do. Never below a pinned or locked point or an open view, never the newest run.
    ///
    /// Errors: [`ReplicaError::Poisoned`] where an earlier fold failed half-way.
    pub fn fold(&self, until: Timestamp, bytes_max: Option<Bytes>) -> Result<bool, ReplicaError> {
        let core = &*self.core;
        let mut folding = core.folding.lock().unwrap_or_else(PoisonError::into_inner);
        if folding.half_way {
            return Err(ReplicaError::Poisoned);
        }
        if core.archiving.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        let (target, more) = {
            // From here on no view opens below the target, and no point below it is pinned.
            let mut leases = core.leases();
            let Some((target, more)) = core.fold_target(
                until,
                bytes_max,
                leases.oldest().filter(|_| !planted::is(Bug::LeaseIgnored)),
            ) else {
                return Ok(false);
            };
            leases.folding = Some(target.last.0);
            (target, more)
        };
        let done = core.fold_slice(&mut folding, &target);
        if !folding.half_way || planted::is(Bug::HalfFoldForgotten) {
            core.leases().folding = None;
        }
        Ok(!done? || more)
    }
}

impl Store {
    /// Whether the beginning of history went into the base.
    pub fn has_folded(&self) -> bool {
        self.core.index().manifest.base_frame.0 > 0
    }
}

impl Core {
    /// The frame up to which to fold now, and whether more would be left.
    fn fold_target(
        &self,
        until: Timestamp,
        bytes_max: Option<Bytes>,
        leased: Option<Sequence>,
    ) -> Option<(FrameAt, bool)> {
        let index = self.index();
        let newest = index.runs.back()?;
        let (now, open_seconds) = (index.now, index.marks.open_seconds);
        let held = |mark: &Mark| mark.holds(now, open_seconds) && !planted::is(Bug::PinIgnored);
        let pinned = index.points.iter().find(|(_, point)| held(&point.mark)).map(|(at, _)| *at);
        let mut excess = match bytes_max {
            Some(most) => index.segments.values().map(|(_, end)| *end).sum::<u64>().saturating_sub(most.0),
            None => 0,
        };
        let (mut target, mut bytes) = (None, 0u64);
        for frame in &index.frames {
            let expired = frame.last.1 <= until;
            // The newest state that can be brought up stays in the journal: folding beyond it would leave nothing.
            // A pinned point stays, too, since its name is only there; what a view reads may be the base.
            let kept = frame.last.0 >= newest.to.0
                || pinned.is_some_and(|at| frame.last.0 >= at)
                || leased.is_some_and(|at| frame.last.0 > at);
            if kept || !(expired || excess > 0) {
                break;
            }
            let thinned = segment::is_thinned(frame.number);
            if bytes > self.limits.fold_bytes || (thinned && target.is_some()) {
                return target.map(|target| (target, true));
            }
            if thinned {
                // All of its records lead to the same position: they are folded together, in slices.
                return Some((frame.clone(), true));
            }
            bytes += u64::from(frame.length);
            excess = excess.saturating_sub(u64::from(frame.length));
            target = Some(frame.clone());
        }
        target.map(|target| (target, false))
    }

    /// Folds up to a record, or a part of its stretch. Returns whether the base is there.
    fn fold_slice(&self, folding: &mut Folding, target: &FrameAt) -> Result<bool, ReplicaError> {
        let to = target.last.0;
        let thinned = segment::is_thinned(target.number);
        let from = folding.cursor.filter(|(stretch, _)| *stretch == to).map(|(_, next)| next);
        let most = if thinned { self.limits.fold_blocks } else { usize::MAX };
        let (blocks, next) = self.fold_blocks(to, from, most)?;
        // Where a slice of a stretch leads after a crash: the base stays what it is called.
        let leads = if next.is_some() { self.give_up_base()? } else { to };
        if let Err(error) = base::write_redo(&*self.medium, leads, &blocks) {
            // It may be whole on disk all the same: only without it is nothing decided.
            folding.half_way = Base::forget_redo(&*self.medium).is_err();
            return Err(error);
        }
        folding.half_way = true;
        self.take_over(&blocks)?;
        if let Some(next) = next {
            Base::forget_redo(&*self.medium)?;
            folding.cursor = Some((to, next));
            folding.half_way = false;
            return Ok(false);
        }
        self.note_changes();
        self.advance(target)?;
        folding.cursor = None;
        folding.half_way = false;
        self.drop_superseded()?;
        Ok(true)
    }

    /// The base is about to become something in between: its own position is no longer offered.
    fn give_up_base(&self) -> Result<Sequence, ReplicaError> {
        let _ingest = self.ingest();
        let mut index = self.index_mut();
        let base = index.manifest.base_sequence;
        if index.manifest.base_legal && !planted::is(Bug::BaseKeptWhileSliced) {
            let manifest = Manifest { base_legal: false, ..index.manifest.clone() };
            manifest::replace(&*self.medium, "manifest", &manifest)?;
            index.manifest = manifest;
            // What follows is a stretch of which nothing but its end is left, so the run is this one position.
            if index.runs.front().is_some_and(|run| run.to.0 == base) {
                index.runs.pop_front();
            }
        }
        Ok(base)
    }

    /// The content of the next blocks, from a place on and at most so many, that changed up to a position; and where
    /// the next ones begin.
    fn fold_blocks(
        &self,
        to: Sequence,
        from: Option<(DiskIndex, u64)>,
        most: usize,
    ) -> Result<(Blocks, Option<(DiskIndex, u64)>), ReplicaError> {
        let mut blocks = Blocks::new();
        for disk in &self.disks {
            if from.is_some_and(|(first, _)| disk.index < first) {
                continue;
            }
            let runs = {
                let index = self.index();
                let entries = index.entries.iter().take_while(|entry| entry.sequence <= to);
                newest_of(entries.filter(|entry| entry.disk == disk.index).filter_map(|entry| {
                    let source = match entry.kind {
                        RowKind::Write => Source::Frame { number: entry.frame, data_at: entry.data_at },
                        RowKind::Zero => Source::Zero,
                        RowKind::Barrier | RowKind::Break => return None,
                    };
                    Some((entry.offset, entry.offset + u64::from(entry.length), source))
                }))
            };
            for run in runs {
                let skipped = from.filter(|(first, _)| *first == disk.index).map_or(0, |(_, block)| block);
                let mut block = (run.start / REGION_BYTES).max(skipped);
                while block * REGION_BYTES < run.end {
                    let full = blocks.len() >= most;
                    if let Vacant(slot) = blocks.entry((disk.index, block)) {
                        if full {
                            return Ok((blocks, Some((disk.index, block))));
                        }
                        let mut content = Vec::new();
                        self.base().read_block(disk.index, block, &mut content)?;
                        slot.insert(content);
                    }
                    let start = block * REGION_BYTES;
                    let part = run.cut(start, start + REGION_BYTES);
                    let Some(content) = blocks.get_mut(&(disk.index, block)) else { break };
                    let out = &mut content[(part.start - start) as usize..(part.end - start) as usize];
                    match part.source {
                        Source::Zero => out.fill(0),
                        Source::Frame { number, data_at } => {
                            let payload = self.payload(number)?;
                            let from = u64::from(data_at) + part.skip;
                            self.fill(disk.index, part.start, payload.as_ref(), from, out)?;
                        }
                    }
                    block += 1;
                }
            }
        }
        Ok((blocks, None))
    }

    /// Writes what the redo holds to the images.
    fn take_over(&self, blocks: &Blocks) -> Result<(), ReplicaError> {
        let base = self.base.write().unwrap_or_else(PoisonError::into_inner);
        let written = base.write(blocks);
        let kept = planted::is(Bug::StaleBlock);
        self.cache
            .forget(blocks.keys().filter(|_| !kept).map(|(disk, block)| Key::Block(self.id, *disk, *block)));
        drop(base);
        written?;
        self.base().sync()
    }

    /// The base now holds everything up to a frame: on record first, then the index forgets.
    fn advance(&self, to: &FrameAt) -> Result<(), ReplicaError> {
        let _ingest = self.ingest();
        let mut index = self.index_mut();
        let base_legal = index.runs.iter().any(|run| run.from.0 <= to.last.0 && to.last.0 <= run.to.0);
        let (number, digest) = index.chain_of(to);
        let manifest = Manifest {
            base_sequence: to.last.0,
            base_time: to.last.1,
            base_frame: number,
            base_digest: format!("{digest:032x}"),
            base_legal,
            ..index.manifest.clone()
        };
        manifest::replace(&*self.medium, "manifest", &manifest)?;
        index.manifest = manifest;
        index.forget_up_to(to.last.0, to.last.1);
        // Frames of our own making are not known by their number any more.
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Removes segments and marks that nobody needs any more, and the redo. What could not be removed goes
    /// with the next fold.
    pub(crate) fn drop_superseded(&self) -> Result<(), ReplicaError> {
        let ingest = self.ingest();
        let mut index = self.index_mut();
        let needed: BTreeSet<u64> = index.frames.iter().map(|frame| frame.segment).collect();
        let active = ingest.active.as_ref().map(|active| active.number);
        let gone: Vec<u64> = index
            .segments
            .keys()
            .copied()
            .filter(|number| !needed.contains(number) && Some(*number) != active)
            .collect();
        for number in gone {
            let name = segment::file_name(number);
            self.medium.remove(&name).map_err(|error| ReplicaError::io(&name, error))?;
            index.segments.remove(&number);
        }
        let kept: BTreeSet<PointId> = index.points.values().map(|point| point.id).collect();
        if index.marks.points.keys().any(|id| !kept.contains(id)) {
            let mut marks = index.marks.clone();
            marks.points.retain(|id, _| kept.contains(id));
            manifest::replace(&*self.medium, "marks", &marks)?;
            index.marks = marks;
        }
        drop(index);
        self.medium.sync_folder("journal").map_err(|error| ReplicaError::io("journal", error))?;
        Base::forget_redo(&*self.medium)
    }
}
