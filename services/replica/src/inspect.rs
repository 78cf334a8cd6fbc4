//! What a file or a folder is, told without its owner and without a vault; and what of it is damaged.
//!
//! Only read: through [`Snapshot`], so that not even a torn tail is cut. Every number in a file may be a lie:
//! lengths are held against the file, lists are bounded, and a search for the next whole record has a budget.
//! Damage is named by file and offset, with the moments that need it.
//!
//! Lives here: looking. What bytes mean is said by those who write them ([`segment`], [`crate::base`], the
//! model's `feed`); whether a position may be brought up is asked of the store itself ([`crate::bare`]).

use crate::bare::{self, Bare};
use crate::base::{self, Base};
use crate::extents::ExtentMap;
use crate::manifest::{self, DiskSpec, Manifest};
use crate::marks::Marks;
use crate::medium::{Medium, MediumFile};
use crate::read::open_envelope;
use crate::segment::{self, Finder, Segment, Thinned};
use crate::snapshot::Snapshot;
use crate::store::{PointInfo, State};
use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use continuum_model::feed::frame::{Row, RowKind};
use continuum_model::feed::{Codec, Envelope, FrameHead};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, REGION_BYTES, Sequence};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

/// Frames that are told one by one; what follows is counted.
pub const FRAMES_MAX: usize = 200_000;
/// Problems that are told one by one; what follows is counted.
pub const PROBLEMS_MAX: usize = 256;
/// Entries of a folder that are told.
const ENTRIES_MAX: usize = 10_000;
/// Searching for whole records may read this many times the file before it gives up.
const SEARCH_EFFORT: u64 = 16;

/// How closely to look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depth {
    /// Every frame is told.
    pub frames: bool,
    /// Every byte is read and held against its checksum.
    pub verify: bool,
}

/// What a path turned out to be.
#[derive(Debug)]
pub enum Content {
    /// The replica of one machine.
    Store(Box<StoreFacts>),
    /// One file of a journal.
    Segment(Box<SegmentFacts>),
    /// A file with frames in it: staging, a spool, or what is left of a segment.
    Frames(Box<SegmentFacts>),
    /// A store's manifest, alone.
    Manifest(Result<Box<Manifest>, String>),
    /// Pins and proofs, alone.
    Marks(Result<Marks, String>),
    /// Another file of a store: what it is, and what is wrong with it.
    Part(&'static str),
    /// A folder of something else: what is in it.
    Folder(Vec<EntryFacts>, u64),
    /// Nothing of ours; its first bytes as far as they are a word.
    Unknown(String),
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryFacts {
    /// Its name: text from outside.
    pub name: String,
    /// What it is, in a few words.
    pub what: &'static str,
    /// Its length, for a file.
    pub bytes: Option<u64>,
}

/// What a store holds.
#[derive(Debug)]
pub struct StoreFacts {
    /// The process that has it open, where there is one.
    pub owner: Option<u32>,
    /// What it says it is.
    pub manifest: Result<Manifest, String>,
    /// What can be brought up; or why nothing can.
    pub history: Result<History, String>,
    /// Its segments.
    pub segments: Vec<SegmentFacts>,
    /// What it takes on its disk.
    pub space: Space,
    /// What was read and held against its checksum, where that was asked for.
    pub verified: Option<Verified>,
    /// What is wrong; the first [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// How much is.
    pub problems_total: u64,
}

/// What can be brought up.
#[derive(Debug)]
pub struct History {
    /// As the store says itself.
    pub state: State,
    /// Its listed points, oldest first.
    pub points: Vec<PointInfo>,
    /// Stretches in which nothing can be.
    pub gaps: Vec<(Timestamp, Timestamp)>,
    /// What replaying it found.
    pub findings: Vec<String>,
}

/// What a store takes on its disk, in bytes that are allocated there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// The disks, as a machine sees them.
    pub disk_bytes: u64,
    /// Base images and their sums.
    pub base_bytes: u64,
    /// The journal.
    pub journal_bytes: u64,
    /// What brought-up machines wrote.
    pub overlay_bytes: u64,
}

/// What was read and held against its checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verified {
    /// Frames of the journal.
    pub frames: u64,
    /// Their bytes.
    pub frame_bytes: u64,
    /// Blocks of base images that hold data.
    pub blocks: u64,
}

