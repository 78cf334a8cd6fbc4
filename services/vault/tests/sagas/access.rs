//! Who gets in, and what they may do.

use super::*;
use continuum_wire::enroll;

async fn refused_enrolment(token: &str, role: &str, name: &str, dir: &std::path::Path) -> Fault {
    match enroll::enroll(token, role, name, dir).await {
        Ok(_) => panic!("{name} was let in"),
        Err(fault) => fault,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_race_with_one_token_exactly_one_wins() {
    let lab = Lab::start().await;
    let token = lab.token("agent", "east", "").await;
    let mut racers = tokio::task::JoinSet::new();
    for racer in 0..8 {
        let (token, dir) = (token.clone(), lab.dir.path().join(format!("racer-{racer}")));
        racers.spawn(async move {
            enroll::enroll(&token, "agent", &format!("racer-{racer}"), &dir).await.is_ok()
        });
    }
    let winners = racers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1);
    let machines = lab.snapshot(&[pb::Kind::Machine]).await.len();
    assert_eq!(machines, 2, "the losers left nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_token_gets_one_answer_and_the_audit_log_the_reason() {
    let lab = Lab::start().await;
    let dir = lab.dir.path().join("stranger");
    let used = lab.token("agent", "east", "").await;
    enroll::enroll(&used, "agent", "first", &dir).await.unwrap();
    let fresh = lab.token("agent", "east", "").await;
    let bound = lab.token("agent", "east", "other").await;
    for (why, token, role, name, reason) in [
        ("used", &used, "agent", "second", "used before"),
        ("another role", &fresh, "master-target", "second", "for the role agent"),
        ("another name", &bound, "agent", "second", "bound to another name"),
        ("a name that is taken", &fresh, "agent", HOSTILE, "taken"),
        ("no name", &fresh, "agent", "", "empty"),
    ] {
        let fault = refused_enrolment(token, role, name, &dir).await;
        assert_eq!(fault.code, "enrolment.refused", "{why}");
        assert!(!fault.message.contains(reason), "{why}: a stranger is told the reason");
        let lines = lab.vault().audit(10).await.unwrap();
        let line = lines.iter().rfind(|line| line.outcome == "refused").expect("a line");
        assert!(line.detail.contains(reason) && line.detail.contains(&fault.correlation), "{why}: {line:?}");
    }
    // What was refused did not use the token up.
    enroll::enroll(&fresh, "agent", "second", &dir).await.unwrap();
    assert_eq!(refused_enrolment("ct1.AAAA", "agent", "x", &dir).await.code, "token.invalid");
}

/// How the vault turns somebody away who has a certificate.
pub(crate) async fn refused(credentials: &Credentials, address: &str) -> Fault {
    match grpc::channel(credentials, address, Role::Vault).await {
        Err(fault) => fault,
        Ok(channel) => {
            let asked = OperatorClient::new(channel).who_am_i(pb::WhoAmIRequest {}).await;
            grpc::fault_of(&asked.expect_err("nobody is let in"))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_are_kept_apart_and_revocation_holds_at_once() {
    let lab = Lab::start().await;
    lab.protect().await;
    let address = lab.vault().addresses().main.clone();
    let bob = lab.vault().make_operator("bob", "reader", &lab.dir.path().join("bob")).await.unwrap();
    let mut reader = client(&bob, &address).await;
    let me = reader.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (me.name.as_str(), me.role.as_str(), me.may.len(), me.environment.as_str()),
        ("bob", "reader", 1, "test")
    );
    let order = lab.request(Order::Pause(pb::Pause {}));
    let fault = grpc::fault_of(&reader.order(order).await.unwrap_err());
    assert_eq!((fault.code.as_str(), fault.class.exit_code()), ("access.role", 5));
    let token = pb::CreateTokenRequest { role: "agent".into(), site: "east".into(), ..Default::default() };
    assert_eq!(grpc::fault_of(&reader.create_token(token).await.unwrap_err()).code, "access.role");
    let lines = lab.vault().audit(10).await.unwrap();
    assert!(lines.iter().any(|line| line.actor == "bob" && line.outcome == "refused" && line.act == "pause"));

    let mut contributor = {
        let credentials =
            lab.vault().make_operator("eve", "contributor", &lab.dir.path().join("eve")).await.unwrap();
        client(&credentials, &address).await
    };
    let order = lab.request(Order::Unprotect(pb::Unprotect { keep_replica: false }));
    assert_eq!(
        grpc::fault_of(&contributor.order(order).await.unwrap_err()).code,
        "access.role",
        "points are the owner's"
    );

    let mut watched = reader.watch(pb::WatchRequest::default()).await.unwrap().into_inner();
    assert!(watched.message().await.unwrap().is_some());
    lab.vault().revoke_operator("bob").await.unwrap();
    let ended = async { while matches!(watched.message().await, Ok(Some(_))) {} };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("what he watches ends");
    assert_eq!(refused(&bob, &address).await.class.name(), "refused");
    assert_eq!(lab.vault().revoke_operator("nobody").await.unwrap_err().code, "operator.unknown");
    // Let in again, at once: with the new certificate, never with the old one.
    let again = lab.vault().make_operator("bob", "reader", &lab.dir.path().join("bob-2")).await.unwrap();
    let me = client(&again, &address).await.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(me.name, "bob");
    assert_eq!(refused(&bob, &address).await.class.name(), "refused");

    // A server is no operator, and an operator is no server.
    let channel = grpc::channel(&lab.servers[2].credentials, &address, Role::Vault).await.unwrap();
    let fault =
        grpc::fault_of(&OperatorClient::new(channel).who_am_i(pb::WhoAmIRequest {}).await.unwrap_err());
    assert_eq!(fault.code, "access.refused");
    let owner = Credentials::open(&lab.dir.path().join("ada")).unwrap();
    let channel = grpc::channel(&owner, &address, Role::Vault).await.unwrap();
    let requests = futures::stream::iter([pb::ServerMessage::default()]);
    let session = pb::coordination_client::CoordinationClient::new(channel).session(requests).await;
    assert_eq!(grpc::fault_of(&session.unwrap_err()).code, "access.refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_makes_one_job_however_close_the_orders_are() {
    let lab = Lab::start().await;
    lab.protect().await;
    let request = lab.request(Order::Bookmark(pb::Bookmark { name: "once".into(), app_consistent: false }));
    let mut orders = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let (mut operator, request) = (lab.operator.clone(), request.clone());
        orders.spawn(async move { operator.order(request).await.unwrap().into_inner() });
    }
    let replies = orders.join_all().await;
    let first = replies[0].job.as_ref().unwrap().id.clone();
    assert!(replies.iter().all(|reply| reply.job.as_ref().unwrap().id == first));
    assert_eq!(replies.iter().filter(|reply| !reply.repeated_key).count(), 1);
    lab.ended(&first).await;
    assert_eq!(lab.world.lock().acts.iter().filter(|(_, act)| *act == "barrier").count(), 1);

    let other = pb::OrderRequest { order: Some(Order::Verify(pb::Verify::default())), ..request };
    let fault = grpc::fault_of(&lab.operator.clone().order(other).await.unwrap_err());
    assert_eq!(fault.code, "order.key-reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_on_an_old_state_or_without_the_name_is_refused() {
    let lab = Lab::start().await;
    lab.protect().await;
    let version = lab.machine().await.version;
    lab.done(Order::Pause(pb::Pause {})).await;
    let failover = Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: "latest".into() });
    let stale = pb::OrderRequest { expected_version: version, ..lab.request(failover.clone()) };
    let fault = grpc::fault_of(&lab.operator.clone().order(stale).await.unwrap_err());
    assert_eq!((fault.code.as_str(), fault.class.name()), ("machine.changed", "conflict"));
    for confirm in ["", "web", "web-01"] {
        let request = pb::OrderRequest { confirm: confirm.into(), ..lab.request(failover.clone()) };
        let fault = grpc::fault_of(&lab.operator.clone().order(request).await.unwrap_err());
        assert_eq!(fault.code, "order.unconfirmed", "{confirm}");
        assert!(!fault.message.contains('\x1b') && !fault.remedy.contains('\x1b'));
    }
    for (why, request, code) in [
        ("no key", pb::OrderRequest { key: String::new(), ..lab.request(failover.clone()) }, "order.key"),
        ("no order", pb::OrderRequest { order: None, ..lab.request(failover.clone()) }, "order.empty"),
        (
            "nobody",
            pb::OrderRequest { machine: "nobody\x07".into(), ..lab.request(failover) },
            "machine.unknown",
        ),
        (
            "odd moment",
            lab.request(Order::TestFailover(pb::TestFailoverOrder {
                point: "yesterday".into(),
                ..Default::default()
            })),
            "point.invalid",
        ),
        (
            "a planned one to a moment",
            lab.request(Order::Failover(pb::FailoverOrder {
                kind: "planned".into(),
                point: "2026-11-23T03:12:45Z".into(),
            })),
            "failover.point",
        ),
        (
            "bad policy",
            lab.request(Order::SetPolicy(pb::SetPolicy {
                policy: Some(pb::Policy { name: "x".into(), ..Default::default() }),
            })),
            "policy.invalid",
        ),
    ] {
        let fault = grpc::fault_of(&lab.operator.clone().order(request).await.unwrap_err());
        assert_eq!(fault.code, code, "{why}");
        assert!(!fault.correlation.is_empty() && !fault.message.contains('\x07'), "{why}: {fault:?}");
        assert!(
            !fault.affected.is_empty() && !fault.unaffected.is_empty() && !fault.remedy.is_empty(),
            "{why}: {fault:?}"
        );
    }
    assert_eq!(lab.machine().await.state, "protected", "nothing of this changed anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_claim_one_machine_are_both_fenced_until_a_person_has_looked() {
    let mut lab = Lab::start().await;
    lab.protect().await;
    let address = lab.vault().addresses().main.clone();
    let clone = lab.agent("boot-2");
    let dir = lab.dir.path().join("agent");
    let clone = fake::start(clone, None, "agent", HOSTILE, &dir, &address).await;
    let alert = eventually("an alert opens", async || {
        lab.snapshot(&[pb::Kind::Alert]).await.into_iter().find_map(|entity| match entity {
            Entity::Alert(alert) if alert.code == "identity.twice" => Some(alert),
            _ => None,
        })
    })
    .await;
    assert_eq!(alert.severity, "critical");
    eventually("they are fenced", async || lab.world.lock().source.assignment.fenced.then_some(())).await;
    clone.stop.cancel();
    let _ = clone.task.await;
    let original = lab.servers.remove(2);
    original.stop.cancel();
    let _ = original.task.await;
    lab.order(Order::AcknowledgeAlert(pb::AcknowledgeAlert { alert: alert.id })).await.unwrap();
    let right = lab.agent("boot-3");
    lab.servers.push(fake::start(right, None, "agent", HOSTILE, &dir, &address).await);
    eventually("it replicates again", async || lab.world.lock().source.assignment.replicate.then_some(()))
        .await;
}
