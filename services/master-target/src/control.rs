//! The session with the vault: assignments, commands, reports.

use crate::bring_up::{BringUp, ServedDisk};
use crate::estate::{Estate, Replica, Reported};
use crate::schedule::{self, Schedule};
use crate::{fault, receive, replica_fault, retention, reverse};
use continuum_fabric::lab::LabCompute;
use continuum_model::digest::Nodes;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, PointId, ViewId};
use continuum_model::point::{PointChoice, PointKind};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, Epoch, Sequence};
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_replica::marks::Proofs;
use continuum_replica::{Affects, Finding, PointInfo, State, Store, Unreadable};
use continuum_wire::channel;
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use continuum_wire::session::{self, Handler, Progress};
use continuum_wire::tls::Credentials;
use pb::command::Act;
use pb::{command_result, server_message, vault_message};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What a master target needs to run.
#[derive(Debug, Clone)]
pub struct MasterTargetConfig {
    /// Its name; a label.
    pub name: String,
    /// The name of the site it stands at.
    pub site: String,
    /// Replicas, views and what was last assigned.
    pub dir: PathBuf,
    /// Sockets; short, so that their paths fit.
    pub run_dir: PathBuf,
    /// Where the replication channel listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// Where others reach that listener, when it is not what it binds.
    pub advertise: Option<String>,
    /// Where replicas are archived, and how often.
    pub archive: Option<Schedule>,
    /// `host:port` of the vault.
    pub vault_address: String,
    /// The program that becomes a guest of the lab when started with `role guest`.
    pub guest_program: PathBuf,
    /// Kernel and settings of QEMU guests, where there are some.
    pub guest_machine: Option<PathBuf>,
}

#[derive(Clone)]
struct Target {
    config: MasterTargetConfig,
    address: String,
    boot_id: String,
    estate: Arc<Estate>,
    views: Arc<BringUp>,
    report_now: Arc<Notify>,
}

/// Runs until `stop`.
pub async fn run(
    config: MasterTargetConfig,
    credentials: Credentials,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let start = |what: &str, reason: String| {
        fault("target.start", format!("{what}: {reason}"))
            .affects("this master target: it does not start")
            .spares("what it stored, and the sources, which remember what changed")
            .remedy("mend what is named and start it again")
    };
    std::fs::create_dir_all(&config.run_dir)
        .map_err(|error| start("no directory for sockets", error.to_string()))?;
    let estate = Arc::new(Estate::open(&config.dir)?);
    let compute = Arc::new(LabCompute::new(config.guest_program.clone(), config.guest_machine.clone()));
    let views = Arc::new(BringUp::open(&config.dir, &config.run_dir, estate.clone(), compute)?);
    let listener =
        TcpListener::bind(config.listen).await.map_err(|error| start("cannot listen", error.to_string()))?;
    let bound = listener.local_addr().map_err(|error| start("cannot listen", error.to_string()))?;
    let acceptor = credentials.acceptor().map_err(|error| start("no credentials", error.to_string()))?;
    let clock = Arc::new(SystemClock::default());
    let target = Arc::new(Target {
        address: config.advertise.clone().unwrap_or_else(|| bound.to_string()),
        boot_id: format!("{}-{}", std::process::id(), clock.wall().micros()),
        estate: estate.clone(),
        views,
        report_now: Arc::default(),
        config,
    });
    tracing::info!(address = target.address, "master target listens");
    let (receiving, brought_up) = (estate.clone(), target.views.clone());
    let streams = channel::serve(listener, acceptor, stop.clone(), move |incoming| {
        let (estate, views) = (receiving.clone(), brought_up.clone());
        async move {
            // A machine's agent brings nothing here: it comes to take home what runs here.
            if incoming.peer.role == Role::Agent {
                reverse::serve(estate, views, incoming).await;
            } else {
                receive::serve(estate, incoming).await;
            }
        }
    });
    let archiving = schedule::run(estate.clone(), target.config.archive.clone(), stop.clone());
    let folding = retention::run(estate, clock, stop.clone());
    let vault = target.config.vault_address.clone();
    let dial = move || {
        let (credentials, vault) = (credentials.clone(), vault.clone());
        async move { session::dial_and_renew(&credentials, &vault).await }
    };
    let session = session::run(dial, target.clone(), target.report_now.clone(), stop);
    tokio::join!(streams, folding, archiving, session);
    let closed = tokio::task::spawn_blocking(move || target.views.close()).await;
    if let Err(error) = closed {
        tracing::warn!(%error, "what was brought up was not closed in good order");
    }
    Ok(())
}

