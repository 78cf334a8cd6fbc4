//! One seed drives an agent's feed on simulated disks, a process server's course of each stream, and a target's store
//! on a simulated medium, through partitions, dead connections that still deliver, crashes and power cuts of each, a
//! full spool and one whose disk does not write, duplicates, and new epochs.
//!
//! What must hold:
//! - a clear bit means that the replica holds that region as the source does, durably;
//! - a position that the replica calls legal is a state that the source had, on all disks at once;
//! - what was acknowledged outlives every crash of the target;
//! - nothing of an older epoch is taken after the target heard of a newer one.
//!
//! And when everything has healed: mode `data`, no bit set, both sides equal.
//!
//! The code is that of the programs; what is not theirs is the glue that in them are tasks and sockets.

use continuum_capture::activity::Shape;
use continuum_capture::disk::SourceDisk;
use continuum_capture::feed::compare::Compare;
use continuum_capture::feed::queue::Peek;
use continuum_capture::feed::{Applied, Feed, ReplicaState};
use continuum_capture::kept::Kept;
use continuum_capture::map::{Boot, ChangeMap, Subject};
use continuum_capture::progress::Progress;
use continuum_capture::simulated::{Power, SimulatedDisk, SimulatedFile};
use continuum_capture::staging::FileStage;
use continuum_model::feed::frame::data_sum;
use continuum_model::feed::{Barrier, Change, Codec, Envelope, FrameBuilder, Identity, Legality};
use continuum_model::health::Mode;
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, REGION_BYTES};
use continuum_process_server::compress::{Effort, compress};
use continuum_process_server::order::{Order, Sent, Take};
use continuum_process_server::spool::{Pool, Spool};
use continuum_replica::medium::{Fault, Simulated};
use continuum_replica::{Appended, Cache, DiskSpec, Limits, ReplicaError, Store};
use continuum_wire::channel::{Hello, Welcome};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

const MACHINE: MachineId = MachineId::from_bytes([9; 16]);
const SIZES: [usize; 2] = [6 * REGION_BYTES as usize + 1536, 2 * REGION_BYTES as usize];
const PAGE: usize = 4096;
const SHAPE: Shape = Shape { extent_log2: 17, slots: 3 };
const STEPS: u32 = 500;
/// Messages that are on their way on one connection.
const UNDER_WAY: usize = 6;

/// A bug that somebody could make in the glue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The target acknowledges what it is about to make durable.
    AckBeforeDurable,
    /// The process server acknowledges what is in its spool.
    RelayAcknowledges,
    /// The target takes a frame that it holds as one more.
    DuplicateTwice,
    /// A target is not told of a new epoch.
    StaleEpochTaken,
}

macro_rules! counts {
    ($($name:ident),*) => {
        /// What happened, so that a test can tell that it did.
        #[derive(Debug, Default, Clone)]
        pub struct Counts { $(pub $name: u64),* }
        impl Counts {
            /// Adds another world's.
            pub fn add(&mut self, other: &Self) { $(self.$name += other.$name;)* }
            /// All of them.
            pub fn rows(&self) -> Vec<(&'static str, u64)> { vec![$((stringify!($name), self.$name)),*] }
        }
    };
}

counts!(
    legal_positions,
    agent_kills,
    agent_closes,
    agent_power_cuts,
    relay_crashes,
    target_power_cuts,
    target_kills,
    target_io_errors,
    connections,
    continued,
    late_deliveries,
    duplicates_at_relay,
    duplicates_at_target,
    refused_by_target,
    refused_by_epoch,
    acknowledged_beyond,
    spool_full,
    spool_on_disk,
    spool_disk_failed,
    compressed,
    staged,
    frames_from_staging,
    bitmap_modes,
    epochs,
    views
);

/// Runs one world. An error tells what was wrong, and the last steps that led there.
pub fn run(seed: u64, bug: Option<Bug>) -> Result<Counts, String> {
    let trace = Mutex::new(VecDeque::new());
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, bug, &trace)?;
        for _ in 0..STEPS {
            world.step()?;
        }
        world.heal()?;
        Ok(world.counts)
    }));
    let ended = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Err(format!("it panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
    });
    ended.map_err(|why| {
        let steps: Vec<String> = trace.into_inner().unwrap_or_default().into();
        format!(
            "seed {seed}: {why}\n  {}\nreplay: CONTINUUM_SEED={seed} cargo test -p continuum-tests --test path",
            steps.join("\n  ")
        )
    })
}

/// The content of all disks with a hash that costs only what changes.
#[derive(Clone)]
struct Image {
    disks: Vec<Vec<u8>>,
    hash: u64,
}

