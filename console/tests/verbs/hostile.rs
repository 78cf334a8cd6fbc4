//! Names and texts that try to drive the terminal, forge a line, or become a formula.

use crate::fake::{FakeVault, World};
use crate::{Answer, run};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::is_dangerous;
use continuum_proto::v1 as pb;
use pb::entity::Entity;

const HOSTILE: &str = "=web\u{1b}]52;c;ZXZpbA==\u{7}\u{9b}31m\r\n\u{202e}gpj\u{200b}\0\u{7f}\u{2028}";

fn estate() -> World {
    let name = || HOSTILE.to_owned();
    let symptom = || pb::Symptom { code: name(), severity: name(), text: name(), remedy: name() };
    let disk = || pb::Disk { name: name(), endpoint: name(), ..Default::default() };
    let step = || pb::Step { name: name(), state: name(), detail: name(), ..Default::default() };
    let point = || pb::Point { id: name(), kind: name(), name: name(), time_us: 1, ..Default::default() };
    let probe = || pb::Probe { name: name(), detail: name(), passed: true };
    let job = pb::Job {
        id: "j1".into(),
        kind: name(),
        machine: name(),
        state: "succeeded".into(),
        steps: vec![step()],
        by: name(),
        detail: name(),
        waiting_for: name(),
        machines: vec![pb::MachineOutcome {
            name: name(),
            point: Some(point()),
            disks: vec![disk()],
            probes: vec![probe()],
            note: name(),
            ..Default::default()
        }],
        verified: vec![pb::VerifyDisk {
            name: name(),
            source_digest: name(),
            replica_digest: name(),
            equal: true,
        }],
        ..Default::default()
    };
    let given = job.clone();
    World {
        entities: vec![
            Entity::Machine(pb::Machine {
                id: "m1".into(),
                name: name(),
                site: name(),
                fabric: name(),
                state: name(),
                state_reason: name(),
                mode: name(),
                mode_reason: name(),
                health: name(),
                symptoms: vec![symptom()],
                direction: name(),
                target_site: name(),
                policy: name(),
                disks: vec![disk()],
                process_server: name(),
                master_target: name(),
                test_state: name(),
                orders: vec![name()],
                phase: name(),
                estimate_note: name(),
                hops: vec![pb::Hop { name: name(), note: name(), ..Default::default() }],
                spikes: vec![pb::Spike { hop: name(), cause: name(), ..Default::default() }],
                ..Default::default()
            }),
            Entity::Site(pb::Site { id: "s1".into(), name: name(), fabric: name(), recovery: true }),
            Entity::Server(pb::Server {
                id: "v1".into(),
                name: name(),
                role: name(),
                site: name(),
                version: name(),
                address: name(),
                health: name(),
                symptoms: vec![symptom()],
                machine: name(),
                ..Default::default()
            }),
            Entity::Policy(pb::Policy { id: "p1".into(), name: name(), ..Default::default() }),
            Entity::Alert(pb::Alert {
                id: "a1".into(),
                severity: name(),
                code: name(),
                object_kind: name(),
                object: name(),
                object_id: name(),
                text: name(),
                cause: name(),
                remedy: name(),
                ..Default::default()
            }),
            Entity::Event(pb::Event {
                id: 1,
                kind: name(),
                object: name(),
                object_id: name(),
                text: name(),
                by: name(),
                ..Default::default()
            }),
            Entity::Job(job),
        ],
        points: vec![point()],
        gaps: vec![pb::Gap { from_us: 1, to_us: 2, reason: name() }],
        readiness: Ok(pb::ReadinessReply {
            ready: true,
            checks: vec![pb::Check { name: name(), state: name(), detail: name(), remedy: name() }],
            preview: Some(pb::PreviewReply {
                point: Some(point()),
                gap: Some(pb::Gap { from_us: 1, to_us: 2, reason: name() }),
                ..Default::default()
            }),
            summary: name(),
            command: name(),
            ..Default::default()
        }),
        on_order: Box::new(move |_| Ok(given.clone())),
        ..World::default()
    }
}

#[track_caller]
fn harmless(words: &[&str], answer: &Answer) {
    for text in [&answer.out, &answer.err] {
        let bad = text.chars().find(|c| *c != '\n' && is_dangerous(*c));
        assert_eq!(bad, None, "{words:?}: {text:?}");
    }
}

#[test]
fn no_answer_in_any_form_drives_a_terminal() {
    let vault = FakeVault::start(estate());
    let mut commands: Vec<Vec<&str>> = Vec::new();
    for noun in ["sites", "machines", "policies", "jobs", "alerts", "servers", "events"] {
        commands.push(vec!["get", noun]);
    }
    commands.push(vec!["get", "points", "m1"]);
    for (noun, id) in [
        ("machine", "m1"),
        ("site", "s1"),
        ("server", "v1"),
        ("policy", "p1"),
        ("alert", "a1"),
        ("job", "j1"),
    ] {
        commands.push(vec!["describe", noun, id]);
    }
    commands.push(vec!["readiness", "web\u{1b}]52;c;x\u{7}\n\u{202e}"]);
    commands.push(vec!["test-failover", "m1"]);
    commands.push(vec!["wait", "j1"]);
    commands.push(vec!["describe", "machine", "\u{1b}[2Jnone"]);
    commands.push(vec!["get", "\u{1b}[2Jkind"]);
    for command in &commands {
        for format in ["table", "wide", "json", "yaml", "csv"] {
            let words = [command.as_slice(), &["-o", format]].concat();
            let answer = run(&vault, &words);
            harmless(&words, &answer);
            if format == "csv" {
                assert!(
                    !answer.out.lines().any(|line| line.starts_with('=') || line.contains(",=")),
                    "a formula: {}",
                    answer.out
                );
            }
        }
    }
}

#[test]
fn a_program_reads_the_very_name() {
    let vault = FakeVault::start(estate());
    assert_eq!(run(&vault, &["get", "machines", "-o", "json"]).json()[0]["name"], HOSTILE);
}

#[test]
fn one_object_stays_one_line() {
    let vault = FakeVault::start(estate());
    for noun in ["sites", "machines", "policies", "jobs", "alerts", "servers", "events"] {
        for format in ["table", "wide", "csv"] {
            let out = run(&vault, &["get", noun, "-o", format]).out;
            assert_eq!(out.lines().count(), 2, "{noun} {format}: {out}");
        }
    }
}

#[test]
fn a_fault_of_the_vault_is_shown_harmlessly() {
    let vault = FakeVault::start(World {
        on_order: Box::new(|_| {
            Err(Fault::new(FaultClass::Failed, HOSTILE, HOSTILE)
                .affects(HOSTILE)
                .spares(HOSTILE)
                .remedy(HOSTILE)
                .correlated(HOSTILE))
        }),
        ..World::default()
    });
    for words in [&["pause", "web-01"][..], &["pause", "web-01", "-o", "json"]] {
        let answer = run(&vault, words);
        assert_eq!(answer.code, 1);
        harmless(words, &answer);
    }
    assert_eq!(run(&vault, &["pause", "web-01"]).err.lines().count(), 5, "no line is forged");
}
