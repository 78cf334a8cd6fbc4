//! The change map's file: which 64 KiB regions of a disk may differ from what the target holds.
//!
//! ```text
//! 0   magic "CTMMAP01"      8  version u32 = 1    12 state u32 (1 in use · 2 closed in good order)
//! 16  disk id [16]          32 size u64           40 boot u64 (which start of this machine)
//! 48  identity u64          56 activity kind u32  60 zero u32    64 activity value i64 (see `disk::Stamp`)
//! 72  alive i64 (µs: when the process last said that it lives)
//! 80  generation u64 (0: no activity log)         88 number u64 of a durable record of that log
//! 96  zero … 120            120 sum u64 (xxh3-64 of bytes 0..120)
//! 128 zero … 4096
//! 4096 one bit a region, in little-endian words of 64
//! ```
//!
//! A bit is set in the file before the disk is written: one `pwrite` into the page cache, and only where
//! the file does not have it yet. That survives the death of the process. For a power cut there is the log of
//! `activity`: it names the extents whose bits may be in caches only, and those count as changed then.
//!
//! A bit is cleared in memory at once, in the file only after the disk was flushed: otherwise a power cut
//! could take an unflushed write from the source, keep it at the target, and leave a clean bit.
//!
//! **Doubt.** Every region counts as changed when the map is missing, damaged, of another disk or size; when
//! another disk stands in its place; when the disk was written to while nobody watched. And, when the machine
//! went down without closing it: when the activity log is missing, damaged, older than the map or of another
//! generation, or when the clock went back. Every doubt begins a new generation of map and log.
//!
//! While the disk is written to, the file is synced once a second, and with it `alive`: a change of the disk
//! that is later is somebody else's.
//!
//! A map that cannot be written does not stop the guest: it lives on in memory, its file and its log are
//! removed, and should even that fail, `alive` falls behind the disk's last change, which is doubt at the next
//! start. A log that cannot be written is removed alone: then a process may die, but a power cut is doubt. Where
//! that fails, too, the map goes the same way.

use crate::activity::{self, ActivityLog, Record, RecordError, Shape};
use crate::bits::Bits;
use crate::disk::{Activity, Stamp};
use crate::kept::{Kept, KeptFile};
use crate::planted::{self, Bug};
use continuum_model::id::DiskId;
use continuum_model::time::Timestamp;
use continuum_model::units::REGION_BYTES;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"CTMMAP01";
const VERSION: u32 = 1;
const BITS_AT: u64 = 4096;
const HEADER: usize = 128;
const IN_USE: u32 = 1;
const CLOSED: u32 = 2;
/// A disk may have been changed this much later than its map's last sign of life: that sign comes once a
/// second.
const ALIVE_SLACK_MICROS: i64 = 2_000_000;
/// The same after a power cut, which only the last synced sign of life survives.
const SYNCED_SLACK_MICROS: i64 = 5_000_000;

/// Words that are this near are written in one piece.
const NEAR_WORDS: usize = 64;

/// The map of one disk.
pub struct ChangeMap {
    file: Arc<dyn Kept>,
    disk: DiskId,
    size: u64,
    boot: Boot,
    /// The truth.
    bits: Bits,
    /// What the file holds: never less than `bits`.
    stored: Vec<u64>,
    /// Bits that are clear in memory and set in the file, by word.
    to_clear: BTreeMap<usize, u64>,
    /// Those of them that wait for a flush of the disk which is under way.
    flushing: BTreeMap<usize, u64>,
    fault: Option<String>,
    /// `None`: there is none, and a power cut is doubt.
    log: Option<ActivityLog>,
    log_fault: Option<String>,
    /// How often everything was set, and up to which time that is durable.
    doubts: u64,
    doubts_settled: u64,
    /// Without a log: whether that is durable, so that a power cut is doubt indeed.
    is_log_gone: bool,
}

/// Which start of this machine we live in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Its id; 0 where the kernel does not say.
    pub id: u64,
    /// When it was.
    pub at: Timestamp,
}

impl Boot {
    /// This one.
    pub fn now() -> Self {
        // Asked anew: a clock that is set moves it.
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
        let at = Timestamp::from_micros(seconds.unwrap_or(i64::MAX).saturating_mul(1_000_000));
        Self { id: boot_id(), at }
    }
}

/// Which disk a map is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Its id.
    pub disk: DiskId,
    /// Its size in bytes.
    pub size: u64,
    /// What it looks like now.
    pub stamp: Stamp,
}

/// The map's file, to be synced outside of all locks: then told to [`ChangeMap::settled`].
pub struct Settle {
    file: Arc<dyn Kept>,
    tick: u64,
    doubts: u64,
}

impl Settle {
    /// Makes bits and header durable.
    pub fn run(&self) -> io::Result<()> {
        self.file.sync()
    }
}

