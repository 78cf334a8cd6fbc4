//! What scripts get: every object of the operator API with the names, order and units of the contract.
//!
//! Names are stable once shipped. Times are RFC 3339 in UTC with microseconds, sizes bytes, durations
//! seconds; what is not known is `null`. Texts are raw here; the writers make them harmless.

use super::output::doc::Doc;
use continuum_model::fault::Fault;
use continuum_model::job::JobState;
use continuum_proto::v1 as pb;

/// A machine, as `get machines` tells it.
pub fn machine(m: &pb::Machine) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&m.name)),
        ("site", Doc::text(&m.site)),
        ("fabric", Doc::text(&m.fabric)),
        ("state", Doc::text(&m.state)),
        ("mode", Doc::text(&m.mode)),
        ("health", Doc::text(&m.health)),
        ("symptoms", Doc::list(&m.symptoms, symptom)),
        ("direction", Doc::text(&m.direction)),
        ("target_site", Doc::text(&m.target_site)),
        ("policy", Doc::text(&m.policy)),
        ("rpo_seconds", m.rpo_seconds.into()),
        ("rpo_p50_seconds", m.rpo_p50_seconds.into()),
        ("rpo_p99_seconds", m.rpo_p99_seconds.into()),
        ("newest_received", time(m.newest_received_us)),
        ("newest_point", time(m.newest_point_us)),
        ("newest_app_point", time(m.newest_app_point_us)),
        ("history_seconds", m.history_seconds.into()),
        ("history_promised_seconds", m.history_promised_seconds.into()),
        ("churn_bytes_per_sec", m.churn_bytes_per_sec.into()),
        ("points", m.points.into()),
        ("disks", Doc::list(&m.disks, disk)),
        ("id", Doc::text(&m.id)),
        ("test_state", Doc::text(&m.test_state)),
        ("rpo_max_seconds", m.rpo_max_seconds.into()),
        ("phase", Doc::text(&m.phase)),
        ("mode_reason", Doc::text(&m.mode_reason)),
        ("estimate_seconds", m.estimate_seconds.into()),
        ("estimate_note", Doc::text(&m.estimate_note)),
        ("start_at", time(m.start_at_us)),
        ("copy_bytes_per_sec", m.copy_bytes_per_sec.into()),
        ("hops", Doc::list(&m.hops, hop)),
        ("spikes", Doc::list(&m.spikes, spike)),
    ])
}

/// A place on the way to the replica.
fn hop(hop: &pb::Hop) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&hop.name)),
        ("newest", time(hop.newest_us)),
        ("age_seconds", hop.age_seconds.into()),
        ("bytes", hop.bytes.into()),
        ("of_bytes", hop.bytes_max.into()),
        ("out_bytes_per_sec", hop.bytes_per_sec.into()),
        ("full_in_seconds", hop.full_seconds.into()),
        ("note", Doc::text(&hop.note)),
    ])
}

/// A time in which RPO was far above the usual.
fn spike(spike: &pb::Spike) -> Doc {
    Doc::Map(vec![
        ("started", Doc::time(spike.started_us)),
        ("ended", time(spike.ended_us)),
        ("worst_seconds", spike.worst_seconds.into()),
        ("hop", Doc::text(&spike.hop)),
        ("cause", Doc::text(&spike.cause)),
    ])
}

