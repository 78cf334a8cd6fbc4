//! `continuumd`: the services without a console, from a configuration file.

use clap::{Args, Parser, Subcommand};
use continuum_daemon::{config, log, role};
use continuum_fabric::kvm::inventory::{self, Found};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use continuum_vault::{Keeper, broken_at};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// Continuum's services: vault, process server, master target, agent.
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
        /// Only these roles: vault, process, target, agent
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
        /// Only these roles: vault, process, target, agent
        #[arg(long, value_delimiter = ',')]
        role: Vec<String>,
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
    /// List the machines of QEMU whose monitors are in a folder, and what their disks are called
    Machines {
        /// A folder with sockets made by `-qmp unix:…,server=on,wait=off`
        folder: PathBuf,
    },
    /// Operators, on the vault's own machine
    Operator {
        #[command(subcommand)]
        act: OperatorAct,
    },
    /// Servers, on the vault's own machine
    Server {
        #[command(subcommand)]
        act: ServerAct,
    },
    /// Show the newest lines of the audit log, and whether its chain holds
    Audit {
        #[command(flatten)]
        vault: VaultPlace,
        /// How many lines
        #[arg(long, default_value_t = 50)]
        last: usize,
    },
}

/// Where a vault keeps its state. It may be running.
#[derive(Args)]
struct VaultPlace {
    /// The vault's directory
    #[arg(long)]
    vault_dir: PathBuf,
    /// Its database, where it is not the embedded one: postgres://…
    #[arg(long, env = "CONTINUUM_DATABASE", hide_env_values = true)]
    database: Option<String>,
}

#[derive(Subcommand)]
enum OperatorAct {
    /// Make an operator's certificate and let them in
    Make {
        #[command(flatten)]
        vault: VaultPlace,
        /// owner, recoverer, contributor, operator, reader, approver, auditor
        #[arg(long)]
        role: String,
        /// Who
        #[arg(long)]
        name: String,
        /// Where the three files go
        #[arg(long)]
        out: PathBuf,
    },
    /// Take an operator's access away: their connections end, their certificates are refused
    Revoke {
        #[command(flatten)]
        vault: VaultPlace,
        /// Who
        #[arg(long)]
        name: String,
    },
    /// Show all operators
    List {
        #[command(flatten)]
        vault: VaultPlace,
    },
}

#[derive(Subcommand)]
enum ServerAct {
    /// Take a server's access away: its session ends, its certificates are refused
    Revoke {
        #[command(flatten)]
        vault: VaultPlace,
        /// Its id, or its whole name
        #[arg(long)]
        name: String,
    },
    /// Show all servers
    List {
        #[command(flatten)]
        vault: VaultPlace,
    },
}

fn main() -> ExitCode {
    if let Some(ended) = role::thaw_watchdog(std::env::args_os()).or_else(role::freeze_keeper) {
        return ended;
    }
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
            serve(config::read(&config, &role)?)
        }
        Verb::CheckConfig { config, role } => {
            let roles = config::read(&config, &role)?;
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
        Verb::Machines { folder } => machines(&folder),
        Verb::Operator { act } => runtime()?.block_on(operator(act)),
        Verb::Server { act } => runtime()?.block_on(server(act)),
        Verb::Audit { vault, last } => runtime()?.block_on(audit(&vault, last)),
    }
}

fn machines(folder: &Path) -> Result<(), Fault> {
    let found = inventory::look(folder);
    let found = found.map_err(|error| role::configuration(format!("{}: {error}", folder.display())))?;
    for Found { monitor, told } in found {
        let monitor = monitor.display();
        match told {
            Err(why) => println!("{monitor}\t{}", shown(&why)),
            Ok(told) => {
                println!("{monitor}\t{}\t{}\tQEMU {}\t{}", told.name, told.status, told.version, told.uuid);
                for (node, size, format) in told.disks {
                    println!("\tnode {node}\t{}\t{format}", Bytes(size));
                }
            }
        }
    }
    Ok(())
}

async fn keeper(place: &VaultPlace) -> Result<Keeper, Fault> {
    Keeper::open(&place.vault_dir, place.database.as_deref()).await
}

async fn operator(act: OperatorAct) -> Result<(), Fault> {
    match act {
        OperatorAct::Make { vault, role, name, out } => {
            let keeper = keeper(&vault).await?;
            keeper.make_operator(&name, &role, &out).await?;
            keeper.close().await;
            println!("{}: hand it to {name} and `continuum login URL --credentials`", out.display());
        }
        OperatorAct::Revoke { vault, name } => {
            let keeper = keeper(&vault).await?;
            keeper.revoke_operator(&name).await?;
            keeper.close().await;
            println!("{} is out; their certificates are refused", shown(&name));
        }
        OperatorAct::List { vault } => {
            let keeper = keeper(&vault).await?;
            let operators = keeper.operators().await?;
            keeper.close().await;
            for operator in operators {
                println!("{}\t{}\t{}", shown(&operator.name), operator.role, access(operator.revoked));
            }
        }
    }
    Ok(())
}

async fn server(act: ServerAct) -> Result<(), Fault> {
    match act {
        ServerAct::Revoke { vault, name } => {
            let keeper = keeper(&vault).await?;
            let server = keeper.revoke_server(&name).await?;
            keeper.close().await;
            println!(
                "{} {} ({}) is out; its certificates are refused. A new token lets it in again",
                server.role,
                shown(&server.name),
                server.id
            );
        }
        ServerAct::List { vault } => {
            let keeper = keeper(&vault).await?;
            let servers = keeper.servers().await?;
            keeper.close().await;
            for server in servers {
                let name = shown(&server.name);
                println!("{}\t{}\t{name}\t{}", server.id, server.role, access(server.revoked));
            }
        }
    }
    Ok(())
}

fn access(revoked: bool) -> &'static str {
    if revoked { "revoked" } else { "has access" }
}

async fn audit(place: &VaultPlace, last: usize) -> Result<(), Fault> {
    let keeper = keeper(place).await?;
    let lines = keeper.audit(u32::MAX).await?;
    keeper.close().await;
    for line in &lines[lines.len().saturating_sub(last)..] {
        let [actor, act, object, outcome, detail] =
            [&line.actor, &line.act, &line.object, &line.outcome, &line.detail].map(|text| shown(text));
        println!("{}\t{}\t{actor}\t{act}\t{object}\t{outcome}\t{detail}", line.seq, line.time);
    }
    match broken_at(&lines) {
        None => {
            println!("the chain holds over all {} lines", lines.len());
            Ok(())
        }
        Some(place) => Err(Fault::new(
            FaultClass::Failed,
            "audit.broken",
            format!("the audit log's chain breaks at line {place}: it was changed, or lines are missing"),
        )
        .affects("what the log proves from that line on")
        .spares("the lines before it")
        .remedy("keep the store as it is for an inquiry, and compare it with the newest backup")),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| role::configuration(format!("threads could not be started: {error}")))
}

fn serve(wanted: Vec<(&'static str, role::Role)>) -> Result<(), Fault> {
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
            running.spawn(role::run(role, stop.clone()));
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
