//! The digest of a disk as of a position, computed the same way at the source and at the replica.
//!
//! ```text
//! digest   xxh3-128 of the disk's size (u64) and the topmost node
//! node     xxh3-128 of the sums of up to 256 nodes of the level below, in order; up to a level of one node
//! level 1  a node for every 256 blocks: 16 MiB of disk (there is always this level, for the smallest disk, too)
//! level 0  the sum of every 64 KiB block: xxh3-128 of its bytes; the last block may be shorter
//! ```
//!
//! So two sides that keep sums need not read a byte to compare, and find one difference in a terabyte with a few
//! thousand sums: where nodes are equal, nothing below them is asked for ([`differing`]).
//!
//! Not authenticated: xxh3 tells equal from unequal by accident, not by intent. Whoever may choose what a guest
//! writes can make two blocks of one sum; what is compared this way must be trusted to be no attack.

use crate::bits::Bits;
use crate::units::REGION_BYTES;
use std::fmt;
use std::ops::Range;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// How many nodes make one of the level above.
pub const FAN_OUT: u64 = 256;
/// Sums in one answer: 64 KiB.
pub const NODES_MAX: u64 = 4096;

/// The sum of one block, or of a node above blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct BlockSum(pub u128);

impl BlockSum {
    /// Stands for a sum that is not known. Should a real one ever be this, it counts as not known: no harm.
    pub const UNKNOWN: Self = Self(0);

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
    /// The node above these, of which there are at most [`FAN_OUT`].
    pub fn above(children: &[Self]) -> Self {
        let mut state = Xxh3::new();
        children.iter().for_each(|child| state.update(&child.0.to_le_bytes()));
        Self(state.digest128())
    }
}

/// How many nodes a level of a disk of so many blocks has. Level 0: the blocks themselves.
pub fn nodes_at(blocks: u64, level: u8) -> u64 {
    (0..level).fold(blocks, |nodes, _| nodes.div_ceil(FAN_OUT))
}

/// The levels above some nodes, up to `levels` more, or until one has a single node.
fn levels_above(nodes: &[BlockSum], levels: u8) -> Vec<Vec<BlockSum>> {
    let mut above: Vec<Vec<BlockSum>> = Vec::new();
    for _ in 0..levels {
        let below = above.last().map_or(nodes, Vec::as_slice);
        let next = below.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
        above.push(next);
        if above.last().is_none_or(|nodes| nodes.len() <= 1) {
            break;
        }
    }
    above
}

/// The digest of a disk of which all nodes of level 1 are known.
pub fn digest_of(size_bytes: u64, nodes: &[BlockSum]) -> Digest {
    let top = match nodes {
        [] => BlockSum::UNKNOWN,
        [top] => *top,
        nodes => levels_above(nodes, u8::MAX).last().and_then(|top| top.first().copied()).unwrap_or_default(),
    };
    let mut state = Xxh3::new();
    state.update(&size_bytes.to_le_bytes());
    state.update(&top.0.to_le_bytes());
    Digest(state.digest128())
}

/// Collects block sums in disk order.
pub struct DiskDigest {
    size_bytes: u64,
    blocks: Vec<BlockSum>,
    nodes: Vec<BlockSum>,
}

impl DiskDigest {
    /// For a disk of this many bytes.
    pub const fn new(size_bytes: u64) -> Self {
        Self { size_bytes, blocks: Vec::new(), nodes: Vec::new() }
    }
    /// The next block's sum.
    pub fn push(&mut self, sum: BlockSum) {
        self.blocks.push(sum);
        if self.blocks.len() as u64 == FAN_OUT {
            self.nodes.push(BlockSum::above(&self.blocks));
            self.blocks.clear();
        }
    }
    /// The digest of the disk.
    pub fn finish(mut self) -> Digest {
        if !self.blocks.is_empty() {
            self.nodes.push(BlockSum::above(&self.blocks));
        }
        digest_of(self.size_bytes, &self.nodes)
    }
}

/// A stretch of nodes of one level of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// 0: blocks.
    pub level: u8,
    /// Which of that level; at most [`NODES_MAX`] at once.
    pub range: Range<u64>,
}

