//! gRPC over our TLS: who asks is known, faults arrive whole, enrolment gives one certificate for one token,
//! and a server's session with its vault outlives its connection.

mod common;

use common::{Estate, machine, now};
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use continuum_wire::enroll;
use continuum_wire::grpc::{self, Peer};
use continuum_wire::identity::Role;
use continuum_wire::session::{self, Handler, Progress};
use continuum_wire::tls::Credentials;
use continuum_wire::token::Token;
use futures::Stream;
use pb::coordination_server::{Coordination, CoordinationServer};
use pb::enrolment_server::{Enrolment, EnrolmentServer};
use pb::{command, command_result, server_message, vault_message};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type ToServer = mpsc::Sender<Result<pb::VaultMessage, Status>>;

/// A vault of real sockets and certificates, as far as these tests need one.
#[derive(Clone)]
struct Vault {
    estate: Arc<Estate>,
    tokens: Arc<Mutex<HashSet<[u8; 32]>>>,
    sessions: mpsc::Sender<(String, ToServer, Streaming<pb::ServerMessage>)>,
    renewals: Arc<AtomicUsize>,
}

type Sessions = mpsc::Receiver<(String, ToServer, Streaming<pb::ServerMessage>)>;

impl Vault {
    fn new() -> (Self, Sessions) {
        let (sessions, opened) = mpsc::channel(8);
        let estate = Arc::new(Estate::new());
        (Self { estate, tokens: Arc::default(), sessions, renewals: Arc::default() }, opened)
    }

    fn credentials(&self) -> Credentials {
        self.estate.credentials(Role::Vault, "vault")
    }

    /// Serves until the token is cancelled; then every connection is cut.
    async fn serve(&self, credentials: &Credentials, at: SocketAddr) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind(at).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let incoming = grpc::incoming(listener, credentials.acceptor().unwrap(), stop.clone());
        let server = tonic::transport::Server::builder()
            .add_service(CoordinationServer::new(self.clone()))
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tokio::spawn(server);
        (address, stop)
    }

    async fn enrolment(&self, credentials: &Credentials) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let incoming = grpc::incoming(listener, credentials.enrolment_acceptor(), CancellationToken::new());
        let server = tonic::transport::Server::builder().add_service(EnrolmentServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    fn token(&self, at: SocketAddr) -> Token {
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(self.estate.authority.certificate_pem().as_bytes()).unwrap();
        let fingerprint = continuum_wire::ca::fingerprint(&pem.contents);
        let token = Token::make(&at.to_string(), fingerprint, &mut continuum_model::world::SystemEntropy);
        self.tokens.lock().unwrap().insert(token.hash());
        token
    }
}

#[tonic::async_trait]
impl Enrolment for Vault {
    async fn enroll(&self, request: Request<pb::EnrollRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        assert!(
            request.extensions().get::<Peer>().is_some_and(|peer| peer.0.is_none()),
            "a newcomer is nobody"
        );
        let request = request.into_inner();
        let known = Token::parse(&request.token).ok();
        let won = known.is_some_and(|token| self.tokens.lock().unwrap().remove(&token.hash()));
        if !won {
            return Err(grpc::status_of(&Fault::new(
                FaultClass::Refused,
                "token.refused",
                "this token is not good",
            )));
        }
        let role = Role::named(&request.role).ok_or_else(|| Status::invalid_argument("role"))?;
        let identity = self.estate.identity(role, &machine(5).to_string());
        let certificate_pem = self.estate.authority.issue(&request.csr_der, &identity, now());
        Ok(Response::new(pb::EnrollReply {
            certificate_pem: certificate_pem.map_err(|error| Status::invalid_argument(error.to_string()))?,
            ca_pem: self.estate.authority.certificate_pem().to_owned(),
            vault_id: self.estate.vault.to_string(),
            id: identity.id,
            vault_address: "127.0.0.1:1".into(),
        }))
    }
}

#[tonic::async_trait]
impl Coordination for Vault {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<pb::VaultMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::ServerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.0.clone())
            .ok_or_else(|| Status::internal("no peer"))?;
        let (send, receive) = mpsc::channel(16);
        let _ = self.sessions.send((peer.to_string(), send, request.into_inner())).await;
        let stream = futures::stream::unfold(receive, |mut receive| async {
            receive.recv().await.map(|item| (item, receive))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn renew(&self, request: Request<pb::RenewRequest>) -> Result<Response<pb::EnrollReply>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .and_then(|peer| peer.0.clone())
            .ok_or_else(|| Status::internal("no peer"))?;
        self.renewals.fetch_add(1, Ordering::Relaxed);
        let pem = self
            .estate
            .authority
            .issue(&request.into_inner().csr_der, &peer, now())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(pb::EnrollReply { certificate_pem: pem, ..Default::default() }))
    }
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

