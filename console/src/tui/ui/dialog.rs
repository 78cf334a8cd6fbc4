//! An order before it is given: what it would do, what it would cost, and what agrees to it.

use super::super::cmd::{Action, Risk, entry_of};
use super::super::core::dialog::{Dialog, Focus, Form, Report, Stage};
use super::super::core::state::State;
use super::super::core::text;
use super::super::core::tone::{Mark, Role};
use super::canvas::{Canvas, Line, span};
use super::frame::cursor;
use super::machine::said;
use super::overlay::middle;
use super::pair;
use continuum_proto::v1 as pb;
use ratatui::layout::Rect;

/// Draws a dialog.
pub fn draw(state: &State, open: &Dialog, canvas: &mut Canvas<'_>) {
    let danger = entry_of(open.action).risk == Risk::Danger;
    let width = 76.min(state.size.0.saturating_sub(2));
    let wide = usize::from(width.saturating_sub(4));
    let report = report(open, canvas, wide);
    let field = match (open.stage(), &open.form) {
        (Stage::Type, _) => 3,
        (_, Form::Name(_)) => 2,
        (_, Form::Choice { .. } | Form::Token(..)) => 3,
        (_, Form::Assign(..)) => 2,
        _ => 0,
    };
    let foot = field + 2 + u16::from(!open.complaint.is_empty());
    let most = state.size.1.saturating_sub(3);
    let height = (u16::try_from(report.len()).unwrap_or(most) + foot + 2).min(most);
    let area = middle(state, width, height);
    let role = if danger { Role::Danger } else { Role::Border };
    let inner = canvas.frame(area, &title(open, canvas), role);
    let above = Rect { height: inner.height.saturating_sub(foot), ..inner };
    if canvas.put_lines(above, &report, open.scroll) {
        canvas.put_right(above.x, above.bottom(), above.width, "more: PgDn", Role::Muted);
    }
    let mut y = above.bottom() + u16::from(field == 0);
    match (open.stage(), &open.form) {
        (Stage::Type, _) => {
            let what = if open.types_id { "the end of its id" } else { "its name" };
            canvas.put(
                inner.x,
                y,
                inner.width,
                &format!("This can lose data. Type {what} to agree: {}", open.must_type),
                role,
            );
            let x = canvas.put(inner.x, y + 1, 3, "> ", Role::Key);
            let (before, after) = open.typed.around();
            let x = canvas.put(x, y + 1, inner.right().saturating_sub(x + 1), before, Role::Text);
            let end = cursor(canvas, x, y + 1, after);
            if open.is_typed() {
                let mark = canvas.marked(Mark::Ok, "Tab, then Enter orders it");
                canvas.put(end + 2, y + 1, inner.right().saturating_sub(end + 2), &mark, Role::Ok);
            }
            y += 3;
        }
        (_, Form::Name(line)) => {
            let x = canvas.put(inner.x, y, 8, "Name: ", Role::Title);
            let (before, after) = line.around();
            let x = canvas.put(x, y, inner.right().saturating_sub(x + 1), before, Role::Text);
            cursor(canvas, x, y, after);
            y += 2;
        }
        (_, Form::Choice { policies, sites }) => {
            for (label, (names, at), focus) in
                [("Policy", policies, Focus::Field), ("To site", sites, Focus::Second)]
            {
                let chosen = names.get(*at).map_or("none known", String::as_str);
                let role = if open.focus == focus { Role::Focus } else { Role::Text };
                let x = canvas.put(inner.x, y, 10, &format!("{label:<9}"), Role::Title);
                canvas.put(x, y, inner.right().saturating_sub(x), &format!(" < {chosen} > "), role);
                y += 1;
            }
            y += 1;
        }
        (_, Form::Token(name, at)) => {
            let x = canvas.put(inner.x, y, 10, "Name     ", Role::Title);
            let (before, after) = name.around();
            let x = canvas.put(x + 1, y, inner.right().saturating_sub(x + 1), before, Role::Text);
            if open.focus == Focus::Field {
                cursor(canvas, x, y, after);
            }
            let chosen = super::super::core::dialog::ROLES.get(*at).copied().unwrap_or_default();
            let role = if open.focus == Focus::Second { Role::Focus } else { Role::Text };
            let x = canvas.put(inner.x, y + 1, 10, "Role     ", Role::Title);
            canvas.put(x, y + 1, inner.right().saturating_sub(x), &format!(" < {chosen} > "), role);
            y += 3;
        }
        (_, Form::Assign(names, at)) => {
            let chosen = names.get(*at).map_or("none other", String::as_str);
            let role = if open.focus == Focus::Field { Role::Focus } else { Role::Text };
            let x = canvas.put(inner.x, y, 10, "Policy   ", Role::Title);
            canvas.put(x, y, inner.right().saturating_sub(x), &format!(" < {chosen} > "), role);
            y += 2;
        }
        _ => {}
    }
    if !open.complaint.is_empty() {
        canvas.put(inner.x, y, inner.width, open.complaint, Role::Fail);
        y += 1;
    }
    buttons(open, canvas, inner, y, danger);
}

