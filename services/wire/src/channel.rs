//! The replication channel: frames one way, acknowledgements the other, over mutual TLS.
//!
//! ```text
//! message = type u8 · length u32 · body                                    (little-endian)
//! 1 hello      version u16 = 1 · machine [16] · epoch u64 · session u64     agent → process server → target
//! 2 welcome    number u64 · digest u128 · sequence u64 · newest moment i64 · epoch u64     the way back:
//!              what the target holds; the sender goes on with the next frame
//! 3 frame      an envelope (see continuum-model)
//! 4 ack        number u64 · sequence u64 · newest moment i64                everything up to it is durable
//! 5 refused    a fault (protobuf); the stream ends
//! 6 alive      nothing: sent by a side that sent nothing for 5 s; may stand before the welcome
//! 7 holds      as a welcome: what the one who dialled holds. Only in the reverse direction, where frames go the other way
//! 8 ask        disk u16 · level u8 · zero u8 · count u32 · first u64: sums of what the receiver holds
//! 9 sums       frame u64 · digest u128 · count × sum u128: the answer
//! ```
//!
//! Every length is checked against its type's limit before anything is allocated. A dead link is found by
//! silence: a side that waits for a message and hears nothing for 20 s gives up. (Not by the kernel's limit on
//! unacknowledged data: that would also end a stream whose receiver is alive and only slow.)
//!
//! Back-pressure is the socket's: a receiver that does not read stops its sender, and nothing is dropped.

use crate::door;
use crate::grpc::{fault_from_proto, fault_to_proto};
use crate::handshake::{HandshakeError, tls_error};
use crate::identity::{Identity, Role};
use crate::peers::Pass;
use crate::tls::{self, ALPN_CHANNEL, Acceptor, Credentials, Entered};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use continuum_model::digest::{BlockSum, NODES_MAX, Nodes};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::envelope::{ENVELOPE_BYTES, ENVELOPE_BYTES_MAX};
use continuum_model::feed::{Envelope, FrameError};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_model::untrusted::shown;
use std::future::Future;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

const VERSION: u16 = 1;
const SMALL_MAX: usize = 16 << 10;
const SUMS_BYTES_MAX: usize = 24 + NODES_MAX as usize * 16;
const STREAMS_MAX: usize = 1024;
const BUFFER: usize = 256 << 10;
/// How long a peer that was sent away may still send before the connection is cut.
const LINGER: Duration = Duration::from_secs(1);
/// A side that sent nothing for this long says that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// A side that waits and hears nothing for this long gives up.
pub const SILENCE: Duration = Duration::from_secs(20);

/// How the message of a fault begins that happened between a process server and its master target: the agent tells it
/// as its own, and people must know which hop to look at.
pub const TO_TARGET: &str = "process server → master target";

/// Who wants to send what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Whose feed.
    pub machine: MachineId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// The agent's session.
    pub session: u64,
}

/// What the target holds already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The last durable frame; 0: none.
    pub number: FrameNumber,
    /// Its digest; 0: none.
    pub digest: u128,
    /// The last durable record.
    pub sequence: Sequence,
    /// Its moment.
    pub newest: Timestamp,
    /// The epoch that the target goes by.
    pub epoch: Epoch,
}

/// Everything up to here is durable at the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The last durable frame.
    pub number: FrameNumber,
    /// Its last record.
    pub sequence: Sequence,
    /// That record's moment.
    pub newest: Timestamp,
}

/// A message after the handshake.
#[derive(Debug)]
pub enum Message {
    /// A frame.
    Frame(Envelope),
    /// An acknowledgement.
    Ack(Ack),
    /// The other side gives up, and why.
    Refused(Fault),
    /// What the receiver of the reverse direction holds.
    Holds(Welcome),
    /// The sender of the reverse direction asks for sums.
    Ask(DiskIndex, Nodes),
    /// The answer.
    Sums(Sums),
}

/// Sums of what a receiver holds behind a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sums {
    /// The frame.
    pub frame: FrameNumber,
    /// Its digest.
    pub digest: u128,
    /// In the order in which they were asked for.
    pub sums: Vec<BlockSum>,
}

/// The way out of a stream. While it exists, the other side hears at least that we are alive. The connection
/// is closed when both halves are gone, or by [`Sender::close`].
pub struct Sender {
    out: Arc<Mutex<Out>>,
    /// Only for the end of a stream: what the peer still sends must be read, or the connection is reset and
    /// the reason is lost on its way.
    input: Arc<Mutex<Input>>,
    _alive: AbortOnDropHandle<()>,
}