#[test]
fn a_fault_survives_its_status_and_foreign_ones_are_made_of_what_is_known() {
    for class in [
        FaultClass::Failed,
        FaultClass::Usage,
        FaultClass::NotReady,
        FaultClass::Refused,
        FaultClass::Conflict,
    ] {
        let fault = Fault::new(class, "x.y", "größer als 3 °C\nand more")
            .affects("a")
            .spares("b")
            .remedy("c")
            .correlated("d");
        let back = grpc::fault_of(&grpc::status_of(&fault));
        assert_eq!(back.message, "größer als 3 °C␊and more", "harmless, nothing lost");
        assert_eq!(
            (back.class, back.code, back.remedy, back.correlation),
            (class, "x.y".into(), "c".into(), "d".into())
        );
    }
    let foreign = grpc::fault_of(&Status::unavailable("down \u{1b}[2J"));
    assert_eq!(foreign.class, FaultClass::NotConnected);
    assert!(!foreign.message.contains('\u{1b}'));
    // `Endpoint::timeout` says Cancelled where it means a deadline: both may be tried again.
    assert_eq!(grpc::fault_of(&Status::cancelled("Timeout expired")).class, FaultClass::NotConnected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_makes_exactly_one_certificate_however_many_try() {
    let (vault, _sessions) = Vault::new();
    let at = vault.enrolment(&vault.credentials()).await;
    let token = vault.token(at).reveal();
    let dirs = tempfile::tempdir().unwrap();
    let tries = (0..6).map(|number| {
        let (token, dir) = (token.clone(), dirs.path().join(number.to_string()));
        async move { (enroll::enroll(&token, "agent", "web-01", &dir).await, dir) }
    });
    let mut winners = 0;
    for (outcome, dir) in futures::future::join_all(tries).await {
        match outcome {
            Ok((credentials, address)) => {
                winners += 1;
                assert_eq!(
                    (credentials.identity().id, address.as_str()),
                    (machine(5).to_string(), "127.0.0.1:1")
                );
                assert!(Credentials::open(&dir).is_ok());
            }
            Err(fault) => {
                assert_eq!(
                    (fault.code.as_str(), fault.class),
                    ("token.refused", FaultClass::Refused),
                    "{fault}"
                );
                assert!(!Credentials::exist(&dir), "a loser keeps nothing");
            }
        }
    }
    assert_eq!(winners, 1);
    // Of another vault, cut, mistyped: told apart from refused where that gives nothing away.
    let (other, _sessions) = Vault::new();
    let elsewhere = other.token(at).reveal();
    let fault = enroll::enroll(&elsewhere, "agent", "x", &dirs.path().join("o")).await.err().unwrap();
    assert!(fault.message.contains("not the vault that the token is of"), "{fault}");
    let fault = enroll::enroll(&elsewhere[..50], "agent", "x", &dirs.path().join("o")).await.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.class), ("token.invalid", FaultClass::Usage));
}

#[tokio::test]
async fn a_call_with_a_bad_certificate_says_what_is_wrong_with_it() {
    let (vault, _sessions) = Vault::new();
    let (address, _stop) = vault.serve(&vault.credentials(), anywhere()).await;
    let expired = vault.estate.forge("old", |params| {
        (params.not_before, params.not_after) = (common::days(-9), common::days(-2));
    });
    let fault = grpc::channel(&expired, &address.to_string(), Role::Vault).await.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.class), ("tls.refused", FaultClass::Refused), "{fault}");
    assert!(fault.message.contains("not valid at this time by its clock"), "{fault}");
}

#[tokio::test]
async fn a_revoked_peer_loses_its_calls_at_once() {
    let (vault, mut sessions) = Vault::new();
    let credentials = vault.credentials();
    let (address, _stop) = vault.serve(&credentials, anywhere()).await;
    let agent = vault.estate.agent(machine(5));
    let channel = grpc::channel(&agent, &address.to_string(), Role::Vault).await.unwrap();
    let mut client = pb::coordination_client::CoordinationClient::new(channel);
    let (_requests, receive) = mpsc::channel::<pb::ServerMessage>(1);
    let requests = futures::stream::unfold(receive, |mut receive| async {
        receive.recv().await.map(|item| (item, receive))
    });
    let mut stream = client.session(requests).await.unwrap().into_inner();
    let (who, _to_server, _) = sessions.recv().await.unwrap();
    assert_eq!(who, format!("agent {}", machine(5)));
    credentials.peers().deny(&agent.identity(), now());
    let ended = tokio::time::timeout(Duration::from_secs(2), stream.message()).await.expect("still open");
    assert!(ended.is_err(), "{ended:?}");
    // The channel dials again by itself, is not let in, and says so.
    let again = client.renew(pb::RenewRequest { csr_der: vec![] }).await.err().unwrap();
    let fault = grpc::fault_of(&again);
    assert!(fault.code.starts_with("tls."), "{fault}");
}

