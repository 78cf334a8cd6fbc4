//! Agreement to what can lose data: the readiness report first, then the name typed out.
//!
//! Rules: nothing is asked where nobody can answer. `--yes` alone agrees to what loses nothing; where
//! data can be lost the exact name is needed, too, typed at the prompt or given with `--confirm`. What a
//! person saw is bound to the order by the machine's version.

use super::args::Consent;
use super::output::human;
use super::output::table::{Cell, Table};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::{Untrusted, shown};
use continuum_proto::v1 as pb;
use std::io::{self, BufRead, IsTerminal, Write};

/// What was agreed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The name, typed out; empty where none was asked for.
    pub confirm: String,
    /// The version of the machine that the report was about.
    pub version: u64,
}

/// How a person can be asked.
pub trait Person {
    /// Whether there is one: standard input and standard error are a terminal.
    fn is_there(&self) -> bool;
    /// Shows `text` and reads one line.
    fn ask(&mut self, text: &str) -> io::Result<String>;
}

/// The person at the terminal.
pub struct AtTerminal;

impl Person for AtTerminal {
    fn is_there(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }
    fn ask(&mut self, text: &str) -> io::Result<String> {
        // What was typed before the question was read is no answer to it.
        let _ = rustix::termios::tcflush(io::stdin(), rustix::termios::QueueSelector::IFlush);
        let mut err = io::stderr().lock();
        write!(err, "{text}")?;
        err.flush()?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line)?;
        Ok(line.strip_suffix('\n').unwrap_or(&line).to_owned())
    }
}

/// Asks for agreement where the report wants it.
///
/// Errors: `NotReady` where the report says so; `Refused` without agreement. Nothing was changed then.
pub fn obtain(
    what: &str,
    machine: &str,
    report: &pb::ReadinessReply,
    yes: bool,
    consent: &Consent,
    person: &mut dyn Person,
) -> Result<Agreed, Fault> {
    if !report.ready {
        return Err(not_ready(what, machine, report));
    }
    let agreed = |confirm: &str| Agreed { confirm: confirm.to_owned(), version: report.machine_version };
    let asked = report.confirm.as_str();
    if let Some(confirm) = &consent.confirm
        && !asked.is_empty()
        && confirm != asked
    {
        return Err(refused(what, machine, "what --confirm names is not what it would happen to", asked));
    }
    if yes && (asked.is_empty() || consent.confirm.is_some()) {
        return Ok(agreed(asked));
    }
    if asked.is_empty() && !report.destroys {
        return Ok(agreed(""));
    }
    if yes {
        return Err(refused(
            what,
            machine,
            "data can be lost, and --yes alone does not agree to that",
            asked,
        ));
    }
    if !person.is_there() {
        return Err(refused(what, machine, "nobody can be asked here", asked));
    }
    let question = if asked.is_empty() {
        "Go on? Type yes: ".to_owned()
    } else {
        format!("Type {} to go on: ", Untrusted::from(asked))
    };
    let answer = person.ask(&format!("{}{question}", told(report))).map_err(|error| {
        Fault::new(FaultClass::Refused, "consent.unread", format!("the answer could not be read: {error}"))
            .spares("nothing was changed")
    })?;
    let expected = if asked.is_empty() { "yes" } else { asked };
    if answer == expected {
        Ok(agreed(asked))
    } else {
        Err(refused(what, machine, "the answer was another one", asked))
    }
}

/// The report as a person reads it.
pub fn told(report: &pb::ReadinessReply) -> String {
    let mut text = String::new();
    if !report.summary.is_empty() {
        text += &format!("{}\n", shown(&report.summary));
    }
    if let Some(preview) = &report.preview {
        if let Some(point) = &preview.point {
            let name =
                if point.name.is_empty() { String::new() } else { format!(" \"{}\"", shown(&point.name)) };
            text += &format!(
                "  moment      {} ({}{name})\n",
                continuum_model::time::Timestamp::from_micros(point.time_us),
                shown(&point.kind)
            );
        }
        if let Some(gap) = &preview.gap {
            text += &format!(
                "  gap         the moment asked for lies between {} and {}: {}\n",
                human::moment(Some(gap.from_us)),
                human::moment(Some(gap.to_us)),
                shown(&gap.reason)
            );
        }
        text += &format!(
            "  given up    {} of changes, {}\n",
            human::seconds(Some(preview.loss_seconds)),
            human::bytes(Some(preview.loss_bytes))
        );
    }
    if let Some(forecast) = report.forecast_seconds {
        text += &format!("  takes about {}\n", human::seconds(Some(forecast)));
    }
    let mut table = Table::new(&["CHECK", "STATE", "DETAIL", "WHAT TO DO"], "").whole(true);
    let rank = |state: &str| match state {
        "failed" => 0,
        "warning" => 1,
        _ => 2,
    };
    let mut checks: Vec<&pb::Check> = report.checks.iter().collect();
    checks.sort_by_key(|check| rank(&check.state));
    for check in checks {
        table.row([
            Cell::new(&check.name),
            Cell::state(&check.state),
            Cell::new(&check.detail),
            Cell::new(&check.remedy),
        ]);
    }
    let mut lines = Vec::new();
    // Writing to memory cannot fail.
    let _ = table.write_indented(&mut lines, false, "  ");
    text + &String::from_utf8_lossy(&lines)
}

