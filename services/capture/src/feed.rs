//! The state machine of one machine's feed. No threads and no clock: whoever drives it says what time it is.
//!
//! ```text
//!            connect: the chain goes on                 everything injected
//!   ┌───────────────────────────────┐      ┌──────────────────────────────────────┐
//!   ▼                               │      │                                      │
//!  data ──staging exhausted, paused──► bitmap ──connect: Break record──► catching up
//!   ▲                                                                           │
//!   └──────────────── consistent barrier after the last injection ──────────────┘
//! ```
//!
//! Three things are known of a region: **stale** (its content is not wholly in the feed: inject it),
//! **in flight** (its newest change is in a frame that is not acknowledged), **pending** (a write set its
//! bit and is not in the feed yet). A bit of the change map is set exactly while one of them holds. It is
//! cleared when the frame with the region's newest change is acknowledged and nothing is pending; or when
//! an injection found zeroes on both sides.
//!
//! A write to a stale region is shipped like any other, but leaves the region stale: the rest of it still
//! has to be injected.

use crate::map::ChangeMap;
use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::health::Mode;
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

/// A frame closes when it holds this much.
pub const FRAME_BYTES: usize = 1 << 20;
/// Unacknowledged frames beyond this are staged on disk.
pub const MEMORY_BYTES: u64 = 32 << 20;

type Region = (u16, u64);

/// Where frames wait that memory has no room for.
pub trait Stage: Send {
    /// Stores an envelope and says where.
    fn put(&mut self, envelope: &Envelope) -> io::Result<u64>;
    /// Reads it back.
    fn get(&mut self, at: u64) -> io::Result<Envelope>;
    /// Forgets everything.
    fn clear(&mut self) -> io::Result<()>;
}

struct Queued {
    number: FrameNumber,
    digest: u128,
    bytes: u64,
    body: Body,
    regions: Vec<Region>,
}

enum Body {
    Memory(Box<Envelope>),
    Staged(u64),
}

/// What the replica holds, as it says when a stream opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    /// Its last frame; 0: none.
    pub number: FrameNumber,
    /// That frame's digest.
    pub digest: u128,
    /// Its last record.
    pub sequence: Sequence,
    /// That record's moment.
    pub newest: Timestamp,
}

/// What came of opening a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connected {
    /// The replica goes on where it was: frames after its last one are at hand.
    Continued,
    /// Changes are missing from the feed: a break is recorded and the stale regions are injected.
    Broken {
        /// Why.
        reason: String,
    },
}

/// The next frame to send.
pub enum Next {
    /// This one.
    Frame(Box<Envelope>),
    /// None yet.
    Idle,
    /// The frames that this stream was to carry are gone: open a new one.
    Reset,
}

/// The feed.
pub struct Feed {
    machine: MachineId,
    session: u64,
    epoch: Epoch,
    mode: Mode,
    reason: String,
    /// Rises whenever queued frames are dropped; a stream of an older stretch must end.
    stretch: u64,
    maps: Vec<ChangeMap>,
    stale: Vec<HashSet<u64>>,
    pending: HashMap<Region, u32>,
    in_flight: HashMap<Region, FrameNumber>,
    builder: FrameBuilder,
    builder_regions: Vec<Region>,
    queue: VecDeque<Queued>,
    queue_bytes: u64,
    memory_bytes: u64,
    staged_bytes: u64,
    staging_max: u64,
    stage: Box<dyn Stage>,
    next_number: FrameNumber,
    last_digest: u128,
    acked: (FrameNumber, u128),
    next_sequence: Sequence,
    last_time: Timestamp,
    /// The replica began this stretch empty: what is zero here is zero there.
    fresh: bool,
    /// Stale regions that a guest wrote to in a fresh stretch: they are not empty at the replica any more.
    touched: HashSet<Region>,
    cursor: (usize, u64),
    /// Counters for people.
    pub totals: Totals,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes that guests changed.
    pub written: u64,
    /// Bytes that were injected.
    pub injected: u64,
    /// Bytes of frames that were handed out.
    pub sent: u64,
    /// Regions that this round of injections began with, in bytes.
    pub round_total: u64,
    /// How many of those are done.
    pub round_done: u64,
}

