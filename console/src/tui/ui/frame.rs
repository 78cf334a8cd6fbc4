//! What stands round every screen: who and where at the top, keys at the bottom, the banner about a lost
//! connection, toasts, and what is shown before anything is known.

use super::super::cmd::{Action, REGISTRY, entry_of};
use super::super::core::form::Of;
use super::super::core::layout;
use super::super::core::state::{Connection, Place, State, Tone};
use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, span};
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

/// Data older than this is told, in microseconds.
const OLD_US: i64 = 10_000_000;

/// The first line: environment, vault, who, connection, age of what is shown, alerts, clock.
pub fn header(state: &State, canvas: &mut Canvas<'_>) {
    let width = state.size.0;
    let bar = Rect::new(0, 0, width, 1);
    canvas.fill(bar, Role::Header);
    let mut x = 0;
    match &state.who {
        Some(who) => {
            let environment =
                if who.environment.is_empty() { "production".into() } else { who.environment.to_uppercase() };
            let role = if environment == "LAB" { Role::Header } else { Role::Environment };
            x = canvas.put(x, 0, 24, &format!(" {environment} "), role);
            x = canvas.put(x, 0, 30, &format!(" {}", who.vault_name), Role::Header);
            let role_name = if who.role.is_empty() { String::new() } else { format!(" ({})", who.role) };
            x = canvas.put(x, 0, 30, &format!("  {}{role_name}", who.name), Role::Header);
        }
        None => x = canvas.put(x, 0, 30, " continuum", Role::Header),
    }
    let right = right_of_header(state, canvas);
    let wide = u16::try_from(text::width(&right)).unwrap_or(width);
    if x + wide < width {
        canvas.put(width - wide, 0, wide, &right, Role::Header);
    } else {
        // The connection matters more than the name of the vault.
        canvas.put(width.saturating_sub(wide), 0, wide, &right, Role::Header);
    }
}

fn right_of_header(state: &State, canvas: &Canvas<'_>) -> String {
    let connection = match &state.connection {
        Connection::Starting => canvas.marked(Mark::Busy, "starting"),
        Connection::Dialling => canvas.marked(Mark::Busy, "connecting"),
        Connection::Live => match state.heard {
            Some(at) if state.now.saturating_sub(at) > OLD_US => canvas.marked(
                Mark::Warn,
                &format!("quiet for {}", text::age(state.now.saturating_sub(at) as f64 / 1e6)),
            ),
            _ => canvas.marked(Mark::Ok, "live"),
        },
        Connection::Lost { since, .. } => canvas.marked(
            Mark::Fail,
            &format!("OFFLINE {}, read only", text::age(state.now.saturating_sub(*since) as f64 / 1e6)),
        ),
    };
    format!(" {connection}  {} UTC ", text::hour_minute(state.vault_now()))
}

/// The second line: the screens, and what waits on them.
pub fn navigation(state: &State, canvas: &mut Canvas<'_>) {
    let (here, _) = state.place.screen();
    let width = state.size.0;
    let open = state.estate.open_alerts().len();
    let running = state.estate.running_jobs().len();
    // Every screen's name fits at 80 columns.
    let narrow = width < 100;
    let gap = if narrow { 1 } else { 2 };
    let mut x = 1;
    let screens = [
        (Action::GoPulse, '1'),
        (Action::GoSites, '2'),
        (Action::GoMachines, '3'),
        (Action::GoPlans, '4'),
        (Action::GoJobs, '5'),
        (Action::GoAlerts, '6'),
        (Action::GoServers, '7'),
        (Action::GoPolicies, '8'),
        (Action::GoAccess, '9'),
    ];
    for (action, screen) in screens {
        let key =
            state.keys.of(action, &[super::super::cmd::Context::Global]).first().cloned().unwrap_or_default();
        let count = match action {
            Action::GoJobs if state.waits_for_me() > 0 => {
                format!("({running}, {} for you)", state.waits_for_me())
            }
            Action::GoJobs if running > 0 => format!("({running})"),
            Action::GoAlerts if open > 0 => format!("({open})"),
            _ => String::new(),
        };
        let label = format!("{key} {}{count}", entry_of(action).label);
        let label = if narrow { label } else { format!(" {label} ") };
        let role = match action {
            _ if screen == here => Role::Selection,
            Action::GoAlerts
                if state.estate.open_alerts().iter().any(|alert| alert.severity == "critical") =>
            {
                Role::Fail
            }
            Action::GoAlerts if open > 0 => Role::Warn,
            Action::GoJobs if running > 0 => Role::Busy,
            _ => Role::Text,
        };
        x = canvas.put(x, 1, width.saturating_sub(x), &label, role) + gap;
    }
}

