//! What a message makes of the state, and what is to be done outside.
//!
//! Lives here: keys, news, time. Lives elsewhere: orders (`orders`), the parts' own rules (`dialog`,
//! `palette`, `timeline`, `table`).
//!
//! Invariant: the only effect that changes anything at the vault is [`Effect::Order`], and it is made in
//! `orders` only, out of a dialog that was agreed to or of an action that can lose nothing.

use super::super::cmd::keys::{Chord, Code};
use super::super::cmd::{Action, Argument, REGISTRY};
use super::dialog::Outcome;
use super::estate::is_over;
use super::form;
use super::line::{Edit, Line};
use super::palette::{self, Palette};
use super::state::{Answer, Connection, Effect, Message, Overlay, Place, Start, State, Tab, TableKind, Tone};
use super::table::{NATURAL, Table};
use super::timeline::{self, Timeline};
use super::{export, layout, orders, rows, text};
use crate::link::watch::News;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;

/// A second Ctrl-C within this time leaves, in microseconds.
const LEAVE_WITHIN_US: i64 = 3_000_000;

/// Takes one message at the wall clock's `now`.
pub fn update(state: &mut State, message: Message, now: i64) -> Vec<Effect> {
    state.now = now;
    let mut effects = match message {
        Message::Key(chord) => key(state, chord),
        Message::Paste(pasted) => {
            paste(state, &pasted);
            Vec::new()
        }
        Message::Wheel(lines) => {
            wheel(state, lines);
            Vec::new()
        }
        Message::Click(column, row) => {
            click(state, column, row);
            Vec::new()
        }
        Message::Resize(columns, rows) => {
            state.size = (columns, rows);
            Vec::new()
        }
        Message::Tick => Vec::new(),
        Message::News(generation, news) => {
            take_news(state, generation, *news);
            Vec::new()
        }
        Message::Answer(tag, answer) => take_answer(state, tag, *answer),
        Message::Start(start) => {
            take_start(state, start);
            Vec::new()
        }
        Message::Armed => {
            if let Some(dialog) = &mut state.dialog {
                dialog.armed = true;
            }
            Vec::new()
        }
        Message::Say(tone, said) => {
            state.say(tone, said);
            Vec::new()
        }
        Message::Keys(keys) => {
            state.keys = *keys;
            Vec::new()
        }
        Message::Themes(themes, theme) => {
            (state.themes, state.theme) = (themes, theme);
            Vec::new()
        }
    };
    state.toasts.retain(|toast| toast.until > now);
    close_broken_dialog(state);
    ask_for_history(state, &mut effects);
    ask_for_access(state, &mut effects);
    effects
}

/// Asks for what the access screen shows, when it is opened and after each change.
fn ask_for_access(state: &mut State, effects: &mut Vec<Effect>) {
    if !state.stale || !state.is_live() || !matches!(state.place, Place::Access | Place::Audit) {
        return;
    }
    state.stale = false;
    let tag = state.tag();
    effects.push(if state.place == Place::Access {
        Effect::Access(tag)
    } else {
        Effect::Audit(tag, pb::AuditRequest::default())
    });
}

/// Asks whether an order is allowed: `ORDER`, or `ORDER MACHINE`.
fn can_i(state: &mut State, argument: &str) -> Vec<Effect> {
    let (order, machine) = argument.split_once(' ').unwrap_or((argument, ""));
    if order.is_empty() {
        state.say(Tone::Note, "write which order, such as :can-i failover web-01");
        return Vec::new();
    }
    if !state.is_live() {
        state.say(Tone::Bad, "the vault does not answer: nobody can say");
        return Vec::new();
    }
    let tag = state.tag();
    vec![Effect::CanI(tag, pb::CanIRequest { order: order.into(), machine: machine.trim().into() })]
}

fn close_broken_dialog(state: &mut State) {
    let live = state.is_live();
    if let Some(why) = state.dialog.as_ref().and_then(|dialog| dialog.broken(&state.estate, live)) {
        state.dialog = None;
        state.say(Tone::Bad, why);
    }
}

/// Asks for what the timeline on the screen lacks.
fn ask_for_history(state: &mut State, effects: &mut Vec<Effect>) {
    let Place::Machine(_, Tab::Points) = &state.place else { return };
    if !state.is_live() {
        return;
    }
    let width = layout::timeline_columns(state);
    let now = state.now;
    let (fetch_tag, preview_tag) = (state.tag(), state.tag());
    if let Some(timeline) = &mut state.timeline {
        if let Some(request) = timeline.take_fetch(now, fetch_tag, width) {
            effects.push(Effect::Timeline(fetch_tag, request));
        }
        if let Some(request) = timeline.take_preview(now, preview_tag) {
            effects.push(Effect::Preview(preview_tag, request));
        }
    }
}

