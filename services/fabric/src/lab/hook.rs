//! How a lab guest is told to hold still: the socket of an application that an agent's hooks can use.
//!
//! One line each: `freeze MILLISECONDS` is answered with `frozen` once a checkpoint of the ledger is on its disks and no
//! transfer is under way; on `thaw`, on the end of the connection and after these milliseconds, by the guest's own clock,
//! it goes on. `thaw` is answered with `thawed`, or with `late` where it had gone on before.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest that it holds still, whoever asks for more.
const MOST: Duration = Duration::from_secs(60);
/// How long a transfer under way may take.
const SOON: Duration = Duration::from_secs(5);

/// What was asked of the guest, and what it does.
#[derive(Default)]
pub(super) struct Hook {
    inner: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
enum State {
    #[default]
    Running,
    Asked {
        until: Instant,
    },
    Frozen {
        until: Instant,
    },
    Failed(String),
}

fn locked(inner: &(Mutex<State>, Condvar)) -> MutexGuard<'_, State> {
    inner.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hook {
    /// Listens at `path`, where there is one.
    pub(super) fn serve(path: Option<&Path>) -> io::Result<Self> {
        let hook = Self::default();
        let Some(path) = path else { return Ok(hook) };
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        let inner = hook.inner.clone();
        std::thread::Builder::new().name("hook".into()).spawn(move || {
            // One after the other: who is frozen is frozen for one.
            for stream in listener.incoming().flatten() {
                // Whoever went away needs no answer, and is thawed below.
                let _ = converse(&inner, &stream);
                *locked(&inner) = State::Running;
                inner.1.notify_all();
            }
        })?;
        Ok(hook)
    }

    /// Between two transfers: holds still for as long as somebody asked for, after `checkpoint`.
    pub(super) fn hold_if_asked(&self, checkpoint: impl FnOnce() -> Result<(), String>) {
        let State::Asked { until } = *locked(&self.inner) else { return };
        let done = checkpoint();
        let mut state = locked(&self.inner);
        // Whoever asked may be gone.
        if !matches!(*state, State::Asked { .. }) {
            return;
        }
        *state = match done {
            Ok(()) => State::Frozen { until },
            Err(why) => State::Failed(why),
        };
        self.inner.1.notify_all();
        while let State::Frozen { until } = *state {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                *state = State::Running;
                return;
            }
            state = self.inner.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn converse(inner: &(Mutex<State>, Condvar), stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    stream.set_read_timeout(Some(SOON))?;
    let mut lines = BufReader::new(stream.take(1024));
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let millis = line.trim().strip_prefix("freeze ").and_then(|text| text.parse().ok());
    let Some(millis) = millis else {
        return (&*stream).write_all(b"say: freeze MILLISECONDS\n");
    };
    let until = Instant::now() + Duration::from_millis(millis).min(MOST);
    let mut state = locked(inner);
    *state = State::Asked { until };
    let patience = Instant::now() + SOON;
    while matches!(*state, State::Asked { .. }) {
        let left = patience.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        state = inner.1.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    let answer = match &*state {
        State::Frozen { .. } => "frozen\n".to_owned(),
        State::Failed(why) => format!("failed: {why}\n"),
        State::Asked { .. } | State::Running => "failed: the guest is busy\n".to_owned(),
    };
    let frozen = matches!(*state, State::Frozen { .. });
    drop(state);
    (&*stream).write_all(answer.as_bytes())?;
    if !frozen {
        return Ok(());
    }
    stream.set_read_timeout(Some(until.saturating_duration_since(Instant::now()) + SOON))?;
    line.clear();
    lines.read_line(&mut line)?;
    let mut state = locked(inner);
    let answer = if matches!(*state, State::Frozen { until } if Instant::now() < until) {
        "thawed\n"
    } else {
        "late\n"
    };
    *state = State::Running;
    inner.1.notify_all();
    drop(state);
    (&*stream).write_all(answer.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(stream: &mut BufReader<UnixStream>, words: &str) -> String {
        stream.get_mut().write_all(format!("{words}\n").as_bytes()).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn it_holds_still_until_thawed_or_left_or_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook.sock");
        let hook = Hook::serve(Some(&path)).unwrap();
        let steps = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let counted = steps.clone();
        std::thread::spawn(move || {
            loop {
                hook.hold_if_asked(|| Ok(()));
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::thread::yield_now();
            }
        });
        let now = || steps.load(std::sync::atomic::Ordering::SeqCst);
        let goes_on = || {
            let (at, start) = (now(), Instant::now());
            while now() <= at + 1 {
                assert!(start.elapsed() < Duration::from_secs(20), "it holds still for ever");
                std::thread::yield_now();
            }
        };
        let connect = || BufReader::new(UnixStream::connect(&path).unwrap());
        let mut stream = connect();
        assert_eq!(asked(&mut stream, "freeze 60000"), "frozen");
        let at = now();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(now(), at, "it does not hold still");
        assert_eq!(asked(&mut stream, "thaw"), "thawed");
        goes_on();
        let mut stream = connect();
        assert_eq!(asked(&mut stream, "freeze 60000"), "frozen");
        drop(stream);
        goes_on();
        let mut stream = connect();
        assert_eq!(asked(&mut stream, "freeze 300"), "frozen");
        goes_on();
        assert_eq!(asked(&mut stream, "thaw"), "late");
        assert!(asked(&mut connect(), "open sesame").starts_with("say:"));
    }
}
