//! `get`: what there is, worst first.

use super::args::{Get, Noun};
use super::output::doc::Doc;
use super::output::table::{Cell, Table, Tone};
use super::output::{self, Format, human, json};
use super::vault::Vault;
use super::{Setting, contract};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use std::cmp::Ordering;

/// Points listed where no limit is given.
const POINTS_DEFAULT: u32 = 1000;
/// Points asked for at once.
const POINTS_PAGE: u32 = 1000;
/// Jobs and events listed where no limit is given.
const PAST_DEFAULT: u32 = 200;

/// Runs `get`.
pub async fn run(setting: &Setting, get: &Get) -> Result<(), Fault> {
    let points_only = get.since.is_some() || get.until.is_some();
    if points_only && get.noun != Noun::Points {
        return Err(usage(format!(
            "--since and --until are for points; {} have no such range",
            get.noun.plural()
        )));
    }
    if get.history || get.diff {
        return super::apply::versions(setting, get).await;
    }
    if get.all && get.noun != Noun::Audit {
        return Err(usage(format!("--all is for the audit log, not for {}", get.noun.plural())));
    }
    if matches!(get.noun, Noun::Operators | Noun::Tokens | Noun::Audit) {
        if get.watch {
            return Err(usage(format!("{} cannot be watched", get.noun.plural())));
        }
        return super::access::get(setting, get).await;
    }
    if get.watch {
        return watch(setting, get).await;
    }
    let mut vault = Vault::connect(&setting.choice).await?;
    if get.noun == Noun::Points {
        return points(setting, get, &mut vault).await;
    }
    let name = get.name.as_deref().unwrap_or_default();
    let mut entities = vault.snapshot(&[kind_of(get.noun)], name, get.limit.unwrap_or(PAST_DEFAULT)).await?;
    if entities.is_empty() && !name.is_empty() {
        return Err(unknown(get.noun, name));
    }
    entities.retain(|entity| match entity {
        Entity::Plan(plan) => !plan.deleted,
        Entity::Group(group) => !group.deleted,
        Entity::Policy(policy) => !policy.deleted,
        _ => true,
    });
    worst_first(&mut entities);
    if let Some(written) = super::apply::exported(setting, get, &entities) {
        return written;
    }
    let now = SystemClock::default().wall();
    let docs = entities.iter().map(doc).collect();
    let blank = doc(&blank(get.noun));
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| table(get.noun, &entities, wide, now))
    })
}

/// There is none of that name.
pub fn unknown(noun: Noun, name: &str) -> Fault {
    Fault::new(
        FaultClass::NotFound,
        &format!("{}.unknown", noun.singular()),
        format!("there is no {} called {}", noun.singular(), shown(name)),
    )
    .spares("nothing was changed")
    .remedy(format!("see `continuum get {}`", noun.plural()))
}

pub(super) fn usage(message: String) -> Fault {
    Fault::new(FaultClass::Usage, "usage", message)
        .spares("nothing was changed")
        .remedy("see `continuum get --help`")
}

/// The kind on the wire. Points have none: they are asked of their machine.
pub const fn kind_of(noun: Noun) -> pb::Kind {
    match noun {
        Noun::Sites => pb::Kind::Site,
        Noun::Machines => pb::Kind::Machine,
        Noun::Policies => pb::Kind::Policy,
        Noun::Jobs => pb::Kind::Job,
        Noun::Alerts => pb::Kind::Alert,
        Noun::Servers => pb::Kind::Server,
        Noun::Events => pb::Kind::Event,
        Noun::Plans => pb::Kind::Plan,
        Noun::Groups => pb::Kind::Group,
        // Asked for by calls of their own.
        Noun::Points | Noun::Operators | Noun::Tokens | Noun::Audit => pb::Kind::Unspecified,
    }
}

