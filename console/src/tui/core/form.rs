//! Policies and plans under edit: a form of fields, or the YAML text of the same.
//!
//! ```text
//! fields ──Ctrl-E──► text          every key: read again, and what is wrong stands at its field or line
//!        ◄─Ctrl-E──                (only a text without problems becomes fields)
//!   │ "Review and order", all of it right
//!   ▼
//! dialog (the vault's report: what changes, for whom) ──agreed──► order ──taken──► closed
//!        └──Esc──► back here, nothing was ordered
//! ```
//!
//! Lives here: what was typed and what it means. Lives elsewhere: agreement (`dialog`), the order itself (`orders`), the
//! picture (`ui::form`). Invariants: nothing typed or pasted here orders anything, `Enter` in a field only goes on to
//! the next one; `Esc` gives up what was typed only when it is pressed twice.

use super::super::cmd::keys::{Chord, Code};
use super::line::{Edit, Line};
use continuum_document::policy::{self as document, Change};
use continuum_document::{Problem, plan, words};
use continuum_model::hours::{Hours, TimeOfDay, Weekday};
use continuum_model::policy::{BandwidthLimit, Policy, RetentionStep};
use continuum_model::units::Bytes;
use continuum_model::untrusted::is_dangerous;
use continuum_proto::v1 as pb;
use tui_textarea::{CursorMove, Input, Key, TextArea};

/// Most rows of one kind.
const ROWS_MAX: usize = 40;

/// What is edited.
#[derive(Debug)]
pub struct Form {
    /// Of which object.
    pub of: Of,
    /// Whether there is none of that name yet.
    pub new: bool,
    /// The version that was there when it was opened; 0: a new one.
    pub version: u64,
    /// The fields; a plan has none.
    pub rows: Vec<Row>,
    /// Which row has the keys.
    pub at: usize,
    /// The first row on the screen, as it was drawn last.
    pub text: Option<Box<Text>>,
    /// Why something was not done, in words.
    pub complaint: String,
    /// Esc was pressed once.
    pub leaving: bool,
    /// The text, or the policy's text, as it was opened.
    before: String,
}

/// The object under edit.
#[derive(Debug, Clone)]
pub enum Of {
    /// A policy: its id (empty: a new one), its fields as they were, the machines under it.
    Policy {
        /// Its id.
        id: String,
        /// As it was opened.
        before: Box<Policy>,
        /// Names of the machines under it.
        machines: Vec<String>,
    },
    /// A recovery plan, by name; empty: a new one.
    Plan(String),
}

/// A text under edit.
#[derive(Debug)]
pub struct Text {
    /// The letters, the cursor, undo.
    pub area: TextArea<'static>,
    /// What is wrong, by line.
    pub problems: Vec<Problem>,
}

/// One row of a form.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which field of the policy; empty for a button.
    pub field: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What was typed.
    pub line: Line,
    /// What is wrong with it; empty: nothing.
    pub problem: String,
}

/// What a row takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A name.
    Name,
    /// A time.
    Span,
    /// A time, or this word for none.
    SpanOr(&'static str),
    /// A size, or this word for none.
    SizeOr(&'static str),
    /// Yes or no.
    Choice,
    /// One state of every so long, up to an age.
    Step,
    /// Hours of the week and a rate.
    Limit,
    /// Hours of the week, or at once.
    Window,
    /// Adds a row to its field.
    Add,
    /// Goes on to the report.
    Review,
    /// Gives up.
    Cancel,
}

/// What a key led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that concerns others.
    Stay,
    /// Closed; nothing was ordered.
    Close,
    /// All of it is right: the vault is asked what it would mean.
    Review,
}

impl Kind {
    /// Whether letters go into it.
    pub const fn is_typed(self) -> bool {
        !matches!(self, Self::Choice | Self::Add | Self::Review | Self::Cancel)
    }
}