impl ChangeMap {
    /// Opens the map in `path`, or makes one, and the activity log beside it. The text says why everything
    /// counts as changed, where it does.
    pub fn open(
        path: &Path,
        disk: DiskId,
        size: u64,
        stamp: Stamp,
        now: Timestamp,
    ) -> io::Result<(Self, Option<String>)> {
        let map = Arc::new(KeptFile::open(path)?);
        let log = Arc::new(KeptFile::open(&path.with_extension("active"))?);
        Self::open_kept([map, log], Subject { disk, size, stamp }, now, Boot::now(), Shape::default())
    }

    /// The same with files of any kind, `[map, log]`, in any start of the machine.
    pub fn open_kept(
        [file, log]: [Arc<dyn Kept>; 2],
        subject: Subject,
        now: Timestamp,
        boot: Boot,
        shape: Shape,
    ) -> io::Result<(Self, Option<String>)> {
        let Subject { disk, size, stamp } = subject;
        let regions = size.div_ceil(REGION_BYTES);
        let (bits, last, doubt) = match read(&*file, &*log, subject, now, boot)? {
            Ok((bits, last)) => (bits, last, None),
            Err(why) => {
                let mut bits = Bits::new(regions);
                bits.set_all();
                (bits, None, Some(why))
            }
        };
        let mut map = Self {
            file,
            disk,
            size,
            boot,
            stored: bits.words().to_vec(),
            bits,
            to_clear: BTreeMap::new(),
            flushing: BTreeMap::new(),
            fault: None,
            log: None,
            log_fault: None,
            doubts: 0,
            doubts_settled: 0,
            is_log_gone: false,
        };
        if doubt.is_some() {
            // Space now rather than an error in the middle of a guest's write.
            map.file.allocate(BITS_AT + map.stored.len() as u64 * 8)?;
        }
        map.write_words(0, map.stored.len())?;
        // What the log said is durable in the map before the log forgets it.
        if !planted::is(Bug::EmptiedTooSoon) {
            map.file.sync()?;
        }
        let generation =
            last.map_or_else(|| new_generation(subject, now, boot), |(generation, _)| generation);
        let number = last.map(|(_, number)| number);
        match ActivityLog::start(log.clone(), generation, number, size, shape) {
            Ok(log) => map.log = Some(log),
            Err(error) => map.log_failed(&*log, &error, log.remove().err()),
        }
        // Durable before the first write: after a power cut it must not look closed.
        map.write_header(IN_USE, stamp, now)?;
        map.file.sync()?;
        Ok((map, doubt))
    }

    /// The regions that may differ.
    pub const fn bits(&self) -> &Bits {
        &self.bits
    }

