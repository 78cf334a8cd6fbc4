//! Starting, asking and stopping lab guests.

use super::guest::Heartbeat;
use crate::compute::{Compute, GuestRecord, GuestSpec, Probe, ProcessRecord};
use crate::nbd::{Client, Uri};
use continuum_model::untrusted::shown;
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Guests of the lab: `process` (the ledger), `qemu` (a Linux with a ledger) and `none` (only disks).
pub struct LabCompute {
    program: PathBuf,
    machine: Option<PathBuf>,
}

impl LabCompute {
    /// `program` becomes a guest when it is started with `role guest`; `machine` holds kernel and settings of
    /// QEMU guests, where there are any.
    pub const fn new(program: PathBuf, machine: Option<PathBuf>) -> Self {
        Self { program, machine }
    }
}

impl Compute for LabCompute {
    fn start(&self, spec: &GuestSpec) -> io::Result<GuestRecord> {
        if spec.kind == "none" {
            return Ok(GuestRecord {
                kind: spec.kind.clone(),
                process: None,
                heartbeat: None,
                disks: spec.disks.clone(),
            });
        }
        let machine = match (spec.kind.as_str(), &self.machine) {
            ("process", _) => None,
            ("qemu", Some(machine)) if machine.join("initrd.img").exists() => Some(machine),
            ("qemu", _) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "kernel and initramfs for QEMU guests are not there; start the lab with `--guests qemu`, or add a \
                     machine with `--guest qemu`, and they are made",
                ));
            }
            (other, _) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("this site runs no guests of the kind '{}'", shown(other)),
                ));
            }
        };
        std::fs::create_dir_all(&spec.dir)?;
        let heartbeat = spec.dir.join(format!("{}.hb", spec.handle));
        let log = std::fs::File::create(spec.dir.join(format!("{}.log", spec.handle)))?;
        let mut command = Command::new(&self.program);
        command.args(["role", "guest", "--heartbeat"]).arg(&heartbeat);
        for disk in &spec.disks {
            command.args(["--disk", disk]);
        }
        if !spec.replica {
            command.arg("--format");
        }
        if let Some(machine) = machine {
            command.arg("--machine").arg(machine);
        }
        // A process group of its own: it outlives the one who started it.
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        let process = ProcessRecord::of(child.id() as i32);
        // Reaped by a thread, so that it never stays as a zombie.
        std::thread::Builder::new().name("reaper".into()).spawn(move || {
            let mut child = child;
            let _ = child.wait();
        })?;
        Ok(GuestRecord {
            kind: spec.kind.clone(),
            process,
            heartbeat: Some(heartbeat),
            disks: spec.disks.clone(),
        })
    }

    fn is_running(&self, guest: &GuestRecord) -> bool {
        guest.process.is_none_or(|process| process.is_alive())
    }

    fn probe(&self, guest: &GuestRecord, patience: Duration) -> Vec<Probe> {
        let Some(socket) = &guest.heartbeat else { return vec![probe_disks(&guest.disks)] };
        let deadline = Instant::now() + patience;
        let mut first = None;
        let mut reason = "no answer".to_owned();
        while Instant::now() < deadline {
            match heartbeat(socket) {
                Ok(beat) if beat.state == "running" => {
                    if first.as_ref().is_some_and(|first: &Heartbeat| beat.sequence > first.sequence) {
                        return passed(&beat);
                    }
                    first.get_or_insert(beat);
                }
                Ok(beat) if beat.state == "failed" => {
                    let probe = |name: &str, passed, detail: &str| Probe {
                        name: name.into(),
                        passed,
                        detail: detail.into(),
                    };
                    return vec![probe("heartbeat", true, "it answers"), probe("ledger", false, &beat.error)];
                }
                Ok(_) => reason = "it is still starting".into(),
                Err(error) => reason = error.to_string(),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        match first {
            Some(beat) => {
                let mut probes = passed(&beat);
                if let Some(writes) = probes.last_mut() {
                    (writes.passed, writes.detail) = (false, "it does not write on".into());
                }
                probes
            }
            None => vec![Probe { name: "heartbeat".into(), passed: false, detail: reason }],
        }
    }

    fn stop(&self, guest: &GuestRecord) -> io::Result<()> {
        if let Some(process) = guest.process
            && process.is_alive()
            && let Some(pid) = rustix::process::Pid::from_raw(process.pid)
        {
            // The ledger is crash-safe: there is nothing to ask politely for.
            match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
            let deadline = Instant::now() + Duration::from_secs(5);
            while process.is_alive() {
                if Instant::now() > deadline {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not end"));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(socket) = &guest.heartbeat {
            for leftover in [socket.clone(), socket.with_extension("log")] {
                match std::fs::remove_file(leftover) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Asks a guest how it is.
pub fn heartbeat(socket: &Path) -> io::Result<Heartbeat> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut lines = BufReader::new(io::Read::take(stream, 16 << 10));
    // A machine tells all the time: the first line that is heard may be the end of one.
    let mut outcome = Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    for _ in 0..3 {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            break;
        }
        outcome =
            serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn passed(beat: &Heartbeat) -> Vec<Probe> {
    let probe = |name: &str, detail: String| Probe { name: name.into(), passed: true, detail };
    let mut probes = vec![probe("heartbeat", "it answers".into())];
    if !beat.filesystem.is_empty() {
        probes.push(probe("file system", beat.filesystem.clone()));
    }
    probes.extend([
        probe(
            "ledger",
            format!(
                "recovered to transfer {}, {} replayed, every record checked",
                beat.recovered, beat.replayed
            ),
        ),
        probe("writes", format!("it goes on: transfer {}", beat.sequence)),
    ]);
    probes
}

fn probe_disks(disks: &[String]) -> Probe {
    let read = |disk: &String| {
        let mut client = Client::connect(&Uri::parse(disk)?, Duration::from_secs(5))?;
        client.read(0, &mut [0; 512])
    };
    let outcome = disks.iter().try_for_each(read);
    Probe {
        name: "disks".into(),
        passed: outcome.is_ok(),
        detail: outcome
            .map_or_else(|error| error.to_string(), |()| format!("{} served and readable", disks.len())),
    }
}
