//! The threads beside a guest's requests. None of them holds the feed's lock while it waits for a disk.
//!
//! - the **ticker** closes frames that are 20 ms old, sets a time mark when nothing happened for a while, and
//!   says once a second in the maps that the process lives. It never waits for a disk, so frames never do
//! - the **injector** sends stale regions, a run of at most 1 MiB at a time; after doubt it compares them first
//! - the **stager** moves frames that cannot leave from memory to disk
//! - the **keeper** looks once a second at the disks' sizes, flushes disks, and then clears bits in map files
//! - the **settler** syncs map files once a second while guests write, and lets what is idle leave the activity
//!   logs. Not the keeper's work: the flush of a disk can take long, and signs of life must reach the medium

use crate::disk::Stamp;
use crate::feed::Applied;
use crate::feed::compare::Compare;
use crate::map::ChangeMap;
use crate::source::Timing;
use crate::splitter::Shared;
use continuum_model::feed::Barrier;
use continuum_model::feed::frame::data_sum;
use continuum_model::health::Mode;
use continuum_model::units::{DiskIndex, REGION_BYTES, Sequence};
use std::io;
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the keeper does its work, and the ticker shows signs of life.
const EVERY: Duration = Duration::from_secs(1);
/// How long an unreadable place, or staging that failed, is left alone.
const AGAIN: Duration = Duration::from_secs(1);
/// One injected read.
const INJECT_BYTES: u64 = 1 << 20;

fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>, most: Duration) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
}

pub(crate) fn tick(shared: &Shared, timing: Timing) {
    let mut opened: Option<Duration> = None;
    let mut newest = (Sequence(0), shared.clock.uptime());
    let mut alive = shared.clock.uptime();
    let mut feed = shared.feed();
    while !shared.is_stopping() {
        let now = shared.clock.uptime();
        if now.saturating_sub(alive) >= EVERY {
            alive = now;
            drop(feed);
            let stamps = shared.stamps();
            feed = shared.feed();
            for (map, stamp) in feed.maps_mut().iter_mut().zip(stamps) {
                if let Some(stamp) = stamp {
                    map.alive(stamp, shared.clock.wall());
                }
            }
        }
        if feed.newest().0 != newest.0 {
            newest = (feed.newest().0, now);
        }
        let shipping = feed.mode().0 != Mode::Bitmap && !feed.is_interval();
        if shipping && now.saturating_sub(newest.1) >= timing.time_mark {
            feed.barrier(Barrier::time_mark(true), shared.clock.wall());
            feed.seal();
            newest = (feed.newest().0, now);
        }
        opened = if feed.has_open_frame() { opened.or(Some(now)) } else { None };
        if opened.is_some_and(|at| now.saturating_sub(at) >= timing.frame_age) {
            feed.seal();
            opened = None;
        }
        shared.tell(&mut feed);
        let due = match opened {
            Some(at) => (at + timing.frame_age).saturating_sub(now),
            None if shipping => (newest.1 + timing.time_mark).saturating_sub(now),
            None => EVERY,
        };
        let due = due.min((alive + EVERY).saturating_sub(now));
        feed = wait(&shared.ticker, feed, due.max(Duration::from_millis(1)));
    }
}

