//! What is known of the thing under the cursor, beside or under its table.

use super::super::core::rows::{alert_state, alert_tone, job_now, job_title, server_tone};
use super::super::core::state::{Place, State};
use super::super::core::text;
use super::super::core::tone::{Mark, Role, of_health, of_state};
use super::canvas::{Canvas, Line, span};
use super::machine::said;
use super::pair;
use continuum_proto::v1 as pb;
use ratatui::layout::Rect;

/// Draws the pane.
pub fn draw(state: &State, canvas: &mut Canvas<'_>, area: Rect) {
    let wide = usize::from(area.width);
    let estate = &state.estate;
    let lines = state.detailed().and_then(|id| match &state.place {
        Place::Alerts => estate.alerts.get(id).map(|alert| of_alert(state, alert, canvas, wide)),
        Place::Jobs => estate.jobs.get(id).map(|job| of_job(job, canvas, wide)),
        Place::Plans => estate.plans.get(id).map(|plan| of_plan(state, plan, canvas, wide)),
        Place::Policies => estate.policies.get(id).map(|policy| of_policy(state, policy, canvas, wide)),
        Place::Servers => estate.servers.get(id).map(|server| of_server(state, server, canvas, wide)),
        _ => estate.machines.get(id).map(|machine| {
            let mut lines = vec![vec![span(machine.name.clone(), Role::Title)], Line::new()];
            lines.extend(super::machine::lines(state, machine, canvas, wide));
            lines
        }),
    });
    let lines = lines.unwrap_or_else(|| vec![vec![span("nothing is chosen", Role::Muted)]]);
    canvas.put_lines(area, &lines, 0);
}

fn of_alert(state: &State, alert: &pb::Alert, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let (mark, role) = alert_tone(alert);
    let mut lines = Vec::new();
    said(&mut lines, "Alert", &canvas.marked(mark, &alert.text), role, wide);
    for (label, told) in [("Cause", &alert.cause), ("What to do", &alert.remedy)] {
        if !told.is_empty() {
            said(&mut lines, label, told, Role::Text, wide);
        }
    }
    let now = state.vault_now();
    let cleared = alert.cleared_us.map_or(String::new(), |at| format!(", cleared {}", text::near(at, now)));
    lines.push(pair("Since", format!("{}{cleared}", text::near(alert.opened_us, now)), Role::Muted));
    lines.push(pair(
        "About",
        format!("{} {}  [{}]  {}", alert.object_kind, alert.object, alert.code, alert_state(alert)),
        Role::Muted,
    ));
    lines
}

fn of_job(job: &pb::Job, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let (mark, role) = of_state(&job.state);
    let mut lines = vec![vec![span(canvas.marked(mark, &job_title(job)), role)], Line::new()];
    said(&mut lines, "Now", &job_now(job), Role::Text, wide);
    lines.push(pair("Ordered by", &job.by, Role::Muted));
    lines.push(pair("Id", &job.id, Role::Muted));
    lines.push(Line::new());
    for step in &job.steps {
        let (mark, role) = of_state(&step.state);
        said(
            &mut lines,
            &text::fit(&step.name, 16, canvas.theme.ellipsis()),
            &canvas.marked(mark, &step.detail),
            role,
            wide,
        );
    }
    lines
}

