//! Drawing a state. Changes nothing; only the rows that fit are made.
//!
//! Everything from outside passes `shown`; every state has a mark beside its colour; below 60×15 the console
//! says so.

use super::state::{ACTIONS, Connection, Dialog, Input, Screen, State, Tab};
use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The smallest terminal that is drawn on.
const MIN: (u16, u16) = (60, 15);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.width < MIN.0 || area.height < MIN.1 {
        let text = format!(
            "{}x{} is too small: at least {}x{} is needed. {}",
            area.width,
            area.height,
            MIN.0,
            MIN.1,
            connection(state)
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let [header, body, footer] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(3), Constraint::Length(2)]).areas(area);
    draw_header(frame, header, state);
    match state.screen {
        Screen::Pulse => pulse(frame, body, state),
        Screen::Sites => lines(frame, body, &sites(state)),
        Screen::Machines => machines(frame, body, state),
        Screen::Machine(tab) => machine(frame, body, state, tab),
        Screen::Jobs => jobs(frame, body, state),
        Screen::Run => run(frame, body, state),
        Screen::Alerts => alerts(frame, body, state),
        Screen::Servers => servers(frame, body, state),
    }
    draw_footer(frame, footer, state);
    if state.help {
        help(frame, body, state);
    }
    if let Some(dialog) = &state.dialog {
        confirm(frame, body, state, dialog);
    }
}

fn connection(state: &State) -> String {
    match &state.connection {
        Connection::Starting => state.lab.as_ref().map_or_else(
            || "connecting".into(),
            |stage| format!("lab: {} ({}/{})", shown(&stage.text), stage.done, stage.total),
        ),
        Connection::Live => "live".into(),
        Connection::Lost { .. } => format!("OFFLINE, data {} s old", state.silent_seconds),
    }
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let who = state.who.as_ref();
    let vault = who.map_or_else(String::new, |who| {
        format!(
            "{} | {} | {} ({})",
            shown(&who.environment),
            shown(&who.vault_name),
            shown(&who.name),
            shown(&who.role)
        )
    });
    let clock = if state.vault_time_us > 0 {
        Timestamp::from_micros(state.vault_time_us).to_string()[11..19].to_owned()
    } else {
        String::new()
    };
    let role = if matches!(state.connection, Connection::Lost { .. }) { "fail" } else { "muted" };
    let left = vec![Span::styled("Continuum", state.theme.style("title")), Span::raw(format!(" {vault} "))];
    let right =
        vec![Span::styled(connection(state), state.theme.style(role)), Span::raw(format!(" {clock}"))];
    let gap = usize::from(area.width).saturating_sub(left.iter().chain(&right).map(Span::width).sum());
    let mut line = left;
    line.push(Span::raw(" ".repeat(gap)));
    line.extend(right);
    let crumb = match state.screen {
        Screen::Pulse => "1 Pulse".to_owned(),
        Screen::Sites => "2 Sites".into(),
        Screen::Machines => "3 Machines".into(),
        Screen::Machine(tab) => {
            let name =
                state.machines.get(&state.machine).map_or_else(String::new, |machine| shown(&machine.name));
            let tabs = [
                (Tab::Overview, "Overview"),
                (Tab::Disks, "Disks"),
                (Tab::Points, "Points"),
                (Tab::Events, "Events"),
            ];
            let tabs: Vec<String> = tabs
                .iter()
                .map(|(other, text)| if *other == tab { format!("[{text}]") } else { (*text).to_owned() })
                .collect();
            format!("3 Machines > {name}   {}   Tab: next", tabs.join(" "))
        }
        Screen::Jobs => "5 Jobs".into(),
        Screen::Run => "5 Jobs > run".into(),
        Screen::Alerts => "6 Alerts".into(),
        Screen::Servers => "7 Servers".into(),
    };
    let banner = match (&state.connection, &state.banner) {
        (_, Some(banner)) => Some(banner.text.replace('\n', " ")),
        (Connection::Lost { why }, None) => Some(format!(
            "connection lost: {} - what you see is old; reconnecting by itself (r: now)",
            shown(why)
        )),
        _ => None,
    };
    let second = match banner {
        Some(text) => Line::styled(text, state.theme.style("danger")),
        None => Line::styled(crumb, state.theme.style("title")),
    };
    frame.render_widget(Paragraph::new(vec![Line::from(line), second]), area);
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let first = match (&state.input, &state.toast) {
        (Some(Input::Filter), _) => Line::raw(format!("/{}_", shown(&state.filter))),
        (Some(Input::Palette(line)), _) => {
            let hits: Vec<&str> = ACTIONS
                .iter()
                .map(|action| action.id)
                .filter(|id| id.starts_with(line.as_str()))
                .take(6)
                .collect();
            Line::raw(format!(":{}_   {}", shown(line), hits.join(" ")))
        }
        (None, Some((text, _))) => Line::styled(text.clone(), state.theme.style("key")),
        (None, None) if !state.filter.is_empty() => {
            Line::raw(format!("filter: {} (/ Esc clears)", shown(&state.filter)))
        }
        (None, None) => Line::raw(""),
    };
    let keys = match state.screen {
        Screen::Machine(Tab::Points) => {
            "left/right 1 s  [ ] 1 min  up/down point  t drill here  F fail over here  Esc back"
        }
        Screen::Machine(_) => {
            "t drill  C cleanup  v verify  b bookmark  F failover  M commit  Tab next  Esc back"
        }
        Screen::Run => "Esc back  C cleanup  y copy command",
        Screen::Jobs => "Enter open  / filter  Esc back",
        _ => "1-7 screens  Enter open  t drill  / filter  : command  ? help  q leave",
    };
    frame.render_widget(Paragraph::new(vec![first, Line::styled(keys, state.theme.style("muted"))]), area);
}

