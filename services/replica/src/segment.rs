//! One file of the journal, and what survives a crash.
//!
//! ```text
//! header, 64 bytes
//! 0  magic "CTMSEG01"    8 version u32 = 1   12 zero u32   16 machine [16]   32 number u64   40 first frame u64
//! 48 zero [8]            56 sum u64 (xxh3-64 of bytes 0..56)
//! then records, back to back:
//! 0  magic "CTMR"        4 envelope length u32   8 position u64 (of this record in this file)
//! 16 segment number u64  24 frame number u64    32 epoch u64   40 group u64 (where the records begin that were
//! synced together with this one; 0: not told)    48 zero [8]   56 sum u64 (xxh3-64 of bytes 0..56)
//! 64 the envelope, exactly as it arrived (see continuum-model)
//!
//! and, where history was thinned, in front of the records that stand for a stretch of frames:
//! 0  magic "CTMT"        4 records u32   8 position u64   16 segment number u64
//! 24 first frame u64     32 last frame u64 (of those that it stands for)
//! 40 digest u128 (of the frame before them)      56 digest u128 (of their last one)
//! 72 from: sequence u64  80 from: time i64 (the last record before them; µs)
//! 88 to: sequence u64    96 to: time i64 (their last record)   104 bytes u64 (of the records that follow)
//! 112 zero [8]           120 sum u64 (xxh3-64 of bytes 0..120)
//! ```
//!
//! Records of a thinned stretch hold frames of our own making: their numbers have the highest bit set, and all of
//! their data belongs to one position, the last of the stretch. A segment is rewritten for that as a whole, beside the
//! old one, and then renamed over it. Frames that a thinned stretch before them stands for are passed over: they
//! were not removed yet.
//!
//! The digest chain is in the envelopes' heads. A record that says another position, segment or number than
//! where it stands was misdirected, and is treated as damage.
//!
//! Reading stops at the first bad record. In the newest segment that is the torn tail of a crash, unless a
//! whole good record of a later group follows it: then what is bad was synced once, and is damage, which is named
//! and never cut away. (Of the group that was being written any part may have reached the disk.) What could not be read
//! because the disk said no is never taken for a torn tail.

use crate::medium::{Medium, MediumFile};
use crate::planted::{self, Bug};
use crate::store::ReplicaError;
use continuum_model::feed::envelope::{ENVELOPE_BYTES, ENVELOPE_BYTES_MAX, EnvelopePrefix};
use continuum_model::feed::{Envelope, FrameHead, Identity};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{FrameNumber, Sequence};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Bytes before the first record.
pub const HEADER_BYTES: u64 = 64;
/// Bytes before an envelope.
pub const RECORD_BYTES: u64 = 64;
/// A segment that is this long is closed.
pub const SEGMENT_BYTES: u64 = 64 << 20;
const MAGIC: &[u8; 8] = b"CTMSEG01";
const RECORD_MAGIC: &[u8; 4] = b"CTMR";
const THINNED_MAGIC: &[u8; 4] = b"CTMT";
/// Bytes before the records of a thinned stretch.
pub const THINNED_BYTES: u64 = 128;
/// Where a segment is put together before it replaces the one it was made of.
pub(crate) const REWRITTEN: &str = "journal/rewritten";

/// The name of a segment's file. The only place that knows it.
pub fn file_name(number: u64) -> String {
    format!("journal/{number:08}")
}

/// An open segment.
pub struct Segment {
    /// Its number.
    pub number: u64,
    /// The file.
    pub file: Arc<dyn MediumFile>,
    /// Where the next record goes.
    pub end: u64,
}

/// A record that was found.
pub struct Found {
    /// Where its envelope starts.
    pub at: u64,
    /// How long its envelope is.
    pub length: u32,
    /// Its head.
    pub head: FrameHead,
    /// Where its group begins; 0: not told.
    group: u64,
    /// The thinned stretch that it is part of.
    pub thinned: Option<Arc<Thinned>>,
}

/// A stretch of frames of which only the state at its end is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thinned {
    /// Records that hold what is left.
    pub records: u32,
    /// The first frame that it stands for.
    pub first: FrameNumber,
    /// The last one.
    pub last: FrameNumber,
    /// The digest of the frame before the first.
    pub previous: u128,
    /// The digest of the last one.
    pub digest: u128,
    /// The last record before it.
    pub from: (Sequence, Timestamp),
    /// Its last record: the only position that is left of it.
    pub to: (Sequence, Timestamp),
    /// Bytes of the records that follow.
    pub bytes: u64,
}

