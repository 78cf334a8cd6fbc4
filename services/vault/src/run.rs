//! Assembling the vault: its files, its listeners, its tasks.
//!
//! ```text
//! <dir>/vault.db            the store            <dir>/pki/         the CA
//! <dir>/identity/           the vault's own certificate, made anew at each start
//! ```

use crate::coordination::Coordination;
use crate::estate::Estate;
use crate::operator::{self, OperatorApi};
use crate::registry::Registry;
use crate::store::Store;
use crate::{health, orders};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::VaultId;
use continuum_model::policy::Policy;
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use continuum_proto::v1 as pb;
use continuum_wire::ca::Authority;
use continuum_wire::grpc::{MESSAGE_BYTES_MAX, incoming};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::Credentials;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a vault needs to run.
#[derive(Debug, Clone)]
pub struct VaultConfig {
    /// Everything it keeps.
    pub dir: PathBuf,
    /// What it is called.
    pub name: String,
    /// Such as `lab`; shown in every console.
    pub environment: String,
    /// Operators and servers. Port 0: any free one.
    pub listen: SocketAddr,
    /// Newcomers. Port 0: any free one.
    pub listen_enrolment: SocketAddr,
    /// Where others reach the two, when that is not what they bind.
    pub advertise: Option<(String, String)>,
    /// Sites of the first start: name, fabric, whether replicas are kept there.
    pub sites: Vec<(String, String, bool)>,
    /// The policy called `default`, at the first start.
    pub policy: Policy,
}

/// Where it listens.
#[derive(Debug, Clone)]
pub struct Bound {
    /// For operators and servers.
    pub address: String,
    /// For newcomers.
    pub enrolment_address: String,
}

/// Runs until `stop`. `bound` hears where it listens, once it does.
pub async fn run(
    config: VaultConfig,
    bound: oneshot::Sender<Bound>,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let start = |what: &str, reason: String| {
        Fault::new(FaultClass::Failed, "vault.start", format!("{what}: {reason}"))
            .affects("the vault: it does not start")
            .spares("replication, which goes on without it")
            .remedy("mend what is named and start it again")
    };
    std::fs::create_dir_all(&config.dir)
        .map_err(|error| start("its directory cannot be made", error.to_string()))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let store = Store::open(&config.dir).await?;
    let vault = match store.meta("vault").await? {
        Some(id) => id.parse().map_err(|_| start("its id in the store", "is no id".into()))?,
        None => {
            let id = VaultId::make(clock.wall(), &mut SystemEntropy);
            store.set_meta("vault", &id.to_string()).await?;
            id
        }
    };
    let authority = authority(&config.dir, vault, &*clock)
        .map_err(|reason| start("its certificate authority", reason))?;
    let credentials = own_credentials(&config.dir, &authority, &*clock)
        .map_err(|reason| start("its own certificate", reason))?;
    let estate =
        Arc::new(Estate::open(store, clock.clone(), vault, &config.name, &config.environment).await?);
    for (name, fabric, recovery) in &config.sites {
        estate.add_site(name, fabric, *recovery).await?;
    }
    if estate.policy("default").is_err() {
        estate.put_policy("default", config.policy.clone()).await?;
    }
    let listen = async |address: SocketAddr| {
        TcpListener::bind(address)
            .await
            .map_err(|error| start(&format!("cannot listen on {address}"), error.to_string()))
    };
    let (main, newcomers) = (listen(config.listen).await?, listen(config.listen_enrolment).await?);
    let local =
        |listener: &TcpListener| listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let (address, enrolment_address) =
        config.advertise.clone().unwrap_or_else(|| (local(&main), local(&newcomers)));
    let registry = Arc::new(Registry::default());
    let tasks = TaskTracker::new();
    let shared = Coordination {
        estate: estate.clone(),
        registry: registry.clone(),
        authority: Arc::new(authority),
        address: address.clone(),
        boots: Arc::default(),
    };
    let api = OperatorApi {
        shared: shared.clone(),
        enrolment_address: enrolment_address.clone(),
        started_us: clock.wall().micros(),
        tasks: tasks.clone(),
        stop: stop.clone(),
    };
    // What was under way when the last run ended goes on.
    for job in estate.jobs().into_iter().filter(|job| !job.state.is_over()) {
        tracing::info!(job = %job.id, kind = job.order.kind(), "an interrupted job goes on");
        orders::begin(&estate, &registry, &tasks, &stop, job);
    }
    let acceptor = credentials.acceptor().map_err(|error| start("its own certificate", error.to_string()))?;
    let coordination = pb::coordination_server::CoordinationServer::new(shared.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(5)))
        .initial_connection_window_size(16 << 20)
        .add_service(operator::service(api))
        .add_service(coordination)
        .serve_with_incoming_shutdown(incoming(main, acceptor, stop.clone()), stop.clone().cancelled_owned());
    let enrolling = tonic::transport::Server::builder()
        .timeout(std::time::Duration::from_secs(30))
        .add_service(pb::enrolment_server::EnrolmentServer::new(shared).max_decoding_message_size(64 << 10))
        .serve_with_incoming_shutdown(
            incoming(newcomers, credentials.enrolment_acceptor(), stop.clone()),
            stop.clone().cancelled_owned(),
        );
    tracing::info!(address, enrolment_address, "vault listens");
    // Whoever asked may have given up waiting.
    let _ = bound.send(Bound { address, enrolment_address });
    let (served, enrolled, (), ()) = tokio::join!(
        served,
        enrolling,
        registry.run(estate.clone(), stop.clone()),
        health::run(estate, stop.clone())
    );
    tasks.close();
    tasks.wait().await;
    served.and(enrolled).map_err(|error| start("serving", error.to_string()))
}

fn authority(dir: &Path, vault: VaultId, clock: &dyn Clock) -> Result<Authority, String> {
    Authority::open_or_create(&dir.join("pki"), vault, clock.wall()).map_err(|error| error.to_string())
}

fn own_credentials(dir: &Path, authority: &Authority, clock: &dyn Clock) -> Result<Credentials, String> {
    let identity = Identity { vault: authority.vault(), role: Role::Vault, id: "vault".into() };
    let (certificate, key) = authority.make(&identity, clock.wall()).map_err(|error| error.to_string())?;
    Credentials::store(&dir.join("identity"), authority.certificate_pem(), &certificate, &key)
        .map_err(|error| error.to_string())
}

/// Makes an operator's certificate, into a folder that only its owner can read the key of. For the vault's
/// own machine: whoever can read the CA's key can do this.
pub fn make_operator(dir: &Path, role: &str, name: &str, into: &Path) -> Result<(), Fault> {
    let failed = |reason: String| {
        Fault::new(
            FaultClass::Failed,
            "operator.make",
            format!("no operator certificate could be made: {reason}"),
        )
    };
    let own = Credentials::open(&dir.join("identity")).map_err(|error| failed(error.to_string()))?;
    let clock = SystemClock::default();
    let authority = authority(dir, own.identity().vault, &clock).map_err(failed)?;
    let identity = Identity { vault: authority.vault(), role: Role::Operator, id: format!("{role}:{name}") };
    let (certificate, key) =
        authority.make(&identity, clock.wall()).map_err(|error| failed(error.to_string()))?;
    Credentials::store(into, authority.certificate_pem(), &certificate, &key)
        .map(drop)
        .map_err(|error| failed(error.to_string()))
}
