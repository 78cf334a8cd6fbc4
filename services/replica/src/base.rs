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
use crate::store::ReplicaError;
use continuum_model::units::{DiskIndex, REGION_BYTES, Sequence};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const BLOCK: usize = REGION_BYTES as usize;
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
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    // 0 means zeroes; a sum that happens to be 0 is told as 1.
    xxh3_64_with_seed(bytes, block.rotate_left(16) ^ u64::from(disk.0)).max(1)
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

    /// Whether a block is all zeroes, by its sum alone.
    pub fn is_zero(&self, disk: DiskIndex, block: u64) -> Result<bool, ReplicaError> {
        let (_, _, sums) = self.disk(disk)?;
        let mut sum = [0; 8];
        sums.read_at(block * 8, &mut sum)
            .map_err(|error| ReplicaError::io(&format!("base/{disk}.sum"), error))?;
        Ok(sum == [0; 8])
    }

    /// Reads and verifies one block into `out` (its full length; the last may be shorter).
    pub fn read_block(&self, disk: DiskIndex, block: u64, out: &mut Vec<u8>) -> Result<(), ReplicaError> {
        let (spec, image, sums) = self.disk(disk)?;
        let start = block * REGION_BYTES;
        out.clear();
        out.resize((spec.size - start).min(REGION_BYTES) as usize, 0);
        let mut sum = [0; 8];
        sums.read_at(block * 8, &mut sum)
            .map_err(|error| ReplicaError::io(&format!("base/{disk}.sum"), error))?;
        let sum = u64::from_le_bytes(sum);
        if sum == 0 {
            return Ok(());
        }
        image.read_at(start, out).map_err(|error| ReplicaError::io(&format!("base/{disk}.img"), error))?;
        if sum_of(disk, block, out) != sum {
            return Err(ReplicaError::Damaged {
                file: format!("base/{disk}.img"),
                reason: format!("block {block} (bytes {start} and on) does not match its checksum"),
            });
        }
        Ok(())
    }

    /// Takes blocks over, so that a crash leaves all or none of them. Called again with the same, it changes nothing.
    pub fn apply(&self, medium: &dyn Medium, to: Sequence, blocks: &Blocks) -> Result<(), ReplicaError> {
        write_redo(medium, to, blocks)?;
        self.write(blocks)
    }

    fn write(&self, blocks: &Blocks) -> Result<(), ReplicaError> {
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
        for (spec, image, sums) in &self.disks {
            image
                .sync()
                .and_then(|()| sums.sync())
                .map_err(|error| ReplicaError::io(&format!("base/{}", spec.index), error))?;
        }
        Ok(())
    }

    /// After a crash: does a whole redo again, forgets a torn one. Returns where a whole one leads.
    pub fn redo(&self, medium: &dyn Medium) -> Result<Option<Sequence>, ReplicaError> {
        let Some((to, blocks)) = read_redo(medium, &self.disks)? else { return Ok(None) };
        self.write(&blocks)?;
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

fn write_redo(medium: &dyn Medium, to: Sequence, blocks: &Blocks) -> Result<(), ReplicaError> {
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
