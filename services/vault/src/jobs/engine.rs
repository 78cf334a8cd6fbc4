//! Carries jobs out: one step after another, through crashes, cancels and undo.
//!
//! ```text
//! queued ─► running ─► succeeded | warnings
//!              │ a step fails, or a person cancels
//!              ├────────────► undoing ─► failed | cancelled
//!              └────────────► failed              (kinds that undo nothing)
//! ```
//!
//! Per step: the intent is written, then the effect happens, then its end is written together with the
//! changes it brings. A step found `running` after a crash is of unknown effect: it is done again, or
//! undone, never skipped. Every effect carries an id made of job, attempt and step, and is idempotent by it.
//! Invariant: at most one task drives a job; it alone writes the job, save for the cancel mark.

use super::plan::{self, JobKind};
use super::steps::{self, Ctx, Done};
use super::writes::{self, Refused};
use crate::core::Core;
use crate::report;
use crate::store::StoreError;
use crate::store::jobs::JobRow;
use crate::store::plans::PlanRow;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::JobId;
use continuum_model::job::{JobState, StepState};
use continuum_model::untrusted::shown;
use std::sync::Arc;
use std::time::Duration;

/// How long a store that failed is left alone.
const STORE_RETRY: Duration = Duration::from_secs(2);

/// Continues every job that is not over. At the start, once.
pub(crate) fn resume_all(core: &Arc<Core>) {
    let open: Vec<JobId> = core
        .estate()
        .jobs
        .values()
        // One that waits for somebody's agreement has not begun.
        .filter(|job| !job.row.state.is_over() && job.row.state != JobState::Waiting)
        .map(|job| job.row.id)
        .collect();
    for id in open {
        begin(core, id);
    }
}

/// Drives a job in a task of its own.
pub(crate) fn begin(core: &Arc<Core>, id: JobId) {
    let own = core.clone();
    core.tasks.spawn(async move {
        loop {
            match drive(&own, id).await {
                Ok(()) => break,
                Err(StoreError::Interrupted(_)) => return,
                Err(error) => {
                    tracing::error!(job = %id, "a job waits for the store: {error}");
                    tokio::select! {
                        () = own.stop.cancelled() => return,
                        () = tokio::time::sleep(STORE_RETRY) => {}
                    }
                }
            }
        }
        own.forget_cancel(id);
    });
}

/// Drives a job until it is over, or until the vault stops.
pub(crate) async fn drive(core: &Arc<Core>, id: JobId) -> Result<(), StoreError> {
    while !core.stop.is_cancelled() {
        let Some(job) = core.store.job(id).await? else { return Ok(()) };
        let kind = kind_of(&job)?;
        match job.state {
            JobState::Succeeded | JobState::Warnings | JobState::Failed | JobState::Cancelled => {
                return Ok(());
            }
            // Nobody agreed yet: it has not begun.
            JobState::Waiting => return Ok(()),
            JobState::Undoing => undo_one(core, job, kind).await?,
            // After the last step a cancel comes too late: what was done stands, in the rows, too.
            JobState::Queued | JobState::Running
                if job.cancel && next_step(&job).is_some() && !kind.is_home(&job) =>
            {
                turn_back(core, job.id, None).await?;
            }
            JobState::Queued | JobState::Running => do_one(core, job, kind).await?,
        }
    }
    Ok(())
}

fn kind_of(job: &JobRow) -> Result<JobKind, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { what: format!("job {}", job.id), reason };
    let kind = JobKind::named(&job.kind).ok_or_else(|| corrupt(format!("kind {} is not known", job.kind)))?;
    let steps = kind.steps_of(&job.params);
    if job.steps.iter().map(|step| &step.name).ne(steps.iter().map(|(_, name)| name)) {
        return Err(corrupt("its steps are not those of its kind".into()));
    }
    Ok(kind)
}

/// The first step that is not done.
fn next_step(job: &JobRow) -> Option<usize> {
    job.steps.iter().position(|step| {
        !matches!(step.state, StepState::Succeeded | StepState::Warnings | StepState::Skipped)
    })
}

