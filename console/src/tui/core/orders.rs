//! How orders begin, are agreed to, and what comes of them.
//!
//! Lives here: whom an action is about, whether it is possible now and why not, and the one place where
//! [`Effect::Order`] is made. Lives elsewhere: the agreement (`dialog`).

use super::super::cmd::{Action, Argument, Entry, Needs, REGISTRY, Risk, entry_of};
use super::dialog::{Dialog, Focus, Form, Report, Subject};
use super::estate::is_over;
use super::form as edit;
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
        Argument::Job | Argument::Alert | Argument::Policy => true,
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
        .replace("{policy}", &text::quoted(&subject.name))
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
        Argument::Policy => {
            let policy = state.policy_here().ok_or("no policy is chosen")?;
            Ok(vec![policy_subject(policy)])
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

fn policy_subject(policy: &pb::Policy) -> Subject {
    Subject {
        machine: format!("policy/{}", policy.id),
        object: policy.id.clone(),
        name: policy.name.clone(),
        version: policy.version,
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
        Action::Proceed
            if subjects
                .first()
                .and_then(|s| state.estate.jobs.get(&s.object))
                .is_some_and(|job| job.waiting_for == "approval") =>
        {
            return Err("it waits for a second person's agreement".into());
        }
        Action::Proceed => {
            return job_allows(state, subjects, |job| !job.waiting_for.is_empty(), "told to go on");
        }
        Action::Approve | Action::Refuse => {
            let me = state.who.as_ref().map(|who| who.name.clone()).unwrap_or_default();
            let job = subjects.first().and_then(|subject| state.estate.jobs.get(&subject.object));
            return match job {
                Some(job) if job.waiting_for != "approval" => Err("it waits for nobody's agreement".into()),
                Some(job) if job.by == me => Err("nobody answers their own order".into()),
                Some(_)
                    if state.who.as_ref().is_some_and(|who| !who.may.iter().any(|may| may == "approve")) =>
                {
                    Err("your role may not: an approver or an owner answers".into())
                }
                Some(_) => Ok(()),
                None => Err("that job is gone".into()),
            };
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
        Action::Bookmark | Action::AppBookmark => Form::Name(Line::default()),
        Action::Protect => Form::Choice {
            policies: (names(state.estate.policies.iter().map(|policy| &policy.name)), 0),
            sites: (names(state.estate.sites.iter().filter(|site| site.recovery).map(|site| &site.name)), 0),
        },
        Action::AssignPolicy => {
            // The one that they all are under is no choice.
            let of =
                |subject: &Subject| state.estate.machines.get(&subject.machine).map(|m| m.policy.clone());
            let first = subjects.first().and_then(of);
            let same = subjects.iter().all(|subject| of(subject) == first);
            let all = names(state.estate.policies.iter().map(|policy| &policy.name));
            Form::Assign(all.into_iter().filter(|name| !same || first.as_ref() != Some(name)).collect(), 0)
        }
        _ => Form::None,
    };
    let at_once = entry.risk == Risk::None && matches!(form, Form::None) && subjects.len() == 1;
    let mut dialog = Dialog::new(action, subjects, form);
    if matches!(action, Action::TestFailover | Action::Failover) {
        (dialog.point, dialog.point_words) = point;
    }
    if matches!(action, Action::Approve | Action::Refuse) {
        let job = dialog.subjects.first().and_then(|subject| state.estate.jobs.get(&subject.object));
        let approval = job.and_then(|job| job.approval.clone()).unwrap_or_default();
        // The digest says what was looked at; its words are what stands in the dialog.
        dialog.point = approval.digest;
        dialog.point_words = approval.about.join("; ");
    }
    if action == Action::Pin {
        dialog.point_words = pin_word(state).into();
    }
    if at_once {
        return order(state, &dialog);
    }
    match asks_readiness(action) {
        Some(asked) => ask(state, dialog, asked, None),
        None => {
            dialog.decide(&state.estate);
            state.dialog = Some(dialog);
            vec![Effect::Arm]
        }
    }
}

/// Opens a dialog, and asks the vault about each of its subjects.
fn ask(state: &mut State, mut dialog: Dialog, order: &str, policy: Option<&pb::Policy>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for at in 0..dialog.subjects.len() {
        let tag = state.tag();
        if let Some(subject) = dialog.subjects.get_mut(at) {
            subject.report = Report::Asked(tag);
            let of_policy =
                subject.policy().map(|_| pb::Policy { name: subject.name.clone(), ..Default::default() });
            effects.push(Effect::Readiness(
                tag,
                Box::new(pb::ReadinessRequest {
                    machine: if subject.policy().is_some() { String::new() } else { subject.machine.clone() },
                    order: order.into(),
                    point: dialog.point.clone(),
                    policy: policy.cloned().or(of_policy),
                    ..Default::default()
                }),
            ));
        }
    }
    dialog.decide(&state.estate);
    state.dialog = Some(dialog);
    effects.push(Effect::Arm);
    effects
}

/// Opens the dialog by which somebody is let in.
pub fn new_token(state: &mut State) -> Vec<Effect> {
    if !state.is_live() {
        state.say(Tone::Bad, "the vault does not answer: read only until it does");
        return Vec::new();
    }
    let subject = Subject {
        machine: String::new(),
        object: String::new(),
        name: "an operator".into(),
        version: 0,
        report: Report::None,
    };
    state.dialog = Some(Dialog::new(Action::NewToken, vec![subject], Form::Token(Line::default(), 0)));
    vec![Effect::Arm]
}

/// Asks before the access under the cursor is taken away.
pub fn revoke(state: &mut State) -> Vec<Effect> {
    if !state.is_live() || state.place != Place::Access {
        state.say(Tone::Note, "choose an operator or a token on Access (9)");
        return Vec::new();
    }
    let selected = state.current().and_then(|table| table.selected.clone()).unwrap_or_default();
    let access = &state.estate.access;
    let found = match access.operators.iter().find(|operator| operator.name == selected) {
        Some(operator) if operator.revoked => Err("their access was taken away already"),
        Some(operator) => Ok((format!("operator/{}", operator.name), format!("operator {}", operator.name))),
        None => match access.tokens.iter().find(|token| token.id == selected) {
            Some(token) if token.used_us.is_some() || token.revoked => {
                Err("nobody can use that token any more; revoke who came in with it")
            }
            Some(token) => {
                Ok((format!("token/{}", token.id), format!("token {} for {}", token.id, token.name)))
            }
            None => Err("nobody is chosen"),
        },
    };
    match found {
        Ok((object, name)) => {
            let subject = Subject { machine: String::new(), object, name, version: 0, report: Report::None };
            state.dialog = Some(Dialog::new(Action::Revoke, vec![subject], Form::None));
            vec![Effect::Arm]
        }
        Err(why) => {
            state.say(Tone::Note, why);
            Vec::new()
        }
    }
}

/// What is agreed to about access, which is no order of the estate.
fn access(state: &mut State, dialog: &Dialog) -> Option<Vec<Effect>> {
    let object = dialog.subjects.first().map(|subject| subject.object.as_str()).unwrap_or_default();
    match (dialog.action, &dialog.form) {
        (Action::NewToken, Form::Token(name, at)) => {
            let request = pb::CreateTokenRequest {
                role: "operator".into(),
                machine: name.text().trim().to_owned(),
                operator_role: super::dialog::ROLES
                    .get(*at)
                    .map(|role| (*role).to_owned())
                    .unwrap_or_default(),
                ..Default::default()
            };
            let tag = state.tag();
            Some(vec![Effect::Token(tag, request)])
        }
        (Action::Revoke, _) => {
            let mut request = pb::RevokeRequest::default();
            match object.split_once('/') {
                Some(("operator", name)) => request.operator = name.to_owned(),
                Some((_, id)) => request.token = id.to_owned(),
                None => {}
            }
            let tag = state.tag();
            Some(vec![Effect::Revoke(tag, request)])
        }
        _ => None,
    }
}

/// Opens what is under the cursor, or something new, in a form.
pub fn edit(state: &mut State, new: bool) {
    if !state.is_live() {
        state.say(Tone::Bad, "the vault does not answer: read only until it does");
        return;
    }
    let form = match state.place {
        Place::Policies => {
            let policy = state.policy_here().filter(|_| !new).cloned();
            if policy.is_none() && !new {
                state.say(Tone::Note, "no policy is chosen: n makes one");
                return;
            }
            let under = policy.as_ref().map(|policy| state.estate.machines_under(&policy.name));
            let under = under.unwrap_or_default().into_iter().map(|machine| machine.name.clone()).collect();
            edit::Form::policy(policy.as_ref(), under)
        }
        Place::Plans => {
            let plan = state.plan_here().filter(|_| !new);
            if plan.is_none() && !new {
                state.say(Tone::Note, "no plan is chosen: n makes one");
                return;
            }
            Ok(edit::Form::plan(plan))
        }
        _ => {
            state.say(Tone::Note, "policies and plans are edited on their screens: 8 and 4");
            return;
        }
    };
    match form {
        Ok(form) => state.form = Some(Box::new(form)),
        Err(why) => state.say(Tone::Bad, format!("the policy cannot be shown: {why}")),
    }
}

/// What was edited is right: the vault is asked what it means, and a dialog opens over the form.
pub fn review(state: &mut State) -> Vec<Effect> {
    let live = state.is_live();
    let Some(form) = &mut state.form else { return Vec::new() };
    if !live {
        form.complaint = "the vault does not answer: what you wrote stays here until it does".into();
        return Vec::new();
    }
    let action = if form.new { Action::New } else { Action::Edit };
    let version = form.version;
    let subject = |machine: String, name: String| Subject {
        machine,
        object: String::new(),
        name,
        version,
        report: Report::None,
    };
    if let Some(text) = form.plan_text() {
        let edit::Of::Plan(name) = &form.of else { return Vec::new() };
        let machine = if form.new { String::new() } else { format!("plan/{name}") };
        let name = if form.new { "new plan".to_owned() } else { name.clone() };
        let mut dialog =
            Dialog::new(action, vec![subject(machine, name)], Form::Plan(text, form.difference()));
        dialog.decide(&state.estate);
        state.dialog = Some(dialog);
        return vec![Effect::Arm];
    }
    let Some(policy) = form.wanted() else { return Vec::new() };
    let machine = if policy.id.is_empty() { String::new() } else { format!("policy/{}", policy.id) };
    let dialog = Dialog::new(
        action,
        vec![subject(machine, policy.name.clone())],
        Form::Policy(Box::new(policy.clone())),
    );
    ask(state, dialog, "set-policy", Some(&policy))
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
        Action::ChangePoint => Some("change-point"),
        Action::CancelFailover => Some("cancel-failover"),
        Action::Reprotect => Some("reprotect"),
        Action::Failback => Some("failback"),
        Action::UnplannedFailback => Some("unplanned-failback"),
        Action::CompleteMigration => Some("complete-migration"),
        Action::Unprotect => Some("unprotect"),
        Action::Move => Some("move"),
        Action::DeletePolicy => Some("delete-policy"),
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
        Argument::Policy => {
            let known = state.estate.policies.iter().find(|policy| policy.name == argument);
            let policy = known.ok_or_else(|| format!("there is no policy {}", shown(argument)))?;
            Ok((vec![policy_subject(policy)], latest()))
        }
        Argument::None | Argument::Order | Argument::Theme | Argument::Moment | Argument::Format => {
            Ok((subjects(state, entry)?, point_here(state)))
        }
    }
}

/// A dialog was agreed to: its orders go out, and it closes.
pub fn agreed(state: &mut State) -> Vec<Effect> {
    match state.dialog.take() {
        // Which policy is known now: what that means for each machine is asked before anything is ordered.
        Some(mut dialog) if matches!(dialog.form, Form::Assign(..)) => {
            let Form::Assign(names, at) = &dialog.form else { return Vec::new() };
            let chosen = names.get(*at).cloned().unwrap_or_default();
            dialog.form = Form::Assigned(chosen.clone());
            dialog.armed = false;
            dialog.focus = Focus::Go;
            ask(state, dialog, "assign-policy", Some(&pb::Policy { name: chosen, ..Default::default() }))
        }
        Some(dialog) => match access(state, &dialog) {
            Some(effects) => effects,
            None => order(state, &dialog),
        },
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
    if answer.is_ok() && matches!(pending.action, Action::New | Action::Edit) {
        state.form = None;
    }
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
