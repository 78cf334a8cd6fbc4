//! Thinning: of a stretch of old history only the state at its end is kept.
//!
//! ```text
//! plan     frames of one bucket (an hour, a day) or more, next to one another, none of which holds a position
//!          that somebody needs: an open view, a pinned, locked or proven point, the bucket's best listed point
//! write    the segment in which the stretch begins, once more: what stands before it, then the newest data of every
//!          range that the stretch changed, then what stands behind it in that segment
//! replace  synced, then renamed over the old segment: from here on it happened
//! forget   the index; then the segments that nothing needs any more
//! ```
//!
//! The records that are left lead, all of them, to the stretch's last position. The chain of frames goes on through
//! what stands in front of them (see [`crate::segment`]). A crash before the renaming changes nothing; after it, frames
//! that the stretch stands for are passed over wherever they still are.
//!
//! Ingest waits only while the index forgets. Views that are open go on: what they looked up is looked up again.
//! Segments that are being written are left alone. A rewritten segment holds only what is needed, so records that an
//! earlier stretch stands for go with it.

use crate::planted::{self, Bug};
use crate::segment::{self, HEADER_BYTES, RECORD_BYTES, THINNED_BYTES, Thinned};
use crate::store::{Core, Entry, FrameAt, Index, Leases, LegalRun, ReplicaError, Store};
use crate::view::{Source, newest_of};
use bytes::Bytes;
use continuum_model::feed::frame::RowKind;
use continuum_model::feed::{Barrier, Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::point::PointKind;
use continuum_model::policy::Bucket;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// Data in one frame of our own making.
const FRAME_BYTES: usize = 1 << 20;
/// Rows in one.
const FRAME_ROWS: usize = 8192;
/// Most changes that are thinned at once: what is known of them is held in memory.
const CHANGES_MAX: usize = 4 << 20;
/// Thinning must take away at least one part in this many of the data.
const WORTH: u64 = 5;
/// Zeroes in one record.
const ZERO_BYTES: u64 = 1 << 30;

/// A stretch of history that may be thinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its first frame.
    pub first: FrameNumber,
    /// Its last frame.
    pub last: FrameNumber,
    /// The last record before it.
    pub after: (Sequence, Timestamp),
    /// Its last record, the only position of it that is kept.
    pub to: (Sequence, Timestamp),
    /// Bytes of journal that it takes.
    pub bytes: u64,
}

/// A frame, or all records of a thinned stretch.
#[derive(Clone, Copy)]
struct Unit {
    /// The first and the last frame of the source that it stands for.
    chain: (FrameNumber, FrameNumber),
    after: (Sequence, Timestamp),
    to: (Sequence, Timestamp),
    bytes: u64,
    stays: bool,
    bucket: Option<Bucket>,
}

/// A change of a stretch, and which record holds it.
type Changed = (DiskIndex, u64, u64, Source);

impl Store {
    /// The oldest stretch that is worth to be thinned, if one is. `bucket` tells how finely a time is kept.
    pub fn thinnable(&self, bucket: &dyn Fn(Timestamp) -> Option<Bucket>) -> Option<Stretch> {
        let core = &*self.core;
        let mut folding = core.folding.lock().unwrap_or_else(PoisonError::into_inner);
        if folding.half_way {
            return None;
        }
        loop {
            let dense = |stretch: &Stretch| folding.dense.contains(&(stretch.first, stretch.last));
            let (stretch, changes) = {
                let leases = core.leases();
                let ingest = core.ingest();
                let index = core.index();
                let closed = ingest.next_segment.saturating_sub(1);
                drop(ingest);
                let units = units(&index, &leases, closed, bucket);
                let stretch = stretches(&index, &units, core.limits.thin_bytes).find(|s| !dense(s))?;
                (stretch, changes(&index, &stretch))
            };
            // Not with the index held: it may be a million of them.
            if changes.is_some_and(|changes| is_worth_it(&changes, core)) {
                return Some(stretch);
            }
            folding.dense.insert((stretch.first, stretch.last));
        }
    }