/// Everything about a machine, as `describe machine` tells it.
pub fn machine_whole(m: &pb::Machine) -> Doc {
    machine(m).with(vec![
        ("version", m.version.into()),
        ("guest", Doc::text(&m.guest)),
        ("protected", m.protected.into()),
        ("paused", m.paused.into()),
        ("state_reason", Doc::text(&m.state_reason)),
        ("rpo_threshold_seconds", m.rpo_threshold_seconds.into()),
        ("oldest_point", time(m.oldest_point_us)),
        ("history_bytes", m.history_bytes.into()),
        ("dirty_bytes", m.dirty_bytes.into()),
        ("in_flight_bytes", m.in_flight_bytes.into()),
        ("staged_bytes", m.staged_bytes.into()),
        ("staged_bytes_max", m.staged_bytes_max.into()),
        ("initial_bytes_done", m.initial_bytes_done.into()),
        ("initial_bytes_total", m.initial_bytes_total.into()),
        ("sent_bytes_total", m.sent_bytes_total.into()),
        ("compared_bytes", m.compared_bytes.into()),
        ("to_compare_bytes", m.to_compare_bytes.into()),
        ("limit_bytes_per_sec", m.limit_bytes_per_sec.into()),
        ("held_by", Doc::text(&m.held_by)),
        (
            "link_fault",
            m.link_fault.as_ref().map(|told| fault(&continuum_wire::grpc::fault_from_proto(told))).into(),
        ),
        ("next_retry", time(m.next_retry_us)),
        ("process_server", Doc::text(&m.process_server)),
        ("master_target", Doc::text(&m.master_target)),
        ("epoch", m.epoch.into()),
        ("test", m.test.as_ref().map(test_failover).into()),
        ("failed_over", m.failed_over.as_ref().map(failed_over).into()),
        ("last_drill", time(m.last_drill_us)),
        ("last_drill_passed", m.last_drill_us.map(|_| m.last_drill_passed).into()),
        ("orders", Doc::list(&m.orders, |order| order.as_str().into())),
    ])
}

fn test_failover(test: &pb::TestFailover) -> Doc {
    Doc::Map(vec![
        ("job", Doc::text(&test.job)),
        ("started", Doc::time(test.started_us)),
        ("point", test.point.as_ref().map(point).into()),
        ("disks", Doc::list(&test.disks, disk)),
        ("probes", Doc::list(&test.probes, probe)),
    ])
}

fn failed_over(failover: &pb::FailedOver) -> Doc {
    Doc::Map(vec![
        ("job", Doc::text(&failover.job)),
        ("kind", Doc::text(&failover.kind)),
        ("at", Doc::time(failover.at_us)),
        ("point", failover.point.as_ref().map(point).into()),
        ("disks", Doc::list(&failover.disks, disk)),
        ("probes", Doc::list(&failover.probes, probe)),
    ])
}

/// A recovery point.
pub fn point(p: &pb::Point) -> Doc {
    let proofs = p.proofs.unwrap_or_default();
    Doc::Map(vec![
        ("id", Doc::text(&p.id)),
        ("time", Doc::time(p.time_us)),
        ("kind", Doc::text(&p.kind)),
        ("name", Doc::text(&p.name)),
        ("group", if p.group.is_empty() { Doc::Null } else { Doc::text(&p.group) }),
        ("pinned", p.pinned.into()),
        ("locked_until", time(p.locked_until_us)),
        (
            "proofs",
            Doc::Map(vec![
                ("booted", proofs.booted.into()),
                ("probed", proofs.probed.into()),
                ("digest_equal", proofs.digest_equal.into()),
            ]),
        ),
    ])
}

/// An order's job: what it did, step by step, and what became of each machine.
pub fn order(job: &pb::Job) -> Doc {
    Doc::Map(vec![
        ("job", Doc::text(&job.id)),
        ("kind", Doc::text(&job.kind)),
        ("outcome", outcome(&job.state)),
        ("started", time(job.started_us)),
        ("ended", time(job.ended_us)),
        ("steps", Doc::list(&job.steps, step)),
        ("machines", Doc::list(&job.machines, machine_outcome)),
        ("state", Doc::text(&job.state)),
        ("machine", Doc::text(&job.machine)),
        ("detail", Doc::text(&job.detail)),
        ("by", Doc::text(&job.by)),
        ("created", Doc::time(job.created_us)),
        ("waiting_for", Doc::text(&job.waiting_for)),
        (
            "fault",
            job.fault.as_ref().map(|carried| fault(&continuum_wire::grpc::fault_from_proto(carried))).into(),
        ),
    ])
}

