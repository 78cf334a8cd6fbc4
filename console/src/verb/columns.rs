//! The columns of every kind: what a person sees of a list.
//!
//! A state is told by its word, never by its colour alone. Names that look alike get their short ids.

use super::args::Noun;
use super::output::human;
use super::output::table::{Cell, Table, Tone};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::entity::Entity;

/// A list as a table.
pub fn table(noun: Noun, entities: &[Entity], wide: bool, now: Timestamp) -> Table {
    let empty = match noun {
        Noun::Machines => {
            "No machines yet. A machine appears when its agent enrols: see `continuum token --help`."
                .to_owned()
        }
        Noun::Alerts => "No alerts: nothing needs a person.".to_owned(),
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
        (Noun::Machines, false) => &[
            "NAME",
            "STATE",
            "HEALTH",
            ">RPO",
            "?>HISTORY",
            "?>CHURN",
            "?>POINTS",
            "MODE",
            "?TEST",
            "?TARGET",
        ],
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
            &["NAME", "ROLE", "?SITE", "HEALTH", "CONNECTED", ">SEEN", "?>THROUGH", "?>BUFFER", "?>MACHINES"]
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
            ">HISTORY MAX",
            ">STAGING MAX",
            "COMPRESSION",
            "ID",
        ],
        (Noun::Jobs, false) => &["JOB", "KIND", "MACHINE", "STATE", ">AGE", "?>TOOK", "?STEP"],
        (Noun::Jobs, true) => &["JOB", "KIND", "MACHINE", "STATE", ">AGE", ">TOOK", "STEP", "BY", "DETAIL"],
        (Noun::Alerts, false) => &["SEVERITY", ">AGE", "STATE", "OBJECT", "WHAT HAPPENED", "WHAT TO DO"],
        (Noun::Alerts, true) => {
            &["SEVERITY", ">AGE", "STATE", "OBJECT", "WHAT HAPPENED", "WHY", "WHAT TO DO", "CODE", "ID"]
        }
        (Noun::Events, _) => &["TIME", "KIND", "OBJECT", "WHAT", "?BY"],
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
        Entity::Machine(machine) => machine_row(machine, wide, names),
        Entity::Site(site) => vec![
            site.name.as_str().into(),
            site.fabric.as_str().into(),
            if site.recovery { "yes" } else { "no" }.into(),
            site.id.as_str().into(),
        ],
        Entity::Server(server) => server_row(server, wide, now),
        Entity::Policy(policy) => policy_row(policy, wide),
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

fn machine_row(m: &pb::Machine, wide: bool, names: &Names) -> Vec<Cell> {
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
        cells.extend([
            p.history_bytes_max
                .map_or_else(|| "as needed".to_owned(), |bytes| human::bytes(Some(bytes)))
                .into(),
            human::bytes(Some(p.staging_bytes_max)).into(),
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

/// One recovery point.
pub fn point_row(point: &pb::Point, wide: bool, now: Timestamp) -> Vec<Cell> {
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
        cells.push(if point.pinned { "yes" } else { "" }.into());
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
