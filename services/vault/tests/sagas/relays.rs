//! What a process server is told, where a machine may be moved to, and what is told of a stream that is not there.

use super::*;
use continuum_model::policy::BandwidthLimit;
use continuum_wire::policy::limit_to_message;

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_process_server_and_a_move_goes_only_where_it_can() {
    let lab = Lab::start().await;
    lab.protect().await;
    let all = lab.snapshot(&[pb::Kind::Policy]).await;
    let policy = all.into_iter().find_map(|entity| match entity {
        Entity::Policy(policy) if policy.name == "gold" => Some(policy),
        _ => None,
    });
    let at = |time: &str| time.parse().unwrap();
    let limit = BandwidthLimit { days: vec![], from: at("08:00"), to: at("18:00"), bytes_per_sec: 1 << 20 };
    let policy = pb::Policy { bandwidth: vec![limit_to_message(&limit)], ..policy.expect("the policy") };
    lab.done(Order::SetPolicy(pb::SetPolicy { policy: Some(policy.clone()) })).await;
    let relay = eventually("the process server is told", async || {
        lab.world.lock().relayed.values().find(|relay| !relay.bandwidth.is_empty()).cloned()
    })
    .await;
    assert_eq!((relay.bandwidth, relay.urgent), (policy.bandwidth, false));

    assert!(lab.machine().await.orders.contains(&"move".to_owned()));
    for (server, code) in [
        ("ps-1", "process-server.same"),
        ("", "process-server.none"),
        ("mt-1", "process-server.unknown"),
        ("\x1b]0;x\x07", "process-server.unknown"),
    ] {
        let order = Order::MoveMachine(pb::MoveMachine { process_server: server.into() });
        let refused = lab.order(order).await.unwrap_err();
        assert_eq!(refused.code, code, "{refused}");
        assert!(!refused.message.contains('\x1b') && !refused.remedy.is_empty(), "{refused:?}");
        let question = pb::ReadinessRequest {
            machine: lab.machine.clone(),
            order: "move".into(),
            process_server: server.into(),
            ..Default::default()
        };
        let report = lab.operator.clone().readiness(question).await.unwrap().into_inner();
        let failed =
            report.checks.iter().any(|check| check.name == "process-server" && check.state == "failed");
        assert!(!report.ready && failed && !report.command.contains('\x1b'), "{report:?}");
    }
    assert_eq!(lab.machine().await.process_server, "ps-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_a_person_must_mend_is_an_alert_with_what_to_do() {
    let lab = Lab::start().await;
    lab.protect().await;
    let fault = pb::Fault {
        class: "refused".into(),
        code: "tls.refused".into(),
        message: "agent → process server at 10.0.0.7:9443: no trusted connection\x1b[2J".into(),
        remedy: "compare the clocks of both sides".into(),
        ..Default::default()
    };
    let with = |code: &'static str| {
        let lab = &lab;
        async move || {
            let machine = lab.machine().await;
            machine.symptoms.iter().any(|symptom| symptom.code == code).then_some(machine)
        }
    };
    // It is tried again: a warning, with the time.
    let next = 4_102_444_800_000_000;
    lab.world.lock().broken = Some((fault.clone(), next));
    let machine = eventually("it is a warning", with("channel.down")).await;
    assert_eq!((machine.next_retry_us, machine.health.as_str()), (Some(next), "warning"));
    assert_eq!(machine.link_fault.map(|fault| fault.code), Some("tls.refused".into()));
    // It is not.
    lab.world.lock().broken = Some((fault, 0));
    let machine = eventually("it is critical", with("channel.refused")).await;
    assert_eq!((machine.next_retry_us, machine.health.as_str()), (None, "critical"));
    let alert = eventually("an alert is raised", async || {
        let all = lab.snapshot(&[pb::Kind::Alert]).await;
        all.into_iter().find_map(|entity| match entity {
            Entity::Alert(alert) if alert.code == "channel.refused" => Some(alert),
            _ => None,
        })
    })
    .await;
    assert!(alert.text.contains("agent → process server at 10.0.0.7:9443") && !alert.text.contains('\x1b'));
    assert!(
        alert.remedy.contains("compare the clocks") && alert.remedy.contains("continuum retry"),
        "{alert:?}"
    );
    // Retry-now reaches the source, and the process server.
    lab.done(Order::RetryNow(pb::RetryNow {})).await;
    eventually("the agent is asked", async || lab.world.has_done("reconnect").then_some(())).await;
    lab.world.lock().broken = None;
    eventually("the alert clears", async || {
        let machine = lab.machine().await;
        (machine.health == "healthy" && machine.link_fault.is_none()).then_some(())
    })
    .await;
}
