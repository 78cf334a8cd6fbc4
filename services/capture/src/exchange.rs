//! Replication logs from and to a feed's staged frames, and onto the image of a disk.
//!
//! What is lost on the way, and told:
//!
//! | from frames to a log | from a log to frames |
//! | --- | --- |
//! | barriers and breaks, so every moment but the last | – |
//! | the microseconds of moments | moments get them again, so that they rise |
//! | which writes were injected | all are: only the end is a state of the disk |
//! | zero ranges become written zeroes, up to what the caller allows | – |
//!
//! Lives here: what the two have to do with one another. The bytes of each: [`crate::hrl`] and the model's
//! `feed`. Invariant: an input is verified to its last byte before anything is written anywhere.

use crate::hrl::{About, Guid, Header, HrlError, Log, Unchained, Write, Writer, in_order};
use bytes::Bytes;
use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use continuum_model::feed::record::WRITE_BYTES_MAX;
use continuum_model::feed::{Barrier, Change, Codec, Envelope, Frame, FrameBuilder, Identity, Record};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use rustix::fs::OFlags;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A frame is ended when it holds this much.
const FRAME_BYTES: usize = 1 << 20;

/// Hears how many bytes are done, of about how many; answers whether to go on.
pub type Told<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A log.
    #[error("{}", path.display())]
    Log {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: HrlError,
    },
    /// Logs that do not belong together.
    #[error("the logs are not one history")]
    Unchained(#[from] Unchained),
    /// A file of frames.
    #[error("{} at byte {at}: {why}", path.display())]
    Frames {
        /// Which.
        path: PathBuf,
        /// Where in it.
        at: u64,
        /// What is wrong there.
        why: String,
    },
    /// The frames are of several disks, or of others than the one that was named.
    #[error("these frames are of the disks {found:?}; a log is of one: name it")]
    Disks {
        /// Which.
        found: Vec<u16>,
    },
    /// More zeroes than may be written out.
    #[error("zero ranges of {bytes} bytes would have to be written as data, and {max} are allowed")]
    Zeroes {
        /// How many.
        bytes: u64,
        /// How many may be.
        max: u64,
    },
    /// The image is not of the disk's size.
    #[error("{} has {found} bytes, and the disk that was logged {expected}", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The disk's.
        expected: u64,
    },
    /// What was written is not what is read.
    #[error("{} at byte {at}: what was written there is not what is read back", path.display())]
    Differs {
        /// The image.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// Another file.
    #[error("{} could not be {doing}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What is wrong.
        #[source]
        cause: io::Error,
    },
    /// The caller ended it.
    #[error("stopped")]
    Stopped,
}

impl From<HrlError> for ExchangeError {
    /// For what is read of a log under way; its name is put in where it is known.
    fn from(cause: HrlError) -> Self {
        Self::Log { path: PathBuf::new(), cause }
    }
}

impl ExchangeError {
    fn of(self, name: &Path) -> Self {
        match self {
            Self::Log { path, cause } if path.as_os_str().is_empty() => {
                Self::Log { path: name.to_owned(), cause }
            }
            other => other,
        }
    }
}

/// What did not survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lost {
    /// Barriers, and with them the moments that they stand for.
    pub barriers: u64,
    /// Marks that something is missing there.
    pub breaks: u64,
    /// Writes that were marked as injected.
    pub injected: u64,
    /// Zero ranges that are written zeroes now.
    pub zeroes: u64,
    /// Their bytes.
    pub zero_bytes: u64,
    /// Records of other disks.
    pub others: u64,
    /// Moments that lost or were given their microseconds.
    pub moments: u64,
}

/// Logs of one disk, in the order in which they were written, each of them closed and whole in its structure.
#[derive(Debug)]
pub struct Chain {
    logs: Vec<(PathBuf, Log)>,
}

/// A regular file, without waiting for whoever is at the other end of what is none.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

impl Chain {
    /// Opens logs and puts them in order.
    pub fn open(paths: &[PathBuf]) -> Result<Self, ExchangeError> {
        let mut logs = Vec::with_capacity(paths.len());
        for path in paths {
            let log = open(path).map_err(HrlError::from).and_then(Log::open);
            let log = log.map_err(|cause| ExchangeError::Log { path: path.clone(), cause })?;
            logs.push(Some((path.clone(), log)));
        }
        let ids: Vec<_> =
            logs.iter().flatten().map(|(_, log)| (log.header().id, log.header().previous)).collect();
        let order = in_order(&ids)?;
        Ok(Self { logs: order.into_iter().filter_map(|at| logs[at].take()).collect() })
    }

