//! Opening, appending, positions, points, retention.
//!
//! The index of the journal lies in memory, one entry a record, rebuilt from frame heads when the store is
//! opened; entries of each region of a disk are listed, so that a view finds its own without a search.
//! Content is read through the cache ([`crate::cache`], `read`); folding is in `fold`.
//!
//! Locks, in this order: `folding` (one fold or thinning at a time), `leases`, `ingest`, `index`, `base`. None of the last
//! four is held while a fold reads or syncs.
//!
//! A **legal run** is a stretch of records whose every boundary may be brought up; between runs lie gaps.

use crate::base::Base;
use crate::cache::{Cache, Owner};
use crate::digests::Digests;
use crate::entries::Entries;
use crate::fold::Folding;
use crate::manifest::{self, DiskSpec, FORMAT, Manifest};
use crate::marks::{Lock, Mark, Marks, Proofs};
use crate::medium::{Medium, MediumFile};
use crate::overlay::{COMPACT_BYTES, Laid, Overlay};
use crate::planted::{self, Bug};
use crate::read::open_envelope;
use crate::scrub::{Finding, Progress};
use crate::segment::{self, RECORD_BYTES, Segment, Thinned};
use crate::view::View;
use continuum_model::feed::frame::{Row, RowKind};
use continuum_model::feed::{Barrier, Envelope, Frame, FrameError, Legality};
use continuum_model::id::{MachineId, PointId, ViewId};
use continuum_model::point::{PointChoice, PointKind};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Duration;

/// How often the time that a store was open is put on record, where something is locked.
const RECORD_TIME: Duration = Duration::from_secs(60);
/// The index lists its entries by regions of this many bytes of a disk.
pub(crate) const MAP_BYTES: u64 = 8 << 20;

/// How much is done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A segment that is this long is closed.
    pub segment_bytes: u64,
    /// Bytes of journal that one slice of a fold takes on.
    pub fold_bytes: u64,
    /// Blocks of a thinned stretch that one slice of a fold takes on.
    pub fold_blocks: usize,
    /// Bytes of journal that are thinned at once.
    pub thin_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            segment_bytes: segment::SEGMENT_BYTES,
            fold_bytes: 32 << 20,
            fold_blocks: 1024,
            thin_bytes: 2 << 30,
        }
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// The disk under the store failed.
    #[error("{file}: the store's disk failed; see to it and start the master target again")]
    Io {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what was written.
    #[error(
        "{file} is damaged: {reason}; points that need it are not offered, others are; repair is a new copy from the source"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A write failed before; nothing after it is believed.
    #[error(
        "a write to this store failed before, so nothing more is taken: restart the master target, which reads back what is durable"
    )]
    Poisoned,
    /// A frame of another machine.
    #[error("a frame of machine {got} was sent to the replica of {expected}")]
    WrongMachine {
        /// Whose store.
        expected: MachineId,
        /// Whose frame.
        got: MachineId,
    },
    /// An old writer.
    #[error("epoch {got} is superseded by {current}: this source was failed over and may not write any more")]
    EpochSuperseded {
        /// The writer's.
        got: Epoch,
        /// The newest.
        current: Epoch,
    },
    /// A writer that the vault has not announced.
    #[error("epoch {got} is not announced here yet (current: {current}); it is tried again")]
    EpochUnknown {
        /// The writer's.
        got: Epoch,
        /// The newest.
        current: Epoch,
    },
    /// Something is missing before this frame.
    #[error("frame {got} does not follow frame {last}; the stream starts again from there")]
    Gap {
        /// The last one here.
        last: FrameNumber,
        /// The one sent.
        got: FrameNumber,
    },
    /// The frame continues another history.
    #[error("frame {0} continues another history than this replica holds; nothing of it was used")]
    Chain(FrameNumber),
    /// The frame is damaged or hostile.
    #[error("the frame was refused")]
    Frame(#[from] FrameError),
    /// A change outside its disk.
    #[error("write [{start},{end}) outside disk {disk} of size {size}; the frame was refused whole")]
    Outside {
        /// Which disk.
        disk: DiskIndex,
        /// From.
        start: u64,
        /// To.
        end: u64,
        /// The disk's size.
        size: u64,
    },
    /// A disk that this machine does not have.
    #[error("this machine has no disk {0}")]
    NoDisk(DiskIndex),
    /// No such point.
    #[error("{asked} cannot be brought up: {reason}{}", nearest.map(|at| format!("; nearest: {at}")).unwrap_or_default())]
    NoPoint {
        /// What was asked for.
        asked: String,
        /// Why not.
        reason: &'static str,
        /// What could be.
        nearest: Option<Timestamp>,
    },
    /// The store's own machine or disks differ from what was asked for.
    #[error("this store holds {found}, not {asked}; nothing was touched")]
    Mismatch {
        /// What is there.
        found: String,
        /// What was wanted.
        asked: String,
    },
}

impl ReplicaError {
    pub(crate) fn io(file: &str, source: io::Error) -> Self {
        Self::Io { file: file.to_owned(), source }
    }
}

/// What is durable after an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The last frame.
    pub number: FrameNumber,
    /// Its digest.
    pub digest: u128,
    /// Its last record.
    pub sequence: Sequence,
    /// That record's moment.
    pub newest: Timestamp,
    /// Frames that were here already.
    pub duplicates: u64,
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The newest epoch.
    pub epoch: Epoch,
    /// What is durable.
    pub last: Appended,
    /// The newest moment that can be brought up.
    pub newest_legal: Option<Timestamp>,
    /// The oldest.
    pub oldest_legal: Option<Timestamp>,
    /// Bytes of journal.
    pub history_bytes: u64,
    /// Listed points.
    pub points: usize,
    /// The newest application-consistent one.
    pub newest_app: Option<Timestamp>,
    /// Why it takes no frames.
    pub damage: Option<String>,
    /// What the scrub found, and did not find mended since.
    pub findings: Vec<Finding>,
}

