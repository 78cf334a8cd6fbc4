//! A folder of files: the store's only way to a disk.
//!
//! Names are the store's own (`journal/00000001`), never text from outside. [`Folder`] is the real thing;
//! [`Simulated`] keeps synced and unsynced state apart, fails and crashes on demand.

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A folder of files.
pub trait Medium: Send + Sync {
    /// Opens a file; with `create` makes it where there is none. Its entry is durable after `sync_folder`.
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn MediumFile>>;
    /// The names in a folder.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Makes a folder, and its entry durable.
    fn make_folder(&self, name: &str) -> io::Result<()>;
    /// Renames a file over another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; one that is not there is fine.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes a folder's entries durable. Empty: the store's own folder.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
}

/// An open file.
pub trait MediumFile: Send + Sync {
    /// Fills `out`, or fails.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all parts, one after the other.
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()>;
    /// Its length.
    fn len(&self) -> io::Result<u64>;
    /// Whether it is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends it.
    fn set_len(&self, length: u64) -> io::Result<()>;
    /// Makes content and length durable.
    fn sync(&self) -> io::Result<()>;
    /// Makes a range read as zeroes and gives its space back.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// A real folder, locked against a second process.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Opens a folder, made where there is none. Fails when another process has it open.
    pub fn open_or_create(path: &Path) -> io::Result<Self> {
        if !path.exists() {
            std::fs::create_dir_all(path)?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("{} is open in another process", path.display()),
            )
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }
}

impl Medium for Folder {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn MediumFile>> {
        // No links followed and no waiting on a pipe that somebody put in a file's place.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .custom_flags(flags)
            .open(self.path.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not a regular file")));
        }
        Ok(Box::new(RealFile(file)))
    }
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path.join(folder))? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }
    fn make_folder(&self, name: &str) -> io::Result<()> {
        std::fs::create_dir_all(self.path.join(name))?;
        self.sync_folder("")
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        File::open(self.path.join(folder))?.sync_all()
    }
}

struct RealFile(File);

impl MediumFile for RealFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }
    fn write_at(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = slices.as_mut_slice();
        while rest.iter().any(|part| !part.is_empty()) {
            let batch = rest.len().min(1024);
            let written = rustix::io::pwritev(&self.0, &rest[..batch], offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        match fallocate(&self.0, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => self.0.write_all_at(&vec![0; length as usize], offset),
            Err(error) => Err(error.into()),
        }
    }
}

/// A folder in memory that knows what a power cut would leave.
///
/// Unsynced content and entries are lost at [`Simulated::crash`], in part or whole, as its seed says.
#[derive(Clone, Default)]
pub struct Simulated {
    inner: Arc<Mutex<World>>,
}

#[derive(Default)]
struct World {
    next: u64,
    /// What processes see: name → file.
    names: BTreeMap<String, u64>,
    /// What a power cut leaves of the names.
    durable_names: BTreeMap<String, u64>,
    files: BTreeMap<u64, Contents>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    fired: u64,
    dead: bool,
}

#[derive(Default, Clone)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
}

/// What happens at a chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an I/O error; later ones work.
    Error,
    /// The power goes: it and all later ones fail until [`Simulated::crash`].
    PowerCut,
}

