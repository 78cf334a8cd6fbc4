//! Writers of our own, over our own NBD client: several at once, on several disks, with one sequence.
//!
//! One writer owns a stretch of a disk, so that writes to one block never overlap in time and a later one has a
//! higher sequence. Mostly stamped writes of 1 to 16 blocks, half of them on a hot tenth; now and then a flush,
//! and zeroes.

use super::history::{Log, What};
use super::stamp::{BLOCK, stamp};
use continuum_fabric::nbd::{Client, Uri};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Reads a whole export.
pub fn read_image(uri: &str) -> io::Result<Vec<u8>> {
    let mut client = Client::connect(&Uri::parse(uri)?, Duration::from_secs(30))?;
    let mut image = vec![0; client.size() as usize];
    for (n, part) in image.chunks_mut(1 << 20).enumerate() {
        client.read((n as u64) << 20, part)?;
    }
    Ok(image)
}

/// The size of an export, in bytes.
pub fn size(uri: &str) -> io::Result<u64> {
    Client::connect(&Uri::parse(uri)?, Duration::from_secs(30)).map(|client| client.size())
}

/// What one writer does.
#[derive(Debug, Clone)]
pub struct Writer {
    /// Where.
    pub uri: String,
    /// What that disk is called in the history.
    pub disk: u32,
    /// The stretch that is its own, in blocks.
    pub blocks: Range<u64>,
    /// At most this fast.
    pub bytes_per_sec: u64,
    /// From which its choices follow.
    pub seed: u64,
}

/// A workload that is under way.
pub struct Workload {
    run: u64,
    log: Log,
    sequence: AtomicU64,
    over: AtomicBool,
}

impl Workload {
    /// For a new run, with its log in a new file.
    pub fn new(run: u64, log: &Path) -> io::Result<Self> {
        let log = Log::create(log, run)?;
        Ok(Self { run, log, sequence: AtomicU64::new(1), over: AtomicBool::new(false) })
    }

    /// Ends all writers.
    pub fn stop(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Writes until stopped; connects again for ever.
    pub fn write(&self, writer: &Writer) -> io::Result<()> {
        let uri = Uri::parse(&writer.uri)?;
        let length = writer.blocks.end - writer.blocks.start;
        let (mut random, mut client, mut sent, started) = (writer.seed | 1, None, 0u64, Instant::now());
        let mut data = Vec::with_capacity(16 * BLOCK);
        while !self.over.load(Ordering::Acquire) {
            let Some(connected) = client.as_mut() else {
                client = Client::connect(&uri, Duration::from_secs(20)).ok();
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let blocks = 1 + random % 16;
            let span = if (random >> 60) & 1 == 0 { (length / 10).max(17) } else { length };
            let block = writer.blocks.start + (random >> 8) % (span - blocks);
            let what = if (random >> 50).is_multiple_of(64) { What::Zeroes } else { What::Data };
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
            data.clear();
            data.extend((block..block + blocks).flat_map(|at| stamp(self.run, writer.disk, at, sequence)));
            self.log.issue(sequence, writer.disk, block, blocks, what)?;
            let at = block * BLOCK as u64;
            let done = match what {
                What::Data => Client::write(connected, at, &data, (random >> 40).is_multiple_of(32)),
                What::Zeroes => connected.zero(at, blocks as u32 * BLOCK as u32),
            };
            match &done {
                Ok(()) => self.log.answer(sequence, true)?,
                // The server answered with an error of the protocol's: an outcome. A lost connection is none.
                Err(error) if matches!(error.raw_os_error(), Some(1 | 5 | 12 | 22 | 28 | 75 | 95 | 108)) => {
                    self.log.answer(sequence, false)?;
                    client = None;
                }
                Err(_) => client = None,
            }
            if (random >> 30).is_multiple_of(200) {
                client = client.and_then(|mut client| client.flush().is_ok().then_some(client));
            }
            sent += data.len() as u64;
            let due = Duration::from_secs_f64(sent as f64 / writer.bytes_per_sec.max(1) as f64);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
        Ok(())
    }
}