/// Whether a frame is one of our own making, of a thinned stretch.
pub(crate) const fn is_thinned(number: FrameNumber) -> bool {
    number.0 >> 63 != 0
}

impl Thinned {
    /// As it stands in front of its records.
    pub(crate) fn encode(&self, position: u64, segment: u64) -> [u8; THINNED_BYTES as usize] {
        let mut bytes = [0; THINNED_BYTES as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, THINNED_MAGIC);
        put(4, &self.records.to_le_bytes());
        put(8, &position.to_le_bytes());
        put(16, &segment.to_le_bytes());
        put(24, &self.first.0.to_le_bytes());
        put(32, &self.last.0.to_le_bytes());
        put(40, &self.previous.to_le_bytes());
        put(56, &self.digest.to_le_bytes());
        put(72, &self.from.0.0.to_le_bytes());
        put(80, &self.from.1.micros().to_le_bytes());
        put(88, &self.to.0.0.to_le_bytes());
        put(96, &self.to.1.micros().to_le_bytes());
        put(104, &self.bytes.to_le_bytes());
        let sum = xxh3_64(&bytes[..120]);
        bytes[120..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(
        bytes: &[u8; THINNED_BYTES as usize],
        position: u64,
        segment: u64,
    ) -> Result<Self, &'static str> {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        let digest = |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().unwrap_or_default());
        let time = |at: usize| Timestamp::from_micros(long(at) as i64);
        if xxh3_64(&bytes[..120]) != long(120) {
            return Err("a thinned stretch does not match its checksum");
        }
        if long(8) != position || long(16) != segment {
            return Err("a thinned stretch of another place");
        }
        let thinned = Self {
            records: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            first: FrameNumber(long(24)),
            last: FrameNumber(long(32)),
            previous: digest(40),
            digest: digest(56),
            from: (Sequence(long(72)), time(80)),
            to: (Sequence(long(88)), time(96)),
            bytes: long(104),
        };
        let orderly = thinned.records > 0
            && thinned.first <= thinned.last
            && !is_thinned(thinned.last)
            && thinned.from.0 < thinned.to.0;
        if orderly { Ok(thinned) } else { Err("a thinned stretch that cannot be") }
    }
}

/// What reading a segment gave.
pub struct Read {
    /// The segment.
    pub segment: Segment,
    /// Its records, in order.
    pub records: Vec<Found>,
    /// Bytes at the end that are no whole record.
    pub torn: u64,
    /// Damage that is no torn tail.
    pub damage: Option<String>,
}

/// Why a record is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Bad {
    #[error("{0}")]
    Content(&'static str),
    #[error("it cannot be read: {0}")]
    Unreadable(std::io::Error),
}

impl Segment {
    /// Makes a segment; durable, with its entry, when this returns.
    pub fn create(
        medium: &dyn Medium,
        machine: MachineId,
        number: u64,
        first: FrameNumber,
    ) -> Result<Self, ReplicaError> {
        let name = file_name(number);
        let io = |error| ReplicaError::io(&name, error);
        let file = medium.open(&name, true).map_err(io)?;
        let header = header(machine, number, first);
        file.set_len(0).map_err(io)?;
        file.write_at(0, &[&header]).map_err(io)?;
        file.sync().map_err(io)?;
        if !planted::is(Bug::NoFolderSync) {
            medium.sync_folder("journal").map_err(io)?;
        }
        Ok(Self { number, file: file.into(), end: HEADER_BYTES })
    }

    /// The bytes that go before an envelope of this length at `position`.
    ///
    /// `group`: where the first record stands that is synced together with this one; 0: not told.
    pub fn record_header(
        &self,
        position: u64,
        group: u64,
        envelope: &Envelope,
    ) -> [u8; RECORD_BYTES as usize] {
        record_header(self.number, position, group, envelope.len() as u32, &envelope.head.identity)
    }