/// A comparison of source and replica.
pub fn verify(job: &pb::Job) -> Doc {
    let compared = |disk: &pb::VerifyDisk| {
        Doc::Map(vec![
            ("name", Doc::text(&disk.name)),
            ("source_digest", Doc::text(&disk.source_digest)),
            ("replica_digest", Doc::text(&disk.replica_digest)),
            ("equal", disk.equal.into()),
        ])
    };
    let at = job.machines.first().and_then(|machine| machine.point.as_ref());
    let mut fields = vec![
        ("machine", Doc::text(&job.machine)),
        ("point", at.map(point).into()),
        ("disks", Doc::list(&job.verified, compared)),
    ];
    if let Doc::Map(rest) = order(job) {
        fields.extend(rest.into_iter().filter(|(name, _)| !matches!(*name, "machine" | "machines")));
    }
    Doc::Map(fields)
}

/// `null` until a job is over.
fn outcome(state: &str) -> Doc {
    JobState::named(state).filter(|state| state.is_over()).map(|state| state.name()).into()
}

fn step(step: &pb::Step) -> Doc {
    let over = !matches!(step.state.as_str(), "pending" | "running" | "undoing" | "");
    Doc::Map(vec![
        ("name", Doc::text(&step.name)),
        ("outcome", over.then_some(step.state.as_str()).into()),
        ("seconds", step_seconds(step).into()),
        ("detail", Doc::text(&step.detail)),
    ])
}

/// How long a step took; `None` until it ended.
pub fn step_seconds(step: &pb::Step) -> Option<f64> {
    Some(step.ended_us?.saturating_sub(step.started_us?) as f64 / 1e6)
}

fn machine_outcome(m: &pb::MachineOutcome) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&m.name)),
        ("point", m.point.as_ref().map(point).into()),
        ("rto_seconds", m.rto_seconds.into()),
        ("loss_seconds", m.loss_seconds.into()),
        ("loss_bytes", m.loss_bytes.into()),
        ("disks", Doc::list(&m.disks, disk)),
        ("probes", Doc::list(&m.probes, probe)),
        ("note", Doc::text(&m.note)),
    ])
}

fn disk(disk: &pb::Disk) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&disk.name)),
        ("size_bytes", disk.size_bytes.into()),
        ("endpoint", Doc::text(&disk.endpoint)),
    ])
}

fn probe(probe: &pb::Probe) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&probe.name)),
        ("passed", probe.passed.into()),
        ("detail", Doc::text(&probe.detail)),
    ])
}

fn symptom(symptom: &pb::Symptom) -> Doc {
    Doc::Map(vec![
        ("code", Doc::text(&symptom.code)),
        ("text", Doc::text(&symptom.text)),
        ("remedy", Doc::text(&symptom.remedy)),
        ("severity", Doc::text(&symptom.severity)),
    ])
}

/// A site.
pub fn site(site: &pb::Site) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&site.name)),
        ("fabric", Doc::text(&site.fabric)),
        ("recovery", site.recovery.into()),
        ("id", Doc::text(&site.id)),
    ])
}

/// A server.
pub fn server(s: &pb::Server) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&s.name)),
        ("role", Doc::text(&s.role)),
        ("site", Doc::text(&s.site)),
        ("version", Doc::text(&s.version)),
        ("health", Doc::text(&s.health)),
        ("symptoms", Doc::list(&s.symptoms, symptom)),
        ("connected", s.connected.into()),
        ("last_seen", Doc::time(s.last_seen_us)),
        ("address", Doc::text(&s.address)),
        ("certificate_expires", Doc::time(s.certificate_expires_us)),
        ("cpu_percent", s.cpu_percent.into()),
        ("memory_bytes", s.memory_bytes.into()),
        ("buffer_bytes", s.buffer_bytes.into()),
        ("buffer_bytes_max", s.buffer_bytes_max.into()),
        ("free_bytes", s.free_bytes.into()),
        ("buffer_full_in_seconds", s.buffer_full_seconds.into()),
        ("volume_full_in_seconds", s.volume_full_seconds.into()),
        ("bytes_per_sec", s.bytes_per_sec.into()),
        ("limit_bytes_per_sec", s.limit_bytes_per_sec.into()),
        ("machines", s.machines.into()),
        ("machine", Doc::text(&s.machine)),
        ("id", Doc::text(&s.id)),
    ])
}