impl Image {
    fn new(disks: Vec<Vec<u8>>) -> Self {
        let mut image = Self { disks, hash: 0 };
        for disk in 0..image.disks.len() {
            image.toggle(disk, 0, image.disks[disk].len());
        }
        image
    }
    fn zeroes() -> Self {
        Self::new(SIZES.iter().map(|size| vec![0; *size]).collect())
    }
    fn of(disks: &[SimulatedDisk]) -> Self {
        Self::new(disks.iter().map(SimulatedDisk::bytes).collect())
    }
    fn toggle(&mut self, disk: usize, offset: usize, length: usize) {
        for page in offset / PAGE..=(offset + length - 1) / PAGE {
            let end = ((page + 1) * PAGE).min(self.disks[disk].len());
            let seed = (page * 2 + disk) as u64;
            self.hash ^= xxhash_rust::xxh3::xxh3_64_with_seed(&self.disks[disk][page * PAGE..end], seed);
        }
    }
    fn change(&mut self, disk: usize, offset: usize, length: usize, with: impl FnOnce(&mut [u8])) {
        self.toggle(disk, offset, length);
        with(&mut self.disks[disk][offset..offset + length]);
        self.toggle(disk, offset, length);
    }
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { disk, offset, data, .. } => {
                self.change(usize::from(disk.0), *offset as usize, data.len(), |out| {
                    out.copy_from_slice(data);
                });
            }
            Change::Zero { disk, offset, length, .. } => {
                self.change(usize::from(disk.0), *offset as usize, *length as usize, |out| out.fill(0));
            }
            Change::Barrier(_) | Change::Break => {}
        }
    }
    fn region(&self, disk: usize, region: u64) -> &[u8] {
        let start = (region * REGION_BYTES) as usize;
        &self.disks[disk][start..(start + REGION_BYTES as usize).min(self.disks[disk].len())]
    }
}

/// What the target must hold: the frames that it made durable, and what they amount to.
struct Expected {
    image: Image,
    legality: Legality,
    frames: BTreeMap<u64, Envelope>,
}

