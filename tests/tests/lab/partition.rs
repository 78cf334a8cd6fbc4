//! The recovery site cannot be reached, and the agent is started again meanwhile: no moment is missing.

use crate::prove::{EndOfWork, bring_up_and_prove};
use continuum_tests::lab::{Lab, endpoints};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, History, Workload};
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn a_partition_with_a_restart_of_the_agent_in_it_costs_no_moment() {
    let lab = Lab::empty();
    // How the agent ends; until how long before its end every moment has to be there.
    let machines = [("vol-01", Signal::TERM, 500_000), ("vol-02", Signal::KILL, 3_000_000)];
    for (name, _, _) in machines {
        lab.add(name, "none", &["16M"]);
    }
    lab.wait_healthy(machines.len(), Duration::from_secs(60));

    let log = |name: &str| lab.dir().join(format!("acks-{name}"));
    let workload = |name: &str| Workload::new(0x1ab1, &log(name)).expect("a log");
    let workloads = machines.map(|(name, _, _)| workload(name));
    let (mut frozen, mut ended) = (0, Vec::new());
    std::thread::scope(|scope| {
        let _end = workloads.each_ref().map(EndOfWork);
        for ((name, _, _), workload) in machines.iter().zip(&workloads) {
            let uri = endpoints(&lab.machine(name)).remove(0);
            let writer = Writer { uri, disk: 0, blocks: 0..30_000, bytes_per_sec: 2 << 20, seed: 7 };
            scope.spawn(move || workload.write(&writer).expect("the workload runs"));
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
    for (name, _, _) in machines {
        // Health may still be that of the agent before; both sides being equal at a barrier means that all was sent.
        lab.wait_for("both sides agree again", Duration::from_secs(60), |lab| {
            let verified = lab.run(&["verify", name, "-o", "json"]);
            verified.code == 0
                && verified.json()["disks"]
                    .as_array()
                    .is_some_and(|disks| !disks.is_empty() && disks.iter().all(|disk| disk["equal"] == true))
        });
    }

    for ((name, _, margin), ended) in machines.iter().zip(ended) {
        let history = History::read(&[&log(name)]).expect("the log");
        assert!(history.writes.len() > 200, "the workload ran: {}", history.writes.len());
        for asked in [frozen + 2_500_000, ended - margin] {
            let lost = bring_up_and_prove(&lab, name, &history, asked);
            assert!(lost < 1.0, "{name}: history of the partition is missing: {lost} s");
        }
    }
}
