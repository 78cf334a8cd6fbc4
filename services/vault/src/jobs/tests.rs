//! Every job through crashes, faults and repetition.
//!
//! A simulated process: the real store, engine and rows, servers that act in memory, and an interrupt that
//! ends the process at the nth write, effect or undo. For every n: end there, start a new process on the
//! same store, let it go on, and look at what is left. The world outlives the process, as servers do.

use super::engine;
use super::plan::JobKind;
use crate::access::{Operator, OperatorRole};
use crate::config::Thresholds;
use crate::coordination::reports;
use crate::coordination::sessions::{Hands, OnProgress, Sessions};
use crate::core::{About, Core, Peering};
use crate::estate::{agent_of, machine_of};
use crate::operator::orders;
use crate::store::inventory::{DiskRow, MachineRow, PolicyRow, ServerRow, SiteRow};
use crate::store::jobs::{JobRow, Params};
use crate::store::{Interrupt, Store, StoreError};
use crate::world::World;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{DiskId, JobId, MachineId, PolicyId, ServerId, SiteId, VaultId};
use continuum_model::job::JobState;
use continuum_model::policy::Policy;
use continuum_proto::v1 as pb;
use continuum_wire::peers::Peers;
use futures::future::BoxFuture;
use pb::command::Act;
use pb::command_result::Result as Answer;
use pb::order_request::Order;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const NAME: &str = "web-01";

fn ids() -> (SiteId, SiteId, PolicyId, ServerId, ServerId, MachineId) {
    let id = |n: u8| [n; 16];
    (
        SiteId::from_bytes(id(1)),
        SiteId::from_bytes(id(2)),
        PolicyId::from_bytes(id(3)),
        ServerId::from_bytes(id(4)),
        ServerId::from_bytes(id(5)),
        MachineId::from_bytes(id(6)),
    )
}

/// In memory where there is such a place: what is proven here is order and not the disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What servers keep. Outlives every process of the vault.
#[derive(Default)]
struct Servers {
    inner: Mutex<Kept>,
    /// Every act is sent twice: a server must not do it twice.
    repeats: bool,
}

#[derive(Default)]
struct Kept {
    replica: Option<u64>,
    views: BTreeMap<String, bool>,
    done: BTreeMap<String, Answer>,
    barriers: usize,
    /// The source takes no writes.
    stopped: bool,
    /// What was brought up takes no writes.
    drained: bool,
    fails: Option<usize>,
    acts: usize,
}

