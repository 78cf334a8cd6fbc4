//! `report`: how drills and failovers went, for people, programs and auditors; and whether a report is what was written.
//!
//! Lives here: the answer as text, and where it goes. Lives beside it: the page (`html`). Lives elsewhere: what a report
//! says and its chain (`model::report`).

mod html;

use super::Setting;
use super::args::{Report as Wanted, ReportVerb};
use super::output::doc::Doc;
use super::output::table::{Cell, Table, Tone};
use super::output::{self, human};
use super::vault::Vault;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::report::{Broken, Report, ReportMachine, ReportStep};
use continuum_model::untrusted::{is_dangerous, shown};
use continuum_proto::v1 as pb;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// No report is larger.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Runs what asks no vault.
pub fn verify(setting: &Setting, files: &[PathBuf]) -> Result<(), Fault> {
    let mut before: Option<(String, Report)> = None;
    let mut checked = Vec::new();
    for path in files {
        let name = shown(&path.display().to_string());
        let report =
            read(path).and_then(|text| Report::read(&text).map_err(|broken| wrong(&name, &broken)))?;
        if let Some((_, before)) = &before {
            report.follows(before).map_err(|broken| wrong(&name, &broken))?;
        }
        checked.push((name.clone(), report.sequence, report.digest.clone()));
        before = Some((name, report));
    }
    let docs = checked.iter().map(|(name, sequence, digest)| {
        Doc::Map(vec![
            ("file", Doc::text(name)),
            ("sequence", (*sequence).into()),
            ("digest", Doc::text(digest)),
            ("intact", true.into()),
        ])
    });
    let docs: Vec<Doc> = docs.collect();
    let blank = docs.first().cloned().unwrap_or(Doc::Null);
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| {
            let mut table = Table::new(&[">REPORT", "FILE", "SHA-256"], "no file").whole(wide);
            for (name, sequence, digest) in &checked {
                table.row(vec![sequence.to_string().into(), name.into(), digest.into()]);
            }
            table
        })
    })?;
    setting.say(match checked.len() {
        1 => {
            "It is what the vault wrote: its digest stands in the vault's audit log, too (continuumd audit)."
        }
        _ => "All are what the vault wrote, and those that follow one another name one another.",
    });
    Ok(())
}

fn wrong(name: &str, broken: &Broken) -> Fault {
    let (class, code) = match broken {
        Broken::Unreadable(_) => (FaultClass::Usage, "report.unreadable"),
        Broken::Newer(_) => (FaultClass::Failed, "report.newer"),
        Broken::Digest { .. } | Broken::Chain { .. } => (FaultClass::Failed, "report.changed"),
    };
    Fault::new(class, code, format!("{name}: {}", shown(&broken.to_string())))
        .affects("what this file claims")
        .spares("the report in the vault")
        .remedy("fetch it anew: continuum report show RUN --to FILE.json; give several files in their order")
}

fn read(path: &Path) -> Result<String, Fault> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.map(|_| text).map_err(|error| {
        let name = shown(&path.display().to_string());
        Fault::new(FaultClass::Usage, "report.unreadable", format!("{name} cannot be read: {error}"))
            .affects("this answer")
            .remedy("name files that `continuum report show RUN --to FILE.json` wrote")
    })
}

/// Runs what asks a vault.
pub async fn run(setting: &Setting, wanted: &Wanted) -> Result<(), Fault> {
    match &wanted.verb {
        ReportVerb::List { most } => list(setting, *most).await,
        ReportVerb::Show { of, to, force } => show(setting, of, to.as_deref(), *force).await,
        ReportVerb::Verify { files } => verify(setting, files),
    }
}

