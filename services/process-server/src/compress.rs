//! What makes a payload smaller, when it is worth it. The one place where bulk data is compressed.
//!
//! How hard to try is measured, never configured: where packed frames wait for the link the link is the
//! bottleneck, and smaller is faster; where the link waits for packed frames we are, and less work is faster.
//! What does not shrink stays plain, and is tried less and less often until something shrinks again.

use continuum_model::feed::{Codec, Envelope};

/// Payloads shorter than this are left alone: heads and syncs cost more than they do.
const WORTH_BYTES: usize = 512;
/// Evidence that is needed before the effort changes, so that one frame does not.
const STEADY: i8 = 4;
/// Frames that are left alone, at most, before one is tried again.
const SKIPPED_MAX: u32 = 32;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// The link is the bottleneck: Zstandard level 1.
    Small,
    /// Nothing is, or we are a little: LZ4.
    Fast,
    /// We are the bottleneck: as it is.
    None,
}

/// What held the last frame up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bottleneck {
    /// The frame waited for the link.
    Link = 1,
    /// The link waited for the frame, and more frames waited for us.
    Work = 2,
    /// Nothing did.
    Nothing = 0,
}

/// Compresses an envelope's payload; what does not shrink by an eighth stays plain. The head, and with it
/// the digest that the target verifies, is not touched.
pub fn compress(mut envelope: Envelope, effort: Effort) -> Envelope {
    if envelope.codec != Codec::Plain || envelope.stored.len() < WORTH_BYTES {
        return envelope;
    }
    let packed = match effort {
        Effort::Small => zstd::bulk::compress(&envelope.stored, 1).ok().map(|bytes| (Codec::Zstd, bytes)),
        Effort::Fast => Some((Codec::Lz4, lz4_flex::block::compress(&envelope.stored))),
        Effort::None => None,
    };
    if let Some((codec, bytes)) = packed
        && bytes.len() < envelope.stored.len() - envelope.stored.len() / 8
    {
        envelope.codec = codec;
        envelope.stored = bytes.into();
    }
    envelope
}

/// Decides how hard to try for one stream.
#[derive(Debug, Default)]
pub struct Adaptive {
    /// Above zero: the link is slow. Below: we are.
    evidence: i8,
    /// Frames in a row that did not shrink.
    misses: u32,
    /// Frames still to be left alone.
    skip: u32,
}

impl Adaptive {
    /// How hard to try with the next frame.
    pub fn effort(&mut self) -> Effort {
        if self.skip > 0 {
            self.skip -= 1;
            return Effort::None;
        }
        match self.evidence {
            STEADY.. => Effort::Small,
            i8::MIN..=-4 => Effort::None,
            _ => Effort::Fast,
        }
    }

    /// What came of a frame that was tried with `effort`.
    pub fn packed(&mut self, effort: Effort, payload: usize, shrunk: bool) {
        if effort == Effort::None || payload < WORTH_BYTES {
            return;
        }
        if shrunk {
            self.misses = 0;
            return;
        }
        self.misses = (self.misses + 1).min(16);
        if self.misses >= 4 {
            self.skip = (1u32 << (self.misses - 3).min(5)).min(SKIPPED_MAX);
        }
    }

    /// What held the last frame up.
    pub fn held_up_by(&mut self, bottleneck: Bottleneck) {
        self.evidence = match bottleneck {
            Bottleneck::Link => (self.evidence + 1).min(2 * STEADY),
            Bottleneck::Work => (self.evidence - 1).max(-2 * STEADY),
            // Towards the middle: what was true under load is not for ever.
            Bottleneck::Nothing => self.evidence - self.evidence.signum(),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::feed::{Change, FrameBuilder, Identity, Record};
    use continuum_model::id::MachineId;
    use continuum_model::time::Timestamp;
    use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};

    fn envelope(data: Vec<u8>) -> Envelope {
        let mut builder = FrameBuilder::default();
        let change = Change::Write { disk: DiskIndex(0), offset: 0, data: data.into(), injected: false };
        builder.push(&Record { sequence: Sequence(1), time: Timestamp::from_micros(1), change });
        let machine = MachineId::from_bytes([1; 16]);
        let place = Identity { machine, epoch: Epoch(1), number: FrameNumber(1), session: 1, previous: 0 };
        Envelope::plain(&builder.finish(place).unwrap())
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(length)
        .collect()
    }

    #[test]
    fn what_shrinks_is_packed_and_opens_to_what_it_was() {
        let data: Vec<u8> = (0..200_000u32).map(|at| (at / 64) as u8).collect();
        let plain = envelope(data.clone());
        for (effort, codec) in [(Effort::Small, Codec::Zstd), (Effort::Fast, Codec::Lz4)] {
            let packed = compress(plain.clone(), effort);
            assert_eq!((packed.codec, &packed.head), (codec, &plain.head));
            assert!(packed.stored.len() < data.len() / 2);
            let (arrived, _) = Envelope::decode(&packed.encode()).unwrap();
            let opened = match arrived.codec {
                Codec::Zstd => zstd::bulk::decompress(&arrived.stored, data.len()).unwrap(),
                Codec::Lz4 => lz4_flex::block::decompress(&arrived.stored, data.len()).unwrap(),
                Codec::Plain => panic!("plain"),
            };
            assert!(arrived.head.open(opened.into()).is_ok(), "the agent's checksums hold");
            assert_eq!(compress(packed.clone(), Effort::Small), packed, "packed once");
        }
        assert_eq!(compress(plain.clone(), Effort::None), plain);
    }

    #[test]
    fn what_does_not_shrink_or_is_tiny_stays_plain() {
        for data in [noise(100_000), vec![0; 100]] {
            for effort in [Effort::Small, Effort::Fast] {
                assert_eq!(compress(envelope(data.clone()), effort).codec, Codec::Plain);
            }
        }
    }

    #[test]
    fn a_slow_link_makes_it_try_harder_and_a_fast_one_less() {
        let mut adaptive = Adaptive::default();
        assert_eq!(adaptive.effort(), Effort::Fast);
        (0..STEADY).for_each(|_| adaptive.held_up_by(Bottleneck::Link));
        assert_eq!(adaptive.effort(), Effort::Small);
        (0..2 * STEADY).for_each(|_| adaptive.held_up_by(Bottleneck::Work));
        assert_eq!(adaptive.effort(), Effort::None);
        (0..STEADY).for_each(|_| adaptive.held_up_by(Bottleneck::Nothing));
        assert_eq!(adaptive.effort(), Effort::Fast);
    }

    #[test]
    fn what_never_shrinks_costs_less_and_less_and_is_noticed_when_it_does_again() {
        let mut adaptive = Adaptive::default();
        let mut tried = 0;
        for _ in 0..1_000 {
            let effort = adaptive.effort();
            tried += u32::from(effort != Effort::None);
            adaptive.packed(effort, 1 << 20, false);
        }
        assert!((20..60).contains(&tried), "{tried} of 1000");
        // It shrinks again: found within the longest pause, and then every frame is packed.
        let mut waited = 0;
        while adaptive.effort() == Effort::None {
            waited += 1;
        }
        adaptive.packed(Effort::Fast, 1 << 20, true);
        assert!(waited <= SKIPPED_MAX);
        assert!((0..100).all(|_| adaptive.effort() == Effort::Fast));
    }
}
