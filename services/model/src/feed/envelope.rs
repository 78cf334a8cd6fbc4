//! A frame as it is sent, spooled and stored: its head, and its payload in some codec.
//!
//! ```text
//! 0  magic "CTME"      4  codec u8 (0 plain · 1 lz4 · 2 zstd)     5  reserved [3] zero
//! 8  head length u32   12 stored payload length u32
//! 16 stored sum u64    xxh3-64 of the stored payload: a hop can check it without decompressing
//! 24 head sum u64      xxh3-64 of the first 24 bytes of this envelope
//! 32 head, then stored payload
//! ```
//!
//! Compressing and decompressing is the business of whoever does it (`process-server`, `replica`): this
//! file only lays bytes out, and decides how long a payload may claim to be.

use super::frame::{FrameError, FrameHead, HEAD_BYTES_MAX, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes before the head.
pub const ENVELOPE_BYTES: usize = 32;
/// Longest envelope with all it holds.
pub const ENVELOPE_BYTES_MAX: usize = ENVELOPE_BYTES + HEAD_BYTES_MAX + PAYLOAD_BYTES_MAX;
const MAGIC: &[u8; 4] = b"CTME";

/// How a payload is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is.
    Plain,
    /// LZ4 block; its uncompressed length is in the head.
    Lz4,
    /// A Zstandard frame.
    Zstd,
}

impl Codec {
    const fn byte(self) -> u8 {
        match self {
            Self::Plain => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }
}

/// A frame under way: a verified head, and a payload that still has to be decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The head, verified.
    pub head: FrameHead,
    /// How `stored` is coded.
    pub codec: Codec,
    /// The payload as it travels.
    pub stored: Bytes,
}

/// The first 32 bytes of an envelope: enough to know how much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopePrefix {
    /// How the payload is coded.
    pub codec: Codec,
    /// Length of the head.
    pub head_len: usize,
    /// Length of the stored payload.
    pub stored_len: usize,
    stored_sum: u64,
}

impl EnvelopePrefix {
    /// Reads the first [`ENVELOPE_BYTES`]. What it returns is within limits: safe to allocate.
    pub fn decode(bytes: &[u8; ENVELOPE_BYTES]) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if &bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if xxh3_64(&bytes[..24]) != long(24) {
            return Err(FrameError::Sum { number: 0, part: "envelope" });
        }
        let field = |field| FrameError::Field { number: 0, field };
        let codec = match bytes[4] {
            0 => Codec::Plain,
            1 => Codec::Lz4,
            2 => Codec::Zstd,
            _ => return Err(field("codec")),
        };
        let (head_len, stored_len) = (word(8) as usize, word(12) as usize);
        if bytes[5..8] != [0; 3] {
            return Err(field("a reserved field"));
        }
        if !(HEADER_BYTES..=HEAD_BYTES_MAX).contains(&head_len) {
            return Err(field("head length"));
        }
        // A payload is stored compressed only where that made it shorter.
        if stored_len > PAYLOAD_BYTES_MAX {
            return Err(field("stored payload length"));
        }
        Ok(Self { codec, head_len, stored_len, stored_sum: long(16) })
    }

    /// Bytes that follow the prefix.
    pub const fn body_len(&self) -> usize {
        self.head_len + self.stored_len
    }

    /// Reads and verifies the rest. `body` holds exactly [`EnvelopePrefix::body_len`] bytes.
    pub fn open(&self, mut body: Bytes) -> Result<Envelope, FrameError> {
        if body.len() != self.body_len() {
            return Err(FrameError::Cut { got: body.len(), needed: self.body_len() });
        }
        let head = FrameHead::decode(&body.split_to(self.head_len))?;
        if xxh3_64(&body) != self.stored_sum {
            return Err(FrameError::Sum { number: head.identity.number.0, part: "stored payload" });
        }
        let fits = match self.codec {
            Codec::Plain => body.len() == head.payload_len as usize,
            Codec::Lz4 | Codec::Zstd => body.len() < head.payload_len as usize,
        };
        if !fits {
            return Err(FrameError::Field { number: head.identity.number.0, field: "stored payload length" });
        }
        Ok(Envelope { head, codec: self.codec, stored: body })
    }
}

impl Envelope {
    /// An envelope around an uncompressed frame.
    pub fn plain(frame: &super::Frame) -> Self {
        Self { head: frame.head.clone(), codec: Codec::Plain, stored: frame.payload.clone() }
    }

    /// The first bytes, which stand before head and payload. With [`FrameHead::bytes`] and `stored` they
    /// can be written in one vectored call, without a copy.
    pub fn prefix(&self) -> [u8; ENVELOPE_BYTES] {
        let mut bytes = [0; ENVELOPE_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = self.codec.byte();
        bytes[8..12].copy_from_slice(&(self.head.bytes().len() as u32).to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.stored.len() as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&xxh3_64(&self.stored).to_le_bytes());
        let sum = xxh3_64(&bytes[..24]);
        bytes[24..32].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Length of the whole envelope.
    pub fn len(&self) -> usize {
        ENVELOPE_BYTES + self.head.bytes().len() + self.stored.len()
    }

    /// Never: a head is always there.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// All bytes in one piece.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.len());
        out.put_slice(&self.prefix());
        out.put_slice(self.head.bytes());
        out.put_slice(&self.stored);
        out.freeze()
    }

    /// Reads one envelope from the start of `bytes` and returns it with its length.
    pub fn decode(bytes: &Bytes) -> Result<(Self, usize), FrameError> {
        let prefix = bytes
            .first_chunk::<ENVELOPE_BYTES>()
            .ok_or(FrameError::Cut { got: bytes.len(), needed: ENVELOPE_BYTES })?;
        let prefix = EnvelopePrefix::decode(prefix)?;
        let end = ENVELOPE_BYTES + prefix.body_len();
        if bytes.len() < end {
            return Err(FrameError::Cut { got: bytes.len(), needed: end });
        }
        Ok((prefix.open(bytes.slice(ENVELOPE_BYTES..end))?, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feed::{Barrier, Change, FrameBuilder, Identity, Record};
    use crate::id::MachineId;
    use crate::time::Timestamp;
    use crate::units::{Epoch, FrameNumber, Sequence};

    fn envelope() -> Envelope {
        let mut builder = FrameBuilder::default();
        builder.push(&Record {
            sequence: Sequence(1),
            time: Timestamp::from_micros(5),
            change: Change::Barrier(Barrier::time_mark(true)),
        });
        let identity = Identity {
            machine: MachineId::from_bytes([1; 16]),
            epoch: Epoch(1),
            number: FrameNumber(1),
            session: 1,
            previous: 0,
        };
        Envelope::plain(&builder.finish(identity).unwrap())
    }

    #[test]
    fn an_envelope_survives_its_bytes_and_tells_every_flip_and_cut() {
        let bytes = envelope().encode();
        assert_eq!(Envelope::decode(&bytes), Ok((envelope(), bytes.len())));
        for at in 0..bytes.len() * 8 {
            let mut bytes = bytes.to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(Envelope::decode(&bytes.into()).is_err(), "bit {at}");
        }
        for end in 0..bytes.len() {
            assert!(Envelope::decode(&bytes.slice(..end)).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated() {
        let mut bytes = envelope().prefix();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        let sum = xxh3_64(&bytes[..24]);
        bytes[24..32].copy_from_slice(&sum.to_le_bytes());
        let refused = EnvelopePrefix::decode(&bytes);
        assert_eq!(refused, Err(FrameError::Field { number: 0, field: "stored payload length" }));
    }
}