/// One file with frames.
#[derive(Debug, Default)]
pub struct SegmentFacts {
    /// Its name in the store, or as it was given.
    pub file: String,
    /// Its number, where it is a segment.
    pub number: Option<u64>,
    /// Whose frames.
    pub machine: Option<MachineId>,
    /// Its length.
    pub bytes: u64,
    /// Whole frames in it.
    pub frames_total: u64,
    /// Records in them.
    pub records: u64,
    /// The first of them, and the last.
    pub span: Option<(FrameFacts, FrameFacts)>,
    /// They one by one, where that was asked for.
    pub frames: Vec<FrameFacts>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
    /// How much is.
    pub problems_total: u64,
}

/// What is told of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFacts {
    /// Where its envelope stands.
    pub at: u64,
    /// How long that is.
    pub bytes: u64,
    /// Whose.
    pub machine: MachineId,
    /// Its writer.
    pub epoch: u64,
    /// Its number; of a thinned stretch, the last one that it stands for.
    pub number: u64,
    /// The same, or of a thinned stretch the first one that it stands for.
    pub first_number: u64,
    /// Its digest, or that of the last frame that it stands for.
    pub digest: u128,
    /// The digest of the frame before.
    pub previous: u128,
    /// How it is coded.
    pub codec: Codec,
    /// Records: writes.
    pub writes: u64,
    /// Zeroes.
    pub zeroes: u64,
    /// Of both, those that were read and not written by a guest.
    pub injected: u64,
    /// Stretches that are missing.
    pub breaks: u64,
    /// Marks where a point may be cut.
    pub barriers: u64,
    /// Listed points.
    pub points: u64,
    /// Its first record.
    pub first: (Sequence, Timestamp),
    /// Its last.
    pub last: (Sequence, Timestamp),
    /// Bytes of its data.
    pub payload_bytes: u64,
}

impl FrameFacts {
    fn of(head: &FrameHead, codec: Codec, at: u64, bytes: u64) -> Self {
        let count = |wanted: fn(&Row) -> bool| head.rows.iter().filter(|row| wanted(row)).count() as u64;
        Self {
            at,
            bytes,
            machine: head.identity.machine,
            epoch: head.identity.epoch.0,
            number: head.identity.number.0,
            first_number: head.identity.number.0,
            digest: head.digest,
            previous: head.identity.previous,
            codec,
            writes: count(|row| row.kind == RowKind::Write),
            zeroes: count(|row| row.kind == RowKind::Zero),
            injected: count(|row| row.injected),
            breaks: count(|row| row.kind == RowKind::Break),
            barriers: count(|row| row.kind == RowKind::Barrier),
            points: count(|row| row.point),
            first: (head.first_sequence, head.first_time),
            last: (head.last_sequence(), head.last_time),
            payload_bytes: head.payload_len.into(),
        }
    }

    /// Its records.
    pub const fn records(&self) -> u64 {
        self.last.0.0 - self.first.0.0 + 1
    }
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// In which file.
    pub file: String,
    /// From which byte on, where that can be said.
    pub at: Option<u64>,
    /// How many bytes.
    pub bytes: Option<u64>,
    /// What is wrong.
    pub what: String,
    /// Which moments need it.
    pub affects: Affects,
}

/// Which moments a problem spoils.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affects {
    /// None that was acknowledged: the end of a journal that was being written.
    Tail,
    /// Every one from here until just before there; `None`: until the newest.
    Moments(Option<Timestamp>, Option<Timestamp>),
    /// None: it is no part of history.
    NoMoment,
    /// It cannot be said.
    Unknown,
}

/// Looks at a path. `told` hears how many bytes were verified, of about how many.
///
/// Errors: the path itself cannot be read. Whatever is wrong with what is there is told in the answer.
pub fn look(path: &Path, depth: Depth, told: &mut dyn FnMut(u64, u64)) -> io::Result<Content> {
    let meta = std::fs::metadata(path)?;
    if meta.is_dir() {
        let holds = |name: &str| std::fs::symlink_metadata(path.join(name)).is_ok();
        if holds("manifest") || (holds("journal") && holds("base")) {
            return Ok(Content::Store(Box::new(look_at_store(path, depth, told))));
        }
        return folder(path);
    }
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a regular file nor a folder"));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "its name is no text"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    // The last link is followed here, where a person named it; inside a store none is.
    let (parent, name) = match std::fs::symlink_metadata(path)?.file_type().is_symlink() {
        true => {
            let real = std::fs::canonicalize(path)?;
            let file = real.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            (real.parent().unwrap_or(Path::new("/")).to_owned(), file)
        }
        false => (parent.to_owned(), name.to_owned()),
    };
    file(&Snapshot::of(&parent), &name, depth)
}

