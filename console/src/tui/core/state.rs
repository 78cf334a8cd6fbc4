//! Everything that the console knows, in one place and with one owner.

use super::super::cmd::keys::{Chord, Keys};
use super::super::cmd::{Action, Context};
use super::dialog::Dialog;
use super::estate::Estate;
use super::form::Form;
use super::line::Line;
use super::palette::Palette;
use super::rows;
use super::table::{Rows, Table};
use super::timeline::Timeline;
use crate::link::watch::News;
use continuum_model::fault::Fault;
use continuum_proto::v1 as pb;
use std::collections::{BTreeSet, HashMap};

/// How long the cursor rests before what is known of its row is shown beside the table, in microseconds: over a
/// slow line a held key moves a row, and not a page of details with it.
const REST_US: i64 = 150_000;
/// How long a toast stays, in microseconds.
pub const TOAST_US: i64 = 8_000_000;
/// So many toasts at once.
const TOASTS_MAX: usize = 4;

/// What comes in.
#[derive(Debug)]
pub enum Message {
    /// A key.
    Key(Chord),
    /// Pasted text.
    Paste(String),
    /// The wheel: lines, up where negative.
    Wheel(isize),
    /// A click: column and row.
    Click(u16, u16),
    /// The terminal has another size.
    Resize(u16, u16),
    /// Time went on; nothing else.
    Tick,
    /// News of the vault, with the generation of their connection. The link itself stays with `app`.
    News(u64, Box<News>),
    /// The answer to an effect.
    Answer(u64, Box<Answer>),
    /// How the start goes on.
    Start(Start),
    /// The dialog stood on the screen, and what had been typed is gone.
    Armed,
    /// Something to be said.
    Say(Tone, String),
    /// Another key map.
    Keys(Box<Keys>),
    /// Themes that there are, and the one in use.
    Themes(Vec<String>, String),
}

/// How the way to a first connection goes, told by whoever starts what the console connects to.
#[derive(Debug, Clone)]
pub enum Start {
    /// A line for the operator: what is being started.
    Progress(String),
    /// The target can be dialled from now on.
    Ready,
    /// It will not come.
    Failed(Box<Fault>),
}

/// An answer of the vault.
#[derive(Debug)]
pub enum Answer {
    /// To a stretch of history.
    Timeline(Result<pb::TimelineReply, Fault>),
    /// To a moment.
    Preview(Result<pb::PreviewReply, Fault>),
    /// To an order that is only considered.
    Readiness(Result<pb::ReadinessReply, Fault>),
    /// To an order.
    Order(Result<pb::OrderReply, Fault>),
    /// Who is let in.
    Access(Result<pb::AccessReply, Fault>),
    /// A page of the audit log.
    Audit(Result<pb::AuditReply, Fault>),
    /// To a request for a token.
    Token(Result<pb::CreateTokenReply, Fault>),
    /// To a revocation.
    Revoked(Result<pb::RevokeReply, Fault>),
    /// Whether an order is allowed.
    CanI(Result<pb::CanIReply, Fault>),
}

/// What is to be done outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Leave.
    Quit,
    /// Fetch a stretch of history.
    Timeline(u64, pb::TimelineRequest),
    /// Ask about a moment.
    Preview(u64, pb::PreviewRequest),
    /// Ask what an order would do.
    Readiness(u64, Box<pb::ReadinessRequest>),
    /// Give an order. The only road from here to a change of anything.
    Order(u64, Box<pb::OrderRequest>),
    /// Ask who is let in.
    Access(u64),
    /// Ask for a page of the audit log.
    Audit(u64, pb::AuditRequest),
    /// Ask whether an order is allowed.
    CanI(u64, pb::CanIRequest),
    /// Make a token. As an order, out of an agreed dialog only.
    Token(u64, pb::CreateTokenRequest),
    /// Take access away. As an order, out of an agreed dialog only.
    Revoke(u64, pb::RevokeRequest),
    /// Put a text on the operator's clipboard.
    Copy(String),
    /// Write a file into the working directory: stem, ending, content.
    Export(String, &'static str, String),
    /// Throw away what was typed before now, then answer [`Message::Armed`].
    Arm,
    /// Dial at once.
    Nudge,
    /// Use this theme from now on.
    Theme(String),
    /// Glyphs or ASCII.
    Ascii(bool),
}

