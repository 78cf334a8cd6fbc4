//! What is written on top of a view: a log of its own, so that a machine which was brought up can write.
//!
//! ```text
//! views/<id>.cow   records, back to back:
//! 0  magic "CTMO"   4 kind u8 (1 write · 2 zero)  5 zero  6 disk u16   8 offset u64   16 length u64
//! 24 position u64   32 data sum u64 (xxh3-64)     40 header sum u64 (xxh3-64 of bytes 0..40)
//! 48 data
//! ```
//!
//! Only ever appended to; a torn tail is cut when it is opened again, and so an acknowledged flush is kept
//! and nothing half-written is ever returned. Space is given back when the overlay is removed.

use crate::extents::{ExtentMap, Run};
use crate::medium::{Medium, MediumFile};
use crate::store::ReplicaError;
use crate::view::View;
use continuum_model::id::ViewId;
use continuum_model::units::DiskIndex;
use std::sync::{Mutex, PoisonError, RwLock};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"CTMO";
const HEADER: usize = 48;
/// Longer writes become several records, so that reading a few bytes verifies little.
const RECORD_DATA_MAX: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Data { at: u64, length: u32, sum: u64 },
    Zero,
}

/// A view that can be written.
pub struct Overlay {
    view: View,
    name: String,
    file: Box<dyn MediumFile>,
    maps: RwLock<Vec<ExtentMap<Piece>>>,
    end: Mutex<Tail>,
}

struct Tail {
    end: u64,
    poisoned: bool,
}

fn file_name(id: ViewId) -> String {
    format!("views/{id}.cow")
}

impl Overlay {
    pub(crate) fn open(medium: &dyn Medium, view: View, id: ViewId) -> Result<Self, ReplicaError> {
        let name = file_name(id);
        let io = |error| ReplicaError::io(&name, error);
        let file = medium.open(&name, true).map_err(io)?;
        let length = file.len().map_err(io)?;
        let mut maps: Vec<ExtentMap<Piece>> = view.disks().iter().map(|_| ExtentMap::default()).collect();
        let mut end = 0;
        while let Some((disk, offset, piece, bytes, next)) = read_header(&*file, end, length) {
            if let Piece::Data { at, length: data_len, sum } = piece {
                let mut data = vec![0; data_len as usize];
                if file.read_at(at, &mut data).is_err() || xxh3_64(&data) != sum {
                    break;
                }
            }
            let Some(place) = view.disks().iter().position(|spec| spec.index == disk) else { break };
            if offset.saturating_add(bytes) > view.disks()[place].size {
                break;
            }
            maps[place].insert(offset, offset + bytes, piece);
            end = next;
        }
        if end < length {
            file.set_len(end).map_err(io)?;
        }
        file.sync().map_err(io)?;
        medium.sync_folder("views").map_err(io)?;
        Ok(Self { view, name, file, maps: RwLock::new(maps), end: Mutex::new(Tail { end, poisoned: false }) })
    }

    pub(crate) fn remove(medium: &dyn Medium, id: ViewId) -> Result<(), ReplicaError> {
        let name = file_name(id);
        medium
            .remove(&name)
            .and_then(|()| medium.sync_folder("views"))
            .map_err(|error| ReplicaError::io(&name, error))
    }

    /// The view below.
    pub const fn view(&self) -> &View {
        &self.view
    }