/// A listed point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointInfo {
    /// Its id.
    pub id: PointId,
    /// Its place.
    pub position: Sequence,
    /// Its moment.
    pub time: Timestamp,
    /// Its kind.
    pub kind: PointKind,
    /// Its name; text from outside.
    pub name: String,
    /// Pins and proofs.
    pub mark: Mark,
}

/// A moment that was asked for, found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Its place.
    pub position: Sequence,
    /// Its moment.
    pub time: Timestamp,
    /// The listed point at that place, where there is one.
    pub point: Option<PointInfo>,
    /// The moment asked for lies in a gap: between these two.
    pub gap: Option<(Timestamp, Timestamp)>,
    /// Bytes and records that come after it.
    pub loss: (u64, u64),
}

/// A stretch whose every boundary may be brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LegalRun {
    pub(crate) from: (Sequence, Timestamp),
    pub(crate) to: (Sequence, Timestamp),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sequence: Sequence,
    pub(crate) time: Timestamp,
    pub(crate) offset: u64,
    pub(crate) frame: FrameNumber,
    pub(crate) length: u32,
    pub(crate) data_at: u32,
    pub(crate) disk: DiskIndex,
    pub(crate) kind: RowKind,
}

/// A record of a segment.
#[derive(Debug, Clone)]
pub(crate) struct FrameAt {
    pub(crate) number: FrameNumber,
    /// Up to which frame of the source it leads: itself, or the last of its thinned stretch.
    pub(crate) chain: FrameNumber,
    pub(crate) digest: u128,
    pub(crate) segment: u64,
    pub(crate) at: u64,
    pub(crate) length: u32,
    pub(crate) last: (Sequence, Timestamp),
}

pub(crate) struct Index {
    pub(crate) manifest: Manifest,
    pub(crate) marks: Marks,
    /// What the wall showed when time last passed.
    pub(crate) now: Timestamp,
    /// Open since time was last put on record.
    unrecorded: Duration,
    pub(crate) frames: VecDeque<FrameAt>,
    pub(crate) entries: Entries,
    /// The entries (by their number) that touch a region of a disk, in order.
    regions: HashMap<(DiskIndex, u64), VecDeque<u64>>,
    /// Thinned stretches, by the frame that each leads to.
    pub(crate) thinned: BTreeMap<FrameNumber, Thinned>,
    /// Where their records stand.
    pub(crate) thinned_frames: HashMap<FrameNumber, FrameAt>,
    /// The number of the next frame of our own making.
    pub(crate) next_thinned: u64,
    pub(crate) runs: VecDeque<LegalRun>,
    pub(crate) points: BTreeMap<Sequence, PointInfo>,
    pub(crate) segments: BTreeMap<u64, (Arc<dyn MediumFile>, u64)>,
    legality: Legality,
    pub(crate) last: Appended,
    damage: Option<String>,
}

pub(crate) struct Ingest {
    pub(crate) active: Option<Segment>,
    pub(crate) next_segment: u64,
    poisoned: bool,
}

/// What may not be folded now, and what may not be opened now.
#[derive(Default)]
pub(crate) struct Leases {
    /// Positions of open views, and how many are open at each.
    pub(crate) open: BTreeMap<Sequence, usize>,
    /// A fold up to here is under way: what is older goes.
    pub(crate) folding: Option<Sequence>,
    /// Between these two history is thinned: what lies between goes.
    pub(crate) thinning: Option<(Sequence, Sequence)>,
}

impl Leases {
    pub(crate) fn oldest(&self) -> Option<Sequence> {
        self.open.keys().next().copied()
    }
    /// Whether a view is open between the two, or at the second.
    pub(crate) fn open_between(&self, after: Sequence, to: Sequence) -> bool {
        self.open.range(after.next()..=to).next().is_some()
    }
    fn goes(&self, position: Sequence) -> bool {
        self.folding.is_some_and(|to| position < to)
            || self.thinning.is_some_and(|(after, to)| after < position && position < to)
    }
}

pub(crate) struct Core {
    pub(crate) id: Owner,
    pub(crate) medium: Arc<dyn Medium>,
    pub(crate) machine: MachineId,
    pub(crate) disks: Vec<DiskSpec>,
    pub(crate) limits: Limits,
    /// One fold or thinning at a time.
    pub(crate) folding: Mutex<Folding>,
    /// How many archives of it are being made: until they are, history stays where it is.
    pub(crate) archiving: AtomicU64,
    /// Rises when records move: what a view looked up before is looked up again.
    pub(crate) generation: AtomicU64,
    /// Rises when a segment is rewritten: what was a place in it is none any more. Never 0.
    pub(crate) rewrites: AtomicU64,
    leases: Mutex<Leases>,
    overlays: Mutex<Vec<Weak<Laid>>>,
    pub(crate) scrub: Mutex<Progress>,
    pub(crate) digests: Digests,
    ingest: Mutex<Ingest>,
    index: RwLock<Index>,
    pub(crate) base: RwLock<Base>,
    pub(crate) cache: Arc<Cache>,
}

/// The replica of one machine.
#[derive(Clone)]
pub struct Store {
    pub(crate) core: Arc<Core>,
}

impl Store {
    /// Opens a store, made where there is none, and replays what survived. The text tells what was found.
    pub fn open_or_create(
        medium: Arc<dyn Medium>,
        machine: MachineId,
        disks: &[DiskSpec],
    ) -> Result<(Self, Vec<String>), ReplicaError> {
        Self::open_with(medium, machine, disks, Cache::of_process())
    }

    /// The same, with a cache that is not the one of the process.
    pub fn open_with(
        medium: Arc<dyn Medium>,
        machine: MachineId,
        disks: &[DiskSpec],
        cache: Arc<Cache>,
    ) -> Result<(Self, Vec<String>), ReplicaError> {
        Self::open_limited(medium, machine, disks, cache, Limits::default())
    }