fn blank(noun: Noun) -> Entity {
    match noun {
        Noun::Sites => Entity::Site(pb::Site::default()),
        Noun::Machines | Noun::Points | Noun::Operators | Noun::Tokens | Noun::Audit => {
            Entity::Machine(pb::Machine::default())
        }
        Noun::Policies => Entity::Policy(pb::Policy::default()),
        Noun::Jobs => Entity::Job(pb::Job::default()),
        Noun::Alerts => Entity::Alert(pb::Alert::default()),
        Noun::Servers => Entity::Server(pb::Server::default()),
        Noun::Events => Entity::Event(pb::Event::default()),
        Noun::Plans => Entity::Plan(pb::Plan::default()),
        Noun::Groups => Entity::Group(pb::Group::default()),
    }
}

/// An entity in the shape of the contract.
pub fn doc(entity: &Entity) -> Doc {
    match entity {
        Entity::Site(site) => contract::site(site),
        Entity::Server(server) => contract::server(server),
        Entity::Machine(machine) => contract::machine(machine),
        Entity::Policy(policy) => contract::policy(policy),
        Entity::Job(job) => contract::order(job),
        Entity::Alert(alert) => contract::alert(alert),
        Entity::Event(event) => contract::event(event),
        Entity::Plan(plan) => contract::plan(plan),
        Entity::Group(group) => contract::group(group),
    }
}

/// What needs a person comes first; then by name, or newest first.
pub fn worst_first(entities: &mut [Entity]) {
    entities.sort_by(|a, b| match (a, b) {
        (Entity::Machine(a), Entity::Machine(b)) => health_rank(&a.health)
            .cmp(&health_rank(&b.health))
            .then_with(|| b.protected.cmp(&a.protected))
            .then_with(|| b.rpo_seconds.partial_cmp(&a.rpo_seconds).unwrap_or(Ordering::Equal))
            .then_with(|| (&a.name, &a.id).cmp(&(&b.name, &b.id))),
        (Entity::Server(a), Entity::Server(b)) => health_rank(&a.health)
            .cmp(&health_rank(&b.health))
            .then_with(|| a.connected.cmp(&b.connected))
            .then_with(|| (&a.role, &a.name, &a.id).cmp(&(&b.role, &b.name, &b.id))),
        (Entity::Alert(a), Entity::Alert(b)) => {
            (a.cleared_us.is_some(), a.acknowledged, health_rank(&a.severity))
                .cmp(&(b.cleared_us.is_some(), b.acknowledged, health_rank(&b.severity)))
                .then_with(|| b.opened_us.cmp(&a.opened_us))
        }
        (Entity::Job(a), Entity::Job(b)) => super::follow::is_over(a)
            .cmp(&super::follow::is_over(b))
            .then_with(|| (b.created_us, &b.id).cmp(&(a.created_us, &a.id))),
        (Entity::Event(a), Entity::Event(b)) => (b.time_us, b.id).cmp(&(a.time_us, a.id)),
        (Entity::Site(a), Entity::Site(b)) => (&a.name, &a.id).cmp(&(&b.name, &b.id)),
        (Entity::Policy(a), Entity::Policy(b)) => (&a.name, &a.id).cmp(&(&b.name, &b.id)),
        (Entity::Group(a), Entity::Group(b)) => {
            (a.problems.is_empty(), &a.name).cmp(&(b.problems.is_empty(), &b.name))
        }
        (Entity::Plan(a), Entity::Plan(b)) => {
            (a.problems.is_empty(), &a.name).cmp(&(b.problems.is_empty(), &b.name))
        }
        _ => Ordering::Equal,
    });
}

fn health_rank(health: &str) -> u8 {
    match health {
        "critical" => 0,
        "warning" => 1,
        "healthy" => 3,
        "not-applicable" => 4,
        _ => 2,
    }
}

fn table(noun: Noun, entities: &[Entity], wide: bool, now: Timestamp) -> Table {
    let empty = match noun {
        Noun::Machines => {
            "No machines yet. A machine appears when its agent enrols: see `continuum token --help`."
                .to_owned()
        }
        Noun::Alerts => "No alerts: nothing needs a person.".to_owned(),
        Noun::Groups => "No consistency groups yet: see `continuum group set --help`.".to_owned(),
        Noun::Plans => "No recovery plans yet: see `continuum apply --help`.".to_owned(),
        _ => format!("No {} yet.", noun.plural()),
    };
    let mut table = Table::new(head(noun, wide), empty).whole(wide);
    let names = Names::of(entities);
    for entity in entities {
        table.row(row(entity, wide, now, &names));
    }
    table
}