impl Form {
    /// A policy; without `known` a new one with the defaults.
    pub fn policy(known: Option<&pb::Policy>, machines: Vec<String>) -> Result<Self, String> {
        let (name, policy) = match known {
            Some(known) => (known.name.clone(), continuum_wire::policy::from_message(known)?),
            None => (String::new(), Policy::default()),
        };
        let mut form = Self {
            of: Of::Policy {
                id: known.map(|known| known.id.clone()).unwrap_or_default(),
                before: Box::new(policy.clone()),
                machines,
            },
            new: known.is_none(),
            version: known.map_or(0, |known| known.version),
            rows: Vec::new(),
            at: 0,
            text: None,
            complaint: String::new(),
            leaving: false,
            before: document::write(&name, &policy),
        };
        form.fill(&name, &policy);
        form.check();
        Ok(form)
    }

    /// A plan's text; without one that of an example.
    pub fn plan(known: Option<&pb::Plan>) -> Self {
        let before = known.map_or(plan::NEW, |known| known.text.as_str());
        let mut form = Self {
            of: Of::Plan(known.map(|known| known.name.clone()).unwrap_or_default()),
            new: known.is_none(),
            version: known.map_or(0, |known| known.version),
            rows: Vec::new(),
            at: 0,
            text: None,
            complaint: String::new(),
            leaving: false,
            before: before.to_owned(),
        };
        form.open_text(before);
        form
    }

    /// What it is called on the screen.
    pub fn title(&self) -> String {
        let name = match &self.of {
            Of::Policy { .. } => self.name(),
            Of::Plan(name) => name.clone(),
        };
        match (&self.of, self.new) {
            (Of::Policy { .. }, true) => "New policy".into(),
            (Of::Policy { .. }, false) => format!("Policy {name}"),
            (Of::Plan(_), true) => "New recovery plan".into(),
            (Of::Plan(_), false) => format!("Recovery plan {name}"),
        }
    }

    fn name(&self) -> String {
        self.rows
            .iter()
            .find(|row| row.kind == Kind::Name)
            .map(|row| row.line.text().trim().to_owned())
            .unwrap_or_default()
    }

    /// Makes the rows of a policy.
    fn fill(&mut self, name: &str, policy: &Policy) {
        let row =
            |field, kind, text: &str| Row { field, kind, line: Line::new(text), problem: String::new() };
        let typed = |field: &'static str, kind| row(field, kind, &document::told(policy, field));
        let mut rows = vec![row("name", Kind::Name, name), typed("retention_seconds", Kind::Span)];
        rows.extend(policy.steps.iter().map(|step| row("steps", Kind::Step, &step_text(step))));
        rows.push(row("steps", Kind::Add, ""));
        rows.push(typed("history_bytes_max", Kind::SizeOr("no limit")));
        rows.push(typed("crash_point_seconds", Kind::Span));
        rows.push(typed("app_point_seconds", Kind::SpanOr("none")));
        rows.push(typed("rpo_threshold_seconds", Kind::Span));
        rows.push(typed("staging_bytes_max", Kind::SizeOr("half of the disks")));
        rows.push(typed("compression", Kind::Choice));
        rows.push(typed("encryption", Kind::Choice));
        rows.push(typed("replication_interval_seconds", Kind::SpanOr("every write as it happens")));
        rows.extend(policy.bandwidth.iter().map(|limit| row("bandwidth", Kind::Limit, &limit_text(limit))));
        rows.push(row("bandwidth", Kind::Add, ""));
        rows.push(typed("resync_window", Kind::Window));
        rows.push(row("", Kind::Review, ""));
        rows.push(row("", Kind::Cancel, ""));
        self.rows = rows;
        self.at = self.at.min(self.rows.len() - 1);
    }

    /// Reads all rows again: what is wrong stands at its row afterwards. The policy as far as it can be read.
    fn check(&mut self) -> Policy {
        let Of::Policy { before, .. } = &self.of else { return Policy::default() };
        let mut policy = Policy { steps: Vec::new(), bandwidth: Vec::new(), ..(**before).clone() };
        for row in &mut self.rows {
            row.problem = match take(row, &mut policy) {
                Ok(()) => String::new(),
                Err(why) => why,
            };
        }
        for wrong in policy.problems() {
            let row = self.rows.iter_mut().find(|row| row.field == wrong.field && row.kind != Kind::Add);
            if let Some(row) = row.filter(|row| row.problem.is_empty()) {
                row.problem = format!("{}: {}", wrong.problem, wrong.fix);
            }
        }
        policy
    }

