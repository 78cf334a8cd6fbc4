//! How orders begin, are agreed to, and what comes of them.
//!
//! Lives here: whom an action is about, whether it is possible now and why not, and the one place where
//! [`Effect::Order`] is made. Lives elsewhere: the agreement (`dialog`).

use super::super::cmd::{Action, Argument, Entry, Needs, REGISTRY, Risk, entry_of};
use super::dialog::{Dialog, Form, Report, Subject};
use super::estate::is_over;
use super::line::Line;
use super::reduce::enter;
use super::rows;
use super::state::{Effect, Pending, Place, State, Tab, TableKind, Tone};
use super::text;
use super::timeline;
use continuum_model::fault::Fault;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;

/// So many machines at most in one bulk order.
const BULK_MAX: usize = 50;

/// One line of the action menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MenuLine {
    /// Which.
    pub action: Action,
    /// What it is called.
    pub label: &'static str,
    /// Its letter in the menu.
    pub key: String,
    /// The same as a command.
    pub command: String,
    /// Why it is not possible now; empty where it is.
    pub why_not: String,
}

/// What can be ordered here; what is possible comes first.
pub fn menu(state: &State) -> Vec<MenuLine> {
    let about = |entry: &Entry| match entry.argument {
        Argument::Machine => matches!(entry.needs, Needs::Order(_)) || entry.action == Action::Pin,
        Argument::Job | Argument::Alert => true,
        _ => false,
    };
    let mut lines: Vec<MenuLine> = REGISTRY
        .iter()
        .filter(|entry| entry.needs != Needs::Nothing && about(entry))
        .filter_map(|entry| {
            let subjects = subjects(state, entry).ok()?;
            let why_not = possible(state, entry, &subjects).err().unwrap_or_default();
            let keys = state.keys.of(entry.action, &[super::super::cmd::Context::Menu]);
            Some(MenuLine {
                action: entry.action,
                label: entry.label,
                key: keys.first().cloned().unwrap_or_default(),
                command: command(state, entry, &subjects),
                why_not,
            })
        })
        .collect();
    lines.sort_by_key(|line| !line.why_not.is_empty());
    lines
}

/// The same order as a command line.
fn command(state: &State, entry: &Entry, subjects: &[Subject]) -> String {
    let Some(subject) = subjects.first() else { return String::new() };
    let by_id = subject.plan().is_some() || state.estate.has_odd_name(&subject.machine);
    let machine = if by_id { &subject.machine } else { &subject.name };
    let (point, _) = point_here(state);
    let point =
        if subject.object.is_empty() || entry.action != Action::Pin { point } else { subject.object.clone() };
    let mut command = entry
        .command
        .replace("{machine}", &text::quoted(machine))
        .replace("{point}", &text::quoted(&point))
        .replace("{job}", &text::quoted(&subject.object))
        .replace("{alert}", &text::quoted(&subject.object));
    if entry.risk == Risk::Danger {
        let confirm = subject.plan().unwrap_or(machine);
        command.push_str(&format!(" --confirm {}", text::quoted(confirm)));
    }
    command
}

/// The moment that an order here would take: as the vault reads it, and in words.
fn point_here(state: &State) -> (String, String) {
    match (&state.place, &state.timeline) {
        (Place::Machine(_, Tab::Points), Some(timeline)) if !timeline.newest => {
            (timeline.choice(), text::exact(timeline.cursor_us))
        }
        _ => ("latest".into(), "latest: everything that was received".into()),
    }
}

