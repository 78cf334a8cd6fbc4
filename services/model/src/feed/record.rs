//! One record of a feed: a write, a range of zeroes, a barrier, or the mark of a break.
//!
//! ```text
//! 0  kind u8         1 write · 2 zero · 3 barrier · 4 break
//! 1  flags u8        bit 0: injected (a read that was put into the feed, not a guest's write)
//!                    barriers: bit 1: consistent · bit 2: makes a recovery point (both as in its mark)
//! 2  disk u16        which disk; 0 for barrier and break
//! 4  length u32      bytes of disk that change; 0 for barrier and break
//! 8  offset u64      byte offset on the disk
//! 16 sequence u64    place in the feed; each record has one more than the one before
//! 24 time i64        µs of UTC, strictly later than the record before
//! 32 data_at u32     where the data starts in the frame's uncompressed payload
//! 36 data_len u32    write: = length · zero: 0 · barrier: its mark (see `Barrier`) · break: 0
//! 40 data_sum u64    xxh3-64 of the data, seeded with disk and offset, so that data cannot stand in another place
//! 48 zero [16]       reserved, refused when not zero
//! ```
//!
//! All numbers little-endian. A record's moment says: every write acknowledged before it is in, none
//! issued after it is. It is stamped between the two, under the feed's one lock.

use crate::id::PointId;
use crate::time::Timestamp;
use crate::units::{DiskIndex, Sequence};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes of one record in the table.
pub const RECORD_BYTES: usize = 64;
/// The longest write a record can carry: what NBD allows in one request.
pub const WRITE_BYTES_MAX: u32 = 32 << 20;
/// The longest barrier name, in bytes.
pub const NAME_BYTES_MAX: usize = 200;

/// One record, with its data as a slice of the frame's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place in the feed.
    pub sequence: Sequence,
    /// When it happened, as told by the source.
    pub time: Timestamp,
    /// What happened.
    pub change: Change,
}

/// What a record does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `data` now stands at `offset` of `disk`.
    Write {
        /// Which disk.
        disk: DiskIndex,
        /// Byte offset.
        offset: u64,
        /// The new content.
        data: Bytes,
        /// A read that was put into the feed (initial replication, catching up, resync).
        injected: bool,
    },
    /// `length` bytes from `offset` of `disk` now read as zeroes.
    Zero {
        /// Which disk.
        disk: DiskIndex,
        /// Byte offset.
        offset: u64,
        /// Bytes; fits 32 bits.
        length: u32,
        /// As for a write.
        injected: bool,
    },
    /// A mark in the feed where a recovery point may be cut.
    Barrier(Barrier),
    /// The feed was broken here: changes happened that are not in it (a crash, bitmap mode). What
    /// follows repairs the replica by injected reads; the next consistent barrier ends the repair.
    Break,
}

impl Change {
    /// Whether this is a read that was injected.
    pub const fn is_injected(&self) -> bool {
        matches!(self, Self::Write { injected: true, .. } | Self::Zero { injected: true, .. })
    }
}

/// A mark in the feed.
///
/// Its bytes in the payload: `kind u8 · consistent u8 · name length u16 · point id [16] · name (UTF-8)`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// What kind of mark.
    pub kind: BarrierKind,
    /// The disks at this place are a state that the source had. False while a repair is under way.
    pub consistent: bool,
    /// The recovery point it makes; `None` for a mere time mark.
    pub point: Option<PointId>,
    /// What a person called it; empty where nobody did. Text from outside.
    pub name: String,
}

/// Why a barrier was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarrierKind {
    /// Says that nothing else happened up to this moment. Makes no recovery point.
    TimeMark,
    /// Crash-consistent: what a power cut would leave.
    Crash,
    /// Application-consistent: frozen and thawed, both confirmed.
    Application,
    /// Set by a person, by name.
    Bookmark,
}

