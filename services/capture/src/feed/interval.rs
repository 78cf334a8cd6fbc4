//! A feed whose changes come in cycles (see `interval` for the contract, `cycles` for who drives it).
//!
//! ```text
//! idle ──begin──► frozen ──all injected──► ended: closing barriers cut, legal again
//!   ▲               │ staging exhausted · stream begins anew · the tracker failed · paused
//!   │               ▼
//!   └──────────── ended: why. What was not brought over is stale still; the next cycle sends it
//! ```
//!
//! Only while it is frozen does the injector read, and only a cycle ends a repair. Records of a cycle are stamped
//! before its moment, so that they say nothing of times at which nobody looked; its closing barriers carry the moment.

use super::{Feed, Mode};
use crate::bits::Bits;
use continuum_model::feed::Barrier;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, REGION_BYTES, Sequence};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// Records of a cycle are stamped this much before its moment, or right after what came before, if that is later.
const BEFORE_MOMENT: Duration = Duration::from_secs(60);

/// How often things happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Intervals {
    /// Between two cycles; zero: what the tracker takes for right.
    pub cycle: Duration,
    /// Between two listed crash-consistent points; zero: none but those that are asked for.
    pub crash_point: Duration,
    /// Between two application-consistent points; zero: none.
    pub app_point: Duration,
}

/// How a cycle ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// With these barriers, all of them at this moment.
    Points(Timestamp, Vec<Barrier>),
    /// With none: its views are no state that was, for this reason.
    Fuzzy(Timestamp, String),
}

/// What came of a cycle: places and moments of its barriers, or why it was cut.
pub type Ended = Result<Vec<(Sequence, Timestamp)>, String>;

#[derive(Debug)]
enum Cycle {
    Idle,
    Frozen(Closing),
    Ended(Ended),
}

/// Something asked of a cycle, or of the machine, by somebody who waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    /// A barrier at the end of a cycle that begins after this; with `hold`, the views stay until it is let go.
    Barrier { barrier: Barrier, hold: bool },
    /// The machine stops.
    Stop,
    /// It runs again.
    Start,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Cut(Sequence, Timestamp),
    Done,
    Refused(String),
}

/// What an interval source keeps beside the rest of its feed.
#[derive(Debug)]
pub(crate) struct Interval {
    cycle: Cycle,
    /// The moment that the next record carries: a closing barrier's.
    closing_at: Option<Timestamp>,
    /// Records are stamped from here on.
    stamp_from: Timestamp,
    /// The cycle under way brings over what changed since a state that the replica has whole.
    is_regular: bool,
    pub(crate) intervals: Intervals,
    /// Why what was tracked could not be relied on, last.
    pub(crate) doubt: Option<String>,
    /// What is not as it should be though cycles are closed: late ones, points that are less than was asked for.
    pub(crate) complaint: Option<String>,
    pub(crate) wishes: VecDeque<(u64, Want)>,
    pub(crate) answers: HashMap<u64, Answer>,
    next_wish: u64,
    /// How many still use the views of the cycle that ended.
    pub(crate) holds: usize,
}

impl Interval {
    pub(crate) fn wish(&mut self, want: Want) -> u64 {
        self.next_wish += 1;
        self.wishes.push_back((self.next_wish, want));
        self.next_wish
    }

    pub(crate) fn answer(&mut self, id: u64, answer: Answer) {
        self.answers.insert(id, answer);
    }
}

impl Feed {
    /// From now on changes come in cycles. To be said before anything else.
    pub(crate) fn set_interval(&mut self) {
        self.interval = Some(Interval {
            cycle: Cycle::Idle,
            closing_at: None,
            stamp_from: Timestamp::from_micros(0),
            is_regular: false,
            intervals: Intervals::default(),
            doubt: None,
            complaint: None,
            wishes: VecDeque::new(),
            answers: HashMap::new(),
            next_wish: 0,
            holds: 0,
        });
    }

    /// Whether changes come in cycles.
    pub const fn is_interval(&self) -> bool {
        self.interval.is_some()
    }

    /// Why what was tracked could not be relied on, last.
    pub(crate) fn tracking_doubt(&self) -> Option<&str> {
        self.interval.as_ref()?.doubt.as_deref()
    }

    pub(crate) const fn interval_mut(&mut self) -> Option<&mut Interval> {
        self.interval.as_mut()
    }

    /// Whether there is something to read injected content from.
    pub(super) fn has_views(&self) -> bool {
        self.interval.as_ref().is_none_or(|interval| matches!(interval.cycle, Cycle::Frozen(_)))
    }

    /// The mode as it is told: a cycle that goes as it should is no repair.
    pub fn told_mode(&self) -> (Mode, &str) {
        let (mode, reason) = self.mode();
        let Some(interval) = &self.interval else { return (mode, reason) };
        match mode {
            Mode::Data => (Mode::Interval, interval.complaint.as_deref().unwrap_or_default()),
            Mode::CatchingUp if interval.is_regular && self.unreadable.is_none() => {
                (Mode::Interval, interval.complaint.as_deref().unwrap_or_default())
            }
            Mode::CatchingUp | Mode::Bitmap | Mode::Interval => (mode, reason),
        }
    }

    /// Whether a cycle may begin now.
    ///
    /// Errors: why not.
    pub(crate) fn may_cycle(&self) -> Result<(), String> {
        if self.mode == Mode::Bitmap { Err(self.reason.clone()) } else { Ok(()) }
    }