impl Servers {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act(&self, command: &pb::Command) -> Result<Answer, Fault> {
        let mut kept = self.kept();
        if let Some(answer) = kept.done.get(&command.id) {
            return Ok(answer.clone());
        }
        kept.acts += 1;
        if kept.fails == Some(kept.acts) {
            return Err(Fault::new(FaultClass::Failed, "simulated", "told to fail"));
        }
        let point = pb::Point { time_us: 1, kind: "crash".into(), position: 7, ..Default::default() };
        let preview = pb::PreviewReply { point: Some(point), ..Default::default() };
        let digests = || {
            let disk = pb::DiskDigest { index: 0, digest: "aa".into(), bytes_read: 1 };
            Answer::Digests(pb::Digests { disks: vec![disk], position: 7, time_us: 1 })
        };
        let nothing = || Answer::Done(pb::Done::default());
        let answer = match command
            .act
            .clone()
            .ok_or_else(|| Fault::new(FaultClass::Usage, "odd", "no act"))?
        {
            Act::ResolvePoint(_) => Answer::Resolved(pb::Resolved { preview: Some(preview) }),
            Act::OpenView(order) => {
                kept.views.entry(order.view_id).or_default();
                Answer::Opened(pb::Opened { disks: vec![pb::Disk::default()] })
            }
            Act::StartGuest(order) => {
                *kept
                    .views
                    .get_mut(&order.view_id)
                    .ok_or_else(|| Fault::new(FaultClass::NotFound, "odd", "no view"))? = true;
                nothing()
            }
            Act::ProbeGuest(order) => {
                let answered = kept.views.get(&order.view_id) == Some(&true);
                Answer::Probed(pb::Probed { probes: Vec::new(), answered })
            }
            Act::StopGuest(order) => {
                kept.views.entry(order.view_id).and_modify(|guest| *guest = false);
                nothing()
            }
            Act::CloseView(order) => {
                assert_ne!(kept.views.get(&order.view_id), Some(&true), "a view was closed under its guest");
                kept.views.remove(&order.view_id);
                nothing()
            }
            Act::FenceReplica(order) => {
                kept.replica = kept.replica.map(|epoch| epoch.max(order.epoch));
                nothing()
            }
            Act::RemoveReplica(_) => {
                kept.replica = None;
                nothing()
            }
            Act::SourceDigest(_) | Act::ReplicaDigest(_) => digests(),
            Act::ViewDigest(_) | Act::HomeDigest(_) => {
                assert!(kept.drained && kept.stopped, "what is compared still changes");
                digests()
            }
            Act::StopView(order) if order.release => {
                kept.drained = false;
                nothing()
            }
            Act::StopView(order) => {
                assert!(!kept.views.values().any(|guest| *guest), "drained under its guest");
                kept.drained = true;
                Answer::Barrier(pb::Barrier {
                    point_id: order.point_id,
                    sequence: 7,
                    time_us: 1,
                    consistent: true,
                    ..Default::default()
                })
            }
            Act::StopSource(order) if order.release => {
                assert!(!kept.views.values().any(|guest| *guest), "two copies would run");
                kept.stopped = false;
                nothing()
            }
            Act::StopSource(order) => {
                kept.stopped = true;
                Answer::Barrier(pb::Barrier {
                    point_id: order.point_id,
                    sequence: 7,
                    time_us: 1,
                    consistent: true,
                    ..Default::default()
                })
            }
            Act::MakeBarrier(order) => {
                kept.barriers += 1;
                Answer::Barrier(pb::Barrier {
                    point_id: order.point_id,
                    sequence: 7,
                    time_us: 1,
                    consistent: true,
                    ..Default::default()
                })
            }
            _ => nothing(),
        };
        kept.done.insert(command.id.clone(), answer.clone());
        Ok(answer)
    }
}

/// Servers under the process's interrupt: it may end before an act, or after it and before its answer.
struct SimulatedHands {
    servers: Arc<Servers>,
    process: Arc<Process>,
}

impl Hands for SimulatedHands {
    fn command(
        &self,
        _: ServerId,
        command: pb::Command,
        _: Duration,
        _: OnProgress,
    ) -> BoxFuture<'_, Result<Answer, Fault>> {
        Box::pin(async move {
            let died = |_| Fault::new(FaultClass::Failed, "dead", "the process died");
            self.process.pass("before an act").map_err(died)?;
            let answer = self.servers.act(&command);
            if self.servers.repeats {
                let _ = self.servers.act(&command);
            }
            self.process.pass("after an act").map_err(died)?;
            answer
        })
    }
}

/// One life of the vault's process: it ends at the nth place and does nothing more.
#[derive(Default)]
struct Process {
    passed: AtomicUsize,
    ends_at: usize,
    dead: AtomicBool,
}

impl Interrupt for Process {
    fn pass(&self, place: &'static str) -> Result<(), StoreError> {
        let at = self.passed.fetch_add(1, Ordering::SeqCst) + 1;
        if self.ends_at != 0 && at >= self.ends_at {
            self.dead.store(true, Ordering::SeqCst);
            return Err(StoreError::Interrupted(place));
        }
        Ok(())
    }
}

/// A process on the store in `dir`.
async fn process(dir: &Path, servers: &Arc<Servers>, life: &Arc<Process>) -> Arc<Core> {
    let store = Store::open(&dir.join("vault.db")).await.unwrap().interrupted_by(life.clone());
    let world = World::default();
    let about = About {
        vault: VaultId::from_bytes([9; 16]),
        name: "vault".into(),
        environment: "test".into(),
        run: "run".into(),
        started: world.now(),
        four_eyes: Vec::new(),
    };
    let sessions = Arc::new(Sessions::new(Duration::from_secs(5)));
    let stop = CancellationToken::new();
    let hands = Arc::new(SimulatedHands { servers: servers.clone(), process: life.clone() });
    let peering = Peering { sessions, hands, gate: Peers::default() };
    let core = Core::load(about, Thresholds::default(), store, world, peering, stop).await.unwrap();
    let (.., process_server, master_target, machine) = ids();
    for server in [process_server, master_target, agent_of(machine)] {
        if let Some(entry) = core.estate().servers.get_mut(&server) {
            entry.live.connected = true;
        }
    }
    report(&core, servers).await;
    core
}

