//! Documents: policies and recovery plans as YAML text, read within bounds and written so that reading gives the same.
//!
//! - [`tree`]: YAML within budgets, every node with its line
//! - [`policy`]: a policy, read, written, and what a change of it means
//! - [`plan`]: a recovery plan, with the line of everything that is wrong
//! - [`words`]: times and sizes as people write them; [`diff`]: what differs between two texts
//!
//! ```yaml
//! kind: policy                # policy or plan; a plan may leave it out
//! name: gold
//! retention_seconds: 86400    # 24 h
//! ---
//! kind: plan
//! name: shop
//! groups: [{name: databases, machines: [db-01]}]
//! ```
//!
//! Pure: no I/O, no clock. Lives elsewhere: what a policy or a plan is (`model`), who may change one (the vault).

pub mod diff;
pub mod plan;
pub mod policy;
pub mod tree;
pub mod words;

use continuum_model::policy::Policy;
use continuum_model::recovery_plan::Plan;
use continuum_model::untrusted::shown;
use std::fmt;

/// The longest text that is looked at, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Most documents in one text.
pub const DOCUMENTS_MAX: usize = 200;
/// So many problems are told; a flood of them helps nobody.
const PROBLEMS_MAX: usize = 50;

/// One thing that is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In which line of the text, from 1; 0: of no single one.
    pub line: usize,
    /// Which field; empty: none.
    pub field: String,
    /// What is wrong. Harmless to show.
    pub problem: String,
    /// What would be right; may be empty.
    pub fix: String,
}

impl Problem {
    fn new(line: usize, field: &str, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { line, field: shown(field), problem: problem.into(), fix: fix.into() }
    }

    /// The same in a text of which this one begins so many lines further down.
    fn below(mut self, lines: usize) -> Self {
        self.line += if self.line == 0 { 0 } else { lines };
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(out, "line {}: ", self.line)?;
        }
        if !self.field.is_empty() {
            write!(out, "{}: ", self.field)?;
        }
        out.write_str(&self.problem)?;
        if !self.fix.is_empty() {
            write!(out, "; {}", self.fix)?;
        }
        Ok(())
    }
}

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The line at which it begins, from 1.
    pub line: usize,
    /// Its own text, as it was written.
    pub text: String,
    /// What it says.
    pub body: Body,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// A policy with its name.
    Policy(String, Box<Policy>),
    /// A recovery plan.
    Plan(Box<Plan>),
}

impl Document {
    /// What kind it is, as it stands behind `kind:`.
    pub const fn kind(&self) -> &'static str {
        match self.body {
            Body::Policy(..) => "policy",
            Body::Plan(_) => "plan",
        }
    }
    /// What it is called. Text from outside.
    pub fn name(&self) -> &str {
        match &self.body {
            Body::Policy(name, _) => name,
            Body::Plan(plan) => &plan.name,
        }
    }
}

/// Reads a text of one or more documents.
///
/// Errors: everything that is wrong in all of them, by line.
pub fn read(text: &str) -> Result<Vec<Document>, Vec<Problem>> {
    let pieces = tree::pieces(text)?;
    let mut documents: Vec<Document> = Vec::new();
    let mut problems = Vec::new();
    for piece in &pieces {
        match one(piece) {
            Ok(document) => {
                let twice = documents
                    .iter()
                    .find(|other| other.kind() == document.kind() && other.name() == document.name());
                if let Some(other) = twice {
                    let said = format!(
                        "{} {} stands there twice, first at line {}",
                        document.kind(),
                        shown(document.name()),
                        other.line
                    );
                    problems.push(Problem::new(document.line, "name", said, "keep one of them"));
                }
                documents.push(document);
            }
            Err(more) => problems.extend(more),
        }
    }
    if documents.is_empty() && problems.is_empty() {
        problems.push(Problem::new(0, "", "there is no document in it", "write one, such as kind: policy"));
    }
    problems.truncate(PROBLEMS_MAX);
    if problems.is_empty() { Ok(documents) } else { Err(problems) }
}

