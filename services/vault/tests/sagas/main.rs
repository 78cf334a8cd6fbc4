//! The vault as operators and servers meet it: real store, real TLS, real gRPC over loopback.

#![allow(clippy::result_large_err, reason = "faults are the subject")]

mod access;
mod drills;
mod fake;
mod hostile;
mod life;
mod policies;
mod postgres;
mod relays;
mod watching;

use continuum_model::fault::Fault;
use continuum_model::policy::Policy;
use continuum_proto::v1 as pb;
use continuum_vault::{SiteSpec, Vault, VaultConfig};
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use fake::{Agent, MasterTarget, ProcessServer, Running, World};
use pb::entity::Entity;
use pb::operator_client::OperatorClient;
use pb::order_request::Order;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A name that would drive a terminal.
pub(crate) const HOSTILE: &str = "web\x1b]52;c;ZXZpbA==\x07 01";

/// A vault with its three servers and an owner.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) vault: Option<Vault>,
    pub(crate) stop: CancellationToken,
    pub(crate) world: Arc<World>,
    pub(crate) servers: Vec<Running>,
    pub(crate) operator: OperatorClient<Channel>,
    pub(crate) machine: String,
}

pub(crate) fn config(dir: &std::path::Path) -> VaultConfig {
    let mut config = VaultConfig::in_dir(dir.join("vault"));
    config.environment = "test".into();
    config.sites = vec![
        SiteSpec { name: "east".into(), fabric: "lab".into(), recovery: false },
        SiteSpec { name: "west".into(), fabric: "lab".into(), recovery: true },
    ];
    config.policies = vec![("gold".into(), Policy::default())];
    config.patience = Duration::from_secs(2);
    config.report_every = Duration::from_millis(40);
    config.database = postgres::database(dir);
    config
}

pub(crate) async fn client(credentials: &Credentials, address: &str) -> OperatorClient<Channel> {
    OperatorClient::new(grpc::channel(credentials, address, Role::Vault).await.expect("the vault answers"))
}