// ---- news ----

fn take_news(state: &mut State, generation: u64, news: News) {
    if generation < state.generation {
        return;
    }
    state.generation = generation;
    let now = state.now;
    match news {
        News::Dialling { .. } => {
            if matches!(state.connection, Connection::Starting) {
                state.connection = Connection::Dialling;
            }
        }
        News::Connected { who, .. } => {
            if let Connection::Lost { since, .. } = &state.connection
                && state.heard.is_some()
            {
                let away = text::span(now.saturating_sub(*since) as f64 / 1e6);
                state.say(Tone::Good, format!("connected again after {away}"));
            }
            state.connection = Connection::Live;
            state.start_lines.clear();
            state.start_failed = None;
            state.heard = Some(now);
            let mut who = who;
            for text in
                [&mut who.name, &mut who.role, &mut who.vault_name, &mut who.environment, &mut who.version]
            {
                *text = shown(text);
            }
            state.who = Some(who);
            if let Some(timeline) = &mut state.timeline {
                timeline.ask_again(now);
            }
        }
        News::Events(events) => {
            state.heard = Some(now);
            take_events(state, events);
        }
        News::Lost { fault, again_in, failures } => {
            let since = match &state.connection {
                Connection::Lost { since, .. } => *since,
                _ => now,
            };
            let again_at = now.saturating_add(i64::try_from(again_in.as_micros()).unwrap_or(i64::MAX));
            state.connection = Connection::Lost { fault: Box::new(fault), since, again_at, failures };
        }
    }
}

fn take_events(state: &mut State, events: Vec<pb::WatchEvent>) {
    let mut ended: Vec<pb::Job> = Vec::new();
    let applied = state.estate.apply(events, |before, after| {
        if before.is_some_and(|before| !is_over(before)) && is_over(after) {
            ended.push(after.clone());
        }
    });
    if let Some(vault_time) = applied.vault_time_us {
        state.skew = vault_time.saturating_sub(state.now);
    }
    for job in ended {
        // Where the job is on the screen it tells itself.
        if state.place != Place::Job(job.id.clone()) {
            tell_end(state, &job);
        }
    }
    if let Some(timeline) = &mut state.timeline
        && let Some(machine) = state.estate.machines.get(&timeline.machine)
    {
        timeline.machine_changed(machine, state.now);
    }
    if applied.snapshot {
        let estate = &state.estate;
        let exists = |id: &str| estate.machines.get(id).is_some();
        let kept: Vec<String> =
            state.table(TableKind::Machines).marks.iter().filter(|id| exists(id)).cloned().collect();
        state.table_mut(TableKind::Machines).marks = kept.into_iter().collect();
    }
}

fn tell_end(state: &mut State, job: &pb::Job) {
    let title = rows::job_title(job);
    match job.state.as_str() {
        "succeeded" => {
            let rto = job.machines.iter().find_map(|machine| machine.rto_seconds);
            let answered = rto.map_or(String::new(), |rto| format!(", answered after {}", text::span(rto)));
            state.say(Tone::Good, format!("{title}: succeeded{answered}"));
        }
        "warnings" => state.say(Tone::Note, format!("{title}: done, with warnings (5 shows it)")),
        "cancelled" => state.say(Tone::Note, format!("{title}: cancelled and undone")),
        _ => state.say(Tone::Bad, format!("{title}: failed: {}", rows::job_now(job))),
    }
}