impl Barrier {
    /// A mark that only says what time it is.
    pub fn time_mark(consistent: bool) -> Self {
        Self { kind: BarrierKind::TimeMark, consistent, point: None, name: String::new() }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut end = self.name.len().min(NAME_BYTES_MAX);
        while !self.name.is_char_boundary(end) {
            end -= 1;
        }
        let name = &self.name.as_bytes()[..end];
        out.push(match self.kind {
            BarrierKind::TimeMark => 0,
            BarrierKind::Crash => 1,
            BarrierKind::Application => 2,
            BarrierKind::Bookmark => 3,
        });
        out.push(u8::from(self.consistent));
        out.extend_from_slice(&(end as u16).to_le_bytes());
        out.extend_from_slice(self.point.as_ref().map_or(&[0u8; 16], |id| id.as_bytes()));
        out.extend_from_slice(name);
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, name) = bytes.split_at_checked(20)?;
        let kind = match head[0] {
            0 => BarrierKind::TimeMark,
            1 => BarrierKind::Crash,
            2 => BarrierKind::Application,
            3 => BarrierKind::Bookmark,
            _ => return None,
        };
        let consistent = match head[1] {
            0 => false,
            1 => true,
            _ => return None,
        };
        if usize::from(u16::from_le_bytes([head[2], head[3]])) != name.len() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        let id: [u8; 16] = head[4..20].try_into().ok()?;
        let point = (id != [0; 16]).then(|| PointId::from_bytes(id));
        Some(Self { kind, consistent, point, name: String::from_utf8(name.to_vec()).ok()? })
    }
}

/// Follows a feed and says after each record whether the position is one that the source was in.
///
/// Between a break or the first injected read, and the next consistent barrier, the replica passes
/// through states that never were; none of those positions is ever offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legality {
    repairing: bool,
}

impl Default for Legality {
    /// A feed that begins: nothing is there yet, so nothing can be offered.
    fn default() -> Self {
        Self { repairing: true }
    }
}

impl Legality {
    /// A feed that goes on from a state that was.
    pub const fn legal() -> Self {
        Self { repairing: false }
    }
    /// Takes the next record and answers: may its position be brought up?
    pub fn after(&mut self, change: &Change) -> bool {
        match change {
            Change::Break => self.repairing = true,
            Change::Barrier(barrier) => self.repairing = !barrier.consistent,
            change if change.is_injected() => self.repairing = true,
            Change::Write { .. } | Change::Zero { .. } => {}
        }
        !self.repairing
    }
    /// The same for a row of a frame's table, which tells enough.
    pub fn after_row(&mut self, row: &super::frame::Row) -> bool {
        use super::frame::RowKind;
        match row.kind {
            RowKind::Break => self.repairing = true,
            RowKind::Barrier => self.repairing = !row.consistent,
            RowKind::Write | RowKind::Zero if row.injected => self.repairing = true,
            RowKind::Write | RowKind::Zero => {}
        }
        !self.repairing
    }
    /// Whether the newest position may be brought up.
    pub const fn is_legal(self) -> bool {
        !self.repairing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(injected: bool) -> Change {
        Change::Write { disk: DiskIndex(0), offset: 0, data: Bytes::from_static(b"x"), injected }
    }
    fn mark(consistent: bool) -> Change {
        Change::Barrier(Barrier::time_mark(consistent))
    }

    #[test]
    fn only_states_that_were_are_legal() {
        let mut legality = Legality::default();
        let feed = [
            (write(true), false, "initial replication"),
            (write(false), false, "a guest's write in the middle of it"),
            (mark(false), false, "a time mark says nothing about consistency"),
            (mark(true), true, "the first barrier after the last injection"),
            (write(false), true, "every record boundary of a continuous stretch"),
            (Change::Break, false, "a crash lost what was in flight"),
            (write(false), false, "not yet repaired"),
            (mark(true), true, "repaired"),
        ];
        for (change, legal, why) in feed {
            assert_eq!(legality.after(&change), legal, "{why}");
        }
    }

    #[test]
    fn a_barrier_survives_its_bytes() {
        let barrier = Barrier {
            kind: BarrierKind::Bookmark,
            consistent: true,
            point: Some(PointId::from_bytes([7; 16])),
            name: "vor dem Umzug ✓".into(),
        };
        let mut bytes = Vec::new();
        barrier.encode(&mut bytes);
        assert_eq!(Barrier::decode(&bytes), Some(barrier));
        for end in 0..bytes.len() {
            assert_eq!(Barrier::decode(&bytes[..end]), None, "cut at {end}");
        }
        bytes[0] = 9;
        assert_eq!(Barrier::decode(&bytes), None, "unknown kind");
    }

    #[test]
    fn an_overlong_name_is_cut_between_characters() {
        let barrier = Barrier { name: "é".repeat(200), ..Barrier::time_mark(true) };
        let mut bytes = Vec::new();
        barrier.encode(&mut bytes);
        assert_eq!(Barrier::decode(&bytes).unwrap().name, "é".repeat(100));
    }
}
