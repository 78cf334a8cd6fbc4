//! The state machine of a protection: every state, every event, every legal move.
//!
//! ```text
//! enabling ─► initial replication ─► protected ◄──────────────┐
//!    │fail          │fail ▲retry        │  ▲ cancelled         │ resync done
//!    ▼              ▼     │             │  └──────────┐        │
//! enabling failed  initial replication  ├─► resync ────────────┤
//!                  failed               ▼             │        │
//!              (any with a point) ─► failing over ─► commit pending ─► committed
//!                                       │ failed: back where it was       │ │
//! any steady state ─► disabling ─► gone                                   │ └─► migrated ─► disabling
//!                                                                         ▼
//! resync ◄── failing back ◄── reversed ◄──── all of it arrived ──── reprotecting
//! (came home) │ failed: reversed   └──────── a repair is under way ──────►┘
//! ```
//!
//! A protection is stored as its state's name plus what belongs to that state; `next` is the only road
//! from one to another. Health, mode and test failover are told beside it, never by it.

use serde::{Deserialize, Serialize};

/// Where a protection stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum ProtectionState {
    /// Being checked, installed, related.
    Enabling,
    /// Could not be enabled.
    EnablingFailed {
        /// Why.
        reason: String,
    },
    /// The first full copy is under way.
    InitialReplication {
        /// An operator paused it.
        paused: bool,
    },
    /// The first copy stopped; it resumes where it was.
    InitialReplicationFailed {
        /// Why.
        reason: String,
    },
    /// Recovery points exist and new ones come.
    Protected {
        /// An operator paused it: the change map goes on.
        paused: bool,
    },
    /// Differences are being sought and sent; points before it stay valid.
    Resync {
        /// Why it was needed.
        reason: String,
        /// An operator suspended it: the change map goes on.
        #[serde(default)]
        paused: bool,
    },
    /// A failover is under way.
    FailingOver {
        /// Which kind.
        kind: FailoverKind,
        /// Where to go back to when it fails.
        from: Box<ProtectionState>,
    },
    /// The replica runs; another point may still be chosen.
    CommitPending {
        /// Which kind brought it here.
        kind: FailoverKind,
    },
    /// The choice is final: active at the recovery site, not protected.
    Committed,
    /// What runs at the recovery site is being brought to the old source; what is there is no state of it yet.
    Reprotecting,
    /// The direction is reversed: the old source holds a state of what runs at the recovery site, and follows it.
    Reversed,
    /// A failback is under way.
    FailingBack {
        /// Which kind: planned stops what runs at the recovery site first, unplanned does not ask it.
        kind: FailoverKind,
    },
    /// The machine stays where it was brought up for good: there is no way back.
    Migrated,
    /// Being removed.
    Disabling,
}

/// What kind of failover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailoverKind {
    /// The source is stopped first; nothing is lost.
    Planned,
    /// The source is not asked.
    Unplanned,
}

/// What happens to a protection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Checks passed, everyone knows of it.
    Related,
    /// Enabling failed.
    EnableFailed {
        /// Why.
        reason: String,
    },
    /// The first recovery point exists.
    FirstPoint,
    /// The first copy stopped.
    InitialReplicationStopped {
        /// Why.
        reason: String,
    },
    /// Try again what failed.
    Retry,
    /// An operator pauses.
    Pause,
    /// An operator resumes.
    Resume,
    /// Doubt: what the replica holds must be compared.
    ResyncRequired {
        /// Why.
        reason: String,
    },
    /// Comparison and repair are done.
    ResyncDone,
    /// An operator orders a failover.
    FailOver {
        /// Which kind.
        kind: FailoverKind,
    },
    /// The replica is up.
    BroughtUp,
    /// The failover failed or was cancelled before the replica was up.
    FailOverFailed,
    /// Another point was chosen.
    PointChanged,
    /// Final.
    Commit,
    /// The failover is taken back: the source is still the truth.
    CancelFailover,
    /// An operator orders the reverse direction.
    Reprotect,
    /// All that differed arrived at the old source.
    ReverseWhole,
    /// The reverse direction is repaired: what the old source holds is no state for a while.
    ReverseBroken,
    /// An operator gives the reverse direction up.
    StopReprotect,
    /// An operator orders a failback.
    FailBack {
        /// Which kind.
        kind: FailoverKind,
    },
    /// The old source holds the pen again.
    CameHome,
    /// The failback failed or was cancelled before that.
    FailBackFailed,
    /// It stays at the recovery site, with no way back.
    Migrate,
    /// Remove the protection.
    Disable,
}

/// A move that the table does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} is not possible while {state}; possible now: {}", allowed.join(", "))]
pub struct IllegalMove {
    /// The state's name.
    pub state: &'static str,
    /// The event's name.
    pub event: &'static str,
    /// Orders that are possible.
    pub allowed: Vec<&'static str>,
}

