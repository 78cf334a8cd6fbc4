//! The disks of a source, behind a trait: files and block devices, or memory that fails on demand.

use crate::nbd::Extent;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// A disk whose writes are captured.
pub trait SourceDisk: Send + Sync {
    /// Its size now; may differ from what it was.
    fn size(&self) -> io::Result<u64>;
    /// Fills `out`.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeroes.
    fn zero(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn flush(&self) -> io::Result<()>;
    /// What of a range holds data.
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let _ = offset;
        out.push(Extent { length, data: true });
        Ok(())
    }
}

/// A file or block device.
pub struct FileDisk {
    file: File,
    is_file: bool,
}

impl FileDisk {
    /// Opens an existing disk.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is neither a file nor a block device", path.display()),
            ));
        }
        Ok(Self { file, is_file: kind.is_file() })
    }

    /// Opens a sparse file, made with this size where there is none.
    pub fn open_or_create(path: &Path, size: u64) -> io::Result<Self> {
        match OpenOptions::new().read(true).write(true).create_new(true).open(path) {
            Ok(file) => {
                file.set_len(size)?;
                file.sync_all()?;
                if let Some(folder) = path.parent() {
                    File::open(folder)?.sync_all()?;
                }
                Ok(Self { file, is_file: true })
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::open(path),
            Err(error) => Err(error),
        }
    }
}

impl SourceDisk for FileDisk {
    fn size(&self) -> io::Result<u64> {
        if self.is_file { Ok(self.file.metadata()?.len()) } else { Ok(seek(&self.file, SeekFrom::End(0))?) }
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
    fn zero(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        let flags = if may_trim {
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
        } else {
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
        };
        match fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(()),
            // Not every file system and device can: then zeroes are written.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::NODEV) => {
                static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
                let mut at = offset;
                while at < offset + length {
                    let part = (offset + length - at).min(ZEROES.len() as u64);
                    self.write(at, &ZEROES[..part as usize])?;
                    at += part;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        if !self.is_file {
            out.push(Extent { length, data: true });
            return Ok(());
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let data = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(data) => data.min(end),
                Err(rustix::io::Errno::NXIO) => end,
                Err(error) => return Err(error.into()),
            };
            if data > at {
                out.push(Extent { length: data - at, data: false });
            }
            if data == end {
                break;
            }
            let hole = seek(&self.file, SeekFrom::Hole(data))?.min(end);
            out.push(Extent { length: hole - data, data: true });
            at = hole;
        }
        Ok(())
    }
}

/// A disk in memory that fails when told. For tests and simulations.
pub struct MemoryDisk {
    inner: Mutex<Memory>,
}

struct Memory {
    bytes: Vec<u8>,
    operations: u64,
    fail_at: Option<u64>,
    failed: u64,
}

impl MemoryDisk {
    /// A disk of zeroes.
    pub fn new(size: usize) -> Self {
        Self { inner: Mutex::new(Memory { bytes: vec![0; size], operations: 0, fail_at: None, failed: 0 }) }
    }
    /// Fails the `nth` operation from now (1: the next one).
    pub fn fail_at(&self, nth: u64) {
        let mut inner = self.lock();
        inner.fail_at = Some(inner.operations + nth);
    }
    /// How many operations failed: a fault test asks whether its fault fired.
    pub fn failures(&self) -> u64 {
        self.lock().failed
    }
    /// All its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn operate(&self) -> io::Result<std::sync::MutexGuard<'_, Memory>> {
        let mut inner = self.lock();
        inner.operations += 1;
        if inner.fail_at == Some(inner.operations) {
            inner.failed += 1;
            return Err(io::Error::other("injected I/O error"));
        }
        Ok(inner)
    }
}

impl SourceDisk for MemoryDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().bytes.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.operate()?;
        out.copy_from_slice(&inner.bytes[offset as usize..][..out.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.operate()?;
        inner.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&self, offset: u64, length: u64, _may_trim: bool) -> io::Result<()> {
        let mut inner = self.operate()?;
        inner.bytes[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.operate().map(drop)
    }
}
