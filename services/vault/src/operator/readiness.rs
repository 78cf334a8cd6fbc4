//! What would happen, to what, what would be lost, what is not ready. Changes nothing.

use super::orders::{must_be_typed, no_machine, no_plan, policies, usage};
use crate::core::Core;
use crate::estate::{Estate, MachineEntry, agent_of};
use crate::jobs::plan::{self, JobKind, quoted};
use crate::jobs::steps::note_of_gap;
use crate::project;
use crate::relays;
use continuum_document::policy::Change;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::command::Act;
use pb::command_result::Result as Answer;
use std::sync::Arc;
use std::time::Duration;

/// Questions are answered within this time, or not at all.
const QUESTION: Duration = Duration::from_secs(15);

/// Which moment would be brought up.
pub(crate) async fn preview(core: &Arc<Core>, machine: &str, point: &str) -> Result<pb::PreviewReply, Fault> {
    let (id, target) = target_of(core, machine)?;
    let point = if point.is_empty() { "latest" } else { point };
    let shared = match crate::groups::wanted(point) {
        Some(wanted) => Some(crate::groups::resolve(&core.estate(), id, wanted)?.id.to_string()),
        None => None,
    };
    let point = shared.as_deref().unwrap_or(point);
    point
        .parse::<continuum_model::point::PointChoice>()
        .map_err(|error| usage("point.invalid", &error.to_string(), "see `continuum get points`"))?;
    let act = Act::ResolvePoint(pb::ResolvePoint { machine_id: id.to_string(), point: point.to_owned() });
    match ask(core, target, act).await? {
        Answer::Resolved(pb::Resolved { preview: Some(preview) }) => Ok(preview),
        _ => Err(unanswered()),
    }
}

/// The history of a machine. A target that is away cannot tell of gaps and churn: the points that this
/// vault knows are told instead.
pub(crate) async fn timeline(
    core: &Arc<Core>,
    mut request: pb::TimelineRequest,
) -> Result<pb::TimelineReply, Fault> {
    let (id, target) = target_of(core, &request.machine)?;
    request.machine = id.to_string();
    request.points_max = if request.points_max == 0 { 1000 } else { request.points_max.min(10_000) };
    request.buckets = request.buckets.min(4096);
    let most = request.points_max;
    let before = request.before_id.clone();
    let asked = ask(core, target, Act::QueryTimeline(pb::QueryTimeline { request: Some(request) })).await;
    match asked {
        Ok(Answer::Timeline(mut reply)) => {
            label(core, &mut reply.points);
            Ok(reply)
        }
        Ok(_) => Err(unanswered()),
        Err(fault) if fault.class != FaultClass::NotConnected => Err(fault),
        Err(fault) => {
            let page = match before.parse() {
                Ok(point) => core.store.point(id, point).await?.map(|point| point.time),
                Err(_) => None,
            };
            let points = core.store.points(id, page, most.saturating_add(1)).await?;
            let Some(newest) = points.first() else { return Err(fault) };
            let more = points.len() > most as usize;
            let mut told: Vec<pb::Point> = points.iter().take(most as usize).map(project::point).collect();
            label(core, &mut told);
            Ok(pb::TimelineReply {
                oldest_us: points.last().map_or(0, |point| point.time.micros()),
                newest_us: newest.time.micros(),
                points: told,
                more,
                ..Default::default()
            })
        }
    }
}

/// Says which points a whole consistency group shares.
fn label(core: &Core, points: &mut [pb::Point]) {
    let estate = core.estate();
    for point in points {
        let shared = point.id.parse().ok().and_then(|id| estate.group_points.get(&id));
        point.group = shared.map(|shared| shared.group.clone()).unwrap_or_default();
    }
}

