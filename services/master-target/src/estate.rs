//! Which replicas this server keeps, and what the vault last said about each.
//!
//! Lives here: opening stores, the assignment that survives a restart, the state that reports are made of.
//! Lives elsewhere: a store's files (`continuum-replica`), frames on their way in (`receive`).
//!
//! ```text
//! <dir>/assignment.json          what the vault last said, whole; replaced atomically
//! <dir>/replicas/<machine id>/   one store each (see continuum-replica)
//! <dir>/seeds/<machine id>/      <disk index>.raw: what a new replica begins with (see `seed`)
//! ```
//!
//! A replica whose store cannot be opened is told with its reason and refuses frames; the others go on.

use crate::busy::Busy;
use crate::{fault, seed};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{DiskId, MachineId, ViewId};
use continuum_model::policy::Policy;
use continuum_model::units::{Bytes, DiskIndex, Epoch, Sequence};
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_replica::{DiskSpec, Folder, Store, bare};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

/// One disk of a replica, as the vault numbered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedDisk {
    /// Its number in frames.
    pub index: DiskIndex,
    /// Its id.
    pub id: DiskId,
    /// What it is called; a label, and the name of its export.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
}

/// What the vault said about one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Whose replica.
    pub machine: MachineId,
    /// A label.
    pub name: String,
    /// The newest epoch that the vault issued.
    pub epoch: Epoch,
    /// Its disks.
    pub disks: Vec<AssignedDisk>,
    /// Its policy.
    pub policy: Policy,
    /// The process server that may bring frames.
    pub process_server: String,
    /// What was brought up, and the machine's old host may follow.
    #[serde(default)]
    pub reverse: Option<ViewId>,
}

/// What of the volume is kept free of history, so that a full disk never stands in the way of a failover.
const RESERVE_BYTES: u64 = 512 << 20;
/// On a small volume it is one part in this many.
const RESERVE_SHARE: u64 = 20;

/// All replicas of this server.
pub struct Estate {
    dir: PathBuf,
    /// Bytes of the volume that no frames get.
    reserve: u64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    revision: u64,
    replicas: HashMap<MachineId, Arc<Replica>>,
}

/// One replica: its assignment and its store.
pub struct Replica {
    /// What the vault said.
    pub assigned: Mutex<Assigned>,
    /// The store, or why it could not be opened.
    store: Result<Arc<Store>, Fault>,
    /// How busy its disk is.
    pub(crate) busy: Arc<Busy>,
    /// Listed points that were already reported, by position.
    pub(crate) reported: Mutex<Reported>,
    /// What is wrong with it, by code, though it takes frames.
    warnings: Mutex<BTreeMap<&'static str, Fault>>,
    /// A seed is being taken in: no frames until it is.
    pub(crate) seeding: AtomicBool,
}

/// How far the vault knows this replica's points.
#[derive(Debug, Default, Clone)]
pub(crate) struct Reported {
    pub(crate) up_to: Sequence,
    /// How often the store had rewritten history when it was told last; 0: it was not told.
    pub(crate) rewrites: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    revision: u64,
    replicas: Vec<Assigned>,
}

