//! The truth about one machine's replication: what each hop has, why the newest recoverable moment is old, and
//! when a buffer will be full.
//!
//! ```text
//! agent ──agent-link──► process server ──target-link──► target
//!   newest moment of the feed · given to the link · received · forwarded · durable · recoverable
//! ```
//!
//! Every record of the feed carries its moment, and where nothing is written a time mark is set; so each hop knows the
//! newest moment that passed it, and the difference between two neighbours is the time that was lost between them.
//! No canary of its own travels: what is measured is what would be brought up.
//!
//! A **spike** begins when RPO is far above what is usual, and ends when it is not any more. At every beat of it
//! one hop is named as its cause, from what the hops report; the hop that was named longest is the spike's.
//!
//! Lives here: what is concluded. Lives elsewhere: what is reported (`coordination::reports`), rates (`measure`).

use crate::core::Core;
use crate::estate::{Estate, MachineEntry, agent_of};
use crate::measure::{Fill, Flow};
use crate::project;
use crate::store::StoreError;
use crate::store::spikes::SpikeRow;
use continuum_model::health::Mode;
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// RPO below this is never a spike.
const SPIKE_MIN: f64 = 5.0;
/// How many times its usual value makes RPO a spike.
const SPIKE_FACTOR: f64 = 4.0;
/// So many values say what is usual.
const USUAL_VALUES: u64 = 600;
/// Spikes of one machine that are kept.
pub(crate) const SPIKES_KEPT: usize = 64;
/// Spikes that are told with a machine.
const SPIKES_TOLD: usize = 8;
/// Who has said nothing for so long is named as silent.
const SILENT: f64 = 3.0;
/// A target whose disk takes so long for one group of frames is slow.
const APPEND_SLOW_US: u64 = 1_000_000;
/// A feed without a new moment for so long stands still: a time mark is set twice a second.
const STILL: f64 = 3.0;

/// A place on the way from a write to its replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hop {
    /// The machine and its disks, or its whole site.
    Source,
    Agent,
    AgentLink,
    ProcessServer,
    TargetLink,
    Target,
    /// A person.
    Operator,
}

impl Hop {
    /// Its name in answers.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Agent => "agent",
            Self::AgentLink => "agent-link",
            Self::ProcessServer => "process-server",
            Self::TargetLink => "target-link",
            Self::Target => "target",
            Self::Operator => "operator",
        }
    }
}

/// What is followed of one machine.
#[derive(Default)]
pub(crate) struct Truth {
    /// Newest first.
    pub(crate) spikes: VecDeque<SpikeRow>,
    open: Option<Open>,
    pub(crate) staging: Fill,
    /// Bytes that leave the agent, and that leave the process server.
    pub(crate) sent: Flow,
    pub(crate) forwarded: Flow,
    /// Bytes of the first copy, of a repair or of a comparison that are done.
    pub(crate) copied: Flow,
    /// The newest change of mode that was told.
    pub(crate) told_change: Option<Timestamp>,
}

struct Open {
    started: Timestamp,
    worst: f64,
    limit: f64,
    last: Timestamp,
    /// Seconds for which each hop was named, and the last words about it.
    named: BTreeMap<Hop, (f64, String)>,
}

impl Open {
    fn row(&self, machine: MachineId, ended: Option<Timestamp>) -> SpikeRow {
        let longest = self.named.iter().max_by(|a, b| a.1.0.total_cmp(&b.1.0));
        let (hop, cause) =
            longest.map_or((Hop::Source, "not known".to_owned()), |(hop, (_, cause))| (*hop, cause.clone()));
        SpikeRow { machine, started: self.started, ended, worst_seconds: self.worst, hop, cause }
    }
}

impl Truth {
    /// The spike under way.
    pub(crate) fn now(&self, machine: MachineId) -> Option<SpikeRow> {
        self.open.as_ref().map(|open| open.row(machine, None))
    }

