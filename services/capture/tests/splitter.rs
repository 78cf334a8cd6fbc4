//! The splitter with real threads: order, digests, modes, faults of disks, restarts.

mod common;

use common::scratch;
use common::target::{Held, Target, apply, digest_of};
use continuum_capture::disk::SourceDisk;
use continuum_capture::simulated::{Fault, SimulatedDisk};
use continuum_capture::source::{SourceConfig, SourceSpec, Timing};
use continuum_capture::{Connected, FileDisk, Next, ReplicaState, Source, SourceError};
use continuum_model::feed::{BarrierKind, Change};
use continuum_model::health::Mode;
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::units::{Epoch, FrameNumber, REGION_BYTES};
use continuum_model::world::{SystemClock, SystemEntropy};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Idle feeds mark the time more often than usual: no test has to wait for it.
const QUICK_MARKS: Timing =
    Timing { frame_age: Duration::from_millis(20), time_mark: Duration::from_millis(50) };

fn try_open(dir: &Path, disks: Vec<Box<dyn SourceDisk>>) -> Result<Source, SourceError> {
    let disks = disks
        .into_iter()
        .enumerate()
        .map(|(index, disk)| SourceSpec { id: DiskId::from_bytes([index as u8 + 1; 16]), disk })
        .collect();
    let config = SourceConfig { machine: MachineId::from_bytes([7; 16]), dir: dir.join("state"), disks };
    Source::open_with(config, QUICK_MARKS, Arc::new(SystemClock::default()), &mut SystemEntropy)
}

fn open(dir: &Path, disks: &[SimulatedDisk]) -> Arc<Source> {
    let disks = disks.iter().map(|disk| Box::new(disk.clone()) as Box<dyn SourceDisk>).collect();
    Arc::new(try_open(dir, disks).unwrap())
}

fn wait_for(what: &str, mut wanted: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !wanted() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

/// A write as its writer remembers it. `issue` and `complete` count on one clock for all.
#[derive(Clone, Copy)]
struct Written {
    issue: u64,
    complete: u64,
    /// A write whose data this writer had read before it issued this one.
    cause: u64,
}

#[test]
fn every_position_is_a_state_that_the_disks_could_have_had() {
    const SIZE: usize = 2 << 20;
    let dir = scratch();
    let disks = [SimulatedDisk::new(SIZE), SimulatedDisk::new(SIZE)];
    let source = open(dir.path(), &disks);
    let mut held = Held::new(source.sizes());
    held.records = Some(Vec::new());
    let target = Target::connect(&source, held);
    wait_for("data mode", || source.status().mode == Mode::Data);

    let clock = AtomicU64::new(1);
    let tick = || clock.fetch_add(1, Ordering::SeqCst);
    let done = AtomicBool::new(false);
    let mut barriers = Vec::new();
    let mut written: HashMap<u64, Written> = HashMap::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6u64)
            .map(|writer| {
                let devices: Vec<_> = (0..2).map(|index| source.device(index).unwrap()).collect();
                let tick = &tick;
                scope.spawn(move || {
                    let mut rng = ChaCha8Rng::seed_from_u64(writer);
                    let mut mine = Vec::new();
                    for turn in 0..400u64 {
                        let id = (writer + 1) << 32 | turn;
                        // Few places, so that writers meet.
                        let place = |rng: &mut ChaCha8Rng| {
                            (rng.random_range(0..2usize), rng.random_range(0..60u64) * 4096)
                        };
                        let mut cause = 0;
                        if rng.random() {
                            let (disk, offset) = place(&mut rng);
                            let mut block = [0; 512];
                            devices[disk].read(offset, &mut block).unwrap();
                            cause = u64::from_le_bytes(block[..8].try_into().unwrap());
                        }
                        let (disk, offset) = place(&mut rng);
                        let length = rng.random_range(1..=12usize) * 4096;
                        let data: Vec<u8> = id.to_le_bytes().repeat(length / 8);
                        let issue = tick();
                        devices[disk].write(offset, &data, false).unwrap();
                        mine.push((id, Written { issue, complete: tick(), cause }));
                    }
                    mine
                })
            })
            .collect();
        let barrier = scope.spawn(|| {
            let mut cuts = Vec::new();
            while !done.load(Ordering::Acquire) {
                let before = tick();
                let (sequence, time) = source
                    .barrier(BarrierKind::Crash, "", PointId::from_bytes([cuts.len() as u8 + 1; 16]))
                    .unwrap();
                cuts.push((before, sequence, time, tick()));
                std::thread::park_timeout(Duration::from_millis(3));
                if cuts.len() == 200 {
                    break;
                }
            }
            cuts
        });
        for writer in writers {
            written.extend(writer.join().unwrap());
        }
        done.store(true, Ordering::Release);
        barriers.extend(barrier.join().unwrap());
    });
    let mut held = target.wait_for_all(&source);
    let records = held.records.take().unwrap();
    drop(held);

    let mut images: Vec<Vec<u8>> = vec![vec![0; SIZE]; 2];
    let mut places: HashMap<u64, u64> = HashMap::new();
    let mut newest_issue = 0;
    for record in &records {
        apply(&mut images, &record.change);
        if let Change::Write { data, injected: false, .. } = &record.change {
            let id = u64::from_le_bytes(data[..8].try_into().unwrap());
            let write = written[&id];
            assert!(places.insert(id, record.sequence.0).is_none(), "twice in the feed");
            assert!(
                write.complete > newest_issue,
                "a write that was complete before another was issued stands behind it"
            );
            newest_issue = newest_issue.max(write.issue);
            if write.cause != 0 {
                assert!(places.contains_key(&write.cause), "a consequence before its cause");
            }
        }
    }
    assert_eq!(places.len(), written.len());
    for (image, disk) in images.iter().zip(&disks) {
        assert!(*image == disk.bytes(), "the feed, replayed, is the disk");
    }
    assert!(!barriers.is_empty());
    for (before, sequence, time, after) in barriers {
        let record = records.iter().find(|record| record.sequence == sequence).unwrap();
        assert_eq!(record.time, time);
        for (id, write) in &written {
            assert!(
                write.complete > before || places[id] < sequence.0,
                "an acknowledged write is behind the barrier"
            );
            assert!(write.issue < after || places[id] > sequence.0, "a later write is before the barrier");
        }
    }
}

