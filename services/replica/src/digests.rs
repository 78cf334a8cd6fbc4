//! The sums of the newest state, kept, so that comparing reads nothing that did not change.
//!
//! ```text
//! digests/<disk>
//! 0      magic "CTMSUMS1" · disk id [16] · size u64 · frame u64 · its digest u128 · its last record u64
//! 64     sum u64 (xxh3-64 of bytes 0..64), zero … 4096
//! 4096   a node for every 256 blocks: its sum u128 · check u64 (xxh3-64 of the sum, seeded with disk and node);
//!        all zero: not known. Padded to 4096
//! then   256 block sums (u128) for every node
//! ```
//!
//! The header names a **position**, the end of a frame by its place in the chain. What it says: a node that is known,
//! and the block sums under it, are of the state at that position, but for blocks that a later record touches.
//! Bringing the sums forward reads the blocks that records touched since, writes their sums, syncs, and only then
//! moves the header. So a crash in between does no harm: every block whose sum may be half written is one that a
//! record after the header's position touches, and those are read again. Sums of a block are written
//! even where they are equal: a process before may have failed to make them durable.
//!
//! Nothing here is believed that cannot be checked: another history at the position, a base that is beyond it,
//! another size, a damaged header, and all is summed anew; a damaged node or block sum, and its 256 blocks are. What
//! cannot be read is not summed, and its node is not known. Every sum is of data that passed its checksum.
//!
//! In memory lie the nodes (1 MiB for a terabyte of disk) and a bit for every block that changed since it was summed.
//!
//! Locks: `sums` is held by whoever reads or brings forward; `changed` for moments, before the locks of `store`.

use crate::manifest::DiskSpec;
use crate::medium::{Medium, MediumFile};
use crate::store::{Core, Entry, Index, ReplicaError, Store};
use crate::view::View;
use continuum_model::bits::Bits;
use continuum_model::digest::{BlockSum, Digest, FAN_OUT, NODES_MAX, Nodes, digest_of, nodes_at};
use continuum_model::feed::frame::RowKind;
use continuum_model::units::{Bytes, DiskIndex, FrameNumber, REGION_BYTES, Sequence};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const FOLDER: &str = "digests";
const MAGIC: &[u8; 8] = b"CTMSUMS1";
const HEADER: usize = 72;
const NODES_AT: u64 = 4096;
const NODE: usize = 24;
/// The block sums of one node.
const PAGE: usize = FAN_OUT as usize * 16;
/// Blocks that are read at once.
const RUN: u64 = 16;
/// What a node costs of a slice, however little of it is read.
const NODE_COST: u64 = 4096;
/// Blocks of a disk that are told to be damaged; the next are told when these are whole again.
const UNREADABLE_MAX: usize = 1024;
/// The highest level that is told: one node of it stands for a terabyte.
const LEVEL_MAX: u8 = 3;

/// What a slice did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digested {
    /// Bytes that were read, by disk.
    pub bytes: Vec<u64>,
    /// Everything that can be read is summed.
    pub done: bool,
    /// Blocks that could not be read: they are damaged, and have no sum.
    pub unreadable: u64,
}

/// A disk's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestAt {
    /// Which disk.
    pub disk: DiskIndex,
    /// Its digest.
    pub digest: Digest,
    /// What had to be read for it.
    pub bytes_read: u64,
}

/// Sums of a stretch of nodes, and of which state they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SumsAt {
    /// The state behind this frame.
    pub frame: FrameNumber,
    /// That frame's digest.
    pub digest: u128,
    /// [`BlockSum::UNKNOWN`] where there is none.
    pub sums: Vec<BlockSum>,
}

/// The end of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    frame: FrameNumber,
    digest: u128,
    sequence: Sequence,
}

#[derive(Default)]
pub(crate) struct Digests {
    /// `None`: not read since the start, or not to be believed any more.
    sums: Mutex<Option<Sums>>,
    changed: Mutex<Changed>,
}

/// Which blocks have no sum of the state at `to`, by place of the disk.
#[derive(Default)]
struct Changed {
    /// `None`: nobody keeps track.
    to: Option<Sequence>,
    blocks: Vec<Bits>,
    /// What of the newest state could not be read when it was last tried.
    unreadable: Vec<Unreadable>,
}

/// Blocks of the newest state that are damaged: they are whole again once the source sends them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Which disk.
    pub disk: DiskIndex,
    /// Which blocks.
    pub blocks: Range<u64>,
}

