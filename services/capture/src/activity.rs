//! The activity log: which parts of a disk may have bits in the change map that no medium has yet.
//!
//! The map's bits reach the page cache before the disk is written, which a process survives and a power cut
//! does not. So the disk is divided into extents, and the first write into one that is not **active** waits
//! until a record naming it is durable here; later ones cost nothing. Only so many extents are active; the one
//! that was not written to for longest leaves, after its bits are durable in the map's file. After a power cut
//! a region may differ when its bit is set on the medium, or when its extent is active.
//!
//! ```text
//! 0    the records with even numbers          4096  those with odd ones: a record never overwrites the last
//! a record names all active extents, in 8 pieces of 512 bytes, which no disk tears:
//! 0   magic "CTMACT01"   8  generation u64 (the map's, see `map`)   16 number u64, rising by one
//! 24  piece u16 (0..8)   26 extents named in this piece u16         28 bytes of an extent, as a power of two u32
//! 32  up to 118 extents u32                                         504 sum u64 (xxh3-64 of bytes 0..504)
//! ```
//!
//! A record counts when all its pieces have its number. One that does not was being written when the power
//! went: nobody's write went on because of it, and the one before it counts. A piece that does not match its
//! sum, or records that do not follow one another, are damage, and damage is doubt.
//!
//! Lives here: the records, who is active, who leaves. Lives elsewhere: when a log counts at all (`map`), who
//! waits for a record (`splitter`).

use crate::kept::Kept;
use crate::planted::{self, Bug};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"CTMACT01";
const PIECE: usize = 512;
const PIECES: usize = 8;
const PIECE_EXTENTS: usize = 118;
const RECORD: usize = PIECE * PIECES;
const SUM_AT: usize = 504;
/// As many as a record names.
const SLOTS_MAX: usize = PIECES * PIECE_EXTENTS;
/// An extent that was not written to for so long, or up to twice that, leaves: what is idle is not sent again.
const IDLE: Duration = Duration::from_secs(300);

/// In place of a slot: not active.
const NONE: u16 = u16::MAX;
/// In place of a slot: somebody waits for it.
const WANTED: u16 = u16::MAX - 1;

/// How finely, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of an extent, as a power of two; a multiple of a region.
    pub extent_log2: u32,
    /// So many extents are active at most.
    pub slots: usize,
}

impl Default for Shape {
    /// 944 extents of 4 MiB: 3.7 GiB at most travel again because of the log, half a minute at 1 Gbit/s; and a
    /// guest that writes in sequence waits for one record in 4 MiB.
    fn default() -> Self {
        Self { extent_log2: 22, slots: SLOTS_MAX }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// The record that names it is being written.
    Coming,
    Active,
}

#[derive(Clone, Copy)]
struct Slot {
    extent: u32,
    holds: Holds,
    /// The tick of its last write.
    used: u64,
}

/// The log of one disk.
pub(crate) struct ActivityLog {
    file: Arc<dyn Kept>,
    generation: u64,
    /// The last durable record.
    number: u64,
    extent_log2: u32,
    /// By extent: its slot, or one of the two that are none.
    slot_of: Vec<u16>,
    slots: Vec<Slot>,
    wanted: Vec<u32>,
    /// A record is being written.
    busy: bool,
    /// Counts requests.
    tick: u64,
    /// Bits of requests up to this one are durable in the map's file.
    settled: u64,
    /// Two ticks, and when the newer one was: what was not written to since the older one is idle.
    idle: (u64, u64, Duration),
}

/// What a log says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) number: u64,
    pub(crate) extent_log2: u32,
    pub(crate) extents: Vec<u32>,
}

/// A record to be written, outside of all locks: then told to the map by [`crate::map::ChangeMap::recorded`].
pub struct Record {
    log: Arc<dyn Kept>,
    /// Synced before: bits of extents that leave are on their way to it.
    map: Option<Arc<dyn Kept>>,
    number: u64,
    bytes: Box<[u8; RECORD]>,
    tick: u64,
}

