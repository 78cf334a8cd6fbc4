//! A vault for tests of the console: the real operator service over the real mutual TLS, with a world
//! that the test writes.
//!
//! Lives here: certificates, listener, profile directory, watch streams, going down and coming back at
//! another port. What an order does is the test's. Real are the protocol, the certificates and the
//! transport; only the estate behind them is made up.

#![allow(dead_code, reason = "each test binary uses its part")]

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::VaultId;
use continuum_model::time::Timestamp;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
use continuum_proto::v1::operator_server::{Operator, OperatorServer};
use continuum_wire::ca::{self, Authority};
use continuum_wire::grpc;
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::Credentials;
use continuum_wire::token::Token;
use pb::entity::Entity;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

type Answer<T> = Result<T, Fault>;
type OnOrder = Box<dyn FnMut(&pb::OrderRequest) -> Answer<pb::Job> + Send>;

/// What the vault knows, and what was asked of it.
pub struct World {
    pub entities: Vec<Entity>,
    /// Newest first; served in pages.
    pub points: Vec<pb::Point>,
    pub gaps: Vec<pb::Gap>,
    pub reports: Vec<pb::Report>,
    pub readiness: Answer<pb::ReadinessReply>,
    pub on_order: OnOrder,
    /// Every order that arrived, in order.
    pub orders: Vec<pb::OrderRequest>,
    /// Every readiness request that arrived.
    pub asked: Vec<pb::ReadinessRequest>,
    /// The next answers to orders are lost on their way, after the order was carried out.
    pub lose_answers: usize,
    pub jobs_by_key: Vec<(String, pb::Job)>,
    pub sequence: u64,
}

impl Default for World {
    fn default() -> Self {
        Self {
            entities: Vec::new(),
            points: Vec::new(),
            gaps: Vec::new(),
            reports: Vec::new(),
            readiness: Ok(pb::ReadinessReply { ready: true, ..Default::default() }),
            on_order: Box::new(|_| {
                Err(Fault::new(FaultClass::NotReady, "test.no-orders", "this vault takes no orders"))
            }),
            orders: Vec::new(),
            asked: Vec::new(),
            lose_answers: 0,
            jobs_by_key: Vec::new(),
            sequence: 0,
        }
    }
}

/// A vault that can go away and come back.
pub struct FakeVault {
    pub dir: tempfile::TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    shared: Shared,
    authority: Arc<Authority>,
    vault: VaultId,
    stop: Option<CancellationToken>,
    pub address: String,
    pub enrolment_address: String,
    secret_hashes: Arc<Mutex<Vec<[u8; 32]>>>,
}

