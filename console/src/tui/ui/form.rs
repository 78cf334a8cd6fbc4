//! A policy or a plan under edit: fields with what is wrong at them, or the text with what is wrong by line.

use super::super::core::form::{Form, Kind, Of, Row, Text};
use super::super::core::state::State;
use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, Line, span};
use super::frame::cursor;
use super::machine::said;
use continuum_document::policy::label;
use ratatui::layout::Rect;

/// Columns of the labels.
const LABEL: u16 = 20;

/// Draws the form over the whole content.
pub fn draw(state: &State, form: &Form, canvas: &mut Canvas<'_>, area: Rect) {
    canvas.fill(area, Role::Text);
    let mut title: Line = vec![span(form.title(), Role::Title)];
    let under = form.machines().len();
    if matches!(form.of, Of::Policy { .. }) && !form.new {
        title.push(span(format!("  {} under it", text::count(under, "machine")), Role::Muted));
    }
    canvas.put_line(area.x + 1, area.y, area.width - 2, &title);
    // What it means stands beside the fields where there is room, else below them.
    let wide = state.size.0 >= 120;
    let side = if wide { (area.width / 2).min(80) } else { 0 };
    let foot = if wide { 3 } else { (area.height / 3).clamp(4, 9) };
    let main = Rect::new(area.x + 1, area.y + 1, area.width - 2 - side, area.height.saturating_sub(1 + foot));
    match &form.text {
        Some(open) => text_of(open, canvas, main),
        None => fields(form, canvas, main),
    }
    let below = Rect::new(area.x + 1, main.bottom(), area.width - 2, foot);
    if wide {
        canvas.rule_down(main.right(), main.y, main.height);
        let beside = Rect::new(main.right() + 2, main.y, side.saturating_sub(3), main.height);
        canvas.put_lines(beside, &meaning(form, canvas, usize::from(beside.width)), 0);
    }
    canvas.rule(below.x, below.y, below.width, "");
    let inner = Rect { y: below.y + 1, height: below.height.saturating_sub(1), ..below };
    let mut lines = now(form, canvas, usize::from(inner.width));
    if !wide {
        lines.extend(meaning(form, canvas, usize::from(inner.width)));
    }
    canvas.put_lines(inner, &lines, 0);
}

fn fields(form: &Form, canvas: &mut Canvas<'_>, area: Rect) {
    let rows = usize::from(area.height).max(1);
    // The buttons share a line.
    let shown = form.rows.len().saturating_sub(1);
    let at = form.at.min(shown.saturating_sub(1));
    let first = at.saturating_sub(rows.saturating_sub(2)).min(shown.saturating_sub(rows));
    let mut before = first.checked_sub(1).and_then(|at| form.rows.get(at)).map_or("", |row| row.field);
    for (line, (place, row)) in
        form.rows.iter().enumerate().skip(first).take(rows.min(shown - first)).enumerate()
    {
        let y = area.y + u16::try_from(line).unwrap_or(0);
        let here = place == form.at;
        if row.kind == Kind::Review {
            let button = |at: bool| if at { Role::Focus } else { Role::Key };
            let x = canvas.put(area.x, y, area.width, " Review and order ", button(here));
            canvas.put(x + 2, y, 10, " Cancel ", button(form.at == place + 1));
            continue;
        }
        if row.field != before {
            let role = if here { Role::Key } else { Role::Title };
            canvas.put(area.x, y, LABEL, label(row.field), role);
        }
        before = row.field;
        value(row, here, canvas, Rect::new(area.x + LABEL, y, area.width.saturating_sub(LABEL), 1));
    }
}

fn value(row: &Row, here: bool, canvas: &mut Canvas<'_>, area: Rect) {
    let Rect { x, y, width, .. } = area;
    let (mark, role) = if row.problem.is_empty() {
        (" ".to_owned(), Role::Text)
    } else {
        (canvas.theme.mark(Mark::Fail).to_string(), Role::Fail)
    };
    canvas.put(x, y, 1, &mark, role);
    let (x, room) = (x + 2, width.saturating_sub(3));
    match row.kind {
        Kind::Choice => {
            let shown = format!(" < {} > ", row.line.text());
            canvas.put(x, y, room, &shown, if here { Role::Focus } else { Role::Text });
        }
        Kind::Add => {
            let what = if row.field == "steps" {
                " + keep older states, thinned out "
            } else {
                " + hours with a limit "
            };
            canvas.put(x, y, room, what, if here { Role::Focus } else { Role::Muted });
        }
        _ if here => {
            let (before, after) = row.line.around();
            // The end of a long line is where the cursor is.
            let keep = usize::from(room.saturating_sub(8));
            let skip = text::letters(before).count().saturating_sub(keep);
            let before: String = text::letters(before).skip(skip).map(|(letter, _)| letter).collect();
            let x = canvas.put(x, y, room, &before, Role::Text);
            cursor(canvas, x, y, after);
        }
        _ => {
            canvas.put(
                x,
                y,
                room,
                row.line.text(),
                if row.problem.is_empty() { Role::Text } else { Role::Fail },
            );
        }
    }
}

