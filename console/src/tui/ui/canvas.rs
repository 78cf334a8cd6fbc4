//! The paper: text with a role put at a place, lines of it, charts and frames. All bounded.

use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::super::theme::Theme;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// A stretch of text with its meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The text; harmless.
    pub text: String,
    /// What it means.
    pub role: Role,
}

/// A line of stretches.
pub type Line = Vec<Span>;

/// A stretch.
pub fn span(text: impl Into<String>, role: Role) -> Span {
    Span { text: text.into(), role }
}

/// A line of one stretch.
pub fn line(text: impl Into<String>, role: Role) -> Line {
    vec![span(text, role)]
}

/// A buffer and the theme it is drawn with.
pub struct Canvas<'a> {
    /// What is drawn on.
    pub buffer: &'a mut Buffer,
    /// What it is drawn with.
    pub theme: &'a Theme,
}

impl Canvas<'_> {
    /// The style of a role.
    pub fn style(&self, role: Role) -> Style {
        self.theme.style(role)
    }

    /// Puts text at a place, cut to `cells`. The column behind it.
    pub fn put(&mut self, x: u16, y: u16, cells: u16, text: &str, role: Role) -> u16 {
        let area = self.buffer.area;
        if y >= area.bottom() || x >= area.right() || cells == 0 {
            return x;
        }
        let cells = cells.min(area.right() - x);
        let cut = text::fit(text, usize::from(cells), self.theme.ellipsis());
        let (end, _) = self.buffer.set_stringn(x, y, cut, usize::from(cells), self.style(role));
        end
    }

    /// Puts text so that it ends at the right edge of `cells`.
    pub fn put_right(&mut self, x: u16, y: u16, cells: u16, text: &str, role: Role) {
        let wide = u16::try_from(text::width(text)).unwrap_or(u16::MAX).min(cells);
        self.put(x + (cells - wide), y, wide, text, role);
    }

    /// Puts a line of stretches. The column behind it.
    pub fn put_line(&mut self, x: u16, y: u16, cells: u16, line: &[Span]) -> u16 {
        let end = x.saturating_add(cells);
        let mut at = x;
        for span in line {
            at = self.put(at, y, end.saturating_sub(at), &span.text, span.role);
        }
        at
    }

    /// Puts lines from the first that is wanted on. Whether there were more below.
    pub fn put_lines(&mut self, area: Rect, lines: &[Line], from: usize) -> bool {
        let from = from.min(lines.len().saturating_sub(usize::from(area.height)));
        for (y, line) in (area.y..area.bottom()).zip(lines.iter().skip(from)) {
            self.put_line(area.x, y, area.width, line);
        }
        lines.len() > from + usize::from(area.height)
    }

    /// Fills an area with a role's style, text and all.
    pub fn fill(&mut self, area: Rect, role: Role) {
        let area = area.intersection(self.buffer.area);
        let style = self.style(role);
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                self.buffer[(x, y)].reset();
            }
        }
        self.buffer.set_style(area, self.style(Role::Text));
        self.buffer.set_style(area, style);
    }

    /// Gives what stands in an area another style.
    pub fn restyle(&mut self, area: Rect, role: Role) {
        let area = area.intersection(self.buffer.area);
        let style = Style::reset().patch(self.style(Role::Text)).patch(self.style(role));
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                self.buffer[(x, y)].set_style(style);
            }
        }
    }

    /// A rule across, with a title in it.
    pub fn rule(&mut self, x: u16, y: u16, cells: u16, title: &str) {
        let dash = if self.theme.ascii { "-" } else { "─" };
        self.put(x, y, cells, &dash.repeat(usize::from(cells)), Role::Border);
        if !title.is_empty() {
            self.put(x + 2, y, cells.saturating_sub(4), &format!(" {title} "), Role::Title);
        }
    }

    /// A rule down.
    pub fn rule_down(&mut self, x: u16, y: u16, rows: u16) {
        let bar = if self.theme.ascii { "|" } else { "│" };
        for row in y..y.saturating_add(rows) {
            self.put(x, row, 1, bar, Role::Border);
        }
    }

    /// A frame with a title, emptied inside. The area inside.
    pub fn frame(&mut self, area: Rect, title: &str, role: Role) -> Rect {
        let area = area.intersection(self.buffer.area);
        if area.width < 4 || area.height < 3 {
            return Rect::default();
        }
        self.fill(area, Role::Text);
        let [corner_a, corner_b, corner_c, corner_d, across, down] = if self.theme.ascii {
            ["+", "+", "+", "+", "-", "|"]
        } else {
            ["┌", "┐", "└", "┘", "─", "│"]
        };
        let across = across.repeat(usize::from(area.width - 2));
        self.put(area.x, area.y, area.width, &format!("{corner_a}{across}{corner_b}"), role);
        self.put(area.x, area.bottom() - 1, area.width, &format!("{corner_c}{across}{corner_d}"), role);
        for y in area.y + 1..area.bottom() - 1 {
            self.put(area.x, y, 1, down, role);
            self.put(area.right() - 1, y, 1, down, role);
        }
        if !title.is_empty() {
            self.put(area.x + 2, area.y, area.width - 4, &format!(" {title} "), role);
        }
        Rect::new(area.x + 2, area.y + 1, area.width - 4, area.height - 2)
    }

    /// A mark and its text as one stretch.
    pub fn marked(&self, mark: Mark, text: &str) -> String {
        format!("{} {text}", self.theme.mark(mark))
    }
}