    /// Bytes that were written on top.
    pub fn bytes(&self) -> u64 {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).end
    }

    fn place(&self, disk: DiskIndex) -> Result<usize, ReplicaError> {
        self.view.disks().iter().position(|spec| spec.index == disk).ok_or(ReplicaError::NoDisk(disk))
    }

    /// Fills `out`: what was written on top, else the view.
    pub fn read_at(&self, disk: DiskIndex, offset: u64, out: &mut [u8]) -> Result<(), ReplicaError> {
        let place = self.place(disk)?;
        let end = offset + out.len() as u64;
        let runs = self.maps.read().unwrap_or_else(PoisonError::into_inner)[place].overlapping(offset, end);
        let mut done = offset;
        for run in runs {
            if run.start > done {
                self.view.read_at(
                    disk,
                    done,
                    &mut out[(done - offset) as usize..(run.start - offset) as usize],
                )?;
            }
            self.fill(&run, &mut out[(run.start - offset) as usize..(run.end - offset) as usize])?;
            done = run.end;
        }
        if done < end {
            self.view.read_at(disk, done, &mut out[(done - offset) as usize..])?;
        }
        Ok(())
    }

    fn fill(&self, run: &Run<Piece>, out: &mut [u8]) -> Result<(), ReplicaError> {
        let Piece::Data { at, length, sum } = run.source else {
            out.fill(0);
            return Ok(());
        };
        let mut data = vec![0; length as usize];
        self.file.read_at(at, &mut data).map_err(|error| ReplicaError::io(&self.name, error))?;
        if xxh3_64(&data) != sum {
            return Err(ReplicaError::Damaged {
                file: self.name.clone(),
                reason: format!("data at {at} does not match its checksum"),
            });
        }
        out.copy_from_slice(&data[run.skip as usize..run.skip as usize + out.len()]);
        Ok(())
    }

    /// Writes on top.
    pub fn write_at(&self, disk: DiskIndex, offset: u64, data: &[u8]) -> Result<(), ReplicaError> {
        let mut offset = offset;
        for part in data.chunks(RECORD_DATA_MAX) {
            self.append(disk, offset, part.len() as u64, Some(part))?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Makes a range read as zeroes.
    pub fn zero(&self, disk: DiskIndex, offset: u64, length: u64) -> Result<(), ReplicaError> {
        self.append(disk, offset, length, None)
    }

    fn append(
        &self,
        disk: DiskIndex,
        offset: u64,
        length: u64,
        data: Option<&[u8]>,
    ) -> Result<(), ReplicaError> {
        let place = self.place(disk)?;
        let mut tail = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.poisoned {
            return Err(ReplicaError::Poisoned);
        }
        let sum = data.map_or(0, xxh3_64);
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(MAGIC);
        header[4] = if data.is_some() { 1 } else { 2 };
        header[6..8].copy_from_slice(&disk.0.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[16..24].copy_from_slice(&length.to_le_bytes());
        header[24..32].copy_from_slice(&tail.end.to_le_bytes());
        header[32..40].copy_from_slice(&sum.to_le_bytes());
        let header_sum = xxh3_64(&header[..40]);
        header[40..].copy_from_slice(&header_sum.to_le_bytes());
        let written = self.file.write_at(tail.end, &[&header, data.unwrap_or_default()]);
        written.map_err(|error| ReplicaError::io(&self.name, error))?;
        let at = tail.end + HEADER as u64;
        let piece = match data {
            Some(data) => Piece::Data { at, length: data.len() as u32, sum },
            None => Piece::Zero,
        };
        // In the map before the next record may be appended: order in the file is order in the map.
        self.maps.write().unwrap_or_else(PoisonError::into_inner)[place].insert(
            offset,
            offset + length,
            piece,
        );
        tail.end = at + data.map_or(0, |data| data.len() as u64);
        Ok(())
    }

    /// Makes everything written so far durable. A flush that failed is never believed again.
    pub fn flush(&self) -> Result<(), ReplicaError> {
        let poisoned = self.end.lock().unwrap_or_else(PoisonError::into_inner).poisoned;
        if poisoned {
            return Err(ReplicaError::Poisoned);
        }
        self.file.sync().map_err(|error| {
            self.end.lock().unwrap_or_else(PoisonError::into_inner).poisoned = true;
            ReplicaError::io(&self.name, error)
        })
    }
}

fn read_header(file: &dyn MediumFile, at: u64, end: u64) -> Option<(DiskIndex, u64, Piece, u64, u64)> {
    let mut header = [0; HEADER];
    if at + HEADER as u64 > end || file.read_at(at, &mut header).is_err() {
        return None;
    }
    let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    if &header[..4] != MAGIC || xxh3_64(&header[..40]) != long(40) || long(24) != at {
        return None;
    }
    let disk = DiskIndex(u16::from_le_bytes([header[6], header[7]]));
    let (offset, length) = (long(8), long(16));
    let data = at + HEADER as u64;
    match header[4] {
        1 if length > 0 && length <= RECORD_DATA_MAX as u64 && data + length <= end => {
            let piece = Piece::Data { at: data, length: length as u32, sum: long(32) };
            Some((disk, offset, piece, length, data + length))
        }
        2 if length > 0 => Some((disk, offset, Piece::Zero, length, data)),
        _ => None,
    }
}
