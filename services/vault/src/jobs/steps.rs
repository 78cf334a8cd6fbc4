//! What each step does to the world, and how it is taken back.
//!
//! A step asks servers for acts and waits for what they report; it writes nothing itself. What it found out
//! goes into the job's facts, what it changes into [`Done::writes`]; the engine stores both with its end.
//! Every step may run again from its beginning.

use super::plan::{JobKind, Step, Write};
use crate::core::Core;
use crate::estate::{Estate, MachineEntry, Progress, agent_of};
use crate::project;
use crate::store::inventory::{BroughtUp, MachineRow, PointRow, ProbeRow, Protection};
use crate::store::jobs::{Facts, JobRow, Verified};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_model::point::PointKind;
use continuum_model::protection::{Event, FailoverKind, ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::command::Act;
use pb::command_result::Result as Answer;
use std::sync::Arc;
use std::time::Duration;

/// Deadlines of single acts.
const QUICK: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_secs(600);
const DIGEST: Duration = Duration::from_secs(4 * 3600);
/// A guest that does not answer by then has failed its probes.
const PROBE_SECONDS: u32 = 120;
/// How long a failover to the newest moment waits for what the process server still holds.
const RECEIVED_PATIENCE: Duration = Duration::from_secs(30);

/// What a step that ended well leaves.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) detail: String,
    /// Something to look at.
    pub(crate) warning: bool,
    pub(crate) writes: Vec<Write>,
}

impl Done {
    fn said(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..Self::default() }
    }
    fn warning(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), warning: true, ..Self::default() }
    }
    fn with(mut self, writes: Vec<Write>) -> Self {
        self.writes = writes;
        self
    }
}

/// One run of one step.
pub(crate) struct Ctx<'a> {
    core: &'a Arc<Core>,
    job: &'a JobRow,
    step: Step,
    /// Starts as what earlier steps found out; kept when the step ends, however it ends.
    pub(crate) facts: Facts,
}

/// Does a step.
pub(crate) async fn act(ctx: &mut Ctx<'_>) -> Result<Done, Fault> {
    match ctx.step {
        Step::CheckProtect => ctx.check_protect().await,
        Step::NewEpoch => Ok(Done::said("a new epoch").with(vec![Write::Epoch])),
        Step::Relate => ctx.relate().await,
        Step::InitialReplication => ctx.initial_replication().await,
        Step::FirstPoint => {
            Ok(Done::said("the first recovery point exists")
                .with(vec![Write::MoveIfLegal(Event::FirstPoint)]))
        }
        Step::StopReplication => ctx.stop_replication().await,
        Step::BringDown => ctx.bring_down().await,
        Step::RemoveReplica => ctx.remove_replica().await,
        Step::Forget => ctx.forget(),
        Step::CheckTarget => ctx.check_target().await,
        Step::ProcessReceived => ctx.process_received().await,
        Step::FenceEpoch => {
            Ok(Done::said("a new epoch: the source's is over").with(vec![Write::Epoch, Write::Fenced(true)]))
        }
        Step::Fence => ctx.fence().await,
        Step::ResolvePoint => ctx.resolve_point().await,
        Step::OpenView => ctx.open_view().await,
        Step::StartGuest => ctx.start_guest().await,
        Step::Probe => ctx.probe().await,
        Step::Running => ctx.running().await,
        Step::StopGuest => ctx.stop_guest().await,
        Step::CloseView => ctx.close_view().await,
        Step::Clean => Ok(Done::said("nothing is left of the test failover")
            .with(vec![Write::Test(TestState::None), Write::TestRun(None)])),
        Step::CommitPending => ctx.commit_pending(),
        Step::DropPoints => ctx.drop_points().await,
        Step::Committed => {
            Ok(Done::said("final").with(vec![Write::Move(Event::Commit), Write::ForgetPoints]))
        }
        Step::SourceDigest => ctx.source_digest().await,
        Step::AwaitTarget => ctx.await_target().await,
        Step::ReplicaDigest => ctx.replica_digest().await,
        Step::Compare => ctx.compare().await,
        Step::Barrier => ctx.barrier().await,
        Step::Listed => ctx.listed(),
        Step::Mark => ctx.mark().await,
    }
}

