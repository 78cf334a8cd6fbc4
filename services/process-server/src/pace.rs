//! How fast change data may leave: for each machine by the schedule of its policy, for all together by the schedule
//! of this process server. Whose turn it is where not everybody can go at once.
//!
//! ```text
//! turn(machine, bytes) ─► machine's bucket ready? ─► server's bucket ready? ─► urgent first, then fewest bytes ─► go
//! ```
//!
//! A bucket fills at its rate and holds a quarter of a second of it at most. Whoever finds it not below zero may send
//! one whole frame, which may take it below: so frames of any size get through, and over any longer time what left is
//! the rate times that time, plus one frame. It begins empty: a stream that starts anew has nothing saved up.
//!
//! Only frames towards the target wait here. Acknowledgements, and what is received, go their own ways; what waits
//! fills the spool, and then the agent stages: nothing is dropped. A limit that changes holds for whoever waits.
//!
//! Hours are those of this server's local time, which is looked at once a second.

use chrono::{Datelike, Timelike};
use continuum_model::hours::Weekday;
use continuum_model::id::MachineId;
use continuum_model::policy::{BandwidthLimit, limit_at};
use continuum_model::units::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Most that a bucket saves up, in seconds of its rate.
const SAVED_SECONDS: f64 = 0.25;
/// Most bytes that are granted beyond those that were asked for.
const PURSE_MAX: u64 = 256 << 10;
/// How often the hour is looked at, and the longest that anybody sleeps before looking again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A day of the week and a minute of it, here.
type LocalTime = (Weekday, u32);

/// The turns of one process server. Clones are the same.
#[derive(Clone)]
pub struct Pace {
    shared: Arc<Shared>,
}

struct Shared {
    book: Mutex<Book>,
    local: Box<dyn Fn() -> LocalTime + Send + Sync>,
}

struct Book {
    whole: Limited,
    lanes: HashMap<MachineId, Lane>,
    /// Bytes that whoever is served now had when its turn came: newcomers begin here, not at zero.
    served: u64,
    looked: Option<Instant>,
    local: LocalTime,
    tickets: u64,
}

/// One machine.
struct Lane {
    limited: Limited,
    urgent: bool,
    /// Bytes that it had, counted from where it joined the others.
    served: u64,
    /// Bytes that may go without asking again: whoever sends small frames does not come back for each of them, and
    /// is not passed by in between.
    purse: u64,
    waiting: Option<Waiting>,
}

struct Waiting {
    ticket: u64,
    bytes: u64,
    go: bool,
    wake: Arc<Notify>,
}

/// A schedule and the bucket that it fills.
struct Limited {
    schedule: Vec<BandwidthLimit>,
    rate: Option<u64>,
    tokens: f64,
    at: Instant,
}

/// What holds a machine's frames up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The limit of its policy, in bytes a second.
    Policy(u64),
    /// The limit of the whole process server, in bytes a second.
    Server(u64),
}

impl std::fmt::Display for Held {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Policy(rate) => write!(out, "the bandwidth limit of its policy, now {}/s", Bytes(*rate)),
            Self::Server(rate) => {
                write!(out, "the bandwidth limit of its process server, now {}/s", Bytes(*rate))
            }
        }
    }
}

impl Pace {
    /// By the local time of this server, with a schedule for all machines together; empty: no limit.
    pub fn new(schedule: Vec<BandwidthLimit>) -> Self {
        Self::with_clock(schedule, || {
            let now = chrono::Local::now();
            let minute = now.hour() * 60 + now.minute();
            (Weekday::from_monday(now.weekday().num_days_from_monday()), minute)
        })
    }

    /// With another idea of which hour it is.
    pub fn with_clock(
        schedule: Vec<BandwidthLimit>,
        local: impl Fn() -> LocalTime + Send + Sync + 'static,
    ) -> Self {
        let now = local();
        let book = Book {
            whole: Limited::new(schedule, now, Instant::now()),
            lanes: HashMap::new(),
            served: 0,
            looked: None,
            local: now,
            tickets: 0,
        };
        Self { shared: Arc::new(Shared { book: Mutex::new(book), local: Box::new(local) }) }
    }

    /// What holds for a machine from now on, also for what waits already.
    pub fn set(&self, machine: MachineId, schedule: &[BandwidthLimit], urgent: bool) {
        let (now, mut book) = (Instant::now(), self.book());
        let local = book.local;
        match book.lanes.get_mut(&machine) {
            Some(lane) => {
                lane.urgent = urgent;
                if lane.limited.schedule != schedule {
                    lane.limited.schedule = schedule.to_vec();
                    lane.limited.look(local, now);
                }
            }
            None => {
                let limited = Limited::new(schedule.to_vec(), local, now);
                book.lanes.insert(machine, Lane { limited, urgent, served: 0, purse: 0, waiting: None });
            }
        }
        book.advance(now);
    }