fn retention_step(step: &pb::RetentionStep) -> Doc {
    Doc::Map(vec![("every_seconds", step.every_seconds.into()), ("for_seconds", step.for_seconds.into())])
}

fn bandwidth_limit(limit: &pb::BandwidthLimit) -> Doc {
    let within = limit.hours.clone().unwrap_or_default();
    Doc::Map(vec![
        ("days", Doc::List(within.days.iter().map(|day| Doc::text(day)).collect())),
        ("from", Doc::text(&within.from)),
        ("to", Doc::text(&within.to)),
        ("bytes_per_sec", limit.bytes_per_sec.into()),
    ])
}

fn hours(hours: &pb::Hours) -> Doc {
    Doc::Map(vec![
        ("days", Doc::List(hours.days.iter().map(|day| Doc::text(day)).collect())),
        ("from", Doc::text(&hours.from)),
        ("to", Doc::text(&hours.to)),
    ])
}

/// A policy.
pub fn policy(p: &pb::Policy) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&p.name)),
        ("retention_seconds", p.retention_seconds.into()),
        ("steps", Doc::List(p.steps.iter().map(retention_step).collect())),
        ("history_bytes_max", p.history_bytes_max.into()),
        ("crash_point_seconds", p.crash_point_seconds.into()),
        ("app_point_seconds", p.app_point_seconds.into()),
        ("rpo_threshold_seconds", p.rpo_threshold_seconds.into()),
        ("staging_bytes_max", p.staging_bytes_max.into()),
        ("compression", p.compression.into()),
        ("encryption", p.encryption.into()),
        ("replication_interval_seconds", p.replication_interval_seconds.into()),
        ("bandwidth", Doc::List(p.bandwidth.iter().map(bandwidth_limit).collect())),
        ("resync_window", p.resync_window.as_ref().map_or(Doc::Null, hours)),
        ("machines", p.machines.into()),
        ("version", p.version.into()),
        ("id", Doc::text(&p.id)),
    ])
}

/// A recovery plan. Its text is the YAML that `apply` takes, unchanged.
pub fn plan(p: &pb::Plan) -> Doc {
    let group = |group: &pb::PlanGroup| {
        let machine = |machine: &pb::PlanMachine| {
            Doc::Map(vec![("name", Doc::text(&machine.name)), ("id", Doc::text(&machine.id))])
        };
        Doc::Map(vec![
            ("name", Doc::text(&group.name)),
            ("depends_on", Doc::List(group.depends_on.iter().map(|name| Doc::text(name)).collect())),
            ("machines", Doc::List(group.machines.iter().map(machine).collect())),
            ("manual", Doc::text(&group.manual)),
        ])
    };
    Doc::Map(vec![
        ("name", Doc::text(&p.name)),
        ("version", p.version.into()),
        ("description", Doc::text(&p.description)),
        ("rto_objective_seconds", p.rto_objective_seconds.into()),
        ("forecast_seconds", p.forecast_seconds.into()),
        ("groups", Doc::List(p.groups.iter().map(group).collect())),
        ("problems", Doc::List(p.problems.iter().map(|problem| Doc::text(problem)).collect())),
        ("last_drill", time(p.last_drill_us)),
        ("last_drill_passed", p.last_drill_us.map(|_| p.last_drill_passed).into()),
        ("last_drill_seconds", p.last_drill_seconds.into()),
        ("run", Doc::text(&p.run)),
        ("orders", Doc::List(p.orders.iter().map(|order| Doc::text(order)).collect())),
        ("text", Doc::text(&p.text)),
    ])
}