fn target_of(core: &Core, machine: &str) -> Result<(MachineId, ServerId), Fault> {
    let estate = core.estate();
    let entry = estate.machine_named(machine).ok_or_else(|| no_machine(machine))?;
    let protection = entry.row.protection.as_ref().ok_or_else(|| {
        Fault::new(
            FaultClass::NotReady,
            "machine.unprotected",
            format!("{} is not protected", shown(&entry.row.name)),
        )
        .affects("this question")
        .spares("everything else")
        .remedy(format!("protect it first: continuum protect {}", quoted(&entry.row.name)))
    })?;
    Ok((entry.row.id, protection.master_target))
}

async fn ask(core: &Arc<Core>, server: ServerId, act: Act) -> Result<Answer, Fault> {
    if !core.estate().connected(server) {
        let name = shown(&core.estate().server_name(server));
        return Err(Fault::new(
            FaultClass::NotConnected,
            "server.away",
            format!("master target {name} is not connected to the vault"),
        )
        .affects("this question")
        .spares("its replicas and their recovery points")
        .remedy("see `continuum get servers`; start it or mend the network"));
    }
    let command = pb::Command { id: format!("question/{}", core.world.stamp().micros()), act: Some(act) };
    core.hands.command(server, command, QUESTION, Arc::new(|_, _| {})).await
}

fn unanswered() -> Fault {
    Fault::new(
        FaultClass::Failed,
        "target.answer",
        "the master target answered something else than was asked",
    )
    .affects("this question")
    .spares("its replicas")
    .remedy("see that vault and master target are of the same version")
}

/// The readiness report of an order.
pub(crate) async fn report(
    core: &Arc<Core>,
    request: &pb::ReadinessRequest,
) -> Result<pb::ReadinessReply, Fault> {
    let name = if request.order.is_empty() { "test-failover" } else { &request.order };
    match name {
        "set-policy" => return of_policy(core, request),
        "delete-policy" => return of_deletion(core, request),
        "assign-policy" => return of_assignment(core, request),
        _ => {}
    }
    if let Some(plan) = crate::plans::named(&request.machine) {
        return of_plan(core, plan, name, &request.point).await;
    }
    let planned = name == plan::PLANNED_FAILOVER;
    let back = matches!(name, "failback" | plan::UNPLANNED_FAILBACK);
    let kind = JobKind::named(match name {
        plan::PLANNED_FAILOVER => JobKind::Failover.name(),
        plan::UNPLANNED_FAILBACK => JobKind::Failback.name(),
        name => name,
    })
    .filter(|kind| !matches!(kind, JobKind::Acknowledge) && !kind.is_about_plans() && !kind.is_about_groups())
    .ok_or_else(|| {
        usage("order.unknown", &format!("there is no order {}", shown(name)), "see `continuum help`")
    })?;
    let mut checks = Vec::new();
    let (row, forecast) = {
        let estate = core.estate();
        let entry = estate.machine_named(&request.machine).ok_or_else(|| no_machine(&request.machine))?;
        state_checks(kind, entry, &estate, &mut checks);
        if planned {
            let away = "it must answer: it stops the machine and sends what is left";
            checks.push(if estate.connected(agent_of(entry.row.id)) {
                check("source", "ok", "its agent answers, and will stop it", "")
            } else {
                check("source", "failed", "its agent is not connected", away)
            });
            use continuum_model::health::Mode;
            let mode = entry.live.agent.as_ref().and_then(|(report, _)| Mode::named(&report.mode));
            checks.push(match mode {
                Some(Mode::Data) => check("mode", "ok", "replication is continuous", ""),
                Some(Mode::Interval) => check(
                    "mode",
                    "ok",
                    "replication goes from cycle to cycle; a last one follows the stop",
                    "",
                ),
                Some(Mode::Bitmap | Mode::CatchingUp) | None => check(
                    "mode",
                    "failed",
                    "replication is not continuous now",
                    "wait until the machine is in data or interval mode",
                ),
            });
        } else if back || matches!(kind, JobKind::Reprotect | JobKind::CancelFailover) {
            home_checks(kind, name, entry, &estate, core.world.now(), &mut checks);
        } else {
            server_checks(kind, entry, &estate, core.world.now(), &mut checks);
            if matches!(kind, JobKind::TestFailover | JobKind::Failover) {
                group_check(entry, &estate, core.world.now(), &mut checks);
            }
        }
        if kind == JobKind::Move && entry.row.protection.is_some() {
            checks.push(match relays::chosen(&estate, entry, &request.process_server) {
                Ok(server) => {
                    let carries = estate.carried_by(server);
                    let said =
                        format!("{} is connected and carries {carries}", shown(&estate.server_name(server)));
                    check("process-server", "ok", &said, "")
                }
                Err(fault) => check("process-server", "failed", &fault.message, &fault.remedy),
            });
        }
        (entry.row.clone(), project::forecast_for(&estate, entry.row.id, kind.name(), None))
    };
    let point = if request.point.is_empty() { "latest" } else { &request.point };
    let mut preview_reply = None;
    if matches!(kind, JobKind::TestFailover | JobKind::Failover | JobKind::ChangePoint)
        && row.protection.is_some()
    {
        match preview(core, &request.machine, point).await {
            Ok(preview) => {
                checks.push(preview_check(&preview));
                preview_reply = Some(preview);
            }
            Err(fault) => checks.push(check("point", "failed", &fault.message, &fault.remedy)),
        }
    }
    let ready = checks.iter().all(|check| check.state != "failed");
    Ok(pb::ReadinessReply {
        ready,
        summary: if planned {
            format!(
                "{} is stopped at its source, what it wrote last is sent, and it is brought up at the recovery site; nothing is lost",
                shown(&row.name)
            )
        } else if name == plan::UNPLANNED_FAILBACK {
            format!(
                "{} runs at its old source again, with what had arrived there; what did not is kept at the recovery site until it is failed over again or unprotected",
                shown(&row.name)
            )
        } else {
            summary(kind, &row.name, preview_reply.as_ref())
        },
        checks,
        // It takes what comes, and gives up nothing.
        preview: preview_reply.filter(|_| !planned),
        forecast_seconds: forecast,
        confirm: if must_be_typed(kind) { row.name.clone() } else { String::new() },
        destroys: must_be_typed(kind),
        command: if planned {
            let name = quoted(&row.name);
            format!("continuum failover {name} --planned --yes --confirm {name}")
        } else if name == plan::UNPLANNED_FAILBACK {
            let name = quoted(&row.name);
            format!("continuum failback {name} --unplanned --yes --confirm {name}")
        } else {
            let mut command = command(kind, &row.name, point);
            if kind == JobKind::Move && !request.process_server.is_empty() {
                command.push_str(&format!(" --process-server {}", quoted(&request.process_server)));
            }
            command
        },
        machine_version: row.version,
    })
}

