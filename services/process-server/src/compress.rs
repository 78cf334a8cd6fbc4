//! What makes a payload smaller, when it is worth it. The one place where bulk data is compressed.

use continuum_model::feed::{Codec, Envelope};

/// Payloads shorter than this are left alone: heads and syncs cost more than they do.
const WORTH_BYTES: usize = 512;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// The link is the bottleneck: Zstandard level 1.
    Small,
    /// We are the bottleneck: LZ4.
    Fast,
    /// Far behind: as it is.
    None,
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
