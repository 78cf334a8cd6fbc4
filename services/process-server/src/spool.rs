//! Frames between an agent and its target: first in, first out; in memory first, on disk beyond, never more
//! than a fair share of what all streams may use.
//!
//! ```text
//! <dir>/<machine id>-<n>.spool   envelopes back to back; unlinked as soon as it is open
//! ```
//!
//! Not durable and not meant to be: the file has no name, so that whatever ends this process also wipes it.
//! What is read back is verified again, so a rotten spool ends the stream, which then starts again from what
//! the target holds. A disk that cannot be written makes the spool small (memory only), never wrong.
//!
//! Lives here: places and their accounts. Waiting and the threads for blocking reads and writes: `relay`.

use continuum_model::feed::Envelope;
use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use continuum_model::id::MachineId;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What all streams together may have waiting. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bytes: AtomicU64,
    streams: AtomicUsize,
    bytes_max: u64,
    stream_bytes_max: u64,
    memory_bytes_max: u64,
    freed: Notify,
    files: AtomicU64,
}

impl Pool {
    /// `bytes_max` for all streams, `stream_bytes_max` for each, of which `memory_bytes_max` in memory.
    pub fn new(bytes_max: u64, stream_bytes_max: u64, memory_bytes_max: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                bytes: AtomicU64::new(0),
                streams: AtomicUsize::new(0),
                bytes_max,
                stream_bytes_max,
                memory_bytes_max,
                freed: Notify::new(),
                files: AtomicU64::new(0),
            }),
        }
    }

    /// Bytes that wait in all streams.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// How many may.
    pub fn bytes_max(&self) -> u64 {
        self.shared.bytes_max
    }

    /// Told whenever anything in any stream gets free. Register (`enable`) before looking, then wait.
    pub fn freed(&self) -> &Notify {
        &self.shared.freed
    }
}

/// The frames of one stream.
#[derive(Debug)]
pub struct Spool {
    pool: Pool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    file: Option<Arc<File>>,
    queue: VecDeque<Place>,
    memory_bytes: u64,
    disk_bytes: u64,
    end: u64,
}

/// Where a frame is.
#[derive(Debug)]
pub enum Place {
    /// In memory.
    Memory(Box<Envelope>),
    /// On disk.
    Disk(Stretch),
}

/// A stretch of the spool's file that holds, or will hold, one envelope. Counts until it is given back with
/// [`Spool::free`].
#[derive(Debug)]
pub struct Stretch {
    file: Arc<File>,
    at: u64,
    length: u64,
}

impl Spool {
    /// An empty one.
    pub fn new(pool: Pool) -> Self {
        pool.shared.streams.fetch_add(1, Ordering::Relaxed);
        Self { pool, inner: Mutex::default() }
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        let inner = self.inner();
        inner.memory_bytes + inner.disk_bytes
    }

    /// Whether another frame may come in. One always may where none waits: every stream gets on.
    pub fn has_room(&self) -> bool {
        let own = self.bytes();
        let shared = &self.pool.shared;
        let streams = shared.streams.load(Ordering::Relaxed).max(1) as u64;
        let share = (shared.bytes_max / streams).min(shared.stream_bytes_max);
        own == 0 || (own < share && self.pool.bytes() < shared.bytes_max)
    }

