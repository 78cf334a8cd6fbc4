//! `continuumd.toml`: which roles run here, and with what.
//!
//! All problems are told at once, each with its field and what would be right; nothing is touched before
//! everything is valid.

use crate::role::{Role, configuration, vault_config};
use continuum_model::fault::Fault;
use continuum_model::policy::Policy;
use continuum_vault::VaultConfig;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

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
}

impl Vault {
    /// As the vault takes it, but for its policy.
    fn config(&self) -> VaultConfig {
        vault_config(
            self.dir.clone(),
            self.name.clone(),
            ENVIRONMENT.into(),
            (self.listen, self.listen_enrolment),
            self.advertise.clone().zip(self.advertise_enrolment.clone()),
            self.sites.iter().map(Site::parts).collect(),
            self.database.clone(),
        )
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
}

fn default_name() -> String {
    "vault".into()
}

/// What a vault that is configured by this file stands in.
const ENVIRONMENT: &str = "production";
/// Longest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Reads and checks a file. What it returns can be started.
pub fn read(path: &Path) -> Result<Vec<(&'static str, Role)>, Fault> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| configuration(format!("{shown}: {error}")))?;
    if metadata.len() > BYTES_MAX {
        return Err(configuration(format!("{shown}: larger than 1 MiB")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| configuration(format!("{shown}: {error}")))?;
    let config: Config = toml::from_str(&text).map_err(|error| configuration(format!("{shown}: {error}")))?;
    let problems = problems(&config);
    if !problems.is_empty() {
        return Err(configuration(format!("{shown}:\n  - {}", problems.join("\n  - "))));
    }
    Ok(roles(config))
}

fn problems(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let mut paths: Vec<(&str, &Path)> = Vec::new();
    let mut identities: Vec<(&str, &Path)> = Vec::new();
    if let Some(vault) = &config.vault {
        problems.extend(vault.policy.problems().iter().map(|problem| format!("vault.policy.{problem}")));
        problems.extend(vault.config().problems().iter().map(|problem| format!("vault.{problem}")));
        if vault.advertise.is_some() != vault.advertise_enrolment.is_some() {
            problems.push("vault.advertise and vault.advertise_enrolment: name both or neither".into());
        }
    }
    if let Some(server) = &config.process_server {
        paths.extend([("process_server.dir", &*server.dir), ("process_server.identity", &*server.identity)]);
        identities.push(("process_server.identity", &server.identity));
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
        if target.run_dir.as_os_str().len() > 80 {
            problems.push(
                "master_target.run_dir: longer than 80 bytes, too long for sockets; choose a shorter one"
                    .into(),
            );
        }
    }
    if config.vault.is_none() && config.process_server.is_none() && config.master_target.is_none() {
        problems.push("it names no role; add [vault], [process_server] or [master_target]".into());
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

fn roles(config: Config) -> Vec<(&'static str, Role)> {
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
                machine: None,
            },
        ));
    }
    roles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("continuumd.toml");
        std::fs::write(&path, text).unwrap();
        read(&path).unwrap_err().message
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
        assert!(found.iter().all(|problem| problem.contains(".identity:")), "{found:?}");
    }
}
