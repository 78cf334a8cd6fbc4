//! Freezing file systems for an instant: what is on their disks then is whole, and nothing changes until the thaw.
//!
//! ```text
//! agent                               watchdog, a process of its own
//!   start it with the mount points ──►  opens them, locks its memory, says `ready`
//!   sync (nobody waits yet)
//!   n (about to freeze the n-th) ────►  remembers it; its time runs from the first
//!   FIFREEZE
//!   … what the freeze was for …
//!   FITHAW, in reverse
//!   end of the pipe ─────────────────►  thaws what it remembers, ends
//!        or the agent is killed: the same end of the pipe
//!        or the limit is over: thaws, says so by how it ends
//! ```
//!
//! A process that writes to a frozen file system waits where no signal reaches it, and the freeze outlives whoever made
//! it. So it is ended by a process that writes nowhere, needs no memory that it does not have, and sees the agent's
//! death as the end of a pipe. The limit holds whatever becomes of the agent.
//!
//! Refused, each with the reason: a file system on which the agent keeps its own state or its log (it would wait for
//! itself), one that somebody else froze (it is not ours to thaw), one that cannot be frozen.
//!
//! Lives here: freezing, thawing, the watchdog. Lives elsewhere: which file systems are on which disks ([`mounts`]);
//! what is done meanwhile.

pub mod mounts;

use crate::kernel;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// The most file systems that are frozen together.
const MOUNTS_MAX: usize = 64;
/// Added to the number of a mount point in a message: it was not frozen after all.
const NOT_FROZEN: u8 = 128;
/// How the watchdog ends when it thawed because its time was over.
const OVERDUE: i32 = 3;

/// The program that thaws: ours, started again so that [`watch`] runs.
#[derive(Debug, Clone)]
pub struct Watchdog {
    /// The program.
    pub program: PathBuf,
    /// What comes before the limit and the mount points.
    pub arguments: Vec<OsString>,
}

impl Watchdog {
    /// The first argument by which our programs become the watchdog.
    pub const VERB: &str = "thaw-watchdog";

    /// The running program.
    pub fn ourselves() -> io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, arguments: vec![Self::VERB.into()] })
    }
}