impl Estate {
    /// Opens what this server was last told to keep.
    pub fn open(dir: &Path) -> Result<Self, Fault> {
        let io = |what: &str, error: std::io::Error| {
            fault("target.directory", format!("{what} {}: {error}", dir.display()))
                .affects("this master target: it does not start")
                .spares("what is stored: nothing was touched")
                .remedy("mend the directory or its rights and start again")
        };
        std::fs::create_dir_all(dir.join("replicas")).map_err(|error| io("could not create", error))?;
        let stored = match std::fs::read(dir.join("assignment.json")) {
            Ok(bytes) => serde_json::from_slice::<Stored>(&bytes).unwrap_or_else(|error| {
                // Only a memory of what the vault says anyway: stores open without it once the vault answers.
                tracing::error!(%error, "assignment.json is not readable; waiting for the vault to tell again");
                Stored { revision: 0, replicas: Vec::new() }
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Stored { revision: 0, replicas: Vec::new() },
            Err(error) => return Err(io("could not read", error)),
        };
        let mut inner = Inner::default();
        for assigned in stored.replicas {
            inner.replicas.insert(assigned.machine, seed::begin(dir, Replica::open(dir, assigned)));
        }
        let size = rustix::fs::statvfs(dir).map_or(0, |volume| volume.f_blocks * volume.f_frsize);
        let reserve = RESERVE_BYTES.min(size / RESERVE_SHARE);
        Ok(Self { dir: dir.to_owned(), reserve, inner: Mutex::new(inner) })
    }

    /// Whether the volume has room for so many more bytes of history, and keeps its reserve: what machines that are
    /// brought up write, and what folding needs to give space back, must never fail for want of it.
    pub fn room_for(&self, bytes: u64) -> Result<(), Fault> {
        // Where it cannot be asked, the write itself will tell.
        let Ok(volume) = rustix::fs::statvfs(&self.dir) else { return Ok(()) };
        let free = volume.f_bavail * volume.f_frsize;
        if free >= self.reserve.saturating_add(bytes) {
            return Ok(());
        }
        Err(Fault::new(
            FaultClass::NotReady,
            "space.reserve",
            format!(
                "{} are free on the volume of the replicas, and {} of it are kept for failovers",
                Bytes(free),
                Bytes(self.reserve)
            ),
        )
        .affects("new changes, which stay at their sources: in staging, then in the change map")
        .spares("history, failovers and drills")
        .remedy("free space on the volume or grow it; replication goes on by itself"))
    }

    /// Takes the vault's word, whole. A revision of an earlier session of the same vault is taken, too:
    /// what is said last prevails.
    pub fn assign(&self, message: &pb::MasterTargetAssignment) {
        let mut list = Vec::new();
        for replica in &message.replicas {
            match assigned_from(replica) {
                Ok(assigned) => list.push(assigned),
                Err(fault) => {
                    tracing::error!(code = fault.code, "an assignment was not understood: {}", fault.message)
                }
            }
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.revision = message.revision;
        for assigned in &list {
            match inner.replicas.get(&assigned.machine) {
                Some(replica) if replica.store.is_ok() => replica.update(assigned.clone()),
                // Not there, or not readable last time: open it (again).
                _ => {
                    let replica = seed::begin(&self.dir, Replica::open(&self.dir, assigned.clone()));
                    inner.replicas.insert(assigned.machine, replica);
                }
            }
        }
        // What the vault no longer names is kept on disk until it says `RemoveReplica`: forgetting is not deleting.
        inner.replicas.retain(|machine, _| list.iter().any(|assigned| assigned.machine == *machine));
        let stored = Stored { revision: message.revision, replicas: list };
        if let Err(error) = replace_file(
            &self.dir.join("assignment.json"),
            &serde_json::to_vec_pretty(&stored).unwrap_or_default(),
        ) {
            tracing::error!(%error, "the assignment could not be stored; it holds until this server restarts");
        }
    }

    /// The replica of a machine.
    pub fn replica(&self, machine: MachineId) -> Result<Arc<Replica>, Fault> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.replicas.get(&machine).cloned().ok_or_else(|| {
            Fault::new(
                FaultClass::NotFound,
                "replica.unknown",
                format!("this master target keeps no replica of machine {machine}"),
            )
            .affects("this request")
            .spares("all replicas")
            .remedy("wait until the vault has told this server, or protect the machine")
        })
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Replica>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.replicas.values().cloned().collect()
    }

    /// Deletes a replica with its history. Idempotent.
    pub fn remove(&self, machine: MachineId) -> Result<String, Fault> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        // It may be none of ours any more: the vault says first that it is not, then that it goes.
        let known = inner.replicas.get(&machine).and_then(|replica| replica.store().ok());
        let dir = self.store_dir(machine);
        let locked = match known {
            Some(store) => {
                store.locked().iter().filter_map(|point| point.mark.lock).map(|lock| lock.until).max()
            }
            None => bare::locked_until(&dir, SystemClock::default().wall()).map_err(|error| {
                removal(machine, &std::io::Error::other(format!("whether points are locked: {error}")))
            })?,
        };
        if let Some(last) = locked {
            return Err(Fault::new(
                FaultClass::Refused,
                "replica.locked",
                format!("the replica of machine {machine} has points that are locked until {last} at least"),
            )
            .affects("this removal")
            .spares("the replica, of which nothing was touched")
            .remedy(
                "wait until the locks have ended and order the removal again, or end the protection and keep the replica (unprotect --keep-replica)",
            ));
        }
        inner.replicas.remove(&machine);
        match std::fs::remove_dir_all(&dir) {
            Ok(()) => {
                sync_dir(&self.dir.join("replicas")).map_err(|error| removal(machine, &error))?;
                Ok(format!("replica of machine {machine} removed"))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("there was no replica".into()),
            Err(error) => Err(removal(machine, &error)),
        }
    }

    /// Where a replica's store lies.
    pub fn store_dir(&self, machine: MachineId) -> PathBuf {
        self.dir.join("replicas").join(machine.to_string())
    }
}

fn removal(machine: MachineId, error: &std::io::Error) -> Fault {
    fault("replica.remove", format!("the replica of machine {machine} could not be removed: {error}"))
        .affects("the disk space it takes")
        .spares("other replicas")
        .remedy("mend the cause and order the removal again")
}

impl Replica {
    fn open(dir: &Path, assigned: Assigned) -> Self {
        let path = dir.join("replicas").join(assigned.machine.to_string());
        let disks: Vec<DiskSpec> = assigned
            .disks
            .iter()
            .map(|disk| DiskSpec { index: disk.index, id: disk.id, size: disk.size_bytes })
            .collect();
        let opened = Folder::open_or_create(&path).map_err(|error| error.to_string()).and_then(|folder| {
            Store::open_or_create(Arc::new(folder), assigned.machine, &disks)
                .map_err(|error| error.to_string())
        });
        let store = match opened {
            Ok((store, findings)) => {
                for finding in findings {
                    tracing::warn!(machine = %assigned.machine, "replica opened: {finding}");
                }
                let store = Arc::new(store);
                if let Err(error) = store.fence(assigned.epoch) {
                    tracing::error!(machine = %assigned.machine, %error, "the epoch could not be recorded");
                }
                Ok(store)
            }
            Err(reason) => Err(fault(
                "replica.open",
                format!("the replica of machine {} could not be opened: {reason}", assigned.machine),
            )
            .affects("this replica: it takes no frames")
            .spares("the other replicas; the source goes on and remembers what changed")
            .remedy("look with `continuum inspect` at its directory; mend or remove it")),
        };
        Self {
            assigned: Mutex::new(assigned),
            store,
            busy: Arc::default(),
            reported: Mutex::default(),
            warnings: Mutex::default(),
            seeding: AtomicBool::new(false),
        }
    }

    /// Says that something is wrong, or (`None`) that it no longer is.
    pub fn warn(&self, code: &'static str, wrong: Option<Fault>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        match wrong {
            Some(fault) => warnings.insert(code, fault),
            None => warnings.remove(code),
        };
    }

    /// What is wrong with it, though it takes frames.
    pub fn warnings(&self) -> Vec<Fault> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn update(&self, assigned: Assigned) {
        let mut current = self.assigned.lock().unwrap_or_else(PoisonError::into_inner);
        if assigned.epoch > current.epoch
            && let Ok(store) = &self.store
            && let Err(error) = store.fence(assigned.epoch)
        {
            tracing::error!(machine = %assigned.machine, %error, "the epoch could not be recorded");
        }
        *current = assigned;
    }

    /// The store, or why there is none.
    pub fn store(&self) -> Result<Arc<Store>, Fault> {
        self.store.clone()
    }

    /// What the vault said.
    pub fn assigned(&self) -> Assigned {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn assigned_from(replica: &pb::Replica) -> Result<Assigned, Fault> {
    let wrong =
        |what: &str| fault("assignment.invalid", format!("the vault's assignment has an invalid {what}"));
    let disks = replica
        .disks
        .iter()
        .map(|disk| {
            Ok(AssignedDisk {
                index: DiskIndex(u16::try_from(disk.index).map_err(|_| wrong("disk index"))?),
                id: disk.id.parse().map_err(|_| wrong("disk id"))?,
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
            })
        })
        .collect::<Result<Vec<_>, Fault>>()?;
    let policy = replica.policy.as_ref().map(continuum_wire::policy::from_message).transpose();
    let policy = policy.map_err(|why| wrong(&format!("policy ({why})")))?;
    Ok(Assigned {
        machine: replica.machine_id.parse().map_err(|_| wrong("machine id"))?,
        name: replica.machine_name.clone(),
        epoch: Epoch(replica.epoch),
        disks,
        policy: policy.unwrap_or_default(),
        process_server: replica.process_server_id.clone(),
        reverse: replica.reverse_view.parse().ok(),
    })
}

/// Replaces a small file so that it is either the old or the new one after any crash.
pub fn replace_file(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// Makes the entries of a directory durable.
pub fn sync_dir(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_never_takes_what_is_kept_for_failovers() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut estate = Estate::open(dir.path()).expect("it opens");
        assert!(estate.reserve > 0 && estate.reserve <= RESERVE_BYTES);
        estate.room_for(4096).expect("there is room");
        let volume = rustix::fs::statvfs(dir.path()).expect("a volume");
        let fault = estate.room_for(volume.f_blocks * volume.f_frsize).expect_err("more than there is");
        assert_eq!(fault.code, "space.reserve");
        assert!(fault.message.contains("kept for failovers"), "{}", fault.message);
        estate.reserve = u64::MAX;
        estate.room_for(1).expect_err("all of it is kept");
    }
}
