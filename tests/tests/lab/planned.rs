//! A planned failover of a real machine: it is stopped, everything it wrote arrives, and nothing is lost.

use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle;
use std::process::Command;
use std::time::Duration;

fn written(uri: &str, pattern: &str) -> bool {
    let write = format!("write -P {pattern} 1M 1M");
    let output = Command::new("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush", uri]).output();
    let output = output.expect("qemu-io runs");
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

#[test]
fn a_planned_failover_loses_nothing_and_its_source_stays_stopped() {
    let lab = Lab::start(&["--machines", "1"]);
    lab.wait_healthy(1, Duration::from_secs(60));
    lab.add("vol-01", "none", &["16M"]);
    lab.wait_healthy(2, Duration::from_secs(60));
    let source = endpoints(&lab.machine("vol-01"))[0].clone();
    assert!(written(&source, "0x33"));

    let words = ["failover", "vol-01", "--planned", "--yes", "--confirm", "vol-01"];
    let failover = lab.json(&words);
    assert_eq!(failover["outcome"], "succeeded", "{failover}");
    assert_eq!(lab.machine("vol-01")["state"], "commit-pending");
    let (disks, _) = brought_up(&failover);
    let there = oracle::read_image(&disks[0]).expect("the replica is read");
    let here = oracle::read_image(&source).expect("the source may still be read");
    assert!(there == here && there[1 << 20] == 0x33, "both sides are equal, bit for bit");
    assert!(!written(&source, "0x44"), "the source takes no writes");
    // Nor after its agent died.
    lab.kill("agent", "vol-01");
    lab.wait_for("the source is served again", Duration::from_secs(30), |_| {
        oracle::read_image(&source).is_ok()
    });
    assert!(!written(&source, "0x44"), "the source takes no writes after a restart of its agent either");
    assert_eq!(oracle::read_image(&source).expect("it is read"), here);
    // Its machine there does.
    assert!(written(&disks[0], "0x55"));

    // A machine with a ledger: nothing that was told is missing there, and it goes on.
    let failover = lab.json(&["failover", "web-01", "--planned", "--yes", "--confirm", "web-01"]);
    assert_eq!(failover["outcome"], "succeeded", "{failover}");
    let probes = failover["machines"][0]["probes"].as_array().expect("probes");
    assert!(probes.len() == 3 && probes.iter().all(|probe| probe["passed"] == true), "{probes:?}");

    // One that cannot be done changes nothing: its target is away, and the source goes on writing.
    lab.add("vol-02", "none", &["16M"]);
    lab.wait_for("it is protected", Duration::from_secs(60), |lab| {
        let machine = lab.machine("vol-02");
        machine["state"] == "protected" && machine["mode"] == "data"
    });
    assert_eq!(lab.run(&["pause", "vol-02"]).code, 0);
    let refused = lab.run(&["failover", "vol-02", "--planned", "--yes", "--confirm", "vol-02", "-o", "json"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(written(&endpoints(&lab.machine("vol-02"))[0], "0x66"), "the source writes on");
    assert_eq!(lab.run(&["commit", "vol-01", "--yes", "--confirm", "vol-01"]).code, 0);
    assert!(!written(&source, "0x44"), "final or not, it runs at one place");
    // Whoever ends a protection takes the machine back where it was.
    let ended = lab.run(&["unprotect", "vol-01", "--yes", "--confirm", "vol-01"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(written(&source, "0x77"), "the source writes again");
}
