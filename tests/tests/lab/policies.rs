//! Policies and access by the verbs and by keys, on a real lab: applied, exported, changed, assigned, deleted; people let
//! in and put out; the audit log verified away from the vault.

use crate::console::Tmux;
use continuum_tests::lab::{Answer, Lab, binary};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

const SEVERAL: &str = "\
# what we promise
kind: policy
name: gold
retention_seconds: 172800
steps:
  - {every_seconds: 3600, for_seconds: 604800}
bandwidth:
  - {days: [mon, tue], from: \"08:00\", to: \"18:00\", bytes_per_sec: 2000000}
resync_window: {days: [], from: \"18:30\", to: \"06:00\"}
---
kind: policy
name: bronze
retention_seconds: 3600
app_point_seconds: 0
---
kind: plan
name: shop
groups: [{name: databases, machines: [db-01]}]
";

fn apply(lab: &Lab, text: &str, more: &[&str]) -> Answer {
    let file = lab.dir().join("several.yaml");
    std::fs::write(&file, text).expect("a file");
    lab.run(&[&["apply", "-f", file.to_str().expect("UTF-8"), "-o", "json"], more].concat())
}

fn names(lab: &Lab) -> Vec<String> {
    let all = lab.json(&["get", "policies"]);
    all.as_array().expect("a list").iter().filter_map(|p| p["name"].as_str().map(String::from)).collect()
}

#[test]
fn policies_live_as_texts_and_people_by_tokens() {
    let lab = Lab::start(&[]);
    lab.wait_healthy(4, Duration::from_secs(60));

    // One wrong word in the last document, and nothing of the file is applied; all of it is told.
    let wrong =
        SEVERAL.replace("app_point_seconds: 0", "app_point_seconds: 0\ncompresion: true\nencryption: no");
    let wrong = apply(&lab, &wrong.replace("[db-01]", "[]"), &[]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    for told in [
        "line 15: compresion",
        "did you mean compression",
        "line 16: encryption",
        "line 20: groups[0].machines",
    ] {
        assert!(wrong.stderr.contains(told), "{told}: {wrong:?}");
    }
    assert_eq!(names(&lab), ["default"]);
    let dry = apply(&lab, SEVERAL, &["--dry-run"]);
    assert_eq!(dry.code, 0, "{dry:?}");
    assert_eq!(names(&lab), ["default"], "a dry run makes nothing");
    assert_eq!(apply(&lab, SEVERAL, &[]).code, 0);
    assert_eq!(names(&lab), ["bronze", "default", "gold"]);

    // What is exported is what apply takes: applied again it changes nothing, and exports as the same.
    let export = |name: &str| lab.run(&["get", "policy", name, "-o", "yaml"]).stdout;
    let gold = export("gold");
    assert!(gold.contains("bytes_per_sec: 2000000") && gold.contains("# 2 MB/s"), "{gold}");
    assert_eq!(apply(&lab, &gold, &[]).code, 0);
    assert_eq!(lab.json(&["describe", "policy", "gold"])["version"], 1, "nothing was changed");
    let longer = gold.replace("retention_seconds: 172800", "retention_seconds: 259200");
    assert_eq!(apply(&lab, &longer, &[]).code, 0);
    let versions = lab.json(&["get", "policies", "gold", "--history"]);
    let told: Vec<_> = versions.as_array().expect("a list").iter().map(|v| v["version"].as_u64()).collect();
    assert_eq!(told, [Some(2), Some(1)]);
    assert!(versions[0]["by"].is_string() && versions[0]["time"].is_string(), "{versions}");
    let diff = lab.run(&["get", "policies", "gold", "--diff"]).stdout;
    assert!(
        diff.contains("- retention_seconds: 172800") && diff.contains("+ retention_seconds: 259200"),
        "{diff}"
    );

    // Machines go under another policy; what they give up is agreed to.
    assert_eq!(lab.run(&["set-policy", "web-01", "db-01", "--policy", "gold"]).code, 0);
    assert_eq!(lab.machine("db-01")["policy"], "gold");
    let refused = lab.run(&["set-policy", "web-01", "--policy", "bronze", "--yes"]);
    assert_eq!(refused.code, 5, "{refused:?}");
    assert_eq!(lab.machine("web-01")["policy"], "gold");
    let words = ["set-policy", "web-01", "db-01", "--policy", "bronze", "--yes", "--confirm", "bronze"];
    let changed = lab.run(&words);
    assert_eq!(changed.code, 0, "{changed:?}");
    lab.wait_for("the promise follows", Duration::from_secs(20), |lab| {
        lab.machine("web-01")["history_promised_seconds"] == 3600.0
    });
    let used = lab.run(&["delete", "policy", "bronze"]);
    assert!(used.code == 3 && used.stderr.contains("db-01, web-01"), "{used:?}");
    assert_eq!(lab.run(&["delete", "policy", "gold"]).code, 0);
    assert_eq!(names(&lab), ["bronze", "default"]);

    // By keys: the form judges while it is typed into, the report is agreed to, and the vault has it.
    let tmux = Tmux::open(&lab, 80, 24);
    tmux.shows("live");
    tmux.keys(&["8"]);
    tmux.shows("Under it");
    tmux.keys(&["e"]);
    tmux.shows("Policy bronze");
    tmux.keys(&["Down", "C-u", "s", "o", "o", "n"]);
    tmux.shows("write a time, such as");
    tmux.keys(&["C-u", "2", "Space", "h"]);
    tmux.shows("1 h → 2 h");
    tmux.keys(&["Up", "Up", "Up", "Enter"]);
    tmux.shows("y orders");
    assert_eq!(lab.json(&["describe", "policy", "bronze"])["retention_seconds"], 3600, "not ordered yet");
    tmux.keys(&["y"]);
    lab.wait_for("the policy is changed", Duration::from_secs(20), |lab| {
        lab.json(&["describe", "policy", "bronze"])["retention_seconds"] == 7200
    });
    drop(tmux);

    // A person is let in by a token, is asked what they may, and is put out.
    let token = lab.run(&["token", "operator", "--name", "eve", "--as", "recoverer"]).stdout;
    let config = lab.dir().join("eve");
    let eve = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.env("HOME", lab.dir()).env("CONTINUUM_CONFIG_DIR", &config).env_remove("CONTINUUM_DIR");
        let output = command.args(words).stdin(Stdio::null()).output().expect("continuum runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let file = lab.dir().join("token");
    std::fs::write(&file, token.trim()).expect("a file");
    let login =
        eve(&["login", "--token-file", file.to_str().expect("UTF-8"), "--name", "lab", "--no-keyring"]);
    assert!(login.0 == Some(0) && login.1.contains("as eve (recoverer)"), "{login:?}");
    assert_eq!(eve(&["--profile", "lab", "can-i", "failover", "web-01"]).0, Some(0));
    let no = eve(&["--profile", "lab", "can-i", "set-policy"]);
    assert!(no.0 == Some(5) && no.1.contains("contributor"), "{no:?}");
    assert_eq!(eve(&["--profile", "lab", "delete", "policy", "default"]).0, Some(5));
    let operators = lab.json(&["get", "operators", "eve"]);
    assert!(operators[0]["certificate_expires"].is_string(), "{operators}");
    assert_eq!(lab.run(&["revoke", "operator", "eve"]).code, 0);
    assert_ne!(eve(&["--profile", "lab", "get", "machines"]).0, Some(0), "at once");

    // The audit log, verified where no vault is.
    let log = lab.run(&["get", "audit", "--all", "-o", "json"]).stdout;
    let path = lab.dir().join("audit.json");
    std::fs::write(&path, &log).expect("a file");
    let verify = || lab.run(&["audit", "verify", path.to_str().expect("UTF-8"), "-o", "json"]);
    let whole = verify();
    assert!(whole.code == 0 && whole.json()["lines"].as_u64() > Some(10), "{whole:?}");
    let mut lines: Vec<Value> = serde_json::from_str(&log).expect("JSON");
    let at = lines.iter().position(|line| line["act"] == "delete-policy").expect("it is written down");
    lines[at]["actor"] = "somebody".into();
    std::fs::write(&path, serde_json::to_string(&lines).expect("JSON")).expect("a file");
    let edited = verify();
    let named = format!("line {} is the first", at + 1);
    assert!(edited.code == 1 && edited.stderr.contains(&named), "{edited:?}");
}