struct Out {
    stream: BufWriter<WriteHalf<TlsStream<TcpStream>>>,
    last: Instant,
    /// A message was begun and not ended: its sender was dropped half-way, and nothing may follow.
    torn: bool,
}

type Input = BufReader<ReadHalf<TlsStream<TcpStream>>>;

/// The way in of a stream.
pub struct Receiver {
    input: Arc<Mutex<Input>>,
    credentials: Option<Credentials>,
}

/// A stream that said hello and waits for an answer.
pub struct Incoming {
    /// Who it is, by certificate.
    pub peer: Identity,
    /// What it wants.
    pub hello: Hello,
    sender: Sender,
    receiver: Receiver,
    pass: Option<Pass>,
}

/// Opens a stream and says hello. `role` and `id` are those that the other side must prove.
///
/// Errors: what the other side refused with; [`FaultClass::NotConnected`] where trying again may help.
pub async fn connect(
    credentials: &Credentials,
    address: &str,
    role: Role,
    id: Option<&str>,
    hello: Hello,
) -> Result<(Welcome, Sender, Receiver), Fault> {
    let (stream, _) = credentials.connect(address, ALPN_CHANNEL, role, id).await?;
    let (mut sender, mut receiver) = split(stream);
    // Whoever refuses our certificate says so only now, by an alert: what we know of it belongs beside.
    receiver.credentials = Some(credentials.clone());
    let mut body = BytesMut::with_capacity(34);
    body.put_u16_le(VERSION);
    body.put_slice(hello.machine.as_bytes());
    body.put_u64_le(hello.epoch.0);
    body.put_u64_le(hello.session);
    let said = async {
        sender.message(1, &[&body]).await?;
        sender.flush().await
    };
    // A peer that refuses us may be gone before we spoke: what it said is still there to be read.
    let unsaid = said.await.err();
    let answer = tokio::time::timeout(tls::HANDSHAKE_DEADLINE * 2, receiver.raw()).await;
    let answer = match (answer, unsaid) {
        (Ok(Err(fault)), Some(unsaid)) if fault.class == FaultClass::NotConnected => Ok(Err(unsaid)),
        (answer, _) => answer,
    };
    match answer.map_err(|_| lost(&io::Error::new(io::ErrorKind::TimedOut, "no welcome in 20 s")))?? {
        (2, mut body) if body.len() == 48 => Ok((Welcome::decode(&mut body), sender, receiver)),
        (5, body) => Err(refusal(&body)),
        (kind, _) => Err(violation(&format!("message type {kind} where a welcome was expected"))),
    }
}

/// Accepts streams until `stop`; each is served by a task of its own. At `stop`, and when the certificate
/// behind a stream is revoked, its handler is dropped.
pub async fn serve<H, F>(listener: TcpListener, acceptor: Acceptor, stop: CancellationToken, handler: H)
where
    H: Fn(Incoming) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let tasks = TaskTracker::new();
    let enter = |mut incoming: Incoming| {
        // The handler is called in here and not in the task: streams of one machine keep their order.
        if tasks.len() < STREAMS_MAX {
            let peer = incoming.peer.clone();
            let pass = incoming.pass.take();
            let (served, stop) = (handler(incoming), stop.clone());
            tasks.spawn(async move {
                let revoked = async {
                    match &pass {
                        Some(pass) => pass.revoked().cancelled().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = revoked => tracing::warn!(%peer, "stream ended: its certificate was revoked"),
                    () = served => {}
                }
            });
        } else {
            tracing::warn!(peer = %incoming.peer, "stream refused: {STREAMS_MAX} are open");
            tasks.spawn(async move { incoming.refuse(&full()).await });
        }
        std::future::ready(())
    };
    door::keep(listener, acceptor, stop.clone(), greet, enter).await;
    tasks.close();
    tasks.wait().await;
}

