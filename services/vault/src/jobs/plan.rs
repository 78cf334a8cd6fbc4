//! What each kind of job consists of, when it may begin, and what it leaves when it does not succeed.
//!
//! ```text
//! protect        check → epoch → relate → initial replication → first point
//! unprotect      stop → bring down → remove replica → forget
//! test-failover  check → resolve point → open view → start guest → probe → running
//! cleanup        stop guest → close view → clean
//! failover       check → process received → new epoch → fence → resolve point → open view → start guest
//!                → probe → commit pending
//!   planned      check → stop source → await target → new epoch → … as above: nothing is lost
//! commit         check → drop other points → committed
//! change-point   check → resolve point → open view → stop former → start guest → probe → point changed
//! cancel-failover  check source → stop guest → epoch home → release source → close views
//! reprotect      check source → reverse epoch → await all: what runs there has arrived at the old source
//! failback       check source → check target → stop guest → drain → await home → digest both → equal → epoch home
//!                → release source → resume forward → close views
//!   unplanned    check source → stop if there → epoch home → release source → retire → resume forward
//! verify         digest source → await target → digest replica → compare
//! bookmark       barrier → await target → listed
//! pin            mark
//! resync         compare all → resync
//! group-bookmark group-barrier → group-listed
//! plan-test-failover, plan-failover   for each group of the plan: bring up → a manual action, where there is one;
//!                                     then report
//! plan-cleanup   clean up all → report
//! ```
//!
//! A run of a plan orders a job for each of its machines and waits for them; it does nothing to a machine itself.
//!
//! Lives here: names, order, legality. Lives elsewhere: what a step does (`steps`), how one step follows
//! another (`engine`). A step's name is stored with the job: renaming one needs a new `store::jobs::PLAN`.