impl ProtectionState {
    /// Its name in answers and in the store.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Enabling => "enabling",
            Self::EnablingFailed { .. } => "enabling-failed",
            Self::InitialReplication { .. } => "initial-replication",
            Self::InitialReplicationFailed { .. } => "initial-replication-failed",
            Self::Protected { .. } => "protected",
            Self::Resync { .. } => "resync",
            Self::FailingOver { .. } => "failing-over",
            Self::CommitPending { .. } => "commit-pending",
            Self::Committed => "committed",
            Self::Reprotecting => "reprotecting",
            Self::Reversed => "reversed",
            Self::FailingBack { .. } => "failing-back",
            Self::Migrated => "migrated",
            Self::Disabling => "disabling",
        }
    }

    /// Whether an operator paused it.
    pub const fn is_paused(&self) -> bool {
        matches!(
            self,
            Self::InitialReplication { paused: true }
                | Self::Protected { paused: true }
                | Self::Resync { paused: true, .. }
        )
    }

    /// Whether the source should be shipping its changes.
    pub const fn replicates(&self) -> bool {
        matches!(
            self,
            Self::InitialReplication { paused: false }
                | Self::InitialReplicationFailed { .. }
                | Self::Protected { paused: false }
                | Self::Resync { paused: false, .. }
        )
    }

    /// Whether the old source takes in what runs at the recovery site.
    pub const fn is_reversed(&self) -> bool {
        matches!(self, Self::Reprotecting | Self::Reversed | Self::FailingBack { .. })
    }

    /// The state after `event`, or why there is none. The only road between states.
    pub fn next(self, event: Event) -> Result<Self, IllegalMove> {
        use Event as E;
        use ProtectionState as S;
        Ok(match (self, event) {
            (S::Enabling, E::Related) => S::InitialReplication { paused: false },
            (S::Enabling, E::EnableFailed { reason }) => S::EnablingFailed { reason },
            (S::EnablingFailed { .. }, E::Retry) => S::Enabling,

            (S::InitialReplication { .. }, E::FirstPoint) => S::Protected { paused: false },
            (S::InitialReplication { paused: false }, E::Pause) => S::InitialReplication { paused: true },
            (S::InitialReplication { paused: true }, E::Resume) => S::InitialReplication { paused: false },
            (S::InitialReplication { .. }, E::InitialReplicationStopped { reason }) => {
                S::InitialReplicationFailed { reason }
            }
            (S::InitialReplicationFailed { .. }, E::Retry) => S::InitialReplication { paused: false },
            (S::InitialReplicationFailed { .. }, E::FirstPoint) => S::Protected { paused: false },

            (S::Protected { paused: false }, E::Pause) => S::Protected { paused: true },
            (S::Protected { paused: true }, E::Resume) => S::Protected { paused: false },
            (S::Protected { paused }, E::ResyncRequired { reason }) => S::Resync { reason, paused },
            (S::Resync { reason, paused: false }, E::Pause) => S::Resync { reason, paused: true },
            (S::Resync { reason, paused: true }, E::Resume) => S::Resync { reason, paused: false },
            (S::Resync { .. }, E::ResyncDone) => S::Protected { paused: false },

            // A planned failover needs a live feed; an unplanned one needs only a point.
            (from @ S::Protected { paused: false }, E::FailOver { kind: FailoverKind::Planned }) => {
                S::FailingOver { kind: FailoverKind::Planned, from: Box::new(from) }
            }
            (
                from @ (S::Protected { .. } | S::Resync { .. }),
                E::FailOver { kind: FailoverKind::Unplanned },
            ) => S::FailingOver { kind: FailoverKind::Unplanned, from: Box::new(from) },
            (S::FailingOver { kind, .. }, E::BroughtUp) => S::CommitPending { kind },
            (S::FailingOver { from, .. }, E::FailOverFailed) => *from,

            (S::CommitPending { kind }, E::PointChanged) => S::CommitPending { kind },
            (S::CommitPending { .. }, E::Commit) => S::Committed,
            // The source may have written on: only a comparison tells what differs.
            (S::CommitPending { .. }, E::CancelFailover) => S::Resync {
                reason: "the failover was cancelled: the source is compared with the replica".into(),
                paused: false,
            },

            (S::Committed, E::Reprotect) => S::Reprotecting,
            (S::Reprotecting, E::ReverseWhole) => S::Reversed,
            (S::Reversed, E::ReverseBroken) => S::Reprotecting,
            (S::Reprotecting | S::Reversed, E::StopReprotect) => S::Committed,
            (S::Reversed, E::FailBack { kind }) => S::FailingBack { kind },
            (S::FailingBack { .. }, E::FailBackFailed) => S::Reversed,
            // What it wrote since the failover is known to its map, or found by comparison.
            (S::FailingBack { .. }, E::CameHome) => S::Resync {
                reason: "the machine came home: what it brought back is sent to the replica".into(),
                paused: false,
            },
            (S::Committed, E::Migrate) => S::Migrated,

            (
                S::EnablingFailed { .. }
                | S::InitialReplication { .. }
                | S::InitialReplicationFailed { .. }
                | S::Protected { .. }
                | S::Resync { .. }
                | S::Committed
                | S::Reprotecting
                | S::Reversed
                | S::Migrated,
                E::Disable,
            ) => S::Disabling,
            (state, event) => {
                return Err(IllegalMove {
                    state: state.name(),
                    event: event.name(),
                    allowed: state.orders(),
                });
            }
        })
    }

    /// The orders an operator may give now.
    pub fn orders(&self) -> Vec<&'static str> {
        let orders = [
            Event::Retry,
            Event::Pause,
            Event::Resume,
            Event::FailOver { kind: FailoverKind::Planned },
            Event::FailOver { kind: FailoverKind::Unplanned },
            Event::PointChanged,
            Event::Commit,
            Event::CancelFailover,
            Event::Reprotect,
            Event::StopReprotect,
            Event::FailBack { kind: FailoverKind::Planned },
            Event::Migrate,
            Event::Disable,
        ];
        orders.into_iter().filter(|event| self.allows(event)).map(|event| event.name()).collect()
    }

    /// Whether `event` may happen now.
    pub fn allows(&self, event: &Event) -> bool {
        // `orders` runs inside the error path of `next`; asking through `next` again would recurse.
        use Event as E;
        use ProtectionState as S;
        match event {
            E::Retry => matches!(self, S::EnablingFailed { .. } | S::InitialReplicationFailed { .. }),
            E::Pause => {
                matches!(
                    self,
                    S::InitialReplication { paused: false }
                        | S::Protected { paused: false }
                        | S::Resync { paused: false, .. }
                )
            }
            E::Resume => {
                matches!(
                    self,
                    S::InitialReplication { paused: true }
                        | S::Protected { paused: true }
                        | S::Resync { paused: true, .. }
                )
            }
            E::FailOver { kind: FailoverKind::Planned } => matches!(self, S::Protected { paused: false }),
            E::FailOver { kind: FailoverKind::Unplanned } => {
                matches!(self, S::Protected { .. } | S::Resync { .. })
            }
            E::PointChanged | E::Commit | E::CancelFailover => matches!(self, S::CommitPending { .. }),
            E::Disable => matches!(
                self,
                S::EnablingFailed { .. }
                    | S::InitialReplication { .. }
                    | S::InitialReplicationFailed { .. }
                    | S::Protected { .. }
                    | S::Resync { .. }
                    | S::Committed
                    | S::Reprotecting
                    | S::Reversed
                    | S::Migrated
            ),
            E::Reprotect | E::Migrate => matches!(self, S::Committed),
            E::ReverseWhole => matches!(self, S::Reprotecting),
            E::ReverseBroken | E::FailBack { .. } => matches!(self, S::Reversed),
            E::StopReprotect => matches!(self, S::Reprotecting | S::Reversed),
            E::CameHome | E::FailBackFailed => matches!(self, S::FailingBack { .. }),
            E::Related | E::EnableFailed { .. } => matches!(self, S::Enabling),
            E::FirstPoint => {
                matches!(self, S::InitialReplication { .. } | S::InitialReplicationFailed { .. })
            }
            E::InitialReplicationStopped { .. } => matches!(self, S::InitialReplication { .. }),
            E::ResyncRequired { .. } => matches!(self, S::Protected { .. }),
            E::ResyncDone => matches!(self, S::Resync { .. }),
            E::BroughtUp | E::FailOverFailed => matches!(self, S::FailingOver { .. }),
        }
    }
}

