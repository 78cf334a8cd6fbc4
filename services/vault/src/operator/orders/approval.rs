//! Four eyes: an order that a second person must agree to, where the vault is configured so.
//!
//! ```text
//! order ─► checks ─► job, waiting (intent in the audit log) ─► approve ─► the same checks ─► queued ─► …
//!                                                          ├─► refuse  ─► cancelled
//!                                                          └─► expires ─► cancelled
//! ```
//!
//! What is agreed to is a digest over the order's words, its object, its epoch, the version of its plan and the moment
//! as it was asked for; the answer names the digest that was looked at. Where any of it differs by the time of the answer
//! (a changed plan, another failover in between), the answer is refused and nothing happens.
//!
//! Rules: nobody answers their own order, whatever their role. The answerer's role counts as it is when they answer; a
//! role that was given to them after the order was made does not count. One answer ends the waiting.

use super::again::job_of;
use super::asked::Asked;
use super::*;
use crate::store::jobs::ApprovalRow;
use continuum_model::time::Timestamp;
use prost::Message as _;
use sha2::{Digest, Sha256};
use std::time::Duration;

/// An order waits so long for its answer.
const WAITS: Duration = Duration::from_secs(24 * 3600);

/// Orders that can be made to wait for a second person, as the configuration names them.
pub(crate) const KINDS: [&str; 5] = ["failover", "planned-failover", "unprotect", "commit", "delete-points"];

/// Whether an order needs a second person.
pub(crate) fn needed(core: &Core, right: Right, order: &str) -> bool {
    let on = |name: &str| core.about.four_eyes.iter().any(|known| known == name);
    match right {
        Right::Order(JobKind::Failover | JobKind::PlanFailover) => {
            on(if order == plan::PLANNED_FAILOVER { plan::PLANNED_FAILOVER } else { "failover" })
        }
        Right::Order(JobKind::Unprotect) => on("unprotect"),
        // An unprotect that deletes points, and whatever else lets points go.
        Right::DeletePoints => on("unprotect") || on("delete-points"),
        Right::Order(JobKind::Commit) => on("commit") || on("delete-points"),
        _ => false,
    }
}

/// The same for an order as it was given.
pub(super) fn needed_for(core: &Core, order: &Order, asked: &Asked, loses: bool) -> bool {
    let right = match order {
        Order::Unprotect(order) if !order.keep_replica => Right::DeletePoints,
        Order::SetPolicy(_) | Order::AssignPolicy(_) if loses => Right::DeletePoints,
        _ => Right::Order(asked.kind),
    };
    // A policy that lets points go is no unprotect.
    if matches!(order, Order::SetPolicy(_) | Order::AssignPolicy(_)) {
        return loses && core.about.four_eyes.iter().any(|known| known == "delete-points");
    }
    let name = if asked.params.planned { plan::PLANNED_FAILOVER } else { asked.kind.name() };
    needed(core, right, name)
}

/// What a second person agrees to.
pub(super) fn asked_of(
    request: &pb::OrderRequest,
    by: &Operator,
    asked: &Asked,
    row: Option<&MachineRow>,
    plan_version: Option<u64>,
    now: Timestamp,
) -> ApprovalRow {
    let about = about(by, asked, row, plan_version);
    // Which version of the machine was seen was compared when the order was given; its epoch is what must still hold.
    let order = pb::OrderRequest { expected_version: 0, ..request.clone() };
    ApprovalRow {
        digest: digest(&order, &about),
        about,
        expires: now.plus(WAITS),
        request: order.encode_to_vec(),
        by: String::new(),
        refused: false,
    }
}

fn about(by: &Operator, asked: &Asked, row: Option<&MachineRow>, plan_version: Option<u64>) -> Vec<String> {
    let mut about = vec![format!("order: {}", asked.detail), format!("by: {}", shown(&by.name))];
    if let Some(row) = row {
        about.push(format!("machine: {} ({}), epoch {}", shown(&row.name), row.id, row.epoch));
    }
    if let (Some(plan), Some(version)) = (&asked.params.plan, plan_version) {
        about.push(format!("plan: {}, version {version}", shown(&plan.name)));
        about.push(format!("machines: {}", plan.machines().count()));
    }
    about
}

fn digest(order: &pb::OrderRequest, about: &[String]) -> String {
    let mut sum = Sha256::new();
    let bare = pb::OrderRequest { key: String::new(), ..order.clone() };
    sum.update(bare.encode_to_vec());
    for line in about {
        sum.update((line.len() as u64).to_be_bytes());
        sum.update(line.as_bytes());
    }
    hex(&sum.finalize())
}