    /// The same, with other limits than a store has. What is stored is the same.
    pub fn open_limited(
        medium: Arc<dyn Medium>,
        machine: MachineId,
        disks: &[DiskSpec],
        cache: Arc<Cache>,
        limits: Limits,
    ) -> Result<(Self, Vec<String>), ReplicaError> {
        for folder in ["journal", "base", "views"] {
            medium.make_folder(folder).map_err(|error| ReplicaError::io(folder, error))?;
        }
        // What an earlier process renamed is seen, and durable only from here on.
        medium.sync_folder("").map_err(|error| ReplicaError::io("the store's folder", error))?;
        let found: Option<Manifest> = manifest::read(&*medium, "manifest")?;
        let manifest = match found {
            Some(manifest) => {
                if manifest.format != FORMAT {
                    return Err(ReplicaError::Mismatch {
                        found: format!("format {}", manifest.format),
                        asked: format!("format {FORMAT}, which this program reads"),
                    });
                }
                if manifest.machine != machine || manifest.disks != disks {
                    return Err(ReplicaError::Mismatch {
                        found: format!("machine {} with disks {:?}", manifest.machine, manifest.disks),
                        asked: format!("machine {machine} with disks {disks:?}"),
                    });
                }
                manifest
            }
            None => {
                // A manifest is made before anything else is: where there is something, it was lost.
                let left = medium.list("journal").and_then(|mut names| {
                    names.extend(medium.list("base")?);
                    Ok(names)
                });
                if !left.map_err(|error| ReplicaError::io("journal", error))?.is_empty() {
                    return Err(ReplicaError::Damaged {
                        file: "manifest".into(),
                        reason: "it is missing, and there is a journal or a base without it".into(),
                    });
                }
                let manifest = Manifest {
                    format: FORMAT,
                    machine,
                    disks: disks.to_vec(),
                    epoch: Epoch(0),
                    base_sequence: Sequence(0),
                    base_time: Timestamp::from_micros(0),
                    base_frame: FrameNumber(0),
                    base_digest: format!("{:032x}", 0),
                    base_legal: false,
                };
                manifest::replace(&*medium, "manifest", &manifest)?;
                manifest
            }
        };
        let base = Base::open(&*medium, disks)?;
        let marks = manifest::read(&*medium, "marks")?.unwrap_or_default();
        let mut findings = Vec::new();
        let (index, ingest) = replay(&*medium, manifest, marks, &base, &mut findings)?;
        let scrub = Progress::read(&*medium);
        let core = Core {
            id: Owner::new(),
            medium,
            machine,
            disks: disks.to_vec(),
            limits,
            folding: Mutex::default(),
            archiving: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            rewrites: AtomicU64::new(1),
            leases: Mutex::default(),
            overlays: Mutex::default(),
            scrub: Mutex::new(scrub),
            digests: Digests::default(),
            ingest: Mutex::new(ingest),
            index: RwLock::new(index),
            base: RwLock::new(base),
            cache,
        };
        Ok((Self { core: Arc::new(core) }, findings))
    }

    /// Whose replica this is.
    pub fn machine(&self) -> MachineId {
        self.core.machine
    }

    /// The disks of this machine.
    pub fn disks(&self) -> &[DiskSpec] {
        &self.core.disks
    }

    /// Announces an epoch: writers of older ones are refused from now on. Durable when this returns.
    pub fn fence(&self, epoch: Epoch) -> Result<(), ReplicaError> {
        let _ingest = self.core.ingest();
        let mut index = self.core.index_mut();
        if epoch > index.manifest.epoch {
            let manifest = Manifest { epoch, ..index.manifest.clone() };
            manifest::replace(&*self.core.medium, "manifest", &manifest)?;
            index.manifest = manifest;
        }
        Ok(())
    }

