//! What a drill or a failover leaves for whoever asks later: times against objectives, moments, losses, probes, problems.
//!
//! ```text
//! {"format":1, "sequence":7, "previous":"<digest of report 6>", …, "digest":"<sha-256>"}
//! ```
//!
//! The digest is that of the report as compact JSON with its keys in order and without `digest`: whoever holds the file
//! can compute it again with any tool (`python3 -c` with `sort_keys`, `jq -cS`). All numbers are whole, so that every
//! tool writes them the same. Each report names the digest of the one before it: one that was changed, left out or put
//! in between does not fit its neighbours.
//!
//! Lives here: the shape, the digest, the chain. Lives elsewhere: making one (the vault, in the transaction that ends
//! the job), showing it (the console).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The shape that this program writes.
pub const FORMAT: u32 = 1;

/// How one run went. Times are microseconds of UTC, spans milliseconds, sizes bytes; texts are raw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The shape: [`FORMAT`].
    pub format: u32,
    /// Its place among the reports of its vault, from 1.
    pub sequence: u64,
    /// The digest of the one before it; empty for the first.
    pub previous: String,
    /// The vault's name and id.
    pub vault: String,
    /// The vault's id.
    pub vault_id: String,
    /// The job that it is about.
    pub run: String,
    /// What was done: `test-failover`, `failover`, of a machine or of a plan.
    pub kind: String,
    /// What it was done to: a machine's name, or `plan/NAME`.
    pub subject: String,
    /// The plan's text as it was when the run began; absent for one machine.
    pub plan: Option<PlanText>,
    /// Who ordered it.
    pub ordered_by: String,
    /// When.
    pub ordered_us: i64,
    /// When it was over.
    pub ended_us: i64,
    /// Which moment was asked for.
    pub asked_point: String,
    /// How it ended: `succeeded`, `warnings`, `failed`, `cancelled`.
    pub outcome: String,
    /// Everything asked for was reached, within its objectives.
    pub passed: bool,
    /// From the order until the last machine answered; absent where none did.
    pub rto_ms: Option<u64>,
    /// The objective for that.
    pub rto_objective_ms: Option<u64>,
    /// The age of the oldest moment that was brought up, as the run was ordered; absent where a moment was chosen by
    /// hand, or none was brought up.
    pub rpo_ms: Option<u64>,
    /// The objective for that.
    pub rpo_objective_ms: Option<u64>,
    /// Its steps, in order.
    pub steps: Vec<ReportStep>,
    /// Its machines, in the order in which they were brought up.
    pub machines: Vec<ReportMachine>,
    /// What went wrong or was missed, in words.
    pub problems: Vec<String>,
    /// See the headline.
    pub digest: String,
}

/// Which text of a plan was run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanText {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// SHA-256 of the YAML.
    pub sha256: String,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportStep {
    /// What it is called.
    pub name: String,
    /// How it ended.
    pub outcome: String,
    /// When it began; absent where it did not.
    pub started_us: Option<i64>,
    /// How long it took.
    pub took_ms: Option<u64>,
    /// How long it took in earlier runs: the median of the newest ten.
    pub planned_ms: Option<u64>,
    /// What it said.
    pub detail: String,
}

/// One machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportMachine {
    /// Its name.
    pub name: String,
    /// The job that brought it up.
    pub job: String,
    /// How that ended.
    pub outcome: String,
    /// The moment that was brought up; absent where none was.
    pub point_us: Option<i64>,
    /// Of which kind it was: `crash`, `app`, `bookmark`.
    pub point_kind: String,
    /// What it is called.
    pub point_name: String,
    /// How old it was as the job was ordered.
    pub point_age_ms: Option<u64>,
    /// What was received after that moment, and would be or was given up.
    pub loss_ms: Option<u64>,
    /// The same in bytes of writes.
    pub loss_bytes: Option<u64>,
    /// From the order until it answered.
    pub rto_ms: Option<u64>,
    /// The steps of its job.
    pub steps: Vec<ReportStep>,
    /// What was asked of it as it ran.
    pub probes: Vec<ReportProbe>,
    /// Why it is not up.
    pub problem: String,
    /// What is to be known about it, such as a gap that the moment asked for lies in.
    pub note: String,
}

/// One probe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportProbe {
    /// What was asked.
    pub name: String,
    /// Whether the answer was right.
    pub passed: bool,
    /// The answer.
    pub detail: String,
}

