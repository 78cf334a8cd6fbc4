//! An order becomes a job, exactly once.
//!
//! In one transaction: the key is claimed, the machine's version compared, the job and its steps written
//! with the changes that the order itself makes, the intent put into the audit log. Then the engine begins.
//! Of two orders with one key, however close, one makes the job and the other is given it.
//!
//! Lives beside it: reading an order (`asked`), orders about jobs (`again`), what orders set (`settings`), and plans (`plans`).

mod again;
mod asked;
mod plans;
mod settings;

use again::{cancel, proceed, retry};
use asked::{asked, kind_of};
pub(crate) use plans::no_plan;
use settings::{at_once_effects, protect};

use crate::access::{Operator, Right};
use crate::coordination::reports::limited;
use crate::core::Core;
use crate::estate::agent_of;
use crate::jobs::plan::{self, JobKind, Write, quoted};
use crate::jobs::{engine, writes};
use crate::store::inventory::{MachineRow, PolicyRow, Protection};
use crate::store::jobs::{Facts, JobRow, Params, StepRow};
use crate::store::{StoreError, Tx, hex};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{JobId, PolicyId};
use continuum_model::job::{JobState, StepState};
use continuum_model::point::PointChoice;
use continuum_model::protection::{ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use digest::digest_of;
use pb::order_request::Order;
use std::sync::Arc;

const KEY_BYTES_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 253;

/// Gives an order. Returns the job, and whether the key was seen before.
pub(crate) async fn give(
    core: &Arc<Core>,
    by: &Operator,
    request: pb::OrderRequest,
) -> Result<(JobId, bool), Fault> {
    let (job, repeated) = record(core, by, request).await?;
    if !repeated && core.estate().jobs.get(&job).is_some_and(|entry| entry.row.state == JobState::Queued) {
        engine::begin(core, job);
    }
    Ok((job, repeated))
}

/// Makes the order durable; nothing has begun yet.
pub(crate) async fn record(
    core: &Arc<Core>,
    by: &Operator,
    request: pb::OrderRequest,
) -> Result<(JobId, bool), Fault> {
    if request.key.is_empty() || request.key.len() > KEY_BYTES_MAX {
        return Err(usage(
            "order.key",
            "an order needs a key of 1 to 128 bytes",
            "draw a new one for every order, and repeat it when you repeat the order",
        ));
    }
    let Some(order) = &request.order else {
        return Err(usage("order.empty", "the request holds no order", "choose one, such as test-failover"));
    };
    let right = match order {
        Order::CancelJob(_) => Right::Cancel,
        Order::RetryJob(_) => Right::Retry,
        // Who may begin a drill may say that a thing was done.
        Order::Proceed(_) => Right::Order(JobKind::PlanDrill),
        Order::Unprotect(order) if !order.keep_replica => Right::DeletePoints,
        order => Right::Order(kind_of(order)),
    };
    if !by.role.may(right) {
        return Err(refused(core, by, &request, right).await?);
    }
    match order {
        Order::CancelJob(order) => cancel(core, by, &order.job).await.map(|id| (id, false)),
        Order::RetryJob(order) => retry(core, by, &order.job).await.map(|id| (id, false)),
        Order::Proceed(order) => proceed(core, by, &order.job).await.map(|id| (id, false)),
        Order::AcknowledgeAlert(_)
        | Order::SetPolicy(_)
        | Order::ApplyPlan(_)
        | Order::DeletePlan(_)
        | Order::RunPlan(_) => begin(core, by, &request, None).await,
        _ => {
            let machine = core.estate().machine_named(&request.machine).map(|entry| entry.row.id);
            let machine = machine.ok_or_else(|| no_machine(&request.machine))?;
            begin(core, by, &request, Some(machine)).await
        }
    }
}

/// Whether the machine's name must be typed before this happens.
pub(crate) const fn must_be_typed(kind: JobKind) -> bool {
    matches!(
        kind,
        JobKind::Failover
            | JobKind::Commit
            | JobKind::Unprotect
            | JobKind::PlanFailover
            | JobKind::DeletePlan
    )
}

async fn begin(
    core: &Arc<Core>,
    by: &Operator,
    request: &pb::OrderRequest,
    machine: Option<continuum_model::id::MachineId>,
) -> Result<(JobId, bool), Fault> {
    let order = request
        .order
        .as_ref()
        .ok_or_else(|| usage("order.empty", "the request holds no order", "choose one"))?;
    let now = core.world.now();
    let mut asked = asked(order, now)?;
    let id = core.world.id(JobId::make);
    let mut tx = core.store.begin().await?;
    let body = digest_of(request, &by.name);
    if let Some((job, known)) = tx.claim_key(&request.key, id, &body, now).await? {
        if known != body {
            return Err(Fault::new(
                FaultClass::Conflict,
                "order.key-reused",
                "this key was used for another order",
            )
            .affects("this order")
            .spares("nothing was changed")
            .remedy("draw a new key for every order"));
        }
        return Ok((job, true));
    }
    let mut row = match machine {
        Some(machine) => Some(tx.machine(machine).await?.ok_or_else(|| no_machine(&request.machine))?),
        None => None,
    };
    let mut facts = Facts::default();
    let mut changes = Vec::new();
    if let Some(row) = &mut row {
        check_version(row, request.expected_version)?;
        if must_be_typed(asked.kind) && request.confirm != row.name {
            return Err(unconfirmed(asked.kind, row));
        }
        check_conflicts(&mut tx, asked.kind, row).await?;
        if let Order::Protect(order) = order {
            changes.push(protect(core, row, order)?);
            // The rest of the order looks at the machine as the first change leaves it.
            if let Some(Write::Protect(protection)) = changes.first()
                && row.protection.is_none()
            {
                row.protection = Some(Protection {
                    state: ProtectionState::EnablingFailed { reason: String::new() },
                    ..(**protection).clone()
                });
            } else {
                changes.clear();
            }
        }
        let (more, begun) = plan::begin(asked.kind, &asked.params, row, id, &core.world)?;
        changes.extend(more);
        facts = begun;
    }
    if asked.kind.is_about_plans() {
        plans::check(core, &mut tx, &mut asked, request).await?;
    }
    let about = asked.params.plan.as_ref().map(|plan| format!("plan/{}", plan.name));
    let mut job = JobRow {
        id,
        version: 0,
        kind: asked.kind.name().to_owned(),
        machine,
        machine_name: row.as_ref().map(|row| row.name.clone()).or(about).unwrap_or_default(),
        state: JobState::Queued,
        by: by.name.clone(),
        detail: asked.detail,
        steps: asked.kind.steps_of(&asked.params).iter().map(|(_, name)| fresh(name)).collect(),
        params: asked.params,
        facts,
        fault: None,
        attempt: 1,
        cancel: false,
        created: now,
        started: None,
        ended: None,
    };
    if let Some(machine) = machine {
        writes::make(core, &mut tx, machine, changes, &by.name).await.map_err(writes::Refused::fault)?;
    }
    let at_once = job.steps.is_empty();
    if at_once {
        at_once_effects(core, &mut tx, order, row.as_ref()).await?;
        plans::effects(&mut tx, order).await?;
        job.state = JobState::Succeeded;
        job.started = Some(now);
        job.ended = Some(now);
    }
    let object = machine.map_or_else(String::new, |id| id.to_string());
    let name = job.machine_name.clone();
    tx.add_event(core.event("order", &name, &object, format!("{}: {}", job.kind, job.detail), &by.name))
        .await?;
    let outcome = if at_once { "done" } else { "intent" };
    tx.audit(now, &by.name, &job.kind, &shown(&name), outcome, &format!("job {id}: {}", job.detail)).await?;
    let job = tx.add_job(job).await?;
    core.commit(tx).await?;
    if at_once {
        after(core, order, row.as_ref());
    }
    Ok((job.id, false))
}

fn fresh(name: &str) -> StepRow {
    StepRow {
        name: name.to_owned(),
        state: StepState::Pending,
        started: None,
        ended: None,
        detail: String::new(),
    }
}

fn check_version(row: &MachineRow, expected: u64) -> Result<(), Fault> {
    if expected == 0 || expected == row.version {
        return Ok(());
    }
    let state = row.protection.as_ref().map_or("unprotected", |protection| protection.state.name());
    Err(Fault::new(
        FaultClass::Conflict,
        "machine.changed",
        format!(
            "{} changed since you looked: it is {state} now (version {}, you saw {expected})",
            shown(&row.name),
            row.version
        ),
    )
    .affects("this order")
    .spares("nothing was changed")
    .remedy("look at its present state and decide again"))
}

fn unconfirmed(kind: JobKind, row: &MachineRow) -> Fault {
    usage(
        "order.unconfirmed",
        &format!("{} of {} needs the machine's name, typed out", kind.name(), shown(&row.name)),
        &format!("give it exactly, such as --confirm {}", quoted(&row.name)),
    )
}

async fn check_conflicts(tx: &mut Tx, kind: JobKind, row: &MachineRow) -> Result<(), Fault> {
    for (job, other) in tx.jobs_under_way(row.id).await? {
        if JobKind::named(&other).is_some_and(|other| kind.conflicts(other)) {
            return Err(Fault::new(
                FaultClass::Conflict,
                "job.under-way",
                format!("{} of {} is under way (job {job})", other, shown(&row.name)),
            )
            .affects("this order")
            .spares("nothing was changed")
            .remedy(format!("wait for it (continuum wait {job}), or cancel it")));
        }
    }
    Ok(())
}

/// Hints and live values that follow an order without steps, once it is durable.
fn after(core: &Arc<Core>, order: &Order, row: Option<&MachineRow>) {
    match (order, row) {
        (Order::RetryNow(_), Some(row)) => {
            let mut servers = vec![agent_of(row.id)];
            servers.extend(row.protection.as_ref().map(|protection| protection.process_server));
            for server in servers {
                let command = pb::Command {
                    id: format!("retry-now/{}/{server}", core.world.stamp().micros()),
                    act: Some(pb::command::Act::ReconnectNow(pb::ReconnectNow {})),
                };
                core.sessions.hint(server, command);
            }
        }
        (Order::AcknowledgeAlert(order), _) => {
            // A person has looked at two that claim to be one machine, and has stopped one of them.
            let mut estate = core.estate();
            let alert = order.alert.parse().ok().and_then(|id| estate.alerts.get(&id).cloned());
            let machine = alert
                .filter(|alert| alert.code == crate::health::TWICE)
                .and_then(|alert| alert.object_id.parse().ok());
            if let Some(id) = machine
                && let Some(entry) = estate.machines.get_mut(&id)
            {
                entry.live.twice = false;
                core.sessions.assign_one(&estate, agent_of(id), &core.world);
            }
        }
        _ => {}
    }
}

/// Refused orders stand in the audit log, too.
async fn refused(
    core: &Arc<Core>,
    by: &Operator,
    request: &pb::OrderRequest,
    right: Right,
) -> Result<Fault, StoreError> {
    let act = match right {
        Right::Order(kind) => kind.name(),
        Right::DeletePoints => "delete-points",
        Right::Cancel => "cancel-job",
        Right::Retry => "retry-job",
        Right::CreateToken => "create-token",
        Right::Read => "read",
    };
    let mut tx = core.store.begin().await?;
    tx.audit(
        core.world.now(),
        &by.name,
        act,
        &shown(&limited(&request.machine, NAME_BYTES_MAX)),
        "refused",
        by.role.name(),
    )
    .await?;
    core.commit(tx).await?;
    Ok(not_allowed(by, act))
}

/// The fault for what a role does not allow.
pub(crate) fn not_allowed(by: &Operator, act: &str) -> Fault {
    Fault::new(
        FaultClass::Refused,
        "access.role",
        format!("{} ({}) may not {act}", shown(&by.name), by.role.name()),
    )
    .affects("this order")
    .spares("nothing was changed")
    .remedy("ask someone whose role allows it; `continuum whoami` lists what yours does")
}

pub(crate) fn usage(code: &str, message: &str, remedy: &str) -> Fault {
    Fault::new(FaultClass::Usage, code, message)
        .affects("this order")
        .spares("nothing was changed")
        .remedy(remedy)
}

fn not_found(code: &str, message: String, remedy: &str) -> Fault {
    Fault::new(FaultClass::NotFound, code, message)
        .affects("this order")
        .spares("nothing was changed")
        .remedy(remedy)
}

pub(crate) fn no_machine(name: &str) -> Fault {
    not_found(
        "machine.unknown",
        format!("there is no machine {}", shown(&limited(name, 300))),
        "see `continuum get machines`",
    )
}

/// The digest of an order, so that a key is not used for two.
mod digest {
    use super::{hex, pb};
    use sha2::{Digest, Sha256};

    /// Of everything but the key: the same words mean the same order.
    pub(super) fn digest_of(request: &pb::OrderRequest, by: &str) -> String {
        // The confirmation and the version seen are how it was agreed, not what was ordered.
        let bare = pb::OrderRequest {
            key: String::new(),
            confirm: String::new(),
            expected_version: 0,
            ..request.clone()
        };
        let mut sum = Sha256::new();
        sum.update(by.as_bytes());
        sum.update([0]);
        sum.update(format!("{bare:?}").as_bytes());
        hex(&sum.finalize())
    }
}
