//! What leaves the console as text: the clipboard's line and the exported table.
//!
//! Everything is harmless text already. A spreadsheet is a terminal, too: a field that it would take for a
//! formula is made text.

use super::state::{Place, State, Tab};
use super::table::{Cell, Rows};
use super::text;
use continuum_model::time::Timestamp;
use serde_json::{Map, Value};

/// What `y` copies here.
pub fn copied(state: &State) -> String {
    if let (Place::Machine(_, Tab::Points), Some(timeline)) = (&state.place, &state.timeline) {
        return Timestamp::from_micros(timeline.cursor_us).to_string();
    }
    if let Some(alert) = state.alert_here() {
        return format!("{}: {}. {} {}", alert.object, alert.text, alert.cause, alert.remedy)
            .trim()
            .to_owned();
    }
    if let Some(job) = state.job_here() {
        return format!("continuum describe job {}", job.id);
    }
    if let Some(machine) = state.machine_here() {
        return machine.name.clone();
    }
    let Some((kind, table)) = state.place.table().zip(state.current()) else { return String::new() };
    let rows = state.rows(kind);
    let place = table.order().get(table.cursor()).copied();
    place.map(|place| rows.cell(place as usize, rows.name_column()).text).unwrap_or_default()
}

/// The table of this place as a file: its stem and its content.
pub fn shown_here(state: &State, json: bool) -> Option<(String, String)> {
    let (stem, titles, fields) = match (&state.place, &state.timeline) {
        (Place::Machine(_, Tab::Points), Some(timeline)) => points(timeline),
        _ => {
            let kind = state.place.table()?;
            let table = state.table(kind);
            let rows = state.rows(kind);
            let columns: Vec<usize> = (0..rows.columns().len())
                .filter(|at| !table.hidden.contains(rows.columns()[*at].title))
                .collect();
            let titles = columns.iter().map(|at| title(rows.columns()[*at].title)).collect();
            let fields = table
                .order()
                .iter()
                .map(|place| columns.iter().map(|at| field(&*rows, *place as usize, *at)).collect())
                .collect();
            (state.place.screen().1.to_lowercase(), titles, fields)
        }
    };
    let stamp: String =
        text::moment(state.now).chars().map(|c| if c.is_ascii_digit() { c } else { '-' }).collect();
    let content = if json { as_json(&titles, &fields) } else { as_csv(&titles, &fields) };
    Some((format!("continuum-{stem}-{stamp}"), content))
}

type Fields = (String, Vec<String>, Vec<Vec<String>>);

fn points(timeline: &super::timeline::Timeline) -> Fields {
    let titles = ["time", "kind", "name", "pinned", "booted", "probed", "digest_equal", "id"]
        .map(str::to_owned)
        .to_vec();
    let proof = |proof: Option<bool>| proof.map_or(String::new(), |proof| proof.to_string());
    let fields = timeline
        .points()
        .iter()
        .map(|point| {
            let proofs = point.proofs.unwrap_or_default();
            vec![
                Timestamp::from_micros(point.time_us).to_string(),
                point.kind.clone(),
                point.name.clone(),
                point.pinned.to_string(),
                proof(proofs.booted),
                proof(proofs.probed),
                proof(proofs.digest_equal),
                point.id.clone(),
            ]
        })
        .collect();
    ("points".into(), titles, fields)
}

fn title(title: &str) -> String {
    if title.is_empty() { "about".into() } else { title.to_lowercase().replace([' ', ','], "_") }
}

fn field(rows: &dyn Rows, place: usize, column: usize) -> String {
    let Cell { text, chart, .. } = rows.cell(place, column);
    if chart.is_empty() {
        return if text == super::text::UNKNOWN { String::new() } else { text.trim().to_owned() };
    }
    chart.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

fn as_csv(titles: &[String], fields: &[Vec<String>]) -> String {
    let mut out = String::new();
    let mut line = |values: &[String]| {
        let quoted: Vec<String> = values.iter().map(|value| csv_field(value)).collect();
        out.push_str(&quoted.join(","));
        out.push_str("\r\n");
    };
    line(titles);
    fields.iter().for_each(|values| line(values));
    out
}

/// One field: never a formula, quoted where a reader could split it.
fn csv_field(value: &str) -> String {
    let formula = value.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let value = if formula { format!("'{value}") } else { value.to_owned() };
    if formula || value.contains([',', '"', '\n', '\r', ';']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value
    }
}

fn as_json(titles: &[String], fields: &[Vec<String>]) -> String {
    let list: Vec<Value> = fields
        .iter()
        .map(|values| {
            let pairs = titles.iter().zip(values).map(|(title, value)| {
                let value = if value.is_empty() { Value::Null } else { Value::String(value.clone()) };
                (title.clone(), value)
            });
            Value::Object(pairs.collect::<Map<_, _>>())
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&Value::Array(list)).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spreadsheet_never_sees_a_formula() {
        for (value, expected) in [
            ("=1+1", "\"'=1+1\""),
            ("+49", "\"'+49\""),
            ("-5", "\"'-5\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
        ] {
            assert_eq!(csv_field(value), expected);
        }
    }
}
