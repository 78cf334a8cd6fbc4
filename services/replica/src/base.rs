//! Base images: the oldest retained state of each disk, with a sum for every 64 KiB block.
//!
//! ```text
//! base/<disk>.img   the disk, sparse
//! base/<disk>.sum   u64 a block: xxh3-64 of its bytes, seeded with disk and block; 0: all zeroes
//! base/redo         a fold under way: "CTMREDO1" · to sequence u64 · blocks u32 · zero u32 · then for each block:
//!                   disk u16 · zero [6] · block u64 · 64 KiB of content;  last: sum u64 (xxh3-64 of all before)
//! ```
//!
//! A fold writes its blocks to `redo` first and syncs it, then to the images. A crash in between finds
//! `redo` whole and does it again, or finds it torn and the images untouched.

use crate::manifest::DiskSpec;
use crate::medium::{Medium, MediumFile};
use crate::planted::{self, Bug};
use crate::store::ReplicaError;
use continuum_model::units::{DiskIndex, REGION_BYTES, Sequence};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const BLOCK: usize = REGION_BYTES as usize;
/// Sums that are read at once.
const SUMS_AT_ONCE: usize = 64;
const REDO: &str = "base/redo";
const REDO_MAGIC: &[u8; 8] = b"CTMREDO1";
const REDO_HEADER: usize = 24;
const REDO_ENTRY: usize = 16 + BLOCK;

/// The base images of one store.
pub struct Base {
    disks: Vec<Image>,
}

/// A disk, its image, its sums.
type Image = (DiskSpec, Box<dyn MediumFile>, Box<dyn MediumFile>);

/// Content of blocks, by disk and block.
pub type Blocks = BTreeMap<(DiskIndex, u64), Vec<u8>>;

fn sum_of(disk: DiskIndex, block: u64, bytes: &[u8]) -> u64 {
    if is_zero(bytes) {
        return 0;
    }
    // 0 means zeroes; a sum that happens to be 0 is told as 1.
    xxh3_64_with_seed(bytes, block.rotate_left(16) ^ u64::from(disk.0)).max(1)
}

fn is_zero(bytes: &[u8]) -> bool {
    // In words: a plain comparison of bytes costs more than the sum.
    let (words, rest) = bytes.as_chunks::<64>();
    rest.iter().all(|byte| *byte == 0) && words.iter().all(|word| *word == [0; 64])
}

/// The files of a disk, with the length each has from the first day on.
pub fn files_of(disk: &DiskSpec) -> [(String, u64); 2] {
    [
        (format!("base/{}.img", disk.index), disk.size),
        (format!("base/{}.sum", disk.index), disk.size.div_ceil(REGION_BYTES) * 8),
    ]
}

impl Base {
    /// Opens the images, made where there are none.
    pub fn open(medium: &dyn Medium, disks: &[DiskSpec]) -> Result<Self, ReplicaError> {
        let mut opened = Vec::new();
        for disk in disks {
            let file = |end: &str, length: u64| {
                let name = format!("base/{}.{end}", disk.index);
                let open = || {
                    let file = medium.open(&name, true)?;
                    if file.len()? != length {
                        file.set_len(length)?;
                        file.sync()?;
                    }
                    Ok(file)
                };
                open().map_err(|error| ReplicaError::io(&name, error))
            };
            let image = file("img", disk.size)?;
            let sums = file("sum", disk.size.div_ceil(REGION_BYTES) * 8)?;
            opened.push((*disk, image, sums));
        }
        medium.sync_folder("base").map_err(|error| ReplicaError::io("base", error))?;
        Ok(Self { disks: opened })
    }

    fn disk(&self, index: DiskIndex) -> Result<&Image, ReplicaError> {
        self.disks.iter().find(|(spec, ..)| spec.index == index).ok_or(ReplicaError::NoDisk(index))
    }

    /// The sums of blocks from `first` on. 0: the block is all zeroes.
    pub fn sums(&self, disk: DiskIndex, first: u64, out: &mut [u64]) -> Result<(), ReplicaError> {
        let (_, _, sums) = self.disk(disk)?;
        let mut bytes = [0; SUMS_AT_ONCE * 8];
        let mut block = first;
        for part in out.chunks_mut(SUMS_AT_ONCE) {
            let read = &mut bytes[..part.len() * 8];
            sums.read_at(block * 8, read)
                .map_err(|error| ReplicaError::io(&format!("base/{disk}.sum"), error))?;
            for (sum, bytes) in part.iter_mut().zip(read.as_chunks().0) {
                *sum = u64::from_le_bytes(*bytes);
            }
            block += part.len() as u64;
        }
        Ok(())
    }