fn take_answer(state: &mut State, tag: u64, answer: Answer) -> Vec<Effect> {
    match answer {
        Answer::Timeline(mut answer) => {
            if let Ok(reply) = &mut answer {
                super::estate::harmless_timeline(reply);
            }
            if let Some(timeline) = &mut state.timeline {
                timeline.fetched(tag, answer);
            }
            Vec::new()
        }
        Answer::Preview(mut answer) => {
            if let Ok(reply) = &mut answer {
                super::estate::harmless_preview(reply);
            }
            if let Some(timeline) = &mut state.timeline {
                timeline.previewed(tag, answer);
            }
            Vec::new()
        }
        Answer::Readiness(mut answer) => {
            if let Ok(report) = &mut answer {
                super::estate::harmless_readiness(report);
            }
            let Some(dialog) = &mut state.dialog else { return Vec::new() };
            if !dialog.told(tag, answer, &state.estate) {
                return Vec::new();
            }
            // The report is new on the screen: what was typed before it was not an answer to it.
            dialog.armed = false;
            vec![Effect::Arm]
        }
        Answer::Order(answer) => {
            orders::answered(state, tag, answer);
            state.stale = true;
            Vec::new()
        }
        Answer::Access(Ok(reply)) => {
            state.estate.know_access(reply);
            Vec::new()
        }
        Answer::Audit(Ok(reply)) => {
            state.estate.know_audit(reply);
            Vec::new()
        }
        Answer::Token(Ok(reply)) => {
            state.secret = Some(shown(&reply.token));
            state.stale = true;
            Vec::new()
        }
        Answer::Revoked(Ok(_)) => {
            state.say(Tone::Good, "revoked: it is refused from now on");
            state.stale = true;
            Vec::new()
        }
        Answer::CanI(Ok(reply)) => {
            let list = |names: &[String]| names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
            let who = if reply.operators.is_empty() { list(&reply.roles) } else { list(&reply.operators) };
            let second = if reply.needs_approval { "; a second person must agree" } else { "" };
            let (tone, said) = if reply.allowed { (Tone::Good, "yes") } else { (Tone::Bad, "no") };
            state.say(tone, format!("{said}: {}{second}. Who could: {who}", shown(&reply.reason)));
            Vec::new()
        }
        Answer::Access(Err(fault))
        | Answer::Audit(Err(fault))
        | Answer::Token(Err(fault))
        | Answer::Revoked(Err(fault))
        | Answer::CanI(Err(fault)) => {
            state.say(Tone::Bad, format!("{}. Next: {}", shown(&fault.message), shown(&fault.remedy)));
            Vec::new()
        }
    }
}

fn take_start(state: &mut State, start: Start) {
    match start {
        Start::Progress(line) => {
            state.start_lines.push(shown(&line));
            if state.start_lines.len() > 200 {
                state.start_lines.remove(0);
            }
        }
        Start::Ready => {
            if matches!(state.connection, Connection::Starting) {
                state.connection = Connection::Dialling;
            }
        }
        Start::Failed(fault) => state.start_failed = Some(fault),
    }
}

// ---- keys ----

fn key(state: &mut State, chord: Chord) -> Vec<Effect> {
    if state.dialog.is_some() {
        return dialog_key(state, chord);
    }
    if let Some(secret) = &state.secret {
        // It is shown once: only a key that means it copies or closes it.
        return match chord.code {
            Code::Char('y') => copy(state, secret.clone()),
            Code::Esc | Code::Enter => {
                state.secret = None;
                Vec::new()
            }
            _ => Vec::new(),
        };
    }
    if state.form.is_some() {
        return form_key(state, chord);
    }
    if state.palette.is_some() {
        return palette_key(state, chord);
    }
    if state.filtering.is_some() {
        filter_key(state, chord);
        return Vec::new();
    }
    if chord == Chord::ctrl('c') {
        if state.overlay.take().is_some() {
            return Vec::new();
        }
        if state.leaving.is_some_and(|at| state.now.saturating_sub(at) <= LEAVE_WITHIN_US) {
            return vec![Effect::Quit];
        }
        state.leaving = Some(state.now);
        state.say(Tone::Note, "press Ctrl-C again to leave; jobs go on in the vault");
        return Vec::new();
    }
    match state.overlay {
        Some(Overlay::Help { scroll }) => {
            help_key(state, scroll, chord);
            Vec::new()
        }
        Some(Overlay::Columns { at }) => {
            columns_key(state, at, chord);
            Vec::new()
        }
        Some(Overlay::Menu { at }) => menu_key(state, at, chord),
        None => match state.keys.action(state.place.contexts(), chord) {
            // From within, the key steps back; only from the top it leaves. `:quit` always leaves.
            Some(Action::Quit) if !state.back.is_empty() => act(state, Action::Back, ""),
            Some(action) => act(state, action, ""),
            None => Vec::new(),
        },
    }
}

fn dialog_key(state: &mut State, chord: Chord) -> Vec<Effect> {
    let Some(dialog) = &mut state.dialog else { return Vec::new() };
    match dialog.key(chord) {
        Outcome::Stay => Vec::new(),
        Outcome::Close => {
            state.dialog = None;
            Vec::new()
        }
        Outcome::Go => orders::agreed(state),
    }
}

