//! Policies by order, who is let in, and orders that need a second person.

use crate::{Lab, client, eventually, key};
use continuum_proto::v1 as pb;
use continuum_wire::grpc;
use pb::entity::Entity;
use pb::operator_client::OperatorClient;
use pb::order_request::Order;
use tonic::transport::Channel;

async fn policy(lab: &Lab, name: &str) -> Option<pb::Policy> {
    lab.snapshot(&[pb::Kind::Policy]).await.into_iter().find_map(|entity| match entity {
        Entity::Policy(policy) if policy.name == name && !policy.deleted => Some(policy),
        _ => None,
    })
}

fn set(policy: &pb::Policy, confirm: &str, version: u64) -> pb::OrderRequest {
    pb::OrderRequest {
        key: key(),
        confirm: confirm.into(),
        expected_version: version,
        order: Some(Order::SetPolicy(pb::SetPolicy { policy: Some(policy.clone()) })),
        ..Default::default()
    }
}

async fn code_of(operator: &OperatorClient<Channel>, request: pb::OrderRequest) -> String {
    match operator.clone().order(request).await {
        Ok(reply) => reply.into_inner().job.expect("a job").state,
        Err(status) => grpc::fault_of(&status).code,
    }
}

async fn made(lab: &Lab, name: &str, role: &str) -> OperatorClient<Channel> {
    let dir = lab.dir.path().join(name);
    let credentials = lab.vault().make_operator(name, role, &dir).await.expect("an operator");
    client(&credentials, &lab.vault().addresses().main).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_changed_with_agreement_kept_in_versions_and_deleted_only_when_nobody_needs_it() {
    let lab = Lab::start().await;
    lab.protect().await;
    let gold = policy(&lab, "gold").await.expect("gold");
    assert_eq!((gold.version, gold.machines), (1, 1));
    // Points would go: not without the name, and not on what was seen before somebody else changed it.
    let shorter = pb::Policy { retention_seconds: 8 * 3600, ..gold.clone() };
    let asked = pb::ReadinessRequest {
        order: "set-policy".into(),
        policy: Some(shorter.clone()),
        ..Default::default()
    };
    let report = lab.operator.clone().readiness(asked).await.expect("a report").into_inner();
    assert_eq!((report.confirm.as_str(), report.machine_version), ("gold", 1));
    assert!(report.checks[0].detail.contains("16 h of points go"), "{report:?}");
    assert_eq!(code_of(&lab.operator, set(&shorter, "", 0)).await, "order.unconfirmed");
    assert_eq!(code_of(&lab.operator, set(&shorter, "gold", 1)).await, "succeeded");
    assert_eq!(code_of(&lab.operator, set(&gold, "gold", 1)).await, "policy.changed");
    let longer = pb::Policy { retention_seconds: 48 * 3600, ..gold.clone() };
    assert_eq!(code_of(&lab.operator, set(&longer, "", 2)).await, "succeeded", "nothing is lost by it");
    let now = policy(&lab, "gold").await.expect("gold");
    assert_eq!((now.version, now.retention_seconds), (3, 48 * 3600));
    eventually("the machine's target is told", async || {
        (lab.machine().await.history_promised_seconds == Some(48.0 * 3600.0)).then_some(())
    })
    .await;

    let asked = pb::VersionsRequest { kind: "policy".into(), name: "gold".into() };
    let versions = lab.operator.clone().versions(asked).await.expect("versions").into_inner().versions;
    let told: Vec<_> = versions.iter().map(|version| (version.version, version.by.as_str())).collect();
    assert_eq!(told, [(3, "ada"), (2, "ada"), (1, "")]);
    for (version, seconds) in versions.iter().zip([48 * 3600, 8 * 3600, 24 * 3600]) {
        let (name, read) = continuum_document::policy::read(&version.text).expect("it can be applied again");
        assert_eq!((name.as_str(), read.retention_seconds), ("gold", seconds));
    }

    // Another policy, and the machine under it; what it gives up is agreed to with its own name.
    let bronze = pb::Policy {
        id: String::new(),
        name: "bronze".into(),
        retention_seconds: 3600,
        app_point_seconds: 0,
        ..gold
    };
    assert_eq!(code_of(&lab.operator, set(&bronze, "", 0)).await, "succeeded");
    let delete = |name: &str| pb::OrderRequest {
        key: key(),
        order: Some(Order::DeletePolicy(pb::DeletePolicy { policy: name.into() })),
        ..Default::default()
    };
    assert_eq!(code_of(&lab.operator, delete("gold")).await, "policy.in-use");
    let assign = Order::AssignPolicy(pb::AssignPolicy { policy: "bronze".into() });
    let unagreed = pb::OrderRequest { confirm: String::new(), ..lab.request(assign.clone()) };
    assert_eq!(code_of(&lab.operator, unagreed).await, "order.unconfirmed");
    lab.done(assign).await;
    assert_eq!(lab.machine().await.policy, "bronze");
    assert_eq!(policy(&lab, "bronze").await.expect("bronze").machines, 1);
    eventually("gold has none left", async || {
        policy(&lab, "gold").await.filter(|gold| gold.machines == 0).map(|_| ())
    })
    .await;
    assert_eq!(code_of(&lab.operator, delete("gold")).await, "succeeded");
    assert!(policy(&lab, "gold").await.is_none());
    assert_eq!(code_of(&lab.operator, delete("bronze")).await, "policy.in-use");
    let asked = pb::VersionsRequest { kind: "policy".into(), name: "gold".into() };
    let versions = lab.operator.clone().versions(asked).await.expect("they are kept").into_inner().versions;
    assert_eq!((versions.len(), versions[0].text.as_str()), (4, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_let_in_by_a_token_seen_in_lists_and_put_out_at_once() {
    let lab = Lab::start().await;
    let token = |name: &str, role: &str| pb::CreateTokenRequest {
        role: "operator".into(),
        machine: name.into(),
        operator_role: role.into(),
        ..Default::default()
    };
    for (why, request) in [
        ("no role", token("eve", "king")),
        ("no name", token("", "reader")),
        ("a name that drives a terminal", token("e\x1bve", "reader")),
        ("herself", token("ada", "owner")),
    ] {
        let fault = grpc::fault_of(&lab.operator.clone().create_token(request).await.expect_err(why));
        assert_eq!(fault.code, "token.request", "{why}");
        assert!(!fault.message.contains('\x1b'));
    }
    let made =
        lab.operator.clone().create_token(token("eve", "recoverer")).await.expect("a token").into_inner();
    let listed = lab.operator.clone().access(pb::AccessRequest {}).await.expect("lists").into_inner();
    let known = listed.tokens.iter().find(|token| token.name == "eve").expect("it is listed");
    assert_eq!(
        (known.operator_role.as_str(), known.made_by.as_str(), known.used_us),
        ("recoverer", "ada", None)
    );
    assert!(!made.token.contains(&known.id), "the list is of no use to whoever wants in");
    // The key is made here; the name that is sent along means nothing.
    let dir = lab.dir.path().join("eve");
    let (credentials, address) =
        continuum_wire::enroll::enroll(&made.token, "operator", "mallory", &dir).await.expect("in");
    let eve = client(&credentials, &address).await;
    let who = eve.clone().who_am_i(pb::WhoAmIRequest {}).await.expect("an answer").into_inner();
    assert_eq!((who.name.as_str(), who.role.as_str()), ("eve", "recoverer"));
    let again =
        continuum_wire::enroll::enroll(&made.token, "operator", "eve", &lab.dir.path().join("again")).await;
    assert!(again.is_err(), "one use");
    assert!(eve.clone().access(pb::AccessRequest {}).await.is_err(), "not hers to see");
    assert!(eve.clone().audit(pb::AuditRequest::default()).await.is_err());
    let may = |order: &str| pb::CanIRequest { order: order.into(), machine: String::new() };
    assert!(eve.clone().can_i(may("failover")).await.expect("an answer").into_inner().allowed);
    let no = eve.clone().can_i(may("set-policy")).await.expect("an answer").into_inner();
    assert!(!no.allowed && no.roles == ["contributor", "owner"] && no.operators == ["ada"], "{no:?}");

    // A token that was taken back is none.
    let made = lab.operator.clone().create_token(token("bob", "reader")).await.expect("a token").into_inner();
    let listed = lab.operator.clone().access(pb::AccessRequest {}).await.expect("lists").into_inner();
    let id = listed.tokens.iter().find(|token| token.name == "bob").expect("it is listed").id.clone();
    let revoke = pb::RevokeRequest { token: id.clone(), ..Default::default() };
    assert!(eve.clone().revoke(revoke.clone()).await.is_err(), "not hers to take");
    lab.operator.clone().revoke(revoke.clone()).await.expect("taken back");
    assert!(lab.operator.clone().revoke(revoke).await.is_err(), "once");
    assert!(
        continuum_wire::enroll::enroll(&made.token, "operator", "bob", &lab.dir.path().join("bob"))
            .await
            .is_err()
    );

    let own = pb::RevokeRequest { operator: "ada".into(), ..Default::default() };
    assert!(lab.operator.clone().revoke(own).await.is_err(), "nobody locks themselves out");
    lab.operator
        .clone()
        .revoke(pb::RevokeRequest { operator: "eve".into(), ..Default::default() })
        .await
        .expect("out");
    assert!(eve.clone().who_am_i(pb::WhoAmIRequest {}).await.is_err(), "at once");
    // All of it stands in the audit log, which an auditor reads by pages and words.
    let auditor = self::made(&lab, "carl", "auditor").await;
    let page = |contains: &str, before, limit| pb::AuditRequest {
        before,
        limit,
        contains: contains.into(),
        oldest_first: false,
    };
    let found = auditor.clone().audit(page("REVOKE", 0, 10)).await.expect("lines").into_inner();
    let acts: Vec<_> = found.lines.iter().map(|line| (line.act.as_str(), line.object.as_str())).collect();
    assert_eq!(acts, [("revoke-operator", "eve"), ("revoke-token", "bob")]);
    assert!(
        auditor.clone().audit(page("%", 0, 10)).await.expect("lines").into_inner().lines.is_empty(),
        "a word, no pattern"
    );
    let first = auditor.clone().audit(page("", 0, 2)).await.expect("lines").into_inner();
    let next = auditor.clone().audit(page("", first.lines[1].seq, 2)).await.expect("lines").into_inner();
    assert!(first.more && next.lines[0].seq == first.lines[1].seq - 1);
    let whole = pb::AuditRequest { oldest_first: true, limit: 5000, ..Default::default() };
    let whole = auditor.clone().audit(whole).await.expect("lines").into_inner().lines;
    let mut chain = continuum_wire::audit::Chain::default();
    for line in whole {
        let line = continuum_wire::audit::Line {
            seq: line.seq,
            time_us: line.time_us,
            actor: line.actor,
            act: line.act,
            object: line.object,
            outcome: line.outcome,
            detail: line.detail,
            hash: line.hash,
        };
        chain.next(&line).expect("the chain holds as it is told");
    }
    assert!(chain.count() > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_needs_four_eyes_waits_for_another_person_and_for_what_was_looked_at() {
    let kinds = ["failover", "unprotect"].map(String::from).to_vec();
    let lab = Lab::start_with(|config| config.four_eyes = kinds).await;
    // Approvers that are there before the order.
    let grace = made(&lab, "grace", "approver").await;
    let rita = made(&lab, "rita", "reader").await;
    lab.protect().await;
    let failover = || Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: "latest".into() });
    let job = lab.order(failover()).await.expect("it is taken");
    assert_eq!((job.state.as_str(), job.waiting_for.as_str()), ("waiting", "approval"));
    let digest = job.approval.clone().expect("what is agreed to").digest;
    assert_eq!(lab.machine().await.state, "protected", "nothing has happened");
    let answer = |job: &pb::Job, digest: &str| pb::OrderRequest {
        key: key(),
        order: Some(Order::Approve(pb::Approve {
            job: job.id.clone(),
            digest: digest.into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    assert_eq!(
        code_of(&lab.operator, answer(&job, &digest)).await,
        "approval.own",
        "her own, though she is an owner"
    );
    assert_eq!(code_of(&rita, answer(&job, &digest)).await, "access.role");
    assert_eq!(code_of(&grace, answer(&job, "another")).await, "approval.digest");
    let late = made(&lab, "late", "approver").await;
    assert_eq!(code_of(&late, answer(&job, &digest)).await, "approval.role-too-new");
    // The order for another target is another digest.
    let other = Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: "processed".into() });
    let second = lab.order(other).await.expect("what waits is not in the way");
    let theirs = second.approval.clone().expect("an approval").digest;
    assert_ne!(theirs, digest);
    assert_eq!(
        code_of(&grace, answer(&job, &theirs)).await,
        "approval.digest",
        "an old approval for a new target"
    );
    let refusal = pb::OrderRequest {
        key: key(),
        order: Some(Order::Approve(pb::Approve {
            job: second.id.clone(),
            digest: theirs,
            refuse: true,
            reason: "no".into(),
        })),
        ..Default::default()
    };
    assert_eq!(code_of(&grace, refusal).await, "cancelled");
    assert_eq!(lab.machine().await.state, "protected");
    let unprotect = lab.order(Order::Unprotect(pb::Unprotect { keep_replica: false })).await.expect("taken");
    // Agreed to: the same job goes on, once.
    let agreed = answer(&job, &digest);
    let state = code_of(&grace, agreed).await;
    assert!(matches!(state.as_str(), "queued" | "running"), "{state}");
    let done = lab.ended(&job.id).await;
    assert_eq!((done.state.as_str(), done.by.as_str()), ("succeeded", "ada"), "{:?}", done.fault);
    assert_eq!(done.approval.expect("it stands there").by, "grace");
    assert_eq!(
        code_of(&grace, answer(&job, &digest)).await,
        "approval.not-waiting",
        "two answers from one person"
    );
    // Written down before the effect: the intent, the answers that were refused, the agreement.
    let lines = lab.vault().audit(200).await.expect("the log");
    let place = |act: &str, outcome: &str, by: &str| {
        lines.iter().position(|line| {
            (line.act.as_str(), line.outcome.as_str(), line.actor.as_str()) == (act, outcome, by)
        })
    };
    let (intent, agreed) = (place("failover", "intent", "ada"), place("approve", "done", "grace"));
    assert!(intent.is_some() && intent < agreed, "{lines:#?}");
    assert!(place("approve", "refused", "ada").is_some() && place("approve", "refused", "late").is_some());

    // An order whose machine is in another epoch by now waits on: what was looked at does not happen any more.
    let digest = unprotect.approval.clone().expect("an approval").digest;
    // Whichever check finds it first: that of the machine's state, or that of the digest.
    let refused = code_of(&grace, answer(&unprotect, &digest)).await;
    assert!(matches!(refused.as_str(), "approval.changed" | "protection.illegal-move"), "{refused}");
    assert_eq!(lab.job(&unprotect.id).await.state, "waiting");
    // Whoever gave it takes it back.
    lab.order(Order::CancelJob(pb::CancelJob { job: unprotect.id.clone() })).await.expect("taken back");
    assert_eq!(lab.ended(&unprotect.id).await.state, "cancelled");
}
