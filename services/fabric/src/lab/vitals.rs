//! How a guest is, told on a Unix socket: one question, one answer, a JSON line each.
//!
//! ```text
//! ask     {"until":"now"}                                          how it is
//!         {"until":"settled","within_ms":M}                        once it is up, or can never be
//!         {"until":"past","sequence":N,"within_ms":M}              once it wrote something newer than N
//! answer  {"kind":…,"state":…,"sequence":…,…}                      then it hangs up
//! ```
//!
//! An empty question is `now`, so that `nc -U SOCKET </dev/null` answers. A question waits at the guest,
//! not by asking again and again.

use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where a guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Reaching its disks, reading them, recovering.
    #[default]
    Starting,
    /// Up and writing.
    Running,
    /// Up; a disk does not answer or fails, and it tries again.
    Waiting,
    /// Its disks were never formatted, and it may not do that.
    Unformatted,
    /// What it found on its disks cannot be; it writes nothing.
    Inconsistent,
    /// It cannot run, for the reason told.
    Failed,
}

impl State {
    /// Whether waiting will not change it.
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::Starting)
    }
}

/// How a guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// The kind of guest.
    pub kind: String,
    /// The machine's name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// Why, where there is something to say.
    pub reason: String,
    /// How often the machine was started on these disks.
    pub boots: u64,
    /// The newest transaction that was found at the start.
    pub recovered: u64,
    /// When that one had been made, in µs of UTC.
    pub recovered_time_us: i64,
    /// What was done to recover, in words.
    pub recovery: String,
    /// Whether everything found could be true. None: not known yet.
    pub consistent: Option<bool>,
    /// The newest transaction that is durable.
    pub sequence: u64,
    /// When it was made, in µs of UTC.
    pub sequence_time_us: i64,
    /// Requests that a disk answered with an error.
    pub disk_errors: u64,
    /// How often a disk went away.
    pub interruptions: u64,
    /// Milliseconds from the start of its process until it was up.
    pub up_after_ms: Option<u64>,
}

/// What to wait for before answering.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "until")]
pub enum Until {
    /// Nothing.
    #[default]
    Now,
    /// It is up, or never will be.
    Settled {
        /// How long at most.
        within_ms: u64,
    },
    /// It wrote something newer.
    Past {
        /// Newer than this.
        sequence: u64,
        /// How long at most.
        within_ms: u64,
    },
}

impl Until {
    fn holds(&self, vitals: &Vitals) -> bool {
        match self {
            Self::Now => true,
            Self::Settled { .. } => vitals.state.is_settled(),
            Self::Past { sequence, .. } => vitals.sequence > *sequence,
        }
    }
    fn within(&self) -> Duration {
        match self {
            Self::Now => Duration::ZERO,
            Self::Settled { within_ms } | Self::Past { within_ms, .. } => {
                Duration::from_millis((*within_ms).min(600_000))
            }
        }
    }
}

/// The guest's own view of how it is; whoever asks is told from here.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Inner>);

#[derive(Default)]
struct Inner {
    vitals: Mutex<Vitals>,
    changed: Condvar,
    asking: AtomicUsize,
}

/// More questions at once than this are turned away.
const ASKING_MAX: usize = 64;
const LINE_MAX: u64 = 4096;

impl Pulse {
    /// Changes how it is.
    pub fn update(&self, change: impl FnOnce(&mut Vitals)) {
        change(&mut self.lock());
        self.0.changed.notify_all();
    }

    /// How it is.
    pub fn now(&self) -> Vitals {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vitals> {
        self.0.vitals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, until: &Until) -> Vitals {
        let vitals = self.lock();
        let waited = self.0.changed.wait_timeout_while(vitals, until.within(), |vitals| !until.holds(vitals));
        waited.map_or_else(|poisoned| poisoned.into_inner().0.clone(), |(vitals, _)| vitals.clone())
    }

    /// Answers on `socket` from now on, in threads of its own, for as long as the process lives.
    pub fn answer_on(&self, socket: &Path) -> io::Result<()> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(socket)?;
        let pulse = self.clone();
        std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            for peer in listener.incoming().flatten() {
                if pulse.0.asking.fetch_add(1, Ordering::AcqRel) >= ASKING_MAX {
                    pulse.0.asking.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let own = pulse.clone();
                let answering = std::thread::Builder::new().name("answer".into()).spawn(move || {
                    // A peer that hangs up is no trouble of ours.
                    let _ = own.answer(&peer);
                    own.0.asking.fetch_sub(1, Ordering::AcqRel);
                });
                if answering.is_err() {
                    pulse.0.asking.fetch_sub(1, Ordering::AcqRel);
                }
            }
        })?;
        Ok(())
    }

    fn answer(&self, peer: &UnixStream) -> io::Result<()> {
        peer.set_read_timeout(Some(Duration::from_secs(2)))?;
        peer.set_write_timeout(Some(Duration::from_secs(2)))?;
        let mut line = String::new();
        BufReader::new(peer.take(LINE_MAX)).read_line(&mut line)?;
        let until = if line.trim().is_empty() { Until::Now } else { serde_json::from_str(&line)? };
        let mut answer = serde_json::to_vec(&self.wait(&until))?;
        answer.push(b'\n');
        (&*peer).write_all(&answer)
    }
}

/// Asks a guest. `limit` bounds the answer beyond what the question itself allows.
pub fn ask(socket: &Path, until: &Until, limit: Duration) -> io::Result<Vitals> {
    let peer = UnixStream::connect(socket)?;
    let deadline = Instant::now() + until.within() + limit;
    peer.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    let mut question = serde_json::to_vec(until)?;
    question.push(b'\n');
    (&peer).write_all(&question)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    peer.set_read_timeout(Some(left))?;
    let mut answer = String::new();
    BufReader::new((&peer).take(64 << 10)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up without an answer"));
    }
    Ok(serde_json::from_str(&answer)?)
}
