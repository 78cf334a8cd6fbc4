//! One role of a lab, in a process of its own: `continuum role ROLE --dir FOLDER`.
//!
//! ```text
//! <dir>/role.json      what to be: written by the lab's supervisor
//! <dir>/token          a one-use enrolment token, 0600; removed once it is used
//! <dir>/credentials/   what enrolment gave
//! ```
//!
//! A process says on standard output, in one JSON line, that it is up and where it listens; then nothing
//! more. It ends with the lab: see [`crate::signals`].

use crate::{logs, signals};
use continuum_fabric::process::replace_file;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::DiskId;
use continuum_model::policy::Policy;
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use continuum_wire::tls::Credentials;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// What a process of a lab is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Orders {
    /// It ends when nobody holds a lock on this file any more.
    pub lives_with: PathBuf,
    /// Short, for sockets.
    pub run_dir: PathBuf,
    /// What it is.
    pub role: RoleOrders,
}

/// What a process of a lab is to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoleOrders {
    /// The control plane.
    Vault {
        /// Its name.
        name: String,
        /// Sites: name, kind, whether replicas are kept there.
        sites: Vec<(String, String, bool)>,
        /// What protections are made with.
        policy: Policy,
        /// Where the owner's credentials and the vault's address go.
        profile: PathBuf,
    },
    /// The gateway.
    ProcessServer(Server),
    /// The keeper of replicas.
    MasterTarget(Server),
    /// One machine's agent.
    Agent {
        /// As a server: its name is the machine's.
        server: Server,
        /// The kind of its site.
        fabric: String,
        /// What runs on it.
        guest: String,
        /// Its disks.
        disks: Vec<DiskOrders>,
        /// Where they are served.
        socket: PathBuf,
    },
}

/// What every server is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// The name of its site.
    pub site: String,
    /// `host:port` of the vault.
    pub vault: String,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOrders {
    /// Its id, made once.
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// The file that holds it.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// What a process says when it is up.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Up {
    /// A vault: where operators and servers reach it.
    pub address: Option<String>,
}

/// Runs `continuum role …` to its end: `words` is what follows `role`.
pub fn main(words: &[OsString]) -> ExitCode {
    let [role, flag, dir] = words else { return usage() };
    if flag != "--dir" {
        return usage();
    }
    let dir = PathBuf::from(dir);
    if role == "guest" {
        return ExitCode::from(continuum_fabric::lab::guest::run(&dir));
    }
    // A session of its own: what the terminal sends to its foreground is the supervisor's to deal with.
    let _ = rustix::process::setsid();
    logs::to_stderr();
    continuum_wire::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("threads could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(&dir));
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            tracing::error!(code = fault.code, "{fault}");
            ExitCode::from(fault.class.exit_code())
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("`continuum role` is how a lab starts its own processes: role ROLE --dir FOLDER");
    ExitCode::from(FaultClass::Usage.exit_code())
}

async fn run(dir: &Path) -> Result<(), Fault> {
    let path = dir.join("role.json");
    let unreadable = |reason: String| {
        Fault::new(FaultClass::Configuration, "role.orders", format!("{}: {reason}", path.display()))
            .affects("this process of the lab")
            .remedy("start the lab again")
    };
    let bytes = std::fs::read(&path).map_err(|error| unreadable(error.to_string()))?;
    let orders: Orders = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
    let stop = signals::stop_token(Some(&orders.lives_with))?;
    let service = be(dir, orders, stop.clone());
    signals::until_stopped(&stop, service).await
}

async fn be(dir: &Path, orders: Orders, stop: CancellationToken) -> Result<(), Fault> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    match orders.role {
        RoleOrders::Vault { name, sites, policy, profile } => {
            let mut config = continuum_vault::VaultConfig::in_dir(dir);
            config.name = name;
            config.environment = "lab".into();
            config.policies = vec![("default".into(), policy)];
            config.sites = sites
                .into_iter()
                .map(|(name, fabric, recovery)| continuum_vault::SiteSpec { name, fabric, recovery })
                .collect();
            let vault = continuum_vault::Vault::start(config, stop.clone()).await?;
            let address = vault.addresses().main.clone();
            write_profile(&vault, &profile, &address).await?;
            up(&Up { address: Some(address) });
            stop.cancelled().await;
            vault.stop().await;
            Ok(())
        }
        RoleOrders::ProcessServer(server) => {
            let credentials = credentials(dir, "process-server", &server.name).await?;
            up(&Up::default());
            let config = continuum_process_server::ProcessServerConfig {
                name: server.name,
                site: server.site,
                dir: dir.join("spool"),
                listen: loopback,
                advertise: None,
                vault_address: server.vault,
            };
            continuum_process_server::run(config, credentials, stop).await
        }
        RoleOrders::MasterTarget(server) => Err(Fault::new(
            FaultClass::NotReady,
            "master-target.absent",
            format!("{} is not part of this build", server.name),
        )),
        RoleOrders::Agent { server, fabric, guest, disks, socket } => {
            drop((fabric, guest, disks, socket));
            Err(absent(&server))
        }
    }
}

