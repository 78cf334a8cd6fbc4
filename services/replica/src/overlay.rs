//! What is written on top of a view: a log of its own, so that a machine which was brought up can write.
//!
//! ```text
//! views/<id>.cow   records, back to back:
//! 0  magic "CTMO"   4 kind u8 (1 write · 2 zero · 3 flushed)  5 zero  6 disk u16   8 offset u64   16 length u64
//! 24 position u64   32 data sum u64 (xxh3-64)                 40 header sum u64 (xxh3-64 of bytes 0..40)
//! 48 data
//! ```
//!
//! Appended to; a torn tail is cut when it is opened again, and so an acknowledged flush is kept and nothing
//! half-written is ever returned. A *flushed* record says that everything before it was synced: what is bad before
//! one is damage and no torn tail, what comes after the last one is written once more at the next start, because
//! a sync that failed may have left it readable and not durable.
//!
//! What is superseded stays in the log until it is more than half of it. Then `views/<id>.cow.new` is written with
//! what counts, while the machine goes on; what comes meanwhile is copied after it, the last of it with writes held
//! back, and the new log takes the old one's name. A crash finds one or the other.

use crate::extents::{ExtentMap, Run};
use crate::medium::{Medium, MediumFile};
use crate::planted::{self, Bug};
use crate::store::ReplicaError;
use crate::view::View;
use continuum_model::id::ViewId;
use continuum_model::units::DiskIndex;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"CTMO";
const HEADER: usize = 48;
/// Longer writes become several records, so that reading a few bytes verifies little.
const RECORD_DATA_MAX: usize = 64 << 10;
/// A log is left as it is until it is this long.
pub const COMPACT_BYTES: u64 = 64 << 20;
/// Writes are held back while no more than this is copied.
const LAST_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Data { at: u64, length: u32, sum: u64 },
    Zero,
}

/// A view that can be written.
pub struct Overlay {
    laid: Arc<Laid>,
}

/// An overlay that is open: also known to its store, which keeps its log short.
pub(crate) struct Laid {
    view: View,
    name: String,
    medium: Arc<dyn Medium>,
    log: RwLock<Log>,
    /// Taken before `log`.
    tail: Mutex<Tail>,
    compacting: Mutex<()>,
    /// How far the scrub is in which file.
    scrubbed: Mutex<Option<(Arc<dyn MediumFile>, u64)>>,
}

/// Where everything is.
struct Log {
    file: Arc<dyn MediumFile>,
    maps: Vec<ExtentMap<Piece>>,
}

struct Tail {
    end: u64,
    /// Everything before is durable, and a record says so.
    flushed: u64,
    poisoned: bool,
    closed: bool,
    /// How long the log was when it was last found to be short enough.
    weighed: u64,
}

fn file_name(id: ViewId) -> String {
    format!("views/{id}.cow")
}

fn new_name(name: &str) -> String {
    format!("{name}.new")
}

impl Overlay {
    pub(crate) fn open(medium: Arc<dyn Medium>, view: View, id: ViewId) -> Result<Self, ReplicaError> {
        let name = file_name(id);
        let io = |error| ReplicaError::io(&name, error);
        // A compaction that did not come to its end.
        medium.remove(&new_name(&name)).map_err(io)?;
        let file: Arc<dyn MediumFile> = medium.open(&name, true).map_err(io)?.into();
        let length = file.len().map_err(io)?;
        let mut log = Log::empty(&view, file);
        let mut tail = Tail { end: 0, flushed: 0, poisoned: false, closed: false, weighed: 0 };
        while tail.end < length {
            let Some(record) = log.read_record(&view, tail.end, length).map_err(io)? else {
                if log.is_flushed_after(tail.end, length).map_err(io)? {
                    let reason = format!("at {}: no record, and flushed ones follow", tail.end);
                    return Err(ReplicaError::Damaged { file: name, reason });
                }
                break;
            };
            let at = std::mem::replace(&mut tail.end, record.next);
            match record.what {
                // What it says was durable before it was written; it itself may not be.
                What::Flushed => tail.flushed = at,
                What::Piece(piece) => log.put(record.place, record.offset, record.length, piece),
            }
        }
        if tail.end < length {
            log.file.set_len(tail.end).map_err(io)?;
        }
        let mut at = tail.flushed;
        while at < tail.end {
            let mut bytes = vec![0; (tail.end - at).min(LAST_BYTES) as usize];
            log.file.read_at(at, &mut bytes).map_err(io)?;
            log.file.write_at(at, &[&bytes]).map_err(io)?;
            at += bytes.len() as u64;
        }
        log.file.sync().map_err(io)?;
        medium.sync_folder("views").map_err(io)?;
        let laid = Laid {
            view,
            name,
            medium,
            log: RwLock::new(log),
            tail: Mutex::new(tail),
            compacting: Mutex::default(),
            scrubbed: Mutex::default(),
        };
        Ok(Self { laid: Arc::new(laid) })
    }

