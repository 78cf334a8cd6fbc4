//! JSON whose text is exact and harmless at once: every control, bidirectional and invisible character
//! is written as `\uXXXX`, so that a script reads the name as it is and a terminal is driven by nothing.

use super::doc::Doc;
use continuum_model::untrusted::is_dangerous;
use std::fmt::Write as _;
use std::io::{self, Write};

/// Writes a value, indented, with a newline at its end.
pub fn write(out: &mut dyn Write, doc: &Doc) -> io::Result<()> {
    let mut text = String::new();
    value(&mut text, doc, 0);
    text.push('\n');
    out.write_all(text.as_bytes())
}

/// A value on one line.
pub fn line(doc: &Doc) -> String {
    let mut text = String::new();
    compact(&mut text, doc);
    text
}

fn value(text: &mut String, doc: &Doc, depth: usize) {
    match doc {
        Doc::List(items) if !items.is_empty() => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                text.push_str(if at == 0 { "\n" } else { ",\n" });
                indent(text, depth + 1);
                value(text, item, depth + 1);
            }
            text.push('\n');
            indent(text, depth);
            text.push(']');
        }
        Doc::Map(fields) if !fields.is_empty() => {
            text.push('{');
            for (at, (name, field)) in fields.iter().enumerate() {
                text.push_str(if at == 0 { "\n" } else { ",\n" });
                indent(text, depth + 1);
                string(text, name, Escapes::Json);
                text.push_str(": ");
                value(text, field, depth + 1);
            }
            text.push('\n');
            indent(text, depth);
            text.push('}');
        }
        Doc::Null
        | Doc::Bool(_)
        | Doc::Int(_)
        | Doc::Float(_)
        | Doc::Text(_)
        | Doc::List(_)
        | Doc::Map(_) => {
            compact(text, doc);
        }
    }
}

fn compact(text: &mut String, doc: &Doc) {
    match doc {
        Doc::Null => text.push_str("null"),
        Doc::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Doc::Int(value) => {
            let _ = write!(text, "{value}");
        }
        Doc::Float(value) => text.push_str(&float(*value)),
        Doc::Text(value) => string(text, value, Escapes::Json),
        Doc::List(items) => {
            text.push('[');
            for (at, item) in items.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { "," });
                compact(text, item);
            }
            text.push(']');
        }
        Doc::Map(fields) => {
            text.push('{');
            for (at, (name, field)) in fields.iter().enumerate() {
                text.push_str(if at == 0 { "" } else { "," });
                string(text, name, Escapes::Json);
                text.push(':');
                compact(text, field);
            }
            text.push('}');
        }
    }
}

/// A number as JSON writes it; `null` for what is none.
pub fn float(value: f64) -> String {
    // To the microsecond: the digits below are noise of the arithmetic.
    let rounded = (value * 1e6).round() / 1e6;
    if !rounded.is_finite() {
        return if value.is_finite() { format!("{value:?}") } else { "null".into() };
    }
    // `{:?}` keeps a decimal point, so that a measure stays a measure for typed readers.
    format!("{rounded:?}")
}

/// Which escapes a format knows for characters above U+FFFF.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// Two halves of four digits.
    Json,
    /// `\UXXXXXXXX`.
    Yaml,
}

/// Text in double quotes.
pub fn string(text: &mut String, raw: &str, escapes: Escapes) {
    text.push('"');
    for c in raw.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            // Noncharacters and U+FEFF upset readers, too; all of them have this exact form.
            c if is_dangerous(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                if escapes == Escapes::Yaml && u32::from(c) > 0xffff {
                    let _ = write!(text, "\\U{:08x}", u32::from(c));
                } else {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(text, "\\u{unit:04x}");
                    }
                }
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn doc() -> impl Strategy<Value = Doc> {
        let leaf = prop_oneof![
            Just(Doc::Null),
            any::<bool>().prop_map(Doc::Bool),
            any::<i64>().prop_map(Doc::from),
            ".*".prop_map(Doc::Text),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Doc::List),
                (inner.clone(), inner).prop_map(|(a, b)| Doc::Map(vec![("first", a), ("second", b)])),
            ]
        })
    }

    fn same(doc: &Doc, json: &serde_json::Value) -> bool {
        match (doc, json) {
            (Doc::Null, serde_json::Value::Null) => true,
            (Doc::Bool(a), serde_json::Value::Bool(b)) => a == b,
            (Doc::Int(a), serde_json::Value::Number(b)) => b.as_i64().map(i128::from) == Some(*a),
            (Doc::Text(a), serde_json::Value::String(b)) => a == b,
            (Doc::List(a), serde_json::Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Doc::Map(a), serde_json::Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(name, a)| b.get(*name).is_some_and(|b| same(a, b)))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_reader_gets_exactly_what_was_there(doc in doc()) {
            for text in [line(&doc), { let mut out = Vec::new(); write(&mut out, &doc).unwrap(); String::from_utf8(out).unwrap() }] {
                let read: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert!(same(&doc, &read), "{text}");
                prop_assert!(!text.chars().any(|c| c != '\n' && is_dangerous(c)));
            }
        }
    }

    #[test]
    fn numbers_keep_their_kind() {
        for (value, text) in
            [(1.0, "1.0"), (0.25, "0.25"), (0.1 + 0.2, "0.3"), (f64::NAN, "null"), (1e300, "1e300")]
        {
            assert_eq!(float(value), text);
        }
    }
}