struct Sums {
    /// What the sums that are known are of.
    at: Position,
    disks: Vec<DiskSums>,
    /// Something was written since the headers were.
    unsaved: bool,
}

struct DiskSums {
    spec: DiskSpec,
    name: String,
    file: Box<dyn MediumFile>,
    /// The nodes of the block sums as they stand in the file, known or not.
    nodes: Vec<BlockSum>,
    /// Nodes that the file tells as known.
    told: Bits,
    /// Where the next slice begins.
    cursor: u64,
    /// Blocks that could not be read when it was last tried.
    unreadable: BTreeSet<u64>,
}

impl Digests {
    fn changed(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn sums(&self) -> MutexGuard<'_, Option<Sums>> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changed {
    /// Takes note of every record since it did so last. History that went before that is not known any more.
    fn note(&mut self, index: &Index, disks: &[DiskSpec]) {
        let Some(to) = self.to else { return };
        if index.manifest.base_sequence > to {
            *self = Self::default();
            return;
        }
        let first = index.entries.seek(|entry| entry.sequence <= to);
        for entry in index.entries.after(first) {
            touch(&mut self.blocks, disks, &entry);
        }
        self.to = Some(index.last.sequence);
    }
}

/// Sets the blocks that a record touches.
fn touch(blocks: &mut [Bits], disks: &[DiskSpec], entry: &Entry) {
    if !matches!(entry.kind, RowKind::Write | RowKind::Zero) || entry.length == 0 {
        return;
    }
    let Some(place) = disks.iter().position(|spec| spec.index == entry.disk) else { return };
    let last = (entry.offset + u64::from(entry.length) - 1) / REGION_BYTES;
    for block in entry.offset / REGION_BYTES..=last {
        blocks[place].set(block);
    }
}

fn blocks_of(disk: &DiskSpec) -> u64 {
    disk.size.div_ceil(REGION_BYTES)
}

fn none_of(disks: &[DiskSpec]) -> Vec<Bits> {
    disks.iter().map(|disk| Bits::new(blocks_of(disk))).collect()
}

impl Store {
    /// Brings the sums of the newest state forward, reading at most `bytes_max` and the rest of a node
    /// (16 MiB). For a background task.
    ///
    /// Errors: the files of sums could not be used; the next call reads back what of them can be believed.
    pub fn tend_digests(&self, bytes_max: Bytes) -> Result<Digested, ReplicaError> {
        let mut sums = self.core.digests.sums();
        let done = self.bring_forward(&mut sums, bytes_max.0, None);
        self.saved(&mut sums, done)
    }

    /// The digests of all disks as of a position that may be brought up. Reads what changed since it was summed, and
    /// what changed after the position.
    ///
    /// Errors: no such position; damage where something had to be read.
    pub fn digest_at(&self, position: Sequence) -> Result<Vec<DigestAt>, ReplicaError> {
        let core = &*self.core;
        let view = self.open_view(position)?;
        let mut sums = core.digests.sums();
        let brought = self.bring_forward(&mut sums, u64::MAX, None);
        let brought = match self.saved(&mut sums, brought) {
            Ok(brought) => brought,
            Err(error) => {
                tracing::warn!(machine = %core.machine, %error, "sums cannot be kept: the whole replica is read");
                let read = |disk: &DiskSpec| {
                    let digest = view.digest(disk.index)?;
                    Ok(DigestAt { disk: disk.index, digest, bytes_read: disk.size })
                };
                return core.disks.iter().map(read).collect();
            }
        };
        // Whatever the sums are of: it differs from the position only by records after that, and by what has no sum.
        let mut other = none_of(&core.disks);
        let tracked = {
            let changed = core.digests.changed();
            let index = core.index();
            let first = index.entries.seek(|entry| entry.sequence <= position);
            index.entries.after(first).for_each(|entry| touch(&mut other, &core.disks, &entry));
            for (other, changed) in other.iter_mut().zip(&changed.blocks) {
                set_of(changed).for_each(|block| {
                    other.set(block);
                });
            }
            changed.to.is_some()
        };
        let mut digests = Vec::new();
        for (place, disk) in core.disks.iter().enumerate() {
            let kept = sums.as_ref().filter(|_| tracked).map(|sums| &sums.disks[place]);
            let mut nodes = kept.map_or_else(
                || vec![BlockSum::UNKNOWN; nodes_at(blocks_of(disk), 1) as usize],
                |kept| kept.nodes.clone(),
            );
            if kept.is_none() {
                other[place].set_all();
            }
            let mut bytes_read = brought.bytes.get(place).copied().unwrap_or(0);
            let mut at = 0;
            while let Some(block) = other[place].next_one(at) {
                let node = block / FAN_OUT;
                let mut page = kept.map_or(Ok(None), |kept| kept.page(node))?;
                if page.is_none() {
                    let range = blocks_under(disk, node);
                    range.clone().for_each(|block| {
                        other[place].set(block);
                    });
                    page = Some(vec![BlockSum::UNKNOWN; (range.end - range.start) as usize]);
                }
                let mut page = page.unwrap_or_default();
                let read = sum_blocks(&view, disk, node, &mut other[place], &mut page)?;
                bytes_read += read.bytes;
                if let Some(error) = read.damage {
                    return Err(error);
                }
                nodes[node as usize] = BlockSum::above(&page);
                at = (node + 1) * FAN_OUT;
            }
            digests.push(DigestAt { disk: disk.index, digest: digest_of(disk.size, &nodes), bytes_read });
        }
        Ok(digests)
    }

