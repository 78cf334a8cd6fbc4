//! The workload and the prover.
//!
//! A stamped block: `magic u64 · run u64 · disk u32 · zero u32 · block u64 · sequence u64 · filler from the
//! sequence … · CRC32C u32` in 512 bytes. One writer owns a stretch of the disk, so that writes to one block
//! never overlap in time and a later one has a higher sequence; several writers share the sequence.
//!
//! Proof of an image for the moment T: every block is whole, of this run, in its place or never written; let F
//! be the later of T and the latest issue of anything visible; every write completed before F is visible or
//! overwritten by a later one (else a hole); nothing issued after T is visible (else the future); a write is
//! visible in all its blocks or in none (unless its outcome is unknown).

use continuum_fabric::nbd::{Client, Uri};
use std::collections::HashMap;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a stamped block.
pub const BLOCK: usize = 512;
const MAGIC: u64 = 0x6f72_6163_6c65_3031;

/// Microseconds of UTC.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64)
}

/// One write of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Its place among all writes.
    pub sequence: u64,
    /// Its first block.
    pub block: u64,
    /// How many blocks.
    pub blocks: u64,
    /// When it was sent.
    pub issued_us: i64,
    /// When its acknowledgement came; `None`: unknown whether it happened.
    pub completed_us: Option<i64>,
}

/// What was written, in a place of its own.
#[derive(Debug, Default)]
pub struct History {
    /// Tells runs apart.
    pub run: u64,
    /// All writes, in any order.
    pub writes: Vec<Write>,
}

/// A stamped block.
pub fn stamp(run: u64, block: u64, sequence: u64) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    out[..8].copy_from_slice(&MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&run.to_le_bytes());
    out[24..32].copy_from_slice(&block.to_le_bytes());
    out[32..40].copy_from_slice(&sequence.to_le_bytes());
    let mut filler = sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in out[40..BLOCK - 8].chunks_exact_mut(8) {
        filler ^= filler << 13;
        filler ^= filler >> 7;
        filler ^= filler << 17;
        word.copy_from_slice(&filler.to_le_bytes());
    }
    let sum = crc32c::crc32c(&out[..BLOCK - 4]);
    out[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// A block that no writer wrote so.
    Damaged {
        /// Which.
        block: u64,
    },
    /// A block of another place or run.
    Misplaced {
        /// Which.
        block: u64,
    },
    /// A write that was acknowledged and is not there.
    Hole {
        /// Where.
        block: u64,
        /// Which write.
        sequence: u64,
    },
    /// A write that was issued after the moment.
    Future {
        /// Where.
        block: u64,
        /// Which write.
        sequence: u64,
    },
    /// A write of which a part is visible.
    Torn {
        /// Which write.
        sequence: u64,
    },
}

/// Says whether `image` is a state that the source was in at `moment_us`.
pub fn prove(image: &[u8], history: &History, moment_us: i64) -> Vec<Violation> {
    let mut violations = Vec::new();
    let by_sequence: HashMap<u64, &Write> =
        history.writes.iter().map(|write| (write.sequence, write)).collect();
    let mut visible = Vec::with_capacity(image.len() / BLOCK);
    for (block, bytes) in (0u64..).zip(image.chunks_exact(BLOCK)) {
        visible.push(match look(bytes, history.run, block, &by_sequence) {
            Ok(sequence) => sequence,
            Err(violation) => {
                violations.push(violation);
                0
            }
        });
    }
    let latest =
        visible.iter().filter_map(|sequence| by_sequence.get(sequence)).map(|write| write.issued_us).max();
    let cut = latest.unwrap_or(0).max(moment_us);
    for (block, sequence) in (0u64..).zip(&visible) {
        if let Some(write) = by_sequence.get(sequence)
            && write.issued_us > moment_us
        {
            violations.push(Violation::Future { block, sequence: *sequence });
        }
    }
    for write in &history.writes {
        let blocks = &visible[write.block as usize..(write.block + write.blocks) as usize];
        let shows = blocks.contains(&write.sequence);
        if write.completed_us.is_some_and(|at| at < cut) {
            let missing = blocks.iter().position(|seen| *seen < write.sequence);
            if let Some(at) = missing {
                violations.push(Violation::Hole { block: write.block + at as u64, sequence: write.sequence });
            }
        } else if shows && write.completed_us.is_some() && blocks.iter().any(|seen| *seen < write.sequence) {
            violations.push(Violation::Torn { sequence: write.sequence });
        }
    }
    violations
}

