//! Clock and randomness, handed in: a seed can drive the whole vault.

use continuum_model::time::Timestamp;
use continuum_model::world::{Clock, Entropy, StrictlyLater, SystemClock, SystemEntropy};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where time and chance come from.
pub(crate) struct World {
    clock: Arc<dyn Clock>,
    entropy: Mutex<Box<dyn Entropy>>,
    later: StrictlyLater,
}

impl Default for World {
    fn default() -> Self {
        Self {
            clock: Arc::new(SystemClock::default()),
            entropy: Mutex::new(Box::new(SystemEntropy)),
            later: StrictlyLater::default(),
        }
    }
}

impl World {
    /// The wall clock.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// A moment later than any this gave before: for revisions.
    pub(crate) fn stamp(&self) -> Timestamp {
        self.later.stamp(self.clock.wall())
    }

    /// Time since the start; never goes back.
    pub(crate) fn uptime(&self) -> Duration {
        self.clock.uptime()
    }

    /// A new id, by one of the `make` functions of the model's ids.
    pub(crate) fn id<T>(&self, make: fn(Timestamp, &mut dyn Entropy) -> T) -> T {
        let mut entropy = self.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        make(self.now(), &mut **entropy)
    }

    /// Lends the randomness.
    pub(crate) fn with_entropy<T>(&self, f: impl FnOnce(&mut dyn Entropy) -> T) -> T {
        let mut entropy = self.entropy.lock().unwrap_or_else(PoisonError::into_inner);
        f(&mut **entropy)
    }

    /// Twelve hexadecimal digits that tie an error to its log lines.
    pub(crate) fn correlation(&self) -> String {
        let mut bytes = [0; 6];
        self.with_entropy(|entropy| entropy.fill(&mut bytes));
        crate::store::hex(&bytes)
    }
}
