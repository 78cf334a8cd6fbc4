//! What the vault knows now: the rows as they were last committed, and what servers report.
//!
//! Rows change only by commits (`crate::core::Core::apply`); live values change with every report and are
//! never stored. All of it is lost with the process and comes back from the store and from reports.

use crate::groups::GroupEntry;
use crate::measure::{Distribution, Fill, Flow, Recent};
use crate::store::groups::GroupPointRow;
use crate::store::inventory::{MachineRow, PolicyRow, ServerRow, SiteRow};
use crate::store::jobs::JobRow;
use crate::store::news::AlertRow;
use crate::store::plans::PlanRow;
use crate::truth::Truth;
use continuum_model::health::{Health, Symptom};
use continuum_model::id::{AlertId, JobId, MachineId, PointId, PolicyId, ServerId, SiteId};
use continuum_model::time::Timestamp;
use continuum_proto::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};

/// Everything known now.
#[derive(Default)]
pub(crate) struct Estate {
    pub(crate) sites: BTreeMap<SiteId, SiteRow>,
    pub(crate) policies: BTreeMap<PolicyId, PolicyRow>,
    pub(crate) servers: BTreeMap<ServerId, ServerEntry>,
    pub(crate) machines: BTreeMap<MachineId, MachineEntry>,
    pub(crate) jobs: BTreeMap<JobId, JobEntry>,
    /// Those of them that are not over, by machine.
    pub(crate) under_way: BTreeMap<MachineId, BTreeSet<JobId>>,
    pub(crate) alerts: BTreeMap<AlertId, AlertRow>,
    /// By name; deleted ones are not here.
    pub(crate) plans: BTreeMap<String, PlanRow>,
    /// The same.
    pub(crate) groups: BTreeMap<String, GroupEntry>,
    /// Points that all members of a group share.
    pub(crate) group_points: BTreeMap<PointId, GroupPointRow>,
}

/// A server and what it reports.
pub(crate) struct ServerEntry {
    pub(crate) row: ServerRow,
    pub(crate) live: ServerLive,
}

/// What is known of a server only while it is there.
#[derive(Default)]
pub(crate) struct ServerLive {
    pub(crate) connected: bool,
    pub(crate) last_seen: Option<Timestamp>,
    /// Its clock less ours at the start of the session, in microseconds.
    pub(crate) clock_offset: i64,
    pub(crate) load: Option<pb::Load>,
    pub(crate) spool: Option<(u64, u64)>,
    pub(crate) bytes_per_sec: Option<u64>,
    /// How fast it may send, all machines together.
    pub(crate) limit_bytes_per_sec: Option<u64>,
    pub(crate) symptoms: Vec<Symptom>,
    pub(crate) spool_fill: Fill,
    pub(crate) volume_fill: VolumeFill,
}

/// How fast a volume fills, of which its free bytes are told.
#[derive(Default)]
pub(crate) struct VolumeFill(Option<(u64, Fill)>);

/// A volume is looked at for so long: what a first copy takes is not what every day takes.
const VOLUME_SPAN: std::time::Duration = std::time::Duration::from_secs(600);

impl VolumeFill {
    /// Takes what is free now.
    pub(crate) fn offer(&mut self, at: Timestamp, free: u64) {
        // Counted from the most that was ever free: the volume's size does not matter.
        let (most, fill) = self.0.get_or_insert_with(|| (free, Fill::over(VOLUME_SPAN)));
        if free > *most {
            (*most, *fill) = (free, Fill::over(VOLUME_SPAN));
        }
        fill.offer(at, *most - free);
    }

    /// Seconds until nothing is free, if it goes on like this.
    pub(crate) fn until(&self) -> Option<f64> {
        self.0.as_ref().and_then(|(most, fill)| fill.until(*most))
    }
}

impl ServerLive {
    /// Seconds until the spool is full, if it goes on like this.
    pub(crate) fn spool_until(&self) -> Option<f64> {
        self.spool.and_then(|(_, max)| self.spool_fill.until(max))
    }
    /// The same of the volume of its data.
    pub(crate) fn volume_until(&self) -> Option<f64> {
        self.volume_fill.until()
    }
}

/// A machine and what is reported of it.
pub(crate) struct MachineEntry {
    pub(crate) row: MachineRow,
    pub(crate) live: MachineLive,
}

