//! The session with the vault: which machines to relay, and how it goes.

use crate::pace::Pace;
use crate::server::{Assigned, Limits, ProcessServer};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::policy::BandwidthLimit;
use continuum_model::units::Epoch;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_wire::grpc;
use continuum_wire::session::{self, Handler, Progress};
use continuum_wire::tls::Credentials;
use pb::{command_result, server_message, vault_message};
use std::net::SocketAddr;
use std::path::PathBuf;
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
    /// How fast change data of all machines together may leave, by its own hours; none: as fast as the link.
    pub bandwidth: Vec<BandwidthLimit>,
}

struct Session {
    config: ProcessServerConfig,
    server: ProcessServer,
    address: String,
    boot_id: String,
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
    let server = ProcessServer::open(
        &config.dir,
        credentials.clone(),
        Limits::default(),
        Pace::new(config.bandwidth.clone()),
    )?;
    let start = |error: std::io::Error| {
        Fault::new(
            FaultClass::Failed,
            "process-server.start",
            format!("cannot listen at {}: {error}", config.listen),
        )
        .affects("this process server: it does not start")
        .spares("replication over other process servers")
        .remedy("name a free address, or end what holds this one")
    };
    let listener = TcpListener::bind(config.listen).await.map_err(start)?;
    let bound = listener.local_addr().map_err(start)?;
    let address = config.advertise.clone().unwrap_or_else(|| bound.to_string());
    tracing::info!(address, "process server listens");
    let vault = config.vault_address.clone();
    let session = Arc::new(Session {
        address,
        boot_id: format!("{}-{}", std::process::id(), SystemClock::default().wall().micros()),
        rates: Mutex::new(Rates { at: Instant::now(), received: 0, forwarded: 0 }),
        server: server.clone(),
        config,
    });
    let dial = move || {
        let (credentials, vault) = (credentials.clone(), vault.clone());
        async move { session::dial_and_renew(&credentials, &vault).await }
    };
    let session = session::run(dial, session, Arc::new(Notify::new()), stop.clone());
    // Serving ends at `stop`, as the session does, or at once where it cannot begin.
    let told = async {
        session.await;
        Ok(())
    };
    tokio::try_join!(server.serve(listener, stop), told).map(|_| ())
}

impl Handler for Session {
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
        let status = self.server.status();
        let received = status.relays.iter().map(|relay| relay.received_bytes).sum::<u64>();
        let forwarded = status.relays.iter().map(|relay| relay.forwarded_bytes).sum::<u64>();
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let span = rates.at.elapsed().max(Duration::from_millis(1)).as_secs_f64();
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / span) as u64;
        let (in_rate, out_rate) = (rate(received, rates.received), rate(forwarded, rates.forwarded));
        *rates = Rates { at: Instant::now(), received, forwarded };
        server_message::Message::ProcessServer(pb::ProcessServerReport {
            load: Some(session::load(&self.config.dir)),
            spool_bytes: status.spool_bytes,
            spool_bytes_max: status.spool_bytes_max,
            in_bytes_per_sec: in_rate,
            out_bytes_per_sec: out_rate,
            limit_bytes_per_sec: status.limit_bytes_per_sec,
            relays: status
                .relays
                .iter()
                .map(|relay| pb::RelayReport {
                    machine_id: relay.assigned.machine.to_string(),
                    agent_connected: relay.agent_connected,
                    target_connected: relay.target_connected,
                    backlog_bytes: relay.backlog_bytes,
                    fault: relay.fault.as_ref().map(grpc::fault_to_proto),
                    received_time_us: relay.times.0,
                    forwarded_time_us: relay.times.1,
                    acknowledged_time_us: relay.times.2,
                    on_way_bytes: relay.on_way_bytes,
                    received_bytes_total: relay.received_bytes,
                    forwarded_bytes_total: relay.forwarded_bytes,
                    full: relay.full,
                    held_up_by: relay.held_up_by.into(),
                    limit_bytes_per_sec: relay.limit_bytes_per_sec,
                    held_by: relay.held.map(|held| held.to_string()).unwrap_or_default(),
                })
                .collect(),
        })
    }

    async fn assigned(&self, message: vault_message::Message) {
        let vault_message::Message::ProcessServer(assignment) = message else { return };
        let assigned = assignment.relays.into_iter().filter_map(|relay| {
            let Ok(machine) = relay.machine_id.parse::<MachineId>() else {
                tracing::warn!("the vault names a machine that is none: passed over");
                return None;
            };
            let limit = |limit: &pb::BandwidthLimit| match continuum_wire::policy::limit_from(limit) {
                Ok(limit) => Some(limit),
                Err(why) => {
                    tracing::warn!(%machine, "a limit that makes no sense is passed over: {why}");
                    None
                }
            };
            Some(Assigned {
                bandwidth: relay.bandwidth.iter().filter_map(limit).collect(),
                urgent: relay.urgent,
                machine,
                epoch: Epoch(relay.epoch),
                target_address: relay.target_address,
                target_id: relay.target_id,
                compression: relay.compression,
            })
        });
        self.server.assign_exactly(assigned.collect());
    }

    async fn command(&self, command: pb::Command, _: Progress) -> Result<command_result::Result, Fault> {
        match command.act {
            // Streams are opened by agents, from end to end: whoever retries there tries both hops.
            Some(pb::command::Act::ReconnectNow(_)) => {
                let detail = "the agent opens the stream anew, and this process server its way to the target"
                    .to_owned();
                Ok(command_result::Result::Done(pb::Done { detail }))
            }
            _ => Err(Fault::new(FaultClass::Usage, "command.unknown", "a process server does not do that")),
        }
    }
}