fn lines(frame: &mut Frame<'_>, area: Rect, lines: &[Line<'_>]) {
    let fits: Vec<Line<'_>> = lines.iter().take(area.height.into()).cloned().collect();
    frame.render_widget(Paragraph::new(fits), area);
}

/// A cell: cut or padded to its width by display cells.
fn cell(text: &str, width: usize) -> String {
    let text = shown(text);
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let cells = c.width().unwrap_or(0);
        if used + cells > width {
            while used + 1 > width && out.pop().is_some() {
                used = out.width();
            }
            out.push('~');
            return out;
        }
        out.push(c);
        used += cells;
    }
    out.push_str(&" ".repeat(width - used));
    out
}

fn seconds(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 10.0 => format!("{value:.1} s"),
        Some(value) if value < 120.0 => format!("{value:.0} s"),
        Some(value) if value < 7200.0 => format!("{:.0} min", value / 60.0),
        Some(value) => format!("{:.1} h", value / 3600.0),
    }
}

fn bytes(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |value| Bytes(value).to_string())
}

fn mark(state: &State, health: &str) -> (&'static str, &'static str) {
    match (health, state.ascii) {
        ("healthy" | "succeeded" | "ok", false) => ("●", "ok"),
        ("healthy" | "succeeded" | "ok", true) => ("+", "ok"),
        ("warning" | "warnings" | "running" | "waiting" | "queued" | "undoing", false) => ("▲", "warn"),
        ("warning" | "warnings" | "running" | "waiting" | "queued" | "undoing", true) => ("!", "warn"),
        ("critical" | "failed" | "cancelled" | "undo-failed", false) => ("✖", "fail"),
        ("critical" | "failed" | "cancelled" | "undo-failed", true) => ("X", "fail"),
        (_, false) => ("○", "muted"),
        (_, true) => ("o", "muted"),
    }
}