impl Feed {
    /// A feed that is not connected yet. `maps` in the order of disk numbers; what is set in them is stale.
    pub fn new(
        machine: MachineId,
        session: u64,
        maps: Vec<ChangeMap>,
        acked: (FrameNumber, u128),
        stage: Box<dyn Stage>,
    ) -> Self {
        let mut feed = Self {
            machine,
            session,
            epoch: Epoch(0),
            mode: Mode::Bitmap,
            reason: "not connected yet".into(),
            stretch: 0,
            stale: maps.iter().map(|_| HashSet::new()).collect(),
            maps,
            pending: HashMap::new(),
            in_flight: HashMap::new(),
            builder: FrameBuilder::default(),
            builder_regions: Vec::new(),
            queue: VecDeque::new(),
            queue_bytes: 0,
            memory_bytes: 0,
            staged_bytes: 0,
            staging_max: 1 << 30,
            stage,
            next_number: FrameNumber(1),
            last_digest: 0,
            acked,
            next_sequence: Sequence(1),
            last_time: Timestamp::from_micros(0),
            fresh: false,
            touched: HashSet::new(),
            cursor: (0, 0),
            totals: Totals::default(),
        };
        feed.all_dirty_is_stale();
        feed
    }

    fn all_dirty_is_stale(&mut self) {
        for (map, stale) in self.maps.iter().zip(&mut self.stale) {
            stale.clear();
            let mut from = 0;
            while let Some(region) = map.next_set(from) {
                stale.insert(region);
                from = region + 1;
            }
        }
    }

    /// How much may wait in staging.
    pub fn set_staging_max(&mut self, bytes: u64) {
        self.staging_max = bytes;
    }

    /// A stream opened under `epoch`, and the replica says what it holds.
    pub fn connect(&mut self, epoch: Epoch, replica: ReplicaState, now: Timestamp) -> io::Result<Connected> {
        let continues = self.mode != Mode::Bitmap
            && epoch == self.epoch
            && (self.acked == (replica.number, replica.digest)
                || self
                    .queue
                    .iter()
                    .any(|queued| (queued.number, queued.digest) == (replica.number, replica.digest)));
        self.epoch = epoch;
        if continues {
            self.acknowledge(replica.number);
            return Ok(Connected::Continued);
        }
        let mut reason = match self.mode {
            Mode::Bitmap => self.reason.clone(),
            _ => "the replica does not hold what was sent last".into(),
        };
        self.forget_queue()?;
        if replica.number < self.acked.0 || (replica.number == self.acked.0 && replica.digest != self.acked.1)
        {
            // It once made more durable than it has now, or something else: only everything is sure.
            reason = format!(
                "the replica holds frame {} where frame {} was acknowledged: everything is sent again",
                replica.number, self.acked.0
            );
            for map in &mut self.maps {
                map.set_all()?;
            }
        }
        self.all_dirty_is_stale();
        self.fresh = replica.number == FrameNumber(0);
        self.touched.clear();
        self.acked = (replica.number, replica.digest);
        self.next_number = replica.number.next();
        self.last_digest = replica.digest;
        self.next_sequence = self.next_sequence.max(replica.sequence.next());
        self.last_time = self.last_time.max(replica.newest);
        self.mode = Mode::CatchingUp;
        self.reason.clone_from(&reason);
        self.cursor = (0, 0);
        self.totals.round_total = self.stale.iter().map(|stale| stale.len() as u64 * REGION_BYTES).sum();
        self.totals.round_done = 0;
        self.append(Change::Break, now)?;
        Ok(Connected::Broken { reason })
    }

    /// Ends shipping: from now on only the map grows.
    pub fn fall_back(&mut self, reason: &str) -> io::Result<()> {
        if self.mode == Mode::Bitmap {
            self.reason = reason.to_owned();
            return Ok(());
        }
        self.mode = Mode::Bitmap;
        self.reason = reason.to_owned();
        self.forget_queue()?;
        self.all_dirty_is_stale();
        Ok(())
    }

    fn forget_queue(&mut self) -> io::Result<()> {
        self.stretch += 1;
        self.queue.clear();
        (self.queue_bytes, self.memory_bytes, self.staged_bytes) = (0, 0, 0);
        self.builder = FrameBuilder::default();
        self.builder_regions.clear();
        self.in_flight.clear();
        self.stage.clear()
    }

