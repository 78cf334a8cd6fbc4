//! A machine whose name is an attack on whoever reads it.

use crate::console::Tmux;
use continuum_model::untrusted::is_dangerous;
use continuum_tests::lab::{Lab, binary};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const NAME: &str = "web\u{1b}]52;c;ZXZpbA==\u{7}\u{1b}[31m\u{202e}10\u{202c}\r\n=cmd|'/c calc'!A0\u{9b}2J";

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Enrols an agent under that name, and starts it.
fn intrude(lab: &Lab) -> Agent {
    let token = lab.json(&["token", "agent", "--site", "primary"])["token"].as_str().expect("one").to_owned();
    let dir = lab.dir().join("machines/hostile");
    std::fs::create_dir_all(&dir).expect("a folder");
    let mut enrolling = Command::new(binary().with_file_name("continuumd"))
        .args(["enroll", "--token-file", "-", "--role", "agent", "--name", NAME, "--identity"])
        .arg(dir.join("identity"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("continuumd runs");
    enrolling.stdin.take().expect("a pipe").write_all(token.as_bytes()).expect("it reads");
    let output = enrolling.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    harmless("enroll", &String::from_utf8(output.stdout).expect("UTF-8"));
    let model = std::fs::read(lab.dir().join("machines/web-01/agent.json")).expect("an agent's settings");
    let mut settings: serde_json::Value = serde_json::from_slice(&model).expect("JSON");
    settings["name"] = NAME.into();
    settings["guest"] = "none".into();
    settings["dir"] = dir.join("agent").to_str().into();
    settings["identity"] = dir.join("identity").to_str().into();
    settings["socket"] = dir.join("m.sock").to_str().into();
    settings["disks"][0][0] = "01a20000-0000-7000-8000-00000000d15c".into();
    settings["disks"][0][1] = NAME.into();
    settings["disks"][0][2] = dir.join("disk.img").to_str().into();
    std::fs::write(dir.join("agent.json"), settings.to_string()).expect("a file");
    let log = std::fs::File::create(dir.join("agent.log")).expect("a file");
    let mut role = Command::new(binary());
    role.args(["role", "service", "--config"]).arg(dir.join("agent.json"));
    let child = role.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("an agent");
    Agent(child)
}

#[track_caller]
fn harmless(what: &str, text: &str) {
    let found = text.chars().find(|c| *c != '\n' && is_dangerous(*c));
    assert_eq!(found, None, "{what}: {text:?}");
}

#[test]
fn a_name_full_of_commands_harms_nobody() {
    let lab = Lab::start(&["--machines", "1"]);
    lab.wait_healthy(1, Duration::from_secs(60));
    let _agent = intrude(&lab);
    let named = |lab: &Lab| -> Option<serde_json::Value> {
        let machines = lab.json(&["get", "machines"]);
        machines.as_array()?.iter().find(|machine| machine["name"] != "web-01").cloned()
    };
    lab.wait_for("the machine is known", Duration::from_secs(30), |lab| named(lab).is_some());
    let id = named(&lab).expect("it is known")["id"].as_str().expect("an id").to_owned();
    // Protected and drilled by its id like any other.
    assert_eq!(lab.run(&["protect", &id]).code, 0);
    lab.wait_healthy(2, Duration::from_secs(60));
    assert_eq!(lab.run(&["bookmark", &id, NAME]).code, 0);
    let drill = lab.run(&["test-failover", &id]);
    assert_eq!(drill.code, 0, "{drill:?}");

    // The same text in every form of every answer.
    for format in ["table", "wide", "json", "yaml", "csv"] {
        for words in [
            &["get", "machines"][..],
            &["get", "jobs"],
            &["get", "alerts"],
            &["get", "servers"],
            &["get", "events"],
            &["get", "points", &id],
            &["describe", "machine", &id],
            &["readiness", &id],
        ] {
            let answer = lab.run(&[words, &["-o", format]].concat());
            // A second drill beside the first would not be ready.
            let code = if words[0] == "readiness" { 3 } else { 0 };
            assert_eq!(answer.code, code, "{words:?} as {format}: {answer:?}");
            harmless(&format!("{words:?} as {format}"), &answer.stdout);
            harmless(&format!("{words:?} as {format}, standard error"), &answer.stderr);
            if format == "csv" {
                let formula = answer.stdout.lines().any(|line| line.starts_with('='));
                assert!(!formula, "a spreadsheet would run this: {}", answer.stdout);
            }
        }
    }
    // The console, screen by screen, by a terminal that would obey.
    let tmux = Tmux::open(&lab, 80, 24);
    tmux.shows("live");
    tmux.keys(&["3", "/", "'cmd", "Enter"]);
    tmux.shows("1 of 2");
    for keys in ["Enter", "Tab", "Tab", "Tab", "5", "6", "7", "2", "1"] {
        tmux.keys(&[keys]);
        let text = tmux.shows("1 Pulse");
        harmless("the console", &text);
        assert_eq!(text.lines().filter(|line| line.contains("1 Pulse")).count(), 1, "{text}");
    }
    assert_eq!(lab.run(&["cleanup", &id]).code, 0);
    harmless("the logs", &lab.logs().replace('\t', " "));
}