/// What the servers report of themselves, as they are told to be.
async fn report(core: &Arc<Core>, servers: &Servers) {
    let (.., target, machine) = ids();
    let row = core.estate().machines.get(&machine).map(|entry| entry.row.clone());
    let Some(row) = row else { return };
    let replica = {
        let mut kept = servers.kept();
        // The target keeps what it is assigned, and would make it anew where it is missing.
        let assigned = crate::coordination::assignment::of(&core.estate(), target);
        let assigned = matches!(assigned, Some(pb::vault_message::Message::MasterTarget(told)) if !told.replicas.is_empty());
        if assigned {
            let epoch = kept.replica.map_or(row.epoch, |epoch| epoch.max(row.epoch));
            kept.replica = Some(epoch);
        }
        kept.replica
    };
    let told = crate::coordination::assignment::of(&core.estate(), agent_of(machine));
    let receiving = match told {
        Some(pb::vault_message::Message::Agent(told)) if told.receive => {
            servers.kept().stopped = true;
            Some(pb::Receiving {
                view_id: told.view_id,
                epoch: told.epoch,
                connected: true,
                whole: true,
                sequence: 7,
                ..Default::default()
            })
        }
        _ => None,
    };
    let replicate = row.protection.as_ref().is_some_and(|protection| protection.state.replicates());
    let agent = pb::AgentReport {
        mode: "data".into(),
        epoch: row.epoch,
        protected: replicate,
        stopped: servers.kept().stopped,
        receiving,
        initial_bytes_total: 1,
        initial_bytes_done: 1,
        ..Default::default()
    };
    reports::fold(core, agent_of(machine), pb::server_message::Message::Agent(agent)).await;
    let replicas = replica.map(|epoch| pb::ReplicaReport {
        machine_id: machine.to_string(),
        epoch,
        last_sequence: 100,
        newest_received_us: Some(core.world.now().micros()),
        newest_point_us: Some(core.world.now().micros()),
        ..Default::default()
    });
    let target_report =
        pb::MasterTargetReport { replicas: replicas.into_iter().collect(), ..Default::default() };
    reports::fold(core, target, pb::server_message::Message::MasterTarget(target_report)).await;
}

/// Drives a job as far as this process lives, while servers report.
async fn drive(core: &Arc<Core>, servers: &Arc<Servers>, id: JobId) -> Result<(), StoreError> {
    let reporting = async {
        loop {
            tokio::time::sleep(Duration::from_millis(2)).await;
            report(core, servers).await;
        }
    };
    tokio::select! {
        ended = engine::drive(core, id) => ended,
        () = reporting => unreachable!("reports never end"),
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("job {id} never ends: {:?}", core.store.job(id).await),
    }
}

/// A store with the servers and the machine, nothing protected.
async fn estate(dir: &Path) {
    let store = Store::open(&dir.join("vault.db")).await.unwrap();
    let (east, west, policy, process_server, master_target, machine) = ids();
    let world = World::default();
    let mut tx = store.begin().await.unwrap();
    for (id, name, recovery) in [(east, "east", false), (west, "west", true)] {
        tx.add_site(SiteRow { id, name: name.into(), fabric: "lab".into(), recovery }).await.unwrap();
    }
    tx.save_policy(PolicyRow { id: policy, name: "gold".into(), policy: Policy::default(), version: 1 })
        .await
        .unwrap();
    for (id, role, site) in [
        (process_server, "process-server", east),
        (master_target, "master-target", west),
        (agent_of(machine), "agent", east),
    ] {
        tx.save_server(ServerRow {
            id,
            role: role.into(),
            name: role.into(),
            site,
            version: String::new(),
            address: "127.0.0.1:1".into(),
            enrolled: world.now(),
            last_seen: None,
            certificate_expires: world.now(),
            revoked: false,
            denied_until: None,
        })
        .await
        .unwrap();
    }
    let disk = DiskRow { id: DiskId::from_bytes([7; 16]), index: 0, name: "disk0".into(), size_bytes: 1 };
    tx.add_machine(MachineRow {
        id: machine,
        version: 0,
        name: NAME.into(),
        site: east,
        fabric: "lab".into(),
        guest: "process".into(),
        epoch: 0,
        last_drill: None,
        last_drill_passed: false,
        disks: vec![disk],
        protection: None,
    })
    .await
    .unwrap();
    tx.commit().await.unwrap();
    store.close().await;
}

