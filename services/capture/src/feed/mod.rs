//! The state machine of one machine's feed. No threads and no clock: whoever drives it says what time it is,
//! so that one seed can drive it through everything.
//!
//! ```text
//!          staging exhausted · paused · disk changed its size
//!   data ─────────────────────────────────────────────────────► bitmap
//!    ▲ └──── a write to the source's disk failed ────┐            │ connected, and little waits
//!    │                                               ▼            ▼ (a Break record)
//!    └── consistent barrier after the last injection ── catching up
//! ```
//!
//! Three things are known of a region: **stale** (its content is not wholly in the feed: inject it),
//! **in flight** (its newest change is in a frame that is not acknowledged), **pending** (a write set its
//! bit and is not in the feed yet). A bit of the change map is set while one of them holds. It is cleared
//! when the frame with the region's newest change is acknowledged and neither of the others holds; or when
//! the injector found zeroes on both sides.
//!
//! A write to a stale region is shipped like any other, but leaves the region stale: the rest of it still
//! has to be injected.
//!
//! In bitmap mode nothing is appended, but what was queued before stays and still leaves: those points are
//! good. Nothing here fails towards the guest: what the feed cannot do any more, the map remembers.
//!
//! - [`queue`]: frames that are not acknowledged, in memory and staged
//! - [`compare`]: after doubt, what the replica holds already is not sent
//! - [`interval`]: where changes come in cycles
//! - [`link`]: opening a stream to a replica: what goes on, what is sent again

pub mod compare;
pub mod interval;
pub mod link;
pub mod queue;

pub use link::{Connected, ReplicaState};
pub use queue::{AckAhead, Next};

use crate::bits::Bits;
use crate::map::ChangeMap;
use crate::progress::{Progress, ProgressStore};
use crate::source::SourceError;
use crate::staging::{Found, Stage};
use compare::Comparison;
use continuum_model::feed::frame::PAYLOAD_BYTES_MAX;
use continuum_model::feed::{Barrier, Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::health::Mode;
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use queue::Queue;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

/// A frame closes when it holds this much.
pub const FRAME_BYTES: usize = 1 << 20;
/// A frame closes when it holds this many records, so that its table stays small beside small writes.
pub const FRAME_RECORDS: usize = 4096;
/// The injector stops while this much is unacknowledged, so that it never exhausts staging by itself.
const INJECT_WINDOW: u64 = 16 << 20;

/// Changes of mode that are remembered.
const CHANGES_KEPT: usize = 16;

type Region = (u16, u64);

/// The feed went into a mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange {
    /// When: the moment of the feed's newest record then.
    pub at: Timestamp,
    /// Which mode.
    pub mode: Mode,
    /// Why.
    pub reason: String,
}

/// What a guest's change was.
#[derive(Debug, Clone, Copy)]
pub enum Applied<'a> {
    /// This data, with its `data_sum`, now stands there.
    Write {
        /// The data.
        data: &'a [u8],
        /// Its checksum, made by [`continuum_model::feed::frame::data_sum`].
        sum: u64,
    },
    /// So many zeroes now stand there.
    Zero {
        /// Bytes.
        length: u32,
    },
}

impl Applied<'_> {
    const fn length(&self) -> u64 {
        match self {
            Self::Write { data, .. } => data.len() as u64,
            Self::Zero { length } => *length as u64,
        }
    }
}

/// What happened that others wait for; see [`Feed::take_events`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// A frame was begun: its age counts from now.
    pub opened: bool,
    /// A frame was closed, or the answer to "which frame is next" changed otherwise.
    pub frames: bool,
    /// There may be something to inject, or room for it.
    pub inject: bool,
    /// Much waits in memory: time to stage.
    pub stage: bool,
    /// A cycle ended, or may begin.
    pub cycle: bool,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that guests changed.
    pub written: u64,
    /// Of those, bytes that were dropped in bitmap mode: only the map knows of them.
    pub dropped: u64,
    /// Bytes that were injected.
    pub injected: u64,
    /// Bytes that were found to be zero on both sides.
    pub skipped: u64,
    /// Bytes that were found to be equal on both sides, by their sums.
    pub equal: u64,
    /// Bytes of envelopes that were handed out, repeats included.
    pub sent: u64,
    /// Frames that were handed out, repeats included.
    pub frames: u64,
    /// Regions that this round of injections began with, in bytes.
    pub round_total: u64,
    /// How many of those are done.
    pub round_done: u64,
}

