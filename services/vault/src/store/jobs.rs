//! Jobs and their steps: one aggregate, written under the job's version.

use super::inventory::{PointRow, ProbeRow, ServedDisk};
use super::news::News;
use super::{Store, StoreError, Tx, from_json, parsed, signed, to_json, unsigned};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{JobId, MachineId, PointId, PolicyId, ViewId};
use continuum_model::job::{JobState, StepState};
use continuum_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};

/// The shape of the plans that this program writes.
pub(crate) const PLAN: i64 = 1;

/// A job with its steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JobRow {
    pub(crate) id: JobId,
    /// As it was read; rises with every write.
    pub(crate) version: u64,
    pub(crate) kind: String,
    pub(crate) machine: Option<MachineId>,
    pub(crate) machine_name: String,
    pub(crate) state: JobState,
    pub(crate) by: String,
    pub(crate) detail: String,
    pub(crate) params: Params,
    pub(crate) facts: Facts,
    pub(crate) fault: Option<Fault>,
    /// Rises with every retry, so that a command of an earlier attempt is never taken for one of this.
    pub(crate) attempt: u64,
    /// A person asked to stop it.
    pub(crate) cancel: bool,
    pub(crate) created: Timestamp,
    pub(crate) started: Option<Timestamp>,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) steps: Vec<StepRow>,
}

/// A step of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepRow {
    pub(crate) name: String,
    pub(crate) state: StepState,
    pub(crate) started: Option<Timestamp>,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) detail: String,
}

/// What the order said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Params {
    /// Which moment.
    pub(crate) point: String,
    /// A bookmark's name. Text from outside.
    pub(crate) name: String,
    pub(crate) keep_on_failure: bool,
    pub(crate) keep_replica: bool,
    pub(crate) pinned: bool,
    /// For how long nobody can let the point go; 0: no lock.
    pub(crate) lock_seconds: u64,
    /// A failover that stops its source first and loses nothing.
    pub(crate) planned: bool,
    /// When a first copy begins; `None`: at once.
    pub(crate) start_at: Option<Timestamp>,
    /// A resync that does not wait for its window.
    pub(crate) now: bool,
    /// A bookmark with the machine's hooks around it.
    pub(crate) app_consistent: bool,
    /// The consistency group that the job is about.
    pub(crate) group: String,
    /// The shared points that a run brings its machines up at; others take what `point` says, or the latest.
    pub(crate) shared: std::collections::BTreeMap<MachineId, PointId>,
    /// The policy that the machine goes under.
    pub(crate) policy: Option<PolicyId>,
    /// What a second person agrees to, where one must.
    pub(crate) approval: Option<Box<ApprovalRow>>,
    /// What a run of a plan does.
    pub(crate) plan: Option<FrozenPlan>,
    /// How many manual actions of a run were done. The order that says so writes it, beside the engine.
    pub(crate) proceeded: usize,
}

/// An order that waits, or waited, for the agreement of a second person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ApprovalRow {
    /// Of everything that is agreed to.
    pub(crate) digest: String,
    /// The same in words. Harmless.
    pub(crate) about: Vec<String>,
    pub(crate) expires: Timestamp,
    /// The order as it was given, in the wire's form; carried out when it is agreed to.
    pub(crate) request: Vec<u8>,
    /// Who answered.
    pub(crate) by: String,
    pub(crate) refused: bool,
}

/// A plan as it was when its run began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct FrozenPlan {
    pub(crate) name: String,
    pub(crate) rto_seconds: Option<u64>,
    pub(crate) rpo_seconds: Option<u64>,
    /// Of the text that was frozen.
    pub(crate) version: u64,
    /// SHA-256 of that text.
    pub(crate) sha256: String,
    /// In the order in which they run.
    pub(crate) groups: Vec<FrozenGroup>,
}

/// One of its groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FrozenGroup {
    pub(crate) name: String,
    pub(crate) machines: Vec<(MachineId, String)>,
    pub(crate) manual: String,
}

impl FrozenPlan {
    /// Every machine, in order.
    pub(crate) fn machines(&self) -> impl Iterator<Item = &(MachineId, String)> {
        self.groups.iter().flat_map(|group| &group.machines)
    }
}