/// What a changed policy means, field by field.
fn of_policy(core: &Arc<Core>, request: &pb::ReadinessRequest) -> Result<pb::ReadinessReply, Fault> {
    let message = request
        .policy
        .as_ref()
        .ok_or_else(|| usage("policy.empty", "the question holds no policy", "give its name and fields"))?;
    let wanted = policies::wanted(&core.estate(), message)?;
    let name = shown(&message.name);
    let summary = match (&wanted.known, wanted.machines.len()) {
        (None, _) => {
            format!("policy {name} is made; machines go under it when they are protected or assigned")
        }
        (Some(_), _) if wanted.changes.is_empty() => format!("policy {name} stays as it is"),
        (Some(_), 0) => format!("policy {name} is changed; no machine is under it"),
        (Some(_), 1) => format!("policy {name} is changed, for {}", shown(&wanted.machines[0])),
        (Some(_), machines) => format!("policy {name} is changed, for {machines} machines"),
    };
    let loses = wanted.loses();
    Ok(pb::ReadinessReply {
        ready: true,
        summary,
        checks: wanted.changes.iter().map(change_check).collect(),
        confirm: if loses { message.name.clone() } else { String::new() },
        destroys: loses,
        command: "continuum apply -f FILE".into(),
        machine_version: wanted.known.map_or(0, |known| known.version),
        ..Default::default()
    })
}

