//! How a running lab is asked: JSON lines on a Unix socket that only its owner can open.
//!
//! ```text
//! {"do":"status"}   {"do":"stop"}   {"do":"add","machine":{…}}   ─►   {"done":…} or {"fault":{…},"class":…}
//! ```

use super::estate::Estate;
use super::keeper::failed;
use super::supervisor::Lab;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// A lab, as `lab status` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Its folder.
    pub dir: PathBuf,
    /// Whether its supervisor lives.
    pub running: bool,
    /// The supervisor's process.
    pub supervisor: Option<i32>,
    /// Its processes.
    pub processes: Vec<ProcessStatus>,
}

/// One process of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// `vault`, `process-server`, `master-target`, `agent` or `guest`.
    pub role: String,
    /// Its name; of agents and guests the machine's. Raw.
    pub name: String,
    /// Its number, while it lives.
    pub pid: Option<i32>,
    /// Whether it said that it is up.
    pub up: bool,
    /// How often it was started since the lab was.
    pub starts: u32,
    /// Why it does not live.
    pub reason: String,
}

/// A machine to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMachine {
    /// Its name.
    pub name: String,
    /// Bytes of its disks.
    pub disks: Vec<u64>,
    /// `process`, `qemu` or `none`.
    pub guest: String,
    /// Protect it at once.
    pub protect: bool,
}

/// A machine that was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Its name.
    pub name: String,
    /// Its disks: name, bytes, NBD address.
    pub disks: Vec<(String, u64, String)>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Request {
    Status,
    Stop,
    Add { machine: AddMachine },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(serde_json::Value),
    Fault { fault: Fault, class: String },
}

const LINE_MAX: u64 = 64 << 10;
/// How long an answer may take: the longest is a machine that is added.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn socket(estate: &Estate) -> PathBuf {
    estate.run_dir.join("control.sock")
}

/// Answers until the lab ends.
pub(super) async fn serve(lab: Arc<Lab>, listener: UnixListener) {
    let mut peers = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = lab.ended.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((peer, _)) if peers.len() < 64 => {
                    peers.spawn(answer(lab.clone(), peer));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the lab's socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = peers.join_next() => {}
        }
    }
}

async fn answer(lab: Arc<Lab>, peer: UnixStream) {
    let (read, mut write) = peer.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read.take(LINE_MAX));
    let reading = tokio::time::timeout(Duration::from_secs(5), read.read_line(&mut line));
    if !matches!(reading.await, Ok(Ok(_))) {
        return;
    }
    let result = match serde_json::from_str(&line) {
        Ok(Request::Status) => as_json(&lab.status()),
        Ok(Request::Stop) => {
            lab.stop.cancel();
            as_json(&())
        }
        Ok(Request::Add { machine }) => match lab.add(machine).await {
            Ok(added) => as_json(&added),
            Err(fault) => Err(fault),
        },
        Err(error) => Err(Fault::new(FaultClass::Usage, "lab.request", format!("not understood: {error}"))),
    };
    let answer = match result {
        Ok(value) => Answer::Done(value),
        Err(fault) => Answer::Fault { class: fault.class.name().to_owned(), fault },
    };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\n');
    let _ = tokio::time::timeout(Duration::from_secs(5), write.write_all(&text)).await;
}

fn as_json(value: &impl Serialize) -> Result<serde_json::Value, Fault> {
    serde_json::to_value(value).map_err(|error| failed(error.to_string()))
}

async fn ask<T: DeserializeOwned>(estate: &Estate, request: &Request) -> Result<T, Fault> {
    let asking = async {
        let mut peer = UnixStream::connect(socket(estate)).await?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        peer.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(peer.take(16 << 20)).read_line(&mut line).await?;
        Ok::<_, io::Error>(line)
    };
    let line = tokio::time::timeout(PATIENCE, asking)
        .await
        .map_err(|_| failed("the lab does not answer"))?
        .map_err(|error| failed(format!("the lab does not answer: {error}")))?;
    let answer: Answer = serde_json::from_str(&line)
        .map_err(|error| failed(format!("the lab answered something else: {error}")))?;
    match answer {
        Answer::Done(value) => serde_json::from_value(value).map_err(|error| failed(error.to_string())),
        Answer::Fault { fault, class } => Err(Fault { class: FaultClass::named(&class), ..fault }),
    }
}

fn absent(dir: &Path) -> Fault {
    let dir = shown(&dir.display().to_string());
    Fault::new(FaultClass::NotFound, "lab.absent", format!("there is no lab in {dir}"))
        .spares("nothing was changed")
        .remedy(format!("start one with `continuum lab --dir {dir}`"))
}

fn not_running(dir: &Path) -> Fault {
    let dir = shown(&dir.display().to_string());
    Fault::new(FaultClass::NotConnected, "lab.stopped", format!("the lab in {dir} does not run"))
        .spares("what is in it")
        .remedy(format!("start it with `continuum lab --dir {dir}`"))
}

/// Whether the supervisor of the lab in `dir` lives.
pub fn is_running(dir: &Path) -> bool {
    let Ok(file) = std::fs::File::open(dir.join("lab.lock")) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
}

/// How the lab in `dir` is. Errors: `NotFound` where there is none.
pub async fn status(dir: &Path) -> Result<Status, Fault> {
    let estate = Estate::read(dir)?.ok_or_else(|| absent(dir))?;
    if !is_running(dir) {
        return Ok(Status { dir: dir.to_owned(), ..Status::default() });
    }
    ask(&estate, &Request::Status).await
}

/// Ends all processes of the lab in `dir`; returns when they are gone. One that does not run is fine.
pub async fn stop(dir: &Path) -> Result<(), Fault> {
    let estate = Estate::read(dir)?.ok_or_else(|| absent(dir))?;
    if !is_running(dir) {
        return Ok(());
    }
    ask::<()>(&estate, &Request::Stop).await?;
    let path = dir.join("lab.lock");
    let waiting = tokio::task::spawn_blocking(move || {
        let file = std::fs::File::open(path)?;
        flock(&file, FlockOperation::LockShared)?;
        Ok::<_, io::Error>(())
    });
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(failed(format!("the end of the lab cannot be watched: {error}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("the lab did not end within a minute")
            .remedy("look at its processes: `continuum lab status`")),
    }
}

/// Stops the lab in `dir` and removes what it made; what else is in the folder stays.
pub async fn reset(dir: &Path) -> Result<(), Fault> {
    stop(dir).await?;
    let estate = Estate::read(dir)?.ok_or_else(|| absent(dir))?;
    estate.remove(dir)
}

/// Adds a machine to the running lab in `dir`; returns when its disks are served and the vault knows it.
pub async fn add(dir: &Path, machine: AddMachine) -> Result<Added, Fault> {
    let estate = Estate::read(dir)?.ok_or_else(|| absent(dir))?;
    if !is_running(dir) {
        return Err(not_running(dir));
    }
    ask(&estate, &Request::Add { machine }).await
}
