//! What each server should be doing: derived from what is known, whole each time.
//!
//! Pure. Revisions are given where an assignment leaves (`sessions`).

use crate::estate::{Estate, MachineEntry, agent_of, machine_of};
use crate::project;
use crate::store::inventory::Protection;
use continuum_model::id::{MachineId, ServerId};
use continuum_model::protection::ProtectionState;
use continuum_proto::v1 as pb;
use continuum_wire::policy::limit_to_message;
use pb::vault_message::Message;

/// The assignment of a server; `None` for roles that have none.
pub(crate) fn of(estate: &Estate, server: ServerId) -> Option<Message> {
    let entry = estate.servers.get(&server)?;
    match entry.row.role.as_str() {
        "agent" => {
            estate.machines.get(&machine_of(server)).map(|machine| Message::Agent(agent(estate, machine)))
        }
        "process-server" => Some(Message::ProcessServer(process_server(estate, server))),
        "master-target" => Some(Message::MasterTarget(master_target(estate, server))),
        _ => None,
    }
}

fn agent(estate: &Estate, entry: &MachineEntry) -> pb::AgentAssignment {
    let row = &entry.row;
    let mut assignment = pb::AgentAssignment {
        machine_id: row.id.to_string(),
        epoch: row.epoch,
        disks: row.disks.iter().map(project::disk_message).collect(),
        ..Default::default()
    };
    let Some(protection) = &row.protection else { return assignment };
    let relay = estate.servers.get(&protection.process_server);
    // Two that claim to be one machine: neither replicates until a person has chosen.
    assignment.fenced = protection.fenced || entry.live.twice;
    assignment.replicate = replicates(protection) && !assignment.fenced;
    assignment.paused = protection.state.is_paused();
    assignment.process_server_address = relay.map(|relay| relay.row.address.clone()).unwrap_or_default();
    assignment.process_server_id = protection.process_server.to_string();
    if let Some(at) = protection.start_at.filter(|_| assignment.paused) {
        assignment.hold_reason = format!("the first copy begins at {at}");
    }
    assignment.initial = matches!(
        protection.state,
        ProtectionState::InitialReplication { .. } | ProtectionState::InitialReplicationFailed { .. }
    );
    assignment.resync_now = protection.resync_now;
    assignment.policy = policy(estate, protection);
    assignment.group = group(estate, entry).filter(|_| assignment.replicate);
    if protection.state.is_reversed() && !entry.live.twice {
        let target = estate.servers.get(&protection.master_target);
        let run = protection.failed_over.as_ref();
        assignment.receive = run.is_some();
        assignment.target_address = target.map(|target| target.row.address.clone()).unwrap_or_default();
        assignment.target_id = protection.master_target.to_string();
        assignment.view_id = run.map(|run| run.view.to_string()).unwrap_or_default();
    }
    assignment
}

/// The machine's consistency group, and whom its members dial.
fn group(estate: &Estate, entry: &MachineEntry) -> Option<pb::GroupAssignment> {
    let row = &estate.group_of(entry.row.id)?.row;
    let leader = estate.leader_of(row);
    let member = |id: &MachineId| pb::GroupMember {
        id: id.to_string(),
        name: estate.machines.get(id).map(|entry| entry.row.name.clone()).unwrap_or_default(),
    };
    Some(pb::GroupAssignment {
        name: row.name.clone(),
        version: row.version,
        members: row.body.machines.iter().map(member).collect(),
        leader_id: leader.map(|(id, _)| id.to_string()).unwrap_or_default(),
        leader_address: leader.map(|(_, address)| address.to_owned()).unwrap_or_default(),
        every_seconds: row.body.every_seconds,
        hold_millis: row.body.hold_millis,
    })
}

/// Whether the source belongs to this protection: it replicates, or would were it not paused. A failover
/// under way does not stop it before the fence does.
fn replicates(protection: &Protection) -> bool {
    match &protection.state {
        ProtectionState::InitialReplication { .. }
        | ProtectionState::InitialReplicationFailed { .. }
        | ProtectionState::Protected { .. }
        | ProtectionState::Resync { .. } => true,
        ProtectionState::FailingOver { from, .. } => from.replicates(),
        ProtectionState::Enabling
        | ProtectionState::EnablingFailed { .. }
        | ProtectionState::CommitPending { .. }
        | ProtectionState::Committed
        | ProtectionState::Reprotecting
        | ProtectionState::Reversed
        | ProtectionState::FailingBack { .. }
        | ProtectionState::Migrated
        | ProtectionState::Disabling => false,
    }
}

fn process_server(estate: &Estate, server: ServerId) -> pb::ProcessServerAssignment {
    let relays = estate.machines.values().filter_map(|entry| {
        let protection = entry.row.protection.as_ref()?;
        if protection.process_server != server || !replicates(protection) || protection.fenced {
            return None;
        }
        // A machine whose agent was revoked has no stream.
        if is_revoked(estate, agent_of(entry.row.id)) {
            return None;
        }
        let target = estate.servers.get(&protection.master_target)?;
        let policy = estate.policies.get(&protection.policy);
        Some(pb::Relay {
            machine_id: entry.row.id.to_string(),
            epoch: entry.row.epoch,
            target_address: target.row.address.clone(),
            target_id: target.row.id.to_string(),
            compression: policy.is_some_and(|policy| policy.policy.compression),
            bandwidth: policy
                .map(|policy| policy.policy.bandwidth.iter().map(limit_to_message).collect())
                .unwrap_or_default(),
            urgent: matches!(protection.state, ProtectionState::FailingOver { .. }),
        })
    });
    pb::ProcessServerAssignment { revision: 0, relays: relays.collect() }
}

fn master_target(estate: &Estate, server: ServerId) -> pb::MasterTargetAssignment {
    let replicas = estate.machines.values().filter_map(|entry| {
        let protection = entry.row.protection.as_ref()?;
        // Nothing to keep before the first epoch was issued; and what is about to be removed must not be
        // opened again by a target that restarts in between. A machine that runs on it is brought down first.
        let leaving = protection.state == ProtectionState::Disabling && protection.failed_over.is_none();
        if protection.master_target != server || entry.row.epoch == 0 || leaving {
            return None;
        }
        Some(pb::Replica {
            machine_id: entry.row.id.to_string(),
            machine_name: entry.row.name.clone(),
            epoch: entry.row.epoch,
            disks: entry.row.disks.iter().map(project::disk_message).collect(),
            policy: policy(estate, protection),
            // Frames come from nobody while their relay is revoked.
            process_server_id: if is_revoked(estate, protection.process_server) {
                String::new()
            } else {
                protection.process_server.to_string()
            },
            reverse_view: match &protection.failed_over {
                Some(run)
                    if protection.state.is_reversed() && !is_revoked(estate, agent_of(entry.row.id)) =>
                {
                    run.view.to_string()
                }
                _ => String::new(),
            },
        })
    });
    pb::MasterTargetAssignment { revision: 0, replicas: replicas.collect() }
}

fn is_revoked(estate: &Estate, server: ServerId) -> bool {
    estate.servers.get(&server).is_some_and(|entry| entry.row.revoked)
}

fn policy(estate: &Estate, protection: &Protection) -> Option<pb::Policy> {
    let row = estate.policies.get(&protection.policy)?;
    Some(project::policy_message(row.id, &row.name, &row.policy))
}
