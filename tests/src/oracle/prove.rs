//! The proof that images of the disks of one group are, together, a state in which the source was at a moment.
//!
//! 1. Every block is whole, of this run, in its place, by a write that was issued there; or it is zero, because
//!    nobody wrote it, or a write of zeroes can have.
//! 2. Nothing issued after the moment T is visible (else the *future*).
//! 3. Let F be the later of T and the latest issue of anything visible: every write completed before F is
//!    visible, or something later is in its place (else a *hole*). F is one for all disks.
//! 4. A write is visible whole or not at all, unless its outcome is unknown (else it is *torn*).
//!
//! Failed and unknown writes may be there, in part or not at all. So what passes is a downward-closed set of the
//! history: what the disks could have held had the power gone at F. Linear in blocks and writes. Zeroes carry no
//! stamp: where they could be explained, they are taken as explained.

use super::history::{History, What, Write};
use super::stamp::{self, BLOCK};
use std::collections::HashMap;

/// What is wrong with images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A block that no writer wrote so.
    Damaged {
        /// Which disk.
        disk: u32,
        /// Which block.
        block: u64,
    },
    /// A block of another place, disk or run, or of a write that was never issued there.
    Misplaced {
        /// Which disk.
        disk: u32,
        /// Which block.
        block: u64,
    },
    /// A write that was acknowledged and is not there.
    Hole {
        /// Which disk.
        disk: u32,
        /// Where.
        block: u64,
        /// Which write.
        sequence: u64,
    },
    /// A write that was issued after the moment.
    Future {
        /// Which disk.
        disk: u32,
        /// Where.
        block: u64,
        /// Which write.
        sequence: u64,
    },
    /// A write of which a part is visible.
    Torn {
        /// Which disk.
        disk: u32,
        /// Which write.
        sequence: u64,
    },
    /// The history has writes on a disk of which there is no image, or beyond its end.
    Missing {
        /// Which disk.
        disk: u32,
    },
}

/// What is wrong with the images of the disks (in the order of their numbers) as the state at `moment_us`.
pub fn prove(images: &[&[u8]], history: &History, moment_us: i64) -> Vec<Violation> {
    let mut violations = Vec::new();
    let known: HashMap<u64, &Write> = history.writes.iter().map(|write| (write.sequence, write)).collect();
    // What every block shows: the sequence of its stamp, 0 for zeroes.
    let mut shown: Vec<Vec<u64>> = Vec::with_capacity(images.len());
    for (disk, image) in (0u32..).zip(images) {
        let mut blocks = Vec::with_capacity(image.len() / BLOCK);
        for (block, bytes) in (0u64..).zip(image.chunks_exact(BLOCK)) {
            blocks.push(match look(bytes, history.run, disk, block, &known) {
                Ok(sequence) => sequence,
                Err(violation) => {
                    violations.push(violation);
                    0
                }
            });
        }
        shown.push(blocks);
    }
    let mut end = moment_us;
    for (disk, blocks) in (0u32..).zip(&shown) {
        for (block, sequence) in (0u64..).zip(blocks) {
            if let Some(write) = known.get(sequence) {
                end = end.max(write.issued_us);
                if write.issued_us > moment_us {
                    violations.push(Violation::Future { disk, block, sequence: *sequence });
                }
            }
        }
    }
    // For each block, the latest zeroing that may be visible: it explains a zero instead of anything before it.
    let mut zeroed: HashMap<(u32, u64), u64> = HashMap::new();
    let may_be_there = |write: &Write| write.issued_us <= end;
    for write in history.writes.iter().filter(|write| write.what == What::Zeroes && may_be_there(write)) {
        for block in write.block..write.block + write.blocks {
            let latest = zeroed.entry((write.disk, block)).or_default();
            *latest = write.sequence.max(*latest);
        }
    }
    for write in &history.writes {
        let range = write.block as usize..(write.block + write.blocks) as usize;
        let Some(blocks) = shown.get(write.disk as usize).and_then(|blocks| blocks.get(range)) else {
            violations.push(Violation::Missing { disk: write.disk });
            continue;
        };
        let at_least = |(offset, seen): (u64, &u64)| match seen {
            0 => zeroed.get(&(write.disk, write.block + offset)).is_some_and(|zero| *zero >= write.sequence),
            seen => *seen >= write.sequence,
        };
        if write.completed_us().is_some_and(|at| at < end) {
            if let Some(at) = (0u64..).zip(blocks).position(|block| !at_least(block)) {
                let block = write.block + at as u64;
                violations.push(Violation::Hole { disk: write.disk, block, sequence: write.sequence });
            }
        } else if write.what == What::Data
            && write.completed_us().is_some()
            && blocks.contains(&write.sequence)
            && !(0u64..).zip(blocks).all(at_least)
        {
            violations.push(Violation::Torn { disk: write.disk, sequence: write.sequence });
        }
    }
    violations
}

