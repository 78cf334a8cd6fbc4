//! The words of orders: which machine, at which moment, with whose agreement, and whether to follow.

use clap::{Args, ValueEnum};
use continuum_model::point::PointChoice;

/// Whether to follow the job.
#[derive(Debug, Clone, Default, Args)]
pub struct Wait {
    /// Follow the job and end with its outcome (the default)
    #[arg(long, overrides_with = "no_wait", help_heading = "Job")]
    pub wait: bool,
    /// Return as soon as the order is accepted
    #[arg(long, help_heading = "Job")]
    pub no_wait: bool,
    /// Follow no longer than this; the job goes on
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Job")]
    pub timeout: Option<u64>,
    /// Idempotency key: the same key never begins a second job
    #[arg(long, value_name = "KEY", value_parser = key, help_heading = "Job")]
    pub key: Option<String>,
}

/// How a dangerous order is agreed to.
#[derive(Debug, Clone, Default, Args)]
pub struct Consent {
    /// The name of what it happens to, exactly; needed with --yes where data can be lost
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "Consent")]
    pub confirm: Option<String>,
}

/// An order to one machine.
#[derive(Debug, Args)]
pub struct MachineOrder {
    /// Which machine, by name or id
    pub machine: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// A dangerous order to one machine.
#[derive(Debug, Args)]
pub struct MachineDanger {
    /// Which machine, by name or id
    pub machine: String,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `protect`
#[derive(Debug, Args)]
pub struct Protect {
    /// Which machines, by name or id
    #[arg(required = true, value_name = "MACHINE")]
    pub machines: Vec<String>,
    /// Under which policy; may be left out where there is only one
    #[arg(long)]
    pub policy: Option<String>,
    /// To which recovery site; may be left out where there is only one
    #[arg(long, value_name = "SITE")]
    pub to: Option<String>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `unprotect`
#[derive(Debug, Args)]
pub struct Unprotect {
    /// Which machine, by name or id
    pub machine: String,
    /// Stop replicating, but keep the replica and its points
    #[arg(long)]
    pub keep_replica: bool,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `bookmark`
#[derive(Debug, Args)]
pub struct Bookmark {
    /// Which machine, by name or id
    pub machine: String,
    /// What to call the moment
    pub name: String,
    /// Freeze the machine's applications for it
    #[arg(long)]
    pub app_consistent: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `pin`
#[derive(Debug, Args)]
pub struct Pin {
    /// Which machine, by name or id
    pub machine: String,
    /// Which point, by id
    pub point: String,
    /// Let it go again
    #[arg(long)]
    pub remove: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// Orders that `readiness` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Rehearsed {
    /// A test failover
    #[default]
    TestFailover,
    /// An unplanned failover
    Failover,
    /// Making a failover final
    Commit,
    /// Ending a protection
    Unprotect,
    /// Ending a test failover
    Cleanup,
}

impl Rehearsed {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TestFailover => "test-failover",
            Self::Failover => "failover",
            Self::Commit => "commit",
            Self::Unprotect => "unprotect",
            Self::Cleanup => "cleanup",
        }
    }
}

/// `readiness`
#[derive(Debug, Args)]
pub struct Readiness {
    /// Which machine, by name or id
    pub machine: String,
    /// For which order
    #[arg(long = "for", value_enum, default_value_t, value_name = "ORDER")]
    pub order: Rehearsed,
    /// At which moment: latest, processed, app, a point's id, or a time
    #[arg(long, value_parser = point, default_value = "latest")]
    pub point: String,
}

/// `test-failover`
#[derive(Debug, Args)]
pub struct TestFailover {
    /// Which machine, by name or id
    pub machine: String,
    /// Which moment: latest (least loss), processed (least wait), app, a point's id, or a time: the newest moment at or before it
    #[arg(long, value_parser = point, default_value = "latest")]
    pub point: String,
    /// Where it fails, leave everything as it is, to be looked at
    #[arg(long)]
    pub keep: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `cleanup`
#[derive(Debug, Args)]
pub struct Cleanup {
    /// Which machine, by name or id
    pub machine: String,
    /// What was learned; kept with the drill
    #[arg(long, default_value = "", allow_hyphen_values = true, hide_default_value = true)]
    pub note: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `failover`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("kind").required(true).args(["unplanned", "planned"]))]
pub struct Failover {
    /// Which machine, by name or id
    pub machine: String,
    /// The source is not asked; it is kept out when it returns
    #[arg(long)]
    pub unplanned: bool,
    /// The source is stopped first and nothing is lost
    #[arg(long)]
    pub planned: bool,
    /// Which moment: latest (least loss), processed (least wait), app, a point's id, or a time: the newest moment at or before it
    #[arg(long, value_parser = point, required_if_eq("unplanned", "true"))]
    pub point: Option<String>,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Which machine, by name or id
    pub machine: String,
    /// At which point; left out: a new one is cut for the comparison
    #[arg(long, value_parser = point)]
    pub point: Option<String>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `retry`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["machine", "job"]))]
pub struct Retry {
    /// The replication of this machine, by name or id
    pub machine: Option<String>,
    /// This job
    #[arg(long)]
    pub job: Option<String>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `cancel`
#[derive(Debug, Args)]
pub struct Cancel {
    /// Which job, by id
    pub job: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `acknowledge`
#[derive(Debug, Args)]
pub struct Acknowledge {
    /// Which alert, by id
    pub alert: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `wait`
#[derive(Debug, Args)]
pub struct WaitFor {
    /// Which job, by id
    pub job: String,
    /// Follow no longer than this; the job goes on
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
}

fn point(text: &str) -> Result<String, String> {
    let choice: PointChoice = text.parse().map_err(|error| format!("{error}"))?;
    Ok(choice.to_string())
}

fn key(text: &str) -> Result<String, String> {
    let plain = (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    if plain { Ok(text.to_owned()) } else { Err("write 1 to 128 letters, digits or -_.:".into()) }
}
