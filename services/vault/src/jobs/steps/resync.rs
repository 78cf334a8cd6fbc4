//! Steps of a resync that was ordered: all of source and replica is compared, what differs is sent.

use super::*;
use continuum_model::units::Bytes;

impl Ctx<'_> {
    /// The source doubts everything from now on. Where a resync is required already, that one is it.
    pub(super) async fn compare_all(&self) -> Result<Done, Fault> {
        let (row, protection) = self.protection()?;
        let now = self.job.params.now;
        if matches!(protection.state, ProtectionState::Resync { .. }) {
            let said = if now {
                "a resync is required already: it begins now"
            } else {
                "a resync is required already"
            };
            return Ok(Done::said(said).with(vec![Write::ResyncNow(now || protection.resync_now)]));
        }
        let agent = agent_of(row.id);
        self.reach(agent, "the agent of", self.core.patience()).await?;
        self.ask(agent, "", Act::CompareAll(pb::CompareAll { now }), QUICK).await?;
        let reason = format!("ordered by {}", shown(&self.job.by));
        Ok(Done::said("all of source and replica is compared").with(vec![
            // The agent may have told of it before.
            Write::MoveIfLegal(Event::ResyncRequired { reason }),
            Write::ResyncNow(now),
        ]))
    }

    /// Until both sides are known to be equal; told as it goes.
    pub(super) async fn resync(&self) -> Result<Done, Fault> {
        let id = self.machine_id()?;
        let totals = |entry: &MachineEntry| {
            entry.live.agent.as_ref().map(|(agent, _)| {
                (entry.live.agent_boot.clone(), agent.equal_bytes_total, agent.injected_bytes_total)
            })
        };
        let before = self.core.estate().machines.get(&id).and_then(totals);
        let over = self.core.until(|estate| {
            let entry = estate.machines.get(&id)?;
            match entry.row.protection.as_ref().map(|protection| &protection.state) {
                Some(ProtectionState::Resync { .. }) => None,
                Some(ProtectionState::Protected { .. }) => Some(Ok(totals(entry))),
                Some(state) => Some(Err(state.name())),
                None => Some(Err("unprotected")),
            }
        });
        tokio::pin!(over);
        let mut pace = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                over = &mut over => return match over {
                    Ok(after) => Ok(Done::said(match (before, after) {
                        (Some(before), Some(after)) if before.0 == after.0 => format!(
                            "source and replica are equal: {} were so, {} were sent; all history is kept",
                            Bytes(after.1.saturating_sub(before.1)),
                            Bytes(after.2.saturating_sub(before.2))
                        ),
                        _ => "source and replica are equal; all history is kept".into(),
                    })),
                    Err(state) => Err(Fault::new(
                        FaultClass::Failed,
                        "resync.cancelled",
                        format!("the resync was cancelled: the machine is {state} now"),
                    )
                    .affects("this job")
                    .spares("all recovery points from before it")
                    .remedy("nothing; order another one when the machine is protected again")),
                },
                _ = pace.tick() => {
                    let progress = {
                        let estate = self.core.estate();
                        estate.machines.get(&id).map(|entry| progress(entry, &estate, self.core.world.now()))
                    };
                    if let Some(progress) = progress {
                        self.core.progress(self.job.id, progress);
                    }
                }
            }
        }
    }
}

fn progress(entry: &MachineEntry, estate: &Estate, now: Timestamp) -> Progress {
    let machine = project::machine(entry, estate, now);
    let share = |done: Option<u64>, total: Option<u64>| {
        Some(done? as f64 / total.filter(|total| *total > 0)? as f64).filter(|share| *share <= 1.0)
    };
    let bytes = |bytes: Option<u64>| Bytes(bytes.unwrap_or(0));
    let (fraction, detail, waiting) = match machine.phase.as_str() {
        "comparing" => (
            share(machine.compared_bytes, machine.to_compare_bytes),
            format!("comparing: {} of {}", bytes(machine.compared_bytes), bytes(machine.to_compare_bytes)),
            false,
        ),
        "sending" => (
            share(machine.initial_bytes_done, machine.initial_bytes_total),
            format!(
                "sending what differs: {} of {}",
                bytes(machine.initial_bytes_done),
                bytes(machine.initial_bytes_total)
            ),
            false,
        ),
        "suspended" => (None, "suspended by an operator".into(), true),
        "waiting-for-window" => (None, shown(&machine.mode_reason), true),
        _ => (None, "its agent and its process server".into(), true),
    };
    Progress { fraction, detail, waiting }
}
