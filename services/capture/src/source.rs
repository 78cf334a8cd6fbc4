//! One machine with all its disks: the splitter, and the two threads that keep its feed moving.
//!
//! ```text
//! write:   range lock ─► bits set (map file) ─► pwrite ─► feed (sequence, moment) ─► unlock ─► ack
//! inject:  range lock ─► read ─► feed (injected) ─► unlock        one run of at most 1 MiB at a time
//! ```
//!
//! Applied before appended: what the feed holds is on the source. Both under one range lock: overlapping
//! writes stand in the feed in the order in which they reached the disk.
//!
//! The **ticker** closes frames that are 20 ms old, sets a time mark when nothing else happened for half a
//! second, and once a second flushes the disks and then writes cleared bits to the maps. The **injector**
//! sends stale regions and stops while too much is unacknowledged, so that it never pushes the feed out of
//! data mode by itself.

use crate::disk::SourceDisk;
use crate::feed::{Connected, Feed, Next, ReplicaState, Stage};
use crate::map::ChangeMap;
use crate::nbd::{BlockDevice, Extent};
use crate::ranges::RangeLocks;
use bytes::Bytes;
use continuum_model::digest::{BlockSum, Digest, DiskDigest};
use continuum_model::feed::envelope::ENVELOPE_BYTES_MAX;
use continuum_model::feed::{Barrier, BarrierKind, Change, Envelope};
use continuum_model::health::Mode;
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use continuum_model::world::{Clock, Entropy};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A frame is closed when it is this old.
const FRAME_AGE: Duration = Duration::from_millis(20);
/// A time mark is set when nothing else happened for this long.
const QUIET: Duration = Duration::from_millis(500);
/// How often disks are flushed for the sake of the maps.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// One injected read.
const INJECT_BYTES: u64 = 1 << 20;
/// The injector stops while this much is unacknowledged.
const INJECT_WINDOW: u64 = 16 << 20;

/// What a source is made of.
pub struct SourceConfig {
    /// Whose disks these are.
    pub machine: MachineId,
    /// Where maps and staging are kept.
    pub dir: PathBuf,
    /// The disks; their place in this list is their number in frames.
    pub disks: Vec<SourceSpec>,
}

/// One disk of a source.
pub struct SourceSpec {
    /// Its id.
    pub id: DiskId,
    /// The disk.
    pub disk: Box<dyn SourceDisk>,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A disk cannot be used.
    #[error(
        "disk {index}: {reason}; give it a size that is a multiple of 512 bytes, between 4 KiB and 64 TiB"
    )]
    Disk {
        /// Which.
        index: usize,
        /// Why.
        reason: String,
    },
    /// A file of the source's own could not be used.
    #[error("the change map or staging in {dir} cannot be used")]
    State {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing is being shipped.
    #[error("no barrier can be set while {mode}: {reason}")]
    NotShipping {
        /// The mode.
        mode: &'static str,
        /// Why.
        reason: String,
    },
    /// The source's disk failed.
    #[error("the source disk could not be read")]
    Io(#[from] io::Error),
}

/// How a source is.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceStatus {
    /// The mode.
    pub mode: Mode,
    /// Why it is not `data`.
    pub reason: String,
    /// Bytes that may differ from the target.
    pub dirty_bytes: u64,
    /// Bytes that are not acknowledged.
    pub waiting_bytes: u64,
    /// Of those, on disk.
    pub staged_bytes: u64,
    /// The most that may wait.
    pub staging_max: u64,
    /// Counters.
    pub totals: crate::feed::Totals,
    /// The newest record.
    pub newest: (Sequence, Timestamp),
    /// Why the map could not be believed at the start.
    pub doubt: Option<String>,
}

/// One machine's disks and their feed.
pub struct Source {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    dir: PathBuf,
    disks: Vec<Part>,
    sizes: Vec<u64>,
    feed: Mutex<Feed>,
    changed: Condvar,
    scan: Mutex<Option<Scan>>,
    scanning: AtomicBool,
    clock: Arc<dyn Clock>,
    stop: AtomicBool,
    doubt: Option<String>,
}

struct Part {
    disk: Box<dyn SourceDisk>,
    locks: RangeLocks,
    poisoned: AtomicBool,
}

/// A digest of all disks as of a barrier, under way: what was overwritten before it was read is summed first.
struct Scan {
    disk: usize,
    done: u64,
    kept: HashMap<(usize, u64), BlockSum>,
    failed: Option<String>,
}

