//! Sums of the newest state against those of a naive disk: through appends, folds, restarts, rot and lost files.

use bytes::Bytes;
use continuum_model::digest::{BlockSum, DiskDigest, FAN_OUT, Nodes, digest_of};
use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes as Size, DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use continuum_replica::medium::{Fault, Medium, Simulated};
use continuum_replica::{Affects, Cache, DiskSpec, ReplicaError, Store, Unreadable};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
/// Three nodes, of which the last has few blocks, and of those the last one is short.
const BLOCKS: u64 = 2 * FAN_OUT + 5;
const SIZE: u64 = BLOCKS * REGION_BYTES - 512;
const DISK: DiskIndex = DiskIndex(0);

/// A source, its replica, and what is in it.
struct World {
    medium: Simulated,
    store: Store,
    rng: ChaCha8Rng,
    /// Content of the blocks that are not zero, now and at every end of a frame.
    disk: Vec<Option<Vec<u8>>>,
    ends: Vec<(Sequence, Timestamp, Vec<BlockSum>)>,
    previous: u128,
    frames: u64,
    sequence: u64,
}

fn spec() -> DiskSpec {
    DiskSpec { index: DISK, id: DiskId::from_bytes([1; 16]), size: SIZE }
}

fn length(block: u64) -> usize {
    (SIZE - block * REGION_BYTES).min(REGION_BYTES) as usize
}

fn open(medium: &Simulated) -> Store {
    let opened = Store::open_with(Arc::new(medium.clone()), MACHINE, &[spec()], Cache::new(8 << 20));
    let (store, _) = opened.expect("the store opens");
    store.fence(Epoch(1)).expect("the epoch is recorded");
    store
}

impl World {
    fn new(seed: u64) -> Self {
        let medium = Simulated::default();
        Self {
            store: open(&medium),
            medium,
            rng: ChaCha8Rng::seed_from_u64(seed),
            disk: vec![None; BLOCKS as usize],
            ends: Vec::new(),
            previous: 0,
            frames: 0,
            sequence: 0,
        }
    }

    fn record(&mut self, builder: &mut FrameBuilder, change: Change) {
        self.sequence += 1;
        let time = Timestamp::from_micros(self.sequence as i64 * 1000);
        builder.push(&Record { sequence: Sequence(self.sequence), time, change });
    }

    /// A block as it is, sent again.
    fn write_whole(&mut self, block: u64) {
        let mut builder = FrameBuilder::default();
        let data = self.disk[block as usize].clone().unwrap_or_else(|| vec![0; length(block)]);
        let offset = block * REGION_BYTES;
        self.record(&mut builder, Change::Write { disk: DISK, offset, data: data.into(), injected: false });
        self.send(builder);
    }

    fn frame(&mut self, changes: usize) {
        let mut builder = FrameBuilder::default();
        if self.frames == 0 {
            self.record(&mut builder, Change::Barrier(Barrier::time_mark(true)));
        }
        for _ in 0..changes {
            let block = self.rng.random_range(0..BLOCKS);
            let at = 512 * self.rng.random_range(0..length(block) / 512);
            let end = (at + 512 * self.rng.random_range(1..200)).min(length(block));
            let zero = self.rng.random_range(0..5) == 0;
            let data = vec![if zero { 0 } else { self.rng.random() }; end - at];
            let content = self.disk[block as usize].get_or_insert_with(|| vec![0; length(block)]);
            content[at..end].copy_from_slice(&data);
            let offset = block * REGION_BYTES + at as u64;
            let change = if zero {
                Change::Zero { disk: DISK, offset, length: data.len() as u32, injected: false }
            } else {
                Change::Write { disk: DISK, offset, data: Bytes::from(data), injected: false }
            };
            self.record(&mut builder, change);
        }
        self.send(builder);
    }

