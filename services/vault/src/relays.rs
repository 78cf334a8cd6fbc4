//! Which process server relays a machine: where it may be moved to by hand, and that it is moved when its own is lost.
//!
//! Lives here: the choice, and the rule of loss. Lives elsewhere: the order (`operator::orders`), the change of the row
//! (`jobs::writes`), what servers are told then (`coordination::assignment`).
//!
//! A process server is lost where the vault has not heard of it for [`Thresholds::relay_lost`] *and* a machine's agent,
//! which the vault does hear, has no stream through it. A network that parts the two from the vault only moves nothing.
//! What was moved stays where it is when the lost one is back: it is moved back by hand.
//!
//! Nothing is lost by a move: acknowledgements come from the target only, the agent goes on after what the target holds,
//! and the target takes frames from the process server that the vault named, and from no other.
//!
//! [`Thresholds::relay_lost`]: crate::config::Thresholds

use crate::core::Core;
use crate::estate::{Estate, MachineEntry, agent_of};
use crate::jobs::plan::{JobKind, Write, possible, quoted};
use crate::jobs::writes::{self, Refused};
use crate::store::StoreError;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use std::sync::Arc;

/// Machines that are moved in one transaction.
const MOVED_AT_ONCE: usize = 64;

/// The process server that a machine is to be moved to. Empty: whichever other one carries least at the machine's site.
pub(crate) fn chosen(estate: &Estate, entry: &MachineEntry, wanted: &str) -> Result<ServerId, Fault> {
    let refuse = |class, code: &str, message: String, remedy: &str| {
        Err(Fault::new(class, code, message)
            .affects("this order")
            .spares("nothing was changed: replication goes on as it did")
            .remedy(remedy))
    };
    let name = shown(&entry.row.name);
    let present = entry.row.protection.as_ref().map(|protection| protection.process_server);
    if wanted.is_empty() {
        return match other(estate, entry) {
            Some(server) => Ok(server),
            None => refuse(
                FaultClass::NotReady,
                "process-server.none",
                format!("no other process server is connected at the site of {name}"),
                "enrol one with `continuum token process-server`, or name one of another site",
            ),
        };
    }
    let mut named = estate.servers.values().filter(|server| {
        server.row.role == "process-server"
            && (server.row.name == wanted || server.row.id.to_string() == wanted)
    });
    let server = match (named.next(), named.next()) {
        (Some(server), None) => server,
        (Some(_), Some(_)) => {
            return refuse(
                FaultClass::Usage,
                "process-server.ambiguous",
                format!("several process servers are called {}", shown(wanted)),
                "name one by its id; see `continuum get servers`",
            );
        }
        (None, _) => {
            return refuse(
                FaultClass::NotFound,
                "process-server.unknown",
                format!("there is no process server {}", shown(wanted)),
                "see `continuum get servers`",
            );
        }
    };
    let called = shown(&server.row.name);
    if present == Some(server.row.id) {
        return refuse(
            FaultClass::NotReady,
            "process-server.same",
            format!("{called} relays {name} already"),
            "nothing to do",
        );
    }
    if server.row.revoked {
        return refuse(
            FaultClass::Refused,
            "process-server.revoked",
            format!("the certificate of {called} was revoked"),
            "name another one; see `continuum get servers`",
        );
    }
    if !server.live.connected {
        return refuse(
            FaultClass::NotReady,
            "process-server.away",
            format!("{called} is not connected: {name} would stop replicating"),
            "start it, or name another one",
        );
    }
    Ok(server.row.id)
}

/// Another process server that is there, at the machine's site, the one that carries least.
fn other(estate: &Estate, entry: &MachineEntry) -> Option<ServerId> {
    let present = entry.row.protection.as_ref().map(|protection| protection.process_server);
    estate
        .servers
        .values()
        .filter(|server| {
            server.row.role == "process-server"
                && server.row.site == entry.row.site
                && server.live.connected
                && !server.row.revoked
                && Some(server.row.id) != present
        })
        .min_by_key(|server| (estate.carried_by(server.row.id), server.row.id))
        .map(|server| server.row.id)
}

/// Moves the machines of process servers that are lost, and tells of it.
pub(crate) async fn heed_losses(core: &Arc<Core>) -> Result<(), StoreError> {
    let lost = lost(core);
    if lost.is_empty() {
        return Ok(());
    }
    let mut tx = core.store.begin().await?;
    for (machine, to, why) in lost {
        let name = core.estate().machines.get(&machine).map(|entry| entry.row.name.clone());
        match writes::make(core, &mut tx, machine, vec![Write::ProcessServer(to)], "").await {
            Ok(()) => {}
            Err(Refused::Store(error)) => return Err(error),
            // The machine moved on meanwhile; the next beat sees it as it is.
            Err(Refused::Illegal(_)) => continue,
        }
        tracing::warn!(%machine, "{why}");
        tx.add_event(core.event("process-server.lost", &name.unwrap_or_default(), machine, why.clone(), ""))
            .await?;
        tx.audit(core.world.now(), "vault", "move", &machine.to_string(), "done", &why).await?;
    }
    core.commit(tx).await
}

/// Machines whose process server is lost, where to, and why, in words.
fn lost(core: &Core) -> Vec<(MachineId, ServerId, String)> {
    let now = core.world.now();
    let estate = core.estate();
    let threshold = core.thresholds.relay_lost;
    // Before this run of the vault nobody could be here.
    let away = |server: ServerId| {
        let entry = estate.servers.get(&server)?;
        let seen = entry.live.last_seen.or(entry.row.last_seen).unwrap_or(entry.row.enrolled);
        let away = now.since(seen.max(core.about.started));
        (!entry.live.connected && away >= threshold).then_some((entry.row.name.as_str(), away))
    };
    let reaches = |entry: &MachineEntry, since: Timestamp| {
        // Of an agent that is not heard nothing is known, and it could not be told either.
        !estate.connected(agent_of(entry.row.id))
            || entry.live.agent.as_ref().is_none_or(|(agent, at)| agent.channel_connected || *at < since)
    };
    let moved = estate.machines.values().filter_map(|entry| {
        let protection = entry.row.protection.as_ref()?;
        let (server, away) = away(protection.process_server)?;
        let since = Timestamp::from_micros(now.micros() - threshold.as_micros() as i64);
        if possible(JobKind::Move, &entry.row).is_err() || protection.fenced || reaches(entry, since) {
            return None;
        }
        let to = other(&estate, entry)?;
        let why = format!(
            "process server {} has been away for {} s and {} cannot reach it: {} relays it now; move it back by hand: \
             continuum move {} --process-server {}",
            shown(server),
            away.as_secs(),
            shown(&entry.row.name),
            shown(&estate.server_name(to)),
            quoted(&entry.row.name),
            quoted(server)
        );
        Some((entry.row.id, to, why))
    });
    moved.take(MOVED_AT_ONCE).collect()
}