/// The feed.
pub struct Feed {
    machine: MachineId,
    session: u64,
    epoch: Epoch,
    mode: Mode,
    reason: String,
    /// The newest changes of mode, oldest first.
    changes: VecDeque<ModeChange>,
    /// Why the replica was doubted since the start, the last time.
    doubted_since: Option<String>,
    /// A stream was opened since the start: the epoch and the end of the chain are known.
    linked: bool,
    paused: Option<String>,
    halted: Option<String>,
    unreadable: Option<String>,
    maps: Vec<ChangeMap>,
    progress: Progress,
    stale: Vec<Bits>,
    /// In a fresh stretch: regions of which the feed already said something.
    touched: Vec<Bits>,
    /// The replica began this stretch empty: what is zero here is zero there.
    fresh: bool,
    /// Ranges of regions whose change is being applied; as many as there are requests under way.
    pending: Vec<(u16, u64, u64)>,
    in_flight: HashMap<Region, FrameNumber>,
    comparison: Comparison,
    builder: FrameBuilder,
    builder_records: usize,
    builder_regions: Vec<Region>,
    queue: Queue,
    next_number: FrameNumber,
    last_digest: u128,
    next_sequence: Sequence,
    last_time: Timestamp,
    cursor: (usize, u64),
    events: Events,
    interval: Option<interval::Interval>,
    /// Counters for people.
    pub totals: Totals,
}

impl Feed {
    /// A feed that is not connected yet. `maps` in the order of disk numbers: what is set in them is stale.
    /// `found` is what an earlier process left in staging.
    pub fn new(
        machine: MachineId,
        session: u64,
        maps: Vec<ChangeMap>,
        progress: Progress,
        stage: Box<dyn Stage>,
        found: Vec<Found>,
    ) -> Self {
        let acked = progress.acked();
        let maps_lengths: Vec<u64> = maps.iter().map(|map| map.bits().len()).collect();
        let mut feed = Self {
            machine,
            session,
            epoch: Epoch(0),
            mode: Mode::Bitmap,
            reason: "not connected to a target since the start".into(),
            changes: VecDeque::new(),
            doubted_since: None,
            linked: false,
            paused: None,
            halted: None,
            unreadable: None,
            stale: maps.iter().map(|map| map.bits().clone()).collect(),
            touched: maps.iter().map(|map| Bits::new(map.bits().len())).collect(),
            maps,
            progress,
            fresh: false,
            pending: Vec::new(),
            in_flight: HashMap::new(),
            comparison: Comparison::new(maps_lengths.into_iter()),
            builder: FrameBuilder::default(),
            builder_records: 0,
            builder_regions: Vec::new(),
            queue: Queue::new(stage, acked),
            next_number: FrameNumber(1),
            last_digest: 0,
            next_sequence: Sequence(1),
            last_time: Timestamp::from_micros(0),
            cursor: (0, 0),
            events: Events::default(),
            interval: None,
            totals: Totals::default(),
        };
        feed.adopt(found);
        feed
    }

    /// Before a guest's change is applied: sets its bits. `false`: nothing was done, because the map needs a
    /// record first ([`ChangeMap::next_record`]); write it, or wait for whoever does, and begin again.
    #[must_use]
    pub fn begin(&mut self, disk: DiskIndex, offset: u64, length: u64) -> bool {
        let (first, last) = regions(offset, length);
        let map = &mut self.maps[usize::from(disk.0)];
        if !map.admits(first, last) {
            return false;
        }
        map.set(first, last);
        self.pending.push((disk.0, first, last));
        self.comparison.changes(disk.0, first, last);
        true
    }

