//! Errors: one shape, one exit code for each class, nothing on standard output.

use crate::fake::{FakeVault, World};
use crate::{command, finish, run};
use continuum_model::fault::{Fault, FaultClass};
use serde_json::{Value, json};

#[test]
fn every_class_ends_in_its_exit_code_with_its_whole_fault() {
    for (class, code) in [
        (FaultClass::Failed, 1),
        (FaultClass::Usage, 2),
        (FaultClass::NotReady, 3),
        (FaultClass::NotFound, 3),
        (FaultClass::Conflict, 3),
        (FaultClass::Refused, 5),
        (FaultClass::WaitingForApproval, 6),
        (FaultClass::Configuration, 78),
    ] {
        let fault = Fault::new(class, "a.code", "what happened")
            .affects("this")
            .spares("that")
            .remedy("do it")
            .correlated("c-1");
        let vault =
            FakeVault::start(World { on_order: Box::new(move |_| Err(fault.clone())), ..World::default() });
        let answer = run(&vault, &["pause", "web-01", "-o", "json"]);
        assert_eq!((answer.code, answer.out.as_str()), (code, ""), "{class:?}");
        assert_eq!(
            answer.fault(),
            json!({"code": "a.code", "message": "what happened", "affected": "this", "unaffected": "that", "remedy": "do it", "correlation": "c-1"})
        );
        let words = run(&vault, &["pause", "web-01"]);
        assert_eq!(
            (words.code, words.out.as_str(), words.err.as_str()),
            (
                code,
                "",
                "error: what happened [a.code]\n  affected: this\n  not affected: that\n  what to do: do it\n  correlation: c-1\n"
            )
        );
    }
}

#[test]
fn wrong_usage_is_exit_2_in_words_and_in_json() {
    let vault = FakeVault::start(World::default());
    for words in [
        &["frobnicate"][..],
        &["get", "kittens"],
        &["get"],
        &["protect"],
        &["failover", "web-01"],
        &["failover", "web-01", "--unplanned"],
        &["failover", "web-01", "--planned", "--unplanned", "--point", "latest"],
        &["test-failover", "web-01", "--point", "yesterday"],
        &["get", "points"],
        &["get", "machines", "--since", "2026-11-23T03:15:00Z"],
        &["get", "machines", "--limit", "0"],
        &["pause", "-rf"],
        &["pause", "web-01", "--timeout", "0"],
        &["pause", "web-01", "--key", "a b"],
        &["get", "machines", "--profile", "a", "--dir", "/tmp"],
    ] {
        let answer = run(&vault, words);
        assert_eq!((answer.code, answer.out.as_str()), (2, ""), "{words:?}: {answer:?}");
        assert!(!answer.err.is_empty() && answer.err.contains("error"), "{words:?}");
        let words = [&["-o", "json"], words].concat();
        let fault = run(&vault, &words).fault();
        assert_eq!(fault.as_object().map(serde_json::Map::len), Some(6), "{words:?}");
        assert!(fault["message"].is_string() && fault["remedy"].is_string(), "{words:?}: {fault}");
    }
    assert!(vault.world().orders.is_empty());
}

#[test]
fn no_vault_is_exit_4_or_78_and_says_how_to_get_one() {
    let home = tempfile::tempdir().unwrap();
    let ask = |words: &[&str], set: &[(&str, &str)]| {
        let mut command = command(home.path());
        command.args(words).args(["-o", "json"]).envs(set.iter().copied());
        finish(command)
    };
    let nothing = ask(&["get", "machines"], &[]);
    assert_eq!((nothing.code, &nothing.fault()["code"]), (4, &json!("profile.none")));
    assert!(nothing.fault()["remedy"].as_str().unwrap().contains("continuum lab"));
    let no_lab = ask(&["get", "machines", "--dir", "/nowhere/at/all"], &[]);
    assert_eq!((no_lab.code, &no_lab.fault()["code"]), (4, &json!("lab.absent")));
    let from_environment = ask(&["get", "machines"], &[("CONTINUUM_DIR", "/nowhere/at/all")]);
    assert_eq!((from_environment.code, &from_environment.fault()["code"]), (4, &json!("lab.absent")));
    let unknown = ask(&["get", "machines", "--profile", "berlin"], &[]);
    assert_eq!((unknown.code, &unknown.fault()["code"]), (78, &json!("profile.unknown")));
    let odd = ask(&["get", "machines", "--profile", "../../etc"], &[]);
    assert_eq!((odd.code, &odd.fault()["code"]), (2, &json!("profile.name")));
    let dir = home.path().join("config/profiles/bad");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("profile.toml"), "address = \"v:1\"\nport = 3\n").unwrap();
    let bad = ask(&["get", "machines", "--profile", "bad"], &[]);
    assert_eq!((bad.code, &bad.fault()["code"]), (78, &json!("profile.file")));
    assert!(bad.fault()["message"].as_str().unwrap().contains("line 2, column 1"), "{bad:?}");
    std::fs::write(dir.join("profile.toml"), "address = \"v:1\"\n").unwrap();
    let keyless = ask(&["get", "machines", "--profile", "bad"], &[]);
    assert_eq!((keyless.code, &keyless.fault()["code"]), (78, &json!("profile.credentials")));
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let vault = FakeVault::start(World::default());
    let key = vault.path().join("profile/key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let answer = run(&vault, &["get", "machines", "-o", "json"]);
    assert_eq!((answer.code, &answer.fault()["code"]), (78, &json!("profile.credentials")));
    assert!(answer.fault()["message"].as_str().unwrap().contains("chmod 600"));
}

#[test]
fn a_vault_that_is_gone_or_another_one_is_not_spoken_to() {
    let mut vault = FakeVault::start(World::default());
    let other = FakeVault::start(World::default());
    let stranger = run(&vault, &["get", "machines", "--connect", &other.address, "-o", "json"]);
    assert_eq!((stranger.code, &stranger.fault()["code"]), (5, &json!("tls.refused")));
    vault.down();
    let gone = run(&vault, &["get", "machines", "-o", "json"]);
    assert_eq!((gone.code, gone.out.as_str()), (4, ""), "{gone:?}");
    vault.up();
    assert_eq!(run(&vault, &["get", "machines", "-o", "json"]).json(), json!([]), "the new address is read");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::io::Read;
    use std::process::Stdio;
    let event = |id| {
        continuum_proto::v1::entity::Entity::Event(continuum_proto::v1::Event {
            id,
            text: "x".repeat(200),
            ..Default::default()
        })
    };
    let vault = FakeVault::start(World { entities: (0..5000).map(event).collect(), ..World::default() });
    let mut command = command(vault.path());
    command.env("CONTINUUM_DIR", vault.path()).args(["get", "events", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 64];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn doctor_tells_what_is_missing_and_how_to_mend_it() {
    let vault = FakeVault::start(World::default());
    let answer = run(&vault, &["doctor", "-o", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let list = answer.out_json();
    let state = |list: &Value, name: &str| {
        let found = list.as_array().unwrap().iter().find(|check| check["check"] == name).cloned();
        found.unwrap_or_else(|| panic!("no check {name}"))["state"].clone()
    };
    for check in ["terminal", "configuration", "data", "profile", "certificate", "vault", "clock", "keyring"]
    {
        assert_eq!(state(&list, check), "ok", "{check}");
    }
    let mut vault = vault;
    vault.down();
    let answer = run(&vault, &["doctor", "-o", "json"]);
    assert_eq!((answer.code, state(&answer.out_json(), "vault")), (1, json!("failed")));
    assert_eq!(answer.fault()["code"], "doctor.failed");
}