fn one(piece: &tree::Piece) -> Result<Document, Vec<Problem>> {
    let kind = piece.root.field("kind");
    let body = match kind.map(|node| (node, node.as_text())) {
        None => Body::Plan(Box::new(plan::of_piece(piece)?)),
        Some((_, Some("plan"))) => Body::Plan(Box::new(plan::of_piece(piece)?)),
        Some((_, Some("policy"))) => {
            let (name, policy) = policy::of_piece(piece)?;
            Body::Policy(name, Box::new(policy))
        }
        Some((node, other)) => {
            let said = format!("{} is no kind of document", shown(other.unwrap_or("this")));
            return Err(vec![Problem::new(node.line, "kind", said, "write policy or plan")]);
        }
    };
    Ok(Document { line: piece.line, text: piece.text.clone(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_holds_several_kinds_and_each_keeps_its_own_text() {
        let text = "# what we promise\nkind: policy\nname: gold\nretention_seconds: 7200\n---\nname: shop\ngroups:\n- name: a\n  machines: [m] # all\n--- # last\nkind: plan\nname: other\ngroups: [{name: a, machines: [x]}]\n";
        let documents = read(text).unwrap();
        let told: Vec<_> = documents.iter().map(|d| (d.kind(), d.name(), d.line)).collect();
        assert_eq!(told, [("policy", "gold", 1), ("plan", "shop", 6), ("plan", "other", 11)]);
        assert_eq!(documents[1].text, "name: shop\ngroups:\n- name: a\n  machines: [m] # all\n");
        for document in &documents {
            let again = read(&document.text).unwrap();
            assert_eq!(again[0].body, document.body);
        }
        let alone = "name: shop\ngroups: [{name: a, machines: [m]}]\n";
        assert_eq!(read(alone).unwrap()[0].text, alone, "a plan as ever, byte for byte");
    }

    #[test]
    fn everything_wrong_in_every_document_is_told_with_its_line() {
        let text = "kind: policy\nname: gold\nretention_seconds: 10\nretentoin: 5\ncompression: no\ncrash_point_seconds: 0777\n---\nkind: policy\nbandwidth:\n  - {days: [mon], from: 08:00, to: 25:00, bytes_per_sec: 1}\n---\nkind: cloud\n---\nname: shop\ngroups:\n  - name: a\n    machines: [m, m]\n";
        let problems = read(text).unwrap_err();
        let told = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for expected in [
            "line 3: retention_seconds: 10 s is out of range",
            "line 4: retentoin: there is no such field; did you mean retention_seconds",
            "line 5: compression:",
            "line 6: crash_point_seconds:",
            "line 8: name: ",
            "line 9: bandwidth:",
            "line 12: kind: cloud is no kind of document",
            "line 17: groups[0].machines: m is in group a already",
        ] {
            assert!(told.contains(expected), "{expected:?} is not in\n{told}");
        }
    }

    #[test]
    fn hostile_texts_are_refused_within_bounds() {
        let depth = format!("name: {}x{}", "[".repeat(100_000), "]".repeat(100_000));
        let many = "---\nname: x\ngroups: [{name: a, machines: [m]}]\n".repeat(DOCUMENTS_MAX + 1);
        let wide = format!("kind: policy\nname: x\nsteps: [{}]\n", "1,".repeat(200_000));
        let large = "x".repeat(TEXT_BYTES_MAX + 1);
        let scalar = format!("kind: policy\nname: {}\n", "x".repeat(900_000));
        for (why, text) in [
            ("depth", depth.as_str()),
            ("documents", &many),
            ("nodes", &wide),
            ("size", &large),
            ("a long name", &scalar),
            ("an anchor", "kind: policy\nname: &a x\n"),
            ("an alias", "kind: policy\nname: *a\n"),
            ("a tag", "kind: policy\nname: !!python/object x\n"),
            ("a field twice", "kind: policy\nname: x\nname: y\n"),
            ("tabs", "kind: policy\n\tname: x\n"),
            ("no mapping", "- 1\n- 2\n"),
            ("a key that is a list", "? [a]\n: b\n"),
            ("nothing", "# only a comment\n"),
            ("merge", "kind: policy\nname: x\n<<: {compression: true}\n"),
            ("a date", "kind: policy\nname: x\nretention_seconds: 2026-11-28\n"),
            ("control characters", "kind: policy\nname: \"a\\e[31m\"\nretention: 1"),
        ] {
            let problems = read(text).err().unwrap_or_else(|| panic!("{why} was taken"));
            assert!(problems.len() <= PROBLEMS_MAX, "{why}");
            for problem in problems {
                let told = problem.to_string();
                assert!(told.len() < 2048 && !told.contains('\u{1b}'), "{why}: {told}");
            }
        }
    }
}
