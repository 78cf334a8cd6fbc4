//! YAML within budgets: a tree whose every node knows its line.
//!
//! Lives here: what is refused before anything is built (size, depth, number of nodes, anchors, aliases, tags, a field
//! twice). Lives elsewhere: what fields mean. Scalars mean what they look like in YAML 1.2 and no more: `no` is a word,
//! `0777` and dates are words, too, so that a field that wants a number refuses them.

use super::{DOCUMENTS_MAX, Problem, TEXT_BYTES_MAX};
use continuum_model::untrusted::shown;
use serde_json::{Map, Value};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle};

/// How deep a document may go.
const DEPTH_MAX: usize = 12;
/// Most values in one text.
const NODES_MAX: usize = 40_000;

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its line, from 1.
    pub line: usize,
    /// What it is.
    pub kind: Kind,
}

/// What a value is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A single value; whether it stood in quotes.
    Scalar(String, bool),
    /// A list.
    List(Vec<Node>),
    /// Fields: name, its line, value.
    Fields(Vec<(String, usize, Node)>),
}

/// One document of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The line of the text at which its own begins, from 1.
    pub line: usize,
    /// Its own text.
    pub text: String,
    /// Its fields; lines are those of the whole text.
    pub root: Node,
}

impl Node {
    /// A field of it.
    pub fn field(&self, name: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Fields(fields) => fields.iter().find(|(known, ..)| known == name).map(|(_, _, node)| node),
            Kind::Scalar(..) | Kind::List(_) => None,
        }
    }

    /// Its text, where it is a single value.
    pub fn as_text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar(text, _) => Some(text),
            Kind::List(_) | Kind::Fields(_) => None,
        }
    }

    /// The line of what a path names, such as `groups[2].machines`; as far as there is any.
    pub fn line_of(&self, path: &str) -> usize {
        let mut at = self;
        let mut line = self.line;
        for part in path.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
            let next = match (&at.kind, part.parse::<usize>()) {
                (Kind::List(nodes), Ok(place)) => nodes.get(place).map(|node| (node.line, node)),
                (Kind::Fields(fields), _) => {
                    fields.iter().find(|(known, ..)| known == part).map(|(_, line, node)| (*line, node))
                }
                _ => None,
            };
            let Some((found, node)) = next else { break };
            (line, at) = (found, node);
        }
        line
    }

    /// The same without places.
    pub fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(text, true) => Value::String(text.clone()),
            Kind::Scalar(text, false) => plain(text),
            Kind::List(nodes) => Value::Array(nodes.iter().map(Self::value).collect()),
            Kind::Fields(fields) => Value::Object(
                fields.iter().map(|(name, _, node)| (name.clone(), node.value())).collect::<Map<_, _>>(),
            ),
        }
    }
}

/// What a value without quotes means.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let whole = !digits.is_empty()
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && (digits == "0" || !digits.starts_with('0'));
            let number = if whole { text.parse::<serde_json::Number>().ok() } else { None };
            number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
        }
    }
}

/// Splits a text into its documents. Empty ones are left out.
///
/// Errors: the first thing that is no YAML, or that goes over a budget.
pub fn pieces(text: &str) -> Result<Vec<Piece>, Vec<Problem>> {
    if text.len() > TEXT_BYTES_MAX {
        let said = format!("the text is larger than {} KiB", TEXT_BYTES_MAX >> 10);
        return Err(vec![Problem::new(0, "", said, "split it into several files")]);
    }
    let mut found = Vec::new();
    roots(text, &mut found).map_err(|problem| vec![problem])?;
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let begins: Vec<usize> = found.iter().map(|(begin, _)| *begin).collect();
    let pieces = found.into_iter().enumerate().filter_map(|(place, (begin, root))| {
        if root.as_text() == Some("") {
            return None;
        }
        // `begin`: lines before it; 0 where no `---` stands before the first one.
        let end = begins.get(place + 1).map_or(lines.len(), |next| next.saturating_sub(1));
        let mut own = lines.get(begin..end.max(begin)).unwrap_or_default().concat();
        let marker = begin.checked_sub(1).and_then(|line| lines.get(line));
        if let Some(rest) = marker.and_then(|line| line.strip_prefix("---")) {
            let rest = rest.trim();
            if !rest.is_empty() && !rest.starts_with('#') {
                own = format!("{rest}\n{own}");
            }
        }
        Some(Piece { line: begin + 1, text: own, root })
    });
    Ok(pieces.collect())
}

enum Open {
    List(usize, Vec<Node>),
    Fields(usize, Vec<(String, usize, Node)>, Option<(String, usize)>),
}

fn roots(text: &str, found: &mut Vec<(usize, Node)>) -> Result<(), Problem> {
    let mut open: Vec<Open> = Vec::new();
    let mut nodes = 0;
    let mut begin = 0;
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error| {
            Problem::new(error.marker().line(), "", format!("no YAML: {}", shown(&error.info())), "")
        })?;
        let line = span.start.line();
        let refused = |what: &str, fix: &str| Err(Problem::new(line, "", what, fix));
        let no_alias = "an alias or anchor, which documents of ours do not take";
        let node = match event {
            Event::DocumentStart(explicit, _) => {
                if found.len() >= DOCUMENTS_MAX {
                    return refused("too many documents", "split the text into several files");
                }
                begin = if explicit { line } else { 0 };
                continue;
            }
            Event::Scalar(value, style, anchor, tag) => {
                if anchor > 0 {
                    return refused(no_alias, "write the value out");
                }
                if tag.is_some() {
                    return refused("a tag, which documents of ours do not take", "leave it out");
                }
                Node { line, kind: Kind::Scalar(value.into_owned(), style != ScalarStyle::Plain) }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => return refused(no_alias, "write the value out"),
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH_MAX => {
                return refused("it goes deeper than any document of ours", "see the example in the help");
            }
            Event::SequenceStart(_, anchor, tag) => {
                if anchor > 0 || tag.is_some() {
                    return refused(no_alias, "write the value out");
                }
                open.push(Open::List(line, Vec::new()));
                continue;
            }
            Event::MappingStart(_, anchor, tag) => {
                if anchor > 0 || tag.is_some() {
                    return refused(no_alias, "write the value out");
                }
                open.push(Open::Fields(line, Vec::new(), None));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(line, nodes)) => Node { line, kind: Kind::List(nodes) },
                Some(Open::Fields(line, fields, _)) => Node { line, kind: Kind::Fields(fields) },
                None => continue,
            },
            _ => continue,
        };
        nodes += 1;
        if nodes > NODES_MAX {
            return refused("it holds more values than any document of ours", "split it");
        }
        match open.last_mut() {
            None => found.push((begin, node)),
            Some(Open::List(_, nodes)) => nodes.push(node),
            Some(Open::Fields(_, fields, name)) => match name.take() {
                Some((name, line)) => fields.push((name, line, node)),
                None => {
                    let Kind::Scalar(key, _) = node.kind else {
                        return refused("a field's name must be a single word", "");
                    };
                    if fields.iter().any(|(known, ..)| *known == key) {
                        return Err(Problem::new(line, &short(&key), "stands there twice", "keep one"));
                    }
                    *name = Some((key, line));
                }
            },
        }
    }
    Ok(())
}

/// What of a long word is told.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
