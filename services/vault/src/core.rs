//! The vault's centre: the store, what is known, and who is told.
//!
//! ```text
//! order, job, report ─► store::Tx ─► commit ─► apply: estate ─► hub (watchers), assignments (servers), live
//! ```
//!
//! Invariant: the estate's rows are those of the newest commit. They are applied while the writer's turn is
//! still held, and no `await` stands between a commit's answer and its application; whoever commits runs in
//! a task that nobody drops half-way.

use crate::config::Thresholds;
use crate::coordination::sessions::{Hands, Sessions};
use crate::coordination::sums::UnderWay;
use crate::estate::{Estate, JobEntry, MachineEntry, Progress, ServerEntry, agent_of, machine_of};
use crate::grants;
use crate::groups::{GroupEntry, GroupLive};
use crate::hub::Hub;
use crate::project;
use crate::store::groups::POINTS_MAX;
use crate::store::inventory::MachineRow;
use crate::store::news::{EventRow, News};
use crate::store::{Store, StoreError, Tx};
use crate::world::World;
use continuum_model::id::{JobId, MachineId, ServerId, VaultId};
use continuum_model::job::JobState;
use continuum_model::time::Timestamp;
use continuum_proto::v1 as pb;
use continuum_wire::peers::Peers;
use pb::entity::Entity as Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Jobs that are over and stay in memory.
const JOBS_IN_MEMORY: usize = 500;

/// Who this vault is.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) vault: VaultId,
    pub(crate) name: String,
    pub(crate) environment: String,
    /// Drawn at each start.
    pub(crate) run: String,
    pub(crate) started: Timestamp,
    /// Orders that a second person must agree to.
    pub(crate) four_eyes: Vec<String>,
}

/// Whom the vault speaks with.
pub(crate) struct Peering {
    pub(crate) sessions: Arc<Sessions>,
    /// Who carries out commands: the sessions, or a simulation.
    pub(crate) hands: Arc<dyn Hands>,
    /// Who is let in besides having a certificate.
    pub(crate) gate: Peers,
}

/// The vault's centre.
pub(crate) struct Core {
    pub(crate) about: About,
    pub(crate) thresholds: Thresholds,
    pub(crate) store: Store,
    pub(crate) world: World,
    pub(crate) hub: Hub,
    pub(crate) sessions: Arc<Sessions>,
    /// Who carries out commands: the sessions, or a simulation.
    pub(crate) hands: Arc<dyn Hands>,
    /// Which agents wait for sums of their replica.
    pub(crate) sums: UnderWay,
    /// Who is let in besides having a certificate.
    gate: Peers,
    /// The count of grants that were heeded.
    grants: AtomicU64,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    estate: Mutex<Estate>,
    /// Rises with every commit and every report.
    live: watch::Sender<u64>,
    cancels: Mutex<HashMap<JobId, CancellationToken>>,
}

