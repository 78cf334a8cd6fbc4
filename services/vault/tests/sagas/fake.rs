//! Servers of the test's own: they enrol, dial and answer over the real gRPC and TLS, and keep a little
//! world in memory in place of disks.
//!
//! A change reaches the replica only while everybody agrees: the agent was told to replicate, the process
//! server relays the machine, and the epoch is the target's newest.

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_wire::session::{self, Handler, Progress};
use continuum_wire::tls::Credentials;
use continuum_wire::{enroll, grpc};
use pb::command::Act;
use pb::{command_result, server_message, vault_message};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The world that the servers share.
#[derive(Default)]
pub(crate) struct World {
    inner: Mutex<Inner>,
    pub(crate) changed: Notify,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) source: Source,
    pub(crate) relayed: BTreeMap<String, pb::Relay>,
    pub(crate) replicas: BTreeMap<String, Replica>,
    pub(crate) views: BTreeMap<String, View>,
    /// Every act that reached a server, in order: id and name.
    pub(crate) acts: Vec<(String, &'static str)>,
    /// Acts of this name fail.
    pub(crate) fails: Option<&'static str>,
    /// Acts of this name never end.
    pub(crate) hangs: Option<&'static str>,
    /// Digests of the replica differ from the source's.
    pub(crate) rotten: bool,
    /// The source copies nothing.
    pub(crate) stuck: bool,
    pub(crate) doubt: String,
    /// Why the source's stream is not there, and when it is tried again; 0: it is not.
    pub(crate) broken: Option<(pb::Fault, i64)>,
}

#[derive(Default)]
pub(crate) struct Source {
    pub(crate) assignment: pb::AgentAssignment,
    pub(crate) sequence: u64,
}

#[derive(Default, Clone)]
pub(crate) struct Replica {
    pub(crate) epoch: u64,
    pub(crate) last_sequence: u64,
    pub(crate) newest: Option<i64>,
    pub(crate) oldest: Option<i64>,
    pub(crate) points: Vec<pb::Point>,
    pub(crate) marks: Vec<pb::MarkPoint>,
    /// Stretches that it says were thinned, and what it says is wrong beside.
    pub(crate) thinned: Vec<pb::Thinned>,
    pub(crate) warnings: Vec<pb::Fault>,
    pub(crate) assigned: bool,
    /// Who may bring frames.
    pub(crate) process_server: String,
}

#[derive(Default, Clone)]
pub(crate) struct View {
    pub(crate) machine: String,
    pub(crate) keep: bool,
    pub(crate) guest: bool,
}

fn now() -> i64 {
    SystemClock::default().wall().micros()
}

impl World {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    fn act(&self, command: &pb::Command) -> Result<&'static str, Fault> {
        let name = match command.act.as_ref().expect("an act") {
            Act::MakeBarrier(_) => "barrier",
            Act::ReconnectNow(_) => "reconnect",
            Act::SourceDigest(_) => "source-digest",
            Act::CompareAll(_) => "compare-all",
            Act::StopSource(_) => "stop-source",
            Act::ResolvePoint(_) => "resolve",
            Act::OpenView(_) => "open",
            Act::StartGuest(_) => "start",
            Act::ProbeGuest(_) => "probe",
            Act::StopGuest(_) => "stop",
            Act::CloseView(_) => "close",
            Act::QueryTimeline(_) => "timeline",
            Act::ReplicaDigest(_) => "replica-digest",
            Act::MarkPoint(_) => "mark",
            Act::FenceReplica(_) => "fence",
            Act::RemoveReplica(_) => "remove",
            Act::DropOtherPoints(_) => "drop",
            Act::ReplicaSums(_) => "sums",
            Act::SendAgain(_) => "send again",
            Act::MakeGroupPoint(_) => "group-point",
            Act::HomeDigest(_) => "home-digest",
            Act::StopView(_) => "stop-view",
            Act::ViewDigest(_) => "view-digest",
        };
        let mut world = self.lock();
        world.acts.push((command.id.clone(), name));
        self.changed.notify_waiters();
        if world.fails == Some(name) {
            return Err(Fault::new(
                FaultClass::Failed,
                "fake.failed",
                format!("{name} was told to fail\x1b[31m"),
            ));
        }
        Ok(name)
    }

    /// Whether this act reached a server, under any id.
    pub(crate) fn has_done(&self, name: &str) -> bool {
        self.lock().acts.iter().any(|(_, act)| *act == name)
    }

    async fn hang_if_told(&self, name: &str) {
        loop {
            let changed = self.changed.notified();
            if self.lock().hangs.is_none_or(|hangs| hangs != name) {
                return;
            }
            let _ = tokio::time::timeout(std::time::Duration::from_millis(20), changed).await;
        }
    }

    /// Time passes: what is written at the source reaches the replica, where everybody agrees.
    fn flow(&self) {
        let mut world = self.lock();
        let world = &mut *world;
        world.source.sequence += 1;
        let told = &world.source.assignment;
        let relay = world.relayed.get(&told.machine_id);
        let Some(replica) = world.replicas.get_mut(&told.machine_id) else { return };
        let agreed = told.replicate
            && !told.paused
            && !told.fenced
            && !world.stuck
            && replica.assigned
            && told.epoch >= replica.epoch
            && relay.is_some_and(|relay| relay.epoch == told.epoch);
        if agreed {
            replica.last_sequence = world.source.sequence;
            replica.newest = Some(now());
            replica.oldest.get_or_insert(now());
        }
    }
}

