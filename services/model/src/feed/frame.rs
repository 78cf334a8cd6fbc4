//! A frame: a batch of records under one header, with a digest that chains it to the frame before.
//!
//! ```text
//! 0   magic "CTMFRAM1"        8   version u16 = 1      10 header length u16 = 144   12 flags u32 = 0
//! 16  machine [16]            32  epoch u64            40 number u64                48 session u64
//! 56  first sequence u64      64  records u32          68 payload length u32 (uncompressed)
//! 72  first time i64          80  last time i64
//! 88  previous digest u128    104 table sum u128 (xxh3-128 of the record table)
//! 120 reserved [8] zero       128 header sum u128 (xxh3-128 of bytes 0..128)
//! 144 the record table, 64 bytes a record (see `record`)
//! ```
//!
//! The header sum is the frame's **digest**: it covers the table, the table covers each record's data
//! sum, and the next frame names it as `previous`. So one digest stands for the whole history up to it.
//! The head is made once, by the agent, and reaches the replica unchanged.

use super::record::{Barrier, Change, RECORD_BYTES, Record, WRITE_BYTES_MAX};
use crate::id::MachineId;
use crate::time::Timestamp;
use crate::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 144;
/// Most records in one frame.
pub const RECORDS_MAX: usize = 16_384;
/// Most payload in one frame, uncompressed: one longest write and a batch beside it.
pub const PAYLOAD_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + (2 << 20);
/// Longest head.
pub const HEAD_BYTES_MAX: usize = HEADER_BYTES + RECORDS_MAX * RECORD_BYTES;
const MAGIC: &[u8; 8] = b"CTMFRAM1";
const VERSION: u16 = 1;

/// Whose frame this is and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Whose feed.
    pub machine: MachineId,
    /// Under which epoch it was written.
    pub epoch: Epoch,
    /// Its number in the feed.
    pub number: FrameNumber,
    /// A random number drawn at each start of the agent.
    pub session: u64,
    /// The digest of the frame before; 0 for the first.
    pub previous: u128,
}

/// A decoded, verified head. The payload is verified against it by [`FrameHead::open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHead {
    /// Whose, which number, after which.
    pub identity: Identity,
    /// Sequence of the first record.
    pub first_sequence: Sequence,
    /// Moment of the first record.
    pub first_time: Timestamp,
    /// Moment of the last record.
    pub last_time: Timestamp,
    /// Length of the uncompressed payload.
    pub payload_len: u32,
    /// The digest, as the next frame names it.
    pub digest: u128,
    /// The rows of the table.
    pub rows: Vec<Row>,
    bytes: Bytes,
}

/// One row of the record table: a record without its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// What the record does.
    pub kind: RowKind,
    /// Whether it was injected.
    pub injected: bool,
    /// A barrier that is consistent. Stands in its mark as well; here it is known without the payload.
    pub consistent: bool,
    /// A barrier that makes a recovery point.
    pub point: bool,
    /// Which disk.
    pub disk: DiskIndex,
    /// Bytes of disk that change.
    pub length: u32,
    /// Byte offset on the disk.
    pub offset: u64,
    /// Moment.
    pub time: Timestamp,
    /// Place in the feed.
    pub sequence: Sequence,
    /// Where its data starts in the uncompressed payload.
    pub data_at: u32,
    /// How long its data is.
    pub data_len: u32,
    /// Its data's checksum.
    pub data_sum: u64,
}

/// The kind of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// Data.
    Write,
    /// Zeroes.
    Zero,
    /// A mark.
    Barrier,
    /// The feed was broken.
    Break,
}

