//! Typed identifiers. A bare `Uuid` never crosses a function boundary.
//!
//! Lives here: the id types and their text form. Ids are made by whoever owns the thing (through
//! [`crate::world::Entropy`]), never derived from a name that came from outside.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! typed_ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps an id that was made elsewhere.
            pub const fn from_uuid(id: Uuid) -> Self { Self(id) }
            /// A new id: time-ordered, so that rows and folders sort by age.
            pub fn make(at: crate::time::Timestamp, entropy: &mut dyn crate::world::Entropy) -> Self {
                let mut random = [0u8; 10];
                entropy.fill(&mut random);
                let millis = u64::try_from(at.micros().max(0) / 1000).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
            }
            /// The sixteen bytes, as they stand in file and frame headers.
            pub const fn as_bytes(&self) -> &[u8; 16] { self.0.as_bytes() }
            /// The id that `as_bytes` came from.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self { Self(Uuid::from_bytes(bytes)) }
            /// The last eight hexadecimal digits: enough for a person to tell two apart on a screen.
            pub fn short(&self) -> String {
                let text = self.0.simple().to_string();
                text[text.len() - 8..].to_owned()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}({})", stringify!($name), self.0) }
        }
        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId { kind: stringify!($name) })
            }
        }
    )*};
}

typed_ids! {
    /// A vault: one control plane and the certificate authority of its estate.
    VaultId;
    /// A place where machines run or are recovered.
    SiteId;
    /// A registered Continuum process with an identity of its own.
    ServerId;
    /// A machine, protected or not.
    MachineId;
    /// One disk of one machine.
    DiskId;
    /// A protection policy.
    PolicyId;
    /// A named or listed recovery point.
    PointId;
    /// A long operation.
    JobId;
    /// An alert, open or cleared.
    AlertId;
    /// A view of a replica that is open, with its overlay.
    ViewId;
    /// A one-use enrolment token (its public half).
    TokenId;
}

/// A text that is no id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: expected a UUID such as 01920b5e-7a3c-7cc1-9a37-3e5b0f6d2c11")]
pub struct InvalidId {
    kind: &'static str,
}