#[test]
fn a_digest_under_load_is_of_the_state_at_its_barrier() {
    const SIZE: usize = 8 << 20;
    let dir = scratch();
    let disks = [SimulatedDisk::new(SIZE + 512), SimulatedDisk::new(SIZE / 2)];
    let source = open(dir.path(), &disks);
    let mut held = Held::new(source.sizes());
    held.records = Some(Vec::new());
    let target = Target::connect(&source, held);
    wait_for("data mode", || source.status().mode == Mode::Data);
    let done = AtomicBool::new(false);
    let mut digests = Vec::new();
    std::thread::scope(|scope| {
        for writer in 0..3u64 {
            let devices: Vec<_> = (0..2).map(|index| source.device(index).unwrap()).collect();
            let (done, sizes) = (&done, source.sizes());
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(writer);
                while !done.load(Ordering::Acquire) {
                    let disk = rng.random_range(0..2usize);
                    let length = rng.random_range(1..=64u64) * 512;
                    let offset = rng.random_range(0..=(sizes[disk] - length) / 512) * 512;
                    match rng.random_ratio(1, 10) {
                        true => devices[disk].zero(offset, length, true, false).unwrap(),
                        false => {
                            devices[disk].write(offset, &vec![rng.random(); length as usize], false).unwrap()
                        }
                    }
                }
            });
        }
        for turn in 0..6u8 {
            let point = PointId::from_bytes([turn + 1; 16]);
            digests.push(source.digest_at_barrier(point).unwrap());
        }
        done.store(true, Ordering::Release);
    });
    let mut held = target.wait_for_all(&source);
    let records = held.records.take().unwrap();
    drop(held);
    let mut images: Vec<Vec<u8>> = source.sizes().iter().map(|size| vec![0; *size as usize]).collect();
    let mut compared = 0;
    for record in &records {
        apply(&mut images, &record.change);
        if let Some((_, _, digest)) = digests.iter().find(|(sequence, ..)| *sequence == record.sequence) {
            let here: Vec<_> = images.iter().map(|image| digest_of(image)).collect();
            assert_eq!(&here, digest);
            compared += 1;
        }
    }
    assert_eq!(compared, 6);
    let status = source.status();
    assert!(status.totals.written > 1 << 20, "the load was there");
}