/// A whole frame: head and uncompressed payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The head.
    pub head: FrameHead,
    /// The records' data, uncompressed.
    pub payload: Bytes,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too short, or lengths that do not agree.
    #[error("frame is cut: {got} bytes where {needed} are needed")]
    Cut {
        /// What is there.
        got: usize,
        /// What should be.
        needed: usize,
    },
    /// Not a frame at all.
    #[error("not a frame: it does not begin with CTMFRAM1")]
    Magic,
    /// Made by a newer program.
    #[error("unsupported frame version {0}; this program reads version 1: update it")]
    Version(u16),
    /// A checksum does not match.
    #[error("frame {number}: {part} does not match its checksum; nothing of it was used")]
    Sum {
        /// The number it claims.
        number: u64,
        /// Which part.
        part: &'static str,
    },
    /// A field holds what it cannot hold.
    #[error("frame {number}: {field} is out of bounds; nothing of it was used")]
    Field {
        /// The number it claims.
        number: u64,
        /// Which field.
        field: &'static str,
    },
}

/// The checksum of a record's data, bound to its place.
pub fn data_sum(disk: DiskIndex, offset: u64, data: &[u8]) -> u64 {
    xxh3_64_with_seed(data, offset.rotate_left(16) ^ u64::from(disk.0))
}

impl FrameHead {
    /// Reads and verifies a head (header and table, exactly).
    ///
    /// Errors: any bit that differs from what the agent made. What is returned agrees with itself:
    /// lengths, order, sequence, and every row's data lies inside the payload.
    pub fn decode(bytes: &Bytes) -> Result<Self, FrameError> {
        let header =
            bytes.get(..HEADER_BYTES).ok_or(FrameError::Cut { got: bytes.len(), needed: HEADER_BYTES })?;
        if &header[..8] != MAGIC {
            return Err(FrameError::Magic);
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let number = u64_at(header, 40);
        if xxh3_128(&header[..128]) != u128_at(header, 128) {
            return Err(FrameError::Sum { number, part: "header" });
        }
        let field = |field| FrameError::Field { number, field };
        if usize::from(u16::from_le_bytes([header[10], header[11]])) != HEADER_BYTES
            || header[12..16] != [0; 4]
            || header[120..128] != [0; 8]
        {
            return Err(field("header length or a reserved field"));
        }
        let records = u32_at(header, 64) as usize;
        let payload_len = u32_at(header, 68);
        if records == 0 || records > RECORDS_MAX {
            return Err(field("number of records"));
        }
        if payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(field("payload length"));
        }
        if number == 0 || number == u64::MAX {
            return Err(field("frame number"));
        }
        let needed = HEADER_BYTES + records * RECORD_BYTES;
        if bytes.len() != needed {
            return Err(FrameError::Cut { got: bytes.len(), needed });
        }
        let table = &bytes[HEADER_BYTES..];
        if xxh3_128(table) != u128_at(header, 104) {
            return Err(FrameError::Sum { number, part: "record table" });
        }
        let first_sequence = u64_at(header, 56);
        let (first_time, last_time) = (i64_at(header, 72), i64_at(header, 80));
        let mut rows = Vec::with_capacity(records);
        let (mut sequence, mut time, mut data_at) = (first_sequence, i64::MIN, 0u32);
        for bytes in table.chunks_exact(RECORD_BYTES) {
            let row = Row::decode(bytes).ok_or_else(|| field("a record"))?;
            if row.sequence.0 != sequence || sequence == 0 {
                return Err(field("a record's sequence"));
            }
            if row.time.micros() <= time {
                return Err(field("a record's time"));
            }
            if row.data_at != data_at {
                return Err(field("a record's data position"));
            }
            time = row.time.micros();
            sequence = sequence.checked_add(1).ok_or_else(|| field("a record's sequence"))?;
            data_at = data_at
                .checked_add(row.data_len)
                .filter(|end| *end <= payload_len)
                .ok_or_else(|| field("a record's data length"))?;
            rows.push(row);
        }
        if data_at != payload_len {
            return Err(field("payload length"));
        }
        if rows[0].time.micros() != first_time || time != last_time {
            return Err(field("first or last time"));
        }
        let machine: [u8; 16] = header[16..32].try_into().map_err(|_| FrameError::Magic)?;
        Ok(Self {
            identity: Identity {
                machine: MachineId::from_bytes(machine),
                epoch: Epoch(u64_at(header, 32)),
                number: FrameNumber(number),
                session: u64_at(header, 48),
                previous: u128_at(header, 88),
            },
            first_sequence: Sequence(first_sequence),
            first_time: Timestamp::from_micros(first_time),
            last_time: Timestamp::from_micros(last_time),
            payload_len,
            digest: u128_at(header, 128),
            rows,
            bytes: bytes.clone(),
        })
    }

