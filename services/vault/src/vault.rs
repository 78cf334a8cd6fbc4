//! Starting a vault, and what an installation does with it.
//!
//! ```text
//! <dir>/vault.db               the store (unless a database is named)
//! <dir>/authority/             the CA (see continuum-wire)
//! <dir>/credentials/           the vault's own certificate, renewed by itself
//! ```

use crate::config::{SiteSpec, VaultConfig};
use crate::coordination::enrolment::Registrar;
use crate::coordination::service as coordination;
use crate::coordination::sessions::{Hands, Sessions};
use crate::core::{About, Core, Peering};
use crate::grants;
use crate::jobs::engine;
use crate::operator::service as operator;
use crate::store::access::AuditLine;
use crate::store::inventory::{PolicyRow, ServerRow, SiteRow};
use crate::store::{Store, hex};
use crate::world::World;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{PolicyId, ServerId, SiteId, VaultId};
use continuum_model::policy::Policy;
use continuum_model::time::Timestamp;
use continuum_proto::v1 as pb;
use continuum_wire::ca::{self, Authority, PkiError};
use continuum_wire::grpc;
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::Credentials;
use pb::coordination_server::CoordinationServer;
use pb::enrolment_server::EnrolmentServer;
use pb::operator_server::OperatorServer;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

/// Requests of operators and servers are small.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// A newcomer's request holds a token and a signing request.
const ENROL_BYTES_MAX: usize = 64 << 10;
/// The embedded store, in the vault's folder.
pub(crate) const STORE: &str = "vault.db";
/// The CA, in the vault's folder.
pub(crate) const AUTHORITY: &str = "authority";
/// How long a stop waits for what is under way; jobs go on at the next start.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Where a vault listens, as others reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Operators and servers.
    pub main: String,
    /// Newcomers.
    pub enrolment: String,
}

/// A running vault.
pub struct Vault {
    core: Arc<Core>,
    registrar: Arc<Registrar>,
    addresses: Addresses,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

/// Runs a vault until `stop`; `ready` is told where it listens.
pub async fn run(
    config: VaultConfig,
    ready: impl FnOnce(&Vault),
    stop: CancellationToken,
) -> Result<(), Fault> {
    let vault = Vault::start(config, stop.clone()).await?;
    ready(&vault);
    stop.cancelled().await;
    vault.stop().await;
    Ok(())
}

impl Vault {
    /// Starts a vault: opens or makes its store and its CA, binds, continues every job.
    ///
    /// Errors: the configuration is wrong (nothing was touched), the store or a key cannot be read, a port
    /// is taken.
    pub async fn start(config: VaultConfig, stop: CancellationToken) -> Result<Self, Fault> {
        config.check()?;
        std::fs::create_dir_all(&config.dir)
            .map_err(|error| start_fault(format!("{}: {error}", config.dir.display())))?;
        let world = World::default();
        let store = match &config.database {
            Some(url) => Store::open_url(url).await,
            None => Store::open(&config.dir.join(STORE)).await,
        };
        let store = store.map_err(|error| error.fault())?;
        let known = first_start(&store, &world, &config).await?;
        let authority =
            Authority::open_or_create(&config.dir.join(AUTHORITY), known.vault, world.now()).map_err(pki)?;
        let credentials = own_credentials(&config.dir, &authority, &world)?;
        let (main, main_bound) = bind(config.listen, known.port.as_deref()).await?;
        let (enrolment, enrolment_bound) =
            bind(config.listen_enrolment, known.enrolment_port.as_deref()).await?;
        remember_ports(&store, main_bound, enrolment_bound).await?;
        let addresses = Addresses {
            main: config.advertise.clone().unwrap_or_else(|| main_bound.to_string()),
            enrolment: config.advertise_enrolment.clone().unwrap_or_else(|| enrolment_bound.to_string()),
        };
        let about = About {
            vault: known.vault,
            name: config.name.clone(),
            environment: config.environment.clone(),
            run: run_id(&world),
            started: world.now(),
            four_eyes: config.four_eyes.clone(),
        };
        let sessions = Arc::new(Sessions::new(config.patience));
        let hands: Arc<dyn Hands> = sessions.clone();
        let own_stop = stop.child_token();
        let gate = credentials.peers().clone();
        let thresholds = config.thresholds.clone();
        let core =
            Core::load(about, thresholds, store, world, Peering { sessions, hands, gate }, own_stop.clone())
                .await?;
        core.heed_grants().await?;
        own_row(&core, &credentials, &addresses, known.site).await?;
        let registrar = Arc::new(Registrar {
            authority,
            address: addresses.main.clone(),
            enrolment_address: addresses.enrolment.clone(),
        });
        let mut vault = Self { core, registrar, addresses, stop: own_stop, tasks: JoinSet::new() };
        vault.serve(&config, &credentials, main, enrolment)?;
        engine::resume_all(&vault.core);
        tracing::info!(main = vault.addresses.main, enrolment = vault.addresses.enrolment, "vault listens");
        Ok(vault)
    }

