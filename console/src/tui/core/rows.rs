//! What stands in each table: columns, fields, sort keys and filter texts of every kind of thing.
//!
//! Lives here: the words for a state, so that a table, a detail pane and an export say the same. All text
//! comes out of the estate, where it was made harmless.

use super::estate::{Estate, is_over};
use super::table::{Cell, Column, Key, NATURAL, Rows};
use super::text;
use super::tone::{Mark, Role, of_health, of_state};
use continuum_proto::v1 as pb;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A machine's state in words, with what it means.
pub fn machine_state(machine: &pb::Machine) -> (String, Role) {
    let progress = match (machine.initial_bytes_done, machine.initial_bytes_total) {
        (Some(done), Some(total)) if total > 0 => format!(" {}%", done.min(total) * 100 / total),
        _ => String::new(),
    };
    let (words, role) = match machine.state.as_str() {
        "unprotected" | "" => ("not protected".to_owned(), Role::Muted),
        "enabling" => ("enabling".into(), Role::Busy),
        "enabling-failed" => ("enabling failed".into(), Role::Fail),
        "initial-replication" => match (machine.phase.as_str(), machine.start_at_us) {
            ("waiting-for-start", Some(at)) => {
                return (format!("copies from {}", text::hour_minute(at)), Role::Muted);
            }
            ("comparing", _) => ("comparing".into(), Role::Busy),
            _ => (format!("copying{progress}"), Role::Busy),
        },
        "initial-replication-failed" => ("copy stopped".into(), Role::Fail),
        "protected" => ("protected".into(), Role::Text),
        "resync" => (
            match (machine.phase.as_str(), machine.compared_bytes, machine.to_compare_bytes) {
                ("waiting-for-window", ..) => "resync, waits".into(),
                ("comparing", Some(done), Some(total)) if total > 0 => {
                    format!("comparing {}%", done.min(total) * 100 / total)
                }
                ("sending", ..) => format!("resync{progress}"),
                _ => "resync".into(),
            },
            Role::Warn,
        ),
        "failing-over" => ("failing over".into(), Role::Busy),
        "commit-pending" => ("failed over".into(), Role::Warn),
        "committed" => ("committed".into(), Role::Text),
        "reprotecting" => ("reprotecting".into(), Role::Busy),
        "reversed" => ("protected, reversed".into(), Role::Text),
        "failing-back" => ("failing back".into(), Role::Busy),
        "migrated" => ("migrated".into(), Role::Muted),
        "disabling" => ("removing".into(), Role::Busy),
        other => (other.to_owned(), Role::Text),
    };
    if machine.paused {
        return (format!("{words}, paused"), Role::Warn);
    }
    (words, role)
}

/// What a test failover of this machine is doing, in words; empty where there is none.
pub fn test_state(machine: &pb::Machine) -> &'static str {
    match machine.test_state.as_str() {
        "starting" => "test starting",
        "running" => "test running",
        "cleaning" => "test cleaning",
        "failed" => "test failed",
        _ => "",
    }
}

/// Whether the newest recoverable moment is older than promised.
pub fn rpo_role(machine: &pb::Machine) -> Role {
    match (machine.rpo_seconds, machine.rpo_threshold_seconds) {
        (Some(rpo), Some(limit)) if limit > 0 && rpo > limit as f64 => Role::Fail,
        (Some(rpo), Some(limit)) if limit > 0 && rpo > limit as f64 / 2.0 => Role::Warn,
        (None, _) if machine.protected => Role::Muted,
        _ => Role::Text,
    }
}

/// The health of a machine as a number: the worst is the least.
pub fn severity(health: &str) -> u8 {
    match health {
        "critical" => 0,
        "warning" => 1,
        "healthy" => 2,
        _ => 3,
    }
}

fn name_cell(health: &str, name: &str) -> Cell {
    let (mark, role) = of_health(health);
    let role = if matches!(role, Role::Ok | Role::Muted) { Role::Text } else { role };
    Cell::marked(mark, role, name)
}

/// Machines: the table of protections.
pub struct Machines<'a> {
    /// Where they are.
    pub estate: &'a Estate,
    /// Worst first, and only what is protected or ought to be looked at.
    pub worst_first: bool,
}

const MACHINE_COLUMNS: [Column; 13] = [
    Column::growing("MACHINE", 14, 0),
    Column::text("STATE", 15, 1),
    Column::number("RPO", 6, 1),
    Column::number("P99", 6, 4),
    Column::number("CHURN", 7, 2),
    Column::text("CHURN 5 MIN", 16, 8),
    Column::number("POINTS", 6, 5),
    Column::number("HISTORY", 7, 6),
    Column::text("MODE", 11, 9),
    Column::text("TARGET", 10, 7),
    Column::text("LAST TEST", 12, 6),
    Column::text("SITE", 10, 11),
    Column::text("POLICY", 10, 12),
];