/// What is read at most before sums are told to a source that compares.
const SUMMED_FOR_SOURCE: Bytes = Bytes(512 << 20);
/// Listed points of one replica in one report.
const POINTS_PER_REPORT: usize = 1000;

impl Target {
    fn report_replica(&self, replica: &Replica) -> pb::ReplicaReport {
        let machine_id = replica.assigned().machine.to_string();
        let store = match replica.store() {
            Ok(store) => store,
            Err(fault) => {
                return pb::ReplicaReport {
                    machine_id,
                    fault: Some(grpc::fault_to_proto(&fault)),
                    ..Default::default()
                };
            }
        };
        let state = store.state();
        let mut reported = replica.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new_points = store.points_after(reported.up_to);
        // A report stays small; the next one goes on from here.
        new_points.truncate(POINTS_PER_REPORT);
        if let Some(last) = new_points.last() {
            reported.up_to = last.position;
        }
        let micros = |at: Timestamp| at.micros();
        let (appending, longest) = replica.busy.told();
        let rewrites = store.rewrites();
        let thinned = if reported.rewrites == rewrites { Vec::new() } else { store.thinned() };
        reported.rewrites = rewrites;
        pb::ReplicaReport {
            machine_id,
            epoch: state.epoch.0,
            last_frame: state.last.number.0,
            last_sequence: state.last.sequence.0,
            newest_received_us: (state.last.number.0 > 0).then(|| state.last.newest.micros()),
            newest_point_us: state.newest_legal.map(micros),
            newest_app_point_us: state.newest_app.map(micros),
            oldest_point_us: state.oldest_legal.map(micros),
            history_bytes: state.history_bytes,
            base_bytes: 0,
            points: u32::try_from(state.points).unwrap_or(u32::MAX),
            new_points: new_points.iter().map(point_to_proto).collect(),
            fault: damage(&state)
                .or_else(|| self.estate.room_for(0).err())
                .map(|fault| grpc::fault_to_proto(&fault)),
            journal_bytes_per_sec: 0,
            thinned: thinned
                .into_iter()
                .map(|(after, to)| pb::Thinned { after_us: after.micros(), to_us: to.micros() })
                .collect(),
            warnings: replica.warnings().iter().map(grpc::fault_to_proto).collect(),
            unreadable: store.unreadable().iter().map(blocks_to_proto).collect(),
            waiting_bytes: replica.busy.waiting.load(std::sync::atomic::Ordering::Relaxed),
            appending_us: u64::try_from(appending.as_micros()).unwrap_or(u64::MAX),
            append_us_max: u64::try_from(longest.as_micros()).unwrap_or(u64::MAX),
        }
    }

