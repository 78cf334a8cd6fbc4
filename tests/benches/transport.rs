//! What it costs to bring a disk over: the first copy (C3), a comparison after some of it changed (C4), churn that is
//! sustained (C6), and CPU seconds a GiB at each hop (C7); beside nbdcopy (plain and over TLS, between two nbdkits) and
//! rsync with the same data in the same run. Figures are told as they come out, misses too.
//!
//! `cargo bench -p continuum-tests --bench transport`; build `continuum` with the same profile before (`cargo build
//! --release`). Needs nbdkit, nbdcopy, rsync and openssl. `TMPDIR=/dev/shm` takes the disks out of it; an image of
//! `CONTINUUM_BENCH_MIB` (1024), of which a sixth are holes, a third does not compress, the rest does.

use continuum_tests::lab::{Lab, endpoints};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
const BLOCK: u64 = 64 << 10;

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let mib = std::env::var("CONTINUUM_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(1024);
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("image");
    let data = make(&image, mib);
    println!("image of {mib} MiB, {} MiB of it not zero", data / MIB as u64);

    let plain = nbdcopy(dir.path(), &image, None);
    let tls = nbdcopy(dir.path(), &image, Some(&certificates(dir.path())));
    let server = rsync_server(dir.path());
    let sync = rsync(&server, &image, &["-W", "-z", "--compress-choice=zstd", "--compress-level=1"]);
    println!("nbdcopy                    {plain:7.2} s");
    println!("nbdcopy over TLS           {tls:7.2} s   {:.2} × nbdcopy", tls / plain);
    println!("rsync -W -z (zstd 1)       {sync:7.2} s   {:.2} × nbdcopy over TLS", sync / tls);

    let lab = Lab::empty();
    let size = format!("{mib}M");
    assert_eq!(lab.run(&["lab", "add", "vol-01", "--guest", "none", "--disk", &size]).code, 0);
    let uri = endpoints(&lab.machine("vol-01")).remove(0);
    let copied = Command::new("nbdcopy").arg(&image).arg(&uri).status().expect("nbdcopy runs");
    assert!(copied.success());
    let hops = Hops::of(&lab);
    let (before, started) = (hops.seconds(), Instant::now());
    assert_eq!(lab.run(&["protect", "vol-01", "--to", "secondary"]).code, 0, "{}", lab.logs());
    wait(&lab, "protected", |machine| machine["state"] == "protected" && machine["mode"] == "data");
    let took = started.elapsed().as_secs_f64();
    let gib = data as f64 / (1u64 << 30) as f64;
    let journal = journal(&lab);
    println!(
        "C3 first copy, all hops    {took:7.2} s   {:.2} × nbdcopy over TLS (target 1.4), {:.2} × rsync -z (0.7), \
         {:.2} of the bytes (0.55)",
        took / tls,
        took / sync,
        journal as f64 / data as f64
    );
    for ((name, before), (_, after)) in before.iter().zip(hops.seconds()) {
        println!("C7 {name:24}{:7.2} CPU s a GiB", (after - before) / gib);
    }

    for percent in [1, 10] {
        let before = self::journal(&lab);
        let took = compare(&lab, &image, percent);
        let sent = self::journal(&lab) - before;
        let changed = data_blocks(&image) * percent / 100 * BLOCK;
        let sync = rsync(&server, &image, &["--no-whole-file", "--inplace"]);
        println!(
            "C4 {percent:2} % changed, compared  {took:7.2} s   {:.2} × rsync's delta ({sync:.2} s), {:.2} of what changed travelled",
            took / sync,
            sent as f64 / changed.max(1) as f64
        );
    }

    // As fast as nbdcopy can, again and again: what is sustained is what was brought over when it ends.
    let (mut copies, mut left, started) = (0, false, Instant::now());
    let before = hops.seconds();
    while started.elapsed() < Duration::from_secs(15) {
        let copied = Command::new("nbdcopy").arg(&image).arg(&uri).status().expect("nbdcopy runs");
        assert!(copied.success());
        copies += 1;
        left |= lab.machine("vol-01")["mode"] != "data";
    }
    let written = started.elapsed().as_secs_f64();
    wait_equal(&lab);
    let took = started.elapsed().as_secs_f64();
    let megabytes = f64::from(copies) * data as f64 / 1e6;
    println!(
        "C6 churn                   {:7.0} MB/s brought over (target 300), {:.0} MB/s written; data mode {}",
        megabytes / took,
        megabytes / written,
        if left { "was left" } else { "throughout" }
    );
    for ((name, before), (_, after)) in before.iter().zip(hops.seconds()) {
        println!("C7 {name:24}{:7.2} CPU s a GiB of churn", (after - before) / (gib * f64::from(copies)));
    }
}