/// The columns of a kind.
pub fn head(noun: Noun, wide: bool) -> &'static [&'static str] {
    match (noun, wide) {
        (Noun::Machines, false) => {
            &["NAME", "STATE", "HEALTH", ">RPO", ">HISTORY", ">CHURN", ">POINTS", "MODE", "TEST", "TARGET"]
        }
        (Noun::Machines, true) => &[
            "NAME",
            "STATE",
            "HEALTH",
            ">RPO",
            ">P50",
            ">P99",
            ">HISTORY",
            ">PROMISED",
            ">CHURN",
            ">POINTS",
            "MODE",
            "TEST",
            "SITE",
            "TARGET",
            "POLICY",
            ">DISKS",
            "NEEDS",
            "ID",
        ],
        (Noun::Sites, _) => &["NAME", "FABRIC", "RECOVERY", "ID"],
        (Noun::Servers, false) => {
            &["NAME", "ROLE", "SITE", "HEALTH", "CONNECTED", ">SEEN", ">THROUGH", ">BUFFER", ">MACHINES"]
        }
        (Noun::Servers, true) => &[
            "NAME",
            "ROLE",
            "SITE",
            "HEALTH",
            "CONNECTED",
            ">SEEN",
            ">THROUGH",
            ">BUFFER",
            ">MACHINES",
            ">CPU",
            ">MEMORY",
            ">FREE",
            "ADDRESS",
            "VERSION",
            "CERTIFICATE UNTIL",
            "NEEDS",
            "ID",
        ],
        (Noun::Policies, false) => {
            &["NAME", ">RETENTION", ">POINTS EVERY", ">APP EVERY", ">RPO LIMIT", ">MACHINES"]
        }
        (Noun::Policies, true) => &[
            "NAME",
            ">RETENTION",
            ">POINTS EVERY",
            ">APP EVERY",
            ">RPO LIMIT",
            ">MACHINES",
            "THEN",
            ">HISTORY MAX",
            ">STAGING MAX",
            "COMPRESSION",
            "ID",
        ],
        (Noun::Jobs, false) => &["JOB", "KIND", "MACHINE", "STATE", ">AGE", ">TOOK", "STEP"],
        (Noun::Jobs, true) => &["JOB", "KIND", "MACHINE", "STATE", ">AGE", ">TOOK", "STEP", "BY", "DETAIL"],
        (Noun::Alerts, false) => &["SEVERITY", ">AGE", "STATE", "OBJECT", "WHAT HAPPENED", "WHAT TO DO"],
        (Noun::Alerts, true) => {
            &["SEVERITY", ">AGE", "STATE", "OBJECT", "WHAT HAPPENED", "WHY", "WHAT TO DO", "CODE", "ID"]
        }
        (Noun::Events, _) => &["TIME", "KIND", "OBJECT", "WHAT", "BY"],
        (Noun::Groups, _) => &[
            "NAME",
            "MACHINES",
            ">EVERY",
            ">NEWEST",
            ">POINTS",
            ">HOLD P50",
            ">P99",
            ">MAX",
            "LEADER",
            "NEEDS",
        ],
        (Noun::Plans, _) => {
            &["NAME", ">GROUPS", ">MACHINES", ">OBJECTIVE", ">FORECAST", ">LAST DRILL", "PASSED", "NEEDS"]
        }
        (Noun::Operators | Noun::Tokens | Noun::Audit, _) => &[],
        (Noun::Points, false) => &["TIME", ">AGE", "KIND", "NAME", "PROVEN", "ID"],
        (Noun::Points, true) => {
            &["TIME", ">AGE", "KIND", "NAME", "PINNED", "BOOTED", "PROBED", "DIGEST EQUAL", "ID"]
        }
    }
}

/// Names that look alike, so that their short ids are shown beside them.
#[derive(Debug, Default)]
pub struct Names(std::collections::HashMap<String, usize>);