#[test]
fn a_target_that_takes_nothing_never_slows_the_guest_and_is_repaired_by_what_changed() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(64 << 20)];
    let source = open(dir.path(), &disks);
    source.set_staging_max(4 << 20);
    let target = Target::connect(&source, Held::new(source.sizes()));
    wait_for("data mode", || source.status().mode == Mode::Data);
    let device = source.device(0).unwrap();
    device.write(0, &[1; 1 << 20], false).unwrap();
    drop(target.wait_for_all(&source));

    target.set_deaf(true);
    let mut slowest = Duration::ZERO;
    for turn in 0..32u64 {
        let started = Instant::now();
        device.write(turn << 20, &vec![turn as u8 + 2; 1 << 20], false).unwrap();
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    let status = source.status();
    assert_eq!(
        (status.mode, status.reason.contains("staging is exhausted")),
        (Mode::Bitmap, true),
        "{status:?}"
    );
    assert!(status.waiting_bytes <= 6 << 20, "bounded: {}", status.waiting_bytes);
    // It may have taken one more frame before it went deaf.
    assert!((31 << 20..=32 << 20).contains(&status.dirty_bytes), "{status:?}");
    assert!(matches!(
        source.barrier(BarrierKind::Crash, "", PointId::from_bytes([1; 16])),
        Err(SourceError::NotShipping { mode: "bitmap", .. })
    ));

    // Within the same stream: first what was queued, then a break and what changed; no more than that.
    let injected = target.held().injected_bytes;
    target.set_deaf(false);
    let held = target.wait_for_all(&source);
    assert!(held.images[0] == disks[0].bytes());
    let resent = held.injected_bytes - injected;
    assert!((26 << 20..=32 << 20).contains(&resent), "{resent}");
    assert_eq!((held.breaks, held.connects.len()), (2, 1));
    drop(held);
    wait_for("clean", || source.status().dirty_bytes == 0);
}

#[test]
fn initial_replication_alone_never_exhausts_staging_and_holes_cost_nothing() {
    let dir = scratch();
    let path = dir.path().join("disk");
    const SIZE: u64 = 16 << 30;
    let disk = FileDisk::open_or_create(&path, SIZE).unwrap();
    for at in [0, 5 << 30, SIZE - (8 << 20)] {
        disk.write(at, &vec![9; 8 << 20]).unwrap();
    }
    // Allocated zeroes are not sent either.
    disk.write(1 << 30, &vec![0; 4 << 20]).unwrap();
    let source = Arc::new(try_open(dir.path(), vec![Box::new(disk)]).unwrap());
    source.set_staging_max(3 << 20);
    let (connected, stretch) = source.connect(Epoch(1), Held::new(&[]).state).unwrap();
    assert!(matches!(connected, Connected::Broken { stale_bytes: SIZE, .. }), "{connected:?}");
    let mut state = Held::new(&[]).state;
    let (mut data, mut most) = (0, 0);
    wait_for("data mode", || {
        let status = source.status();
        assert_ne!(status.mode, Mode::Bitmap, "{}", status.reason);
        most = most.max(status.waiting_bytes);
        if let Next::Frame(envelope) = source.next_frame(stretch, state.number, Duration::from_millis(20)) {
            let head = &envelope.head;
            state = ReplicaState { number: head.identity.number, digest: head.digest, ..state };
            data += u64::from(head.payload_len);
            source.acknowledged(state.number).unwrap();
        }
        status.mode == Mode::Data && source.status().dirty_bytes == 0
    });
    assert!((24 << 20..25 << 20).contains(&data), "{data} bytes for 24 MiB of data");
    assert!(most <= 3 << 20, "{most}");
    assert_eq!(source.status().totals.skipped, SIZE - (24 << 20));
}

/// Takes and acknowledges frames until that is so.
fn take_until(source: &Source, held: &mut Held, wanted: impl Fn(&Held) -> bool) {
    let (_, stretch) = source.connect(Epoch(1), held.state).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !wanted(held) {
        assert!(Instant::now() < deadline, "never, with {} bytes injected", held.injected_bytes);
        if let Next::Frame(envelope) =
            source.next_frame(stretch, held.state.number, Duration::from_millis(20))
        {
            held.take(&envelope);
            source.acknowledged(held.state.number).unwrap();
        }
    }
}