    fn act(&self, act: Act, progress: &Progress) -> Result<command_result::Result, Fault> {
        let done = |detail: &str| Ok(command_result::Result::Done(pb::Done { detail: detail.to_owned() }));
        match act {
            Act::ResolvePoint(order) => {
                let store = self.store(&order.machine_id)?;
                let choice: PointChoice = parse(&order.point, "recovery point")?;
                Ok(command_result::Result::Resolved(pb::Resolved {
                    preview: Some(preview(&store, &choice)?),
                }))
            }
            Act::OpenView(order) => {
                let (machine, view) = (parse(&order.machine_id, "machine")?, parse(&order.view_id, "view")?);
                let disks = self.views.open_view(machine, view, Sequence(order.position), order.keep)?;
                Ok(command_result::Result::Opened(pb::Opened {
                    disks: disks.iter().map(disk_to_proto).collect(),
                }))
            }
            Act::StartGuest(order) => {
                self.views.start_guest(parse(&order.view_id, "view")?, &order.guest, &order.machine_name)?;
                self.report_now.notify_one();
                done("it runs")
            }
            Act::ProbeGuest(order) => {
                let patience = Duration::from_secs(order.timeout_seconds.into());
                let probes = self.views.probe(parse(&order.view_id, "view")?, patience)?;
                let answered = !probes.is_empty() && probes.iter().all(|probe| probe.passed);
                let probes = probes
                    .into_iter()
                    .map(|probe| pb::Probe { name: probe.name, passed: probe.passed, detail: probe.detail })
                    .collect();
                Ok(command_result::Result::Probed(pb::Probed { probes, answered }))
            }
            Act::StopGuest(order) => {
                self.views.stop_guest(parse(&order.view_id, "view")?)?;
                done("it is stopped")
            }
            Act::CloseView(order) => {
                let view: ViewId = parse(&order.view_id, "view")?;
                if let Some(machine) = self.views.machine_of(view) {
                    self.views.close_view(machine, view)?;
                }
                done("nothing is left of it")
            }
            Act::StopView(order) if order.release => {
                self.views.release(parse(&order.view_id, "view")?)?;
                done("it may write again")
            }
            Act::StopView(order) => {
                let point: PointId = parse(&order.point_id, "recovery point")?;
                let (sequence, time) = self.views.halt(parse(&order.view_id, "view")?, point)?;
                Ok(command_result::Result::Barrier(pb::Barrier {
                    point_id: order.point_id,
                    sequence: sequence.0,
                    time_us: time.micros(),
                    consistent: true,
                    ..Default::default()
                }))
            }
            Act::ViewDigest(order) => {
                progress.tell(0.0, "reading the disks");
                let digests = self.views.digest(parse(&order.view_id, "view")?)?;
                let disks = (0..).zip(&digests).map(|(index, digest)| pb::DiskDigest {
                    index,
                    digest: digest.to_string(),
                    bytes_read: 0,
                });
                Ok(command_result::Result::Digests(pb::Digests {
                    disks: disks.collect(),
                    ..Default::default()
                }))
            }
            Act::QueryTimeline(order) => {
                let request = order.request.unwrap_or_default();
                let store = self.store(&request.machine)?;
                Ok(command_result::Result::Timeline(timeline(&store, &request)))
            }
            Act::ReplicaDigest(order) => self.digest(&order, progress),
            Act::ReplicaSums(order) => self.sums(&order),
            Act::MarkPoint(order) => {
                let store = self.store(&order.machine_id)?;
                let point: PointId = parse(&order.point_id, "recovery point")?;
                if let Some(pinned) = order.pinned {
                    store.mark(point, |mark| mark.pinned = pinned).map_err(|error| replica_fault(&error))?;
                }
                if order.lock_seconds > 0 {
                    let span = Duration::from_secs(order.lock_seconds);
                    store.lock(point, span).map_err(|error| replica_fault(&error))?;
                }
                if let Some(proofs) = order.proofs {
                    let proofs = Proofs {
                        booted: proofs.booted,
                        probed: proofs.probed,
                        digest_equal: proofs.digest_equal,
                    };
                    store.prove(point, proofs).map_err(|error| replica_fault(&error))?;
                }
                done("it is on record")
            }
            Act::FenceReplica(order) => {
                let machine: MachineId = parse(&order.machine_id, "machine")?;
                let replica = self.estate.replica(machine)?;
                replica.store()?.fence(Epoch(order.epoch)).map_err(|error| replica_fault(&error))?;
                replica.assigned.lock().unwrap_or_else(PoisonError::into_inner).epoch = Epoch(order.epoch);
                done("older writers are refused from now on")
            }
            Act::RemoveReplica(order) => {
                let machine = parse(&order.machine_id, "machine")?;
                self.views.close_all(machine)?;
                done(&self.estate.remove(machine)?)
            }
            Act::DropOtherPoints(_) => done("history stays within its retention"),
            Act::MakeBarrier(_)
            | Act::MakeGroupPoint(_)
            | Act::ReconnectNow(_)
            | Act::SourceDigest(_)
            | Act::StopSource(_)
            | Act::HomeDigest(_)
            | Act::SendAgain(_)
            | Act::CompareAll(_) => {
                Err(Fault::new(FaultClass::Usage, "command.unknown", "a master target does not do that"))
            }
        }
    }