    /// Takes a measure of RPO and what explains it. Returns a spike that ended with it.
    pub(crate) fn measured(
        &mut self,
        machine: MachineId,
        now: Timestamp,
        (rpo, usual, threshold): (f64, Option<f64>, Option<f64>),
        why: impl FnOnce() -> Option<(Hop, String)>,
    ) -> Option<SpikeRow> {
        let limit = limit(usual, threshold);
        if self.open.is_none() && rpo > limit {
            let started = now.minus(std::time::Duration::from_secs_f64(rpo.max(0.0)));
            self.open = Some(Open { started, worst: rpo, limit, last: now, named: BTreeMap::new() });
        }
        let open = self.open.as_mut()?;
        if rpo <= open.limit {
            return self.end(machine, now);
        }
        let span = now.since(open.last).as_secs_f64().max(0.001);
        (open.worst, open.last) = (open.worst.max(rpo), now);
        if let Some((hop, cause)) = why() {
            let named = open.named.entry(hop).or_default();
            named.0 += span;
            named.1 = cause;
        }
        None
    }

    /// Nothing is promised any more: what goes on ends.
    pub(crate) fn end(&mut self, machine: MachineId, now: Timestamp) -> Option<SpikeRow> {
        let row = self.open.take()?.row(machine, Some(now));
        self.spikes.push_front(row.clone());
        self.spikes.truncate(SPIKES_KEPT);
        Some(row)
    }

    /// Whether a cause of the spike under way is known.
    fn is_explained(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.named.is_empty())
    }

    /// What is told of it: the one under way, then the newest ones.
    pub(crate) fn told(&self, machine: MachineId) -> Vec<pb::Spike> {
        let all = self.now(machine).into_iter().chain(self.spikes.iter().cloned());
        all.take(SPIKES_TOLD)
            .map(|row| pb::Spike {
                started_us: row.started.micros(),
                ended_us: row.ended.map(Timestamp::micros),
                worst_seconds: row.worst_seconds,
                hop: row.hop.name().into(),
                cause: row.cause,
            })
            .collect()
    }
}

/// Above which RPO is a spike.
fn limit(usual: Option<f64>, threshold: Option<f64>) -> f64 {
    let far = (usual.unwrap_or(0.0) * SPIKE_FACTOR).max(SPIKE_MIN);
    threshold.map_or(far, |threshold| far.min(threshold.max(SPIKE_MIN)))
}

/// What the hops of a machine reported, as it is looked at now.
struct Seen<'a> {
    now: Timestamp,
    agent: Option<&'a pb::AgentReport>,
    relay: Option<&'a pb::RelayReport>,
    replica: Option<&'a pb::ReplicaReport>,
    /// For how long each has told nothing.
    silent: [f64; 3],
    relay_name: String,
    target_name: String,
    paused: bool,
    sent: Option<u64>,
    forwarded: Option<u64>,
    churn: Option<u64>,
}

impl<'a> Seen<'a> {
    fn of(entry: &'a MachineEntry, estate: &Estate, now: Timestamp) -> Option<Self> {
        let protection = entry.row.protection.as_ref()?;
        let live = &entry.live;
        let silence = |server, at: Option<Timestamp>| {
            let since = at.map_or(f64::INFINITY, |at| now.since(at).as_secs_f64());
            // A session that is gone says nothing, however new its last word is.
            if estate.connected(server) { since } else { since.max(SILENT + 1.0) }
        };
        Some(Self {
            now,
            agent: live.agent.as_ref().map(|(report, _)| report),
            relay: live.relay.as_ref().map(|(report, _)| report),
            replica: live.replica.as_ref().map(|(report, _)| report),
            silent: [
                silence(agent_of(entry.row.id), live.agent.as_ref().map(|(_, at)| *at)),
                silence(protection.process_server, live.relay.as_ref().map(|(_, at)| *at)),
                silence(protection.master_target, live.replica.as_ref().map(|(_, at)| *at)),
            ],
            relay_name: shown(&estate.server_name(protection.process_server)),
            target_name: shown(&estate.server_name(protection.master_target)),
            paused: protection.state.is_paused(),
            sent: live.truth.sent.bytes_per_sec(),
            forwarded: live.truth.forwarded.bytes_per_sec(),
            churn: live.churn.bytes_per_sec(),
        })
    }