impl Core {
    /// Reads everything that the store holds.
    pub(crate) async fn load(
        about: About,
        thresholds: Thresholds,
        store: Store,
        world: World,
        peering: Peering,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, StoreError> {
        let Peering { sessions, hands, gate } = peering;
        let core = Arc::new(Self {
            about,
            thresholds,
            world,
            hub: Hub::default(),
            sessions,
            hands,
            sums: UnderWay::default(),
            gate,
            grants: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            stop,
            estate: Mutex::default(),
            live: watch::Sender::new(0),
            cancels: Mutex::default(),
            store,
        });
        let mut news = Vec::new();
        news.extend(core.store.sites().await?.into_iter().map(News::Site));
        news.extend(core.store.servers().await?.into_iter().map(News::Server));
        news.extend(core.store.machines().await?.into_iter().map(|row| News::Machine(Box::new(row))));
        news.extend(core.store.policies().await?.into_iter().map(News::Policy));
        news.extend(core.store.groups().await?.into_iter().map(News::Group));
        news.extend(core.store.group_points().await?.into_iter().map(News::GroupPoint));
        news.extend(core.store.plans().await?.into_iter().map(|row| News::Plan(Box::new(row))));
        news.extend(
            core.store.jobs(JOBS_IN_MEMORY as u32).await?.into_iter().map(|row| News::Job(Box::new(row))),
        );
        news.extend(core.store.alerts(200).await?.into_iter().map(News::Alert));
        news.extend(core.store.events(1000).await?.into_iter().map(News::Event));
        core.apply(news);
        let spikes = core.store.spikes().await?;
        {
            let mut estate = core.estate();
            for spike in spikes {
                if let Some(entry) = estate.machines.get_mut(&spike.machine) {
                    entry.live.truth.spikes.push_back(spike);
                }
            }
        }
        Ok(core)
    }

    /// Everything known now. Never held across an `await`.
    pub(crate) fn estate(&self) -> MutexGuard<'_, Estate> {
        self.estate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a transaction durable, then tells everybody.
    ///
    /// # Cancel safety
    /// Not cancel safe: what was committed must be applied. Call it from a task of its own.
    pub(crate) async fn commit(&self, tx: Tx) -> Result<(), StoreError> {
        let mut committed = tx.commit().await?;
        self.apply(std::mem::take(&mut committed.news));
        Ok(())
    }

    /// Puts into force what was granted and revoked, by this process or by one beside it. Nothing new costs
    /// one small read.
    pub(crate) async fn heed_grants(&self) -> Result<(), StoreError> {
        let count = self.store.meta(grants::COUNT).await?.and_then(|text| text.parse().ok()).unwrap_or(0);
        if count == self.grants.load(Ordering::Acquire) {
            return Ok(());
        }
        let vault = self.about.vault;
        for row in self.store.operators().await? {
            if let Some(until) = row.denied_until {
                self.gate.deny(&grants::operator_identity(vault, &row.role, &row.name), until);
            }
        }
        let mut tx = self.store.begin().await?;
        let mut out = Vec::new();
        for row in tx.servers().await? {
            if let (Some(until), Some(identity)) = (row.denied_until, grants::server_identity(vault, &row)) {
                self.gate.deny(&identity, until);
            }
            let known = self.estate().servers.get(&row.id).map(|entry| entry.row.revoked);
            if known != Some(row.revoked) {
                out.extend(row.revoked.then_some(row.id));
                tx.news.push(News::Server(row));
            }
        }
        self.commit(tx).await?;
        out.into_iter().for_each(|id| self.sessions.expel(id));
        self.grants.store(count, Ordering::Release);
        Ok(())
    }

    /// Runs work that commits where nobody can drop it half-way, such as a caller who hangs up.
    pub(crate) async fn whole<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        match self.tasks.spawn(work).await {
            Ok(result) => Some(result),
            Err(error) => {
                tracing::error!("a task of the vault died: {error}");
                None
            }
        }
    }

