//! The operator knows why the newest recoverable moment is old, when a buffer will be full, and decides when a first
//! copy and a resync run.

use continuum_proto::v1 as pb;
use continuum_tests::lab::{Lab, endpoints};
use continuum_tests::oracle::Workload;
use continuum_tests::oracle::workload::Writer;
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use pb::operator_client::OperatorClient;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::prove::EndOfWork;

const MIB: u64 = 1 << 20;
const MINUTE: Duration = Duration::from_secs(60);

/// The newest spike that a machine tells.
fn spike(lab: &Lab) -> Value {
    lab.machine("vol-01")["spikes"][0].clone()
}

fn events(lab: &Lab, kind: &str) -> Vec<String> {
    let events = lab.json(&["get", "events"]);
    let all = events.as_array().into_iter().flatten();
    all.filter(|event| event["kind"] == kind)
        .map(|event| event["text"].as_str().expect("a text").to_owned())
        .collect()
}

/// Waits until every change of the machine is shipped as it happens. Its history may be shorter than promised: the
/// lab's policy gives it little room.
fn whole(lab: &Lab) {
    lab.wait_for("it is whole", 2 * MINUTE, |lab| {
        let machine = lab.machine("vol-01");
        machine["state"] == "protected" && machine["mode"] == "data"
    });
}

/// Random data, which no compression makes smaller.
fn image(lab: &Lab, mib: u64) -> PathBuf {
    let mut data = vec![0; (mib * MIB) as usize];
    ChaCha8Rng::seed_from_u64(mib).fill_bytes(&mut data);
    let path = lab.dir().join(format!("data-{mib}"));
    std::fs::write(&path, &data).expect("an image");
    path
}

fn copy(lab: &Lab, image: &Path) {
    let uri = endpoints(&lab.machine("vol-01")).remove(0);
    assert!(Command::new("nbdcopy").arg(image).arg(&uri).status().expect("nbdcopy runs").success());
}

/// Bytes in the journal of the replica: what travelled is in it.
fn journal(lab: &Lab) -> u64 {
    fn below(dir: &Path) -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries
            .map(|entry| match entry.metadata() {
                Ok(found) if found.is_dir() => below(&entry.path()),
                Ok(found) if dir.ends_with("journal") => found.len(),
                _ => 0,
            })
            .sum()
    }
    below(lab.dir())
}

#[test]
fn a_spike_of_rpo_names_the_hop_that_caused_it_and_is_kept() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["16M"]);
    lab.wait_healthy(1, MINUTE);
    let hops = lab.machine("vol-01")["hops"].clone();
    let names: Vec<_> = hops.as_array().expect("hops").iter().map(|hop| hop["name"].clone()).collect();
    assert_eq!(names, ["agent", "agent-link", "process-server", "target-link", "target"]);
    lab.wait_for("every hop has a young moment", MINUTE, |lab| {
        let machine = lab.machine("vol-01");
        let hops = machine["hops"].as_array().cloned().unwrap_or_default();
        hops.iter().all(|hop| hop["age_seconds"].as_f64().is_some_and(|age| age < 5.0))
    });
    for (role, name) in [("process-server", ""), ("master-target", ""), ("agent", "vol-01")] {
        lab.signal(role, name, Signal::STOP);
        lab.wait_for(&format!("{role} is named"), MINUTE, |lab| {
            let spike = spike(lab);
            spike["ended"].is_null() && spike["hop"] == if role == "master-target" { "target" } else { role }
        });
        let words = lab.run(&["describe", "machine", "vol-01"]).stdout;
        assert!(words.contains("has said nothing"), "{words}");
        lab.signal(role, name, Signal::CONT);
        lab.wait_for("it is over", MINUTE, |lab| {
            let machine = lab.machine("vol-01");
            machine["rpo_seconds"].as_f64().is_some_and(|rpo| rpo < 3.0)
                && !machine["spikes"][0]["ended"].is_null()
        });
        assert!(spike(&lab)["worst_seconds"].as_f64().expect("a number") >= 5.0);
    }
    lab.kill("vault", "");
    lab.wait_for("the vault knows them after a restart", MINUTE, |lab| {
        let answer = lab.run(&["get", "machines", "vol-01", "-o", "json"]);
        answer.code == 0 && {
            let machines: Value = answer.json();
            machines[0]["spikes"].as_array().is_some_and(|spikes| {
                let ended =
                    |hop: &str| spikes.iter().any(|spike| spike["hop"] == hop && !spike["ended"].is_null());
                ended("agent") && ended("target") && ended("process-server")
            })
        }
    });
    assert!(events(&lab, "rpo").len() >= 3);
}