    /// After a guest's change was applied: puts it into the feed. Returns its place, where it has one.
    pub fn applied(
        &mut self,
        disk: DiskIndex,
        offset: u64,
        change: Applied<'_>,
        now: Timestamp,
    ) -> Option<Sequence> {
        let length = change.length();
        self.end_pending(disk, offset, length);
        self.totals.written += length;
        if self.mode != Mode::Bitmap {
            self.make_room(match change {
                Applied::Write { data, .. } => data.len(),
                Applied::Zero { .. } => 0,
            });
        }
        if self.mode == Mode::Bitmap {
            self.totals.dropped += length;
            self.mark_stale(disk, offset, length);
            return None;
        }
        let (sequence, time) = self.stamp(now);
        self.track(disk, offset, length);
        match change {
            Applied::Write { data, sum } => {
                self.builder.push_write((sequence, time), (disk, offset), data, sum, false);
            }
            Applied::Zero { length } => {
                let change = Change::Zero { disk, offset, length, injected: false };
                self.builder.push(&Record { sequence, time, change });
            }
        }
        self.pushed();
        Some(sequence)
    }

    /// A guest's change failed half-way: nobody knows what the disk holds there now. Nothing of it is in the
    /// feed, so from here to the repair of that place no position is a state of this disk.
    pub fn failed(&mut self, disk: DiskIndex, offset: u64, length: u64, now: Timestamp) {
        self.end_pending(disk, offset, length);
        self.mark_stale(disk, offset, length);
        if self.mode == Mode::Data {
            self.catch_up("a write to the source's disk failed", now);
        }
    }

    /// The replica lost these regions: they are stale, whatever is in flight.
    ///
    /// Errors: such regions are not there; nothing was marked.
    pub fn send_again(
        &mut self,
        lost: &[(DiskIndex, Range<u64>)],
        now: Timestamp,
    ) -> Result<(), SourceError> {
        for (disk, regions) in lost {
            let there = self.stale.get(usize::from(disk.0)).map_or(0, Bits::len);
            if regions.start >= regions.end || regions.end > there {
                return Err(SourceError::NoRegions { disk: *disk, first: regions.start, end: regions.end });
            }
        }
        for (disk, regions) in lost {
            let index = usize::from(disk.0);
            self.maps[index].set(regions.start, regions.end - 1);
            regions.clone().for_each(|region| {
                self.stale[index].set(region);
            });
        }
        if !lost.is_empty() && self.mode == Mode::Data {
            self.catch_up("the replica lost part of its newest state, which is sent again", now);
        }
        Ok(())
    }

    /// The next run of stale regions to inject, of at most `bytes_max`: disk, offset, length. `None`: nothing
    /// now, be it that none is stale or that too much waits.
    pub fn next_injection(&mut self, bytes_max: u64, sizes: &[u64]) -> Option<(DiskIndex, u64, u64)> {
        if !self.injects() {
            return None;
        }
        while let Some(stale) = self.stale.get(self.cursor.0) {
            if let Some((start, end)) = stale.next_run(self.cursor.1, bytes_max / REGION_BYTES) {
                self.cursor.1 = end;
                let offset = start * REGION_BYTES;
                let length = (end * REGION_BYTES).min(sizes[self.cursor.0]) - offset;
                return Some((DiskIndex(self.cursor.0 as u16), offset, length));
            }
            self.cursor = (self.cursor.0 + 1, 0);
        }
        None
    }

    /// Whether injecting goes on: some region is stale and nothing holds it back.
    pub fn injects(&self) -> bool {
        self.mode == Mode::CatchingUp && self.has_views() && self.queue.bytes() <= self.inject_window()
    }

    /// Puts a read of whole regions into the feed. The caller holds their range lock since before it read.
    pub fn inject(&mut self, disk: DiskIndex, offset: u64, content: Applied<'_>, now: Timestamp) {
        if self.mode != Mode::CatchingUp || !self.has_views() {
            return;
        }
        let length = content.length();
        if matches!(content, Applied::Zero { .. }) && self.skip_zeroes(disk, offset, length) {
            return;
        }
        self.make_room(match content {
            Applied::Write { data, .. } => data.len(),
            Applied::Zero { .. } => 0,
        });
        if self.mode != Mode::CatchingUp || !self.has_views() {
            return;
        }
        self.no_longer_stale(disk, offset, length);
        self.totals.injected += length;
        let (sequence, time) = self.stamp(now);
        self.track(disk, offset, length);
        match content {
            Applied::Write { data, sum } => {
                self.builder.push_write((sequence, time), (disk, offset), data, sum, true);
            }
            Applied::Zero { length } => {
                let change = Change::Zero { disk, offset, length, injected: true };
                self.builder.push(&Record { sequence, time, change });
            }
        }
        self.pushed();
    }