fn form_key(state: &mut State, chord: Chord) -> Vec<Effect> {
    let Some(form) = &mut state.form else { return Vec::new() };
    match form.key(chord) {
        form::Outcome::Stay => Vec::new(),
        form::Outcome::Close => {
            state.form = None;
            Vec::new()
        }
        form::Outcome::Review => orders::review(state),
    }
}

fn palette_key(state: &mut State, chord: Chord) -> Vec<Effect> {
    let Some(palette) = &mut state.palette else { return Vec::new() };
    match chord.code {
        Code::Esc => state.palette = None,
        Code::Char('c') if chord.ctrl => state.palette = None,
        Code::Backspace if palette.line.text().is_empty() => state.palette = None,
        Code::Tab => palette.complete(&state.estate, &state.themes),
        Code::Down => palette.choose(true),
        Code::BackTab => palette.choose(false),
        Code::Up => {
            if palette.chosen.is_some() {
                palette.choose(false);
            } else {
                recall(state);
            }
        }
        Code::Enter => return run_palette(state),
        _ => {
            if palette.line.key(chord) == Edit::Done {
                palette.recalled = None;
                palette.propose(&state.estate, &state.themes);
            }
        }
    }
    Vec::new()
}

fn recall(state: &mut State) {
    let Some(palette) = &mut state.palette else { return };
    let back = palette.recalled.map_or(0, |back| back + 1);
    if let Some(line) = state.history.len().checked_sub(back + 1).and_then(|at| state.history.get(at)) {
        palette.line.set(line);
        palette.propose(&state.estate, &state.themes);
        palette.recalled = Some(back);
    }
}

fn run_palette(state: &mut State) -> Vec<Effect> {
    let Some(palette) = &mut state.palette else { return Vec::new() };
    let line = palette.to_run();
    if line.is_empty() {
        state.palette = None;
        return Vec::new();
    }
    match palette::read(&line) {
        Ok(meaning) => {
            state.palette = None;
            palette::remember(&mut state.history, &line);
            act(state, meaning.action, &meaning.argument)
        }
        Err(why) => {
            palette.complaint = why;
            Vec::new()
        }
    }
}

fn filter_key(state: &mut State, chord: Chord) {
    let Some(kind) = state.place.table() else {
        state.filtering = None;
        return;
    };
    let Some(line) = &mut state.filtering else { return };
    match chord.code {
        Code::Esc => {
            state.filtering = None;
            state.table_mut(kind).set_filter("");
        }
        Code::Char('c') if chord.ctrl => {
            state.filtering = None;
            state.table_mut(kind).set_filter("");
        }
        Code::Enter => state.filtering = None,
        Code::Down | Code::Up => {
            let by = if chord.code == Code::Down { 1 } else { -1 };
            state.with_table(kind, |table, rows| table.move_by(by, rows));
        }
        Code::Backspace if line.text().is_empty() => state.filtering = None,
        _ => {
            line.key(chord);
            let filter = line.text().to_owned();
            state.table_mut(kind).set_filter(&filter);
        }
    }
}

fn help_key(state: &mut State, scroll: usize, chord: Chord) {
    let page = usize::from(state.size.1).saturating_sub(6).max(1);
    let most = help_lines(state).saturating_sub(page);
    let scroll = match (chord.code, state.keys.action(&[super::super::cmd::Context::Global], chord)) {
        (Code::Esc | Code::Char('q'), _) | (_, Some(Action::Help)) => {
            state.overlay = None;
            return;
        }
        (_, Some(Action::Down)) => scroll + 1,
        (_, Some(Action::Up)) => scroll.saturating_sub(1),
        (Code::Char(' '), _) | (_, Some(Action::PageDown)) => scroll + page,
        (_, Some(Action::PageUp)) => scroll.saturating_sub(page),
        (_, Some(Action::First)) => 0,
        (_, Some(Action::Last)) => most,
        _ => scroll,
    };
    state.overlay = Some(Overlay::Help { scroll: scroll.min(most) });
}

/// How many lines the help has.
pub fn help_lines(state: &State) -> usize {
    help(state).len()
}

