//! Application-consistent points: by a guest that holds still, by scripts that fail, hang and lie, by file systems that are
//! frozen, and what is thawed when whoever froze is gone.

use continuum_capture::source::SourceSpec;
use continuum_capture::{FileDisk, Source, SourceConfig};
use continuum_mobility_agent::Hooks;
use continuum_mobility_agent::hooks::{Outcome, keeper};
use continuum_model::feed::BarrierKind;
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::units::{Epoch, FrameNumber, Sequence};
use continuum_model::world::{SystemClock, SystemEntropy};
use continuum_tests::lab::{Lab, binary};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn an_application_consistent_point_needs_no_replay_and_is_the_one_that_is_asked_for() {
    let lab = Lab::empty();
    lab.add("db", "process", &["16MiB", "8MiB"]);
    lab.add("bare", "none", &["8MiB"]);
    lab.wait_healthy(2, Duration::from_secs(120));
    // The policy's own, cut by the agent.
    lab.wait_for("a first application-consistent point", Duration::from_secs(60), |lab| {
        lab.machine("db")["newest_app_point"].is_string()
    });
    let job = lab.json(&["bookmark", "db", "nightly", "--app-consistent"]);
    assert_eq!(
        (job["state"].as_str(), &job["machines"][0]["point"]["kind"]),
        (Some("succeeded"), &"app".into()),
        "{job}"
    );
    let point = job["machines"][0]["point"]["id"].clone();
    lab.wait_for("the target lists it", Duration::from_secs(30), |lab| {
        lab.json(&["get", "points", "db"]).as_array().unwrap().iter().any(|other| other["id"] == point)
    });
    let drill = lab.json(&["test-failover", "db", "--point", "app"]);
    assert_eq!(drill["machines"][0]["point"]["id"], point, "{drill}");
    let probes = drill["machines"][0]["probes"].to_string();
    assert!(
        probes.contains(", 0 replayed"),
        "an application-consistent state has nothing to replay: {probes}"
    );
    assert_eq!(lab.run(&["cleanup", "db"]).code, 0);
    // The guest went on.
    let newest = |lab: &Lab| lab.machine("db")["newest_received"].clone();
    let before = newest(&lab);
    lab.wait_for("the guest writes on", Duration::from_secs(30), |lab| newest(lab) != before);
    let refused = lab.run(&["bookmark", "bare", "nightly", "--app-consistent"]);
    assert!(refused.code != 0 && refused.stderr.contains("no hooks"), "{}", refused.stderr);

    // A guest that is gone cannot hold still: a point all the same, and the reason with it, told and cleared.
    let pid = lab.signal("guest", "db", Signal::STOP);
    let job = lab.json(&["bookmark", "db", "in the dark", "--app-consistent"]);
    let found = &job["machines"][0];
    assert_eq!(
        (job["state"].as_str(), &found["point"]["kind"]),
        (Some("warnings"), &"bookmark".into()),
        "{job}"
    );
    assert!(found["note"].as_str().unwrap().contains("did not hold still"), "{job}");
    assert!(
        found["point"]["name"].as_str().unwrap().starts_with("in the dark (not application-consistent: "),
        "{job}"
    );
    let symptom = |lab: &Lab| lab.machine("db")["symptoms"].to_string().contains("app-point.failed");
    lab.wait_for("its symptom", Duration::from_secs(30), symptom);
    let events = lab.json(&["get", "events"]).to_string();
    assert!(events.contains("crash-consistent, not application-consistent"), "{events}");
    kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).unwrap();
    lab.wait_for("the symptom clears by itself or by the next one", Duration::from_secs(60), |lab| {
        let cut = lab.run(&["bookmark", "db", "in the light", "--app-consistent"]);
        cut.code == 0 && !symptom(lab)
    });
}

struct World {
    dir: tempfile::TempDir,
    source: Arc<Source>,
}

impl World {
    /// A source in data mode, with nobody at the other end.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open_or_create(&dir.path().join("disk"), 4 << 20).unwrap();
        let config = SourceConfig {
            machine: MachineId::from_bytes([1; 16]),
            dir: dir.path().join("agent"),
            disks: vec![SourceSpec { id: DiskId::from_bytes([2; 16]), disk: Box::new(disk) }],
        };
        let source = Source::open(config, Arc::new(SystemClock::default()), &mut SystemEntropy).unwrap();
        let nothing = continuum_capture::ReplicaState {
            number: FrameNumber(0),
            digest: 0,
            sequence: Sequence(0),
            newest: continuum_model::time::Timestamp::from_micros(0),
        };
        source.connect(Epoch(1), nothing).unwrap();
        let start = Instant::now();
        while source.status().mode != continuum_model::health::Mode::Data {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", source.status());
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { dir, source: Arc::new(source) }
    }

