//! The session with the vault: which machines to relay, and how it goes.

use crate::relay::{self, Assigned, Gauge};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::units::Epoch;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_wire::channel;
use continuum_wire::grpc;
use continuum_wire::session::{self, Handler, Progress};
use continuum_wire::tls::Credentials;
use pb::{command_result, server_message, vault_message};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a process server needs to run.
#[derive(Debug, Clone)]
pub struct ProcessServerConfig {
    /// Its name; a label.
    pub name: String,
    /// The name of its site.
    pub site: String,
    /// The spool.
    pub dir: PathBuf,
    /// Where agents connect. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where agents reach it, when that is not what it binds.
    pub advertise: Option<String>,
    /// `host:port` of the vault.
    pub vault_address: String,
}

struct Server {
    config: ProcessServerConfig,
    address: String,
    boot_id: String,
    relays: Mutex<HashMap<MachineId, (Assigned, Arc<Gauge>)>>,
    rates: Mutex<Rates>,
}

struct Rates {
    at: Instant,
    received: u64,
    forwarded: u64,
}

/// Runs until `stop`.
pub async fn run(
    config: ProcessServerConfig,
    credentials: Credentials,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let start = |what: &str, reason: String| {
        Fault::new(FaultClass::Failed, "process-server.start", format!("{what}: {reason}"))
            .affects("this process server: it does not start")
            .spares("replication over other process servers")
    };
    std::fs::create_dir_all(&config.dir)
        .map_err(|error| start("the spool directory cannot be made", error.to_string()))?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|error| start("cannot listen", error.to_string()))?;
    let bound = listener.local_addr().map_err(|error| start("cannot listen", error.to_string()))?;
    let address = config.advertise.clone().unwrap_or_else(|| bound.to_string());
    let acceptor = credentials.acceptor().map_err(|error| start("no credentials", error.to_string()))?;
    let server = Arc::new(Server {
        address,
        boot_id: format!("{}-{}", std::process::id(), SystemClock::default().wall().micros()),
        relays: Mutex::default(),
        rates: Mutex::new(Rates { at: Instant::now(), received: 0, forwarded: 0 }),
        config,
    });
    tracing::info!(address = server.address, "process server listens");
    let (serving, own) = (server.clone(), credentials.clone());
    let streams = channel::serve(listener, acceptor, stop.clone(), move |incoming| {
        let machine = incoming.hello.machine;
        let relay = serving.relays.lock().unwrap_or_else(PoisonError::into_inner).get(&machine).cloned();
        let (assigned, gauge) =
            relay.map_or_else(|| (None, Arc::default()), |(assigned, gauge)| (Some(assigned), gauge));
        // The name is of our own making: an id, and the session's number.
        let spool = serving.config.dir.join(format!("{machine}-{:016x}.spool", incoming.hello.session));
        relay::carry(own.clone(), incoming, assigned, spool, gauge)
    });
    let vault = server.config.vault_address.clone();
    let dial = move || {
        let (credentials, vault) = (credentials.clone(), vault.clone());
        async move { session::dial_and_renew(&credentials, &vault).await }
    };
    let session = session::run(dial, server, Arc::new(Notify::new()), stop);
    tokio::join!(streams, session);
    Ok(())
}

impl Handler for Server {
    fn hello(&self) -> pb::ServerHello {
        pb::ServerHello {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            name: self.config.name.clone(),
            site: self.config.site.clone(),
            address: self.address.clone(),
            clock_us: SystemClock::default().wall().micros(),
            ..Default::default()
        }
    }

    async fn report(&self) -> server_message::Message {
        let relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |pick: fn(&Gauge) -> u64| relays.values().map(|(_, gauge)| pick(gauge)).sum::<u64>();
        let received = sum(|gauge| gauge.received.load(Ordering::Relaxed));
        let forwarded = sum(|gauge| gauge.forwarded.load(Ordering::Relaxed));
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let span = rates.at.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / span) as u64;
        let (in_rate, out_rate) = (rate(received, rates.received), rate(forwarded, rates.forwarded));
        *rates = Rates { at: Instant::now(), received, forwarded };
        server_message::Message::ProcessServer(pb::ProcessServerReport {
            load: Some(session::load(&self.config.dir)),
            spool_bytes: sum(|gauge| gauge.backlog.load(Ordering::Relaxed)),
            spool_bytes_max: 0,
            in_bytes_per_sec: in_rate,
            out_bytes_per_sec: out_rate,
            relays: relays
                .iter()
                .map(|(machine, (_, gauge))| pb::RelayReport {
                    machine_id: machine.to_string(),
                    agent_connected: gauge.agent.load(Ordering::Relaxed),
                    target_connected: gauge.target.load(Ordering::Relaxed),
                    backlog_bytes: gauge.backlog.load(Ordering::Relaxed),
                    fault: gauge
                        .fault
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .as_ref()
                        .map(grpc::fault_to_proto),
                })
                .collect(),
        })
    }

    async fn assigned(&self, message: vault_message::Message) {
        let vault_message::Message::ProcessServer(assignment) = message else { return };
        let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
        let mut named = HashMap::new();
        for relay in assignment.relays {
            let Ok(machine) = relay.machine_id.parse::<MachineId>() else { continue };
            let assigned = Assigned {
                machine,
                epoch: Epoch(relay.epoch),
                target_address: relay.target_address,
                target_id: relay.target_id,
                compression: relay.compression,
            };
            let gauge = relays.remove(&machine).map(|(_, gauge)| gauge).unwrap_or_default();
            named.insert(machine, (assigned, gauge));
        }
        *relays = named;
    }

    async fn command(&self, command: pb::Command, _: Progress) -> Result<command_result::Result, Fault> {
        match command.act {
            Some(pb::command::Act::ReconnectNow(_)) => Ok(command_result::Result::Done(pb::Done::default())),
            _ => Err(Fault::new(FaultClass::Usage, "command.unknown", "a process server does not do that")),
        }
    }
}
