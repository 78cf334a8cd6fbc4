//! End to end, on a real lab: the same binary, the same verbs, processes that are killed.

mod harness;

use continuum_tests::oracle::{self, Workload};
use harness::Lab;
use rustix::process::Signal;
use std::time::Duration;

/// Moments that are brought up and proven.
const MOMENTS: usize = 16;

fn endpoint(answer: &serde_json::Value) -> (String, i64) {
    let machine = &answer["machines"][0];
    let endpoint = machine["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();
    let time: continuum_model::time::Timestamp =
        machine["point"]["time"].as_str().expect("a time").parse().expect("RFC 3339");
    (endpoint, time.micros())
}

/// Ends a workload when dropped.
struct EndOfWork<'a>(&'a Workload);

impl Drop for EndOfWork<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Brings a machine up at the moment that was asked for, proves that it is a state the source was in, and
/// removes it again. Returns how many seconds earlier than asked that moment is.
fn bring_up_and_prove(lab: &Lab, machine: &str, history: &oracle::History, asked: i64) -> f64 {
    let text = continuum_model::time::Timestamp::from_micros(asked).to_string();
    let answer = lab.json(&["test-failover", machine, "--point", &text]);
    let (endpoint, time) = endpoint(&answer);
    assert!(time <= asked, "a moment later than asked for");
    let gap = (asked - time) as f64 / 1e6;
    println!("{machine} asked {text}: {gap:.3} s earlier");
    let image = oracle::read_image(&endpoint).expect("the disk is served");
    let violations = oracle::prove(&image, history, time);
    assert!(
        violations.is_empty(),
        "{machine} at {text}: {} violations, first {:?}",
        violations.len(),
        &violations[..violations.len().min(3)]
    );
    assert_eq!(lab.run(&["cleanup", machine]).code, 0);
    gap
}