fn order_of(kind: JobKind) -> Order {
    match kind {
        JobKind::Protect => Order::Protect(pb::Protect::default()),
        JobKind::Unprotect => Order::Unprotect(pb::Unprotect::default()),
        JobKind::TestFailover => Order::TestFailover(pb::TestFailoverOrder::default()),
        JobKind::Cleanup => Order::Cleanup(pb::Cleanup::default()),
        JobKind::Failover => {
            Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: String::new() })
        }
        JobKind::Commit => Order::Commit(pb::Commit {}),
        JobKind::ChangePoint => Order::ChangePoint(pb::ChangePoint::default()),
        JobKind::CancelFailover => Order::CancelFailover(pb::CancelFailover {}),
        JobKind::Reprotect => Order::Reprotect(pb::Reprotect {}),
        JobKind::Failback => Order::Failback(pb::Failback { kind: "planned".into() }),
        JobKind::Verify => Order::Verify(pb::Verify::default()),
        JobKind::Bookmark => Order::Bookmark(pb::Bookmark::default()),
        JobKind::Resync => Order::Resync(pb::Resync { now: true }),
        JobKind::ApplyPlan => {
            let text = format!("name: {NAME}\ngroups:\n  - name: all\n    machines: [{NAME}]\n");
            Order::ApplyPlan(pb::ApplyPlan { text, dry_run: false })
        }
        JobKind::PlanDrill | JobKind::PlanCleanup | JobKind::PlanFailover => {
            let kind = kind.of_each().unwrap().name().into();
            Order::RunPlan(pb::RunPlan { plan: NAME.into(), kind, point: String::new() })
        }
        other => panic!("{} has no steps", other.name()),
    }
}

/// Which jobs must have succeeded before one of this kind.
const fn before(kind: JobKind) -> &'static [JobKind] {
    match kind {
        JobKind::Protect => &[],
        JobKind::Cleanup => &[JobKind::Protect, JobKind::TestFailover],
        JobKind::Commit | JobKind::ChangePoint | JobKind::CancelFailover => {
            &[JobKind::Protect, JobKind::Failover]
        }
        JobKind::Reprotect => &[JobKind::Protect, JobKind::Failover, JobKind::Commit],
        JobKind::Failback => &[JobKind::Protect, JobKind::Failover, JobKind::Commit, JobKind::Reprotect],
        JobKind::PlanDrill | JobKind::PlanFailover => &[JobKind::Protect, JobKind::ApplyPlan],
        JobKind::PlanCleanup => &[JobKind::Protect, JobKind::TestFailover, JobKind::ApplyPlan],
        _ => &[JobKind::Protect],
    }
}

async fn give(core: &Arc<Core>, kind: JobKind, planned: bool) -> JobRow {
    let key = format!("{}-{}", kind.name(), core.world.stamp().micros());
    let request = pb::OrderRequest {
        key,
        machine: NAME.into(),
        confirm: NAME.into(),
        order: Some(match order_of(kind) {
            Order::Failover(order) if planned => {
                Order::Failover(pb::FailoverOrder { kind: "planned".into(), ..order })
            }
            order => order,
        }),
        ..Default::default()
    };
    let by = Operator { name: "ada".into(), role: OperatorRole::Owner };
    let (id, _) = orders::record(core, &by, request).await.unwrap();
    core.store.job(id).await.unwrap().unwrap()
}

