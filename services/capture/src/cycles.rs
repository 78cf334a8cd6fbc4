//! The thread that drives a [`ChangeTracker`]: when a cycle begins, what it closes with, what is told of it.
//!
//! Lives here: pace, late cycles, which points are due, stopping and starting the machine. Lives elsewhere: the contract
//! (`interval`), a cycle in the feed (`feed::interval`), reading and injecting (`background`).

use crate::feed::interval::{Answer, Closing, Intervals, Want};
use crate::interval::{ChangeTracker, Changed, Consistency, Frozen, Slot};
use crate::splitter::Shared;
use continuum_model::feed::{Barrier, BarrierKind};
use continuum_model::id::PointId;
use continuum_model::time::Timestamp;
use continuum_model::units::DiskIndex;
use continuum_model::world::SystemEntropy;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How often the views of a cycle are checked, and how late a stop of the process is noticed at most.
const CHECK: Duration = Duration::from_millis(250);
/// How soon a cycle that failed is tried again, at first and at last.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What was done when, since the start.
#[derive(Default)]
struct Pace {
    /// When the last cycle that was closed began.
    began: Option<Duration>,
    /// Since when no cycle was closed, though shipping was possible.
    waits_since: Option<Duration>,
    crash_point: Option<Duration>,
    app_point: Option<Duration>,
    /// Not before this.
    not_before: Duration,
    failed: u32,
    /// Why the last application-consistent point that was due is none.
    app_fault: Option<String>,
    late: Option<String>,
    cut: Option<String>,
}

/// What is to be done next.
enum Turn {
    Order(u64, Want),
    Cycle(Vec<(u64, Barrier, bool)>),
}

pub(crate) fn run(shared: &Shared, slots: &[Arc<Slot>], mut tracker: Box<dyn ChangeTracker>) {
    let mut pace = Pace::default();
    while let Some(turn) = next(shared, &*tracker, &mut pace) {
        match turn {
            Turn::Order(id, want) => {
                let done = match want {
                    Want::Stop => tracker.stop_machine().map(|how| {
                        tracing::info!(machine = %shared.machine, how, "the machine was stopped");
                    }),
                    Want::Start => tracker.start_machine(),
                    Want::Barrier { .. } => Ok(()),
                };
                answer(shared, id, done.map_or_else(Answer::Refused, |()| Answer::Done));
            }
            Turn::Cycle(wishes) => {
                let began = shared.clock.uptime();
                let done = cycle(shared, slots, &mut *tracker, &mut pace, &wishes);
                pace.told(shared, began, done, interval(shared, &*tracker));
            }
        }
    }
    for slot in slots {
        slot.show(None);
    }
    tracker.end();
}

fn intervals(shared: &Shared) -> Intervals {
    shared.feed().interval_mut().map(|interval| interval.intervals).unwrap_or_default()
}

fn interval(shared: &Shared, tracker: &dyn ChangeTracker) -> Duration {
    let wanted = intervals(shared).cycle;
    if wanted.is_zero() { tracker.default_interval() } else { wanted }
}

fn answer(shared: &Shared, id: u64, answer: Answer) {
    let mut feed = shared.feed();
    if let Some(interval) = feed.interval_mut() {
        interval.answer(id, answer);
    }
    shared.cycler.notify_all();
}

