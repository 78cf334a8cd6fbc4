//! A drill, a failover, and what is left of them.

use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle;
use std::time::Duration;

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
    let (disks, _) = brought_up(&drill);
    let socket = disks[0].split("socket=").nth(1).expect("a socket").to_owned();
    assert!(std::path::Path::new(&socket).exists());
    // A second drill beside it is refused, and says what is possible.
    let refused = lab.run(&["test-failover", "db-01", "-o", "json"]);
    assert_eq!(refused.code, 3, "{refused:?}");
    assert_eq!(lab.run(&["cleanup", "db-01"]).code, 0);
    assert!(!std::path::Path::new(&socket).exists(), "the cleanup left its socket");
    let views = lab.dir().join("target/views");
    assert_eq!(std::fs::read_dir(&views).map(Iterator::count).unwrap_or(0), 0, "the cleanup left records");

    // A foreign client reads the source through the block server.
    let uri = endpoints(&lab.machine("web-01"))[0].clone();
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
    let (disks, _) = brought_up(&failover);
    lab.wait_for("the failed-over machine's disks are served again", Duration::from_secs(20), |_| {
        oracle::read_image(&disks[0]).is_ok()
    });
    assert_eq!(lab.run(&["commit", "web-01", "--yes", "--confirm", "web-01"]).code, 0);
    assert_eq!(lab.machine("web-01")["state"], "committed");
    lab.stop();
    assert!(lab.run(&["get", "machines"]).code != 0, "nothing answers any more");

    // What the replicas hold is told by the files alone, and nothing of them is changed by that.
    let replicas = lab.dir().join("target/replicas");
    let path = replicas.to_str().expect("UTF-8").to_owned();
    let before = oracle::sums(&replicas);
    for store in std::fs::read_dir(&path).expect("a folder").flatten() {
        let store = store.path();
        let told = lab.json(&["inspect", store.to_str().expect("UTF-8"), "--verify"]);
        assert_eq!((&told["kind"], &told["problems_total"]), (&"store".into(), &0.into()), "{told}");
        assert!(told["segments_total"].as_u64().is_some_and(|count| count > 0), "{told}");
    }
    assert_eq!(oracle::sums(&replicas), before);
    // A flipped bit in the middle of a frame is named with its place.
    let segment =
        before.iter().map(|(path, _)| path).filter(|path| path.to_string_lossy().contains("journal/"));
    let segment =
        segment.max_by_key(|path| std::fs::metadata(path).map_or(0, |about| about.len())).expect("one");
    let mut bytes = std::fs::read(segment).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(segment, bytes).expect("a segment");
    let damaged = lab.run(&["inspect", segment.to_str().expect("UTF-8"), "-o", "json"]);
    assert_eq!(damaged.code, 1, "{damaged:?}");
    assert!(damaged.stderr.contains("inspect.damaged"), "{damaged:?}");
}
