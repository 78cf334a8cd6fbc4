//! Symptoms, RPO as a distribution, and alerts that open and clear by themselves.

use crate::estate::{Estate, Live, MachineRow};
use continuum_model::health::Health;
use continuum_model::id::{AlertId, MachineId};
use continuum_model::protection::ProtectionState;
use continuum_model::time::Timestamp;
use continuum_model::world::SystemEntropy;
use continuum_proto::v1 as pb;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often everything is looked at.
const TICK: Duration = Duration::from_secs(1);
/// One sample of figures.
const SAMPLE: Duration = Duration::from_secs(5);
/// Samples of RPO that are kept: a day.
const RPO_SAMPLES: usize = 86_400 / 5;
const RECENT: usize = 60;
/// An agent or server that is silent for this long is a symptom.
const SILENT: Duration = Duration::from_secs(5);

/// Figures of one machine over time. Bounded.
#[derive(Debug, Default)]
pub struct Figures {
    rpo: VecDeque<f32>,
    churn: VecDeque<u64>,
    distribution: Option<(f64, f64, f64)>,
    sample_at: Option<Timestamp>,
    worst: f32,
    written: Option<(u64, Timestamp)>,
    churn_now: Option<u64>,
}

impl Figures {
    /// P50, P99 and the worst RPO of the last day.
    pub fn rpo_distribution(&self) -> (Option<f64>, Option<f64>, Option<f64>) {
        self.distribution.map_or((None, None, None), |(p50, p99, max)| (Some(p50), Some(p99), Some(max)))
    }
    /// Bytes a second, now.
    pub const fn churn_now(&self) -> Option<u64> {
        self.churn_now
    }
    /// Bytes a second, lately.
    pub fn churn_recent(&self) -> Vec<u64> {
        self.churn.iter().copied().collect()
    }
    /// RPO, lately.
    pub fn rpo_recent(&self) -> Vec<f64> {
        let skip = self.rpo.len().saturating_sub(RECENT);
        self.rpo.iter().skip(skip).map(|rpo| f64::from(*rpo)).collect()
    }

    fn note(&mut self, rpo: Option<f64>, written: Option<u64>, now: Timestamp) {
        if let Some(written) = written {
            match self.written {
                Some((before, at)) if now.since(at) >= Duration::from_secs(1) => {
                    // Less than before: the agent was restarted.
                    let bytes = written.checked_sub(before).unwrap_or(written);
                    self.churn_now = Some((bytes as f64 / now.since(at).as_secs_f64()) as u64);
                    self.written = Some((written, now));
                }
                Some(_) => {}
                None => self.written = Some((written, now)),
            }
        }
        self.worst = self.worst.max(rpo.unwrap_or(0.0) as f32);
        if self.sample_at.is_some_and(|at| now.since(at) < SAMPLE) {
            return;
        }
        self.sample_at = Some(now);
        if let Some(churn) = self.churn_now {
            self.churn.push_back(churn);
            if self.churn.len() > RECENT {
                self.churn.pop_front();
            }
        }
        if rpo.is_some() {
            self.rpo.push_back(self.worst);
            if self.rpo.len() > RPO_SAMPLES {
                self.rpo.pop_front();
            }
            let mut sorted: Vec<f32> = self.rpo.iter().copied().collect();
            sorted.sort_by(f32::total_cmp);
            let at = |share: f64| f64::from(sorted[((sorted.len() - 1) as f64 * share) as usize]);
            self.distribution = Some((at(0.5), at(0.99), at(1.0)));
        }
        self.worst = 0.0;
    }
}

