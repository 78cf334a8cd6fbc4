//! Consistency groups: who is in one, which points its members share, and which one is meant.
//!
//! ```text
//! agents of all members ─(each for itself, again and again)─► votes ─ every member, and every replica has it ─► listed
//! ```
//!
//! Lives here: orders about groups, votes, choosing a shared point. Lives elsewhere: the rows (`store::groups`), how a
//! point is cut (the agents), what each agent is told (`coordination::assignment`).
//!
//! Invariant: a point is listed as shared only when every member's own agent said that it cut it, and that it held until
//! all had. Until then, and for ever where one is silent, it is an ordinary point of each machine.

use crate::coordination::reports::limited;
use crate::core::Core;
use crate::estate::{Estate, agent_of};
use crate::measure::Distribution;
use crate::operator::orders::usage;
use crate::store::groups::{GroupBody, GroupPointRow, GroupRow};
use crate::store::{StoreError, Tx};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, PointId};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Machines of one group.
const MACHINES_MAX: usize = 32;
/// The hold where none is named, and what may be named, in milliseconds.
const HOLD: u32 = 1000;
const HOLD_RANGE: std::ops::RangeInclusive<u32> = 10..=5000;
const EVERY_MAX: u64 = 24 * 3600;
/// Points of one group that wait for votes or replicas.
const VOTES_MAX: usize = 256;

/// A group and what is reported of it.
pub(crate) struct GroupEntry {
    pub(crate) row: GroupRow,
    pub(crate) live: GroupLive,
}

/// What is known of a group only from reports.
#[derive(Default)]
pub(crate) struct GroupLive {
    /// By point and member: the place in its feed, its moment, how long it held in microseconds.
    votes: BTreeMap<PointId, BTreeMap<MachineId, (u64, i64, u64)>>,
    /// Milliseconds.
    pub(crate) hold: Distribution,
    pub(crate) missed: Option<(Timestamp, String)>,
    /// Since when it is as it is.
    pub(crate) since: Option<Timestamp>,
}

impl GroupLive {
    /// Nothing was reported yet of a group that is as it is since then.
    pub(crate) fn since(now: Timestamp) -> Self {
        Self { since: Some(now), ..Self::default() }
    }
}

impl Estate {
    /// The group of a machine.
    pub(crate) fn group_of(&self, machine: MachineId) -> Option<&GroupEntry> {
        self.groups.values().find(|entry| entry.row.body.machines.contains(&machine))
    }

    /// The newest point that the members of a group share.
    pub(crate) fn newest_shared(&self, group: &str) -> Option<&GroupPointRow> {
        self.group_points.values().filter(|point| point.group == group).max_by_key(|point| point.time)
    }

    /// Who coordinates: the first member that is there and can be reached by the others.
    pub(crate) fn leader_of(&self, group: &GroupRow) -> Option<(MachineId, &str)> {
        group.body.machines.iter().find_map(|id| {
            let entry = self.machines.get(id)?;
            let address = entry.live.group_address.as_str();
            (self.connected(agent_of(*id)) && !address.is_empty()).then_some((*id, address))
        })
    }

    fn label(&self, machine: MachineId) -> String {
        self.machines.get(&machine).map(|entry| entry.row.name.clone()).unwrap_or_default()
    }
}

/// What keeps a group from having points now.
pub(crate) fn problems(row: &GroupRow, estate: &Estate) -> Vec<String> {
    let mut problems = Vec::new();
    for id in &row.body.machines {
        let Some(entry) = estate.machines.get(id) else {
            problems.push("a machine of it is gone".into());
            continue;
        };
        let name = shown(&entry.row.name);
        match &entry.row.protection {
            None => problems.push(format!("{name} is not protected")),
            Some(_) if !estate.connected(agent_of(*id)) => {
                problems.push(format!("the agent of {name} is not connected"));
            }
            Some(_) => {
                let mode =
                    entry.live.agent.as_ref().map(|(agent, _)| agent.mode.as_str()).unwrap_or_default();
                if !matches!(mode, "" | "data") {
                    problems.push(format!("{name} is in mode {}", shown(mode)));
                }
            }
        }
    }
    if problems.is_empty() && estate.leader_of(row).is_none() {
        problems.push("no member can be reached by the others (group_listen of its agent)".into());
    }
    problems
}

/// The name in `group/NAME`.
pub(crate) fn named(text: &str) -> Option<&str> {
    text.strip_prefix("group/")
}