pub(crate) fn inject(shared: &Shared) {
    let mut buffer = Vec::new();
    let mut failed = false;
    let mut feed = shared.feed();
    while !shared.is_stopping() {
        if feed.next_comparison() != Compare::Nothing {
            drop(feed);
            let compared = shared.compare_next();
            feed = shared.feed();
            if compared == Some(Compare::Wait) && feed.next_comparison() == Compare::Wait {
                feed = shared.injector.wait(feed).unwrap_or_else(PoisonError::into_inner);
            }
        } else if let Some((disk, offset, length)) = feed.next_injection(INJECT_BYTES, &shared.sizes) {
            drop(feed);
            failed |= !shared.inject_run(disk, offset, length, &mut buffer);
            feed = shared.feed();
        } else if feed.injects() {
            // The end of a pass.
            if feed.finish_catching_up(shared.clock.wall()) {
                feed.seal();
                if !feed.is_interval() {
                    tracing::info!(machine = %shared.machine, "the replica has caught up");
                }
            } else if failed && feed.is_interval() {
                feed.cycle_unreadable();
            } else if failed {
                feed = wait(&shared.injector, feed, AGAIN);
            }
            failed = false;
            shared.tell(&mut feed);
        } else {
            feed = shared.injector.wait(feed).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

pub(crate) fn stage(shared: &Shared) {
    let mut feed = shared.feed();
    while !shared.is_stopping() {
        if let Some((number, envelope, place)) = feed.next_to_stage(shared.clock.wall(), false) {
            drop(feed);
            let written = place.write(&envelope);
            feed = shared.feed();
            match written {
                Ok(()) => {
                    feed.staged(number, place);
                    continue;
                }
                Err(error) => feed.stage_failed(&error),
            }
        }
        // A fault is tried again later; else whoever fills the memory says so.
        let due = if feed.queue().fault().is_some() { None } else { feed.stages_in(shared.clock.wall()) };
        feed = wait(&shared.stager, feed, due.unwrap_or(AGAIN).max(Duration::from_millis(1)));
    }
}

pub(crate) fn keep(shared: &Shared) {
    once_a_second(shared, || {
        shared.check_sizes();
        if let Err(error) = shared.store_clears() {
            tracing::warn!(machine = %shared.machine, %error, "cleared bits wait: a disk or the agent's own files could not be flushed");
        }
    });
}

pub(crate) fn settle(shared: &Shared) {
    once_a_second(shared, || {
        shared.settle();
        for disk in 0..shared.disks.len() {
            let idle = shared.feed().maps_mut()[disk].next_idle(shared.clock.uptime());
            if let Some(record) = idle {
                shared.write_record(disk, &record);
            }
        }
    });
}

fn once_a_second(shared: &Shared, mut work: impl FnMut()) {
    let mut next = shared.clock.uptime() + EVERY;
    loop {
        {
            let mut feed = shared.feed();
            loop {
                if shared.is_stopping() {
                    return;
                }
                let left = next.saturating_sub(shared.clock.uptime());
                if left.is_zero() {
                    break;
                }
                feed = wait(&shared.keeper, feed, left);
            }
        }
        work();
        next = shared.clock.uptime() + EVERY;
    }
}

impl Shared {
    /// What each disk looks like from outside; `None` where it does not tell.
    pub(crate) fn stamps(&self) -> Vec<Option<Stamp>> {
        self.disks.iter().map(|part| part.disk.stamp().ok()).collect()
    }

    /// Injects one run of regions. Returns whether all of it could be read.
    fn inject_run(&self, disk: DiskIndex, offset: u64, length: u64, buffer: &mut Vec<u8>) -> bool {
        if self.inject_range(disk, offset, length, buffer).is_ok() {
            return true;
        }
        // Something in it is bad: the rest must not suffer, and what is bad must be known exactly.
        let mut whole = true;
        let mut at = offset;
        while at < offset + length {
            let part = REGION_BYTES.min(offset + length - at);
            if let Err(error) = self.inject_range(disk, at, part, buffer) {
                whole = false;
                self.with_feed(|feed| feed.injection_failed(disk, at, part, &error));
                tracing::error!(machine = %self.machine, disk = disk.0, offset = at, length = part, %error,
                    "the source cannot be read here; nothing is sent in its place");
            }
            at += part;
        }
        whole
    }

    fn inject_range(
        &self,
        disk: DiskIndex,
        offset: u64,
        length: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        static ZEROES: [u8; REGION_BYTES as usize] = [0; REGION_BYTES as usize];
        let part = &self.disks[usize::from(disk.0)];
        let _held = part.locks.exclusive(offset, length);
        let mut extents = Vec::new();
        let hole = part.disk.extents(offset, length, &mut extents).is_ok()
            && !extents.is_empty()
            && extents.iter().all(|extent| !extent.data)
            && extents.iter().map(|extent| extent.length).sum::<u64>() >= length;
        if hole {
            let zero = Applied::Zero { length: length as u32 };
            self.with_feed(|feed| feed.inject(disk, offset, zero, self.clock.wall()));
            return Ok(());
        }
        buffer.resize(length as usize, 0);
        part.disk.read(offset, buffer)?;
        let is_zero = |region: &[u8]| region == &ZEROES[..region.len()];
        let mut rest = buffer.as_slice();
        let mut at = offset;
        while !rest.is_empty() {
            // The longest run of regions of one kind: zeroes cost no bytes.
            let mut regions = rest.chunks(REGION_BYTES as usize);
            let zero = regions.next().is_some_and(is_zero);
            let count = 1 + regions.take_while(|region| is_zero(region) == zero).count();
            let (run, after) = rest.split_at(rest.len().min(count * REGION_BYTES as usize));
            let content = if zero {
                Applied::Zero { length: run.len() as u32 }
            } else {
                Applied::Write { data: run, sum: data_sum(disk, at, run) }
            };
            self.with_feed(|feed| feed.inject(disk, at, content, self.clock.wall()));
            at += run.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn check_sizes(&self) {
        for (index, (part, size)) in self.disks.iter().zip(&self.sizes).enumerate() {
            match part.disk.size() {
                Ok(now) if now == *size => {}
                Ok(now) => {
                    let reason = format!(
                        "disk size changed: disk {index} has {now} bytes, its replica {size}; points up to now keep their size; protect the machine again with the new size"
                    );
                    self.with_feed(|feed| feed.halt(&reason));
                }
                Err(error) => {
                    tracing::error!(machine = %self.machine, disk = index, %error, "the disk does not say its size any more");
                }
            }
        }
    }

    /// Makes the maps' bits durable, where they are not.
    pub(crate) fn settle(&self) {
        for disk in 0..self.disks.len() {
            let Some(settle) = self.feed().maps()[disk].next_settle() else { continue };
            let done = settle.run();
            self.feed().maps_mut()[disk].settled(&settle, done);
        }
    }

    /// Makes every bit that is set now durable. A map that cannot be synced is given up, which its disk's next start
    /// takes for doubt.
    pub(crate) fn settle_now(&self) {
        for disk in 0..self.disks.len() {
            let settle = self.feed().maps()[disk].settle_now();
            let done = settle.run();
            self.feed().maps_mut()[disk].settled(&settle, done);
        }
    }

    /// Stores cleared bits in the maps' files. What a cleared bit relies on is durable before: the disk's
    /// content, and how far the replica was, so that a replica that goes back in time is noticed.
    pub(crate) fn store_clears(&self) -> io::Result<()> {
        let (store, flush) = {
            let mut feed = self.feed();
            if feed.maps().iter().any(ChangeMap::is_unsettled) {
                // What is stored here makes a replica known; first a power cut must not forget what that one lacks.
                return Ok(());
            }
            let flush: Vec<bool> = feed.maps().iter().map(ChangeMap::has_clears).collect();
            feed.maps_mut().iter_mut().for_each(ChangeMap::before_flush);
            (feed.progress_to_store(), flush)
        };
        let mut done = store.as_ref().map_or(Ok(()), |store| store.write());
        if done.is_ok() {
            done = self
                .disks
                .iter()
                .zip(&flush)
                .filter(|(_, flush)| **flush)
                .try_for_each(|(part, _)| part.flush());
        }
        let mut feed = self.feed();
        if let (Ok(()), Some(store)) = (&done, &store) {
            feed.progress_stored(store);
        }
        for map in feed.maps_mut() {
            if done.is_ok() { map.after_flush() } else { map.flush_failed() }
        }
        done
    }
}