/// Whether a step of this kind leaves something in the world that must be taken back.
pub(crate) const fn has_undo(kind: JobKind, step: Step) -> bool {
    match kind {
        // From its epoch on the target is told to keep a replica.
        JobKind::Protect => matches!(step, Step::NewEpoch),
        JobKind::TestFailover | JobKind::Failover => matches!(step, Step::OpenView | Step::StartGuest),
        _ => false,
    }
}

/// Takes a step back. What is not there counts as taken back.
pub(crate) async fn undo(ctx: &mut Ctx<'_>, kind: JobKind) -> Result<(), Fault> {
    match ctx.step {
        Step::OpenView => ctx.close_view().await.map(drop),
        Step::StartGuest => ctx.stop_guest().await.map(drop),
        Step::NewEpoch if kind == JobKind::Protect => ctx.remove_replica().await.map(drop),
        _ => Ok(()),
    }
}

impl<'a> Ctx<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, job: &'a JobRow, step: Step) -> Self {
        Self { core, job, step, facts: job.facts.clone() }
    }

    fn machine_id(&self) -> Result<MachineId, Fault> {
        self.job.machine.ok_or_else(|| odd("the job names no machine"))
    }

    /// The machine's row as it is now.
    fn machine(&self) -> Result<MachineRow, Fault> {
        let id = self.machine_id()?;
        let estate = self.core.estate();
        estate
            .machines
            .get(&id)
            .map(|entry| entry.row.clone())
            .ok_or_else(|| odd("the machine is not registered any more"))
    }

    fn protection(&self) -> Result<(MachineRow, Protection), Fault> {
        let mut row = self.machine()?;
        let protection = row.protection.take().ok_or_else(|| odd("the machine is not protected any more"))?;
        Ok((row, protection))
    }

    fn tell(&self, fraction: Option<f64>, detail: impl Into<String>, waiting: bool) {
        let fraction = fraction.filter(|fraction| (0.0..=1.0).contains(fraction));
        self.core.progress(self.job.id, Progress { fraction, detail: detail.into(), waiting });
    }

    /// Asks a server for one act of this step. `part` tells several acts of one step apart.
    async fn ask(&self, server: ServerId, part: &str, act: Act, deadline: Duration) -> Result<Answer, Fault> {
        let command = pb::Command {
            id: format!("{}/{}/{}{part}", self.job.id, self.job.attempt, self.step.name()),
            act: Some(act),
        };
        let (core, job) = (self.core.clone(), self.job.id);
        let progress = Arc::new(move |fraction: f64, detail: &str| {
            let fraction = Some(fraction).filter(|fraction| (0.0..=1.0).contains(fraction));
            core.progress(job, Progress { fraction, detail: shown(detail), waiting: false });
        });
        self.core.hands.command(server, command, deadline, progress).await
    }

    /// Waits until a server has a session, no longer than `patience`.
    async fn reach(&self, server: ServerId, what: &str, patience: Duration) -> Result<(), Fault> {
        let name = self.core.estate().server_name(server);
        let connected = self.core.until(|estate| estate.connected(server).then_some(()));
        if tokio::time::timeout(patience, connected).await.is_ok() {
            return Ok(());
        }
        Err(Fault::new(
            FaultClass::NotConnected,
            "server.away",
            format!("{what} {} is not connected to the vault", shown(&name)),
        )
        .affects("this job")
        .spares("what that server was last told goes on")
        .remedy("see `continuum get servers`; start it or mend the network, then retry the job"))
    }

    async fn check_protect(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        if row.disks.is_empty() {
            return Err(Fault::new(
                FaultClass::NotReady,
                "machine.no-disks",
                "the machine has told of no disks",
            )
            .affects("this machine")
            .spares("all others")
            .remedy("see that its agent serves at least one disk, then retry the job"));
        }
        let patience = self.core.patience();
        self.reach(agent_of(row.id), "the agent of", patience).await?;
        self.reach(protection.process_server, "process server", patience).await?;
        self.reach(protection.master_target, "master target", patience).await?;
        Ok(Done::said("agent, process server and master target are there"))
    }

    /// The target must know of the replica before the source ships anything.
    async fn relate(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        self.tell(None, "waiting for the target to open the replica", false);
        let opened = self.core.until(|estate| {
            let (report, _) = estate.machines.get(&row.id)?.live.replica.as_ref()?;
            (report.epoch >= row.epoch).then(|| report.fault.clone())
        });
        match tokio::time::timeout(QUICK.min(self.core.patience() * 3), opened).await {
            Ok(None) => {}
            Ok(Some(fault)) => return Err(continuum_wire::grpc::fault_from_proto(&fault)),
            Err(_) => {
                self.reach(protection.master_target, "master target", Duration::ZERO).await?;
                return Err(Fault::new(
                    FaultClass::Failed,
                    "replica.not-opened",
                    "the master target did not report the replica as open",
                )
                .affects("this machine")
                .spares("all others")
                .remedy("look at the master target's log and its free space, then retry the job"));
            }
        }
        let related = if matches!(protection.state, ProtectionState::Enabling) {
            vec![Write::Move(Event::Related)]
        } else {
            Vec::new()
        };
        Ok(Done::said("the replica is open, the source ships").with(related))
    }

    async fn initial_replication(&self) -> Result<Done, Fault> {
        let id = self.machine_id()?;
        let sent = self.core.until(|estate| initial_done(estate.machines.get(&id)?));
        // Told from beside the wait: `until` holds the estate while it looks.
        tokio::pin!(sent);
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                done = &mut sent => return done.map(|bytes| Done::said(format!("{} copied", continuum_model::units::Bytes(bytes)))),
                _ = pace.tick() => {
                    let progress = {
                        let estate = self.core.estate();
                        estate.machines.get(&id).map(|entry| initial_progress(entry, &estate))
                    };
                    if let Some(progress) = progress {
                        self.core.progress(self.job.id, progress);
                    }
                }
            }
        }
    }

    async fn stop_replication(&self) -> Result<Done, Fault> {
        let (row, _) = self.protection()?;
        let agent = agent_of(row.id);
        if !self.core.estate().connected(agent) {
            return Ok(Done::warning("the agent is not connected: it is told when it comes back"));
        }
        let stopped = self.core.until(|estate| {
            let entry = estate.machines.get(&row.id)?;
            let away = !estate.connected(agent);
            let told = entry.live.agent.as_ref().is_some_and(|(report, _)| !report.protected);
            (away || told).then_some(!away)
        });
        match tokio::time::timeout(self.core.patience(), stopped).await {
            Ok(true) => Ok(Done::said("the source ships no more")),
            Ok(false) | Err(_) => {
                Ok(Done::warning("the agent did not confirm: it is told again when it comes back"))
            }
        }
    }

    /// A machine that runs at the recovery site on this replica goes with it, unless the replica is kept.
    async fn bring_down(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(run) = protection.failed_over.filter(|_| !self.job.params.keep_replica) else {
            return Ok(Done::said("nothing was brought up"));
        };
        let view_id = run.view.to_string();
        self.ask(
            protection.master_target,
            "/guest",
            Act::StopGuest(pb::StopGuest { view_id: view_id.clone() }),
            QUICK,
        )
        .await?;
        self.ask(protection.master_target, "/view", Act::CloseView(pb::CloseView { view_id }), QUICK).await?;
        Ok(Done::said("the machine at the recovery site was stopped").with(vec![Write::BroughtDown]))
    }

    async fn remove_replica(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        if self.job.params.keep_replica {
            self.facts.note = "the replica and its recovery points are kept".into();
            return Ok(Done::said("kept, as ordered"));
        }
        let act = Act::RemoveReplica(pb::RemoveReplica { machine_id: row.id.to_string() });
        let answer = self.ask(protection.master_target, self.undoing(), act, SLOW).await?;
        let detail = said(&answer, "the replica was removed");
        self.facts.note = format!("removed: {detail}");
        Ok(Done::said(detail))
    }

    fn forget(&self) -> Result<Done, Fault> {
        let points = !self.job.params.keep_replica;
        Ok(Done::said("the machine is no longer protected").with(vec![Write::Forget { points }]))
    }

    async fn check_target(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        self.reach(protection.master_target, "master target", self.core.patience()).await?;
        let estate = self.core.estate();
        let fault =
            estate.machines.get(&row.id).and_then(|entry| entry.live.replica.as_ref()?.0.fault.clone());
        drop(estate);
        Ok(match fault {
            // Points before the trouble stay good: the target decides when it resolves the point.
            Some(fault) => Done::warning(format!("the replica takes no changes: {}", shown(&fault.message))),
            None => Done::said("the master target is there"),
        })
    }

    /// Latest means: what was received counts, so let it arrive first. Bounded, because a source that goes
    /// on writing never runs dry.
    async fn process_received(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        if !self.job.params.point.is_empty() && self.job.params.point != "latest" {
            return Ok(Done::said("not needed for this point"));
        }
        let asked = self.job.created;
        let arrived = self.core.until(|estate| {
            if !estate.connected(protection.process_server) {
                return Some("the process server is away: what it still holds is not waited for");
            }
            let live = &estate.machines.get(&row.id)?.live;
            let empty = live.relay.as_ref().is_none_or(|(relay, _)| relay.backlog_bytes == 0);
            let newest = live.replica.as_ref().and_then(|(replica, _)| replica.newest_received_us);
            let caught_up = newest.is_some_and(|newest| newest >= asked.micros());
            (empty || caught_up).then_some(if caught_up {
                "everything up to the order has arrived"
            } else {
                "nothing waits on its way"
            })
        });
        match tokio::time::timeout(RECEIVED_PATIENCE, arrived).await {
            Ok(how) => Ok(Done::said(how)),
            Err(_) => Ok(Done::warning(format!(
                "the process server still held changes after {} s; they are not waited for longer",
                RECEIVED_PATIENCE.as_secs()
            ))),
        }
    }

    async fn fence(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::FenceReplica(pb::FenceReplica { machine_id: row.id.to_string(), epoch: row.epoch });
        self.ask(protection.master_target, "", act, QUICK).await?;
        Ok(Done::said(format!("the target takes nothing below epoch {}", row.epoch)))
    }

    async fn resolve_point(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let point = if self.job.params.point.is_empty() { "latest" } else { &self.job.params.point };
        let act =
            Act::ResolvePoint(pb::ResolvePoint { machine_id: row.id.to_string(), point: point.to_owned() });
        let Answer::Resolved(pb::Resolved { preview: Some(preview) }) =
            self.ask(protection.master_target, "", act, QUICK).await?
        else {
            return Err(odd("the target named no point"));
        };
        let Some(found) = preview.point.as_ref() else { return Err(odd("the target named no point")) };
        let point = project::point_from(found);
        let detail = format!("{} point of {}", point.kind.name(), point.time);
        self.facts.position = Some(point.position);
        self.facts.point = Some(point);
        self.facts.loss_seconds = Some(preview.loss_seconds);
        self.facts.loss_bytes = Some(preview.loss_bytes);
        self.facts.note = preview.gap.as_ref().map(|gap| note_of_gap(gap, "asked for")).unwrap_or_default();
        Ok(Done { warning: preview.gap.is_some(), ..Done::said(detail) })
    }

    fn view(&self) -> Result<String, Fault> {
        self.facts.view.map(|view| view.to_string()).ok_or_else(|| odd("the job has no view"))
    }

    async fn open_view(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::OpenView(pb::OpenView {
            machine_id: row.id.to_string(),
            view_id: self.view()?,
            position: self.facts.position.ok_or_else(|| odd("no point was resolved"))?,
            keep: self.kind() == Some(JobKind::Failover),
        });
        let Answer::Opened(opened) = self.ask(protection.master_target, "", act, QUICK).await? else {
            return Err(odd("the target did not say where the disks are"));
        };
        self.facts.disks = opened.disks.iter().map(project::served_from).collect();
        Ok(Done::said(format!("{} disk(s) served as of the point", self.facts.disks.len())))
    }

    fn kind(&self) -> Option<JobKind> {
        JobKind::named(&self.job.kind)
    }

    async fn start_guest(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::StartGuest(pb::StartGuest {
            view_id: self.view()?,
            guest: row.guest.clone(),
            machine_name: row.name.clone(),
            isolated: self.kind() == Some(JobKind::TestFailover),
        });
        let answer = self.ask(protection.master_target, "", act, QUICK).await?;
        Ok(Done::said(said(&answer, "started")))
    }

    async fn probe(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::ProbeGuest(pb::ProbeGuest { view_id: self.view()?, timeout_seconds: PROBE_SECONDS });
        let deadline = Duration::from_secs(u64::from(PROBE_SECONDS)) + QUICK;
        let Answer::Probed(probed) = self.ask(protection.master_target, "", act, deadline).await? else {
            return Err(odd("the target did not say what the probes found"));
        };
        self.facts.probes = probed
            .probes
            .iter()
            .map(|probe| ProbeRow {
                name: probe.name.clone(),
                passed: probe.passed,
                detail: probe.detail.clone(),
            })
            .collect();
        let failed = probed.probes.iter().find(|probe| !probe.passed);
        if !probed.answered || failed.is_some() {
            let why = failed.map_or("it did not answer".to_owned(), |probe| {
                format!("{}: {}", shown(&probe.name), shown(&probe.detail))
            });
            return Err(Fault::new(
                FaultClass::Failed,
                "probe.failed",
                format!("{} was brought up, and its probes failed: {why}", shown(&row.name)),
            )
            .affects("this machine as brought up")
            .spares("the source, its replication and all recovery points")
            .remedy("try an earlier recovery point, or look at it with --keep-on-failure"));
        }
        let since = if self.job.attempt <= 1 {
            self.job.created
        } else {
            self.job.started.unwrap_or(self.job.created)
        };
        let seconds = self.core.world.now().since(since).as_secs_f64();
        self.facts.rto_seconds = Some(seconds);
        Ok(Done::said(format!("{} probe(s) passed {seconds:.1} s after the order", self.facts.probes.len())))
    }

    fn brought_up(&self, kind: Option<FailoverKind>) -> Result<Box<BroughtUp>, Fault> {
        Ok(Box::new(BroughtUp {
            job: self.job.id,
            view: self.facts.view.ok_or_else(|| odd("the job has no view"))?,
            kind,
            at: self.core.world.now(),
            point: self.facts.point.clone(),
            disks: self.facts.disks.clone(),
            probes: self.facts.probes.clone(),
        }))
    }

    async fn running(&mut self) -> Result<Done, Fault> {
        let mut writes = vec![
            Write::Test(TestState::Running),
            Write::TestRun(Some(self.brought_up(None)?)),
            Write::Drill { passed: true },
        ];
        let mut done = Done::said("running; clean it up when you are done");
        if let Some(point) = self.facts.point.as_mut().filter(|point| point.id.is_some()) {
            point.booted = Some(true);
            point.probed = Some(true);
            let point = point.clone();
            writes.push(Write::Point(Box::new(point.clone())));
            // The proof is a bonus: the drill stands without it.
            if let Err(fault) = self.mark_point(&point, None).await {
                done = Done::warning(format!(
                    "running; the proof was not stored at the target: {}",
                    fault.message
                ));
            }
        }
        Ok(done.with(writes))
    }

    async fn mark_point(&self, point: &PointRow, pinned: Option<bool>) -> Result<(), Fault> {
        let (row, protection) = self.protection()?;
        let proofs =
            pb::Proofs { booted: point.booted, probed: point.probed, digest_equal: point.digest_equal };
        let act = Act::MarkPoint(pb::MarkPoint {
            machine_id: row.id.to_string(),
            point_id: point.id.map(|id| id.to_string()).unwrap_or_default(),
            pinned,
            proofs: Some(proofs),
        });
        self.ask(protection.master_target, "/mark", act, QUICK).await.map(drop)
    }

    fn undoing(&self) -> &'static str {
        if self.job.state == continuum_model::job::JobState::Undoing { "/undo" } else { "" }
    }

    async fn stop_guest(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(view) = self.facts.view else { return Ok(Done::said("there was none")) };
        let act = Act::StopGuest(pb::StopGuest { view_id: view.to_string() });
        let answer = self.ask(protection.master_target, self.undoing(), act, QUICK).await?;
        Ok(Done::said(said(&answer, "stopped")))
    }

    async fn close_view(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(view) = self.facts.view else { return Ok(Done::said("there was none")) };
        let act = Act::CloseView(pb::CloseView { view_id: view.to_string() });
        let answer = self.ask(protection.master_target, self.undoing(), act, QUICK).await?;
        Ok(Done::said(said(&answer, "closed and removed")))
    }

    fn commit_pending(&self) -> Result<Done, Fault> {
        let run = self.brought_up(Some(FailoverKind::Unplanned))?;
        Ok(Done::said("running at the recovery site; commit it, or choose another point")
            .with(vec![Write::Move(Event::BroughtUp), Write::FailedOver(run)]))
    }

    async fn drop_points(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let point = protection.failed_over.as_ref().and_then(|run| run.point.as_ref());
        let position =
            point.map(|point| point.position).ok_or_else(|| odd("the machine was not failed over"))?;
        let act = Act::DropOtherPoints(pb::DropOtherPoints { machine_id: row.id.to_string(), position });
        let answer = self.ask(protection.master_target, "", act, SLOW).await?;
        Ok(Done::said(said(&answer, "the other recovery points were dropped")))
    }

    fn point_text(&self) -> Result<String, Fault> {
        self.facts.point_id.map(|id| id.to_string()).ok_or_else(|| odd("the job has no point"))
    }

    async fn source_digest(&mut self) -> Result<Done, Fault> {
        let (row, _) = self.protection()?;
        let act = Act::SourceDigest(pb::SourceDigest { point_id: self.point_text()? });
        let Answer::Digests(digests) = self.ask(agent_of(row.id), "", act, DIGEST).await? else {
            return Err(odd("the agent gave no digests"));
        };
        self.facts.source_digests = in_order(&digests.disks);
        self.facts.position = Some(digests.position);
        self.facts.point =
            Some(self.new_point(digests.position, digests.time_us, PointKind::Crash, "verify"));
        Ok(Done::said(format!(
            "{} disk(s) of the source as of {}",
            digests.disks.len(),
            Timestamp::from_micros(digests.time_us)
        )))
    }

    fn new_point(&self, position: u64, time_us: i64, kind: PointKind, name: &str) -> PointRow {
        PointRow {
            id: self.facts.point_id,
            time: Timestamp::from_micros(time_us),
            position,
            kind,
            name: name.to_owned(),
            pinned: false,
            booted: None,
            probed: None,
            digest_equal: None,
        }
    }

    /// The moment was cut at the source; everything up to it must reach the target.
    async fn await_target(&self) -> Result<Done, Fault> {
        let id = self.machine_id()?;
        let position = self.facts.position.ok_or_else(|| odd("no moment was cut"))?;
        self.tell(None, "waiting for the target to have it", false);
        let arrived = self.core.until(|estate| {
            let (report, _) = estate.machines.get(&id)?.live.replica.as_ref()?;
            (report.last_sequence >= position).then_some(())
        });
        match tokio::time::timeout(SLOW, arrived).await {
            Ok(()) => Ok(Done::said("the target has everything up to it")),
            Err(_) => Err(Fault::new(
                FaultClass::Failed,
                "replica.behind",
                format!("the target did not receive everything up to the moment within {} s", SLOW.as_secs()),
            )
            .affects("this job")
            .spares("earlier recovery points; replication goes on")
            .remedy("see the machine's RPO and backlog, then retry the job")),
        }
    }

    async fn replica_digest(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::ReplicaDigest(pb::ReplicaDigest {
            machine_id: row.id.to_string(),
            position: self.facts.position.ok_or_else(|| odd("no moment was cut"))?,
            point_id: self.point_text()?,
        });
        let Answer::Digests(digests) = self.ask(protection.master_target, "", act, DIGEST).await? else {
            return Err(odd("the target gave no digests"));
        };
        let replica = in_order(&digests.disks);
        let name = |at: usize| row.disks.get(at).map(|disk| disk.name.clone()).unwrap_or_default();
        let disks = self.facts.source_digests.len().max(replica.len());
        self.facts.verified = (0..disks)
            .map(|at| {
                let source = self.facts.source_digests.get(at).cloned().unwrap_or_default();
                let replica = replica.get(at).cloned().unwrap_or_default();
                // Two sides that say nothing agree on nothing.
                let equal = source == replica && !source.is_empty();
                Verified { name: name(at), source, replica, equal }
            })
            .collect();
        Ok(Done::said(format!("{} disk(s) of the replica", digests.disks.len())))
    }

    async fn compare(&mut self) -> Result<Done, Fault> {
        let row = self.machine()?;
        let differ: Vec<String> =
            self.facts.verified.iter().filter(|disk| !disk.equal).map(|disk| shown(&disk.name)).collect();
        let equal = differ.is_empty() && !self.facts.verified.is_empty();
        let Some(point) = self.facts.point.as_mut() else { return Err(odd("no moment was cut")) };
        point.digest_equal = Some(equal);
        let point = point.clone();
        let marked = self.mark_point(&point, None).await;
        if !equal {
            return Err(Fault::new(
                FaultClass::Failed,
                "verify.differs",
                format!("{}: the replica differs from the source on {}", shown(&row.name), differ.join(", ")),
            )
            .affects("every recovery point of these disks since the last successful verification")
            .spares("the source and the other disks")
            .remedy("unprotect the machine and protect it again; keep the replica for an inquiry with --keep-replica"));
        }
        let writes = vec![Write::Point(Box::new(point))];
        let words = format!("{} disk(s) equal, bit for bit", self.facts.verified.len());
        Ok(match marked {
            Ok(()) => Done::said(words).with(writes),
            Err(fault) => {
                Done::warning(format!("{words}; the proof was not stored at the target: {}", fault.message))
                    .with(writes)
            }
        })
    }

    async fn barrier(&mut self) -> Result<Done, Fault> {
        let (row, _) = self.protection()?;
        let act = Act::MakeBarrier(pb::MakeBarrier {
            point_id: self.point_text()?,
            kind: PointKind::Bookmark.name().to_owned(),
            name: self.job.params.name.clone(),
        });
        let Answer::Barrier(barrier) = self.ask(agent_of(row.id), "", act, QUICK).await? else {
            return Err(odd("the agent cut no barrier"));
        };
        if !barrier.consistent {
            return Err(Fault::new(
                FaultClass::NotReady,
                "barrier.inconsistent",
                "the agent is repairing: this moment cannot be brought up",
            )
            .affects("this bookmark")
            .spares("earlier recovery points")
            .remedy("wait until the machine is in data mode, then retry the job"));
        }
        self.facts.position = Some(barrier.sequence);
        let name = self.job.params.name.clone();
        self.facts.point =
            Some(self.new_point(barrier.sequence, barrier.time_us, PointKind::Bookmark, &name));
        Ok(Done::said(format!("cut at {}", Timestamp::from_micros(barrier.time_us))))
    }

    fn listed(&self) -> Result<Done, Fault> {
        let point = self.facts.point.clone().ok_or_else(|| odd("no moment was cut"))?;
        Ok(Done::said(format!("recovery point of {}", point.time)).with(vec![Write::Point(Box::new(point))]))
    }

    async fn mark(&self) -> Result<Done, Fault> {
        let row = self.machine()?;
        let id = self.facts.point_id.ok_or_else(|| odd("the job has no point"))?;
        let known = self.core.store.point(row.id, id).await?;
        let mut point = known.ok_or_else(|| {
            Fault::new(
                FaultClass::NotFound,
                "point.unknown",
                format!("{} has no recovery point {id}", shown(&row.name)),
            )
            .affects("this order")
            .spares("all recovery points")
            .remedy("see `continuum get points` for those that exist")
        })?;
        point.pinned = self.job.params.pinned;
        self.mark_point(&point, Some(point.pinned)).await?;
        let words = if point.pinned { "pinned: retention leaves it" } else { "no longer pinned" };
        Ok(Done::said(words).with(vec![Write::Point(Box::new(point))]))
    }
}

