//! One machine: its tabs, its overview, its disks.

use super::super::core::rows::{machine_state, rpo_role, test_state};
use super::super::core::state::{State, Tab};
use super::super::core::text;
use super::super::core::tone::{Mark, Role, of_health};
use super::canvas::{Canvas, Line, bar, span, sparkline};
use super::pair;
use continuum_proto::v1 as pb;
use ratatui::layout::Rect;

/// The machine's name and its tabs.
pub fn tabs(state: &State, machine: &pb::Machine, here: Tab, canvas: &mut Canvas<'_>, area: Rect) {
    let (mark, role) = of_health(&machine.health);
    let name = canvas.marked(mark, &machine.name);
    let room = area.width.saturating_sub(44).max(12);
    let mut x =
        canvas.put(area.x + 1, area.y, room, &name, if role == Role::Ok { Role::Title } else { role });
    x += 2;
    for (tab, label) in Tab::ALL {
        let role = if tab == here { Role::Selection } else { Role::Text };
        x = canvas.put(x, area.y, 12, &format!(" {label} "), role);
    }
    let (words, role) = machine_state(machine);
    let test = test_state(machine);
    let words = if test.is_empty() { words } else { format!("{words}, {test}") };
    let left = area.right().saturating_sub(x + 2);
    canvas.put_right(x + 1, area.y, left, &words, if test.is_empty() { role } else { Role::Drill });
    let _ = state;
}

/// What it is, where it goes, how it does.
pub fn overview(state: &State, machine: &pb::Machine, canvas: &mut Canvas<'_>, area: Rect) {
    let lines = lines(state, machine, canvas, usize::from(area.width.saturating_sub(2)));
    let inner = Rect { x: area.x + 1, width: area.width.saturating_sub(2), ..area };
    if canvas.put_lines(inner, &lines, state.scroll) {
        canvas.put_right(inner.x, inner.bottom() - 1, inner.width, " more below ", Role::Muted);
    }
}

