//! Everything the console knows, and what keys and news do to it. Pure: no terminal, no network, no clock
//! but the vault's ticks.
//!
//! What is selected is a name, never a row number: a list that is sorted anew under the cursor keeps the
//! cursor on its machine. Nothing that changes anything is asked for without passing [`Dialog`].

use crate::link::{Link, watch};
use continuum_daemon::lab::Stage;
use continuum_model::fault::Fault;
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use pb::entity::Entity;
use pb::order_request::Order;
use pb::watch_event::Event;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What a key asks the session to do.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Try the vault now.
    Reconnect,
    /// To the clipboard.
    Copy(String),
    /// What an order would do.
    Readiness {
        /// Machine id.
        machine: String,
        /// Which verb.
        verb: String,
        /// Which point.
        point: String,
    },
    /// A machine's history.
    Timeline {
        /// Machine id.
        machine: String,
        /// From when.
        from_us: Option<i64>,
    },
    /// What a moment would give up.
    Preview {
        /// Machine id.
        machine: String,
        /// Which point.
        point: String,
    },
    /// An order that was agreed to.
    Order(Box<pb::OrderRequest>),
}

/// What the session is told.
#[derive(Debug)]
pub enum News {
    /// From the vault.
    Watch(Box<watch::News>),
    /// From the lab's start.
    Lab(Stage),
    /// Something to say across the screen.
    Banner(Banner),
    /// An answer.
    Readiness {
        /// Machine id.
        machine: String,
        /// Which verb.
        verb: String,
        /// Which point.
        point: String,
        /// The report.
        reply: Result<pb::ReadinessReply, Fault>,
    },
    /// An answer.
    Timeline {
        /// Machine id.
        machine: String,
        /// The history.
        reply: Result<pb::TimelineReply, Fault>,
    },
    /// An answer.
    Preview {
        /// Machine id.
        machine: String,
        /// Which point.
        point: String,
        /// The preview.
        reply: Result<pb::PreviewReply, Fault>,
    },
    /// An answer.
    Ordered(Result<Box<pb::OrderReply>, Fault>),
}

/// Something that stays across the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Banner {
    /// In words.
    pub text: String,
}

/// Which screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// Is everything recoverable right now?
    Pulse,
    /// Sites and what stands there.
    Sites,
    /// Protections.
    Machines,
    /// One machine.
    Machine(Tab),
    /// Jobs.
    Jobs,
    /// One job, large.
    Run,
    /// Alerts.
    Alerts,
    /// Servers.
    Servers,
}

/// A tab of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// In short.
    Overview,
    /// Its disks.
    Disks,
    /// Its history.
    Points,
    /// What happened.
    Events,
}

/// A question before an order.
#[derive(Debug, Clone)]
pub struct Dialog {
    /// Machine id: the dialog is about this one, whatever the cursor does.
    pub machine: String,
    /// Its name.
    pub name: String,
    /// Which verb.
    pub verb: String,
    /// Which point.
    pub point: String,
    /// The report; `None` until it came.
    pub report: Option<pb::ReadinessReply>,
    /// What was typed.
    pub typed: String,
}

/// A line that is being typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// `/`
    Filter,
    /// `:`
    Palette(String),
}

/// Where the connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// Not yet.
    Starting,
    /// Live.
    Live,
    /// Lost; what is shown is old.
    Lost {
        /// Why.
        why: String,
    },
}

/// A moment on the timeline of the Points tab.
#[derive(Debug, Clone, Default)]
pub struct Points {
    /// Of which machine.
    pub machine: String,
    /// What is known.
    pub timeline: Option<pb::TimelineReply>,
    /// Where the cursor is.
    pub cursor_us: i64,
    /// What it would give up there.
    pub preview: Option<(i64, pb::PreviewReply)>,
}

/// One action: the one place that help, footer, palette and keys are made of.
pub struct Action {
    /// Its name in the palette.
    pub id: &'static str,
    /// Its key.
    pub key: &'static str,
    /// In words.
    pub label: &'static str,
}

