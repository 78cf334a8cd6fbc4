//! Clock and randomness as traits: real ones in a service, seeded ones in a simulation.
//!
//! Disks are traits, too, but live with their users: `capture` sees block devices, `replica` a
//! folder of files.

use crate::time::Timestamp;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// Tells the time. Two clocks in one: a wall for labels, a monotonic one for spans.
pub trait Clock: Send + Sync {
    /// The wall clock, in UTC. May jump; never used for order.
    fn wall(&self) -> Timestamp;
    /// Time since some fixed start; never goes back.
    fn uptime(&self) -> Duration;
}

/// Gives random bytes. In services from the kernel, in simulations from the seed.
pub trait Entropy: Send {
    /// Fills all of `out`.
    fn fill(&mut self, out: &mut [u8]);
}

/// A wall clock that is made strictly increasing: each call returns a moment later than the one
/// before, by a microsecond where the wall stood still or went back.
#[derive(Debug, Default)]
pub struct StrictlyLater(AtomicI64);

impl StrictlyLater {
    /// Starts after `floor`: the newest moment that is already on record.
    pub const fn after(floor: Timestamp) -> Self {
        Self(AtomicI64::new(floor.micros()))
    }
    /// The moment for something that happens now, when the wall shows `wall`.
    pub fn stamp(&self, wall: Timestamp) -> Timestamp {
        let mut before = self.0.load(Ordering::Relaxed);
        loop {
            let now = wall.micros().max(before.saturating_add(1));
            match self.0.compare_exchange_weak(before, now, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Timestamp::from_micros(now),
                Err(other) => before = other,
            }
        }
    }
}

/// The clock of the machine we run on.
#[derive(Debug)]
pub struct SystemClock {
    started: std::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { started: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Timestamp::from_micros(since.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }
    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Randomness from the kernel.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) {
        // The kernel's generator fails only where the system call itself is forbidden. Going on with
        // known bytes would make keys and ids guessable: stopping is the only safe answer.
        getrandom::fill(out).expect("the kernel gives random bytes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_only_go_up_when_the_wall_goes_back() {
        let stamps = StrictlyLater::default();
        let at = |micros| stamps.stamp(Timestamp::from_micros(micros)).micros();
        assert_eq!([at(10), at(10), at(5), at(20)], [10, 11, 12, 20]);
    }
}