    fn send(&mut self, mut builder: FrameBuilder) {
        self.frames += 1;
        let identity = Identity {
            machine: MACHINE,
            epoch: Epoch(1),
            number: FrameNumber(self.frames),
            session: 1,
            previous: self.previous,
        };
        let frame = builder.finish(identity).expect("records were pushed");
        self.previous = frame.head.digest;
        let time = Timestamp::from_micros(self.sequence as i64 * 1000);
        self.ends.push((Sequence(self.sequence), time, self.sums()));
        self.store.append(&[Envelope::plain(&frame)]).expect("it is appended");
    }

    fn sums(&self) -> Vec<BlockSum> {
        let sum = |(block, content): (usize, &Option<Vec<u8>>)| match content {
            Some(content) => BlockSum::of(content),
            None => BlockSum::of(&vec![0; length(block as u64)]),
        };
        self.disk.iter().enumerate().map(sum).collect()
    }

    fn restart(&mut self, cut: bool) {
        // The store must be gone before another takes its place.
        self.store = open(&Simulated::default());
        if cut {
            let rng = &mut self.rng;
            self.medium.crash(|| rng.random());
        }
        self.store = open(&self.medium);
    }

    /// The digests of some positions, and every sum at every level.
    fn check(&mut self, why: &str) {
        let oldest = self.store.state().oldest_legal.expect("something can be brought up");
        let last = self.ends.len() - 1;
        for at in [last, self.rng.random_range(0..=last)] {
            let (position, time, sums) = &self.ends[at];
            if *time < oldest {
                continue;
            }
            let found = self.store.digest_at(*position).unwrap_or_else(|error| panic!("{why}: {error}"));
            assert_eq!(found[0].digest, digest(sums), "{why}: at {position}");
        }
        let ask = |level, range: std::ops::Range<u64>| {
            let told = self.store.sums(DISK, &Nodes { level, range }, Size(u64::MAX));
            told.unwrap_or_else(|error| panic!("{why}: {error}"))
        };
        let blocks = ask(0, 0..BLOCKS);
        assert_eq!((blocks.frame, blocks.digest), (FrameNumber(self.frames), self.previous), "{why}");
        let mut level = self.ends[last].2.clone();
        assert_eq!(blocks.sums, level, "{why}");
        for above in 1..4 {
            level = level.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
            assert_eq!(ask(above, 0..level.len() as u64).sums, level, "{why}: level {above}");
        }
        assert_eq!(ask(0, 250..260).sums, self.ends[last].2[250..260], "{why}");
    }
}

fn digest(sums: &[BlockSum]) -> continuum_model::digest::Digest {
    let mut digest = DiskDigest::new(SIZE);
    sums.iter().for_each(|sum| digest.push(*sum));
    digest.finish()
}

#[test]
fn the_digest_is_the_naive_one_through_appends_folds_restarts_and_power_cuts() {
    for seed in 0..5 {
        let mut world = World::new(seed);
        for round in 0..25 {
            let why = format!("seed {seed} round {round}");
            let changes = world.rng.random_range(1..12);
            world.frame(changes);
            match world.rng.random_range(0..7) {
                0 => world.restart(false),
                1 => world.restart(true),
                2 => {
                    let at = world.rng.random_range(0..world.ends.len());
                    world.store.fold(world.ends[at].1, None).expect("it folds");
                }
                3 => {
                    let most = world.rng.random_range(1..4_000_000);
                    world.store.tend_digests(Size(most)).expect("it sums");
                }
                4 => {
                    let nth = world.rng.random_range(1..12);
                    world.medium.fault_at(nth, Fault::PowerCut);
                    let _ = world.store.tend_digests(Size(u64::MAX));
                    world.restart(true);
                }
                5 => {
                    let nth = world.rng.random_range(1..12);
                    world.medium.fault_at(nth, Fault::Error);
                    let _ = world.store.tend_digests(Size(u64::MAX));
                    world.medium.disarm();
                }
                _ => world.check(&why),
            }
        }
        world.check(&format!("seed {seed} at its end"));
    }
}

