//! `describe` and `readiness`: everything about one thing, for a person or a program.

use super::args::{Describe, Noun, Readiness};
use super::get::{doc, is_called, kind_of, unknown};
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, human};
use super::progress::toned;
use super::vault::Vault;
use super::{Setting, consent, contract};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use std::io::{self, Write};

/// Runs `describe`.
pub async fn run(setting: &Setting, describe: &Describe) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let whole = if describe.noun == Noun::Points {
        point(&mut vault, &describe.name).await?
    } else {
        one(&mut vault, describe).await?
    };
    let shape = whole.clone();
    setting.write(|out| {
        output::one(out, setting.style, shape, |out, _| text(out, &whole, 0, setting.style.colour))
    })
}

async fn one(vault: &mut Vault, describe: &Describe) -> Result<Doc, Fault> {
    if matches!(describe.noun, Noun::Operators | Noun::Tokens | Noun::Audit) {
        let (noun, name) = (describe.noun.plural(), shown(&describe.name));
        return Err(Fault::new(FaultClass::Usage, "usage", format!("{noun} are listed, not described"))
            .spares("nothing was changed")
            .remedy(format!("see `continuum get {noun} {name}`")));
    }
    let mut found = vault.snapshot(&[kind_of(describe.noun)], &describe.name, 0).await?;
    found.retain(|entity| is_called(entity, &describe.name));
    match found.as_slice() {
        [] => Err(unknown(describe.noun, &describe.name)),
        [Entity::Machine(machine)] => Ok(contract::machine_whole(machine)),
        [Entity::Job(job)] if job.kind == "verify" => Ok(contract::verify(job)),
        [entity] => Ok(doc(entity)),
        several => {
            let ids = several.iter().filter_map(|entity| match doc(entity).get("id") {
                Some(Doc::Text(id)) => Some(shown(id)),
                _ => None,
            });
            let ids = ids.collect::<Vec<_>>().join(", ");
            Err(Fault::new(
                FaultClass::Usage,
                "usage.ambiguous",
                format!(
                    "{} {} are called {}: {ids}",
                    several.len(),
                    describe.noun.plural(),
                    shown(&describe.name)
                ),
            )
            .spares("nothing was changed")
            .remedy("name one by its id"))
        }
    }
}

async fn point(vault: &mut Vault, name: &str) -> Result<Doc, Fault> {
    let Some((machine, id)) = name.rsplit_once('/') else {
        return Err(Fault::new(FaultClass::Usage, "usage", "a point is named MACHINE/ID")
            .spares("nothing was changed")
            .remedy("see `continuum get points MACHINE` for the ids"));
    };
    let mut before_id = String::new();
    loop {
        let request = pb::TimelineRequest {
            machine: machine.to_owned(),
            points_max: 1000,
            before_id,
            ..Default::default()
        };
        let reply = vault.timeline(request).await?;
        if let Some(point) = reply.points.iter().find(|point| point.id == id) {
            return Ok(contract::point(point));
        }
        match reply.points.last() {
            Some(last) if reply.more => before_id = last.id.clone(),
            _ => return Err(unknown(Noun::Points, id)),
        }
    }
}

/// Runs `readiness`.
pub async fn readiness(setting: &Setting, wanted: &Readiness) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let report = vault
        .readiness(pb::ReadinessRequest {
            machine: wanted.machine.clone(),
            order: wanted.order.name().to_owned(),
            point: wanted.point.clone(),
            process_server: wanted.process_server.clone(),
            policy: None,
        })
        .await?;
    let doc = contract::readiness(&wanted.machine, &report);
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, _| {
            let verdict = if report.ready {
                toned("ok", setting.style.colour)
            } else {
                toned("failed", setting.style.colour)
            };
            let word = if report.ready { "ready" } else { "not ready" };
            writeln!(out, "{} of {}: {word} ({verdict})", wanted.order.name(), shown(&wanted.machine))?;
            out.write_all(consent::told(&report).as_bytes())?;
            if !report.command.is_empty() {
                writeln!(out, "  do it with   {}", shown(&report.command))?;
            }
            Ok(())
        })
    })?;
    if report.ready { Ok(()) } else { Err(consent::not_ready(wanted.order.name(), &wanted.machine, &report)) }
}

