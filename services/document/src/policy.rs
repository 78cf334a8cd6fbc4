//! A policy as a document: read field by field, so that everything wrong is told at once; written so that reading it
//! gives the same; and what a change of one means.

use super::tree::{Kind, Node, Piece};
use super::{Problem, tree, words};
use continuum_model::hours::{Hours, Weekday};
use continuum_model::policy::Policy;
use continuum_model::untrusted::shown;
use serde_json::{Map, Value};

/// Longest name of a policy, in bytes.
pub const NAME_BYTES_MAX: usize = 253;

/// Every field, what it is called on screens, and what to write.
pub const FIELDS: [(&str, &str, &str); 13] = [
    ("retention_seconds", "Keep all for", "write whole seconds, such as 86400"),
    ("steps", "Then thin out", "write a list of {every_seconds: 3600, for_seconds: 604800}"),
    ("history_bytes_max", "History at most", "write whole bytes, or leave it out for no limit"),
    ("crash_point_seconds", "Point every", "write whole seconds, such as 300"),
    ("app_point_seconds", "App point every", "write whole seconds, or 0 for none"),
    ("rpo_threshold_seconds", "RPO alarm over", "write whole seconds, such as 900"),
    ("staging_bytes_max", "Staging at most", "write whole bytes, such as 1073741824"),
    ("compression", "Compress", "write true or false"),
    ("encryption", "Encrypt at rest", "write true or false"),
    (
        "replication_interval_seconds",
        "Replicate every",
        "write whole seconds, or 0 for every write as it happens",
    ),
    (
        "bandwidth",
        "Bandwidth",
        "write a list of {days: [mon, tue], from: \"08:00\", to: \"18:00\", bytes_per_sec: 1000000}",
    ),
    (
        "resync_window",
        "Resync only",
        "write {days: [sat, sun], from: \"18:30\", to: \"06:00\"}, or leave it out for at once",
    ),
    ("name", "Name", "give it a name of 1 to 253 bytes"),
];

/// What a field is called on screens.
pub fn label(field: &str) -> &'static str {
    FIELDS.iter().find(|(name, ..)| *name == field).map_or("", |(_, label, _)| label)
}

fn fix(field: &str) -> &'static str {
    FIELDS.iter().find(|(name, ..)| *name == field).map_or("", |(_, _, fix)| fix)
}

/// Reads the policy of a text that holds nothing else.
///
/// Errors: everything that is wrong, by line.
pub fn read(text: &str) -> Result<(String, Policy), Vec<Problem>> {
    let pieces = tree::pieces(text)?;
    match pieces.as_slice() {
        [piece] => {
            if let Some(kind) = piece.root.field("kind").filter(|kind| kind.as_text() != Some("policy")) {
                return Err(vec![Problem::new(kind.line, "kind", "it is no policy", "write policy")]);
            }
            of_piece(piece)
        }
        [] => Err(vec![Problem::new(0, "", "there is no policy in it", "write its name and fields")]),
        [_, second, ..] => {
            Err(vec![Problem::new(second.line, "", "a second document", "one policy is taken at a time")])
        }
    }
}

pub(crate) fn of_piece(piece: &Piece) -> Result<(String, Policy), Vec<Problem>> {
    let mut problems = Vec::new();
    let mut good = Map::new();
    let mut name = None;
    let Kind::Fields(fields) = &piece.root.kind else {
        return Err(vec![Problem::new(piece.root.line, "", "a policy is made of fields", "write name: …")]);
    };
    for (field, line, node) in fields {
        match field.as_str() {
            "kind" => {}
            "name" => name = Some(named(*line, node, &mut problems)),
            field if FIELDS.iter().any(|(known, ..)| *known == field) => match alone(field, node) {
                Ok(value) => {
                    good.insert(field.to_owned(), value);
                }
                Err(why) => problems.push(Problem::new(*line, field, why, fix(field))),
            },
            field => {
                let short = tree::short(field);
                let near = nearest(field);
                problems.push(Problem::new(*line, &short, "there is no such field", near));
            }
        }
    }
    if name.is_none() {
        problems.push(Problem::new(piece.line, "name", "it has none", fix("name")));
    }
    match serde_json::from_value::<Policy>(Value::Object(good)) {
        Ok(policy) => {
            // A value that could not be read is told once, and not as its default.
            let told: Vec<String> = problems.iter().map(|problem| problem.field.clone()).collect();
            for wrong in policy.problems().into_iter().filter(|wrong| !told.iter().any(|f| f == wrong.field))
            {
                let line = piece.root.line_of(wrong.field);
                problems.push(Problem::new(line, wrong.field, wrong.problem, wrong.fix));
            }
            if problems.is_empty() {
                return Ok((name.unwrap_or_default(), policy));
            }
        }
        Err(error) => problems.push(Problem::new(piece.line, "", shown(&error.to_string()), "")),
    }
    problems.sort_by_key(|problem| problem.line);
    Err(problems)
}