    /// Appends frames, with one sync for all. What this returns is on stable storage.
    ///
    /// Frames that are here already are skipped. Errors: the whole group is refused, and nothing of it is
    /// acknowledged; after a failed write or sync the store takes nothing more until it is opened again.
    pub fn append(&self, envelopes: &[Envelope]) -> Result<Appended, ReplicaError> {
        let core = &*self.core;
        let mut ingest = core.ingest();
        if ingest.poisoned {
            return Err(ReplicaError::Poisoned);
        }
        let (mut last, epoch, damage) = {
            let index = core.index();
            (index.last, index.manifest.epoch, index.damage.clone())
        };
        if let Some(reason) = damage {
            return Err(ReplicaError::Damaged { file: "journal".into(), reason });
        }
        last.duplicates = 0;
        let mut frames = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            let identity = &envelope.head.identity;
            if identity.machine != core.machine {
                return Err(ReplicaError::WrongMachine { expected: core.machine, got: identity.machine });
            }
            if identity.epoch < epoch && !planted::is(Bug::OldEpochTaken) {
                return Err(ReplicaError::EpochSuperseded { got: identity.epoch, current: epoch });
            }
            if identity.epoch > epoch {
                return Err(ReplicaError::EpochUnknown { got: identity.epoch, current: epoch });
            }
            if identity.number <= last.number {
                // By its number alone another one would count as held, and its acknowledgement would have the source
                // forget what never came here: so it is with what an agent that was started again makes anew while
                // frames of the one before still arrive on an older stream.
                if !core.index().may_hold(identity.number, envelope.head.digest) {
                    return Err(ReplicaError::Chain(identity.number));
                }
                last.duplicates += 1;
                continue;
            }
            if identity.number != last.number.next() && !planted::is(Bug::GapTaken) {
                return Err(ReplicaError::Gap { last: last.number, got: identity.number });
            }
            if (identity.previous != last.digest && !planted::is(Bug::GapTaken))
                || envelope.head.first_sequence <= last.sequence
                || envelope.head.first_time <= last.newest
            {
                return Err(ReplicaError::Chain(identity.number));
            }
            for row in &envelope.head.rows {
                core.check_bounds(row)?;
            }
            // Decompressed and verified whole before it counts.
            let frame = open_envelope(envelope)?;
            last.number = identity.number;
            last.digest = envelope.head.digest;
            last.sequence = envelope.head.last_sequence();
            last.newest = envelope.head.last_time;
            frames.push((envelope, frame));
        }
        if frames.is_empty() {
            return Ok(last);
        }
        let places = match core.write_group(&mut ingest, &frames) {
            Ok(places) => places,
            Err(error) => {
                ingest.poisoned = true;
                return Err(error);
            }
        };
        let mut index = core.index_mut();
        for ((envelope, frame), (segment, file, at, end)) in frames.iter().zip(places) {
            index.segments.insert(segment, (file, end));
            index.add(&envelope.head, segment, at, envelope.len() as u32, Some(frame));
        }
        index.last = Appended { duplicates: 0, ..last };
        Ok(last)
    }

    /// How it is.
    pub fn state(&self) -> State {
        let findings = self.core.scrub.lock().unwrap_or_else(PoisonError::into_inner).found();
        let index = self.core.index();
        let newest_app =
            index.points.values().rev().find(|point| point.kind == PointKind::App).map(|point| point.time);
        State {
            epoch: index.manifest.epoch,
            last: index.last,
            newest_legal: index.runs.back().map(|run| run.to.1),
            oldest_legal: index.runs.front().map(|run| run.from.1),
            history_bytes: index.segments.values().map(|(_, end)| *end).sum(),
            points: index.points.len(),
            newest_app,
            damage: index.damage.clone(),
            findings,
        }
    }

    /// Listed points after a place, oldest first.
    pub fn points_after(&self, after: Sequence) -> Vec<PointInfo> {
        self.core.index().points.range(after.next()..).map(|(_, point)| point.clone()).collect()
    }

    /// Stretches between `from` and `to` in which nothing can be brought up.
    pub fn gaps(&self, from: Timestamp, to: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let index = self.core.index();
        let pairs = index.runs.iter().zip(index.runs.iter().skip(1));
        let mut gaps: Vec<_> = pairs.map(|(left, right)| (left.to.1, right.from.1)).collect();
        if let Some(last) = index.runs.back()
            && !index.legality.is_legal()
        {
            gaps.push((last.to.1, index.last.newest));
        }
        gaps.retain(|gap| gap.1 >= from && gap.0 <= to);
        gaps
    }

    /// Bytes that changed in each of `buckets` equal parts of a stretch of time.
    pub fn churn(&self, from: Timestamp, to: Timestamp, buckets: usize) -> Vec<u64> {
        let mut churn = vec![0; buckets];
        let span = to.since(from).as_micros().max(1);
        let index = self.core.index();
        let first = index.entries.seek(|entry| entry.time < from);
        for entry in index.entries.after(first).take_while(|entry| entry.time < to) {
            let bucket = entry.time.since(from).as_micros() * buckets as u128 / span;
            if let Some(sum) = churn.get_mut(bucket as usize)
                && entry.kind == RowKind::Write
            {
                *sum += u64::from(entry.length);
            }
        }
        churn
    }

    /// Finds the moment that is asked for.
    pub fn resolve(&self, choice: &PointChoice) -> Result<Resolved, ReplicaError> {
        let index = self.core.index();
        let none = |reason: &'static str, nearest| ReplicaError::NoPoint {
            asked: choice.to_string(),
            reason,
            nearest,
        };
        let (Some(oldest), Some(newest)) = (index.runs.front(), index.runs.back()) else {
            return Err(none("no recovery point exists yet: the first copy is not complete", None));
        };
        let (place, gap) = match choice {
            PointChoice::Latest | PointChoice::LatestProcessed => (newest.to, None),
            PointChoice::LatestApplication => {
                let point = index.points.values().rev().find(|point| point.kind == PointKind::App);
                let point = point
                    .ok_or_else(|| none("there is no application-consistent point", Some(newest.to.1)))?;
                ((point.position, point.time), None)
            }
            PointChoice::Id(id) => {
                let point = index.points.values().find(|point| point.id == *id);
                let point = point.ok_or_else(|| none("no such point, or it expired", Some(newest.to.1)))?;
                ((point.position, point.time), None)
            }
            PointChoice::Moment(at) => {
                let after = index.runs.partition_point(|run| run.from.1 <= *at);
                if after == 0 {
                    return Err(none("it is older than the history that is kept", Some(oldest.from.1)));
                }
                let run = index.runs[after - 1];
                if *at >= run.to.1 {
                    let next = index.runs.get(after).map(|next| next.from.1);
                    let broken = next.or((!index.legality.is_legal()).then_some(index.last.newest));
                    (run.to, broken.filter(|_| *at > run.to.1).map(|end| (run.to.1, end)))
                } else {
                    let after = index.entries.seek(|entry| entry.time <= *at);
                    let entry = index.entries.last_below(after + u64::from(planted::is(Bug::OneTooFar)));
                    (
                        entry
                            .filter(|entry| entry.time >= run.from.1)
                            .map_or(run.from, |entry| (entry.sequence, entry.time)),
                        None,
                    )
                }
            }
        };
        let first_lost = index.entries.seek(|entry| entry.sequence <= place.0);
        let lost = index
            .entries
            .after(first_lost)
            .filter(|entry| matches!(entry.kind, RowKind::Write | RowKind::Zero));
        let loss =
            lost.fold((0, 0), |(bytes, records), entry| (bytes + u64::from(entry.length), records + 1));
        Ok(Resolved {
            position: place.0,
            time: place.1,
            point: index.points.get(&place.0).cloned(),
            gap,
            loss,
        })
    }

    /// The listed points next to a place: before and after.
    pub fn neighbours(&self, position: Sequence) -> (Option<PointInfo>, Option<PointInfo>) {
        let index = self.core.index();
        let before = index.points.range(..position).next_back().map(|(_, point)| point.clone());
        (before, index.points.range(position.next()..).next().map(|(_, point)| point.clone()))
    }

    /// Opens every disk as of a position. Costs nothing that grows with history: what is read is looked up then.
    pub fn open_view(&self, position: Sequence) -> Result<View, ReplicaError> {
        let mut leases = self.core.leases();
        let index = self.core.index();
        let legal = index.runs.iter().any(|run| run.from.0 <= position && position <= run.to.0);
        if !legal || leases.goes(position) {
            let nearest = index.runs.back().map(|run| run.to.1);
            return Err(ReplicaError::NoPoint {
                asked: format!("position {position}"),
                reason: "it is no state that the source was in, or it expired",
                nearest,
            });
        }
        *leases.open.entry(position).or_default() += 1;
        Ok(View::new(self.core.clone(), position))
    }

    /// Opens an overlay on a view, or again the one that this id had.
    pub fn open_overlay(&self, view: View, id: ViewId) -> Result<Overlay, ReplicaError> {
        let overlay = Overlay::open(self.core.medium.clone(), view, id)?;
        let mut overlays = self.core.overlays.lock().unwrap_or_else(PoisonError::into_inner);
        overlays.retain(|laid| laid.strong_count() > 0);
        overlays.push(Arc::downgrade(overlay.laid()));
        drop(overlays);
        Ok(overlay)
    }

    /// Keeps the logs of open overlays short. For a background task: what it does may take as long as
    /// reading and writing what a machine wrote, and nothing waits for it.
    pub fn tend_overlays(&self) -> Result<(), ReplicaError> {
        for laid in self.core.overlays() {
            laid.compact(COMPACT_BYTES)?;
        }
        Ok(())
    }

    /// Removes an overlay's file. One that is not there is fine.
    pub fn remove_overlay(&self, id: ViewId) -> Result<(), ReplicaError> {
        Overlay::remove(&*self.core.medium, id)
    }

    /// Lets time pass: what the wall shows, and how long it is since this was called last, by a clock that never
    /// jumps. Until the first call every lock holds.
    pub fn pass_time(&self, now: Timestamp, passed: Duration) -> Result<(), ReplicaError> {
        let mut index = self.core.index_mut();
        index.now = now;
        index.unrecorded += passed;
        if index.unrecorded < RECORD_TIME || index.marks.points.values().all(|mark| mark.lock.is_none()) {
            return Ok(());
        }
        let mut marks = index.marks.clone();
        marks.open_seconds += index.unrecorded.as_secs();
        manifest::replace(&*self.core.medium, "marks", &marks)?;
        index.unrecorded = Duration::from_nanos(index.unrecorded.subsec_nanos().into());
        index.marks = marks;
        Ok(())
    }

    /// Locks a point for a span from now on: neither retention nor lack of space nor [`Store::mark`] lets it go until
    /// the wall and the time that this store was open both say that it is over. A lock is only ever made longer.
    pub fn lock(&self, id: PointId, span: Duration) -> Result<(), ReplicaError> {
        let (now, open_seconds) = {
            let index = self.core.index();
            (index.now, index.marks.open_seconds)
        };
        if now == Timestamp::from_micros(i64::MIN) {
            return Err(ReplicaError::NoPoint {
                asked: id.to_string(),
                reason: "it cannot be locked before the store was told what time it is; try again in a moment",
                nearest: None,
            });
        }
        self.change_mark(id, |mark| {
            let until = mark.lock.map_or(now.plus(span), |lock| lock.until.max(now.plus(span)));
            let seconds = open_seconds + span.as_secs();
            let seconds = mark.lock.map_or(seconds, |lock| lock.open_seconds.max(seconds));
            mark.lock = Some(Lock { until, open_seconds: seconds });
        })
    }

    /// Points that are locked now. While there are some, the store must not be removed.
    pub fn locked(&self) -> Vec<PointInfo> {
        let index = self.core.index();
        let is_locked = |point: &&PointInfo| point.mark.is_locked(index.now, index.marks.open_seconds);
        index.points.values().filter(is_locked).cloned().collect()
    }

    /// Pins or unpins a point, or adds proofs to it. A lock stays as it is (see [`Store::lock`]).
    pub fn mark(&self, id: PointId, change: impl FnOnce(&mut Mark)) -> Result<(), ReplicaError> {
        self.change_mark(id, |mark| {
            let lock = mark.lock;
            change(mark);
            mark.lock = lock;
        })
    }

    fn change_mark(&self, id: PointId, change: impl FnOnce(&mut Mark)) -> Result<(), ReplicaError> {
        let leases = self.core.leases();
        let mut index = self.core.index_mut();
        let known = index.points.iter().find(|(_, point)| point.id == id).map(|(at, _)| *at);
        let Some(position) = known.filter(|position| !leases.goes(*position)) else {
            return Err(ReplicaError::NoPoint {
                asked: id.to_string(),
                reason: "no such point, or it expired",
                nearest: None,
            });
        };
        let mut marks = index.marks.clone();
        change(marks.points.entry(id).or_default());
        manifest::replace(&*self.core.medium, "marks", &marks)?;
        let mark = marks.points.get(&id).copied().unwrap_or_default();
        index.marks = marks;
        if let Some(point) = index.points.get_mut(&position) {
            point.mark = mark;
        }
        Ok(())
    }

    /// Adds what was proven of a point.
    pub fn prove(&self, id: PointId, proofs: Proofs) -> Result<(), ReplicaError> {
        self.mark(id, |mark| {
            mark.proofs.booted = proofs.booted.or(mark.proofs.booted);
            mark.proofs.probed = proofs.probed.or(mark.proofs.probed);
            mark.proofs.digest_equal = proofs.digest_equal.or(mark.proofs.digest_equal);
        })
    }
}

