//! The shape of answers: the contract field by field, and every form of it.

use crate::fake::{FakeVault, World};
use crate::run;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use serde_json::{Value, json};

pub fn machine(name: &str) -> pb::Machine {
    pb::Machine {
        id: format!("01920b5e-7a3c-7cc1-9a37-{:012x}", name.bytes().map(u64::from).sum::<u64>()),
        name: name.into(),
        site: "paris".into(),
        fabric: "lab".into(),
        guest: "process".into(),
        protected: true,
        state: "protected".into(),
        mode: "data".into(),
        health: "healthy".into(),
        direction: "forward".into(),
        target_site: "berlin".into(),
        policy: "standard".into(),
        disks: vec![pb::Disk {
            name: "root".into(),
            size_bytes: 64 << 20,
            endpoint: "nbd+unix:///root?socket=/run/x".into(),
            ..Default::default()
        }],
        rpo_seconds: Some(0.25),
        rpo_p50_seconds: Some(0.2),
        rpo_p99_seconds: Some(0.9),
        newest_received_us: Some(1_795_000_000_123_456),
        newest_point_us: Some(1_795_000_000_123_000),
        history_seconds: Some(7200.0),
        history_promised_seconds: Some(86_400.0),
        churn_bytes_per_sec: Some(1_048_576),
        points: 24,
        test_state: "none".into(),
        rpo_threshold_seconds: Some(900),
        hops: vec![pb::Hop {
            name: "agent".into(),
            newest_us: Some(1_795_000_000_123_456),
            age_seconds: Some(0.1),
            bytes: Some(4096),
            bytes_max: Some(8192),
            bytes_per_sec: Some(100),
            full_seconds: Some(41.0),
            note: String::new(),
        }],
        spikes: vec![pb::Spike {
            started_us: 1_795_000_000_123_456,
            ended_us: None,
            worst_seconds: 7.5,
            hop: "target".into(),
            cause: "mt-1 has said nothing for 7 s".into(),
        }],
        ..Default::default()
    }
}

fn unknown_machine() -> pb::Machine {
    pb::Machine {
        id: "m2".into(),
        name: "bare".into(),
        state: "unprotected".into(),
        health: "not-applicable".into(),
        ..Default::default()
    }
}

