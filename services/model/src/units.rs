//! Sizes and offsets whose unit is in the type.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A count of bytes: sizes, budgets, amounts sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Kibibytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
    /// Mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// Gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1023.95 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        write!(f, "{value:.1} {}", UNITS[unit])
    }
}

/// A size as people write it: `64M`, `1GiB`, `512k`, `1048576`. Units are powers of 1024.
impl std::str::FromStr for Bytes {
    type Err = InvalidSize;
    fn from_str(text: &str) -> Result<Self, InvalidSize> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(InvalidSize),
        };
        let number: u64 = number.parse().map_err(|_| InvalidSize)?;
        number.checked_mul(1u64 << shift).map(Self).ok_or(InvalidSize)
    }
}

/// A text that is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a size: write a whole number with an optional unit, such as 512M or 2GiB")]
pub struct InvalidSize;

/// A number of the holder of a replica's pen. The vault hands them out, always upwards; the target
/// refuses every writer but the newest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// The place of a record in its machine's feed. Also a position in history: "everything up to and
/// including this record". Zero is before the first record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// The number of a frame in its machine's feed. The first frame has number 1, and none is ever left out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FrameNumber(pub u64);

/// The place of a disk in its machine's list of disks, as frames name it. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskIndex(pub u16);

macro_rules! shown_as_number {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.fmt(f) }
        }
    )*};
}
shown_as_number! { Epoch Sequence FrameNumber DiskIndex }

impl Sequence {
    /// The next one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
impl FrameNumber {
    /// The next one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The unit of the change map and of block checksums: 64 KiB.
pub const REGION_BYTES: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [("512", 512), ("64M", 64 << 20), ("1GiB", 1 << 30), ("8 k", 8 << 10)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for wrong in ["", "M", "-1", "1.5G", "99999999999999999999", "17179869184T", "1X"] {
            assert_eq!(wrong.parse::<Bytes>(), Err(InvalidSize), "{wrong}");
        }
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes::mib(64).to_string(), "64.0 MiB");
    }
}
