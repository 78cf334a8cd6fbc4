//! One machine with all its disks, as the agent drives it: open, connect, take frames, acknowledge.
//!
//! ```text
//! <dir>/<disk id>.map    what may differ from the target, a file a disk (see `map`)
//! <dir>/<disk id>.active which parts of it a power cut could make forget that (see `activity`)
//! <dir>/progress         how far the target is (see `progress`)
//! <dir>/staging/*.feed   frames that cannot leave (see `staging`)
//! <dir>/lock             held while a process uses the folder
//! ```
//!
//! A sender's life: [`Source::connect`] with what the replica holds, then [`Source::next_frame`] after the
//! last one it has, over and over, and [`Source::acknowledged`] for what became durable there. On
//! [`Next::Reset`], or when the connection is lost, it connects again.

use crate::background;
use crate::compare::{AskReplica, ReplicaSums};
use crate::cycles;
use crate::disk::SourceDisk;
use crate::feed::compare::Resync;
use crate::feed::interval::{Answer, Intervals, Want};
use crate::feed::link::Halted;
use crate::feed::queue::Peek;
use crate::feed::{AckAhead, Connected, Feed, ModeChange, Next, ReplicaState, Totals};
use crate::hold::{Held, Ticket};
use crate::interval::{ChangeTracker, Slot};
use crate::map::{self, ChangeMap};
use crate::nbd::BlockDevice;
use crate::progress::Progress;
use crate::splitter::{GuestIo, Part, Shared, SplitDisk, Waker};
use crate::staging::FileStage;
use continuum_model::digest::{Digest, Nodes};
use continuum_model::feed::{Barrier, BarrierKind};
use continuum_model::health::Mode;
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_model::world::{Clock, Entropy};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of the smallest and largest disk.
const DISK_BYTES: std::ops::RangeInclusive<u64> = 4096..=64 << 40;

/// What a source is made of.
pub struct SourceConfig {
    /// Whose disks these are.
    pub machine: MachineId,
    /// Where maps and staging are kept: a folder of this source alone.
    pub dir: PathBuf,
    /// The disks; their place in this list is their number in frames, now and ever.
    pub disks: Vec<SourceSpec>,
}

/// One disk of a source.
pub struct SourceSpec {
    /// Its id.
    pub id: DiskId,
    /// The disk.
    pub disk: Box<dyn SourceDisk>,
}

/// What a source is made of whose changes come in cycles.
pub struct IntervalConfig {
    /// Whose disks these are.
    pub machine: MachineId,
    /// Where maps and staging are kept: a folder of this source alone.
    pub dir: PathBuf,
    /// The disks' ids, in the order in which the tracker knows them.
    pub disks: Vec<DiskId>,
    /// Who knows what changed.
    pub tracker: Box<dyn ChangeTracker>,
}

/// The front end of a source with cycles, and where its views are shown.
struct Tracked {
    slots: Vec<Arc<Slot>>,
    tracker: Box<dyn ChangeTracker>,
}

