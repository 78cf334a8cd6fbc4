//! Every disk of a machine as of one position. Read only; verified on every read.
//!
//! Opening one costs nothing: which record holds which range is worked out for a region of the disk when it is
//! first read, and kept in the cache. While a view is open nothing newer than its position is folded. What is
//! folded below it moves from the journal to the base, with the same content, and is then read there.
//!
//! Whoever reads one stretch after the other has it read ahead: a window of the disk is put together at
//! once, and each frame that it needs is read and decompressed once, however scattered its records are.

use crate::cache::{Content, Key, Owner};
use crate::extents::{ExtentMap, Run, overlapping};
use crate::manifest::DiskSpec;
use crate::planted::{self, Bug};
use crate::store::{Core, MAP_BYTES, ReplicaError};
use bytes::Bytes;
use continuum_model::digest::{BlockSum, Digest, DiskDigest};
use continuum_model::units::{DiskIndex, FrameNumber, REGION_BYTES, Sequence};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry::Vacant;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

/// What is read ahead is kept in pieces of this size. A whole number of them is a region of the index.
const CHUNK_BYTES: u64 = 1 << 20;
/// Most chunks that are read ahead at once.
const WINDOW_CHUNKS: u64 = 32;
/// A chunk of no more runs than this is read as it comes: its frames are whole in the cache anyway.
const SCATTERED: usize = 4;
/// Reads that start this near to where a stream is belong to it: clients keep several in flight.
const STREAM_SLACK: u64 = 4 << 20;
/// A stream that went this far is read ahead.
const STREAM_BYTES: u64 = 1 << 20;
/// Streams of a disk that are told apart: a client that copies with several threads gives each a part of the disk.
const STREAMS: usize = 8;
/// A stream of which nothing came in so many reads makes place for another.
const STREAM_AGE: u64 = 1024;

/// Where a run of a view comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A record's data in a frame's payload.
    Frame {
        /// Which frame.
        number: FrameNumber,
        /// Where the record's data starts.
        data_at: u32,
    },
    /// Zeroes.
    Zero,
}

/// Disks as of a position. While one is open nothing newer than that is folded.
pub struct View {
    core: Arc<Core>,
    id: Owner,
    position: Sequence,
    streams: Mutex<Vec<Streams>>,
    /// Held by whoever reads ahead: others that need the same find it done.
    ahead: Mutex<()>,
}

/// How a disk is read of late.
#[derive(Default, Clone, Copy)]
struct Streams {
    reads: u64,
    each: [Stream; STREAMS],
}

/// One pass over a part of a disk.
#[derive(Default, Clone, Copy)]
struct Stream {
    /// From where to where it went, and how much of that was read. Of a long one only the last part.
    start: u64,
    high: u64,
    run: u64,
    /// When it was last read, in reads.
    last: u64,
}

impl Stream {
    /// What reads here and there within a stretch is none, however much it reads.
    const fn is_sequential(&self) -> bool {
        self.run >= STREAM_BYTES && self.run >= (self.high - self.start) / 4
    }
}

impl Streams {
    /// Takes note of a read; tells whether it is part of a sequential pass.
    fn note(&mut self, start: u64, end: u64) -> bool {
        self.reads += 1;
        let reads = self.reads;
        let near = |stream: &&mut Stream| {
            start <= stream.high + STREAM_SLACK && start + STREAM_SLACK >= stream.high && stream.last > 0
        };
        let nearest = self.each.iter_mut().filter(near).min_by_key(|stream| stream.high.abs_diff(start));
        if let Some(stream) = nearest {
            stream.last = reads;
            stream.run += end.saturating_sub(start.max(stream.high));
            stream.high = stream.high.max(end);
            if stream.run > 16 * STREAM_BYTES {
                stream.run /= 2;
                stream.start += (stream.high - stream.start) / 2;
            }
            return stream.is_sequential();
        }
        let oldest =
            |stream: &&mut Stream| (stream.is_sequential() && reads - stream.last < STREAM_AGE, stream.last);
        if let Some(stream) = self.each.iter_mut().min_by_key(oldest) {
            *stream = Stream { start, high: end, run: end - start, last: reads };
        }
        end - start >= STREAM_BYTES
    }
}