/// How the connection stands.
#[derive(Debug, Clone)]
pub enum Connection {
    /// What it is made to is still being started.
    Starting,
    /// Somebody is being dialled for the first time.
    Dialling,
    /// News come in.
    Live,
    /// Lost, or never made.
    Lost {
        /// Why.
        fault: Box<Fault>,
        /// Since when, wall clock.
        since: i64,
        /// When it is tried again, wall clock.
        again_at: i64,
        /// How often it was tried.
        failures: u32,
    },
}

/// A tab of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// What it is and how it does.
    Overview,
    /// Its disks.
    Disks,
    /// Its history.
    Points,
    /// What happened to it.
    Events,
}

impl Tab {
    /// All of them, in order.
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Overview, "Overview"),
        (Self::Disks, "Disks"),
        (Self::Points, "Points"),
        (Self::Events, "Events"),
    ];
    /// The next one, or the one before, round.
    pub fn turn(self, forward: bool) -> Self {
        let at = Self::ALL.iter().position(|(tab, _)| *tab == self).unwrap_or(0);
        let n = Self::ALL.len();
        Self::ALL[if forward { (at + 1) % n } else { (at + n - 1) % n }].0
    }
}

/// Where the operator is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Is everything recoverable?
    Pulse,
    /// The tree.
    Sites,
    /// The table of protections.
    Machines,
    /// One machine, by id.
    Machine(String, Tab),
    /// Jobs.
    Jobs,
    /// One job, by id: the run screen.
    Job(String),
    /// Alerts.
    Alerts,
    /// Servers.
    Servers,
    /// Policies.
    Policies,
    /// Recovery plans.
    Plans,
    /// Operators and tokens.
    Access,
    /// The audit log.
    Audit,
}

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// Machines, worst first.
    Pulse,
    /// The tree.
    Sites,
    /// Machines.
    Machines,
    /// Jobs.
    Jobs,
    /// Alerts.
    Alerts,
    /// Servers.
    Servers,
    /// Policies.
    Policies,
    /// Recovery plans.
    Plans,
    /// Operators and tokens.
    Access,
    /// The audit log.
    Audit,
    /// Events of the machine that is open.
    Events,
}

const TABLES: usize = 11;

impl Place {
    /// Its table.
    pub const fn table(&self) -> Option<TableKind> {
        match self {
            Self::Pulse => Some(TableKind::Pulse),
            Self::Sites => Some(TableKind::Sites),
            Self::Machines => Some(TableKind::Machines),
            Self::Jobs => Some(TableKind::Jobs),
            Self::Alerts => Some(TableKind::Alerts),
            Self::Servers => Some(TableKind::Servers),
            Self::Policies => Some(TableKind::Policies),
            Self::Plans => Some(TableKind::Plans),
            Self::Access => Some(TableKind::Access),
            Self::Audit => Some(TableKind::Audit),
            Self::Machine(_, Tab::Events) => Some(TableKind::Events),
            Self::Machine(..) | Self::Job(_) => None,
        }
    }
    /// The screen that it belongs to: its key and its name.
    pub const fn screen(&self) -> (char, &'static str) {
        match self {
            Self::Pulse => ('1', "Pulse"),
            Self::Sites => ('2', "Sites"),
            Self::Machines | Self::Machine(..) => ('3', "Machines"),
            Self::Jobs | Self::Job(_) => ('5', "Jobs"),
            Self::Alerts => ('6', "Alerts"),
            Self::Servers => ('7', "Servers"),
            Self::Policies => ('8', "Policies"),
            Self::Plans => ('4', "Plans"),
            Self::Access => ('9', "Access"),
            Self::Audit => ('9', "Audit log"),
        }
    }
    /// Where keys are looked for, the inner place first.
    pub const fn contexts(&self) -> &'static [Context] {
        match self {
            Self::Machine(_, Tab::Points) => &[Context::Timeline, Context::Global],
            Self::Machine(_, Tab::Events) => &[Context::Machine, Context::Table, Context::Global],
            Self::Machine(..) => &[Context::Machine, Context::Global],
            Self::Job(_) => &[Context::Run, Context::Global],
            Self::Access | Self::Audit => &[Context::Access, Context::Table, Context::Global],
            Self::Policies | Self::Plans => &[Context::Edited, Context::Table, Context::Global],
            _ => &[Context::Table, Context::Global],
        }
    }
}

