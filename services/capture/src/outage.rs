//! The change map and its activity log, driven by a seed through power cuts at any operation: guests' writes,
//! acknowledgements, flushes, evictions, another replica, kills, closes; and of what was not synced any sectors
//! reach the medium, any do not.
//!
//! What must hold after every start:
//! - a region that differs from the target is dirty, or everything is sent again because the target is not known;
//! - no more is dirty than the bits that the map's file may have held, and the extents of the activity log;
//! - everything is doubted only where something happened that is a reason for it.
//!
//! And every bug of `planted` is noticed.

use crate::activity::{Record, Shape};
use crate::disk::{Activity, Stamp};
use crate::kept::Kept;
use crate::map::{Boot, ChangeMap, Settle, Subject};
use crate::planted::{Bug, plant};
use crate::simulated::{Power, SimulatedFile};
use continuum_model::id::DiskId;
use continuum_model::time::Timestamp;
use continuum_model::units::REGION_BYTES;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

const REGIONS: usize = 95;
const OF_EXTENT: usize = 4;
const SIZE: u64 = (REGIONS as u64 - 1) * REGION_BYTES + 512;
/// Bits begin here in the map's file.
const BITS_AT: usize = 4096;

/// A region's content: a number that no other content has.
type Content = u64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waits,
    Admitted,
}

struct Request {
    first: usize,
    last: usize,
    stage: Stage,
}

#[derive(Default, Debug)]
struct Counts {
    cuts: u64,
    cuts_while_opening: u64,
    torn: u64,
    spared: u64,
    again: u64,
    settled_by_records: u64,
    idle: u64,
    exchanged: u64,
    tampered: u64,
    logs_lost: u64,
}

struct World {
    rng: ChaCha8Rng,
    power: Power,
    map_file: SimulatedFile,
    log_file: SimulatedFile,
    slots: usize,
    boot: u64,
    now: i64,
    map: ChangeMap,
    /// What the source's cache and medium hold.
    cached: Vec<Content>,
    flushed: Vec<Content>,
    target: Vec<Content>,
    /// Which replica the target is, and which one is durably known.
    replica: u64,
    known: u64,
    next_content: Content,
    requests: Vec<Request>,
    /// Changes on their way to the target, and acknowledgements on their way back.
    sent: VecDeque<(usize, Content)>,
    acks: VecDeque<(usize, Content)>,
    record: Option<(Record, u32)>,
    settle: Option<Settle>,
    flushing: bool,
    /// The log's bytes as they were at the end of an earlier life.
    old_logs: Vec<Vec<u8>>,
    /// The log failed: a power cut is doubt now.
    log_lost: bool,
    counts: Counts,
}