impl Core {
    pub(crate) fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Overlays that are open.
    pub(crate) fn overlays(&self) -> Vec<Arc<Laid>> {
        let overlays = self.overlays.lock().unwrap_or_else(PoisonError::into_inner);
        overlays.iter().filter_map(Weak::upgrade).collect()
    }
    pub(crate) fn ingest(&self) -> MutexGuard<'_, Ingest> {
        self.ingest.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
    /// Reads of the base; not held across anything else.
    pub(crate) fn base(&self) -> RwLockReadGuard<'_, Base> {
        self.base.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub(crate) fn view_closed(&self, position: Sequence) {
        let mut leases = self.leases();
        if let Some(count) = leases.open.get_mut(&position) {
            *count -= 1;
            if *count == 0 {
                leases.open.remove(&position);
            }
        }
    }

    fn check_bounds(&self, row: &Row) -> Result<(), ReplicaError> {
        if !matches!(row.kind, RowKind::Write | RowKind::Zero) {
            return Ok(());
        }
        let disk =
            self.disks.iter().find(|disk| disk.index == row.disk).ok_or(ReplicaError::NoDisk(row.disk))?;
        let end = row.offset.saturating_add(row.length.into());
        if end > disk.size {
            return Err(ReplicaError::Outside { disk: row.disk, start: row.offset, end, size: disk.size });
        }
        Ok(())
    }