impl View {
    /// The caller has put the position on the list of what may not be folded.
    pub(crate) fn new(core: Arc<Core>, position: Sequence) -> Self {
        let streams = Mutex::new(vec![Streams::default(); core.disks.len()]);
        Self { core, id: Owner::new(), position, streams, ahead: Mutex::default() }
    }

    /// The disks it has.
    pub fn disks(&self) -> &[DiskSpec] {
        &self.core.disks
    }

    /// Its position.
    pub const fn position(&self) -> Sequence {
        self.position
    }

    fn place(&self, disk: DiskIndex) -> Result<usize, ReplicaError> {
        self.core.disks.iter().position(|spec| spec.index == disk).ok_or(ReplicaError::NoDisk(disk))
    }

    /// Fills `out` from `offset` of a disk.
    ///
    /// Errors: a range outside the disk; damage, in which case nothing unverified is returned.
    pub fn read_at(&self, disk: DiskIndex, offset: u64, out: &mut [u8]) -> Result<(), ReplicaError> {
        loop {
            let generation = self.generation();
            match self.read_once(disk, offset, out) {
                // Records moved while it was looked where they are.
                Err(ReplicaError::Gap { .. }) if self.generation() != generation => {}
                done => return done,
            }
        }
    }

    fn generation(&self) -> u64 {
        self.core.generation.load(Ordering::Acquire)
    }

    fn read_once(&self, disk: DiskIndex, offset: u64, out: &mut [u8]) -> Result<(), ReplicaError> {
        let at = self.place(disk)?;
        let size = self.core.disks[at].size;
        let end = offset.saturating_add(out.len() as u64);
        if end > size {
            return Err(ReplicaError::Outside { disk, start: offset, end, size });
        }
        let sequential = self.streams.lock().unwrap_or_else(PoisonError::into_inner)[at].note(offset, end);
        let mut done = offset;
        while done < end {
            let region = done / MAP_BYTES;
            let runs = self.runs(disk, region)?;
            let stop =
                if sequential { (done / CHUNK_BYTES + 1) * CHUNK_BYTES } else { (region + 1) * MAP_BYTES };
            let stop = stop.min(end);
            let part = &mut out[(done - offset) as usize..(stop - offset) as usize];
            let chunk = done / CHUNK_BYTES;
            if sequential && is_scattered(&runs, chunk) {
                self.read_stream(disk, size, &runs, done, part)?;
            } else {
                self.read_runs(disk, &runs, done, part)?;
            }
            done = stop;
        }
        Ok(())
    }

    /// The runs of a region, in order.
    fn runs(&self, disk: DiskIndex, region: u64) -> Result<Arc<[Run<Source>]>, ReplicaError> {
        // Asked before the index is: what was looked up while it changed is kept under the older name.
        let generation = if planted::is(Bug::StaleMap) { 0 } else { self.generation() };
        let key = Key::Map(self.id, disk, region, generation);
        if let Some(Content::Runs(runs)) = self.core.cache.get(key) {
            return Ok(runs);
        }
        let runs: Arc<[Run<Source>]> = self.core.runs_at(disk, region, self.position).into();
        self.core.cache.put(key, Content::Runs(runs.clone()));
        Ok(runs)
    }

    fn read_runs(
        &self,
        disk: DiskIndex,
        runs: &[Run<Source>],
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), ReplicaError> {
        let end = offset + out.len() as u64;
        let mut done = offset;
        // Neighbours often lie in one frame.
        let mut last: Option<(FrameNumber, Option<Bytes>)> = None;
        for run in overlapping(runs, offset, end) {
            let within = |from: u64, to: u64| (from - offset) as usize..(to - offset) as usize;
            self.core.read_base(disk, done, &mut out[within(done, run.start)])?;
            let part = &mut out[within(run.start, run.end)];
            match run.source {
                Source::Zero => part.fill(0),
                Source::Frame { number, data_at } => {
                    let payload = match last.take() {
                        Some((same, payload)) if same == number => payload,
                        _ => self.core.payload(number)?,
                    };
                    self.core.fill(disk, run.start, payload.as_ref(), u64::from(data_at) + run.skip, part)?;
                    last = Some((number, payload));
                }
            }
            done = run.end;
        }
        self.core.read_base(disk, done, &mut out[(done - offset) as usize..])
    }

