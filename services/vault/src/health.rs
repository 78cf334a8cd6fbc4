//! Symptoms, and the alerts that open and clear with them.
//!
//! Lives here: what is measured against which threshold, once a beat. Lives elsewhere: the measures
//! themselves (`measure`), what servers report (`coordination::reports`).
//!
//! A symptom is true now; an alert is its story: it opens with the symptom, and clears by itself when the
//! symptom is gone. In doubt nothing is green: what was not reported lately is not told as well.

use crate::coordination::reports;
use crate::core::Core;
use crate::estate::{Estate, MachineEntry, ServerEntry, agent_of};
use crate::jobs::plan::quoted;
use crate::project;
use crate::store::StoreError;
use crate::store::inventory::Protection;
use crate::store::news::AlertRow;
use crate::truth;
use continuum_model::health::{Health, Mode, Symptom};
use continuum_model::id::{AlertId, MachineId, ServerId};
use continuum_model::protection::{ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use std::sync::Arc;
use std::time::Duration;

/// Two processes claim to be one machine.
pub(crate) const TWICE: &str = "identity.twice";
/// A symptom that comes and goes within this time opens no alert.
const SETTLE: Duration = Duration::from_secs(2);

/// Runs until the vault stops.
pub(crate) async fn run(core: Arc<Core>, every: Duration) {
    let mut beat = tokio::time::interval(every);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut tidied = core.world.uptime();
    let mut since: std::collections::HashMap<(String, String), Timestamp> = Default::default();
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        if let Err(error) = core.heed_grants().await {
            tracing::error!("grants were not read: {error}");
        }
        crate::operator::orders::approval::expire(&core).await;
        let (machines, servers) = measure(&core);
        let ended = {
            let now = core.world.now();
            truth::measure(&mut core.estate(), now)
        };
        if let Err(error) = truth::keep(&core, ended).await {
            tracing::error!("spikes of RPO were not stored: {error}");
        }
        core.publish(&machines, &servers);
        core.publish_groups();
        if let Err(error) = crate::jobs::starts::begin_due(&core).await {
            tracing::error!("first copies that are due did not begin: {error}");
        }
        if let Err(error) = crate::relays::heed_losses(&core).await {
            tracing::error!("machines of a lost process server were not moved: {error}");
        }
        if let Err(error) = alerts(&core, &mut since).await {
            tracing::error!("alerts were not stored: {error}");
        }
        if core.world.uptime().saturating_sub(tidied) >= reports::FORGET_EVERY {
            tidied = core.world.uptime();
            if let Err(error) = reports::tidy(&core).await {
                tracing::warn!("old points were not forgotten: {error}");
            }
        }
    }
}

/// Takes all measures. Returns what there is to tell of.
fn measure(core: &Core) -> (Vec<MachineId>, Vec<ServerId>) {
    let now = core.world.now();
    let mut estate = core.estate();
    let machines: Vec<MachineId> = estate.machines.keys().copied().collect();
    let mut told = Vec::new();
    for id in &machines {
        let Some(entry) = estate.machines.get(id) else { continue };
        // A machine that nobody protects and whose agent is away has nothing new to tell.
        let quiet = entry.row.protection.is_none() && !estate.connected(agent_of(*id)) && !entry.live.twice;
        if quiet && entry.live.symptoms.is_empty() {
            continue;
        }
        told.push(*id);
        let symptoms = machine_symptoms(core, &estate, entry, now);
        let health = health_of(entry, &symptoms);
        let state = entry.row.protection.as_ref().map(|protection| &protection.state);
        let rpo = state.filter(|state| project::has_rpo(state)).and_then(|_| project::rpo(entry, now));
        if let Some(entry) = estate.machines.get_mut(id) {
            if let Some(rpo) = rpo {
                entry.live.rpo.add(now, rpo);
                entry.live.rpo_recent.offer(now, rpo);
            }
            entry.live.symptoms = symptoms;
            entry.live.health = health;
        }
    }
    let servers: Vec<ServerId> = estate.servers.keys().copied().collect();
    for id in &servers {
        let Some(entry) = estate.servers.get(id) else { continue };
        let symptoms = server_symptoms(core, entry, now);
        if let Some(entry) = estate.servers.get_mut(id) {
            entry.live.symptoms = symptoms;
        }
    }
    (told, servers)
}

