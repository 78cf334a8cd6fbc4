//! From a store's files to content: frames from their segments, blocks from the base, through the cache.
//!
//! Invariant: nothing leaves here that was not verified against its checksum.

use crate::cache::{Content, Key};
use crate::extents::Run;
use crate::planted::{self, Bug};
use crate::segment;
use crate::store::{Core, ReplicaError};
use crate::view::{Source, newest_of};
use bytes::Bytes;
use continuum_model::feed::frame::RowKind;
use continuum_model::feed::{Codec, Envelope, Frame};
use continuum_model::units::{DiskIndex, FrameNumber, REGION_BYTES, Sequence};
use std::cell::RefCell;

/// A block of a base in the cache that is all zeroes.
const ZEROES: Bytes = Bytes::new();

impl Core {
    /// Which record up to a position holds each range of a region, newest first to be asked.
    pub(crate) fn runs_at(&self, disk: DiskIndex, region: u64, position: Sequence) -> Vec<Run<Source>> {
        let index = self.index();
        let entries = index.in_region(disk, region).take_while(|entry| entry.sequence <= position);
        newest_of(entries.filter_map(|entry| {
            let source = match entry.kind {
                RowKind::Write => Source::Frame { number: entry.frame, data_at: entry.data_at },
                RowKind::Zero if planted::is(Bug::ZeroesForgotten) => return None,
                RowKind::Zero => Source::Zero,
                RowKind::Barrier | RowKind::Break => return None,
            };
            let end = entry.offset + u64::from(entry.length);
            Some((entry.offset, end, source))
        }))
    }

    /// A frame's payload, where it is in the cache.
    pub(crate) fn cached_payload(&self, number: FrameNumber) -> Option<Bytes> {
        self.cache.bytes_of(Key::Frame(self.id, number))
    }

    /// A frame's payload. `None`: the frame was folded, and the base holds what it held.
    ///
    /// Errors: [`ReplicaError::Gap`] where it was thinned meanwhile; then [`Core::generation`] rose, and what holds its
    /// data now is to be looked up again.
    pub(crate) fn payload(&self, number: FrameNumber) -> Result<Option<Bytes>, ReplicaError> {
        let key = Key::Frame(self.id, number);
        if let Some(payload) = self.cache.bytes_of(key) {
            return Ok(Some(payload));
        }
        let (file, place) = {
            let index = self.index();
            if number <= index.manifest.base_frame {
                return Ok(None);
            }
            let place = index.frame(number).cloned();
            let place = place.ok_or(ReplicaError::Gap { last: index.last.number, got: number })?;
            let file = index.segments.get(&place.segment).map(|(file, _)| file.clone());
            (file.ok_or(ReplicaError::Gap { last: index.last.number, got: number })?, place)
        };
        let envelope = segment::read_envelope(&*file, place.segment, place.at, place.length)?;
        if envelope.head.digest != place.digest {
            return Err(ReplicaError::Damaged {
                file: segment::file_name(place.segment),
                reason: format!("frame {number} is another one than was stored there"),
            });
        }
        let payload = open_envelope(&envelope)?.payload;
        self.cache.put(key, Content::Bytes(payload.clone()));
        Ok(Some(payload))
    }

    /// Copies a run's content out of its frame's payload, or out of the base where the frame was folded.
    pub(crate) fn fill(
        &self,
        disk: DiskIndex,
        offset: u64,
        payload: Option<&Bytes>,
        from: u64,
        out: &mut [u8],
    ) -> Result<(), ReplicaError> {
        match payload {
            Some(payload) => {
                // The head's checks keep a record's data inside its payload.
                let from = from as usize;
                out.copy_from_slice(&payload[from..from + out.len()]);
                Ok(())
            }
            None => self.read_base(disk, offset, out),
        }
    }

