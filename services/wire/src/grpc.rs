//! Plumbing for gRPC over our own TLS: listeners that know their peer, channels that notice a dead link,
//! and faults that arrive as they left.

use crate::identity::{Identity, Role};
use crate::tls::{self, ALPN_GRPC, Credentials};
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use futures::Stream;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsStream};
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// The largest message either side takes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Connections whose handshake is under way at once, for a listener.
const HANDSHAKES_MAX: usize = 256;

/// An accepted connection with a known peer.
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    peer: Peer,
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
    acceptor: TlsAcceptor,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Accepted, io::Error>> {
    let (out, accepted) = mpsc::channel(16);
    let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, address)) = stream else {
                // Out of descriptors: wait for some to come back.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
            let (acceptor, out) = (acceptor.clone(), out.clone());
            tokio::spawn(async move {
                let _permit = permit;
                match tls::accept(&acceptor, stream).await {
                    Ok((stream, peer)) => {
                        let _ = out.send(Ok(Accepted { stream, peer: Peer(peer) })).await;
                    }
                    Err(reason) => tracing::info!(%address, "connection refused: {reason}"),
                }
            });
        }
    });
    futures::stream::unfold(accepted, |mut accepted| async move {
        accepted.recv().await.map(|item| (item, accepted))
    })
}

/// A channel to the vault (or whoever has `role`) that dials with our credentials and notices a dead link.
pub async fn channel(credentials: &Credentials, address: &str, role: Role) -> Result<Channel, Fault> {
    let (first, _) = credentials.connect(address, ALPN_GRPC, role, None).await?;
    let mut first = Some(first);
    let (credentials, address) = (credentials.clone(), address.to_owned());
    let connector = tower::service_fn(move |_: http::Uri| {
        let (first, credentials, address) = (first.take(), credentials.clone(), address.clone());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => {
                    credentials.connect(&address, ALPN_GRPC, role, None).await.map_err(io::Error::other)?.0
                }
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| unreachable_fault(&error))
}

/// A channel over one connection that is already there.
pub async fn channel_over(stream: TlsStream<TcpStream>) -> Result<Channel, Fault> {
    let mut stream = Some(stream);
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection was lost")) }
    });
    endpoint().connect_with_connector(connector).await.map_err(|error| unreachable_fault(&error))
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://continuum.internal")
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
}

fn unreachable_fault(error: &tonic::transport::Error) -> Fault {
    Fault::new(FaultClass::NotConnected, "vault.unreachable", format!("the vault does not answer: {error}"))
        .affects("orders and news")
        .spares("replication, which goes on without it")
        .remedy("see whether the vault runs; it is tried again")
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
    let class = match status.code() {
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => {
            FaultClass::NotConnected
        }
        Code::PermissionDenied | Code::Unauthenticated => FaultClass::Refused,
        Code::InvalidArgument | Code::Unimplemented => FaultClass::Usage,
        _ => FaultClass::Failed,
    };
    let message = continuum_model::untrusted::shown(status.message());
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
    use continuum_model::untrusted::shown;
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
