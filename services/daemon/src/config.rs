//! `continuumd.toml`: which roles run here, and with what.
//!
//! All problems are told at once, each with its field and what would be right; nothing is touched before
//! everything is valid.

use crate::role::{Follow, Hooks, Role, configuration, vault_config};
use continuum_master_target::Schedule;
use continuum_model::fault::Fault;
use continuum_model::id::DiskId;
use continuum_model::policy::{BandwidthLimit, Policy, schedule_problems};
use continuum_model::untrusted::shown;
use continuum_vault::VaultConfig;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file as a whole.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The control plane.
    pub vault: Option<Vault>,
    /// The replication gateway.
    pub process_server: Option<Server>,
    /// The keeper of replicas.
    pub master_target: Option<Target>,
    /// Machines whose disks are served, and seen, here.
    #[serde(default)]
    pub agent: Vec<Agent>,
}

/// `[vault]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    dir: PathBuf,
    #[serde(default = "default_name")]
    name: String,
    listen: SocketAddr,
    listen_enrolment: SocketAddr,
    advertise: Option<String>,
    advertise_enrolment: Option<String>,
    #[serde(default)]
    sites: Vec<Site>,
    #[serde(default)]
    policy: Policy,
    database: Option<String>,
    /// How long a process server is away before machines that cannot reach it are moved to another one of its site.
    process_server_lost_seconds: Option<u64>,
    /// Orders that a second person must agree to.
    #[serde(default)]
    four_eyes: Vec<String>,
}

impl Vault {
    /// As the vault takes it, but for its policy.
    fn config(&self) -> VaultConfig {
        let config = vault_config(
            self.dir.clone(),
            self.name.clone(),
            ENVIRONMENT.into(),
            (self.listen, self.listen_enrolment),
            self.advertise.clone().zip(self.advertise_enrolment.clone()),
            self.sites.iter().map(Site::parts).collect(),
            self.database.clone(),
        );
        VaultConfig { four_eyes: self.four_eyes.clone(), ..config }
    }
}

impl Site {
    fn parts(&self) -> (String, String, bool) {
        (self.name.clone(), self.fabric.clone(), self.recovery)
    }
}

/// `[[vault.sites]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    name: String,
    fabric: String,
    #[serde(default)]
    recovery: bool,
}

/// `[process_server]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    name: String,
    site: String,
    dir: PathBuf,
    identity: PathBuf,
    listen: SocketAddr,
    advertise: Option<String>,
    vault: String,
    /// How fast change data of all machines together may leave, by its own hours.
    #[serde(default)]
    bandwidth: Vec<BandwidthLimit>,
}

/// `[master_target]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    name: String,
    site: String,
    dir: PathBuf,
    run_dir: PathBuf,
    identity: PathBuf,
    listen: SocketAddr,
    advertise: Option<String>,
    vault: String,
    /// Where replicas are archived: `s3://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
    archive: Option<String>,
    /// Seconds between two archives.
    #[serde(default = "default_archive_seconds")]
    archive_seconds: u64,
}

/// `[[agent]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    name: String,
    site: String,
    #[serde(default = "default_fabric")]
    fabric: String,
    dir: PathBuf,
    /// Where guests find the disks; not for disks that are only followed.
    socket: Option<PathBuf>,
    identity: PathBuf,
    vault: String,
    #[serde(default)]
    disks: Vec<Disk>,
    /// What is done for application-consistent points.
    hooks: Option<Hooks>,
    /// Where members of its consistency group are let in, should this agent lead one.
    #[serde(default = "default_group_listen")]
    group_listen: SocketAddr,
    /// Where they reach it; otherwise the address from which this machine reaches its vault.
    group_advertise: Option<String>,
    /// Where the disks are somebody else's, and their changes are followed: `[agent.qemu]`.
    qemu: Option<Qemu>,
}

/// `[[agent.disks]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    name: String,
    /// Of a disk that is served.
    path: Option<PathBuf>,
    create_bytes: Option<u64>,
    /// Of a disk that is followed: what QEMU calls it.
    node: Option<String>,
}

