//! A source that remembers every state it was in, at every legal position.

use bytes::Bytes;
use continuum_model::feed::{Barrier, BarrierKind, Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::{Cache, DiskSpec, Limits, Medium, ReplicaError, Store};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::Arc;

pub const MACHINE: MachineId = MachineId::from_bytes([7; 16]);

/// Sizes of the disks; the last block of the second is a short one.
pub const SIZES: [u64; 2] = [136 << 10, 70 << 10];

pub fn disks() -> Vec<DiskSpec> {
    let spec = |(index, size): (usize, &u64)| DiskSpec {
        index: DiskIndex(index as u16),
        id: DiskId::from_bytes([index as u8 + 1; 16]),
        size: *size,
    };
    SIZES.iter().enumerate().map(spec).collect()
}

#[allow(dead_code, reason = "not every test opens a store with the limits that stores have")]
pub fn open(medium: impl Medium + 'static) -> Store {
    open_limited(medium, Limits::default())
}

/// With segments that are soon full, for example, so that there are several.
pub fn open_limited(medium: impl Medium + 'static, limits: Limits) -> Store {
    let cache = Cache::new(1 << 20);
    let (store, _) =
        Store::open_limited(Arc::new(medium), MACHINE, &disks(), cache, limits).expect("it opens");
    store.fence(Epoch(1)).expect("the epoch is recorded");
    store
}

/// A source that remembers every state it was in, at every legal position.
pub struct Source {
    rng: ChaCha8Rng,
    disks: Vec<Vec<u8>>,
    /// By position: the moment, and every disk.
    pub states: BTreeMap<Sequence, (Timestamp, Vec<Vec<u8>>)>,
    /// What was made so far.
    pub frames: Vec<Envelope>,
    builder: FrameBuilder,
    sequence: u64,
    /// The newest moment, in µs.
    pub time: i64,
    /// Between these positions history may have been thinned.
    pub thinned: Vec<(Sequence, Sequence)>,
}

impl Source {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            disks: SIZES.iter().map(|size| vec![0; *size as usize]).collect(),
            states: BTreeMap::new(),
            frames: Vec::new(),
            builder: FrameBuilder::default(),
            sequence: 0,
            time: 1_000_000,
            thinned: Vec::new(),
        }
    }

    fn push(&mut self, change: Change, legal: bool) {
        self.sequence += 1;
        self.time += self.rng.random_range(1..1000);
        let time = Timestamp::from_micros(self.time);
        match &change {
            Change::Write { disk, offset, data, .. } => {
                self.disks[usize::from(disk.0)][*offset as usize..][..data.len()].copy_from_slice(data);
            }
            Change::Zero { disk, offset, length, .. } => {
                self.disks[usize::from(disk.0)][*offset as usize..][..*length as usize].fill(0);
            }
            Change::Barrier(_) | Change::Break => {}
        }
        self.builder.push(&Record { sequence: Sequence(self.sequence), time, change });
        if legal {
            self.states.insert(Sequence(self.sequence), (time, self.disks.clone()));
        }
    }

    pub fn frame(&mut self, records: usize) {
        if self.frames.is_empty() {
            self.push(Change::Barrier(Barrier::time_mark(true)), true);
        }
        for _ in 0..records {
            let disk = self.rng.random_range(0..2usize);
            let length = 512 * self.rng.random_range(1..24u64);
            let offset = 512 * self.rng.random_range(0..=(SIZES[disk] - length) / 512);
            let change = match self.rng.random_range(0..10) {
                0 => Change::Zero {
                    disk: DiskIndex(disk as u16),
                    offset,
                    length: length as u32,
                    injected: false,
                },
                1 => Change::Barrier(Barrier {
                    kind: BarrierKind::Crash,
                    consistent: true,
                    point: Some(PointId::from_bytes(self.rng.random())),
                    name: String::new(),
                }),
                _ => {
                    let fill: u8 = self.rng.random();
                    let data = (0..length).map(|at| fill.wrapping_add((at / 7) as u8)).collect::<Vec<_>>();
                    Change::Write { disk: DiskIndex(disk as u16), offset, data: data.into(), injected: false }
                }
            };
            self.push(change, true);
        }
        let identity = Identity {
            machine: MACHINE,
            epoch: Epoch(1),
            number: FrameNumber(self.frames.len() as u64 + 1),
            session: 1,
            previous: self.frames.last().map_or(0, |frame| frame.head.digest),
        };
        let frame = self.builder.finish(identity).expect("records were pushed");
        let mut envelope = Envelope::plain(&frame);
        // As a process server would.
        if self.rng.random_range(0..2) == 0 {
            let packed = zstd::bulk::compress(&frame.payload, 1).expect("compresses");
            if packed.len() < frame.payload.len() {
                (envelope.codec, envelope.stored) = (Codec::Zstd, Bytes::from(packed));
            }
        }
        self.frames.push(envelope);
    }

    #[allow(dead_code, reason = "not every test thins")]
    /// Thins whatever the store would, one state of each bucket of so many µs up to a moment.
    pub fn thin(&mut self, store: &Store, until: i64, step: i64) -> Result<usize, ReplicaError> {
        let bucket = |time: Timestamp| (time.micros() <= until).then(|| (1, time.micros() / step));
        let mut count = 0;
        while let Some(stretch) = store.thinnable(&bucket) {
            self.thinned.push((stretch.after.0, stretch.to.0));
            assert!(store.thin(&stretch, &|| false)?, "nothing is in its way");
            count += 1;
        }
        Ok(count)
    }

    #[allow(dead_code, reason = "the zoo has no source any more")]
    /// Every position that the store says it can bring up equals the state of that moment.
    pub fn check(&self, store: &Store, acked: Sequence, why: &str) {
        let state = store.state();
        assert!(state.last.sequence >= acked, "{why}: acknowledged records are gone");
        let (Some(oldest), Some(newest)) = (state.oldest_legal, state.newest_legal) else {
            assert!(acked == Sequence(0), "{why}: nothing can be brought up");
            return;
        };
        for (position, (time, disks)) in self.states.iter().filter(|(position, _)| position.0 % 5 == 1) {
            let thinned = |(after, to): &(Sequence, Sequence)| after < position && position < to;
            if *time < oldest || *time > newest || self.thinned.iter().any(thinned) {
                continue;
            }
            let resolved =
                store.resolve(&PointChoice::Moment(*time)).unwrap_or_else(|error| panic!("{why}: {error}"));
            assert_eq!((resolved.position, resolved.time), (*position, *time), "{why}");
            let view = store.open_view(*position).unwrap_or_else(|error| panic!("{why}: {error}"));
            for (disk, expected) in disks.iter().enumerate() {
                let mut out = vec![0xee; expected.len()];
                view.read_at(DiskIndex(disk as u16), 0, &mut out)
                    .unwrap_or_else(|error| panic!("{why}: {error}"));
                assert!(out == *expected, "{why}: disk {disk} at {position} is not what it was");
            }
        }
    }
}