/// What the steps found out so far; later steps build on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    pub(crate) view: Option<ViewId>,
    pub(crate) point_id: Option<PointId>,
    pub(crate) point: Option<PointRow>,
    pub(crate) position: Option<u64>,
    pub(crate) loss_seconds: Option<f64>,
    pub(crate) loss_bytes: Option<u64>,
    pub(crate) rto_seconds: Option<f64>,
    pub(crate) disks: Vec<ServedDisk>,
    pub(crate) probes: Vec<ProbeRow>,
    pub(crate) note: String,
    pub(crate) source_digests: Vec<String>,
    pub(crate) verified: Vec<Verified>,
    /// A step ended with something to look at.
    pub(crate) warned: bool,
    /// Jobs that a run of a plan ordered.
    pub(crate) children: Vec<JobId>,
    /// Machines of a run that answer.
    pub(crate) answered: usize,
}

/// A disk that was compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Verified {
    pub(crate) name: String,
    pub(crate) source: String,
    pub(crate) replica: String,
    pub(crate) equal: bool,
}

/// A fault with its class, which its own serialised form leaves out.
#[derive(Serialize, Deserialize)]
struct StoredFault {
    class: String,
    fault: Fault,
}

impl Tx {
    /// Adds a job with its steps.
    pub(crate) async fn add_job(&mut self, mut job: JobRow) -> Result<JobRow, StoreError> {
        job.version = 1;
        sqlx::query(
            "INSERT INTO job (id, version, plan, kind, machine, machine_name, state, actor, detail, params, facts, fault, \
             attempt, cancel, created_us, started_us, ended_us) \
             VALUES ($1, 1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        )
        .bind(job.id.to_string())
        .bind(PLAN)
        .bind(job.kind.clone())
        .bind(job.machine.map(|id| id.to_string()))
        .bind(job.machine_name.clone())
        .bind(job.state.name())
        .bind(job.by.clone())
        .bind(job.detail.clone())
        .bind(to_json("job", &job.params)?)
        .bind(to_json("job", &job.facts)?)
        .bind(fault_text(job.fault.as_ref())?)
        .bind(signed(job.attempt))
        .bind(i64::from(job.cancel))
        .bind(job.created.micros())
        .bind(job.started.map(Timestamp::micros))
        .bind(job.ended.map(Timestamp::micros))
        .execute(&mut *self.inner)
        .await?;
        self.save_steps(&job).await?;
        self.news.push(News::Job(Box::new(job.clone())));
        Ok(job)
    }

    /// Writes a job that was read before. Its version rises.
    ///
    /// Errors: [`StoreError::Changed`] where somebody else wrote it since.
    pub(crate) async fn save_job(&mut self, mut job: JobRow) -> Result<JobRow, StoreError> {
        let written = sqlx::query(
            "UPDATE job SET version = version + 1, state = $1, detail = $2, facts = $3, fault = $4, attempt = $5, \
             cancel = $6, started_us = $7, ended_us = $8, params = $9 WHERE id = $10 AND version = $11",
        )
        .bind(job.state.name())
        .bind(job.detail.clone())
        .bind(to_json("job", &job.facts)?)
        .bind(fault_text(job.fault.as_ref())?)
        .bind(signed(job.attempt))
        .bind(i64::from(job.cancel))
        .bind(job.started.map(Timestamp::micros))
        .bind(job.ended.map(Timestamp::micros))
        .bind(to_json("job", &job.params)?)
        .bind(job.id.to_string())
        .bind(signed(job.version))
        .execute(&mut *self.inner)
        .await?;
        if written.rows_affected() != 1 {
            return Err(StoreError::Changed { what: format!("job {}", job.id) });
        }
        job.version += 1;
        self.save_steps(&job).await?;
        self.news.push(News::Job(Box::new(job.clone())));
        Ok(job)
    }

    /// Writes the steps that differ from what is stored: mostly one of many.
    async fn save_steps(&mut self, job: &JobRow) -> Result<(), StoreError> {
        let stored = steps(&mut self.inner, job.id).await?;
        for (place, step) in job.steps.iter().enumerate() {
            if stored.get(place) == Some(step) {
                continue;
            }
            sqlx::query(
                "INSERT INTO step (job, place, name, state, started_us, ended_us, detail) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                 ON CONFLICT (job, place) DO UPDATE SET state = excluded.state, started_us = excluded.started_us, \
                 ended_us = excluded.ended_us, detail = excluded.detail",
            )
            .bind(job.id.to_string())
            .bind(signed(place as u64))
            .bind(step.name.clone())
            .bind(step.state.name())
            .bind(step.started.map(Timestamp::micros))
            .bind(step.ended.map(Timestamp::micros))
            .bind(step.detail.clone())
            .execute(&mut *self.inner)
            .await?;
        }
        Ok(())
    }

    /// The job of an id.
    pub(crate) async fn job(&mut self, id: JobId) -> Result<Option<JobRow>, StoreError> {
        one(&mut self.inner, id).await
    }

    /// Jobs on a machine that are not over.
    pub(crate) async fn jobs_under_way(
        &mut self,
        machine: MachineId,
    ) -> Result<Vec<(JobId, String)>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, kind FROM job WHERE machine = $1 AND state IN ('queued', 'running', 'undoing')",
        )
        .bind(machine.to_string())
        .fetch_all(&mut *self.inner)
        .await?;
        rows.iter().map(|row| Ok((parsed("job id", row.try_get(0)?)?, row.try_get(1)?))).collect()
    }
}