fn look(
    bytes: &[u8],
    run: u64,
    disk: u32,
    block: u64,
    known: &HashMap<u64, &Write>,
) -> Result<u64, Violation> {
    let read = stamp::read(bytes).map_err(|_| Violation::Damaged { disk, block })?;
    let Some(read) = read else { return Ok(0) };
    let issued = known.get(&read.sequence).is_some_and(|write| {
        write.what == What::Data
            && write.disk == disk
            && (write.block..write.block + write.blocks).contains(&block)
    });
    if read.run != run || read.disk != disk || read.block != block || !issued {
        return Err(Violation::Misplaced { disk, block });
    }
    Ok(read.sequence)
}

#[cfg(test)]
mod tests {
    use super::super::history::Outcome;
    use super::super::stamp::{MAGIC, stamp};
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const RUN: u64 = 7;

    fn put(image: &mut [u8], write: &Write, only: impl Fn(u64) -> bool) {
        for block in (write.block..write.block + write.blocks).filter(|block| only(*block)) {
            let bytes = match write.what {
                What::Data => stamp(RUN, write.disk, block, write.sequence),
                What::Zeroes => [0; BLOCK],
            };
            image[block as usize * BLOCK..][..BLOCK].copy_from_slice(&bytes);
        }
    }

    /// A history over two disks with several writes in flight, and the images at a moment of it.
    fn world(seed: u64, zeroes: bool) -> (History, Vec<Vec<u8>>, i64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut history = History { run: RUN, writes: Vec::new() };
        let mut images = vec![vec![0; 64 * BLOCK]; 2];
        let moment = rng.random_range(200..1500i64);
        // When a stretch of a disk is free again: writes in flight never overlap.
        let mut free = [[0i64; 64]; 2];
        let mut now = 0;
        for sequence in 1..=200u64 {
            now += rng.random_range(1..12);
            let disk = rng.random_range(0..2u32);
            let blocks = rng.random_range(1..8u64);
            let block = rng.random_range(0..64 - blocks);
            let range = block as usize..(block + blocks) as usize;
            if free[disk as usize][range.clone()].iter().any(|until| *until >= now) {
                continue;
            }
            let takes = rng.random_range(1..40);
            free[disk as usize][range].fill(now + takes);
            let outcome = match rng.random_range(0..20) {
                0 => Outcome::Unknown,
                1 => Outcome::Failed,
                _ => Outcome::Ok(now + takes),
            };
            let what = if zeroes && rng.random_range(0..6) == 0 { What::Zeroes } else { What::Data };
            let write = Write { sequence, disk, block, blocks, what, issued_us: now, outcome };
            history.writes.push(write);
            // In flight at the moment: in, or not; unknown ones in part, too.
            let there = match outcome {
                Outcome::Ok(at) if at < moment => true,
                _ => now <= moment && rng.random_range(0..2) == 0,
            };
            if there {
                let part: u64 = rng.random();
                let whole = matches!(outcome, Outcome::Ok(_));
                put(&mut images[disk as usize], &write, |block| whole || part >> (block % 64) & 1 == 1);
            }
        }
        (history, images, moment)
    }

