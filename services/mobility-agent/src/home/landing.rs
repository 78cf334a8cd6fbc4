//! Frames of the reverse direction onto the machine's own disks.
//!
//! ```text
//! <dir>/home/state.json   how far they are, and whether they are a state of what runs there
//! <dir>/home/redo         the frames that are being applied: applied again after a crash
//!
//! a group of frames: redo (sync) ─► old blocks into the branch (sync) ─► disks (flush) ─► state (sync) ─► acknowledged
//! ```
//!
//! Invariants: whatever dies at whatever instant, after the next start the disks are at a frame's boundary; and no
//! block is overwritten before its old content is durable in the branch.

use super::branch::{About, Branch};
use continuum_capture::nbd::BlockDevice;
use continuum_model::digest::{BlockSum, FAN_OUT, Nodes, nodes_at};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::envelope::Codec;
use continuum_model::feed::{Change, Envelope, Frame, Legality};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use continuum_wire::channel::{Sums, Welcome};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Blocks that are read at once to be summed: 1 MiB.
const RUN: u64 = 16;

/// What stands in `state.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    view: String,
    branch: String,
    made: String,
    number: u64,
    /// 32 hexadecimal digits: JSON readers lose long numbers.
    digest: String,
    sequence: u64,
    newest_us: i64,
    legality: Legality,
    received_bytes: u64,
}

/// The disks that a machine left, while what it writes elsewhere lands on them.
pub(crate) struct Landing {
    dir: PathBuf,
    machine: MachineId,
    disks: Vec<Arc<dyn BlockDevice>>,
    state: State,
    branch: Branch,
    /// Sums of blocks; not known where they were not asked for, or changed since.
    sums: Vec<Vec<BlockSum>>,
}

/// How far a landing is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Landed {
    pub(crate) whole: bool,
    pub(crate) sequence: u64,
    pub(crate) newest_us: i64,
    pub(crate) received_bytes: u64,
    pub(crate) kept_bytes: u64,
    pub(crate) branch: String,
}