/// The help: headings without keys, and actions with theirs. What is only in the palette comes last.
pub fn help(state: &State) -> Vec<(String, String)> {
    use super::super::cmd::Context;
    let mut lines: Vec<(String, String)> = Vec::new();
    for (context, _, heading) in Context::ALL {
        let bound = state.keys.in_context(context);
        if bound.is_empty() {
            continue;
        }
        lines.push((String::new(), heading.to_owned()));
        lines.extend(
            bound.into_iter().map(|(action, keys)| {
                (keys.join("  "), super::super::cmd::entry_of(action).label.to_owned())
            }),
        );
        lines.push((String::new(), String::new()));
    }
    lines.push((String::new(), "In the palette (:)".to_owned()));
    lines.extend(REGISTRY.iter().filter_map(|entry| {
        let word = entry.words.first()?;
        let argument = match entry.argument {
            Argument::None => "",
            Argument::Machine => " [MACHINE]",
            Argument::Job => " [JOB]",
            Argument::Alert => " [ALERT]",
            Argument::Policy => " [POLICY]",
            Argument::Order => " ORDER [MACHINE]",
            Argument::Theme => " NAME",
            Argument::Moment => " TIME",
            Argument::Format => " [csv|json]",
        };
        Some((format!("{word}{argument}"), entry.label.to_owned()))
    }));
    lines
}

fn columns_key(state: &mut State, at: usize, chord: Chord) {
    let Some(kind) = state.place.table() else {
        state.overlay = None;
        return;
    };
    let titles: Vec<&'static str> = state.rows(kind).columns().iter().map(|column| column.title).collect();
    let at = match chord.code {
        Code::Esc | Code::Enter | Code::Char('q' | 'c') => {
            state.overlay = None;
            return;
        }
        Code::Down | Code::Char('j') => (at + 1).min(titles.len().saturating_sub(1)),
        Code::Up | Code::Char('k') => at.saturating_sub(1),
        Code::Char(' ' | 'x') => {
            // The first column names the row: without it nobody knows what the others speak of.
            if let Some(title) = titles.get(at).filter(|_| at > 0) {
                let hidden = &mut state.table_mut(kind).hidden;
                if !hidden.remove(title) {
                    hidden.insert(title);
                }
            }
            at
        }
        _ => at,
    };
    state.overlay = Some(Overlay::Columns { at });
}

fn menu_key(state: &mut State, at: usize, chord: Chord) -> Vec<Effect> {
    let lines = orders::menu(state);
    let at = match chord.code {
        Code::Esc | Code::Char('q') => {
            state.overlay = None;
            return Vec::new();
        }
        Code::Down => (at + 1).min(lines.len().saturating_sub(1)),
        Code::Up => at.saturating_sub(1),
        Code::Enter => return lines.get(at).map_or_else(Vec::new, |line| choose(state, line.action)),
        _ => match state.keys.action(&[super::super::cmd::Context::Menu], chord) {
            Some(Action::Copy) => {
                let command = lines.get(at).map(|line| line.command.clone()).unwrap_or_default();
                return copy(state, command);
            }
            Some(action) if lines.iter().any(|line| line.action == action) => return choose(state, action),
            _ => at,
        },
    };
    state.overlay = Some(Overlay::Menu { at });
    Vec::new()
}

fn choose(state: &mut State, action: Action) -> Vec<Effect> {
    state.overlay = None;
    act(state, action, "")
}

fn paste(state: &mut State, pasted: &str) {
    if let Some(dialog) = &mut state.dialog {
        dialog.paste(pasted);
    } else if let Some(form) = &mut state.form {
        form.paste(pasted);
    } else if let Some(palette) = &mut state.palette {
        palette.line.paste(pasted);
        palette.propose(&state.estate, &state.themes);
    } else if let Some(kind) = state.place.table()
        && let Some(line) = &mut state.filtering
    {
        line.paste(pasted);
        let filter = line.text().to_owned();
        state.table_mut(kind).set_filter(&filter);
    } else {
        state.say(Tone::Note, "a paste goes into an input field only; nothing was done with it");
    }
}

fn wheel(state: &mut State, lines: isize) {
    if state.dialog.is_none() && state.form.is_none() && state.overlay.is_none() && state.palette.is_none() {
        move_by(state, lines);
    }
}

fn click(state: &mut State, column: u16, row: u16) {
    if state.dialog.is_some() || state.form.is_some() || state.overlay.is_some() || state.palette.is_some() {
        return;
    }
    let top = 2 + layout::banner(state) + layout::over_table(state) + 1;
    let left_of_detail = column < state.size.0.saturating_sub(layout::detail_columns(state));
    if let (Some(kind), Some(line), true) = (state.place.table(), row.checked_sub(top), left_of_detail)
        && usize::from(line) < layout::table_rows(state)
    {
        state.with_table(kind, |table, rows| {
            let at = table.top() + usize::from(line);
            if at < table.shown() {
                table.move_to(at, rows);
            }
        });
    }
}