    fn slices(images: &[Vec<u8>]) -> Vec<&[u8]> {
        images.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn no_false_alarm_in_four_hundred_histories() {
        for seed in 0..400 {
            let (history, images, moment) = world(seed, seed % 2 == 1);
            assert_eq!(prove(&slices(&images), &history, moment), [], "seed {seed}");
        }
    }

    /// All states that the disks could have had, by trying every set of writes.
    fn brute(images: &[Vec<u8>], history: &History, moment: i64) -> bool {
        let writes = &history.writes;
        (0u32..1 << writes.len()).any(|set| {
            let inside = |n: usize| set >> n & 1 == 1;
            let end =
                (0..writes.len()).filter(|n| inside(*n)).map(|n| writes[n].issued_us).fold(moment, i64::max);
            let closed = (0..writes.len()).all(|n| {
                let write = &writes[n];
                if inside(n) {
                    write.issued_us <= moment
                } else {
                    write.completed_us().is_none_or(|at| at >= end)
                }
            });
            if !closed {
                return false;
            }
            let mut state = vec![vec![0; images[0].len()]; images.len()];
            for write in (0..writes.len()).filter(|n| inside(*n)).map(|n| &writes[n]) {
                // What is unknown is there in part: as the image has it.
                let (disk, unknown) = (write.disk as usize, write.completed_us().is_none());
                let image = &images[disk];
                put(&mut state[disk], write, |block| {
                    let at = block as usize * BLOCK;
                    let own = match write.what {
                        What::Data => stamp(RUN, write.disk, block, write.sequence),
                        What::Zeroes => [0; BLOCK],
                    };
                    !unknown || image[at..at + BLOCK] == own
                });
            }
            state == images
        })
    }

    #[test]
    fn it_agrees_with_the_trying_of_every_state() {
        let (mut legal, mut illegal) = (0, 0);
        for seed in 0..3000u64 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut history = History { run: RUN, writes: Vec::new() };
            let mut free = [[0i64; 6]; 2];
            let mut now = 0;
            for sequence in 1..=9u64 {
                now += rng.random_range(1..6);
                let (disk, blocks) = (rng.random_range(0..2u32), rng.random_range(1..3u64));
                let block = rng.random_range(0..=6 - blocks);
                let range = block as usize..(block + blocks) as usize;
                if free[disk as usize][range.clone()].iter().any(|until| *until >= now) {
                    continue;
                }
                let takes = rng.random_range(1..8);
                free[disk as usize][range].fill(now + takes);
                let outcome =
                    if rng.random_range(0..6) == 0 { Outcome::Unknown } else { Outcome::Ok(now + takes) };
                let what = What::Data;
                history.writes.push(Write { sequence, disk, block, blocks, what, issued_us: now, outcome });
            }
            let mut images = vec![vec![0; 6 * BLOCK]; 2];
            let moment = rng.random_range(1..now + 4);
            // A state at random, of which many are legal and many are not.
            for write in &history.writes {
                let likely = match write.outcome {
                    Outcome::Ok(at) if at < moment => 0.93,
                    _ if write.issued_us <= moment => 0.5,
                    _ => 0.04,
                };
                if rng.random_bool(likely) {
                    let torn = rng.random_bool(0.05);
                    put(&mut images[write.disk as usize], write, |block| !torn || block == write.block);
                }
            }
            let found = prove(&slices(&images), &history, moment);
            let is_legal = brute(&images, &history, moment);
            assert_eq!(found.is_empty(), is_legal, "seed {seed}: {found:?}\n{history:?} at {moment}");
            if is_legal { legal += 1 } else { illegal += 1 }
        }
        assert!(legal > 500 && illegal > 500, "{legal} legal, {illegal} not: the comparison sees both");
    }

