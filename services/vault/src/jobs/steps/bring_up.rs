//! Steps that bring a machine up at a moment, and take it down again.

use super::*;

impl Ctx<'_> {
    pub(super) async fn check_target(&self) -> Result<Done, Fault> {
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
    pub(super) async fn process_received(&self) -> Result<Done, Fault> {
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

    /// The machine at its source writes no more; what it wrote last is cut as a point.
    pub(super) async fn stop_source(&mut self) -> Result<Done, Fault> {
        let (row, _) = self.protection()?;
        let agent = agent_of(row.id);
        self.reach(agent, "the agent of", QUICK).await?;
        let act = Act::StopSource(pb::StopSource { point_id: self.point_text()?, release: false });
        // A machine that is shut down takes its time.
        let Answer::Barrier(barrier) = self.ask(agent, "", act, SLOW).await? else {
            return Err(odd("the agent did not say where the source stopped"));
        };
        self.facts.position = Some(barrier.sequence);
        let at = Timestamp::from_micros(barrier.time_us);
        Ok(Done::said(format!("the source takes no writes since {at}")))
    }

    /// The machine at its source may write again.
    pub(super) async fn release_source(&self) -> Result<(), Fault> {
        let (row, _) = self.protection()?;
        let agent = agent_of(row.id);
        self.reach(agent, "the agent of", QUICK).await?;
        let act = Act::StopSource(pb::StopSource { point_id: String::new(), release: true });
        self.ask(agent, "/release", act, SLOW).await.map(drop)
    }

    pub(super) async fn fence(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::FenceReplica(pb::FenceReplica { machine_id: row.id.to_string(), epoch: row.epoch });
        self.ask(protection.master_target, "", act, QUICK).await?;
        Ok(Done::said(format!("the target takes nothing below epoch {}", row.epoch)))
    }

    pub(super) async fn resolve_point(&mut self) -> Result<Done, Fault> {
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

    pub(super) fn view(&self) -> Result<String, Fault> {
        self.facts.view.map(|view| view.to_string()).ok_or_else(|| odd("the job has no view"))
    }

    pub(super) async fn open_view(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let act = Act::OpenView(pb::OpenView {
            machine_id: row.id.to_string(),
            view_id: self.view()?,
            position: self.facts.position.ok_or_else(|| odd("no point was resolved"))?,
            keep: matches!(self.kind(), Some(JobKind::Failover | JobKind::ChangePoint)),
        });
        let Answer::Opened(opened) = self.ask(protection.master_target, "", act, QUICK).await? else {
            return Err(odd("the target did not say where the disks are"));
        };
        self.facts.disks = opened.disks.iter().map(project::served_from).collect();
        Ok(Done::said(format!("{} disk(s) served as of the point", self.facts.disks.len())))
    }

    pub(super) async fn start_guest(&self) -> Result<Done, Fault> {
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

    pub(super) async fn probe(&mut self) -> Result<Done, Fault> {
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

    pub(super) fn brought_up(&self, kind: Option<FailoverKind>) -> Result<Box<BroughtUp>, Fault> {
        Ok(Box::new(BroughtUp {
            job: self.job.id,
            view: self.facts.view.ok_or_else(|| odd("the job has no view"))?,
            kind,
            at: self.core.world.now(),
            point: self.facts.point.clone(),
            disks: self.facts.disks.clone(),
            probes: self.facts.probes.clone(),
            former: Vec::new(),
        }))
    }

    pub(super) async fn running(&mut self) -> Result<Done, Fault> {
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

    pub(super) async fn stop_guest(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(view) = self.facts.view else { return Ok(Done::said("there was none")) };
        let act = Act::StopGuest(pb::StopGuest { view_id: view.to_string() });
        let answer = self.ask(protection.master_target, self.undoing(), act, QUICK).await?;
        Ok(Done::said(said(&answer, "stopped")))
    }

    pub(super) async fn close_view(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(view) = self.facts.view else { return Ok(Done::said("there was none")) };
        let act = Act::CloseView(pb::CloseView { view_id: view.to_string() });
        let answer = self.ask(protection.master_target, self.undoing(), act, QUICK).await?;
        Ok(Done::said(said(&answer, "closed and removed")))
    }

    pub(super) fn commit_pending(&self) -> Result<Done, Fault> {
        let planned = self.job.params.planned;
        let kind = if planned { FailoverKind::Planned } else { FailoverKind::Unplanned };
        let run = self.brought_up(Some(kind))?;
        Ok(Done::said("running at the recovery site; commit it, or choose another point")
            .with(vec![Write::Move(Event::BroughtUp), Write::FailedOver(run)]))
    }

    pub(super) async fn drop_points(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let point = protection.failed_over.as_ref().and_then(|run| run.point.as_ref());
        let position =
            point.map(|point| point.position).ok_or_else(|| odd("the machine was not failed over"))?;
        if let Some(run) = &protection.failed_over {
            for view in &run.former {
                self.close(*view, "/former").await?;
            }
        }
        let act = Act::DropOtherPoints(pb::DropOtherPoints { machine_id: row.id.to_string(), position });
        let answer = self.ask(protection.master_target, "", act, SLOW).await?;
        Ok(Done::said(said(&answer, "the other recovery points were dropped")))
    }
}

/// The words for a moment that lies in a gap.
pub(crate) fn note_of_gap(gap: &pb::Gap, which: &str) -> String {
    let (from, to) = (Timestamp::from_micros(gap.from_us), Timestamp::from_micros(gap.to_us));
    let why = if gap.reason.is_empty() { String::new() } else { format!(" ({})", shown(&gap.reason)) };
    format!(
        "the moment {which} lies in a gap from {from} to {to}{why}: the newest moment before it was taken"
    )
}
