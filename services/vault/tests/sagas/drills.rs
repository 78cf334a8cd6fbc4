//! What is left when a job does not succeed.

use super::*;

fn test_failover(keep_on_failure: bool) -> Order {
    Order::TestFailover(pb::TestFailoverOrder { point: "latest".into(), keep_on_failure })
}
fn failover() -> Order {
    Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: "latest".into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_drill_leaves_nothing_unless_it_was_to_be_kept() {
    let lab = Lab::start().await;
    lab.protect().await;
    for failing in ["resolve", "open", "start", "probe"] {
        lab.world.lock().fails = Some(failing);
        let job = lab.order(test_failover(false)).await.unwrap();
        let job = lab.ended(&job.id).await;
        let fault = job.fault.clone().expect("a fault");
        assert_eq!((job.state.as_str(), fault.code.as_str()), ("failed", "fake.failed"), "{failing}");
        assert!(!fault.message.contains('\x1b') && !fault.correlation.is_empty(), "{fault:?}");
        assert!(lab.world.lock().views.is_empty(), "{failing} left a view");
        let machine = lab.machine().await;
        assert_eq!((machine.test_state.as_str(), machine.state.as_str()), ("none", "protected"), "{failing}");
        assert!(job.may_retry, "{failing}");

        lab.world.lock().fails = None;
        lab.done(Order::RetryJob(pb::RetryJob { job: job.id.clone() })).await;
        lab.done(Order::Cleanup(pb::Cleanup::default())).await;
    }
    lab.world.lock().fails = Some("probe");
    let job = lab.order(test_failover(true)).await.unwrap();
    assert_eq!(lab.ended(&job.id).await.state, "failed");
    assert_eq!((lab.machine().await.test_state.as_str(), lab.world.lock().views.len()), ("failed", 1));
    assert_eq!(lab.order(test_failover(false)).await.unwrap_err().code, "test.running");
    lab.done(Order::Cleanup(pb::Cleanup::default())).await;
    assert!(lab.world.lock().views.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_failover_goes_back_and_the_source_replicates_under_the_new_epoch() {
    let lab = Lab::start().await;
    lab.protect().await;
    lab.world.lock().fails = Some("start");
    let job = lab.order(failover()).await.unwrap();
    assert_eq!(lab.ended(&job.id).await.state, "failed");
    let machine = lab.machine().await;
    assert_eq!((machine.state.as_str(), machine.epoch), ("protected", 2));
    assert!(lab.world.lock().views.is_empty());
    eventually("the source ships again", async || {
        let told = lab.world.lock().source.assignment.clone();
        (told.replicate && !told.fenced && told.epoch == 2).then_some(())
    })
    .await;
    let since = lab.machine().await.newest_point_us;
    eventually("new moments come", async || (lab.machine().await.newest_point_us > since).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_protection_is_gone_with_its_replica() {
    let lab = Lab::start().await;
    lab.world.lock().stuck = true;
    let job = lab.order(Order::Protect(pb::Protect::default())).await.unwrap();
    let told = eventually("progress is told", async || {
        let job = lab.job(&job.id).await;
        job.steps.iter().any(|step| step.progress.is_some_and(|done| done > 0.0)).then_some(job)
    })
    .await;
    assert!(told.may_cancel);
    lab.order(Order::CancelJob(pb::CancelJob { job: job.id.clone() })).await.unwrap();
    assert_eq!(lab.ended(&job.id).await.state, "cancelled");
    assert_eq!(lab.machine().await.state, "unprotected");
    assert!(lab.world.lock().replicas.is_empty(), "the replica is gone");
    lab.world.lock().stuck = false;
    lab.protect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_an_error_and_never_a_proof() {
    let lab = Lab::start().await;
    lab.protect().await;
    lab.world.lock().rotten = true;
    let job = lab.order(Order::Verify(pb::Verify::default())).await.unwrap();
    let job = lab.ended(&job.id).await;
    assert_eq!((job.state.as_str(), job.fault.unwrap().code.as_str()), ("failed", "verify.differs"));
    assert!(!job.verified[0].equal);
    let marks =
        lab.world.lock().replicas.values().flat_map(|replica| replica.marks.clone()).collect::<Vec<_>>();
    assert!(
        marks.iter().all(|mark| mark.proofs.is_some_and(|proofs| proofs.digest_equal == Some(false))),
        "{marks:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_away_is_waited_for_and_then_named() {
    let mut lab = Lab::start().await;
    lab.protect().await;
    let dir = lab.stop_server(1).await;
    let job = lab.order(test_failover(false)).await.unwrap();
    let job = lab.ended(&job.id).await;
    let fault = job.fault.unwrap();
    assert_eq!(
        (job.state.as_str(), fault.code.as_str(), fault.class.as_str()),
        ("failed", "server.away", "not-connected")
    );
    assert!(!fault.remedy.is_empty() && !fault.unaffected.is_empty());
    let symptom = eventually("health tells of it", async || {
        let machine = lab.machine().await;
        machine.symptoms.iter().find(|symptom| symptom.code == "target.disconnected").cloned()
    })
    .await;
    assert_eq!(symptom.severity, "warning");
    let alert = eventually("an alert opens", async || {
        lab.snapshot(&[pb::Kind::Alert]).await.into_iter().find_map(|entity| match entity {
            Entity::Alert(alert) if alert.code == "target.disconnected" => Some(alert),
            _ => None,
        })
    })
    .await;
    lab.order(Order::AcknowledgeAlert(pb::AcknowledgeAlert { alert: alert.id.clone() })).await.unwrap();

    // Back within our patience: the job that waits goes on.
    let job = lab.order(test_failover(false)).await.unwrap();
    let address = lab.vault().addresses().main.clone();
    let server = fake::start(
        MasterTarget(lab.world.clone()),
        None,
        "master-target",
        "mt-1",
        &dir.join("mt"),
        &address,
    )
    .await;
    lab.servers.push(server);
    assert_eq!(lab.ended(&job.id).await.state, "succeeded");
    eventually("the alert clears by itself", async || {
        lab.snapshot(&[pb::Kind::Alert]).await.into_iter().find_map(|entity| match entity {
            Entity::Alert(cleared) if cleared.id == alert.id => {
                cleared.cleared_us.map(|_| assert!(cleared.acknowledged))
            }
            _ => None,
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_breaks_in_an_act_does_not_repeat_it() {
    let mut lab = Lab::start().await;
    lab.protect().await;
    lab.world.lock().hangs = Some("open");
    let job = lab.order(test_failover(false)).await.unwrap();
    eventually("the act has begun", async || lab.world.has_done("open").then_some(())).await;
    lab.restart().await;
    lab.world.lock().hangs = None;
    assert_eq!(lab.ended(&job.id).await.state, "succeeded");
    let opens = lab.world.lock().acts.iter().filter(|(_, act)| *act == "open").count();
    assert_eq!(opens, 1, "the server knew the act that it was asked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_thinned_is_forgotten_and_what_it_warns_of_is_told() {
    let mut lab = Lab::start().await;
    lab.protect().await;
    let mut made = Vec::new();
    for name in ["first", "second", "third"] {
        let job = lab.done(Order::Bookmark(pb::Bookmark { name: name.into(), app_consistent: false })).await;
        made.push(job.machines[0].point.clone().expect("a point"));
    }
    let warning = pb::Fault {
        code: "history.space".into(),
        message: "9 GiB of 10 GiB\x1b[2J are used".into(),
        remedy: "raise it".into(),
        ..Default::default()
    };
    for replica in lab.world.lock().replicas.values_mut() {
        // After the first, up to and with the second.
        replica.thinned = vec![pb::Thinned { after_us: made[0].time_us, to_us: made[1].time_us }];
        replica.points.retain(|point| point.id != made[1].id);
        replica.warnings = vec![warning.clone(), pb::Fault { code: "\n".into(), ..Default::default() }];
    }
    let symptoms = eventually("it is told", async || {
        let symptoms = lab.machine().await.symptoms;
        symptoms.iter().any(|symptom| symptom.code == "history.space").then_some(symptoms)
    })
    .await;
    let told = symptoms.iter().find(|symptom| symptom.code == "history.space").expect("it is there");
    assert_eq!((told.severity.as_str(), told.remedy.as_str()), ("warning", "raise it"));
    assert!(told.text.contains("9 GiB") && !told.text.contains('\x1b'), "{told:?}");
    assert!(symptoms.iter().any(|symptom| symptom.code == "replica.warning"), "{symptoms:?}");
    // The vault's own list, which is what is shown while the target is away.
    lab.stop_server(1).await;
    let asked = pb::TimelineRequest { machine: lab.machine.clone(), ..Default::default() };
    let reply = lab.operator.clone().timeline(asked).await.expect("the vault knows points").into_inner();
    let names: Vec<_> = reply.points.iter().map(|point| point.name.as_str()).collect();
    assert!(names.contains(&"first") && names.contains(&"third") && !names.contains(&"second"), "{names:?}");
}