    /// Reads and verifies one block into `out` (its full length; the last may be shorter).
    pub fn read_block(&self, disk: DiskIndex, block: u64, out: &mut Vec<u8>) -> Result<(), ReplicaError> {
        let (spec, ..) = self.disk(disk)?;
        out.clear();
        out.resize((spec.size - block * REGION_BYTES).min(REGION_BYTES) as usize, 0);
        self.read_blocks(disk, block, out)
    }

    /// Checks a block, and that what is told as zeroes is a hole. Returns whether it is.
    pub fn verify(&self, disk: DiskIndex, block: u64, content: &mut Vec<u8>) -> Result<bool, ReplicaError> {
        let mut sum = [0];
        self.sums(disk, block, &mut sum)?;
        self.read_block(disk, block, content)?;
        if sum != [0] {
            return Ok(false);
        }
        let (_, image, _) = self.disk(disk)?;
        image
            .read_at(block * REGION_BYTES, content)
            .map_err(|error| ReplicaError::io(&format!("base/{disk}.img"), error))?;
        if is_zero(content) { Ok(true) } else { Err(damaged_block(disk, block)) }
    }

    /// Reads and verifies whole blocks from `first` on; only the last of a disk may be shorter.
    /// What lies together is read at once, straight into `out`.
    pub fn read_blocks(&self, disk: DiskIndex, first: u64, out: &mut [u8]) -> Result<(), ReplicaError> {
        let (_, image, _) = self.disk(disk)?;
        let mut known = [0; SUMS_AT_ONCE];
        let mut block = first;
        for part in out.chunks_mut(SUMS_AT_ONCE * BLOCK) {
            let known = &mut known[..part.len().div_ceil(BLOCK)];
            self.sums(disk, block, known)?;
            let mut done = 0;
            while done < known.len() {
                let zero = known[done] == 0;
                let run = known[done..].iter().take_while(|sum| (**sum == 0) == zero).count();
                let stop = ((done + run) * BLOCK).min(part.len());
                let stretch = &mut part[done * BLOCK..stop];
                if zero {
                    stretch.fill(0);
                } else {
                    image
                        .read_at((block + done as u64) * REGION_BYTES, stretch)
                        .map_err(|error| ReplicaError::io(&format!("base/{disk}.img"), error))?;
                    for (at, bytes) in stretch.chunks_mut(BLOCK).enumerate() {
                        let number = block + (done + at) as u64;
                        if sum_of(disk, number, bytes) != known[done + at] {
                            if planted::is(Bug::BadBlockAsZeroes) {
                                bytes.fill(0);
                                continue;
                            }
                            return Err(damaged_block(disk, number));
                        }
                    }
                }
                done += run;
            }
            block += known.len() as u64;
        }
        Ok(())
    }

