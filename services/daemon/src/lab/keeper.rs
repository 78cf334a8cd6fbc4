//! One process of a lab, kept alive: started, watched, started again after a crash, ended when told.

use super::estate::trouble;
use crate::role::Up;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use super::control::ProcessStatus;

/// The first wait before a process that died is started again; doubled while it does not live long.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// A process that lived this long died of something new.
const LIVED: Duration = Duration::from_secs(5);
/// What a process may take to end when told, before it is killed.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// All processes of a lab, for whoever asks.
#[derive(Clone, Default)]
pub(super) struct Table(Arc<Mutex<BTreeMap<(String, String), ProcessStatus>>>);

impl Table {
    pub(super) fn update(&self, role: &str, name: &str, change: impl FnOnce(&mut ProcessStatus)) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let status = table.entry((role.to_owned(), name.to_owned())).or_insert_with(|| ProcessStatus {
            role: role.to_owned(),
            name: name.to_owned(),
            ..ProcessStatus::default()
        });
        change(status);
    }
    pub(super) fn list(&self) -> Vec<ProcessStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// What a keeper needs to know of its process.
pub(super) struct Kept {
    pub(super) role: &'static str,
    pub(super) name: String,
    pub(super) program: PathBuf,
    /// The folder with its orders.
    pub(super) dir: PathBuf,
    pub(super) log: PathBuf,
    pub(super) table: Table,
    /// It is to be ended.
    pub(super) stop: CancellationToken,
}

impl Kept {
    /// Keeps it alive until it is to end. `prepare` writes its orders before each start; `up` is told when
    /// it is up; `again` ends it for a new start with new orders.
    pub(super) async fn keep<P, A>(
        self,
        mut prepare: impl FnMut() -> P,
        mut up: impl FnMut(Up),
        mut again: impl FnMut() -> A,
    ) where
        P: Future<Output = Result<(), Fault>>,
        A: Future<Output = ()>,
    {
        let mut pause = SHORTEST;
        while !self.stop.is_cancelled() {
            let started = Instant::now();
            let prepared = tokio::select! {
                () = self.stop.cancelled() => break,
                prepared = prepare() => prepared,
            };
            let ended = match prepared {
                Ok(()) => self.live(&mut up, again()).await,
                Err(fault) => Err(fault),
            };
            let reason = match ended {
                Ok(reason) => reason,
                Err(fault) => fault.message,
            };
            if self.stop.is_cancelled() {
                break;
            }
            if started.elapsed() > LIVED {
                pause = SHORTEST;
            }
            tracing::info!(role = self.role, name = shown(&self.name), ?pause, "starting again: {reason}");
            self.table.update(self.role, &self.name, |status| {
                (status.pid, status.up, status.reason) = (None, false, reason);
            });
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST);
        }
        self.table.update(self.role, &self.name, |status| {
            (status.pid, status.up, status.reason) = (None, false, "ended".into());
        });
    }

    /// One life. Returns why it ended.
    async fn live(&self, up: &mut impl FnMut(Up), again: impl Future<Output = ()>) -> Result<String, Fault> {
        let log = crate::logs::open(&self.log).map_err(|error| trouble(&self.log, error))?;
        let mut child = tokio::process::Command::new(&self.program)
            .args(["role", self.role, "--dir"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|error| trouble(&self.program, error))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.table.update(self.role, &self.name, |status| {
            (status.pid, status.up) = (pid, false);
            status.starts += 1;
        });
        let out = child.stdout.take();
        let first_line = async {
            let mut line = String::new();
            if let Some(out) = out {
                // It says one line; more is not ours to wait for.
                let _ = BufReader::new(out.take(4096)).read_line(&mut line).await;
            }
            serde_json::from_str::<Up>(&line).ok()
        };
        tokio::pin!(first_line, again);
        let mut waiting = true;
        loop {
            tokio::select! {
                said = &mut first_line, if waiting => {
                    waiting = false;
                    if let Some(said) = said {
                        self.table.update(self.role, &self.name, |status| {
                            status.up = true;
                            status.reason.clear();
                        });
                        up(said);
                    }
                }
                ended = child.wait() => {
                    return Ok(match ended {
                        Ok(status) => format!("it ended: {status}; {}", last_words(&self.log)),
                        Err(error) => format!("it cannot be watched: {error}"),
                    });
                }
                () = &mut again => {
                    self.end(&mut child).await;
                    return Ok("its orders changed".into());
                }
                () = self.stop.cancelled() => {
                    self.end(&mut child).await;
                    return Ok("it was told to end".into());
                }
            }
        }
    }

    async fn end(&self, child: &mut tokio::process::Child) {
        if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
            tracing::warn!(
                role = self.role,
                name = shown(&self.name),
                "it did not end in time and is killed"
            );
            let _ = child.kill().await;
        }
    }
}

/// The last line of a log, for people.
fn last_words(log: &Path) -> String {
    let Ok(text) = std::fs::read(log) else { return String::new() };
    let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(2048)..]).into_owned();
    let line = tail.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let message = serde_json::from_str::<serde_json::Value>(line)
        .ok()
        .and_then(|event| event["fields"]["message"].as_str().map(str::to_owned));
    shown(message.as_deref().unwrap_or(line)).chars().take(300).collect()
}

/// A fault for what the lab itself could not do.
pub(super) fn failed(what: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Failed, "lab.failed", what).affects("this lab").spares("everything outside it")
}
