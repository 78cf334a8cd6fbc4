//! CSV (RFC 4180) of a list of objects.
//!
//! Nested fields become columns with a dot (`proofs.booted`), nested lists a cell of JSON. CSV has no
//! escape of its own: text from outside is made visible, and a text that a spreadsheet would take for a
//! formula gets an apostrophe in front.

use super::doc::Doc;
use super::json;
use continuum_model::untrusted::shown;
use std::io::{self, Write};

/// Writes a head and one line for each object. `blank` gives the columns where there is no object.
pub fn write(out: &mut dyn Write, docs: &[Doc], blank: &Doc) -> io::Result<()> {
    let rows: Vec<Vec<(String, String)>> = docs.iter().map(flat).collect();
    let mut columns: Vec<String> = Vec::new();
    let blank = if rows.is_empty() { flat(blank) } else { Vec::new() };
    for (column, _) in rows.iter().flatten().chain(&blank) {
        if !columns.contains(column) {
            columns.push(column.clone());
        }
    }
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(&columns)?;
    for row in &rows {
        let cell = |column| row.iter().find(|(name, _)| name == column).map_or("", |(_, text)| text);
        writer.write_record(columns.iter().map(cell))?;
    }
    writer.flush()
}

fn flat(doc: &Doc) -> Vec<(String, String)> {
    let mut cells = Vec::new();
    match doc {
        Doc::Map(fields) => {
            for (name, field) in fields {
                collect(&mut cells, (*name).to_owned(), field);
            }
        }
        Doc::Null | Doc::Bool(_) | Doc::Int(_) | Doc::Float(_) | Doc::Text(_) | Doc::List(_) => {
            collect(&mut cells, "value".to_owned(), doc);
        }
    }
    cells
}

fn collect(cells: &mut Vec<(String, String)>, name: String, doc: &Doc) {
    let text = match doc {
        Doc::Map(fields) if !fields.is_empty() => {
            for (inner, field) in fields {
                collect(cells, format!("{name}.{inner}"), field);
            }
            return;
        }
        Doc::Null => String::new(),
        Doc::Text(text) => cell(text),
        Doc::List(items) if items.is_empty() => String::new(),
        Doc::Bool(_) | Doc::Int(_) | Doc::Float(_) | Doc::List(_) | Doc::Map(_) => json::line(doc),
    };
    cells.push((name, text));
}

/// A text as a cell: visible, and no formula.
pub fn cell(text: &str) -> String {
    let shown = shown(text);
    if shown.trim_start().starts_with(['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}'])
        || text.starts_with(['\t', '\r'])
    {
        format!("'{shown}")
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_are_quoted_numbers_are_not_and_an_empty_list_has_a_head() {
        let doc = |name: &str| {
            Doc::Map(vec![
                ("name", name.into()),
                ("skew", Doc::Int(-3)),
                ("proofs", Doc::Map(vec![("booted", Doc::Null)])),
                ("disks", Doc::List(vec![Doc::Map(vec![("name", "a".into())])])),
            ])
        };
        let written = |docs: &[Doc]| {
            let mut out = Vec::new();
            write(&mut out, docs, &doc("")).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(&[]), "name,skew,proofs.booted,disks\n");
        for (why, name, cell) in [
            ("plain", "web-01", "web-01"),
            ("formula", "=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
            ("plus", "+1", "'+1"),
            ("minus", "-rf", "'-rf"),
            ("at", "@SUM(1)", "'@SUM(1)"),
            ("blanks before", "  =1", "'  =1"),
            ("tab before", "\t=1", "'␉=1"),
            ("a comma and quotes", "a,\"b\"", "\"a,\"\"b\"\"\""),
            ("a newline is one line", "a\nb", "a␊b"),
        ] {
            let expected =
                format!("name,skew,proofs.booted,disks\n{cell},-3,,\"[{{\"\"name\"\":\"\"a\"\"}}]\"\n");
            assert_eq!(written(&[doc(name)]), expected, "{why}");
        }
    }
}