    /// The head's bytes, exactly as the agent made them.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Sequence of the last record.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.first_sequence.0 + self.rows.len() as u64 - 1)
    }

    /// Joins the head with its uncompressed payload after verifying every record's data.
    pub fn open(self, payload: Bytes) -> Result<Frame, FrameError> {
        let number = self.identity.number.0;
        if payload.len() != self.payload_len as usize {
            return Err(FrameError::Cut { got: payload.len(), needed: self.payload_len as usize });
        }
        for row in &self.rows {
            let data = &payload[row.data_at as usize..][..row.data_len as usize];
            if data_sum(row.disk, row.offset, data) != row.data_sum {
                return Err(FrameError::Sum { number, part: "a record's data" });
            }
            if row.kind == RowKind::Barrier
                && !Barrier::decode(data).is_some_and(|mark| {
                    (mark.consistent, mark.point.is_some()) == (row.consistent, row.point)
                })
            {
                return Err(FrameError::Field { number, field: "a barrier" });
            }
        }
        Ok(Frame { head: self, payload })
    }
}

impl Frame {
    /// The record of a row of this frame, its data sliced from the payload without a copy.
    pub fn record(&self, row: &Row) -> Record {
        let data = self.payload.slice(row.data_at as usize..(row.data_at + row.data_len) as usize);
        let change = match row.kind {
            RowKind::Write => {
                Change::Write { disk: row.disk, offset: row.offset, data, injected: row.injected }
            }
            RowKind::Zero => Change::Zero {
                disk: row.disk,
                offset: row.offset,
                length: row.length,
                injected: row.injected,
            },
            RowKind::Break => Change::Break,
            // `open` decoded every barrier once; a frame cannot exist with one that does not decode.
            RowKind::Barrier => {
                Change::Barrier(Barrier::decode(&data).unwrap_or_else(|| Barrier::time_mark(false)))
            }
        };
        Record { sequence: row.sequence, time: row.time, change }
    }

    /// All records in order.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.head.rows.iter().map(|row| self.record(row))
    }
}

impl Row {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = match bytes[0] {
            1 => RowKind::Write,
            2 => RowKind::Zero,
            3 => RowKind::Barrier,
            4 => RowKind::Break,
            _ => return None,
        };
        let flags_known = if kind == RowKind::Barrier { 6 } else { 1 };
        if bytes[1] & !flags_known != 0 || bytes[48..64] != [0; 16] {
            return None;
        }
        let row = Self {
            kind,
            injected: bytes[1] & 1 != 0,
            consistent: bytes[1] & 2 != 0,
            point: bytes[1] & 4 != 0,
            disk: DiskIndex(u16::from_le_bytes([bytes[2], bytes[3]])),
            length: u32_at(bytes, 4),
            offset: u64_at(bytes, 8),
            sequence: Sequence(u64_at(bytes, 16)),
            time: Timestamp::from_micros(i64_at(bytes, 24)),
            data_at: u32_at(bytes, 32),
            data_len: u32_at(bytes, 36),
            data_sum: u64_at(bytes, 40),
        };
        row.offset.checked_add(u64::from(row.length))?;
        let agrees = match kind {
            RowKind::Write => row.length > 0 && row.length == row.data_len && row.length <= WRITE_BYTES_MAX,
            RowKind::Zero => row.length > 0 && row.data_len == 0,
            RowKind::Barrier => row.length == 0 && row.data_len > 0 && !row.injected,
            RowKind::Break => row.length == 0 && row.data_len == 0 && !row.injected,
        };
        agrees.then_some(row)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.kind {
            RowKind::Write => 1,
            RowKind::Zero => 2,
            RowKind::Barrier => 3,
            RowKind::Break => 4,
        });
        out.push(u8::from(self.injected) | u8::from(self.consistent) << 1 | u8::from(self.point) << 2);
        out.extend_from_slice(&self.disk.0.to_le_bytes());
        out.extend_from_slice(&self.length.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.sequence.0.to_le_bytes());
        out.extend_from_slice(&self.time.micros().to_le_bytes());
        out.extend_from_slice(&self.data_at.to_le_bytes());
        out.extend_from_slice(&self.data_len.to_le_bytes());
        out.extend_from_slice(&self.data_sum.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
    }
}