fn folder(path: &Path) -> io::Result<Content> {
    let (mut entries, mut total) = (Vec::new(), 0);
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        total += 1;
        if entries.len() >= ENTRIES_MAX {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let (mut bytes, mut what) = (None, "cannot be read");
        if let Ok(meta) = entry.metadata() {
            let kind = meta.file_type();
            bytes = kind.is_file().then_some(meta.len());
            what = match () {
                () if kind.is_dir() && entry.path().join("manifest").exists() => "replica store",
                () if kind.is_dir() => "folder",
                () if kind.is_symlink() => "symbolic link",
                () if kind.is_fifo() || kind.is_socket() => "pipe or socket",
                () if kind.is_file() => "file",
                () => "device",
            };
        }
        entries.push(EntryFacts { name, what, bytes });
    }
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(Content::Folder(entries, total))
}

fn file(medium: &Snapshot, name: &str, depth: Depth) -> io::Result<Content> {
    let file = medium.open(name, false)?;
    let length = file.len()?;
    let mut first = [0; 16];
    let there = length.min(16) as usize;
    file.read_at(0, &mut first[..there])?;
    if let Some(header) = segment::read_header(&*file) {
        let file: Arc<dyn MediumFile> = file.into();
        let mut facts = SegmentFacts { file: name.to_owned(), bytes: length, ..SegmentFacts::default() };
        match header {
            Ok(header) => {
                (facts.number, facts.machine) = (Some(header.number), Some(header.machine));
                walk(&mut facts, file, (header.number, 0), depth, true, &mut |_| {});
            }
            Err(reason) => {
                // The frames in it are told nevertheless: they carry their own sums.
                facts.problem(Some(0), Some(segment::HEADER_BYTES.min(length)), reason, Affects::Unknown);
                scan(&mut facts, &*file, depth);
            }
        }
        return Ok(Content::Segment(Box::new(facts)));
    }
    if first.starts_with(b"CTMREDO1") {
        return Ok(Content::Part("a fold under way: blocks on their way from the journal into the base"));
    }
    if first.starts_with(b"CTMO") {
        return Ok(Content::Part("an overlay: what a brought-up machine wrote on top of its moment"));
    }
    if first[0] == b'{' {
        let small: Result<Option<serde_json::Value>, _> = manifest::read(medium, name);
        if let Ok(Some(value)) = small {
            if value.get("base_sequence").is_some() {
                let read = serde_json::from_value(value).map(Box::new).map_err(|error| error.to_string());
                return Ok(Content::Manifest(read));
            }
            if value.get("points").is_some() {
                return Ok(Content::Marks(serde_json::from_value(value).map_err(|error| error.to_string())));
            }
        } else if let Err(error) = small
            && matches!(name, "manifest" | "marks")
        {
            let error = error.to_string();
            return Ok(if name == "manifest" {
                Content::Manifest(Err(error))
            } else {
                Content::Marks(Err(error))
            });
        }
    }
    let mut facts = SegmentFacts { file: name.to_owned(), bytes: length, ..SegmentFacts::default() };
    scan(&mut facts, &*file, depth);
    if facts.frames_total > 0 || first.starts_with(b"CTME") {
        return Ok(Content::Frames(Box::new(facts)));
    }
    let word = first[..there].iter().take_while(|byte| byte.is_ascii_graphic());
    Ok(Content::Unknown(word.map(|byte| char::from(*byte)).collect()))
}

impl SegmentFacts {
    fn problem(&mut self, at: Option<u64>, bytes: Option<u64>, what: impl Into<String>, affects: Affects) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            let what = what.into();
            self.problems.push(Problem { file: self.file.clone(), at, bytes, what, affects });
        }
    }

    fn frame(&mut self, frame: FrameFacts, depth: Depth) {
        if let Some((_, last)) = &self.span
            && frame.machine == last.machine
            // The records of a thinned stretch stand for the same frames.
            && (frame.first_number, frame.number) != (last.first_number, last.number)
            && (last.number.checked_add(1) != Some(frame.first_number) || last.digest != frame.previous)
        {
            let what = format!("frame {} does not follow frame {}", frame.first_number, last.number);
            self.problem(Some(frame.at), None, what, Affects::Moments(Some(last.last.1), None));
        }
        self.frames_total += 1;
        self.records += frame.records();
        self.span = Some((self.span.map_or(frame, |(first, _)| first), frame));
        if depth.frames && self.frames.len() < FRAMES_MAX {
            self.frames.push(frame);
        }
    }
}