impl Machines<'_> {
    fn machine(&self, place: usize) -> Option<&pb::Machine> {
        self.estate.machines.at(place)
    }
}

impl Rows for Machines<'_> {
    fn columns(&self) -> &'static [Column] {
        &MACHINE_COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.machines.len()
    }
    fn id(&self, place: usize) -> &str {
        self.machine(place).map_or("", |machine| &machine.id)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(machine) = self.machine(place) else { return Cell::text("") };
        match column {
            0 => name_cell(&machine.health, &machine.name),
            1 => {
                let (words, role) = machine_state(machine);
                match (test_state(machine), words.as_str()) {
                    ("", _) => Cell::toned(words, role),
                    (test, "protected") => Cell::toned(test, Role::Drill),
                    (test, words) => Cell::toned(format!("{words}, {test}"), Role::Drill),
                }
            }
            2 => Cell::toned(text::short_span_of(machine.rpo_seconds), rpo_role(machine)),
            3 => Cell::text(text::short_span_of(machine.rpo_p99_seconds)),
            4 => Cell::text(text::rate_of(machine.churn_bytes_per_sec)),
            5 => Cell::chart(&machine.churn_recent),
            6 => Cell::text(machine.points.to_string()),
            7 => Cell::text(text::short_span_of(machine.history_seconds)),
            8 => Cell::toned(
                if machine.mode.is_empty() { text::UNKNOWN } else { &machine.mode },
                if matches!(machine.mode.as_str(), "data" | "interval" | "") {
                    Role::Text
                } else {
                    Role::Warn
                },
            ),
            9 => Cell::text(&machine.target_site),
            10 => last_test(machine),
            11 => Cell::text(&machine.site),
            _ => Cell::text(&machine.policy),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        let Some(machine) = self.machine(place) else { return Key::None };
        match column {
            NATURAL if self.worst_first => {
                Key::Text(format!("{}{}", severity(&machine.health), machine.name.to_lowercase()))
            }
            2 => Key::number(machine.rpo_seconds),
            3 => Key::number(machine.rpo_p99_seconds),
            4 | 5 => Key::number(machine.churn_bytes_per_sec.map(|bytes| bytes as f64)),
            6 => Key::Number(f64::from(machine.points)),
            7 => Key::number(machine.history_seconds),
            10 => Key::number(machine.last_drill_us.map(|at| at as f64)),
            1 => Key::text(&machine_state(machine).0),
            8 => Key::text(&machine.mode),
            9 => Key::text(&machine.target_site),
            11 => Key::text(&machine.site),
            12 => Key::text(&machine.policy),
            _ => Key::text(&machine.name),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(machine) = self.machine(place) {
            let (state, _) = machine_state(machine);
            let _ = write!(
                out,
                "{} {state} {} {} {} {} {}",
                machine.name,
                machine.health,
                machine.site,
                machine.target_site,
                machine.policy,
                test_state(machine)
            );
        }
    }
    fn empty(&self) -> &'static str {
        "No machine is known yet. Machines appear when their agent enrols."
    }
}

fn last_test(machine: &pb::Machine) -> Cell {
    match machine.last_drill_us {
        None => Cell::toned("never", Role::Muted),
        Some(at) if machine.last_drill_passed => Cell::marked(Mark::Ok, Role::Text, day(at)),
        Some(at) => Cell::marked(Mark::Fail, Role::Fail, day(at)),
    }
}

fn day(micros: i64) -> String {
    let moment = text::moment(micros);
    moment.get(5..16).unwrap_or(&moment).to_owned()
}

/// One line of the tree of sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// What it is: `site/…`, `fabric/…` or a machine's id.
    pub id: String,
    /// How deep.
    pub depth: u16,
    /// Whether something lies under it, and whether that is shown.
    pub open: Option<bool>,
    /// Its name.
    pub name: String,
    /// The machine, where it is one.
    pub machine: Option<String>,
    /// What it is, in a word.
    pub kind: String,
    /// What is to be said of it.
    pub says: String,
    /// What that means.
    pub role: Role,
    /// Its health.
    pub mark: Mark,
}