/// Rows of a list, windowed around the selection.
fn list(
    frame: &mut Frame<'_>,
    area: Rect,
    state: &State,
    name: &'static str,
    head: &str,
    rows: &[(String, String, &'static str)],
    empty: &str,
) {
    let mut out = vec![Line::styled(head.to_owned(), state.theme.style("muted"))];
    let room = usize::from(area.height).saturating_sub(1);
    let selected = state.selection(name).and_then(|id| rows.iter().position(|(other, ..)| other == id));
    let first = selected
        .map_or(0, |at| at.saturating_sub(room.saturating_sub(1) / 2))
        .min(rows.len().saturating_sub(room));
    for (at, (_, text, role)) in rows.iter().enumerate().skip(first).take(room) {
        let mut style = state.theme.style(role);
        if selected == Some(at) {
            style = style.patch(state.theme.style("selection"));
        }
        out.push(Line::styled(text.clone(), style));
    }
    if rows.is_empty() {
        out.push(Line::raw(empty.to_owned()));
    }
    frame.render_widget(Paragraph::new(out), area);
}

fn spark(state: &State, values: &[u64], width: usize) -> String {
    let steps: &[char] = if state.ascii {
        &['_', '.', ':', '-', '=', '+', '*', '#']
    } else {
        &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
    };
    let skip = values.len().saturating_sub(width);
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    values[skip..].iter().map(|value| steps[((value * 7).div_ceil(most) as usize).min(7)]).collect()
}

fn machine_row(state: &State, machine: &pb::Machine, wide: bool) -> (String, String, &'static str) {
    let (glyph, role) = mark(state, &machine.health);
    let test =
        if machine.test_state == "none" { String::new() } else { format!("test {}", machine.test_state) };
    let mode = if machine.paused { "paused" } else { &machine.mode };
    let mut text = format!(
        "{glyph} {} {} {} {} {} {} {}",
        cell(&machine.name, 16),
        cell(&machine.state, 14),
        cell(&seconds(machine.rpo_seconds), 7),
        cell(&seconds(machine.history_seconds), 8),
        cell(&format!("{}/s", bytes(machine.churn_bytes_per_sec)), 12),
        cell(mode, 11),
        test
    );
    if wide {
        text = format!(
            "{} {} p99 {} {}",
            cell(&text, 84),
            cell(&machine.target_site, 12),
            cell(&seconds(machine.rpo_p99_seconds), 7),
            spark(state, &machine.churn_recent, 40)
        );
    }
    (machine.id.clone(), text, role)
}

const MACHINE_HEAD: &str = "  NAME             STATE          RPO     HISTORY  CHURN        MODE        TEST";

fn machines(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows: Vec<_> = state
        .machine_rows()
        .into_iter()
        .map(|machine| machine_row(state, machine, area.width >= 140))
        .collect();
    list(
        frame,
        area,
        state,
        "machines",
        MACHINE_HEAD,
        &rows,
        "  no machine yet: agents tell the vault of theirs",
    );
}

fn pulse(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let open = state.alerts.values().filter(|alert| alert.cleared_us.is_none()).count();
    let all: Vec<&pb::Machine> = state.machines.values().filter(|machine| machine.protected).collect();
    let healthy = all.iter().filter(|machine| machine.health == "healthy").count();
    let worst = all
        .iter()
        .filter_map(|machine| machine.rpo_seconds)
        .fold(None, |worst: Option<f64>, rpo| Some(worst.map_or(rpo, |worst| worst.max(rpo))));
    let running = state
        .jobs
        .values()
        .filter(|job| matches!(job.state.as_str(), "running" | "waiting" | "queued"))
        .count();
    let (verdict, role) = match (&state.connection, all.is_empty()) {
        (Connection::Starting, _) => ("starting".to_owned(), "muted"),
        (_, true) => ("nothing is protected".into(), "warn"),
        _ if healthy == all.len() => ("everything is recoverable".into(), "ok"),
        _ => (format!("{} of {} machines need a look", all.len() - healthy, all.len()), "fail"),
    };
    let churn: u64 = all.iter().filter_map(|machine| machine.churn_bytes_per_sec).sum();
    let top = vec![
        Line::styled(
            format!("{} {verdict}", mark(state, if role == "ok" { "ok" } else { "warning" }).0),
            state.theme.style(role),
        ),
        Line::raw(format!(
            "{} protected, {healthy} healthy | worst RPO {} | churn {}/s | jobs running {running} | alerts open {open}",
            all.len(),
            seconds(worst),
            Bytes(churn)
        )),
        Line::raw(""),
    ];
    let [head, body] = Layout::vertical([Constraint::Length(3), Constraint::Min(1)]).areas(area);
    frame.render_widget(Paragraph::new(top), head);
    machines(frame, body, state);
}

fn sites(state: &State) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    for site in state.sites.values() {
        let kind = if site.recovery { "recovery site" } else { "source site" };
        out.push(Line::styled(
            format!("{} ({}, {kind})", shown(&site.name), shown(&site.fabric)),
            state.theme.style("title"),
        ));
        for server in
            state.servers.values().filter(|server| server.site == site.name && server.role != "agent")
        {
            out.push(Line::raw(format!(
                "  {} {} {}",
                mark(state, &server.health).0,
                server.role,
                shown(&server.name)
            )));
        }
        for machine in state.machines.values().filter(|machine| machine.site == site.name) {
            let what = if machine.protected {
                format!("{} -> {}", machine.state, shown(&machine.target_site))
            } else {
                "could be protected: press 3, then P".into()
            };
            let (glyph, role) = mark(state, &machine.health);
            out.push(Line::styled(
                format!("  {glyph} {} {} disk(s), {what}", cell(&machine.name, 16), machine.disks.len()),
                state.theme.style(role),
            ));
        }
        for machine in
            state.machines.values().filter(|machine| machine.target_site == site.name && machine.protected)
        {
            out.push(Line::styled(
                format!(
                    "    replica of {}: {} of history",
                    shown(&machine.name),
                    seconds(machine.history_seconds)
                ),
                state.theme.style("muted"),
            ));
        }
    }
    out
}

fn machine(frame: &mut Frame<'_>, area: Rect, state: &State, tab: Tab) {
    let Some(machine) = state.machines.get(&state.machine) else {
        lines(frame, area, &[Line::raw("this machine is gone")]);
        return;
    };
    match tab {
        Tab::Overview => lines(frame, area, &overview(state, machine, area.width.into())),
        Tab::Disks => lines(frame, area, &disks(machine)),
        Tab::Points => points(frame, area, state),
        Tab::Events => {
            let mine = state.events.iter().rev().filter(|event| event.object_id == machine.id);
            let rows: Vec<Line<'_>> = mine
                .map(|event| {
                    Line::raw(format!(
                        "{}  {}  ({})",
                        &Timestamp::from_micros(event.time_us).to_string()[..19],
                        shown(&event.text),
                        shown(&event.by)
                    ))
                })
                .collect();
            lines(frame, area, &rows);
        }
    }
}

fn moment(at: Option<i64>) -> String {
    at.map_or_else(|| "-".into(), |at| Timestamp::from_micros(at).to_string())
}

fn overview(state: &State, machine: &pb::Machine, width: usize) -> Vec<Line<'static>> {
    let (glyph, role) = mark(state, &machine.health);
    let mut out = vec![
        Line::styled(
            format!("{glyph} {} - {} {}", machine.health, machine.state, shown(&machine.state_reason)),
            state.theme.style(role),
        ),
        Line::raw(format!(
            "{} at {} -> {}, policy {}, epoch {}",
            shown(&machine.guest),
            shown(&machine.site),
            shown(&machine.target_site),
            shown(&machine.policy),
            machine.epoch
        )),
        Line::raw(""),
        Line::raw(format!(
            "RPO now {}   p50 {}   p99 {}   worst {} (24 h)",
            seconds(machine.rpo_seconds),
            seconds(machine.rpo_p50_seconds),
            seconds(machine.rpo_p99_seconds),
            seconds(machine.rpo_max_seconds)
        )),
        Line::raw(format!("newest received    {}", moment(machine.newest_received_us))),
        Line::raw(format!("newest recoverable {}", moment(machine.newest_point_us))),
        Line::raw(format!("oldest recoverable {}", moment(machine.oldest_point_us))),
        Line::raw(format!(
            "history {} of {} promised, {}, {} listed points",
            seconds(machine.history_seconds),
            seconds(machine.history_promised_seconds),
            bytes(machine.history_bytes),
            machine.points
        )),
        Line::raw(format!(
            "mode {} {}   not yet at the target {}   in flight {}",
            machine.mode,
            shown(&machine.mode_reason),
            bytes(machine.dirty_bytes),
            bytes(machine.in_flight_bytes)
        )),
        Line::raw(format!(
            "churn {}/s  {}",
            bytes(machine.churn_bytes_per_sec),
            spark(state, &machine.churn_recent, width.saturating_sub(30).min(60))
        )),
    ];
    for symptom in &machine.symptoms {
        out.push(Line::styled(
            format!(
                "{} {} - {}",
                mark(state, &symptom.severity).0,
                shown(&symptom.text),
                shown(&symptom.remedy)
            ),
            state.theme.style("warn"),
        ));
    }
    if let Some(test) = &machine.test {
        out.push(Line::raw(""));
        out.push(Line::styled(
            format!("test failover runs, as of {}", moment(test.point.as_ref().map(|point| point.time_us))),
            state.theme.style("title"),
        ));
        out.extend(test.probes.iter().map(|probe| {
            Line::raw(format!(
                "  {} {}: {}",
                mark(state, if probe.passed { "ok" } else { "failed" }).0,
                shown(&probe.name),
                shown(&probe.detail)
            ))
        }));
    }
    if let Some(up) = &machine.failed_over {
        out.push(Line::styled(
            format!(
                "failed over ({}), as of {}",
                up.kind,
                moment(up.point.as_ref().map(|point| point.time_us))
            ),
            state.theme.style("title"),
        ));
    }
    out.push(Line::raw(""));
    out.push(Line::styled(
        format!("possible now: {}", machine.orders.join(", ")),
        state.theme.style("muted"),
    ));
    out
}