    /// The logs, the oldest first.
    pub fn logs(&self) -> impl DoubleEndedIterator<Item = &(PathBuf, Log)> {
        self.logs.iter()
    }

    /// Bytes of data in all of them.
    pub fn data_bytes(&self) -> u64 {
        self.logs.iter().map(|(_, log)| log.data_bytes()).sum()
    }

    /// Writes in all of them.
    pub fn writes(&self) -> u64 {
        self.logs.iter().map(|(_, log)| log.header().writes).sum()
    }

    /// The last header: what the disk is now.
    pub fn newest(&self) -> Option<&Header> {
        self.logs.last().map(|(_, log)| log.header())
    }

    /// Reads and verifies everything.
    pub fn verify(&self, told: Told<'_>) -> Result<(), ExchangeError> {
        let (all, mut before) = (self.data_bytes(), 0);
        for (path, log) in &self.logs {
            let went_on = log
                .verify(&mut |done| told(before + done, all))
                .map_err(|cause| ExchangeError::Log { path: path.clone(), cause })?;
            if !went_on {
                return Err(ExchangeError::Stopped);
            }
            before += log.data_bytes();
        }
        Ok(())
    }

    fn each(
        &self,
        mut take: impl FnMut(&Log, &Write) -> Result<(), ExchangeError>,
    ) -> Result<(), ExchangeError> {
        for (path, log) in &self.logs {
            for write in log.writes() {
                let write = write.map_err(|cause| ExchangeError::Log { path: path.clone(), cause })?;
                take(log, &write).map_err(|error| error.of(path))?;
            }
        }
        Ok(())
    }
}

/// What was put onto an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// Writes.
    pub writes: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the image that were read back and compared: those whose last write is in the logs.
    pub compared: u64,
}

/// Puts the writes of the logs onto an image, durably, and reads it back. The logs are verified first, so that
/// the image is not touched for a log that is damaged. Doing it again after a crash ends the same.
pub fn apply(chain: &Chain, image: &Path, told: Told<'_>) -> Result<Applied, ExchangeError> {
    let file = open_image(image, chain)?;
    let failed = |doing| move |cause| ExchangeError::File { path: image.to_owned(), doing, cause };
    let all = chain.data_bytes() * 3;
    chain.verify(&mut |done, _| told(done, all))?;
    let (mut piece, mut done) = (Vec::new(), chain.data_bytes());
    chain.each(|log, write| {
        log.read(write, &mut piece, |at, bytes| {
            file.write_all_at(bytes, write.offset + at).map_err(failed("written"))
        })?;
        done += u64::from(write.length);
        if told(done, all) { Ok(()) } else { Err(ExchangeError::Stopped) }
    })?;
    file.sync_all().map_err(failed("made durable"))?;
    // What is read now comes from the disk and not from memory, where the kernel can be had to do that.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    let (mut read, mut compared, mut covered) = (Vec::new(), 0, Covered::default());
    // From the newest to the oldest: what a later write covers cannot be seen of an earlier one.
    for (path, log) in chain.logs().rev() {
        for write in log.newest_first() {
            let write = write.map_err(|cause| ExchangeError::Log { path: path.clone(), cause })?;
            let seen = covered.add(write.offset, write.offset + u64::from(write.length));
            log.read(&write, &mut piece, |at, bytes| {
                let start = write.offset + at;
                for (from, to) in &seen {
                    let (from, to) = ((*from).max(start), (*to).min(start + bytes.len() as u64));
                    if from >= to {
                        continue;
                    }
                    read.resize((to - from) as usize, 0);
                    file.read_exact_at(&mut read, from).map_err(failed("read back"))?;
                    if read != bytes[(from - start) as usize..(to - start) as usize] {
                        return Err(ExchangeError::Differs { path: image.to_owned(), at: from });
                    }
                    compared += to - from;
                }
                Ok(())
            })
            .map_err(|error| error.of(path))?;
            done += u64::from(write.length);
            if !told(done, all) {
                return Err(ExchangeError::Stopped);
            }
        }
    }
    Ok(Applied { writes: chain.writes(), bytes: chain.data_bytes(), compared })
}

