//! Profiles: made, proven, chosen, removed.

use crate::fake::{FakeVault, World};
use crate::{Answer, command, finish};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn ask(home: &Path, words: &[&str]) -> Answer {
    let mut command = command(home);
    command.args(words);
    finish(command)
}

/// Logs in with credentials that the vault's owner made.
fn login(home: &Path, vault: &FakeVault, name: &str) -> Answer {
    let files = home.join(format!("credentials-{name}"));
    vault.operator_files(&files, "operator", "grace");
    let url = format!("https://{}", vault.address);
    ask(home, &["login", &url, "--credentials", files.to_str().unwrap(), "--name", name, "-o", "json"])
}

#[test]
fn credentials_become_a_profile() {
    let vault = FakeVault::start(World::default());
    let home = tempfile::tempdir().unwrap();
    assert_eq!(
        login(home.path(), &vault, "berlin").json(),
        json!({"profile": "berlin", "address": vault.address, "vault": "test vault", "operator": "grace",
               "role": "operator", "key": "file"})
    );
    let key = home.path().join("config/profiles/berlin/key.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(key.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        ask(home.path(), &["get", "machines", "-o", "json"]).json(),
        json!([]),
        "it is in use at once"
    );
    let who = ask(home.path(), &["whoami", "-o", "json"]).json();
    assert_eq!(
        (&who["name"], &who["role"], &who["may"]),
        (&json!("grace"), &json!("operator"), &json!(["test-failover"]))
    );
    let list = ask(home.path(), &["profiles", "-o", "json"]).json();
    let expected =
        json!([{"name": "berlin", "current": true, "address": vault.address, "key": "file", "error": null}]);
    assert_eq!(list, expected);
    assert_eq!(ask(home.path(), &["logout"]).code, 0);
    assert!(!key.exists());
    assert_eq!(ask(home.path(), &["get", "machines"]).code, 4);
}

#[test]
fn given_credentials_are_proven_before_they_replace_anything() {
    let (vault, other) = (FakeVault::start(World::default()), FakeVault::start(World::default()));
    let home = tempfile::tempdir().unwrap();
    let files = home.path().join("files");
    vault.operator_files(&files, "reader", "joan");
    let dir = files.to_str().unwrap();
    let login =
        ask(home.path(), &["login", &vault.address, "--credentials", dir, "--name", "v", "-o", "json"]);
    assert_eq!((&login.json()["operator"], &login.json()["role"]), (&json!("joan"), &json!("reader")));
    let wrong =
        ask(home.path(), &["login", &other.address, "--credentials", dir, "--name", "v", "-o", "json"]);
    assert_eq!(wrong.code, 5, "{wrong:?}");
    assert_eq!(
        ask(home.path(), &["profiles", "-o", "json"]).json()[0]["address"],
        vault.address,
        "the old one stands"
    );
    std::fs::set_permissions(files.join("key.pem"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let exposed =
        ask(home.path(), &["login", &vault.address, "--credentials", dir, "--name", "w", "-o", "json"]);
    assert_eq!((exposed.code, &exposed.fault()["code"]), (78, &json!("profile.credentials")));
}

#[test]
fn profiles_are_chosen_by_name_flag_and_environment() {
    let (one, two) = (FakeVault::start(World::default()), FakeVault::start(World::default()));
    let home = tempfile::tempdir().unwrap();
    for (vault, name) in [(&one, "one"), (&two, "two")] {
        assert_eq!(login(home.path(), vault, name).code, 0);
    }
    let address = |words: &[&str], environment: &[(&str, &str)]| {
        let mut command = command(home.path());
        command.args(["doctor", "-o", "json"]).args(words).envs(environment.iter().copied());
        let list = finish(command).out_json();
        let profile = list.as_array().unwrap().iter().find(|check| check["check"] == "profile").unwrap();
        profile["detail"].as_str().unwrap().to_owned()
    };
    let (first, second) = (format!("one at {}", one.address), format!("two at {}", two.address));
    assert_eq!(address(&[], &[]), second, "the last login is in use");
    assert_eq!(address(&["--profile", "one"], &[]), first);
    assert_eq!(address(&[], &[("CONTINUUM_PROFILE", "one")]), first);
    assert_eq!(
        address(&["--profile", "two"], &[("CONTINUUM_PROFILE", "one")]),
        second,
        "a flag speaks louder"
    );
    let lab = one.path().to_str().unwrap();
    assert_eq!(
        address(&["--dir", lab], &[("CONTINUUM_PROFILE", "two")]),
        format!("{lab} at {}", one.address)
    );
    assert_eq!(ask(home.path(), &["profiles", "use", "one"]).code, 0);
    assert_eq!(address(&[], &[]), first);
    assert_eq!(ask(home.path(), &["profiles", "use", "three"]).code, 78);
}

#[test]
fn an_operator_makes_a_token_for_a_newcomer() {
    let vault = FakeVault::start(World::default());
    let answer = crate::run(&vault, &["token", "agent", "--site", "paris", "--machine=-rf", "-o", "json"]);
    assert_eq!((&answer.json()["token"], &answer.json()["role"]), (&json!("ct1.once"), &json!("agent")));
    let words = crate::run(&vault, &["token", "agent", "--site", "paris"]);
    assert_eq!(words.out, "ct1.once\n", "the token alone, to be piped on");
    assert!(words.err.contains("not shown again"));
    assert_eq!(
        crate::run(&vault, &["token", "agent", "--site", "paris", "--lifetime", "500000"]).code,
        2,
        "five days at most"
    );
}
