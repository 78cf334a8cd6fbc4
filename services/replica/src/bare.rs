//! A store opened by somebody who is not its owner: no vault, no master target, nothing but its folder.
//!
//! What the manifest claims is checked before anything is made of it, because here it may be anybody's: a backup,
//! a disk from a dead server, a download. The folder itself is only read (see [`crate::snapshot`]).

use crate::base;
use crate::manifest::{self, FORMAT, Manifest};
use crate::marks::Marks;
use crate::medium::Medium;
use crate::segment;
use crate::snapshot::Snapshot;
use crate::store::{ReplicaError, Store};
use continuum_model::time::Timestamp;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// More disks than this no machine has.
const DISKS_MAX: usize = 4096;
/// No disk is longer than this: 8 PiB.
const DISK_BYTES_MAX: u64 = 1 << 53;

/// Why a bare store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// There is no store.
    #[error("{} is no replica store: it holds no manifest", path.display())]
    NoStore {
        /// Where none is.
        path: PathBuf,
    },
    /// Its owner works with it.
    #[error(
        "{} is open in another process{}: its master target lives and folds history away while it runs",
        path.display(),
        owner.map(|pid| format!(" ({pid})")).unwrap_or_default()
    )]
    OwnerLives {
        /// Which store.
        path: PathBuf,
        /// Its process, where that is known.
        owner: Option<u32>,
    },
    /// It claims what cannot be.
    #[error("{file} cannot be right: {reason}; nothing was made of it")]
    Claim {
        /// Which file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The folder cannot be read.
    #[error("{} cannot be read", path.display())]
    Io {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What the store itself says.
    #[error(transparent)]
    Store(#[from] ReplicaError),
}

/// An opened store, with what it says of itself.
pub struct Bare {
    /// The store. What is written to it stays in this process.
    pub store: Store,
    /// What it is.
    pub manifest: Manifest,
    /// What was found while it was replayed.
    pub findings: Vec<String>,
    /// Its folder.
    pub snapshot: Arc<Snapshot>,
}

/// Opens the store in `path` and keeps its owner away for as long as it is open. Overlays go to `scratch`.
pub fn open(path: &Path, scratch: Option<&Path>) -> Result<Bare, BareError> {
    let there = std::fs::symlink_metadata(path.join("manifest"));
    if let Err(source) = there {
        return Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                BareError::NoStore { path: path.to_owned() }
            }
            _ => BareError::Io { path: path.to_owned(), source },
        });
    }
    let snapshot = Snapshot::lock(path, scratch).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => {
            BareError::OwnerLives { path: path.to_owned(), owner: Snapshot::owner_of(path) }
        }
        _ => BareError::Io { path: path.to_owned(), source },
    })?;
    open_snapshot(path, snapshot)
}

/// Until when at least points of the store in `path` are locked, if any are: nothing of it may be removed before. For
/// a store that nobody has open.
///
/// Errors: what is said of its points cannot be read, so that nobody knows.
pub fn locked_until(path: &Path, now: Timestamp) -> Result<Option<Timestamp>, ReplicaError> {
    let marks: Option<Marks> = manifest::read(&Snapshot::of(path), "marks")?;
    let Some(marks) = marks else { return Ok(None) };
    let locked = marks.points.values().filter(|mark| mark.is_locked(now, marks.open_seconds));
    Ok(locked.filter_map(|mark| mark.lock).map(|lock| lock.until).max())
}

/// Opens the store in `path` as it is now, beside an owner that may be at work.
pub fn open_beside(path: &Path) -> Result<Bare, BareError> {
    open_snapshot(path, Snapshot::of(path))
}

pub(crate) fn open_snapshot(path: &Path, snapshot: Snapshot) -> Result<Bare, BareError> {
    let manifest: Manifest =
        manifest::read(&snapshot, "manifest")?.ok_or_else(|| BareError::NoStore { path: path.to_owned() })?;
    check(&snapshot, &manifest)?;
    let snapshot = Arc::new(snapshot);
    let opened = Store::open_or_create(snapshot.clone(), manifest.machine, &manifest.disks);
    // What cannot be read is not what was never written: a history that ends there would be told as the newest.
    if let Some(reason) = snapshot.trouble() {
        return Err(BareError::Io { path: path.to_owned(), source: io::Error::other(reason) });
    }
    let (store, findings) = opened?;
    Ok(Bare { store, manifest, findings, snapshot })
}

/// Refuses what no store of ours can say.
fn check(snapshot: &Snapshot, manifest: &Manifest) -> Result<(), BareError> {
    let claim = |reason: String| Err(BareError::Claim { file: "manifest".into(), reason });
    if manifest.format != FORMAT {
        return claim(format!("it is of format {}, and this program reads format {FORMAT}", manifest.format));
    }
    let disks = &manifest.disks;
    if disks.len() > DISKS_MAX {
        return claim(format!("it tells of {} disks", disks.len()));
    }
    let mut indexes: Vec<_> = disks.iter().map(|disk| disk.index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    if indexes.len() != disks.len() {
        return claim("it tells of one disk twice".into());
    }
    if let Some(disk) = disks.iter().find(|disk| disk.size > DISK_BYTES_MAX) {
        return claim(format!("disk {} is said to be {} bytes long", disk.index, disk.size));
    }
    if manifest.base_frame.0 == u64::MAX || manifest.base_sequence.0 == u64::MAX {
        return claim("its base is said to hold more than can be numbered".into());
    }
    for disk in disks {
        for (name, expected) in base::files_of(disk) {
            let found = match snapshot.open(&name, false) {
                Ok(file) => file.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
                Err(error) => Err(error),
            };
            let found = found.map_err(|error| ReplicaError::io(&name, error))?;
            // Before the first fold the base is all zeroes, and its files may not have been made yet. After it a
            // missing end must not pass for zeroes.
            if found != expected && (manifest.base_frame.0 > 0 || found > expected) {
                let reason = format!("it is {found} bytes long where its manifest says {expected}");
                return Err(BareError::Claim { file: name, reason });
            }
        }
    }
    let names = snapshot.list("journal").map_err(|error| ReplicaError::io("journal", error))?;
    for name in names {
        // `1` and `00000001` would be the same segment, read twice.
        if let Ok(number) = name.parse::<u64>()
            && segment::file_name(number) != format!("journal/{name}")
        {
            let reason =
                "no segment is named like this; move it away, it may be a copy of another".to_owned();
            return Err(BareError::Claim { file: format!("journal/{name}"), reason });
        }
    }
    Ok(())
}
