//! States of jobs and steps, and what may be done with each.

use serde::{Deserialize, Serialize};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// Accepted, not begun.
    Queued,
    /// A step is under way.
    Running,
    /// Waits for a person, a window or a resource.
    Waiting,
    /// Steps already done are being undone.
    Undoing,
    /// All done.
    Succeeded,
    /// Done, with something to look at.
    Warnings,
    /// Not done; the state is the one before the job, or the job says what is left.
    Failed,
    /// A person stopped it; undone.
    Cancelled,
}

impl JobState {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Queued,
        Self::Running,
        Self::Waiting,
        Self::Undoing,
        Self::Succeeded,
        Self::Warnings,
        Self::Failed,
        Self::Cancelled,
    ];
    /// Its name in answers and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Undoing => "undoing",
            Self::Succeeded => "succeeded",
            Self::Warnings => "warnings",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
    /// The state of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
    /// Whether nothing more will happen.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Warnings | Self::Failed | Self::Cancelled)
    }
    /// Whether a person may cancel it now.
    pub const fn may_cancel(self) -> bool {
        matches!(self, Self::Queued | Self::Running | Self::Waiting)
    }
    /// Whether it may be tried again.
    pub const fn may_retry(self) -> bool {
        matches!(self, Self::Failed)
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun; after a crash its effect is unknown, so it is done again or undone, never skipped.
    Running,
    /// Done.
    Succeeded,
    /// Done, with something to look at.
    Warnings,
    /// Failed.
    Failed,
    /// Being undone.
    Undoing,
    /// Undone.
    Undone,
    /// Could not be undone: a person must look.
    UndoFailed,
    /// Left out.
    Skipped,
}

impl StepState {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Pending,
        Self::Running,
        Self::Succeeded,
        Self::Warnings,
        Self::Failed,
        Self::Undoing,
        Self::Undone,
        Self::UndoFailed,
        Self::Skipped,
    ];
    /// Its name in answers and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Warnings => "warnings",
            Self::Failed => "failed",
            Self::Undoing => "undoing",
            Self::Undone => "undone",
            Self::UndoFailed => "undo-failed",
            Self::Skipped => "skipped",
        }
    }
    /// The state of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}