/// The tree of sites, as lines. `closed` holds the ids of branches that are closed.
pub fn tree(estate: &Estate, closed: &BTreeSet<String>) -> Vec<Branch> {
    let mut sites: Vec<&pb::Site> = estate.sites.iter().collect();
    sites.sort_by_key(|site| (site.recovery, site.name.to_lowercase(), site.id.clone()));
    let mut by_site: std::collections::HashMap<&str, Vec<&pb::Machine>> = std::collections::HashMap::new();
    for machine in estate.machines.iter() {
        by_site.entry(machine.site.as_str()).or_default().push(machine);
    }
    let mut lines = Vec::new();
    for site in sites {
        let mut machines = by_site.remove(site.name.as_str()).unwrap_or_default();
        machines.sort_by_key(|machine| (machine.name.to_lowercase(), machine.id.clone()));
        let replicas: Vec<&pb::Machine> = estate
            .machines
            .iter()
            .filter(|machine| machine.protected && machine.target_site == site.name)
            .collect();
        let guarded = machines.iter().filter(|machine| machine.protected).count();
        let mut says = Vec::new();
        if !machines.is_empty() {
            says.push(format!("{guarded} of {} protected", text::count(machines.len(), "machine")));
        }
        if site.recovery {
            says.push(format!("holds {}", text::count(replicas.len(), "replica")));
        }
        if says.is_empty() {
            says.push("empty".into());
        }
        let id = format!("site/{}", site.id);
        let open = !closed.contains(&id);
        let worst = machines.iter().map(|machine| severity(&machine.health)).min().unwrap_or(3);
        lines.push(Branch {
            id,
            depth: 0,
            open: Some(open),
            name: site.name.clone(),
            machine: None,
            kind: site.fabric.clone(),
            says: says.join(", "),
            role: Role::Title,
            mark: match worst {
                0 => Mark::Fail,
                1 => Mark::Warn,
                2 => Mark::Ok,
                _ => Mark::Unknown,
            },
        });
        if !open {
            continue;
        }
        lines.extend(machines.iter().map(|machine| leaf(machine, estate)));
        let serving: BTreeSet<(String, String)> = estate
            .servers
            .iter()
            .filter(|server| server.site == site.name && server.role != "agent")
            .map(|server| (server.role.clone(), server.name.clone()))
            .collect();
        lines.extend(serving.into_iter().map(|(role, name)| Branch {
            id: format!("server/{}/{role}/{name}", site.id),
            depth: 1,
            open: None,
            mark: server_mark(estate, &role, &name),
            name,
            machine: None,
            says: String::new(),
            kind: role,
            role: Role::Muted,
        }));
    }
    for (site, machines) in by_site {
        // Of a site that is not told: the machines are.
        let _ = site;
        lines.extend(machines.iter().map(|machine| leaf(machine, estate)));
    }
    lines
}

fn server_mark(estate: &Estate, role: &str, name: &str) -> Mark {
    let server = estate.servers.iter().find(|server| server.role == role && server.name == name);
    match server {
        Some(server) if server.connected => of_health(&server.health).0,
        _ => Mark::Fail,
    }
}

fn leaf(machine: &pb::Machine, _: &Estate) -> Branch {
    let (mark, _) = of_health(&machine.health);
    let (words, role) = machine_state(machine);
    let says = if machine.protected {
        let rpo = machine.rpo_seconds.map_or(String::new(), |rpo| format!(", RPO {}", text::span(rpo)));
        format!("{words} to {}{rpo}", machine.target_site)
    } else if machine.orders.iter().any(|order| order == "protect") {
        "not protected; could be".into()
    } else {
        format!(
            "not protected{}{}",
            if machine.state_reason.is_empty() { "" } else { ": " },
            machine.state_reason
        )
    };
    Branch {
        id: machine.id.clone(),
        depth: 1,
        open: None,
        name: machine.name.clone(),
        machine: Some(machine.id.clone()),
        kind: "machine".into(),
        says,
        role,
        mark,
    }
}

/// Sites: the tree.
pub struct Sites {
    /// Its lines.
    pub lines: Vec<Branch>,
}

impl Rows for Sites {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 3] =
            [Column::text("SITE, MACHINE", 30, 0), Column::text("KIND", 15, 1), Column::growing("", 20, 0)];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.lines.len()
    }
    fn id(&self, place: usize) -> &str {
        self.lines.get(place).map_or("", |line| &line.id)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(line) = self.lines.get(place) else { return Cell::text("") };
        match column {
            0 => {
                let role = if line.depth == 0 { Role::Title } else { Role::Text };
                let indent = "  ".repeat(usize::from(line.depth));
                match line.open {
                    Some(open) => {
                        Cell::marked(if open { Mark::Open } else { Mark::Closed }, role, &line.name)
                    }
                    None => Cell::marked(line.mark, role, format!("{indent}{}", line.name)),
                }
            }
            1 => Cell::toned(&line.kind, Role::Muted),
            _ => Cell::toned(&line.says, if line.depth == 0 { Role::Text } else { line.role }),
        }
    }
    fn key(&self, _: usize, _: usize) -> Key {
        Key::None
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(line) = self.lines.get(place) {
            let _ = write!(out, "{} {} {}", line.name, line.kind, line.says);
        }
    }
    fn is_ordered(&self) -> bool {
        true
    }
    fn empty(&self) -> &'static str {
        "No site is known yet."
    }
}

/// Jobs.
pub struct Jobs<'a> {
    /// Where they are.
    pub estate: &'a Estate,
    /// The vault's time.
    pub now: i64,
}

