//! Tables of any length: order, filter, marks, and a cursor that stands on a thing, not on a line.
//!
//! Lives here: which rows are shown, in which order, and where the cursor is. Lives elsewhere: what the rows
//! hold (`rows`), how they are drawn (`ui::table`).
//!
//! Invariants: the selection is an identity: however rows move, it stays on the same thing, and only when
//! that thing is gone it falls to the neighbour. Drawing touches no more rows than fit on the screen.

use super::tone::{Mark, Role};
use nucleo_matcher::pattern::{CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use std::cmp::Ordering;
use std::collections::BTreeSet;

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its name in sorting, exports and the chooser.
    pub title: &'static str,
    /// Its width; the least one for a column that grows.
    pub width: u16,
    /// Whether it takes what is left; more than one share it.
    pub grows: bool,
    /// Numbers stand at the right edge.
    pub right: bool,
    /// Columns with the highest rank go first when there is no room. Rank 0 never goes.
    pub rank: u8,
}

impl Column {
    /// A column of text.
    pub const fn text(title: &'static str, width: u16, rank: u8) -> Self {
        Self { title, width, grows: false, right: false, rank }
    }
    /// A column of numbers.
    pub const fn number(title: &'static str, width: u16, rank: u8) -> Self {
        Self { title, width, grows: false, right: true, rank }
    }
    /// A column that takes what is left.
    pub const fn growing(title: &'static str, width: u16, rank: u8) -> Self {
        Self { title, width, grows: true, right: false, rank }
    }
}

/// What stands in one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The text; harmless.
    pub text: String,
    /// What it means.
    pub role: Role,
    /// A glyph before the text.
    pub mark: Option<Mark>,
    /// Values of a small chart, in place of the text; scaled to the greatest.
    pub chart: Vec<u64>,
}

impl Cell {
    /// Ordinary text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::toned(text, Role::Text)
    }
    /// Text with a meaning.
    pub fn toned(text: impl Into<String>, role: Role) -> Self {
        Self { text: text.into(), role, mark: None, chart: Vec::new() }
    }
    /// Text behind a glyph.
    pub fn marked(mark: Mark, role: Role, text: impl Into<String>) -> Self {
        Self { text: text.into(), role, mark: Some(mark), chart: Vec::new() }
    }
    /// A small chart.
    pub fn chart(values: &[u64]) -> Self {
        Self { text: String::new(), role: Role::Chart, mark: None, chart: values.to_vec() }
    }
}

/// What a column is sorted by.
#[derive(Debug, Clone, PartialEq)]
pub enum Key {
    /// Not known: last, whichever way.
    None,
    /// A number.
    Number(f64),
    /// A text, compared without case.
    Text(String),
}

impl Key {
    /// A text.
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_lowercase())
    }
    /// A number, where it is known.
    pub fn number(value: Option<f64>) -> Self {
        value.map_or(Self::None, Self::Number)
    }
    fn compare(&self, other: &Self, descending: bool) -> Ordering {
        let turned = |order: Ordering| if descending { order.reverse() } else { order };
        match (self, other) {
            (Self::None, Self::None) => Ordering::Equal,
            (Self::None, Self::Number(_) | Self::Text(_)) => Ordering::Greater,
            (Self::Number(_) | Self::Text(_), Self::None) => Ordering::Less,
            (Self::Number(a), Self::Number(b)) => turned(a.total_cmp(b)),
            (Self::Text(a), Self::Text(b)) => turned(a.cmp(b)),
            (Self::Number(_), Self::Text(_)) => Ordering::Less,
            (Self::Text(_), Self::Number(_)) => Ordering::Greater,
        }
    }
}

/// Rows that a table can show. `place` counts from 0 to `len` in no order of meaning.
pub trait Rows {
    /// The columns.
    fn columns(&self) -> &'static [Column];
    /// How many rows there are, before any filter.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What a row is, for as long as it lives.
    fn id(&self, place: usize) -> &str;
    /// One field.
    fn cell(&self, place: usize, column: usize) -> Cell;
    /// What it is sorted by; `usize::MAX` asks for the natural order.
    fn key(&self, place: usize, column: usize) -> Key;
    /// What a filter looks into. The first text is where matches are shown.
    fn haystack(&self, place: usize, out: &mut String);
    /// Whether rows are in an order that sorting would destroy.
    fn is_ordered(&self) -> bool {
        false
    }
    /// What to say where there are no rows.
    fn empty(&self) -> &'static str;
    /// The column whose text is the row's name: matched letters are shown there.
    fn name_column(&self) -> usize {
        0
    }
}