/// Where a world stands before the job: a folder with the store, and what the servers keep.
struct Scene {
    dir: tempfile::TempDir,
    servers: Arc<Servers>,
    job: JobId,
}

async fn scene(kind: JobKind, repeats: bool) -> Scene {
    scene_of(kind, false, repeats).await
}

async fn scene_of(kind: JobKind, planned: bool, repeats: bool) -> Scene {
    let dir = folder();
    estate(dir.path()).await;
    let servers = Arc::new(Servers { repeats, ..Servers::default() });
    let core = process(dir.path(), &servers, &Arc::default()).await;
    for earlier in before(kind) {
        let job = give(&core, *earlier, false).await;
        drive(&core, &servers, job.id).await.unwrap();
        assert_eq!(core.store.job(job.id).await.unwrap().unwrap().state, JobState::Succeeded);
    }
    let job = give(&core, kind, planned).await.id;
    core.store.close().await;
    Scene { dir, servers, job }
}

/// The same scene again, from copies: one preparation serves every crash.
async fn again(scene: &Scene) -> Scene {
    let dir = folder();
    std::fs::copy(scene.dir.path().join("vault.db"), dir.path().join("vault.db")).unwrap();
    let from = scene.servers.kept();
    let kept = Kept {
        replica: from.replica,
        views: from.views.clone(),
        done: from.done.clone(),
        barriers: from.barriers,
        stopped: from.stopped,
        drained: from.drained,
        fails: None,
        acts: 0,
    };
    let servers = Arc::new(Servers { inner: Mutex::new(kept), repeats: scene.servers.repeats });
    Scene { dir, servers, job: scene.job }
}

/// A drill or failover that is over left one report, in a chain that holds; nothing else did.
async fn check_reports(core: &Arc<Core>, job: &JobRow, why: &str) {
    let rows = core.store.reports(100).await.unwrap();
    let expected = usize::from(crate::report::is_reported(job));
    let id = job.id.to_string();
    assert_eq!(rows.iter().filter(|row| row.job == id).count(), expected, "{why}: reports of {id}");
    let mut before: Option<continuum_model::report::Report> = None;
    for row in rows.iter().rev() {
        let row = core.store.report(&row.job).await.unwrap().unwrap();
        let report = continuum_model::report::Report::read(&row.body).unwrap();
        assert_eq!((report.sequence, &report.digest), (row.sequence, &row.digest), "{why}");
        match &before {
            Some(before) => assert_eq!(report.follows(before), Ok(()), "{why}"),
            None => assert_eq!((report.sequence, report.previous.as_str()), (1, ""), "{why}"),
        }
        if report.run == id {
            assert_eq!(report.outcome, job.state.name(), "{why}");
            assert_eq!(report.passed, report.outcome == "succeeded", "{why}: {report:?}");
            assert_eq!(report.machines.len(), 1, "{why}: {report:?}");
        }
        before = Some(report);
    }
}