impl Names {
    /// Counts how many machines look like each name.
    pub fn of(entities: &[Entity]) -> Self {
        let mut seen = std::collections::HashMap::new();
        for entity in entities {
            if let Entity::Machine(machine) = entity {
                *seen.entry(look(&machine.name)).or_insert(0) += 1;
            }
        }
        Self(seen)
    }
    /// The name as shown; with its short id where another one looks like it.
    fn shown(&self, name: &str, id: &str) -> String {
        match self.0.get(&look(name)) {
            Some(count) if *count > 1 => {
                let tail = id.chars().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect::<String>();
                format!("{} ({tail})", shown(name))
            }
            _ => name.to_owned(),
        }
    }
}

/// What a name looks like at a glance.
fn look(name: &str) -> String {
    use unicode_normalization::UnicodeNormalization;
    name.nfkc()
        .flat_map(char::to_lowercase)
        .filter(|c| !continuum_model::untrusted::is_dangerous(*c))
        .collect()
}

/// One line of a table.
pub fn row(entity: &Entity, wide: bool, now: Timestamp, names: &Names) -> Vec<Cell> {
    match entity {
        Entity::Machine(machine) => machine_row(machine, wide, now, names),
        Entity::Site(site) => vec![
            site.name.as_str().into(),
            site.fabric.as_str().into(),
            if site.recovery { "yes" } else { "no" }.into(),
            site.id.as_str().into(),
        ],
        Entity::Server(server) => server_row(server, wide, now),
        Entity::Policy(policy) => policy_row(policy, wide),
        Entity::Plan(plan) => plan_row(plan, now),
        Entity::Group(group) => group_row(group, now),
        Entity::Job(job) => job_row(job, wide, now),
        Entity::Alert(alert) => alert_row(alert, wide, now),
        Entity::Event(event) => vec![
            human::moment(Some(event.time_us)).into(),
            event.kind.as_str().into(),
            event.object.as_str().into(),
            event.text.as_str().into(),
            event.by.as_str().into(),
        ],
    }
}

fn machine_row(m: &pb::Machine, wide: bool, now: Timestamp, names: &Names) -> Vec<Cell> {
    let state = if m.paused { format!("{} (paused)", m.state) } else { m.state.clone() };
    let late = m.rpo_seconds.zip(m.rpo_threshold_seconds).is_some_and(|(rpo, limit)| rpo > limit as f64);
    let rpo =
        Cell::from(human::seconds(m.rpo_seconds)).toned(if late { Tone::Critical } else { Tone::Plain });
    let history = Cell::from(human::seconds(m.history_seconds));
    let churn = Cell::from(human::rate(m.churn_bytes_per_sec));
    let points = if m.protected { m.points.to_string() } else { String::new() };
    let mode = match m.mode.as_str() {
        "data" => Cell::new("data"),
        mode => Cell::new(mode).toned(if mode.is_empty() { Tone::Dim } else { Tone::Warning }),
    };
    let test = if m.test_state == "none" { Cell::new("") } else { Cell::state(&m.test_state) };
    let name = Cell::from(names.shown(&m.name, &m.id));
    let (state, health) = (Cell::new(&state), Cell::state(&m.health));
    if !wide {
        return vec![
            name,
            state,
            health,
            rpo,
            history,
            churn,
            points.into(),
            mode,
            test,
            m.target_site.as_str().into(),
        ];
    }
    let _ = now;
    vec![
        name,
        state,
        health,
        rpo,
        human::seconds(m.rpo_p50_seconds).into(),
        human::seconds(m.rpo_p99_seconds).into(),
        history,
        human::seconds(m.history_promised_seconds).into(),
        churn,
        points.into(),
        mode,
        test,
        m.site.as_str().into(),
        m.target_site.as_str().into(),
        m.policy.as_str().into(),
        m.disks.len().to_string().into(),
        needs(&m.symptoms),
        m.id.as_str().into(),
    ]
}

fn needs(symptoms: &[pb::Symptom]) -> Cell {
    Cell::from(symptoms.iter().map(|symptom| symptom.code.as_str()).collect::<Vec<_>>().join(", "))
}