/// `[agent.qemu]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Qemu {
    monitor: PathBuf,
    guest_agent: Option<PathBuf>,
    scratch: Option<PathBuf>,
    #[serde(default = "default_stop_seconds")]
    stop_seconds: u64,
}

impl Agent {
    fn follow(&self) -> Option<Follow> {
        let qemu = self.qemu.as_ref()?;
        let node = |disk: &Disk| disk.node.clone().unwrap_or_else(|| disk.name.clone());
        Some(Follow::Qemu {
            monitor: qemu.monitor.clone(),
            guest_agent: qemu.guest_agent.clone(),
            nodes: self.disks.iter().map(node).collect(),
            scratch: qemu.scratch.clone().unwrap_or_else(|| self.dir.join("scratch")),
            stop_seconds: qemu.stop_seconds,
        })
    }

    /// What is wrong with how it sees its machine.
    fn front_end_problems(&self, problems: &mut Vec<String>) {
        let name = shown(&self.name);
        let relative = |field: &str, path: &Path| {
            (!path.is_absolute()).then(|| {
                format!("agent.{field}: {} is a relative path; write it from the root", path.display())
            })
        };
        let Some(qemu) = &self.qemu else {
            match &self.socket {
                None => problems.push(format!(
                    "agent {name}: it has no `socket` at which its disks are served, and no [agent.qemu] by which they are followed"
                )),
                Some(socket) => {
                    problems.extend(relative("socket", socket));
                    if socket.as_os_str().len() > 100 {
                        problems.push("agent.socket: longer than 100 bytes, too long for a socket".into());
                    }
                }
            }
            for disk in &self.disks {
                match &disk.path {
                    None => {
                        problems.push(format!("agent {name}: its disk {} has no path", shown(&disk.name)))
                    }
                    Some(path) => {
                        problems.extend(relative("disks.path", path));
                        if disk.create_bytes.is_none() && path.is_absolute() && !path.exists() {
                            let path = path.display();
                            problems.push(format!(
                                "agent.disks.path: there is no {path}; `create_bytes` makes one"
                            ));
                        }
                    }
                }
                if disk.node.is_some() {
                    problems
                        .push(format!("agent {name}: `node` is for disks that are followed by [agent.qemu]"));
                }
            }
            return;
        };
        if self.socket.is_some() {
            problems.push(format!(
                "agent {name}: it has both `socket` and [agent.qemu]; its disks are served or followed"
            ));
        }
        let paths = [
            ("qemu.monitor", Some(&qemu.monitor)),
            ("qemu.guest_agent", qemu.guest_agent.as_ref()),
            ("qemu.scratch", qemu.scratch.as_ref()),
        ];
        for (field, path) in paths.into_iter().filter_map(|(field, path)| Some((field, path?))) {
            problems.extend(relative(field, path));
            if field != "qemu.scratch" && path.as_os_str().len() > 100 {
                problems.push(format!("agent.{field}: longer than 100 bytes, too long for a socket"));
            }
        }
        let scratch = qemu.scratch.clone().unwrap_or_else(|| self.dir.join("scratch"));
        if scratch.as_os_str().len() > 85 {
            problems.push("agent.qemu.scratch: longer than 85 bytes; a socket is made in it".into());
        }
        if !(1..=540).contains(&qemu.stop_seconds) {
            problems.push(format!("agent.qemu.stop_seconds: {} is not within 1 and 540", qemu.stop_seconds));
        }
        if self.disks.iter().any(|disk| disk.path.is_some() || disk.create_bytes.is_some()) {
            problems.push(format!(
                "agent {name}: disks that are followed have a `node`, and no `path` or `create_bytes`"
            ));
        }
    }
}

impl Agent {
    /// The id of a disk is made of its machine's id and its name: it outlives the agent's folder.
    fn disk_id(&self, identity: &str, disk: &Disk) -> DiskId {
        let sum = continuum_wire::ca::fingerprint(format!("{identity}/{}", disk.name).as_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&sum[..16]);
        DiskId::from_bytes(id)
    }
}

const fn default_stop_seconds() -> u64 {
    120
}

