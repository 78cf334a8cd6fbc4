//! One seed drives a source, a store on a simulated medium, and a naive model of both through everything that
//! can happen to them; after each step what the store says is compared with what the model knows.
//!
//! First under faults (crashes, I/O errors, a full disk, old and missing frames): whatever was acknowledged stays, and
//! nothing wrong is ever read. Then healed: everything that was sent arrives, and everything works again. Last,
//! for some seeds, rot: a changed byte is an error or makes no difference.

use bytes::Bytes;
use continuum_model::digest::{BlockSum, DiskDigest, Nodes};
use continuum_model::feed::{
    Barrier, BarrierKind, Change, Codec, Envelope, FrameBuilder, Identity, Legality, Record,
};
use continuum_model::id::{DiskId, MachineId, PointId, ViewId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes as Size, DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::marks::{Mark, Proofs};
use continuum_replica::medium::{Fault, Lie, Simulated};
use continuum_replica::{Cache, DiskSpec, Limits, Overlay, ReplicaError, Store, View};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
const SIZES: [u64; 2] = [88 << 10, (36 << 10) + 2560];

/// How a world is run.
pub struct Options {
    /// Steps under faults.
    pub steps: u32,
    /// A medium that breaks its word.
    pub lie: Option<Lie>,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: 36, lie: None }
    }
}

/// What happened in a run, so that a test can tell that something did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    /// Faults that fired.
    pub faults: u64,
    /// Power cuts.
    pub crashes: u64,
    /// Starts of the store.
    pub starts: u64,
    /// Folds that moved the base.
    pub folds: u64,
    /// Folds while a view was open.
    pub folds_under_views: u64,
    /// Stretches of history that were thinned.
    pub thinned: u64,
    /// Of these, while a view was open.
    pub thinned_under_views: u64,
    /// Views compared.
    pub views: u64,
    /// Overlays compared after a start.
    pub overlays: u64,
    /// Overlays that were compacted.
    pub compactions: u64,
    /// Appends that were refused as they should be.
    pub refused: u64,
    /// Changed bytes that were noticed.
    pub rot: u64,
    /// Digests and sums compared.
    pub digests: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.faults += other.faults;
        self.crashes += other.crashes;
        self.starts += other.starts;
        self.folds += other.folds;
        self.folds_under_views += other.folds_under_views;
        self.thinned += other.thinned;
        self.thinned_under_views += other.thinned_under_views;
        self.views += other.views;
        self.overlays += other.overlays;
        self.compactions += other.compactions;
        self.refused += other.refused;
        self.rot += other.rot;
        self.digests += other.digests;
    }
}

/// Runs one world. An error tells what was wrong, and the steps that led there.
pub fn run(seed: u64, options: &Options) -> Result<Counts, String> {
    let trace = std::sync::Mutex::new(Vec::new());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, options, &trace)?;
        world.run(options)?;
        Ok(world.counts)
    }));
    let ended = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("it panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    });
    ended.map_err(|why| {
        let steps = trace.into_inner().unwrap_or_default().join("\n  ");
        format!(
            "seed {seed}: {why}\n  {steps}\nreplay: CONTINUUM_SEED={seed} cargo test -p continuum-replica --test simulation"
        )
    })
}

/// One record, as the source remembers it.
struct Written {
    sequence: Sequence,
    time: Timestamp,
    change: Change,
    legal: bool,
}

struct Laid {
    overlay: Overlay,
    id: ViewId,
    position: Sequence,
    /// What is durable, and what was written since.
    flushed: Vec<Vec<u8>>,
    since: Vec<(usize, usize, Vec<u8>)>,
}

struct World<'t> {
    rng: ChaCha8Rng,
    trace: &'t std::sync::Mutex<Vec<String>>,
    medium: Simulated,
    cache_bytes: usize,
    limits: Limits,
    shape: u32,
    store: Option<Store>,
    counts: Counts,
    // The source.
    records: Vec<Written>,
    frames: Vec<Envelope>,
    /// The last record of each frame.
    ends: Vec<(Sequence, Timestamp)>,
    legality: Legality,
    epoch: Epoch,
    sequence: u64,
    time: i64,
    // What is known of the store.
    acked: u64,
    attempted: u64,
    /// The store may have folded up to here, and not further.
    floor: Sequence,
    /// Between these, and up to points at the second, history may have been thinned.
    thinned: Vec<(Sequence, Sequence)>,
    marks: BTreeMap<PointId, Mark>,
    /// Marks whose change failed: either is right.
    unsure: BTreeMap<PointId, Mark>,
    views: Vec<View>,
    laid: Vec<Laid>,
    next_view: u8,
    /// Something failed, and nothing was opened again since.
    tainted: bool,
}

fn disks() -> Vec<DiskSpec> {
    let spec = |(index, size): (usize, &u64)| DiskSpec {
        index: DiskIndex(index as u16),
        id: DiskId::from_bytes([index as u8 + 1; 16]),
        size: *size,
    };
    SIZES.iter().enumerate().map(spec).collect()
}

fn put(disks: &mut [Vec<u8>], change: &Change) {
    match change {
        Change::Write { disk, offset, data, .. } => {
            disks[usize::from(disk.0)][*offset as usize..][..data.len()].copy_from_slice(data);
        }
        Change::Zero { disk, offset, length, .. } => {
            disks[usize::from(disk.0)][*offset as usize..][..*length as usize].fill(0);
        }
        Change::Barrier(_) | Change::Break => {}
    }
}