impl Expected {
    fn empty() -> Self {
        Self { image: Image::zeroes(), legality: Legality::default(), frames: BTreeMap::new() }
    }
    /// Applies a frame; hears of each legal position.
    fn take(
        &mut self,
        envelope: &Envelope,
        mut legal: impl FnMut(u64, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        let frame = plain(envelope)?;
        for record in frame.records() {
            self.image.apply(&record.change);
            if self.legality.after(&record.change) {
                legal(record.sequence.0, self.image.hash)?;
            }
        }
        self.frames.insert(envelope.head.identity.number.0, envelope.clone());
        Ok(())
    }
    /// The target holds no more than this.
    fn back_to(&mut self, number: u64) -> Result<(), String> {
        let frames = std::mem::take(&mut self.frames);
        *self = Self::empty();
        for (at, frame) in frames {
            if at <= number {
                self.take(&frame, |_, _| Ok(()))?;
            }
        }
        Ok(())
    }
}

fn plain(envelope: &Envelope) -> Result<continuum_model::feed::Frame, String> {
    let size = envelope.head.payload_len as usize;
    let payload = match envelope.codec {
        Codec::Plain => envelope.stored.clone(),
        Codec::Lz4 => lz4_flex::block::decompress(&envelope.stored, size).map_err(|e| e.to_string())?.into(),
        Codec::Zstd => zstd::bulk::decompress(&envelope.stored, size).map_err(|e| e.to_string())?.into(),
    };
    envelope.head.clone().open(payload).map_err(|error| error.to_string())
}

/// A guest's request under way. Its range is locked.
struct Request {
    disk: usize,
    offset: u64,
    data: Option<Vec<u8>>,
    length: u64,
    on_disk: bool,
}

/// One stream through the process server, from the agent that opened it to the target. It may outlive its agent's
/// interest in it, and the process server: what is on its way still arrives.
struct Line {
    number: u64,
    to_relay: VecDeque<Envelope>,
    relay: Option<Relay>,
    to_target: VecDeque<Envelope>,
    target_listens: bool,
    to_relay_acks: VecDeque<FrameNumber>,
    to_agent: VecDeque<FrameNumber>,
}

/// The process server's half of it.
struct Relay {
    order: Order,
    spool: Spool,
    sent: Sent,
}

/// The agent's end of the stream that it uses.
struct Stream {
    line: u64,
    stretch: u64,
    asked: FrameNumber,
}

/// The agent's own files, but for staging.
struct Files {
    maps: Vec<[SimulatedFile; 2]>,
    progress: SimulatedFile,
}

impl Files {
    fn new() -> Self {
        let file = || SimulatedFile::new(&Power::default());
        Self { maps: SIZES.iter().map(|_| [file(), file()]).collect(), progress: file() }
    }
    fn cut_power(&self, rng: &mut ChaCha8Rng) {
        let share = [0.0, 0.5, 1.0][rng.random_range(0..3)];
        for file in self.maps.iter().flatten().chain([&self.progress]) {
            file.cut_power(|| rng.random_bool(share));
        }
    }
}

fn open_feed(
    dir: &Path,
    files: &Files,
    disks: &[SimulatedDisk],
    (session, boot): (u64, u64),
    now: i64,
) -> (Feed, usize) {
    let boot = Boot { id: boot, at: Timestamp::from_micros(0) };
    let maps = disks.iter().zip(&files.maps).enumerate().map(|(index, (disk, kept))| {
        let (size, stamp) = (disk.size().unwrap(), disk.stamp().unwrap());
        let subject = Subject { disk: DiskId::from_bytes([index as u8 + 1; 16]), size, stamp };
        let kept = kept.clone().map(|file| Arc::new(file) as Arc<dyn Kept>);
        let (map, doubt) =
            ChangeMap::open_kept(kept, subject, Timestamp::from_micros(now), boot, SHAPE).unwrap();
        assert!(doubt.is_none() || session <= 1, "nothing happened that would be a reason for doubt");
        map
    });
    let maps = maps.collect();
    let (progress, believed) = Progress::open_kept(Arc::new(files.progress.clone()), MACHINE).unwrap();
    let (stage, found) = FileStage::open(&dir.join("staging"), MACHINE).unwrap();
    let count = found.len();
    let mut feed = Feed::new(MACHINE, session, maps, progress, Box::new(stage), found);
    if !believed {
        feed.doubt_all();
        settle(&mut feed);
        let store = feed.progress_to_store().unwrap();
        store.write().unwrap();
        feed.progress_stored(&store);
    }
    (feed, count)
}

fn settle(feed: &mut Feed) {
    for map in feed.maps_mut() {
        if let Some(settle) = map.next_settle() {
            let done = settle.run();
            map.settled(&settle, done);
        }
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn specs() -> Vec<DiskSpec> {
    let spec = |(index, size): (usize, &usize)| DiskSpec {
        index: DiskIndex(index as u16),
        id: DiskId::from_bytes([index as u8 + 1; 16]),
        size: *size as u64,
    };
    SIZES.iter().enumerate().map(spec).collect()
}

struct World<'t> {
    rng: ChaCha8Rng,
    trace: &'t Mutex<VecDeque<String>>,
    bug: Option<Bug>,
    counts: Counts,
    /// Of 20 disturbances so many do not happen.
    calm: u32,
    now: i64,
    // The source.
    dir: tempfile::TempDir,
    disks: Vec<SimulatedDisk>,
    files: Files,
    boot: u64,
    session: u64,
    feed: Feed,
    truth: Image,
    requests: Vec<Request>,
    injecting: Option<(usize, u64, Vec<u8>)>,
    history: HashMap<u64, u64>,
    stream: Option<Stream>,
    // Between.
    lines: Vec<Line>,
    opened: u64,
    pool: Pool,
    spool_works: bool,
    // The target.
    medium: Simulated,
    store: Store,
    expected: Expected,
    /// Whatever it was ever sent, by digest.
    offered: HashMap<u128, Envelope>,
    acknowledged: u64,
    // What the vault said, and who heard it.
    epoch: u64,
    agent_epoch: u64,
    relay_epoch: u64,
}

type Done = Result<(), String>;

impl<'t> World<'t> {
    fn new(seed: u64, bug: Option<Bug>, trace: &'t Mutex<VecDeque<String>>) -> Result<Self, String> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let dir = scratch();
        let disks: Vec<_> = SIZES.iter().map(|size| SimulatedDisk::new(*size)).collect();
        for disk in &disks {
            disk.write(rng.random_range(0..3) * 10_000, &vec![rng.random(); 50_000]).unwrap();
            disk.flush().unwrap();
        }
        let files = Files::new();
        let (feed, _) = open_feed(dir.path(), &files, &disks, (1, 1), 0);
        let medium = Simulated::default();
        let store = open_store(&medium).map_err(|error| error.to_string())?;
        store.fence(Epoch(1)).map_err(|error| error.to_string())?;
        let memory = if rng.random_bool(0.5) { 40_000 } else { 1 << 30 };
        Ok(Self {
            truth: Image::of(&disks),
            calm: rng.random_range(0..=20),
            pool: Pool::new(1 << 30, rng.random_range(60_000..400_000), memory),
            rng,
            trace,
            bug,
            counts: Counts::default(),
            now: 1_000,
            dir,
            disks,
            files,
            boot: 1,
            session: 1,
            feed,
            requests: Vec::new(),
            injecting: None,
            history: HashMap::new(),
            stream: None,
            lines: Vec::new(),
            opened: 0,
            spool_works: true,
            medium,
            store,
            expected: Expected::empty(),
            offered: HashMap::new(),
            acknowledged: 0,
            epoch: 1,
            agent_epoch: 1,
            relay_epoch: 1,
        })
    }

    fn told(&self, what: impl FnOnce() -> String) {
        let mut trace = self.trace.lock().unwrap();
        if trace.len() == 40 {
            trace.pop_front();
        }
        trace.push_back(what());
    }

    // The source, as the agent's threads drive it.

    /// Does something with the feed and notes the state that each new position stands for.
    fn act<T>(&mut self, act: impl FnOnce(&mut Feed, Timestamp) -> T) -> T {
        self.now += self.rng.random_range(-50..200);
        let before = self.feed.newest().0.0;
        let out = act(&mut self.feed, Timestamp::from_micros(self.now));
        for sequence in before + 1..=self.feed.newest().0.0 {
            self.history.insert(sequence, self.truth.hash);
        }
        out
    }

    fn is_free(&self, disk: usize, offset: u64, length: u64) -> bool {
        let apart = |at: u64, long: u64| at + long <= offset || offset + length <= at;
        let injects = self.injecting.as_ref();
        self.requests.iter().all(|request| request.disk != disk || apart(request.offset, request.length))
            && injects.is_none_or(|(on, at, data)| *on != disk || apart(*at, data.len() as u64))
    }

    fn begin_request(&mut self) {
        if self.requests.len() >= 4 {
            return;
        }
        let disk = self.rng.random_range(0..SIZES.len());
        let size = SIZES[disk] as u64;
        let zero = self.rng.random_ratio(1, 6);
        let most = if zero { 120_000 } else { 24_000 };
        let length = self.rng.random_range(1..most / 512) * 512;
        let span = if self.rng.random_bool(0.5) { REGION_BYTES } else { size };
        let offset = (self.rng.random_range(0..span) / 512 * 512).min(size - length);
        if !self.is_free(disk, offset, length) {
            return;
        }
        let noise = self.rng.random_bool(0.5);
        let data = (!zero).then(|| match noise {
            true => (0..length).map(|_| self.rng.random()).collect(),
            false => vec![self.rng.random(); length as usize],
        });
        while !self.act(|feed, _| feed.begin(DiskIndex(disk as u16), offset, length)) {
            let map = &mut self.feed.maps_mut()[disk];
            let record = map.next_record().unwrap();
            let done = record.settle().and_then(|()| record.write());
            map.recorded(&record, done);
        }
        self.requests.push(Request { disk, offset, data, length, on_disk: false });
    }

    fn go_on_with_request(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.requests.len());
        let request = &mut self.requests[at];
        if !request.on_disk {
            let disk = &self.disks[request.disk];
            match &request.data {
                Some(data) => disk.write(request.offset, data).unwrap(),
                None => disk.zero(request.offset, request.length, true).unwrap(),
            }
            request.on_disk = true;
            return;
        }
        let Request { disk, offset, data, length, .. } = self.requests.swap_remove(at);
        self.truth.change(disk, offset as usize, length as usize, |out| match &data {
            Some(data) => out.copy_from_slice(data),
            None => out.fill(0),
        });
        let index = DiskIndex(disk as u16);
        self.act(|feed, now| {
            let change = match &data {
                Some(data) => Applied::Write { data, sum: data_sum(index, offset, data) },
                None => Applied::Zero { length: length as u32 },
            };
            feed.applied(index, offset, change, now);
        });
    }

    fn inject(&mut self) {
        if let Some((disk, offset, data)) = self.injecting.take() {
            let index = DiskIndex(disk as u16);
            for (at, run) in data.chunks(REGION_BYTES as usize).enumerate() {
                let at = offset + at as u64 * REGION_BYTES;
                let content = if run.iter().all(|byte| *byte == 0) {
                    Applied::Zero { length: run.len() as u32 }
                } else {
                    Applied::Write { data: run, sum: data_sum(index, at, run) }
                };
                self.act(|feed, now| feed.inject(index, at, content, now));
            }
            return;
        }
        if let Compare::Slice(_) = self.feed.next_comparison() {
            // What comparing does is simulated beside the feed itself; here nobody answers.
            self.act(|feed, _| feed.stop_comparing("nobody answers"));
        }
        let sizes: Vec<u64> = SIZES.iter().map(|size| *size as u64).collect();
        match self.feed.next_injection(3 * REGION_BYTES, &sizes) {
            Some((disk, offset, length)) => {
                let index = usize::from(disk.0);
                if self.is_free(index, offset, length) {
                    let mut data = vec![0; length as usize];
                    self.disks[index].read(offset, &mut data).unwrap();
                    self.injecting = Some((index, offset, data));
                }
            }
            None if self.feed.injects() => {
                self.act(|feed, now| feed.finish_catching_up(now));
            }
            None => {}
        }
    }

    fn stage(&mut self) {
        let now = Timestamp::from_micros(self.now);
        if let Some((number, envelope, place)) = self.feed.next_to_stage(now, true) {
            place.write(&envelope).unwrap();
            self.feed.staged(number, place);
            self.counts.staged += 1;
        }
    }

    /// Flushes disks and stores cleared bits, as the keeper does.
    fn keep(&mut self) {
        settle(&mut self.feed);
        let store = self.feed.progress_to_store();
        self.feed.maps_mut().iter_mut().for_each(ChangeMap::before_flush);
        if let Some(store) = store {
            store.write().unwrap();
            self.feed.progress_stored(&store);
        }
        for (disk, map) in self.disks.iter().zip(self.feed.maps_mut()) {
            disk.flush().unwrap();
            map.after_flush();
        }
    }

    fn agent_dies(&mut self) {
        self.requests.clear();
        self.injecting = None;
        self.stream = None;
        match self.rng.random_range(0..4) {
            0 => {
                self.feed.seal();
                let now = Timestamp::from_micros(self.now);
                while let Some((number, envelope, place)) = self.feed.next_to_stage(now, true) {
                    place.write(&envelope).unwrap();
                    self.feed.staged(number, place);
                }
                settle(&mut self.feed);
                for (disk, map) in self.disks.iter().zip(self.feed.maps_mut()) {
                    disk.flush().unwrap();
                    map.before_flush();
                    map.after_flush();
                    map.close(disk.stamp().unwrap(), now).unwrap();
                }
                self.counts.agent_closes += 1;
            }
            1 => {
                let rng = &mut self.rng;
                for disk in &self.disks {
                    disk.cut_power(|| rng.random());
                }
                self.files.cut_power(rng);
                for entry in std::fs::read_dir(self.dir.path().join("staging")).unwrap() {
                    if self.rng.random() {
                        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
                        file.set_len(self.rng.random_range(0..=file.metadata().unwrap().len())).unwrap();
                    }
                }
                self.boot += 1;
                self.counts.agent_power_cuts += 1;
            }
            _ => self.counts.agent_kills += 1,
        }
        self.session += 1;
        let nowhere = scratch();
        let (other, _) = open_feed(nowhere.path(), &Files::new(), &self.disks, (0, 0), 0);
        drop(std::mem::replace(&mut self.feed, other));
        self.now += 10_000;
        let (feed, found) =
            open_feed(self.dir.path(), &self.files, &self.disks, (self.session, self.boot), self.now);
        self.feed = feed;
        self.counts.frames_from_staging += found as u64;
        self.truth = Image::of(&self.disks);
    }

    // The agent's sender.

    fn connect(&mut self) {
        // What a server checks when a stream is opened: the agent speaks for the epoch that everybody goes by.
        let state = self.store.state();
        if self.agent_epoch != self.relay_epoch || Epoch(self.agent_epoch) != state.epoch {
            return;
        }
        let Appended { number, digest, sequence, newest, .. } = state.last;
        let epoch = Epoch(self.agent_epoch);
        let hello = Hello { machine: MACHINE, epoch, session: self.session };
        let welcome = Welcome { number, digest, sequence, newest, epoch };
        let replica = ReplicaState { number, digest, sequence, newest };
        let before = self.feed.mode().0;
        let connected = self.act(|feed, now| feed.connect(epoch, replica, now)).unwrap();
        self.counts.continued +=
            u64::from(connected == continuum_capture::Connected::Continued && before == Mode::Data);
        self.counts.connections += 1;
        self.opened += 1;
        self.told(|| format!("stream {} begins behind frame {number}: {connected:?}", self.opened));
        self.lines.push(Line {
            number: self.opened,
            to_relay: VecDeque::new(),
            relay: Some(Relay {
                order: Order::after(&hello, &welcome),
                spool: Spool::new(self.pool.clone()),
                sent: Sent::after(&welcome),
            }),
            to_target: VecDeque::new(),
            target_listens: true,
            to_relay_acks: VecDeque::new(),
            to_agent: VecDeque::new(),
        });
        // Some of the old ones are still about.
        while self.lines.len() > 3 {
            self.lines.remove(0);
        }
        self.stream = Some(Stream { line: self.opened, stretch: self.feed.stretch(), asked: number });
    }

    fn agent_sends(&mut self) -> Done {
        let Some(stream) = &mut self.stream else {
            self.connect();
            return Ok(());
        };
        let Some(line) =
            self.lines.iter_mut().find(|line| line.number == stream.line && line.relay.is_some())
        else {
            self.stream = None;
            return Ok(());
        };
        if line.to_relay.len() >= UNDER_WAY {
            return Ok(());
        }
        let envelope = match self.feed.peek_frame(stream.stretch, stream.asked) {
            Peek::Memory(envelope) => (*envelope).clone(),
            Peek::Staged(place) => place.read().map_err(|error| error.to_string())?,
            Peek::Note(leaving) => {
                let left = leaving.write();
                self.feed.left(&leaving, left);
                return Ok(());
            }
            Peek::Idle => return Ok(()),
            Peek::Reset => {
                self.stream = None;
                return Ok(());
            }
        };
        stream.asked = envelope.head.identity.number;
        let again = self.rng.random_ratio(1, 12);
        for _ in 0..=u8::from(again) {
            let (arrived, _) = Envelope::decode(&envelope.encode()).map_err(|error| error.to_string())?;
            line.to_relay.push_back(arrived);
        }
        Ok(())
    }

    fn agent_hears(&mut self) -> Done {
        let Some(stream) = &self.stream else { return Ok(()) };
        let line = self.lines.iter_mut().find(|line| line.number == stream.line);
        let Some(number) = line.and_then(|line| line.to_agent.pop_front()) else { return Ok(()) };
        self.act(|feed, now| feed.acknowledge(number, now)).map_err(|error| format!("{error:?}"))?;
        self.check_bits()
    }

    // The process server.

    fn some_line(&mut self) -> Option<usize> {
        (!self.lines.is_empty()).then(|| {
            // The newest, mostly.
            let old = self.rng.random_ratio(1, 5);
            if old { self.rng.random_range(0..self.lines.len()) } else { self.lines.len() - 1 }
        })
    }

    fn relay_receives(&mut self) {
        let Some(at) = self.some_line() else { return };
        let line = &mut self.lines[at];
        let Some(relay) = &mut line.relay else { return };
        if line.to_relay.is_empty() {
            return;
        }
        if !relay.spool.has_room() {
            self.counts.spool_full += 1;
            return;
        }
        let Some(envelope) = line.to_relay.pop_front() else { return };
        let number = envelope.head.identity.number;
        match relay.order.take(&envelope.head) {
            Ok(Take::Next) => {}
            Ok(Take::Duplicate) => {
                self.counts.duplicates_at_relay += 1;
                return;
            }
            Err(_) => {
                line.relay = None;
                return;
            }
        }
        if let Err(envelope) = relay.spool.push_memory(Box::new(envelope)) {
            let dir = match self.spool_works {
                true => self.dir.path().join("spool"),
                // Below a file no folder can be made.
                false => Path::new("/proc/self/status/spool").to_owned(),
            };
            match relay.spool.push_to_disk(&dir, MACHINE, envelope) {
                Ok(()) => self.counts.spool_on_disk += 1,
                Err((_, envelope)) => {
                    self.counts.spool_disk_failed += 1;
                    // It would wait until there is room in memory. Here its stream ends, which it may as well.
                    drop(envelope);
                    line.relay = None;
                    return;
                }
            }
        }
        if self.bug == Some(Bug::RelayAcknowledges) {
            line.to_agent.push_back(number);
        }
    }

    fn relay_sends(&mut self) -> Done {
        let Some(at) = self.some_line() else { return Ok(()) };
        let line = &mut self.lines[at];
        let Some(relay) = &mut line.relay else { return Ok(()) };
        if line.to_target.len() >= UNDER_WAY {
            return Ok(());
        }
        let Some(place) = relay.spool.pop() else { return Ok(()) };
        let envelope = relay.spool.open(place).map_err(|error| error.to_string())?;
        let effort = [Effort::None, Effort::Fast, Effort::Small][self.rng.random_range(0..3)];
        let envelope = compress(envelope, effort);
        self.counts.compressed += u64::from(envelope.codec != Codec::Plain);
        relay.sent.sending(envelope.head.identity.number);
        let again = self.rng.random_ratio(1, 12);
        for _ in 0..=u8::from(again) {
            let (arrived, _) = Envelope::decode(&envelope.encode()).map_err(|error| error.to_string())?;
            line.to_target.push_back(arrived);
        }
        Ok(())
    }

    fn relay_acknowledges(&mut self) {
        let Some(at) = self.some_line() else { return };
        let line = &mut self.lines[at];
        let Some(relay) = &line.relay else { return };
        if let Some(number) = line.to_relay_acks.pop_front() {
            // A stream that was overtaken by another hears of frames that it did not carry: it ends.
            if relay.sent.check(number).is_err() {
                self.counts.acknowledged_beyond += 1;
                line.relay = None;
            } else {
                line.to_agent.push_back(number);
            }
        }
    }

    // The target.

    fn target_takes(&mut self) -> Done {
        let Some(at) = self.some_line() else { return Ok(()) };
        let newest = at + 1 == self.lines.len();
        let line = &mut self.lines[at];
        if !line.target_listens || line.to_target.is_empty() {
            return Ok(());
        }
        let count = self.rng.random_range(1..=line.to_target.len().min(4));
        let mut group: Vec<Envelope> = line.to_target.drain(..count).collect();
        let numbers: Vec<u64> = group.iter().map(|frame| frame.head.identity.number.0).collect();
        if self.bug == Some(Bug::AckBeforeDurable) {
            let last = numbers.last().copied().unwrap_or(0);
            line.to_relay_acks.push_back(FrameNumber(last));
        }
        if self.bug == Some(Bug::DuplicateTwice) {
            let last = self.store.state().last;
            for frame in &mut group {
                if frame.head.identity.number <= last.number {
                    *frame = once_more(frame, &last)?;
                    break;
                }
            }
        }
        if self.rng.random_ratio(self.disturbances(), 400) {
            self.medium.fault_at(1 + u64::from(self.rng.random_bool(0.5)), Fault::Error);
        }
        self.offered.extend(group.iter().map(|frame| (frame.head.digest, frame.clone())));
        let before = self.store.state().last.number;
        let number = self.lines[at].number;
        let appended = self.store.append(&group);
        self.medium.disarm();
        match appended {
            Ok(appended) => {
                self.told(|| format!("the target takes {numbers:?} of stream {number}"));
                self.counts.duplicates_at_target += appended.duplicates;
                self.counts.late_deliveries += u64::from(!newest && appended.number > before);
                for frame in group.iter().filter(|frame| frame.head.identity.number > before) {
                    self.take(frame)?;
                }
                if self.bug != Some(Bug::AckBeforeDurable) {
                    self.lines[at].to_relay_acks.push_back(appended.number);
                }
                self.acknowledged = self.acknowledged.max(appended.number.0);
                Ok(())
            }
            Err(error) => {
                self.told(|| format!("the target refuses {numbers:?} of stream {number}: {error}"));
                self.lines[at].target_listens = false;
                match error {
                    ReplicaError::EpochSuperseded { .. } => self.counts.refused_by_epoch += 1,
                    ReplicaError::Gap { .. } | ReplicaError::Chain(_) => self.counts.refused_by_target += 1,
                    ReplicaError::EpochUnknown { .. } => {}
                    _ => {
                        self.counts.target_io_errors += 1;
                        return self.target_starts();
                    }
                }
                Ok(())
            }
        }
    }

    /// What the target made durable just now.
    fn take(&mut self, frame: &Envelope) -> Done {
        let identity = frame.head.identity;
        if identity.epoch.0 < self.epoch {
            return Err(format!(
                "frame {} of epoch {} is taken in {}",
                identity.number, identity.epoch, self.epoch
            ));
        }
        let (history, counts) = (&self.history, &mut self.counts);
        self.expected.take(frame, |sequence, hash| {
            counts.legal_positions += 1;
            match history.get(&sequence) {
                Some(known) if *known == hash => Ok(()),
                _ => Err(format!("position {sequence} is offered, and is no state that the source had")),
            }
        })
    }

    fn target_starts(&mut self) -> Done {
        self.medium.disarm();
        self.store = open_store(&self.medium).map_err(|error| format!("the store does not open: {error}"))?;
        self.lines.iter_mut().for_each(|line| line.target_listens = false);
        let last = self.store.state().last.number.0;
        self.told(|| format!("the target starts with frame {last}"));
        if last < self.acknowledged {
            return Err(format!("frame {} was acknowledged, and {last} is the last", self.acknowledged));
        }
        // What was written, not acknowledged, and is there all the same, was read from frames that had been sent.
        if self.expected.frames.keys().next_back().is_some_and(|known| *known > last) {
            self.expected.back_to(last)?;
        }
        let known = self.expected.frames.keys().next_back().copied().unwrap_or(0);
        for frame in self.frames_behind(known)? {
            self.take(&frame)?;
        }
        self.check_view()?;
        self.check_bits()
    }

    /// Frames that the store holds beyond what is known: an append that failed after it wrote.
    fn frames_behind(&self, known: u64) -> Result<Vec<Envelope>, String> {
        let (mut found, last) = (Vec::new(), self.store.state().last);
        let (mut number, mut digest) = (last.number.0, last.digest);
        while number > known {
            let frame = self.offered.get(&digest).ok_or_else(|| format!("frame {number} was never sent"))?;
            found.push(frame.clone());
            (number, digest) = (number - 1, frame.head.identity.previous);
        }
        found.reverse();
        Ok(found)
    }

    fn target_dies(&mut self) -> Done {
        if self.rng.random_bool(0.6) {
            self.told(|| "the power of the target goes".into());
            let rng = &mut self.rng;
            self.medium.crash(|| rng.random());
            self.counts.target_power_cuts += 1;
        } else {
            self.told(|| "the target is killed".into());
            self.counts.target_kills += 1;
        }
        self.target_starts()
    }

    // The vault.

    fn next_epoch(&mut self) -> Done {
        self.epoch += 1;
        self.counts.epochs += 1;
        self.told(|| format!("epoch {}", self.epoch));
        if self.bug == Some(Bug::StaleEpochTaken) {
            return Ok(());
        }
        self.store.fence(Epoch(self.epoch)).map_err(|error| error.to_string())
    }

    fn epoch_is_heard(&mut self) {
        match self.rng.random_range(0..2) {
            0 => self.relay_epoch = self.epoch,
            _ if self.agent_epoch < self.epoch => {
                self.agent_epoch = self.epoch;
                self.stream = None;
            }
            _ => {}
        }
    }

    // Checks.

    fn check_bits(&self) -> Done {
        for (disk, map) in self.feed.maps().iter().enumerate() {
            let bits = map.bits();
            for region in (0..bits.len()).filter(|region| !bits.get(*region)) {
                if self.truth.region(disk, region) != self.expected.image.region(disk, region) {
                    return Err(format!("region {region} of disk {disk} is called clean, and differs"));
                }
            }
        }
        Ok(())
    }

    /// What the store serves at its last position is what its frames amount to.
    fn check_view(&mut self) -> Done {
        if !self.expected.legality.is_legal() {
            return Ok(());
        }
        let position = self.store.state().last.sequence;
        let view = self.store.open_view(position).map_err(|error| format!("view {position}: {error}"))?;
        for (disk, expected) in self.expected.image.disks.iter().enumerate() {
            let mut read = vec![0; expected.len()];
            view.read_at(DiskIndex(disk as u16), 0, &mut read).map_err(|error| error.to_string())?;
            if read != *expected {
                return Err(format!("disk {disk} as of {position} is not what was sent"));
            }
        }
        self.counts.views += 1;
        Ok(())
    }

    const fn disturbances(&self) -> u32 {
        20 - self.calm
    }

    fn network(&mut self) -> Done {
        match self.rng.random_range(0..7) {
            0 => self.agent_sends(),
            1 => {
                self.relay_receives();
                Ok(())
            }
            2 => self.relay_sends(),
            3 | 4 => self.target_takes(),
            5 => {
                self.relay_acknowledges();
                Ok(())
            }
            _ => self.agent_hears(),
        }
    }

    fn step(&mut self) -> Done {
        let roll = self.rng.random_range(0..1000);
        if roll >= 940 && !self.rng.random_ratio(self.disturbances(), 20) {
            return Ok(());
        }
        match roll {
            0..=139 => self.begin_request(),
            140..=309 => self.go_on_with_request(),
            310..=399 => self.inject(),
            400..=799 => {
                for _ in 0..3 {
                    self.network()?;
                }
            }
            800..=839 => self.act(|feed, _| feed.seal()),
            840..=869 => {
                self.act(|feed, now| feed.barrier(Barrier::time_mark(true), now));
            }
            870..=899 => self.stage(),
            900..=919 => self.keep(),
            920..=939 => self.epoch_is_heard(),
            940..=949 => {
                self.told(|| "the agent loses its stream".into());
                self.stream = None;
            }
            950..=956 => {
                self.told(|| "the process server dies".into());
                self.counts.relay_crashes += 1;
                self.lines.iter_mut().for_each(|line| line.relay = None);
            }
            957..=964 => {
                self.told(|| "the agent dies".into());
                self.agent_dies();
                self.check_bits()?;
            }
            965..=974 => self.target_dies()?,
            975..=979 => {
                // One way: what the target says is lost, and so the stream is in the end.
                self.lines.iter_mut().for_each(|line| {
                    line.to_relay_acks.clear();
                    line.to_agent.clear();
                });
            }
            980..=983 => self.next_epoch()?,
            984..=987 => self.spool_works = self.rng.random(),
            988..=991 => {
                let tight = self.rng.random_bool(0.5);
                self.act(|feed, _| feed.set_staging_max(if tight { 60_000 } else { 1 << 30 }));
            }
            992..=995 => self.act(|feed, _| feed.pause("the operator asked for it")),
            _ => self.act(|feed, now| feed.resume(now)),
        }
        if self.feed.mode().0 == Mode::Bitmap {
            self.counts.bitmap_modes += 1;
        }
        Ok(())
    }

    fn heal(&mut self) -> Done {
        self.told(|| "everything heals".into());
        self.medium.disarm();
        self.spool_works = true;
        while !self.requests.is_empty() {
            self.go_on_with_request();
        }
        self.act(|feed, _| feed.set_staging_max(1 << 30));
        self.act(|feed, now| feed.resume(now));
        (self.relay_epoch, self.agent_epoch) = (self.epoch, self.epoch);
        self.store.fence(Epoch(self.epoch)).map_err(|error| error.to_string())?;
        (self.stream, self.lines) = (None, Vec::new());
        self.calm = 20;
        for _ in 0..4_000 {
            self.act(|feed, _| feed.seal());
            self.inject();
            for _ in 0..7 {
                self.network()?;
            }
            let listens = |line: &Line| line.relay.is_some() && line.target_listens;
            if self.lines.last().is_some_and(|line| !listens(line)) {
                self.stream = None;
                self.lines.clear();
            }
            if self.stream.is_some()
                && self.feed.mode().0 == Mode::Data
                && self.feed.queue().is_empty()
                && !self.feed.has_open_frame()
            {
                break;
            }
        }
        let (mode, why) = self.feed.mode();
        if mode != Mode::Data || !self.feed.queue().is_empty() || self.feed.dirty_bytes() > 0 {
            return Err(format!("it does not get well again: {mode:?} ({why})"));
        }
        self.check_bits()?;
        let source = Image::of(&self.disks);
        if source.disks != self.expected.image.disks || !self.expected.legality.is_legal() {
            return Err("the replica differs from the source".into());
        }
        self.check_view()
    }
}

fn open_store(medium: &Simulated) -> Result<Store, ReplicaError> {
    let limits = Limits { segment_bytes: 300_000, ..Limits::default() };
    let cache = Cache::new(1 << 20);
    Store::open_limited(Arc::new(medium.clone()), MACHINE, &specs(), cache, limits).map(|(store, _)| store)
}

/// The records of a frame as another frame behind the last: what a target that counts wrongly would make of it.
fn once_more(envelope: &Envelope, last: &Appended) -> Result<Envelope, String> {
    let (mut builder, mut sequence, mut time) = (FrameBuilder::default(), last.sequence, last.newest);
    for mut record in plain(envelope)?.records() {
        sequence.0 += 1;
        time = Timestamp::from_micros(time.micros() + 1);
        (record.sequence, record.time) = (sequence, time);
        builder.push(&record);
    }
    let place = Identity { number: last.number.next(), previous: last.digest, ..envelope.head.identity };
    builder.finish(place).map(|frame| Envelope::plain(&frame)).ok_or_else(|| "an empty frame".to_owned())
}