/// Whom an action is about here.
fn subjects(state: &State, entry: &Entry) -> Result<Vec<Subject>, String> {
    match entry.argument {
        Argument::Job => {
            let job = state
                .job_here()
                .or_else(|| {
                    let machine = state.machine_here()?;
                    state.estate.jobs.get(&job_of(state, &machine.id)?)
                })
                .ok_or("no job is chosen")?;
            Ok(vec![Subject {
                machine: String::new(),
                object: job.id.clone(),
                name: rows::job_title(job),
                version: 0,
                report: Report::None,
            }])
        }
        Argument::Alert => {
            let alert = state.alert_here().ok_or("no alert is chosen")?;
            Ok(vec![Subject {
                machine: String::new(),
                object: alert.id.clone(),
                name: format!("{}: {}", alert.object, alert.text),
                version: 0,
                report: Report::None,
            }])
        }
        _ if entry.action == Action::Pin => pin_subject(state),
        _ if state.place == Place::Plans => {
            if !matches!(entry.action, Action::TestFailover | Action::Cleanup | Action::Failover) {
                return Err("that is for machines; a plan is drilled, cleaned up and failed over".into());
            }
            Ok(vec![plan_subject(state.plan_here().ok_or("no plan is chosen")?)])
        }
        _ => {
            let kind = state.place.table();
            let marked: Vec<&pb::Machine> = match kind {
                Some(TableKind::Pulse | TableKind::Machines | TableKind::Sites) => state
                    .current()
                    .map(|table| table.marks.iter().filter_map(|id| state.estate.machines.get(id)).collect())
                    .unwrap_or_default(),
                _ => Vec::new(),
            };
            if marked.is_empty() {
                Ok(vec![subject(state.machine_here().ok_or("no machine is chosen")?)])
            } else {
                Ok(marked.into_iter().map(subject).collect())
            }
        }
    }
}

fn pin_subject(state: &State) -> Result<Vec<Subject>, String> {
    let here = match (&state.place, &state.timeline) {
        (Place::Machine(_, Tab::Points), Some(timeline)) => {
            let told = timeline.told().and_then(|told| told.point.as_ref());
            timeline.point_at_cursor().or(if timeline.newest { told } else { None })
        }
        _ => None,
    };
    let point = here.filter(|point| !point.id.is_empty()).ok_or("no listed point is under the cursor")?;
    let machine = state.machine_here().ok_or("no machine is chosen")?;
    let mut subject = subject(machine);
    subject.object.clone_from(&point.id);
    Ok(vec![subject])
}

fn plan_subject(plan: &pb::Plan) -> Subject {
    Subject {
        machine: format!("plan/{}", plan.name),
        object: String::new(),
        name: plan.name.clone(),
        version: plan.version,
        report: Report::None,
    }
}

fn subject(machine: &pb::Machine) -> Subject {
    Subject {
        machine: machine.id.clone(),
        object: String::new(),
        name: machine.name.clone(),
        version: machine.version,
        report: Report::None,
    }
}

/// Whether an action is possible now, and why not.
fn possible(state: &State, entry: &Entry, subjects: &[Subject]) -> Result<(), String> {
    if !state.is_live() {
        return Err("the vault does not answer: read only until it does".into());
    }
    if subjects.len() > BULK_MAX {
        return Err(format!(
            "{} are marked, and at most {BULK_MAX} are ordered at once",
            text::count(subjects.len(), "machine")
        ));
    }
    if subjects.len() > 1 && entry.risk == Risk::Danger {
        return Err("one machine at a time: its name is typed out".into());
    }
    match entry.action {
        Action::CancelJob => return job_allows(state, subjects, |job| job.may_cancel, "cancelled"),
        Action::Proceed => {
            return job_allows(state, subjects, |job| !job.waiting_for.is_empty(), "told to go on");
        }
        Action::RetryJob => return job_allows(state, subjects, |job| job.may_retry, "run again"),
        Action::Acknowledge => {
            let alert = subjects.first().and_then(|subject| state.estate.alerts.get(&subject.object));
            return match alert {
                Some(alert) if alert.acknowledged => Err("it is acknowledged already".into()),
                Some(alert) if alert.cleared_us.is_some() => Err("it is cleared already".into()),
                Some(_) => Ok(()),
                None => Err("that alert is gone".into()),
            };
        }
        _ => {}
    }
    let Needs::Order(order) = entry.needs else { return Ok(()) };
    for subject in subjects {
        if let Some(name) = subject.plan() {
            let Some(plan) = state.estate.plans.get(name) else {
                return Err(format!("plan {name} is gone"));
            };
            if plan.orders.iter().any(|possible| possible == order) {
                continue;
            }
            return Err(match (plan.problems.first(), order) {
                (Some(problem), _) => problem.clone(),
                (None, "cleanup") => "nothing of it is up in a drill".into(),
                (None, _) => "a run of it is under way".into(),
            });
        }
        let Some(machine) = state.estate.machines.get(&subject.machine) else {
            return Err(format!("{} is gone", subject.name));
        };
        if !machine.orders.iter().any(|possible| possible == order) {
            return Err(why_not(machine));
        }
    }
    Ok(())
}

