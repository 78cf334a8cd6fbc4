//! How an answer is written: a table for people, JSON, YAML or CSV for scripts.
//!
//! - [`doc`]: the answer itself, a tree with its fields in the order of the contract
//! - [`json`], [`yaml`], [`csv`]: that tree as text. Text from outside stays exact where the format can
//!   escape it (JSON, YAML) and is made visible where it cannot (CSV)
//! - [`table`]: columns aligned by display width
//! - [`human`]: durations, sizes and ages in words
//!
//! Invariant: nothing that is written holds a control, bidirectional or invisible character that came
//! from outside.

pub mod csv;
pub mod doc;
pub mod human;
pub mod json;
pub mod table;
pub mod yaml;

use std::io::{self, IsTerminal, Write};

/// In which form an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns for people, worst first.
    #[default]
    Table,
    /// As `table`, with more columns and nothing cut.
    Wide,
    /// JSON; a list is an array.
    Json,
    /// The same as YAML.
    Yaml,
    /// The same as CSV, one line for each object; cells that a spreadsheet would take for a formula are quoted.
    Csv,
}

impl Format {
    /// Whether a program reads it: no prose on standard output, no progress beside it.
    pub const fn for_programs(self) -> bool {
        matches!(self, Self::Json | Self::Yaml | Self::Csv)
    }
}

/// Where answers go, and how they may look there.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// The form asked for.
    pub format: Format,
    /// Whether standard output takes colour.
    pub colour: bool,
    /// How many columns the terminal has; `None`: there is no terminal, and room enough.
    pub room: Option<usize>,
}

impl Style {
    /// Colour only on a terminal, and only where nothing speaks against it.
    pub fn choose(format: Format, no_colour: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let room = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
        Self {
            format,
            colour: Self::allowed(no_colour) && terminal,
            room: room.filter(|room| terminal && *room > 0),
        }
    }
    /// Whether neither `--no-color`, `NO_COLOR` nor a dumb terminal speaks against colour.
    pub fn allowed(no_colour: bool) -> bool {
        !no_colour
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
    }
}

/// Writes a list in the form asked for. `blank` has the fields of an empty object, for the head of an empty CSV.
pub fn list(
    out: &mut dyn Write,
    style: Style,
    docs: impl FnOnce() -> Vec<doc::Doc>,
    blank: &doc::Doc,
    table: impl FnOnce(bool) -> table::Table,
) -> io::Result<()> {
    match style.format {
        Format::Table => table(false).fit(style.room).write(out, style.colour),
        Format::Wide => table(true).write(out, style.colour),
        Format::Json => json::write(out, &doc::Doc::List(docs())),
        Format::Yaml => yaml::write(out, &doc::Doc::List(docs())),
        Format::Csv => csv::write(out, &docs(), blank),
    }
}

/// Writes one object in the form asked for.
pub fn one(
    out: &mut dyn Write,
    style: Style,
    doc: doc::Doc,
    text: impl FnOnce(&mut dyn Write, bool) -> io::Result<()>,
) -> io::Result<()> {
    match style.format {
        Format::Table | Format::Wide => text(out, style.format == Format::Wide),
        Format::Json => json::write(out, &doc),
        Format::Yaml => yaml::write(out, &doc),
        Format::Csv => csv::write(out, std::slice::from_ref(&doc), &doc),
    }
}