fn look(bytes: &[u8], run: u64, block: u64, known: &HashMap<u64, &Write>) -> Result<u64, Violation> {
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(0);
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    if word(0) != MAGIC || crc32c::crc32c(&bytes[..BLOCK - 4]).to_le_bytes() != bytes[BLOCK - 4..] {
        return Err(Violation::Damaged { block });
    }
    let sequence = word(32);
    let fits =
        known.get(&sequence).is_some_and(|write| (write.block..write.block + write.blocks).contains(&block));
    if word(8) != run || word(24) != block || !fits {
        return Err(Violation::Misplaced { block });
    }
    Ok(sequence)
}

/// Reads a whole export.
pub fn read_image(uri: &str) -> io::Result<Vec<u8>> {
    let mut client = Client::connect(&Uri::parse(uri)?, Duration::from_secs(30))?;
    let mut image = vec![0; client.size() as usize];
    for (n, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((n as u64) << 20, part)?;
    }
    Ok(image)
}

/// A workload that is under way.
pub struct Workload {
    history: Mutex<History>,
    sequence: AtomicU64,
    over: AtomicBool,
}

impl Workload {
    /// For a new run.
    pub fn new(run: u64) -> Self {
        Self {
            history: Mutex::new(History { run, writes: Vec::new() }),
            sequence: AtomicU64::new(1),
            over: AtomicBool::new(false),
        }
    }

