//! Protection policies, validated as a whole; and which old points are kept.

use crate::hours::{Hours, TimeOfDay, Weekday};
use crate::time::Timestamp;
use crate::units::Bytes;
use serde::{Deserialize, Serialize};

/// What an operator may configure for a protection. Defaults follow the reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How far back any moment can be brought up, in seconds.
    pub retention_seconds: u64,
    /// What is kept of older history, from fine to coarse: one state of every so long, up to an age.
    pub steps: Vec<RetentionStep>,
    /// Most bytes that history may take; `None`: as much as retention needs.
    pub history_bytes_max: Option<Bytes>,
    /// Seconds between listed crash-consistent points.
    pub crash_point_seconds: u64,
    /// Seconds between application-consistent points; 0: none.
    pub app_point_seconds: u64,
    /// RPO above this raises an alert. An alarm, never an action.
    pub rpo_threshold_seconds: u64,
    /// Most bytes of staging at the source before the feed falls back to the change map; 0: half of the machine's disks.
    pub staging_bytes_max: Bytes,
    /// Whether payloads are compressed on the way.
    pub compression: bool,
    /// Whether what is kept of the machine at the recovery site is sealed: readable with the vault's key only.
    pub encryption: bool,
    /// Seconds between the cycles of a source that is looked at now and then; 0: every write as it happens, where the
    /// source can tell.
    pub replication_interval_seconds: u64,
    /// How fast change data may leave for the recovery site, by weekday and hour: of those that lie around the moment
    /// the first counts; none: as fast as the link.
    pub bandwidth: Vec<BandwidthLimit>,
    /// When a resync may run; `None`: at once.
    pub resync_window: Option<Hours>,
}

/// How fast change data may leave during some hours of the week.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthLimit {
    /// On which days it begins; none named: on all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Weekday>,
    /// From this time of day of the process server.
    pub from: TimeOfDay,
    /// Up to this one, of the next day where it is not later.
    pub to: TimeOfDay,
    /// Bytes a second, over any longer time.
    pub bytes_per_sec: u64,
}

impl BandwidthLimit {
    /// When it holds.
    pub fn hours(&self) -> Hours {
        Hours { days: self.days.clone(), from: self.from, to: self.to }
    }
}

/// How fast change data may leave at a minute of a day by a schedule, of which the first that holds counts; `None`: as
/// fast as the link.
pub fn limit_at(schedule: &[BandwidthLimit], day: Weekday, minute: u32) -> Option<u64> {
    schedule.iter().find(|limit| limit.hours().contains(day, minute)).map(|limit| limit.bytes_per_sec)
}

/// What is wrong with a schedule, each with what would be right.
pub fn schedule_problems(schedule: &[BandwidthLimit]) -> Vec<PolicyProblem> {
    schedule
        .iter()
        .filter(|limit| limit.bytes_per_sec < BANDWIDTH_MIN)
        .map(|limit| PolicyProblem {
            field: "bandwidth",
            problem: format!(
                "{} B/s ({}) is too slow for anything to arrive in time",
                limit.bytes_per_sec,
                limit.hours()
            ),
            fix: "choose at least 16,384 bytes a second",
        })
        .collect()
}

/// What is kept of history that is older than the step before, or than the retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionStep {
    /// One state of every so many seconds is kept.
    pub every_seconds: u64,
    /// Up to this age, in seconds.
    pub for_seconds: u64,
}

/// A stretch of old history of which one state is kept: the length of such stretches in seconds, and which it is.
pub type Bucket = (u64, i64);

/// The slowest that a schedule may ask for, in bytes a second.
const BANDWIDTH_MIN: u64 = 16 << 10;

/// The smallest staging.
const STAGING_MIN: Bytes = Bytes::mib(64);

