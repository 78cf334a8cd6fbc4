//! A copy of a disk that was brought here by other means, as the beginning of a replica.
//!
//! What it holds goes into the journal as frames of our own, behind a break and as injected reads: nothing of it can
//! be brought up. A source that opens a stream then finds a replica that it never fed, doubts it, compares every block
//! by its sum, and sends what differs. So a seed that is old, or another machine's, costs time and never a wrong byte.

use crate::store::{ReplicaError, Store};
use continuum_model::feed::{Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Sequence};
use std::io::{self, Read};

/// Bytes in one write, and in one frame.
const WRITE_BYTES: usize = 256 << 10;
const FRAME_BYTES: usize = 4 << 20;

/// Why a seed was not taken, or not whole.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// There is history already.
    #[error("the replica holds history already: a seed is only where one begins")]
    NotEmpty,
    /// The image could not be read.
    #[error("the seed of disk {disk} cannot be read; what was read of it is kept, and compared as well")]
    Image {
        /// Which disk.
        disk: DiskIndex,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was stopped.
    #[error("it was stopped; what was read is kept, and compared as well")]
    Stopped,
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] ReplicaError),
}

/// Takes images of disks into a store that holds nothing yet. What an image lacks at its end is not there; what is
/// longer than its disk is left out. `told` hears how many bytes were read; its answer says whether to go on.
pub fn seed(
    store: &Store,
    images: Vec<(DiskIndex, Box<dyn Read>)>,
    now: Timestamp,
    told: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, SeedError> {
    let state = store.state();
    if state.last.number.0 > 0 {
        return Err(SeedError::NotEmpty);
    }
    let mut making = Making {
        store,
        builder: FrameBuilder::default(),
        sequence: state.last.sequence,
        time: now,
        taken: 0,
    };
    making.push(Change::Break);
    let mut read = 0;
    for (disk, mut image) in images {
        let size = store.disks().iter().find(|spec| spec.index == disk).map(|spec| spec.size);
        let size = size.ok_or(ReplicaError::NoDisk(disk))?;
        let mut at = 0;
        while at < size {
            let mut data = vec![0; WRITE_BYTES.min((size - at) as usize)];
            let got = fill(&mut *image, &mut data).map_err(|source| SeedError::Image { disk, source })?;
            data.truncate(got);
            if got == 0 {
                break;
            }
            if data.iter().any(|byte| *byte != 0) {
                making.push(Change::Write { disk, offset: at, data: data.into(), injected: true });
            }
            at += got as u64;
            read += got as u64;
            if making.builder.payload_len() >= FRAME_BYTES {
                making.end()?;
            }
            if !told(read) {
                return Err(SeedError::Stopped);
            }
        }
    }
    making.end()?;
    Ok(making.taken)
}

fn fill(image: &mut dyn Read, out: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < out.len() {
        match image.read(&mut out[done..]) {
            Ok(0) => break,
            Ok(got) => done += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

struct Making<'a> {
    store: &'a Store,
    builder: FrameBuilder,
    sequence: Sequence,
    time: Timestamp,
    taken: u64,
}

impl Making<'_> {
    fn push(&mut self, change: Change) {
        self.sequence = self.sequence.next();
        self.time = self.time.plus(std::time::Duration::from_micros(1));
        if let Change::Write { data, .. } = &change {
            self.taken += data.len() as u64;
        }
        self.builder.push(&Record { sequence: self.sequence, time: self.time, change });
    }

    fn end(&mut self) -> Result<(), SeedError> {
        let state = self.store.state();
        let identity = Identity {
            machine: self.store.machine(),
            epoch: state.epoch,
            number: state.last.number.next(),
            session: 0,
            previous: state.last.digest,
        };
        let Some(frame) = self.builder.finish(identity) else { return Ok(()) };
        let mut envelope = Envelope::plain(&frame);
        if let Ok(packed) = zstd::bulk::compress(&frame.payload, 1)
            && packed.len() < frame.payload.len() / 16 * 15
        {
            (envelope.codec, envelope.stored) = (Codec::Zstd, packed.into());
        }
        self.store.append(&[envelope])?;
        Ok(())
    }
}
