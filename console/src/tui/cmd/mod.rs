//! The one registry of actions: id, label, keys, palette words, needs, risk, equivalent command.
//!
//! Lives here: what can be done, told once. Help, footer hints, palette, completions and the action menu are
//! made from it, so that they cannot drift apart. Lives elsewhere: the live key map (`keys`), what an action
//! does (`core::reduce`), how it is agreed to (`core::dialog`).
//!
//! Invariant: an action that can lose something is reached by no single letter. It takes the palette, or the
//! action menu and a letter there, and then its own confirmation.

pub mod keys;

/// Where a key means something. The inner one wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Context {
    /// Everywhere but in dialogs and input fields.
    Global,
    /// In tables.
    Table,
    /// In a machine's tabs.
    Machine,
    /// On the timeline of points.
    Timeline,
    /// On the screen of a job.
    Run,
    /// In the action menu.
    Menu,
    /// On the screens whose objects are edited: policies, plans.
    Edited,
    /// On the screen of operators, tokens and the audit log.
    Access,
}

impl Context {
    /// All of them, with their names in key maps and the heading in help.
    pub const ALL: [(Self, &'static str, &'static str); 8] = [
        (Self::Global, "global", "Everywhere"),
        (Self::Table, "table", "In tables"),
        (Self::Machine, "machine", "On a machine"),
        (Self::Timeline, "timeline", "On the timeline of points"),
        (Self::Run, "run", "On a job"),
        (Self::Edited, "edited", "On policies and plans"),
        (Self::Access, "access", "On who is let in, and the audit log"),
        (Self::Menu, "menu", "In the action menu (a)"),
    ];
}

/// What an action takes from the palette, or from where the cursor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Nothing.
    None,
    /// Machines: marked ones, the one under the cursor, or the one named.
    Machine,
    /// A job.
    Job,
    /// An alert.
    Alert,
    /// A policy.
    Policy,
    /// An order, and a machine.
    Order,
    /// A theme's name.
    Theme,
    /// A moment.
    Moment,
    /// `csv` or `json`.
    Format,
}

/// What must be so before an action is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// A vault that answers.
    Vault,
    /// A vault that answers, and a machine for which this order is possible now.
    Order(&'static str),
}

