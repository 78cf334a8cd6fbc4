//! The job engine: a job is a list of named steps, each on record before it begins and after it ends.
//!
//! A saga is plain code that calls [`Saga::step`]. After a crash the code runs again from its beginning: a
//! step that ended gives its recorded answer without happening again; one that was running is done again
//! (its effect is unknown, and every act is idempotent by the step's id). So a job continues at any moment.
//!
//! Cancelling takes effect between steps; what the saga then undoes is its own affair, in steps as well.

use crate::estate::{BroughtUp, Estate, disk_shown, point_shown, probe_shown};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{JobId, MachineId};
use continuum_model::job::{JobState, StepState};
use continuum_proto::v1 as pb;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;

/// What was ordered, as it is kept with its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Order {
    /// Protect a machine.
    Protect {
        /// Under which policy.
        policy: String,
        /// Recovered where.
        target_site: String,
    },
    /// End a protection.
    Unprotect {
        /// Leave the replica where it is.
        keep_replica: bool,
    },
    /// A named recovery point.
    Bookmark {
        /// Its name.
        name: String,
    },
    /// Bring a machine up beside its replica.
    TestFailover {
        /// From which moment.
        point: String,
    },
    /// Remove a test failover.
    Cleanup {
        /// What was seen.
        note: String,
    },
    /// Bring a machine up for good.
    Failover {
        /// From which moment.
        point: String,
    },
    /// Make a failover final.
    Commit,
    /// Compare source and replica.
    Verify,
    /// Something that was done at once: `pause`, `resume`, …
    AtOnce {
        /// Which verb.
        verb: String,
    },
}

impl Order {
    /// Its name in answers.
    pub fn kind(&self) -> &str {
        match self {
            Self::Protect { .. } => "protect",
            Self::Unprotect { .. } => "unprotect",
            Self::Bookmark { .. } => "bookmark",
            Self::TestFailover { .. } => "test-failover",
            Self::Cleanup { .. } => "cleanup",
            Self::Failover { .. } => "failover",
            Self::Commit => "commit",
            Self::Verify => "verify",
            Self::AtOnce { verb } => verb,
        }
    }
}

/// A step as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: StepState,
    /// When it began.
    pub started_us: Option<i64>,
    /// When it ended.
    pub ended_us: Option<i64>,
    /// What happened.
    pub detail: String,
    /// How far it is.
    #[serde(skip)]
    pub progress: Option<f64>,
    /// Its answer, for when the saga runs again.
    pub answer: serde_json::Value,
}

/// What a job came to, for one machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OutcomeRow {
    /// The machine's name.
    pub name: String,
    /// What came up.
    pub up: Option<BroughtUp>,
    /// From the order until its probes passed.
    pub rto_seconds: Option<f64>,
    /// What was given up.
    pub loss_seconds: Option<f64>,
    /// What was given up.
    pub loss_bytes: Option<u64>,
    /// Such as: the moment asked for lies in a gap.
    pub note: String,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRow {
    /// Its id.
    pub id: JobId,
    /// What was ordered.
    pub order: Order,
    /// For which machine.
    pub machine: MachineId,
    /// Its name then.
    pub machine_name: String,
    /// Where it stands.
    pub state: JobState,
    /// When it was ordered.
    pub created_us: i64,
    /// When it began.
    pub started_us: Option<i64>,
    /// When it ended.
    pub ended_us: Option<i64>,
    /// Its steps.
    pub steps: Vec<StepRow>,
    /// Who ordered it.
    pub by: String,
    /// What was asked for, in words.
    pub detail: String,
    /// Why it failed.
    pub fault: Option<Fault>,
    /// What it came to.
    pub outcome: Option<OutcomeRow>,
    /// Digests of source and replica, by disk name.
    pub verified: Vec<(String, String, String)>,
    /// What it waits for.
    pub waiting_for: String,
    /// Someone wants it to stop.
    pub cancel: bool,
    /// How long the same took before.
    pub forecast_seconds: Option<f64>,
}

