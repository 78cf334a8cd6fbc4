//! Hostile bytes and hostile patience at the port of the replication channel: each is told off and closed,
//! and an honest agent is served all the while.

mod common;

use common::{Estate, frame, machine};
use continuum_model::fault::Fault;
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber, Sequence};
use continuum_wire::channel::{self, Ack, Hello, Incoming, Message, Welcome};
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use continuum_wire::tls::{ALPN_CHANNEL, Credentials};
use prost::Message as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;

/// Welcomes everybody and acknowledges every frame.
async fn target(credentials: &Credentials) -> (SocketAddr, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(channel::serve(listener, credentials.acceptor().unwrap(), stop.clone(), serve_one));
    (address, stop)
}

async fn serve_one(incoming: Incoming) {
    let welcome = Welcome {
        number: FrameNumber(0),
        digest: 0,
        sequence: Sequence(0),
        newest: Timestamp::default(),
        epoch: incoming.hello.epoch,
    };
    let Ok((mut sender, mut receiver)) = incoming.welcome(welcome).await else { return };
    loop {
        match receiver.next().await {
            Ok(Some(Message::Frame(envelope))) => {
                let number = envelope.head.identity.number;
                let ack =
                    Ack { number, sequence: envelope.head.last_sequence(), newest: envelope.head.last_time };
                if sender.ack(ack).await.is_err() {
                    return;
                }
            }
            Ok(_) => return,
            Err(fault) => return sender.refuse(&fault).await,
        }
    }
}

fn hello() -> Hello {
    Hello { machine: machine(1), epoch: Epoch(1), session: 1 }
}

/// A whole exchange of an honest agent, and how long it took.
async fn honest(agent: &Credentials, address: &str) -> Result<Duration, Fault> {
    let started = Instant::now();
    let (_, mut sender, mut receiver) =
        channel::connect(agent, address, Role::MasterTarget, Some("mt"), hello()).await?;
    let envelope = frame(machine(1), 1, 1, 0, 4096);
    sender.frame(&envelope).await?;
    sender.flush().await?;
    match receiver.next().await? {
        Some(Message::Ack(ack)) => assert_eq!(ack.number, FrameNumber(1)),
        other => panic!("{other:?}"),
    }
    Ok(started.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_silent_peers_do_not_delay_an_honest_one() {
    let estate = Estate::new();
    let (address, stop) = target(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = estate.agent(machine(1));
    let alone = honest(&agent, &address.to_string()).await.unwrap();
    let mut silent = Vec::new();
    for number in 0..1_000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // Some say nothing, some begin a hello and stop.
        if number % 2 == 0 {
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
        }
        silent.push(stream);
        if number % 100 == 99 {
            let took = honest(&agent, &address.to_string()).await.unwrap();
            assert!(took < Duration::from_secs(2), "{took:?} beside {number}, {alone:?} alone");
        }
    }
    // More of them than there are places: the oldest were given up, which they notice.
    let mut given_up = 0;
    for stream in &mut silent {
        let mut byte = [0];
        if let Ok(Ok(0) | Err(_)) =
            tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte)).await
        {
            given_up += 1;
        }
    }
    assert!(given_up >= 400, "{given_up} were given up");
    stop.cancel();
}

