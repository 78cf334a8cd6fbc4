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
    lab.kill("master-target", "");
    lab.wait_for("what was brought up is served again", LONG, |_| written(&there[0], 0x46, "6M", "256k"));
    lab.kill("vault", "");
    lab.wait_for("the old source follows again", LONG, |lab| {
        let machines = lab.run(&["get", "machines", "vol-01", "-o", "json"]);
        machines.stdout.contains("\"reversed\"") && image(&source[0]) == image(&there[0])
    });

    // Home: equal on both sides, proven in the job; then replication goes on to the same replica.
    let last = image(&there[0]);
    let home = ordered(&lab, "failback", "vol-01", &[]);
    assert!(home.to_string().contains("equal on both sides"), "{home}");
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

/// Rounds of [`rounds_with_writes_on_both_sides`]; more on demand.
fn rounds() -> u32 {
    std::env::var("CONTINUUM_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3)
}

#[test]
fn rounds_with_writes_on_both_sides() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["16M"]);
    protected(&lab, "vol-01");
    let source = endpoints(&lab.machine("vol-01"))[0].clone();
    assert!(written(&source, 0x10, "0", "4M"));
    for round in 0..rounds() {
        let byte = (round % 100) as u8 + 0x20;
        // Every third one without any change on either side: nothing is taken for a split then.
        let changes = round % 3 != 1;
        assert_eq!(lab.run(&["verify", "vol-01"]).code, 0, "round {round}: both sides are equal before");
        let failover = ordered(&lab, "failover", "vol-01", &["--unplanned", "--point", "latest"]);
        let there = brought_up(&failover).0[0].clone();
        if changes {
            // The loser writes on: it was not asked. Both also write the same place.
            assert!(written(&source, byte, "8M", "192k") && written(&source, byte, "10M", "64k"));
            assert!(written(&there, byte + 1, "2M", "320k") && written(&there, byte + 1, "10M", "64k"));
        }
        let loser = image(&source);
        ordered(&lab, "commit", "vol-01", &[]);
        let apart = divergence(&image(&there), &loser);
        assert_eq!(apart > 0, changes, "round {round}");
        ordered(&lab, "reprotect", "vol-01", &[]);
        assert!(
            arrived(&lab, "vol-01") * 10 <= apart * 11,
            "round {round}: {} for {apart}",
            arrived(&lab, "vol-01")
        );
        if changes {
            assert!(written(&there, byte + 2, "12M", "64k"));
        }
        let last = image(&there);
        ordered(&lab, "failback", "vol-01", &[]);
        assert!(image(&source) == last, "round {round}: what it was there it is here");
        protected(&lab, "vol-01");
        // What the loser wrote is not lost.
        let branches = branch_list(&lab, "vol-01");
        assert_eq!(branches.len(), round as usize + 1);
        let name = branches[round as usize]["name"].as_str().expect("a name").to_owned();
        let copy = lab.dir().join("copy.raw");
        std::fs::write(&copy, &last).expect("a copy");
        let dir = agent_dir(&lab, "vol-01").display().to_string();
        let words = ["branch", "export", &dir, &name, "--onto", copy.to_str().expect("a path")];
        assert_eq!(lab.run(&words).code, 0);
        assert!(
            std::fs::read(&copy).expect("it is there") == loser,
            "round {round}: the loser's writes are kept"
        );
    }
    assert_eq!(lab.run(&["verify", "vol-01"]).code, 0, "{}", lab.logs());
}

#[test]
fn another_point_a_failover_taken_back_and_a_site_that_is_not_asked() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["16M"]);
    protected(&lab, "vol-01");
    let source = endpoints(&lab.machine("vol-01"))[0].clone();
    assert!(written(&source, 0x11, "1M", "1M"));
    let marked = image(&source);
    let bookmark = lab.json(&["bookmark", "vol-01", "before"]);
    assert_eq!(bookmark["outcome"], "succeeded", "{bookmark}");
    let points = lab.json(&["get", "points", "vol-01"]);
    let list = points.as_array().or_else(|| points["points"].as_array()).expect("points");
    let point = list.iter().find(|point| point["name"] == "before").expect("it is listed");
    let point = point["id"].as_str().expect("an id").to_owned();
    assert!(written(&source, 0x22, "1M", "1M"));
    let newest = image(&source);

    // One copy at a time, as of the moment that was chosen last; then back, as if nothing had been.
    let failover = ordered(&lab, "failover", "vol-01", &["--planned"]);
    let first = brought_up(&failover).0[0].clone();
    assert!(image(&first) == newest);
    let changed = ordered(&lab, "change-point", "vol-01", &["--point", &point]);
    let second = brought_up(&changed).0[0].clone();
    assert!(first != second && image(&second) == marked, "the machine is what it was then");
    assert_eq!(lab.machine("vol-01")["state"], "commit-pending");
    assert!(written(&second, 0x33, "2M", "64k"));
    ordered(&lab, "cancel-failover", "vol-01", &[]);
    protected(&lab, "vol-01");
    assert!(
        oracle::read_image(&first).is_err() && oracle::read_image(&second).is_err(),
        "nothing runs there"
    );
    assert!(image(&source) == newest && written(&source, 0x44, "3M", "64k"), "the source goes on");
    assert_eq!(lab.run(&["verify", "vol-01"]).code, 0, "{}", lab.logs());

    // Home without asking: what had arrived is taken. The other side stops.
    let failover = ordered(&lab, "failover", "vol-01", &["--unplanned", "--point", "latest"]);
    let there = brought_up(&failover).0[0].clone();
    let refused = lab.run(&["reprotect", "vol-01", "--yes", "--confirm", "vol-01", "-o", "json"]);
    assert_eq!(refused.code, 3, "first the choice is made final: {refused:?}");
    ordered(&lab, "commit", "vol-01", &[]);
    ordered(&lab, "reprotect", "vol-01", &[]);
    assert!(written(&there, 0x55, "5M", "64k"));
    lab.wait_for("it arrives", LONG, |_| image(&source) == image(&there));
    ordered(&lab, "failback", "vol-01", &["--unplanned"]);
    protected(&lab, "vol-01");
    let home = image(&source);
    assert!(home[5 << 20] == 0x55 && written(&source, 0x66, "6M", "64k"));
    assert_eq!(lab.run(&["verify", "vol-01"]).code, 0, "{}", lab.logs());

    // And to stay: everything else is refused from then on.
    ordered(&lab, "failover", "vol-01", &["--planned"]);
    ordered(&lab, "commit", "vol-01", &[]);
    ordered(&lab, "complete-migration", "vol-01", &[]);
    assert_eq!(lab.machine("vol-01")["state"], "migrated");
    for verb in ["reprotect", "failback", "cancel-failover", "commit"] {
        let refused = lab.run(&[verb, "vol-01", "--yes", "--confirm", "vol-01", "-o", "json"]);
        assert_eq!(refused.code, 3, "{verb}: {refused:?}");
    }
    assert!(!written(&source, 0x77, "0", "4k"), "it runs at one place");
}
