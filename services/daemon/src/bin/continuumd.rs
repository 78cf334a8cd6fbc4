//! `continuumd`: the services without a console, from a configuration file.

use clap::{Parser, Subcommand};
use continuum_daemon::{config, log, role};
use continuum_model::fault::{Fault, FaultClass};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Continuum's services: vault, process server, master target.
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "The configuration is explained in the example that is shipped as /etc/continuum/continuumd.toml."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the roles of the configuration until told to end
    Serve {
        /// The configuration
        #[arg(long, default_value = "/etc/continuum/continuumd.toml")]
        config: PathBuf,
        /// Only these roles: vault, process, target
        #[arg(long, value_delimiter = ',')]
        role: Vec<String>,
        /// Log lines as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether the configuration can be started, and all that is wrong with it
    CheckConfig {
        /// The configuration
        #[arg(long, default_value = "/etc/continuum/continuumd.toml")]
        config: PathBuf,
    },
    /// Use up a one-use token: get a certificate for a server on this machine
    Enroll {
        /// A file with the token; `-` is standard input
        #[arg(long)]
        token_file: PathBuf,
        /// process-server, master-target or agent
        #[arg(long)]
        role: String,
        /// What it is called
        #[arg(long)]
        name: String,
        /// Where certificate and key are kept
        #[arg(long)]
        identity: PathBuf,
    },
    /// Make an operator's certificate, on the vault's own machine
    Operator {
        /// The vault's directory
        #[arg(long)]
        vault_dir: PathBuf,
        /// owner, recoverer, contributor, operator, reader
        #[arg(long)]
        role: String,
        /// Who
        #[arg(long)]
        name: String,
        /// Where the three files go
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    continuum_wire::tls::install_provider();
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::from(fault.class.exit_code())
        }
    }
}

fn run(verb: Verb) -> Result<(), Fault> {
    match verb {
        Verb::Serve { config, role, json } => {
            log::start(json);
            serve(&config::read(&config)?, &role)
        }
        Verb::CheckConfig { config } => {
            let roles = config::read(&config)?;
            let names: Vec<&str> = roles.iter().map(|(name, _)| *name).collect();
            println!("{} is valid: {}", config.display(), names.join(", "));
            Ok(())
        }
        Verb::Enroll { token_file, role, name, identity } => {
            let token = if token_file.as_os_str() == "-" {
                std::io::read_to_string(std::io::stdin())
            } else {
                std::fs::read_to_string(&token_file)
            };
            let token =
                token.map_err(|error| role::configuration(format!("{}: {error}", token_file.display())))?;
            let runtime = runtime()?;
            let (credentials, vault) =
                runtime.block_on(continuum_wire::enroll::enroll(token.trim(), &role, &name, &identity))?;
            println!("enrolled as {}; the vault is at {vault}", credentials.identity());
            Ok(())
        }
        Verb::Operator { vault_dir, role, name, out } => {
            if !matches!(role.as_str(), "owner" | "recoverer" | "contributor" | "operator" | "reader") {
                return Err(Fault::new(
                    FaultClass::Usage,
                    "operator.role",
                    "choose owner, recoverer, contributor, operator or reader",
                ));
            }
            continuum_vault::run::make_operator(&vault_dir, &role, &name, &out)?;
            println!("{}: hand it to {name} and `continuum login URL --credentials`", out.display());
            Ok(())
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| role::configuration(format!("threads could not be started: {error}")))
}

fn serve(roles: &[(&'static str, role::Role)], only: &[String]) -> Result<(), Fault> {
    if let Some(unknown) = only.iter().find(|name| !roles.iter().any(|(known, _)| known == name)) {
        return Err(role::configuration(format!("the configuration has no role {unknown}")));
    }
    let wanted: Vec<_> = roles
        .iter()
        .filter(|(name, _)| only.is_empty() || only.iter().any(|wanted| wanted == name))
        .collect();
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop.clone();
        tokio::spawn(async move {
            role::signalled().await;
            signals.cancel();
        });
        let mut running = tokio::task::JoinSet::new();
        for (_, role) in wanted {
            running.spawn(role::run(role.clone(), stop.clone()));
        }
        let mut outcome = Ok(());
        while let Some(ended) = running.join_next().await {
            // One role that cannot go on ends all: whoever supervises starts them again.
            stop.cancel();
            let ended = ended
                .map_err(|error| role::configuration(format!("a role died: {error}")))
                .and_then(|ended| ended);
            outcome = outcome.and(ended);
        }
        outcome
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}
