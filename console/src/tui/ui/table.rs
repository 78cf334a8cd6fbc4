//! Draws a table: only the rows that are on the screen, in as many columns as there is room for.

use super::super::core::table::{Cell, Column, Filter, NATURAL, Rows, Seeker, Table};
use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, sparkline};
use ratatui::layout::Rect;

/// The first column grows no further than this.
const NAME_MAX: u16 = 34;

/// A column with its place.
struct Placed {
    at: usize,
    x: u16,
    cells: u16,
}

/// Draws the head and the rows into an area.
pub fn draw(canvas: &mut Canvas<'_>, area: Rect, rows: &dyn Rows, table: &Table) {
    let placed = place(rows.columns(), table, area);
    for column in &placed {
        head(canvas, area.y, rows, table, column);
    }
    if table.shown() == 0 {
        let why =
            if table.filter.is_empty() { rows.empty() } else { "Nothing matches the filter. Esc clears it." };
        for (y, line) in
            (area.y + 2..area.bottom()).zip(text::wrap(why, usize::from(area.width.saturating_sub(4))))
        {
            canvas.put(area.x + 2, y, area.width.saturating_sub(4), &line, Role::Muted);
        }
        return;
    }
    let filter = (!table.filter.trim().is_empty()).then(|| Filter::new(&table.filter));
    let mut seeker = Seeker::default();
    for (line, (y, place)) in (area.y + 1..area.bottom()).zip(table.window()).enumerate() {
        let place = *place as usize;
        let under_cursor = table.top() + line == table.cursor();
        let marked = table.marks.contains(rows.id(place));
        if under_cursor {
            canvas.put(area.x, y, 1, &canvas.theme.mark(Mark::Cursor).to_string(), Role::Key);
        }
        if marked {
            canvas.put(area.x + 1, y, 1, &canvas.theme.mark(Mark::Marked).to_string(), Role::Marked);
        }
        for column in &placed {
            let cell = rows.cell(place, column.at);
            let x = field(canvas, y, rows.columns(), column, &cell);
            if let Some(filter) = &filter
                && column.at == rows.name_column()
            {
                highlight(canvas, x, y, column, &cell.text, &seeker.letters(filter, &cell.text));
            }
        }
        if under_cursor {
            canvas.restyle(Rect::new(area.x, y, area.width, 1), Role::Selection);
        }
    }
}

fn place(columns: &[Column], table: &Table, area: Rect) -> Vec<Placed> {
    let mut kept: Vec<usize> =
        (0..columns.len()).filter(|at| !table.hidden.contains(columns[*at].title)).collect();
    // Two cells for the cursor and the mark, one between columns.
    let needed = |kept: &[usize]| -> u16 {
        kept.iter().map(|at| columns[*at].width + if *at == 0 { 2 } else { 0 }).sum::<u16>()
            + 2
            + kept.len() as u16
    };
    while kept.len() > 1 && needed(&kept) > area.width {
        let worst = kept
            .iter()
            .enumerate()
            .max_by_key(|(line, at)| (columns[**at].rank, *line))
            .map(|(line, _)| line);
        match worst {
            Some(line) if columns[kept[line]].rank > 0 => {
                kept.remove(line);
            }
            _ => break,
        }
    }
    let mut spare = area.width.saturating_sub(needed(&kept));
    let mut growing: Vec<usize> = kept.iter().copied().filter(|at| columns[*at].grows).collect();
    growing.reverse();
    let mut x = area.x + 2;
    let mut placed = Vec::new();
    for at in &kept {
        let mut cells = columns[*at].width + if *at == 0 { 2 } else { 0 };
        if growing.last() == Some(at) {
            let share = spare / growing.len() as u16;
            let share =
                if *at == 0 && kept.len() > 3 { share.min(NAME_MAX.saturating_sub(cells)) } else { share };
            growing.pop();
            cells += share;
            spare -= share;
        }
        placed.push(Placed { at: *at, x, cells: cells.min((area.right()).saturating_sub(x)) });
        x = x.saturating_add(cells + 1);
    }
    placed
}

fn head(canvas: &mut Canvas<'_>, y: u16, rows: &dyn Rows, table: &Table, placed: &Placed) {
    let column = &rows.columns()[placed.at];
    let sorted = table.sort != NATURAL && table.sort == placed.at;
    let arrow = match (sorted, table.descending, canvas.theme.ascii) {
        (false, ..) => "",
        (true, true, false) => "▼",
        (true, false, false) => "▲",
        (true, true, true) => "v",
        (true, false, true) => "^",
    };
    // The arrow is worth more than the last letter.
    let cut = text::fit(column.title, usize::from(placed.cells).saturating_sub(text::width(arrow)), '.');
    let title = if sorted { format!("{cut}{arrow}") } else { column.title.to_owned() };
    if column.right {
        canvas.put_right(placed.x, y, placed.cells, &title, Role::Title);
    } else {
        canvas.put(placed.x, y, placed.cells, &title, Role::Title);
    }
}

/// Draws a field. The column where its text begins.
fn field(canvas: &mut Canvas<'_>, y: u16, columns: &[Column], placed: &Placed, cell: &Cell) -> u16 {
    let (x, cells) = (placed.x, placed.cells);
    if !cell.chart.is_empty() {
        let chart = sparkline(&cell.chart, usize::from(cells), canvas.theme.ascii);
        canvas.put_right(x, y, cells, &chart, cell.role);
        return x;
    }
    match cell.mark {
        Some(mark) => {
            // Indented names carry their indent before the mark.
            let inner = cell.text.trim_start_matches(' ');
            let indent = u16::try_from(cell.text.len() - inner.len()).unwrap_or(0);
            let glyph = canvas.theme.mark(mark).to_string();
            canvas.put(x + indent, y, 1, &glyph, cell.role);
            canvas.put(x + indent + 2, y, cells.saturating_sub(indent + 2), inner, cell.role);
            x + indent + 2
        }
        None if columns[placed.at].right => {
            canvas.put_right(x, y, cells, &cell.text, cell.role);
            x
        }
        None => {
            canvas.put(x, y, cells, &cell.text, cell.role);
            x
        }
    }
}

fn highlight(canvas: &mut Canvas<'_>, x: u16, y: u16, placed: &Placed, text: &str, letters: &[u32]) {
    let end = placed.x + placed.cells;
    let mut column = x;
    let mut index = 0_u32;
    for (letter, wide) in text::letters(text.trim_start_matches(' ')) {
        let wide = u16::try_from(wide).unwrap_or(0);
        if column + wide > end {
            return;
        }
        if letters.contains(&index) {
            let style = canvas.style(Role::Match);
            canvas.buffer.set_style(Rect::new(column, y, wide, 1), style);
        }
        column += wide;
        index += u32::try_from(letter.chars().count()).unwrap_or(0);
    }
}
