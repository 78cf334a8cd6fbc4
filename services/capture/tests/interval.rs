//! Sources whose changes come in cycles: whatever happens in between, what is legal is a state that was frozen, and what
//! travels is what changed.

mod common;

use common::scratch;
use common::target::{Held, Target, apply, sums_of};
use continuum_capture::interval::{ChangeTracker, Changed, Consistency, Frozen, FrozenDisk, FrozenView};
use continuum_capture::source::{IntervalConfig, Timing};
use continuum_capture::{Intervals, Source};
use continuum_model::feed::record::Legality;
use continuum_model::feed::{BarrierKind, Change, Record};
use continuum_model::health::Mode;
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::time::Timestamp;
use continuum_model::units::REGION_BYTES;
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const REGION: usize = REGION_BYTES as usize;
/// The last region of each disk is a short one.
const SIZES: [usize; 2] = [60 * REGION - 512, 9 * REGION];

/// Which bad thing may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bad {
    FreezeFails,
    ViewsDie,
    TrackingLost,
    NotForgotten,
    ReadFails,
}

/// A machine that somebody else runs, and what is remembered of its changes there.
struct Machine {
    disks: Vec<Vec<u8>>,
    /// What changed since what was forgotten last; `None`: not known.
    changed: Option<Vec<Vec<Range<u64>>>>,
    /// What changed since the last freeze.
    since: Vec<Vec<Range<u64>>>,
    frozen: Vec<(Timestamp, Vec<Vec<u8>>)>,
    rng: ChaCha8Rng,
    /// Bad things happen once in so many times; 0: never.
    bad: u32,
    happened: std::collections::BTreeMap<Bad, u32>,
    consistency: Consistency,
    quiesced: u32,
    stopped: bool,
    /// A cycle takes that long before it is looked at.
    ends: u32,
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self {
            disks: SIZES.iter().map(|size| vec![0; *size]).collect(),
            changed: None,
            since: vec![Vec::new(); SIZES.len()],
            frozen: Vec::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            bad: 0,
            happened: Default::default(),
            consistency: Consistency::Crash(None),
            quiesced: 0,
            stopped: false,
            ends: 0,
        }
    }

    fn write(&mut self, disk: usize, at: usize, data: &[u8]) {
        assert!(!self.stopped);
        self.disks[disk][at..at + data.len()].copy_from_slice(data);
        self.since[disk].push(at as u64..(at + data.len()) as u64);
    }

    fn write_somewhere(&mut self, times: usize) {
        for _ in 0..times {
            let disk = self.rng.random_range(0..SIZES.len());
            let length = 512 * self.rng.random_range(1..200usize);
            let at = 512 * self.rng.random_range(0..(SIZES[disk] - length) / 512);
            let fill = if self.rng.random_range(0..5) == 0 { 0 } else { self.rng.random() };
            self.write(disk, at, &vec![fill; length]);
        }
    }

    fn strikes(&mut self, bad: Bad) -> bool {
        let strikes = self.bad > 0 && self.rng.random_range(0..self.bad) == 0;
        *self.happened.entry(bad).or_default() += u32::from(strikes);
        strikes
    }
}

struct View {
    content: Vec<u8>,
    /// Reads of this region fail.
    bad: Option<u64>,
    dead: Arc<AtomicBool>,
}

impl FrozenView for View {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let regions = offset / REGION_BYTES..(offset + out.len() as u64).div_ceil(REGION_BYTES);
        if self.dead.load(Ordering::Acquire) || self.bad.is_some_and(|bad| regions.contains(&bad)) {
            return Err(io::Error::other("this view is gone"));
        }
        out.copy_from_slice(&self.content[offset as usize..][..out.len()]);
        Ok(())
    }
}

struct Tracker {
    machine: Arc<Mutex<Machine>>,
    /// The process that this one lives in was killed.
    killed: Arc<AtomicBool>,
    dead: Arc<AtomicBool>,
    dies: bool,
}

