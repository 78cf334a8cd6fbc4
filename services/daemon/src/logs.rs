//! Where a process writes what it has to say: JSON lines, one event a line, to standard error or a file.
//!
//! Secrets are never logged because they never reach a log call: tokens and keys have no `Debug`.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tracing_subscriber::EnvFilter;

/// A log that grew beyond this is put aside at the next start, in place of the one put aside before.
const LOG_BYTES_MAX: u64 = 8 << 20;

/// Sends this process's events to standard error. `CONTINUUM_LOG` chooses, as in
/// `info,continuum_wire=debug`; without it: `info`.
pub fn to_stderr() {
    let _ = tracing_subscriber::fmt().json().with_env_filter(filter()).with_writer(io::stderr).try_init();
}

/// Sends this process's events to a file.
pub fn to_file(path: &Path) -> io::Result<()> {
    let file = Arc::new(open(path)?);
    let _ = tracing_subscriber::fmt().json().with_env_filter(filter()).with_writer(file).try_init();
    Ok(())
}

/// Opens a log for appending; one that grew too large is put aside.
pub fn open(path: &Path) -> io::Result<File> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        std::fs::rename(path, path.with_extension("old.log"))?;
    }
    File::options().create(true).append(true).open(path)
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env("CONTINUUM_LOG").unwrap_or_else(|_| EnvFilter::new("info"))
}