/// Walks a segment record by record; past damage to the next whole record. Each good frame's rows are `seen`.
/// Frames up to `passed` are told elsewhere: a thinned stretch stands for them.
fn walk(
    facts: &mut SegmentFacts,
    file: Arc<dyn MediumFile>,
    (number, passed): (u64, u64),
    depth: Depth,
    newest: bool,
    seen: &mut dyn FnMut(&Read<'_>),
) {
    let length = facts.bytes;
    let payload = depth.verify || newest;
    let segment = Segment { number, file, end: segment::HEADER_BYTES };
    let (mut at, mut effort) = (segment::HEADER_BYTES, length.saturating_mul(SEARCH_EFFORT).max(64 << 20));
    let records = segment.file.clone();
    let mut finder = Finder::of_records(&*records, length);
    // The stretch that is read, and how many of its records are to come.
    let mut stretch: Option<(Thinned, u32)> = None;
    let told = |facts: FrameFacts, stretch: &mut Option<(Thinned, u32)>| {
        let Some((thinned, left)) = stretch else { return facts };
        let facts = FrameFacts {
            first_number: thinned.first.0,
            number: thinned.last.0,
            digest: thinned.digest,
            previous: thinned.previous,
            ..facts
        };
        *left -= 1;
        if *left == 0 {
            *stretch = None;
        }
        facts
    };
    while at < length {
        if stretch.is_none()
            && let Ok(Some(thinned)) = segment.read_thinned(at, length)
        {
            stretch = Some((thinned, thinned.records));
            at += segment::THINNED_BYTES;
            continue;
        }
        let reason = match segment.read_record(at, length, payload) {
            Ok(found) => {
                let bytes = u64::from(found.length);
                let opened = envelope_of(&*segment.file, found.at, found.length, depth.verify);
                let codec = *opened.as_ref().unwrap_or(&Codec::Plain);
                let frame = told(FrameFacts::of(&found.head, codec, found.at, bytes), &mut stretch);
                at = found.at + bytes;
                if frame.number > passed {
                    facts.frame(frame, depth);
                    let (at, number) = (found.at, frame.number);
                    seen(&Read { head: &found.head, number, at, bytes, damage: opened.as_ref().err() });
                }
                continue;
            }
            Err(reason) => reason,
        };
        let since = facts.span.map(|(_, last)| last.last.1);
        // The head may be whole where only the data behind it is not: then the chain goes on.
        if payload && let Ok(found) = segment.read_record(at, length, false) {
            let bytes = u64::from(found.length);
            let frame = told(FrameFacts::of(&found.head, Codec::Plain, found.at, bytes), &mut stretch);
            at = found.at + bytes;
            if frame.number <= passed {
                continue;
            }
            let damage = "its data does not match its checksum".to_owned();
            if newest {
                // Here a store stops reading when it is opened, and cuts what is the very end.
                let affects =
                    if found.at + bytes < length { Affects::Moments(since, None) } else { Affects::Tail };
                let what = format!("frame {}: {damage}", frame.number);
                facts.problem(Some(found.at), Some(bytes), what, affects);
            } else {
                let (at, number) = (found.at, frame.number);
                seen(&Read { head: &found.head, number, at, bytes, damage: Some(&damage) });
            }
            facts.frame(frame, depth);
            continue;
        }
        // Which of a stretch's records are missing is not known.
        stretch = None;
        let mut next = at + 1;
        let found = loop {
            let Some(hit) = finder.next(next) else { break None };
            // A hostile file can make every look expensive: as expensive as the longest envelope.
            let Some(left) = effort.checked_sub(hit - next + 128) else { break None };
            effort = left;
            if let Ok(record) = segment.read_record(hit, length, false) {
                break Some(hit).filter(|_| record.length > 0);
            }
            effort = effort.saturating_sub(4096);
            next = hit + 1;
        };
        match found {
            Some(next) => {
                facts.problem(Some(at), Some(next - at), reason.to_string(), Affects::Moments(since, None));
                at = next;
            }
            None => {
                let affects = if newest { Affects::Tail } else { Affects::Moments(since, None) };
                facts.problem(Some(at), Some(length - at), reason.to_string(), affects);
                return;
            }
        }
    }
}

/// A frame that was read, with what is wrong with its data.
struct Read<'a> {
    head: &'a FrameHead,
    number: u64,
    at: u64,
    bytes: u64,
    damage: Option<&'a String>,
}

fn envelope_of(file: &dyn MediumFile, at: u64, length: u32, whole: bool) -> Result<Codec, String> {
    let mut prefix = [0; ENVELOPE_BYTES];
    file.read_at(at, &mut prefix).map_err(|error| error.to_string())?;
    let decoded = EnvelopePrefix::decode(&prefix).map_err(|error| error.to_string())?;
    if whole {
        let envelope = segment::read_envelope(file, 0, at, length).map_err(|error| reason_of(&error))?;
        open_envelope(&envelope).map_err(|error| reason_of(&error))?;
    }
    Ok(decoded.codec)
}