// ---- actions ----

/// Does an action, with what the palette gave it.
pub fn act(state: &mut State, action: Action, argument: &str) -> Vec<Effect> {
    use Action as A;
    match action {
        A::GoPulse => go(state, Place::Pulse),
        A::GoSites => go(state, Place::Sites),
        A::GoMachines if !argument.is_empty() => return open_machine(state, argument),
        A::GoMachines => go(state, Place::Machines),
        A::GoJobs => go(state, Place::Jobs),
        A::GoAlerts => go(state, Place::Alerts),
        A::GoServers => go(state, Place::Servers),
        A::GoPolicies => go(state, Place::Policies),
        A::GoPlans => go(state, Place::Plans),
        A::GoAccess => go(state, Place::Access),
        A::NewToken => return orders::new_token(state),
        A::Revoke => return orders::revoke(state),
        A::Older => {
            if state.place == Place::Audit && state.is_live() {
                let before = state.estate.audit.last().map_or(0, |line| line.seq);
                let tag = state.tag();
                return vec![Effect::Audit(tag, pb::AuditRequest { before, ..Default::default() })];
            }
        }
        A::CanI => return can_i(state, argument),
        A::Open => open(state),
        A::New => orders::edit(state, true),
        A::Edit => orders::edit(state, false),
        A::Back => back(state),
        A::Quit => return vec![Effect::Quit],
        A::Help => state.overlay = Some(Overlay::Help { scroll: 0 }),
        A::Palette => {
            let mut palette = Palette::default();
            palette.propose(&state.estate, &state.themes);
            state.palette = Some(palette);
        }
        A::Filter => {
            if let Some(table) = state.current() {
                state.filtering = Some(Line::new(&table.filter.clone()));
            }
        }
        A::Sort => sort(state, |table, columns| table.sort_next(columns)),
        A::Reverse => sort(state, |table, _| {
            table.descending = !table.descending;
            if table.sort == NATURAL {
                table.sort = 0;
            }
        }),
        A::Columns if state.place.table().is_some() => state.overlay = Some(Overlay::Columns { at: 0 }),
        A::Columns => {}
        A::Mark => {
            if let Some(kind) = state.place.table() {
                state.with_table(kind, Table::toggle_mark);
            }
        }
        A::Unmark => {
            if let Some(kind) = state.place.table() {
                state.table_mut(kind).marks.clear();
            }
        }
        A::Copy => {
            let text = export::copied(state);
            return copy(state, text);
        }
        A::Export => return export_shown(state, argument),
        A::Up => move_by(state, -1),
        A::Down => move_by(state, 1),
        A::PageUp => move_by(state, -isize::try_from(layout::page(state)).unwrap_or(1)),
        A::PageDown => move_by(state, isize::try_from(layout::page(state)).unwrap_or(1)),
        A::First => move_by(state, isize::MIN / 2),
        A::Last => move_by(state, isize::MAX / 2),
        A::NextTab | A::PreviousTab if matches!(state.place, Place::Access | Place::Audit) => {
            let place = if state.place == Place::Access { Place::Audit } else { Place::Access };
            show(state, place);
        }
        A::NextTab | A::PreviousTab => {
            if let Place::Machine(id, tab) = &state.place {
                let place = Place::Machine(id.clone(), tab.turn(action == A::NextTab));
                show(state, place);
            }
        }
        A::Menu => {
            if orders::menu(state).is_empty() {
                state.say(Tone::Note, "there is nothing to order here: choose a machine, a job or an alert");
            } else {
                state.overlay = Some(Overlay::Menu { at: 0 });
            }
        }
        A::Theme if argument.is_empty() => {
            let known = state.themes.join(", ");
            state.say(Tone::Note, format!("themes: {known}; choose one with :theme NAME"));
        }
        A::Theme if state.themes.iter().any(|theme| theme == argument) => {
            return vec![Effect::Theme(argument.to_owned())];
        }
        A::Theme => state
            .say(Tone::Bad, format!("there is no theme {argument}; known are {}", state.themes.join(", "))),
        A::Ascii => {
            state.ascii = !state.ascii;
            return vec![Effect::Ascii(state.ascii)];
        }
        A::Reconnect if state.is_live() => state.say(Tone::Note, "the vault answers; nothing to do"),
        A::Reconnect => return vec![Effect::Nudge],
        A::Earlier => on_timeline(state, |timeline, now| timeline.move_by(-1, now)),
        A::Later => on_timeline(state, |timeline, now| timeline.move_by(1, now)),
        A::MuchEarlier => on_timeline(state, |timeline, now| timeline.move_by(-10, now)),
        A::MuchLater => on_timeline(state, |timeline, now| timeline.move_by(10, now)),
        A::Step => on_timeline(state, |timeline, _| timeline.step = timeline.step.next()),
        A::ZoomIn => on_timeline(state, |timeline, now| timeline.zoom(true, now)),
        A::ZoomOut => on_timeline(state, |timeline, now| timeline.zoom(false, now)),
        A::Newest => on_timeline(state, Timeline::to_newest),
        A::Oldest => on_timeline(state, Timeline::to_oldest),
        A::GoToMoment => go_to_moment(state, argument),
        A::Protect
        | A::Unprotect
        | A::Pause
        | A::Resume
        | A::Resync
        | A::Bookmark
        | A::AppBookmark
        | A::Pin
        | A::Verify
        | A::TestFailover
        | A::Cleanup
        | A::Failover
        | A::Commit
        | A::RetryNow
        | A::Move
        | A::CancelJob
        | A::RetryJob
        | A::Proceed
        | A::PlannedFailover
        | A::ChangePoint
        | A::CancelFailover
        | A::Reprotect
        | A::Failback
        | A::UnplannedFailback
        | A::CompleteMigration
        | A::DeletePolicy
        | A::Approve
        | A::Refuse
        | A::AssignPolicy
        | A::Acknowledge => return orders::begin(state, action, argument),
    }
    Vec::new()
}

