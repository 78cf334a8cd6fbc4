//! What is known, in the words of the operator API.
//!
//! Pure: rows and live values in, messages out. Names and foreign texts pass raw; whoever shows them
//! escapes them.

use crate::estate::{Estate, JobEntry, MachineEntry, ServerEntry, agent_of, machine_of};
use crate::groups::GroupEntry;
use crate::jobs::plan::JobKind;
use crate::store::inventory::Protection;
use crate::store::inventory::{DiskRow, PointRow, PolicyRow, ProbeRow, ServedDisk, SiteRow};
use crate::store::jobs::{FrozenGroup, JobRow};
use crate::store::news::{AlertRow, EventRow};
use crate::store::plans::PlanRow;
use crate::truth;
use continuum_model::fault::Fault;
use continuum_model::health::{Health, Mode, Symptom};
use continuum_model::id::{MachineId, PolicyId};
use continuum_model::job::JobState;
use continuum_model::point::PointKind;
use continuum_model::policy::Policy;
use continuum_model::protection::{FailoverKind, ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;

pub(crate) fn site(row: &SiteRow) -> pb::Site {
    pb::Site {
        id: row.id.to_string(),
        name: row.name.clone(),
        fabric: row.fabric.clone(),
        recovery: row.recovery,
    }
}

/// A plan, with what keeps it from being run now.
pub(crate) fn plan(row: &PlanRow, estate: &Estate) -> pb::Plan {
    let (frozen, unknown) = crate::plans::freeze(&row.plan, estate);
    let order = row.plan.order().unwrap_or_default();
    let groups = order.iter().filter_map(|place| Some((*place, row.plan.groups.get(*place)?)));
    let groups = groups
        .map(|(place, group)| pb::PlanGroup {
            name: group.name.clone(),
            depends_on: row
                .plan
                .waits_for(place)
                .into_iter()
                .filter_map(|place| row.plan.groups.get(place).map(|group| group.name.clone()))
                .collect(),
            machines: group
                .machines
                .iter()
                .map(|name| pb::PlanMachine {
                    name: name.clone(),
                    id: estate.machine_named(name).map(|entry| entry.row.id.to_string()).unwrap_or_default(),
                })
                .collect(),
            manual: group.manual.clone(),
        })
        .collect();
    let mut problems: Vec<String> =
        unknown.iter().map(|name| format!("no machine is called {}", shown(name))).collect();
    let mut testing = false;
    for (id, name) in frozen.machines() {
        match estate.machines.get(id).and_then(|entry| entry.row.protection.as_ref()) {
            None => problems.push(format!("{} is not protected", shown(name))),
            Some(protection) => testing |= protection.test != TestState::None,
        }
    }
    let runs = |job: &&JobRow| job.params.plan.as_ref().is_some_and(|run| run.name == row.name);
    let run = estate.jobs.values().rev().map(|entry| &entry.row).find(runs);
    let mut orders = Vec::new();
    if run.is_none_or(|run| run.state.is_over() || run.state == JobState::Waiting) {
        if unknown.is_empty() {
            orders.extend(["test-failover", "failover"].map(str::to_owned));
            orders.extend(testing.then(|| "cleanup".to_owned()));
        }
        orders.push("delete".into());
    }
    // Groups one after another, machines of a group beside one another.
    let of_machine = |id: &MachineId| forecast_for(estate, *id, JobKind::TestFailover.name(), None);
    let of_group = |group: &FrozenGroup| {
        group.machines.iter().map(|(id, _)| of_machine(id)).try_fold(0.0f64, |most, one| Some(most.max(one?)))
    };
    let forecast = frozen.groups.iter().map(of_group).try_fold(0.0, |sum, one| Some(sum + one?));
    pb::Plan {
        name: row.name.clone(),
        version: row.version,
        text: row.text.clone(),
        description: row.plan.description.clone(),
        rto_objective_seconds: row.plan.rto_seconds.map(|seconds| seconds as f64),
        groups,
        problems,
        last_drill_us: row.last_drill.map(|drill| drill.at.micros()),
        last_drill_passed: row.last_drill.is_some_and(|drill| drill.passed),
        last_drill_seconds: row.last_drill.and_then(|drill| drill.took).map(|took| took.as_secs_f64()),
        forecast_seconds: forecast,
        run: run.map(|run| run.id.to_string()).unwrap_or_default(),
        orders,
        deleted: row.deleted,
    }
}

/// A group, with what keeps it from having points now.
pub(crate) fn group(entry: &GroupEntry, estate: &Estate) -> pb::Group {
    let (row, live) = (&entry.row, &entry.live);
    let newest = estate.newest_shared(&row.name);
    let member = |id: &MachineId| pb::GroupMember {
        id: id.to_string(),
        name: estate.machines.get(id).map(|entry| entry.row.name.clone()).unwrap_or_default(),
    };
    let leader = estate.leader_of(row).and_then(|(id, _)| estate.machines.get(&id));
    let points = estate.group_points.values().filter(|point| point.group == row.name).count();
    pb::Group {
        name: row.name.clone(),
        version: row.version,
        machines: row.body.machines.iter().map(member).collect(),
        every_seconds: row.body.every_seconds,
        hold_millis: row.body.hold_millis,
        leader: leader.map(|entry| entry.row.name.clone()).unwrap_or_default(),
        newest_point_us: newest.map(|point| point.time.micros()),
        newest_point: newest.map(|point| point.id.to_string()).unwrap_or_default(),
        points: points as u32,
        hold_p50_ms: live.hold.quantile(0.5),
        hold_p99_ms: live.hold.quantile(0.99),
        hold_max_ms: live.hold.max(),
        missed_us: live.missed.as_ref().map(|(at, _)| at.micros()),
        missed_reason: live.missed.as_ref().map(|(_, why)| why.clone()).unwrap_or_default(),
        problems: crate::groups::problems(row, estate),
        deleted: row.deleted,
    }
}

pub(crate) fn policy(row: &PolicyRow, estate: &Estate) -> pb::Policy {
    let machines = estate
        .machines
        .values()
        .filter(|entry| entry.row.protection.as_ref().is_some_and(|protection| protection.policy == row.id))
        .count();
    pb::Policy {
        machines: machines as u32,
        version: row.version,
        ..policy_message(row.id, &row.name, &row.policy)
    }
}

pub(crate) fn policy_message(id: PolicyId, name: &str, policy: &Policy) -> pb::Policy {
    pb::Policy { id: id.to_string(), name: name.to_owned(), ..continuum_wire::policy::to_message(policy) }
}

pub(crate) fn server(entry: &ServerEntry, estate: &Estate) -> pb::Server {
    let (row, live) = (&entry.row, &entry.live);
    let agent = row.role == "agent";
    let agent_report = agent.then(|| estate.machines.get(&machine_of(row.id))).flatten();
    let staged = agent_report.and_then(|machine| machine.live.agent.as_ref()).map(|(report, _)| report);
    let worst = live.symptoms.iter().map(|symptom| symptom.severity).max().unwrap_or(Health::Healthy);
    pb::Server {
        id: row.id.to_string(),
        name: row.name.clone(),
        role: row.role.clone(),
        site: estate.site_name(row.site),
        version: row.version.clone(),
        connected: live.connected,
        last_seen_us: live.last_seen.or(row.last_seen).map_or(0, Timestamp::micros),
        address: row.address.clone(),
        certificate_expires_us: row.certificate_expires.micros(),
        cpu_percent: live.load.as_ref().map(|load| load.cpu_percent),
        memory_bytes: live.load.as_ref().map(|load| load.memory_bytes),
        buffer_bytes: live.spool.map(|(used, _)| used).or(staged.map(|report| report.staged_bytes)),
        buffer_bytes_max: live
            .spool
            .map(|(_, max)| max)
            .or(staged.map(|report| report.staged_bytes_max))
            .filter(|max| *max > 0),
        free_bytes: live.load.as_ref().map(|load| load.free_bytes),
        bytes_per_sec: live
            .bytes_per_sec
            .or_else(|| agent_report.and_then(|machine| machine.live.churn.bytes_per_sec())),
        health: worst.name().to_owned(),
        symptoms: live.symptoms.iter().map(symptom).collect(),
        buffer_full_seconds: match agent_report {
            Some(machine) => {
                let free = live.load.as_ref().map(|load| load.free_bytes);
                staged.and_then(|report| machine.live.truth.staging.until(truth::staging_room(report, free)))
            }
            None => live.spool_until(),
        },
        volume_full_seconds: live.volume_until(),
        machines: if agent { u32::from(agent_report.is_some()) } else { estate.carried_by(row.id) as u32 },
        machine: agent_report.map(|machine| machine.row.name.clone()).unwrap_or_default(),
        limit_bytes_per_sec: live.limit_bytes_per_sec.filter(|_| live.connected),
    }
}

pub(crate) fn symptom(symptom: &Symptom) -> pb::Symptom {
    pb::Symptom {
        code: symptom.code.clone(),
        severity: symptom.severity.name().to_owned(),
        text: symptom.text.clone(),
        remedy: symptom.remedy.clone(),
    }
}

pub(crate) fn machine(entry: &MachineEntry, estate: &Estate, now: Timestamp) -> pb::Machine {
    let (row, live) = (&entry.row, &entry.live);
    let mut message = pb::Machine {
        id: row.id.to_string(),
        version: row.version,
        name: row.name.clone(),
        site: estate.site_name(row.site),
        fabric: row.fabric.clone(),
        guest: row.guest.clone(),
        state: "unprotected".into(),
        health: live.health.name().to_owned(),
        symptoms: live.symptoms.iter().map(symptom).collect(),
        disks: disks(entry),
        epoch: row.epoch,
        test_state: "none".into(),
        last_drill_us: row.last_drill.map(Timestamp::micros),
        last_drill_passed: row.last_drill_passed,
        orders: crate::jobs::plan::orders(entry, estate).iter().map(|name| (*name).to_owned()).collect(),
        hops: truth::hops(entry, estate, now),
        spikes: live.truth.told(row.id),
        churn_bytes_per_sec: live.churn.bytes_per_sec(),
        churn_recent: live.churn.recent.values(),
        group: estate.group_of(row.id).map(|entry| entry.row.name.clone()).unwrap_or_default(),
        app_consistent: live.app_consistent,
        ..Default::default()
    };
    if let Some((agent, _)) = &live.agent {
        message.mode = agent.mode.clone();
        message.mode_reason = agent.mode_reason.clone();
        message.dirty_bytes = Some(agent.dirty_bytes);
        message.in_flight_bytes = Some(agent.in_flight_bytes);
        message.staged_bytes = Some(agent.staged_bytes);
        message.staged_bytes_max = Some(agent.staged_bytes_max);
        message.sent_bytes_total = Some(agent.sent_bytes_total);
    }
    let Some(protection) = &row.protection else { return message };
    if let Some((agent, _)) = live.agent.as_ref().filter(|_| estate.connected(agent_of(row.id))) {
        message.link_fault = agent.channel_fault.clone();
        message.next_retry_us =
            Some(agent.next_retry_us).filter(|at| *at > 0 && agent.channel_fault.is_some());
    }
    if let Some((relay, _)) = live.relay.as_ref().filter(|_| estate.connected(protection.process_server)) {
        message.limit_bytes_per_sec = relay.limit_bytes_per_sec;
        message.held_by = relay.held_by.clone();
    }
    message.protected = true;
    message.state = protection.state.name().to_owned();
    message.state_reason = reason(&protection.state);
    message.paused = protection.state.is_paused();
    message.direction = if protection.state.is_reversed() { "reversed".into() } else { "forward".into() };
    message.target_site = estate.site_name(protection.target_site);
    message.process_server = estate.server_name(protection.process_server);
    message.master_target = estate.server_name(protection.master_target);
    if let Some((agent, _)) = &live.agent
        && agent.initial_bytes_total > 0
    {
        message.initial_bytes_done = Some(agent.initial_bytes_done);
        message.initial_bytes_total = Some(agent.initial_bytes_total);
    }
    (message.estimate_seconds, message.estimate_note) = truth::estimate(entry, estate);
    message.start_at_us = protection.start_at.map(Timestamp::micros);
    message.phase = phase(entry, protection).to_owned();
    if message.phase == "comparing"
        && let Some((agent, _)) = &live.agent
    {
        message.compared_bytes = Some(agent.compared_bytes);
        message.to_compare_bytes = Some(agent.to_compare_bytes);
    }
    if live.agent.as_ref().is_some_and(|(agent, _)| agent.mode == Mode::CatchingUp.name()) {
        message.copy_bytes_per_sec = live.truth.copied.bytes_per_sec();
    }
    if let Some(policy) = estate.policies.get(&protection.policy) {
        message.policy = policy.name.clone();
        message.history_promised_seconds = Some(policy.policy.promised_seconds() as f64);
        message.rpo_threshold_seconds = i64::try_from(policy.policy.rpo_threshold_seconds).ok();
    }
    if let Some((replica, _)) = &live.replica {
        message.newest_received_us = replica.newest_received_us;
        message.newest_point_us = replica.newest_point_us;
        message.newest_app_point_us = replica.newest_app_point_us;
        message.oldest_point_us = replica.oldest_point_us;
        message.history_bytes = Some(replica.history_bytes);
        message.points = replica.points;
        if let (Some(oldest), Some(newest)) = (replica.oldest_point_us, replica.newest_point_us) {
            message.history_seconds = Some(newest.saturating_sub(oldest).max(0) as f64 / 1e6);
        }
    }
    if has_rpo(&protection.state) {
        message.rpo_seconds = rpo(entry, now);
        message.rpo_p50_seconds = live.rpo.quantile(0.5);
        message.rpo_p99_seconds = live.rpo.quantile(0.99);
        message.rpo_max_seconds = live.rpo.max();
        message.rpo_recent = live.rpo_recent.values();
    }
    message.test_state = protection.test.name().to_owned();
    message.test = protection.test_run.as_ref().map(|run| pb::TestFailover {
        job: run.job.to_string(),
        started_us: run.at.micros(),
        point: run.point.as_ref().map(point),
        disks: run.disks.iter().map(served_disk).collect(),
        probes: run.probes.iter().map(probe).collect(),
    });
    message.failed_over = protection.failed_over.as_ref().map(|run| pb::FailedOver {
        job: run.job.to_string(),
        kind: match run.kind {
            Some(FailoverKind::Planned) => "planned".into(),
            _ => "unplanned".into(),
        },
        at_us: run.at.micros(),
        point: run.point.as_ref().map(point),
        disks: run.disks.iter().map(served_disk).collect(),
        probes: run.probes.iter().map(probe).collect(),
    });
    message
}

/// Where a first copy or a resync is; empty where there is neither.
fn phase(entry: &MachineEntry, protection: &Protection) -> &'static str {
    let agent = entry.live.agent.as_ref().map(|(agent, _)| agent.phase.as_str()).unwrap_or_default();
    match &protection.state {
        ProtectionState::InitialReplication { paused: true } if protection.start_at.is_some() => {
            "waiting-for-start"
        }
        ProtectionState::InitialReplication { paused: true }
        | ProtectionState::Resync { paused: true, .. } => "suspended",
        ProtectionState::Resync { .. } => match agent {
            "waiting-for-window" => "waiting-for-window",
            "comparing" => "comparing",
            "sending" => "sending",
            _ => "required",
        },
        ProtectionState::InitialReplication { .. } if agent == "comparing" => "comparing",
        ProtectionState::InitialReplication { .. } | ProtectionState::InitialReplicationFailed { .. } => {
            "sending"
        }
        _ => "",
    }
}

