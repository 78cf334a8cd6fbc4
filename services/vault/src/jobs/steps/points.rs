//! Steps about recovery points: cut, compared, proven, pinned.

use super::*;

impl Ctx<'_> {
    pub(super) async fn mark_point(&self, point: &PointRow, pinned: Option<bool>) -> Result<(), Fault> {
        self.mark_and_lock(point, pinned, 0).await
    }

    async fn mark_and_lock(
        &self,
        point: &PointRow,
        pinned: Option<bool>,
        lock_seconds: u64,
    ) -> Result<(), Fault> {
        let (row, protection) = self.protection()?;
        let proofs =
            pb::Proofs { booted: point.booted, probed: point.probed, digest_equal: point.digest_equal };
        let act = Act::MarkPoint(pb::MarkPoint {
            machine_id: row.id.to_string(),
            point_id: point.id.map(|id| id.to_string()).unwrap_or_default(),
            pinned,
            proofs: Some(proofs),
            lock_seconds,
        });
        self.ask(protection.master_target, "/mark", act, QUICK).await.map(drop)
    }

    pub(super) fn point_text(&self) -> Result<String, Fault> {
        self.facts.point_id.map(|id| id.to_string()).ok_or_else(|| odd("the job has no point"))
    }

    pub(super) async fn source_digest(&mut self) -> Result<Done, Fault> {
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

    pub(super) fn new_point(&self, position: u64, time_us: i64, kind: PointKind, name: &str) -> PointRow {
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
    pub(super) async fn await_target(&self) -> Result<Done, Fault> {
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

    pub(super) async fn replica_digest(&mut self) -> Result<Done, Fault> {
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

    pub(super) async fn compare(&mut self) -> Result<Done, Fault> {
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

    pub(super) async fn barrier(&mut self) -> Result<Done, Fault> {
        let (row, _) = self.protection()?;
        let act = Act::MakeBarrier(pb::MakeBarrier {
            point_id: self.point_text()?,
            kind: if self.job.params.app_consistent { PointKind::App } else { PointKind::Bookmark }
                .name()
                .to_owned(),
            name: self.job.params.name.clone(),
        });
        let patience = if self.job.params.app_consistent { HOOKS } else { SLOW };
        let Answer::Barrier(barrier) = self.ask(agent_of(row.id), "", act, patience).await? else {
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
        // As it was cut: not always as it was ordered.
        let kind = PointKind::named(&barrier.kind).unwrap_or(PointKind::Bookmark);
        let name = if barrier.name.is_empty() {
            self.job.params.name.clone()
        } else {
            crate::coordination::reports::limited(&barrier.name, 253)
        };
        self.facts.point = Some(self.new_point(barrier.sequence, barrier.time_us, kind, &name));
        let words = format!("cut at {}", Timestamp::from_micros(barrier.time_us));
        if barrier.reason.is_empty() {
            return Ok(Done::said(words));
        }
        let why = shown(&barrier.reason);
        self.facts.note = format!("crash-consistent, not application-consistent: {why}");
        Ok(Done::warning(format!("{words}; crash-consistent, not application-consistent: {why}")))
    }

    /// All members of a group cut one point together. Each attempt has a point of its own: what one that came to
    /// nothing left is an ordinary point of each machine, and no second one may be called like it.
    pub(super) async fn group_barrier(&mut self) -> Result<Done, Fault> {
        let group = self.job.params.group.clone();
        let leader = {
            let estate = self.core.estate();
            let entry = estate.groups.get(&group).ok_or_else(|| crate::groups::no_group(&group))?;
            estate.leader_of(&entry.row).map(|(id, _)| id)
        };
        let leader = leader.ok_or_else(|| {
            Fault::new(
                FaultClass::NotReady,
                "group.no-leader",
                "no member of the group can be reached by the others",
            )
            .affects("this point")
            .spares("earlier points, and the replication of each machine")
            .remedy("see `continuum describe group`, then retry the job")
        })?;
        let act = Act::MakeGroupPoint(pb::MakeGroupPoint {
            group,
            point_id: self.core.world.id(continuum_model::id::PointId::make).to_string(),
            name: self.job.params.name.clone(),
        });
        let Answer::Barrier(barrier) = self.ask(agent_of(leader), "", act, QUICK).await? else {
            return Err(odd("the agent that leads the group cut no barrier"));
        };
        self.facts.point_id = Some(barrier.point_id.parse().map_err(|_| odd("the point's id is none"))?);
        let (at, name) = (Timestamp::from_micros(barrier.time_us), self.job.params.name.clone());
        self.facts.point =
            Some(self.new_point(barrier.sequence, barrier.time_us, PointKind::Bookmark, &name));
        Ok(Done::said(format!("every member cut it while all held, at {at}")))
    }

    pub(super) async fn group_listed(&self) -> Result<Done, Fault> {
        let id = self.facts.point_id.ok_or_else(|| odd("no point was cut"))?;
        self.tell(None, "waiting for every member's word, and for the targets to have it", false);
        let listed = self.core.until(|estate| estate.group_points.get(&id).map(|point| point.machines.len()));
        match tokio::time::timeout(SLOW, listed).await {
            Ok(machines) => Ok(Done::said(format!("shared by {machines} machines"))),
            Err(_) => Err(Fault::new(
                FaultClass::Failed,
                "group.not-listed",
                format!("not every member's replica had the point within {} s", SLOW.as_secs()),
            )
            .affects("this point: it is one of each machine, and not counted as shared")
            .spares("earlier points; replication goes on")
            .remedy("see the members' RPO and backlog, then retry the job")),
        }
    }

    pub(super) fn listed(&self) -> Result<Done, Fault> {
        let point = self.facts.point.clone().ok_or_else(|| odd("no moment was cut"))?;
        Ok(Done::said(format!("recovery point of {}", point.time)).with(vec![Write::Point(Box::new(point))]))
    }

    pub(super) async fn mark(&self) -> Result<Done, Fault> {
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
        let lock_seconds = self.job.params.lock_seconds;
        self.mark_and_lock(&point, Some(point.pinned), lock_seconds).await?;
        let words = match (lock_seconds, point.pinned) {
            (1.., _) => "locked: nobody can let it go until then",
            (0, true) => "pinned: retention leaves it",
            (0, false) => "no longer pinned",
        };
        Ok(Done::said(words).with(vec![Write::Point(Box::new(point))]))
    }
}

fn in_order(disks: &[pb::DiskDigest]) -> Vec<String> {
    let mut disks: Vec<_> = disks.iter().collect();
    disks.sort_by_key(|disk| disk.index);
    disks.iter().map(|disk| disk.digest.clone()).collect()
}
