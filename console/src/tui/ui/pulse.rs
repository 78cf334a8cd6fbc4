//! Pulse: is everything recoverable right now, and what needs me.

use super::super::core::layout;
use super::super::core::rows::{machine_state, severity};
use super::super::core::state::{State, TableKind};
use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, Line, span, sparkline};
use continuum_proto::v1 as pb;
use ratatui::layout::Rect;

/// The answer, the numbers, the machines worst first, and what needs a person.
pub fn draw(state: &State, canvas: &mut Canvas<'_>, area: Rect) {
    let inside = area.width.saturating_sub(2);
    for (y, line) in (area.y..).zip(answer(state, canvas, usize::from(inside))) {
        canvas.put_line(area.x + 1, y, inside, &line);
    }
    let over = layout::over_table(state);
    canvas.rule(area.x, area.y + over - 1, area.width, "Machines, worst first");
    let under = layout::under_table(state);
    let table = Rect { y: area.y + over, height: area.height.saturating_sub(over + under), ..area };
    super::rows(state, TableKind::Pulse, canvas, table);
    canvas.rule(area.x, table.bottom(), area.width, "Needs you");
    let rest = Rect::new(area.x + 1, table.bottom() + 1, inside, under.saturating_sub(1));
    let lines = needs(state, canvas);
    let shown = usize::from(rest.height);
    canvas.put_lines(rest, &lines[..lines.len().min(shown)], 0);
    if lines.len() > shown && rest.height > 0 {
        let more = format!(" {} more: 6 shows all alerts ", lines.len() - shown + 1);
        canvas.put(
            rest.x,
            rest.bottom() - 1,
            rest.width,
            &format!("{more:<width$}", width = shown),
            Role::Muted,
        );
    }
}

fn answer(state: &State, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let machines: Vec<&pb::Machine> = state.estate.machines.iter().collect();
    let protected: Vec<&pb::Machine> = machines.iter().copied().filter(|machine| machine.protected).collect();
    let at = |health: u8| protected.iter().filter(|machine| severity(&machine.health) == health).count();
    let (critical, warning) = (at(0), at(1));
    let copying = protected
        .iter()
        .filter(|machine| machine.oldest_point_us.is_none() && machine.newest_point_us.is_none());
    let without = copying.count();
    let (mark, role, said) = match (protected.len(), critical, without, warning) {
        (0, ..) => (
            Mark::Unknown,
            Role::Muted,
            "nothing is protected yet: choose a machine (3), then a, p".to_owned(),
        ),
        (_, 0, 0, 0) => (Mark::Ok, Role::Ok, "everything protected is recoverable".into()),
        (_, 0, 0, n) => (Mark::Warn, Role::Warn, format!("recoverable; {} a look", needs_of(n))),
        (_, 0, n, _) => {
            (Mark::Busy, Role::Busy, format!("{} not recoverable yet: the first copy is under way", are(n)))
        }
        (_, n, ..) => (Mark::Fail, Role::Fail, format!("{} help now", needs_of(n))),
    };
    let mut first = vec![span(canvas.marked(mark, &said), role)];
    let drills = machines
        .iter()
        .filter(|machine| !machine.test_state.is_empty() && machine.test_state != "none")
        .count();
    if drills > 0 {
        first.push(span(format!("   {} up", text::count(drills, "drill")), Role::Drill));
    }
    let worst = protected
        .iter()
        .filter_map(|machine| Some((machine.rpo_seconds?, *machine)))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let churn: u64 = protected.iter().filter_map(|machine| machine.churn_bytes_per_sec).sum();
    let shortest = protected.iter().filter_map(|machine| machine.history_seconds).min_by(f64::total_cmp);
    let unprotected = machines.len() - protected.len();
    let mut second = vec![span(format!("{} protected", text::count(protected.len(), "machine")), Role::Text)];
    if unprotected > 0 {
        second.push(span(format!(", {unprotected} not"), Role::Warn));
    }
    if let Some((rpo, machine)) = worst {
        let whose = if protected.len() > 1 {
            format!(" ({})", text::fit(&machine.name, 20, canvas.theme.ellipsis()))
        } else {
            String::new()
        };
        let whose = match machine.spikes.first().filter(|spike| spike.ended_us.is_none()) {
            Some(spike) => format!("{whose} by {}", spike.hop),
            None => whose,
        };
        second.push(span(format!("   worst RPO {}{whose}", text::span(rpo)), Role::Text));
    }
    second.push(span(format!("   churn {}", text::rate(churn)), Role::Text));
    if let Some(history) = shortest {
        second.push(span(format!("   history {}", text::span(history)), Role::Text));
    }
    // What does not fit as a whole is left out.
    let room = usize::from(canvas.buffer.area.width).saturating_sub(2);
    while second.len() > 1 && second.iter().map(|part| text::width(&part.text)).sum::<usize>() > room {
        second.pop();
    }
    let sum = |pick: fn(&pb::Machine) -> &[u64]| -> Vec<u64> {
        let longest = protected.iter().map(|machine| pick(machine).len()).max().unwrap_or(0);
        (0..longest)
            .map(|back| {
                protected
                    .iter()
                    .filter_map(|machine| {
                        let all = pick(machine);
                        all.len().checked_sub(longest - back).and_then(|at| all.get(at))
                    })
                    .sum()
            })
            .collect()
    };
    let churn_recent = sum(|machine| &machine.churn_recent);
    // The worst of all machines at each time, in milliseconds.
    let longest = protected.iter().map(|machine| machine.rpo_recent.len()).max().unwrap_or(0);
    let rpo_recent: Vec<u64> = (0..longest)
        .map(|back| {
            let values = protected.iter().filter_map(|machine| {
                machine.rpo_recent.len().checked_sub(longest - back).and_then(|at| machine.rpo_recent.get(at))
            });
            (values.copied().fold(0.0, f64::max) * 1000.0) as u64
        })
        .collect();
    let cells = (wide.saturating_sub(30) / 2).min(60);
    let chart = |label: &str, values: &[u64]| -> Line {
        let drawn = sparkline(values, cells, canvas.theme.ascii);
        let pad = cells.saturating_sub(text::width(&drawn));
        vec![span(format!("{label} "), Role::Muted), span(format!("{}{drawn}", " ".repeat(pad)), Role::Chart)]
    };
    let mut third = chart("RPO 5 min", &rpo_recent);
    third.push(span("   ", Role::Text));
    third.extend(chart("churn 5 min", &churn_recent));
    vec![first, second, third]
}