/// The group in `group:NAME`, and the empty name in `group`: the machine's own.
pub(crate) fn wanted(point: &str) -> Option<&str> {
    match point.strip_prefix("group")? {
        "" => Some(""),
        rest => rest.strip_prefix(':'),
    }
}

/// The shared point that is meant for a machine by `group`, `group:NAME` or `group:ID`.
pub(crate) fn resolve(estate: &Estate, machine: MachineId, wanted: &str) -> Result<GroupPointRow, Fault> {
    let none = |message: String, remedy: &str| {
        Fault::new(FaultClass::NotReady, "group.no-point", message)
            .affects("this order")
            .spares("nothing was changed; every machine's own points")
            .remedy(remedy)
    };
    let name = shown(&estate.label(machine));
    let point = match wanted.parse::<PointId>() {
        Ok(id) => estate.group_points.get(&id),
        Err(_) => {
            let group = if wanted.is_empty() {
                estate.group_of(machine).map(|entry| entry.row.name.as_str())
            } else {
                Some(wanted)
            };
            let group = group.ok_or_else(|| {
                none(format!("{name} is in no consistency group"), "see `continuum get groups`")
            })?;
            if !estate.groups.contains_key(group) {
                return Err(no_group(group));
            }
            let points = estate.group_points.values();
            points
                .filter(|point| point.group == group && point.machines.contains(&machine))
                .max_by_key(|point| point.time)
        }
    };
    point.filter(|point| point.machines.contains(&machine)).cloned().ok_or_else(|| {
        none(
            format!("there is no point that {name} shares with its group"),
            "cut one: continuum bookmark group/NAME NAME-OF-POINT; see `continuum describe group` for what keeps it",
        )
    })
}

pub(crate) fn no_group(name: &str) -> Fault {
    Fault::new(
        FaultClass::NotFound,
        "group.unknown",
        format!("there is no consistency group {}", shown(&limited(name, 300))),
    )
    .affects("this order")
    .spares("nothing was changed")
    .remedy("see `continuum get groups`")
}

/// What an order about a group changes at once.
pub(crate) async fn set(core: &Arc<Core>, tx: &mut Tx, order: &pb::SetGroup) -> Result<(), Fault> {
    let wrong = |what: &str, remedy: &str| usage("group.invalid", what, remedy);
    let odd = |c: char| c.is_control() || c == '/' || c == ':' || c == ',';
    if order.name.is_empty() || order.name.len() > 253 || order.name.contains(odd) {
        let what = "a group needs a name of 1 to 253 bytes without / : and ,";
        return Err(wrong(what, "give it one"));
    }
    let hold = if order.hold_millis == 0 { HOLD } else { order.hold_millis };
    if !HOLD_RANGE.contains(&hold) {
        return Err(wrong("hold_millis: writes are held for 10 ms to 5 s at most", "name a time between"));
    }
    if order.every_seconds > EVERY_MAX {
        return Err(wrong(
            "every_seconds: longer than a day",
            "name a shorter time, or 0 for only when asked",
        ));
    }
    let machines = members(core, order)?;
    let known = tx.group(&order.name).await?;
    let body = GroupBody { machines, every_seconds: order.every_seconds, hold_millis: hold };
    if known.as_ref().is_some_and(|row| !row.deleted && row.body == body) {
        return Ok(());
    }
    let version = known.map_or(1, |row| row.version + 1);
    Ok(tx.save_group(GroupRow { name: order.name.clone(), version, body, deleted: false }).await?)
}

fn members(core: &Core, order: &pb::SetGroup) -> Result<Vec<MachineId>, Fault> {
    let wrong = |what: &str, remedy: &str| usage("group.invalid", what, remedy);
    let estate = core.estate();
    let mut machines = Vec::new();
    let mut sites = BTreeSet::new();
    for name in &order.machines {
        let entry = estate.machine_named(name).ok_or_else(|| crate::operator::orders::no_machine(name))?;
        let (id, name) = (entry.row.id, shown(&entry.row.name));
        if machines.contains(&id) {
            return Err(wrong(&format!("machines: {name} is named twice"), "name it once"));
        }
        let Some(protection) = &entry.row.protection else {
            return Err(wrong(&format!("machines: {name} is not protected"), "protect it first"));
        };
        if let Some(other) = estate.group_of(id).filter(|other| other.row.name != order.name) {
            let what = format!("machines: {name} is in group {} already", shown(&other.row.name));
            return Err(wrong(&what, "take it out of that one first: a machine is in one group"));
        }
        sites.insert(protection.target_site);
        machines.push(id);
    }
    if !(2..=MACHINES_MAX).contains(&machines.len()) {
        return Err(wrong("machines: a group has 2 to 32 of them", "name so many"));
    }
    if sites.len() > 1 {
        return Err(wrong("machines: they are recovered at different sites", "group those of one site"));
    }
    Ok(machines)
}