    /// The source reads as zeroes here, and so does a replica that began empty, unless the feed said
    /// otherwise: nothing to send. Returns whether that was so.
    fn skip_zeroes(&mut self, disk: DiskIndex, offset: u64, length: u64) -> bool {
        let (first, last) = regions(offset, length);
        let index = usize::from(disk.0);
        if !self.fresh || self.touched[index].next_one(first).is_some_and(|region| region <= last) {
            return false;
        }
        self.no_longer_stale(disk, offset, length);
        self.totals.skipped += length;
        for region in first..=last {
            self.clear_unless_held(disk.0, region);
        }
        true
    }

    /// A stale place of the source could not be read: it stays stale, and the reason is shown.
    pub fn injection_failed(&mut self, disk: DiskIndex, offset: u64, length: u64, error: &std::io::Error) {
        self.unreadable = Some(format!(
            "disk {disk} cannot be read at {offset} ({length} bytes): {error}; nothing is sent in its place, and it is tried again"
        ));
    }

    /// When everything stale was injected: ends the repair with a consistent barrier. Returns whether it did;
    /// if not, another pass over what is stale begins.
    pub fn finish_catching_up(&mut self, now: Timestamp) -> bool {
        if self.mode != Mode::CatchingUp || !self.has_views() {
            return false;
        }
        self.cursor = (0, 0);
        if self.stale.iter().any(|stale| !stale.is_empty()) {
            return false;
        }
        if self.interval.is_some() {
            self.close_cycle(now);
            return true;
        }
        self.enter_data();
        self.barrier(Barrier::time_mark(true), now);
        true
    }

    /// The replica is what the source is, or was when its disks were frozen.
    fn enter_data(&mut self) {
        let before = std::mem::replace(&mut self.mode, Mode::Data);
        self.reason.clear();
        self.unreadable = None;
        self.fresh = false;
        self.comparison.settled();
        self.touched.iter_mut().for_each(Bits::clear_all);
        if before != Mode::Data {
            self.changed_mode(self.last_time);
        }
    }

    /// Notes the mode that was just gone into.
    fn changed_mode(&mut self, at: Timestamp) {
        let (mode, reason) = self.told_mode();
        let reason = reason.to_owned();
        // A cycle that goes as it should is no news.
        if self.changes.back().is_some_and(|last| last.mode == mode && last.reason == reason) {
            return;
        }
        if self.changes.len() == CHANGES_KEPT {
            self.changes.pop_front();
        }
        // Two changes never share a moment: whoever is told of them tells them apart by it.
        let at = self.changes.back().map_or(at, |last| at.max(Timestamp::from_micros(last.at.micros() + 1)));
        self.changes.push_back(ModeChange { at, mode, reason });
    }

    /// Cuts a barrier. Its `consistent` is set by the feed itself. `None` while nothing is appended.
    pub fn barrier(&mut self, mut barrier: Barrier, now: Timestamp) -> Option<(Sequence, Timestamp, bool)> {
        barrier.consistent = self.mode == Mode::Data;
        let consistent = barrier.consistent;
        if !consistent {
            // A point cut now could not be brought up: it is none.
            barrier.point = None;
        }
        let (sequence, time) = self.mark(Change::Barrier(barrier), now)?;
        Some((sequence, time, consistent))
    }

    fn mark(&mut self, change: Change, now: Timestamp) -> Option<(Sequence, Timestamp)> {
        // The longest barrier is far below this.
        self.make_room(512);
        if self.mode == Mode::Bitmap {
            return None;
        }
        let (sequence, time) = self.stamp(now);
        self.builder.push(&Record { sequence, time, change });
        self.pushed();
        Some((sequence, time))
    }