/// What must hold when the job is over, however it ended.
async fn check(kind: JobKind, core: &Arc<Core>, scene: &Scene, why: &str) -> JobState {
    let job = core.store.job(scene.job).await.unwrap().unwrap();
    let row = core.estate().machines.get(&ids().5).unwrap().row.clone();
    let protection = row.protection.as_ref();
    let state = protection.map_or("unprotected", |protection| protection.state.name());
    let test = protection.map_or("none", |protection| protection.test.name());
    check_reports(core, &job, why).await;
    let kept = scene.servers.kept();
    let guests: Vec<bool> = kept.views.values().copied().collect();
    let done = matches!(job.state, JobState::Succeeded | JobState::Warnings);
    let stopped = match kind {
        // What was reversed and is given up stays stopped: the machine is elsewhere.
        JobKind::Reprotect => kept.stopped || done,
        // An agent that did not answer lets its machine write when it hears of the new epoch.
        JobKind::Failback if job.state == JobState::Warnings => kept.stopped,
        JobKind::Failback => !done,
        _ => job.params.planned && done,
    };
    assert!(!kept.drained || done, "{why}: what runs at the recovery site takes no writes");
    assert_eq!(kept.stopped, stopped, "{why}: whether the source may write: {job:?}");
    if kind == JobKind::PlanDrill {
        let drilled = core.estate().plans.get(NAME).and_then(|plan| plan.last_drill);
        let passed = drilled.map(|drill| drill.passed);
        assert_eq!(passed, (job.state == JobState::Succeeded).then_some(true), "{why}");
    }
    // A run of a plan leaves what the jobs of its machines leave.
    let expected: (&str, &str, &[bool], bool) = match (kind.of_each().unwrap_or(kind), job.state) {
        (JobKind::Protect | JobKind::Verify | JobKind::Bookmark | JobKind::Resync, JobState::Succeeded)
        // The proof could not be stored at the target.
        | (JobKind::Verify, JobState::Warnings) => ("protected", "none", &[], true),
        (JobKind::Protect, JobState::Failed) => ("enabling-failed", "none", &[], true),
        (JobKind::Protect, JobState::Cancelled) => ("unprotected", "none", &[], false),
        (JobKind::Unprotect, JobState::Succeeded) => ("unprotected", "none", &[], false),
        (JobKind::Unprotect, JobState::Failed) => ("disabling", "none", &[], true),
        (JobKind::TestFailover, JobState::Succeeded | JobState::Warnings) => {
            ("protected", "running", &[true], true)
        }
        (JobKind::TestFailover | JobKind::Failover, JobState::Failed | JobState::Cancelled) => {
            ("protected", "none", &[], true)
        }
        (JobKind::Cleanup, JobState::Succeeded) => ("protected", "none", &[], true),
        (JobKind::Failover, JobState::Succeeded) => ("commit-pending", "none", &[true], true),
        (JobKind::Commit, JobState::Succeeded) => ("committed", "none", &[true], true),
        (JobKind::Commit, JobState::Failed) => ("commit-pending", "none", &[true], true),
        (JobKind::ChangePoint, JobState::Succeeded) => ("commit-pending", "none", &[false, true], true),
        (JobKind::ChangePoint | JobKind::CancelFailover, JobState::Failed | JobState::Cancelled) => {
            ("commit-pending", "none", &[true], true)
        }
        // Whether the reports came by that say it is whole again.
        (JobKind::CancelFailover, JobState::Succeeded) if state == "resync" => ("resync", "none", &[], true),
        (JobKind::CancelFailover | JobKind::Failback, JobState::Succeeded) => ("protected", "none", &[], true),
        // What could not be removed at the recovery site stays there, stopped.
        (JobKind::CancelFailover | JobKind::Failback, JobState::Warnings) => {
            assert!(matches!(state, "resync" | "protected") && !guests.contains(&true), "{why}: {state} {guests:?}");
            return job.state;
        }
        (JobKind::Reprotect, JobState::Succeeded) => ("reversed", "none", &[true], true),
        (JobKind::Reprotect, JobState::Failed | JobState::Cancelled) => ("committed", "none", &[true], true),
        (JobKind::Failback, JobState::Failed | JobState::Cancelled) => ("reversed", "none", &[true], true),
        (JobKind::Verify | JobKind::Bookmark | JobKind::Resync, JobState::Failed | JobState::Cancelled) => {
            ("protected", "none", &[], true)
        }
        (JobKind::Cleanup, JobState::Failed | JobState::Warnings) => {
            assert_eq!((state, test), ("protected", "failed"), "{why}");
            return job.state;
        }
        other => panic!("{why}: {other:?} {:?}", job.fault),
    };
    assert_eq!((state, test, guests.as_slice()), (expected.0, expected.1, expected.2), "{why}: {job:?}");
    if kind != JobKind::Protect || job.state != JobState::Failed {
        assert_eq!(kept.replica.is_some(), expected.3, "{why}: the replica");
    }
    if let Some(epoch) = kept.replica
        && protection.is_some()
    {
        assert!(epoch <= row.epoch, "{why}: the target knows an epoch that the vault did not issue");
    }
    job.state
}