/// Writes a tree as `name: value` lines, lists of objects as tables.
pub fn text(out: &mut dyn Write, doc: &Doc, depth: usize, colour: bool) -> io::Result<()> {
    let margin = "  ".repeat(depth);
    let Doc::Map(fields) = doc else {
        return writeln!(out, "{margin}{}", value("", doc, colour));
    };
    let simple = |field: &Doc| !matches!(field, Doc::Map(_)) && !is_table(field);
    let width = fields
        .iter()
        .filter(|(_, field)| simple(field))
        .map(|(name, _)| label(name).len())
        .max()
        .unwrap_or(0);
    for (name, field) in fields {
        let label = label(name);
        match field {
            Doc::Map(_) => {
                writeln!(out, "{margin}{label}:")?;
                text(out, field, depth + 1, colour)?;
            }
            Doc::List(items) if is_table(field) => {
                writeln!(out, "{margin}{label}:")?;
                table(items).write_indented(out, colour, &"  ".repeat(depth + 1))?;
            }
            Doc::Null | Doc::Bool(_) | Doc::Int(_) | Doc::Float(_) | Doc::Text(_) | Doc::List(_) => {
                writeln!(
                    out,
                    "{margin}{:<width$}  {}",
                    format!("{label}:"),
                    value(name, field, colour),
                    width = width + 1
                )?;
            }
        }
    }
    Ok(())
}

fn is_table(doc: &Doc) -> bool {
    matches!(doc, Doc::List(items) if matches!(items.first(), Some(Doc::Map(_))))
}

fn table(items: &[Doc]) -> Table {
    let mut head = Vec::new();
    if let Some(Doc::Map(fields)) = items.first() {
        head.extend(fields.iter().map(|(name, _)| label(name).to_uppercase()));
    }
    let mut table = Table::new(&head, "").whole(true);
    for item in items {
        if let Doc::Map(fields) = item {
            table.row(fields.iter().map(|(name, field)| cell(name, field)));
        }
    }
    table
}

fn cell(name: &str, field: &Doc) -> Cell {
    match field {
        Doc::Text(word) if is_state(name) => Cell::state(word),
        // Colour is laid on by the table itself.
        _ => Cell::new(&value(name, field, false)),
    }
}

fn is_state(name: &str) -> bool {
    matches!(name, "state" | "health" | "outcome" | "severity" | "test_state")
}

/// A field's name without its unit, which the value will say.
fn label(name: &str) -> String {
    let bare = name.strip_suffix("_bytes_per_sec").or_else(|| name.strip_suffix("_seconds")).unwrap_or(name);
    let bare = bare.strip_suffix("_bytes").unwrap_or(bare);
    bare.replace('_', " ")
}

fn value(name: &str, field: &Doc, colour: bool) -> String {
    match field {
        Doc::Null => "-".into(),
        Doc::Bool(value) => if *value { "yes" } else { "no" }.into(),
        Doc::Text(text) if is_state(name) => toned(text, colour),
        Doc::Text(text) => shown(text),
        Doc::Int(value) if name.ends_with("_per_sec") => human::rate(u64::try_from(*value).ok()),
        Doc::Int(value) if name == "bytes" || name.ends_with("_bytes") || name.contains("_bytes_") => {
            human::bytes(u64::try_from(*value).ok())
        }
        Doc::Int(value) if name.ends_with("_seconds") => human::seconds(Some(*value as f64)),
        Doc::Int(value) => value.to_string(),
        Doc::Float(value) if name == "seconds" || name.ends_with("_seconds") => human::seconds(Some(*value)),
        Doc::Float(value) => format!("{value:.1}"),
        Doc::List(items) if items.is_empty() => "none".into(),
        Doc::List(items) => items.iter().map(|item| value(name, item, colour)).collect::<Vec<_>>().join(", "),
        Doc::Map(fields) => {
            let known = fields.iter().filter(|(_, field)| *field != Doc::Null);
            let told = known
                .map(|(name, field)| format!("{} {}", label(name), value(name, field, colour)))
                .collect::<Vec<_>>();
            if told.is_empty() { "-".into() } else { told.join(", ") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_as_a_person_reads_it() {
        let machine = pb::Machine {
            name: "web\u{1b}]0;x\u{7}".into(),
            state: "protected".into(),
            health: "warning".into(),
            rpo_seconds: Some(0.42),
            churn_bytes_per_sec: Some(1 << 20),
            symptoms: vec![pb::Symptom {
                code: "rpo.high".into(),
                severity: "warning".into(),
                text: "a\nb".into(),
                remedy: "wait".into(),
            }],
            disks: vec![pb::Disk { name: "root".into(), size_bytes: 64 << 20, ..Default::default() }],
            test: Some(pb::TestFailover {
                point: Some(pb::Point {
                    time_us: 1_700_000_000_000_000,
                    kind: "crash".into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut out = Vec::new();
        text(&mut out, &contract::machine_whole(&machine), 0, false).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "name:                 web␛]0;x␇\n",
            "rpo:                  0.4 s\n",
            "churn:                1.0 MiB/s\n",
            "symptoms:\n  CODE      TEXT  REMEDY  SEVERITY\n  rpo.high  a␊b   wait    warning\n",
            "disks:\n  NAME  SIZE      ENDPOINT\n  root  64.0 MiB  -\n",
            "  point:\n    id:            -\n    time:          2023-11-14T22:13:20.000000Z\n",
            "dirty:                -\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }
}
