//! What is done for every replica in the background, a bounded slice at a time, while everything else goes on:
//! what changed is summed, so that the newest state can be compared without being read; history is thinned and folded
//! into the base by policy, the logs of overlays are kept short, and everything that is stored is read again and again
//! before somebody needs it.

use crate::estate::{Estate, Replica};
use continuum_model::policy::{Policy, RetentionStep};
use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;
use continuum_model::world::Clock;
use continuum_replica::{ReplicaError, Store, Stretch};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause between rounds. A round does at most one slice for each replica.
const ROUND: Duration = Duration::from_secs(5);
/// What the scrub of all replicas together may read in a round: about 13 MB/s, so that it is hardly felt.
const SCRUB_BYTES: u64 = 64 << 20;
/// The least that one replica gets of it.
const SCRUB_BYTES_MIN: u64 = 1 << 20;

/// Rounds between two looks for history to be thinned.
const THIN_ROUNDS: u64 = 12;
/// Of this share of what history may take, in percent, old history is thinned before its end is given up.
const SPACE_PERCENT: u64 = 90;
/// From this share on it is told.
const TOLD_PERCENT: u64 = 80;
/// Of history that is thinned for lack of space one state of every so long is kept.
const SQUEEZED: RetentionStep = RetentionStep { every_seconds: 3600, for_seconds: u64::MAX };
/// What is read for the sums of all replicas together in a round. What was just written is still in memory.
const SUMMED_BYTES: u64 = 256 << 20;
/// The least that one replica gets of it.
const SUMMED_BYTES_MIN: u64 = 4 << 20;

/// Goes on until `stop`. A replica for which something fails keeps what it has and says so; the others go on.
pub async fn run(estate: Arc<Estate>, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let mut uptime = clock.uptime();
    let mut round = 0u64;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        let passed = clock.uptime().saturating_sub(uptime);
        uptime += passed;
        let replicas = estate.all();
        round += 1;
        let each = replicas.len().max(1) as u64;
        let share = Share {
            scrub: Bytes((SCRUB_BYTES / each).max(SCRUB_BYTES_MIN)),
            sums: Bytes((SUMMED_BYTES / each).max(SUMMED_BYTES_MIN)),
        };
        for replica in replicas {
            let Ok(store) = replica.store() else { continue };
            let (now, thin, stop) = (clock.wall(), round.is_multiple_of(THIN_ROUNDS), stop.clone());
            let tended = tokio::task::spawn_blocking(move || {
                tend(&replica, &store, (now, passed), share, thin.then_some(&stop));
            });
            if let Err(error) = tended.await {
                tracing::error!(%error, "the upkeep of a replica died");
            }
        }
    }
}

/// What may be read for one replica in a round.
#[derive(Clone, Copy)]
struct Share {
    scrub: Bytes,
    sums: Bytes,
}

fn tend(
    replica: &Replica,
    store: &Store,
    (now, passed): (Timestamp, Duration),
    share: Share,
    thin: Option<&CancellationToken>,
) {
    let assigned = replica.assigned();
    let machine = assigned.machine;
    let failed = |what: &str, error: &ReplicaError| tracing::error!(%machine, %error, "{what}");
    if let Err(error) = store.pass_time(now, passed) {
        failed("the time that this replica was kept could not be put on record: locks hold longer", &error);
    }
    // Before the fold: what it forgets is summed, or known to be not.
    if let Err(error) = store.tend_digests(share.sums) {
        failed("the sums of the newest state could not be kept: comparing reads more", &error);
    }
    let policy = &assigned.policy;
    tell_space(replica, store, policy, now);
    if let Some(stop) = thin {
        match thinned(store, policy, now, stop) {
            Ok(Some(stretch)) => {
                let after = store.state().history_bytes;
                tracing::info!(%machine, from = %stretch.after.1, to = %stretch.to.1, history_bytes = after, "history was thinned");
            }
            Ok(None) => {}
            Err(error) => {
                failed("history could not be thinned: it stays as it is and takes more space", &error)
            }
        }
    }
    if let Err(error) = store.fold(policy.oldest_promised(now), policy.history_bytes_max) {
        failed("history could not be folded: it stays as it is and takes more space", &error);
    }
    if let Err(error) = store.tend_overlays() {
        failed("the log of a machine that was brought up could not be shortened", &error);
    }
    match store.scrub(share.scrub) {
        Ok(scrubbed) => {
            for finding in scrubbed.found {
                tracing::error!(%machine, "the scrub found damage: {finding}");
            }
        }
        Err(error) => failed("the scrub could not note where it is: it begins anew after a restart", &error),
    }
}