    /// Why the file or its log is not kept any more, if so.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref().or(self.log_fault.as_deref())
    }

    /// Whether a write to these regions may go on: their extents are active. If not, they are wanted: write
    /// [`ChangeMap::next_record`], or wait for whoever does, and ask again.
    pub fn admits(&mut self, first: u64, last: u64) -> bool {
        self.log.as_mut().is_none_or(|log| log.admits(first * REGION_BYTES, last * REGION_BYTES))
    }

    /// The record that the activity log needs, if it needs one and none is being written.
    pub fn next_record(&mut self) -> Option<Record> {
        self.log.as_mut()?.next_record(&self.file)
    }

    /// The record without what was not written to for long, if anything is. `now` is time since any moment.
    pub fn next_idle(&mut self, now: Duration) -> Option<Record> {
        self.log.as_mut()?.next_idle(now, &self.file)
    }

    /// What came of writing a record.
    pub fn recorded(&mut self, record: &Record, done: Result<(), RecordError>) {
        match (done, &mut self.log) {
            (Ok(()), Some(log)) => log.recorded(record),
            (Err(RecordError::Map(error)), _) => self.fail(&error),
            (Err(RecordError::Log(error, kept)), Some(log)) => {
                let file = log.file();
                self.log_failed(&*file, &error, kept);
            }
            (_, None) => {}
        }
    }

    /// What is to be synced so that bits, and the sign of life, survive a power cut; `None`: nothing.
    pub fn next_settle(&self) -> Option<Settle> {
        let log = self.log.as_ref()?;
        let tick = log.unsettled();
        (tick.is_some() || self.is_unsettled()).then(|| Settle {
            file: self.file.clone(),
            tick: tick.unwrap_or_default(),
            doubts: self.doubts,
        })
    }

    /// What is to be synced so that every bit that is set now survives a power cut.
    pub fn settle_now(&self) -> Settle {
        let tick = self.log.as_ref().and_then(ActivityLog::unsettled).unwrap_or_default();
        Settle { file: self.file.clone(), tick, doubts: self.doubts }
    }

    /// What came of syncing.
    pub fn settled(&mut self, settle: &Settle, done: io::Result<()>) {
        match done {
            Ok(()) => {
                self.doubts_settled = self.doubts_settled.max(settle.doubts);
                if let Some(log) = &mut self.log {
                    log.settled(settle.tick);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Whether everything was set, and a power cut could forget it: until that is settled, no replica may
    /// count as known that did not before.
    pub fn is_unsettled(&self) -> bool {
        self.doubts != self.doubts_settled && !self.is_log_gone && !planted::is(Bug::DoubtNotSettled)
    }

    /// How many bytes count as changed after a power cut beyond those whose bits are set.
    pub fn active_bytes(&self) -> u64 {
        self.log.as_ref().map_or(0, ActivityLog::active_bytes)
    }

    /// Sets regions, in the file as well, before it returns.
    pub fn set(&mut self, first: u64, last: u64) {
        let (mut low, mut high) = (usize::MAX, 0);
        for region in first..=last {
            if !self.bits.set(region) {
                continue;
            }
            let (word, bit) = ((region / 64) as usize, 1u64 << (region % 64));
            for waiting in [&mut self.to_clear, &mut self.flushing] {
                if let Some(mask) = waiting.get_mut(&word) {
                    *mask &= !bit;
                }
            }
            if self.stored[word] & bit == 0 {
                self.stored[word] |= bit;
                (low, high) = (low.min(word), high.max(word));
            }
        }
        if low <= high
            && let Err(error) = self.write_words(low, high + 1)
        {
            self.fail(&error);
        }
    }

    /// Sets everything: doubt.
    pub fn set_all(&mut self) {
        self.doubts += 1;
        self.bits.set_all();
        self.stored.copy_from_slice(self.bits.words());
        self.to_clear.clear();
        self.flushing.clear();
        if let Err(error) = self.write_words(0, self.stored.len()) {
            self.fail(&error);
        }
    }

    /// Clears a region in memory; the file follows after the disk's next flush.
    pub fn clear(&mut self, region: u64) {
        if self.bits.clear(region) {
            *self.to_clear.entry((region / 64) as usize).or_default() |= 1 << (region % 64);
        }
        if planted::is(Bug::ClearedUnflushed) {
            self.before_flush();
            self.after_flush();
        }
    }

    /// Whether clears wait for the disk's next flush.
    pub fn has_clears(&self) -> bool {
        !self.to_clear.is_empty()
    }

    /// Before the disk is flushed: notes which clears that flush allows.
    pub fn before_flush(&mut self) {
        for (word, mask) in std::mem::take(&mut self.to_clear) {
            *self.flushing.entry(word).or_default() |= mask;
        }
    }

    /// After the disk was flushed: stores the clears that were noted before, less what was set since.
    pub fn after_flush(&mut self) {
        if self.fault.is_some() {
            return;
        }
        let mut run: Option<(usize, usize)> = None;
        for (word, mask) in std::mem::take(&mut self.flushing) {
            self.stored[word] &= !mask;
            run = match run {
                // What lies between is as the file has it: one write for all is cheaper.
                Some((low, high)) if word - high <= NEAR_WORDS => Some((low, word + 1)),
                Some((low, high)) => {
                    if let Err(error) = self.write_words(low, high) {
                        return self.fail(&error);
                    }
                    Some((word, word + 1))
                }
                None => Some((word, word + 1)),
            };
        }
        if let Some((low, high)) = run
            && let Err(error) = self.write_words(low, high)
        {
            self.fail(&error);
        }
    }

    /// The flush failed: what waited for it waits on.
    pub fn flush_failed(&mut self) {
        for (word, mask) in std::mem::take(&mut self.flushing) {
            *self.to_clear.entry(word).or_default() |= mask;
        }
    }

    /// Says that the process lives and what the disk looks like now.
    pub fn alive(&mut self, stamp: Stamp, now: Timestamp) {
        if self.fault.is_none()
            && let Err(error) = self.write_header(IN_USE, stamp, now)
        {
            self.fail(&error);
        }
    }

    /// Closes in good order: the disk is flushed and nobody writes to it through us any more.
    pub fn close(&mut self, stamp: Stamp, now: Timestamp) -> io::Result<()> {
        if self.fault.is_some() {
            return Ok(());
        }
        self.file.sync()?;
        self.write_header(CLOSED, stamp, now)?;
        self.file.sync()
    }

    fn fail(&mut self, error: &io::Error) {
        if self.fault.is_none() {
            let removed = self.file.remove();
            // Should the map come back with the power, its log must not.
            let log_removed = self.log.take().is_some_and(|log| log.file().remove().is_ok());
            self.is_log_gone |= removed.is_ok() || log_removed;
            tracing::error!(map = self.file.name(), %error, removed = removed.is_ok(), log_removed,
                "the change map cannot be written: it lives on in memory, and after the next start everything is sent again");
            self.fault = Some(format!(
                "the change map cannot be written: {error}; after the next start everything is sent again: mend its disk and start the agent again"
            ));
        }
    }

    /// The log cannot be written. `kept` says why it could not be removed, either.
    fn log_failed(&mut self, log: &dyn Kept, error: &io::Error, kept: Option<io::Error>) {
        self.log = None;
        self.is_log_gone = kept.is_none();
        tracing::error!(log = log.name(), %error, removed = kept.is_none(),
            "the activity log cannot be written: guests go on, and after a power cut everything is sent again");
        self.log_fault = Some(format!(
            "the activity log cannot be written: {error}; after a power cut everything is sent again: mend its disk and start the agent again"
        ));
        if let Some(error) = kept {
            self.fail(&error);
        }
    }

    fn write_words(&self, low: usize, high: usize) -> io::Result<()> {
        let at = BITS_AT + low as u64 * 8;
        if high - low == 1 {
            return self.file.write(at, &self.stored[low].to_le_bytes());
        }
        let bytes: Vec<u8> = self.stored[low..high].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.file.write(at, &bytes)
    }

    fn write_header(&self, state: u32, stamp: Stamp, now: Timestamp) -> io::Result<()> {
        let mut header = [0; HEADER];
        let mut put = |at: usize, value: &[u8]| header[at..at + value.len()].copy_from_slice(value);
        let (kind, value) = stamp.activity.to_parts();
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &state.to_le_bytes());
        put(16, self.disk.as_bytes());
        put(32, &self.size.to_le_bytes());
        put(40, &self.boot.id.to_le_bytes());
        put(48, &stamp.identity.to_le_bytes());
        put(56, &kind.to_le_bytes());
        put(64, &value.to_le_bytes());
        put(72, &now.micros().to_le_bytes());
        let (generation, number) = self.log.as_ref().map_or((0, 0), |log| (log.generation(), log.number()));
        put(80, &generation.to_le_bytes());
        put(88, &number.to_le_bytes());
        let sum = xxh3_64(&header[..120]);
        header[120..].copy_from_slice(&sum.to_le_bytes());
        self.file.write(0, &header)
    }
}

/// Which start of this machine we live in; 0 where the kernel does not say.
fn boot_id() -> u64 {
    static BOOT: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| xxh3_64(&id))
    });
    *BOOT
}

