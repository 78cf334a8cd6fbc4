//! Opening a stream to a replica: what goes on, and what is sent again.
//!
//! | the replica's last frame is | then |
//! | --- | --- |
//! | the acknowledged one, or one that waits here | frames after it are sent: no gap |
//! | known to have been sent, but what followed it is gone | a Break, and what the map says is injected |
//! | older than what was acknowledged, or never sent by this source | the same, and the map says everything |

use super::{Feed, Mode};
use crate::progress::Link;
use crate::staging::Found;
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber, Sequence};

/// What the replica holds, as it says when a stream opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaState {
    /// Its last frame; 0: none.
    pub number: FrameNumber,
    /// That frame's digest.
    pub digest: u128,
    /// Its last record.
    pub sequence: Sequence,
    /// That record's moment.
    pub newest: Timestamp,
}

/// What came of opening a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connected {
    /// The replica goes on where it was: frames after its last one are at hand.
    Continued,
    /// Changes are missing from the feed: a break is recorded after the frames that are still at hand, and
    /// the stale regions are injected.
    Broken {
        /// Why.
        reason: String,
        /// Bytes of regions to be injected.
        stale_bytes: u64,
    },
    /// Too much waits already: first that is sent, then what only the map knows is injected.
    Waiting {
        /// Why.
        reason: String,
    },
}

/// A stream cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("replication is stopped: {reason}")]
pub struct Halted {
    /// Why.
    pub reason: String,
}

impl Feed {
    /// Takes over what an earlier process staged. Its changes are in the map as well, so that losing them is
    /// no harm; sending them first keeps the moments in between.
    pub(super) fn adopt(&mut self, found: Vec<Found>) {
        // Removing files is not synced: a power cut may bring back what was acknowledged long ago.
        let acked = self.queue.acked();
        let agrees = |found: &Found| found.head.identity.number != acked.0 || found.head.digest == acked.1;
        if found.last().is_some_and(|last| last.head.identity.number < acked.0) || !found.iter().all(agrees) {
            tracing::info!(machine = %self.machine, frames = found.len(), "staged frames from before what was acknowledged are dropped");
            return self.queue.clear();
        }
        for Found { head, bytes, place } in found {
            self.epoch = head.identity.epoch;
            self.next_number = head.identity.number.next();
            self.last_digest = head.digest;
            self.next_sequence = head.last_sequence().next();
            self.last_time = head.last_time;
            self.queue.adopt(&head, bytes, place);
        }
    }

    /// A stream opened under `epoch`, and the replica says what it holds.
    pub fn connect(
        &mut self,
        epoch: Epoch,
        replica: ReplicaState,
        now: Timestamp,
    ) -> Result<Connected, Halted> {
        if let Some(reason) = &self.halted {
            return Err(Halted { reason: reason.clone() });
        }
        let held: Link = (replica.number, replica.digest);
        if self.paused.take().is_none() && !self.linked {
            self.reason =
                "the agent was started again: what it cannot go on with is sent as it is now".into();
        }
        self.events.frames = true;
        if self.goes_on(held, epoch) {
            self.queue.start_at(held, replica.newest);
            let acknowledged = self.acknowledge(replica.number, now);
            debug_assert!(acknowledged.is_ok());
            self.begin_epoch(epoch, replica);
        } else {
            let known = self.progress.knows(held) && replica.number >= self.queue.acked().0;
            self.only_map("the replica does not hold what was sent last");
            self.drop_queue();
            if known && held.0 == FrameNumber(0) {
                self.reason = "the replica is empty: all that is not zero is sent".into();
            } else if !known {
                self.reason = format!(
                    "resync required: the replica ends with frame {}, which this source cannot follow (frame {} was acknowledged): everything is sent again",
                    replica.number,
                    self.queue.acked().0
                );
                tracing::warn!(machine = %self.machine, reason = self.reason, "the replica is not the one that was fed");
                self.doubt_all();
                self.doubted_since = Some(self.reason.clone());
            }
            self.queue.restart_at(held, replica.newest);
            self.next_number = replica.number.next();
            self.last_digest = replica.digest;
            self.begin_epoch(epoch, replica);
            self.fresh = replica.number == FrameNumber(0);
            self.touched.iter_mut().for_each(crate::bits::Bits::clear_all);
        }
        let was = self.mode;
        self.catch_up_if_possible(now);
        self.events.inject = true;
        Ok(match (was, self.mode) {
            (_, Mode::Bitmap) => Connected::Waiting { reason: self.reason.clone() },
            (Mode::Bitmap, _) => {
                Connected::Broken { reason: self.reason.clone(), stale_bytes: self.totals.round_total }
            }
            _ => Connected::Continued,
        })
    }

    fn begin_epoch(&mut self, epoch: Epoch, replica: ReplicaState) {
        self.linked = true;
        self.epoch = epoch;
        self.next_sequence = self.next_sequence.max(replica.sequence.next());
        self.last_time = self.last_time.max(replica.newest);
    }

    /// Whether what waits here follows the replica's last frame, and may be sent under this epoch.
    fn goes_on(&self, held: Link, epoch: Epoch) -> bool {
        // With nothing waiting, the next frame made must be the one after the replica's last.
        let joined = !self.queue.is_empty()
            || (self.linked && self.next_number == held.0.next() && self.last_digest == held.1);
        let newer = self.queue.frames().filter(|queued| queued.link.0 > held.0);
        self.queue.follows(held) && joined && newer.into_iter().all(|queued| queued.epoch == epoch)
    }

    /// Forgets what waits. All it held is in the map, and stale from now on.
    pub(super) fn drop_queue(&mut self) {
        self.queue.clear();
        self.builder = Default::default();
        self.builder_records = 0;
        self.builder_regions.clear();
        self.in_flight.clear();
        for (map, stale) in self.maps.iter().zip(&mut self.stale) {
            stale.copy_from(map.bits());
        }
        self.events.frames = true;
    }
}