/// What is known of a machine only from reports.
pub(crate) struct MachineLive {
    /// The agent's last report, and when it came.
    pub(crate) agent: Option<(pb::AgentReport, Timestamp)>,
    /// Who sent it: drawn at each start of the agent.
    pub(crate) agent_boot: String,
    /// The target's last report of the replica.
    pub(crate) replica: Option<(pb::ReplicaReport, Timestamp)>,
    /// The process server's last report of the relay.
    pub(crate) relay: Option<(pb::RelayReport, Timestamp)>,
    pub(crate) rpo: Distribution,
    pub(crate) rpo_recent: Recent<f64>,
    pub(crate) churn: Flow,
    pub(crate) truth: Truth,
    pub(crate) symptoms: Vec<Symptom>,
    pub(crate) health: Health,
    /// Two processes claim to be this machine.
    pub(crate) twice: bool,
    /// Where members of its group reach its agent, should it lead; empty: it cannot.
    pub(crate) group_address: String,
    /// Its agent has hooks for application-consistent points.
    pub(crate) app_consistent: bool,
    /// The newest attempt at such a point that was told of.
    pub(crate) app_told: String,
    /// When the agent was last asked to send again what the replica lost.
    pub(crate) asked_again: Option<Timestamp>,
}

impl Default for MachineLive {
    fn default() -> Self {
        Self {
            agent: None,
            agent_boot: String::new(),
            replica: None,
            relay: None,
            rpo: Distribution::default(),
            rpo_recent: Recent::default(),
            churn: Flow::default(),
            truth: Truth::default(),
            symptoms: Vec::new(),
            health: Health::NotApplicable,
            twice: false,
            group_address: String::new(),
            app_consistent: false,
            app_told: String::new(),
            asked_again: None,
        }
    }
}

/// A job and how far its present step is.
pub(crate) struct JobEntry {
    pub(crate) row: JobRow,
    pub(crate) progress: Option<Progress>,
}

/// How far the step under way is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Progress {
    /// From 0 to 1; `None`: it cannot be told.
    pub(crate) fraction: Option<f64>,
    pub(crate) detail: String,
    /// It waits for somebody or something; `detail` says for what.
    pub(crate) waiting: bool,
}

impl Estate {
    /// The machine of a name or id. Names are compared raw and whole.
    pub(crate) fn machine_named(&self, text: &str) -> Option<&MachineEntry> {
        self.machines
            .values()
            .find(|entry| entry.row.name == text)
            .or_else(|| text.parse().ok().and_then(|id: MachineId| self.machines.get(&id)))
    }

    /// The jobs of a machine that are not over.
    pub(crate) fn jobs_of(&self, machine: MachineId) -> impl Iterator<Item = &JobRow> {
        self.under_way
            .get(&machine)
            .into_iter()
            .flatten()
            .filter_map(|id| self.jobs.get(id))
            .map(|entry| &entry.row)
    }

    /// Whether a server has a session.
    pub(crate) fn connected(&self, server: ServerId) -> bool {
        self.servers.get(&server).is_some_and(|entry| entry.live.connected)
    }

    /// The name of a site.
    pub(crate) fn site_name(&self, id: SiteId) -> String {
        self.sites.get(&id).map(|site| site.name.clone()).unwrap_or_default()
    }

    /// The name of a server.
    pub(crate) fn server_name(&self, id: ServerId) -> String {
        self.servers.get(&id).map(|entry| entry.row.name.clone()).unwrap_or_default()
    }

    /// How many machines a server carries.
    pub(crate) fn carried_by(&self, server: ServerId) -> usize {
        self.machines
            .values()
            .filter_map(|entry| entry.row.protection.as_ref())
            .filter(|protection| protection.process_server == server || protection.master_target == server)
            .count()
    }

    /// The server of a role that carries least, preferably in `site`, connected ones first.
    pub(crate) fn least_loaded(&self, role: &str, site: SiteId, elsewhere: bool) -> Option<ServerId> {
        self.servers
            .values()
            .filter(|entry| {
                entry.row.role == role && !entry.row.revoked && (elsewhere || entry.row.site == site)
            })
            .min_by_key(|entry| {
                (!entry.live.connected, entry.row.site != site, self.carried_by(entry.row.id), entry.row.id)
            })
            .map(|entry| entry.row.id)
    }
}

/// The agent of a machine among servers: they share their id.
pub(crate) fn agent_of(machine: MachineId) -> ServerId {
    ServerId::from_bytes(*machine.as_bytes())
}

/// The machine of an agent.
pub(crate) fn machine_of(agent: ServerId) -> MachineId {
    MachineId::from_bytes(*agent.as_bytes())
}