async fn list(setting: &Setting, most: u32) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let reports = vault.reports(pb::ReportsRequest { of: String::new(), most }).await?;
    let doc = |report: &pb::Report| {
        Doc::Map(vec![
            ("sequence", report.sequence.into()),
            ("subject", Doc::text(&report.subject)),
            ("kind", Doc::text(&report.kind)),
            ("made", Doc::time(report.made_us)),
            ("outcome", Doc::text(&report.outcome)),
            ("passed", report.passed.into()),
            ("run", Doc::text(&report.job)),
            ("digest", Doc::text(&report.digest)),
        ])
    };
    let docs = reports.iter().map(doc).collect();
    setting.write(|out| {
        output::list(out, setting.style, docs, &doc(&pb::Report::default()), |wide| {
            let head = [">REPORT", "OF", "KIND", "WHEN", "OUTCOME", "PASSED", "RUN"];
            let empty = "no drill or failover is over yet: continuum test-failover MACHINE";
            let mut table = Table::new(&head, empty).whole(wide);
            for report in &reports {
                table.row(vec![
                    report.sequence.to_string().into(),
                    report.subject.as_str().into(),
                    report.kind.as_str().into(),
                    human::moment(Some(report.made_us)).into(),
                    Cell::state(&report.outcome),
                    passed(report.passed),
                    report.job.as_str().into(),
                ]);
            }
            table
        })
    })
}

fn passed(passed: bool) -> Cell {
    Cell::new(if passed { "yes" } else { "no" }).toned(if passed { Tone::Good } else { Tone::Critical })
}

async fn show(setting: &Setting, of: &str, to: Option<&Path>, force: bool) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let reports = vault.reports(pb::ReportsRequest { of: of.to_owned(), most: 1 }).await?;
    let body = reports.into_iter().next().map(|report| report.body).unwrap_or_default();
    // What came over the wire is held against its digest before anybody reads it.
    let report =
        Report::read(&body).map_err(|broken| wrong(&format!("the report of {}", shown(of)), &broken))?;
    let Some(path) = to else {
        return setting.write(|out| match setting.style.format {
            output::Format::Table | output::Format::Wide => text(out, &report),
            // As it was sealed, in the order of its digest, so that it can be kept and verified.
            output::Format::Json | output::Format::Yaml | output::Format::Csv => pretty(out, &body),
        });
    };
    let written = match path.extension().and_then(|end| end.to_str()) {
        Some("html") => save(path, force, |out| html::write(out, &report)),
        Some("json") => save(path, force, |out| pretty(out, &body)),
        Some("txt") => save(path, force, |out| text(out, &report)),
        _ => {
            return Err(Fault::new(
                FaultClass::Usage,
                "report.form",
                format!("{} says no form", shown(&path.display().to_string())),
            )
            .affects("this file, which was not written")
            .remedy("name a file that ends in .html, .json or .txt"));
        }
    };
    let name = shown(&path.display().to_string());
    written.map_err(|error| {
        Fault::new(FaultClass::Failed, "report.unwritten", format!("{name} could not be written: {error}"))
            .affects("this file")
            .spares("the report in the vault")
            .remedy("choose another place, or --force to replace a file that is there")
    })?;
    setting.say(&format!("report {} of {} is in {name}", report.sequence, shown(&report.subject)));
    Ok(())
}

