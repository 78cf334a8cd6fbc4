//! Makes the report of a drill or failover as its job ends, in the same transaction; tells reports to operators.
//!
//! Lives here: from rows to a report, from a report's row to an answer. Lives elsewhere: its shape and chain (`model::report`), its row
//! (`store::reports`).

use crate::coordination::reports::limited;
use crate::core::Core;
use crate::estate::Estate;
use crate::jobs::plan::JobKind;
use crate::store::jobs::{JobRow, StepRow};
use crate::store::reports::ReportRow;
use crate::store::{StoreError, Tx};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::job::{JobState, StepState};
use continuum_model::report::{FORMAT, PlanText, Report, ReportMachine, ReportProbe, ReportStep};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use std::time::Duration;

/// Reports of a list, unless told otherwise, and at most.
const LIST_DEFAULT: u32 = 100;
const LIST_MAX: u32 = 10_000;
/// So many earlier runs say how long a step is planned to take.
const RUNS_MAX: usize = 10;

/// Whether the end of such a job leaves a report.
pub(crate) fn is_reported(job: &JobRow) -> bool {
    JobKind::named(&job.kind).is_some_and(|kind| {
        matches!(kind, JobKind::TestFailover | JobKind::Failover | JobKind::PlanDrill | JobKind::PlanFailover)
    })
}

/// Writes the report of a job that ends, as `job` says it will.
pub(crate) async fn write(core: &Core, tx: &mut Tx, job: &JobRow) -> Result<(), StoreError> {
    let mut machines = Vec::new();
    for child in &job.facts.children {
        machines.extend(tx.job(*child).await?);
    }
    let (last, previous) = tx.last_report().await?;
    let about = &core.about;
    let report = {
        let estate = core.estate();
        let drawn = draw(job, &machines, &estate);
        Report {
            sequence: last + 1,
            previous,
            vault: about.name.clone(),
            vault_id: about.vault.to_string(),
            ..drawn
        }
    };
    let sealed = report
        .seal()
        .map_err(|error| StoreError::Corrupt { what: "report".into(), reason: error.to_string() })?;
    tx.add_report(&sealed).await?;
    let detail = format!("report {} sha256 {}", sealed.sequence, sealed.digest);
    let object = shown(&sealed.subject);
    tx.audit(core.world.now(), &job.by, "report", &object, &sealed.outcome, &detail).await
}

/// Reports for an operator.
///
/// Errors: there is none of what was asked for.
pub(crate) async fn told(core: &Core, request: &pb::ReportsRequest) -> Result<pb::ReportsReply, Fault> {
    let rows = if request.of.is_empty() {
        let most = if request.most == 0 { LIST_DEFAULT } else { request.most.min(LIST_MAX) };
        core.store.reports(most).await?
    } else {
        let known = core.store.report(&request.of).await?;
        vec![known.ok_or_else(|| {
            Fault::new(
                FaultClass::NotFound,
                "report.unknown",
                format!("there is no report of {}", shown(&limited(&request.of, 300))),
            )
            .affects("this question")
            .spares("everything else")
            .remedy("see `continuum report list`; a run leaves its report when it is over")
        })?]
    };
    let told = |row: ReportRow| pb::Report {
        sequence: row.sequence,
        job: row.job,
        kind: row.kind,
        subject: row.subject,
        made_us: row.made.micros(),
        outcome: row.outcome,
        passed: row.passed,
        digest: row.digest,
        body: row.body,
    };
    Ok(pb::ReportsReply { reports: rows.into_iter().map(told).collect() })
}

