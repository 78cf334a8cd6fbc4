//! What a text means: the roles and marks that a theme turns into colours and glyphs.
//!
//! State is never told by colour alone: whatever has a role that matters also has a mark or a word.

/// Why a text looks as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Ordinary text: the terminal's own foreground.
    Text,
    /// What matters less: labels, units, past things.
    Muted,
    /// As it should be.
    Ok,
    /// Needs a look.
    Warn,
    /// A promise is broken.
    Fail,
    /// Known once, perhaps not true any more.
    Stale,
    /// Under way.
    Busy,
    /// Headings of panels and columns.
    Title,
    /// The line at the top.
    Header,
    /// The line at the bottom.
    Footer,
    /// A key that can be pressed.
    Key,
    /// The row under the cursor.
    Selection,
    /// What has the focus inside a dialog.
    Focus,
    /// Rows that are marked for a bulk action.
    Marked,
    /// Letters that a filter matched.
    Match,
    /// Orders that can lose something.
    Danger,
    /// A rehearsal.
    Drill,
    /// Nothing can be ordered now.
    ReadOnly,
    /// Frames and rules.
    Border,
    /// Histograms and sparklines.
    Chart,
    /// Where the environment is a real one: the frame that no theme may hide.
    Environment,
}

impl Role {
    /// Every role, with its name in theme files.
    pub const ALL: [(Self, &'static str); 21] = [
        (Self::Text, "text"),
        (Self::Muted, "muted"),
        (Self::Ok, "ok"),
        (Self::Warn, "warn"),
        (Self::Fail, "fail"),
        (Self::Stale, "stale"),
        (Self::Busy, "busy"),
        (Self::Title, "title"),
        (Self::Header, "header"),
        (Self::Footer, "footer"),
        (Self::Key, "key"),
        (Self::Selection, "selection"),
        (Self::Focus, "focus"),
        (Self::Marked, "marked"),
        (Self::Match, "match"),
        (Self::Danger, "danger"),
        (Self::Drill, "drill"),
        (Self::ReadOnly, "readonly"),
        (Self::Border, "border"),
        (Self::Chart, "chart"),
        (Self::Environment, "environment"),
    ];

    /// Where a theme that says nothing about this role looks next.
    pub const fn parent(self) -> Option<Self> {
        match self {
            Self::Text => None,
            Self::Danger => Some(Self::Fail),
            Self::Drill => Some(Self::Busy),
            Self::ReadOnly => Some(Self::Warn),
            Self::Stale => Some(Self::Muted),
            Self::Focus => Some(Self::Selection),
            Self::Match | Self::Environment => Some(Self::Key),
            Self::Chart => Some(Self::Busy),
            Self::Ok
            | Self::Muted
            | Self::Warn
            | Self::Fail
            | Self::Busy
            | Self::Title
            | Self::Header
            | Self::Footer
            | Self::Key
            | Self::Selection
            | Self::Marked
            | Self::Border => Some(Self::Text),
        }
    }
}

/// A glyph that tells a state without colour. One cell wide, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// As it should be.
    Ok,
    /// Needs a look.
    Warn,
    /// A promise is broken.
    Fail,
    /// Not known, or not applicable.
    Unknown,
    /// Under way.
    Busy,
    /// Not begun.
    Waiting,
    /// Held by a person.
    Paused,
    /// The row under the cursor.
    Cursor,
    /// A row that is marked.
    Marked,
    /// A branch that is open.
    Open,
    /// A branch that is closed.
    Closed,
    /// A crash-consistent point.
    PointCrash,
    /// An application-consistent point.
    PointApp,
    /// A named point.
    PointBookmark,
    /// Kept beyond its retention.
    Pinned,
    /// Where nothing can be brought up.
    Gap,
    /// A step that was undone or left out.
    Undone,
}

impl Mark {
    /// Every mark: its name in theme files, glyph, and ASCII glyph.
    pub const ALL: [(Self, &'static str, char, char); 17] = [
        (Self::Ok, "ok", '●', '+'),
        (Self::Warn, "warn", '▲', '!'),
        (Self::Fail, "fail", '✖', 'X'),
        (Self::Unknown, "unknown", '○', '?'),
        (Self::Busy, "busy", '◐', '~'),
        (Self::Waiting, "waiting", '·', '.'),
        (Self::Paused, "paused", '‖', '='),
        (Self::Cursor, "cursor", '▶', '>'),
        (Self::Marked, "marked", '◆', '*'),
        (Self::Open, "open", '▾', 'v'),
        (Self::Closed, "closed", '▸', '>'),
        (Self::PointCrash, "point-crash", '│', '|'),
        (Self::PointApp, "point-app", '█', 'A'),
        (Self::PointBookmark, "point-bookmark", '▼', 'B'),
        (Self::Pinned, "pinned", '⚑', 'P'),
        (Self::Gap, "gap", '░', '/'),
        (Self::Undone, "undone", '↶', '-'),
    ];
}

/// What a health's name means.
pub fn of_health(health: &str) -> (Mark, Role) {
    match health {
        "healthy" => (Mark::Ok, Role::Ok),
        "warning" => (Mark::Warn, Role::Warn),
        "critical" => (Mark::Fail, Role::Fail),
        _ => (Mark::Unknown, Role::Muted),
    }
}

/// What the name of a job's or a step's state means.
pub fn of_state(state: &str) -> (Mark, Role) {
    match state {
        "succeeded" => (Mark::Ok, Role::Ok),
        "warnings" => (Mark::Warn, Role::Warn),
        "failed" | "undo-failed" => (Mark::Fail, Role::Fail),
        "running" | "undoing" => (Mark::Busy, Role::Busy),
        "cancelled" | "undone" | "skipped" => (Mark::Undone, Role::Muted),
        _ => (Mark::Waiting, Role::Muted),
    }
}
