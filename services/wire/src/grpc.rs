//! Plumbing for gRPC over our own TLS: listeners that know their peer, channels that notice a dead link,
//! and faults that arrive as they left.

use crate::door;
use crate::handshake::{HandshakeError, carried_fault, tls_error};
use crate::identity::{Identity, Role};
use crate::peers::Pass;
use crate::tls::{ALPN_GRPC, Acceptor, Credentials, Entered, HANDSHAKE_DEADLINE};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use futures::Stream;
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::metadata::MetadataValue;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The largest message either side takes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// An accepted connection with a known peer. It breaks when the peer's certificate is revoked.
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    pass: Option<(Pass, Pin<Box<WaitForCancellationFutureOwned>>)>,
}

impl Accepted {
    fn new(Entered { stream, peer }: Entered) -> Self {
        let (identity, pass) = peer.unzip();
        let pass = pass.map(|pass| {
            let revoked = Box::pin(pass.revoked().clone().cancelled_owned());
            (pass, revoked)
        });
        Self { stream, peer: Peer(identity), pass }
    }
}

/// Who is at the other end; in the extensions of every request. `None`: a newcomer without certificate.
#[derive(Debug, Clone)]
pub struct Peer(pub Option<Identity>);

impl Connected for Accepted {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}
impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some((_, revoked)) = &mut self.pass
            && revoked.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(door::closed()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}
impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections until `stop`; handshakes run beside one another, so that one slow peer delays nobody.
pub fn incoming(
    listener: TcpListener,
    acceptor: Acceptor,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Accepted, io::Error>> {
    let (out, accepted) = mpsc::channel(16);
    tokio::spawn(async move {
        let greet = |entered| std::future::ready(Ok::<_, io::Error>(entered));
        let enter = |entered| {
            let out = out.clone();
            async move {
                // A server that went away takes nobody in any more; `stop` follows.
                let _ = out.send(Ok(Accepted::new(entered))).await;
            }
        };
        door::keep(listener, acceptor, stop, greet, enter).await;
    });
    futures::stream::unfold(accepted, |mut accepted| async move {
        accepted.recv().await.map(|item| (item, accepted))
    })
}

/// A channel to the vault (or whoever has `role`) that dials with our credentials and notices a dead link.
pub async fn channel(credentials: &Credentials, address: &str, role: Role) -> Result<Channel, Fault> {
    let mut first = Some(accepted_by(credentials, address, role).await?);
    let (credentials, address) = (credentials.clone(), address.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (first, credentials, address) = (first.take(), credentials.clone(), address.clone());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => accepted_by(&credentials, &address, role).await.map_err(io::Error::other)?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| transport_fault(&error))
}

/// Connects, and waits for the first byte from the other side. In TLS 1.3 a client is done before the server
/// has looked at its certificate: only then it is known to be accepted, or why it is not.
async fn accepted_by(
    credentials: &Credentials,
    address: &str,
    role: Role,
) -> Result<BufReader<TlsStream<TcpStream>>, Fault> {
    let (stream, _) = credentials.connect(address, ALPN_GRPC, role, None).await?;
    let mut stream = BufReader::new(stream);
    let refused = match tokio::time::timeout(HANDSHAKE_DEADLINE, stream.fill_buf()).await {
        Ok(Ok([])) => HandshakeError::Broken("the other side closed it".into()),
        Ok(Ok(_)) => return Ok(stream),
        Ok(Err(error)) => HandshakeError::of_io(&error),
        Err(_) => HandshakeError::Deadline,
    };
    let own = credentials.presented();
    Err(refused.about_us(own.issued, own.ends).fault(address))
}

/// A channel over one connection that is already there.
pub async fn channel_over(stream: TlsStream<TcpStream>) -> Result<Channel, Fault> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection was lost")) }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| transport_fault(&error))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://continuum.internal")
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
}

fn transport_fault(error: &tonic::transport::Error) -> Fault {
    deeper_fault(error).unwrap_or_else(|| {
        let message = format!("the vault does not answer: {}", shown(&error.to_string()));
        Fault::new(FaultClass::NotConnected, "vault.unreachable", message)
            .affects("orders and news")
            .spares("replication, which goes on without it")
            .remedy("see whether the vault runs; it is tried again")
    })
}

/// What a connector or TLS said, which the layers above only call a transport error.
fn deeper_fault(error: &(dyn std::error::Error + 'static)) -> Option<Fault> {
    carried_fault(error)
        .cloned()
        .or_else(|| tls_error(error).map(|error| HandshakeError::of_tls(error).fault("the vault")))
}

/// The key under which a fault travels in a status.
const FAULT_KEY: &str = "continuum-fault-bin";

/// A fault as a gRPC status. The whole fault travels along.
pub fn status_of(fault: &Fault) -> Status {
    let code = match fault.class {
        FaultClass::Failed => Code::Internal,
        FaultClass::Usage | FaultClass::Configuration => Code::InvalidArgument,
        FaultClass::NotReady => Code::FailedPrecondition,
        FaultClass::NotConnected => Code::Unavailable,
        FaultClass::Refused => Code::PermissionDenied,
        FaultClass::WaitingForApproval => Code::FailedPrecondition,
        FaultClass::NotFound => Code::NotFound,
        FaultClass::Conflict => Code::Aborted,
    };
    let mut status = Status::new(code, fault.message.clone());
    let bytes = prost::Message::encode_to_vec(&fault_to_proto(fault));
    status.metadata_mut().insert_bin(FAULT_KEY, MetadataValue::from_bytes(&bytes));
    status
}

/// The fault in a status, or one made of what the transport says.
pub fn fault_of(status: &Status) -> Fault {
    let carried = status
        .metadata()
        .get_bin(FAULT_KEY)
        .and_then(|value| value.to_bytes().ok())
        .and_then(|bytes| <pb::Fault as prost::Message>::decode(bytes).ok());
    if let Some(fault) = carried {
        return fault_from_proto(&fault);
    }
    if let Some(fault) = std::error::Error::source(status).and_then(deeper_fault) {
        return fault;
    }
    let class = match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => {
            FaultClass::NotConnected
        }
        Code::PermissionDenied | Code::Unauthenticated => FaultClass::Refused,
        Code::InvalidArgument | Code::Unimplemented => FaultClass::Usage,
        _ => FaultClass::Failed,
    };
    let message = shown(status.message());
    Fault::new(class, "vault.call", format!("the vault could not be asked: {} ({})", message, status.code()))
        .affects("this request")
        .spares("replication and jobs, which go on in the vault")
        .remedy("try again; see `continuum doctor` when it stays")
}

/// For the wire.
pub fn fault_to_proto(fault: &Fault) -> pb::Fault {
    pb::Fault {
        code: fault.code.clone(),
        class: fault.class.name().to_owned(),
        message: fault.message.clone(),
        affected: fault.affected.clone(),
        unaffected: fault.unaffected.clone(),
        remedy: fault.remedy.clone(),
        correlation: fault.correlation.clone(),
    }
}

/// From the wire; a peer's texts are made harmless.
pub fn fault_from_proto(fault: &pb::Fault) -> Fault {
    Fault {
        code: shown(&fault.code),
        class: FaultClass::named(&fault.class),
        message: shown(&fault.message),
        affected: shown(&fault.affected),
        unaffected: shown(&fault.unaffected),
        remedy: shown(&fault.remedy),
        correlation: shown(&fault.correlation),
    }
}