/// An error with its cause, in one line.
fn reason_of(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Looks for frames wherever they stand: what is between them is their owner's business.
fn scan(facts: &mut SegmentFacts, file: &dyn MediumFile, depth: Depth) {
    let (mut at, mut effort) = (0, facts.bytes.saturating_mul(SEARCH_EFFORT).max(64 << 20));
    let mut frame_end = None;
    let mut finder = Finder::new(file, b"CTME", facts.bytes);
    while let Some(hit) = finder.next(at) {
        match frame_at(file, hit, facts.bytes) {
            Look::Frame(envelope, bytes) => {
                facts.machine.get_or_insert(envelope.head.identity.machine);
                facts.frame(FrameFacts::of(&envelope.head, envelope.codec, hit, bytes), depth);
                if depth.verify
                    && let Err(error) = open_envelope(&envelope)
                {
                    let since = Affects::Moments(Some(envelope.head.first_time), None);
                    facts.problem(Some(hit), Some(bytes), reason_of(&error), since);
                }
                at = hit + bytes;
                frame_end = Some(at);
                continue;
            }
            Look::Damaged(reason, bytes) => {
                facts.problem(Some(hit), None, reason, Affects::Unknown);
                effort = effort.saturating_sub(bytes);
            }
            // Where one frame ends another begins, or something that is not ours: here it is damage.
            Look::Chance if frame_end == Some(hit) => {
                let what = "an envelope's own first bytes are damaged";
                facts.problem(Some(hit), None, what, Affects::Unknown);
            }
            // Four bytes of somebody's data that look like ours.
            Look::Chance => {}
        }
        at = hit + 4;
        effort = effort.saturating_sub(64);
        if effort == 0 {
            let what = "too much in it looks like a frame and is none: the rest was not looked at";
            facts.problem(Some(at), Some(facts.bytes - at), what, Affects::Unknown);
            return;
        }
    }
}

enum Look {
    Frame(Box<Envelope>, u64),
    Damaged(String, u64),
    Chance,
}

fn frame_at(file: &dyn MediumFile, at: u64, length: u64) -> Look {
    let mut prefix = [0; ENVELOPE_BYTES];
    let left = length - at;
    if left < prefix.len() as u64 {
        return Look::Damaged(format!("an envelope is cut after {left} bytes"), left);
    }
    // A prefix that does not carry its own sum is no envelope of ours, or one whose beginning is gone.
    let Some(prefix) = file.read_at(at, &mut prefix).ok().and_then(|()| EnvelopePrefix::decode(&prefix).ok())
    else {
        return Look::Chance;
    };
    let needed = (ENVELOPE_BYTES + prefix.body_len()) as u64;
    if left < needed {
        return Look::Damaged(format!("a frame is cut: {left} bytes where {needed} are needed"), 64);
    }
    let mut body = vec![0; prefix.body_len()];
    if let Err(error) = file.read_at(at + ENVELOPE_BYTES as u64, &mut body) {
        return Look::Damaged(error.to_string(), needed);
    }
    match prefix.open(body.into()) {
        Ok(envelope) => Look::Frame(Box::new(envelope), needed),
        Err(error) => Look::Damaged(error.to_string(), needed),
    }
}

fn look_at_store(path: &Path, depth: Depth, told: &mut dyn FnMut(u64, u64)) -> StoreFacts {
    // An owner that is at work may fold between two of our reads: what seems wrong then is looked at again.
    let mut facts = look_once(path, depth, told);
    for _ in 0..3 {
        if facts.problems_total == 0 || facts.owner.is_none() {
            break;
        }
        facts = look_once(path, depth, told);
    }
    facts
}

fn look_once(path: &Path, depth: Depth, told: &mut dyn FnMut(u64, u64)) -> StoreFacts {
    let snapshot = Snapshot::of(path);
    let manifest = match manifest::read::<Manifest>(&snapshot, "manifest") {
        Ok(Some(manifest)) => Ok(manifest),
        Ok(None) => Err("it is missing".to_owned()),
        Err(error) => Err(reason_of(&error)),
    };
    let bare = bare::open_beside(path).map_err(|error| reason_of(&error));
    let mut facts = StoreFacts {
        owner: Snapshot::owner_of(path),
        history: bare.as_ref().map(history).map_err(Clone::clone),
        manifest,
        segments: Vec::new(),
        space: space(path),
        verified: depth.verify.then(Verified::default),
        problems: Vec::new(),
        problems_total: 0,
    };
    if let Ok(manifest) = &facts.manifest {
        facts.space.disk_bytes = manifest.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.size));
    }
    if let Err(reason) = &facts.manifest {
        let what = format!("the manifest cannot be used: {reason}");
        facts.problem("manifest", None, what, Affects::Moments(None, None));
    } else if let Err(reason) = &facts.history {
        let what = format!("the store does not open: {reason}");
        facts.problem("", None, what, Affects::Moments(None, None));
    }
    if let Err(error) = manifest::read::<Marks>(&snapshot, "marks") {
        facts.problem("marks", None, reason_of(&error), Affects::NoMoment);
    }
    let disks = facts.manifest.as_ref().map(|manifest| manifest.disks.clone()).unwrap_or_default();
    let mut wounds: Vec<Wound> = Vec::new();
    let total = facts.space.base_bytes + facts.space.journal_bytes;
    let mut done = 0;
    journal(&mut facts, &snapshot, depth, &mut wounds, &mut |bytes| {
        done += bytes;
        told(done, total);
    });
    // What opening laid over the folder counts for the base: a fold that was interrupted is whole there.
    if depth.verify
        && let Ok(bare) = &bare
    {
        verify_base(&mut facts, &bare.snapshot, &disks, &mut wounds, &mut |bytes| {
            done += bytes;
            told(done, total);
        });
    }
    heal(&mut facts, &snapshot, wounds);
    facts
}