#[derive(Clone)]
struct Shared {
    world: Arc<Mutex<World>>,
    changes: broadcast::Sender<pb::WatchEvent>,
    run: Arc<Mutex<String>>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeVault {
    /// Starts a vault with this world; its directory looks like a lab's.
    pub fn start(world: World) -> Self {
        continuum_wire::tls::install_provider();
        let dir = tempfile::Builder::new().prefix("ct-fake-").tempdir().expect("a folder");
        let vault = VaultId::from_bytes([7; 16]);
        let now = SystemClock::default().wall();
        let authority =
            Arc::new(Authority::open_or_create(&dir.path().join("ca"), vault, now).expect("an authority"));
        let identity = Identity { vault, role: Role::Vault, id: "vault".into() };
        let (certificate, key) = authority.make(&identity, now).expect("a certificate");
        Credentials::store(&dir.path().join("vault"), authority.certificate_pem(), &certificate, &key)
            .expect("credentials");
        let shared = Shared {
            world: Arc::new(Mutex::new(world)),
            changes: broadcast::channel(1024).0,
            run: Arc::default(),
        };
        let mut fake = Self {
            dir,
            runtime: None,
            shared,
            authority,
            vault,
            stop: None,
            address: String::new(),
            enrolment_address: String::new(),
            secret_hashes: Arc::default(),
        };
        fake.operator_files(&fake.dir.path().join("profile"), "owner", "ada");
        fake.up();
        fake
    }

    /// The lab directory that commands name.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What the vault knows.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Writes ca.pem, certificate.pem and key.pem of an operator.
    pub fn operator_files(&self, dir: &Path, role: &str, name: &str) {
        let identity = Identity { vault: self.vault, role: Role::Operator, id: format!("{role}:{name}") };
        let (certificate, key) = self.authority.make(&identity, now()).expect("a certificate");
        Credentials::store(dir, self.authority.certificate_pem(), &certificate, &key).expect("credentials");
    }

    /// Goes away: every connection is cut.
    pub fn down(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.cancel();
        }
        if let Some(runtime) = self.runtime.take() {
            // Connections are tasks of their own: only the end of their runtime cuts them.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        }
    }

    /// Comes (back), at a new port, as a new run.
    pub fn up(&mut self) {
        self.down();
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads");
        let (listener, enrolment) = runtime.block_on(async {
            (
                TcpListener::bind("127.0.0.1:0").await.expect("a port"),
                TcpListener::bind("127.0.0.1:0").await.expect("a port"),
            )
        });
        self.address = listener.local_addr().expect("an address").to_string();
        self.enrolment_address = enrolment.local_addr().expect("an address").to_string();
        *self.shared.run.lock().unwrap_or_else(PoisonError::into_inner) = self.address.clone();
        let credentials = Credentials::open(&self.dir.path().join("vault")).expect("credentials");
        let acceptor = credentials.acceptor().expect("an acceptor");
        let service = OperatorServer::new(self.shared.clone());
        let serving = {
            let stop = stop.clone();
            async move {
                let incoming = grpc::incoming(listener, acceptor, stop.clone());
                let server =
                    tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
                tokio::select! { _ = server => {}, () = stop.cancelled() => {} }
            }
        };
        runtime.spawn(serving);
        let enrolling = Enroller {
            authority: self.authority.clone(),
            vault: self.vault,
            address: self.address.clone(),
            hashes: self.secret_hashes.clone(),
        };
        let acceptor = credentials.enrolment_acceptor();
        let gate = stop.clone();
        runtime.spawn(async move {
            let incoming = grpc::incoming(enrolment, acceptor, gate.clone());
            let server = tonic::transport::Server::builder()
                .add_service(EnrolmentServer::new(enrolling))
                .serve_with_incoming(incoming);
            tokio::select! { _ = server => {}, () = gate.cancelled() => {} }
        });
        (self.stop, self.runtime) = (Some(stop), Some(runtime));
        std::fs::write(
            self.dir.path().join("profile/profile.toml"),
            format!("address = \"{}\"\n", self.address),
        )
        .expect("a profile");
    }

    /// A one-use token.
    pub fn token(&self) -> String {
        let pem = self.authority.certificate_pem();
        use rustls::pki_types::pem::PemObject;
        let der = rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let token = Token::make(
            &self.enrolment_address,
            ca::fingerprint(&der),
            &mut continuum_model::world::SystemEntropy,
        );
        self.secret_hashes.lock().unwrap_or_else(PoisonError::into_inner).push(token.hash());
        token.reveal().to_string()
    }

    /// Changes the world and tells every watcher.
    pub fn change(&self, entity: Entity) {
        change(&self.shared, entity);
    }

    /// How many watch.
    pub fn watchers(&self) -> usize {
        self.shared.changes.receiver_count()
    }

    /// Tells changes of its own accord, from a thread.
    pub fn changer(&self) -> impl Fn(Entity) + Send + 'static + use<> {
        let shared = self.shared.clone();
        move |entity| change(&shared, entity)
    }
}

impl Drop for FakeVault {
    fn drop(&mut self) {
        self.down();
    }
}

fn now() -> Timestamp {
    SystemClock::default().wall()
}

/// Kind, id and name of an entity.
pub fn key_of(entity: &Entity) -> (pb::Kind, &str, &str) {
    match entity {
        Entity::Site(site) => (pb::Kind::Site, &site.id, &site.name),
        Entity::Server(server) => (pb::Kind::Server, &server.id, &server.name),
        Entity::Machine(machine) => (pb::Kind::Machine, &machine.id, &machine.name),
        Entity::Policy(policy) => (pb::Kind::Policy, &policy.id, &policy.name),
        Entity::Plan(plan) => (pb::Kind::Plan, &plan.name, &plan.name),
        Entity::Group(group) => (pb::Kind::Group, &group.name, &group.name),
        Entity::Job(job) => (pb::Kind::Job, &job.id, ""),
        Entity::Alert(alert) => (pb::Kind::Alert, &alert.id, ""),
        Entity::Event(event) => (pb::Kind::Event, &event.object, ""),
    }
}

