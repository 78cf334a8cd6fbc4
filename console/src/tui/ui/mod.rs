//! Draws the state. Pure: the same state, size and theme give the same picture.
//!
//! - [`canvas`], [`table`]: the tools
//! - [`frame`]: the lines at the top and the bottom, banner and toasts
//! - [`pulse`], [`machine`], [`timeline`], [`run`], [`detail`]: the screens
//! - [`form`]: a policy or a plan under edit
//! - [`overlay`], [`dialog`]: what lies over them

pub mod canvas;
pub mod detail;
pub mod dialog;
pub mod form;
pub mod frame;
pub mod machine;
pub mod overlay;
pub mod pulse;
pub mod run;
pub mod table;
pub mod timeline;

use super::core::layout;
use super::core::rows::job_title;
use super::core::state::{Connection, Place, State, Tab, TableKind};
use super::core::table::NATURAL;
use super::core::text;
use super::core::tone::Role;
use super::theme::Theme;
use canvas::{Canvas, Line, span};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// Draws everything into an empty buffer of the state's size.
pub fn draw(state: &State, theme: &Theme, buffer: &mut Buffer) {
    let area = buffer.area;
    let mut canvas = Canvas { buffer, theme };
    canvas.fill(area, Role::Text);
    if !layout::is_large_enough(state.size) {
        frame::too_small(state, &mut canvas);
        return;
    }
    frame::header(state, &mut canvas);
    frame::navigation(state, &mut canvas);
    let banner = layout::banner(state);
    if banner > 0 {
        frame::banner(state, &mut canvas);
    }
    let content = Rect::new(0, 2 + banner, area.width, layout::content_rows(state));
    if state.heard.is_none() {
        frame::starting(state, &mut canvas, content);
    } else {
        match &state.form {
            Some(open) => form::draw(state, open, &mut canvas, content),
            None => screen(state, &mut canvas, content),
        }
        if matches!(state.connection, Connection::Lost { .. }) {
            frame::make_stale(&mut canvas, content);
        }
    }
    frame::footer(state, &mut canvas);
    frame::toasts(state, &mut canvas);
    overlay::draw(state, &mut canvas);
    if let Some(open) = &state.dialog {
        dialog::draw(state, open, &mut canvas);
    }
}

fn screen(state: &State, canvas: &mut Canvas<'_>, area: Rect) {
    match &state.place {
        Place::Pulse => pulse::draw(state, canvas, area),
        Place::Machine(id, tab) => match state.estate.machines.get(id) {
            Some(machine) => {
                machine::tabs(state, machine, *tab, canvas, area);
                let inner = below(area, 1);
                match tab {
                    Tab::Overview => machine::overview(state, machine, canvas, inner),
                    Tab::Disks => machine::disks(state, machine, canvas, inner),
                    Tab::Points => timeline::draw(state, machine, canvas, inner),
                    Tab::Events => rows(state, TableKind::Events, canvas, inner),
                }
            }
            None => gone(canvas, area, "This machine is not known to the vault any more. Esc goes back."),
        },
        Place::Job(id) => match state.estate.jobs.get(id) {
            Some(job) => run::draw(state, job, canvas, area),
            None => gone(canvas, area, "This job is not known to the vault any more. Esc goes back."),
        },
        place => {
            if let Some(kind) = place.table() {
                titled_table(state, kind, canvas, area);
            }
        }
    }
}

/// A table with its title, and a detail pane where there is room for one.
fn titled_table(state: &State, kind: TableKind, canvas: &mut Canvas<'_>, area: Rect) {
    title(state, kind, canvas, area);
    let side = layout::detail_columns(state);
    let under = layout::under_table(state);
    let inner = below(area, 1);
    let left = Rect { width: inner.width - side, height: inner.height.saturating_sub(under), ..inner };
    rows(state, kind, canvas, left);
    if side > 0 {
        let x = left.right();
        canvas.rule_down(x, inner.y, inner.height);
        detail::draw(state, canvas, Rect::new(x + 2, inner.y, side - 3, inner.height));
    } else if under > 0 {
        canvas.rule(0, left.bottom(), inner.width, "Under the cursor");
        detail::draw(state, canvas, Rect::new(1, left.bottom() + 1, inner.width - 2, under - 1));
    }
}

/// Just a table.
pub fn rows(state: &State, kind: TableKind, canvas: &mut Canvas<'_>, area: Rect) {
    table::draw(canvas, area, &*state.rows(kind), state.table(kind));
}

fn title(state: &State, kind: TableKind, canvas: &mut Canvas<'_>, area: Rect) {
    let table = state.table(kind);
    let rows = state.rows(kind);
    let mut line: Line = vec![span(state.place.screen().1, Role::Title), span("  ", Role::Text)];
    let of = if table.shown() == rows.len() {
        table.shown().to_string()
    } else {
        format!("{} of {}", table.shown(), rows.len())
    };
    line.push(span(of, Role::Text));
    if let Some(column) = (table.sort != NATURAL).then(|| rows.columns().get(table.sort)).flatten() {
        let way = if table.descending { "greatest first" } else { "least first" };
        line.push(span(format!("  by {}, {way}", column.title.to_lowercase()), Role::Muted));
    }
    if !table.filter.is_empty() {
        line.push(span(format!("  filter: {}", table.filter), Role::Key));
    }
    if !table.marks.is_empty() {
        line.push(span(format!("  {} marked", table.marks.len()), Role::Marked));
    }
    canvas.put_line(area.x + 1, area.y, area.width - 2, &line);
}

fn gone(canvas: &mut Canvas<'_>, area: Rect, why: &str) {
    canvas.put(area.x + 2, area.y + 2, area.width - 4, why, Role::Muted);
}

/// The area without its first lines.
pub const fn below(area: Rect, lines: u16) -> Rect {
    Rect {
        x: area.x,
        y: area.y.saturating_add(lines),
        width: area.width,
        height: area.height.saturating_sub(lines),
    }
}

/// Label and value, aligned.
pub fn pair(label: &str, value: impl Into<String>, role: Role) -> Line {
    vec![span(format!("{label:<18}"), Role::Muted), span(value, role)]
}

/// The title of the terminal's window.
pub fn window_title(state: &State) -> String {
    let what = match &state.place {
        Place::Machine(id, _) => state.estate.machines.get(id).map(|machine| machine.name.clone()),
        Place::Job(id) => state.estate.jobs.get(id).map(job_title),
        _ => None,
    };
    let what = what.unwrap_or_else(|| state.place.screen().1.to_owned());
    text::fit(&format!("continuum: {what}"), 80, '~')
}
