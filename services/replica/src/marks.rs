//! What people and drills said of points: pins and proofs. Kept apart from the journal, which never changes.

use continuum_model::id::PointId;
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
}

/// All marks of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// By point.
    pub points: BTreeMap<PointId, Mark>,
}