/// The report says no: every failed check in words.
pub fn not_ready(what: &str, machine: &str, report: &pb::ReadinessReply) -> Fault {
    let failed: Vec<&pb::Check> = report.checks.iter().filter(|check| check.state == "failed").collect();
    let reasons = failed.iter().map(|check| format!("{}: {}", shown(&check.name), shown(&check.detail)));
    let reasons = reasons.collect::<Vec<_>>().join("; ");
    let remedies: Vec<String> =
        failed.iter().filter(|check| !check.remedy.is_empty()).map(|check| shown(&check.remedy)).collect();
    let message = if reasons.is_empty() { shown(&report.summary) } else { reasons };
    Fault::new(
        FaultClass::NotReady,
        "readiness.failed",
        format!("{what} of {} is not possible now: {message}", shown(machine)),
    )
    .spares("nothing was changed")
    .remedy(if remedies.is_empty() {
        format!("see `continuum readiness {}`", quoted(machine))
    } else {
        remedies.join("; ")
    })
}

fn refused(what: &str, machine: &str, why: &str, asked: &str) -> Fault {
    let remedy = if asked.is_empty() {
        "give --yes".to_owned()
    } else {
        format!("give --yes --confirm {}, or run it at a terminal and type the name", quoted(asked))
    };
    Fault::new(
        FaultClass::Refused,
        "consent.missing",
        format!("{what} of {} was not begun: {why}", shown(machine)),
    )
    .spares("nothing was changed")
    .remedy(remedy)
}

/// A name as a shell takes it, made harmless to show.
pub fn quoted(name: &str) -> String {
    let plain = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte));
    if plain {
        return name.to_owned();
    }
    if Untrusted::from(name).is_plain() {
        return format!("'{}'", name.replace('\'', r"'\''"));
    }
    // `$'…'` can say any character by its number.
    let mut text = String::from("$'");
    for c in name.chars() {
        match c {
            '\'' | '\\' => text.extend(['\\', c]),
            c if continuum_model::untrusted::is_dangerous(c) => text += &format!("\\U{:08x}", u32::from(c)),
            c => text.push(c),
        }
    }
    text + "'"
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scripted(Option<&'static str>, Vec<String>);
    impl Person for Scripted {
        fn is_there(&self) -> bool {
            self.0.is_some()
        }
        fn ask(&mut self, text: &str) -> io::Result<String> {
            self.1.push(text.to_owned());
            Ok(self.0.unwrap_or_default().to_owned())
        }
    }

    #[test]
    fn who_agrees_to_what() {
        let report = |confirm: &str, destroys| pb::ReadinessReply {
            ready: true,
            confirm: confirm.into(),
            destroys,
            machine_version: 7,
            ..Default::default()
        };
        // why, what the vault asks for, destroys, --yes, --confirm, who answers what, whether it is agreed
        for (why, asked, destroys, yes, confirm, answer, agreed) in [
            ("harmless: no question", "", false, false, None, None, true),
            ("destroys, yes", "", true, true, None, None, true),
            ("destroys, nobody there", "", true, false, None, None, false),
            ("destroys, a plain yes", "", true, false, None, Some("yes"), true),
            ("destroys, another answer", "", true, false, None, Some("y"), false),
            ("name asked, nobody there", "web-01", true, false, None, None, false),
            ("name asked, --yes alone", "web-01", true, true, None, None, false),
            (
                "name asked, --yes at a terminal asks nobody",
                "web-01",
                true,
                true,
                None,
                Some("web-01"),
                false,
            ),
            ("name asked, --confirm alone", "web-01", true, false, Some("web-01"), None, false),
            ("name asked, both", "web-01", true, true, Some("web-01"), None, true),
            ("name asked, both, wrong", "web-01", true, true, Some("web-02"), None, false),
            ("name asked, typed", "web-01", true, false, None, Some("web-01"), true),
            ("name asked, typed with a blank", "web-01", true, false, None, Some("web-01 "), false),
            ("name asked, empty line", "web-01", true, false, None, Some(""), false),
            ("an odd name, both", "-rf", true, true, Some("-rf"), None, true),
        ] {
            let consent = Consent { confirm: confirm.map(str::to_owned) };
            let mut person = Scripted(answer, Vec::new());
            let result = obtain("failover", "web-01", &report(asked, destroys), yes, &consent, &mut person);
            assert_eq!(result.is_ok(), agreed, "{why}");
            match result {
                Ok(agreed) => assert_eq!(agreed, Agreed { confirm: asked.into(), version: 7 }, "{why}"),
                Err(fault) => assert_eq!(fault.class, FaultClass::Refused, "{why}"),
            }
            assert_eq!(person.1.is_empty(), yes || answer.is_none(), "{why}");
        }
    }

    #[test]
    fn not_ready_says_every_reason_and_asks_nobody() {
        let report = pb::ReadinessReply {
            checks: vec![
                pb::Check {
                    name: "agent".into(),
                    state: "failed".into(),
                    detail: "silent\u{1b}[2J".into(),
                    remedy: "start it".into(),
                },
                pb::Check { name: "target".into(), state: "ok".into(), ..Default::default() },
            ],
            ..Default::default()
        };
        let mut person = Scripted(Some("web-01"), Vec::new());
        let fault =
            obtain("failover", "web-01", &report, true, &Consent::default(), &mut person).unwrap_err();
        assert_eq!((fault.class, fault.remedy.as_str()), (FaultClass::NotReady, "start it"));
        assert_eq!(fault.message, "failover of web-01 is not possible now: agent: silent␛[2J");
        assert!(person.1.is_empty());
    }

    #[test]
    fn a_name_as_a_shell_takes_it() {
        for (name, text) in [
            ("web-01", "web-01"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("a\u{1b}'b", r"$'a\U0000001b\'b'"),
        ] {
            assert_eq!(quoted(name), text);
        }
    }
}