fn go_to_moment(state: &mut State, argument: &str) {
    if !matches!(state.place, Place::Machine(_, Tab::Points)) {
        state.say(Tone::Note, ":at moves the cursor on a machine's Points tab; open one first");
        return;
    }
    match timeline::moment(argument, state.vault_now()) {
        Some(at) => on_timeline(state, |timeline, now| timeline.move_to(at, now)),
        None => state
            .say(Tone::Bad, "not a time: write 03:12:45, -90s, 2026-11-23 03:12:45 or RFC 3339 (all UTC)"),
    }
}

fn copy(state: &mut State, text: String) -> Vec<Effect> {
    if text.is_empty() {
        state.say(Tone::Note, "there is nothing to copy here");
        return Vec::new();
    }
    vec![Effect::Copy(text)]
}

fn export_shown(state: &mut State, format: &str) -> Vec<Effect> {
    let json = match format {
        "" | "csv" => false,
        "json" => true,
        other => {
            let said = format!("there is no format {other}: write csv or json");
            state.say(Tone::Bad, said);
            return Vec::new();
        }
    };
    match export::shown_here(state, json) {
        Some((stem, content)) => vec![Effect::Export(stem, if json { "json" } else { "csv" }, content)],
        None => {
            state.say(Tone::Note, "there is no table here to export");
            Vec::new()
        }
    }
}

fn sort(state: &mut State, change: impl FnOnce(&mut Table, &[super::table::Column])) {
    let Some(kind) = state.place.table() else { return };
    state.with_table(kind, |table, rows| {
        if !rows.is_ordered() {
            change(table, rows.columns());
            table.invalidate();
        }
    });
}

/// To one of the numbered screens: a fresh way back.
fn go(state: &mut State, place: Place) {
    state.back.clear();
    show(state, place);
}

/// Into something: the way back leads here.
pub fn enter(state: &mut State, place: Place) {
    if state.place != place {
        state.back.push(state.place.clone());
        show(state, place);
    }
}

fn show(state: &mut State, place: Place) {
    state.stale = matches!(place, Place::Access | Place::Audit);
    state.scroll = 0;
    state.filtering = None;
    state.overlay = None;
    if let Place::Machine(id, tab) = &place {
        let other = state.timeline.as_ref().is_none_or(|timeline| timeline.machine != *id);
        if other && *tab == Tab::Points {
            state.timeline = state.estate.machines.get(id).map(|machine| Timeline::new(machine, state.now));
        } else if other {
            state.timeline = None;
        }
        let events = state.table_mut(TableKind::Events);
        events.invalidate();
        if other {
            *events = Table::default();
        }
    }
    state.place = place;
}

fn back(state: &mut State) {
    if let Some(kind) = state.place.table()
        && !state.table(kind).filter.is_empty()
    {
        state.table_mut(kind).set_filter("");
        return;
    }
    if let Some(place) = state.back.pop() {
        show(state, place);
    }
}