/// All actions.
pub const ACTIONS: [Action; 22] = [
    Action { id: "pulse", key: "1", label: "is everything recoverable right now?" },
    Action { id: "sites", key: "2", label: "sites and what stands there" },
    Action { id: "machines", key: "3", label: "protections" },
    Action { id: "jobs", key: "5", label: "jobs, running and past" },
    Action { id: "alerts", key: "6", label: "alerts, open ones first" },
    Action { id: "servers", key: "7", label: "vault, process servers, targets, agents" },
    Action { id: "test-failover", key: "t", label: "drill: bring up beside the replica" },
    Action { id: "cleanup", key: "C", label: "end a drill and remove it" },
    Action { id: "failover", key: "F", label: "bring up for good (asks for the name)" },
    Action { id: "commit", key: "M", label: "make a failover final (asks for the name)" },
    Action { id: "verify", key: "v", label: "compare source and replica" },
    Action { id: "bookmark", key: "b", label: "name this moment" },
    Action { id: "pause", key: "p", label: "pause replication" },
    Action { id: "resume", key: "u", label: "resume replication" },
    Action { id: "protect", key: "P", label: "begin protection" },
    Action { id: "unprotect", key: "U", label: "end protection (asks for the name)" },
    Action { id: "retry-now", key: "r", label: "try a broken connection now" },
    Action { id: "copy", key: "y", label: "copy the command line of this" },
    Action { id: "filter", key: "/", label: "show only what matches" },
    Action { id: "sort", key: "s", label: "sort by the next column" },
    Action { id: "theme", key: "", label: "theme NAME: change colours" },
    Action { id: "quit", key: "q", label: "leave (jobs go on)" },
];

/// The console's state.
pub struct State {
    /// Colours and marks.
    pub theme: super::theme::Theme,
    /// Marks from ASCII only.
    pub ascii: bool,
    /// Calls go over it.
    pub link: Option<Link>,
    /// Who we are.
    pub who: Option<pb::WhoAmIReply>,
    /// The connection.
    pub connection: Connection,
    /// When the vault last said anything, by its clock.
    pub vault_time_us: i64,
    /// Seconds since then.
    pub silent_seconds: u32,
    /// The lab's start.
    pub lab: Option<Stage>,
    /// Across the screen.
    pub banner: Option<Banner>,
    /// What there is.
    pub machines: BTreeMap<String, pb::Machine>,
    /// What there is.
    pub sites: BTreeMap<String, pb::Site>,
    /// What there is.
    pub servers: BTreeMap<String, pb::Server>,
    /// What there is.
    pub jobs: BTreeMap<String, pb::Job>,
    /// What there is.
    pub alerts: BTreeMap<String, pb::Alert>,
    /// What happened, newest last.
    pub events: Vec<pb::Event>,
    /// Where we are.
    pub screen: Screen,
    /// Where we came from.
    pub back: Vec<Screen>,
    /// Selected, by id, on each screen.
    pub selected: BTreeMap<&'static str, String>,
    /// The machine that is open.
    pub machine: String,
    /// The job that is open.
    pub job: String,
    /// Shown only where it matches.
    pub filter: String,
    /// Sorted by this column.
    pub sort: usize,
    /// A line that is being typed.
    pub input: Option<Input>,
    /// A question.
    pub dialog: Option<Dialog>,
    /// Help is open.
    pub help: bool,
    /// The Points tab.
    pub points: Points,
    /// A toast, and how many seconds it stays.
    pub toast: Option<(String, u32)>,
    /// Leave.
    pub leaving: bool,
    asked: Vec<Ask>,
    snapshot: Option<Box<Snapshot>>,
}

#[derive(Default)]
struct Snapshot {
    entities: Vec<Entity>,
}

impl State {
    /// Before anything is known.
    pub fn new(theme: super::theme::Theme, ascii: bool) -> Self {
        Self {
            theme,
            ascii,
            link: None,
            who: None,
            connection: Connection::Starting,
            vault_time_us: 0,
            silent_seconds: 0,
            lab: None,
            banner: None,
            machines: BTreeMap::new(),
            sites: BTreeMap::new(),
            servers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            alerts: BTreeMap::new(),
            events: Vec::new(),
            screen: Screen::Pulse,
            back: Vec::new(),
            selected: BTreeMap::new(),
            machine: String::new(),
            job: String::new(),
            filter: String::new(),
            sort: 0,
            input: None,
            dialog: None,
            help: false,
            points: Points::default(),
            toast: None,
            leaving: false,
            asked: Vec::new(),
            snapshot: None,
        }
    }