    /// The policy of the fields with its name, where all of it is right.
    pub fn wanted(&mut self) -> Option<pb::Policy> {
        let Of::Policy { id, .. } = &self.of else { return None };
        let id = id.clone();
        let policy = self.check();
        if self.rows.iter().any(|row| !row.problem.is_empty()) {
            return None;
        }
        Some(pb::Policy { id, name: self.name(), ..continuum_wire::policy::to_message(&policy) })
    }

    /// What would change by the fields as they stand, and what that means.
    pub fn changes(&self) -> Vec<Change> {
        let Of::Policy { before, machines, .. } = &self.of else { return Vec::new() };
        let mut policy = Policy { steps: Vec::new(), bandwidth: Vec::new(), ..(**before).clone() };
        for row in &self.rows {
            // What cannot be read changes nothing yet.
            let _ = take(row, &mut policy);
        }
        document::changes(before, &policy, machines.len())
    }

    /// The names of the machines under it.
    pub fn machines(&self) -> &[String] {
        match &self.of {
            Of::Policy { machines, .. } => machines,
            Of::Plan(_) => &[],
        }
    }

    /// Whether anything differs from what was opened.
    pub fn is_changed(&mut self) -> bool {
        match &self.text {
            Some(text) => joined(&text.area) != self.before.trim_end(),
            None => {
                let policy = self.check();
                self.rows.iter().any(|row| !row.problem.is_empty()) && !self.new
                    || document::write(&self.name(), &policy) != self.before
            }
        }
    }

    /// The plan's text, where it is one.
    pub fn plan_text(&self) -> Option<String> {
        match (&self.of, &self.text) {
            (Of::Plan(_), Some(text)) => Some(format!("{}\n", joined(&text.area))),
            _ => None,
        }
    }

    /// What differs from the text that was opened, line by line.
    pub fn difference(&self) -> Vec<String> {
        let before = if self.new { "" } else { self.before.as_str() };
        self.plan_text().map(|text| continuum_document::diff::text(before, &text)).unwrap_or_default()
    }

    fn open_text(&mut self, text: &str) {
        let mut lines: Vec<String> = text.lines().map(harmless).collect();
        if lines.is_empty() {
            lines.push(String::new());
        }
        let mut area = TextArea::new(lines);
        area.set_tab_length(2);
        area.set_max_histories(500);
        area.move_cursor(CursorMove::Top);
        self.text = Some(Box::new(Text { area, problems: Vec::new() }));
        self.check_text();
    }

    fn check_text(&mut self) {
        let Some(text) = &mut self.text else { return };
        let written = joined(&text.area);
        text.problems = match &self.of {
            Of::Policy { .. } => document::read(&written).err(),
            Of::Plan(name) => match plan::read(&written) {
                Err(problems) => Some(problems),
                Ok(plan) if !name.is_empty() && plan.name != *name => Some(vec![Problem {
                    line: 0,
                    field: "name".into(),
                    problem: format!("this is plan {name}"),
                    fix: "another name makes another plan: open a new one for it".into(),
                }]),
                Ok(_) => None,
            },
        }
        .unwrap_or_default();
    }

    /// Takes a key.
    pub fn key(&mut self, chord: Chord) -> Outcome {
        self.complaint.clear();
        if matches!(chord.code, Code::Esc) || chord == Chord::ctrl('c') {
            if self.leaving || !self.is_changed() {
                return Outcome::Close;
            }
            self.leaving = true;
            self.complaint = "Esc again gives up what you changed; any other key goes on".into();
            return Outcome::Stay;
        }
        self.leaving = false;
        if chord == Chord::ctrl('e') {
            return self.other_side();
        }
        if self.text.is_some() {
            self.text_key(chord);
            return Outcome::Stay;
        }
        self.row_key(chord)
    }