    fn age(&self, at: i64) -> f64 {
        (self.now.micros() - at).max(0) as f64 / 1e6
    }

    /// Which hop keeps the newest moment from arriving now, and what was measured there. `None`: nothing more is known
    /// than before, such as while what was missed is sent.
    fn cause(&self) -> Option<(Hop, String)> {
        if self.paused {
            return Some((Hop::Operator, "an operator paused replication".into()));
        }
        if let Some(silence) = self.silence() {
            return Some(silence);
        }
        let agent = self.agent?;
        if let Some(fault) = self.replica.and_then(|replica| replica.fault.as_ref()) {
            return Some((
                Hop::Target,
                format!("{} takes nothing: {}", self.target_name, shown(&fault.message)),
            ));
        }
        if let Some(fault) = &agent.channel_fault {
            let words = shown(&fault.message);
            return Some(match fault.code.split('.').next().unwrap_or_default() {
                "target" => (
                    Hop::TargetLink,
                    format!("{} does not reach {}: {words}", self.relay_name, self.target_name),
                ),
                "replica" | "space" => (Hop::Target, format!("{} refuses: {words}", self.target_name)),
                "spool" | "relay" => (Hop::ProcessServer, format!("{} refuses: {words}", self.relay_name)),
                "agent" | "feed" => (Hop::Agent, words),
                _ => (Hop::AgentLink, format!("the agent does not reach {}: {words}", self.relay_name)),
            });
        }
        match Mode::named(&agent.mode) {
            Some(Mode::Bitmap) if agent.mode_reason.contains("staging is exhausted") => {
                Some(self.narrowest())
            }
            Some(Mode::Bitmap) if agent.mode_reason.contains("window") => {
                Some((Hop::Operator, shown(&agent.mode_reason)))
            }
            Some(Mode::Bitmap) => Some((Hop::Agent, shown(&agent.mode_reason))),
            // Between two cycles nothing is on its way; one that is late says so.
            Some(Mode::Interval) if !agent.mode_reason.is_empty() => {
                Some((Hop::Agent, shown(&agent.mode_reason)))
            }
            Some(Mode::CatchingUp | Mode::Interval) => None,
            Some(Mode::Data) | None => Some(self.slowest(agent)),
        }
    }

    /// What keeps it while what was missed is sent; of interest where nothing else was named before.
    fn repairing(&self) -> Option<(Hop, String)> {
        let agent = self.agent.filter(|agent| Mode::named(&agent.mode) == Some(Mode::CatchingUp))?;
        let hop = if agent.mode_reason.contains("operator") { Hop::Operator } else { Hop::Agent };
        let left = agent.initial_bytes_total.saturating_sub(agent.initial_bytes_done);
        Some((hop, format!("{}; {} are left to send", shown(&agent.mode_reason), Bytes(left))))
    }

    fn silence(&self) -> Option<(Hop, String)> {
        let [agent, relay, target] = self.silent;
        let for_long = |seconds: f64| {
            if seconds.is_finite() {
                format!("for {seconds:.0} s")
            } else {
                "since this vault started".into()
            }
        };
        if target > SILENT {
            let passes = self.relay.is_some_and(|relay| {
                relay.acknowledged_time_us > 0 && self.age(relay.acknowledged_time_us) < SILENT
            });
            let (name, span) = (&self.target_name, for_long(target));
            return Some(if relay <= SILENT && passes {
                (
                    Hop::Target,
                    format!("{name} told the vault nothing {span}; it acknowledges what it is sent"),
                )
            } else {
                (Hop::Target, format!("{name} has said nothing {span}"))
            });
        }
        if relay > SILENT && agent > SILENT {
            let span = for_long(relay.min(agent));
            let words = format!(
                "neither the agent nor {} was heard {span}: their site or the link to it",
                self.relay_name
            );
            return Some((Hop::Source, words));
        }
        if relay > SILENT {
            return Some((
                Hop::ProcessServer,
                format!("{} has said nothing {}", self.relay_name, for_long(relay)),
            ));
        }
        // An agent that only the vault does not hear goes on replicating.
        let feeds = self.relay.is_some_and(|relay| self.age(relay.received_time_us) < SILENT);
        (agent > SILENT && !feeds)
            .then(|| (Hop::Agent, format!("the agent has said nothing {}", for_long(agent))))
    }