impl<'t> World<'t> {
    fn new(seed: u64, options: &Options, trace: &'t std::sync::Mutex<Vec<String>>) -> Result<Self, String> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let medium = Simulated::default();
        let cache_bytes = [0, 40 << 10, 4 << 20][rng.random_range(0..3)];
        let shape = rng.random_range(0..4);
        let of_store = Limits::default();
        let limits = Limits {
            segment_bytes: [2_000, 10_000, 40_000, of_store.segment_bytes][rng.random_range(0..4)],
            fold_bytes: [20_000, of_store.fold_bytes][rng.random_range(0..2)],
            fold_blocks: rng.random_range(1..3),
            thin_bytes: [50_000, of_store.thin_bytes][rng.random_range(0..2)],
        };
        let mut world = Self {
            rng,
            trace,
            medium,
            cache_bytes,
            limits,
            shape,
            store: None,
            counts: Counts::default(),
            records: Vec::new(),
            frames: Vec::new(),
            ends: Vec::new(),
            legality: Legality::default(),
            epoch: Epoch(1),
            sequence: 0,
            time: 1_000_000,
            acked: 0,
            attempted: 0,
            floor: Sequence(0),
            thinned: Vec::new(),
            marks: BTreeMap::new(),
            unsure: BTreeMap::new(),
            views: Vec::new(),
            laid: Vec::new(),
            next_view: 1,
            tainted: false,
        };
        world.start()?;
        world.medium.lie(options.lie);
        Ok(world)
    }

    fn run(&mut self, options: &Options) -> Result<(), String> {
        for _ in 0..options.steps {
            self.step()?;
            self.check()?;
        }
        self.heal()?;
        if self.rng.random_range(0..6) == 0 {
            self.rot()?;
        }
        Ok(())
    }

    fn say(&self, what: impl Into<String>) {
        if let Ok(mut trace) = self.trace.lock() {
            trace.push(what.into());
        }
    }

    fn store(&self) -> Result<Store, String> {
        self.store.clone().ok_or_else(|| "the store is not open".to_owned())
    }

    // ── the source ──────────────────────────────────────────────────────────────────────────────────────

    fn push(&mut self, builder: &mut FrameBuilder, change: Change) {
        self.sequence += 1;
        self.time += self.rng.random_range(1..1000);
        let (sequence, time) = (Sequence(self.sequence), Timestamp::from_micros(self.time));
        builder.push(&Record { sequence, time, change: change.clone() });
        let legal = self.legality.after(&change);
        self.records.push(Written { sequence, time, change, legal });
    }

    fn frame(&mut self) {
        let mut builder = FrameBuilder::default();
        if self.frames.is_empty() {
            self.push(&mut builder, Change::Barrier(Barrier::time_mark(true)));
        }
        for _ in 0..self.rng.random_range(1..8) {
            let change = self.change();
            self.push(&mut builder, change);
        }
        let identity = Identity {
            machine: MACHINE,
            epoch: self.epoch,
            number: FrameNumber(self.frames.len() as u64 + 1),
            session: 1,
            previous: self.frames.last().map_or(0, |frame| frame.head.digest),
        };
        let Some(frame) = builder.finish(identity) else { return };
        let mut envelope = Envelope::plain(&frame);
        // As a process server would.
        let packed = match self.rng.random_range(0..4) {
            0 => Some((Codec::Lz4, lz4_flex::block::compress(&frame.payload))),
            1 => zstd::bulk::compress(&frame.payload, 1).ok().map(|packed| (Codec::Zstd, packed)),
            _ => None,
        };
        if let Some((codec, packed)) = packed
            && packed.len() < frame.payload.len()
        {
            (envelope.codec, envelope.stored) = (codec, Bytes::from(packed));
        }
        self.ends.push((Sequence(self.sequence), Timestamp::from_micros(self.time)));
        self.frames.push(envelope);
    }

    fn change(&mut self) -> Change {
        let place = self.rng.random_range(0..2usize);
        // What kind of machine: small writes, large ones, one hot place, much trimming.
        let longest = [8, 128, 8, 24][self.shape as usize].min(SIZES[place] / 512);
        let length = 512 * self.rng.random_range(1..=longest);
        let room = (SIZES[place] - length) / 512;
        let offset = 512
            * if self.shape == 2 {
                self.rng.random_range(0..=room.min(20))
            } else {
                self.rng.random_range(0..=room)
            };
        let disk = DiskIndex(place as u16);
        let zeroes = if self.shape == 3 { 35 } else { 10 };
        let injected = !self.legality.is_legal() && self.rng.random_range(0..2) == 0;
        match self.rng.random_range(0..100) {
            roll if roll < zeroes => Change::Zero { disk, offset, length: length as u32, injected },
            roll if roll < zeroes + 12 => {
                let kinds = [BarrierKind::Crash, BarrierKind::Application, BarrierKind::Bookmark];
                let name = if roll % 2 == 0 { String::new() } else { format!("before {roll}") };
                Change::Barrier(Barrier {
                    kind: kinds[self.rng.random_range(0..3)],
                    consistent: true,
                    point: Some(PointId::from_bytes(self.rng.random())),
                    name,
                })
            }
            roll if roll < zeroes + 15 => Change::Break,
            roll if roll < zeroes + 20 => Change::Barrier(Barrier::time_mark(true)),
            _ => {
                let fill: u8 = self.rng.random();
                let step = self.rng.random_range(1..40);
                let data = (0..length).map(|at| fill.wrapping_add((at / step) as u8)).collect::<Vec<_>>();
                Change::Write { disk, offset, data: data.into(), injected }
            }
        }
    }

    fn state_at(&self, position: Sequence) -> Vec<Vec<u8>> {
        let mut disks: Vec<Vec<u8>> = SIZES.iter().map(|size| vec![0; *size as usize]).collect();
        for record in self.records.iter().take_while(|record| record.sequence <= position) {
            put(&mut disks, &record.change);
        }
        disks
    }

    /// The last record that the store has.
    fn last(&self) -> Sequence {
        self.acked.checked_sub(1).map_or(Sequence(0), |at| self.ends[at as usize].0)
    }

    fn newest_legal(&self) -> Option<&Written> {
        let last = self.last();
        self.records.iter().rev().find(|record| record.legal && record.sequence <= last)
    }

