//! Reads everything that is stored, in the background, before somebody needs it.
//!
//! A round goes through the small files, every segment of the journal byte by byte, every block of the base with its
//! sum, and every overlay that is open. It is done in slices of as many bytes as the caller allows; where it is
//! stands in the file `scrub`, so that a restart goes on from there. What is found is named: the file, the
//! place, and which moments need it. It is told until a whole round no longer finds it.
//!
//! The manifest and the marks are known in memory, so they are also mended. What of the newest state is damaged loses its
//! sum, is told by [`Store::unreadable`], and is whole again from the moment on at which the source has sent it again.
//! Older moments are not mended; time goes over them.

use crate::cache::Key;
use crate::extents::ExtentMap;
use crate::manifest::{self, Manifest};
use crate::marks::Marks;
use crate::read::open_envelope;
use crate::segment::{self, HEADER_BYTES, RECORD_BYTES, Segment};
use crate::store::{Core, ReplicaError, Store};
use continuum_model::feed::frame::RowKind;
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, FrameNumber, REGION_BYTES, Sequence};
use serde::{Deserialize, Serialize};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

const FILE: &str = "scrub";
/// Findings that are kept; a medium that is damaged all over is told by its first ones.
const FOUND_MAX: usize = 100;
/// Blocks of the base that are looked at with the base held.
const BLOCKS: u64 = 16;
/// What looking at a block of zeroes counts as: it is a hole.
const HOLE_BYTES: u64 = 1024;

/// Something stored is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which file.
    pub file: String,
    /// Where in it: the record or block, or the file as a whole (0).
    pub offset: u64,
    /// What is wrong.
    pub reason: String,
    /// Which moments need it.
    pub affects: Affects,
}

/// Which moments need what is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Affects {
    /// None: it was mended, or nothing needs it any more.
    Nothing,
    /// A machine that was brought up, on this overlay.
    Overlay,
    /// Moments from the first, up to but not including the second (`None`: all later ones), and so many listed points.
    Moments {
        /// The first that needs it.
        from: Timestamp,
        /// The first that does not any more.
        until: Option<Timestamp>,
        /// Listed points between.
        points: usize,
    },
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}: {}", self.file, self.offset, self.reason)?;
        match self.affects {
            Affects::Nothing => f.write_str("; no moment is affected"),
            Affects::Overlay => f.write_str("; the machine that was brought up on it is affected"),
            Affects::Moments { from, until: Some(until), points } => {
                write!(f, "; moments from {from} until {until} are affected ({points} listed points)")
            }
            Affects::Moments { from, until: None, points } => {
                write!(f, "; moments from {from} on are affected ({points} listed points)")
            }
        }
    }
}

/// What a slice did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes that were looked at.
    pub bytes: u64,
    /// The round came to its end.
    pub round_done: bool,
    /// What was found in this slice.
    pub found: Vec<Finding>,
}

/// Where a round is, and what was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    place: Place,
    /// The segments as they were when the place was noted; 0: by another process, so that none is known.
    #[serde(skip)]
    rewrites: u64,
    /// Rounds that were finished.
    rounds: u64,
    /// Found in this round.
    now: Vec<Finding>,
    /// Found in the round before.
    before: Vec<Finding>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Place {
    #[default]
    Small,
    Journal {
        segment: u64,
        at: u64,
    },
    Base {
        disk: DiskIndex,
        block: u64,
    },
    Overlays,
}

impl Progress {
    /// A place that cannot be read is no loss: the round begins anew.
    pub(crate) fn read(medium: &dyn crate::Medium) -> Self {
        manifest::read(medium, FILE).ok().flatten().unwrap_or_default()
    }

    /// What is known to be wrong.
    pub(crate) fn found(&self) -> Vec<Finding> {
        let mut found = self.now.clone();
        let known = |finding: &&Finding| !self.now.iter().any(|now| same(now, finding));
        found.extend(self.before.iter().filter(known).cloned());
        found
    }
}

fn same(one: &Finding, other: &Finding) -> bool {
    (&one.file, one.offset) == (&other.file, other.offset)
}