fn of_deletion(core: &Arc<Core>, request: &pb::ReadinessRequest) -> Result<pb::ReadinessReply, Fault> {
    let named = request.policy.as_ref().map(|policy| policy.name.clone()).unwrap_or_default();
    let estate = core.estate();
    let known = policies::find(&estate, &named).ok_or_else(|| policies::no_policy(&named))?;
    let state = policies::in_use(&estate, known);
    Ok(pb::ReadinessReply {
        ready: state.is_ok(),
        summary: format!("policy {} is deleted; its versions are kept", shown(&known.name)),
        checks: vec![match state {
            Ok(()) => check("policy", "ok", "no machine is under it", ""),
            Err(fault) => check("policy", "failed", &fault.message, &fault.remedy),
        }],
        command: format!("continuum delete policy {}", quoted(&known.name)),
        machine_version: known.version,
        ..Default::default()
    })
}

fn of_assignment(core: &Arc<Core>, request: &pb::ReadinessRequest) -> Result<pb::ReadinessReply, Fault> {
    let named = request.policy.as_ref().map(|policy| policy.name.clone()).unwrap_or_default();
    let estate = core.estate();
    let entry = estate.machine_named(&request.machine).ok_or_else(|| no_machine(&request.machine))?;
    let row = &entry.row;
    let (_, changes) = policies::assigned(&estate, row, &named)?;
    let state = plan::possible(JobKind::AssignPolicy, row);
    let mut checks: Vec<pb::Check> = changes.iter().map(change_check).collect();
    if let Err(fault) = &state {
        checks.insert(0, check("state", "failed", &fault.message, &fault.remedy));
    }
    let loses = changes.iter().any(|change| change.loses);
    let summary = if changes.is_empty() {
        format!("{} goes under policy {}, and nothing changes for it", shown(&row.name), shown(&named))
    } else {
        format!("{} goes under policy {}", shown(&row.name), shown(&named))
    };
    Ok(pb::ReadinessReply {
        ready: state.is_ok(),
        summary,
        checks,
        confirm: if loses { row.name.clone() } else { String::new() },
        destroys: loses,
        command: format!("continuum set-policy {} --policy {}", quoted(&row.name), quoted(&named)),
        machine_version: row.version,
        ..Default::default()
    })
}

/// A change as a line of a report.
fn change_check(change: &Change) -> pb::Check {
    let means = if change.means.is_empty() { String::new() } else { format!(": {}", change.means) };
    pb::Check {
        name: continuum_document::policy::label(change.field).into(),
        state: if change.loses { "warning" } else { "ok" }.into(),
        detail: format!("{} to {}{means}", change.from, change.to),
        remedy: String::new(),
    }
}