/// Why nothing is live, what is shown meanwhile, and what happens next.
pub fn banner(state: &State, canvas: &mut Canvas<'_>) {
    let Connection::Lost { fault, again_at, failures, .. } = &state.connection else { return };
    let width = state.size.0;
    canvas.fill(Rect::new(0, 2, width, 2), Role::ReadOnly);
    let left = again_at.saturating_sub(state.now).max(0) / 1_000_000;
    let next = if left > 0 { format!("again in {left} s") } else { "trying now".into() };
    let first = format!(" CONNECTION LOST  {}", fault.message);
    let next = format!(" {next}, attempt {failures}; ctrl+r tries at once ");
    let wide = u16::try_from(text::width(&next)).unwrap_or(0);
    // What happens next stands beside what happened, or in its line where there is no room below.
    let above = wide + 72 > width && wide + 30 <= width;
    canvas.put(0, 2, if above { width - wide } else { width }, &first, Role::ReadOnly);
    let as_of =
        state.heard.map_or_else(|| text::UNKNOWN.into(), |at| text::moment(at.saturating_add(state.skew)));
    canvas.put(
        0,
        3,
        width,
        &format!(" Shown is what was known at {as_of}. Read only. Jobs go on in the vault."),
        Role::ReadOnly,
    );
    if wide + 72 <= width {
        canvas.put(width - wide, 3, wide, &next, Role::ReadOnly);
    } else if above {
        canvas.put(width - wide, 2, wide, &next, Role::ReadOnly);
    }
}

/// Shows that an area may not be true any more; what was reversed stays so.
pub fn make_stale(canvas: &mut Canvas<'_>, area: Rect) {
    let area = area.intersection(canvas.buffer.area);
    let stale = Style::reset().patch(canvas.style(Role::Text)).patch(canvas.style(Role::Stale));
    for y in area.top()..area.bottom() {
        for x in area.left()..area.right() {
            let cell = &mut canvas.buffer[(x, y)];
            let reversed = cell.modifier.contains(Modifier::REVERSED);
            cell.set_style(stale);
            if reversed {
                cell.modifier.insert(Modifier::REVERSED);
            }
        }
    }
}

/// Before anything is known: what is being started, or why it does not start.
pub fn starting(state: &State, canvas: &mut Canvas<'_>, area: Rect) {
    let inner = Rect::new(area.x + 2, area.y + 1, area.width - 4, area.height.saturating_sub(1));
    let mut lines = Vec::new();
    let heading = match &state.connection {
        Connection::Starting => "Starting",
        Connection::Dialling => "Connecting to the vault",
        Connection::Live => "Connected; waiting for what the vault knows",
        Connection::Lost { .. } => "The vault does not answer",
    };
    lines.push(vec![span(heading, Role::Title)]);
    lines.push(Vec::new());
    let wide = usize::from(inner.width);
    let room = usize::from(inner.height).saturating_sub(10).max(3);
    let skip = state.start_lines.len().saturating_sub(room);
    let last = state.start_lines.len().saturating_sub(1);
    for (at, told) in state.start_lines.iter().enumerate().skip(skip) {
        let under_way =
            at == last && state.start_failed.is_none() && matches!(state.connection, Connection::Starting);
        let (mark, role) = if under_way { (Mark::Busy, Role::Busy) } else { (Mark::Ok, Role::Muted) };
        lines.push(vec![span(canvas.marked(mark, told), role)]);
    }
    let lost = match &state.connection {
        Connection::Lost { fault, .. } => Some(fault),
        _ => None,
    };
    if let Some(fault) = state.start_failed.as_ref().or(lost) {
        lines.push(Vec::new());
        let said = [
            (fault.message.clone(), Role::Fail),
            (label("not affected", &fault.unaffected), Role::Text),
            (label("what to do", &fault.remedy), Role::Text),
        ];
        for (text_of, role) in said.into_iter().filter(|(text, _)| !text.is_empty()) {
            lines.extend(text::wrap(&text_of, wide).into_iter().map(|line| vec![span(line, role)]));
        }
    }
    if let Connection::Lost { again_at, failures, .. } = &state.connection {
        let left = again_at.saturating_sub(state.now).max(0) / 1_000_000;
        lines.push(Vec::new());
        let when = if left > 0 { format!("in {left} s") } else { "now".into() };
        lines.push(vec![span(
            format!(
                "Tried {}; again {when}. ctrl+r tries at once, q leaves.",
                text::count(*failures as usize, "time")
            ),
            Role::Muted,
        )]);
    }
    canvas.put_lines(inner, &lines, 0);
}

fn label(label: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{label}: {text}") }
}