    fn points(&self) -> impl Iterator<Item = (&Written, PointId, &Barrier)> {
        self.records.iter().filter(|record| record.legal).filter_map(|record| match &record.change {
            Change::Barrier(barrier) => barrier.point.map(|id| (record, id, barrier)),
            _ => None,
        })
    }

    fn pinned(&self, id: PointId) -> bool {
        let mark = |marks: &BTreeMap<PointId, Mark>| marks.get(&id).is_some_and(|mark| mark.pinned);
        mark(&self.marks)
    }

    // ── what happens ────────────────────────────────────────────────────────────────────────────────────

    fn step(&mut self) -> Result<(), String> {
        if self.tainted && self.rng.random_range(0..3) > 0 {
            return self.restart();
        }
        let fired = self.medium.fired();
        let full = self.rng.random_range(0..25) == 0;
        if full {
            self.medium.limit(Some(self.medium.used() + self.rng.random_range(0..20_000)));
            self.say("the disk is nearly full");
        } else if self.rng.random_range(0..6) == 0 {
            let nth = self.rng.random_range(1..16);
            let fault =
                [Fault::Error, Fault::PowerCut, Fault::PowerCut, Fault::Full][self.rng.random_range(0..4)];
            self.medium.fault_at_call(nth, fault);
            self.say(format!("{fault:?} at call {nth} from now"));
        }
        let done = match self.rng.random_range(0..100) {
            0..31 => self.append(),
            31..34 | 88..90 => self.digests(),
            34..39 => self.refused_frames(),
            39..48 => self.fold(),
            48..59 => self.thin(),
            59..64 => self.mark(),
            64..67 => self.fence(),
            67..72 => self.open_view(),
            72..75 => self.close_view(),
            75..88 => self.overlay(),
            90..93 => self.append_and_lose_power(),
            _ => return self.restart(),
        };
        self.medium.disarm();
        self.medium.limit(None);
        match done {
            Ok(()) => {}
            Err(Trouble::Store(what, error)) => {
                let fired = self.medium.fired() - fired;
                if fired == 0 && !full && !self.tainted {
                    return Err(format!("{what} failed without a fault: {}", chain(&error)));
                }
                self.say(format!("{what} failed: {}", chain(&error)));
                self.tainted = true;
            }
            Err(Trouble::Wrong(why)) => return Err(why),
        }
        self.counts.faults += self.medium.fired() - fired;
        if self.medium.is_dead() { self.restart() } else { Ok(()) }
    }

    fn append(&mut self) -> Done {
        for _ in 0..self.rng.random_range(1..4) {
            self.frame();
        }
        self.send()
    }

    /// Sends everything that the store does not have, some of it twice.
    fn send(&mut self) -> Done {
        let wanted = self.rng.random_range(0..2).min(self.acked);
        let newest = |at: &u64| self.frames[*at as usize].head.identity.epoch == self.epoch;
        let again = (self.acked - wanted..self.acked).filter(newest).count() as u64;
        let from = self.acked - again;
        self.attempted = self.frames.len() as u64;
        self.say(format!("append frames {} to {}", from + 1, self.frames.len()));
        self.rewrite_epochs();
        let store = self.store()?;
        let appended = store.append(&self.frames[from as usize..]).map_err(trouble("append"))?;
        if appended.number.0 != self.frames.len() as u64 || appended.duplicates > again {
            return Err(Trouble::Wrong(format!("append answered {appended:?}")));
        }
        self.acked = self.frames.len() as u64;
        Ok(())
    }

    /// A writer that got a new epoch sends what the store does not have under that.
    fn rewrite_epochs(&mut self) {
        let old = |frame: &Envelope| frame.head.identity.epoch != self.epoch;
        let Some(first) = (self.acked as usize..self.frames.len()).find(|at| old(&self.frames[*at])) else {
            return;
        };
        for at in first..self.frames.len() {
            let before = at.checked_sub(1);
            let identity = Identity {
                epoch: self.epoch,
                previous: before.map_or(0, |before| self.frames[before].head.digest),
                ..self.frames[at].head.identity
            };
            let start = before.map_or(0, |before| self.ends[before].0.0);
            let mut builder = FrameBuilder::default();
            for record in &self.records[start as usize..self.ends[at].0.0 as usize] {
                let change = record.change.clone();
                builder.push(&Record { sequence: record.sequence, time: record.time, change });
            }
            if let Some(frame) = builder.finish(identity) {
                self.frames[at] = Envelope::plain(&frame);
            }
        }
    }

    fn refused_frames(&mut self) -> Done {
        let store = self.store()?;
        if self.tainted || self.acked == 0 {
            return Ok(());
        }
        // Two frames of which the first is left out; one of another history; one of an old epoch.
        self.send()?;
        let kept = self.acked as usize;
        let (sequence, time, legality) = (self.sequence, self.time, self.legality);
        let newest = self.epoch;
        let kind = self.rng.random_range(0..3);
        if kind == 2 {
            self.epoch = Epoch(newest.0 - 1);
        }
        self.frame();
        self.frame();
        self.epoch = newest;
        let tried = match kind {
            0 => self.frames[kept + 1].clone(),
            1 => {
                let mut other = self.frames[kept + 1].clone();
                let mut builder = FrameBuilder::default();
                self.time += 1;
                builder.push(&Record {
                    sequence: Sequence(self.sequence + 1),
                    time: Timestamp::from_micros(self.time),
                    change: Change::Break,
                });
                let identity = Identity {
                    number: FrameNumber(kept as u64 + 1),
                    previous: 77,
                    epoch: self.epoch,
                    ..other.head.identity
                };
                if let Some(frame) = builder.finish(identity) {
                    other = Envelope::plain(&frame);
                }
                other
            }
            _ => self.frames[kept].clone(),
        };
        let answer = store.append(&[tried]);
        self.frames.truncate(kept);
        self.ends.truncate(kept);
        self.records.retain(|record| record.sequence.0 <= sequence);
        (self.sequence, self.time, self.legality) = (sequence, time, legality);
        self.say(format!("append what does not belong here ({kind})"));
        match (kind, answer) {
            (0, Err(ReplicaError::Gap { .. }))
            | (1, Err(ReplicaError::Chain(_)))
            | (2, Err(ReplicaError::EpochSuperseded { .. })) => {
                self.counts.refused += 1;
                Ok(())
            }
            (_, Err(error @ (ReplicaError::Io { .. } | ReplicaError::Poisoned))) => {
                Err(Trouble::Store("append", error))
            }
            (_, other) => Err(Trouble::Wrong(format!("a frame that does not belong here: {other:?}"))),
        }
    }

