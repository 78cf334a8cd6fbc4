//! How busy a replica's disk is with making frames durable: what tells a slow target from a slow link.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is measured of one replica. Whoever appends writes it, whoever reports reads it.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    /// Bytes received and not durable yet.
    pub(crate) waiting: AtomicU64,
    append: Mutex<Append>,
}

#[derive(Debug, Default)]
struct Append {
    since: Option<Instant>,
    /// The longest since it was last told.
    longest: Duration,
}

impl Busy {
    fn append(&self) -> std::sync::MutexGuard<'_, Append> {
        self.append.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A group of frames is being made durable from now on.
    pub(crate) fn begins(&self) {
        self.append().since = Some(Instant::now());
    }

    /// It is, or never will be: so many bytes wait no more.
    pub(crate) fn ends(&self, bytes: u64) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        let mut append = self.append();
        if let Some(since) = append.since.take() {
            append.longest = append.longest.max(since.elapsed());
        }
    }

    /// The stream ended: what waited is not here any more.
    pub(crate) fn idle(&self) {
        self.waiting.store(0, Ordering::Relaxed);
        self.append().since = None;
    }

    /// For how long the present group has been under way, and the longest since this was last asked.
    pub(crate) fn told(&self) -> (Duration, Duration) {
        let mut append = self.append();
        let now = append.since.map_or(Duration::ZERO, |since| since.elapsed());
        (now, std::mem::take(&mut append.longest).max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_append_is_told_while_it_lasts_and_once_after_it() {
        let busy = Busy::default();
        busy.waiting.fetch_add(10, Ordering::Relaxed);
        assert_eq!(busy.told(), (Duration::ZERO, Duration::ZERO));
        busy.begins();
        std::thread::sleep(Duration::from_millis(2));
        let (now, longest) = busy.told();
        assert!(now >= Duration::from_millis(2) && longest == now);
        busy.ends(10);
        let (now, longest) = busy.told();
        assert!(now.is_zero() && longest >= Duration::from_millis(2));
        assert_eq!(busy.told().1, Duration::ZERO);
        assert_eq!(busy.waiting.load(Ordering::Relaxed), 0);
    }
}