pub(crate) struct Agent {
    pub(crate) world: Arc<World>,
    pub(crate) name: String,
    pub(crate) boot: String,
    pub(crate) disk: String,
}

impl Agent {
    fn disks(&self) -> Vec<pb::Disk> {
        vec![pb::Disk {
            id: self.disk.clone(),
            index: 0,
            name: "disk0".into(),
            size_bytes: 1 << 20,
            endpoint: "nbd+unix:///disk0?socket=/tmp/source.sock".into(),
        }]
    }
}

impl Handler for Agent {
    fn hello(&self) -> pb::ServerHello {
        pb::ServerHello {
            version: "0".into(),
            boot_id: self.boot.clone(),
            name: self.name.clone(),
            fabric: "lab".into(),
            guest: "process".into(),
            disks: self.disks(),
            clock_us: now(),
            ..Default::default()
        }
    }
    async fn report(&self) -> server_message::Message {
        self.world.flow();
        let world = self.world.lock();
        let told = &world.source.assignment;
        server_message::Message::Agent(pb::AgentReport {
            disks: self.disks(),
            protected: told.replicate,
            mode: if told.replicate && !told.paused { "data" } else { "bitmap" }.into(),
            written_bytes_total: world.source.sequence << 10,
            initial_bytes_done: if world.stuck { 100 << 10 } else { 1 << 20 },
            initial_bytes_total: 1 << 20,
            channel_connected: world.broken.is_none(),
            channel_fault: world.broken.as_ref().map(|(fault, _)| fault.clone()),
            next_retry_us: world.broken.as_ref().map_or(0, |(_, next)| *next),
            newest_sequence: world.source.sequence,
            newest_time_us: now(),
            epoch: told.epoch,
            fenced: told.fenced,
            doubt: world.doubt.clone(),
            ..Default::default()
        })
    }
    async fn assigned(&self, message: vault_message::Message) {
        let vault_message::Message::Agent(assignment) = message else { panic!("not for an agent") };
        self.world.lock().source.assignment = assignment;
        self.world.changed.notify_waiters();
    }
    async fn command(&self, command: pb::Command, _: Progress) -> Result<command_result::Result, Fault> {
        let name = self.world.act(&command)?;
        self.world.hang_if_told(name).await;
        let sequence = self.world.lock().source.sequence;
        Ok(match command.act {
            Some(Act::MakeBarrier(order)) => command_result::Result::Barrier(pb::Barrier {
                point_id: order.point_id,
                sequence,
                time_us: now(),
                consistent: true,
                ..Default::default()
            }),
            Some(Act::SourceDigest(_)) => command_result::Result::Digests(pb::Digests {
                disks: vec![pb::DiskDigest { index: 0, digest: "aa".into(), bytes_read: 1 << 20 }],
                position: sequence,
                time_us: now(),
            }),
            _ => command_result::Result::Done(pb::Done::default()),
        })
    }
}

