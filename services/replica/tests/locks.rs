//! A locked point stays until the wall and the time that the store was open both say that it may go.

mod source;

use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, Sequence};
use continuum_replica::medium::Simulated;
use continuum_replica::{PointInfo, ReplicaError, Store};
use source::{Source, open};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn squeeze(store: &Store) {
    // Everything expired, and no space at all.
    while store.fold(Timestamp::from_micros(i64::MAX), Some(Bytes(0))).expect("it folds") {}
}

fn is_there(store: &Store, point: &PointInfo) -> bool {
    store.points_after(Sequence(0)).iter().any(|known| known.id == point.id)
        && store.open_view(point.position).is_ok()
}

fn scene() -> (Simulated, Store, Source, PointInfo) {
    let world = Simulated::default();
    let store = open(world.clone());
    let mut source = Source::new(31);
    (0..12).for_each(|_| source.frame(7));
    store.append(&source.frames).expect("it is taken");
    let points = store.points_after(Sequence(0));
    let point = points[points.len() / 2].clone();
    (world, store, source, point)
}

#[test]
fn neither_clock_alone_lets_a_locked_point_go() {
    let now = Timestamp::from_micros(1_000_000_000_000);
    // Why; how far the wall goes; how long the store is open; whether the point may go.
    for (why, wall, open_for, goes) in [
        ("nothing passed", Duration::ZERO, Duration::ZERO, false),
        ("the wall was set forward", 400 * DAY, HOUR, false),
        ("the wall stood still", Duration::ZERO, 3 * DAY, false),
        ("both, a little too little", DAY - HOUR, DAY - HOUR, false),
        ("both have passed", DAY, DAY, true),
    ] {
        let (world, store, source, point) = scene();
        let early = store.lock(point.id, DAY);
        assert!(matches!(early, Err(ReplicaError::NoPoint { .. })), "no time was told yet: {early:?}");
        store.pass_time(now, Duration::ZERO).expect("time passes");
        store.lock(point.id, DAY).expect("it is locked");
        // A person changes nothing about it, nor does a shorter lock.
        store.mark(point.id, |mark| (mark.pinned, mark.lock) = (false, None)).expect("it is marked");
        store.lock(point.id, HOUR).expect("it is locked");
        for _ in 0..10 {
            store.pass_time(now.plus(wall), open_for / 10).expect("time passes");
        }
        squeeze(&store);
        assert_eq!(is_there(&store, &point), !goes, "{why}");
        assert_eq!(store.locked().is_empty(), goes, "{why}");
        source.check(&store, Sequence(1), why);
        // After a start every lock holds until it is told what time it is; what was on record counts.
        drop(store);
        let store = open(world);
        squeeze(&store);
        assert_eq!(is_there(&store, &point), !goes, "{why}, after a start");
        store.pass_time(now.plus(wall), Duration::ZERO).expect("time passes");
        squeeze(&store);
        assert_eq!(is_there(&store, &point), !goes, "{why}, after a start, and told the time");
    }
}