impl Tracker {
    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap()
    }
    fn lives(&self) -> Result<(), String> {
        if self.killed.load(Ordering::Acquire) { Err("killed".into()) } else { Ok(()) }
    }
}

impl ChangeTracker for Tracker {
    fn default_interval(&self) -> Duration {
        Duration::from_millis(10)
    }
    fn sizes(&mut self) -> Result<Vec<u64>, String> {
        Ok(SIZES.iter().map(|size| *size as u64).collect())
    }
    fn freeze(&mut self, quiesce: bool) -> Result<Frozen, String> {
        let (killed, moment) = (self.killed.clone(), SystemClock::default().wall());
        let mut machine = self.machine.lock().unwrap();
        // Asked with the machine held: whoever kills it holds it, too.
        if killed.load(Ordering::Acquire) {
            return Err("killed".into());
        }
        machine.quiesced += u32::from(quiesce);
        if machine.strikes(Bad::FreezeFails) {
            return Err("it does not answer".into());
        }
        if machine.strikes(Bad::TrackingLost) {
            machine.changed = None;
            machine.since.iter_mut().for_each(Vec::clear);
            // Changes that nobody saw.
            for _ in 0..3 {
                let at = machine.rng.random_range(0..SIZES[0] - 9);
                machine.disks[0][at..at + 9].copy_from_slice(b"unnoticed");
            }
        }
        let since = std::mem::replace(&mut machine.since, vec![Vec::new(); SIZES.len()]);
        if let Some(changed) = &mut machine.changed {
            changed.iter_mut().zip(since).for_each(|(all, since)| all.extend(since));
        }
        let disks = machine.disks.clone();
        machine.frozen.push((moment, disks.clone()));
        self.dies = machine.strikes(Bad::ViewsDie);
        self.dead = Arc::new(AtomicBool::new(self.dies));
        let mut frozen = Vec::new();
        for (index, content) in disks.into_iter().enumerate() {
            let bad =
                (index == 0 && machine.strikes(Bad::ReadFails)).then(|| machine.rng.random_range(0..60));
            let changed = machine.changed.as_ref();
            frozen.push(FrozenDisk {
                size: content.len() as u64,
                view: Arc::new(View { content, bad, dead: self.dead.clone() }),
                changed: changed.map_or_else(
                    || Changed::Unknown("what was tracked is lost".into()),
                    |changed| Changed::Ranges(changed[index].clone()),
                ),
            });
        }
        // It goes on while it is looked at.
        if !machine.stopped && machine.bad > 0 {
            machine.write_somewhere(3);
        }
        Ok(Frozen { moment, consistency: machine.consistency.clone(), disks: frozen })
    }
    fn forget(&mut self) -> Result<(), String> {
        let mut machine = self.machine.lock().unwrap();
        self.lives()?;
        if machine.strikes(Bad::NotForgotten) {
            return Err("it could not be forgotten".into());
        }
        machine.changed = Some(vec![Vec::new(); SIZES.len()]);
        Ok(())
    }
    fn check(&mut self) -> Result<(), String> {
        if self.dies { Err("the views are gone".into()) } else { self.lives() }
    }
    fn end(&mut self) {
        self.dead.store(true, Ordering::Release);
        self.machine().ends += 1;
    }
    fn stop_machine(&mut self) -> Result<String, String> {
        self.machine().stopped = true;
        Ok("switched off".into())
    }
    fn start_machine(&mut self) -> Result<(), String> {
        self.machine().stopped = false;
        Ok(())
    }
}

