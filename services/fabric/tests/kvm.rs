//! Interval capture on a real QEMU, without a guest: what is written through its monitor is what a guest would write.

use continuum_capture::interval::{ChangeTracker, Changed, Consistency, Frozen};
use continuum_fabric::kvm::qmp::Qmp;
use continuum_fabric::kvm::{KvmMachine, KvmTracker, inventory};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const KIB: u64 = 1 << 10;

struct Qemu {
    dir: tempfile::TempDir,
    process: Child,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Qemu {
    /// One disk that keeps bitmaps, one that cannot.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (format, name) in [("qcow2", "a.qcow2"), ("raw", "b.raw")] {
            let mut command = Command::new("qemu-img");
            command.args(["create", "-q", "-f", format]).arg(dir.path().join(name)).arg("8M");
            assert!(command.status().expect("qemu-img runs").success());
        }
        let process = Self::start(dir.path());
        Self { dir, process }
    }

    fn start(dir: &Path) -> Child {
        let at = |name: &str| dir.join(name).display().to_string();
        let socket = |name: &str| format!("unix:{},server=on,wait=off", at(name));
        let disk = |format: &str, node: &str, name: &str| {
            let image = format!("driver={format},file.driver=file,file.filename={}", at(name));
            format!("if=none,id=drive-{node},node-name={node},{image}")
        };
        let _ = (std::fs::remove_file(at("1.qmp")), std::fs::remove_file(at("2.qmp")));
        let process = Command::new("qemu-system-x86_64")
            .args(["-machine", "none", "-S", "-nodefaults", "-display", "none", "-name", "quiet"])
            .args(["-drive", &disk("qcow2", "a", "a.qcow2"), "-drive", &disk("raw", "b", "b.raw")])
            .args(["-qmp", &socket("1.qmp"), "-qmp", &socket("2.qmp")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("QEMU runs");
        let deadline = Instant::now() + Duration::from_secs(30);
        while Qmp::connect(&dir.join("2.qmp")).is_err() {
            assert!(Instant::now() < deadline, "QEMU does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn tracker(&self) -> KvmTracker {
        let dir = self.path("agent");
        std::fs::create_dir_all(&dir).unwrap();
        KvmTracker::new(KvmMachine {
            monitor: self.path("1.qmp"),
            guest_agent: None,
            disks: vec!["drive-a".into(), "drive-b".into()],
            scratch: self.path("scratch"),
            dir,
            stop_within: Duration::from_secs(1),
        })
    }

    fn run(&self, command: &str, arguments: Value) -> Value {
        Qmp::connect(&self.path("2.qmp")).unwrap().run(command, arguments).unwrap()
    }

    fn write(&self, node: &str, pattern: u8, at: u64, length: u64) {
        // By the drive, as a guest would: not below what copies before it writes.
        let line = format!("qemu-io drive-{node} \"write -P {pattern} {at} {length}\"");
        let said = self.run("human-monitor-command", json!({ "command-line": line })).to_string();
        assert!(!said.contains("rror") && !said.contains("ailed"), "{said}");
    }

    fn nodes(&self) -> Vec<Value> {
        let nodes = self.run("query-named-block-nodes", json!({ "flat": true }));
        nodes.as_array().unwrap().clone()
    }

    /// Nothing of ours is there but the one bitmap that counts, on each disk.
    fn is_clear(&self) {
        for list in ["query-jobs", "query-block-exports"] {
            assert_eq!(self.run(list, json!({})), json!([]), "{list}");
        }
        for node in self.nodes() {
            let name = node["node-name"].as_str().unwrap();
            assert!(!name.starts_with("ctm-"), "{name}");
            let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
            let is_ours =
                |bitmap: &&Value| bitmap["name"].as_str().is_some_and(|name| name.starts_with("ctm-"));
            let is_disk = name == "a" || name == "b";
            assert_eq!(bitmaps.iter().filter(is_ours).count(), usize::from(is_disk), "{node}");
        }
        let left: Vec<_> = std::fs::read_dir(self.path("scratch")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A whole cycle: what changed on each disk, and the byte at `at` in each view.
fn cycle(tracker: &mut KvmTracker, at: u64) -> (Vec<Changed>, Vec<u8>) {
    let Frozen { disks, .. } = tracker.freeze(false).unwrap();
    let byte = |view: &dyn continuum_capture::interval::FrozenView| {
        let mut byte = [0];
        view.read(at, &mut byte).unwrap();
        byte[0]
    };
    let seen = disks.iter().map(|disk| byte(&*disk.view)).collect();
    tracker.forget().unwrap();
    tracker.check().unwrap();
    let changed = disks.into_iter().map(|disk| disk.changed).collect();
    tracker.end();
    (changed, seen)
}

/// From where to where, in KiB.
fn ranges(changed: &Changed) -> Vec<(u64, u64)> {
    match changed {
        Changed::Ranges(ranges) => {
            let mut ranges: Vec<_> =
                ranges.iter().map(|range| (range.start / KIB, range.end / KIB)).collect();
            ranges.sort_unstable();
            ranges
        }
        Changed::Unknown(why) => panic!("it is known: {why}"),
    }
}

fn reason(changed: &Changed) -> &str {
    match changed {
        Changed::Unknown(why) => why,
        Changed::Ranges(ranges) => panic!("nobody knows: {ranges:?}"),
    }
}

#[test]
fn what_changed_between_two_freezes_is_told_and_views_do_not_change() {
    let qemu = Qemu::new();
    let found = inventory::look(qemu.dir.path()).unwrap();
    let told = found.iter().find(|found| found.monitor.ends_with("1.qmp")).unwrap().told.clone().unwrap();
    assert_eq!((told.name.as_str(), told.status.as_str()), ("quiet", "prelaunch"));
    let mut tracker = qemu.tracker();
    assert_eq!(tracker.sizes().unwrap(), [8 << 20, 8 << 20]);
    qemu.write("a", 1, 0, 4 * KIB);
    let frozen = tracker.freeze(false).unwrap();
    assert_eq!(frozen.consistency, Consistency::Crash(None));
    assert!(frozen.disks.iter().all(|disk| reason(&disk.changed).contains("followed so far")));
    // What is written now is not in the view, and is told next time.
    qemu.write("a", 2, 0, 4 * KIB);
    qemu.write("b", 3, 1024 * KIB, 128 * KIB);
    let mut bytes = vec![0; 64 << 10];
    frozen.disks[0].view.read(0, &mut bytes).unwrap();
    assert!(bytes[..4096].iter().all(|byte| *byte == 1) && bytes[4096..].iter().all(|byte| *byte == 0));
    frozen.disks[1].view.read(1 << 20, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    // What was never written need not be read.
    let mut extents = Vec::new();
    frozen.disks[0].view.extents(0, 8 << 20, &mut extents).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), 8 << 20);
    assert!(extents.iter().filter(|extent| extent.data).map(|extent| extent.length).sum::<u64>() <= 64 * KIB);
    tracker.forget().unwrap();
    drop(frozen);
    tracker.end();
    qemu.is_clear();
    let (changed, seen) = cycle(&mut tracker, 0);
    assert_eq!(ranges(&changed[0]), [(0, 64)]);
    assert_eq!(ranges(&changed[1]), [(1024, 1152)]);
    assert_eq!(seen, [2, 0]);
    assert!(
        cycle(&mut tracker, 0).0.iter().all(|changed| ranges(changed).is_empty()),
        "nothing happened since"
    );
    // A cycle that is cut before its changes are durable comes again, with what happened since.
    qemu.write("a", 4, 640 * KIB, 1);
    let frozen = tracker.freeze(false).unwrap();
    assert_eq!(ranges(&frozen.disks[0].changed), [(640, 704)]);
    drop(frozen);
    tracker.end();
    qemu.write("a", 5, 2048 * KIB, 1);
    let (changed, _) = cycle(&mut tracker, 0);
    assert_eq!(ranges(&changed[0]), [(640, 704), (2048, 2112)]);
    qemu.is_clear();
}

#[test]
fn what_a_killed_process_left_is_cleared_away_and_its_changes_come_again() {
    let qemu = Qemu::new();
    let mut tracker = qemu.tracker();
    cycle(&mut tracker, 0);
    for is_forgotten in [false, true] {
        qemu.write("b", 6, 0, 1);
        let frozen = tracker.freeze(false).unwrap();
        if is_forgotten {
            tracker.forget().unwrap();
        }
        drop((frozen, tracker));
        let exports = qemu.run("query-block-exports", json!({}));
        assert_eq!(exports.as_array().unwrap().len(), 2, "it left them");
        qemu.write("b", 7, 1024 * KIB, 1);
        tracker = qemu.tracker();
        let (changed, seen) = cycle(&mut tracker, 1024 * KIB);
        let since = (1024, 1088);
        assert_eq!(ranges(&changed[1]), if is_forgotten { vec![since] } else { vec![(0, 64), since] });
        assert_eq!(seen[1], 7);
        qemu.is_clear();
    }
}

#[test]
fn lost_bitmaps_are_doubt_and_stored_ones_are_not() {
    let mut qemu = Qemu::new();
    let mut tracker = qemu.tracker();
    cycle(&mut tracker, 0);
    // Removed by somebody.
    let nodes = qemu.nodes();
    let node = nodes.iter().find(|node| node["node-name"] == "a").unwrap();
    let name = &node["dirty-bitmaps"][0]["name"];
    qemu.run("block-dirty-bitmap-remove", json!({ "node": "a", "name": name }));
    let (changed, _) = cycle(&mut tracker, 0);
    assert!(reason(&changed[0]).contains("the bitmap of a is gone"));
    assert!(ranges(&changed[1]).is_empty());
    // QEMU ends in good order: the qcow2 image keeps it, the raw one cannot.
    qemu.write("a", 8, 0, 1);
    qemu.run("quit", json!({}));
    qemu.process.wait().unwrap();
    assert!(tracker.freeze(false).is_err(), "there is no QEMU");
    qemu.process = Qemu::start(qemu.dir.path());
    let (changed, seen) = cycle(&mut tracker, 0);
    assert_eq!(ranges(&changed[0]), [(0, 64)]);
    assert!(reason(&changed[1]).contains("started again"));
    assert_eq!(seen[0], 8);
    // It is killed: nothing was stored.
    qemu.write("a", 9, 0, 1);
    qemu.process.kill().unwrap();
    qemu.process.wait().unwrap();
    qemu.process = Qemu::start(qemu.dir.path());
    let (changed, _) = cycle(&mut tracker, 0);
    assert!(reason(&changed[0]).contains("the bitmap of a is"), "{changed:?}");
    qemu.is_clear();
    // Whoever lost the folder knows nothing of this machine, whatever stands in its image.
    std::fs::remove_file(qemu.path("agent/tracking")).unwrap();
    drop(tracker);
    assert!(reason(&cycle(&mut qemu.tracker(), 0).0[0]).contains("followed so far"));
}
