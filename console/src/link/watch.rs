//! The stream of changes, over restarts of the vault and lost connections, for ever.
//!
//! Lives here: dialling again, backing off, resuming where the last connection stopped, and telling how it
//! stands. Every connection has a generation, so that what an old one still says can be told apart.

use super::{Link, Opener, connect};
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use pb::watch_event::Event;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

/// A stream that says nothing for this long is dead: the vault ticks more often.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Waits between dials; the last one is the cap.
const BACKOFF: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
];
/// So many events at most are told at once.
const BATCH_MAX: usize = 4096;

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum News {
    /// Somebody is being dialled; the number counts failures since it last worked.
    Dialling {
        /// How many dials failed before this one.
        failures: u32,
    },
    /// Connected. Calls may go over this link from now on.
    Connected {
        /// The line, for calls.
        link: Link,
        /// Who we are there.
        who: pb::WhoAmIReply,
    },
    /// Changes, in order. Resumed streams begin without a snapshot.
    Events(Vec<pb::WatchEvent>),
    /// Not connected any more, or not yet.
    Lost {
        /// Why.
        fault: Fault,
        /// When it is tried again.
        again_in: Duration,
        /// How many dials failed since it last worked.
        failures: u32,
    },
}

/// News with the generation of the connection that it came over. Generations rise with every dial.
pub type Tagged = (u64, News);

/// Watches until `stop`, or until nobody listens.
///
/// `nudge` ends a wait between dials at once: an operator pressed a key for it.
pub async fn run(
    open: Opener,
    out: mpsc::Sender<Tagged>,
    nudge: std::sync::Arc<tokio::sync::Notify>,
    stop: CancellationToken,
) {
    let mut seen = Seen::default();
    let mut failures = 0_u32;
    for generation in 1_u64.. {
        let told = |news: News| out.send((generation, news));
        if told(News::Dialling { failures }).await.is_err() {
            return;
        }
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one(&open, generation, &out, &mut seen, &mut failures) => ended,
        };
        let Some(fault) = ended else { return };
        let step = BACKOFF[usize::try_from(failures).unwrap_or(usize::MAX).min(BACKOFF.len() - 1)];
        let again_in = step.mul_f64(f64::from(jitter(generation)) / 100.0);
        failures = failures.saturating_add(1);
        if told(News::Lost { fault, again_in, failures }).await.is_err() {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = nudge.notified() => {}
            () = tokio::time::sleep(again_in) => {}
        }
    }
}

/// How far the stream was read, to go on from there.
#[derive(Debug, Default)]
struct Seen {
    run: String,
    sequence: u64,
    /// In the middle of a snapshot: resuming there would lose the rest of it.
    in_snapshot: bool,
}

/// One connection, until it ends. `None`: nobody listens any more.
async fn one(
    open: &Opener,
    generation: u64,
    out: &mpsc::Sender<Tagged>,
    seen: &mut Seen,
    failures: &mut u32,
) -> Option<Fault> {
    match talk(open, generation, out, seen, failures).await {
        Ok(()) => None,
        Err(fault) => Some(fault),
    }
}

async fn talk(
    open: &Opener,
    generation: u64,
    out: &mpsc::Sender<Tagged>,
    seen: &mut Seen,
    failures: &mut u32,
) -> Result<(), Fault> {
    let link = connect(open).await?;
    let who = link.who_am_i().await?;
    let from_start = seen.in_snapshot || seen.run != who.run;
    let request = pb::WatchRequest {
        kinds: Vec::new(),
        after_sequence: if from_start { 0 } else { seen.sequence },
        run: if from_start { String::new() } else { seen.run.clone() },
    };
    let stream = link.changes(request).await?;
    *failures = 0;
    if out.send((generation, News::Connected { link, who })).await.is_err() {
        return Ok(());
    }
    let mut stream = std::pin::pin!(futures::StreamExt::ready_chunks(stream, BATCH_MAX));
    loop {
        let chunk = match tokio::time::timeout(SILENCE_MAX, stream.next()).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Err(ended("the vault ended the stream of changes")),
            Err(_) => return Err(ended("the vault has been silent for 20 s")),
        };
        let mut events = Vec::with_capacity(chunk.len());
        let mut broken = None;
        for item in chunk {
            match item {
                Ok(event) => {
                    seen.take(&event);
                    events.push(event);
                }
                Err(status) => {
                    broken = Some(continuum_wire::grpc::fault_of(&status));
                    break;
                }
            }
        }
        if !events.is_empty() && out.send((generation, News::Events(events))).await.is_err() {
            return Ok(());
        }
        if let Some(fault) = broken {
            return Err(fault);
        }
    }
}

impl Seen {
    fn take(&mut self, event: &pb::WatchEvent) {
        match &event.event {
            Some(Event::SnapshotBegin(begin)) => {
                self.run.clone_from(&begin.run);
                self.in_snapshot = true;
            }
            Some(Event::SnapshotEnd(_)) => self.in_snapshot = false,
            Some(Event::Changed(_) | Event::Removed(_) | Event::Tick(_)) | None => {}
        }
        self.sequence = event.sequence;
    }
}

/// 75 to 125: many consoles that lost one vault do not come back in one instant.
fn jitter(generation: u64) -> u32 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&uuid::Uuid::new_v4().as_bytes()[..8]);
    75 + u32::try_from((u64::from_le_bytes(bytes) ^ generation) % 51).unwrap_or(25)
}

fn ended(why: &str) -> Fault {
    Fault::new(FaultClass::NotConnected, "vault.stream", why)
        .affects("what this console shows: it grows old")
        .spares("replication and jobs, which go on in the vault")
        .remedy("it is tried again")
}
