//! A guest's requests to one disk of a source: applied to the disk and appended to the feed, in one order.
//!
//! ```text
//! write:  range lock ─► extent active ─► bits set (map file) ─► pwrite ─► feed (sequence, moment) ─► (hold) ─► unlock ─► ack
//! read:   range lock, shared ─► pread ─► unlock
//! ```
//!
//! An extent that is not active needs a record in the activity log. Whoever finds that one is needed and none is
//! being written writes it, for all who wait; the others wait until it is durable.
//!
//! Applied before appended: what the feed holds is on the source. Both under one range lock: overlapping
//! writes stand in the feed in the order in which they reached the disk, and nobody reads what is not in the
//! feed yet. The feed's own lock is held for a copy of the data, never for I/O on the disk; the number and
//! the moment are given under it, so the order of the feed is an order in which the requests could have
//! been carried out one by one.
//!
//! A range of zeroes longer than 32 MiB goes in pieces: none holds the feed for long.

use crate::activity::Record;
use crate::compare::AskReplica;
use crate::disk::SourceDisk;
use crate::feed::{Applied, Events, Feed};
use crate::hold::Hold;
use crate::nbd::{BlockDevice, Extent};
use crate::ranges::RangeLocks;
use crate::scan::Scanner;
use continuum_model::feed::frame::data_sum;
use continuum_model::id::MachineId;
use continuum_model::units::DiskIndex;
use continuum_model::world::Clock;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The longest piece of a range of zeroes.
const ZERO_PIECE: u64 = 32 << 20;

/// What guests did, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestIo {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes, and ranges of zeroes.
    pub writes: u64,
    /// Bytes of those.
    pub written_bytes: u64,
    /// Flushes, and writes that had to be durable.
    pub flushes: u64,
    /// Requests that the disk failed.
    pub errors: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    pub(crate) fn now(&self) -> GuestIo {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GuestIo {
            reads: of(&self.reads),
            read_bytes: of(&self.read_bytes),
            writes: of(&self.writes),
            written_bytes: of(&self.written_bytes),
            flushes: of(&self.flushes),
            errors: of(&self.errors),
        }
    }
    fn count<T>(
        &self,
        calls: &AtomicU64,
        bytes: Option<(&AtomicU64, u64)>,
        done: io::Result<T>,
    ) -> io::Result<T> {
        calls.fetch_add(1, Ordering::Relaxed);
        if let Some((counter, bytes)) = bytes {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
        if done.is_err() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        done
    }
}

/// Called when the answer to "which frame is next" may have changed. Must not call the source.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// What guests, the agent and the threads of a source share.
pub(crate) struct Shared {
    pub(crate) machine: MachineId,
    pub(crate) disks: Vec<Part>,
    pub(crate) sizes: Vec<u64>,
    feed: Mutex<Feed>,
    /// Somebody waits for a frame.
    pub(crate) frames: Condvar,
    pub(crate) ticker: Condvar,
    pub(crate) injector: Condvar,
    pub(crate) stager: Condvar,
    pub(crate) keeper: Condvar,
    /// Whoever drives cycles, and who waits for something of theirs.
    pub(crate) cycler: Condvar,
    /// A record of an activity log was written.
    recorded: Condvar,
    pub(crate) waker: Mutex<Option<Waker>>,
    pub(crate) ask_replica: Mutex<Option<AskReplica>>,
    pub(crate) scanner: Scanner,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) io: Counters,
    stop: AtomicBool,
    closed: AtomicBool,
    /// The machine moves elsewhere: what it still wants to write is refused.
    halted: AtomicBool,
    /// Acknowledgements wait for other machines.
    pub(crate) hold: Hold,
}

/// One disk.
pub(crate) struct Part {
    pub(crate) disk: Box<dyn SourceDisk>,
    pub(crate) locks: RangeLocks,
    poisoned: AtomicBool,
}

impl Part {
    pub(crate) fn new(disk: Box<dyn SourceDisk>) -> Self {
        Self { disk, locks: RangeLocks::default(), poisoned: AtomicBool::new(false) }
    }

    /// A flush that failed once is never believed again: the kernel may have dropped the pages.
    pub(crate) fn flush(&self) -> io::Result<()> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "a flush of this disk failed before: restart the agent after the disk was seen to",
            ));
        }
        self.disk.flush().inspect_err(|_| self.poisoned.store(true, Ordering::Release))
    }
}

