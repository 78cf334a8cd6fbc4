//! Both neighbours of a process server, over real sockets and certificates: a target that keeps what it gets
//! and checks all of it, an agent that sends a feed until all of it is acknowledged, and links that fail.
#![allow(dead_code, reason = "every test crate uses its own part")]

use continuum_model::fault::Fault;
use continuum_model::feed::{Change, Codec, Envelope, Frame, FrameBuilder, Identity as Place, Record};
use continuum_model::id::{MachineId, VaultId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_model::world::{Clock, SystemClock};
use continuum_process_server::pace::Pace;
use continuum_process_server::{Assigned, Limits, ProcessServer};
use continuum_wire::ca::Authority;
use continuum_wire::channel::{self, Ack, Hello, Incoming, Message, Welcome};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::{self, Credentials};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

pub struct Estate {
    pub dir: TempDir,
    authority: Authority,
}

impl Estate {
    pub fn new() -> Self {
        tls::install_provider();
        let dir = tempfile::Builder::new().prefix("ct-ps-").tempdir().unwrap();
        let now = SystemClock::default().wall();
        let authority =
            Authority::open_or_create(&dir.path().join("ca"), VaultId::from_bytes([7; 16]), now).unwrap();
        Self { dir, authority }
    }

    pub fn credentials(&self, role: Role, id: &str) -> Credentials {
        let identity = Identity { vault: self.authority.vault(), role, id: id.to_owned() };
        let (certificate, key) = self.authority.make(&identity, SystemClock::default().wall()).unwrap();
        let dir = self.dir.path().join(format!("{role}-{id}"));
        Credentials::store(&dir, self.authority.certificate_pem(), &certificate, &key).unwrap()
    }

    pub fn agent(&self, machine: MachineId) -> Credentials {
        self.credentials(Role::Agent, &machine.to_string())
    }

    pub fn spool(&self) -> std::path::PathBuf {
        self.dir.path().join("spool")
    }

    /// A process server that listens, until the guard is dropped.
    pub async fn process_server(&self, limits: Limits) -> (ProcessServer, SocketAddr, DropGuard) {
        self.process_server_with(limits, Pace::new(vec![])).await
    }

    /// The same with limits on how fast it may send.
    pub async fn process_server_with(
        &self,
        limits: Limits,
        pace: Pace,
    ) -> (ProcessServer, SocketAddr, DropGuard) {
        let credentials = self.credentials(Role::ProcessServer, "ps");
        let server = ProcessServer::open(&self.spool(), credentials, limits, pace).unwrap();
        let (address, stop) = serve(&server).await;
        (server, address, stop)
    }
}

pub async fn serve(server: &ProcessServer) -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let (serving, stopped) = (server.clone(), stop.clone());
    tokio::spawn(async move { serving.serve(listener, stopped).await.unwrap() });
    (address, stop.drop_guard())
}

pub fn machine(byte: u8) -> MachineId {
    MachineId::from_bytes([byte; 16])
}

pub fn assigned(machine: MachineId, epoch: u64, target: SocketAddr) -> Assigned {
    Assigned {
        machine,
        epoch: Epoch(epoch),
        target_address: target.to_string(),
        target_id: "mt".into(),
        compression: true,
        bandwidth: Vec::new(),
        urgent: false,
    }
}

/// A feed of `frames` frames of about `size` bytes; half of each frame shrinks.
pub fn feed(machine: MachineId, epoch: u64, frames: u64, size: usize) -> Vec<Frame> {
    let mut previous = 0;
    let mut state = u64::from(machine.as_bytes()[0]) << 32 | 1;
    (1..=frames)
        .map(|number| {
            let mut data = vec![number as u8; size];
            for chunk in data[..size / 2].chunks_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
            }
            let mut builder = FrameBuilder::default();
            builder.push(&Record {
                sequence: Sequence(number),
                time: Timestamp::from_micros(number as i64),
                change: Change::Write {
                    disk: DiskIndex(0),
                    offset: number << 20,
                    data: data.into(),
                    injected: false,
                },
            });
            let place =
                Place { machine, epoch: Epoch(epoch), number: FrameNumber(number), session: 1, previous };
            let frame = builder.finish(place).unwrap();
            previous = frame.head.digest;
            frame
        })
        .collect()
}

/// What a target holds of one machine, and what it saw.
#[derive(Default)]
pub struct Held {
    pub frames: Vec<Frame>,
    pub duplicates: u64,
    pub compressed: u64,
    pub plain: u64,
    pub streams: u64,
}

#[derive(Clone)]
pub struct Target {
    pub held: Arc<Mutex<HashMap<MachineId, Held>>>,
    /// Open: frames are read, kept and acknowledged. Shut: nothing is read.
    pub gate: watch::Sender<bool>,
    /// What is added to the number in each acknowledgement: a target that lies.
    pub lie: Arc<AtomicU64>,
    pub trouble: Arc<Mutex<Vec<String>>>,
}