/// Collects records into one frame. Reused from frame to frame: it keeps its table's capacity.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    rows: Vec<Row>,
    payload: Vec<u8>,
    spare: Vec<Vec<u8>>,
}

/// Payload buffers that a builder keeps for frames to come.
const SPARE_MAX: usize = 8;
/// The longest one it keeps.
const SPARE_BYTES_MAX: usize = 2 << 20;

impl FrameBuilder {
    /// Appends a record, copying its data. The caller keeps sequence and time strictly rising, and asks
    /// [`FrameBuilder::has_room_for`] first.
    pub fn push(&mut self, record: &Record) {
        let data_at = self.payload.len() as u32;
        let (kind, disk, offset, length, injected) = match &record.change {
            Change::Write { disk, offset, data, injected } => {
                self.payload.extend_from_slice(data);
                (RowKind::Write, *disk, *offset, data.len() as u32, *injected)
            }
            Change::Zero { disk, offset, length, injected } => {
                (RowKind::Zero, *disk, *offset, *length, *injected)
            }
            Change::Barrier(barrier) => {
                barrier.encode(&mut self.payload);
                (RowKind::Barrier, DiskIndex(0), 0, 0, false)
            }
            Change::Break => (RowKind::Break, DiskIndex(0), 0, 0, false),
        };
        let data = &self.payload[data_at as usize..];
        let (consistent, point) = match &record.change {
            Change::Barrier(barrier) => (barrier.consistent, barrier.point.is_some()),
            Change::Write { .. } | Change::Zero { .. } | Change::Break => (false, false),
        };
        self.rows.push(Row {
            kind,
            injected,
            consistent,
            point,
            disk,
            length,
            offset,
            time: record.time,
            sequence: record.sequence,
            data_at,
            data_len: data.len() as u32,
            data_sum: data_sum(disk, offset, data),
        });
    }

    /// Appends a write whose data the caller keeps, and whose [`data_sum`] it made before it took the
    /// feed's lock. Otherwise as [`FrameBuilder::push`].
    pub fn push_write(
        &mut self,
        (sequence, time): (Sequence, Timestamp),
        (disk, offset): (DiskIndex, u64),
        data: &[u8],
        data_sum: u64,
        injected: bool,
    ) {
        let data_at = self.payload.len() as u32;
        self.payload.extend_from_slice(data);
        self.rows.push(Row {
            kind: RowKind::Write,
            injected,
            consistent: false,
            point: false,
            disk,
            length: data.len() as u32,
            offset,
            time,
            sequence,
            data_at,
            data_len: data.len() as u32,
            data_sum,
        });
    }

    /// Takes the payload of a frame that is over and done with, to fill it again: memory that was used
    /// before costs no page faults. Taken only while nobody else holds it.
    pub fn recycle(&mut self, payload: Bytes) {
        if self.spare.len() < SPARE_MAX && payload.len() <= SPARE_BYTES_MAX && payload.is_unique() {
            let mut payload = Vec::from(payload);
            payload.clear();
            self.spare.push(payload);
        }
    }

    /// Whether a record with `data_len` bytes of data still fits.
    pub fn has_room_for(&self, data_len: usize) -> bool {
        self.rows.len() < RECORDS_MAX && self.payload.len() + data_len <= PAYLOAD_BYTES_MAX
    }

