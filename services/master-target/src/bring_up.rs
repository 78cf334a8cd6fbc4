//! Machines brought up from a replica: a view, an overlay, an NBD server, a guest. And their removal.
//!
//! ```text
//! <dir>/views/<view id>.json    what was brought up; written before anything is started, removed last
//! <dir>/views/<view id>.feed/   of a failover: what its machine writes, on its way to the old source (see `reverse`)
//! <run>/<short id>.sock         where the disks of the view are served
//! ```
//!
//! The record makes every act repeatable: after a crash of this server the views that are on record are
//! opened and served again on the same sockets, so that a guest, which is a process of its own, goes on.
//! Cleanup of what does not exist is a success.

use crate::estate::{AssignedDisk, Estate, replace_file, sync_dir};
use crate::reverse::Asking;
use crate::{fault, replica_fault};
use continuum_capture::disk::{Activity, Stamp};
use continuum_capture::nbd::{self, BlockDevice, Extent};
use continuum_capture::source::SourceSpec;
use continuum_capture::{Source, SourceConfig, SourceDisk};
use continuum_fabric::compute::{Compute, GuestRecord, GuestSpec, Probe};
use continuum_model::digest::Digest;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::BarrierKind;
use continuum_model::id::{MachineId, PointId, ViewId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Sequence};
use continuum_model::world::{SystemClock, SystemEntropy};
use continuum_replica::{Overlay, ReplicaError, Store};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What was brought up, as it stands on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    view: ViewId,
    machine: MachineId,
    position: Sequence,
    /// A failover: the overlay is the machine's new truth, never removed by a cleanup of tests.
    keep: bool,
    disks: Vec<AssignedDisk>,
    guest: Option<GuestRecord>,
}

/// One view that is being served.
struct Served {
    record: Record,
    server: nbd::Server,
    /// Of a failover. After the server: clients leave first.
    follow: Option<Follow>,
}

/// The feed of a machine that was failed over, and how its receiver is asked for sums.
#[derive(Clone)]
pub struct Follow {
    /// Every write, from the first one on.
    pub source: Arc<Source>,
    /// To the receiver.
    pub asking: Arc<Asking>,
}

/// All that is brought up on this server.
pub struct BringUp {
    dir: PathBuf,
    run_dir: PathBuf,
    estate: Arc<Estate>,
    compute: Arc<dyn Compute>,
    served: Mutex<HashMap<ViewId, Served>>,
}

/// A disk with its endpoint.
pub struct ServedDisk {
    /// The disk.
    pub disk: AssignedDisk,
    /// Where it is served.
    pub endpoint: String,
}

impl BringUp {
    /// Opens what is on record and serves it again. What cannot be served is told and stays on record.
    pub fn open(
        dir: &Path,
        run_dir: &Path,
        estate: Arc<Estate>,
        compute: Arc<dyn Compute>,
    ) -> Result<Self, Fault> {
        let dir = dir.join("views");
        let io = |error: io::Error| fault("target.directory", format!("{}: {error}", dir.display()));
        std::fs::create_dir_all(&dir).map_err(io)?;
        let this =
            Self { dir: dir.clone(), run_dir: run_dir.to_owned(), estate, compute, served: Mutex::default() };
        for entry in std::fs::read_dir(&dir).map_err(io)?.flatten() {
            if entry.path().extension().is_none_or(|end| end != "json") {
                continue;
            }
            let record = std::fs::read(entry.path())
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            let Some(record) = record else {
                tracing::error!(file = %entry.path().display(), "a record of a view cannot be read; it is left alone");
                continue;
            };
            match this.serve(record.clone()) {
                Ok(served) => {
                    this.served().insert(record.view, served);
                    this.start_again(&record);
                }
                Err(fault) => {
                    tracing::error!(view = %record.view, code = fault.code, "a view cannot be served again: {}", fault.message)
                }
            }
        }
        Ok(this)
    }