    /// From fields to text and back; a plan's text goes on to its report.
    fn other_side(&mut self) -> Outcome {
        let Some(text) = &self.text else {
            let policy = self.check();
            if let Some(at) = self.rows.iter().position(|row| !row.problem.is_empty()) {
                // A name that is still missing can be written there.
                if self.rows[at].kind != Kind::Name {
                    self.at = at;
                    self.complaint = "mend this field first: the text holds what can be read".into();
                    return Outcome::Stay;
                }
            }
            let written = document::write(&self.name(), &policy);
            self.open_text(&written);
            return Outcome::Stay;
        };
        if let Some(problem) = text.problems.first() {
            self.complaint = problem.to_string();
            let line = problem.line.saturating_sub(1);
            if let Some(text) = &mut self.text {
                text.area.move_cursor(CursorMove::Jump(u16::try_from(line).unwrap_or(u16::MAX), 0));
            }
            return Outcome::Stay;
        }
        if matches!(self.of, Of::Plan(_)) {
            if !self.new && !self.is_changed() {
                self.complaint = "nothing was changed".into();
                return Outcome::Stay;
            }
            return Outcome::Review;
        }
        if let Ok((name, policy)) = document::read(&joined(&text.area)) {
            self.text = None;
            self.fill(&name, &policy);
            self.check();
        }
        Outcome::Stay
    }

    fn text_key(&mut self, chord: Chord) {
        let Some(text) = &mut self.text else { return };
        let key = match chord.code {
            Code::Char(c) if is_dangerous(c) => return,
            Code::Char(c) => Key::Char(c),
            Code::Enter => Key::Enter,
            Code::Tab => Key::Tab,
            Code::Backspace => Key::Backspace,
            Code::Delete => Key::Delete,
            Code::Up => Key::Up,
            Code::Down => Key::Down,
            Code::Left => Key::Left,
            Code::Right => Key::Right,
            Code::PageUp => Key::PageUp,
            Code::PageDown => Key::PageDown,
            Code::Home => Key::Home,
            Code::End => Key::End,
            Code::BackTab | Code::Insert | Code::Esc | Code::F(_) => return,
        };
        let length: usize = text.area.lines().iter().map(|line| line.len() + 1).sum();
        if length > continuum_model::recovery_plan::TEXT_BYTES_MAX && chord.typed().is_some() {
            self.complaint = "the text is as long as it may be".into();
            return;
        }
        if text.area.input(Input { key, ctrl: chord.ctrl, alt: chord.alt, shift: false }) {
            self.check_text();
        }
    }

    fn row_key(&mut self, chord: Chord) -> Outcome {
        let last = self.rows.len().saturating_sub(1);
        let Some(row) = self.rows.get_mut(self.at) else { return Outcome::Close };
        match (chord.code, row.kind) {
            (Code::Down | Code::Tab, _) => self.at = if self.at == last { 0 } else { self.at + 1 },
            (Code::Up | Code::BackTab, _) => self.at = self.at.checked_sub(1).unwrap_or(last),
            (Code::PageDown, _) => self.at = last,
            (Code::PageUp, _) => self.at = 0,
            (Code::Enter, Kind::Review) => return self.review(),
            (Code::Enter, Kind::Cancel) => {
                if !self.is_changed() || self.leaving {
                    return Outcome::Close;
                }
                self.leaving = true;
                self.complaint = "Esc gives up what you changed".into();
            }
            (Code::Enter | Code::Char(' '), Kind::Add) => self.add(),
            (Code::Enter, _) => self.at = (self.at + 1).min(last),
            (Code::Char(' ') | Code::Left | Code::Right, Kind::Choice) => {
                let next = if row.line.text() == "yes" { "no" } else { "yes" };
                row.line.set(next);
                self.check();
            }
            (Code::Char('y' | 'n'), Kind::Choice) => {
                let next = if chord.code == Code::Char('y') { "yes" } else { "no" };
                row.line.set(next);
                self.check();
            }
            (Code::Left | Code::Right, Kind::Review | Kind::Cancel) => {
                self.at = if self.at == last { last - 1 } else { last };
            }
            // An empty row of a list is taken away.
            (Code::Backspace, Kind::Step | Kind::Limit) if row.line.text().is_empty() => {
                self.rows.remove(self.at);
                self.check();
            }
            (_, kind) if kind.is_typed() && row.line.key(chord) == Edit::Done => {
                self.check();
            }
            _ => {}
        }
        Outcome::Stay
    }

