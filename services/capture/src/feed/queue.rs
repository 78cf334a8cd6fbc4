//! Frames that are not acknowledged: the newest in memory, the older ones staged on disk.
//!
//! ```text
//! acknowledged │ staged … staged │ memory … memory │ being filled
//!                 handed out up to here ─┘
//! ```
//!
//! Staged frames are always the older part, so that after the death of the process what staging holds is one
//! piece of history from the acknowledged frame on. A frame is staged when it is a second old or when memory
//! holds much; writing it goes on outside of the feed's lock.

use super::{Feed, Region};
use crate::map::Settle;
use crate::progress::{Link, ProgressNote};
use crate::staging::{Place, Stage};
use continuum_model::feed::{Envelope, FrameHead};
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// More than this in memory is staged.
const MEMORY_SOFT: u64 = 8 << 20;
/// More than this in memory means that staging is too slow: only the map grows then.
const MEMORY_HARD: u64 = 64 << 20;
/// A frame is staged when it has waited this long.
const STAGE_AGE: Duration = Duration::from_secs(1);
/// So many frames are noted with one sync.
const NOTED_MAX: usize = 64;
/// What may wait unless the policy says otherwise.
const BYTES_MAX: u64 = 1 << 30;

/// The queue.
pub struct Queue {
    frames: VecDeque<Queued>,
    staged: usize,
    bytes: u64,
    memory_bytes: u64,
    bytes_max: u64,
    stage: Box<dyn Stage>,
    stage_fault: Option<String>,
    /// The frame before the first one here.
    front: Link,
    acked: Link,
    /// The newest frame that anybody was given.
    handed_out: FrameNumber,
    /// The newest frame that is durably noted as one that leaves.
    noted: FrameNumber,
    /// The frame that the present stream was given last, and its newest moment.
    given: (FrameNumber, Timestamp),
    /// Bytes of the frames after that one.
    unsent_bytes: u64,
    /// The newest moment that the target made durable.
    acked_time: Timestamp,
    /// Rises whenever queued frames are dropped; a stream of an older stretch must end.
    stretch: u64,
}

pub(super) struct Queued {
    pub(super) link: Link,
    pub(super) epoch: Epoch,
    bytes: u64,
    made: Timestamp,
    body: Body,
    regions: Vec<Region>,
}

enum Body {
    Memory(Arc<Envelope>),
    Staged(Place),
}

/// The next frame to send.
#[derive(Debug, Clone)]
pub enum Next {
    /// This one.
    Frame(Arc<Envelope>),
    /// None yet.
    Idle,
    /// The frames that this stream was to carry are gone: open a new one.
    Reset,
}

/// As [`Next`], with the reading still to be done.
pub enum Peek {
    /// In memory.
    Memory(Arc<Envelope>),
    /// On disk.
    Staged(Place),
    /// There is one, and before it leaves this is to be written, and told to [`Feed::left`].
    Note(Leaving),
    /// None yet.
    Idle,
    /// See [`Next::Reset`].
    Reset,
}

/// What must be durable before frames leave: that they do, and before that whatever bits a replica which
/// knows them would otherwise make us forget.
pub struct Leaving {
    settles: Vec<(usize, Settle)>,
    can_be_noted: bool,
    note: ProgressNote,
    last: FrameNumber,
    stretch: u64,
}

/// What came of writing that: each map, and the note.
pub struct Left {
    settled: Vec<io::Result<()>>,
    noted: io::Result<()>,
}

impl Leaving {
    /// Writes it, outside of the feed's lock.
    pub fn write(&self) -> Left {
        let settled: Vec<_> = self.settles.iter().map(|(_, settle)| settle.run()).collect();
        let noted = if self.can_be_noted && settled.iter().all(Result::is_ok) {
            self.note.write()
        } else {
            // Not known, then: doubt, not silence.
            Err(io::Error::other("a change map could not be synced"))
        };
        Left { settled, noted }
    }
}