    /// What of the newest state could not be read when its sums were last brought forward; a first part of much.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.core.digests.changed().unreadable.clone()
    }

    /// Sums of the newest state, whether or not that may be brought up. Reads at most about `bytes_max` of what
    /// changed since it was summed; what remains has no sum.
    ///
    /// Errors: a stretch that the disk does not have, or a longer one than [`NODES_MAX`]; the files of sums could not
    /// be used.
    pub fn sums(&self, disk: DiskIndex, nodes: &Nodes, bytes_max: Bytes) -> Result<SumsAt, ReplicaError> {
        let core = &*self.core;
        let place =
            core.disks.iter().position(|spec| spec.index == disk).ok_or(ReplicaError::NoDisk(disk))?;
        let spec = core.disks[place];
        let (start, end) = (nodes.range.start, nodes.range.end);
        if nodes.level > LEVEL_MAX
            || start > end
            || end - start > NODES_MAX
            || end > nodes_at(blocks_of(&spec), nodes.level)
        {
            return Err(ReplicaError::Outside { disk, start, end, size: spec.size });
        }
        let mut sums = core.digests.sums();
        let wanted = start.saturating_mul(FAN_OUT.pow(nodes.level.into()));
        if let Err(error) = self.bring_forward(&mut sums, bytes_max.0, Some((place, wanted))) {
            return self.saved(&mut sums, Err(error)).map(|_: Digested| nothing(start, end));
        }
        let mut changed = core.digests.changed();
        let (Some(sums), Some(blocks)) = (sums.as_mut(), changed.blocks.get_mut(place)) else {
            return Ok(nothing(start, end));
        };
        let kept = &sums.disks[place];
        let mut out = Vec::with_capacity((end - start) as usize);
        if nodes.level == 0 {
            let mut at = start;
            while at < end {
                let under = blocks_under(&spec, at / FAN_OUT);
                let stop = under.end.min(end);
                match kept.page(at / FAN_OUT)? {
                    Some(page) => out.extend((at..stop).map(|block| {
                        if blocks.get(block) {
                            BlockSum::UNKNOWN
                        } else {
                            page[(block - under.start) as usize]
                        }
                    })),
                    None => {
                        under.for_each(|block| {
                            blocks.set(block);
                        });
                        out.extend((at..stop).map(|_| BlockSum::UNKNOWN));
                    }
                }
                at = stop;
            }
        } else {
            out.extend((start..end).map(|node| kept.above(nodes.level, node, blocks)));
        }
        Ok(SumsAt { frame: sums.at.frame, digest: sums.at.digest, sums: out })
    }

