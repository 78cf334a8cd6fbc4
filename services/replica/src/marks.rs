//! What people and drills said of points: pins, locks and proofs. Kept apart from the journal, which never changes.
//!
//! A lock ends when two clocks agree that it has: the wall, and the time that this store was open since the lock was
//! set. Whoever sets the wall forward gains nothing, and a store that lay switched off keeps its locks longer.

use continuum_model::id::PointId;
use continuum_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was proven of a point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proofs {
    /// A machine came up from it.
    pub booted: Option<bool>,
    /// Its probes passed.
    pub probed: Option<bool>,
    /// Source and replica had the same digest.
    pub digest_equal: Option<bool>,
}

/// What is said of one point.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Retention leaves it alone.
    pub pinned: bool,
    /// What was proven.
    pub proofs: Proofs,
    /// Until when nobody may let it go: no retention, no lack of space, no person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Lock>,
}

/// How long a point cannot be let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// By the wall.
    pub until: Timestamp,
    /// By the time that the store was open, in seconds ever.
    pub open_seconds: u64,
}

impl Mark {
    /// Whether retention leaves the point alone, when the two clocks show this.
    pub(crate) fn holds(&self, now: Timestamp, open_seconds: u64) -> bool {
        self.pinned || self.is_locked(now, open_seconds)
    }

    pub(crate) fn is_locked(&self, now: Timestamp, open_seconds: u64) -> bool {
        self.lock.is_some_and(|lock| now < lock.until || open_seconds < lock.open_seconds)
    }
}

/// All marks of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// By point.
    pub points: BTreeMap<PointId, Mark>,
    /// How long this store was open, in seconds ever, as far as that is on record.
    #[serde(default)]
    pub open_seconds: u64,
}