    /// Writes a group into the newest segment and syncs it. Returns where each frame's envelope stands.
    #[allow(
        clippy::type_complexity,
        reason = "segment, file, offset, end of the segment: read once, just above"
    )]
    fn write_group(
        &self,
        ingest: &mut Ingest,
        frames: &[(&Envelope, Frame)],
    ) -> Result<Vec<(u64, Arc<dyn MediumFile>, u64, u64)>, ReplicaError> {
        if ingest.active.as_ref().is_none_or(|active| active.end >= self.limits.segment_bytes) {
            let number = ingest.next_segment;
            let first = frames[0].0.head.identity.number;
            ingest.active = Some(Segment::create(&*self.medium, self.machine, number, first)?);
            ingest.next_segment = number + 1;
        }
        let Some(active) = ingest.active.as_mut() else { return Err(ReplicaError::Poisoned) };
        let start = active.end;
        let mut places = Vec::with_capacity(frames.len());
        let mut headers = Vec::with_capacity(frames.len());
        let mut end = start;
        for (envelope, _) in frames {
            headers.push((active.record_header(end, start, envelope), envelope.prefix()));
            let at = end + RECORD_BYTES;
            end = at + envelope.len() as u64;
            places.push((active.number, active.file.clone(), at, end));
        }
        let mut parts: Vec<&[u8]> = Vec::with_capacity(frames.len() * 4);
        for ((header, prefix), (envelope, _)) in headers.iter().zip(frames) {
            parts.extend([&header[..], &prefix[..], envelope.head.bytes(), &envelope.stored]);
        }
        let io = |error| ReplicaError::io(&segment::file_name(active.number), error);
        active.file.write_at(start, &parts).map_err(io)?;
        // Durable before acknowledged: the acknowledgement clears the source's change map, and nothing else
        // remembers these writes.
        if !planted::is(Bug::AckBeforeSync) {
            let again = |_| active.file.sync();
            let synced = active.file.sync();
            if planted::is(Bug::SyncTriedAgain) { synced.or_else(again) } else { synced }.map_err(io)?;
        }
        active.end = end;
        Ok(places)
    }
}

/// The regions of the index that a range touches.
fn regions_of(offset: u64, length: u32) -> std::ops::RangeInclusive<u64> {
    offset / MAP_BYTES..=(offset + u64::from(length) - 1) / MAP_BYTES
}

/// Lists an entry. The lists are long and many: each grows by a quarter, for doubling would leave half of them empty.
fn list(numbers: &mut VecDeque<u64>, number: u64) {
    if numbers.len() == numbers.capacity() {
        numbers.reserve_exact(numbers.len() / 4 + 4);
    }
    numbers.push_back(number);
}

impl Entry {
    fn of(row: &Row, frame: FrameNumber, (sequence, time): (Sequence, Timestamp)) -> Self {
        Self {
            sequence,
            time,
            offset: row.offset,
            frame,
            length: row.length,
            data_at: row.data_at,
            disk: row.disk,
            kind: row.kind,
        }
    }

    /// The regions of the index that it stands in.
    fn regions(&self) -> impl Iterator<Item = u64> + use<> {
        let changes = matches!(self.kind, RowKind::Write | RowKind::Zero) && self.length > 0;
        changes.then(|| regions_of(self.offset, self.length)).into_iter().flatten()
    }

    /// The same change, of a thinned stretch that ends at `to`.
    pub(crate) fn of_thinned(row: &Row, frame: FrameNumber, to: (Sequence, Timestamp)) -> Self {
        Self::of(row, frame, to)
    }
}

impl FrameAt {
    fn thinned(found: &segment::Found, thinned: &Thinned, segment: u64) -> Self {
        Self {
            number: found.head.identity.number,
            chain: thinned.last,
            digest: found.head.digest,
            segment,
            at: found.at,
            length: found.length,
            last: thinned.to,
        }
    }
}

impl Index {
    /// Whether a frame of this number and digest can be one that is here. Of what was folded or thinned away only
    /// the number is known.
    fn may_hold(&self, number: FrameNumber, digest: u128) -> bool {
        if number == self.last.number {
            return digest == self.last.digest;
        }
        let at = self.frames.partition_point(|frame| frame.chain < number);
        self.frames.get(at).filter(|frame| frame.number == number).is_none_or(|frame| frame.digest == digest)
    }