/// What a job is called: `test failover of web-01`.
pub fn job_title(job: &pb::Job) -> String {
    if let Some(plan) = job.machine.strip_prefix("plan/") {
        let kind = job.kind.strip_prefix("plan-").unwrap_or(&job.kind).replace('-', " ");
        return format!("{kind} of plan {plan}");
    }
    let kind = job.kind.replace('-', " ");
    if job.machine.is_empty() { kind } else { format!("{kind} of {}", job.machine) }
}

/// How long a job has taken, in seconds.
pub fn job_seconds(job: &pb::Job, now: i64) -> Option<f64> {
    let started = job.started_us?;
    Some(job.ended_us.unwrap_or(now).saturating_sub(started).max(0) as f64 / 1e6)
}

/// What a job does just now, or how it ended.
pub fn job_now(job: &pb::Job) -> String {
    if let Some(fault) = &job.fault
        && is_over(job)
    {
        return fault.message.clone();
    }
    if !job.waiting_for.is_empty() {
        return format!("waits for {}", job.waiting_for);
    }
    match job.steps.iter().find(|step| matches!(step.state.as_str(), "running" | "undoing")) {
        Some(step) if step.detail.is_empty() => step.name.replace('-', " "),
        Some(step) => format!("{}: {}", step.name.replace('-', " "), step.detail),
        None => job.detail.clone(),
    }
}

impl Rows for Jobs<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 7] = [
            Column::text("JOB", 16, 0),
            Column::text("MACHINE", 14, 1),
            Column::text("STATE", 12, 0),
            Column::number("TOOK", 7, 3),
            Column::text("BEGUN", 14, 4),
            Column::growing("DOES", 16, 2),
            Column::text("BY", 10, 6),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.jobs.len()
    }
    fn id(&self, place: usize) -> &str {
        self.estate.jobs.at(place).map_or("", |job| &job.id)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(job) = self.estate.jobs.at(place) else { return Cell::text("") };
        let (mark, role) = of_state(&job.state);
        match column {
            0 => Cell::marked(
                mark,
                if role == Role::Ok { Role::Text } else { role },
                job.kind.replace('-', " "),
            ),
            1 => Cell::text(&job.machine),
            2 => Cell::toned(&job.state, role),
            3 => Cell::text(text::short_span_of(job_seconds(job, self.now))),
            4 => Cell::toned(text::near(job.created_us, self.now), Role::Muted),
            5 => Cell::toned(job_now(job), if role == Role::Fail { Role::Fail } else { Role::Muted }),
            _ => Cell::toned(&job.by, Role::Muted),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        let Some(job) = self.estate.jobs.at(place) else { return Key::None };
        match column {
            0 => Key::text(&job.kind),
            1 => Key::text(&job.machine),
            2 => Key::text(&job.state),
            3 => Key::number(job_seconds(job, self.now)),
            5 => Key::text(&job_now(job)),
            6 => Key::text(&job.by),
            // What is under way first, then the newest.
            NATURAL => Key::Number(-(job.created_us as f64) - if is_over(job) { 0.0 } else { 1e18 }),
            _ => Key::Number(job.created_us as f64),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(job) = self.estate.jobs.at(place) {
            let _ = write!(out, "{} {} {} {} {}", job.kind, job.machine, job.state, job.by, job.detail);
        }
    }
    fn empty(&self) -> &'static str {
        "No job yet. Orders that take their time become jobs and are listed here."
    }
}

/// Alerts.
pub struct Alerts<'a> {
    /// Where they are.
    pub estate: &'a Estate,
    /// The vault's time.
    pub now: i64,
}

/// An alert's glyph and meaning.
pub fn alert_tone(alert: &pb::Alert) -> (Mark, Role) {
    match (alert.cleared_us, alert.severity.as_str()) {
        (Some(_), _) => (Mark::Ok, Role::Muted),
        (None, "critical") => (Mark::Fail, Role::Fail),
        (None, _) => (Mark::Warn, Role::Warn),
    }
}

/// Where an alert stands, in a word.
pub fn alert_state(alert: &pb::Alert) -> &'static str {
    match (alert.cleared_us.is_some(), alert.acknowledged) {
        (true, _) => "cleared",
        (false, true) => "seen",
        (false, false) => "open",
    }
}