fn change(shared: &Shared, entity: Entity) {
    let mut world = shared.world();
    let (kind, id, _) = key_of(&entity);
    let known = world.entities.iter().position(|other| {
        let (other_kind, other_id, _) = key_of(other);
        (other_kind, other_id) == (kind, id)
    });
    match known {
        Some(at) if kind != pb::Kind::Event => world.entities[at] = entity.clone(),
        _ => world.entities.push(entity.clone()),
    }
    world.sequence += 1;
    let event = pb::watch_event::Event::Changed(pb::Entity { entity: Some(entity) });
    // Nobody may be watching.
    let _ = shared.changes.send(pb::WatchEvent { sequence: world.sequence, event: Some(event) });
}

fn wanted(entity: &Entity, kinds: &[i32], name: &str) -> bool {
    let (kind, id, called) = key_of(entity);
    (kinds.is_empty() || kinds.contains(&(kind as i32))) && (name.is_empty() || id == name || called == name)
}

fn answer<T>(answer: Answer<T>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(|fault| grpc::status_of(&fault))
}

#[tonic::async_trait]
impl Operator for Shared {
    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        let request = request.into_inner();
        let world = self.world();
        let entities = world.entities.iter().filter(|entity| wanted(entity, &request.kinds, &request.name));
        let entities = entities.map(|entity| pb::Entity { entity: Some(entity.clone()) }).collect();
        Ok(Response::new(pb::SnapshotReply { sequence: world.sequence, entities }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use pb::watch_event::Event;
        let request = request.into_inner();
        // The world is locked: no change slips in between the snapshot and the subscription.
        let world = self.world();
        let receiver = self.changes.subscribe();
        let run = self.run.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let at = world.sequence;
        let event = |event| Ok(pb::WatchEvent { sequence: at, event: Some(event) });
        let mut first = vec![event(Event::SnapshotBegin(pb::SnapshotBegin { run }))];
        for entity in world.entities.iter().filter(|entity| wanted(entity, &request.kinds, "")) {
            first.push(event(Event::Changed(pb::Entity { entity: Some(entity.clone()) })));
        }
        first.push(event(Event::SnapshotEnd(pb::SnapshotEnd {})));
        first.push(event(Event::Tick(pb::Tick { vault_time_us: now().micros() })));
        let kinds = request.kinds;
        let later = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.ok().map(|event| (event, receiver))
        });
        let later = later.filter_map(move |event| match &event.event {
            Some(Event::Changed(pb::Entity { entity: Some(entity) })) if !wanted(entity, &kinds, "") => None,
            _ => Some(Ok(event)),
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(first).chain(later))))
    }

    async fn timeline(
        &self,
        request: Request<pb::TimelineRequest>,
    ) -> Result<Response<pb::TimelineReply>, Status> {
        let request = request.into_inner();
        let world = self.world();
        let from = world.points.iter().position(|point| point.id == request.before_id).map_or(0, |at| at + 1);
        let in_range = |point: &&pb::Point| {
            request.from_us.is_none_or(|from| point.time_us >= from)
                && request.to_us.is_none_or(|to| point.time_us <= to)
        };
        let mut points: Vec<_> = world.points[from..].iter().filter(in_range).cloned().collect();
        let more = points.len() > request.points_max as usize;
        points.truncate(request.points_max as usize);
        Ok(Response::new(pb::TimelineReply { points, more, gaps: world.gaps.clone(), ..Default::default() }))
    }

    async fn preview(&self, _: Request<pb::PreviewRequest>) -> Result<Response<pb::PreviewReply>, Status> {
        answer(self.world().readiness.clone().map(|report| report.preview.unwrap_or_default()))
    }

    async fn readiness(
        &self,
        request: Request<pb::ReadinessRequest>,
    ) -> Result<Response<pb::ReadinessReply>, Status> {
        let mut world = self.world();
        world.asked.push(request.into_inner());
        answer(world.readiness.clone())
    }

    async fn order(&self, request: Request<pb::OrderRequest>) -> Result<Response<pb::OrderReply>, Status> {
        let request = request.into_inner();
        let given = {
            let mut world = self.world();
            world.orders.push(request.clone());
            let before =
                world.jobs_by_key.iter().find(|(key, _)| *key == request.key).map(|(_, job)| job.clone());
            match before {
                Some(job) => Ok((job, true)),
                None => {
                    let job = (world.on_order)(&request);
                    if let Ok(job) = &job {
                        world.jobs_by_key.push((request.key.clone(), job.clone()));
                    }
                    job.map(|job| (job, false))
                }
            }
        };
        if let Ok((job, false)) = &given {
            change(self, Entity::Job(job.clone()));
        }
        let mut world = self.world();
        if world.lose_answers > 0 {
            world.lose_answers -= 1;
            return Err(Status::unavailable("the connection was cut"));
        }
        answer(given.map(|(job, repeated_key)| pb::OrderReply { job: Some(job), repeated_key }))
    }

    async fn who_am_i(
        &self,
        request: Request<pb::WhoAmIRequest>,
    ) -> Result<Response<pb::WhoAmIReply>, Status> {
        let peer = request.extensions().get::<grpc::Peer>().and_then(|peer| peer.0.clone());
        let (role, name) = peer.as_ref().and_then(Identity::operator).unwrap_or_default();
        Ok(Response::new(pb::WhoAmIReply {
            name: name.to_owned(),
            role: role.to_owned(),
            vault_name: "test vault".into(),
            environment: "lab".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            run: self.run.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..Default::default()
        }))
    }

    async fn reports(
        &self,
        request: Request<pb::ReportsRequest>,
    ) -> Result<Response<pb::ReportsReply>, Status> {
        let of = request.into_inner().of;
        let reports = self.world().reports.clone();
        let wanted = |report: &pb::Report| of.is_empty() || report.job == of || report.subject == of;
        Ok(Response::new(pb::ReportsReply { reports: reports.into_iter().filter(wanted).collect() }))
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenReply>, Status> {
        let lifetime = i64::from(request.into_inner().lifetime_seconds);
        let expires_us = now().micros() + lifetime * 1_000_000;
        Ok(Response::new(pb::CreateTokenReply { token: "ct1.once".into(), expires_us }))
    }

    async fn versions(&self, _: Request<pb::VersionsRequest>) -> Result<Response<pb::VersionsReply>, Status> {
        Ok(Response::new(pb::VersionsReply::default()))
    }

    async fn access(&self, _: Request<pb::AccessRequest>) -> Result<Response<pb::AccessReply>, Status> {
        Ok(Response::new(pb::AccessReply::default()))
    }

    async fn audit(&self, _: Request<pb::AuditRequest>) -> Result<Response<pb::AuditReply>, Status> {
        Ok(Response::new(pb::AuditReply::default()))
    }

    async fn revoke(&self, _: Request<pb::RevokeRequest>) -> Result<Response<pb::RevokeReply>, Status> {
        Ok(Response::new(pb::RevokeReply {}))
    }

    async fn can_i(&self, _: Request<pb::CanIRequest>) -> Result<Response<pb::CanIReply>, Status> {
        Ok(Response::new(pb::CanIReply::default()))
    }
}

struct Enroller {
    authority: Arc<Authority>,
    vault: VaultId,
    address: String,
    hashes: Arc<Mutex<Vec<[u8; 32]>>>,
}

#[tonic::async_trait]
impl Enrolment for Enroller {
    async fn enroll(&self, request: Request<pb::EnrollRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        let request = request.into_inner();
        let hash = Token::parse(&request.token).map(|token| token.hash());
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = hash.ok().and_then(|hash| hashes.iter().position(|other| *other == hash));
        let Some(at) = known else {
            return Err(grpc::status_of(&Fault::new(
                FaultClass::Refused,
                "token.refused",
                "this token is not accepted",
            )));
        };
        hashes.remove(at);
        let identity = Identity { vault: self.vault, role: Role::Operator, id: "operator:grace".into() };
        let certificate_pem =
            self.authority.issue(&request.csr_der, &identity, now()).expect("a certificate");
        Ok(Response::new(pb::EnrollReply {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            vault_id: self.vault.to_string(),
            id: "operator:grace".into(),
            vault_address: self.address.clone(),
        }))
    }
}

/// The binary under test.
pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_continuum"))
}
