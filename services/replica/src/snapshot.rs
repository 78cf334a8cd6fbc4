//! A store's folder that is only read: whatever opening a store would change is kept beside it, in memory.
//!
//! A torn tail is cut, a fold that a crash interrupted is done again, as ever; but here, and not in the folder.
//! So a store can be looked at where nothing may be written: on a backup, on the disk of a dead server, or
//! while its owner works with it. What a caller makes anew (an overlay) goes to an unnamed file in a scratch
//! folder where one is given, else to memory too.
//!
//! Invariant: no byte, name or time of the folder is changed; the one exception is the empty file `lock`, made
//! where it is missing and [`Snapshot::lock`] was asked for.

use crate::medium::{Medium, MediumFile};
use rustix::fs::{FlockOperation, OFlags, SeekFrom, flock, seek};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Changes are kept in pieces of this size.
const PAGE: usize = 4096;
/// What changes may take in memory; a fold that is done again takes the most.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// What a snapshot lies over: files that are only read, wherever they are.
pub trait Below: Send + Sync {
    /// Opens a file; `None` where there is none.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn BelowFile>>>;
    /// The names in a folder.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
}

/// A file that is only read.
pub trait BelowFile: Send + Sync {
    /// Its length.
    fn length(&self) -> io::Result<u64>;
    /// Fills `out`, or fails.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// The ranges up to `end` that may hold data, in order; what is left out reads as zeroes.
    fn data(&self, end: u64) -> io::Result<Vec<(u64, u64)>>;
}

/// A folder that is only read.
pub struct Snapshot {
    below: Box<dyn Below>,
    scratch: Option<PathBuf>,
    /// What was opened, by name; `None`: removed since.
    files: Mutex<BTreeMap<String, Option<Arc<Laid>>>>,
    memory: Arc<AtomicU64>,
    trouble: Trouble,
    lock: Option<File>,
}

/// The first read from below that failed, which a store that is being opened may take for a torn tail.
type Trouble = Arc<Mutex<Option<String>>>;

impl Snapshot {
    /// Takes a folder as it is, and whoever else works in it with it.
    pub fn of(path: &Path) -> Self {
        Self::over(Box::new(Folder(path.to_owned())), None)
    }

    /// Takes files from elsewhere.
    pub fn over(below: Box<dyn Below>, scratch: Option<&Path>) -> Self {
        Self {
            below,
            scratch: scratch.map(Path::to_owned),
            files: Mutex::default(),
            memory: Arc::default(),
            trouble: Arc::default(),
            lock: None,
        }
    }