impl Rows for Alerts<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 6] = [
            Column::text("ALERT", 11, 0),
            Column::text("STATE", 8, 1),
            Column::text("ABOUT", 16, 0),
            Column::growing("WHAT HAPPENED", 20, 0),
            Column::number("SINCE", 6, 2),
            Column::text("CODE", 20, 7),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.alerts.len()
    }
    fn id(&self, place: usize) -> &str {
        self.estate.alerts.at(place).map_or("", |alert| &alert.id)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(alert) = self.estate.alerts.at(place) else { return Cell::text("") };
        let (mark, role) = alert_tone(alert);
        let faded = |role| if alert.cleared_us.is_some() { Role::Muted } else { role };
        match column {
            0 => Cell::marked(mark, role, &alert.severity),
            1 => Cell::toned(alert_state(alert), faded(Role::Text)),
            2 => Cell::toned(&alert.object, faded(Role::Text)),
            3 => Cell::toned(&alert.text, faded(Role::Text)),
            4 => Cell::toned(text::age(self.now.saturating_sub(alert.opened_us) as f64 / 1e6), Role::Muted),
            _ => Cell::toned(&alert.code, Role::Muted),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        let Some(alert) = self.estate.alerts.at(place) else { return Key::None };
        match column {
            0 => Key::Number(if alert.severity == "critical" { 0.0 } else { 1.0 }),
            1 => Key::text(alert_state(alert)),
            2 => Key::text(&alert.object),
            3 => Key::text(&alert.text),
            5 => Key::text(&alert.code),
            // Open first, critical first, newest first.
            NATURAL => {
                let closed = f64::from(u8::from(alert.cleared_us.is_some())) * 4.0;
                let seen = f64::from(u8::from(alert.acknowledged)) * 2.0;
                let mild = f64::from(u8::from(alert.severity != "critical"));
                Key::Number((closed + seen + mild) * 1e17 - alert.opened_us as f64)
            }
            _ => Key::Number(-(alert.opened_us as f64)),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(alert) = self.estate.alerts.at(place) {
            let _ = write!(
                out,
                "{} {} {} {} {}",
                alert.object,
                alert.text,
                alert.severity,
                alert_state(alert),
                alert.code
            );
        }
    }
    fn empty(&self) -> &'static str {
        "No alert. Nothing needs you."
    }
    fn name_column(&self) -> usize {
        2
    }
}

/// Servers.
pub struct Servers<'a> {
    /// Where they are.
    pub estate: &'a Estate,
    /// The vault's time.
    pub now: i64,
}

/// A server's glyph, meaning and state in a word.
pub fn server_tone(server: &pb::Server) -> (Mark, Role, &'static str) {
    if !server.connected {
        return (Mark::Fail, Role::Fail, "lost");
    }
    match server.health.as_str() {
        "critical" => (Mark::Fail, Role::Fail, "critical"),
        "warning" => (Mark::Warn, Role::Warn, "warning"),
        _ => (Mark::Ok, Role::Text, "connected"),
    }
}

/// A server's buffer as a share of its size.
pub fn buffer_share(server: &pb::Server) -> Option<f64> {
    match (server.buffer_bytes, server.buffer_bytes_max) {
        (Some(used), Some(max)) if max > 0 => Some(used as f64 / max as f64),
        _ => None,
    }
}

impl Rows for Servers<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 12] = [
            Column::growing("SERVER", 16, 0),
            Column::text("ROLE", 15, 1),
            Column::text("STATE", 10, 0),
            Column::text("SITE", 10, 5),
            Column::number("THROUGH", 8, 2),
            Column::number("BUFFER", 12, 2),
            Column::number("FREE", 6, 4),
            Column::number("CPU", 5, 6),
            Column::number("MEMORY", 7, 6),
            Column::number("CERT", 6, 5),
            Column::text("VERSION", 9, 8),
            Column::text("ADDRESS", 22, 9),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.servers.len()
    }
    fn id(&self, place: usize) -> &str {
        self.estate.servers.at(place).map_or("", |server| &server.id)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(server) = self.estate.servers.at(place) else { return Cell::text("") };
        let (mark, role, state) = server_tone(server);
        match column {
            0 => Cell::marked(mark, role, &server.name),
            1 => Cell::text(&server.role),
            2 => Cell::toned(state, role),
            3 => Cell::text(&server.site),
            4 => Cell::text(text::rate_of(server.bytes_per_sec)),
            5 => match (server.buffer_bytes, buffer_share(server)) {
                (Some(used), Some(share)) => Cell::toned(
                    format!("{} {:.0}%", text::short_bytes(used), share * 100.0),
                    if share > 0.8 {
                        Role::Fail
                    } else if share > 0.5 {
                        Role::Warn
                    } else {
                        Role::Text
                    },
                ),
                (used, _) => Cell::text(text::short_bytes_of(used)),
            },
            6 => Cell::text(text::short_bytes_of(server.free_bytes)),
            7 => Cell::text(
                server.cpu_percent.map_or_else(|| text::UNKNOWN.into(), |cpu| format!("{cpu:.0}%")),
            ),
            8 => Cell::text(text::short_bytes_of(server.memory_bytes)),
            9 => certificate(server, self.now),
            10 => Cell::text(&server.version),
            _ => Cell::toned(&server.address, Role::Muted),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        let Some(server) = self.estate.servers.at(place) else { return Key::None };
        let number = |value: Option<u64>| Key::number(value.map(|value| value as f64));
        match column {
            1 => Key::text(&server.role),
            2 => Key::text(server_tone(server).2),
            3 => Key::text(&server.site),
            4 => number(server.bytes_per_sec),
            5 => number(server.buffer_bytes),
            6 => number(server.free_bytes),
            7 => Key::number(server.cpu_percent),
            8 => number(server.memory_bytes),
            9 => Key::Number(server.certificate_expires_us as f64),
            10 => Key::text(&server.version),
            11 => Key::text(&server.address),
            NATURAL => {
                let rank = match server.role.as_str() {
                    "vault" => 0,
                    "process-server" => 1,
                    "master-target" => 2,
                    _ => 3,
                };
                Key::Text(format!("{rank}{}", server.name.to_lowercase()))
            }
            _ => Key::text(&server.name),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(server) = self.estate.servers.at(place) {
            let _ = write!(
                out,
                "{} {} {} {} {}",
                server.name,
                server.role,
                server.site,
                server_tone(server).2,
                server.machine
            );
        }
    }
    fn empty(&self) -> &'static str {
        "No server has enrolled yet."
    }
}

