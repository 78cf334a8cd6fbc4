//! History survives the agent that captured it: what could not leave is staged, and is sent by the next one.

use continuum_model::time::Timestamp;
use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, History, Workload};
use rustix::process::Signal;
use std::time::Duration;

/// How much earlier than asked a moment of the partition may be, in seconds. Without staging it would be as much
/// as the partition had lasted by then: more than twice this.
const EARLIER_MAX: f64 = 2.0;

/// Ends a workload when dropped.
struct EndOfWork<'a>(&'a Workload);

impl Drop for EndOfWork<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[test]
fn a_partition_with_a_restart_of_the_agent_in_it_costs_no_moment() {
    let lab = Lab::empty();
    // How the agent ends; until how long before its end every moment has to be there, in µs.
    let machines = [("vol-01", Signal::TERM, 500_000), ("vol-02", Signal::KILL, 3_000_000)];
    for (name, _, _) in machines {
        lab.add(name, "none", &["16M"]);
    }
    lab.wait_healthy(machines.len(), Duration::from_secs(60));

    let logs = machines.map(|(name, _, _)| lab.dir().join(format!("acks-{name}")));
    let workloads = [0, 1].map(|n| Workload::new(0x1ab1 + n as u64, &logs[n]).expect("a log"));
    let (mut frozen, mut ended) = (0, Vec::new());
    std::thread::scope(|scope| {
        // Whatever fails here, the writers end: the scope waits for them.
        let _end = workloads.each_ref().map(EndOfWork);
        for ((name, _, _), workload) in machines.iter().zip(&workloads) {
            let uri = endpoints(&lab.machine(name)).remove(0);
            let writer = Writer { uri, disk: 0, blocks: 0..30_000, bytes_per_sec: 2 << 20, seed: 7 };
            scope.spawn(move || workload.write(&writer).expect("the workload runs"));
        }
        std::thread::sleep(Duration::from_secs(1));
        lab.signal("process-server", "", Signal::STOP);
        frozen = oracle::now_us();
        std::thread::sleep(Duration::from_secs(8));
        for ((name, signal, _), workload) in machines.iter().zip(&workloads) {
            ended.push(oracle::now_us());
            lab.end("agent", name, *signal);
            workload.stop();
        }
        lab.signal("process-server", "", Signal::CONT);
    });
    for (name, _, _) in machines {
        // Health lags behind; both sides being equal at a barrier means that all was sent.
        lab.wait_for("both sides agree again", Duration::from_secs(60), |lab| {
            let verified = lab.run(&["verify", name, "-o", "json"]);
            verified.code == 0
                && verified.json()["disks"]
                    .as_array()
                    .is_some_and(|disks| !disks.is_empty() && disks.iter().all(|disk| disk["equal"] == true))
        });
    }

    for (((name, _, margin), ended), log) in machines.iter().zip(ended).zip(&logs) {
        let history = History::read(&[log]).expect("the log");
        assert!(history.writes.len() > 200, "the workload ran: {}", history.writes.len());
        for asked in [frozen + 4_500_000, ended - margin] {
            let text = Timestamp::from_micros(asked).to_string();
            let (disks, time) = brought_up(&lab.json(&["test-failover", name, "--point", &text]));
            let earlier = (asked - time) as f64 / 1e6;
            println!("{name}: asked {text}, {earlier:.3} s earlier");
            assert!((0.0..EARLIER_MAX).contains(&earlier), "{name}: history is missing: {earlier} s");
            let image = oracle::read_image(&disks[0]).expect("the disk is served");
            let violations = oracle::prove(&[&image], &history, time);
            assert!(violations.is_empty(), "{name} at {text}: {violations:?}");
            assert_eq!(lab.run(&["cleanup", name]).code, 0);
        }
    }
}