/// Waits until a condition holds; says what it waited for when it never does.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn key() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("key-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Lab {
    /// Enrolled and connected; nothing is protected.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with another configuration.
    pub(crate) async fn start_with(change: impl FnOnce(&mut VaultConfig)) -> Self {
        continuum_wire::tls::install_provider();
        let dir = tempfile::tempdir().expect("a folder");
        let stop = CancellationToken::new();
        let mut config = config(dir.path());
        change(&mut config);
        let vault = Vault::start(config, stop.clone()).await.expect("the vault starts");
        let owner = vault.make_operator("ada", "owner", &dir.path().join("ada")).await.expect("an owner");
        let operator = client(&owner, &vault.addresses().main).await;
        let mut lab = Self {
            dir,
            vault: Some(vault),
            stop,
            world: Arc::default(),
            servers: Vec::new(),
            operator,
            machine: HOSTILE.into(),
        };
        lab.enrol().await;
        lab
    }

    pub(crate) fn vault(&self) -> &Vault {
        self.vault.as_ref().expect("the vault runs")
    }

    pub(crate) async fn token(&self, role: &str, site: &str, machine: &str) -> String {
        let request = pb::CreateTokenRequest {
            role: role.into(),
            site: site.into(),
            machine: machine.into(),
            lifetime_seconds: 0,
            operator_role: String::new(),
        };
        self.operator.clone().create_token(request).await.expect("a token").into_inner().token
    }

    async fn enrol(&mut self) {
        let address = self.vault().addresses().main.clone();
        let dir = self.dir.path().to_owned();
        let token = self.token("process-server", "east", "").await;
        let server = ProcessServer(self.world.clone());
        self.servers.push(
            fake::start(server, Some(&token), "process-server", "ps-1", &dir.join("ps"), &address).await,
        );
        let token = self.token("master-target", "west", "").await;
        let server = MasterTarget(self.world.clone());
        self.servers.push(
            fake::start(server, Some(&token), "master-target", "mt-1", &dir.join("mt"), &address).await,
        );
        let token = self.token("agent", "east", "").await;
        let agent = self.agent("boot-1");
        let name = self.machine.clone();
        self.servers
            .push(fake::start(agent, Some(&token), "agent", &name, &dir.join("agent"), &address).await);
        eventually("all servers connected", async || (self.servers_connected().await == 3).then_some(()))
            .await;
    }

    pub(crate) fn agent(&self, boot: &str) -> Agent {
        Agent {
            world: self.world.clone(),
            name: self.machine.clone(),
            boot: boot.into(),
            disk: "01920b5e-7a3c-7cc1-9a37-3e5b0f6d2c11".into(),
        }
    }

    pub(crate) async fn servers_connected(&self) -> usize {
        let all = self.snapshot(&[pb::Kind::Server]).await;
        let connected = |entity: &&Entity| matches!(entity, Entity::Server(server) if server.connected && server.role != "vault");
        all.iter().filter(connected).count()
    }

    /// Stops a server; waits until the vault knows.
    pub(crate) async fn stop_server(&mut self, index: usize) -> PathBuf {
        let server = self.servers.remove(index);
        server.stop.cancel();
        let _ = server.task.await;
        let left = self.servers.len();
        eventually("the vault sees that it left", async || {
            (self.servers_connected().await == left).then_some(())
        })
        .await;
        self.dir.path().to_owned()
    }

    /// Ends the vault and starts it again on the same folder and port.
    pub(crate) async fn restart(&mut self) {
        self.vault.take().expect("the vault runs").stop().await;
        let vault =
            Vault::start(config(self.dir.path()), self.stop.clone()).await.expect("the vault starts again");
        let owner = Credentials::open(&self.dir.path().join("ada")).expect("credentials");
        self.operator = client(&owner, &vault.addresses().main).await;
        self.vault = Some(vault);
    }

    pub(crate) async fn snapshot(&self, kinds: &[pb::Kind]) -> Vec<Entity> {
        let request = pb::SnapshotRequest {
            kinds: kinds.iter().map(|kind| *kind as i32).collect(),
            ..Default::default()
        };
        let reply = self.operator.clone().snapshot(request).await.expect("a snapshot").into_inner();
        reply.entities.into_iter().filter_map(|entity| entity.entity).collect()
    }

    pub(crate) async fn machine(&self) -> pb::Machine {
        let all = self.snapshot(&[pb::Kind::Machine]).await;
        let machine = all.into_iter().find_map(|entity| match entity {
            Entity::Machine(machine) if machine.name == self.machine => Some(machine),
            _ => None,
        });
        machine.expect("the machine is known")
    }

    pub(crate) async fn job(&self, id: &str) -> pb::Job {
        let all = self.snapshot(&[pb::Kind::Job]).await;
        let job = all.into_iter().find_map(|entity| match entity {
            Entity::Job(job) if job.id == id => Some(job),
            _ => None,
        });
        job.expect("the job is known")
    }

    pub(crate) fn request(&self, order: Order) -> pb::OrderRequest {
        pb::OrderRequest {
            key: key(),
            machine: self.machine.clone(),
            confirm: self.machine.clone(),
            order: Some(order),
            ..Default::default()
        }
    }

    /// Gives an order; returns the job as it was begun.
    pub(crate) async fn order(&self, order: Order) -> Result<pb::Job, Fault> {
        let reply = self
            .operator
            .clone()
            .order(self.request(order))
            .await
            .map_err(|status| grpc::fault_of(&status))?;
        Ok(reply.into_inner().job.expect("a job"))
    }

    /// Waits until a job is over.
    pub(crate) async fn ended(&self, id: &str) -> pb::Job {
        eventually("the job ends", async || {
            let job = self.job(id).await;
            matches!(job.state.as_str(), "succeeded" | "warnings" | "failed" | "cancelled").then_some(job)
        })
        .await
    }

    /// Gives an order and waits until it succeeded.
    pub(crate) async fn done(&self, order: Order) -> pb::Job {
        let job = self.order(order).await.expect("the order is taken");
        let job = self.ended(&job.id).await;
        assert_eq!(job.state, "succeeded", "{:?} {:?}", job.fault, job.steps);
        job
    }

    pub(crate) async fn protect(&self) -> pb::Job {
        self.done(Order::Protect(pb::Protect {
            policy: "gold".into(),
            target_site: "west".into(),
            start_at_us: None,
        }))
        .await
    }
}