/// Holes, noise and what looks like text, in stretches of 1 MiB. Returns how many bytes are no holes.
fn make(path: &Path, mib: usize) -> u64 {
    let file = File::create(path).expect("an image");
    file.set_len((mib * MIB) as u64).expect("its size");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut data = 0;
    for at in 0..mib {
        let mut stretch = vec![0; MIB];
        match at % 6 {
            0 => continue,
            1 | 2 => rng.fill_bytes(&mut stretch),
            _ => {
                // Words out of a thousand, as a log has them.
                let mut at = 0;
                while at + 16 <= MIB {
                    let word = rng.random_range(0..1000u32);
                    stretch[at..at + 16].copy_from_slice(
                        format!("{word:04} request  ").as_bytes().get(..16).unwrap_or(&[32; 16]),
                    );
                    at += 16;
                }
            }
        }
        file.write_all_at(&stretch, (at * MIB) as u64).expect("it is written");
        data += MIB as u64;
    }
    data
}

fn data_blocks(image: &Path) -> u64 {
    image.metadata().map_or(0, |file| file.len() / BLOCK)
}

/// Changes one block of so many, in the image and wherever else it lies.
fn change(paths: &[&Path], percent: u64) {
    let blocks = data_blocks(paths[0]);
    let every = 100 / percent;
    for path in paths {
        let mut rng = ChaCha8Rng::seed_from_u64(percent);
        let file = File::options().write(true).open(path).expect("an image");
        for block in (0..blocks).step_by(every as usize) {
            let mut bytes = vec![0; BLOCK as usize];
            rng.fill_bytes(&mut bytes);
            file.write_all_at(&bytes, block * BLOCK).expect("it is written");
        }
    }
}

/// Some of the disk changes behind the agent's back; how long it takes until both sides are known to be equal.
fn compare(lab: &Lab, image: &Path, percent: u64) -> f64 {
    let all = files(lab.dir());
    let named = |name: &str| all.iter().find(|path| path.ends_with(name)).expect("a file of the agent's");
    lab.signal("agent", "vol-01", Signal::STOP);
    change(&[image, named("disk0.img")], percent);
    std::fs::remove_file(named("progress")).expect("it is removed");
    let started = Instant::now();
    lab.end("agent", "vol-01", Signal::KILL);
    wait_equal(lab);
    started.elapsed().as_secs_f64()
}

fn wait(lab: &Lab, why: &str, check: impl Fn(&serde_json::Value) -> bool) {
    lab.wait_for(why, Duration::from_secs(600), |lab| check(&lab.machine("vol-01")));
}

