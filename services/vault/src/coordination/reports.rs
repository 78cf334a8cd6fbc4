//! What servers tell: folded into what is known, and stored only where it matters.
//!
//! A server speaks for itself and for what it carries: an agent for its machine, a process server and a
//! master target for machines that are assigned to them. What is said of anything else is left out.
//! Stored: new recovery points, doubts and their end, an epoch that is ahead of ours. The rest is live.

use super::sums;
use crate::core::Core;
use crate::estate::{Estate, MachineEntry, agent_of, machine_of};
use crate::groups;
use crate::jobs::plan::Write;
use crate::jobs::writes;
use crate::project;
use crate::store::StoreError;
use crate::store::inventory::{DiskRow, MachineRow, PointRow, ServerRow};
use crate::store::news::EventRow;
use crate::truth::Truth;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::health::Mode;
use continuum_model::id::{MachineId, ServerId};
use continuum_model::protection::{Event, ProtectionState};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::server_message::Message;
use std::sync::Arc;

/// New points are taken in portions; the rest of a flood is told again by the target's own store.
const POINTS_MAX: usize = 10_000;
/// How long what a replica lost may take to arrive before it is asked for again.
const ASK_AGAIN: std::time::Duration = std::time::Duration::from_secs(60);
/// Places that are asked for at once.
const LOST_MAX: usize = 1024;
/// Disks of one machine.
const DISKS_MAX: usize = 64;
/// Changes of mode in one report.
const CHANGES_MAX: usize = 64;

/// Somebody opened a session: its row is brought up to date.
///
/// Errors: what is wrong with what it said of itself. Nothing was stored then.
pub(crate) async fn opened(core: &Arc<Core>, server: ServerId, hello: &pb::ServerHello) -> Result<(), Fault> {
    let now = core.world.now();
    let mut tx = core.store.begin().await?;
    let known = tx.server(server).await?;
    let Some(mut row) = known.filter(|row| !row.revoked) else {
        return Err(Fault::new(
            FaultClass::Refused,
            "server.unknown",
            "this server is not registered here, or its access was revoked",
        )
        .affects("this server")
        .spares("what it was last told goes on")
        .remedy("make a new enrolment token and enrol it again"));
    };
    row.version = limited(&hello.version, 64);
    row.address = limited(&hello.address, 255);
    row.last_seen = Some(now);
    if row.role == "agent" {
        let machine = tx
            .machine(machine_of(server))
            .await?
            .ok_or_else(|| invalid("it names no machine that is registered"))?;
        let changed = described(&machine, hello)?;
        if changed != machine {
            tx.save_machine(changed).await?;
        }
    }
    tx.add_event(core.event("server", &row.name, row.id, format!("{} connected", row.role), "")).await?;
    tx.save_server(row).await?;
    core.commit(tx).await?;
    {
        let mut estate = core.estate();
        if let Some(entry) = estate.servers.get_mut(&server) {
            entry.live.connected = true;
            entry.live.last_seen = Some(now);
            // A hello without a clock says nothing about it.
            entry.live.clock_offset =
                if hello.clock_us == 0 { 0 } else { hello.clock_us.saturating_sub(now.micros()) };
        }
        if let Some(machine) = estate.machines.get_mut(&machine_of(server)) {
            machine.live.agent_boot = limited(&hello.boot_id, 128);
            machine.live.group_address = limited(&hello.group_address, 255);
            machine.live.app_consistent = hello.app_consistent;
        }
    }
    core.reassign_group_of(machine_of(server));
    core.publish(&[machine_of(server)], &[server]);
    core.stir();
    Ok(())
}

/// The server's session is gone.
pub(crate) async fn closed(core: &Arc<Core>, server: ServerId) {
    let last_seen = {
        let mut estate = core.estate();
        let Some(entry) = estate.servers.get_mut(&server) else { return };
        entry.live.connected = false;
        entry.live.last_seen
    };
    core.reassign_group_of(machine_of(server));
    core.publish(&[machine_of(server)], &[server]);
    core.stir();
    if let Err(error) = leave(core, server, last_seen).await {
        tracing::warn!(%server, "its leaving was not stored: {error}");
    }
}

