//! One machine from its enrolment to its end, and the vault dying on the way.

use super::*;

fn test_failover(point: &str) -> Order {
    Order::TestFailover(pb::TestFailoverOrder { point: point.into(), keep_on_failure: false })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_from_protection_to_removal() {
    let lab = Lab::start().await;
    let before = lab.machine().await;
    assert_eq!((before.state.as_str(), before.orders), ("unprotected", vec!["protect".to_owned()]));

    let job = lab.protect().await;
    let steps: Vec<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["check", "epoch", "relate", "initial-replication", "first-point"]);
    let machine = lab.machine().await;
    assert_eq!((machine.state.as_str(), machine.epoch, machine.policy.as_str()), ("protected", 1, "gold"));
    assert_eq!((machine.process_server.as_str(), machine.master_target.as_str()), ("ps-1", "mt-1"));
    let measured = eventually("an RPO is measured", async || {
        let machine = lab.machine().await;
        machine.rpo_p99_seconds.is_some().then_some(machine)
    })
    .await;
    assert!(measured.rpo_seconds.unwrap() < 5.0 && measured.health == "healthy", "{measured:?}");

    let bookmark = lab
        .done(Order::Bookmark(pb::Bookmark { name: "before the update".into(), app_consistent: false }))
        .await;
    let point = bookmark.machines[0].point.clone().expect("a point");
    assert_eq!((point.kind.as_str(), point.name.as_str()), ("bookmark", "before the update"));
    let pin = pb::PinPoint { point: point.id.clone(), pinned: true, lock_seconds: 0 };
    let refused =
        lab.order(Order::PinPoint(pb::PinPoint { pinned: false, lock_seconds: 60, ..pin.clone() })).await;
    assert_eq!(refused.unwrap_err().code, "point.lock");
    lab.done(Order::PinPoint(pin.clone())).await;
    let locked = lab.done(Order::PinPoint(pb::PinPoint { lock_seconds: 86_400, ..pin })).await;
    let said = locked.steps.iter().any(|step| step.detail.contains("locked"));
    assert!(said, "{locked:?}");
    let locks = |replica: &fake::Replica| replica.marks.iter().any(|mark| mark.lock_seconds == 86_400);
    assert!(lab.world.lock().replicas.values().any(locks));

    let verified = lab.done(Order::Verify(pb::Verify::default())).await;
    assert!(verified.verified[0].equal && verified.verified[0].source_digest == "aa", "{verified:?}");
    let proofs: Vec<_> = lab
        .world
        .lock()
        .replicas
        .values()
        .flat_map(|replica| replica.marks.clone())
        .filter_map(|mark| mark.proofs)
        .collect();
    assert!(proofs.iter().any(|proof| proof.digest_equal == Some(true)), "{proofs:?}");

    let question = pb::ReadinessRequest { machine: lab.machine.clone(), ..Default::default() };
    let ready = lab.operator.clone().readiness(question).await.unwrap().into_inner();
    assert!(ready.ready && ready.confirm.is_empty(), "{ready:?}");
    assert!(!ready.summary.contains('\x1b') && !ready.command.contains('\x1b'), "{ready:?}");
    let drill = lab.done(test_failover("latest")).await;
    let outcome = &drill.machines[0];
    assert!(
        outcome.rto_seconds.is_some() && outcome.probes[0].passed && outcome.loss_bytes == Some(4096),
        "{outcome:?}"
    );
    assert!(outcome.disks[0].endpoint.starts_with("nbd+unix://"), "{outcome:?}");
    let machine = lab.machine().await;
    assert_eq!((machine.test_state.as_str(), machine.state.as_str()), ("running", "protected"));
    assert!(machine.last_drill_passed && machine.test.is_some());
    lab.done(Order::Cleanup(pb::Cleanup::default())).await;
    assert!(lab.world.lock().views.is_empty(), "nothing is left of the drill");
    assert_eq!(lab.machine().await.test_state, "none");

    lab.done(Order::Pause(pb::Pause {})).await;
    eventually("the agent is told of the pause", async || {
        lab.world.lock().source.assignment.paused.then_some(())
    })
    .await;
    assert_eq!(lab.order(Order::Pause(pb::Pause {})).await.unwrap_err().code, "protection.illegal-move");
    lab.done(Order::Resume(pb::Resume {})).await;
    eventually("the agent is told to go on", async || {
        (!lab.world.lock().source.assignment.paused).then_some(())
    })
    .await;

    let failover =
        lab.done(Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: String::new() })).await;
    assert!(failover.machines[0].rto_seconds.is_some());
    let machine = lab.machine().await;
    assert_eq!(
        (machine.state.as_str(), machine.epoch, machine.health.as_str()),
        ("commit-pending", 2, "not-applicable")
    );
    {
        let world = lab.world.lock();
        assert!(world.source.assignment.fenced && !world.source.assignment.replicate, "the source is fenced");
        assert!(world.relayed.is_empty() && world.replicas.values().all(|replica| replica.epoch == 2));
        assert!(world.views.values().any(|view| view.keep && view.guest));
    }
    lab.done(Order::Commit(pb::Commit {})).await;
    assert_eq!(lab.machine().await.state, "committed");
    let removed = lab.done(Order::Unprotect(pb::Unprotect { keep_replica: false })).await;
    assert!(removed.machines[0].note.contains("removed"), "{removed:?}");
    assert!(lab.world.lock().replicas.is_empty() && lab.world.lock().views.is_empty());
    let machine = lab.machine().await;
    assert_eq!((machine.state.as_str(), machine.epoch), ("unprotected", 2), "the epoch never goes back");

    let lines = lab.vault().audit(1000).await.unwrap();
    assert_eq!(continuum_vault::broken_at(&lines), None);
    let of_failover: Vec<&str> =
        lines.iter().filter(|line| line.act == "failover").map(|line| line.outcome.as_str()).collect();
    assert_eq!(of_failover, ["intent", "succeeded"]);
    assert!(lines.iter().all(|line| !line.object.contains('\x1b') && !line.detail.contains('\x1b')));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_restarts_goes_on_where_it_was() {
    let mut lab = Lab::start().await;
    lab.world.lock().stuck = true;
    let order = Order::Protect(pb::Protect::default());
    let job = lab.order(order).await.unwrap();
    eventually("the first copy is under way", async || {
        (lab.machine().await.state == "initial-replication").then_some(())
    })
    .await;
    let address = lab.vault().addresses().clone();
    lab.restart().await;
    assert_eq!(*lab.vault().addresses(), address, "servers find it where it was");
    let again = lab.job(&job.id).await;
    assert_eq!(again.state, "running");
    lab.world.lock().stuck = false;
    assert_eq!(lab.ended(&job.id).await.state, "succeeded");

    // In the middle of an act: the guest starts, and the vault dies before it hears of it.
    lab.world.lock().hangs = Some("start");
    let drill = lab.order(test_failover("latest")).await.unwrap();
    eventually("the act has begun", async || lab.world.has_done("start").then_some(())).await;
    lab.restart().await;
    lab.world.lock().hangs = None;
    assert_eq!(lab.ended(&drill.id).await.state, "succeeded");
    let starts: Vec<String> =
        lab.world.lock().acts.iter().filter(|(_, act)| *act == "start").map(|(id, _)| id.clone()).collect();
    assert!(starts.windows(2).all(|two| two[0] == two[1]), "one act, one id: {starts:?}");
    assert_eq!(lab.world.lock().views.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn doubt_is_told_and_a_resync_ends_it() {
    let lab = Lab::start().await;
    lab.protect().await;
    {
        let mut world = lab.world.lock();
        world.stuck = true;
        world.doubt = "the change map was lost\x1b[2J".into();
    }
    let machine = eventually("resync is required", async || {
        let machine = lab.machine().await;
        (machine.state == "resync").then_some(machine)
    })
    .await;
    assert!(
        machine.state_reason.contains("change map") && !machine.state_reason.contains('\x1b'),
        "{machine:?}"
    );
    lab.world.lock().stuck = false;
    eventually("it is whole again", async || (lab.machine().await.state == "protected").then_some(())).await;
    // The agent goes on saying why it had doubts; they were answered.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(lab.machine().await.state, "protected");
}
