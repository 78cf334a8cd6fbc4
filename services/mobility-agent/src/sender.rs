//! One stream to the process server: frames out, acknowledgements in; opened again whenever it breaks.
//!
//! Who ships, holds and goes on is decided here alone, in one task: a hold that raced with a stream being opened
//! could otherwise be undone by it.

use continuum_capture::{Connected, Next, ReplicaState, Source};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::Envelope;
use continuum_model::id::MachineId;
use continuum_model::retry::{RetryClass, RetrySchedule};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, Epoch, FrameNumber};
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use continuum_wire::channel::{self, Hello, Message, Receiver, Sender};
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Where to ship, and under which epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Whose feed.
    pub machine: MachineId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// `host:port` of the process server.
    pub address: String,
    /// Its id.
    pub server: String,
}

/// What the feed is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// Nobody said where to ship yet: changes wait, and are staged.
    Wait,
    /// Only the map grows, for this reason.
    Hold(String),
    /// Ship.
    Ship(Route),
}

/// How the stream is, for reports.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// It is open.
    pub connected: bool,
    /// Why not.
    pub fault: Option<Fault>,
    /// When it is tried again.
    pub next_retry: Option<Timestamp>,
    /// The target refused our epoch: a newer one holds the pen.
    pub fenced: bool,
}

/// Frames on their way from the feed to the socket. Bounds memory: the rest waits in the feed.
const IN_HAND: usize = 4;
/// How long the feed is asked to wait for a frame. Only bounds how late a stop is noticed.
const PATIENCE: Duration = Duration::from_millis(250);

/// Ships until `stop`, on whatever course is set.
pub async fn run(
    source: Arc<Source>,
    credentials: Credentials,
    mut course: watch::Receiver<Course>,
    link: Arc<Mutex<Link>>,
    retry_now: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut schedule = RetrySchedule::default();
    let tell = |change: &dyn Fn(&mut Link)| change(&mut link.lock().unwrap_or_else(PoisonError::into_inner));
    loop {
        let wanted = course.borrow_and_update().clone();
        let wanted = match wanted {
            Course::Ship(route) => route,
            Course::Wait | Course::Hold(_) => {
                if let Course::Hold(reason) = &wanted {
                    source.pause(reason);
                }
                tell(&|link| *link = Link::default());
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = course.changed() => if changed.is_err() { return },
                }
                schedule.reset();
                continue;
            }
        };
        let fault = tokio::select! {
            () = stop.cancelled() => return,
            changed = course.changed() => {
                if changed.is_err() { return }
                schedule.reset();
                continue;
            }
            fault = stream(&source, &credentials, &wanted, &link, &mut schedule) => fault,
        };
        // A refusal of the epoch is final until the vault says otherwise.
        let fenced = fault.code == "epoch.superseded" && fault.class == FaultClass::Refused;
        let fault = named(fault, &wanted);
        let wait = schedule.next(RetryClass::of(fault.class), &mut SystemEntropy);
        match wait {
            Some(wait) => tracing::info!(code = fault.code, ?wait, "the stream ended: {}", fault.message),
            None => {
                tracing::warn!(
                    code = fault.code,
                    "the stream ended, and is not tried again: {}",
                    fault.message
                );
            }
        }
        let next_retry = wait.map(|wait| SystemClock::default().wall().plus(wait));
        tell(&|link| *link = Link { connected: false, fault: Some(fault.clone()), next_retry, fenced });
        let due = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                // Waiting does not mend it: a person does, and says so, or the vault sets another course.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = due => {}
            () = retry_now.notified() => schedule.reset(),
            changed = course.changed() => {
                if changed.is_err() { return }
                schedule.reset();
            }
        }
    }
}

/// Says at which hop it failed, where it does not say so yet.
fn named(mut fault: Fault, route: &Route) -> Fault {
    if !fault.message.starts_with(channel::TO_TARGET) && fault.code != "agent.feed" {
        fault.message = format!("agent → process server at {}: {}", shown(&route.address), fault.message);
    }
    fault
}

