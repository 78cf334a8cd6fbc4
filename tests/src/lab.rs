//! A lab of one's own for a test: a fresh directory, the real binary, the same verbs a person has.
//!
//! Lives here: starting and stopping, running verbs and reading their answers, killing one process of
//! the lab. Every lab is stopped and removed when dropped, after a failed test too; what its processes
//! logged is printed then.

use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running lab.
pub struct Lab {
    dir: tempfile::TempDir,
    supervisor: Option<Child>,
}

/// What a verb answered.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// The answer as JSON; the verb must have ended well.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "the verb failed\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}\n{}", self.stdout))
    }
}

/// The `continuum` binary that `tests/run` built.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CONTINUUM_BIN") {
        return path.into();
    }
    // target/<profile>/deps/lab-… → target/<profile>/continuum
    let here = std::env::current_exe().expect("a test has a path");
    let profile = here.parent().and_then(Path::parent).expect("tests live in target/<profile>/deps");
    let path = profile.join("continuum");
    assert!(path.exists(), "{} is missing: build it first with `cargo build --workspace`", path.display());
    path
}

/// Where `tests/run` put the kernel of QEMU guests; else the lab fetches one itself.
fn kernel() -> Vec<OsString> {
    let folder = binary().parent().and_then(Path::parent).map(|target| target.join("guest"));
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let package =
        entries.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "deb"));
    package.map(|path| vec!["--kernel".into(), path.into()]).unwrap_or_default()
}

/// The endpoints of the disks that a test failover or failover answered, and the moment that they show, in
/// microseconds of UTC.
#[track_caller]
pub fn brought_up(answer: &Value) -> (Vec<String>, i64) {
    let machine = &answer["machines"][0];
    let time: continuum_model::time::Timestamp =
        machine["point"]["time"].as_str().expect("a time").parse().expect("RFC 3339");
    (endpoints(machine), time.micros())
}

/// The endpoints of a machine's disks, in order.
#[track_caller]
pub fn endpoints(machine: &Value) -> Vec<String> {
    let disks = machine["disks"].as_array().unwrap_or_else(|| panic!("no disks in {machine}"));
    disks.iter().map(|disk| disk["endpoint"].as_str().expect("an endpoint").to_owned()).collect()
}

impl Lab {
    /// Starts a lab.
    pub fn start(options: &[&str]) -> Self {
        let mut lab = Self {
            dir: tempfile::Builder::new().prefix("ct-lab-").tempdir().expect("a folder for the lab"),
            supervisor: None,
        };
        lab.launch(options);
        lab
    }

    /// Starts a lab without machines and waits until some can be added.
    pub fn empty() -> Self {
        let lab = Self::start(&["--machines", "0"]);
        lab.wait_for("the lab answers", Duration::from_secs(60), |lab| {
            lab.run(&["lab", "status"]).stdout.contains("running")
        });
        lab
    }

    /// Adds a machine and protects it.
    #[track_caller]
    pub fn add(&self, name: &str, guest: &str, disks: &[&str]) {
        let mut words = vec!["lab", "add", name, "--guest", guest, "--protect"];
        words.extend(disks.iter().flat_map(|size| ["--disk", size]));
        let added = self.run(&words);
        assert_eq!(added.code, 0, "{}{}", added.stderr, self.logs());
    }