#[test]
fn initial_replication_that_is_killed_goes_on_after_what_was_acknowledged() {
    const SIZE: u64 = 64 << 20;
    const DATA: u64 = SIZE / 4;
    for percent in [10, 50, 90] {
        let dir = scratch();
        let path = dir.path().join("disk");
        let opened = || {
            let disk = FileDisk::open_or_create(&path, SIZE).unwrap();
            let source = try_open(dir.path(), vec![Box::new(disk)]).unwrap();
            // So that little is under way at any time.
            source.set_staging_max(2 << 20);
            source
        };
        let disk = FileDisk::open_or_create(&path, SIZE).unwrap();
        for at in (0..SIZE).step_by(4 << 20) {
            // Data, zeroes, and what was never written.
            disk.write(at, &vec![9; 1 << 20]).unwrap();
            disk.write(at + (2 << 20), &vec![0; 1 << 20]).unwrap();
        }
        drop(disk);
        let source = opened();
        let mut held = Held::new(source.sizes());
        take_until(&source, &mut held, |held| held.injected_bytes * 100 >= DATA * percent);
        let acknowledged = held.injected_bytes;
        assert!(acknowledged < DATA, "killed too late to prove anything");
        let state = dir.path().join("state");
        let id = DiskId::from_bytes([1; 16]);
        let names =
            [state.join(format!("{id}.map")), state.join(format!("{id}.active")), state.join("progress")];
        wait_for("what was acknowledged is on record", || {
            let bits =
                std::fs::read(&names[0]).unwrap()[4096..].iter().map(|byte| byte.count_ones()).sum::<u32>();
            u64::from(bits) * REGION_BYTES == source.status().dirty_bytes
        });
        let dirty = source.status().dirty_bytes;
        // As SIGKILL leaves them: nothing is staged or closed.
        let files = names.clone().map(|name| std::fs::read(name).unwrap());
        drop(source);
        names.iter().zip(files).for_each(|(name, bytes)| std::fs::write(name, bytes).unwrap());
        std::fs::remove_dir_all(state.join("staging")).unwrap();

        let source = opened();
        assert_eq!((source.status().doubt, source.status().dirty_bytes), (None, dirty));
        let frame_bytes = held.frame_bytes;
        take_until(&source, &mut held, |_| {
            let status = source.status();
            status.mode == Mode::Data && status.dirty_bytes == 0
        });
        assert_eq!(held.injected_bytes, DATA, "killed at {percent} %: every byte once");
        let overhead = held.frame_bytes - frame_bytes - (DATA - acknowledged);
        assert!(overhead < 64 << 10, "zeroes and holes cost {overhead} bytes");
        assert!(held.images[0] == std::fs::read(&path).unwrap());
    }
}

#[test]
fn a_place_that_cannot_be_read_is_named_and_nothing_is_sent_in_its_place() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(8 << 20)];
    disks[0].write(0, &vec![5; 8 << 20]).unwrap();
    let bad = 3 * REGION_BYTES;
    disks[0].set_bad(Some((bad + 512, bad + 1024)));
    let source = open(dir.path(), &disks);
    let target = Target::connect(&source, Held::new(source.sizes()));
    wait_for("all but the bad region", || source.status().dirty_bytes == REGION_BYTES);
    let status = source.status();
    assert_eq!(status.mode, Mode::CatchingUp);
    assert!(status.reason.contains("disk 0 cannot be read at 196608"), "{}", status.reason);
    assert!(disks[0].failures() > 0, "the fault fired");
    let held = target.held();
    let (bad_bytes, rest) = (bad as usize..bad as usize + REGION_BYTES as usize, held.images[0].iter());
    assert!(rest.enumerate().all(|(at, byte)| *byte == if bad_bytes.contains(&at) { 0 } else { 5 }));
    assert!(!held.legality.is_legal(), "and no position is offered");
    drop(held);
    // A guest's write does not make the rest of that region known.
    source.device(0).unwrap().write(bad, &[6; 512], false).unwrap();
    disks[0].set_bad(None);
    let held = target.wait_for_all(&source);
    assert!(held.images[0] == disks[0].bytes());
}

#[test]
fn a_failed_write_is_an_error_for_the_guest_and_a_repaired_gap_in_the_feed() {
    for fault in [Fault::Error, Fault::Short] {
        let dir = scratch();
        let disks = [SimulatedDisk::new(4 << 20)];
        let source = open(dir.path(), &disks);
        let target = Target::connect(&source, Held::new(source.sizes()));
        wait_for("data mode", || source.status().mode == Mode::Data);
        let device = source.device(0).unwrap();
        disks[0].fail(1, fault);
        assert!(device.write(100 << 10, &[3; 8192], false).is_err());
        assert_eq!(disks[0].failures(), 1);
        wait_for("repaired", || source.status().mode == Mode::Data);
        device.write(0, &[4; 512], false).unwrap();
        let held = target.wait_for_all(&source);
        assert!(held.images[0] == disks[0].bytes());
        assert_eq!(held.breaks, 2, "the first copy, and the gap");
        assert_eq!(source.status().guest.errors, 1);
    }
}

