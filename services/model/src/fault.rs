//! The shape every error takes before a person or a script sees it. The same in API, console, verbs and log.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An error for people: what happened, what is affected and what is not, what to do next.
///
/// Its texts are plain: whatever came from outside was escaped when it was put in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable and greppable, such as `replica.full` or `protection.illegal-move`.
    pub code: String,
    /// What class of trouble; decides exit code and retry.
    #[serde(skip)]
    pub class: FaultClass,
    /// One plain sentence: what was attempted on what, and which measured fact failed.
    pub message: String,
    /// What is affected.
    pub affected: String,
    /// What is not.
    pub unaffected: String,
    /// The next step, as a command or a key.
    pub remedy: String,
    /// Ties this error to its log lines.
    pub correlation: String,
}

/// Classes of trouble, with the exit code of a verb that ends in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FaultClass {
    /// It was tried and failed.
    #[default]
    Failed,
    /// The request itself makes no sense.
    Usage,
    /// What was asked is not possible now; nothing was changed.
    NotReady,
    /// The other side could not be reached.
    NotConnected,
    /// Not allowed.
    Refused,
    /// Another person must agree first.
    WaitingForApproval,
    /// The configuration is wrong.
    Configuration,
    /// No such thing.
    NotFound,
    /// It exists already, or changed meanwhile.
    Conflict,
}

impl FaultClass {
    /// The exit code of a verb.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotReady | Self::NotFound | Self::Conflict => 3,
            Self::NotConnected => 4,
            Self::Refused => 5,
            Self::WaitingForApproval => 6,
            Self::Configuration => 78,
        }
    }
    const NAMES: [(Self, &'static str); 9] = [
        (Self::Failed, "failed"),
        (Self::Usage, "usage"),
        (Self::NotReady, "not-ready"),
        (Self::NotConnected, "not-connected"),
        (Self::Refused, "refused"),
        (Self::WaitingForApproval, "waiting-for-approval"),
        (Self::Configuration, "configuration"),
        (Self::NotFound, "not-found"),
        (Self::Conflict, "conflict"),
    ];
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(class, _)| *class == self).map_or("failed", |(_, name)| name)
    }
    /// The class of a name; `Failed` for one we do not know.
    pub fn named(name: &str) -> Self {
        Self::NAMES.iter().find(|(_, known)| *known == name).map_or(Self::Failed, |(class, _)| *class)
    }
}

impl Fault {
    /// A fault with code and message; the rest is added by the builder methods below.
    pub fn new(class: FaultClass, code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            class,
            message: message.into(),
            affected: String::new(),
            unaffected: String::new(),
            remedy: String::new(),
            correlation: String::new(),
        }
    }
    /// What is affected.
    #[must_use]
    pub fn affects(mut self, text: impl Into<String>) -> Self {
        self.affected = text.into();
        self
    }
    /// What is not affected.
    #[must_use]
    pub fn spares(mut self, text: impl Into<String>) -> Self {
        self.unaffected = text.into();
        self
    }
    /// What to do next.
    #[must_use]
    pub fn remedy(mut self, text: impl Into<String>) -> Self {
        self.remedy = text.into();
        self
    }
    /// Ties it to its log lines.
    #[must_use]
    pub fn correlated(mut self, id: impl Into<String>) -> Self {
        self.correlation = id.into();
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)?;
        for (label, text) in
            [("affected", &self.affected), ("not affected", &self.unaffected), ("next", &self.remedy)]
        {
            if !text.is_empty() {
                write!(f, "\n  {label}: {text}")?;
            }
        }
        if !self.correlation.is_empty() {
            write!(f, "\n  correlation: {}", self.correlation)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_survives_its_name() {
        for (class, name) in FaultClass::NAMES {
            assert_eq!(FaultClass::named(name), class);
            assert_eq!(class.name(), name);
        }
        assert_eq!(FaultClass::named("from the future"), FaultClass::Failed);
    }
}