/// The readiness report of a run of a plan: one line for each of its machines.
async fn of_plan(
    core: &Arc<Core>,
    name: &str,
    order: &str,
    point: &str,
) -> Result<pb::ReadinessReply, Fault> {
    let row = core.estate().plans.get(name).cloned().ok_or_else(|| no_plan(name))?;
    let kind = match order {
        "test-failover" => JobKind::PlanDrill,
        "cleanup" => JobKind::PlanCleanup,
        "failover" => JobKind::PlanFailover,
        "delete" | "delete-plan" => JobKind::DeletePlan,
        other => {
            let remedy = "write test-failover, cleanup, failover or delete";
            return Err(usage("plan.kind", &format!("a plan is not run as {}", shown(other)), remedy));
        }
    };
    let point = if point.is_empty() { "latest" } else { point };
    let told = {
        let estate = core.estate();
        project::plan(&row, &estate)
    };
    let mut checks: Vec<pb::Check> = told
        .problems
        .iter()
        .map(|problem| check("plan", "failed", problem, "mend the plan, or protect the machine"))
        .collect();
    if !told.orders.iter().any(|possible| possible == order || kind == JobKind::DeletePlan)
        && checks.is_empty()
    {
        let why = if kind == JobKind::PlanCleanup {
            "no machine of it is up in a drill"
        } else {
            "a run of it is under way"
        };
        checks.push(check("plan", "failed", why, "see `continuum get plans` and `continuum get jobs`"));
    }
    let (mut loss_seconds, mut loss_bytes) = (0.0f64, 0);
    if let Some(each) = kind.of_each().filter(|_| kind != JobKind::PlanCleanup) {
        let machines =
            told.groups.iter().flat_map(|group| &group.machines).filter(|machine| !machine.id.is_empty());
        for machine in machines {
            let state = {
                let estate = core.estate();
                estate.machine_named(&machine.id).map(|entry| plan::possible(each, &entry.row))
            };
            checks.push(match state {
                Some(Err(fault)) => check(&machine.name, "failed", &fault.message, &fault.remedy),
                None => check(&machine.name, "failed", "it is gone", "mend the plan"),
                Some(Ok(())) => {
                    match preview(core, &machine.id, &point_for(core, &machine.id, point)).await {
                        Ok(preview) => {
                            loss_seconds = loss_seconds.max(preview.loss_seconds);
                            loss_bytes += preview.loss_bytes;
                            pb::Check { name: machine.name.clone(), ..preview_check(&preview) }
                        }
                        Err(fault) => check(&machine.name, "failed", &fault.message, &fault.remedy),
                    }
                }
            });
        }
    }
    let machines: usize = told.groups.iter().map(|group| group.machines.len()).sum();
    let (groups, shown_name, quoted_name) = (told.groups.len(), shown(name), quoted(name));
    let summary = match kind {
        JobKind::PlanCleanup => format!("what the drill of {shown_name} brought up is stopped and removed"),
        JobKind::DeletePlan => format!("plan {shown_name} is deleted; its machines stay as they are"),
        JobKind::PlanFailover => format!(
            "{machines} machines in {groups} groups are brought up at the recovery site, and their sources are fenced; up to {loss_seconds:.1} s and {} are given up",
            Bytes(loss_bytes)
        ),
        _ => format!(
            "{machines} machines in {groups} groups are brought up beside the running ones, isolated; replication goes on and nothing is lost"
        ),
    };
    let command = match kind {
        JobKind::PlanCleanup => format!("continuum cleanup plan/{quoted_name}"),
        JobKind::DeletePlan => format!("continuum delete plan {quoted_name} --yes --confirm {quoted_name}"),
        JobKind::PlanFailover => {
            format!(
                "continuum failover plan/{quoted_name} --unplanned --point {point} --yes --confirm {quoted_name}"
            )
        }
        _ => format!("continuum test-failover plan/{quoted_name} --point {point}"),
    };
    Ok(pb::ReadinessReply {
        // One machine that cannot be brought up keeps no disaster recovery from the others.
        ready: !checks.iter().any(|check| check.name == "plan" && check.state == "failed"),
        summary,
        checks,
        forecast_seconds: told.forecast_seconds.filter(|_| kind != JobKind::PlanCleanup),
        confirm: if must_be_typed(kind) { name.to_owned() } else { String::new() },
        destroys: must_be_typed(kind),
        command,
        ..Default::default()
    })
}

/// What a run of a plan would bring this machine up at: a shared point is one of its group's only.
fn point_for(core: &Core, machine: &str, point: &str) -> String {
    let Some(wanted) = crate::groups::wanted(point) else { return point.to_owned() };
    let estate = core.estate();
    let id = estate.machine_named(machine).map(|entry| entry.row.id);
    let group = id.and_then(|id| estate.group_of(id)).map(|entry| entry.row.name.as_str());
    let is_id = wanted.parse::<continuum_model::id::PointId>().is_ok();
    if is_id || group.is_some_and(|group| wanted.is_empty() || wanted == group) {
        point.to_owned()
    } else {
        "latest".into()
    }
}