impl Event {
    /// Its name in messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Related => "relate",
            Self::EnableFailed { .. } => "fail enabling",
            Self::FirstPoint => "first point",
            Self::InitialReplicationStopped { .. } => "stop initial replication",
            Self::Retry => "retry",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::ResyncRequired { .. } => "require resync",
            Self::ResyncDone => "end resync",
            Self::FailOver { kind: FailoverKind::Planned } => "planned failover",
            Self::FailOver { kind: FailoverKind::Unplanned } => "unplanned failover",
            Self::BroughtUp => "bring up",
            Self::FailOverFailed => "fail failover",
            Self::PointChanged => "change point",
            Self::Commit => "commit",
            Self::CancelFailover => "cancel failover",
            Self::Reprotect => "reprotect",
            Self::ReverseWhole => "all arrived",
            Self::ReverseBroken => "repair the reverse direction",
            Self::StopReprotect => "stop reprotecting",
            Self::FailBack { .. } => "failback",
            Self::CameHome => "come home",
            Self::FailBackFailed => "fail failback",
            Self::Migrate => "complete migration",
            Self::Disable => "unprotect",
        }
    }
}

/// Where a test failover stands; beside the protection's own state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TestState {
    /// There is none.
    #[default]
    None,
    /// Being brought up.
    Starting,
    /// Up, until it is cleaned up.
    Running,
    /// Being removed.
    Cleaning,
    /// Could not be brought up; cleanup is possible.
    Failed,
}