fn world(entities: Vec<Entity>) -> World {
    World { entities, ..World::default() }
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn a_machine_keeps_the_contract() {
    let vault =
        FakeVault::start(world(vec![Entity::Machine(machine("web-01")), Entity::Machine(unknown_machine())]));
    let answer = run(&vault, &["get", "machines", "-o", "json"]);
    let list = answer.json();
    let mut expected = [
        "name",
        "site",
        "fabric",
        "state",
        "mode",
        "health",
        "symptoms",
        "direction",
        "target_site",
        "policy",
        "rpo_seconds",
        "rpo_p50_seconds",
        "rpo_p99_seconds",
        "newest_received",
        "newest_point",
        "newest_app_point",
        "history_seconds",
        "history_promised_seconds",
        "churn_bytes_per_sec",
        "points",
        "disks",
        "id",
        "test_state",
        "rpo_max_seconds",
        "phase",
        "mode_reason",
        "estimate_seconds",
        "estimate_note",
        "start_at",
        "copy_bytes_per_sec",
        "hops",
        "spikes",
    ];
    // The order of the contract is the order of the text.
    let positions: Vec<_> =
        expected.iter().map(|key| answer.out.find(&format!("\"{key}\":")).expect(key)).collect();
    assert!(positions[..10].is_sorted(), "{}", answer.out);
    expected.sort_unstable();
    assert_eq!(keys(&list[0]), expected);
    assert_eq!(
        list[0],
        json!({
            "name": "web-01", "site": "paris", "fabric": "lab", "state": "protected", "mode": "data", "health": "healthy",
            "symptoms": [], "direction": "forward", "target_site": "berlin", "policy": "standard", "rpo_seconds": 0.25,
            "rpo_p50_seconds": 0.2, "rpo_p99_seconds": 0.9, "newest_received": "2026-11-18T11:06:40.123456Z",
            "newest_point": "2026-11-18T11:06:40.123000Z", "newest_app_point": null, "history_seconds": 7200.0,
            "history_promised_seconds": 86400.0, "churn_bytes_per_sec": 1048576, "points": 24,
            "disks": [{"name": "root", "size_bytes": 67108864, "endpoint": "nbd+unix:///root?socket=/run/x"}],
            "id": machine("web-01").id, "test_state": "none", "rpo_max_seconds": null, "phase": null,
            "mode_reason": null, "estimate_seconds": null, "estimate_note": null, "start_at": null,
            "copy_bytes_per_sec": null,
            "hops": [{"name": "agent", "newest": "2026-11-18T11:06:40.123456Z", "age_seconds": 0.1, "bytes": 4096,
                "of_bytes": 8192, "out_bytes_per_sec": 100, "full_in_seconds": 41.0, "note": null}],
            "spikes": [{"started": "2026-11-18T11:06:40.123456Z", "ended": null, "worst_seconds": 7.5, "hop": "target",
                "cause": "mt-1 has said nothing for 7 s"}],
        })
    );
    for unknown in ["rpo_seconds", "newest_point", "churn_bytes_per_sec", "policy", "mode"] {
        assert_eq!(list[1][unknown], Value::Null, "{unknown}: not known is null, never a made-up zero");
    }
}

#[test]
fn one_by_name_is_an_array_of_one_and_an_unknown_name_is_exit_3() {
    let vault =
        FakeVault::start(world(vec![Entity::Machine(machine("web-01")), Entity::Machine(machine("db-01"))]));
    let list = run(&vault, &["get", "machines", "web-01", "-o", "json"]).json();
    assert_eq!((list.as_array().map(Vec::len), &list[0]["name"]), (Some(1), &json!("web-01")));
    let missing = run(&vault, &["get", "machines", "web-99", "-o", "json"]);
    assert_eq!((missing.code, missing.out.as_str()), (3, ""));
    assert_eq!(missing.fault()["code"], "machine.unknown");
}

#[test]
fn the_same_list_in_every_form() {
    let mut late = machine("db-01");
    (late.health, late.rpo_seconds, late.mode) = ("critical".into(), Some(1000.0), "bitmap".into());
    late.symptoms = vec![pb::Symptom {
        code: "rpo.high".into(),
        severity: "critical".into(),
        text: "late".into(),
        remedy: "wait".into(),
    }];
    let vault = FakeVault::start(world(vec![Entity::Machine(machine("web-01")), Entity::Machine(late)]));
    let table = run(&vault, &["get", "machines"]);
    assert_eq!(
        (table.code, table.out.as_str(), table.err.as_str()),
        (
            0,
            "NAME    STATE      HEALTH       RPO  HISTORY      CHURN  POINTS  MODE    TEST  TARGET\n\
             db-01   protected  critical  17 min    2.0 h  1.0 MiB/s      24  bitmap  -     berlin\n\
             web-01  protected  healthy    0.2 s    2.0 h  1.0 MiB/s      24  data    -     berlin\n",
            ""
        ),
        "worst first, aligned, no colour without a terminal"
    );
    let wide = run(&vault, &["get", "machines", "-o", "wide"]).out;
    assert!(
        wide.starts_with("NAME    STATE      HEALTH       RPO    P50    P99") && wide.contains("rpo.high"),
        "{wide}"
    );
    let yaml = run(&vault, &["get", "machines", "-o", "yaml"]).out;
    assert!(yaml.starts_with("- name: db-01\n  site: paris\n"), "{yaml}");
    assert!(yaml.contains("  symptoms:\n  - code: rpo.high\n    text: late\n"), "{yaml}");
    assert!(
        yaml.contains("  newest_point: \"2026-11-18T11:06:40.123000Z\"\n  newest_app_point: null\n"),
        "{yaml}"
    );
    let csv = run(&vault, &["get", "machines", "-o", "csv"]).out;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].starts_with("name,site,fabric,state,mode,health,symptoms,direction,"), "{csv}");
    assert!(
        lines[1].starts_with("db-01,paris,lab,protected,bitmap,critical,\"[{\"\"code\"\":\"\"rpo.high\"\""),
        "{csv}"
    );
    assert_eq!(lines.len(), 3);
}