    pub(crate) fn laid(&self) -> &Arc<Laid> {
        &self.laid
    }

    pub(crate) fn remove(medium: &dyn Medium, id: ViewId) -> Result<(), ReplicaError> {
        let name = file_name(id);
        medium
            .remove(&name)
            .and_then(|()| medium.remove(&new_name(&name)))
            .and_then(|()| medium.sync_folder("views"))
            .map_err(|error| ReplicaError::io(&name, error))
    }

    /// The view below.
    pub fn view(&self) -> &View {
        &self.laid.view
    }

    /// Bytes that the log takes; 0: nothing was written on top.
    pub fn bytes(&self) -> u64 {
        self.laid.tail().end
    }

    /// Fills `out`: what was written on top, else the view.
    pub fn read_at(&self, disk: DiskIndex, offset: u64, out: &mut [u8]) -> Result<(), ReplicaError> {
        let laid = &*self.laid;
        let place = laid.place(disk)?;
        let end = offset.saturating_add(out.len() as u64);
        let (file, runs) = {
            let log = laid.log();
            (log.file.clone(), log.maps[place].overlapping(offset, end))
        };
        let mut done = offset;
        for run in runs {
            let within = |from: u64, to: u64| (from - offset) as usize..(to - offset) as usize;
            if run.start > done {
                laid.view.read_at(disk, done, &mut out[within(done, run.start)])?;
            }
            laid.fill(&*file, &run, &mut out[within(run.start, run.end)])?;
            done = run.end;
        }
        if done < end {
            laid.view.read_at(disk, done, &mut out[(done - offset) as usize..])?;
        }
        Ok(())
    }

