//! A target in a thread: connects, takes frames, checks them, applies them, acknowledges. What it holds survives
//! the source, as a replica does.

use continuum_capture::{Connected, Next, ReplicaState, ReplicaSums, Source};
use continuum_model::digest::{BlockSum, Digest, DiskDigest, FAN_OUT, Nodes};
use continuum_model::feed::record::Legality;
use continuum_model::feed::{Change, Envelope, Record};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the target holds.
pub struct Held {
    pub images: Vec<Vec<u8>>,
    pub state: ReplicaState,
    pub legality: Legality,
    /// Every record, in order, when asked for.
    pub records: Option<Vec<Record>>,
    pub connects: Vec<Connected>,
    pub breaks: u64,
    pub injected_bytes: u64,
    pub frame_bytes: u64,
}

impl Held {
    pub fn new(sizes: &[u64]) -> Self {
        Self {
            images: sizes.iter().map(|size| vec![0; *size as usize]).collect(),
            state: ReplicaState {
                number: FrameNumber(0),
                digest: 0,
                sequence: Sequence(0),
                newest: Timestamp::from_micros(0),
            },
            legality: Legality::default(),
            records: None,
            connects: Vec::new(),
            breaks: 0,
            injected_bytes: 0,
            frame_bytes: 0,
        }
    }

    /// Checks and applies a frame.
    pub fn take(&mut self, envelope: &Envelope) {
        let frame = envelope.head.clone().open(envelope.stored.clone()).unwrap();
        let identity = frame.head.identity;
        assert_eq!(identity.number, self.state.number.next(), "a gap in the frames");
        assert_eq!(identity.previous, self.state.digest, "the chain is broken");
        assert!(frame.head.first_sequence > self.state.sequence, "sequences go back");
        assert!(frame.head.first_time > self.state.newest, "moments go back");
        self.frame_bytes += envelope.len() as u64;
        for record in frame.records() {
            apply(&mut self.images, &record.change);
            match &record.change {
                Change::Break => self.breaks += 1,
                Change::Write { data, injected: true, .. } => self.injected_bytes += data.len() as u64,
                _ => {}
            }
            self.legality.after(&record.change);
            if let Some(records) = &mut self.records {
                records.push(record);
            }
        }
        self.state = ReplicaState {
            number: identity.number,
            digest: frame.head.digest,
            sequence: frame.head.last_sequence(),
            newest: frame.head.last_time,
        };
    }
}

pub fn apply(images: &mut [Vec<u8>], change: &Change) {
    match change {
        Change::Write { disk, offset, data, .. } => {
            images[usize::from(disk.0)][*offset as usize..][..data.len()].copy_from_slice(data);
        }
        Change::Zero { disk, offset, length, .. } => {
            images[usize::from(disk.0)][*offset as usize..][..*length as usize].fill(0);
        }
        Change::Barrier(_) | Change::Break => {}
    }
}

pub fn digest_of(image: &[u8]) -> Digest {
    let mut digest = DiskDigest::new(image.len() as u64);
    image.chunks(REGION_BYTES as usize).for_each(|block| digest.push(BlockSum::of(block)));
    digest.finish()
}

/// The sums of what a target holds.
pub fn sums_of(held: &Held, disk: DiskIndex, nodes: &Nodes) -> ReplicaSums {
    let blocks = held.images[usize::from(disk.0)].chunks(REGION_BYTES as usize);
    let mut level: Vec<BlockSum> = blocks.map(BlockSum::of).collect();
    for _ in 0..nodes.level {
        level = level.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
    }
    let sums = level[nodes.range.start as usize..nodes.range.end as usize].to_vec();
    ReplicaSums { behind: (held.state.number, held.state.digest), sums }
}

struct Shared {
    held: Mutex<Held>,
    moved: Condvar,
    stop: AtomicBool,
    deaf: AtomicBool,
}

/// A target that is connected to a source for as long as it lives.
pub struct Target {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Target {
    pub fn connect(source: &Arc<Source>, held: Held) -> Self {
        Self::connect_and_answer(source, held, |_, _, _| Err("this target tells no sums".into()))
    }

    /// The same with somebody who answers what the source asks of the replica's sums.
    pub fn connect_and_answer(
        source: &Arc<Source>,
        held: Held,
        answer: impl Fn(&Held, DiskIndex, &Nodes) -> Result<ReplicaSums, String> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            held: Mutex::new(held),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
        });
        let asked = shared.clone();
        source.set_ask_replica(move |disk, nodes| answer(&asked.held.lock().unwrap(), disk, nodes));
        let (source, of) = (source.clone(), shared.clone());
        let thread = std::thread::spawn(move || run(&source, &of));
        Self { shared, thread: Some(thread) }
    }

    /// Takes no frames, or takes them again.
    pub fn set_deaf(&self, deaf: bool) {
        self.shared.deaf.store(deaf, Ordering::Release);
    }

    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.shared.held.lock().unwrap()
    }

    /// Waits until what it holds is as wanted.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Held) -> bool) -> MutexGuard<'_, Held> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut held = self.held();
        while !wanted(&held) {
            let left =
                deadline.checked_duration_since(Instant::now()).unwrap_or_else(|| panic!("never: {what}"));
            held = self.shared.moved.wait_timeout(held, left.min(Duration::from_millis(200))).unwrap().0;
        }
        held
    }

    /// Waits until it stands at a legal position that includes everything up to now.
    pub fn wait_for_all(&self, source: &Source) -> MutexGuard<'_, Held> {
        let deadline = Instant::now() + Duration::from_secs(60);
        // What is in the feed when the mode is `data` and the position legal is all there is.
        while source.status().mode != continuum_model::health::Mode::Data {
            assert!(Instant::now() < deadline, "never in data mode: {}", source.status().reason);
            std::thread::yield_now();
        }
        let newest = source.status().newest.0;
        self.wait_for("caught up", |held| held.state.sequence >= newest && held.legality.is_legal())
    }

    /// Disconnects and gives back what it holds.
    pub fn disconnect(mut self) -> Held {
        self.shared.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        let sizes: Vec<u64> = self.held().images.iter().map(|image| image.len() as u64).collect();
        std::mem::replace(&mut *self.held(), Held::new(&sizes))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the target died");
        }
    }
}

fn run(source: &Source, shared: &Shared) {
    while !shared.stop.load(Ordering::Acquire) {
        let state = shared.held.lock().unwrap().state;
        let (connected, stretch) = source.connect(Epoch(1), state).unwrap();
        shared.held.lock().unwrap().connects.push(connected);
        let mut after = state.number;
        loop {
            if shared.stop.load(Ordering::Acquire) {
                return;
            }
            if shared.deaf.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_millis(5));
                continue;
            }
            match source.next_frame(stretch, after, Duration::from_millis(20)) {
                Next::Frame(envelope) => {
                    let mut held = shared.held.lock().unwrap();
                    held.take(&envelope);
                    after = held.state.number;
                    drop(held);
                    source.acknowledged(after).unwrap();
                    shared.moved.notify_all();
                }
                Next::Idle => shared.moved.notify_all(),
                Next::Reset => break,
            }
        }
    }
}
