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
//! ```
//!
//! Every length is checked against its type's limit before anything is allocated. A dead link is found by
//! the kernel (keep-alive and a limit on unacknowledged data), so that no side waits for ever.

use crate::grpc::{fault_from_proto, fault_to_proto};
use crate::identity::{Identity, Role};
use crate::tls::{self, ALPN_CHANNEL, Credentials};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::envelope::{ENVELOPE_BYTES, ENVELOPE_BYTES_MAX};
use continuum_model::feed::{Envelope, FrameError};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber, Sequence};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const VERSION: u16 = 1;
const SMALL_MAX: usize = 16 << 10;
const CONNECTIONS_MAX: usize = 1024;
const BUFFER: usize = 256 << 10;

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
}

/// The way out of a stream.
pub struct Sender {
    out: BufWriter<WriteHalf<TlsStream<TcpStream>>>,
}

/// The way in of a stream.
pub struct Receiver {
    input: BufReader<ReadHalf<TlsStream<TcpStream>>>,
}

/// A stream that said hello and waits for an answer.
pub struct Incoming {
    /// Who it is, by certificate.
    pub peer: Identity,
    /// What it wants.
    pub hello: Hello,
    sender: Sender,
    receiver: Receiver,
}

/// Opens a stream and says hello.
pub async fn connect(
    credentials: &Credentials,
    address: &str,
    role: Role,
    id: Option<&str>,
    hello: Hello,
) -> Result<(Welcome, Sender, Receiver), Fault> {
    let (stream, _) = credentials.connect(address, ALPN_CHANNEL, role, id).await?;
    let (mut sender, mut receiver) = split(stream);
    let mut body = BytesMut::with_capacity(34);
    body.put_u16_le(VERSION);
    body.put_slice(hello.machine.as_bytes());
    body.put_u64_le(hello.epoch.0);
    body.put_u64_le(hello.session);
    sender.message(1, &[&body]).await?;
    sender.flush().await?;
    let answer = tokio::time::timeout(tls::HANDSHAKE_DEADLINE * 2, receiver.raw()).await;
    match answer.map_err(|_| lost("no welcome in 20 s"))?? {
        (2, mut body) if body.len() == 48 => {
            let welcome = Welcome {
                number: FrameNumber(body.get_u64_le()),
                digest: body.get_u128_le(),
                sequence: Sequence(body.get_u64_le()),
                newest: Timestamp::from_micros(body.get_i64_le()),
                epoch: Epoch(body.get_u64_le()),
            };
            Ok((welcome, sender, receiver))
        }
        (5, body) => Err(refusal(&body)),
        (kind, _) => Err(violation(&format!("message type {kind} where a welcome was expected"))),
    }
}