impl Store {
    /// The job of an id.
    pub(crate) async fn job(&self, id: JobId) -> Result<Option<JobRow>, StoreError> {
        let mut connection = self.pool().acquire().await?;
        one(&mut connection, id).await
    }

    /// Every job that is not over, and the newest of the others; oldest first.
    pub(crate) async fn jobs(&self, most: u32) -> Result<Vec<JobRow>, StoreError> {
        let mut connection = self.pool().acquire().await?;
        let rows = sqlx::query(
            "SELECT id FROM job WHERE state IN ('queued', 'running', 'waiting', 'undoing') \
             OR id IN (SELECT id FROM job ORDER BY id DESC LIMIT $1) ORDER BY id",
        )
        .bind(i64::from(most))
        .fetch_all(&mut *connection)
        .await?;
        let mut jobs = Vec::with_capacity(rows.len());
        for row in rows {
            jobs.extend(one(&mut connection, parsed("job id", row.try_get(0)?)?).await?);
        }
        Ok(jobs)
    }
}

async fn one(connection: &mut AnyConnection, id: JobId) -> Result<Option<JobRow>, StoreError> {
    let Some(row) = sqlx::query("SELECT * FROM job WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&mut *connection)
        .await?
    else {
        return Ok(None);
    };
    let steps = steps(connection, id).await?;
    job(&row, steps).map(Some)
}

async fn steps(connection: &mut AnyConnection, job: JobId) -> Result<Vec<StepRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT name, state, started_us, ended_us, detail FROM step WHERE job = $1 ORDER BY place",
    )
    .bind(job.to_string())
    .fetch_all(connection)
    .await?;
    rows.iter().map(step).collect()
}

fn job(row: &AnyRow, steps: Vec<StepRow>) -> Result<JobRow, StoreError> {
    let plan: i64 = row.try_get("plan")?;
    if plan != PLAN {
        return Err(StoreError::Newer { version: plan });
    }
    let state: String = row.try_get("state")?;
    let machine: Option<String> = row.try_get("machine")?;
    let fault: Option<String> = row.try_get("fault")?;
    let moment = |value: Option<i64>| value.map(Timestamp::from_micros);
    Ok(JobRow {
        id: parsed("job id", row.try_get("id")?)?,
        version: unsigned(row.try_get("version")?),
        kind: row.try_get("kind")?,
        machine: machine.map(|id| parsed("machine id", &id)).transpose()?,
        machine_name: row.try_get("machine_name")?,
        state: JobState::named(&state)
            .ok_or_else(|| StoreError::Corrupt { what: "state of a job".into(), reason: state })?,
        by: row.try_get("actor")?,
        detail: row.try_get("detail")?,
        params: from_json("job", row.try_get("params")?)?,
        facts: from_json("job", row.try_get("facts")?)?,
        fault: fault
            .map(|text| from_json::<StoredFault>("fault", &text))
            .transpose()?
            .map(|stored| Fault { class: FaultClass::named(&stored.class), ..stored.fault }),
        attempt: unsigned(row.try_get("attempt")?),
        cancel: row.try_get::<i64, _>("cancel")? != 0,
        created: Timestamp::from_micros(row.try_get("created_us")?),
        started: moment(row.try_get("started_us")?),
        ended: moment(row.try_get("ended_us")?),
        steps,
    })
}

fn step(row: &AnyRow) -> Result<StepRow, StoreError> {
    let state: String = row.try_get(1)?;
    Ok(StepRow {
        name: row.try_get(0)?,
        state: StepState::named(&state)
            .ok_or_else(|| StoreError::Corrupt { what: "state of a step".into(), reason: state })?,
        started: row.try_get::<Option<i64>, _>(2)?.map(Timestamp::from_micros),
        ended: row.try_get::<Option<i64>, _>(3)?.map(Timestamp::from_micros),
        detail: row.try_get(4)?,
    })
}

fn fault_text(fault: Option<&Fault>) -> Result<Option<String>, StoreError> {
    fault
        .map(|fault| {
            to_json("fault", &StoredFault { class: fault.class.name().to_owned(), fault: fault.clone() })
        })
        .transpose()
}
