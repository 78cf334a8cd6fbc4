//! What the supervisor asks of the vault, as any operator could: tokens for newcomers, and the first
//! protection of each machine.

use super::estate::{PRIMARY, RECOVERY};
use super::keeper::failed;
use super::supervisor::Lab;
use super::{Progress, Stage};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use pb::entity::Entity as Any;
use pb::operator_client::OperatorClient;
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;

/// How long a single question to the vault may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Speaks to the vault as the lab's owner.
pub(super) async fn operator(profile: &Path, address: &str) -> Result<OperatorClient<Channel>, Fault> {
    let credentials = Credentials::open(profile).map_err(|error| failed(shown(&error.to_string())))?;
    let channel = tokio::time::timeout(PATIENCE, grpc::channel(&credentials, address, Role::Vault))
        .await
        .map_err(|_| failed("the vault does not answer"))??;
    Ok(OperatorClient::new(channel).max_decoding_message_size(64 << 20))
}

/// Puts a fresh token into `dir` for a server that has no good credentials.
pub(super) async fn token(lab: &Lab, address: &str, dir: &Path, role: &str, name: &str) -> Result<(), Fault> {
    if crate::role::has_credentials(dir) {
        return Ok(());
    }
    let site = if role == "master-target" { RECOVERY } else { PRIMARY };
    // Bound to the name: it takes up what an earlier life of the same server left.
    let request = pb::CreateTokenRequest {
        role: role.to_owned(),
        site: site.to_owned(),
        machine: name.to_owned(),
        lifetime_seconds: 600,
    };
    let mut vault = operator(&lab.profile(), address).await?;
    let reply = tokio::time::timeout(PATIENCE, vault.create_token(request))
        .await
        .map_err(|_| failed("the vault does not answer"))?
        .map_err(|status| grpc::fault_of(&status))?;
    let path = dir.join("token");
    let _ = std::fs::remove_file(&path);
    let written = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(reply.into_inner().token.as_bytes()));
    written.map_err(|error| super::estate::trouble(&path, error))
}

/// What is known of the machines, for whoever waits for one.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) machines: HashMap<String, pb::Machine>,
    connected: HashSet<String>,
}

impl Known {
    fn ready(&self) -> bool {
        ["process-server", "master-target"].iter().all(|role| self.connected.contains(*role))
    }
}

/// Follows the vault for ever, gives the orders that are due, and tells how far it is. Ends with the lab.
pub(super) async fn follow(
    lab: Arc<Lab>,
    mut address: watch::Receiver<Option<String>>,
    known: watch::Sender<Known>,
) {
    loop {
        let Some(at) = address.borrow_and_update().clone() else {
            if address.changed().await.is_err() {
                return;
            }
            continue;
        };
        let ended = tokio::select! {
            ended = watch_vault(&lab, &at, &known) => ended,
            _ = address.changed() => continue,
            () = lab.stop.cancelled() => return,
        };
        if let Err(fault) = ended {
            tracing::info!(code = fault.code, "the vault is not followed: {}", fault.message);
        }
        tokio::select! {
            () = lab.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
    }
}

async fn watch_vault(lab: &Arc<Lab>, address: &str, known: &watch::Sender<Known>) -> Result<(), Fault> {
    let mut vault = operator(&lab.profile(), address).await?;
    let request = pb::WatchRequest {
        kinds: vec![pb::Kind::Server.into(), pb::Kind::Machine.into()],
        ..Default::default()
    };
    let mut events = vault.watch(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner();
    let mut whole = false;
    let mut roles: HashMap<String, (String, bool)> = HashMap::new();
    let mut orders = tokio::time::interval(Duration::from_secs(1));
    orders.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // An order that was refused is tried again at the next tick; what changed may make one due at once.
        let event = tokio::select! {
            event = events.message() => match event.map_err(|status| grpc::fault_of(&status))? {
                Some(event) => event.event,
                None => return Ok(()),
            },
            _ = orders.tick() => None,
        };
        match event {
            Some(pb::watch_event::Event::SnapshotBegin(_)) => {
                whole = false;
                roles.clear();
                known.send_modify(|known| *known = Known::default());
            }
            Some(pb::watch_event::Event::SnapshotEnd(_)) => whole = true,
            Some(pb::watch_event::Event::Changed(pb::Entity { entity: Some(Any::Machine(machine)) })) => {
                known.send_modify(|known| {
                    known.machines.insert(machine.name.clone(), machine);
                });
            }
            Some(pb::watch_event::Event::Changed(pb::Entity { entity: Some(Any::Server(server)) })) => {
                roles.insert(server.id, (server.role, server.connected));
                let connected =
                    roles.values().filter(|(_, connected)| *connected).map(|(role, _)| role.clone());
                known.send_modify(|known| known.connected = connected.collect());
            }
            Some(_) | None => {}
        }
        if whole {
            let seen = known.borrow().clone();
            protect(lab, &mut vault, &seen).await;
            tell(lab, &seen);
        }
    }
}

/// Gives the order to protect, once, for each machine that waits for it.
async fn protect(lab: &Arc<Lab>, vault: &mut OperatorClient<Channel>, known: &Known) {
    if !known.ready() {
        return;
    }
    for machine in lab.machines().into_iter().filter(|machine| machine.protect) {
        let Some(seen) = known.machines.get(&machine.name) else { continue };
        if seen.protected {
            lab.was_ordered(machine.number);
            continue;
        }
        if seen.disks.is_empty() || !seen.orders.iter().any(|order| order == "protect") {
            continue;
        }
        let order = pb::OrderRequest {
            // Not twice, also when the answer is lost.
            key: format!("lab-{}-{}-protect", lab.id(), machine.number),
            machine: seen.id.clone(),
            order: Some(pb::order_request::Order::Protect(pb::Protect {
                policy: "default".into(),
                target_site: RECOVERY.into(),
            })),
            ..Default::default()
        };
        match tokio::time::timeout(PATIENCE, vault.order(order)).await {
            Ok(Ok(_)) => lab.was_ordered(machine.number),
            Ok(Err(status)) => {
                let fault = grpc::fault_of(&status);
                tracing::info!(
                    code = fault.code,
                    name = shown(&machine.name),
                    "not protected yet: {}",
                    fault.message
                );
                if !matches!(
                    fault.class,
                    FaultClass::NotReady | FaultClass::NotConnected | FaultClass::Failed
                ) {
                    lab.was_ordered(machine.number);
                }
            }
            Err(_) => return,
        }
    }
}

fn tell(lab: &Arc<Lab>, known: &Known) {
    let machines = lab.machines();
    let total = u32::try_from(machines.len()).unwrap_or(u32::MAX);
    let count = |what: &dyn Fn(&pb::Machine) -> bool| {
        let count = machines
            .iter()
            .filter_map(|machine| known.machines.get(&machine.name))
            .filter(|seen| what(seen))
            .count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    let there = count(&|machine| !machine.disks.is_empty());
    let at_work = count(&|machine| matches!(machine.state.as_str(), "enabling" | "initial-replication"));
    let ordered = machines.iter().filter(|machine| !machine.protect).count();
    let (stage, done, detail) = if there < total || !known.ready() {
        (Stage::Enrolling, there, "servers and machines get their identities")
    } else if at_work > 0 || ordered < machines.len() {
        (Stage::Protecting, total - at_work, "machines get their first copy")
    } else {
        (Stage::Ready, total, "the lab is up")
    };
    lab.tell(Progress { stage, detail: detail.into(), done, total });
}
