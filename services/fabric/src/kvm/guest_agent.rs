//! QEMU's guest agent: file systems at rest for the instant in which disks are frozen, and let go on in time.
//!
//! The thread that froze is the one that thaws, and it waits for nobody longer than it was told ([`HOLD`]): whatever becomes of the
//! freezing of disks meanwhile, the guest goes on. A guest that a process left frozen which was killed in between is
//! thawed by [`thaw_left`], when the next one begins. Thawing is tried until it is confirmed or the guest is gone.

use super::qmp::read_line;
use continuum_model::untrusted::shown;
use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time that a guest is kept at rest.
pub const HOLD: Duration = Duration::from_secs(10);
/// Longest time that the agent may take to come to rest: its hooks for databases count in.
const FREEZE: Duration = Duration::from_secs(30);
/// Longest time that it may take for anything else.
const ANSWER: Duration = Duration::from_secs(5);
/// How often thawing is tried.
const THAWS: u32 = 6;

struct Session {
    stream: BufReader<UnixStream>,
}

impl Session {
    /// Connects and gets in step: what an earlier client left unread is skipped.
    fn open(path: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the guest agent's socket {}: {error}", path.display());
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER)).map_err(failed)?;
        let mut session = Self { stream: BufReader::new(stream) };
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        // Of no more than 53 bits: it comes back as a number of JSON.
        let id = since.map_or(1, |since| since.as_nanos() as u64 & 0xf_ffff_ffff_ffff);
        // The byte 0xff resets a parser that an earlier client left in the middle of something, and marks the answer.
        session.send(b"\xff", &json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } }))?;
        let deadline = Instant::now() + ANSWER;
        session.bound(deadline)?;
        let mut byte = [0];
        while byte != [0xff] {
            if Instant::now() >= deadline {
                return Err("the guest agent does not answer".into());
            }
            let read = session.stream.read_exact(&mut byte);
            read.map_err(|_| "the guest agent does not answer: is it running in the guest?".to_owned())?;
        }
        match session.answer(ANSWER)?.as_u64() {
            Some(answered) if answered == id => Ok(session),
            _ => Err("the guest agent answers something else: another program may use its socket".into()),
        }
    }

    fn send(&mut self, before: &[u8], command: &Value) -> Result<(), String> {
        let mut text = before.to_vec();
        text.extend_from_slice(command.to_string().as_bytes());
        text.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&text)
            .map_err(|error| format!("the guest agent does not listen: {error}"))
    }

    fn bound(&self, deadline: Instant) -> Result<(), String> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(left)).map_err(|error| error.to_string())
    }

    fn answer(&mut self, within: Duration) -> Result<Value, String> {
        self.bound(Instant::now() + within)?;
        let mut line = read_line(&mut self.stream).map_err(|error| {
            format!("the guest agent did not answer within {} s: {error}", within.as_secs())
        })?;
        match line.get("error") {
            Some(error) => Err(format!(
                "the guest agent said: {}",
                shown(error["desc"].as_str().unwrap_or("without a word"))
            )),
            None => Ok(line["return"].take()),
        }
    }

    fn run(&mut self, command: &str, within: Duration) -> Result<Value, String> {
        self.send(b"", &json!({ "execute": command }))?;
        self.answer(within)
    }
}

/// A guest whose file systems are at rest. Dropped, it thaws.
pub struct AtRest {
    thaw: mpsc::Sender<()>,
    thread: Option<JoinHandle<Result<(), String>>>,
    /// How many file systems there are.
    pub file_systems: u64,
}

/// Brings the guest's file systems to rest, for at most `hold`.
///
/// Errors: why not; they are not at rest.
pub fn freeze(socket: &Path, hold: Duration) -> Result<AtRest, String> {
    let (thaw, thawed) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let path = socket.to_owned();
    let body = move || {
        let frozen = Session::open(&path).and_then(|mut session| {
            let count = session.run("guest-fsfreeze-freeze", FREEZE)?;
            Ok((session, count.as_u64().unwrap_or(0)))
        });
        let (session, count) = match frozen {
            Ok(frozen) => frozen,
            Err(why) => {
                // It may have come to rest though nobody heard of it.
                let _ = thaw_until(None, &path);
                let _ = tell.send(Err(why.clone()));
                return Err(why);
            }
        };
        let _ = tell.send(Ok(count));
        let waited = thawed.recv_timeout(hold);
        thaw_until(Some(session), &path)?;
        match waited {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("the disks were not frozen within {hold:?}: the guest was let go on before"))
            }
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Ok(()),
        }
    };
    let thread = std::thread::Builder::new().name("fsfreeze".into()).spawn(body);
    let thread = thread.map_err(|error| error.to_string())?;
    match told.recv() {
        Ok(Ok(file_systems)) if file_systems > 0 => Ok(AtRest { thaw, thread: Some(thread), file_systems }),
        Ok(Ok(_)) => {
            drop(thaw);
            let _ = thread.join();
            Err("the guest agent found no file system to bring to rest".into())
        }
        Ok(Err(why)) => {
            let _ = thread.join();
            Err(why)
        }
        Err(_) => Err("the thread that freezes died".into()),
    }
}