/// A consistency group.
pub fn group(g: &pb::Group) -> Doc {
    let machine = |machine: &pb::GroupMember| {
        Doc::Map(vec![("name", Doc::text(&machine.name)), ("id", Doc::text(&machine.id))])
    };
    Doc::Map(vec![
        ("name", Doc::text(&g.name)),
        ("version", g.version.into()),
        ("machines", Doc::List(g.machines.iter().map(machine).collect())),
        ("every_seconds", g.every_seconds.into()),
        ("hold_ms_max", u64::from(g.hold_millis).into()),
        ("leader", Doc::text(&g.leader)),
        ("newest_point", time(g.newest_point_us)),
        ("newest_point_id", Doc::text(&g.newest_point)),
        ("points", u64::from(g.points).into()),
        ("hold_p50_ms", g.hold_p50_ms.into()),
        ("hold_p99_ms", g.hold_p99_ms.into()),
        ("hold_max_ms", g.hold_max_ms.into()),
        ("missed", time(g.missed_us)),
        ("missed_reason", Doc::text(&g.missed_reason)),
        ("problems", Doc::List(g.problems.iter().map(|problem| Doc::text(problem)).collect())),
    ])
}

/// An alert.
pub fn alert(a: &pb::Alert) -> Doc {
    Doc::Map(vec![
        ("id", Doc::text(&a.id)),
        ("severity", Doc::text(&a.severity)),
        ("code", Doc::text(&a.code)),
        ("object_kind", Doc::text(&a.object_kind)),
        ("object", Doc::text(&a.object)),
        ("object_id", Doc::text(&a.object_id)),
        ("opened", Doc::time(a.opened_us)),
        ("cleared", time(a.cleared_us)),
        ("text", Doc::text(&a.text)),
        ("cause", Doc::text(&a.cause)),
        ("remedy", Doc::text(&a.remedy)),
        ("acknowledged", a.acknowledged.into()),
    ])
}

/// An event.
pub fn event(e: &pb::Event) -> Doc {
    Doc::Map(vec![
        ("id", e.id.into()),
        ("time", Doc::time(e.time_us)),
        ("kind", Doc::text(&e.kind)),
        ("object", Doc::text(&e.object)),
        ("object_id", Doc::text(&e.object_id)),
        ("text", Doc::text(&e.text)),
        ("by", Doc::text(&e.by)),
    ])
}

/// A stretch of history in which no moment can be brought up.
pub fn gap(gap: &pb::Gap) -> Doc {
    Doc::Map(vec![
        ("from", Doc::time(gap.from_us)),
        ("to", Doc::time(gap.to_us)),
        ("reason", Doc::text(&gap.reason)),
    ])
}

/// A readiness report.
pub fn readiness(machine: &str, report: &pb::ReadinessReply) -> Doc {
    let check = |check: &pb::Check| {
        Doc::Map(vec![
            ("name", Doc::text(&check.name)),
            ("state", Doc::text(&check.state)),
            ("detail", Doc::text(&check.detail)),
            ("remedy", Doc::text(&check.remedy)),
        ])
    };
    let preview = report.preview.as_ref();
    Doc::Map(vec![
        ("machine", Doc::text(machine)),
        ("ready", report.ready.into()),
        ("summary", Doc::text(&report.summary)),
        ("checks", Doc::list(&report.checks, check)),
        ("point", preview.and_then(|preview| preview.point.as_ref()).map(point).into()),
        ("gap", preview.and_then(|preview| preview.gap.as_ref()).map(gap).into()),
        ("loss_seconds", preview.map(|preview| preview.loss_seconds).into()),
        ("loss_bytes", preview.map(|preview| preview.loss_bytes).into()),
        ("forecast_seconds", report.forecast_seconds.into()),
        ("destroys", report.destroys.into()),
        ("confirm", Doc::text(&report.confirm)),
        ("command", Doc::text(&report.command)),
    ])
}

/// An error.
pub fn fault(fault: &Fault) -> Doc {
    Doc::Map(vec![
        ("code", Doc::text(&fault.code)),
        ("message", Doc::text(&fault.message)),
        ("affected", Doc::text(&fault.affected)),
        ("unaffected", Doc::text(&fault.unaffected)),
        ("remedy", Doc::text(&fault.remedy)),
        ("correlation", Doc::text(&fault.correlation)),
    ])
}

fn time(micros: Option<i64>) -> Doc {
    micros.map_or(Doc::Null, Doc::time)
}
