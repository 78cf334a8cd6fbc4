//! Runs of recovery plans: jobs for the machines of a group, what people do in between, and how it went.
//!
//! Every machine's job is ordered under a key made of the run, its attempt and the machine: a vault that dies and
//! comes back is given the same job again.

use super::*;
use crate::access::{Operator, OperatorRole};
use crate::operator::orders;
use crate::store::jobs::{FrozenGroup, FrozenPlan};
use continuum_model::id::JobId;
use continuum_model::job::JobState;
use pb::order_request::Order;

/// So many machines are named in the words of a step.
const NAMED_MAX: usize = 5;

impl Ctx<'_> {
    fn run(&self) -> Result<&FrozenPlan, Fault> {
        self.job.params.plan.as_ref().ok_or_else(|| odd("the run names no plan"))
    }

    /// The group that this step is about: the one of the newest group step up to here.
    fn frozen_group(&self, kind: JobKind) -> Result<&FrozenGroup, Fault> {
        let steps = kind.steps_of(&self.job.params);
        let groups = steps.iter().take(self.place + 1).filter(|(step, _)| *step == Step::Group).count();
        groups
            .checked_sub(1)
            .and_then(|place| self.run().ok()?.groups.get(place))
            .ok_or_else(|| odd("the run's plan has no such group"))
    }

    pub(super) async fn group(&mut self) -> Result<Done, Fault> {
        let kind = self.kind().ok_or_else(|| odd("the kind of the run is not known"))?;
        let machines: Vec<(MachineId, String)> = if kind == JobKind::PlanCleanup {
            // In the opposite order of bringing up.
            let mut all: Vec<_> = self.run()?.machines().cloned().collect();
            all.reverse();
            all
        } else {
            self.frozen_group(kind)?.machines.clone()
        };
        let mut failed: Vec<String> = Vec::new();
        let mut under_way: Vec<(JobId, String)> = Vec::new();
        let mut skipped = 0;
        for (id, name) in &machines {
            match self.order_one(kind, *id).await {
                Ok(Some(job)) => {
                    under_way.push((job, name.clone()));
                    if !self.facts.children.contains(&job) {
                        self.facts.children.push(job);
                    }
                }
                Ok(None) => skipped += 1,
                Err(fault) => failed.push(format!("{}: {}", shown(name), fault.message)),
            }
        }
        let total = under_way.len();
        let mut over = usize::MAX;
        while over != total {
            over = self
                .core
                .until(|estate| {
                    let now = under_way.iter().filter(|(job, _)| is_over(estate, *job)).count();
                    (now != over || now == total).then_some(now)
                })
                .await;
            let fraction = if total == 0 { 1.0 } else { over as f64 / total as f64 };
            self.tell(Some(fraction), format!("{over} of {total} machines done"), false);
        }
        let mut answered = 0;
        for (job, name) in &under_way {
            match self.core.store.job(*job).await? {
                Some(row) if matches!(row.state, JobState::Succeeded | JobState::Warnings) => answered += 1,
                Some(row) => {
                    let why = row.fault.map_or_else(String::new, |fault| format!(": {}", fault.message));
                    failed.push(format!("{} {}{why}", shown(name), row.state.name()));
                }
                None => failed.push(format!("{}: its job is gone", shown(name))),
            }
        }
        self.facts.answered += answered;
        let what = if kind == JobKind::PlanCleanup { "cleaned up" } else { "up" };
        let mut words = format!("{answered} of {} machines {what}", machines.len() - skipped);
        if skipped > 0 {
            words.push_str(&format!(", {skipped} had nothing to clean up"));
        }
        if failed.is_empty() {
            return Ok(Done::said(words));
        }
        let more = failed.len().saturating_sub(NAMED_MAX);
        failed.truncate(NAMED_MAX);
        words.push_str(&format!("; {}", failed.join("; ")));
        if more > 0 {
            words.push_str(&format!("; and {more} more"));
        }
        // A disaster does not wait for one machine: the run goes on, and says so.
        Ok(Done::warning(words))
    }

    /// Orders the job of one machine; `None`: there is nothing to do for it.
    async fn order_one(&self, kind: JobKind, machine: MachineId) -> Result<Option<JobId>, Fault> {
        let (name, test) = {
            let estate = self.core.estate();
            let entry = estate.machines.get(&machine).ok_or_else(|| odd("it is not registered any more"))?;
            let protection = entry.row.protection.as_ref();
            (entry.row.name.clone(), protection.map_or(TestState::None, |protection| protection.test))
        };
        // Frozen as the run began, so that all members of a group come up at one point.
        let point = match self.job.params.shared.get(&machine) {
            Some(shared) => shared.to_string(),
            None if crate::groups::wanted(&self.job.params.point).is_some() => "latest".to_owned(),
            None => self.job.params.point.clone(),
        };
        let order = match kind {
            JobKind::PlanDrill => {
                Order::TestFailover(pb::TestFailoverOrder { point, keep_on_failure: false })
            }
            JobKind::PlanCleanup if test == TestState::None => return Ok(None),
            JobKind::PlanCleanup => {
                Order::Cleanup(pb::Cleanup { note: format!("by a run of plan {}", self.run()?.name) })
            }
            _ => Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point }),
        };
        let request = pb::OrderRequest {
            key: format!("plan/{}/{}/{machine}", self.job.id, self.job.attempt),
            machine: machine.to_string(),
            expected_version: 0,
            // The plan's own name was typed for all of them.
            confirm: name,
            order: Some(order),
        };
        // Whether the operator may run the plan was settled as the run was ordered.
        let by = Operator { name: self.job.by.clone(), role: OperatorRole::Owner };
        orders::give_of_run(self.core, &by, request).await.map(Some)
    }

    pub(super) async fn manual(&self) -> Result<Done, Fault> {
        let kind = self.kind().ok_or_else(|| odd("the kind of the run is not known"))?;
        let what = shown(&self.frozen_group(kind)?.manual);
        let steps = kind.steps_of(&self.job.params);
        let before = steps.iter().take(self.place).filter(|(step, _)| *step == Step::Manual).count();
        self.tell(None, what.clone(), true);
        let job = self.job.id;
        self.core
            .until(|estate| {
                let done = estate.jobs.get(&job).map_or(0, |entry| entry.row.params.proceeded);
                (done > before).then_some(())
            })
            .await;
        Ok(Done::said(format!("done: {what}")))
    }

    pub(super) fn report(&self) -> Result<Done, Fault> {
        let kind = self.kind().ok_or_else(|| odd("the kind of the run is not known"))?;
        let run = self.run()?;
        let total = run.machines().count();
        let answered = self.facts.answered;
        if kind == JobKind::PlanCleanup {
            return Ok(if self.facts.warned {
                Done::warning("something of the drill is left: the jobs of its machines say what")
            } else {
                Done::said("nothing of the drill is left")
            });
        }
        let now = self.core.world.now();
        let took = now.since(self.job.started.unwrap_or(self.job.created));
        let seconds = took.as_secs_f64();
        let late = run.rto_seconds.filter(|objective| seconds > *objective as f64);
        let mut words = format!("{answered} of {total} machines answer after {seconds:.1} s");
        match (late, run.rto_seconds) {
            (Some(objective), _) => words.push_str(&format!("; the objective of {objective} s was missed")),
            (None, Some(objective)) => words.push_str(&format!("; the objective is {objective} s")),
            (None, None) => {}
        }
        if answered == 0 {
            return Err(Fault::new(FaultClass::Failed, "plan.failed", words)
                .affects("all machines of the plan")
                .spares("their replicas and recovery points")
                .remedy("the jobs of its machines say why: continuum get jobs"));
        }
        let passed = answered == total && late.is_none();
        let drill = (kind == JobKind::PlanDrill).then_some(DrillRow { at: now, passed, took: Some(took) });
        let done = if passed { Done::said(words) } else { Done::warning(words) };
        Ok(Done { drill, ..done })
    }
}

/// Whether a job is over. One that is gone from memory was.
fn is_over(estate: &Estate, job: JobId) -> bool {
    estate.jobs.get(&job).is_none_or(|entry| entry.row.state.is_over())
}
