//! The keeper of a freeze: a process that freezes, and thaws whatever becomes of the one who started it.
//!
//! It reads its [`Spec`] from the first line of its standard input, says [`Said`] on its standard output, one JSON a line,
//! and thaws when its input ends, or when the freeze has lasted as long as it may.
//!
//! ```text
//! <agent's folder>/frozen.json   the spec, from before the pre-script until after the post-script; locked by the keeper
//! ```
//!
//! An application freezes by a socket of its own: it is told `freeze MILLISECONDS`, and answers `frozen` once it holds still
//! and everything it did is on its disks; on `thaw`, on the end of the connection, and after these milliseconds it goes on,
//! and answers `thawed`, or `late` where it had gone on before. One line each.

use continuum_capture::freeze::{self, Frozen, Watchdog};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// The first argument that makes a program of ours a keeper.
pub const ARGUMENT: &str = "freeze-keeper";
/// What is kept of a script's output.
const OUTPUT_BYTES_MAX: usize = 4096;
/// How long a file system or an application may take to hold still, and to go on.
const STEP: Duration = Duration::from_secs(10);
/// An application is given this much longer than we vouch for it.
const BEYOND: Duration = Duration::from_millis(500);

/// What to freeze, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The point that it is for.
    pub point: String,
    /// Run before.
    pub pre: Vec<String>,
    /// Run after.
    pub post: Vec<String>,
    /// For each script.
    pub timeout_ms: u64,
    /// Mount points.
    pub freeze: Vec<PathBuf>,
    /// An application's socket.
    pub socket: Option<PathBuf>,
    /// How long it stays frozen at most.
    pub frozen_ms: u64,
    /// Where this is written while it is under way.
    pub marker: PathBuf,
    /// Only take back what another keeper did.
    pub undo: bool,
}

/// What a keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "kebab-case")]
pub enum Said {
    /// Everything holds still, and will until then, by [`now`].
    Frozen {
        /// Microseconds.
        until_us: u64,
    },
    /// It does not, and why. What was done is taken back at once.
    Failed {
        /// Why.
        why: String,
    },
    /// Thawed, and the post-script has ended.
    Over {
        /// What did not go well with that.
        thaw: Option<String>,
        /// What the scripts said.
        output: String,
    },
}

/// A clock that all processes of a machine share.
pub fn now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// What stands in a marker that no living keeper holds.
pub fn left_behind(marker: &Path) -> Option<Spec> {
    let file = File::open(marker).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    serde_json::from_reader(file).ok()
}

/// Runs as a keeper until all is thawed.
pub fn main() -> io::Result<()> {
    // A group of its own: what ends the agent's does not end this.
    let _ = rustix::process::setsid();
    let mut lines = BufReader::new(io::stdin()).lines();
    let spec: Spec = serde_json::from_str(&lines.next().unwrap_or(Ok(String::new()))?)?;
    let (word, told) = mpsc::channel::<()>();
    std::thread::Builder::new().name("input".into()).spawn(move || {
        // Its end, and anything else that is said, means: thaw.
        let _ = lines.next();
        drop(word);
    })?;
    let _lock = mark(&spec)?;
    let mut work = Work { spec: &spec, output: String::new(), frozen: Vec::new() };
    // What the other keeper froze goes on by itself, or by its watchdog: what is left to do is the script.
    if !spec.undo {
        match work.begin() {
            Ok(until) => {
                say(&Said::Frozen { until_us: u64::try_from(until.as_micros()).unwrap_or(0) });
                let _ = told.recv_timeout(until.saturating_sub(now()));
            }
            Err(why) => say(&Said::Failed { why }),
        }
    }
    let thaw = work.end();
    std::fs::remove_file(&spec.marker)?;
    say(&Said::Over { thaw, output: work.output });
    Ok(())
}

/// To whoever still listens.
fn say(said: &Said) {
    let line = serde_json::to_string(said).unwrap_or_default();
    let _ = io::stdout().write_all((line + "\n").as_bytes()).and_then(|()| io::stdout().flush());
}

fn mark(spec: &Spec) -> io::Result<File> {
    let mut file = File::options().create(true).truncate(false).write(true).open(&spec.marker)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    if !spec.undo {
        file.set_len(0)?;
        file.write_all(serde_json::to_string(spec)?.as_bytes())?;
        file.sync_all()?;
        let folder = spec.marker.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Something that can hold still.
trait Freeze {
    fn freeze(&mut self, most: Duration) -> Result<(), String>;
    fn thaw(&mut self) -> Result<(), String>;
}

struct Work<'a> {
    spec: &'a Spec,
    output: String,
    frozen: Vec<Box<dyn Freeze + 'a>>,
}

impl<'a> Work<'a> {
    /// Applications first: they write to file systems until they hold still.
    fn freezers(&self) -> Vec<Box<dyn Freeze + 'a>> {
        let mut freezers: Vec<Box<dyn Freeze + 'a>> = Vec::new();
        if let Some(path) = &self.spec.socket {
            freezers.push(Box::new(Application::new(path.clone())));
        }
        if !self.spec.freeze.is_empty() {
            freezers.push(Box::new(Mounts { spec: self.spec, frozen: None }));
        }
        freezers
    }

    /// Returns until when it stays frozen.
    fn begin(&mut self) -> Result<Duration, String> {
        self.script("pre-script", &self.spec.pre.clone())?;
        let until = now() + Duration::from_millis(self.spec.frozen_ms);
        for mut freezer in self.freezers() {
            let frozen = freezer.freeze(until.saturating_sub(now()) + BEYOND);
            // Taken back also where it failed half-way.
            self.frozen.push(freezer);
            frozen?;
        }
        Ok(until)
    }

    fn end(&mut self) -> Option<String> {
        let mut wrong = Vec::new();
        while let Some(mut freezer) = self.frozen.pop() {
            wrong.extend(freezer.thaw().err());
        }
        wrong.extend(self.script("post-script", &self.spec.post.clone()).err());
        (!wrong.is_empty()).then(|| wrong.join("; "))
    }

    fn script(&mut self, what: &str, words: &[String]) -> Result<(), String> {
        let Some((program, arguments)) = words.split_first() else { return Ok(()) };
        let mut command = Command::new(program);
        command.args(arguments).env("CONTINUUM_HOOK", what).env("CONTINUUM_POINT", &self.spec.point);
        let (ended, output) = run(command, Duration::from_millis(self.spec.timeout_ms));
        if !output.is_empty() {
            self.output.push_str(&format!("{what}: {output}\n"));
        }
        ended.map_err(|why| format!("the {what} {why}"))
    }
}

