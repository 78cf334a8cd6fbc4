//! What ends a process: SIGTERM, SIGINT, or the end of whom it belongs to; and a deadline for ending.

use continuum_model::fault::{Fault, FaultClass};
use std::path::Path;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a service may take to end. What is not done by then is continued at its next start.
pub const STOP_DEADLINE: Duration = Duration::from_secs(8);

/// A token that is cancelled by SIGTERM or SIGINT, or when nobody holds a lock on `lives_with` any more.
pub fn stop_token(lives_with: Option<&Path>) -> Result<CancellationToken, Fault> {
    let stop = CancellationToken::new();
    let failed = |what: &str, error: std::io::Error| {
        Fault::new(FaultClass::Failed, "process.start", format!("{what}: {error}"))
            .affects("this process: it does not start")
            .spares("all others")
    };
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(|error| failed("signals cannot be received", error))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    if let Some(holder) = lives_with {
        let stop = stop.clone();
        continuum_fabric::process::when_released(holder, move || stop.cancel())
            .map_err(|error| failed(&format!("{}", holder.display()), error))?;
    }
    Ok(stop)
}

/// Runs a service to its end. Once `stop` is cancelled it has until the deadline.
pub async fn until_stopped(
    stop: &CancellationToken,
    service: impl Future<Output = Result<(), Fault>>,
) -> Result<(), Fault> {
    let late = async {
        stop.cancelled().await;
        tokio::time::sleep(STOP_DEADLINE).await;
    };
    tokio::select! {
        result = service => result,
        () = late => {
            tracing::warn!("not everything ended in time; it is continued at the next start");
            Ok(())
        }
    }
}