    /// Nothing of this machine passes here any more.
    pub fn forget(&self, machine: MachineId) {
        self.book().lanes.remove(&machine);
    }

    /// The limits in force: of a machine's policy, and of the whole server; in bytes a second.
    pub fn limits(&self, machine: MachineId) -> (Option<u64>, Option<u64>) {
        let mut book = self.look();
        book.advance(Instant::now());
        (book.lanes.get(&machine).and_then(|lane| lane.limited.rate), book.whole.rate)
    }

    /// The limit in force of the whole server, in bytes a second.
    pub fn limit(&self) -> Option<u64> {
        self.look().whole.rate
    }

    /// What holds a machine up at this moment; `None`: no limit does.
    pub fn holds(&self, machine: MachineId) -> Option<Held> {
        let mut book = self.look();
        book.advance(Instant::now());
        let lane = book.lanes.get(&machine)?;
        lane.waiting.as_ref().filter(|waiting| !waiting.go)?;
        if lane.limited.ready() {
            book.whole.rate.map(Held::Server)
        } else {
            lane.limited.rate.map(Held::Policy)
        }
    }

    /// A place in the queue for `bytes` of a machine; `None`: they may go at once, and count as gone.
    pub fn ask(&self, machine: MachineId, bytes: u64) -> Option<Place<'_>> {
        let mut book = self.look();
        let ticket = book.queue(machine, bytes)?;
        book.advance(Instant::now());
        let went = book.lanes.get(&machine)?.waiting.as_ref().is_some_and(|waiting| waiting.go);
        if went {
            book.leave(machine, ticket);
            return None;
        }
        drop(book);
        Some(Place { pace: self, machine, ticket })
    }

    /// Waits until `bytes` of a machine may go.
    ///
    /// # Cancel safety
    /// Whoever is dropped while it waits has lost its place, and nothing else.
    pub async fn turn(&self, machine: MachineId, bytes: u64) {
        if let Some(place) = self.ask(machine, bytes) {
            place.turn().await;
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The book, by the limits of this hour.
    fn look(&self) -> MutexGuard<'_, Book> {
        let (mut book, now) = (self.book(), Instant::now());
        if book.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_EVERY) {
            book.looked = Some(now);
            let local = (self.shared.local)();
            if local != book.local {
                book.local = local;
                book.whole.look(local, now);
                book.lanes.values_mut().for_each(|lane| lane.limited.look(local, now));
            }
        }
        book
    }
}

/// A place in the queue, given up however the wait ends.
pub struct Place<'a> {
    pace: &'a Pace,
    machine: MachineId,
    ticket: u64,
}

impl Place<'_> {
    /// Waits until it is its turn.
    pub async fn turn(self) {
        loop {
            let waits = {
                let mut book = self.pace.look();
                book.advance(Instant::now());
                match book.lanes.get(&self.machine).and_then(|lane| lane.waiting.as_ref()) {
                    Some(waiting) if waiting.ticket == self.ticket && !waiting.go => {
                        Some((waiting.wake.clone(), book.patience(self.machine)))
                    }
                    // It is its turn; or the machine is relayed no more, and its stream ends.
                    _ => None,
                }
            };
            let Some((wake, patience)) = waits else { return };
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(patience) => {}
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pace.book().leave(self.machine, self.ticket);
    }
}

impl Book {
    /// A place for `bytes`; `None`: they may go at once.
    fn queue(&mut self, machine: MachineId, bytes: u64) -> Option<u64> {
        self.tickets += 1;
        let (ticket, served) = (self.tickets, self.served);
        let unlimited = self.whole.rate.is_none();
        let lane = self.lanes.get_mut(&machine)?;
        if unlimited && lane.limited.rate.is_none() {
            return None;
        }
        if lane.purse >= bytes {
            lane.purse -= bytes;
            return None;
        }
        let bytes = bytes - std::mem::take(&mut lane.purse);
        lane.served = lane.served.max(served);
        lane.waiting = Some(Waiting { ticket, bytes, go: false, wake: Arc::default() });
        Some(ticket)
    }

    /// Gives a place up; says whether its turn had come.
    fn leave(&mut self, machine: MachineId, ticket: u64) -> bool {
        self.lanes
            .get_mut(&machine)
            .and_then(|lane| lane.waiting.take_if(|waiting| waiting.ticket == ticket))
            .is_some_and(|waiting| waiting.go)
    }