    /// Reads a stretch of the base. Whole blocks go straight to `out`, parts of blocks through the cache.
    pub(crate) fn read_base(
        &self,
        disk: DiskIndex,
        mut offset: u64,
        mut out: &mut [u8],
    ) -> Result<(), ReplicaError> {
        while !out.is_empty() {
            let block = offset / REGION_BYTES;
            let within = offset - block * REGION_BYTES;
            let whole = if within == 0 { out.len() as u64 / REGION_BYTES * REGION_BYTES } else { 0 };
            let length = if whole > 0 {
                let (part, _) = out.split_at_mut(whole as usize);
                self.base().read_blocks(disk, block, part)?;
                whole
            } else {
                let length = (out.len() as u64).min(REGION_BYTES - within);
                let content = self.base_block(disk, block)?;
                let part = &mut out[..length as usize];
                match &content[..] {
                    [] => part.fill(0),
                    content => part.copy_from_slice(&content[within as usize..][..part.len()]),
                }
                length
            };
            offset += length;
            out = &mut out[length as usize..];
        }
        Ok(())
    }

    /// A block of the base; empty: zeroes.
    fn base_block(&self, disk: DiskIndex, block: u64) -> Result<Bytes, ReplicaError> {
        let key = Key::Block(self.id, disk, block);
        if let Some(content) = self.cache.bytes_of(key) {
            return Ok(content);
        }
        // Held until the content is in the cache: a fold that writes this block forgets it there, and must not
        // do so in between.
        let base = self.base();
        let mut sum = [0];
        base.sums(disk, block, &mut sum)?;
        let content = if sum == [0] {
            ZEROES
        } else {
            let mut content = Vec::new();
            base.read_block(disk, block, &mut content)?;
            content.into()
        };
        self.cache.put(key, Content::Bytes(content.clone()));
        Ok(content)
    }

    /// Tells which parts of a stretch of the base hold data.
    pub(crate) fn base_extents(
        &self,
        disk: DiskIndex,
        from: u64,
        to: u64,
        push: &mut impl FnMut(u64, bool),
    ) -> Result<(), ReplicaError> {
        const SUMS: u64 = 512;
        let mut sums = [0; SUMS as usize];
        let mut from = from;
        while from < to {
            let first = from / REGION_BYTES;
            let count = (to.div_ceil(REGION_BYTES) - first).min(SUMS);
            let sums = &mut sums[..count as usize];
            self.base().sums(disk, first, sums)?;
            for (block, sum) in (first..).zip(sums) {
                let stop = ((block + 1) * REGION_BYTES).min(to);
                push(stop - from, *sum != 0);
                from = stop;
            }
        }
        Ok(())
    }
}

/// Decompresses and verifies an envelope. What it expands to is bounded by what its head declares.
pub(crate) fn open_envelope(envelope: &Envelope) -> Result<Frame, ReplicaError> {
    thread_local! {
        // Making one costs more than decompressing a small frame.
        static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
    }
    let length = envelope.head.payload_len as usize;
    let wrong = |what: &str| {
        let number = envelope.head.identity.number.0;
        ReplicaError::Damaged { file: format!("frame {number}"), reason: format!("its payload {what}") }
    };
    let payload = match envelope.codec {
        Codec::Plain => envelope.stored.clone(),
        Codec::Lz4 => {
            let mut out = vec![0; length];
            let written = lz4_flex::block::decompress_into(&envelope.stored, &mut out)
                .map_err(|_| wrong("cannot be decompressed"))?;
            out.truncate(written);
            Bytes::from(out)
        }
        Codec::Zstd => {
            // One byte more than declared is asked for, so that more is noticed without being kept.
            let out = ZSTD.with_borrow_mut(|kept| {
                let decompressor = match kept {
                    Some(decompressor) => decompressor,
                    None => kept.insert(zstd::bulk::Decompressor::new()?),
                };
                decompressor.decompress(&envelope.stored, length + 1)
            });
            Bytes::from(
                out.map_err(|_| wrong("expands beyond its declared size, or cannot be decompressed"))?,
            )
        }
    };
    Ok(envelope.head.clone().open(payload)?)
}