/// Waits for the next turn; `None`: the source closes.
fn next(shared: &Shared, tracker: &dyn ChangeTracker, pace: &mut Pace) -> Option<Turn> {
    let every = interval(shared, tracker);
    let mut feed = shared.feed();
    loop {
        let now = shared.clock.uptime();
        let may = feed.may_cycle();
        let needed = feed.needs_cycle();
        let interval = feed.interval_mut()?;
        if shared.is_stopping() {
            for (id, _) in interval.wishes.drain(..) {
                interval.answers.insert(id, Answer::Refused("the agent stops".into()));
            }
            shared.cycler.notify_all();
            return None;
        }
        if let Some(at) = interval.wishes.iter().position(|(_, want)| !matches!(want, Want::Barrier { .. })) {
            let (id, want) = interval.wishes.remove(at)?;
            return Some(Turn::Order(id, want));
        }
        if let Err(why) = may {
            pace.waits_since = None;
            for (id, _) in interval.wishes.drain(..) {
                interval.answers.insert(id, Answer::Refused(why.clone()));
            }
            shared.cycler.notify_all();
        } else {
            pace.waits_since.get_or_insert(now);
            let due = pace.began.is_none_or(|began| now >= began + every);
            if !interval.wishes.is_empty() || ((due || needed) && now >= pace.not_before) {
                let wishes = interval.wishes.drain(..).filter_map(|(id, want)| match want {
                    Want::Barrier { barrier, hold } => Some((id, barrier, hold)),
                    Want::Stop | Want::Start => None,
                });
                return Some(Turn::Cycle(wishes.collect()));
            }
        }
        let at = pace.began.map_or(now, |began| began + every).max(pace.not_before);
        let wait = at.saturating_sub(now).clamp(CHECK, Duration::from_secs(1));
        feed = shared.cycler.wait_timeout(feed, wait).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// One cycle. What was asked for is answered, whatever comes of it.
fn cycle(
    shared: &Shared,
    slots: &[Arc<Slot>],
    tracker: &mut dyn ChangeTracker,
    pace: &mut Pace,
    wishes: &[(u64, Barrier, bool)],
) -> Result<(), String> {
    let ended = frozen(shared, slots, tracker, pace, wishes);
    {
        let mut feed = shared.feed();
        let holds = wishes.iter().filter(|(_, _, hold)| *hold).count();
        if let Some(interval) = feed.interval_mut() {
            if ended.is_ok() {
                interval.holds = holds;
            }
            for (at, (id, ..)) in wishes.iter().enumerate() {
                let answer = match &ended {
                    // The first barrier is the cycle's own.
                    Ok(cut) => match cut.get(at + 1) {
                        Some(&(sequence, time)) => Answer::Cut(sequence, time),
                        None => Answer::Refused("the cycle makes no points".into()),
                    },
                    Err(why) => Answer::Refused(why.clone()),
                };
                interval.answer(*id, answer);
            }
        }
        shared.cycler.notify_all();
        while !shared.is_stopping() && feed.interval_mut().is_some_and(|interval| interval.holds > 0) {
            feed = shared.cycler.wait_timeout(feed, CHECK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
    for slot in slots {
        slot.show(None);
    }
    // Nobody reads the views any more after this, and nothing that was read from them is injected later.
    shared.drain();
    tracker.end();
    ended.map(drop)
}

fn frozen(
    shared: &Shared,
    slots: &[Arc<Slot>],
    tracker: &mut dyn ChangeTracker,
    pace: &mut Pace,
    wishes: &[(u64, Barrier, bool)],
) -> crate::feed::interval::Ended {
    if shared.is_halted() {
        tracker.stop_machine().map_err(|why| format!("the machine is to be stopped, and runs on: {why}"))?;
    }
    let wanted = intervals(shared);
    let now = shared.clock.uptime();
    let due = |every: Duration, last: Option<Duration>| {
        !every.is_zero() && last.is_none_or(|last| now.saturating_sub(last) >= every)
    };
    let quiesce = due(wanted.app_point, pace.app_point) && !shared.is_halted();
    let Frozen { moment, consistency, disks } = tracker.freeze(quiesce)?;
    if disks.len() != slots.len() {
        return Err(format!("the machine has {} disks, and {} are protected", disks.len(), slots.len()));
    }
    for (index, (disk, size)) in disks.iter().zip(&shared.sizes).enumerate() {
        if disk.size != *size {
            let reason = format!(
                "disk size changed: disk {index} has {} bytes, its replica {size}; points up to now keep their size; protect the machine again with the new size",
                disk.size
            );
            shared.with_feed(|feed| feed.halt(&reason));
            return Err(reason);
        }
    }
    let mut doubts = Vec::new();
    {
        let mut feed = shared.feed();
        for (index, (disk, size)) in disks.iter().zip(&shared.sizes).enumerate() {
            match &disk.changed {
                Changed::Ranges(ranges) => feed.note_changed(DiskIndex(index as u16), ranges, *size),
                Changed::Unknown(why) => {
                    feed.doubt_disk(DiskIndex(index as u16));
                    doubts.push(format!("disk {index}: {why}"));
                }
            }
        }
    }
    // Durable here before it is forgotten there: nothing else remembers it.
    shared.settle_now();
    if let Err(error) = tracker.forget() {
        tracing::warn!(machine = %shared.machine, error, "what changed is remembered twice, and sent again with the next cycle");
    }
    let doubt = (!doubts.is_empty()).then(|| doubts.join("; "));
    if let Some(why) = &doubt {
        tracing::info!(machine = %shared.machine, why, "what changed is not known: everything is compared");
    }
    for (slot, disk) in slots.iter().zip(disks) {
        slot.show(Some(disk.view));
    }
    let closing = closing(wanted, (moment, consistency), pace, (now, quiesce), wishes);
    let begun = shared.with_feed(|feed| {
        if let (Some(why), Some(interval)) = (&doubt, feed.interval_mut()) {
            // With its moment: the same thing may happen again.
            interval.doubt = Some(format!("{why} (found at {moment})"));
        }
        feed.begin_cycle(closing, doubt.as_deref(), shared.clock.wall())
    });
    begun?;
    let mut feed = shared.feed();
    loop {
        if let Some(ended) = feed.take_ended() {
            feed.seal();
            shared.tell(&mut feed);
            return ended;
        }
        if shared.is_stopping() {
            feed.cut_cycle("the agent stops");
            continue;
        }
        let waited = shared.cycler.wait_timeout(feed, CHECK).unwrap_or_else(PoisonError::into_inner);
        feed = waited.0;
        if waited.1.timed_out() {
            drop(feed);
            let checked = tracker.check();
            feed = shared.feed();
            if let Err(why) = checked {
                feed.cut_cycle(&why);
            }
        }
    }
}

/// What a cycle closes with: its own barrier, then those that were asked for.
fn closing(
    wanted: Intervals,
    (moment, consistency): (Timestamp, Consistency),
    pace: &mut Pace,
    (now, quiesce): (Duration, bool),
    wishes: &[(u64, Barrier, bool)],
) -> Closing {
    let every = wanted.crash_point;
    let crash_due = !every.is_zero() && pace.crash_point.is_none_or(|last| now.saturating_sub(last) >= every);
    if quiesce {
        pace.app_point = Some(now);
    }
    let own = |kind: BarrierKind, name: String| Barrier {
        kind,
        consistent: true,
        point: Some(PointId::make(moment, &mut SystemEntropy)),
        name,
    };
    let first = match consistency {
        Consistency::Fuzzy(why) => return Closing::Fuzzy(moment, why),
        Consistency::Application => {
            pace.app_fault = None;
            pace.crash_point = Some(now);
            own(BarrierKind::Application, String::new())
        }
        Consistency::Crash(why) if crash_due || why.is_some() => {
            pace.crash_point = Some(now);
            let name = why.as_ref().map(|why| format!("not application-consistent: {why}"));
            if quiesce {
                pace.app_fault = why;
            }
            own(BarrierKind::Crash, name.unwrap_or_default())
        }
        Consistency::Crash(_) => Barrier::time_mark(true),
    };
    let asked = wishes.iter().map(|(_, barrier, _)| barrier.clone());
    Closing::Points(moment, std::iter::once(first).chain(asked).collect())
}

impl Pace {
    /// Notes how a cycle went, and what an operator is told of it.
    fn told(&mut self, shared: &Shared, began: Duration, done: Result<(), String>, every: Duration) {
        let now = shared.clock.uptime();
        match done {
            Ok(()) => {
                let took = now.saturating_sub(began);
                self.late = (took > every).then(|| {
                    format!(
                        "the last cycle took {} s, and one is due every {} s: {} were missed",
                        took.as_secs(),
                        every.as_secs(),
                        took.as_secs() / every.as_secs().max(1)
                    )
                });
                (self.began, self.waits_since, self.failed, self.cut) = (Some(began), Some(now), 0, None);
                // A fuzzy cycle leaves the replica in want of another one: in its time.
                self.not_before = if shared.feed().needs_cycle() { began + every } else { now };
            }
            Err(why) => {
                tracing::warn!(machine = %shared.machine, why, "a cycle was not closed");
                let wait = AGAIN.0.saturating_mul(1 << self.failed.min(5)).min(AGAIN.1).min(every);
                self.failed += 1;
                self.not_before = now + wait;
                let since = self.waits_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
                let missed = since.as_secs() / every.as_secs().max(1);
                self.cut = Some(if missed > 0 {
                    format!("no cycle was closed for {} s ({missed} were missed): {why}", since.as_secs())
                } else {
                    format!("the last cycle was not closed: {why}")
                });
            }
        }
        let app = self
            .app_fault
            .as_ref()
            .map(|why| format!("points are crash-consistent and not application-consistent: {why}"));
        let parts: Vec<String> = [self.cut.clone(), self.late.clone(), app].into_iter().flatten().collect();
        let mut feed = shared.feed();
        if let Some(interval) = feed.interval_mut() {
            interval.complaint = (!parts.is_empty()).then(|| parts.join("; "));
        }
    }
}