    /// Closes the frame that is being filled. Afterwards the mode may be `bitmap`: no room.
    pub fn seal(&mut self) {
        let identity = Identity {
            machine: self.machine,
            epoch: self.epoch,
            number: self.next_number,
            session: self.session,
            previous: self.last_digest,
        };
        let Some(frame) = self.builder.finish(identity) else { return };
        self.builder_records = 0;
        self.last_digest = frame.head.digest;
        self.next_number = self.next_number.next();
        let regions = std::mem::take(&mut self.builder_regions);
        let envelope = Envelope { head: frame.head, codec: Codec::Plain, stored: frame.payload };
        self.queue.push(envelope, regions);
        self.events.frames = true;
        self.events.stage |= self.queue.wants_staging();
        if let Some(why) = self.queue.is_full() {
            self.only_map(why);
        }
    }

    /// From now on only the map grows. What is queued stays.
    fn only_map(&mut self, reason: &str) {
        if self.mode == Mode::Bitmap {
            return;
        }
        tracing::warn!(machine = %self.machine, reason, "replication fell back to the change map");
        self.mode = Mode::Bitmap;
        self.reason = reason.to_owned();
        self.cut_cycle(reason);
        self.seal();
        self.changed_mode(self.last_time);
        self.events.frames = true;
    }

    /// Begins to inject what is stale. The Break says that from here on the positions are none.
    fn catch_up(&mut self, reason: &str, now: Timestamp) {
        self.mode = Mode::CatchingUp;
        self.reason = reason.to_owned();
        self.cursor = (0, 0);
        self.totals.round_total = self.stale.iter().map(|stale| stale.ones() * REGION_BYTES).sum();
        self.totals.round_done = 0;
        self.begin_comparing();
        self.mark(Change::Break, now);
        self.changed_mode(now);
        self.events.inject = true;
        self.events.cycle = true;
    }

    /// Out of bitmap mode, when everything that forced it is over.
    fn catch_up_if_possible(&mut self, now: Timestamp) {
        if self.mode == Mode::Bitmap
            && self.linked
            && self.paused.is_none()
            && self.halted.is_none()
            && self.queue.bytes() <= self.inject_window()
        {
            let reason = std::mem::take(&mut self.reason);
            self.catch_up(&reason, now);
        }
    }

    /// Doubts everything: all of source and replica is compared, and what differs is sent.
    pub fn compare_all(&mut self, reason: &str, now: Timestamp) {
        // What was written before the Break must be in a frame before it: see `compare`.
        self.seal();
        self.doubt_all();
        self.doubted_since = Some(reason.to_owned());
        match self.mode {
            Mode::Bitmap => self.reason = reason.to_owned(),
            Mode::Data | Mode::Interval | Mode::CatchingUp => self.catch_up(reason, now),
        }
    }

    /// Ships nothing until [`Feed::resume`] or the next stream; the map goes on.
    pub fn pause(&mut self, reason: &str) {
        self.only_map(reason);
        self.reason = reason.to_owned();
        self.paused = Some(reason.to_owned());
        self.events.frames = true;
    }

    /// Ends a pause.
    pub fn resume(&mut self, now: Timestamp) {
        if self.paused.take().is_some() {
            self.events.frames = true;
            self.catch_up_if_possible(now);
        }
    }

    /// Ships nothing any more: what is replicated is not what it was (its size changed).
    pub fn halt(&mut self, reason: &str) {
        if self.halted.is_none() {
            self.only_map(reason);
            self.reason = reason.to_owned();
            self.halted = Some(reason.to_owned());
        }
    }

    fn stamp(&mut self, now: Timestamp) -> (Sequence, Timestamp) {
        let sequence = self.next_sequence;
        self.next_sequence = sequence.next();
        let now = self.moment_of(now);
        self.last_time = Timestamp::from_micros(now.micros().max(self.last_time.micros() + 1));
        (sequence, self.last_time)
    }

    /// Notes which regions the record about to be pushed leaves in flight.
    fn track(&mut self, disk: DiskIndex, offset: u64, length: u64) {
        let (first, last) = regions(offset, length);
        let index = usize::from(disk.0);
        for region in first..=last {
            if self.fresh {
                self.touched[index].set(region);
            }
            if !self.stale[index].get(region)
                && self.in_flight.insert((disk.0, region), self.next_number) != Some(self.next_number)
            {
                self.builder_regions.push((disk.0, region));
            }
        }
    }