/// Looks at everything once a second until `stop`.
pub async fn run(estate: Arc<Estate>, stop: CancellationToken) {
    let mut beat = tokio::time::interval(TICK);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let now = estate.clock.wall();
        let mut wrong = Vec::new();
        for row in estate.machines() {
            wrong.extend(look_at(&estate, &row, now));
            estate.tell_machine(row.id);
        }
        for server in estate.servers() {
            let silent = now.since(Timestamp::from_micros(server.shown.last_seen_us)) > SILENT;
            let shown = &server.shown;
            let down = !shown.connected && silent && shown.role != "agent";
            let text =
                format!("{} {} does not answer", shown.role, continuum_model::untrusted::shown(&shown.name));
            if down {
                wrong.push((
                    "server",
                    shown.id.clone(),
                    shown.name.clone(),
                    pb::Symptom {
                        code: "server.silent".into(),
                        severity: "critical".into(),
                        text,
                        remedy:
                            "see whether its process and host run; what it did waits or goes on elsewhere"
                                .into(),
                    },
                ));
            }
            estate.set_server(&server.shown.id, |server| {
                server.shown.health = if down { "critical" } else { "healthy" }.into()
            });
        }
        if let Err(fault) = settle_alerts(&estate, wrong, now).await {
            tracing::error!(code = fault.code, "alerts could not be stored: {}", fault.message);
        }
        estate.tick();
    }
}