#[tokio::test]
async fn who_does_not_finish_its_handshake_is_closed_after_ten_seconds() {
    let estate = Estate::new();
    let (address, stop) = target(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = estate.agent(machine(1));
    let started = Instant::now();
    let mut before_tls = TcpStream::connect(address).await.unwrap();
    before_tls.write_all(&[22, 3, 1]).await.unwrap();
    let mut before_hello = open(&agent, address).await;
    let mut inside_hello = open(&agent, address).await;
    inside_hello.write_all(&[1, 32, 0, 0, 0, 1, 0]).await.unwrap();
    let mut byte = [0];
    let ended = before_tls.read(&mut byte).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    for stream in [&mut before_hello, &mut inside_hello] {
        let fault = refusal(stream).await;
        assert!(fault.message.contains("no hello in 10 s"), "{fault}");
    }
    let took = started.elapsed().as_secs();
    assert!((9..=15).contains(&took), "{took} s");
    stop.cancel();
}

async fn open(agent: &Credentials, address: SocketAddr) -> TlsStream<TcpStream> {
    agent.connect(&address.to_string(), ALPN_CHANNEL, Role::MasterTarget, None).await.unwrap().0
}

/// What the other side says before it closes. Signs of life are passed over.
async fn refusal(stream: &mut TlsStream<TcpStream>) -> Fault {
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut all))
        .await
        .expect("not closed");
    let mut rest = all.as_slice();
    while let [kind, a, b, c, d, tail @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let (body, after) = tail.split_at(length);
        if *kind == 5 {
            return grpc::fault_from_proto(&continuum_proto::v1::Fault::decode(body).unwrap());
        }
        rest = after;
    }
    panic!("closed without a reason after {all:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_malformed_message_is_answered_with_its_reason_and_closed() {
    let estate = Estate::new();
    let (address, stop) = target(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = estate.agent(machine(1));
    let message = |kind: u8, length: u32, body: &[u8]| {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let whole = |kind: u8, body: &[u8]| message(kind, body.len() as u32, body);
    let mut good = vec![1, 0];
    good.extend_from_slice(&[0; 32]);
    let mut newer = good.clone();
    newer[0] = 9;
    let envelope = frame(machine(1), 1, 1, 0, 512).encode();
    let mut rotten = envelope.to_vec();
    *rotten.last_mut().unwrap() ^= 1;
    let mut trailing = envelope.to_vec();
    trailing.push(0);
    // (why, after a good hello?, bytes, what the refusal says)
    let rows: Vec<(&str, bool, Vec<u8>, &str)> = vec![
        (
            "hello of 4 GiB",
            false,
            message(1, u32::MAX, &[]),
            "message of 4294967295 bytes exceeds the limit of 16384",
        ),
        ("frame of 4 GiB", true, message(3, u32::MAX, &[]), "message of 4294967295 bytes exceeds the limit"),
        ("first message unknown", false, whole(0xee, b"x"), "unsupported message type 0xee"),
        ("later message unknown", true, whole(0x77, b"x"), "unsupported message type 0x77"),
        ("frame before hello", false, whole(3, &envelope), "message type 3 where a hello was expected"),
        ("version from the future", false, whole(1, &newer), "it speaks version 9, here is version 1"),
        ("hello too short", false, whole(1, &good[..20]), "a hello of another length"),
        ("hello too long", false, whole(1, &[good.clone(), vec![0]].concat()), "a hello of another length"),
        ("empty hello", false, whole(1, &[]), "message type 1"),
        ("second hello", true, whole(1, &good), "unsupported message type 0x01"),
        ("welcome to the wrong side", true, whole(2, &[0; 48]), "unsupported message type 0x02"),
        ("frame of zero bytes", true, whole(3, &[]), "less than any has"),
        ("frame that is none", true, whole(3, &[0x5a; 200]), "arrived damaged"),
        ("frame with a flipped bit", true, whole(3, &rotten), "arrived damaged"),
        ("bytes after a frame", true, whole(3, &trailing), "bytes after the end of a frame"),
        ("acknowledgement too short", true, whole(4, &[0; 8]), "unsupported message type 0x04"),
        ("alive with content", true, whole(6, b"x"), "exceeds the limit of 0"),
    ];
    for (why, after_hello, bytes, expected) in rows {
        let mut stream = open(&agent, address).await;
        if after_hello {
            stream.write_all(&whole(1, &good)).await.unwrap();
            let mut welcome = [0; 53];
            stream.read_exact(&mut welcome).await.unwrap();
        }
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let fault = refusal(&mut stream).await;
        assert!(fault.message.contains(expected), "{why}: {fault}");
        honest(&agent, &address.to_string()).await.unwrap();
    }
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claimed_lengths_cost_no_memory() {
    let estate = Estate::new();
    let (address, stop) = target(&estate.credentials(Role::MasterTarget, "mt")).await;
    let mut hello = vec![1, 34, 0, 0, 0, 1, 0];
    hello.extend_from_slice(&[0; 32]);
    hello[1] = 34;
    let before = resident_bytes();
    let mut open_streams = Vec::new();
    for number in 0..60u8 {
        let agent = estate.agent(machine(number));
        let mut stream = open(&agent, address).await;
        stream.write_all(&hello).await.unwrap();
        // A permitted frame of 15 MiB is announced, and a few bytes of it come.
        stream.write_all(&[3, 0, 0, 0xf0, 0, 1, 2, 3]).await.unwrap();
        stream.flush().await.unwrap();
        open_streams.push(stream);
    }
    honest(&estate.agent(machine(1)), &address.to_string()).await.unwrap();
    let grown = resident_bytes().saturating_sub(before);
    // 60 × 15 MiB were announced; buffers of 60 streams, both ends in this process, are about 60 MiB at most.
    assert!(grown < 150 << 20, "memory grew by {} MiB", grown >> 20);
    stop.cancel();
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_protocols_are_closed_and_the_next_agent_is_served() {
    let estate = Estate::new();
    let (address, stop) = target(&estate.credentials(Role::MasterTarget, "mt")).await;
    let agent = Arc::new(estate.agent(machine(1)));
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"SSH-2.0-x\r\n", &[0xff; 5000], &[0; 5000]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "not closed");
        // At most a TLS alert is said.
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
        honest(&agent, &address.to_string()).await.unwrap();
    }
    stop.cancel();
}
