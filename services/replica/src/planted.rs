//! Bugs on purpose, to know that the simulation notices them. In whatever is no unit test this is nothing at all:
//! [`is`] is `false` when it is compiled.

/// A bug that somebody could make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Frames are acknowledged before they are synced.
    AckBeforeSync,
    /// A new segment's entry is not synced.
    NoFolderSync,
    /// After a failed sync another one is tried, and believed.
    SyncTriedAgain,
    /// What an earlier process wrote is synced at the start, but not written again.
    TailNotWritten,
    /// After a compaction an overlay's new file is not synced.
    CompactedUnsynced,
    /// A block of the base that does not match its sum is served as zeroes.
    BadBlockAsZeroes,
    /// A frame that does not follow the last one is taken.
    GapTaken,
    /// A writer of an old epoch is heard.
    OldEpochTaken,
    /// A fold goes below an open view.
    LeaseIgnored,
    /// A fold goes below a pinned point.
    PinIgnored,
    /// A fold writes the base without a redo.
    NoRedo,
    /// The redo goes before what it wrote is durable.
    BaseNotSynced,
    /// A folded block stays in the cache as it was.
    StaleBlock,
    /// A moment is told as the record after it.
    OneTooFar,
    /// A stretch under repair is offered.
    RepairOffered,
    /// A flush of an overlay does not sync.
    OverlayNotSynced,
    /// Zeroes are not heeded when a region's map is made.
    ZeroesForgotten,
    /// A small file is renamed over the old one before it is synced.
    RenamedUnsynced,
    /// A stretch is folded in slices while the base's own position is still offered.
    BaseKeptWhileSliced,
    /// A view goes on with what it looked up before records moved.
    StaleMap,
    /// A rewritten segment is renamed into place before it is synced.
    RewrittenUnsynced,
    /// A stretch is thinned below an open view.
    ThinnedUnderView,
    /// A pinned point is thinned away.
    ThinnedPin,
    /// What a stretch overwrote with zeroes comes back when it is thinned.
    ThinnedZeroes,
    /// After a fold that failed half-way older positions are opened as before.
    HalfFoldForgotten,
}

#[cfg(not(test))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use switched::is;

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

#[cfg(test)]
#[path = "../tests/world/mod.rs"]
mod world;

#[cfg(test)]
mod tests {
    use super::switched::plant;
    use super::world::{Options, run};
    use super::*;
    use continuum_replica::medium::Lie;

    /// Seeds until a bug must have been noticed.
    const SEEDS: u64 = 400;

    fn noticed(what: impl std::fmt::Debug, options: &Options) -> String {
        (0..SEEDS)
            .find_map(|seed| run(seed, options).err())
            .unwrap_or_else(|| panic!("{what:?} was not noticed in {SEEDS} seeds"))
    }

    #[test]
    fn every_planted_bug_is_noticed() {
        use Bug as B;
        let bugs = [
            B::AckBeforeSync,
            B::NoFolderSync,
            B::SyncTriedAgain,
            B::TailNotWritten,
            B::CompactedUnsynced,
            B::BadBlockAsZeroes,
            B::GapTaken,
            B::OldEpochTaken,
            B::LeaseIgnored,
            B::PinIgnored,
            B::NoRedo,
            B::BaseNotSynced,
            B::StaleBlock,
            B::OneTooFar,
            B::RepairOffered,
            B::OverlayNotSynced,
            B::ZeroesForgotten,
            B::RenamedUnsynced,
            B::HalfFoldForgotten,
            B::BaseKeptWhileSliced,
            B::StaleMap,
            B::RewrittenUnsynced,
            B::ThinnedUnderView,
            B::ThinnedPin,
            B::ThinnedZeroes,
        ];
        for bug in bugs {
            let _planted = plant(bug);
            noticed(bug, &Options::default());
        }
    }

    #[test]
    fn a_medium_that_breaks_its_word_is_noticed() {
        use Lie as L;
        for lie in
            [L::FileSync, L::FolderSync, L::TornRename, L::StaleRead, L::LostWrite, L::MisdirectedWrite]
        {
            noticed(lie, &Options { lie: Some(lie), ..Options::default() });
        }
    }
}
