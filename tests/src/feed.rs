//! A source in memory that feeds a store, for benches.

use bytes::Bytes;
use continuum_model::feed::{Barrier, Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::{Cache, DiskSpec, Folder, Store, View};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whose history it is.
pub const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
/// Its only disk.
pub const DISK: DiskIndex = DiskIndex(0);
/// As fast as zstd goes at the rate of a fast link.
const ZSTD_LEVEL: i32 = -3;

/// Opens the store of [`MACHINE`] in a folder, made where there is none.
pub fn open(dir: &Path, size: u64) -> Store {
    let disks = [DiskSpec { index: DISK, id: DiskId::from_bytes([1; 16]), size }];
    let folder = Folder::open_or_create(dir).expect("a folder");
    let store = Store::open_with(Arc::new(folder), MACHINE, &disks, Cache::of_process()).expect("it opens").0;
    store.fence(Epoch(1)).expect("an epoch");
    store
}

/// Makes frames, each the next of the one before.
#[derive(Default)]
pub struct Frames {
    builder: FrameBuilder,
    sequence: u64,
    frame: u64,
    previous: u128,
    /// Bytes that were pushed and are in no frame yet.
    pub pending: usize,
}

impl Frames {
    /// The moment of the last record.
    pub fn moment(&self) -> Timestamp {
        Timestamp::from_micros(self.sequence as i64 * 10)
    }

    /// One record.
    pub fn push(&mut self, change: Change) {
        self.sequence += 1;
        if let Change::Write { data, .. } = &change {
            self.pending += data.len();
        }
        let record = Record { sequence: Sequence(self.sequence), time: self.moment(), change };
        self.builder.push(&record);
    }

    /// A write.
    pub fn write(&mut self, offset: u64, data: Bytes) {
        self.push(Change::Write { disk: DISK, offset, data, injected: false });
    }

    /// A moment that may be brought up.
    pub fn mark(&mut self) {
        self.push(Change::Barrier(Barrier::time_mark(true)));
    }

    /// What was pushed, as a frame.
    pub fn finish(&mut self, compressed: bool) -> Envelope {
        self.frame += 1;
        let identity = Identity {
            machine: MACHINE,
            epoch: Epoch(1),
            number: FrameNumber(self.frame),
            session: 1,
            previous: self.previous,
        };
        let frame = self.builder.finish(identity).expect("records were pushed");
        self.previous = frame.head.digest;
        self.pending = 0;
        let mut envelope = Envelope::plain(&frame);
        if compressed {
            let packed = zstd::bulk::compress(&frame.payload, ZSTD_LEVEL).expect("it compresses");
            (envelope.codec, envelope.stored) = (Codec::Zstd, packed.into());
        }
        envelope
    }
}

/// A disk whose history goes to a store.
pub struct Feed {
    /// The store's folder.
    pub dir: PathBuf,
    /// The store.
    pub store: Store,
    /// The disk's size.
    pub size: u64,
    /// What the disk holds now.
    pub disk: Vec<u8>,
    /// What is on its way.
    pub frames: Frames,
    rng: ChaCha8Rng,
}

impl Feed {
    /// A store in a folder of this one, without history.
    pub fn new(dir: &Path, size: u64) -> Self {
        let dir = dir.join("store");
        Self {
            store: open(&dir, size),
            dir,
            size,
            disk: Vec::new(),
            frames: Frames::default(),
            rng: ChaCha8Rng::seed_from_u64(1),
        }
    }

    /// Sends what was pushed.
    pub fn ship(&mut self, compressed: bool) {
        let envelope = self.frames.finish(compressed);
        self.store.append(&[envelope]).expect("it is taken");
    }

    /// A write; sent with others in frames of 1 MiB.
    pub fn write(&mut self, offset: u64, length: usize) {
        let data = half_noise(&mut self.rng, length);
        self.disk[offset as usize..][..length].copy_from_slice(&data);
        self.frames.write(offset, data);
        if self.frames.pending >= 1 << 20 {
            self.ship(true);
        }
    }

    /// Every byte of the disk once, and a moment after it.
    pub fn first_copy(&mut self) {
        self.disk = vec![0; self.size as usize];
        for offset in (0..self.size).step_by(1 << 20) {
            self.write(offset, 1 << 20);
        }
        self.frames.mark();
        self.ship(true);
        // Something newer, so that all of it may be folded.
        self.frames.mark();
        self.ship(true);
    }

    /// So many bytes in writes of 4–64 KiB all over the disk. Returns how many writes they were.
    pub fn random_writes(&mut self, bytes: u64) -> u64 {
        let (mut done, mut records) = (0, 0);
        while done < bytes {
            let length = 4096 * self.rng.random_range(1..=16u64);
            let offset = self.rng.random_range(0..=(self.size - length) / 4096) * 4096;
            self.write(offset, length as usize);
            (done, records) = (done + length, records + 1);
        }
        self.frames.mark();
        self.ship(true);
        records
    }

    /// The same, of whose store nothing is in memory.
    #[must_use]
    pub fn opened_anew(self) -> Self {
        let Self { dir, store, size, disk, frames, rng } = self;
        drop(store);
        Self { store: open(&dir, size), dir, size, disk, frames, rng }
    }

    /// The newest state.
    pub fn view(&self) -> View {
        let newest = self.store.resolve(&PointChoice::Latest).expect("a point");
        self.store.open_view(newest.position).expect("a view")
    }
}

/// Half noise, half what compresses.
pub fn half_noise(rng: &mut ChaCha8Rng, length: usize) -> Bytes {
    let mut data = vec![0; length];
    rng.fill(&mut data[..length / 2]);
    let fill: u8 = rng.random();
    data[length / 2..].fill(fill);
    data.into()
}

/// As the disk of a server: a quarter noise (what is compressed or encrypted already), a quarter text, a quarter
/// records with counters, an eighth pages that are mostly empty, an eighth zeroes.
pub fn mixed(rng: &mut ChaCha8Rng, length: usize) -> Bytes {
    const WORDS: [&str; 24] = [
        "the",
        "site",
        "of",
        "machine",
        "and",
        "error",
        "at",
        "disk",
        "in",
        "connection",
        "was",
        "read",
        "to",
        "write",
        "from",
        "volume",
        "GET",
        "/index.html",
        "200",
        "INFO",
        "WARN",
        "user",
        "session",
        "closed",
    ];
    let mut data = Vec::with_capacity(length + 4096);
    while data.len() < length {
        let stop = data.len() + 4096;
        match rng.random_range(0..8u8) {
            0 | 1 => {
                data.resize(stop, 0);
                let start = stop - 4096;
                rng.fill(&mut data[start..]);
            }
            2 | 3 => {
                while data.len() < stop {
                    data.extend_from_slice(WORDS[rng.random_range(0..WORDS.len())].as_bytes());
                    data.push(if rng.random_range(0..12u8) == 0 { b'\n' } else { b' ' });
                    if rng.random_range(0..8u8) == 0 {
                        data.extend_from_slice(rng.random_range(0..100_000u32).to_string().as_bytes());
                    }
                }
            }
            4 | 5 => {
                let mut number: u64 = rng.random();
                while data.len() < stop {
                    number += u64::from(rng.random_range(1..20u8));
                    data.extend_from_slice(&number.to_le_bytes());
                    data.extend_from_slice(&rng.random_range(0..5000u64).to_le_bytes());
                    data.extend_from_slice(&rng.random::<u32>().to_le_bytes());
                    data.extend_from_slice(&[0; 12]);
                }
            }
            6 => {
                let used = data.len() + 400;
                data.resize(used, 0);
                rng.fill(&mut data[used - 400..]);
            }
            _ => {}
        }
        data.resize(stop, 0);
    }
    data.truncate(length);
    data.into()
}
