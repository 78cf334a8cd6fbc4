//! The command palette: what was typed, what it can become, and what it means.

use super::super::cmd::Action;
use super::super::cmd::{Argument, Entry, REGISTRY, entry_of, word};
use super::estate::Estate;
use super::line::Line;
use super::rows::job_title;
use super::table::{Filter, Seeker};
use super::text;

/// So many proposals at most.
const PROPOSALS_MAX: usize = 40;
/// So many lines are remembered.
const HISTORY_MAX: usize = 100;

/// The palette while it is open.
#[derive(Debug, Clone, Default)]
pub struct Palette {
    /// What was typed.
    pub line: Line,
    /// The chosen proposal.
    pub chosen: Option<usize>,
    /// What it could become.
    pub proposals: Vec<Proposal>,
    /// Why Enter did nothing.
    pub complaint: String,
    /// How far back in history.
    pub recalled: Option<usize>,
}

/// One thing that the line could become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The whole line.
    pub line: String,
    /// What it does.
    pub about: String,
    /// Whether it can be run as it is, or needs its argument.
    pub complete: bool,
    /// Matched letters of the line.
    pub letters: Vec<u32>,
}

/// What a line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meaning {
    /// The action.
    pub action: Action,
    /// What stands behind its word.
    pub argument: String,
}

/// Reads a line.
pub fn read(line: &str) -> Result<Meaning, String> {
    let line = line.trim();
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    let entry = word(first).ok_or_else(|| format!("there is no command {}", text::fit(first, 30, '…')))?;
    let rest = rest.trim();
    if entry.argument == Argument::None && !rest.is_empty() {
        return Err(format!("{first} takes nothing behind it"));
    }
    Ok(Meaning { action: entry.action, argument: rest.to_owned() })
}

/// What a line could become.
pub fn proposals(line: &str, estate: &Estate, themes: &[String]) -> Vec<Proposal> {
    let typed = line.trim_start();
    let mut found = match typed.split_once(' ') {
        None => words(typed, estate),
        Some((first, rest)) => match word(first) {
            Some(entry) => arguments(first, entry, rest.trim(), estate, themes),
            None => Vec::new(),
        },
    };
    found.truncate(PROPOSALS_MAX);
    found
}

fn words(typed: &str, estate: &Estate) -> Vec<Proposal> {
    let filter = Filter::new(typed);
    let mut seeker = Seeker::default();
    let mut scored: Vec<(u32, Proposal)> = Vec::new();
    for entry in REGISTRY {
        for (at, name) in entry.words.iter().enumerate() {
            let exact = if name.starts_with(typed) { 1000 } else { 0 };
            let Some(score) = seeker.score(&filter, name) else { continue };
            // Other names of an action are proposed only where they were meant.
            if at > 0 && exact == 0 {
                continue;
            }
            let letters = seeker.letters(&filter, name);
            scored.push((
                score + exact,
                Proposal {
                    line: (*name).to_owned(),
                    about: entry.label.to_owned(),
                    complete: !matches!(entry.argument, Argument::Theme | Argument::Moment),
                    letters,
                },
            ));
        }
    }
    if !typed.is_empty() {
        for (score, name, about) in machines(typed, estate, 8) {
            let line = format!("machine {name}");
            scored.push((score, Proposal { line, about, complete: true, letters: Vec::new() }));
        }
    }
    // Stable: what scores alike stays in the registry's order.
    scored.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    scored.into_iter().map(|(_, proposal)| proposal).collect()
}

fn arguments(first: &str, entry: &Entry, rest: &str, estate: &Estate, themes: &[String]) -> Vec<Proposal> {
    let make = |value: &str, about: String| Proposal {
        line: format!("{first} {value}"),
        about,
        complete: true,
        letters: Vec::new(),
    };
    let filter = Filter::new(rest);
    let mut seeker = Seeker::default();
    match entry.argument {
        Argument::Machine => machines(rest, estate, PROPOSALS_MAX)
            .into_iter()
            .map(|(_, name, about)| make(&name, about))
            .collect(),
        Argument::Theme => themes
            .iter()
            .filter(|theme| seeker.passes(&filter, theme))
            .map(|theme| make(theme, entry.label.to_owned()))
            .collect(),
        Argument::Format => ["csv", "json"]
            .into_iter()
            .filter(|format| format.starts_with(rest))
            .map(|format| make(format, entry.label.to_owned()))
            .collect(),
        Argument::Job => estate
            .running_jobs()
            .into_iter()
            .filter(|job| rest.is_empty() || job.id.contains(rest) || job.machine.contains(rest))
            .map(|job| make(&job.id, job_title(job)))
            .collect(),
        Argument::Alert => estate
            .open_alerts()
            .into_iter()
            .filter(|alert| rest.is_empty() || alert.id.contains(rest) || alert.object.contains(rest))
            .map(|alert| make(&alert.id, format!("{}: {}", alert.object, alert.text)))
            .collect(),
        Argument::Policy => estate
            .policies
            .iter()
            .filter(|policy| policy.name.contains(rest))
            .take(PROPOSALS_MAX)
            .map(|policy| make(&policy.name, entry.label.to_owned()))
            .collect(),
        Argument::Moment => ["-60s", "-5m", "-1h"]
            .into_iter()
            .filter(|example| example.starts_with(rest))
            .map(|example| make(example, "before now; or write 03:12:45, or 2026-11-23T03:12:45Z".into()))
            .collect(),
        Argument::None | Argument::Order => Vec::new(),
    }
}

