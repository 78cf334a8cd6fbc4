//! A job at full size: the clock, the steps, what came of it, and what can be done now.

use super::super::core::estate::is_over;
use super::super::core::rows::{job_seconds, job_title};
use super::super::core::state::State;
use super::super::core::text;
use super::super::core::tone::{Mark, Role, of_state};
use super::canvas::{Canvas, Line, bar, big, span};
use super::machine::said;
use super::pair;
use continuum_proto::v1 as pb;
use ratatui::layout::Rect;

/// From so many lines on the clock is drawn large.
const LARGE_FROM: u16 = 26;

/// Draws the run screen.
pub fn draw(state: &State, job: &pb::Job, canvas: &mut Canvas<'_>, area: Rect) {
    let inner = Rect { x: area.x + 1, width: area.width.saturating_sub(2), ..area };
    let wide = usize::from(inner.width);
    let (mark, role) = of_state(&job.state);
    let title = canvas.marked(mark, &format!("{}: {}", capital(&job_title(job)), job.state));
    canvas.put(inner.x, inner.y, inner.width, &title, role);
    let took = job_seconds(job, state.vault_now());
    let clock = took.map_or_else(|| text::UNKNOWN.to_owned(), minutes);
    let mut y = inner.y + 1;
    if area.height >= LARGE_FROM {
        for (row, line) in (y + 1..).zip(big(&clock, canvas.theme.ascii)) {
            canvas.put(inner.x + 1, row, inner.width, &line, role);
        }
        y += 7;
    } else {
        canvas.put_right(inner.x, inner.y, inner.width, &clock, role);
    }
    let mut lines: Vec<Line> = vec![vec![span(objective(job, took), Role::Muted)]];
    let detail = if job.detail.is_empty() { String::new() } else { format!("  {}", job.detail) };
    lines.push(vec![span(
        format!("ordered by {} at {} UTC{detail}", job.by, text::clock(job.created_us)),
        Role::Muted,
    )]);
    if !job.waiting_for.is_empty() {
        lines.push(vec![span(
            canvas.marked(Mark::Warn, &format!("waits for {}", job.waiting_for)),
            Role::Warn,
        )]);
    }
    lines.push(Line::new());
    for step in &job.steps {
        step_lines(&mut lines, state, step, canvas, wide);
    }
    outcome(&mut lines, job, canvas, wide);
    next(&mut lines, job);
    let rest = Rect { y, height: area.bottom().saturating_sub(y), ..inner };
    // What is under way stays in sight while it grows; when it is over it is read from its top.
    let from = if is_over(job) {
        state.scroll
    } else {
        lines.len().saturating_sub(usize::from(rest.height)).saturating_sub(state.scroll)
    };
    if canvas.put_lines(rest, &lines, from) {
        canvas.put_right(rest.x, rest.bottom() - 1, rest.width, " more below: j ", Role::Muted);
    }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn minutes(seconds: f64) -> String {
    let tenths = (seconds.max(0.0) * 10.0) as u64;
    let (whole, tenth) = (tenths / 10, tenths % 10);
    if whole >= 3600 {
        return format!("{}:{:02}:{:02}", whole / 3600, whole % 3600 / 60, whole % 60);
    }
    format!("{:02}:{:02}.{tenth}", whole / 60, whole % 60)
}

fn objective(job: &pb::Job, took: Option<f64>) -> String {
    let mut told = Vec::new();
    if let Some(objective) = job.rto_objective_seconds {
        let left = objective - took.unwrap_or(0.0);
        let said = if left >= 0.0 {
            format!("{} left", text::span(left))
        } else {
            format!("{} over", text::span(-left))
        };
        told.push(format!("objective {} ({said})", text::span(objective)));
    }
    if let Some(forecast) = job.forecast_seconds {
        told.push(format!("took {} last time", text::span(forecast)));
    }
    if told.is_empty() { "no objective is set".into() } else { told.join(", ") }
}

fn step_lines(lines: &mut Vec<Line>, state: &State, step: &pb::Step, canvas: &Canvas<'_>, wide: usize) {
    let (mark, role) = of_state(&step.state);
    let name = text::fit(&step.name.replace('-', " "), 22, canvas.theme.ellipsis());
    let pad = " ".repeat(24_usize.saturating_sub(text::width(&name)));
    let took = step.started_us.map(|began| {
        step.ended_us.unwrap_or_else(|| state.vault_now()).saturating_sub(began).max(0) as f64 / 1e6
    });
    let took = took.map_or_else(String::new, text::span);
    let text_role = if matches!(role, Role::Fail | Role::Busy) { role } else { Role::Text };
    let head = vec![
        span(
            canvas.marked(mark, &format!("{name}{pad}")),
            if role == Role::Ok { Role::Ok } else { text_role },
        ),
        span(format!("{took:>9}  "), Role::Muted),
    ];
    let mut detail = step.detail.clone();
    if let Some(progress) = step.progress.filter(|_| step.state == "running") {
        detail = format!("{} {:.0}% {detail}", bar(progress, 16, canvas.theme.ascii), progress * 100.0);
    }
    let mut first = head;
    for (n, line) in text::wrap(&detail, wide.saturating_sub(38).max(20)).into_iter().enumerate() {
        if n == 0 {
            first.push(span(line, text_role));
            lines.push(std::mem::take(&mut first));
        } else {
            lines.push(vec![span(" ".repeat(37), Role::Text), span(line, text_role)]);
        }
    }
}

fn outcome(lines: &mut Vec<Line>, job: &pb::Job, canvas: &Canvas<'_>, wide: usize) {
    if let Some(fault) = &job.fault {
        lines.push(Line::new());
        said(lines, "Failed", &fault.message, Role::Fail, wide);
        for (label, told) in [
            ("Affected", &fault.affected),
            ("Not affected", &fault.unaffected),
            ("What to do", &fault.remedy),
        ] {
            if !told.is_empty() {
                said(lines, label, told, Role::Text, wide);
            }
        }
    }
    for machine in &job.machines {
        lines.push(Line::new());
        if job.machines.len() > 1 || job.machine.starts_with("plan/") {
            lines.push(pair("Machine", &machine.name, Role::Title));
        }
        if let Some(point) = &machine.point {
            lines.push(pair(
                "As of",
                format!("{} UTC ({})", text::exact(point.time_us), point.kind),
                Role::Text,
            ));
        }
        if !machine.note.is_empty() {
            said(lines, "Note", &machine.note, Role::Warn, wide);
        }
        if let Some(rto) = machine.rto_seconds {
            let loss = machine.loss_seconds.map_or(String::new(), |loss| {
                format!("; given up {}, {}", text::span(loss), text::bytes(machine.loss_bytes.unwrap_or(0)))
            });
            lines.push(pair("Answered after", format!("{}{loss}", text::span(rto)), Role::Title));
        }
        for probe in &machine.probes {
            let (mark, role) = if probe.passed { (Mark::Ok, Role::Ok) } else { (Mark::Fail, Role::Fail) };
            said(
                lines,
                "Probe",
                &format!("{}: {}", canvas.marked(mark, &probe.name), probe.detail),
                role,
                wide,
            );
        }
        for disk in &machine.disks {
            said(
                lines,
                "Disk",
                &format!("{} ({}) at {}", disk.name, text::bytes(disk.size_bytes), disk.endpoint),
                Role::Muted,
                wide,
            );
        }
    }
    for disk in &job.verified {
        let (mark, role, word) =
            if disk.equal { (Mark::Ok, Role::Ok, "equal") } else { (Mark::Fail, Role::Fail, "DIFFERENT") };
        said(lines, "Compared", &format!("{}: {word}", canvas.marked(mark, &disk.name)), role, wide);
        said(
            lines,
            "",
            &format!("source {} replica {}", disk.source_digest, disk.replica_digest),
            Role::Muted,
            wide,
        );
    }
}

/// What can be done now.
fn next(lines: &mut Vec<Line>, job: &pb::Job) {
    let said = match (job.kind.as_str(), job.state.as_str()) {
        (_, "queued" | "running") if !job.waiting_for.is_empty() && job.kind.starts_with("plan-") => {
            "do it, then a, g lets the run go on; a, k cancels it"
        }
        ("plan-test-failover" | "plan-failover", "queued" | "running") => {
            "a, k ends it after what is under way; what was brought up stays up"
        }
        (_, "queued" | "running" | "undoing") if job.may_cancel => {
            "a, k cancels and undoes it; leaving does not stop it"
        }
        (_, "queued" | "running" | "undoing") => "leaving this screen, or the console, does not stop it",
        ("test-failover", "succeeded" | "warnings") => {
            "it runs until you end it: a, x cleans up; Enter shows the machine"
        }
        ("failover", "succeeded" | "warnings") => {
            "look at it there; then a, c commits; Enter shows the machine"
        }
        ("change-point", "succeeded" | "warnings") => {
            "look at it there; then a, c commits, or a, i takes another one; Enter shows the machine"
        }
        ("commit", "succeeded" | "warnings") => {
            "a, R brings it to its old source, so that it can come home; Enter shows the machine"
        }
        ("reprotect", "succeeded" | "warnings") => {
            "the old source follows; a, h brings the machine home; Enter shows the machine"
        }
        ("plan-test-failover", "succeeded" | "warnings") => {
            "it runs until you end it: 4, then a, x cleans all of it up"
        }
        (_, "failed") if job.may_retry => "mend the cause; then a, j runs it again",
        _ => "Esc goes back; Enter shows the machine",
    };
    lines.push(Line::new());
    lines.push(pair("Next", said, Role::Muted));
}