impl Source {
    /// Opens maps and staging and starts the feed, unconnected. Disks can be written from now on.
    pub fn open(
        config: SourceConfig,
        clock: Arc<dyn Clock>,
        entropy: &mut dyn Entropy,
    ) -> Result<Self, SourceError> {
        let state = |source| SourceError::State { dir: config.dir.clone(), source };
        std::fs::create_dir_all(&config.dir).map_err(state)?;
        let (mut parts, mut sizes, mut maps, mut doubts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (index, spec) in config.disks.into_iter().enumerate() {
            let size =
                spec.disk.size().map_err(|error| SourceError::Disk { index, reason: error.to_string() })?;
            if !(4096..=64 << 40).contains(&size) || size % 512 != 0 {
                return Err(SourceError::Disk {
                    index,
                    reason: format!("its size of {size} bytes is out of range"),
                });
            }
            let path = config.dir.join(format!("{}.map", spec.id));
            let (map, doubt) = ChangeMap::open(&path, spec.id, size).map_err(state)?;
            maps.push(map);
            sizes.push(size);
            doubts.extend(doubt.map(|why| format!("disk {index}: {why}")));
            parts.push(Part {
                disk: spec.disk,
                locks: RangeLocks::default(),
                poisoned: AtomicBool::new(false),
            });
        }
        let stage = StageFile::create(config.dir.join("staging.feed")).map_err(state)?;
        let acked = read_acked(&config.dir);
        let mut session = [0; 8];
        entropy.fill(&mut session);
        let feed = Feed::new(config.machine, u64::from_le_bytes(session), maps, acked, Box::new(stage));
        let shared = Arc::new(Shared {
            dir: config.dir,
            disks: parts,
            sizes,
            feed: Mutex::new(feed),
            changed: Condvar::new(),
            scan: Mutex::new(None),
            scanning: AtomicBool::new(false),
            clock,
            stop: AtomicBool::new(false),
            doubt: (!doubts.is_empty()).then(|| doubts.join("; ")),
        });
        let thread = |name: &str, body: fn(&Shared)| {
            let shared = shared.clone();
            std::thread::Builder::new().name(name.into()).spawn(move || body(&shared))
        };
        let threads = [thread("ticker", Shared::tick), thread("injector", Shared::inject)];
        let threads = threads.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Self { shared, threads })
    }

    /// One of its disks, to be served.
    pub fn device(&self, index: usize) -> Option<Arc<dyn BlockDevice>> {
        (index < self.shared.disks.len())
            .then(|| Arc::new(SplitDisk { shared: self.shared.clone(), index }) as Arc<dyn BlockDevice>)
    }

    /// The sizes of its disks.
    pub fn sizes(&self) -> &[u64] {
        &self.shared.sizes
    }

    /// A stream to the replica opened. Returns what came of it, and the stretch to ask frames of.
    pub fn connect(&self, epoch: Epoch, replica: ReplicaState) -> Result<(Connected, u64), SourceError> {
        let mut feed = self.shared.feed();
        let connected = feed.connect(epoch, replica, self.shared.clock.wall())?;
        self.shared.changed.notify_all();
        Ok((connected, feed.stretch()))
    }