#[test]
fn a_flush_that_failed_is_never_believed_again() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(4 << 20)];
    let source = open(dir.path(), &disks);
    let device = source.device(0).unwrap();
    device.write(0, &[1; 512], false).unwrap();
    disks[0].fail(1, Fault::Error);
    assert!(device.flush().is_err());
    assert!(device.flush().is_err(), "the kernel may have dropped the pages: no second try may succeed");
    assert!(device.write(0, &[1; 512], true).is_err());
    assert_eq!(disks[0].failures(), 1);
}

#[test]
fn a_pause_keeps_the_map_and_a_resume_sends_what_changed() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(16 << 20)];
    let source = open(dir.path(), &disks);
    let target = Target::connect(&source, Held::new(source.sizes()));
    wait_for("data mode", || source.status().mode == Mode::Data);
    let device = source.device(0).unwrap();
    device.write(0, &[1; 4 << 20], false).unwrap();
    drop(target.wait_for_all(&source));
    source.pause("paused by the operator");
    device.write(8 << 20, &[2; 512], false).unwrap();
    let status = source.status();
    assert_eq!((status.mode, status.reason.as_str()), (Mode::Bitmap, "paused by the operator"));
    let before = target.held().injected_bytes;
    source.resume();
    let held = target.wait_for_all(&source);
    assert!(held.images[0] == disks[0].bytes());
    assert_eq!(held.injected_bytes - before, REGION_BYTES);
}

#[test]
fn a_disk_that_changes_its_size_stops_replication_with_the_reason() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(4 << 20)];
    let source = open(dir.path(), &disks);
    let target = Target::connect(&source, Held::new(source.sizes()));
    wait_for("data mode", || source.status().mode == Mode::Data);
    target.disconnect();
    disks[0].resize(5 << 20);
    wait_for("noticed", || source.status().reason.contains("disk size changed"));
    assert_eq!(source.status().mode, Mode::Bitmap);
    let refused = source.connect(Epoch(1), Held::new(&[]).state);
    assert!(matches!(refused, Err(SourceError::Halted(_))), "{refused:?}");
    // The guest's old size goes on.
    source.device(0).unwrap().write(0, &[1; 512], false).unwrap();
}

#[test]
fn a_restart_in_good_order_goes_on_without_losing_a_moment() {
    let dir = scratch();
    let path = dir.path().join("disk");
    let opened = |dir: &Path| {
        let disk = FileDisk::open_or_create(&path, 16 << 20).unwrap();
        Arc::new(try_open(dir, vec![Box::new(disk)]).unwrap())
    };
    let source = opened(dir.path());
    let target = Target::connect(&source, Held::new(source.sizes()));
    wait_for("data mode", || source.status().mode == Mode::Data);
    let device = source.device(0).unwrap();
    device.write(0, &[1; 4 << 20], false).unwrap();
    drop(target.wait_for_all(&source));
    let held = target.disconnect();
    // Nobody takes these; they are staged when the source closes.
    for turn in 0..50u64 {
        device.write(turn * 100_000, &vec![turn as u8; 50_000], false).unwrap();
    }
    let newest = source.status().newest;
    let refused = FileDisk::open(&path).err().unwrap();
    assert!(refused.to_string().contains("in use"), "{refused}");
    drop(source);
    assert!(device.write(0, &[1; 512], false).is_err(), "closed is closed");
    drop(device);

    let source = opened(dir.path());
    assert_eq!(source.status().doubt, None);
    assert_eq!(source.status().waiting_bytes, source.status().staged_bytes);
    assert!(source.status().staged_bytes > 2_500_000);
    let mut held = held;
    held.records = Some(Vec::new());
    let target = Target::connect(&source, held);
    let mut held = target.wait_for_all(&source);
    let records = held.records.take().unwrap();
    let break_at = records.iter().position(|record| record.change == Change::Break).unwrap();
    let writes =
        records[..break_at].iter().filter(|record| matches!(record.change, Change::Write { .. })).count();
    assert_eq!(writes, 50, "all of them, each with its own moment, before the break of the new session");
    assert!(records[..break_at].iter().any(|record| (record.sequence, record.time) == newest));
    assert!(held.images[0] == std::fs::read(&path).unwrap());
    drop(held);
    drop(target);
    drop(source);

    // Somebody writes to the disk while no agent runs.
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"unseen", 15 << 20).unwrap();
    drop(file);
    let source = opened(dir.path());
    let doubt = source.status().doubt.unwrap();
    assert!(doubt.contains("written to while nobody watched"), "{doubt}");
    assert_eq!(source.status().dirty_bytes, 16 << 20);
}