/// Machines that match, best first: score, how to name it, what it is.
fn machines(typed: &str, estate: &Estate, max: usize) -> Vec<(u32, String, String)> {
    let filter = Filter::new(typed);
    let mut seeker = Seeker::default();
    let mut found: Vec<(u32, String, String)> = estate
        .machines
        .iter()
        .filter_map(|machine| {
            let score = seeker.score(&filter, &machine.name)?;
            let odd = estate.has_odd_name(&machine.id);
            let name = if odd { machine.id.clone() } else { machine.name.clone() };
            let (state, _) = super::rows::machine_state(machine);
            let about = if odd { format!("{} ({state})", machine.name) } else { state };
            Some((score, name, about))
        })
        .collect();
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    found.truncate(max);
    found
}

impl Palette {
    /// Makes the proposals again.
    pub fn propose(&mut self, estate: &Estate, themes: &[String]) {
        self.proposals = proposals(self.line.text(), estate, themes);
        self.chosen = None;
        self.complaint.clear();
    }

    /// Chooses the next proposal, or the one before.
    pub fn choose(&mut self, forward: bool) {
        let n = self.proposals.len();
        if n == 0 {
            return;
        }
        self.chosen = Some(match (self.chosen, forward) {
            (None, true) => 0,
            (None, false) => n - 1,
            (Some(at), true) => (at + 1) % n,
            (Some(at), false) => (at + n - 1) % n,
        });
    }

    /// Takes the chosen proposal, or the first, into the line.
    pub fn complete(&mut self, estate: &Estate, themes: &[String]) {
        if let Some(proposal) = self.proposals.get(self.chosen.unwrap_or(0)) {
            let entry = word(proposal.line.split(' ').next().unwrap_or_default());
            let room =
                proposal.line.contains(' ') || entry.is_none_or(|entry| entry.argument == Argument::None);
            self.line.set(&if room { proposal.line.clone() } else { format!("{} ", proposal.line) });
            self.propose(estate, themes);
        }
    }

    /// The line that Enter runs.
    pub fn to_run(&self) -> String {
        let typed = self.line.text().trim();
        match self.chosen.and_then(|at| self.proposals.get(at)) {
            Some(proposal) => proposal.line.clone(),
            // A beginning that can only mean one thing means it, unless that thing can lose something.
            None if read(typed).is_err() => match self.proposals.as_slice() {
                [only]
                    if read(&only.line).is_ok_and(|meaning| {
                        entry_of(meaning.action).risk != super::super::cmd::Risk::Danger
                    }) =>
                {
                    only.line.clone()
                }
                _ => typed.to_owned(),
            },
            None => typed.to_owned(),
        }
    }
}

/// Remembers a line: newest last, none twice.
pub fn remember(history: &mut Vec<String>, line: &str) {
    history.retain(|known| known != line);
    history.push(line.to_owned());
    if history.len() > HISTORY_MAX {
        history.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_proto::v1 as pb;

    fn estate(names: &[&str]) -> Estate {
        let mut estate = Estate::default();
        let events = names.iter().map(|name| pb::WatchEvent {
            sequence: 1,
            event: Some(pb::watch_event::Event::Changed(pb::Entity {
                entity: Some(pb::entity::Entity::Machine(pb::Machine {
                    id: format!("id-{name}"),
                    name: (*name).into(),
                    ..Default::default()
                })),
            })),
        });
        estate.apply(events.collect(), |_, _| ());
        estate
    }

    #[test]
    fn lines_are_completed_and_read() {
        let estate = estate(&["web-01", "web-02", "db-01"]);
        let lines = |typed: &str| -> Vec<String> {
            proposals(typed, &estate, &["light".into()]).into_iter().map(|proposal| proposal.line).collect()
        };
        assert_eq!(lines("test-failover wb"), ["test-failover web-01", "test-failover web-02"]);
        assert_eq!(lines("theme l"), ["theme light"]);
        assert_eq!(lines("mach")[0], "machines");
        assert!(lines("db").contains(&"machine db-01".to_owned()));
        assert_eq!(
            read("failover web 01"),
            Ok(Meaning { action: Action::Failover, argument: "web 01".into() })
        );
        assert!(read("make-coffee").is_err());
        assert!(read("quit now").is_err());
    }

    #[test]
    fn a_beginning_never_starts_what_can_lose_something() {
        let estate = estate(&[]);
        for (typed, runs) in
            [("serv", "servers"), ("failo", "failo"), ("unprot", "unprot"), ("failover", "failover")]
        {
            let mut palette = Palette { line: Line::new(typed), ..Palette::default() };
            palette.propose(&estate, &[]);
            assert_eq!(palette.to_run(), runs);
        }
    }
}
