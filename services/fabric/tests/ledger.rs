//! The ledger on disks in memory that crash: every crash is survived, every lie of a disk is found.

use continuum_fabric::lab::ledger::{Disk, Ledger, LedgerError, format, format::BLOCK};
use std::io;
use std::sync::{Arc, Mutex};

/// Small and quick, a generator whose seed a failure prints.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

/// Disks of one machine with a volatile cache in front; power fails after a set number of requests.
struct Machine {
    durable: Vec<Vec<u8>>,
    /// Not durable yet, in order: disk, offset, data.
    cache: Vec<(usize, u64, Vec<u8>)>,
    requests_left: u64,
    /// Durable writes that are confirmed but kept in the cache only.
    lies: bool,
}

#[derive(Clone)]
struct Drive {
    machine: Arc<Mutex<Machine>>,
    place: usize,
}

impl Machine {
    fn make(disks: usize, bytes: usize) -> Arc<Mutex<Self>> {
        let durable = vec![vec![0; bytes]; disks];
        Arc::new(Mutex::new(Self { durable, cache: Vec::new(), requests_left: u64::MAX, lies: false }))
    }

    fn spend(&mut self) -> io::Result<()> {
        self.requests_left = self.requests_left.saturating_sub(1);
        if self.requests_left == 0 { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    fn write_down(&mut self, dice: &mut Dice, keep: impl Fn(&mut Dice) -> bool) {
        for (place, offset, data) in std::mem::take(&mut self.cache) {
            for (at, sector) in data.chunks(512).enumerate() {
                if keep(dice) {
                    let from = offset as usize + at * 512;
                    self.durable[place][from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }

    /// What a power failure leaves: any of the sectors that were not durable yet, or none.
    fn crash(&mut self, dice: &mut Dice) {
        let share = dice.roll(101);
        self.write_down(dice, move |dice| dice.roll(100) < share);
        self.requests_left = u64::MAX;
    }
}

impl Disk for Drive {
    fn size(&self) -> u64 {
        self.machine.lock().unwrap().durable[self.place].len() as u64
    }
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut machine = self.machine.lock().unwrap();
        machine.spend()?;
        let from = offset as usize;
        out.copy_from_slice(&machine.durable[self.place][from..from + out.len()]);
        for (place, start, data) in &machine.cache {
            let start = *start as usize;
            let (low, high) = (start.max(from), (start + data.len()).min(from + out.len()));
            if *place == self.place && low < high {
                out[low - from..high - from].copy_from_slice(&data[low - start..high - start]);
            }
        }
        Ok(())
    }
    fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        let mut machine = self.machine.lock().unwrap();
        machine.cache.push((self.place, offset, data.to_vec()));
        machine.spend()?;
        if durable && !machine.lies {
            // Stable means this request only, in the worst case.
            let (place, offset, data) = machine.cache.pop().unwrap();
            // Older cached writes to the same place must not come back over it.
            machine.cache.retain(|(p, o, d)| {
                *p != place || o + d.len() as u64 <= offset || *o >= offset + data.len() as u64
            });
            machine.durable[place][offset as usize..offset as usize + data.len()].copy_from_slice(&data);
        }
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        let mut machine = self.machine.lock().unwrap();
        machine.spend()?;
        if !machine.lies {
            let (own, other): (Vec<_>, Vec<_>) = std::mem::take(&mut machine.cache)
                .into_iter()
                .partition(|(place, _, _)| *place == self.place);
            machine.cache = own;
            machine.write_down(&mut Dice(0), |_| true);
            machine.cache = other;
        }
        Ok(())
    }
    fn interruptions(&self) -> u64 {
        0
    }
}

fn drives(machine: &Arc<Mutex<Machine>>) -> Vec<Drive> {
    let count = machine.lock().unwrap().durable.len();
    (0..count).map(|place| Drive { machine: machine.clone(), place }).collect()
}

fn formatted(disks: usize) -> Arc<Mutex<Machine>> {
    let machine = Machine::make(disks, 4 << 20);
    assert!(matches!(Ledger::open(drives(&machine), 1), Err(LedgerError::Unformatted)));
    format(&mut drives(&machine), [3; 16], 1).unwrap();
    machine
}

fn transact(ledger: &mut Ledger<Drive>, dice: &mut Dice) -> Result<u64, LedgerError> {
    let count = 1 + dice.roll(4);
    let transfers: Vec<_> = (0..count)
        .map(|_| {
            let accounts = ledger.accounts();
            (dice.roll(accounts), dice.roll(accounts), dice.roll(50) as i64)
        })
        .collect();
    ledger.transact(&transfers, ledger.sequence() as i64)
}

#[test]
fn whatever_was_acknowledged_is_there_after_any_power_failure() {
    let mut crashes = 0;
    for seed in 0..9 {
        let mut dice = Dice(seed);
        let machine = formatted(1 + seed as usize % 3);
        let mut acknowledged = 0;
        for round in 0..20 {
            machine.lock().unwrap().requests_left = 1 + dice.roll(900);
            // The failure may hit the opening too: that must be repeatable.
            match Ledger::open(drives(&machine), 1) {
                Ok((mut ledger, recovered)) => {
                    let found = recovered.sequence;
                    assert!(
                        (acknowledged..=acknowledged + 1).contains(&found),
                        "seed {seed}, round {round}: {acknowledged} were acknowledged and {found} are there"
                    );
                    acknowledged = found;
                    loop {
                        match transact(&mut ledger, &mut dice) {
                            Ok(sequence) => acknowledged = sequence,
                            Err(LedgerError::Disk { .. }) => break,
                            Err(error) => panic!("seed {seed}, round {round}: {error}"),
                        }
                    }
                }
                Err(LedgerError::Disk { .. }) => {}
                Err(error) => panic!("seed {seed}, round {round}: {error}"),
            }
            assert_eq!(machine.lock().unwrap().requests_left, 0, "the power did fail");
            crashes += 1;
            machine.lock().unwrap().crash(&mut dice);
        }
        let (_, recovered) = Ledger::open(drives(&machine), 1).unwrap();
        assert!(recovered.sequence >= acknowledged, "seed {seed}");
    }
    assert_eq!(crashes, 180);
}

#[test]
fn a_torn_superblock_leaves_the_other_one() {
    let machine = formatted(1);
    let mut dice = Dice(1);
    let (mut ledger, _) = Ledger::open(drives(&machine), 1).unwrap();
    for _ in 0..10 {
        transact(&mut ledger, &mut dice).unwrap();
    }
    ledger.checkpoint(1).unwrap();
    drop(ledger);
    for slot in [0, BLOCK] {
        let copy = machine.lock().unwrap().durable.clone();
        let torn = Machine::make(1, 4 << 20);
        torn.lock().unwrap().durable = copy;
        torn.lock().unwrap().durable[0][slot + 100] ^= 1;
        assert_eq!(Ledger::open(drives(&torn), 1).unwrap().1.sequence, 10, "slot {slot}");
    }
}

/// Runs a ledger, then does something to its disks that no crash does.
fn ruined(
    disks: usize,
    ruin: impl Fn(&mut Machine, &dyn Fn(&Machine) -> Vec<Vec<u8>>),
) -> Result<u64, LedgerError> {
    let machine = formatted(disks);
    let mut dice = Dice(9);
    let (mut ledger, _) = Ledger::open(drives(&machine), 1).unwrap();
    for _ in 0..15 {
        transact(&mut ledger, &mut dice).unwrap();
    }
    for drive in &mut drives(&machine) {
        drive.flush().unwrap();
    }
    drop(ledger);
    ruin(&mut machine.lock().unwrap(), &|machine| machine.durable.clone());
    Ledger::open(drives(&machine), 1).map(|(_, recovered)| recovered.sequence)
}

#[track_caller]
fn assert_found(result: Result<u64, LedgerError>, part: &str) {
    match result {
        Err(LedgerError::Inconsistent(findings)) => {
            assert!(findings.iter().any(|finding| finding.contains(part)), "{findings:?}")
        }
        other => panic!("must be found inconsistent, is {other:?}"),
    }
}

const LOG: usize = 64 << 10;

/// Where in the ring records begin, with their numbers.
fn records(disk: &[u8]) -> Vec<(usize, u64)> {
    (LOG..LOG + (512 << 10))
        .step_by(BLOCK)
        .filter(|at| disk[*at..].starts_with(b"CTRECORD"))
        .map(|at| (at, u64::from_le_bytes(disk[at + 32..at + 40].try_into().unwrap())))
        .collect()
}

#[test]
fn what_no_crash_leaves_is_found() {
    assert_eq!(ruined(1, |_, _| {}).unwrap(), 15, "unruined, it is whole");
    assert_eq!(ruined(2, |_, _| {}).unwrap(), 15);
    // A record in the middle is rotten: those behind it have no forerunner.
    let rot = |machine: &mut Machine, _: &dyn Fn(&Machine) -> Vec<Vec<u8>>| {
        let (at, _) = records(&machine.durable[0])[7];
        machine.durable[0][at + BLOCK + 70] ^= 4;
    };
    assert_found(ruined(1, rot), "history has a hole");
    // The log's disk is older than the table's: a write overtook another.
    let behind = |machine: &mut Machine, _: &dyn Fn(&Machine) -> Vec<Vec<u8>>| {
        for (at, sequence) in records(&machine.durable[0]) {
            if sequence > 10 {
                machine.durable[0][at..at + BLOCK].fill(0);
            }
        }
    };
    assert_found(ruined(2, behind), "overtook");
    // A page of the table was never written back after a checkpoint said so.
    let lost = |machine: &mut Machine, _: &dyn Fn(&Machine) -> Vec<Vec<u8>>| {
        let from = LOG + (512 << 10);
        let rotten =
            machine.durable[0][from..].chunks(BLOCK).position(|page| page[32..40] == [0; 8]).unwrap();
        machine.durable[0][from + rotten * BLOCK + 99] ^= 1;
    };
    assert_found(ruined(1, lost), "damaged and not in the log");
    // Two disks change places.
    assert_found(ruined(3, |machine, _| machine.durable.swap(1, 2)), "swapped");
    // Another disk stands in.
    assert_found(ruined(2, |machine, _| machine.durable[1].fill(0)), "no superblock");
}

#[test]
fn a_write_that_was_confirmed_and_lost_is_found() {
    let mut found = 0;
    for seed in 0..20 {
        let machine = formatted(1);
        let mut dice = Dice(seed);
        let (mut ledger, _) = Ledger::open(drives(&machine), 1).unwrap();
        machine.lock().unwrap().lies = true;
        for _ in 0..60 {
            transact(&mut ledger, &mut dice).unwrap();
            if dice.roll(15) == 0 {
                ledger.checkpoint(1).unwrap();
            }
        }
        let acknowledged = ledger.sequence();
        drop(ledger);
        // One whole write of the middle is missing, everything else is there.
        let mut held = machine.lock().unwrap();
        let lost = held.cache.len() as u64 / 4 + dice.roll(held.cache.len() as u64 / 2);
        held.cache.remove(lost as usize);
        held.write_down(&mut Dice(0), |_| true);
        drop(held);
        match Ledger::open(drives(&machine), 1) {
            Err(LedgerError::Inconsistent(_)) => found += 1,
            // Where a later write covers the lost one, nothing is missing.
            Ok((_, recovered)) => assert_eq!(recovered.sequence, acknowledged, "seed {seed}"),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(found > 0, "at least one of the lost writes mattered");
}

#[test]
fn other_peoples_disks_are_left_alone() {
    let machine = Machine::make(1, 4 << 20);
    machine.lock().unwrap().durable[0][100] = 1;
    assert!(matches!(Ledger::open(drives(&machine), 1), Err(LedgerError::Foreign(_))));
    let small = Machine::make(2, 1 << 20);
    assert!(matches!(format(&mut drives(&small), [1; 16], 1), Err(LedgerError::Unsuitable(_))));
}
