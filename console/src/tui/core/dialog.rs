//! How an order is agreed to: asked once, or its report shown and the name typed out.
//!
//! ```text
//! asking ──reports──► blocked (not ready: nothing can be agreed to)
//!    │                ask     (y, or Enter on the button)
//!    └──no report──►  type    (the name typed out, then Tab and Enter; Enter alone cancels)
//!                     form    (a name or a choice is still needed)
//! any ──Esc, lost connection, changed object──► closed; nothing was ordered
//! ```
//!
//! Invariants: nothing is agreed to before the dialog stood on the screen and what was typed before that was
//! thrown away (`armed`). What is typed out is typed: a paste is refused. The order names the version of the
//! machine that was seen.

use super::super::cmd::keys::{Chord, Code};
use super::super::cmd::{Action, Risk, entry_of};
use super::estate::Estate;
use super::line::{Edit, Line};
use super::text;
use continuum_model::fault::Fault;
use continuum_proto::v1 as pb;
use pb::order_request::Order;

/// What an order is about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The machine, plan/NAME or policy/ID; empty for a job, an alert, or what is new.
    pub machine: String,
    /// The job, the alert, or the point; empty for a machine.
    pub object: String,
    /// What to call it.
    pub name: String,
    /// The machine's version that was seen.
    pub version: u64,
    /// The vault's report, where one is asked for.
    pub report: Report,
}

impl Subject {
    /// The recovery plan, where it is one.
    pub fn plan(&self) -> Option<&str> {
        self.machine.strip_prefix("plan/")
    }
    /// The policy's id, where it is one.
    pub fn policy(&self) -> Option<&str> {
        self.machine.strip_prefix("policy/")
    }
}

/// The vault's word on an order.
#[derive(Debug, Clone)]
pub enum Report {
    /// Not needed.
    None,
    /// Asked for, under this tag.
    Asked(u64),
    /// Here.
    Told(Box<pb::ReadinessReply>),
    /// Could not be had.
    Failed(Box<Fault>),
}

/// What is still needed besides agreement.
#[derive(Debug, Clone)]
pub enum Form {
    /// Nothing.
    None,
    /// A name.
    Name(Line),
    /// A policy and a site, out of those that there are.
    Choice {
        /// Names of policies, and which one.
        policies: (Vec<String>, usize),
        /// Names of recovery sites, and which one.
        sites: (Vec<String>, usize),
    },
    /// A policy for the machines: names of those that there are, and which one. Its report comes after the choice.
    Assign(Vec<String>, usize),
    /// Who is to be let in: a name, and a role out of those that there are.
    Token(Line, usize),
    /// The policy that was chosen.
    Assigned(String),
    /// A policy as it was edited.
    Policy(Box<pb::Policy>),
    /// A plan's text as it was edited, and what differs in it.
    Plan(String, Vec<String>),
}

/// Roles of operators, the least powerful first.
pub const ROLES: [&str; 7] =
    ["reader", "auditor", "operator", "approver", "contributor", "recoverer", "owner"];

/// Where the keys go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// The field, or the first choice.
    Field,
    /// The second choice.
    Second,
    /// The button that orders.
    Go,
    /// The button that does not.
    Cancel,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reports are awaited.
    Asking,
    /// It cannot be done now.
    Blocked,
    /// Yes or no.
    Ask,
    /// The name must be typed out.
    Type,
}

/// What a key led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing that concerns others.
    Stay,
    /// Closed; nothing was ordered.
    Close,
    /// Agreed.
    Go,
}

/// One dialog.
#[derive(Debug, Clone)]
pub struct Dialog {
    /// Which order.
    pub action: Action,
    /// What it is about.
    pub subjects: Vec<Subject>,
    /// The moment, as the vault reads it; empty where none matters.
    pub point: String,
    /// The moment, as a person reads it.
    pub point_words: String,
    /// What else is needed.
    pub form: Form,
    /// Where the keys go.
    pub focus: Focus,
    /// What was typed out so far.
    pub typed: Line,
    /// What must be typed out, as it is shown.
    pub must_type: String,
    /// Whether it is an id that must be typed, because the name would not do.
    pub types_id: bool,
    /// Why Enter did nothing, in words.
    pub complaint: &'static str,
    /// How far the report is scrolled.
    pub scroll: usize,
    /// It stood on the screen, and what was typed before that is gone.
    pub armed: bool,
    confirm: String,
}