    fn make_room(&mut self, data_len: usize) {
        debug_assert!(data_len <= PAYLOAD_BYTES_MAX);
        if !self.builder.has_room_for(data_len) {
            self.seal();
        }
    }

    fn pushed(&mut self) {
        self.events.opened |= self.builder_records == 0;
        self.builder_records += 1;
        if self.builder.payload_len() >= FRAME_BYTES || self.builder_records >= FRAME_RECORDS {
            self.seal();
        }
    }

    fn mark_stale(&mut self, disk: DiskIndex, offset: u64, length: u64) {
        let (first, last) = regions(offset, length);
        for region in first..=last {
            self.stale[usize::from(disk.0)].set(region);
        }
    }

    fn no_longer_stale(&mut self, disk: DiskIndex, offset: u64, length: u64) {
        let (first, last) = regions(offset, length);
        for region in first..=last {
            self.stale[usize::from(disk.0)].clear(region);
        }
        self.totals.round_done += length;
    }

    fn end_pending(&mut self, disk: DiskIndex, offset: u64, length: u64) {
        let (first, last) = regions(offset, length);
        if let Some(at) = self.pending.iter().position(|range| *range == (disk.0, first, last)) {
            self.pending.swap_remove(at);
        }
    }

    fn clear_unless_held(&mut self, disk: u16, region: u64) {
        let index = usize::from(disk);
        let pending =
            self.pending.iter().any(|&(on, first, last)| on == disk && (first..=last).contains(&region));
        if !pending && !self.stale[index].get(region) && !self.in_flight.contains_key(&(disk, region)) {
            self.maps[index].clear(region);
        }
    }

    fn inject_window(&self) -> u64 {
        INJECT_WINDOW.min(self.queue.bytes_max() / 4)
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }
    /// The mode, and why it is not `data`.
    pub fn mode(&self) -> (Mode, &str) {
        (self.mode, self.unreadable.as_deref().unwrap_or(&self.reason))
    }
    /// The newest changes of mode, oldest first.
    pub const fn changes(&self) -> &VecDeque<ModeChange> {
        &self.changes
    }
    /// Why the replica was doubted since the start of the process, the last time.
    pub fn doubted_since(&self) -> Option<&str> {
        self.doubted_since.as_deref()
    }
    /// Whether a frame is being filled.
    pub fn has_open_frame(&self) -> bool {
        !self.builder.is_empty()
    }
    /// What waits for an acknowledgement.
    pub const fn queue(&self) -> &Queue {
        &self.queue
    }
    /// How much may wait.
    pub fn set_staging_max(&mut self, bytes: u64) {
        self.queue.set_bytes_max(bytes);
    }
    /// Bytes of regions whose bit is set.
    pub fn dirty_bytes(&self) -> u64 {
        self.maps.iter().map(|map| map.bits().ones() * REGION_BYTES).sum()
    }
    /// The newest record's place and moment.
    pub const fn newest(&self) -> (Sequence, Timestamp) {
        (Sequence(self.next_sequence.0 - 1), self.last_time)
    }
    /// The epoch of the last stream.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// The maps.
    pub fn maps(&self) -> &[ChangeMap] {
        &self.maps
    }
    /// The maps, to store what was cleared.
    pub fn maps_mut(&mut self) -> &mut [ChangeMap] {
        &mut self.maps
    }
    /// How far the target is, to be stored before what relies on it is cleared in the maps' files; `None`:
    /// nothing new.
    pub fn progress_to_store(&self) -> Option<ProgressStore> {
        let acked = self.queue.acked();
        (!self.progress.says(acked)).then(|| self.progress.prepare(acked))
    }
    /// It is stored.
    pub const fn progress_stored(&mut self, stored: &ProgressStore) {
        self.progress.stored(stored);
    }
    /// Sets everything in the maps: doubt.
    pub fn doubt_all(&mut self) {
        self.doubt();
        for (map, stale) in self.maps.iter_mut().zip(&mut self.stale) {
            map.set_all();
            stale.set_all();
        }
    }
}

fn regions(offset: u64, length: u64) -> (u64, u64) {
    (offset / REGION_BYTES, (offset + length.max(1) - 1) / REGION_BYTES)
}