    /// Writes on top.
    pub fn write_at(&self, disk: DiskIndex, offset: u64, data: &[u8]) -> Result<(), ReplicaError> {
        let mut offset = offset;
        for part in data.chunks(RECORD_DATA_MAX) {
            self.laid.append(disk, offset, part.len() as u64, Some(part))?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeroes.
    pub fn zero(&self, disk: DiskIndex, offset: u64, length: u64) -> Result<(), ReplicaError> {
        self.laid.append(disk, offset, length, None)
    }

    /// Makes everything written so far durable. A flush that failed is never believed again.
    pub fn flush(&self) -> Result<(), ReplicaError> {
        self.laid.flush()
    }

    /// Writes a log of what counts in place of one of which more than half is superseded, if it is longer than
    /// `bytes_min`. Returns whether it was. The machine goes on meanwhile.
    pub fn compact(&self, bytes_min: u64) -> Result<bool, ReplicaError> {
        self.laid.compact(bytes_min)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // From here on its file may be removed: a compaction under way must not bring it back.
        self.laid.tail().closed = true;
    }
}

impl Laid {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn log(&self) -> RwLockReadGuard<'_, Log> {
        self.log.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn log_mut(&self) -> RwLockWriteGuard<'_, Log> {
        self.log.write().unwrap_or_else(PoisonError::into_inner)
    }
    fn io(&self, error: std::io::Error) -> ReplicaError {
        ReplicaError::io(&self.name, error)
    }
    fn place(&self, disk: DiskIndex) -> Result<usize, ReplicaError> {
        self.view.disks().iter().position(|spec| spec.index == disk).ok_or(ReplicaError::NoDisk(disk))
    }

    /// Copies what a run holds, verified whole.
    fn fill(&self, file: &dyn MediumFile, run: &Run<Piece>, out: &mut [u8]) -> Result<(), ReplicaError> {
        let Piece::Data { at, length, sum } = run.source else {
            out.fill(0);
            return Ok(());
        };
        let damaged = || ReplicaError::Damaged {
            file: self.name.clone(),
            reason: format!("data at {at} does not match its checksum"),
        };
        if out.len() == length as usize {
            file.read_at(at, out).map_err(|error| self.io(error))?;
            return if xxh3_64(out) == sum { Ok(()) } else { Err(damaged()) };
        }
        let mut data = vec![0; length as usize];
        file.read_at(at, &mut data).map_err(|error| self.io(error))?;
        if xxh3_64(&data) != sum {
            return Err(damaged());
        }
        out.copy_from_slice(&data[run.skip as usize..run.skip as usize + out.len()]);
        Ok(())
    }

    fn append(
        &self,
        disk: DiskIndex,
        offset: u64,
        length: u64,
        data: Option<&[u8]>,
    ) -> Result<(), ReplicaError> {
        let place = self.place(disk)?;
        let size = self.view.disks()[place].size;
        let end = offset.saturating_add(length);
        if end > size {
            return Err(ReplicaError::Outside { disk, start: offset, end, size });
        }
        if length == 0 {
            return Ok(());
        }
        let mut tail = self.tail();
        if tail.poisoned {
            return Err(ReplicaError::Poisoned);
        }
        // In the map before the next record may be appended: order in the file is order in the map.
        let mut log = self.log_mut();
        tail.end = log.append(place, disk, offset, length, data, tail.end).map_err(|error| self.io(error))?;
        Ok(())
    }

    fn flush(&self) -> Result<(), ReplicaError> {
        let (file, end) = {
            let tail = self.tail();
            if tail.poisoned {
                return Err(ReplicaError::Poisoned);
            }
            (self.log().file.clone(), tail.end)
        };
        if planted::is(Bug::OverlayNotSynced) {
            return Ok(());
        }
        if let Err(error) = file.sync() {
            self.tail().poisoned = true;
            return Err(self.io(error));
        }
        let mut tail = self.tail();
        if tail.end == end && tail.flushed < end && Arc::ptr_eq(&self.log().file, &file) {
            // Durable with the next sync; until then it is not missed.
            if file.write_at(end, &[&header(FLUSHED, DiskIndex(0), 0, 0, end, 0)]).is_ok() {
                tail.end = end + HEADER as u64;
                tail.flushed = tail.end;
            }
        }
        Ok(())
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Looks at the next records of the log, `bytes_max` of them or a little more. Returns how many bytes were
    /// looked at, what is wrong and where, and whether the end was reached.
    pub(crate) fn scrub(&self, bytes_max: u64) -> (u64, Option<(u64, String)>, bool) {
        let (file, end) = {
            let tail = self.tail();
            (self.log().file.clone(), tail.end)
        };
        let mut scrubbed = self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that was compacted is another one.
        let start = match &*scrubbed {
            Some((known, at)) if Arc::ptr_eq(known, &file) => *at,
            _ => 0,
        };
        let log = Log::empty(&self.view, file);
        let mut at = start;
        let mut wrong = None;
        while at < end && at - start < bytes_max {
            at = match log.read_record(&self.view, at, end) {
                Ok(Some(record)) => record.next,
                Ok(None) => {
                    wrong =
                        Some((at, "no record stands there: machines on it cannot be started again".into()));
                    end
                }
                Err(error) => {
                    wrong = Some((at, format!("it cannot be read: {error}")));
                    end
                }
            };
        }
        *scrubbed = Some((log.file, at));
        (at - start, wrong, at >= end)
    }

    /// The next round begins at the beginning.
    pub(crate) fn scrub_again(&self) {
        *self.scrubbed.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What counts of the log, and how long the log is.
    fn weigh(&self) -> (u64, u64) {
        let tail = self.tail();
        let log = self.log();
        let runs = log.maps.iter().flat_map(|map| map.overlapping(0, u64::MAX));
        let live = runs.map(|run| match run.source {
            Piece::Data { .. } => run.end - run.start + HEADER as u64,
            Piece::Zero => HEADER as u64,
        });
        (live.sum(), tail.end)
    }

    pub(crate) fn compact(&self, bytes_min: u64) -> Result<bool, ReplicaError> {
        let _one = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let tail = self.tail();
            // Weighed again only when it has grown by a quarter.
            if tail.end < bytes_min || tail.end < tail.weighed + tail.weighed / 4 || tail.poisoned {
                return Ok(false);
            }
        }
        let (live, end) = self.weigh();
        if live > end / 2 {
            self.tail().weighed = end;
            return Ok(false);
        }
        let name = new_name(&self.name);
        let done = self.write_anew(&name);
        if !matches!(done, Ok(true)) {
            // What is left of it goes now, or when the overlay is opened again.
            let removed = self.medium.remove(&name);
            tracing::debug!(file = name, ?removed, "a compaction was given up");
        }
        done
    }

    fn write_anew(&self, name: &str) -> Result<bool, ReplicaError> {
        let io = |error| ReplicaError::io(name, error);
        let file: Arc<dyn MediumFile> = self.medium.open(name, true).map_err(io)?.into();
        file.set_len(0).map_err(io)?;
        let (old, runs, mut done) = {
            let tail = self.tail();
            let log = self.log();
            let runs: Vec<Vec<Run<Piece>>> =
                log.maps.iter().map(|map| map.overlapping(0, u64::MAX)).collect();
            (log.file.clone(), runs, tail.end)
        };
        let mut log = Log::empty(&self.view, file);
        let mut end = 0;
        let mut data = Vec::new();
        for (place, runs) in runs.into_iter().enumerate() {
            let disk = self.view.disks()[place].index;
            for run in runs {
                let length = run.end - run.start;
                let content = match run.source {
                    Piece::Zero => None,
                    Piece::Data { .. } => {
                        data.resize(length as usize, 0);
                        self.fill(&*old, &run, &mut data)?;
                        Some(&data[..])
                    }
                };
                end = log.append(place, disk, run.start, length, content, end).map_err(io)?;
            }
        }
        // What came meanwhile; the machine goes on until little is left of it.
        loop {
            let goal = self.tail().end;
            end = self.copy_on(&old, done, goal, &mut log, end)?;
            let copied = goal - done;
            done = goal;
            if copied <= LAST_BYTES {
                break;
            }
        }
        if !planted::is(Bug::CompactedUnsynced) {
            log.file.sync().map_err(io)?;
        }
        let mut tail = self.tail();
        if tail.closed || tail.poisoned {
            return Ok(false);
        }
        end = self.copy_on(&old, done, tail.end, &mut log, end)?;
        log.file.write_at(end, &[&header(FLUSHED, DiskIndex(0), 0, 0, end, 0)]).map_err(io)?;
        end += HEADER as u64;
        if !planted::is(Bug::CompactedUnsynced) {
            log.file.sync().map_err(io)?;
        }
        let renamed = self.medium.rename(name, &self.name).and_then(|()| self.medium.sync_folder("views"));
        if let Err(error) = renamed {
            // Which of the two a crash leaves is not known: nothing more is promised on either.
            tail.poisoned = true;
            return Err(io(error));
        }
        (tail.end, tail.flushed, tail.weighed) = (end, end, end);
        *self.log_mut() = log;
        Ok(true)
    }

    /// Copies records of the old log behind the new one.
    fn copy_on(
        &self,
        old: &Arc<dyn MediumFile>,
        from: u64,
        to: u64,
        log: &mut Log,
        mut end: u64,
    ) -> Result<u64, ReplicaError> {
        let reader = Log::empty(&self.view, old.clone());
        let mut at = from;
        while at < to {
            let record = reader.read_record(&self.view, at, to).map_err(|error| self.io(error))?;
            let record = record.ok_or_else(|| ReplicaError::Damaged {
                file: self.name.clone(),
                reason: format!("at {at}: what was written is no record"),
            })?;
            if let What::Piece(piece) = record.what {
                let disk = self.view.disks()[record.place].index;
                let data = match piece {
                    Piece::Data { .. } => Some(&record.data[..]),
                    Piece::Zero => None,
                };
                end = log
                    .append(record.place, disk, record.offset, record.length, data, end)
                    .map_err(|error| ReplicaError::io(&new_name(&self.name), error))?;
            }
            at = record.next;
        }
        Ok(end)
    }
}

const WRITE: u8 = 1;
const ZERO: u8 = 2;
const FLUSHED: u8 = 3;

fn header(kind: u8, disk: DiskIndex, offset: u64, length: u64, position: u64, sum: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(MAGIC);
    header[4] = kind;
    header[6..8].copy_from_slice(&disk.0.to_le_bytes());
    header[8..16].copy_from_slice(&offset.to_le_bytes());
    header[16..24].copy_from_slice(&length.to_le_bytes());
    header[24..32].copy_from_slice(&position.to_le_bytes());
    header[32..40].copy_from_slice(&sum.to_le_bytes());
    let header_sum = xxh3_64(&header[..40]);
    header[40..].copy_from_slice(&header_sum.to_le_bytes());
    header
}

enum What {
    Piece(Piece),
    Flushed,
}

/// A record that was read.
struct Record {
    place: usize,
    offset: u64,
    length: u64,
    what: What,
    data: Vec<u8>,
    next: u64,
}

impl Log {
    fn empty(view: &View, file: Arc<dyn MediumFile>) -> Self {
        Self { file, maps: view.disks().iter().map(|_| ExtentMap::default()).collect() }
    }

    fn put(&mut self, place: usize, offset: u64, length: u64, piece: Piece) {
        self.maps[place].insert(offset, offset + length, piece);
    }

    /// Appends a record at `end`. Returns the new end.
    fn append(
        &mut self,
        place: usize,
        disk: DiskIndex,
        offset: u64,
        length: u64,
        data: Option<&[u8]>,
        end: u64,
    ) -> std::io::Result<u64> {
        let sum = data.map_or(0, xxh3_64);
        let kind = if data.is_some() { WRITE } else { ZERO };
        let header = header(kind, disk, offset, length, end, sum);
        self.file.write_at(end, &[&header, data.unwrap_or_default()])?;
        let at = end + HEADER as u64;
        let piece = match data {
            Some(data) => Piece::Data { at, length: data.len() as u32, sum },
            None => Piece::Zero,
        };
        self.put(place, offset, length, piece);
        Ok(at + data.map_or(0, |data| data.len() as u64))
    }

    /// The record at a place, verified; `None`: there is none. Errors: the disk could not be read.
    fn read_record(&self, view: &View, at: u64, end: u64) -> std::io::Result<Option<Record>> {
        let mut header = [0; HEADER];
        if at + HEADER as u64 > end {
            return Ok(None);
        }
        self.file.read_at(at, &mut header)?;
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
        if &header[..4] != MAGIC || xxh3_64(&header[..40]) != long(40) || long(24) != at {
            return Ok(None);
        }
        let disk = DiskIndex(u16::from_le_bytes([header[6], header[7]]));
        let (offset, length) = (long(8), long(16));
        let next = at + HEADER as u64;
        if header[4] == FLUSHED {
            return Ok(Some(Record {
                place: 0,
                offset,
                length,
                what: What::Flushed,
                data: Vec::new(),
                next,
            }));
        }
        let Some(place) = view.disks().iter().position(|spec| spec.index == disk) else { return Ok(None) };
        if length == 0 || offset.checked_add(length).is_none_or(|stop| stop > view.disks()[place].size) {
            return Ok(None);
        }
        match header[4] {
            WRITE if length <= RECORD_DATA_MAX as u64 && next + length <= end => {
                let mut data = vec![0; length as usize];
                self.file.read_at(next, &mut data)?;
                if xxh3_64(&data) != long(32) {
                    return Ok(None);
                }
                let what = What::Piece(Piece::Data { at: next, length: length as u32, sum: long(32) });
                Ok(Some(Record { place, offset, length, what, data, next: next + length }))
            }
            ZERO => {
                let what = What::Piece(Piece::Zero);
                Ok(Some(Record { place, offset, length, what, data: Vec::new(), next }))
            }
            _ => Ok(None),
        }
    }

    /// Whether a *flushed* record stands anywhere after `from`.
    fn is_flushed_after(&self, from: u64, end: u64) -> std::io::Result<bool> {
        const WINDOW: u64 = 1 << 20;
        let mut at = from + 1;
        while at + HEADER as u64 <= end {
            let mut window = vec![0; WINDOW.min(end - at) as usize];
            self.file.read_at(at, &mut window)?;
            for (skip, bytes) in window.windows(HEADER).enumerate() {
                let position = at + skip as u64;
                if &bytes[..4] == MAGIC && bytes == header(FLUSHED, DiskIndex(0), 0, 0, position, 0) {
                    return Ok(true);
                }
            }
            at += (window.len() - (HEADER - 1)) as u64;
        }
        Ok(false)
    }
}