impl Store {
    /// Looks at the next `bytes_max` of what is stored, and remembers where it is. Ingest and views go on.
    ///
    /// Errors: the place could not be noted; what was found is told by [`Store::state`] all the same.
    pub fn scrub(&self, bytes_max: Bytes) -> Result<Scrubbed, ReplicaError> {
        let core = &*self.core;
        let mut progress = core.scrub.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut slice =
            Slice { core, left: bytes_max.0, bytes: 0, found: Vec::new(), rewrites: progress.rewrites };
        let mut round_done = false;
        while slice.left > 0 && !round_done {
            let next = match progress.place {
                Place::Small => {
                    slice.small_files();
                    Some(Place::Journal { segment: 0, at: 0 })
                }
                Place::Journal { segment, at } => Some(slice.journal(segment, at)),
                Place::Base { disk, block } => Some(slice.base(disk, block)),
                Place::Overlays => slice.overlays().then_some(Place::Small),
            };
            round_done = progress.place == Place::Overlays && next.is_some();
            match next {
                Some(next) => progress.place = next,
                None => break,
            }
        }
        let Slice { bytes, found, rewrites, .. } = slice;
        progress.rewrites = rewrites;
        for finding in &found {
            if progress.now.len() < FOUND_MAX && !progress.now.iter().any(|known| same(known, finding)) {
                progress.now.push(finding.clone());
            }
        }
        if round_done {
            progress.rounds += 1;
            progress.before = std::mem::take(&mut progress.now);
        }
        core.scrub.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&progress);
        manifest::replace(&*core.medium, FILE, &progress)?;
        Ok(Scrubbed { bytes, round_done, found })
    }
}

struct Slice<'c> {
    core: &'c Core,
    left: u64,
    bytes: u64,
    found: Vec<Finding>,
    rewrites: u64,
}