    /// Every hop answers: between which two the most time is lost.
    fn slowest(&self, agent: &pb::AgentReport) -> (Hop, String) {
        let newest = agent.newest_time_us;
        if self.age(newest) > STILL {
            return (Hop::Source, format!("the source made no new moment for {:.0} s", self.age(newest)));
        }
        let durable = self.replica.and_then(|replica| replica.newest_received_us).unwrap_or(0);
        let recoverable = self.replica.and_then(|replica| replica.newest_point_us).unwrap_or(0);
        if self.age(durable) < SILENT && durable - recoverable > 1_000_000 {
            let words = "all was received; it can be brought up once what was missed is whole".to_owned();
            return (Hop::Agent, words);
        }
        self.narrowest()
    }

    /// Which hop takes less than arrives.
    fn narrowest(&self) -> (Hop, String) {
        let Some(agent) = self.agent else { return (Hop::Agent, "the agent has told nothing yet".into()) };
        let rate = |rate: Option<u64>| rate.map_or("little".into(), |rate| format!("{}/s", Bytes(rate)));
        let written = rate(self.churn);
        if let Some(replica) = self.replica
            && replica.appending_us.max(replica.append_us_max) > APPEND_SLOW_US
        {
            let seconds = replica.appending_us.max(replica.append_us_max) as f64 / 1e6;
            let words = format!(
                "the disk of {} took {seconds:.1} s to make one group of frames durable; {} wait there",
                self.target_name,
                Bytes(replica.waiting_bytes)
            );
            return (Hop::Target, words);
        }
        let Some(relay) = self.relay else {
            return (Hop::ProcessServer, format!("{} has told nothing of this machine yet", self.relay_name));
        };
        let durable = self
            .replica
            .and_then(|replica| replica.newest_received_us)
            .unwrap_or(0)
            .max(relay.acknowledged_time_us);
        let lost = |before: i64, after: i64| (before - after).max(0);
        let at_agent = lost(agent.newest_time_us, relay.received_time_us);
        let at_relay = lost(relay.received_time_us, relay.forwarded_time_us);
        let on_way = lost(relay.forwarded_time_us, durable);
        let beyond = at_relay.max(on_way);
        // A full spool holds the agent up: what keeps it from emptying is further on.
        if relay.full || (beyond > 0 && beyond >= at_agent) {
            if relay.held_up_by == "work" && on_way <= at_relay {
                let words = format!(
                    "{} packs less than comes in: {} wait there, {} leave it",
                    self.relay_name,
                    Bytes(relay.backlog_bytes),
                    rate(self.forwarded)
                );
                return (Hop::ProcessServer, words);
            }
            let waiting = self.replica.map_or(0, |replica| replica.waiting_bytes);
            if waiting > 0 && waiting.saturating_mul(2) >= relay.on_way_bytes && on_way >= at_relay {
                let words = format!("{} wait at {} to be made durable", Bytes(waiting), self.target_name);
                return (Hop::Target, words);
            }
            let words = format!(
                "the link from {} to {} takes {}, {written} are written: {} wait before it, {} are on it",
                self.relay_name,
                self.target_name,
                rate(self.forwarded),
                Bytes(relay.backlog_bytes),
                Bytes(relay.on_way_bytes)
            );
            return (Hop::TargetLink, words);
        }
        let words = format!(
            "the link from the agent to {} takes {}, {written} are written: {} wait before it",
            self.relay_name,
            rate(self.sent),
            Bytes(agent.unsent_bytes)
        );
        (Hop::AgentLink, words)
    }
}

