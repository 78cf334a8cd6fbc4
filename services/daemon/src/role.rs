//! One service as a process of its own: `continuum role NAME --config FILE`.
//!
//! The file is JSON, written by the lab's supervisor (or made from `continuumd.toml`). A role publishes where
//! it listens in the file it was told to, replaced atomically. It ends in good order on SIGTERM and SIGINT.

use continuum_capture::freeze::{self, Watchdog};
use continuum_fabric::kvm::{KvmMachine, KvmTracker};
use continuum_fabric::lab::guest;
pub use continuum_fabric::lab::guest::GuestConfig;
use continuum_fabric::lab::qemu;
use continuum_master_target::{MasterTargetConfig, Schedule};
use continuum_mobility_agent::hooks::keeper;
use continuum_mobility_agent::{AgentConfig, AgentDisk, FrontEnd};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::DiskId;
use continuum_model::policy::{BandwidthLimit, Policy};
use continuum_model::untrusted::shown;
use continuum_process_server::ProcessServerConfig;
use continuum_vault::{SiteSpec, Vault, VaultConfig};
use continuum_wire::tls::Credentials;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a role may take to end in good order.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// What a role needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Role {
    /// The control plane.
    Vault {
        /// Everything it keeps.
        dir: PathBuf,
        /// What it is called.
        name: String,
        /// Such as `lab`.
        environment: String,
        /// For operators and servers.
        listen: SocketAddr,
        /// For newcomers.
        listen_enrolment: SocketAddr,
        /// Where others reach both, when that is not what they bind.
        #[serde(default)]
        advertise: Option<(String, String)>,
        /// Name, fabric, whether replicas are kept there.
        sites: Vec<(String, String, bool)>,
        /// The default policy of the first start.
        policy: Policy,
        /// `postgres://…` instead of the embedded database.
        #[serde(default)]
        database: Option<String>,
        /// Orders that a second person must agree to.
        #[serde(default)]
        four_eyes: Vec<String>,
        /// Where to say where it listens.
        #[serde(default)]
        publish: Option<PathBuf>,
        /// How long a process server is away before its machines are moved to another one.
        #[serde(default)]
        process_server_lost_seconds: Option<u64>,
    },
    /// The replication gateway.
    ProcessServer {
        /// Its name.
        name: String,
        /// Its site.
        site: String,
        /// The spool.
        dir: PathBuf,
        /// Its certificate and key.
        identity: PathBuf,
        /// For agents.
        listen: SocketAddr,
        /// Where agents reach it.
        #[serde(default)]
        advertise: Option<String>,
        /// `host:port`.
        vault_address: String,
        /// How fast change data of all machines together may leave, by its own hours.
        #[serde(default)]
        bandwidth: Vec<BandwidthLimit>,
    },
    /// The keeper of replicas.
    MasterTarget {
        /// Its name.
        name: String,
        /// Its site.
        site: String,
        /// Replicas.
        dir: PathBuf,
        /// Sockets.
        run_dir: PathBuf,
        /// Its certificate and key.
        identity: PathBuf,
        /// For process servers.
        listen: SocketAddr,
        /// Where process servers reach it.
        #[serde(default)]
        advertise: Option<String>,
        /// `host:port`.
        vault_address: String,
        /// Where replicas are archived, and how often in seconds.
        #[serde(default)]
        archive: Option<(String, u64)>,
        /// Kernel and settings of QEMU guests, for a lab that has some.
        #[serde(default)]
        machine: Option<PathBuf>,
    },
    /// Sees the writes of one machine.
    Agent {
        /// The machine's name.
        name: String,
        /// Its site.
        site: String,
        /// The kind of its site.
        fabric: String,
        /// What runs on it.
        guest: String,
        /// Its disks: id, name, path, size to make it with.
        disks: Vec<(DiskId, String, PathBuf, Option<u64>)>,
        /// Where somebody else serves the disks: how their changes are followed.
        #[serde(default)]
        follow: Option<Follow>,
        /// Change maps and staging.
        dir: PathBuf,
        /// Where guests find the disks.
        socket: PathBuf,
        /// Its certificate and key.
        identity: PathBuf,
        /// `host:port`.
        vault_address: String,
        /// What is done for application-consistent points.
        #[serde(default)]
        hooks: Option<Hooks>,
        /// Where members of a consistency group are let in.
        #[serde(default)]
        group_listen: Option<SocketAddr>,
        /// Where they reach it.
        #[serde(default)]
        group_advertise: Option<String>,
    },
}

/// `[agent.hooks]`: what a machine does for application-consistent points.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// A program and its arguments, run before.
    pub pre: Vec<String>,
    /// The same, run after, always.
    pub post: Vec<String>,
    /// For each of the two; 0: 30 s.
    pub timeout_seconds: u64,
    /// Mount points of file systems that are frozen.
    pub freeze: Vec<PathBuf>,
    /// The socket of an application that can hold still.
    pub socket: Option<PathBuf>,
    /// The longest that anything stays frozen; 0: 10 s.
    pub frozen_seconds_max: u64,
    /// Nothing may be written between freeze and barrier.
    pub quiet: bool,
}