/// Whether the machine shares a point with its group, and how old it is.
fn group_check(entry: &MachineEntry, estate: &Estate, now: Timestamp, checks: &mut Vec<pb::Check>) {
    let Some(group) = estate.group_of(entry.row.id) else { return };
    let name = shown(&group.row.name);
    checks.push(match crate::groups::resolve(estate, entry.row.id, &group.row.name) {
        Ok(point) => {
            let age = now.since(point.time).as_secs_f64();
            check("group", "ok", &format!("the newest point shared with all of {name} is {age:.0} s old"), "")
        }
        Err(_) => check(
            "group",
            "warning",
            &format!(
                "there is no point yet that all of {name} share: its machines come up at moments of their own"
            ),
            "cut one: continuum bookmark group/NAME",
        ),
    });
}

fn check(name: &str, state: &str, detail: &str, remedy: &str) -> pb::Check {
    pb::Check { name: name.into(), state: state.into(), detail: detail.into(), remedy: remedy.into() }
}

fn state_checks(kind: JobKind, entry: &MachineEntry, estate: &Estate, checks: &mut Vec<pb::Check>) {
    let state = entry.row.protection.as_ref().map_or("unprotected", |protection| protection.state.name());
    checks.push(match plan::possible(kind, &entry.row) {
        Ok(()) => check("state", "ok", state, ""),
        Err(fault) => check("state", "failed", &fault.message, &fault.remedy),
    });
    let under_way = estate
        .jobs_of(entry.row.id)
        .find(|job| JobKind::named(&job.kind).is_some_and(|other| kind.conflicts(other)));
    checks.push(match under_way {
        Some(job) => check(
            "jobs",
            "failed",
            &format!("{} is under way", job.kind),
            &format!("continuum wait {}", job.id),
        ),
        None => check("jobs", "ok", "nothing is in the way", ""),
    });
}

fn server_checks(
    kind: JobKind,
    entry: &MachineEntry,
    estate: &Estate,
    now: Timestamp,
    checks: &mut Vec<pb::Check>,
) {
    let agent = estate.connected(agent_of(entry.row.id));
    let needs_agent =
        matches!(kind, JobKind::Protect | JobKind::Verify | JobKind::Bookmark | JobKind::Resync);
    checks.push(match (kind, agent) {
        (JobKind::Failover, true) => check(
            "source",
            "warning",
            "the source still answers: what it writes from now on is not part of the machine at the recovery site",
            "stop the machine at its source first, where you can",
        ),
        (JobKind::Failover, false) => check("source", "ok", "the source does not answer", ""),
        (_, true) => check("agent", "ok", "connected", ""),
        (_, false) if needs_agent => check("agent", "failed", "not connected", "start the agent on the machine"),
        (_, false) => check("agent", "warning", "not connected: no newer changes arrive", ""),
    });
    if kind == JobKind::Protect {
        checks.push(if entry.row.disks.is_empty() {
            check(
                "disks",
                "failed",
                "the machine has told of no disks",
                "see that its agent serves at least one",
            )
        } else {
            let bytes: u64 = entry.row.disks.iter().map(|disk| disk.size_bytes).sum();
            check("disks", "ok", &format!("{} disk(s), {}", entry.row.disks.len(), Bytes(bytes)), "")
        });
        for role in ["process-server", "master-target"] {
            let there =
                estate.servers.values().any(|server| server.row.role == role && server.live.connected);
            checks.push(if there {
                check(role, "ok", "connected", "")
            } else {
                check(role, "failed", "none is connected", "start it, or enrol one")
            });
        }
        return;
    }
    let Some(protection) = &entry.row.protection else { return };
    let target = shown(&estate.server_name(protection.master_target));
    checks.push(if estate.connected(protection.master_target) {
        check("master-target", "ok", &format!("{target} is connected"), "")
    } else {
        check(
            "master-target",
            "failed",
            &format!("{target} is not connected"),
            "start it or mend the network",
        )
    });
    if let Some((replica, _)) = &entry.live.replica {
        if let Some(fault) = &replica.fault {
            checks.push(check("replica", "warning", &shown(&fault.message), &shown(&fault.remedy)));
        }
        if let Some(newest) = replica.newest_point_us {
            let age = now.since(Timestamp::from_micros(newest)).as_secs_f64();
            let promised = estate
                .policies
                .get(&protection.policy)
                .map_or(u64::MAX, |policy| policy.policy.rpo_threshold_seconds);
            let state = if age > promised as f64 { "warning" } else { "ok" };
            checks.push(check(
                "rpo",
                state,
                &format!("the newest moment that can be brought up is {age:.1} s old"),
                "",
            ));
        }
    }
}