impl Target {
    pub async fn start(credentials: &Credentials) -> (Self, SocketAddr, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let target = Self {
            held: Arc::default(),
            gate: watch::channel(true).0,
            lie: Arc::default(),
            trouble: Arc::default(),
        };
        let serving = target.clone();
        let acceptor = credentials.acceptor().unwrap();
        tokio::spawn(channel::serve(listener, acceptor, stop.clone(), move |incoming| {
            serving.clone().stream(incoming)
        }));
        (target, address, stop.drop_guard())
    }

    pub fn numbers(&self, machine: MachineId) -> u64 {
        self.held.lock().unwrap().get(&machine).map_or(0, |held| held.frames.len() as u64)
    }

    pub fn assert_holds(&self, machine: MachineId, feed: &[Frame]) {
        assert_eq!(*self.trouble.lock().unwrap(), Vec::<String>::new());
        let held = self.held.lock().unwrap();
        let frames = &held.get(&machine).expect("nothing arrived").frames;
        assert_eq!(frames.len(), feed.len());
        for (arrived, sent) in frames.iter().zip(feed) {
            assert!(arrived == sent, "frame {} is not what was sent", sent.head.identity.number);
        }
    }

    async fn stream(self, incoming: Incoming) {
        let machine = incoming.hello.machine;
        let welcome = {
            let mut held = self.held.lock().unwrap();
            let held = held.entry(machine).or_default();
            held.streams += 1;
            let last = held.frames.last();
            Welcome {
                number: FrameNumber(held.frames.len() as u64),
                digest: last.map_or(0, |frame| frame.head.digest),
                sequence: last.map_or(Sequence(0), |frame| frame.head.last_sequence()),
                newest: last.map_or(Timestamp::default(), |frame| frame.head.last_time),
                epoch: incoming.hello.epoch,
            }
        };
        let Ok((mut sender, mut receiver)) = incoming.welcome(welcome).await else { return };
        let mut gate = self.gate.subscribe();
        loop {
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
            let envelope = match receiver.next().await {
                Ok(Some(Message::Frame(envelope))) => envelope,
                Ok(_) | Err(_) => return,
            };
            // A frame that came while the gate was shut waits as well: it is not durable yet.
            if gate.wait_for(|open| *open).await.is_err() {
                return;
            }
            match self.keep(machine, envelope) {
                Ok(Some(mut ack)) => {
                    ack.number.0 += self.lie.load(Ordering::Relaxed);
                    if sender.ack(ack).await.is_err() {
                        return;
                    }
                }
                Ok(None) => {}
                Err(trouble) => {
                    self.trouble.lock().unwrap().push(trouble);
                    return;
                }
            }
        }
    }

    fn keep(&self, machine: MachineId, envelope: Envelope) -> Result<Option<Ack>, String> {
        let length = envelope.head.payload_len as usize;
        let mut all = self.held.lock().unwrap();
        let held = all.entry(machine).or_default();
        let place = envelope.head.identity;
        if place.machine != machine {
            return Err(format!("a frame of {} in the stream of {machine}", place.machine));
        }
        let last = held.frames.len() as u64;
        if place.number.0 <= last {
            held.duplicates += 1;
            return Ok(None);
        }
        if place.number.0 != last + 1
            || held.frames.last().map_or(0, |frame| frame.head.digest) != place.previous
        {
            return Err(format!("frame {} after {last}", place.number));
        }
        let payload = match envelope.codec {
            Codec::Plain => envelope.stored.to_vec(),
            Codec::Lz4 => {
                lz4_flex::block::decompress(&envelope.stored, length).map_err(|error| error.to_string())?
            }
            Codec::Zstd => {
                zstd::bulk::decompress(&envelope.stored, length).map_err(|error| error.to_string())?
            }
        };
        *(if envelope.codec == Codec::Plain { &mut held.plain } else { &mut held.compressed }) += 1;
        let frame = envelope.head.open(payload.into()).map_err(|error| error.to_string())?;
        let ack =
            Ack { number: place.number, sequence: frame.head.last_sequence(), newest: frame.head.last_time };
        held.frames.push(frame);
        Ok(Some(ack))
    }
}

pub fn hello(machine: MachineId, epoch: u64) -> Hello {
    Hello { machine, epoch: Epoch(epoch), session: 1 }
}