fn initial_done(entry: &MachineEntry) -> Option<Result<u64, Fault>> {
    let protection = entry.row.protection.as_ref()?;
    let (agent, _) = entry.live.agent.as_ref()?;
    let (replica, _) = entry.live.replica.as_ref()?;
    // A moment of this protection, not of a replica that was kept from an earlier one.
    let whole = replica.epoch >= entry.row.epoch
        && agent.epoch >= entry.row.epoch
        && agent.mode == continuum_model::health::Mode::Data.name()
        && replica.newest_point_us.is_some_and(|newest| newest >= protection.since.micros());
    whole.then_some(Ok(agent.initial_bytes_total))
}

fn initial_progress(entry: &MachineEntry, estate: &Estate) -> Progress {
    let paused = entry.row.protection.as_ref().is_some_and(|protection| protection.state.is_paused());
    let away = !estate.connected(agent_of(entry.row.id));
    let agent = entry.live.agent.as_ref().map(|(report, _)| report);
    let fraction = agent
        .filter(|report| report.initial_bytes_total > 0)
        .map(|report| report.initial_bytes_done as f64 / report.initial_bytes_total as f64);
    let (detail, waiting) = if paused {
        ("paused by an operator".to_owned(), true)
    } else if away {
        ("the agent is not connected; it goes on where it was".to_owned(), true)
    } else if let Some(fault) = agent.and_then(|report| report.channel_fault.as_ref()) {
        (shown(&fault.message), true)
    } else {
        let bytes = |pick: fn(&pb::AgentReport) -> u64| continuum_model::units::Bytes(agent.map_or(0, pick));
        (
            format!(
                "{} of {}",
                bytes(|report| report.initial_bytes_done),
                bytes(|report| report.initial_bytes_total)
            ),
            false,
        )
    };
    Progress { fraction, detail, waiting }
}

/// The words for a moment that lies in a gap.
pub(crate) fn note_of_gap(gap: &pb::Gap, which: &str) -> String {
    let (from, to) = (Timestamp::from_micros(gap.from_us), Timestamp::from_micros(gap.to_us));
    let why = if gap.reason.is_empty() { String::new() } else { format!(" ({})", shown(&gap.reason)) };
    format!(
        "the moment {which} lies in a gap from {from} to {to}{why}: the newest moment before it was taken"
    )
}

fn in_order(disks: &[pb::DiskDigest]) -> Vec<String> {
    let mut disks: Vec<_> = disks.iter().collect();
    disks.sort_by_key(|disk| disk.index);
    disks.iter().map(|disk| disk.digest.clone()).collect()
}

fn said(answer: &Answer, otherwise: &str) -> String {
    match answer {
        Answer::Done(done) if !done.detail.is_empty() => shown(&done.detail),
        _ => otherwise.to_owned(),
    }
}

/// What should not be: a row or an answer that does not fit.
fn odd(what: &str) -> Fault {
    Fault::new(FaultClass::Failed, "job.odd", what)
        .affects("this job")
        .spares("everything else")
        .remedy("look at the machine's present state and give the order again")
}