async fn leave(core: &Arc<Core>, server: ServerId, last_seen: Option<Timestamp>) -> Result<(), StoreError> {
    let mut tx = core.store.begin().await?;
    let Some(row) = tx.server(server).await? else { return Ok(()) };
    tx.add_event(core.event("server", &row.name, row.id, format!("{} disconnected", row.role), "")).await?;
    tx.save_server(ServerRow { last_seen: last_seen.or(row.last_seen), ..row }).await?;
    core.commit(tx).await
}

/// The machine as its agent describes it.
fn described(machine: &MachineRow, hello: &pb::ServerHello) -> Result<MachineRow, Fault> {
    let mut row = machine.clone();
    row.fabric = limited(&hello.fabric, 32);
    row.guest = limited(&hello.guest, 32);
    let disks = disks_of(&hello.disks)?;
    let same = |a: &[DiskRow], b: &[DiskRow]| {
        a.iter().map(|disk| (disk.id, disk.index)).eq(b.iter().map(|disk| (disk.id, disk.index)))
    };
    // The disks of a protection do not change under it: health tells that they differ. One that was ordered
    // before the agent first came has none yet.
    if row.protection.is_none() || row.disks.is_empty() || same(&row.disks, &disks) {
        row.disks = disks;
    }
    Ok(row)
}

/// Disks as a server told them, in order.
pub(crate) fn disks_of(disks: &[pb::Disk]) -> Result<Vec<DiskRow>, Fault> {
    if disks.len() > DISKS_MAX {
        return Err(invalid(&format!(
            "{} disks are more than the {DISKS_MAX} that a machine may have",
            disks.len()
        )));
    }
    let mut rows = Vec::with_capacity(disks.len());
    for disk in disks {
        let row = DiskRow {
            id: disk.id.parse().map_err(|_| invalid("a disk's id is no id"))?,
            index: u16::try_from(disk.index).map_err(|_| invalid("a disk's index is too large"))?,
            name: limited(&disk.name, 253),
            size_bytes: disk.size_bytes,
        };
        if rows.iter().any(|other: &DiskRow| other.id == row.id || other.index == row.index) {
            return Err(invalid("two disks share an id or an index"));
        }
        rows.push(row);
    }
    rows.sort_by_key(|row| row.index);
    Ok(rows)
}

fn invalid(what: &str) -> Fault {
    Fault::new(FaultClass::Usage, "hello.invalid", format!("the server described itself wrongly: {what}"))
        .affects("this server's session")
        .spares("all others")
        .remedy("mend its configuration and start it again")
}