#[test]
fn what_did_not_change_is_not_read_again_not_even_after_a_restart() {
    let mut world = World::new(1);
    world.frame(400);
    let first = world.store.tend_digests(Size(u64::MAX)).expect("it sums");
    assert!(first.done && first.bytes[0] > 100 * REGION_BYTES, "{first:?}");
    let again = world.store.tend_digests(Size(u64::MAX)).expect("it sums");
    assert_eq!((again.bytes[0], again.done), (0, true));
    world.restart(true);
    let (position, _, sums) = world.ends.last().expect("a frame").clone();
    let found = world.store.digest_at(position).expect("it digests")[0];
    assert_eq!((found.digest, found.bytes_read), (digest(&sums), 0));
    // An earlier position costs what changed since, and so does a later one.
    world.frame(3);
    let before = world.store.digest_at(position).expect("it digests")[0];
    assert_eq!(before.digest, digest(&sums));
    assert!(before.bytes_read <= 6 * 2 * REGION_BYTES, "{before:?}");
    let newest = world.ends.last().expect("a frame");
    let after = world.store.digest_at(newest.0).expect("it digests")[0];
    assert_eq!((after.digest, after.bytes_read), (digest(&newest.2), 0));
    // In slices, and over a restart in the middle.
    world.medium.remove("digests/0").expect("it is removed");
    world.restart(false);
    let mut slices = 0;
    while !world.store.tend_digests(Size(1 << 20)).expect("it sums").done {
        slices += 1;
        // What was summed before stays so.
        world.restart(true);
        assert!(slices < 10);
    }
    assert_eq!(slices, 2, "a slice is a node at least");
    world.check("after slices");
}

#[test]
fn sums_of_another_history_or_a_forgotten_one_are_made_anew() {
    let mut world = World::new(2);
    world.frame(40);
    world.store.tend_digests(Size(u64::MAX)).expect("it sums");
    let stale = world.medium.content("digests/0").expect("it is there");
    for _ in 0..4 {
        world.frame(10);
    }
    let until = world.ends[3].1;
    while world.store.fold(until, None).expect("it folds") {}
    // The sums of a time that the journal does not reach back to any more.
    world.restart(false);
    world.medium.corrupt("digests/0", |bytes| *bytes = stale.clone());
    world.check("older than the base");
    let mut other = World::new(3);
    other.frame(40);
    let made = world.medium.content("digests/0").expect("it is there");
    other.medium.make_folder("digests").expect("a folder");
    other.medium.open("digests/0", true).expect("a file");
    other.medium.corrupt("digests/0", |bytes| *bytes = made.clone());
    other.check("of another replica");
}

#[test]
fn a_flip_of_any_byte_of_the_sums_changes_no_digest() {
    let mut world = World::new(4);
    world.frame(60);
    world.store.tend_digests(Size(u64::MAX)).expect("it sums");
    let whole = world.medium.content("digests/0").expect("it is there");
    // Some of every field of the header, of every node and of every page.
    let bytes =
        (0..72).step_by(3).chain((4096..4096 + 72).step_by(3)).chain((8192..whole.len()).step_by(1499));
    for at in bytes {
        world.restart(false);
        world.medium.corrupt("digests/0", |bytes| {
            bytes.clone_from(&whole);
            bytes[at] ^= 0x10;
        });
        let (position, _, sums) = world.ends.last().expect("a frame");
        let found = world.store.digest_at(*position).expect("it digests");
        assert_eq!(found[0].digest, digest(sums), "byte {at}");
        let told =
            world.store.sums(DISK, &Nodes { level: 0, range: 0..BLOCKS }, Size(u64::MAX)).expect("told");
        let wrong = told.sums.iter().zip(sums).filter(|(told, sum)| told != sum);
        assert!(wrong.clone().all(|(told, _)| *told == BlockSum::UNKNOWN), "byte {at}");
    }
}