/// Which blocks of a stretch of a disk are not known to be equal on the other side.
///
/// `mine` are the sums of the blocks from `first` on, a whole number of nodes of level `levels` (the last one of
/// the disk may be short). `ask` answers the other side's sums of what it is asked for, in order;
/// [`BlockSum::UNKNOWN`] where it has none. Nodes that are equal are not looked into.
///
/// Errors: those of `ask`. An answer of another length than asked for leaves what it was about different.
pub fn differing<E>(
    first: u64,
    mine: &[BlockSum],
    levels: u8,
    mut ask: impl FnMut(Nodes) -> Result<Vec<BlockSum>, E>,
) -> Result<Bits, E> {
    let mut known = vec![mine.to_vec()];
    known.extend(levels_above(mine, levels));
    let mut differ: Option<Bits> = None;
    for level in (0..known.len()).rev() {
        let width = FAN_OUT.pow(level as u32);
        let (start, mine) = (first / width, &known[level]);
        let above = differ.take();
        let mut found = Bits::new(mine.len() as u64);
        // At the top everything is asked for, below it what lies under a difference.
        let wanted = |node: u64| above.as_ref().is_none_or(|above| above.get(node / FAN_OUT));
        let mut at = 0;
        while at < mine.len() as u64 {
            if !wanted(at) {
                at += 1;
                continue;
            }
            let mut end = at + 1;
            while end < mine.len() as u64 && end - at < NODES_MAX && wanted(end) {
                end += 1;
            }
            let theirs = ask(Nodes { level: level as u8, range: start + at..start + end })?;
            for node in at..end {
                let their = theirs.get((node - at) as usize).filter(|_| theirs.len() as u64 == end - at);
                if their.is_none_or(|their| *their == BlockSum::UNKNOWN || *their != mine[node as usize]) {
                    found.set(node);
                }
            }
            at = end;
        }
        if found.is_empty() {
            return Ok(Bits::new(known[0].len() as u64));
        }
        differ = Some(found);
    }
    Ok(differ.unwrap_or_else(|| Bits::new(0)))
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

    #[test]
    fn the_digest_is_that_of_its_nodes_for_any_number_of_blocks() {
        for blocks in [0, 1, 2, 255, 256, 257, 511, 65_536, 65_537] {
            let sums: Vec<BlockSum> = (0..blocks).map(|at: u128| BlockSum(at * at + 1)).collect();
            let mut digest = DiskDigest::new(7);
            sums.iter().for_each(|sum| digest.push(*sum));
            let nodes: Vec<BlockSum> = sums.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
            assert_eq!(nodes_at(blocks as u64, 1), nodes.len() as u64);
            assert_eq!(digest.finish(), digest_of(7, &nodes), "{blocks}");
        }
    }

    /// The other side of a comparison; counts what it is asked for.
    fn compare(first: u64, mine: &[BlockSum], disk: &[BlockSum], levels: u8) -> (Vec<u64>, u64) {
        let mut asked = 0;
        let answer = |nodes: Nodes| {
            asked += nodes.range.end - nodes.range.start;
            assert!(nodes.range.end - nodes.range.start <= NODES_MAX);
            let mut level = disk.to_vec();
            for _ in 0..nodes.level {
                level = level.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
            }
            Ok::<_, ()>(level[nodes.range.start as usize..nodes.range.end as usize].to_vec())
        };
        let bits = differing(first, mine, levels, answer).unwrap();
        let found = (0..bits.len()).filter(|at| bits.get(*at)).map(|at| first + at).collect();
        (found, asked)
    }

    #[test]
    fn exactly_the_blocks_that_differ_are_found_and_little_is_asked_for() {
        let disk: Vec<BlockSum> = (0..70_000).map(|at| BlockSum(at + 1)).collect();
        let (found, asked) = compare(0, &disk[..65_536], &disk, 2);
        assert_eq!((found.len(), asked), (0, 1));
        for changed in [vec![0], vec![65_535], vec![255, 256, 40_000], (1000..9000).collect()] {
            let mut mine = disk.clone();
            changed.iter().for_each(|at: &u64| mine[*at as usize] = BlockSum(u128::MAX));
            let (found, asked) = compare(0, &mine[..65_536], &disk, 2);
            assert_eq!(found, changed);
            assert!(asked <= 1 + 256 + 256 * (changed.len() as u64 / 256 + 3), "{asked}");
            assert_eq!(compare(0, &mine[..65_536], &disk, 0).0, changed, "without nodes");
        }
        // The rest of the disk, which fills no node, and a side that knows nothing.
        let mut mine = disk[65_536..].to_vec();
        mine[7] = BlockSum(5);
        assert_eq!(compare(65_536, &mine, &disk, 2).0, [65_543]);
        let known_nothing = |nodes: Nodes| {
            Ok::<_, ()>(vec![BlockSum::UNKNOWN; (nodes.range.end - nodes.range.start) as usize])
        };
        assert_eq!(differing(65_536, &mine, 2, known_nothing).unwrap().ones(), mine.len() as u64);
        let short = |_| Ok::<_, ()>(Vec::new());
        assert_eq!(differing(0, &disk, 2, short).unwrap().ones(), disk.len() as u64);
    }
}
