//! What servers say: enrolment, sessions, renewal.

use crate::estate::{Estate, PointRow};
use crate::registry::Registry;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_model::protection::{Event, ProtectionState};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_model::world::SystemEntropy;
use continuum_proto::v1 as pb;
use continuum_wire::ca::{Authority, lifetime};
use continuum_wire::grpc::{Peer, status_of};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::token::Token;
use pb::{server_message, vault_message};
use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

/// How often servers report.
const REPORT_MILLIS: u32 = 500;

/// Both services that servers speak.
#[derive(Clone)]
pub struct Coordination {
    /// The vault's knowledge.
    pub estate: Arc<Estate>,
    /// Sessions.
    pub registry: Arc<Registry>,
    /// Certificates.
    pub authority: Arc<Authority>,
    /// Where sessions are opened; told to newcomers.
    pub address: String,
    /// Boot ids by machine: two at once are a clone.
    pub boots: Arc<Mutex<HashSet<(String, String)>>>,
}

/// The identity behind a request.
pub fn peer_of<T>(request: &Request<T>, roles: &[Role]) -> Result<Identity, Box<Status>> {
    let identity = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
    match identity {
        Some(identity) if roles.contains(&identity.role) => Ok(identity),
        Some(identity) => {
            tracing::warn!(peer = %identity, "a request without the right");
            let fault =
                Fault::new(FaultClass::Refused, "access.denied", format!("{identity} may not do that"))
                    .affects("this request; nothing was changed")
                    .remedy("use a certificate of the right role");
            Err(Box::new(status_of(&fault)))
        }
        None => Err(Box::new(Status::unauthenticated("access.no-certificate"))),
    }
}

#[tonic::async_trait]
impl pb::enrolment_server::Enrolment for Coordination {
    async fn enroll(&self, request: Request<pb::EnrollRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        let request = request.into_inner();
        // One answer for every wrong token: a guesser learns nothing. The reason is in the audit log.
        let refuse = || {
            let fault =
                Fault::new(FaultClass::Refused, "token.refused", "the enrolment token was not accepted")
                    .affects("this enrolment; nothing was changed")
                    .remedy("make a new token and use it once, within its time");
            status_of(&fault)
        };
        let now = self.estate.clock.wall();
        let failed = |fault: Fault| status_of(&fault);
        let Ok(token) = Token::parse(&request.token) else {
            self.estate
                .store
                .audit(now.micros(), "newcomer", "enrolment refused: no token")
                .await
                .map_err(failed)?;
            return Err(refuse());
        };
        let hash: String = token.hash().iter().map(|byte| format!("{byte:02x}")).collect();
        let used = self.estate.store.use_token(&hash, now.micros()).await.map_err(failed)?;
        let role = Role::named(&request.role);
        let fits = |row: &crate::store::TokenRow| {
            role.is_some_and(|role| role.name() == row.role && role != Role::Vault && role != Role::Operator)
                && (row.machine.is_empty() || row.machine == request.name)
        };
        let (Some(row), Some(role)) = (used.filter(fits), role) else {
            let text = format!(
                "enrolment refused: token unknown, used, expired, or for something else than {} {}",
                shown(&request.role),
                shown(&request.name)
            );
            self.estate.store.audit(now.micros(), "newcomer", &text).await.map_err(failed)?;
            return Err(refuse());
        };
        let id = match role {
            Role::Agent => MachineId::make(now, &mut SystemEntropy).to_string(),
            _ => ServerId::make(now, &mut SystemEntropy).to_string(),
        };
        let identity = Identity { vault: self.estate.vault, role, id: id.clone() };
        self.estate
            .store
            .audit(now.micros(), "newcomer", &format!("enrolled {identity} as {}", shown(&request.name)))
            .await
            .map_err(failed)?;
        let certificate_pem = self
            .authority
            .issue(&request.csr_der, &identity, now)
            .map_err(|error| status_of(&Fault::new(FaultClass::Usage, "enrolment.csr", error.to_string())))?;
        self.estate
            .store
            .put_server([&id, &request.name, role.name(), &row.site], now.micros())
            .await
            .map_err(failed)?;
        self.estate.set_server(&id, |server| {
            server.shown = pb::Server {
                id: id.clone(),
                name: request.name.clone(),
                role: role.name().into(),
                site: row.site.clone(),
                health: "warning".into(),
                last_seen_us: now.micros(),
                ..Default::default()
            };
        });
        Ok(Response::new(pb::EnrollReply {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            vault_id: self.estate.vault.to_string(),
            id,
            vault_address: self.address.clone(),
        }))
    }
}