/// Cuts a text from outside to a size.
pub(crate) fn limited(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Takes a message of a server's session.
pub(crate) async fn fold(core: &Arc<Core>, server: ServerId, message: Message) {
    let stored = match message {
        Message::Agent(report) => agent(core, server, report).await,
        Message::MasterTarget(report) => master_target(core, server, report).await,
        Message::ProcessServer(report) => {
            process_server(core, server, report);
            Ok(())
        }
        Message::Result(result) => {
            core.sessions.answered(server, result);
            Ok(())
        }
        Message::Progress(progress) => {
            core.sessions.progressed(server, &progress);
            Ok(())
        }
        Message::Sums(request) => {
            sums::relay(core, server, request);
            return;
        }
        Message::Hello(_) => Ok(()),
    };
    if let Err(error) = stored {
        tracing::error!(%server, "what a server reported was not stored: {error}");
    }
    core.stir();
}

fn seen(core: &Core, estate: &mut Estate, server: ServerId, load: Option<pb::Load>) -> bool {
    match estate.servers.get_mut(&server) {
        Some(entry) => {
            let now = core.world.now();
            entry.live.last_seen = Some(now);
            if let Some(free) = load.as_ref().map(|load| load.free_bytes).filter(|free| *free > 0) {
                entry.live.volume_fill.offer(now, free);
            }
            entry.live.load = load;
            true
        }
        None => false,
    }
}

async fn agent(core: &Arc<Core>, server: ServerId, mut report: pb::AgentReport) -> Result<(), StoreError> {
    let id = machine_of(server);
    let now = core.world.now();
    let (missed, app, doubted, name, changes) = {
        let mut estate = core.estate();
        let load = report.load.take();
        let last_seen = estate.servers.get(&server).and_then(|entry| entry.row.last_seen);
        if !seen(core, &mut estate, server, load) {
            return Ok(());
        }
        let missed = groups::heard(&mut estate, id, &mut report, now);
        let Some(entry) = estate.machines.get_mut(&id) else { return Ok(()) };
        let app = app_point(entry, &mut report, core.about.started);
        report.disks.truncate(DISKS_MAX);
        report.doubt = limited(&report.doubt, 1024);
        report.mode_reason = limited(&report.mode_reason, 1024);
        entry.live.churn.offer(now, report.written_bytes_total);
        let truth = &mut entry.live.truth;
        truth.sent.offer(now, report.sent_bytes_total);
        let comparing = report.phase == "comparing";
        truth.copied.offer(now, if comparing { report.compared_bytes } else { report.initial_bytes_done });
        truth.staging.offer(now, report.in_flight_bytes);
        report.mode_changes.truncate(CHANGES_MAX);
        let changes = news_of_modes(&entry.row, truth, &mut report, last_seen);
        let doubted = doubt(
            &entry.row,
            &entry.live.agent_boot,
            &report,
            entry.live.replica.as_ref().map(|(replica, _)| replica),
        );
        entry.live.agent = Some((report, now));
        (missed, app, doubted, entry.row.name.clone(), changes)
    };
    if app.is_some() || !changes.is_empty() {
        let mut tx = core.store.begin().await?;
        for (at, text) in changes {
            tx.add_event(EventRow { time: at, ..core.event("mode", &name, id, text, "") }).await?;
        }
        if let Some((name, text)) = app {
            tx.add_event(core.event("point", &name, id, text, "")).await?;
        }
        core.commit(tx).await?;
    }
    groups::list(core, missed).await?;
    match doubted {
        Some((moves, answered)) => resync(core, id, moves, answered).await,
        None => Ok(()),
    }
}

/// Changes of mode that were not told yet, in words.
fn news_of_modes(
    row: &MachineRow,
    truth: &mut Truth,
    report: &mut pb::AgentReport,
    last_seen: Option<Timestamp>,
) -> Vec<(Timestamp, String)> {
    let told = truth.told_change.or(last_seen).unwrap_or_default();
    let mut newest = told;
    let mut news = Vec::new();
    for change in &mut report.mode_changes {
        let at = Timestamp::from_micros(change.at_us);
        if at <= told {
            continue;
        }
        newest = newest.max(at);
        change.reason = limited(&change.reason, 1024);
        let Some(mode) = Mode::named(&change.mode) else { continue };
        news.push((
            at,
            match shown(&change.reason).as_str() {
                "" => format!("mode {}", mode.name()),
                reason => format!("mode {}: {reason}", mode.name()),
            },
        ));
    }
    truth.told_change = Some(newest);
    if row.protection.is_some() { news } else { Vec::new() }
}

/// How the newest attempt at an application-consistent point went, where that is news to tell.
fn app_point(
    entry: &mut MachineEntry,
    report: &mut pb::AgentReport,
    started: Timestamp,
) -> Option<(String, String)> {
    let app = report.app_point.as_mut()?;
    for text in [&mut app.reason, &mut app.thaw] {
        *text = limited(text, 1024);
    }
    app.output = limited(&app.output, 8192);
    if app.point_id == entry.live.app_told {
        return None;
    }
    entry.live.app_told = limited(&app.point_id, 64);
    let mut said = Vec::new();
    if !app.consistent {
        said.push(format!("a point is crash-consistent, not application-consistent: {}", shown(&app.reason)));
    }
    if !app.thaw.is_empty() {
        said.push(format!("after an application-consistent point: {}", shown(&app.thaw)));
    }
    let words: Vec<&str> = app.output.lines().rev().take(3).collect();
    if !said.is_empty() && !words.is_empty() {
        said.push(format!(
            "the scripts said: {}",
            shown(&words.into_iter().rev().collect::<Vec<_>>().join(" | "))
        ));
    }
    // What was told before this vault was started again was told.
    (!said.is_empty() && app.time_us > started.micros()).then(|| (entry.row.name.clone(), said.join("; ")))
}

/// What an agent's report means for a resync: the move, and the doubt that is answered by it.
fn doubt(
    row: &MachineRow,
    boot: &str,
    report: &pb::AgentReport,
    replica: Option<&pb::ReplicaReport>,
) -> Option<(Vec<Write>, Option<String>)> {
    let protection = row.protection.as_ref()?;
    let told = (!report.doubt.is_empty()).then(|| format!("{boot} {}", report.doubt));
    match &protection.state {
        ProtectionState::Protected { .. } if told.is_some() && told != protection.answered_doubt => {
            Some((vec![Write::Move(Event::ResyncRequired { reason: shown(&report.doubt) })], None))
        }
        // Everything is being sent as it is: that answers what was not known before.
        ProtectionState::InitialReplication { .. } if told.is_some() && told != protection.answered_doubt => {
            Some((Vec::new(), told))
        }
        ProtectionState::Resync { .. } => {
            // Whole again: every change is shipped, and a moment after the doubt can be brought up.
            let mode = continuum_model::health::Mode::named(&report.mode);
            let whole = mode.is_some_and(continuum_model::health::Mode::is_whole)
                && report.epoch >= row.epoch
                && replica
                    .and_then(|replica| replica.newest_point_us)
                    .is_some_and(|at| at >= protection.since.micros());
            whole.then_some((vec![Write::Move(Event::ResyncDone)], told))
        }
        ProtectionState::Reprotecting | ProtectionState::Reversed => {
            let run = protection.failed_over.as_ref()?;
            let receiving = report.receiving.as_ref()?;
            // Of this direction, not of one that was given up before.
            if receiving.epoch != row.epoch || receiving.view_id != run.view.to_string() {
                return None;
            }
            let event = match (&protection.state, receiving.whole) {
                (ProtectionState::Reprotecting, true) => Event::ReverseWhole,
                // Until it has looked at its disks again it knows nothing.
                (ProtectionState::Reversed, false) if receiving.connected => Event::ReverseBroken,
                _ => return None,
            };
            Some((vec![Write::MoveIfLegal(event)], protection.answered_doubt.clone()))
        }
        _ => None,
    }
}

async fn resync(
    core: &Arc<Core>,
    id: MachineId,
    moves: Vec<Write>,
    answered: Option<String>,
) -> Result<(), StoreError> {
    let mut tx = core.store.begin().await?;
    match writes::make(core, &mut tx, id, moves, "").await {
        Ok(()) => {}
        Err(writes::Refused::Store(error)) => return Err(error),
        // The state moved on meanwhile; the next report sees it as it is.
        Err(writes::Refused::Illegal(_)) => return Ok(()),
    }
    if let Some(answered) = answered
        && let Some(mut row) = tx.machine(id).await?
        && let Some(protection) = &mut row.protection
    {
        protection.answered_doubt = Some(answered);
        tx.save_machine(row).await?;
    }
    core.commit(tx).await
}

fn process_server(core: &Arc<Core>, server: ServerId, mut report: pb::ProcessServerReport) {
    let now = core.world.now();
    let mut estate = core.estate();
    let load = report.load.take();
    if !seen(core, &mut estate, server, load) {
        return;
    }
    if let Some(entry) = estate.servers.get_mut(&server) {
        entry.live.spool = Some((report.spool_bytes, report.spool_bytes_max));
        entry.live.spool_fill.offer(now, report.spool_bytes);
        entry.live.bytes_per_sec = Some(report.out_bytes_per_sec);
        entry.live.limit_bytes_per_sec = report.limit_bytes_per_sec;
    }
    for relay in report.relays {
        let Ok(id) = relay.machine_id.parse::<MachineId>() else { continue };
        let Some(entry) = estate.machines.get_mut(&id) else { continue };
        if entry.row.protection.as_ref().is_some_and(|protection| protection.process_server == server) {
            entry.live.truth.forwarded.offer(now, relay.forwarded_bytes_total);
            entry.live.relay = Some((relay, now));
        }
    }
}

async fn master_target(
    core: &Arc<Core>,
    server: ServerId,
    mut report: pb::MasterTargetReport,
) -> Result<(), StoreError> {
    let now = core.world.now();
    let mut points: Vec<(MachineId, PointRow)> = Vec::new();
    let mut ahead: Vec<(MachineId, u64)> = Vec::new();
    // Stretches of which the target says that their points are gone.
    let mut gone: Vec<(MachineId, Timestamp, Timestamp)> = Vec::new();
    let mut lost: Vec<(MachineId, Vec<pb::Blocks>)> = Vec::new();
    let mut astray: Vec<String> = Vec::new();
    {
        let mut estate = core.estate();
        let load = report.load.take();
        if !seen(core, &mut estate, server, load) {
            return Ok(());
        }
        for view in report.views.iter().filter(|view| view.guest_running) {
            let id = view.machine_id.parse::<MachineId>();
            let machine = id.ok().and_then(|id| estate.machines.get(&id));
            let protection = machine.and_then(|entry| entry.row.protection.as_ref());
            // It came home without this side being asked: one copy is one too many.
            let home = protection.filter(|protection| {
                protection.master_target == server
                    && (protection.state.replicates() || protection.state.is_paused())
            });
            let run = home.and_then(|protection| protection.failed_over.as_ref());
            if run.is_some_and(|run| run.view.to_string() == view.view_id) {
                astray.push(view.view_id.clone());
            }
        }
        let mut bytes_per_sec = 0u64;
        for mut replica in report.replicas {
            let Ok(id) = replica.machine_id.parse::<MachineId>() else { continue };
            let Some(entry) = estate.machines.get_mut(&id) else { continue };
            if entry.row.protection.as_ref().is_none_or(|protection| protection.master_target != server) {
                continue;
            }
            bytes_per_sec = bytes_per_sec.saturating_add(replica.journal_bytes_per_sec);
            // After a commit only the chosen moment counts: what the target still lists is history.
            let committed = entry.row.protection.as_ref().is_some_and(|protection| {
                use ProtectionState as S;
                matches!(protection.state, S::Committed | S::Migrated) || protection.state.is_reversed()
            });
            let room = if committed { 0 } else { POINTS_MAX.saturating_sub(points.len()) };
            points.extend(
                replica.new_points.drain(..).take(room).map(|point| (id, project::point_from(&point))),
            );
            gone.extend(replica.thinned.drain(..).take(POINTS_MAX).map(|thinned| {
                (id, Timestamp::from_micros(thinned.after_us), Timestamp::from_micros(thinned.to_us))
            }));
            if replica.epoch > entry.row.epoch {
                ahead.push((id, replica.epoch));
            }
            let asked = entry.live.asked_again.is_some_and(|at| now.since(at) < ASK_AGAIN);
            if !replica.unreadable.is_empty() && !asked {
                entry.live.asked_again = Some(now);
                lost.push((id, replica.unreadable.iter().take(LOST_MAX).copied().collect()));
            }
            entry.live.replica = Some((replica, now));
        }
        if let Some(entry) = estate.servers.get_mut(&server) {
            entry.live.bytes_per_sec = Some(bytes_per_sec);
        }
    }
    for view_id in astray {
        tracing::warn!(view = view_id, "what runs there came home meanwhile: it is stopped");
        let id = format!("astray/{view_id}/{}", core.world.stamp().micros());
        let act = Some(pb::command::Act::StopGuest(pb::StopGuest { view_id }));
        core.sessions.hint(server, pb::Command { id, act });
    }
    for (machine, blocks) in lost {
        tracing::warn!(%machine, places = blocks.len(), "the replica lost part of its newest state: the source is asked to send it again");
        let id = format!("again/{machine}/{}", core.world.stamp().micros());
        let act = Some(pb::command::Act::SendAgain(pb::SendAgain { blocks }));
        // Lost where the agent is away: as long as the target reports it, it is asked for again.
        core.sessions.hint(agent_of(machine), pb::Command { id, act });
    }
    groups::list(core, None).await?;
    if points.is_empty() && ahead.is_empty() && gone.is_empty() {
        return Ok(());
    }
    let mut tx = core.store.begin().await?;
    for (machine, after, to) in gone {
        tx.forget_thinned(machine, after, to).await?;
    }
    for (machine, mut point) in points {
        point.name = limited(&point.name, 253);
        if tx.save_point(machine, &point).await? && point.kind != continuum_model::point::PointKind::Crash {
            let name =
                core.estate().machines.get(&machine).map(|entry| entry.row.name.clone()).unwrap_or_default();
            let text = format!("{} point of {}", point.kind.name(), point.time);
            tx.add_event(core.event("point", &name, machine, text, "")).await?;
        }
    }
    for (machine, epoch) in ahead {
        // Our store is older than the estate: it was restored from a copy. An epoch below the target's would
        // be refused for ever, and would be a second writer where it was not.
        if let Some(mut row) = tx.machine(machine).await?
            && row.epoch < epoch
        {
            row.epoch = epoch.saturating_add(1);
            let text = format!(
                "the target knows epoch {epoch}: this vault's data is older; epoch {} issued",
                row.epoch
            );
            tx.add_event(core.event("epoch", &row.name, row.id, text, "")).await?;
            tx.save_machine(row).await?;
        }
    }
    core.commit(tx).await
}

/// How often points that the target dropped are forgotten here, too.
pub(crate) const FORGET_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// Events and cleared alerts are kept this long; the audit log has what must be known for ever.
const NEWS_KEPT: std::time::Duration = std::time::Duration::from_secs(90 * 24 * 3600);
/// A key is remembered this long; nobody repeats an order after that.
const KEYS_KEPT: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

/// Forgets points older than what can be brought up, and stores when servers were last seen.
pub(crate) async fn tidy(core: &Arc<Core>) -> Result<(), StoreError> {
    let (mut oldest, mut servers) = (Vec::new(), Vec::new());
    {
        let estate = core.estate();
        oldest.extend(estate.machines.values().filter_map(|entry| {
            let oldest = entry.live.replica.as_ref()?.0.oldest_point_us?;
            Some((entry.row.id, Timestamp::from_micros(oldest)))
        }));
        let there = estate.servers.values().filter(|entry| entry.live.connected);
        servers.extend(there.map(|entry| (entry.row.id, entry.live.last_seen)));
    }
    let mut tx = core.store.begin().await?;
    let shared: Vec<(String, Timestamp)> = {
        let known: std::collections::BTreeMap<MachineId, Timestamp> = oldest.iter().copied().collect();
        let estate = core.estate();
        let oldest_of = |entry: &groups::GroupEntry| {
            // Of no use once one of them has let it go.
            entry
                .row
                .body
                .machines
                .iter()
                .map(|id| known.get(id).copied())
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .max()
        };
        estate.groups.values().filter_map(|entry| Some((entry.row.name.clone(), oldest_of(entry)?))).collect()
    };
    for (group, before) in shared {
        tx.forget_group_points(&group, before).await?;
    }
    for (machine, oldest) in oldest {
        tx.forget_points(machine, Some(oldest)).await?;
    }
    for (server, last_seen) in servers {
        // The row as it is now: it may have been revoked since we looked.
        if let Some(row) = tx.server(server).await? {
            tx.save_server(ServerRow { last_seen: last_seen.or(row.last_seen), ..row }).await?;
        }
    }
    tx.forget_news(core.world.now().minus(NEWS_KEPT), core.world.now().minus(KEYS_KEPT)).await?;
    core.commit(tx).await
}