fn certificate(server: &pb::Server, now: i64) -> Cell {
    if server.certificate_expires_us == 0 {
        return Cell::text(text::UNKNOWN);
    }
    let left = server.certificate_expires_us.saturating_sub(now) as f64 / 1e6;
    let role = if left <= 0.0 {
        Role::Fail
    } else if left < 24.0 * 3600.0 {
        Role::Warn
    } else {
        Role::Text
    };
    Cell::toned(if left <= 0.0 { "ended".into() } else { text::age(left) }, role)
}

/// Recovery plans.
pub struct Plans<'a> {
    /// Where they are.
    pub estate: &'a Estate,
    /// The vault's time.
    pub now: i64,
}

impl Plans<'_> {
    fn run(&self, plan: &pb::Plan) -> Option<&pb::Job> {
        self.estate.jobs.get(&plan.run).filter(|job| !is_over(job))
    }
}

impl Rows for Plans<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 8] = [
            Column::growing("PLAN", 16, 0),
            Column::text("STATE", 14, 0),
            Column::number("GROUPS", 6, 2),
            Column::number("MACHINES", 8, 1),
            Column::number("OBJECTIVE", 9, 1),
            Column::number("FORECAST", 8, 1),
            Column::text("LAST DRILL", 15, 0),
            Column::number("TOOK", 7, 2),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.plans.len()
    }
    fn id(&self, place: usize) -> &str {
        self.estate.plans.at(place).map_or("", |plan| &plan.name)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(plan) = self.estate.plans.at(place) else { return Cell::text("") };
        let span = |seconds: Option<f64>| {
            Cell::text(seconds.map_or_else(|| text::UNKNOWN.to_owned(), text::short_span))
        };
        let machines: usize = plan.groups.iter().map(|group| group.machines.len()).sum();
        match column {
            0 => Cell::text(&plan.name),
            1 if self.run(plan).is_some() => Cell::toned("running", Role::Busy),
            1 if !plan.problems.is_empty() => Cell::toned("not ready", Role::Fail),
            1 if plan.orders.iter().any(|order| order == "cleanup") => Cell::toned("drill up", Role::Drill),
            1 => Cell::toned("ready", Role::Ok),
            2 => Cell::text(plan.groups.len().to_string()),
            3 => Cell::text(machines.to_string()),
            4 => span(plan.rto_objective_seconds),
            5 => span(plan.forecast_seconds),
            6 => match (plan.last_drill_us, plan.last_drill_passed) {
                (None, _) => Cell::toned("never", Role::Warn),
                (Some(at), true) => Cell::text(text::near(at, self.now)),
                (Some(at), false) => Cell::toned(text::near(at, self.now), Role::Fail),
            },
            _ => span(plan.last_drill_seconds),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        let Some(plan) = self.estate.plans.at(place) else { return Key::None };
        let machines: usize = plan.groups.iter().map(|group| group.machines.len()).sum();
        match column {
            2 => Key::Number(plan.groups.len() as f64),
            3 => Key::Number(machines as f64),
            4 => Key::number(plan.rto_objective_seconds),
            5 => Key::number(plan.forecast_seconds),
            6 => Key::number(plan.last_drill_us.map(|at| at as f64)),
            7 => Key::number(plan.last_drill_seconds),
            _ => Key::text(&plan.name),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(plan) = self.estate.plans.at(place) {
            out.push_str(&plan.name);
        }
    }
    fn empty(&self) -> &'static str {
        "No recovery plan yet. continuum apply --help shows one; continuum apply -f FILE makes it."
    }
}

/// Operators, then tokens.
pub struct Access<'a> {
    /// Where they are.
    pub estate: &'a Estate,
    /// The vault's time.
    pub now: i64,
}

/// One line of it.
enum Let<'a> {
    In(&'a pb::KnownOperator),
    Token(&'a pb::KnownToken),
}

impl Access<'_> {
    fn at(&self, place: usize) -> Option<Let<'_>> {
        let access = &self.estate.access;
        match place.checked_sub(access.operators.len()) {
            None => access.operators.get(place).map(Let::In),
            Some(place) => access.tokens.get(place).map(Let::Token),
        }
    }
}