/// One stream of an agent: sends what the target does not hold, until all is acknowledged or it breaks.
/// Every acknowledgement is compared with what the target really holds.
pub async fn stream_once(
    credentials: &Credentials,
    address: &str,
    epoch: u64,
    feed: &[Frame],
    target: &Target,
) -> Result<(), Fault> {
    let machine = feed[0].head.identity.machine;
    let (welcome, mut sender, mut receiver) =
        channel::connect(credentials, address, Role::ProcessServer, Some("ps"), hello(machine, epoch))
            .await?;
    let from = welcome.number.0 as usize;
    if from > 0 {
        assert_eq!(feed[from - 1].head.digest, welcome.digest, "welcomed with another history");
    }
    let all = feed.len() as u64;
    if welcome.number.0 == all {
        return Ok(());
    }
    let sending = async {
        for frame in &feed[from..] {
            sender.frame(&Envelope::plain(frame)).await?;
        }
        sender.flush().await?;
        std::future::pending::<Result<(), Fault>>().await
    };
    let listening = async {
        let mut last = welcome.number;
        loop {
            match receiver.next().await? {
                Some(Message::Ack(ack)) => {
                    assert!(ack.number > last, "acknowledged twice");
                    assert!(ack.number.0 <= target.numbers(machine), "acknowledged before it was durable");
                    last = ack.number;
                    if last.0 == all {
                        return Ok(());
                    }
                }
                Some(Message::Refused(fault)) => return Err(fault),
                Some(other) => panic!("it came the wrong way: {other:?}"),
                None => {
                    return Err(Fault::new(
                        continuum_model::fault::FaultClass::NotConnected,
                        "test.closed",
                        "closed",
                    ));
                }
            }
        }
    };
    tokio::select! {
        ended = sending => ended,
        ended = listening => ended,
    }
}

/// Streams until everything is acknowledged, over as many connections as it takes. Returns how many.
pub async fn stream_all(
    credentials: &Credentials,
    address: impl Fn() -> String,
    epoch: u64,
    feed: &[Frame],
    target: &Target,
) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(60);
    for connections in 1.. {
        match stream_once(credentials, &address(), epoch, feed, target).await {
            Ok(()) => return connections,
            Err(fault) => assert!(
                fault.class == continuum_model::fault::FaultClass::NotConnected
                    || fault.code == "relay.reassigned",
                "not to be retried: {fault}"
            ),
        }
        assert!(
            Instant::now() < deadline,
            "not acknowledged in 60 s; {} are held",
            target.numbers(feed[0].head.identity.machine)
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    unreachable!()
}

/// What a link does to the bytes that pass.
#[derive(Clone, Copy)]
pub enum Harm {
    Nothing,
    /// Cuts the connection after so many bytes, drawn for each connection up to this.
    Cut(u64),
    /// Flips a bit after so many bytes, drawn for each connection up to this.
    Flip(u64),
    /// Lets so many bytes through in a second.
    Slow(u64),
}

/// A link that harms what passes. Counts how often it did.
pub async fn link(to: SocketAddr, harm: Harm, seed: u64) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, harmed) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let count = harmed.clone();
    tokio::spawn(async move {
        let mut state = seed | 1;
        while let Ok((near, _)) = listener.accept().await {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let Ok(far) = TcpStream::connect(to).await else { continue };
            tokio::spawn(pass(near, far, harm, state, count.clone()));
        }
    });
    (address, harmed)
}

async fn pass(near: TcpStream, far: TcpStream, harm: Harm, draw: u64, harmed: Arc<AtomicU64>) {
    let ((mut from_near, mut to_near), (mut from_far, mut to_far)) = (near.into_split(), far.into_split());
    let forth = async {
        let (mut buffer, mut passed) = (vec![0; 16 << 10], 0u64);
        loop {
            let Ok(read) = from_near.read(&mut buffer).await else { return };
            if read == 0 {
                return;
            }
            let inside = |limit: u64| (passed..passed + read as u64).contains(&(draw % limit));
            match harm {
                Harm::Nothing => {}
                Harm::Cut(limit) if inside(limit) => {
                    harmed.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Harm::Flip(limit) if inside(limit) => {
                    harmed.fetch_add(1, Ordering::Relaxed);
                    buffer[(draw % limit - passed) as usize] ^= 1 << (draw % 7);
                }
                Harm::Cut(_) | Harm::Flip(_) => {}
                Harm::Slow(rate) => {
                    harmed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
                }
            }
            passed += read as u64;
            if to_far.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = forth => {}
        _ = tokio::io::copy(&mut from_far, &mut to_near) => {}
    }
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The nameless files of the spool that this process has open.
pub fn open_spools(dir: &Path) -> Vec<std::path::PathBuf> {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    fds.filter(|fd| {
        std::fs::read_link(fd.path())
            .is_ok_and(|to| to.starts_with(dir) && to.to_string_lossy().ends_with(".spool (deleted)"))
    })
    .map(|fd| fd.path())
    .collect()
}