/// The peak of a process's memory that is resident, in KiB.
fn peak_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("its peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn a_partition_fills_staging_as_foretold_and_the_agent_stays_small() {
    let lab = Lab::empty();
    // Half of the disk is the staging's budget.
    lab.add("vol-01", "none", &["512M"]);
    lab.wait_healthy(1, MINUTE);
    let uri = endpoints(&lab.machine("vol-01")).remove(0);
    let (gentle, heavy) = (image(&lab, 1), image(&lab, 384));
    let agent = lab.processes().into_iter().find(|(role, ..)| role == "agent").expect("an agent").2;
    copy(&lab, &gentle);
    lab.signal("process-server", "", Signal::STOP);
    let workload = Workload::new(0x7a11, &lab.dir().join("acks")).expect("a log");
    std::thread::scope(|scope| {
        let _end = EndOfWork(&workload);
        let writer = Writer { uri, disk: 0, blocks: 0..100_000, bytes_per_sec: 4 << 20, seed: 3 };
        let writing = &workload;
        scope.spawn(move || writing.write(&writer).expect("the workload runs"));
        lab.wait_for("it is foretold that staging will be full", MINUTE, |lab| {
            let machine = lab.machine("vol-01");
            let told = machine["symptoms"].as_array().cloned().unwrap_or_default();
            told.iter().any(|symptom| symptom["code"] == "staging.full-soon")
                && machine["hops"][0]["full_in_seconds"].as_f64().is_some_and(|seconds| seconds > 1.0)
        });
        assert_eq!(lab.machine("vol-01")["mode"], "data", "told before it is");
    });
    // The guest is not held up: all of it is taken, though only half of the disk can be staged.
    copy(&lab, &heavy);
    lab.wait_for("only the map grows", MINUTE, |lab| lab.machine("vol-01")["mode"] == "bitmap");
    let described = lab.json(&["describe", "machine", "vol-01"]);
    assert_eq!(described["staged_bytes_max"].as_u64(), Some(256 * MIB), "half of the disk");
    let peak = peak_kib(agent);
    println!("the agent's peak: {} MiB", peak / 1024);
    assert!(peak <= 128 * 1024, "{peak} KiB resident");
    lab.signal("process-server", "", Signal::CONT);
    whole(&lab);
    let modes = events(&lab, "mode");
    let told = |what: &str| modes.iter().any(|text| text.starts_with(what));
    assert!(told("mode bitmap: staging is exhausted"), "{modes:?}");
    assert!(told("mode catching-up: staging is exhausted"), "{modes:?}");
    assert!(told("mode data"), "{modes:?}");
}