/// Without its place in the chain.
fn draw(job: &JobRow, children: &[JobRow], estate: &Estate) -> Report {
    let run = job.params.plan.as_ref();
    let rows: &[JobRow] = if run.is_some() { children } else { std::slice::from_ref(job) };
    let ended = job.ended.unwrap_or(job.created);
    let mut problems = Vec::new();
    let mut machines: Vec<ReportMachine> = rows.iter().map(|row| machine(row, estate)).collect();
    if let Some(run) = run {
        // A machine whose job could not even be ordered is missing, and must not be overlooked.
        for (_, name) in run.machines() {
            if !machines.iter().any(|machine| machine.name == *name) {
                machines.push(ReportMachine {
                    name: name.clone(),
                    outcome: "not-begun".into(),
                    problem: "no job was made for it".into(),
                    ..ReportMachine::default()
                });
            }
        }
    }
    for machine in machines.iter().filter(|machine| !machine.problem.is_empty()) {
        problems.push(format!("{}: {}", machine.name, machine.problem));
    }
    problems.extend(job.fault.as_ref().filter(|_| run.is_some()).map(|fault| fault.message.clone()));

    // Only what answers counts, and a plan is as late as its last machine.
    let answered = |row: &JobRow| {
        let rto = Duration::try_from_secs_f64(row.facts.rto_seconds?).ok()?;
        Some(millis(row.created.plus(rto).since(job.created)))
    };
    let rto_ms = rows.iter().filter_map(answered).max();
    let all_up = rows.iter().all(|row| matches!(row.state, JobState::Succeeded | JobState::Warnings));
    let ages = || machines.iter().filter_map(|machine| machine.point_age_ms);
    // A moment that a person chose says nothing about how much a disaster would cost.
    let chosen = !matches!(job.params.point.as_str(), "" | "latest" | "processed" | "app");
    let rpo_ms = if chosen { None } else { ages().max() };
    let rto_objective_ms = run.and_then(|run| run.rto_seconds).map(|seconds| seconds.saturating_mul(1000));
    let rpo_objective_ms = run.and_then(|run| run.rpo_seconds).map(|seconds| seconds.saturating_mul(1000));
    for (what, measured, objective) in [("RTO", rto_ms, rto_objective_ms), ("RPO", rpo_ms, rpo_objective_ms)]
    {
        if let (Some(measured), Some(objective)) = (measured, objective)
            && measured > objective
        {
            problems.push(format!(
                "{what} of {:.1} s: the objective of {:.1} s was missed",
                measured as f64 / 1000.0,
                objective as f64 / 1000.0
            ));
        }
    }
    let ended_well = matches!(job.state, JobState::Succeeded | JobState::Warnings);
    Report {
        format: FORMAT,
        run: job.id.to_string(),
        kind: job.kind.clone(),
        subject: job.machine_name.clone(),
        plan: run.map(|run| PlanText {
            name: run.name.clone(),
            version: run.version,
            sha256: run.sha256.clone(),
        }),
        ordered_by: job.by.clone(),
        ordered_us: job.created.micros(),
        ended_us: ended.micros(),
        asked_point: if job.params.planned {
            "planned".into()
        } else if job.params.point.is_empty() {
            "latest".into()
        } else {
            job.params.point.clone()
        },
        outcome: job.state.name().into(),
        passed: ended_well && all_up && problems.is_empty() && rto_ms.is_some(),
        rto_ms,
        rto_objective_ms,
        rpo_ms,
        rpo_objective_ms,
        steps: steps(job, estate),
        machines,
        problems,
        ..Report::default()
    }
}

fn machine(job: &JobRow, estate: &Estate) -> ReportMachine {
    let facts = &job.facts;
    let point = facts.point.as_ref();
    let millis_of = |seconds: Option<f64>| {
        seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).map(millis)
    };
    let failed = facts.probes.iter().find(|probe| !probe.passed);
    ReportMachine {
        name: job.machine_name.clone(),
        job: job.id.to_string(),
        outcome: job.state.name().into(),
        point_us: point.map(|point| point.time.micros()),
        point_kind: point.map(|point| point.kind.name().to_owned()).unwrap_or_default(),
        point_name: point.map(|point| point.name.clone()).unwrap_or_default(),
        point_age_ms: point.map(|point| millis(job.created.since(point.time))),
        loss_ms: millis_of(facts.loss_seconds),
        loss_bytes: facts.loss_bytes,
        rto_ms: millis_of(facts.rto_seconds),
        steps: steps(job, estate),
        probes: facts
            .probes
            .iter()
            .map(|probe| ReportProbe {
                name: probe.name.clone(),
                passed: probe.passed,
                detail: probe.detail.clone(),
            })
            .collect(),
        problem: match (&job.fault, failed) {
            (Some(fault), _) => fault.message.clone(),
            (None, Some(probe)) => format!("{}: {}", probe.name, probe.detail),
            (None, None) => String::new(),
        },
        note: facts.note.clone(),
    }
}

fn steps(job: &JobRow, estate: &Estate) -> Vec<ReportStep> {
    let known = earlier(job, estate);
    let step = |step: &StepRow| ReportStep {
        name: step.name.clone(),
        outcome: step.state.name().into(),
        started_us: step.started.map(Timestamp::micros),
        took_ms: took(step),
        planned_ms: median(known.iter().filter_map(|row| {
            let same = row.steps.iter().find(|other| other.name == step.name)?;
            took(same).filter(|_| matches!(same.state, StepState::Succeeded | StepState::Warnings))
        })),
        detail: step.detail.clone(),
    };
    job.steps.iter().map(step).collect()
}

/// The newest runs of the same kind on the same machine or plan that ended well.
fn earlier<'a>(job: &JobRow, estate: &'a Estate) -> Vec<&'a JobRow> {
    let plan = |row: &'a JobRow| row.params.plan.as_ref().map(|run| &run.name);
    let wanted = job.params.plan.as_ref().map(|run| &run.name);
    estate
        .jobs
        .values()
        .rev()
        .map(|entry| &entry.row)
        .filter(|row| row.kind == job.kind && row.machine == job.machine && plan(row) == wanted)
        .filter(|row| row.id != job.id && matches!(row.state, JobState::Succeeded | JobState::Warnings))
        .take(RUNS_MAX)
        .collect()
}

fn took(step: &StepRow) -> Option<u64> {
    Some(millis(step.ended?.since(step.started?)))
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
