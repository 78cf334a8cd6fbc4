//! What lies over a screen: help, the action menu, columns, the palette.

use super::super::core::orders;
use super::super::core::reduce;
use super::super::core::state::{Overlay, State};
use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, Line, span};
use super::frame::cursor;
use ratatui::layout::Rect;

/// Proposals that are shown at once.
const PROPOSALS: usize = 10;

/// Draws whatever is open.
pub fn draw(state: &State, canvas: &mut Canvas<'_>) {
    match state.overlay {
        Some(Overlay::Help { scroll }) => help(state, canvas, scroll),
        Some(Overlay::Menu { at }) => menu(state, canvas, at),
        Some(Overlay::Columns { at }) => columns(state, canvas, at),
        None => {}
    }
    if state.palette.is_some() {
        palette(state, canvas);
    }
    if let Some(token) = &state.secret {
        secret(state, token, canvas);
    }
}

/// A token, shown once.
fn secret(state: &State, token: &str, canvas: &mut Canvas<'_>) {
    let wide = usize::from(state.size.0.saturating_sub(8)).min(92);
    let mut lines: Vec<Line> = text::wrap(
        "Whoever has this logs in with it, once, within an hour: continuum login --token TOKEN. It is not shown again.",
        wide,
    )
    .into_iter()
    .map(|line| vec![span(line, Role::Text)])
    .collect();
    lines.push(Line::new());
    // Without spaces it would not wrap: it is cut into pieces that are read one after the other.
    let letters: Vec<char> = token.chars().collect();
    lines.extend(
        letters.chunks(wide.max(1)).map(|part| vec![span(part.iter().collect::<String>(), Role::Key)]),
    );
    lines.push(Line::new());
    lines.push(vec![span("y sends it to the terminal's clipboard; Enter or Esc closes it", Role::Muted)]);
    let height = u16::try_from(lines.len()).unwrap_or(12) + 2;
    let area = middle(state, u16::try_from(wide).unwrap_or(76) + 4, height);
    let inner = canvas.frame(area, "Token for a new operator", Role::Border);
    canvas.put_lines(inner, &lines, 0);
}

/// A box in the middle.
pub fn middle(state: &State, width: u16, height: u16) -> Rect {
    let (columns, rows) = state.size;
    let (width, height) = (width.min(columns.saturating_sub(2)), height.min(rows.saturating_sub(3)));
    Rect::new((columns - width) / 2, 1 + (rows.saturating_sub(2 + height)) / 2, width, height)
}

fn help(state: &State, canvas: &mut Canvas<'_>, scroll: usize) {
    let lines: Vec<Line> = reduce::help(state)
        .into_iter()
        .map(|(keys, label)| match (keys.as_str(), label.as_str()) {
            ("", "") => Line::new(),
            ("", heading) => vec![span(heading, Role::Title)],
            (keys, label) => {
                let keys = text::fit(keys, 26, canvas.theme.ellipsis());
                let pad = " ".repeat(28_usize.saturating_sub(text::width(&keys)));
                vec![span(format!("  {keys}"), Role::Key), span(format!("{pad}{label}"), Role::Text)]
            }
        })
        .collect();
    let area = middle(state, 84, state.size.1.saturating_sub(4));
    let inner = canvas.frame(area, "Keys   Esc closes, j and k scroll", Role::Border);
    if canvas.put_lines(inner, &lines, scroll) {
        canvas.put_right(area.x + 2, area.bottom() - 1, area.width - 4, " more below ", Role::Muted);
    }
}