/// What a policy's staging budget means for a machine with so many bytes of disks.
pub fn staging_for(budget: Bytes, disks: Bytes) -> Bytes {
    let bytes = if budget == Bytes(0) { Bytes(disks.0 / 2) } else { budget };
    bytes.max(STAGING_MIN)
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            retention_seconds: 24 * 3600,
            steps: Vec::new(),
            history_bytes_max: None,
            crash_point_seconds: 300,
            app_point_seconds: 3600,
            rpo_threshold_seconds: 900,
            staging_bytes_max: Bytes(0),
            compression: true,
            encryption: false,
            replication_interval_seconds: 0,
            bandwidth: Vec::new(),
            resync_window: None,
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
        let mut before = RetentionStep { every_seconds: 60, for_seconds: retention };
        for step in &self.steps {
            let RetentionStep { every_seconds, for_seconds } = *step;
            check(
                "steps",
                every_seconds < before.every_seconds
                    || for_seconds <= before.for_seconds
                    || every_seconds > for_seconds
                    || for_seconds > 3660 * DAY,
                format!(
                    "one state of every {every_seconds} s for {for_seconds} s does not follow what comes before it"
                ),
                "go from fine to coarse: each step at least as long as the one before (60 s for the first), kept for \
                 longer than that, and for no more than 10 years",
            );
            before = *step;
        }
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
            self.staging_bytes_max != Bytes(0) && self.staging_bytes_max < STAGING_MIN,
            format!("{} cannot hold a batch of the longest writes", self.staging_bytes_max),
            "choose at least 64 MiB, or 0 for half of the machine's disks",
        );
        let interval = self.replication_interval_seconds;
        check(
            "replication_interval_seconds",
            interval != 0 && !(5..=DAY).contains(&interval),
            format!("{interval} s is out of range"),
            "choose 5 s to a day, such as 30, 300 or 900, or 0 for every write as it happens",
        );
        problems.extend(schedule_problems(&self.bandwidth));
        problems
    }

    /// How fast change data may leave at a minute of a day; `None`: as fast as the link.
    pub fn bandwidth_at(&self, day: Weekday, minute: u32) -> Option<u64> {
        limit_at(&self.bandwidth, day, minute)
    }

    /// How far back history is promised, in seconds.
    pub fn promised_seconds(&self) -> u64 {
        self.steps.last().map_or(self.retention_seconds, |step| step.for_seconds)
    }

    /// The oldest moment that is promised now.
    pub fn oldest_promised(&self, now: Timestamp) -> Timestamp {
        now.minus(std::time::Duration::from_secs(self.promised_seconds()))
    }

    /// Which stretch a time belongs to, of which one state is kept now. `None`: every state is.
    ///
    /// Stretches begin at whole multiples of their length, so that what belongs together never changes. One counts
    /// only when all of it is older than what is kept more finely.
    pub fn bucket(&self, now: Timestamp, time: Timestamp) -> Option<Bucket> {
        let (mut finer, mut found) = (self.retention_seconds, None);
        for step in &self.steps {
            let length = i64::try_from(step.every_seconds)
                .ok()?
                .checked_mul(1_000_000)
                .filter(|length| *length > 0)?;
            let number = time.micros().div_euclid(length);
            let end = number.checked_add(1)?.checked_mul(length)?;
            let closed = now.minus(std::time::Duration::from_secs(finer)).micros();
            if end > closed {
                break;
            }
            found = Some((step.every_seconds, number));
            finer = step.for_seconds;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_history_is_kept_more_coarsely() {
        let (hour, day) = (3600, 86_400);
        let steps = [(hour, 7 * day), (day, 30 * day)];
        let step = |(every_seconds, for_seconds)| RetentionStep { every_seconds, for_seconds };
        let policy = Policy { retention_seconds: day, steps: steps.map(step).to_vec(), ..Policy::default() };
        assert_eq!(policy.problems(), []);
        let at = |seconds: u64| Timestamp::from_micros(seconds as i64 * 1_000_000);
        let now = at(1000 * day);
        assert_eq!(policy.oldest_promised(now), at(970 * day));
        assert_eq!(policy.bucket(now, at(999 * day + 1)), None, "not a day old");
        assert_eq!(policy.bucket(now, at(999 * day - 1)), Some((hour, 999 * 24 - 1)));
        assert_eq!(policy.bucket(now, at(999 * day - hour)), Some((hour, 999 * 24 - 1)));
        assert_eq!(policy.bucket(at(1000 * day - 1), at(999 * day - 1)), None, "its hour is not over");
        assert_eq!(policy.bucket(now, at(993 * day - 1)), Some((day, 992)));
        assert_eq!(policy.bucket(now, at(993 * day)), Some((hour, 993 * 24)));
        // What belongs together stays together, and only ever grows.
        for hours in 0..40 * 24 {
            let later = at(1000 * day + hours * hour);
            if let Some((every, number)) = policy.bucket(later, at(990 * day + 77)) {
                assert_eq!(number, (990 * day + 77) as i64 / every as i64);
            }
        }
        let wrong = Policy { steps: vec![step((day, 7 * day)), step((hour, 30 * day))], ..policy };
        assert_eq!(wrong.problems().len(), 1);
        assert_eq!(wrong.problems()[0].field, "steps");
    }

    #[test]
    fn staging_is_half_of_the_disks_unless_the_policy_says_otherwise() {
        assert_eq!(Policy::default().staging_bytes_max, Bytes(0));
        for (why, budget, disks, expected) in [
            ("half", Bytes(0), Bytes::gib(8), Bytes::gib(4)),
            ("never too small for a batch", Bytes(0), Bytes::mib(16), Bytes::mib(64)),
            ("as the policy says", Bytes::gib(1), Bytes::gib(8), Bytes::gib(1)),
        ] {
            assert_eq!(staging_for(budget, disks), expected, "{why}");
        }
        let one = Policy { staging_bytes_max: Bytes(1), ..Policy::default() };
        assert_eq!(one.problems().len(), 1);
    }

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
