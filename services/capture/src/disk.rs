//! The disks of a source, behind a trait: files and block devices. The one in memory that fails on demand
//! lives in `simulated`.

use crate::nbd::Extent;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64;

/// What a disk looks like from outside, to tell at the next start whether it is the same one and whether
/// somebody wrote to it meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which disk: changes when another one is put in its place, never with its content.
    pub identity: u64,
    /// When or how much it was written to.
    pub activity: Activity,
}

/// How a disk tells that it was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It does not.
    Unknown,
    /// A file: when it was changed last, in µs of UTC.
    Modified(i64),
    /// A block device: sectors written since the machine started.
    Written(i64),
}

impl Activity {
    pub(crate) const fn to_parts(self) -> (u32, i64) {
        match self {
            Self::Unknown => (0, 0),
            Self::Modified(at) => (1, at),
            Self::Written(sectors) => (2, sectors),
        }
    }
    pub(crate) const fn from_parts(kind: u32, value: i64) -> Self {
        match kind {
            1 => Self::Modified(value),
            2 => Self::Written(value),
            _ => Self::Unknown,
        }
    }
}

/// A disk whose writes are captured.
pub trait SourceDisk: Send + Sync {
    /// Its size now; may differ from what it was.
    fn size(&self) -> io::Result<u64>;
    /// What it looks like from outside.
    fn stamp(&self) -> io::Result<Stamp>;
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
    /// Opens an existing disk, which nobody else may hold this way: two splitters on one disk would each
    /// miss what the other writes.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!("{} is in use by another process; stop that one first", path.display()),
                ));
            }
            Err(error) => return Err(error.into()),
        }
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
                drop(file);
                Self::open(path)
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
    fn stamp(&self) -> io::Result<Stamp> {
        let meta = self.file.metadata()?;
        if self.is_file {
            let born = meta.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            let mut identity = meta.ino().to_le_bytes().to_vec();
            identity.extend_from_slice(&born.map_or(0, |at| at.as_nanos()).to_le_bytes());
            let modified = meta.mtime().saturating_mul(1_000_000).saturating_add(meta.mtime_nsec() / 1_000);
            return Ok(Stamp { identity: xxh3_64(&identity), activity: Activity::Modified(modified) });
        }
        // Names of devices move; what the kernel knows of the thing behind the name does not.
        let rdev = meta.rdev();
        let folder = format!("/sys/dev/block/{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
        let mut identity = Vec::new();
        for name in
            ["wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "loop/backing_file", "partition"]
        {
            if let Ok(text) = std::fs::read(format!("{folder}/{name}")) {
                identity.extend_from_slice(name.as_bytes());
                identity.extend_from_slice(&text);
            }
        }
        if identity.is_empty() {
            identity.extend_from_slice(&rdev.to_le_bytes());
        }
        let sectors = std::fs::read_to_string(format!("{folder}/stat"))
            .ok()
            .and_then(|text| text.split_ascii_whitespace().nth(6)?.parse().ok());
        let activity = sectors.map_or(Activity::Unknown, Activity::Written);
        Ok(Stamp { identity: xxh3_64(&identity), activity })
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
            // Not every file system and device can, nor at every alignment: then zeroes are written.
            Err(
                rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::NOSYS
                | rustix::io::Errno::NODEV
                | rustix::io::Errno::INVAL,
            ) => {
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
