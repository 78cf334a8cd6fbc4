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
/// Unsynced content and entries are lost at [`Simulated::crash`], in part or whole, as its seed says: of the
/// sectors of a file any may survive, of the entries of a folder the first few.
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
    /// Changes of names since their folder was synced, in order.
    pending_names: Vec<(String, Option<u64>)>,
    files: BTreeMap<u64, Contents>,
    /// Calls that change or sync something.
    operations: u64,
    /// All calls.
    calls: u64,
    fault: Option<Planned>,
    fired: u64,
    dead: bool,
    /// Bytes that all files together may take.
    capacity: Option<u64>,
    lie: Option<Lie>,
}

struct Planned {
    at: u64,
    /// Counted in calls, else in operations.
    calls: bool,
    fault: Fault,
}

#[derive(Default, Clone)]
struct Contents {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What was done since the last sync, in order.
    pending: Vec<Pending>,
}

#[derive(Clone, Copy)]
enum Pending {
    Written(usize, usize),
    Length(usize),
}

/// What happens at a chosen operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an I/O error; later ones work.
    Error,
    /// It fails for want of space; later ones work.
    Full,
    /// The power goes: it and all later ones fail until [`Simulated::crash`].
    PowerCut,
}

/// How a medium can break its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Syncing a file does nothing.
    FileSync,
    /// Syncing a folder does nothing.
    FolderSync,
    /// A rename that was not synced leaves neither name behind.
    TornRename,
    /// A read returns what was synced last.
    StaleRead,
    /// Every fifth write, counted from the lie on, is confirmed and dropped.
    LostWrite,
    /// Every fifth write, counted from the lie on, lands 512 bytes further.
    MisdirectedWrite,
}

/// Which write a lie strikes.
const LIE_AT: u64 = 5;

impl Simulated {
    /// Arranges a fault at the `nth` operation from now (1: the next) that changes or syncs something.
    pub fn fault_at(&self, nth: u64, fault: Fault) {
        let mut world = self.lock();
        world.fault = Some(Planned { at: world.operations + nth, calls: false, fault });
    }
    /// The same, counting every call: also those that only read, open or list.
    pub fn fault_at_call(&self, nth: u64, fault: Fault) {
        let mut world = self.lock();
        world.fault = Some(Planned { at: world.calls + nth, calls: true, fault });
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
    /// Bytes that all files together may take from now on; `None`: any.
    pub fn limit(&self, capacity: Option<u64>) {
        self.lock().capacity = capacity;
    }
    /// Bytes that all files together take.
    pub fn used(&self) -> u64 {
        self.lock().used()
    }
    /// From now on the medium breaks its word.
    pub fn lie(&self, lie: Option<Lie>) {
        let mut world = self.lock();
        world.lie = lie;
        // So that what a lie strikes does not depend on what came before.
        world.operations = 0;
    }
    /// Whether the power is off.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }
    /// The power comes back: what was not synced is gone, or half there, as `random` says.
    pub fn crash(&self, mut random: impl FnMut() -> u64) {
        let mut world = self.lock();
        world.dead = false;
        world.fault = None;
        let pending = std::mem::take(&mut world.pending_names);
        let torn = world.lie == Some(Lie::TornRename);
        let mut survive: BTreeMap<String, usize> = BTreeMap::new();
        for (name, _) in &pending {
            *survive.entry(folder_of(name).to_owned()).or_default() += 1;
        }
        for count in survive.values_mut() {
            *count = (random() % (*count as u64 + 1)) as usize;
        }
        for (name, id) in pending {
            let left = survive.entry(folder_of(&name).to_owned()).or_default();
            if *left == 0 {
                continue;
            }
            *left -= 1;
            match id {
                Some(id) => {
                    // A rename is one step: the file's other names go with it.
                    world.durable_names.retain(|_, other| *other != id);
                    if torn && !name.ends_with(".new") {
                        world.durable_names.remove(&name);
                    } else {
                        world.durable_names.insert(name, id);
                    }
                }
                None => {
                    world.durable_names.remove(&name);
                }
            }
        }
        world.names = world.durable_names.clone();
        for contents in world.files.values_mut() {
            // Each unsynced sector may have reached the disk or not.
            let mut after = contents.durable.clone();
            for pending in std::mem::take(&mut contents.pending) {
                let (mut at, end) = match pending {
                    Pending::Written(start, end) => (start, end.min(contents.now.len())),
                    Pending::Length(length) => {
                        if random().is_multiple_of(2) {
                            after.resize(length, 0);
                        }
                        continue;
                    }
                };
                while at < end {
                    let stop = (at / 512 * 512 + 512).min(end);
                    if random().is_multiple_of(2) {
                        if after.len() < stop {
                            after.resize(stop, 0);
                        }
                        after[at..stop].copy_from_slice(&contents.now[at..stop]);
                    }
                    at = stop;
                }
            }
            contents.now.clone_from(&after);
            contents.durable = after;
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
            contents.pending.clear();
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
    /// A call that only reads.
    fn look(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.lock();
        world.call(false)?;
        Ok(world)
    }
    fn operate(&self) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.lock();
        world.call(true)?;
        Ok(world)
    }
}

fn folder_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl World {
    fn call(&mut self, changes: bool) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("simulated: the power is off"));
        }
        self.calls += 1;
        self.operations += u64::from(changes);
        let fired = match &self.fault {
            Some(planned) if planned.calls => self.calls == planned.at,
            Some(planned) => changes && self.operations == planned.at,
            None => false,
        };
        if !fired {
            return Ok(());
        }
        self.fired += 1;
        Err(match self.fault.take().map(|planned| planned.fault) {
            Some(Fault::Full) => io::ErrorKind::StorageFull.into(),
            fault => {
                self.dead = fault == Some(Fault::PowerCut);
                io::Error::other("simulated: I/O error")
            }
        })
    }
    fn used(&self) -> u64 {
        let of = |id| self.files.get(id).map_or(0, |contents| contents.now.len() as u64);
        self.names.values().map(of).sum()
    }
}

