//! Application-consistent points: what a machine does before and after such a point, as its own agent is told.
//!
//! ```text
//! agent                      keeper (a process of its own)
//!   start, spec ───────────►   pre-script ─► freeze what is named
//!   ◄── frozen, until when ──
//!   barrier, in the feed
//!   thaw ───────────────────►  thaw ─► post-script
//!   ◄── over ────────────────
//! ```
//!
//! Hooks are configured at the machine, and only there: the vault can ask for a point, and never says what runs for it.
//!
//! Who froze thaws: the keeper does when it is told to, when the agent is gone, and at the latest when the time is over that
//! a freeze may last. A keeper that died is made up for by another one, at once by the agent that misses it and otherwise
//! by the next agent that starts: what is under way stands in a file (`keeper`).
//!
//! Invariant: a barrier is application-consistent only if it was cut within the time for which the keeper vouched, and,
//! where nothing may be written meanwhile, if nothing was. All else makes a crash-consistent point whose name is the reason.

pub mod keeper;

use continuum_capture::{Cut, Source, SourceError};
use continuum_model::feed::BarrierKind;
use continuum_model::id::PointId;
use continuum_model::untrusted::shown;
use keeper::{Said, Spec};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What the keeper's own work may take beyond its scripts.
const GRACE: Duration = Duration::from_secs(5);
/// A freeze is not counted on in its last moments.
const MARGIN: Duration = Duration::from_millis(20);

/// What is done for an application-consistent point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Run before; what it fails makes a crash-consistent point.
    pub pre: Vec<String>,
    /// Run after, always: also when the one before failed.
    pub post: Vec<String>,
    /// How long each script may take.
    pub timeout: Duration,
    /// File systems that are frozen, by mount point.
    pub freeze: Vec<PathBuf>,
    /// A socket of an application that can hold still (see [`keeper`]).
    pub socket: Option<PathBuf>,
    /// How long anything stays frozen at most.
    pub frozen_max: Duration,
    /// Nothing may be written between freeze and barrier: whoever says to be frozen and writes is not believed.
    pub quiet: bool,
    /// How the keeper is started: a program and its arguments.
    pub keeper: Vec<OsString>,
}

/// How an application-consistent point went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The barrier: of the kind [`BarrierKind::Application`] if all went well.
    pub cut: Cut,
    /// Why it is not application-consistent.
    pub reason: Option<String>,
    /// What was not thawed, or not in order.
    pub thaw: Option<String>,
    /// What the scripts said, made harmless.
    pub output: String,
}

impl Hooks {
    /// Whether there is anything to do for such a point.
    pub fn exist(&self) -> bool {
        !self.pre.is_empty() || !self.freeze.is_empty() || self.socket.is_some()
    }

    /// Cuts a point with the hooks around it, which takes as long as they do. `dir` is the agent's own folder.
    ///
    /// Errors: no barrier can be cut now; what was frozen is thawed.
    pub fn cut(
        &self,
        source: &Source,
        dir: &Path,
        point: PointId,
        name: &str,
    ) -> Result<Outcome, SourceError> {
        let mut keeper = Keeper::start(self, &marker(dir), point);
        let vouched = keeper.as_mut().map_err(|why| why.clone()).and_then(|keeper| keeper.frozen());
        // In this order: what passes between the two clocks shortens the time that is counted on.
        let before = source.uptime();
        let until = vouched
            .clone()
            .map(|deadline| before + deadline.saturating_sub(keeper::now()).saturating_sub(MARGIN));
        let written = source.written_bytes();
        let mut reason = None;
        let cut = source.barrier_as(point, |now, written_now| {
            let why = match &until {
                Err(why) => Some(why.clone()),
                Ok(until) if now >= *until => Some("it was not frozen for long enough".to_owned()),
                Ok(_) if self.quiet && written_now != written => {
                    let bytes = written_now.saturating_sub(written);
                    Some(format!("it said that it was frozen, and wrote {bytes} bytes"))
                }
                Ok(_) => None,
            };
            reason = why;
            match &reason {
                None => {
                    let named = BarrierKind::Application;
                    (named, name.to_owned())
                }
                Some(why) if name.is_empty() => (BarrierKind::Crash, not_consistent(why)),
                Some(why) => (BarrierKind::Bookmark, format!("{name} ({})", not_consistent(why))),
            }
        });
        let (thaw, output) = match keeper {
            Ok(keeper) => keeper.thaw(self, &marker(dir)),
            Err(_) => (None, String::new()),
        };
        Ok(Outcome { cut: cut?, reason, thaw, output })
    }