fn named(line: usize, node: &Node, problems: &mut Vec<Problem>) -> String {
    match node.as_text().map(|name| (name, name_problem(name))) {
        Some((name, None)) => name.to_owned(),
        Some((_, Some(why))) => {
            problems.push(Problem::new(line, "name", why, fix("name")));
            String::new()
        }
        None => {
            problems.push(Problem::new(line, "name", "it is no single word", fix("name")));
            String::new()
        }
    }
}

/// What is wrong with a policy's name.
pub fn name_problem(name: &str) -> Option<&'static str> {
    if name.trim().is_empty() {
        Some("it is empty")
    } else if name.len() > NAME_BYTES_MAX {
        Some("it is longer than 253 bytes")
    } else if name.chars().any(continuum_model::untrusted::is_dangerous) {
        Some("it holds characters that cannot be seen")
    } else {
        None
    }
}

/// A field's value, where it is one that the field takes.
fn alone(field: &str, node: &Node) -> Result<Value, String> {
    let value = node.value();
    let one = Value::Object(Map::from_iter([(field.to_owned(), value.clone())]));
    match serde_json::from_value::<Policy>(one) {
        Ok(_) => Ok(value),
        Err(error) => {
            let said = shown(&error.to_string());
            Err(match node.as_text() {
                Some(text) => {
                    format!("{} is not what it takes ({})", shown(&tree::short(text)), tree::short(&said))
                }
                None => tree::short(&said),
            })
        }
    }
}

/// The field that was probably meant.
fn nearest(field: &str) -> String {
    // A word that was begun right, and cut short, is one too.
    let off = |known: &str| {
        let begun = known.get(..field.len()).unwrap_or(known);
        distance(field, known).min(distance(field, begun) + 1)
    };
    let best = FIELDS.iter().map(|(known, ..)| (off(known), *known)).min();
    match best {
        Some((distance, known)) if distance <= 4 && distance < field.len() => {
            format!("did you mean {known}?")
        }
        _ => format!("there are {}", FIELDS.map(|(known, ..)| known).join(", ")),
    }
}

/// How many letters differ; long words are cut.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(40).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = before + usize::from(x != y);
            before = row[j + 1];
            row[j + 1] = cost.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The text of a policy: what [`read`] takes, with words beside the numbers.
pub fn write(name: &str, policy: &Policy) -> String {
    let mut out = Vec::new();
    let mut line = |text: String, words: String| {
        out.push(if words.is_empty() { text } else { format!("{text:<39} # {words}") });
    };
    line("kind: policy".into(), String::new());
    line(format!("name: {}", quoted(name)), String::new());
    let p = policy;
    line(
        format!("retention_seconds: {}", p.retention_seconds),
        format!("any moment of {}", words::span(p.retention_seconds)),
    );
    if !p.steps.is_empty() {
        line("steps:".into(), "what is kept of older history".into());
    }
    for step in &p.steps {
        line(
            format!("  - every_seconds: {}", step.every_seconds),
            format!("one state every {}", words::span(step.every_seconds)),
        );
        line(
            format!("    for_seconds: {}", step.for_seconds),
            format!("up to an age of {}", words::span(step.for_seconds)),
        );
    }
    if let Some(bytes) = p.history_bytes_max {
        line(format!("history_bytes_max: {}", bytes.0), words::size(bytes.0));
    }
    line(format!("crash_point_seconds: {}", p.crash_point_seconds), words::span(p.crash_point_seconds));
    line(format!("app_point_seconds: {}", p.app_point_seconds), none_or(p.app_point_seconds, "none"));
    line(format!("rpo_threshold_seconds: {}", p.rpo_threshold_seconds), words::span(p.rpo_threshold_seconds));
    line(format!("staging_bytes_max: {}", p.staging_bytes_max.0), words::size(p.staging_bytes_max.0));
    line(format!("compression: {}", p.compression), String::new());
    line(format!("encryption: {}", p.encryption), String::new());
    line(
        format!("replication_interval_seconds: {}", p.replication_interval_seconds),
        none_or(p.replication_interval_seconds, "every write as it happens"),
    );
    if !p.bandwidth.is_empty() {
        line("bandwidth:".into(), "the first that holds counts".into());
    }
    for limit in &p.bandwidth {
        let lead = if limit.days.is_empty() { "  - " } else { "    " };
        if !limit.days.is_empty() {
            line(format!("  - days: [{}]", days(&limit.days)), String::new());
        }
        line(format!("{lead}from: \"{}\"", limit.from), String::new());
        line(format!("    to: \"{}\"", limit.to), String::new());
        line(format!("    bytes_per_sec: {}", limit.bytes_per_sec), words::rate(limit.bytes_per_sec));
    }
    if let Some(window) = &p.resync_window {
        line("resync_window:".into(), String::new());
        line(format!("  days: [{}]", days(&window.days)), String::new());
        line(format!("  from: \"{}\"", window.from), String::new());
        line(format!("  to: \"{}\"", window.to), String::new());
    }
    out.push(String::new());
    out.join("\n")
}