#[tonic::async_trait]
impl pb::coordination_server::Coordination for Coordination {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::VaultMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::ServerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = peer_of(&request, &[Role::Agent, Role::ProcessServer, Role::MasterTarget])
            .map_err(|status| *status)?;
        let mut incoming = request.into_inner();
        let (session, mut outgoing) = self.registry.open(&peer.id);
        let this = self.clone();
        let reading = peer.clone();
        tokio::spawn(async move {
            let mut boot = None;
            let ended = loop {
                match incoming.message().await {
                    Ok(Some(pb::ServerMessage { message: Some(message) })) => {
                        if let server_message::Message::Hello(hello) = &message {
                            boot = Some((reading.id.clone(), hello.boot_id.clone()));
                        }
                        if let Err(fault) = this.heard(&reading, session, message).await {
                            tracing::error!(peer = %reading, code = fault.code, "{}", fault.message);
                        }
                    }
                    Ok(Some(pb::ServerMessage { message: None })) => {}
                    Ok(None) => break String::new(),
                    Err(status) => break status.message().to_owned(),
                }
            };
            if let Some(boot) = boot {
                this.boots.lock().unwrap_or_else(PoisonError::into_inner).remove(&boot);
            }
            if this.registry.close(&reading.id, session) {
                tracing::info!(peer = %reading, "session ended {}", shown(&ended));
                this.estate.set_server(&reading.id, |server| server.shown.connected = false);
                if let Ok(machine) = reading.id.parse() {
                    this.estate.set_live(machine, |_, live| live.agent_connected = false);
                    this.estate.tell_machine(machine);
                }
            }
        });
        let welcome = vault_message::Message::Welcome(pb::Welcome {
            vault_id: self.estate.vault.to_string(),
            run: self.estate.run.clone(),
            clock_us: self.estate.clock.wall().micros(),
            report_millis: REPORT_MILLIS,
        });
        let messages = async_stream(welcome, move |cx| outgoing.poll_recv(cx));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        let peer = peer_of(&request, &[Role::Agent, Role::ProcessServer, Role::MasterTarget])
            .map_err(|status| *status)?;
        let now = self.estate.clock.wall();
        let text = format!("renewed {peer} for {} s", lifetime(peer.role).as_secs());
        self.estate
            .store
            .audit(now.micros(), &peer.to_string(), &text)
            .await
            .map_err(|fault| status_of(&fault))?;
        let certificate_pem = self
            .authority
            .issue(&request.into_inner().csr_der, &peer, now)
            .map_err(|error| status_of(&Fault::new(FaultClass::Usage, "enrolment.csr", error.to_string())))?;
        Ok(Response::new(pb::EnrollReply {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            vault_id: self.estate.vault.to_string(),
            id: peer.id,
            vault_address: self.address.clone(),
        }))
    }
}

/// The welcome, then whatever comes.
fn async_stream(
    welcome: vault_message::Message,
    mut poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<vault_message::Message>>
    + Send
    + 'static,
) -> impl Stream<Item = Result<pb::VaultMessage, Status>> + Send {
    let mut first = Some(welcome);
    futures::stream::poll_fn(move |cx| {
        let message = match first.take() {
            Some(welcome) => std::task::Poll::Ready(Some(welcome)),
            None => poll(cx),
        };
        message.map(|message| message.map(|message| Ok(pb::VaultMessage { message: Some(message) })))
    })
}

impl Coordination {
    async fn heard(
        &self,
        peer: &Identity,
        session: u64,
        message: server_message::Message,
    ) -> Result<(), Fault> {
        let now = self.estate.clock.wall();
        match message {
            server_message::Message::Hello(hello) => self.hello(peer, session, hello, now).await,
            server_message::Message::Result(result) => {
                self.registry.answered(&peer.id, result);
                Ok(())
            }
            server_message::Message::Progress(progress) => {
                self.progress(&progress);
                Ok(())
            }
            server_message::Message::Agent(report) if peer.role == Role::Agent => {
                let machine: MachineId = peer.id.parse().map_err(|_| wrong_id(peer))?;
                self.seen(peer, now, report.load.as_ref(), |server| {
                    server.buffer_bytes = Some(report.staged_bytes);
                    server.buffer_bytes_max = Some(report.staged_bytes_max);
                });
                self.estate.set_live(machine, |_, live| {
                    live.agent = Some((report, now));
                    live.agent_connected = true;
                });
                Ok(())
            }
            server_message::Message::ProcessServer(report) if peer.role == Role::ProcessServer => {
                let relays = report.relays.iter().filter(|relay| relay.agent_connected).count();
                self.seen(peer, now, report.load.as_ref(), |server| {
                    server.buffer_bytes = Some(report.spool_bytes);
                    server.bytes_per_sec = Some(report.in_bytes_per_sec);
                    server.machines = relays as u32;
                });
                Ok(())
            }
            server_message::Message::MasterTarget(report) if peer.role == Role::MasterTarget => {
                let count = report.replicas.len();
                self.seen(peer, now, report.load.as_ref(), |server| server.machines = count as u32);
                for replica in report.replicas {
                    self.replica(peer, replica, now).await?;
                }
                Ok(())
            }
            _ => Err(Fault::new(
                FaultClass::Refused,
                "session.role",
                format!("{peer} reports as something else"),
            )),
        }
    }