impl TestState {
    /// Its name in answers and in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Cleaning => "cleaning",
            Self::Failed => "failed",
        }
    }
    /// The state of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::None, Self::Starting, Self::Running, Self::Cleaning, Self::Failed]
            .into_iter()
            .find(|state| state.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states() -> Vec<ProtectionState> {
        use ProtectionState as S;
        let reason = || "because".to_owned();
        vec![
            S::Enabling,
            S::EnablingFailed { reason: reason() },
            S::InitialReplication { paused: false },
            S::InitialReplication { paused: true },
            S::InitialReplicationFailed { reason: reason() },
            S::Protected { paused: false },
            S::Protected { paused: true },
            S::Resync { reason: reason(), paused: false },
            S::Resync { reason: reason(), paused: true },
            S::FailingOver { kind: FailoverKind::Unplanned, from: Box::new(S::Protected { paused: true }) },
            S::CommitPending { kind: FailoverKind::Unplanned },
            S::Committed,
            S::Reprotecting,
            S::Reversed,
            S::FailingBack { kind: FailoverKind::Planned },
            S::FailingBack { kind: FailoverKind::Unplanned },
            S::Migrated,
            S::Disabling,
        ]
    }

    fn events() -> Vec<Event> {
        let reason = || "because".to_owned();
        vec![
            Event::Related,
            Event::EnableFailed { reason: reason() },
            Event::FirstPoint,
            Event::InitialReplicationStopped { reason: reason() },
            Event::Retry,
            Event::Pause,
            Event::Resume,
            Event::ResyncRequired { reason: reason() },
            Event::ResyncDone,
            Event::FailOver { kind: FailoverKind::Planned },
            Event::FailOver { kind: FailoverKind::Unplanned },
            Event::BroughtUp,
            Event::FailOverFailed,
            Event::PointChanged,
            Event::Commit,
            Event::CancelFailover,
            Event::Reprotect,
            Event::ReverseWhole,
            Event::ReverseBroken,
            Event::StopReprotect,
            Event::FailBack { kind: FailoverKind::Planned },
            Event::FailBack { kind: FailoverKind::Unplanned },
            Event::CameHome,
            Event::FailBackFailed,
            Event::Migrate,
            Event::Disable,
        ]
    }

    #[test]
    fn the_table_and_the_list_of_what_is_allowed_agree() {
        for state in states() {
            for event in events() {
                let allowed = state.allows(&event);
                let moved = state.clone().next(event.clone());
                assert_eq!(moved.is_ok(), allowed, "{} while {}", event.name(), state.name());
                if let Err(refused) = moved {
                    assert_eq!(refused.allowed, state.orders());
                }
            }
        }
    }

    #[test]
    fn a_failed_failover_goes_back_where_it_was() {
        let before = ProtectionState::Protected { paused: true };
        let under_way = before.clone().next(Event::FailOver { kind: FailoverKind::Unplanned }).unwrap();
        assert_eq!(under_way.next(Event::FailOverFailed), Ok(before));
    }

    #[test]
    fn nothing_leaves_disabling_and_a_commit_is_final() {
        use ProtectionState as S;
        for event in events() {
            assert!(S::Disabling.next(event.clone()).is_err());
            let after = S::Committed.next(event.clone());
            assert!(matches!(after, Ok(S::Reprotecting | S::Migrated | S::Disabling) | Err(_)));
            // A migration is complete: nothing but its removal is left.
            assert!(matches!(S::Migrated.next(event), Ok(S::Disabling) | Err(_)));
        }
    }

    #[test]
    fn there_and_back_again() {
        use ProtectionState as S;
        let kind = FailoverKind::Planned;
        let way = [
            Event::FailOver { kind },
            Event::BroughtUp,
            Event::Commit,
            Event::Reprotect,
            Event::ReverseWhole,
            Event::ReverseBroken,
            Event::ReverseWhole,
            Event::FailBack { kind },
            Event::FailBackFailed,
            Event::FailBack { kind },
            Event::CameHome,
            Event::ResyncDone,
        ];
        let home = way.into_iter().try_fold(S::Protected { paused: false }, S::next);
        assert_eq!(home, Ok(S::Protected { paused: false }));
        let early = S::Reprotecting.next(Event::FailBack { kind: FailoverKind::Unplanned });
        assert!(early.is_err(), "while nothing whole is at the old source, nothing comes home");
    }
}