/// Does the next step, or ends the job.
async fn do_one(core: &Arc<Core>, job: JobRow, kind: JobKind) -> Result<(), StoreError> {
    let Some(place) = next_step(&job) else {
        let state = if job.facts.warned { JobState::Warnings } else { JobState::Succeeded };
        return end(core, job.id, state, Vec::new()).await;
    };
    let (step, _) = kind.steps_of(&job.params)[place];
    let intent = update(core, job.id, |job, now| {
        job.state = JobState::Running;
        job.started.get_or_insert(now);
        job.steps[place].state = StepState::Running;
        job.steps[place].started.get_or_insert(now);
    })
    .await?;
    core.store.interrupt().pass("before an effect")?;
    let cancel = core.cancel_token(job.id);
    let mut ctx = Ctx::new(core, &intent, step, place);
    let outcome = tokio::select! {
        () = core.stop.cancelled() => return Ok(()),
        // What was under way is of unknown effect; the undo deals with it.
        () = cancel.cancelled(), if kind.may_cancel() && !kind.is_home(&intent) => return Ok(()),
        outcome = steps::act(&mut ctx) => outcome,
    };
    let facts = ctx.facts;
    core.store.interrupt().pass("after an effect")?;
    let failed = match outcome {
        Ok(done) => match finish_step(core, &intent, place, facts.clone(), done).await {
            Ok(()) => return Ok(()),
            Err(Refused::Store(error)) => return Err(error),
            Err(Refused::Illegal(fault)) => fault,
        },
        Err(fault) => fault,
    };
    // The texts of a fault from outside were made harmless when it was read.
    let fault =
        if failed.correlation.is_empty() { failed.correlated(core.world.correlation()) } else { failed };
    tracing::warn!(
        job = %job.id, step = step.name(), code = fault.code, correlation = fault.correlation,
        "step failed: {}", fault.message
    );
    update(core, job.id, |job, now| {
        job.facts = facts;
        job.steps[place].state = StepState::Failed;
        job.steps[place].ended = Some(now);
        job.steps[place].detail = fault.message.clone();
    })
    .await?;
    turn_back(core, job.id, Some(fault)).await
}

async fn finish_step(
    core: &Arc<Core>,
    job: &JobRow,
    place: usize,
    facts: crate::store::jobs::Facts,
    done: Done,
) -> Result<(), Refused> {
    let mut tx = core.store.begin().await?;
    let Some(mut row) = tx.job(job.id).await? else { return Ok(()) };
    if let Some(machine) = row.machine {
        writes::make(core, &mut tx, machine, done.writes, &row.by).await?;
    }
    if let (Some(drill), Some(plan)) = (done.drill, &row.params.plan)
        && let Some(known) = tx.plan(&plan.name).await?.filter(|plan| !plan.deleted)
    {
        tx.save_plan(PlanRow { last_drill: Some(drill), ..known }).await?;
    }
    row.facts = facts;
    row.facts.warned |= done.warning;
    let step = &mut row.steps[place];
    step.state = if done.warning { StepState::Warnings } else { StepState::Succeeded };
    step.ended = Some(core.world.now());
    step.detail = done.detail;
    tx.save_job(row).await?;
    core.commit(tx).await?;
    Ok(())
}

/// A step failed, or a person cancelled: undo, or end.
async fn turn_back(core: &Arc<Core>, id: JobId, fault: Option<Fault>) -> Result<(), StoreError> {
    let Some(job) = core.store.job(id).await? else { return Ok(()) };
    let kind = kind_of(&job)?;
    let undoes = (job.cancel || (kind.undoes() && !job.params.keep_on_failure)) && !kind.is_home(&job);
    if undoes {
        let mut tx = core.store.begin().await?;
        let Some(mut job) = tx.job(id).await? else { return Ok(()) };
        if let Some(machine) = job.machine {
            make_if_legal(core, &mut tx, machine, plan::turns_back(kind, job.cancel), &job).await?;
        }
        job.state = JobState::Undoing;
        if fault.is_some() {
            job.fault = fault;
        }
        tx.save_job(job).await?;
        return core.commit(tx).await;
    }
    let reason = fault.as_ref().map(|fault| fault.message.clone()).unwrap_or_default();
    let leaves = plan::leaves(kind, &job, &reason, false);
    end_with(core, id, JobState::Failed, leaves, fault).await
}