#[test]
fn empty_lists_say_so_to_people_and_are_empty_to_programs() {
    let vault = FakeVault::start(World::default());
    for noun in ["sites", "machines", "policies", "jobs", "alerts", "servers", "events"] {
        assert_eq!(run(&vault, &["get", noun, "-o", "json"]).json(), json!([]), "{noun}");
        let text = run(&vault, &["get", noun]);
        assert!(text.out.starts_with("No "), "{text:?}");
        let csv = run(&vault, &["get", noun, "-o", "csv"]);
        assert_eq!(csv.out.lines().count(), 1, "the head alone: {csv:?}");
    }
}

#[test]
fn points_come_in_pages_with_their_gaps_and_a_limit() {
    let point = |n: i64| pb::Point {
        id: format!("p{n}"),
        time_us: 1_795_000_000_000_000 + n * 1_000_000,
        kind: if n == 2499 { "bookmark" } else { "crash" }.into(),
        name: if n == 2499 { "before upgrade".into() } else { String::new() },
        proofs: Some(pb::Proofs { booted: Some(true), probed: Some(n != 2498), digest_equal: None }),
        ..Default::default()
    };
    let mut estate = World { points: (0..2500).rev().map(point).collect(), ..World::default() };
    estate.gaps.push(pb::Gap {
        from_us: 1_795_000_001_000_000,
        to_us: 1_795_000_002_000_000,
        reason: "the agent was away".into(),
    });
    let vault = FakeVault::start(estate);
    let all = run(&vault, &["get", "points", "web-01", "--limit", "10000", "-o", "json"]).json();
    assert_eq!(all.as_array().map(Vec::len), Some(2500));
    assert_eq!(
        all[0],
        json!({"id": "p2499", "time": "2026-11-18T11:48:19.000000Z", "kind": "bookmark", "name": "before upgrade", "group": null, "pinned": false, "locked_until": null,
               "proofs": {"booted": true, "probed": true, "digest_equal": null}})
    );
    let few = run(&vault, &["get", "points", "web-01", "--limit", "2"]);
    assert!(few.out.contains("NOT probed") && few.out.contains("the agent was away"), "{few:?}");
    assert!(few.err.contains("older points are not listed"), "{few:?}");
    let since =
        run(&vault, &["get", "points", "web-01", "--since", "2026-11-18T11:48:18Z", "-o", "json"]).json();
    assert_eq!(since.as_array().map(Vec::len), Some(2));
    let described = run(&vault, &["describe", "point", "web-01/p3", "-o", "json"]).json();
    assert_eq!(described["id"], "p3");
    assert_eq!(run(&vault, &["describe", "point", "web-01/none"]).code, 3);
}

#[test]
fn a_readiness_report_is_an_exit_code_too() {
    let mut estate = World::default();
    let report = pb::ReadinessReply {
        ready: false,
        summary: "web-01 would be brought up at berlin, isolated.".into(),
        checks: vec![
            pb::Check { name: "target".into(), state: "ok".into(), ..Default::default() },
            pb::Check {
                name: "agent".into(),
                state: "failed".into(),
                detail: "silent for 20 s".into(),
                remedy: "start it".into(),
            },
        ],
        preview: Some(pb::PreviewReply { loss_seconds: 1.5, loss_bytes: 4096, ..Default::default() }),
        ..Default::default()
    };
    estate.readiness = Ok(report);
    let vault = FakeVault::start(estate);
    let answer = run(&vault, &["readiness", "web-01", "--for", "failover", "-o", "json"]);
    assert_eq!(answer.code, 3);
    let told = answer.out_json();
    assert_eq!(
        (&told["ready"], &told["loss_seconds"], &told["checks"][1]["state"]),
        (&json!(false), &json!(1.5), &json!("failed"))
    );
    assert_eq!(answer.fault()["remedy"], "start it");
    assert_eq!(vault.world().asked[0].order, "failover");
    let text = run(&vault, &["readiness", "web-01"]).out;
    assert!(text.contains("given up    1.5 s of changes, 4.0 KiB") && text.contains("agent"), "{text}");
}

