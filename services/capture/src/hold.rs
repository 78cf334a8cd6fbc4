//! Holding acknowledgements for a moment, so that several machines can cut one barrier together.
//!
//! ```text
//! begin (under the feed's lock, with the barrier) ─► writes behind the barrier are applied, and not acknowledged
//!        ─► end, or the deadline by our own clock, whatever comes first ─► all of them are acknowledged
//! ```
//!
//! Lives here: who waits, and for how long. Lives elsewhere: when it begins (`source`), who asks for it (the agent).
//!
//! Why this makes a cut that several machines share: a write that anything elsewhere can depend on was acknowledged. What
//! was acknowledged before the hold stands before the barrier; what stands behind it is acknowledged only after every
//! machine has cut. A write waits with its range locked, so that nobody reads what may yet be behind the cut.
//!
//! Invariant: nobody waits beyond the deadline, not even for whoever began the hold. A hold whose deadline passed is not
//! whole, and nothing may be concluded from it.

use continuum_model::world::Clock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One hold. Given back to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// How a hold was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// It lasted until it was ended: no write was acknowledged before.
    pub whole: bool,
    /// How long it lasted: to its end, or to its deadline.
    pub lasted: Duration,
    /// Writes that waited for it.
    pub writes: u64,
}

#[derive(Default)]
pub(crate) struct Hold {
    /// The one under way; 0: none. Set under the feed's lock, so that a write behind the barrier sees it.
    now: AtomicU64,
    inner: Mutex<Inner>,
    ended: Condvar,
}

#[derive(Default)]
struct Inner {
    last: u64,
    began: Duration,
    until: Duration,
    writes: u64,
}

impl Hold {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one of at most `most`. The caller holds the feed's lock. `None`: another one is under way.
    pub(crate) fn begin(&self, clock: &dyn Clock, most: Duration) -> Option<Ticket> {
        let now = clock.uptime();
        let mut inner = self.inner();
        if self.now.load(Ordering::Acquire) != 0 && now < inner.until {
            return None;
        }
        *inner = Inner { last: inner.last + 1, began: now, until: now + most, writes: 0 };
        self.now.store(inner.last, Ordering::Release);
        Some(Ticket(inner.last))
    }

    /// The one under way. To be asked with the feed's lock held, and waited for without it.
    pub(crate) fn under_way(&self) -> Option<Ticket> {
        Some(self.now.load(Ordering::Acquire)).filter(|ticket| *ticket != 0).map(Ticket)
    }

    /// Waits until this one is over.
    pub(crate) fn wait(&self, ticket: Ticket, clock: &dyn Clock) {
        let mut inner = self.inner();
        if inner.last == ticket.0 {
            inner.writes += 1;
        }
        while self.now.load(Ordering::Acquire) == ticket.0 {
            let left = inner.until.saturating_sub(clock.uptime());
            if left.is_zero() {
                self.now.store(0, Ordering::Release);
                self.ended.notify_all();
                return;
            }
            inner = self.ended.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends one. Ended already, or over its deadline: not whole.
    pub(crate) fn end(&self, ticket: Ticket, clock: &dyn Clock) -> Held {
        let inner = self.inner();
        let now = clock.uptime();
        if inner.last != ticket.0 {
            return Held { whole: false, lasted: Duration::ZERO, writes: 0 };
        }
        let whole = self.now.load(Ordering::Acquire) == ticket.0 && now < inner.until;
        self.now.compare_exchange(ticket.0, 0, Ordering::AcqRel, Ordering::Relaxed).ok();
        self.ended.notify_all();
        Held { whole, lasted: now.min(inner.until).saturating_sub(inner.began), writes: inner.writes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::world::SystemClock;
    use std::sync::Arc;

    #[test]
    fn a_hold_ends_by_its_owner_or_by_its_deadline_and_says_which() {
        let (hold, clock) = (Arc::new(Hold::default()), Arc::new(SystemClock::default()));
        assert_eq!(hold.under_way(), None);
        let ticket = hold.begin(&*clock, Duration::from_secs(60)).unwrap();
        assert_eq!(hold.begin(&*clock, Duration::from_secs(60)), None, "one at a time");
        let waiting = {
            let (hold, clock) = (hold.clone(), clock.clone());
            std::thread::spawn(move || hold.wait(ticket, &*clock))
        };
        while hold.inner().writes == 0 {
            std::thread::yield_now();
        }
        assert!(!waiting.is_finished());
        let held = hold.end(ticket, &*clock);
        waiting.join().unwrap();
        assert!(held.whole && held.writes == 1 && held.lasted < Duration::from_secs(60), "{held:?}");
        assert!(!hold.end(ticket, &*clock).whole, "it was over");

        let late = hold.begin(&*clock, Duration::from_millis(5)).unwrap();
        hold.wait(late, &*clock);
        let held = hold.end(late, &*clock);
        assert!(!held.whole && held.lasted == Duration::from_millis(5), "{held:?}");
        let next = hold.begin(&*clock, Duration::from_millis(1)).unwrap();
        while clock.uptime() < hold.inner().until {
            std::thread::yield_now();
        }
        let after = hold.begin(&*clock, Duration::from_secs(60)).unwrap();
        assert!(next != after && !hold.end(next, &*clock).whole, "over by itself, though nobody waited");
        assert_eq!(hold.under_way(), Some(after), "an old ticket ends no new hold");
    }
}
