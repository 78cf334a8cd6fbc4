//! Protection policies, validated as a whole; and which old points are kept.

use crate::time::Timestamp;
use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// What an operator may configure for a protection. Defaults follow the reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How far back any moment can be brought up, in seconds.
    pub retention_seconds: u64,
    /// Most bytes that history may take; `None`: as much as retention needs.
    pub history_bytes_max: Option<Bytes>,
    /// Seconds between listed crash-consistent points.
    pub crash_point_seconds: u64,
    /// Seconds between application-consistent points; 0: none.
    pub app_point_seconds: u64,
    /// RPO above this raises an alert. An alarm, never an action.
    pub rpo_threshold_seconds: u64,
    /// Most bytes of staging at the source before the feed falls back to the change map.
    pub staging_bytes_max: Bytes,
    /// Whether payloads are compressed on the way.
    pub compression: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retention_seconds: 24 * 3600,
            history_bytes_max: None,
            crash_point_seconds: 300,
            app_point_seconds: 3600,
            rpo_threshold_seconds: 900,
            staging_bytes_max: Bytes::gib(1),
            compression: true,
        }
    }
}

/// One thing that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {fix}")]
pub struct PolicyProblem {
    /// Which field.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub fix: &'static str,
}

impl Policy {
    /// All that is wrong, at once.
    pub fn problems(&self) -> Vec<PolicyProblem> {
        let mut problems = Vec::new();
        let mut check = |field, wrong: bool, problem: String, fix| {
            if wrong {
                problems.push(PolicyProblem { field, problem, fix });
            }
        };
        const DAY: u64 = 24 * 3600;
        let retention = self.retention_seconds;
        check(
            "retention_seconds",
            !(60..=30 * DAY).contains(&retention),
            format!("{retention} s is out of range"),
            "choose 60 s to 30 days",
        );
        check(
            "crash_point_seconds",
            self.crash_point_seconds < 1 || self.crash_point_seconds > retention,
            format!("{} s is out of range", self.crash_point_seconds),
            "choose at least 1 s and at most the retention",
        );
        check(
            "app_point_seconds",
            self.app_point_seconds != 0 && self.app_point_seconds >= retention,
            format!("{} s is not shorter than the retention of {retention} s", self.app_point_seconds),
            "choose a shorter interval, or 0 for none",
        );
        check(
            "rpo_threshold_seconds",
            self.rpo_threshold_seconds == 0,
            "0 s would always alarm".into(),
            "choose at least 1 s",
        );
        check(
            "staging_bytes_max",
            self.staging_bytes_max < Bytes::mib(64),
            format!("{} cannot hold a batch of the longest writes", self.staging_bytes_max),
            "choose at least 64 MiB",
        );
        problems
    }

    /// The oldest moment that is promised now.
    pub fn oldest_promised(&self, now: Timestamp) -> Timestamp {
        now.minus(std::time::Duration::from_secs(self.retention_seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_every_problem_names_its_field() {
        assert_eq!(Policy::default().problems(), []);
        let wrong = Policy {
            retention_seconds: 10,
            crash_point_seconds: 0,
            app_point_seconds: 3600,
            rpo_threshold_seconds: 0,
            staging_bytes_max: Bytes(1),
            ..Policy::default()
        };
        let fields: Vec<_> = wrong.problems().iter().map(|problem| problem.field).collect();
        assert_eq!(
            fields,
            [
                "retention_seconds",
                "crash_point_seconds",
                "app_point_seconds",
                "rpo_threshold_seconds",
                "staging_bytes_max"
            ]
        );
    }
}
