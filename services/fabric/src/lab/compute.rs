//! Starting, asking and ending guests of the lab.
//!
//! ```text
//! <dir>/<id>/          a guest's folder, see `guest`; there from before its start until it is stopped
//! <run dir>/<id>.hb    where it answers; a path that fits into a socket's address
//! ```

use super::guest::Orders;
use super::vitals::{self, State, Until, Vitals};
use crate::compute::{Compute, ComputeError, GuestDisk, GuestRecord, GuestSpec, Probe};
use crate::process::{ProcessRecord, replace_file};
use continuum_model::untrusted::shown;
use std::fs::{DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const KINDS: [&str; 2] = ["process", "none"];

/// The environment's name for the file of [`LabCompute::living_with`]: whoever runs a lab sets it, and the
/// services between hand it on.
pub const LIVES_WITH: &str = "CONTINUUM_LIVES_WITH";

/// Runs guests of the lab on this machine.
pub struct LabCompute {
    program: PathBuf,
    dir: PathBuf,
    run_dir: PathBuf,
    lives_with: Option<PathBuf>,
}

impl LabCompute {
    /// `program` becomes a guest when started with `role guest --dir FOLDER`. Guests' folders are made in
    /// `dir`, their sockets in `run_dir`, whose path must be short. Where the environment names a file in
    /// [`LIVES_WITH`], guests live with it.
    pub fn new(program: impl Into<PathBuf>, dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), dir: dir.into(), run_dir: run_dir.into(), lives_with: std::env::var_os(LIVES_WITH).map(PathBuf::from) }
    }

    /// Guests end when nobody holds a lock on this file any more.
    #[must_use]
    pub fn living_with(mut self, holder: Option<PathBuf>) -> Self {
        self.lives_with = holder;
        self
    }

    fn folder(&self, id: &str) -> Result<PathBuf, ComputeError> {
        let plain = (1..=64).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if plain { Ok(self.dir.join(id)) } else { Err(ComputeError::BadId { id: shown(id) }) }
    }

    /// Most of an id is a time, and the path must stay short: its end tells guests apart.
    fn socket(&self, id: &str) -> PathBuf {
        self.run_dir.join(format!("{}.hb", &id[id.len().saturating_sub(16)..]))
    }

    fn spawn(&self, id: &str, dir: &Path) -> Result<ProcessRecord, ComputeError> {
        let file = |what, path: &Path| {
            let (id, path) = (id.to_owned(), path.to_owned());
            move |cause| ComputeError::File { id, what, path, cause }
        };
        let log_path = dir.join("guest.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(file("could not write", &log_path))?;
        let mut child = Command::new(&self.program)
            .args(["role", "guest", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(file("could not start", &self.program))?;
        // It says `started` when it is on record; what does not get there hangs up by ending.
        let mut line = String::new();
        let said = child.stdout.take().map(|out| BufReader::new(out.take(256)).read_line(&mut line));
        if line != "started\n" {
            let _ = said;
            let _ = child.kill();
            let ended = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            let reason = shown(&last_line(&log_path).unwrap_or(ended));
            return Err(ComputeError::Start { id: id.to_owned(), reason, log: log_path });
        }
        let record = on_record(dir).map_err(file("could not read", dir))?;
        // Somebody must take note of its end, or its remains stay in the list of processes.
        let reaping = std::thread::Builder::new().name("reaper".into()).spawn(move || child.wait());
        if let Err(error) = reaping {
            tracing::warn!(%error, "the end of a guest will go unnoticed until this process ends");
        }
        record.ok_or_else(|| ComputeError::Start {
            id: id.to_owned(),
            reason: "it is not on record".into(),
            log: log_path,
        })
    }
}

impl Compute for LabCompute {
    fn kinds(&self) -> Vec<String> {
        KINDS.map(str::to_owned).to_vec()
    }

    fn start(&self, spec: &GuestSpec) -> Result<GuestRecord, ComputeError> {
        if !KINDS.contains(&spec.kind.as_str()) {
            return Err(ComputeError::UnknownKind { kind: shown(&spec.kind), known: KINDS.join(", ") });
        }
        let dir = self.folder(&spec.id)?;
        let file = |what, path: &Path| {
            let (id, path) = (spec.id.clone(), path.to_owned());
            move |cause| ComputeError::File { id, what, path, cause }
        };
        if let Some(found) = self.find(&spec.id)?
            && self.is_running(&found)
        {
            return Ok(found);
        }
        for folder in [&self.dir, &self.run_dir, &dir] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(file("could not make", folder))?;
        }
        let socket = self.socket(&spec.id);
        let orders =
            Orders { spec: spec.clone(), socket: socket.clone(), lives_with: self.lives_with.clone() };
        let path = dir.join("spec.json");
        let text = serde_json::to_vec_pretty(&orders)
            .map_err(|error| file("could not write", &path)(error.into()))?;
        replace_file(&path, &text).map_err(file("could not write", &path))?;
        let process = if spec.kind == "none" { None } else { Some(self.spawn(&spec.id, &dir)?) };
        let (id, kind, disks) = (spec.id.clone(), spec.kind.clone(), spec.disks.clone());
        Ok(GuestRecord { id, kind, process, socket, dir, disks })
    }

    fn stop(&self, guest: &GuestRecord, grace: Duration) -> Result<(), ComputeError> {
        // The folder's word counts: it may have been started again since the record was made.
        let dir = self.folder(&guest.id)?;
        let known = self.find(&guest.id)?;
        for process in
            known.as_ref().and_then(|known| known.process.as_ref()).into_iter().chain(&guest.process)
        {
            let stuck =
                |reason: String| ComputeError::Stop { id: guest.id.clone(), pid: process.pid, reason };
            if !process.end(grace).map_err(|error| stuck(error.to_string()))? {
                return Err(stuck("it does not end when killed: it waits for a device".into()));
            }
        }
        for (path, result) in
            [(&guest.socket, std::fs::remove_file(&guest.socket)), (&dir, std::fs::remove_dir_all(&dir))]
        {
            match result {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(ComputeError::File {
                        id: guest.id.clone(),
                        what: "could not remove",
                        path: path.clone(),
                        cause,
                    });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn probe(&self, guest: &GuestRecord, timeout: Duration) -> Vec<Probe> {
        if guest.kind == "none" { probe_disks(&guest.disks, timeout) } else { probe_guest(guest, timeout) }
    }

    fn is_running(&self, guest: &GuestRecord) -> bool {
        guest.kind == "none" || guest.process.as_ref().is_some_and(ProcessRecord::runs)
    }

    fn find(&self, id: &str) -> Result<Option<GuestRecord>, ComputeError> {
        let dir = self.folder(id)?;
        let path = dir.join("spec.json");
        let file = |cause| ComputeError::File {
            id: id.to_owned(),
            what: "could not read",
            path: path.clone(),
            cause,
        };
        let orders: Orders = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| file(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file(error)),
        };
        let process = on_record(&dir).map_err(file)?;
        let (kind, disks) = (orders.spec.kind, orders.spec.disks);
        Ok(Some(GuestRecord { id: id.to_owned(), kind, process, socket: orders.socket, dir, disks }))
    }
}

fn on_record(dir: &Path) -> io::Result<Option<ProcessRecord>> {
    match std::fs::read(dir.join("process.json")) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn last_line(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let end = file.seek(io::SeekFrom::End(0)).ok()?;
    file.seek(io::SeekFrom::Start(end.saturating_sub(2048))).ok()?;
    let mut tail = Vec::new();
    file.take(2048).read_to_end(&mut tail).ok()?;
    String::from_utf8_lossy(&tail).lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
}

fn probe(name: &str, passed: bool, detail: impl Into<String>) -> Probe {
    Probe { name: name.to_owned(), passed, detail: detail.into() }
}

/// Asks a guest to be up, to be consistent, and to write.
fn probe_guest(guest: &GuestRecord, timeout: Duration) -> Vec<Probe> {
    let deadline = Instant::now() + timeout;
    let left =
        || u64::try_from(deadline.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(u64::MAX);
    let ask = |until: Until| vitals::ask(&guest.socket, &until, Duration::from_secs(2));
    let data = if guest.kind == "process" { "ledger" } else { "filesystem" };
    let up = match ask(Until::Settled { within_ms: left() }) {
        Ok(vitals) => vitals,
        Err(error) => {
            let lives = if guest.process.as_ref().is_some_and(ProcessRecord::runs) {
                "its process lives"
            } else {
                "its process is gone"
            };
            return vec![
                probe("heartbeat", false, format!("no answer ({error}); {lives}")),
                probe(data, false, "not reached"),
                probe("writes", false, "not reached"),
            ];
        }
    };
    let mut probes = vec![probe("heartbeat", up.state.is_settled(), heartbeat(&up))];
    if !matches!(up.state, State::Running | State::Waiting) {
        let why = if up.reason.is_empty() { "not up in time".into() } else { up.reason };
        probes.push(probe(data, false, why));
        probes.push(probe("writes", false, "not reached"));
        return probes;
    }
    probes.push(probe(data, up.consistent == Some(true), up.recovery.clone()));
    let written = ask(Until::Past { sequence: up.sequence, within_ms: left() });
    probes.push(match written {
        Ok(now) if now.sequence > up.sequence => {
            probe("writes", true, format!("from transaction {} to {}", up.sequence, now.sequence))
        }
        Ok(now) => probe("writes", false, format!("none after transaction {} {}", now.sequence, now.reason)),
        Err(error) => probe("writes", false, format!("no answer: {error}")),
    });
    probes
}

fn heartbeat(vitals: &Vitals) -> String {
    match vitals.up_after_ms {
        Some(millis) => format!("up after {}.{:03} s, boot {}", millis / 1000, millis % 1000, vitals.boots),
        None if vitals.state.is_settled() => {
            format!("answers, but is not up: {:?}", vitals.state).to_lowercase()
        }
        None => format!("still starting {}", vitals.reason),
    }
}

/// Where nothing runs, a machine is up when its disks can be read from end to end.
fn probe_disks(disks: &[GuestDisk], timeout: Duration) -> Vec<Probe> {
    let share = timeout / u32::try_from(disks.len().max(1)).unwrap_or(1);
    disks
        .iter()
        .map(|disk| {
            let name = format!("disk {}", disk.name);
            match super::guest::drive::look_at(&disk.uri, share) {
                Ok(size) => probe(&name, true, format!("{size} bytes, first and last block read")),
                Err(error) => probe(&name, false, error.to_string()),
            }
        })
        .collect()
}
