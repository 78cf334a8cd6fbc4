//! A client of QEMU's monitor: one command at a time, events kept for whoever waits for them.
//!
//! QEMU is not trusted with our memory: lines and waiting events are bounded. A monitor takes one client at a time: where
//! another one holds it, no greeting comes, and connecting ends with that reason.

use continuum_model::untrusted::shown;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest line.
const LINE_MAX: u64 = 16 << 20;
/// Events that wait; older ones are dropped.
const EVENTS_MAX: usize = 1000;
/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The monitor cannot be reached, or went away.
    #[error("QEMU's monitor {path} does not answer: {reason}", path = path.display())]
    Gone {
        /// Where it is.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        reason: String,
    },
}

/// A connection to a monitor.
pub struct Qmp {
    path: PathBuf,
    stream: BufReader<UnixStream>,
    events: VecDeque<Value>,
    /// What QEMU says of itself.
    pub version: String,
}

impl Qmp {
    /// Connects and leaves the mode in which only capabilities are negotiated.
    pub fn connect(path: &Path) -> Result<Self, QmpError> {
        Self::connect_within(path, PATIENCE)
    }

    /// The same, where the greeting must come within `patience`.
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Self, QmpError> {
        let gone = |reason: String| QmpError::Gone { path: path.to_owned(), reason };
        let stream = UnixStream::connect(path).map_err(|error| gone(error.to_string()))?;
        let bounds = stream.set_read_timeout(Some(PATIENCE)).and(stream.set_write_timeout(Some(PATIENCE)));
        bounds.map_err(|error| gone(error.to_string()))?;
        let stream = BufReader::new(stream);
        let mut qmp = Self { path: path.to_owned(), stream, events: VecDeque::new(), version: String::new() };
        let greeting = qmp.line(Instant::now() + patience).map_err(|error| match error {
            QmpError::Gone { path, .. } => QmpError::Gone {
                path,
                reason:
                    "no greeting came; another program may hold this monitor: give Continuum one of its own"
                        .into(),
            },
            refused @ QmpError::Refused { .. } => refused,
        })?;
        let version = &greeting["QMP"]["version"]["qemu"];
        if !version.is_object() {
            return Err(gone("what is there is no QEMU monitor".into()));
        }
        qmp.version = format!("{}.{}.{}", version["major"], version["minor"], version["micro"]);
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its answer.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut text = json!({ "execute": command, "arguments": arguments }).to_string();
        text.push('\n');
        let sent = self.stream.get_mut().write_all(text.as_bytes());
        sent.map_err(|error| self.gone(error.to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut line = self.line(deadline)?;
            if line["event"].is_string() {
                self.keep(line);
            } else if let Some(error) = line.get("error") {
                let reason = shown(error["desc"].as_str().unwrap_or("without a word"));
                return Err(QmpError::Refused { command: command.into(), reason });
            } else {
                return Ok(line["return"].take());
            }
        }
    }

    /// Waits for an event, also among those that came before; `None`: not in time.
    pub fn wait_for(
        &mut self,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Option<Value>, QmpError> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(at) = self.events.iter().position(&wanted) {
                return Ok(self.events.remove(at));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            match self.line(deadline) {
                Ok(line) if line["event"].is_string() => self.keep(line),
                Ok(_) => {}
                Err(error) if Instant::now() < deadline => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Forgets the events that came so far.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn gone(&self, reason: String) -> QmpError {
        QmpError::Gone { path: self.path.clone(), reason }
    }

    fn line(&mut self, deadline: Instant) -> Result<Value, QmpError> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let bounded = self.stream.get_ref().set_read_timeout(Some(left));
        bounded.map_err(|error| self.gone(error.to_string()))?;
        read_line(&mut self.stream).map_err(|error| self.gone(error.to_string()))
    }
}

/// One line of JSON, as monitor and guest agent send them.
pub(super) fn read_line(stream: &mut BufReader<UnixStream>) -> io::Result<Value> {
    let mut line = Vec::new();
    stream.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
        Some(b'\n') => serde_json::from_slice(&line).map_err(io::Error::from),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a line was cut, or too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that says these lines, one for each line it hears, the first one unasked.
    fn against(lines: &[&str]) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<()>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let lines: Vec<String> = lines.iter().map(|line| format!("{line}\n")).collect();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut heard = BufReader::new(stream.try_clone().unwrap());
            for line in lines {
                let _ = (&stream).write_all(line.as_bytes());
                if heard.read_line(&mut String::new()).unwrap_or(0) == 0 {
                    return;
                }
            }
        });
        (dir, path, server)
    }

    const GREETING: &str =
        r#"{"QMP":{"version":{"qemu":{"micro":2,"minor":2,"major":7},"package":""},"capabilities":[]}}"#;

    #[test]
    fn answers_are_told_from_events_and_refusals_are_made_harmless() {
        let (_dir, path, server) = against(&[
            GREETING,
            r#"{"return":{}}"#,
            "{\"event\":\"STOP\"}\n{\"event\":\"RESUME\"}\n{\"return\":{\"status\":\"running\"}}",
            r#"{"error":{"class":"GenericError","desc":"no \u001b[31mred"}}"#,
        ]);
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.version, "7.2.2");
        assert_eq!(qmp.run("query-status", json!({})).unwrap()["status"], "running");
        let resumed = qmp.wait_for(Duration::from_secs(5), |event| event["event"] == "RESUME").unwrap();
        assert!(resumed.is_some());
        assert!(
            qmp.wait_for(Duration::from_millis(1), |event| event["event"] == "RESUME").unwrap().is_none()
        );
        let refused = qmp.run("nonsense", json!({})).unwrap_err().to_string();
        assert!(refused.contains("refused nonsense") && !refused.contains('\u{1b}'), "{refused}");
        drop(qmp);
        server.join().unwrap();
    }

    #[test]
    fn what_is_no_monitor_is_told() {
        for line in ["HTTP/1.1 200 OK", r#"{"hello":1}"#, "[]"] {
            let (_dir, path, server) = against(&[line]);
            assert!(matches!(Qmp::connect(&path), Err(QmpError::Gone { .. })), "{line}");
            server.join().unwrap();
        }
        assert!(Qmp::connect(Path::new("/nowhere/qmp")).is_err());
    }
}