/// Says before history's space runs short, and while it reaches less far than promised for want of it.
fn tell_space(replica: &Replica, store: &Store, policy: &Policy, now: Timestamp) {
    let state = store.state();
    let Some(most) = policy.history_bytes_max else { return replica.warn("history.space", None) };
    let percent = u128::from(state.history_bytes) * 100 / u128::from(most.0.max(1));
    let (oldest, promised) = (state.oldest_legal, policy.oldest_promised(now));
    // Whoever was protected a short while ago has no old history yet: only what was given up is told.
    let given_up = oldest.is_some_and(|oldest| oldest > promised) && store.has_folded();
    let used = format!("{} of {most} that its history may take are used", Bytes(state.history_bytes));
    let text = match oldest {
        _ if percent < u128::from(TOLD_PERCENT) => return replica.warn("history.space", None),
        Some(oldest) if given_up => {
            format!("{used}: it reaches back to {oldest}, and {promised} is promised")
        }
        _ => format!("{used}; from {SPACE_PERCENT} % on old history is thinned, then its end goes"),
    };
    let told = crate::fault("history.space", text)
        .affects("how far back, and how finely, a moment can be brought up")
        .spares("replication, and the moments that are kept")
        .remedy("raise history_bytes_max, or promise less history");
    replica.warn("history.space", Some(told));
}