    /// Adds a frame that is durable. `frame` is read for the names of points; where it is not at hand the
    /// points of the frame are told by the caller.
    fn add(
        &mut self,
        head: &continuum_model::feed::FrameHead,
        segment: u64,
        at: u64,
        length: u32,
        frame: Option<&Frame>,
    ) {
        for row in &head.rows {
            let legal = self.legality.after_row(row);
            let place = (row.sequence, row.time);
            if legal || planted::is(Bug::RepairOffered) {
                match self.runs.back_mut() {
                    Some(run) if run.to.0.next() == row.sequence => run.to = place,
                    _ => self.runs.push_back(LegalRun { from: place, to: place }),
                }
            }
            if matches!(row.kind, RowKind::Write | RowKind::Zero) && row.length > 0 {
                let number = self.entries.next_number();
                for region in regions_of(row.offset, row.length) {
                    list(self.regions.entry((row.disk, region)).or_default(), number);
                }
            }
            self.entries.push(Entry::of(row, head.identity.number, (row.sequence, row.time)));
            if legal
                && row.point
                && let Some(frame) = frame
                && let continuum_model::feed::Change::Barrier(Barrier { kind, point: Some(id), name, .. }) =
                    frame.record(row).change
            {
                let mark = self.marks.points.get(&id).copied().unwrap_or_default();
                let info = PointInfo {
                    id,
                    position: row.sequence,
                    time: row.time,
                    kind: PointKind::of(kind),
                    name,
                    mark,
                };
                self.points.insert(row.sequence, info);
            }
        }
        self.frames.push_back(FrameAt {
            number: head.identity.number,
            chain: head.identity.number,
            digest: head.digest,
            segment,
            at,
            length,
            last: (head.last_sequence(), head.last_time),
        });
    }

    /// Adds a record of a thinned stretch.
    fn add_thinned(&mut self, found: &segment::Found, thinned: &Thinned, segment: u64) {
        for entry in found.head.rows.iter().map(|row| Entry::of(row, found.head.identity.number, thinned.to))
        {
            let number = self.entries.next_number();
            for region in entry.regions() {
                list(self.regions.entry((entry.disk, region)).or_default(), number);
            }
            self.entries.push(entry);
        }
        let frame = FrameAt::thinned(found, thinned, segment);
        self.next_thinned = self.next_thinned.max(frame.number.0 + 1);
        self.thinned_frames.insert(frame.number, frame.clone());
        self.frames.push_back(frame);
        if self.thinned.insert(thinned.last, *thinned).is_none() {
            self.runs.push_back(LegalRun { from: thinned.to, to: thinned.to });
        }
        // It was thinned because its end is a state that was.
        self.legality = Legality::legal();
    }

    /// The frame of the source that a record leads to, and its digest.
    pub(crate) fn chain_of(&self, frame: &FrameAt) -> (FrameNumber, u128) {
        let thinned = segment::is_thinned(frame.number).then(|| self.thinned.get(&frame.chain)).flatten();
        thinned.map_or((frame.number, frame.digest), |thinned| (thinned.last, thinned.digest))
    }

    /// Where a frame stands; `None`: it is not there any more.
    pub(crate) fn frame(&self, number: FrameNumber) -> Option<&FrameAt> {
        if segment::is_thinned(number) {
            return self.thinned_frames.get(&number);
        }
        let at = self.frames.partition_point(|frame| frame.chain < number);
        self.frames.get(at).filter(|frame| frame.number == number)
    }

    /// The entries that touch a region of a disk, oldest first.
    pub(crate) fn in_region(&self, disk: DiskIndex, region: u64) -> impl Iterator<Item = Entry> {
        let numbers = self.regions.get(&(disk, region)).into_iter().flatten();
        numbers.filter_map(|number| self.entries.get(*number))
    }

    /// Puts the records of a thinned stretch in place of the entries of what it stands for.
    pub(crate) fn replace_entries(&mut self, after: Sequence, to: Sequence, new: Vec<Entry>) {
        let first = self.entries.seek(|entry| entry.sequence <= after);
        let end = self.entries.seek(|entry| entry.sequence <= to);
        let mut touched: HashMap<(DiskIndex, u64), Vec<u64>> = HashMap::new();
        let mut came: Vec<(u64, Entry)> = Vec::with_capacity(new.len());
        self.entries.replace(
            first..end,
            new.into_iter(),
            |_, entry| {
                for region in entry.regions() {
                    touched.entry((entry.disk, region)).or_default();
                }
            },
            |number, entry| came.push((number, *entry)),
        );
        for (number, entry) in came {
            for region in entry.regions() {
                touched.entry((entry.disk, region)).or_default().push(number);
            }
        }
        for (place, new) in touched {
            let numbers = self.regions.entry(place).or_default();
            let from = numbers.partition_point(|number| *number < first);
            let until = numbers.partition_point(|number| *number < end);
            let tail = numbers.split_off(until);
            numbers.truncate(from);
            numbers.extend(new);
            numbers.extend(tail);
            if numbers.is_empty() {
                self.regions.remove(&place);
            }
        }
    }

    pub(crate) fn forget_up_to(&mut self, to: Sequence, time: Timestamp) {
        while self.frames.front().is_some_and(|frame| frame.last.0 <= to)
            && let Some(frame) = self.frames.pop_front()
        {
            self.thinned_frames.remove(&frame.number);
            self.thinned.remove(&frame.chain);
        }
        while self.entries.front().is_some_and(|entry| entry.sequence <= to)
            && let Some((_, entry)) = self.entries.pop_front()
        {
            for region in entry.regions() {
                if let Some(numbers) = self.regions.get_mut(&(entry.disk, region)) {
                    // In order: what is forgotten stands first.
                    numbers.pop_front();
                    if numbers.is_empty() {
                        self.regions.remove(&(entry.disk, region));
                    }
                }
            }
        }
        self.points = self.points.split_off(&to.next());
        while let Some(run) = self.runs.front_mut() {
            if run.to.0 < to {
                self.runs.pop_front();
            } else {
                if run.from.0 < to {
                    run.from = (to, time);
                }
                break;
            }
        }
    }
}