fn save(path: &Path, force: bool, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let mut out = io::BufWriter::new(options.open(path)?);
    write(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// The sealed JSON, indented: whitespace does not count for its digest. What could drive a terminal stands as `\\uXXXX`,
/// which is the same text to whoever reads it.
fn pretty(out: &mut dyn Write, body: &str) -> io::Result<()> {
    let value: serde_json::Value = serde_json::from_str(body)?;
    let mut text = String::new();
    for c in serde_json::to_string_pretty(&value)?.chars() {
        if is_dangerous(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        } else {
            text.push(c);
        }
    }
    writeln!(out, "{text}")
}

pub(super) fn span(millis: Option<u64>) -> String {
    human::seconds(millis.map(|millis| millis as f64 / 1000.0))
}

/// Measured against an objective, in words.
pub(super) fn against(measured: Option<u64>, objective: Option<u64>) -> String {
    match (measured, objective) {
        (None, None) => "not measured".into(),
        (None, Some(objective)) => format!("not measured; the objective is {}", span(Some(objective))),
        (Some(_), None) => format!("{}; no objective is set", span(measured)),
        (Some(took), Some(objective)) => {
            let met = if took <= objective { "met" } else { "MISSED" };
            format!("{}; objective {}: {met}", span(measured), span(Some(objective)))
        }
    }
}

pub(super) fn title(report: &Report) -> String {
    let what = match report.kind.as_str() {
        "test-failover" | "plan-test-failover" => "Drill",
        _ => "Failover",
    };
    format!("{what} of {}", shown(&report.subject))
}

pub(super) fn verdict(report: &Report) -> &'static str {
    if report.passed { "PASSED" } else { "NOT PASSED" }
}

/// The moment of a machine, in words.
pub(super) fn point(machine: &ReportMachine) -> String {
    let Some(time) = machine.point_us else { return "none was brought up".into() };
    let name = if machine.point_name.is_empty() {
        String::new()
    } else {
        format!(" \"{}\"", shown(&machine.point_name))
    };
    let kind = shown(&machine.point_kind);
    format!("{} ({kind}{name}), {} old", human::moment(Some(time)), span(machine.point_age_ms))
}

pub(super) fn loss(machine: &ReportMachine) -> String {
    match (machine.loss_ms, machine.loss_bytes) {
        (None, None) => "not known".into(),
        (time, bytes) => format!("{}, {}", span(time), human::bytes(bytes)),
    }
}

fn text(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    writeln!(out, "{}: {}", title(report), verdict(report))?;
    writeln!(out, "  ordered   {} by {}", human::moment(Some(report.ordered_us)), shown(&report.ordered_by))?;
    writeln!(out, "  moment    {}", shown(&report.asked_point))?;
    if let Some(plan) = &report.plan {
        writeln!(out, "  plan      {} version {}, sha256 {}", shown(&plan.name), plan.version, plan.sha256)?;
    }
    writeln!(out, "  RTO       {}", against(report.rto_ms, report.rto_objective_ms))?;
    writeln!(out, "  RPO       {}", against(report.rpo_ms, report.rpo_objective_ms))?;
    for problem in &report.problems {
        writeln!(out, "  problem   {}", shown(problem))?;
    }
    if report.plan.is_some() {
        writeln!(out)?;
        steps(&report.steps).write(out, false)?;
    }
    for machine in &report.machines {
        writeln!(out, "\n{}: {}", shown(&machine.name), shown(&machine.outcome))?;
        writeln!(out, "  moment    {}", point(machine))?;
        writeln!(out, "  given up  {}", loss(machine))?;
        writeln!(out, "  answered  {} after its order", span(machine.rto_ms))?;
        for probe in &machine.probes {
            let how = if probe.passed { "passed" } else { "FAILED" };
            writeln!(out, "  probe     {}: {how}: {}", shown(&probe.name), shown(&probe.detail))?;
        }
        if !machine.note.is_empty() {
            writeln!(out, "  note      {}", shown(&machine.note))?;
        }
        if !machine.problem.is_empty() {
            writeln!(out, "  problem   {}", shown(&machine.problem))?;
        }
        if !machine.steps.is_empty() {
            steps(&machine.steps).write(out, false)?;
        }
    }
    let vault = shown(&report.vault);
    writeln!(out, "\nreport {} of vault {vault} ({}), run {}", report.sequence, report.vault_id, report.run)?;
    writeln!(out, "sha256 {}", report.digest)?;
    let before = if report.previous.is_empty() { "it is the first" } else { &report.previous };
    writeln!(out, "follows {before}")
}

fn steps(steps: &[ReportStep]) -> Table {
    let mut table = Table::new(&["STEP", "OUTCOME", ">TOOK", ">PLANNED", "DETAIL"], "no step").whole(true);
    for step in steps {
        table.row(vec![
            step.name.as_str().into(),
            Cell::state(&step.outcome),
            span(step.took_ms).into(),
            span(step.planned_ms).into(),
            step.detail.as_str().into(),
        ]);
    }
    table
}