/// A target acknowledged what nobody sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "frame {number} was acknowledged, but only {handed_out} were sent: nothing was cleared; close the connection and look at the target"
)]
pub struct AckAhead {
    /// What it said.
    pub number: FrameNumber,
    /// What it can have.
    pub handed_out: FrameNumber,
}

impl Queue {
    pub(super) fn new(stage: Box<dyn Stage>, acked: Link) -> Self {
        Self {
            frames: VecDeque::new(),
            staged: 0,
            bytes: 0,
            memory_bytes: 0,
            bytes_max: BYTES_MAX,
            stage,
            stage_fault: None,
            front: acked,
            acked,
            handed_out: acked.0,
            noted: acked.0,
            given: (acked.0, Timestamp::default()),
            unsent_bytes: 0,
            acked_time: Timestamp::default(),
            stretch: 1,
        }
    }

    pub(super) fn push(&mut self, envelope: Envelope, regions: Vec<Region>) {
        let bytes = envelope.len() as u64;
        let head = &envelope.head;
        self.bytes += bytes;
        self.memory_bytes += bytes;
        self.unsent_bytes += bytes;
        self.frames.push_back(Queued {
            link: (head.identity.number, head.digest),
            epoch: head.identity.epoch,
            bytes,
            made: head.last_time,
            body: Body::Memory(Arc::new(envelope)),
            regions,
        });
    }

    /// Takes over a frame of an earlier process.
    pub(super) fn adopt(&mut self, head: &FrameHead, bytes: u64, place: Place) {
        let (identity, epoch) = (head.identity, head.identity.epoch);
        let link = (identity.number, head.digest);
        if self.frames.is_empty() {
            self.front = (FrameNumber(identity.number.0 - 1), identity.previous);
        }
        self.bytes += bytes;
        self.unsent_bytes += bytes;
        self.staged += 1;
        let made = head.last_time;
        self.frames.push_back(Queued {
            link,
            epoch,
            bytes,
            made,
            body: Body::Staged(place),
            regions: Vec::new(),
        });
    }

    pub(super) fn is_full(&self) -> Option<&'static str> {
        if self.bytes > self.bytes_max {
            Some("staging is exhausted: the target takes less than is written")
        } else if self.memory_bytes > MEMORY_HARD {
            Some("staging does not keep up: its disk takes less than is written")
        } else {
            None
        }
    }

    pub(super) fn wants_staging(&self) -> bool {
        self.memory_bytes > MEMORY_SOFT
    }

    pub(super) fn frames(&self) -> impl Iterator<Item = &Queued> {
        self.frames.iter()
    }

    pub(super) fn clear(&mut self) {
        self.frames.clear();
        (self.staged, self.bytes, self.memory_bytes, self.unsent_bytes) = (0, 0, 0, 0);
        self.stage.clear();
        self.stretch += 1;
    }

    /// The replica ends with this frame, which is the one before the first here or one of these.
    pub(super) fn start_at(&mut self, replica: Link, newest: Timestamp) {
        (self.acked, self.noted) = (replica, replica.0);
        self.handed_out = self.handed_out.max(replica.0);
        self.begins_after(replica.0, newest);
    }

    fn begins_after(&mut self, number: FrameNumber, newest: Timestamp) {
        self.given = (number, newest);
        self.acked_time = newest;
        self.unsent_bytes =
            self.frames.iter().filter(|queued| queued.link.0 > number).map(|queued| queued.bytes).sum();
    }

    /// The replica ends with this frame, and nothing waits.
    pub(super) fn restart_at(&mut self, replica: Link, newest: Timestamp) {
        (self.front, self.acked) = (replica, replica);
        (self.handed_out, self.noted) = (replica.0, replica.0);
        self.begins_after(replica.0, newest);
    }

    /// Whether what waits here, or is made next, follows that frame.
    pub(super) fn follows(&self, link: Link) -> bool {
        link == self.front || self.frames.iter().any(|queued| queued.link == link)
    }

    fn pop_acknowledged(&mut self, number: FrameNumber) -> Option<Queued> {
        if self.frames.front()?.link.0 > number {
            return None;
        }
        let queued = self.frames.pop_front()?;
        self.bytes -= queued.bytes;
        match &queued.body {
            Body::Memory(_) => self.memory_bytes -= queued.bytes,
            Body::Staged(_) => self.staged -= 1,
        }
        (self.front, self.acked) = (queued.link, queued.link);
        self.acked_time = self.acked_time.max(queued.made);
        if queued.link.0 > self.given.0 {
            // The target had it from an earlier stream.
            self.unsent_bytes -= queued.bytes;
            self.given = (queued.link.0, queued.made);
        }
        Some(queued)
    }

    /// The last acknowledged frame.
    pub const fn acked(&self) -> Link {
        self.acked
    }
    /// Bytes that are not acknowledged.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Of those, bytes on disk.
    pub const fn staged_bytes(&self) -> u64 {
        self.bytes - self.memory_bytes
    }
    /// Of those that are not acknowledged, bytes that the present stream was not given yet.
    pub const fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes
    }
    /// The newest moment that the present stream was given.
    pub const fn sent_time(&self) -> Timestamp {
        self.given.1
    }
    /// The newest moment that the target made durable.
    pub const fn acked_time(&self) -> Timestamp {
        self.acked_time
    }
    /// The most that may wait.
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }
    pub(super) const fn set_bytes_max(&mut self, bytes: u64) {
        self.bytes_max = bytes;
    }
    /// Frames that are not acknowledged.
    pub fn len(&self) -> usize {
        self.frames.len()
    }
    /// Whether all are.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
    /// Why staging did not work the last time, if so.
    pub fn fault(&self) -> Option<&str> {
        self.stage_fault.as_deref()
    }
}