/// Runs a program in a process group of its own, which is killed when its time is over. Returns what it said.
fn run(mut command: Command, most: Duration) -> (Result<(), String>, String) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let ended = (|| {
        let failed = |error: io::Error| format!("could not be run: {error}");
        let (reading, writing) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        command.process_group(0).stdin(Stdio::null());
        command.stderr(writing.try_clone().map_err(failed)?).stdout(writing);
        let mut child = command.spawn().map_err(failed)?;
        // Its ends of the pipe, of which the reader would wait for ours.
        drop(command);
        let pid = Pid::from_child(&child);
        let kept = said.clone();
        let reader = std::thread::spawn(move || {
            let mut from = File::from(reading);
            let mut piece = [0; 1024];
            while let Ok(count @ 1..) = from.read(&mut piece) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                let room = OUTPUT_BYTES_MAX - kept.len();
                kept.extend_from_slice(&piece[..count.min(room)]);
            }
        });
        let (over, waited) = mpsc::channel();
        std::thread::spawn(move || {
            let _ = over.send(child.wait());
        });
        let ended = match waited.recv_timeout(most) {
            Ok(ended) => ended.map_err(failed)?,
            Err(_) => {
                let _ = kill_process_group(pid, Signal::KILL);
                let _ = waited.recv_timeout(STEP);
                return Err(format!("did not end within {} s and was killed", most.as_secs_f32()));
            }
        };
        // What it left running may hold the pipe: its words are not waited for.
        for _ in 0..20 {
            if reader.is_finished() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if ended.success() { Ok(()) } else { Err(format!("failed: {ended}")) }
    })();
    let output =
        String::from_utf8_lossy(&said.lock().unwrap_or_else(PoisonError::into_inner)).trim().to_owned();
    let first = output.lines().last().unwrap_or_default().to_owned();
    let ended = ended.map_err(|why| if first.is_empty() { why } else { format!("{why}: {first}") });
    (ended, output)
}

/// Mounted file systems, in the order in which they are named. Should this process die, too, `capture`'s own watchdog
/// thaws them.
struct Mounts<'a> {
    spec: &'a Spec,
    frozen: Option<Frozen>,
}

impl Freeze for Mounts<'_> {
    fn freeze(&mut self, most: Duration) -> Result<(), String> {
        let own: Vec<PathBuf> = self.spec.marker.parent().map(Path::to_owned).into_iter().collect();
        let frozen = Watchdog::ourselves().map_err(|error| error.to_string()).and_then(|watchdog| {
            freeze::freeze(&self.spec.freeze, &own, &watchdog, most).map_err(|error| chain(&error))
        });
        self.frozen = Some(frozen?);
        Ok(())
    }
    fn thaw(&mut self) -> Result<(), String> {
        match self.frozen.take() {
            Some(frozen) => frozen.thaw().map(drop).map_err(|error| chain(&error)),
            None => Ok(()),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// An application that holds still by itself.
struct Application {
    path: PathBuf,
    stream: Option<BufReader<UnixStream>>,
}

impl Application {
    const fn new(path: PathBuf) -> Self {
        Self { path, stream: None }
    }

    fn ask(&mut self, word: &str) -> io::Result<String> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = UnixStream::connect(&self.path)?;
                stream.set_read_timeout(Some(STEP))?;
                stream.set_write_timeout(Some(STEP))?;
                none.insert(BufReader::new(stream))
            }
        };
        stream.get_mut().write_all(format!("{word}\n").as_bytes())?;
        let mut answer = String::new();
        stream.by_ref().take(256).read_line(&mut answer)?;
        Ok(answer.trim().to_owned())
    }
}

impl Freeze for Application {
    fn freeze(&mut self, most: Duration) -> Result<(), String> {
        let why = match self.ask(&format!("freeze {}", most.as_millis())) {
            Ok(answer) if answer == "frozen" => return Ok(()),
            Ok(answer) => answer,
            Err(error) => error.to_string(),
        };
        // The end of the connection takes back whatever it may still do.
        self.stream = None;
        Err(format!("the application did not hold still: {why}"))
    }
    fn thaw(&mut self) -> Result<(), String> {
        // Where nothing was asked for, nothing is to be taken back.
        if self.stream.is_none() {
            return Ok(());
        }
        match self.ask("thaw") {
            Ok(answer) if answer == "thawed" => Ok(()),
            Ok(answer) if answer == "late" => Err("the application went on before it was told to".into()),
            Ok(answer) => Err(format!("the application did not say that it goes on: {answer}")),
            Err(error) => Err(format!("the application did not say that it goes on: {error}")),
        }
    }
}
