//! Sessions of servers: assignments pushed whole, commands sent until they are answered.
//!
//! A command waits for its server to come back, for as long as its deadline allows, and is sent again with
//! every new session: servers answer what they did already as they did then.

use crate::estate::{Estate, policy_to_proto};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::protection::ProtectionState;
use continuum_proto::v1 as pb;
use pb::{command, command_result, vault_message};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Messages on their way to one server.
const OUTBOX: usize = 256;

#[derive(Default)]
struct Inner {
    next_session: u64,
    sessions: HashMap<String, (u64, mpsc::Sender<vault_message::Message>)>,
    pending: HashMap<String, Pending>,
    revision: u64,
}

struct Pending {
    server: String,
    command: pb::Command,
    answer: Option<oneshot::Sender<Result<command_result::Result, Fault>>>,
}

/// All sessions.
#[derive(Default)]
pub struct Registry {
    inner: Mutex<Inner>,
}

impl Registry {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server opened a session; an older one of the same server ends.
    pub fn open(&self, server: &str) -> (u64, mpsc::Receiver<vault_message::Message>) {
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let mut inner = self.inner();
        inner.next_session += 1;
        let session = inner.next_session;
        for pending in inner.pending.values().filter(|pending| pending.server == server) {
            let _ = outbox.try_send(vault_message::Message::Command(pending.command.clone()));
        }
        inner.sessions.insert(server.to_owned(), (session, outbox));
        (session, messages)
    }

    /// A session ended. `false`: it had been replaced already.
    pub fn close(&self, server: &str, session: u64) -> bool {
        let mut inner = self.inner();
        let current = inner.sessions.get(server).is_some_and(|(current, _)| *current == session);
        if current {
            inner.sessions.remove(server);
        }
        current
    }

    /// Whether a server has a session.
    pub fn is_connected(&self, server: &str) -> bool {
        self.inner().sessions.contains_key(server)
    }

    /// A server answered.
    pub fn answered(&self, server: &str, result: pb::CommandResult) {
        let mut inner = self.inner();
        // Only the one who was asked may answer.
        if inner.pending.get(&result.id).is_none_or(|pending| pending.server != server) {
            return;
        }
        let Some(mut pending) = inner.pending.remove(&result.id) else { return };
        drop(inner);
        let outcome = match (result.fault, result.result) {
            (Some(fault), _) => Err(continuum_wire::grpc::fault_from_proto(&fault)),
            (None, Some(result)) => Ok(result),
            (None, None) => Err(Fault::new(FaultClass::Failed, "command.empty", "a server answered nothing")),
        };
        if let Some(answer) = pending.answer.take() {
            // Whoever asked may have given up.
            let _ = answer.send(outcome);
        }
    }

    /// Asks a server for one act and waits for its answer.
    pub async fn command(
        &self,
        server: &str,
        id: &str,
        act: command::Act,
        patience: Duration,
    ) -> Result<command_result::Result, Fault> {
        let command = pb::Command { id: id.to_owned(), act: Some(act) };
        let (answer, answered) = oneshot::channel();
        {
            let mut inner = self.inner();
            let pending =
                Pending { server: server.to_owned(), command: command.clone(), answer: Some(answer) };
            inner.pending.insert(id.to_owned(), pending);
            if let Some((_, outbox)) = inner.sessions.get(server) {
                let _ = outbox.try_send(vault_message::Message::Command(command));
            }
        }
        let outcome = tokio::time::timeout(patience, answered).await;
        self.inner().pending.remove(id);
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Fault::new(
                FaultClass::Failed,
                "command.dropped",
                "the request was replaced by a later one",
            )),
            Err(_) => {
                let why = if self.is_connected(server) { "did not answer" } else { "is not connected" };
                Err(Fault::new(
                    FaultClass::NotConnected,
                    "server.silent",
                    format!("server {server} {why} within {} s", patience.as_secs()),
                )
                .affects("this job")
                .spares("replication")
                .remedy("see the server in the console, and try the job again when it is back"))
            }
        }
    }

    /// Pushes assignments whenever something changed, until `stop`.
    pub async fn run(&self, estate: Arc<Estate>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = estate.assignments_changed.notified() => self.push(&estate),
            }
        }
    }

    /// Tells every connected server what should be.
    pub fn push(&self, estate: &Estate) {
        let machines = estate.machines();
        let servers = estate.servers();
        let address = |id: &str| {
            servers
                .iter()
                .find(|server| server.shown.id == id)
                .map_or_else(String::new, |server| server.shown.address.clone())
        };
        let mut inner = self.inner();
        inner.revision += 1;
        let revision = inner.revision;
        for server in &servers {
            let id = &server.shown.id;
            let Some((_, outbox)) = inner.sessions.get(id) else { continue };
            let message = match server.shown.role.as_str() {
                "agent" => {
                    let Some(row) = machines.iter().find(|row| row.id.to_string() == *id) else { continue };
                    let fenced = row.failed_over.is_some()
                        || matches!(
                            row.protection,
                            Some(
                                ProtectionState::FailingOver { .. }
                                    | ProtectionState::CommitPending { .. }
                                    | ProtectionState::Committed
                            )
                        );
                    vault_message::Message::Agent(pb::AgentAssignment {
                        revision,
                        machine_id: id.clone(),
                        replicate: row.protection.as_ref().is_some_and(ProtectionState::replicates),
                        paused: row.protection.as_ref().is_some_and(ProtectionState::is_paused),
                        epoch: row.epoch.0,
                        process_server_address: address(&row.process_server),
                        process_server_id: row.process_server.clone(),
                        policy: estate
                            .policy(&row.policy)
                            .ok()
                            .map(|policy| policy_to_proto("", &row.policy, &policy)),
                        disks: row.disks.iter().map(crate::estate::disk_shown).collect(),
                        fenced,
                    })
                }
                "process-server" => {
                    let relays =
                        machines.iter().filter(|row| row.process_server == *id && row.protection.is_some());
                    let relay = |row: &crate::estate::MachineRow| pb::Relay {
                        machine_id: row.id.to_string(),
                        epoch: row.epoch.0,
                        target_address: address(&row.master_target),
                        target_id: row.master_target.clone(),
                        compression: estate.policy(&row.policy).is_ok_and(|policy| policy.compression),
                    };
                    vault_message::Message::ProcessServer(pb::ProcessServerAssignment {
                        revision,
                        relays: relays.map(relay).collect(),
                    })
                }
                "master-target" => {
                    let replicas =
                        machines.iter().filter(|row| row.master_target == *id && row.protection.is_some());
                    let replica = |row: &crate::estate::MachineRow| pb::Replica {
                        machine_id: row.id.to_string(),
                        machine_name: row.name.clone(),
                        epoch: row.epoch.0,
                        disks: row.disks.iter().map(crate::estate::disk_shown).collect(),
                        policy: estate
                            .policy(&row.policy)
                            .ok()
                            .map(|policy| policy_to_proto("", &row.policy, &policy)),
                        process_server_id: row.process_server.clone(),
                    };
                    vault_message::Message::MasterTarget(pb::MasterTargetAssignment {
                        revision,
                        replicas: replicas.map(replica).collect(),
                    })
                }
                _ => continue,
            };
            // A server whose outbox is full does not read: its session will end, and the next one is told anew.
            let _ = outbox.try_send(message);
        }
    }
}