    /// Reads a segment. With `payloads` every stored payload is checked too (the newest one, whose tail may
    /// be torn); else only heads are read.
    pub fn read(
        medium: &dyn Medium,
        machine: MachineId,
        number: u64,
        payloads: bool,
    ) -> Result<Read, ReplicaError> {
        let name = file_name(number);
        let io = |error| ReplicaError::io(&name, error);
        let file: Arc<dyn MediumFile> = medium.open(&name, false).map_err(io)?.into();
        let length = file.len().map_err(io)?;
        let mut segment = Self { number, file, end: HEADER_BYTES };
        let mut header = [0; HEADER_BYTES as usize];
        if length >= HEADER_BYTES {
            segment.file.read_at(0, &mut header).map_err(io)?;
        }
        if let Err(reason) = segment.check_header(machine, length, &header) {
            // A header that never became durable belongs to a segment that holds nothing.
            let torn = payloads && length <= HEADER_BYTES;
            let damage = (!torn).then_some(reason);
            segment.end = if torn { 0 } else { HEADER_BYTES };
            return Ok(Read { segment, records: Vec::new(), torn: length, damage });
        }
        let mut records: Vec<Found> = Vec::new();
        let mut damage = None;
        // The stretch that is read, with the records that are to come, and how many records were read before it.
        let mut stretch: Option<(Arc<Thinned>, u32, usize)> = None;
        while segment.end < length {
            if stretch.is_none() {
                match segment.read_thinned(segment.end, length) {
                    Ok(None) => {}
                    Ok(Some(thinned)) => {
                        stretch = Some((Arc::new(thinned), thinned.records, records.len()));
                        segment.end += THINNED_BYTES;
                        continue;
                    }
                    Err(reason) => {
                        damage = Some(format!("segment {number} at {}: {reason}", segment.end));
                        break;
                    }
                }
            }
            match segment.read_record(segment.end, length, payloads) {
                Ok(mut found) => {
                    segment.end = found.at + u64::from(found.length);
                    if let Some((thinned, left, _)) = &mut stretch {
                        found.thinned = Some(thinned.clone());
                        *left -= 1;
                        if *left == 0 {
                            stretch = None;
                        }
                    }
                    records.push(found);
                }
                Err(reason) => {
                    if !payloads
                        || matches!(reason, Bad::Unreadable(_))
                        || segment.another_follows(segment.end, length)
                    {
                        damage = Some(format!("segment {number} at {}: {reason}", segment.end));
                    }
                    break;
                }
            }
        }
        if let Some((thinned, _, before)) = stretch {
            // Of no use in parts: it was renamed into place as a whole.
            records.truncate(before);
            damage.get_or_insert_with(|| {
                format!(
                    "segment {number}: of a thinned stretch of {} records some are missing",
                    thinned.records
                )
            });
        }
        let torn = length.saturating_sub(segment.end);
        Ok(Read { segment, records, torn, damage })
    }

    /// Checks the header.
    pub(crate) fn verify_header(&self, machine: MachineId) -> Result<(), String> {
        let mut header = [0; HEADER_BYTES as usize];
        self.file.read_at(0, &mut header).map_err(|error| Bad::Unreadable(error).to_string())?;
        self.check_header(machine, self.end, &header)
    }

    /// Checks a record with its payload as it is stored. Returns the envelope (none stands in what comes before a
    /// thinned stretch) and where the next record stands.
    /// Errors: what is wrong, and whether its head is good all the same.
    pub(crate) fn verify_record(&self, at: u64) -> Result<(Option<Envelope>, u64), (String, bool)> {
        if self.read_thinned(at, self.end).map_err(|bad| (bad.to_string(), false))?.is_some() {
            return Ok((None, at + THINNED_BYTES));
        }
        let found = self.read_record(at, self.end, false).map_err(|bad| (bad.to_string(), false))?;
        let envelope = read_envelope(&*self.file, self.number, found.at, found.length).map_err(|error| {
            use std::error::Error;
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            (format!("{error}{cause}"), true)
        })?;
        Ok((Some(envelope), found.at + u64::from(found.length)))
    }

    /// What stands before a thinned stretch, if that is what stands here.
    pub(crate) fn read_thinned(&self, at: u64, end: u64) -> Result<Option<Thinned>, Bad> {
        if end - at < THINNED_BYTES {
            return Ok(None);
        }
        let mut bytes = [0; THINNED_BYTES as usize];
        self.file.read_at(at, &mut bytes).map_err(Bad::Unreadable)?;
        if &bytes[..4] != THINNED_MAGIC {
            return Ok(None);
        }
        let thinned = Thinned::decode(&bytes, at, self.number).map_err(Bad::Content)?;
        if end - at - THINNED_BYTES < thinned.bytes {
            return Err(Bad::Content("a cut thinned stretch"));
        }
        Ok(Some(thinned))
    }

