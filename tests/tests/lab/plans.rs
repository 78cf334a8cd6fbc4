//! Recovery plans on a real lab: drilled, by hand in between, through a vault that dies, and failed over.

use crate::console::Tmux;
use continuum_tests::lab::{Lab, binary};
use serde_json::Value;
use std::process::{Command, Stdio};
use std::time::Duration;

const PLAN: &str = "\
name: shop
description: everything that takes orders
rto_seconds: 120
rpo_seconds: 60
groups:
  - name: databases
    machines: [db-01]
    manual: Look at the replication slots.
  - name: application
    machines: [app-01, files-01]
  - name: front
    depends_on: [application]
    machines: [web-01]
";

fn apply(lab: &Lab, text: &str, more: &[&str]) -> continuum_tests::lab::Answer {
    let file = lab.dir().join("plan.yaml");
    std::fs::write(&file, text).expect("a file");
    lab.run(&[&["apply", "-f", file.to_str().expect("UTF-8"), "-o", "json"], more].concat())
}

/// Begins a run in the background; returns its process.
fn begin(lab: &Lab, words: &[&str]) -> std::process::Child {
    let mut command = Command::new(binary());
    command.args(words).args(["-o", "json", "--dir"]).arg(lab.dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("continuum runs")
}

fn answer(child: std::process::Child) -> Value {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The run of the plan that waits for a person.
fn waiting(lab: &Lab) -> Option<String> {
    let jobs = lab.json(&["get", "jobs"]);
    let job = jobs.as_array()?.iter().find(|job| job["waiting_for"].is_string())?;
    Some(job["job"].as_str()?.to_owned())
}

#[test]
fn a_plan_is_drilled_in_order_through_the_death_of_its_vault_and_failed_over() {
    let lab = Lab::start(&[]);
    lab.wait_healthy(4, Duration::from_secs(60));
    // Nothing is made of a plan that is wrong, and everything wrong is told.
    let wrong = apply(&lab, &PLAN.replace("[application]", "[front]").replace("[db-01]", "[]"), &[]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
    for told in ["groups[0].machines: the group is empty", "plan.yaml"] {
        assert!(wrong.stderr.contains(told), "{wrong:?}");
    }
    assert_eq!(apply(&lab, PLAN, &["--dry-run"]).code, 0);
    assert_eq!(lab.json(&["get", "plans"]), Value::Array(Vec::new()), "a dry run makes nothing");
    assert_eq!(apply(&lab, PLAN, &[]).code, 0);
    let plan = lab.json(&["describe", "plan", "shop"]);
    assert_eq!((plan["text"].as_str(), &plan["version"]), (Some(PLAN), &1.into()), "exactly as applied");
    assert_eq!(apply(&lab, PLAN, &[]).code, 0);
    assert_eq!(lab.json(&["describe", "plan", "shop"])["version"], 1, "the same again changes nothing");

    // The drill: databases, then a person, then the vault dies, then the rest, in order.
    let drill = begin(&lab, &["test-failover", "plan/shop"]);
    lab.wait_for("the run waits for a person", Duration::from_secs(60), |lab| waiting(lab).is_some());
    assert_eq!(lab.machine("db-01")["test_state"], "running");
    assert_eq!(lab.machine("app-01")["test_state"], "none", "what depends on it has not begun");
    let job = waiting(&lab).expect("it waits");
    let second = lab.run(&["test-failover", "plan/shop", "-o", "json"]);
    assert_eq!(second.code, 3, "one run at a time: {second:?}");
    lab.kill("vault", "");
    lab.wait_for("the run waits again", Duration::from_secs(60), |lab| {
        let jobs = lab.run(&["get", "jobs", "-o", "json"]);
        jobs.code == 0 && waiting(lab).is_some()
    });
    assert_eq!(lab.run(&["proceed", &job]).code, 0);
    let drill = answer(drill);
    assert_eq!(drill["outcome"], "succeeded", "{drill}");
    let machines = drill["machines"].as_array().expect("machines");
    let names: Vec<&str> = machines.iter().filter_map(|machine| machine["name"].as_str()).collect();
    assert_eq!(names, ["db-01", "app-01", "files-01", "web-01"]);
    for machine in machines {
        let probes = machine["probes"].as_array().expect("probes");
        assert!(probes.len() == 3 && probes.iter().all(|probe| probe["passed"] == true), "{machine}");
    }
    let steps: Vec<&str> =
        drill["steps"].as_array().expect("steps").iter().filter_map(|step| step["name"].as_str()).collect();
    assert_eq!(
        steps,
        ["group databases", "by hand, after databases", "group application", "group front", "report"]
    );
    let plan = lab.json(&["describe", "plan", "shop"]);
    assert_eq!(plan["last_drill_passed"], true, "{plan}");
    // The report: as it was measured, in a chain, and proven without the vault.
    let file = lab.dir().join("shop.json").to_str().expect("UTF-8").to_owned();
    assert_eq!(lab.run(&["report", "show", "plan/shop", "--to", &file]).code, 0);
    let report: Value = serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!((&report["passed"], &report["run"]), (&true.into(), &drill["job"]), "{report}");
    assert_eq!(
        (&report["rto_objective_ms"], &report["rpo_objective_ms"]),
        (&120_000.into(), &60_000.into()),
        "{report}"
    );
    let measured = |machine: &Value| machine["rto_ms"].is_u64() && machine["point_age_ms"].is_u64();
    let told = report["machines"].as_array().expect("machines");
    assert!(told.len() == 4 && told.iter().all(measured), "{report}");
    assert_eq!(lab.run(&["report", "verify", &file]).code, 0);
    let cleanup = lab.json(&["cleanup", "plan/shop"]);
    assert_eq!(cleanup["outcome"], "succeeded", "{cleanup}");
    for name in names {
        assert_eq!(lab.machine(name)["test_state"], "none");
    }

    // By keys: the drill of a plan without a person in it.
    let smaller = PLAN.replace("    manual: Look at the replication slots.\n", "");
    assert_eq!(apply(&lab, &smaller, &[]).code, 0);
    let tmux = Tmux::open(&lab, 80, 24);
    tmux.shows("live");
    tmux.keys(&["4"]);
    tmux.shows("after databases");
    tmux.keys(&["t"]);
    tmux.shows("y orders");
    tmux.keys(&["y"]);
    tmux.shows("Test failover of plan shop: succeeded");
    tmux.keys(&["4", "a"]);
    tmux.shows("clean up the test failover");
    tmux.keys(&["x"]);
    tmux.shows("y orders");
    tmux.keys(&["y"]);
    lab.wait_for("all is cleaned up, and the run is over", Duration::from_secs(60), |lab| {
        let orders = lab.json(&["describe", "plan", "shop"])["orders"].clone();
        let possible: Vec<&str> =
            orders.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        possible == ["test-failover", "failover", "delete"]
    });
    drop(tmux);

    // The real thing: not without the plan's name, and then all of it.
    let unasked = lab.run(&["failover", "plan/shop", "--unplanned", "--point", "latest", "--yes"]);
    assert_eq!(unasked.code, 5, "{unasked:?}");
    let words = ["failover", "plan/shop", "--unplanned", "--point", "latest", "--yes", "--confirm", "shop"];
    let failover = lab.json(&words);
    assert_eq!(failover["outcome"], "succeeded", "{failover}");
    for name in ["db-01", "app-01", "files-01", "web-01"] {
        assert_eq!(lab.machine(name)["state"], "commit-pending", "{name}");
    }
    assert_eq!(lab.run(&["delete", "plan", "shop", "--yes", "--confirm", "shop"]).code, 0);
    assert_eq!(lab.json(&["get", "plans"]), Value::Array(Vec::new()));
}
