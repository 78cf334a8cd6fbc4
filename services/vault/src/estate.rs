//! Everything the vault knows, in memory and written through to the store; and the news of every change.
//!
//! Two kinds of knowledge of a machine: its **row** (what was decided; changes only in [`Estate::change`],
//! which writes it with its event before anyone sees it) and what is **live** (reports; never stored).
//! Watchers get whole entities, each with a sequence number of this run.

use crate::store::Store;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::health::Health;
use continuum_model::id::{DiskId, JobId, MachineId, PolicyId, SiteId};
use continuum_model::policy::Policy;
use continuum_model::protection::{ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, Epoch};
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemEntropy};
use continuum_proto::v1 as pb;
use pb::watch_event::Event as News;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast};

/// News that a slow watcher may be behind before it gets a snapshot instead.
const NEWS_KEPT: usize = 2048;
const EVENTS_KEPT: usize = 1000;
const JOBS_KEPT: i64 = 500;

/// One disk, as the vault numbered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRow {
    /// Its number in frames.
    pub index: u32,
    /// Its id.
    pub id: DiskId,
    /// Its name; text from outside.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Where it is served.
    pub endpoint: String,
}

/// A point, as it is kept with an outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRow {
    /// Its id; empty for a moment between points.
    pub id: String,
    /// Its moment.
    pub time_us: i64,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its place.
    pub position: u64,
}

/// What was asked of a machine that came up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// What.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// What was seen.
    pub detail: String,
}

/// A machine that was brought up at the recovery site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BroughtUp {
    /// By which job.
    pub job: JobId,
    /// Its view.
    pub view: String,
    /// When.
    pub at_us: i64,
    /// From which moment.
    pub point: PointRow,
    /// Its disks.
    pub disks: Vec<DiskRow>,
    /// Its probes.
    pub probes: Vec<ProbeRow>,
}

/// What was decided about a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRow {
    /// Its id.
    pub id: MachineId,
    /// Rises with every change.
    pub version: u64,
    /// Its name; text from outside.
    pub name: String,
    /// The name of its site.
    pub site: String,
    /// The kind of its site.
    pub fabric: String,
    /// What runs on it.
    pub guest: String,
    /// Its disks.
    pub disks: Vec<DiskRow>,
    /// Its protection; `None`: not protected.
    pub protection: Option<ProtectionState>,
    /// The newest epoch.
    pub epoch: Epoch,
    /// The name of its policy.
    pub policy: String,
    /// Where it is recovered.
    pub target_site: String,
    /// Its process server.
    pub process_server: String,
    /// Its master target.
    pub master_target: String,
    /// A test failover.
    pub test_state: TestState,
    /// What the test brought up.
    pub test: Option<BroughtUp>,
    /// What a failover brought up.
    pub failed_over: Option<BroughtUp>,
    /// When it was last drilled, and whether that passed.
    pub last_drill: Option<(i64, bool)>,
}

/// What is reported about a machine.
#[derive(Debug, Default)]
pub struct Live {
    /// By its agent, and when.
    pub agent: Option<(pb::AgentReport, Timestamp)>,
    /// By its master target, and when.
    pub replica: Option<(pb::ReplicaReport, Timestamp)>,
    /// Its agent is connected.
    pub agent_connected: bool,
    /// Figures over time.
    pub figures: crate::health::Figures,
    /// What is wrong now.
    pub symptoms: Vec<pb::Symptom>,
    /// How well it is.
    pub health: Option<Health>,
}

/// A registered server and what is live of it.
#[derive(Debug, Clone, Default)]
pub struct ServerState {
    /// As watchers see it.
    pub shown: pb::Server,
    /// Its session's number; a session that is replaced must not end the new one.
    pub session: u64,
}

struct Inner {
    sequence: u64,
    sites: Vec<pb::Site>,
    servers: BTreeMap<String, ServerState>,
    policies: BTreeMap<String, (PolicyId, Policy)>,
    machines: BTreeMap<MachineId, (MachineRow, Live)>,
    jobs: BTreeMap<JobId, crate::saga::JobRow>,
    alerts: HashMap<String, pb::Alert>,
    events: VecDeque<pb::Event>,
    next_event: u64,
}