    fn serve(
        &mut self,
        config: &VaultConfig,
        credentials: &Credentials,
        main: TcpListener,
        enrolment: TcpListener,
    ) -> Result<(), Fault> {
        let service = |core: &Arc<Core>, registrar: &Arc<Registrar>| coordination::Service {
            core: core.clone(),
            registrar: registrar.clone(),
            report_millis: u32::try_from(config.report_every.as_millis()).unwrap_or(500),
        };
        let api = operator::Service { core: self.core.clone(), registrar: self.registrar.clone() };
        let router = server()
            .add_service(OperatorServer::new(api).max_decoding_message_size(REQUEST_BYTES_MAX))
            .add_service(
                CoordinationServer::new(service(&self.core, &self.registrar))
                    .max_decoding_message_size(grpc::MESSAGE_BYTES_MAX),
            );
        let newcomers = server().add_service(
            EnrolmentServer::new(service(&self.core, &self.registrar))
                .max_decoding_message_size(ENROL_BYTES_MAX),
        );
        let acceptor = credentials.acceptor().map_err(pki)?;
        let stop = self.stop.clone();
        let incoming = grpc::incoming(main, acceptor, stop.clone());
        self.tasks.spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
                tracing::error!("the vault's listener ended: {error}");
            }
        });
        let stop = self.stop.clone();
        let incoming = grpc::incoming(enrolment, credentials.enrolment_acceptor(), stop.clone());
        self.tasks.spawn(async move {
            if let Err(error) = newcomers.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await
            {
                tracing::error!("the enrolment listener ended: {error}");
            }
        });
        self.tasks.spawn(crate::health::run(self.core.clone(), config.report_every));
        self.tasks.spawn(renew_own(self.core.clone(), self.registrar.clone(), credentials.clone()));
        Ok(())
    }

    /// Where it listens.
    pub const fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its id.
    pub fn id(&self) -> VaultId {
        self.core.about.vault
    }

    /// Makes credentials for an operator in `dir` (key 0600), and lets them in. `role` as in the table of
    /// operator roles, such as `owner`. Making them again replaces the role.
    pub async fn make_operator(&self, name: &str, role: &str, dir: &Path) -> Result<Credentials, Fault> {
        let (core, registrar) = (self.core.clone(), self.registrar.clone());
        let (name, role, dir) = (name.to_owned(), role.to_owned(), dir.to_owned());
        self.granting(async move {
            grants::make_operator(&core.store, &registrar.authority, &core.world, &name, &role, &dir).await
        })
        .await
    }

    /// Takes an operator's access away, at once: their connections end and no new one is let in.
    pub async fn revoke_operator(&self, name: &str) -> Result<(), Fault> {
        let (core, name) = (self.core.clone(), name.to_owned());
        self.granting(async move { grants::revoke_operator(&core.store, &core.world, &name, "vault").await })
            .await
    }

    /// Takes a server's access away, at once: its session ends and no new one is let in.
    pub async fn revoke_server(&self, id: ServerId) -> Result<(), Fault> {
        let core = self.core.clone();
        self.granting(async move { grants::revoke_server(&core.store, &core.world, id).await }).await
    }

    /// Changes grants where nobody can drop it half-way, and heeds them.
    async fn granting<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Fault>> + Send + 'static,
    ) -> Result<T, Fault> {
        let core = self.core.clone();
        let work = async move {
            let done = work.await?;
            core.heed_grants().await?;
            Ok(done)
        };
        self.core.whole(work).await.ok_or_else(|| start_fault("the grant could not be stored".into()))?
    }

    /// Makes a one-use enrolment token, as the operator API does.
    pub async fn create_token(&self, request: pb::CreateTokenRequest) -> Result<pb::CreateTokenReply, Fault> {
        let (core, registrar) = (self.core.clone(), self.registrar.clone());
        let work = async move { registrar.make_token(&core, &request, "vault").await };
        self.core.whole(work).await.ok_or_else(|| start_fault("the token could not be made".into()))?
    }

    /// Adds a site, where none has its name yet.
    pub async fn add_site(&self, site: SiteSpec) -> Result<(), Fault> {
        let core = self.core.clone();
        let work = async move {
            if core.estate().sites.values().any(|row| row.name == site.name) {
                return Ok(());
            }
            let mut tx = core.store.begin().await?;
            let id = core.world.id(SiteId::make);
            tx.add_site(SiteRow { id, name: site.name, fabric: site.fabric, recovery: site.recovery })
                .await?;
            core.commit(tx).await
        };
        self.core.whole(work).await.unwrap_or(Ok(())).map_err(|error| error.fault())
    }

    /// The newest lines of the audit log, oldest first.
    pub async fn audit(&self, most: u32) -> Result<Vec<AuditLine>, Fault> {
        self.core.store.audit_lines(most).await.map_err(|error| error.fault())
    }

    /// Stops: no new work, a moment for what is under way, then the store is closed. Jobs go on at the next
    /// start.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.core.tasks.close();
        let ended = async {
            while self.tasks.join_next().await.is_some() {}
            self.core.tasks.wait().await;
        };
        if tokio::time::timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!("some connections did not end in time");
        }
        self.tasks.shutdown().await;
        self.core.store.close().await;
    }
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_max_header_list_size(16 << 10)
        .max_concurrent_streams(1024)
}