async fn stream(
    source: &Arc<Source>,
    credentials: &Credentials,
    route: &Route,
    link: &Mutex<Link>,
    schedule: &mut RetrySchedule,
) -> Fault {
    let hello = Hello { machine: route.machine, epoch: route.epoch, session: u64::from(std::process::id()) };
    let opened =
        channel::connect(credentials, &route.address, Role::ProcessServer, Some(&route.server), hello).await;
    let (welcome, sender, receiver) = match opened {
        Ok(opened) => opened,
        Err(fault) => return fault,
    };
    let replica = ReplicaState {
        number: welcome.number,
        digest: welcome.digest,
        sequence: welcome.sequence,
        newest: welcome.newest,
    };
    let (connected, stretch) = match source.connect(route.epoch, replica) {
        Ok(connected) => connected,
        Err(error) => return local(&error.to_string()),
    };
    let after = welcome.number;
    match connected {
        Connected::Continued => tracing::info!(%after, "stream open: the feed goes on"),
        Connected::Broken { reason, stale_bytes } => {
            tracing::info!(%after, reason, stale = %Bytes(stale_bytes), "stream open: catching up");
        }
        Connected::Waiting { reason } => {
            tracing::info!(%after, reason, "stream open: what is staged goes first, then it catches up");
        }
    }
    *link.lock().unwrap_or_else(PoisonError::into_inner) = Link { connected: true, ..Link::default() };
    schedule.reset();
    let (frames, queue) = mpsc::channel(IN_HAND);
    let pump = {
        let source = source.clone();
        std::thread::Builder::new()
            .name("pump".into())
            .spawn(move || pump(&source, stretch, welcome.number, &frames))
    };
    let ended = tokio::select! {
        fault = send(sender, queue) => fault,
        fault = acknowledge(source, receiver) => fault,
    };
    // The queue is gone: the pump finds that out at its next frame.
    if let Ok(pump) = pump {
        let _ = tokio::task::spawn_blocking(move || pump.join()).await;
    }
    ended
}

/// Takes frames from the feed, which blocks, and hands them to the stream, which does not.
fn pump(source: &Source, stretch: u64, mut after: FrameNumber, frames: &mpsc::Sender<Arc<Envelope>>) {
    while !frames.is_closed() {
        match source.next_frame(stretch, after, PATIENCE) {
            Next::Frame(envelope) => {
                after = envelope.head.identity.number;
                if frames.blocking_send(envelope).is_err() {
                    return;
                }
            }
            Next::Idle => {}
            Next::Reset => return,
        }
    }
}

async fn send(mut sender: Sender, mut queue: mpsc::Receiver<Arc<Envelope>>) -> Fault {
    loop {
        let envelope = match queue.try_recv() {
            Ok(envelope) => envelope,
            Err(_) => {
                if let Err(fault) = sender.flush().await {
                    return fault;
                }
                match queue.recv().await {
                    Some(envelope) => envelope,
                    None => {
                        return Fault::new(FaultClass::NotConnected, "feed.reset", "the feed starts over")
                            .spares("writes of the machine, which are remembered");
                    }
                }
            }
        };
        if let Err(fault) = sender.frame(&envelope).await {
            return fault;
        }
    }
}

async fn acknowledge(source: &Source, mut receiver: Receiver) -> Fault {
    loop {
        match receiver.next().await {
            Ok(Some(Message::Ack(ack))) => {
                if let Err(error) = source.acknowledged(ack.number) {
                    return Fault::new(FaultClass::Refused, "target.ahead", error.to_string())
                        .affects("replication of this machine: the stream was closed")
                        .spares("its writes: none of them was taken for replicated")
                        .remedy("see what happened to the master target and its replica");
                }
            }
            Ok(Some(Message::Refused(fault))) | Err(fault) => return fault,
            Ok(Some(Message::Frame(_) | Message::Holds(_) | Message::Ask(..) | Message::Sums(_))) => {
                return local("a message came the wrong way");
            }
            Ok(None) => {
                return Fault::new(
                    FaultClass::NotConnected,
                    "channel.closed",
                    "the process server closed the stream",
                );
            }
        }
    }
}

fn local(reason: &str) -> Fault {
    Fault::new(FaultClass::Failed, "agent.feed", format!("the feed failed: {reason}"))
        .affects("replication of this machine")
        .spares("its writes, which are remembered")
        .remedy("see to the agent's disk")
}