fn regions_of(bytes: &[u8]) -> Vec<bool> {
    (0..REGIONS)
        .map(|region| bytes.get(BITS_AT + region / 8).is_some_and(|byte| byte >> (region % 8) & 1 == 1))
        .collect()
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let power = Power::default();
        let (map_file, log_file) = (SimulatedFile::new(&power), SimulatedFile::new(&power));
        let slots = rng.random_range(2..6);
        let (map, doubt) = open(&map_file, &log_file, slots, 1, 1).unwrap();
        assert!(doubt.is_some());
        Self {
            rng,
            power,
            map_file,
            log_file,
            slots,
            boot: 1,
            now: 1,
            map,
            cached: vec![0; REGIONS],
            flushed: vec![0; REGIONS],
            target: vec![0; REGIONS],
            replica: 1,
            known: 1,
            next_content: 1,
            requests: Vec::new(),
            sent: (0..REGIONS).map(|region| (region, 0)).collect(),
            acks: VecDeque::new(),
            record: None,
            settle: None,
            flushing: false,
            old_logs: Vec::new(),
            log_lost: false,
            counts: Counts::default(),
        }
    }

    fn content(&mut self) -> Content {
        self.next_content += 1;
        self.next_content
    }

    fn begin_request(&mut self) {
        if self.requests.len() >= 4 {
            return;
        }
        // Places that are hot, so that extents stay, and places that are not, so that they leave.
        let span = if self.rng.random_bool(0.5) { 2 * OF_EXTENT } else { REGIONS };
        let first = self.rng.random_range(0..span);
        let last = (first + self.rng.random_range(0..3)).min(REGIONS - 1);
        if self.requests.iter().all(|other| last < other.first || other.last < first) {
            self.requests.push(Request { first, last, stage: Stage::Waits });
        }
    }

    fn go_on_with_request(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.requests.len());
        let Request { first, last, stage } = self.requests[at];
        match stage {
            Stage::Waits => {
                if self.map.admits(first as u64, last as u64) {
                    self.map.set(first as u64, last as u64);
                    self.requests[at].stage = Stage::Admitted;
                } else if self.record.is_none() {
                    self.record = self.map.next_record().map(|record| (record, 0));
                }
            }
            Stage::Admitted => {
                if self.power.spend().is_err() {
                    return;
                }
                self.requests.swap_remove(at);
                for region in first..=last {
                    let content = self.content();
                    self.cached[region] = content;
                    self.sent.push_back((region, content));
                }
            }
        }
    }

    fn go_on_with_record(&mut self) {
        let Some((record, step)) = self.record.take() else { return };
        let done = if step == 0 {
            self.counts.settled_by_records += u64::from(record.settles());
            match record.settle() {
                Ok(()) => return self.record = Some((record, 1)),
                Err(error) => Err(error),
            }
        } else {
            if self.rng.random_ratio(1, 200) {
                self.log_file.fail(self.rng.random_range(1..3));
                self.log_lost = true;
                self.counts.logs_lost += 1;
            }
            record.write()
        };
        self.map.recorded(&record, done);
    }

    fn go_on_with_settling(&mut self) {
        match self.settle.take() {
            None => self.settle = self.map.next_settle(),
            Some(settle) => {
                let done = settle.run();
                self.map.settled(&settle, done);
            }
        }
    }

    /// Before the disk is flushed, and when it was.
    fn go_on_with_flush(&mut self) {
        if !self.flushing {
            if self.map.is_unsettled() {
                return;
            }
            if self.power.spend().is_ok() {
                self.known = self.replica;
                self.map.before_flush();
                self.flushing = true;
            }
            return;
        }
        self.flushing = false;
        if self.rng.random_ratio(1, 10) || self.power.spend().is_err() {
            return self.map.flush_failed();
        }
        self.flushed.clone_from(&self.cached);
        self.map.after_flush();
    }

    fn network(&mut self) {
        for _ in 0..self.rng.random_range(0..30) {
            if self.rng.random_bool(0.6) {
                if let Some((region, content)) = self.sent.pop_front() {
                    self.target[region] = content;
                    self.acks.push_back((region, content));
                }
            } else if let Some((region, content)) = self.acks.pop_front() {
                let pending = |request: &Request| {
                    request.stage == Stage::Admitted && (request.first..=request.last).contains(&region)
                };
                if self.cached[region] == content && !self.requests.iter().any(pending) {
                    self.map.clear(region as u64);
                }
            }
        }
    }

    fn exchange_replica(&mut self) {
        self.replica += 1;
        for region in 0..REGIONS {
            self.target[region] = self.content();
        }
        self.map.set_all();
        self.send_what_is_dirty();
        self.counts.exchanged += 1;
    }

    fn send_what_is_dirty(&mut self) {
        self.sent.clear();
        self.acks.clear();
        for region in 0..REGIONS {
            if self.map.bits().get(region as u64) {
                self.sent.push_back((region, self.cached[region]));
            }
        }
    }

    fn drop_what_is_under_way(&mut self) {
        self.requests.clear();
        (self.record, self.settle, self.flushing) = (None, None, false);
        self.old_logs.push(self.log_file.bytes());
    }

    fn kill(&mut self) {
        self.drop_what_is_under_way();
        self.start(false);
    }

    fn close(&mut self) {
        if self.power.spend().is_err() {
            return;
        }
        self.drop_what_is_under_way();
        self.flushed.clone_from(&self.cached);
        if let Some(settle) = self.map.next_settle() {
            let done = settle.run();
            self.map.settled(&settle, done);
        }
        if !self.map.is_unsettled() && self.power.spend().is_ok() {
            self.known = self.replica;
            self.map.before_flush();
            self.map.after_flush();
        }
        // Cut half-way, it is a cut.
        if self.map.close(stamp(), Timestamp::from_micros(self.now)).is_ok() {
            self.start(false);
        }
    }

    fn cut(&mut self) {
        self.counts.cuts += 1;
        self.drop_what_is_under_way();
        let may_hold: Vec<bool> = regions_of(&self.map_file.bytes())
            .iter()
            .zip(regions_of(&self.map_file.synced_bytes()))
            .map(|(one, other)| *one || other)
            .collect();
        let most = may_hold.iter().filter(|set| **set).count() + self.slots * OF_EXTENT;
        let log_before = [self.log_file.bytes(), self.log_file.synced_bytes()];
        // All, nothing, or some.
        let share = *[0.0, 0.5, 0.5, 0.9, 1.0].get(self.rng.random_range(0..5)).unwrap();
        for file in [&self.map_file, &self.log_file] {
            file.cut_power(|| self.rng.random_bool(share));
        }
        self.counts.torn += u64::from(!log_before.contains(&self.log_file.bytes()));
        for region in 0..REGIONS {
            if self.cached[region] != self.flushed[region] {
                self.cached[region] = match self.rng.random_range(0..3) {
                    0 => self.cached[region],
                    1 => self.flushed[region],
                    // Some sectors of it.
                    _ => self.content(),
                };
            }
        }
        self.flushed.clone_from(&self.cached);
        self.power.restore();
        self.boot += 1;
        let tampered = self.rng.random_ratio(1, 8) && self.tamper();
        let doubted = self.start(tampered);
        if !doubted && self.known == self.replica {
            let again = self.map.bits().ones() as usize;
            assert!(again <= most, "{again} regions travel again, and no more than {most} had to");
            self.counts.again += again as u64;
            self.counts.spared += (REGIONS - again) as u64;
        }
    }

    /// Somebody does something to the log.
    fn tamper(&mut self) -> bool {
        let mut bytes = self.log_file.bytes();
        let names_a_record = regions_of(&self.map_file.bytes()).len() == REGIONS && !bytes.is_empty();
        if !names_a_record {
            return false;
        }
        match self.rng.random_range(0..4) {
            0 => bytes.clear(),
            1 => bytes.truncate(self.rng.random_range(1..bytes.len())),
            2 => {
                let at = self.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.rng.random_range(0..8);
            }
            _ => {
                // The newest life's is what it is now.
                let others = self.old_logs.len().saturating_sub(1);
                if others == 0 {
                    return false;
                }
                bytes = self.old_logs[self.rng.random_range(0..others)].clone();
            }
        }
        if bytes == self.log_file.bytes() {
            return false;
        }
        self.log_file.put(&bytes);
        self.counts.tampered += 1;
        true
    }

    /// The next life. Returns whether everything was doubted.
    fn start(&mut self, tampered: bool) -> bool {
        self.now += 10;
        let mut may_doubt = tampered || self.log_lost;
        let doubt = loop {
            match open(&self.map_file, &self.log_file, self.slots, self.boot, self.now) {
                Ok((map, doubt)) => {
                    self.map = map;
                    break doubt;
                }
                Err(error) => {
                    // Cut while it opened: in the middle of a doubt there may be none that could be believed.
                    assert!(self.power.is_out(), "{error}");
                    may_doubt |= !self.is_whole();
                    self.counts.cuts_while_opening += 1;
                    for file in [&self.map_file, &self.log_file] {
                        file.cut_power(|| self.rng.random());
                    }
                    self.power.restore();
                    self.boot += 1;
                }
            }
        };
        if let Some(why) = &doubt {
            assert!(may_doubt, "nothing happened that would be a reason for doubt: {why}");
            self.old_logs.push(self.log_file.bytes());
        }
        self.log_lost = false;
        if self.known != self.replica {
            self.map.set_all();
        }
        for region in 0..REGIONS {
            assert!(
                self.map.bits().get(region as u64) || self.cached[region] == self.target[region],
                "region {region} is called clean, and differs"
            );
        }
        self.send_what_is_dirty();
        doubt.is_some()
    }

    /// Whether what is durable can be believed.
    fn is_whole(&self) -> bool {
        let (map, log) = (SimulatedFile::new(&Power::default()), SimulatedFile::new(&Power::default()));
        map.put(&self.map_file.synced_bytes());
        log.put(&self.log_file.synced_bytes());
        open(&map, &log, self.slots, self.boot + 1_000, self.now).unwrap().1.is_none()
    }

    fn step(&mut self) {
        self.now += 1;
        match self.rng.random_range(0..1000) {
            0..=199 => self.begin_request(),
            200..=499 => self.go_on_with_request(),
            500..=699 => self.go_on_with_record(),
            700..=729 => self.go_on_with_settling(),
            730..=789 => self.go_on_with_flush(),
            790..=939 => self.network(),
            940..=949 => self.map.alive(stamp(), Timestamp::from_micros(self.now)),
            950..=959 if self.record.is_none() => {
                self.record =
                    self.map.next_idle(Duration::from_secs(self.now as u64 * 20)).map(|record| (record, 0));
                self.counts.idle += u64::from(self.record.is_some());
            }
            960 => self.exchange_replica(),
            965..=969 => self.kill(),
            970..=974 => self.close(),
            975..=984 => self.power.out_after(self.rng.random_range(0..40)),
            985..=989 => self.power.out_after(0),
            _ => {}
        }
        if self.power.is_out() {
            self.cut();
        }
        for region in 0..REGIONS {
            let same = self.cached[region] == self.target[region];
            assert!(self.map.bits().get(region as u64) || same, "a bit is clear too soon");
        }
    }
}