    /// Starts the supervisor (again) in the same directory.
    pub fn launch(&mut self, options: &[&str]) {
        let log = std::fs::File::create(self.dir.path().join("supervisor.out")).expect("a log");
        let child = Command::new(binary())
            .args(["lab", "--headless", "--dir"])
            .arg(self.dir())
            .args(kernel())
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the lab starts");
        self.supervisor = Some(child);
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a verb against this lab.
    pub fn run(&self, words: &[&str]) -> Answer {
        let output = Command::new(binary())
            .args(words)
            .env("CONTINUUM_DIR", self.dir())
            .stdin(Stdio::null())
            .output()
            .expect("the verb runs");
        Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a verb with `-o json` and reads its answer.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let mut words = words.to_vec();
        words.extend(["-o", "json"]);
        self.run(&words).json()
    }

    /// One machine, as `get machines` tells it.
    #[track_caller]
    pub fn machine(&self, name: &str) -> Value {
        let machines = self.json(&["get", "machines", name]);
        machines
            .as_array()
            .and_then(|list| list.first())
            .cloned()
            .unwrap_or_else(|| panic!("no machine {name}"))
    }

    /// Waits until `what` holds. The vault's own news would do; a test looks from outside instead.
    #[track_caller]
    pub fn wait_for(&self, why: &str, limit: Duration, mut what: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !what(self) {
            if start.elapsed() > limit {
                panic!("not within {limit:?}: {why}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits until every one of `names` is protected and healthy.
    #[track_caller]
    pub fn wait_healthy(&self, count: usize, limit: Duration) {
        self.wait_for(&format!("{count} machines protected and healthy"), limit, |lab| {
            let answer = lab.run(&["get", "machines", "-o", "json"]);
            let Ok(Value::Array(machines)) = serde_json::from_str(&answer.stdout) else { return false };
            machines.len() >= count
                && machines
                    .iter()
                    .all(|machine| machine["state"] == "protected" && machine["health"] == "healthy")
        });
    }

    /// The processes of the lab: role, name, pid.
    #[track_caller]
    pub fn processes(&self) -> Vec<(String, String, i32)> {
        let status = self.json(&["lab", "status"]);
        let list = status["processes"].as_array().unwrap_or_else(|| panic!("no processes in {status}"));
        list.iter()
            .map(|process| {
                let text = |key: &str| process[key].as_str().unwrap_or_default().to_owned();
                (text("role"), text("name"), process["pid"].as_i64().unwrap_or(0) as i32)
            })
            .collect()
    }

    /// The process id of one process.
    fn pid(&self, role: &str, name: &str) -> Option<i32> {
        self.processes()
            .into_iter()
            .find(|(r, n, _)| r == role && (name.is_empty() || n == name))
            .map(|(_, _, pid)| pid)
            .filter(|pid| *pid > 0)
    }

    /// Sends a signal to one process; returns its id.
    #[track_caller]
    pub fn signal(&self, role: &str, name: &str, signal: Signal) -> i32 {
        let pid = self.pid(role, name).unwrap_or_else(|| panic!("no process {role} {name}"));
        let sent = rustix::process::kill_process(Pid::from_raw(pid).expect("a pid"), signal);
        assert!(sent.is_ok(), "the fault did not fire: {sent:?}");
        pid
    }

    /// Ends one process with this signal and waits until the lab has started it again.
    #[track_caller]
    pub fn end(&self, role: &str, name: &str, signal: Signal) {
        let pid = self.signal(role, name, signal);
        self.wait_for(&format!("{role} {name} runs again"), Duration::from_secs(20), |lab| {
            lab.pid(role, name).is_some_and(|now| now != pid)
        });
    }

    /// SIGKILLs one process and waits until the lab has started it again.
    #[track_caller]
    pub fn kill(&self, role: &str, name: &str) {
        self.end(role, name, Signal::KILL);
    }

    /// What the processes of the lab logged last.
    pub fn logs(&self) -> String {
        let mut out = String::new();
        let mut folders = vec![self.dir().to_owned()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "log" || end == "out")
                    && let Ok(bytes) = std::fs::read(&path)
                {
                    let text = String::from_utf8_lossy(&bytes);
                    let lines: Vec<&str> = text.lines().collect();
                    let last = &lines[lines.len().saturating_sub(30)..];
                    out.push_str(&format!("--- {}\n{}\n", path.display(), last.join("\n")));
                }
            }
        }
        out
    }

    /// Stops the lab; everything must be gone afterwards.
    pub fn stop(&mut self) {
        let answer = self.run(&["lab", "stop"]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        if let Some(mut child) = self.supervisor.take() {
            child.wait().expect("the supervisor ends");
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Some(mut child) = self.supervisor.take() {
            let _ = self.run(&["lab", "stop"]);
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(10) {
                if matches!(child.try_wait(), Ok(Some(_))) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