#[test]
fn what_cannot_be_read_has_no_sum_and_no_digest() {
    let mut world = World::new(5);
    world.frame(30);
    world.frame(1);
    world.frame(1);
    let until = world.ends[0].1;
    while world.store.fold(until, None).expect("it folds") {}
    let summed = world.store.tend_digests(Size(u64::MAX)).expect("it sums");
    assert_eq!(summed.unreadable, 0);
    let (first, newest) = (world.ends[0].2.clone(), world.ends[2].clone());
    let in_base = |block: &u64| {
        let place = *block as usize;
        first[place] == newest.2[place] && first[place] != BlockSum::of(&vec![0; length(*block)])
    };
    let block = (0..BLOCKS).find(in_base).expect("one was written");
    world.medium.corrupt("base/0.img", |bytes| bytes[(block * REGION_BYTES) as usize + 700] ^= 1);
    // It rots after it was summed: the scrub finds that, and nobody vouches for it any more.
    assert_eq!(world.store.digest_at(newest.0).expect("from its sums")[0].digest, digest(&newest.2));
    while !world.store.scrub(Size(64 << 20)).expect("it looks").round_done {}
    assert_eq!(world.store.state().findings.len(), 1);
    for restart in [false, true] {
        if restart {
            world.restart(true);
        }
        let summed = world.store.tend_digests(Size(u64::MAX)).expect("the rest is summed");
        assert_eq!(summed.unreadable, 1, "{summed:?}");
        let nodes = Nodes { level: 0, range: 0..BLOCKS };
        let told = world.store.sums(DISK, &nodes, Size(u64::MAX)).expect("told").sums;
        let unknown: Vec<u64> = (0..BLOCKS).filter(|at| told[*at as usize] == BlockSum::UNKNOWN).collect();
        assert_eq!(unknown, [block]);
        let top = world.store.sums(DISK, &Nodes { level: 3, range: 0..1 }, Size(0)).expect("told");
        assert_eq!(top.sums, [BlockSum::UNKNOWN]);
        assert!(matches!(world.store.digest_at(newest.0), Err(ReplicaError::Damaged { .. })));
        assert_eq!(world.store.unreadable(), [Unreadable { disk: DISK, blocks: block..block + 1 }]);
    }
    // The source sends the block again: the newest state is whole, and older ones are told to need what is damaged.
    world.write_whole(block);
    assert!(world.store.tend_digests(Size(u64::MAX)).expect("it sums").done);
    assert_eq!(world.store.unreadable(), []);
    let mended = world.ends.last().expect("a frame").clone();
    assert_eq!(world.store.digest_at(mended.0).expect("it digests")[0].digest, digest(&mended.2));
    while !world.store.scrub(Size(64 << 20)).expect("it looks").round_done {}
    let findings = world.store.state().findings;
    let until = findings.iter().map(|finding| match finding.affects {
        Affects::Moments { until, .. } => until,
        Affects::Nothing | Affects::Overlay => None,
    });
    assert_eq!(until.collect::<Vec<_>>(), [Some(mended.1)], "{findings:?}");
}

#[test]
fn a_stretch_that_no_disk_has_is_refused() {
    let world = World::new(6);
    for (level, range) in [(0, 0..BLOCKS + 1), (1, 3..4), (4, 0..1), (0, 0..5000), (9, 0..0)] {
        let asked = world.store.sums(DISK, &Nodes { level, range: range.clone() }, Size(0));
        assert!(matches!(asked, Err(ReplicaError::Outside { .. })), "{level} {range:?}");
    }
    assert!(matches!(
        world.store.sums(DiskIndex(3), &Nodes { level: 0, range: 0..1 }, Size(0)),
        Err(ReplicaError::NoDisk(_))
    ));
    assert_eq!(digest_of(0, &[]), DiskDigest::new(0).finish());
}