#[test]
fn names_that_look_alike_are_told_apart() {
    let (composed, decomposed) = (machine("caf\u{e9}"), machine("cafe\u{301}"));
    let vault = FakeVault::start(world(vec![
        Entity::Machine(composed.clone()),
        Entity::Machine(decomposed.clone()),
        Entity::Machine(machine("web-01")),
    ]));
    let table = run(&vault, &["get", "machines"]).out;
    for twin in [&composed, &decomposed] {
        assert!(table.contains(&format!("({})", &twin.id[twin.id.len() - 8..])), "{table}");
    }
    assert!(table.contains("web-01  "), "{table}");
}

#[test]
fn two_of_one_name_are_not_guessed_at() {
    let (mut a, mut b) = (machine("web-01"), machine("web-01"));
    (a.id, b.id) = ("id-a".into(), "id-b".into());
    let vault = FakeVault::start(world(vec![Entity::Machine(a), Entity::Machine(b)]));
    let answer = run(&vault, &["describe", "machine", "web-01"]);
    assert_eq!(answer.code, 2);
    assert!(answer.err.contains("id-a, id-b"), "{answer:?}");
    assert_eq!(run(&vault, &["describe", "machine", "id-b", "-o", "json"]).json()["id"], "id-b");
}

#[test]
fn completions_and_pages_are_made() {
    let vault = FakeVault::start(World::default());
    for shell in ["bash", "zsh", "fish"] {
        let text = run(&vault, &["completions", shell]).out;
        assert!(text.contains("test-failover") && !text.contains("\u{1b}"), "{shell}");
    }
    assert!(run(&vault, &["man"]).out.contains(".TH continuum 1"));
    let dir = tempfile::tempdir().unwrap();
    let answer = run(&vault, &["man", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(dir.path().join("continuum-test-failover.1").exists());
}

#[test]
fn every_verb_has_a_help_with_an_example() {
    let vault = FakeVault::start(World::default());
    let all = run(&vault, &["--help"]).out;
    let mut verbs = 0;
    for verb in all.lines().skip_while(|line| *line != "Verbs:").skip(1).take_while(|line| !line.is_empty()) {
        let Some(verb) = verb
            .strip_prefix("  ")
            .filter(|verb| !verb.starts_with(' '))
            .and_then(|verb| verb.split(' ').next())
        else {
            continue;
        };
        let help = run(&vault, &[verb, "--help"]);
        assert_eq!(help.code, 0);
        assert!(help.out.contains("Examples:") || help.out.contains("In a script:"), "{verb}: {}", help.out);
        verbs += 1;
    }
    assert!(verbs > 20, "{all}");
}

#[test]
fn files_are_inspected_without_any_vault() {
    let home = tempfile::tempdir().unwrap();
    let inspect = |path: &std::path::Path| {
        let mut command = crate::command(home.path());
        command.arg("inspect").arg(path).args(["-o", "json"]);
        crate::finish(command)
    };
    let file = home.path().join("some\u{1b}[2Jfile");
    std::fs::write(&file, "CTMX0001 nothing of ours").unwrap();
    let answer = inspect(&file);
    assert_eq!(
        (&answer.json()["kind"], &answer.json()["begins_with"]),
        (&json!("unknown"), &json!("CTMX0001"))
    );
    assert!(!answer.out.contains('\u{1b}'));
    assert_eq!(inspect(home.path()).json()["kind"], json!("folder"));
    for (why, path, code) in [("a device", "/dev/zero", 1), ("nothing", "/no/such/file", 3)] {
        let answer = inspect(path.as_ref());
        assert_eq!((answer.code, &answer.fault()["code"]), (code, &json!("inspect.unreadable")), "{why}");
    }
}