fn server_row(s: &pb::Server, wide: bool, now: Timestamp) -> Vec<Cell> {
    let connected = if s.connected { Cell::state("connected") } else { Cell::state("lost") };
    let buffer = match (s.buffer_bytes, s.buffer_bytes_max) {
        (Some(used), Some(most)) if most > 0 => format!("{:.0} %", used as f64 / most as f64 * 100.0),
        (used, _) => human::bytes(used),
    };
    let mut cells = vec![
        s.name.as_str().into(),
        s.role.as_str().into(),
        s.site.as_str().into(),
        Cell::state(&s.health),
        connected,
        human::age(Some(s.last_seen_us), now).into(),
        human::rate(s.bytes_per_sec).into(),
        buffer.into(),
        s.machines.to_string().into(),
    ];
    if wide {
        cells.extend([
            s.cpu_percent.map_or_else(String::new, |cpu| format!("{cpu:.0} %")).into(),
            human::bytes(s.memory_bytes).into(),
            human::bytes(s.free_bytes).into(),
            s.address.as_str().into(),
            s.version.as_str().into(),
            human::moment(Some(s.certificate_expires_us)).into(),
            needs(&s.symptoms),
            s.id.as_str().into(),
        ]);
    }
    cells
}

fn plan_row(p: &pb::Plan, now: Timestamp) -> Vec<Cell> {
    let machines: usize = p.groups.iter().map(|group| group.machines.len()).sum();
    let passed = match (p.last_drill_us, p.last_drill_passed) {
        (None, _) => Cell::new("never"),
        (Some(_), true) => Cell::state("passed"),
        (Some(_), false) => Cell::state("failed"),
    };
    vec![
        p.name.as_str().into(),
        p.groups.len().to_string().into(),
        machines.to_string().into(),
        human::seconds(p.rto_objective_seconds).into(),
        human::seconds(p.forecast_seconds).into(),
        human::age(p.last_drill_us, now).into(),
        passed,
        Cell::from(p.problems.join("; ")),
    ]
}

fn group_row(g: &pb::Group, now: Timestamp) -> Vec<Cell> {
    let names: Vec<&str> = g.machines.iter().map(|machine| machine.name.as_str()).collect();
    let millis = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1} ms"));
    vec![
        g.name.as_str().into(),
        names.join(", ").into(),
        if g.every_seconds == 0 {
            "asked".into()
        } else {
            human::seconds(Some(g.every_seconds as f64)).into()
        },
        human::age(g.newest_point_us, now).into(),
        g.points.to_string().into(),
        millis(g.hold_p50_ms).into(),
        millis(g.hold_p99_ms).into(),
        millis(g.hold_max_ms).into(),
        g.leader.as_str().into(),
        g.problems.join("; ").into(),
    ]
}

fn policy_row(p: &pb::Policy, wide: bool) -> Vec<Cell> {
    let span = |seconds: u64| human::seconds(Some(seconds as f64));
    let mut cells = vec![
        p.name.as_str().into(),
        span(p.retention_seconds).into(),
        span(p.crash_point_seconds).into(),
        if p.app_point_seconds == 0 { "never".into() } else { span(p.app_point_seconds).into() },
        span(p.rpo_threshold_seconds).into(),
        p.machines.to_string().into(),
    ];
    if wide {
        let steps: Vec<String> = p
            .steps
            .iter()
            .map(|step| format!("1/{} for {}", span(step.every_seconds), span(step.for_seconds)))
            .collect();
        cells.extend([
            if steps.is_empty() { "none".into() } else { steps.join(", ").into() },
            p.history_bytes_max
                .map_or_else(|| "as needed".to_owned(), |bytes| human::bytes(Some(bytes)))
                .into(),
            match p.staging_bytes_max {
                0 => "half of the disks".into(),
                bytes => human::bytes(Some(bytes)).into(),
            },
            if p.compression { "on" } else { "off" }.into(),
            p.id.as_str().into(),
        ]);
    }
    cells
}