    /// Writes the last group once more, as it is; with the header where it is the first one.
    pub(crate) fn write_again(&self, last: Option<&Found>) -> std::io::Result<()> {
        let mut at = match last.map(|last| last.group) {
            None | Some(HEADER_BYTES) => 0,
            // Not told: it was written by an older version.
            Some(0) => self.end,
            Some(group) => group,
        };
        while at < self.end {
            let mut bytes = vec![0; (self.end - at).min(1 << 20) as usize];
            self.file.read_at(at, &mut bytes)?;
            self.file.write_at(at, &[&bytes])?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn check_header(
        &self,
        machine: MachineId,
        length: u64,
        header: &[u8; HEADER_BYTES as usize],
    ) -> Result<(), String> {
        if length < HEADER_BYTES {
            return Err(format!("segment {}: it is cut inside its header", self.number));
        }
        let sum = u64::from_le_bytes(header[56..].try_into().unwrap_or_default());
        let reason = if &header[..8] != MAGIC {
            "not a journal segment"
        } else if xxh3_64(&header[..56]) != sum {
            "its header does not match its checksum"
        } else if header[8..12] != 1u32.to_le_bytes() {
            "written by a newer version; update this program"
        } else if header[16..32] != *machine.as_bytes() {
            "it belongs to another machine"
        } else if header[32..40] != self.number.to_le_bytes() {
            "it was written as another segment"
        } else {
            return Ok(());
        };
        Err(format!("segment {}: {reason}", self.number))
    }

    pub(crate) fn read_record(&self, at: u64, end: u64, payload: bool) -> Result<Found, Bad> {
        let mut bytes = [0; RECORD_BYTES as usize + ENVELOPE_BYTES];
        if end - at < bytes.len() as u64 {
            return Err(Bad::Content("cut record"));
        }
        self.file.read_at(at, &mut bytes).map_err(Bad::Unreadable)?;
        let (record, prefix) = bytes.split_at(RECORD_BYTES as usize);
        let long = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap_or_default());
        if &record[..4] != RECORD_MAGIC || xxh3_64(&record[..56]) != long(56) {
            return Err(Bad::Content("bad record header"));
        }
        if long(8) != at || long(16) != self.number {
            return Err(Bad::Content("a record of another place"));
        }
        let length = u32::from_le_bytes([record[4], record[5], record[6], record[7]]);
        let start = at + RECORD_BYTES;
        if length as usize > ENVELOPE_BYTES_MAX || end - start < u64::from(length) {
            return Err(Bad::Content("cut envelope"));
        }
        let prefix: &[u8; ENVELOPE_BYTES] = prefix.try_into().map_err(|_| Bad::Content("bad envelope"))?;
        let prefix = EnvelopePrefix::decode(prefix).map_err(|_| Bad::Content("bad envelope"))?;
        if ENVELOPE_BYTES + prefix.body_len() != length as usize {
            return Err(Bad::Content("an envelope of another length"));
        }
        let read = if payload { prefix.body_len() } else { prefix.head_len };
        let mut body = vec![0; read];
        self.file.read_at(start + ENVELOPE_BYTES as u64, &mut body).map_err(Bad::Unreadable)?;
        let head = if payload {
            prefix.open(body.into()).map_err(|_| Bad::Content("bad envelope"))?.head
        } else {
            FrameHead::decode(&body.into()).map_err(|_| Bad::Content("bad frame head"))?
        };
        if head.identity.number.0 != long(24) {
            return Err(Bad::Content("a frame of another number"));
        }
        Ok(Found { at: start, length, head, group: long(40), thinned: None })
    }

    /// Whether a whole good record of a later group stands anywhere after `from`: then what is bad there is no
    /// torn tail.
    fn another_follows(&self, from: u64, end: u64) -> bool {
        const WINDOW: usize = 1 << 20;
        let mut at = from + 1;
        while at + RECORD_BYTES <= end {
            let mut window = vec![0; WINDOW.min((end - at) as usize)];
            if self.file.read_at(at, &mut window).is_err() {
                // Who knows: nothing is cut.
                return true;
            }
            let hits = window.windows(4).enumerate().filter(|(_, bytes)| *bytes == RECORD_MAGIC);
            for (skip, _) in hits {
                if let Ok(found) = self.read_record(at + skip as u64, end, true)
                    && (found.group == 0 || found.group > from)
                {
                    return true;
                }
            }
            at += window.len() as u64 - 3.min(window.len() as u64 - 1);
            if window.len() < WINDOW {
                break;
            }
        }
        false
    }
}

/// A segment's first bytes.
pub(crate) fn header(machine: MachineId, number: u64, first: FrameNumber) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&1u32.to_le_bytes());
    header[16..32].copy_from_slice(machine.as_bytes());
    header[32..40].copy_from_slice(&number.to_le_bytes());
    header[40..48].copy_from_slice(&first.0.to_le_bytes());
    let sum = xxh3_64(&header[..56]);
    header[56..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The bytes before an envelope.
pub(crate) fn record_header(
    segment: u64,
    position: u64,
    group: u64,
    length: u32,
    identity: &Identity,
) -> [u8; RECORD_BYTES as usize] {
    let mut header = [0; RECORD_BYTES as usize];
    header[..4].copy_from_slice(RECORD_MAGIC);
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..16].copy_from_slice(&position.to_le_bytes());
    header[16..24].copy_from_slice(&segment.to_le_bytes());
    header[24..32].copy_from_slice(&identity.number.0.to_le_bytes());
    header[32..40].copy_from_slice(&identity.epoch.0.to_le_bytes());
    header[40..48].copy_from_slice(&group.to_le_bytes());
    let sum = xxh3_64(&header[..56]);
    header[56..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// What a segment's header says of the file it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whose journal.
    pub machine: MachineId,
    /// Which segment.
    pub number: u64,
    /// The frame it was made for.
    pub first: FrameNumber,
}

/// Reads the header of a file that claims to be a segment. `None`: its magic is another.
pub(crate) fn read_header(file: &dyn MediumFile) -> Option<Result<Header, &'static str>> {
    let mut header = [0; HEADER_BYTES as usize];
    let there = file.len().ok()?.min(HEADER_BYTES) as usize;
    file.read_at(0, &mut header[..there]).ok()?;
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    if &header[..8] != MAGIC {
        return None;
    }
    if (there as u64) < HEADER_BYTES {
        return Some(Err("it is cut inside its header"));
    }
    if xxh3_64(&header[..56]) != long(56) {
        return Some(Err("its header does not match its checksum"));
    }
    if header[8..12] != 1u32.to_le_bytes() {
        return Some(Err("it was written by a newer version; update this program"));
    }
    let machine: [u8; 16] = header[16..32].try_into().unwrap_or_default();
    Some(Ok(Header {
        machine: MachineId::from_bytes(machine),
        number: long(32),
        first: FrameNumber(long(40)),
    }))
}

/// Looks for four bytes in a file, one window after the other.
pub(crate) struct Finder<'a> {
    file: &'a dyn MediumFile,
    word: &'static [u8; 4],
    window: Vec<u8>,
    /// Where the window begins.
    start: u64,
    end: u64,
}

