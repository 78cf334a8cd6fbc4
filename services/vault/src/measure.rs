//! Measures with bounded memory: the distribution of RPO over a day, recent values, rates, how fast something fills.

use continuum_model::time::Timestamp;
use std::collections::VecDeque;
use std::time::Duration;

/// Values shown as a line: one every five seconds, five minutes back.
const RECENT: usize = 60;
const RECENT_EVERY: Duration = Duration::from_secs(5);
/// Hours kept.
const SLOTS: usize = 24;
const HOUR_MICROS: i64 = 3_600_000_000;
/// Bucket n holds values up to 10 ms · 1.2ⁿ; the last one reaches three days.
const BUCKETS: usize = 96;
const SMALLEST: f64 = 0.01;
const FACTOR: f64 = 1.2;

/// Values of the last 24 hours, in hourly slots of geometric buckets: 4.6 KiB, whatever comes.
///
/// Quantiles are told as the upper edge of their bucket, so they are never too good; the maximum is exact.
#[derive(Default)]
pub(crate) struct Distribution {
    slots: Vec<Slot>,
}

#[derive(Clone)]
struct Slot {
    hour: i64,
    max: f64,
    counts: Box<[u16; BUCKETS]>,
}

impl Distribution {
    /// Adds a value that was measured at `at`.
    pub(crate) fn add(&mut self, at: Timestamp, value: f64) {
        let hour = at.micros().div_euclid(HOUR_MICROS);
        self.slots.retain(|slot| slot.hour > hour - SLOTS as i64 && slot.hour <= hour);
        if self.slots.last().is_none_or(|slot| slot.hour != hour) {
            self.slots.push(Slot { hour, max: 0.0, counts: Box::new([0; BUCKETS]) });
        }
        if let Some(slot) = self.slots.last_mut() {
            slot.max = slot.max.max(value);
            let count = &mut slot.counts[bucket(value)];
            *count = count.saturating_add(1);
        }
    }

    /// The value below which a share of all values lies; `None`: nothing was measured.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let count = |at: usize| self.slots.iter().map(|slot| u64::from(slot.counts[at])).sum::<u64>();
        let total: u64 = (0..BUCKETS).map(count).sum();
        if total == 0 {
            return None;
        }
        let wanted = (share * total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for at in 0..BUCKETS {
            seen += count(at);
            if seen >= wanted {
                return Some((SMALLEST * FACTOR.powi(at as i32)).min(self.max().unwrap_or(f64::MAX)));
            }
        }
        self.max()
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> u64 {
        self.slots.iter().flat_map(|slot| slot.counts.iter()).map(|count| u64::from(*count)).sum()
    }

    /// The largest.
    pub(crate) fn max(&self) -> Option<f64> {
        self.slots.iter().map(|slot| slot.max).reduce(f64::max)
    }
}

fn bucket(value: f64) -> usize {
    if value <= SMALLEST {
        return 0;
    }
    let at = ((value / SMALLEST).ln() / FACTOR.ln()).ceil();
    (at as usize).min(BUCKETS - 1)
}

/// The newest values, one every five seconds.
pub(crate) struct Recent<T> {
    values: VecDeque<T>,
    last: Option<Timestamp>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { values: VecDeque::new(), last: None }
    }
}

impl<T: Copy> Recent<T> {
    /// Whether the next value is due.
    pub(crate) fn due(&self, at: Timestamp) -> bool {
        self.last.is_none_or(|last| at.since(last) >= RECENT_EVERY)
    }
    /// Adds a value, when one is due.
    pub(crate) fn offer(&mut self, at: Timestamp, value: T) {
        if !self.due(at) {
            return;
        }
        self.last = Some(at);
        self.values.push_back(value);
        if self.values.len() > RECENT {
            self.values.pop_front();
        }
    }
    /// Newest last.
    pub(crate) fn values(&self) -> Vec<T> {
        self.values.iter().copied().collect()
    }
}

/// Bytes a second, from a total that starts over with each start of whoever counts, such as what is written at a source.
#[derive(Default)]
pub(crate) struct Flow {
    window: VecDeque<(Timestamp, u64)>,
    written: u64,
    last_total: Option<u64>,
    pub(crate) recent: Recent<u64>,
}

impl Flow {
    /// Takes a total.
    pub(crate) fn offer(&mut self, at: Timestamp, total: u64) {
        let before = self.last_total.replace(total);
        // A smaller total is that of a new process: what it says was written since it started.
        self.written += before.map_or(0, |before| total.checked_sub(before).unwrap_or(total));
        self.window.push_back((at, self.written));
        while self.window.len() > 2
            && self.window.get(1).is_some_and(|(second, _)| at.since(*second) >= RECENT_EVERY)
        {
            self.window.pop_front();
        }
        if let Some(rate) = self.bytes_per_sec() {
            self.recent.offer(at, rate);
        }
    }