    /// A part of a scattered chunk, for a stream: straight from the frames where all that it needs are in the cache;
    /// else the chunk is put together, with those after it.
    fn read_stream(
        &self,
        disk: DiskIndex,
        size: u64,
        runs: &[Run<Source>],
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), ReplicaError> {
        let chunk = offset / CHUNK_BYTES;
        let end = offset + out.len() as u64;
        let from = (offset - chunk * CHUNK_BYTES) as usize;
        let is_whole = |at: u64| at.is_multiple_of(REGION_BYTES);
        if is_whole(offset)
            && (is_whole(end) || end == size)
            && self.core.cache.bytes_of(Key::Chunk(self.id, disk, chunk)).is_none()
        {
            let mut frames = BTreeMap::new();
            let mut cached = true;
            for run in overlapping(runs, offset, end) {
                if let Source::Frame { number, .. } = run.source
                    && let Vacant(place) = frames.entry(number)
                {
                    match self.core.cached_payload(number) {
                        Some(payload) => _ = place.insert(payload),
                        None => {
                            cached = false;
                            break;
                        }
                    }
                }
            }
            if cached {
                self.read_gaps(disk, runs, offset, out)?;
                for run in overlapping(runs, offset, end) {
                    let part = &mut out[(run.start - offset) as usize..(run.end - offset) as usize];
                    match run.source {
                        Source::Zero => part.fill(0),
                        Source::Frame { number, data_at } => {
                            let from = u64::from(data_at) + run.skip;
                            self.core.fill(disk, run.start, frames.get(&number), from, part)?;
                        }
                    }
                }
                return Ok(());
            }
        }
        out.copy_from_slice(&self.chunk(disk, size, chunk)?[from..from + out.len()]);
        Ok(())
    }

    /// A chunk: read ahead before, or now, with those after it.
    fn chunk(&self, disk: DiskIndex, size: u64, chunk: u64) -> Result<Bytes, ReplicaError> {
        let key = Key::Chunk(self.id, disk, chunk);
        if let Some(bytes) = self.core.cache.bytes_of(key) {
            return Ok(bytes);
        }
        let _ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = self.core.cache.bytes_of(key) {
            return Ok(bytes);
        }
        let last = (chunk + WINDOW_CHUNKS).min(size.div_ceil(CHUNK_BYTES));
        let mut window: Vec<Vec<u8>> = Vec::new();
        let mut wanted: Vec<(FrameNumber, usize, u64, Run<Source>)> = Vec::new();
        for number in chunk..last {
            let runs = self.runs(disk, number * CHUNK_BYTES / MAP_BYTES)?;
            if window.is_empty() || is_scattered(&runs, number) {
                let (start, end) = (number * CHUNK_BYTES, ((number + 1) * CHUNK_BYTES).min(size));
                let mut content = vec![0; (end - start) as usize];
                self.read_gaps(disk, &runs, start, &mut content)?;
                for run in overlapping(&runs, start, end) {
                    match run.source {
                        Source::Zero => {
                            content[(run.start - start) as usize..(run.end - start) as usize].fill(0);
                        }
                        Source::Frame { number, data_at } => {
                            let from = u64::from(data_at) + run.skip;
                            wanted.push((number, window.len(), from, run));
                        }
                    }
                }
                window.push(content);
            } else {
                // The rest is not scattered: nothing is won by reading it ahead.
                break;
            }
        }
        wanted.sort_unstable_by_key(|(number, _, from, _)| (*number, *from));
        let mut last: Option<(FrameNumber, Option<Bytes>)> = None;
        for (number, place, from, run) in wanted {
            let payload = match last.take() {
                Some((same, payload)) if same == number => payload,
                _ => self.core.payload(number)?,
            };
            let start = (chunk + place as u64) * CHUNK_BYTES;
            let part = &mut window[place][(run.start - start) as usize..(run.end - start) as usize];
            self.core.fill(disk, run.start, payload.as_ref(), from, part)?;
            last = Some((number, payload));
        }
        let mut first = None;
        for (place, content) in window.into_iter().enumerate() {
            let content = Bytes::from(content);
            first.get_or_insert_with(|| content.clone());
            self.core.cache.put(Key::Chunk(self.id, disk, chunk + place as u64), Content::Bytes(content));
        }
        Ok(first.unwrap_or_default())
    }