impl Rows for Access<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 6] = [
            Column::text("WHO", 9, 0),
            Column::growing("NAME", 14, 0),
            Column::text("ROLE", 22, 0),
            Column::text("ACCESS", 8, 0),
            Column::text("UNTIL", 10, 0),
            Column::text("MADE BY", 12, 1),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.access.operators.len() + self.estate.access.tokens.len()
    }
    fn id(&self, place: usize) -> &str {
        match self.at(place) {
            Some(Let::In(operator)) => &operator.name,
            // No operator's name holds a `#`.
            Some(Let::Token(token)) => &token.id,
            None => "",
        }
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let until = |at: Option<i64>| match at {
            None => Cell::toned("not known", Role::Muted),
            Some(at) => {
                let left = at.saturating_sub(self.now) as f64 / 1e6;
                let role = if left <= 0.0 {
                    Role::Fail
                } else if left < 7.0 * 86_400.0 {
                    Role::Warn
                } else {
                    Role::Text
                };
                Cell::toned(if left <= 0.0 { "ended".into() } else { text::age(left) }, role)
            }
        };
        match (self.at(place), column) {
            (None, _) => Cell::text(""),
            (Some(Let::In(_)), 0) => Cell::text("operator"),
            (Some(Let::In(operator)), 1) => Cell::text(&operator.name),
            (Some(Let::In(operator)), 2) => Cell::text(&operator.role),
            (Some(Let::In(operator)), 3) if operator.revoked => Cell::toned("revoked", Role::Muted),
            (Some(Let::In(_)), 3) => Cell::toned("let in", Role::Ok),
            (Some(Let::In(operator)), 4) => until(operator.certificate_expires_us),
            (Some(Let::In(_)), _) => Cell::text(""),
            (Some(Let::Token(_)), 0) => Cell::toned("token", Role::Muted),
            (Some(Let::Token(token)), 1) if token.name.is_empty() => {
                Cell::toned(format!("any, at {}", token.site), Role::Muted)
            }
            (Some(Let::Token(token)), 1) => Cell::text(&token.name),
            (Some(Let::Token(token)), 2) if token.operator_role.is_empty() => Cell::text(&token.role),
            (Some(Let::Token(token)), 2) => Cell::text(format!("operator, {}", token.operator_role)),
            (Some(Let::Token(token)), 3) => {
                match (token.revoked, token.used_us, token.expires_us <= self.now) {
                    (true, ..) => Cell::toned("revoked", Role::Muted),
                    (_, Some(_), _) => Cell::toned("used", Role::Muted),
                    (_, _, true) => Cell::toned("ended", Role::Muted),
                    _ => Cell::toned("waits", Role::Warn),
                }
            }
            (Some(Let::Token(token)), 4) => until(Some(token.expires_us)),
            (Some(Let::Token(token)), _) => Cell::text(&token.made_by),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        if column == NATURAL { Key::Number(place as f64) } else { Key::text(&self.cell(place, column).text) }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        for column in [1, 0, 2, 3] {
            out.push_str(&self.cell(place, column).text);
            out.push(' ');
        }
    }
    fn name_column(&self) -> usize {
        1
    }
    fn empty(&self) -> &'static str {
        "Nothing is shown: owners and auditors see who is let in."
    }
}

/// The audit log.
pub struct Audit<'a> {
    /// Where it is.
    pub estate: &'a Estate,
}

impl Rows for Audit<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 6] = [
            Column::text("TIME", 19, 0),
            Column::text("WHO", 12, 0),
            Column::text("WHAT", 16, 0),
            Column::text("OUTCOME", 9, 1),
            Column::text("OF", 16, 2),
            Column::growing("DETAIL", 16, 0),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.audit.len()
    }
    fn id(&self, place: usize) -> &str {
        self.estate.audit_keys.get(place).map_or("", String::as_str)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(line) = self.estate.audit.get(place) else { return Cell::text("") };
        match column {
            0 => Cell::text(text::moment(line.time_us)),
            1 => Cell::text(&line.actor),
            2 => Cell::text(&line.act),
            3 if line.outcome == "refused" => Cell::toned("refused", Role::Warn),
            3 => Cell::text(&line.outcome),
            4 => Cell::text(&line.object),
            _ => Cell::text(&line.detail),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        match column {
            NATURAL => Key::Number(place as f64),
            0 => Key::Number(self.estate.audit.get(place).map_or(0.0, |line| line.seq as f64)),
            _ => Key::text(&self.cell(place, column).text),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(line) = self.estate.audit.get(place) {
            out.push_str(&text::moment(line.time_us));
            out.push(' ');
            for word in [&line.actor, &line.act, &line.object, &line.outcome, &line.detail] {
                out.push_str(word);
                out.push(' ');
            }
        }
    }
    fn empty(&self) -> &'static str {
        "Nothing is shown: owners and auditors read the audit log."
    }
}