impl Slice<'_> {
    fn looked_at(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes.max(1));
        self.bytes += bytes;
    }

    fn find(&mut self, file: &str, offset: u64, reason: String, affects: Affects) {
        self.found.push(Finding { file: file.to_owned(), offset, reason, affects });
    }

    fn small_files(&mut self) {
        let core = self.core;
        // Whoever changes one of them holds one of these.
        let _leases = core.leases();
        let _ingest = core.ingest();
        let index = core.index_mut();
        let medium = &*core.medium;
        let manifest = manifest::read::<Manifest>(medium, "manifest");
        if !matches!(&manifest, Ok(Some(found)) if *found == index.manifest) {
            let mended = manifest::replace(medium, "manifest", &index.manifest);
            self.find_small("manifest", manifest.err(), mended.err());
        }
        let marks = manifest::read::<Marks>(medium, "marks");
        let same = match &marks {
            Ok(Some(found)) => *found == index.marks,
            Ok(None) => index.marks == Marks::default(),
            Err(_) => false,
        };
        if !same {
            let mended = manifest::replace(medium, "marks", &index.marks);
            self.find_small("marks", marks.err(), mended.err());
        }
        self.looked_at(4096);
    }

    fn find_small(&mut self, file: &str, why: Option<ReplicaError>, unmended: Option<ReplicaError>) {
        let why = why.map_or_else(|| "it is not what was written last".to_owned(), |why| told(&why));
        let end = unmended.map_or_else(
            || "it was mended from memory".to_owned(),
            |error| format!("it could not be mended: {}", told(&error)),
        );
        self.find(file, 0, format!("{why}; {end}"), Affects::Nothing);
    }

    /// One record, or one header. Returns what comes next.
    ///
    /// A header is asked for with 0, the first record behind it with its place.
    fn journal(&mut self, segment: u64, at: u64) -> Place {
        let core = self.core;
        let rewrites = core.rewrites.load(Ordering::Acquire);
        if rewrites != self.rewrites {
            // Records may stand elsewhere in the segment. What was passed over by that was read when it was rewritten.
            self.rewrites = rewrites;
            if at > HEADER_BYTES {
                let index = core.index();
                let here = index.frames.iter().filter(|frame| frame.segment == segment);
                let next = here.map(|frame| frame.at - RECORD_BYTES).filter(|place| *place >= at).min();
                return match next {
                    Some(at) => Place::Journal { segment, at },
                    None => Place::Journal { segment: segment + 1, at: 0 },
                };
            }
        }
        let first_disk =
            Place::Base { disk: core.disks.first().map_or(DiskIndex(0), |disk| disk.index), block: 0 };
        let next = {
            let index = core.index();
            index.segments.range(segment..).next().map(|(number, (file, end))| (*number, file.clone(), *end))
        };
        let Some((number, file, end)) = next else { return first_disk };
        let name = segment::file_name(number);
        let at = if number == segment { at } else { 0 };
        let read = Segment { number, file, end };
        if at == 0 {
            if let Err(reason) = read.verify_header(core.machine) {
                let affects = self.all_after(number, 0);
                self.find(&name, 0, reason, affects);
            }
            self.looked_at(HEADER_BYTES);
            return Place::Journal { segment: number, at: HEADER_BYTES };
        }
        if at >= end {
            return Place::Journal { segment: number + 1, at: 0 };
        }
        let next = match read.verify_record(at) {
            Ok((None, next)) => next,
            Ok((Some(envelope), next)) => {
                match open_envelope(&envelope) {
                    Ok(_) => {}
                    Err(error) => {
                        let affects = self.needs_frame(envelope.head.identity.number);
                        self.find(&name, at, told(&error), affects);
                    }
                }
                next
            }
            Err(_) if core.rewrites.load(Ordering::Acquire) != rewrites => at,
            Err(reason) => {
                // Where the next one stands is known from the index.
                let index = core.index();
                let stands = |frame: &&crate::store::FrameAt| frame.segment == number;
                let here = index.frames.iter().filter(stands).find(|frame| frame.at == at + RECORD_BYTES);
                let known = here.map(|frame| frame.number);
                let after = index.frames.iter().filter(stands).find(|frame| frame.at > at + RECORD_BYTES);
                let next = after.map_or(end, |frame| frame.at - RECORD_BYTES);
                drop(index);
                let affects = match known {
                    // Heads are needed to open the store: what comes after it is lost with it then.
                    Some(_) if !reason.1 => self.all_after(number, at),
                    Some(frame) => self.needs_frame(frame),
                    None => self.all_after(number, at),
                };
                self.find(&name, at, reason.0, affects);
                next
            }
        };
        self.looked_at(next - at);
        Place::Journal { segment: number, at: next }
    }

    /// Everything from a frame on: without its head what follows is not read at the next start.
    fn all_after(&self, segment: u64, at: u64) -> Affects {
        let index = self.core.index();
        let from = index.frames.iter().find(|frame| (frame.segment, frame.at) >= (segment, at));
        let Some(frame) = from else { return Affects::Nothing };
        let first = index.entries.iter().find(|entry| entry.frame == frame.number);
        let Some(from) = first.map(|entry| entry.time) else { return Affects::Nothing };
        let points = index.points.values().filter(|point| point.time >= from).count();
        Affects::Moments { from, until: None, points }
    }

    /// Moments at which something of a frame's data is the newest.
    fn needs_frame(&self, number: FrameNumber) -> Affects {
        let index = self.core.index();
        let rows = index.entries.iter().filter(|entry| entry.frame == number);
        let rows: Vec<_> = rows.filter(|entry| entry.kind == RowKind::Write).collect();
        let Some(from) = rows.first().map(|entry| (entry.sequence, entry.time)) else {
            return Affects::Nothing;
        };
        let after = rows.last().map_or(from.0, |entry| entry.sequence);
        let ranges =
            rows.iter().map(|entry| (entry.disk, entry.offset, entry.offset + u64::from(entry.length)));
        let ranges: Vec<_> = ranges.collect();
        drop(rows);
        drop(index);
        // Memory still has what the medium has lost.
        self.core.cache.forget(std::iter::once(Key::Frame(self.core.id, number)));
        for (disk, start, end) in &ranges {
            self.core.forget_sums(*disk, *start, *end);
        }
        self.until_overwritten(from, after, ranges)
    }

    fn until_overwritten(
        &self,
        (_, from): (Sequence, Timestamp),
        after: Sequence,
        ranges: Vec<(DiskIndex, u64, u64)>,
    ) -> Affects {
        let index = self.core.index();
        let mut maps: Vec<ExtentMap<bool>> = self.core.disks.iter().map(|_| ExtentMap::default()).collect();
        let place = |disk: DiskIndex| self.core.disks.iter().position(|spec| spec.index == disk);
        for (disk, start, end) in ranges {
            if let Some(place) = place(disk) {
                maps[place].insert(start, end, true);
            }
        }
        let needed = |map: &ExtentMap<bool>, start: u64, end: u64| -> u64 {
            map.overlapping(start, end).iter().filter(|run| run.source).map(|run| run.end - run.start).sum()
        };
        let mut left: u64 = maps.iter().map(|map| needed(map, 0, u64::MAX)).sum();
        let first = index.entries.seek(|entry| entry.sequence <= after);
        let mut until = None;
        for entry in index.entries.after(first) {
            if !matches!(entry.kind, RowKind::Write | RowKind::Zero) {
                continue;
            }
            let Some(place) = place(entry.disk) else { continue };
            let end = entry.offset + u64::from(entry.length);
            left -= needed(&maps[place], entry.offset, end);
            maps[place].insert(entry.offset, end, false);
            if left == 0 {
                until = Some(entry.time);
                break;
            }
        }
        let inside = |at: Timestamp| at >= from && until.is_none_or(|until| at < until);
        let points = index.points.values().filter(|point| inside(point.time)).count();
        Affects::Moments { from, until, points }
    }

    /// A few blocks. Returns what comes next.
    fn base(&mut self, disk: DiskIndex, block: u64) -> Place {
        let core = self.core;
        let Some(place) = core.disks.iter().position(|spec| spec.index == disk) else {
            return Place::Overlays;
        };
        let size = core.disks[place].size;
        let count = size.div_ceil(REGION_BYTES);
        if block >= count {
            return match core.disks.get(place + 1) {
                Some(next) => Place::Base { disk: next.index, block: 0 },
                None => Place::Overlays,
            };
        }
        let stop = (block + BLOCKS).min(count);
        let mut wrong = Vec::new();
        let mut looked = 0;
        {
            let base = core.base();
            let mut content = Vec::new();
            for block in block..stop {
                match base.verify(disk, block, &mut content) {
                    Ok(zero) => looked += if zero { HOLE_BYTES } else { content.len() as u64 },
                    Err(error) => wrong.push((block, told(&error))),
                }
            }
        }
        for (block, reason) in wrong {
            let range = (disk, block * REGION_BYTES, ((block + 1) * REGION_BYTES).min(size));
            core.cache.forget(std::iter::once(Key::Block(core.id, disk, block)));
            core.forget_sums(range.0, range.1, range.2);
            let from = {
                let manifest = &core.index().manifest;
                (manifest.base_sequence, manifest.base_time)
            };
            let affects = self.until_overwritten(from, from.0, vec![range]);
            self.find(&format!("base/{disk}.img"), block * REGION_BYTES, reason, affects);
            looked += REGION_BYTES;
        }
        self.looked_at(looked);
        Place::Base { disk, block: stop }
    }

    /// Overlays that are open. Returns whether all were looked at.
    fn overlays(&mut self) -> bool {
        let overlays = self.core.overlays();
        for laid in overlays {
            loop {
                let (bytes, wrong, done) = laid.scrub(self.left);
                self.looked_at(bytes);
                if let Some((offset, reason)) = wrong {
                    self.find(laid.name(), offset, reason, Affects::Overlay);
                }
                if done {
                    break;
                }
                if self.left == 0 {
                    return false;
                }
            }
        }
        for laid in self.core.overlays() {
            laid.scrub_again();
        }
        true
    }
}

fn told(error: &ReplicaError) -> String {
    use std::error::Error;
    match error {
        ReplicaError::Damaged { reason, .. } => reason.clone(),
        error => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
    }
}