fn text_of(open: &Text, canvas: &mut Canvas<'_>, area: Rect) {
    let lines = open.area.lines();
    let (at, column) = (open.area.cursor().0, open.area.cursor().1);
    let rows = usize::from(area.height).max(1);
    let first = at.saturating_sub(rows * 2 / 3).min(lines.len().saturating_sub(rows));
    let digits = u16::try_from(lines.len().to_string().len()).unwrap_or(3);
    for (n, (place, line)) in lines.iter().enumerate().skip(first).take(rows).enumerate() {
        let y = area.y + u16::try_from(n).unwrap_or(0);
        let wrong = open.problems.iter().any(|problem| problem.line == place + 1);
        let number = format!("{:>width$}", place + 1, width = usize::from(digits));
        canvas.put(area.x, y, digits, &number, if wrong { Role::Fail } else { Role::Muted });
        if wrong {
            let mark = canvas.theme.mark(Mark::Fail).to_string();
            canvas.put(area.x + digits, y, 1, &mark, Role::Fail);
        }
        let x = area.x + digits + 2;
        let room = area.right().saturating_sub(x);
        let role = if wrong { Role::Fail } else { Role::Text };
        if place != at {
            canvas.put(x, y, room, line, role);
            continue;
        }
        let keep = usize::from(room.saturating_sub(4)).max(1);
        let skip = column.saturating_sub(keep);
        let before: String = line.chars().skip(skip).take(column - skip).collect();
        let after: String = line.chars().skip(column).collect();
        let x = canvas.put(x, y, room, &before, role);
        let after = text::fit(&after, usize::from(area.right().saturating_sub(x)), canvas.theme.ellipsis());
        cursor(canvas, x, y, &after);
    }
}

/// What the keys are for here, and what is wrong here.
fn now(form: &Form, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let mut put = |text: &str, role: Role| {
        lines.extend(text::wrap(text, wide).into_iter().map(|line| vec![span(line, role)]));
    };
    if !form.complaint.is_empty() {
        put(&canvas.marked(Mark::Fail, &form.complaint), Role::Fail);
    }
    match &form.text {
        Some(open) => {
            for problem in open.problems.iter().take(3) {
                put(&canvas.marked(Mark::Fail, &problem.to_string()), Role::Fail);
            }
            if open.problems.is_empty() {
                let next = match form.of {
                    Of::Policy { .. } => "nothing is wrong; Ctrl-E back to the fields",
                    Of::Plan(_) => "nothing is wrong; Ctrl-E shows what would change and orders it",
                };
                put(&canvas.marked(Mark::Ok, next), Role::Ok);
            }
        }
        None => {
            let row = form.rows.get(form.at);
            match row.filter(|row| !row.problem.is_empty()) {
                Some(row) => put(&canvas.marked(Mark::Fail, &row.problem), Role::Fail),
                None => put(row.map_or("", |row| hint(row)), Role::Muted),
            }
            let wrong = form.rows.iter().filter(|row| !row.problem.is_empty()).count();
            let others = wrong - usize::from(row.is_some_and(|row| !row.problem.is_empty()));
            if others > 0 {
                put(&format!("{} more not right yet", text::count(others, "field")), Role::Warn);
            }
        }
    }
    lines
}

fn hint(row: &Row) -> &'static str {
    match (row.field, row.kind) {
        ("name", _) => "What it is called in lists and commands.",
        ("retention_seconds", _) => "Any moment of this time can be brought up: 15 min, 24 h, 7 d.",
        ("steps", Kind::Step) => {
            "Of older history one state of every so long is kept, up to an age: 1 h up to 7 d."
        }
        ("steps", _) => "Enter adds a row. Backspace in an empty row takes it away.",
        ("history_bytes_max", _) => "Most room that history may take: 10 GiB, or no limit.",
        ("crash_point_seconds", _) => "How often a point is listed; between them any moment, too.",
        ("app_point_seconds", _) => "How often applications are asked to be consistent, or none.",
        ("rpo_threshold_seconds", _) => "An alert is raised above it. It never acts by itself.",
        ("staging_bytes_max", _) => "Room at the source for what cannot leave yet: 1 GiB.",
        ("compression", _) | ("encryption", _) => "Space changes it.",
        ("replication_interval_seconds", _) => {
            "For sources that are looked at now and then: 30 s, 5 min, 15 min."
        }
        ("bandwidth", Kind::Limit) => {
            "Days, hours, rate: mon-fri 08:00-18:00 2 MB/s. The first that holds counts."
        }
        ("bandwidth", _) => "Enter adds a row; without one changes leave as fast as the link.",
        ("resync_window", _) => "When a resync may run: every day 18:30-06:00, or at once.",
        (_, Kind::Review) => {
            "Enter asks the vault what this means; nothing is ordered before you agree there."
        }
        _ => "Enter leaves; nothing is ordered.",
    }
}

/// What would change, and what that means.
fn meaning(form: &Form, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    if form.text.is_some() {
        for line in form.difference() {
            let role = match line.as_bytes().first() {
                Some(b'+') => Role::Ok,
                Some(b'-') => Role::Warn,
                _ => Role::Muted,
            };
            lines.push(vec![span(text::fit(&line, wide, canvas.theme.ellipsis()), role)]);
        }
        return lines;
    }
    if form.new {
        return lines;
    }
    for change in form.changes() {
        let arrow = if canvas.theme.ascii { "->" } else { "→" };
        let told = format!("{} {arrow} {}", change.from, change.to);
        said(&mut lines, label(change.field), &told, Role::Text, wide);
        if !change.means.is_empty() {
            let (mark, role) =
                if change.loses { (Mark::Warn, Role::Warn) } else { (Mark::Unknown, Role::Muted) };
            said(&mut lines, "", &canvas.marked(mark, &change.means), role, wide);
        }
    }
    if lines.is_empty() {
        lines.push(vec![span("nothing changes yet", Role::Muted)]);
    }
    lines
}