    /// The frame after `after`; waits for at most `patience`.
    pub fn next_frame(
        &self,
        stretch: u64,
        after: FrameNumber,
        patience: Duration,
    ) -> Result<Next, SourceError> {
        let mut feed = self.shared.feed();
        let deadline = self.shared.clock.uptime() + patience;
        loop {
            match feed.next_frame(stretch, after)? {
                Next::Idle => {}
                next => return Ok(next),
            }
            let left = deadline.saturating_sub(self.shared.clock.uptime());
            if left.is_zero() {
                return Ok(Next::Idle);
            }
            feed = self.shared.changed.wait_timeout(feed, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Everything up to `number` is durable at the target.
    pub fn acknowledged(&self, number: FrameNumber) {
        if self.shared.feed().acknowledge(number) {
            self.shared.changed.notify_all();
        }
    }

    /// Ships nothing until the next connect; the map goes on.
    pub fn fall_back(&self, reason: &str) -> Result<(), SourceError> {
        self.shared.feed().fall_back(reason)?;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// How much may wait for the target.
    pub fn set_staging_max(&self, bytes: u64) {
        self.shared.feed().set_staging_max(bytes);
    }

    /// Cuts a barrier. Errors: nothing is shipped now, or a repair is under way.
    pub fn barrier(
        &self,
        kind: BarrierKind,
        name: &str,
        point: PointId,
    ) -> Result<(Sequence, Timestamp), SourceError> {
        let mut feed = self.shared.feed();
        let barrier = Barrier { kind, consistent: true, point: Some(point), name: name.to_owned() };
        let (mode, reason) = (feed.mode().0, feed.mode().1.to_owned());
        if mode != Mode::Data {
            return Err(SourceError::NotShipping { mode: mode.name(), reason });
        }
        let cut = feed.barrier(barrier, self.shared.clock.wall())?;
        feed.seal()?;
        self.shared.changed.notify_all();
        match cut {
            Some((sequence, time, true)) => Ok((sequence, time)),
            _ => Err(SourceError::NotShipping { mode: mode.name(), reason }),
        }
    }

    /// How it is.
    pub fn status(&self) -> SourceStatus {
        let feed = self.shared.feed();
        let (mode, reason) = feed.mode();
        let (waiting_bytes, staged_bytes, staging_max) = feed.waiting();
        SourceStatus {
            mode,
            reason: reason.to_owned(),
            dirty_bytes: feed.dirty_bytes(),
            waiting_bytes,
            staged_bytes,
            staging_max,
            totals: feed.totals,
            newest: feed.newest(),
            doubt: self.shared.doubt.clone(),
        }
    }

    /// Cuts a barrier and digests every disk as of it, while the machine runs on. A write to a block that
    /// was not read yet waits for one read of that block.
    pub fn digest_at_barrier(
        &self,
        point: PointId,
    ) -> Result<(Sequence, Timestamp, Vec<Digest>), SourceError> {
        self.shared.digest(point, |point| self.barrier(BarrierKind::Crash, "verify", point))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Err(error) = self.shared.persist_clears() {
            tracing::warn!(%error, "cleared bits were not stored: they are sent again at the next start");
        }
    }
}

impl Shared {
    fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self) {
        let mut opened: Option<Duration> = None;
        let mut last_record = (Sequence(0), self.clock.uptime());
        let mut persisted = self.clock.uptime();
        let mut feed = self.feed();
        while !self.stop.load(Ordering::Acquire) {
            let now = self.clock.uptime();
            if feed.newest().0 != last_record.0 {
                last_record = (feed.newest().0, now);
            }
            if now.saturating_sub(last_record.1) >= QUIET && feed.mode().0 != Mode::Bitmap {
                if let Err(error) = feed.barrier(Barrier::time_mark(true), self.clock.wall()) {
                    tracing::error!(%error, "a time mark could not be set");
                }
                last_record.1 = now;
            }
            opened = if feed.has_open_frame() { opened.or(Some(now)) } else { None };
            if opened.is_some_and(|at| now.saturating_sub(at) >= FRAME_AGE) {
                if let Err(error) = feed.seal() {
                    tracing::error!(%error, "a frame could not be closed");
                }
                opened = None;
                self.changed.notify_all();
            }
            if now.saturating_sub(persisted) >= PERSIST_EVERY {
                persisted = now;
                drop(feed);
                if let Err(error) = self.persist_clears() {
                    tracing::warn!(%error, "cleared bits wait: the disk or the map could not be flushed");
                }
                feed = self.feed();
            }
            let wait = match opened {
                Some(at) => FRAME_AGE
                    .saturating_sub(self.clock.uptime().saturating_sub(at))
                    .max(Duration::from_millis(1)),
                // A record that comes now waits for at most this until its frame's age is counted.
                None if feed.mode().0 == Mode::Bitmap => Duration::from_millis(200),
                None => Duration::from_millis(10),
            };
            feed = self.changed.wait_timeout(feed, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn inject(&self) {
        let mut buffer = Vec::new();
        let mut feed = self.feed();
        while !self.stop.load(Ordering::Acquire) {
            if feed.mode().0 != Mode::CatchingUp || feed.waiting().0 > INJECT_WINDOW {
                feed = self
                    .changed
                    .wait_timeout(feed, Duration::from_millis(200))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            }
            let Some((disk, offset, length)) = feed.next_injection(INJECT_BYTES, &self.sizes) else {
                if let Err(error) = feed.finish_catching_up(self.clock.wall()).and_then(|_| feed.seal()) {
                    tracing::error!(%error, "catching up could not be finished");
                }
                self.changed.notify_all();
                continue;
            };
            drop(feed);
            let injected = self.inject_one(disk, offset, length, &mut buffer);
            feed = self.feed();
            if let Err(error) = injected {
                // Never zeroes in place of data: the regions stay stale and are tried again.
                tracing::error!(disk = disk.0, offset, length, %error, "the source could not be read; its regions wait");
                feed = self
                    .changed
                    .wait_timeout(feed, Duration::from_secs(1))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }

    fn inject_one(&self, disk: DiskIndex, offset: u64, length: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        let part = &self.disks[usize::from(disk.0)];
        let _held = part.locks.exclusive(offset, length);
        buffer.resize(length as usize, 0);
        part.disk.read(offset, buffer)?;
        let zeroes = buffer.iter().all(|byte| *byte == 0);
        let mut feed = self.feed();
        if !(zeroes && feed.skip_zeroes(disk, offset, length)) {
            feed.inject(disk, offset, Bytes::copy_from_slice(buffer), self.clock.wall())?;
        }
        self.changed.notify_all();
        Ok(())
    }

    fn persist_clears(&self) -> io::Result<()> {
        let (words, acked) = {
            let mut feed = self.feed();
            if !feed.maps_mut().iter().any(|map| map.has_clears()) {
                return Ok(());
            }
            let words: Vec<_> = feed.maps_mut().iter_mut().map(ChangeMap::take_clears).collect();
            (words, feed.acked())
        };
        // What a cleared bit relies on is on record before the bit is: the disk's content, and how far the
        // replica was, so that a replica that goes back in time is noticed.
        write_acked(&self.dir, acked)?;
        for (index, words) in words.iter().enumerate() {
            if !words.is_empty() {
                self.flush(index)?;
            }
        }
        let mut feed = self.feed();
        for (map, words) in feed.maps_mut().iter_mut().zip(&words) {
            map.persist_clears(words)?;
        }
        Ok(())
    }

    /// A flush that failed once is never believed again: the kernel may have dropped the pages.
    fn flush(&self, index: usize) -> io::Result<()> {
        let part = &self.disks[index];
        if part.poisoned.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "a flush of this disk failed before: restart the agent after the disk was seen to",
            ));
        }
        part.disk.flush().inspect_err(|_| part.poisoned.store(true, Ordering::Release))
    }

    /// Before a guest's change while a scan is under way: sums what it will overwrite.
    fn keep_for_scan(&self, disk: usize, offset: u64, length: u64) {
        let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(scan) = scan.as_mut() else { return };
        for region in offset / REGION_BYTES..=(offset + length - 1) / REGION_BYTES {
            let passed = disk < scan.disk || (disk == scan.disk && region < scan.done);
            if passed || scan.kept.contains_key(&(disk, region)) {
                continue;
            }
            match self.sum(disk, region) {
                Ok(sum) => {
                    scan.kept.insert((disk, region), sum);
                }
                Err(error) => scan.failed = Some(error.to_string()),
            }
        }
    }

    fn sum(&self, disk: usize, region: u64) -> io::Result<BlockSum> {
        let start = region * REGION_BYTES;
        let mut block = vec![0; REGION_BYTES.min(self.sizes[disk] - start) as usize];
        self.disks[disk].disk.read(start, &mut block)?;
        Ok(BlockSum::of(&block))
    }

    fn digest(
        &self,
        point: PointId,
        cut: impl FnOnce(PointId) -> Result<(Sequence, Timestamp), SourceError>,
    ) -> Result<(Sequence, Timestamp, Vec<Digest>), SourceError> {
        let (sequence, time) = {
            // Nothing under way while the barrier is cut and the scan begins.
            let _held: Vec<_> = self
                .disks
                .iter()
                .zip(&self.sizes)
                .map(|(part, size)| part.locks.exclusive(0, *size))
                .collect();
            let cut = cut(point)?;
            *self.scan.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(Scan { disk: 0, done: 0, kept: HashMap::new(), failed: None });
            self.scanning.store(true, Ordering::Release);
            cut
        };
        let scanned = self.scan_all();
        self.scanning.store(false, Ordering::Release);
        let scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reason) = scan.and_then(|scan| scan.failed) {
            return Err(SourceError::Io(io::Error::other(reason)));
        }
        Ok((sequence, time, scanned?))
    }

    fn scan_all(&self) -> Result<Vec<Digest>, SourceError> {
        let mut digests = Vec::new();
        for (disk, size) in self.sizes.iter().enumerate() {
            let mut digest = DiskDigest::new(*size);
            for region in 0..size.div_ceil(REGION_BYTES) {
                let _held = self.disks[disk].locks.shared(region * REGION_BYTES, REGION_BYTES);
                let mut scan = self.scan.lock().unwrap_or_else(PoisonError::into_inner);
                let kept = scan.as_mut().and_then(|scan| {
                    (scan.disk, scan.done) = (disk, region + 1);
                    scan.kept.remove(&(disk, region))
                });
                drop(scan);
                digest.push(match kept {
                    Some(sum) => sum,
                    None => self.sum(disk, region)?,
                });
            }
            digests.push(digest.finish());
        }
        Ok(digests)
    }
}

/// A disk of a source as guests see it.
struct SplitDisk {
    shared: Arc<Shared>,
    index: usize,
}

impl SplitDisk {
    fn change(
        &self,
        offset: u64,
        length: u64,
        durable: bool,
        apply: impl FnOnce(&dyn SourceDisk) -> io::Result<()>,
        change: impl FnOnce(DiskIndex) -> Change,
    ) -> io::Result<()> {
        let shared = &*self.shared;
        let (part, disk) = (&shared.disks[self.index], DiskIndex(self.index as u16));
        let _held = part.locks.exclusive(offset, length);
        if shared.scanning.load(Ordering::Acquire) {
            shared.keep_for_scan(self.index, offset, length);
        }
        shared.feed().begin(disk, offset, length)?;
        if let Err(error) = apply(&*part.disk) {
            shared.feed().failed(disk, offset, length);
            shared.changed.notify_all();
            return Err(error);
        }
        shared.feed().applied(change(disk), shared.clock.wall())?;
        if durable {
            shared.flush(self.index)?;
        }
        Ok(())
    }
}

impl BlockDevice for SplitDisk {
    fn size(&self) -> u64 {
        self.shared.sizes[self.index]
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let part = &self.shared.disks[self.index];
        let _held = part.locks.shared(offset, out.len() as u64);
        part.disk.read(offset, out)
    }
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        let length = data.len() as u64;
        self.change(
            offset,
            length,
            durable,
            |disk| disk.write(offset, data),
            |disk| Change::Write { disk, offset, data: Bytes::copy_from_slice(data), injected: false },
        )
    }
    fn flush(&self) -> io::Result<()> {
        self.shared.flush(self.index)
    }
    fn zero(&self, offset: u64, length: u64, may_trim: bool, durable: bool) -> io::Result<()> {
        self.change(
            offset,
            length,
            durable,
            |disk| disk.zero(offset, length, may_trim),
            |disk| Change::Zero {
                disk,
                offset,
                // NBD lengths are 32 bits.
                length: length as u32,
                injected: false,
            },
        )
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let part = &self.shared.disks[self.index];
        let _held = part.locks.shared(offset, length);
        part.disk.extents(offset, length, out)
    }
}

/// Staging: envelopes back to back in one file, forgotten when the feed starts over.
struct StageFile {
    file: File,
    end: u64,
}

impl StageFile {
    fn create(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        Ok(Self { file, end: 0 })
    }
}

impl Stage for StageFile {
    fn put(&mut self, envelope: &Envelope) -> io::Result<u64> {
        let at = self.end;
        let bytes = envelope.encode();
        self.file.write_all_at(&bytes, at)?;
        self.end += bytes.len() as u64;
        Ok(at)
    }
    fn get(&mut self, at: u64) -> io::Result<Envelope> {
        let mut prefix = [0; 32];
        self.file.read_exact_at(&mut prefix, at)?;
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let decoded = continuum_model::feed::envelope::EnvelopePrefix::decode(&prefix).map_err(damaged)?;
        let mut body = vec![0; decoded.body_len().min(ENVELOPE_BYTES_MAX)];
        self.file.read_exact_at(&mut body, at + 32)?;
        decoded.open(body.into()).map_err(damaged)
    }
    fn clear(&mut self) -> io::Result<()> {
        if self.end > 0 {
            self.file.set_len(0)?;
            self.end = 0;
        }
        Ok(())
    }
}

/// `acked`: frame number u64, digest u128, sum u64 (xxh3-64 of the 24 bytes before).
fn read_acked(dir: &std::path::Path) -> (FrameNumber, u128) {
    let Ok(bytes) = std::fs::read(dir.join("acked")) else { return (FrameNumber(0), 0) };
    let Ok(bytes) = <[u8; 32]>::try_from(bytes.as_slice()) else { return (FrameNumber(0), 0) };
    let (head, sum) = bytes.split_at(24);
    if xxhash_rust::xxh3::xxh3_64(head).to_le_bytes() != sum {
        return (FrameNumber(0), 0);
    }
    let number = u64::from_le_bytes(head[..8].try_into().unwrap_or_default());
    (FrameNumber(number), u128::from_le_bytes(head[8..].try_into().unwrap_or_default()))
}

fn write_acked(dir: &std::path::Path, (number, digest): (FrameNumber, u128)) -> io::Result<()> {
    let mut bytes = number.0.to_le_bytes().to_vec();
    bytes.extend_from_slice(&digest.to_le_bytes());
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    let (path, temporary) = (dir.join("acked"), dir.join("acked.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    std::fs::rename(temporary, path)?;
    File::open(dir)?.sync_all()
}