impl Simulated {
    /// Arranges a fault at the `nth` operation from now (1: the next) that changes or syncs something.
    pub fn fault_at(&self, nth: u64, fault: Fault) {
        let mut world = self.lock();
        world.fault = Some((world.operations + nth, fault));
    }
    /// Takes an arranged fault back.
    pub fn disarm(&self) {
        self.lock().fault = None;
    }
    /// How many faults fired.
    pub fn fired(&self) -> u64 {
        self.lock().fired
    }
    /// Changing operations so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }
    /// The power comes back: what was not synced is gone, or half there, as `random` says.
    pub fn crash(&self, mut random: impl FnMut() -> u64) {
        let mut world = self.lock();
        world.dead = false;
        world.fault = None;
        world.names = world.durable_names.clone();
        for contents in world.files.values_mut() {
            // Each unsynced sector may have reached the disk or not.
            let mut after = contents.durable.clone();
            for &(start, end) in &contents.dirty {
                let mut at = start;
                while at < end {
                    let stop = (at / 512 * 512 + 512).min(end).min(contents.now.len());
                    if at < stop && random().is_multiple_of(2) {
                        if after.len() < stop {
                            after.resize(stop, 0);
                        }
                        after[at..stop].copy_from_slice(&contents.now[at..stop]);
                    }
                    at = stop.max(at + 1);
                }
            }
            contents.now = after.clone();
            contents.durable = after;
            contents.dirty.clear();
        }
    }
    /// Changes a file behind everyone's back: rot.
    pub fn corrupt(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.lock();
        if let Some(id) = world.names.get(name).copied()
            && let Some(contents) = world.files.get_mut(&id)
        {
            change(&mut contents.now);
            contents.durable = contents.now.clone();
        }
    }
    /// All files, by name.
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }
    /// A file's content.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let world = self.lock();
        world.names.get(name).and_then(|id| world.files.get(id)).map(|contents| contents.now.clone())
    }
    fn lock(&self) -> MutexGuard<'_, World> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn operate(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.lock();
        if world.dead {
            return Err(io::Error::other("simulated: the power is off"));
        }
        world.operations += 1;
        if let Some((at, fault)) = world.fault
            && world.operations == at
        {
            world.fired += 1;
            world.fault = None;
            world.dead = fault == Fault::PowerCut;
            return Err(io::Error::other("simulated: I/O error"));
        }
        Ok(world)
    }
}

impl Medium for Simulated {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn MediumFile>> {
        let known = self.lock().names.get(name).copied();
        let id = match known {
            Some(id) => id,
            None if create => {
                let mut world = self.operate()?;
                world.next += 1;
                let id = world.next;
                world.names.insert(name.to_owned(), id);
                world.files.insert(id, Contents::default());
                id
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Box::new(SimulatedFile { world: self.clone(), id }))
    }
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{folder}/");
        Ok(self
            .lock()
            .names
            .keys()
            .filter_map(|name| name.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect())
    }
    fn make_folder(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.operate()?;
        let id = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_owned(), id);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate()?.names.remove(name);
        Ok(())
    }
    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut world = self.operate()?;
        let inside = |name: &str| match name.rsplit_once('/') {
            Some((parent, _)) => parent == folder,
            None => folder.is_empty(),
        };
        let World { names, durable_names, .. } = &mut *world;
        durable_names.retain(|name, _| !inside(name));
        durable_names
            .extend(names.iter().filter(|(name, _)| inside(name)).map(|(name, id)| (name.clone(), *id)));
        Ok(())
    }
}

struct SimulatedFile {
    world: Simulated,
    id: u64,
}

impl SimulatedFile {
    fn change(&self, change: impl FnOnce(&mut Contents)) -> io::Result<()> {
        let mut world = self.world.operate()?;
        change(world.files.entry(self.id).or_default());
        Ok(())
    }
}

impl MediumFile for SimulatedFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let world = self.world.lock();
        let bytes = world.files.get(&self.id).map_or(&[][..], |contents| &contents.now);
        let part =
            bytes.get(offset as usize..offset as usize + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.change(|contents| {
            let start = offset as usize;
            let mut at = start;
            for part in parts {
                if contents.now.len() < at + part.len() {
                    contents.now.resize(at + part.len(), 0);
                }
                contents.now[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            contents.dirty.push((start, at));
        })
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.world.lock().files.get(&self.id).map_or(0, |contents| contents.now.len() as u64))
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(|contents| {
            // A cut reaches the disk with the next sync; an extension reads as zeroes either way.
            contents.now.resize(length as usize, 0);
        })
    }
    fn sync(&self) -> io::Result<()> {
        self.change(|contents| {
            contents.durable = contents.now.clone();
            contents.dirty.clear();
        })
    }
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(|contents| {
            let end = ((offset + length) as usize).min(contents.now.len());
            let start = (offset as usize).min(end);
            contents.now[start..end].fill(0);
            contents.dirty.push((start, end));
        })
    }
}