    /// Lets go whoever can.
    fn advance(&mut self, now: Instant) {
        self.whole.fill(now);
        self.lanes.values_mut().for_each(|lane| lane.limited.fill(now));
        while self.whole.ready() {
            let next = self
                .lanes
                .iter_mut()
                .filter(|(_, lane)| {
                    lane.limited.ready() && lane.waiting.as_ref().is_some_and(|waiting| !waiting.go)
                })
                .min_by_key(|(machine, lane)| (!lane.urgent, lane.served, **machine));
            let Some((_, lane)) = next else { return };
            let Some(waiting) = &mut lane.waiting else { return };
            waiting.go = true;
            waiting.wake.notify_one();
            let rate = [lane.limited.rate, self.whole.rate].into_iter().flatten().min();
            let bytes = waiting.bytes.max(rate.map_or(0, |rate| (rate / 16).min(PURSE_MAX)));
            lane.purse = bytes - waiting.bytes;
            // What is urgent is not held against it later.
            if !lane.urgent {
                self.served = self.served.max(lane.served);
                lane.served = lane.served.saturating_add(bytes);
            }
            lane.limited.take(bytes);
            self.whole.take(bytes);
        }
    }

    /// How long nothing can change for a machine that waits.
    fn patience(&self, machine: MachineId) -> Duration {
        let Some(lane) = self.lanes.get(&machine) else { return Duration::ZERO };
        let short = if lane.limited.ready() { &self.whole } else { &lane.limited };
        // A millisecond more than is needed: a timer that is early would only look in vain.
        let wait = short.rate.map_or(0.0, |rate| -short.tokens / rate.max(1) as f64) + 0.001;
        Duration::try_from_secs_f64(wait.max(0.001)).unwrap_or(LOOK_EVERY).min(LOOK_EVERY)
    }
}

impl Limited {
    fn new(schedule: Vec<BandwidthLimit>, (day, minute): LocalTime, now: Instant) -> Self {
        let rate = limit_at(&schedule, day, minute);
        Self { schedule, rate, tokens: 0.0, at: now }
    }

    /// Goes by the rate of this hour from now on.
    fn look(&mut self, (day, minute): LocalTime, now: Instant) {
        self.fill(now);
        let rate = limit_at(&self.schedule, day, minute);
        if rate == self.rate {
            return;
        }
        self.tokens = match (self.rate, rate) {
            // What went under a faster limit is paid for as it would have been, and under a slower one sooner.
            (Some(old), Some(new)) if self.tokens < 0.0 && new < old => {
                self.tokens / old.max(1) as f64 * new as f64
            }
            (Some(_), Some(_)) => self.tokens,
            _ => 0.0,
        };
        self.rate = rate;
        self.fill(now);
    }

    fn fill(&mut self, now: Instant) {
        if let Some(rate) = self.rate {
            let passed = now.saturating_duration_since(self.at).as_secs_f64();
            self.tokens = (self.tokens + passed * rate as f64).min(SAVED_SECONDS * rate as f64);
        }
        self.at = now;
    }

    fn ready(&self) -> bool {
        self.rate.is_none() || self.tokens >= 0.0
    }