fn job_row(job: &pb::Job, wide: bool, now: Timestamp) -> Vec<Cell> {
    let took = job
        .started_us
        .map(|started| job.ended_us.unwrap_or(now.micros()).saturating_sub(started) as f64 / 1e6);
    let under_way = job
        .steps
        .iter()
        .find(|step| matches!(step.state.as_str(), "running" | "undoing" | "failed" | "undo-failed"));
    let step = match under_way {
        Some(step) if job.waiting_for.is_empty() => step.name.clone(),
        _ if !job.waiting_for.is_empty() => format!("waits for {}", job.waiting_for),
        _ => String::new(),
    };
    let mut cells = vec![
        job.id.as_str().into(),
        job.kind.as_str().into(),
        job.machine.as_str().into(),
        Cell::state(&job.state),
        human::age(Some(job.created_us), now).into(),
        human::seconds(took).into(),
        step.into(),
    ];
    if wide {
        cells.extend([job.by.as_str().into(), job.detail.as_str().into()]);
    }
    cells
}

fn alert_row(a: &pb::Alert, wide: bool, now: Timestamp) -> Vec<Cell> {
    let state = match (a.cleared_us, a.acknowledged) {
        (Some(_), _) => "cleared",
        (None, true) => "seen",
        (None, false) => "open",
    };
    let severity = if a.cleared_us.is_some() {
        Cell::new(&a.severity).toned(Tone::Dim)
    } else {
        Cell::state(&a.severity)
    };
    let mut cells = vec![
        severity,
        human::age(Some(a.opened_us), now).into(),
        state.into(),
        a.object.as_str().into(),
        a.text.as_str().into(),
    ];
    if wide {
        cells.push(a.cause.as_str().into());
    }
    cells.push(a.remedy.as_str().into());
    if wide {
        cells.extend([a.code.as_str().into(), a.id.as_str().into()]);
    }
    cells
}

async fn points(setting: &Setting, get: &Get, vault: &mut Vault) -> Result<(), Fault> {
    let Some(machine) = get.name.as_deref().filter(|name| !name.is_empty()) else {
        return Err(usage("points of which machine? write `continuum get points MACHINE`".into()));
    };
    let wanted = get.limit.unwrap_or(POINTS_DEFAULT);
    let mut points: Vec<pb::Point> = Vec::new();
    let mut gaps = Vec::new();
    let mut more = true;
    while more && points.len() < wanted as usize {
        let left = wanted - u32::try_from(points.len()).unwrap_or(wanted);
        let reply = vault
            .timeline(pb::TimelineRequest {
                machine: machine.to_owned(),
                from_us: get.since,
                to_us: get.until,
                buckets: 0,
                points_max: left.min(POINTS_PAGE),
                before_id: points.last().map(|point| point.id.clone()).unwrap_or_default(),
            })
            .await?;
        if points.is_empty() {
            gaps = reply.gaps;
        }
        more = reply.more && !reply.points.is_empty();
        points.extend(reply.points);
    }
    points.truncate(wanted as usize);
    let now = SystemClock::default().wall();
    let docs = points.iter().map(contract::point).collect();
    let blank = contract::point(&pb::Point::default());
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| {
            let mut table = Table::new(head(Noun::Points, wide), "No points yet.").whole(wide);
            points.iter().for_each(|point| table.row(point_row(point, wide, now)));
            table
        })?;
        if !setting.style.format.for_programs() {
            for gap in &gaps {
                writeln!(
                    out,
                    "No moment between {} and {} can be brought up: {}",
                    human::moment(Some(gap.from_us)),
                    human::moment(Some(gap.to_us)),
                    shown(&gap.reason)
                )?;
            }
        }
        Ok(())
    })?;
    if more {
        setting.say(&format!("older points are not listed: use --limit, or --until with the time of the last one ({wanted} shown)"));
    }
    Ok(())
}