/// Checks everything that [`apply`] checks before it writes.
pub fn check(chain: &Chain, image: &Path, told: Told<'_>) -> Result<(), ExchangeError> {
    open_image(image, chain)?;
    chain.verify(told)
}

fn open_image(path: &Path, chain: &Chain) -> Result<File, ExchangeError> {
    let failed = |cause| ExchangeError::File { path: path.to_owned(), doing: "opened", cause };
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a file nor a block device",
        )));
    }
    // A block device that somebody has mounted is not opened.
    let flags = if kind.is_block_device() { OFlags::EXCL } else { OFlags::NONBLOCK };
    let mut file = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(failed)?;
    let found = file.seek(SeekFrom::End(0)).map_err(failed)?;
    match chain.newest() {
        Some(header) if header.size != found => {
            Err(ExchangeError::Size { path: path.to_owned(), found, expected: header.size })
        }
        _ => Ok(file),
    }
}

/// Ranges that were seen, merged.
#[derive(Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds a range; returns what of it was not there.
    fn add(&mut self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let (mut new, mut at, mut merged) = (Vec::new(), from, (from, to));
        let before = self.0.range(..from).next_back().filter(|(_, end)| **end >= from);
        let first = before.map_or(from, |(start, _)| *start);
        let touching: Vec<_> = self.0.range(first..=to).map(|(start, end)| (*start, *end)).collect();
        for (start, end) in touching {
            if start > at {
                new.push((at, start));
            }
            at = at.max(end);
            merged = (merged.0.min(start), merged.1.max(end));
            self.0.remove(&start);
        }
        if at < to {
            new.push((at, to));
        }
        self.0.insert(merged.0, merged.1);
        new
    }
}

/// Files of frames, as an agent stages them; in the order of their numbers.
#[derive(Debug)]
pub struct Frames {
    files: Vec<(PathBuf, File, u64)>,
    bytes: u64,
}

impl Frames {
    /// Opens files of frames. Read in the order in which they are given.
    pub fn open(paths: &[PathBuf]) -> Result<Self, ExchangeError> {
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let failed = |cause| ExchangeError::File { path: path.clone(), doing: "opened", cause };
            let file = open(path).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            files.push((path.clone(), file, length));
        }
        let bytes = files.iter().map(|(_, _, length)| length).sum();
        Ok(Self { files, bytes })
    }

    /// Every frame in order, verified, in one chain. Returns the number of frames.
    fn each(
        &self,
        mut take: impl FnMut(&Frame, u64) -> Result<(), ExchangeError>,
    ) -> Result<u64, ExchangeError> {
        let (mut last, mut count, mut done): (Option<(Identity, u128)>, _, _) = (None, 0, 0);
        for (path, file, length) in &self.files {
            let mut at = 0;
            while at < *length {
                let wrong = |why: String| ExchangeError::Frames { path: path.clone(), at, why };
                let mut prefix = [0; ENVELOPE_BYTES];
                let read = |out: &mut [u8], from| {
                    file.read_exact_at(out, from).map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => wrong("a frame is cut".into()),
                        _ => wrong(error.to_string()),
                    })
                };
                read(&mut prefix, at)?;
                let prefix = EnvelopePrefix::decode(&prefix).map_err(|error| wrong(error.to_string()))?;
                let mut body = vec![0; prefix.body_len()];
                read(&mut body, at + ENVELOPE_BYTES as u64)?;
                let envelope = prefix.open(body.into()).map_err(|error| wrong(error.to_string()))?;
                let bytes = envelope.len() as u64;
                if envelope.codec != Codec::Plain {
                    return Err(wrong("a compressed frame: only what an agent stages can be used".into()));
                }
                let frame = envelope.head.open(envelope.stored).map_err(|error| wrong(error.to_string()))?;
                let identity = frame.head.identity;
                if let Some((before, digest)) = last
                    && (identity.number != before.number.next()
                        || identity.previous != digest
                        || identity.machine != before.machine)
                {
                    return Err(wrong(format!(
                        "frame {} does not follow frame {}: name the files in their order, and all of them",
                        identity.number, before.number
                    )));
                }
                last = Some((identity, frame.head.digest));
                count += 1;
                done += bytes;
                take(&frame, done)?;
                at += bytes;
            }
        }
        Ok(count)
    }
}

