//! One machine's stream: frames from its agent to its master target, acknowledgements back.
//!
//! ```text
//! agent ──frames──► receive ──► [spool] ──► pack ──► (2) ──► (turn) send ──► target
//! agent ◄──────────────────── acknowledge ◄─────────────────────────── target
//! ```
//!
//! The agent is welcomed with what the *target* holds, so a stream exists only while both ends do. When
//! either breaks both are closed; the agent comes back, and goes on after what the target then holds. Where
//! the target cannot be reached the agent is refused with a fault that may be tried again, and stages.
//!
//! Invariant: nothing here makes an acknowledgement. One is passed on only as the target sent it, and only for
//! frames that were sent to it.

use crate::compress::{Adaptive, Bottleneck, Effort, compress};
use crate::order::{Order, Sent, Take};
use crate::pace::Pace;
use crate::server::{Assigned, Gauge, Presence};
use crate::spool::{Pool, Spool};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::Envelope;
use continuum_model::id::MachineId;
use continuum_model::units::FrameNumber;
use continuum_wire::channel::{self, Hello, Incoming, Message, Receiver, Sender, Welcome};
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{Mutex, Notify, Semaphore, mpsc};

/// The agent waits 20 s for its welcome; the target must have answered by then.
const TARGET_DEADLINE: Duration = Duration::from_secs(15);
/// Packed frames that may wait for the link: one on its way, one ready.
const PACKED: usize = 2;

/// What all streams of a process server share.
#[derive(Clone)]
pub(crate) struct Means {
    pub credentials: Credentials,
    pub dir: PathBuf,
    pub pool: Pool,
    /// Threads that compress, and read and write the spool.
    pub hands: Arc<Semaphore>,
    /// How fast frames may leave.
    pub pace: Pace,
}

/// Carries one stream until either end breaks. Returns why it ended.
pub(crate) async fn carry(
    means: &Means,
    incoming: &mut Option<Incoming>,
    assigned: &Assigned,
    gauge: &Arc<Gauge>,
    to_agent: &Arc<Mutex<Option<Sender>>>,
) -> Result<(), Fault> {
    let Some(hello) = incoming.as_ref().map(|incoming| incoming.hello) else { return Ok(()) };
    let _agent = Presence::of(gauge, |gauge| &gauge.agent);
    let (welcome, target, from_target) = open_target(means, assigned, hello).await?;
    let _target = Presence::of(gauge, |gauge| &gauge.target);
    // Taken only now: whoever ends this before can still refuse the agent with a reason.
    let Some(agent) = incoming.take() else { return Ok(()) };
    let (sender, from_agent) = agent.welcome(welcome).await?;
    *to_agent.lock().await = Some(sender);
    gauge.well();
    let (to_send, packed) = mpsc::channel(PACKED);
    let lane = Lane {
        machine: hello.machine,
        spool: Arc::new(Spool::new(means.pool.clone())),
        means: means.clone(),
        more: Notify::new(),
        sent: Sent::after(&welcome),
        on_way: std::sync::Mutex::default(),
        gauge: gauge.clone(),
        compression: assigned.compression,
    };
    tokio::select! {
        ended = lane.receive(from_agent, Order::after(&hello, &welcome)) => ended,
        ended = lane.pack(to_send) => ended,
        ended = lane.send(target, packed) => ended,
        ended = lane.acknowledge(from_target, to_agent) => ended,
    }
}

async fn open_target(
    means: &Means,
    assigned: &Assigned,
    hello: Hello,
) -> Result<(Welcome, Sender, Receiver), Fault> {
    let opening = channel::connect(
        &means.credentials,
        &assigned.target_address,
        Role::MasterTarget,
        Some(&assigned.target_id),
        hello,
    );
    let unreachable = |reason: &str| {
        Fault::new(
            FaultClass::NotConnected,
            "target.unreachable",
            format!("the master target of machine {} cannot be reached: {reason}", hello.machine),
        )
        .affects("new changes, which wait at the source")
        .spares("writes of the machine, and all recovery points")
        .remedy("see whether the master target runs and the process server reaches it; it is tried again")
    };
    match tokio::time::timeout(TARGET_DEADLINE, opening).await {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(fault)) if fault.class == FaultClass::NotConnected => {
            Err(at_target(unreachable(&fault.message)))
        }
        Ok(Err(fault)) => Err(at_target(fault)),
        Err(_) => Err(at_target(unreachable("no answer in 15 s"))),
    }
}