async fn greet(entered: Entered) -> Result<Incoming, String> {
    let (peer, pass) = entered.peer.ok_or("no certificate")?;
    let stream = entered.stream;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_CHANNEL) {
        return Err(format!("{peer}: {}", HandshakeError::Protocol));
    }
    let (mut sender, mut receiver) = split(stream);
    let hello = match tokio::time::timeout(tls::HANDSHAKE_DEADLINE, receiver.raw()).await {
        Err(_) => Err(violation("no hello in 10 s")),
        Ok(Err(fault)) => Err(fault),
        Ok(Ok((1, mut body))) if body.len() >= 2 => match body.get_u16_le() {
            VERSION if body.len() == 32 => {
                let mut machine = [0; 16];
                body.copy_to_slice(&mut machine);
                let epoch = Epoch(body.get_u64_le());
                Ok(Hello { machine: MachineId::from_bytes(machine), epoch, session: body.get_u64_le() })
            }
            VERSION => Err(violation("a hello of another length")),
            other => Err(violation(&format!(
                "it speaks version {other}, here is version {VERSION}: update the older side"
            ))),
        },
        Ok(Ok((kind, _))) => Err(violation(&format!("message type {kind} where a hello was expected"))),
    };
    match hello {
        Ok(hello) => Ok(Incoming { peer, hello, sender, receiver, pass: Some(pass) }),
        Err(fault) => {
            sender.refuse(&fault).await;
            Err(format!("{peer}: {}", fault.message))
        }
    }
}

impl Welcome {
    fn encode(self) -> BytesMut {
        let mut body = BytesMut::with_capacity(48);
        body.put_u64_le(self.number.0);
        body.put_u128_le(self.digest);
        body.put_u64_le(self.sequence.0);
        body.put_i64_le(self.newest.micros());
        body.put_u64_le(self.epoch.0);
        body
    }

    /// Of 48 bytes.
    fn decode(body: &mut Bytes) -> Self {
        Self {
            number: FrameNumber(body.get_u64_le()),
            digest: body.get_u128_le(),
            sequence: Sequence(body.get_u64_le()),
            newest: Timestamp::from_micros(body.get_i64_le()),
            epoch: Epoch(body.get_u64_le()),
        }
    }
}

impl Incoming {
    /// Lets the stream in. It ends when the future or task that `serve` runs the handler in does.
    pub async fn welcome(mut self, welcome: Welcome) -> Result<(Sender, Receiver), Fault> {
        self.sender.message(2, &[&welcome.encode()]).await?;
        self.sender.flush().await?;
        Ok((self.sender, self.receiver))
    }

    /// Sends it away with the reason.
    pub async fn refuse(mut self, fault: &Fault) {
        self.sender.refuse(fault).await;
    }
}

impl Sender {
    /// Sends a frame. Not flushed: call [`Sender::flush`] when nothing more is at hand.
    ///
    /// # Cancel safety
    /// None: when dropped half-way, nothing more can be sent on this stream.
    pub async fn frame(&mut self, envelope: &Envelope) -> Result<(), Fault> {
        self.message(3, &[&envelope.prefix(), envelope.head.bytes(), &envelope.stored]).await
    }

    /// Sends an acknowledgement, at once.
    pub async fn ack(&mut self, ack: Ack) -> Result<(), Fault> {
        let mut body = [0; 24];
        body[..8].copy_from_slice(&ack.number.0.to_le_bytes());
        body[8..16].copy_from_slice(&ack.sequence.0.to_le_bytes());
        body[16..].copy_from_slice(&ack.newest.micros().to_le_bytes());
        self.message(4, &[&body]).await?;
        self.flush().await
    }

    /// Says what we hold, where frames come our way.
    pub async fn holds(&mut self, held: Welcome) -> Result<(), Fault> {
        self.message(7, &[&held.encode()]).await?;
        self.flush().await
    }

    /// Asks for sums of what the receiver holds.
    pub async fn ask(&mut self, disk: DiskIndex, nodes: &Nodes) -> Result<(), Fault> {
        let mut body = BytesMut::with_capacity(16);
        body.put_u16_le(disk.0);
        body.put_u8(nodes.level);
        body.put_u8(0);
        body.put_u32_le((nodes.range.end - nodes.range.start) as u32);
        body.put_u64_le(nodes.range.start);
        self.message(8, &[&body]).await?;
        self.flush().await
    }

    /// Answers with sums.
    pub async fn sums(&mut self, told: &Sums) -> Result<(), Fault> {
        let mut body = BytesMut::with_capacity(24 + told.sums.len() * 16);
        body.put_u64_le(told.frame.0);
        body.put_u128_le(told.digest);
        told.sums.iter().for_each(|sum| body.put_u128_le(sum.0));
        self.message(9, &[&body]).await?;
        self.flush().await
    }

