//! The change map's file: which 64 KiB regions of a disk may differ from what the target holds.
//!
//! ```text
//! 0   magic "CTMMAP01"      8  version u32 = 1    12 zero u32     16 disk id [16]
//! 32  size u64              40 clean u8 (1: closed in good order) 41 zero [15]
//! 56  sum u64 (xxh3-64 of bytes 0..56, with clean as 0)           64 zero … 4096
//! 4096 one bit a region, in little-endian words of 64
//! ```
//!
//! A set bit is written before the disk is (one `pwrite` into the page cache: survives the death of the
//! process). A cleared bit is written only after the disk was flushed: otherwise a power cut could take an
//! unflushed write from the source, keep it at the target, and leave a clean bit.
//!
//! A map that is missing, foreign, of another size or unreadable is doubt: every region counts as changed.

use continuum_model::id::DiskId;
use continuum_model::units::REGION_BYTES;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"CTMMAP01";
const HEADER: u64 = 4096;

/// The map of one disk.
pub struct ChangeMap {
    file: File,
    words: Vec<u64>,
    regions: u64,
    dirty: u64,
    /// Words with bits that were cleared in memory and not yet in the file.
    to_clear: std::collections::BTreeSet<usize>,
}

impl ChangeMap {
    /// Opens the map in `path`, or makes one. The text says why everything counts as changed, where it does.
    pub fn open(path: &Path, disk: DiskId, size: u64) -> io::Result<(Self, Option<String>)> {
        let regions = size.div_ceil(REGION_BYTES);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut words = vec![0u64; (regions as usize).div_ceil(64)];
        let doubt = read(&file, disk, size, &mut words)?;
        let mut map = Self { file, words, regions, dirty: 0, to_clear: Default::default() };
        if doubt.is_some() {
            map.write_header(disk, size)?;
            map.file.set_len(HEADER + map.words.len() as u64 * 8)?;
            map.set_all()?;
            map.file.sync_all()?;
            if let Some(folder) = path.parent() {
                File::open(folder)?.sync_all()?;
            }
        }
        map.mask_tail();
        map.dirty = map.words.iter().map(|word| u64::from(word.count_ones())).sum();
        Ok((map, doubt))
    }

    /// How many regions the disk has.
    pub const fn regions(&self) -> u64 {
        self.regions
    }
    /// How many are set.
    pub const fn dirty(&self) -> u64 {
        self.dirty
    }
    /// Whether a region is set.
    pub fn is_set(&self, region: u64) -> bool {
        self.words[(region / 64) as usize] >> (region % 64) & 1 == 1
    }

    /// Sets regions, in the file as well, before it returns.
    pub fn set(&mut self, first: u64, last: u64) -> io::Result<()> {
        let (mut low, mut high) = (usize::MAX, 0);
        for region in first..=last {
            if !self.is_set(region) {
                let word = (region / 64) as usize;
                self.words[word] |= 1 << (region % 64);
                self.dirty += 1;
                (low, high) = (low.min(word), high.max(word));
            }
        }
        if low <= high {
            self.write_words(low, high)?;
        }
        Ok(())
    }

    /// Sets everything: doubt.
    pub fn set_all(&mut self) -> io::Result<()> {
        self.words.fill(u64::MAX);
        self.mask_tail();
        self.dirty = self.regions;
        self.to_clear.clear();
        if self.words.is_empty() { Ok(()) } else { self.write_words(0, self.words.len() - 1) }
    }

    /// Clears a region in memory; the file follows with [`ChangeMap::persist_clears`].
    pub fn clear(&mut self, region: u64) {
        if self.is_set(region) {
            let word = (region / 64) as usize;
            self.words[word] &= !(1 << (region % 64));
            self.dirty -= 1;
            self.to_clear.insert(word);
        }
    }

    /// Whether clears wait for the disk's next flush.
    pub fn has_clears(&self) -> bool {
        !self.to_clear.is_empty()
    }

