//! Processes of our own, known by more than their number.
//!
//! A process number is given again after its process ended; number and start time together are unique
//! until the machine restarts, and the boot's id makes them unique for good. Whoever is about to signal a
//! process opens it first, compares, and signals what was opened.

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// One process, now or in the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since the machine did.
    pub started: u64,
    /// Which run of the machine.
    pub boot: String,
}

impl ProcessRecord {
    /// The process that calls this.
    pub fn own() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())?
            .ok_or_else(|| io::Error::other("/proc does not know this process; mount it"))
    }

    /// A process that runs now; `None` where there is none, or only its remains.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // It ended between the opening and the reading.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // The second field is the program's name in parentheses and may hold anything.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
        let (Some(state), Some(started)) =
            (fields.first(), fields.get(19).and_then(|text| text.parse().ok()))
        else {
            return Err(io::Error::other(format!("/proc/{pid}/stat has an unknown form")));
        };
        if matches!(*state, "Z" | "X") {
            return Ok(None);
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Some(Self { pid, started, boot: boot.trim().to_owned() }))
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        Self::of(self.pid).ok().flatten().as_ref() == Some(self)
    }

    /// Sends a signal. `Ok(false)`: it has ended, and nothing was signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 0) else { return Ok(false) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        // After the opening: what the handle holds cannot be recycled any more.
        if !self.runs() {
            return Ok(false);
        }
        match pidfd_send_signal(&handle, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended, at most `limit`. Returns whether it has.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.pid > 0) else { return Ok(true) };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let deadline = Instant::now() + limit;
        while self.runs() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut polled = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            match rustix::event::poll(&mut polled, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Ends it: asked first, killed after `grace`. Returns whether it is gone.
    pub fn end(&self, grace: Duration) -> io::Result<bool> {
        if !self.signal(Signal::TERM)? || self.wait(grace)? {
            return Ok(true);
        }
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10))
    }
}

/// Calls `act` when whoever holds an exclusive lock on `holder` gives it up. The kernel does that for a
/// killed process, too: this is how a process does not outlive the one it belongs to.
pub fn when_released(holder: &Path, act: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let file = std::fs::File::open(holder)?;
    std::thread::Builder::new().name("outlive not".into()).spawn(move || {
        while let Err(rustix::io::Errno::INTR) = flock(&file, FlockOperation::LockShared) {}
        // Not kept from whoever comes next.
        drop(file);
        act();
    })?;
    Ok(())
}

/// Replaces a small file so that it is either the old or the new one after any crash.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_ended_and_its_recycled_number_is_spared() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let record = ProcessRecord::of(child.id() as i32).unwrap().unwrap();
        assert!(record.runs());
        // As if the number had been given to another process since.
        for other in [
            ProcessRecord { started: record.started + 1, ..record.clone() },
            ProcessRecord { boot: "another".into(), ..record.clone() },
        ] {
            assert!(!other.runs());
            assert!(!other.signal(Signal::KILL).unwrap());
            assert!(other.end(Duration::ZERO).unwrap());
        }
        assert!(record.runs(), "the process that has the number now lives on");
        assert!(!record.wait(Duration::from_millis(20)).unwrap());
        assert!(record.end(Duration::from_secs(5)).unwrap());
        assert!(!record.runs(), "what is left is a zombie, and that does not run");
        child.wait().unwrap();
        assert!(!record.signal(Signal::KILL).unwrap());
    }
}