/// What a log is made from, and how.
#[derive(Debug, Clone, Copy)]
pub struct ToLog {
    /// Which disk; may be left out where the frames are of one.
    pub disk: Option<DiskIndex>,
    /// Its size in bytes: frames do not tell it.
    pub size: u64,
    /// The log that this one goes on from; nil: none.
    pub previous: Guid,
    /// Zero ranges that may be written out, in bytes of all of them.
    pub zero_bytes_max: u64,
}

/// Makes a log of frames in `out`, which is empty.
pub fn frames_to_log(
    frames: &Frames,
    wanted: &ToLog,
    (out, name): (File, &Path),
    told: Told<'_>,
) -> Result<(Header, Lost), ExchangeError> {
    let all = frames.bytes * 2;
    let (mut disks, mut zero_bytes, mut first) = (BTreeSet::new(), 0u64, None);
    let mut going = true;
    frames.each(|frame, done| {
        for row in &frame.head.rows {
            first.get_or_insert(row.time);
        }
        for record in frame.records() {
            match record.change {
                Change::Write { disk, .. } => {
                    disks.insert(disk.0);
                }
                Change::Zero { disk, length, .. } => {
                    disks.insert(disk.0);
                    if wanted.disk.is_none_or(|only| only == disk) {
                        zero_bytes += u64::from(length);
                    }
                }
                Change::Barrier(_) | Change::Break => {}
            }
        }
        going = going && told(done, all);
        if going { Ok(()) } else { Err(ExchangeError::Stopped) }
    })?;
    let disk = match wanted.disk {
        Some(disk) => disk.0,
        None if disks.len() <= 1 => disks.first().copied().unwrap_or(0),
        None => return Err(ExchangeError::Disks { found: disks.into_iter().collect() }),
    };
    if zero_bytes > wanted.zero_bytes_max {
        return Err(ExchangeError::Zeroes { bytes: zero_bytes, max: wanted.zero_bytes_max });
    }
    let about = About {
        id: Guid::random(),
        previous: wanted.previous,
        size: wanted.size,
        data_write: Guid::default(),
        created: first.unwrap_or(Timestamp::from_micros(946_684_800_000_000)),
    };
    let wrong = |cause| ExchangeError::Log { path: name.to_owned(), cause };
    let mut writer = Writer::begin(out, about).map_err(wrong)?;
    let mut lost = Lost::default();
    frames.each(|frame, done| {
        for record in frame.records() {
            match &record.change {
                Change::Write { disk: of, .. } | Change::Zero { disk: of, .. } if of.0 != disk => {
                    lost.others += 1;
                    continue;
                }
                Change::Write { offset, data, injected, .. } => {
                    lost.injected += u64::from(*injected);
                    lost.moments += 1;
                    writer.write(*offset, data, record.time).map_err(wrong)?;
                }
                Change::Zero { offset, length, injected, .. } => {
                    lost.injected += u64::from(*injected);
                    lost.moments += 1;
                    lost.zeroes += 1;
                    lost.zero_bytes += u64::from(*length);
                    writer.zero(*offset, u64::from(*length), record.time).map_err(wrong)?;
                }
                Change::Barrier(_) => lost.barriers += 1,
                Change::Break => lost.breaks += 1,
            }
        }
        if told(frames.bytes + done, all) { Ok(()) } else { Err(ExchangeError::Stopped) }
    })?;
    writer.close().map(|header| (header, lost)).map_err(wrong)
}

/// Whose frames are made from logs.
#[derive(Debug, Clone, Copy)]
pub struct ToFrames {
    /// Of which machine.
    pub machine: MachineId,
    /// Which of its disks.
    pub disk: DiskIndex,
}

