//! Frames between an agent and its target: first in, first out; in memory first, on disk beyond, never more
//! than a fair share of what all streams may use.
//!
//! ```text
//! <dir>/<machine id>-<n>.spool   sealed envelopes back to back; unlinked as soon as it is open
//!
//! sealed = AES-256-GCM-SIV of the envelope · tag [16]
//!          key: drawn when the process starts, in its memory only      nonce: zero u32 · number u64 of the stretch
//!          associated data: "CTSPOOL1" · machine [16] · number u64 · position u64 · length u64
//! ```
//!
//! Whoever takes the disk, or finds freed blocks on it, finds nothing to read: the key ends with the process. A number
//! is used once; should the whole process be reverted with its memory and use one again, that tells no more than
//! whether the same frame was sealed twice.
//!
//! Not durable and not meant to be: the file has no name, so that whatever ends this process also wipes it.
//! What is read back is verified again, so a rotten spool ends the stream, which then starts again from what
//! the target holds. A disk that cannot be written makes the spool small (memory only), never wrong.
//!
//! Lives here: places and their accounts. Waiting and the threads for blocking reads and writes: `relay`.

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use continuum_model::feed::Envelope;
use continuum_model::id::MachineId;
use continuum_model::world::{Entropy, SystemEntropy};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use zeroize::Zeroizing;

/// Bytes that sealing adds to an envelope.
const TAG_BYTES: u64 = 16;

