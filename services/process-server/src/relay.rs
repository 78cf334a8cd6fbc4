//! One machine's stream: frames from its agent to its master target, acknowledgements back.
//!
//! ```text
//! agent ──frames──► [spool] ──compress──► target          the two sides run beside one another
//! agent ◄──────────────── acknowledgements ── target      passed on as they come
//! ```
//!
//! The agent is welcomed with what the *target* holds, so a stream exists only while both ends do. When
//! either breaks both are closed; the agent comes back, and goes on after what the target then holds.

use crate::compress::{Effort, compress};
use crate::spool::Spool;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::units::Epoch;
use continuum_wire::channel::{self, Incoming, Message, Receiver, Sender};
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Bytes that one machine may have in the spool. Beyond that its agent waits, and stages.
const SPOOL_BYTES_MAX: u64 = 256 << 20;
/// Backlog from which compression tries less hard, and not at all.
const BACKLOG_FAST: u64 = 8 << 20;
const BACKLOG_NONE: u64 = 64 << 20;

/// Where a machine's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Whose frames.
    pub machine: MachineId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// `host:port` of the target's channel.
    pub target_address: String,
    /// The target's id.
    pub target_id: String,
    /// Whether to compress.
    pub compression: bool,
}

/// Counters of one relay, for reports.
#[derive(Debug, Default)]
pub struct Gauge {
    /// Whether both ends are there.
    pub agent: AtomicBool,
    /// Whether the target is.
    pub target: AtomicBool,
    /// Bytes that wait.
    pub backlog: AtomicU64,
    /// Bytes received.
    pub received: AtomicU64,
    /// Bytes forwarded.
    pub forwarded: AtomicU64,
    /// Why it last ended.
    pub fault: Mutex<Option<Fault>>,
}

/// Carries one stream until either end breaks.
pub async fn carry(
    credentials: Credentials,
    incoming: Incoming,
    assigned: Option<Assigned>,
    spool_path: PathBuf,
    gauge: Arc<Gauge>,
) {
    let machine = incoming.hello.machine;
    let assigned = match admit(&incoming, assigned) {
        Ok(assigned) => assigned,
        Err(fault) => {
            tracing::warn!(%machine, peer = %incoming.peer, code = fault.code, "stream refused: {}", fault.message);
            incoming.refuse(&fault).await;
            return;
        }
    };
    let opened = channel::connect(
        &credentials,
        &assigned.target_address,
        Role::MasterTarget,
        Some(&assigned.target_id),
        incoming.hello,
    )
    .await;
    let (welcome, to_target, from_target) = match opened {
        Ok(opened) => opened,
        Err(fault) => {
            *gauge.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.clone());
            incoming.refuse(&fault).await;
            return;
        }
    };
    let (to_agent, from_agent) = match incoming.welcome(welcome).await {
        Ok(both) => both,
        Err(_) => return,
    };
    *gauge.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    gauge.agent.store(true, Ordering::Relaxed);
    gauge.target.store(true, Ordering::Relaxed);
    let lane = Lane {
        spool: Mutex::new(Spool::new(spool_path)),
        more: Notify::new(),
        room: Notify::new(),
        gauge: gauge.clone(),
        compression: assigned.compression,
    };
    let to_agent = tokio::sync::Mutex::new(to_agent);
    let ended = tokio::select! {
        ended = lane.receive(from_agent) => ended,
        ended = lane.forward(to_target) => ended,
        ended = lane.acknowledge(from_target, &to_agent) => ended,
    };
    gauge.agent.store(false, Ordering::Relaxed);
    gauge.target.store(false, Ordering::Relaxed);
    gauge.backlog.store(0, Ordering::Relaxed);
    if let Err(fault) = ended {
        tracing::info!(%machine, code = fault.code, "stream ended: {}", fault.message);
        to_agent.lock().await.refuse(&fault).await;
        *gauge.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
    }
}