    /// Takes a folder that no owner may open meanwhile. Others may look at it in the same way.
    ///
    /// Errors: [`io::ErrorKind::ResourceBusy`] where the owner has it open.
    pub fn lock(path: &Path, scratch: Option<&Path>) -> io::Result<Self> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let name = path.join("lock");
        let lock = match OpenOptions::new().read(true).custom_flags(flags).open(&name) {
            // A copy that somebody made without it. Where it cannot be made nobody can own the store either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .custom_flags(flags)
                .open(&name)
                .ok(),
            opened => Some(opened?),
        };
        if let Some(lock) = &lock {
            flock(lock, FlockOperation::NonBlockingLockShared)
                .map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        }
        Ok(Self { lock, ..Self::over(Box::new(Folder(path.to_owned())), scratch) })
    }

    /// Which read from below failed first, and why, if any did.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether owners are kept away.
    pub const fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The process that has the store in `path` open, as far as this machine tells; takes no lock to find out.
    pub fn owner_of(path: &Path) -> Option<u32> {
        let inode = std::fs::symlink_metadata(path.join("lock")).ok()?.ino().to_string();
        // `1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF`
        std::fs::read_to_string("/proc/locks").ok()?.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, "WRITE", pid, place, ..] = words[..] else { return None };
            (place.rsplit(':').next() == Some(&inode)).then(|| pid.parse().ok())?
        })
    }

    /// The ranges of a file that hold data, holes left out, in order. What was changed here is among them.
    pub fn data_of(&self, name: &str) -> io::Result<Vec<(u64, u64)>> {
        let laid = self.laid(name, false)?;
        let mut ranges = Vec::new();
        let layer = laid.layer.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &laid.below {
            ranges = file.data(layer.below)?;
        }
        ranges.extend(layer.pages.keys().map(|page| (page * PAGE as u64, (page + 1) * PAGE as u64)));
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            let end = end.min(layer.length);
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ if start < end => merged.push((start, end)),
                _ => {}
            }
        }
        Ok(merged)
    }

    fn lay(&self, name: &str, below: Option<Box<dyn BelowFile>>, length: u64, own: Option<File>) -> Laid {
        let layer = RwLock::new(Layer { length, below: length, pages: BTreeMap::new() });
        let (memory, trouble) = (self.memory.clone(), self.trouble.clone());
        Laid { name: name.to_owned(), below, own, layer, memory, trouble }
    }

    fn laid(&self, name: &str, create: bool) -> io::Result<Arc<Laid>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        match files.get(name) {
            Some(Some(laid)) => return Ok(laid.clone()),
            Some(None) if !create => return Err(io::ErrorKind::NotFound.into()),
            Some(None) | None => {}
        }
        let below = match files.get(name) {
            None => self.below.open(name)?,
            Some(_) => None,
        };
        let laid = match below {
            Some(file) => {
                let length = file.length()?;
                self.lay(name, Some(file), length, None)
            }
            None if create => {
                let own = self.scratch.as_deref().filter(|_| name.starts_with("views/"));
                let own = own.map(unnamed_file).transpose()?;
                self.lay(name, None, 0, own)
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        let laid = Arc::new(laid);
        files.insert(name.to_owned(), Some(laid.clone()));
        Ok(laid)
    }
}

/// A real folder.
struct Folder(PathBuf);

impl Below for Folder {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn BelowFile>>> {
        let path = self.0.join(name);
        let file = open_below(&path)?;
        Ok(file.map(|file| -> Box<dyn BelowFile> { Box::new(Real { path, file }) }))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.0.join(folder))? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
}

/// A real file.
struct Real {
    path: PathBuf,
    file: File,
}

impl BelowFile for Real {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn data(&self, end: u64) -> io::Result<Vec<(u64, u64)>> {
        // A descriptor of its own, where the file is still there: seeking moves its position.
        let file = open_below(&self.path)?.map_or_else(|| self.file.try_clone(), Ok)?;
        let (mut ranges, mut at) = (Vec::new(), 0);
        while at < end {
            let start = match seek(&file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => at,
            };
            let stop = seek(&file, SeekFrom::Hole(start)).unwrap_or(end).min(end);
            if stop <= start {
                break;
            }
            ranges.push((start, stop));
            at = stop;
        }
        Ok(ranges)
    }
}

/// Opens a file to be read; `None` where there is none. No links followed, no waiting on a pipe in its place.
fn open_below(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is a symbolic link, which is not followed"))
        }
        Err(error) => Err(error),
    }
}