impl Dialog {
    /// A dialog for an order.
    pub fn new(action: Action, subjects: Vec<Subject>, form: Form) -> Self {
        let focus = match &form {
            Form::Name(_) | Form::Assign(..) | Form::Token(..) => Focus::Field,
            _ if entry_of(action).risk == Risk::Danger => Focus::Cancel,
            _ => Focus::Go,
        };
        Self {
            action,
            subjects,
            point: String::new(),
            point_words: String::new(),
            form,
            focus,
            typed: Line::default(),
            must_type: String::new(),
            types_id: false,
            complaint: "",
            scroll: 0,
            armed: false,
            confirm: String::new(),
        }
    }

    /// Takes a report. Whether it was one of ours.
    pub fn told(&mut self, tag: u64, answer: Result<pb::ReadinessReply, Fault>, estate: &Estate) -> bool {
        let Some(subject) = self
            .subjects
            .iter_mut()
            .find(|subject| matches!(subject.report, Report::Asked(asked) if asked == tag))
        else {
            return false;
        };
        subject.report = match answer {
            Ok(report) => {
                if report.machine_version > 0 {
                    subject.version = report.machine_version;
                }
                Report::Told(Box::new(report))
            }
            Err(fault) => Report::Failed(Box::new(fault)),
        };
        self.decide(estate);
        true
    }

    /// Settles what must be typed out, once every report is here.
    pub fn decide(&mut self, estate: &Estate) {
        let danger = entry_of(self.action).risk == Risk::Danger;
        let [subject] = self.subjects.as_slice() else { return };
        let asked = match &subject.report {
            Report::Told(report) if danger || report.destroys || !report.confirm.is_empty() => {
                report.confirm.clone()
            }
            Report::None if danger => String::new(),
            Report::Told(_) | Report::None | Report::Asked(_) | Report::Failed(_) => return,
        };
        let machine = estate.machines.get(&subject.machine);
        let plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        let name = if asked.is_empty() { subject.name.clone() } else { asked.clone() };
        // A name that cannot be typed, or that another machine seems to have too, confirms nothing.
        self.types_id = !plain(&name) || machine.is_some_and(|machine| estate.has_twin(machine));
        self.must_type = if self.types_id { text::short_id(&subject.machine) } else { name.clone() };
        self.confirm = name;
        self.focus = Focus::Cancel;
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        let mut stage = Stage::Ask;
        for subject in &self.subjects {
            match &subject.report {
                Report::Asked(_) => return Stage::Asking,
                Report::Failed(_) => stage = Stage::Blocked,
                Report::Told(report) if !report.ready => stage = Stage::Blocked,
                // Names are typed one at a time.
                Report::Told(report)
                    if self.subjects.len() > 1 && (report.destroys || !report.confirm.is_empty()) =>
                {
                    stage = Stage::Blocked;
                }
                Report::Told(_) | Report::None => {}
            }
        }
        if stage == Stage::Ask && !self.must_type.is_empty() { Stage::Type } else { stage }
    }

    /// Whether what must be typed was typed.
    pub fn is_typed(&self) -> bool {
        !self.must_type.is_empty() && self.typed.text() == self.must_type
    }

    /// Why this dialog does not hold any more.
    pub fn broken(&self, estate: &Estate, connected: bool) -> Option<String> {
        if !connected {
            return Some("the connection to the vault was lost; nothing was ordered".into());
        }
        self.subjects.iter().filter(|subject| !subject.machine.is_empty()).find_map(|subject| {
            if let Some(plan) = subject.plan() {
                return match estate.plans.get(plan) {
                    Some(known) if known.version <= subject.version => None,
                    Some(_) => {
                        Some(format!("plan {plan} was changed meanwhile; nothing was ordered: look again"))
                    }
                    None => Some(format!("plan {plan} is gone; nothing was ordered")),
                };
            }
            if let Some(id) = subject.policy() {
                return match estate.policies.get(id) {
                    Some(known) if known.version <= subject.version => None,
                    Some(_) => Some(format!(
                        "policy {} was changed meanwhile; nothing was ordered: look again",
                        subject.name
                    )),
                    None => Some(format!("policy {} is gone; nothing was ordered", subject.name)),
                };
            }
            match estate.machines.get(&subject.machine) {
                None => Some(format!("{} is gone; nothing was ordered", subject.name)),
                Some(machine) if machine.version > subject.version => Some(format!(
                    "{} changed meanwhile (it is {} now); nothing was ordered: look again",
                    machine.name,
                    super::rows::machine_state(machine).0
                )),
                Some(_) => None,
            }
        })
    }