impl<'a> Finder<'a> {
    const WINDOW: u64 = 256 << 10;

    /// For the beginnings of records.
    pub(crate) const fn of_records(file: &'a dyn MediumFile, end: u64) -> Self {
        Self::new(file, RECORD_MAGIC, end)
    }

    /// For any word, up to `end`.
    pub(crate) const fn new(file: &'a dyn MediumFile, word: &'static [u8; 4], end: u64) -> Self {
        Self { file, word, window: Vec::new(), start: 0, end }
    }

    /// Where it stands next, from `from` on. What cannot be read holds nothing.
    pub(crate) fn next(&mut self, from: u64) -> Option<u64> {
        let mut at = from;
        loop {
            let window_end = self.start + self.window.len() as u64;
            if at < self.start || at + 4 > window_end {
                let length = self.end.saturating_sub(at).min(Self::WINDOW);
                if length < 4 {
                    return None;
                }
                self.start = at;
                self.window.resize(length as usize, 0);
                if self.file.read_at(at, &mut self.window).is_err() {
                    self.window.clear();
                    return None;
                }
            }
            let rest = &self.window[(at - self.start) as usize..];
            if let Some(skip) = rest.windows(4).position(|bytes| bytes == self.word) {
                return Some(at + skip as u64);
            }
            // The last three bytes may be the beginning of it.
            at = self.start + self.window.len() as u64 - 3;
        }
    }
}

/// Reads and verifies the envelope at a place.
pub fn read_envelope(
    file: &dyn MediumFile,
    number: u64,
    at: u64,
    length: u32,
) -> Result<Envelope, ReplicaError> {
    let name = file_name(number);
    let mut bytes = vec![0; length as usize];
    file.read_at(at, &mut bytes).map_err(|error| ReplicaError::io(&name, error))?;
    let (envelope, _) = Envelope::decode(&bytes.into())
        .map_err(|error| ReplicaError::Damaged { file: name, reason: format!("at {at}: {error}") })?;
    Ok(envelope)
}