fn menu(state: &State, canvas: &mut Canvas<'_>, at: usize) {
    let lines = orders::menu(state);
    let height = u16::try_from(lines.len()).unwrap_or(20) + 4;
    let area = middle(state, 78, height);
    let about = state.machine_here().map_or_else(String::new, |machine| {
        format!(" on {}", text::fit(&machine.name, 30, canvas.theme.ellipsis()))
    });
    let inner = canvas.frame(
        area,
        &format!("Actions{about}   Enter does, Esc closes, ctrl+y copies the command"),
        Role::Border,
    );
    let shown = usize::from(inner.height.saturating_sub(2));
    let from = at.saturating_sub(shown.saturating_sub(1));
    for (y, (n, line)) in (inner.y..).zip(lines.iter().enumerate().skip(from).take(shown)) {
        let possible = line.why_not.is_empty();
        let role = if possible { Role::Text } else { Role::Muted };
        canvas.put(inner.x, y, 3, &line.key, if possible { Role::Key } else { Role::Muted });
        let x = canvas.put(inner.x + 4, y, 44, line.label, role);
        if !possible {
            canvas.put(x + 2, y, inner.right().saturating_sub(x + 2), &line.why_not, Role::Muted);
        }
        if n == at {
            canvas.restyle(Rect::new(inner.x, y, inner.width, 1), Role::Selection);
        }
    }
    if let Some(line) = lines.get(at) {
        canvas.put(inner.x, inner.bottom() - 1, inner.width, &format!("$ {}", line.command), Role::Muted);
    }
}

fn columns(state: &State, canvas: &mut Canvas<'_>, at: usize) {
    let Some(kind) = state.place.table() else { return };
    let rows = state.rows(kind);
    let table = state.table(kind);
    let height = u16::try_from(rows.columns().len()).unwrap_or(20) + 2;
    let area = middle(state, 40, height);
    let inner = canvas.frame(area, "Columns   Space, Enter", Role::Border);
    for (y, (n, column)) in (inner.y..inner.bottom()).zip(rows.columns().iter().enumerate()) {
        let shown = !table.hidden.contains(column.title);
        let mark = if shown { Mark::Ok } else { Mark::Waiting };
        let title = if column.title.is_empty() { "(what it says)" } else { column.title };
        let title = canvas.marked(mark, title);
        canvas.put(inner.x, y, inner.width, &title, if shown { Role::Text } else { Role::Muted });
        if n == at {
            canvas.restyle(Rect::new(inner.x, y, inner.width, 1), Role::Selection);
        }
    }
}

/// The command line at the bottom, with what it could become above it.
fn palette(state: &State, canvas: &mut Canvas<'_>) {
    let Some(palette) = &state.palette else { return };
    let (width, height) = state.size;
    let chosen = palette.chosen.unwrap_or(0);
    let room = PROPOSALS.min(usize::from(height.saturating_sub(7)));
    let from = chosen.saturating_sub(room.saturating_sub(1));
    let shown: Vec<_> = palette.proposals.iter().enumerate().skip(from).take(room).collect();
    let lines = u16::try_from(shown.len()).unwrap_or(0) + u16::from(!palette.complaint.is_empty());
    let top = height.saturating_sub(2 + lines);
    canvas.fill(Rect::new(0, top, width, height - top), Role::Text);
    canvas.rule(0, top, width, "Command   Enter runs, Tab completes, Esc closes");
    let mut y = top + 1;
    for (n, proposal) in shown {
        let x = canvas.put(3, y, width.saturating_sub(4).min(44), &proposal.line, Role::Text);
        let mut column = 3;
        for (index, (letter, wide)) in (0_u32..).zip(text::letters(&proposal.line)) {
            let wide = u16::try_from(wide).unwrap_or(1);
            if column + wide > x {
                break;
            }
            if proposal.letters.contains(&index) {
                canvas.put(column, y, wide, letter, Role::Match);
            }
            column += wide;
        }
        canvas.put(48.max(x + 2), y, width.saturating_sub(48.max(x + 2)), &proposal.about, Role::Muted);
        if palette.chosen == Some(n) {
            canvas.restyle(Rect::new(1, y, width - 2, 1), Role::Selection);
        }
        y += 1;
    }
    if !palette.complaint.is_empty() {
        canvas.put(1, y, width - 2, &palette.complaint, Role::Fail);
    }
    let (before, after) = palette.line.around();
    let y = height - 1;
    let x = canvas.put(0, y, width, ":", Role::Key);
    let x = canvas.put(x, y, width.saturating_sub(x), before, Role::Text);
    cursor(canvas, x, y, after);
}
