//! A process server between a real agent's channel and a real target's: what arrives, what is refused, and
//! that nothing it does or suffers can lose or invent an acknowledgement.

mod common;

use common::*;
use continuum_model::fault::FaultClass;
use continuum_model::feed::Envelope;
use continuum_model::policy::BandwidthLimit;
use continuum_process_server::pace::{Held, Pace};
use continuum_process_server::{Assigned, Limits, ProcessServer};
use continuum_wire::channel::{self, Message};
use continuum_wire::identity::Role;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_arrive_as_they_were_made_and_only_the_target_acknowledges() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    server.assign(assigned(machine(1), 3, at_target));
    let (agent, feed) = (estate.agent(machine(1)), feed(machine(1), 3, 40, 200_000));

    // While the target makes nothing durable, everything may be here, and nothing is acknowledged.
    target.gate.send_replace(false);
    let address = at.to_string();
    let streaming = stream_once(&agent, &address, 3, &feed, &target);
    tokio::pin!(streaming);
    tokio::select! {
        ended = &mut streaming => panic!("acknowledged by nobody: {ended:?}"),
        () = until("received", || server.status().relays[0].received_bytes > 8_000_000) => {}
    }
    assert_eq!((server.status().relays[0].acknowledged.0, target.numbers(machine(1))), (0, 0));
    assert!(server.status().relays[0].agent_connected && server.status().relays[0].target_connected);
    target.gate.send_replace(true);
    streaming.await.unwrap();
    target.assert_holds(machine(1), &feed);
    let status = server.status();
    assert_eq!(
        (status.relays[0].acknowledged.0, status.relays[0].backlog_bytes, status.spool_bytes),
        (40, 0, 0)
    );
    let compressed = target.held.lock().unwrap()[&machine(1)].compressed;
    assert!(compressed > 0, "half of every frame shrinks");
    until("gone", || {
        !server.status().relays[0].agent_connected && !server.status().relays[0].target_connected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sends_another_machines_data() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    let address = at.to_string();
    for byte in [1, 2] {
        server.assign(assigned(machine(byte), 1, at_target));
    }
    let connect = |credentials: continuum_wire::tls::Credentials, machine| {
        let address = address.clone();
        async move { channel::connect(&credentials, &address, Role::ProcessServer, None, hello(machine, 1)).await }
    };
    let fault = connect(estate.agent(machine(1)), machine(2)).await.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.class), ("channel.no-right", FaultClass::Refused));
    let expected = format!("agent {} has no right to machine {}", machine(1), machine(2));
    assert!(fault.message.contains(&expected), "{fault}");
    // Another role with the machine's id is not the machine.
    for role in [Role::ProcessServer, Role::MasterTarget, Role::Vault, Role::Operator] {
        let other = estate.credentials(role, &machine(2).to_string());
        assert_eq!(connect(other, machine(2)).await.err().unwrap().code, "channel.no-right", "{role}");
    }
    assert!(target.held.lock().unwrap().is_empty(), "the target was not even asked");
    // Inside its own stream, too.
    let (_, mut sender, mut receiver) = connect(estate.agent(machine(1)), machine(1)).await.unwrap();
    sender.frame(&Envelope::plain(&feed(machine(2), 1, 1, 100)[0])).await.unwrap();
    sender.flush().await.unwrap();
    match receiver.next().await.unwrap() {
        Some(Message::Refused(fault)) => assert_eq!(fault.code, "channel.no-right"),
        other => panic!("{other:?}"),
    }
    assert_eq!((target.numbers(machine(1)), target.numbers(machine(2))), (0, 0));
    assert!(target.trouble.lock().unwrap().is_empty(), "nothing of it reached the target");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_epoch_that_holds_is_relayed_and_a_change_ends_the_stream() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    let (agent, address) = (estate.agent(machine(1)), at.to_string());
    let connect =
        |epoch| channel::connect(&agent, &address, Role::ProcessServer, None, hello(machine(1), epoch));
    let unknown = connect(7).await.err().unwrap();
    assert_eq!((unknown.code.as_str(), unknown.class), ("relay.unknown", FaultClass::NotReady));
    server.assign(assigned(machine(1), 7, at_target));
    let stale = connect(6).await.err().unwrap();
    assert_eq!((stale.code.as_str(), stale.class), ("epoch.superseded", FaultClass::Refused));
    assert!(stale.message.contains("epoch 6 is superseded by 7"), "{stale}");
    assert_eq!(connect(8).await.err().unwrap().class, FaultClass::NotReady, "we may be told late");

    let (_, mut sender, mut receiver) = connect(7).await.unwrap();
    let old = feed(machine(1), 7, 2, 1000);
    sender.frame(&Envelope::plain(&old[0])).await.unwrap();
    sender.flush().await.unwrap();
    assert!(matches!(receiver.next().await.unwrap(), Some(Message::Ack(_))));
    server.assign(assigned(machine(1), 7, at_target));
    sender.frame(&Envelope::plain(&old[1])).await.unwrap();
    sender.flush().await.unwrap();
    assert!(
        matches!(receiver.next().await.unwrap(), Some(Message::Ack(_))),
        "told the same: nothing changes"
    );
    server.assign(assigned(machine(1), 8, at_target));
    match receiver.next().await.unwrap() {
        Some(Message::Refused(fault)) => assert_eq!(fault.code, "relay.reassigned"),
        other => panic!("{other:?}"),
    }
    assert_eq!(connect(7).await.err().unwrap().code, "epoch.superseded");

    let (_, _sender, mut receiver) = connect(8).await.unwrap();
    server.assign_exactly(vec![assigned(machine(2), 1, at_target)]);
    match receiver.next().await.unwrap() {
        Some(Message::Refused(fault)) => assert_eq!(fault.code, "relay.unknown"),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.status().relays.len(), 1);
    server.unassign(machine(2));
    assert!(server.status().relays.is_empty());
    assert_eq!(target.numbers(machine(1)), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_are_dropped_and_gaps_and_forks_are_refused() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    server.assign(assigned(machine(1), 1, at_target));
    let (agent, address, feed) = (estate.agent(machine(1)), at.to_string(), feed(machine(1), 1, 9, 3000));
    let send = |numbers: &'static [usize]| {
        let (agent, address, feed) = (&agent, &address, &feed);
        async move {
            let (_, mut sender, mut receiver) =
                channel::connect(agent, address, Role::ProcessServer, None, hello(machine(1), 1))
                    .await
                    .unwrap();
            for number in numbers {
                // What was refused already may be closed already.
                let _ = sender.frame(&Envelope::plain(&feed[number - 1])).await;
            }
            let _ = sender.flush().await;
            let expected = *numbers.last().unwrap() as u64;
            loop {
                match receiver.next().await.unwrap() {
                    Some(Message::Ack(ack)) if ack.number.0 == expected => return None,
                    Some(Message::Ack(_)) => {}
                    Some(Message::Refused(fault)) => return Some(fault),
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    assert_eq!(send(&[1, 2, 2, 1, 2, 3]).await, None);
    assert_eq!(server.status().relays[0].duplicates, 3);
    let gap = send(&[4, 6, 7]).await.unwrap();
    assert_eq!((gap.code.as_str(), gap.class), ("feed.gap", FaultClass::NotConnected));
    assert!(gap.message.contains("frame 6 arrived where frame 5 was due"), "{gap}");
    assert!(target.numbers(machine(1)) <= 4, "nothing after the gap");
    // A frame of the right number of another history of the same machine.
    let mut other = common::feed(machine(1), 1, 6, 2999);
    let (welcome, mut sender, mut receiver) =
        channel::connect(&agent, &address, Role::ProcessServer, None, hello(machine(1), 1)).await.unwrap();
    let fork = other.swap_remove(welcome.number.0 as usize);
    sender.frame(&Envelope::plain(&fork)).await.unwrap();
    sender.flush().await.unwrap();
    match receiver.next().await.unwrap() {
        Some(Message::Refused(fault)) => assert_eq!(fault.code, "feed.fork"),
        other => panic!("{other:?}"),
    }
    // After all of this the stream goes on where the target is.
    stream_all(&agent, || address.clone(), 1, &feed, &target).await;
    target.assert_holds(machine(1), &feed);
    assert_eq!(target.held.lock().unwrap()[&machine(1)].duplicates, 0, "repeats end here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_and_bits_flipped_on_either_side_lose_nothing() {
    let estate = Estate::new();
    for (seed, near, far) in [
        (11, Harm::Cut(900_000), Harm::Nothing),
        (12, Harm::Nothing, Harm::Cut(900_000)),
        (13, Harm::Cut(1_500_000), Harm::Cut(1_500_000)),
        (14, Harm::Flip(1_200_000), Harm::Nothing),
        (15, Harm::Flip(1_500_000), Harm::Flip(1_500_000)),
    ] {
        let id = machine(seed as u8);
        let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
        let (server, at, _s) = estate.process_server(Limits::default()).await;
        let (through_far, far_harmed) = link(at_target, far, seed).await;
        let (through_near, near_harmed) = link(at, near, seed * 7).await;
        server.assign(assigned(id, 1, through_far));
        let (agent, feed) = (estate.agent(id), feed(id, 1, 60, 50_000));
        let connections = stream_all(&agent, || through_near.to_string(), 1, &feed, &target).await;
        target.assert_holds(id, &feed);
        let harmed = far_harmed.load(Ordering::Relaxed) + near_harmed.load(Ordering::Relaxed);
        assert!(harmed > 0 && connections > 1, "seed {seed}: {harmed} faults, {connections} connections");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_target_stops_the_agent_and_costs_bounded_memory_and_disk() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let limits =
        Limits { spool_bytes_max: 48 << 20, machine_bytes_max: 24 << 20, machine_memory_bytes_max: 2 << 20 };
    let (server, at, _s) = estate.process_server(limits).await;
    server.assign(assigned(machine(1), 1, at_target));
    server.assign(assigned(machine(2), 1, at_target));
    let (agent, feed, address) = (estate.agent(machine(1)), feed(machine(1), 1, 44, 1 << 20), at.to_string());
    target.gate.send_replace(false);
    let before = resident_bytes();
    let streaming = stream_once(&agent, &address, 1, &feed, &target);
    tokio::pin!(streaming);
    let mut most = 0;
    let full = async {
        let mut last = (0, Instant::now());
        // Until nothing more goes in for a while.
        while last.1.elapsed() < Duration::from_millis(1500) {
            let status = server.status();
            most = most.max(status.spool_bytes);
            let received = status.relays[0].received_bytes;
            if received != last.0 {
                last = (received, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        last.0
    };
    let received = tokio::select! {
        ended = &mut streaming => panic!("{ended:?}"),
        received = full => received,
    };
    assert!((23 << 20..40 << 20).contains(&received), "{} MiB were taken", received >> 20);
    assert!((20 << 20..=26 << 20).contains(&most), "{} MiB were spooled", most >> 20);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 40 << 20, "memory grew by {} MiB", grown >> 20);
    assert_eq!(open_spools(&estate.spool()).len(), 1, "the disk was used");
    assert_eq!(
        std::fs::read_dir(estate.spool()).unwrap().count(),
        1,
        "assignments only: the spool has no name"
    );
    // Another machine, with a target of its own, is not held up.
    let (other_target, at_other, _o) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    server.assign(assigned(machine(2), 1, at_other));
    let other_feed = common::feed(machine(2), 1, 10, 1 << 20);
    let other_agent = estate.agent(machine(2));
    tokio::select! {
        ended = &mut streaming => panic!("{ended:?}"),
        ended = stream_once(&other_agent, &address, 1, &other_feed, &other_target) => ended.unwrap(),
    }
    other_target.assert_holds(machine(2), &other_feed);
    target.gate.send_replace(true);
    streaming.await.unwrap();
    target.assert_holds(machine(1), &feed);
    until("given back", || server.status().spool_bytes == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rot_in_the_spool_is_found_and_the_frames_are_fetched_again() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let limits = Limits { machine_memory_bytes_max: 1 << 20, ..Limits::default() };
    let (server, at, _s) = estate.process_server(limits).await;
    server.assign(assigned(machine(1), 1, at_target));
    let (agent, feed, address) = (estate.agent(machine(1)), feed(machine(1), 1, 50, 1 << 20), at.to_string());
    target.gate.send_replace(false);
    let first = async {
        let streaming = stream_once(&agent, &address, 1, &feed, &target);
        tokio::pin!(streaming);
        tokio::select! {
            ended = &mut streaming => panic!("{ended:?}"),
            () = until("spooled", || server.status().spool_bytes > 20 << 20) => {}
        }
        let files = open_spools(&estate.spool());
        assert_eq!(files.len(), 1);
        let file = std::fs::File::options().read(true).write(true).open(&files[0]).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 9 << 20).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], 9 << 20).unwrap();
        target.gate.send_replace(true);
        streaming.await
    };
    let fault = first.await.unwrap_err();
    assert_eq!((fault.code.as_str(), fault.class), ("spool.failed", FaultClass::NotConnected), "{fault}");
    assert_eq!(
        server.status().relays[0].fault.as_ref().map(|fault| fault.code.as_str()),
        Some("spool.failed")
    );
    let held = target.numbers(machine(1));
    assert!((1..50).contains(&held), "{held} frames came before the rot");
    stream_all(&agent, || address.clone(), 1, &feed, &target).await;
    target.assert_holds(machine(1), &feed);
    let fault = server.status().relays[0].fault.clone();
    assert!(fault.is_none_or(|fault| fault.code != "spool.failed"), "it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_without_a_disk_is_small_and_right() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let limits = Limits { machine_memory_bytes_max: 2 << 20, ..Limits::default() };
    let (server, at, _s) = estate.process_server(limits).await;
    server.assign(assigned(machine(1), 1, at_target));
    // The directory is gone, and something else has its name.
    std::fs::remove_dir_all(estate.spool()).unwrap();
    std::fs::write(estate.spool(), "").unwrap();
    let (agent, feed, address) = (estate.agent(machine(1)), feed(machine(1), 1, 40, 1 << 20), at.to_string());
    target.gate.send_replace(false);
    let streaming = stream_once(&agent, &address, 1, &feed, &target);
    tokio::pin!(streaming);
    let failing = || server.status().relays[0].fault.as_ref().is_some_and(|fault| fault.code == "spool.disk");
    tokio::select! {
        ended = &mut streaming => panic!("{ended:?}"),
        () = until("the disk fails", failing) => {}
    }
    assert!(server.status().spool_bytes < 5 << 20, "{}", server.status().spool_bytes);
    target.gate.send_replace(true);
    streaming.await.unwrap();
    target.assert_holds(machine(1), &feed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_away_is_said_at_once_and_a_wiped_spool_is_no_loss() {
    let estate = Estate::new();
    let (target, at_target, target_guard) =
        Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    server.assign(assigned(machine(1), 1, at_target));
    let (agent, feed, address) = (estate.agent(machine(1)), feed(machine(1), 1, 30, 100_000), at.to_string());
    stream_once(&agent, &address, 1, &feed[..10], &target).await.unwrap();
    drop(target_guard);
    let away = async {
        loop {
            let fault = stream_once(&agent, &address, 1, &feed, &target).await.unwrap_err();
            assert_eq!(fault.class, FaultClass::NotConnected, "{fault}");
            if fault.code == "target.unreachable" {
                return fault;
            }
        }
    };
    let fault = tokio::time::timeout(Duration::from_secs(5), away).await.expect("not told");
    assert!(fault.message.contains("master target"), "{fault}");
    assert_eq!(server.status().relays[0].fault.as_ref(), Some(&fault));
    std::fs::remove_dir_all(estate.spool()).unwrap();
    // The target comes back elsewhere, and somebody who is not it answers in between.
    let (_impostor, at_impostor, _i) = Target::start(&estate.credentials(Role::MasterTarget, "other")).await;
    server.assign(assigned(machine(1), 1, at_impostor));
    let fault = stream_once(&agent, &address, 1, &feed, &target).await.unwrap_err();
    assert_eq!(fault.class, FaultClass::Refused, "{fault}");
    let (second, at_second, _t2) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    *second.held.lock().unwrap() = std::mem::take(&mut *target.held.lock().unwrap());
    server.assign(assigned(machine(1), 1, at_second));
    stream_all(&agent, || address.clone(), 1, &feed, &second).await;
    second.assert_holds(machine(1), &feed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_stream_of_a_machine_takes_the_place_of_the_one_before() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    server.assign(assigned(machine(1), 1, at_target));
    let (agent, address) = (estate.agent(machine(1)), at.to_string());
    let connect = || channel::connect(&agent, &address, Role::ProcessServer, None, hello(machine(1), 1));
    let (_, _sender, mut receiver) = connect().await.unwrap();
    for round in 0..5 {
        let (_, sender, next) = connect().await.unwrap();
        match receiver.next().await.unwrap() {
            Some(Message::Refused(fault)) => assert_eq!(fault.code, "relay.replaced", "round {round}"),
            other => panic!("{other:?}"),
        }
        receiver = next;
        drop(sender);
    }
    assert_eq!(server.status().relays.len(), 1);
    let feed = feed(machine(1), 1, 5, 1000);
    stream_all(&agent, || address.clone(), 1, &feed, &target).await;
    target.assert_holds(machine(1), &feed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledgement_of_what_was_never_sent_is_not_passed_on() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    server.assign(assigned(machine(1), 1, at_target));
    target.lie.store(1, Ordering::Relaxed);
    let (agent, feed) = (estate.agent(machine(1)), feed(machine(1), 1, 1, 1000));
    // `stream_once` itself fails when more is acknowledged than is held.
    let fault = stream_once(&agent, &at.to_string(), 1, &feed, &target).await.unwrap_err();
    assert_eq!(fault.code, "channel.protocol");
    assert!(fault.message.contains("acknowledged frame 2, but only 1 were sent"), "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_is_answered_with_more_compression() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    let (slow, harmed) = link(at_target, Harm::Slow(8 << 20), 1).await;
    server.assign(assigned(machine(1), 1, slow));
    let (agent, feed) = (estate.agent(machine(1)), feed(machine(1), 1, 60, 256 << 10));
    stream_all(&agent, || at.to_string(), 1, &feed, &target).await;
    target.assert_holds(machine(1), &feed);
    assert!(harmed.load(Ordering::Relaxed) > 0);
    let status = &server.status().relays[0];
    assert!(status.forwarded_bytes * 10 < status.received_bytes * 7, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assignments_outlive_the_process_and_a_damaged_file_is_no_reason_not_to_start() {
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, _, stop) = estate.process_server(Limits::default()).await;
    server.assign(assigned(machine(1), 5, at_target));
    server.assign(assigned(machine(2), 6, at_target));
    server.unassign(machine(2));
    drop((server, stop));
    let (server, at, stop) = estate.process_server(Limits::default()).await;
    let (agent, feed) = (estate.agent(machine(1)), feed(machine(1), 5, 3, 1000));
    stream_once(&agent, &at.to_string(), 5, &feed, &target).await.unwrap();
    assert_eq!(server.status().relays.len(), 1);
    drop((server, stop));
    for damage in [b"".as_slice(), b"[{\"machine\":", b"\xff\xfe", b"[{\"machine\":\"x\"}]"] {
        std::fs::write(estate.spool().join("assignments.json"), damage).unwrap();
        let credentials = estate.credentials(Role::ProcessServer, "ps");
        let server =
            ProcessServer::open(&estate.spool(), credentials, Limits::default(), Pace::new(vec![])).unwrap();
        assert!(server.status().relays.is_empty());
    }
}

/// Always, so many bytes a second.
fn always(bytes_per_sec: u64) -> Vec<BandwidthLimit> {
    let at = |time: &str| time.parse().unwrap();
    vec![BandwidthLimit { days: vec![], from: at("00:00"), to: at("24:00"), bytes_per_sec }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_holds_on_the_wire_spares_others_and_changes_without_a_break() {
    const RATE: u64 = 2 << 20;
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server(Limits::default()).await;
    let limited = |rate: Option<u64>| Assigned {
        bandwidth: rate.map(always).unwrap_or_default(),
        compression: false,
        ..assigned(machine(1), 1, at_target)
    };
    server.assign(limited(Some(RATE)));
    server.assign(assigned(machine(2), 1, at_target));
    let of = |number: u8| {
        let relays = server.status().relays;
        relays.into_iter().find(|relay| relay.assigned.machine == machine(number)).unwrap()
    };
    let (agent, feed, address) =
        (estate.agent(machine(1)), feed(machine(1), 1, 240, 256 << 10), at.to_string());
    let streaming = stream_once(&agent, &address, 1, &feed, &target);
    tokio::pin!(streaming);
    let measured = async {
        until("the limit holds something up", || of(1).held == Some(Held::Policy(RATE))).await;
        assert_eq!(of(1).limit_bytes_per_sec, Some(RATE));
        let (begun, before) = (Instant::now(), of(1).forwarded_bytes);
        // Another machine goes as fast as it can meanwhile, and all of it is acknowledged.
        let other = common::feed(machine(2), 1, 40, 256 << 10);
        stream_all(&estate.agent(machine(2)), || address.clone(), 1, &other, &target).await;
        target.assert_holds(machine(2), &other);
        until("eight seconds of the limit", || of(1).forwarded_bytes > before + 8 * RATE).await;
        let (bytes, seconds) = (of(1).forwarded_bytes - before, begun.elapsed().as_secs_f64());
        assert!(of(1).acknowledged.0 > 0, "what went is acknowledged while the rest waits");
        bytes as f64 / seconds / RATE as f64
    };
    let share = tokio::select! {
        ended = &mut streaming => panic!("not held up: {ended:?}"),
        share = measured => share,
    };
    println!("{:.1} % of the limit", share * 100.0);
    assert!(share <= 1.05, "{share}: faster than was allowed");
    // Slower than it could be is a matter of how busy this machine is; the rate itself is proven with a clock of ours.
    // It is lifted: the same stream goes on, at once.
    server.assign(limited(None));
    streaming.await.unwrap();
    target.assert_holds(machine(1), &feed);
    assert_eq!(target.held.lock().unwrap()[&machine(1)].streams, 1, "one stream for all of it");
    assert_eq!((of(1).limit_bytes_per_sec, of(1).held), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_share_the_limit_of_their_process_server() {
    const RATE: u64 = 4 << 20;
    let estate = Estate::new();
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (server, at, _s) = estate.process_server_with(Limits::default(), Pace::new(always(RATE))).await;
    let bytes = |number: u8| {
        let relays = server.status().relays;
        relays.iter().find(|relay| relay.assigned.machine == machine(number)).unwrap().forwarded_bytes
    };
    let mut tasks = tokio::task::JoinSet::new();
    // One sends large frames and many, the other small ones.
    for (number, frames, size) in [(1, 60, 1 << 20), (2, 2000, 30_000)] {
        server.assign(Assigned { compression: false, ..assigned(machine(number), 1, at_target) });
        let (agent, address, target) = (estate.agent(machine(number)), at.to_string(), target.clone());
        tasks.spawn(async move {
            let feed = feed(machine(number), 1, frames, size);
            stream_all(&agent, || address.clone(), 1, &feed, &target).await;
        });
    }
    until("both are held up", || bytes(1) > 0 && bytes(2) > 0).await;
    let begun = Instant::now();
    let before = (bytes(1), bytes(2));
    until("six seconds of the limit", || bytes(1) + bytes(2) > before.0 + before.1 + 6 * RATE).await;
    let (one, two) = ((bytes(1) - before.0) as f64, (bytes(2) - before.1) as f64);
    let share = (one + two) / begun.elapsed().as_secs_f64() / RATE as f64;
    println!("{:.1} % of the limit, {:.1} % of it the first's", share * 100.0, one / (one + two) * 100.0);
    assert!(share <= 1.05, "{share}: faster than was allowed");
    // To a frame or two: large ones go whole.
    assert!((one - two).abs() < 3.0 * (1 << 20) as f64, "{one} and {two}");
    assert_eq!(server.status().limit_bytes_per_sec, Some(RATE));
    tasks.shutdown().await;
}