/// Which file failed.
#[derive(Debug)]
pub enum RecordError {
    /// The map's.
    Map(io::Error),
    /// The log's. It is removed durably, unless there is another error.
    Log(io::Error, Option<io::Error>),
}

impl Record {
    /// Whether bits of extents that leave have to be made durable first.
    #[cfg(test)]
    pub(crate) const fn settles(&self) -> bool {
        self.map.is_some()
    }

    /// Makes the bits durable of extents that leave, where they are not.
    pub fn settle(&self) -> Result<(), RecordError> {
        self.map.as_ref().map_or(Ok(()), |map| map.sync()).map_err(RecordError::Map)
    }

    /// Makes the record durable, after [`Record::settle`].
    pub fn write(&self) -> Result<(), RecordError> {
        let at = self.number % 2 * RECORD as u64;
        let written = self.log.write(at, &*self.bytes);
        let synced =
            if planted::is(Bug::RecordNotSynced) { written } else { written.and_then(|()| self.log.sync()) };
        // What is not durable must not count as such after a power cut: no log is doubt.
        synced.map_err(|error| RecordError::Log(error, self.log.remove().err()))
    }
}

impl ActivityLog {
    /// Begins with nothing active: all bits of the map are durable. `last` is the number of the last record
    /// of this generation, if it has one.
    pub(crate) fn start(
        file: Arc<dyn Kept>,
        generation: u64,
        last: Option<u64>,
        size: u64,
        shape: Shape,
    ) -> io::Result<Self> {
        let extents = size.div_ceil(1 << shape.extent_log2) as usize;
        let empty = Slot { extent: 0, holds: Holds::Nothing, used: 0 };
        let mut log = Self {
            file,
            generation,
            number: last.unwrap_or(1) + 1,
            extent_log2: shape.extent_log2,
            slot_of: vec![NONE; extents],
            slots: vec![empty; shape.slots.clamp(1, SLOTS_MAX)],
            wanted: Vec::new(),
            busy: false,
            tick: 0,
            settled: 0,
            idle: (0, 0, Duration::ZERO),
        };
        if last.is_none() {
            log.file.allocate(2 * RECORD as u64)?;
            log.file.write(RECORD as u64, &*log.encode(1))?;
        }
        log.file.write(log.number % 2 * RECORD as u64, &*log.encode(log.number))?;
        log.file.sync()?;
        log.wanted.reserve(log.slots.len());
        Ok(log)
    }