    /// Whether the replica waits for a cycle to be whole again.
    pub(crate) fn needs_cycle(&self) -> bool {
        self.mode == Mode::CatchingUp && !self.has_views()
    }

    /// These bytes of a disk may differ from what was frozen before. The map's file is not synced yet.
    pub(crate) fn note_changed(&mut self, disk: DiskIndex, ranges: &[Range<u64>], size: u64) {
        let index = usize::from(disk.0);
        for range in ranges {
            let end = range.end.min(size);
            if range.start >= end {
                continue;
            }
            let (first, last) = super::regions(range.start, end - range.start);
            self.maps[index].set(first, last);
            self.comparison.changes(disk.0, first, last);
            for region in first..=last {
                if self.stale[index].set(region) {
                    self.totals.written += REGION_BYTES.min(size - region * REGION_BYTES);
                }
            }
        }
    }

    /// Nobody knows what changed on a disk.
    pub(crate) fn doubt_disk(&mut self, disk: DiskIndex) {
        let index = usize::from(disk.0);
        self.doubt();
        self.maps[index].set_all();
        self.stale[index].set_all();
    }

    /// The disks are frozen and what changed is in the map: injecting begins. `doubt` says why everything may have
    /// changed, where that is so.
    ///
    /// Errors: nothing can be shipped any more; the cycle did not begin.
    pub(crate) fn begin_cycle(
        &mut self,
        closing: Closing,
        doubt: Option<&str>,
        now: Timestamp,
    ) -> Result<(), String> {
        self.may_cycle()?;
        let is_idle = self.stale.iter().all(Bits::is_empty);
        let is_regular = self.mode == Mode::Data && doubt.is_none();
        let (Closing::Points(moment, _) | Closing::Fuzzy(moment, _)) = &closing;
        let stamp_from = moment.minus(BEFORE_MOMENT);
        let Some(interval) = &mut self.interval else { return Err("this source has no cycles".into()) };
        interval.stamp_from = stamp_from;
        interval.is_regular = is_regular;
        interval.cycle = Cycle::Frozen(closing);
        if is_idle && self.mode == Mode::Data {
            self.close_cycle(now);
        } else {
            let reason = match doubt {
                Some(why) => why.to_owned(),
                None if is_regular => String::new(),
                None => std::mem::take(&mut self.reason),
            };
            self.catch_up(&reason, now);
        }
        Ok(())
    }

    /// The cycle under way ends here, unfinished.
    pub(crate) fn cut_cycle(&mut self, why: &str) {
        let Some(interval) = &mut self.interval else { return };
        if matches!(interval.cycle, Cycle::Frozen(_)) {
            interval.cycle = Cycle::Ended(Err(why.to_owned()));
            interval.is_regular = false;
            self.events.cycle = true;
            if self.mode == Mode::CatchingUp {
                self.reason = format!("a cycle was cut: {why}; the next one sends what is missing");
                // What could not be read is told by the next cycle anew.
                self.unreadable = None;
            }
        }
    }

    /// A pass over what is stale left something that cannot be read.
    pub(crate) fn cycle_unreadable(&mut self) {
        if let Some(why) = self.unreadable.clone().filter(|_| self.interval.is_some()) {
            self.cut_cycle(&why);
        }
    }

    /// Everything is injected: the views' state is the replica's.
    pub(super) fn close_cycle(&mut self, now: Timestamp) {
        let Some(interval) = &mut self.interval else { return };
        let (moment, barriers) = match std::mem::replace(&mut interval.cycle, Cycle::Idle) {
            Cycle::Frozen(Closing::Points(moment, barriers)) => (moment, barriers),
            Cycle::Frozen(Closing::Fuzzy(moment, why)) => {
                interval.closing_at = Some(moment);
                interval.cycle = Cycle::Ended(Ok(Vec::new()));
                self.mode = Mode::CatchingUp;
                self.reason = format!("no point can be offered: {why}");
                self.events.cycle = true;
                self.barrier(Barrier::time_mark(false), now);
                return;
            }
            other => {
                interval.cycle = other;
                return;
            }
        };
        self.enter_data();
        let mut cut = Vec::new();
        for barrier in barriers {
            if let Some(interval) = &mut self.interval {
                interval.closing_at = Some(moment);
            }
            match self.barrier(barrier, now) {
                Some((sequence, time, true)) => cut.push((sequence, time)),
                Some((_, _, false)) | None => break,
            }
        }
        let ended = if self.mode == Mode::Data { Ok(cut) } else { Err(self.reason.clone()) };
        if let Some(interval) = &mut self.interval {
            interval.cycle = Cycle::Ended(ended);
            interval.closing_at = None;
        }
        self.events.cycle = true;
    }

    /// What came of the cycle, once; `None`: it goes on.
    pub(crate) fn take_ended(&mut self) -> Option<Ended> {
        let interval = self.interval.as_mut()?;
        match std::mem::replace(&mut interval.cycle, Cycle::Idle) {
            Cycle::Ended(ended) => Some(ended),
            other => {
                interval.cycle = other;
                None
            }
        }
    }

    /// The moment of a record that is stamped at `now`.
    pub(super) fn moment_of(&mut self, now: Timestamp) -> Timestamp {
        match &mut self.interval {
            Some(interval) => interval.closing_at.take().unwrap_or(interval.stamp_from),
            None => now,
        }
    }
}