/// The vault's knowledge.
pub struct Estate {
    /// Its memory.
    pub store: Store,
    /// Its clock.
    pub clock: Arc<dyn Clock>,
    /// This run of the vault.
    pub run: String,
    /// What this vault is called, and which environment it is.
    pub name: String,
    /// Such as `lab`.
    pub environment: String,
    /// Whose estate.
    pub vault: continuum_model::id::VaultId,
    /// Something changed that servers should be told.
    pub assignments_changed: Notify,
    inner: Mutex<Inner>,
    writing: tokio::sync::Mutex<()>,
    news: broadcast::Sender<pb::WatchEvent>,
}

impl Estate {
    /// Reads everything from the store.
    pub async fn open(
        store: Store,
        clock: Arc<dyn Clock>,
        vault: continuum_model::id::VaultId,
        name: &str,
        environment: &str,
    ) -> Result<Self, Fault> {
        fn read<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
            serde_json::from_str(text)
                .inspect_err(|error| tracing::error!(%error, "a row of the store cannot be read"))
                .ok()
        }
        let mut inner = Inner {
            sequence: 1,
            sites: Vec::new(),
            servers: BTreeMap::new(),
            policies: BTreeMap::new(),
            machines: BTreeMap::new(),
            jobs: BTreeMap::new(),
            alerts: HashMap::new(),
            events: VecDeque::new(),
            next_event: 1,
        };
        for (id, name, fabric, recovery) in store.sites().await? {
            inner.sites.push(pb::Site { id, name, fabric, recovery });
        }
        for [id, name, role, site] in store.servers().await? {
            let shown = pb::Server {
                id: id.clone(),
                name,
                role,
                site,
                health: "warning".into(),
                ..Default::default()
            };
            inner.servers.insert(id, ServerState { shown, session: 0 });
        }
        for [id, name, body] in store.policies().await? {
            if let (Ok(id), Some(policy)) = (id.parse(), read(&body)) {
                inner.policies.insert(name, (id, policy));
            }
        }
        for body in store.machines().await? {
            if let Some(row) = read::<MachineRow>(&body) {
                inner.machines.insert(row.id, (row, Live::default()));
            }
        }
        for body in store.jobs(JOBS_KEPT).await? {
            if let Some(job) = read::<crate::saga::JobRow>(&body) {
                inner.jobs.insert(job.id, job);
            }
        }
        for body in store.alerts(clock.wall().micros() - 86_400_000_000).await? {
            if let Some(alert) = read::<crate::health::AlertRow>(&body) {
                inner.alerts.insert(alert.id.clone(), alert.into());
            }
        }
        for body in store.events(EVENTS_KEPT as i64).await? {
            if let Some(event) = read::<EventRow>(&body) {
                inner.next_event = inner.next_event.max(event.id + 1);
                inner.events.push_back(event.into());
            }
        }
        let run = JobId::make(clock.wall(), &mut SystemEntropy).to_string();
        Ok(Self {
            store,
            clock,
            run,
            name: name.to_owned(),
            environment: environment.to_owned(),
            vault,
            assignments_changed: Notify::new(),
            inner: Mutex::new(inner),
            writing: tokio::sync::Mutex::new(()),
            news: broadcast::channel(NEWS_KEPT).0,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &mut Inner, event: News) {
        inner.sequence += 1;
        // Nobody watching is fine.
        let _ = self.news.send(pb::WatchEvent { sequence: inner.sequence, event: Some(event) });
    }

    fn publish_entity(&self, inner: &mut Inner, entity: pb::entity::Entity) {
        self.publish(inner, News::Changed(pb::Entity { entity: Some(entity) }));
    }

    /// News from now on, and everything there is at this moment.
    pub fn watch(&self) -> (broadcast::Receiver<pb::WatchEvent>, u64, Vec<pb::entity::Entity>) {
        let inner = self.inner();
        // Both under one lock: nothing falls between snapshot and news.
        (self.news.subscribe(), inner.sequence, self.entities(&inner))
    }

    fn entities(&self, inner: &Inner) -> Vec<pb::entity::Entity> {
        use pb::entity::Entity as E;
        let mut all: Vec<E> = inner.sites.iter().cloned().map(E::Site).collect();
        all.extend(
            inner
                .policies
                .iter()
                .map(|(name, (id, policy))| E::Policy(self.policy_shown(inner, name, *id, policy))),
        );
        all.extend(inner.servers.values().map(|server| E::Server(server.shown.clone())));
        all.extend(
            inner.machines.values().map(|(row, live)| E::Machine(self.machine_shown(inner, row, live))),
        );
        all.extend(inner.jobs.values().map(|job| E::Job(job.shown())));
        all.extend(inner.alerts.values().cloned().map(E::Alert));
        all.extend(inner.events.iter().cloned().map(E::Event));
        all
    }

    /// Changes a machine's row: on record with its event before anyone sees it.
    pub async fn change<T>(
        &self,
        machine: MachineId,
        by: &str,
        change: impl FnOnce(&mut MachineRow) -> Result<(T, Option<String>), Fault>,
    ) -> Result<T, Fault> {
        let _writing = self.writing.lock().await;
        let mut row = self.machine(machine)?;
        let before = row.clone();
        let (outcome, text) = change(&mut row)?;
        if row == before && text.is_none() {
            return Ok(outcome);
        }
        row.version += 1;
        let event = text.map(|text| self.make_event("machine", &row.name, &row.id.to_string(), text, by));
        let body = serde_json::to_string(&row).map_err(|error| unwritable(&error))?;
        let event_body = event.as_ref().map(|event| serde_json::to_string(event).unwrap_or_default());
        let event_row = event
            .as_ref()
            .zip(event_body.as_deref())
            .map(|(event, body)| (event.id as i64, event.time_us, body));
        let version = i64::try_from(row.version).unwrap_or(i64::MAX);
        self.store.put_machine(&row.id.to_string(), &row.name, version, &body, event_row).await?;
        let mut inner = self.inner();
        if let Some(event) = event {
            self.keep_event(&mut inner, event.into());
        }
        if let Some((current, _)) = inner.machines.get_mut(&machine) {
            *current = row;
        }
        self.publish_machine(&mut inner, machine);
        drop(inner);
        self.assignments_changed.notify_one();
        Ok(outcome)
    }

    /// A machine that its agent told of: new, or with other disks or another place.
    pub async fn register_machine(&self, id: MachineId, hello: &pb::ServerHello) -> Result<(), Fault> {
        let _writing = self.writing.lock().await;
        let known = self.machine(id).ok();
        let disk = |disk: &pb::Disk| {
            let id = disk
                .id
                .parse()
                .map_err(|_| Fault::new(FaultClass::Usage, "machine.disk", "a disk has no valid id"))?;
            Ok(DiskRow {
                index: disk.index,
                id,
                name: disk.name.clone(),
                size_bytes: disk.size_bytes,
                endpoint: disk.endpoint.clone(),
            })
        };
        let disks = hello.disks.iter().map(disk).collect::<Result<Vec<_>, Fault>>()?;
        let protected = known.as_ref().is_some_and(|row| row.protection.is_some());
        let mut row = known.clone().unwrap_or_else(|| MachineRow {
            id,
            version: 0,
            name: hello.name.clone(),
            site: hello.site.clone(),
            fabric: hello.fabric.clone(),
            guest: hello.guest.clone(),
            disks: Vec::new(),
            protection: None,
            epoch: Epoch(0),
            policy: String::new(),
            target_site: String::new(),
            process_server: String::new(),
            master_target: String::new(),
            test_state: TestState::None,
            test: None,
            failed_over: None,
            last_drill: None,
        });
        if protected && !same_disks(&row.disks, &disks) {
            // The replica was made for the disks that were: say so, change nothing.
            tracing::error!(machine = %id, "the disks of a protected machine changed; its replica stays as it is");
        } else {
            row.disks = disks;
        }
        (row.name, row.guest) = (hello.name.clone(), hello.guest.clone());
        (row.site, row.fabric) = (hello.site.clone(), hello.fabric.clone());
        if known.as_ref() == Some(&row) {
            return Ok(());
        }
        row.version += 1;
        let event = known
            .is_none()
            .then(|| self.make_event("machine", &row.name, &id.to_string(), "discovered".into(), "agent"));
        let body = serde_json::to_string(&row).map_err(|error| unwritable(&error))?;
        let event_body = event.as_ref().map(|event| serde_json::to_string(event).unwrap_or_default());
        let event_row = event
            .as_ref()
            .zip(event_body.as_deref())
            .map(|(event, body)| (event.id as i64, event.time_us, body));
        self.store.put_machine(&id.to_string(), &row.name, row.version as i64, &body, event_row).await?;
        let mut inner = self.inner();
        if let Some(event) = event {
            self.keep_event(&mut inner, event.into());
        }
        match inner.machines.get_mut(&id) {
            Some((current, _)) => *current = row,
            None => drop(inner.machines.insert(id, (row, Live::default()))),
        }
        self.publish_machine(&mut inner, id);
        Ok(())
    }

    fn make_event(&self, kind: &str, object: &str, object_id: &str, text: String, by: &str) -> EventRow {
        let mut inner = self.inner();
        let id = inner.next_event;
        inner.next_event += 1;
        let time_us = self.clock.wall().micros();
        EventRow {
            id,
            time_us,
            kind: kind.into(),
            object: object.into(),
            object_id: object_id.into(),
            text,
            by: by.into(),
        }
    }

    fn keep_event(&self, inner: &mut Inner, event: pb::Event) {
        tracing::info!(object = shown(&event.object), by = shown(&event.by), "{}", shown(&event.text));
        inner.events.push_back(event.clone());
        if inner.events.len() > EVENTS_KEPT {
            inner.events.pop_front();
        }
        self.publish_entity(inner, pb::entity::Entity::Event(event));
    }

    /// An event that belongs to no machine's row.
    pub async fn tell(
        &self,
        kind: &str,
        object: &str,
        object_id: &str,
        text: String,
        by: &str,
    ) -> Result<(), Fault> {
        let event = self.make_event(kind, object, object_id, text, by);
        let body = serde_json::to_string(&event).map_err(|error| unwritable(&error))?;
        self.store.add_event(event.id as i64, event.time_us, &body).await?;
        self.keep_event(&mut self.inner(), event.into());
        Ok(())
    }

    /// A machine by id.
    pub fn machine(&self, id: MachineId) -> Result<MachineRow, Fault> {
        self.inner().machines.get(&id).map(|(row, _)| row.clone()).ok_or_else(|| no_machine(&id.to_string()))
    }

    /// A machine by name or id. Two of one name: only the id will do.
    pub fn find_machine(&self, text: &str) -> Result<MachineRow, Fault> {
        let inner = self.inner();
        if let Some((row, _)) = text.parse().ok().and_then(|id: MachineId| inner.machines.get(&id)) {
            return Ok(row.clone());
        }
        let mut named = inner.machines.values().filter(|(row, _)| row.name == text);
        match (named.next(), named.next()) {
            (Some((row, _)), None) => Ok(row.clone()),
            (Some(_), Some(_)) => Err(Fault::new(
                FaultClass::Usage,
                "machine.ambiguous",
                format!("several machines are called {}", shown(text)),
            )
            .remedy("name it by its id: `continuum get machines -o wide`")),
            (None, _) => Err(no_machine(text)),
        }
    }

    /// All machines.
    pub fn machines(&self) -> Vec<MachineRow> {
        self.inner().machines.values().map(|(row, _)| row.clone()).collect()
    }

    /// Looks at what is live of a machine.
    pub fn live<T>(&self, id: MachineId, look: impl FnOnce(&Live) -> T) -> Option<T> {
        self.inner().machines.get(&id).map(|(_, live)| look(live))
    }

    /// Changes what is live of a machine; told to watchers with the next tick of health.
    pub fn set_live(&self, id: MachineId, change: impl FnOnce(&MachineRow, &mut Live)) {
        if let Some((row, live)) = self.inner().machines.get_mut(&id) {
            change(row, live);
        }
    }

    /// Tells watchers how a machine is now.
    pub fn tell_machine(&self, id: MachineId) {
        self.publish_machine(&mut self.inner(), id);
    }

    fn publish_machine(&self, inner: &mut Inner, id: MachineId) {
        let Some((row, live)) = inner.machines.get(&id) else { return };
        let shown = self.machine_shown(inner, row, live);
        self.publish_entity(inner, pb::entity::Entity::Machine(shown));
    }

    fn machine_shown(&self, inner: &Inner, row: &MachineRow, live: &Live) -> pb::Machine {
        let agent = live.agent.as_ref().map(|(report, _)| report).filter(|_| row.protection.is_some());
        let replica = live.replica.as_ref().map(|(report, _)| report).filter(|_| row.protection.is_some());
        let policy = inner.policies.get(&row.policy).map(|(_, policy)| policy);
        let state = row.protection.as_ref();
        let reason = match state {
            Some(
                ProtectionState::EnablingFailed { reason }
                | ProtectionState::InitialReplicationFailed { reason }
                | ProtectionState::Resync { reason },
            ) => reason.clone(),
            _ => String::new(),
        };
        let server_name =
            |id: &str| inner.servers.get(id).map_or_else(String::new, |server| server.shown.name.clone());
        let rpo = replica
            .and_then(|report| report.newest_point_us)
            .map(|at| (self.clock.wall().micros() - at).max(0) as f64 / 1e6);
        let replicates = state.is_some_and(|state| matches!(state.name(), "protected" | "resync"));
        let history =
            replica.and_then(|report| Some((report.newest_point_us? - report.oldest_point_us?) as f64 / 1e6));
        let (p50, p99, max) = live.figures.rpo_distribution();
        let mut disks: Vec<pb::Disk> = row.disks.iter().map(disk_shown).collect();
        if !live.agent_connected {
            disks.iter_mut().for_each(|disk| disk.endpoint.clear());
        }
        pb::Machine {
            id: row.id.to_string(),
            version: row.version,
            name: row.name.clone(),
            site: row.site.clone(),
            fabric: row.fabric.clone(),
            guest: row.guest.clone(),
            protected: row.protection.is_some(),
            state: state.map_or("unprotected", ProtectionState::name).into(),
            state_reason: reason,
            paused: state.is_some_and(ProtectionState::is_paused),
            mode: agent.map_or_else(String::new, |report| report.mode.clone()),
            mode_reason: agent.map_or_else(String::new, |report| report.mode_reason.clone()),
            health: live.health.unwrap_or(Health::NotApplicable).name().into(),
            symptoms: live.symptoms.clone(),
            direction: "forward".into(),
            target_site: row.target_site.clone(),
            policy: row.policy.clone(),
            disks,
            rpo_seconds: rpo.filter(|_| replicates),
            rpo_p50_seconds: p50,
            rpo_p99_seconds: p99,
            rpo_max_seconds: max,
            newest_received_us: replica.and_then(|report| report.newest_received_us),
            newest_point_us: replica.and_then(|report| report.newest_point_us),
            newest_app_point_us: replica.and_then(|report| report.newest_app_point_us),
            oldest_point_us: replica.and_then(|report| report.oldest_point_us),
            history_seconds: history,
            history_promised_seconds: policy
                .map(|policy| policy.retention_seconds as f64)
                .filter(|_| row.protection.is_some()),
            history_bytes: replica.map(|report| report.history_bytes),
            churn_bytes_per_sec: live.figures.churn_now(),
            churn_recent: live.figures.churn_recent(),
            points: replica.map_or(0, |report| report.points),
            rpo_recent: live.figures.rpo_recent(),
            dirty_bytes: agent.map(|report| report.dirty_bytes),
            in_flight_bytes: agent.map(|report| report.in_flight_bytes),
            staged_bytes: agent.map(|report| report.staged_bytes),
            staged_bytes_max: agent.map(|report| report.staged_bytes_max),
            initial_bytes_done: agent.map(|report| report.initial_bytes_done),
            initial_bytes_total: agent.map(|report| report.initial_bytes_total),
            sent_bytes_total: agent.map(|report| report.sent_bytes_total),
            process_server: server_name(&row.process_server),
            master_target: server_name(&row.master_target),
            epoch: row.epoch.0,
            test_state: row.test_state.name().into(),
            test: row.test.as_ref().map(|test| pb::TestFailover {
                job: test.job.to_string(),
                started_us: test.at_us,
                point: Some(point_shown(&test.point)),
                disks: test.disks.iter().map(disk_shown).collect(),
                probes: test.probes.iter().map(probe_shown).collect(),
            }),
            failed_over: row.failed_over.as_ref().map(|up| pb::FailedOver {
                job: up.job.to_string(),
                kind: "unplanned".into(),
                at_us: up.at_us,
                point: Some(point_shown(&up.point)),
                disks: up.disks.iter().map(disk_shown).collect(),
                probes: up.probes.iter().map(probe_shown).collect(),
            }),
            last_drill_us: row.last_drill.map(|(at, _)| at),
            last_drill_passed: row.last_drill.is_some_and(|(_, passed)| passed),
            orders: orders_of(row),
            rpo_threshold_seconds: policy.map(|policy| policy.rpo_threshold_seconds as i64),
        }
    }

    /// Adds a site, for the first start.
    pub async fn add_site(&self, name: &str, fabric: &str, recovery: bool) -> Result<(), Fault> {
        let id = SiteId::make(self.clock.wall(), &mut SystemEntropy).to_string();
        self.store.add_site(&id, name, fabric, recovery).await?;
        let sites = self.store.sites().await?;
        self.inner().sites = sites
            .into_iter()
            .map(|(id, name, fabric, recovery)| pb::Site { id, name, fabric, recovery })
            .collect();
        Ok(())
    }

    /// The site where replicas are kept, unless another is named.
    pub fn recovery_site(&self, named: &str) -> Result<String, Fault> {
        let inner = self.inner();
        let found =
            inner.sites.iter().find(|site| if named.is_empty() { site.recovery } else { site.name == named });
        found.map(|site| site.name.clone()).ok_or_else(|| {
            Fault::new(
                FaultClass::NotFound,
                "site.unknown",
                format!("there is no recovery site {}", shown(named)),
            )
            .remedy("`continuum get sites` shows what there is")
        })
    }

    /// A policy by name.
    pub fn policy(&self, name: &str) -> Result<Policy, Fault> {
        let policy = self.inner().policies.get(name).map(|(_, policy)| policy.clone());
        policy.ok_or_else(|| {
            Fault::new(FaultClass::NotFound, "policy.unknown", format!("there is no policy {}", shown(name)))
                .remedy("`continuum get policies` shows what there is")
        })
    }

    /// Adds or changes a policy.
    pub async fn put_policy(&self, name: &str, policy: Policy) -> Result<(), Fault> {
        let problems: Vec<String> = policy.problems().iter().map(ToString::to_string).collect();
        if !problems.is_empty() {
            return Err(Fault::new(FaultClass::Usage, "policy.invalid", problems.join("; "))
                .spares("the policy as it was"));
        }
        let known = self.inner().policies.get(name).map(|(id, _)| *id);
        let id = known.unwrap_or_else(|| PolicyId::make(self.clock.wall(), &mut SystemEntropy));
        let body = serde_json::to_string(&policy).map_err(|error| unwritable(&error))?;
        self.store.put_policy(&id.to_string(), name, &body).await?;
        let mut inner = self.inner();
        inner.policies.insert(name.to_owned(), (id, policy.clone()));
        let shown = self.policy_shown(&inner, name, id, &policy);
        self.publish_entity(&mut inner, pb::entity::Entity::Policy(shown));
        drop(inner);
        self.assignments_changed.notify_one();
        Ok(())
    }

    fn policy_shown(&self, inner: &Inner, name: &str, id: PolicyId, policy: &Policy) -> pb::Policy {
        let used =
            inner.machines.values().filter(|(row, _)| row.protection.is_some() && row.policy == name).count();
        pb::Policy { machines: used as u32, ..policy_to_proto(&id.to_string(), name, policy) }
    }

    /// Every server.
    pub fn servers(&self) -> Vec<ServerState> {
        self.inner().servers.values().cloned().collect()
    }

    /// One server.
    pub fn server(&self, id: &str) -> Option<ServerState> {
        self.inner().servers.get(id).cloned()
    }

    /// Changes a server and tells of it where that changes what is shown.
    pub fn set_server(&self, id: &str, change: impl FnOnce(&mut ServerState)) {
        let mut inner = self.inner();
        let server = inner.servers.entry(id.to_owned()).or_default();
        let before = server.shown.clone();
        change(server);
        let after = server.shown.clone();
        if before != after {
            self.publish_entity(&mut inner, pb::entity::Entity::Server(after));
        }
    }

    /// A job.
    pub fn job(&self, id: JobId) -> Option<crate::saga::JobRow> {
        self.inner().jobs.get(&id).cloned()
    }

    /// All jobs that are kept.
    pub fn jobs(&self) -> Vec<crate::saga::JobRow> {
        self.inner().jobs.values().cloned().collect()
    }

    /// Writes a job's progress and tells of it.
    pub async fn put_job(&self, job: &crate::saga::JobRow) -> Result<(), Fault> {
        let body = serde_json::to_string(job).map_err(|error| unwritable(&error))?;
        self.store.put_job(&job.id.to_string(), job.state.name(), &body).await?;
        self.show_job(job);
        Ok(())
    }

    /// Tells of a job's progress without writing it: percentages.
    pub fn show_job(&self, job: &crate::saga::JobRow) {
        let mut inner = self.inner();
        inner.jobs.insert(job.id, job.clone());
        while inner.jobs.len() > JOBS_KEPT as usize {
            let Some((oldest, _)) =
                inner.jobs.iter().find(|(_, job)| job.state.is_over()).map(|(id, job)| (*id, job.state))
            else {
                break;
            };
            inner.jobs.remove(&oldest);
            self.publish(
                &mut inner,
                News::Removed(pb::Removed { kind: pb::Kind::Job.into(), id: oldest.to_string() }),
            );
        }
        self.publish_entity(&mut inner, pb::entity::Entity::Job(job.shown()));
    }

    /// Alerts that are open or were cleared lately.
    pub fn alerts(&self) -> Vec<pb::Alert> {
        self.inner().alerts.values().cloned().collect()
    }

    /// Adds or changes an alert.
    pub async fn put_alert(&self, alert: pb::Alert) -> Result<(), Fault> {
        let row = crate::health::AlertRow::from(alert.clone());
        let body = serde_json::to_string(&row).map_err(|error| unwritable(&error))?;
        self.store.put_alert(&alert.id, alert.cleared_us, &body).await?;
        let mut inner = self.inner();
        inner.alerts.insert(alert.id.clone(), alert.clone());
        self.publish_entity(&mut inner, pb::entity::Entity::Alert(alert));
        Ok(())
    }

    /// Tells watchers that the vault is alive.
    pub fn tick(&self) {
        let tick = News::Tick(pb::Tick { vault_time_us: self.clock.wall().micros() });
        self.publish(&mut self.inner(), tick);
    }
}

/// The orders that are possible for a machine now, by the names of verbs.
pub fn orders_of(row: &MachineRow) -> Vec<String> {
    use continuum_model::protection::{Event, FailoverKind};
    let Some(state) = &row.protection else { return vec!["protect".into()] };
    let tested = row.test_state != TestState::None;
    let orders = [
        ("pause", state.allows(&Event::Pause)),
        ("resume", state.allows(&Event::Resume)),
        ("bookmark", matches!(state, ProtectionState::Protected { paused: false })),
        ("verify", matches!(state, ProtectionState::Protected { paused: false })),
        (
            "test-failover",
            !tested && matches!(state, ProtectionState::Protected { .. } | ProtectionState::Resync { .. }),
        ),
        ("cleanup", tested),
        ("failover", state.allows(&Event::FailOver { kind: FailoverKind::Unplanned })),
        ("commit", state.allows(&Event::Commit)),
        ("unprotect", state.allows(&Event::Disable)),
        ("retry-now", state.replicates()),
    ];
    orders.into_iter().filter(|(_, possible)| *possible).map(|(name, _)| name.to_owned()).collect()
}

fn same_disks(left: &[DiskRow], right: &[DiskRow]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).all(|(left, right)| {
            (left.index, left.id, left.size_bytes) == (right.index, right.id, right.size_bytes)
        })
}