fn history(bare: &Bare) -> History {
    let (from, to) = (Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
    History {
        state: bare.store.state(),
        points: bare.store.points_after(Sequence(0)),
        gaps: bare.store.gaps(from, to),
        findings: bare.findings.clone(),
    }
}

impl StoreFacts {
    fn problem(&mut self, file: &str, place: Option<(u64, u64)>, what: String, affects: Affects) {
        let (at, bytes) = (place.map(|place| place.0), place.map(|place| place.1));
        self.add(Problem { file: file.to_owned(), at, bytes, what, affects });
    }

    fn add(&mut self, problem: Problem) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

/// Allocated bytes, by kind. What cannot be read counts as nothing; it is told elsewhere.
fn space(path: &Path) -> Space {
    let sum = |folder: &str, wanted: &dyn Fn(&str) -> bool| {
        let entries = std::fs::read_dir(path.join(folder)).into_iter().flatten().flatten();
        let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(wanted));
        wanted.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
    };
    Space {
        disk_bytes: 0,
        base_bytes: sum("base", &|_| true),
        journal_bytes: sum("journal", &|_| true),
        overlay_bytes: sum("views", &|_| true),
    }
}

/// Damaged data whose moments are not known yet.
struct Wound {
    problem: Problem,
    /// Records after this one may write over it; it is needed from this moment on. In the base: from the beginning.
    since: Option<(Sequence, Timestamp)>,
    /// Which bytes of which disk.
    ranges: Vec<(DiskIndex, u64, u64)>,
}

fn journal(
    facts: &mut StoreFacts,
    medium: &Snapshot,
    depth: Depth,
    wounds: &mut Vec<Wound>,
    told: &mut dyn FnMut(u64),
) {
    let names = match medium.list("journal") {
        Ok(names) => names,
        Err(error) => {
            let what = format!("it cannot be listed: {error}");
            return facts.problem("journal", None, what, Affects::Unknown);
        }
    };
    let mut numbers = Vec::new();
    for name in names {
        match name.parse::<u64>() {
            Ok(number) if segment::file_name(number) == format!("journal/{name}") => numbers.push(number),
            // A segment that was being rewritten goes at the next start.
            Err(_) if format!("journal/{name}") == segment::REWRITTEN => {}
            Ok(_) | Err(_) => {
                let what = "no segment is named like this".to_owned();
                facts.problem(&format!("journal/{name}"), None, what, Affects::NoMoment);
            }
        }
    }
    numbers.sort_unstable();
    let machine = facts.manifest.as_ref().map(|manifest| manifest.machine).ok();
    let base_frame = facts.manifest.as_ref().map_or(0, |manifest| manifest.base_frame.0);
    let mut chain: Option<FrameFacts> = None;
    for (place, number) in numbers.iter().copied().enumerate() {
        let newest = place + 1 == numbers.len();
        let name = segment::file_name(number);
        let opened = medium.open(&name, false).and_then(|file| Ok((file.len()?, file)));
        let (length, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let since = chain.map(|last| last.last.1);
                facts.problem(&name, None, error.to_string(), Affects::Moments(since, None));
                continue;
            }
        };
        let mut segment = SegmentFacts {
            file: name.clone(),
            number: Some(number),
            machine,
            bytes: length,
            ..SegmentFacts::default()
        };
        let since = chain.map(|last| last.last.1);
        let wrong = match segment::read_header(&*file) {
            None => Some("it does not begin as a segment does".to_owned()),
            Some(Err(reason)) => Some(reason.to_owned()),
            Some(Ok(header)) if header.number != number => {
                Some(format!("it was written as segment {}", header.number))
            }
            Some(Ok(header)) if machine.is_some_and(|machine| machine != header.machine) => {
                Some(format!("it belongs to machine {}", header.machine))
            }
            Some(Ok(header)) => {
                segment.machine = Some(header.machine);
                None
            }
        };
        if let Some(reason) = wrong {
            // One that was being made when the power went holds nothing yet.
            let tail = newest && length <= segment::HEADER_BYTES;
            let affects = if tail { Affects::Tail } else { Affects::Moments(since, None) };
            segment.problem(Some(0), Some(segment::HEADER_BYTES.min(length)), reason, affects);
        }
        let (mut frames, mut frame_bytes) = (0, 0);
        let passed = chain.map_or(0, |last| last.number);
        walk(&mut segment, file.into(), (number, passed), depth, newest, &mut |read| {
            told(read.bytes);
            // The base holds what these hold.
            if read.number <= base_frame {
                return;
            }
            (frames, frame_bytes) = (frames + 1, frame_bytes + read.bytes);
            if let Some(reason) = read.damage {
                wounds.push(wound(&name, read, reason));
            }
        });
        if let Some(verified) = &mut facts.verified {
            verified.frames += frames;
            verified.frame_bytes += frame_bytes;
        }
        if let Some((first, last)) = segment.span {
            let before = chain.map(|last| (last.number, last.digest, last.last.1));
            if let Some((number, digest, since)) = before
                && (number.checked_add(1) != Some(first.first_number) || digest != first.previous)
            {
                let what = format!("frame {} does not follow frame {number}", first.first_number);
                segment.problem(Some(first.at), None, what, Affects::Moments(Some(since), None));
            } else if chain.is_none() && first.first_number > base_frame.saturating_add(1) {
                let what =
                    format!("its first frame is {}, and the base ends at {base_frame}", first.first_number);
                segment.problem(Some(first.at), None, what, Affects::Moments(None, None));
            }
            chain = Some(last);
        }
        let told_elsewhere = segment.problems_total - segment.problems.len() as u64;
        for problem in &segment.problems {
            facts.add(problem.clone());
        }
        facts.problems_total += told_elsewhere;
        facts.segments.push(segment);
    }
}