    #[test]
    fn every_planted_corruption_is_found() {
        let (history, images, moment) = world(3, false);
        let stamped = |image: &[u8]| {
            (0..64).filter(|block| image[block * BLOCK..][..8] == MAGIC.to_le_bytes()).collect::<Vec<usize>>()
        };
        let image = &images[0];
        let blocks = stamped(image);
        let sequence =
            |block: usize| u64::from_le_bytes(image[block * BLOCK + 32..][..8].try_into().unwrap());
        let of = |sequence: u64| history.writes.iter().find(|write| write.sequence == sequence).unwrap();
        // The newest block of a write that was complete by then: its loss is a hole.
        let sure = |block: &&usize| of(sequence(**block)).completed_us().is_some_and(|at| at < moment);
        let last = *blocks.iter().filter(sure).max_by_key(|block| sequence(**block)).unwrap();
        let wide = *blocks
            .iter()
            .find(|block| {
                let write = of(sequence(**block));
                let whole = (write.block..write.block + write.blocks)
                    .all(|at| blocks.contains(&(at as usize)) && sequence(at as usize) == write.sequence);
                write.blocks > 1 && write.completed_us().is_some() && whole
            })
            .unwrap();
        type Plant<'a> = (&'a str, Box<dyn Fn(&mut Vec<Vec<u8>>) + 'a>);
        let copy = |image: &mut Vec<u8>, from: usize, to: usize| {
            image.copy_within(from * BLOCK..(from + 1) * BLOCK, to * BLOCK)
        };
        let write_in = |images: &mut Vec<Vec<u8>>, block: usize, bytes: &[u8]| {
            images[0][block * BLOCK..][..BLOCK].copy_from_slice(bytes)
        };
        let plants: Vec<Plant<'_>> = vec![
            ("a flipped bit", Box::new(|i| i[0][blocks[0] * BLOCK + 100] ^= 1)),
            ("a flipped bit of the checksum", Box::new(|i| i[0][blocks[0] * BLOCK + 511] ^= 1)),
            ("a zeroed block", Box::new(|i| i[0][last * BLOCK..][..BLOCK].fill(0))),
            ("a block in another place", Box::new(|i| copy(&mut i[0], blocks[0], blocks[1]))),
            (
                "two blocks swapped",
                Box::new(|i| {
                    let first: Vec<u8> = i[0][blocks[0] * BLOCK..][..BLOCK].to_vec();
                    copy(&mut i[0], blocks[1], blocks[0]);
                    write_in(i, blocks[1], &first);
                }),
            ),
            (
                "a block of another run",
                Box::new(|i| write_in(i, last, &stamp(8, 0, last as u64, sequence(last)))),
            ),
            (
                "a block of another disk",
                Box::new(|i| write_in(i, last, &stamp(RUN, 1, last as u64, sequence(last)))),
            ),
            ("disks exchanged", Box::new(|i| i.swap(0, 1))),
            (
                "a stale version beside newer ones",
                Box::new(|i| {
                    let older = history.writes.iter().rev().find(|write| {
                        write.disk == 0
                            && write.sequence < sequence(last)
                            && (write.block..write.block + write.blocks).contains(&(last as u64))
                    });
                    let bytes = older.map_or([0; BLOCK], |write| stamp(RUN, 0, last as u64, write.sequence));
                    write_in(i, last, &bytes);
                }),
            ),
            (
                "a write from the future",
                Box::new(|i| {
                    let later = |write: &&Write| write.issued_us > moment && write.disk == 0;
                    let write = history.writes.iter().find(later).unwrap();
                    write_in(i, write.block as usize, &stamp(RUN, 0, write.block, write.sequence));
                }),
            ),
            (
                "a sequence that nobody wrote",
                Box::new(|i| write_in(i, last, &stamp(RUN, 0, last as u64, 9999))),
            ),
            ("half of a block", Box::new(|i| i[0][last * BLOCK + 256..][..256].fill(0))),
            ("foreign bytes", Box::new(|i| i[0][blocks[2] * BLOCK..][..BLOCK].fill(0x55))),
            ("a torn write", Box::new(|i| i[0][wide * BLOCK..][..BLOCK].fill(0))),
            ("a disk cut short", Box::new(|i| i[1].truncate(8 * BLOCK))),
            ("a whole disk gone back to empty", Box::new(|i| i[1].fill(0))),
            (
                "a good checksum over a wrong filler",
                Box::new(|i| {
                    let block = &mut i[0][blocks[0] * BLOCK..][..BLOCK];
                    block[300] ^= 1;
                    let sum = crc32fast::hash(&block[..BLOCK - 4]);
                    block[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
                }),
            ),
        ];
        assert!(plants.len() >= 10);
        for (what, plant) in plants {
            let mut spoilt = images.clone();
            plant(&mut spoilt);
            assert_ne!(spoilt, images, "{what}: nothing was planted");
            assert_ne!(prove(&slices(&spoilt), &history, moment), [], "{what}");
        }
    }
}