    /// Bytes of data collected so far.
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Ends the frame and starts anew. `None` when nothing was collected.
    pub fn finish(&mut self, identity: Identity) -> Option<Frame> {
        let (first, last) = (*self.rows.first()?, *self.rows.last()?);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.rows.len() * RECORD_BYTES);
        bytes.resize(HEADER_BYTES, 0);
        for row in &self.rows {
            row.encode(&mut bytes);
        }
        let table_sum = xxh3_128(&bytes[HEADER_BYTES..]);
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &(HEADER_BYTES as u16).to_le_bytes());
        put(16, identity.machine.as_bytes());
        put(32, &identity.epoch.0.to_le_bytes());
        put(40, &identity.number.0.to_le_bytes());
        put(48, &identity.session.to_le_bytes());
        put(56, &first.sequence.0.to_le_bytes());
        put(64, &(self.rows.len() as u32).to_le_bytes());
        put(68, &(self.payload.len() as u32).to_le_bytes());
        put(72, &first.time.micros().to_le_bytes());
        put(80, &last.time.micros().to_le_bytes());
        put(88, &identity.previous.to_le_bytes());
        put(104, &table_sum.to_le_bytes());
        let digest = xxh3_128(&bytes[..128]);
        bytes[128..144].copy_from_slice(&digest.to_le_bytes());
        let head = FrameHead {
            identity,
            first_sequence: first.sequence,
            first_time: first.time,
            last_time: last.time,
            payload_len: self.payload.len() as u32,
            digest,
            rows: std::mem::take(&mut self.rows),
            bytes: bytes.into(),
        };
        self.rows.reserve(head.rows.len());
        let next = self.spare.pop().unwrap_or_else(|| {
            // The next frame is likely to be as long: no growing while a lock is held.
            Vec::with_capacity(self.payload.len())
        });
        Some(Frame { head, payload: std::mem::replace(&mut self.payload, next).into() })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at).cast_signed()
}
fn u128_at(bytes: &[u8], at: usize) -> u128 {
    let mut word = [0; 16];
    word.copy_from_slice(&bytes[at..at + 16]);
    u128::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let mut builder = FrameBuilder::default();
        let changes = [
            Change::Write {
                disk: DiskIndex(1),
                offset: 4096,
                data: Bytes::from(vec![7; 512]),
                injected: false,
            },
            Change::Zero { disk: DiskIndex(0), offset: 0, length: 65_536, injected: true },
            Change::Barrier(Barrier::time_mark(true)),
            Change::Break,
        ];
        for (i, change) in (0u64..).zip(changes) {
            let time = Timestamp::from_micros(1_000 + i.cast_signed());
            builder.push(&Record { sequence: Sequence(41 + i), time, change });
        }
        let identity = Identity {
            machine: MachineId::from_bytes([3; 16]),
            epoch: Epoch(2),
            number: FrameNumber(9),
            session: 5,
            previous: 77,
        };
        builder.finish(identity).unwrap()
    }

    #[test]
    fn a_frame_survives_its_bytes() {
        let frame = frame();
        let head = FrameHead::decode(frame.head.bytes()).unwrap();
        assert_eq!(head, frame.head);
        assert_eq!(head.last_sequence(), Sequence(44));
        assert_eq!(head.open(frame.payload.clone()).unwrap(), frame);
        assert_eq!(frame.records().count(), 4);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let frame = frame();
        for at in 0..frame.head.bytes().len() * 8 {
            let mut bytes = frame.head.bytes().to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(FrameHead::decode(&bytes.into()).is_err(), "bit {at} of the head");
        }
        for at in 0..frame.payload.len() {
            let mut payload = frame.payload.to_vec();
            payload[at] ^= 0x10;
            assert!(frame.head.clone().open(payload.into()).is_err(), "byte {at} of the payload");
        }
    }

    #[test]
    fn every_cut_is_found() {
        let frame = frame();
        for end in 0..frame.head.bytes().len() {
            assert!(FrameHead::decode(&frame.head.bytes().slice(..end)).is_err(), "head cut at {end}");
        }
        assert!(frame.head.clone().open(frame.payload.slice(1..)).is_err());
    }

    #[test]
    fn nothing_makes_no_frame() {
        let identity = frame().head.identity;
        assert!(FrameBuilder::default().finish(identity).is_none());
    }
}