    /// Takes news. Returns whether anything that is shown changed.
    pub fn news(&mut self, news: News) -> bool {
        match news {
            News::Lab(stage) => {
                self.lab = (stage.done < stage.total).then_some(stage);
                true
            }
            News::Banner(banner) => {
                self.banner = Some(banner);
                true
            }
            News::Watch(news) => self.watch(*news),
            News::Readiness { machine, verb, point, reply } => {
                let Some(dialog) = self.dialog.as_mut().filter(|dialog| {
                    dialog.machine == machine && dialog.verb == verb && dialog.point == point
                }) else {
                    return false;
                };
                match reply {
                    Ok(report) => dialog.report = Some(report),
                    Err(fault) => {
                        self.dialog = None;
                        self.say(fault.message);
                    }
                }
                true
            }
            News::Timeline { machine, reply } => {
                if machine != self.points.machine {
                    return false;
                }
                match reply {
                    Ok(timeline) => {
                        if self.points.cursor_us == 0 || self.points.cursor_us > timeline.newest_us {
                            self.points.cursor_us = timeline.newest_us;
                            self.ask_preview();
                        }
                        self.points.timeline = Some(timeline);
                    }
                    Err(fault) => self.say(fault.message),
                }
                true
            }
            News::Preview { machine, point, reply } => {
                let at = point.parse::<Timestamp>().map(Timestamp::micros).unwrap_or(0);
                if machine == self.points.machine
                    && at == self.points.cursor_us
                    && let Ok(preview) = reply
                {
                    self.points.preview = Some((at, preview));
                    return true;
                }
                false
            }
            News::Ordered(Ok(reply)) => {
                if let Some(job) = reply.job.filter(|job| !job.id.is_empty()) {
                    let large =
                        matches!(job.kind.as_str(), "test-failover" | "failover" | "verify" | "cleanup");
                    self.job = job.id.clone();
                    self.say(format!("{} of {}: ordered", job.kind, shown(&job.machine)));
                    self.jobs.insert(job.id.clone(), job);
                    if large {
                        self.go(Screen::Run);
                    }
                } else {
                    self.say("done".into());
                }
                true
            }
            News::Ordered(Err(fault)) => {
                self.say(format!("{} - next: {}", fault.message, fault.remedy));
                true
            }
        }
    }

    fn watch(&mut self, news: watch::News) -> bool {
        match news {
            watch::News::Dialling { .. } => false,
            watch::News::Connected { link, who } => {
                (self.link, self.who) = (Some(*link), Some(who));
                self.connection = Connection::Live;
                self.banner = None;
                true
            }
            watch::News::Lost { fault, .. } => {
                self.link = None;
                if self.connection != Connection::Starting {
                    self.connection = Connection::Lost { why: fault.message };
                    // A dialog that cannot be agreed to any more closes by itself.
                    self.dialog = None;
                }
                true
            }
            watch::News::Events(events) => {
                self.silent_seconds = 0;
                for event in events {
                    match event.event {
                        Some(Event::SnapshotBegin(_)) => self.snapshot = Some(Box::default()),
                        Some(Event::Changed(pb::Entity { entity: Some(entity) })) => match &mut self.snapshot
                        {
                            Some(snapshot) => snapshot.entities.push(entity),
                            None => self.entity(entity),
                        },
                        Some(Event::Removed(removed)) => {
                            self.jobs.remove(&removed.id);
                            self.machines.remove(&removed.id);
                            self.servers.remove(&removed.id);
                        }
                        Some(Event::SnapshotEnd(_)) => {
                            // Whole or not at all: what is gone meanwhile is gone here, too.
                            if let Some(snapshot) = self.snapshot.take() {
                                self.machines.clear();
                                self.sites.clear();
                                self.servers.clear();
                                self.jobs.clear();
                                self.alerts.clear();
                                self.events.clear();
                                snapshot.entities.into_iter().for_each(|entity| self.entity(entity));
                            }
                        }
                        Some(Event::Tick(tick)) => self.vault_time_us = tick.vault_time_us,
                        Some(Event::Changed(_)) | None => {}
                    }
                }
                true
            }
        }
    }