/// A file that is gone when this process is.
fn unnamed_file(dir: &Path) -> io::Result<File> {
    let name = dir.join(format!(".continuum-{}-{:x}", std::process::id(), rand_suffix()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
    std::fs::remove_file(&name)?;
    Ok(file)
}

fn rand_suffix() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (now.as_nanos() as u64).rotate_left(8) ^ NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Medium for Snapshot {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn MediumFile>> {
        Ok(Box::new(LaidFile(self.laid(name, create)?)))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = self.below.list(folder)?;
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, laid) in files.iter() {
            let Some(name) = name.strip_prefix(&prefix).filter(|name| !name.contains('/')) else { continue };
            names.retain(|known| known != name);
            if laid.is_some() {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn make_folder(&self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let laid = self.laid(from, false)?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(from.to_owned(), None);
        files.insert(to.to_owned(), Some(laid));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), None);
        Ok(())
    }

    fn sync_folder(&self, _folder: &str) -> io::Result<()> {
        Ok(())
    }
}

/// A file with what was changed laid over it.
struct Laid {
    name: String,
    below: Option<Box<dyn BelowFile>>,
    /// Written here in place of memory.
    own: Option<File>,
    layer: RwLock<Layer>,
    memory: Arc<AtomicU64>,
    trouble: Trouble,
}

struct Layer {
    length: u64,
    /// Bytes of the file below that still count; what lies beyond reads as zeroes.
    below: u64,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
}

impl Laid {
    fn read_below(&self, below: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = below.saturating_sub(offset).min(out.len() as u64) as usize;
        let (data, rest) = out.split_at_mut(there);
        rest.fill(0);
        match &self.below {
            Some(file) => file.read_at(offset, data).inspect_err(|error| {
                let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                trouble.get_or_insert_with(|| format!("{} at byte {offset}: {error}", self.name));
            }),
            None => {
                data.fill(0);
                Ok(())
            }
        }
    }

    fn change(&self, layer: &mut Layer, offset: u64, mut data: &[u8]) -> io::Result<()> {
        let mut offset = offset;
        while !data.is_empty() {
            let (page, within) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
            let (part, rest) = data.split_at(data.len().min(PAGE - within));
            if !layer.pages.contains_key(&page) {
                if self.memory.fetch_add(PAGE as u64, Ordering::Relaxed) >= MEMORY_BYTES_MAX {
                    return Err(io::Error::new(
                        io::ErrorKind::OutOfMemory,
                        "more would have to be changed than is kept in memory (1 GiB)",
                    ));
                }
                let mut content = Box::new([0; PAGE]);
                self.read_below(layer.below, page * PAGE as u64, &mut content[..])?;
                layer.pages.insert(page, content);
            }
            if let Some(content) = layer.pages.get_mut(&page) {
                content[within..within + part.len()].copy_from_slice(part);
            }
            layer.length = layer.length.max(offset + part.len() as u64);
            offset += part.len() as u64;
            data = rest;
        }
        Ok(())
    }
}

struct LaidFile(Arc<Laid>);

impl MediumFile for LaidFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if let Some(own) = &self.0.own {
            return own.read_exact_at(out, offset);
        }
        let layer = self.0.layer.read().unwrap_or_else(PoisonError::into_inner);
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= layer.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0.read_below(layer.below, offset, out)?;
        let first = offset / PAGE as u64;
        for (page, content) in layer.pages.range(first..end.div_ceil(PAGE as u64)) {
            let start = page * PAGE as u64;
            let (from, to) = (start.max(offset), (start + PAGE as u64).min(end));
            out[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&content[(from - start) as usize..(to - start) as usize]);
        }
        Ok(())
    }

    fn write_at(&self, mut offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut layer = self.0.layer.write().unwrap_or_else(PoisonError::into_inner);
        for part in parts {
            match &self.0.own {
                Some(own) => own.write_all_at(part, offset)?,
                None => self.0.change(&mut layer, offset, part)?,
            }
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        match &self.0.own {
            Some(own) => Ok(own.metadata()?.len()),
            None => Ok(self.0.layer.read().unwrap_or_else(PoisonError::into_inner).length),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if let Some(own) = &self.0.own {
            return own.set_len(length);
        }
        let mut layer = self.0.layer.write().unwrap_or_else(PoisonError::into_inner);
        if length < layer.length {
            layer.below = layer.below.min(length);
            let gone = layer.pages.split_off(&length.div_ceil(PAGE as u64));
            self.0.memory.fetch_sub((gone.len() * PAGE) as u64, Ordering::Relaxed);
            if let Some(last) = layer.pages.get_mut(&(length / PAGE as u64)) {
                last[(length % PAGE as u64) as usize..].fill(0);
            }
        }
        layer.length = length;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // Nothing here outlives this process, and nobody is told that it would.
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.saturating_add(length).min(self.len()?);
        let zeroes = [0; PAGE];
        let mut at = offset;
        while at < end {
            let part = (end - at).min(PAGE as u64);
            self.write_at(at, &[&zeroes[..part as usize]])?;
            at += part;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Act {
        Write(u64, Vec<u8>),
        Cut(u64),
        Punch(u64, u64),
        Read(u64, usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0u64..20_000, proptest::collection::vec(any::<u8>(), 1..6000))
                .prop_map(|(at, data)| Act::Write(at, data)),
            (0u64..20_000).prop_map(Act::Cut),
            (0u64..20_000, 1u64..9000).prop_map(|(at, length)| Act::Punch(at, length)),
            (0u64..20_000, 1usize..9000).prop_map(|(at, length)| Act::Read(at, length)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_laid_over_a_file_reads_as_if_it_were_written_and_is_not(acts in proptest::collection::vec(act(), 1..30)) {
            let dir = tempfile::tempdir().unwrap();
            let original: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
            std::fs::write(dir.path().join("a"), &original).unwrap();
            let snapshot = Snapshot::of(dir.path());
            let file = snapshot.open("a", false).unwrap();
            let mut expected = original.clone();
            for act in acts {
                match act {
                    Act::Write(at, data) => {
                        file.write_at(at, &[&data]).unwrap();
                        let end = at as usize + data.len();
                        if expected.len() < end {
                            expected.resize(end, 0);
                        }
                        expected[at as usize..end].copy_from_slice(&data);
                    }
                    Act::Cut(length) => {
                        file.set_len(length).unwrap();
                        expected.resize(length as usize, 0);
                    }
                    Act::Punch(at, length) => {
                        file.punch(at, length).unwrap();
                        let end = ((at + length) as usize).min(expected.len());
                        expected[(at as usize).min(end)..end].fill(0);
                    }
                    Act::Read(at, length) => {
                        let mut out = vec![0xee; length];
                        let read = file.read_at(at, &mut out);
                        match expected.get(at as usize..at as usize + length) {
                            Some(part) => prop_assert_eq!(&out[..], part),
                            None => prop_assert!(read.is_err()),
                        }
                    }
                }
                prop_assert_eq!(file.len().unwrap(), expected.len() as u64);
            }
            let mut all = vec![0; expected.len()];
            file.read_at(0, &mut all).unwrap();
            prop_assert_eq!(&all, &expected);
            let covered = snapshot.data_of("a").unwrap();
            let within = |at: usize| covered.iter().any(|(start, end)| (*start..*end).contains(&(at as u64)));
            prop_assert!(expected.iter().enumerate().all(|(at, byte)| *byte == 0 || within(at)));
            prop_assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), original);
        }
    }

    #[test]
    fn names_come_and_go_here_only_and_an_owner_is_kept_away() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"1").unwrap();
        let snapshot = Snapshot::lock(dir.path(), Some(dir.path())).unwrap();
        snapshot.open("b.new", true).unwrap().write_at(0, &[b"2"]).unwrap();
        snapshot.rename("b.new", "b").unwrap();
        snapshot.remove("a").unwrap();
        assert_eq!(snapshot.list("").unwrap(), ["b", "lock"]);
        assert!(snapshot.open("a", false).is_err());
        let overlay = snapshot.open("views/x.cow", true).unwrap();
        overlay.write_at(3, &[b"four"]).unwrap();
        assert_eq!(overlay.len().unwrap(), 7);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(crate::Folder::open_or_create(dir.path()).is_err(), "an owner must not start meanwhile");
        assert!(Snapshot::lock(dir.path(), None).is_ok(), "others may look too");
        drop(snapshot);
        let owner = crate::Folder::open_or_create(dir.path()).unwrap();
        assert_eq!(
            Snapshot::lock(dir.path(), None).err().map(|e| e.kind()),
            Some(io::ErrorKind::ResourceBusy)
        );
        assert_eq!(Snapshot::owner_of(dir.path()), Some(std::process::id()));
        drop(owner);
        assert_eq!(Snapshot::owner_of(dir.path()), None);
    }
}