    fn digest(
        &self,
        order: &pb::ReplicaDigest,
        progress: &Progress,
    ) -> Result<command_result::Result, Fault> {
        let store = self.store(&order.machine_id)?;
        let position = Sequence(order.position);
        progress.tell(0.0, "summing what changed since it was summed last");
        let digests = store.digest_at(position).map_err(|error| replica_fault(&error))?;
        let disks = digests.iter().map(|disk| pb::DiskDigest {
            index: disk.disk.0.into(),
            digest: disk.digest.to_string(),
            bytes_read: disk.bytes_read,
        });
        Ok(command_result::Result::Digests(pb::Digests {
            disks: disks.collect(),
            position: position.0,
            time_us: 0,
        }))
    }

    /// What was not summed yet is, within bounds: the source waits for the answer.
    fn sums(&self, order: &pb::ReplicaSums) -> Result<command_result::Result, Fault> {
        let store = self.store(&order.machine_id)?;
        let invalid =
            |what: &str| Fault::new(FaultClass::Usage, "command.invalid", format!("there is no such {what}"));
        let disk = DiskIndex(u16::try_from(order.disk).map_err(|_| invalid("disk"))?);
        let level = u8::try_from(order.level).map_err(|_| invalid("level of sums"))?;
        let nodes = Nodes { level, range: order.first..order.first.saturating_add(order.count.into()) };
        let told = store.sums(disk, &nodes, SUMMED_FOR_SOURCE).map_err(|error| replica_fault(&error))?;
        Ok(command_result::Result::Sums(pb::Sums {
            frame: told.frame.0,
            frame_digest: told.digest.to_le_bytes().to_vec(),
            sums: told.sums.iter().flat_map(|sum| sum.0.to_le_bytes()).collect(),
        }))
    }

    fn store(&self, machine: &str) -> Result<Arc<Store>, Fault> {
        self.estate.replica(parse(machine, "machine")?)?.store()
    }
}

/// What is wrong with what is stored, as the vault is told.
fn damage(state: &State) -> Option<Fault> {
    if let Some(reason) = &state.damage {
        return Some(fault("replica.damaged", reason));
    }
    let serious = |finding: &&Finding| finding.affects != Affects::Nothing;
    let first = state.findings.iter().find(serious)?;
    let more = match state.findings.iter().filter(serious).count() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more places)"),
    };
    Some(
        fault("replica.damaged", format!("the scrub found damage: {first}{more}"))
            .affects("the moments that are named")
            .spares("other moments, other replicas, and replication, which goes on")
            .remedy(
                "bring up another moment; see to the disk of the master target; where later moments are named, \
                 the source is asked to send what they need again",
            ),
    )
}

fn parse<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, Fault>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| {
        Fault::new(FaultClass::Usage, "command.invalid", format!("invalid {what}: {error}"))
    })
}

fn disk_to_proto(served: &ServedDisk) -> pb::Disk {
    pb::Disk {
        id: served.disk.id.to_string(),
        index: served.disk.index.0.into(),
        name: served.disk.name.clone(),
        size_bytes: served.disk.size_bytes,
        endpoint: served.endpoint.clone(),
    }
}

fn blocks_to_proto(lost: &Unreadable) -> pb::Blocks {
    pb::Blocks {
        disk: lost.disk.0.into(),
        first: lost.blocks.start,
        count: lost.blocks.end - lost.blocks.start,
    }
}

fn point_to_proto(point: &PointInfo) -> pb::Point {
    pb::Point {
        id: point.id.to_string(),
        time_us: point.time.micros(),
        kind: point.kind.name().into(),
        name: point.name.clone(),
        pinned: point.mark.pinned,
        proofs: Some(pb::Proofs {
            booted: point.mark.proofs.booted,
            probed: point.mark.proofs.probed,
            digest_equal: point.mark.proofs.digest_equal,
        }),
        position: point.position.0,
        locked_until_us: point.mark.lock.map(|lock| lock.until.micros()),
        group: String::new(),
    }
}

fn preview(store: &Store, choice: &PointChoice) -> Result<pb::PreviewReply, Fault> {
    let resolved = store.resolve(choice).map_err(|error| replica_fault(&error))?;
    let (before, after) = store.neighbours(resolved.position);
    let point = resolved.point.as_ref().map_or_else(
        || pb::Point {
            time_us: resolved.time.micros(),
            kind: PointKind::Crash.name().into(),
            proofs: Some(pb::Proofs::default()),
            position: resolved.position.0,
            ..Default::default()
        },
        point_to_proto,
    );
    Ok(pb::PreviewReply {
        point: Some(point),
        gap: resolved.gap.map(|(from, to)| pb::Gap {
            from_us: from.micros(),
            to_us: to.micros(),
            reason: gap_reason(store, from, to).into(),
        }),
        loss_seconds: store.state().last.newest.since(resolved.time).as_secs_f64(),
        loss_bytes: resolved.loss.0,
        loss_records: resolved.loss.1,
        before: before.as_ref().map(point_to_proto),
        after: after.as_ref().map(point_to_proto),
    })
}