#[test]
fn a_replica_that_is_not_the_one_we_fed_gets_everything() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(4 << 20)];
    let source = open(dir.path(), &disks);
    let target = Target::connect(&source, Held::new(source.sizes()));
    wait_for("data mode", || source.status().mode == Mode::Data);
    source.device(0).unwrap().write(0, &[1; 1 << 20], false).unwrap();
    drop(target.wait_for_all(&source));
    let good = target.disconnect().state;
    wait_for("acknowledged", || source.status().dirty_bytes == 0);
    for (why, state) in [
        ("wiped", Held::new(&[]).state),
        ("gone back", ReplicaState { number: FrameNumber(good.number.0 - 1), digest: 5, ..good }),
        ("another history", ReplicaState { digest: good.digest ^ 1, ..good }),
        ("from the future", ReplicaState { number: FrameNumber(good.number.0 + 9), digest: 5, ..good }),
    ] {
        let (connected, _) = source.connect(Epoch(1), state).unwrap();
        match connected {
            Connected::Broken { reason, stale_bytes } => {
                assert_eq!(stale_bytes, 4 << 20, "{why}");
                assert!(reason.contains("resync required"), "{why}: {reason}");
            }
            other => panic!("{why}: {other:?}"),
        }
    }
    // And an acknowledgement of what was never sent changes nothing.
    let before = source.status();
    assert!(matches!(source.acknowledged(FrameNumber(u64::MAX)), Err(SourceError::AckAhead(_))));
    assert_eq!(source.status().dirty_bytes, before.dirty_bytes);
}

#[test]
fn one_folder_has_one_agent() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(4 << 20)];
    let _source = open(dir.path(), &disks);
    let second = try_open(dir.path(), vec![Box::new(disks[0].clone())]);
    assert!(matches!(second, Err(SourceError::InUse { .. })));
    for size in [0, 2048, 4096 + 100] {
        let elsewhere = scratch();
        let refused = try_open(elsewhere.path(), vec![Box::new(SimulatedDisk::new(size))]);
        assert!(matches!(refused, Err(SourceError::Disk { index: 0, .. })), "{size}");
    }
}

#[test]
fn the_waker_tells_of_frames_and_idle_feeds_mark_the_time() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(4 << 20)];
    let source = open(dir.path(), &disks);
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    source.set_waker(move || {
        let _ = tell.try_send(());
    });
    let (_, stretch) = source.connect(Epoch(1), Held::new(&[]).state).unwrap();
    let mut after = FrameNumber(0);
    let mut marks = 0;
    // Never a wait inside of `next_frame`: the waker alone must be enough.
    while marks < 5 {
        match source.next_frame(stretch, after, Duration::ZERO) {
            Next::Frame(envelope) => {
                after = envelope.head.identity.number;
                source.acknowledged(after).unwrap();
                marks += u32::from(envelope.head.rows.iter().any(|row| row.consistent));
            }
            Next::Idle => told.recv_timeout(Duration::from_secs(10)).unwrap(),
            Next::Reset => panic!("nothing was reset"),
        }
    }
}

/// What a machine that went down long ago left: as it is now, but for the boot, the times, and bits that never
/// reached the medium.
fn went_down(map: &Path, disk: &Path) {
    const LONG_AGO: Duration = Duration::from_secs(400 * 86_400);
    let then = std::time::SystemTime::now() - LONG_AGO;
    std::fs::File::options().write(true).open(disk).unwrap().set_modified(then).unwrap();
    let micros = then.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64;
    let mut bytes = std::fs::read(map).unwrap();
    bytes[40..48].copy_from_slice(&1u64.to_le_bytes());
    bytes[64..72].copy_from_slice(&micros.to_le_bytes());
    bytes[72..80].copy_from_slice(&micros.to_le_bytes());
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[..120]);
    bytes[120..128].copy_from_slice(&sum.to_le_bytes());
    bytes[4096..].fill(0);
    std::fs::write(map, bytes).unwrap();
}