/// What all streams together may have waiting. Clones are the same pool.
#[derive(Debug, Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    bytes: AtomicU64,
    streams: AtomicUsize,
    bytes_max: u64,
    stream_bytes_max: u64,
    memory_bytes_max: u64,
    freed: Notify,
    files: AtomicU64,
    seal: Aes256GcmSiv,
    /// The number of the next stretch.
    numbers: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Shared").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Pool {
    /// `bytes_max` for all streams, `stream_bytes_max` for each, of which `memory_bytes_max` in memory.
    pub fn new(bytes_max: u64, stream_bytes_max: u64, memory_bytes_max: u64) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        SystemEntropy.fill(&mut *key);
        Self {
            shared: Arc::new(Shared {
                bytes: AtomicU64::new(0),
                streams: AtomicUsize::new(0),
                bytes_max,
                stream_bytes_max,
                memory_bytes_max,
                freed: Notify::new(),
                files: AtomicU64::new(0),
                seal: Aes256GcmSiv::new((&*key).into()),
                numbers: AtomicU64::new(0),
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
/// [`Spool::free`] or [`Spool::open`].
#[derive(Debug)]
pub struct Stretch {
    pool: Pool,
    file: Arc<File>,
    machine: MachineId,
    /// Of this stretch alone, over the life of the process.
    number: u64,
    at: u64,
    /// Of the envelope; the tag follows it.
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
        let number = self.pool.shared.numbers.fetch_add(1, Ordering::Relaxed);
        let stretch = Stretch { pool: self.pool.clone(), file, machine, number, at: inner.end, length };
        inner.end += length + TAG_BYTES;
        inner.disk_bytes += length;
        drop(inner);
        self.pool.shared.bytes.fetch_add(length, Ordering::Relaxed);
        Ok(stretch)
    }

    /// Puts a frame that was written to `stretch` at the end.
    pub fn push_disk(&self, stretch: Stretch) {
        self.inner().queue.push_back(Place::Disk(stretch));
    }

    /// Puts a frame at the end, on disk. Gives it back where the disk does not take it. Blocks.
    pub fn push_to_disk(
        &self,
        dir: &Path,
        machine: MachineId,
        envelope: Box<Envelope>,
    ) -> Result<(), (io::Error, Box<Envelope>)> {
        let stretch = match self.reserve(dir, machine, envelope.len() as u64) {
            Ok(stretch) => stretch,
            Err(error) => return Err((error, envelope)),
        };
        match stretch.write(&envelope) {
            Ok(()) => {
                self.push_disk(stretch);
                Ok(())
            }
            Err(error) => {
                self.free(&stretch);
                Err((error, envelope))
            }
        }
    }

    /// Opens what was taken from the front, verified, and gives its place back. Blocks where it is on disk.
    pub fn open(&self, place: Place) -> io::Result<Envelope> {
        match place {
            Place::Memory(envelope) => Ok(*envelope),
            Place::Disk(stretch) => {
                let read = stretch.read();
                self.free(&stretch);
                read
            }
        }
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
    /// Seals the envelope and writes it there. Blocks.
    pub fn write(&self, envelope: &Envelope) -> io::Result<()> {
        let mut bytes = envelope.encode().to_vec();
        let tag = self
            .pool
            .shared
            .seal
            .encrypt_inout_detached(&self.nonce(), &self.bound_to(), bytes.as_mut_slice().into())
            .map_err(|_| io::Error::other("the envelope could not be sealed"))?;
        bytes.extend_from_slice(tag.as_slice());
        self.file.write_all_at(&bytes, self.at)
    }

    /// Reads it back, opened and verified. Blocks.
    pub fn read(&self) -> io::Result<Envelope> {
        let damaged = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut bytes = vec![0; self.length as usize];
        let mut tag = Tag::default();
        self.file.read_exact_at(&mut bytes, self.at)?;
        self.file.read_exact_at(tag.as_mut_slice(), self.at + self.length)?;
        self.pool
            .shared
            .seal
            .decrypt_inout_detached(&self.nonce(), &self.bound_to(), bytes.as_mut_slice().into(), &tag)
            .map_err(|_| {
                let (machine, at) = (self.machine, self.at);
                damaged(format!(
                    "what stands at byte {at} is not the frame of machine {machine} that was put there"
                ))
            })?;
        let (envelope, length) =
            Envelope::decode(&bytes.into()).map_err(|error| damaged(error.to_string()))?;
        if length as u64 == self.length {
            Ok(envelope)
        } else {
            Err(damaged("a frame of another length".into()))
        }
    }

    fn nonce(&self) -> Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.number.to_le_bytes());
        nonce.into()
    }

    /// What a sealed frame belongs to, and is refused anywhere else.
    fn bound_to(&self) -> [u8; 48] {
        let mut bound = [0; 48];
        bound[..8].copy_from_slice(b"CTSPOOL1");
        bound[8..24].copy_from_slice(self.machine.as_bytes());
        for (place, value) in [self.number, self.at, self.length].into_iter().enumerate() {
            bound[24 + place * 8..32 + place * 8].copy_from_slice(&value.to_le_bytes());
        }
        bound
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
            spool.push_to_disk(dir, MachineId::from_bytes([1; 16]), envelope).unwrap();
        }
    }

    fn take(spool: &Spool) -> Option<io::Result<Envelope>> {
        Some(spool.open(spool.pop()?))
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
        for at in 0..length + TAG_BYTES {
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
    fn what_is_on_disk_tells_nothing_and_is_good_in_its_place_only() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (MachineId::from_bytes([1; 16]), MachineId::from_bytes([2; 16]));
        let pool = Pool::new(1 << 30, 1 << 30, MIB);
        let (spool, other) = (Spool::new(pool.clone()), Spool::new(pool));
        let canary = *b"a canary that nobody may read";
        let mut envelope = envelope(1, 5000);
        let mut stored = envelope.stored.to_vec();
        stored[100..100 + canary.len()].copy_from_slice(&canary);
        envelope.stored = stored.into();
        let length = envelope.len() as u64;
        let reserve = |spool: &Spool, machine| spool.reserve(dir.path(), machine, length).unwrap();
        let (first, second) = (reserve(&spool, one), reserve(&spool, one));
        let elsewhere = reserve(&other, two);
        for stretch in [&first, &second, &elsewhere] {
            stretch.write(&envelope).unwrap();
        }
        let raw = |stretch: &Stretch| {
            let mut bytes = vec![0; (length + TAG_BYTES) as usize];
            stretch.file.read_exact_at(&mut bytes, stretch.at).unwrap();
            bytes
        };
        let (a, b, c) = (raw(&first), raw(&second), raw(&elsewhere));
        let holds = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(holds(&envelope.encode(), &canary), "it is there to be found");
        assert!([&a, &b, &c].iter().all(|bytes| !holds(bytes, &canary)));
        assert!(a != b && b != c, "the same frame twice is not seen to be the same");
        // Swapped within the file; and of another machine.
        first.file.write_all_at(&b, first.at).unwrap();
        assert!(first.read().unwrap_err().to_string().contains("is not the frame of machine"));
        first.file.write_all_at(&c, first.at).unwrap();
        assert!(first.read().is_err());
        first.file.write_all_at(&a, first.at).unwrap();
        // (Its own checksums do not hold for what the test put in; that it opens is what counts.)
        assert!(!first.read().is_err_and(|error| error.to_string().contains("is not the frame")));
        // Another process has another key.
        let stranger = Pool::new(1 << 30, 1 << 30, MIB);
        let opened = Stretch { pool: stranger, file: first.file.clone(), machine: one, ..first };
        assert!(opened.read().unwrap_err().to_string().contains("is not the frame of machine"));
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