impl JobRow {
    /// For the wire.
    pub fn shown(&self) -> pb::Job {
        pb::Job {
            id: self.id.to_string(),
            kind: self.order.kind().to_owned(),
            machine: self.machine_name.clone(),
            machine_id: self.machine.to_string(),
            state: self.state.name().into(),
            created_us: self.created_us,
            started_us: self.started_us,
            ended_us: self.ended_us,
            steps: self
                .steps
                .iter()
                .map(|step| pb::Step {
                    name: step.name.clone(),
                    state: step.state.name().into(),
                    started_us: step.started_us,
                    ended_us: step.ended_us,
                    detail: step.detail.clone(),
                    progress: step.progress,
                })
                .collect(),
            by: self.by.clone(),
            detail: self.detail.clone(),
            fault: self.fault.as_ref().map(continuum_wire::grpc::fault_to_proto),
            machines: self
                .outcome
                .iter()
                .map(|outcome| pb::MachineOutcome {
                    name: outcome.name.clone(),
                    point: outcome.up.as_ref().map(|up| point_shown(&up.point)),
                    rto_seconds: outcome.rto_seconds,
                    loss_seconds: outcome.loss_seconds,
                    loss_bytes: outcome.loss_bytes,
                    disks: outcome.up.iter().flat_map(|up| up.disks.iter().map(disk_shown)).collect(),
                    probes: outcome.up.iter().flat_map(|up| up.probes.iter().map(probe_shown)).collect(),
                    note: outcome.note.clone(),
                })
                .collect(),
            may_cancel: self.state.may_cancel() && !self.cancel,
            may_retry: self.state.may_retry(),
            rto_objective_seconds: None,
            forecast_seconds: self.forecast_seconds,
            waiting_for: self.waiting_for.clone(),
            verified: self
                .verified
                .iter()
                .map(|(name, source, replica)| pb::VerifyDisk {
                    name: name.clone(),
                    source_digest: source.clone(),
                    replica_digest: replica.clone(),
                    equal: source == replica,
                })
                .collect(),
        }
    }
}

/// A job that is under way.
pub struct Saga {
    /// The vault's knowledge.
    pub estate: Arc<Estate>,
    /// Sessions of servers.
    pub registry: Arc<crate::registry::Registry>,
    /// The job.
    pub job: JobRow,
    /// Steps that were passed in this run of the code.
    at: usize,
}

/// What a step says beside its answer.
pub struct Said<T> {
    /// The answer.
    pub answer: T,
    /// What happened, in words.
    pub detail: String,
}

/// An answer and what happened.
pub fn said<T>(answer: T, detail: impl Into<String>) -> Said<T> {
    Said { answer, detail: detail.into() }
}

impl Saga {
    /// Takes a job up, new or interrupted.
    pub const fn new(estate: Arc<Estate>, registry: Arc<crate::registry::Registry>, job: JobRow) -> Self {
        Self { estate, registry, job, at: 0 }
    }

    fn now(&self) -> i64 {
        self.estate.clock.wall().micros()
    }

    /// Does a step, or gives the answer that it gave before. `act` gets the step's id, which is the same
    /// every time it is done.
    pub async fn step<T, F>(&mut self, name: &str, act: impl FnOnce(Context) -> F) -> Result<T, Fault>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<Said<T>, Fault>>,
    {
        let at = self.at;
        self.at += 1;
        // The flag may have been set in the row by an order that came meanwhile.
        if let Some(row) = self.estate.job(self.job.id) {
            self.job.cancel |= row.cancel;
        }
        if let Some(step) = self.job.steps.get(at)
            && step.name == name
            && matches!(step.state, StepState::Succeeded | StepState::Warnings)
        {
            return serde_json::from_value(step.answer.clone()).map_err(|error| {
                Fault::new(
                    FaultClass::Failed,
                    "job.record",
                    format!("the record of step {name} cannot be read: {error}"),
                )
            });
        }
        if self.job.cancel && self.job.state != JobState::Undoing {
            return Err(Fault::new(FaultClass::Failed, CANCELLED, "the job was cancelled by an operator"));
        }
        self.job.steps.truncate(at);
        self.job.steps.push(StepRow {
            name: name.to_owned(),
            state: StepState::Running,
            started_us: Some(self.now()),
            ended_us: None,
            detail: String::new(),
            progress: None,
            answer: serde_json::Value::Null,
        });
        // On record before it happens.
        self.estate.put_job(&self.job).await?;
        let context = Context {
            id: format!("{}/{at}", self.job.id),
            estate: self.estate.clone(),
            registry: self.registry.clone(),
            job: self.job.id,
            machine: self.job.machine,
        };
        let done = act(context).await;
        let now = self.now();
        let step = &mut self.job.steps[at];
        step.ended_us = Some(now);
        let outcome = match done {
            Ok(said) => {
                step.state = StepState::Succeeded;
                step.detail = said.detail;
                step.answer = serde_json::to_value(&said.answer).unwrap_or_default();
                Ok(said.answer)
            }
            Err(fault) => {
                step.state = StepState::Failed;
                step.detail.clone_from(&fault.message);
                Err(fault)
            }
        };
        self.estate.put_job(&self.job).await?;
        outcome
    }

    /// The job goes over to taking back what it did.
    pub fn undoing(&mut self) {
        self.job.state = JobState::Undoing;
        self.at = self.job.steps.len();
    }
}

/// The code of a fault that says: cancelled.
pub const CANCELLED: &str = "job.cancelled";

/// What a step has at hand.
#[derive(Clone)]
pub struct Context {
    /// The step's id: the same every time it is done.
    pub id: String,
    /// The vault's knowledge.
    pub estate: Arc<Estate>,
    /// Sessions of servers.
    pub registry: Arc<crate::registry::Registry>,
    /// The job.
    pub job: JobId,
    /// Its machine.
    pub machine: MachineId,
}
