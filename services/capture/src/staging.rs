//! Staging: frames that could not leave yet, on disk.
//!
//! ```text
//! staging/00000000000000000042.feed    envelopes back to back, as they are sent (see the model's `envelope`);
//!                                      named by the number of the first; a new file every 64 MiB
//! ```
//!
//! Not synced: it has to survive the process, not a power cut (after which the map knows what is missing). Every envelope is checked when it is read back; at the start, what follows the
//! first envelope that is cut, damaged or out of the chain is removed.

use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use continuum_model::feed::{Envelope, FrameHead};
use continuum_model::id::MachineId;
use continuum_model::units::FrameNumber;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file is ended when it holds this much.
const FILE_BYTES: u64 = 64 << 20;

/// Where a feed keeps frames that memory has no room for. Nothing here is slow: writing and reading are done
/// on the [`Place`], outside of the feed's lock.
pub trait Stage: Send {
    /// Sets `bytes` aside for a frame. Frames come in the order of their numbers.
    fn reserve(&mut self, number: FrameNumber, bytes: u64) -> io::Result<Place>;
    /// Frames up to `number` are not needed any more.
    fn forget(&mut self, number: FrameNumber);
    /// No frame is.
    fn clear(&mut self);
}

/// Where one envelope is.
#[derive(Debug, Clone)]
pub struct Place {
    file: Arc<File>,
    at: u64,
}

impl Place {
    /// Writes the envelope it was reserved for.
    pub fn write(&self, envelope: &Envelope) -> io::Result<()> {
        let (prefix, head) = (envelope.prefix(), envelope.head.bytes());
        self.file.write_all_at(&prefix, self.at)?;
        self.file.write_all_at(head, self.at + ENVELOPE_BYTES as u64)?;
        self.file.write_all_at(&envelope.stored, self.at + (ENVELOPE_BYTES + head.len()) as u64)
    }

    /// Reads it back, verified.
    pub fn read(&self) -> io::Result<Envelope> {
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut prefix = [0; ENVELOPE_BYTES];
        self.file.read_exact_at(&mut prefix, self.at)?;
        let prefix = EnvelopePrefix::decode(&prefix).map_err(damaged)?;
        let mut body = vec![0; prefix.body_len()];
        self.file.read_exact_at(&mut body, self.at + ENVELOPE_BYTES as u64)?;
        prefix.open(body.into()).map_err(damaged)
    }
}

/// A frame that was found in staging at the start.
pub struct Found {
    /// Its head.
    pub head: FrameHead,
    /// Length of its envelope.
    pub bytes: u64,
    /// Where it is.
    pub place: Place,
}

/// Staging in a folder.
pub struct FileStage {
    dir: PathBuf,
    files: Vec<StageFile>,
}

struct StageFile {
    path: PathBuf,
    file: Arc<File>,
    end: u64,
    last: FrameNumber,
}

impl FileStage {
    /// Opens the folder and reads what an earlier process left: the frames of `machine` in one unbroken
    /// chain. Whatever does not belong to it is removed.
    pub fn open(dir: &Path, machine: MachineId) -> io::Result<(Self, Vec<Found>)> {
        std::fs::create_dir_all(dir)?;
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "feed") {
                paths.push(path);
            }
        }
        // Numbers with leading zeroes: the order of names is the order of frames.
        paths.sort();
        let mut stage = Self { dir: dir.to_owned(), files: Vec::new() };
        let mut found: Vec<Found> = Vec::new();
        let mut whole = true;
        for path in paths {
            if !whole {
                std::fs::remove_file(&path)?;
                continue;
            }
            let file = Arc::new(File::options().read(true).write(true).open(&path)?);
            let length = file.metadata()?.len();
            let mut end = 0;
            while end < length {
                let place = Place { file: file.clone(), at: end };
                let Ok(envelope) = place.read() else { break };
                let identity = envelope.head.identity;
                let follows = match found.last() {
                    None => true,
                    Some(last) => {
                        identity.number == last.head.identity.number.next()
                            && identity.previous == last.head.digest
                            && identity.epoch == last.head.identity.epoch
                    }
                };
                if !follows || identity.machine != machine {
                    break;
                }
                let bytes = envelope.len() as u64;
                found.push(Found { head: envelope.head, bytes, place });
                end += bytes;
            }
            if end < length {
                whole = false;
                file.set_len(end)?;
            }
            match found.last() {
                Some(last) if end > 0 => {
                    let last = last.head.identity.number;
                    stage.files.push(StageFile { path, file, end: FILE_BYTES.max(end), last });
                }
                _ => std::fs::remove_file(&path)?,
            }
        }
        Ok((stage, found))
    }
}

