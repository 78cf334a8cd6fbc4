//! What a process guest does with its disks: it keeps a ledger.

use super::Life;
use super::drive::{Address, Drive};
use crate::compute::GuestSpec;
use crate::lab::ledger::{self, Ledger, LedgerError, Recovered};
use crate::lab::vitals::State;
use continuum_model::time::Timestamp;
use continuum_model::world::{Clock, Entropy, SystemClock, SystemEntropy};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

/// Opens the ledger, makes one where that is allowed, and writes until the end.
pub(super) fn run(spec: &GuestSpec, life: &Life) -> Result<(), String> {
    let clock = SystemClock::default();
    let (mut ledger, recovered) = open(spec, life, &clock)?;
    eprintln!("up: {}", told(&recovered));
    life.pulse.update(|vitals| {
        vitals.state = State::Running;
        vitals.reason.clear();
        vitals.consistent = Some(true);
        vitals.boots = recovered.boots;
        vitals.recovered = recovered.sequence;
        vitals.recovered_time_us = recovered.time_us;
        vitals.recovery = told(&recovered);
        vitals.sequence = recovered.sequence;
        vitals.sequence_time_us = recovered.time_us;
        vitals.up_after_ms = u64::try_from(life.started.elapsed().as_millis()).ok();
    });
    let mut acknowledged = match &spec.settings.acknowledged {
        Some(path) => {
            let opened = File::options().append(true).create(true).open(path);
            Some(opened.map_err(|error| format!("{}: {error}", path.display()))?)
        }
        None => None,
    };
    let mut dice = Dice(spec.settings.seed ^ recovered.boots.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut due = Instant::now();
    loop {
        match spec.settings.writes_per_second {
            0 => {
                while !life.is_over() {
                    life.pause(Duration::from_secs(3600));
                }
            }
            rate => {
                // Between a half and one and a half of the mean, so that machines do not beat as one.
                due += Duration::from_micros(1_000_000 / u64::from(rate) * (500 + dice.roll(1_000)) / 1_000);
                // A disk that was away is not made up for.
                due = due.max(Instant::now());
                life.pause(due.saturating_duration_since(Instant::now()));
            }
        }
        if life.is_over() {
            break;
        }
        let transfers = draw(&mut dice, ledger.accounts());
        let now = clock.wall().micros();
        match ledger.transact(&transfers, now) {
            Ok(sequence) => {
                if let Some(file) = &mut acknowledged {
                    writeln!(file, "{sequence}")
                        .map_err(|error| format!("the list of acknowledged writes: {error}"))?;
                }
                let interruptions = ledger.disks().iter().map(ledger::Disk::interruptions).sum();
                life.pulse.update(|vitals| {
                    vitals.sequence = sequence;
                    vitals.sequence_time_us = now;
                    vitals.interruptions = interruptions;
                });
            }
            // Drives give up only at the end.
            Err(LedgerError::Disk { .. }) if life.is_over() => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
    }
    // In order, so that the next start has nothing to replay. Best effort: a crash would do as well.
    if let Err(error) = ledger.checkpoint(clock.wall().micros()) {
        eprintln!("the last checkpoint was not made: {error}");
    }
    eprintln!("down at transaction {}", ledger.sequence());
    Ok(())
}

fn open(spec: &GuestSpec, life: &Life, clock: &SystemClock) -> Result<(Ledger<Drive>, Recovered), String> {
    let drives = || -> Result<Vec<Drive>, String> {
        let open = |disk: &crate::compute::GuestDisk| {
            let address =
                Address::parse(&disk.uri).ok_or_else(|| format!("disk {} has no NBD address", disk.name))?;
            Drive::open(&disk.name, address, life.clone()).map_err(|error| error.to_string())
        };
        spec.disks.iter().map(open).collect()
    };
    let mut formatted = false;
    loop {
        let error = match Ledger::open(drives()?, clock.wall().micros()) {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let state = match &error {
            LedgerError::Unformatted if !spec.replica && !formatted => {
                eprintln!("the disks are empty: making a ledger");
                let mut id = [0; 16];
                SystemEntropy.fill(&mut id);
                ledger::format(&mut drives()?, id, clock.wall().micros())
                    .map_err(|error| error.to_string())?;
                formatted = true;
                continue;
            }
            LedgerError::Unformatted => State::Unformatted,
            LedgerError::Inconsistent(_) | LedgerError::Foreign(_) => State::Inconsistent,
            LedgerError::Unsuitable(_) | LedgerError::Disk { .. } => State::Failed,
        };
        life.pulse.update(|vitals| {
            vitals.state = state;
            vitals.consistent = (state == State::Inconsistent).then_some(false);
        });
        return Err(error.to_string());
    }
}

fn told(recovered: &Recovered) -> String {
    let Recovered { sequence, time_us, replayed, pages, boots } = recovered;
    let at = Timestamp::from_micros(*time_us);
    format!(
        "boot {boots}: at transaction {sequence} of {at}, {replayed} replayed from the log, {pages} pages checked, all sums right"
    )
}

/// One to four transfers; four of five touch the hot sixteenth.
fn draw(dice: &mut Dice, accounts: u64) -> Vec<(u64, u64, i64)> {
    let account = |dice: &mut Dice| {
        if dice.roll(5) < 4 { dice.roll(accounts / 16) } else { dice.roll(accounts) }
    };
    (0..1 + dice.roll(4))
        .map(|_| {
            let (from, to) = (account(dice), account(dice));
            (from, to, 1 + dice.roll(100).cast_signed())
        })
        .collect()
}

/// SplitMix64: the same choices for the same seed.
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below.max(1)
    }
}
