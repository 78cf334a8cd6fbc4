//! Doubt about a replica that is nearly right: what it holds already does not travel, and what differs always does.

mod common;

use common::scratch;
use common::target::{Held, Target, digest_of, sums_of};
use continuum_capture::disk::SourceDisk;
use continuum_capture::simulated::SimulatedDisk;
use continuum_capture::source::{SourceConfig, SourceSpec, Timing};
use continuum_capture::{ReplicaSums, Source};
use continuum_model::digest::{BlockSum, Nodes};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::units::{DiskIndex, FrameNumber, REGION_BYTES};
use continuum_model::world::{SystemClock, SystemEntropy};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

const REGION: usize = REGION_BYTES as usize;
/// More than one node of sums; the last region is a short one.
const REGIONS: usize = 300;
const SIZE: usize = REGIONS * REGION - 512;

fn open(dir: &Path, disk: &SimulatedDisk) -> Arc<Source> {
    let spec = SourceSpec { id: DiskId::from_bytes([1; 16]), disk: Box::new(disk.clone()) };
    let config =
        SourceConfig { machine: MachineId::from_bytes([7; 16]), dir: dir.join("state"), disks: vec![spec] };
    let timing = Timing { frame_age: Duration::from_millis(20), time_mark: Duration::from_millis(50) };
    Arc::new(Source::open_with(config, timing, Arc::new(SystemClock::default()), &mut SystemEntropy).unwrap())
}

/// A machine that was replicated whole, and whose agent then lost what it knew of the replica.
struct Doubted {
    dir: tempfile::TempDir,
    disk: SimulatedDisk,
    held: Held,
    rng: ChaCha8Rng,
}

impl Doubted {
    fn new(seed: u64) -> Self {
        let dir = scratch();
        let disk = SimulatedDisk::new(SIZE);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for region in (0..REGIONS - 1).filter(|region| region % 7 != 3) {
            let data = vec![rng.random_range(1..=255u8); REGION];
            disk.write((region * REGION) as u64, &data).unwrap();
        }
        let source = open(dir.path(), &disk);
        let target = Target::connect(&source, Held::new(source.sizes()));
        drop(target.wait_for_all(&source));
        let mut held = target.disconnect();
        source.close().unwrap();
        drop(source);
        std::fs::remove_file(dir.path().join("state/progress")).unwrap();
        (held.injected_bytes, held.frame_bytes) = (0, 0);
        Self { dir, disk, held, rng }
    }

    /// Changes so many regions behind everybody's back; tells how many bytes are not zero in them now.
    fn change(&mut self, regions: usize) -> u64 {
        let mut changed = std::collections::BTreeSet::new();
        while changed.len() < regions {
            changed.insert(self.rng.random_range(0..REGIONS - 1));
        }
        for region in changed {
            self.disk.write((region * REGION + 777) as u64, b"other").unwrap();
        }
        (regions * REGION) as u64
    }
}

fn same(source: &Source, disk: &SimulatedDisk, held: &Held) {
    let mut now = vec![0; SIZE];
    disk.read(0, &mut now).unwrap();
    assert!(digest_of(&now) == digest_of(&held.images[0]), "the replica is not what the source is");
    assert_eq!(source.status().totals.round_done, SIZE as u64);
}

#[test]
fn only_what_differs_travels() {
    for (seed, regions) in [(1, 0), (2, 1), (3, 30)] {
        let mut machine = Doubted::new(seed);
        let differs = machine.change(regions);
        let source = open(machine.dir.path(), &machine.disk);
        assert!(source.status().doubt.is_some());
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let target = Target::connect_and_answer(&source, machine.held, move |held, disk, nodes| {
            count.fetch_add(nodes.range.end - nodes.range.start, Ordering::Relaxed);
            Ok(sums_of(held, disk, nodes))
        });
        let held = target.wait_for_all(&source);
        assert_eq!(held.injected_bytes, differs, "{regions} regions");
        assert!(held.frame_bytes < differs + 20_000, "{} for {differs}", held.frame_bytes);
        same(&source, &machine.disk, &held);
        let totals = source.status().totals;
        assert_eq!((totals.equal, totals.injected), (SIZE as u64 - differs, differs));
        assert!(asked.load(Ordering::Relaxed) <= 3 + REGIONS as u64, "sums that were asked for");
        assert!(regions > 0 || asked.load(Ordering::Relaxed) == 1, "one node says that all is equal");
        drop(held);
        // The map is clean: nothing more is sent after a restart.
        let held = target.disconnect();
        source.close().unwrap();
        drop(source);
        let source = open(machine.dir.path(), &machine.disk);
        assert_eq!((source.status().dirty_bytes, source.status().doubt), (0, None));
        drop(held);
    }
}

