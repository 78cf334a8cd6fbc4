//! Which frame may come next on a stream: the right machine's, under the right epoch, without hole or fork.
//!
//! | frame | what follows |
//! | --- | --- |
//! | the one after the last, naming its digest | taken |
//! | one that the target holds, or that passed here before | dropped, counted |
//! | a later one | refused: frames are missing, and the stream starts again from what the target holds |
//! | the next by number, naming another digest | refused: two histories |
//! | of another machine, or under another epoch | refused: no right |
//!
//! And which acknowledgement may pass on the way back: one of a frame that was sent ([`Sent`]).

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::FrameHead;
use continuum_model::id::MachineId;
use continuum_model::units::{Epoch, FrameNumber};
use continuum_wire::channel::{Hello, Welcome};
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a stream stands.
#[derive(Debug)]
pub struct Order {
    machine: MachineId,
    epoch: Epoch,
    last: FrameNumber,
    digest: u128,
}

/// The last frame that was sent to the target.
#[derive(Debug)]
pub struct Sent(AtomicU64);

impl Sent {
    /// Nothing but what the target held already.
    pub const fn after(welcome: &Welcome) -> Self {
        Self(AtomicU64::new(welcome.number.0))
    }
    /// A frame is about to be sent. Said before it is: its acknowledgement may be back before sending returns.
    pub fn sending(&self, number: FrameNumber) {
        self.0.store(number.0, Ordering::Release);
    }
    /// Whether an acknowledgement of the target may be passed on.
    pub fn check(&self, acknowledged: FrameNumber) -> Result<(), Box<Fault>> {
        let sent = FrameNumber(self.0.load(Ordering::Acquire));
        if acknowledged > sent { Err(Box::new(beyond(acknowledged, sent))) } else { Ok(()) }
    }
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// It is the next one.
    Next,
    /// It is there already.
    Duplicate,
}

impl Order {
    /// A stream that goes on after what the target holds.
    pub const fn after(hello: &Hello, welcome: &Welcome) -> Self {
        Self { machine: hello.machine, epoch: hello.epoch, last: welcome.number, digest: welcome.digest }
    }

    /// Looks at the next frame; moves on when it is taken.
    pub fn take(&mut self, head: &FrameHead) -> Result<Take, Box<Fault>> {
        let place = head.identity;
        if place.machine != self.machine {
            return Err(Box::new(no_right(self.machine, place.machine)));
        }
        if place.epoch != self.epoch {
            return Err(Box::new(other_epoch(place.epoch, self.epoch)));
        }
        if place.number <= self.last {
            return Ok(Take::Duplicate);
        }
        if place.number.0 != self.last.0.saturating_add(1) {
            return Err(Box::new(gap(place.number, self.last)));
        }
        if place.previous != self.digest {
            return Err(Box::new(fork(place.number)));
        }
        (self.last, self.digest) = (place.number, head.digest);
        Ok(Take::Next)
    }
}

/// A machine's certificate opens that machine's data only.
pub(crate) fn no_right(own: impl std::fmt::Display, wanted: MachineId) -> Fault {
    Fault::new(FaultClass::Refused, "channel.no-right", format!("{own} has no right to machine {wanted}"))
        .affects("this stream, which was closed")
        .spares("the data of that machine, of which nothing was taken or changed")
        .remedy("a machine's certificate opens that machine's data only: see who uses it, and revoke it")
}

/// The epoch of a stream or frame is not the one that holds.
pub(crate) fn other_epoch(found: Epoch, holds: Epoch) -> Fault {
    let (class, words) = if found < holds {
        (FaultClass::Refused, "is superseded by")
    } else {
        // Whoever was told later knows more: it comes again when we were told, too.
        (FaultClass::NotReady, "is newer than")
    };
    Fault::new(class, "epoch.superseded", format!("epoch {found} {words} {holds}"))
        .affects("this stream")
        .spares("the replica, of which the newest writer is the only one")
        .remedy("nothing where a failover is meant; else see the machine in the console")
}