    /// Writes blocks that `redo` holds, durably from there on: after a crash they are written again.
    pub fn write(&self, blocks: &Blocks) -> Result<(), ReplicaError> {
        for (&(disk, block), bytes) in blocks {
            let (_, image, sums) = self.disk(disk)?;
            let sum = sum_of(disk, block, bytes);
            let written = if sum == 0 {
                image.punch(block * REGION_BYTES, bytes.len() as u64)
            } else {
                image.write_at(block * REGION_BYTES, &[bytes])
            };
            written
                .and_then(|()| sums.write_at(block * 8, &[&sum.to_le_bytes()]))
                .map_err(|error| ReplicaError::io(&format!("base/{disk}"), error))?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<(), ReplicaError> {
        if planted::is(Bug::BaseNotSynced) {
            return Ok(());
        }
        for (spec, image, sums) in &self.disks {
            image
                .sync()
                .and_then(|()| sums.sync())
                .map_err(|error| ReplicaError::io(&format!("base/{}", spec.index), error))?;
        }
        Ok(())
    }

    /// After a crash: does a whole redo again, forgets a torn one, and one that leads to where the base was
    /// long ago. Returns where a whole one leads.
    pub fn redo(&self, medium: &dyn Medium, base: Sequence) -> Result<Option<Sequence>, ReplicaError> {
        let Some((to, blocks)) = read_redo(medium, &self.disks)?.filter(|(to, _)| *to >= base) else {
            return Ok(None);
        };
        // The process that wrote it may have died over its sync: durable before the base is touched.
        write_redo_again(medium).map_err(|error| ReplicaError::io(REDO, error))?;
        self.write(&blocks)?;
        self.sync()?;
        Ok(Some(to))
    }

    /// The fold is on record in the manifest: its redo is no longer needed.
    pub fn forget_redo(medium: &dyn Medium) -> Result<(), ReplicaError> {
        medium
            .remove(REDO)
            .and_then(|()| medium.sync_folder("base"))
            .map_err(|error| ReplicaError::io(REDO, error))
    }
}

fn damaged_block(disk: DiskIndex, block: u64) -> ReplicaError {
    let start = block * REGION_BYTES;
    ReplicaError::Damaged {
        file: format!("base/{disk}.img"),
        reason: format!(
            "block {block} (bytes {start} and on) does not match its checksum in base/{disk}.sum"
        ),
    }
}

/// Puts a fold on record: from here on it happens, whatever comes between.
pub fn write_redo(medium: &dyn Medium, to: Sequence, blocks: &Blocks) -> Result<(), ReplicaError> {
    if planted::is(Bug::NoRedo) {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(REDO_HEADER + blocks.len() * REDO_ENTRY + 8);
    bytes.extend_from_slice(REDO_MAGIC);
    bytes.extend_from_slice(&to.0.to_le_bytes());
    bytes.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    for (&(disk, block), content) in blocks {
        bytes.extend_from_slice(&disk.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 6]);
        bytes.extend_from_slice(&block.to_le_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + BLOCK - content.len(), 0);
    }
    let sum = xxh3_64(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    let write = || {
        let file = medium.open(REDO, true)?;
        file.set_len(0)?;
        file.write_at(0, &[&bytes])?;
        file.sync()?;
        medium.sync_folder("base")
    };
    write().map_err(|error| ReplicaError::io(REDO, error))
}

/// Writes a redo over itself. It is never shorter on the way: it may be all that knows what the base should be.
fn write_redo_again(medium: &dyn Medium) -> std::io::Result<()> {
    let file = medium.open(REDO, false)?;
    let mut bytes = vec![0; file.len()? as usize];
    file.read_at(0, &mut bytes)?;
    file.write_at(0, &[&bytes])?;
    file.sync()?;
    medium.sync_folder("base")
}

fn read_redo(medium: &dyn Medium, disks: &[Image]) -> Result<Option<(Sequence, Blocks)>, ReplicaError> {
    let io = |error| ReplicaError::io(REDO, error);
    let file = match medium.open(REDO, false) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let length = file.len().map_err(io)? as usize;
    // One fold is bounded; anything longer is no redo of ours.
    if !(REDO_HEADER + 8..=1 << 30).contains(&length) {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    file.read_at(0, &mut bytes).map_err(io)?;
    let (body, sum) = bytes.split_at(length - 8);
    if &body[..8] != REDO_MAGIC || xxh3_64(body).to_le_bytes() != sum {
        return Ok(None);
    }
    let to = u64::from_le_bytes(body[8..16].try_into().unwrap_or_default());
    let count = u32::from_le_bytes(body[16..20].try_into().unwrap_or_default()) as usize;
    if body.len() != REDO_HEADER + count * REDO_ENTRY {
        return Ok(None);
    }
    let mut blocks = Blocks::new();
    for entry in body[REDO_HEADER..].chunks_exact(REDO_ENTRY) {
        let disk = DiskIndex(u16::from_le_bytes([entry[0], entry[1]]));
        let block = u64::from_le_bytes(entry[8..16].try_into().unwrap_or_default());
        let Some((spec, ..)) = disks.iter().find(|(spec, ..)| spec.index == disk) else { return Ok(None) };
        let Some(left) = spec.size.checked_sub(block.saturating_mul(REGION_BYTES)).filter(|left| *left > 0)
        else {
            return Ok(None);
        };
        blocks.insert((disk, block), entry[16..16 + left.min(REGION_BYTES) as usize].to_vec());
    }
    Ok(Some((Sequence(to), blocks)))
}