/// No column: the natural order.
pub const NATURAL: usize = usize::MAX;

/// How a table stands.
#[derive(Debug, Clone)]
pub struct Table {
    /// The thing under the cursor.
    pub selected: Option<String>,
    /// Sorted by this column, or [`NATURAL`].
    pub sort: usize,
    /// Greatest first.
    pub descending: bool,
    /// Columns that a person hid.
    pub hidden: BTreeSet<&'static str>,
    /// What rows must match.
    pub filter: String,
    /// Whether the operator put the cursor where it is.
    placed: bool,
    /// Marked things.
    pub marks: BTreeSet<String>,
    order: Vec<u32>,
    cursor: usize,
    top: usize,
    height: usize,
    state: Seen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    shape: u64,
    revision: u64,
    rows: usize,
    known: bool,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            selected: None,
            sort: NATURAL,
            descending: false,
            hidden: BTreeSet::new(),
            filter: String::new(),
            placed: false,
            marks: BTreeSet::new(),
            order: Vec::new(),
            cursor: 0,
            top: 0,
            height: 1,
            state: Seen::default(),
        }
    }
}

impl Table {
    /// Places of the rows on the screen, from the first to the last.
    pub fn window(&self) -> &[u32] {
        let end = (self.top + self.height).min(self.order.len());
        self.order.get(self.top..end).unwrap_or(&[])
    }
    /// Every shown row's place, in order.
    pub fn order(&self) -> &[u32] {
        &self.order
    }
    /// How many rows pass the filter.
    pub const fn shown(&self) -> usize {
        self.order.len()
    }
    /// The line of the cursor, from 0.
    pub const fn cursor(&self) -> usize {
        self.cursor
    }
    /// The first line on the screen.
    pub const fn top(&self) -> usize {
        self.top
    }

    /// The order must be made again, whatever `refresh` knows.
    pub const fn invalidate(&mut self) {
        self.state.known = false;
    }

    /// Sets a filter; the cursor stays where it is, if that row still passes.
    pub fn set_filter(&mut self, filter: &str) {
        if self.filter != filter {
            filter.clone_into(&mut self.filter);
            self.invalidate();
        }
    }

    /// Sorts by the next column, after the last one by the natural order.
    pub fn sort_next(&mut self, columns: &[Column]) {
        self.sort = match self.sort {
            NATURAL => 0,
            at if at + 1 < columns.len() => at + 1,
            _ => NATURAL,
        };
        self.descending = self.sort != NATURAL && columns.get(self.sort).is_some_and(|column| column.right);
        self.invalidate();
    }

    /// Makes the order again where something changed. While `frozen` (a dialog is open), values may change
    /// but rows stay where they are, unless rows came or went.
    pub fn refresh(&mut self, rows: &dyn Rows, shape: u64, revision: u64, frozen: bool) {
        let now = Seen { shape, revision, rows: rows.len(), known: true };
        let same_rows = self.state.known && self.state.shape == shape && self.state.rows == rows.len();
        if self.state == now || (same_rows && frozen) {
            return;
        }
        self.state = now;
        self.order = order(rows, &self.filter, self.sort, self.descending);
        self.follow(rows);
    }

    fn follow(&mut self, rows: &dyn Rows) {
        let found = self
            .selected
            .as_deref()
            .and_then(|selected| self.order.iter().position(|place| rows.id(*place as usize) == selected));
        match found {
            // Nobody chose a row yet: the first one is looked at, whichever that becomes.
            _ if !self.placed => self.stand_on(0, rows),
            Some(at) => self.stand_on(at, rows),
            None => self.stand_on(self.cursor, rows),
        }
    }

    /// Puts the cursor on a line; past the end means the last. From then on it stays with that row's thing.
    pub fn move_to(&mut self, line: usize, rows: &dyn Rows) {
        self.placed = true;
        self.stand_on(line, rows);
    }