    /// Takes a key.
    pub fn key(&mut self, chord: Chord) -> Outcome {
        if matches!(chord.code, Code::Esc) || chord == Chord::ctrl('c') {
            return Outcome::Close;
        }
        if !self.armed {
            return Outcome::Stay;
        }
        self.complaint = "";
        match chord.code {
            Code::PageDown => self.scroll += 5,
            Code::PageUp => self.scroll = self.scroll.saturating_sub(5),
            _ => {}
        }
        match self.stage() {
            Stage::Asking => Outcome::Stay,
            Stage::Blocked => self.blocked_key(chord),
            Stage::Type => self.typing_key(chord),
            Stage::Ask => self.asking_key(chord),
        }
    }

    fn blocked_key(&mut self, chord: Chord) -> Outcome {
        match chord.code {
            Code::Enter | Code::Char('q' | 'n') => return Outcome::Close,
            Code::Down | Code::Char('j') => self.scroll += 1,
            Code::Up | Code::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            _ => {}
        }
        Outcome::Stay
    }

    fn typing_key(&mut self, chord: Chord) -> Outcome {
        match chord.code {
            Code::Tab | Code::BackTab => {
                self.focus = if self.focus == Focus::Go { Focus::Cancel } else { Focus::Go };
            }
            Code::Enter if self.focus != Focus::Go => return Outcome::Close,
            Code::Enter if self.is_typed() => return Outcome::Go,
            Code::Enter => self.complaint = "what is typed is not what must be typed",
            Code::Down => self.scroll += 1,
            Code::Up => self.scroll = self.scroll.saturating_sub(1),
            _ => {
                self.typed.key(chord);
            }
        }
        Outcome::Stay
    }

    fn asking_key(&mut self, chord: Chord) -> Outcome {
        let token = matches!(self.form, Form::Token(..));
        if let (Form::Name(line) | Form::Token(line, _), Focus::Field) = (&mut self.form, self.focus) {
            return match chord.code {
                Code::Enter if line.text().trim().is_empty() => {
                    self.complaint = "a name is needed";
                    Outcome::Stay
                }
                // Somebody is let in by the button only: a role is still to be chosen.
                Code::Enter | Code::Tab | Code::Down if token => {
                    self.focus = Focus::Second;
                    Outcome::Stay
                }
                Code::Enter => Outcome::Go,
                Code::Tab | Code::Down => {
                    self.focus = Focus::Go;
                    Outcome::Stay
                }
                Code::BackTab | Code::Up => {
                    self.focus = Focus::Cancel;
                    Outcome::Stay
                }
                _ => {
                    let _: Edit = line.key(chord);
                    Outcome::Stay
                }
            };
        }
        match chord.code {
            Code::Char('y') => return self.agree(),
            Code::Char('n' | 'q') => return Outcome::Close,
            Code::Enter if self.focus == Focus::Cancel => return Outcome::Close,
            Code::Enter if self.focus == Focus::Go => return self.agree(),
            Code::Enter | Code::Tab => self.focus = self.next_focus(),
            Code::BackTab => self.focus = self.next_focus_back(),
            Code::Left | Code::Right | Code::Char('h' | 'l' | ' ') => {
                self.sideways(matches!(chord.code, Code::Right | Code::Char('l' | ' ')))
            }
            Code::Down | Code::Char('j') if self.has_fields() => self.focus = self.next_focus(),
            Code::Up | Code::Char('k') if self.has_fields() => self.focus = self.next_focus_back(),
            Code::Down | Code::Char('j') => self.scroll += 1,
            Code::Up | Code::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            _ => {}
        }
        Outcome::Stay
    }

