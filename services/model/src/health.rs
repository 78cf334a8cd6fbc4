//! Health, modes and symptoms: what an operator is told about a protection.

use serde::{Deserialize, Serialize};

/// How well a protection is. The worst of its symptoms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// Not replicating by intent: failed over, committed, or not protected.
    NotApplicable,
    /// Everything holds.
    Healthy,
    /// Something needs a look.
    Warning,
    /// A promise is broken.
    Critical,
}

/// How the source ships its changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every write, in order: any moment can be brought up.
    Data,
    /// Cycle after cycle, each of them whole: the moment of each can be brought up.
    Interval,
    /// Only the change map grows: no new recovery points, the last ones stay valid.
    Bitmap,
    /// Changed regions are being injected.
    CatchingUp,
}

macro_rules! named {
    ($ty:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        impl $ty {
            /// Its name in answers and on the wire.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
            /// The one with this name.
            pub fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}
named!(Health { NotApplicable = "not-applicable", Healthy = "healthy", Warning = "warning", Critical = "critical" });
named!(Mode { Data = "data", Interval = "interval", Bitmap = "bitmap", CatchingUp = "catching-up" });

impl Mode {
    /// Whether nothing is to be repaired: what happens at the source becomes points, each in its time.
    pub const fn is_whole(self) -> bool {
        matches!(self, Self::Data | Self::Interval)
    }
}

/// One reason why a protection is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symptom {
    /// Stable, such as `rpo.exceeded`.
    pub code: String,
    /// How bad.
    pub severity: Health,
    /// What is measured.
    pub text: String,
    /// What to do.
    pub remedy: String,
}