const SAGAS: [JobKind; 16] = [
    JobKind::Protect,
    JobKind::Unprotect,
    JobKind::TestFailover,
    JobKind::Cleanup,
    JobKind::Failover,
    JobKind::Commit,
    JobKind::ChangePoint,
    JobKind::CancelFailover,
    JobKind::Reprotect,
    JobKind::Failback,
    JobKind::Verify,
    JobKind::Bookmark,
    JobKind::Resync,
    JobKind::PlanDrill,
    JobKind::PlanCleanup,
    JobKind::PlanFailover,
];

/// What a start does for the jobs that a run of a plan ordered; the run itself is driven by the test.
fn resume_others(core: &Arc<Core>, but: JobId) {
    let open: Vec<JobId> = {
        let estate = core.estate();
        let open = estate.jobs.values().map(|entry| &entry.row).filter(|job| !job.state.is_over());
        open.map(|job| job.id).filter(|id| *id != but).collect()
    };
    open.into_iter().for_each(|id| engine::begin(core, id));
}

/// Ends the process at every place in turn; the next one goes on. `prepare` may make servers fail.
async fn crash_everywhere(
    kind: JobKind,
    prepare: impl Fn(&Scene),
    cancel: bool,
) -> (usize, BTreeSet<&'static str>) {
    crash_everywhere_from(scene(kind, false).await, kind, prepare, cancel).await
}

async fn crash_everywhere_from(
    prepared: Scene,
    kind: JobKind,
    prepare: impl Fn(&Scene),
    cancel: bool,
) -> (usize, BTreeSet<&'static str>) {
    let mut ends = BTreeSet::new();
    for ends_at in 1.. {
        let scene = again(&prepared).await;
        prepare(&scene);
        let life = Arc::new(Process { ends_at, ..Process::default() });
        let core = process(scene.dir.path(), &scene.servers, &life).await;
        // Whichever of its tasks was at that place: the whole process ends.
        let death = async {
            while !life.dead.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = drive(&core, &scene.servers, scene.job) => {}
            () = death => {}
        }
        let died = life.dead.load(Ordering::SeqCst);
        core.store.close().await;
        let next = process(scene.dir.path(), &scene.servers, &Arc::default()).await;
        if cancel && died {
            let mut tx = next.store.begin().await.unwrap();
            let mut job = tx.job(scene.job).await.unwrap().unwrap();
            if !job.state.is_over() {
                job.cancel = true;
                tx.save_job(job).await.unwrap();
                next.commit(tx).await.unwrap();
            }
        }
        resume_others(&next, scene.job);
        drive(&next, &scene.servers, scene.job).await.unwrap();
        let why = format!("{} ended at place {ends_at}", kind.name());
        ends.insert(check(kind, &next, &scene, &why).await.name());
        next.store.close().await;
        if !died {
            return (ends_at - 1, ends);
        }
    }
    unreachable!("a job has an end")
}

#[tokio::test]
async fn a_process_that_dies_anywhere_finishes_every_job_in_its_next_life() {
    for kind in SAGAS {
        let (places, ends) = crash_everywhere(kind, |_| {}, false).await;
        // Two for each write, two for each effect: fewer would mean that the interrupt did not fire.
        assert!(
            places >= 4 * kind.steps_of(&Params::default()).len(),
            "{}: only {places} places",
            kind.name()
        );
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["succeeded"], "{}", kind.name());
    }
}

#[tokio::test]
async fn a_job_that_fails_anywhere_and_dies_anywhere_leaves_the_old_state_or_says_what_is_left() {
    // Their last act but the proof: everything before it has to be taken back.
    for (kind, fails) in [
        (JobKind::TestFailover, 4),
        (JobKind::Failover, 5),
        (JobKind::ChangePoint, 5),
        (JobKind::CancelFailover, 1),
        (JobKind::Failback, 4),
    ] {
        let (places, ends) =
            crash_everywhere(kind, |scene| scene.servers.kept().fails = Some(fails), false).await;
        let least = if kind == JobKind::CancelFailover { 10 } else { 30 };
        assert!(places > least && ends.contains("failed"), "{}: {places} places, {ends:?}", kind.name());
    }
}

