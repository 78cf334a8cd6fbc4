//! News for whoever watches: the present state of every entity, and the newest changes in order.
//!
//! Every change has a sequence number. A watcher keeps its place; when the ring no longer holds the next
//! change after its place (it was slow, or away too long), it is given the whole state again. Nothing here
//! grows with the slowness of a watcher.

use continuum_proto::v1 as pb;
use pb::entity::Entity as Any;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Changes kept for watchers that come back.
const RING: usize = 4096;
/// Events and jobs kept in memory for snapshots.
const EVENTS: usize = 1000;
const JOBS: usize = 500;
/// Changes handed out at a time.
const BATCH: usize = 256;

/// What a watcher is given next.
pub(crate) enum Next {
    /// Everything, as of this sequence.
    Whole(u64, Vec<Arc<pb::Entity>>),
    /// The changes after its place; may be empty.
    Changes(Vec<(u64, Arc<pb::Entity>)>),
}

/// The hub.
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    sequence: u64,
    present: BTreeMap<(i32, String), Arc<pb::Entity>>,
    /// How many of each kind are present.
    counts: BTreeMap<i32, usize>,
    ring: VecDeque<(u64, Arc<pb::Entity>)>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { inner: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl Hub {
    /// Tells of an entity; what is already known is not told again.
    pub(crate) fn put(&self, entity: Any) {
        let (kind, key) = key_of(&entity);
        let entity = Arc::new(pb::Entity { entity: Some(entity) });
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.present.get(&(kind as i32, key.clone())).is_some_and(|known| **known == *entity) {
            return;
        }
        if inner.present.insert((kind as i32, key), entity.clone()).is_none() {
            *inner.counts.entry(kind as i32).or_default() += 1;
        }
        inner.push(entity);
        let most = match kind {
            pb::Kind::Event => EVENTS,
            pb::Kind::Job => JOBS,
            _ => usize::MAX,
        };
        if most != usize::MAX {
            inner.keep_newest(kind, most);
        }
        let sequence = inner.sequence;
        drop(inner);
        self.changed.send_replace(sequence);
    }

    /// Everything known, as of now.
    pub(crate) fn snapshot(&self) -> (u64, Vec<Arc<pb::Entity>>) {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        (inner.sequence, inner.present.values().cloned().collect())
    }

    /// What comes after a place.
    pub(crate) fn after(&self, place: Option<u64>) -> Next {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = inner.ring.front().map_or(inner.sequence + 1, |(sequence, _)| *sequence);
        match place {
            Some(place) if place <= inner.sequence && place + 1 >= oldest => {
                let skip = usize::try_from(place + 1 - oldest).unwrap_or(usize::MAX);
                Next::Changes(inner.ring.iter().skip(skip).take(BATCH).cloned().collect())
            }
            _ => Next::Whole(inner.sequence, inner.present.values().cloned().collect()),
        }
    }

    /// Wakes whenever something changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Inner {
    fn push(&mut self, change: Arc<pb::Entity>) {
        self.sequence += 1;
        self.ring.push_back((self.sequence, change));
        if self.ring.len() > RING {
            self.ring.pop_front();
        }
    }

    /// Old events and jobs leave memory; they stay in the store, so nobody is told that they are gone.
    fn keep_newest(&mut self, kind: pb::Kind, most: usize) {
        let kind = kind as i32;
        let range = (kind, String::new())..(kind + 1, String::new());
        while self.counts.get(&kind).is_some_and(|count| *count > most) {
            let Some(oldest) = self.present.range(range.clone()).next().map(|(key, _)| key.clone()) else {
                return;
            };
            self.present.remove(&oldest);
            self.counts.entry(kind).and_modify(|count| *count -= 1);
        }
    }
}

/// The kind of an entity.
pub(crate) fn kind_of(entity: &Any) -> pb::Kind {
    key_of(entity).0
}

/// Kind and key; keys of events and jobs sort by age.
fn key_of(entity: &Any) -> (pb::Kind, String) {
    match entity {
        Any::Site(site) => (pb::Kind::Site, site.id.clone()),
        Any::Server(server) => (pb::Kind::Server, server.id.clone()),
        Any::Machine(machine) => (pb::Kind::Machine, machine.id.clone()),
        Any::Policy(policy) => (pb::Kind::Policy, policy.id.clone()),
        Any::Plan(plan) => (pb::Kind::Plan, plan.name.clone()),
        Any::Group(group) => (pb::Kind::Group, group.name.clone()),
        Any::Job(job) => (pb::Kind::Job, job.id.clone()),
        Any::Alert(alert) => (pb::Kind::Alert, alert.id.clone()),
        Any::Event(event) => (pb::Kind::Event, format!("{:020}", event.id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64) -> Any {
        Any::Event(pb::Event { id, ..Default::default() })
    }

    #[test]
    fn a_watcher_gets_every_change_once_and_in_order_or_everything_again() {
        let hub = Hub::default();
        for id in 1..=10 {
            hub.put(event(id));
        }
        hub.put(event(10)); // the same again: no news
        let Next::Changes(changes) = hub.after(Some(4)) else { panic!("the ring holds 5 to 10") };
        assert_eq!(changes.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [5, 6, 7, 8, 9, 10]);
        assert!(matches!(hub.after(Some(10)), Next::Changes(changes) if changes.is_empty()));
        for (why, place) in [("never here", None), ("from the future", Some(11))] {
            assert!(matches!(hub.after(place), Next::Whole(10, all) if all.len() == 10), "{why}");
        }
        for id in 11..=(RING as u64 + 20) {
            hub.put(event(id));
        }
        let Next::Whole(_, all) = hub.after(Some(5)) else { panic!("the ring has lost 6") };
        assert_eq!(all.len(), EVENTS, "memory stays bounded");
    }
}