/// What the way home needs, and which side would be overwritten.
fn home_checks(
    kind: JobKind,
    name: &str,
    entry: &MachineEntry,
    estate: &Estate,
    now: Timestamp,
    checks: &mut Vec<pb::Check>,
) {
    let machine = shown(&entry.row.name);
    checks.push(if estate.connected(agent_of(entry.row.id)) {
        check("source", "ok", "the agent of the old source answers", "")
    } else {
        check(
            "source",
            "failed",
            "the agent of the old source is not connected: it would have to take the machine back",
            "start the old host and its agent",
        )
    });
    let Some(protection) = &entry.row.protection else { return };
    let target = shown(&estate.server_name(protection.master_target));
    let there = estate.connected(protection.master_target);
    checks.push(match (there, name == plan::UNPLANNED_FAILBACK) {
        (true, _) => check("master-target", "ok", &format!("{target} is connected"), ""),
        (false, true) => check(
            "master-target",
            "warning",
            &format!(
                "{target} is not connected: what runs there, if anything, is stopped when it comes back"
            ),
            "make sure that nothing there is used any more",
        ),
        (false, false) => check(
            "master-target",
            "failed",
            &format!("{target} is not connected"),
            "start it or mend the network; where it is lost, order an unplanned failback",
        ),
    });
    let (site, recovery) =
        (shown(&estate.site_name(entry.row.site)), shown(&estate.site_name(protection.target_site)));
    let receiving = entry.live.agent.as_ref().and_then(|(report, _)| report.receiving.as_ref());
    match kind {
        JobKind::Reprotect => checks.push(check(
            "direction",
            "warning",
            &format!(
                "{recovery} to {site}: the disks of {machine} at {site} will be OVERWRITTEN where they differ from what runs at {recovery}"
            ),
            "what they hold now is kept there in a branch: continuum branch",
        )),
        JobKind::Failback => {
            let newest = receiving.filter(|receiving| receiving.whole);
            checks.push(match newest {
                Some(receiving) => {
                    let age = now.since(Timestamp::from_micros(receiving.newest_us)).as_secs_f64();
                    check("state", "ok", &format!("what is at {site} is {age:.1} s old"), "")
                }
                None => check(
                    "state",
                    "failed",
                    &format!("nothing whole is at {site} now"),
                    "wait until the reverse direction is continuous",
                ),
            });
            checks.push(check(
                "direction",
                "warning",
                &format!("{recovery} to {site}: what runs at {recovery} stops, and {machine} runs at {site}"),
                "",
            ));
        }
        _ => checks.push(check(
            "direction",
            "warning",
            &format!("what {machine} wrote at {recovery} since the failover is given up; it runs at {site}"),
            "",
        )),
    }
}

fn preview_check(preview: &pb::PreviewReply) -> pb::Check {
    let at = preview.point.as_ref().map(|point| Timestamp::from_micros(point.time_us));
    let words = at.map(|at| format!("the moment of {at}")).unwrap_or_default();
    match &preview.gap {
        Some(gap) => check("point", "warning", &note_of_gap(gap, "asked for"), ""),
        None => check("point", "ok", &words, ""),
    }
}