/// Warnings of one replica that are told.
const WARNINGS_MAX: usize = 8;

fn symptom(code: &str, severity: Health, text: String, remedy: &str) -> Symptom {
    Symptom { code: code.into(), severity, text, remedy: remedy.into() }
}

fn health_of(entry: &MachineEntry, symptoms: &[Symptom]) -> Health {
    let applies = entry.row.protection.as_ref().is_some_and(|protection| match protection.state {
        ProtectionState::Enabling
        | ProtectionState::EnablingFailed { .. }
        | ProtectionState::InitialReplication { .. }
        | ProtectionState::InitialReplicationFailed { .. }
        | ProtectionState::Protected { .. }
        | ProtectionState::Resync { .. }
        | ProtectionState::Reprotecting
        | ProtectionState::Reversed => true,
        ProtectionState::FailingOver { .. }
        | ProtectionState::CommitPending { .. }
        | ProtectionState::Committed
        | ProtectionState::FailingBack { .. }
        | ProtectionState::Migrated
        | ProtectionState::Disabling => false,
    });
    let worst = symptoms.iter().map(|symptom| symptom.severity).max();
    match (applies, worst) {
        (true, worst) => worst.unwrap_or(Health::Healthy),
        (false, Some(Health::Critical)) => Health::Critical,
        (false, _) => Health::NotApplicable,
    }
}

/// What is wrong while the direction is reversed.
fn reversed(
    core: &Core,
    estate: &Estate,
    entry: &MachineEntry,
    protection: &Protection,
    found: &mut Vec<Symptom>,
    now: Timestamp,
) {
    away(core, estate, agent_of(entry.row.id), "agent", found, now);
    away(core, estate, protection.master_target, "target", found, now);
    let receiving = entry.live.agent.as_ref().and_then(|(report, _)| report.receiving.as_ref());
    if let Some(fault) = receiving.and_then(|receiving| receiving.fault.as_ref()) {
        found.push(symptom(
            "reverse.down",
            Health::Warning,
            format!(
                "what runs at the recovery site does not reach the old source: {}",
                shown(&fault.message)
            ),
            "it is tried again; retry-now tries at once",
        ));
    }
    if protection.state == ProtectionState::Reversed {
        rpo_symptoms(estate, entry, &protection.policy, (now, core.about.started), found);
    }
}