    /// Before a guest's change is applied: sets its bits.
    pub fn begin(&mut self, disk: DiskIndex, offset: u64, length: u64) -> io::Result<()> {
        let (first, last) = regions(offset, length);
        self.maps[usize::from(disk.0)].set(first, last)?;
        for region in first..=last {
            *self.pending.entry((disk.0, region)).or_default() += 1;
        }
        Ok(())
    }

    /// After a guest's change was applied: puts it into the feed. Returns its place, where it has one.
    pub fn applied(&mut self, change: Change, now: Timestamp) -> io::Result<Option<Sequence>> {
        let (disk, offset, length) = place(&change);
        self.end_pending(disk, offset, length);
        self.totals.written += length;
        if self.mode == Mode::Bitmap {
            let (first, last) = regions(offset, length);
            self.stale[usize::from(disk.0)].extend(first..=last);
            return Ok(None);
        }
        self.append(change, now)
    }

    /// A guest's change failed half-way: nobody knows what the disk holds there now.
    pub fn failed(&mut self, disk: DiskIndex, offset: u64, length: u64) {
        self.end_pending(disk, offset, length);
        let (first, last) = regions(offset, length);
        self.stale[usize::from(disk.0)].extend(first..=last);
        if self.mode == Mode::Data {
            // A break in the feed, repaired like any other.
            self.mode = Mode::CatchingUp;
            self.reason = "a write to the source disk failed".into();
            self.cursor = (0, 0);
        }
    }

    fn end_pending(&mut self, disk: DiskIndex, offset: u64, length: u64) {
        let (first, last) = regions(offset, length);
        for region in first..=last {
            if let Some(count) = self.pending.get_mut(&(disk.0, region)) {
                *count -= 1;
                if *count == 0 {
                    self.pending.remove(&(disk.0, region));
                }
            }
        }
    }

    /// The next run of stale regions to inject, of at most `bytes_max`; `None` when there is none.
    pub fn next_injection(&mut self, bytes_max: u64, sizes: &[u64]) -> Option<(DiskIndex, u64, u64)> {
        if self.mode != Mode::CatchingUp {
            return None;
        }
        while self.cursor.0 < self.stale.len() {
            let (disk, from) = self.cursor;
            let mut region = from;
            while let Some(next) = self.maps[disk].next_set(region) {
                region = next;
                if self.stale[disk].contains(&region) {
                    let mut end = region + 1;
                    while (end - region) * REGION_BYTES < bytes_max && self.stale[disk].contains(&end) {
                        end += 1;
                    }
                    self.cursor.1 = end;
                    let offset = region * REGION_BYTES;
                    let length = (end * REGION_BYTES).min(sizes[disk]) - offset;
                    return Some((DiskIndex(disk as u16), offset, length));
                }
                region += 1;
            }
            self.cursor = (disk + 1, 0);
        }
        None
    }

    /// Puts a read into the feed. The caller holds the range lock since before it read.
    pub fn inject(
        &mut self,
        disk: DiskIndex,
        offset: u64,
        data: bytes::Bytes,
        now: Timestamp,
    ) -> io::Result<()> {
        if self.mode != Mode::CatchingUp {
            return Ok(());
        }
        let length = data.len() as u64;
        let (first, last) = regions(offset, length);
        for region in first..=last {
            self.stale[usize::from(disk.0)].remove(&region);
        }
        self.totals.round_done += length;
        self.totals.injected += length;
        let change = if data.iter().all(|byte| *byte == 0) {
            Change::Zero { disk, offset, length: length as u32, injected: true }
        } else {
            Change::Write { disk, offset, data, injected: true }
        };
        self.append(change, now)?;
        Ok(())
    }

    /// The source reads as zeroes here, and a replica that began empty does, too, unless the feed says
    /// otherwise: nothing to send. Returns whether that was so; else the range is to be injected.
    pub fn skip_zeroes(&mut self, disk: DiskIndex, offset: u64, length: u64) -> bool {
        if !self.fresh || self.mode != Mode::CatchingUp {
            return false;
        }
        let (first, last) = regions(offset, length);
        if (first..=last).any(|region| self.touched.contains(&(disk.0, region))) {
            return false;
        }
        for region in first..=last {
            self.stale[usize::from(disk.0)].remove(&region);
            if !self.pending.contains_key(&(disk.0, region))
                && !self.in_flight.contains_key(&(disk.0, region))
            {
                self.maps[usize::from(disk.0)].clear(region);
            }
        }
        self.totals.round_done += length;
        true
    }