/// Thins what the policy says; and where space runs short the older half of what is kept whole, before the end of
/// history is given up: a state of every hour is worth more than none.
fn thinned(
    store: &Store,
    policy: &Policy,
    now: Timestamp,
    stop: &CancellationToken,
) -> Result<Option<Stretch>, ReplicaError> {
    let mut stretch = store.thinnable(&|time| policy.bucket(now, time));
    if stretch.is_none()
        && let Some(most) = policy.history_bytes_max
        && store.state().history_bytes > most.0 / 100 * SPACE_PERCENT
    {
        let squeezed = Policy {
            retention_seconds: policy.retention_seconds / 2,
            steps: vec![SQUEEZED],
            ..policy.clone()
        };
        stretch = store.thinnable(&|time| policy.bucket(now, time).or_else(|| squeezed.bucket(now, time)));
        if let Some(stretch) = &stretch {
            tracing::warn!(from = %stretch.after.1, to = %stretch.to.1, "space runs short: old history is thinned");
        }
    }
    let Some(stretch) = stretch else { return Ok(None) };
    Ok(store.thin(&stretch, &|| stop.is_cancelled())?.then_some(stretch))
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::feed::{Barrier, BarrierKind, Change, Envelope, FrameBuilder, Identity, Record};
    use continuum_model::id::{DiskId, MachineId, PointId};
    use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
    use continuum_replica::medium::Simulated;
    use continuum_replica::{Cache, DiskSpec, Limits};

    const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
    const MINUTE: i64 = 60_000_000;

    /// Two days of a machine that writes the same few places over and over: a frame every ten minutes, each with a
    /// listed point.
    fn two_days() -> Store {
        let disk = DiskSpec { index: DiskIndex(0), id: DiskId::from_bytes([1; 16]), size: 1 << 20 };
        let limits = Limits { segment_bytes: 50_000, ..Limits::default() };
        let medium = Arc::new(Simulated::default());
        let (store, _) =
            Store::open_limited(medium, MACHINE, &[disk], Cache::new(1 << 20), limits).expect("it opens");
        store.fence(Epoch(1)).expect("the epoch");
        let (mut builder, mut previous, mut sequence) = (FrameBuilder::default(), 0, 0);
        for number in 1..=288u64 {
            let mut time = number as i64 * 10 * MINUTE;
            let mut push = |change| {
                (sequence, time) = (sequence + 1, time + 1);
                builder.push(&Record {
                    sequence: Sequence(sequence),
                    time: Timestamp::from_micros(time),
                    change,
                });
            };
            for place in 0..4 {
                let data = vec![number as u8 ^ place; 4096];
                let offset = u64::from(place) * 8192;
                push(Change::Write { disk: DiskIndex(0), offset, data: data.into(), injected: false });
            }
            push(Change::Barrier(Barrier {
                kind: BarrierKind::Crash,
                consistent: true,
                point: Some(PointId::from_bytes(u128::from(number).to_le_bytes())),
                name: String::new(),
            }));
            let identity = Identity {
                machine: MACHINE,
                epoch: Epoch(1),
                number: FrameNumber(number),
                session: 1,
                previous,
            };
            let frame = builder.finish(identity).expect("there are records");
            previous = frame.head.digest;
            store.append(&[Envelope::plain(&frame)]).expect("it is taken");
        }
        store
    }

    fn points(store: &Store) -> Vec<i64> {
        store.points_after(Sequence(0)).iter().map(|point| point.time.micros() / MINUTE).collect()
    }

    #[test]
    fn a_policy_keeps_one_point_of_every_hour() {
        let (store, stop) = (two_days(), CancellationToken::new());
        let now = Timestamp::from_micros(288 * 10 * MINUTE);
        let policy = Policy {
            retention_seconds: 12 * 3600,
            steps: vec![RetentionStep { every_seconds: 3600, for_seconds: 7 * 24 * 3600 }],
            ..Policy::default()
        };
        let before = store.state().history_bytes;
        let mut times = 0;
        while thinned(&store, &policy, now, &stop).expect("it is thinned").is_some() {
            times += 1;
        }
        assert!(times > 30, "{times} hours");
        assert!(store.state().history_bytes < before / 2, "{} of {before}", store.state().history_bytes);
        let (left, edge) = (points(&store), 36 * 60);
        // The last one of every hour that is old, all of those that are not.
        for hour in 1..36 {
            let of_hour: Vec<_> = left.iter().filter(|at| **at / 60 == hour).collect();
            assert_eq!(of_hour, [&(hour * 60 + 50)], "hour {hour}");
        }
        assert_eq!(left.iter().filter(|at| **at > edge).count(), 288 - 36 * 6);
    }

    #[test]
    fn where_space_runs_short_history_is_thinned_before_it_is_given_up() {
        let (store, stop) = (two_days(), CancellationToken::new());
        let now = Timestamp::from_micros(288 * 10 * MINUTE);
        let bytes = store.state().history_bytes;
        let policy = Policy {
            retention_seconds: 48 * 3600,
            history_bytes_max: Some(Bytes(bytes * 3 / 4)),
            ..Policy::default()
        };
        let oldest = store.state().oldest_legal.expect("a moment");
        let mut times = 0;
        while thinned(&store, &policy, now, &stop).expect("it is thinned").is_some() {
            times += 1;
        }
        assert!(times > 3, "{times} hours");
        assert!(store.state().history_bytes <= bytes * 3 / 4, "it is enough");
        assert!(!store.fold(policy.oldest_promised(now), policy.history_bytes_max).expect("nothing to fold"));
        let hour = std::time::Duration::from_secs(3600);
        assert!(store.state().oldest_legal.expect("a moment") < oldest.plus(hour), "the end is still there");
        assert!(points(&store).iter().filter(|at| **at > 24 * 60).count() > 140, "what is new is whole");
        // Where it is not enough after all, the end goes.
        let policy = Policy { history_bytes_max: Some(Bytes(bytes / 8)), ..policy };
        while thinned(&store, &policy, now, &stop).expect("it is thinned").is_some() {}
        while store.fold(policy.oldest_promised(now), policy.history_bytes_max).expect("it folds") {}
        assert!(store.state().history_bytes <= bytes / 8 + 50_000, "{}", store.state().history_bytes);
    }
}
