//! YAML 1.2 of an answer, block style. A text stands bare only where no YAML reader, old or new, could
//! take it for anything but that text; otherwise it is quoted as in JSON.

use super::doc::Doc;
use super::json;
use std::io::{self, Write};

/// Writes a value as one document.
pub fn write(out: &mut dyn Write, doc: &Doc) -> io::Result<()> {
    let mut text = String::new();
    block(&mut text, doc, 0);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    out.write_all(text.trim_start_matches('\n').as_bytes())
}

/// Writes a value behind `- ` or `name:`; nested ones start on a line of their own.
fn block(text: &mut String, doc: &Doc, depth: usize) {
    match doc {
        Doc::List(items) if !items.is_empty() => {
            for item in items {
                newline(text, depth);
                text.push('-');
                item_of_list(text, item, depth);
            }
        }
        Doc::Map(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                newline(text, depth);
                field_of_map(text, name, field, depth);
            }
        }
        Doc::Null
        | Doc::Bool(_)
        | Doc::Int(_)
        | Doc::Float(_)
        | Doc::Text(_)
        | Doc::List(_)
        | Doc::Map(_) => {
            text.push_str(&scalar(doc));
        }
    }
}

fn item_of_list(text: &mut String, item: &Doc, depth: usize) {
    match item {
        // The first field stands on the line of the dash.
        Doc::Map(fields) if !fields.is_empty() => {
            for (at, (name, field)) in fields.iter().enumerate() {
                if at == 0 {
                    text.push(' ');
                } else {
                    newline(text, depth + 1);
                }
                field_of_map(text, name, field, depth + 1);
            }
        }
        Doc::List(items) if !items.is_empty() => block(text, item, depth + 1),
        Doc::Null
        | Doc::Bool(_)
        | Doc::Int(_)
        | Doc::Float(_)
        | Doc::Text(_)
        | Doc::List(_)
        | Doc::Map(_) => {
            text.push(' ');
            text.push_str(&scalar(item));
        }
    }
}

fn field_of_map(text: &mut String, name: &str, field: &Doc, depth: usize) {
    text.push_str(&bare_or_quoted(name));
    text.push(':');
    match field {
        Doc::List(items) if !items.is_empty() => block(text, field, depth),
        Doc::Map(fields) if !fields.is_empty() => block(text, field, depth + 1),
        Doc::Null
        | Doc::Bool(_)
        | Doc::Int(_)
        | Doc::Float(_)
        | Doc::Text(_)
        | Doc::List(_)
        | Doc::Map(_) => {
            text.push(' ');
            text.push_str(&scalar(field));
        }
    }
}

fn newline(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

fn scalar(doc: &Doc) -> String {
    match doc {
        Doc::Text(text) => bare_or_quoted(text),
        Doc::Null | Doc::Bool(_) | Doc::Int(_) | Doc::Float(_) | Doc::List(_) | Doc::Map(_) => {
            json::line(doc)
        }
    }
}

fn bare_or_quoted(text: &str) -> String {
    const WORDS: [&str; 12] =
        ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf", "undefined"];
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if bare {
        return text.to_owned();
    }
    let mut quoted = String::new();
    json::string(&mut quoted, text, json::Escapes::Yaml);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_maps_and_odd_texts() {
        let doc = Doc::List(vec![
            Doc::Map(vec![
                ("name", "web-01".into()),
                ("proofs", Doc::Map(vec![("booted", true.into()), ("probed", Doc::Null)])),
                (
                    "disks",
                    Doc::List(vec![Doc::Map(vec![("name", "a: b".into()), ("size_bytes", 512u64.into())])]),
                ),
                ("none", Doc::List(vec![])),
            ]),
            "no".into(),
            "2026-11-23".into(),
            "a\u{1b}\u{e0001}\n".into(),
            Doc::List(vec![1u64.into(), Doc::Float(0.5)]),
        ]);
        let mut out = Vec::new();
        write(&mut out, &doc).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "- name: web-01\n  proofs:\n    booted: true\n    probed: null\n  disks:\n  - name: \"a: b\"\n    \
             size_bytes: 512\n  none: []\n- \"no\"\n- \"2026-11-23\"\n- \"a\\u001b\\U000e0001\\n\"\n-\n  - 1\n  - 0.5\n"
        );
    }
}