/// What each hop has, from the source to the target.
pub(crate) fn hops(entry: &MachineEntry, estate: &Estate, now: Timestamp) -> Vec<pb::Hop> {
    let Some(seen) = Seen::of(entry, estate, now) else { return Vec::new() };
    let Some(protection) = entry.row.protection.as_ref() else { return Vec::new() };
    if !project::has_rpo(&protection.state) && !protection.state.replicates() {
        return Vec::new();
    }
    let wrong = entry.live.truth.now(entry.row.id);
    let note = |hop: Hop| match &wrong {
        Some(spike) if spike.hop == hop => spike.cause.clone(),
        _ => String::new(),
    };
    let hop = |hop: Hop, newest: Option<i64>| pb::Hop {
        name: hop.name().into(),
        newest_us: newest.filter(|newest| *newest > 0),
        age_seconds: newest.filter(|newest| *newest > 0).map(|newest| seen.age(newest)),
        note: note(hop),
        ..Default::default()
    };
    let server = |id| estate.servers.get(&id).map(|entry| &entry.live);
    let (agent, relay, replica) = (seen.agent, seen.relay, seen.replica);
    let free = server(agent_of(entry.row.id)).and_then(|live| live.load.as_ref()).map(|load| load.free_bytes);
    let room = agent.map(|agent| staging_room(agent, free));
    let spool = server(protection.process_server);
    let target = server(protection.master_target);
    let received = relay.map_or(0, |relay| relay.received_time_us);
    let forwarded = relay.map_or(0, |relay| relay.forwarded_time_us);
    // Given to a link and not seen at its other end.
    let agent_way = agent.map(|agent| {
        let sent = agent.in_flight_bytes.saturating_sub(agent.unsent_bytes);
        sent.saturating_sub(relay.map_or(0, |relay| relay.backlog_bytes + relay.on_way_bytes))
    });
    let waiting = replica.map(|replica| replica.waiting_bytes);
    vec![
        pb::Hop {
            bytes: agent.map(|agent| agent.unsent_bytes),
            bytes_max: room,
            bytes_per_sec: seen.sent,
            full_seconds: room.and_then(|room| entry.live.truth.staging.until(room)),
            ..hop(Hop::Agent, agent.map(|agent| agent.newest_time_us))
        },
        pb::Hop { bytes: agent_way, ..hop(Hop::AgentLink, agent.map(|agent| agent.sent_time_us)) },
        pb::Hop {
            bytes: relay.map(|relay| relay.backlog_bytes),
            bytes_max: spool.and_then(|live| live.spool).map(|(_, max)| max),
            bytes_per_sec: seen.forwarded,
            full_seconds: spool.and_then(|live| live.spool_until()),
            ..hop(Hop::ProcessServer, relay.map(|_| received))
        },
        pb::Hop {
            bytes: relay.map(|relay| relay.on_way_bytes.saturating_sub(waiting.unwrap_or(0))),
            ..hop(Hop::TargetLink, relay.map(|_| forwarded))
        },
        pb::Hop {
            bytes: waiting,
            full_seconds: target.and_then(|live| live.volume_until()),
            ..hop(Hop::Target, replica.and_then(|replica| replica.newest_point_us))
        },
    ]
}

/// How much an agent can stage: the policy's budget, where the volume has room for it.
pub(crate) fn staging_room(agent: &pb::AgentReport, free: Option<u64>) -> u64 {
    match free.filter(|free| *free > 0) {
        Some(free) => agent.staged_bytes_max.min(agent.staged_bytes.saturating_add(free)),
        None => agent.staged_bytes_max,
    }
}

/// Until when a machine is whole at the rates measured; else why that cannot be told. Both empty: it is.
pub(crate) fn estimate(entry: &MachineEntry, estate: &Estate) -> (Option<f64>, String) {
    let Some((agent, _)) = &entry.live.agent else { return (None, String::new()) };
    let Some(mode) = Mode::named(&agent.mode) else { return (None, String::new()) };
    if entry.row.protection.as_ref().is_none_or(|protection| !protection.state.replicates())
        || matches!(mode, Mode::Data | Mode::Interval)
    {
        return (None, String::new());
    }
    if !estate.connected(agent_of(entry.row.id)) || !agent.channel_connected {
        return (None, "nothing is sent now".into());
    }
    let truth = &entry.live.truth;
    let churn = entry.live.churn.bytes_per_sec().unwrap_or(0);
    let (left, rate, against) = match (mode, agent.phase.as_str()) {
        (Mode::Bitmap, _) => {
            (agent.in_flight_bytes.saturating_add(agent.dirty_bytes), truth.sent.bytes_per_sec(), churn)
        }
        (_, "comparing") => {
            (agent.to_compare_bytes.saturating_sub(agent.compared_bytes), truth.copied.bytes_per_sec(), 0)
        }
        // What is written meanwhile travels beside it and is in the rate already.
        _ => (
            agent.initial_bytes_total.saturating_sub(agent.initial_bytes_done),
            truth.copied.bytes_per_sec(),
            0,
        ),
    };
    remaining(left, rate, against, churn)
}