    fn apply(&self, news: Vec<News>) {
        let now = self.world.now();
        let mut touched = BTreeSet::new();
        let (mut plans, mut groups) = (false, false);
        let mut policies = BTreeSet::new();
        let mut entities = Vec::new();
        let mut guard = self.estate();
        let estate = &mut *guard;
        for item in news {
            match item {
                News::Site(row) => {
                    entities.push(Any::Site(project::site(&row)));
                    estate.sites.insert(row.id, row);
                }
                News::Policy(row) => {
                    entities.push(Any::Policy(project::policy(&row, estate)));
                    estate.policies.insert(row.id, row);
                    touched.extend(estate.machines.keys().copied());
                }
                News::PolicyGone(row) => {
                    let gone = pb::Policy { deleted: true, ..project::policy(&row, estate) };
                    entities.push(Any::Policy(gone));
                    estate.policies.remove(&row.id);
                }
                News::Server(row) => {
                    let id = row.id;
                    match estate.servers.get_mut(&id) {
                        Some(entry) => entry.row = row,
                        None => {
                            estate.servers.insert(id, ServerEntry { row, live: Default::default() });
                        }
                    }
                    touched.extend(estate.machines.contains_key(&machine_of(id)).then(|| machine_of(id)));
                    let carried = |machine: &MachineEntry| {
                        machine.row.protection.as_ref().is_some_and(|protection| {
                            protection.process_server == id || protection.master_target == id
                        })
                    };
                    touched.extend(
                        estate.machines.values().filter(|entry| carried(entry)).map(|entry| entry.row.id),
                    );
                    entities.extend(server(estate, id));
                }
                News::Machine(row) => {
                    let id = row.id;
                    let policy_of =
                        |row: &MachineRow| row.protection.as_ref().map(|protection| protection.policy);
                    let before = estate.machines.get(&id).and_then(|entry| policy_of(&entry.row));
                    // How many are under them is told with the policies.
                    if before != policy_of(&row) {
                        policies.extend(before.into_iter().chain(policy_of(&row)));
                    }
                    match estate.machines.get_mut(&id) {
                        Some(entry) => entry.row = *row,
                        None => {
                            estate.machines.insert(id, MachineEntry { row: *row, live: Default::default() });
                        }
                    }
                    touched.insert(id);
                }
                News::Job(row) => {
                    touched.extend(row.machine);
                    plans |= row.params.plan.is_some();
                    let id = row.id;
                    if let Some(machine) = row.machine {
                        let open = estate.under_way.entry(machine).or_default();
                        if row.state.is_over() || row.state == JobState::Waiting {
                            open.remove(&id);
                        } else {
                            open.insert(id);
                        }
                    }
                    match estate.jobs.get_mut(&id) {
                        Some(entry) => {
                            entry.progress = None;
                            entry.row = *row;
                        }
                        None => {
                            estate.jobs.insert(id, JobEntry { row: *row, progress: None });
                        }
                    }
                    entities.extend(estate.jobs.get(&id).map(|entry| Any::Job(project::job(entry, estate))));
                    forget_old_jobs(estate);
                }
                News::Alert(row) => {
                    entities.push(Any::Alert(project::alert(&row)));
                    // A cleared alert is the store's and the hub's; the estate holds what may still change.
                    if row.cleared.is_some() {
                        estate.alerts.remove(&row.id);
                    } else {
                        estate.alerts.insert(row.id, row);
                    }
                }
                News::Event(row) => entities.push(Any::Event(project::event(&row))),
                News::Group(row) => {
                    let before = estate.groups.remove(&row.name);
                    touched.extend(before.into_iter().flat_map(|entry| entry.row.body.machines));
                    touched.extend(row.body.machines.iter().copied());
                    groups = true;
                    if row.deleted {
                        let gone = pb::Group { name: row.name, deleted: true, ..Default::default() };
                        entities.push(Any::Group(gone));
                    } else {
                        let live = GroupLive::since(now);
                        estate.groups.insert(row.name.clone(), GroupEntry { row, live });
                    }
                }
                News::GroupPoint(row) => {
                    groups = true;
                    estate.group_points.insert(row.id, row);
                    while estate.group_points.len() > POINTS_MAX as usize {
                        estate.group_points.pop_first();
                    }
                }
                News::GroupPointsGone { group, before } => {
                    groups = true;
                    estate.group_points.retain(|_, point| point.group != group || point.time >= before);
                }
                News::Plan(row) if row.deleted => {
                    estate.plans.remove(&row.name);
                    let gone = pb::Plan { name: row.name, deleted: true, ..Default::default() };
                    entities.push(Any::Plan(gone));
                }
                News::Plan(row) => {
                    plans = true;
                    estate.plans.insert(row.name.clone(), *row);
                }
            }
        }
        for row in policies.iter().filter_map(|id| estate.policies.get(id)) {
            entities.push(Any::Policy(project::policy(row, estate)));
        }
        for id in &touched {
            entities.extend(
                estate.machines.get(id).map(|entry| Any::Machine(project::machine(entry, estate, now))),
            );
        }
        if plans || !touched.is_empty() {
            entities.extend(estate.plans.values().map(|row| Any::Plan(project::plan(row, estate))));
        }
        if groups || !touched.is_empty() {
            entities.extend(estate.groups.values().map(|entry| Any::Group(project::group(entry, estate))));
        }
        // Under the estate's lock, so that news leave in the order in which they came about.
        entities.into_iter().for_each(|entity| self.hub.put(entity));
        self.sessions.assign(estate, &touched, &self.world);
        drop(guard);
        self.stir();
    }

