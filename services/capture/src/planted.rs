//! Bugs on purpose, to know that the simulation notices them. In whatever is no unit test this is nothing at all:
//! [`is`] is `false` when it is compiled.

/// A bug that somebody could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Writes go on before the record of their extents is synced.
    RecordNotSynced,
    /// An extent leaves the log while its bits may be in caches only.
    EvictedUnsettled,
    /// A record that was written in part counts.
    TornBelieved,
    /// A log of another generation of the map counts.
    OtherGenerationBelieved,
    /// A log that ends before the record that the map's header names counts.
    OlderLogBelieved,
    /// Bits are cleared in the file before the disk is flushed.
    ClearedUnflushed,
    /// Another replica counts as known while the bits that say so are in caches only.
    DoubtNotSettled,
    /// At the start the log is emptied before what it said is durable in the map.
    EmptiedTooSoon,
}

#[cfg(not(test))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use switched::{is, plant};

#[cfg(test)]
mod switched {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Plants a bug for this thread, until what is returned is dropped.
    pub(crate) fn plant(bug: Bug) -> impl Drop {
        struct Weeded;
        impl Drop for Weeded {
            fn drop(&mut self) {
                PLANTED.set(None);
            }
        }
        PLANTED.set(Some(bug));
        Weeded
    }
}