    /// Ends all writers.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// What was written.
    pub fn into_history(self) -> History {
        self.history.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Writes to blocks `from..to` of an export until stopped, at most `bytes_per_sec`; connects again for ever.
    pub fn write(&self, uri: &str, from: u64, to: u64, bytes_per_sec: u64, seed: u64) -> io::Result<()> {
        let uri = Uri::parse(uri)?;
        let run = self.history.lock().unwrap_or_else(std::sync::PoisonError::into_inner).run;
        let (mut random, mut client, mut sent, started) = (seed | 1, None, 0u64, std::time::Instant::now());
        while !self.over.load(Ordering::Acquire) {
            let Some(connected) = client.as_mut() else {
                client = Client::connect(&uri, Duration::from_secs(20)).ok();
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let blocks = 1 + random % 16;
            let block = from + (random >> 8) % (to - from - blocks);
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
            let data: Vec<u8> =
                (block..block + blocks).flat_map(|block| stamp(run, block, sequence)).collect();
            let issued_us = now_us();
            let done = Client::write(connected, block * BLOCK as u64, &data, false);
            let completed_us = done.is_ok().then(now_us);
            let write = Write { sequence, block, blocks, issued_us, completed_us };
            self.history.lock().unwrap_or_else(std::sync::PoisonError::into_inner).writes.push(write);
            if done.is_err() {
                client = None;
            }
            sent += data.len() as u64;
            let due = Duration::from_secs_f64(sent as f64 / bytes_per_sec as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A history and the images before and after a moment.
    fn world(seed: u64) -> (History, Vec<u8>, i64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut history = History { run: 7, writes: Vec::new() };
        let mut image = vec![0; 64 * BLOCK];
        let cut = rng.random_range(20..150u64);
        for sequence in 1..=200u64 {
            let blocks = rng.random_range(1..8u64);
            let block = rng.random_range(0..64 - blocks);
            let issued_us = sequence as i64 * 10;
            // One in flight at the cut: it may be in or not.
            let completed_us = Some(issued_us + 5);
            history.writes.push(Write { sequence, block, blocks, issued_us, completed_us });
            if sequence <= cut {
                for block in block..block + blocks {
                    image[block as usize * BLOCK..][..BLOCK].copy_from_slice(&stamp(7, block, sequence));
                }
            }
        }
        (history, image, cut as i64 * 10 + 7)
    }

    #[test]
    fn no_false_alarm_in_two_hundred_histories() {
        for seed in 0..200 {
            let (history, image, moment) = world(seed);
            assert_eq!(prove(&image, &history, moment), [], "seed {seed}");
        }
    }

    #[test]
    fn every_planted_corruption_is_found() {
        let (history, image, moment) = world(3);
        let written = |image: &[u8]| {
            (0..64).filter(|block| image[block * BLOCK..][..8] == MAGIC.to_le_bytes()).collect::<Vec<usize>>()
        };
        let blocks = written(&image);
        let sequence = |image: &[u8], block: usize| {
            u64::from_le_bytes(image[block * BLOCK + 32..][..8].try_into().unwrap())
        };
        let last = *blocks.iter().max_by_key(|block| sequence(&image, **block)).unwrap();
        type Plant<'a> = (&'a str, Box<dyn Fn(&mut Vec<u8>) + 'a>);
        let copy = |image: &mut Vec<u8>, from: usize, to: usize| {
            image.copy_within(from * BLOCK..(from + 1) * BLOCK, to * BLOCK)
        };
        let plants: Vec<Plant<'_>> = vec![
            ("a flipped bit", Box::new(|image| image[blocks[0] * BLOCK + 100] ^= 1)),
            ("a flipped bit of the checksum", Box::new(|image| image[blocks[0] * BLOCK + 511] ^= 1)),
            ("a zeroed block", Box::new(|image| image[last * BLOCK..][..BLOCK].fill(0))),
            ("a block in another place", Box::new(|image| copy(image, blocks[0], blocks[1]))),
            (
                "two blocks swapped",
                Box::new(|image| {
                    let first: Vec<u8> = image[blocks[0] * BLOCK..][..BLOCK].to_vec();
                    copy(image, blocks[1], blocks[0]);
                    image[blocks[1] * BLOCK..][..BLOCK].copy_from_slice(&first);
                }),
            ),
            (
                "a block of another run",
                Box::new(|image| {
                    let sequence = sequence(image, last);
                    image[last * BLOCK..][..BLOCK].copy_from_slice(&stamp(8, last as u64, sequence));
                }),
            ),
            (
                "a stale version beside newer ones",
                Box::new(|image| {
                    let older = history.writes.iter().rev().find(|write| {
                        write.sequence < sequence(image, last)
                            && (write.block..write.block + write.blocks).contains(&(last as u64))
                    });
                    let older = older.map_or(0, |write| write.sequence);
                    let bytes = if older == 0 { [0; BLOCK] } else { stamp(7, last as u64, older) };
                    image[last * BLOCK..][..BLOCK].copy_from_slice(&bytes);
                }),
            ),
            (
                "a write from the future",
                Box::new(|image| {
                    let write = history.writes.iter().find(|write| write.issued_us > moment).unwrap();
                    image[write.block as usize * BLOCK..][..BLOCK].copy_from_slice(&stamp(
                        7,
                        write.block,
                        write.sequence,
                    ));
                }),
            ),
            (
                "a sequence that nobody wrote",
                Box::new(|image| {
                    image[last * BLOCK..][..BLOCK].copy_from_slice(&stamp(7, last as u64, 9999))
                }),
            ),
            ("half of a block", Box::new(|image| image[last * BLOCK + 256..][..256].fill(0))),
            ("foreign bytes", Box::new(|image| image[blocks[2] * BLOCK..][..BLOCK].fill(0x55))),
        ];
        assert!(plants.len() >= 10);
        for (what, plant) in plants {
            let mut spoilt = image.clone();
            plant(&mut spoilt);
            assert_ne!(spoilt, image, "{what}: nothing was planted");
            assert_ne!(prove(&spoilt, &history, moment), [], "{what}");
        }
    }
}
