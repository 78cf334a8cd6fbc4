//! Recovery points, and how a moment is asked for.

use crate::feed::BarrierKind;
use crate::id::PointId;
use crate::time::Timestamp;
use crate::units::Sequence;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// A moment that can be brought up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPoint {
    /// Its id, where it is a listed one; `None` for a moment between points.
    pub id: Option<PointId>,
    /// Everything up to and including this record.
    pub position: Sequence,
    /// Every write acknowledged before this moment is in, none issued after it is.
    pub time: Timestamp,
    /// What kind.
    pub kind: PointKind,
    /// What a person called it. Text from outside.
    pub name: String,
}

/// What a point promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// What a power cut at that moment would have left.
    Crash,
    /// Frozen, thawed, both confirmed.
    App,
    /// Crash-consistent, and named by a person.
    Bookmark,
}

impl PointKind {
    /// The kind of point a barrier makes; a time mark between points is crash-consistent.
    pub const fn of(barrier: BarrierKind) -> Self {
        match barrier {
            BarrierKind::TimeMark | BarrierKind::Crash => Self::Crash,
            BarrierKind::Application => Self::App,
            BarrierKind::Bookmark => Self::Bookmark,
        }
    }
    /// Its name in answers: `crash`, `app`, `bookmark`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::App => "app",
            Self::Bookmark => "bookmark",
        }
    }
    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Crash, Self::App, Self::Bookmark].into_iter().find(|kind| kind.name() == name)
    }
}

/// Which moment an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointChoice {
    /// Process everything received, then the newest: the least loss.
    Latest,
    /// The newest that is already processed: the least wait.
    LatestProcessed,
    /// The newest application-consistent one.
    LatestApplication,
    /// A listed point.
    Id(PointId),
    /// The newest moment at or before this one.
    Moment(Timestamp),
}

impl FromStr for PointChoice {
    type Err = InvalidPointChoice;
    fn from_str(text: &str) -> Result<Self, InvalidPointChoice> {
        match text.trim() {
            "latest" => Ok(Self::Latest),
            "processed" => Ok(Self::LatestProcessed),
            "app" => Ok(Self::LatestApplication),
            text => text
                .parse()
                .map(Self::Id)
                .or_else(|_| text.parse().map(Self::Moment))
                .map_err(|_| InvalidPointChoice),
        }
    }
}

impl std::fmt::Display for PointChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::LatestProcessed => f.write_str("processed"),
            Self::LatestApplication => f.write_str("app"),
            Self::Id(id) => id.fmt(f),
            Self::Moment(at) => at.fmt(f),
        }
    }
}

/// A text that names no point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a recovery point: write latest, processed, app, a point's id, or a time such as 2026-11-23T03:15:00Z"
)]
pub struct InvalidPointChoice;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_survives_its_text() {
        let texts = [
            "latest",
            "processed",
            "app",
            "01920b5e-7a3c-7cc1-9a37-3e5b0f6d2c11",
            "2026-11-23T03:15:00.000000Z",
        ];
        for text in texts {
            assert_eq!(text.parse::<PointChoice>().unwrap().to_string(), text);
        }
        assert!("--oldest".parse::<PointChoice>().is_err());
    }
}