fn wound(file: &str, read: &Read<'_>, reason: &str) -> Wound {
    let data = read.head.rows.iter().filter(|row| row.kind == RowKind::Write);
    Wound {
        problem: Problem {
            file: file.to_owned(),
            at: Some(read.at),
            bytes: Some(read.bytes),
            what: format!("frame {}: {reason}", read.number),
            affects: Affects::Unknown,
        },
        since: Some((read.head.last_sequence(), read.head.first_time)),
        ranges: data.map(|row| (row.disk, row.offset, row.offset + u64::from(row.length))).collect(),
    }
}

/// Reads every block of the base that holds data, or that its sum says holds data.
fn verify_base(
    facts: &mut StoreFacts,
    medium: &Snapshot,
    disks: &[DiskSpec],
    wounds: &mut Vec<Wound>,
    told: &mut dyn FnMut(u64),
) {
    let base = match Base::open(medium, disks) {
        Ok(base) => base,
        Err(error) => return facts.problem("base", None, reason_of(&error), Affects::Moments(None, None)),
    };
    let (mut content, mut image) = (Vec::new(), Vec::new());
    for disk in disks {
        let [(image_name, _), (sum_name, _)] = base::files_of(disk);
        let per_block = |ranges: Vec<(u64, u64)>, bytes: u64| {
            ranges.into_iter().map(move |(start, end)| (start / bytes, end.div_ceil(bytes)))
        };
        let mut blocks: Vec<(u64, u64)> = Vec::new();
        for (name, bytes) in [(&image_name, REGION_BYTES), (&sum_name, 8)] {
            match medium.data_of(name) {
                Ok(ranges) => blocks.extend(per_block(ranges, bytes)),
                Err(error) => facts.problem(name, None, error.to_string(), Affects::Moments(None, None)),
            }
        }
        blocks.sort_unstable();
        let Ok(file) = medium.open(&image_name, false) else { continue };
        let (mut next, count) = (0, disk.size.div_ceil(REGION_BYTES));
        for (start, end) in blocks {
            for block in start.max(next)..end.min(count) {
                let at = block * REGION_BYTES;
                let length = (disk.size - at).min(REGION_BYTES);
                told(length);
                // By its sum alone.
                let mut sum = [0];
                let zero = base.sums(disk.index, block, &mut sum).map(|()| sum == [0]);
                if let (Ok(false), Some(verified)) = (&zero, &mut facts.verified) {
                    verified.blocks += 1;
                }
                let damaged = match zero {
                    Ok(true) => {
                        image.resize(length as usize, 0);
                        match file.read_at(at, &mut image) {
                            Ok(()) if image.iter().all(|byte| *byte == 0) => None,
                            Ok(()) => Some("its checksum says zeroes, and the image holds data".to_owned()),
                            Err(error) => Some(error.to_string()),
                        }
                    }
                    Ok(false) => {
                        base.read_block(disk.index, block, &mut content).err().map(|e| reason_of(&e))
                    }
                    Err(error) => Some(reason_of(&error)),
                };
                if let Some(what) = damaged {
                    wounds.push(Wound {
                        problem: Problem {
                            file: image_name.clone(),
                            at: Some(at),
                            bytes: Some(length),
                            what: format!("block {block} of disk {}: {what}", disk.index),
                            affects: Affects::Unknown,
                        },
                        since: None,
                        ranges: vec![(disk.index, at, at + length)],
                    });
                }
            }
            next = next.max(end);
        }
    }
}

