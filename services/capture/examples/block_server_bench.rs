//! The block server beside nbdkit's file plugin, in one run on the same data: random writes over a Unix socket.
//!
//! `cargo run --release -p continuum-capture --example block_server_bench [seconds per row] [folder] [state]`
//!
//! Rows: nbdkit · our server on a plain disk (C1) · our server with the splitter, whose feed a target in this
//! process takes, checks and acknowledges (C2 without a network), without an activity log and with one. The folder
//! should be in memory: what is compared is the servers, not the disk. The folder of the agent's state should not:
//! there the log waits for syncs. One client for all, written for this.
//!
//! Hot rows write all over 1 GiB, all of which can be active; wide ones over 64 GiB: hardly anything they write to is
//! active, and each write waits for a record, which is shared by those that wait at the same time.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Client, Endpoint, WRITE};
use continuum_capture::block_server::{BlockServer, Listen, PlainDisk};
use continuum_capture::nbd::Server;
use continuum_capture::source::{Source, SourceConfig, SourceSpec};
use continuum_capture::{FileDisk, Next, ReplicaState};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber, Sequence};
use continuum_model::world::{SystemClock, SystemEntropy};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const HOT: u64 = 1 << 30;
const WIDE: u64 = 64 << 30;

/// Operations a second, and the 50th and 99th percentile of their latency.
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

fn load(
    (endpoint, export): (&Endpoint, &str),
    bytes: u64,
    (size, depth): (usize, usize),
    span: Duration,
) -> Figures {
    let mut client = Client::connect(endpoint, export, true).expect("the server answers");
    let data = vec![0xa5; size];
    // Other places in every turn: what a turn made active does not help the next one.
    static TURN: AtomicU64 = AtomicU64::new(1);
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let mut state = 88_172_645_463_325_252u64.wrapping_mul(2 * turn + 1);
    let mut place = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (bytes / size as u64) * size as u64
    };
    let mut sent = std::collections::HashMap::new();
    let mut latencies = Vec::new();
    let started = Instant::now();
    loop {
        let over = started.elapsed() >= span;
        while !over && sent.len() < depth {
            let now = Instant::now();
            let cookie =
                client.send(WRITE, 0, place(), size as u32, &data).expect("the server takes requests");
            sent.insert(cookie, now);
        }
        if sent.is_empty() {
            break;
        }
        let (cookie, outcome) = client.receive().expect("the server replies");
        outcome.expect("the disk takes writes");
        if let Some(at) = sent.remove(&cookie) {
            latencies.push(at.elapsed());
        }
    }
    latencies.sort_unstable();
    Figures {
        per_second: latencies.len() as f64 / started.elapsed().as_secs_f64(),
        p50: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
    }
}

struct Nbdkit(Child);

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn disk(path: &Path) -> FileDisk {
    let disk = FileDisk::open_or_create(path, WIDE).expect("the folder takes a disk");
    // Allocated, so that no hot row pays for making pages.
    let piece = vec![1; 1 << 20];
    for at in 0..HOT >> 20 {
        continuum_capture::SourceDisk::write(&disk, at << 20, &piece).expect("the folder has room");
    }
    disk
}

/// A source of one disk, and its server.
fn split(disk_path: &Path, state: &Path, logged: bool) -> (Arc<Source>, BlockServer) {
    let id = DiskId::from_bytes([1; 16]);
    std::fs::create_dir_all(state).expect("a folder for the state");
    if !logged {
        // Where nothing can be written no log is kept.
        std::os::unix::fs::symlink("/dev/full", state.join(format!("{id}.active"))).expect("a link");
    }
    let config = SourceConfig {
        machine: MachineId::from_bytes([1; 16]),
        dir: state.to_owned(),
        disks: vec![SourceSpec { id, disk: Box::new(disk(disk_path)) }],
    };
    let source = Arc::new(
        Source::open(config, Arc::new(SystemClock::default()), &mut SystemEntropy).expect("a source"),
    );
    assert_eq!(source.status().faults.is_empty(), logged);
    let socket = disk_path.with_extension("socket");
    let server = BlockServer::start(source.clone(), &Listen::Unix(socket), &["disk"]).expect("a socket");
    (source, server)
}

