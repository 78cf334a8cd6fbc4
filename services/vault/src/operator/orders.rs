//! An order becomes a job, exactly once.
//!
//! In one transaction: the key is claimed, the machine's version compared, the job and its steps written
//! with the changes that the order itself makes, the intent put into the audit log. Then the engine begins.
//! Of two orders with one key, however close, one makes the job and the other is given it.

use crate::access::{Operator, Right};
use crate::coordination::reports::limited;
use crate::core::Core;
use crate::estate::agent_of;
use crate::jobs::plan::{self, JobKind, Write, quoted};
use crate::jobs::{engine, writes};
use crate::project;
use crate::store::inventory::{MachineRow, PolicyRow, Protection};
use crate::store::jobs::{Facts, JobRow, Params, StepRow};
use crate::store::{StoreError, Tx, hex};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{JobId, PolicyId};
use continuum_model::job::{JobState, StepState};
use continuum_model::point::PointChoice;
use continuum_model::protection::{ProtectionState, TestState};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::order_request::Order;
use prost_digest::digest_of;
use std::sync::Arc;

const KEY_BYTES_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 253;

/// What an order asks for, read and checked for sense.
struct Asked {
    kind: JobKind,
    params: Params,
    detail: String,
}

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
        Order::Unprotect(order) if !order.keep_replica => Right::DeletePoints,
        order => Right::Order(kind_of(order)),
    };
    if !by.role.may(right) {
        return Err(refused(core, by, &request, right).await?);
    }
    match order {
        Order::CancelJob(order) => cancel(core, by, &order.job).await.map(|id| (id, false)),
        Order::RetryJob(order) => retry(core, by, &order.job).await.map(|id| (id, false)),
        Order::AcknowledgeAlert(_) | Order::SetPolicy(_) => begin(core, by, &request, None).await,
        _ => {
            let machine = core.estate().machine_named(&request.machine).map(|entry| entry.row.id);
            let machine = machine.ok_or_else(|| no_machine(&request.machine))?;
            begin(core, by, &request, Some(machine)).await
        }
    }
}

/// The kind of job that an order makes.
fn kind_of(order: &Order) -> JobKind {
    match order {
        Order::Protect(_) => JobKind::Protect,
        Order::Unprotect(_) => JobKind::Unprotect,
        Order::Pause(_) => JobKind::Pause,
        Order::Resume(_) => JobKind::Resume,
        Order::Bookmark(_) => JobKind::Bookmark,
        Order::TestFailover(_) => JobKind::TestFailover,
        Order::Cleanup(_) => JobKind::Cleanup,
        Order::Failover(_) => JobKind::Failover,
        Order::Commit(_) => JobKind::Commit,
        Order::Verify(_) => JobKind::Verify,
        Order::PinPoint(_) => JobKind::Pin,
        Order::AcknowledgeAlert(_) => JobKind::Acknowledge,
        Order::SetPolicy(_) => JobKind::SetPolicy,
        // Retrying and cancelling make no job of their own.
        Order::RetryNow(_) | Order::CancelJob(_) | Order::RetryJob(_) => JobKind::RetryNow,
    }
}

/// Whether the machine's name must be typed before this happens.
pub(crate) const fn must_be_typed(kind: JobKind) -> bool {
    matches!(kind, JobKind::Failover | JobKind::Commit | JobKind::Unprotect)
}