/// How an action is agreed to. The vault's readiness report may ask for more, never for less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Risk {
    /// Changes nothing, or nothing that matters.
    None,
    /// Asked once: yes or no.
    Ask,
    /// Can lose something: the report is shown, and the name typed out.
    Danger,
}

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Everything that can be done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Action { $($(#[$doc])* $name),* }
        #[cfg(test)]
        const EVERY: &[Action] = &[$(Action::$name),*];
    };
}
actions! {
    /// Shows Pulse.
    GoPulse,
    /// Shows Sites.
    GoSites,
    /// Shows Machines.
    GoMachines,
    /// Shows Jobs.
    GoJobs,
    /// Shows Alerts.
    GoAlerts,
    /// Shows Servers.
    GoServers,
    /// Shows Policies.
    GoPolicies,
    /// Shows Plans.
    GoPlans,
    /// Goes into what is under the cursor.
    Open,
    /// Steps back.
    Back,
    /// Leaves the console.
    Quit,
    /// Shows the keys.
    Help,
    /// Opens the palette.
    Palette,
    /// Opens the filter.
    Filter,
    /// Sorts by the next column.
    Sort,
    /// Turns the order round.
    Reverse,
    /// Chooses columns.
    Columns,
    /// Marks a row.
    Mark,
    /// Forgets all marks.
    Unmark,
    /// Copies the row, or the command of an action.
    Copy,
    /// Writes what is shown to a file.
    Export,
    /// One up.
    Up,
    /// One down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first.
    First,
    /// To the last.
    Last,
    /// The next tab.
    NextTab,
    /// The tab before.
    PreviousTab,
    /// Opens the action menu.
    Menu,
    /// Chooses a theme.
    Theme,
    /// Glyphs or ASCII.
    Ascii,
    /// Dials at once.
    Reconnect,
    /// Earlier on the timeline.
    Earlier,
    /// Later on the timeline.
    Later,
    /// Much earlier.
    MuchEarlier,
    /// Much later.
    MuchLater,
    /// What the cursor moves by.
    Step,
    /// A shorter stretch.
    ZoomIn,
    /// A longer stretch.
    ZoomOut,
    /// The newest moment.
    Newest,
    /// The oldest moment.
    Oldest,
    /// A moment by its time.
    GoToMoment,
    /// Begins to replicate.
    Protect,
    /// Stops replicating and removes the replica.
    Unprotect,
    /// Holds replication.
    Pause,
    /// Compares all of a machine with its replica.
    Resync,
    /// Lets replication go on.
    Resume,
    /// Names the present moment.
    Bookmark,
    /// A bookmark with the machine's hooks around it.
    AppBookmark,
    /// Keeps a point beyond its retention, or lets it go.
    Pin,
    /// Compares a replica with its source.
    Verify,
    /// Brings up a test.
    TestFailover,
    /// Ends a test.
    Cleanup,
    /// Brings up for good.
    Failover,
    /// Makes a failover final.
    Commit,
    /// Tries again what failed.
    RetryNow,
    /// Has another process server relay a machine.
    Move,
    /// Stops a job.
    CancelJob,
    /// Runs a failed job again.
    RetryJob,
    /// An alert was seen.
    Acknowledge,
    /// Stops a machine and brings it up at the recovery site.
    PlannedFailover,
    /// Says that what a run waits for was done by hand.
    Proceed,
    /// Brings another moment up instead.
    ChangePoint,
    /// Takes a failover back.
    CancelFailover,
    /// Reverses the direction.
    Reprotect,
    /// Brings a machine home.
    Failback,
    /// Takes what had arrived at the old source, without asking the recovery site.
    UnplannedFailback,
    /// Lets a machine stay at the recovery site for good.
    CompleteMigration,
    /// Opens a form for a new policy or plan.
    New,
    /// Opens the policy or plan under the cursor in a form.
    Edit,
    /// Deletes a policy.
    DeletePolicy,
    /// Puts machines under another policy.
    AssignPolicy,
    /// Shows who is let in.
    GoAccess,
    /// Makes a token for an operator.
    NewToken,
    /// Takes access away.
    Revoke,
    /// Older lines of the audit log.
    Older,
    /// Says whether an order is allowed.
    CanI,
    /// Agrees to an order that waits for a second person.
    Approve,
    /// Refuses one.
    Refuse,
}

/// One action, as the registry tells it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Which.
    pub action: Action,
    /// Its name in key maps.
    pub id: &'static str,
    /// What it is called in help, menus and hints.
    pub label: &'static str,
    /// Its keys.
    pub keys: &'static [(Context, &'static str)],
    /// Its names in the palette; the first one is shown.
    pub words: &'static [&'static str],
    /// What it takes.
    pub argument: Argument,
    /// What must be so.
    pub needs: Needs,
    /// How it is agreed to.
    pub risk: Risk,
    /// The same as a command; `{…}` is filled in. Empty where there is none.
    pub command: &'static str,
    /// How early it is shown in the footer; 0 never.
    pub hint: u8,
}

const fn entry(action: Action, id: &'static str, label: &'static str) -> Entry {
    Entry {
        action,
        id,
        label,
        keys: &[],
        words: &[],
        argument: Argument::None,
        needs: Needs::Nothing,
        risk: Risk::None,
        command: "",
        hint: 0,
    }
}

use Context::{Global, Machine, Menu, Run, Table, Timeline};