/// Finds until when each piece of damaged data is needed: until all of it was written over.
fn heal(facts: &mut StoreFacts, medium: &Snapshot, mut wounds: Vec<Wound>) {
    facts.problems_total += wounds.len().saturating_sub(PROBLEMS_MAX) as u64;
    wounds.truncate(PROBLEMS_MAX);
    if wounds.is_empty() {
        return;
    }
    let base_frame = facts.manifest.as_ref().map_or(0, |manifest| manifest.base_frame.0);
    let mut left: Vec<Needed> = wounds.iter().map(Needed::of).collect();
    for segment in &facts.segments {
        let Some(number) = segment.number else { continue };
        let Ok(file) = medium.open(&segment::file_name(number), false) else { continue };
        let mut again = SegmentFacts { bytes: segment.bytes, ..SegmentFacts::default() };
        walk(&mut again, file.into(), (number, 0), Depth::default(), false, &mut |read| {
            if read.number > base_frame {
                for row in read.head.rows.iter().filter(|row| row.length > 0) {
                    left.iter_mut().for_each(|needed| needed.written(row));
                }
            }
        });
    }
    for (wound, needed) in wounds.into_iter().zip(left) {
        let from = wound.since.map(|(_, time)| time);
        facts.add(Problem { affects: Affects::Moments(from, needed.until), ..wound.problem });
    }
}

/// What of a wound still shows.
struct Needed {
    since: Sequence,
    disks: Vec<(DiskIndex, ExtentMap<bool>)>,
    bytes: u64,
    until: Option<Timestamp>,
}

impl Needed {
    fn of(wound: &Wound) -> Self {
        let mut disks: Vec<(DiskIndex, ExtentMap<bool>)> = Vec::new();
        for &(disk, start, end) in &wound.ranges {
            let at = disks.iter().position(|(known, _)| *known == disk).unwrap_or_else(|| {
                disks.push((disk, ExtentMap::default()));
                disks.len() - 1
            });
            disks[at].1.insert(start, end, true);
        }
        let runs = disks.iter().flat_map(|(_, map)| map.overlapping(0, u64::MAX));
        let bytes = runs.map(|run| run.end - run.start).sum();
        Self { since: wound.since.map_or(Sequence(0), |(last, _)| last), disks, bytes, until: None }
    }

    fn written(&mut self, row: &Row) {
        if self.until.is_some() || row.sequence <= self.since {
            return;
        }
        let Some((_, map)) = self.disks.iter_mut().find(|(disk, _)| *disk == row.disk) else { return };
        // Only what is damaged is kept account of: the rest of a write is of no interest here.
        for run in map.overlapping(row.offset, row.offset.saturating_add(row.length.into())) {
            if run.source {
                map.insert(run.start, run.end, false);
                self.bytes -= run.end - run.start;
            }
        }
        if self.bytes == 0 {
            self.until = Some(row.time);
        }
    }
}
