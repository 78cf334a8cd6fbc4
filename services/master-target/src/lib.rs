//! The master target: keeps replicas at the recovery site and brings machines up.
//!
//! - [`estate`]: which replicas there are, and what was last said about them
//! - [`receive`]: frames in, durable, acknowledged
//! - [`bring_up`]: views served over NBD, guests started on them, everything removable again
//! - [`retention`]: history folded into the base by policy
//! - [`control`]: the session with the vault: assignments, commands, reports
//!
//! Everything a restart needs is on this server's disk; a vault is not needed to keep receiving.

pub mod bring_up;
pub mod control;
pub mod estate;
pub mod receive;
pub mod retention;

use continuum_model::fault::Fault;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a master target needs to run.
#[derive(Debug, Clone)]
pub struct MasterTargetConfig {
    /// Its name; a label.
    pub name: String,
    /// The name of the site it stands at.
    pub site: String,
    /// Replicas, views and what was last assigned.
    pub dir: PathBuf,
    /// Sockets; short, so that their paths fit.
    pub run_dir: PathBuf,
    /// Where the replication channel listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where others reach that listener, when it is not what it binds.
    pub advertise: Option<String>,
    /// `host:port` of the vault.
    pub vault_address: String,
    /// The program that becomes a guest of the lab when started with `role guest`.
    pub guest_program: PathBuf,
}

/// A fault of this crate whose words are complete.
pub(crate) fn fault(code: &str, message: impl Into<String>) -> Fault {
    Fault::new(continuum_model::fault::FaultClass::Failed, code, message)
}
