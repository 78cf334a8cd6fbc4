//! Follows a job to its end through the watch stream, over restarts of the vault and lost connections.
//!
//! The job lives in the vault: whatever happens here, it goes on. Every change of a step is told once.

use super::vault::Vault;
use crate::profile::Choice;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::job::JobState;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use pb::watch_event::Event;
use std::time::Duration;
use tokio::time::Instant;

/// Without a word from the vault for this long, following ends. The job does not.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// A stream that says nothing for this long is dead: the vault ticks more often.
const TICK_MAX: Duration = Duration::from_secs(30);
const BACKOFF: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
];

/// What a follower is told.
#[derive(Debug)]
pub enum News<'a> {
    /// The job as it stands now.
    Job(&'a pb::Job),
    /// The vault does not answer; it is tried again.
    Lost(&'a Fault),
    /// It answers again.
    Back,
}

/// Follows `job` until it is over.
///
/// Errors: `NotReady` when `limit` passed, `NotConnected` when the vault stayed silent, `NotFound` when
/// the vault knows no such job. In each case the job goes on.
pub async fn follow(
    choice: &Choice,
    vault: Vault,
    job: pb::Job,
    limit: Option<Duration>,
    tell: &mut (dyn FnMut(News<'_>) + Send),
) -> Result<pb::Job, Fault> {
    let id = job.id.clone();
    let following = async {
        tell(News::Job(&job));
        if is_over(&job) {
            return Ok(job);
        }
        let mut vault = Some(vault);
        let mut seen = Seen { run: String::new(), sequence: 0 };
        let mut heard = Instant::now();
        let mut attempt = 0;
        loop {
            let watched = match vault.take() {
                Some(vault) => watch(vault, &id, &mut seen, &mut heard, tell).await,
                None => match Vault::connect(choice).await {
                    Ok(vault) => {
                        tell(News::Back);
                        attempt = 0;
                        watch(vault, &id, &mut seen, &mut heard, tell).await
                    }
                    Err(fault) => Err(fault),
                },
            };
            match watched {
                Ok(job) => return Ok(job),
                Err(fault) if matches!(fault.class, FaultClass::NotFound | FaultClass::Usage) => {
                    return Err(fault);
                }
                Err(fault) if heard.elapsed() > SILENCE_MAX => return Err(left_alone(&id, fault)),
                Err(fault) => {
                    if attempt == 0 {
                        tell(News::Lost(&fault));
                    }
                    tokio::time::sleep(BACKOFF[attempt.min(BACKOFF.len() - 1)]).await;
                    attempt += 1;
                }
            }
        }
    };
    match limit {
        None => following.await,
        Some(limit) => match tokio::time::timeout(limit, following).await {
            Ok(followed) => followed,
            Err(_) => Err(Fault::new(
                FaultClass::NotReady,
                "wait.timeout",
                format!("job {id} is not over after {} s", limit.as_secs()),
            )
            .spares("the job, which goes on in the vault")
            .remedy(format!("follow it with `continuum wait {id}`"))),
        },
    }
}

/// Whether nothing more will happen.
pub fn is_over(job: &pb::Job) -> bool {
    JobState::named(&job.state).is_some_and(JobState::is_over)
}

/// How far the stream was read, to go on from there.
struct Seen {
    run: String,
    sequence: u64,
}

async fn watch(
    mut vault: Vault,
    id: &str,
    seen: &mut Seen,
    heard: &mut Instant,
    tell: &mut (dyn FnMut(News<'_>) + Send),
) -> Result<pb::Job, Fault> {
    let request = pb::WatchRequest {
        kinds: vec![pb::Kind::Job as i32],
        after_sequence: seen.sequence,
        run: seen.run.clone(),
    };
    let mut stream = vault.watch(request).await?;
    // The stream tells what is new; between the answer to the order and its begin something may have happened.
    let now = find(&mut vault, id).await?;
    *heard = Instant::now();
    tell(News::Job(&now));
    if is_over(&now) {
        return Ok(now);
    }
    loop {
        let message = match tokio::time::timeout(TICK_MAX, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return Err(ended("the vault ended the stream")),
            Ok(Err(status)) => return Err(continuum_wire::grpc::fault_of(&status)),
            Err(_) => return Err(ended("the vault has been silent for 30 s")),
        };
        *heard = Instant::now();
        seen.sequence = message.sequence;
        match message.event {
            Some(Event::SnapshotBegin(begin)) => seen.run = begin.run,
            Some(Event::Changed(pb::Entity { entity: Some(Entity::Job(job)) })) if job.id == id => {
                tell(News::Job(&job));
                if is_over(&job) {
                    return Ok(job);
                }
            }
            Some(Event::Removed(removed)) if removed.id == id => return find(&mut vault, id).await,
            Some(Event::Changed(_) | Event::Removed(_) | Event::SnapshotEnd(_) | Event::Tick(_)) | None => {}
        }
    }
}

/// The job as the vault has it.
pub async fn find(vault: &mut Vault, id: &str) -> Result<pb::Job, Fault> {
    let entities = vault.snapshot(&[pb::Kind::Job], id, 0).await?;
    let job = entities.into_iter().find_map(|entity| match entity {
        Entity::Job(job) if job.id == id => Some(job),
        _ => None,
    });
    job.ok_or_else(|| {
        Fault::new(
            FaultClass::NotFound,
            "job.unknown",
            format!("there is no job {}", continuum_model::untrusted::shown(id)),
        )
        .spares("everything")
        .remedy("see `continuum get jobs`")
    })
}

fn ended(why: &str) -> Fault {
    Fault::new(FaultClass::NotConnected, "vault.stream", why)
        .spares("the job, which goes on in the vault")
        .remedy("it is tried again")
}

fn left_alone(id: &str, fault: Fault) -> Fault {
    Fault {
        affected: "this command, which follows the job no longer".into(),
        unaffected: "the job, which goes on when the vault does".into(),
        remedy: format!("see whether the vault runs, then `continuum wait {id}`"),
        ..fault
    }
}