fn machine_symptoms(core: &Core, estate: &Estate, entry: &MachineEntry, now: Timestamp) -> Vec<Symptom> {
    let mut found = Vec::new();
    let live = &entry.live;
    if live.twice {
        found.push(symptom(
            TWICE,
            Health::Critical,
            "two processes claim to be this machine: neither replicates".into(),
            "stop the wrong one, then acknowledge the alert",
        ));
    }
    let Some(protection) = &entry.row.protection else { return found };
    if protection.test == TestState::Failed {
        found.push(symptom(
            "test.failed",
            Health::Warning,
            "a test failover failed and was left as it is".into(),
            "look at it, then clean it up",
        ));
    }
    let replicating = match &protection.state {
        ProtectionState::EnablingFailed { reason } | ProtectionState::InitialReplicationFailed { reason } => {
            found.push(symptom(
                "protection.failed",
                Health::Critical,
                shown(reason),
                "mend the cause, then retry the job",
            ));
            false
        }
        ProtectionState::Resync { reason, paused } => {
            found.push(symptom(
                "resync.required",
                Health::Critical,
                format!("source and replica must be compared: {}", shown(reason)),
                match (paused, live.agent.as_ref().map(|(agent, _)| agent.phase.as_str())) {
                    (true, _) => "resume it; earlier recovery points stay valid",
                    (_, Some("waiting-for-window")) => {
                        "it waits for the policy's resync window; `continuum resync --now` begins it now"
                    }
                    _ => "nothing to do: it is under way; earlier recovery points stay valid",
                },
            ));
            !paused
        }
        ProtectionState::InitialReplication { paused } | ProtectionState::Protected { paused } => {
            if let Some(at) = protection.start_at.filter(|_| *paused) {
                found.push(symptom(
                    "replication.waiting",
                    Health::Warning,
                    format!("the first copy begins at {at}"),
                    "resume it to begin now",
                ));
            } else if *paused {
                found.push(symptom(
                    "replication.paused",
                    Health::Warning,
                    "an operator paused replication".into(),
                    "resume it",
                ));
            }
            !paused
        }
        ProtectionState::Reprotecting | ProtectionState::Reversed => {
            reversed(core, estate, entry, protection, &mut found, now);
            false
        }
        _ => false,
    };
    if !replicating {
        return found;
    }
    // Asked for and not done is worse than not asked for: nobody may take it for done.
    if estate.policies.get(&protection.policy).is_some_and(|policy| policy.policy.encryption) {
        found.push(symptom(
            "encryption.absent",
            Health::Warning,
            "its policy asks for encryption at rest, which this version does not do: what is kept is not sealed".into(),
            "encrypt the volumes of its process server and master target, and set encryption to false",
        ));
    }
    away(core, estate, agent_of(entry.row.id), "agent", &mut found, now);
    away(core, estate, protection.process_server, "process-server", &mut found, now);
    away(core, estate, protection.master_target, "target", &mut found, now);
    if matches!(protection.state, ProtectionState::Protected { .. }) {
        rpo_symptoms(estate, entry, &protection.policy, (now, core.about.started), &mut found);
    }
    if let Some(app) = live.agent.as_ref().and_then(|(agent, _)| agent.app_point.as_ref()) {
        if !app.consistent {
            found.push(symptom(
                "app-point.failed",
                Health::Warning,
                format!(
                    "the newest point is crash-consistent, not application-consistent: {}",
                    shown(&app.reason)
                ),
                "see the hooks of the machine's agent; it is tried again",
            ));
        }
        if !app.thaw.is_empty() {
            found.push(symptom(
                "app-point.thaw",
                Health::Critical,
                format!("after an application-consistent point: {}", shown(&app.thaw)),
                "see on the machine whether everything runs again (fsfreeze --unfreeze)",
            ));
        }
    }
    if let Some(group) = estate.group_of(entry.row.id).filter(|group| group.row.body.every_seconds > 0) {
        let newest = estate.newest_shared(&group.row.name).map(|point| point.time);
        let since = newest.max(group.live.since).unwrap_or(now).max(core.about.started);
        let most = Duration::from_secs(group.row.body.every_seconds * 3 + 10);
        if now.since(since) > most {
            let why =
                group.live.missed.as_ref().map_or_else(String::new, |(_, why)| format!(": {}", shown(why)));
            let (name, seconds) = (shown(&group.row.name), now.since(since).as_secs());
            found.push(symptom(
                "group.no-point",
                Health::Warning,
                format!("no point that all of group {name} share for {seconds} s{why}"),
                "see `continuum describe group`; it is tried again",
            ));
        }
    }
    if let Some((agent, _)) = live.agent.as_ref().filter(|_| estate.connected(agent_of(entry.row.id))) {
        let protected = matches!(protection.state, ProtectionState::Protected { .. });
        if protected && agent.mode == Mode::Bitmap.name() {
            found.push(symptom(
                "mode.bitmap",
                Health::Warning,
                format!("only the change map grows, no new recovery points: {}", shown(&agent.mode_reason)),
                "see connection and staging of the machine; it catches up by itself",
            ));
        }
        if protected && agent.mode == Mode::Interval.name() && !agent.mode_reason.is_empty() {
            found.push(symptom(
                "cycle.late",
                Health::Warning,
                shown(&agent.mode_reason),
                "see to what is named; cycles go on by themselves, and a longer interval in the policy is met more easily",
            ));
        }
        if let Some(fault) = &agent.channel_fault {
            let retry = format!("continuum retry {}", quoted(&entry.row.name));
            let said = if fault.remedy.is_empty() {
                "see the log of the agent".into()
            } else {
                shown(&fault.remedy)
            };
            // Without a next time it waits for a person.
            found.push(if agent.next_retry_us > 0 {
                let remedy = format!("{said}; {retry} tries at once");
                symptom("channel.down", Health::Warning, shown(&fault.message), &remedy)
            } else {
                let remedy = format!("{said}; then: {retry}");
                symptom(
                    "channel.refused",
                    Health::Critical,
                    format!("{}; it is not tried again by itself", shown(&fault.message)),
                    &remedy,
                )
            });
        }
        buffer("staging", agent.staged_bytes, agent.staged_bytes_max, core, &mut found);
        let free = estate.servers.get(&agent_of(entry.row.id)).and_then(|server| server.live.load.as_ref());
        let room = truth::staging_room(agent, free.map(|load| load.free_bytes));
        let until = live.truth.staging.until(room);
        full_soon("staging", until, core.thresholds.buffer_full, Bytes(agent.in_flight_bytes), &mut found);
        let told: Vec<(&str, u32)> = agent.disks.iter().map(|disk| (disk.id.as_str(), disk.index)).collect();
        let known: Vec<(String, u32)> =
            entry.row.disks.iter().map(|disk| (disk.id.to_string(), u32::from(disk.index))).collect();
        if !told.is_empty() && !told.iter().copied().eq(known.iter().map(|(id, index)| (id.as_str(), *index)))
        {
            found.push(symptom(
                "disks.changed",
                Health::Critical,
                "the machine's disks are not those that are protected".into(),
                "unprotect the machine and protect it again",
            ));
        }
    }
    if let Some((relay, _)) = live.relay.as_ref().filter(|_| estate.connected(protection.process_server))
        && relay.agent_connected
        && !relay.target_connected
    {
        let why =
            relay.fault.as_ref().map(|fault| format!(": {}", shown(&fault.message))).unwrap_or_default();
        found.push(symptom(
            "target.unreachable",
            Health::Warning,
            format!("the process server does not reach the target{why}"),
            "see the network between the sites",
        ));
    }
    if let Some((replica, _)) = &live.replica
        && let Some(fault) = &replica.fault
    {
        found.push(symptom(
            "replica.refuses",
            Health::Critical,
            shown(&fault.message),
            &shown(&fault.remedy),
        ));
    }
    for warning in live.replica.iter().flat_map(|(replica, _)| replica.warnings.iter().take(WARNINGS_MAX)) {
        let code = match warning.code.as_str() {
            known @ ("archive.failed" | "history.space" | "seed.failed") => known,
            _ => "replica.warning",
        };
        found.push(symptom(code, Health::Warning, shown(&warning.message), &shown(&warning.remedy)));
    }
    found
}

