//! Frames between an agent and its target: first in, first out, bounded; in memory first, on disk beyond.
//!
//! ```text
//! <dir>/<machine id>.spool   envelopes back to back; cut to nothing whenever all of it was forwarded
//! ```
//!
//! Not durable and not meant to be: it is emptied at every start. What it returns was verified again, so a
//! rotten spool ends the stream, which then starts again from what the target holds.

use continuum_model::feed::Envelope;
use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Frames in memory before the disk is used.
const MEMORY_BYTES: u64 = 16 << 20;

/// The frames of one stream.
pub struct Spool {
    path: PathBuf,
    file: Option<File>,
    queue: VecDeque<Place>,
    memory_bytes: u64,
    disk_bytes: u64,
    end: u64,
}

enum Place {
    Memory(Box<Envelope>),
    Disk { at: u64, length: u64 },
}

impl Spool {
    /// An empty spool; what an earlier run left is forgotten.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, queue: VecDeque::new(), memory_bytes: 0, disk_bytes: 0, end: 0 }
    }

    /// Bytes that wait.
    pub const fn bytes(&self) -> u64 {
        self.memory_bytes + self.disk_bytes
    }

    /// Frames that wait.
    pub fn frames(&self) -> usize {
        self.queue.len()
    }

    /// Puts a frame at the end.
    pub fn push(&mut self, envelope: Envelope) -> io::Result<()> {
        let length = envelope.len() as u64;
        if self.memory_bytes + length <= MEMORY_BYTES || self.queue.is_empty() {
            self.memory_bytes += length;
            self.queue.push_back(Place::Memory(Box::new(envelope)));
            return Ok(());
        }
        if self.file.is_none() {
            self.file =
                Some(File::options().read(true).write(true).create(true).truncate(true).open(&self.path)?);
            self.end = 0;
        }
        if let Some(file) = &self.file {
            file.write_all_at(&envelope.encode(), self.end)?;
        }
        self.queue.push_back(Place::Disk { at: self.end, length });
        self.end += length;
        self.disk_bytes += length;
        Ok(())
    }

    /// Takes the frame at the front.
    pub fn pop(&mut self) -> io::Result<Option<Envelope>> {
        match self.queue.pop_front() {
            None => Ok(None),
            Some(Place::Memory(envelope)) => {
                self.memory_bytes -= envelope.len() as u64;
                Ok(Some(*envelope))
            }
            Some(Place::Disk { at, length }) => {
                self.disk_bytes -= length;
                let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
                let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                let mut prefix = [0; ENVELOPE_BYTES];
                file.read_exact_at(&mut prefix, at)?;
                let prefix = EnvelopePrefix::decode(&prefix).map_err(damaged)?;
                let mut body = vec![0; prefix.body_len()];
                file.read_exact_at(&mut body, at + ENVELOPE_BYTES as u64)?;
                let envelope = prefix.open(body.into()).map_err(damaged)?;
                if self.disk_bytes == 0 {
                    file.set_len(0)?;
                    self.end = 0;
                }
                Ok(Some(envelope))
            }
        }
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::feed::{Change, FrameBuilder, Identity, Record};
    use continuum_model::id::MachineId;
    use continuum_model::time::Timestamp;
    use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};

    fn envelope(number: u64) -> Envelope {
        let mut builder = FrameBuilder::default();
        let data = vec![number as u8; 1 << 20].into();
        let change = Change::Write { disk: DiskIndex(0), offset: 0, data, injected: false };
        builder.push(&Record {
            sequence: Sequence(number),
            time: Timestamp::from_micros(number as i64),
            change,
        });
        let machine = MachineId::from_bytes([1; 16]);
        let identity =
            Identity { machine, epoch: Epoch(1), number: FrameNumber(number), session: 1, previous: 0 };
        Envelope::plain(&builder.finish(identity).unwrap())
    }

    #[test]
    fn frames_come_out_in_order_through_memory_and_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path().join("x.spool"));
        let mut expected = 1;
        for number in 1..=60 {
            spool.push(envelope(number)).unwrap();
            if number % 3 == 0 {
                assert_eq!(spool.pop().unwrap().unwrap().head.identity.number.0, expected);
                expected += 1;
            }
        }
        assert!(spool.disk_bytes > 0, "the disk must have been used");
        while let Some(envelope) = spool.pop().unwrap() {
            assert_eq!(envelope.head.identity.number.0, expected);
            expected += 1;
        }
        assert_eq!((expected, spool.bytes()), (61, 0));
    }

    #[test]
    fn rot_in_the_spool_is_never_forwarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.spool");
        let mut spool = Spool::new(path.clone());
        (1..=20).for_each(|number| spool.push(envelope(number)).unwrap());
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(b"rot", 5000).unwrap();
        let outcome: Result<Vec<_>, _> = (0..20).map(|_| spool.pop()).collect();
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
