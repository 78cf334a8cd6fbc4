//! An order becomes a job, exactly once.
//!
//! In one transaction: the key is claimed, the machine's version compared, the job and its steps written
//! with the changes that the order itself makes, the intent put into the audit log. Then the engine begins.
//! Of two orders with one key, however close, one makes the job and the other is given it.
//!
//! Lives beside it: reading an order (`asked`), orders about jobs (`again`), what orders set
//! (`settings`), policies (`policies`) and plans (`plans`).

mod again;
pub(crate) mod approval;
mod asked;
mod plans;
pub(crate) mod policies;
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
use crate::relays;
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
    let right = right_of(order, &request.machine);
    if !by.role.may(right) {
        return Err(refused(core, by, &request, right).await?);
    }
    match order {
        Order::CancelJob(order) => cancel(core, by, &order.job).await.map(|id| (id, false)),
        Order::RetryJob(order) => retry(core, by, &order.job).await.map(|id| (id, false)),
        Order::Proceed(order) => proceed(core, by, &order.job).await.map(|id| (id, false)),
        Order::Approve(order) => approval::answer(core, by, order).await.map(|id| (id, false)),
        _ => begin_as(core, by, &request, Gate::Ask).await,
    }
}

/// What an order needs to be allowed.
fn right_of(order: &Order, machine: &str) -> Right {
    match order {
        Order::CancelJob(_) => Right::Cancel,
        Order::RetryJob(_) => Right::Retry,
        Order::Approve(_) => Right::Approve,
        // Who may begin a drill may say that a thing was done.
        Order::Proceed(_) => Right::Order(JobKind::PlanDrill),
        Order::Unprotect(order) if !order.keep_replica => Right::DeletePoints,
        order => Right::Order(kind_of(order, machine)),
    }
}

/// Whether somebody else must agree first.
#[derive(Clone, Copy)]
enum Gate<'a> {
    /// Where the vault is configured so.
    Ask,
    /// Somebody did.
    Agreed(&'a approval::Agreed),
    /// It is part of a run that was agreed to as a whole.
    OfRun,
}

/// Gives an order that is part of a run.
pub(crate) async fn give_of_run(
    core: &Arc<Core>,
    by: &Operator,
    request: pb::OrderRequest,
) -> Result<JobId, Fault> {
    let (job, repeated) = begin_as(core, by, &request, Gate::OfRun).await?;
    if !repeated {
        engine::begin(core, job);
    }
    Ok(job)
}

/// Begins an order, or takes it up again where somebody agreed to it.
async fn begin_as(
    core: &Arc<Core>,
    by: &Operator,
    request: &pb::OrderRequest,
    gate: Gate<'_>,
) -> Result<(JobId, bool), Fault> {
    match request.order {
        Some(
            Order::AcknowledgeAlert(_)
            | Order::SetPolicy(_)
            | Order::DeletePolicy(_)
            | Order::ApplyPlan(_)
            | Order::DeletePlan(_)
            | Order::RunPlan(_)
            | Order::SetGroup(_)
            | Order::DeleteGroup(_),
        ) => begin(core, by, request, None, gate).await,
        Some(Order::Bookmark(_)) if crate::groups::named(&request.machine).is_some() => {
            begin(core, by, request, None, gate).await
        }
        _ => {
            let machine = core.estate().machine_named(&request.machine).map(|entry| entry.row.id);
            let machine = machine.ok_or_else(|| no_machine(&request.machine))?;
            begin(core, by, request, Some(machine), gate).await
        }
    }
}