    /// Tells the agents of a machine's group what became of it, when one of them came or went.
    pub(crate) fn reassign_group_of(&self, machine: MachineId) {
        let estate = self.estate();
        let Some(entry) = estate.group_of(machine) else { return };
        for id in &entry.row.body.machines {
            self.sessions.assign_one(&estate, agent_of(*id), &self.world);
        }
        self.hub.put(Any::Group(project::group(entry, &estate)));
    }

    /// Tells watchers what became of groups' live values.
    pub(crate) fn publish_groups(&self) {
        let estate = self.estate();
        for entry in estate.groups.values() {
            self.hub.put(Any::Group(project::group(entry, &estate)));
        }
    }

    /// Tells watchers what became of live values.
    pub(crate) fn publish(&self, machines: &[MachineId], servers: &[ServerId]) {
        let now = self.world.now();
        let estate = self.estate();
        for entry in machines.iter().filter_map(|id| estate.machines.get(id)) {
            self.hub.put(Any::Machine(project::machine(entry, &estate, now)));
        }
        servers.iter().filter_map(|id| server(&estate, *id)).for_each(|entity| self.hub.put(entity));
    }

    /// Wakes whoever waits for something to become true.
    pub(crate) fn stir(&self) {
        self.live.send_modify(|count| *count += 1);
    }

    /// Waits until `find` finds something in what is known.
    pub(crate) async fn until<T>(&self, mut find: impl FnMut(&Estate) -> Option<T>) -> T {
        let mut live = self.live.subscribe();
        loop {
            if let Some(found) = find(&self.estate()) {
                return found;
            }
            // The sender lives as long as we do.
            if live.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tells how far a job's step is.
    pub(crate) fn progress(&self, job: JobId, progress: Progress) {
        let mut estate = self.estate();
        let Some(entry) = estate.jobs.get_mut(&job) else { return };
        if entry.progress.as_ref() == Some(&progress) {
            return;
        }
        entry.progress = Some(progress);
        if let Some(entry) = estate.jobs.get(&job) {
            self.hub.put(Any::Job(project::job(entry, &estate)));
        }
    }

    /// The token that stops a job's present step when a person cancels it.
    pub(crate) fn cancel_token(&self, job: JobId) -> CancellationToken {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).entry(job).or_default().clone()
    }

    /// The job is over.
    pub(crate) fn forget_cancel(&self, job: JobId) {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).remove(&job);
    }

    /// How long a server that is away is waited for.
    pub(crate) fn patience(&self) -> std::time::Duration {
        self.sessions.patience()
    }

    /// An event about an object.
    pub(crate) fn event(
        &self,
        kind: &str,
        object: &str,
        id: impl ToString,
        text: String,
        by: &str,
    ) -> EventRow {
        EventRow {
            id: 0,
            time: self.world.now(),
            kind: kind.to_owned(),
            object: object.to_owned(),
            object_id: id.to_string(),
            text,
            by: by.to_owned(),
        }
    }
}

fn server(estate: &Estate, id: ServerId) -> Option<Any> {
    estate.servers.get(&id).map(|entry| Any::Server(project::server(entry, estate)))
}

fn forget_old_jobs(estate: &mut Estate) {
    while estate.jobs.len() > JOBS_IN_MEMORY {
        let Some(oldest) =
            estate.jobs.values().find(|entry| entry.row.state.is_over()).map(|entry| entry.row.id)
        else {
            return;
        };
        estate.jobs.remove(&oldest);
    }
}