/// What earlier starts left.
struct Known {
    vault: VaultId,
    site: SiteId,
    port: Option<String>,
    enrolment_port: Option<String>,
}

/// Reads who this vault is; at the first start makes it so.
async fn first_start(store: &Store, world: &World, config: &VaultConfig) -> Result<Known, Fault> {
    let mut tx = store.begin().await?;
    let vault = match tx.meta("vault").await? {
        Some(text) => crate::store::parsed("vault id", &text)?,
        None => {
            let id = world.id(VaultId::make);
            tx.set_meta("vault", &id.to_string()).await?;
            let defaults = [SiteSpec { name: "primary".into(), fabric: "lab".into(), recovery: false }];
            let sites = if config.sites.is_empty() { &defaults[..] } else { &config.sites };
            for site in sites {
                let id = world.id(SiteId::make);
                tx.add_site(SiteRow {
                    id,
                    name: site.name.clone(),
                    fabric: site.fabric.clone(),
                    recovery: site.recovery,
                })
                .await?;
            }
            let defaults = [("default".to_owned(), Policy::default())];
            let policies = if config.policies.is_empty() { &defaults[..] } else { &config.policies };
            for (name, policy) in policies {
                let id = world.id(PolicyId::make);
                let row = PolicyRow { id, name: name.clone(), policy: policy.clone(), version: 1 };
                tx.save_policy(row).await?;
            }
            tx.audit(world.now(), "vault", "first-start", &config.name, "done", &id.to_string()).await?;
            id
        }
    };
    let port = tx.meta("port").await?;
    let enrolment_port = tx.meta("enrolment_port").await?;
    tx.commit().await?;
    let sites = store.sites().await?;
    let site =
        sites.first().map(|site| site.id).ok_or_else(|| start_fault("the store holds no site".into()))?;
    Ok(Known { vault, site, port, enrolment_port })
}

/// Binds; with port 0 the port of the last start, where it is still free.
async fn bind(address: SocketAddr, last: Option<&str>) -> Result<(TcpListener, SocketAddr), Fault> {
    let again = last.and_then(|port| port.parse().ok()).filter(|_| address.port() == 0);
    if let Some(port) = again {
        let wanted = SocketAddr::new(address.ip(), port);
        if let Ok(listener) = TcpListener::bind(wanted).await {
            return Ok((listener, wanted));
        }
        tracing::warn!(
            port,
            "the port of the last start is taken: servers that know it will not find this vault"
        );
    }
    let taken = |error: std::io::Error| start_fault(format!("cannot listen on {address}: {error}"));
    let listener = TcpListener::bind(address).await.map_err(taken)?;
    let bound = listener.local_addr().map_err(taken)?;
    Ok((listener, bound))
}