/// Policies.
pub struct Policies<'a> {
    /// Where they are.
    pub estate: &'a Estate,
}

impl Rows for Policies<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 9] = [
            Column::growing("POLICY", 14, 0),
            Column::number("KEEPS", 7, 0),
            Column::number("SPACE", 7, 3),
            Column::number("CRASH POINTS", 12, 1),
            Column::number("APP POINTS", 10, 1),
            Column::number("RPO ALARM", 9, 1),
            Column::number("STAGING", 7, 4),
            Column::text("COMPRESSED", 10, 5),
            Column::number("MACHINES", 8, 2),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.estate.policies.len()
    }
    fn id(&self, place: usize) -> &str {
        self.estate.policies.at(place).map_or("", |policy| &policy.id)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(policy) = self.estate.policies.at(place) else { return Cell::text("") };
        let every = |seconds: u64| {
            if seconds == 0 { "off".to_owned() } else { format!("/{}", text::short_span(seconds as f64)) }
        };
        match column {
            0 => Cell::text(&policy.name),
            1 => {
                let all = text::short_span(policy.retention_seconds as f64);
                Cell::text(match policy.steps.last() {
                    // All of it for the first, more and more coarsely up to the second.
                    Some(step) => format!("{all}…{}", text::short_span(step.for_seconds as f64)),
                    None => all,
                })
            }
            2 => Cell::text(policy.history_bytes_max.map_or_else(|| "any".into(), text::short_bytes)),
            3 => Cell::text(every(policy.crash_point_seconds)),
            4 => Cell::text(every(policy.app_point_seconds)),
            5 => Cell::text(text::short_span(policy.rpo_threshold_seconds as f64)),
            6 if policy.staging_bytes_max == 0 => Cell::text("half"),
            6 => Cell::text(text::short_bytes(policy.staging_bytes_max)),
            7 => Cell::text(if policy.compression { "yes" } else { "no" }),
            _ => Cell::text(policy.machines.to_string()),
        }
    }
    fn key(&self, place: usize, column: usize) -> Key {
        let Some(policy) = self.estate.policies.at(place) else { return Key::None };
        match column {
            1 => Key::Number(policy.retention_seconds as f64),
            2 => Key::number(policy.history_bytes_max.map(|bytes| bytes as f64)),
            3 => Key::Number(policy.crash_point_seconds as f64),
            4 => Key::Number(policy.app_point_seconds as f64),
            5 => Key::Number(policy.rpo_threshold_seconds as f64),
            6 => Key::Number(policy.staging_bytes_max as f64),
            8 => Key::Number(f64::from(policy.machines)),
            _ => Key::text(&policy.name),
        }
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(policy) = self.estate.policies.at(place) {
            out.push_str(&policy.name);
        }
    }
    fn empty(&self) -> &'static str {
        "No policy is known yet."
    }
}

/// Events of one machine, newest first.
pub struct Events<'a> {
    /// Theirs.
    pub events: Vec<&'a pb::Event>,
    /// The vault's time.
    pub now: i64,
    ids: Vec<String>,
}

impl<'a> Events<'a> {
    /// Events about one object.
    pub fn of(estate: &'a Estate, object_id: &str, now: i64) -> Self {
        let events: Vec<&pb::Event> =
            estate.events.iter().rev().filter(|event| event.object_id == object_id).collect();
        let ids = events.iter().map(|event| event.id.to_string()).collect();
        Self { events, now, ids }
    }
}

impl Rows for Events<'_> {
    fn columns(&self) -> &'static [Column] {
        const COLUMNS: [Column; 4] = [
            Column::text("TIME", 14, 0),
            Column::text("EVENT", 22, 2),
            Column::growing("WHAT HAPPENED", 20, 0),
            Column::text("BY", 12, 4),
        ];
        &COLUMNS
    }
    fn len(&self) -> usize {
        self.events.len()
    }
    fn id(&self, place: usize) -> &str {
        self.ids.get(place).map_or("", String::as_str)
    }
    fn cell(&self, place: usize, column: usize) -> Cell {
        let Some(event) = self.events.get(place) else { return Cell::text("") };
        match column {
            0 => Cell::toned(text::near(event.time_us, self.now), Role::Muted),
            1 => Cell::text(&event.kind),
            2 => Cell::text(&event.text),
            _ => Cell::toned(&event.by, Role::Muted),
        }
    }
    fn key(&self, _: usize, _: usize) -> Key {
        Key::None
    }
    fn haystack(&self, place: usize, out: &mut String) {
        if let Some(event) = self.events.get(place) {
            let _ = write!(out, "{} {} {}", event.kind, event.text, event.by);
        }
    }
    fn is_ordered(&self) -> bool {
        true
    }
    fn empty(&self) -> &'static str {
        "No event of this machine is known."
    }
    fn name_column(&self) -> usize {
        2
    }
}
