//! A whole machine: a Linux in QEMU with ext4 on two protected disks, brought up at a chosen moment.

use continuum_model::time::Timestamp;
use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The transfer at which the machine's ledger is, by its heartbeat, and when that was heard.
fn at(lab: &Lab) -> (u64, i64) {
    let uri = endpoints(&lab.machine("linux-01"))[0].clone();
    let socket = uri.split("socket=").nth(1).expect("a socket").replace(".sock", ".hb");
    let beat = continuum_fabric::lab::compute::heartbeat(Path::new(&socket));
    (beat.map_or(0, |beat| beat.sequence), oracle::now_us())
}

/// ext4's own judge: after its journal is replayed nothing may be left to mend.
fn check_file_system(image: &Path) {
    let fsck = |options: &[&str]| {
        let ended = Command::new("e2fsck").args(options).arg(image).output().expect("e2fsck runs");
        (ended.status.code(), String::from_utf8_lossy(&ended.stdout).into_owned())
    };
    let (replayed, said) = fsck(&["-y", "-E", "journal_only"]);
    assert!(replayed.is_some_and(|code| code < 4), "{said}");
    let (checked, said) = fsck(&["-f", "-n"]);
    assert_eq!(checked, Some(0), "the file system is not clean: {said}");
}

#[test]
fn a_linux_guest_boots_from_a_replica_at_a_chosen_moment() {
    let lab = Lab::empty();
    lab.add("linux-01", "qemu", &["32M", "24M"]);
    lab.wait_healthy(1, Duration::from_secs(90));
    lab.wait_for("the guest writes", Duration::from_secs(90), |lab| at(lab).0 > 20);
    let (early, moment) = at(&lab);
    lab.wait_for("the moment has passed", Duration::from_secs(90), |lab| at(lab).0 > early + 3);
    // Its block server dies under it: the guest waits and goes on.
    lab.kill("agent", "linux-01");
    lab.wait_for("the guest writes on", Duration::from_secs(90), |lab| at(lab).0 > early + 20);
    lab.wait_healthy(1, Duration::from_secs(60));

    let text = Timestamp::from_micros(moment).to_string();
    let drill = lab.json(&["test-failover", "linux-01", "--point", &text]);
    assert_eq!(drill["outcome"], "succeeded", "{drill}{}", lab.logs());
    let machine = &drill["machines"][0];
    let probes = machine["probes"].as_array().expect("probes");
    assert_eq!(probes.len(), 4, "{probes:?}");
    assert!(probes.iter().all(|probe| probe["passed"] == true), "{probes:?}");
    let ledger =
        probes.iter().find(|probe| probe["name"] == "ledger").expect("a ledger")["detail"].to_string();
    let recovered: u64 = ledger
        .split("transfer ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no transfer in {ledger}"));
    // A beat tells a transfer that is on stable storage; one more may have been under way.
    assert!(
        (early.saturating_sub(1)..=early + 1).contains(&recovered),
        "told {early}, recovered {recovered}"
    );

    // The drill's own machine dies; what it leaves is judged by e2fsck.
    let (disks, _) = brought_up(&drill);
    let views = std::fs::read_dir(lab.dir().join("target/views")).expect("the records of views");
    let record = views.flatten().next().expect("a record").path();
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).expect("readable")).expect("JSON");
    let pid = record["guest"]["process"]["pid"].as_i64().expect("a process") as i32;
    let pid = rustix::process::Pid::from_raw(pid).expect("a number");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("the guest ran");
    for disk in &disks {
        let image = lab.dir().join("judged.img");
        let _ = std::fs::remove_file(&image);
        let copied = Command::new("nbdcopy").arg(disk).arg(&image).status().expect("nbdcopy runs");
        assert!(copied.success());
        check_file_system(&image);
    }
    assert_eq!(lab.run(&["cleanup", "linux-01"]).code, 0);
}