fn remaining(left: u64, rate: Option<u64>, against: u64, churn: u64) -> (Option<f64>, String) {
    match rate {
        None => (None, "not measured yet".into()),
        Some(_) if left == 0 => (Some(0.0), String::new()),
        Some(rate) if rate > against => (Some(left as f64 / (rate - against) as f64), String::new()),
        Some(rate) => {
            let words =
                format!("not at this rate: {}/s get through, {}/s are written", Bytes(rate), Bytes(churn));
            (None, words)
        }
    }
}

/// Measures all machines; returns the spikes that ended.
pub(crate) fn measure(estate: &mut Estate, now: Timestamp) -> Vec<SpikeRow> {
    let ids: Vec<MachineId> = estate.machines.keys().copied().collect();
    let mut ended = Vec::new();
    for id in ids {
        let Some(entry) = estate.machines.get(&id) else { continue };
        let protection = entry.row.protection.as_ref();
        let rpo = protection
            .filter(|protection| project::has_rpo(&protection.state))
            .and_then(|_| project::rpo(entry, now));
        let threshold = protection
            .and_then(|protection| estate.policies.get(&protection.policy))
            .map(|policy| policy.policy.rpo_threshold_seconds as f64);
        let interval = protection
            .and_then(|protection| estate.policies.get(&protection.policy))
            .map_or(0.0, |policy| policy.policy.replication_interval_seconds as f64);
        let cause = rpo.filter(|rpo| *rpo > SPIKE_MIN).and_then(|_| {
            let seen = Seen::of(entry, estate, now)?;
            let first = || seen.repairing().filter(|_| !entry.live.truth.is_explained());
            seen.cause().or_else(first)
        });
        let Some(entry) = estate.machines.get_mut(&id) else { continue };
        // Between two cycles it rises by as much as lies between them.
        // Of a machine that is new here an outage may be half of all that was measured.
        let known = entry.live.rpo.quantile(0.5).filter(|_| entry.live.rpo.count() >= USUAL_VALUES);
        let usual = Some(known.unwrap_or(0.0).max(interval));
        let truth = &mut entry.live.truth;
        ended.extend(match rpo {
            Some(rpo) => truth.measured(id, now, (rpo, usual, threshold), || cause),
            None => truth.end(id, now),
        });
    }
    ended
}