type Wrong = (&'static str, String, String, pb::Symptom);

fn look_at(estate: &Estate, row: &MachineRow, now: Timestamp) -> Vec<Wrong> {
    let threshold = estate.policy(&row.policy).map_or(900, |policy| policy.rpo_threshold_seconds);
    let mut found = Vec::new();
    estate.set_live(row.id, |row, live| {
        let replicates = matches!(
            row.protection,
            Some(ProtectionState::Protected { .. } | ProtectionState::Resync { .. })
        );
        let newest = live.replica.as_ref().and_then(|(report, _)| report.newest_point_us);
        let rpo = newest.filter(|_| replicates).map(|at| now.since(Timestamp::from_micros(at)).as_secs_f64());
        let written = live.agent.as_ref().map(|(report, _)| report.written_bytes_total);
        live.figures.note(rpo, written, now);
        live.symptoms = symptoms(row, live, rpo, threshold, now);
        let worst = live.symptoms.iter().filter_map(|symptom| Health::named(&symptom.severity)).max();
        live.health = Some(match &row.protection {
            None
            | Some(
                ProtectionState::Committed
                | ProtectionState::CommitPending { .. }
                | ProtectionState::Disabling,
            ) => Health::NotApplicable,
            Some(_) => worst.unwrap_or(Health::Healthy),
        });
        found = live.symptoms.clone();
    });
    let id = row.id.to_string();
    found.into_iter().map(|symptom| ("machine", id.clone(), row.name.clone(), symptom)).collect()
}

fn symptoms(
    row: &MachineRow,
    live: &Live,
    rpo: Option<f64>,
    threshold: u64,
    now: Timestamp,
) -> Vec<pb::Symptom> {
    let mut list = Vec::new();
    let mut add = |code: &str, severity: Health, text: String, remedy: &str| {
        list.push(pb::Symptom {
            code: code.into(),
            severity: severity.name().into(),
            text,
            remedy: remedy.into(),
        });
    };
    let Some(state) = row.protection.as_ref().filter(|state| state.replicates() || state.is_paused()) else {
        return list;
    };
    if state.is_paused() {
        add(
            "paused",
            Health::Warning,
            "replication is paused by an operator; changes are remembered".into(),
            "resume it: `continuum resume`",
        );
        return list;
    }
    let silent = live.agent.as_ref().is_none_or(|(_, at)| now.since(*at) > SILENT);
    if !live.agent_connected && silent {
        add(
            "agent.silent",
            Health::Critical,
            "the machine's agent does not answer".into(),
            "see whether the machine and its agent run",
        );
    } else if let Some((agent, _)) = &live.agent {
        if let Some(fault) = agent.channel_fault.as_ref().filter(|_| !agent.channel_connected) {
            add(
                "channel.down",
                Health::Warning,
                format!("changes are not shipped: {}", continuum_model::untrusted::shown(&fault.message)),
                "it is tried again; `r` in the console tries now",
            );
        }
        match agent.mode.as_str() {
            "bitmap" if state.name() == "protected" => add(
                "mode.bitmap",
                Health::Critical,
                format!(
                    "no new recovery points: {}; changes are remembered",
                    continuum_model::untrusted::shown(&agent.mode_reason)
                ),
                "mend what is named; it catches up by itself",
            ),
            "catching-up" if state.name() == "protected" => add(
                "mode.catching-up",
                Health::Warning,
                format!("catching up, {} to go", continuum_model::units::Bytes(agent.dirty_bytes)),
                "nothing: it becomes healthy when all is sent",
            ),
            _ => {}
        }
    }
    if let Some(fault) = live.replica.as_ref().and_then(|(report, _)| report.fault.as_ref()) {
        add(
            "replica.fault",
            Health::Critical,
            continuum_model::untrusted::shown(&fault.message),
            "see the text; repair is a new copy from the source",
        );
    }
    if let Some(rpo) = rpo.filter(|rpo| *rpo > threshold as f64) {
        add(
            "rpo.exceeded",
            Health::Critical,
            format!("the newest recoverable moment is {rpo:.0} s old, more than the {threshold} s allowed"),
            "see the other symptoms; the threshold is in the policy",
        );
    }
    list
}

/// Opens an alert for everything that is wrong and has none, and clears those whose cause is gone.
async fn settle_alerts(
    estate: &Estate,
    wrong: Vec<Wrong>,
    now: Timestamp,
) -> Result<(), continuum_model::fault::Fault> {
    let open: Vec<pb::Alert> =
        estate.alerts().into_iter().filter(|alert| alert.cleared_us.is_none()).collect();
    for (kind, id, name, symptom) in &wrong {
        if open.iter().any(|alert| alert.code == symptom.code && alert.object_id == *id) {
            continue;
        }
        let alert = pb::Alert {
            id: AlertId::make(now, &mut SystemEntropy).to_string(),
            severity: symptom.severity.clone(),
            code: symptom.code.clone(),
            object_kind: (*kind).into(),
            object: name.clone(),
            object_id: id.clone(),
            opened_us: now.micros(),
            cleared_us: None,
            text: symptom.text.clone(),
            cause: String::new(),
            remedy: symptom.remedy.clone(),
            acknowledged: false,
        };
        estate.put_alert(alert).await?;
    }
    for alert in open {
        if !wrong.iter().any(|(_, id, _, symptom)| symptom.code == alert.code && *id == alert.object_id) {
            estate.put_alert(pb::Alert { cleared_us: Some(now.micros()), ..alert }).await?;
        }
    }
    Ok(())
}

/// An alert as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AlertRow {
    /// Its id.
    pub id: String,
    severity: String,
    code: String,
    object_kind: String,
    object: String,
    object_id: String,
    opened_us: i64,
    cleared_us: Option<i64>,
    text: String,
    cause: String,
    remedy: String,
    acknowledged: bool,
}

impl From<AlertRow> for pb::Alert {
    fn from(row: AlertRow) -> Self {
        let AlertRow {
            id,
            severity,
            code,
            object_kind,
            object,
            object_id,
            opened_us,
            cleared_us,
            text,
            cause,
            remedy,
            acknowledged,
        } = row;
        Self {
            id,
            severity,
            code,
            object_kind,
            object,
            object_id,
            opened_us,
            cleared_us,
            text,
            cause,
            remedy,
            acknowledged,
        }
    }
}
impl From<pb::Alert> for AlertRow {
    fn from(alert: pb::Alert) -> Self {
        let pb::Alert {
            id,
            severity,
            code,
            object_kind,
            object,
            object_id,
            opened_us,
            cleared_us,
            text,
            cause,
            remedy,
            acknowledged,
        } = alert;
        Self {
            id,
            severity,
            code,
            object_kind,
            object,
            object_id,
            opened_us,
            cleared_us,
            text,
            cause,
            remedy,
            acknowledged,
        }
    }
}

/// For tests and tools: whether a machine is healthy now.
pub fn is_healthy(estate: &Estate, machine: MachineId) -> bool {
    estate.live(machine, |live| live.health == Some(Health::Healthy)).unwrap_or(false)
}
