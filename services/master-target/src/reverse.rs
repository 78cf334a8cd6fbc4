//! The reverse direction: what a failed-over machine writes goes to the host that it left.
//!
//! The machine's agent dials, says what its disks hold, and is sent frames of the view's feed; it acknowledges what is
//! durable on its disks. After doubt it is asked for sums over the same stream, so that only what differs travels.
//!
//! Lives here: one such stream. Lives elsewhere: the feed (`bring_up`, and `capture` below it), the other end
//! (the agent's `home`).

use crate::bring_up::{BringUp, Follow};
use crate::estate::Estate;
use crate::fault;
use continuum_capture::{Connected, Next, ReplicaState, ReplicaSums, Source};
use continuum_model::digest::Nodes;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::Envelope;
use continuum_model::units::{Bytes, DiskIndex, FrameNumber};
use continuum_wire::channel::{Incoming, Message, Receiver, SILENCE, Sender, Sums, Welcome};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Frames on their way from the feed to the socket. Bounds memory: the rest waits in the feed.
const IN_HAND: usize = 4;
/// How long the feed is asked to wait for a frame. Only bounds how late a stop is noticed.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long sums are waited for: a slow disk reads 4 GiB.
const SUMS_PATIENCE: Duration = Duration::from_secs(300);

/// The question about sums that is open, and its answer.
#[derive(Default)]
pub struct Asking {
    inner: Mutex<Asked>,
    answered: Condvar,
}

#[derive(Default)]
struct Asked {
    stream: u64,
    out: Option<mpsc::Sender<(DiskIndex, Nodes)>>,
    reply: Option<Sums>,
    ended: bool,
}

impl Asking {
    fn inner(&self) -> MutexGuard<'_, Asked> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream opened. Returns its number.
    fn opened(&self, out: mpsc::Sender<(DiskIndex, Nodes)>) -> u64 {
        let mut inner = self.inner();
        inner.stream += 1;
        (inner.out, inner.reply) = (Some(out), None);
        self.answered.notify_all();
        inner.stream
    }

    fn closed(&self, stream: u64) {
        let mut inner = self.inner();
        if inner.stream == stream {
            (inner.out, inner.reply) = (None, None);
            self.answered.notify_all();
        }
    }

    fn answer(&self, stream: u64, sums: Sums) {
        let mut inner = self.inner();
        if inner.stream == stream {
            inner.reply = Some(sums);
            self.answered.notify_all();
        }
    }

    /// Nobody waits any more.
    pub(crate) fn end(&self) {
        self.inner().ended = true;
        self.answered.notify_all();
    }