/// Takes the answer of a second person.
pub(super) async fn answer(core: &Arc<Core>, by: &Operator, given: &pb::Approve) -> Result<JobId, Fault> {
    let now = core.world.now();
    let row = {
        let mut tx = core.store.begin().await?;
        job_of(&mut tx, &given.job).await?
    };
    let waiting = row.params.approval.clone().filter(|_| row.state == JobState::Waiting);
    let Some(waiting) = waiting else {
        return Err(refuse(
            core,
            by,
            &row,
            "approval.not-waiting",
            "it waits for nobody's agreement (any more)",
        )
        .await);
    };
    if waiting.expires <= now {
        end(core, &row, &waiting, "", true, "nobody answered in time").await?;
        return Err(
            refuse(core, by, &row, "approval.expired", "the order ended: nobody answered in time").await
        );
    }
    if row.by == by.name {
        return Err(refuse(core, by, &row, "approval.own", "nobody answers their own order").await);
    }
    let known = core.store.operator(&by.name).await?;
    if known.is_none_or(|known| known.made > row.created) {
        let said = "the role was given after the order was made: somebody who had it before must answer";
        return Err(refuse(core, by, &row, "approval.role-too-new", said).await);
    }
    if given.digest != waiting.digest {
        let said = "what was looked at is not what waits: another order, or it changed";
        return Err(refuse(core, by, &row, "approval.digest", said).await);
    }
    if given.refuse {
        let why = if given.reason.is_empty() { "refused" } else { given.reason.as_str() };
        end(core, &row, &waiting, &by.name, true, &shown(&limited(why, 1000))).await?;
        return Ok(row.id);
    }
    let order = pb::OrderRequest::decode(waiting.request.as_slice()).map_err(|error| {
        usage("approval.order", &format!("the order cannot be read: {error}"), "give it again")
    })?;
    // Whoever ordered may have lost the role since, or their access.
    let role = core.store.operator(&row.by).await?.filter(|row| !row.revoked);
    let orderer = role.and_then(|row| {
        Some(Operator { role: crate::access::OperatorRole::named(&row.role)?, name: row.name })
    });
    let right = order.order.as_ref().map(|asked| right_of(asked, &order.machine));
    let Some(orderer) = orderer.filter(|orderer| right.is_some_and(|right| orderer.role.may(right))) else {
        return Err(
            refuse(core, by, &row, "approval.orderer", "whoever ordered it may not do so any more").await
        );
    };
    let agreed = Agreed { job: row.id, by: by.name.clone(), digest: waiting.digest.clone() };
    begin_as(core, &orderer, &order, Gate::Agreed(&agreed)).await?;
    Ok(row.id)
}

/// An order that somebody agreed to.
pub(super) struct Agreed {
    pub(super) job: JobId,
    pub(super) by: String,
    pub(super) digest: String,
}

/// The fault for an answer that comes when what was looked at is not so any more.
pub(super) fn differs() -> Fault {
    Fault::new(
        FaultClass::Conflict,
        "approval.changed",
        "what the order is about changed since it was given: the agreement was to something else",
    )
    .affects("this order: it waits on")
    .spares("nothing was changed")
    .remedy("refuse it, and have it given again")
}

/// Ends orders that nobody answered.
pub(crate) async fn expire(core: &Arc<Core>) {
    let now = core.world.now();
    let late: Vec<(JobRow, ApprovalRow)> = {
        let estate = core.estate();
        let waiting = estate.jobs.values().filter(|entry| entry.row.state == JobState::Waiting);
        waiting
            .filter_map(|entry| Some((entry.row.clone(), (**entry.row.params.approval.as_ref()?).clone())))
            .filter(|(_, approval)| approval.expires <= now)
            .collect()
    };
    for (row, approval) in late {
        if let Err(fault) = end(core, &row, &approval, "", true, "nobody answered in time").await {
            tracing::warn!(job = %row.id, "an order that nobody answered was not ended: {}", fault.message);
        }
    }
}

/// A person takes back an order that waits.
pub(super) async fn take_back(core: &Arc<Core>, by: &Operator, row: &JobRow) -> Result<(), Fault> {
    let Some(approval) = &row.params.approval else { return Ok(()) };
    end(core, row, approval, &by.name, false, "taken back").await
}

async fn end(
    core: &Arc<Core>,
    row: &JobRow,
    approval: &ApprovalRow,
    by: &str,
    refused: bool,
    why: &str,
) -> Result<(), Fault> {
    let now = core.world.now();
    let mut tx = core.store.begin().await?;
    let Some(mut job) = tx.job(row.id).await?.filter(|job| job.state == JobState::Waiting) else {
        return Ok(());
    };
    job.params.approval = Some(Box::new(ApprovalRow { by: by.to_owned(), refused, ..approval.clone() }));
    job.state = JobState::Cancelled;
    job.ended = Some(now);
    let who = if by.is_empty() { "vault" } else { by };
    job.fault = Some(
        Fault::new(FaultClass::Refused, "approval.refused", format!("{} ({who})", why))
            .affects("this order")
            .spares("nothing was changed")
            .remedy("give it again where it is still wanted"),
    );
    for step in &mut job.steps {
        step.state = StepState::Skipped;
    }
    tx.audit(now, who, "refuse", &shown(&job.machine_name), "done", &format!("job {}: {why}", job.id))
        .await?;
    let text = format!("{} was not agreed to: {why}", job.kind);
    let id = job.machine.map_or_else(String::new, |id| id.to_string());
    tx.add_event(core.event("order", &job.machine_name, id, text, who)).await?;
    tx.save_job(job).await?;
    core.commit(tx).await?;
    Ok(())
}

/// Refused answers stand in the audit log.
async fn refuse(core: &Arc<Core>, by: &Operator, row: &JobRow, code: &str, why: &str) -> Fault {
    let written = async {
        let mut tx = core.store.begin().await?;
        let detail = format!("job {}: {code}", row.id);
        tx.audit(core.world.now(), &by.name, "approve", &shown(&row.machine_name), "refused", &detail)
            .await?;
        core.commit(tx).await
    };
    if let Err(error) = written.await {
        return error.fault();
    }
    Fault::new(FaultClass::Refused, code, format!("{} of {}: {why}", row.kind, shown(&row.machine_name)))
        .affects("this answer")
        .spares("nothing was executed")
        .remedy(
            "see what waits: continuum get jobs; another person with the role approver or owner can answer",
        )
}