pub(crate) struct ProcessServer(pub(crate) Arc<World>);
impl Handler for ProcessServer {
    fn hello(&self) -> pb::ServerHello {
        pb::ServerHello {
            address: "127.0.0.1:9443".into(),
            boot_id: "p".into(),
            clock_us: now(),
            ..Default::default()
        }
    }
    async fn report(&self) -> server_message::Message {
        let world = self.0.lock();
        server_message::Message::ProcessServer(pb::ProcessServerReport {
            relays: world
                .relayed
                .keys()
                .map(|machine| pb::RelayReport {
                    machine_id: machine.clone(),
                    agent_connected: true,
                    target_connected: true,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }
    async fn assigned(&self, message: vault_message::Message) {
        let vault_message::Message::ProcessServer(assignment) = message else {
            panic!("not for a process server")
        };
        self.0.lock().relayed =
            assignment.relays.into_iter().map(|relay| (relay.machine_id.clone(), relay)).collect();
    }
    async fn command(&self, _: pb::Command, _: Progress) -> Result<command_result::Result, Fault> {
        Ok(command_result::Result::Done(pb::Done::default()))
    }
}

pub(crate) struct MasterTarget(pub(crate) Arc<World>);
impl Handler for MasterTarget {
    fn hello(&self) -> pb::ServerHello {
        pb::ServerHello {
            address: "127.0.0.1:9444".into(),
            boot_id: "m".into(),
            clock_us: now(),
            ..Default::default()
        }
    }
    async fn report(&self) -> server_message::Message {
        let world = self.0.lock();
        server_message::Message::MasterTarget(pb::MasterTargetReport {
            replicas: world
                .replicas
                .iter()
                .filter(|(_, replica)| replica.assigned)
                .map(|(machine, replica)| pb::ReplicaReport {
                    machine_id: machine.clone(),
                    epoch: replica.epoch,
                    last_sequence: replica.last_sequence,
                    newest_received_us: replica.newest,
                    newest_point_us: replica.newest,
                    oldest_point_us: replica.oldest,
                    points: replica.points.len() as u32,
                    new_points: replica.points.clone(),
                    thinned: replica.thinned.clone(),
                    warnings: replica.warnings.clone(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })
    }
    async fn assigned(&self, message: vault_message::Message) {
        let vault_message::Message::MasterTarget(assignment) = message else {
            panic!("not for a master target")
        };
        let mut world = self.0.lock();
        world.replicas.values_mut().for_each(|replica| replica.assigned = false);
        for told in assignment.replicas {
            let replica = world.replicas.entry(told.machine_id).or_default();
            replica.process_server = told.process_server_id;
            replica.assigned = true;
            replica.epoch = replica.epoch.max(told.epoch);
        }
    }
    async fn command(
        &self,
        command: pb::Command,
        progress: Progress,
    ) -> Result<command_result::Result, Fault> {
        let name = self.0.act(&command)?;
        progress.tell(0.5, name);
        self.0.hang_if_told(name).await;
        let missing = |what: &str| Fault::new(FaultClass::NotFound, "fake.missing", what.to_owned());
        let mut world = self.0.lock();
        let world = &mut *world;
        let done = || Ok(command_result::Result::Done(pb::Done { detail: "done".into() }));
        match command.act.expect("an act") {
            Act::ResolvePoint(order) => {
                let replica = world.replicas.get(&order.machine_id).ok_or_else(|| missing("no replica"))?;
                let newest = replica.newest.ok_or_else(|| missing("no point"))?;
                let asked = order.point.parse::<Timestamp>().ok();
                let gap = asked.map(|at| pb::Gap {
                    from_us: at.micros() - 1,
                    to_us: at.micros() + 1,
                    reason: "a crash".into(),
                });
                let listed = replica.points.iter().find(|point| point.id == order.point).cloned();
                let point = listed.unwrap_or(pb::Point {
                    time_us: asked.map_or(newest, |at| at.micros() - 1),
                    kind: "crash".into(),
                    position: replica.last_sequence,
                    ..Default::default()
                });
                let preview = pb::PreviewReply {
                    point: Some(point),
                    gap,
                    loss_seconds: 0.25,
                    loss_bytes: 4096,
                    ..Default::default()
                };
                Ok(command_result::Result::Resolved(pb::Resolved { preview: Some(preview) }))
            }
            Act::OpenView(order) => {
                let view = View { machine: order.machine_id, keep: order.keep, guest: false };
                world.views.entry(order.view_id.clone()).or_insert(view);
                Ok(command_result::Result::Opened(pb::Opened {
                    disks: vec![pb::Disk {
                        index: 0,
                        name: "disk0".into(),
                        size_bytes: 1 << 20,
                        endpoint: format!("nbd+unix:///disk0?socket=/tmp/{}.sock", order.view_id),
                        ..Default::default()
                    }],
                }))
            }
            Act::StartGuest(order) => {
                world.views.get_mut(&order.view_id).ok_or_else(|| missing("no view"))?.guest = true;
                done()
            }
            Act::ProbeGuest(order) => {
                let answered = world.views.get(&order.view_id).is_some_and(|view| view.guest);
                let probe =
                    pb::Probe { name: "ledger".into(), passed: answered, detail: "42 records".into() };
                Ok(command_result::Result::Probed(pb::Probed { probes: vec![probe], answered }))
            }
            Act::StopGuest(order) => {
                if let Some(view) = world.views.get_mut(&order.view_id) {
                    view.guest = false;
                }
                done()
            }
            Act::CloseView(order) => {
                world.views.remove(&order.view_id);
                done()
            }
            Act::QueryTimeline(order) => {
                let request = order.request.expect("a request");
                let replica = world.replicas.get(&request.machine).ok_or_else(|| missing("no replica"))?;
                Ok(command_result::Result::Timeline(pb::TimelineReply {
                    points: replica.points.clone(),
                    ..Default::default()
                }))
            }
            Act::ReplicaDigest(order) => Ok(command_result::Result::Digests(pb::Digests {
                disks: vec![pb::DiskDigest {
                    index: 0,
                    digest: if world.rotten { "bb" } else { "aa" }.into(),
                    bytes_read: 1 << 20,
                }],
                position: order.position,
                time_us: 0,
            })),
            Act::MarkPoint(order) => {
                let replica =
                    world.replicas.get_mut(&order.machine_id).ok_or_else(|| missing("no replica"))?;
                replica.marks.push(order);
                done()
            }
            Act::FenceReplica(order) => {
                let replica =
                    world.replicas.get_mut(&order.machine_id).ok_or_else(|| missing("no replica"))?;
                replica.epoch = replica.epoch.max(order.epoch);
                done()
            }
            Act::RemoveReplica(order) => {
                world.replicas.remove(&order.machine_id);
                world.views.retain(|_, view| view.machine != order.machine_id);
                done()
            }
            Act::DropOtherPoints(order) => {
                if let Some(replica) = world.replicas.get_mut(&order.machine_id) {
                    replica.points.retain(|point| point.position == order.position);
                }
                done()
            }
            other => panic!("not for a master target: {other:?}"),
        }
    }
}

/// A server that keeps its session until it is stopped.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) credentials: Credentials,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

/// Starts a server whose credentials lie in `dir`; enrols it first where there are none.
pub(crate) async fn start<H: Handler>(
    handler: H,
    token: Option<&str>,
    role: &str,
    name: &str,
    dir: &Path,
    vault: &str,
) -> Running {
    let credentials = match token {
        Some(token) => enroll::enroll(token, role, name, dir).await.expect("enrolled").0,
        None => Credentials::open(dir).expect("credentials"),
    };
    let stop = CancellationToken::new();
    let (own, address) = (credentials.clone(), vault.to_owned());
    let dial = move || {
        let (own, address) = (own.clone(), address.clone());
        async move { grpc::channel(&own, &address, continuum_wire::identity::Role::Vault).await }
    };
    let task = tokio::spawn(session::run(dial, Arc::new(handler), Arc::new(Notify::new()), stop.clone()));
    Running { stop, credentials, task }
}