fn gap(found: FrameNumber, last: FrameNumber) -> Fault {
    Fault::new(
        FaultClass::NotConnected,
        "feed.gap",
        format!(
            "frame {found} arrived where frame {} was due: what lies between is missing",
            last.0.saturating_add(1)
        ),
    )
    .affects("this stream, which starts again from what the target holds")
    .spares("the replica: nothing after the gap was taken")
    .remedy("nothing: the missing frames are sent again")
}

fn fork(number: FrameNumber) -> Fault {
    Fault::new(
        FaultClass::NotConnected,
        "feed.fork",
        format!("frame {number} does not follow the frame before it: the digests differ"),
    )
    .affects("this stream, which starts again from what the target holds")
    .spares("the replica: the frame was not taken")
    .remedy("nothing: source and target compare again; if it stays, a resync of the machine")
}

fn beyond(acknowledged: FrameNumber, sent: FrameNumber) -> Fault {
    Fault::new(
        FaultClass::Failed,
        "channel.protocol",
        format!("the master target acknowledged frame {acknowledged}, but only {sent} were sent to it"),
    )
    .affects("this stream, which was closed; the acknowledgement was not passed on")
    .spares("the source's knowledge of what changed")
    .remedy("see whether something else writes to this replica, and update the older side")
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
    use continuum_model::time::Timestamp;
    use continuum_model::units::Sequence;

    fn head(machine: u8, epoch: u64, number: u64, previous: u128) -> FrameHead {
        let mut builder = FrameBuilder::default();
        let change = Change::Barrier(Barrier::time_mark(true));
        builder.push(&Record { sequence: Sequence(number), time: Timestamp::from_micros(1), change });
        let machine = MachineId::from_bytes([machine; 16]);
        let number = FrameNumber(number);
        let place = Identity { machine, epoch: Epoch(epoch), number, session: 1, previous };
        Envelope::plain(&builder.finish(place).unwrap()).head
    }

    fn order(number: u64, digest: u128) -> Order {
        let machine = MachineId::from_bytes([1; 16]);
        Order { machine, epoch: Epoch(7), last: FrameNumber(number), digest }
    }

    #[test]
    fn only_the_next_frame_of_this_history_is_taken() {
        let first = head(1, 7, 6, 99);
        let rows = [
            ("the next", first.clone(), Ok(Take::Next)),
            ("held already", head(1, 7, 5, 0), Ok(Take::Duplicate)),
            ("long held", head(1, 7, 1, 0), Ok(Take::Duplicate)),
            ("a hole of one", head(1, 7, 7, 99), Err("feed.gap")),
            ("far ahead", head(1, 7, u64::MAX - 1, 99), Err("feed.gap")),
            ("another history", head(1, 7, 6, 98), Err("feed.fork")),
            ("another machine's", head(2, 7, 6, 99), Err("channel.no-right")),
            ("an older epoch", head(1, 6, 6, 99), Err("epoch.superseded")),
            ("a newer epoch", head(1, 8, 6, 99), Err("epoch.superseded")),
        ];
        for (why, head, expected) in rows {
            let taken = order(5, 99).take(&head).map_err(|fault| fault.code);
            assert_eq!(taken, expected.map_err(str::to_owned), "{why}");
        }
        let mut order = order(5, 99);
        assert_eq!(order.take(&first).unwrap(), Take::Next);
        assert_eq!(order.take(&first).unwrap(), Take::Duplicate, "once more");
        assert_eq!(order.take(&head(1, 7, 7, first.digest)).unwrap(), Take::Next, "chained");
    }

    #[test]
    fn only_an_older_epoch_is_final() {
        let fault = |epoch| order(5, 99).take(&head(1, epoch, 6, 99)).unwrap_err();
        assert_eq!(fault(6).class, FaultClass::Refused);
        assert_eq!(fault(8).class, FaultClass::NotReady);
        assert!(fault(6).message.contains("epoch 6 is superseded by 7"));
    }

    #[test]
    fn the_last_number_there_is_does_not_wrap() {
        let mut order = order(u64::MAX - 1, 99);
        assert_eq!(order.take(&head(1, 7, 1, 0)).unwrap(), Take::Duplicate);
    }
}