/// The group is no more; the points that were shared stay with each machine.
pub(crate) async fn delete(tx: &mut Tx, name: &str) -> Result<(), Fault> {
    let known = tx.group(name).await?.filter(|row| !row.deleted).ok_or_else(|| no_group(name))?;
    Ok(tx.save_group(GroupRow { deleted: true, version: known.version + 1, ..known }).await?)
}

/// What an agent says of its group. Returns a miss that is news: the group, and why.
pub(crate) fn heard(
    estate: &mut Estate,
    machine: MachineId,
    report: &mut pb::AgentReport,
    now: Timestamp,
) -> Option<(String, String)> {
    let (cuts, misses) = (std::mem::take(&mut report.group_cuts), std::mem::take(&mut report.group_misses));
    let points = &estate.group_points;
    let entry = estate.groups.values_mut().find(|entry| entry.row.body.machines.contains(&machine))?;
    for cut in cuts {
        if cut.group != entry.row.name || cut.version != entry.row.version {
            continue;
        }
        let Ok(id) = cut.point_id.parse::<PointId>() else { continue };
        if points.contains_key(&id) {
            continue;
        }
        entry.live.votes.entry(id).or_default().insert(machine, (cut.sequence, cut.time_us, cut.held_us));
        // Ids rise with time: the oldest leaves.
        while entry.live.votes.len() > VOTES_MAX {
            entry.live.votes.pop_first();
        }
    }
    let miss = misses.into_iter().rfind(|miss| miss.group == entry.row.name)?;
    let at = Timestamp::from_micros(miss.time_us);
    let reason = limited(&miss.reason, 1024);
    let newest = points.values().filter(|point| point.group == entry.row.name).map(|point| point.time).max();
    // Told once for each reason, until there was a point again.
    let told = entry
        .live
        .missed
        .as_ref()
        .is_some_and(|(before, why)| *why == reason && newest.is_none_or(|newest| newest < *before));
    let known = entry.live.missed.as_ref().is_some_and(|(before, _)| *before >= at);
    let stale =
        entry.live.since.is_some_and(|since| at < since) || at > now.plus(std::time::Duration::from_secs(60));
    if known || stale {
        return None;
    }
    entry.live.missed = Some((at, reason.clone()));
    (!told).then(|| (entry.row.name.clone(), reason))
}

/// Lists the points that every member has cut and every replica has.
pub(crate) async fn list(core: &Arc<Core>, missed: Option<(String, String)>) -> Result<(), StoreError> {
    let mut ready = Vec::new();
    {
        let now = core.world.now();
        let mut guard = core.estate();
        let estate = &mut *guard;
        let machines = &estate.machines;
        for entry in estate.groups.values_mut() {
            let members = &entry.row.body.machines;
            let arrived = |votes: &BTreeMap<MachineId, (u64, i64, u64)>| {
                members.iter().all(|id| {
                    let cut = votes.get(id).map(|(sequence, ..)| *sequence);
                    let replica = machines.get(id).and_then(|entry| entry.live.replica.as_ref());
                    cut.zip(replica).is_some_and(|(cut, (replica, _))| replica.last_sequence >= cut)
                })
            };
            let listed: Vec<PointId> =
                entry.live.votes.iter().filter(|(_, votes)| arrived(votes)).map(|(id, _)| *id).collect();
            for id in listed {
                let Some(votes) = entry.live.votes.remove(&id) else { continue };
                let held = votes.values().map(|(.., held)| *held).max().unwrap_or(0);
                entry.live.hold.add(now, held as f64 / 1000.0);
                let time = votes.values().map(|(_, time, _)| *time).max().unwrap_or(0);
                ready.push(GroupPointRow {
                    id,
                    group: entry.row.name.clone(),
                    time: Timestamp::from_micros(time),
                    machines: members.clone(),
                });
            }
        }
    }
    if ready.is_empty() && missed.is_none() {
        return Ok(());
    }
    let mut tx = core.store.begin().await?;
    for row in ready {
        tx.add_group_point(row).await?;
    }
    if let Some((group, reason)) = missed {
        let text = format!("no shared point this time: {}", shown(&reason));
        tx.add_event(core.event("group", &group, "", text, "")).await?;
    }
    core.commit(tx).await
}