/// The longest that a script may take, and a freeze may last.
const HOOK_SECONDS_MAX: u64 = 600;

impl Hooks {
    /// What is wrong with them, by field.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (field, words) in [("pre", &self.pre), ("post", &self.post)] {
            if let Some(program) = words.first()
                && !Path::new(program).is_file()
            {
                problems
                    .push(format!("{field}: there is no program {}; write its whole path", shown(program)));
            }
        }
        for path in self.freeze.iter().chain(&self.socket).filter(|path| !path.is_absolute()) {
            problems.push(format!("{} is a relative path; write it from the root", path.display()));
        }
        for (field, seconds) in
            [("timeout_seconds", self.timeout_seconds), ("frozen_seconds_max", self.frozen_seconds_max)]
        {
            if seconds > HOOK_SECONDS_MAX {
                problems.push(format!(
                    "{field}: {seconds} s is longer than the {HOOK_SECONDS_MAX} s that are allowed"
                ));
            }
        }
        problems
    }

    fn made(self) -> Result<continuum_mobility_agent::Hooks, Fault> {
        let program =
            std::env::current_exe().map_err(|error| configuration(format!("our own program: {error}")))?;
        let seconds = |given, otherwise| Duration::from_secs(if given == 0 { otherwise } else { given });
        Ok(continuum_mobility_agent::Hooks {
            pre: self.pre,
            post: self.post,
            timeout: seconds(self.timeout_seconds, 30),
            freeze: self.freeze,
            socket: self.socket,
            frozen_max: seconds(self.frozen_seconds_max, 10),
            quiet: self.quiet,
            keeper: vec![program.into(), keeper::ARGUMENT.into()],
        })
    }
}

/// Becomes the keeper of a freeze, where this process was started as one.
pub fn freeze_keeper() -> Option<ExitCode> {
    if std::env::args_os().nth(1).is_none_or(|word| word != keeper::ARGUMENT) {
        return None;
    }
    Some(if keeper::main().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the changes of disks are followed that somebody else serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Follow {
    /// By QEMU's monitor.
    Qemu {
        /// The monitor's socket.
        monitor: PathBuf,
        /// The guest agent's socket.
        guest_agent: Option<PathBuf>,
        /// What the disks are called in QEMU, in the order of the agent's disks.
        nodes: Vec<String>,
        /// Where QEMU may make files that live for a cycle.
        scratch: PathBuf,
        /// How long the guest may take to shut down.
        stop_seconds: u64,
    },
}

impl Follow {
    fn front_end(self, dir: &Path) -> FrontEnd {
        let Self::Qemu { monitor, guest_agent, nodes, scratch, stop_seconds } = self;
        FrontEnd::Tracker(Box::new(KvmTracker::new(KvmMachine {
            monitor,
            guest_agent,
            disks: nodes,
            scratch,
            dir: dir.to_owned(),
            stop_within: Duration::from_secs(stop_seconds),
        })))
    }
}

/// Where a vault listens, as it is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// For operators and servers.
    pub address: String,
    /// For newcomers.
    pub enrolment_address: String,
}

/// The configuration of a vault, but for its policies.
pub(crate) fn vault_config(
    dir: PathBuf,
    name: String,
    environment: String,
    (listen, listen_enrolment): (SocketAddr, SocketAddr),
    advertise: Option<(String, String)>,
    sites: Vec<(String, String, bool)>,
    database: Option<String>,
) -> VaultConfig {
    let (advertise, advertise_enrolment) = advertise.unzip();
    let site = |(name, fabric, recovery)| SiteSpec { name, fabric, recovery };
    VaultConfig {
        listen,
        listen_enrolment,
        advertise,
        advertise_enrolment,
        name,
        environment,
        sites: sites.into_iter().map(site).collect(),
        database,
        ..VaultConfig::in_dir(dir)
    }
}

/// A fault about configuration.
pub fn configuration(message: impl Into<String>) -> Fault {
    Fault::new(FaultClass::Configuration, "configuration.invalid", message)
        .affects("this service: it does not start")
        .spares("its data, of which nothing was touched")
        .remedy("mend the file; `continuumd check-config` says the same without starting")
}

/// Reads a role's file.
pub fn read(path: &Path) -> Result<Role, Fault> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| configuration(format!("{}: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(|error| configuration(format!("{}: {error}", path.display())))
}

/// Runs one role until it is told to end. `with_parent`: it is killed when its parent dies.
pub fn main(role: Role, with_parent: bool) -> Result<(), Fault> {
    if with_parent {
        die_with_parent();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| configuration(format!("threads could not be started: {error}")))?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop.clone();
        tokio::spawn(async move {
            signalled().await;
            signals.cancel();
        });
        let running = run(role, stop.clone());
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => ended,
            () = stop.cancelled() => match tokio::time::timeout(STOP_DEADLINE, running).await {
                Ok(ended) => ended,
                // What is durable is durable; the rest is known at the source.
                Err(_) => Ok(()),
            },
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

/// Waits for SIGTERM or SIGINT.
pub async fn signalled() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut term), Ok(mut int)) => {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
        }
        _ => std::future::pending().await,
    }
}