    fn append_and_lose_power(&mut self) -> Done {
        self.append()?;
        self.say("power cut");
        let nth = self.rng.random_range(1..8);
        self.medium.fault_at(nth, Fault::PowerCut);
        // Anything that touches the disk.
        self.fence()
    }

    /// Where a fold may lead at most.
    fn fold_limit(&self, until: Timestamp, squeezed: bool) -> Sequence {
        let newest = self.newest_legal().map_or(Sequence(0), |record| record.sequence);
        let pin = self.points().filter(|(_, id, _)| self.pinned(*id)).map(|(record, ..)| record.sequence);
        let last = self.last();
        let pin = pin.filter(|pin| *pin > self.floor && *pin <= last).min();
        let views = self.views.iter().map(View::position);
        let lease = views.chain(self.laid.iter().map(|laid| laid.position)).min();
        let fits = |(end, time): &&(Sequence, Timestamp)| {
            *end <= last
                && *end < newest
                && (squeezed || *time <= until)
                && pin.is_none_or(|pin| *end < pin)
                && lease.is_none_or(|lease| *end <= lease)
        };
        self.ends.iter().take_while(fits).last().map_or(Sequence(0), |(end, _)| *end)
    }

    fn fold(&mut self) -> Done {
        let at = self.rng.random_range(0..=self.acked as usize);
        let until = self.ends.get(at).map_or(Timestamp::from_micros(0), |(_, time)| *time);
        let most = (self.rng.random_range(0..8) == 0).then_some(Size(self.rng.random_range(0..60_000)));
        let limit = self.fold_limit(until, most.is_some());
        self.say(format!("fold up to {until}, at most {most:?}: may reach {limit}"));
        self.floor = self.floor.max(limit);
        let store = self.store()?;
        let before = store.state().oldest_legal;
        store.fold(until, most).map_err(trouble("fold"))?;
        self.counts.folds += u64::from(store.state().oldest_legal > before);
        self.counts.folds_under_views += u64::from(
            store.state().oldest_legal > before && !(self.views.is_empty() && self.laid.is_empty()),
        );
        Ok(())
    }

    /// Whether a position may have been thinned away; a point, also at the end of a stretch.
    fn may_be_thinned(&self, position: Sequence, point: bool) -> bool {
        let inside = |(after, to): &(Sequence, Sequence)| {
            *after < position && (position < *to || (point && position == *to))
        };
        self.thinned.iter().any(inside)
    }

    fn thin(&mut self) -> Done {
        let store = self.store()?;
        let at = self.rng.random_range(0..=self.acked as usize);
        let until = self.ends.get(at).map_or(Timestamp::from_micros(0), |(_, time)| *time);
        let step = self.rng.random_range(1..60_000);
        let bucket = |time: Timestamp| (time <= until).then(|| (1, time.micros() / step));
        let Some(stretch) = store.thinnable(&bucket) else { return Ok(()) };
        let (after, to) = (stretch.after.0, stretch.to.0);
        self.say(format!("thin what is after {after} and before {to}, of {step} µs before {until}"));
        let views = self.views.iter().map(View::position).chain(self.laid.iter().map(|laid| laid.position));
        let needed = views.filter(|at| after < *at && *at < to).count();
        let pins = self
            .points()
            .filter(|(record, id, _)| self.pinned(*id) && after < record.sequence && record.sequence <= to);
        if needed + pins.count() > 0 {
            return Err(Trouble::Wrong("what somebody needs would be thinned away".into()));
        }
        let inside: Vec<Sequence> = self
            .records
            .iter()
            .filter(|record| record.legal && after < record.sequence && record.sequence < to)
            .map(|record| record.sequence)
            .filter(|position| !self.may_be_thinned(*position, false))
            .collect();
        // Somebody may come in between.
        if !inside.is_empty() && self.rng.random_range(0..6) == 0 {
            let position = inside[self.rng.random_range(0..inside.len())];
            let view = store.open_view(position).map_err(trouble("open a view"))?;
            self.say(format!("open a view at {position} before it is thinned"));
            self.views.push(view);
            return match store.thin(&stretch, &|| false).map_err(trouble("thin"))? {
                true => Err(Trouble::Wrong("it was thinned below an open view".into())),
                false => Ok(()),
            };
        }
        self.thinned.push((after, to));
        let stopped = self.rng.random_range(0..8) == 0;
        let calls = std::cell::Cell::new(0);
        let stop = || {
            calls.set(calls.get() + 1);
            stopped && calls.get() > 2
        };
        let done = store.thin(&stretch, &stop).map_err(trouble("thin"))?;
        if done {
            self.counts.thinned += 1;
            self.counts.thinned_under_views += u64::from(!(self.views.is_empty() && self.laid.is_empty()));
            if let Some(wrong) = inside.iter().find(|position| store.open_view(**position).is_ok()) {
                return Err(Trouble::Wrong(format!("{wrong} was thinned away, and is opened")));
            }
        } else if !stopped {
            return Err(Trouble::Wrong("it was not thinned, and nothing stood in its way".into()));
        }
        Ok(())
    }

