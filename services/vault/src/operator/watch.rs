//! Snapshots and watch streams.

use crate::core::Core;
use crate::hub::{Next, kind_of};
use continuum_proto::v1 as pb;
use pb::entity::Entity as Any;
use pb::watch_event::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Events on their way to a watcher. When they do not leave, its place in the ring grows old, and it is
/// given a snapshot.
const OUTBOX: usize = 64;
/// A watcher hears from us at least this often.
const TICK: Duration = Duration::from_secs(5);
const EVENTS: usize = 200;
const JOBS: usize = 200;

type Out = mpsc::Sender<Result<pb::WatchEvent, Status>>;

/// Everything of the kinds asked for, once.
pub(crate) fn snapshot(core: &Core, request: &pb::SnapshotRequest) -> pb::SnapshotReply {
    let (sequence, all) = core.hub.snapshot();
    let most = |asked: u32, default: usize| if asked == 0 { default } else { asked as usize };
    let (mut events, mut jobs) = (most(request.events_max, EVENTS), most(request.jobs_max, JOBS));
    // Keys of events and jobs sort by age: from the newest back, then round again.
    let mut entities: Vec<pb::Entity> = Vec::new();
    for entity in all.iter().rev() {
        let Some(inner) = &entity.entity else { continue };
        if !wanted(&request.kinds, inner) || !is_named(inner, &request.name) {
            continue;
        }
        let room = match inner {
            Any::Event(_) => Some(&mut events),
            Any::Job(_) => Some(&mut jobs),
            _ => None,
        };
        if let Some(room) = room {
            if *room == 0 {
                continue;
            }
            *room -= 1;
        }
        entities.push((**entity).clone());
    }
    entities.reverse();
    pb::SnapshotReply { sequence, entities }
}

fn wanted(kinds: &[i32], entity: &Any) -> bool {
    kinds.is_empty() || kinds.contains(&(kind_of(entity) as i32))
}

/// Whether it has this name or id, or is about something that has.
fn is_named(entity: &Any, name: &str) -> bool {
    if name.is_empty() {
        return true;
    }
    let names: [&str; 3] = match entity {
        Any::Site(site) => [&site.id, &site.name, ""],
        Any::Server(server) => [&server.id, &server.name, ""],
        Any::Machine(machine) => [&machine.id, &machine.name, ""],
        Any::Policy(policy) => [&policy.id, &policy.name, ""],
        Any::Plan(plan) => [&plan.name, "", ""],
        Any::Group(group) => [&group.name, "", ""],
        Any::Job(job) => [&job.id, &job.machine, &job.machine_id],
        Any::Alert(alert) => [&alert.id, &alert.object, &alert.object_id],
        Any::Event(event) => [&event.object, &event.object_id, ""],
    };
    names.contains(&name)
}

/// The snapshot as changes, then every change as it happens.
pub(crate) fn watch(
    core: &Arc<Core>,
    request: pb::WatchRequest,
) -> ReceiverStream<Result<pb::WatchEvent, Status>> {
    let (out, stream) = mpsc::channel(OUTBOX);
    let core = core.clone();
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = core.stop.cancelled() => {}
            () = out.closed() => {}
            // Ends by itself when the watcher is gone.
            _ = feed(&core, request, &out) => {}
        }
    });
    ReceiverStream::new(stream)
}

async fn feed(core: &Arc<Core>, request: pb::WatchRequest, out: &Out) -> Option<()> {
    let kinds = request.kinds;
    // A place in another run of the vault is a place nowhere.
    let mut place = (request.run == core.about.run).then_some(request.after_sequence);
    let mut changes = core.hub.changes();
    loop {
        changes.mark_unchanged();
        match core.hub.after(place) {
            Next::Whole(sequence, entities) => {
                let send = |event| send(out, sequence, event);
                send(Event::SnapshotBegin(pb::SnapshotBegin { run: core.about.run.clone() })).await?;
                for entity in entities {
                    if entity.entity.as_ref().is_some_and(|inner| wanted(&kinds, inner)) {
                        send(Event::Changed((*entity).clone())).await?;
                    }
                }
                send(Event::SnapshotEnd(pb::SnapshotEnd {})).await?;
                place = Some(sequence);
            }
            Next::Changes(batch) if batch.is_empty() => {
                let woken = tokio::time::timeout(TICK, changes.changed()).await;
                if woken.is_err() {
                    let tick = pb::Tick { vault_time_us: core.world.now().micros() };
                    send(out, place.unwrap_or(0), Event::Tick(tick)).await?;
                }
            }
            Next::Changes(batch) => {
                for (sequence, entity) in batch {
                    place = Some(sequence);
                    if entity.entity.as_ref().is_some_and(|inner| wanted(&kinds, inner)) {
                        send(out, sequence, Event::Changed((*entity).clone())).await?;
                    }
                }
            }
        }
    }
}

async fn send(out: &Out, sequence: u64, event: Event) -> Option<()> {
    out.send(Ok(pb::WatchEvent { sequence, event: Some(event) })).await.ok()
}