    async fn hello(
        &self,
        peer: &Identity,
        session: u64,
        hello: pb::ServerHello,
        now: Timestamp,
    ) -> Result<(), Fault> {
        let known = self.estate.server(&peer.id);
        let site = known.as_ref().map_or_else(|| hello.site.clone(), |server| server.shown.site.clone());
        let site = if site.is_empty() { hello.site.clone() } else { site };
        self.estate.store.put_server([&peer.id, &hello.name, peer.role.name(), &site], now.micros()).await?;
        self.estate.set_server(&peer.id, |server| {
            server.session = session;
            server.shown.id.clone_from(&peer.id);
            server.shown.name.clone_from(&hello.name);
            server.shown.role = peer.role.name().into();
            server.shown.site.clone_from(&site);
            server.shown.version.clone_from(&hello.version);
            server.shown.address.clone_from(&hello.address);
            server.shown.connected = true;
            server.shown.health = "healthy".into();
            server.shown.last_seen_us = now.micros();
            if peer.role == Role::Agent {
                server.shown.machine.clone_from(&hello.name);
            }
        });
        if peer.role == Role::Agent {
            let others = {
                let mut boots = self.boots.lock().unwrap_or_else(PoisonError::into_inner);
                let others = boots.iter().any(|(id, boot)| *id == peer.id && *boot != hello.boot_id);
                boots.insert((peer.id.clone(), hello.boot_id.clone()));
                others
            };
            if others {
                let text = "two agents use one identity at once: a cloned machine, or an agent that is being restarted".to_owned();
                self.estate.tell("machine", &hello.name, &peer.id, text, "vault").await?;
            }
            let machine: MachineId = peer.id.parse().map_err(|_| wrong_id(peer))?;
            self.estate.register_machine(machine, &hello).await?;
        }
        tracing::info!(peer = %peer, name = shown(&hello.name), "session open");
        self.registry.push(&self.estate);
        Ok(())
    }

    fn seen(
        &self,
        peer: &Identity,
        now: Timestamp,
        load: Option<&pb::Load>,
        change: impl FnOnce(&mut pb::Server),
    ) {
        // Figures that move all the time are told once a second at most.
        let due = self
            .estate
            .server(&peer.id)
            .is_none_or(|server| now.micros() - server.shown.last_seen_us > 900_000);
        if !due {
            return;
        }
        self.estate.set_server(&peer.id, |server| {
            server.shown.connected = true;
            server.shown.last_seen_us = now.micros();
            if let Some(load) = load {
                server.shown.cpu_percent = Some(load.cpu_percent.round());
                server.shown.memory_bytes = Some(load.memory_bytes);
                server.shown.free_bytes = Some(load.free_bytes);
            }
            change(&mut server.shown);
        });
    }

    async fn replica(&self, peer: &Identity, report: pb::ReplicaReport, now: Timestamp) -> Result<(), Fault> {
        let machine: MachineId = report.machine_id.parse().map_err(|_| wrong_id(peer))?;
        let Ok(row) = self.estate.machine(machine) else { return Ok(()) };
        if row.master_target != peer.id {
            return Ok(());
        }
        let first_point = report.newest_point_us.is_some() && report.epoch == row.epoch.0;
        for point in report.new_points.iter().filter(|point| !point.name.is_empty()) {
            let point = PointRow {
                id: point.id.clone(),
                time_us: point.time_us,
                kind: point.kind.clone(),
                name: point.name.clone(),
                position: point.position,
            };
            tracing::debug!(machine = %machine, point = point.id, "named point");
        }
        self.estate.set_live(machine, |_, live| live.replica = Some((report, now)));
        let waiting = matches!(
            row.protection,
            Some(
                ProtectionState::InitialReplication { .. } | ProtectionState::InitialReplicationFailed { .. }
            )
        );
        if first_point && waiting {
            self.estate
                .change(machine, "vault", |row| {
                    let state = row.protection.clone().unwrap_or(ProtectionState::Enabling);
                    row.protection =
                        Some(state.next(Event::FirstPoint).map_err(|error| crate::orders::refused(&error))?);
                    Ok(((), Some("the first recovery point exists: protected".into())))
                })
                .await?;
        }
        Ok(())
    }

    fn progress(&self, progress: &pb::Progress) {
        let Some((job, step)) = progress.command_id.split_once('/') else { return };
        let (Ok(id), Ok(step)) = (job.parse(), step.split('/').next().unwrap_or_default().parse::<usize>())
        else {
            return;
        };
        if let Some(mut job) = self.estate.job(id)
            && let Some(row) = job.steps.get_mut(step)
            && !job.state.is_over()
        {
            row.progress = Some(progress.fraction.clamp(0.0, 1.0));
            self.estate.show_job(&job);
        }
    }
}

fn wrong_id(peer: &Identity) -> Fault {
    Fault::new(FaultClass::Refused, "session.id", format!("{peer} has no usable id"))
}