    fn mark(&mut self) -> Done {
        let last = self.last();
        let known: Vec<(PointId, Sequence)> = self
            .points()
            .filter(|(record, ..)| record.sequence > self.floor && record.sequence <= last)
            .map(|(record, id, _)| (id, record.sequence))
            .filter(|(_, position)| !self.may_be_thinned(*position, true))
            .collect();
        if known.is_empty() {
            return Ok(());
        }
        let (id, position) = known[self.rng.random_range(0..known.len())];
        let mut mark = self.marks.get(&id).copied().unwrap_or_default();
        if self.rng.random_range(0..3) > 0 {
            mark.pinned = !mark.pinned;
        } else {
            mark.proofs = Proofs { digest_equal: Some(true), ..mark.proofs };
        }
        self.say(format!("mark the point at {position}: {mark:?}"));
        self.unsure.insert(id, mark);
        let store = self.store()?;
        if self.rng.random_range(0..4) == 0 && mark.proofs != Proofs::default() {
            let (proofs, pinned) = (mark.proofs, mark.pinned);
            store.mark(id, |mark| mark.pinned = pinned).map_err(trouble("mark"))?;
            store.prove(id, proofs).map_err(trouble("prove"))?;
        } else {
            store.mark(id, |now| *now = mark).map_err(trouble("mark"))?;
        }
        self.unsure.remove(&id);
        self.marks.insert(id, mark);
        Ok(())
    }

    fn fence(&mut self) -> Done {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.say(format!("epoch {}", self.epoch));
        self.store()?.fence(self.epoch).map_err(trouble("fence"))
    }

    /// A position that may be opened.
    fn pick(&mut self) -> Option<Sequence> {
        let last = self.last();
        let legal: Vec<Sequence> = self
            .records
            .iter()
            .filter(|record| record.legal && record.sequence >= self.floor && record.sequence <= last)
            .map(|record| record.sequence)
            .filter(|position| !self.may_be_thinned(*position, false))
            .collect();
        match self.rng.random_range(0..4) {
            _ if legal.is_empty() => None,
            0 => legal.first().copied(),
            1 => legal.last().copied(),
            _ => Some(legal[self.rng.random_range(0..legal.len())]),
        }
    }

    fn open_view(&mut self) -> Done {
        let Some(position) = self.pick().filter(|_| self.views.len() < 3) else { return Ok(()) };
        self.say(format!("open a view at {position}"));
        let view = self.store()?.open_view(position).map_err(trouble("open a view"))?;
        self.views.push(view);
        // Read while faults are about.
        self.read_view(self.views.len() - 1)
    }

    fn read_view(&mut self, at: usize) -> Done {
        let disk = self.rng.random_range(0..2usize);
        let start = self.rng.random_range(0..SIZES[disk] as usize);
        let length = self.rng.random_range(1..=SIZES[disk] as usize - start);
        let view = &self.views[at];
        let mut out = vec![0xee; length];
        view.read_at(DiskIndex(disk as u16), start as u64, &mut out).map_err(trouble("read a view"))?;
        if out != self.state_at(view.position())[disk][start..start + length] {
            let position = view.position();
            return Err(Trouble::Wrong(format!(
                "an open view at {position}: disk {disk} from {start}, {length} bytes, is not what it was"
            )));
        }
        Ok(())
    }

    fn close_view(&mut self) -> Done {
        if !self.views.is_empty() {
            let at = self.rng.random_range(0..self.views.len());
            let view = self.views.swap_remove(at);
            self.say(format!("close the view at {}", view.position()));
        }
        Ok(())
    }

    fn overlay(&mut self) -> Done {
        let store = self.store()?;
        if self.laid.is_empty() || (self.laid.len() < 2 && self.rng.random_range(0..6) == 0) {
            let Some(position) = self.pick() else { return Ok(()) };
            let id = ViewId::from_bytes([self.next_view; 16]);
            self.next_view += 1;
            self.say(format!("lay an overlay {} on {position}", self.next_view - 1));
            let view = store.open_view(position).map_err(trouble("open a view"))?;
            let overlay = store.open_overlay(view, id).map_err(trouble("open an overlay"))?;
            let flushed = self.state_at(position);
            self.laid.push(Laid { overlay, id, position, flushed, since: Vec::new() });
            return Ok(());
        }
        let at = self.rng.random_range(0..self.laid.len());
        if self.rng.random_range(0..12) == 0 {
            let Laid { overlay, id, .. } = self.laid.swap_remove(at);
            self.say(format!("remove overlay {id}"));
            drop(overlay);
            return store.remove_overlay(id).map_err(trouble("remove an overlay"));
        }
        self.say(format!("write to overlay {}", self.laid[at].id));
        for _ in 0..self.rng.random_range(1..9) {
            let disk = self.rng.random_range(0..2usize);
            let length = self.rng.random_range(1..9000usize);
            // Mostly the same place, so that much is superseded.
            let most = if self.rng.random_range(0..4) == 0 { SIZES[disk] as usize - length } else { 2000 };
            let offset = self.rng.random_range(0..most);
            let zero = self.rng.random_range(0..5) == 0;
            let data = vec![if zero { 0 } else { self.rng.random_range(1..=255u8) }; length];
            let laid = &mut self.laid[at];
            let index = DiskIndex(disk as u16);
            if zero {
                laid.overlay.zero(index, offset as u64, length as u64).map_err(trouble("zero an overlay"))?;
            } else {
                laid.overlay.write_at(index, offset as u64, &data).map_err(trouble("write an overlay"))?;
            }
            laid.since.push((disk, offset, data));
        }
        if self.rng.random_range(0..4) == 0 {
            self.say("compact it");
            let done = self.laid[at].overlay.compact(1000).map_err(trouble("compact an overlay"))?;
            self.counts.compactions += u64::from(done);
            if done && self.rng.random_range(0..2) == 0 {
                self.say("power cut");
                self.medium.fault_at(1, Fault::PowerCut);
                self.laid[at].overlay.flush().map_err(trouble("flush an overlay"))?;
            }
        }
        if self.rng.random_range(0..2) == 0 {
            let laid = &mut self.laid[at];
            laid.overlay.flush().map_err(trouble("flush an overlay"))?;
            for (disk, offset, data) in laid.since.drain(..) {
                laid.flushed[disk][offset..offset + data.len()].copy_from_slice(&data);
            }
        }
        Ok(())
    }