    fn hooks(&self) -> Hooks {
        Hooks {
            timeout: Duration::from_secs(5),
            frozen_max: Duration::from_secs(5),
            keeper: vec![binary().into(), keeper::ARGUMENT.into()],
            ..Hooks::default()
        }
    }

    fn agent(&self) -> std::path::PathBuf {
        self.dir.path().join("agent")
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn cut(&self, hooks: &Hooks) -> Outcome {
        let outcome = hooks.cut(&self.source, &self.agent(), PointId::from_bytes([9; 16]), "").unwrap();
        assert_eq!(
            keeper::left_behind(&self.agent().join("frozen.json")),
            None,
            "something stayed frozen: {outcome:?}"
        );
        outcome
    }
}

fn sh(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

#[test]
fn scripts_that_fail_hang_or_lie_make_a_crash_consistent_point_that_says_so() {
    let world = World::new();
    let ran = world.file("ran");
    let post = sh(&format!("echo post >> {ran}"));
    let good = Hooks {
        pre: sh(&format!("echo \"$CONTINUUM_HOOK of $CONTINUUM_POINT\" >> {ran}; printf 'held\\033[2J'")),
        post: post.clone(),
        ..world.hooks()
    };
    let outcome = world.cut(&good);
    assert_eq!((outcome.cut.kind, &outcome.reason, &outcome.thaw), (BarrierKind::Application, &None, &None));
    assert!(outcome.output.contains("held") && !outcome.output.contains('\u{1b}'), "{:?}", outcome.output);
    let said = std::fs::read_to_string(&ran).unwrap();
    assert_eq!(said, format!("pre-script of {}\npost\n", PointId::from_bytes([9; 16])));

    let marker = world.file("background");
    for (why, pre, expected) in [
        ("fails", "echo no room; exit 3", "failed: exit status: 3: no room"),
        ("hangs", "sleep 60", "did not end within 1 s and was killed"),
        ("hangs in what it started", &*format!("(sleep 3; touch {marker}) & wait"), "was killed"),
        ("is not there", "exec /no/such/program", "failed"),
    ] {
        let hooks =
            Hooks { pre: sh(pre), timeout: Duration::from_secs(1), post: post.clone(), ..world.hooks() };
        std::fs::remove_file(&ran).unwrap();
        let outcome = world.cut(&hooks);
        assert_eq!(outcome.cut.kind, BarrierKind::Crash, "{why}");
        assert!(outcome.reason.as_deref().unwrap().contains(expected), "{why}: {:?}", outcome.reason);
        assert!(
            outcome.cut.name.starts_with("not application-consistent: the pre-script"),
            "{why}: {}",
            outcome.cut.name
        );
        assert_eq!(std::fs::read_to_string(&ran).unwrap(), "post\n", "{why}: what comes after comes always");
    }
    // The whole group of a script is gone, not only its first process.
    std::thread::sleep(Duration::from_secs(3));
    assert!(!Path::new(&marker).exists());
    // It says that all is still, and is not.
    let device = world.source.device(0).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let writer = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Acquire) {
            device.write(0, &[1; 4096], false).unwrap();
        }
    });
    let lying = Hooks { pre: sh("true"), quiet: true, ..world.hooks() };
    // Whoever writes all the time is caught, sooner or later, in the moment between the two.
    let caught = (0..50).map(|_| world.cut(&lying)).find(|outcome| outcome.reason.is_some());
    stop.store(true, std::sync::atomic::Ordering::Release);
    writer.join().unwrap();
    let caught = caught.expect("a liar is found");
    assert_eq!(caught.cut.kind, BarrierKind::Crash);
    assert!(
        caught.reason.as_deref().unwrap().starts_with("it said that it was frozen, and wrote"),
        "{caught:?}"
    );
    // Too late: it was frozen for no time at all.
    let late = Hooks { pre: sh("true"), frozen_max: Duration::ZERO, ..world.hooks() };
    let outcome = world.cut(&late);
    assert_eq!(outcome.reason.as_deref(), Some("it was not frozen for long enough"));
    let broken = Hooks { pre: sh("true"), post: sh("echo stuck; exit 1"), ..world.hooks() };
    let outcome = world.cut(&broken);
    assert_eq!(outcome.cut.kind, BarrierKind::Application);
    assert!(
        outcome.thaw.as_deref().unwrap().contains("the post-script failed: exit status: 1: stuck"),
        "{outcome:?}"
    );
}