    /// Takes the words whose clears wait. The caller flushes the disk, then calls `persist_clears` with them.
    pub fn take_clears(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.to_clear).into_iter().collect()
    }

    /// Writes those words as they are now: bits that were set meanwhile stay set.
    pub fn persist_clears(&mut self, words: &[usize]) -> io::Result<()> {
        for &word in words {
            self.write_words(word, word)?;
        }
        Ok(())
    }

    /// The first set region at or after `from`.
    pub fn next_set(&self, from: u64) -> Option<u64> {
        let mut word = (from / 64) as usize;
        let mut bits = self.words.get(word)? & (u64::MAX << (from % 64));
        loop {
            if bits != 0 {
                return Some(word as u64 * 64 + u64::from(bits.trailing_zeros()));
            }
            word += 1;
            bits = *self.words.get(word)?;
        }
    }

    fn write_words(&self, low: usize, high: usize) -> io::Result<()> {
        if low == high {
            return self.file.write_all_at(&self.words[low].to_le_bytes(), HEADER + low as u64 * 8);
        }
        let bytes: Vec<u8> = self.words[low..=high].iter().flat_map(|word| word.to_le_bytes()).collect();
        self.file.write_all_at(&bytes, HEADER + low as u64 * 8)
    }

    fn mask_tail(&mut self) {
        let used = self.regions % 64;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }

    fn write_header(&self, disk: DiskId, size: u64) -> io::Result<()> {
        let mut header = vec![0; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&1u32.to_le_bytes());
        header[16..32].copy_from_slice(disk.as_bytes());
        header[32..40].copy_from_slice(&size.to_le_bytes());
        let sum = xxh3_64(&header[..56]);
        header[56..64].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&header, 0)
    }
}

/// Reads a map into `words`; answers why it cannot be believed, if so.
fn read(file: &File, disk: DiskId, size: u64, words: &mut [u64]) -> io::Result<Option<String>> {
    let length = file.metadata()?.len();
    if length == 0 {
        return Ok(Some("this disk was never replicated from here".into()));
    }
    if length != HEADER + words.len() as u64 * 8 {
        return Ok(Some("the change map has another length than the disk asks for".into()));
    }
    let mut header = vec![0; HEADER as usize];
    file.read_exact_at(&mut header, 0)?;
    let sum = u64::from_le_bytes(header[56..64].try_into().unwrap_or_default());
    if &header[..8] != MAGIC || xxh3_64(&header[..56]) != sum {
        return Ok(Some("the change map cannot be read".into()));
    }
    if header[16..32] != *disk.as_bytes() {
        return Ok(Some("the change map is of another disk".into()));
    }
    if header[32..40] != size.to_le_bytes() {
        return Ok(Some("the disk changed its size".into()));
    }
    let mut bytes = vec![0; words.len() * 8];
    file.read_exact_at(&mut bytes, HEADER)?;
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_survive_and_doubt_sets_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let disk = DiskId::from_bytes([1; 16]);
        let size = 130 * REGION_BYTES + 5;
        let (mut map, doubt) = ChangeMap::open(&path, disk, size).unwrap();
        assert!(doubt.is_some() && map.dirty() == 131);
        (0..131).for_each(|region| map.clear(region));
        let words = map.take_clears();
        map.set(64, 65).unwrap();
        map.persist_clears(&words).unwrap();
        drop(map);
        let (map, doubt) = ChangeMap::open(&path, disk, size).unwrap();
        assert_eq!((doubt, map.dirty(), map.next_set(0), map.next_set(66)), (None, 2, Some(64), None));
        drop(map);
        for (why, disk, size) in [
            ("another disk", DiskId::from_bytes([2; 16]), size),
            ("another size", disk, size - 1),
            ("another length", disk, size * 2),
        ] {
            let (map, doubt) = ChangeMap::open(&path, disk, size).unwrap();
            assert!(doubt.is_some() && map.dirty() == map.regions(), "{why}");
        }
    }

    #[test]
    fn a_clear_that_was_not_persisted_is_not_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let disk = DiskId::from_bytes([1; 16]);
        let (mut map, _) = ChangeMap::open(&path, disk, REGION_BYTES).unwrap();
        map.clear(0);
        drop(map);
        assert_eq!(ChangeMap::open(&path, disk, REGION_BYTES).unwrap().0.dirty(), 1);
    }
}