#[tokio::test]
async fn a_planned_failover_ends_on_one_side_or_the_other_and_the_source_writes_only_on_its_own() {
    let planned = || scene_of(JobKind::Failover, true, false);
    let (places, ends) = crash_everywhere_from(planned().await, JobKind::Failover, |_| {}, false).await;
    assert!(places > 30, "only {places} places");
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["succeeded"]);
    let (_, ends) = crash_everywhere_from(planned().await, JobKind::Failover, |_| {}, true).await;
    assert!(ends.contains("cancelled") && ends.contains("succeeded"), "{ends:?}");
    for fails in 1..20 {
        let scene = planned().await;
        scene.servers.kept().fails = Some(fails);
        let core = process(scene.dir.path(), &scene.servers, &Arc::default()).await;
        drive(&core, &scene.servers, scene.job).await.unwrap();
        check(JobKind::Failover, &core, &scene, &format!("planned, failed at act {fails}")).await;
        let fired = scene.servers.kept().acts >= fails;
        core.store.close().await;
        if !fired {
            assert!(fails > 5, "only {fails} acts");
            return;
        }
    }
}

#[tokio::test]
async fn every_act_of_every_job_may_fail() {
    for kind in SAGAS {
        let prepared = scene(kind, false).await;
        let mut failed = 0;
        for fails in 1..20 {
            let scene = again(&prepared).await;
            scene.servers.kept().fails = Some(fails);
            let core = process(scene.dir.path(), &scene.servers, &Arc::default()).await;
            drive(&core, &scene.servers, scene.job).await.unwrap();
            let state = check(kind, &core, &scene, &format!("{} failed at act {fails}", kind.name())).await;
            let fired = scene.servers.kept().acts >= fails;
            core.store.close().await;
            if !fired {
                break;
            }
            // A proof that could not be stored is a warning, everything else a failure.
            failed += usize::from(matches!(state, JobState::Failed | JobState::Warnings));
        }
        // Protecting and reversing ask nothing of servers but what they report.
        assert!(failed >= 1 || matches!(kind, JobKind::Protect | JobKind::Reprotect), "{}", kind.name());
    }
}

#[tokio::test]
async fn a_cancel_after_a_crash_anywhere_takes_everything_back_or_comes_too_late() {
    for kind in [
        JobKind::Protect,
        JobKind::TestFailover,
        JobKind::Failover,
        JobKind::ChangePoint,
        JobKind::CancelFailover,
        JobKind::Reprotect,
        JobKind::Failback,
    ] {
        let (_, ends) = crash_everywhere(kind, |_| {}, true).await;
        assert!(ends.contains("cancelled") && ends.contains("succeeded"), "{}: {ends:?}", kind.name());
    }
}

#[tokio::test]
async fn servers_that_are_asked_everything_twice_do_it_once() {
    for kind in SAGAS {
        let scene = scene(kind, true).await;
        let core = process(scene.dir.path(), &scene.servers, &Arc::default()).await;
        drive(&core, &scene.servers, scene.job).await.unwrap();
        check(kind, &core, &scene, kind.name()).await;
        assert!(kind != JobKind::Bookmark || scene.servers.kept().barriers == 1);
        assert_eq!(machine_of(agent_of(ids().5)), ids().5);
    }
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_given_everything_again() {
    use pb::watch_event::Event;
    use tokio_stream::StreamExt;
    let dir = folder();
    estate(dir.path()).await;
    let core = process(dir.path(), &Arc::default(), &Arc::default()).await;
    let mut slow = crate::operator::watch::watch(&core, pb::WatchRequest::default());
    let mut begun = 0;
    let mut last = 0;
    while let Some(Ok(event)) = slow.next().await {
        last = event.sequence;
        if matches!(event.event, Some(Event::SnapshotEnd(_))) {
            break;
        }
    }
    for id in 1..=20_000u64 {
        core.hub.put(pb::entity::Entity::Event(pb::Event { id, ..Default::default() }));
    }
    let (newest, _) = core.hub.snapshot();
    while last < newest {
        let event = slow.next().await.unwrap().unwrap();
        assert!(event.sequence >= last, "order holds");
        last = event.sequence;
        begun += usize::from(matches!(event.event, Some(Event::SnapshotBegin(_))));
    }
    assert_eq!(begun, 1, "it was cut over to a fresh snapshot, once");
}
