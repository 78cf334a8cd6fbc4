//! Reports of drills: shown, written into files, and held against their digests by others' tools, too.

use crate::fake::{FakeVault, World};
use crate::{command, finish, run};
use continuum_model::report::{FORMAT, Report, ReportMachine, ReportProbe, ReportStep};
use continuum_model::untrusted::is_dangerous;
use continuum_proto::v1 as pb;
use serde_json::json;
use std::process::Command;

const HOSTILE: &str = "</td><script>alert(1)</script>&\"'\u{1b}]52;c;ZXZpbA==\u{7}\u{202e}gpj\r\n\u{e0001}ü";

fn report(sequence: u64, previous: &str, subject: &str) -> Report {
    let step = |name: &str, took_ms, planned_ms| ReportStep {
        name: name.into(),
        outcome: "succeeded".into(),
        started_us: Some(1_790_000_000_500_000),
        took_ms: Some(took_ms),
        planned_ms,
        detail: subject.into(),
    };
    let machine = ReportMachine {
        name: subject.into(),
        job: "j1".into(),
        outcome: "succeeded".into(),
        point_us: Some(1_790_000_000_000_000),
        point_kind: "crash".into(),
        point_name: subject.into(),
        point_age_ms: Some(250),
        loss_ms: Some(40),
        loss_bytes: Some(4096),
        rto_ms: Some(1_500),
        steps: vec![step("open-view", 20, Some(18)), step("probe", 900, None)],
        probes: vec![ReportProbe { name: subject.into(), passed: true, detail: subject.into() }],
        note: subject.into(),
        problem: String::new(),
    };
    Report {
        format: FORMAT,
        sequence,
        previous: previous.into(),
        vault: subject.into(),
        vault_id: "v1".into(),
        run: format!("j{sequence}"),
        kind: "test-failover".into(),
        subject: subject.into(),
        ordered_by: subject.into(),
        ordered_us: 1_790_000_000_250_000,
        ended_us: 1_790_000_002_000_000,
        asked_point: "latest".into(),
        outcome: "succeeded".into(),
        passed: true,
        rto_ms: Some(1_500),
        rto_objective_ms: Some(600_000),
        rpo_ms: Some(250),
        machines: vec![machine],
        ..Report::default()
    }
    .seal()
    .unwrap()
}

fn message(report: &Report) -> pb::Report {
    pb::Report {
        sequence: report.sequence,
        job: report.run.clone(),
        kind: report.kind.clone(),
        subject: report.subject.clone(),
        made_us: report.ended_us,
        outcome: report.outcome.clone(),
        passed: report.passed,
        digest: report.digest.clone(),
        body: serde_json::to_string(report).unwrap(),
    }
}

#[test]
fn a_report_is_told_written_and_proves_itself_to_any_tool() {
    let first = report(1, "", HOSTILE);
    let second = report(2, &first.digest, "web-01");
    let world = World { reports: vec![message(&second), message(&first)], ..World::default() };
    let vault = FakeVault::start(world);
    let list = run(&vault, &["report", "list", "-o", "json"]).json();
    assert_eq!(list[0]["sequence"], 2);
    assert_eq!((&list[1]["subject"], &list[1]["passed"]), (&json!(HOSTILE), &json!(true)));

    let text = run(&vault, &["report", "show", "web-01"]);
    assert_eq!(text.code, 0, "{text:?}");
    for told in [
        "Drill of web-01: PASSED",
        "RTO       1.5 s; objective 10 min: met",
        "RPO       0.2 s; no objective is set",
        "0.0 s, 4.0 KiB",
        "open-view",
        &second.digest,
        &first.digest,
    ] {
        assert!(text.out.contains(told), "{told}\n{}", text.out);
    }

    // Files: as they are verified, and as they are read.
    let file = |name: &str| vault.path().join(name).to_str().unwrap().to_owned();
    let (one, two) = (file("1.json"), file("2.json"));
    for (of, to) in [("j1", &one), ("j2", &two), ("j1", &file("1.html")), ("j1", &file("1.txt"))] {
        let shown = run(&vault, &["report", "show", of, "--to", to]);
        assert_eq!(shown.code, 0, "{shown:?}");
    }
    let again = run(&vault, &["report", "show", "j1", "--to", &one]);
    assert_eq!(again.code, 1, "what is there is not replaced unasked: {again:?}");
    assert_eq!(run(&vault, &["report", "show", "j1", "--to", &one, "--force"]).code, 0);
    for name in ["1.json", "1.html", "1.txt"] {
        let written = std::fs::read_to_string(file(name)).unwrap();
        assert!(!written.chars().any(|c| is_dangerous(c) && c != '\n'), "{name}:\n{written}");
        if name == "1.html" {
            assert!(!written.contains("<script") && written.contains("&lt;script&gt;"), "{written}");
        }
    }

    // Without a vault, in their order.
    let home = tempfile::tempdir().unwrap();
    let verify = |files: &[&str]| {
        let mut command = command(home.path());
        command.args(["report", "verify", "-o", "json"]).args(files);
        finish(command)
    };
    assert_eq!(verify(&[&one, &two]).json()[1]["digest"], json!(second.digest));
    let wrong = verify(&[&two, &one]);
    assert_eq!((wrong.code, &wrong.fault()["code"]), (1, &json!("report.changed")), "{wrong:?}");
    let changed = std::fs::read_to_string(&two).unwrap().replace("\"rto_ms\": 1500", "\"rto_ms\": 150");
    let three = file("3.json");
    std::fs::write(&three, changed).unwrap();
    let wrong = verify(&[&three]);
    assert_eq!((wrong.code, &wrong.fault()["code"]), (1, &json!("report.changed")), "{wrong:?}");
    let missing = verify(&[&file("none.json")]);
    assert_eq!((missing.code, &missing.fault()["code"]), (2, &json!("report.unreadable")));

    // Somebody else's JSON and somebody else's SHA-256 come to the same digest.
    let python = "import hashlib, json, sys\n\
                  report = json.load(open(sys.argv[1]))\n\
                  said = report.pop('digest')\n\
                  text = json.dumps(report, sort_keys=True, separators=(',', ':'), ensure_ascii=False)\n\
                  sys.exit(hashlib.sha256(text.encode()).hexdigest() != said)";
    for path in [&one, &two] {
        let checked = Command::new("python3").args(["-c", python, path]).status().expect("python3 runs");
        assert!(checked.success(), "{path}");
    }
}

#[test]
fn what_a_vault_tells_is_held_against_its_digest() {
    let mut message = message(&report(1, "", "web-01"));
    message.body = message.body.replace("\"passed\":true", "\"passed\":false");
    let vault = FakeVault::start(World { reports: vec![message], ..World::default() });
    let shown = run(&vault, &["report", "show", "web-01", "-o", "json"]);
    assert_eq!((shown.code, &shown.fault()["code"]), (1, &json!("report.changed")), "{shown:?}");
}