/// The lines of the overview; also what stands in the detail pane.
pub fn lines(state: &State, machine: &pb::Machine, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let now = state.vault_now();
    let ascii = canvas.theme.ascii;
    let mut lines: Vec<Line> = Vec::new();
    let (words, role) = machine_state(machine);
    lines.push(pair("State", &words, role));
    if !machine.state_reason.is_empty() {
        said(&mut lines, "Why", &machine.state_reason, Role::Muted, wide);
    }
    for symptom in &machine.symptoms {
        let (mark, role) =
            if symptom.severity == "critical" { (Mark::Fail, Role::Fail) } else { (Mark::Warn, Role::Warn) };
        said(&mut lines, "Needs a look", &canvas.marked(mark, &symptom.text), role, wide);
        if !symptom.remedy.is_empty() {
            said(&mut lines, "What to do", &symptom.remedy, Role::Text, wide);
        }
    }
    if !machine.protected {
        lines.push(pair("Site", &machine.site, Role::Text));
        lines.push(pair("Disks", disks_in_words(machine), Role::Text));
        lines.push(pair("Next", "a opens the actions; p protects it", Role::Muted));
        return lines;
    }
    let to = if ascii { "->" } else { "→" };
    lines.push(pair("Way", format!("{} {to} {}", machine.site, machine.target_site), Role::Text));
    let through = [machine.process_server.as_str(), machine.master_target.as_str()]
        .map(|name| if name.is_empty() { text::UNKNOWN } else { name });
    lines.push(pair("Through", format!("{} {to} {}", through[0], through[1]), Role::Muted));
    if let (Some(done), Some(total)) = (machine.initial_bytes_done, machine.initial_bytes_total)
        && total > 0
        && done < total
    {
        let share = done as f64 / total as f64;
        let told = format!(
            "{} {:.0}%  {} of {}",
            bar(share, 20, ascii),
            share * 100.0,
            text::bytes(done),
            text::bytes(total)
        );
        let label = if machine.state == "resync" { "Resync" } else { "First copy" };
        lines.push(pair(label, told, Role::Busy));
    }
    if let Some(at) = machine.start_at_us {
        lines.push(pair(
            "First copy",
            format!("begins {}; a, r begins it now", text::near(at, now)),
            Role::Busy,
        ));
    }
    if let (Some(done), Some(total)) = (machine.compared_bytes, machine.to_compare_bytes)
        && total > 0
    {
        let share = done as f64 / total as f64;
        let told = format!(
            "{} {:.0}%  {} of {}",
            bar(share, 20, ascii),
            share * 100.0,
            text::bytes(done),
            text::bytes(total)
        );
        lines.push(pair("Comparing", told, Role::Busy));
    }
    if let Some(seconds) = machine.estimate_seconds {
        let rate =
            machine.copy_bytes_per_sec.map_or(String::new(), |rate| format!(" at {}", text::rate(rate)));
        let end = now.saturating_add((seconds * 1e6) as i64);
        let told = format!("in about {}{rate}, {} UTC", text::span(seconds), text::hour_minute(end));
        lines.push(pair("Done", told, Role::Busy));
    } else if !machine.estimate_note.is_empty() {
        said(&mut lines, "Done", &machine.estimate_note, Role::Warn, wide);
    }
    let mode = if machine.mode_reason.is_empty() {
        machine.mode.clone()
    } else {
        format!("{}: {}", machine.mode, machine.mode_reason)
    };
    said(
        &mut lines,
        "Mode",
        if mode.is_empty() { text::UNKNOWN } else { &mode },
        if matches!(machine.mode.as_str(), "data" | "interval") { Role::Text } else { Role::Warn },
        wide,
    );
    lines.push(Line::new());
    let spans = |value: Option<f64>| value.map_or_else(|| text::UNKNOWN.to_owned(), text::span);
    let threshold = machine
        .rpo_threshold_seconds
        .filter(|limit| *limit > 0)
        .map_or(String::new(), |limit| format!("  (alarm at {})", text::span(limit as f64)));
    lines.push(pair("RPO", format!("{}{threshold}", spans(machine.rpo_seconds)), rpo_role(machine)));
    lines.push(pair(
        "RPO p50 p99 max",
        format!(
            "{}  {}  {}",
            spans(machine.rpo_p50_seconds),
            spans(machine.rpo_p99_seconds),
            spans(machine.rpo_max_seconds)
        ),
        Role::Text,
    ));
    let cells = wide.saturating_sub(20).min(60);
    let recent: Vec<u64> =
        machine.rpo_recent.iter().map(|seconds| (seconds.max(0.0) * 1000.0) as u64).collect();
    if !recent.is_empty() {
        lines.push(pair("RPO 5 min", sparkline(&recent, cells, ascii), Role::Chart));
    }
    lines.push(pair("Churn", text::rate_of(machine.churn_bytes_per_sec), Role::Text));
    if !machine.churn_recent.is_empty() {
        lines.push(pair("Churn 5 min", sparkline(&machine.churn_recent, cells, ascii), Role::Chart));
    }
    let promised = machine
        .history_promised_seconds
        .map_or(String::new(), |promised| format!(" of {} promised", text::span(promised)));
    lines.push(pair(
        "History",
        format!(
            "{}{promised}, {}",
            spans(machine.history_seconds),
            text::short_bytes_of(machine.history_bytes)
        ),
        Role::Text,
    ));
    lines.push(pair(
        "Points",
        format!("{} listed; any moment between them, too", machine.points),
        Role::Text,
    ));
    let moment = |at: Option<i64>| at.map_or_else(|| text::UNKNOWN.to_owned(), |at| text::near(at, now));
    lines.push(pair("Newest moment", moment(machine.newest_point_us), Role::Text));
    lines.push(pair("Oldest moment", moment(machine.oldest_point_us), Role::Text));
    let drill = match machine.last_drill_us {
        None => ("never: press t, it disturbs nothing".to_owned(), Role::Warn),
        Some(at) if machine.last_drill_passed => {
            (canvas.marked(Mark::Ok, &format!("passed {}", text::near(at, now))), Role::Ok)
        }
        Some(at) => (canvas.marked(Mark::Fail, &format!("failed {}", text::near(at, now))), Role::Fail),
    };
    lines.push(pair("Last drill", drill.0, drill.1));
    lines.push(Line::new());
    let bytes = |value: Option<u64>| text::short_bytes_of(value);
    let staged = machine.staged_bytes_max.map_or(String::new(), |most| format!(" of {}", text::bytes(most)));
    lines.push(pair(
        if machine.hops.is_empty() { "On the way" } else { "At the source" },
        format!(
            "{} in flight, {}{staged} staged, {} to send",
            bytes(machine.in_flight_bytes),
            bytes(machine.staged_bytes),
            bytes(machine.dirty_bytes)
        ),
        Role::Text,
    ));
    way(&mut lines, machine, canvas, wide);
    if let Some(limit) = machine.limit_bytes_per_sec {
        lines.push(pair(
            "May send",
            format!("{}/s, by its policy at this hour", text::bytes(limit)),
            Role::Text,
        ));
    }
    if !machine.held_by.is_empty() {
        lines.push(pair("Waits for", &machine.held_by, Role::Warn));
    }
    if let Some(fault) = &machine.link_fault {
        lines.push(pair("Link", &fault.message, Role::Warn));
        let next = machine.next_retry_us.map_or_else(
            || "not tried again by itself: a, e tries again when it is mended".to_owned(),
            |at| format!("tried again {}; a, e tries now", text::near(at, now)),
        );
        lines.push(pair("", next, Role::Muted));
    }
    lines.push(pair("Sent in all", bytes(machine.sent_bytes_total), Role::Text));
    lines.push(pair("Policy", &machine.policy, Role::Text));
    lines.push(pair("Disks", disks_in_words(machine), Role::Text));
    if let Some(test) = &machine.test {
        lines.push(Line::new());
        up(&mut lines, "Drill", Role::Drill, test.point.as_ref(), &test.disks, &test.probes, canvas, wide);
        lines.push(pair("Next", "a, x ends it and removes it; replication goes on meanwhile", Role::Muted));
    }
    if let Some(there) = &machine.failed_over {
        lines.push(Line::new());
        up(
            &mut lines,
            "Failed over",
            Role::Warn,
            there.point.as_ref(),
            &there.disks,
            &there.probes,
            canvas,
            wide,
        );
        let next = match machine.state.as_str() {
            "commit-pending" => {
                "a, c makes it final; until then a, C takes another point and a, l takes it back"
            }
            "committed" => "a, R brings it to its old source, which follows then; a, M lets it stay for good",
            "reprotecting" => "it runs there; its old source is brought up to it, and takes no writes",
            "reversed" => "it runs there and its old source follows; a, h brings it home",
            "migrated" => "it stays there: there is no way back",
            _ => "",
        };
        if !next.is_empty() {
            lines.push(pair("Next", next, Role::Muted));
        }
    }
    lines
}