use crate::estate::{Estate, MachineEntry};
use crate::store::inventory::{BroughtUp, MachineRow, PointRow, Protection};
use crate::store::jobs::{Facts, JobRow, Params};
use crate::world::World;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{PointId, PolicyId, ServerId, ViewId};
use continuum_model::protection::{Event, FailoverKind, ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;

macro_rules! named {
    ($(#[$doc:meta])* $ty:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum $ty { $($variant),* }
        impl $ty {
            /// Its name in the store and in answers.
            pub(crate) const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

named!(
    /// Kinds of jobs.
    JobKind {
        Protect = "protect",
        Unprotect = "unprotect",
        TestFailover = "test-failover",
        Cleanup = "cleanup",
        Failover = "failover",
        Commit = "commit",
        ChangePoint = "change-point",
        CancelFailover = "cancel-failover",
        Reprotect = "reprotect",
        Failback = "failback",
        Migrate = "complete-migration",
        Verify = "verify",
        Bookmark = "bookmark",
        Pin = "pin",
        Resync = "resync",
        Pause = "pause",
        Resume = "resume",
        RetryNow = "retry-now",
        Move = "move",
        Acknowledge = "acknowledge",
        SetPolicy = "set-policy",
        AssignPolicy = "assign-policy",
        DeletePolicy = "delete-policy",
        PlanDrill = "plan-test-failover",
        PlanCleanup = "plan-cleanup",
        PlanFailover = "plan-failover",
        ApplyPlan = "apply-plan",
        CheckPlan = "check-plan",
        DeletePlan = "delete-plan",
        SetGroup = "set-group",
        DeleteGroup = "delete-group",
        GroupBookmark = "group-bookmark",
    }
);

named!(
    /// Steps of jobs.
    Step {
        CheckProtect = "check",
        NewEpoch = "epoch",
        Relate = "relate",
        InitialReplication = "initial-replication",
        FirstPoint = "first-point",
        StopReplication = "stop",
        BringDown = "bring-down",
        RemoveReplica = "remove-replica",
        Forget = "forget",
        CheckTarget = "check-target",
        ProcessReceived = "process-received",
        FenceEpoch = "new-epoch",
        Fence = "fence",
        ResolvePoint = "resolve-point",
        OpenView = "open-view",
        StartGuest = "start-guest",
        Probe = "probe",
        Running = "running",
        StopGuest = "stop-guest",
        CloseView = "close-view",
        Clean = "clean",
        CommitPending = "commit-pending",
        DropPoints = "drop-points",
        Committed = "committed",
        SourceDigest = "digest-source",
        AwaitTarget = "await-target",
        ReplicaDigest = "digest-replica",
        Compare = "compare",
        Barrier = "barrier",
        Listed = "listed",
        Mark = "mark",
        CompareAll = "compare-all",
        Resync = "resync",
        Group = "group",
        StopSource = "stop-source",
        Manual = "manual",
        Report = "report",
        GroupBarrier = "group-barrier",
        GroupListed = "group-listed",
        StopFormer = "stop-former",
        PointChanged = "point-changed",
        CheckSource = "check-source",
        EpochHome = "epoch-home",
        ReleaseSource = "release-source",
        CloseViews = "close-views",
        ReverseEpoch = "reverse-epoch",
        AwaitAll = "await-all",
        Drain = "drain",
        AwaitHome = "await-home",
        RecoveryDigest = "digest-recovery",
        HomeDigest = "digest-home",
        Equal = "equal",
        Forward = "resume-forward",
        StopIfThere = "stop-if-there",
        Retire = "retire",
    }
);

/// A change of rows that a step's end brings with it, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    /// A new protection.
    Protect(Box<Protection>),
    /// It goes on under another policy.
    Policy(PolicyId),
    /// A move of the protection.
    Move(Event),
    /// The same, where the table allows it now; nothing otherwise.
    MoveIfLegal(Event),
    /// Another process server relays it.
    ProcessServer(ServerId),
    /// The next epoch.
    Epoch,
    Fenced(bool),
    Test(TestState),
    TestRun(Option<Box<BroughtUp>>),
    FailedOver(Box<BroughtUp>),
    /// What ran at the recovery site was stopped and removed.
    BroughtDown,
    /// How a drill ended.
    Drill {
        passed: bool,
    },
    /// The protection is gone; its points, too, where they are.
    Forget {
        points: bool,
    },
    Point(Box<PointRow>),
    /// After a commit only the chosen point counts.
    ForgetPoints,
    /// When the first copy begins.
    StartAt(Option<Timestamp>),
    /// Whether a resync waits for its window.
    ResyncNow(bool),
}

impl JobKind {
    /// All of them.
    pub(crate) const ALL: [Self; 32] = [
        Self::Protect,
        Self::TestFailover,
        Self::Cleanup,
        Self::Failover,
        Self::Commit,
        Self::ChangePoint,
        Self::CancelFailover,
        Self::Reprotect,
        Self::Failback,
        Self::Migrate,
        Self::Pause,
        Self::Resume,
        Self::Resync,
        Self::Bookmark,
        Self::Pin,
        Self::Verify,
        Self::RetryNow,
        Self::Move,
        Self::Acknowledge,
        Self::SetPolicy,
        Self::AssignPolicy,
        Self::DeletePolicy,
        Self::Unprotect,
        Self::PlanDrill,
        Self::PlanCleanup,
        Self::PlanFailover,
        Self::ApplyPlan,
        Self::CheckPlan,
        Self::DeletePlan,
        Self::SetGroup,
        Self::DeleteGroup,
        Self::GroupBookmark,
    ];

    /// Whether it is about a plan, and about no single machine.
    pub(crate) const fn is_about_plans(self) -> bool {
        matches!(
            self,
            Self::PlanDrill
                | Self::PlanCleanup
                | Self::PlanFailover
                | Self::ApplyPlan
                | Self::CheckPlan
                | Self::DeletePlan
        )
    }

    /// Whether it is about a consistency group, and about no single machine.
    pub(crate) const fn is_about_groups(self) -> bool {
        matches!(self, Self::SetGroup | Self::DeleteGroup | Self::GroupBookmark)
    }

    /// What a run of a plan orders for each machine.
    pub(crate) const fn of_each(self) -> Option<Self> {
        match self {
            Self::PlanDrill => Some(Self::TestFailover),
            Self::PlanCleanup => Some(Self::Cleanup),
            Self::PlanFailover => Some(Self::Failover),
            _ => None,
        }
    }

    /// The one with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The steps of a job, in order, and what they are called; none: it is done at once.
    pub(crate) fn steps_of(self, params: &Params) -> Vec<(Step, String)> {
        if self == Self::Failover && params.planned {
            // What an unplanned one waits for may be lost; here the machine stops until all of it has arrived.
            let rest =
                self.steps().iter().filter(|step| !matches!(step, Step::CheckTarget | Step::ProcessReceived));
            let steps = [Step::CheckTarget, Step::StopSource, Step::AwaitTarget];
            return steps.iter().chain(rest).map(|step| (*step, step.name().to_owned())).collect();
        }
        if self == Self::Failback && !params.planned {
            // Nobody there can be asked to stop first, and what did not arrive is not waited for.
            use Step as S;
            let steps =
                [S::CheckSource, S::StopIfThere, S::EpochHome, S::ReleaseSource, S::Retire, S::Forward];
            return steps.iter().map(|step| (*step, step.name().to_owned())).collect();
        }
        let Some(run) = params.plan.as_ref().filter(|_| self.of_each().is_some()) else {
            return self.steps().iter().map(|step| (*step, step.name().to_owned())).collect();
        };
        let mut steps = Vec::new();
        if self == Self::PlanCleanup {
            steps.push((Step::Group, "clean up all".to_owned()));
        } else {
            for group in &run.groups {
                steps.push((Step::Group, format!("group {}", shown(&group.name))));
                if !group.manual.is_empty() {
                    steps.push((Step::Manual, format!("by hand, after {}", shown(&group.name))));
                }
            }
        }
        steps.push((Step::Report, Step::Report.name().to_owned()));
        steps
    }

    /// The steps of a kind that always has the same.
    const fn steps(self) -> &'static [Step] {
        use Step as S;
        match self {
            Self::Protect => &[S::CheckProtect, S::NewEpoch, S::Relate, S::InitialReplication, S::FirstPoint],
            Self::Unprotect => &[S::StopReplication, S::BringDown, S::RemoveReplica, S::Forget],
            Self::TestFailover => {
                &[S::CheckTarget, S::ResolvePoint, S::OpenView, S::StartGuest, S::Probe, S::Running]
            }
            Self::Cleanup => &[S::StopGuest, S::CloseView, S::Clean],
            Self::Failover => &[
                S::CheckTarget,
                S::ProcessReceived,
                S::FenceEpoch,
                S::Fence,
                S::ResolvePoint,
                S::OpenView,
                S::StartGuest,
                S::Probe,
                S::CommitPending,
            ],
            Self::Commit => &[S::CheckTarget, S::DropPoints, S::Committed],
            Self::ChangePoint => &[
                S::CheckTarget,
                S::ResolvePoint,
                S::OpenView,
                S::StopFormer,
                S::StartGuest,
                S::Probe,
                S::PointChanged,
            ],
            Self::CancelFailover => {
                &[S::CheckSource, S::StopGuest, S::EpochHome, S::ReleaseSource, S::CloseViews]
            }
            Self::Reprotect => &[S::CheckSource, S::ReverseEpoch, S::AwaitAll],
            Self::Failback => &[
                S::CheckSource,
                S::CheckTarget,
                S::StopGuest,
                S::Drain,
                S::AwaitHome,
                S::RecoveryDigest,
                S::HomeDigest,
                S::Equal,
                S::EpochHome,
                S::ReleaseSource,
                S::Forward,
                S::CloseViews,
            ],
            Self::Verify => &[S::SourceDigest, S::AwaitTarget, S::ReplicaDigest, S::Compare],
            Self::Bookmark => &[S::Barrier, S::AwaitTarget, S::Listed],
            Self::Pin => &[S::Mark],
            Self::Resync => &[S::CompareAll, S::Resync],
            // A run's are its plan's.
            Self::PlanDrill | Self::PlanCleanup | Self::PlanFailover => &[],
            Self::Pause | Self::Resume | Self::RetryNow | Self::Move | Self::Acknowledge | Self::Migrate => {
                &[]
            }
            Self::SetPolicy | Self::AssignPolicy | Self::DeletePolicy => &[],
            Self::ApplyPlan | Self::CheckPlan | Self::DeletePlan => &[],
            Self::SetGroup | Self::DeleteGroup => &[],
            Self::GroupBookmark => &[S::GroupBarrier, S::GroupListed],
        }
    }

    /// Whether a person may stop it half-way.
    pub(crate) const fn may_cancel(self) -> bool {
        // What an unprotect or a commit removed does not come back; a cleanup half-way helps nobody.
        !matches!(self, Self::Unprotect | Self::Commit | Self::Cleanup | Self::PlanCleanup)
    }

    /// Whether a failed one may be tried again.
    pub(crate) const fn may_retry(self) -> bool {
        // A run of a plan is ordered again: what was brought up already is left alone then.
        !self.steps().is_empty()
    }

    /// Whether the pen has gone home: the machine runs at its source from there on, and nothing is taken back.
    pub(crate) fn is_home(self, job: &JobRow) -> bool {
        use continuum_model::job::StepState as S;
        matches!(self, Self::CancelFailover | Self::Failback)
            && job.steps.iter().any(|step| {
                step.name == Step::EpochHome.name() && matches!(step.state, S::Succeeded | S::Warnings)
            })
    }

    /// Whether the two may not be under way on one machine at the same time.
    pub(crate) const fn conflicts(self, other: Self) -> bool {
        use JobKind::{
            Bookmark, CancelFailover, ChangePoint, Cleanup, Commit, Failback, Failover, Migrate, Pin,
            Protect, Reprotect, Resync, TestFailover, Unprotect, Verify,
        };
        match (self, other) {
            // Never in the way, and nothing is in their way: a failover does not wait for a verification.
            (Verify | Bookmark | Pin, Unprotect | Protect) => true,
            (Verify | Bookmark | Pin, _) => false,
            // Whatever ends the protection, or takes the replica as it is, ends a resync: nobody waits for it. And one
            // that is to begin now tells one that waits for its window to begin.
            (Resync, Unprotect | Protect | Failover) => true,
            (Resync, _) | (Unprotect, Resync) => false,
            (Failover, TestFailover | Cleanup | Verify | Bookmark | Pin | Resync) => false,
            (TestFailover | Cleanup, Verify | Bookmark | Pin | Commit | Resync) => false,
            (ChangePoint | CancelFailover | Reprotect | Failback | Migrate, Verify | Bookmark | Pin) => false,
            (
                Protect | Unprotect | TestFailover | Cleanup | Failover | Commit | ChangePoint
                | CancelFailover | Reprotect | Failback | Migrate,
                _,
            ) => true,
            (_, _) => false,
        }
    }

    /// Whether what was done is undone when a later step fails.
    pub(crate) const fn undoes(self) -> bool {
        matches!(
            self,
            Self::TestFailover | Self::Failover | Self::ChangePoint | Self::CancelFailover | Self::Failback
        )
    }
}

/// What a job begins with: the changes that the order itself makes, and what its steps will need.
///
/// Errors: a fault that says why the order is not possible now; nothing was changed.
pub(crate) fn begin(
    kind: JobKind,
    params: &Params,
    row: &MachineRow,
    job: continuum_model::id::JobId,
    world: &World,
) -> Result<(Vec<Write>, Facts), Fault> {
    possible(kind, row)?;
    let mut facts = Facts::default();
    let now = world.now();
    let bring_up = |view: ViewId| {
        let run = BroughtUp {
            job,
            view,
            kind: None,
            at: now,
            point: None,
            disks: Vec::new(),
            probes: Vec::new(),
            former: Vec::new(),
        };
        Box::new(run)
    };
    let writes = match kind {
        // The order made the protection; a retry takes it up again.
        JobKind::Protect => vec![Write::MoveIfLegal(Event::Retry), Write::StartAt(params.start_at)],
        JobKind::Unprotect => vec![Write::MoveIfLegal(Event::Disable)],
        JobKind::TestFailover => {
            let view = world.id(ViewId::make);
            facts.view = Some(view);
            vec![Write::Test(TestState::Starting), Write::TestRun(Some(bring_up(view)))]
        }
        JobKind::Cleanup => {
            let run = row.protection.as_ref().and_then(|protection| protection.test_run.as_ref());
            facts.view = run.map(|run| run.view);
            vec![Write::Test(TestState::Cleaning)]
        }
        JobKind::Failover if params.planned => {
            facts.view = Some(world.id(ViewId::make));
            facts.point_id = Some(world.id(PointId::make));
            let Some(protection) = &row.protection else { return Ok((Vec::new(), facts)) };
            let event = Event::FailOver { kind: FailoverKind::Planned };
            if let Err(illegal) = protection.state.clone().next(event) {
                return Err(Fault::new(
                    FaultClass::NotReady,
                    "protection.illegal-move",
                    format!("{}: {illegal}", shown(&row.name)),
                )
                .affects("this order")
                .spares("nothing was changed")
                .remedy("wait until it is protected and not paused, or order an unplanned failover"));
            }
            // It replicates on until its source is stopped: it moves with its new epoch.
            Vec::new()
        }
        JobKind::Failover => {
            facts.view = Some(world.id(ViewId::make));
            vec![Write::Move(Event::FailOver { kind: FailoverKind::Unplanned })]
        }
        JobKind::Verify | JobKind::Bookmark => {
            facts.point_id = Some(world.id(PointId::make));
            Vec::new()
        }
        JobKind::Pin => {
            facts.point_id = params.point.parse().ok();
            Vec::new()
        }
        JobKind::Pause => vec![Write::Move(Event::Pause)],
        // Where it waits for its time, this is to start it now.
        JobKind::Resume => vec![Write::StartAt(None), Write::Move(Event::Resume)],
        JobKind::ChangePoint => {
            facts.view = Some(world.id(ViewId::make));
            Vec::new()
        }
        JobKind::CancelFailover | JobKind::Failback => {
            let back = kind == JobKind::Failback;
            let run = row.protection.as_ref().and_then(|protection| protection.failed_over.as_ref());
            facts.view = run.map(|run| run.view);
            facts.point_id = Some(world.id(PointId::make));
            let kind = if params.planned { FailoverKind::Planned } else { FailoverKind::Unplanned };
            if back { vec![Write::Move(Event::FailBack { kind })] } else { Vec::new() }
        }
        JobKind::Migrate => vec![Write::Move(Event::Migrate)],
        JobKind::AssignPolicy => params.policy.map(Write::Policy).into_iter().collect(),
        JobKind::Commit
        | JobKind::Reprotect
        | JobKind::RetryNow
        | JobKind::Resync
        | JobKind::Move
        | JobKind::Acknowledge
        | JobKind::SetPolicy
        | JobKind::DeletePolicy => Vec::new(),
        // Those change no row of a machine.
        JobKind::PlanDrill
        | JobKind::PlanCleanup
        | JobKind::PlanFailover
        | JobKind::ApplyPlan
        | JobKind::CheckPlan
        | JobKind::DeletePlan
        | JobKind::SetGroup
        | JobKind::DeleteGroup
        | JobKind::GroupBookmark => Vec::new(),
    };
    Ok((writes, facts))
}

/// Whether the machine's state allows it.
pub(crate) fn possible(kind: JobKind, row: &MachineRow) -> Result<(), Fault> {
    let name = shown(&row.name);
    let refuse = |code: &str, message: String, remedy: String| {
        Err(Fault::new(FaultClass::NotReady, code, message)
            .affects("this order")
            .spares("nothing was changed")
            .remedy(remedy))
    };
    let Some(protection) = &row.protection else {
        return match kind {
            JobKind::Protect | JobKind::Acknowledge | JobKind::SetPolicy | JobKind::DeletePolicy => Ok(()),
            _ => refuse(
                "machine.unprotected",
                format!("{name} is not protected"),
                format!("protect it first: continuum protect {}", quoted(&row.name)),
            ),
        };
    };
    let moves = |event: Event| match protection.state.clone().next(event) {
        Ok(_) => Ok(()),
        Err(illegal) => refuse(
            "protection.illegal-move",
            format!("{name}: {illegal}"),
            "see what is possible now: continuum describe machine ".to_owned() + &quoted(&row.name),
        ),
    };
    let has_points = matches!(
        protection.state,
        ProtectionState::Protected { .. }
            | ProtectionState::Resync { .. }
            | ProtectionState::FailingOver { .. }
    );
    match kind {
        JobKind::Protect => match protection.state {
            ProtectionState::EnablingFailed { .. } | ProtectionState::InitialReplicationFailed { .. } => {
                Ok(())
            }
            _ => refuse(
                "machine.protected",
                format!("{name} is protected already"),
                "change its policy with set-policy, or unprotect it first".into(),
            ),
        },
        JobKind::Unprotect => {
            if protection.test != TestState::None {
                return refuse(
                    "test.running",
                    format!("a test failover of {name} is {}", protection.test.name()),
                    format!("clean it up first: continuum cleanup {}", quoted(&row.name)),
                );
            }
            // An unprotect that failed half-way is taken up again.
            if protection.state == ProtectionState::Disabling { Ok(()) } else { moves(Event::Disable) }
        }
        JobKind::TestFailover => {
            if !has_points {
                return refuse(
                    "point.none",
                    format!("{name} is {}: there is no recovery point to bring up", protection.state.name()),
                    "wait until the first recovery point exists".into(),
                );
            }
            if protection.test != TestState::None {
                return refuse(
                    "test.running",
                    format!("a test failover of {name} is {} already", protection.test.name()),
                    format!("clean it up first: continuum cleanup {}", quoted(&row.name)),
                );
            }
            Ok(())
        }
        JobKind::Cleanup => match protection.test {
            TestState::None => refuse(
                "test.none",
                format!("there is no test failover of {name}"),
                "nothing needs to be cleaned up".into(),
            ),
            TestState::Starting | TestState::Running | TestState::Cleaning | TestState::Failed => Ok(()),
        },
        JobKind::Failover => moves(Event::FailOver { kind: FailoverKind::Unplanned }),
        JobKind::Commit => moves(Event::Commit),
        JobKind::ChangePoint => moves(Event::PointChanged),
        JobKind::CancelFailover => moves(Event::CancelFailover),
        JobKind::Migrate => moves(Event::Migrate),
        // One that died half-way is taken up again.
        JobKind::Reprotect if protection.state == ProtectionState::Reprotecting => Ok(()),
        JobKind::Reprotect => moves(Event::Reprotect),
        JobKind::Failback => moves(Event::FailBack { kind: FailoverKind::Planned }),
        JobKind::Pause => moves(Event::Pause),
        JobKind::Resume => moves(Event::Resume),
        JobKind::Verify | JobKind::Bookmark => match protection.state {
            ProtectionState::Protected { paused: false } => Ok(()),
            _ => refuse(
                "protection.not-replicating",
                format!("{name} is {}: changes do not reach its replica now", protection.state.name()),
                "wait until it is protected and not paused".into(),
            ),
        },
        JobKind::Resync => match protection.state {
            ProtectionState::Protected { paused: false } | ProtectionState::Resync { paused: false, .. } => {
                Ok(())
            }
            _ => refuse(
                "protection.not-replicating",
                format!("{name} is {}: source and replica cannot be compared now", protection.state.name()),
                "wait until it is protected and not paused".into(),
            ),
        },
        JobKind::Move => match protection.state {
            ProtectionState::InitialReplication { .. }
            | ProtectionState::InitialReplicationFailed { .. }
            | ProtectionState::Protected { .. }
            | ProtectionState::Resync { .. } => Ok(()),
            _ => refuse(
                "protection.not-replicating",
                format!(
                    "{name} is {}: nothing of it is relayed that could be moved",
                    protection.state.name()
                ),
                "wait until it replicates".into(),
            ),
        },
        JobKind::AssignPolicy if protection.state == ProtectionState::Disabling => refuse(
            "protection.disabling",
            format!("{name} is being unprotected"),
            "protect it again with the other policy".into(),
        ),
        JobKind::RetryNow
        | JobKind::Pin
        | JobKind::Acknowledge
        | JobKind::SetPolicy
        | JobKind::AssignPolicy
        | JobKind::DeletePolicy => Ok(()),
        JobKind::PlanDrill
        | JobKind::PlanCleanup
        | JobKind::PlanFailover
        | JobKind::ApplyPlan
        | JobKind::CheckPlan
        | JobKind::DeletePlan
        | JobKind::SetGroup
        | JobKind::DeleteGroup
        | JobKind::GroupBookmark => Ok(()),
    }
}

/// What turning back brings with it before anything is undone.
pub(crate) fn turns_back(kind: JobKind, cancelled: bool) -> Vec<Write> {
    match kind {
        // On its way out: nobody is told to keep the replica while it is being removed.
        JobKind::Protect if cancelled => vec![
            Write::MoveIfLegal(Event::EnableFailed { reason: "cancelled by an operator".into() }),
            Write::MoveIfLegal(Event::Disable),
        ],
        _ => Vec::new(),
    }
}

/// What a job that did not succeed leaves in the rows. `clean`: every undo worked.
pub(crate) fn leaves(kind: JobKind, job: &JobRow, reason: &str, clean: bool) -> Vec<Write> {
    match kind {
        JobKind::Protect if job.cancel => vec![Write::Forget { points: true }],
        JobKind::Protect => vec![Write::MoveIfLegal(Event::EnableFailed { reason: reason.to_owned() })],
        JobKind::TestFailover if clean => {
            vec![Write::Test(TestState::None), Write::TestRun(None), Write::Drill { passed: false }]
        }
        JobKind::TestFailover => vec![Write::Test(TestState::Failed), Write::Drill { passed: false }],
        JobKind::Cleanup => vec![Write::Test(TestState::Failed)],
        JobKind::Failover => vec![Write::MoveIfLegal(Event::FailOverFailed), Write::Fenced(false)],
        JobKind::Failback => vec![Write::MoveIfLegal(Event::FailBackFailed)],
        JobKind::Reprotect if job.cancel => vec![Write::MoveIfLegal(Event::StopReprotect)],
        JobKind::Unprotect
        | JobKind::ChangePoint
        | JobKind::CancelFailover
        | JobKind::Reprotect
        | JobKind::Migrate
        | JobKind::Commit
        | JobKind::Verify
        | JobKind::Bookmark
        | JobKind::Pin
        | JobKind::Pause
        | JobKind::Resume
        | JobKind::Resync
        | JobKind::RetryNow
        | JobKind::Move
        | JobKind::Acknowledge
        | JobKind::SetPolicy
        | JobKind::AssignPolicy
        | JobKind::DeletePolicy => Vec::new(),
        // What its machines' jobs leave is theirs.
        JobKind::PlanDrill
        | JobKind::PlanCleanup
        | JobKind::PlanFailover
        | JobKind::ApplyPlan
        | JobKind::CheckPlan
        | JobKind::DeletePlan
        | JobKind::SetGroup
        | JobKind::DeleteGroup
        | JobKind::GroupBookmark => Vec::new(),
    }
}

/// A failover that stops its source, as an order is called.
pub(crate) const PLANNED_FAILOVER: &str = "planned-failover";

/// A bookmark with the machine's hooks around it, as an order is called.
pub(crate) const APP_BOOKMARK: &str = "app-bookmark";
/// A failback that does not ask the recovery site, as a readiness report is asked for it.
pub(crate) const UNPLANNED_FAILBACK: &str = "unplanned-failback";

/// The orders that are possible now, as the operator API names them.
pub(crate) fn orders(entry: &MachineEntry, estate: &Estate) -> Vec<&'static str> {
    let under_way: Vec<JobKind> =
        estate.jobs_of(entry.row.id).filter_map(|job| JobKind::named(&job.kind)).collect();
    let protected = entry.row.protection.is_some();
    let planned = entry.row.protection.as_ref().is_some_and(|protection| {
        protection.state == ProtectionState::Protected { paused: false } && protection.test == TestState::None
    }) && estate.connected(crate::estate::agent_of(entry.row.id))
        && !under_way.iter().any(|other| JobKind::Failover.conflicts(*other));
    let planned = planned.then_some(PLANNED_FAILOVER);
    let hooked = entry.live.app_consistent
        && possible(JobKind::Bookmark, &entry.row).is_ok()
        && !under_way.iter().any(|other| JobKind::Bookmark.conflicts(*other));
    let hooked = hooked.then_some(APP_BOOKMARK);
    JobKind::ALL
        .into_iter()
        // Those are about an alert, a point, a policy, and not about the machine.
        .filter(|kind| {
            !matches!(kind, JobKind::Acknowledge | JobKind::Pin | JobKind::SetPolicy | JobKind::DeletePolicy)
                && !kind.is_about_plans()
                && !kind.is_about_groups()
        })
        .filter(|kind| protected || *kind == JobKind::Protect)
        .filter(|kind| {
            possible(*kind, &entry.row).is_ok() && !under_way.iter().any(|other| kind.conflicts(*other))
        })
        .map(JobKind::name)
        .chain(planned)
        .chain(hooked)
        .collect()
}

/// A name as a command line takes it, made harmless.
pub(crate) fn quoted(name: &str) -> String {
    let name = shown(name);
    let plain = !name.is_empty()
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c));
    if plain { name } else { format!("'{}'", name.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        for (name, expected) in [
            ("web-01", "web-01"),
            ("web 01", "'web 01'"),
            ("a'; rm -rf /", "'a'\\''; rm -rf /'"),
            ("-rf", "'-rf'"),
            ("a\nb", "'a␊b'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }

    #[test]
    fn a_failover_waits_for_nothing_but_what_would_make_two_truths() {
        for other in
            [JobKind::Verify, JobKind::Bookmark, JobKind::Pin, JobKind::TestFailover, JobKind::Cleanup]
        {
            assert!(!JobKind::Failover.conflicts(other), "{}", other.name());
        }
        for other in [JobKind::Protect, JobKind::Unprotect, JobKind::Failover, JobKind::Commit] {
            assert!(JobKind::Failover.conflicts(other), "{}", other.name());
        }
    }
}
