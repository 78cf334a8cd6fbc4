//! The change map's file: which 64 KiB regions of a disk may differ from what the target holds.
//!
//! ```text
//! 0   magic "CTMMAP01"      8  version u32 = 1    12 state u32 (1 in use · 2 closed in good order)
//! 16  disk id [16]          32 size u64           40 boot u64 (which start of this machine)
//! 48  identity u64          56 activity kind u32  60 zero u32    64 activity value i64 (see `disk::Stamp`)
//! 72  alive i64 (µs: when the process last said that it lives)
//! 80  zero … 120            120 sum u64 (xxh3-64 of bytes 0..120)
//! 128 zero … 4096
//! 4096 one bit a region, in little-endian words of 64
//! ```
//!
//! A bit is set in the file before the disk is written (one `pwrite` into the page cache, and only where
//! the file does not have it yet: it survives the death of the process). A bit is cleared in memory at
//! once, in the file only after the disk was flushed: otherwise a power cut could take an unflushed write
//! from the source, keep it at the target, and leave a clean bit.
//!
//! **Doubt.** Every region counts as changed when the map is missing, damaged, of another disk or size; when
//! another disk stands in its place; when the machine went down without closing it (set bits may not have
//! reached the medium); or when the disk was written to while nobody watched.
//!
//! A map that cannot be written does not stop the guest: it lives on in memory, its file is removed, and
//! should even that fail, `alive` falls behind the disk's last change, which is doubt at the next start.

use crate::bits::Bits;
use crate::disk::{Activity, Stamp};
use continuum_model::id::DiskId;
use continuum_model::time::Timestamp;
use continuum_model::units::REGION_BYTES;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
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

/// Words that are this near are written in one piece.
const NEAR_WORDS: usize = 64;

/// The map of one disk.
pub struct ChangeMap {
    path: PathBuf,
    file: File,
    disk: DiskId,
    size: u64,
    /// The truth.
    bits: Bits,
    /// What the file holds: never less than `bits`.
    stored: Vec<u64>,
    /// Bits that are clear in memory and set in the file, by word.
    to_clear: BTreeMap<usize, u64>,
    /// Those of them that wait for a flush of the disk which is under way.
    flushing: BTreeMap<usize, u64>,
    fault: Option<String>,
}

impl ChangeMap {
    /// Opens the map in `path`, or makes one. The text says why everything counts as changed, where it does.
    pub fn open(
        path: &Path,
        disk: DiskId,
        size: u64,
        stamp: Stamp,
        now: Timestamp,
    ) -> io::Result<(Self, Option<String>)> {
        let regions = size.div_ceil(REGION_BYTES);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let (bits, doubt) = match read(&file, disk, size, stamp)? {
            Ok(bits) => (bits, None),
            Err(why) => {
                let mut bits = Bits::new(regions);
                bits.set_all();
                (bits, Some(why))
            }
        };
        let stored = bits.words().to_vec();
        let map = Self {
            path: path.to_owned(),
            file,
            disk,
            size,
            bits,
            stored,
            to_clear: BTreeMap::new(),
            flushing: BTreeMap::new(),
            fault: None,
        };
        if doubt.is_some() {
            // Space now rather than an error in the middle of a guest's write.
            let length = BITS_AT + map.stored.len() as u64 * 8;
            map.file.set_len(length)?;
            match rustix::fs::fallocate(&map.file, rustix::fs::FallocateFlags::empty(), 0, length) {
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
            map.write_words(0, map.stored.len())?;
        }
        // Durable before the first write: after a power cut it must not look closed.
        map.write_header(IN_USE, stamp, now)?;
        map.file.sync_all()?;
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok((map, doubt))
    }

    /// The regions that may differ.
    pub const fn bits(&self) -> &Bits {
        &self.bits
    }

    /// Why the file is not kept any more, if so.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
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
        self.file.sync_data()?;
        self.write_header(CLOSED, stamp, now)?;
        self.file.sync_data()
    }

    fn fail(&mut self, error: &io::Error) {
        if self.fault.is_none() {
            let removed = std::fs::remove_file(&self.path);
            tracing::error!(map = %self.path.display(), %error, removed = removed.is_ok(),
                "the change map cannot be written: it lives on in memory, and after the next start everything is sent again");
            self.fault = Some(format!("the change map cannot be written: {error}"));
        }
    }