impl Medium for Simulated {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn MediumFile>> {
        let known = self.look()?.names.get(name).copied();
        let id = match known {
            Some(id) => id,
            None if create => {
                let mut world = self.operate()?;
                world.next += 1;
                let id = world.next;
                world.names.insert(name.to_owned(), id);
                world.pending_names.push((name.to_owned(), Some(id)));
                world.files.insert(id, Contents::default());
                id
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Box::new(SimulatedFile { world: self.clone(), id }))
    }
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{folder}/");
        let world = self.look()?;
        let names = world.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.map(str::to_owned).collect())
    }
    fn make_folder(&self, _name: &str) -> io::Result<()> {
        self.operate().map(drop)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut world = self.operate()?;
        let id = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.to_owned(), id);
        world.pending_names.push((to.to_owned(), Some(id)));
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.operate()?;
        if world.names.remove(name).is_some() {
            world.pending_names.push((name.to_owned(), None));
        }
        Ok(())
    }
    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut world = self.operate()?;
        if world.lie == Some(Lie::FolderSync) {
            return Ok(());
        }
        let World { names, durable_names, pending_names, .. } = &mut *world;
        durable_names.retain(|name, _| folder_of(name) != folder);
        let inside = names.iter().filter(|(name, _)| folder_of(name) == folder);
        durable_names.extend(inside.map(|(name, id)| (name.clone(), *id)));
        pending_names.retain(|(name, _)| folder_of(name) != folder);
        Ok(())
    }
}

struct SimulatedFile {
    world: Simulated,
    id: u64,
}

impl SimulatedFile {
    fn change(&self, grows_to: u64, change: impl FnOnce(&mut Contents, Option<Lie>)) -> io::Result<()> {
        let mut world = self.world.operate()?;
        let used = world.capacity.map(|capacity| (capacity, world.used()));
        let lie = world.lie.filter(|lie| match lie {
            Lie::LostWrite | Lie::MisdirectedWrite => world.operations.is_multiple_of(LIE_AT),
            _ => true,
        });
        let contents = world.files.entry(self.id).or_default();
        if let Some((capacity, used)) = used
            && used + grows_to.saturating_sub(contents.now.len() as u64) > capacity
        {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change(contents, lie);
        Ok(())
    }
}

impl MediumFile for SimulatedFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let world = self.world.look()?;
        let bytes = world.files.get(&self.id).map_or(&[][..], |contents| match world.lie {
            Some(Lie::StaleRead) => &contents.durable,
            _ => &contents.now,
        });
        let part =
            bytes.get(offset as usize..offset as usize + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let end = offset + parts.iter().map(|part| part.len() as u64).sum::<u64>();
        self.change(end, |contents, lie| {
            let start = match lie {
                Some(Lie::LostWrite) => return,
                Some(Lie::MisdirectedWrite) => offset as usize + 512,
                _ => offset as usize,
            };
            let mut at = start;
            for part in parts {
                if contents.now.len() < at + part.len() {
                    contents.now.resize(at + part.len(), 0);
                }
                contents.now[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            contents.pending.push(Pending::Written(start, at));
        })
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.world.look()?.files.get(&self.id).map_or(0, |contents| contents.now.len() as u64))
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(length, |contents, _| {
            contents.now.resize(length as usize, 0);
            contents.pending.push(Pending::Length(length as usize));
        })
    }
    fn sync(&self) -> io::Result<()> {
        let synced = self.change(0, |contents, lie| {
            if lie == Some(Lie::FileSync) {
                return;
            }
            contents.durable.resize(contents.now.len(), 0);
            for pending in contents.pending.drain(..) {
                match pending {
                    Pending::Written(start, end) => {
                        let end = end.min(contents.now.len());
                        let start = start.min(end);
                        contents.durable[start..end].copy_from_slice(&contents.now[start..end]);
                    }
                    // What was cut off and grew again reads as zeroes until it is written.
                    Pending::Length(length) => {
                        let length = length.min(contents.now.len());
                        contents.durable[length..].copy_from_slice(&contents.now[length..]);
                    }
                }
            }
        });
        if synced.is_err() {
            // As Linux does: after a failed sync the pages count as clean. They can be read, no later sync writes
            // them, and a power cut shows that they are gone.
            let mut world = self.world.lock();
            if !world.dead
                && let Some(contents) = world.files.get_mut(&self.id)
            {
                contents.pending.clear();
            }
        }
        synced
    }
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        self.change(0, |contents, _| {
            let end = ((offset + length) as usize).min(contents.now.len());
            let start = (offset as usize).min(end);
            contents.now[start..end].fill(0);
            contents.pending.push(Pending::Written(start, end));
        })
    }
}