fn days(days: &[Weekday]) -> String {
    days.iter().map(|day| day.name()).collect::<Vec<_>>().join(", ")
}

fn none_or(seconds: u64, none: &str) -> String {
    if seconds == 0 { none.to_owned() } else { words::span(seconds) }
}

/// A name as YAML takes it and reads it as the same word.
fn quoted(name: &str) -> String {
    let plain = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&name.to_ascii_lowercase().as_str());
    if plain { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

/// A field's value in words.
pub fn told(policy: &Policy, field: &str) -> String {
    let p = policy;
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    match field {
        "retention_seconds" => words::span(p.retention_seconds),
        "steps" if p.steps.is_empty() => "nothing older".into(),
        "steps" => p
            .steps
            .iter()
            .map(|step| {
                format!(
                    "one state every {} up to {}",
                    words::span(step.every_seconds),
                    words::span(step.for_seconds)
                )
            })
            .collect::<Vec<_>>()
            .join(", "),
        "history_bytes_max" => {
            p.history_bytes_max.map_or_else(|| "no limit".into(), |bytes| words::size(bytes.0))
        }
        "crash_point_seconds" => words::span(p.crash_point_seconds),
        "app_point_seconds" => none_or(p.app_point_seconds, "none"),
        "rpo_threshold_seconds" => words::span(p.rpo_threshold_seconds),
        "staging_bytes_max" if p.staging_bytes_max.0 == 0 => "half of the disks".into(),
        "staging_bytes_max" => words::size(p.staging_bytes_max.0),
        "compression" => yes(p.compression),
        "encryption" => yes(p.encryption),
        "replication_interval_seconds" => {
            none_or(p.replication_interval_seconds, "every write as it happens")
        }
        "bandwidth" if p.bandwidth.is_empty() => "as fast as the link".into(),
        "bandwidth" => p
            .bandwidth
            .iter()
            .map(|limit| format!("{} {}", hours(&limit.hours()), words::rate(limit.bytes_per_sec)))
            .collect::<Vec<_>>()
            .join(", "),
        "resync_window" => p.resync_window.as_ref().map_or_else(|| "at once".into(), hours),
        _ => String::new(),
    }
}

/// Hours of the week in words.
pub fn hours(hours: &Hours) -> String {
    let on = if hours.days.is_empty() { "every day".to_owned() } else { days(&hours.days) };
    format!("{on} {}-{}", hours.from, hours.to)
}

/// One field that a change changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which field.
    pub field: &'static str,
    /// What it was, in words.
    pub from: String,
    /// What it becomes.
    pub to: String,
    /// What it means for machines under the policy; empty where it says so itself.
    pub means: String,
    /// Recovery points go.
    pub loses: bool,
}

/// What changes between two policies, and what that means for so many machines that go from one to the other.
pub fn changes(before: &Policy, after: &Policy, machines: usize) -> Vec<Change> {
    let fields = FIELDS.iter().map(|(field, ..)| *field);
    fields
        .filter_map(|field| {
            let (from, to) = (told(before, field), told(after, field));
            (from != to).then(|| {
                let (means, loses) = means(field, before, after, machines);
                Change { field, from, to, means, loses }
            })
        })
        .collect()
}

fn means(field: &str, before: &Policy, after: &Policy, machines: usize) -> (String, bool) {
    if machines == 0 {
        return (String::new(), false);
    }
    let whose = if machines == 1 { "1 machine".to_owned() } else { format!("{machines} machines") };
    let (was, is) = (before.promised_seconds(), after.promised_seconds());
    match field {
        "retention_seconds" | "steps" if is < was => {
            // Told once, at the field that makes it so.
            let retention = before.retention_seconds != after.retention_seconds;
            if field == "steps" && retention && before.steps.is_empty() == after.steps.is_empty() {
                return (String::new(), true);
            }
            let said = format!(
                "shortens history of {whose} from {} to {}: {} of points go",
                words::span(was),
                words::span(is),
                words::span(was - is)
            );
            (said, true)
        }
        "retention_seconds" if after.retention_seconds < before.retention_seconds => {
            let said = format!(
                "of {whose}, what is older than {} is thinned: moments between the states kept go",
                words::span(after.retention_seconds)
            );
            (said, true)
        }
        "steps" if coarser(before, after) => {
            (format!("of {whose}, fewer states are kept of old history: others go"), true)
        }
        "history_bytes_max"
            if after
                .history_bytes_max
                .is_some_and(|most| before.history_bytes_max.is_none_or(|was| most < was)) =>
        {
            (format!("history of {whose} that takes more is thinned, then ends sooner"), true)
        }
        "history_bytes_max" => (String::new(), false),
        "rpo_threshold_seconds" => (format!("{whose}: an alarm only, nothing else changes"), false),
        "crash_point_seconds" | "app_point_seconds" => {
            (format!("{whose}: from the next point on; points that are there stay"), false)
        }
        _ => (format!("{whose}: from now on"), false),
    }
}