    fn write_words(&self, low: usize, high: usize) -> io::Result<()> {
        let at = BITS_AT + low as u64 * 8;
        if high - low == 1 {
            return self.file.write_all_at(&self.stored[low].to_le_bytes(), at);
        }
        let bytes: Vec<u8> = self.stored[low..high].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, at)
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
        put(40, &boot().to_le_bytes());
        put(48, &stamp.identity.to_le_bytes());
        put(56, &kind.to_le_bytes());
        put(64, &value.to_le_bytes());
        put(72, &now.micros().to_le_bytes());
        let sum = xxh3_64(&header[..120]);
        header[120..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&header, 0)
    }
}

/// Which start of this machine we live in; 0 where the kernel does not say.
fn boot() -> u64 {
    static BOOT: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| xxh3_64(&id))
    });
    *BOOT
}

/// Reads a map; answers why it cannot be believed, if so.
fn read(file: &File, disk: DiskId, size: u64, stamp: Stamp) -> io::Result<Result<Bits, String>> {
    let regions = size.div_ceil(REGION_BYTES);
    let doubt = |why: &str| Ok(Err(why.to_owned()));
    let length = file.metadata()?.len();
    if length == 0 {
        return doubt("this disk was never replicated from here");
    }
    let mut header = [0; HEADER];
    if length < BITS_AT || file.read_exact_at(&mut header, 0).is_err() {
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
    let (closed, same_boot) = (word(12) == CLOSED, long(40) == boot());
    if !closed && !same_boot {
        return doubt("the machine went down while the disk was in use");
    }
    if let Some(why) = watched(before, stamp.activity, closed, same_boot, long(72).cast_signed()) {
        return doubt(why);
    }
    let mut bytes = vec![0; regions.div_ceil(64) as usize * 8];
    if file.read_exact_at(&mut bytes, BITS_AT).is_err() {
        return doubt("the change map cannot be read");
    }
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
    Ok(Ok(Bits::from_words(words.collect(), regions)))
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
        same_boot: long(40) == boot(),
        alive: Timestamp::from_micros(long(72).cast_signed()),
        regions,
        changed,
        damage,
    }))
}

/// Why the disk may have been written to while nobody watched, if so.
fn watched(
    before: Activity,
    now: Activity,
    closed: bool,
    same_boot: bool,
    alive: i64,
) -> Option<&'static str> {
    const WRITTEN: &str = "the disk was written to while nobody watched";
    match (before, now) {
        (Activity::Unknown, Activity::Unknown) => None,
        (Activity::Modified(before), Activity::Modified(now)) => {
            let last = if closed { before } else { before.max(alive).saturating_add(ALIVE_SLACK_MICROS) };
            (now > last || (closed && now != last)).then_some(WRITTEN)
        }
        // A device's counter begins anew with the machine. While it was in use, our own last writes are in it.
        (Activity::Written(_), Activity::Written(_)) if !same_boot => {
            Some("the machine was started again, and its disks do not tell what happened to them meanwhile")
        }
        (Activity::Written(before), Activity::Written(now)) => (closed && before != now).then_some(WRITTEN),
        _ => Some("another disk stands where this one was"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((facts.disk, facts.size, facts.damage), (DISK, size, None));
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
            map.file.read_exact_at(&mut word, BITS_AT).unwrap();
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
        let sum_again = |file: &File, at: u64, bytes: &[u8]| {
            file.write_all_at(bytes, at).unwrap();
            let mut header = [0; 120];
            file.read_exact_at(&mut header, 0).unwrap();
            file.write_all_at(&xxh3_64(&header).to_le_bytes(), 120).unwrap();
        };
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
        // The machine went down: killed is doubt, closed is not.
        for closed in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("map");
            let (mut map, _) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
            if closed {
                map.close(stamp(0), at(0)).unwrap();
            }
            sum_again(&map.file, 40, &[1; 8]);
            drop(map);
            let (_, doubt) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
            assert_eq!(doubt.is_none(), closed, "{doubt:?}");
        }
    }

    #[test]
    fn a_map_that_cannot_be_written_goes_on_in_memory_and_is_doubted_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let size = 8 * REGION_BYTES;
        let (mut map, _) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
        (0..8).for_each(|region| map.clear(region));
        map.before_flush();
        map.after_flush();
        // From now on every write to it fails, as on a disk that went read-only.
        map.file = File::open(&path).unwrap();
        map.set(3, 3);
        assert!(map.fault().is_some() && map.bits().get(3));
        drop(map);
        let (map, doubt) = ChangeMap::open(&path, DISK, size, stamp(0), at(0)).unwrap();
        assert!(doubt.is_some() && map.bits().ones() == 8);
    }
}