    /// Everything stale was injected: the next barrier is consistent. Returns whether it now is.
    pub fn finish_catching_up(&mut self, now: Timestamp) -> io::Result<bool> {
        if self.mode != Mode::CatchingUp || self.stale.iter().any(|stale| !stale.is_empty()) {
            self.cursor = (0, 0);
            return Ok(false);
        }
        self.mode = Mode::Data;
        self.reason.clear();
        self.fresh = false;
        self.touched.clear();
        self.append(Change::Barrier(Barrier::time_mark(true)), now)?;
        Ok(true)
    }

    /// Cuts a barrier. Its `consistent` is set by the feed itself. `None` while nothing is shipped.
    pub fn barrier(
        &mut self,
        mut barrier: Barrier,
        now: Timestamp,
    ) -> io::Result<Option<(Sequence, Timestamp, bool)>> {
        if self.mode == Mode::Bitmap {
            return Ok(None);
        }
        barrier.consistent = self.mode == Mode::Data;
        let consistent = barrier.consistent;
        if !consistent {
            // A point cut now could not be brought up: it is none.
            barrier.point = None;
        }
        let sequence = self.append(Change::Barrier(barrier), now)?;
        Ok(sequence.map(|sequence| (sequence, self.last_time, consistent)))
    }

    fn append(&mut self, change: Change, now: Timestamp) -> io::Result<Option<Sequence>> {
        let data_len = match &change {
            Change::Write { data, .. } => data.len(),
            Change::Barrier(_) => 512,
            Change::Zero { .. } | Change::Break => 0,
        };
        if !self.builder.has_room_for(data_len) {
            self.seal()?;
        }
        let sequence = self.next_sequence;
        self.next_sequence = sequence.next();
        self.last_time = Timestamp::from_micros(now.micros().max(self.last_time.micros() + 1));
        if !matches!(change, Change::Barrier(_) | Change::Break) {
            let (disk, offset, length) = place(&change);
            let (first, last) = regions(offset, length);
            for region in first..=last {
                if !self.stale[usize::from(disk.0)].contains(&region) {
                    self.in_flight.insert((disk.0, region), self.next_number);
                    if self.builder_regions.last() != Some(&(disk.0, region)) {
                        self.builder_regions.push((disk.0, region));
                    }
                } else if self.fresh {
                    self.touched.insert((disk.0, region));
                }
            }
        }
        self.builder.push(&Record { sequence, time: self.last_time, change });
        if self.builder.payload_len() >= FRAME_BYTES {
            self.seal()?;
        }
        Ok(Some(sequence))
    }

    /// Closes the frame that is being filled.
    pub fn seal(&mut self) -> io::Result<()> {
        let identity = Identity {
            machine: self.machine,
            epoch: self.epoch,
            number: self.next_number,
            session: self.session,
            previous: self.last_digest,
        };
        let Some(frame) = self.builder.finish(identity) else { return Ok(()) };
        let envelope = Envelope::plain(&frame);
        let bytes = envelope.len() as u64;
        if self.queue_bytes + bytes > self.staging_max {
            return self.fall_back("staging is exhausted: the target takes less than is written");
        }
        self.last_digest = frame.head.digest;
        self.next_number = self.next_number.next();
        let body = if self.memory_bytes + bytes <= MEMORY_BYTES {
            self.memory_bytes += bytes;
            Body::Memory(Box::new(envelope))
        } else {
            match self.stage.put(&envelope) {
                Ok(at) => {
                    self.staged_bytes += bytes;
                    Body::Staged(at)
                }
                // The guest must not feel it: forget the frames, keep the map.
                Err(error) => return self.fall_back(&format!("staging failed: {error}")),
            }
        };
        self.queue_bytes += bytes;
        self.queue.push_back(Queued {
            number: frame.head.identity.number,
            digest: frame.head.digest,
            bytes,
            body,
            regions: std::mem::take(&mut self.builder_regions),
        });
        Ok(())
    }