fn open(dir: &Path, machine: &Arc<Mutex<Machine>>) -> (Arc<Source>, Arc<AtomicBool>) {
    let killed = Arc::new(AtomicBool::new(false));
    let tracker =
        Tracker { machine: machine.clone(), killed: killed.clone(), dead: Arc::default(), dies: false };
    let config = IntervalConfig {
        machine: MachineId::from_bytes([7; 16]),
        dir: dir.to_owned(),
        disks: vec![DiskId::from_bytes([1; 16]), DiskId::from_bytes([2; 16])],
        tracker: Box::new(tracker),
    };
    let timing = Timing { frame_age: Duration::from_millis(5), time_mark: Duration::from_millis(20) };
    let clock = Arc::new(SystemClock::default());
    (Arc::new(Source::open_interval(config, timing, clock, &mut SystemEntropy).unwrap()), killed)
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn point(byte: u8) -> PointId {
    PointId::from_bytes([byte; 16])
}

/// Every legal position is a barrier and one of the frozen states, told with its moment. Returns how many there were.
fn all_legal_positions_were(records: &[Record], machine: &Machine) -> usize {
    let mut images: Vec<Vec<u8>> = SIZES.iter().map(|size| vec![0; *size]).collect();
    let (mut legality, mut checked) = (Legality::default(), 0);
    for record in records {
        apply(&mut images, &record.change);
        if legality.after(&record.change) {
            assert!(matches!(record.change, Change::Barrier(_)), "legal in the middle of a cycle");
            // The newest frozen state that is not later; several barriers may share it, microseconds apart.
            let state = machine.frozen.iter().rev().find(|(at, _)| *at <= record.time);
            let (moment, disks) = state.expect("a moment at which something was frozen");
            assert!(
                record.time.since(*moment) < Duration::from_micros(50),
                "a moment at which nobody looked"
            );
            assert!(*disks == images, "a state that never was, at {}", record.time);
            checked += 1;
        }
    }
    checked
}

#[test]
fn a_cycle_brings_over_what_changed_and_is_legal_at_its_end_only() {
    let dir = scratch();
    let machine = Arc::new(Mutex::new(Machine::new(1)));
    machine.lock().unwrap().write_somewhere(20);
    let (source, _) = open(dir.path(), &machine);
    source.set_intervals(Intervals { cycle: Duration::from_secs(3600), ..Intervals::default() });
    let mut held = Held::new(source.sizes());
    held.records = Some(Vec::new());
    let target = Target::connect(&source, held);
    drop(target.wait_for("the first cycle", |held| held.legality.is_legal()));
    until("clean", || source.status().dirty_bytes == 0);
    assert_eq!(source.status().mode, Mode::Interval);
    let first = target.held().injected_bytes;
    // No time marks while nobody looks.
    let newest = source.status().newest;
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(source.status().newest, newest);
    // What changes is what travels, in whole regions.
    machine.lock().unwrap().write(0, 5 * REGION + 700, &[1; 512]);
    machine.lock().unwrap().write(0, 5 * REGION + 9000, &[2; 512]);
    machine.lock().unwrap().write(1, 8 * REGION - 4, &[3; 8]);
    let before = SystemClock::default().wall();
    let (_, time) = source.barrier(BarrierKind::Bookmark, "by hand", point(9)).unwrap();
    assert!(time >= before);
    drop(target.wait_for("the bookmark", |held| held.state.newest >= time));
    assert_eq!(target.held().injected_bytes - first, 3 * REGION_BYTES);
    // A cycle in which nothing changed costs nothing.
    let (_, later) = source.barrier(BarrierKind::Crash, "", point(10)).unwrap();
    assert!(later > time);
    drop(target.wait_for("another point", |held| held.state.newest >= later));
    assert_eq!(target.held().injected_bytes - first, 3 * REGION_BYTES);
    // What the digest is of is what was frozen.
    let (_, _, digests) = source.digest_at_barrier(point(11)).unwrap();
    let truth = machine.lock().unwrap().disks.clone();
    assert_eq!(digests, truth.iter().map(|disk| common::target::digest_of(disk)).collect::<Vec<_>>());
    // Stopped, it changes no more, and the last cycle has everything.
    machine.lock().unwrap().write_somewhere(3);
    source.halt().unwrap();
    assert!(machine.lock().unwrap().stopped && source.status().halted);
    let (_, last) = source.barrier(BarrierKind::Crash, "planned failover", point(12)).unwrap();
    drop(target.wait_for("the last point", |held| held.state.newest >= last));
    assert!(target.held().images == machine.lock().unwrap().disks);
    source.release().unwrap();
    assert!(!machine.lock().unwrap().stopped);
    let held = target.disconnect();
    let records = held.records.unwrap();
    let names: Vec<String> = records
        .iter()
        .filter_map(|record| match &record.change {
            Change::Barrier(barrier) if barrier.point.is_some() => Some(barrier.name.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(names, ["by hand", "", "verify", "planned failover"]);
    assert!(all_legal_positions_were(&records, &machine.lock().unwrap()) >= 6);
}

#[test]
fn whatever_happens_what_is_legal_was_frozen_and_in_the_end_all_is_there() {
    let (mut happened, mut kills) = (std::collections::BTreeMap::<Bad, u32>::new(), 0);
    for seed in 0..4u64 {
        let root = scratch();
        let machine = Arc::new(Mutex::new(Machine::new(seed)));
        machine.lock().unwrap().write_somewhere(40);
        machine.lock().unwrap().bad = 6;
        let mut rng = ChaCha8Rng::seed_from_u64(1000 + seed);
        let mut held = Held::new(&SIZES.map(|size| size as u64));
        held.records = Some(Vec::new());
        let mut at = root.path().join("0");
        std::fs::create_dir(&at).unwrap();
        for round in 1..=6 {
            let (source, killed) = open(&at, &machine);
            source.set_intervals(Intervals {
                cycle: Duration::from_millis(5),
                crash_point: Duration::from_millis(20),
                app_point: Duration::from_millis(30),
            });
            let answers = rng.random_range(0..4) > 0;
            let target = Target::connect_and_answer(&source, held, move |held, disk, nodes| {
                if answers { Ok(sums_of(held, disk, nodes)) } else { Err("it does not answer".into()) }
            });
            let cycles = machine.lock().unwrap().frozen.len() + rng.random_range(2..12usize);
            until("cycles", || {
                machine.lock().unwrap().write_somewhere(1);
                machine.lock().unwrap().frozen.len() >= cycles
            });
            // The process dies: what it has in its folder at this instant is all that the next one knows; or it ends.
            let next = root.path().join(round.to_string());
            if rng.random_range(0..3) > 0 {
                let machine = machine.lock().unwrap();
                let held = target.held();
                killed.store(true, Ordering::Release);
                let copied = std::process::Command::new("cp").arg("-r").arg(&at).arg(&next).status().unwrap();
                assert!(copied.success());
                drop((machine, held));
                at = next;
                kills += 1;
            }
            held = target.disconnect();
            source.close().unwrap();
        }
        // All is well again.
        machine.lock().unwrap().bad = 0;
        let (source, _) = open(&at, &machine);
        source.set_intervals(Intervals { cycle: Duration::from_secs(3600), ..Intervals::default() });
        let target =
            Target::connect_and_answer(&source, held, |held, disk, nodes| Ok(sums_of(held, disk, nodes)));
        until("whole", || source.status().mode == Mode::Interval);
        let (_, last) = source.barrier(BarrierKind::Bookmark, "end", point(1)).unwrap();
        drop(target.wait_for("the end", |held| held.state.newest >= last));
        until("clean", || source.status().dirty_bytes == 0);
        let held = target.disconnect();
        let machine = machine.lock().unwrap();
        assert!(held.images == machine.disks, "seed {seed}");
        assert!(all_legal_positions_were(held.records.as_ref().unwrap(), &machine) > 0, "seed {seed}");
        for (bad, times) in &machine.happened {
            *happened.entry(*bad).or_default() += times;
        }
    }
    assert!(
        happened.len() == 5 && happened.values().all(|times| *times > 0) && kills > 3,
        "{happened:?} {kills}"
    );
}

#[test]
fn lost_tracking_is_compared_and_only_what_differs_travels() {
    let dir = scratch();
    let machine = Arc::new(Mutex::new(Machine::new(3)));
    machine.lock().unwrap().write_somewhere(60);
    let (source, _) = open(dir.path(), &machine);
    source.set_intervals(Intervals { cycle: Duration::from_secs(3600), ..Intervals::default() });
    let target = Target::connect_and_answer(&source, Held::new(source.sizes()), |held, disk, nodes| {
        Ok(sums_of(held, disk, nodes))
    });
    drop(target.wait_for("the first cycle", |held| held.legality.is_legal()));
    until("clean", || source.status().dirty_bytes == 0);
    {
        let mut machine = machine.lock().unwrap();
        machine.changed = None;
        machine.disks[0][7 * REGION + 11] ^= 1;
    }
    let before = target.held().injected_bytes;
    let doubt = source.status().doubt;
    let (_, time) = source.barrier(BarrierKind::Bookmark, "after", point(1)).unwrap();
    drop(target.wait_for("the bookmark", |held| held.state.newest >= time));
    assert_eq!(target.held().injected_bytes - before, REGION_BYTES);
    assert!(target.held().images == machine.lock().unwrap().disks);
    let told = source.status().doubt.unwrap();
    assert!(doubt.as_ref() != Some(&told) && told.contains("what was tracked is lost"), "{told}");
}

#[test]
fn a_fuzzy_machine_is_replicated_and_none_of_it_is_offered_until_it_is_frozen_truly() {
    let dir = scratch();
    let machine = Arc::new(Mutex::new(Machine::new(4)));
    machine.lock().unwrap().write_somewhere(30);
    machine.lock().unwrap().consistency = Consistency::Fuzzy("it is read while it changes".into());
    let (source, _) = open(dir.path(), &machine);
    source.set_intervals(Intervals { cycle: Duration::from_millis(5), ..Intervals::default() });
    let mut held = Held::new(source.sizes());
    held.records = Some(Vec::new());
    let target = Target::connect(&source, held);
    until("five cycles", || machine.lock().unwrap().ends >= 5);
    assert!(!target.held().legality.is_legal());
    assert!(source.status().reason.contains("it is read while it changes"), "{:?}", source.status());
    assert!(source.barrier(BarrierKind::Bookmark, "no", point(1)).is_err());
    machine.lock().unwrap().consistency = Consistency::Application;
    let held = target.wait_for("frozen truly", |held| held.legality.is_legal());
    let records = held.records.as_ref().unwrap();
    let application = |record: &&Record| matches!(&record.change, Change::Barrier(it) if it.kind == BarrierKind::Application);
    assert_eq!(records.iter().filter(application).count(), 1);
    assert!(held.images == machine.lock().unwrap().disks);
}

#[test]
fn a_point_that_is_less_than_was_asked_for_says_why() {
    let dir = scratch();
    let machine = Arc::new(Mutex::new(Machine::new(5)));
    machine.lock().unwrap().consistency = Consistency::Crash(Some("the guest agent does not answer".into()));
    let (source, _) = open(dir.path(), &machine);
    source.set_intervals(Intervals {
        cycle: Duration::from_millis(5),
        app_point: Duration::from_secs(3600),
        ..Intervals::default()
    });
    let mut held = Held::new(source.sizes());
    held.records = Some(Vec::new());
    let target = Target::connect(&source, held);
    until("a complaint", || source.status().reason.contains("the guest agent does not answer"));
    assert_eq!((source.status().mode, machine.lock().unwrap().quiesced), (Mode::Interval, 1));
    let named = |record: &Record| match &record.change {
        Change::Barrier(it) => it.kind == BarrierKind::Crash && it.name.contains("does not answer"),
        _ => false,
    };
    drop(target.wait_for("the point", |held| held.records.as_ref().unwrap().iter().any(named)));
}