fn open(state: &mut State) {
    match &state.place {
        Place::Pulse | Place::Machines => {
            if let Some(id) = state.machine_here().map(|machine| machine.id.clone()) {
                enter(state, Place::Machine(id, Tab::Overview));
            }
        }
        Place::Sites => {
            let selected = state.current().and_then(|table| table.selected.clone()).unwrap_or_default();
            if selected.starts_with("site/") {
                if !state.closed.remove(&selected) {
                    state.closed.insert(selected);
                }
                state.estate.revision += 1;
            } else if state.estate.machines.get(&selected).is_some() {
                enter(state, Place::Machine(selected, Tab::Overview));
            } else if selected.starts_with("server/") {
                go(state, Place::Servers);
            }
        }
        Place::Jobs => {
            if let Some(id) = state.job_here().map(|job| job.id.clone()) {
                enter(state, Place::Job(id));
            }
        }
        Place::Alerts => open_alert(state),
        Place::Servers => {
            let machine = state
                .current()
                .and_then(|table| table.selected.as_deref())
                .and_then(|id| state.estate.servers.get(id))
                .and_then(|server| state.estate.machine(&server.machine))
                .map(|machine| machine.id.clone());
            if let Some(id) = machine {
                enter(state, Place::Machine(id, Tab::Overview));
            }
        }
        // A machine's own job, where one runs or a test stands.
        Place::Machine(id, tab) => {
            let job = orders::job_of(state, id);
            match (tab, job) {
                (Tab::Overview, Some(job)) => enter(state, Place::Job(job)),
                _ => {
                    let place = Place::Machine(id.clone(), tab.turn(true));
                    show(state, place);
                }
            }
        }
        Place::Job(_) => {
            if let Some(id) = state.machine_here().map(|machine| machine.id.clone()) {
                enter(state, Place::Machine(id, Tab::Overview));
            }
        }
        Place::Plans => {
            let run = state.plan_here().map(|plan| plan.run.clone());
            match run.filter(|run| state.estate.jobs.get(run).is_some()) {
                Some(run) => enter(state, Place::Job(run)),
                None => state.say(Tone::Note, "this plan was not run yet: t drills it"),
            }
        }
        Place::Policies => orders::edit(state, false),
        Place::Access | Place::Audit => {}
    }
}

fn open_alert(state: &mut State) {
    let Some(alert) = state.alert_here() else { return };
    let object = alert.object_id.clone();
    if state.estate.machines.get(&object).is_some() {
        enter(state, Place::Machine(object, Tab::Overview));
    } else if state.estate.jobs.get(&object).is_some() {
        enter(state, Place::Job(object));
    } else if state.estate.servers.get(&object).is_some() {
        enter(state, Place::Servers);
        state.with_table(TableKind::Servers, |table, _| table.selected = Some(object));
        state.table_mut(TableKind::Servers).invalidate();
    }
}

fn open_machine(state: &mut State, name: &str) -> Vec<Effect> {
    match state.estate.machine(name).map(|machine| machine.id.clone()) {
        Some(id) => {
            if state.place != Place::Machines {
                go(state, Place::Machines);
            }
            enter(state, Place::Machine(id, Tab::Overview));
        }
        None => state.say(Tone::Bad, format!("there is no machine {}", shown(name))),
    }
    Vec::new()
}

fn move_by(state: &mut State, lines: isize) {
    match &state.place {
        Place::Machine(_, Tab::Points) => {
            let one = lines.signum() as i64;
            on_timeline(state, |timeline, now| match lines.unsigned_abs() {
                // Up and down go by points, whatever left and right go by.
                1 => {
                    let step = timeline.step;
                    timeline.step = timeline::Step::Point;
                    timeline.move_by(-one, now);
                    timeline.step = step;
                }
                _ => timeline.move_by(one * 10, now),
            });
        }
        Place::Machine(_, Tab::Overview | Tab::Disks) | Place::Job(_) => {
            let most = 200;
            state.scroll = state.scroll.saturating_add_signed(lines).min(most);
        }
        _ => {
            if let Some(kind) = state.place.table() {
                state.with_table(kind, |table, rows| table.move_by(lines, rows));
            }
        }
    }
}

fn on_timeline(state: &mut State, doing: impl FnOnce(&mut Timeline, i64)) {
    let now = state.now;
    if let Some(timeline) = &mut state.timeline {
        doing(timeline, now);
    }
}
