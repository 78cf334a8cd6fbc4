//! What a vault needs to run, and what is wrong with it.

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::policy::Policy;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a vault needs to run.
#[derive(Debug, Clone)]
pub struct VaultConfig {
    /// State, CA and credentials. Made where it does not exist.
    pub dir: PathBuf,
    /// Operators and servers, mutual TLS. Port 0: any free one, kept over restarts where it stays free.
    pub listen: SocketAddr,
    /// Newcomers with a token. Port 0 likewise.
    pub listen_enrolment: SocketAddr,
    /// Where others reach `listen`, when that is not what it binds.
    pub advertise: Option<String>,
    /// Where newcomers reach `listen_enrolment`, when that is not what it binds.
    pub advertise_enrolment: Option<String>,
    /// What people call it.
    pub name: String,
    /// Such as `lab` or `production`; shown everywhere, so that nobody mistakes one for the other.
    pub environment: String,
    /// Sites that exist from the first start. Later ones are added by `Vault::add_site`.
    pub sites: Vec<SiteSpec>,
    /// Policies that exist from the first start; none: one called `default`.
    pub policies: Vec<(String, Policy)>,
    /// `postgres://…` instead of the embedded database in `dir`.
    pub database: Option<String>,
    /// When to warn.
    pub thresholds: Thresholds,
    /// How long a command waits for a server that is not there.
    pub patience: Duration,
    /// How often servers report.
    pub report_every: Duration,
    /// Orders that a second person must agree to; none: whoever may give one gives it alone.
    pub four_eyes: Vec<String>,
}

/// A site that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteSpec {
    /// Its name.
    pub name: String,
    /// The kind of site.
    pub fabric: String,
    /// Replicas are kept here.
    pub recovery: bool,
}

/// When to warn.
#[derive(Debug, Clone)]
pub struct Thresholds {
    /// A server that is away this long is a warning.
    pub away_warning: Duration,
    /// … and this long is critical.
    pub away_critical: Duration,
    /// Free bytes on a server's volume: warning, critical.
    pub free_bytes: (u64, u64),
    /// Share of a spool or staging area in use, in percent: warning, critical.
    pub buffer_percent: (u64, u64),
    /// A spool or staging area that is full within this time: warning, critical.
    pub buffer_full: (Duration, Duration),
    /// A volume that is.
    pub volume_full: (Duration, Duration),
    /// A server whose clock is off by more is a warning.
    pub clock_offset: Duration,
    /// A process server that is away this long is lost: machines that cannot reach it either are moved to another one.
    pub relay_lost: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            away_warning: Duration::from_secs(5),
            away_critical: Duration::from_secs(900),
            free_bytes: (2 << 30, 512 << 20),
            buffer_percent: (70, 90),
            buffer_full: (Duration::from_secs(600), Duration::from_secs(120)),
            volume_full: (Duration::from_secs(24 * 3600), Duration::from_secs(2 * 3600)),
            clock_offset: Duration::from_secs(5),
            relay_lost: Duration::from_secs(30),
        }
    }
}

impl VaultConfig {
    /// A vault in a folder, on loopback, with the defaults.
    pub fn in_dir(dir: impl Into<PathBuf>) -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            dir: dir.into(),
            listen: loopback,
            listen_enrolment: loopback,
            advertise: None,
            advertise_enrolment: None,
            name: "vault".into(),
            environment: String::new(),
            sites: Vec::new(),
            policies: Vec::new(),
            database: None,
            thresholds: Thresholds::default(),
            patience: Duration::from_secs(20),
            report_every: Duration::from_millis(500),
            four_eyes: Vec::new(),
        }
    }

    /// All that is wrong, at once, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.dir.is_absolute() {
            problems.push(format!("dir: {} is relative; write it from the root", self.dir.display()));
        }
        if self.name.is_empty() || self.name.len() > 100 {
            problems.push("name: give the vault a name of 1 to 100 bytes".into());
        }
        if self.listen.port() != 0 && self.listen == self.listen_enrolment {
            problems.push(format!(
                "listen_enrolment: {} is that of listen, too; newcomers need a port of their own",
                self.listen_enrolment
            ));
        }
        for (at, site) in self.sites.iter().enumerate() {
            if site.name.is_empty() || site.name.len() > 253 {
                problems.push(format!("sites: number {} needs a name of 1 to 253 bytes", at + 1));
            }
            if self.sites[..at].iter().any(|other| other.name == site.name) {
                problems.push(format!(
                    "sites: {} stands there twice",
                    continuum_model::untrusted::shown(&site.name)
                ));
            }
        }
        for (at, (name, policy)) in self.policies.iter().enumerate() {
            if name.is_empty() || self.policies[..at].iter().any(|(other, _)| other == name) {
                problems.push(format!("policies: number {} needs a name of its own", at + 1));
            }
            problems.extend(policy.problems().iter().map(|problem| format!("policy {name}: {problem}")));
        }
        let kinds = crate::operator::orders::approval::KINDS;
        for kind in self.four_eyes.iter().filter(|kind| !kinds.contains(&kind.as_str())) {
            let kind = continuum_model::untrusted::shown(kind);
            problems.push(format!(
                "four_eyes: {kind} cannot wait for a second person; there are {}",
                kinds.join(", ")
            ));
        }
        if let Some(database) = &self.database
            && !database.starts_with("postgres://")
            && !database.starts_with("postgresql://")
        {
            problems.push("database: write postgres://…, or leave it out for the embedded one".into());
        }
        if self.advertise.is_some() != self.advertise_enrolment.is_some() {
            problems.push("advertise and advertise_enrolment: name both or neither".into());
        }
        if self.thresholds.away_warning > self.thresholds.away_critical {
            problems.push("thresholds: away_warning is longer than away_critical".into());
        }
        problems
    }

    /// Refuses a wrong configuration before anything is touched.
    pub fn check(&self) -> Result<(), Fault> {
        let problems = self.problems();
        if problems.is_empty() {
            return Ok(());
        }
        Err(Fault::new(
            FaultClass::Configuration,
            "vault.configuration",
            format!("the vault's configuration is wrong: {}", problems.join("; ")),
        )
        .affects("this vault: it does not start")
        .spares("its data: nothing was touched")
        .remedy("mend every line named and start it again"))
    }
}