    fn take(&mut self, bytes: u64) {
        if self.rate.is_some() {
            self.tokens -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    use tokio::task::JoinSet;

    const RATE: u64 = 1 << 20;

    fn machine(byte: u8) -> MachineId {
        MachineId::from_bytes([byte; 16])
    }

    fn limit(from: &str, to: &str, bytes_per_sec: u64) -> BandwidthLimit {
        BandwidthLimit { days: vec![], from: from.parse().unwrap(), to: to.parse().unwrap(), bytes_per_sec }
    }

    fn always(bytes_per_sec: u64) -> Vec<BandwidthLimit> {
        vec![limit("00:00", "24:00", bytes_per_sec)]
    }

    /// Sends frames of many sizes for ever; counts.
    fn send(tasks: &mut JoinSet<()>, pace: &Pace, machine: MachineId, sizes: [u64; 3]) -> Arc<AtomicU64> {
        let (pace, count) = (pace.clone(), Arc::new(AtomicU64::new(0)));
        let sent = count.clone();
        tasks.spawn(async move {
            for at in 0.. {
                pace.turn(machine, sizes[at % 3]).await;
                sent.fetch_add(sizes[at % 3], Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        count
    }

    fn assert_near(what: &str, bytes: u64, expected: u64) {
        let share = bytes as f64 / expected as f64;
        assert!((0.95..=1.05).contains(&share), "{what}: {bytes} where {expected} were due ({share:.3})");
    }

    #[tokio::test(start_paused = true)]
    async fn over_a_minute_the_rate_is_the_one_that_was_asked_for_whatever_the_frames() {
        for (rate, sizes) in [
            (RATE, [1 << 20, 300, 70_000]),
            (16 << 10, [9_000, 300, 2_000]),
            (400 << 20, [1 << 20, 1 << 20, 300]),
            (RATE, [300, 300, 300]),
        ] {
            let (pace, mut tasks) = (Pace::new(vec![]), JoinSet::new());
            pace.set(machine(1), &always(rate), false);
            let sent = send(&mut tasks, &pace, machine(1), sizes);
            let (begun, before) = (Instant::now(), sent.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_secs(60)).await;
            let passed = begun.elapsed().as_secs_f64();
            let due = (rate as f64 * passed) as u64;
            assert_near(&format!("{rate} B/s"), sent.load(Ordering::Relaxed) - before, due);
            assert_eq!(pace.limits(machine(1)), (Some(rate), None));
            tasks.shutdown().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_not_saved_up() {
        let pace = Pace::new(vec![]);
        pace.set(machine(1), &always(RATE), false);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let begun = Instant::now();
        for _ in 0..10 {
            pace.turn(machine(1), RATE).await;
        }
        assert!(begun.elapsed() >= Duration::from_millis(8500), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_hour_and_the_policy_change_the_limit_of_what_waits_already() {
        let minute = Arc::new(AtomicU32::new(8 * 60));
        let clock = minute.clone();
        let pace = Pace::with_clock(vec![], move || (Weekday::Mon, clock.load(Ordering::Relaxed)));
        let day = vec![limit("08:00", "18:00", 16 << 10)];
        pace.set(machine(1), &day, false);
        pace.turn(machine(1), 1 << 20).await;
        let waiting = {
            let pace = pace.clone();
            tokio::spawn(async move { pace.turn(machine(1), 1 << 20).await })
        };
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!waiting.is_finished(), "64 s of the limit were taken at once");
        assert_eq!(pace.holds(machine(1)), Some(Held::Policy(16 << 10)));
        minute.store(18 * 60, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert!(waiting.is_finished(), "after six there is none");
        assert_eq!((pace.limits(machine(1)).0, pace.holds(machine(1))), (None, None));
        // By the policy: at once.
        minute.store(9 * 60, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(2)).await;
        pace.turn(machine(1), 1 << 20).await;
        let waiting = {
            let pace = pace.clone();
            tokio::spawn(async move { pace.turn(machine(1), 100).await })
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        pace.set(machine(1), &always(64 << 20), false);
        tokio::time::timeout(Duration::from_millis(1500), waiting).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn machines_share_the_servers_limit_by_bytes_and_a_recovery_goes_first() {
        let (pace, mut tasks) = (Pace::new(always(RATE)), JoinSet::new());
        for byte in 1..=4 {
            pace.set(machine(byte), &[], false);
        }
        // Many small frames, large ones, both.
        let small = send(&mut tasks, &pace, machine(1), [300, 300, 300]);
        let large = send(&mut tasks, &pace, machine(2), [1 << 20, 1 << 20, 1 << 20]);
        let both = send(&mut tasks, &pace, machine(3), [1 << 20, 300, 20_000]);
        tokio::time::sleep(Duration::from_secs(300)).await;
        let read = |count: &AtomicU64| count.swap(0, Ordering::Relaxed);
        let shares = [read(&small), read(&large), read(&both)];
        assert_near("all", shares.iter().sum(), 300 * RATE);
        shares.iter().for_each(|share| assert_near("a third", *share, 100 * RATE));
        // A failover's machine is late, and first.
        pace.set(machine(4), &[], true);
        let urgent = send(&mut tasks, &pace, machine(4), [64 << 10, 300, 300]);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_near("urgent", read(&urgent), 60 * RATE);
        assert!([&small, &large, &both].iter().all(|count| read(count) <= 2 << 20));
        // It is over: everybody has a quarter, and the one that was first is not punished.
        pace.set(machine(4), &[], false);
        tokio::time::sleep(Duration::from_secs(400)).await;
        for count in [&small, &large, &both, &urgent] {
            assert_near("a quarter", read(count), 100 * RATE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limited_machine_holds_nobody_else_up_and_whoever_leaves_gives_its_place_back() {
        let (pace, mut tasks) = (Pace::new(always(10 * RATE)), JoinSet::new());
        pace.set(machine(1), &always(16 << 10), false);
        pace.set(machine(2), &[], false);
        let slow = send(&mut tasks, &pace, machine(1), [1 << 20, 300, 300]);
        let free = send(&mut tasks, &pace, machine(2), [256 << 10, 300, 300]);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(slow.load(Ordering::Relaxed) <= 3 << 20);
        assert!(free.load(Ordering::Relaxed) > 940 * RATE, "{free:?}");
        assert_eq!(pace.holds(machine(1)), Some(Held::Policy(16 << 10)));
        tasks.shutdown().await;
        assert_eq!(pace.holds(machine(1)), None, "its place is gone with it");
        pace.forget(machine(1));
        pace.turn(machine(1), u64::MAX).await;
    }
}
