//! A report as one page that needs nothing else: no script, no font, no address is fetched; it prints well.

use super::{against, loss, point, span, title, verdict};
use crate::verb::output::human;
use continuum_model::report::{Report, ReportStep};
use continuum_model::untrusted::shown;
use std::io::{self, Write};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .4rem;border-bottom:1px solid #d0d7de}\
.ok,.no{display:inline-block;padding:.1rem .6rem;border-radius:.3rem;font-weight:600;color:#fff}\
.ok{background:#1a7f37}.no{background:#b3261e}\
table{border-collapse:collapse;width:100%;margin:.6rem 0}\
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem;border-bottom:1px solid #eaeef2}\
th{font-weight:600;white-space:nowrap}td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
.bar{background:#eaeef2;height:.7rem;min-width:8rem;position:relative}\
.bar i{position:absolute;top:0;bottom:0;background:#0969da;min-width:1px}\
.seal{color:#57606a;font:12px/1.6 ui-monospace,monospace;margin-top:3rem;overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}th,td,h2{border-color:#30363d}.bar{background:#21262d}}\
@media print{body{margin:0;max-width:none}h2{break-after:avoid}tr{break-inside:avoid}}";

/// Writes the page.
pub fn write(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let class = if report.passed { "ok" } else { "no" };
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title>\n<style>{STYLE}</style></head><body>",
        title = safe(&title(report)),
    )?;
    writeln!(
        out,
        "<h1>{}</h1>\n<p><span class=\"{class}\">{}</span></p>",
        safe(&title(report)),
        verdict(report)
    )?;
    writeln!(out, "<table>")?;
    let by = format!("{} by {}", human::moment(Some(report.ordered_us)), report.ordered_by);
    row(out, "Ordered", &by)?;
    row(out, "Over", &human::moment(Some(report.ended_us)))?;
    row(out, "Moment asked for", &report.asked_point)?;
    if let Some(plan) = &report.plan {
        row(out, "Plan", &format!("{} version {}, sha256 {}", plan.name, plan.version, plan.sha256))?;
    }
    row(out, "RTO", &against(report.rto_ms, report.rto_objective_ms))?;
    row(out, "RPO", &against(report.rpo_ms, report.rpo_objective_ms))?;
    row(out, "Machines", &report.machines.len().to_string())?;
    writeln!(out, "</table>")?;
    if !report.problems.is_empty() {
        writeln!(out, "<h2>Problems</h2><ul>")?;
        for problem in &report.problems {
            writeln!(out, "<li>{}</li>", safe(problem))?;
        }
        writeln!(out, "</ul>")?;
    }
    let span_of_run = (report.ordered_us, report.ended_us);
    if report.plan.is_some() {
        writeln!(out, "<h2>Run</h2>")?;
        steps(out, &report.steps, span_of_run)?;
    }
    for machine in &report.machines {
        writeln!(out, "<h2>{}: {}</h2><table>", safe(&machine.name), safe(&machine.outcome))?;
        row(out, "Moment", &point(machine))?;
        row(out, "Given up", &loss(machine))?;
        row(out, "Answered", &format!("{} after its order", span(machine.rto_ms)))?;
        for probe in &machine.probes {
            let how = if probe.passed { "passed" } else { "FAILED" };
            row(out, &format!("Probe {}", probe.name), &format!("{how}: {}", probe.detail))?;
        }
        for (what, text) in [("Note", &machine.note), ("Problem", &machine.problem)] {
            if !text.is_empty() {
                row(out, what, text)?;
            }
        }
        writeln!(out, "</table>")?;
        steps(out, &machine.steps, span_of_run)?;
    }
    let before = if report.previous.is_empty() { "none: it is the first" } else { &report.previous };
    writeln!(
        out,
        "<p class=\"seal\">report {} of vault {} ({}), run {}<br>sha256 {}<br>follows {}<br>\
         The report in JSON proves itself: continuum report verify FILE.json</p>\n</body></html>",
        report.sequence,
        safe(&report.vault),
        safe(&report.vault_id),
        safe(&report.run),
        safe(&report.digest),
        safe(before)
    )
}

fn row(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "<tr><th>{}</th><td>{}</td></tr>", safe(name), safe(text))
}

/// A table of steps, each with its stretch of the whole run.
fn steps(out: &mut dyn Write, steps: &[ReportStep], (from, to): (i64, i64)) -> io::Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<table><tr><th>Step</th><th>Outcome</th><th>Took</th><th>Planned</th><th>When</th><th>Detail</th></tr>"
    )?;
    let whole = to.saturating_sub(from).max(1) as f64;
    for step in steps {
        let bar = step.started_us.map_or_else(String::new, |started| {
            let left = (started.saturating_sub(from) as f64 / whole * 100.0).clamp(0.0, 100.0);
            let width = (step.took_ms.unwrap_or(0) as f64 * 100_000.0 / whole).clamp(0.0, 100.0 - left);
            format!("<div class=\"bar\"><i style=\"left:{left:.2}%;width:{width:.2}%\"></i></div>")
        });
        writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{bar}</td><td>{}</td></tr>",
            safe(&step.name),
            safe(&step.outcome),
            span(step.took_ms),
            span(step.planned_ms),
            safe(&step.detail)
        )?;
    }
    writeln!(out, "</table>")
}

/// Text from outside, for a page: made visible first, then escaped.
fn safe(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in shown(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}
