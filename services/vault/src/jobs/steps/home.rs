//! Steps of the way home: another point, the failover taken back, the reverse direction, the failback.
//!
//! Exactly one side holds the pen: the recovery site until `epoch-home` is written, the source from then on. Whatever
//! fails before is taken back, so that the machine goes on at the recovery site; nothing after it can fail the job
//! in a way that would start a second copy.

use super::*;
use continuum_model::id::ViewId;

impl Ctx<'_> {
    /// The machine that was brought up.
    fn moved(&self) -> Result<(MachineRow, Protection, BroughtUp), Fault> {
        let (row, protection) = self.protection()?;
        let run = protection.failed_over.clone().ok_or_else(|| odd("the machine was not failed over"))?;
        Ok((row, protection, run))
    }

    /// Removes a view with what was written on it.
    pub(super) async fn close(&self, view: ViewId, part: &str) -> Result<(), Fault> {
        let (_, protection) = self.protection()?;
        let view_id = view.to_string();
        let stop = Act::StopGuest(pb::StopGuest { view_id: view_id.clone() });
        self.ask(protection.master_target, &format!("{part}/{view}/stop"), stop, QUICK).await?;
        let close = Act::CloseView(pb::CloseView { view_id });
        self.ask(protection.master_target, &format!("{part}/{view}"), close, QUICK).await.map(drop)
    }

    /// Whatever ran on the view runs again.
    pub(super) async fn start_again(&self, view: Option<ViewId>) -> Result<(), Fault> {
        let (row, protection) = self.protection()?;
        let Some(view) = view else { return Ok(()) };
        let act = Act::StartGuest(pb::StartGuest {
            view_id: view.to_string(),
            guest: row.guest.clone(),
            machine_name: row.name.clone(),
            isolated: false,
        });
        self.reach(protection.master_target, "master target", QUICK).await?;
        self.ask(protection.master_target, "/again", act, QUICK).await.map(drop)
    }

    /// One copy at a time: the one that runs makes room for the one that is brought up.
    pub(super) async fn stop_former(&self) -> Result<Done, Fault> {
        let (_, protection, run) = self.moved()?;
        let act = Act::StopGuest(pb::StopGuest { view_id: run.view.to_string() });
        self.ask(protection.master_target, "", act, QUICK).await?;
        Ok(Done::said("what ran so far is stopped; its disks are kept until the commit"))
    }

    pub(super) async fn start_former(&self) -> Result<(), Fault> {
        let (.., run) = self.moved()?;
        self.start_again(Some(run.view)).await
    }

    pub(super) fn point_changed(&self) -> Result<Done, Fault> {
        let (.., former) = self.moved()?;
        let mut run = self.brought_up(former.kind)?;
        run.former = former.former;
        run.former.push(former.view);
        Ok(Done::said("running as of another point; commit it, or choose another one")
            .with(vec![Write::Move(Event::PointChanged), Write::FailedOver(run)]))
    }

    /// The old source must be there, whole: it takes the machine back.
    pub(super) async fn check_source(&self) -> Result<Done, Fault> {
        let (row, _, run) = self.moved()?;
        let agent = agent_of(row.id);
        self.reach(agent, "the agent of the old source of", self.core.patience()).await?;
        let told: Vec<u64> = {
            let estate = self.core.estate();
            let report = estate.machines.get(&row.id).and_then(|entry| entry.live.agent.as_ref());
            report
                .map(|(report, _)| report.disks.iter().map(|disk| disk.size_bytes).collect())
                .unwrap_or_default()
        };
        let sizes: Vec<u64> = run.disks.iter().map(|disk| disk.size_bytes).collect();
        if !told.is_empty() && told != sizes {
            return Err(Fault::new(
                FaultClass::NotReady,
                "home.disks",
                format!(
                    "the disks at the old source of {} are not those that were protected",
                    shown(&row.name)
                ),
            )
            .affects("the way home of this machine")
            .spares("the machine at the recovery site, which goes on")
            .remedy("give the old host disks of the same sizes, in the same order"));
        }
        if self.kind() == Some(JobKind::Failback) {
            let view = run.view.to_string();
            let whole = self.core.until(|estate| {
                let receiving = estate.machines.get(&row.id)?.live.agent.as_ref()?.0.receiving.as_ref()?;
                (receiving.whole && receiving.view_id == view).then_some(receiving.newest_us)
            });
            let Ok(newest) = tokio::time::timeout(self.core.patience(), whole).await else {
                return Err(Fault::new(
                    FaultClass::NotReady,
                    "home.not-whole",
                    format!("nothing whole is at the old source of {} now", shown(&row.name)),
                )
                .affects("this failback")
                .spares("the machine at the recovery site, and the disks of the old source")
                .remedy("wait until the reverse direction is continuous, then try again"));
            };
            let newest = Timestamp::from_micros(newest);
            return Ok(Done::said(format!("the old source is there and whole, as of {newest}")));
        }
        Ok(Done::said("the old source is there"))
    }

    /// The pen goes home.
    pub(super) fn epoch_home(&self) -> Done {
        let event =
            if self.kind() == Some(JobKind::Failback) { Event::CameHome } else { Event::CancelFailover };
        Done::said("a new epoch: the recovery site's is over").with(vec![
            Write::Move(event),
            Write::Epoch,
            Write::Fenced(false),
        ])
    }

    /// The machine at its source may write. An agent that is away learns it by its new epoch.
    pub(super) async fn let_write(&self) -> Done {
        match self.release_source().await {
            Ok(()) => Done::said("its disks at the source take its writes again"),
            Err(fault) => Done::warning(format!(
                "the agent did not answer; it lets its machine write when it hears of the new epoch: {}",
                shown(&fault.message)
            )),
        }
    }

    /// What was brought up is removed, with what was written on it. It was stopped before: what cannot be removed now
    /// only takes space.
    pub(super) async fn close_views(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(run) = protection.failed_over else { return Ok(Done::said("nothing is left")) };
        // What the machine brought home is not at the replica yet: until it is, this is the second copy of it.
        if self.kind() == Some(JobKind::Failback)
            && matches!(protection.state, ProtectionState::Resync { .. })
        {
            return Ok(Done::warning("what was brought up is kept, stopped, until it is unprotected"));
        }
        let mut left = None;
        for view in std::iter::once(run.view).chain(run.former) {
            if let Err(fault) = self.close(view, "/close").await {
                left = Some(format!(
                    "view {view} is left at the recovery site, stopped: {}",
                    shown(&fault.message)
                ));
            }
        }
        let done = match left {
            Some(left) => Done::warning(format!("{left}; unprotect removes it")),
            None => Done::said("nothing is left at the recovery site but the replica"),
        };
        Ok(done.with(vec![Write::BroughtDown]))
    }

    /// Until the old source holds a state of what runs at the recovery site.
    pub(super) async fn await_all(&self) -> Result<Done, Fault> {
        let (row, protection, _) = self.moved()?;
        let id = row.id;
        let arrived = self.core.until(|estate| {
            let entry = estate.machines.get(&id)?;
            match entry.row.protection.as_ref().map(|protection| &protection.state) {
                Some(ProtectionState::Reversed) => {
                    let receiving = entry.live.agent.as_ref()?.0.receiving.as_ref()?;
                    Some(Ok((receiving.received_bytes, receiving.branch.clone())))
                }
                Some(ProtectionState::Reprotecting) => None,
                _ => Some(Err(odd("the direction was changed meanwhile"))),
            }
        });
        tokio::pin!(arrived);
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        let agent = agent_of(id);
        loop {
            tokio::select! {
                done = &mut arrived => {
                    let (bytes, branch) = done?;
                    let bytes = continuum_model::units::Bytes(bytes);
                    return Ok(Done::said(format!(
                        "{bytes} differed and arrived; what was there before is kept as branch {}", shown(&branch)
                    )));
                }
                _ = pace.tick() => {
                    let (detail, waiting) = {
                        let estate = self.core.estate();
                        let receiving = estate.machines.get(&id)
                            .and_then(|entry| entry.live.agent.as_ref()?.0.receiving.clone());
                        if !estate.connected(agent) {
                            ("the agent of the old source is not connected; it goes on where it was".to_owned(), true)
                        } else if !estate.connected(protection.master_target) {
                            ("the master target is not connected; it goes on where it was".to_owned(), true)
                        } else if let Some(fault) = receiving.as_ref().and_then(|told| told.fault.as_ref()) {
                            (shown(&fault.message), true)
                        } else {
                            let bytes = continuum_model::units::Bytes(receiving.map_or(0, |told| told.received_bytes));
                            (format!("comparing both sides; {bytes} differed so far"), false)
                        }
                    };
                    self.tell(None, detail, waiting);
                }
            }
        }
    }

    /// What was brought up takes no more writes; its last one is marked.
    pub(super) async fn drain(&mut self) -> Result<Done, Fault> {
        let (_, protection, run) = self.moved()?;
        let act = Act::StopView(pb::StopView {
            view_id: run.view.to_string(),
            point_id: self.point_text()?,
            release: false,
        });
        let Answer::Barrier(barrier) = self.ask(protection.master_target, "", act, QUICK).await? else {
            return Err(odd("the target did not say where the machine stopped"));
        };
        self.facts.position = Some(barrier.sequence);
        let at = Timestamp::from_micros(barrier.time_us);
        Ok(Done::said(format!("the recovery site takes no writes since {at}")))
    }

    pub(super) async fn undrain(&self) -> Result<(), Fault> {
        let (_, protection, run) = self.moved()?;
        let act = Act::StopView(pb::StopView {
            view_id: run.view.to_string(),
            point_id: String::new(),
            release: true,
        });
        self.reach(protection.master_target, "master target", QUICK).await?;
        self.ask(protection.master_target, "/release", act, QUICK).await.map(drop)
    }

    /// Until all of it is on the old source's disks.
    pub(super) async fn await_home(&self) -> Result<Done, Fault> {
        let (row, _, run) = self.moved()?;
        let position = self.facts.position.ok_or_else(|| odd("the recovery site was not drained"))?;
        let view = run.view.to_string();
        let landed = self.core.until(|estate| {
            let receiving = estate.machines.get(&row.id)?.live.agent.as_ref()?.0.receiving.as_ref()?;
            let there = receiving.view_id == view && receiving.whole && receiving.sequence >= position;
            there.then_some(receiving.received_bytes)
        });
        match tokio::time::timeout(SLOW, landed).await {
            Ok(bytes) => Ok(Done::said(format!(
                "everything arrived: {} since the direction was reversed",
                continuum_model::units::Bytes(bytes)
            ))),
            Err(_) => Err(Fault::new(
                FaultClass::Failed,
                "home.not-arrived",
                format!("not everything arrived within {} s", SLOW.as_secs()),
            )
            .affects("this failback")
            .spares("the machine at the recovery site, which goes on")
            .remedy("see the connection between the old source and the master target, then try again")),
        }
    }

    pub(super) async fn recovery_digest(&mut self) -> Result<Done, Fault> {
        let (_, protection, run) = self.moved()?;
        let act = Act::ViewDigest(pb::ViewDigest { view_id: run.view.to_string() });
        let Answer::Digests(digests) = self.ask(protection.master_target, "", act, DIGEST).await? else {
            return Err(odd("the target told no digests"));
        };
        self.facts.source_digests = digests.disks.into_iter().map(|disk| disk.digest).collect();
        Ok(Done::said(format!("{} disk(s) read at the recovery site", self.facts.source_digests.len())))
    }

    pub(super) async fn home_digest(&mut self) -> Result<Done, Fault> {
        let (row, ..) = self.moved()?;
        let act = Act::HomeDigest(pb::HomeDigest {});
        let Answer::Digests(digests) = self.ask(agent_of(row.id), "", act, DIGEST).await? else {
            return Err(odd("the agent told no digests"));
        };
        let told = digests.disks.into_iter().map(|disk| disk.digest);
        self.facts.verified = row
            .disks
            .iter()
            .zip(self.facts.source_digests.iter().cloned().zip(told))
            .map(|(disk, (source, replica))| Verified {
                name: disk.name.clone(),
                equal: source == replica,
                source,
                replica,
            })
            .collect();
        Ok(Done::said(format!("{} disk(s) read at the old source", self.facts.verified.len())))
    }

    pub(super) fn equal(&self) -> Result<Done, Fault> {
        let disks = self.facts.verified.len();
        let differs = self.facts.verified.iter().find(|disk| !disk.equal);
        if let Some(disk) = differs {
            return Err(Fault::new(
                FaultClass::Failed,
                "home.differs",
                format!("disk {} at the old source is not what was at the recovery site", shown(&disk.name)),
            )
            .affects("this failback")
            .spares("the machine at the recovery site, which goes on")
            .remedy("cancel the reverse direction and reprotect: both sides are compared anew"));
        }
        if disks == 0 || disks != self.facts.source_digests.len() {
            return Err(odd("not every disk was compared"));
        }
        let digests: Vec<&str> = self.facts.verified.iter().map(|disk| disk.source.as_str()).collect();
        Ok(Done::said(format!("{disks} disk(s) equal on both sides: {}", shown(&digests.join(", ")))))
    }

    /// Until the source is protected again: what it brought home is at the replica.
    pub(super) async fn forward(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let id = row.id;
        if !self.job.params.planned && !self.core.estate().connected(protection.master_target) {
            return Ok(Done::warning("replication goes on by itself when the master target is back"));
        }
        self.tell(None, "what the machine brought home is sent to the replica", false);
        let protected = self.core.until(|estate| {
            let protection = estate.machines.get(&id)?.row.protection.as_ref()?;
            match protection.state {
                ProtectionState::Resync { .. } => None,
                _ => Some(protection.state.name()),
            }
        });
        let cancel = self.core.cancel_token(self.job.id);
        let ended = tokio::select! {
            ended = protected => ended,
            () = cancel.cancelled() => {
                return Ok(Done::warning("not waited for any longer: replication goes on by itself"));
            }
        };
        match ended {
            "protected" => Ok(Done::said("protected again, with the history it had")),
            other => Ok(Done::warning(format!("it is {other} now"))),
        }
    }

    /// Before an unplanned failback: whoever can still be asked is stopped first.
    pub(super) async fn stop_if_there(&self) -> Result<Done, Fault> {
        let (_, protection, run) = self.moved()?;
        if !self.core.estate().connected(protection.master_target) {
            return Ok(Done::warning("the recovery site does not answer: it is stopped when it comes back"));
        }
        let act = Act::StopGuest(pb::StopGuest { view_id: run.view.to_string() });
        match self.ask(protection.master_target, "", act, QUICK).await {
            Ok(_) => Ok(Done::said("what ran at the recovery site is stopped")),
            Err(fault) => {
                Ok(Done::warning(format!("it could not be stopped now: {}", shown(&fault.message))))
            }
        }
    }

    /// Whatever still runs at the recovery site is stopped. One that does not answer is stopped when it comes back
    /// (`coordination::reports`). Its disks stay: what did not come home is only there.
    pub(super) async fn retire(&self) -> Result<Done, Fault> {
        let (_, protection) = self.protection()?;
        let Some(run) = protection.failed_over else { return Ok(Done::said("nothing is left there")) };
        let later = "the recovery site does not answer: see that nothing there is used; it is stopped when it comes back";
        if !self.core.estate().connected(protection.master_target) {
            return Ok(Done::warning(later));
        }
        let act = Act::StopGuest(pb::StopGuest { view_id: run.view.to_string() });
        Ok(match self.ask(protection.master_target, "", act, QUICK).await {
            Ok(_) => Done::said(
                "the copy at the recovery site is stopped; its disks are kept there until it is unprotected",
            )
            .with(vec![Write::BroughtDown]),
            Err(fault) => Done::warning(format!("{later} ({})", shown(&fault.message))),
        })
    }
}