/// Intervals of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// A frame is closed when it is this old.
    pub frame_age: Duration,
    /// A time mark is set when nothing else happened for this long, so that the newest moment goes on.
    pub time_mark: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { frame_age: Duration::from_millis(20), time_mark: Duration::from_millis(500) }
    }
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A disk cannot be used.
    #[error("disk {index} cannot be protected: {reason}")]
    Disk {
        /// Which.
        index: usize,
        /// Why, and what to do.
        reason: String,
    },
    /// Another process uses the same folder.
    #[error("{dir} is in use by another process: one machine has one agent; stop the other one first", dir = dir.display())]
    InUse {
        /// Where.
        dir: PathBuf,
    },
    /// A file of the source's own could not be used.
    #[error("the change map or staging in {dir} cannot be used: nothing is served, nothing is lost; mend the folder and start again", dir = dir.display())]
    State {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread could be started.
    #[error("the threads of machine {machine} could not be started")]
    Threads {
        /// Whose.
        machine: MachineId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing is being shipped, or a repair is under way.
    #[error("no barrier can be set while the feed is in mode {mode}: {reason}")]
    NotShipping {
        /// The mode.
        mode: &'static str,
        /// Why.
        reason: String,
    },
    /// Acknowledgements are held already.
    #[error("acknowledgements of this machine are held already: one barrier with others at a time")]
    Holding,
    /// Replication is stopped.
    #[error(transparent)]
    Halted(#[from] Halted),
    /// The target said what cannot be.
    #[error(transparent)]
    AckAhead(#[from] AckAhead),
    /// Somebody asked for what is not there.
    #[error("disk {disk} has no regions {first} to {end}: nothing of what was asked for is sent again")]
    NoRegions {
        /// The disk.
        disk: DiskIndex,
        /// From.
        first: u64,
        /// Up to.
        end: u64,
    },
    /// A digest could not be completed.
    #[error("the disks could not be digested: {reason}")]
    Digest {
        /// Why.
        reason: String,
    },
    /// The source's disk failed.
    #[error("the source's disk could not be read")]
    Io(#[from] io::Error),
}

/// A barrier that was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Its place in the feed.
    pub sequence: Sequence,
    /// Its moment.
    pub time: Timestamp,
    /// What it makes.
    pub kind: BarrierKind,
    /// What it is called.
    pub name: String,
}

/// How a source is.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceStatus {
    /// The mode.
    pub mode: Mode,
    /// Why it is not `data`; empty when it is.
    pub reason: String,
    /// Bytes of regions that may differ from the target.
    pub dirty_bytes: u64,
    /// Bytes that a power cut now would add to them at most.
    pub active_bytes: u64,
    /// Bytes of frames that are not acknowledged.
    pub waiting_bytes: u64,
    /// Of those, bytes that the present stream was not given yet.
    pub unsent_bytes: u64,
    /// Of those that are not acknowledged, bytes on disk.
    pub staged_bytes: u64,
    /// The most that may wait.
    pub staging_max: u64,
    /// Frames that are not acknowledged.
    pub waiting_frames: usize,
    /// The last acknowledged frame.
    pub acknowledged: FrameNumber,
    /// Counters of the feed.
    pub totals: Totals,
    /// Counters of the guest's requests.
    pub guest: GuestIo,
    /// The newest record.
    pub newest: (Sequence, Timestamp),
    /// The newest moment that the present stream was given.
    pub sent_time: Timestamp,
    /// The newest moment that the target made durable.
    pub acknowledged_time: Timestamp,
    /// The newest changes of mode, oldest first.
    pub changes: Vec<ModeChange>,
    /// The resync under way.
    pub resync: Option<Resync>,
    /// The epoch of the last stream.
    pub epoch: Epoch,
    /// Why a map could not be believed at the start, or the replica since then, where that was so.
    pub doubt: Option<String>,
    /// What of the agent's own files does not work now: maps, staging.
    pub faults: Vec<String>,
    /// Whether guests' writes are refused (see [`Source::halt`]).
    pub halted: bool,
}

/// One machine's disks and their feed. Closes in good order when dropped, unless it was closed before.
pub struct Source {
    shared: Arc<Shared>,
    doubt: Option<String>,
    /// There while guests' writes are refused; holds the epoch under which that began.
    halt_file: PathBuf,
    /// Taken when it closes.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
    _lock: File,
}

impl Source {
    /// Opens maps and staging and starts the feed, unconnected. Disks can be written from now on.
    ///
    /// Errors: nothing was changed on any disk.
    pub fn open(
        config: SourceConfig,
        clock: Arc<dyn Clock>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SourceError> {
        Self::open_with(config, Timing::default(), clock, entropy)
    }

    /// The same with other intervals.
    pub fn open_with(
        config: SourceConfig,
        timing: Timing,
        clock: Arc<dyn Clock>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SourceError> {
        Self::make(config, None, timing, clock, entropy)
    }

    /// A source whose changes come in cycles, driven by a thread of its own. Where its machine is not there now, its
    /// disks are taken to be as large as they were.
    ///
    /// Errors: as for [`Source::open`]; the machine is not there and never was.
    pub fn open_interval(
        config: IntervalConfig,
        timing: Timing,
        clock: Arc<dyn Clock>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SourceError> {
        let IntervalConfig { machine, dir, disks, mut tracker } = config;
        let sizes = match tracker.sizes() {
            Ok(sizes) if sizes.len() == disks.len() => sizes,
            Ok(sizes) => {
                let reason =
                    format!("the machine has {} disks, and {} are configured", sizes.len(), disks.len());
                return Err(SourceError::Disk { index: sizes.len().min(disks.len()), reason });
            }
            Err(why) => {
                sizes_known(&dir, &disks).map_err(|index| SourceError::Disk { index, reason: why })?
            }
        };
        let slots: Vec<Arc<Slot>> = sizes.iter().map(|size| Arc::new(Slot::new(*size))).collect();
        let disks = disks.into_iter().zip(&slots);
        let disks = disks.map(|(id, slot)| SourceSpec { id, disk: Box::new(slot.clone()) }).collect();
        Self::make(
            SourceConfig { machine, dir, disks },
            Some(Tracked { slots, tracker }),
            timing,
            clock,
            entropy,
        )
    }

    fn make(
        config: SourceConfig,
        tracked: Option<Tracked>,
        timing: Timing,
        clock: Arc<dyn Clock>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SourceError> {
        let SourceConfig { machine, dir, disks } = config;
        let state = |source| SourceError::State { dir: dir.clone(), source };
        std::fs::create_dir_all(&dir).map_err(state)?;
        let lock = lock(&dir)?;
        let (mut parts, mut sizes, mut maps, mut doubts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, SourceSpec { id, disk }) in disks.into_iter().enumerate() {
            let size = usable_size(index, &*disk)?;
            let stamp =
                disk.stamp().map_err(|error| SourceError::Disk { index, reason: error.to_string() })?;
            let path = dir.join(format!("{id}.map"));
            let (map, doubt) = ChangeMap::open(&path, id, size, stamp, clock.wall()).map_err(state)?;
            if let Some(why) = &doubt {
                tracing::info!(%machine, disk = index, why, "every region of this disk counts as changed");
            }
            doubts.extend(doubt.map(|why| format!("disk {index}: {why}")));
            maps.push(map);
            sizes.push(size);
            parts.push(Part::new(disk));
        }
        let (progress, believed) = Progress::open(&dir.join("progress"), machine).map_err(state)?;
        let (stage, found) = FileStage::open(&dir.join("staging"), machine).map_err(state)?;
        let mut session = [0; 8];
        entropy.fill(&mut session);
        let session = u64::from_le_bytes(session);
        let mut feed = Feed::new(machine, session, maps, progress, Box::new(stage), found);
        if !believed {
            // Which replica the clear bits were about is not known any more.
            feed.doubt_all();
            doubts.push("how far the target was is not on record here".into());
        }
        if !doubts.is_empty() {
            feed.doubt();
        }
        if tracked.is_some() {
            feed.set_interval();
        }
        let shared = Arc::new(Shared::new(machine, parts, sizes, feed, clock));
        if !believed {
            // In this order: a power cut in between must not leave maps that nothing contradicts.
            shared.settle();
            shared.store_clears().map_err(state)?;
        }
        let halt_file = dir.join("halted");
        if halt_file.try_exists().map_err(state)? {
            shared.halt();
        }
        let source = Self {
            shared,
            halt_file,
            doubt: (!doubts.is_empty()).then(|| doubts.join("; ")),
            threads: Mutex::new(Some(Vec::new())),
            _lock: lock,
        };
        source.start(timing, tracked).map_err(|source| SourceError::Threads { machine, source })?;
        Ok(source)
    }

    fn start(&self, timing: Timing, tracked: Option<Tracked>) -> io::Result<()> {
        type Body = Box<dyn FnOnce(&Shared) + Send>;
        let mut bodies: Vec<(&str, Body)> = vec![
            ("feed-ticker", Box::new(move |shared| background::tick(shared, timing))),
            ("feed-injector", Box::new(background::inject)),
            ("feed-stager", Box::new(background::stage)),
            ("feed-keeper", Box::new(background::keep)),
            ("feed-settler", Box::new(background::settle)),
        ];
        if let Some(Tracked { slots, tracker }) = tracked {
            bodies.push(("feed-cycler", Box::new(move |shared| cycles::run(shared, &slots, tracker))));
        }
        for (name, body) in bodies {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name(name.into()).spawn(move || body(&shared))?;
            self.threads().get_or_insert_default().push(thread);
        }
        Ok(())
    }

    /// Whether its changes come in cycles: nothing is served then, and every barrier waits for a cycle.
    pub fn is_interval(&self) -> bool {
        self.shared.feed().is_interval()
    }

    /// How often cycles and points are to be made; without cycles nothing happens.
    pub fn set_intervals(&self, intervals: Intervals) {
        let mut feed = self.shared.feed();
        if let Some(interval) = feed.interval_mut() {
            interval.intervals = intervals;
        }
        self.shared.cycler.notify_all();
    }

    /// Asks the thread that drives the cycles for something, and waits until it is answered.
    fn want(&self, want: Want) -> Answer {
        let refused = |why: &str| Answer::Refused(why.to_owned());
        let mut feed = self.shared.feed();
        let Some(interval) = feed.interval_mut() else { return refused("this source has no cycles") };
        let id = interval.wish(want);
        self.shared.cycler.notify_all();
        loop {
            let Some(interval) = feed.interval_mut() else { return refused("this source has no cycles") };
            if let Some(answer) = interval.answers.remove(&id) {
                return answer;
            }
            if self.shared.is_stopping() {
                return refused("the agent stops");
            }
            feed = wait(&self.shared.cycler, feed);
        }
    }

    fn want_barrier(&self, barrier: Barrier, hold: bool) -> Result<(Sequence, Timestamp), SourceError> {
        let (mode, reason) = {
            let feed = self.shared.feed();
            let (mode, reason) = feed.told_mode();
            (mode, reason.to_owned())
        };
        if !mode.is_whole() {
            return Err(SourceError::NotShipping { mode: mode.name(), reason });
        }
        match self.want(Want::Barrier { barrier, hold }) {
            Answer::Cut(sequence, time) => Ok((sequence, time)),
            Answer::Done => Err(SourceError::NotShipping { mode: mode.name(), reason }),
            Answer::Refused(reason) => Err(SourceError::NotShipping { mode: mode.name(), reason }),
        }
    }

    /// One of its disks, to be served.
    pub fn device(&self, index: usize) -> Option<Arc<dyn BlockDevice>> {
        SplitDisk::new(self.shared.clone(), index).map(|disk| Arc::new(disk) as Arc<dyn BlockDevice>)
    }

    /// One of its disks, for what the machine wrote elsewhere and brings home: written also while guests' writes are
    /// refused. Ships nothing while paused: what is written only becomes stale in the map. `None`: it is not there, or
    /// is followed and not served here.
    pub fn homeward(&self, index: usize) -> Option<Arc<dyn BlockDevice>> {
        if self.is_interval() {
            return None;
        }
        SplitDisk::homeward(self.shared.clone(), index).map(|disk| Arc::new(disk) as Arc<dyn BlockDevice>)
    }

    /// The sizes of its disks, in bytes.
    pub fn sizes(&self) -> &[u64] {
        &self.shared.sizes
    }

    /// Called whenever [`Source::next_frame`] may answer differently, from whichever thread made it so. For
    /// senders that must not block: let it raise a flag or wake a task, never call the source.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        let waker: Waker = Arc::new(waker);
        *self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// Where sums of the replica are asked for after doubt, so that only what differs is sent. Called by a thread of the
    /// source; it may wait, for as long as nobody minds that nothing is sent, and must end soon once the source closes.
    pub fn set_ask_replica(
        &self,
        ask: impl Fn(DiskIndex, &Nodes) -> Result<ReplicaSums, String> + Send + Sync + 'static,
    ) {
        let ask: AskReplica = Arc::new(ask);
        *self.shared.ask_replica.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
    }

    /// A stream to the replica opened under `epoch`. Returns what came of it, and the stretch to ask frames
    /// of; the first frame to ask for is the one after `replica.number`.
    ///
    /// Errors: replication is stopped for good (a disk changed its size).
    pub fn connect(&self, epoch: Epoch, replica: ReplicaState) -> Result<(Connected, u64), SourceError> {
        self.shared.with_feed(|feed| {
            let connected = feed.connect(epoch, replica, self.shared.clock.wall())?;
            feed.seal();
            Ok((connected, feed.stretch()))
        })
    }

    /// The frame after `after`; waits for at most `patience`, which may be zero.
    pub fn next_frame(&self, stretch: u64, after: FrameNumber, patience: Duration) -> Next {
        let shared = &self.shared;
        let deadline = shared.clock.uptime() + patience;
        let mut feed = shared.feed();
        loop {
            match feed.peek_frame(stretch, after) {
                Peek::Memory(envelope) => return Next::Frame(envelope),
                Peek::Reset => return Next::Reset,
                Peek::Staged(place) => {
                    drop(feed);
                    return match place.read() {
                        Ok(envelope) => Next::Frame(Arc::new(envelope)),
                        Err(error) => {
                            shared.with_feed(|feed| feed.stage_lost(&error.to_string()));
                            Next::Reset
                        }
                    };
                }
                Peek::Note(leaving) => {
                    drop(feed);
                    let left = leaving.write();
                    feed = shared.feed();
                    feed.left(&leaving, left);
                    continue;
                }
                Peek::Idle => {}
            }
            let left = deadline.saturating_sub(shared.clock.uptime());
            if left.is_zero() || shared.is_stopping() {
                return Next::Idle;
            }
            feed = shared.frames.wait_timeout(feed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything up to `number` is durable at the target.
    ///
    /// Errors: that frame never left; the target is not to be trusted, and nothing was cleared.
    pub fn acknowledged(&self, number: FrameNumber) -> Result<(), SourceError> {
        Ok(self.shared.with_feed(|feed| feed.acknowledge(number, self.shared.clock.wall()))?)
    }

    /// Ships nothing until [`Source::resume`] or the next [`Source::connect`]; the map goes on.
    pub fn pause(&self, reason: &str) {
        self.shared.with_feed(|feed| feed.pause(reason));
    }

    /// Ends a pause: what changed meanwhile is injected.
    pub fn resume(&self) {
        self.shared.with_feed(|feed| feed.resume(self.shared.clock.wall()));
    }

    /// How much may wait for the target.
    pub fn set_staging_max(&self, bytes: u64) {
        self.shared.with_feed(|feed| feed.set_staging_max(bytes));
    }

    /// Refuses guests' writes from now on, over restarts of the agent, until [`Source::release`]; returns when
    /// those under way are done and in the feed. Reading goes on, and so does shipping. Where changes come in cycles
    /// the machine itself is stopped; that may take as long as it takes to shut down.
    ///
    /// Errors: the wish could not be made durable, or the machine does not stop; writes are taken as before.
    pub fn halt(&self) -> io::Result<()> {
        let epoch = self.shared.feed().epoch();
        let folder = self.halt_file.parent().unwrap_or(Path::new("."));
        let mut file = File::create(&self.halt_file)?;
        io::Write::write_all(&mut file, epoch.0.to_string().as_bytes())?;
        file.sync_all()?;
        File::open(folder)?.sync_all()?;
        self.shared.halt();
        if self.is_interval()
            && let Answer::Refused(why) = self.want(Want::Stop)
        {
            self.shared.release();
            std::fs::remove_file(&self.halt_file)?;
            return Err(io::Error::other(why));
        }
        Ok(())
    }

    /// Takes guests' writes again.
    ///
    /// Errors: the wish could not be made durable; writes are refused as before.
    pub fn release(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.halt_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(self.halt_file.parent().unwrap_or(Path::new(".")))?.sync_all()?;
        let was_halted = self.shared.is_halted();
        self.shared.release();
        if was_halted
            && self.is_interval()
            && let Answer::Refused(why) = self.want(Want::Start)
        {
            return Err(io::Error::other(why));
        }
        Ok(())
    }

    /// The epoch under which guests' writes began to be refused; `None`: they are taken.
    pub fn halted_under(&self) -> Option<Epoch> {
        let text = std::fs::read_to_string(&self.halt_file).ok()?;
        // An unreadable one is as old as can be: it is still refused, and any newer epoch may end it.
        Some(Epoch(text.trim().parse().unwrap_or(0)))
    }

    /// Cuts a barrier that makes a recovery point, and sends it at once; where changes come in cycles, a cycle begins
    /// at once and ends with it, and this waits for that.
    ///
    /// Errors: nothing is shipped now, or a repair is under way; no point was made.
    pub fn barrier(
        &self,
        kind: BarrierKind,
        name: &str,
        point: PointId,
    ) -> Result<(Sequence, Timestamp), SourceError> {
        if self.is_interval() {
            let barrier = Barrier { kind, consistent: true, point: Some(point), name: name.to_owned() };
            return self.want_barrier(barrier, false);
        }
        self.barrier_as(point, |_, _| (kind, name.to_owned())).map(|cut| (cut.sequence, cut.time))
    }

    /// The same, of the kind and with the name that `decide` says. It is given our uptime and the bytes that guests
    /// wrote up to this place, and nothing is written between its answer and the barrier.
    ///
    /// Errors: as for [`Source::barrier`].
    pub fn barrier_as(
        &self,
        point: PointId,
        decide: impl FnOnce(Duration, u64) -> (BarrierKind, String),
    ) -> Result<Cut, SourceError> {
        self.shared.with_feed(|feed| self.cut(feed, point, decide))
    }

    /// Cuts a barrier together with others: writes behind it are not acknowledged until [`Source::end_hold`], or until
    /// `most` is over (see `hold`).
    ///
    /// Errors: as for [`Source::barrier`]; nothing is held then.
    pub fn barrier_and_hold(
        &self,
        point: PointId,
        most: Duration,
        decide: impl FnOnce(Duration, u64) -> (BarrierKind, String),
    ) -> Result<(Ticket, Cut), SourceError> {
        let shared = &self.shared;
        shared.with_feed(|feed| {
            let ticket = shared.hold.begin(&*shared.clock, most).ok_or(SourceError::Holding)?;
            let cut = self.cut(feed, point, decide).inspect_err(|_| {
                shared.hold.end(ticket, &*shared.clock);
            })?;
            Ok((ticket, cut))
        })
    }

    /// Acknowledges what waits, and says whether all of it waited until now.
    pub fn end_hold(&self, ticket: Ticket) -> Held {
        self.shared.hold.end(ticket, &*self.shared.clock)
    }

    /// Time since some moment before the start: what [`Source::barrier_as`] goes by.
    pub fn uptime(&self) -> Duration {
        self.shared.clock.uptime()
    }

    /// Bytes that guests wrote since the start, as [`Source::barrier_as`] counts them.
    pub fn written_bytes(&self) -> u64 {
        self.shared.feed().totals.written
    }

    fn cut(
        &self,
        feed: &mut Feed,
        point: PointId,
        decide: impl FnOnce(Duration, u64) -> (BarrierKind, String),
    ) -> Result<Cut, SourceError> {
        let (mode, reason) = feed.mode();
        if feed.is_interval() {
            let reason = "its changes come in cycles, which end when they end".to_owned();
            return Err(SourceError::NotShipping { mode: mode.name(), reason });
        }
        let refused = SourceError::NotShipping { mode: mode.name(), reason: reason.to_owned() };
        if mode != Mode::Data {
            return Err(refused);
        }
        let (kind, name) = decide(self.shared.clock.uptime(), feed.totals.written);
        let barrier = Barrier { kind, consistent: true, point: Some(point), name: name.clone() };
        let cut = feed.barrier(barrier, self.shared.clock.wall());
        feed.seal();
        match cut {
            Some((sequence, time, true)) => Ok(Cut { sequence, time, kind, name }),
            Some((_, _, false)) | None => Err(refused),
        }
    }

    /// Cuts a barrier and digests every disk as of it, while the machine runs on. Reads all disks once.
    ///
    /// Errors: as for [`Source::barrier`]; [`SourceError::Digest`]: a disk cannot be read, or more was
    /// overwritten meanwhile than can be remembered.
    pub fn digest_at_barrier(
        &self,
        point: PointId,
    ) -> Result<(Sequence, Timestamp, Vec<Digest>), SourceError> {
        if self.is_interval() {
            let barrier = Barrier {
                kind: BarrierKind::Crash,
                consistent: true,
                point: Some(point),
                name: "verify".into(),
            };
            let (sequence, time) = self.want_barrier(barrier, true)?;
            let digests = self.shared.digest_at_rest();
            let mut feed = self.shared.feed();
            if let Some(interval) = feed.interval_mut() {
                interval.holds = interval.holds.saturating_sub(1);
            }
            self.shared.cycler.notify_all();
            return Ok((sequence, time, digests?));
        }
        self.shared.digest(|| self.barrier(BarrierKind::Crash, "verify", point))
    }

    /// Digests every disk while guests' writes are refused. Reads all disks once.
    ///
    /// Errors: they are not refused; a disk cannot be read.
    pub fn digest_at_rest(&self) -> Result<Vec<Digest>, SourceError> {
        if !self.shared.is_halted() {
            return Err(SourceError::Digest { reason: "the machine still writes".into() });
        }
        self.shared.digest_at_rest()
    }

    /// Sends regions again, which the replica lost: from a disk's first one up to, and without, the last.
    ///
    /// Errors: such regions are not there; nothing is sent again then.
    pub fn send_again(&self, lost: &[(DiskIndex, Range<u64>)]) -> Result<(), SourceError> {
        self.shared.with_feed(|feed| feed.send_again(lost, self.shared.clock.wall()))
    }

    /// Compares all of source and replica and sends what differs; at once, or as soon as something is shipped again.
    pub fn compare_all(&self, reason: &str) {
        self.shared.with_feed(|feed| feed.compare_all(reason, self.shared.clock.wall()));
    }

    /// Whether a resync waits or is under way.
    pub fn is_in_doubt(&self) -> bool {
        self.shared.feed().resync().is_some()
    }

    /// How it is.
    pub fn status(&self) -> SourceStatus {
        let guest = self.shared.io.now();
        let feed = self.shared.feed();
        let (mode, reason) = feed.told_mode();
        let queue = feed.queue();
        let faults = feed.maps().iter().filter_map(ChangeMap::fault).chain(queue.fault());
        SourceStatus {
            mode,
            reason: reason.to_owned(),
            dirty_bytes: feed.dirty_bytes(),
            active_bytes: feed.maps().iter().map(ChangeMap::active_bytes).sum(),
            waiting_bytes: queue.bytes(),
            unsent_bytes: queue.unsent_bytes(),
            sent_time: queue.sent_time(),
            acknowledged_time: queue.acked_time(),
            changes: feed.changes().iter().cloned().collect(),
            resync: feed.resync(),
            staged_bytes: queue.staged_bytes(),
            staging_max: queue.bytes_max(),
            waiting_frames: queue.len(),
            acknowledged: queue.acked().0,
            totals: feed.totals,
            guest,
            newest: feed.newest(),
            epoch: feed.epoch(),
            doubt: feed
                .tracking_doubt()
                .or_else(|| feed.doubted_since())
                .map(str::to_owned)
                .or_else(|| self.doubt.clone()),
            halted: self.shared.is_halted(),
            faults: faults.map(str::to_owned).collect(),
        }
    }

    /// Closes in good order: changes are refused, what waits is staged, disks and maps are flushed. The next
    /// start believes the maps then, and goes on with the feed where it was. Closed already: does nothing.
    ///
    /// Errors: the next start may send more than what changed.
    pub fn close(&self) -> io::Result<()> {
        let Some(threads) = self.threads().take() else { return Ok(()) };
        let shared = &self.shared;
        shared.close();
        shared.stop();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!(machine = %shared.machine, "a thread of the feed died");
            }
        }
        shared.with_feed(Feed::seal);
        loop {
            let next = shared.feed().next_to_stage(shared.clock.wall(), true);
            let Some((number, envelope, place)) = next else { break };
            place.write(&envelope)?;
            shared.feed().staged(number, place);
        }
        shared.disks.iter().try_for_each(Part::flush)?;
        shared.settle();
        shared.store_clears()?;
        let stamps = shared.stamps();
        let mut feed = shared.feed();
        for (map, stamp) in feed.maps_mut().iter_mut().zip(stamps) {
            if let Some(stamp) = stamp {
                map.close(stamp, shared.clock.wall())?;
            }
        }
        Ok(())
    }
}

impl Source {
    fn threads(&self) -> MutexGuard<'_, Option<Vec<JoinHandle<()>>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(machine = %self.shared.machine, %error,
                "the source could not be closed in good order: more than needed is sent after the next start");
        }
    }
}

fn wait<'a>(condvar: &Condvar, feed: MutexGuard<'a, Feed>) -> MutexGuard<'a, Feed> {
    condvar.wait(feed).unwrap_or_else(PoisonError::into_inner)
}

/// How large the disks were, by their change maps. Errors: which of them never was seen.
fn sizes_known(dir: &Path, disks: &[DiskId]) -> Result<Vec<u64>, usize> {
    let known = |(index, id): (usize, &DiskId)| {
        let facts = File::open(dir.join(format!("{id}.map"))).and_then(|file| map::look(&file));
        facts.ok().flatten().filter(|facts| facts.damage.is_none()).map(|facts| facts.size).ok_or(index)
    };
    disks.iter().enumerate().map(known).collect()
}

fn lock(dir: &Path) -> Result<File, SourceError> {
    let state = |source| SourceError::State { dir: dir.to_owned(), source };
    let options = File::options().read(true).write(true).create(true).truncate(false).open(dir.join("lock"));
    let file = options.map_err(state)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SourceError::InUse { dir: dir.to_owned() }),
        Err(error) => Err(state(error.into())),
    }
}

fn usable_size(index: usize, disk: &dyn SourceDisk) -> Result<u64, SourceError> {
    let size = disk.size().map_err(|error| SourceError::Disk { index, reason: error.to_string() })?;
    if DISK_BYTES.contains(&size) && size % 512 == 0 {
        return Ok(size);
    }
    let reason = format!(
        "it has {size} bytes; give it a size that is a multiple of 512 bytes, between 4 KiB and 64 TiB"
    );
    Err(SourceError::Disk { index, reason })
}