fn asked(order: &Order) -> Result<Asked, Fault> {
    let kind = kind_of(order);
    let mut params = Params::default();
    let at = |point: &str| -> Result<String, Fault> {
        let point = if point.is_empty() { "latest" } else { point };
        let choice: PointChoice =
            point.parse().map_err(|error: continuum_model::point::InvalidPointChoice| {
                usage("point.invalid", &error.to_string(), "see `continuum get points`")
            })?;
        Ok(choice.to_string())
    };
    let detail = match order {
        Order::Protect(order) => format!("policy {}, to {}", shown(&order.policy), shown(&order.target_site)),
        Order::Unprotect(order) => {
            params.keep_replica = order.keep_replica;
            if order.keep_replica {
                "the replica is kept".to_owned()
            } else {
                "with its replica and recovery points".to_owned()
            }
        }
        Order::Bookmark(order) => {
            if order.app_consistent {
                return Err(Fault::new(FaultClass::NotReady, "not-available", "an application-consistent point is not possible: this version's agents cut crash-consistent ones")
                    .affects("this order")
                    .spares("nothing was changed")
                    .remedy("order the bookmark without it"));
            }
            if order.name.len() > NAME_BYTES_MAX {
                return Err(usage(
                    "bookmark.name",
                    "the name is longer than 253 bytes",
                    "choose a shorter one",
                ));
            }
            // A bookmark without a name could not be told from a point without one.
            params.name = if order.name.is_empty() { "bookmark".into() } else { order.name.clone() };
            format!("bookmark {}", shown(&params.name))
        }
        Order::TestFailover(order) => {
            params.point = at(&order.point)?;
            params.keep_on_failure = order.keep_on_failure;
            format!("test failover to {}", params.point)
        }
        Order::Cleanup(order) => match order.note.as_str() {
            "" => "clean up the test failover".to_owned(),
            note => format!("clean up the test failover: {}", shown(&limited(note, 1000))),
        },
        Order::Failover(order) => {
            if order.kind == "planned" {
                return Err(Fault::new(FaultClass::NotReady, "not-available", "a planned failover is not possible: this version knows unplanned ones only")
                    .affects("this order")
                    .spares("nothing was changed")
                    .remedy("stop the machine at its source, then order an unplanned failover to `latest`: with everything received nothing is lost"));
            }
            if !matches!(order.kind.as_str(), "unplanned" | "") {
                return Err(usage(
                    "failover.kind",
                    &format!("there is no {} failover", shown(&order.kind)),
                    "write planned or unplanned",
                ));
            }
            params.point = at(&order.point)?;
            format!("unplanned failover to {}", params.point)
        }
        Order::Verify(order) => {
            if !matches!(order.point.as_str(), "" | "latest") {
                return Err(usage(
                    "verify.point",
                    "a verification compares both sides as of now",
                    "leave the point out, or write latest",
                ));
            }
            "compare source and replica as of now".to_owned()
        }
        Order::PinPoint(order) => {
            let choice: Result<PointChoice, _> = order.point.parse();
            let Ok(PointChoice::Id(id)) = choice else {
                return Err(usage(
                    "point.invalid",
                    "only a listed recovery point can be pinned",
                    "give its id; see `continuum get points`",
                ));
            };
            params.point = id.to_string();
            params.pinned = order.pinned;
            format!("{} {id}", if order.pinned { "pin" } else { "unpin" })
        }
        Order::Commit(_) => "make the failover final".to_owned(),
        Order::Pause(_) => "pause replication".to_owned(),
        Order::Resume(_) => "resume replication".to_owned(),
        Order::RetryNow(_) => "try connections again now".to_owned(),
        Order::AcknowledgeAlert(order) => format!("acknowledge alert {}", shown(&order.alert)),
        Order::SetPolicy(order) => {
            format!(
                "set policy {}",
                order.policy.as_ref().map(|policy| shown(&policy.name)).unwrap_or_default()
            )
        }
        Order::CancelJob(_) | Order::RetryJob(_) => String::new(),
    };
    Ok(Asked { kind, params, detail })
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
    let asked = asked(order)?;
    let now = core.world.now();
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
    let mut job = JobRow {
        id,
        version: 0,
        kind: asked.kind.name().to_owned(),
        machine,
        machine_name: row.as_ref().map(|row| row.name.clone()).unwrap_or_default(),
        state: JobState::Queued,
        by: by.name.clone(),
        detail: asked.detail,
        params: asked.params,
        facts,
        fault: None,
        attempt: 1,
        cancel: false,
        created: now,
        started: None,
        ended: None,
        steps: asked.kind.steps().iter().map(|step| fresh(step.name())).collect(),
    };
    if let Some(machine) = machine {
        writes::make(core, &mut tx, machine, changes, &by.name).await.map_err(writes::Refused::fault)?;
    }
    let at_once = job.steps.is_empty();
    if at_once {
        at_once_effects(core, &mut tx, order, row.as_ref()).await?;
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

/// A new protection: who carries it, under which policy.
fn protect(core: &Core, row: &MachineRow, order: &pb::Protect) -> Result<Write, Fault> {
    let estate = core.estate();
    let not_ready = |code: &str, message: String, remedy: &str| {
        Fault::new(FaultClass::NotReady, code, message)
            .affects("this order")
            .spares("nothing was changed")
            .remedy(remedy)
    };
    let mut policies = estate.policies.values().filter(|policy| {
        order.policy.is_empty() || policy.name == order.policy || policy.id.to_string() == order.policy
    });
    let policy = match (policies.next(), policies.next()) {
        (Some(policy), None) => policy.id,
        (None, _) => {
            return Err(not_found(
                "policy.unknown",
                format!("there is no policy {}", shown(&order.policy)),
                "see `continuum get policies`",
            ));
        }
        (Some(_), Some(_)) => return Err(usage("policy.missing", "there are several policies", "name one")),
    };
    let mut sites = estate.sites.values().filter(|site| site.recovery).filter(|site| {
        order.target_site.is_empty()
            || site.name == order.target_site
            || site.id.to_string() == order.target_site
    });
    let site = match (sites.next(), sites.next()) {
        (Some(site), None) => site.id,
        (None, _) => {
            let what = if order.target_site.is_empty() {
                "no site is a recovery site".to_owned()
            } else {
                format!("{} is no recovery site", shown(&order.target_site))
            };
            return Err(not_found("site.unknown", what, "see `continuum get sites`"));
        }
        (Some(_), Some(_)) => {
            return Err(usage("site.missing", "there are several recovery sites", "name one"));
        }
    };
    let master_target = estate.least_loaded("master-target", site, false).ok_or_else(|| {
        not_ready(
            "target.none",
            format!("no master target is enrolled at {}", shown(&estate.site_name(site))),
            "enrol one with a token for that site",
        )
    })?;
    let process_server = estate.least_loaded("process-server", row.site, true).ok_or_else(|| {
        not_ready(
            "process-server.none",
            "no process server is enrolled".into(),
            "enrol one with a token for the machine's site",
        )
    })?;
    Ok(Write::Protect(Box::new(Protection {
        state: ProtectionState::Enabling,
        since: core.world.now(),
        policy,
        target_site: site,
        process_server,
        master_target,
        fenced: false,
        test: TestState::None,
        test_run: None,
        failed_over: None,
        answered_doubt: None,
    })))
}

/// What an order without steps changes in the store.
async fn at_once_effects(
    core: &Arc<Core>,
    tx: &mut Tx,
    order: &Order,
    row: Option<&MachineRow>,
) -> Result<(), Fault> {
    match order {
        Order::AcknowledgeAlert(order) => {
            let alert = {
                let estate = core.estate();
                order.alert.parse().ok().and_then(|id| estate.alerts.get(&id).cloned())
            };
            let mut alert = alert.ok_or_else(|| {
                not_found(
                    "alert.unknown",
                    format!("no open alert has the id {}", shown(&order.alert)),
                    "see `continuum get alerts`",
                )
            })?;
            alert.acknowledged = true;
            tx.save_alert(alert).await?;
        }
        Order::SetPolicy(order) => {
            let message = order.policy.as_ref().ok_or_else(|| {
                usage("policy.empty", "the order holds no policy", "give its name and fields")
            })?;
            set_policy(core, tx, message).await?;
        }
        Order::RetryNow(_) if row.is_some_and(|row| row.protection.is_none()) => {}
        _ => {}
    }
    Ok(())
}

async fn set_policy(core: &Arc<Core>, tx: &mut Tx, message: &pb::Policy) -> Result<(), Fault> {
    let policy = project::policy_from(message);
    let problems = policy.problems();
    if !problems.is_empty() {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(usage(
            "policy.invalid",
            &format!("the policy is not valid: {}", all.join("; ")),
            "mend every field named",
        ));
    }
    if message.name.is_empty() || message.name.len() > NAME_BYTES_MAX {
        return Err(usage("policy.name", "a policy needs a name of 1 to 253 bytes", "give it one"));
    }
    let known: Option<PolicyRow> = {
        let estate = core.estate();
        estate
            .policies
            .values()
            .find(|row| {
                row.id.to_string() == message.id || (message.id.is_empty() && row.name == message.name)
            })
            .cloned()
    };
    if known.is_none() && !message.id.is_empty() {
        return Err(not_found(
            "policy.unknown",
            format!("no policy has the id {}", shown(&message.id)),
            "leave the id out for a new one",
        ));
    }
    let id = known.map_or_else(|| core.world.id(PolicyId::make), |row| row.id);
    let taken = core.estate().policies.values().any(|row| row.name == message.name && row.id != id);
    if taken {
        return Err(Fault::new(
            FaultClass::Conflict,
            "policy.name",
            format!("another policy is called {}", shown(&message.name)),
        )
        .affects("this order")
        .spares("nothing was changed")
        .remedy("choose another name"));
    }
    tx.save_policy(PolicyRow { id, name: message.name.clone(), policy }).await?;
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

async fn cancel(core: &Arc<Core>, by: &Operator, job: &str) -> Result<JobId, Fault> {
    let mut tx = core.store.begin().await?;
    let mut row = job_of(&mut tx, job).await?;
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

async fn retry(core: &Arc<Core>, by: &Operator, job: &str) -> Result<JobId, Fault> {
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

async fn job_of(tx: &mut Tx, text: &str) -> Result<JobRow, Fault> {
    let unknown =
        || not_found("job.unknown", format!("there is no job {}", shown(text)), "see `continuum get jobs`");
    let id: JobId = text.parse().map_err(|_| unknown())?;
    tx.job(id).await?.ok_or_else(unknown)
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
mod prost_digest {
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
