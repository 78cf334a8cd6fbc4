//! The history of a machine, drawn: churn, points, gaps, the cursor, and what its moment would give up.

use super::super::core::state::State;
use super::super::core::text;
use super::super::core::timeline::{Preview, Timeline};
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, Line, histogram, span};
use super::pair;
use continuum_proto::v1 as pb;
use ratatui::layout::Rect;

/// Lines that are not the histogram: labels, marks, axis, and what is known of the moment.
const AROUND: u16 = 14;

/// Draws the Points tab.
pub fn draw(state: &State, machine: &pb::Machine, canvas: &mut Canvas<'_>, area: Rect) {
    let Some(timeline) = &state.timeline else { return };
    let inner = Rect { x: area.x + 1, width: area.width.saturating_sub(2), ..area };
    if let (None, Some(fault)) = (&timeline.reply, &timeline.fault) {
        let wide = usize::from(inner.width);
        let lines: Vec<Line> = [(&fault.message, Role::Fail), (&fault.remedy, Role::Text)]
            .into_iter()
            .flat_map(|(said, role)| {
                text::wrap(said, wide).into_iter().map(move |line| vec![span(line, role)])
            })
            .collect();
        canvas.put_lines(Rect { y: inner.y + 1, ..inner }, &lines, 0);
        return;
    }
    let high = area.height.saturating_sub(AROUND).clamp(2, 12);
    let mut y = inner.y;
    heading(timeline, canvas, inner, y);
    y += 1;
    let churn = timeline.reply.as_ref().map_or(&[][..], |reply| &reply.churn);
    for row in histogram(&spread(churn, inner.width), high, canvas.theme.ascii) {
        canvas.put(inner.x, y, inner.width, &row, Role::Chart);
        y += 1;
    }
    axis(timeline, canvas, inner, y);
    labels(timeline, canvas, inner, y + 1);
    cursor(timeline, canvas, inner, y);
    y += 3;
    let rest = Rect { y, height: area.bottom().saturating_sub(y), ..inner };
    let lines = moment(state, machine, timeline, canvas, usize::from(inner.width));
    canvas.put_lines(rest, &lines, 0);
}

fn heading(timeline: &Timeline, canvas: &mut Canvas<'_>, inner: Rect, y: u16) {
    let length = text::span(timeline.length() as f64 / 1e6);
    let points = timeline.points().len();
    let gaps = timeline.reply.as_ref().map_or(0, |reply| reply.gaps.len());
    let mut line = vec![
        span("Churn", Role::Title),
        span(format!("  {length} shown, {}, ", text::count(points, "point")), Role::Muted),
        span(text::count(gaps, "gap"), if gaps > 0 { Role::Warn } else { Role::Muted }),
    ];
    if timeline.fault.is_some() {
        line.push(span("  not up to date: the vault did not answer", Role::Stale));
    }
    canvas.put_line(inner.x, y, inner.width, &line);
    let step = format!("moves by {} (m)", timeline.step.name());
    canvas.put_right(inner.x, y, inner.width, &step, Role::Muted);
}

/// Buckets as they came, spread over as many columns.
fn spread(churn: &[u64], width: u16) -> Vec<u64> {
    let width = usize::from(width);
    if churn.is_empty() || width == 0 {
        return Vec::new();
    }
    (0..width).map(|x| churn.get(x * churn.len() / width).copied().unwrap_or(0)).collect()
}

/// Gaps, points and the ends of what is kept.
fn axis(timeline: &Timeline, canvas: &mut Canvas<'_>, inner: Rect, y: u16) {
    let line = if canvas.theme.ascii { "-" } else { "─" };
    if let Some((oldest, newest)) = timeline.extent() {
        let from = timeline.column(oldest.max(timeline.from_us), inner.width);
        let to = timeline.column(newest.min(timeline.to_us), inner.width);
        if let (Some(from), Some(to)) = (from, to) {
            for x in from..=to {
                canvas.put(inner.x + x, y, 1, line, Role::Border);
            }
        }
    }
    for gap in timeline.reply.iter().flat_map(|reply| &reply.gaps) {
        let from = timeline.column(gap.from_us.max(timeline.from_us), inner.width);
        let to = timeline.column(gap.to_us.min(timeline.to_us), inner.width);
        if let (Some(from), Some(to)) = (from, to) {
            let glyph = canvas.theme.mark(Mark::Gap).to_string();
            for x in from..=to {
                canvas.put(inner.x + x, y, 1, &glyph, Role::Warn);
            }
        }
    }
    for point in timeline.points() {
        if let Some(x) = timeline.column(point.time_us, inner.width) {
            let (mark, role) = point_mark(point);
            let glyph = canvas.theme.mark(mark).to_string();
            canvas.put(inner.x + x, y, 1, &glyph, role);
        }
    }
}

fn point_mark(point: &pb::Point) -> (Mark, Role) {
    match point.kind.as_str() {
        _ if point.pinned => (Mark::Pinned, Role::Key),
        "bookmark" => (Mark::PointBookmark, Role::Key),
        "app" => (Mark::PointApp, Role::Ok),
        _ => (Mark::PointCrash, Role::Text),
    }
}

