//! Process guests on disks that nbdkit serves: killed at any time, cut off, brought up on a copy.

use continuum_fabric::compute::{Compute, GuestDisk, GuestRecord, GuestSettings, GuestSpec, Probe};
use continuum_fabric::lab::LabCompute;
use continuum_fabric::lab::vitals::{self, State, Until, Vitals};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// One served disk. Killed when dropped.
struct Served {
    child: Child,
    file: PathBuf,
    socket: PathBuf,
}

impl Served {
    fn start(file: &Path, socket: &Path) -> Self {
        let _ = std::fs::remove_file(socket);
        let child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(socket)
            .arg("file")
            .arg(file)
            .stdin(Stdio::null())
            .spawn()
            .expect("nbdkit is installed (apt-get install nbdkit)");
        // nbdkit has no way to tell that it listens other than listening.
        for _ in 0..500 {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, file: file.to_owned(), socket: socket.to_owned() }
    }
    fn disk(&self, name: &str) -> GuestDisk {
        GuestDisk { name: name.into(), uri: format!("nbd+unix:///?socket={}", self.socket.display()) }
    }
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Rig {
    dir: tempfile::TempDir,
    compute: LabCompute,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ct-guest-").tempdir().unwrap();
        let compute = Self::compute(dir.path());
        Self { dir, compute }
    }
    fn compute(dir: &Path) -> LabCompute {
        LabCompute::new(env!("CARGO_BIN_EXE_continuum-guest"), dir.join("guests"), dir.join("run"))
    }
    fn serve(&self, name: &str) -> Served {
        let file = self.dir.path().join(format!("{name}.disk"));
        if !file.exists() {
            std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        }
        Served::start(&file, &self.dir.path().join(format!("{name}.sock")))
    }
    fn spec(&self, id: &str, disks: Vec<GuestDisk>) -> GuestSpec {
        let settings = GuestSettings {
            writes_per_second: 400,
            acknowledged: Some(self.dir.path().join("acknowledged")),
            ..GuestSettings::default()
        };
        let (id, name, kind) = (id.into(), "web-01".into(), "process".into());
        GuestSpec { id, name, kind, disks, isolated: false, replica: false, settings }
    }
    /// The newest transaction whose acknowledgement was written down.
    fn acknowledged(&self) -> u64 {
        let text = std::fs::read_to_string(self.dir.path().join("acknowledged")).unwrap_or_default();
        // The last line may be cut: only whole lines count.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().last().map_or(0, |line| line.parse().unwrap())
    }
}

fn ask(guest: &GuestRecord, until: Until) -> Vitals {
    vitals::ask(&guest.socket, &until, LIMIT).unwrap()
}
fn past(guest: &GuestRecord, sequence: u64) -> Vitals {
    let vitals = ask(guest, Until::Past { sequence, within_ms: 20_000 });
    assert!(vitals.sequence > sequence, "{vitals:?}");
    vitals
}
#[track_caller]
fn assert_passed(probes: &[Probe]) {
    assert!(probes.iter().all(|probe| probe.passed), "{probes:#?}");
}

#[test]
fn a_guest_killed_at_any_time_finds_everything_it_acknowledged() {
    for disks in [1, 2] {
        let rig = Rig::new();
        let served: Vec<Served> = (0..disks).map(|disk| rig.serve(&format!("d{disk}"))).collect();
        let uris: Vec<GuestDisk> = served.iter().map(|disk| disk.disk("data")).collect();
        let spec = rig.spec("own", uris);
        for round in 1..=4u64 {
            let before = rig.acknowledged();
            let guest = rig.compute.start(&spec).unwrap();
            assert_passed(&rig.compute.probe(&guest, LIMIT));
            let up = past(&guest, before + round * 7);
            assert_eq!((up.boots, up.state, up.consistent), (round, State::Running, Some(true)));
            assert!(up.recovered >= before, "{before} were acknowledged, {} are there", up.recovered);
            let process = guest.process.clone().unwrap();
            assert!(process.signal(Signal::KILL).unwrap(), "the fault fired");
            assert!(process.wait(LIMIT).unwrap());
            assert!(!rig.compute.is_running(&guest));

            // On a copy it is a machine of its own that goes on, and the original is not touched.
            let copies: Vec<Served> = served
                .iter()
                .enumerate()
                .map(|(at, disk)| {
                    std::fs::copy(&disk.file, rig.dir.path().join(format!("copy{at}.disk"))).unwrap();
                    rig.serve(&format!("copy{at}"))
                })
                .collect();
            let acknowledged = rig.acknowledged();
            let mut replica = rig.spec("copy", copies.iter().map(|disk| disk.disk("data")).collect());
            (replica.replica, replica.settings.acknowledged) = (true, None);
            let copy = rig.compute.start(&replica).unwrap();
            assert_passed(&rig.compute.probe(&copy, LIMIT));
            let vitals = past(&copy, acknowledged + 1);
            assert!(
                (acknowledged..=acknowledged + 1).contains(&vitals.recovered),
                "{acknowledged}: {vitals:?}"
            );
            rig.compute.stop(&copy, LIMIT).unwrap();
        }
    }
}