    fn add(&mut self) {
        let Some(row) = self.rows.get(self.at) else { return };
        let (field, kind) = match row.field {
            "steps" => ("steps", Kind::Step),
            _ => ("bandwidth", Kind::Limit),
        };
        if self.rows.iter().filter(|row| row.kind == kind).count() >= ROWS_MAX {
            self.complaint = format!("there are {ROWS_MAX} of them already");
            return;
        }
        let row = Row { field, kind, line: Line::default(), problem: String::new() };
        self.rows.insert(self.at, row);
        self.check();
    }

    fn review(&mut self) -> Outcome {
        self.check();
        if let Some(at) = self.rows.iter().position(|row| !row.problem.is_empty()) {
            self.at = at;
            self.complaint = "this field is not right yet; nothing was ordered".into();
            return Outcome::Stay;
        }
        if !self.new && !self.is_changed() {
            self.complaint = "nothing was changed".into();
            return Outcome::Stay;
        }
        Outcome::Review
    }

    /// Takes a paste: into the field or the text that has the keys. It never goes on to anything.
    pub fn paste(&mut self, pasted: &str) {
        self.leaving = false;
        if let Some(text) = &mut self.text {
            let lines: Vec<String> =
                pasted.replace("\r\n", "\n").replace('\r', "\n").lines().map(harmless).collect();
            let room =
                continuum_model::recovery_plan::TEXT_BYTES_MAX.saturating_sub(joined(&text.area).len());
            let all = lines.join("\n");
            if all.len() > room {
                self.complaint = "what was pasted is too long".into();
                return;
            }
            text.area.insert_str(all);
            self.check_text();
        } else if let Some(row) = self.rows.get_mut(self.at).filter(|row| row.kind.is_typed()) {
            row.line.paste(pasted);
            self.check();
        }
    }
}

fn joined(area: &TextArea<'_>) -> String {
    area.lines().join("\n").trim_end().to_owned()
}

/// A line without what would drive a terminal.
fn harmless(line: &str) -> String {
    line.replace('\t', "  ").chars().map(|c| if is_dangerous(c) { ' ' } else { c }).collect()
}

/// Puts a row's value into the policy.
fn take(row: &Row, policy: &mut Policy) -> Result<(), String> {
    let text = row.line.text().trim();
    let number = match row.kind {
        Kind::Name => return document::name_problem(text).map_or(Ok(()), |why| Err(why.to_owned())),
        Kind::Span => words::to_span(text)?,
        Kind::SpanOr(none) if text.is_empty() || text == none => 0,
        Kind::SpanOr(none) => words::to_span(text).map_err(|why| format!("{why}, or {none}"))?,
        Kind::SizeOr(none) if text.is_empty() || text == none => {
            match row.field {
                "staging_bytes_max" => policy.staging_bytes_max = Bytes(0),
                _ => policy.history_bytes_max = None,
            }
            return Ok(());
        }
        Kind::SizeOr(none) => words::to_size(text).map_err(|why| format!("{why}, or {none}"))?,
        Kind::Choice => u64::from(text == "yes"),
        Kind::Step => {
            policy.steps.push(step_of(text)?);
            return Ok(());
        }
        Kind::Limit => {
            policy.bandwidth.push(limit_of(text)?);
            return Ok(());
        }
        Kind::Window if text.is_empty() || text == "at once" => {
            policy.resync_window = None;
            return Ok(());
        }
        Kind::Window => {
            policy.resync_window = Some(hours_of(text).map_err(|why| format!("{why}, or at once"))?);
            return Ok(());
        }
        Kind::Add | Kind::Review | Kind::Cancel => return Ok(()),
    };
    match row.field {
        "retention_seconds" => policy.retention_seconds = number,
        "history_bytes_max" => policy.history_bytes_max = Some(Bytes(number)),
        "crash_point_seconds" => policy.crash_point_seconds = number,
        "app_point_seconds" => policy.app_point_seconds = number,
        "rpo_threshold_seconds" => policy.rpo_threshold_seconds = number,
        "staging_bytes_max" => policy.staging_bytes_max = Bytes(number),
        "compression" => policy.compression = number == 1,
        "encryption" => policy.encryption = number == 1,
        "replication_interval_seconds" => policy.replication_interval_seconds = number,
        _ => {}
    }
    Ok(())
}