fn disks(machine: &pb::Machine) -> Vec<Line<'static>> {
    let mut out = Vec::new();
    let mut add = |title: &str, disks: &[pb::Disk]| {
        if !disks.is_empty() {
            out.push(Line::raw(title.to_owned()));
        }
        out.extend(disks.iter().map(|disk| {
            Line::raw(format!(
                "  {} {}  {}",
                cell(&disk.name, 12),
                cell(&Bytes(disk.size_bytes).to_string(), 10),
                shown(&disk.endpoint)
            ))
        }));
    };
    add("at the source", &machine.disks);
    add("test failover", machine.test.as_ref().map_or(&[], |test| &test.disks));
    add("failed over", machine.failed_over.as_ref().map_or(&[], |up| &up.disks));
    out
}

fn points(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let Some(timeline) = &state.points.timeline else {
        lines(frame, area, &[Line::raw("asking the target for the history ...")]);
        return;
    };
    let width = usize::from(area.width).saturating_sub(2).clamp(10, 72);
    let (from, to) = (timeline.from_us, timeline.to_us.max(timeline.from_us + 1));
    let column = |at: i64| {
        (((at - from).max(0) as i128 * (width as i128 - 1) / i128::from(to - from)) as usize).min(width - 1)
    };
    let mut marks = vec![if state.ascii { '-' } else { '─' }; width];
    for gap in &timeline.gaps {
        marks[column(gap.from_us)..=column(gap.to_us)].fill(' ');
    }
    for point in timeline.points.iter().rev() {
        let proven = point
            .proofs
            .as_ref()
            .is_some_and(|proofs| proofs.probed == Some(true) || proofs.digest_equal == Some(true));
        marks[column(point.time_us)] = match (proven, point.kind.as_str()) {
            (true, _) => '#',
            (false, "bookmark") => 'B',
            (false, "app") => 'A',
            (false, _) => '|',
        };
    }
    let mut pointer = vec![' '; width];
    pointer[column(state.points.cursor_us)] = '^';
    let text = |chars: Vec<char>| chars.into_iter().collect::<String>();
    let short = |at: i64| Timestamp::from_micros(at).to_string()[11..19].to_owned();
    let mut out = vec![
        Line::raw(format!(
            "{} of history: {} to {} UTC",
            seconds(Some((timeline.newest_us - timeline.oldest_us) as f64 / 1e6)),
            short(timeline.oldest_us),
            short(timeline.newest_us)
        )),
        Line::styled(spark(state, &timeline.churn, width), state.theme.style("muted")),
        Line::raw(text(marks)),
        Line::styled(text(pointer), state.theme.style("key")),
        Line::raw("| crash point   B bookmark   A application   # proven   blank: a gap"),
        Line::raw(""),
        Line::styled(
            format!("cursor {}", Timestamp::from_micros(state.points.cursor_us)),
            state.theme.style("title"),
        ),
    ];
    if let Some((_, preview)) = state.points.preview.as_ref().filter(|(at, _)| *at == state.points.cursor_us)
    {
        out.push(Line::raw(format!(
            "brings up {}",
            moment(preview.point.as_ref().map(|point| point.time_us))
        )));
        out.push(Line::raw(format!(
            "gives up  {} and {} in {} writes, up to the newest change received",
            seconds(Some(preview.loss_seconds)),
            Bytes(preview.loss_bytes),
            preview.loss_records
        )));
        if let Some(gap) = &preview.gap {
            out.push(Line::styled(
                format!(
                    "this lies in a gap from {} to {}: {}",
                    moment(Some(gap.from_us)),
                    moment(Some(gap.to_us)),
                    shown(&gap.reason)
                ),
                state.theme.style("warn"),
            ));
        }
    } else {
        out.push(Line::raw("..."));
    }
    out.push(Line::raw(""));
    for point in timeline.points.iter().take(usize::from(area.height).saturating_sub(out.len())) {
        let proofs = point.proofs.unwrap_or_default();
        let proven: Vec<&str> =
            [(proofs.booted, "booted"), (proofs.probed, "probed"), (proofs.digest_equal, "digest-equal")]
                .iter()
                .filter(|(proof, _)| *proof == Some(true))
                .map(|(_, name)| *name)
                .collect();
        out.push(Line::raw(format!(
            "{}  {}  {}  {}",
            Timestamp::from_micros(point.time_us),
            cell(&point.kind, 9),
            cell(&point.name, 20),
            proven.join(" ")
        )));
    }
    lines(frame, area, &out);
}

