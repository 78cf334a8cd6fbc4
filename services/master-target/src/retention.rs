//! History is folded into the base by policy, a bounded slice at a time, while everything else goes on.

use crate::estate::Estate;
use continuum_model::world::Clock;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between rounds. A round does at most one slice for each replica.
const ROUND: Duration = Duration::from_secs(5);

/// Folds until `stop`. A replica whose fold fails keeps its history and says so; the others go on.
pub async fn run(estate: Arc<Estate>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        for replica in estate.all() {
            let Ok(store) = replica.store() else { continue };
            let policy = replica.assigned().policy;
            let until = policy.oldest_promised(clock.wall());
            let folded = tokio::task::spawn_blocking(move || store.fold(until, policy.history_bytes_max)).await;
            match folded {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!(
                    machine = %replica.assigned().machine, %error,
                    "history could not be folded: it stays as it is and takes more space"
                ),
                Err(error) => tracing::error!(%error, "the fold died"),
            }
        }
    }
}
