//! The way in: connections are accepted, shake hands beside one another, and are handed on.
//!
//! Invariant: nobody who is slow, silent or hostile before its handshake is over delays anybody else. The
//! number of handshakes under way is bounded; when it is reached the *oldest* is given up: an honest one takes
//! milliseconds and is among the youngest, one that says nothing is among the oldest.

use crate::tls::{self, Acceptor, Entered};
use std::collections::VecDeque;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// Handshakes under way at once, for a listener.
const HANDSHAKES_MAX: usize = 512;
/// At most one line about refused connections in this time; the others are counted.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Accepts until `stop`. `greet` finishes what belongs to the handshake after TLS and gives what is handed to
/// `enter`, one after the other; while `enter` waits, new connections wait in the kernel.
pub(crate) async fn keep<T, G, F, E, I, J>(
    listener: TcpListener,
    acceptor: Acceptor,
    stop: CancellationToken,
    greet: G,
    mut enter: I,
) where
    T: Send + 'static,
    G: Fn(Entered) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<T, E>> + Send,
    E: Display,
    I: FnMut(T) -> J,
    J: Future<Output = ()>,
{
    let mut handshakes = JoinSet::new();
    let mut oldest_first: VecDeque<AbortHandle> = VecDeque::new();
    let mut log = Quiet::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(done) = handshakes.join_next() => {
                match done {
                    Ok((_, Ok(entered))) => tokio::select! {
                        () = stop.cancelled() => break,
                        () = enter(entered) => {}
                    },
                    Ok((from, Err(reason))) => log.refused(from, String::as_str(&reason)),
                    Err(given_up) => log.given_up(&given_up),
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                if handshakes.len() >= HANDSHAKES_MAX {
                    give_up_oldest(&mut oldest_first);
                }
                let (acceptor, greet) = (acceptor.clone(), greet.clone());
                let handshake = handshakes.spawn(async move {
                    let greeted = async {
                        let entered =
                            tls::accept(&acceptor, stream).await.map_err(|error| error.to_string())?;
                        greet(entered).await.map_err(|error| error.to_string())
                    };
                    (from, greeted.await)
                });
                if oldest_first.len() >= 2 * HANDSHAKES_MAX {
                    oldest_first.retain(|handshake| !handshake.is_finished());
                }
                oldest_first.push_back(handshake);
            }
            Err(error) => {
                tracing::warn!("connections cannot be accepted: {error}");
                // Out of descriptors: make one free. There is no event for "another process closed one".
                give_up_oldest(&mut oldest_first);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    handshakes.shutdown().await;
}

fn give_up_oldest(oldest_first: &mut VecDeque<AbortHandle>) {
    while let Some(oldest) = oldest_first.pop_front() {
        if !oldest.is_finished() {
            oldest.abort();
            return;
        }
    }
}

/// Logs what strangers do without letting them fill the log.
#[derive(Default)]
struct Quiet {
    last: Option<Instant>,
    unsaid: u64,
}

impl Quiet {
    fn refused(&mut self, from: SocketAddr, reason: &str) {
        if self.may_speak() {
            let unsaid = std::mem::take(&mut self.unsaid);
            tracing::info!(%from, unsaid, "connection refused: {reason}");
        }
    }

    fn given_up(&mut self, error: &tokio::task::JoinError) {
        if error.is_panic() {
            tracing::error!("a handshake died: {error}");
        } else if self.may_speak() {
            let unsaid = std::mem::take(&mut self.unsaid);
            tracing::warn!(
                unsaid,
                "more than {HANDSHAKES_MAX} handshakes are under way: the oldest was given up"
            );
        }
    }

    fn may_speak(&mut self) -> bool {
        if self.last.is_some_and(|last| last.elapsed() < LINE_EVERY) {
            self.unsaid += 1;
            return false;
        }
        self.last = Some(Instant::now());
        true
    }
}

/// An error of accepting that has no connection behind it.
pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the certificate behind this connection was revoked")
}
