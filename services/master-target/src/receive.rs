//! Frames in: from the replication channel into the store, durable, then acknowledged.
//!
//! One task reads frames off the channel; one blocking worker appends whatever has come meanwhile as one
//! group (one sync for many frames) and acknowledges the last. The queue between them is bounded, so a slow
//! disk slows the sender, who has its own staging.
//!
//! Invariant: an acknowledgement is sent after `Store::append` returned, never before.

use crate::busy::Busy;
use crate::estate::{Estate, Replica};
use crate::replica_fault;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::Envelope;
use continuum_replica::Store;
use continuum_wire::channel::{Ack, Incoming, Message, Receiver, Sender, Welcome};
use continuum_wire::identity::Role;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;

/// Frames that wait for the worker.
const QUEUE: usize = 32;
/// Most frames, and most bytes, in one group.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 16 << 20;

/// Serves one stream until it ends.
pub async fn serve(estate: Arc<Estate>, incoming: Incoming) {
    let machine = incoming.hello.machine;
    let (store, busy) = match admit(&estate, &incoming) {
        Ok(admitted) => admitted,
        Err(fault) => {
            tracing::warn!(%machine, peer = %incoming.peer, code = fault.code, "stream refused: {}", fault.message);
            incoming.refuse(&fault).await;
            return;
        }
    };
    let last = store.state().last;
    let welcome = Welcome {
        number: last.number,
        digest: last.digest,
        sequence: last.sequence,
        newest: last.newest,
        epoch: incoming.hello.epoch,
    };
    let (sender, receiver) = match incoming.welcome(welcome).await {
        Ok(both) => both,
        Err(fault) => {
            tracing::debug!(%machine, "stream lost: {}", fault.message);
            return;
        }
    };
    tracing::info!(%machine, after = %last.number, "stream open");
    let (queue, frames) = mpsc::channel(QUEUE);
    let ended = tokio::select! {
        ended = take(&busy, receiver, queue) => ended,
        ended = keep(&estate, &busy, store, frames, sender) => ended,
    };
    busy.idle();
    match ended {
        Ok(()) => tracing::info!(%machine, "stream closed"),
        Err(fault) => tracing::warn!(%machine, code = fault.code, "stream ended: {}", fault.message),
    }
}

/// May this peer bring frames of this machine under this epoch?
fn admit(estate: &Estate, incoming: &Incoming) -> Result<(Arc<Store>, Arc<Busy>), Fault> {
    let machine = incoming.hello.machine;
    let replica: Arc<Replica> = estate.replica(machine)?;
    let assigned = replica.assigned();
    if incoming.peer.role == Role::ProcessServer && incoming.peer.id != assigned.process_server {
        // One that relays the machine no more, or that we were not told of yet: only the vault knows.
        return Err(Fault::new(
            FaultClass::NotReady,
            "relay.superseded",
            format!("{} is not the process server that the vault named for machine {machine}", incoming.peer),
        )
        .affects("this stream")
        .spares("the replica, of which nothing was touched: one process server at a time brings frames")
        .remedy(
            "nothing where the machine was moved just now; else see which one `continuum describe machine` names",
        ));
    }
    if incoming.peer.role != Role::ProcessServer {
        return Err(Fault::new(
            FaultClass::Refused,
            "channel.no-right",
            format!("{} has no right to machine {machine}", incoming.peer),
        )
        .affects("this stream")
        .spares("the replica, of which nothing was touched")
        .remedy(
            "only the process server that the vault named may bring frames: see who uses its certificate",
        ));
    }
    if incoming.hello.epoch != assigned.epoch {
        let (class, code, words) = if incoming.hello.epoch < assigned.epoch {
            (FaultClass::Refused, "epoch.superseded", "is superseded by")
        } else {
            (FaultClass::NotReady, "epoch.unknown", "is newer than")
        };
        return Err(Fault::new(
            class,
            code,
            format!("epoch {} {words} {}", incoming.hello.epoch, assigned.epoch),
        )
        .affects("this stream")
        .spares("the replica: only the newest writer may write it")
        .remedy(
            "nothing where the machine was failed over; else it settles when the vault has told all servers",
        ));
    }
    if replica.seeding.load(Ordering::Acquire) {
        return Err(Fault::new(
            FaultClass::NotReady,
            "replica.seeding",
            format!("the seed of machine {machine} is being taken in"),
        )
        .affects("this stream")
        .spares("the source, which remembers what changed")
        .remedy("nothing: it is compared, and replication begins, once it is there"));
    }
    estate.room_for(0)?;
    Ok((replica.store()?, replica.busy.clone()))
}

async fn take(busy: &Busy, mut receiver: Receiver, queue: mpsc::Sender<Envelope>) -> Result<(), Fault> {
    while let Some(message) = receiver.next().await? {
        match message {
            Message::Frame(envelope) => {
                busy.waiting.fetch_add(envelope.len() as u64, Ordering::Relaxed);
                if queue.send(envelope).await.is_err() {
                    break;
                }
            }
            Message::Refused(fault) => return Err(fault),
            Message::Ack(_) | Message::Holds(_) | Message::Ask(..) | Message::Sums(_) => {
                return Err(crate::fault("channel.protocol", "a message came the wrong way"));
            }
        }
    }
    Ok(())
}

async fn keep(
    estate: &Estate,
    busy: &Busy,
    store: Arc<Store>,
    mut frames: mpsc::Receiver<Envelope>,
    mut sender: Sender,
) -> Result<(), Fault> {
    while let Some(first) = frames.recv().await {
        let mut bytes = first.len();
        let mut group = vec![first];
        while group.len() < GROUP && bytes < GROUP_BYTES {
            let Ok(next) = frames.try_recv() else { break };
            bytes += next.len();
            group.push(next);
        }
        if let Err(fault) = estate.room_for(bytes as u64) {
            sender.refuse(&fault).await;
            return Err(fault);
        }
        let keeping = store.clone();
        busy.begins();
        let appended = tokio::task::spawn_blocking(move || keeping.append(&group)).await;
        busy.ends(bytes as u64);
        let appended = match appended.map_err(|error| crate::fault("replica.died", error.to_string())) {
            Ok(Ok(appended)) => appended,
            Ok(Err(error)) => {
                let fault = replica_fault(&error);
                sender.refuse(&fault).await;
                return Err(fault);
            }
            Err(fault) => {
                sender.refuse(&fault).await;
                return Err(fault);
            }
        };
        sender
            .ack(Ack { number: appended.number, sequence: appended.sequence, newest: appended.newest })
            .await?;
    }
    Ok(())
}