    /// The frame after `after`, for a stream of `stretch`.
    pub fn next_frame(&mut self, stretch: u64, after: FrameNumber) -> io::Result<Next> {
        if stretch != self.stretch || self.mode == Mode::Bitmap {
            return Ok(Next::Reset);
        }
        let Some(first) = self.queue.front().map(|queued| queued.number) else { return Ok(Next::Idle) };
        let Some(at) = after.next().0.checked_sub(first.0) else { return Ok(Next::Reset) };
        let Some(queued) = self.queue.get(at as usize) else { return Ok(Next::Idle) };
        self.totals.sent += queued.bytes;
        match &queued.body {
            Body::Memory(envelope) => Ok(Next::Frame(envelope.clone())),
            Body::Staged(at) => {
                let at = *at;
                match self.stage.get(at) {
                    Ok(envelope) => Ok(Next::Frame(Box::new(envelope))),
                    Err(error) => {
                        self.fall_back(&format!("staging cannot be read: {error}"))?;
                        Ok(Next::Reset)
                    }
                }
            }
        }
    }

    /// The target made everything up to `number` durable. Returns whether anything changed.
    pub fn acknowledge(&mut self, number: FrameNumber) -> bool {
        let mut changed = false;
        while let Some(queued) = self.queue.front() {
            if queued.number > number {
                break;
            }
            let Some(queued) = self.queue.pop_front() else { break };
            changed = true;
            self.queue_bytes -= queued.bytes;
            match queued.body {
                Body::Memory(_) => self.memory_bytes -= queued.bytes,
                Body::Staged(_) => self.staged_bytes -= queued.bytes,
            }
            self.acked = (queued.number, queued.digest);
            for (disk, region) in queued.regions {
                if self.in_flight.get(&(disk, region)) == Some(&queued.number) {
                    self.in_flight.remove(&(disk, region));
                    let stale = self.stale[usize::from(disk)].contains(&region);
                    if !stale && !self.pending.contains_key(&(disk, region)) {
                        self.maps[usize::from(disk)].clear(region);
                    }
                }
            }
        }
        if self.staged_bytes == 0 && changed && self.stage.clear().is_err() {
            tracing::warn!("staging could not be cleared; it takes space until the next start");
        }
        changed
    }

    /// The current stretch; see [`Feed::next_frame`].
    pub const fn stretch(&self) -> u64 {
        self.stretch
    }
    /// The mode, and why it is not `data`.
    pub fn mode(&self) -> (Mode, &str) {
        (self.mode, &self.reason)
    }
    /// Whether a frame is being filled.
    pub fn has_open_frame(&self) -> bool {
        !self.builder.is_empty()
    }
    /// Bytes that wait for an acknowledgement: in all, and in staging.
    pub const fn waiting(&self) -> (u64, u64, u64) {
        (self.queue_bytes, self.staged_bytes, self.staging_max)
    }
    /// Bytes of regions whose bit is set.
    pub fn dirty_bytes(&self) -> u64 {
        self.maps.iter().map(|map| map.dirty() * REGION_BYTES).sum()
    }
    /// The newest record's place and moment.
    pub const fn newest(&self) -> (Sequence, Timestamp) {
        (Sequence(self.next_sequence.0 - 1), self.last_time)
    }
    /// The last acknowledged frame and its digest.
    pub const fn acked(&self) -> (FrameNumber, u128) {
        self.acked
    }
    /// The epoch of the last stream.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// The maps, to persist what was cleared.
    pub fn maps_mut(&mut self) -> &mut [ChangeMap] {
        &mut self.maps
    }
}

fn regions(offset: u64, length: u64) -> (u64, u64) {
    (offset / REGION_BYTES, (offset + length.max(1) - 1) / REGION_BYTES)
}

fn place(change: &Change) -> (DiskIndex, u64, u64) {
    match change {
        Change::Write { disk, offset, data, .. } => (*disk, *offset, data.len() as u64),
        Change::Zero { disk, offset, length, .. } => (*disk, *offset, u64::from(*length)),
        Change::Barrier(_) | Change::Break => (DiskIndex(0), 0, 0),
    }
}