fn summary(kind: JobKind, name: &str, preview: Option<&pb::PreviewReply>) -> String {
    let name = shown(name);
    let moment = preview.and_then(|preview| preview.point.as_ref()).map_or_else(
        || "the chosen moment".to_owned(),
        |point| Timestamp::from_micros(point.time_us).to_string(),
    );
    let loss = preview.map_or_else(String::new, |preview| {
        format!(
            "; {} written in {:.1} s after it would be given up",
            Bytes(preview.loss_bytes),
            preview.loss_seconds
        )
    });
    match kind {
        JobKind::TestFailover => format!(
            "{name} is brought up as of {moment} beside the running machine, isolated; replication goes on and nothing is lost"
        ),
        JobKind::Failover => {
            format!(
                "{name} is brought up at the recovery site as of {moment}, and its source is fenced{loss}"
            )
        }
        JobKind::Commit => {
            format!("{name} stays as it runs at the recovery site; all its other recovery points are deleted")
        }
        JobKind::ChangePoint => format!(
            "{name} is brought up at the recovery site as of {moment} instead; what runs there now is stopped, and kept until the commit{loss}"
        ),
        JobKind::CancelFailover => format!(
            "{name} runs at its source again and is protected; what it wrote at the recovery site is given up"
        ),
        JobKind::Reprotect => format!(
            "what runs at the recovery site is brought to the old source of {name}, whose disks will be OVERWRITTEN where they differ; what they hold now is kept there in a branch"
        ),
        JobKind::Failback => format!(
            "{name} is stopped at the recovery site, both sides are compared, and it runs at its old source again; nothing is lost"
        ),
        JobKind::Migrate => {
            format!(
                "{name} stays at the recovery site for good: there is no way back, and nothing protects it"
            )
        }
        JobKind::Unprotect => format!(
            "{name} is no longer protected; its replica and all its recovery points are deleted, and so is what runs on them, unless the replica is kept"
        ),
        JobKind::Protect => {
            format!("all of {name} is copied once, then every change as it happens; the machine runs on")
        }
        JobKind::Cleanup => {
            format!("the test failover of {name} is stopped and removed; nothing else changes")
        }
        JobKind::Verify => format!(
            "source and replica of {name} are read and compared as of one moment; the machine runs on"
        ),
        JobKind::Bookmark => format!("a recovery point with a name is cut for {name}"),
        JobKind::Pause => {
            format!("changes of {name} are remembered and not sent; its RPO grows until you resume")
        }
        JobKind::Resume => format!("the changes of {name} since the pause are sent"),
        JobKind::Resync => format!(
            "all of {name} is compared with its replica and what differs is sent; all recovery points stay, and no new ones come until it is done"
        ),
        JobKind::Pin => format!("retention leaves this recovery point of {name} alone"),
        JobKind::Move => format!(
            "{name} replicates through another process server; what is on its way is sent again from the source, and no point is lost"
        ),
        JobKind::RetryNow
        | JobKind::Acknowledge
        | JobKind::SetPolicy
        | JobKind::AssignPolicy
        | JobKind::DeletePolicy
        | JobKind::PlanDrill
        | JobKind::PlanCleanup
        | JobKind::PlanFailover
        | JobKind::ApplyPlan
        | JobKind::CheckPlan
        | JobKind::DeletePlan
        | JobKind::SetGroup
        | JobKind::DeleteGroup
        | JobKind::GroupBookmark => format!("{} {name}", kind.name()),
    }
}

/// The same order as a command line.
fn command(kind: JobKind, name: &str, point: &str) -> String {
    let name = quoted(name);
    match kind {
        JobKind::TestFailover => format!("continuum test-failover {name} --point {}", quoted(point)),
        JobKind::Failover => {
            format!("continuum failover {name} --unplanned --point {} --yes --confirm {name}", quoted(point))
        }
        JobKind::ChangePoint => {
            format!("continuum change-point {name} --point {} --yes --confirm {name}", quoted(point))
        }
        JobKind::Commit
        | JobKind::Unprotect
        | JobKind::CancelFailover
        | JobKind::Reprotect
        | JobKind::Failback
        | JobKind::Migrate => {
            format!("continuum {} {name} --yes --confirm {name}", kind.name())
        }
        JobKind::Resync => format!("continuum resync {name} --now"),
        _ => format!("continuum {} {name}", kind.name()),
    }
}