    /// What the base holds of a chunk, for every block that is not covered whole by runs.
    fn read_gaps(
        &self,
        disk: DiskIndex,
        runs: &[Run<Source>],
        start: u64,
        out: &mut [u8],
    ) -> Result<(), ReplicaError> {
        let end = start + out.len() as u64;
        let mut from = start;
        // Blocks that need the base, as long stretches.
        let mut stretch: Option<(u64, u64)> = None;
        while from < end {
            let stop = (from + REGION_BYTES).min(end);
            let covered: u64 = overlapping(runs, from, stop).map(|run| run.end - run.start).sum();
            if covered < stop - from {
                stretch = Some((stretch.map_or(from, |(first, _)| first), stop));
            }
            if (covered == stop - from || stop == end)
                && let Some((first, last)) = stretch.take()
            {
                self.core.read_base(
                    disk,
                    first,
                    &mut out[(first - start) as usize..(last - start) as usize],
                )?;
            }
            from = stop;
        }
        Ok(())
    }

    /// Runs that hold data (true) or read as zeroes (false), covering the range.
    pub fn extents(
        &self,
        disk: DiskIndex,
        offset: u64,
        length: u64,
    ) -> Result<Vec<(u64, bool)>, ReplicaError> {
        let size = self.core.disks[self.place(disk)?].size;
        let end = offset.saturating_add(length);
        if end > size {
            return Err(ReplicaError::Outside { disk, start: offset, end, size });
        }
        let mut out: Vec<(u64, bool)> = Vec::new();
        let mut push = |length: u64, data: bool| match out.last_mut() {
            Some((last, same)) if *same == data => *last += length,
            _ if length > 0 => out.push((length, data)),
            _ => {}
        };
        let mut done = offset;
        while done < end {
            let region = done / MAP_BYTES;
            let stop = ((region + 1) * MAP_BYTES).min(end);
            for run in overlapping(&self.runs(disk, region)?, done, stop) {
                self.core.base_extents(disk, done, run.start, &mut push)?;
                push(run.end - run.start, run.source != Source::Zero);
                done = run.end;
            }
            self.core.base_extents(disk, done, stop, &mut push)?;
            done = stop;
        }
        Ok(out)
    }

    /// The digest of a disk. Blocks that are known to be zero cost no read.
    pub fn digest(&self, disk: DiskIndex) -> Result<Digest, ReplicaError> {
        let size = self.core.disks[self.place(disk)?].size;
        let mut digest = DiskDigest::new(size);
        let mut block = vec![0; REGION_BYTES as usize];
        for number in 0..size.div_ceil(REGION_BYTES) {
            let start = number * REGION_BYTES;
            let length = (size - start).min(REGION_BYTES) as usize;
            if length as u64 == REGION_BYTES
                && !self.extents(disk, start, REGION_BYTES)?.iter().any(|(_, data)| *data)
            {
                digest.push(BlockSum::of_zeroes());
                continue;
            }
            self.read_at(disk, start, &mut block[..length])?;
            digest.push(BlockSum::of(&block[..length]));
        }
        Ok(digest.finish())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.core.view_closed(self.position);
    }
}

/// Whether a chunk has so many runs that it is put together at once.
fn is_scattered(runs: &[Run<Source>], chunk: u64) -> bool {
    overlapping(runs, chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES).nth(SCATTERED).is_some()
}

/// The newest source of every range.
pub(crate) fn newest_of(entries: impl Iterator<Item = (u64, u64, Source)>) -> Vec<Run<Source>> {
    let mut map = ExtentMap::default();
    for (start, end, source) in entries {
        map.insert(start, end, source);
    }
    map.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 256 << 10;

    #[test]
    fn passes_side_by_side_are_told_apart_even_where_some_reads_overtake_others() {
        let mut streams = Streams::default();
        let order = [1, 0, 3, 2];
        for step in 0..64 {
            for pass in 0..4 {
                let start = (pass << 30) + (step / 4 * 4 + order[step as usize % 4]) * READ;
                let sequential = streams.note(start, start + READ);
                assert!(sequential || step < 16, "pass {pass}, read {step}");
            }
            // Somebody reads here and there meanwhile.
            let elsewhere = (100 << 30) + step * (37 << 24);
            assert!(!streams.note(elsewhere, elsewhere + 4096));
        }
    }

    #[test]
    fn many_reads_within_a_stretch_are_no_pass() {
        let mut streams = Streams::default();
        for step in 0..100_000u64 {
            let start = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (16 << 20) / 4096 * 4096;
            assert!(!streams.note(start, start + 4096), "read {step}");
        }
    }
}
