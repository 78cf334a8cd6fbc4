//! Faults of the network between two sites, on real processes in network namespaces: one recovery site with vault
//! and master target, and for each fault a site with an agent and a process server of its own behind a link of its
//! own. All faults at the same time, each on its link.
//!
//! For each: it fired (a counter says so), it was shown, it ended and all was well again by itself; what travelled
//! twice is bounded; descriptors and memory are as before; and the prover accepts moments of before, in and after it.

use continuum_model::time::Timestamp;
use continuum_tests::lab::{binary, brought_up};
use continuum_tests::network::{FAR, Network, clear, narrow, rules, widen, within};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, History, Workload};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Ports may be the same everywhere: each namespace has its own.
const VAULT: u16 = 7001;
const RELAY: u16 = 7003;
const TARGET: u16 = 7004;

/// What is done to a link, or to who sits on it.
enum Fault {
    /// Rules for what leaves and for what arrives.
    Rules(&'static str, &'static str),
    /// The same, again and again for a moment.
    Pulses(&'static str, &'static str),
    /// So much gets through.
    Narrow(&'static str),
    /// The process server dies with all it has, and another one starts in its place.
    Wiped,
    /// Nothing leaves while the process server dies and starts again: the other end keeps a stream that nobody has.
    HalfOpen,
    /// Another process server starts with the same identity.
    Twin,
}

struct Row {
    name: &'static str,
    fault: Fault,
    /// Whether an operator sees it, once it lasts.
    shown: fn(&Value) -> bool,
    /// The fault ends when it was shown and has fired this often.
    fires: u64,
}

fn unhealthy(machine: &Value) -> bool {
    machine["health"] != "healthy"
}
fn behind(machine: &Value) -> bool {
    machine["rpo_seconds"].as_f64().is_some_and(|age| age > 2.0) || unhealthy(machine)
}
fn anything(_: &Value) -> bool {
    true
}

/// The faults, each with its link.
static ROWS: [Row; 9] = [
    Row {
        name: "partition",
        fault: Fault::Rules("counter drop", "counter drop"),
        shown: unhealthy,
        fires: 10,
    },
    Row {
        name: "acknowledgements lost",
        fault: Fault::Rules("", "counter drop"),
        shown: unhealthy,
        fires: 10,
    },
    Row {
        name: "reset storm",
        fault: Fault::Pulses("ip protocol tcp counter reject with tcp reset", ""),
        shown: anything,
        fires: 10,
    },
    Row { name: "less than its churn", fault: Fault::Narrow("400kbit"), shown: behind, fires: 10 },
    Row {
        name: "long packets lost",
        fault: Fault::Rules("meta length > 800 counter drop", "meta length > 800 counter drop"),
        shown: unhealthy,
        fires: 3,
    },
    Row {
        // A byte of what leaves for the target, above the checksums of TCP and below TLS.
        name: "bytes flipped",
        fault: Fault::Rules(
            "tcp dport 7004 meta length > 800 limit rate 2/second burst 1 packets @th,960,8 set 0x5a counter",
            "",
        ),
        shown: anything,
        fires: 5,
    },
    Row { name: "process server wiped", fault: Fault::Wiped, shown: unhealthy, fires: 1 },
    Row { name: "half-open", fault: Fault::HalfOpen, shown: anything, fires: 1 },
    Row { name: "twin", fault: Fault::Twin, shown: anything, fires: 1 },
];

/// Ended when dropped.
struct Service(Child);

impl Service {
    /// Descriptors, and resident memory in MiB.
    fn holds(&self) -> (usize, usize) {
        let process = format!("/proc/{}", self.0.id());
        let descriptors = std::fs::read_dir(format!("{process}/fd")).map_or(0, Iterator::count);
        let status = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        (descriptors, resident.and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) >> 10)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Sites {
    network: Network,
    dir: tempfile::TempDir,
}

impl Sites {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// `continuumd` in the far namespace, to its end.
    #[track_caller]
    fn done(&self, words: &[&str]) {
        let mut command = within(&self.network.far(), &binary().with_file_name("continuumd"));
        let output = command.args(words).stdin(Stdio::null()).output().expect("continuumd runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    fn serve(&self, namespace: &str, config: &str, role: &str, log: &str) -> Service {
        let log = std::fs::File::options().create(true).append(true).open(self.path(log)).expect("a log");
        let mut command = within(namespace, &binary().with_file_name("continuumd"));
        command.args(["serve", "--role", role, "--config", &self.text(config)]).stdin(Stdio::null());
        Service(command.stdout(Stdio::null()).stderr(log).spawn().expect("continuumd runs"))
    }

    fn verb(&self, words: &[&str]) -> Output {
        let mut command: Command = within(&self.network.far(), &binary());
        command.env("HOME", self.dir.path()).env("CONTINUUM_CONFIG_DIR", self.path("config"));
        command.env_remove("CONTINUUM_DIR").args(words).args(["-o", "json"]).stdin(Stdio::null());
        command.output().expect("continuum runs")
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let output = self.verb(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// A machine as an operator sees it.
    fn machine(&self, name: &str) -> Value {
        serde_json::from_slice(&self.verb(&["describe", "machine", name]).stdout).unwrap_or_default()
    }

    #[track_caller]
    fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(150);
        while !check() {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(150));
        }
    }

    /// A token, used up by a server.
    fn enrol(&self, role: &str, name: &str, site: &str) {
        let token = self.json(&["token", role, "--site", site]);
        let file = self.text(&format!("{name}.token"));
        std::fs::write(&file, token["token"].as_str().expect("a token")).expect("a file");
        let identity = self.text(&format!("{name}/identity"));
        self.done(&[
            "enroll",
            "--role",
            role,
            "--name",
            name,
            "--identity",
            &identity,
            "--token-file",
            &file,
        ]);
    }

    fn configure(&self) {
        let root = self.dir.path().display();
        let mut far = format!(
            "[vault]\ndir = \"{root}/vault\"\nlisten = \"{FAR}:{VAULT}\"\nlisten_enrolment = \"{FAR}:7002\"\n\
             [[vault.sites]]\nname = \"there\"\nfabric = \"physical\"\nrecovery = true\n"
        );
        for n in 1..=ROWS.len() {
            far += &format!("[[vault.sites]]\nname = \"here{n}\"\nfabric = \"physical\"\n");
            for (file, port) in [(format!("n{n}"), RELAY), (format!("n{n}-twin"), RELAY + 100)] {
                let near = format!(
                    "[process_server]\nname = \"ps{n}\"\nsite = \"here{n}\"\ndir = \"{root}/{file}-spool\"\n\
                     identity = \"{root}/ps{n}/identity\"\nlisten = \"10.77.{n}.2:{port}\"\n\
                     vault = \"{FAR}:{VAULT}\"\n\
                     [[agent]]\nname = \"m{n}\"\nsite = \"here{n}\"\ndir = \"{root}/m{n}/agent\"\n\
                     socket = \"{root}/m{n}.sock\"\nidentity = \"{root}/m{n}/identity\"\n\
                     vault = \"{FAR}:{VAULT}\"\n\
                     [[agent.disks]]\nname = \"disk0\"\npath = \"{root}/m{n}/disk0.raw\"\n\
                     create_bytes = 16777216\n"
                );
                std::fs::write(self.path(&format!("{file}.toml")), near).expect("a file");
            }
            std::fs::create_dir_all(self.path(&format!("m{n}"))).expect("a folder");
        }
        far += &format!(
            "[master_target]\nname = \"mt\"\nsite = \"there\"\ndir = \"{root}/mt/replicas\"\n\
             run_dir = \"{root}/mt/run\"\nidentity = \"{root}/mt/identity\"\nlisten = \"{FAR}:{TARGET}\"\n\
             vault = \"{FAR}:{VAULT}\"\n"
        );
        std::fs::write(self.path("far.toml"), far).expect("a file");
    }

    /// Starts the far side and lets everybody in.
    fn up(&self) -> [Service; 2] {
        self.configure();
        let far = self.network.far();
        let vault = self.serve(&far, "far.toml", "vault", "vault.log");
        self.until("the vault listens", || self.path("vault/address.json").exists());
        let (dir, ada) = (self.text("vault"), self.text("ada"));
        let make =
            ["operator", "make", "--vault-dir", &dir, "--role", "owner", "--name", "ada", "--out", &ada];
        self.done(&make);
        self.json(&["login", &format!("{FAR}:{VAULT}"), "--credentials", &ada, "--name", "main"]);
        self.enrol("master-target", "mt", "there");
        for n in 1..=ROWS.len() {
            self.enrol("process-server", &format!("ps{n}"), &format!("here{n}"));
            self.enrol("agent", &format!("m{n}"), &format!("here{n}"));
        }
        [vault, self.serve(&far, "far.toml", "target", "target.log")]
    }

    fn is_healthy(&self, name: &str) -> bool {
        let machine = self.machine(name);
        machine["state"] == "protected" && machine["mode"] == "data" && machine["health"] == "healthy"
    }

    /// Both sides agree at a barrier: all that was written before it is there.
    fn is_equal(&self, name: &str) -> bool {
        let told: Value = serde_json::from_slice(&self.verb(&["verify", name]).stdout).unwrap_or_default();
        let disks = told["disks"].as_array();
        disks.is_some_and(|disks| !disks.is_empty() && disks.iter().all(|disk| disk["equal"] == true))
    }

    /// Proves a machine at a moment; returns what of before that moment is not in it, in seconds.
    #[track_caller]
    fn prove(&self, row: &str, name: &str, history: &History, asked: i64) -> f64 {
        let answer =
            self.json(&["test-failover", name, "--point", &Timestamp::from_micros(asked).to_string()]);
        let (disks, time) = brought_up(&answer);
        assert!(time <= asked, "{row}: a moment later than asked for");
        let image = oracle::read_image(&disks[0]).expect("the replica is read");
        let violations = oracle::prove(&[&image], history, time);
        let first = &violations[..violations.len().min(3)];
        assert!(violations.is_empty(), "{row} at {time}: {} violations, first {first:?}", violations.len());
        self.json(&["cleanup", name]);
        let acknowledged = history.writes.iter().filter_map(|write| write.completed_us());
        let last = acknowledged.filter(|at| *at <= asked).max().unwrap_or(time);
        (last - time).max(0) as f64 / 1e6
    }
}

/// What came of a row.
struct Outcome {
    began: i64,
    ended: i64,
    fired: u64,
}

/// One site: its fault from its beginning until all is well again.
fn suffer(sites: &Sites, n: usize, relay: &mut Option<Service>) -> Outcome {
    let (row, name, near) = (&ROWS[n - 1], format!("m{n}"), sites.network.near(n));
    let start = |config: &str, log: &str| Some(sites.serve(&near, config, "process", log));
    let log = format!("ps{n}.log");
    let began = oracle::now_us();
    let mut fired = 0;
    let shown = || sites.until(&format!("{}: it is shown", row.name), || (row.shown)(&sites.machine(&name)));
    match row.fault {
        Fault::Rules(out, into) => {
            rules(&near, out, into);
            shown();
            sites.until(&format!("{}: it fires", row.name), || {
                // What is counted ends with the rules: taken, and put in again.
                fired += clear(&near);
                rules(&near, out, into);
                std::thread::sleep(Duration::from_secs(1));
                fired >= row.fires
            });
            fired += clear(&near);
        }
        Fault::Pulses(out, into) => {
            for _ in 0..12 {
                rules(&near, out, into);
                std::thread::sleep(Duration::from_millis(150));
                fired += clear(&near);
                std::thread::sleep(Duration::from_millis(350));
            }
        }
        Fault::Narrow(rate) => {
            narrow(&near, rate);
            shown();
            fired += widen(&near);
        }
        Fault::Wiped => {
            *relay = None;
            let spool = sites.path(&format!("n{n}-spool"));
            std::fs::remove_dir_all(&spool).expect("it had a spool");
            shown();
            *relay = start(&format!("n{n}.toml"), &log);
            fired += 1;
        }
        Fault::HalfOpen => {
            rules(&near, "counter drop", "");
            *relay = None;
            *relay = start(&format!("n{n}.toml"), &log);
            std::thread::sleep(Duration::from_secs(3));
            fired += clear(&near);
        }
        Fault::Twin => {
            let twin = start(&format!("n{n}-twin.toml"), &format!("ps{n}-twin.log"));
            let text = || std::fs::read_to_string(sites.path(&format!("ps{n}-twin.log"))).unwrap_or_default();
            sites.until("the twin listens", || text().contains("process server listens"));
            std::thread::sleep(Duration::from_secs(6));
            fired += 1;
            drop(twin);
        }
    }
    let ended = oracle::now_us();
    sites.until(&format!("{}: all is well again", row.name), || {
        sites.is_equal(&name) && sites.is_healthy(&name)
    });
    Outcome { began, ended, fired }
}

#[test]
fn every_fault_of_the_network_is_shown_and_survived() {
    let dir = tempfile::Builder::new().prefix("ct-net-").tempdir_in("/tmp").expect("a folder");
    let sites = Sites { network: Network::make(ROWS.len()), dir };
    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| survive(&sites)));
    if let Err(panic) = told {
        eprintln!("{}", last_words(sites.dir.path()));
        std::panic::resume_unwind(panic);
    }
}

fn last_words(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = entries.filter(|path| path.extension().is_some_and(|end| end == "log"));
    logs.map(|path| {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("--- {}\n{}\n", path.display(), lines[lines.len().saturating_sub(12)..].join("\n"))
    })
    .collect()
}

fn survive(sites: &Sites) {
    let [vault, target] = sites.up();
    let mut relays = Vec::new();
    let mut agents = Vec::new();
    let numbers = || 1..=ROWS.len();
    for n in numbers() {
        let (near, config) = (sites.network.near(n), format!("n{n}.toml"));
        relays.push(Some(sites.serve(&near, &config, "process", &format!("ps{n}.log"))));
        agents.push(sites.serve(&near, &config, "agent", &format!("m{n}.log")));
    }
    sites.until("all are connected", || {
        let servers = sites.json(&["get", "servers"]);
        let servers = servers.as_array().expect("a list");
        servers.iter().filter(|server| server["connected"] == true).count() == 2 + 2 * ROWS.len()
    });
    for n in numbers() {
        sites.json(&["protect", &format!("m{n}"), "--to", "there"]);
    }
    for n in numbers() {
        sites.until("it is protected", || sites.is_healthy(&format!("m{n}")));
    }

    let log = |n: usize| sites.path(&format!("m{n}.acks"));
    let workloads: Vec<_> =
        numbers().map(|n| Workload::new(0x4e7 + n as u64, &log(n)).expect("a log")).collect();
    let sent = |n: usize| sites.machine(&format!("m{n}"))["sent_bytes_total"].as_u64().expect("a number");
    let before: Vec<_> = numbers().map(sent).collect();
    let mut held = Vec::new();
    let mut outcomes = Vec::new();
    std::thread::scope(|scope| {
        let _end: Vec<_> = workloads.iter().map(crate::prove::EndOfWork).collect();
        for (n, workload) in numbers().zip(&workloads) {
            let uri = format!("nbd+unix:///disk0?socket={}", sites.text(&format!("m{n}.sock")));
            let writer = Writer { uri, disk: 0, blocks: 0..30_000, bytes_per_sec: 192 << 10, seed: n as u64 };
            scope.spawn(move || workload.write(&writer).expect("the workload runs"));
        }
        std::thread::sleep(Duration::from_secs(2));
        held.extend(agents.iter().map(Service::holds).chain([vault.holds(), target.holds()]));
        let suffering: Vec<_> = numbers()
            .zip(&mut relays)
            .map(|(n, relay)| scope.spawn(move || suffer(sites, n, relay)))
            .collect();
        outcomes = suffering.into_iter().map(|row| row.join().expect("a row")).collect::<Vec<_>>();
    });
    for n in numbers() {
        sites.until("everything is there", || sites.is_equal(&format!("m{n}")));
    }
    let holds: Vec<_> = agents.iter().map(Service::holds).chain([vault.holds(), target.holds()]).collect();
    for (before, after) in held.iter().zip(&holds) {
        assert!(after.0 <= before.0 + 12, "descriptors: {held:?} before, {holds:?} after");
        assert!(after.1 <= before.1 + 48, "MiB: {held:?} before, {holds:?} after");
    }

    for (n, outcome) in numbers().zip(&outcomes) {
        let (row, name) = (&ROWS[n - 1], format!("m{n}"));
        assert!(outcome.fired >= row.fires, "{}: it fired {} times", row.name, outcome.fired);
        let history = History::read(&[&log(n)]).expect("the log");
        let written: u64 = history.writes.iter().map(|write| write.blocks * 512).sum();
        let travelled = sent(n) - before[n - 1];
        let during = outcome.began + (outcome.ended - outcome.began) / 2;
        let lost: Vec<f64> = [outcome.began - 200_000, during, outcome.ended + 500_000]
            .into_iter()
            .map(|asked| sites.prove(row.name, &name, &history, asked))
            .collect();
        println!(
            "{:24} fired {:6}, lasted {:5.1} s, {:4.1} MiB written, {:4.1} MiB sent, {lost:.3?} s lost",
            row.name,
            outcome.fired,
            (outcome.ended - outcome.began) as f64 / 1e6,
            written as f64 / 1_048_576.0,
            travelled as f64 / 1_048_576.0,
        );
        // Each change once, its frame around it, and what was under way when a connection broke.
        let bound = written + written / 2 + (4 << 20);
        assert!(travelled <= bound, "{}: {travelled} bytes travelled for {written}", row.name);
        assert!(lost.iter().all(|lost| *lost < 1.0), "{}: moments are missing: {lost:?}", row.name);
    }
}