    /// Takes back what an earlier agent and its keeper left frozen, if both are gone. Returns what was done.
    pub fn make_up_for(&self, dir: &Path) -> Option<String> {
        let left = keeper::left_behind(&marker(dir))?;
        let undo = Spec { undo: true, ..left };
        let (thaw, _) = match Keeper::with(&self.keeper, &undo) {
            Ok(keeper) => keeper.thaw(self, &marker(dir)),
            Err(why) => (Some(why), String::new()),
        };
        Some(thaw.map_or("what an earlier agent left frozen was thawed".into(), |why| {
            format!("what an earlier agent left frozen was not thawed: {why}")
        }))
    }
}

fn not_consistent(why: &str) -> String {
    // The name of a barrier is short.
    let mut end = why.len().min(120);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    format!("not application-consistent: {}", &why[..end])
}

fn marker(dir: &Path) -> PathBuf {
    dir.join("frozen.json")
}

struct Keeper {
    child: Child,
    input: Option<ChildStdin>,
    said: mpsc::Receiver<Said>,
    spec: Spec,
}

impl Keeper {
    fn start(hooks: &Hooks, marker: &Path, point: PointId) -> Result<Self, String> {
        let spec = Spec {
            point: point.to_string(),
            pre: hooks.pre.clone(),
            post: hooks.post.clone(),
            timeout_ms: millis(hooks.timeout),
            freeze: hooks.freeze.clone(),
            socket: hooks.socket.clone(),
            frozen_ms: millis(hooks.frozen_max),
            marker: marker.to_owned(),
            undo: false,
        };
        Self::with(&hooks.keeper, &spec)
    }

    fn with(command: &[OsString], spec: &Spec) -> Result<Self, String> {
        let (program, words) = command.split_first().ok_or("no program keeps the freeze")?;
        let failed =
            |error: std::io::Error| format!("the keeper of the freeze could not be started: {error}");
        let mut child = Command::new(program)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (told, said) = mpsc::channel();
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            let line = serde_json::to_string(spec).map_err(|error| error.to_string())?;
            input.write_all((line + "\n").as_bytes()).map_err(failed)?;
        }
        let output = child.stdout.take();
        std::thread::Builder::new()
            .name("keeper-says".into())
            .spawn(move || {
                let lines = output.map(BufReader::new).into_iter().flat_map(BufRead::lines);
                for said in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
                    if told.send(said).is_err() {
                        return;
                    }
                }
            })
            .map_err(failed)?;
        Ok(Self { child, input, said, spec: spec.clone() })
    }

    /// Until when it vouches for the freeze, by [`keeper::now`].
    fn frozen(&mut self) -> Result<Duration, String> {
        let patience = Duration::from_millis(self.spec.timeout_ms + self.spec.frozen_ms) + GRACE;
        match self.said.recv_timeout(patience) {
            Ok(Said::Frozen { until_us }) => Ok(Duration::from_micros(until_us)),
            Ok(Said::Failed { why }) => Err(shown(&why)),
            Ok(Said::Over { .. }) => Err("the keeper of the freeze ended early".into()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("it was not frozen within {} s", patience.as_secs()))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err("the keeper of the freeze died".into()),
        }
    }

    /// Thaws, and hears how it went. What the keeper does not do is done by another one.
    fn thaw(mut self, hooks: &Hooks, marker: &Path) -> (Option<String>, String) {
        // Its end means the same as the word.
        drop(self.input.take());
        let patience = Duration::from_millis(self.spec.timeout_ms) + GRACE;
        loop {
            match self.said.recv_timeout(patience) {
                Ok(Said::Over { thaw, output }) => {
                    let _ = self.child.wait();
                    return (thaw.map(|why| shown(&why)), shown(&output));
                }
                Ok(Said::Frozen { .. } | Said::Failed { .. }) => {}
                // It goes on trying, and is reaped by nobody before it ends.
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    std::thread::spawn(move || self.child.wait());
                    return (
                        Some(format!("it was not thawed within {} s", patience.as_secs())),
                        String::new(),
                    );
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        let _ = self.child.wait();
        if self.spec.undo {
            return (Some("the keeper of the freeze died".into()), String::new());
        }
        let thawed = keeper::left_behind(marker).map(|left| {
            let undo = Spec { undo: true, ..left };
            Self::with(&hooks.keeper, &undo).map(|keeper| keeper.thaw(hooks, marker))
        });
        match thawed {
            None => {
                (Some("the keeper of the freeze died; nothing was frozen any more".into()), String::new())
            }
            Some(Ok((None, output))) => {
                (Some("the keeper of the freeze died; it was thawed in its place".into()), output)
            }
            Some(Ok((Some(why), output))) => (Some(why), output),
            Some(Err(why)) => (Some(why), String::new()),
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