fn why_not(machine: &pb::Machine) -> String {
    let (words, _) = rows::machine_state(machine);
    let test = rows::test_state(machine);
    let with_test = if test.is_empty() { String::new() } else { format!(", {test}") };
    format!("not while {} is {words}{with_test}", machine.name)
}

fn job_allows(
    state: &State,
    subjects: &[Subject],
    may: impl Fn(&pb::Job) -> bool,
    what: &str,
) -> Result<(), String> {
    match subjects.first().and_then(|subject| state.estate.jobs.get(&subject.object)) {
        Some(job) if may(job) => Ok(()),
        Some(job) => Err(format!("a job that is {} cannot be {what}", job.state)),
        None => Err("that job is gone".into()),
    }
}

/// The job that a machine's test or failover belongs to, or that runs on it.
pub fn job_of(state: &State, machine_id: &str) -> Option<String> {
    let running = state.estate.running_jobs().into_iter().find(|job| job.machine_id == machine_id);
    if let Some(job) = running {
        return Some(job.id.clone());
    }
    let machine = state.estate.machines.get(machine_id)?;
    let test = machine.test.as_ref().map(|test| &test.job);
    let failed_over = machine.failed_over.as_ref().map(|failed_over| &failed_over.job);
    test.or(failed_over).filter(|job| state.estate.jobs.get(job).is_some()).cloned()
}

/// Begins an order: at once where it can lose nothing, else with a dialog.
pub fn begin(state: &mut State, action: Action, argument: &str) -> Vec<Effect> {
    let entry = entry_of(action);
    let (subjects, point) = match named(state, entry, argument) {
        Ok(found) => found,
        Err(why) => {
            state.say(Tone::Bad, format!("{}: {why}", entry.label));
            return Vec::new();
        }
    };
    if let Err(why) = possible(state, entry, &subjects) {
        state.say(Tone::Bad, format!("{}: {why}", entry.label));
        return Vec::new();
    }
    let form = match action {
        Action::Bookmark => Form::Name(Line::default()),
        Action::Protect => Form::Choice {
            policies: (names(state.estate.policies.iter().map(|policy| &policy.name)), 0),
            sites: (names(state.estate.sites.iter().filter(|site| site.recovery).map(|site| &site.name)), 0),
        },
        _ => Form::None,
    };
    let at_once = entry.risk == Risk::None && matches!(form, Form::None) && subjects.len() == 1;
    let mut dialog = Dialog::new(action, subjects, form);
    if matches!(action, Action::TestFailover | Action::Failover) {
        (dialog.point, dialog.point_words) = point;
    }
    if action == Action::Pin {
        dialog.point_words = pin_word(state).into();
    }
    if at_once {
        return order(state, &dialog);
    }
    let mut effects = Vec::new();
    if let Some(asked) = asks_readiness(action) {
        for at in 0..dialog.subjects.len() {
            let tag = state.tag();
            if let Some(subject) = dialog.subjects.get_mut(at) {
                subject.report = Report::Asked(tag);
                effects.push(Effect::Readiness(
                    tag,
                    pb::ReadinessRequest {
                        machine: subject.machine.clone(),
                        order: asked.into(),
                        point: dialog.point.clone(),
                    },
                ));
            }
        }
    }
    dialog.decide(&state.estate);
    state.dialog = Some(dialog);
    effects.push(Effect::Arm);
    effects
}

fn pin_word(state: &State) -> &'static str {
    let pinned = state
        .timeline
        .as_ref()
        .and_then(|timeline| timeline.point_at_cursor())
        .is_some_and(|point| point.pinned);
    if pinned { "unpin" } else { "pin" }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut names: Vec<String> = names.cloned().collect();
    names.sort();
    names
}

const fn asks_readiness(action: Action) -> Option<&'static str> {
    match action {
        Action::TestFailover => Some("test-failover"),
        Action::Failover => Some("failover"),
        Action::PlannedFailover => Some("planned-failover"),
        Action::Commit => Some("commit"),
        Action::Unprotect => Some("unprotect"),
        _ => None,
    }
}

type Named = (Vec<Subject>, (String, String));