/// Says that it happened between here and the target.
fn at_target(mut fault: Fault) -> Fault {
    fault.message = format!("{}: {}", channel::TO_TARGET, fault.message);
    fault
}

struct Lane {
    machine: MachineId,
    spool: Arc<Spool>,
    means: Means,
    more: Notify,
    sent: Sent,
    /// Frames that were sent to the target and not acknowledged, with their bytes. As many as fit into the link and
    /// the target's queue, which are bounded.
    on_way: std::sync::Mutex<VecDeque<(u64, u64)>>,
    gauge: Arc<Gauge>,
    compression: bool,
}

impl Lane {
    async fn receive(&self, mut from_agent: Receiver, mut order: Order) -> Result<(), Fault> {
        while let Some(message) = from_agent.next().await? {
            let envelope = match message {
                Message::Frame(envelope) => envelope,
                Message::Refused(fault) => return Err(fault),
                Message::Ack(_) | Message::Holds(_) | Message::Ask(..) | Message::Sums(_) => {
                    return Err(unexpected());
                }
            };
            self.gauge.received.fetch_add(envelope.len() as u64, Ordering::Relaxed);
            self.gauge.received_time.fetch_max(envelope.head.last_time.micros(), Ordering::Relaxed);
            match order.take(&envelope.head).map_err(|fault| *fault)? {
                Take::Next => self.keep(Box::new(envelope)).await?,
                Take::Duplicate => {
                    self.gauge.duplicates.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Err(Fault::new(FaultClass::NotConnected, "agent.gone", "the agent closed its stream")
            .spares("the replica, and what the agent has not sent yet"))
    }

    /// Puts a frame into the spool as soon as there is room. Until then nothing is read, which stops the
    /// agent, which stages: nothing is dropped.
    async fn keep(&self, mut envelope: Box<Envelope>) -> Result<(), Fault> {
        loop {
            let freed = self.means.pool.freed().notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.spool.has_room() {
                envelope = match self.spool.push_memory(envelope) {
                    Ok(()) => break,
                    Err(envelope) => envelope,
                };
                match self.write(envelope).await? {
                    Ok(()) => break,
                    Err(back) => envelope = back,
                }
            }
            self.gauge.full.store(true, Ordering::Relaxed);
            freed.await;
        }
        self.gauge.full.store(false, Ordering::Relaxed);
        self.gauge.backlog.store(self.spool.bytes(), Ordering::Relaxed);
        self.more.notify_one();
        Ok(())
    }

    /// Puts a frame on disk; gives it back when the disk does not take it.
    async fn write(&self, envelope: Box<Envelope>) -> Result<Result<(), Box<Envelope>>, Fault> {
        let (spool, dir, machine) = (self.spool.clone(), self.means.dir.clone(), self.machine);
        let written = self.by_hand(move || spool.push_to_disk(&dir, machine, envelope)).await?;
        if self.gauge.disk(written.as_ref().map_err(|(error, _)| error).copied()) {
            tracing::warn!(machine = %self.machine, takes_frames = written.is_ok(), "the spool's disk changed its mind");
        }
        Ok(written.map_err(|(_, envelope)| envelope))
    }

    async fn pack(&self, out: mpsc::Sender<Envelope>) -> Result<(), Fault> {
        let mut adaptive = Adaptive::default();
        loop {
            let Some(place) = self.spool.pop() else {
                self.more.notified().await;
                continue;
            };
            let effort = if self.compression { adaptive.effort() } else { Effort::None };
            let (spool, starved) = (self.spool.clone(), out.capacity() == PACKED);
            let (envelope, payload) = self
                .by_hand(move || {
                    let envelope = spool.open(place)?;
                    let payload = envelope.stored.len();
                    Ok((compress(envelope, effort), payload))
                })
                .await?
                .map_err(|error| spool_fault(&error))?;
            let waiting = self.spool.bytes();
            self.gauge.backlog.store(waiting, Ordering::Relaxed);
            adaptive.packed(effort, payload, envelope.stored.len() < payload);
            let bottleneck = match out.capacity() {
                0 => Bottleneck::Link,
                PACKED if starved && waiting > 0 => Bottleneck::Work,
                _ => Bottleneck::Nothing,
            };
            self.gauge.held_up_by(bottleneck);
            adaptive.held_up_by(bottleneck);
            if out.send(envelope).await.is_err() {
                // The sending half ended, and says why.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn send(&self, mut target: Sender, mut packed: mpsc::Receiver<Envelope>) -> Result<(), Fault> {
        loop {
            let envelope = match packed.try_recv() {
                Ok(envelope) => envelope,
                Err(_) => {
                    target.flush().await.map_err(at_target)?;
                    match packed.recv().await {
                        Some(envelope) => envelope,
                        None => std::future::pending().await,
                    }
                }
            };
            let (number, length) = (envelope.head.identity.number, envelope.len() as u64);
            if let Some(place) = self.means.pace.ask(self.machine, length) {
                // What went before is not held back by what follows it.
                target.flush().await.map_err(at_target)?;
                place.turn().await;
            }
            self.sent.sending(number);
            self.on_way().push_back((number.0, length));
            self.gauge.on_way.fetch_add(length, Ordering::Relaxed);
            let newest = envelope.head.last_time.micros();
            target.frame(&envelope).await.map_err(at_target)?;
            self.gauge.forwarded.fetch_add(length, Ordering::Relaxed);
            self.gauge.forwarded_time.fetch_max(newest, Ordering::Relaxed);
        }
    }

    async fn acknowledge(
        &self,
        mut from_target: Receiver,
        to_agent: &Mutex<Option<Sender>>,
    ) -> Result<(), Fault> {
        while let Some(message) = from_target.next().await.map_err(at_target)? {
            match message {
                Message::Ack(ack) => {
                    self.sent.check(ack.number).map_err(|fault| at_target(*fault))?;
                    if let Some(agent) = to_agent.lock().await.as_mut() {
                        agent.ack(ack).await?;
                    }
                    self.gauge.acknowledged.store(ack.number.0, Ordering::Relaxed);
                    self.gauge.acknowledged_time.store(ack.newest.micros(), Ordering::Relaxed);
                    self.arrived(ack.number);
                }
                Message::Refused(fault) => return Err(at_target(fault)),
                Message::Frame(_) | Message::Holds(_) | Message::Ask(..) | Message::Sums(_) => {
                    return Err(at_target(unexpected()));
                }
            }
        }
        let gone = Fault::new(FaultClass::NotConnected, "target.gone", "the master target closed the stream")
            .affects("new changes wait at the source")
            .spares("writes of the machine, and all recovery points")
            .remedy("nothing: it is opened again");
        Err(at_target(gone))
    }

    fn on_way(&self) -> std::sync::MutexGuard<'_, VecDeque<(u64, u64)>> {
        self.on_way.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn arrived(&self, number: FrameNumber) {
        let mut on_way = self.on_way();
        while let Some((_, length)) = on_way.pop_front_if(|(first, _)| *first <= number.0) {
            self.gauge.on_way.fetch_sub(length, Ordering::Relaxed);
        }
    }

    /// Runs what blocks or computes on one of few threads.
    async fn by_hand<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let _hand =
            self.means.hands.acquire().await.map_err(|error| spool_fault(&io::Error::other(error)))?;
        tokio::task::spawn_blocking(work).await.map_err(|error| spool_fault(&io::Error::other(error)))
    }
}

fn unexpected() -> Fault {
    Fault::new(
        FaultClass::Failed,
        "channel.protocol",
        "protocol violation by the peer: a message of the wrong direction",
    )
    .affects("this stream, which was closed")
    .spares("all other streams, and what is stored")
}

fn spool_fault(error: &io::Error) -> Fault {
    Fault::new(FaultClass::NotConnected, "spool.failed", format!("the spool failed: {error}"))
        .affects("this stream, which starts again from what the target holds")
        .spares("all data: nothing is acknowledged from the spool")
        .remedy("see to disk and memory of the process server when it happens again")
}