fn rpo_symptoms(
    estate: &Estate,
    entry: &MachineEntry,
    policy: &continuum_model::id::PolicyId,
    (now, started): (Timestamp, Timestamp),
    found: &mut Vec<Symptom>,
) {
    let Some(threshold) = estate.policies.get(policy).map(|policy| policy.policy.rpo_threshold_seconds)
    else {
        return;
    };
    // Before the first report after a start nothing is known; that is said once it has lasted.
    let since = entry.row.protection.as_ref().map_or(now, |protection| protection.since).max(started);
    let age = project::rpo(entry, now).unwrap_or_else(|| now.since(since).as_secs_f64());
    if age > threshold as f64 {
        found.push(symptom(
            "rpo.exceeded",
            Health::Critical,
            match entry.live.truth.now(entry.row.id) {
                Some(spike) => format!(
                    "the newest moment that can be brought up is {age:.0} s old; {threshold} s are promised. Cause ({}): {}",
                    spike.hop.name(),
                    spike.cause
                ),
                None => format!("the newest moment that can be brought up is {age:.0} s old; {threshold} s are promised"),
            },
            "see the hops of the machine: continuum describe machine",
        ));
    }
}

fn away(
    core: &Core,
    estate: &Estate,
    server: ServerId,
    what: &str,
    found: &mut Vec<Symptom>,
    now: Timestamp,
) {
    let Some(entry) = estate.servers.get(&server) else { return };
    if let Some((severity, seconds)) = absence(core, entry, now) {
        found.push(symptom(
            &format!("{what}.disconnected"),
            severity,
            format!("{} {} has been away for {seconds} s", entry.row.role, shown(&entry.row.name)),
            "start it or mend the network; it comes back by itself",
        ));
    }
}

