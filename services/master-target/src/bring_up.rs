//! Machines brought up from a replica: a view, an overlay, an NBD server, a guest. And their removal.
//!
//! ```text
//! <dir>/views/<view id>.json    what was brought up; written before anything is started, removed last
//! <run>/<short id>.sock         where the disks of the view are served
//! ```
//!
//! The record makes every act repeatable: after a crash of this server the views that are on record are
//! opened and served again on the same sockets, so that a guest, which is a process of its own, goes on.
//! Cleanup of what does not exist is a success.

use crate::estate::{AssignedDisk, Estate, replace_file};
use crate::fault;
use continuum_capture::nbd;
use continuum_fabric::compute::{Compute, GuestDisk, GuestRecord, GuestSpec, Probe};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ViewId};
use continuum_model::units::Sequence;
use continuum_replica::{Overlay, Store};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
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
    _overlay: Arc<Overlay>,
    server: nbd::Server,
}

/// All that is brought up on this server.
pub struct BringUp {
    dir: PathBuf,
    run_dir: PathBuf,
    estate: Arc<Estate>,
    compute: Arc<dyn Compute>,
    served: Mutex<HashMap<ViewId, Served>>,
}
