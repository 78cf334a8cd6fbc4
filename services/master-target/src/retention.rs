//! What is done for every replica in the background, a bounded slice at a time, while everything else goes on:
//! what changed is summed, so that the newest state can be compared without being read; history is folded into the
//! base by policy, the logs of overlays are kept short, and everything that is stored is read again and again
//! before somebody needs it.

use crate::estate::{Estate, Replica};
use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;
use continuum_model::world::Clock;
use continuum_replica::{ReplicaError, Store};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between rounds. A round does at most one slice for each replica.
const ROUND: Duration = Duration::from_secs(5);
/// What the scrub of all replicas together may read in a round: about 13 MB/s, so that it is hardly felt.
const SCRUB_BYTES: u64 = 64 << 20;
/// The least that one replica gets of it.
const SCRUB_BYTES_MIN: u64 = 1 << 20;

/// What is read for the sums of all replicas together in a round. What was just written is still in memory.
const SUMMED_BYTES: u64 = 256 << 20;
/// The least that one replica gets of it.
const SUMMED_BYTES_MIN: u64 = 4 << 20;

/// Goes on until `stop`. A replica for which something fails keeps what it has and says so; the others go on.
pub async fn run(estate: Arc<Estate>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let mut uptime = clock.uptime();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        let passed = clock.uptime().saturating_sub(uptime);
        uptime += passed;
        let replicas = estate.all();
        let each = replicas.len().max(1) as u64;
        let share = Share {
            scrub: Bytes((SCRUB_BYTES / each).max(SCRUB_BYTES_MIN)),
            sums: Bytes((SUMMED_BYTES / each).max(SUMMED_BYTES_MIN)),
        };
        for replica in replicas {
            let Ok(store) = replica.store() else { continue };
            let now = clock.wall();
            if let Err(error) =
                tokio::task::spawn_blocking(move || tend(&replica, &store, (now, passed), share)).await
            {
                tracing::error!(%error, "the upkeep of a replica died");
            }
        }
    }
}

/// What may be read for one replica in a round.
#[derive(Clone, Copy)]
struct Share {
    scrub: Bytes,
    sums: Bytes,
}

fn tend(replica: &Replica, store: &Store, (now, passed): (Timestamp, Duration), share: Share) {
    let assigned = replica.assigned();
    let machine = assigned.machine;
    let failed = |what: &str, error: &ReplicaError| tracing::error!(%machine, %error, "{what}");
    if let Err(error) = store.pass_time(now, passed) {
        failed("the time that this replica was kept could not be put on record: locks hold longer", &error);
    }
    // Before the fold: what it forgets is summed, or known to be not.
    if let Err(error) = store.tend_digests(share.sums) {
        failed("the sums of the newest state could not be kept: comparing reads more", &error);
    }
    let until = assigned.policy.oldest_promised(now);
    if let Err(error) = store.fold(until, assigned.policy.history_bytes_max) {
        failed("history could not be folded: it stays as it is and takes more space", &error);
    }
    if let Err(error) = store.tend_overlays() {
        failed("the log of a machine that was brought up could not be shortened", &error);
    }
    match store.scrub(share.scrub) {
        Ok(scrubbed) => {
            for finding in scrubbed.found {
                tracing::error!(%machine, "the scrub found damage: {finding}");
            }
        }
        Err(error) => failed("the scrub could not note where it is: it begins anew after a restart", &error),
    }
}
