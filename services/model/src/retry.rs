//! When a failed exchange is tried again.
//!
//! Recoverable trouble (network, space, memory): 1, 2, 4, 8, 10 minutes, then every 30, with jitter.
//! A connection lost on a healthy network is tried within a second first. Trouble that waiting does
//! not mend (authentication, authorisation, an invalid state) is never retried: it raises an alert.

use crate::fault::FaultClass;
use crate::world::Entropy;
use std::time::Duration;

/// Whether waiting can mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// The link broke: first at once, then as `Recoverable`.
    ConnectionLost,
    /// Network, space or memory.
    Recoverable,
    /// Needs a person.
    NotRecoverable,
}

impl RetryClass {
    /// The class of a fault: what the network, a restart or a change of roles may mend is tried again; what a person must
    /// mend (who may do what, what is configured, what exists) is not, however often it is tried.
    pub const fn of(class: FaultClass) -> Self {
        match class {
            FaultClass::NotConnected | FaultClass::NotReady => Self::ConnectionLost,
            FaultClass::Failed => Self::Recoverable,
            FaultClass::Refused
            | FaultClass::WaitingForApproval
            | FaultClass::Configuration
            | FaultClass::Usage
            | FaultClass::NotFound
            | FaultClass::Conflict => Self::NotRecoverable,
        }
    }
}

/// Counts attempts and says how long to wait before the next.
#[derive(Debug, Clone, Default)]
pub struct RetrySchedule {
    quick: u32,
    slow: u32,
}

/// Quick attempts after a lost connection, in milliseconds. Together about half a minute, so that the
/// restart of a peer is found by them and not by the minutes after.
const QUICK_MILLIS: [u64; 12] = [20, 50, 100, 200, 400, 800, 1_000, 2_000, 3_000, 5_000, 8_000, 10_000];
const SLOW_MINUTES: [u64; 5] = [1, 2, 4, 8, 10];
const LAST_MINUTES: u64 = 30;

impl RetrySchedule {
    /// Starts over: something worked, or a person pressed "retry now".
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// How long to wait before the next attempt; `None` where no attempt may be made.
    pub fn next(&mut self, class: RetryClass, entropy: &mut dyn Entropy) -> Option<Duration> {
        let millis = match class {
            RetryClass::NotRecoverable => return None,
            RetryClass::ConnectionLost if (self.quick as usize) < QUICK_MILLIS.len() => {
                self.quick += 1;
                QUICK_MILLIS[self.quick as usize - 1]
            }
            RetryClass::ConnectionLost | RetryClass::Recoverable => {
                let minutes = SLOW_MINUTES.get(self.slow as usize).copied().unwrap_or(LAST_MINUTES);
                self.slow = self.slow.saturating_add(1);
                minutes * 60_000
            }
        };
        // Up to a tenth later, so that a hundred agents do not come back in the same instant.
        let mut byte = [0u8];
        entropy.fill(&mut byte);
        Some(Duration::from_millis(millis + millis * u64::from(byte[0]) / 2_560))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zero;
    impl Entropy for Zero {
        fn fill(&mut self, out: &mut [u8]) {
            out.fill(0);
        }
    }

    #[test]
    fn the_schedule_is_the_published_one() {
        let mut schedule = RetrySchedule::default();
        let minutes: Vec<u64> = (0..8)
            .filter_map(|_| schedule.next(RetryClass::Recoverable, &mut Zero))
            .map(|wait| wait.as_secs() / 60)
            .collect();
        assert_eq!(minutes, [1, 2, 4, 8, 10, 30, 30, 30]);
        schedule.reset();
        assert_eq!(schedule.next(RetryClass::Recoverable, &mut Zero), Some(Duration::from_secs(60)));
        assert_eq!(schedule.next(RetryClass::NotRecoverable, &mut Zero), None);
    }

    #[test]
    fn what_a_person_must_mend_is_not_tried_again() {
        let rows = [
            (FaultClass::NotConnected, RetryClass::ConnectionLost),
            (FaultClass::NotReady, RetryClass::ConnectionLost),
            (FaultClass::Failed, RetryClass::Recoverable),
            (FaultClass::Refused, RetryClass::NotRecoverable),
            (FaultClass::WaitingForApproval, RetryClass::NotRecoverable),
            (FaultClass::Configuration, RetryClass::NotRecoverable),
            (FaultClass::Usage, RetryClass::NotRecoverable),
            (FaultClass::NotFound, RetryClass::NotRecoverable),
            (FaultClass::Conflict, RetryClass::NotRecoverable),
        ];
        for (class, expected) in rows {
            let found = RetryClass::of(class);
            assert_eq!(found, expected, "{class:?}");
            let tried = RetrySchedule::default().next(found, &mut Zero).is_some();
            assert_eq!(tried, expected != RetryClass::NotRecoverable, "{class:?}");
        }
    }

    #[test]
    fn a_lost_connection_is_tried_within_a_second() {
        let mut schedule = RetrySchedule::default();
        let quick: Duration =
            (0..5).filter_map(|_| schedule.next(RetryClass::ConnectionLost, &mut Zero)).sum();
        assert!(quick < Duration::from_secs(1));
    }
}
