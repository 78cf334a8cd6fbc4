//! A recovery plan as a document: read, with the line of everything that is wrong.

use super::tree::Piece;
use super::{Problem, tree};
use continuum_model::recovery_plan::{Plan, TEXT_BYTES_MAX};
use continuum_model::untrusted::shown;
use serde::Deserialize;

/// The text of a new plan, to be changed.
pub const NEW: &str = "\
kind: plan
name: my-plan
description: what it is for
rto_seconds: 600            # until the last machine answers
groups:
  - name: databases
    machines: [db-01]
    manual: \"\"              # what a person does before the next group begins; empty: nothing
  - name: front             # after the group above; depends_on: [databases] says it otherwise
    machines: [web-01]
";

/// A plan, and the kind that may stand in front of it.
#[derive(Deserialize)]
struct Checked(Plan);

/// Reads the plan of a text that holds nothing else.
///
/// Errors: everything that is wrong, by line.
pub fn read(text: &str) -> Result<Plan, Vec<Problem>> {
    let pieces = tree::pieces(text)?;
    match pieces.as_slice() {
        [piece] => {
            if let Some(kind) = piece.root.field("kind").filter(|kind| kind.as_text() != Some("plan")) {
                return Err(vec![Problem::new(
                    kind.line,
                    "kind",
                    "it is no plan",
                    "write plan, or leave it out",
                )]);
            }
            of_piece(piece)
        }
        [] => Err(vec![Problem::new(0, "", "there is no plan in it", "write its name and groups")]),
        [_, second, ..] => {
            Err(vec![Problem::new(second.line, "", "a second document", "one plan is taken at a time")])
        }
    }
}

pub(crate) fn of_piece(piece: &Piece) -> Result<Plan, Vec<Problem>> {
    if piece.text.len() > TEXT_BYTES_MAX {
        let said = format!("the plan is larger than {} KiB", TEXT_BYTES_MAX >> 10);
        return Err(vec![Problem::new(piece.line, "", said, "make two of it")]);
    }
    // The reader of words keeps names that look like numbers as they were written; it does not know of `kind`.
    let kind = piece.root.field("kind").map(|node| node.line);
    let bare: String =
        piece
            .text
            .split_inclusive('\n')
            .enumerate()
            .map(|(at, line)| {
                if kind == Some(piece.line + at) && line.trim_start().starts_with("kind") {
                    "\n"
                } else {
                    line
                }
            })
            .collect();
    let read: Result<Checked, _> = serde_saphyr::from_str(&bare);
    let Checked(plan) = read.map_err(|error| {
        let line = error.location().map_or(0, |at| usize::try_from(at.line()).unwrap_or(0));
        let said = error.without_snippet().to_string();
        let said = said.split(" at line").next().unwrap_or(&said);
        vec![Problem::new(line, "", shown(&tree::short(said)), "").below(piece.line - 1)]
    })?;
    let problems: Vec<Problem> = plan
        .problems()
        .into_iter()
        .map(|told| {
            let (field, said) = told.split_once(": ").unwrap_or(("", &told));
            Problem::new(piece.root.line_of(field), field, shown(said), "")
        })
        .collect();
    if problems.is_empty() { Ok(plan) } else { Err(problems) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_plan_and_a_plan_without_a_kind_is_one_too() {
        assert_eq!(read(NEW).unwrap().groups.len(), 2);
        let plan = read("name: no\ngroups: [{name: a, machines: [on, 'off', 1e3]}]").unwrap();
        assert_eq!(
            (plan.name.as_str(), plan.groups[0].machines.as_slice()),
            ("no", &["on", "off", "1e3"].map(String::from)[..])
        );
        let wrong = read("kind: plan\nname: x\ngroups:\n  - name: a\n    machines: [m]\n    sript: run\n")
            .unwrap_err();
        assert!(wrong[0].line >= 4 && wrong[0].problem.contains("sript"), "{wrong:?}");
    }
}