/// Whether some age keeps fewer states than before.
fn coarser(before: &Policy, after: &Policy) -> bool {
    let every = |policy: &Policy, age: u64| {
        if age <= policy.retention_seconds {
            return 0;
        }
        policy.steps.iter().find(|step| age <= step.for_seconds).map_or(u64::MAX, |step| step.every_seconds)
    };
    let ages = before.steps.iter().chain(&after.steps).map(|step| step.for_seconds);
    ages.chain([before.retention_seconds]).any(|age| every(after, age) > every(before, age))
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::policy::{BandwidthLimit, RetentionStep};
    use continuum_model::units::Bytes;
    use proptest::prelude::*;

    fn any_policy() -> impl Strategy<Value = Policy> {
        let span = 0..2000_u32;
        let time = (0..=1440_u32)
            .prop_map(|minutes| continuum_model::hours::TimeOfDay::from_minutes(minutes).unwrap());
        let days = prop::collection::vec(0..7_u32, 0..4)
            .prop_map(|days| days.into_iter().map(Weekday::from_monday).collect::<Vec<_>>());
        let limit = (days.clone(), time.clone(), time.clone(), 16_384..1_u64 << 40)
            .prop_map(|(days, from, to, bytes_per_sec)| BandwidthLimit { days, from, to, bytes_per_sec });
        let window = prop::option::of((days, time.clone(), time).prop_map(|(days, from, to)| Hours {
            days,
            from,
            to,
        }));
        (
            (60..2_592_000_u64, 1..60_u64, 0..60_u64, 1..100_000_u64),
            (prop::option::of(0..u64::MAX), 1_u64 << 26..u64::MAX, any::<bool>(), any::<bool>()),
            prop::collection::vec(span, 0..3),
            prop::collection::vec(limit, 0..3),
            window,
        )
            .prop_map(
                |(
                    (retention, crash, app, rpo),
                    (history, staging, compression, encryption),
                    steps,
                    bandwidth,
                    resync_window,
                )| {
                    let mut before = (60, retention);
                    let steps = steps
                        .into_iter()
                        .map(|more| {
                            before = (before.0 + u64::from(more), before.1 + before.0 + u64::from(more) + 1);
                            RetentionStep { every_seconds: before.0, for_seconds: before.1 }
                        })
                        .collect();
                    Policy {
                        retention_seconds: retention,
                        steps,
                        history_bytes_max: history.map(Bytes),
                        crash_point_seconds: crash,
                        app_point_seconds: app.min(retention - 1),
                        rpo_threshold_seconds: rpo,
                        staging_bytes_max: Bytes(staging),
                        compression,
                        encryption,
                        replication_interval_seconds: 0,
                        bandwidth,
                        resync_window,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_exported_is_what_apply_takes(policy in any_policy(), name in "[ -~äé漢]{1,20}") {
            prop_assume!(name_problem(&name).is_none());
            prop_assert_eq!(read(&write(&name, &policy)), Ok((name, policy)));
        }
    }

    #[test]
    fn a_change_says_what_it_means_for_the_machines() {
        let day = Policy::default();
        let short = Policy { retention_seconds: 8 * 3600, compression: false, ..day.clone() };
        let told = changes(&day, &short, 3);
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].means, "shortens history of 3 machines from 24 h to 8 h: 16 h of points go");
        assert!(told[0].loses && !told[1].loses);
        assert!(changes(&short, &day, 3).iter().all(|change| !change.loses));
        assert!(changes(&day, &short, 0).iter().all(|change| !change.loses), "nobody is under it");
        assert_eq!(changes(&day, &day, 3), []);
        let week = RetentionStep { every_seconds: 3600, for_seconds: 7 * 86_400 };
        let thin = Policy { steps: vec![week], ..day.clone() };
        let coarse = Policy { steps: vec![RetentionStep { every_seconds: 86_400, ..week }], ..day.clone() };
        assert!(changes(&thin, &coarse, 1)[0].loses && !changes(&coarse, &thin, 1)[0].loses);
        assert!(changes(&thin, &day, 1)[0].loses && !changes(&day, &thin, 1)[0].loses);
    }
}
