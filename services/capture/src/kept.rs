//! A small file of the agent's own, behind a trait, so that one seed can drive whoever keeps it through power
//! cuts. The simulated one lives in `simulated`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file that is written in place.
pub trait Kept: Send + Sync {
    /// Its length in bytes; 0 when it is new.
    fn length(&self) -> io::Result<u64>;
    /// Gives it this length and sets the space aside: an error now rather than in the middle of a write.
    fn allocate(&self, length: u64) -> io::Result<()>;
    /// Fills `out`.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`. It survives the process, not a power cut.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes what was written so far durable. One that failed is never believed later: the kernel may have
    /// dropped the pages.
    fn sync(&self) -> io::Result<()>;
    /// Removes it, durably.
    fn remove(&self) -> io::Result<()>;
    /// What people call it.
    fn name(&self) -> String;
}

/// A file in a folder.
pub struct KeptFile {
    path: PathBuf,
    file: File,
}

impl KeptFile {
    /// Opens the file, or makes an empty one. Its name is durable when this returns.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let kept = Self { path: path.to_owned(), file };
        kept.sync_folder()?;
        Ok(kept)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

impl Kept for KeptFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, length) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, at)
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn remove(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.sync_folder()
    }
    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
