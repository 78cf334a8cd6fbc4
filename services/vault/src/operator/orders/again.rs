//! Orders about jobs: cancel one, or try a failed one again.

use super::*;

pub(super) async fn cancel(core: &Arc<Core>, by: &Operator, job: &str) -> Result<JobId, Fault> {
    let mut tx = core.store.begin().await?;
    let mut row = job_of(&mut tx, job).await?;
    if row.state == JobState::Waiting {
        let id = row.id;
        drop(tx);
        approval::take_back(core, by, &row).await?;
        return Ok(id);
    }
    let may = row.state.may_cancel() && JobKind::named(&row.kind).is_some_and(JobKind::may_cancel);
    if !may {
        return Err(Fault::new(
            FaultClass::NotReady,
            "job.not-cancellable",
            format!("job {} ({}) is {} and cannot be cancelled", row.id, row.kind, row.state.name()),
        )
        .affects("this order")
        .spares("the job goes on as it was")
        .remedy("wait for its end"));
    }
    let id = row.id;
    row.cancel = true;
    tx.audit(
        core.world.now(),
        &by.name,
        "cancel-job",
        &shown(&row.machine_name),
        "intent",
        &format!("job {id}"),
    )
    .await?;
    tx.add_event(core.event(
        "job",
        &row.machine_name,
        row.machine.map_or_else(String::new, |id| id.to_string()),
        format!("{} is being cancelled", row.kind),
        &by.name,
    ))
    .await?;
    tx.save_job(row).await?;
    core.commit(tx).await?;
    core.cancel_token(id).cancel();
    Ok(id)
}

pub(super) async fn retry(core: &Arc<Core>, by: &Operator, job: &str) -> Result<JobId, Fault> {
    let mut tx = core.store.begin().await?;
    let mut job = job_of(&mut tx, job).await?;
    let kind = JobKind::named(&job.kind).filter(|kind| kind.may_retry() && job.state.may_retry());
    let Some(kind) = kind else {
        return Err(Fault::new(
            FaultClass::NotReady,
            "job.not-retriable",
            format!("job {} ({}) is {}: only a failed one is retried", job.id, job.kind, job.state.name()),
        )
        .affects("this order")
        .spares("nothing was changed")
        .remedy("give the order again"));
    };
    let machine = job.machine.ok_or_else(|| no_machine(""))?;
    let row = tx.machine(machine).await?.ok_or_else(|| no_machine(&job.machine_name))?;
    check_conflicts(&mut tx, kind, &row).await?;
    let (changes, facts) = plan::begin(kind, &job.params, &row, job.id, &core.world)?;
    let id = job.id;
    job.attempt += 1;
    job.state = JobState::Queued;
    job.fault = None;
    job.facts = facts;
    job.started = None;
    job.ended = None;
    for step in &mut job.steps {
        *step = fresh(&step.name);
    }
    writes::make(core, &mut tx, machine, changes, &by.name).await.map_err(writes::Refused::fault)?;
    tx.audit(
        core.world.now(),
        &by.name,
        "retry-job",
        &shown(&job.machine_name),
        "intent",
        &format!("job {id}, attempt {}", job.attempt),
    )
    .await?;
    tx.add_event(core.event(
        "job",
        &job.machine_name,
        machine,
        format!("{} is tried again", job.kind),
        &by.name,
    ))
    .await?;
    tx.save_job(job).await?;
    core.commit(tx).await?;
    Ok(id)
}

/// A person did what a run waits for.
pub(super) async fn proceed(core: &Arc<Core>, by: &Operator, job: &str) -> Result<JobId, Fault> {
    let mut tx = core.store.begin().await?;
    let mut row = job_of(&mut tx, job).await?;
    let steps = JobKind::named(&row.kind).map(|kind| kind.steps_of(&row.params)).unwrap_or_default();
    let by_hand: Vec<StepState> = steps
        .iter()
        .zip(&row.steps)
        .filter(|((step, _), _)| *step == plan::Step::Manual)
        .map(|(_, row)| row.state)
        .collect();
    let waits = by_hand.contains(&StepState::Running);
    if !waits || row.state.is_over() {
        return Err(Fault::new(
            FaultClass::NotReady,
            "job.not-waiting",
            format!("job {} ({}) does not wait for a person", row.id, row.kind),
        )
        .affects("this order")
        .spares("the job goes on as it was")
        .remedy("see what it does: continuum describe job"));
    }
    let id = row.id;
    // Said twice it counts once: the count is that of the step that waits.
    row.params.proceeded = by_hand.iter().filter(|state| **state != StepState::Pending).count();
    tx.audit(core.world.now(), &by.name, "proceed", &shown(&row.machine_name), "done", &format!("job {id}"))
        .await?;
    let text = format!("{} goes on", row.kind);
    tx.add_event(core.event("job", &row.machine_name, String::new(), text, &by.name)).await?;
    tx.save_job(row).await?;
    core.commit(tx).await?;
    Ok(id)
}

pub(super) async fn job_of(tx: &mut Tx, text: &str) -> Result<JobRow, Fault> {
    let unknown =
        || not_found("job.unknown", format!("there is no job {}", shown(text)), "see `continuum get jobs`");
    let id: JobId = text.parse().map_err(|_| unknown())?;
    tx.job(id).await?.ok_or_else(unknown)
}
