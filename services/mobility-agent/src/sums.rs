//! Asking for sums of the replica, through the session with the vault; one question at a time.
//!
//! The thread that compares waits for the answer. It is woken by the answer, by the end of the agent, or by its own
//! patience; without an answer the comparison is given up, and everything that may differ is sent.

use continuum_capture::ReplicaSums;
use continuum_model::digest::{BlockSum, Nodes};
use continuum_model::units::{DiskIndex, FrameNumber};
use continuum_proto::v1 as pb;
use continuum_wire::session::Outbox;
use pb::server_message;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is waited for. Longer than the vault waits for the target.
const PATIENCE: Duration = Duration::from_secs(90);

/// The question that is open, and its answer.
#[derive(Default)]
pub(crate) struct Sums {
    inner: Mutex<Inner>,
    answered: Condvar,
}

#[derive(Default)]
struct Inner {
    outbox: Option<Outbox>,
    last: u64,
    reply: Option<pb::SumsReply>,
    closed: bool,
}

impl Sums {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn speaks(&self, outbox: Outbox) {
        self.inner().outbox = Some(outbox);
    }

    /// An answer came; one to an older question is none.
    pub(crate) fn answer(&self, reply: pb::SumsReply) {
        let mut inner = self.inner();
        if reply.id == inner.last {
            inner.reply = Some(reply);
            self.answered.notify_all();
        }
    }

    /// Nobody waits any more.
    pub(crate) fn close(&self) {
        self.inner().closed = true;
        self.answered.notify_all();
    }

    /// Asks, and waits.
    ///
    /// Errors: why there is no answer.
    pub(crate) fn ask(&self, disk: DiskIndex, nodes: &Nodes) -> Result<ReplicaSums, String> {
        let count = nodes.range.end - nodes.range.start;
        let mut inner = self.inner();
        inner.last += 1;
        inner.reply = None;
        let request = pb::SumsRequest {
            id: inner.last,
            disk: disk.0.into(),
            level: nodes.level.into(),
            first: nodes.range.start,
            count: u32::try_from(count).map_err(|_| "more is asked for than is told at once".to_owned())?,
        };
        let said = |outbox: &Outbox| outbox.say(server_message::Message::Sums(request));
        if !inner.outbox.as_ref().is_some_and(said) {
            return Err("there is no session with the vault".into());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if inner.closed {
                return Err("the agent stops".into());
            }
            if let Some(reply) = inner.reply.take() {
                return taken(reply, count);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the vault did not answer within {} s", PATIENCE.as_secs()));
            }
            inner = self.answered.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn taken(reply: pb::SumsReply, count: u64) -> Result<ReplicaSums, String> {
    if let Some(fault) = reply.fault {
        return Err(continuum_wire::grpc::fault_from_proto(&fault).message);
    }
    let told = reply.sums.ok_or("the answer holds no sums")?;
    let digest = told.frame_digest.as_slice().try_into().map_err(|_| "the answer names no frame")?;
    if told.sums.len() as u64 != count * 16 {
        return Err(format!("{} bytes of sums were told, not {}", told.sums.len(), count * 16));
    }
    let (sums, _) = told.sums.as_chunks::<16>();
    Ok(ReplicaSums {
        behind: (FrameNumber(told.frame), u128::from_le_bytes(digest)),
        sums: sums.iter().map(|sum| BlockSum(u128::from_le_bytes(*sum))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_only_as_it_was_asked_for() {
        let whole = |bytes: usize, digest: usize| pb::SumsReply {
            id: 1,
            fault: None,
            sums: Some(pb::Sums { frame: 7, frame_digest: vec![2; digest], sums: vec![1; bytes] }),
        };
        let told = taken(whole(48, 16), 3).unwrap();
        assert_eq!((told.behind.0, told.sums.len()), (FrameNumber(7), 3));
        assert!(taken(whole(47, 16), 3).is_err() && taken(whole(64, 16), 3).is_err());
        assert!(taken(whole(48, 15), 3).is_err());
        assert!(taken(pb::SumsReply::default(), 0).is_err());
        let nodes = Nodes { level: 0, range: 0..3 };
        let sums = Sums::default();
        assert!(sums.ask(DiskIndex(0), &nodes).unwrap_err().contains("no session"));
    }
}