const fn default_archive_seconds() -> u64 {
    3600
}

/// The port of consistency groups. A second agent on one machine finds it taken, and leads no group.
fn default_group_listen() -> SocketAddr {
    ([0, 0, 0, 0], 20004).into()
}

fn default_fabric() -> String {
    "physical".into()
}
fn default_name() -> String {
    "vault".into()
}

/// What a vault that is configured by this file stands in.
const ENVIRONMENT: &str = "production";
/// Longest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Names of roles, as `--role` takes them.
const ROLES: [&str; 4] = ["vault", "process", "target", "agent"];

impl Config {
    /// Leaves out all other roles: what is wrong with them is of no matter then.
    fn keep(&mut self, only: &[String]) -> Result<(), Fault> {
        if only.is_empty() {
            return Ok(());
        }
        let there = [
            self.vault.is_some(),
            self.process_server.is_some(),
            self.master_target.is_some(),
            !self.agent.is_empty(),
        ];
        if let Some(unknown) = only.iter().find(|name| !ROLES.contains(&name.as_str())) {
            let (unknown, known) = (shown(unknown), ROLES.join(", "));
            return Err(configuration(format!("there is no role {unknown}; known are {known}")));
        }
        if !only.iter().any(|name| ROLES.iter().zip(there).any(|(role, there)| role == name && there)) {
            let only = only.join(", ");
            return Err(configuration(format!("the configuration has none of the roles {only}")));
        }
        let kept = |role: &str| only.iter().any(|name| name == role);
        self.vault = self.vault.take().filter(|_| kept("vault"));
        self.process_server = self.process_server.take().filter(|_| kept("process"));
        self.master_target = self.master_target.take().filter(|_| kept("target"));
        self.agent.retain(|_| kept("agent"));
        Ok(())
    }
}