    /// Asks the receiver, and waits: for a stream too, since without an answer everything would be sent. One question
    /// at a time: the thread that compares is one.
    pub(crate) fn ask(&self, disk: DiskIndex, nodes: &Nodes) -> Result<ReplicaSums, String> {
        let mut inner = self.inner();
        let mut asked_on = None;
        let mut deadline = Instant::now();
        loop {
            if inner.ended {
                return Err("what was brought up is closed".into());
            }
            let stream = inner.stream;
            let wait = match inner.out.clone() {
                None => SUMS_PATIENCE,
                Some(out) if asked_on != Some(stream) => {
                    inner.reply = None;
                    // Where its stream has ended already, the next one is asked.
                    let _ = out.try_send((disk, nodes.clone()));
                    asked_on = Some(stream);
                    deadline = Instant::now() + SUMS_PATIENCE;
                    SUMS_PATIENCE
                }
                Some(_) => {
                    if let Some(told) = inner.reply.take() {
                        if told.sums.len() as u64 != nodes.range.end - nodes.range.start {
                            return Err("the old source told other sums than were asked for".into());
                        }
                        return Ok(ReplicaSums { behind: (told.frame, told.digest), sums: told.sums });
                    }
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        let seconds = SUMS_PATIENCE.as_secs();
                        return Err(format!("the old source told no sums within {seconds} s"));
                    }
                    left
                }
            };
            inner = self.answered.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Serves one stream until it ends.
pub async fn serve(estate: Arc<Estate>, views: Arc<BringUp>, incoming: Incoming) {
    let machine = incoming.hello.machine;
    let follow = match admit(&estate, &views, &incoming) {
        Ok(follow) => follow,
        Err(fault) => {
            tracing::warn!(%machine, peer = %incoming.peer, code = fault.code, "stream refused: {}", fault.message);
            incoming.refuse(&fault).await;
            return;
        }
    };
    let epoch = incoming.hello.epoch;
    let nothing = Welcome {
        number: FrameNumber(0),
        digest: 0,
        sequence: Default::default(),
        newest: Default::default(),
        epoch,
    };
    let opened = async {
        let (sender, mut receiver) = incoming.welcome(nothing).await?;
        match tokio::time::timeout(SILENCE, receiver.next()).await {
            Ok(Ok(Some(Message::Holds(held)))) => Ok((sender, receiver, held)),
            Ok(Err(fault)) => Err(fault),
            _ => Err(fault("channel.protocol", "the old source did not say what it holds")),
        }
    };
    let (mut sender, receiver, held) = match opened.await {
        Ok(opened) => opened,
        Err(fault) => {
            tracing::debug!(%machine, "stream lost: {}", fault.message);
            return;
        }
    };
    let replica = ReplicaState {
        number: held.number,
        digest: held.digest,
        sequence: held.sequence,
        newest: held.newest,
    };
    let (asks, asked) = mpsc::channel(1);
    // Before the feed begins to compare.
    let stream = follow.asking.opened(asks);
    let (connected, stretch) = match follow.source.connect(epoch, replica) {
        Ok(connected) => connected,
        Err(error) => {
            follow.asking.closed(stream);
            sender.refuse(&fault("view.feed", error.to_string())).await;
            return;
        }
    };
    match connected {
        Connected::Continued => tracing::info!(%machine, after = %held.number, "way home open: it goes on"),
        Connected::Broken { reason, stale_bytes } => {
            tracing::info!(%machine, after = %held.number, reason, stale = %Bytes(stale_bytes), "way home open: catching up");
        }
        Connected::Waiting { reason } => {
            tracing::info!(%machine, after = %held.number, reason, "way home open: what waits goes first");
        }
    }
    let (frames, queue) = mpsc::channel(IN_HAND);
    let pump = {
        let source = follow.source.clone();
        let body = move || pump(&source, stretch, held.number, &frames);
        std::thread::Builder::new().name("pump-home".into()).spawn(body)
    };
    let ended = tokio::select! {
        ended = send(sender, queue, asked) => ended,
        ended = acknowledge(&follow, stream, receiver) => ended,
    };
    follow.asking.closed(stream);
    // The queue is gone: the pump finds that out at its next frame.
    if let Ok(pump) = pump {
        let _ = tokio::task::spawn_blocking(move || pump.join()).await;
    }
    match ended {
        Ok(()) => tracing::info!(%machine, "way home closed"),
        Err(fault) => tracing::warn!(%machine, code = fault.code, "way home ended: {}", fault.message),
    }
}

/// May this peer follow what runs here?
fn admit(estate: &Estate, views: &BringUp, incoming: &Incoming) -> Result<Follow, Fault> {
    let machine = incoming.hello.machine;
    let assigned = estate.replica(machine)?.assigned();
    if incoming.peer.id != machine.to_string() {
        return Err(Fault::new(
            FaultClass::Refused,
            "channel.no-right",
            format!("{} has no right to machine {machine}", incoming.peer),
        )
        .affects("this stream")
        .spares("the machine, of which nothing was told")
        .remedy("a machine's certificate opens that machine only: see who uses it"));
    }
    if incoming.hello.epoch != assigned.epoch {
        let (class, code) = if incoming.hello.epoch < assigned.epoch {
            (FaultClass::Refused, "epoch.superseded")
        } else {
            (FaultClass::NotReady, "epoch.unknown")
        };
        let what = format!("epoch {} is not {}, which holds now", incoming.hello.epoch, assigned.epoch);
        return Err(Fault::new(class, code, what)
            .affects("this stream")
            .spares("both sides")
            .remedy("nothing: it settles when the vault has told all servers"));
    }
    let view = assigned.reverse.ok_or_else(|| {
        Fault::new(FaultClass::NotReady, "reverse.none", "the direction of this machine is not reversed")
            .affects("this stream")
            .spares("both sides")
            .remedy("order it: continuum reprotect")
    })?;
    views.followed(view).ok_or_else(|| {
        fault("view.unknown", format!("what was brought up (view {view}) is not served here now"))
            .affects("the way home of this machine")
            .remedy("see the master target's log, mend what is named there, and start it again")
    })
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

async fn send(
    mut sender: Sender,
    mut queue: mpsc::Receiver<Arc<Envelope>>,
    mut asked: mpsc::Receiver<(DiskIndex, Nodes)>,
) -> Result<(), Fault> {
    loop {
        let reset = || Fault::new(FaultClass::NotConnected, "feed.reset", "the feed starts over");
        tokio::select! {
            envelope = queue.recv() => match envelope {
                Some(envelope) => {
                    sender.frame(&envelope).await?;
                    if queue.is_empty() {
                        sender.flush().await?;
                    }
                }
                None => {
                    let fault = reset();
                    sender.refuse(&fault).await;
                    return Err(fault);
                }
            },
            Some((disk, nodes)) = asked.recv() => sender.ask(disk, &nodes).await?,
        }
    }
}

async fn acknowledge(follow: &Follow, stream: u64, mut receiver: Receiver) -> Result<(), Fault> {
    loop {
        match receiver.next().await? {
            Some(Message::Ack(ack)) => follow.source.acknowledged(ack.number).map_err(|error| {
                Fault::new(FaultClass::Refused, "target.ahead", error.to_string())
                    .affects("the way home of this machine: the stream was closed")
                    .spares("what it wrote: none of it was taken for replicated")
            })?,
            Some(Message::Sums(sums)) => follow.asking.answer(stream, sums),
            Some(Message::Refused(fault)) => return Err(fault),
            Some(Message::Frame(_) | Message::Holds(_) | Message::Ask(..)) => {
                return Err(fault("channel.protocol", "a message came the wrong way"));
            }
            None => return Ok(()),
        }
    }
}