/// The last line: the keys that matter here and now, or the filter under edit.
pub fn footer(state: &State, canvas: &mut Canvas<'_>) {
    let (width, y) = (state.size.0, state.size.1 - 1);
    if let Some(line) = &state.filtering {
        let (before, after) = line.around();
        let mut x = canvas.put(0, y, width, "/", Role::Key);
        x = canvas.put(x, y, width - x, before, Role::Text);
        x = cursor(canvas, x, y, after);
        canvas.put(x + 2, y, width.saturating_sub(x + 2), "Enter keeps it, Esc clears it", Role::Muted);
        return;
    }
    if let Some(form) = &state.form {
        let keys: &[(&str, &str)] = match (&form.text, &form.of) {
            (None, _) => {
                &[("up/down", "field"), ("space", "choose"), ("ctrl+e", "as YAML"), ("esc", "leave")]
            }
            (Some(_), Of::Policy { .. }) => &[("ctrl+e", "as fields"), ("ctrl+u", "undo"), ("esc", "leave")],
            (Some(_), Of::Plan(_)) => &[("ctrl+e", "review and order"), ("ctrl+u", "undo"), ("esc", "leave")],
        };
        let mut x = 1;
        for (key, label) in keys {
            x = canvas.put(x, y, width.saturating_sub(x), key, Role::Key);
            x = canvas.put(x + 1, y, width.saturating_sub(x + 1), label, Role::Footer) + 2;
        }
        return;
    }
    let contexts = state.place.contexts();
    let mut hints: Vec<_> = REGISTRY.iter().filter(|entry| entry.hint > 0).collect();
    hints.sort_by_key(|entry| entry.hint);
    let live_only = !state.is_live();
    let mut x = 1;
    for entry in hints {
        let keys = state.keys.of(entry.action, contexts);
        let Some(key) = keys.first() else { continue };
        let useless = match entry.action {
            Action::Back => state.back.is_empty(),
            Action::Menu | Action::TestFailover => {
                live_only
                    || state.machine_here().is_none()
                        && state.job_here().is_none()
                        && state.alert_here().is_none()
                        && state.plan_here().is_none()
            }
            Action::Open => {
                matches!(state.place, Place::Policies | Place::Access | Place::Audit | Place::Machine(..))
            }
            Action::New | Action::Edit | Action::NewToken | Action::Revoke => live_only,
            Action::Older => state.place != Place::Audit,
            Action::DeletePolicy => live_only || state.policy_here().is_none(),
            Action::Export | Action::Columns | Action::Mark => width < 100,
            _ => false,
        };
        if useless {
            continue;
        }
        let wide = u16::try_from(text::width(key) + 1 + text::width(entry.label)).unwrap_or(width);
        if x + wide + 1 > width {
            continue;
        }
        x = canvas.put(x, y, wide, key, Role::Key);
        x = canvas.put(x + 1, y, wide, entry.label, Role::Footer) + 2;
    }
}

/// Draws the cursor of an input line, and what stands behind it. The column behind that.
pub fn cursor(canvas: &mut Canvas<'_>, x: u16, y: u16, after: &str) -> u16 {
    let mut letters = text::letters(after);
    let (under, rest_at) = match letters.next() {
        Some((letter, _)) => (letter.to_owned(), letter.len()),
        None => (" ".to_owned(), 0),
    };
    let x = canvas.put(x, y, 2, &under, Role::Selection);
    let rest = after.get(rest_at..).unwrap_or_default();
    let room = canvas.buffer.area.right().saturating_sub(x);
    canvas.put(x, y, room, rest, Role::Text)
}

/// What was said lately, over the footer.
pub fn toasts(state: &State, canvas: &mut Canvas<'_>) {
    let (width, height) = state.size;
    let mut y = height.saturating_sub(2);
    let most = usize::from(width.min(100)) - 6;
    for toast in state.toasts.iter().rev() {
        let (mark, role) = match toast.tone {
            Tone::Good => (Mark::Ok, Role::Ok),
            Tone::Note => (Mark::Unknown, Role::Text),
            Tone::Bad => (Mark::Fail, Role::Fail),
        };
        let mut lines = text::wrap(&toast.text, most);
        lines.truncate(3);
        for (at, line) in lines.iter().enumerate().rev() {
            if y <= 3 + layout::banner(state) {
                return;
            }
            let wide = u16::try_from(most + 4).unwrap_or(width).min(width);
            let x = width - wide;
            canvas.fill(Rect::new(x, y, wide, 1), Role::Text);
            let edge = if canvas.theme.ascii { "|" } else { "▌" };
            canvas.put(x, y, 1, edge, role);
            if at == 0 {
                let glyph = canvas.theme.mark(mark).to_string();
                canvas.put(x + 1, y, 1, &glyph, role);
            }
            canvas.put(x + 3, y, wide - 3, line, role);
            y -= 1;
        }
    }
}

/// Too small for anything but what matters.
pub fn too_small(state: &State, canvas: &mut Canvas<'_>) {
    let (columns, rows) = state.size;
    let running = state.estate.running_jobs().len();
    let bad = state.estate.machines.iter().filter(|machine| machine.health == "critical").count();
    let connection = match &state.connection {
        Connection::Live => "live".to_owned(),
        Connection::Starting => "starting".to_owned(),
        Connection::Dialling => "connecting".to_owned(),
        Connection::Lost { since, .. } => {
            format!("OFFLINE {}", text::age(state.now.saturating_sub(*since) as f64 / 1e6))
        }
    };
    let lines = [
        (
            format!("{columns}x{rows} is too small: {}x{} is needed", layout::LEAST.0, layout::LEAST.1),
            Role::Warn,
        ),
        (connection, if state.is_live() { Role::Text } else { Role::Fail }),
        (
            format!("{}, {bad} critical", text::count(running, "running job")),
            if bad > 0 { Role::Fail } else { Role::Text },
        ),
        ("q leaves".to_owned(), Role::Muted),
    ];
    for (y, (text, role)) in (0..rows).zip(lines) {
        canvas.put(0, y, columns, &text, role);
    }
}