    /// Sums are kept, told and compared with what everything read gives.
    fn digests(&mut self) -> Done {
        let store = self.store()?;
        let most = [1, 70_000, u64::MAX][self.rng.random_range(0..3)];
        self.say(format!("sum at most {most} bytes"));
        store.tend_digests(Size(most)).map_err(trouble("sum"))?;
        if let Some(position) = self.pick().filter(|_| self.rng.random_range(0..2) == 0) {
            self.say(format!("digest {position}"));
            let digests = match store.digest_at(position) {
                Err(ReplicaError::NoPoint { .. }) if self.tainted => return Ok(()),
                digests => digests.map_err(trouble("digest"))?,
            };
            for (found, disk) in digests.iter().zip(self.state_at(position)) {
                let mut wanted = DiskDigest::new(disk.len() as u64);
                disk.chunks(64 << 10).for_each(|block| wanted.push(BlockSum::of(block)));
                if found.digest != wanted.finish() {
                    return Err(Trouble::Wrong(format!("the digest of disk {} at {position}", found.disk)));
                }
            }
            self.counts.digests += 1;
        }
        let disk = self.rng.random_range(0..2usize);
        let blocks = SIZES[disk].div_ceil(64 << 10);
        let nodes = Nodes { level: 0, range: 0..blocks };
        let told = store.sums(DiskIndex(disk as u16), &nodes, Size(most)).map_err(trouble("tell sums"))?;
        let Some(end) = told.frame.0.checked_sub(1) else { return Ok(()) };
        let frame = &self.frames[end as usize];
        if told.digest != frame.head.digest && !self.tainted {
            return Err(Trouble::Wrong(format!("sums of {}, which is another frame", told.frame)));
        }
        let state = &self.state_at(self.ends[end as usize].0)[disk];
        for (block, (sum, content)) in told.sums.iter().zip(state.chunks(64 << 10)).enumerate() {
            if *sum != BlockSum::UNKNOWN && *sum != BlockSum::of(content) {
                return Err(Trouble::Wrong(format!("the sum of block {block} of disk {disk} is another's")));
            }
            self.counts.digests += u64::from(*sum != BlockSum::UNKNOWN);
        }
        if most == u64::MAX && told.sums.contains(&BlockSum::UNKNOWN) {
            return Err(Trouble::Wrong(format!("disk {disk} was summed, and not all sums are known")));
        }
        Ok(())
    }

    // ── ends and starts ─────────────────────────────────────────────────────────────────────────────────

    /// The process ends, by itself or with the power, and starts again.
    fn restart(&mut self) -> Result<(), String> {
        self.medium.limit(None);
        self.medium.disarm();
        let cut = self.medium.is_dead() || self.rng.random_range(0..3) > 0;
        self.say(if cut { "power cut, and start" } else { "restart" });
        self.views.clear();
        self.store = None;
        let laid: Vec<Laid> = std::mem::take(&mut self.laid);
        let laid: Vec<_> = laid
            .into_iter()
            .map(|Laid { overlay, id, position, flushed, since }| {
                drop(overlay);
                (id, position, flushed, since)
            })
            .collect();
        if cut {
            self.counts.crashes += 1;
            let rng = &mut self.rng;
            self.medium.crash(|| rng.random());
        }
        // A fault while it starts: it starts again.
        if self.rng.random_range(0..4) == 0 {
            let nth = self.rng.random_range(1..40);
            let fault = if self.rng.random_range(0..2) == 0 { Fault::PowerCut } else { Fault::Error };
            self.medium.fault_at_call(nth, fault);
            let opened = self.open();
            self.medium.disarm();
            self.say(format!("{fault:?} at call {nth} of the start: opened {}", opened.is_ok()));
            drop(opened);
            if self.medium.is_dead() {
                self.counts.faults += 1;
                let rng = &mut self.rng;
                self.medium.crash(|| rng.random());
            }
        }
        self.start()?;
        let store = self.store()?;
        for (id, position, flushed, since) in laid {
            let opened = store.open_view(position).and_then(|view| store.open_overlay(view, id));
            let overlay = opened.map_err(|error| {
                format!("an overlay at {position} does not open again: {}", chain(&error))
            })?;
            let found = read_overlay(&overlay)?;
            let mut state = flushed;
            let mut kept = (state == found).then_some(0);
            for (count, (disk, offset, data)) in since.iter().enumerate() {
                state[*disk][*offset..offset + data.len()].copy_from_slice(data);
                if state == found {
                    kept = Some(count + 1);
                }
            }
            if kept.is_none() {
                return Err(format!("overlay {id} is none of the states it was in since its flush"));
            }
            self.counts.overlays += 1;
            self.laid.push(Laid { overlay, id, position, flushed: found, since: Vec::new() });
        }
        Ok(())
    }

    fn open(&self) -> Result<(Store, Vec<String>), ReplicaError> {
        let medium = Arc::new(self.medium.clone());
        Store::open_limited(medium, MACHINE, &disks(), Cache::new(self.cache_bytes), self.limits)
    }

    fn start(&mut self) -> Result<(), String> {
        let (store, findings) =
            self.open().map_err(|error| format!("the store does not open: {}", chain(&error)))?;
        for finding in findings {
            self.say(format!("found: {finding}"));
        }
        store.fence(self.epoch).map_err(|error| format!("the epoch is refused: {}", chain(&error)))?;
        let last = store.state().last.number.0;
        if let Some(damage) = store.state().damage {
            return Err(format!("damaged without damage: {damage}"));
        }
        if last < self.acked || last > self.attempted {
            let (acked, attempted) = (self.acked, self.attempted);
            return Err(format!("frame {last} is the last one; {acked} was acknowledged, {attempted} sent"));
        }
        self.acked = last;
        self.attempted = last;
        self.counts.starts += 1;
        self.tainted = false;
        self.store = Some(store);
        for (id, wanted) in std::mem::take(&mut self.unsure) {
            let store = self.store()?;
            let found = store.points_after(Sequence(0)).into_iter().find(|point| point.id == id);
            let Some(found) = found else { continue };
            let before = self.marks.get(&id).copied().unwrap_or_default();
            // Pin and proof of one step may have come apart.
            let either = Mark { pinned: wanted.pinned, ..before };
            if ![before, wanted, either].contains(&found.mark) {
                return Err(format!("point {id} is marked {:?}", found.mark));
            }
            self.marks.insert(id, found.mark);
        }
        Ok(())
    }

