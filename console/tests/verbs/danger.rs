//! Dangerous orders: nothing is done without agreement, nothing is asked where nobody can answer.

use crate::fake::{self, FakeVault, World};
use crate::{Answer, run};
use continuum_proto::v1 as pb;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

fn estate(name: &'static str) -> World {
    World {
        readiness: Ok(pb::ReadinessReply {
            ready: true,
            confirm: name.into(),
            destroys: true,
            machine_version: 41,
            summary: "web-01 starts at berlin; its source is kept out.".into(),
            preview: Some(pb::PreviewReply { loss_seconds: 0.5, loss_bytes: 1 << 20, ..Default::default() }),
            ..Default::default()
        }),
        on_order: Box::new(|order| {
            Ok(pb::Job {
                id: "j1".into(),
                kind: "failover".into(),
                machine: order.machine.clone(),
                state: "succeeded".into(),
                ..Default::default()
            })
        }),
        ..World::default()
    }
}

#[test]
fn without_a_terminal_a_dangerous_order_needs_yes_and_the_exact_name() {
    let dangerous: [&[&str]; 3] = [
        &["failover", "web-01", "--unplanned", "--point", "latest"],
        &["commit", "web-01"],
        &["unprotect", "web-01"],
    ];
    for words in dangerous {
        let vault = FakeVault::start(estate("web-01"));
        for (why, more) in [
            ("neither", &[][..]),
            ("yes alone", &["--yes"]),
            ("the name alone", &["--confirm", "web-01"]),
            ("another name", &["--yes", "--confirm", "web-02"]),
            ("nearly the name", &["--yes", "--confirm", "web-01 "]),
            ("another case", &["--yes", "--confirm", "WEB-01"]),
        ] {
            let answer = run(&vault, &[words, more, &["-o", "json"]].concat());
            assert_eq!((answer.code, answer.out.as_str()), (5, ""), "{words:?}, {why}");
            assert_eq!(answer.fault()["code"], "consent.missing");
            assert!(answer.fault()["remedy"].as_str().unwrap().contains("--yes --confirm web-01"));
        }
        assert!(vault.world().orders.is_empty(), "no order ever arrived");
        let agreed = run(&vault, &[words, &["--yes", "--confirm", "web-01", "-o", "json"]].concat());
        assert_eq!(agreed.code, 0, "{agreed:?}");
        let world = vault.world();
        let order = world.orders.first().unwrap();
        assert_eq!(
            (order.confirm.as_str(), order.expected_version),
            ("web-01", 41),
            "bound to what the report was about"
        );
    }
}

#[test]
fn an_odd_name_reaches_the_right_machine() {
    for name in ["-rf", "--yes", "web 01", "a\u{1b}]52;c;ZXZpbA==\u{7}b", "x\ny", "\u{202e}10-bew"] {
        let vault = FakeVault::start(World {
            readiness: Ok(pb::ReadinessReply {
                ready: true,
                confirm: name.into(),
                destroys: true,
                ..Default::default()
            }),
            ..estate("")
        });
        let answer = run(&vault, &["commit", "--yes", "--confirm", name, "--", name]);
        assert_eq!(answer.code, 0, "{name:?}: {answer:?}");
        assert!(
            !answer.out.chars().any(|c| c != '\n' && continuum_model::untrusted::is_dangerous(c)),
            "{answer:?}"
        );
        let world = vault.world();
        assert_eq!((world.orders[0].machine.as_str(), world.orders[0].confirm.as_str()), (name, name));
    }
}

#[test]
fn not_ready_is_exit_3_before_anything_is_asked() {
    let mut world = estate("web-01");
    world.readiness = Ok(pb::ReadinessReply {
        checks: vec![pb::Check {
            name: "target".into(),
            state: "failed".into(),
            detail: "it is away".into(),
            remedy: "start it".into(),
        }],
        ..Default::default()
    });
    let vault = FakeVault::start(world);
    let answer = run(
        &vault,
        &[
            "failover",
            "web-01",
            "--unplanned",
            "--point",
            "latest",
            "--yes",
            "--confirm",
            "web-01",
            "-o",
            "json",
        ],
    );
    assert_eq!((answer.code, &answer.fault()["code"]), (3, &json!("readiness.failed")));
    assert!(vault.world().orders.is_empty());
}

#[test]
fn a_planned_failover_is_asked_for_and_agreed_to_like_any_other() {
    use pb::order_request::Order;
    let vault = FakeVault::start(estate("web-01"));
    let words = ["failover", "web-01", "--planned", "--yes", "-o", "json"];
    let unasked = run(&vault, &words);
    assert_eq!((unasked.code, &unasked.fault()["code"]), (5, &json!("consent.missing")));
    assert!(vault.world().orders.is_empty());
    assert_eq!(run(&vault, &[&words[..], &["--confirm", "web-01"]].concat()).code, 0);
    let world = vault.world();
    assert!(world.asked.iter().all(|asked| asked.order == "planned-failover"));
    let Some(Order::Failover(order)) = &world.orders[0].order else { panic!("{:?}", world.orders) };
    assert_eq!((order.kind.as_str(), order.point.as_str()), ("planned", ""));
}

#[test]
fn what_loses_nothing_asks_nothing() {
    let vault = FakeVault::start(estate("web-01"));
    for words in [
        &["pause", "web-01"][..],
        &["test-failover", "web-01"],
        &["bookmark", "web-01", "b"],
        &["cleanup", "web-01"],
        &["test-failover", "web-01", "--yes"],
    ] {
        assert_eq!(run(&vault, words).code, 0, "{words:?}");
    }
}

/// Runs a verb at a terminal, where a person types `typed` once the question stands there.
fn at_terminal(vault: &FakeVault, words: &[&str], typed: &str) -> Answer {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let path = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
    let end = || Stdio::from(std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap());
    let mut command = Command::new(fake::binary());
    command.env("CONTINUUM_DIR", vault.path()).env("TERM", "xterm").env_remove("NO_COLOR").args(words);
    let mut child = command.stdin(end()).stdout(Stdio::piped()).stderr(end()).spawn().unwrap();
    // The command holds the terminal open, too.
    drop(command);
    let mut screen = std::fs::File::from(controller);
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    let mut answered = false;
    // The read ends when the child's last handle on the terminal is closed.
    while let Ok(count @ 1..) = screen.read(&mut buffer) {
        seen += &String::from_utf8_lossy(&buffer[..count]);
        if !answered && seen.ends_with(" to go on: ") {
            answered = true;
            screen.write_all(typed.as_bytes()).unwrap();
        }
    }
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    Answer { code: child.wait().unwrap().code().unwrap_or(-1), out, err: seen }
}

#[test]
fn at_a_terminal_the_report_comes_first_and_the_name_is_typed() {
    let words = ["failover", "web-01", "--unplanned", "--point", "latest"];
    for (typed, code) in [("web-01\n", 0), ("yes\n", 5), ("\n", 5), ("web-0\n", 5), ("\u{4}", 5)] {
        let vault = FakeVault::start(estate("web-01"));
        let answer = at_terminal(&vault, &words, typed);
        assert_eq!(answer.code, code, "{typed:?}: {answer:?}");
        let report = answer.err.find("its source is kept out").expect("the summary");
        let loss = answer.err.find("given up    0.5 s of changes, 1.0 MiB").expect("the loss");
        let question = answer.err.find("Type web-01 to go on: ").expect("the question");
        assert!(report < loss && loss < question);
        assert_eq!(vault.world().orders.len(), usize::from(code == 0), "{typed:?}");
    }
}