fn jobs(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let row = |job: &pb::Job| {
        let (glyph, role) = mark(state, &job.state);
        let took = job.ended_us.map(|end| (end - job.created_us) as f64 / 1e6);
        let step = job.steps.last().map_or("", |step| step.name.as_str());
        let text = format!(
            "{glyph} {} {} {} {} {} {}",
            &Timestamp::from_micros(job.created_us).to_string()[11..19],
            cell(&job.kind, 14),
            cell(&job.machine, 16),
            cell(&job.state, 10),
            cell(&seconds(took), 8),
            shown(step)
        );
        (job.id.clone(), text, role)
    };
    let rows: Vec<_> = state.job_rows().into_iter().map(row).collect();
    list(
        frame,
        area,
        state,
        "jobs",
        "  TIME     KIND           MACHINE          STATE      TOOK     STEP",
        &rows,
        "  no job yet",
    );
}

fn run(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let Some(job) = state.jobs.get(&state.job) else {
        lines(frame, area, &[Line::raw("this job is no longer kept")]);
        return;
    };
    let (glyph, role) = mark(state, &job.state);
    let end = job.ended_us.unwrap_or_else(|| state.vault_time_us.max(job.created_us));
    let clock = (end - job.created_us) as f64 / 1e6;
    let forecast = job
        .forecast_seconds
        .map_or_else(String::new, |forecast| format!("   took {} before", seconds(Some(forecast))));
    let mut out = vec![
        Line::styled(
            format!(
                "{glyph} {} of {}: {}",
                job.kind.to_uppercase(),
                shown(&job.machine),
                job.state.to_uppercase()
            ),
            state.theme.style(role),
        ),
        Line::styled(
            format!(
                "  {}{forecast}   ordered by {} {}",
                seconds(Some(clock)),
                shown(&job.by),
                shown(&job.detail)
            ),
            state.theme.style("title"),
        ),
        Line::raw(""),
    ];
    for step in &job.steps {
        let (glyph, role) = mark(state, &step.state);
        let took = step.started_us.zip(step.ended_us).map(|(from, to)| (to - from) as f64 / 1e6);
        let progress = step
            .progress
            .filter(|_| step.ended_us.is_none())
            .map_or_else(String::new, |progress| format!(" {:.0} %", progress * 100.0));
        out.push(Line::styled(
            format!(
                "  {glyph} {} {} {}{progress}",
                cell(&step.name, 24),
                cell(&seconds(took), 7),
                shown(&step.detail)
            ),
            state.theme.style(role),
        ));
    }
    for outcome in &job.machines {
        out.push(Line::raw(""));
        out.push(Line::raw(format!("  as of {}", moment(outcome.point.as_ref().map(|point| point.time_us)))));
        out.push(Line::raw(format!(
            "  answered {} after the order; given up {} and {}",
            seconds(outcome.rto_seconds),
            seconds(outcome.loss_seconds),
            bytes(outcome.loss_bytes)
        )));
        if !outcome.note.is_empty() {
            out.push(Line::styled(format!("  {}", shown(&outcome.note)), state.theme.style("warn")));
        }
        out.extend(outcome.probes.iter().map(|probe| {
            let (glyph, role) = mark(state, if probe.passed { "ok" } else { "failed" });
            Line::styled(
                format!("  {glyph} probe {}: {}", shown(&probe.name), shown(&probe.detail)),
                state.theme.style(role),
            )
        }));
        out.extend(
            outcome
                .disks
                .iter()
                .map(|disk| Line::raw(format!("  {} at {}", shown(&disk.name), shown(&disk.endpoint)))),
        );
    }
    for disk in &job.verified {
        let (glyph, role) = mark(state, if disk.equal { "ok" } else { "failed" });
        out.push(Line::styled(
            format!(
                "  {glyph} {} {} {}",
                shown(&disk.name),
                disk.source_digest,
                if disk.equal { "equal" } else { "DIFFERENT" }
            ),
            state.theme.style(role),
        ));
    }
    if let Some(fault) = &job.fault {
        out.push(Line::raw(""));
        out.push(Line::styled(
            format!("  {} [{}]", shown(&fault.message), shown(&fault.code)),
            state.theme.style("fail"),
        ));
        out.push(Line::raw(format!("  next: {}", shown(&fault.remedy))));
    }
    lines(frame, area, &out);
}

