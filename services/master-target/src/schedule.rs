//! Replicas into object storage, again and again, while they go on.
//!
//! What an archive is, and why two writers cannot harm one another: the replica crate. Each replica goes below
//! `<address>/<machine id>`; only what is new since the last time travels.

use crate::bare::archive as by_hand;
use crate::estate::{Estate, Replica};
use continuum_model::fault::Fault;
use continuum_model::units::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Where to, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The address of a bucket or container, with a prefix.
    pub address: String,
    /// From the end of one round to the next.
    pub every: Duration,
}

impl Schedule {
    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        if !continuum_objects::is_address(&self.address) {
            return Some("archive: write s3://BUCKET/PREFIX or az://CONTAINER/PREFIX".into());
        }
        let often = self.every < Duration::from_secs(10);
        often.then(|| "archive_seconds: choose at least 10".into())
    }
}

/// Goes on until `stop`. What fails for one replica is told with it; the others go on.
pub(crate) async fn run(estate: Arc<Estate>, schedule: Option<Schedule>, stop: CancellationToken) {
    let Some(Schedule { address, every }) = schedule else { return };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        for replica in estate.all() {
            let machine = replica.assigned().machine;
            let (path, stop) = (estate.store_dir(machine), stop.clone());
            let address = format!("{}/{machine}", address.trim_end_matches('/'));
            let done = tokio::task::spawn_blocking(move || {
                let done = one(&replica, &path, &address, &stop);
                match &done {
                    // Stopped: the next start tries again.
                    Err(fault) if fault.code == "interrupted" => {}
                    Err(fault) => tracing::warn!(%machine, code = fault.code, "archive: {}", fault.message),
                    Ok(()) => {}
                }
                replica.warn("archive.failed", done.err());
            });
            if let Err(error) = done.await {
                tracing::error!(%machine, %error, "an archive died");
            }
        }
    }
}

fn one(replica: &Replica, path: &Path, address: &str, stop: &CancellationToken) -> Result<(), Fault> {
    let Ok(store) = replica.store() else { return Ok(()) };
    if store.state().last.number.0 == 0 {
        return Ok(());
    }
    let bucket = by_hand::bucket(address)?;
    let archived = store
        .archive(path, &bucket, &mut |_, _| !stop.is_cancelled())
        .map_err(|error| by_hand::fault(address, &error))?;
    tracing::info!(
        machine = %store.machine(), version = archived.version, sent = %Bytes(archived.sent_bytes), holds = %Bytes(archived.bytes), "archived"
    );
    Ok(())
}