    fn served(&self) -> MutexGuard<'_, HashMap<ViewId, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record_path(&self, view: ViewId) -> PathBuf {
        self.dir.join(format!("{view}.json"))
    }

    fn store_record(&self, record: &Record) -> Result<(), Fault> {
        let bytes =
            serde_json::to_vec_pretty(record).map_err(|error| fault("view.record", error.to_string()))?;
        replace_file(&self.record_path(record.view), &bytes)
            .map_err(|error| fault("view.record", format!("the view's record could not be stored: {error}")))
    }

    fn serve(&self, record: Record) -> Result<Served, Fault> {
        let store = self.estate.replica(record.machine)?.store()?;
        let view = store.open_view(record.position).map_err(|error| replica_fault(&error))?;
        let overlay = store.open_overlay(view, record.view).map_err(|error| replica_fault(&error))?;
        let overlay = Arc::new(overlay);
        let socket = self.run_dir.join(format!("v{}.sock", record.view.short()));
        let server = nbd::Server::on_unix(&socket)
            .map_err(|error| fault("view.serve", format!("the disks cannot be served: {error}")))?;
        let follow = if record.keep { Some(self.follow(&record, &overlay)?) } else { None };
        for (index, disk) in record.disks.iter().enumerate() {
            let device = OverlayDisk { overlay: overlay.clone(), disk: disk.index, size: disk.size_bytes };
            let captured = follow.as_ref().and_then(|follow| follow.source.device(index));
            server.export(&disk.name, captured.unwrap_or_else(|| Arc::new(device)));
        }
        Ok(Served { record, server, follow })
    }

    /// What a failed-over machine writes is a feed from the first write on.
    fn follow(&self, record: &Record, overlay: &Arc<Overlay>) -> Result<Follow, Fault> {
        let disks = record.disks.iter().map(|disk| {
            let below = OverlayDisk { overlay: overlay.clone(), disk: disk.index, size: disk.size_bytes };
            SourceSpec { id: disk.id, disk: Box::new(Captured { below, view: record.view }) }
        });
        let config =
            SourceConfig { machine: record.machine, dir: self.feed_dir(record.view), disks: disks.collect() };
        let source = Source::open(config, Arc::new(SystemClock::default()), &mut SystemEntropy);
        let source = source.map_err(|error| fault("view.feed", error.to_string()))?;
        let asking = Arc::new(Asking::default());
        let asks = asking.clone();
        source.set_ask_replica(move |disk, nodes| asks.ask(disk, nodes));
        Ok(Follow { source: Arc::new(source), asking })
    }

    fn feed_dir(&self, view: ViewId) -> PathBuf {
        self.dir.join(format!("{view}.feed"))
    }

    /// The feed of a view that was brought up by a failover.
    pub fn followed(&self, view: ViewId) -> Option<Follow> {
        self.served().get(&view)?.follow.clone()
    }

    /// Refuses writes to a view from now on, over restarts, and cuts a barrier behind the last one.
    ///
    /// Errors: its writes do not reach the old source now; it goes on writing then.
    pub fn halt(&self, view: ViewId, point: PointId) -> Result<(Sequence, Timestamp), Fault> {
        let follow = self.followed(view).ok_or_else(|| unknown(view))?;
        follow.source.halt().map_err(|error| fault("view.halt", error.to_string()))?;
        follow.source.barrier(BarrierKind::Crash, "failback", point).map_err(|error| {
            // It cannot be moved without loss now: it goes on where it is.
            let _ = follow.source.release();
            Fault::new(FaultClass::NotReady, "barrier.refused", error.to_string())
                .affects("this failback")
                .spares("the machine at the recovery site, which goes on")
                .remedy("wait until the reverse direction is continuous, then try again")
        })
    }

    /// Takes writes to a view again. None is fine.
    pub fn release(&self, view: ViewId) -> Result<(), Fault> {
        let Some(follow) = self.followed(view) else { return Ok(()) };
        follow.source.release().map_err(|error| fault("view.release", error.to_string()))
    }

    /// Digests of the disks of a view that takes no writes.
    pub fn digest(&self, view: ViewId) -> Result<Vec<Digest>, Fault> {
        let follow = self.followed(view).ok_or_else(|| unknown(view))?;
        follow.source.digest_at_rest().map_err(|error| fault("view.digest", error.to_string()))
    }

    /// Ends serving in good order: guests that run on lose their disks until the next start.
    pub fn close(&self) {
        for (view, Served { server, follow, .. }) in self.served().drain() {
            drop(server);
            let Some(follow) = follow else { continue };
            follow.asking.end();
            if let Err(error) = follow.source.close() {
                tracing::warn!(%view, %error, "the feed of a view was not closed in good order: it is compared again");
            }
        }
    }

    /// Opens a view and serves its disks. Done already: answers the same.
    pub fn open_view(
        &self,
        machine: MachineId,
        view: ViewId,
        position: Sequence,
        keep: bool,
    ) -> Result<Vec<ServedDisk>, Fault> {
        if !self.served().contains_key(&view) {
            let assigned = self.estate.replica(machine)?.assigned();
            let record = Record { view, machine, position, keep, disks: assigned.disks, guest: None };
            // On record first: whatever is made from here on is found and removed by a cleanup.
            self.store_record(&record)?;
            let served = self.serve(record)?;
            self.served().insert(view, served);
        }
        self.disks(view)
    }

    /// The disks of a view, with their endpoints.
    pub fn disks(&self, view: ViewId) -> Result<Vec<ServedDisk>, Fault> {
        let served = self.served();
        let served = served.get(&view).ok_or_else(|| unknown(view))?;
        let endpoint = served.server.endpoint();
        let disk =
            |disk: &AssignedDisk| ServedDisk { disk: disk.clone(), endpoint: endpoint.uri(&disk.name) };
        Ok(served.record.disks.iter().map(disk).collect())
    }

    /// A machine that ran when this host went down comes up again with it.
    fn start_again(&self, record: &Record) {
        if let Some(guest) = record.guest.as_ref().filter(|guest| guest.process.is_some())
            && let Err(fault) = self.start_guest(record.view, &guest.kind, "")
        {
            tracing::error!(view = %record.view, code = fault.code, "a machine could not be started again: {}", fault.message);
        }
    }

    /// Starts the guest of a view. One that runs already is left alone.
    pub fn start_guest(&self, view: ViewId, kind: &str, name: &str) -> Result<(), Fault> {
        let disks = self.disks(view)?.into_iter().map(|served| served.endpoint).collect();
        let (mut record, running) = {
            let served = self.served();
            let record = served.get(&view).ok_or_else(|| unknown(view))?.record.clone();
            let running = record.guest.as_ref().is_some_and(|guest| self.compute.is_running(guest));
            (record, running)
        };
        if running {
            return Ok(());
        }
        let spec = GuestSpec {
            kind: kind.to_owned(),
            name: name.to_owned(),
            disks,
            dir: self.run_dir.clone(),
            handle: format!("g{}", view.short()),
            replica: true,
        };
        let guest = self.compute.start(&spec).map_err(|error| {
            fault("guest.start", format!("the machine could not be started: {error}"))
                .affects("this machine at the recovery site")
                .spares("its replica, and replication")
                .remedy("mend the cause and try again; `continuum doctor` tells what is missing")
        })?;
        record.guest = Some(guest);
        self.store_record(&record)?;
        if let Some(served) = self.served().get_mut(&view) {
            served.record = record;
        }
        Ok(())
    }

    /// Asks the guest of a view whether it works.
    pub fn probe(&self, view: ViewId, patience: Duration) -> Result<Vec<Probe>, Fault> {
        let guest = self.served().get(&view).ok_or_else(|| unknown(view))?.record.guest.clone();
        let guest = guest.ok_or_else(|| {
            Fault::new(FaultClass::NotReady, "guest.none", "nothing was started on this view yet")
                .remedy("start it first")
        })?;
        Ok(self.compute.probe(&guest, patience))
    }

    /// Stops the guest of a view. None is fine.
    pub fn stop_guest(&self, view: ViewId) -> Result<(), Fault> {
        let guest = self.served().get(&view).and_then(|served| served.record.guest.clone());
        // A view that could not be served again still has its record.
        let guest = guest.or_else(|| {
            let bytes = std::fs::read(self.record_path(view)).ok()?;
            serde_json::from_slice::<Record>(&bytes).ok()?.guest
        });
        match guest {
            Some(guest) => self.compute.stop(&guest).map_err(|error| {
                fault("guest.stop", format!("the machine could not be stopped: {error}"))
                    .remedy("order the cleanup again")
            })?,
            None => return Ok(()),
        }
        // Not to come up again with this host.
        let mut served = self.served();
        let Some(served) = served.get_mut(&view) else { return Ok(()) };
        served.record.guest = None;
        self.store_record(&served.record)
    }

    /// Removes a view with its overlay. None is fine.
    pub fn close_view(&self, machine: MachineId, view: ViewId) -> Result<(), Fault> {
        self.stop_guest(view)?;
        let gone = self.served().remove(&view);
        if let Some(Served { server, follow, .. }) = gone {
            // Its clients leave first; what they wrote is not needed any more.
            drop(server);
            if let Some(follow) = follow {
                follow.asking.end();
                let _ = follow.source.close();
            }
        }
        if let Ok(store) = self.estate.replica(machine).and_then(|replica| replica.store()) {
            Store::remove_overlay(&store, view).map_err(|error| replica_fault(&error))?;
        }
        match std::fs::remove_dir_all(self.feed_dir(view)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fault("view.feed", format!("the view's feed could not be removed: {error}")));
            }
            _ => {}
        }
        match std::fs::remove_file(self.record_path(view)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fault("view.record", format!("the view's record could not be removed: {error}")));
            }
            _ => {}
        }
        sync_dir(&self.dir).map_err(|error| fault("view.record", error.to_string()))
    }

    /// The machine of a view that is on record.
    pub fn machine_of(&self, view: ViewId) -> Option<MachineId> {
        if let Some(served) = self.served().get(&view) {
            return Some(served.record.machine);
        }
        let bytes = std::fs::read(self.record_path(view)).ok()?;
        Some(serde_json::from_slice::<Record>(&bytes).ok()?.machine)
    }

    /// Closes every view of a machine, for a replica that is removed: those that are served, and those that
    /// are only on record because they could not be served again.
    pub fn close_all(&self, machine: MachineId) -> Result<(), Fault> {
        let unreadable = |error: io::Error| fault("view.record", format!("{}: {error}", self.dir.display()));
        let mut views: Vec<ViewId> = self.served().keys().copied().collect();
        for entry in std::fs::read_dir(&self.dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_stem().and_then(|name| name.to_str());
            views.extend(name.and_then(|name| name.parse::<ViewId>().ok()));
        }
        views.sort_unstable();
        views.dedup();
        views.retain(|view| self.machine_of(*view) == Some(machine));
        views.into_iter().try_for_each(|view| self.close_view(machine, view))
    }

    /// Every view: its id, machine, whether its guest runs, and its feed where it has one.
    pub fn all(&self) -> Vec<(ViewId, MachineId, bool, Option<Follow>)> {
        let served = self.served();
        let running =
            |record: &Record| record.guest.as_ref().is_some_and(|guest| self.compute.is_running(guest));
        served
            .values()
            .map(|served| {
                let record = &served.record;
                (record.view, record.machine, running(record), served.follow.clone())
            })
            .collect()
    }
}