/// Why file systems were not frozen, or not to the end. What was frozen is thawed.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// The agent itself would wait.
    #[error(
        "{mount} holds {what}: frozen, the agent would wait for itself; keep that on another file system",
        mount = mount.display()
    )]
    Own {
        /// Which.
        mount: PathBuf,
        /// What of the agent's is there.
        what: String,
    },
    /// Somebody else did.
    #[error("{mount} is frozen by somebody else (or was left so): `fsfreeze --unfreeze {mount}` ends that", mount = mount.display())]
    Frozen {
        /// Which.
        mount: PathBuf,
    },
    /// The file system does not do that, or failed to.
    #[error("{mount} could not be frozen", mount = mount.display())]
    Failed {
        /// Which.
        mount: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No watchdog, no freeze.
    #[error("nothing was frozen: the watchdog that would thaw did not start")]
    Watchdog(#[source] io::Error),
    /// The limit was over first.
    #[error("the freeze did not last: it was ended after {limit:?}, its limit")]
    Overdue {
        /// The limit.
        limit: Duration,
    },
    /// It could not be thawed by us.
    #[error("{mount} could not be thawed by the agent; its watchdog tries as well", mount = mount.display())]
    Thaw {
        /// Which.
        mount: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// File systems that are frozen. Thawed when dropped.
pub struct Frozen {
    mounts: Vec<(PathBuf, OwnedFd)>,
    watching: Watching,
    since: Instant,
    limit: Duration,
}

/// What a freeze was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thawed {
    /// From before the first was frozen until after the last was thawed.
    pub held: Duration,
}

/// Freezes the file systems at `mounts`, in that order, for at most `limit`. `own` is what the agent writes to: state,
/// logs. None of it may be on them; nor may its standard output and error.
///
/// Returns when all are frozen. Errors: none is.
pub fn freeze(
    mounts: &[PathBuf],
    own: &[PathBuf],
    watchdog: &Watchdog,
    limit: Duration,
) -> Result<Frozen, FreezeError> {
    let failed = |mount: &Path, source| FreezeError::Failed { mount: mount.to_owned(), source };
    if let Some(one_too_many) = mounts.get(MOUNTS_MAX) {
        let why = format!("it is one more than the {MOUNTS_MAX} that are frozen together");
        return Err(failed(one_too_many, io::Error::new(io::ErrorKind::InvalidInput, why)));
    }
    let mut opened = Vec::new();
    for mount in mounts {
        let directory = open(mount).map_err(|error| failed(mount, error))?;
        let device = rustix::fs::fstat(&directory).map_err(|error| failed(mount, error.into()))?.st_dev;
        if let Some(what) = writes_to(device, own) {
            return Err(FreezeError::Own { mount: mount.clone(), what });
        }
        opened.push((mount.clone(), directory));
    }
    let watching = Watching::start(watchdog, mounts, limit).map_err(FreezeError::Watchdog)?;
    for (mount, directory) in &opened {
        // What can be written now, while nobody waits for it, is not written while everybody does.
        rustix::fs::syncfs(directory).map_err(|error| failed(mount, error.into()))?;
    }
    // From here on it thaws when dropped.
    let mut frozen = Frozen { mounts: Vec::new(), watching, since: Instant::now(), limit };
    for (number, (mount, directory)) in (0u8..).zip(opened) {
        frozen.watching.tell(number).map_err(FreezeError::Watchdog)?;
        match kernel::freeze(&directory) {
            Ok(()) => frozen.mounts.push((mount, directory)),
            Err(error) => {
                // Before the watchdog could thaw what somebody else froze.
                frozen.watching.tell(number + NOT_FROZEN).map_err(FreezeError::Watchdog)?;
                return Err(match error.kind() {
                    io::ErrorKind::ResourceBusy => FreezeError::Frozen { mount },
                    _ => failed(&mount, error),
                });
            }
        }
    }
    Ok(frozen)
}

impl Frozen {
    /// Ends it.
    ///
    /// Errors: it did not last until now, so what was done meanwhile saw changes; or this process could not end it,
    /// and the watchdog does.
    pub fn thaw(mut self) -> Result<Thawed, FreezeError> {
        let ended = self.end();
        let held = self.since.elapsed();
        // Its word counts: it tells whether our own thaw came first.
        match self.watching.end() {
            Ok(false) => ended.map(|()| Thawed { held }),
            Ok(true) => Err(FreezeError::Overdue { limit: self.limit }),
            Err(error) => Err(FreezeError::Watchdog(error)),
        }
    }

    /// How long it has lasted.
    pub fn held(&self) -> Duration {
        self.since.elapsed()
    }

    fn end(&mut self) -> Result<(), FreezeError> {
        let mut ended = Ok(());
        while let Some((mount, directory)) = self.mounts.pop() {
            match kernel::thaw(&directory) {
                // Forgotten by the watchdog, too: what somebody else freezes from now on is not its to thaw.
                Ok(()) => drop(self.watching.tell(self.mounts.len() as u8 + NOT_FROZEN)),
                // Not frozen any more: the watchdog was first.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    ended = Err(FreezeError::Overdue { limit: self.limit });
                }
                Err(source) => ended = Err(FreezeError::Thaw { mount, source }),
            }
        }
        ended
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Said by nobody else: what cannot be thawed here is by the watchdog, whose pipe ends now.
        let _ = self.end();
    }
}

/// The watchdog as the agent sees it.
struct Watching {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Watching {
    fn start(watchdog: &Watchdog, mounts: &[PathBuf], limit: Duration) -> io::Result<Self> {
        let mut child = Command::new(&watchdog.program)
            .args(&watchdog.arguments)
            .arg(limit.as_millis().to_string())
            .args(mounts)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (pipe, says) = (child.stdin.take(), child.stdout.take());
        let mut watching = Self { child, pipe };
        let mut said = String::new();
        if let Some(says) = says {
            says.take(1024).read_to_string(&mut said)?;
        }
        if said.trim() != "ready" {
            watching.end()?;
            return Err(io::Error::other(format!("it said {:?}", said.trim())));
        }
        Ok(watching)
    }

    fn tell(&mut self, message: u8) -> io::Result<()> {
        let pipe = self.pipe.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe.write_all(&[message])
    }

    /// Lets it end. Whether it thawed because the limit was over.
    fn end(&mut self) -> io::Result<bool> {
        drop(self.pipe.take());
        Ok(self.child.wait()?.code() == Some(OVERDUE))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It ends by itself; waited for so that no dead process is left.
        let _ = self.end();
    }
}

/// The watchdog's whole life: `LIMIT_MS MOUNT…`. Returns its exit code.
pub fn watch(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let limit = arguments.next().and_then(|text| text.to_str()?.parse().ok()).map(Duration::from_millis);
    let mounts: io::Result<Vec<OwnedFd>> = arguments.map(|mount| open(Path::new(&mount))).collect();
    let (limit, mounts) = match (limit, mounts) {
        (Some(limit), Ok(mounts)) => (limit, mounts),
        (None, _) => return refuse("no limit was given"),
        (_, Err(error)) => return refuse(&error.to_string()),
    };
    kernel::ignore_ends();
    // Nothing that a frozen file system holds may be needed to go on. Without the right to do so it is as good as the
    // page cache: reading does not wait for a thaw.
    let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE);
    if say("ready") {
        // Standard output is closed with it: the agent reads to its end.
        let _ = rustix::stdio::dup2_stdout(std::io::stdin());
    }
    let mut frozen = vec![false; mounts.len()];
    let mut since: Option<Instant> = None;
    let overdue = loop {
        let left = since.map(|since| limit.saturating_sub(since.elapsed()));
        if left == Some(Duration::ZERO) {
            break true;
        }
        let timeout = left.and_then(|left| rustix::time::Timespec::try_from(left).ok());
        let stdin = rustix::stdio::stdin();
        match poll(&mut [PollFd::new(&stdin, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => break false,
        }
        let mut message = [0];
        match rustix::io::read(stdin, &mut message) {
            Ok(0) | Err(_) => break false,
            Ok(_) => {}
        }
        since = since.or(Some(Instant::now()));
        let number = usize::from(message[0] % NOT_FROZEN);
        if let Some(frozen) = frozen.get_mut(number) {
            *frozen = message[0] < NOT_FROZEN;
        }
    };
    for (mount, _) in mounts.iter().zip(frozen).rev().filter(|(_, frozen)| *frozen) {
        // Thawed already, or nothing more can be done: there is nobody to tell.
        let _ = kernel::thaw(mount);
    }
    if overdue { OVERDUE } else { 0 }
}

fn refuse(why: &str) -> i32 {
    say(why);
    1
}

fn say(text: &str) -> bool {
    let mut out = io::stdout();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

fn open(mount: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(mount, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// What of the agent's is on this file system, if anything.
fn writes_to(device: u64, own: &[PathBuf]) -> Option<String> {
    for path in own {
        // What is not there yet will be where its folder is.
        let there = path.ancestors().find_map(|path| std::fs::metadata(path).ok());
        if there.is_some_and(|meta| meta.dev() == device) {
            return Some(format!("the agent's own {}", path.display()));
        }
    }
    let of = |fd| rustix::fs::fstat(fd).ok();
    let streams = [("output", of(rustix::stdio::stdout())), ("error", of(rustix::stdio::stderr()))];
    streams.into_iter().find_map(|(name, stat)| {
        let stat = stat?;
        let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        (is_file && stat.st_dev == device).then(|| format!("the agent's standard {name}"))
    })
}
