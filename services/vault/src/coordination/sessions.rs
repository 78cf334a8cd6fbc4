//! Who is there, and single acts asked of them.
//!
//! A command waits for its answer across sessions: it is sent when the server is there, sent again on
//! every new session, and ends by its answer, by its deadline, or when the server stays away longer than
//! the vault's patience. Acts are idempotent by their id, so sending again is harmless.
//!
//! A server that does not take what it is sent has its session closed: it comes back and is told again.

use super::assignment;
use crate::estate::{Estate, agent_of};
use crate::world::World;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_proto::v1 as pb;
use futures::future::BoxFuture;
use pb::{command_result, vault_message};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Messages on their way to a server.
pub(crate) const OUTBOX: usize = 1024;

/// Told how far a command is: fraction and words.
pub(crate) type OnProgress = Arc<dyn Fn(f64, &str) + Send + Sync>;

/// Whoever carries out commands.
pub(crate) trait Hands: Send + Sync {
    /// Asks a server for one act and waits for its answer.
    fn command(
        &self,
        server: ServerId,
        command: pb::Command,
        deadline: Duration,
        progress: OnProgress,
    ) -> BoxFuture<'_, Result<command_result::Result, Fault>>;
}

type Outbox = mpsc::Sender<Result<pb::VaultMessage, Status>>;

/// All sessions.
pub(crate) struct Sessions {
    patience: Duration,
    inner: Mutex<Inner>,
    /// Rises whenever somebody comes or goes.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    number: u64,
    live: HashMap<ServerId, Session>,
    pending: HashMap<String, Pending>,
}

struct Session {
    number: u64,
    outbox: Outbox,
    close: CancellationToken,
    /// What it was told last, without the revision.
    assigned: Option<vault_message::Message>,
}

struct Pending {
    server: ServerId,
    command: pb::Command,
    reply: oneshot::Sender<Result<command_result::Result, Fault>>,
    progress: OnProgress,
}

/// A place among the live sessions.
pub(crate) struct Opened {
    pub(crate) number: u64,
    /// Somebody else has the place now, or the server does not take messages.
    pub(crate) close: CancellationToken,
}

impl Sessions {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, inner: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// How long a server that is away is waited for.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a server's place; a session that had it keeps only its end to close. Open commands are sent.
    pub(crate) fn open(&self, server: ServerId, outbox: Outbox, welcome: pb::Welcome) -> Opened {
        let mut inner = self.inner();
        inner.number += 1;
        let (number, close) = (inner.number, CancellationToken::new());
        let mut session = Session { number, outbox, close: close.clone(), assigned: None };
        session.send(vault_message::Message::Welcome(welcome));
        for pending in inner.pending.values().filter(|pending| pending.server == server) {
            session.send(vault_message::Message::Command(pending.command.clone()));
        }
        inner.live.insert(server, session);
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
        Opened { number, close }
    }

    /// Gives the place back. `false`: somebody else has it by now.
    pub(crate) fn closed(&self, server: ServerId, number: u64) -> bool {
        let mut inner = self.inner();
        let ours = inner.live.get(&server).is_some_and(|session| session.number == number);
        if ours {
            inner.live.remove(&server);
        }
        drop(inner);
        self.changed.send_modify(|count| *count += 1);
        ours
    }

    /// Ends a server's session at once, such as when its certificate was revoked.
    pub(crate) fn expel(&self, server: ServerId) {
        // It keeps its place until it has reported its leaving.
        if let Some(session) = self.inner().live.get(&server) {
            session.close.cancel();
        }
    }

    /// Whether this is the session that has its server's place.
    pub(crate) fn is_current(&self, server: ServerId, number: u64) -> bool {
        self.inner().live.get(&server).is_some_and(|session| session.number == number)
    }

    fn is_live(&self, server: ServerId) -> bool {
        self.inner().live.contains_key(&server)
    }

    /// Tells the servers that carry these machines what they should be doing, where it changed.
    pub(crate) fn assign(&self, estate: &Estate, machines: &BTreeSet<MachineId>, world: &World) {
        let mut servers = BTreeSet::new();
        for id in machines {
            servers.insert(agent_of(*id));
            if let Some(protection) = estate.machines.get(id).and_then(|entry| entry.row.protection.as_ref())
            {
                servers.extend([protection.process_server, protection.master_target]);
            } else {
                // It may have been taken off any of them just now.
                let carries = |role: &str| role == "process-server" || role == "master-target";
                servers.extend(
                    estate
                        .servers
                        .values()
                        .filter(|entry| carries(&entry.row.role))
                        .map(|entry| entry.row.id),
                );
            }
        }
        for server in servers {
            self.assign_one(estate, server, world);
        }
    }