impl Feed {
    /// The current stretch: what a stream that was opened now asks frames of.
    pub const fn stretch(&self) -> u64 {
        self.queue.stretch
    }

    /// The frame after `after`, for a stream of `stretch`.
    pub fn peek_frame(&mut self, stretch: u64, after: FrameNumber) -> Peek {
        if stretch != self.queue.stretch {
            return Peek::Reset;
        }
        if self.paused.is_some() || self.halted.is_some() {
            return Peek::Idle;
        }
        let Some(first) = self.queue.frames.front().map(|queued| queued.link.0) else { return Peek::Idle };
        let Some(at) = after.next().0.checked_sub(first.0) else { return Peek::Reset };
        let Some(queued) = self.queue.frames.get(at as usize) else { return Peek::Idle };
        if queued.link.0 > self.queue.noted {
            return Peek::Note(self.leaving(at as usize));
        }
        self.totals.sent += queued.bytes;
        self.totals.frames += 1;
        self.queue.handed_out = self.queue.handed_out.max(queued.link.0);
        if queued.link.0 > self.queue.given.0 {
            self.queue.unsent_bytes -= queued.bytes;
            self.queue.given = (queued.link.0, queued.made);
        }
        match &queued.body {
            Body::Memory(envelope) => Peek::Memory(envelope.clone()),
            Body::Staged(place) => Peek::Staged(place.clone()),
        }
    }

    fn leaving(&self, first: usize) -> Leaving {
        let links: Vec<Link> =
            self.queue.frames.iter().skip(first).take(NOTED_MAX).map(|queued| queued.link).collect();
        let unsettled = self.maps.iter().enumerate().filter(|(_, map)| map.is_unsettled());
        let settles: Vec<_> =
            unsettled.clone().filter_map(|(disk, map)| Some((disk, map.next_settle()?))).collect();
        Leaving {
            can_be_noted: settles.len() == unsettled.count(),
            settles,
            last: links.last().map_or(FrameNumber(0), |link| link.0),
            note: self.progress.leaves(links),
            stretch: self.queue.stretch,
        }
    }

