//! The words of profiles, credentials and tokens.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Who can enrol with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Newcomer {
    /// Sees the writes of one machine
    Agent,
    /// Receives from agents, forwards to targets
    ProcessServer,
    /// Keeps replicas
    MasterTarget,
}

impl Newcomer {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::ProcessServer => "process-server",
            Self::MasterTarget => "master-target",
        }
    }
}

/// `token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Who will use it
    #[arg(value_enum)]
    pub role: Newcomer,
    /// At which site the newcomer will be
    #[arg(long)]
    pub site: String,
    /// Only a machine of this name may use it
    #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub machine: String,
    /// How long it is good
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=432_000))]
    pub lifetime: u32,
}

/// `login`
#[derive(Debug, Args)]
pub struct Login {
    /// Where the vault is: https://HOST:PORT or HOST:PORT
    pub url: String,
    /// A directory with ca.pem, certificate.pem and key.pem (0600), made for this operator
    #[arg(long, value_name = "DIR")]
    pub credentials: PathBuf,
    /// What to call the profile; else the vault's host name
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the key in a file readable by its owner only, though there is a keyring
    #[arg(long)]
    pub no_keyring: bool,
}

/// `profiles`
#[derive(Debug, Args)]
pub struct Profiles {
    /// Nothing lists them.
    #[command(subcommand)]
    pub action: Option<ProfilesAction>,
}

/// What can be done with profiles.
#[derive(Debug, Subcommand)]
pub enum ProfilesAction {
    /// Use this one from now on
    Use {
        /// Which
        name: String,
    },
}

/// `logout`
#[derive(Debug, Args)]
pub struct Logout {
    /// Which; else the one in use
    pub name: Option<String>,
}
