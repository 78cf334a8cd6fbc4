//! There and back again: a machine fails over, works at the recovery site, and comes home. Real processes, and
//! clients that we did not write.

use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle;
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const BLOCK: usize = 64 << 10;
const LONG: Duration = Duration::from_secs(90);

fn qemu_io(uri: &str, what: &str) -> bool {
    let output = Command::new("qemu-io").args(["-f", "raw", "-c", what, "-c", "flush", uri]).output();
    let output = output.expect("qemu-io runs");
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("failed")
}

/// Writes one byte over and over: `at` and `length` as qemu-io takes them.
fn written(uri: &str, pattern: u8, at: &str, length: &str) -> bool {
    qemu_io(uri, &format!("write -P {pattern} {at} {length}"))
}

fn image(uri: &str) -> Vec<u8> {
    oracle::read_image(uri).expect("the disk is read")
}

/// Bytes of 64 KiB blocks that differ.
fn divergence(one: &[u8], other: &[u8]) -> u64 {
    let differ = one.chunks(BLOCK).zip(other.chunks(BLOCK)).filter(|(one, other)| one != other);
    differ.map(|(one, _)| one.len() as u64).sum()
}

/// What arrived at the old source since the direction was reversed, by its own count.
fn arrived(lab: &Lab, name: &str) -> u64 {
    let state = agent_dir(lab, name).join("home/state.json");
    let text = std::fs::read(&state).expect("the agent keeps count");
    let state: Value = serde_json::from_slice(&text).expect("JSON");
    state["received_bytes"].as_u64().expect("a count")
}

fn agent_dir(lab: &Lab, name: &str) -> PathBuf {
    lab.dir().join("machines").join(name).join("agent")
}

#[track_caller]
fn ordered(lab: &Lab, verb: &str, name: &str, more: &[&str]) -> Value {
    let mut words = vec![verb, name];
    words.extend(more);
    words.extend(["--yes", "--confirm", name]);
    let answer = lab.json(&words);
    assert_eq!(answer["outcome"], "succeeded", "{verb}: {answer}\n{}", lab.logs());
    answer
}

#[track_caller]
fn wait_state(lab: &Lab, name: &str, state: &str) {
    lab.wait_for(&format!("{name} is {state}"), LONG, |lab| lab.machine(name)["state"] == state);
}

#[track_caller]
fn protected(lab: &Lab, name: &str) {
    lab.wait_for(&format!("{name} is protected"), LONG, |lab| {
        let machine = lab.machine(name);
        machine["state"] == "protected" && machine["mode"] == "data"
    });
}

#[test]
fn a_machine_goes_there_and_comes_home_and_only_what_differs_travels() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["16M", "8M"]);
    protected(&lab, "vol-01");
    let source = endpoints(&lab.machine("vol-01"));
    assert!(written(&source[0], 0x11, "0", "8M") && written(&source[1], 0x12, "1M", "1M"));
    assert_eq!(lab.run(&["verify", "vol-01"]).code, 0);

    // There, lost nothing; it works there.
    let (there, _) = brought_up(&ordered(&lab, "failover", "vol-01", &["--planned"]));
    assert!(written(&there[0], 0x22, "1M", "1M") && written(&there[1], 0x23, "2M", "128k"));
    ordered(&lab, "commit", "vol-01", &[]);
    assert!(!written(&source[0], 0x33, "0", "4k"), "one side writes");

    // The direction is told, and nothing happens without the name.
    let report = lab.json(&["readiness", "vol-01", "--for", "reprotect"]);
    assert!(report.to_string().contains("OVERWRITTEN"), "{report}");
    assert_ne!(lab.run(&["reprotect", "vol-01", "--yes"]).code, 0);
    let before = image(&source[0]);
    let apart = divergence(&image(&there[0]), &before) + divergence(&image(&there[1]), &image(&source[1]));
    assert!(apart >= 1 << 20);
    let early = lab.run(&["failback", "vol-01", "--yes", "--confirm", "vol-01", "-o", "json"]);
    assert_eq!(early.code, 3, "nothing comes home before it was brought there: {early:?}");
    ordered(&lab, "reprotect", "vol-01", &[]);
    wait_state(&lab, "vol-01", "reversed");
    let machine = lab.machine("vol-01");
    assert_eq!(machine["direction"], "reversed", "{machine}");
    assert!(arrived(&lab, "vol-01") * 10 <= apart * 11, "{} for {apart}", arrived(&lab, "vol-01"));
    assert!(image(&source[0]) == image(&there[0]), "the old source follows");
    assert!(!written(&source[0], 0x33, "0", "4k"), "and takes nobody's writes");

    // It goes on while both ends die, one after the other.
    assert!(written(&there[0], 0x44, "4M", "256k"));
    lab.kill("agent", "vol-01");
    assert!(written(&there[0], 0x45, "5M", "256k"));
    lab.wait_for("the target is there again", LONG, |lab| {
        lab.kill("master-target", "");
        true
    });
    lab.wait_for("what was brought up is served again", LONG, |_| written(&there[0], 0x46, "6M", "256k"));
    lab.kill("vault", "");
    lab.wait_for("the old source follows again", LONG, |lab| {
        let machines = lab.run(&["get", "machines", "vol-01", "-o", "json"]);
        machines.stdout.contains("\"reversed\"") && image(&source[0]) == image(&there[0])
    });

    // Home: equal on both sides, proven in the job; then replication goes on to the same replica.
    let last = image(&there[0]);
    let home = ordered(&lab, "failback", "vol-01", &[]);
    let job = lab.json(&["describe", "job", home["job"].as_str().or(home["id"].as_str()).unwrap_or_default()]);
    assert!(job.to_string().contains("equal on both sides"), "{job}");
    protected(&lab, "vol-01");
    assert_eq!(lab.machine("vol-01")["direction"], "forward");
    assert!(image(&source[0]) == last, "what it was there it is here");
    assert!(oracle::read_image(&there[0]).is_err(), "the copy there is gone for good");
    assert!(written(&source[0], 0x55, "7M", "64k"), "and it writes here again");
    assert_eq!(lab.run(&["verify", "vol-01"]).code, 0, "{}", lab.logs());
    // History was kept: a moment from before the failover can still be brought up.
    let kept = branch_list(&lab, "vol-01");
    assert_eq!(kept.len(), 1, "what the old source held is kept: {kept:?}");
    let copy = lab.dir().join("copy.raw");
    std::fs::write(&copy, &last).expect("a copy");
    let dir = agent_dir(&lab, "vol-01").display().to_string();
    let name = kept[0]["name"].as_str().expect("a name").to_owned();
    let words = ["branch", "export", &dir, &name, "--disk", "0", "--onto", copy.to_str().expect("a path")];
    assert_eq!(lab.run(&words).code, 0);
    assert!(std::fs::read(&copy).expect("it is there") == before, "bit for bit what it held");
    assert_ne!(lab.run(&["branch", "drop", &dir, &name, "--yes"]).code, 0);
    assert_eq!(lab.run(&["branch", "drop", &dir, &name, "--yes", "--confirm", &name]).code, 0);
    assert!(branch_list(&lab, "vol-01").is_empty());
}

fn branch_list(lab: &Lab, name: &str) -> Vec<Value> {
    let answer = lab.json(&["branch", "list", &agent_dir(lab, name).display().to_string()]);
    answer.as_array().cloned().unwrap_or_default()
}
