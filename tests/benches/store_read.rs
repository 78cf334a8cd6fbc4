//! How fast a view of fragmented history is opened and read, beside a plain file of the same content.
//!
//! A disk of 256 MiB (`CONTINUUM_BENCH_MIB`) of half-compressible data: the first copy in the base, then half as
//! many bytes again in random writes of 4–64 KiB, in zstd frames of 1 MiB. The peers are a read
//! of a plain file, and `nbdkit file` where it is installed, copied and read by the same clients in the same run.
//! Run with `cargo bench -p continuum-tests --bench store_read` (rows R3, R4 and R5 of the targets).

use continuum_capture::nbd::{BlockDevice, Extent, Server};
use continuum_fabric::nbd::{Client, Uri};
use continuum_model::units::Sequence;
use continuum_replica::View;
use continuum_tests::feed::{DISK, Feed};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let mib: u64 =
        std::env::var("CONTINUUM_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(256);
    let size = mib << 20;
    let dir = tempfile::tempdir().expect("a folder");
    let mut feed = Feed::new(dir.path(), size);
    feed.first_copy();
    let copied = feed.frames.moment();
    while feed.store.fold(copied, None).expect("it folds") {}
    let before = Instant::now();
    let written = feed.random_writes(size / 2);
    println!(
        "history: {written} records, {:.0} MiB stored; appended in {:.2} s",
        feed.store.state().history_bytes as f64 / 1_048_576.0,
        before.elapsed().as_secs_f64()
    );
    let plain = dir.path().join("plain");
    std::fs::write(&plain, &feed.disk).expect("a plain file");
    open_views(&feed);
    sequential(&feed, &plain);
    random(&feed, &plain);
    over_nbd(feed, &plain, dir.path());
}

/// R3: the first read at any moment; then at a neighbouring one.
fn open_views(feed: &Feed) {
    let mut out = vec![0; 65_536];
    let newest = feed.store.state().last.sequence;
    let mut took = Vec::new();
    for back in [0, 1, 1000, 2000] {
        let before = Instant::now();
        let view = feed.store.open_view(Sequence(newest.0 - back)).expect("a view");
        view.read_at(DISK, 0, &mut out).expect("it reads");
        took.push(format!("{:.2} ms", before.elapsed().as_secs_f64() * 1e3));
    }
    println!("R3 open and first read, cold, then neighbours: {}", took.join(", "));
}

/// R4 without the protocol: a whole pass, beside the same pass over a plain file.
fn sequential(feed: &Feed, plain: &Path) {
    let mut out = vec![0; 256 << 10];
    let mut pass = |view: &View| {
        let before = Instant::now();
        for offset in (0..feed.size).step_by(out.len()) {
            view.read_at(DISK, offset, &mut out).expect("it reads");
            assert!(out == feed.disk[offset as usize..][..out.len()], "what is read is what was written");
        }
        before.elapsed()
    };
    let cold = pass(&feed.view());
    let warm_view = feed.view();
    pass(&warm_view);
    let warm = pass(&warm_view);
    let mut file = File::open(plain).expect("it opens");
    let mut buffer = vec![0; 256 << 10];
    let before = Instant::now();
    for offset in (0..feed.size as usize).step_by(buffer.len()) {
        file.read_exact(&mut buffer).expect("it reads");
        assert!(buffer == feed.disk[offset..][..buffer.len()]);
    }
    let file = before.elapsed();
    println!(
        "R4 sequential pass: new view {} ({:.2} ×), again {} ({:.2} ×), plain file {}",
        rate(feed.size, cold),
        file.as_secs_f64() / cold.as_secs_f64(),
        rate(feed.size, warm),
        file.as_secs_f64() / warm.as_secs_f64(),
        rate(feed.size, file)
    );
}

/// R5 without the protocol.
fn random(feed: &Feed, plain: &Path) {
    let view = feed.view();
    let file = File::open(plain).expect("it opens");
    let mut out = [0; 4096];
    let mut one = |read: &mut dyn FnMut(u64, &mut [u8])| {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut took: Vec<Duration> = (0..20_000)
            .map(|_| {
                let offset = rng.random_range(0..feed.size / 4096) * 4096;
                let before = Instant::now();
                read(offset, &mut out);
                before.elapsed()
            })
            .collect();
        took.sort_unstable();
        (took[took.len() / 2], took[took.len() * 99 / 100])
    };
    let mut through = |offset: u64, out: &mut [u8]| view.read_at(DISK, offset, out).expect("it reads");
    one(&mut through);
    let ours = one(&mut through);
    let theirs = one(&mut |offset, out| file.read_exact_at(out, offset).expect("it reads"));
    println!(
        "R5 random 4 KiB, warm: view p50 {:?} p99 {:?}; plain file p50 {:?} p99 {:?}",
        ours.0, ours.1, theirs.0, theirs.1
    );
}

