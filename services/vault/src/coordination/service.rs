//! The gRPC services for servers: enrolment and sessions.

use super::enrolment::Registrar;
use super::reports;
use super::sessions::OUTBOX;
use crate::access::{self, Caller};
use crate::core::Core;
use crate::estate::machine_of;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::ServerId;
use continuum_proto::v1 as pb;
use continuum_wire::grpc::status_of;
use pb::coordination_server::Coordination;
use pb::enrolment_server::Enrolment;
use pb::{server_message, vault_message};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// A session begins with its hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// What a process that was replaced still had on its way.
const LEFTOVERS: Duration = Duration::from_secs(2);
/// A session that somebody else replaced is watched this long.
const REPLACED: Duration = Duration::from_secs(10);

/// Both services.
pub(crate) struct Service {
    pub(crate) core: Arc<Core>,
    pub(crate) registrar: Arc<Registrar>,
    pub(crate) report_millis: u32,
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enroll(&self, request: Request<pb::EnrollRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        let (core, registrar, request) = (self.core.clone(), self.registrar.clone(), request.into_inner());
        let work = async move { registrar.enroll(&core, &request).await };
        reply(self.core.whole(work).await)
    }
}

#[tonic::async_trait]
impl Coordination for Service {
    type SessionStream = ReceiverStream<Result<pb::VaultMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::ServerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let Caller::Server { id, role, .. } = access::caller(&self.core, request.extensions()).await? else {
            return Err(status_of(&access::not_for(&self.core, "sessions are for servers")));
        };
        let mut incoming = request.into_inner();
        let first = tokio::time::timeout(HELLO_DEADLINE, incoming.message()).await;
        let Ok(Ok(Some(pb::ServerMessage { message: Some(server_message::Message::Hello(hello)) }))) = first
        else {
            return Err(status_of(
                &Fault::new(FaultClass::Usage, "hello.missing", "a session begins with a hello")
                    .affects("this session")
                    .spares("all others"),
            ));
        };
        let (core, greeted) = (self.core.clone(), hello.clone());
        let opened = self.core.whole(async move { reports::opened(&core, id, &greeted).await }).await;
        reply(opened).map(|_: Response<()>| ())?;
        let (outbox, stream) = mpsc::channel(OUTBOX);
        let welcome = pb::Welcome {
            vault_id: self.core.about.vault.to_string(),
            run: self.core.about.run.clone(),
            clock_us: self.core.world.now().micros(),
            report_millis: self.report_millis,
        };
        let place = self.core.sessions.open(id, outbox.clone(), welcome);
        self.core.sessions.assign_one(&self.core.estate(), id, &self.core.world);
        self.core.stir();
        tracing::info!(server = %id, %role, "session opened");
        let session = Session { core: self.core.clone(), id, boot: hello.boot_id, place, outbox };
        self.core.tasks.spawn(session.run(incoming));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        let Caller::Server { identity, .. } = access::caller(&self.core, request.extensions()).await? else {
            return Err(status_of(&access::not_for(
                &self.core,
                "certificates of operators are made anew, not renewed",
            )));
        };
        let (core, registrar, request) = (self.core.clone(), self.registrar.clone(), request.into_inner());
        let work = async move { registrar.renew(&core, &identity, &request.csr_der).await };
        reply(self.core.whole(work).await)
    }
}

/// The answer of work that ran in a task of its own.
pub(crate) fn reply<T>(done: Option<Result<T, Fault>>) -> Result<Response<T>, Status> {
    match done {
        Some(Ok(reply)) => Ok(Response::new(reply)),
        Some(Err(fault)) => Err(status_of(&fault)),
        None => Err(status_of(
            &Fault::new(FaultClass::Failed, "vault.task", "the vault could not finish this request")
                .affects("this request")
                .spares("everything else")
                .remedy("try again; the vault's log has the reason"),
        )),
    }
}

struct Session {
    core: Arc<Core>,
    id: ServerId,
    boot: String,
    place: super::sessions::Opened,
    outbox: mpsc::Sender<Result<pb::VaultMessage, Status>>,
}

impl Session {
    async fn run(self, mut incoming: Streaming<pb::ServerMessage>) {
        let mut replaced: Option<Instant> = None;
        loop {
            let message = tokio::select! {
                () = self.core.stop.cancelled() => break,
                () = self.place.close.cancelled() => break,
                message = incoming.message() => message,
                () = until(replaced.map(|at| at + REPLACED)), if !self.is_twice() => break,
            };
            let Ok(Some(pb::ServerMessage { message: Some(message) })) = message else { break };
            if self.core.sessions.is_current(self.id, self.place.number) {
                reports::fold(&self.core, self.id, message).await;
                continue;
            }
            // Somebody else has our place. The same process that dialled anew: done with. Another process
            // that lives on beside the new one: two that claim to be one machine.
            let at = *replaced.get_or_insert_with(Instant::now);
            if self.is_same_process() {
                break;
            }
            if at.elapsed() > LEFTOVERS {
                self.twice();
            }
        }
        if self.core.sessions.closed(self.id, self.place.number) {
            reports::closed(&self.core, self.id).await;
        }
    }

    fn is_same_process(&self) -> bool {
        let estate = self.core.estate();
        estate.machines.get(&machine_of(self.id)).is_none_or(|entry| entry.live.agent_boot == self.boot)
    }

    fn is_twice(&self) -> bool {
        self.core.estate().machines.get(&machine_of(self.id)).is_some_and(|entry| entry.live.twice)
    }

    /// Both are told to stop replicating until a person has chosen.
    fn twice(&self) {
        let mut estate = self.core.estate();
        let Some(entry) = estate.machines.get_mut(&machine_of(self.id)) else { return };
        if std::mem::replace(&mut entry.live.twice, true) {
            return;
        }
        tracing::error!(machine = %entry.row.id, "two processes claim to be this machine: both are fenced");
        if let Some(vault_message::Message::Agent(assignment)) = super::assignment::of(&estate, self.id) {
            let revision = u64::try_from(self.core.world.stamp().micros()).unwrap_or(0);
            let message = vault_message::Message::Agent(pb::AgentAssignment { revision, ..assignment });
            let _ = self.outbox.try_send(Ok(pb::VaultMessage { message: Some(message) }));
        }
        self.core.sessions.assign_one(&estate, self.id, &self.core.world);
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