#[test]
fn a_target_that_cannot_tell_or_tells_nonsense_gets_everything() {
    type Answer = fn(&Held, DiskIndex, &Nodes) -> Result<ReplicaSums, String>;
    let answers: [(&str, Answer); 7] = [
        ("no answer", |_, _, _| Err("it does not answer".into())),
        ("knows nothing", |held, disk, nodes| {
            let mut told = sums_of(held, disk, nodes);
            told.sums.fill(BlockSum::UNKNOWN);
            Ok(told)
        }),
        ("all sums wrong", |held, disk, nodes| {
            let mut told = sums_of(held, disk, nodes);
            told.sums.iter_mut().for_each(|sum| sum.0 ^= 1 << 99);
            Ok(told)
        }),
        ("too few", |held, disk, nodes| {
            let mut told = sums_of(held, disk, nodes);
            told.sums.pop();
            Ok(told)
        }),
        ("of an older state", |held, disk, nodes| {
            let told = sums_of(held, disk, nodes);
            Ok(ReplicaSums { behind: (FrameNumber(held.state.number.0 - 1), 5), ..told })
        }),
        ("of another history", |held, disk, nodes| {
            let told = sums_of(held, disk, nodes);
            Ok(ReplicaSums { behind: (told.behind.0, told.behind.1 ^ 1), ..told })
        }),
        ("of a frame that never left", |held, disk, nodes| {
            let told = sums_of(held, disk, nodes);
            Ok(ReplicaSums { behind: (FrameNumber(told.behind.0.0 + 1000), told.behind.1), ..told })
        }),
    ];
    for (seed, (why, answer)) in answers.into_iter().enumerate() {
        let mut machine = Doubted::new(seed as u64);
        machine.change(5);
        let source = open(machine.dir.path(), &machine.disk);
        let target = Target::connect_and_answer(&source, machine.held, answer);
        let held = target.wait_for_all(&source);
        same(&source, &machine.disk, &held);
        let totals = source.status().totals;
        assert_eq!((totals.equal, totals.injected), (0, SIZE as u64), "{why}");
    }
}

#[test]
fn single_wrong_sums_skip_nothing_that_differs() {
    for seed in 0..4u64 {
        let mut machine = Doubted::new(seed);
        let differs = machine.change(20);
        let source = open(machine.dir.path(), &machine.disk);
        let random = Mutex::new(ChaCha8Rng::seed_from_u64(seed));
        let target = Target::connect_and_answer(&source, machine.held, move |held, disk, nodes| {
            let mut told = sums_of(held, disk, nodes);
            let mut random = random.lock().unwrap();
            for sum in &mut told.sums {
                match random.random_range(0..10) {
                    0 => sum.0 ^= 1 << random.random_range(0..128),
                    1 => *sum = BlockSum::UNKNOWN,
                    2 => *sum = BlockSum(random.random()),
                    _ => {}
                }
            }
            Ok(told)
        });
        let held = target.wait_for_all(&source);
        same(&source, &machine.disk, &held);
        assert!(held.injected_bytes >= differs);
    }
}

#[test]
fn a_write_during_the_comparison_is_never_skipped() {
    let mut machine = Doubted::new(9);
    machine.change(2);
    let source = open(machine.dir.path(), &machine.disk);
    let writer: Mutex<Weak<Source>> = Mutex::new(Arc::downgrade(&source));
    let wrote = AtomicBool::new(false);
    let target = Target::connect_and_answer(&source, machine.held, move |held, disk, nodes| {
        let told = sums_of(held, disk, nodes);
        // The source has summed everything by now. Of one region the content changes, of another it stays what it
        // was; neither is what was summed.
        if nodes.level == 0 && !wrote.swap(true, Ordering::Relaxed) {
            let device = writer.lock().unwrap().upgrade().unwrap().device(0).unwrap();
            device.write(40 * REGION_BYTES + 5 * 512, &[0xee; 512], false).unwrap();
            let mut same = vec![0; 512];
            device.read(50 * REGION_BYTES, &mut same).unwrap();
            device.write(50 * REGION_BYTES, &same, false).unwrap();
        }
        Ok(told)
    });
    let held = target.wait_for_all(&source);
    same(&source, &machine.disk, &held);
    assert_eq!(held.injected_bytes, 4 * REGION_BYTES);
}

#[test]
fn what_the_replica_lost_is_sent_again_and_nothing_else() {
    let machine = Doubted::new(40);
    let source = open(machine.dir.path(), &machine.disk);
    let target =
        Target::connect_and_answer(&source, machine.held, |held, disk, nodes| Ok(sums_of(held, disk, nodes)));
    drop(target.wait_for_all(&source));
    let last = REGIONS as u64;
    for lost in [0..last + 1, 5..5, last..last + 1, u64::MAX - 1..u64::MAX] {
        assert!(source.send_again(&[(DiskIndex(0), 1..2), (DiskIndex(0), lost)]).is_err());
    }
    assert!(source.send_again(&[(DiskIndex(1), 0..1)]).is_err());
    {
        let mut held = target.held();
        for region in [7, 8, 200] {
            held.images[0][region * REGION..(region + 1) * REGION].fill(0x5a);
        }
    }
    source.send_again(&[(DiskIndex(0), 7..9), (DiskIndex(0), 200..201)]).unwrap();
    let held = target.wait_for("sent again", |held| held.injected_bytes > 0 && held.legality.is_legal());
    assert_eq!(held.injected_bytes, 3 * REGION_BYTES);
    let mut now = vec![0; SIZE];
    machine.disk.read(0, &mut now).unwrap();
    assert!(digest_of(&now) == digest_of(&held.images[0]));
}

