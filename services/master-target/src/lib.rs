//! The master target: keeps replicas at the recovery site and brings machines up.
//!
//! - [`estate`]: which replicas there are, and what was last said about them
//! - [`receive`]: frames in, durable, acknowledged
//! - [`bring_up`]: views served over NBD, guests started on them, everything removable again
//! - [`retention`]: history folded into the base by policy
//! - `schedule`: replicas into object storage, again and again; `seed`: copies that were brought by other means
//! - [`bare`]: stores looked at, exported and served by hand, with no vault and no master target alive
//! - [`control`]: the session with the vault: assignments, commands, reports
//!
//! Everything a restart needs is on this server's disk; a vault is not needed to keep receiving.

pub mod bare;
pub mod bring_up;
mod busy;
pub mod control;
pub mod estate;
pub mod receive;
pub mod retention;
pub mod reverse;
mod schedule;
mod seed;

pub use control::{MasterTargetConfig, run};
pub use schedule::Schedule;

use continuum_model::fault::{Fault, FaultClass};

/// A fault of this crate; whoever makes one adds what is affected, what is not, and what to do.
pub(crate) fn fault(code: &str, message: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Failed, code, message)
}

/// The store's words as a fault.
pub(crate) fn replica_fault(error: &continuum_replica::ReplicaError) -> Fault {
    use continuum_replica::ReplicaError as E;
    use std::error::Error;
    let cause = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    let (class, code) = match error {
        E::EpochSuperseded { .. } => (FaultClass::Refused, "epoch.superseded"),
        E::EpochUnknown { .. } => (FaultClass::NotReady, "epoch.unknown"),
        E::NoPoint { .. } => (FaultClass::NotReady, "point.unavailable"),
        E::Gap { .. } | E::Chain(_) => (FaultClass::NotConnected, "replica.gap"),
        E::Damaged { .. } | E::Frame(_) => (FaultClass::Failed, "replica.damaged"),
        E::Poisoned | E::Io { .. } => (FaultClass::Failed, "replica.io"),
        E::WrongMachine { .. } | E::Outside { .. } | E::NoDisk(_) | E::Mismatch { .. } => {
            (FaultClass::Failed, "replica.refused")
        }
    };
    Fault::new(class, code, format!("{error}{cause}"))
        .affects("this replica")
        .spares("other replicas; the source's writes, which are remembered there")
        .remedy("see the machine in the console; the text above says what to do")
}
