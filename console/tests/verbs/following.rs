//! Following a job: to its end, over restarts, with its outcome as exit code.

use crate::fake::{FakeVault, World};
use crate::{command, finish, run};
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use serde_json::json;
use std::process::Stdio;

const SECOND: i64 = 1_000_000;
const START: i64 = 1_795_000_000 * SECOND;

fn step(name: &str, state: &str, seconds: Option<i64>) -> pb::Step {
    pb::Step {
        name: name.into(),
        state: state.into(),
        started_us: (state != "pending").then_some(START),
        ended_us: seconds.map(|seconds| START + seconds * SECOND),
        ..Default::default()
    }
}

fn job(state: &str, steps: Vec<pb::Step>) -> pb::Job {
    pb::Job {
        id: "01920b5e-7a3c-7cc1-9a37-3e5b0f6d2c11".into(),
        kind: "test-failover".into(),
        machine: "web-01".into(),
        state: state.into(),
        created_us: START,
        started_us: Some(START),
        ended_us: matches!(state, "succeeded" | "warnings" | "failed" | "cancelled")
            .then_some(START + 3 * SECOND),
        steps,
        ..Default::default()
    }
}

fn done() -> pb::Job {
    pb::Job {
        machines: vec![pb::MachineOutcome {
            name: "web-01".into(),
            point: Some(pb::Point {
                id: "p1".into(),
                time_us: START,
                kind: "crash".into(),
                ..Default::default()
            }),
            rto_seconds: Some(2.5),
            loss_seconds: Some(0.25),
            loss_bytes: Some(4096),
            disks: vec![pb::Disk {
                name: "root".into(),
                size_bytes: 512,
                endpoint: "nbd://127.0.0.1:1/root".into(),
                ..Default::default()
            }],
            probes: vec![pb::Probe { name: "heartbeat".into(), passed: true, detail: "answers".into() }],
            ..Default::default()
        }],
        ..job(
            "succeeded",
            vec![step("open view", "succeeded", Some(1)), step("start guest", "succeeded", Some(2))],
        )
    }
}

fn starts_with(first: pb::Job) -> World {
    World { on_order: Box::new(move |_| Ok(first.clone())), ..World::default() }
}

/// Waits, from outside, until somebody watches.
fn until_watched(vault: &FakeVault) {
    while vault.watchers() == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn steps_are_told_and_the_outcome_keeps_the_contract() {
    let vault = FakeVault::start(starts_with(job(
        "running",
        vec![step("open view", "running", None), step("start guest", "pending", None)],
    )));
    for format in [None, Some("json")] {
        let mut command = command(vault.path());
        command.env("CONTINUUM_DIR", vault.path()).args(["test-failover", "web-01", "--wait"]);
        command.args(format.map(|format| ["-o", format]).into_iter().flatten());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        until_watched(&vault);
        vault.change(Entity::Job(job(
            "running",
            vec![step("open view", "succeeded", Some(1)), step("start guest", "running", None)],
        )));
        vault.change(Entity::Job(done()));
        let output = child.wait_with_output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(0), "{out}{err}");
        if format.is_none() {
            for line in ["[1/2] open view: succeeded after 1.0 s", "[2/2] start guest: succeeded after 2.0 s"]
            {
                assert_eq!(err.matches(line).count(), 1, "{line}: {err}");
            }
            assert!(
                out.contains("test-failover of web-01: succeeded after 3.0 s")
                    && out.contains("nbd://127.0.0.1:1/root"),
                "{out}"
            );
        } else {
            assert_eq!(err, "", "a program reads: standard error holds errors only");
            let told: serde_json::Value = serde_json::from_str(&out).unwrap();
            let contract = json!({
                "job": "01920b5e-7a3c-7cc1-9a37-3e5b0f6d2c11", "kind": "test-failover", "outcome": "succeeded",
                "started": "2026-11-18T11:06:40.000000Z", "ended": "2026-11-18T11:06:43.000000Z",
                "steps": [{"name": "open view", "outcome": "succeeded", "seconds": 1.0, "detail": null},
                          {"name": "start guest", "outcome": "succeeded", "seconds": 2.0, "detail": null}],
                "machines": [{"name": "web-01",
                    "point": {"id": "p1", "time": "2026-11-18T11:06:40.000000Z", "kind": "crash", "name": null, "group": null, "pinned": false, "locked_until": null,
                              "proofs": {"booted": null, "probed": null, "digest_equal": null}},
                    "rto_seconds": 2.5, "loss_seconds": 0.25, "loss_bytes": 4096,
                    "disks": [{"name": "root", "size_bytes": 512, "endpoint": "nbd://127.0.0.1:1/root"}],
                    "probes": [{"name": "heartbeat", "passed": true, "detail": "answers"}], "note": null}],
            });
            for (key, value) in contract.as_object().unwrap() {
                assert_eq!(&told[key], value, "{key}");
            }
        }
        vault.world().entities.clear();
    }
}