#[test]
fn any_moment_is_a_state_the_source_was_in_though_every_process_is_killed() {
    let lab = Lab::start(&["--machines", "0"]);
    lab.wait_for("the lab answers", Duration::from_secs(60), |lab| {
        lab.run(&["lab", "status"]).stdout.contains("running")
    });
    let added = lab.run(&["lab", "add", "vol-01", "--disk", "32M", "--guest", "none", "--protect"]);
    assert_eq!(added.code, 0, "{}{}", added.stderr, lab.logs());
    lab.wait_healthy(1, Duration::from_secs(60));
    let uri = lab.machine("vol-01")["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();

    let workload = Workload::new(0x1ab);
    let begun = oracle::now_us();
    std::thread::scope(|scope| {
        let _end = EndOfWork(&workload);
        for writer in 0..2u64 {
            let (workload, uri) = (&workload, &uri);
            scope.spawn(move || {
                workload
                    .write(uri, writer * 30_000, (writer + 1) * 30_000, 8 << 20, 77 + writer)
                    .expect("the workload runs")
            });
        }
        let pause = || std::thread::sleep(Duration::from_secs(2));
        pause();
        for (role, name) in
            [("agent", "vol-01"), ("process-server", ""), ("master-target", ""), ("vault", "")]
        {
            lab.kill(role, name);
            pause();
        }
        pause();
        workload.stop();
    });
    let ended = oracle::now_us();
    let history = workload.into_history();
    assert!(history.writes.len() > 1000, "the workload ran: {}", history.writes.len());
    assert!(history.writes.iter().any(|write| write.completed_us.is_none()), "the agent's death was felt");
    lab.wait_healthy(1, Duration::from_secs(60));

    for n in 0..MOMENTS as i64 {
        let asked = begun + 1_000_000 + (ended - begun - 1_000_000) * n / MOMENTS as i64;
        let gap = bring_up_and_prove(&lab, "vol-01", &history, asked);
        assert!(gap < 5.0, "the gap is longer than a restart takes: {gap} s");
    }

    // Whole and quiet: every acknowledged write is there, and both sides agree bit for bit.
    let verified = lab.json(&["verify", "vol-01"]);
    assert!(
        verified["disks"].as_array().is_some_and(|disks| disks.iter().all(|disk| disk["equal"] == true)),
        "{verified}"
    );
}

#[test]
fn a_partition_with_a_restart_of_the_agent_in_it_costs_no_moment() {
    let lab = Lab::start(&["--machines", "0"]);
    lab.wait_for("the lab answers", Duration::from_secs(60), |lab| {
        lab.run(&["lab", "status"]).stdout.contains("running")
    });
    // How the agent ends; until how long before its end every moment has to be there.
    let machines = [("vol-01", Signal::TERM, 500_000), ("vol-02", Signal::KILL, 3_000_000)];
    for (name, _, _) in machines {
        let added = lab.run(&["lab", "add", name, "--disk", "16M", "--guest", "none", "--protect"]);
        assert_eq!(added.code, 0, "{}{}", added.stderr, lab.logs());
    }
    lab.wait_healthy(machines.len(), Duration::from_secs(60));

    let workloads = [Workload::new(0x1ab1), Workload::new(0x1ab2)];
    let (mut frozen, mut ended) = (0, Vec::new());
    std::thread::scope(|scope| {
        // Whatever fails here, the writers end: the scope waits for them.
        let _end = workloads.each_ref().map(EndOfWork);
        for ((name, _, _), workload) in machines.iter().zip(&workloads) {
            let disk = lab.machine(name)["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();
            scope.spawn(move || workload.write(&disk, 0, 30_000, 2 << 20, 7).expect("the workload runs"));
        }
        std::thread::sleep(Duration::from_secs(1));
        lab.signal("process-server", "", Signal::STOP);
        frozen = oracle::now_us();
        std::thread::sleep(Duration::from_secs(7));
        for ((name, signal, _), workload) in machines.iter().zip(&workloads) {
            ended.push(oracle::now_us());
            lab.end("agent", name, *signal);
            workload.stop();
        }
        lab.signal("process-server", "", Signal::CONT);
    });
    lab.wait_healthy(machines.len(), Duration::from_secs(60));

    for (((name, _, margin), ended), workload) in machines.iter().zip(ended).zip(workloads) {
        let history = workload.into_history();
        assert!(history.writes.len() > 200, "the workload ran: {}", history.writes.len());
        for asked in [frozen + 2_500_000, ended - margin] {
            let gap = bring_up_and_prove(&lab, name, &history, asked);
            assert!(gap < 2.0, "{name}: history of the partition is missing: {gap} s");
        }
    }
}

#[test]
fn a_drill_a_failover_and_what_is_left_of_them() {
    let mut lab = Lab::start(&["--machines", "3"]);
    lab.wait_healthy(3, Duration::from_secs(60));

    // A drill of the machine with two disks: its ledger recovers, is whole, and goes on; replication does, too.
    let drill = lab.json(&["test-failover", "db-01"]);
    assert_eq!(drill["outcome"], "succeeded", "{drill}");
    let probes = drill["machines"][0]["probes"].as_array().expect("probes");
    assert!(probes.len() == 3 && probes.iter().all(|probe| probe["passed"] == true), "{probes:?}");
    let rpo = lab.machine("db-01")["rpo_seconds"].as_f64().expect("an RPO");
    assert!(rpo < 5.0, "replication went on during the drill: RPO {rpo}");
    let (endpoint, _) = endpoint(&drill);
    let socket = endpoint.split("socket=").nth(1).expect("a socket").to_owned();
    assert!(std::path::Path::new(&socket).exists());
    // A second drill beside it is refused, and says what is possible.
    let refused = lab.run(&["test-failover", "db-01", "-o", "json"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert_eq!(lab.run(&["cleanup", "db-01"]).code, 0);
    assert!(!std::path::Path::new(&socket).exists(), "the cleanup left its socket");
    let views = lab.dir().join("target/views");
    assert_eq!(std::fs::read_dir(&views).map(Iterator::count).unwrap_or(0), 0, "the cleanup left records");

    // A foreign client reads the source through the block server.
    let uri = lab.machine("web-01")["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();
    let info = std::process::Command::new("nbdinfo").args(["--size", &uri]).output().expect("nbdinfo runs");
    assert_eq!(String::from_utf8_lossy(&info.stdout).trim(), (64 << 20).to_string(), "{info:?}");

    // Without the name typed out nothing happens.
    assert_ne!(lab.run(&["failover", "web-01", "--unplanned", "--point", "latest", "--yes"]).code, 0);
    assert_eq!(lab.machine("web-01")["state"], "protected");
    let failover =
        lab.json(&["failover", "web-01", "--unplanned", "--point", "latest", "--yes", "--confirm", "web-01"]);
    assert_eq!(failover["outcome"], "succeeded", "{failover}");
    assert_eq!(lab.machine("web-01")["state"], "commit-pending");

    // The old source returns and is refused: its epoch is superseded, and the replica stays as it is.
    lab.kill("agent", "web-01");
    std::thread::sleep(Duration::from_secs(2));
    let machine = lab.machine("web-01");
    assert_eq!(machine["state"], "commit-pending");
    assert_ne!(machine["mode"], "data", "a fenced source must not ship: {machine}");
    // The machine at the recovery site survives its target's death: its disks come back, the ledger goes on.
    lab.kill("master-target", "");
    lab.wait_for("the failed-over machine's disks are served again", Duration::from_secs(20), |_| {
        oracle::read_image(&endpoint_of(&failover)).is_ok()
    });
    assert_eq!(lab.run(&["commit", "web-01", "--yes", "--confirm", "web-01"]).code, 0);
    assert_eq!(lab.machine("web-01")["state"], "committed");
    lab.stop();
    assert!(lab.run(&["get", "machines"]).code != 0, "nothing answers any more");
}

fn endpoint_of(answer: &serde_json::Value) -> String {
    endpoint(answer).0
}