#[test]
fn a_first_copy_begins_when_it_is_told_to_and_a_pause_keeps_what_was_copied() {
    let lab = Lab::empty();
    assert_eq!(lab.run(&["lab", "add", "vol-01", "--guest", "none", "--disk", "512M"]).code, 0);
    lab.wait_for("its agent is there", MINUTE, |lab| {
        lab.machine("vol-01")["disks"][0]["endpoint"].as_str().is_some_and(|uri| !uri.is_empty())
    });
    let refused = lab.run(&["protect", "vol-01", "--start-at", "+8d", "--no-wait"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    let order = lab.run(&["protect", "vol-01", "--start-at", "+6h", "--no-wait"]);
    assert_eq!(order.code, 0, "{order:?}");
    lab.wait_for("it waits for its time", MINUTE, |lab| {
        lab.machine("vol-01")["phase"] == "waiting-for-start"
    });
    assert!(lab.machine("vol-01")["start_at"].is_string());
    let data = image(&lab, 448);
    copy(&lab, &data);
    assert!(journal(&lab) < MIB, "nothing travels before its time");

    assert_eq!(lab.run(&["resume", "vol-01"]).code, 0);
    lab.wait_for("part of it is copied", MINUTE, |lab| {
        lab.json(&["describe", "machine", "vol-01"])["initial_bytes_done"]
            .as_u64()
            .is_some_and(|done| done > 8 * MIB)
    });
    assert_eq!(lab.run(&["pause", "vol-01"]).code, 0);
    lab.wait_for("it is suspended", MINUTE, |lab| lab.machine("vol-01")["mode"] == "bitmap");
    let machine = lab.json(&["describe", "machine", "vol-01"]);
    assert_eq!(machine["phase"], "suspended");
    let left = machine["dirty_bytes"].as_u64().expect("it is told");
    println!("{left} bytes are left of {}", 448 * MIB);
    assert!(left > 16 * MIB && left < 500 * MIB, "it was paused on its way: {left}");
    assert_eq!(lab.run(&["resume", "vol-01"]).code, 0);
    whole(&lab);
    let sent = lab.json(&["describe", "machine", "vol-01"])["sent_bytes_total"].as_u64().expect("it is told");
    println!("{sent} bytes were sent in all");
    assert!(sent < 448 * MIB + 40 * MIB, "what was copied before the pause was not copied again: {sent}");
    let verified = lab.run(&["verify", "vol-01", "-o", "json"]).json();
    assert_eq!(verified["disks"][0]["equal"], true);

    // One that nobody starts begins by itself.
    assert_eq!(lab.run(&["lab", "add", "vol-02", "--guest", "none", "--disk", "16M"]).code, 0);
    lab.wait_for("its agent is there", MINUTE, |lab| {
        lab.machine("vol-02")["disks"][0]["endpoint"].as_str().is_some_and(|uri| !uri.is_empty())
    });
    assert_eq!(lab.run(&["protect", "vol-02", "--start-at", "+4s"]).code, 0);
    assert_eq!(lab.machine("vol-02")["state"], "protected");
}

/// Changes the lab's policy.
fn set_policy(lab: &Lab, change: impl FnOnce(&mut pb::Policy)) {
    let profile = lab.dir().join("profile");
    let text = std::fs::read_to_string(profile.join("profile.toml")).expect("a profile");
    let address = text.split('"').nth(1).expect("an address").to_owned();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let credentials = Credentials::open(&profile).expect("credentials");
        let channel =
            continuum_wire::grpc::channel(&credentials, &address, Role::Vault).await.expect("the vault");
        let mut client = OperatorClient::new(channel);
        let request = pb::SnapshotRequest { kinds: vec![pb::Kind::Policy as i32], ..Default::default() };
        let known = client.snapshot(request).await.expect("policies").into_inner();
        let mut policy = known
            .entities
            .into_iter()
            .find_map(|entity| match entity.entity {
                Some(pb::entity::Entity::Policy(policy)) => Some(policy),
                _ => None,
            })
            .expect("a policy");
        change(&mut policy);
        let order = pb::order_request::Order::SetPolicy(pb::SetPolicy { policy: Some(policy) });
        let key = format!("policy-{}", std::process::id());
        let request = pb::OrderRequest { key, order: Some(order), ..Default::default() };
        client.order(request).await.expect("the policy is set");
    });
}