/// Becomes the watchdog that thaws file systems, where that is what this process was started for: `Some` is then how
/// it ended. To be asked before anything else is done.
pub fn thaw_watchdog(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let is_asked = arguments.nth(1).is_some_and(|verb| verb == Watchdog::VERB);
    is_asked.then(|| ExitCode::from(freeze::watch(arguments) as u8))
}

/// The kernel kills us when the one who started us is gone.
pub fn die_with_parent() {
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
    {
        tracing::warn!(%error, "this process will not notice the death of its parent");
    }
}

/// Runs one role until `stop`.
pub async fn run(role: Role, stop: CancellationToken) -> Result<(), Fault> {
    let open =
        |identity: &Path| Credentials::open(identity).map_err(|error| configuration(error.to_string()));
    match role {
        Role::Vault {
            dir,
            name,
            environment,
            listen,
            listen_enrolment,
            advertise,
            sites,
            policy,
            database,
            four_eyes,
            publish,
            process_server_lost_seconds,
        } => {
            let config =
                vault_config(dir, name, environment, (listen, listen_enrolment), advertise, sites, database);
            let mut config = VaultConfig { policies: vec![("default".into(), policy)], four_eyes, ..config };
            if let Some(seconds) = process_server_lost_seconds {
                config.thresholds.relay_lost = Duration::from_secs(seconds);
            }
            let ready = |vault: &Vault| {
                let Some(path) = publish else { return };
                let addresses = vault.addresses();
                let published = Published {
                    address: addresses.main.clone(),
                    enrolment_address: addresses.enrolment.clone(),
                };
                let text = serde_json::to_string(&published).unwrap_or_default();
                if let Err(error) = continuum_wire::ca::write_file(&path, text.as_bytes(), 0o600) {
                    tracing::error!(%error, "the address could not be published");
                }
            };
            continuum_vault::run(config, ready, stop).await
        }
        Role::ProcessServer { name, site, dir, identity, listen, advertise, vault_address, bandwidth } => {
            let config = ProcessServerConfig { name, site, dir, listen, advertise, vault_address, bandwidth };
            continuum_process_server::run(config, open(&identity)?, stop).await
        }
        Role::MasterTarget {
            name,
            site,
            dir,
            run_dir,
            identity,
            listen,
            advertise,
            vault_address,
            archive,
            machine,
        } => {
            let guest_program = std::env::current_exe()
                .map_err(|error| configuration(format!("our own program: {error}")))?;
            let config = MasterTargetConfig {
                name,
                site,
                dir,
                run_dir,
                listen,
                advertise,
                vault_address,
                archive: archive
                    .map(|(address, seconds)| Schedule { address, every: Duration::from_secs(seconds) }),
                guest_program,
                guest_machine: machine,
            };
            continuum_master_target::run(config, open(&identity)?, stop).await
        }
        Role::Agent {
            name,
            site,
            fabric,
            guest,
            disks,
            follow,
            dir,
            socket,
            identity,
            vault_address,
            hooks,
            group_listen,
            group_advertise,
        } => {
            let front_end = follow.map_or(FrontEnd::BlockServer, |follow| follow.front_end(&dir));
            let disk = |(id, name, path, create_bytes)| AgentDisk { id, name, path, create_bytes };
            let disks = disks.into_iter().map(disk).collect();
            let hooks = hooks.unwrap_or_default().made()?;
            let config = AgentConfig {
                name,
                site,
                fabric,
                guest,
                disks,
                dir,
                socket,
                vault_address,
                hooks,
                group_listen,
                group_advertise,
            };
            continuum_mobility_agent::run(config, front_end, open(&identity)?, stop).await
        }
    }
}

/// Runs a lab guest until it is killed; in QEMU where `machine` holds a kernel for it.
pub fn guest(config: &GuestConfig, machine: Option<&Path>, with_parent: bool) -> Result<(), Fault> {
    if with_parent {
        die_with_parent();
    }
    let ended = match machine {
        None => guest::run(config),
        Some(machine) => Err(qemu::become_guest(machine, config)),
    };
    ended.map_err(|error| Fault::new(FaultClass::Failed, "guest.failed", format!("the guest ended: {error}")))
}