    fn stand_on(&mut self, line: usize, rows: &dyn Rows) {
        self.cursor = line.min(self.order.len().saturating_sub(1));
        self.selected = self.order.get(self.cursor).map(|place| rows.id(*place as usize).to_owned());
        self.scroll();
    }

    /// Moves the cursor by lines.
    pub fn move_by(&mut self, lines: isize, rows: &dyn Rows) {
        self.move_to(self.cursor.saturating_add_signed(lines), rows);
    }

    /// How many lines fit.
    pub fn set_height(&mut self, height: usize) {
        self.height = height.max(1);
        self.scroll();
    }

    /// The height that was set last.
    pub const fn height(&self) -> usize {
        self.height
    }

    /// Brings the cursor into the window: by half a page, because every line that scrolls repaints the page
    /// over a slow link.
    fn scroll(&mut self) {
        let last_top = self.order.len().saturating_sub(self.height);
        if self.cursor < self.top || self.cursor >= self.top + self.height {
            self.top = self.cursor.saturating_sub(self.height / 2);
        }
        self.top = self.top.min(last_top);
    }

    /// Marks the row under the cursor, or takes its mark away, and goes on to the next.
    pub fn toggle_mark(&mut self, rows: &dyn Rows) {
        if let Some(selected) = self.selected.clone() {
            if !self.marks.remove(&selected) {
                self.marks.insert(selected);
            }
            self.move_by(1, rows);
        }
    }

    /// Forgets marks of things that are gone.
    pub fn keep_marks(&mut self, exists: impl Fn(&str) -> bool) {
        self.marks.retain(|id| exists(id));
    }
}

fn order(rows: &dyn Rows, filter: &str, sort: usize, descending: bool) -> Vec<u32> {
    let mut places: Vec<u32> = (0..u32::try_from(rows.len()).unwrap_or(u32::MAX)).collect();
    if !filter.trim().is_empty() {
        let wanted = Filter::new(filter);
        let mut seeker = Seeker::default();
        let mut text = String::new();
        places.retain(|place| {
            text.clear();
            rows.haystack(*place as usize, &mut text);
            seeker.passes(&wanted, &text)
        });
    }
    if rows.is_ordered() {
        return places;
    }
    let mut keyed: Vec<(Key, u32)> =
        places.into_iter().map(|place| (rows.key(place as usize, sort), place)).collect();
    keyed.sort_by(|(a, a_place), (b, b_place)| {
        a.compare(b, descending).then_with(|| rows.id(*a_place as usize).cmp(rows.id(*b_place as usize)))
    });
    keyed.into_iter().map(|(_, place)| place).collect()
}

/// What a person typed after `/`: words that must all be found, fuzzily; `!word` must not be.
pub struct Filter {
    pattern: Pattern,
}

impl Filter {
    /// Reads what was typed.
    pub fn new(text: &str) -> Self {
        Self { pattern: Pattern::parse(text, CaseMatching::Smart, Normalization::Smart) }
    }
}

/// Looks for a filter's words, and keeps its memory between texts.
pub struct Seeker {
    matcher: Matcher,
    letters: Vec<char>,
}

impl Default for Seeker {
    fn default() -> Self {
        Self { matcher: Matcher::new(Config::DEFAULT), letters: Vec::new() }
    }
}