/// Reads a file, leaves out all but `only` these roles (none named: none left out; what is not in it is not
/// missed while another of them is), and checks the rest. What it returns can be started.
pub fn read(path: &Path, only: &[String]) -> Result<Vec<(&'static str, Role)>, Fault> {
    let file = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| configuration(format!("{file}: {error}")))?;
    if metadata.len() > BYTES_MAX {
        return Err(configuration(format!("{file}: larger than 1 MiB")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| configuration(format!("{file}: {error}")))?;
    let mut config: Config =
        toml::from_str(&text).map_err(|error| configuration(format!("{file}: {error}")))?;
    config.keep(only)?;
    let problems = problems(&config);
    if !problems.is_empty() {
        return Err(configuration(format!("{file}:\n  - {}", problems.join("\n  - "))));
    }
    roles(config)
}

fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let mut paths: Vec<(&str, &Path)> = Vec::new();
    let mut identities: Vec<(&str, &Path)> = Vec::new();
    if let Some(vault) = &config.vault {
        problems.extend(vault.policy.problems().iter().map(|problem| format!("vault.policy.{problem}")));
        problems.extend(vault.config().problems().iter().map(|problem| format!("vault.{problem}")));
        if vault.process_server_lost_seconds.is_some_and(|seconds| seconds < 5) {
            problems.push(
                "vault.process_server_lost_seconds: less than 5 s would move machines at every restart; choose more"
                    .into(),
            );
        }
        if vault.advertise.is_some() != vault.advertise_enrolment.is_some() {
            problems.push("vault.advertise and vault.advertise_enrolment: name both or neither".into());
        }
    }
    if let Some(server) = &config.process_server {
        paths.extend([("process_server.dir", &*server.dir), ("process_server.identity", &*server.identity)]);
        identities.push(("process_server.identity", &server.identity));
        let wrong = schedule_problems(&server.bandwidth);
        problems.extend(wrong.iter().map(|problem| format!("process_server.{problem}")));
    }
    if let Some(target) = &config.master_target {
        paths.extend([
            ("master_target.dir", &*target.dir),
            ("master_target.run_dir", &*target.run_dir),
            ("master_target.identity", &*target.identity),
        ]);
        identities.push(("master_target.identity", &target.identity));
        if let Some(server) = &config.process_server
            && server.dir == target.dir
        {
            problems.push("master_target.dir: the same as process_server.dir; a full spool would stop the store: give each its own".into());
        }
        let schedule = target
            .archive
            .clone()
            .map(|address| Schedule { address, every: Duration::from_secs(target.archive_seconds) });
        if let Some(problem) = schedule.and_then(|schedule| schedule.problem()) {
            problems.push(format!("master_target.{problem}"));
        }
        if target.run_dir.as_os_str().len() > 80 {
            problems.push(
                "master_target.run_dir: longer than 80 bytes, too long for sockets; choose a shorter one"
                    .into(),
            );
        }
    }
    for (at, agent) in config.agent.iter().enumerate() {
        let fields: [(&str, &Path); 2] = [("dir", &agent.dir), ("identity", &agent.identity)];
        for (field, path) in fields {
            if !path.is_absolute() {
                let path = path.display();
                problems.push(format!("agent.{field}: {path} is a relative path; write it from the root"));
            }
        }
        let hooks = agent.hooks.iter().flat_map(Hooks::problems);
        problems.extend(hooks.map(|problem| format!("agent.hooks: {problem}")));
        if agent.hooks.is_some() && agent.qemu.is_some() {
            problems.push(
                "agent.hooks: they are for disks that are served here; QEMU's guest agent freezes the others"
                    .into(),
            );
        }
        agent.front_end_problems(&mut problems);
        if agent.disks.is_empty() {
            problems.push(format!("agent {}: it has no disk; add [[agent.disks]]", shown(&agent.name)));
        }
        let mut names: Vec<&str> = agent.disks.iter().map(|disk| disk.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < agent.disks.len() {
            problems.push(format!("agent {}: two of its disks have one name", shown(&agent.name)));
        }
        let others = config.agent.iter().skip(at + 1);
        if others.into_iter().any(|other| {
            let monitor = |agent: &Agent| agent.qemu.as_ref().map(|qemu| qemu.monitor.clone());
            other.dir == agent.dir
                || other.identity == agent.identity
                || (other.socket.is_some() && other.socket == agent.socket)
                || (monitor(other).is_some() && monitor(other) == monitor(agent))
        }) {
            let name = shown(&agent.name);
            problems
                .push(format!("agent {name}: another agent has its dir, identity, socket or monitor, too"));
        }
        identities.push(("agent.identity", &agent.identity));
    }
    let servers = config.process_server.is_some() || config.master_target.is_some();
    if config.vault.is_none() && !servers && config.agent.is_empty() {
        problems.push("it names no role; add [vault], [process_server], [master_target] or [[agent]]".into());
    }
    for (field, path) in paths {
        if !path.is_absolute() {
            problems.push(format!("{field}: {} is a relative path; write it from the root", path.display()));
        }
    }
    for (field, dir) in identities {
        if !dir.is_absolute() {
            continue;
        }
        if let Err(error) = continuum_wire::tls::Credentials::open(dir) {
            problems.push(format!("{field}: {error}; enrol first with `continuumd enroll`"));
        }
    }
    problems
}

fn roles(config: Config) -> Result<Vec<(&'static str, Role)>, Fault> {
    let mut roles = Vec::new();
    if let Some(vault) = config.vault {
        roles.push((
            "vault",
            Role::Vault {
                publish: Some(vault.dir.join("address.json")),
                dir: vault.dir,
                name: vault.name,
                environment: ENVIRONMENT.into(),
                listen: vault.listen,
                listen_enrolment: vault.listen_enrolment,
                advertise: vault.advertise.zip(vault.advertise_enrolment),
                sites: vault.sites.iter().map(Site::parts).collect(),
                policy: vault.policy,
                database: vault.database,
                process_server_lost_seconds: vault.process_server_lost_seconds,
                four_eyes: vault.four_eyes,
            },
        ));
    }
    if let Some(server) = config.process_server {
        roles.push((
            "process",
            Role::ProcessServer {
                name: server.name,
                site: server.site,
                dir: server.dir,
                identity: server.identity,
                listen: server.listen,
                advertise: server.advertise,
                vault_address: server.vault,
                bandwidth: server.bandwidth,
            },
        ));
    }
    if let Some(target) = config.master_target {
        roles.push((
            "target",
            Role::MasterTarget {
                name: target.name,
                site: target.site,
                dir: target.dir,
                run_dir: target.run_dir,
                identity: target.identity,
                listen: target.listen,
                advertise: target.advertise,
                vault_address: target.vault,
                archive: target.archive.map(|address| (address, target.archive_seconds)),
                machine: None,
            },
        ));
    }
    for agent in config.agent {
        let credentials = continuum_wire::tls::Credentials::open(&agent.identity)
            .map_err(|error| configuration(error.to_string()))?;
        let machine = credentials.identity().id;
        let disk = |disk: &Disk| {
            let path = disk.path.clone().unwrap_or_default();
            (agent.disk_id(&machine, disk), disk.name.clone(), path, disk.create_bytes)
        };
        let follow = agent.follow();
        roles.push((
            "agent",
            Role::Agent {
                disks: agent.disks.iter().map(disk).collect(),
                name: agent.name,
                site: agent.site,
                fabric: agent.fabric,
                guest: "none".into(),
                dir: agent.dir,
                follow,
                socket: agent.socket.unwrap_or_default(),
                identity: agent.identity,
                vault_address: agent.vault,
                hooks: agent.hooks,
                group_listen: Some(agent.group_listen),
                group_advertise: agent.group_advertise,
            },
        ));
    }
    Ok(roles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("continuumd.toml");
        std::fs::write(&path, text).unwrap();
        read(&path, &[]).unwrap_err().message
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_field() {
        let text = refused(
            "[vault]\ndir = \"relative\"\nlisten = \"0.0.0.0:443\"\nlisten_enrolment = \"0.0.0.0:443\"\n\
             [vault.policy]\nretention_seconds = 5\n\
             [master_target]\nname=\"t\"\nsite=\"b\"\ndir=\"/d\"\nrun_dir=\"/run/x\"\nidentity=\"/nowhere\"\nlisten=\"0.0.0.0:9443\"\nvault=\"v:443\"\n",
        );
        for field in [
            "vault.dir",
            "vault.listen_enrolment",
            "vault.policy.retention_seconds",
            "master_target.identity",
        ] {
            assert!(text.contains(field), "{field} is missing from: {text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_machine_that_is_followed_is_told() {
        let text = refused(
            "[[agent]]\nname=\"w\"\nsite=\"a\"\ndir=\"/d\"\nsocket=\"/s\"\nidentity=\"/nowhere\"\nvault=\"v:443\"\n\
             [agent.qemu]\nmonitor=\"m.qmp\"\nstop_seconds=0\n\
             [[agent.disks]]\nname=\"disk0\"\npath=\"/x\"\n\
             [[agent]]\nname=\"x\"\nsite=\"a\"\ndir=\"/e\"\nidentity=\"/nowhere2\"\nvault=\"v:443\"\n\
             [[agent.disks]]\nname=\"disk0\"\nnode=\"root\"\n",
        );
        for problem in [
            "its disks are served or followed",
            "agent.qemu.monitor: m.qmp is a relative path",
            "stop_seconds: 0",
            "have a `node`, and no `path`",
            "agent x: it has no `socket`",
            "its disk disk0 has no path",
            "`node` is for disks that are followed",
        ] {
            assert!(text.contains(problem), "{problem} is missing from: {text}");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_types_name_line_and_column() {
        assert!(refused("[vault]\ndirr = \"/x\"\n").contains("line 2"));
        assert!(refused("[vault]\ndir = 3\n").contains("line 2"));
        assert!(refused("").contains("names no role"));
    }

    #[test]
    fn the_shipped_example_is_valid_but_for_what_is_not_there_yet() {
        let text = include_str!("../packaging/continuumd.toml");
        let config: Config = toml::from_str(text).unwrap();
        let found = problems(&config);
        let expected =
            |problem: &String| problem.contains(".identity:") || problem.contains("there is no /var");
        assert!(found.iter().all(expected), "{found:?}");
    }
}