fn needs_of(n: usize) -> String {
    if n == 1 { "1 machine needs".into() } else { format!("{n} machines need") }
}

fn are(n: usize) -> String {
    if n == 1 { "1 machine is".into() } else { format!("{n} machines are") }
}

/// Alerts that are open, then what machines and servers say of themselves, then jobs under way.
fn needs(state: &State, canvas: &Canvas<'_>) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for alert in state.estate.open_alerts() {
        let (mark, role) = super::super::core::rows::alert_tone(alert);
        let said = canvas.marked(mark, &format!("{}: {}", alert.object, alert.text));
        lines.push(vec![
            span(said, role),
            span(
                if alert.remedy.is_empty() { String::new() } else { format!("  {}", alert.remedy) },
                Role::Muted,
            ),
        ]);
    }
    // An alert about RPO says the same once it is exceeded.
    let alerts = state.estate.open_alerts();
    let known = |machine: &pb::Machine| {
        alerts.iter().any(|alert| alert.object_id == machine.id && alert.code == "rpo.exceeded")
    };
    let mut spikes: Vec<(&pb::Machine, &pb::Spike)> = state
        .estate
        .machines
        .iter()
        .filter_map(|machine| {
            Some((machine, machine.spikes.first().filter(|spike| spike.ended_us.is_none())?))
        })
        .filter(|(machine, _)| !known(machine))
        .collect();
    spikes.sort_by(|a, b| b.1.worst_seconds.total_cmp(&a.1.worst_seconds));
    for (machine, spike) in spikes {
        let rpo = machine.rpo_seconds.unwrap_or(spike.worst_seconds);
        let said = format!("{}: RPO {} ({})", machine.name, text::span(rpo), spike.hop);
        lines.push(vec![
            span(canvas.marked(Mark::Warn, &said), Role::Warn),
            span(format!("  {}", spike.cause), Role::Muted),
        ]);
    }
    for job in state.estate.running_jobs() {
        let title = super::super::core::rows::job_title(job);
        let now = super::super::core::rows::job_now(job);
        lines.push(vec![
            span(canvas.marked(Mark::Busy, &title), Role::Busy),
            span(format!("  {now}"), Role::Muted),
        ]);
    }
    for machine in state.estate.machines.iter().filter(|machine| machine.state == "commit-pending") {
        let (words, _) = machine_state(machine);
        lines.push(vec![
            span(canvas.marked(Mark::Warn, &format!("{} is {words}", machine.name)), Role::Warn),
            span("  look at it there, then commit (a, c)", Role::Muted),
        ]);
    }
    if lines.is_empty() {
        lines.push(vec![span("nothing", Role::Muted)]);
    }
    lines
}