fn step_text(step: &RetentionStep) -> String {
    format!("{} up to {}", words::span(step.every_seconds), words::span(step.for_seconds))
}

fn step_of(text: &str) -> Result<RetentionStep, String> {
    const WRONG: &str = "write how often and up to which age, such as: 1 h up to 7 d";
    let (every, until) = text.split_once("up to").ok_or(WRONG)?;
    let span = |text: &str| words::to_span(text).map_err(|_| WRONG.to_owned());
    Ok(RetentionStep { every_seconds: span(every)?, for_seconds: span(until)? })
}

fn limit_text(limit: &BandwidthLimit) -> String {
    format!("{} {}", hours_text(&limit.hours()), words::rate(limit.bytes_per_sec))
}

fn limit_of(text: &str) -> Result<BandwidthLimit, String> {
    const WRONG: &str = "write days, hours and a rate, such as: mon-fri 08:00-18:00 2 MB/s";
    let colon = text.rfind(':').ok_or(WRONG)?;
    let (hours, rate) = text.split_at_checked(colon + 3).ok_or(WRONG)?;
    let Hours { days, from, to } = hours_of(hours).map_err(|_| WRONG.to_owned())?;
    let bytes_per_sec = words::to_rate(rate).map_err(|_| WRONG.to_owned())?;
    Ok(BandwidthLimit { days, from, to, bytes_per_sec })
}

/// Hours of the week, with runs of days as people write them.
fn hours_text(hours: &Hours) -> String {
    let days = &hours.days;
    let run = days.len() > 2 && days.windows(2).all(|pair| pair[1].before() == pair[0]);
    match (days.first(), days.last()) {
        (Some(first), Some(last)) if run => {
            format!("{}-{} {}-{}", first.name(), last.name(), hours.from, hours.to)
        }
        _ => document::hours(hours).replace(", ", ","),
    }
}

