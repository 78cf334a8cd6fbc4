//! The digest of a disk as of a position, computed the same way at the source and at the replica.
//!
//! Each 64 KiB block has a sum (xxh3-128 of its bytes; the last block may be shorter). The digest of the
//! disk is the xxh3-128 of its size and all block sums in order, so that two sides which keep sums need
//! not read a byte to compare, and can find a difference by comparing sums.
//!
//! Not authenticated: it tells equal from unequal, not friend from enemy.

use crate::units::REGION_BYTES;
use std::fmt;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// The sum of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockSum(pub u128);

impl BlockSum {
    /// The sum of a full block of zeroes: holes cost no read.
    pub fn of_zeroes() -> Self {
        static ZEROES: std::sync::LazyLock<u128> =
            std::sync::LazyLock::new(|| xxh3_128(&[0; REGION_BYTES as usize]));
        Self(*ZEROES)
    }
    /// The sum of a block's bytes.
    pub fn of(block: &[u8]) -> Self {
        Self(xxh3_128(block))
    }
}

/// Collects block sums in disk order.
pub struct DiskDigest(Xxh3);

impl DiskDigest {
    /// For a disk of this many bytes.
    pub fn new(size_bytes: u64) -> Self {
        let mut state = Xxh3::new();
        state.update(&size_bytes.to_le_bytes());
        Self(state)
    }
    /// The next block's sum.
    pub fn push(&mut self, sum: BlockSum) {
        self.0.update(&sum.0.to_le_bytes());
    }
    /// The digest of the disk.
    pub fn finish(&self) -> Digest {
        Digest(self.0.digest128())
    }
}

/// The digest of a disk. Text form: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_order_and_content_count() {
        let digest = |size, blocks: &[&[u8]]| {
            let mut disk = DiskDigest::new(size);
            blocks.iter().for_each(|block| disk.push(BlockSum::of(block)));
            disk.finish()
        };
        let one = digest(6, &[b"abc", b"def"]);
        assert_eq!(one, digest(6, &[b"abc", b"def"]));
        assert_ne!(one, digest(6, &[b"def", b"abc"]));
        assert_ne!(one, digest(7, &[b"abc", b"def"]));
        assert_eq!(BlockSum::of(&[0; REGION_BYTES as usize]), BlockSum::of_zeroes());
        assert_eq!(one.to_string().len(), 32);
    }
}