/// What a policy says, in words, and who is under it.
fn of_policy(state: &State, policy: &pb::Policy, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let version = if policy.version == 0 { String::new() } else { format!("  version {}", policy.version) };
    let mut lines = vec![vec![span(policy.name.clone(), Role::Title), span(version, Role::Muted)]];
    let under = state.estate.machines_under(&policy.name);
    let names: Vec<&str> = under.iter().take(20).map(|machine| machine.name.as_str()).collect();
    let more = under.len().saturating_sub(names.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let told = if names.is_empty() {
        "no machine: d deletes it".into()
    } else {
        format!("{}{more}", names.join(", "))
    };
    said(&mut lines, "Under it", &told, Role::Text, wide);
    match continuum_wire::policy::from_message(policy) {
        Ok(read) => {
            let fields = continuum_document::policy::FIELDS.iter().filter(|(field, ..)| *field != "name");
            for (field, label, _) in fields {
                let told = continuum_document::policy::told(&read, field);
                said(&mut lines, label, &told, Role::Text, wide);
            }
        }
        Err(why) => said(&mut lines, "", &canvas.marked(Mark::Fail, &why), Role::Fail, wide),
    }
    lines
}

/// What a plan does: its groups in their order, who waits for whom, what people do.
fn of_plan(state: &State, plan: &pb::Plan, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let mut lines = vec![vec![span(plan.name.clone(), Role::Title)]];
    if !plan.description.is_empty() {
        said(&mut lines, "", &plan.description, Role::Text, wide);
    }
    for problem in &plan.problems {
        said(&mut lines, "Not ready", &canvas.marked(Mark::Fail, problem), Role::Fail, wide);
    }
    let span_of = |seconds: Option<f64>| seconds.map_or_else(|| text::UNKNOWN.to_owned(), text::span);
    lines.push(pair(
        "Time",
        format!(
            "objective {}, forecast {}, last drill {}",
            span_of(plan.rto_objective_seconds),
            span_of(plan.forecast_seconds),
            span_of(plan.last_drill_seconds)
        ),
        Role::Text,
    ));
    let arrow = if canvas.theme.ascii { "v" } else { "▼" };
    for (n, group) in plan.groups.iter().enumerate() {
        let after = if group.depends_on.is_empty() {
            "at once".to_owned()
        } else {
            format!("after {}", group.depends_on.join(", "))
        };
        let mark = if n == 0 { " " } else { arrow };
        lines.push(vec![span(format!("{mark} {}  ", group.name), Role::Title), span(after, Role::Muted)]);
        let mut line: Line = vec![span("    ", Role::Text)];
        let mut taken = 4;
        for machine in &group.machines {
            let known = state.estate.machines.get(&machine.id);
            let (mark, role) = known.map_or((Mark::Fail, Role::Fail), |known| of_health(&known.health));
            let label = format!("{}   ", canvas.marked(mark, &machine.name));
            if taken + text::width(&label) > wide {
                lines.push(std::mem::replace(&mut line, vec![span("    ", Role::Text)]));
                taken = 4;
            }
            taken += text::width(&label);
            line.push(span(label, role));
        }
        lines.push(line);
        if !group.manual.is_empty() {
            said(&mut lines, "    by hand", &group.manual, Role::Warn, wide);
        }
    }
    lines
}

fn of_server(state: &State, server: &pb::Server, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let (mark, role, words) = server_tone(server);
    let now = state.vault_now();
    let mut lines = vec![vec![span(canvas.marked(mark, &server.name), role)], Line::new()];
    lines.push(pair("State", words, role));
    lines.push(pair("Role", &server.role, Role::Text));
    lines.push(pair("Site", &server.site, Role::Text));
    if !server.machine.is_empty() {
        lines.push(pair("Machine", &server.machine, Role::Text));
    }
    lines.push(pair("Serves", text::count(server.machines as usize, "machine"), Role::Text));
    if let Some(limit) = server.limit_bytes_per_sec {
        lines.push(pair("May send", format!("{}/s, all machines together", text::bytes(limit)), Role::Text));
    }
    lines.push(pair(
        "Address",
        if server.address.is_empty() { "does not listen" } else { &server.address },
        Role::Muted,
    ));
    lines.push(pair("Last heard", text::near(server.last_seen_us, now), Role::Text));
    if server.certificate_expires_us > 0 {
        lines.push(pair("Certificate ends", text::moment(server.certificate_expires_us), Role::Muted));
    }
    lines.push(pair("Version", &server.version, Role::Muted));
    if let (Some(used), Some(most)) = (server.buffer_bytes, server.buffer_bytes_max) {
        let until = server.buffer_full_seconds.map(|seconds| format!(", full in {}", text::span(seconds)));
        let role = if until.is_some() { Role::Warn } else { Role::Text };
        let told = format!("{} of {}{}", text::bytes(used), text::bytes(most), until.unwrap_or_default());
        lines.push(pair("Buffer", told, role));
    }
    if let Some(free) = server.free_bytes {
        let until = server.volume_full_seconds.map(|seconds| format!(", full in {}", text::span(seconds)));
        let role = if until.is_some() { Role::Warn } else { Role::Text };
        lines.push(pair("Volume", format!("{} free{}", text::bytes(free), until.unwrap_or_default()), role));
    }
    for symptom in &server.symptoms {
        let (mark, role) =
            if symptom.severity == "critical" { (Mark::Fail, Role::Fail) } else { (Mark::Warn, Role::Warn) };
        said(&mut lines, "Needs a look", &canvas.marked(mark, &symptom.text), role, wide);
        said(&mut lines, "What to do", &symptom.remedy, Role::Text, wide);
    }
    lines
}