fn unknown(view: ViewId) -> Fault {
    Fault::new(FaultClass::NotFound, "view.unknown", format!("view {view} is not open on this master target"))
        .affects("this request")
        .remedy("clean up the test failover, and start it anew")
}

/// A disk of an overlay, as an NBD server takes it.
pub(crate) struct OverlayDisk {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) disk: DiskIndex,
    pub(crate) size: u64,
}

/// A disk of an overlay, as its feed takes it.
struct Captured {
    below: OverlayDisk,
    view: ViewId,
}

impl SourceDisk for Captured {
    fn size(&self) -> io::Result<u64> {
        Ok(self.below.size)
    }
    fn stamp(&self) -> io::Result<Stamp> {
        let id = self.view.as_bytes();
        let identity = id.iter().fold(u64::from(self.below.disk.0), |sum, byte| {
            sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)
        });
        // Its log grows when it is written to. That it was rewritten meanwhile is doubt, and costs a comparison.
        let bytes = i64::try_from(self.below.overlay.bytes()).unwrap_or(i64::MAX);
        Ok(Stamp { identity, activity: Activity::Modified(bytes) })
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.below.read(offset, out)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.below.write(offset, data, false)
    }
    fn zero(&self, offset: u64, length: u64, may_trim: bool) -> io::Result<()> {
        self.below.zero(offset, length, may_trim, false)
    }
    fn flush(&self) -> io::Result<()> {
        self.below.flush()
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        self.below.extents(offset, length, out)
    }
}

fn io_error(error: ReplicaError) -> io::Error {
    tracing::error!("a brought-up disk failed: {error}");
    io::Error::other(error)
}

impl BlockDevice for OverlayDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.overlay.read_at(self.disk, offset, out).map_err(io_error)
    }
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        self.overlay.write_at(self.disk, offset, data).map_err(io_error)?;
        if durable { self.flush() } else { Ok(()) }
    }
    fn flush(&self) -> io::Result<()> {
        self.overlay.flush().map_err(io_error)
    }
    fn zero(&self, offset: u64, length: u64, _may_trim: bool, durable: bool) -> io::Result<()> {
        self.overlay.zero(self.disk, offset, length).map_err(io_error)?;
        if durable { self.flush() } else { Ok(()) }
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        // What was written on top may hold data anywhere: only an untouched overlay can tell holes.
        if self.overlay.bytes() > 0 {
            out.push(Extent { length, data: true });
            return Ok(());
        }
        let runs = self.overlay.view().extents(self.disk, offset, length).map_err(io_error)?;
        out.extend(runs.into_iter().map(|(length, data)| Extent { length, data }));
        Ok(())
    }
}
