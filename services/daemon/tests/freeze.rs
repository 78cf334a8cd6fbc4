//! File systems on loop devices are frozen by one process and thawed by another, the real one: in good order, after
//! the freezer was killed, after the limit.

use continuum_capture::freeze::{FreezeError, Frozen, Watchdog, freeze};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// Long enough for anything here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A limit that no test waits for.
const LONG: Duration = Duration::from_secs(300);
/// Tells the process that is killed what to freeze.
const FREEZER: &str = "FREEZE_TEST_FREEZER";

/// A mounted file system on a loop device, gone when dropped.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(kind: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests mount file systems: run them as root");
        let mounted = Self(tempfile::tempdir().unwrap());
        let image = mounted.0.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", image.to_str().unwrap()]);
        std::fs::create_dir(mounted.at()).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), mounted.at().to_str().unwrap()]);
        mounted
    }
    fn at(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
    /// Writes to it, from another process; the channel tells when that is done.
    fn write(&self, name: &str) -> Receiver<()> {
        let (done, waiting) = channel();
        let at = self.at().join(name);
        std::thread::spawn(move || {
            run("dd", &["if=/dev/zero", &format!("of={}", at.display()), "bs=4k", "count=1", "conv=fsync"]);
            done.send(()).unwrap();
        });
        waiting
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[self.at().to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

fn watchdog() -> Watchdog {
    Watchdog { program: env!("CARGO_BIN_EXE_continuumd").into(), arguments: vec![Watchdog::VERB.into()] }
}

fn frozen(mounts: &[&Mounted], limit: Duration) -> Frozen {
    let mounts: Vec<PathBuf> = mounts.iter().map(|mounted| mounted.at()).collect();
    freeze(&mounts, &["/proc".into()], &watchdog(), limit).unwrap()
}

/// A writer that is still waiting after a while in which it would long be done.
fn waits(writer: &Receiver<()>) -> bool {
    writer.recv_timeout(Duration::from_millis(400)) == Err(RecvTimeoutError::Timeout)
}

#[test]
fn writers_wait_for_the_thaw_and_go_on() {
    let (ext4, xfs) = (Mounted::new("ext4"), Mounted::new("xfs"));
    ext4.write("before").recv_timeout(PATIENCE).unwrap();
    let frozen = frozen(&[&ext4, &xfs], LONG);
    let writers = [ext4.write("meanwhile"), xfs.write("meanwhile")];
    assert!(writers.iter().all(waits), "nothing was frozen");
    let thawed = frozen.thaw().unwrap();
    assert!(thawed.held >= Duration::from_millis(400));
    writers.iter().for_each(|writer| writer.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn the_limit_ends_a_freeze_that_nobody_ends_and_that_is_told() {
    let ext4 = Mounted::new("ext4");
    let frozen = frozen(&[&ext4], Duration::from_millis(700));
    let writer = ext4.write("meanwhile");
    assert!(waits(&writer), "nothing was frozen");
    writer.recv_timeout(PATIENCE).expect("the watchdog thaws");
    assert!(matches!(frozen.thaw(), Err(FreezeError::Overdue { .. })));
}

/// Not a test of its own: the process that is killed while it holds a freeze.
#[test]
fn freezer() {
    let Some(mount) = std::env::var_os(FREEZER) else { return };
    let frozen = freeze(&[mount.into()], &["/proc".into()], &watchdog(), LONG).unwrap();
    eprintln!("frozen");
    std::thread::sleep(LONG);
    drop(frozen);
}

#[test]
fn the_death_of_the_freezer_ends_the_freeze() {
    let ext4 = Mounted::new("ext4");
    let mut freezer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "freezer", "--nocapture"])
        .env(FREEZER, ext4.at())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = std::io::BufReader::new(freezer.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("frozen") {
        assert_ne!(std::io::BufRead::read_line(&mut says, &mut said).unwrap(), 0, "it ended: {said}");
    }
    let writer = ext4.write("meanwhile");
    assert!(waits(&writer), "nothing was frozen");
    freezer.kill().unwrap();
    freezer.wait().unwrap();
    writer.recv_timeout(PATIENCE).expect("the watchdog thaws");
}

#[test]
fn what_holds_the_agents_state_or_what_somebody_else_froze_is_refused_and_left_alone() {
    let ext4 = Mounted::new("ext4");
    let state = ext4.at().join("agent/state/not/there/yet");
    let refused = freeze(&[ext4.at()], &[state], &watchdog(), LONG).err().unwrap();
    assert!(matches!(refused, FreezeError::Own { .. }), "{refused}");
    assert!(refused.to_string().contains("would wait for itself"));
    let refused = freeze(&["/proc".into()], &[], &watchdog(), LONG).err().unwrap();
    assert!(matches!(refused, FreezeError::Failed { .. }), "{refused}");

    let other = Mounted::new("ext4");
    let at = other.at();
    run("fsfreeze", &["--freeze", at.to_str().unwrap()]);
    let refused = freeze(&[ext4.at(), other.at()], &["/proc".into()], &watchdog(), LONG).err().unwrap();
    assert!(matches!(refused, FreezeError::Frozen { .. }), "{refused}");
    // Ours was thawed again, theirs was not.
    ext4.write("after").recv_timeout(PATIENCE).unwrap();
    let writer = other.write("meanwhile");
    assert!(waits(&writer), "a freeze of somebody else's was ended");
    run("fsfreeze", &["--unfreeze", at.to_str().unwrap()]);
    writer.recv_timeout(PATIENCE).unwrap();
    assert!(Path::new("/proc").exists());
}