/// Accepts streams until `stop`; each is served by a task of its own, awaited at the end.
pub async fn serve<H, F>(listener: TcpListener, acceptor: TlsAcceptor, stop: CancellationToken, handler: H)
where
    H: Fn(Incoming) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let handler = Arc::new(handler);
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if tasks.len() >= CONNECTIONS_MAX {
            continue;
        }
        let (acceptor, handler, stop) = (acceptor.clone(), handler.clone(), stop.clone());
        tasks.spawn(async move {
            let served = async {
                match greet(&acceptor, stream).await {
                    Ok(incoming) => handler(incoming).await,
                    Err(reason) => tracing::info!(%address, "stream refused: {reason}"),
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = served => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn greet(acceptor: &TlsAcceptor, stream: TcpStream) -> Result<Incoming, String> {
    let (stream, peer) = tls::accept(acceptor, stream).await?;
    let peer = peer.ok_or("no certificate")?;
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
        Ok(hello) => Ok(Incoming { peer, hello, sender, receiver }),
        Err(fault) => {
            sender.refuse(&fault).await;
            Err(format!("{peer}: {}", fault.message))
        }
    }
}

impl Incoming {
    /// Lets the stream in.
    pub async fn welcome(mut self, welcome: Welcome) -> Result<(Sender, Receiver), Fault> {
        let mut body = BytesMut::with_capacity(48);
        body.put_u64_le(welcome.number.0);
        body.put_u128_le(welcome.digest);
        body.put_u64_le(welcome.sequence.0);
        body.put_i64_le(welcome.newest.micros());
        body.put_u64_le(welcome.epoch.0);
        self.sender.message(2, &[&body]).await?;
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

    /// Ends the stream with a reason. What cannot be sent is only logged: the peer is gone then.
    pub async fn refuse(&mut self, fault: &Fault) {
        let body = prost::Message::encode_to_vec(&fault_to_proto(fault));
        let said = async {
            self.message(5, &[&body]).await?;
            self.flush().await?;
            self.out.shutdown().await.map_err(|error| lost(&error.to_string()))
        };
        if !matches!(tokio::time::timeout(Duration::from_secs(2), said).await, Ok(Ok(()))) {
            tracing::debug!("a refusal did not reach its peer");
        }
    }

    /// Sends what is buffered.
    pub async fn flush(&mut self) -> Result<(), Fault> {
        self.out.flush().await.map_err(|error| lost(&error.to_string()))
    }

    async fn message(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), Fault> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut head = [kind, 0, 0, 0, 0];
        head[1..].copy_from_slice(&(length as u32).to_le_bytes());
        let sent = async {
            self.out.write_all(&head).await?;
            for part in parts {
                self.out.write_all(part).await?;
            }
            Ok(())
        };
        sent.await.map_err(|error: std::io::Error| lost(&error.to_string()))
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
            kind => Err(violation(&format!("unsupported message type {kind:#04x} of {} bytes", body.len()))),
        }
    }

    async fn raw(&mut self) -> Result<(u8, Bytes), Fault> {
        let mut head = [0; 5];
        match self.input.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Fault::new(FaultClass::NotConnected, CLOSED, "the other side closed the stream"));
            }
            Err(error) => return Err(lost(&error.to_string())),
        }
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let limit = match head[0] {
            3 => ENVELOPE_BYTES_MAX,
            1 | 2 | 4 | 5 => SMALL_MAX,
            kind => return Err(violation(&format!("unsupported message type {kind:#04x}"))),
        };
        if length > limit || (head[0] == 3 && length < ENVELOPE_BYTES) {
            return Err(violation(&format!("message of {length} bytes exceeds the limit of {limit}")));
        }
        // Grows as data arrives: a peer that only claims a length costs no memory.
        let mut body = BytesMut::with_capacity(length.min(64 << 10));
        let mut rest = (&mut self.input).take(length as u64);
        while body.len() < length {
            let read = rest.read_buf(&mut body).await.map_err(|error| lost(&error.to_string()))?;
            if read == 0 {
                return Err(lost("the stream ended inside a message"));
            }
        }
        Ok((head[0], body.freeze()))
    }
}

const CLOSED: &str = "channel.closed";

fn split(stream: TlsStream<TcpStream>) -> (Sender, Receiver) {
    notice_dead_links(stream.get_ref().0);
    let (input, out) = tokio::io::split(stream);
    let input = BufReader::with_capacity(BUFFER, input);
    (Sender { out: BufWriter::with_capacity(BUFFER, out) }, Receiver { input })
}

/// A link that swallows everything is found within about 15 seconds.
fn notice_dead_links(stream: &TcpStream) {
    use rustix::net::sockopt;
    let set = || -> rustix::io::Result<()> {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(5))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(2))?;
        sockopt::set_tcp_keepcnt(stream, 4)?;
        sockopt::set_tcp_user_timeout(stream, 15_000)
    };
    if let Err(error) = set() {
        tracing::warn!(%error, "keep-alive could not be set: a dead link is found late");
    }
}

fn lost(reason: &str) -> Fault {
    Fault::new(FaultClass::NotConnected, "channel.lost", format!("the replication channel broke: {reason}"))
        .affects("new changes wait at the source")
        .spares("writes of the machine, and all recovery points")
        .remedy("nothing: it is opened again")
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