/// Why nothing between two moments can be brought up.
fn gap_reason(store: &Store, from: Timestamp, to: Timestamp) -> &'static str {
    if store.thinned().iter().any(|(after, end)| *after >= from && *end <= to) {
        "by policy, one state of every so long is kept of history this old"
    } else {
        "changes of this stretch were repaired as a whole, after a crash or in bitmap mode"
    }
}

fn timeline(store: &Store, request: &pb::TimelineRequest) -> pb::TimelineReply {
    let state = store.state();
    let (oldest, newest) = (state.oldest_legal.unwrap_or_default(), state.newest_legal.unwrap_or_default());
    let from = request.from_us.map_or(oldest, Timestamp::from_micros);
    let to = request.to_us.map_or(newest.plus(Duration::from_micros(1)), Timestamp::from_micros);
    let most = if request.points_max == 0 { 1000 } else { request.points_max.min(10_000) as usize };
    let all = store.points_after(Sequence(0));
    let end = all.iter().position(|point| point.id.to_string() == request.before_id).unwrap_or(all.len());
    let inside: Vec<&PointInfo> =
        all[..end].iter().rev().filter(|point| point.time >= from && point.time <= to).collect();
    pb::TimelineReply {
        oldest_us: oldest.micros(),
        newest_us: newest.micros(),
        points: inside.iter().take(most).map(|point| point_to_proto(point)).collect(),
        gaps: store
            .gaps(from, to)
            .into_iter()
            .map(|(from, to)| pb::Gap {
                from_us: from.micros(),
                to_us: to.micros(),
                reason: gap_reason(store, from, to).into(),
            })
            .collect(),
        churn: store.churn(from, to, request.buckets.min(4096) as usize),
        from_us: from.micros(),
        to_us: to.micros(),
        more: inside.len() > most,
    }
}

impl Handler for Target {
    fn hello(&self) -> pb::ServerHello {
        // A vault that was restarted knows none of our points: tell all of them again.
        for replica in self.estate.all() {
            replica.reported.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&Reported::default());
        }
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
        let replicas = self.estate.all().iter().map(|replica| self.report_replica(replica)).collect();
        let views = self.views.all().into_iter().map(|(view, machine, guest_running, follow)| {
            let status = follow.map(|follow| follow.source.status());
            let mut report = pb::ViewReport {
                view_id: view.to_string(),
                machine_id: machine.to_string(),
                serving: true,
                guest_running,
                ..Default::default()
            };
            if let Some(status) = status {
                report.mode = status.mode.name().into();
                report.mode_reason = status.reason;
                report.dirty_bytes = status.dirty_bytes;
                report.written_bytes_total = status.totals.written;
                report.newest_us = status.newest.1.micros();
            }
            report
        });
        server_message::Message::MasterTarget(pb::MasterTargetReport {
            load: Some(session::load(&self.config.dir)),
            replicas,
            views: views.collect(),
        })
    }

    async fn assigned(&self, message: vault_message::Message) {
        let vault_message::Message::MasterTarget(assignment) = message else { return };
        let estate = self.estate.clone();
        // Opens stores, which reads.
        if let Err(error) = tokio::task::spawn_blocking(move || estate.assign(&assignment)).await {
            tracing::error!(%error, "an assignment could not be taken");
        }
        self.report_now.notify_one();
    }

    async fn command(
        &self,
        command: pb::Command,
        progress: Progress,
    ) -> Result<command_result::Result, Fault> {
        let act = command
            .act
            .ok_or_else(|| Fault::new(FaultClass::Usage, "command.unknown", "an empty command"))?;
        // Views, guests and digests block: a thread of their own.
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.act(act, &progress))
            .await
            .map_err(|error| fault("command.died", format!("the command died: {error}")))?
    }
}