fn wait_equal(lab: &Lab) {
    lab.wait_for("both sides are equal", Duration::from_secs(600), |lab| {
        let verified = lab.run(&["verify", "vol-01", "-o", "json"]);
        verified.code == 0
            && verified.json()["disks"]
                .as_array()
                .is_some_and(|disks| !disks.is_empty() && disks.iter().all(|disk| disk["equal"] == true))
    });
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

/// Bytes of the replica's journal: all that travelled, as it is kept.
fn journal(lab: &Lab) -> u64 {
    let in_journal = |path: &PathBuf| path.parent().is_some_and(|folder| folder.ends_with("journal"));
    files(lab.dir())
        .iter()
        .filter(|path| in_journal(path))
        .map(|path| path.metadata().map_or(0, |f| f.len()))
        .sum()
}

/// The processes that a write passes through.
struct Hops(Vec<(&'static str, i32)>);

impl Hops {
    fn of(lab: &Lab) -> Self {
        let roles =
            [("agent", "agent"), ("process server", "process-server"), ("master target", "master-target")];
        let processes = lab.processes();
        let pid = |role: &str| processes.iter().find(|process| process.0 == role).map(|process| process.2);
        Self(roles.iter().filter_map(|(name, role)| Some((*name, pid(role)?))).collect())
    }
    /// CPU seconds of each so far. One that was started again counts from then.
    fn seconds(&self) -> Vec<(&'static str, f64)> {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let of = |pid: i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let field = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            (field(11) + field(12)) / ticks
        };
        self.0.iter().map(|(name, pid)| (*name, of(*pid))).collect()
    }
}

fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn listening(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nobody listens at {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn quiet(command: &mut Command) -> Service {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    Service(command.spawn().expect("it is installed"))
}

/// Seconds that nbdcopy takes from one nbdkit to another over TCP.
fn nbdcopy(dir: &Path, image: &Path, certificates: Option<&Path>) -> f64 {
    let (from, to, copy) = (port(), port(), dir.join("nbdcopy.out"));
    let size = image.metadata().expect("an image").len();
    File::create(&copy).and_then(|file| file.set_len(size)).expect("a copy");
    let serve = |port: u16, path: &Path| {
        let mut command = Command::new("nbdkit");
        command.args(["-f", "-i", "127.0.0.1", "-p", &port.to_string()]);
        if let Some(folder) = certificates {
            command.arg("--tls=require").arg(format!("--tls-certificates={}", folder.display()));
        }
        quiet(command.arg("file").arg(path))
    };
    let _servers = [serve(from, image), serve(to, &copy)];
    listening(from);
    listening(to);
    let uri = |port: u16| match certificates {
        Some(folder) => format!("nbds://localhost:{port}/?tls-certificates={}", folder.display()),
        None => format!("nbd://127.0.0.1:{port}/"),
    };
    let started = Instant::now();
    let done =
        Command::new("nbdcopy").args(["--flush", "--destination-is-zero", &uri(from), &uri(to)]).status();
    assert!(done.expect("nbdcopy runs").success());
    started.elapsed().as_secs_f64()
}

/// A CA and a certificate of this host, as GnuTLS wants them named.
fn certificates(dir: &Path) -> PathBuf {
    let folder = dir.join("pki");
    std::fs::create_dir(&folder).expect("a folder");
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca-key.pem -out ca-cert.pem && \
                  openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server-key.pem -out s.csr && \
                  printf 'subjectAltName=DNS:localhost' > ext && \
                  openssl x509 -req -in s.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 2 \
                  -extfile ext -out server-cert.pem";
    let done = Command::new("sh").args(["-c", script]).current_dir(&folder).stderr(Stdio::null()).status();
    assert!(done.expect("openssl runs").success());
    folder
}

/// An rsync daemon over a folder.
struct Rsync(#[expect(dead_code, reason = "it is ended when this is dropped")] Service, u16);

fn rsync_server(dir: &Path) -> Rsync {
    let (port, folder, config) = (port(), dir.join("rsync"), dir.join("rsyncd.conf"));
    std::fs::create_dir(&folder).expect("a folder");
    let text =
        format!("use chroot = no\n[x]\npath = {}\nread only = no\nuid = 0\ngid = 0\n", folder.display());
    std::fs::write(&config, text).expect("a file");
    let mut command = Command::new("rsync");
    command.args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")]);
    let service = quiet(command.arg(format!("--config={}", config.display())));
    listening(port);
    Rsync(service, port)
}

/// Seconds that rsync takes to bring the image over.
fn rsync(server: &Rsync, image: &Path, options: &[&str]) -> f64 {
    let started = Instant::now();
    let mut command = Command::new("rsync");
    command.args(options).arg("--ignore-times").arg(image);
    let done = command.arg(format!("rsync://127.0.0.1:{}/x/", server.1)).status();
    assert!(done.expect("rsync runs").success());
    started.elapsed().as_secs_f64()
}