#[test]
fn after_a_power_cut_only_what_was_dirty_or_active_travels_again() {
    const SIZE: u64 = 32 << 20;
    const EXTENT: u64 = 4 << 20;
    let dir = scratch();
    let path = dir.path().join("disk");
    let opened = || {
        let disk = FileDisk::open_or_create(&path, SIZE).unwrap();
        Arc::new(try_open(dir.path(), vec![Box::new(disk)]).unwrap())
    };
    std::fs::write(&path, vec![0x5a; SIZE as usize]).unwrap();
    let source = opened();
    let target = Target::connect(&source, Held::new(source.sizes()));
    drop(target.wait_for_all(&source));
    let state = |name: &str| {
        let id = DiskId::from_bytes([1; 16]);
        dir.path().join("state").join(format!("{id}.{name}"))
    };
    wait_for("a clean map's file", || {
        std::fs::read(state("map")).unwrap()[4096..].iter().all(|byte| *byte == 0)
    });
    let mut held = target.disconnect();
    assert_eq!(source.status().active_bytes, 0, "reading a disk makes nothing active");

    let write = |source: &Source, offsets: &[u64]| {
        let device = source.device(0).unwrap();
        offsets.iter().for_each(|offset| device.write(*offset, &[7; 4096], false).unwrap());
    };
    // As its files were while it ran: closing writes more to them, which a power cut does not.
    let cut = |source: Arc<Source>| {
        let names = ["map", "active"].map(state);
        let files = names.clone().map(|name| std::fs::read(name).unwrap());
        drop(source);
        names.iter().zip(files).for_each(|(name, bytes)| std::fs::write(name, bytes).unwrap());
        went_down(&names[0], &path);
    };

    write(&source, &[EXTENT, 5 * EXTENT + 100_096, 6 * EXTENT - 4096]);
    assert_eq!(source.status().active_bytes, 2 * EXTENT);
    assert_eq!(source.status().dirty_bytes, 3 * REGION_BYTES);
    cut(source);
    let source = opened();
    assert_eq!(source.status().doubt, None);
    assert_eq!(source.status().dirty_bytes, 2 * EXTENT);
    let before = held.injected_bytes;
    let target = Target::connect(&source, held);
    let caught_up = target.wait_for_all(&source);
    assert_eq!(caught_up.injected_bytes - before, 2 * EXTENT, "not a byte more");
    assert!(caught_up.images[0] == std::fs::read(&path).unwrap());
    drop(caught_up);
    held = target.disconnect();

    // Without its log there is no telling.
    write(&source, &[EXTENT]);
    cut(source);
    std::fs::remove_file(state("active")).unwrap();
    let source = opened();
    let doubt = source.status().doubt.unwrap();
    assert!(doubt.contains("went down while the disk was in use, and there is no activity log"), "{doubt}");
    assert_eq!(source.status().dirty_bytes, SIZE);
    let before = held.injected_bytes;
    let target = Target::connect(&source, held);
    assert_eq!(target.wait_for_all(&source).injected_bytes - before, SIZE);
}

#[test]
fn a_machine_that_was_put_back_to_an_older_state_of_itself_is_no_machine_that_lost_power() {
    let dir = scratch();
    let path = dir.path().join("disk");
    let opened = || {
        let disk = FileDisk::open_or_create(&path, 8 << 20).unwrap();
        Arc::new(try_open(dir.path(), vec![Box::new(disk)]).unwrap())
    };
    let source = opened();
    let target = Target::connect(&source, Held::new(source.sizes()));
    let write = |source: &Arc<Source>, byte: u8| {
        source.device(0).unwrap().write(1 << 20, &[byte; 4096], true).unwrap();
        drop(target.wait_for_all(source));
    };
    write(&source, 1);
    let id = DiskId::from_bytes([1; 16]);
    let state = dir.path().join("state");
    let names = [state.join(format!("{id}.map")), state.join(format!("{id}.active")), state.join("progress")];
    wait_for("its progress is on record", || std::fs::read(&names[2]).unwrap()[24..32] != [0; 8]);
    let older = names.clone().map(|name| std::fs::read(name).unwrap());
    // The target learns of this, and the machine forgets it.
    write(&source, 2);
    let held = target.disconnect();
    drop(source);
    names.iter().zip(older).for_each(|(name, bytes)| std::fs::write(name, bytes).unwrap());
    let disk = std::fs::File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &[1; 4096], 1 << 20).unwrap();
    drop(disk);
    went_down(&names[0], &path);

    let source = opened();
    assert_eq!(source.status().doubt, None, "by itself it looks like one that lost power");
    let (connected, _) = source.connect(Epoch(1), held.state).unwrap();
    let Connected::Broken { reason, stale_bytes } = connected else { panic!("{connected:?}") };
    assert!(reason.contains("resync required") && stale_bytes == 8 << 20, "{reason}: {stale_bytes}");
    let target = Target::connect(&source, held);
    assert!(target.wait_for_all(&source).images[0] == std::fs::read(&path).unwrap());
}