/// A generation that no earlier log has; never 0.
fn new_generation(subject: Subject, now: Timestamp, boot: Boot) -> u64 {
    let mut seed = subject.disk.as_bytes().to_vec();
    for part in [now.micros().cast_unsigned(), boot.id, subject.stamp.identity] {
        seed.extend_from_slice(&part.to_le_bytes());
    }
    xxh3_64(&seed) | 1
}

/// Reads a map, and after a power cut its log; answers why they cannot be believed, if so. With the bits come
/// the generation and the last record of its log, where there is one.
type Read = Result<(Bits, Option<(u64, u64)>), String>;

fn read(file: &dyn Kept, log: &dyn Kept, subject: Subject, now: Timestamp, boot: Boot) -> io::Result<Read> {
    let Subject { disk, size, stamp } = subject;
    let regions = size.div_ceil(REGION_BYTES);
    let doubt = |why: &str| Ok(Err(why.to_owned()));
    let length = file.length()?;
    if length == 0 {
        return doubt("this disk was never replicated from here");
    }
    let mut header = [0; HEADER];
    if length < BITS_AT || file.read(0, &mut header).is_err() {
        return doubt("the change map is cut short");
    }
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
    if &header[..8] != MAGIC || xxh3_64(&header[..120]) != long(120) || word(8) != VERSION {
        return doubt("the change map is damaged or of another version");
    }
    if header[16..32] != *disk.as_bytes() {
        return doubt("the change map is of another disk");
    }
    if long(32) != size {
        return doubt("the disk changed its size while nobody watched");
    }
    if length != BITS_AT + regions.div_ceil(64) * 8 {
        return doubt("the change map has another length than the disk asks for");
    }
    if long(48) != stamp.identity {
        return doubt("another disk stands where this one was");
    }
    let before = Activity::from_parts(word(56), long(64).cast_signed());
    let since = Since {
        closed: word(12) == CLOSED,
        same_boot: long(40) == boot.id && boot.id != 0,
        alive: long(72).cast_signed(),
        boot_at: boot.at.micros(),
    };
    if let Some(why) = since.watched(before, stamp.activity) {
        return doubt(why);
    }
    let mut bytes = vec![0; regions.div_ceil(64) as usize * 8];
    if file.read(BITS_AT, &mut bytes).is_err() {
        return doubt("the change map cannot be read");
    }
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
    let mut bits = Bits::from_words(words.collect(), regions);
    let (generation, named) = (long(80), long(88));
    let said = match generation {
        0 => Err("there is no activity log".to_owned()),
        _ => activity::read(log, generation, named, size),
    };
    if since.closed || since.same_boot {
        return Ok(Ok((bits, said.ok().map(|said| (generation, said.number)))));
    }
    const DOWN: &str = "the machine went down while the disk was in use";
    if now.micros() < since.alive {
        return doubt(&format!("{DOWN}, and its clock went back"));
    }
    let said = match said {
        Ok(said) => said,
        Err(why) => return doubt(&format!("{DOWN}, and {why}")),
    };
    let of_extent = (1u64 << said.extent_log2) / REGION_BYTES;
    for extent in said.extents {
        let first = u64::from(extent) * of_extent;
        for region in first..(first + of_extent).min(regions) {
            bits.set(region);
        }
    }
    Ok(Ok((bits, Some((generation, said.number)))))
}