fn title(open: &Dialog, canvas: &Canvas<'_>) -> String {
    let label = entry_of(open.action).label;
    match open.subjects.as_slice() {
        [one] => format!("{label}: {}", text::fit(&one.name, 44, canvas.theme.ellipsis())),
        many => format!("{label}: {}", text::count(many.len(), "machine")),
    }
}

fn buttons(open: &Dialog, canvas: &mut Canvas<'_>, inner: Rect, y: u16, danger: bool) {
    let stage = open.stage();
    let at = |focus: Focus, plain: Role| if open.focus == focus { Role::Focus } else { plain };
    let mut x = inner.x;
    match stage {
        Stage::Asking => {
            canvas.put(x, y, inner.width, "asking the vault what this would do; Esc cancels", Role::Muted);
        }
        Stage::Blocked => {
            canvas.put(x, y, inner.width, " Close ", Role::Focus);
            canvas.put(x + 9, y, inner.width.saturating_sub(9), "nothing was ordered", Role::Muted);
        }
        Stage::Ask | Stage::Type => {
            let verb = match (&open.form, open.action) {
                (Form::Assign(..), _) => " Go on ".to_owned(),
                (_, Action::New | Action::Edit) => " Order ".to_owned(),
                _ => format!(" {} ", entry_of(open.action).label),
            };
            x = canvas.put(
                x,
                y,
                inner.width,
                &verb,
                at(Focus::Go, if danger { Role::Danger } else { Role::Key }),
            );
            x = canvas.put(x + 2, y, 10, " Cancel ", at(Focus::Cancel, Role::Text));
            let hint = match (stage, &open.form) {
                (Stage::Type, _) => "Tab to the button; Esc orders nothing",
                (_, Form::Name(_)) => "Enter orders, Esc cancels",
                (_, Form::Assign(..)) => "left and right choose; nothing is ordered yet",
                _ => "y orders, n or Esc cancels",
            };
            canvas.put(x + 2, y, inner.right().saturating_sub(x + 2), hint, Role::Muted);
        }
    }
}

fn report(open: &Dialog, canvas: &Canvas<'_>, wide: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    if !open.point_words.is_empty() && open.action != Action::Pin {
        let label = match open.action {
            Action::Approve | Action::Refuse => "Agreed to is",
            _ => "Moment",
        };
        said(&mut lines, label, &open.point_words, Role::Text, wide);
    }
    let many = open.subjects.len() > 1;
    if let Form::Assigned(policy) = &open.form {
        said(&mut lines, "Policy", policy, Role::Text, wide);
    }
    if let Form::Plan(_, difference) = &open.form {
        lines.push(vec![span("What changes in its text:", Role::Title)]);
        for line in difference {
            let role = match line.as_bytes().first() {
                Some(b'+') => Role::Ok,
                Some(b'-') => Role::Warn,
                _ => Role::Muted,
            };
            lines.push(vec![span(text::fit(line, wide, canvas.theme.ellipsis()), role)]);
        }
        return lines;
    }
    for subject in &open.subjects {
        if many {
            lines.push(vec![span(subject.name.clone(), Role::Title)]);
        }
        match &subject.report {
            Report::None if !many => lines.push(vec![span(plainly(open), Role::Text)]),
            Report::None => {}
            Report::Asked(_) => lines.push(vec![span(canvas.marked(Mark::Busy, "asking"), Role::Busy)]),
            Report::Failed(fault) => {
                said(&mut lines, "Not known", &fault.message, Role::Fail, wide);
                said(&mut lines, "What to do", &fault.remedy, Role::Text, wide);
            }
            Report::Told(told) if many => {
                let (mark, role) = if told.ready { (Mark::Ok, Role::Ok) } else { (Mark::Fail, Role::Fail) };
                said(&mut lines, "", &canvas.marked(mark, &told.summary), role, wide);
            }
            Report::Told(told) => whole(&mut lines, told, canvas, wide),
        }
    }
    lines
}