impl Stage for FileStage {
    fn reserve(&mut self, number: FrameNumber, bytes: u64) -> io::Result<Place> {
        if self.files.last().is_none_or(|file| file.end + bytes > FILE_BYTES) {
            let path = self.dir.join(format!("{number:020}.feed"));
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            self.files.push(StageFile { path, file: Arc::new(file), end: 0, last: number });
        }
        match self.files.last_mut() {
            Some(file) => {
                let at = file.end;
                file.end += bytes;
                file.last = number;
                Ok(Place { file: file.file.clone(), at })
            }
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn forget(&mut self, number: FrameNumber) {
        self.files.retain(|file| {
            if file.last > number {
                return true;
            }
            remove(&file.path);
            false
        });
    }

    fn clear(&mut self) {
        for file in self.files.drain(..) {
            remove(&file.path);
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(file = %path.display(), %error, "a staged file could not be removed; it takes space until the next start");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use continuum_model::feed::{Change, FrameBuilder, Identity, Record};
    use continuum_model::time::Timestamp;
    use continuum_model::units::{DiskIndex, Epoch, Sequence};

    const MACHINE: MachineId = MachineId::from_bytes([1; 16]);

    fn chain(count: u64) -> Vec<Envelope> {
        let mut previous = 0;
        (1..=count)
            .map(|number| {
                let mut builder = FrameBuilder::default();
                let data = Bytes::from(vec![number as u8; 1000]);
                builder.push(&Record {
                    sequence: Sequence(number),
                    time: Timestamp::from_micros(number.cast_signed()),
                    change: Change::Write { disk: DiskIndex(0), offset: 0, data, injected: false },
                });
                let number = FrameNumber(number);
                let identity = Identity { machine: MACHINE, epoch: Epoch(1), number, session: 1, previous };
                let envelope = Envelope::plain(&builder.finish(identity).unwrap());
                previous = envelope.head.digest;
                envelope
            })
            .collect()
    }

    fn stage_all(dir: &Path, frames: &[Envelope]) -> FileStage {
        let (mut stage, _) = FileStage::open(dir, MACHINE).unwrap();
        for frame in frames {
            let place = stage.reserve(frame.head.identity.number, frame.len() as u64).unwrap();
            place.write(frame).unwrap();
            assert_eq!(&place.read().unwrap(), frame);
        }
        stage
    }

    #[test]
    fn what_is_cut_or_damaged_ends_the_chain() {
        let frames = chain(5);
        let one = frames[0].len() as u64;
        type Damage = fn(&File, u64);
        let rows: [(&str, Damage, usize); 5] = [
            ("nothing", |_, _| {}, 5),
            ("the last envelope is cut", |file, one| file.set_len(5 * one - 1).unwrap(), 4),
            ("a byte of the third flipped", |file, one| file.write_all_at(&[255], 3 * one - 1).unwrap(), 2),
            ("the first prefix overwritten", |file, _| file.write_all_at(&[0; 8], 0).unwrap(), 0),
            ("a tail of zeroes", |file, one| file.set_len(6 * one).unwrap(), 5),
        ];
        for (why, damage, left) in rows {
            let dir = tempfile::tempdir().unwrap();
            drop(stage_all(dir.path(), &frames));
            let path = dir.path().join("00000000000000000001.feed");
            damage(&File::options().write(true).open(&path).unwrap(), one);
            let (mut stage, found) = FileStage::open(dir.path(), MACHINE).unwrap();
            assert_eq!(found.len(), left, "{why}");
            // And it goes on from there.
            for frame in &frames[left..] {
                let number = frame.head.identity.number;
                stage.reserve(number, frame.len() as u64).unwrap().write(frame).unwrap();
            }
            drop(stage);
            let (mut stage, found) = FileStage::open(dir.path(), MACHINE).unwrap();
            assert_eq!(found.len(), 5, "{why}");
            stage.forget(FrameNumber(5));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{why}");
        }
    }

    #[test]
    fn another_machines_frames_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        drop(stage_all(dir.path(), &chain(2)));
        let (_, found) = FileStage::open(dir.path(), MachineId::from_bytes([2; 16])).unwrap();
        assert!(found.is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