#[test]
fn under_writes_all_the_while_the_replica_ends_up_right() {
    for seed in 0..3u64 {
        let mut machine = Doubted::new(seed + 20);
        machine.change(10);
        let source = open(machine.dir.path(), &machine.disk);
        let done = AtomicBool::new(false);
        let taken = std::mem::replace(&mut machine.held, Held::new(source.sizes()));
        let held = std::thread::scope(|scope| {
            for writer in 0..2 {
                let (source, done) = (&source, &done);
                scope.spawn(move || {
                    let device = source.device(0).unwrap();
                    let mut rng = ChaCha8Rng::seed_from_u64(seed * 10 + writer);
                    while !done.load(Ordering::Acquire) {
                        let length = 512 * rng.random_range(1..40u64);
                        let offset = 512 * rng.random_range(0..(SIZE as u64 - length) / 512);
                        device.write(offset, &vec![rng.random(); length as usize], false).unwrap();
                    }
                });
            }
            let target = Target::connect_and_answer(&source, taken, |held, disk, nodes| {
                Ok(sums_of(held, disk, nodes))
            });
            drop(target.wait_for("caught up", |held| held.breaks > 0 && held.legality.is_legal()));
            done.store(true, Ordering::Release);
            target.disconnect()
        });
        let target = Target::connect(&source, held);
        let held = target.wait_for_all(&source);
        let mut now = vec![0; SIZE];
        machine.disk.read(0, &mut now).unwrap();
        assert!(digest_of(&now) == digest_of(&held.images[0]), "seed {seed}");
    }
}

#[test]
fn an_ordered_comparison_finds_what_nobody_knew_of_and_sends_nothing_else() {
    let machine = Doubted::new(60);
    let source = open(machine.dir.path(), &machine.disk);
    let target =
        Target::connect_and_answer(&source, machine.held, |held, disk, nodes| Ok(sums_of(held, disk, nodes)));
    drop(target.wait_for_all(&source));
    assert_eq!(source.status().resync, None);
    let before = source.status().totals.injected;
    // A write is in the frame that is being filled as the order comes; and two regions differ without anybody knowing.
    let device = source.device(0).unwrap();
    device.write(9 * REGION_BYTES + 512, &[0x77; 512], false).unwrap();
    target.held().images[0][30 * REGION..30 * REGION + 5].fill(0xaa);
    machine.disk.write((222 * REGION) as u64, b"behind its back").unwrap();
    source.compare_all("ordered");
    assert!(source.is_in_doubt());
    device.write(12 * REGION_BYTES, &[0x78; 512], false).unwrap();
    let held = target.wait_for_all(&source);
    let mut now = vec![0; SIZE];
    machine.disk.read(0, &mut now).unwrap();
    assert!(digest_of(&now) == digest_of(&held.images[0]));
    let injected = source.status().totals.injected - before;
    assert!((2 * REGION_BYTES..=3 * REGION_BYTES).contains(&injected), "{injected} bytes");
    let status = source.status();
    assert_eq!((status.resync, status.doubt.as_deref()), (None, Some("ordered")));
    let modes: Vec<&str> = status.changes.iter().map(|change| change.mode.name()).collect();
    assert_eq!(modes[modes.len() - 2..], ["catching-up", "data"]);
    assert!(status.changes.is_sorted_by(|a, b| a.at < b.at));
}

#[test]
fn what_left_and_what_is_durable_is_told_with_its_moments() {
    let machine = Doubted::new(61);
    let source = open(machine.dir.path(), &machine.disk);
    let target =
        Target::connect_and_answer(&source, machine.held, |held, disk, nodes| Ok(sums_of(held, disk, nodes)));
    drop(target.wait_for_all(&source));
    target.set_deaf(true);
    let device = source.device(0).unwrap();
    for region in 0..40 {
        device.write(region * REGION_BYTES, &[0x33; REGION], false).unwrap();
    }
    let status = source.status();
    assert!(status.acknowledged_time <= status.sent_time && status.sent_time <= status.newest.1);
    assert!(status.unsent_bytes <= status.waiting_bytes);
    target.set_deaf(false);
    drop(target.wait_for_all(&source));
    let held = target.disconnect();
    // Nobody is there: what is written waits, and none of it was given to a link.
    device.write(0, &[0x34; REGION], false).unwrap();
    source
        .barrier(
            continuum_model::feed::BarrierKind::Crash,
            "",
            continuum_model::id::PointId::from_bytes([1; 16]),
        )
        .unwrap();
    let status = source.status();
    assert!(status.unsent_bytes >= REGION_BYTES && status.sent_time < status.newest.1, "{status:?}");
    let target = Target::connect(&source, held);
    drop(target.wait_for_all(&source));
    assert_eq!(source.status().unsent_bytes, 0);
}
