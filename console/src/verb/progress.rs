//! A job as lines: one when a step begins, one when it ends, and now and then one from a long step.
//!
//! Goes to standard error, so that standard output holds the answer alone. Silent where a program reads
//! the answer: then standard error holds nothing but an error.

use super::contract::step_seconds;
use super::follow::News;
use super::output::human;
use super::output::table::Tone;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// A long step speaks no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// How far a long piece of work is, as a line every few seconds.
pub struct Percent {
    what: &'static str,
    quiet: bool,
    spoke: Instant,
}

impl Percent {
    /// For work that is called this; silent where a program reads the answer.
    pub fn new(what: &'static str, quiet: bool) -> Self {
        Self { what, quiet, spoke: Instant::now() }
    }

    /// `done` of about `total` bytes.
    pub fn tell(&mut self, done: u64, total: u64) {
        if self.quiet || self.spoke.elapsed() < PROGRESS_EVERY {
            return;
        }
        self.spoke = Instant::now();
        let share = done as f64 * 100.0 / total.max(1) as f64;
        let done = human::bytes(Some(done));
        let _ = writeln!(io::stderr(), "{}: {done}, {:.0} %", self.what, share.min(100.0));
    }
}

/// Tells each change once.
pub struct Progress<W> {
    out: W,
    quiet: bool,
    colour: bool,
    /// The state in which each step was last told.
    told: Vec<String>,
    waiting_for: String,
    spoke: Instant,
}

impl<W: Write> Progress<W> {
    /// A teller that writes to `out`, or, being quiet, nowhere.
    pub fn new(out: W, quiet: bool, colour: bool) -> Self {
        Self { out, quiet, colour, told: Vec::new(), waiting_for: String::new(), spoke: Instant::now() }
    }

    /// Tells what is new. What cannot be written is let go: the job does not depend on a pipe.
    pub fn tell(&mut self, news: &News<'_>) {
        if !self.quiet {
            let _ = self.try_tell(news);
        }
    }

    fn try_tell(&mut self, news: &News<'_>) -> io::Result<()> {
        match news {
            News::Lost(fault) => {
                writeln!(self.out, "connection lost, trying again: {}", shown(&fault.message))
            }
            News::Back => writeln!(self.out, "connected again"),
            News::Job(job) => self.tell_job(job),
        }
    }

    fn tell_job(&mut self, job: &pb::Job) -> io::Result<()> {
        let count = job.steps.len();
        self.told.resize(count.max(self.told.len()), String::new());
        for (at, step) in job.steps.iter().enumerate() {
            if step.state.is_empty() || step.state == "pending" {
                continue;
            }
            let changed = self.told[at] != step.state;
            let long =
                step.state == "running" && step.progress.is_some() && self.spoke.elapsed() >= PROGRESS_EVERY;
            if !changed && !long {
                continue;
            }
            step.state.clone_into(&mut self.told[at]);
            self.spoke = Instant::now();
            let state = toned(&step.state, self.colour);
            let width = count.to_string().len();
            let mut line = format!("[{:>width$}/{count}] {}: {state}", at + 1, shown(&step.name));
            if let Some(seconds) = step_seconds(step) {
                line += &format!(" after {}", human::seconds(Some(seconds)));
            } else if let Some(progress) = step.progress.filter(|progress| *progress > 0.0) {
                line += &format!(" {:.0} %", (progress * 100.0).min(100.0));
            }
            if !step.detail.is_empty() {
                line += &format!(": {}", shown(&step.detail));
            }
            writeln!(self.out, "{line}")?;
        }
        if job.waiting_for != self.waiting_for {
            job.waiting_for.clone_into(&mut self.waiting_for);
            if !job.waiting_for.is_empty() {
                writeln!(self.out, "waiting for {}", shown(&job.waiting_for))?;
            }
        }
        self.out.flush()
    }
}

/// A state word in its tone.
pub fn toned(word: &str, colour: bool) -> String {
    let tone = Tone::of(word);
    if colour && tone != Tone::Plain { format!("{}{}\x1b[0m", tone.sgr(), shown(word)) } else { shown(word) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once_and_harmlessly() {
        let mut out = Vec::new();
        let mut progress = Progress::new(&mut out, false, false);
        let step = |name: &str, state: &str, ended| pb::Step {
            name: name.into(),
            state: state.into(),
            started_us: Some(1_000_000),
            ended_us: ended,
            detail: if ended.is_some() { "at \u{1b}[2J".into() } else { String::new() },
            progress: None,
        };
        let mut job = pb::Job {
            steps: vec![step("check", "running", None), step("open view", "pending", None)],
            ..Default::default()
        };
        progress.tell(&News::Job(&job));
        progress.tell(&News::Job(&job));
        job.steps = vec![step("check", "succeeded", Some(1_400_000)), step("open view", "running", None)];
        progress.tell(&News::Job(&job));
        job.waiting_for = "the guest".into();
        progress.tell(&News::Job(&job));
        progress.tell(&News::Back);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "[1/2] check: running\n[1/2] check: succeeded after 0.4 s: at ␛[2J\n[2/2] open view: running\n\
             waiting for the guest\nconnected again\n"
        );
    }
}