/// Whether a state promises an RPO.
pub(crate) const fn has_rpo(state: &ProtectionState) -> bool {
    matches!(
        state,
        ProtectionState::Protected { .. } | ProtectionState::Resync { .. } | ProtectionState::Reversed
    )
}

/// The age of the newest moment that can be brought up; `None`: there is none, or it is not known.
pub(crate) fn rpo(entry: &MachineEntry, now: Timestamp) -> Option<f64> {
    if entry.row.protection.as_ref().is_some_and(|protection| protection.state.is_reversed()) {
        // What could be taken over at the old source.
        let receiving = entry.live.agent.as_ref()?.0.receiving.as_ref()?;
        let newest = Timestamp::from_micros(receiving.newest_us);
        return receiving.whole.then(|| now.since(newest).as_secs_f64());
    }
    let (replica, _) = entry.live.replica.as_ref()?;
    let newest = Timestamp::from_micros(replica.newest_point_us?);
    Some(now.since(newest).as_secs_f64())
}

fn reason(state: &ProtectionState) -> String {
    match state {
        ProtectionState::EnablingFailed { reason }
        | ProtectionState::InitialReplicationFailed { reason }
        | ProtectionState::Resync { reason, .. } => reason.clone(),
        ProtectionState::Enabling
        | ProtectionState::InitialReplication { .. }
        | ProtectionState::Protected { .. }
        | ProtectionState::FailingOver { .. }
        | ProtectionState::CommitPending { .. }
        | ProtectionState::Committed
        | ProtectionState::Reprotecting
        | ProtectionState::Reversed
        | ProtectionState::FailingBack { .. }
        | ProtectionState::Migrated
        | ProtectionState::Disabling => String::new(),
    }
}

