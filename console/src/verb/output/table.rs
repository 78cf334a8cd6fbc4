//! Tables for people: columns aligned by what the terminal will show, not by bytes or characters.
//!
//! On a terminal that is too narrow, columns that can be spared go first (from the right), then the
//! widest ones shrink. Nothing is cut where a program or a file gets the table, except very long cells of
//! a plain table.

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
    head: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    whole: bool,
    /// How many columns there are.
    room: Option<usize>,
    /// What is said where there is no row.
    empty: String,
}

#[derive(Debug, Clone)]
struct Column {
    title: String,
    right: bool,
    /// May be left out where there is no room.
    spare: bool,
}

/// No column shrinks below this.
const SHRUNK_COLUMNS_MIN: usize = 12;

impl Table {
    /// A table with these columns; a title that begins with `>` stands to the right, one that begins
    /// with `?` may be left out on a narrow terminal.
    pub fn new<T: AsRef<str>>(head: &[T], empty: impl Into<String>) -> Self {
        let column = |title: &str| {
            let (title, spare) = title.strip_prefix('?').map_or((title, false), |title| (title, true));
            let (title, right) = title.strip_prefix('>').map_or((title, false), |title| (title, true));
            Column { title: title.to_owned(), right, spare }
        };
        let head = head.iter().map(|title| column(title.as_ref())).collect();
        Self { head, rows: Vec::new(), whole: false, room: None, empty: empty.into() }
    }
    /// Fits into this many columns, where that is possible.
    #[must_use]
    pub fn fit(mut self, room: Option<usize>) -> Self {
        self.room = room;
        self
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
        let mut widths: Vec<usize> = self.head.iter().map(|column| column.title.width()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width().min(limit));
            }
        }
        let shown = self.make_room(&mut widths, margin.width());
        let mut line = String::new();
        let head =
            self.head.iter().map(|column| Cell { text: column.title.clone(), tone: Tone::Dim }).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            line.clear();
            line.push_str(margin);
            for (at, column) in shown.iter().copied().enumerate() {
                let Some(cell) = row.get(column) else { break };
                let text = cut(&cell.text, widths[column]);
                let padding = widths[column].saturating_sub(text.width());
                line.push_str(if at == 0 { "" } else { "  " });
                if self.head[column].right {
                    line.extend(std::iter::repeat_n(' ', padding));
                }
                if colour && cell.tone != Tone::Plain {
                    line.extend([cell.tone.sgr(), &text, "\x1b[0m"]);
                } else {
                    line.push_str(&text);
                }
                if !self.head[column].right {
                    line.extend(std::iter::repeat_n(' ', padding));
                }
            }
            writeln!(out, "{}", line.trim_end_matches(' '))?;
        }
        Ok(())
    }

    /// Which columns are shown; shrinks the widths of the widest where all that can be spared is not enough.
    fn make_room(&self, widths: &mut [usize], margin: usize) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..self.head.len()).collect();
        let Some(room) = self.room.filter(|_| !self.whole) else { return shown };
        let needed = |shown: &[usize], widths: &[usize]| {
            margin
                + shown.iter().map(|column| widths[*column]).sum::<usize>()
                + 2 * shown.len().saturating_sub(1)
        };
        while needed(&shown, widths) > room {
            match shown.iter().rposition(|column| self.head[*column].spare) {
                Some(at) => drop(shown.remove(at)),
                None => break,
            }
        }
        while needed(&shown, widths) > room {
            match shown.iter().copied().max_by_key(|column| widths[*column]) {
                Some(widest) if widths[widest] > SHRUNK_COLUMNS_MIN => widths[widest] -= 1,
                _ => break,
            }
        }
        shown
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
        assert!(
            coloured.contains("\x1b[32mhealthy\x1b[0m") && coloured.contains("\x1b[1;31mcritical\x1b[0m")
        );
        assert!(!coloured.contains("\x1b[31mb"), "only our own sequences");
    }

    #[test]
    fn a_narrow_terminal_loses_what_can_be_spared_then_shrinks_the_widest() {
        let mut table = Table::new(&["NAME", "?>CHURN", "WHAT HAPPENED", "?MODE"], "none");
        table.row([
            "web-01".into(),
            "1.0 MiB/s".into(),
            "the agent has been silent for 20 s".into(),
            "data".into(),
        ]);
        let at = |room| {
            let text = written(&table.clone().fit(room), false);
            assert!(room.is_none_or(|room| text.lines().all(|line| line.width() <= room)), "{text}");
            text
        };
        assert_eq!(
            at(None).lines().next(),
            Some("NAME        CHURN  WHAT HAPPENED                       MODE")
        );
        assert_eq!(at(Some(56)).lines().next(), Some("NAME        CHURN  WHAT HAPPENED"));
        assert_eq!(at(Some(45)).lines().next(), Some("NAME    WHAT HAPPENED"));
        assert_eq!(at(Some(28)), "NAME    WHAT HAPPENED\nweb-01  the agent has been …\n");
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