    /// Over the last five seconds; `None`: not yet known.
    pub(crate) fn bytes_per_sec(&self) -> Option<u64> {
        let (first, last) = (self.window.front()?, self.window.back()?);
        let span = last.0.since(first.0).as_secs_f64();
        (span >= 0.4).then(|| ((last.1 - first.1) as f64 / span) as u64)
    }
}

/// How fast something fills: the newest values of what is in use.
pub(crate) struct Fill {
    window: VecDeque<(Timestamp, u64)>,
    span: Duration,
}

/// Values of one window.
const FILL_VALUES: usize = 60;
/// What takes longer than this to fill is not filling.
const FILL_MAX: f64 = 30.0 * 24.0 * 3600.0;

impl Default for Fill {
    fn default() -> Self {
        Self::over(Duration::from_secs(30))
    }
}

impl Fill {
    /// Measured over the last `span`; told once a third of it has passed.
    pub(crate) fn over(span: Duration) -> Self {
        Self { window: VecDeque::new(), span }
    }

    /// Takes what is in use now.
    pub(crate) fn offer(&mut self, at: Timestamp, used: u64) {
        let every = self.span / FILL_VALUES as u32;
        if self.window.back().is_some_and(|(last, _)| at.since(*last) < every) {
            return;
        }
        self.window.push_back((at, used));
        while self.window.len() > FILL_VALUES
            || self.window.front().is_some_and(|(first, _)| at.since(*first) > self.span)
        {
            self.window.pop_front();
        }
    }

    /// Seconds until `room` is in use, if it goes on like this; `None`: it does not fill.
    pub(crate) fn until(&self, room: u64) -> Option<f64> {
        let (first, last) = (self.window.front()?, self.window.back()?);
        let span = last.0.since(first.0);
        // What is full is told otherwise.
        if last.1 >= room || span < self.span / 3 || last.1 <= first.1 {
            return None;
        }
        let rate = (last.1 - first.1) as f64 / span.as_secs_f64();
        let seconds = room.saturating_sub(last.1) as f64 / rate;
        (seconds <= FILL_MAX).then_some(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    proptest! {
        #[test]
        fn a_quantile_is_never_better_than_the_truth_and_at_most_a_fifth_worse(
            mut values in proptest::collection::vec(0.02f64..10_000.0, 1..400),
            share in 0.01f64..1.0,
        ) {
            let mut told = Distribution::default();
            values.iter().for_each(|value| told.add(at(5), *value));
            values.sort_by(f64::total_cmp);
            let truth = values[(share * values.len() as f64).ceil() as usize - 1];
            let quantile = told.quantile(share).unwrap();
            prop_assert!(quantile >= truth * 0.999_999 && quantile <= truth * FACTOR * 1.000_001, "{quantile} for {truth}");
            prop_assert_eq!(told.max(), values.last().copied());
        }
    }

    #[test]
    fn after_a_day_an_old_value_no_longer_counts() {
        let mut told = Distribution::default();
        told.add(at(0), 500.0);
        told.add(at(24 * 3600), 1.0);
        assert_eq!(told.max(), Some(1.0));
        assert_eq!(Distribution::default().quantile(0.99), None);
    }

    #[test]
    fn a_buffer_is_full_when_the_rate_says_so() {
        let mut fill = Fill::default();
        for second in 0..9 {
            fill.offer(at(second), 100 + 10 * second as u64);
        }
        assert_eq!(fill.until(1000), None, "too soon to tell");
        for second in 9..200 {
            fill.offer(at(second), 100 + 10 * second as u64);
        }
        let seconds = fill.until(100 + 10 * 199 + 600).expect("it fills");
        assert!((seconds - 60.0).abs() < 0.1, "{seconds}");
        for second in 200..300 {
            fill.offer(at(second), 50);
        }
        assert_eq!(fill.until(1000), None, "what stands or empties does not fill");
    }

    #[test]
    fn churn_survives_a_restart_of_the_agent() {
        let mut churn = Flow::default();
        for second in 0..10 {
            churn.offer(at(second), 1_000 * second as u64);
        }
        assert_eq!(churn.bytes_per_sec(), Some(1_000));
        churn.offer(at(10), 500);
        assert!(churn.bytes_per_sec().unwrap() < 1_000, "a restart is no burst");
        assert_eq!(churn.recent.values().len(), 2);
    }
}
