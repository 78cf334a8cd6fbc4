//! Tables for people: columns aligned by what the terminal will show, not by bytes or characters.

use continuum_model::untrusted::shown;
use std::io::{self, Write};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// Widest cell of a plain table, in columns; the rest is in `-o wide`, `json` and `describe`.
const CELL_COLUMNS_MAX: usize = 60;
/// Most characters that may share one place on the screen; a pile of combining marks is cut here.
const CLUSTER_CHARS_MAX: usize = 8;

/// How a cell is meant. Never told by colour alone: the word says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// To be looked at now.
    Critical,
    /// Of lesser weight.
    Dim,
}

impl Tone {
    /// The tone of a health, severity, step or job state.
    pub fn of(word: &str) -> Self {
        match word {
            "healthy" | "ok" | "succeeded" | "passed" | "equal" | "connected" => Self::Good,
            "warning" | "warnings" | "waiting" | "undoing" | "undone" | "paused" => Self::Warning,
            "critical" | "failed" | "undo-failed" | "differs" | "lost" => Self::Critical,
            "not-applicable" | "pending" | "skipped" | "-" => Self::Dim,
            _ => Self::Plain,
        }
    }
    /// The sequence that begins it; empty for plain.
    pub const fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "\x1b[32m",
            Self::Warning => "\x1b[33m",
            Self::Critical => "\x1b[1;31m",
            Self::Dim => "\x1b[2m",
        }
    }
}

/// A cell: text made harmless, and its tone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// Any text; `-` where it is empty.
    pub fn new(text: &str) -> Self {
        let text = if text.is_empty() { "-".to_owned() } else { tidy(&shown(text)) };
        Self { text, tone: Tone::Plain }
    }
    /// A word with its tone.
    pub fn state(word: &str) -> Self {
        let word = if word.is_empty() { "-" } else { word };
        Self { tone: Tone::of(word), ..Self::new(word) }
    }
    /// What is shown.
    pub fn text(&self) -> &str {
        &self.text
    }
    /// With this tone.
    #[must_use]
    pub fn toned(mut self, tone: Tone) -> Self {
        self.tone = tone;
        self
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text.as_ref())
    }
}

/// A table: a head, and rows as wide as the head.
#[derive(Debug, Clone, Default)]
pub struct Table {
    head: Vec<(String, Align)>,
    rows: Vec<Vec<Cell>>,
    whole: bool,
    /// What is said where there is no row.
    empty: String,
}

/// Where a column's texts stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

impl Table {
    /// A table with these columns; a title that begins with `>` stands to the right.
    pub fn new<T: AsRef<str>>(head: &[T], empty: impl Into<String>) -> Self {
        let column = |title: &str| match title.strip_prefix('>') {
            Some(title) => (title.to_owned(), Align::Right),
            None => (title.to_owned(), Align::Left),
        };
        let head = head.iter().map(|title| column(title.as_ref())).collect();
        Self { head, rows: Vec::new(), whole: false, empty: empty.into() }
    }
    /// Cuts nothing.
    #[must_use]
    pub fn whole(mut self, whole: bool) -> Self {
        self.whole = whole;
        self
    }
    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().take(self.head.len()).collect());
    }
    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }
    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Writes head and rows, two blanks between columns, none at the end of a line.
    pub fn write(&self, out: &mut dyn Write, colour: bool) -> io::Result<()> {
        self.write_indented(out, colour, "")
    }

    /// The same, with this in front of every line.
    pub fn write_indented(&self, out: &mut dyn Write, colour: bool, margin: &str) -> io::Result<()> {
        if self.rows.is_empty() {
            return if self.empty.is_empty() { Ok(()) } else { writeln!(out, "{margin}{}", self.empty) };
        }
        let limit = if self.whole { usize::MAX } else { CELL_COLUMNS_MAX };
        let rows: Vec<Vec<(String, Tone)>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|cell| (cut(&cell.text, limit), cell.tone)).collect())
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.width());
            cells.chain([self.head[column].0.width()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let head: Vec<(String, Tone)> =
            self.head.iter().map(|(title, _)| (title.clone(), Tone::Dim)).collect();
        for row in std::iter::once(&head).chain(&rows) {
            let mut line = String::from(margin);
            for (column, (text, tone)) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column].saturating_sub(text.width()));
                let (before, after) = match self.head[column].1 {
                    Align::Left => ("", padding.as_str()),
                    Align::Right => (padding.as_str(), ""),
                };
                let (begin, end) = if colour && *tone != Tone::Plain { (tone.sgr(), "\x1b[0m") } else { ("", "") };
                line.push_str(if column == 0 { "" } else { "  " });
                line.push_str(&format!("{before}{begin}{text}{end}{after}"));
            }
            writeln!(out, "{}", line.trim_end_matches(' '))?;
        }
        Ok(())
    }
}

/// Keeps at most a few characters for each place on the screen.
fn tidy(text: &str) -> String {
    let piled = |cluster: &&str| cluster.chars().count() > CLUSTER_CHARS_MAX;
    if !text.graphemes(true).any(|cluster| piled(&cluster)) {
        return text.to_owned();
    }
    text.graphemes(true)
        .map(|cluster| {
            let kept: String = cluster.chars().take(CLUSTER_CHARS_MAX).collect();
            if piled(&cluster) { kept + "…" } else { kept }
        })
        .collect()
}

/// The beginning of a text that fits into `columns`, with `…` where something is missing.
fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    for cluster in text.graphemes(true) {
        if kept.width() + cluster.width() > columns.saturating_sub(1) {
            break;
        }
        kept.push_str(cluster);
    }
    kept + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(table: &Table, colour: bool) -> String {
        let mut out = Vec::new();
        table.write(&mut out, colour).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_by_display_width() {
        let mut table = Table::new(&["NAME", ">RPO", "HEALTH"], "none");
        table.row(["web-01".into(), "0.4 s".into(), Cell::state("healthy")]);
        table.row(["北京-服务器".into(), "12 min".into(), Cell::state("critical")]);
        table.row(["a\u{1b}[31mb\n\u{202e}c".into(), "".into(), Cell::state("")]);
        assert_eq!(
            written(&table, false),
            "NAME                  RPO  HEALTH\n\
             web-01              0.4 s  healthy\n\
             北京-服务器        12 min  critical\n\
             a␛[31mb␊\\u{202e}c       -  -\n"
        );
        let coloured = written(&table, true);
        assert!(coloured.contains("\x1b[32mhealthy\x1b[0m") && coloured.contains("\x1b[1;31mcritical\x1b[0m"));
        assert!(!coloured.contains("\x1b[31mb"), "only our own sequences");
    }

    #[test]
    fn long_and_piled_cells_are_cut_where_the_table_is_not_whole() {
        let piled = format!("e{}", "\u{301}".repeat(10_000));
        let mut table = Table::new(&["NAME", "X"], "none");
        table.row([Cell::new(&"x".repeat(4096)), "y".into()]);
        table.row([Cell::new(&piled), "y".into()]);
        let text = written(&table, false);
        assert!(text.lines().all(|line| line.width() <= CELL_COLUMNS_MAX + 3), "{text}");
        assert!(text.len() < 1000, "{}", text.len());
        assert!(written(&table.whole(true), false).lines().nth(1).is_some_and(|line| line.len() > 4096));
        assert_eq!(written(&Table::new(&["NAME"], "nothing here"), false), "nothing here\n");
    }
}