/// Hop by hop: how old the newest moment is that left it, what waits there, when it is full. Then the spikes.
fn way(lines: &mut Vec<Line>, machine: &pb::Machine, canvas: &Canvas<'_>, wide: usize) {
    for (n, hop) in machine.hops.iter().enumerate() {
        let age = hop.age_seconds.map_or_else(|| text::UNKNOWN.to_owned(), text::span);
        let mut told = format!("{:<15}{age:>9} old {:>9}", hop.name, text::short_bytes_of(hop.bytes));
        if let Some(rate) = hop.bytes_per_sec {
            told.push_str(&format!("  {} out", text::rate(rate)));
        }
        if let Some(seconds) = hop.full_seconds {
            told.push_str(&format!("  full in {}", text::span(seconds)));
        }
        let (role, told) = if hop.note.is_empty() {
            let role = if hop.full_seconds.is_some() { Role::Warn } else { Role::Text };
            (role, told)
        } else {
            (Role::Fail, format!("{told}  {}", canvas.theme.mark(Mark::Fail)))
        };
        let told = text::fit(&told, wide.saturating_sub(18), canvas.theme.ellipsis());
        lines.push(pair(if n == 0 { "On the way" } else { "" }, told, role));
    }
    let shown = machine.spikes.iter().take(4).enumerate();
    for (n, spike) in shown {
        let until = spike.ended_us.map_or_else(|| "now".to_owned(), text::clock);
        let told = format!(
            "{} to {until}: {} ({}) {}",
            text::clock(spike.started_us),
            text::span(spike.worst_seconds),
            spike.hop,
            spike.cause
        );
        let role = if spike.ended_us.is_none() { Role::Fail } else { Role::Muted };
        said(lines, if n == 0 { "RPO spikes" } else { "" }, &told, role, wide);
    }
}