/// A small chart one line high: the newest values, scaled to the greatest among them.
pub fn sparkline(values: &[u64], cells: usize, ascii: bool) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const PLAIN: [char; 8] = ['_', '.', ',', '-', '~', '=', '+', '#'];
    let shown = &values[values.len().saturating_sub(cells)..];
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    let glyphs = if ascii { PLAIN } else { BLOCKS };
    shown
        .iter()
        .map(|value| {
            let level = u128::from(*value) * 7 / u128::from(most);
            glyphs[usize::try_from(level).unwrap_or(7).min(7)]
        })
        .collect()
}

/// A bar one line high: how much of it is full.
pub fn bar(share: f64, cells: usize, ascii: bool) -> String {
    let full = ((share.clamp(0.0, 1.0) * cells as f64).round() as usize).min(cells);
    let (on, off) = if ascii { ("#", ".") } else { ("█", "░") };
    format!("{}{}", on.repeat(full), off.repeat(cells - full))
}

/// Columns of a histogram `rows` high, from the top row down.
pub fn histogram(values: &[u64], rows: u16, ascii: bool) -> Vec<String> {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let steps = if ascii { 1 } else { 8 };
    let height = u128::from(rows) * steps;
    let levels: Vec<u128> = values
        .iter()
        // Whatever there was is seen: rounded up.
        .map(|value| (u128::from(*value) * height).div_ceil(u128::from(most)))
        .collect();
    (0..rows)
        .map(|row| {
            let below = u128::from(rows - 1 - row) * steps;
            levels
                .iter()
                .map(|level| {
                    let over = level.saturating_sub(below).min(steps);
                    if ascii {
                        if over > 0 { '#' } else { ' ' }
                    } else {
                        BLOCKS[usize::try_from(over).unwrap_or(8)]
                    }
                })
                .collect()
        })
        .collect()
}

const DIGITS: [[&str; 5]; 12] = [
    ["███", "█ █", "█ █", "█ █", "███"],
    ["  █", "  █", "  █", "  █", "  █"],
    ["███", "  █", "███", "█  ", "███"],
    ["███", "  █", "███", "  █", "███"],
    ["█ █", "█ █", "███", "  █", "  █"],
    ["███", "█  ", "███", "  █", "███"],
    ["███", "█  ", "███", "█ █", "███"],
    ["███", "  █", "  █", "  █", "  █"],
    ["███", "█ █", "███", "█ █", "███"],
    ["███", "█ █", "███", "  █", "███"],
    [" ", "█", " ", "█", " "],
    [" ", " ", " ", " ", "█"],
];

/// A time in letters five lines high, to be read across a room.
pub fn big(text: &str, ascii: bool) -> [String; 5] {
    let mut rows: [String; 5] = Default::default();
    for c in text.chars() {
        let glyph = match c {
            '0'..='9' => DIGITS[c as usize - '0' as usize],
            ':' => DIGITS[10],
            '.' => DIGITS[11],
            _ => [" "; 5],
        };
        for (row, part) in rows.iter_mut().zip(glyph) {
            row.push_str(part);
            row.push(' ');
        }
    }
    if ascii { rows.map(|row| row.replace('█', "#")) } else { rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_show_whatever_there_was() {
        assert_eq!(sparkline(&[0, 7, 3], 2, false), "█▄");
        assert_eq!(sparkline(&[], 5, false), "");
        assert_eq!(histogram(&[0, 1, 1000], 2, false), ["  █", " ▁█"]);
        assert_eq!(histogram(&[0, 1, 1000], 2, true), ["  #", " ##"]);
        assert_eq!(histogram(&[u64::MAX, 0], 1, false), ["█ "]);
        assert_eq!(bar(0.5, 4, true), "##..");
        assert_eq!(bar(f64::NAN, 4, true), "....");
        assert_eq!(bar(9.0, 2, false), "██");
        assert!(big("12:34", true).iter().all(|row| row.len() == 4 * 4 + 2));
    }
}