/// Everything that can be done.
pub const REGISTRY: &[Entry] = &[
    Entry {
        keys: &[(Global, "1")],
        words: &["pulse"],
        command: "continuum get machines",
        ..entry(Action::GoPulse, "go.pulse", "Pulse")
    },
    Entry {
        keys: &[(Global, "2")],
        words: &["sites"],
        command: "continuum get sites",
        ..entry(Action::GoSites, "go.sites", "Sites")
    },
    Entry {
        keys: &[(Global, "3")],
        words: &["machines", "machine"],
        argument: Argument::Machine,
        command: "continuum get machines",
        ..entry(Action::GoMachines, "go.machines", "Machines")
    },
    Entry {
        keys: &[(Global, "5")],
        words: &["jobs"],
        command: "continuum get jobs",
        ..entry(Action::GoJobs, "go.jobs", "Jobs")
    },
    Entry {
        keys: &[(Global, "6")],
        words: &["alerts"],
        command: "continuum get alerts",
        ..entry(Action::GoAlerts, "go.alerts", "Alerts")
    },
    Entry {
        keys: &[(Global, "7")],
        words: &["servers"],
        command: "continuum get servers",
        ..entry(Action::GoServers, "go.servers", "Servers")
    },
    Entry {
        keys: &[(Global, "4")],
        words: &["plans"],
        command: "continuum get plans",
        ..entry(Action::GoPlans, "go.plans", "Plans")
    },
    Entry {
        keys: &[(Global, "8")],
        words: &["policies"],
        command: "continuum get policies",
        ..entry(Action::GoPolicies, "go.policies", "Policies")
    },
    Entry {
        keys: &[(Table, "enter"), (Machine, "enter"), (Run, "enter")],
        hint: 3,
        ..entry(Action::Open, "open", "open")
    },
    Entry { keys: &[(Global, "esc"), (Global, "backspace")], hint: 4, ..entry(Action::Back, "back", "back") },
    Entry { keys: &[(Global, "q")], words: &["quit", "q"], hint: 9, ..entry(Action::Quit, "quit", "leave") },
    Entry {
        keys: &[(Global, "?"), (Global, "f1")],
        words: &["help"],
        hint: 8,
        ..entry(Action::Help, "help", "help")
    },
    Entry {
        keys: &[(Global, ":"), (Global, "ctrl+p")],
        hint: 7,
        ..entry(Action::Palette, "palette", "command")
    },
    Entry { keys: &[(Table, "/")], words: &["filter"], hint: 5, ..entry(Action::Filter, "filter", "filter") },
    Entry { keys: &[(Table, "s")], words: &["sort"], hint: 10, ..entry(Action::Sort, "table.sort", "sort") },
    Entry {
        keys: &[(Table, "S")],
        words: &["reverse"],
        ..entry(Action::Reverse, "table.reverse", "turn the order round")
    },
    Entry {
        keys: &[(Table, "c")],
        words: &["columns"],
        hint: 12,
        ..entry(Action::Columns, "table.columns", "columns")
    },
    Entry { keys: &[(Table, "space")], hint: 11, ..entry(Action::Mark, "table.mark", "mark") },
    Entry {
        keys: &[(Table, "u")],
        words: &["unmark"],
        ..entry(Action::Unmark, "table.unmark", "forget all marks")
    },
    Entry {
        keys: &[(Global, "y"), (Menu, "ctrl+y")],
        words: &["copy"],
        hint: 12,
        ..entry(Action::Copy, "copy", "copy")
    },
    Entry {
        keys: &[(Table, "e")],
        words: &["export"],
        argument: Argument::Format,
        hint: 13,
        ..entry(Action::Export, "export", "export to a file (csv, json)")
    },
    Entry { keys: &[(Global, "up"), (Global, "k")], ..entry(Action::Up, "up", "up") },
    Entry { keys: &[(Global, "down"), (Global, "j")], ..entry(Action::Down, "down", "down") },
    Entry {
        keys: &[(Global, "pageup"), (Global, "ctrl+u")],
        ..entry(Action::PageUp, "page.up", "a page up")
    },
    Entry {
        keys: &[(Global, "pagedown"), (Global, "ctrl+d")],
        ..entry(Action::PageDown, "page.down", "a page down")
    },
    Entry { keys: &[(Global, "g"), (Global, "home")], ..entry(Action::First, "first", "to the first") },
    Entry { keys: &[(Global, "G"), (Global, "end")], ..entry(Action::Last, "last", "to the last") },
    Entry {
        keys: &[
            (Machine, "tab"),
            (Machine, "]"),
            (Machine, "right"),
            (Machine, "l"),
            (Timeline, "tab"),
            (Timeline, "]"),
            (Context::Access, "tab"),
        ],
        hint: 3,
        ..entry(Action::NextTab, "tab.next", "next tab")
    },
    Entry {
        keys: &[
            (Machine, "shift+tab"),
            (Machine, "["),
            (Machine, "left"),
            (Machine, "h"),
            (Timeline, "shift+tab"),
            (Timeline, "["),
            (Context::Access, "shift+tab"),
        ],
        ..entry(Action::PreviousTab, "tab.previous", "the tab before")
    },
    Entry { keys: &[(Global, "a")], words: &["actions"], hint: 2, ..entry(Action::Menu, "menu", "actions") },
    Entry { words: &["theme"], argument: Argument::Theme, ..entry(Action::Theme, "theme", "choose a theme") },
    Entry { words: &["ascii"], ..entry(Action::Ascii, "ascii", "plain ASCII marks, or glyphs") },
    Entry {
        keys: &[(Global, "ctrl+r")],
        words: &["reconnect"],
        ..entry(Action::Reconnect, "reconnect", "dial the vault now")
    },
    Entry {
        keys: &[(Timeline, "left"), (Timeline, "h")],
        hint: 1,
        ..entry(Action::Earlier, "time.earlier", "earlier")
    },
    Entry {
        keys: &[(Timeline, "right"), (Timeline, "l")],
        hint: 1,
        ..entry(Action::Later, "time.later", "later")
    },
    Entry {
        keys: &[(Timeline, "H"), (Timeline, "pageup")],
        ..entry(Action::MuchEarlier, "time.much-earlier", "ten earlier")
    },
    Entry {
        keys: &[(Timeline, "L"), (Timeline, "pagedown")],
        ..entry(Action::MuchLater, "time.much-later", "ten later")
    },
    Entry {
        keys: &[(Timeline, "m"), (Timeline, "space")],
        words: &["step"],
        hint: 5,
        ..entry(Action::Step, "time.step", "move by point, minute, second")
    },
    Entry {
        keys: &[(Timeline, "+"), (Timeline, "=")],
        hint: 6,
        ..entry(Action::ZoomIn, "time.zoom-in", "zoom in")
    },
    Entry { keys: &[(Timeline, "-")], hint: 6, ..entry(Action::ZoomOut, "time.zoom-out", "zoom out") },
    Entry {
        keys: &[(Timeline, "G"), (Timeline, "end"), (Timeline, "0")],
        ..entry(Action::Newest, "time.newest", "newest moment")
    },
    Entry {
        keys: &[(Timeline, "g"), (Timeline, "home")],
        ..entry(Action::Oldest, "time.oldest", "oldest moment")
    },
    Entry {
        words: &["at"],
        argument: Argument::Moment,
        ..entry(Action::GoToMoment, "time.at", "go to a moment: 03:12:45, -90s, 2026-11-23T03:12:45Z")
    },
    Entry {
        keys: &[(Global, "t"), (Menu, "t")],
        words: &["test-failover", "drill"],
        argument: Argument::Machine,
        needs: Needs::Order("test-failover"),
        risk: Risk::Ask,
        command: "continuum test-failover {machine} --point {point}",
        hint: 2,
        ..entry(Action::TestFailover, "order.test-failover", "test failover")
    },
    Entry {
        keys: &[(Menu, "x")],
        words: &["cleanup"],
        argument: Argument::Machine,
        needs: Needs::Order("cleanup"),
        risk: Risk::Ask,
        command: "continuum cleanup {machine}",
        ..entry(Action::Cleanup, "order.cleanup", "clean up the test failover")
    },
    Entry {
        keys: &[(Menu, "f")],
        words: &["failover"],
        argument: Argument::Machine,
        needs: Needs::Order("failover"),
        risk: Risk::Danger,
        command: "continuum failover {machine} --unplanned --point {point}",
        ..entry(Action::Failover, "order.failover", "failover (unplanned)")
    },
    Entry {
        keys: &[(Menu, "o")],
        words: &["planned-failover"],
        argument: Argument::Machine,
        needs: Needs::Order("planned-failover"),
        risk: Risk::Danger,
        command: "continuum failover {machine} --planned",
        ..entry(
            Action::PlannedFailover,
            "order.planned-failover",
            "failover (planned: stop it, lose nothing)",
        )
    },
    Entry {
        keys: &[(Menu, "c")],
        words: &["commit"],
        argument: Argument::Machine,
        needs: Needs::Order("commit"),
        risk: Risk::Danger,
        command: "continuum commit {machine}",
        ..entry(Action::Commit, "order.commit", "commit the failover")
    },
    Entry {
        keys: &[(Menu, "C")],
        words: &["change-point"],
        argument: Argument::Machine,
        needs: Needs::Order("change-point"),
        risk: Risk::Danger,
        command: "continuum change-point {machine} --point {point}",
        ..entry(Action::ChangePoint, "order.change-point", "bring up another moment instead")
    },
    Entry {
        keys: &[(Menu, "l")],
        words: &["cancel-failover"],
        argument: Argument::Machine,
        needs: Needs::Order("cancel-failover"),
        risk: Risk::Danger,
        command: "continuum cancel-failover {machine}",
        ..entry(Action::CancelFailover, "order.cancel-failover", "take the failover back")
    },
    Entry {
        keys: &[(Menu, "R")],
        words: &["reprotect"],
        argument: Argument::Machine,
        needs: Needs::Order("reprotect"),
        risk: Risk::Danger,
        command: "continuum reprotect {machine}",
        ..entry(Action::Reprotect, "order.reprotect", "reprotect: reverse the direction")
    },
    Entry {
        keys: &[(Menu, "h")],
        words: &["failback"],
        argument: Argument::Machine,
        needs: Needs::Order("failback"),
        risk: Risk::Danger,
        command: "continuum failback {machine}",
        ..entry(Action::Failback, "order.failback", "failback (planned: lose nothing)")
    },
    Entry {
        keys: &[(Menu, "H")],
        words: &["unplanned-failback"],
        argument: Argument::Machine,
        needs: Needs::Order("failback"),
        risk: Risk::Danger,
        command: "continuum failback {machine} --unplanned",
        ..entry(
            Action::UnplannedFailback,
            "order.unplanned-failback",
            "failback (unplanned: the site is lost)",
        )
    },
    Entry {
        keys: &[(Menu, "M")],
        words: &["complete-migration"],
        argument: Argument::Machine,
        needs: Needs::Order("complete-migration"),
        risk: Risk::Danger,
        command: "continuum complete-migration {machine}",
        ..entry(Action::CompleteMigration, "order.complete-migration", "stay there for good: no way back")
    },
    Entry {
        keys: &[(Menu, "p")],
        words: &["protect"],
        argument: Argument::Machine,
        needs: Needs::Order("protect"),
        risk: Risk::Ask,
        command: "continuum protect {machine}",
        ..entry(Action::Protect, "order.protect", "protect")
    },
    Entry {
        keys: &[(Menu, "b")],
        words: &["bookmark"],
        argument: Argument::Machine,
        needs: Needs::Order("bookmark"),
        command: "continuum bookmark {machine} NAME",
        ..entry(Action::Bookmark, "order.bookmark", "bookmark this moment")
    },
    Entry {
        words: &["app-bookmark"],
        argument: Argument::Machine,
        needs: Needs::Order("app-bookmark"),
        command: "continuum bookmark {machine} NAME --app-consistent",
        ..entry(Action::AppBookmark, "order.app-bookmark", "bookmark this moment, application-consistent")
    },
    Entry {
        keys: &[(Menu, "v")],
        words: &["verify"],
        argument: Argument::Machine,
        needs: Needs::Order("verify"),
        risk: Risk::Ask,
        command: "continuum verify {machine}",
        ..entry(Action::Verify, "order.verify", "verify the replica against its source")
    },
    Entry {
        keys: &[(Menu, "n")],
        words: &["pin"],
        argument: Argument::Machine,
        needs: Needs::Vault,
        command: "continuum pin {machine} {point}",
        ..entry(Action::Pin, "order.pin", "pin, or unpin, the point at the cursor")
    },
    Entry {
        keys: &[(Menu, "z")],
        words: &["pause"],
        argument: Argument::Machine,
        needs: Needs::Order("pause"),
        risk: Risk::Ask,
        command: "continuum pause {machine}",
        ..entry(Action::Pause, "order.pause", "pause replication")
    },
    Entry {
        keys: &[(Menu, "r")],
        words: &["resume"],
        argument: Argument::Machine,
        needs: Needs::Order("resume"),
        command: "continuum resume {machine}",
        ..entry(Action::Resume, "order.resume", "resume replication")
    },
    Entry {
        keys: &[(Menu, "s")],
        words: &["resync"],
        argument: Argument::Machine,
        needs: Needs::Order("resync"),
        risk: Risk::Ask,
        command: "continuum resync {machine} --now",
        ..entry(Action::Resync, "order.resync", "resync: compare all, send what differs")
    },
    Entry {
        keys: &[(Menu, "e")],
        words: &["retry-now"],
        argument: Argument::Machine,
        needs: Needs::Order("retry-now"),
        command: "continuum retry {machine}",
        ..entry(Action::RetryNow, "order.retry-now", "try again now what failed")
    },
    Entry {
        keys: &[(Menu, "m")],
        words: &["move"],
        argument: Argument::Machine,
        needs: Needs::Order("move"),
        risk: Risk::Ask,
        command: "continuum move {machine}",
        ..entry(Action::Move, "order.move", "move to another process server")
    },
    Entry {
        keys: &[(Menu, "u")],
        words: &["unprotect"],
        argument: Argument::Machine,
        needs: Needs::Order("unprotect"),
        risk: Risk::Danger,
        command: "continuum unprotect {machine}",
        ..entry(Action::Unprotect, "order.unprotect", "unprotect and remove the replica")
    },
    Entry {
        keys: &[(Menu, "k")],
        words: &["cancel"],
        argument: Argument::Job,
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum cancel {job}",
        ..entry(Action::CancelJob, "job.cancel", "cancel the job and undo it")
    },
    Entry {
        keys: &[(Menu, "j")],
        words: &["retry"],
        argument: Argument::Job,
        needs: Needs::Vault,
        command: "continuum retry --job {job}",
        ..entry(Action::RetryJob, "job.retry", "run the failed job again")
    },
    Entry {
        keys: &[(Menu, "g")],
        words: &["proceed"],
        argument: Argument::Job,
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum proceed {job}",
        ..entry(Action::Proceed, "job.proceed", "go on: what it waits for was done by hand")
    },
    Entry {
        keys: &[(Global, "9")],
        words: &["access", "operators"],
        command: "continuum get operators",
        ..entry(Action::GoAccess, "go.access", "Access")
    },
    Entry {
        keys: &[(Context::Access, "n")],
        words: &["new-token"],
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum token operator --name NAME --as ROLE",
        hint: 1,
        ..entry(Action::NewToken, "access.token", "let somebody in")
    },
    Entry {
        keys: &[(Context::Access, "d")],
        words: &["revoke"],
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum revoke KIND NAME",
        hint: 1,
        ..entry(Action::Revoke, "access.revoke", "revoke")
    },
    Entry {
        keys: &[(Context::Access, "o")],
        words: &["older"],
        hint: 2,
        ..entry(Action::Older, "audit.older", "older lines")
    },
    Entry {
        words: &["can-i"],
        argument: Argument::Order,
        needs: Needs::Vault,
        command: "continuum can-i ORDER",
        ..entry(Action::CanI, "access.can-i", "say whether you may, why not, and who could")
    },
    Entry {
        keys: &[(Menu, "w")],
        words: &["approve"],
        argument: Argument::Job,
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum approve {job}",
        ..entry(Action::Approve, "job.approve", "agree to what waits for a second person")
    },
    Entry {
        keys: &[(Menu, "d")],
        words: &["refuse"],
        argument: Argument::Job,
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum approve {job} --refuse",
        ..entry(Action::Refuse, "job.refuse", "refuse what waits for a second person")
    },
    Entry {
        keys: &[(Context::Edited, "n")],
        words: &["new"],
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum apply -f FILE",
        hint: 1,
        ..entry(Action::New, "edit.new", "new")
    },
    Entry {
        keys: &[(Context::Edited, "e")],
        words: &["edit"],
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum apply -f FILE",
        hint: 1,
        ..entry(Action::Edit, "edit.open", "edit")
    },
    Entry {
        keys: &[(Context::Edited, "d")],
        words: &["delete-policy"],
        argument: Argument::Policy,
        needs: Needs::Vault,
        risk: Risk::Ask,
        command: "continuum delete policy {policy}",
        hint: 1,
        ..entry(Action::DeletePolicy, "policy.delete", "delete")
    },
    Entry {
        keys: &[(Menu, "i")],
        words: &["set-policy"],
        argument: Argument::Machine,
        needs: Needs::Order("assign-policy"),
        risk: Risk::Ask,
        command: "continuum set-policy {machine} --policy POLICY",
        ..entry(Action::AssignPolicy, "order.assign-policy", "put under another policy")
    },
    Entry {
        keys: &[(Menu, "a")],
        words: &["acknowledge"],
        argument: Argument::Alert,
        needs: Needs::Vault,
        command: "continuum acknowledge {alert}",
        ..entry(Action::Acknowledge, "alert.acknowledge", "acknowledge the alert")
    },
];

