//! The block server beside nbdkit's file plugin, in one run on the same data: random writes over a Unix socket.
//!
//! `cargo run --release -p continuum-capture --example block_server_bench [seconds per row] [folder]`
//!
//! Rows: nbdkit · our server on a plain disk (C1) · our server with the splitter, whose feed a target in this
//! process takes, checks and acknowledges (C2 without a network). The folder should be in memory: what is
//! compared is the servers, not the disk. One client for all, written for this.

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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 30;

/// Operations a second, and the 50th and 99th percentile of their latency.
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

fn load(endpoint: &Endpoint, export: &str, size: usize, depth: usize, span: Duration) -> Figures {
    let mut client = Client::connect(endpoint, export, true).expect("the server answers");
    let data = vec![0xa5; size];
    let mut state = 88_172_645_463_325_252u64;
    let mut place = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % (SIZE / size as u64) * size as u64
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
    let disk = FileDisk::open_or_create(path, SIZE).expect("the folder takes a disk");
    // Allocated, so that no row pays for making pages.
    let piece = vec![1; 1 << 20];
    for at in 0..SIZE >> 20 {
        continuum_capture::SourceDisk::write(&disk, at << 20, &piece).expect("the folder has room");
    }
    disk
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

    let config = SourceConfig {
        machine: MachineId::from_bytes([1; 16]),
        dir: path("state"),
        disks: vec![SourceSpec {
            id: DiskId::from_bytes([1; 16]),
            disk: Box::new(disk(&path("split-disk"))),
        }],
    };
    let source = Arc::new(
        Source::open(config, Arc::new(SystemClock::default()), &mut SystemEntropy).expect("a source"),
    );
    let split =
        BlockServer::start(source.clone(), &Listen::Unix(path("split")), &["disk"]).expect("a socket");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| take(&source, &stop));
        while source.status().mode != continuum_model::health::Mode::Data {
            std::thread::park_timeout(Duration::from_millis(10));
        }
        println!(
            "{:<10} {:<12} {:>9} {:>9} {:>9} {:>7}",
            "writes", "server", "ops/s", "p50 µs", "p99 µs", "ratio"
        );
        for (size, depth) in [(4096, 1), (4096, 16), (65536, 16)] {
            // In turns, twice, the better one of each counts: the machine has other work.
            let mut best: Vec<Option<Figures>> = vec![None, None, None];
            for _ in 0..3 {
                let servers = [
                    (&Endpoint::Unix(socket.clone()), ""),
                    (plain.endpoint(), "disk"),
                    (split.endpoint(), "disk"),
                ];
                for (at, (endpoint, export)) in servers.into_iter().enumerate() {
                    let figures = load(endpoint, export, size, depth, span / 3);
                    if best[at].as_ref().is_none_or(|best| best.per_second < figures.per_second) {
                        best[at] = Some(figures);
                    }
                }
            }
            let peer = best[0].as_ref().map_or(1.0, |figures| figures.per_second);
            for (name, figures) in ["nbdkit", "plain", "splitter"].iter().zip(&best) {
                let Some(figures) = figures else { continue };
                println!(
                    "{:<10} {name:<12} {:>9.0} {:>9.1} {:>9.1} {:>7.2}",
                    format!("{}K x{depth}", size / 1024),
                    figures.per_second,
                    figures.p50.as_secs_f64() * 1e6,
                    figures.p99.as_secs_f64() * 1e6,
                    figures.per_second / peer
                );
            }
        }
        let status = source.status();
        println!("mode {} {}", status.mode.name(), status.reason);
        stop.store(true, Ordering::Release);
    });
}