fn stamp() -> Stamp {
    Stamp { identity: 5, activity: Activity::Unknown }
}

fn open(
    map: &SimulatedFile,
    log: &SimulatedFile,
    slots: usize,
    boot: u64,
    now: i64,
) -> std::io::Result<(ChangeMap, Option<String>)> {
    let files: [Arc<dyn Kept>; 2] = [Arc::new(map.clone()), Arc::new(log.clone())];
    let subject = Subject { disk: DiskId::from_bytes([3; 16]), size: SIZE, stamp: stamp() };
    let boot = Boot { id: boot, at: Timestamp::from_micros(0) };
    let extent_log2 = (OF_EXTENT as u64 * REGION_BYTES).ilog2();
    ChangeMap::open_kept(files, subject, Timestamp::from_micros(now), boot, Shape { extent_log2, slots })
}

fn run(seed: u64) -> Counts {
    let mut world = World::new(seed);
    for _ in 0..1_200 {
        world.step();
    }
    world.power.restore();
    world.counts
}

#[test]
fn after_a_power_cut_at_any_operation_what_differs_is_dirty_and_little_else() {
    let first: u64 = std::env::var("CAPTURE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let count: u64 = std::env::var("CAPTURE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(300);
    let mut all = Counts::default();
    for seed in first..first + count {
        let Ok(counts) = std::panic::catch_unwind(|| run(seed)) else {
            panic!("seed {seed}: set CAPTURE_SEED={seed} CAPTURE_SEEDS=1 to see it alone")
        };
        all.cuts += counts.cuts;
        all.cuts_while_opening += counts.cuts_while_opening;
        all.torn += counts.torn;
        all.spared += counts.spared;
        all.again += counts.again;
        all.settled_by_records += counts.settled_by_records;
        all.idle += counts.idle;
        all.exchanged += counts.exchanged;
        all.tampered += counts.tampered;
        all.logs_lost += counts.logs_lost;
    }
    println!("{all:?}");
    if count >= 100 {
        // Faults that never fire prove nothing.
        for (what, count) in [
            ("power cuts", all.cuts),
            ("power cuts while a map was opened", all.cuts_while_opening),
            ("torn logs", all.torn),
            ("regions that were spared", all.spared),
            ("regions that travelled again", all.again),
            ("extents that left and had to be settled first", all.settled_by_records),
            ("idle extents that left", all.idle),
            ("other replicas", all.exchanged),
            ("damaged or old logs", all.tampered),
            ("logs that failed", all.logs_lost),
        ] {
            assert!(count > 20, "only {count} {what}");
        }
    }
}

/// Seeds until a bug must have been noticed.
const SEEDS: u64 = 400;

fn notices(bug: Bug) {
    let _planted = plant(bug);
    let noticed = (0..SEEDS).any(|seed| std::panic::catch_unwind(|| run(seed)).is_err());
    assert!(noticed, "{bug:?} was not noticed in {SEEDS} seeds");
}

#[test]
fn a_write_that_does_not_wait_for_its_record_is_noticed() {
    notices(Bug::RecordNotSynced);
}
#[test]
fn an_extent_that_leaves_before_its_bits_are_durable_is_noticed() {
    notices(Bug::EvictedUnsettled);
}
#[test]
fn a_torn_record_that_is_believed_is_noticed() {
    notices(Bug::TornBelieved);
}
#[test]
fn a_log_of_another_generation_that_is_believed_is_noticed() {
    notices(Bug::OtherGenerationBelieved);
}
#[test]
fn an_older_log_that_is_believed_is_noticed() {
    notices(Bug::OlderLogBelieved);
}
#[test]
fn a_bit_that_is_cleared_in_the_file_before_the_flush_is_noticed() {
    notices(Bug::ClearedUnflushed);
}
#[test]
fn a_replica_that_is_known_before_the_doubt_about_it_is_durable_is_noticed() {
    notices(Bug::DoubtNotSettled);
}
#[test]
fn a_log_that_is_emptied_before_the_map_has_it_is_noticed() {
    notices(Bug::EmptiedTooSoon);
}