/// A keeper that was started by somebody who is this test: its spec, and what it says.
fn keeper_of(
    world: &World,
    hooks: &Hooks,
    frozen_ms: u64,
) -> (std::process::Child, impl Iterator<Item = keeper::Said>) {
    let spec = keeper::Spec {
        point: "p".into(),
        pre: hooks.pre.clone(),
        post: hooks.post.clone(),
        timeout_ms: 5000,
        freeze: hooks.freeze.clone(),
        socket: None,
        frozen_ms,
        marker: world.agent().join("frozen.json"),
        undo: false,
    };
    let mut child = Command::new(binary())
        .arg(keeper::ARGUMENT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = serde_json::to_string(&spec).unwrap() + "\n";
    child.stdin.as_mut().unwrap().write_all(line.as_bytes()).unwrap();
    let said = BufReader::new(child.stdout.take().unwrap());
    let said = said.lines().map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap());
    (child, said)
}

#[test]
fn what_was_frozen_is_thawed_when_the_agent_dies_hangs_or_its_keeper_does() {
    let world = World::new();
    let ran = world.file("ran");
    let hooks = Hooks { pre: sh("true"), post: sh(&format!("echo post >> {ran}")), ..world.hooks() };
    // The agent is gone: its end of the pipe is.
    let (mut child, mut said) = keeper_of(&world, &hooks, 600_000);
    assert!(matches!(said.next(), Some(keeper::Said::Frozen { .. })));
    assert!(!Path::new(&ran).exists());
    drop(child.stdin.take());
    assert!(matches!(said.next(), Some(keeper::Said::Over { thaw: None, .. })));
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&ran).unwrap(), "post\n");
    // The agent hangs: it never says a word.
    let (mut child, mut said) = keeper_of(&world, &hooks, 300);
    assert!(matches!(said.next(), Some(keeper::Said::Frozen { .. })));
    assert!(matches!(said.next(), Some(keeper::Said::Over { thaw: None, .. })));
    assert!(child.wait().unwrap().success());
    // Agent and keeper are gone: the next agent makes up for it, and only once.
    let (mut child, mut said) = keeper_of(&world, &hooks, 600_000);
    assert!(matches!(said.next(), Some(keeper::Said::Frozen { .. })));
    assert_eq!(hooks.make_up_for(&world.agent()), None, "its keeper lives");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(std::fs::read_to_string(&ran).unwrap(), "post\npost\n");
    let done = hooks.make_up_for(&world.agent());
    assert_eq!(done.as_deref(), Some("what an earlier agent left frozen was thawed"));
    assert_eq!(std::fs::read_to_string(&ran).unwrap(), "post\npost\npost\n");
    assert_eq!(hooks.make_up_for(&world.agent()), None);
}

/// A small ext4 on a loop device, unmounted and removed again when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (image, at) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        run("mke2fs", &["-q", "-F", "-t", "ext4", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(dir)
    }
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.path();
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&at).stderr(Stdio::null()).status();
        let _ = Command::new("umount").arg(&at).status();
    }
}

fn run(program: &str, words: &[&str]) {
    let done =
        Command::new(program).args(words).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_file_system_is_frozen_for_the_point_and_never_stays_frozen() {
    let (world, mounted) = (World::new(), Mounted::new());
    let at = mounted.path();
    let hooks = Hooks { freeze: vec![at.clone()], quiet: true, ..world.hooks() };
    let outcome = world.cut(&hooks);
    assert_eq!((outcome.cut.kind, &outcome.reason, &outcome.thaw), (BarrierKind::Application, &None, &None));
    std::fs::write(at.join("after"), "thawed").unwrap();
    // Frozen indeed: who writes waits until the one who froze is gone.
    let (mut child, mut said) = keeper_of(&world, &hooks, 600_000);
    assert!(matches!(said.next(), Some(keeper::Said::Frozen { .. })));
    let file = at.join("meanwhile");
    let writing = std::thread::spawn(move || std::fs::write(file, "waits").unwrap());
    std::thread::sleep(Duration::from_millis(200));
    assert!(!writing.is_finished(), "it was not frozen");
    // Its keeper dies as well: the watchdog of the file systems is left.
    child.kill().unwrap();
    child.wait().unwrap();
    writing.join().unwrap();
    assert!(hooks.make_up_for(&world.agent()).is_some(), "what the keeper had begun is ended");
    // Two of them, of which one cannot be: neither stays frozen.
    let nowhere = Hooks { freeze: vec![at.clone(), world.dir.path().join("nowhere")], ..world.hooks() };
    let outcome = world.cut(&nowhere);
    assert_eq!(outcome.cut.kind, BarrierKind::Crash);
    assert!(outcome.reason.as_deref().unwrap().contains("could not be frozen"), "{:?}", outcome.reason);
    std::fs::write(at.join("after"), "thawed again").unwrap();
}
