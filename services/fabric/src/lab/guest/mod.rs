//! A guest of the lab as a program: started as a process of its own, in a folder of its own.
//!
//! ```text
//! <dir>/spec.json      what to be: written by whoever starts it
//! <dir>/process.json   which process it is: written by itself before it says that it started
//! <dir>/guest.log      what it has to say
//! ```
//!
//! - [`drive`]: its disks, over NBD, for ever
//! - [`workload`]: what it does with them
//! - here: its life: signals, whom it does not outlive, how it is
//!
//! It says `started` on standard output once it is on record, and nothing else there.

pub mod drive;
pub mod workload;

use super::vitals::{Pulse, State, Vitals};
use crate::compute::GuestSpec;
use crate::process::ProcessRecord;
use drive::Stream;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a guest finds in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// What to be.
    pub spec: GuestSpec,
    /// Where to answer.
    pub socket: PathBuf,
    /// It ends when nobody holds a lock on this file any more: the lab it belongs to is gone.
    pub lives_with: Option<PathBuf>,
}

/// How long a guest that is to end may take to leave its disks in order.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// The life of a guest: whether it is to end, and how it is.
#[derive(Clone)]
pub struct Life {
    /// How it is, for whoever asks.
    pub pulse: Pulse,
    started: Instant,
    end: Arc<End>,
}

#[derive(Default)]
struct End {
    state: Mutex<EndState>,
    changed: Condvar,
}

#[derive(Default)]
struct EndState {
    over: bool,
    /// Connections, to be cut when a server that does not answer would keep the guest from ending.
    streams: Vec<Stream>,
}

impl Life {
    fn new(spec: &GuestSpec) -> Self {
        let pulse = Pulse::default();
        pulse.update(|vitals| {
            *vitals = Vitals { kind: spec.kind.clone(), name: spec.name.clone(), ..Vitals::default() };
        });
        Self { pulse, started: Instant::now(), end: Arc::default() }
    }

    /// Whether the guest is to end.
    pub fn is_over(&self) -> bool {
        self.end.state.lock().unwrap_or_else(PoisonError::into_inner).over
    }

    /// Waits, but not beyond the end.
    pub fn pause(&self, span: Duration) {
        let state = self.end.state.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.end.changed.wait_timeout_while(state, span, |state| !state.over));
    }

    fn register(&self, stream: Stream) {
        let mut state = self.end.state.lock().unwrap_or_else(PoisonError::into_inner);
        // One for each disk is open at a time; older ones are closed by the other side.
        if state.streams.len() >= 32 {
            state.streams.remove(0);
        }
        state.streams.push(stream);
    }

    /// Ends it: the work stops at its next step, and is cut off if it has none.
    pub fn finish(&self) {
        let mut state = self.end.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.over = true;
        self.end.changed.notify_all();
        drop(state);
        let own = self.clone();
        let cutting = std::thread::Builder::new().name("last words".into()).spawn(move || {
            std::thread::sleep(LAST_WORDS);
            let state = own.end.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.streams.iter().for_each(Stream::cut);
        });
        if cutting.is_err() {
            std::process::exit(0);
        }
    }

    fn ill(&self, reason: &str, disk_error: bool) {
        self.pulse.update(|vitals| {
            vitals.disk_errors += u64::from(disk_error);
            reason.clone_into(&mut vitals.reason);
            if vitals.state == State::Running {
                vitals.state = State::Waiting;
            }
        });
    }

    fn well_again(&self) {
        self.pulse.update(|vitals| {
            vitals.reason.clear();
            if vitals.state == State::Waiting {
                vitals.state = State::Running;
            }
        });
    }
}

/// Runs the guest of a folder to its end. Returns the exit code of the process.
pub fn run(dir: &Path) -> u8 {
    match start(dir).and_then(|(orders, life)| live(dir, &orders, &life)) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("guest in {}: {error}", dir.display());
            1
        }
    }
}

fn start(dir: &Path) -> io::Result<(Orders, Life)> {
    // A session of its own: what is sent to the terminal's foreground does not reach it.
    let _ = rustix::process::setsid();
    let orders: Orders = serde_json::from_slice(&std::fs::read(dir.join("spec.json"))?)?;
    let life = Life::new(&orders.spec);
    life.pulse.answer_on(&orders.socket)?;
    let ending = life.clone();
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            ending.finish();
        }
    })?;
    if let Some(holder) = &orders.lives_with {
        let ending = life.clone();
        crate::process::when_released(holder, move || ending.finish())?;
    }
    crate::process::replace_file(&dir.join("process.json"), &serde_json::to_vec(&ProcessRecord::own()?)?)?;
    let mut out = io::stdout();
    // Whoever started it may be gone already.
    let _ = out.write_all(b"started\n").and_then(|()| out.flush());
    Ok((orders, life))
}

fn live(dir: &Path, orders: &Orders, life: &Life) -> io::Result<()> {
    let _ = dir;
    let result = match orders.spec.kind.as_str() {
        "process" => workload::run(&orders.spec, life),
        kind => Err(format!(
            "`{}` is no kind of guest that this program can be",
            continuum_model::untrusted::shown(kind)
        )),
    };
    if let Err(reason) = result {
        if life.is_over() {
            return Ok(());
        }
        eprintln!("{reason}");
        life.pulse.update(|vitals| {
            if !vitals.state.is_settled() || vitals.state == State::Waiting || vitals.state == State::Running
            {
                vitals.state = State::Failed;
            }
            vitals.reason = reason;
        });
        // It stays to be asked why, until it is told to end.
        while !life.is_over() {
            life.pause(Duration::from_secs(3600));
        }
    }
    Ok(())
}
