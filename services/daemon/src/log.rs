//! Where words go: one line an event, to standard error; JSON where a machine reads it.

use tracing_subscriber::EnvFilter;

/// Starts logging for a service. `CONTINUUM_LOG` chooses what (default: `info`).
pub fn start(json: bool) {
    let filter = EnvFilter::try_from_env("CONTINUUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logger =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let _ = if json { logger.json().try_init() } else { logger.try_init() };
}
