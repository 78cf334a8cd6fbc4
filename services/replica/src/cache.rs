//! Verified, decompressed content in memory: bounded in bytes, shared by all stores, views and overlays of a
//! process.
//!
//! What is here was checked when it was read, and is never changed: a key says what it is content *of*. Only
//! base blocks change under their key, when a fold writes them; the fold forgets them while it holds the base.
//!
//! Eviction is second chance: what was used since it was last looked at stays once more. So one pass over
//! a whole disk does not drive out what a machine reads again and again.

use crate::extents::Run;
use crate::view::Source;
use bytes::Bytes;
use continuum_model::units::{DiskIndex, FrameNumber};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What the cache of a process may take: this part of the memory that the process may have, within bounds.
const MEMORY_PART: u64 = 16;
const PROCESS_BYTES_MIN: u64 = 256 << 20;
const PROCESS_BYTES_MAX: u64 = 2 << 30;
const GROUPS: &str = "/sys/fs/cgroup";
/// What an entry takes beside its content.
const ENTRY_BYTES: usize = 96;

/// A store or a view, as keys name it. Never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner(u64);

impl Owner {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What something is content of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    /// A frame's payload.
    Frame(Owner, FrameNumber),
    /// A block of a base image; empty: zeroes.
    Block(Owner, DiskIndex, u64),
    /// A stretch of a disk of a view, read ahead.
    Chunk(Owner, DiskIndex, u64),
    /// Which runs a view has in a region of a disk, in a generation of its store's index.
    Map(Owner, DiskIndex, u64, u64),
}

/// Content.
#[derive(Clone)]
pub(crate) enum Content {
    Bytes(Bytes),
    Runs(Arc<[Run<Source>]>),
}

impl Content {
    fn cost(&self) -> usize {
        ENTRY_BYTES
            + match self {
                Self::Bytes(bytes) => bytes.len(),
                Self::Runs(runs) => size_of_val::<[_]>(runs),
            }
    }
}

/// A bounded store of content.
pub struct Cache {
    bytes_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: HashMap<Key, Slot>,
    /// In the order of their coming; may name what was forgotten.
    order: VecDeque<Key>,
    bytes: usize,
}

struct Slot {
    content: Content,
    used: bool,
}

impl Cache {
    /// A cache of its own, for whoever wants another bound than the process's.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, inner: Mutex::default() })
    }

    /// The one that all stores of this process share unless told otherwise.
    pub fn of_process() -> Arc<Self> {
        static CACHE: OnceLock<Arc<Cache>> = OnceLock::new();
        CACHE
            .get_or_init(|| {
                let part = (memory() / MEMORY_PART).clamp(PROCESS_BYTES_MIN, PROCESS_BYTES_MAX);
                Self::new(part as usize)
            })
            .clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: Key) -> Option<Content> {
        let mut inner = self.lock();
        let slot = inner.slots.get_mut(&key)?;
        slot.used = true;
        Some(slot.content.clone())
    }

    pub(crate) fn bytes_of(&self, key: Key) -> Option<Bytes> {
        match self.get(key)? {
            Content::Bytes(bytes) => Some(bytes),
            Content::Runs(_) => None,
        }
    }

    pub(crate) fn put(&self, key: Key, content: Content) {
        let cost = content.cost();
        if cost > self.bytes_max / 2 {
            return;
        }
        let mut inner = self.lock();
        inner.bytes += cost;
        match inner.slots.insert(key, Slot { content, used: false }) {
            Some(old) => inner.bytes -= old.content.cost(),
            None => inner.order.push_back(key),
        }
        while inner.bytes > self.bytes_max
            && let Some(oldest) = inner.order.pop_front()
        {
            match inner.slots.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    inner.order.push_back(oldest);
                }
                Some(_) => inner.forget(oldest),
                None => {}
            }
        }
    }

    pub(crate) fn forget(&self, keys: impl Iterator<Item = Key>) {
        let mut inner = self.lock();
        keys.for_each(|key| inner.forget(key));
        // Names of what is gone do not pile up.
        if inner.order.len() > 2 * inner.slots.len() + 1024 {
            let Inner { slots, order, .. } = &mut *inner;
            let mut seen = std::collections::HashSet::new();
            order.retain(|key| slots.contains_key(key) && seen.insert(*key));
        }
    }

    /// What it holds now, in bytes. Never more than it was made for.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }
}

/// The memory that this process may have: the machine's, or less where a control group says so.
fn memory() -> u64 {
    let machine = rustix::system::sysinfo();
    let mut least = (machine.totalram as u64).saturating_mul(machine.mem_unit.into());
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    for group in Path::new(GROUPS).join(own).ancestors().take_while(|group| group.starts_with(GROUPS)) {
        // Where nothing is said, or "max", there is no limit.
        let limit = std::fs::read_to_string(group.join("memory.max")).unwrap_or_default();
        least = limit.trim().parse().map_or(least, |limit| least.min(limit));
    }
    least
}

impl Inner {
    fn forget(&mut self, key: Key) {
        if let Some(slot) = self.slots.remove(&key) {
            self.bytes -= slot.content.cost();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(block: u64) -> Key {
        Key::Block(Owner(1), DiskIndex(0), block)
    }

    #[test]
    fn it_never_holds_more_than_it_may_and_keeps_what_is_used() {
        let cache = Cache::new(10 * (1000 + ENTRY_BYTES));
        for block in 0..100 {
            cache.put(key(block), Content::Bytes(vec![block as u8; 1000].into()));
            assert!(cache.bytes() <= 10 * (1000 + ENTRY_BYTES));
            assert!(cache.bytes_of(key(0)).is_some(), "what is used each time stays, at block {block}");
        }
        assert!(cache.bytes_of(key(50)).is_none(), "what was used once went");
        cache.forget((0..100).map(key));
        assert_eq!(cache.bytes(), 0);
        for round in 0..5000 {
            cache.put(key(1), Content::Bytes(vec![1; 100].into()));
            cache.forget(std::iter::once(key(1)));
            assert!(cache.lock().order.len() <= 1026, "names of what is gone pile up: round {round}");
        }
    }

    #[test]
    fn what_would_take_half_of_it_is_not_kept() {
        let cache = Cache::new(1000);
        cache.put(key(1), Content::Bytes(vec![1; 600].into()));
        assert!(cache.bytes_of(key(1)).is_none());
    }
}
