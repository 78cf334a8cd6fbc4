//! Any moment is a state the source was in: two disks of one machine under four writers, every process killed in
//! turn, fifty moments brought up and proven.

use crate::prove::{EndOfWork, bring_up_and_prove};
use continuum_model::time::Timestamp;
use continuum_tests::lab::{Lab, endpoints};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, History, Outcome, Workload};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// Moments that are brought up and proven.
const MOMENTS: usize = 50;
const RUN: u64 = 0x1ab;
/// How much of what was acknowledged a crash may cost, in seconds: what was in flight.
const IN_FLIGHT_MAX: f64 = 1.0;

/// libnbd as a writer: not a line of it is ours.
fn foreign_writer(uri: &str, log: &Path, disk: u32, blocks: (u64, u64), first_sequence: u64) -> Child {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("writers/libnbd_writer.py");
    Command::new("/usr/bin/python3")
        .arg(script)
        .arg(uri)
        .arg(log)
        .args(
            [RUN, u64::from(disk), blocks.0, blocks.1, 2 << 20, first_sequence].map(|word| word.to_string()),
        )
        .spawn()
        .expect("/usr/bin/python3 with the package python3-libnbd")
}

/// Writes on both disks, with writers of our own and of others, while `disturb` runs. Returns what was written.
fn under_writes(lab: &Lab, machine: &str, disturb: impl FnOnce()) -> History {
    let uris = endpoints(&lab.machine(machine));
    let log = |name: &str| lab.dir().join(format!("acks-{name}"));
    let (own, first, second) = (log("own"), log("libnbd-0"), log("libnbd-1"));
    let workload = Workload::new(RUN, &own).expect("a log");
    let mut foreign = [
        foreign_writer(&uris[0], &first, 0, (24_000, 48_000), 1 << 40),
        foreign_writer(&uris[1], &second, 1, (16_000, 32_000), 1 << 41),
    ];
    std::thread::scope(|scope| {
        let _end = EndOfWork(&workload);
        for (disk, blocks) in [(0u32, 0..24_000), (1, 0..16_000)] {
            let writer = Writer {
                uri: uris[disk as usize].clone(),
                disk,
                blocks,
                bytes_per_sec: 8 << 20,
                seed: 77 + u64::from(disk),
            };
            let workload = &workload;
            scope.spawn(move || workload.write(&writer).expect("the workload runs"));
        }
        disturb();
        workload.stop();
    });
    for writer in &mut foreign {
        let pid = rustix::process::Pid::from_child(writer);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the writer ran to the end");
        assert!(writer.wait().expect("the writer ends").success());
    }
    let history = History::read(&[&own, &first, &second]).expect("the logs");
    for (who, sequences) in [("our writers", 0..1 << 40), ("libnbd", 1 << 40..u64::MAX)] {
        let count = history.writes.iter().filter(|write| sequences.contains(&write.sequence)).count();
        assert!(count > 500, "{who} wrote: {count}");
    }
    history
}

#[test]
fn any_moment_is_a_state_the_source_was_in_though_every_process_is_killed() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["24M", "16M"]);
    lab.add("app-01", "process", &["16M"]);
    lab.wait_healthy(2, Duration::from_secs(60));

    let begun = oracle::now_us();
    let history = under_writes(&lab, "vol-01", || {
        let pause = || std::thread::sleep(Duration::from_secs(2));
        pause();
        for (role, name) in [
            ("agent", "vol-01"),
            ("process-server", ""),
            ("master-target", ""),
            ("vault", ""),
            ("agent", "app-01"),
        ] {
            lab.kill(role, name);
            pause();
        }
        pause();
    });
    let ended = oracle::now_us();
    let felt = history.writes.iter().filter(|write| !matches!(write.outcome, Outcome::Ok(_))).count();
    assert!(felt > 0, "the agent's death was felt");
    lab.wait_healthy(2, Duration::from_secs(60));

    let seed: u64 = std::env::var("CONTINUUM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("replay with: CONTINUUM_SEED={seed} cargo nextest run -p continuum-tests any_moment");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut worst = 0.0f64;
    for n in 0..MOMENTS {
        let asked = rng.random_range(begun + 500_000..ended);
        let text = Timestamp::from_micros(asked).to_string();
        let lost = bring_up_and_prove(&lab, "vol-01", &history, asked);
        worst = worst.max(lost);
        if n % 5 == 0 {
            // The machine that proves itself, at the same moment.
            let drill = lab.json(&["test-failover", "app-01", "--point", &text]);
            // Where the moment lies in what a crash left as a whole, the newest one before it is taken, with
            // a warning.
            let machine = &drill["machines"][0];
            let in_gap = machine["note"].as_str().is_some_and(|note| note.contains("lies in a gap"));
            assert_eq!(drill["outcome"], if in_gap { "warnings" } else { "succeeded" }, "{drill}");
            let probes = machine["probes"].as_array().expect("probes");
            assert!(probes.len() == 3 && probes.iter().all(|probe| probe["passed"] == true), "{drill}");
            assert_eq!(lab.run(&["cleanup", "app-01"]).code, 0);
        }
    }
    println!("{MOMENTS} moments proven against {} writes; at most {worst:.3} s lost", history.writes.len());
    assert!(worst < IN_FLIGHT_MAX, "a crash cost more than what was in flight: {worst} s");

    // Whole and quiet: every acknowledged write is there, and both sides agree bit for bit.
    let verified = lab.json(&["verify", "vol-01"]);
    assert!(
        verified["disks"].as_array().is_some_and(|disks| disks.iter().all(|disk| disk["equal"] == true)),
        "{verified}"
    );
}