/// Why a report, or a row of them, is not what a vault wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is no report.
    #[error("it is no report: {0}")]
    Unreadable(String),
    /// A newer program made it.
    #[error("its format is {0}, this program knows {FORMAT}: use a newer one")]
    Newer(u64),
    /// Something in it was changed.
    #[error("it was changed after it was written: its digest is {found}, it says {said}")]
    Digest {
        /// What it is.
        found: String,
        /// What it says.
        said: String,
    },
    /// The one before it is another.
    #[error(
        "report {sequence} follows a report that is not the one given before it: one was changed, or left out"
    )]
    Chain {
        /// Its place.
        sequence: u64,
    },
}

impl Report {
    /// Writes its digest into it.
    ///
    /// Errors: it cannot be written as JSON.
    pub fn seal(mut self) -> Result<Self, serde_json::Error> {
        self.digest = digest(serde_json::to_value(&self)?)?;
        Ok(self)
    }

    /// Reads a report and checks it against its digest. Fields that this program does not know count as well.
    ///
    /// Errors: [`Broken`].
    pub fn read(text: &str) -> Result<Self, Broken> {
        let unreadable = |error: serde_json::Error| Broken::Unreadable(error.to_string());
        let value: serde_json::Value = serde_json::from_str(text).map_err(unreadable)?;
        match value["format"].as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(Broken::Newer(format)),
            None => return Err(Broken::Unreadable("it says no format".into())),
        }
        let said = value["digest"].as_str().unwrap_or_default().to_owned();
        let found = digest(value.clone()).map_err(unreadable)?;
        if found != said {
            return Err(Broken::Digest { found, said });
        }
        serde_json::from_value(value).map_err(unreadable)
    }

    /// Whether it is what comes after `before`, as far as both tell; two with others between them always are.
    ///
    /// Errors: [`Broken::Chain`].
    pub fn follows(&self, before: &Self) -> Result<(), Broken> {
        let next = before.sequence.checked_add(1) == Some(self.sequence);
        let wrong = self.vault_id != before.vault_id
            || self.sequence <= before.sequence
            || (next && self.previous != before.digest);
        if wrong { Err(Broken::Chain { sequence: self.sequence }) } else { Ok(()) }
    }
}

/// Of a report as JSON, whatever its `digest` says.
fn digest(mut value: serde_json::Value) -> Result<String, serde_json::Error> {
    if let Some(fields) = value.as_object_mut() {
        fields.remove("digest");
    }
    value.sort_all_objects();
    let sum = Sha256::digest(serde_json::to_vec(&value)?);
    Ok(sum.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(sequence: u64, previous: &str) -> Report {
        let machine = ReportMachine {
            name: "web-ü\u{1b}[31m".into(),
            outcome: "succeeded".into(),
            rto_ms: Some(1_200),
            probes: vec![ReportProbe { name: "ledger".into(), passed: true, detail: "it goes on".into() }],
            ..ReportMachine::default()
        };
        Report {
            format: FORMAT,
            sequence,
            previous: previous.into(),
            run: "j1".into(),
            machines: vec![machine],
            passed: true,
            ..Report::default()
        }
        .seal()
        .unwrap()
    }

    #[test]
    fn what_was_written_reads_and_any_change_shows() {
        let text = serde_json::to_string_pretty(&report(1, "")).unwrap();
        assert_eq!(Report::read(&text), Ok(report(1, "")));
        for (why, from, to) in [
            ("a time", "1200", "1100"),
            ("an answer", "it goes on", "it went on"),
            ("a field more", "\"run\":", "\"ran\": 1, \"run\":"),
            ("a field less", "\"run\": \"j1\",", ""),
            ("passed", "\"passed\": true,\n  \"rto_ms\"", "\"passed\": false,\n  \"rto_ms\""),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{why}: the test changes nothing");
            assert!(matches!(Report::read(&changed), Err(Broken::Digest { .. })), "{why}");
        }
        assert!(matches!(Report::read("{}"), Err(Broken::Unreadable(_))));
        assert!(matches!(Report::read("[1"), Err(Broken::Unreadable(_))));
        assert_eq!(Report::read("{\"format\": 2}"), Err(Broken::Newer(2)));
    }

    #[test]
    fn a_row_of_reports_shows_what_was_left_out_or_exchanged() {
        let first = report(1, "");
        let second = report(2, &first.digest);
        let third = report(3, &second.digest);
        assert_eq!(second.follows(&first), Ok(()));
        assert_eq!(third.follows(&first), Ok(()), "what lies between them is not at hand");
        assert!(first.follows(&second).is_err(), "the wrong way round");
        let other = report(2, "0000");
        assert!(other.follows(&first).is_err(), "exchanged");
        assert!(third.follows(&other).is_err(), "after an exchanged one");
    }
}