fn no_machine(text: &str) -> Fault {
    Fault::new(FaultClass::NotFound, "machine.unknown", format!("there is no machine {}", shown(text)))
        .spares("everything")
        .remedy("`continuum get machines` shows what there is")
}

fn unwritable(error: &serde_json::Error) -> Fault {
    Fault::new(FaultClass::Failed, "vault.store", format!("a row cannot be written: {error}"))
}

/// For the wire.
pub fn disk_shown(disk: &DiskRow) -> pb::Disk {
    pb::Disk {
        id: disk.id.to_string(),
        index: disk.index,
        name: disk.name.clone(),
        size_bytes: disk.size_bytes,
        endpoint: disk.endpoint.clone(),
    }
}

/// For the wire.
pub fn point_shown(point: &PointRow) -> pb::Point {
    pb::Point {
        id: point.id.clone(),
        time_us: point.time_us,
        kind: point.kind.clone(),
        name: point.name.clone(),
        position: point.position,
        ..Default::default()
    }
}

/// For the wire.
pub fn probe_shown(probe: &ProbeRow) -> pb::Probe {
    pb::Probe { name: probe.name.clone(), passed: probe.passed, detail: probe.detail.clone() }
}

/// For the wire.
pub fn policy_to_proto(id: &str, name: &str, policy: &Policy) -> pb::Policy {
    pb::Policy {
        id: id.to_owned(),
        name: name.to_owned(),
        retention_seconds: policy.retention_seconds,
        history_bytes_max: policy.history_bytes_max.map(|bytes| bytes.0),
        crash_point_seconds: policy.crash_point_seconds,
        app_point_seconds: policy.app_point_seconds,
        rpo_threshold_seconds: policy.rpo_threshold_seconds,
        staging_bytes_max: policy.staging_bytes_max.0,
        compression: policy.compression,
        machines: 0,
    }
}

/// From the wire.
pub fn policy_from_proto(policy: &pb::Policy) -> Policy {
    Policy {
        retention_seconds: policy.retention_seconds,
        history_bytes_max: policy.history_bytes_max.map(Bytes),
        crash_point_seconds: policy.crash_point_seconds,
        app_point_seconds: policy.app_point_seconds,
        rpo_threshold_seconds: policy.rpo_threshold_seconds,
        staging_bytes_max: Bytes(policy.staging_bytes_max),
        compression: policy.compression,
    }
}

/// An event as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct EventRow {
    id: u64,
    time_us: i64,
    kind: String,
    object: String,
    object_id: String,
    text: String,
    by: String,
}

impl From<EventRow> for pb::Event {
    fn from(row: EventRow) -> Self {
        Self {
            id: row.id,
            time_us: row.time_us,
            kind: row.kind,
            object: row.object,
            object_id: row.object_id,
            text: row.text,
            by: row.by,
        }
    }
}