/// How long a server has been away, where that is worth telling.
fn absence(core: &Core, entry: &ServerEntry, now: Timestamp) -> Option<(Health, u64)> {
    // Before this run of the vault nobody could be here.
    let seen =
        entry.live.last_seen.or(entry.row.last_seen).unwrap_or(entry.row.enrolled).max(core.about.started);
    let away = now.since(seen);
    let limits = &core.thresholds;
    // A session that says nothing is no session.
    let silent = entry.live.connected && away < limits.away_warning.max(Duration::from_secs(10));
    if silent || away < limits.away_warning {
        return None;
    }
    let severity = if away >= limits.away_critical { Health::Critical } else { Health::Warning };
    Some((severity, away.as_secs()))
}

fn buffer(what: &str, used: u64, max: u64, core: &Core, found: &mut Vec<Symptom>) {
    if max == 0 {
        return;
    }
    let percent = used.saturating_mul(100) / max;
    let (warning, critical) = core.thresholds.buffer_percent;
    if percent < warning {
        return;
    }
    let severity = if percent >= critical { Health::Critical } else { Health::Warning };
    found.push(symptom(
        &format!("{what}.filling"),
        severity,
        format!("{} of {} ({percent} %) in use", Bytes(used), Bytes(max)),
        "see the connection behind it; what does not fit is remembered and sent later",
    ));
}

/// Told before a buffer is full, from the rate at which it fills.
fn full_soon(
    what: &str,
    until: Option<f64>,
    (warning, critical): (Duration, Duration),
    bytes: Bytes,
    found: &mut Vec<Symptom>,
) {
    let Some(seconds) = until.filter(|seconds| *seconds < warning.as_secs_f64()) else { return };
    let severity = if seconds < critical.as_secs_f64() { Health::Critical } else { Health::Warning };
    let span = match seconds as u64 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    };
    let (state, remedy) = match what {
        "volume" => ("free now", "grow the volume, shorten retention, or give policies a history_bytes_max"),
        "spool" => ("in it now", "see the link to the recovery site; agents stage what it does not take"),
        _ => ("waiting now", "see the hops of the machine; when it is full only the change map grows"),
    };
    let text = format!("the {what} is full in {span} at the present rate ({bytes} {state})");
    found.push(symptom(&format!("{what}.full-soon"), severity, text, remedy));
}