#[tokio::test]
async fn a_certificate_is_renewed_at_half_of_its_life_and_not_before() {
    let (vault, _sessions) = Vault::new();
    let (address, _stop) = vault.serve(&vault.credentials(), anywhere()).await;
    let agent = vault.estate.agent(machine(5));
    let channel = grpc::channel(&agent, &address.to_string(), Role::Vault).await.unwrap();
    let first = agent.presented();
    assert!(!enroll::renew_when_due(&agent, &channel, now()).await.unwrap());
    assert_eq!(agent.presented(), first);
    let later = now().plus(Duration::from_secs(4 * 24 * 3600));
    assert!(enroll::renew_when_due(&agent, &channel, later).await.unwrap());
    assert_ne!(agent.presented().serial, first.serial);
    assert_eq!((agent.identity(), vault.renewals.load(Ordering::Relaxed)), (first.identity, 1));
}

/// A server that counts what it is asked to do.
#[derive(Default)]
struct Worker {
    done: AtomicUsize,
    assigned: AtomicUsize,
    gate: Notify,
}

impl Handler for Worker {
    fn hello(&self) -> pb::ServerHello {
        pb::ServerHello { name: "worker".into(), ..Default::default() }
    }
    async fn report(&self) -> server_message::Message {
        server_message::Message::ProcessServer(pb::ProcessServerReport::default())
    }
    async fn assigned(&self, _: vault_message::Message) {
        self.assigned.fetch_add(1, Ordering::Relaxed);
    }
    async fn command(&self, command: pb::Command, _: Progress) -> Result<command_result::Result, Fault> {
        self.done.fetch_add(1, Ordering::Relaxed);
        match command.id.as_str() {
            "slow" => self.gate.notified().await,
            "bad" => return Err(Fault::new(FaultClass::NotFound, "no.such", "no such thing")),
            _ => {}
        }
        Ok(command_result::Result::Done(pb::Done { detail: command.id }))
    }
}

fn order(id: &str) -> Result<pb::VaultMessage, Status> {
    let act = Some(command::Act::ReconnectNow(pb::ReconnectNow {}));
    let command = pb::Command { id: id.into(), act };
    Ok(pb::VaultMessage { message: Some(vault_message::Message::Command(command)) })
}

async fn result(stream: &mut Streaming<pb::ServerMessage>) -> pb::CommandResult {
    loop {
        if let Some(server_message::Message::Result(result)) =
            stream.message().await.unwrap().unwrap().message
        {
            return result;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_outlives_its_connection_and_does_no_command_twice() {
    let (vault, mut sessions) = Vault::new();
    let vault_credentials = vault.credentials();
    let (address, stop_vault) = vault.serve(&vault_credentials, anywhere()).await;
    let credentials = vault.estate.credentials(Role::ProcessServer, "ps");
    let (worker, stop) = (Arc::new(Worker::default()), CancellationToken::new());
    let dial = {
        let (credentials, address) = (credentials.clone(), address.to_string());
        move || {
            let (credentials, address) = (credentials.clone(), address.clone());
            async move { session::dial_and_renew(&credentials, &address).await }
        }
    };
    let running = tokio::spawn(session::run(dial, worker.clone(), Arc::new(Notify::new()), stop.clone()));

    let (who, to_server, mut from_server) = sessions.recv().await.unwrap();
    assert_eq!(who, "process-server ps");
    let first = from_server.message().await.unwrap().unwrap().message;
    assert!(matches!(first, Some(server_message::Message::Hello(hello)) if hello.name == "worker"));
    for id in ["a", "bad", "slow", "slow"] {
        to_server.send(order(id)).await.unwrap();
    }
    let (one, two) = (result(&mut from_server).await, result(&mut from_server).await);
    let good = if one.id == "a" { &one } else { &two };
    assert!(good.fault.is_none());
    let bad = if one.id == "a" { &two } else { &one };
    assert_eq!(bad.fault.as_ref().map(|fault| fault.code.as_str()), Some("no.such"));

    // The vault goes away in the middle and comes back; it asks again for all that it has no answer to.
    stop_vault.cancel();
    drop((to_server, from_server));
    let (_, _stop_vault) = loop {
        if std::net::TcpListener::bind(address).is_ok() {
            break vault.serve(&vault_credentials, address).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let (_, to_server, mut from_server) = sessions.recv().await.unwrap();
    for id in ["a", "slow"] {
        to_server.send(order(id)).await.unwrap();
    }
    assert_eq!(result(&mut from_server).await.id, "a", "answered from memory");
    worker.gate.notify_one();
    assert_eq!(result(&mut from_server).await.id, "slow");
    to_server.send(order("slow")).await.unwrap();
    assert_eq!(result(&mut from_server).await.id, "slow", "and again, now from memory");
    assert_eq!(worker.done.load(Ordering::Relaxed), 3, "a, bad and slow, once each");
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), running).await.expect("does not stop").unwrap();
}