impl Landing {
    /// Opens what follows `view`, and finishes what a crash interrupted. Where something else was followed before, it
    /// begins anew: with a branch of its own, and as a receiver that nobody fed, so that all is compared first.
    pub(crate) fn open(
        dir: &Path,
        machine: MachineId,
        disks: Vec<Arc<dyn BlockDevice>>,
        view: &str,
        now: Timestamp,
        never_fed: u128,
    ) -> Result<Self, Fault> {
        let own = dir.join("home");
        std::fs::create_dir_all(&own).map_err(|error| local("its folder", &error))?;
        let found = std::fs::read(own.join("state.json")).ok();
        let found = found.and_then(|bytes| serde_json::from_slice::<State>(&bytes).ok());
        let goes_on = found.filter(|state| state.view == view);
        let fresh = goes_on.is_none();
        let state = goes_on.unwrap_or_else(|| State {
            view: view.to_owned(),
            // With a part of the view's name: a clock that went back makes no two of one name.
            branch: format!("{}-{}", now.to_string().replace([':', '.'], "-"), tail(view)),
            made: now.to_string(),
            // The frame of a source that never was: the sender doubts it, and compares.
            number: 1,
            digest: format!("{never_fed:032x}"),
            sequence: 0,
            newest_us: 0,
            legality: Legality::default(),
            received_bytes: 0,
        });
        let about = About {
            machine: machine.to_string(),
            view: state.view.clone(),
            made: state.made.clone(),
            sizes: disks.iter().map(|disk| disk.size()).collect(),
        };
        let branch = Branch::open(dir, &state.branch, &about).map_err(|error| local("the branch", &error))?;
        let sums = about.sizes.iter().map(|size| vec![BlockSum::UNKNOWN; blocks(*size) as usize]).collect();
        let mut landing = Self { dir: own, machine, disks, state, branch, sums };
        if fresh {
            // In this order: the frames of another time must not be taken for this one's.
            match std::fs::remove_file(landing.dir.join("redo")) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(local("redo", &error)),
                _ => {}
            }
            landing.store().map_err(|error| local("its state", &error))?;
        } else {
            landing.redo()?;
        }
        Ok(landing)
    }

    /// What it holds, as the sender is told.
    pub(crate) fn held(&self, epoch: Epoch) -> Welcome {
        Welcome {
            number: FrameNumber(self.state.number),
            digest: self.digest(),
            sequence: Sequence(self.state.sequence),
            newest: Timestamp::from_micros(self.state.newest_us),
            epoch,
        }
    }

    pub(crate) fn landed(&self) -> Landed {
        Landed {
            whole: self.state.legality.is_legal(),
            sequence: self.state.sequence,
            newest_us: self.state.newest_us,
            received_bytes: self.state.received_bytes,
            kept_bytes: self.branch.bytes(),
            branch: self.state.branch.clone(),
        }
    }

    fn digest(&self) -> u128 {
        u128::from_str_radix(&self.state.digest, 16).unwrap_or_default()
    }

    /// Applies frames, in order; they are durable on the disks when this returns.
    ///
    /// Errors: a frame does not follow, or is not what it should be: nothing of this group was applied. Or a disk or
    /// file failed: the next start applies the group again.
    pub(crate) fn apply(&mut self, group: &[Envelope]) -> Result<(), Fault> {
        let frames = self.opened(group)?;
        if frames.is_empty() {
            return Ok(());
        }
        let encoded: Vec<_> = group.iter().map(Envelope::encode).collect();
        let noted = || -> io::Result<()> {
            let mut redo = File::create(self.dir.join("redo"))?;
            encoded.iter().try_for_each(|frame| redo.write_all(frame))?;
            redo.sync_all()?;
            File::open(&self.dir)?.sync_all()
        };
        noted().map_err(|error| local("redo", &error))?;
        self.land(&frames)
    }

    /// After a crash.
    fn redo(&mut self) -> Result<(), Fault> {
        let bytes = match std::fs::read(self.dir.join("redo")) {
            Ok(bytes) => bytes::Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(local("redo", &error)),
        };
        let (mut at, mut group) = (0, Vec::new());
        // What is torn at the end was not synced, so nothing of that group was applied yet; whole frames before it are
        // frames all the same.
        while let Ok((envelope, length)) = Envelope::decode(&bytes.slice(at..)) {
            at += length;
            if envelope.head.identity.number.0 > self.state.number {
                group.push(envelope);
            }
        }
        let frames = self.opened(&group)?;
        if frames.is_empty() { Ok(()) } else { self.land(&frames) }
    }

    /// Checks that frames follow, and what is in them.
    fn opened(&self, group: &[Envelope]) -> Result<Vec<Frame>, Fault> {
        let (mut number, mut digest) = (self.state.number, self.digest());
        let mut frames = Vec::with_capacity(group.len());
        for envelope in group {
            let identity = &envelope.head.identity;
            if identity.machine != self.machine
                || identity.number.0 != number + 1
                || identity.previous != digest
                || envelope.codec != Codec::Plain
            {
                return Err(odd(&format!("frame {} does not follow frame {number}", identity.number)));
            }
            (number, digest) = (identity.number.0, envelope.head.digest);
            let frame = envelope.head.clone().open(envelope.stored.clone());
            let frame = frame.map_err(|error| odd(&error.to_string()))?;
            for record in frame.records() {
                let Some((disk, offset, length)) = place(&record.change) else { continue };
                let size = self.disks.get(usize::from(disk.0)).map_or(0, |disk| disk.size());
                if offset.checked_add(length).is_none_or(|end| end > size) {
                    return Err(odd(&format!("frame {number} writes where disk {disk} does not reach")));
                }
            }
            frames.push(frame);
        }
        Ok(frames)
    }

    fn land(&mut self, frames: &[Frame]) -> Result<(), Fault> {
        self.keep_old(frames).map_err(|error| local("the branch", &error))?;
        let mut state = self.state.clone();
        let written = (|| -> io::Result<()> {
            for frame in frames {
                for record in frame.records() {
                    match &record.change {
                        Change::Write { disk, offset, data, .. } => {
                            self.disks[usize::from(disk.0)].write(*offset, data, false)?;
                        }
                        Change::Zero { disk, offset, length, .. } => {
                            self.disks[usize::from(disk.0)].zero(*offset, u64::from(*length), true, false)?;
                        }
                        Change::Barrier(_) | Change::Break => {}
                    }
                    state.legality.after(&record.change);
                    state.newest_us = record.time.micros();
                    if let Some((disk, offset, length)) = place(&record.change) {
                        state.received_bytes += length;
                        for block in covered(offset, length) {
                            self.sums[usize::from(disk.0)][block as usize] = BlockSum::UNKNOWN;
                        }
                    }
                }
                state.number = frame.head.identity.number.0;
                state.digest = format!("{:032x}", frame.head.digest);
                state.sequence = frame.head.last_sequence().0;
            }
            self.disks.iter().try_for_each(|disk| disk.flush())
        })();
        written.map_err(|error| local("a disk of the machine", &error))?;
        self.state = state;
        self.store().map_err(|error| local("its state", &error))
    }

    fn keep_old(&mut self, frames: &[Frame]) -> io::Result<()> {
        let mut block_bytes = vec![0; REGION_BYTES as usize];
        for record in frames.iter().flat_map(Frame::records) {
            let Some((disk, offset, length)) = place(&record.change) else { continue };
            let device = &self.disks[usize::from(disk.0)];
            for block in covered(offset, length) {
                if self.branch.has(disk.0, block) {
                    continue;
                }
                let start = block * REGION_BYTES;
                let out = &mut block_bytes[..REGION_BYTES.min(device.size() - start) as usize];
                device.read(start, out)?;
                self.branch.keep(disk.0, block, out)?;
            }
        }
        self.branch.sync()
    }

    fn store(&self) -> io::Result<()> {
        let path = self.dir.join("state.json");
        let new = self.dir.join("state.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(&self.state).map_err(io::Error::other)?)?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(&self.dir)?.sync_all()
    }

    /// Sums of what is there. Reads what was not summed yet.
    ///
    /// Errors: there are no such nodes, or a disk cannot be read.
    pub(crate) fn sums(&mut self, disk: DiskIndex, nodes: &Nodes) -> Result<Sums, Fault> {
        let index = usize::from(disk.0);
        let size = self.disks.get(index).ok_or_else(|| odd("there is no such disk"))?.size();
        let all = blocks(size);
        if nodes.level > 4 || nodes.range.end > nodes_at(all, nodes.level) {
            return Err(odd("there are no such sums"));
        }
        let width = FAN_OUT.pow(u32::from(nodes.level));
        let range = nodes.range.start * width..(nodes.range.end * width).min(all);
        self.sum(index, size, range.clone()).map_err(|error| local("a disk of the machine", &error))?;
        let mut sums = self.sums[index][range.start as usize..range.end as usize].to_vec();
        for _ in 0..nodes.level {
            sums = sums.chunks(FAN_OUT as usize).map(BlockSum::above).collect();
        }
        Ok(Sums { frame: FrameNumber(self.state.number), digest: self.digest(), sums })
    }

    fn sum(&mut self, index: usize, size: u64, blocks: std::ops::Range<u64>) -> io::Result<()> {
        let (device, sums) = (&self.disks[index], &mut self.sums[index]);
        let mut buffer = vec![0; (RUN * REGION_BYTES) as usize];
        let mut extents = Vec::new();
        let mut at = blocks.start;
        while at < blocks.end {
            let end = (at + RUN).min(blocks.end);
            let known = sums[at as usize..end as usize].iter().all(|sum| *sum != BlockSum::UNKNOWN);
            if !known {
                let offset = at * REGION_BYTES;
                let length = (end * REGION_BYTES).min(size) - offset;
                extents.clear();
                let hole = length == (end - at) * REGION_BYTES
                    && device.extents(offset, length, &mut extents).is_ok()
                    && matches!(extents.as_slice(), [hole] if !hole.data && hole.length >= length);
                if hole {
                    sums[at as usize..end as usize].fill(BlockSum::of_zeroes());
                } else {
                    let out = &mut buffer[..length as usize];
                    device.read(offset, out)?;
                    for (sum, block) in sums[at as usize..].iter_mut().zip(out.chunks(REGION_BYTES as usize))
                    {
                        *sum = BlockSum::of(block);
                    }
                }
            }
            at = end;
        }
        Ok(())
    }
}