    pub(crate) fn file(&self) -> Arc<dyn Kept> {
        self.file.clone()
    }
    pub(crate) const fn generation(&self) -> u64 {
        self.generation
    }
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }
    /// How many bytes would travel again because of it.
    pub(crate) fn active_bytes(&self) -> u64 {
        let held = self.slots.iter().filter(|slot| slot.holds != Holds::Nothing).count();
        (held as u64) << self.extent_log2
    }

    /// Whether a write to these bytes may go on. If not, what it needs is wanted.
    pub(crate) fn admits(&mut self, first_byte: u64, last_byte: u64) -> bool {
        self.tick += 1;
        let mut admitted = true;
        for extent in first_byte >> self.extent_log2..=last_byte >> self.extent_log2 {
            match self.slot_of[extent as usize] {
                NONE => {
                    self.slot_of[extent as usize] = WANTED;
                    self.wanted.push(extent as u32);
                    admitted = false;
                }
                WANTED => admitted = false,
                slot => {
                    let slot = &mut self.slots[usize::from(slot)];
                    slot.used = self.tick;
                    admitted &= slot.holds == Holds::Active;
                }
            }
        }
        admitted
    }

    /// The record of what is wanted, if anything is and none is being written.
    pub(crate) fn next_record(&mut self, map: &Arc<dyn Kept>) -> Option<Record> {
        if self.busy || self.wanted.is_empty() {
            return None;
        }
        let mut slots: Vec<u16> = (0..self.slots.len() as u16).collect();
        let count = self.wanted.len().min(slots.len());
        // Free ones first, then the ones that were not written to for longest.
        let age = |slot: &u16| {
            let slot = self.slots[usize::from(*slot)];
            if slot.holds == Holds::Nothing { 0 } else { slot.used }
        };
        if count < slots.len() {
            slots.select_nth_unstable_by_key(count, age);
        }
        let mut newest = 0;
        let wanted: Vec<u32> = self.wanted.drain(..count).collect();
        for (at, extent) in slots.into_iter().zip(wanted) {
            newest = newest.max(self.vacate(at));
            self.slots[usize::from(at)] = Slot { extent, holds: Holds::Coming, used: self.tick };
            self.slot_of[extent as usize] = at;
        }
        Some(self.record(newest, map))
    }

    /// The record without what is idle, if anything is. To be asked now and then.
    pub(crate) fn next_idle(&mut self, now: Duration, map: &Arc<dyn Kept>) -> Option<Record> {
        if now.saturating_sub(self.idle.2) >= IDLE {
            self.idle = (self.idle.1, self.tick, now);
        }
        let limit = self.idle.0;
        let is_idle = |slot: &Slot| slot.holds == Holds::Active && slot.used <= limit;
        if self.busy || !self.slots.iter().any(is_idle) {
            return None;
        }
        let mut newest = 0;
        for at in 0..self.slots.len() as u16 {
            if is_idle(&self.slots[usize::from(at)]) {
                newest = newest.max(self.vacate(at));
            }
        }
        Some(self.record(newest, map))
    }

    /// Empties a slot; answers when the extent in it was last written to.
    fn vacate(&mut self, at: u16) -> u64 {
        let slot = &mut self.slots[usize::from(at)];
        if slot.holds == Holds::Nothing {
            return 0;
        }
        slot.holds = Holds::Nothing;
        self.slot_of[slot.extent as usize] = NONE;
        slot.used
    }

    fn record(&mut self, newest: u64, map: &Arc<dyn Kept>) -> Record {
        self.busy = true;
        let number = self.number + 1;
        let settle = newest > self.settled && !planted::is(Bug::EvictedUnsettled);
        Record {
            log: self.file.clone(),
            map: settle.then(|| map.clone()),
            number,
            bytes: self.encode(number),
            tick: self.tick,
        }
    }

    /// That record is durable: what it names is active.
    pub(crate) fn recorded(&mut self, record: &Record) {
        self.busy = false;
        self.number = record.number;
        if record.map.is_some() {
            self.settled(record.tick);
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.holds == Holds::Coming) {
            slot.holds = Holds::Active;
        }
    }

    /// The request up to which bits will be durable when the map's file is synced from now on; `None`: they
    /// are.
    pub(crate) const fn unsettled(&self) -> Option<u64> {
        if self.tick == self.settled { None } else { Some(self.tick) }
    }
    /// Bits of requests up to this one are durable.
    pub(crate) const fn settled(&mut self, tick: u64) {
        if tick > self.settled {
            self.settled = tick;
        }
    }

    fn encode(&self, number: u64) -> Box<[u8; RECORD]> {
        let mut bytes = Box::new([0; RECORD]);
        let mut named = self.slots.iter().filter(|slot| slot.holds != Holds::Nothing).map(|slot| slot.extent);
        for (index, piece) in bytes.chunks_exact_mut(PIECE).enumerate() {
            let mut count = 0u16;
            for (place, extent) in piece[32..SUM_AT].chunks_exact_mut(4).zip(named.by_ref()) {
                place.copy_from_slice(&extent.to_le_bytes());
                count += 1;
            }
            piece[..8].copy_from_slice(MAGIC);
            piece[8..16].copy_from_slice(&self.generation.to_le_bytes());
            piece[16..24].copy_from_slice(&number.to_le_bytes());
            piece[24..26].copy_from_slice(&(index as u16).to_le_bytes());
            piece[26..28].copy_from_slice(&count.to_le_bytes());
            piece[28..32].copy_from_slice(&self.extent_log2.to_le_bytes());
            let sum = xxh3_64(&piece[..SUM_AT]);
            piece[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        }
        bytes
    }
}

