//! Stores by hand: looked at, exported and served, with no vault, no network and no master target alive.
//!
//! - [`archive`]: a store into object storage, and opened there
//! - [`export`]: a disk as of a moment into an image file
//! - [`hrl`]: replication logs, made from and to a feed's frames, and put onto an image
//! - [`rescue`]: any moment of stores, served to NBD clients
//!
//! Lives here: what needs more than the store. What a store's files mean: the replica crate, of which the types
//! are passed on. Invariant: no store is changed; what clients write goes elsewhere and ends with the process.

pub mod archive;
pub mod export;
pub mod hrl;
pub mod rescue;

pub use continuum_capture::map::MapFacts;
pub use continuum_model::feed::Codec;
pub use continuum_replica::inspect::{
    Affects, Content, Depth, EntryFacts, FRAMES_MAX, FrameFacts, History, Problem, SegmentFacts, StoreFacts,
};
pub use continuum_replica::manifest::Manifest;
pub use continuum_replica::remote::archive::Archived;
pub use continuum_replica::{PointInfo, Resolved, State};

use crate::replica_fault;
use continuum_capture::nbd::{BlockDevice, Extent};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::point::PointChoice;
use continuum_model::units::DiskIndex;
use continuum_model::untrusted::shown;
use continuum_replica::bare::{Bare, BareError};
use continuum_replica::{ReplicaError, View, bare, inspect};
use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Hears how far it is, of how much; answers whether to go on.
pub type Told<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// What a path turned out to be.
#[derive(Debug)]
pub enum Looked {
    /// Something of a replica, or nothing of ours.
    Replica(Content),
    /// An agent's change map.
    Map(MapFacts),
    /// A replication log.
    Log(Box<hrl::LogFacts>),
}

/// Tells what a path is. Only reads; `told` hears how many bytes were verified, of about how many.
pub fn look(path: &Path, depth: Depth, told: &mut dyn FnMut(u64, u64)) -> io::Result<Looked> {
    if std::fs::metadata(path)?.is_file() {
        let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        if file.metadata()?.is_file() {
            if let Some(facts) = continuum_capture::map::look(&file)? {
                return Ok(Looked::Map(facts));
            }
            if let Some(facts) = hrl::look(file, depth, told)? {
                return Ok(Looked::Log(Box::new(facts)));
            }
        }
    }
    inspect::look(path, depth, told).map(Looked::Replica)
}

/// An error with all its causes, in one harmless line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text += &format!(": {source}");
        cause = source.source();
    }
    shown(&text)
}

/// Opens a store and keeps its owner away; or an archive, by its address, where it lies.
fn open(path: &Path, scratch: Option<&Path>) -> Result<Bare, Fault> {
    match path.to_str().filter(|text| continuum_objects::is_address(text)) {
        Some(address) => archive::open_address(address, scratch),
        None => bare::open(path, scratch).map_err(|error| bare_fault(&error)),
    }
}

fn bare_fault(error: &BareError) -> Fault {
    let (class, code, remedy) = match error {
        BareError::NoStore { .. } => (
            FaultClass::NotFound,
            "store.none",
            "name the folder of one replica: below a master target's directory it is replicas/MACHINE-ID",
        ),
        BareError::OwnerLives { .. } => (
            FaultClass::Conflict,
            "store.in-use",
            "where a vault is alive, bring the machine up with `continuum test-failover`; else stop the master \
             target first, or make a copy of the folder and name that",
        ),
        BareError::Claim { .. } => (
            FaultClass::Failed,
            "store.damaged",
            "`continuum inspect STORE --verify` tells what is whole; a copy of the store may be better",
        ),
        BareError::Io { .. } => {
            (FaultClass::Failed, "store.unreadable", "name a folder that this user may read")
        }
        BareError::Store(error) => {
            return replica_fault(error)
                .affects("this store")
                .spares("its files, which are only read")
                .remedy("`continuum inspect STORE --verify` tells what is whole");
        }
    };
    Fault::new(class, code, chain(error))
        .affects("this store")
        .spares("its files, which are only read")
        .remedy(remedy)
}

/// Finds the moment that is asked for, and opens it.
fn view_at(bare: &Bare, at: &PointChoice) -> Result<(View, Resolved), Fault> {
    let told = |error: ReplicaError| {
        replica_fault(&error)
            .affects("this moment of the store")
            .spares("its other moments, and its files, which are only read")
            .remedy("`continuum inspect STORE --points` tells from when to when there is history")
    };
    let resolved = bare.store.resolve(at).map_err(told)?;
    let view = bare.store.open_view(resolved.position).map_err(told)?;
    Ok((view, resolved))
}

/// A disk of a view, as an NBD server takes it: read only, and telling how far clients came.
struct ViewDisk {
    view: Arc<View>,
    disk: DiskIndex,
    size: u64,
    seen: AtomicU64,
    error: Mutex<Option<String>>,
}

impl ViewDisk {
    fn new(view: Arc<View>, disk: DiskIndex, size: u64) -> Self {
        Self { view, disk, size, seen: AtomicU64::new(0), error: Mutex::default() }
    }

    /// The first thing that could not be read, as clients are told no reasons.
    fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn failed(&self, error: &ReplicaError) -> io::Error {
        let text = chain(error);
        tracing::error!("a disk that is served cannot be read: {text}");
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        io::ErrorKind::InvalidData.into()
    }
}

impl BlockDevice for ViewDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.view.read_at(self.disk, offset, out).map_err(|error| self.failed(&error))?;
        self.seen.fetch_max(offset + out.len() as u64, Ordering::Relaxed);
        Ok(())
    }
    fn write(&self, _offset: u64, _data: &[u8], _durable: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _offset: u64, _length: u64, _may_trim: bool, _durable: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let runs = self.view.extents(self.disk, offset, length).map_err(|error| self.failed(&error))?;
        out.extend(runs.into_iter().map(|(length, data)| Extent { length, data }));
        Ok(())
    }
}