#[allow(clippy::too_many_arguments, reason = "what is up, as the two messages tell it")]
fn up(
    lines: &mut Vec<Line>,
    label: &str,
    role: Role,
    point: Option<&pb::Point>,
    disks: &[pb::Disk],
    probes: &[pb::Probe],
    canvas: &Canvas<'_>,
    wide: usize,
) {
    let at = point.map_or_else(|| text::UNKNOWN.to_owned(), |point| text::exact(point.time_us));
    lines.push(pair(label, format!("as of {at} UTC"), role));
    for probe in probes {
        let (mark, role) = if probe.passed { (Mark::Ok, Role::Ok) } else { (Mark::Fail, Role::Fail) };
        said(lines, "", &format!("{}: {}", canvas.marked(mark, &probe.name), probe.detail), role, wide);
    }
    for disk in disks {
        said(lines, "", &format!("{} at {}", disk.name, disk.endpoint), Role::Muted, wide);
    }
}

/// A label, and text that may go over several lines.
pub fn said(lines: &mut Vec<Line>, label: &str, said: &str, role: Role, wide: usize) {
    for (n, line) in text::wrap(said, wide.saturating_sub(18).max(20)).into_iter().enumerate() {
        lines.push(pair(if n == 0 { label } else { "" }, line, role));
    }
}

fn disks_in_words(machine: &pb::Machine) -> String {
    let total: u64 = machine.disks.iter().map(|disk| disk.size_bytes).sum();
    format!("{}, {}", text::count(machine.disks.len(), "disk"), text::bytes(total))
}

/// Those of the machine, of its drill, and at the recovery site.
fn all_disks(machine: &pb::Machine) -> impl Iterator<Item = &pb::Disk> {
    let test = machine.test.iter().flat_map(|test| &test.disks);
    let there = machine.failed_over.iter().flat_map(|there| &there.disks);
    machine.disks.iter().chain(test).chain(there)
}

/// Its disks, and where they are served.
pub fn disks(state: &State, machine: &pb::Machine, canvas: &mut Canvas<'_>, area: Rect) {
    let inner = Rect { x: area.x + 1, width: area.width.saturating_sub(2), ..area };
    // Where an address does not fit beside its disk it stands below it, whole: it is there to be copied.
    let room = usize::from(inner.width).saturating_sub(34);
    let longest = all_disks(machine).map(|disk| text::width(&disk.endpoint)).max().unwrap_or(0);
    let below = longest > room;
    let served = if below { "" } else { "SERVED AT" };
    let heading = format!("{:<4}{:<16}{:>12}  {served}", "#", "DISK", "SIZE");
    let mut lines: Vec<Line> = vec![vec![span(heading, Role::Title)]];
    if machine.disks.is_empty() {
        lines.push(vec![span("No disk of this machine is known yet.", Role::Muted)]);
    }
    let row = |disk: &pb::Disk, canvas: &Canvas<'_>| -> Vec<Line> {
        let name = text::fit(&disk.name, 15, canvas.theme.ellipsis());
        let pad = " ".repeat(16_usize.saturating_sub(text::width(&name)));
        let place = if disk.endpoint.is_empty() { text::UNKNOWN } else { &disk.endpoint };
        let first =
            span(format!("{:<4}{name}{pad}{:>12}  ", disk.index, text::bytes(disk.size_bytes)), Role::Text);
        if below {
            let parts = text::wrap(place, usize::from(inner.width).saturating_sub(4).max(20));
            let parts = parts.into_iter().map(|part| vec![span(format!("    {part}"), Role::Muted)]);
            std::iter::once(vec![first]).chain(parts).collect()
        } else {
            vec![vec![first, span(place, Role::Muted)]]
        }
    };
    lines.extend(machine.disks.iter().flat_map(|disk| row(disk, canvas)));
    let test =
        machine.test.as_ref().map(|test| ("The drill's disks: writable, removed with it", &test.disks));
    let there = machine.failed_over.as_ref().map(|there| ("At the recovery site", &there.disks));
    for (title, disks) in [test, there].into_iter().flatten() {
        lines.push(Line::new());
        lines.push(vec![span(title, Role::Title)]);
        lines.extend(disks.iter().flat_map(|disk| row(disk, canvas)));
    }
    canvas.put_lines(inner, &lines, state.scroll);
}
