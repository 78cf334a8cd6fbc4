//! What each step does to the world, and how it is taken back.
//!
//! A step asks servers for acts and waits for what they report; it writes nothing itself. What it found out
//! goes into the job's facts, what it changes into [`Done::writes`]; the engine stores both with its end.
//! Every step may run again from its beginning.
//!
//! Lives here: the context of a step and the table of steps. Lives beside it: what they do (`protection`,
//! `bring_up`, `home`, `points`, `resync`, and `plan_run` for runs of plans).

mod bring_up;
mod home;
mod plan_run;
mod points;
mod protection;
mod resync;

pub(crate) use bring_up::note_of_gap;

use super::plan::{JobKind, Step, Write};
use crate::core::Core;
use crate::estate::{Estate, MachineEntry, Progress, agent_of};
use crate::project;
use crate::store::inventory::{BroughtUp, MachineRow, PointRow, ProbeRow, Protection};
use crate::store::jobs::{Facts, JobRow, Verified};
use crate::store::plans::DrillRow;
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
/// An agent's scripts have their own limits below this one.
const HOOKS: Duration = Duration::from_secs(1800);
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
    /// How the drill of a plan went.
    pub(crate) drill: Option<DrillRow>,
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
    /// Which of the job's steps.
    place: usize,
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
        Step::FenceEpoch if ctx.job.params.planned => {
            let moved = Write::Move(Event::FailOver { kind: FailoverKind::Planned });
            Ok(Done::said("a new epoch: the source's is over").with(vec![
                moved,
                Write::Epoch,
                Write::Fenced(true),
            ]))
        }
        Step::StopSource => ctx.stop_source().await,
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
        Step::CompareAll => ctx.compare_all().await,
        Step::Resync => ctx.resync().await,
        Step::Group => ctx.group().await,
        Step::Manual => ctx.manual().await,
        Step::Report => ctx.report(),
        Step::GroupBarrier => ctx.group_barrier().await,
        Step::GroupListed => ctx.group_listed().await,
        Step::StopFormer => ctx.stop_former().await,
        Step::PointChanged => ctx.point_changed(),
        Step::CheckSource => ctx.check_source().await,
        Step::EpochHome => Ok(ctx.epoch_home()),
        Step::ReleaseSource => Ok(ctx.let_write().await),
        Step::CloseViews => ctx.close_views().await,
        Step::ReverseEpoch => {
            Ok(Done::said("a new epoch: the old source takes in what runs at the recovery site").with(vec![
                Write::MoveIfLegal(Event::Reprotect),
                Write::Epoch,
                Write::Fenced(true),
            ]))
        }
        Step::AwaitAll => ctx.await_all().await,
        Step::Drain => ctx.drain().await,
        Step::AwaitHome => ctx.await_home().await,
        Step::RecoveryDigest => ctx.recovery_digest().await,
        Step::HomeDigest => ctx.home_digest().await,
        Step::Equal => ctx.equal(),
        Step::Forward => ctx.forward().await,
        Step::StopIfThere => ctx.stop_if_there().await,
        Step::Retire => ctx.retire().await,
    }
}

/// Whether a step of this kind leaves something in the world that must be taken back.
pub(crate) const fn has_undo(kind: JobKind, step: Step) -> bool {
    match kind {
        // From its epoch on the target is told to keep a replica.
        JobKind::Protect => matches!(step, Step::NewEpoch),
        JobKind::TestFailover | JobKind::Failover => {
            matches!(step, Step::OpenView | Step::StartGuest | Step::StopSource)
        }
        JobKind::ChangePoint => matches!(step, Step::OpenView | Step::StopFormer | Step::StartGuest),
        JobKind::CancelFailover => matches!(step, Step::StopGuest),
        JobKind::Failback => matches!(step, Step::StopGuest | Step::StopIfThere | Step::Drain),
        _ => false,
    }
}

/// Takes a step back. What is not there counts as taken back.
pub(crate) async fn undo(ctx: &mut Ctx<'_>, kind: JobKind) -> Result<(), Fault> {
    match ctx.step {
        Step::OpenView => ctx.close_view().await.map(drop),
        Step::StartGuest => ctx.stop_guest().await.map(drop),
        Step::StopSource => ctx.release_source().await,
        Step::StopGuest | Step::StopIfThere => ctx.start_again(ctx.facts.view).await,
        Step::StopFormer => ctx.start_former().await,
        Step::Drain => ctx.undrain().await,
        Step::NewEpoch if kind == JobKind::Protect => ctx.remove_replica().await.map(drop),
        _ => Ok(()),
    }
}

impl<'a> Ctx<'a> {
    pub(crate) fn new(core: &'a Arc<Core>, job: &'a JobRow, step: Step, place: usize) -> Self {
        Self { core, job, step, place, facts: job.facts.clone() }
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

    fn kind(&self) -> Option<JobKind> {
        JobKind::named(&self.job.kind)
    }

    fn undoing(&self) -> &'static str {
        if self.job.state == continuum_model::job::JobState::Undoing { "/undo" } else { "" }
    }
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