/// Stores spikes that ended, and tells of them.
pub(crate) async fn keep(core: &Core, ended: Vec<SpikeRow>) -> Result<(), StoreError> {
    if ended.is_empty() {
        return Ok(());
    }
    let mut tx = core.store.begin().await?;
    for row in ended {
        let name = core.estate().machines.get(&row.machine).map(|entry| entry.row.name.clone());
        let Some(name) = name else { continue };
        let text = format!(
            "RPO rose to {:.0} s from {} on ({}): {}",
            row.worst_seconds,
            row.started,
            row.hop.name(),
            row.cause
        );
        tx.add_event(core.event("rpo", &name, row.machine, text, "")).await?;
        tx.save_spike(&row).await?;
    }
    core.commit(tx).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Timestamp {
        Timestamp::from_micros((seconds * 1e6) as i64)
    }
    fn micros(seconds: f64) -> i64 {
        at(seconds).micros()
    }

    /// Everything as it should be at second 1000: each hop a little behind the one before.
    fn reports() -> (pb::AgentReport, pb::RelayReport, pb::ReplicaReport) {
        let agent = pb::AgentReport {
            mode: "data".into(),
            channel_connected: true,
            newest_time_us: micros(999.9),
            sent_time_us: micros(999.8),
            ..Default::default()
        };
        let relay = pb::RelayReport {
            received_time_us: micros(999.7),
            forwarded_time_us: micros(999.6),
            acknowledged_time_us: micros(999.5),
            ..Default::default()
        };
        let replica = pb::ReplicaReport {
            newest_received_us: Some(micros(999.5)),
            newest_point_us: Some(micros(999.5)),
            ..Default::default()
        };
        (agent, relay, replica)
    }

    fn named(
        change: impl FnOnce(&mut pb::AgentReport, &mut pb::RelayReport, &mut pb::ReplicaReport, &mut [f64; 3]),
    ) -> Option<Hop> {
        let (mut agent, mut relay, mut replica) = reports();
        let mut silent = [0.5; 3];
        change(&mut agent, &mut relay, &mut replica, &mut silent);
        let seen = Seen {
            now: at(1000.0),
            agent: Some(&agent),
            relay: Some(&relay),
            replica: Some(&replica),
            silent,
            relay_name: "ps".into(),
            target_name: "mt".into(),
            paused: false,
            sent: Some(1 << 20),
            forwarded: Some(1 << 20),
            churn: Some(5 << 20),
        };
        seen.cause().map(|(hop, words)| {
            assert!(!words.is_empty());
            hop
        })
    }

    #[test]
    fn the_hop_that_loses_the_time_is_named() {
        let fault =
            |code: &str| Some(pb::Fault { code: code.into(), message: "why".into(), ..Default::default() });
        assert_eq!(named(|_, _, _, silent| silent[2] = 9.0), Some(Hop::Target));
        assert_eq!(named(|_, _, _, silent| silent[1] = 9.0), Some(Hop::ProcessServer));
        assert_eq!(named(|_, _, _, silent| (silent[0], silent[1]) = (9.0, 9.0)), Some(Hop::Source));
        let agent_gone = |_: &mut _, relay: &mut pb::RelayReport, _: &mut _, silent: &mut [f64; 3]| {
            silent[0] = 9.0;
            relay.received_time_us = micros(990.0);
        };
        assert_eq!(named(agent_gone), Some(Hop::Agent));
        assert_eq!(
            named(|agent, _, _, _| agent.channel_fault = fault("channel.connect")),
            Some(Hop::AgentLink)
        );
        assert_eq!(
            named(|agent, _, _, _| agent.channel_fault = fault("target.unreachable")),
            Some(Hop::TargetLink)
        );
        assert_eq!(named(|_, _, replica, _| replica.fault = fault("space.reserve")), Some(Hop::Target));
        assert_eq!(named(|agent, _, _, _| agent.newest_time_us = micros(980.0)), Some(Hop::Source));
        let behind = |replica: &mut pb::ReplicaReport, seconds: f64| {
            replica.newest_received_us = Some(micros(seconds));
            replica.newest_point_us = Some(micros(seconds));
        };
        let slow_link =
            |_: &mut _, relay: &mut pb::RelayReport, replica: &mut pb::ReplicaReport, _: &mut _| {
                (relay.received_time_us, relay.forwarded_time_us) = (micros(980.5), micros(980.4));
                relay.acknowledged_time_us = micros(980.3);
                behind(replica, 980.3);
            };
        assert_eq!(named(slow_link), Some(Hop::AgentLink));
        let far_link =
            |_: &mut _, relay: &mut pb::RelayReport, replica: &mut pb::ReplicaReport, _: &mut _| {
                relay.held_up_by = "link".into();
                (relay.forwarded_time_us, relay.acknowledged_time_us) = (micros(985.0), micros(984.0));
                behind(replica, 984.0);
            };
        assert_eq!(named(far_link), Some(Hop::TargetLink));
        let full = |_: &mut _, relay: &mut pb::RelayReport, replica: &mut pb::ReplicaReport, _: &mut _| {
            relay.full = true;
            (relay.received_time_us, relay.forwarded_time_us) = (micros(985.5), micros(985.0));
            relay.acknowledged_time_us = micros(984.0);
            behind(replica, 984.0);
        };
        assert_eq!(named(full), Some(Hop::TargetLink), "a full spool is the fault of what lies beyond it");
        let packing = |_: &mut _, relay: &mut pb::RelayReport, replica: &mut pb::ReplicaReport, _: &mut _| {
            relay.held_up_by = "work".into();
            (relay.forwarded_time_us, relay.acknowledged_time_us) = (micros(985.0), micros(985.0));
            behind(replica, 985.0);
        };
        assert_eq!(named(packing), Some(Hop::ProcessServer));
        let disk = |_: &mut _, relay: &mut pb::RelayReport, replica: &mut pb::ReplicaReport, _: &mut _| {
            replica.appending_us = 4_000_000;
            relay.acknowledged_time_us = micros(990.0);
            behind(replica, 990.0);
        };
        assert_eq!(named(disk), Some(Hop::Target));
        let exhausted = |agent: &mut pb::AgentReport,
                         relay: &mut pb::RelayReport,
                         replica: &mut pb::ReplicaReport,
                         _: &mut _| {
            (agent.mode, agent.mode_reason) =
                ("bitmap".into(), "staging is exhausted: the target takes less".into());
            (relay.received_time_us, relay.forwarded_time_us) = (micros(900.0), micros(900.0));
            relay.acknowledged_time_us = micros(900.0);
            behind(replica, 900.0);
        };
        assert_eq!(named(exhausted), Some(Hop::AgentLink));
        assert_eq!(
            named(|agent, _, _, _| agent.mode = "catching-up".into()),
            None,
            "what caused it was named before"
        );
    }

    #[test]
    fn a_spike_has_one_cause_and_ends() {
        let machine = MachineId::from_bytes([1; 16]);
        let mut truth = Truth::default();
        let at_second = |truth: &mut Truth, second: f64, rpo: f64, hop: Hop| {
            truth.measured(machine, at(second), (rpo, Some(0.2), Some(900.0)), || {
                Some((hop, hop.name().into()))
            })
        };
        assert_eq!(at_second(&mut truth, 100.0, 4.9, Hop::Agent), None);
        assert!(truth.now(machine).is_none());
        for second in 0..10 {
            let hop = if second < 3 { Hop::AgentLink } else { Hop::Target };
            assert_eq!(at_second(&mut truth, 106.0 + f64::from(second), 6.0 + f64::from(second), hop), None);
        }
        let now = truth.now(machine).expect("it goes on");
        assert_eq!((now.hop, now.ended, now.started), (Hop::Target, None, at(100.0)));
        let ended = at_second(&mut truth, 117.0, 0.3, Hop::Target).expect("it ended");
        assert_eq!((ended.worst_seconds, ended.ended), (15.0, Some(at(117.0))));
        for round in 0..100 {
            let start = 200.0 + f64::from(round) * 20.0;
            at_second(&mut truth, start, 9.0, Hop::Agent);
            at_second(&mut truth, start + 1.0, 0.1, Hop::Agent);
        }
        assert_eq!((truth.spikes.len(), truth.told(machine).len()), (SPIKES_KEPT, SPIKES_TOLD));
    }

    #[test]
    fn what_is_usual_for_an_interval_is_no_spike() {
        assert_eq!(limit(Some(0.1), Some(900.0)), SPIKE_MIN);
        assert_eq!(limit(Some(150.0), Some(900.0)), 600.0);
        assert_eq!(limit(Some(400.0), Some(900.0)), 900.0, "the promise counts in any case");
        assert_eq!(limit(None, None), SPIKE_MIN);
    }

    #[test]
    fn an_estimate_is_honest() {
        assert_eq!(remaining(1000, Some(300), 200, 200), (Some(10.0), String::new()));
        let (none, words) = remaining(1 << 30, Some(1 << 20), 2 << 20, 2 << 20);
        assert_eq!(none, None);
        assert_eq!(words, "not at this rate: 1.0 MiB/s get through, 2.0 MiB/s are written");
        assert_eq!(remaining(1, None, 0, 0), (None, "not measured yet".into()));
    }
}