fn alerts(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let row = |alert: &pb::Alert| {
        let open = alert.cleared_us.is_none();
        let (glyph, role) = mark(state, if open { &alert.severity } else { "" });
        let when = if open { "open   " } else { "cleared" };
        let text = format!(
            "{glyph} {when} {} {} {} - {}",
            &Timestamp::from_micros(alert.opened_us).to_string()[11..19],
            cell(&alert.object, 16),
            shown(&alert.text),
            shown(&alert.remedy)
        );
        (alert.id.clone(), text, role)
    };
    let rows: Vec<_> = state.alert_rows().into_iter().map(row).collect();
    list(
        frame,
        area,
        state,
        "alerts",
        "  STATE   SINCE    WHAT             WHAT HAPPENED - WHAT TO DO",
        &rows,
        "  no alert: nothing needs you",
    );
}

fn servers(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let row = |server: &pb::Server| {
        let (glyph, role) = mark(state, if server.connected { "healthy" } else { "critical" });
        let cpu = server.cpu_percent.map_or_else(|| "-".into(), |cpu| format!("{cpu:.0} %"));
        let text = format!(
            "{glyph} {} {} {} {} {} {} {}",
            cell(&server.role, 15),
            cell(&server.name, 14),
            cell(&server.site, 10),
            cell(&cpu, 6),
            cell(&bytes(server.memory_bytes), 10),
            cell(&bytes(server.buffer_bytes), 10),
            if server.connected { "connected" } else { "not connected" }
        );
        (server.id.clone(), text, role)
    };
    let rows: Vec<_> = state.server_rows().into_iter().map(row).collect();
    list(
        frame,
        area,
        state,
        "servers",
        "  ROLE            NAME           SITE       CPU    MEMORY     BUFFER",
        &rows,
        "  no server yet",
    );
}