impl Seeker {
    /// Whether a text passes.
    pub fn passes(&mut self, filter: &Filter, text: &str) -> bool {
        self.score(filter, text).is_some()
    }
    /// How well a text passes; `None` where it does not.
    pub fn score(&mut self, filter: &Filter, text: &str) -> Option<u32> {
        filter.pattern.score(Utf32Str::new(text, &mut self.letters), &mut self.matcher)
    }
    /// Which letters of a text were matched.
    pub fn letters(&mut self, filter: &Filter, text: &str) -> Vec<u32> {
        let mut found = Vec::new();
        filter.pattern.indices(Utf32Str::new(text, &mut self.letters), &mut self.matcher, &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Names with a number each.
    struct List(Vec<(String, f64)>);
    impl Rows for List {
        fn columns(&self) -> &'static [Column] {
            const COLUMNS: [Column; 2] = [Column::text("NAME", 8, 0), Column::number("N", 4, 1)];
            &COLUMNS
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn id(&self, place: usize) -> &str {
            &self.0[place].0
        }
        fn cell(&self, place: usize, _: usize) -> Cell {
            Cell::text(&self.0[place].0)
        }
        fn key(&self, place: usize, column: usize) -> Key {
            if column == 1 { Key::Number(self.0[place].1) } else { Key::text(&self.0[place].0) }
        }
        fn haystack(&self, place: usize, out: &mut String) {
            out.push_str(&self.0[place].0);
        }
        fn empty(&self) -> &'static str {
            "none"
        }
    }
    fn list(n: usize) -> List {
        List((0..n).map(|at| (format!("m{at:03}"), ((at * 7) % 5) as f64)).collect())
    }

    #[test]
    fn the_cursor_stays_on_the_thing_when_rows_move() {
        let mut rows = list(20);
        let mut table = Table { sort: 1, ..Table::default() };
        table.set_height(5);
        table.refresh(&rows, 1, 1, false);
        table.move_to(7, &rows);
        let chosen = table.selected.clone().unwrap();
        for (revision, place) in (2..).zip([3, 0, 19, 7]) {
            rows.0[place].1 = -100.0 * revision as f64;
            table.refresh(&rows, 1, revision, false);
            assert_eq!(table.selected.as_deref(), Some(chosen.as_str()));
            let line = table.order()[table.cursor()] as usize;
            assert_eq!(rows.id(line), chosen, "the line under the cursor is that thing");
            assert!(table.window().contains(&table.order()[table.cursor()]), "and it is on the screen");
        }
    }

    #[test]
    fn a_dialog_freezes_the_order_but_not_the_rows() {
        let mut rows = list(6);
        let mut table = Table { sort: 1, ..Table::default() };
        table.refresh(&rows, 1, 1, false);
        let before = table.order().to_vec();
        rows.0[0].1 = 99.0;
        table.refresh(&rows, 1, 2, true);
        assert_eq!(table.order(), before);
        table.refresh(&rows, 1, 2, false);
        assert_ne!(table.order(), before);
        rows.0.pop();
        table.refresh(&rows, 2, 3, true);
        assert_eq!(table.shown(), 5, "a row that is gone is never shown");
    }

    #[test]
    fn a_filter_is_fuzzy_and_can_exclude() {
        let rows = List(["web-01", "web-02", "db-01", "mail"].map(|name| (name.to_owned(), 0.0)).to_vec());
        for (filter, expected) in [
            ("", vec!["db-01", "mail", "web-01", "web-02"]),
            ("wb1", vec!["web-01"]),
            ("web !02", vec!["web-01"]),
            ("01", vec!["db-01", "web-01"]),
            ("nothing", vec![]),
        ] {
            let mut table = Table::default();
            table.set_filter(filter);
            table.refresh(&rows, 1, 1, false);
            let names: Vec<_> = table.order().iter().map(|place| rows.id(*place as usize)).collect();
            assert_eq!(names, expected, "{filter}");
        }
        let found = Seeker::default().letters(&Filter::new("wb1"), "web-01");
        assert_eq!(found, [0, 2, 5]);
    }

    #[test]
    fn what_is_not_known_is_last_both_ways() {
        for descending in [false, true] {
            assert_eq!(Key::None.compare(&Key::Number(1.0), descending), Ordering::Greater);
            assert_eq!(Key::Text("a".into()).compare(&Key::None, descending), Ordering::Less);
        }
    }

    proptest! {
        #[test]
        fn the_cursor_is_always_on_the_screen(moves in prop::collection::vec((-30_isize..30, 1_usize..12, 0_usize..40), 1..60)) {
            let mut table = Table::default();
            let mut shape = 0;
            for (by, height, rows) in moves {
                let rows = list(rows);
                shape += 1;
                table.set_height(height);
                table.refresh(&rows, shape, shape, false);
                table.move_by(by, &rows);
                prop_assert!(table.window().len() <= height);
                if rows.is_empty() {
                    prop_assert!(table.selected.is_none());
                } else {
                    prop_assert!(table.top() <= table.cursor() && table.cursor() < table.top() + height);
                    let line = table.order()[table.cursor()] as usize;
                    prop_assert_eq!(table.selected.as_deref(), Some(rows.id(line)));
                }
            }
        }
    }
}