/// Makes frames of logs in `out`: all writes injected, then one barrier, so that nothing but the end counts as a
/// state of the disk. Returns how many frames.
pub fn log_to_frames(
    chain: &Chain,
    wanted: ToFrames,
    (out, name): (&File, &Path),
    told: Told<'_>,
) -> Result<(u64, Lost), ExchangeError> {
    let all = chain.data_bytes() * 2;
    chain.verify(&mut |done, _| told(done, all))?;
    let failed = |doing| move |cause| ExchangeError::File { path: name.to_owned(), doing, cause };
    let mut feed = FeedWriter {
        out: BufWriter::with_capacity(FRAME_BYTES, out),
        builder: FrameBuilder::default(),
        machine: wanted.machine,
        session: u64::from_le_bytes(
            *Guid::random().to_bytes().first_chunk().unwrap_or(&[1, 0, 0, 0, 0, 0, 0, 0]),
        ),
        frames: 0,
        digest: 0,
        sequence: 0,
        time: Timestamp::default(),
    };
    let (mut lost, mut piece, mut done) = (Lost::default(), Vec::new(), chain.data_bytes());
    chain.each(|log, write| {
        let mut data = Vec::with_capacity(write.length.min(WRITE_BYTES_MAX) as usize);
        log.read(write, &mut piece, |at, bytes| {
            // Our records are shorter than theirs may be: pieces, then.
            data.extend_from_slice(bytes);
            if data.len() as u64 + u64::from(FRAME_BYTES as u32) > u64::from(WRITE_BYTES_MAX)
                || at + bytes.len() as u64 == u64::from(write.length)
            {
                let offset = write.offset + at + bytes.len() as u64 - data.len() as u64;
                let data = Bytes::from(std::mem::take(&mut data));
                let change = Change::Write { disk: wanted.disk, offset, data, injected: true };
                feed.push(write.time, change).map_err(failed("written"))?;
                lost.moments += 1;
            }
            Ok::<(), ExchangeError>(())
        })?;
        done += u64::from(write.length);
        if told(done, all) { Ok(()) } else { Err(ExchangeError::Stopped) }
    })?;
    let end = chain.newest().map_or(Timestamp::default(), |header| header.modified);
    feed.push(end, Change::Barrier(Barrier::time_mark(true))).map_err(failed("written"))?;
    feed.end_frame().and_then(|()| feed.out.flush()).map_err(failed("written"))?;
    let frames = feed.frames;
    drop(feed);
    out.sync_all().map_err(failed("made durable"))?;
    Ok((frames, lost))
}

struct FeedWriter<'a> {
    out: BufWriter<&'a File>,
    builder: FrameBuilder,
    machine: MachineId,
    session: u64,
    frames: u64,
    digest: u128,
    sequence: u64,
    time: Timestamp,
}

impl FeedWriter<'_> {
    fn push(&mut self, time: Timestamp, change: Change) -> io::Result<()> {
        let length = match &change {
            Change::Write { data, .. } => data.len(),
            Change::Zero { .. } | Change::Barrier(_) | Change::Break => 64,
        };
        if !self.builder.is_empty()
            && (self.builder.payload_len() >= FRAME_BYTES || !self.builder.has_room_for(length))
        {
            self.end_frame()?;
        }
        self.sequence += 1;
        // A log knows seconds, and its clock may have gone back; a feed's moments rise.
        self.time = time.max(Timestamp::from_micros(self.time.micros() + 1));
        self.builder.push(&Record { sequence: Sequence(self.sequence), time: self.time, change });
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let place = Identity {
            machine: self.machine,
            epoch: Epoch(1),
            number: FrameNumber(self.frames + 1),
            session: self.session,
            previous: self.digest,
        };
        let Some(frame) = self.builder.finish(place) else { return Ok(()) };
        self.digest = frame.head.digest;
        self.frames += 1;
        let envelope = Envelope::plain(&frame);
        self.out.write_all(&envelope.prefix())?;
        self.out.write_all(envelope.head.bytes())?;
        self.out.write_all(&envelope.stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_new_once() {
        let mut covered = Covered::default();
        type Row = (u64, u64, &'static [(u64, u64)]);
        let rows: [Row; 9] = [
            (10, 20, &[(10, 20)]),
            (30, 40, &[(30, 40)]),
            (10, 20, &[]),
            (5, 35, &[(5, 10), (20, 30)]),
            (0, 5, &[(0, 5)]),
            (12, 13, &[]),
            (50, 60, &[(50, 60)]),
            (40, 50, &[(40, 50)]),
            (0, 100, &[(60, 100)]),
        ];
        for (from, to, new) in rows {
            assert_eq!(covered.add(from, to), new, "{from}..{to}");
        }
        assert_eq!(covered.0.len(), 1);
    }
}