#[test]
fn a_resync_waits_for_its_window_unless_it_is_told_to_begin_and_keeps_all_history() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["64M"]);
    lab.wait_healthy(1, MINUTE);
    copy(&lab, &image(&lab, 48));
    let marked = lab.run(&["bookmark", "vol-01", "before"]);
    assert_eq!(marked.code, 0, "{marked:?}");
    // Two hours from now on for an hour, by local time, whatever that is.
    let minutes = Command::new("date").arg("+%H").output().expect("date runs").stdout;
    let hour: u32 = String::from_utf8_lossy(&minutes).trim().parse().expect("an hour");
    set_policy(&lab, |policy| {
        policy.resync_window = Some(pb::Hours {
            days: Vec::new(),
            from: format!("{:02}:00", (hour + 2) % 24),
            to: format!("{:02}:00", (hour + 3) % 24),
        });
    });
    let sent = journal(&lab);
    let oldest = lab.json(&["describe", "machine", "vol-01"])["oldest_point"].clone();
    let report = lab.json(&["readiness", "vol-01", "--for", "resync"]);
    assert_eq!(report["ready"], true, "{report}");
    let order = lab.run(&["resync", "vol-01", "--no-wait", "-o", "json"]);
    assert_eq!(order.code, 0, "{order:?}");
    lab.wait_for("it waits for its window", MINUTE, |lab| {
        lab.machine("vol-01")["phase"] == "waiting-for-window"
    });
    assert_eq!(lab.machine("vol-01")["state"], "resync");
    // What came before it can be brought up meanwhile.
    assert_eq!(lab.run(&["test-failover", "vol-01", "--point", "processed"]).code, 0);
    assert_eq!(lab.run(&["cleanup", "vol-01"]).code, 0);
    assert_eq!(lab.run(&["pause", "vol-01"]).code, 0);
    assert_eq!(lab.machine("vol-01")["phase"], "suspended");
    assert_eq!(lab.run(&["resume", "vol-01"]).code, 0);

    // The order that waits is not in the way of one that does not: its job is told to begin.
    let jobs = lab.json(&["get", "jobs"]);
    let waiting = jobs.as_array().into_iter().flatten().find(|job| job["kind"] == "resync").expect("the job");
    let id = waiting["job"].as_str().or_else(|| waiting["id"].as_str()).expect("its id").to_owned();
    assert_eq!(lab.run(&["resync", "vol-01", "--now", "--no-wait"]).code, 0);
    assert_eq!(lab.run(&["wait", &id]).code, 0);
    lab.wait_healthy(1, MINUTE);
    let verified = lab.run(&["verify", "vol-01", "-o", "json"]).json();
    assert_eq!(verified["disks"][0]["equal"], true);
    assert!(journal(&lab) - sent < MIB, "nothing differs, and nothing travels: {}", journal(&lab) - sent);
    assert_eq!(lab.json(&["describe", "machine", "vol-01"])["oldest_point"], oldest, "all history is kept");
    let points = lab.json(&["get", "points", "vol-01"]);
    assert!(points.as_array().into_iter().flatten().any(|point| point["name"] == "before"), "{points}");

    // An unplanned failover cancels the next one.
    assert_eq!(lab.run(&["resync", "vol-01", "--no-wait"]).code, 0);
    lab.wait_for("it waits for its window", MINUTE, |lab| {
        lab.machine("vol-01")["phase"] == "waiting-for-window"
    });
    let over = lab.run(&[
        "failover",
        "vol-01",
        "--unplanned",
        "--point",
        "processed",
        "--yes",
        "--confirm",
        "vol-01",
    ]);
    assert_eq!(over.code, 0, "{over:?}");
    let jobs = lab.json(&["get", "jobs"]);
    let cancelled =
        jobs.as_array().into_iter().flatten().any(|job| job["fault"]["code"] == "resync.cancelled");
    assert!(cancelled, "{jobs}");
}