    /// Ends the stream with a reason. What cannot be sent is only logged: the peer is gone then.
    pub async fn refuse(&mut self, fault: &Fault) {
        let body = prost::Message::encode_to_vec(&fault_to_proto(fault));
        let said = async {
            self.message(5, &[&body]).await?;
            self.flush().await?;
            self.out.lock().await.stream.shutdown().await.map_err(|error| lost(&error))
        };
        if !matches!(tokio::time::timeout(Duration::from_secs(2), said).await, Ok(Ok(()))) {
            tracing::debug!(code = fault.code, "a refusal did not reach its peer");
            return;
        }
        // Until it has read the reason and closes.
        let heard_out = async {
            let mut input = self.input.lock().await;
            while input.fill_buf().await.is_ok_and(|bytes| !bytes.is_empty()) {
                let length = input.buffer().len();
                input.consume(length);
            }
        };
        let _ = tokio::time::timeout(LINGER, heard_out).await;
    }

    /// Ends our direction in good order: the other side reads what was sent, and then the end.
    pub async fn close(self) -> Result<(), Fault> {
        self.out.lock().await.stream.shutdown().await.map_err(|error| lost(&error))
    }

    /// Sends what is buffered.
    pub async fn flush(&mut self) -> Result<(), Fault> {
        self.out.lock().await.stream.flush().await.map_err(|error| lost(&error))
    }

    async fn message(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), Fault> {
        self.out.lock().await.message(kind, parts).await.map_err(|error| lost(&error))
    }
}

impl Out {
    async fn message(&mut self, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
        if self.torn {
            return Err(io::Error::other("an earlier message was given up half-way"));
        }
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut head = [kind, 0, 0, 0, 0];
        head[1..].copy_from_slice(&(length as u32).to_le_bytes());
        self.torn = true;
        self.stream.write_all(&head).await?;
        for part in parts {
            self.stream.write_all(part).await?;
        }
        self.torn = false;
        self.last = Instant::now();
        Ok(())
    }
}

/// Says that we are alive whenever nothing else was said for a while. A message that is under way holds the
/// lock, and is sign of life enough.
async fn stay_alive(out: Weak<Mutex<Out>>) {
    let mut due = Instant::now() + ALIVE_EVERY;
    loop {
        tokio::time::sleep_until(due).await;
        let Some(out) = out.upgrade() else { return };
        let mut out = out.lock().await;
        if out.last.elapsed() >= ALIVE_EVERY {
            let said = async {
                out.message(6, &[]).await?;
                out.stream.flush().await
            };
            // Whoever sends or receives next learns the same and says why.
            if said.await.is_err() {
                return;
            }
        }
        due = out.last + ALIVE_EVERY;
    }
}

impl Receiver {
    /// The next message; `None` when the peer closed in good order. Not cancel safe: a message that was
    /// read half is lost, so a stream on which this was dropped must be closed.
    pub async fn next(&mut self) -> Result<Option<Message>, Fault> {
        let (kind, mut body) = match self.raw().await {
            Ok(message) => message,
            Err(fault) if fault.code == CLOSED => return Ok(None),
            Err(fault) => return Err(fault),
        };
        match kind {
            3 => match Envelope::decode(&body) {
                Ok((envelope, length)) if length == body.len() => Ok(Some(Message::Frame(envelope))),
                Ok(_) => Err(violation("bytes after the end of a frame")),
                Err(error) => Err(damaged(&error)),
            },
            4 if body.len() == 24 => Ok(Some(Message::Ack(Ack {
                number: FrameNumber(body.get_u64_le()),
                sequence: Sequence(body.get_u64_le()),
                newest: Timestamp::from_micros(body.get_i64_le()),
            }))),
            5 => Ok(Some(Message::Refused(refusal(&body)))),
            7 if body.len() == 48 => Ok(Some(Message::Holds(Welcome::decode(&mut body)))),
            8 if body.len() == 16 => {
                let disk = DiskIndex(body.get_u16_le());
                let (level, zero) = (body.get_u8(), body.get_u8());
                let (count, first) = (u64::from(body.get_u32_le()), body.get_u64_le());
                let end = first.checked_add(count).filter(|_| zero == 0 && count <= NODES_MAX);
                let end = end.ok_or_else(|| violation("sums are asked for that cannot be told"))?;
                Ok(Some(Message::Ask(disk, Nodes { level, range: first..end })))
            }
            9 if body.len() >= 24 && (body.len() - 24) % 16 == 0 => {
                let (frame, digest) = (FrameNumber(body.get_u64_le()), body.get_u128_le());
                let sums = std::iter::from_fn(|| body.has_remaining().then(|| BlockSum(body.get_u128_le())));
                Ok(Some(Message::Sums(Sums { frame, digest, sums: sums.collect() })))
            }
            kind => Err(violation(&format!("unsupported message type {kind:#04x} of {} bytes", body.len()))),
        }
    }

