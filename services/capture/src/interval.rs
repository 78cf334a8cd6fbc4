//! Interval capture: a source whose changes are not seen one by one, but come in **cycles**.
//!
//! [`ChangeTracker`] is what a front end implements; [`crate::Source::open_interval`] makes a source of it. Every
//! cycle goes through the one feed there is, as injected reads:
//!
//! ```text
//! tracker                       capture                                              feed
//! freeze ─► views, changed ───► bits set in the change map, map synced
//! forget ◄────────────────────── (only now may it forget what changed up to the freeze)
//!                               Break ─► regions read from the views, injected ────► records, none of them legal
//!                               all of them in ─► closing barriers ────────────────► legal again, at the freeze's moment
//! end ◄────────────────────────── views are no longer needed
//! ```
//!
//! **The contract of a tracker.**
//!
//! 1. The views of one freeze show all disks of the machine as they were at one instant, `moment` or later, and not
//!    later than the return of [`ChangeTracker::freeze`]; they do not change until [`ChangeTracker::end`]. A tracker
//!    that cannot promise that says [`Consistency::Fuzzy`]: its cycles are sent, no position of them is ever
//!    legal, and so none is offered.
//! 2. `changed` covers whatever may differ between this freeze and the last one after which
//!    [`ChangeTracker::forget`] was called; more is allowed, less never. Cycles that ended otherwise, crashes of
//!    the agent and restarts included, lose nothing of that. Who cannot say so says [`Changed::Unknown`] with the
//!    reason: everything is compared with the replica then, and what differs is sent.
//! 3. What an earlier process left behind (views, jobs, exports) is cleared away by the next `freeze`.
//! 4. Every call ends within a bounded time, also where the machine does not answer.
//!
//! **What capture promises.** A cycle is atomic: between its first injected read and its closing barrier no position is
//! legal, and a cycle that is cut (the tracker fails, the stream is lost for good, staging is exhausted, the process
//! dies) is never closed; what it did not bring over is still in the change map, and the next one sends it together
//! with what changed since. The closing barrier carries the moment of the freeze, so the age of the newest
//! recoverable moment is told as it is. Between cycles no time marks are set: nobody looked.

use crate::disk::{Activity, SourceDisk, Stamp};
use crate::nbd::Extent;
use continuum_model::time::Timestamp;
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Follows what changes on the disks of one machine, and freezes them on demand. See the headline for its contract.
pub trait ChangeTracker: Send {
    /// What is between two cycles where the policy does not say.
    fn default_interval(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// The sizes of the machine's disks, in their order.
    ///
    /// Errors: the machine is not there now.
    fn sizes(&mut self) -> Result<Vec<u64>, String>;

    /// Freezes all disks at one instant. With `quiesce`, applications and file systems are asked to be at rest at that
    /// instant, and are let go on before this returns, whatever happens.
    ///
    /// Errors: why not; nothing was forgotten, and nothing is left behind that the next call does not clear away.
    fn freeze(&mut self, quiesce: bool) -> Result<Frozen, String>;

    /// What changed up to the last freeze is durable in the change map: it need not be remembered any more.
    ///
    /// Errors: it could not be forgotten; it comes again with the next freeze, which is no harm.
    fn forget(&mut self) -> Result<(), String>;

    /// Called a few times a second while the views are in use.
    ///
    /// Errors: the views cannot be relied on any more, or cost too much: this cycle ends here, unfinished.
    fn check(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// The views are not needed any more.
    fn end(&mut self);

    /// Brings the machine to a stop, so that nothing changes any more: a planned failover. Called again after each
    /// restart, and before each freeze, for as long as it holds. Returns how it was stopped.
    ///
    /// Errors: it runs on.
    fn stop_machine(&mut self) -> Result<String, String>;

    /// Undoes [`ChangeTracker::stop_machine`].
    ///
    /// Errors: it is still stopped.
    fn start_machine(&mut self) -> Result<(), String>;
}

/// All disks of a machine at one instant.
pub struct Frozen {
    /// Not later than that instant: every write that was acknowledged before it is in.
    pub moment: Timestamp,
    /// What a machine would find that starts from it.
    pub consistency: Consistency,
    /// The disks, in their order.
    pub disks: Vec<FrozenDisk>,
}

/// What the points of a cycle are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Consistency {
    /// What a power cut would leave. The text says why it is no more than that, where more was asked for.
    Crash(Option<String>),
    /// Applications and file systems were at rest, and both freeze and thaw were confirmed.
    Application,
    /// No state that ever was; the text says why. Never legal, never offered.
    Fuzzy(String),
}

/// One disk of it.
pub struct FrozenDisk {
    /// Its content.
    pub view: Arc<dyn FrozenView>,
    /// Its size now.
    pub size: u64,
    /// What may differ from what was frozen before.
    pub changed: Changed,
}

/// What may have changed on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// These ranges of bytes, in any order.
    Ranges(Vec<Range<u64>>),
    /// Nobody knows, for this reason.
    Unknown(String),
}

/// A disk as it was.
pub trait FrozenView: Send + Sync {
    /// Fills `out`.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// What of a range holds data; what does not reads as zeroes.
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let _ = offset;
        out.push(Extent { length, data: true });
        Ok(())
    }
}

/// The place of a disk in a source: shows the view of the cycle under way, and nothing between cycles.
pub(crate) struct Slot {
    size: u64,
    view: RwLock<Option<Arc<dyn FrozenView>>>,
}

impl Slot {
    pub(crate) const fn new(size: u64) -> Self {
        Self { size, view: RwLock::new(None) }
    }

    pub(crate) fn show(&self, view: Option<Arc<dyn FrozenView>>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    fn view(&self) -> io::Result<Arc<dyn FrozenView>> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner).clone();
        view.ok_or_else(|| io::Error::other("no cycle is under way: there is no frozen view of this disk"))
    }
}

fn not_written_here() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "this disk is only looked at: it is not written through here",
    )
}

impl SourceDisk for Arc<Slot> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
    /// Whether it is the same disk, and what happened to it, its tracker knows.
    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp { identity: u64::from_le_bytes(*b"interval"), activity: Activity::Unknown })
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.view()?.read(offset, out)
    }
    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(not_written_here())
    }
    fn zero(&self, _offset: u64, _length: u64, _may_trim: bool) -> io::Result<()> {
        Err(not_written_here())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        self.view()?.extents(offset, length, out)
    }
}