/// The entry of an action.
pub fn entry_of(action: Action) -> &'static Entry {
    // Every action has one; a test says so.
    REGISTRY.iter().find(|entry| entry.action == action).unwrap_or(&REGISTRY[0])
}

/// The entry with this id.
pub fn named(id: &str) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.id == id)
}

/// The entry with this palette word.
pub fn word(word: &str) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| entry.words.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_action_stands_in_the_registry_once() {
        assert_eq!(EVERY.len(), REGISTRY.len());
        for action in EVERY {
            assert_eq!(REGISTRY.iter().filter(|entry| entry.action == *action).count(), 1, "{action:?}");
        }
        let mut ids = HashSet::new();
        let mut words = HashSet::new();
        for entry in REGISTRY {
            assert!(ids.insert(entry.id), "{}", entry.id);
            assert!(!entry.label.is_empty());
            for word in entry.words {
                assert!(words.insert(*word), "{word}");
            }
            assert!(!entry.words.is_empty() || !entry.keys.is_empty(), "{} cannot be reached", entry.id);
        }
    }

    #[test]
    fn every_order_has_a_command_and_a_palette_word() {
        for entry in REGISTRY.iter().filter(|entry| entry.needs != Needs::Nothing) {
            assert!(entry.command.starts_with("continuum "), "{}", entry.id);
            assert!(!entry.words.is_empty(), "{}", entry.id);
        }
    }
}
