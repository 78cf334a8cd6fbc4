//! Every disk of a machine as of one position. Read only; verified on every read.

use crate::extents::{ExtentMap, Run, overlapping};
use crate::manifest::DiskSpec;
use crate::store::{Core, Entry, ReplicaError};
use continuum_model::digest::{BlockSum, Digest, DiskDigest};
use continuum_model::feed::frame::RowKind;
use continuum_model::units::{DiskIndex, FrameNumber, REGION_BYTES};
use std::sync::Arc;

/// Where a run of a view comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A record's data in a frame's payload.
    Frame {
        /// Which frame.
        number: FrameNumber,
        /// Where the record's data starts.
        data_at: u32,
    },
    /// Zeroes.
    Zero,
}

/// Disks as of a position. While one is open nothing is folded.
pub struct View {
    core: Arc<Core>,
    runs: Vec<Vec<Run<Source>>>,
}

impl View {
    pub(crate) fn new<'a>(core: Arc<Core>, entries: impl Iterator<Item = &'a Entry>) -> Self {
        let runs = Self::runs_of(&core.disks, entries);
        Self { core, runs }
    }

    /// The newest source of every range, for each disk in the order of the store's list.
    pub(crate) fn runs_of<'a>(
        disks: &[DiskSpec],
        entries: impl Iterator<Item = &'a Entry>,
    ) -> Vec<Vec<Run<Source>>> {
        let mut maps: Vec<ExtentMap<Source>> = disks.iter().map(|_| ExtentMap::default()).collect();
        for entry in entries {
            let source = match entry.kind {
                RowKind::Write => Source::Frame { number: entry.frame, data_at: entry.data_at },
                RowKind::Zero => Source::Zero,
                RowKind::Barrier | RowKind::Break => continue,
            };
            if let Some(at) = disks.iter().position(|disk| disk.index == entry.disk) {
                maps[at].insert(entry.offset, entry.offset + u64::from(entry.length), source);
            }
        }
        maps.into_iter().map(ExtentMap::flatten).collect()
    }

    /// The disks it has.
    pub fn disks(&self) -> &[DiskSpec] {
        &self.core.disks
    }

    fn place(&self, disk: DiskIndex) -> Result<usize, ReplicaError> {
        self.core.disks.iter().position(|spec| spec.index == disk).ok_or(ReplicaError::NoDisk(disk))
    }

    /// Fills `out` from `offset` of a disk.
    ///
    /// Errors: a range outside the disk; damage, in which case nothing unverified is returned.
    pub fn read_at(&self, disk: DiskIndex, offset: u64, out: &mut [u8]) -> Result<(), ReplicaError> {
        let at = self.place(disk)?;
        let size = self.core.disks[at].size;
        let end = offset.saturating_add(out.len() as u64);
        if end > size {
            return Err(ReplicaError::Outside { disk, start: offset, end, size });
        }
        let mut done = offset;
        for run in overlapping(&self.runs[at], offset, end) {
            self.read_base(disk, done, &mut out[(done - offset) as usize..(run.start - offset) as usize])?;
            self.core.fill(&run, &mut out[(run.start - offset) as usize..(run.end - offset) as usize])?;
            done = run.end;
        }
        self.read_base(disk, done, &mut out[(done - offset) as usize..])
    }

    fn read_base(&self, disk: DiskIndex, mut offset: u64, mut out: &mut [u8]) -> Result<(), ReplicaError> {
        let mut content = Vec::new();
        while !out.is_empty() {
            let block = offset / REGION_BYTES;
            let within = (offset - block * REGION_BYTES) as usize;
            let length = out.len().min(REGION_BYTES as usize - within);
            let (part, rest) = out.split_at_mut(length);
            let base = self.core.base();
            if base.is_zero(disk, block)? {
                part.fill(0);
            } else {
                base.read_block(disk, block, &mut content)?;
                part.copy_from_slice(&content[within..within + length]);
            }
            offset += length as u64;
            out = rest;
        }
        Ok(())
    }

    /// Runs that hold data (true) or read as zeroes (false), covering the range.
    pub fn extents(
        &self,
        disk: DiskIndex,
        offset: u64,
        length: u64,
    ) -> Result<Vec<(u64, bool)>, ReplicaError> {
        let at = self.place(disk)?;
        let end = offset + length;
        let mut out: Vec<(u64, bool)> = Vec::new();
        let mut push = |length: u64, data: bool| match out.last_mut() {
            Some((last, same)) if *same == data => *last += length,
            _ if length > 0 => out.push((length, data)),
            _ => {}
        };
        let base = |from: u64, to: u64, push: &mut dyn FnMut(u64, bool)| -> Result<(), ReplicaError> {
            let mut from = from;
            while from < to {
                let block = from / REGION_BYTES;
                let stop = ((block + 1) * REGION_BYTES).min(to);
                push(stop - from, !self.core.base().is_zero(disk, block)?);
                from = stop;
            }
            Ok(())
        };
        let mut done = offset;
        for run in overlapping(&self.runs[at], offset, end) {
            base(done, run.start, &mut push)?;
            push(run.end - run.start, run.source != Source::Zero);
            done = run.end;
        }
        base(done, end, &mut push)?;
        Ok(out)
    }

    /// The digest of a disk. Blocks that are known to be zero cost no read.
    pub fn digest(&self, disk: DiskIndex) -> Result<Digest, ReplicaError> {
        let size = self.core.disks[self.place(disk)?].size;
        let mut digest = DiskDigest::new(size);
        let mut block = vec![0; REGION_BYTES as usize];
        for number in 0..size.div_ceil(REGION_BYTES) {
            let start = number * REGION_BYTES;
            let length = (size - start).min(REGION_BYTES) as usize;
            if length as u64 == REGION_BYTES
                && !self.extents(disk, start, REGION_BYTES)?.iter().any(|(_, data)| *data)
            {
                digest.push(BlockSum::of_zeroes());
                continue;
            }
            self.read_at(disk, start, &mut block[..length])?;
            digest.push(BlockSum::of(&block[..length]));
        }
        Ok(digest.finish())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.core.view_closed();
    }
}