fn absent(server: &Server) -> Fault {
    Fault::new(
        FaultClass::NotReady,
        "role.absent",
        format!("what {} needs is not part of this build", server.name),
    )
}

/// The program that this process runs, also after it was replaced by a newer build.
pub fn own_program() -> Result<PathBuf, Fault> {
    std::env::current_exe().map_err(|error| {
        Fault::new(FaultClass::Failed, "process.self", format!("this program cannot find itself: {error}"))
            .remedy("mount /proc")
    })
}

fn up(what: &Up) {
    let mut line = serde_json::to_string(what).unwrap_or_default();
    line.push('\n');
    let mut out = std::io::stdout();
    // Whoever started us may be gone.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Writes the owner's credentials and the vault's address, for the console and the verbs.
async fn write_profile(vault: &continuum_vault::Vault, profile: &Path, address: &str) -> Result<(), Fault> {
    let kept = Credentials::open(profile).ok().filter(|credentials| {
        let life = 24 * 3600;
        credentials.expires_at() > SystemClock::default().wall().micros() / 1_000_000 + life
            && credentials.identity().vault == vault.id()
    });
    if kept.is_none() {
        vault.make_operator("lab", "owner", profile).await?;
    }
    let text = format!("address = \"{address}\"\nkey = \"file\"\n");
    replace_file(&profile.join("profile.toml"), text.as_bytes()).map_err(|error| {
        Fault::new(FaultClass::Failed, "lab.profile", format!("{}: {error}", profile.display()))
            .affects("the console and the verbs: they do not find this lab")
    })
}

/// Whether the credentials in `dir` are good for a while.
pub fn has_credentials(dir: &Path) -> bool {
    let now = SystemClock::default().wall().micros() / 1_000_000;
    Credentials::open(&dir.join("credentials")).is_ok_and(|credentials| credentials.expires_at() > now + 60)
}

/// The credentials in `dir`; where there are none that are good, the token there is used up for new ones.
async fn credentials(dir: &Path, role: &str, name: &str) -> Result<Credentials, Fault> {
    let (place, token) = (dir.join("credentials"), dir.join("token"));
    let credentials = if has_credentials(dir) {
        Credentials::open(&place).map_err(|error| {
            Fault::new(FaultClass::Configuration, "credentials.local", shown(&error.to_string()))
                .affects("this process of the lab")
        })?
    } else {
        let text = std::fs::read_to_string(&token).map_err(|error| {
            Fault::new(FaultClass::Configuration, "token.missing", format!("{}: {error}", token.display()))
                .affects("this process of the lab: it has no identity")
                .remedy("it is started again with a new token")
        })?;
        continuum_wire::enroll::enroll(&text, role, name, &place).await?.0
    };
    let _ = std::fs::remove_file(&token);
    Ok(credentials)
}