/// How urgent something said is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Done.
    Good,
    /// To know.
    Note,
    /// To look at.
    Bad,
}

/// Something said at the lower edge for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toast {
    /// How urgent.
    pub tone: Tone,
    /// What; harmless.
    pub text: String,
    /// Until when, wall clock.
    pub until: i64,
}

/// What lies over the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Overlay {
    /// The keys.
    Help {
        /// The first line shown.
        scroll: usize,
    },
    /// What can be done here.
    Menu {
        /// The chosen line.
        at: usize,
    },
    /// Which columns are shown.
    Columns {
        /// The chosen line.
        at: usize,
    },
}

/// An order on its way.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Which.
    pub action: Action,
    /// What it is about, in words.
    pub about: String,
    /// Whether its job is to be shown when it begins.
    pub show: bool,
}

/// What the pane beside a table is about. It follows the cursor when that rests.
#[derive(Debug, Default)]
struct Detailed {
    place: Option<Place>,
    id: Option<String>,
    /// Where the cursor went since, and when.
    moved: Option<(String, i64)>,
}

/// Everything.
#[derive(Debug)]
pub struct State {
    /// The wall clock here, in microseconds of UTC.
    pub now: i64,
    /// How far the vault's clock is ahead of ours.
    pub skew: i64,
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// How the connection stands.
    pub connection: Connection,
    /// The newest generation that was heard of.
    pub generation: u64,
    /// When something was heard last, wall clock.
    pub heard: Option<i64>,
    /// Who we are there, and what it is.
    pub who: Option<pb::WhoAmIReply>,
    /// Lines about the start.
    pub start_lines: Vec<String>,
    /// Why the start failed.
    pub start_failed: Option<Box<Fault>>,
    /// What the vault told.
    pub estate: Estate,
    /// Where the operator is.
    pub place: Place,
    /// Where the operator was.
    pub back: Vec<Place>,
    /// Branches of the tree that are closed.
    pub closed: BTreeSet<String>,
    /// The timeline of the machine that is open.
    pub timeline: Option<Timeline>,
    /// What lies over the screen.
    pub overlay: Option<Overlay>,
    /// What is to be agreed to.
    pub dialog: Option<Dialog>,
    /// A policy or a plan under edit; a dialog about it lies over it.
    pub form: Option<Box<Form>>,
    /// A token that was made: shown once, forgotten when it is closed.
    pub secret: Option<String>,
    /// Who is let in, or the audit log, is to be asked for (again).
    pub stale: bool,
    /// The palette.
    pub palette: Option<Palette>,
    /// Lines that were run.
    pub history: Vec<String>,
    /// The filter under edit.
    pub filtering: Option<Line>,
    /// What is said.
    pub toasts: Vec<Toast>,
    /// The key map.
    pub keys: Keys,
    /// Names of themes.
    pub themes: Vec<String>,
    /// The one in use.
    pub theme: String,
    /// ASCII in place of glyphs.
    pub ascii: bool,
    /// Ctrl-C was pressed, wall clock.
    pub leaving: Option<i64>,
    /// How far a page of text is scrolled.
    pub scroll: usize,
    /// Orders on their way.
    pub pending: HashMap<u64, Pending>,
    tables: [Table; TABLES],
    detailed: Detailed,
    tags: u64,
}

impl State {
    /// The state before anything is known.
    pub fn new(now: i64, size: (u16, u16)) -> Self {
        Self {
            now,
            skew: 0,
            size,
            connection: Connection::Starting,
            generation: 0,
            heard: None,
            who: None,
            start_lines: Vec::new(),
            start_failed: None,
            estate: Estate::default(),
            place: Place::Pulse,
            back: Vec::new(),
            closed: BTreeSet::new(),
            timeline: None,
            overlay: None,
            dialog: None,
            form: None,
            secret: None,
            stale: false,
            palette: None,
            history: Vec::new(),
            filtering: None,
            toasts: Vec::new(),
            keys: Keys::default(),
            themes: Vec::new(),
            theme: String::new(),
            ascii: false,
            leaving: None,
            scroll: 0,
            pending: HashMap::new(),
            tables: std::array::from_fn(|_| Table::default()),
            detailed: Detailed::default(),
            tags: 0,
        }
    }