/// R4 and R5 over NBD, beside `nbdkit file`. The store is opened anew: nothing of it is in the cache at first.
fn over_nbd(feed: Feed, plain: &Path, dir: &Path) {
    let socket = dir.join("view.sock");
    let server = Server::on_unix(&socket).expect("it serves");
    let size = feed.size;
    let view = feed.opened_anew().view();
    server.export("0", Arc::new(Served { view, size }));
    let theirs = dir.join("nbdkit.sock");
    let Ok(nbdkit) =
        Command::new("nbdkit").args(["-f", "-r", "-U"]).arg(&theirs).arg("file").arg(plain).spawn()
    else {
        println!("nbdkit is not installed: no peer over NBD");
        return;
    };
    let _nbdkit = Killed(nbdkit);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !theirs.exists() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let uris = [
        format!("nbd+unix:///0?socket={}", socket.display()),
        format!("nbd+unix:///?socket={}", theirs.display()),
    ];
    let copy = |uri: &String| {
        let before = Instant::now();
        let done = Command::new("nbdcopy").args([uri, "null:"]).status().expect("nbdcopy runs");
        assert!(done.success(), "nbdcopy from {uri}");
        before.elapsed()
    };
    // In turns: what else the machine does is done to both.
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        ours.push(copy(&uris[0]));
        theirs.push(copy(&uris[1]));
    }
    let cold = ours.remove(0);
    theirs.sort_unstable();
    ours.sort_unstable();
    println!(
        "R4 nbdcopy: view, nothing in the cache {} ({:.2} ×), again {} ({:.2} ×), nbdkit file {}",
        rate(size, cold),
        theirs[1].as_secs_f64() / cold.as_secs_f64(),
        rate(size, ours[1]),
        theirs[1].as_secs_f64() / ours[1].as_secs_f64(),
        rate(size, theirs[1])
    );
    let mut figures = Vec::new();
    for uri in &uris {
        let uri = Uri::parse(uri).expect("an address");
        let mut client = Client::connect(&uri, Duration::from_secs(10)).expect("it connects");
        let mut out = [0; 4096];
        let mut took = Vec::new();
        for round in 0..2 {
            let mut rng = ChaCha8Rng::seed_from_u64(6);
            took.clear();
            for _ in 0..20_000 / (2 - round) {
                let offset = rng.random_range(0..size / 4096) * 4096;
                let before = Instant::now();
                client.read(offset, &mut out).expect("it reads");
                took.push(before.elapsed());
            }
        }
        took.sort_unstable();
        figures.push((took[took.len() / 2], took[took.len() * 99 / 100]));
    }
    let times = |ours: Duration, theirs: Duration| ours.as_secs_f64() / theirs.as_secs_f64();
    println!(
        "R5 random 4 KiB over NBD, warm: view p50 {:?} p99 {:?}, nbdkit file p50 {:?} p99 {:?}: {:.2} × / {:.2} ×",
        figures[0].0,
        figures[0].1,
        figures[1].0,
        figures[1].1,
        times(figures[0].0, figures[1].0),
        times(figures[0].1, figures[1].1)
    );
}

fn rate(bytes: u64, took: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / took.as_secs_f64() / 1e6)
}

struct Served {
    view: View,
    size: u64,
}

impl BlockDevice for Served {
    fn size(&self) -> u64 {
        self.size
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.view.read_at(DISK, offset, out).map_err(std::io::Error::other)
    }
    fn write(&self, _: u64, _: &[u8], _: bool) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> std::io::Result<()> {
        Err(std::io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> std::io::Result<()> {
        let runs = self.view.extents(DISK, offset, length).map_err(std::io::Error::other)?;
        out.extend(runs.into_iter().map(|(length, data)| Extent { length, data }));
        Ok(())
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