    fn entity(&mut self, entity: Entity) {
        match entity {
            Entity::Machine(machine) => drop(self.machines.insert(machine.id.clone(), machine)),
            Entity::Site(site) => drop(self.sites.insert(site.id.clone(), site)),
            Entity::Server(server) => drop(self.servers.insert(server.id.clone(), server)),
            Entity::Alert(alert) => drop(self.alerts.insert(alert.id.clone(), alert)),
            Entity::Policy(_) => {}
            Entity::Job(job) => {
                let before = self.jobs.insert(job.id.clone(), job.clone()).map(|job| job.state);
                let over = matches!(job.state.as_str(), "succeeded" | "failed" | "cancelled" | "warnings");
                if over
                    && before.is_some_and(|state| state != job.state)
                    && !(self.screen == Screen::Run && self.job == job.id)
                {
                    self.say(format!("{} of {}: {}", job.kind, shown(&job.machine), job.state));
                }
            }
            Entity::Event(event) => {
                self.events.push(event);
                if self.events.len() > 2000 {
                    self.events.drain(..1000);
                }
            }
        }
    }

    /// A second went by. Returns whether anything that is shown changed.
    pub fn tick(&mut self) -> bool {
        self.silent_seconds = self.silent_seconds.saturating_add(1);
        if let Some((_, left)) = &mut self.toast {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.toast = None;
                return true;
            }
        }
        matches!(self.connection, Connection::Lost { .. })
    }

    /// What news made us ask.
    pub fn follow_up(&mut self) -> Vec<Ask> {
        std::mem::take(&mut self.asked)
    }

    fn say(&mut self, text: String) {
        self.toast = Some((shown(&text), 6));
    }

    fn go(&mut self, screen: Screen) {
        if self.screen != screen {
            self.back.push(self.screen);
            self.screen = screen;
        }
        if screen == Screen::Machine(Tab::Points) && self.points.machine != self.machine {
            self.points = Points { machine: self.machine.clone(), ..Points::default() };
        }
        if screen == Screen::Machine(Tab::Points) {
            self.asked.push(Ask::Timeline { machine: self.machine.clone(), from_us: None });
        }
    }

    /// Pasted text goes into a line that is being typed; it never agrees to anything.
    pub fn paste(&mut self, text: &str) {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        match &mut self.input {
            Some(Input::Palette(line)) => line.push_str(&text),
            Some(Input::Filter) => self.filter.push_str(&text),
            None if self.dialog.is_some() => self.say("a paste does not confirm: type the name".into()),
            None => {}
        }
    }

    /// Takes a key.
    pub fn key(&mut self, key: KeyEvent) -> Vec<Ask> {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        if ctrl && key.code == KeyCode::Char('c') {
            if self.input.take().is_none() && self.dialog.take().is_none() {
                self.leaving = true;
            }
        } else if self.help {
            self.help = false;
        } else if self.dialog.is_some() {
            self.dialog_key(key);
        } else if self.input.is_some() {
            self.input_key(key);
        } else {
            self.screen_key(key);
        }
        std::mem::take(&mut self.asked)
    }

    fn dialog_key(&mut self, key: KeyEvent) {
        let Some(dialog) = &mut self.dialog else { return };
        let Some(report) = dialog.report.clone() else {
            if key.code == KeyCode::Esc {
                self.dialog = None;
            }
            return;
        };
        let typed = dialog.verb == "bookmark" || !report.confirm.is_empty();
        match key.code {
            KeyCode::Esc => self.dialog = None,
            KeyCode::Backspace if typed => drop(dialog.typed.pop()),
            KeyCode::Char(c) if typed => dialog.typed.push(c),
            KeyCode::Enter
                if typed
                    && report.ready
                    && (dialog.verb == "bookmark" && !dialog.typed.is_empty()
                        || dialog.typed == report.confirm && !report.confirm.is_empty()) =>
            {
                self.order();
            }
            KeyCode::Char('y') if !typed && report.ready => self.order(),
            KeyCode::Char('n') if !typed => self.dialog = None,
            _ => {}
        }
    }

    /// The only road to an order: a dialog that was agreed to.
    fn order(&mut self) {
        let Some(dialog) = self.dialog.take() else { return };
        let report = dialog.report.unwrap_or_default();
        let order = match dialog.verb.as_str() {
            "test-failover" => {
                Order::TestFailover(pb::TestFailoverOrder { point: dialog.point, keep_on_failure: false })
            }
            "failover" => {
                Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: dialog.point })
            }
            "cleanup" => Order::Cleanup(pb::Cleanup::default()),
            "commit" => Order::Commit(pb::Commit {}),
            "verify" => Order::Verify(pb::Verify::default()),
            "bookmark" => Order::Bookmark(pb::Bookmark { name: dialog.typed.clone(), app_consistent: false }),
            "pause" => Order::Pause(pb::Pause {}),
            "resume" => Order::Resume(pb::Resume {}),
            "protect" => Order::Protect(pb::Protect::default()),
            "unprotect" => Order::Unprotect(pb::Unprotect::default()),
            "retry-now" => Order::RetryNow(pb::RetryNow {}),
            _ => return,
        };
        self.asked.push(Ask::Order(Box::new(pb::OrderRequest {
            key: Uuid::now_v7().to_string(),
            machine: dialog.machine,
            // Only what was decided on: a bookmark may come late, a failover not.
            expected_version: if report.destroys { report.machine_version } else { 0 },
            confirm: if report.confirm.is_empty() { String::new() } else { dialog.typed },
            order: Some(order),
        })));
    }

    fn open_dialog(&mut self, verb: &str) {
        if self.link.is_none() {
            self.say("not connected: what is shown is old, and nothing can be ordered".into());
            return;
        }
        let Some(machine) = self.target_machine() else {
            self.say("choose a machine first: press 3".into());
            return;
        };
        let (id, name) = (machine.id.clone(), machine.name.clone());
        let at_points = self.screen == Screen::Machine(Tab::Points) && self.points.cursor_us > 0;
        let point = if at_points && matches!(verb, "test-failover" | "failover") {
            Timestamp::from_micros(self.points.cursor_us).to_string()
        } else {
            String::new()
        };
        self.asked.push(Ask::Readiness { machine: id.clone(), verb: verb.into(), point: point.clone() });
        self.dialog =
            Some(Dialog { machine: id, name, verb: verb.into(), point, report: None, typed: String::new() });
    }

    /// The machine that an order is about.
    pub fn target_machine(&self) -> Option<&pb::Machine> {
        match self.screen {
            Screen::Machine(_) => self.machines.get(&self.machine),
            Screen::Pulse | Screen::Machines => self.machines.get(self.selection("machines")?),
            Screen::Run => self.jobs.get(&self.job).and_then(|job| self.machines.get(&job.machine_id)),
            Screen::Sites | Screen::Jobs | Screen::Alerts | Screen::Servers => None,
        }
    }

    /// What is selected in a list; the first row where nothing was chosen yet.
    pub fn selection(&self, list: &'static str) -> Option<&String> {
        self.selected.get(list)
    }

    fn input_key(&mut self, key: KeyEvent) {
        let Some(input) = self.input.take() else { return };
        match (input, key.code) {
            (Input::Filter, KeyCode::Esc) => self.filter.clear(),
            (_, KeyCode::Esc) => {}
            (Input::Filter, KeyCode::Enter) => {}
            (Input::Filter, KeyCode::Backspace) => {
                self.filter.pop();
                self.input = Some(Input::Filter);
            }
            (Input::Filter, KeyCode::Char(c)) => {
                self.filter.push(c);
                self.input = Some(Input::Filter);
            }
            (Input::Palette(line), KeyCode::Enter) => self.command(&line),
            (Input::Palette(mut line), KeyCode::Backspace) => {
                line.pop();
                self.input = Some(Input::Palette(line));
            }
            (Input::Palette(line), KeyCode::Tab) => {
                let hit = ACTIONS.iter().find(|action| action.id.starts_with(line.as_str()));
                self.input = Some(Input::Palette(hit.map_or(line, |action| action.id.to_owned())));
            }
            (Input::Palette(mut line), KeyCode::Char(c)) => {
                line.push(c);
                self.input = Some(Input::Palette(line));
            }
            (input, _) => self.input = Some(input),
        }
    }

    fn command(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let (verb, argument) = (words.next().unwrap_or_default().to_owned(), words.next());
        if verb == "theme" {
            let name = argument.unwrap_or("default");
            match super::theme::Theme::named(name, true) {
                Some(theme) => self.theme = theme,
                None => {
                    self.say(format!("there is no theme {name}: {}", super::theme::Theme::names().join(", ")))
                }
            }
            return;
        }
        if let Some(name) = argument {
            let found =
                self.machines.values().find(|machine| machine.name == name).map(|machine| machine.id.clone());
            match found {
                Some(id) => drop(self.selected.insert("machines", id.clone())),
                None => {
                    self.say(format!("there is no machine {name}"));
                    return;
                }
            }
            if !matches!(self.screen, Screen::Machines | Screen::Pulse) {
                self.go(Screen::Machines);
            }
        }
        if ACTIONS.iter().any(|action| action.id == verb) {
            self.act(&verb);
        } else {
            self.say(format!("there is no command {verb}: press ? for all of them"));
        }
    }

    fn screen_key(&mut self, key: KeyEvent) {
        match key.code {
            KeyCode::Char('?') => self.help = true,
            KeyCode::Char('/') => self.input = Some(Input::Filter),
            KeyCode::Char(':') => self.input = Some(Input::Palette(String::new())),
            KeyCode::Esc => {
                if let Some(screen) = self.back.pop() {
                    self.screen = screen;
                }
            }
            KeyCode::Tab if matches!(self.screen, Screen::Machine(_)) => {
                let Screen::Machine(tab) = self.screen else { return };
                let next = match tab {
                    Tab::Overview => Tab::Disks,
                    Tab::Disks => Tab::Points,
                    Tab::Points => Tab::Events,
                    Tab::Events => Tab::Overview,
                };
                self.go(Screen::Machine(next));
                self.back.pop();
            }
            KeyCode::Enter => self.enter(),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(10),
            KeyCode::PageUp => self.step(-10),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN / 2),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX / 2),
            KeyCode::Left | KeyCode::Char('h') => self.along(-1_000_000),
            KeyCode::Right | KeyCode::Char('l') => self.along(1_000_000),
            KeyCode::Char('[') => self.along(-60_000_000),
            KeyCode::Char(']') => self.along(60_000_000),
            KeyCode::Char(c) => {
                let text = c.to_string();
                if let Some(action) = ACTIONS.iter().find(|action| action.key == text) {
                    self.act(action.id);
                }
            }
            _ => {}
        }
    }

    fn act(&mut self, id: &str) {
        match id {
            "pulse" => self.go(Screen::Pulse),
            "sites" => self.go(Screen::Sites),
            "machines" => self.go(Screen::Machines),
            "jobs" => self.go(Screen::Jobs),
            "alerts" => self.go(Screen::Alerts),
            "servers" => self.go(Screen::Servers),
            "quit" => self.leaving = true,
            "filter" => self.input = Some(Input::Filter),
            "sort" => self.sort = (self.sort + 1) % 5,
            "retry-now" if self.link.is_none() => self.asked.push(Ask::Reconnect),
            "copy" => {
                let text = match (&self.dialog, self.target_machine()) {
                    (Some(Dialog { report: Some(report), .. }), _) => report.command.clone(),
                    (_, Some(machine)) => format!("continuum describe machine {}", shown(&machine.name)),
                    _ => "continuum get machines".into(),
                };
                self.say(format!("sent to the terminal: {text}"));
                self.asked.push(Ask::Copy(text));
            }
            "theme" => self.say(format!("themes: {}", super::theme::Theme::names().join(", "))),
            verb => self.open_dialog(verb),
        }
    }

    fn enter(&mut self) {
        match self.screen {
            Screen::Pulse | Screen::Machines => {
                if let Some(id) =
                    self.selection("machines").cloned().filter(|id| self.machines.contains_key(id))
                {
                    self.machine = id;
                    self.go(Screen::Machine(Tab::Overview));
                }
            }
            Screen::Jobs => {
                if let Some(id) = self.selection("jobs").cloned().filter(|id| self.jobs.contains_key(id)) {
                    self.job = id;
                    self.go(Screen::Run);
                }
            }
            Screen::Alerts => {
                let alert = self.selection("alerts").and_then(|id| self.alerts.get(id));
                if let Some(id) =
                    alert.map(|alert| alert.object_id.clone()).filter(|id| self.machines.contains_key(id))
                {
                    self.machine = id;
                    self.go(Screen::Machine(Tab::Overview));
                }
            }
            Screen::Sites | Screen::Machine(_) | Screen::Run | Screen::Servers => {}
        }
    }

    /// Moves the selection of the list that is shown.
    fn step(&mut self, by: isize) {
        if self.screen == Screen::Machine(Tab::Points) {
            self.step_point(by);
            return;
        }
        let (list, ids): (&'static str, Vec<String>) = match self.screen {
            Screen::Pulse | Screen::Machines => {
                ("machines", self.machine_rows().iter().map(|machine| machine.id.clone()).collect())
            }
            Screen::Jobs => ("jobs", self.job_rows().iter().map(|job| job.id.clone()).collect()),
            Screen::Alerts => ("alerts", self.alert_rows().iter().map(|alert| alert.id.clone()).collect()),
            Screen::Servers => {
                ("servers", self.server_rows().iter().map(|server| server.id.clone()).collect())
            }
            Screen::Sites | Screen::Machine(_) | Screen::Run => return,
        };
        if ids.is_empty() {
            return;
        }
        let at = self.selection(list).and_then(|id| ids.iter().position(|other| other == id));
        let to = match at {
            Some(at) => (at as isize).saturating_add(by).clamp(0, ids.len() as isize - 1) as usize,
            None if by > 1 => ids.len() - 1,
            None => 0,
        };
        self.selected.insert(list, ids[to].clone());
    }

    /// Moves the timeline's cursor to the next listed point.
    fn step_point(&mut self, by: isize) {
        let Some(timeline) = &self.points.timeline else { return };
        let at = self.points.cursor_us;
        let times = timeline.points.iter().map(|point| point.time_us);
        let to = if by < 0 {
            times.filter(|time| *time < at).max()
        } else {
            times.filter(|time| *time > at).min()
        };
        let to = to.unwrap_or(if by < 0 { timeline.oldest_us } else { timeline.newest_us });
        self.points.cursor_us = to;
        self.ask_preview();
    }

    /// Moves the timeline's cursor by a span.
    fn along(&mut self, by_us: i64) {
        if self.screen != Screen::Machine(Tab::Points) {
            return;
        }
        let Some(timeline) = &self.points.timeline else { return };
        let (oldest, newest) = (timeline.oldest_us, timeline.newest_us.max(timeline.oldest_us));
        self.points.cursor_us = (self.points.cursor_us + by_us).clamp(oldest, newest);
        self.ask_preview();
    }

    fn ask_preview(&mut self) {
        let point = Timestamp::from_micros(self.points.cursor_us).to_string();
        self.asked.push(Ask::Preview { machine: self.points.machine.clone(), point });
    }

    fn matches(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }

    /// Machines that match, in order: worst first unless sorted otherwise.
    pub fn machine_rows(&self) -> Vec<&pb::Machine> {
        let mut rows: Vec<_> = self
            .machines
            .values()
            .filter(|machine| {
                self.matches(&format!(
                    "{} {} {} {}",
                    machine.name, machine.state, machine.site, machine.health
                ))
            })
            .collect();
        let rank = |machine: &pb::Machine| match machine.health.as_str() {
            "critical" => 0,
            "warning" => 1,
            "healthy" => 2,
            _ => 3,
        };
        match self.sort {
            1 => rows.sort_by(|a, b| a.state.cmp(&b.state).then_with(|| a.name.cmp(&b.name))),
            2 => rows.sort_by(|a, b| b.rpo_seconds.unwrap_or(-1.0).total_cmp(&a.rpo_seconds.unwrap_or(-1.0))),
            3 => rows.sort_by_key(|machine| std::cmp::Reverse(machine.churn_bytes_per_sec)),
            4 => rows.sort_by(|a, b| a.site.cmp(&b.site).then_with(|| a.name.cmp(&b.name))),
            _ => rows.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))),
        }
        rows
    }

    /// Jobs that match, newest first.
    pub fn job_rows(&self) -> Vec<&pb::Job> {
        let mut rows: Vec<_> = self
            .jobs
            .values()
            .filter(|job| self.matches(&format!("{} {} {}", job.kind, job.machine, job.state)))
            .collect();
        rows.sort_by_key(|job| std::cmp::Reverse(job.created_us));
        rows
    }

    /// Alerts that match: open ones first, newest first.
    pub fn alert_rows(&self) -> Vec<&pb::Alert> {
        let mut rows: Vec<_> = self
            .alerts
            .values()
            .filter(|alert| self.matches(&format!("{} {}", alert.object, alert.text)))
            .collect();
        rows.sort_by_key(|alert| (alert.cleared_us.is_some(), std::cmp::Reverse(alert.opened_us)));
        rows
    }

    /// Servers that match, by role.
    pub fn server_rows(&self) -> Vec<&pb::Server> {
        let mut rows: Vec<_> = self
            .servers
            .values()
            .filter(|server| self.matches(&format!("{} {} {}", server.name, server.role, server.site)))
            .collect();
        rows.sort_by(|a, b| b.role.cmp(&a.role).then_with(|| a.name.cmp(&b.name)));
        rows
    }
}