/// What a map's file says, told to somebody who has no disk to hold against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapFacts {
    /// Whose map.
    pub disk: DiskId,
    /// That disk's size in bytes.
    pub size: u64,
    /// Closed in good order; else in use, or left by a process that died.
    pub closed: bool,
    /// Whether this machine was started again since.
    pub same_boot: bool,
    /// Whether there is an activity log to be asked after a power cut.
    pub logged: bool,
    /// When the process that kept it last said that it lives.
    pub alive: Timestamp,
    /// Regions of 64 KiB that the disk has.
    pub regions: u64,
    /// Those of them that may differ from the target.
    pub changed: u64,
    /// Why it cannot be believed, if so.
    pub damage: Option<String>,
}

/// Reads a map's file for [`MapFacts`]; changes nothing, keeps one small window in memory. `None`: it is no map.
pub fn look(file: &File) -> io::Result<Option<MapFacts>> {
    let length = file.metadata()?.len();
    let mut header = [0; HEADER];
    let there = length.min(HEADER as u64) as usize;
    file.read_exact_at(&mut header[..there], 0)?;
    if &header[..8] != MAGIC {
        return Ok(None);
    }
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
    let size = long(32);
    let regions = size.div_ceil(REGION_BYTES);
    let damage = match () {
        () if there < HEADER => Some("it is cut inside its header".to_owned()),
        () if xxh3_64(&header[..120]) != long(120) => {
            Some("its header does not match its checksum".to_owned())
        }
        () if word(8) != VERSION => {
            Some(format!("it is of version {}, and this program reads version {VERSION}", word(8)))
        }
        () if length != BITS_AT + regions.div_ceil(64) * 8 => {
            Some(format!("it is {length} bytes long, which is not what a disk of {size} bytes asks for"))
        }
        () => None,
    };
    let mut changed = 0;
    if damage.is_none() {
        let mut window = vec![0; 64 << 10];
        let mut at = BITS_AT;
        while at < length {
            let part = (length - at).min(window.len() as u64) as usize;
            file.read_exact_at(&mut window[..part], at)?;
            changed += window[..part].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            at += part as u64;
        }
    }
    let disk: [u8; 16] = header[16..32].try_into().unwrap_or_default();
    Ok(Some(MapFacts {
        disk: DiskId::from_bytes(disk),
        size,
        closed: word(12) == CLOSED,
        same_boot: long(40) == boot_id(),
        logged: long(80) != 0,
        alive: Timestamp::from_micros(long(72).cast_signed()),
        regions,
        changed,
        damage,
    }))
}

/// What happened since a map's header was written.
struct Since {
    closed: bool,
    same_boot: bool,
    alive: i64,
    boot_at: i64,
}