impl AtRest {
    /// Lets the guest go on. Returns when that is confirmed.
    ///
    /// Errors: it was not at rest all the time, or could not be thawed.
    pub fn thaw(mut self) -> Result<(), String> {
        let _ = self.thaw.send(());
        let thread = self.thread.take().ok_or("it was thawed before")?;
        thread.join().map_err(|_| "the thread that thaws died".to_owned())?
    }
}

impl Drop for AtRest {
    fn drop(&mut self) {
        let _ = self.thaw.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Thaws a guest that an earlier process left frozen. Says whether one was.
pub fn thaw_left(socket: &Path) -> Result<bool, String> {
    let mut session = Session::open(socket)?;
    let status = session.run("guest-fsfreeze-status", ANSWER)?;
    if status != "frozen" {
        return Ok(false);
    }
    thaw_until(Some(session), &PathBuf::from(socket))?;
    Ok(true)
}

/// Thaws, again and again until it is confirmed.
fn thaw_until(mut session: Option<Session>, path: &Path) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..THAWS {
        let mut open = match session.take().map_or_else(|| Session::open(path), Ok) {
            Ok(open) => open,
            Err(why) => {
                last = why;
                continue;
            }
        };
        match open.run("guest-fsfreeze-thaw", ANSWER) {
            Ok(_) => return Ok(()),
            Err(why) => last = why,
        }
    }
    tracing::error!(socket = %path.display(), why = last, "a guest could not be thawed");
    Err(format!("the guest could not be thawed: {last}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::os::unix::net::UnixListener;
    use std::sync::{Arc, Mutex};

    /// A guest agent that answers as `says` does, `None` for not at all, and notes what it heard.
    fn agent(
        says: impl Fn(&str) -> Option<Value> + Send + 'static,
    ) -> (tempfile::TempDir, PathBuf, Arc<Mutex<Vec<String>>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qga");
        let listener = UnixListener::bind(&path).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let notes = heard.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                    let text: &[u8] = line.strip_prefix(b"\xff").unwrap_or(&line);
                    let command: Value = serde_json::from_slice(text).unwrap();
                    let name = command["execute"].as_str().unwrap().to_owned();
                    notes.lock().unwrap().push(name.clone());
                    if name == "guest-sync-delimited" {
                        let id = &command["arguments"]["id"];
                        // What an earlier client did not read comes first.
                        let _ = (&stream).write_all(b"{\"return\":1}\n\xff");
                        let _ = (&stream).write_all(format!("{}\n", json!({ "return": id })).as_bytes());
                    } else if let Some(answer) = says(&name) {
                        let _ = (&stream).write_all(format!("{answer}\n").as_bytes());
                    }
                    line.clear();
                }
            }
        });
        (dir, path, heard)
    }

    #[test]
    fn what_was_frozen_is_thawed_also_when_nobody_asks() {
        let (_dir, path, heard) = agent(|_| Some(json!({ "return": 2 })));
        let at_rest = freeze(&path, HOLD).unwrap();
        assert_eq!(at_rest.file_systems, 2);
        at_rest.thaw().unwrap();
        drop(freeze(&path, HOLD).unwrap());
        let heard = heard.lock().unwrap();
        assert_eq!(heard.iter().filter(|name| *name == "guest-fsfreeze-thaw").count(), 2, "{heard:?}");
    }

    #[test]
    fn the_watchdog_thaws_and_what_was_frozen_later_is_not_called_at_rest() {
        let (_dir, path, heard) = agent(|_| Some(json!({ "return": 1 })));
        let at_rest = freeze(&path, Duration::from_millis(20)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !heard.lock().unwrap().contains(&"guest-fsfreeze-thaw".to_owned()) {
            assert!(Instant::now() < deadline, "the watchdog does not thaw");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(at_rest.thaw().unwrap_err().contains("let go on before"));
    }

    #[test]
    fn a_freeze_that_fails_is_told_and_thawed_all_the_same() {
        let (_dir, path, heard) = agent(|name| {
            Some(match name {
                "guest-fsfreeze-freeze" => {
                    json!({ "error": { "class": "GenericError", "desc": "hook failed" } })
                }
                _ => json!({ "return": 0 }),
            })
        });
        let why = freeze(&path, HOLD).err().unwrap();
        assert!(why.contains("hook failed"), "{why}");
        assert!(heard.lock().unwrap().contains(&"guest-fsfreeze-thaw".to_owned()));
    }

    #[test]
    fn a_guest_that_was_left_frozen_is_thawed() {
        let (_dir, path, heard) = agent(|name| {
            Some(
                json!({ "return": if name == "guest-fsfreeze-status" { json!("frozen") } else { json!(1) } }),
            )
        });
        assert_eq!(thaw_left(&path), Ok(true));
        assert!(heard.lock().unwrap().contains(&"guest-fsfreeze-thaw".to_owned()));
        assert!(thaw_left(Path::new("/nowhere")).is_err());
    }
}