    /// What is needed before frames leave was written. Where that failed they leave all the same, and are
    /// unknown after a restart: everything is sent again then.
    pub fn left(&mut self, leaving: &Leaving, left: Left) {
        for ((disk, settle), done) in leaving.settles.iter().zip(left.settled) {
            self.maps[*disk].settled(settle, done);
        }
        if let Err(error) = left.noted {
            tracing::warn!(machine = %self.machine, frame = leaving.last.0, %error,
                "frames that leave could not be noted: after a restart everything may be sent again");
        }
        if leaving.stretch == self.queue.stretch {
            self.queue.noted = self.queue.noted.max(leaving.last);
        }
    }

    /// The target made everything up to `number` durable.
    ///
    /// Errors: it cannot have, because that frame never left. Nothing is changed then.
    pub fn acknowledge(&mut self, number: FrameNumber, now: Timestamp) -> Result<(), AckAhead> {
        let handed_out = self.queue.handed_out;
        if number > handed_out {
            return Err(AckAhead { number, handed_out });
        }
        let mut changed = false;
        while let Some(queued) = self.queue.pop_acknowledged(number) {
            changed = true;
            if let Body::Memory(envelope) = queued.body
                && let Some(envelope) = Arc::into_inner(envelope)
            {
                self.builder.recycle(envelope.stored);
            }
            for (disk, region) in queued.regions {
                if self.in_flight.get(&(disk, region)) == Some(&queued.link.0) {
                    self.in_flight.remove(&(disk, region));
                    self.clear_unless_held(disk, region);
                }
            }
        }
        if changed {
            self.queue.stage.forget(number);
            self.events.inject |= self.injects();
            self.catch_up_if_possible(now);
        }
        Ok(())
    }

    /// A staged frame could not be read back: what it held is known to the map only.
    pub fn stage_lost(&mut self, why: &str) {
        tracing::error!(machine = %self.machine, why, "a staged frame cannot be read");
        self.only_map(&format!("staging cannot be read: {why}"));
        self.drop_queue();
    }

    /// The oldest frame in memory, if it is time to stage it; `all`: in any case. Write it to the place and
    /// say so with [`Feed::staged`].
    pub fn next_to_stage(
        &mut self,
        now: Timestamp,
        all: bool,
    ) -> Option<(FrameNumber, Arc<Envelope>, Place)> {
        let wants = self.queue.wants_staging();
        let queued = self.queue.frames.get(self.queue.staged)?;
        if !all && !wants && now.since(queued.made) < STAGE_AGE {
            return None;
        }
        let Body::Memory(envelope) = &queued.body else { return None };
        match self.queue.stage.reserve(queued.link.0, queued.bytes) {
            Ok(place) => Some((queued.link.0, envelope.clone(), place)),
            Err(error) => {
                self.stage_failed(&error);
                None
            }
        }
    }

    /// How long until the oldest frame in memory is to be staged; `None`: there is none.
    pub fn stages_in(&self, now: Timestamp) -> Option<Duration> {
        let queued = self.queue.frames.get(self.queue.staged)?;
        Some(if self.queue.wants_staging() {
            Duration::ZERO
        } else {
            STAGE_AGE.saturating_sub(now.since(queued.made))
        })
    }

    /// That frame is in its place now.
    pub fn staged(&mut self, number: FrameNumber, place: Place) {
        self.queue.stage_fault = None;
        let at = self.queue.staged;
        // It may have been acknowledged meanwhile.
        if let Some(queued) = self.queue.frames.get_mut(at)
            && queued.link.0 == number
        {
            self.queue.memory_bytes -= queued.bytes;
            queued.body = Body::Staged(place);
            self.queue.staged += 1;
        }
    }

    /// Staging does not work: frames stay in memory, and when there are too many only the map grows.
    pub fn stage_failed(&mut self, error: &std::io::Error) {
        if self.queue.stage_fault.is_none() {
            tracing::error!(machine = %self.machine, %error, "frames cannot be staged; they wait in memory, as far as that goes");
        }
        self.queue.stage_fault = Some(error.to_string());
    }
}