    /// Tells one server, where it changed.
    pub(crate) fn assign_one(&self, estate: &Estate, server: ServerId, world: &World) {
        let mut inner = self.inner();
        let Some(session) = inner.live.get_mut(&server) else { return };
        let Some(wanted) = assignment::of(estate, server) else { return };
        if session.assigned.as_ref() == Some(&wanted) {
            return;
        }
        session.assigned = Some(wanted.clone());
        // Moments only go up, over restarts of the vault, too.
        let revision = u64::try_from(world.stamp().micros()).unwrap_or(0);
        session.send(match wanted {
            vault_message::Message::Agent(it) => {
                vault_message::Message::Agent(pb::AgentAssignment { revision, ..it })
            }
            vault_message::Message::ProcessServer(it) => {
                vault_message::Message::ProcessServer(pb::ProcessServerAssignment { revision, ..it })
            }
            vault_message::Message::MasterTarget(it) => {
                vault_message::Message::MasterTarget(pb::MasterTargetAssignment { revision, ..it })
            }
            other => other,
        });
    }

    /// An answer came.
    pub(crate) fn answered(&self, server: ServerId, result: pb::CommandResult) {
        let mut inner = self.inner();
        // A certificate speaks for one server: an answer to somebody else's command is no answer.
        if inner.pending.get(&result.id).is_none_or(|pending| pending.server != server) {
            return;
        }
        let Some(pending) = inner.pending.remove(&result.id) else { return };
        drop(inner);
        let answer = match (result.fault, result.result) {
            (Some(fault), _) => Err(continuum_wire::grpc::fault_from_proto(&fault)),
            (None, Some(result)) => Ok(result),
            (None, None) => Ok(command_result::Result::Done(pb::Done::default())),
        };
        // Whoever asked may have given up meanwhile.
        let _ = pending.reply.send(answer);
    }

    /// How far a command is.
    pub(crate) fn progressed(&self, server: ServerId, progress: &pb::Progress) {
        let on = {
            let inner = self.inner();
            let pending = inner.pending.get(&progress.command_id).filter(|pending| pending.server == server);
            pending.map(|pending| pending.progress.clone())
        };
        if let Some(on) = on {
            on(progress.fraction, &progress.detail);
        }
    }

    /// A hint that nobody waits for, such as "try again now". Lost when the server is not there.
    pub(crate) fn hint(&self, server: ServerId, command: pb::Command) -> bool {
        match self.inner().live.get_mut(&server) {
            Some(session) => session.send(vault_message::Message::Command(command)),
            None => false,
        }
    }

    /// Answers what a server asked in its session. Lost when it is not there: it asks again.
    pub(crate) fn reply(&self, server: ServerId, message: vault_message::Message) {
        if let Some(session) = self.inner().live.get_mut(&server) {
            session.send(message);
        }
    }

    /// Ends when the server was away for the whole of our patience.
    async fn away_too_long(&self, server: ServerId) {
        let mut changed = self.changed.subscribe();
        loop {
            while self.is_live(server) {
                let _ = changed.changed().await;
            }
            let back = async {
                while !self.is_live(server) {
                    let _ = changed.changed().await;
                }
            };
            if tokio::time::timeout(self.patience, back).await.is_err() {
                return;
            }
        }
    }

    async fn ask(
        &self,
        server: ServerId,
        command: pb::Command,
        deadline: Duration,
        progress: OnProgress,
    ) -> Result<command_result::Result, Fault> {
        let (reply, answer) = oneshot::channel();
        let id = command.id.clone();
        {
            let mut inner = self.inner();
            if let Some(session) = inner.live.get_mut(&server) {
                session.send(vault_message::Message::Command(command.clone()));
            }
            inner.pending.insert(id.clone(), Pending { server, command, reply, progress });
        }
        let _forget = Forget { sessions: self, id };
        tokio::select! {
            answer = answer => answer.unwrap_or_else(|_| {
                Err(Fault::new(FaultClass::Failed, "command.replaced", "the same act was asked for again meanwhile"))
            }),
            () = tokio::time::sleep(deadline) => Err(Fault::new(
                FaultClass::Failed,
                "command.late",
                format!("the server did not finish within {} s", deadline.as_secs()),
            )
            .affects("this job")
            .spares("replication")
            .remedy("look at the server's log and load, then retry the job")),
            () = self.away_too_long(server) => Err(Fault::new(
                FaultClass::NotConnected,
                "server.away",
                format!("the server is not connected to the vault and did not come back within {} s", self.patience.as_secs()),
            )
            .affects("this job")
            .spares("what that server was last told goes on")
            .remedy("see `continuum get servers`; start it or mend the network, then retry the job")),
        }
    }
}

impl Session {
    fn send(&mut self, message: vault_message::Message) -> bool {
        let sent = self.outbox.try_send(Ok(pb::VaultMessage { message: Some(message) })).is_ok();
        if !sent {
            self.close.cancel();
        }
        sent
    }
}

/// Takes a command off the list however its wait ends.
struct Forget<'a> {
    sessions: &'a Sessions,
    id: String,
}
impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.sessions.inner().pending.remove(&self.id);
    }
}

impl Hands for Sessions {
    fn command(
        &self,
        server: ServerId,
        command: pb::Command,
        deadline: Duration,
        progress: OnProgress,
    ) -> BoxFuture<'_, Result<command_result::Result, Fault>> {
        Box::pin(self.ask(server, command, deadline, progress))
    }
}