    /// Reads back what can be believed, where that was not done; then sums what changed: from a block of a disk on
    /// that somebody waits for, else from where the last slice ended.
    fn bring_forward(
        &self,
        kept: &mut Option<Sums>,
        bytes_max: u64,
        wanted: Option<(usize, u64)>,
    ) -> Result<Digested, ReplicaError> {
        let core = &*self.core;
        let mut digested = Digested { bytes: vec![0; core.disks.len()], done: true, unreadable: 0 };
        let (view, mut work) = {
            let mut changed = core.digests.changed();
            let (view, at) = {
                let mut leases = core.leases();
                let index = core.index();
                let last = index.last;
                if last.number == FrameNumber(0) {
                    return Ok(digested);
                }
                // The newest state is never folded away, and from here on this one is not.
                *leases.open.entry(last.sequence).or_default() += 1;
                changed.note(&index, &core.disks);
                let at = Position { frame: last.number, digest: last.digest, sequence: last.sequence };
                (View::new(self.core.clone(), last.sequence), at)
            };
            if changed.to.is_none() || kept.is_none() {
                *kept = None;
                let (loaded, blocks) = core.load_sums(at)?;
                *kept = Some(loaded);
                *changed = Changed { to: Some(at.sequence), blocks, ..Changed::default() };
            }
            if let Some(kept) = kept.as_mut()
                && kept.at != at
            {
                (kept.at, kept.unsaved) = (at, true);
            }
            (view, std::mem::replace(&mut changed.blocks, none_of(&core.disks)))
        };
        let Some(sums) = kept.as_mut() else { return Ok(digested) };
        let mut left = bytes_max;
        let mut result = Ok(());
        if let Some((place, block)) = wanted {
            sums.disks[place].cursor = block;
        }
        let first = wanted.map_or(0, |(place, _)| place);
        for place in (first..sums.disks.len()).chain(0..first) {
            match sums.disks[place].sum_slice(&view, &mut work[place], &mut left) {
                Ok((bytes, wrote)) => {
                    digested.bytes[place] = bytes;
                    sums.unsaved |= wrote;
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let remain: u64 = work.iter().map(Bits::ones).sum();
        // A slice that was not used up left only what cannot be read.
        (digested.done, digested.unreadable) = (left > 0, if left > 0 { remain } else { 0 });
        let mut changed = core.digests.changed();
        for (blocks, work) in changed.blocks.iter_mut().zip(&work) {
            set_of(work).for_each(|block| {
                blocks.set(block);
            });
        }
        changed.unreadable = unreadable_of(&sums.disks);
        result.map(|()| digested)
    }

    /// Makes what was brought forward durable; after an error nothing in memory is believed.
    fn saved(
        &self,
        kept: &mut Option<Sums>,
        done: Result<Digested, ReplicaError>,
    ) -> Result<Digested, ReplicaError> {
        let core = &*self.core;
        let saved = done.and_then(|digested| {
            let Some(sums) = kept.as_mut().filter(|sums| sums.unsaved) else { return Ok(digested) };
            {
                let changed = core.digests.changed();
                for (disk, blocks) in sums.disks.iter_mut().zip(&changed.blocks) {
                    disk.untell(blocks)?;
                }
            }
            for disk in &sums.disks {
                disk.save(sums.at)?;
            }
            sums.unsaved = false;
            Ok(digested)
        });
        if saved.is_err() {
            *kept = None;
            *core.digests.changed() = Changed::default();
        }
        saved
    }
}

fn unreadable_of(disks: &[DiskSums]) -> Vec<Unreadable> {
    let mut all: Vec<Unreadable> = Vec::new();
    for disk in disks {
        for block in &disk.unreadable {
            match all.last_mut() {
                Some(last) if last.disk == disk.spec.index && last.blocks.end == *block => {
                    last.blocks.end += 1
                }
                _ => all.push(Unreadable { disk: disk.spec.index, blocks: *block..block + 1 }),
            }
        }
    }
    all
}

fn nothing(start: u64, end: u64) -> SumsAt {
    SumsAt { frame: FrameNumber(0), digest: 0, sums: vec![BlockSum::UNKNOWN; (end - start) as usize] }
}

fn set_of(bits: &Bits) -> impl Iterator<Item = u64> {
    std::iter::successors(bits.next_one(0), |at| bits.next_one(at + 1))
}

fn blocks_under(disk: &DiskSpec, node: u64) -> Range<u64> {
    node * FAN_OUT..((node + 1) * FAN_OUT).min(blocks_of(disk))
}

impl Core {
    /// Before history is forgotten: which blocks it changed is not.
    pub(crate) fn note_changes(&self) {
        let mut changed = self.digests.changed();
        let index = self.index();
        changed.note(&index, &self.disks);
    }

    /// What lies in a range turned out not to be what was summed: it is read again, and has no sum if it cannot be.
    pub(crate) fn forget_sums(&self, disk: DiskIndex, start: u64, end: u64) {
        let Some(place) = self.disks.iter().position(|spec| spec.index == disk) else { return };
        let end = end.min(self.disks[place].size);
        if let Some(blocks) = self.digests.changed().blocks.get_mut(place)
            && start < end
        {
            for block in start / REGION_BYTES..=(end - 1) / REGION_BYTES {
                blocks.set(block);
            }
        }
    }

    /// Reads the files of sums. Returns them, and the blocks that have no sum of the newest state.
    fn load_sums(&self, at: Position) -> Result<(Sums, Vec<Bits>), ReplicaError> {
        let io = |error| ReplicaError::io(FOLDER, error);
        self.medium.make_folder(FOLDER).map_err(io)?;
        let mut blocks = none_of(&self.disks);
        let mut disks = Vec::new();
        for (place, spec) in self.disks.iter().enumerate() {
            let (disk, position) = DiskSums::open(&*self.medium, spec)?;
            let index = self.index();
            let position = position.filter(|position| index.has(*position));
            let (mut disk, position) = match position {
                Some(position) => (disk, position),
                None => {
                    drop(index);
                    disk.clear()?;
                    blocks[place].set_all();
                    disks.push(disk);
                    continue;
                }
            };
            let first = index.entries.seek(|entry| entry.sequence <= position.sequence);
            let later = index.entries.after(first);
            later
                .filter(|entry| entry.disk == spec.index)
                .for_each(|entry| touch(&mut blocks, &self.disks, &entry));
            drop(index);
            disk.read_nodes()?;
            for node in 0..disk.told.len() {
                if !disk.told.get(node) {
                    blocks_under(spec, node).for_each(|block| {
                        blocks[place].set(block);
                    });
                }
            }
            disks.push(disk);
        }
        self.medium.sync_folder(FOLDER).map_err(io)?;
        Ok((Sums { at, disks, unsaved: true }, blocks))
    }
}

impl Index {
    /// Whether this store's history went through that position, and what came after it is still known.
    fn has(&self, position: Position) -> bool {
        let manifest = &self.manifest;
        if position.frame == manifest.base_frame {
            return position.sequence == manifest.base_sequence
                && manifest.base_digest == format!("{:032x}", position.digest);
        }
        let place = self.frames.partition_point(|frame| frame.chain < position.frame);
        self.frames.get(place).is_some_and(|frame| {
            let (number, digest) = self.chain_of(frame);
            (number, digest, frame.last.0) == (position.frame, position.digest, position.sequence)
        })
    }
}

impl DiskSums {
    /// Opens the file, and tells what its header says, where that can be believed.
    fn open(medium: &dyn Medium, spec: &DiskSpec) -> Result<(Self, Option<Position>), ReplicaError> {
        let name = format!("{FOLDER}/{}", spec.index);
        let count = nodes_at(blocks_of(spec), 1);
        let read = || {
            let file = medium.open(&name, true)?;
            let mut header = [0; HEADER];
            let whole = file.len()? == length_of(spec);
            if whole {
                file.read_at(0, &mut header)?;
            }
            Ok((file, whole.then(|| position_in(&header, spec)).flatten()))
        };
        let (file, position) = read().map_err(|error| ReplicaError::io(&name, error))?;
        let nodes = vec![BlockSum::UNKNOWN; count as usize];
        Ok((
            Self {
                spec: *spec,
                name,
                file,
                nodes,
                told: Bits::new(count),
                cursor: 0,
                unreadable: BTreeSet::new(),
            },
            position,
        ))
    }

    /// Nothing in the file is believed.
    fn clear(&self) -> Result<(), ReplicaError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.set_len(length_of(&self.spec)))
            .map_err(|error| ReplicaError::io(&self.name, error))
    }

    fn read_nodes(&mut self) -> Result<(), ReplicaError> {
        let mut bytes = vec![0; self.nodes.len() * NODE];
        self.file.read_at(NODES_AT, &mut bytes).map_err(|error| ReplicaError::io(&self.name, error))?;
        for (place, bytes) in bytes.chunks_exact(NODE).enumerate() {
            let (sum, check) = bytes.split_at(16);
            if check == check_of(&self.spec, place as u64, sum).to_le_bytes() {
                self.nodes[place] = BlockSum(u128_of(sum));
                self.told.set(place as u64);
            }
        }
        Ok(())
    }

    /// The block sums under a node, where they are what the node says.
    fn page(&self, node: u64) -> Result<Option<Vec<BlockSum>>, ReplicaError> {
        let under = blocks_under(&self.spec, node);
        let mut bytes = vec![0; (under.end - under.start) as usize * 16];
        self.file
            .read_at(page_at(&self.spec, node), &mut bytes)
            .map_err(|error| ReplicaError::io(&self.name, error))?;
        let page: Vec<BlockSum> = bytes.chunks_exact(16).map(|sum| BlockSum(u128_of(sum))).collect();
        Ok((BlockSum::above(&page) == self.nodes[node as usize]).then_some(page))
    }

    /// A node of any level above the blocks; not known where anything below it is not.
    fn above(&self, level: u8, node: u64, changed: &Bits) -> BlockSum {
        let width = FAN_OUT.pow(u32::from(level));
        let end = ((node + 1) * width).min(changed.len());
        if changed.next_one(node * width).is_some_and(|block| block < end) {
            return BlockSum::UNKNOWN;
        }
        let mut nodes =
            self.nodes[(node * width / FAN_OUT) as usize..end.div_ceil(FAN_OUT) as usize].to_vec();
        for _ in 1..level {
            nodes = nodes.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
        }
        nodes.first().copied().unwrap_or_default()
    }

    /// Sums what is set in `work`, and unsets it. Returns the bytes that were read, and whether anything was written.
    fn sum_slice(
        &mut self,
        view: &View,
        work: &mut Bits,
        left: &mut u64,
    ) -> Result<(u64, bool), ReplicaError> {
        let (mut bytes, mut wrote) = (0, false);
        let begin = self.cursor / FAN_OUT * FAN_OUT;
        for (from, to) in [(begin, work.len()), (0, begin)] {
            let mut at = from;
            while let Some(block) = work.next_one(at).filter(|block| *block < to) {
                if *left == 0 {
                    self.cursor = block;
                    return Ok((bytes, wrote));
                }
                let node = block / FAN_OUT;
                let under = blocks_under(&self.spec, node);
                let all = under.clone().all(|block| work.get(block));
                let known = if all { None } else { self.page(node)? };
                let mut page = known.unwrap_or_else(|| {
                    under.clone().for_each(|block| {
                        work.set(block);
                    });
                    vec![BlockSum::UNKNOWN; (under.end - under.start) as usize]
                });
                let read = sum_blocks(view, &self.spec, node, work, &mut page)?;
                self.write(node, &page, work.next_one(under.start).is_none_or(|block| block >= under.end))?;
                wrote = true;
                for block in under.clone() {
                    if !work.get(block) {
                        self.unreadable.remove(&block);
                    } else if self.unreadable.len() < UNREADABLE_MAX {
                        self.unreadable.insert(block);
                    }
                }
                bytes += read.bytes;
                *left = left.saturating_sub(read.bytes + NODE_COST);
                at = under.end;
            }
        }
        Ok((bytes, wrote))
    }

    fn write(&mut self, node: u64, page: &[BlockSum], known: bool) -> Result<(), ReplicaError> {
        let sum = BlockSum::above(page);
        let bytes: Vec<u8> = page.iter().flat_map(|sum| sum.0.to_le_bytes()).collect();
        let entry = if known { entry_of(&self.spec, node, sum) } else { [0; NODE] };
        self.file
            .write_at(page_at(&self.spec, node), &[&bytes])
            .and_then(|()| self.file.write_at(NODES_AT + node * NODE as u64, &[&entry]))
            .map_err(|error| ReplicaError::io(&self.name, error))?;
        self.nodes[node as usize] = sum;
        if known {
            self.told.set(node)
        } else {
            self.told.clear(node)
        };
        Ok(())
    }

    /// Before the header moves: nodes over blocks that have no sum are not told as known.
    fn untell(&mut self, changed: &Bits) -> Result<(), ReplicaError> {
        let mut at = 0;
        while let Some(block) = changed.next_one(at) {
            let node = block / FAN_OUT;
            if self.told.clear(node) {
                self.file
                    .write_at(NODES_AT + node * NODE as u64, &[&[0; NODE]])
                    .map_err(|error| ReplicaError::io(&self.name, error))?;
            }
            at = (node + 1) * FAN_OUT;
        }
        Ok(())
    }

    /// Sums first, then the header that says of which state they are.
    fn save(&self, at: Position) -> Result<(), ReplicaError> {
        self.file
            .sync()
            .and_then(|()| self.file.write_at(0, &[&header_of(&self.spec, at)]))
            .and_then(|()| self.file.sync())
            .map_err(|error| ReplicaError::io(&self.name, error))
    }
}

struct Read {
    bytes: u64,
    damage: Option<ReplicaError>,
}

/// Sums the blocks of one node that are set in `work`, and unsets them. A damaged one stays set.
fn sum_blocks(
    view: &View,
    disk: &DiskSpec,
    node: u64,
    work: &mut Bits,
    page: &mut [BlockSum],
) -> Result<Read, ReplicaError> {
    let under = blocks_under(disk, node);
    let mut read = Read { bytes: 0, damage: None };
    let mut buffer = Vec::new();
    let mut at = under.start;
    while let Some((start, end)) = work.next_run(at, RUN).filter(|(start, _)| *start < under.end) {
        let end = end.min(under.end);
        let offset = start * REGION_BYTES;
        let length = (end * REGION_BYTES).min(disk.size) - offset;
        let out = (start - under.start) as usize..(end - under.start) as usize;
        let full = length == (end - start) * REGION_BYTES;
        if full && !view.extents(disk.index, offset, length)?.iter().any(|(_, data)| *data) {
            page[out].fill(BlockSum::of_zeroes());
            (start..end).for_each(|block| {
                work.clear(block);
            });
        } else {
            buffer.resize(length as usize, 0);
            match view.read_at(disk.index, offset, &mut buffer) {
                Ok(()) => {
                    for (sum, block) in page[out].iter_mut().zip(buffer.chunks(REGION_BYTES as usize)) {
                        *sum = BlockSum::of(block);
                    }
                    (start..end).for_each(|block| {
                        work.clear(block);
                    });
                    read.bytes += length;
                }
                Err(ReplicaError::Damaged { .. }) if end - start > 1 => {
                    // One of them is bad; which one is found out by reading each.
                    for block in start..end {
                        let one = block * REGION_BYTES;
                        let length = (disk.size - one).min(REGION_BYTES) as usize;
                        match view.read_at(disk.index, one, &mut buffer[..length]) {
                            Ok(()) => {
                                page[(block - under.start) as usize] = BlockSum::of(&buffer[..length]);
                                work.clear(block);
                                read.bytes += length as u64;
                            }
                            Err(error @ ReplicaError::Damaged { .. }) => read.damage = Some(error),
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error @ ReplicaError::Damaged { .. }) => read.damage = Some(error),
                Err(error) => return Err(error),
            }
        }
        at = end;
    }
    Ok(read)
}

fn u128_of(bytes: &[u8]) -> u128 {
    u128::from_le_bytes(bytes.try_into().unwrap_or_default())
}

fn leaves_at(disk: &DiskSpec) -> u64 {
    NODES_AT + (nodes_at(blocks_of(disk), 1) * NODE as u64).next_multiple_of(4096)
}

fn page_at(disk: &DiskSpec, node: u64) -> u64 {
    leaves_at(disk) + node * PAGE as u64
}

fn length_of(disk: &DiskSpec) -> u64 {
    page_at(disk, nodes_at(blocks_of(disk), 1))
}

fn check_of(disk: &DiskSpec, node: u64, sum: &[u8]) -> u64 {
    xxh3_64_with_seed(sum, node.rotate_left(16) ^ u64::from(disk.index.0))
}

fn entry_of(disk: &DiskSpec, node: u64, sum: BlockSum) -> [u8; NODE] {
    let mut entry = [0; NODE];
    entry[..16].copy_from_slice(&sum.0.to_le_bytes());
    let check = check_of(disk, node, &entry[..16]);
    entry[16..].copy_from_slice(&check.to_le_bytes());
    entry
}

fn header_of(disk: &DiskSpec, at: Position) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..24].copy_from_slice(disk.id.as_bytes());
    header[24..32].copy_from_slice(&disk.size.to_le_bytes());
    header[32..40].copy_from_slice(&at.frame.0.to_le_bytes());
    header[40..56].copy_from_slice(&at.digest.to_le_bytes());
    header[56..64].copy_from_slice(&at.sequence.0.to_le_bytes());
    let sum = xxh3_64(&header[..64]);
    header[64..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn position_in(header: &[u8; HEADER], disk: &DiskSpec) -> Option<Position> {
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let position = Position {
        frame: FrameNumber(long(32)),
        digest: u128_of(&header[40..56]),
        sequence: Sequence(long(56)),
    };
    // What of it is not the position is this disk's.
    (*header == header_of(disk, position)).then_some(position)
}