async fn remember_ports(store: &Store, main: SocketAddr, enrolment: SocketAddr) -> Result<(), Fault> {
    let mut tx = store.begin().await?;
    tx.set_meta("port", &main.port().to_string()).await?;
    tx.set_meta("enrolment_port", &enrolment.port().to_string()).await?;
    tx.commit().await?;
    Ok(())
}

/// The vault's own certificate: kept, and made anew when half of its life is over.
fn own_credentials(dir: &Path, authority: &Authority, world: &World) -> Result<Credentials, Fault> {
    let folder: PathBuf = dir.join("credentials");
    let now = world.now();
    if Credentials::exist(&folder) {
        let credentials = Credentials::open(&folder).map_err(pki)?;
        if half_left(&credentials, now) {
            return Ok(credentials);
        }
    }
    let (certificate, key) = authority.make(&own_identity(authority.vault()), now).map_err(pki)?;
    Credentials::store(&folder, authority.certificate_pem(), &certificate, &key).map_err(pki)
}

fn own_identity(vault: VaultId) -> Identity {
    Identity { vault, role: Role::Vault, id: vault.to_string() }
}

fn half_left(credentials: &Credentials, now: Timestamp) -> bool {
    let left = credentials.expires_at() - now.micros() / 1_000_000;
    left > i64::try_from(ca::lifetime(Role::Vault).as_secs() / 2).unwrap_or(i64::MAX)
}

async fn renew_own(core: Arc<Core>, registrar: Arc<Registrar>, credentials: Credentials) {
    let mut hourly = tokio::time::interval(Duration::from_secs(3600));
    loop {
        tokio::select! {
            () = core.stop.cancelled() => return,
            _ = hourly.tick() => {}
        }
        if half_left(&credentials, core.world.now()) {
            continue;
        }
        let made = registrar.authority.make(&own_identity(core.about.vault), core.world.now());
        match made.and_then(|(certificate, key)| credentials.renew(&certificate, &key)) {
            Ok(()) => tracing::info!("the vault's certificate was renewed"),
            Err(error) => tracing::error!("the vault's certificate could not be renewed: {error}"),
        }
    }
}

/// The vault stands among the servers.
async fn own_row(
    core: &Arc<Core>,
    credentials: &Credentials,
    addresses: &Addresses,
    site: SiteId,
) -> Result<(), Fault> {
    let id = ServerId::from_bytes(*core.about.vault.as_bytes());
    let now = core.world.now();
    let enrolled = core.estate().servers.get(&id).map_or(now, |entry| entry.row.enrolled);
    let row = ServerRow {
        id,
        role: "vault".into(),
        name: core.about.name.clone(),
        site,
        version: env!("CARGO_PKG_VERSION").into(),
        address: addresses.main.clone(),
        enrolled,
        last_seen: Some(now),
        certificate_expires: Timestamp::from_micros(credentials.expires_at().saturating_mul(1_000_000)),
        revoked: false,
        denied_until: None,
    };
    let mut tx = core.store.begin().await?;
    tx.save_server(row).await?;
    core.commit(tx).await?;
    if let Some(entry) = core.estate().servers.get_mut(&id) {
        entry.live.connected = true;
    }
    core.publish(&[], &[id]);
    Ok(())
}

fn run_id(world: &World) -> String {
    let mut bytes = [0; 8];
    world.with_entropy(|entropy| entropy.fill(&mut bytes));
    hex(&bytes)
}

/// What is wrong with keys and certificates keeps a vault from starting.
pub(crate) fn pki(error: PkiError) -> Fault {
    start_fault(error.to_string())
}

fn start_fault(reason: String) -> Fault {
    Fault::new(FaultClass::Failed, "vault.start", reason)
        .affects("this vault: it does not start")
        .spares("replication, which goes on without it")
        .remedy("mend what is named and start it again")
}