    /// Whether orders can be given.
    pub const fn is_live(&self) -> bool {
        matches!(self.connection, Connection::Live)
    }

    /// The vault's time.
    pub const fn vault_now(&self) -> i64 {
        self.now.saturating_add(self.skew)
    }

    /// A number that marks one question.
    pub const fn tag(&mut self) -> u64 {
        self.tags += 1;
        self.tags
    }

    /// A table.
    pub const fn table(&self, kind: TableKind) -> &Table {
        &self.tables[kind as usize]
    }
    /// A table, to change it.
    pub const fn table_mut(&mut self, kind: TableKind) -> &mut Table {
        &mut self.tables[kind as usize]
    }
    /// The table of this place.
    pub fn current(&self) -> Option<&Table> {
        self.place.table().map(|kind| self.table(kind))
    }

    /// The rows of a table, and the table itself to change it.
    pub fn with_table<R>(&mut self, kind: TableKind, doing: impl FnOnce(&mut Table, &dyn Rows) -> R) -> R {
        let now = self.vault_now();
        let rows = rows_of(kind, &self.estate, &self.place, &self.closed, now);
        doing(&mut self.tables[kind as usize], &*rows)
    }

    /// The rows of a table.
    pub fn rows(&self, kind: TableKind) -> Box<dyn Rows + '_> {
        rows_of(kind, &self.estate, &self.place, &self.closed, self.vault_now())
    }

    /// Brings the table of this place up to date. Called before every draw.
    pub fn refresh(&mut self) {
        let Some(kind) = self.place.table() else { return };
        let frozen = self.dialog.is_some() || matches!(self.overlay, Some(Overlay::Menu { .. }));
        let height = super::layout::table_rows(self);
        let (shape, revision) = (self.shape(kind), self.estate.revision);
        self.with_table(kind, |table, rows| {
            table.set_height(height);
            table.refresh(rows, shape, revision, frozen);
        });
        self.follow_cursor();
    }

    /// Lets the pane beside the table follow the cursor once that rests.
    fn follow_cursor(&mut self) {
        let selected = self.current().and_then(|table| table.selected.clone());
        let detailed = &mut self.detailed;
        if detailed.place.as_ref() != Some(&self.place) || detailed.id.is_none() || selected.is_none() {
            *detailed = Detailed { place: Some(self.place.clone()), id: selected, moved: None };
        } else if selected == detailed.id {
            detailed.moved = None;
        } else if let Some(selected) = selected {
            match &detailed.moved {
                Some((to, at)) if *to == selected && self.now.saturating_sub(*at) >= REST_US => {
                    (detailed.id, detailed.moved) = (Some(selected), None);
                }
                Some((to, _)) if *to == selected => {}
                _ => detailed.moved = Some((selected, self.now)),
            }
        }
    }

    /// The row that the pane beside the table is about.
    pub fn detailed(&self) -> Option<&str> {
        self.detailed.id.as_deref()
    }

    /// Rows of derived tables come and go without rows of the estate doing so.
    const fn shape(&self, kind: TableKind) -> u64 {
        match kind {
            TableKind::Sites | TableKind::Events => self.estate.revision,
            TableKind::Pulse
            | TableKind::Machines
            | TableKind::Jobs
            | TableKind::Alerts
            | TableKind::Servers
            | TableKind::Policies
            | TableKind::Access
            | TableKind::Audit
            | TableKind::Plans => self.estate.shape,
        }
    }

    /// The machine that this place is about: the open one, or the one under the cursor.
    pub fn machine_here(&self) -> Option<&pb::Machine> {
        let id = match &self.place {
            Place::Machine(id, _) => Some(id.as_str()),
            Place::Pulse | Place::Sites | Place::Machines => self.current()?.selected.as_deref(),
            Place::Job(id) => self.estate.jobs.get(id).map(|job| job.machine_id.as_str()),
            Place::Jobs => self
                .current()?
                .selected
                .as_deref()
                .and_then(|id| self.estate.jobs.get(id))
                .map(|job| job.machine_id.as_str()),
            Place::Alerts => self
                .current()?
                .selected
                .as_deref()
                .and_then(|id| self.estate.alerts.get(id))
                .map(|alert| alert.object_id.as_str()),
            Place::Servers | Place::Policies | Place::Plans | Place::Access | Place::Audit => None,
        };
        id.and_then(|id| self.estate.machines.get(id))
    }

    /// The job that this place is about.
    pub fn job_here(&self) -> Option<&pb::Job> {
        match &self.place {
            Place::Job(id) => self.estate.jobs.get(id),
            Place::Jobs => self.estate.jobs.get(self.current()?.selected.as_deref()?),
            _ => None,
        }
    }

    /// The recovery plan that this place is about.
    pub fn plan_here(&self) -> Option<&pb::Plan> {
        match &self.place {
            Place::Plans => self.estate.plans.get(self.current()?.selected.as_deref()?),
            _ => None,
        }
    }

    /// The policy that this place is about.
    pub fn policy_here(&self) -> Option<&pb::Policy> {
        match &self.place {
            Place::Policies => self.estate.policies.get(self.current()?.selected.as_deref()?),
            _ => None,
        }
    }

    /// Orders that wait for this operator's agreement.
    pub fn waits_for_me(&self) -> usize {
        let Some(who) = self.who.as_ref().filter(|who| who.may.iter().any(|may| may == "approve")) else {
            return 0;
        };
        let waiting = self.estate.running_jobs().into_iter().filter(|job| job.waiting_for == "approval");
        waiting.filter(|job| job.by != who.name).count()
    }

    /// The alert that this place is about.
    pub fn alert_here(&self) -> Option<&pb::Alert> {
        match &self.place {
            Place::Alerts => self.estate.alerts.get(self.current()?.selected.as_deref()?),
            _ => None,
        }
    }

    /// Says something for a while.
    pub fn say(&mut self, tone: Tone, text: impl Into<String>) {
        let text = text.into();
        self.toasts.retain(|toast| toast.text != text);
        self.toasts.push(Toast { tone, text, until: self.now + TOAST_US });
        if self.toasts.len() > TOASTS_MAX {
            self.toasts.remove(0);
        }
    }

    /// When something is due by itself, wall clock; besides the tick of every second.
    pub fn due(&self) -> Option<i64> {
        let timeline = match (&self.place, self.is_live()) {
            (Place::Machine(_, Tab::Points), true) => self.timeline.as_ref().and_then(Timeline::due),
            _ => None,
        };
        let rested = self.detailed.moved.as_ref().map(|(_, at)| at + REST_US);
        self.toasts.iter().map(|toast| toast.until).chain(timeline).chain(rested).min()
    }
}

fn rows_of<'a>(
    kind: TableKind,
    estate: &'a Estate,
    place: &Place,
    closed: &BTreeSet<String>,
    now: i64,
) -> Box<dyn Rows + 'a> {
    match kind {
        TableKind::Pulse => Box::new(rows::Machines { estate, worst_first: true }),
        TableKind::Machines => Box::new(rows::Machines { estate, worst_first: false }),
        TableKind::Sites => Box::new(rows::Sites { lines: rows::tree(estate, closed) }),
        TableKind::Jobs => Box::new(rows::Jobs { estate, now }),
        TableKind::Alerts => Box::new(rows::Alerts { estate, now }),
        TableKind::Servers => Box::new(rows::Servers { estate, now }),
        TableKind::Policies => Box::new(rows::Policies { estate }),
        TableKind::Plans => Box::new(rows::Plans { estate, now }),
        TableKind::Access => Box::new(rows::Access { estate, now }),
        TableKind::Audit => Box::new(rows::Audit { estate }),
        TableKind::Events => {
            let id = if let Place::Machine(id, _) = place { id.as_str() } else { "" };
            Box::new(rows::Events::of(estate, id, now))
        }
    }
}