fn hours_of(text: &str) -> Result<Hours, String> {
    const WRONG: &str = "write days and hours, such as: every day 18:30-06:00, or sat,sun 00:00-24:00";
    let text = text.trim();
    let (days, hours) = text.rsplit_once(' ').unwrap_or(("", text));
    let (from, to) = hours.split_once('-').ok_or(WRONG)?;
    let time = |text: &str| text.trim().parse::<TimeOfDay>().map_err(|_| WRONG.to_owned());
    let day = |name: &str| Weekday::named(name.trim()).ok_or_else(|| WRONG.to_owned());
    let mut named = Vec::new();
    let days = days.trim().to_ascii_lowercase();
    if !matches!(days.as_str(), "" | "every day" | "daily") {
        for part in days.split(',') {
            match part.split_once('-') {
                Some((first, last)) => {
                    let (mut at, last) = (day(first)?, day(last)?);
                    named.push(at);
                    while at != last {
                        at = Weekday::from_monday(at as u32 + 1);
                        named.push(at);
                    }
                }
                None => named.push(day(part)?),
            }
        }
    }
    Ok(Hours { days: named, from: time(from)?, to: time(to)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form() -> Form {
        let policy = Policy {
            steps: vec![RetentionStep { every_seconds: 3600, for_seconds: 7 * 86_400 }],
            bandwidth: vec![limit_of("mon-fri 08:00-18:00 2 MB/s").unwrap()],
            resync_window: Some(hours_of("every day 18:30-06:00").unwrap()),
            ..Policy::default()
        };
        let message = pb::Policy {
            id: "p".into(),
            name: "gold".into(),
            version: 3,
            ..continuum_wire::policy::to_message(&policy)
        };
        Form::policy(Some(&message), vec!["web-01".into(), "db-01".into(), "app-01".into()]).unwrap()
    }

    fn to(form: &mut Form, field: &str) {
        form.at = form.rows.iter().position(|row| row.field == field).unwrap();
    }

    fn set(form: &mut Form, field: &str, text: &str) {
        to(form, field);
        form.key(Chord::ctrl('u'));
        text.chars().for_each(|c| {
            form.key(Chord::char(c));
        });
    }

    #[test]
    fn what_is_shown_is_read_as_the_same_and_nothing_is_changed_by_looking() {
        let mut form = form();
        assert!(!form.is_changed() && form.changes().is_empty());
        assert!(form.rows.iter().all(|row| row.problem.is_empty()), "{:?}", form.rows);
        assert_eq!(
            form.rows.iter().find(|row| row.kind == Kind::Limit).unwrap().line.text(),
            "mon-fri 08:00-18:00 2 MB/s"
        );
        let (Outcome::Stay, true) = (form.key(Chord::ctrl('e')), form.text.is_some()) else {
            panic!("no text")
        };
        form.key(Chord::ctrl('e'));
        assert!(form.text.is_none() && !form.is_changed());
        assert_eq!(form.key(Chord::plain(Code::Esc)), Outcome::Close, "nothing is given up");
    }

    #[test]
    fn every_key_is_judged_and_nothing_wrong_goes_on() {
        let mut form = form();
        set(&mut form, "retention_seconds", "8 hours");
        assert!(
            form.changes()[0].means.contains("is thinned"),
            "seven days of hours stay promised: {:?}",
            form.changes()[0]
        );
        set(&mut form, "steps", "");
        assert!(form.rows.iter().any(|row| row.field == "steps" && row.problem.contains("such as")));
        form.key(Chord::plain(Code::Backspace));
        assert!(
            form.changes().iter().any(|change| change.means.contains("3 machines from 7 d to 8 h")),
            "{:?}",
            form.changes()
        );
        set(&mut form, "app_point_seconds", "9 h");
        let wrong = form.rows.iter().find(|row| row.field == "app_point_seconds").unwrap();
        assert!(wrong.problem.contains("not shorter than the retention"), "{}", wrong.problem);
        form.at = form.rows.len() - 2;
        assert_eq!(form.key(Chord::plain(Code::Enter)), Outcome::Stay);
        assert_eq!(form.rows[form.at].field, "app_point_seconds", "the cursor goes to what is wrong");
        set(&mut form, "app_point_seconds", "none");
        form.at = form.rows.len() - 2;
        assert_eq!(form.key(Chord::plain(Code::Enter)), Outcome::Review);
        let wanted = form.wanted().unwrap();
        assert_eq!((wanted.retention_seconds, wanted.steps.len(), wanted.id.as_str()), (8 * 3600, 0, "p"));
    }

    #[test]
    fn a_paste_never_goes_on_and_esc_gives_up_only_when_pressed_twice() {
        let mut form = form();
        form.paste("gold\n\n\x1b[31m");
        assert!(form.is_changed() && form.text.is_none());
        assert!(!form.name().contains('\x1b'));
        assert_eq!(form.key(Chord::plain(Code::Esc)), Outcome::Stay);
        form.key(Chord::plain(Code::Down));
        assert_eq!(form.key(Chord::plain(Code::Esc)), Outcome::Stay, "another key took it back");
        assert_eq!(form.key(Chord::plain(Code::Esc)), Outcome::Close);
        let mut plan = Form::plan(None);
        plan.paste("a: [\nb\x07\n");
        let text = plan.text.as_ref().unwrap();
        assert!(!text.problems.is_empty() && !joined(&text.area).contains('\x07'));
        assert_eq!(plan.key(Chord::ctrl('e')), Outcome::Stay, "what is wrong does not go on");
        assert!(plan.complaint.contains("line"), "{}", plan.complaint);
    }

    #[test]
    fn hours_are_written_as_people_do() {
        for (text, days, again) in [
            ("mon-fri 08:00-18:00", 5, "mon-fri 08:00-18:00"),
            ("every day 18:30-06:00", 0, "every day 18:30-06:00"),
            ("18:30-06:00", 0, "every day 18:30-06:00"),
            ("sat,sun 00:00-24:00", 2, "sat,sun 00:00-24:00"),
            ("fri-mon 01:00-02:00", 4, "fri-mon 01:00-02:00"),
        ] {
            let hours = hours_of(text).unwrap();
            assert_eq!((hours.days.len(), hours_text(&hours).as_str()), (days, again), "{text}");
        }
        for wrong in ["", "mon", "mon 8-18", "xyz 08:00-18:00", "mon-xyz 08:00-18:00", "08:00-25:00"] {
            assert!(hours_of(wrong).is_err(), "{wrong}");
        }
    }
}