/// The machine's disks, with the endpoints that its agent serves now.
pub(crate) fn disks(entry: &MachineEntry) -> Vec<pb::Disk> {
    entry
        .row
        .disks
        .iter()
        .map(|disk| {
            let served = entry.live.agent.as_ref().and_then(|(report, _)| {
                report.disks.iter().find(|served| served.index == u32::from(disk.index))
            });
            pb::Disk {
                endpoint: served.map(|served| served.endpoint.clone()).unwrap_or_default(),
                ..disk_message(disk)
            }
        })
        .collect()
}

pub(crate) fn disk_message(disk: &DiskRow) -> pb::Disk {
    pb::Disk {
        id: disk.id.to_string(),
        index: u32::from(disk.index),
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        endpoint: String::new(),
    }
}

pub(crate) fn served_disk(disk: &ServedDisk) -> pb::Disk {
    pb::Disk {
        id: disk.id.clone(),
        index: disk.index,
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        endpoint: disk.endpoint.clone(),
    }
}

pub(crate) fn served_from(disk: &pb::Disk) -> ServedDisk {
    ServedDisk {
        id: disk.id.clone(),
        index: disk.index,
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        endpoint: disk.endpoint.clone(),
    }
}

pub(crate) fn probe(probe: &ProbeRow) -> pb::Probe {
    pb::Probe { name: probe.name.clone(), passed: probe.passed, detail: probe.detail.clone() }
}