fn take(source: &Source, stop: &AtomicBool) {
    let mut state = ReplicaState {
        number: FrameNumber(0),
        digest: 0,
        sequence: Sequence(0),
        newest: Timestamp::from_micros(0),
    };
    while !stop.load(Ordering::Acquire) {
        let (_, stretch) = source.connect(Epoch(1), state).expect("a source that is not halted");
        loop {
            match source.next_frame(stretch, state.number, Duration::from_millis(50)) {
                Next::Frame(envelope) => {
                    state = ReplicaState {
                        number: envelope.head.identity.number,
                        digest: envelope.head.digest,
                        sequence: envelope.head.last_sequence(),
                        newest: envelope.head.last_time,
                    };
                    source.acknowledged(state.number).expect("it was sent");
                }
                Next::Idle if stop.load(Ordering::Acquire) => return,
                Next::Idle => {}
                Next::Reset => break,
            }
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let span = Duration::from_secs_f64(arguments.next().and_then(|span| span.parse().ok()).unwrap_or(2.0));
    let parent = arguments.next().map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::tempdir_in(parent).expect("a folder to work in");
    let state = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let state = tempfile::tempdir_in(state).expect("a folder for the state");
    let path = |name: &str| dir.path().join(name);

    drop(disk(&path("nbdkit-disk")));
    let socket = path("nbdkit");
    let child = Command::new("nbdkit")
        .args(["-f", "-U"])
        .arg(&socket)
        .arg("file")
        .arg(path("nbdkit-disk"))
        .stdout(Stdio::null())
        .spawn()
        .expect("nbdkit must be installed to compare with");
    let _nbdkit = Nbdkit(child);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        std::thread::yield_now();
    }

    let plain = Server::on_unix(&path("plain")).expect("a socket");
    let served = PlainDisk::new(Box::new(disk(&path("plain-disk"))), false).expect("a disk");
    plain.export("disk", Arc::new(served));

    let (unlogged, unlogged_server) = split(&path("unlogged"), &state.path().join("unlogged"), false);
    let (logged, logged_server) = split(&path("logged"), &state.path().join("logged"), true);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for source in [&unlogged, &logged] {
            scope.spawn(|| take(source, &stop));
            while source.status().mode != continuum_model::health::Mode::Data {
                std::thread::park_timeout(Duration::from_millis(10));
            }
        }
        println!(
            "{:<14} {:<12} {:>9} {:>9} {:>9} {:>7} {:>7}",
            "writes", "server", "ops/s", "p50 µs", "p99 µs", "ratio", "p99"
        );
        let servers = [
            ("nbdkit", (&Endpoint::Unix(socket.clone()), "")),
            ("plain", (plain.endpoint(), "disk")),
            ("splitter", (unlogged_server.endpoint(), "disk")),
            ("with log", (logged_server.endpoint(), "disk")),
        ];
        let rows = [
            ("hot", HOT, (4096, 1)),
            ("hot", HOT, (4096, 16)),
            ("hot", HOT, (65536, 16)),
            ("wide", WIDE, (4096, 1)),
            ("wide", WIDE, (4096, 16)),
        ];
        for (name, bytes, (size, depth)) in rows {
            // In turns; the better one of each counts: the machine has other work.
            let mut best = servers.map(|_| None::<Figures>);
            for _ in 0..3 {
                for (at, (_, server)) in servers.iter().enumerate() {
                    let figures = load(*server, bytes, (size, depth), span / 3);
                    if best[at].as_ref().is_none_or(|best| best.per_second < figures.per_second) {
                        best[at] = Some(figures);
                    }
                }
            }
            let peer = best[0].as_ref().map_or((1.0, 1.0), |it| (it.per_second, it.p99.as_secs_f64()));
            for ((server, _), figures) in servers.iter().zip(&best) {
                let Some(figures) = figures else { continue };
                println!(
                    "{:<14} {server:<12} {:>9.0} {:>9.1} {:>9.1} {:>7.2} {:>7.2}",
                    format!("{name} {}K x{depth}", size / 1024),
                    figures.per_second,
                    figures.p50.as_secs_f64() * 1e6,
                    figures.p99.as_secs_f64() * 1e6,
                    figures.per_second / peer.0,
                    figures.p99.as_secs_f64() / peer.1,
                );
            }
        }
        for source in [&unlogged, &logged] {
            let status = source.status();
            println!(
                "mode {} {}, active {} MiB",
                status.mode.name(),
                status.reason,
                status.active_bytes >> 20
            );
        }
        stop.store(true, Ordering::Release);
    });
}
