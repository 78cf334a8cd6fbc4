//! The replication channel between honest sides: what is sent arrives as it was, dead links are found, slow
//! receivers are not taken for dead, and a revoked certificate ends what stands.

mod common;

use common::{Estate, frame, machine, now};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber, Sequence};
use continuum_wire::channel::{self, Ack, Hello, Incoming, Message, Receiver, Sender, Welcome};
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn hello() -> Hello {
    Hello { machine: machine(1), epoch: Epoch(4), session: 99 }
}

const WELCOME: Welcome = Welcome {
    number: FrameNumber(7),
    digest: u128::MAX - 5,
    sequence: Sequence(1 << 60),
    newest: Timestamp::from_micros(-3),
    epoch: Epoch(u64::MAX),
};

/// A listener that hands its streams to the test.
async fn listen(credentials: &Credentials) -> (SocketAddr, mpsc::Receiver<Incoming>, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel(16);
    let stop = CancellationToken::new();
    tokio::spawn(channel::serve(listener, credentials.acceptor().unwrap(), stop.clone(), move |incoming| {
        let tell = tell.clone();
        async move { drop(tell.send(incoming).await) }
    }));
    (address, told, stop)
}

async fn pair(estate: &Estate) -> ((Sender, Receiver), (Sender, Receiver)) {
    let (address, mut told, _) = listen(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = estate.agent(machine(1));
    join(&agent, address, &mut told).await
}

async fn join(
    agent: &Credentials,
    address: SocketAddr,
    told: &mut mpsc::Receiver<Incoming>,
) -> ((Sender, Receiver), (Sender, Receiver)) {
    let address = address.to_string();
    let connecting = channel::connect(agent, &address, Role::MasterTarget, Some("mt"), hello());
    let answering = async {
        let incoming = told.recv().await.unwrap();
        assert_eq!(incoming.hello, hello());
        assert_eq!(incoming.peer.id, machine(1).to_string());
        incoming.welcome(WELCOME).await.unwrap()
    };
    let (connected, answered) = tokio::join!(connecting, answering);
    let (welcome, sender, receiver) = connected.unwrap();
    assert_eq!(welcome, WELCOME);
    ((sender, receiver), answered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_and_acknowledgements_arrive_as_they_were_sent() {
    let estate = Estate::new();
    let ((mut sender, mut acks), (mut acker, mut frames)) = pair(&estate).await;
    let sizes = [0, 1, 511, 4096, 65_535, 1 << 20, 8 << 20].map(|size: usize| size.max(1));
    let sent: Vec<_> =
        (1u64..).zip(sizes).map(|(number, size)| frame(machine(1), 4, number, 0, size)).collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        for envelope in &sent {
            sender.frame(envelope).await.unwrap();
        }
        sender.flush().await.unwrap();
        sender
    });
    for envelope in expected {
        match frames.next().await.unwrap() {
            Some(Message::Frame(arrived)) => assert_eq!(arrived, envelope),
            other => panic!("{other:?}"),
        }
        let head = &envelope.head;
        let ack =
            Ack { number: head.identity.number, sequence: head.last_sequence(), newest: head.last_time };
        acker.ack(ack).await.unwrap();
        match acks.next().await.unwrap() {
            Some(Message::Ack(arrived)) => assert_eq!(arrived, ack),
            other => panic!("{other:?}"),
        }
    }
    // One side says why it ends; the other hears exactly that.
    let sender = sending.await.unwrap();
    let fault = Fault::new(FaultClass::Refused, "epoch.superseded", "epoch 4 is superseded by 5")
        .affects("a")
        .spares("b")
        .remedy("c");
    acker.refuse(&fault).await;
    match acks.next().await.unwrap() {
        Some(Message::Refused(arrived)) => assert_eq!(arrived, fault),
        other => panic!("{other:?}"),
    }
    assert!(acks.next().await.unwrap().is_none());
    sender.close().await.unwrap();
    assert!(frames.next().await.unwrap().is_none(), "a closed stream is no error");
}

#[tokio::test]
async fn a_refusal_reaches_the_one_who_connects() {
    let estate = Estate::new();
    let (address, mut told, _stop) = listen(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = estate.agent(machine(1));
    let address = address.to_string();
    let connecting = channel::connect(&agent, &address, Role::MasterTarget, None, hello());
    let fault = Fault::new(FaultClass::NotReady, "replica.unknown", "no such replica: \u{1b}[31m");
    let refusing = async { told.recv().await.unwrap().refuse(&fault).await };
    let (connected, ()) = tokio::join!(connecting, refusing);
    let arrived = connected.err().unwrap();
    assert_eq!((arrived.code.as_str(), arrived.class), ("replica.unknown", FaultClass::NotReady));
    assert!(!arrived.message.contains('\u{1b}'), "a peer's text is made harmless: {arrived}");
}

/// Passes bytes both ways until it is told to swallow everything, as a dead network does.
async fn proxy(to: SocketAddr) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let dead = CancellationToken::new();
    let swallow = dead.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (far, dead) = (TcpStream::connect(to).await.unwrap(), swallow.clone());
            tokio::spawn(async move {
                let (mut near, mut far) = (near, far);
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    () = dead.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    (address, dead)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_link_is_found_by_both_sides_and_an_idle_one_is_kept() {
    let estate = Estate::new();
    let (address, mut told, _stop) = listen(&estate.credentials(Role::MasterTarget, "mt")).await;
    let (through, dead) = proxy(address).await;
    let agent = estate.agent(machine(1));
    let ((sender, mut acks), (acker, mut frames)) = join(&agent, through, &mut told).await;
    // Nothing is said for longer than silence is borne, yet both are known to be alive.
    let idle = tokio::time::timeout(channel::SILENCE + Duration::from_secs(2), async {
        tokio::select! {
            ended = acks.next() => panic!("{ended:?}"),
            ended = frames.next() => panic!("{ended:?}"),
        }
    });
    assert!(idle.await.is_err());
    let ((mut sender2, mut acks2), (_acker2, mut frames2)) = join(&agent, through, &mut told).await;
    dead.cancel();
    let died = Instant::now();
    // A sender with much to send must not wait for ever either: its receiving half finds out.
    let flood = tokio::spawn(async move {
        for number in 1.. {
            if sender2.frame(&frame(machine(1), 4, number, 0, 1 << 20)).await.is_err() {
                return;
            }
        }
    });
    let ends = tokio::join!(acks2.next(), frames2.next());
    for ended in [ends.0, ends.1] {
        let fault = ended.err().unwrap();
        assert_eq!(fault.class, FaultClass::NotConnected);
        assert!(fault.message.contains("nothing was heard for 20 s"), "{fault}");
    }
    assert!(died.elapsed() < channel::SILENCE + Duration::from_secs(3), "{:?}", died.elapsed());
    flood.abort();
    drop((sender, acker));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_only_slow_is_not_taken_for_dead_and_costs_no_memory() {
    let estate = Estate::new();
    let ((mut sender, mut acks), (_acker, mut frames)) = pair(&estate).await;
    let (tell, mut told) = mpsc::channel::<u64>(1024);
    let sending = tokio::spawn(async move {
        for number in 1..=64 {
            sender.frame(&frame(machine(1), 4, number, 0, 1 << 20)).await.unwrap();
            tell.send(number).await.unwrap();
        }
        sender.flush().await.unwrap();
        sender
    });
    // Our own half listens on, as an agent does; the other side reads nothing for longer than silence is borne.
    let nothing = tokio::time::timeout(channel::SILENCE + Duration::from_secs(3), acks.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let mut sent = 0;
    while let Ok(number) = told.try_recv() {
        sent = number;
    }
    assert!(sent < 40, "{sent} MiB went somewhere although nobody reads");
    for number in 1..=64 {
        match frames.next().await.unwrap() {
            Some(Message::Frame(envelope)) => assert_eq!(envelope.head.identity.number, FrameNumber(number)),
            other => panic!("{other:?}"),
        }
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn a_message_that_was_given_up_half_way_ends_its_stream() {
    let estate = Estate::new();
    let ((mut sender, acks), (_acker, mut frames)) = pair(&estate).await;
    let big = frame(machine(1), 4, 1, 0, 8 << 20);
    // Nobody reads yet, so that this cannot be finished.
    assert!(tokio::time::timeout(Duration::from_millis(200), sender.frame(&big)).await.is_err());
    let fault = sender.frame(&frame(machine(1), 4, 2, 0, 1)).await.err().unwrap();
    assert!(fault.message.contains("given up half-way"), "{fault}");
    drop((sender, acks));
    assert!(frames.next().await.is_err(), "half a frame must not be taken for one");
}

#[tokio::test]
async fn revoking_a_certificate_ends_its_streams_at_once() {
    let estate = Estate::new();
    let target = estate.credentials(Role::MasterTarget, "mt");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let serving = channel::serve(listener, target.acceptor().unwrap(), stop.clone(), |incoming| async {
        let (_sender, mut receiver) = incoming.welcome(WELCOME).await.unwrap();
        while let Ok(Some(_)) = receiver.next().await {}
    });
    let serving = tokio::spawn(serving);
    let (agent, other) = (estate.agent(machine(1)), estate.agent(machine(2)));
    let (_, _sender, mut acks) =
        channel::connect(&agent, &address, Role::MasterTarget, None, hello()).await.unwrap();
    let (_, _other_sender, mut other_acks) =
        channel::connect(&other, &address, Role::MasterTarget, None, hello()).await.unwrap();
    assert_eq!(target.peers().connections(&agent.identity()), 1);
    target.peers().deny(&agent.identity(), now());
    let ended = tokio::time::timeout(Duration::from_secs(2), acks.next()).await.expect("still open");
    assert!(matches!(ended, Ok(None) | Err(_)));
    assert!(channel::connect(&agent, &address, Role::MasterTarget, None, hello()).await.is_err());
    let stands = tokio::time::timeout(Duration::from_millis(200), other_acks.next()).await;
    assert!(stands.is_err(), "another machine is not touched: {stands:?}");
    stop.cancel();
    serving.await.unwrap();
    assert_eq!(target.peers().connections(&other.identity()), 0, "places are given back");
}

#[tokio::test]
async fn a_flipped_bit_below_tls_is_a_lost_link_and_never_a_frame() {
    let estate = Estate::new();
    let (address, mut told, _stop) = listen(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = estate.agent(machine(1));
    let flipper = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = flipper.local_addr().unwrap();
    // The 300 000th byte towards the target is flipped: after every handshake, inside a frame.
    tokio::spawn(async move {
        let (near, _) = flipper.accept().await.unwrap();
        let far = TcpStream::connect(address).await.unwrap();
        let (mut from_near, mut to_near) = near.into_split();
        let (mut from_far, mut to_far) = far.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_far, &mut to_near).await });
        let (mut buffer, mut passed) = (vec![0; 8192], 0usize);
        while let Ok(read) = tokio::io::AsyncReadExt::read(&mut from_near, &mut buffer).await {
            if read == 0 {
                return;
            }
            if (passed..passed + read).contains(&300_000) {
                buffer[300_000 - passed] ^= 4;
            }
            passed += read;
            if to_far.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    });
    let ((mut sender, mut acks), (_acker, mut frames)) = join(&agent, through, &mut told).await;
    let sending = tokio::spawn(async move {
        for number in 1..=8 {
            if sender.frame(&frame(machine(1), 4, number, 0, 64 << 10)).await.is_err() {
                return;
            }
        }
        let _ = sender.flush().await;
        std::future::pending::<()>().await;
    });
    let mut whole = 0;
    let fault = loop {
        match frames.next().await {
            Ok(Some(Message::Frame(envelope))) => {
                whole += 1;
                assert_eq!(envelope, frame(machine(1), 4, whole, 0, 64 << 10));
            }
            Ok(other) => panic!("{other:?}"),
            Err(fault) => break fault,
        }
    };
    assert!((1..8).contains(&whole), "the flip came after {whole} whole frames");
    assert_eq!((fault.code.as_str(), fault.class), ("channel.lost", FaultClass::NotConnected), "{fault}");
    drop((frames, _acker));
    let other_side = tokio::time::timeout(Duration::from_secs(5), acks.next()).await.expect("not told");
    if let Err(fault) = other_side {
        assert_eq!(fault.class, FaultClass::NotConnected, "it is tried again at once: {fault}");
    }
    sending.abort();
}