fn point_row(point: &pb::Point, wide: bool, now: Timestamp) -> Vec<Cell> {
    let proofs = point.proofs.unwrap_or_default();
    let proof = |proven: Option<bool>| {
        Cell::state(proven.map_or("", |passed| if passed { "passed" } else { "failed" }))
    };
    let mut cells: Vec<Cell> = vec![
        Timestamp::from_micros(point.time_us).to_string().into(),
        human::age(Some(point.time_us), now).into(),
        point.kind.as_str().into(),
        point.name.as_str().into(),
    ];
    if wide {
        cells.push(match point.locked_until_us.map(Timestamp::from_micros).filter(|until| *until > now) {
            Some(until) => format!("locked until {until}").into(),
            None => if point.pinned { "yes" } else { "" }.into(),
        });
        cells.extend([proof(proofs.booted), proof(proofs.probed), proof(proofs.digest_equal)]);
    } else {
        let all = [("booted", proofs.booted), ("probed", proofs.probed), ("equal", proofs.digest_equal)];
        let told = all.iter().filter_map(|(name, proven)| match proven {
            Some(true) => Some((*name).to_owned()),
            Some(false) => Some(format!("NOT {name}")),
            None => None,
        });
        let told = told.collect::<Vec<_>>().join(", ");
        let failed = all.iter().any(|(_, proven)| *proven == Some(false));
        cells.push(Cell::from(told).toned(if failed { Tone::Critical } else { Tone::Plain }));
    }
    cells.push(point.id.as_str().into());
    cells
}

/// Tells every change as it happens, until the stream ends.
async fn watch(setting: &Setting, get: &Get) -> Result<(), Fault> {
    if get.noun == Noun::Points {
        return Err(usage("points cannot be watched; watch events: `continuum get events --watch`".into()));
    }
    if setting.style.format == Format::Csv {
        return Err(usage("changes are written as lines or as JSON, not as CSV".into()));
    }
    let mut vault = Vault::connect(&setting.choice).await?;
    let request = pb::WatchRequest { kinds: vec![kind_of(get.noun) as i32], ..Default::default() };
    let mut stream = vault.watch(request).await?;
    let only = get.name.as_deref();
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => {
                return Err(Fault::new(
                    FaultClass::NotConnected,
                    "vault.stream",
                    "the vault ended the stream",
                )
                .spares("replication and jobs")
                .remedy("run the command again"));
            }
            Err(status) => return Err(continuum_wire::grpc::fault_of(&status)),
        };
        let now = SystemClock::default().wall();
        let line = match message.event {
            Some(pb::watch_event::Event::Changed(pb::Entity { entity: Some(entity) })) => {
                if only.is_some_and(|only| !is_called(&entity, only)) {
                    continue;
                }
                if setting.style.format.for_programs() {
                    json::line(&doc(&entity))
                } else {
                    let cells = row(&entity, setting.style.format == Format::Wide, now, &Names::default());
                    cells.iter().map(Cell::text).collect::<Vec<_>>().join("  ")
                }
            }
            Some(pb::watch_event::Event::Removed(removed)) => {
                if setting.style.format.for_programs() {
                    json::line(&Doc::Map(vec![("removed", removed.id.into())]))
                } else {
                    format!("removed  {}", shown(&removed.id))
                }
            }
            _ => continue,
        };
        let mut gone = false;
        setting.write(|out| {
            let written = writeln!(out, "{line}").and_then(|()| out.flush());
            gone = written.is_err();
            written
        })?;
        if gone {
            return Ok(());
        }
    }
}

/// Whether an entity has this name or id.
pub fn is_called(entity: &Entity, name: &str) -> bool {
    let (id, called) = match entity {
        Entity::Site(site) => (site.id.as_str(), site.name.as_str()),
        Entity::Server(server) => (server.id.as_str(), server.name.as_str()),
        Entity::Machine(machine) => (machine.id.as_str(), machine.name.as_str()),
        Entity::Policy(policy) => (policy.id.as_str(), policy.name.as_str()),
        Entity::Plan(plan) => (plan.name.as_str(), plan.name.as_str()),
        Entity::Group(group) => (group.name.as_str(), group.name.as_str()),
        Entity::Job(job) => (job.id.as_str(), job.machine.as_str()),
        Entity::Alert(alert) => (alert.id.as_str(), alert.object.as_str()),
        Entity::Event(event) => return event.object == name || event.object_id == name,
    };
    id == name || called == name
}
