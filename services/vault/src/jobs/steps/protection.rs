//! Steps that begin and end a protection.

use super::*;

impl Ctx<'_> {
    pub(super) async fn check_protect(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let patience = self.core.patience();
        self.reach(agent_of(row.id), "the agent of", patience).await?;
        self.reach(protection.process_server, "process server", patience).await?;
        self.reach(protection.master_target, "master target", patience).await?;
        // An agent tells of its disks when it comes: one that was enrolled a moment ago had none yet.
        if self.machine()?.disks.is_empty() {
            return Err(Fault::new(
                FaultClass::NotReady,
                "machine.no-disks",
                "the machine has told of no disks",
            )
            .affects("this machine")
            .spares("all others")
            .remedy("see that its agent serves at least one disk, then retry the job"));
        }
        Ok(Done::said("agent, process server and master target are there"))
    }

    /// The target must know of the replica before the source ships anything.
    pub(super) async fn relate(&self) -> Result<Done, Fault> {
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
            match protection.start_at.filter(|at| *at > self.core.world.now()) {
                Some(_) => vec![Write::Move(Event::Related), Write::Move(Event::Pause)],
                None => vec![Write::Move(Event::Related), Write::StartAt(None)],
            }
        } else {
            Vec::new()
        };
        Ok(Done::said("the replica is open").with(related))
    }

    pub(super) async fn initial_replication(&self) -> Result<Done, Fault> {
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
                        let now = self.core.world.now();
                        estate.machines.get(&id).map(|entry| initial_progress(entry, &estate, now))
                    };
                    if let Some(progress) = progress {
                        self.core.progress(self.job.id, progress);
                    }
                }
            }
        }
    }

    pub(super) async fn stop_replication(&self) -> Result<Done, Fault> {
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
    pub(super) async fn bring_down(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let run = protection.failed_over.filter(|_| !self.job.params.keep_replica);
        let brought_up = run.is_some();
        if let Some(run) = run {
            let view_id = run.view.to_string();
            let stop = Act::StopGuest(pb::StopGuest { view_id: view_id.clone() });
            self.ask(protection.master_target, "/guest", stop, QUICK).await?;
            let close = Act::CloseView(pb::CloseView { view_id });
            self.ask(protection.master_target, "/view", close, QUICK).await?;
            for former in run.former {
                self.close(former, "/former").await?;
            }
        }
        // Who ends the protection of a machine that was moved takes it back where it is: after it stopped there.
        let stopped = {
            let estate = self.core.estate();
            let report = estate.machines.get(&row.id).and_then(|entry| entry.live.agent.as_ref());
            report.is_some_and(|(report, _)| report.stopped) && estate.connected(agent_of(row.id))
        };
        if stopped {
            self.release_source().await?;
        }
        if !brought_up {
            return Ok(Done::said("nothing was brought up"));
        }
        Ok(Done::said("the machine at the recovery site was stopped").with(vec![Write::BroughtDown]))
    }

    pub(super) async fn remove_replica(&mut self) -> Result<Done, Fault> {
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

    /// What is left, and where, stands in the job.
    pub(super) fn forget(&mut self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let points = !self.job.params.keep_replica;
        let mut left = Vec::new();
        {
            let estate = self.core.estate();
            let report = estate.machines.get(&row.id).and_then(|entry| entry.live.agent.as_ref());
            if let Some((report, _)) = report {
                if report.branches > 0 {
                    left.push(format!(
                        "on the machine's host {} branch(es) of {}, of what its disks held before it came home (continuum branch list)",
                        report.branches,
                        continuum_model::units::Bytes(report.branch_bytes)
                    ));
                }
                if report.stopped && !estate.connected(agent_of(row.id)) {
                    left.push("its disks take no writes until its agent is back and it is protected again, or `halted` is removed from the agent's folder".into());
                }
            }
            if self.job.params.keep_replica {
                let target = shown(&estate.server_name(protection.master_target));
                left.push(format!("its replica, at {target}"));
                if protection.failed_over.is_some() {
                    left.push(format!("the machine as it runs there, at {target}"));
                }
            }
        }
        let left =
            if left.is_empty() { "nothing is left".to_owned() } else { format!("left: {}", left.join("; ")) };
        self.facts.note =
            if self.facts.note.is_empty() { left.clone() } else { format!("{}; {left}", self.facts.note) };
        Ok(Done::said(format!("the machine is no longer protected; {left}"))
            .with(vec![Write::Forget { points }]))
    }
}

fn initial_done(entry: &MachineEntry) -> Option<Result<u64, Fault>> {
    let protection = entry.row.protection.as_ref()?;
    let (agent, _) = entry.live.agent.as_ref()?;
    let (replica, _) = entry.live.replica.as_ref()?;
    // A moment of this protection, not of a replica that was kept from an earlier one.
    let whole = replica.epoch >= entry.row.epoch
        && agent.epoch >= entry.row.epoch
        && continuum_model::health::Mode::named(&agent.mode)
            .is_some_and(continuum_model::health::Mode::is_whole)
        && replica.newest_point_us.is_some_and(|newest| newest >= protection.since.micros());
    whole.then_some(Ok(agent.initial_bytes_total))
}

fn initial_progress(entry: &MachineEntry, estate: &Estate, now: Timestamp) -> Progress {
    let paused = entry.row.protection.as_ref().is_some_and(|protection| protection.state.is_paused());
    let away = !estate.connected(agent_of(entry.row.id));
    let agent = entry.live.agent.as_ref().map(|(report, _)| report);
    let fraction = agent
        .filter(|report| report.initial_bytes_total > 0)
        .map(|report| report.initial_bytes_done as f64 / report.initial_bytes_total as f64);
    let start_at = entry.row.protection.as_ref().and_then(|protection| protection.start_at);
    let (detail, waiting) = if let Some(at) = start_at.filter(|_| paused) {
        (format!("begins at {at}; resume begins it now"), true)
    } else if paused {
        ("paused by an operator".to_owned(), true)
    } else if away {
        ("the agent is not connected; it goes on where it was".to_owned(), true)
    } else if let Some(fault) = agent.and_then(|report| report.channel_fault.as_ref()) {
        (shown(&fault.message), true)
    } else {
        let bytes = |pick: fn(&pb::AgentReport) -> u64| continuum_model::units::Bytes(agent.map_or(0, pick));
        let mut words = format!(
            "{} of {}",
            bytes(|report| report.initial_bytes_done),
            bytes(|report| report.initial_bytes_total)
        );
        if let Some(rate) = entry.live.truth.copied.bytes_per_sec() {
            words.push_str(&format!(", {}/s", continuum_model::units::Bytes(rate)));
        }
        match crate::truth::estimate(entry, estate) {
            (Some(seconds), _) => {
                words.push_str(&format!(", done about {}", now.plus(Duration::from_secs(seconds as u64))));
            }
            (None, note) if !note.is_empty() => words.push_str(&format!(", {note}")),
            _ => {}
        }
        (words, false)
    };
    Progress { fraction, detail, waiting }
}