    /// Puts a frame at the end if memory has room for it; else gives it back.
    pub fn push_memory(&self, envelope: Box<Envelope>) -> Result<(), Box<Envelope>> {
        let length = envelope.len() as u64;
        let mut inner = self.inner();
        if inner.memory_bytes > 0 && inner.memory_bytes + length > self.pool.shared.memory_bytes_max {
            return Err(envelope);
        }
        inner.memory_bytes += length;
        inner.queue.push_back(Place::Memory(envelope));
        drop(inner);
        self.pool.shared.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps a place on disk for `length` bytes, in a file in `dir` that is made at the first use.
    pub fn reserve(&self, dir: &Path, machine: MachineId, length: u64) -> io::Result<Stretch> {
        let mut inner = self.inner();
        let file = match &inner.file {
            Some(file) => file.clone(),
            None => {
                let file = Arc::new(self.pool.nameless_file(dir, machine)?);
                inner.file = Some(file.clone());
                file
            }
        };
        let stretch = Stretch { file, at: inner.end, length };
        inner.end += length;
        inner.disk_bytes += length;
        drop(inner);
        self.pool.shared.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(stretch)
    }

    /// Puts a frame that was written to `stretch` at the end.
    pub fn push_disk(&self, stretch: Stretch) {
        self.inner().queue.push_back(Place::Disk(stretch));
    }

    /// Takes the frame at the front. One on disk counts until its stretch is given back.
    pub fn pop(&self) -> Option<Place> {
        let mut inner = self.inner();
        let place = inner.queue.pop_front()?;
        if let Place::Memory(envelope) = &place {
            let length = envelope.len() as u64;
            inner.memory_bytes -= length;
            drop(inner);
            self.pool.give_back(length);
        }
        Some(place)
    }

    /// Gives a stretch back. Begins the file anew when nothing of it is in use.
    pub fn free(&self, stretch: &Stretch) {
        let mut inner = self.inner();
        inner.disk_bytes -= stretch.length;
        if inner.disk_bytes == 0 {
            inner.end = 0;
            if stretch.file.set_len(0).is_err() {
                // The space stays taken until the stream ends; the order of frames does not care.
                inner.file = None;
            }
        }
        drop(inner);
        self.pool.give_back(stretch.length);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.pool.shared.streams.fetch_sub(1, Ordering::Relaxed);
        let left = self.bytes();
        self.pool.give_back(left);
    }
}

impl Pool {
    fn give_back(&self, length: u64) {
        self.shared.bytes.fetch_sub(length, Ordering::Relaxed);
        self.shared.freed.notify_waiters();
    }

    fn nameless_file(&self, dir: &Path, machine: MachineId) -> io::Result<File> {
        let number = self.shared.files.fetch_add(1, Ordering::Relaxed);
        // The name is of our own making, and gone before anything is in the file.
        let path = dir.join(format!("{machine}-{}-{number}.spool", std::process::id()));
        std::fs::create_dir_all(dir)?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }
}

impl Stretch {
    /// Writes the envelope there. Blocks.
    pub fn write(&self, envelope: &Envelope) -> io::Result<()> {
        self.file.write_all_at(&envelope.encode(), self.at)
    }