fn popup(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}

fn help(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let area = popup(area, 70, ACTIONS.len() as u16 + 2);
    let rows: Vec<Line<'_>> = ACTIONS
        .iter()
        .map(|action| {
            Line::from(vec![
                Span::styled(format!(" {:<3}", action.key), state.theme.style("key")),
                Span::raw(format!("{:<14} {}", action.id, action.label)),
            ])
        })
        .collect();
    frame.render_widget(Clear, area);
    frame.render_widget(
        Paragraph::new(rows).block(Block::bordered().title(" keys and commands (:) - any key closes ")),
        area,
    );
}

fn confirm(frame: &mut Frame<'_>, area: Rect, state: &State, dialog: &Dialog) {
    let area = popup(area, 76, 18);
    let mut out = Vec::new();
    match &dialog.report {
        None => out.push(Line::raw("asking what would happen ...   Esc: never mind")),
        Some(report) => {
            out.push(Line::styled(
                shown(&report.summary),
                state.theme.style(if report.destroys { "danger" } else { "title" }),
            ));
            out.push(Line::raw(""));
            for check in &report.checks {
                let (glyph, role) = mark(state, &check.state);
                out.push(Line::styled(
                    format!(
                        "{glyph} {}: {} {}",
                        shown(&check.name),
                        shown(&check.detail),
                        shown(&check.remedy)
                    ),
                    state.theme.style(role),
                ));
            }
            if let Some(preview) = &report.preview {
                out.push(Line::raw(format!(
                    "gives up {} and {}",
                    seconds(Some(preview.loss_seconds)),
                    Bytes(preview.loss_bytes)
                )));
            }
            if let Some(forecast) = report.forecast_seconds {
                out.push(Line::raw(format!("took {} before", seconds(Some(forecast)))));
            }
            out.push(Line::raw(""));
            out.push(Line::styled(shown(&report.command), state.theme.style("muted")));
            out.push(Line::raw(""));
            let question = if !report.ready {
                "not ready: nothing can be ordered.   Esc: close".to_owned()
            } else if dialog.verb == "bookmark" {
                format!("name of the bookmark: {}_   Enter: set   Esc: never mind", shown(&dialog.typed))
            } else if report.confirm.is_empty() {
                "y: do it   n or Esc: never mind".into()
            } else {
                format!(
                    "type {} to agree: {}_   Enter: do it   Esc: never mind",
                    shown(&report.confirm),
                    shown(&dialog.typed)
                )
            };
            out.push(Line::styled(question, state.theme.style("key")));
        }
    }
    frame.render_widget(Clear, area);
    let title = format!(" {} {} ", dialog.verb, shown(&dialog.name));
    frame.render_widget(
        Paragraph::new(out).wrap(Wrap { trim: false }).block(Block::bordered().title(title)),
        area,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tui::state::{Ask, News};
    use crate::tui::theme::Theme;
    use continuum_proto::v1::watch_event::Event;
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use proptest::prelude::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn state() -> State {
        let mut state = State::new(Theme::named("default", true).unwrap(), false);
        let machine = |id: &str, name: &str, health: &str| pb::Machine {
            id: id.into(),
            name: name.into(),
            site: "primary".into(),
            target_site: "secondary".into(),
            protected: true,
            state: "protected".into(),
            mode: "data".into(),
            health: health.into(),
            rpo_seconds: Some(0.4),
            history_seconds: Some(300.0),
            churn_bytes_per_sec: Some(250_000),
            test_state: "none".into(),
            orders: vec!["test-failover".into()],
            ..Default::default()
        };
        let entities = [
            machine("1", "web-01", "healthy"),
            machine("2", "db\u{1b}]52;c;eA==\u{7}\u{202e}\n-01", "critical"),
        ];
        let mut events = vec![Event::SnapshotBegin(pb::SnapshotBegin::default())];
        events.extend(entities.map(|machine| {
            Event::Changed(pb::Entity { entity: Some(pb::entity::Entity::Machine(machine)) })
        }));
        events.extend([
            Event::SnapshotEnd(pb::SnapshotEnd {}),
            Event::Tick(pb::Tick { vault_time_us: 1_700_000_000_000_000 }),
        ]);
        let events =
            events.into_iter().map(|event| pb::WatchEvent { sequence: 1, event: Some(event) }).collect();
        state.news(News::Watch(Box::new(crate::link::watch::News::Events(events))));
        state.connection = Connection::Live;
        state
    }

    fn press(state: &mut State, code: KeyCode) -> Vec<Ask> {
        state.key(KeyEvent::new(code, KeyModifiers::NONE))
    }

    fn picture(state: &State, width: u16, height: u16) -> (String, ratatui::buffer::Buffer) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = (0..height).map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>());
        (rows.collect::<Vec<_>>().join("\n"), buffer)
    }

    #[test]
    fn every_screen_draws_at_every_size_and_shows_nothing_dangerous() {
        let mut state = state();
        for key in ['1', '2', '3', '5', '6', '7', '?'] {
            press(&mut state, KeyCode::Char(key));
            for (width, height) in [(80, 24), (120, 40), (200, 50), (60, 15), (50, 12), (1, 1)] {
                let (text, _) = picture(&state, width, height);
                assert!(
                    !text.chars().any(|c| c != '\n' && continuum_model::untrusted::is_dangerous(c)),
                    "{key} at {width}x{height}"
                );
            }
        }
        let (text, _) = picture(&state, 50, 12);
        assert!(text.contains("too small"));
    }

    #[test]
    fn the_worst_comes_first_and_is_told_by_a_mark_and_by_colour() {
        let mut state = state();
        press(&mut state, KeyCode::Char('3'));
        let (text, buffer) = picture(&state, 80, 24);
        let row = text.lines().position(|line| line.contains('✖')).unwrap();
        assert!(text.lines().position(|line| line.contains("web-01")).unwrap() > row);
        assert_eq!(buffer[(0, row as u16)].fg, ratatui::style::Color::Red);
        state.ascii = true;
        let (text, _) = picture(&state, 80, 24);
        // What the name itself holds is shown as control pictures; everything of ours is ASCII.
        let ours = |c: char| c.is_ascii() || ('\u{2400}'..='\u{2421}').contains(&c);
        assert!(text.chars().all(ours), "ASCII marks only: {text}");
    }

    #[test]
    fn the_selection_stays_on_its_machine_when_the_order_changes() {
        let mut state = state();
        press(&mut state, KeyCode::Char('3'));
        press(&mut state, KeyCode::Down);
        press(&mut state, KeyCode::Down);
        assert_eq!(state.target_machine().unwrap().id, "1");
        state.machines.get_mut("1").unwrap().health = "critical".into();
        assert_eq!(state.target_machine().unwrap().id, "1");
    }

    #[test]
    fn a_paste_or_a_wrong_name_confirms_nothing() {
        let mut state = state();
        state.dialog = Some(Dialog {
            machine: "1".into(),
            name: "web-01".into(),
            verb: "failover".into(),
            point: String::new(),
            report: Some(pb::ReadinessReply {
                ready: true,
                confirm: "web-01".into(),
                destroys: true,
                ..Default::default()
            }),
            typed: String::new(),
        });
        state.paste("web-01\n");
        assert!(press(&mut state, KeyCode::Enter).is_empty() && state.dialog.is_some());
        "web-02".chars().for_each(|c| drop(press(&mut state, KeyCode::Char(c))));
        assert!(press(&mut state, KeyCode::Enter).is_empty());
        press(&mut state, KeyCode::Backspace);
        press(&mut state, KeyCode::Char('1'));
        assert!(matches!(press(&mut state, KeyCode::Enter).as_slice(), [Ask::Order(_)]));
    }

    #[test]
    fn a_lost_connection_keeps_what_is_known_and_orders_nothing() {
        let mut state = state();
        press(&mut state, KeyCode::Char('3'));
        press(&mut state, KeyCode::Down);
        state.connection = Connection::Lost { why: "gone".into() };
        press(&mut state, KeyCode::Char('t'));
        assert!(state.dialog.is_none());
        let (text, _) = picture(&state, 80, 24);
        assert!(text.contains("OFFLINE") && text.contains("web-01") && text.contains("reconnecting"));
    }

    proptest! {
        #[test]
        fn no_keys_reach_an_order_without_a_dialog_that_was_answered(keys in proptest::collection::vec(any::<char>(), 0..60)) {
            let mut state = state();
            for key in keys {
                for ask in press(&mut state, KeyCode::Char(key)) {
                    let ordered = matches!(ask, Ask::Order(_));
                    prop_assert!(!ordered);
                }
                state.leaving = false;
            }
        }
    }
}