/// Whether the machine's name must be typed before this happens.
pub(crate) const fn must_be_typed(kind: JobKind) -> bool {
    matches!(
        kind,
        JobKind::Failover
            | JobKind::Commit
            | JobKind::ChangePoint
            | JobKind::CancelFailover
            | JobKind::Reprotect
            | JobKind::Failback
            | JobKind::Migrate
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
    gate: Gate<'_>,
) -> Result<(JobId, bool), Fault> {
    let order = request
        .order
        .as_ref()
        .ok_or_else(|| usage("order.empty", "the request holds no order", "choose one"))?;
    let agreed = match gate {
        Gate::Agreed(agreed) => Some(agreed),
        Gate::Ask | Gate::OfRun => None,
    };
    let now = core.world.now();
    let mut asked = asked(order, &request.machine, now)?;
    let id = agreed.map_or_else(|| core.world.id(JobId::make), |agreed| agreed.job);
    let mut tx = core.store.begin().await?;
    let body = digest_of(request, &by.name);
    if agreed.is_none()
        && let Some((job, known)) = tx.claim_key(&request.key, id, &body, now).await?
    {
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
    // As it is now; the rest of this looks at it as the order's first change leaves it.
    let seen = row.clone();
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
        if let Order::MoveMachine(order) = order {
            plan::possible(JobKind::Move, row)?;
            let estate = core.estate();
            let entry = estate.machines.get(&row.id).ok_or_else(|| no_machine(&request.machine))?;
            changes.push(Write::ProcessServer(relays::chosen(&estate, entry, &order.process_server)?));
        }
        if let Some(wanted) = crate::groups::wanted(&asked.params.point) {
            let point = crate::groups::resolve(&core.estate(), row.id, wanted)?;
            asked.detail.push_str(&format!(", which is {} of group {}", point.id, shown(&point.group)));
            asked.params.point = point.id.to_string();
        }
        policies::check(core, &mut asked, request, Some(row))?;
        let (more, begun) = plan::begin(asked.kind, &asked.params, row, id, &core.world)?;
        changes.extend(more);
        facts = begun;
    }
    if asked.kind.is_about_plans() {
        plans::check(core, &mut tx, &mut asked, request).await?;
    }
    if asked.kind == JobKind::GroupBookmark {
        let group = &asked.params.group;
        tx.group(group).await?.filter(|row| !row.deleted).ok_or_else(|| crate::groups::no_group(group))?;
    }
    let group = Some(&asked.params.group).filter(|name| !name.is_empty()).map(|name| format!("group/{name}"));
    if row.is_none() {
        policies::check(core, &mut asked, request, None)?;
    }
    let loses = policies::loses(core, order, row.as_ref());
    let plan_version = match &asked.params.plan {
        Some(frozen) if asked.kind.of_each().is_some() => {
            tx.plan(&frozen.name).await?.map(|plan| plan.version)
        }
        _ => None,
    };
    let must_wait = !matches!(gate, Gate::OfRun) && approval::needed_for(core, order, &asked, loses);
    if must_wait || agreed.is_some() {
        let mut approval = approval::asked_of(request, by, &asked, seen.as_ref(), plan_version, now);
        if let Some(agreed) = agreed {
            if approval.digest != agreed.digest {
                return Err(approval::differs());
            }
            approval.by.clone_from(&agreed.by);
        }
        asked.params.approval = Some(Box::new(approval));
    }
    let waits = must_wait && agreed.is_none();
    let about = asked.params.plan.as_ref().map(|plan| format!("plan/{}", plan.name));
    let mut job = JobRow {
        id,
        version: 0,
        kind: asked.kind.name().to_owned(),
        machine,
        machine_name: row.as_ref().map(|row| row.name.clone()).or(about).or(group).unwrap_or_default(),
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
    if let Some(agreed) = agreed {
        let known = tx.job(agreed.job).await?.filter(|job| job.state == JobState::Waiting);
        let known = known.ok_or_else(approval::differs)?;
        (job.version, job.created) = (known.version, known.created);
    }
    if let Some(machine) = machine.filter(|_| !waits) {
        writes::make(core, &mut tx, machine, changes, &by.name).await.map_err(writes::Refused::fault)?;
    }
    let at_once = job.steps.is_empty() && !waits;
    if waits {
        job.state = JobState::Waiting;
    }
    if at_once {
        at_once_effects(core, &mut tx, order, row.as_ref()).await?;
        plans::effects(&mut tx, order, &by.name, now).await?;
        policies::effects(core, &mut tx, &by.name, order, now).await?;
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
    let id = job.id;
    match agreed {
        Some(agreed) => {
            let detail = format!("job {id}, digest {}", agreed.digest);
            tx.audit(now, &agreed.by, "approve", &shown(&name), "done", &detail).await?;
            tx.save_job(job).await?;
        }
        None => {
            tx.add_job(job).await?;
        }
    }
    core.commit(tx).await?;
    if at_once {
        after(core, order, row.as_ref());
    }
    Ok((id, false))
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
        // What waits for somebody's agreement has done nothing yet, and never stands in the way of an emergency.
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
        Right::Access => "access",
        Right::Audit => "audit",
        Right::Approve => "approve",
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