impl Since {
    /// Why the disk may have been written to while nobody watched, if so.
    fn watched(&self, before: Activity, now: Activity) -> Option<&'static str> {
        const WRITTEN: &str = "the disk was written to while nobody watched";
        match (before, now) {
            (Activity::Unknown, Activity::Unknown) => None,
            (Activity::Modified(before), Activity::Modified(now)) => {
                let ours = before.max(self.alive);
                let written = match (self.closed, self.same_boot) {
                    (true, _) => now != before,
                    (false, true) => now > ours.saturating_add(ALIVE_SLACK_MICROS),
                    // Whatever was written after the machine started again was not written through us.
                    (false, false) => now > ours.saturating_add(SYNCED_SLACK_MICROS) || now >= self.boot_at,
                };
                written.then_some(WRITTEN)
            }
            // A device's counter begins anew with the machine. While it was in use, our own last writes are in it.
            (Activity::Written(_), Activity::Written(_)) if !self.same_boot => Some(
                "the machine was started again, and its disks do not tell what happened to them meanwhile",
            ),
            (Activity::Written(before), Activity::Written(now)) => {
                (self.closed && before != now).then_some(WRITTEN)
            }
            _ => Some("another disk stands where this one was"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulated::{Power, SimulatedFile};
    use std::fs::OpenOptions;

    const DISK: DiskId = DiskId::from_bytes([1; 16]);

    fn stamp(modified: i64) -> Stamp {
        Stamp { identity: 7, activity: Activity::Modified(modified) }
    }
    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn bits_survive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let size = 130 * REGION_BYTES + 5;
        let (mut map, doubt) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
        assert!(doubt.is_some() && map.bits().ones() == 131);
        (0..131).for_each(|region| map.clear(region));
        map.before_flush();
        map.set(64, 65);
        map.after_flush();
        drop(map);
        let (map, doubt) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
        assert_eq!(doubt, None);
        assert_eq!((map.bits().ones(), map.bits().next_run(0, 9)), (2, Some((64, 66))));
    }

    #[test]
    fn a_map_is_told_whatever_became_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let size = 130 * REGION_BYTES + 5;
        let (mut map, _) = ChangeMap::open(&path, DISK, size, stamp(0), at(5)).unwrap();
        (3..131).for_each(|region| map.clear(region));
        map.before_flush();
        map.after_flush();
        map.close(stamp(0), at(9)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let facts = look(&File::open(&path).unwrap()).unwrap().unwrap();
        assert_eq!((facts.regions, facts.changed, facts.closed, facts.alive), (131, 3, true, at(9)));
        assert_eq!((facts.disk, facts.size, facts.logged, facts.damage), (DISK, size, true, None));
        for length in (0..200).chain([4095, 4096, whole.len() - 1]) {
            std::fs::write(&path, &whole[..length]).unwrap();
            let told = look(&File::open(&path).unwrap()).unwrap();
            assert!(told.is_none() == (length < 8), "{length}");
            assert!(told.is_none_or(|facts| facts.damage.is_some()), "{length}");
        }
        for byte in 8..128 {
            let mut flipped = whole.clone();
            flipped[byte] ^= 0x40;
            std::fs::write(&path, &flipped).unwrap();
            assert!(look(&File::open(&path).unwrap()).unwrap().unwrap().damage.is_some(), "{byte}");
        }
    }

    #[test]
    fn a_clear_reaches_the_file_only_with_the_flush_that_followed_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let size = 8 * REGION_BYTES;
        let (mut map, _) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
        let stored = |map: &ChangeMap| {
            let mut word = [0; 8];
            map.file.read(BITS_AT, &mut word).unwrap();
            u64::from_le_bytes(word)
        };
        map.clear(0);
        map.set(3, 3);
        assert_eq!(stored(&map), 0xff, "no flush yet, though the word was written for another region");
        map.clear(1);
        map.before_flush();
        map.clear(2); // its write came after the flush began
        map.set(1, 1); // written again meanwhile
        map.clear(1); // and acknowledged again: that needs another flush
        map.after_flush();
        assert_eq!(stored(&map), 0b1111_1110);
        map.before_flush();
        map.flush_failed();
        map.after_flush();
        assert_eq!(stored(&map), 0b1111_1110, "a failed flush allows nothing");
        map.before_flush();
        map.after_flush();
        assert_eq!(stored(&map), 0b1111_1000);
    }

    #[test]
    fn doubt_sets_everything() {
        let size = 100 * REGION_BYTES;
        let second = 1_000_000;
        let other = Stamp { identity: 8, activity: Activity::Modified(5 * second) };
        let device = Stamp { identity: 7, activity: Activity::Written(5) };
        type Damage = fn(&File);
        let none: Damage = |_| {};
        let rows: [(&str, bool, DiskId, u64, Stamp, Damage, bool); 14] = [
            ("killed, nothing happened since", false, DISK, size, stamp(5 * second), none, true),
            ("killed, its last write just before", false, DISK, size, stamp(6 * second), none, true),
            ("killed, written to long after", false, DISK, size, stamp(9 * second), none, false),
            ("closed, nothing happened since", true, DISK, size, stamp(5 * second), none, true),
            ("closed, written to at once", true, DISK, size, stamp(5 * second + 1), none, false),
            ("closed, an older copy put back", true, DISK, size, stamp(4 * second), none, false),
            ("another disk", true, DISK, size, other, none, false),
            ("another kind of disk", true, DISK, size, device, none, false),
            ("another id", true, DiskId::from_bytes([2; 16]), size, stamp(5 * second), none, false),
            ("grown", true, DISK, size * 2, stamp(5 * second), none, false),
            ("shrunk within the last region", true, DISK, size - 512, stamp(5 * second), none, false),
            ("cut", true, DISK, size, stamp(5 * second), |file| file.set_len(4100).unwrap(), false),
            (
                "flipped",
                true,
                DISK,
                size,
                stamp(5 * second),
                |file| file.write_all_at(&[9], 70).unwrap(),
                false,
            ),
            ("emptied", true, DISK, size, stamp(5 * second), |file| file.set_len(0).unwrap(), false),
        ];
        for (why, closed, disk, new_size, new_stamp, damage, believed) in rows {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("map");
            let (mut map, _) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
            (0..100).for_each(|region| map.clear(region));
            map.before_flush();
            map.after_flush();
            map.alive(stamp(5 * second), at(5 * second));
            if closed {
                map.close(stamp(5 * second), at(5 * second)).unwrap();
            }
            drop(map);
            damage(&OpenOptions::new().write(true).open(&path).unwrap());
            let (map, doubt) = ChangeMap::open(&path, disk, new_size, new_stamp, at(9 * second)).unwrap();
            assert_eq!(doubt.is_none(), believed, "{why}: {doubt:?}");
            assert_eq!(map.bits().ones(), if believed { 0 } else { map.bits().len() }, "{why}");
        }
    }

