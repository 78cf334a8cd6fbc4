//! What every block says of itself.
//!
//! ```text
//! 0   magic u64          24  block u64               little endian
//! 8   run u64            32  sequence u64
//! 16  disk u32, zero u32 40  filler made of the sequence (xorshift), to 504
//!                        504 zero u32 · 508 CRC-32 (zlib's) u32 of everything before
//! ```

/// Bytes of a stamped block.
pub const BLOCK: usize = 512;
/// What it begins with.
pub const MAGIC: u64 = 0x6f72_6163_6c65_3032;

/// Whose block it is, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Tells runs apart.
    pub run: u64,
    /// Which disk of the group.
    pub disk: u32,
    /// Where on it.
    pub block: u64,
    /// By which write.
    pub sequence: u64,
}

/// A stamped block.
pub fn stamp(run: u64, disk: u32, block: u64, sequence: u64) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&run.to_le_bytes());
    out[16..20].copy_from_slice(&disk.to_le_bytes());
    out[24..32].copy_from_slice(&block.to_le_bytes());
    out[32..40].copy_from_slice(&sequence.to_le_bytes());
    let mut filler = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in out[40..BLOCK - 8].chunks_exact_mut(8) {
        filler ^= filler << 13;
        filler ^= filler >> 7;
        filler ^= filler << 17;
        word.copy_from_slice(&filler.to_le_bytes());
    }
    let sum = crc32fast::hash(&out[..BLOCK - 4]);
    out[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// A block that no writer wrote so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// Reads a block. `Ok(None)`: zeroes.
pub fn read(bytes: &[u8]) -> Result<Option<Stamp>, Damaged> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if bytes.len() != BLOCK || crc32fast::hash(&bytes[..BLOCK - 4]).to_le_bytes() != bytes[BLOCK - 4..] {
        return Err(Damaged);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let disk = u32::from_le_bytes(bytes[16..20].try_into().unwrap_or_default());
    let read = Stamp { run: word(8), disk, block: word(24), sequence: word(32) };
    // The whole content follows from what it says: a good sum over a wrong filler is wrong, too.
    if stamp(read.run, read.disk, read.block, read.sequence) == bytes { Ok(Some(read)) } else { Err(Damaged) }
}