/// Whom an action is about: what the palette named, else what is here.
fn named(state: &State, entry: &Entry, argument: &str) -> Result<Named, String> {
    if argument.is_empty() {
        return Ok((subjects(state, entry)?, point_here(state)));
    }
    let latest = || ("latest".to_owned(), "latest: everything that was received".to_owned());
    match entry.argument {
        Argument::Machine => {
            if let Some(machine) = state.estate.machine(argument) {
                return Ok((vec![subject(machine)], latest()));
            }
            let plan = argument.strip_prefix("plan/").and_then(|name| state.estate.plans.get(name));
            if let Some(plan) = plan {
                return Ok((vec![plan_subject(plan)], latest()));
            }
            // `test-failover web-01 03:12:45`
            if let Some((name, moment)) = argument.rsplit_once(' ')
                && let Some(machine) = state.estate.machine(name.trim())
            {
                let at = timeline::moment(moment, state.vault_now())
                    .ok_or_else(|| format!("{} is not a time", shown(moment)))?;
                let choice = continuum_model::time::Timestamp::from_micros(at).to_string();
                return Ok((vec![subject(machine)], (choice, text::exact(at))));
            }
            Err(format!("there is no machine {}", shown(argument)))
        }
        Argument::Job => {
            let found: Vec<&pb::Job> = state
                .estate
                .jobs
                .iter()
                .filter(|job| job.id == argument || text::short_id(&job.id) == argument)
                .collect();
            let [job] = found.as_slice() else { return Err(format!("there is no job {}", shown(argument))) };
            let subject = Subject {
                machine: String::new(),
                object: job.id.clone(),
                name: rows::job_title(job),
                version: 0,
                report: Report::None,
            };
            Ok((vec![subject], latest()))
        }
        Argument::Alert => {
            let alert = state
                .estate
                .alerts
                .get(argument)
                .ok_or_else(|| format!("there is no alert {}", shown(argument)))?;
            let subject = Subject {
                machine: String::new(),
                object: alert.id.clone(),
                name: format!("{}: {}", alert.object, alert.text),
                version: 0,
                report: Report::None,
            };
            Ok((vec![subject], latest()))
        }
        Argument::None | Argument::Theme | Argument::Moment | Argument::Format => {
            Ok((subjects(state, entry)?, point_here(state)))
        }
    }
}

/// A dialog was agreed to: its orders go out, and it closes.
pub fn agreed(state: &mut State) -> Vec<Effect> {
    match state.dialog.take() {
        Some(dialog) => order(state, &dialog),
        None => Vec::new(),
    }
}

/// The one place where orders are made.
fn order(state: &mut State, dialog: &Dialog) -> Vec<Effect> {
    let single = dialog.subjects.len() == 1;
    let label = entry_of(dialog.action).label;
    let requests = dialog.orders();
    let mut effects = Vec::new();
    for (request, subject) in requests.into_iter().zip(&dialog.subjects) {
        let tag = state.tag();
        let show = single
            && matches!(
                dialog.action,
                Action::TestFailover
                    | Action::Failover
                    | Action::PlannedFailover
                    | Action::Verify
                    | Action::Resync
                    | Action::Protect
                    | Action::RetryJob
            );
        state.pending.insert(
            tag,
            Pending { action: dialog.action, about: format!("{label}: {}", subject.name), show },
        );
        effects.push(Effect::Order(tag, Box::new(request)));
    }
    if !single && let Some(kind) = state.place.table() {
        state.table_mut(kind).marks.clear();
    }
    effects
}

/// The vault answered an order.
pub fn answered(state: &mut State, tag: u64, answer: Result<pb::OrderReply, Fault>) {
    let Some(pending) = state.pending.remove(&tag) else { return };
    match answer {
        Ok(reply) => {
            let Some(mut job) = reply.job.filter(|job| !job.id.is_empty()) else {
                state.say(Tone::Good, format!("{}: done", pending.about));
                return;
            };
            super::estate::harmless_job(&mut job);
            let id = job.id.clone();
            let over = is_over(&job);
            // The stream may have told more of it already.
            if state.estate.jobs.get(&id).is_none() {
                state.estate.know_job(job);
            }
            if pending.show {
                if state.place != Place::Job(id.clone()) {
                    enter(state, Place::Job(id));
                }
            } else {
                let what = if over { "done" } else { "begun" };
                state.say(Tone::Good, format!("{}: {what} (job {})", pending.about, text::short_id(&id)));
            }
        }
        Err(fault) => {
            let next =
                if fault.remedy.is_empty() { String::new() } else { format!(". Next: {}", fault.remedy) };
            state.say(Tone::Bad, format!("{}: {}{next}", pending.about, fault.message));
        }
    }
}
