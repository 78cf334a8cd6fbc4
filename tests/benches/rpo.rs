//! How much of the newest data a recovery would lack, under churn, as the prover's markers tell it.
//!
//! A lab with one machine, written to at 20 MB/s (`CONTINUUM_BENCH_MB`). One writer puts a marker down every
//! few milliseconds. Again and again the newest moment that the recovery site holds is brought up, and the newest
//! marker on it read: the age of that marker, at the time of the order, is a sample. None of Continuum's own
//! counters is used for that; what they tell stands beside it, with the causes of spikes. Then the process server is
//! stopped under the same churn for a while: what a write costs the guest meanwhile, as a ratio, and the peak of the
//! agent's memory. Run with `cargo bench -p continuum-tests --bench rpo`; it builds nothing else, so build
//! `continuum` with the same profile before (`cargo build --release`).

use continuum_fabric::nbd::{Client, Uri};
use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, BLOCK, History, Workload, stamp};
use rustix::process::Signal;
use std::time::Duration;

const SAMPLES: usize = 100;
/// Where the markers are, in blocks: a stretch that is read back at once.
const MARKERS: u64 = 64;
const RUN: u64 = 0x4b0;
/// For how long the process server is stopped.
const PARTITION: Duration = Duration::from_secs(15);

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let rate = std::env::var("CONTINUUM_BENCH_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(20u64);
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["256M"]);
    lab.wait_healthy(1, Duration::from_secs(60));
    let uri = endpoints(&lab.machine("vol-01"))[0].clone();
    let (churn_log, marker_log) = (lab.dir().join("churn"), lab.dir().join("markers"));
    let churn = Workload::new(RUN, &churn_log).expect("a log");
    let markers = Workload::new(RUN, &marker_log).expect("a log");
    let mut window = 0..0;
    let mut samples = std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let blocks = MARKERS + writer * 200_000..MARKERS + (writer + 1) * 200_000;
            let bytes_per_sec = rate * 1_000_000 / 2;
            let writer = Writer { uri: uri.clone(), disk: 0, blocks, bytes_per_sec, seed: 5 + writer };
            let churn = &churn;
            scope.spawn(move || churn.write(&writer).expect("the workload runs"));
        }
        // 4.5 KiB a marker on average: one about every five milliseconds.
        let writer =
            Writer { uri: uri.clone(), disk: 0, blocks: 0..MARKERS, bytes_per_sec: 900_000, seed: 9 };
        let marking = &markers;
        scope.spawn(move || marking.write(&writer).expect("the markers are written"));
        std::thread::sleep(Duration::from_secs(3));
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let asked = oracle::now_us();
            let answer = lab.json(&["test-failover", "vol-01", "--point", "processed"]);
            let (disks, _) = brought_up(&answer);
            let mut image = vec![0; MARKERS as usize * BLOCK];
            Uri::parse(&disks[0])
                .and_then(|uri| Client::connect(&uri, Duration::from_secs(10)))
                .and_then(|mut client| client.read(0, &mut image))
                .expect("the disk is served");
            let newest = image
                .chunks_exact(BLOCK)
                .filter_map(|block| stamp::read(block).ok().flatten())
                .map(|stamp| stamp.sequence)
                .max()
                .expect("a marker");
            samples.push((asked, newest));
            assert_eq!(lab.run(&["cleanup", "vol-01"]).code, 0);
        }
        let partitioned = oracle::now_us();
        lab.signal("process-server", "", Signal::STOP);
        std::thread::sleep(PARTITION);
        lab.signal("process-server", "", Signal::CONT);
        window = partitioned..oracle::now_us();
        lab.wait_healthy(1, Duration::from_secs(120));
        churn.stop();
        markers.stop();
        samples
    });
    let written = History::read(&[&churn_log]).expect("the log of the churn");
    let history = History::read(&[&marker_log]).expect("the log of the markers");
    let issued = |sequence: u64| {
        history.writes.iter().find(|write| write.sequence == sequence).expect("a known marker").issued_us
    };
    // The order itself takes a little: what arrives meanwhile counts for the site, not for us.
    let mut ages: Vec<f64> =
        samples.drain(..).map(|(asked, newest)| (asked - issued(newest)).max(0) as f64 / 1e6).collect();
    ages.sort_by(f64::total_cmp);
    let at = |part: f64| ages[((ages.len() - 1) as f64 * part) as usize];
    let bytes: u64 = written.writes.iter().map(|write| write.blocks * BLOCK as u64).sum();
    let span = written.writes.last().map_or(1, |last| last.issued_us) - written.writes[0].issued_us;
    println!(
        "RPO by markers under {:.1} MB/s ({} MB/s asked for), {SAMPLES} samples: p50 {:.3} s, p99 {:.3} s, max {:.3} s",
        bytes as f64 / span as f64,
        rate,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    let machine = lab.machine("vol-01");
    let told = |key: &str| machine[key].as_f64().map_or_else(|| "-".into(), |value| format!("{value:.3} s"));
    println!(
        "as the vault tells it, the partition included: p50 {}, p99 {}, max {}",
        told("rpo_p50_seconds"),
        told("rpo_p99_seconds"),
        told("rpo_max_seconds")
    );
    for spike in machine["spikes"].as_array().into_iter().flatten() {
        println!("  spike of {} s by {}: {}", spike["worst_seconds"], spike["hop"], spike["cause"]);
    }
    let latency = |during: bool| {
        let within = |write: &&oracle::history::Write| window.contains(&write.issued_us) == during;
        let took = |write: &oracle::history::Write| Some(write.completed_us()? - write.issued_us);
        let mut all: Vec<i64> = written.writes.iter().filter(within).filter_map(took).collect();
        all.sort_unstable();
        [0.5, 0.99].map(|part| all[((all.len() - 1) as f64 * part) as usize] as f64)
    };
    let (with, without) = (latency(true), latency(false));
    println!(
        "a write under {} s of partition: p50 {:.0} us, p99 {:.0} us; else {:.0} us, {:.0} us: {:.2} x and {:.2} x",
        PARTITION.as_secs(),
        with[0],
        with[1],
        without[0],
        without[1],
        with[0] / without[0],
        with[1] / without[1]
    );
    let agent = lab.processes().into_iter().find(|(role, ..)| role == "agent").map_or(0, |(.., pid)| pid);
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("-");
    println!("the agent's peak of resident memory: {}", peak.trim());
}