/// One half of the file.
struct Half {
    numbers: [u64; PIECES],
    extent_log2: u32,
    extents: Vec<u32>,
}

impl Half {
    /// Its record's number, if all of it is there.
    fn whole(&self) -> Option<u64> {
        let number = self.numbers[0];
        if planted::is(Bug::TornBelieved) {
            return self.numbers.iter().copied().max();
        }
        self.numbers.iter().all(|other| *other == number).then_some(number)
    }
}

/// Reads the log of the map with this generation, whose header names a record; answers why it does not count,
/// if so.
pub(crate) fn read(file: &dyn Kept, generation: u64, named: u64, size: u64) -> Result<Said, String> {
    let mut bytes = vec![0; 2 * RECORD];
    match file.length() {
        Ok(0) => return Err("there is no activity log".into()),
        Ok(length) if length == 2 * RECORD as u64 => {}
        Ok(length) => {
            return Err(format!("the activity log is {length} bytes long instead of {}", 2 * RECORD));
        }
        Err(error) => return Err(format!("the activity log cannot be read: {error}")),
    }
    file.read(0, &mut bytes).map_err(|error| format!("the activity log cannot be read: {error}"))?;
    let halves = [half(&bytes[..RECORD], generation, size)?, half(&bytes[RECORD..], generation, size)?];
    let [even, odd] = halves;
    let disorder = || "the records of the activity log do not follow one another".to_owned();
    let (last, other) = match (even.whole(), odd.whole()) {
        (Some(one), Some(two)) if one > two => (even, odd),
        (Some(_), None) => (even, odd),
        (None | Some(_), Some(_)) => (odd, even),
        (None, None) => return Err(disorder()),
    };
    let number = last.whole().unwrap_or_default();
    // The other half holds the record before, or part of the one after, or a mixture of both.
    let follow = match other.whole() {
        Some(before) => before + 1 == number,
        None => other.numbers.iter().all(|other| *other == number + 1 || *other + 1 == number),
    };
    if !follow {
        return Err(disorder());
    }
    if number < named && !planted::is(Bug::OlderLogBelieved) {
        return Err(format!(
            "the activity log ends with record {number}, and the change map knows of record {named}: an older one was put in its place"
        ));
    }
    Ok(Said { number, extent_log2: last.extent_log2, extents: last.extents })
}

fn half(bytes: &[u8], generation: u64, size: u64) -> Result<Half, String> {
    let damaged = || "the activity log is damaged or of another version".to_owned();
    let mut half = Half { numbers: [0; PIECES], extent_log2: 0, extents: Vec::new() };
    for (index, piece) in bytes.chunks_exact(PIECE).enumerate() {
        let long = |at: usize| u64::from_le_bytes(piece[at..at + 8].try_into().unwrap_or_default());
        let word = |at: usize| u32::from_le_bytes(piece[at..at + 4].try_into().unwrap_or_default());
        if &piece[..8] != MAGIC || xxh3_64(&piece[..SUM_AT]) != long(SUM_AT) {
            return Err(damaged());
        }
        if long(8) != generation && !planted::is(Bug::OtherGenerationBelieved) {
            return Err("the activity log is of another generation of the change map".into());
        }
        let (place, count) = (word(24) & 0xffff, (word(24) >> 16) as usize);
        half.extent_log2 = word(28);
        if place as usize != index || count > PIECE_EXTENTS || !(16..=32).contains(&half.extent_log2) {
            return Err(damaged());
        }
        half.numbers[index] = long(16);
        for at in 0..count {
            let extent = word(32 + at * 4);
            if u64::from(extent) << half.extent_log2 >= size {
                return Err(damaged());
            }
            half.extents.push(extent);
        }
    }
    Ok(half)
}