/// The last characters of a name that is an id.
fn tail(name: &str) -> &str {
    let start = name.char_indices().rev().nth(7).map_or(0, |(at, _)| at);
    &name[start..]
}

const fn blocks(size: u64) -> u64 {
    size.div_ceil(REGION_BYTES)
}

fn place(change: &Change) -> Option<(DiskIndex, u64, u64)> {
    match change {
        Change::Write { disk, offset, data, .. } => Some((*disk, *offset, data.len() as u64)),
        Change::Zero { disk, offset, length, .. } => Some((*disk, *offset, u64::from(*length))),
        Change::Barrier(_) | Change::Break => None,
    }
    .filter(|(.., length)| *length > 0)
}

fn covered(offset: u64, length: u64) -> std::ops::RangeInclusive<u64> {
    offset / REGION_BYTES..=(offset + length - 1) / REGION_BYTES
}

fn local(what: &str, error: &io::Error) -> Fault {
    Fault::new(FaultClass::Failed, "home.disk", format!("{what} cannot be used here: {error}"))
        .affects("the way home of this machine")
        .spares("the machine at the recovery site, which goes on, and what its disks here held before")
        .remedy("see to the disk or folder on the old host; it is tried again")
}

fn odd(what: &str) -> Fault {
    Fault::new(
        FaultClass::Refused,
        "home.frame",
        format!("what came from the recovery site was not taken: {what}"),
    )
    .affects("the way home of this machine")
    .spares("its disks: nothing of it was applied")
    .remedy("update the older side; if both are current, stop the reverse direction and begin it again")
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_capture::nbd::Extent;
    use continuum_model::feed::frame::Identity;
    use continuum_model::feed::{Barrier, FrameBuilder, Record};
    use std::sync::Mutex;

    const SIZE: usize = 256 << 10;

    /// A disk in memory that fails at the nth write.
    #[derive(Default)]
    struct Disk {
        bytes: Mutex<Vec<u8>>,
        fails: Mutex<Option<usize>>,
    }

    impl BlockDevice for Disk {
        fn size(&self) -> u64 {
            SIZE as u64
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..out.len()]);
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8], _: bool) -> io::Result<()> {
            let mut fails = self.fails.lock().unwrap();
            if let Some(left) = fails.as_mut() {
                if *left == 0 {
                    return Err(io::Error::other("told to fail"));
                }
                *left -= 1;
            }
            self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, offset: u64, length: u64, _: bool, durable: bool) -> io::Result<()> {
            self.write(offset, &vec![0; length as usize], durable)
        }
        fn extents(&self, _: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
            out.push(Extent { length, data: true });
            Ok(())
        }
    }

    fn machine() -> MachineId {
        MachineId::from_bytes([6; 16])
    }

    fn frame(after: &Welcome, sequence: u64, changes: Vec<Change>) -> (Envelope, Welcome) {
        let mut builder = FrameBuilder::default();
        for (change, at) in changes.into_iter().zip(sequence..) {
            builder.push(&Record { sequence: Sequence(at), time: Timestamp::from_micros(at as i64), change });
        }
        let identity = Identity {
            machine: machine(),
            epoch: Epoch(3),
            number: after.number.next(),
            session: 1,
            previous: after.digest,
        };
        let frame = builder.finish(identity).unwrap();
        let next = Welcome { number: frame.head.identity.number, digest: frame.head.digest, ..*after };
        (Envelope::plain(&frame), next)
    }

    fn write(offset: u64, byte: u8, injected: bool) -> Change {
        Change::Write { disk: DiskIndex(0), offset, data: vec![byte; 4096].into(), injected }
    }

    fn open(dir: &Path, disk: &Arc<Disk>, view: &str) -> Landing {
        let disks = vec![disk.clone() as Arc<dyn BlockDevice>];
        // Another view is another moment, and another branch.
        let now = Timestamp::from_micros(1 + i64::from(view != "v") * 1_000_000);
        Landing::open(dir, machine(), disks, view, now, 77).unwrap()
    }

    #[test]
    fn a_disk_that_fails_anywhere_is_at_a_frames_boundary_after_the_next_start() {
        for fails in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let disk = Arc::new(Disk { bytes: Mutex::new(vec![1; SIZE]), ..Disk::default() });
            let mut landing = open(dir.path(), &disk, "v");
            let held = landing.held(Epoch(3));
            assert_eq!((held.number.0, held.digest), (1, 77), "nobody fed it: it is compared first");
            let zero = Change::Zero { disk: DiskIndex(0), offset: 100_000, length: 50_000, injected: false };
            let mark = Change::Barrier(Barrier::time_mark(true));
            let (first, next) = frame(&held, 1, vec![Change::Break, write(0, 2, true), mark]);
            let (second, _) = frame(&next, 4, vec![write(4096, 3, false), zero, write(65_536, 4, false)]);
            let group = [first, second];
            *disk.fails.lock().unwrap() = Some(fails);
            let applied = landing.apply(&group);
            assert_eq!(applied.is_err(), fails < 4, "whether the fault fired");
            drop(landing);
            *disk.fails.lock().unwrap() = None;
            let landing = open(dir.path(), &disk, "v");
            let landed = landing.landed();
            assert!(landed.whole && landed.sequence == 6, "{landed:?}");
            let bytes = disk.bytes.lock().unwrap().clone();
            assert!(bytes[..4096].iter().all(|byte| *byte == 2) && bytes[65_536] == 4 && bytes[100_000] == 0);
            // And what was there before is all in the branch.
            let image = dir.path().join("image");
            std::fs::write(&image, &bytes).unwrap();
            let branch = super::super::branch::folder(dir.path()).join(format!("{}.branch", landed.branch));
            super::super::branch::lay_over(&branch, 0, &image).unwrap();
            assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 1), "nothing was lost");
        }
    }

    #[test]
    fn what_does_not_follow_is_not_taken_and_another_view_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk { bytes: Mutex::new(vec![1; SIZE]), ..Disk::default() });
        let mut landing = open(dir.path(), &disk, "v");
        let held = landing.held(Epoch(3));
        let (_, skipped) = frame(&held, 1, vec![write(0, 2, true)]);
        let (late, _) = frame(&skipped, 2, vec![write(0, 3, true)]);
        assert_eq!(landing.apply(&[late]).unwrap_err().code, "home.frame");
        let (beyond, _) = frame(&held, 1, vec![write(SIZE as u64 - 512, 2, false)]);
        assert_eq!(landing.apply(&[beyond]).unwrap_err().code, "home.frame");
        assert!(disk.bytes.lock().unwrap().iter().all(|byte| *byte == 1), "nothing of either was applied");
        let (good, _) = frame(&held, 1, vec![Change::Break, write(0, 2, true)]);
        landing.apply(&[good]).unwrap();
        assert!(!landing.landed().whole, "a repair is under way");
        let sums = landing.sums(DiskIndex(0), &Nodes { level: 0, range: 0..4 }).unwrap();
        let mut block = vec![1; REGION_BYTES as usize];
        assert_eq!(sums.sums[1], BlockSum::of(&block));
        block[..4096].fill(2);
        assert_eq!((sums.frame.0, sums.sums[0]), (2, BlockSum::of(&block)));
        let top = landing.sums(DiskIndex(0), &Nodes { level: 1, range: 0..1 }).unwrap();
        assert_eq!(top.sums, [BlockSum::above(&sums.sums)]);
        assert!(landing.sums(DiskIndex(0), &Nodes { level: 0, range: 4..5 }).is_err());
        drop(landing);
        assert_eq!(open(dir.path(), &disk, "w").held(Epoch(4)).number.0, 1);
    }
}