#[test]
fn staged_files_that_come_back_with_the_power_are_not_gone_on_with() {
    let dir = scratch();
    let path = dir.path().join("disk");
    let opened = || {
        let disk = FileDisk::open_or_create(&path, 8 << 20).unwrap();
        try_open(dir.path(), vec![Box::new(disk)]).unwrap()
    };
    let write = |source: &Source, offset: u64| {
        source.device(0).unwrap().write(offset, &[1; 4096], false).unwrap();
    };
    let caught_up = |source: &Source, held: &mut Held| {
        take_until(source, held, |_| {
            let status = source.status();
            status.mode == Mode::Data && status.dirty_bytes == 0
        });
    };
    let source = opened();
    let mut held = Held::new(source.sizes());
    caught_up(&source, &mut held);
    let older = held.state;
    // Staged when the source closes; sent, acknowledged and removed in its next life.
    write(&source, 1 << 20);
    drop(source);
    let staging = dir.path().join("state/staging");
    let files: Vec<_> = std::fs::read_dir(&staging).unwrap().map(|entry| entry.unwrap().path()).collect();
    let copies: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!(files.len(), 1);
    let source = opened();
    caught_up(&source, &mut held);
    write(&source, 2 << 20);
    caught_up(&source, &mut held);
    drop(source);
    files.iter().zip(copies).for_each(|(file, bytes)| std::fs::write(file, bytes).unwrap());
    let source = opened();
    assert_eq!(source.status().waiting_frames, 0);
    // And so a replica that went back to where they begin is not fed with them and called equal.
    let (connected, _) = source.connect(Epoch(1), older).unwrap();
    let Connected::Broken { reason, stale_bytes } = connected else { panic!("{connected:?}") };
    assert!(reason.contains("resync required") && stale_bytes == 8 << 20, "{reason}: {stale_bytes}");
}

#[test]
fn a_log_that_cannot_be_kept_stops_no_guest_and_is_told() {
    let dir = scratch();
    let disks = [SimulatedDisk::new(16 << 20)];
    // Nothing can be written where the log belongs.
    let id = DiskId::from_bytes([1; 16]);
    let log = dir.path().join("state").join(format!("{id}.active"));
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let source = open(dir.path(), &disks);
    source.device(0).unwrap().write(5 << 20, &[1; 4096], true).unwrap();
    let faults = source.status().faults;
    assert!(
        faults.iter().any(|fault| fault.contains("after a power cut everything is sent again")),
        "{faults:?}"
    );
    assert_eq!(source.status().active_bytes, 0);
}

#[test]
fn many_writers_far_apart_share_records_and_none_is_left_waiting() {
    const SIZE: usize = 64 << 30;
    let dir = scratch();
    let path = dir.path().join("disk");
    let disk = FileDisk::open_or_create(&path, SIZE as u64).unwrap();
    let source = Arc::new(try_open(dir.path(), vec![Box::new(disk)]).unwrap());
    std::thread::scope(|scope| {
        for writer in 0..8u64 {
            let device = source.device(0).unwrap();
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(writer);
                for _ in 0..300 {
                    // Far more extents than can be active, and ranges over several of them.
                    let offset = rng.random_range(0..(SIZE as u64 - (16 << 20)) / 4096) * 4096;
                    if rng.random_ratio(1, 10) {
                        device.zero(offset, 12 << 20, true, false).unwrap();
                    } else {
                        device.write(offset, &[1; 4096], false).unwrap();
                    }
                }
            });
        }
    });
    let status = source.status();
    assert_eq!(status.active_bytes, 944 << 22, "all that may be active is, and no more");
    assert_eq!(status.faults, Vec::<String>::new());
}