    /// The files of a map of 100 regions with 4 regions in an extent, in memory.
    struct Simulated {
        files: [SimulatedFile; 2],
        stamp: Stamp,
        now: i64,
        boot: Boot,
    }

    impl Simulated {
        fn new(stamp: Stamp) -> Self {
            let power = Power::default();
            let files = [SimulatedFile::new(&power), SimulatedFile::new(&power)];
            Self { files, stamp, now: 0, boot: Boot { id: 1, at: at(0) } }
        }
        fn open(&self) -> (ChangeMap, Option<String>) {
            let files = self.files.clone().map(|file| Arc::new(file) as Arc<dyn Kept>);
            let subject = Subject { disk: DISK, size: 100 * REGION_BYTES, stamp: self.stamp };
            let shape = Shape { extent_log2: 18, slots: 8 };
            ChangeMap::open_kept(files, subject, at(self.now), self.boot, shape).unwrap()
        }
        /// Clean, then regions 10 and 50 written to.
        fn use_it(&self, map: &mut ChangeMap) {
            (0..100).for_each(|region| map.clear(region));
            map.before_flush();
            map.after_flush();
            for region in [10, 50] {
                assert!(!map.admits(region, region));
                let record = map.next_record().unwrap();
                let done = record.settle().and_then(|()| record.write());
                map.recorded(&record, done);
                assert!(map.admits(region, region));
                map.set(region, region);
            }
        }
    }

    #[test]
    fn after_a_power_cut_the_log_says_what_the_map_may_have_forgotten_or_all_is_doubted() {
        let second = 1_000_000;
        type Change = fn(&mut Simulated);
        let rows: [(&str, Activity, Change, Option<&str>); 13] = [
            ("nothing else", Activity::Unknown, |_| {}, None),
            ("a last write", Activity::Modified(0), |it| it.stamp = stamp(9_000_000), None),
            (
                "written to later",
                Activity::Modified(0),
                |it| it.stamp = stamp(11_000_001),
                Some("written to"),
            ),
            ("written to since", Activity::Modified(0), |it| it.boot.at = at(0), Some("written to")),
            (
                "a device that was written to or not",
                Activity::Written(5),
                |it| it.stamp.activity = Activity::Written(0),
                Some("do not tell"),
            ),
            ("another disk", Activity::Unknown, |it| it.stamp.identity = 8, Some("another disk stands")),
            ("the clock went back", Activity::Unknown, |it| it.now = 5_999_999, Some("clock went back")),
            ("no log", Activity::Unknown, |it| it.files[1].put(&[]), Some("there is no activity log")),
            ("a log cut short", Activity::Unknown, |it| it.files[1].put(&[0; 4096]), Some("4096 bytes long")),
            ("an empty log", Activity::Unknown, |it| it.files[1].put(&[0; 8192]), Some("damaged")),
            (
                "another map's log",
                Activity::Unknown,
                |it| {
                    let other = Simulated { now: 7, ..Simulated::new(it.stamp) };
                    drop(other.open());
                    it.files[1].put(&other.files[1].bytes());
                },
                Some("another generation"),
            ),
            (
                "a flipped bit",
                Activity::Unknown,
                |it| {
                    let mut bytes = it.files[1].bytes();
                    bytes[5000] ^= 4;
                    it.files[1].put(&bytes);
                },
                Some("damaged"),
            ),
            (
                "one record twice",
                Activity::Unknown,
                |it| {
                    let bytes = it.files[1].bytes();
                    it.files[1].put(&[&bytes[..4096], &bytes[..4096]].concat());
                },
                Some("do not follow"),
            ),
        ];
        for (why, activity, change, doubted) in rows {
            let mut it = Simulated::new(Stamp { identity: 7, activity });
            let (mut map, _) = it.open();
            map.alive(it.stamp, at(6 * second));
            it.use_it(&mut map);
            if let Some(settle) = map.next_settle() {
                map.settled(&settle, settle.run());
            }
            drop(map);
            // All of the bits are on the medium, or none of those set last.
            it.files.iter().for_each(|file| file.cut_power(|| true));
            (it.now, it.boot) = (20 * second, Boot { id: 2, at: at(15 * second) });
            change(&mut it);
            let (map, doubt) = it.open();
            match doubted {
                None => {
                    assert_eq!(doubt, None, "{why}");
                    assert_eq!((map.bits().ones(), map.bits().next_run(0, 9)), (8, Some((8, 12))), "{why}");
                }
                Some(text) => {
                    let doubt = doubt.unwrap_or_else(|| panic!("{why}: believed"));
                    assert!(doubt.contains(text), "{why}: {doubt}");
                    assert_eq!(map.bits().ones(), 100, "{why}");
                }
            }
        }
    }