/// May this peer send frames of this machine?
fn admit(incoming: &Incoming, assigned: Option<Assigned>) -> Result<Assigned, Box<Fault>> {
    let machine = incoming.hello.machine;
    if incoming.peer.role != Role::Agent || incoming.peer.id != machine.to_string() {
        return Err(Box::new(
            Fault::new(
                FaultClass::Refused,
                "channel.no-right",
                format!("{} has no right to machine {machine}", incoming.peer),
            )
            .affects("this stream")
            .spares("the data of that machine, of which nothing was taken")
            .remedy("a machine's certificate opens that machine's data only: see who uses it"),
        ));
    }
    let assigned = assigned.ok_or_else(|| {
        Fault::new(
            FaultClass::NotReady,
            "relay.unknown",
            format!("this process server was not told to relay machine {machine}"),
        )
        .affects("this stream; it is tried again")
        .spares("writes of the machine, which are remembered")
        .remedy("wait for the vault, or see whether it runs")
    })?;
    if incoming.hello.epoch != assigned.epoch {
        let (class, words) = if incoming.hello.epoch < assigned.epoch {
            (FaultClass::Refused, "is superseded by")
        } else {
            (FaultClass::NotReady, "is newer than")
        };
        return Err(Box::new(
            Fault::new(
                class,
                "epoch.superseded",
                format!("epoch {} {words} {}", incoming.hello.epoch, assigned.epoch),
            )
            .affects("this stream")
            .spares("the replica, of which the newest writer is the only one")
            .remedy("nothing where a failover is meant; else see the machine in the console"),
        ));
    }
    Ok(assigned)
}

struct Lane {
    spool: Mutex<Spool>,
    more: Notify,
    room: Notify,
    gauge: Arc<Gauge>,
    compression: bool,
}

impl Lane {
    fn spool(&self) -> std::sync::MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(&self, mut from_agent: Receiver) -> Result<(), Fault> {
        while let Some(message) = from_agent.next().await? {
            let Message::Frame(envelope) = message else { return Err(unexpected()) };
            self.gauge.received.fetch_add(envelope.len() as u64, Ordering::Relaxed);
            // A full spool stops reading, which stops the agent, which stages: nothing is dropped.
            while self.spool().bytes() > SPOOL_BYTES_MAX {
                self.room.notified().await;
            }
            let backlog = {
                let mut spool = self.spool();
                spool.push(envelope).map_err(|error| spool_fault(&error))?;
                spool.bytes()
            };
            self.gauge.backlog.store(backlog, Ordering::Relaxed);
            self.more.notify_one();
        }
        Ok(())
    }

    async fn forward(&self, mut to_target: Sender) -> Result<(), Fault> {
        loop {
            let (next, backlog) = {
                let mut spool = self.spool();
                let next = spool.pop().map_err(|error| spool_fault(&error))?;
                (next, spool.bytes())
            };
            let Some(envelope) = next else {
                to_target.flush().await?;
                self.more.notified().await;
                continue;
            };
            self.gauge.backlog.store(backlog, Ordering::Relaxed);
            self.room.notify_one();
            let effort = match backlog {
                _ if !self.compression => Effort::None,
                0..BACKLOG_FAST => Effort::Small,
                BACKLOG_FAST..BACKLOG_NONE => Effort::Fast,
                _ => Effort::None,
            };
            let envelope = tokio::task::spawn_blocking(move || compress(envelope, effort))
                .await
                .map_err(|error| spool_fault(&std::io::Error::other(error)))?;
            self.gauge.forwarded.fetch_add(envelope.len() as u64, Ordering::Relaxed);
            to_target.frame(&envelope).await?;
        }
    }

    async fn acknowledge(
        &self,
        mut from_target: Receiver,
        to_agent: &tokio::sync::Mutex<Sender>,
    ) -> Result<(), Fault> {
        while let Some(message) = from_target.next().await? {
            match message {
                Message::Ack(ack) => to_agent.lock().await.ack(ack).await?,
                Message::Refused(fault) => return Err(fault),
                Message::Frame(_) => return Err(unexpected()),
            }
        }
        Ok(())
    }
}

fn unexpected() -> Fault {
    Fault::new(
        FaultClass::Failed,
        "channel.protocol",
        "protocol violation by the peer: a message of the wrong direction",
    )
}

fn spool_fault(error: &std::io::Error) -> Fault {
    Fault::new(FaultClass::NotConnected, "spool.failed", format!("the spool failed: {error}"))
        .affects("this stream, which starts again from what the target holds")
        .spares("all data: nothing is acknowledged from the spool")
        .remedy("see to the disk of the process server when it happens again")
}
