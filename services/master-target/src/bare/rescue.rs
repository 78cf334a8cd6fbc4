//! Any moment of bare stores, served to NBD clients: what is left to do when vault, servers and source are gone.
//!
//! Read only; or, with a scratch folder, writable: what is written goes to an unnamed file there and is gone when
//! this ends. The stores are locked meanwhile, so that no master target folds away what is being read.

use super::{ViewDisk, chain, open, view_at};
use crate::bring_up::OverlayDisk;
use continuum_capture::nbd::{self, BlockDevice};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ViewId};
use continuum_model::point::PointChoice;
use continuum_model::untrusted::shown;
use continuum_replica::bare::Bare;
use continuum_replica::{DiskSpec, Resolved};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where disks are served.
#[derive(Debug, Clone)]
pub enum Place {
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
    /// TCP on the loopback: whoever is on this machine may read. Port 0 takes any free one.
    Tcp(SocketAddr),
}

/// One disk that is served.
#[derive(Debug, Clone)]
pub struct Served {
    /// Which store.
    pub store: PathBuf,
    /// Whose.
    pub machine: MachineId,
    /// Which disk.
    pub disk: DiskSpec,
    /// As of when.
    pub moment: Resolved,
    /// Under which name.
    pub export: String,
    /// Where: as NBD clients take it.
    pub uri: String,
    /// Whether clients may write, into the scratch folder.
    pub writable: bool,
}

/// Disks that are served until this is dropped.
pub struct Rescue {
    /// Ended first: no client reads any more when the stores are let go.
    server: nbd::Server,
    served: Vec<Served>,
    _stores: Vec<Bare>,
}

impl Rescue {
    /// Opens every store as of a moment and serves all its disks.
    pub fn start(
        stores: &[PathBuf],
        at: &PointChoice,
        place: &Place,
        scratch: Option<&Path>,
    ) -> Result<Self, Fault> {
        let listened = match place {
            Place::Unix(path) => nbd::Server::on_unix(path),
            Place::Tcp(address) if !address.ip().is_loopback() => {
                return Err(Fault::new(
                    FaultClass::Refused,
                    "rescue.address",
                    format!("{address} is not on the loopback, and disks are served without encryption"),
                )
                .spares("nothing was opened")
                .remedy("serve on 127.0.0.1 and carry it elsewhere through ssh -L"));
            }
            Place::Tcp(address) => nbd::Server::on_tcp(*address),
        };
        // Every store before anything is served: all of them come up, or none.
        let mut rooms = Vec::new();
        for path in stores {
            let bare = open(path, scratch)?;
            let (view, moment) = view_at(&bare, at)?;
            rooms.push((path, bare, view, moment));
        }
        let server = listened.map_err(|error| {
            Fault::new(
                FaultClass::Failed,
                "rescue.listen",
                format!("nothing can be served there: {}", chain(&error)),
            )
            .affects("this rescue")
            .spares("the stores, which are only read")
            .remedy("name another socket or port")
        })?;
        let mut this = Self { server, served: Vec::new(), _stores: Vec::new() };
        for (number, (path, bare, view, moment)) in rooms.into_iter().enumerate() {
            // With one store the names are plain; with several each begins with its place in the order given.
            let prefix = if stores.len() == 1 { String::new() } else { format!("{}-", number + 1) };
            let disks = bare.manifest.disks.clone();
            let devices: Vec<Arc<dyn BlockDevice>> = if scratch.is_some() {
                let overlay = bare.store.open_overlay(view, fresh_id()).map_err(|error| {
                    crate::replica_fault(&error)
                        .affects("what clients would write")
                        .spares("the store, which is only read")
                        .remedy("name a scratch folder with space that this user may write to")
                })?;
                let overlay = Arc::new(overlay);
                let device = |disk: &DiskSpec| -> Arc<dyn BlockDevice> {
                    Arc::new(OverlayDisk { overlay: overlay.clone(), disk: disk.index, size: disk.size })
                };
                disks.iter().map(device).collect()
            } else {
                let view = Arc::new(view);
                let device = |disk: &DiskSpec| -> Arc<dyn BlockDevice> {
                    Arc::new(ViewDisk::new(view.clone(), disk.index, disk.size))
                };
                disks.iter().map(device).collect()
            };
            for (disk, device) in disks.into_iter().zip(devices) {
                let export = format!("{prefix}disk{}", disk.index);
                this.server.export(&export, device);
                this.served.push(Served {
                    store: path.clone(),
                    machine: bare.manifest.machine,
                    disk,
                    moment: moment.clone(),
                    uri: this.server.endpoint().uri(&export),
                    export,
                    writable: scratch.is_some(),
                });
            }
            for finding in &bare.findings {
                tracing::warn!("{}: {}", shown(&path.display().to_string()), shown(finding));
            }
            this._stores.push(bare);
        }
        Ok(this)
    }

    /// What is served.
    pub fn served(&self) -> &[Served] {
        &self.served
    }

    /// Ends all clients and lets the stores go.
    pub fn stop(self) {
        self.server.stop();
    }
}

/// An id that no overlay of the store has: what is written under it is seen by this process only.
fn fresh_id() -> ViewId {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    ViewId::from_bytes((now.as_nanos() ^ u128::from(std::process::id()) << 96).to_be_bytes())
}