    #[test]
    fn closed_in_good_order_needs_no_log() {
        let mut it = Simulated::new(stamp(0));
        let (mut map, _) = it.open();
        it.use_it(&mut map);
        map.close(it.stamp, at(1)).unwrap();
        drop(map);
        it.files[1].put(&[]);
        it.boot.id = 2;
        let (map, doubt) = it.open();
        assert_eq!((doubt, map.bits().ones()), (None, 2));
    }

    #[test]
    fn a_log_that_cannot_be_written_stops_nobody_and_is_told_and_a_power_cut_is_doubt_then() {
        for fails_at in [1, 2] {
            let mut it = Simulated::new(Stamp { identity: 7, activity: Activity::Unknown });
            let (mut map, _) = it.open();
            it.use_it(&mut map);
            assert!(!map.admits(80, 80));
            let record = map.next_record().unwrap();
            it.files[1].fail(fails_at);
            let done = record.settle().and_then(|()| record.write());
            assert!(done.is_err());
            map.recorded(&record, done);
            assert!(map.admits(80, 80) && map.next_record().is_none() && map.active_bytes() == 0);
            assert!(map.fault().unwrap().contains("after a power cut everything is sent again"));
            map.set(80, 80);
            map.alive(it.stamp, at(3));
            drop(map);
            // A process that dies is no harm.
            let (map, doubt) = it.open();
            assert_eq!((doubt, map.bits().ones(), map.fault()), (None, 3, None));
            drop(map);
            it.files[1].put(&[]);
            it.boot.id = 2;
            let (_, doubt) = it.open();
            assert!(doubt.unwrap().contains("there is no activity log"));
        }
    }

    #[test]
    fn while_neither_log_nor_map_can_be_removed_no_other_replica_becomes_known() {
        for (log_stays, map_stays) in [(true, true), (true, false), (false, true)] {
            let it = Simulated::new(Stamp { identity: 7, activity: Activity::Unknown });
            let (mut map, _) = it.open();
            it.use_it(&mut map);
            assert!(!map.admits(80, 80));
            let record = map.next_record().unwrap();
            it.files[1].fail(1);
            if log_stays {
                it.files[1].fail(2);
            }
            let done = record.settle().and_then(|()| record.write());
            if map_stays {
                it.files[0].fail(1);
            }
            map.recorded(&record, done);
            map.set_all();
            assert_eq!(map.is_unsettled(), log_stays && map_stays);
            assert!(map.next_settle().is_none() && map.fault().is_some() && map.admits(90, 90));
        }
    }

    #[test]
    fn idle_extents_leave_and_the_one_written_to_longest_ago_makes_room() {
        let it = Simulated::new(Stamp { identity: 7, activity: Activity::Unknown });
        let (mut map, _) = it.open();
        let write = |map: &mut ChangeMap, record: Option<Record>| {
            let record = record.unwrap();
            let done = record.settle().and_then(|()| record.write());
            map.recorded(&record, done);
        };
        let touch = |map: &mut ChangeMap, extent: u64| {
            while !map.admits(extent * 4, extent * 4 + 3) {
                let record = map.next_record();
                write(map, record);
            }
        };
        (0..8).for_each(|extent| touch(&mut map, extent));
        touch(&mut map, 0);
        touch(&mut map, 20);
        assert_eq!(map.active_bytes(), 8 << 18);
        assert!(map.admits(0, 3), "it was used again");
        assert!(!map.admits(4, 7), "it made room");
        let record = map.next_record();
        write(&mut map, record);
        // A range over several extents waits once for all of them.
        assert!(!map.admits(40, 59));
        let record = map.next_record();
        write(&mut map, record);
        assert!(map.admits(40, 59));
        assert!(map.next_idle(Duration::from_secs(300)).is_none());
        touch(&mut map, 12);
        let record = map.next_idle(Duration::from_secs(600));
        write(&mut map, record);
        assert_eq!(map.active_bytes(), 1 << 18, "only what was written to since");
    }

    #[test]
    fn a_map_that_cannot_be_written_goes_on_in_memory_and_is_doubted_later() {
        for is_sync in [false, true] {
            let it = Simulated::new(Stamp { identity: 7, activity: Activity::Unknown });
            let (mut map, _) = it.open();
            it.use_it(&mut map);
            it.files[0].fail(1);
            if is_sync {
                let settle = map.next_settle().unwrap();
                map.settled(&settle, settle.run());
            } else {
                map.set(90, 90);
                assert!(map.bits().get(90));
            }
            assert!(map.fault().unwrap().contains("after the next start everything is sent again"));
            assert!(map.admits(3, 3), "nobody waits for it");
            drop(map);
            let (map, doubt) = it.open();
            assert!(doubt.is_some() && map.bits().ones() == 100);
        }
    }
}