/// Reads the journal back after a start, whatever ended the last run.
fn replay(
    medium: &dyn Medium,
    mut manifest: Manifest,
    marks: Marks,
    base: &Base,
    findings: &mut Vec<String>,
) -> Result<(Index, Ingest), ReplicaError> {
    let machine = manifest.machine;
    let base_digest = u128::from_str_radix(&manifest.base_digest, 16).map_err(|_| ReplicaError::Damaged {
        file: "manifest".into(),
        reason: "base_digest is no digest".into(),
    })?;
    let redone = base.redo(medium, manifest.base_sequence)?;
    let mut index = Index {
        last: Appended {
            number: manifest.base_frame,
            digest: base_digest,
            sequence: manifest.base_sequence,
            newest: manifest.base_time,
            duplicates: 0,
        },
        marks,
        // Until time passes every lock holds.
        now: Timestamp::from_micros(i64::MIN),
        unrecorded: Duration::ZERO,
        frames: VecDeque::new(),
        entries: Entries::default(),
        regions: HashMap::new(),
        thinned: BTreeMap::new(),
        thinned_frames: HashMap::new(),
        next_thinned: 1 << 63 | 1,
        runs: VecDeque::new(),
        points: BTreeMap::new(),
        segments: BTreeMap::new(),
        legality: Legality::default(),
        damage: None,
        manifest: manifest.clone(),
    };
    if manifest.base_legal {
        let place = (manifest.base_sequence, manifest.base_time);
        index.runs.push_back(LegalRun { from: place, to: place });
        index.legality = Legality::legal();
    }
    // The last process may have died between making a segment and syncing its entry.
    medium
        .remove(segment::REWRITTEN)
        .and_then(|()| medium.sync_folder("journal"))
        .map_err(|error| ReplicaError::io("journal", error))?;
    let names = medium.list("journal").map_err(|error| ReplicaError::io("journal", error))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let newest = numbers.last().copied();
    let mut active = None;
    for number in numbers {
        let is_newest = Some(number) == newest;
        let read = match segment::Segment::read(medium, machine, number, is_newest) {
            Ok(read) => read,
            Err(error) => {
                index.damage = Some(format!("segment {number} cannot be read: {error}"));
                break;
            }
        };
        for found in &read.records {
            let identity = &found.head.identity;
            if let Some(thinned) = &found.thinned {
                let begun = index.thinned.get(&thinned.last) == Some(&**thinned);
                if thinned.last <= index.last.number && !begun {
                    // Folded already, or part of a longer stretch.
                    continue;
                }
                if !begun
                    && (thinned.first != index.last.number.next() || thinned.previous != index.last.digest)
                {
                    index.damage = Some(format!(
                        "segment {number}: the thinned frames {} to {} do not follow frame {}",
                        thinned.first, thinned.last, index.last.number
                    ));
                    break;
                }
                index.add_thinned(found, thinned, number);
                index.last = Appended {
                    number: thinned.last,
                    digest: thinned.digest,
                    sequence: thinned.to.0,
                    newest: thinned.to.1,
                    duplicates: 0,
                };
                continue;
            }
            if identity.number <= index.last.number {
                // Folded or thinned already.
                continue;
            }
            if identity.number != index.last.number.next() || identity.previous != index.last.digest {
                index.damage = Some(format!(
                    "segment {number}: frame {} does not follow frame {}",
                    identity.number, index.last.number
                ));
                break;
            }
            let frame = if found.head.rows.iter().any(|row| row.point) {
                let envelope = segment::read_envelope(&*read.segment.file, number, found.at, found.length);
                match envelope.and_then(|envelope| open_envelope(&envelope)) {
                    Ok(frame) => Some(frame),
                    Err(error) => {
                        findings.push(format!(
                            "a point's name in frame {} cannot be read: {error}",
                            identity.number
                        ));
                        None
                    }
                }
            } else {
                None
            };
            index.add(&found.head, number, found.at, found.length, frame.as_ref());
            index.last = Appended {
                number: identity.number,
                digest: found.head.digest,
                sequence: found.head.last_sequence(),
                newest: found.head.last_time,
                duplicates: 0,
            };
        }
        if index.damage.is_none() {
            index.damage.clone_from(&read.damage);
        }
        index.segments.insert(number, (read.segment.file.clone(), read.segment.end));
        if let Some(reason) = &index.damage {
            findings.push(format!("{reason}; everything before it is usable, nothing is taken after it"));
            break;
        }
        if is_newest {
            let io = |error| ReplicaError::io(&segment::file_name(number), error);
            if read.torn > 0 {
                findings.push(format!(
                    "segment {number}: {} bytes of an unacknowledged tail were cut",
                    read.torn
                ));
            }
            if read.segment.end == 0 {
                // Not even its header became durable: nothing may be written behind a header that is not there.
                medium.remove(&segment::file_name(number)).map_err(io)?;
                index.segments.remove(&number);
                continue;
            }
            if read.torn > 0 {
                read.segment.file.set_len(read.segment.end).map_err(io)?;
            }
            // The last group may have been written by a process whose sync failed: it can be read, and no sync
            // makes it durable any more. Written again, it does.
            if !planted::is(Bug::TailNotWritten) {
                read.segment.write_again(read.records.last()).map_err(io)?;
            }
            read.segment.file.sync().map_err(io)?;
            active = Some(read.segment);
        }
    }
    if let Some(to) = redone.filter(|to| *to > manifest.base_sequence) {
        let Some(frame) = index.frames.iter().find(|frame| frame.last.0 == to).cloned() else {
            // The base is ahead of every frame that can be read: no earlier state can be told any more.
            return Err(ReplicaError::Damaged {
                file: "base/redo".into(),
                reason: format!("it leads to record {to}, which the journal does not hold"),
            });
        };
        // The fold was whole but not on record: put it there, as `advance` would have.
        manifest.base_legal = index.runs.iter().any(|run| run.from.0 <= to && to <= run.to.0);
        let (number, digest) = index.chain_of(&frame);
        manifest.base_sequence = frame.last.0;
        manifest.base_time = frame.last.1;
        manifest.base_frame = number;
        manifest.base_digest = format!("{digest:032x}");
        manifest::replace(medium, "manifest", &manifest)?;
        index.manifest = manifest;
        index.forget_up_to(frame.last.0, frame.last.1);
    }
    Base::forget_redo(medium)?;
    Ok((
        index,
        Ingest { active, next_segment: newest.map_or(1, |newest| newest.saturating_add(1)), poisoned: false },
    ))
}