    fn agree(&mut self) -> Outcome {
        match &self.form {
            Form::Name(line) | Form::Token(line, _) if line.text().trim().is_empty() => {
                self.complaint = "a name is needed";
                self.focus = Focus::Field;
                Outcome::Stay
            }
            Form::Choice { policies, sites } if policies.0.is_empty() || sites.0.is_empty() => {
                self.complaint = "there is no policy or no recovery site to choose";
                Outcome::Stay
            }
            Form::Assign(names, _) if names.is_empty() => {
                self.complaint = "there is no other policy to choose";
                Outcome::Stay
            }
            _ => Outcome::Go,
        }
    }

    const fn has_fields(&self) -> bool {
        matches!(self.form, Form::Choice { .. } | Form::Name(_) | Form::Assign(..) | Form::Token(..))
    }

    fn circle(&self) -> &'static [Focus] {
        match self.form {
            Form::None | Form::Assigned(_) | Form::Policy(_) | Form::Plan(..) => &[Focus::Go, Focus::Cancel],
            Form::Name(_) | Form::Assign(..) => &[Focus::Field, Focus::Go, Focus::Cancel],
            Form::Choice { .. } | Form::Token(..) => &[Focus::Field, Focus::Second, Focus::Go, Focus::Cancel],
        }
    }
    fn next_focus(&self) -> Focus {
        let circle = self.circle();
        let at = circle.iter().position(|focus| *focus == self.focus).unwrap_or(0);
        circle[(at + 1) % circle.len()]
    }
    fn next_focus_back(&self) -> Focus {
        let circle = self.circle();
        let at = circle.iter().position(|focus| *focus == self.focus).unwrap_or(0);
        circle[(at + circle.len() - 1) % circle.len()]
    }

    fn sideways(&mut self, right: bool) {
        let turn = |choice: &mut (Vec<String>, usize)| {
            let n = choice.0.len().max(1);
            choice.1 = if right { (choice.1 + 1) % n } else { (choice.1 + n - 1) % n };
        };
        match (&mut self.form, self.focus) {
            (Form::Choice { policies, .. }, Focus::Field) => turn(policies),
            (Form::Token(_, at), Focus::Second) => {
                let n = ROLES.len();
                *at = if right { (*at + 1) % n } else { (*at + n - 1) % n };
            }
            (Form::Assign(names, at), Focus::Field) => {
                let n = names.len().max(1);
                *at = if right { (*at + 1) % n } else { (*at + n - 1) % n };
            }
            (Form::Choice { sites, .. }, Focus::Second) => turn(sites),
            (_, Focus::Go) => self.focus = Focus::Cancel,
            (_, Focus::Cancel) => self.focus = Focus::Go,
            _ => {}
        }
    }

    /// Takes a paste. Whether it went anywhere.
    pub fn paste(&mut self, pasted: &str) -> bool {
        if !self.armed {
            return false;
        }
        if self.stage() == Stage::Type {
            self.complaint = "a paste is refused here: type it out";
            return false;
        }
        match &mut self.form {
            Form::Name(line) | Form::Token(line, _) if self.focus == Focus::Field => {
                line.paste(pasted);
                true
            }
            _ => false,
        }
    }

    /// The orders that were agreed to, without their keys.
    pub fn orders(&self) -> Vec<pb::OrderRequest> {
        self.subjects
            .iter()
            .map(|subject| pb::OrderRequest {
                machine: if subject.policy().is_some() { String::new() } else { subject.machine.clone() },
                expected_version: if subject.machine.is_empty() { 0 } else { subject.version },
                confirm: if self.is_typed() { self.confirm.clone() } else { String::new() },
                order: Some(self.order(subject)),
                ..Default::default()
            })
            .collect()
    }

    fn order(&self, subject: &Subject) -> Order {
        let point = self.point.clone();
        let object = subject.object.clone();
        match &self.form {
            Form::Policy(policy) => {
                return Order::SetPolicy(pb::SetPolicy { policy: Some((**policy).clone()) });
            }
            Form::Plan(text, _) => {
                return Order::ApplyPlan(pb::ApplyPlan { text: text.clone(), dry_run: false });
            }
            Form::Assigned(policy) => {
                return Order::AssignPolicy(pb::AssignPolicy { policy: policy.clone() });
            }
            _ => {}
        }
        if matches!(self.action, Action::Approve | Action::Refuse) {
            let refuse = self.action == Action::Refuse;
            let digest = self.point.clone();
            return Order::Approve(pb::Approve { job: object, digest, refuse, reason: String::new() });
        }
        if self.action == Action::DeletePolicy {
            return Order::DeletePolicy(pb::DeletePolicy { policy: object });
        }
        if let Some(plan) = subject.plan() {
            let kind = match self.action {
                Action::Failover => "failover",
                Action::Cleanup => "cleanup",
                _ => "test-failover",
            };
            return Order::RunPlan(pb::RunPlan { plan: plan.to_owned(), kind: kind.into(), point });
        }
        match (self.action, &self.form) {
            (Action::Protect, Form::Choice { policies, sites }) => {
                let chosen = |(names, at): &(Vec<String>, usize)| names.get(*at).cloned().unwrap_or_default();
                Order::Protect(pb::Protect {
                    policy: chosen(policies),
                    target_site: chosen(sites),
                    start_at_us: None,
                })
            }
            (Action::Bookmark, Form::Name(line)) => {
                Order::Bookmark(pb::Bookmark { name: line.text().trim().to_owned(), app_consistent: false })
            }
            (Action::AppBookmark, Form::Name(line)) => {
                Order::Bookmark(pb::Bookmark { name: line.text().trim().to_owned(), app_consistent: true })
            }
            (Action::Unprotect, _) => Order::Unprotect(pb::Unprotect { keep_replica: false }),
            (Action::Pause, _) => Order::Pause(pb::Pause {}),
            (Action::Resync, _) => Order::Resync(pb::Resync { now: true }),
            (Action::Resume, _) => Order::Resume(pb::Resume {}),
            (Action::Pin, _) => Order::PinPoint(pb::PinPoint {
                point: object,
                pinned: self.point_words != "unpin",
                lock_seconds: 0,
            }),
            (Action::Verify, _) => Order::Verify(pb::Verify { point: String::new() }),
            (Action::Cleanup, _) => Order::Cleanup(pb::Cleanup { note: String::new() }),
            (Action::Failover, _) => Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point }),
            (Action::PlannedFailover, _) => {
                Order::Failover(pb::FailoverOrder { kind: "planned".into(), point: String::new() })
            }
            (Action::Commit, _) => Order::Commit(pb::Commit {}),
            // Which one is the vault's to choose; the verb names one.
            (Action::Move, _) => Order::MoveMachine(pb::MoveMachine { process_server: String::new() }),
            (Action::ChangePoint, _) => Order::ChangePoint(pb::ChangePoint { point }),
            (Action::CancelFailover, _) => Order::CancelFailover(pb::CancelFailover {}),
            (Action::Reprotect, _) => Order::Reprotect(pb::Reprotect {}),
            (Action::Failback, _) => Order::Failback(pb::Failback { kind: "planned".into() }),
            (Action::UnplannedFailback, _) => Order::Failback(pb::Failback { kind: "unplanned".into() }),
            (Action::CompleteMigration, _) => Order::CompleteMigration(pb::CompleteMigration {}),
            (Action::RetryNow, _) => Order::RetryNow(pb::RetryNow {}),
            (Action::CancelJob, _) => Order::CancelJob(pb::CancelJob { job: object }),
            (Action::Proceed, _) => Order::Proceed(pb::Proceed { job: object }),
            (Action::RetryJob, _) => Order::RetryJob(pb::RetryJob { job: object }),
            (Action::Acknowledge, _) => Order::AcknowledgeAlert(pb::AcknowledgeAlert { alert: object }),
            // A test changes nothing that lives: whatever else asked for a dialog gets that.
            _ => Order::TestFailover(pb::TestFailoverOrder { point, keep_on_failure: false }),
        }
    }
}