fn server_symptoms(core: &Core, entry: &ServerEntry, now: Timestamp) -> Vec<Symptom> {
    let mut found = Vec::new();
    if entry.row.role == "vault" {
        return found;
    }
    let live = &entry.live;
    if let Some((severity, seconds)) = absence(core, entry, now) {
        found.push(symptom(
            "server.disconnected",
            severity,
            format!("away for {seconds} s"),
            "start it or mend the network",
        ));
        return found;
    }
    if let Some(load) = &live.load
        && load.free_bytes > 0
    {
        let (warning, critical) = core.thresholds.free_bytes;
        if load.free_bytes < warning {
            let severity = if load.free_bytes < critical { Health::Critical } else { Health::Warning };
            found.push(symptom(
                "space.low",
                severity,
                format!("{} free on the volume of its data", Bytes(load.free_bytes)),
                "grow the volume or free space on it",
            ));
        }
    }
    if let Some((used, max)) = live.spool {
        buffer("spool", used, max, core, &mut found);
        full_soon("spool", live.spool_until(), core.thresholds.buffer_full, Bytes(used), &mut found);
    }
    if let Some(load) = &live.load {
        let used = Bytes(load.free_bytes);
        full_soon("volume", live.volume_until(), core.thresholds.volume_full, used, &mut found);
    }
    let offset = Duration::from_micros(live.clock_offset.unsigned_abs());
    if live.connected && offset > core.thresholds.clock_offset {
        found.push(symptom(
            "clock.offset",
            Health::Warning,
            format!(
                "its clock is {:.1} s off the vault's: ages and RPO are told wrong by as much",
                offset.as_secs_f64()
            ),
            "set up time synchronisation on both",
        ));
    }
    found
}

/// Opens and clears alerts as symptoms come and go.
async fn alerts(
    core: &Arc<Core>,
    since: &mut std::collections::HashMap<(String, String), Timestamp>,
) -> Result<(), StoreError> {
    let now = core.world.now();
    let mut changed: Vec<(AlertRow, String)> = Vec::new();
    {
        let estate = core.estate();
        let mut present: std::collections::HashMap<(String, String), (String, String, Symptom)> =
            Default::default();
        for entry in estate.machines.values() {
            for symptom in &entry.live.symptoms {
                // A pause is a person's own doing, and so is what they left to look at.
                if matches!(
                    symptom.code.as_str(),
                    "replication.paused" | "replication.waiting" | "test.failed"
                ) {
                    continue;
                }
                let what = ("machine".to_owned(), entry.row.name.clone(), symptom.clone());
                present.insert((entry.row.id.to_string(), symptom.code.clone()), what);
            }
        }
        for entry in estate.servers.values().filter(|entry| entry.row.role != "agent") {
            for symptom in &entry.live.symptoms {
                let what = ("server".to_owned(), entry.row.name.clone(), symptom.clone());
                present.insert((entry.row.id.to_string(), symptom.code.clone()), what);
            }
        }
        since.retain(|key, _| present.contains_key(key));
        for alert in estate.alerts.values() {
            let key = (alert.object_id.clone(), alert.code.clone());
            match present.remove(&key) {
                None => {
                    let cleared = AlertRow { cleared: Some(now), ..alert.clone() };
                    changed.push((cleared, format!("{} cleared", alert.code)));
                }
                Some((_, _, symptom)) if symptom.severity.name() != alert.severity => {
                    let text = symptom.text.clone();
                    let worse = AlertRow {
                        severity: symptom.severity.name().into(),
                        text,
                        acknowledged: false,
                        ..alert.clone()
                    };
                    changed.push((worse, format!("{} is {} now", alert.code, symptom.severity.name())));
                }
                Some(_) => {}
            }
        }
        for (key, (kind, object, symptom)) in present {
            let first = *since.entry(key.clone()).or_insert(now);
            if now.since(first) < SETTLE {
                continue;
            }
            let alert = AlertRow {
                id: core.world.id(AlertId::make),
                severity: symptom.severity.name().into(),
                code: symptom.code.clone(),
                object_kind: kind,
                object,
                object_id: key.0,
                opened: now,
                cleared: None,
                text: symptom.text.clone(),
                cause: String::new(),
                remedy: symptom.remedy.clone(),
                acknowledged: false,
            };
            changed.push((alert, symptom.text));
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    let mut tx = core.store.begin().await?;
    for (alert, text) in changed {
        tx.add_event(core.event("alert", &alert.object, &alert.object_id, text, "")).await?;
        tx.save_alert(alert).await?;
    }
    core.commit(tx).await
}