#[test]
fn a_restarted_vault_is_found_again_and_the_job_is_followed_to_its_end() {
    let mut vault = FakeVault::start(starts_with(job("running", vec![step("open view", "running", None)])));
    let mut command = command(vault.path());
    command.env("CONTINUUM_DIR", vault.path()).args(["test-failover", "web-01"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_watched(&vault);
    vault.down();
    vault.change(Entity::Job(done()));
    vault.up();
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(
        err.contains("connection lost, trying again") && err.contains("connected again"),
        "the fault fired: {err}"
    );
    assert_eq!(vault.world().orders.len(), 1);
}

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_key() {
    let mut world = starts_with(done());
    world.lose_answers = 1;
    let vault = FakeVault::start(world);
    let answer = run(&vault, &["test-failover", "web-01"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.err.contains("asking again under the same key"), "the fault fired: {answer:?}");
    let world = vault.world();
    assert_eq!(world.orders.len(), 2);
    assert_eq!(world.orders[0].key, world.orders[1].key);
    assert!(!world.orders[0].key.is_empty());
}

#[test]
fn the_same_key_gives_the_same_job_and_every_other_command_a_new_one() {
    let vault = FakeVault::start(starts_with(done()));
    for _ in 0..2 {
        assert_eq!(run(&vault, &["test-failover", "web-01", "--key", "drill-1"]).code, 0);
    }
    run(&vault, &["test-failover", "web-01"]);
    run(&vault, &["test-failover", "web-01"]);
    let world = vault.world();
    let keys: Vec<&str> = world.orders.iter().map(|order| order.key.as_str()).collect();
    assert_eq!(&keys[..2], ["drill-1", "drill-1"]);
    assert!(keys[2] != keys[3] && keys[2] != "drill-1");
}

#[test]
fn how_a_job_ends_is_the_exit_code() {
    let fault = |class: &str| pb::Fault {
        code: "view.failed".into(),
        class: class.into(),
        message: "no view".into(),
        ..Default::default()
    };
    let ended = |state: &str, fault: Option<pb::Fault>| pb::Job { fault, ..job(state, vec![]) };
    for (why, job, code, error) in [
        ("warnings are no failure", ended("warnings", None), 0, None),
        ("failed", ended("failed", Some(fault("failed"))), 1, Some("view.failed")),
        ("failed for want of readiness", ended("failed", Some(fault("not-ready"))), 3, Some("view.failed")),
        ("failed, unexplained", ended("failed", None), 1, Some("job.failed")),
        ("cancelled", ended("cancelled", None), 1, Some("job.cancelled")),
    ] {
        let vault = FakeVault::start(starts_with(job));
        let answer = run(&vault, &["test-failover", "web-01", "-o", "json"]);
        assert_eq!(answer.code, code, "{why}");
        assert_eq!(answer.out_json()["kind"], "test-failover", "{why}: the job is told in any case");
        match error {
            Some(error) => assert_eq!(answer.fault()["code"], error, "{why}"),
            None => assert_eq!(answer.err, "", "{why}"),
        }
    }
}

#[test]
fn verify_ends_well_only_when_every_disk_is_equal() {
    for (equal, code) in [(true, 0), (false, 1)] {
        let disk = pb::VerifyDisk {
            name: "root".into(),
            source_digest: "aa".into(),
            replica_digest: if equal { "aa" } else { "bb" }.into(),
            equal,
        };
        let verified = pb::Job { kind: "verify".into(), verified: vec![disk], ..done() };
        let vault = FakeVault::start(starts_with(verified));
        let answer = run(&vault, &["verify", "web-01", "-o", "json"]);
        assert_eq!(answer.code, code);
        let told = answer.out_json();
        assert_eq!((&told["machine"], &told["point"]["id"]), (&json!("web-01"), &json!("p1")));
        assert_eq!(
            told["disks"],
            json!([{"name": "root", "source_digest": "aa", "replica_digest": if equal { "aa" } else { "bb" }, "equal": equal}])
        );
        assert!(run(&vault, &["verify", "web-01"]).out.contains(if equal { "equal" } else { "differs" }));
    }
}

#[test]
fn not_waiting_and_not_waiting_for_ever() {
    let vault = FakeVault::start(starts_with(job("running", vec![step("open view", "running", None)])));
    let accepted = run(&vault, &["test-failover", "web-01", "--no-wait", "-o", "json"]);
    assert_eq!((&accepted.json()["outcome"], &accepted.json()["state"]), (&json!(null), &json!("running")));
    let late = run(&vault, &["test-failover", "web-01", "--timeout", "1", "-o", "json"]);
    assert_eq!((late.code, &late.fault()["code"]), (3, &json!("wait.timeout")));
    let id = job("", vec![]).id;
    vault.change(Entity::Job(done()));
    assert_eq!(run(&vault, &["wait", &id, "-o", "json"]).json()["outcome"], "succeeded");
    assert_eq!(run(&vault, &["wait", "no-such-job"]).code, 3);
}

#[test]
fn ctrl_c_leaves_the_job_alone() {
    let vault = FakeVault::start(starts_with(job("running", vec![step("open view", "running", None)])));
    let mut command = command(vault.path());
    command.env("CONTINUUM_DIR", vault.path()).args(["test-failover", "web-01"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_watched(&vault);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{err}");
    assert!(err.contains("continuum wait 01920b5e"), "{err}");
    assert_eq!(vault.world().orders.len(), 1, "no order to cancel was given");
}

#[test]
fn protect_takes_several_and_fills_in_what_there_is_only_one_of() {
    let site = |name: &str, recovery| {
        Entity::Site(pb::Site { id: name.into(), name: name.into(), recovery, ..Default::default() })
    };
    let policy =
        |name: &str| Entity::Policy(pb::Policy { id: name.into(), name: name.into(), ..Default::default() });
    let mut world = starts_with(done());
    world.entities = vec![site("paris", false), site("berlin", true), policy("standard")];
    let vault = FakeVault::start(world);
    let answer = run(&vault, &["protect", "web-01", "db-01", "-o", "json"]);
    assert_eq!(answer.json().as_array().map(Vec::len), Some(2));
    {
        let world = vault.world();
        let machines: Vec<&str> = world.orders.iter().map(|order| order.machine.as_str()).collect();
        assert_eq!(machines, ["web-01", "db-01"]);
        assert!(matches!(&world.orders[0].order,
            Some(pb::order_request::Order::Protect(protect)) if protect.policy == "standard" && protect.target_site == "berlin"));
    }
    vault.change(policy("gold"));
    let ambiguous = run(&vault, &["protect", "web-01", "-o", "json"]);
    assert_eq!((ambiguous.code, &ambiguous.fault()["code"]), (2, &json!("usage.choice")));
    assert!(ambiguous.fault()["message"].as_str().unwrap().contains("standard, gold"));
}

#[test]
fn changes_are_told_as_they_happen() {
    use std::io::{BufRead, BufReader};
    let vault = FakeVault::start(World {
        entities: vec![Entity::Machine(super::answers::machine("web-01"))],
        ..World::default()
    });
    let mut command = command(vault.path());
    command.env("CONTINUUM_DIR", vault.path()).args(["get", "machines", "--watch", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["name"], "web-01");
    until_watched(&vault);
    vault.change(Entity::Machine(super::answers::machine("db-01")));
    assert_eq!(next()["name"], "db-01");
    child.kill().unwrap();
    child.wait().unwrap();
    let wrong = finish({
        let mut wrong = crate::command(vault.path());
        wrong.env("CONTINUUM_DIR", vault.path()).args(["get", "points", "web-01", "--watch"]);
        wrong
    });
    assert_eq!(wrong.code, 2);
}