pub(crate) fn point(point: &PointRow) -> pb::Point {
    pb::Point {
        id: point.id.map(|id| id.to_string()).unwrap_or_default(),
        time_us: point.time.micros(),
        kind: point.kind.name().to_owned(),
        name: point.name.clone(),
        pinned: point.pinned,
        proofs: Some(pb::Proofs {
            booted: point.booted,
            probed: point.probed,
            digest_equal: point.digest_equal,
        }),
        position: point.position,
        locked_until_us: None,
        group: String::new(),
    }
}

/// A point as a server told it. An odd kind or id is what it is at least: a moment.
pub(crate) fn point_from(point: &pb::Point) -> PointRow {
    let proofs = point.proofs.unwrap_or_default();
    PointRow {
        id: point.id.parse().ok(),
        time: Timestamp::from_micros(point.time_us),
        position: point.position,
        kind: PointKind::named(&point.kind).unwrap_or(PointKind::Crash),
        name: point.name.clone(),
        pinned: point.pinned,
        booted: proofs.booted,
        probed: proofs.probed,
        digest_equal: proofs.digest_equal,
    }
}

pub(crate) fn fault(fault: &Fault) -> pb::Fault {
    continuum_wire::grpc::fault_to_proto(fault)
}

pub(crate) fn job(entry: &JobEntry, estate: &Estate) -> pb::Job {
    let row = &entry.row;
    let kind = JobKind::named(&row.kind);
    let facts = &row.facts;
    let brings_up = matches!(kind, Some(JobKind::TestFailover | JobKind::Failover | JobKind::ChangePoint));
    let outcome = pb::MachineOutcome {
        name: row.machine_name.clone(),
        point: facts.point.as_ref().map(point),
        rto_seconds: facts.rto_seconds,
        loss_seconds: facts.loss_seconds,
        loss_bytes: facts.loss_bytes,
        disks: facts.disks.iter().map(served_disk).collect(),
        probes: facts.probes.iter().map(probe).collect(),
        note: facts.note.clone(),
    };
    let machines = if facts.children.is_empty() {
        vec![outcome]
    } else {
        let children = facts.children.iter().filter_map(|id| estate.jobs.get(id));
        children.flat_map(|child| self::job(child, estate).machines).collect()
    };
    let told = !facts.children.is_empty() || brings_up || facts.point.is_some() || !facts.note.is_empty();
    let under_way = row.steps.iter().position(|step| step.state == continuum_model::job::StepState::Running);
    pb::Job {
        id: row.id.to_string(),
        kind: row.kind.clone(),
        machine: row.machine_name.clone(),
        machine_id: row.machine.map(|id| id.to_string()).unwrap_or_default(),
        state: row.state.name().to_owned(),
        created_us: row.created.micros(),
        started_us: row.started.map(Timestamp::micros),
        ended_us: row.ended.map(Timestamp::micros),
        steps: row
            .steps
            .iter()
            .enumerate()
            .map(|(place, step)| {
                let progress = entry.progress.as_ref().filter(|_| under_way == Some(place));
                pb::Step {
                    name: step.name.clone(),
                    state: step.state.name().to_owned(),
                    started_us: step.started.map(Timestamp::micros),
                    ended_us: step.ended.map(Timestamp::micros),
                    detail: progress.map_or_else(|| step.detail.clone(), |progress| progress.detail.clone()),
                    progress: progress.and_then(|progress| progress.fraction),
                }
            })
            .collect(),
        by: row.by.clone(),
        detail: row.detail.clone(),
        fault: row.fault.as_ref().map(fault),
        machines: if told { machines } else { Vec::new() },
        may_cancel: row.state == JobState::Waiting
            || row.state.may_cancel() && !row.cancel && kind.is_some_and(JobKind::may_cancel),
        may_retry: row.state.may_retry() && kind.is_some_and(JobKind::may_retry),
        rto_objective_seconds: row
            .params
            .plan
            .as_ref()
            .and_then(|run| run.rto_seconds)
            .map(|seconds| seconds as f64),
        forecast_seconds: forecast(row, estate),
        waiting_for: if row.state == JobState::Waiting {
            "approval".to_owned()
        } else {
            let progress = entry.progress.as_ref().filter(|progress| progress.waiting);
            progress.map(|progress| progress.detail.clone()).unwrap_or_default()
        },
        approval: row.params.approval.as_ref().map(|approval| pb::Approval {
            digest: approval.digest.clone(),
            about: approval.about.clone(),
            expires_us: approval.expires.micros(),
            by: approval.by.clone(),
            refused: approval.refused,
        }),
        verified: facts
            .verified
            .iter()
            .map(|disk| pb::VerifyDisk {
                name: disk.name.clone(),
                source_digest: disk.source.clone(),
                replica_digest: disk.replica.clone(),
                equal: disk.equal,
            })
            .collect(),
    }
}