/// An order that needs no report, in a sentence.
fn plainly(open: &Dialog) -> &'static str {
    match open.action {
        Action::Pause => "Replication is held. Changes are remembered and sent when it resumes.",
        Action::Resync => "Source and replica are compared; what differs is sent. All points stay.",
        Action::Verify => "Both sides are read and compared at one moment. The machine is not slowed.",
        Action::Cleanup => "The drill's machine is stopped; its disks and what it wrote are removed.",
        Action::Bookmark => "This moment gets a name and is listed among the points.",
        Action::Move => "Another process server of its site relays it; what was on its way is sent again.",
        Action::AppBookmark => {
            "The machine's own hooks hold its applications for a moment; what fails there makes a plain bookmark."
        }
        Action::NewToken => "A token is made for one use within an hour. It is shown once.",
        Action::Revoke => "Their connections end at once; certificates and tokens are refused from now on.",
        Action::Approve => "The order is carried out, with your name beside it.",
        Action::Refuse => "The order ends; nothing is carried out.",
        Action::AssignPolicy => {
            "Choose the policy; what it means for each machine is shown before you agree."
        }
        Action::Protect => "Replication begins; the first copy takes its time.",
        Action::CancelJob => "The job is stopped, and what it did is undone.",
        _ => "The vault is asked to do this.",
    }
}

fn whole(lines: &mut Vec<Line>, told: &pb::ReadinessReply, canvas: &Canvas<'_>, wide: usize) {
    if !told.summary.is_empty() {
        said(lines, "What happens", &told.summary, Role::Text, wide);
    }
    if let Some(preview) = &told.preview {
        if let Some(point) = &preview.point {
            lines.push(pair(
                "Brings up",
                format!("{} UTC ({})", text::exact(point.time_us), point.kind),
                Role::Text,
            ));
        }
        let role = if preview.loss_seconds > 60.0 { Role::Warn } else { Role::Text };
        lines.push(pair(
            "Would give up",
            format!("{}, {}", text::span(preview.loss_seconds), text::bytes(preview.loss_bytes)),
            role,
        ));
        if let Some(gap) = &preview.gap {
            let told = format!(
                "the moment asked for lies in a gap until {}; the newest one before it is taken",
                text::clock(gap.to_us)
            );
            said(lines, "Gap", &told, Role::Warn, wide);
        }
    }
    if let Some(forecast) = told.forecast_seconds {
        lines.push(pair("Took last time", text::span(forecast), Role::Muted));
    }
    for check in &told.checks {
        let (mark, role) = match check.state.as_str() {
            "ok" => (Mark::Ok, Role::Ok),
            "warning" => (Mark::Warn, Role::Warn),
            _ => (Mark::Fail, Role::Fail),
        };
        said(
            lines,
            &text::fit(&check.name, 16, canvas.theme.ellipsis()),
            &canvas.marked(mark, &check.detail),
            role,
            wide,
        );
        if !check.remedy.is_empty() && check.state != "ok" {
            said(lines, "What to do", &check.remedy, Role::Text, wide);
        }
    }
    if !told.command.is_empty() {
        said(lines, "As a command", &told.command, Role::Muted, wide);
    }
}