    /// Thins a stretch. Returns whether it was: somebody may need a position of it since it was planned. `stop` is
    /// asked now and then, and ends it with nothing changed.
    ///
    /// Errors: nothing changed, or (then [`Store::fold`] and this answer [`ReplicaError::Poisoned`] until the store is
    /// opened again) it happened on disk and not in memory.
    pub fn thin(&self, stretch: &Stretch, stop: &dyn Fn() -> bool) -> Result<bool, ReplicaError> {
        let core = &*self.core;
        let mut folding = core.folding.lock().unwrap_or_else(PoisonError::into_inner);
        if folding.half_way {
            return Err(ReplicaError::Poisoned);
        }
        if core.archiving.load(Ordering::Acquire) > 0 {
            return Ok(false);
        }
        let Some(plan) = core.begin(stretch) else { return Ok(false) };
        let written = core.rewrite(&plan, stop);
        let done = match written {
            Ok(Some(written)) => {
                folding.half_way = true;
                core.replace(plan, written)?;
                folding.half_way = false;
                core.drop_superseded().map(|()| true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        // What could not be removed is removed at the next start.
        let _ = core.medium.remove(segment::REWRITTEN);
        core.leases().thinning = None;
        done
    }
}

/// Frames and thinned stretches in order, up to the segment that is being written.
fn units(
    index: &Index,
    leases: &Leases,
    closed: u64,
    bucket: &dyn Fn(Timestamp) -> Option<Bucket>,
) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut after = (index.manifest.base_sequence, index.manifest.base_time);
    let mut before = index.manifest.base_frame;
    for frame in &index.frames {
        if frame.segment >= closed {
            break;
        }
        let bytes = RECORD_BYTES + u64::from(frame.length);
        if let Some(unit) = units.last_mut().filter(|unit| unit.chain.1 == frame.chain) {
            unit.bytes += bytes;
            continue;
        }
        let lease = leases.open_between(after.0, frame.last.0) && !planted::is(Bug::ThinnedUnderView);
        units.push(Unit {
            chain: (before.next(), frame.chain),
            after,
            to: frame.last,
            bytes,
            stays: lease || has_mark(index, after.0, frame.last.0),
            bucket: bucket(frame.last.1),
        });
        after = frame.last;
        before = frame.chain;
    }
    // Of the points of a bucket the best stays: of a machine's own making before others, then the newest.
    let mut best: BTreeMap<Bucket, (bool, usize)> = BTreeMap::new();
    for (place, unit) in units.iter().enumerate() {
        let Some(bucket) = unit.bucket else { continue };
        for (_, point) in index.points.range(unit.after.0.next()..=unit.to.0) {
            let app = point.kind == PointKind::App;
            let known = best.entry(bucket).or_insert((app, place));
            *known = (*known).max((app, place));
        }
    }
    for (_, place) in best.into_values() {
        units[place].stays = true;
    }
    units
}

/// Whether somebody said of a point in a stretch that it stays.
fn has_mark(index: &Index, after: Sequence, to: Sequence) -> bool {
    let (now, open_seconds) = (index.now, index.marks.open_seconds);
    index.points.range(after.next()..=to).any(|(_, point)| {
        let proofs = point.mark.proofs;
        let proven = [proofs.booted, proofs.probed, proofs.digest_equal].contains(&Some(true));
        (proven || point.mark.holds(now, open_seconds)) && !planted::is(Bug::ThinnedPin)
    })
}

/// What of the units can be thinned together, oldest first.
fn stretches<'a>(index: &'a Index, units: &'a [Unit], most: u64) -> impl Iterator<Item = Stretch> + use<'a> {
    let mut place = 0;
    std::iter::from_fn(move || {
        while place < units.len() {
            let start = place;
            let mut bytes = 0;
            while let Some(unit) = units.get(place).filter(|unit| !unit.stays)
                && let Some(bucket) = unit.bucket
                && (bytes == 0 || bytes + unit.bytes <= most)
            {
                bytes += unit.bytes;
                place += 1;
                // A bucket without a point of its own keeps its last state.
                let ends = units.get(place).is_none_or(|next| next.bucket != Some(bucket));
                let kept = |unit: &Unit| unit.stays && unit.bucket == Some(bucket);
                if ends && !units[..place].iter().rev().take_while(|u| u.bucket == Some(bucket)).any(kept) {
                    break;
                }
            }
            if place == start {
                place += 1;
                continue;
            }
            // Its end is a state that was.
            let legal = |unit: &Unit| {
                let after = index.runs.partition_point(|run| run.from.0 <= unit.to.0);
                after > 0 && unit.to.0 <= index.runs[after - 1].to.0
            };
            let mut chosen = &units[start..place];
            while let Some((last, rest)) = chosen.split_last()
                && !legal(last)
            {
                chosen = rest;
            }
            if let ([first, .., last], true) = (chosen, chosen.len() > 1) {
                return Some(Stretch {
                    first: first.chain.0,
                    last: last.chain.1,
                    after: first.after,
                    to: last.to,
                    bytes: chosen.iter().map(|unit| unit.bytes).sum(),
                });
            }
        }
        None
    })
}

/// Every change of a stretch, oldest first; `None`: there are too many.
fn changes(index: &Index, stretch: &Stretch) -> Option<Vec<Changed>> {
    let first = index.entries.seek(|entry| entry.sequence <= stretch.after.0);
    let entries = index.entries.after(first).take_while(|entry| entry.sequence <= stretch.to.0);
    let mut changes = Vec::new();
    for entry in entries {
        let source = match entry.kind {
            RowKind::Write => Source::Frame { number: entry.frame, data_at: entry.data_at },
            RowKind::Zero if planted::is(Bug::ThinnedZeroes) => continue,
            RowKind::Zero => Source::Zero,
            RowKind::Barrier | RowKind::Break => continue,
        };
        changes.push((entry.disk, entry.offset, entry.offset + u64::from(entry.length), source));
        if changes.len() > CHANGES_MAX {
            return None;
        }
    }
    Some(changes)
}

/// The newest of the changes for each range.
fn newest(changes: &[Changed], core: &Core) -> Vec<(DiskIndex, crate::extents::Run<Source>)> {
    let of = |disk: DiskIndex| {
        let own = changes.iter().filter(move |(changed, ..)| *changed == disk);
        newest_of(own.map(|(_, start, end, source)| (*start, *end, *source))).into_iter()
    };
    core.disks.iter().flat_map(|disk| of(disk.index).map(|run| (disk.index, run))).collect()
}

/// Whether thinning takes enough away, and leaves no more records than there were.
fn is_worth_it(changes: &[Changed], core: &Core) -> bool {
    let data = |source: &Source| matches!(source, Source::Frame { .. });
    let before: u64 = changes.iter().filter(|(.., source)| data(source)).map(|(_, s, e, _)| e - s).sum();
    let runs = newest(changes, core);
    let after: u64 =
        runs.iter().filter(|(_, run)| data(&run.source)).map(|(_, run)| run.end - run.start).sum();
    // Each frame has a mark as well, and what is long is cut.
    let records = runs.len() + (after / FRAME_BYTES as u64) as usize * 3 + runs.len() / FRAME_ROWS + 2;
    let small = changes.len() < 64;
    (after <= before - before / WORTH || small) && records <= changes.len() + 2
}

impl Store {
    /// How often segments were rewritten since it was opened.
    pub fn rewrites(&self) -> u64 {
        self.core.rewrites.load(Ordering::Acquire)
    }

    /// Stretches of which only the end is left: after the first moment, up to the second.
    pub fn thinned(&self) -> Vec<(Timestamp, Timestamp)> {
        self.core.index().thinned.values().map(|thinned| (thinned.from.1, thinned.to.1)).collect()
    }
}

/// What is done.
struct Plan {
    stretch: Stretch,
    /// The records of its first segment, in order: those before it, its own, those behind it.
    before: Vec<FrameAt>,
    behind: Vec<FrameAt>,
    segment: u64,
    previous: u128,
    digest: u128,
    epoch: Epoch,
    changes: Vec<Changed>,
    /// Entries that there are for it.
    room: usize,
    next: u64,
}

/// What was written.
struct Written {
    end: u64,
    thinned: Thinned,
    entries: Vec<Entry>,
    frames: Vec<FrameAt>,
    /// Records before and behind, where they stand now, and the positions of stretches among them.
    before: Vec<FrameAt>,
    behind: Vec<FrameAt>,
}

impl Core {
    /// From here on nobody opens, pins or locks a position of the stretch. `None`: somebody did, or it changed.
    fn begin(&self, stretch: &Stretch) -> Option<Plan> {
        let mut leases = self.leases();
        let index = self.index();
        let (after, to) = (stretch.after.0, stretch.to.0);
        let open = leases.open_between(after, Sequence(to.0 - 1)) && !planted::is(Bug::ThinnedUnderView);
        if open || has_mark(&index, after, to) {
            return None;
        }
        let first = index.frames.partition_point(|frame| frame.last.0 <= after);
        let end = index.frames.partition_point(|frame| frame.last.0 <= to);
        let last = index.frames.get(end.checked_sub(1)?)?;
        let (number, previous) = match first.checked_sub(1).and_then(|at| index.frames.get(at)) {
            Some(before) => index.chain_of(before),
            None => (index.manifest.base_frame, u128::from_str_radix(&index.manifest.base_digest, 16).ok()?),
        };
        // The same frames as when it was planned, and still there.
        if (number.next(), last.chain) != (stretch.first, stretch.last) || last.last != stretch.to {
            return None;
        }
        let segment = index.frames.get(first)?.segment;
        let here = |frame: &&FrameAt| frame.segment == segment;
        let before = index.frames.range(..first).filter(here).cloned().collect();
        let behind = index.frames.range(end..).filter(here).cloned().collect();
        let numbers = index.entries.seek(|entry| entry.sequence <= after)
            ..index.entries.seek(|entry| entry.sequence <= to);
        let plan = Plan {
            stretch: *stretch,
            before,
            behind,
            segment,
            previous,
            digest: index.chain_of(last).1,
            epoch: index.manifest.epoch,
            changes: changes(&index, stretch)?,
            room: (numbers.end - numbers.start) as usize,
            next: index.next_thinned,
        };
        leases.thinning = Some((after, to));
        Some(plan)
    }

    /// Writes the first segment of a stretch once more, beside itself. `None`: it was stopped, or gains nothing.
    fn rewrite(&self, plan: &Plan, stop: &dyn Fn() -> bool) -> Result<Option<Written>, ReplicaError> {
        let io = |error| ReplicaError::io(segment::REWRITTEN, error);
        let file = self.medium.open(segment::REWRITTEN, true).map_err(io)?;
        file.set_len(0).map_err(io)?;
        let first = plan.before.first().map_or(plan.stretch.first, |frame| frame.chain);
        file.write_at(0, &[&segment::header(self.machine, plan.segment, first)]).map_err(io)?;
        let mut out = Out { core: self, file: &*file, segment: plan.segment, end: HEADER_BYTES };
        let Some(before) = out.copies(&plan.before, stop)? else { return Ok(None) };
        let head_at = out.end;
        out.end += THINNED_BYTES;
        let Some((frames, entries)) = out.stretch(plan, stop)? else { return Ok(None) };
        if entries.len() > plan.room {
            return Ok(None);
        }
        let thinned = Thinned {
            records: frames.len() as u32,
            first: plan.stretch.first,
            last: plan.stretch.last,
            previous: plan.previous,
            digest: plan.digest,
            from: plan.stretch.after,
            to: plan.stretch.to,
            bytes: out.end - head_at - THINNED_BYTES,
        };
        file.write_at(head_at, &[&thinned.encode(head_at, plan.segment)]).map_err(io)?;
        let Some(behind) = out.copies(&plan.behind, stop)? else { return Ok(None) };
        let end = out.end;
        if !planted::is(Bug::RewrittenUnsynced) {
            file.sync().map_err(io)?;
        }
        Ok(Some(Written { end, thinned, entries, frames, before, behind }))
    }

    /// It happens: on disk first, then in memory.
    fn replace(&self, plan: Plan, written: Written) -> Result<(), ReplicaError> {
        let name = segment::file_name(plan.segment);
        let io = |error| ReplicaError::io(&name, error);
        self.medium.rename(segment::REWRITTEN, &name).map_err(io)?;
        self.medium.sync_folder("journal").map_err(io)?;
        let file = self.medium.open(&name, false).map_err(io)?;
        let mut index = self.index_mut();
        let (after, to) = (plan.stretch.after.0, plan.stretch.to);
        index.segments.insert(plan.segment, (file.into(), written.end));
        let first = index.frames.partition_point(|frame| frame.last.0 <= after);
        let end = index.frames.partition_point(|frame| frame.last.0 <= to.0);
        let tail = index.frames.split_off(end);
        for frame in index.frames.split_off(first) {
            index.thinned_frames.remove(&frame.number);
            index.thinned.remove(&frame.chain);
        }
        for frame in &written.frames {
            index.next_thinned = index.next_thinned.max(frame.number.0 + 1);
            index.thinned_frames.insert(frame.number, frame.clone());
        }
        index.thinned.insert(plan.stretch.last, written.thinned);
        index.frames.extend(written.frames);
        index.frames.extend(tail);
        // Records before and behind it moved within their segment.
        for moved in written.before.into_iter().chain(written.behind) {
            if let Some(known) = index.thinned_frames.get_mut(&moved.number) {
                known.at = moved.at;
            }
            let from = index.frames.partition_point(|frame| frame.chain < moved.chain);
            let same = |frame: &&mut FrameAt| frame.number == moved.number;
            if let Some(known) =
                index.frames.range_mut(from..).take_while(|f| f.chain == moved.chain).find(same)
            {
                known.at = moved.at;
            }
        }
        index.replace_entries(after, to.0, written.entries);
        let gone: Vec<Sequence> = index.points.range(after.next()..=to.0).map(|(at, _)| *at).collect();
        for at in gone {
            index.points.remove(&at);
        }
        cut_runs(&mut index, plan.stretch.after, to);
        self.generation.fetch_add(1, Ordering::Release);
        self.rewrites.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

/// Nothing between the two is a position any more; the second is one.
fn cut_runs(index: &mut Index, after: (Sequence, Timestamp), to: (Sequence, Timestamp)) {
    let mut runs = std::mem::take(&mut index.runs);
    let mut kept = std::collections::VecDeque::with_capacity(runs.len() + 1);
    for run in runs.drain(..) {
        if run.to.0 <= after.0 || run.from.0 > to.0 {
            kept.push_back(run);
            continue;
        }
        if run.from.0 <= after.0 {
            kept.push_back(LegalRun { from: run.from, to: after });
        }
        if run.to.0 >= to.0 {
            kept.push_back(LegalRun { from: to, to: run.to });
        }
    }
    index.runs = kept;
}

/// A segment that is being rewritten.
struct Out<'a> {
    core: &'a Core,
    file: &'a dyn crate::medium::MediumFile,
    segment: u64,
    end: u64,
}

impl Out<'_> {
    fn put(&mut self, parts: &[&[u8]]) -> Result<(), ReplicaError> {
        self.file.write_at(self.end, parts).map_err(|error| ReplicaError::io(segment::REWRITTEN, error))?;
        self.end += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        Ok(())
    }

    fn record(&mut self, envelope: &Envelope) -> Result<(u64, u32), ReplicaError> {
        let length = envelope.len() as u32;
        let header = segment::record_header(self.segment, self.end, 0, length, &envelope.head.identity);
        let at = self.end + RECORD_BYTES;
        self.put(&[&header, &envelope.prefix(), envelope.head.bytes(), &envelope.stored])?;
        Ok((at, length))
    }

    /// Copies records as they are. `None`: it was stopped.
    fn copies(
        &mut self,
        frames: &[FrameAt],
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<FrameAt>>, ReplicaError> {
        let mut moved = Vec::with_capacity(frames.len());
        let mut stretch = None;
        for frame in frames {
            if stop() {
                return Ok(None);
            }
            let (file, thinned) = {
                let index = self.core.index();
                let file = index.segments.get(&frame.segment).map(|(file, _)| file.clone());
                let thinned =
                    segment::is_thinned(frame.number).then(|| index.thinned.get(&frame.chain).copied());
                (file, thinned.flatten())
            };
            let gone = || ReplicaError::Damaged {
                file: segment::file_name(frame.segment),
                reason: "it is not known any more".into(),
            };
            if let Some(thinned) = thinned.filter(|thinned| stretch != Some(thinned.last)) {
                stretch = Some(thinned.last);
                let head = thinned.encode(self.end, self.segment);
                self.put(&[&head])?;
            }
            let file = file.ok_or_else(gone)?;
            let envelope = segment::read_envelope(&*file, frame.segment, frame.at, frame.length)?;
            let (at, _) = self.record(&envelope)?;
            moved.push(FrameAt { at, ..frame.clone() });
        }
        Ok(Some(moved))
    }

    /// Writes what is left of a stretch. `None`: it was stopped.
    #[allow(clippy::type_complexity, reason = "its frames and their entries: read once, just above")]
    fn stretch(
        &mut self,
        plan: &Plan,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<(Vec<FrameAt>, Vec<Entry>)>, ReplicaError> {
        let mut runs = newest(&plan.changes, self.core);
        // In the order in which they stand, so that each frame is read once.
        runs.sort_unstable_by_key(|(disk, run)| match run.source {
            Source::Frame { number, data_at } => (
                self.core.index().frame(number).map_or((0, 0), |f| (f.segment, f.at)),
                u64::from(data_at),
                *disk,
            ),
            Source::Zero => ((u64::MAX, 0), run.start, *disk),
        });
        let mut making = Making {
            plan,
            next: plan.next,
            rows: Vec::new(),
            data: 0,
            frames: Vec::new(),
            entries: Vec::new(),
        };
        let mut last: Option<(FrameNumber, Bytes)> = None;
        for (disk, run) in runs {
            match run.source {
                Source::Zero => {
                    let mut at = run.start;
                    while at < run.end {
                        let length = (run.end - at).min(ZERO_BYTES);
                        making.add(
                            self,
                            Change::Zero { disk, offset: at, length: length as u32, injected: false },
                        )?;
                        at += length;
                    }
                }
                Source::Frame { number, data_at } => {
                    let payload = match last.take() {
                        Some((same, payload)) if same == number => payload,
                        _ if stop() => return Ok(None),
                        _ => {
                            let payload = self.core.payload(number)?;
                            payload.ok_or(ReplicaError::Gap { last: plan.stretch.last, got: number })?
                        }
                    };
                    let mut from = u64::from(data_at) + run.skip;
                    let mut at = run.start;
                    while at < run.end {
                        let room = (FRAME_BYTES - making.data.min(FRAME_BYTES - 1)) as u64;
                        let length = (run.end - at).min(room);
                        let data = payload.slice(from as usize..(from + length) as usize);
                        making.add(self, Change::Write { disk, offset: at, data, injected: false })?;
                        at += length;
                        from += length;
                    }
                    last = Some((number, payload));
                }
            }
        }
        making.finish(self)?;
        Ok(Some((making.frames, making.entries)))
    }
}

/// Frames of our own making.
struct Making<'p> {
    plan: &'p Plan,
    next: u64,
    rows: Vec<Change>,
    data: usize,
    frames: Vec<FrameAt>,
    entries: Vec<Entry>,
}

impl Making<'_> {
    fn add(&mut self, out: &mut Out<'_>, change: Change) -> Result<(), ReplicaError> {
        if let Change::Write { data, .. } = &change {
            self.data += data.len();
        }
        self.rows.push(change);
        if self.data >= FRAME_BYTES || self.rows.len() >= FRAME_ROWS { self.end(out) } else { Ok(()) }
    }

    /// What is left; and where nothing changed at all, a mark, so that the stretch has a record.
    fn finish(&mut self, out: &mut Out<'_>) -> Result<(), ReplicaError> {
        if self.frames.is_empty() && self.rows.is_empty() {
            self.rows.push(Change::Barrier(Barrier::time_mark(true)));
        }
        if self.rows.is_empty() { Ok(()) } else { self.end(out) }
    }

    fn end(&mut self, out: &mut Out<'_>) -> Result<(), ReplicaError> {
        let to = self.plan.stretch.to;
        let mut builder = FrameBuilder::default();
        // Positions inside the stretch, which is long enough: it has no more records than it had.
        let rows = self.rows.len() as u64;
        for (place, change) in (1..=rows).zip(self.rows.drain(..)) {
            let sequence = Sequence(to.0.0.saturating_sub(rows - place).max(place));
            let time = to.1.minus(std::time::Duration::from_micros(rows - place));
            builder.push(&Record { sequence, time, change });
        }
        let number = FrameNumber(self.next);
        let identity =
            Identity { machine: out.core.machine, epoch: self.plan.epoch, number, session: 0, previous: 0 };
        let Some(frame) = builder.finish(identity) else { return Ok(()) };
        self.next += 1;
        self.data = 0;
        let mut envelope = Envelope::plain(&frame);
        if let Ok(packed) = zstd::bulk::compress(&frame.payload, 1)
            && packed.len() < frame.payload.len() / 16 * 15
        {
            (envelope.codec, envelope.stored) = (Codec::Zstd, packed.into());
        }
        let (at, length) = out.record(&envelope)?;
        self.entries.extend(frame.head.rows.iter().map(|row| Entry::of_thinned(row, number, to)));
        self.frames.push(FrameAt {
            number,
            chain: self.plan.stretch.last,
            digest: frame.head.digest,
            segment: out.segment,
            at,
            length,
            last: to,
        });
        Ok(())
    }
}