fn forecast(row: &JobRow, estate: &Estate) -> Option<f64> {
    forecast_for(estate, row.machine?, &row.kind, Some(row.id))
}

/// How long the last five of a kind took on a machine, on average; `None`: there was none.
pub(crate) fn forecast_for(
    estate: &Estate,
    machine: continuum_model::id::MachineId,
    kind: &str,
    but: Option<continuum_model::id::JobId>,
) -> Option<f64> {
    use continuum_model::job::JobState;
    let spans: Vec<f64> = estate
        .jobs
        .values()
        .rev()
        .map(|entry| &entry.row)
        .filter(|job| job.machine == Some(machine) && job.kind == kind && Some(job.id) != but)
        .filter(|job| matches!(job.state, JobState::Succeeded | JobState::Warnings))
        .filter_map(|job| Some(job.ended?.since(job.created).as_secs_f64()))
        .take(5)
        .collect();
    (!spans.is_empty()).then(|| spans.iter().sum::<f64>() / spans.len() as f64)
}

pub(crate) fn alert(row: &AlertRow) -> pb::Alert {
    pb::Alert {
        id: row.id.to_string(),
        severity: row.severity.clone(),
        code: row.code.clone(),
        object_kind: row.object_kind.clone(),
        object: row.object.clone(),
        object_id: row.object_id.clone(),
        opened_us: row.opened.micros(),
        cleared_us: row.cleared.map(Timestamp::micros),
        text: row.text.clone(),
        cause: row.cause.clone(),
        remedy: row.remedy.clone(),
        acknowledged: row.acknowledged,
    }
}

pub(crate) fn event(row: &EventRow) -> pb::Event {
    pb::Event {
        id: row.id,
        time_us: row.time.micros(),
        kind: row.kind.clone(),
        object: row.object.clone(),
        object_id: row.object_id.clone(),
        text: row.text.clone(),
        by: row.by.clone(),
    }
}