    // ── what must hold ──────────────────────────────────────────────────────────────────────────────────

    fn check(&mut self) -> Result<(), String> {
        let store = self.store()?;
        let state = store.state();
        if !self.tainted && state.last.number.0 != self.acked {
            return Err(format!("frame {} is the last one, not {}", state.last.number, self.acked));
        }
        let last = self.last();
        let newest = self.newest_legal().map(|record| record.time);
        if state.newest_legal < newest {
            return Err(format!("the newest moment is {:?}, not {newest:?}", state.newest_legal));
        }
        if !self.tainted && state.newest_legal != newest {
            return Err(format!("the newest moment is {:?}, not {newest:?}", state.newest_legal));
        }
        if let Some(position) = self.pick() {
            self.check_position(&store, position)?;
        }
        self.check_older(&store)?;
        self.check_moment(&store)?;
        self.check_points(&store, last)?;
        for at in 0..self.views.len() {
            match self.read_view(at) {
                Ok(()) => self.counts.views += 1,
                Err(Trouble::Wrong(why)) => return Err(why),
                Err(Trouble::Store(..)) if self.tainted => {}
                Err(Trouble::Store(what, error)) => return Err(format!("{what}: {}", chain(&error))),
            }
        }
        if self.tainted {
            return Ok(());
        }
        if self.rng.random_range(0..2) == 0 {
            return Ok(());
        }
        for laid in &self.laid {
            let mut expected = laid.flushed.clone();
            for (disk, offset, data) in &laid.since {
                expected[*disk][*offset..offset + data.len()].copy_from_slice(data);
            }
            if read_overlay(&laid.overlay)? != expected {
                return Err(format!("overlay {} is not what was written to it", laid.id));
            }
        }
        Ok(())
    }

    fn check_position(&mut self, store: &Store, position: Sequence) -> Result<(), String> {
        let view = match store.open_view(position) {
            Ok(view) => view,
            // A fold that failed half-way keeps what is older closed until a restart.
            Err(_) if self.tainted => return Ok(()),
            Err(error) => return Err(format!("position {position} does not open: {}", chain(&error))),
        };
        self.counts.views += 1;
        for (disk, expected) in self.state_at(position).iter().enumerate() {
            let index = DiskIndex(disk as u16);
            let mut out = vec![0xee; expected.len()];
            match view.read_at(index, 0, &mut out) {
                Ok(()) if out == *expected => {}
                Ok(()) => return Err(format!("disk {disk} at {position} is not what it was")),
                Err(_) if self.tainted => return Ok(()),
                Err(error) => return Err(format!("disk {disk} at {position}: {}", chain(&error))),
            }
            let extents = view.extents(index, 0, SIZES[disk]).map_err(|error| chain(&error))?;
            let mut at = 0;
            for (length, data) in extents {
                let part = &expected[at as usize..(at + length) as usize];
                if !data && part.iter().any(|byte| *byte != 0) {
                    return Err(format!("disk {disk} at {position} has data where a hole is told"));
                }
                at += length;
            }
            if at != SIZES[disk] {
                return Err(format!("the extents of disk {disk} end at {at}"));
            }
        }
        Ok(())
    }

    /// What may be gone is gone, or is right.
    fn check_older(&mut self, store: &Store) -> Result<(), String> {
        let older: Vec<Sequence> = self
            .records
            .iter()
            .filter(|record| record.legal && record.sequence < self.floor)
            .map(|record| record.sequence)
            .collect();
        if older.is_empty() {
            return Ok(());
        }
        // Above all the oldest that the store still offers.
        let oldest = store.state().oldest_legal;
        let offered = |position: &&Sequence| {
            self.records.iter().any(|record| record.sequence == **position && Some(record.time) == oldest)
        };
        let offered = older.iter().find(offered).copied();
        let random = older[self.rng.random_range(0..older.len())];
        let position = offered.filter(|_| self.rng.random_range(0..4) > 0).unwrap_or(random);
        match store.open_view(position) {
            Ok(view) => {
                drop(view);
                self.check_position(store, position)
            }
            Err(_) => Ok(()),
        }
    }

    /// A moment between two records is the newest legal position at or before it.
    fn check_moment(&mut self, store: &Store) -> Result<(), String> {
        let last = self.last();
        let count = self.records.iter().take_while(|record| record.sequence <= last).count();
        if count == 0 {
            return Ok(());
        }
        let at = self.rng.random_range(0..count);
        let after = self.rng.random_range(0..2);
        let asked = Timestamp::from_micros(self.records[at].time.micros() + after);
        let newest = self.records[..count].iter().rev().find(|record| record.legal && record.time <= asked);
        let Some(expected) = newest.filter(|record| record.sequence >= self.floor) else { return Ok(()) };
        let found = match store.resolve(&PointChoice::Moment(asked)) {
            Ok(found) => found,
            Err(ReplicaError::NoPoint { .. })
                if self
                    .records
                    .iter()
                    .filter(|record| record.legal && record.sequence <= expected.sequence)
                    .all(|record| {
                        record.sequence < self.floor || self.may_be_thinned(record.sequence, false)
                    }) =>
            {
                return Ok(());
            }
            Err(error) => return Err(format!("{asked} is not found: {}", chain(&error))),
        };
        // Or, where that was thinned, the newest that was not.
        let told = self.records[..count]
            .iter()
            .find(|record| record.legal && (record.sequence, record.time) == (found.position, found.time));
        let right = told.is_some_and(|told| {
            let skipped = |record: &&Written| {
                record.legal && told.sequence < record.sequence && record.sequence <= expected.sequence
            };
            told.sequence <= expected.sequence
                && self
                    .records
                    .iter()
                    .filter(skipped)
                    .all(|record| self.may_be_thinned(record.sequence, false))
        });
        if !right {
            return Err(format!("{asked} is told as {}, not {}", found.position, expected.sequence));
        }
        // An illegal position is never opened.
        let wrong = self.records[..count].iter().find(|record| !record.legal && record.sequence > self.floor);
        if let Some(wrong) = wrong
            && store.open_view(wrong.sequence).is_ok()
        {
            return Err(format!("{} was opened, which is no state that was", wrong.sequence));
        }
        Ok(())
    }