impl Shared {
    pub(crate) fn new(
        machine: MachineId,
        disks: Vec<Part>,
        sizes: Vec<u64>,
        feed: Feed,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            machine,
            disks,
            sizes,
            feed: Mutex::new(feed),
            frames: Condvar::new(),
            ticker: Condvar::new(),
            injector: Condvar::new(),
            stager: Condvar::new(),
            keeper: Condvar::new(),
            cycler: Condvar::new(),
            recorded: Condvar::new(),
            waker: Mutex::new(None),
            ask_replica: Mutex::new(None),
            scanner: Scanner::default(),
            clock,
            io: Counters::default(),
            stop: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            hold: Hold::default(),
        }
    }

    pub(crate) fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the feed and tells those who wait for what came of it.
    pub(crate) fn with_feed<T>(&self, act: impl FnOnce(&mut Feed) -> T) -> T {
        let mut feed = self.feed();
        let out = act(&mut feed);
        self.tell(&mut feed);
        out
    }

    /// With the lock held, so that nobody misses it between looking and waiting.
    pub(crate) fn tell(&self, feed: &mut Feed) {
        let Events { opened, frames, inject, stage, cycle } = feed.take_events();
        if opened {
            self.ticker.notify_one();
        }
        if inject {
            self.injector.notify_one();
        }
        if cycle {
            self.cycler.notify_all();
        }
        if stage {
            self.stager.notify_one();
        }
        if frames {
            self.frames.notify_all();
            if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
                waker();
            }
        }
    }

    /// Before a change is applied.
    fn begin(&self, (disk, offset, length): (DiskIndex, u64, u64), door: Door) -> io::Result<()> {
        let mut feed = self.feed();
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(io::Error::other("this disk is closed: its agent stops"));
            }
            if door == Door::Guest && self.halted.load(Ordering::Acquire) {
                let why = "this machine was moved elsewhere: its disks take no writes here";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            }
            if feed.begin(disk, offset, length) {
                self.tell(&mut feed);
                return Ok(());
            }
            let disk = usize::from(disk.0);
            feed = match feed.maps_mut()[disk].next_record() {
                Some(record) => {
                    drop(feed);
                    self.write_record(disk, &record);
                    self.feed()
                }
                None => self.recorded.wait(feed).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Makes a record of a disk's activity log durable.
    pub(crate) fn write_record(&self, disk: usize, record: &Record) {
        let done = record.settle().and_then(|()| record.write());
        self.feed().maps_mut()[disk].recorded(record, done);
        self.recorded.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Refuses changes from now on, and returns when those under way are done.
    pub(crate) fn close(&self) {
        self.shut(&self.closed);
    }

    /// Refuses guests' changes until [`Shared::release`], and returns when those under way are done.
    pub(crate) fn halt(&self) {
        self.shut(&self.halted);
    }

    /// Takes changes again.
    pub(crate) fn release(&self) {
        let _feed = self.feed();
        self.halted.store(false, Ordering::Release);
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::Acquire)
    }

    fn shut(&self, door: &AtomicBool) {
        {
            let _feed = self.feed();
            door.store(true, Ordering::Release);
        }
        self.drain();
    }

    /// Returns when what is under way on the disks now is done.
    pub(crate) fn drain(&self) {
        for (part, size) in self.disks.iter().zip(&self.sizes) {
            drop(part.locks.exclusive(0, *size));
        }
    }

    /// Ends the threads.
    pub(crate) fn stop(&self) {
        let _feed = self.feed();
        self.stop.store(true, Ordering::Release);
        for waiting in [&self.frames, &self.ticker, &self.injector, &self.stager, &self.keeper, &self.cycler]
        {
            waiting.notify_all();
        }
    }
}

/// A disk of a source as guests see it.
pub(crate) struct SplitDisk {
    shared: Arc<Shared>,
    index: usize,
    door: Door,
}

/// Who changes a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// A guest. Refused while the machine is elsewhere.
    Guest,
    /// What the machine wrote elsewhere, on its way home.
    Home,
}

impl SplitDisk {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Option<Self> {
        (index < shared.disks.len()).then_some(Self { shared, index, door: Door::Guest })
    }

    pub(crate) fn homeward(shared: Arc<Shared>, index: usize) -> Option<Self> {
        (index < shared.disks.len()).then_some(Self { shared, index, door: Door::Home })
    }

    fn part(&self) -> &Part {
        &self.shared.disks[self.index]
    }

    fn change<'a>(
        &self,
        offset: u64,
        length: u64,
        durable: bool,
        apply: impl FnOnce(&dyn SourceDisk) -> io::Result<()>,
        change: impl FnOnce(DiskIndex) -> Applied<'a>,
    ) -> io::Result<()> {
        let (shared, part, disk) = (&*self.shared, self.part(), DiskIndex(self.index as u16));
        let change = change(disk);
        let _held = part.locks.exclusive(offset, length);
        shared.scanner.before_change(shared, self.index, offset, length);
        shared.begin((disk, offset, length), self.door)?;
        if let Err(error) = apply(&*part.disk) {
            shared.with_feed(|feed| feed.failed(disk, offset, length, shared.clock.wall()));
            return Err(error);
        }
        let held = shared.with_feed(|feed| {
            feed.applied(disk, offset, change, shared.clock.wall());
            shared.hold.under_way()
        });
        let done = if durable { part.flush() } else { Ok(()) };
        if let Some(ticket) = held {
            shared.hold.wait(ticket, &*shared.clock);
        }
        done
    }
}

impl BlockDevice for SplitDisk {
    fn size(&self) -> u64 {
        self.shared.sizes[self.index]
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let io = &self.shared.io;
        let length = out.len() as u64;
        let _held = self.part().locks.shared(offset, length);
        io.count(&io.reads, Some((&io.read_bytes, length)), self.part().disk.read(offset, out))
    }

    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        let io = &self.shared.io;
        let length = data.len() as u64;
        let done = self.change(
            offset,
            length,
            durable,
            |disk| disk.write(offset, data),
            |disk| Applied::Write { data, sum: data_sum(disk, offset, data) },
        );
        io.count(&io.writes, Some((&io.written_bytes, length)), done)
    }

    fn flush(&self) -> io::Result<()> {
        self.shared.io.count(&self.shared.io.flushes, None, self.part().flush())
    }

    fn zero(&self, offset: u64, length: u64, may_trim: bool, durable: bool) -> io::Result<()> {
        let io = &self.shared.io;
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(ZERO_PIECE - at % ZERO_PIECE);
            let done = self.change(
                at,
                piece,
                durable && at + piece == end,
                |disk| disk.zero(at, piece, may_trim),
                |_| Applied::Zero { length: piece as u32 },
            );
            io.count(&io.writes, Some((&io.written_bytes, piece)), done)?;
            at += piece;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let _held = self.part().locks.shared(offset, length);
        self.part().disk.extents(offset, length, out)
    }
}