#[test]
fn a_guest_survives_its_disk_going_away_and_leaves_nothing_behind() {
    let rig = Rig::new();
    let mut served = rig.serve("d");
    let guest = rig.compute.start(&rig.spec("g", vec![served.disk("data")])).unwrap();
    let mut newest = past(&guest, 10).sequence;
    for round in 1..4 {
        served.kill();
        let away = loop {
            let vitals = ask(&guest, Until::Now);
            if vitals.state == State::Waiting {
                break vitals;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(away.reason.contains("disk data"), "{}", away.reason);
        served = rig.serve("d");
        let back = past(&guest, away.sequence.max(newest));
        assert_eq!((back.interruptions, back.boots), (round, 1), "the same run of the same machine");
        newest = back.sequence;
    }
    // A second adapter, as after a crash of ours, finds it and starts no other.
    let later = Rig::compute(rig.dir.path());
    let found = later.find("g").unwrap().unwrap();
    assert_eq!(found, guest);
    assert_eq!(later.start(&rig.spec("g", vec![served.disk("data")])).unwrap(), guest);
    later.stop(&found, LIMIT).unwrap();
    later.stop(&found, LIMIT).unwrap();
    assert!(!later.is_running(&found));
    assert_eq!(std::fs::read_dir(rig.dir.path().join("guests")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(rig.dir.path().join("run")).unwrap().count(), 0);
    // Ended in order: nothing to replay at the next start.
    let again = rig.compute.start(&rig.spec("g", vec![served.disk("data")])).unwrap();
    let up = ask(&again, Until::Settled { within_ms: 20_000 });
    assert!(up.recovery.contains(" 0 replayed"), "{}", up.recovery);
    rig.compute.stop(&again, LIMIT).unwrap();
}

#[test]
fn what_cannot_be_a_machine_is_told_and_left_as_it_is() {
    let rig = Rig::new();
    // Never formatted, and a replica may not do that.
    let empty = rig.serve("empty");
    let mut spec = rig.spec("r", vec![empty.disk("data")]);
    spec.replica = true;
    let guest = rig.compute.start(&spec).unwrap();
    let probes = rig.compute.probe(&guest, LIMIT);
    let states: Vec<_> = probes.iter().map(|probe| (probe.name.as_str(), probe.passed)).collect();
    assert_eq!(states, [("heartbeat", true), ("ledger", false), ("writes", false)]);
    assert!(probes[1].detail.contains("never formatted"), "{probes:?}");
    rig.compute.stop(&guest, LIMIT).unwrap();
    assert!(std::fs::read(&empty.file).unwrap().iter().all(|byte| *byte == 0));

    // Rotten where no crash writes: found, and not a byte is written.
    let served = rig.serve("rot");
    let guest = rig.compute.start(&rig.spec("own", vec![served.disk("data")])).unwrap();
    past(&guest, 5);
    rig.compute.stop(&guest, LIMIT).unwrap();
    let mut bytes = std::fs::read(&served.file).unwrap();
    let page = (0..bytes.len()).step_by(4096).rfind(|at| bytes[*at..].starts_with(b"CTPAGE01")).unwrap();
    bytes[page + 2000] ^= 8;
    std::fs::write(&served.file, &bytes).unwrap();
    let guest = rig.compute.start(&spec_of(&rig, &served)).unwrap();
    let probes = rig.compute.probe(&guest, LIMIT);
    assert!(!probes[1].passed && probes[1].detail.contains("damaged"), "{probes:?}");
    assert_eq!(ask(&guest, Until::Now).consistent, Some(false));
    rig.compute.stop(&guest, LIMIT).unwrap();
    assert_eq!(std::fs::read(&served.file).unwrap(), bytes);

    // Nothing runs on it: its disks answer, or do not.
    let mut spec = rig.spec("n", vec![served.disk("a"), empty.disk("b")]);
    spec.kind = "none".into();
    let guest = rig.compute.start(&spec).unwrap();
    assert_passed(&rig.compute.probe(&guest, LIMIT));
    drop(empty);
    let probes = rig.compute.probe(&guest, LIMIT);
    assert_eq!(probes.iter().map(|probe| probe.passed).collect::<Vec<_>>(), [true, false]);
    rig.compute.stop(&guest, LIMIT).unwrap();

    // Neither its kind nor its id can be used to get at something else.
    spec.kind = "\u{1b}[2J".into();
    assert!(!rig.compute.start(&spec).unwrap_err().to_string().contains('\u{1b}'));
    for id in ["", "..", "a/b", "a.b", "\u{1b}"] {
        assert!(rig.compute.find(id).is_err(), "{id:?}");
    }
}

fn spec_of(rig: &Rig, served: &Served) -> GuestSpec {
    rig.spec("own", vec![served.disk("data")])
}

#[test]
fn a_guest_ends_with_whom_it_lives() {
    use rustix::fs::{FlockOperation, flock};
    let rig = Rig::new();
    let served = rig.serve("d");
    let path = rig.dir.path().join("lock");
    let holder = std::fs::File::create(&path).unwrap();
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let compute = Rig::compute(rig.dir.path()).living_with(Some(path));
    let guest = compute.start(&rig.spec("g", vec![served.disk("data")])).unwrap();
    past(&guest, 3);
    drop(holder);
    assert!(guest.process.as_ref().unwrap().wait(LIMIT).unwrap());
    assert!(!compute.is_running(&guest));
    compute.stop(&guest, LIMIT).unwrap();
}

#[test]
fn a_program_that_is_no_guest_is_told_with_its_last_words() {
    let rig = Rig::new();
    let compute = LabCompute::new("/bin/false", rig.dir.path().join("guests"), rig.dir.path().join("run"));
    let error = compute.start(&rig.spec("g", Vec::new())).unwrap_err().to_string();
    assert!(error.contains("did not start") && error.contains("guest.log"), "{error}");
    let compute =
        LabCompute::new("/does/not/exist", rig.dir.path().join("guests"), rig.dir.path().join("run"));
    assert!(compute.start(&rig.spec("g", Vec::new())).unwrap_err().to_string().contains("/does/not/exist"));
}