    fn check_points(&self, store: &Store, last: Sequence) -> Result<(), String> {
        let listed = store.points_after(Sequence(0));
        let mut wanted = 0;
        for (record, id, barrier) in self.points().filter(|(record, ..)| record.sequence <= last) {
            let found = listed.iter().find(|point| point.id == id);
            let must = record.sequence > self.floor && !self.may_be_thinned(record.sequence, true);
            match found {
                None if must => return Err(format!("the point at {} is not listed", record.sequence)),
                None => continue,
                Some(_) => wanted += 1,
            }
            let mark = self.marks.get(&id).copied().unwrap_or_default();
            let right = found.is_some_and(|point| {
                (point.position, point.time, &point.name) == (record.sequence, record.time, &barrier.name)
                    && (point.mark == mark || self.unsure.contains_key(&id))
            });
            if !right {
                return Err(format!(
                    "the point at {} is told as {found:?}, marked {mark:?}",
                    record.sequence
                ));
            }
        }
        if !self.tainted && wanted != listed.len() {
            return Err(format!("{} points are listed, {wanted} are known", listed.len()));
        }
        Ok(())
    }

    /// Everything works again: what was sent arrives, what is old goes, nothing else is lost.
    fn heal(&mut self) -> Result<(), String> {
        self.say("healed");
        self.restart()?;
        self.frame();
        let healed = |trouble| match trouble {
            Trouble::Wrong(why) => why,
            Trouble::Store(what, error) => format!("after all faults {what} fails: {}", chain(&error)),
        };
        self.send().map_err(healed)?;
        self.check()?;
        self.views.clear();
        let store = self.store()?;
        let until = self.ends[self.ends.len() / 2].1;
        let limit = self.fold_limit(until, false);
        self.floor = self.floor.max(limit);
        // What a stretch left goes with its end.
        let around = |limit: Sequence| {
            let over = self.thinned.iter().filter(|(after, to)| *after < limit && limit < *to);
            over.map(|(after, _)| *after).min().unwrap_or(limit)
        };
        let limit = around(limit);
        while store.fold(until, None).map_err(|error| format!("the last fold: {}", chain(&error)))? {}
        let goes = self.records.iter().find(|record| record.legal && record.sequence < limit);
        if let Some(goes) = goes
            && store.open_view(goes.sequence).is_ok()
        {
            return Err(format!("{} is older than {until} and stayed", goes.sequence));
        }
        self.check()?;
        self.restart()?;
        self.check()
    }

    /// A changed byte is noticed or makes no difference.
    fn rot(&mut self) -> Result<(), String> {
        self.views.clear();
        self.laid.clear();
        self.store = None;
        let names: Vec<String> = self
            .medium
            .names()
            .into_iter()
            .filter(|name| name.starts_with("journal/") || name.starts_with("base/"))
            .collect();
        let floor = self.floor;
        for name in names {
            let Some(content) = self.medium.content(&name).filter(|content| !content.is_empty()) else {
                continue;
            };
            let at = self.rng.random_range(0..content.len());
            self.medium.corrupt(&name, |bytes| bytes[at] ^= 1 << (at % 8));
            self.say(format!("byte {at} of {name} is changed"));
            let opened = self.open();
            let mut noticed = opened.as_ref().map_or(true, |(store, _)| store.state().damage.is_some());
            if let Ok((store, _)) = opened {
                for _ in 0..4 {
                    let Some(position) = self.pick() else { break };
                    let Ok(view) = store.open_view(position) else {
                        noticed = true;
                        continue;
                    };
                    for (disk, expected) in self.state_at(position).iter().enumerate() {
                        let mut out = vec![0xee; expected.len()];
                        match view.read_at(DiskIndex(disk as u16), 0, &mut out) {
                            Ok(()) if out != *expected => {
                                return Err(format!("byte {at} of {name}: served although it is wrong"));
                            }
                            Ok(()) => {}
                            Err(_) => noticed = true,
                        }
                    }
                }
            }
            self.counts.rot += u64::from(noticed);
            self.medium.corrupt(&name, |bytes| *bytes = content);
            self.floor = floor;
        }
        Ok(())
    }
}

fn read_overlay(overlay: &Overlay) -> Result<Vec<Vec<u8>>, String> {
    let read = |(disk, size): (usize, &u64)| {
        let mut out = vec![0xee; *size as usize];
        overlay.read_at(DiskIndex(disk as u16), 0, &mut out).map_err(|error| chain(&error))?;
        Ok(out)
    };
    SIZES.iter().enumerate().map(read).collect()
}

/// Why a step ended early.
enum Trouble {
    /// The store said no.
    Store(&'static str, ReplicaError),
    /// The store is wrong.
    Wrong(String),
}

type Done = Result<(), Trouble>;

impl From<String> for Trouble {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

fn trouble(what: &'static str) -> impl FnOnce(ReplicaError) -> Trouble {
    move |error| Trouble::Store(what, error)
}

fn chain(error: &ReplicaError) -> String {
    use std::error::Error;
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