fn labels(timeline: &Timeline, canvas: &mut Canvas<'_>, inner: Rect, y: u16) {
    let label = |moment: i64| {
        if timeline.length() >= 86_400_000_000 {
            text::near(moment, moment - 86_400_000_001)
        } else {
            text::clock(moment)
        }
    };
    // The cursor's own label stands in this line, too: an end that it covers is left out.
    let (at, end) = cursor_label(timeline, inner.width).map_or((u16::MAX, 0), |(at, wide)| (at, at + wide));
    let [from, to] = [label(timeline.from_us), label(timeline.to_us)];
    let wide = |label: &str| u16::try_from(text::width(label)).unwrap_or(u16::MAX);
    if wide(&from) < at {
        canvas.put(inner.x, y, wide(&from), &from, Role::Muted);
    }
    if end.saturating_add(wide(&to)) < inner.width {
        canvas.put_right(inner.x, y, inner.width, &to, Role::Muted);
    }
}

/// Where the label of the cursor begins, and how wide it is.
fn cursor_label(timeline: &Timeline, width: u16) -> Option<(u16, u16)> {
    let x = timeline.column(timeline.cursor_us, width)?;
    let wide = u16::try_from(text::width(&text::clock(timeline.cursor_us))).unwrap_or(8) + 2;
    Some((x.saturating_sub(wide / 2).min(width.saturating_sub(wide)), wide))
}

fn cursor(timeline: &Timeline, canvas: &mut Canvas<'_>, inner: Rect, axis: u16) {
    let Some(x) = timeline.column(timeline.cursor_us, inner.width) else { return };
    let Some((at, wide)) = cursor_label(timeline, inner.width) else { return };
    canvas.restyle(Rect::new(inner.x + x, axis, 1, 1), Role::Selection);
    let label = text::clock(timeline.cursor_us);
    canvas.put(inner.x + at, axis + 1, wide, &format!(" {label} "), Role::Selection);
}

/// What is known of the moment at the cursor.
fn moment(
    state: &State,
    machine: &pb::Machine,
    timeline: &Timeline,
    canvas: &Canvas<'_>,
    wide: usize,
) -> Vec<Line> {
    let mut lines = Vec::new();
    let what = match (timeline.newest, timeline.point_at_cursor()) {
        (true, _) => "the newest moment; it moves on by itself".to_owned(),
        (false, Some(point)) => point_words(point),
        (false, None) => "a moment between points".into(),
    };
    lines.push(pair("Moment", format!("{} UTC", text::exact(timeline.cursor_us)), Role::Title));
    lines.push(pair("", what, Role::Text));
    if let Some(gap) = timeline.gap_at_cursor() {
        let reason = if gap.reason.is_empty() { String::new() } else { format!(": {}", gap.reason) };
        super::machine::said(
            &mut lines,
            "Gap",
            &format!(
                "{} to {}{reason}. The newest moment before it is taken.",
                text::exact(gap.from_us),
                text::clock(gap.to_us)
            ),
            Role::Warn,
            wide,
        );
    }
    match (timeline.told(), &timeline.preview) {
        (Some(told), _) => {
            let role = if told.loss_seconds > 60.0 { Role::Warn } else { Role::Text };
            lines.push(pair(
                "Would give up",
                format!(
                    "{}, {} in {}",
                    text::span(told.loss_seconds),
                    text::bytes(told.loss_bytes),
                    text::count(told.loss_records as usize, "write")
                ),
                role,
            ));
            if let Some(point) = &told.point {
                if point.time_us != timeline.cursor_us && !timeline.newest {
                    lines.push(pair(
                        "Would bring up",
                        format!("{} UTC", text::exact(point.time_us)),
                        Role::Text,
                    ));
                }
                lines.push(pair("Proven", proofs(point, canvas), Role::Text));
            }
        }
        (None, Preview::Failed(_, fault)) => {
            super::machine::said(&mut lines, "Not known", &fault.message, Role::Fail, wide)
        }
        (None, _) => lines.push(pair("Would give up", "asking", Role::Muted)),
    }
    let now = state.vault_now();
    let ago = now.saturating_sub(timeline.cursor_us).max(0) as f64 / 1e6;
    lines.push(pair("Ago", text::span(ago), Role::Muted));
    if machine.orders.iter().any(|order| order == "test-failover") && state.is_live() {
        super::machine::said(
            &mut lines,
            "Next",
            "t drills this moment; a, f fails over to it; :at TIME goes to another",
            Role::Muted,
            wide,
        );
    }
    lines
}

fn point_words(point: &pb::Point) -> String {
    let kind = match point.kind.as_str() {
        "app" => "application-consistent point",
        "bookmark" => "bookmark",
        _ => "crash-consistent point",
    };
    let name = if point.name.is_empty() { String::new() } else { format!(" \u{201c}{}\u{201d}", point.name) };
    let pinned = if point.pinned { ", pinned" } else { "" };
    let shared =
        if point.group.is_empty() { String::new() } else { format!(", shared with group {}", point.group) };
    let until = point.locked_until_us.map(text::moment);
    let locked = until.map(|until| format!(", locked until {until}")).unwrap_or_default();
    format!("{kind}{name}{shared}{pinned}{locked}")
}

fn proofs(point: &pb::Point, canvas: &Canvas<'_>) -> String {
    let Some(proofs) = &point.proofs else { return "not yet".into() };
    let told = [
        ("booted", proofs.booted),
        ("probes passed", proofs.probed),
        ("equal to its source", proofs.digest_equal),
    ];
    let said: Vec<String> = told
        .iter()
        .filter_map(|(what, held)| {
            held.map(|held| canvas.marked(if held { Mark::Ok } else { Mark::Fail }, what))
        })
        .collect();
    if said.is_empty() { "not yet".into() } else { said.join("  ") }
}