/// Undoes the last step that may have had an effect, or ends the job.
async fn undo_one(core: &Arc<Core>, job: JobRow, kind: JobKind) -> Result<(), StoreError> {
    use StepState as S;
    // What has no undo stays as it is: it shows how far the job came.
    let steps = kind.steps_of(&job.params);
    let last = job.steps.iter().zip(&steps).rposition(|(row, (step, _))| {
        steps::has_undo(kind, *step)
            && matches!(row.state, S::Succeeded | S::Warnings | S::Running | S::Failed | S::Undoing)
    });
    let Some(place) = last else {
        let stuck = job.steps.iter().any(|step| step.state == StepState::UndoFailed);
        let state = if job.cancel && !stuck { JobState::Cancelled } else { JobState::Failed };
        let reason =
            job.fault.as_ref().map_or("cancelled by an operator".to_owned(), |fault| fault.message.clone());
        let leaves = plan::leaves(kind, &job, &reason, !stuck);
        return end(core, job.id, state, leaves).await;
    };
    let (step, _) = steps[place];
    let intent = update(core, job.id, |job, _| job.steps[place].state = StepState::Undoing).await?;
    core.store.interrupt().pass("before an undo")?;
    let mut ctx = Ctx::new(core, &intent, step, place);
    let outcome = tokio::select! {
        () = core.stop.cancelled() => return Ok(()),
        outcome = steps::undo(&mut ctx, kind) => outcome,
    };
    core.store.interrupt().pass("after an undo")?;
    update(core, job.id, |job, now| {
        job.steps[place].ended = Some(now);
        match outcome {
            Ok(()) => {
                job.steps[place].state = StepState::Undone;
            }
            Err(fault) => {
                job.steps[place].state = StepState::UndoFailed;
                job.steps[place].detail = format!("could not be undone: {}", fault.message);
                let stuck = job.fault.get_or_insert_with(|| {
                    Fault::new(
                        FaultClass::Failed,
                        "job.undo-failed",
                        "the job was cancelled and could not be undone",
                    )
                });
                stuck.affected = format!("{} is left as it was: {}", step.name(), fault.message);
                stuck.remedy = fault.remedy;
            }
        }
    })
    .await?;
    Ok(())
}

async fn update(
    core: &Arc<Core>,
    id: JobId,
    change: impl FnOnce(&mut JobRow, continuum_model::time::Timestamp),
) -> Result<JobRow, StoreError> {
    let mut tx = core.store.begin().await?;
    let Some(mut job) = tx.job(id).await? else {
        return Err(StoreError::Changed { what: format!("job {id}") });
    };
    change(&mut job, core.world.now());
    let job = tx.save_job(job).await?;
    core.commit(tx).await?;
    Ok(job)
}

async fn end(
    core: &Arc<Core>,
    id: JobId,
    state: JobState,
    leaves: Vec<plan::Write>,
) -> Result<(), StoreError> {
    end_with(core, id, state, leaves, None).await
}

/// Ends a job: what it leaves, its event and the audit line stand in one transaction with its state.
async fn end_with(
    core: &Arc<Core>,
    id: JobId,
    state: JobState,
    leaves: Vec<plan::Write>,
    fault: Option<Fault>,
) -> Result<(), StoreError> {
    let mut tx = core.store.begin().await?;
    let Some(mut job) = tx.job(id).await? else { return Ok(()) };
    if let Some(machine) = job.machine {
        make_if_legal(core, &mut tx, machine, leaves, &job).await?;
    }
    let now = core.world.now();
    for step in job.steps.iter_mut().filter(|step| step.state == StepState::Running) {
        step.state = StepState::Skipped;
        step.ended = Some(now);
    }
    job.state = state;
    job.ended = Some(now);
    if fault.is_some() {
        job.fault = fault;
    }
    let why = job.fault.as_ref().filter(|_| state == JobState::Failed);
    let text = match why {
        Some(fault) => format!("{} {}: {}", job.kind, state.name(), fault.message),
        None => format!("{} {}", job.kind, state.name()),
    };
    let object = job.machine.map_or_else(String::new, |id| id.to_string());
    tx.add_event(core.event("job", &job.machine_name, &object, text, &job.by)).await?;
    let detail = why.map(|fault| fault.code.clone()).unwrap_or_default();
    tx.audit(now, &job.by, &job.kind, &shown(&job.machine_name), state.name(), &format!("job {id} {detail}"))
        .await?;
    if report::is_reported(&job) {
        report::write(core, &mut tx, &job).await?;
    }
    let job = tx.save_job(job).await?;
    core.commit(tx).await?;
    tracing::info!(job = %job.id, kind = job.kind, state = state.name(), "job ended");
    Ok(())
}

/// Makes changes that a job leaves behind. The machine may have been changed meanwhile: the job ends all
/// the same.
async fn make_if_legal(
    core: &Arc<Core>,
    tx: &mut crate::store::Tx,
    machine: continuum_model::id::MachineId,
    changes: Vec<plan::Write>,
    job: &JobRow,
) -> Result<(), StoreError> {
    match writes::make(core, tx, machine, changes, &job.by).await {
        Ok(()) => Ok(()),
        Err(Refused::Store(error)) => Err(error),
        Err(Refused::Illegal(fault)) => {
            tracing::warn!(job = %job.id, "left as it is: {}", fault.message);
            Ok(())
        }
    }
}