    /// The next message of a known type and permitted length, signs of life left out.
    async fn raw(&mut self) -> Result<(u8, Bytes), Fault> {
        let mut input = self.input.lock().await;
        loop {
            let mut head = [0; 5];
            match heard(input.read_exact(&mut head)).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Fault::new(
                        FaultClass::NotConnected,
                        CLOSED,
                        "the other side closed the stream",
                    ));
                }
                Err(error) => return Err(self.lost(&error)),
            }
            let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let limit = match head[0] {
                3 => ENVELOPE_BYTES_MAX,
                1 | 2 | 4 | 5 | 7 | 8 => SMALL_MAX,
                9 => SUMS_BYTES_MAX,
                6 => 0,
                kind => return Err(violation(&format!("unsupported message type {kind:#04x}"))),
            };
            if length > limit {
                return Err(violation(&format!("message of {length} bytes exceeds the limit of {limit}")));
            }
            if head[0] == 3 && length < ENVELOPE_BYTES {
                return Err(violation(&format!("a frame of {length} bytes, which is less than any has")));
            }
            if head[0] == 6 {
                continue;
            }
            // Grows as data arrives: a peer that only claims a length costs no memory.
            let mut body = BytesMut::with_capacity(length.min(64 << 10));
            let mut rest = (&mut *input).take(length as u64);
            while body.len() < length {
                match heard(rest.read_buf(&mut body)).await {
                    Ok(0) => return Err(lost(&io::Error::other("it ended inside a message"))),
                    Ok(_) => {}
                    Err(error) => return Err(self.lost(&error)),
                }
            }
            return Ok((head[0], body.freeze()));
        }
    }

    fn lost(&self, io_error: &io::Error) -> Fault {
        match (tls_error(io_error), &self.credentials) {
            (Some(error), Some(credentials)) => match HandshakeError::of_tls(error) {
                refused @ HandshakeError::RefusedUs { .. } => {
                    let own = credentials.presented();
                    refused.about_us(own.issued, own.ends).fault("the other side")
                }
                _ => lost(io_error),
            },
            _ => lost(io_error),
        }
    }
}

/// A read that hears something in time.
async fn heard<T>(read: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(SILENCE, read).await {
        Ok(read) => read,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was heard for 20 s")),
    }
}

const CLOSED: &str = "channel.closed";

fn split(stream: TlsStream<TcpStream>) -> (Sender, Receiver) {
    let (input, out) = tokio::io::split(stream);
    let out = Out { stream: BufWriter::with_capacity(BUFFER, out), last: Instant::now(), torn: false };
    let out = Arc::new(Mutex::new(out));
    let alive = AbortOnDropHandle::new(tokio::spawn(stay_alive(Arc::downgrade(&out))));
    let input = Arc::new(Mutex::new(BufReader::with_capacity(BUFFER, input)));
    (Sender { out, input: input.clone(), _alive: alive }, Receiver { input, credentials: None })
}

fn lost(error: &io::Error) -> Fault {
    let reason = match tls_error(error) {
        Some(error) => HandshakeError::of_tls(error).to_string(),
        None => shown(&error.to_string()),
    };
    Fault::new(FaultClass::NotConnected, "channel.lost", format!("the replication channel broke: {reason}"))
        .affects("new changes wait at the source")
        .spares("writes of the machine, and all recovery points")
        .remedy("nothing: it is opened again")
}

fn full() -> Fault {
    Fault::new(
        FaultClass::NotReady,
        "channel.full",
        format!("{STREAMS_MAX} streams are open here, which is the limit"),
    )
    .affects("this stream; it is tried again")
    .spares("all streams that are open")
    .remedy("add another server of this kind and spread the machines over both")
}

fn violation(what: &str) -> Fault {
    Fault::new(FaultClass::Failed, "channel.protocol", format!("protocol violation by the peer: {what}"))
        .affects("this stream, which was closed")
        .spares("all other streams, and what is stored")
        .remedy("update the older side; if both are current, something else talks to this port")
}

fn damaged(error: &FrameError) -> Fault {
    Fault::new(FaultClass::NotConnected, "channel.damaged", format!("a frame arrived damaged: {error}"))
        .affects("this stream, which is opened again and sends the frame again")
        .spares("what is stored")
        .remedy("look at memory and network cards when it happens again")
}

fn refusal(body: &Bytes) -> Fault {
    let fault = <continuum_proto::v1::Fault as prost::Message>::decode(body.clone());
    fault.map_or_else(|_| violation("an unreadable refusal"), |fault| fault_from_proto(&fault))
}