    /// Reads it back, verified. Blocks.
    pub fn read(&self) -> io::Result<Envelope> {
        let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let mut prefix = [0; ENVELOPE_BYTES];
        self.file.read_exact_at(&mut prefix, self.at)?;
        let prefix = EnvelopePrefix::decode(&prefix).map_err(damaged)?;
        if (ENVELOPE_BYTES + prefix.body_len()) as u64 != self.length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "another frame stands where this one was",
            ));
        }
        let mut body = vec![0; prefix.body_len()];
        self.file.read_exact_at(&mut body, self.at + ENVELOPE_BYTES as u64)?;
        prefix.open(body.into()).map_err(damaged)
    }

    #[cfg(test)]
    fn rot(&self, at: u64) {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, self.at + at).unwrap();
        self.file.write_all_at(&[byte[0] ^ 1], self.at + at).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::feed::{Change, FrameBuilder, Identity, Record};
    use continuum_model::time::Timestamp;
    use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};

    const MIB: u64 = 1 << 20;

    fn envelope(number: u64, size: usize) -> Envelope {
        let mut builder = FrameBuilder::default();
        let data = vec![number as u8; size].into();
        let change = Change::Write { disk: DiskIndex(0), offset: 0, data, injected: false };
        let time = Timestamp::from_micros(number as i64);
        builder.push(&Record { sequence: Sequence(number), time, change });
        let machine = MachineId::from_bytes([1; 16]);
        let identity =
            Identity { machine, epoch: Epoch(1), number: FrameNumber(number), session: 1, previous: 0 };
        Envelope::plain(&builder.finish(identity).unwrap())
    }

    fn put(spool: &Spool, dir: &Path, envelope: Envelope) {
        if let Err(envelope) = spool.push_memory(Box::new(envelope)) {
            let stretch = spool.reserve(dir, MachineId::from_bytes([1; 16]), envelope.len() as u64).unwrap();
            stretch.write(&envelope).unwrap();
            spool.push_disk(stretch);
        }
    }

    fn take(spool: &Spool) -> Option<io::Result<Envelope>> {
        Some(match spool.pop()? {
            Place::Memory(envelope) => Ok(*envelope),
            Place::Disk(stretch) => {
                let read = stretch.read();
                spool.free(&stretch);
                read
            }
        })
    }

    #[test]
    fn frames_come_out_in_order_through_memory_and_disk_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::new(1 << 30, 1 << 30, 4 * MIB);
        let spool = Spool::new(pool.clone());
        let (mut expected, mut on_disk) = (1, 0);
        for number in 1..=60 {
            put(&spool, dir.path(), envelope(number, 1 << 20));
            on_disk = on_disk.max(spool.inner().disk_bytes);
            if number % 3 == 0 {
                assert_eq!(take(&spool).unwrap().unwrap().head.identity.number.0, expected);
                expected += 1;
            }
        }
        assert!(on_disk > 10 * MIB, "the disk must have been used: {on_disk}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        while let Some(envelope) = take(&spool) {
            assert_eq!(envelope.unwrap(), super::tests::envelope(expected, 1 << 20));
            expected += 1;
        }
        assert_eq!((expected, spool.bytes(), pool.bytes()), (61, 0, 0));
        assert_eq!(
            spool.inner().file.as_ref().unwrap().metadata().unwrap().len(),
            0,
            "its space was given back"
        );
    }

    #[test]
    fn rot_misplacement_and_loss_are_found_when_a_frame_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let machine = MachineId::from_bytes([1; 16]);
        let spool = Spool::new(Pool::new(1 << 30, 1 << 30, MIB));
        let envelope = envelope(1, 5000);
        let length = envelope.len() as u64;
        for at in 0..length {
            let stretch = spool.reserve(dir.path(), machine, length).unwrap();
            stretch.write(&envelope).unwrap();
            stretch.rot(at);
            assert!(stretch.read().is_err(), "byte {at}");
            spool.free(&stretch);
        }
        let (one, two) = (
            spool.reserve(dir.path(), machine, length).unwrap(),
            spool.reserve(dir.path(), machine, length).unwrap(),
        );
        one.write(&envelope).unwrap();
        assert!(two.read().is_err(), "nothing was written there");
        two.write(&super::tests::envelope(2, 4000)).unwrap();
        assert!(two.read().is_err(), "a shorter one");
        assert!(one.read().is_ok());
    }

    #[test]
    fn a_stream_gets_its_share_and_always_one_frame() {
        let pool = Pool::new(40 * MIB, 30 * MIB, 1 << 40);
        let fat = Spool::new(pool.clone());
        let fill = |spool: &Spool| {
            let mut frames = 0;
            while spool.has_room() {
                spool.push_memory(Box::new(envelope(1, 1 << 20))).unwrap();
                frames += 1;
            }
            frames
        };
        assert_eq!(fill(&fat), 30, "alone: what one stream may have");
        let late = Spool::new(pool.clone());
        assert!(!fat.has_room() && late.has_room());
        assert_eq!(fill(&late), 10, "what is left of all");
        let last = Spool::new(pool.clone());
        assert_eq!(fill(&last), 1, "one frame, whatever the others do");
        // As the fat one drains, the others come to their share of a third, and it does not come back.
        while fat.bytes() > 13 * MIB {
            fat.pop();
        }
        assert_eq!((fill(&late), fill(&last)), (4, 13), "up to 14 each, which is just over a third of 40");
        assert!(!fat.has_room());
        drop((late, last));
        assert!(fat.has_room());
        drop(fat);
        assert_eq!(pool.bytes(), 0);
    }

    #[test]
    fn a_disk_that_cannot_be_written_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let spool = Spool::new(Pool::new(1 << 30, 1 << 30, MIB));
        assert!(spool.reserve(&file.join("below"), MachineId::from_bytes([1; 16]), 10).is_err());
        assert_eq!(spool.bytes(), 0);
    }
}
