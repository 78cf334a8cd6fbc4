//! The operator API.

use crate::coordination::{Coordination, peer_of};
use crate::estate::{MachineRow, policy_from_proto};
use crate::orders;
use crate::saga::{JobRow, Order};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::JobId;
use continuum_model::job::JobState;
use continuum_model::point::PointChoice;
use continuum_model::protection::{Event, ProtectionState, TestState};
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemEntropy};
use continuum_proto::v1 as pb;
use continuum_wire::grpc::status_of;
use continuum_wire::identity::{Identity, Role};
use continuum_wire::token::Token;
use pb::command::Act;
use pb::command_result::Result as Answer;
use pb::entity::Entity as E;
use pb::order_request::Order as Ordered;
use pb::watch_event::Event as News;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

const QUICK: Duration = Duration::from_secs(20);
const OUTBOX: usize = 256;

/// The service.
#[derive(Clone)]
pub struct OperatorApi {
    /// What it shares with the servers' side.
    pub shared: Coordination,
    /// Where newcomers enrol.
    pub enrolment_address: String,
    /// When this run began.
    pub started_us: i64,
    /// Jobs that are under way.
    pub tasks: TaskTracker,
    /// Stops them.
    pub stop: CancellationToken,
}

type Reply<T> = Result<Response<T>, Status>;

/// What each role of operators may order, beside looking.
fn may(role: &str, verb: &str) -> bool {
    match role {
        "owner" => true,
        "contributor" => matches!(
            verb,
            "protect" | "set-policy" | "pause" | "resume" | "bookmark" | "retry-now" | "verify"
        ),
        "recoverer" => matches!(
            verb,
            "test-failover"
                | "cleanup"
                | "failover"
                | "commit"
                | "pause"
                | "resume"
                | "bookmark"
                | "retry-now"
                | "verify"
        ),
        "operator" => matches!(
            verb,
            "test-failover"
                | "cleanup"
                | "pause"
                | "resume"
                | "bookmark"
                | "retry-now"
                | "verify"
                | "acknowledge-alert"
                | "cancel-job"
                | "retry-job"
                | "pin-point"
        ),
        _ => false,
    }
}

const VERBS: [&str; 17] = [
    "protect",
    "unprotect",
    "pause",
    "resume",
    "bookmark",
    "test-failover",
    "cleanup",
    "failover",
    "commit",
    "verify",
    "retry-now",
    "cancel-job",
    "retry-job",
    "acknowledge-alert",
    "pin-point",
    "set-policy",
    "create-token",
];

impl OperatorApi {
    fn operator<T>(request: &Request<T>) -> Result<(Identity, String, String), Status> {
        let peer = peer_of(request, &[Role::Operator]).map_err(|status| *status)?;
        let (role, name) = peer.operator().ok_or_else(|| Status::permission_denied("access.denied"))?;
        let (role, name) = (role.to_owned(), name.to_owned());
        Ok((peer, role, name))
    }

    /// A fault with its own correlation id, logged under it.
    fn fail(fault: Fault) -> Status {
        let fault = if fault.correlation.is_empty() {
            let id = JobId::make(continuum_model::world::SystemClock::default().wall(), &mut SystemEntropy)
                .short();
            fault.correlated(id)
        } else {
            fault
        };
        tracing::info!(code = fault.code, correlation = fault.correlation, "refused: {}", fault.message);
        status_of(&fault)
    }

    async fn ask_target(&self, row: &MachineRow, id: &str, act: Act) -> Result<Answer, Fault> {
        if row.protection.is_none() || row.master_target.is_empty() {
            return Err(Fault::new(
                FaultClass::NotReady,
                "machine.unprotected",
                format!("{} is not protected", shown(&row.name)),
            )
            .remedy("protect it first: `continuum protect`"));
        }
        self.shared.registry.command(&row.master_target, id, act, QUICK).await
    }

    fn query_id(&self) -> String {
        format!("query-{}", orders::new_job_id(&self.shared.estate))
    }

    async fn preview_of(&self, row: &MachineRow, point: &str) -> Result<pb::PreviewReply, Fault> {
        let point = if point.is_empty() { "latest" } else { point };
        check_point(point)?;
        let act =
            Act::ResolvePoint(pb::ResolvePoint { machine_id: row.id.to_string(), point: point.to_owned() });
        match self.ask_target(row, &self.query_id(), act).await? {
            Answer::Resolved(pb::Resolved { preview: Some(preview) }) => Ok(preview),
            _ => Err(Fault::new(FaultClass::Failed, "command.answer", "the target gave another answer")),
        }
    }

    async fn readiness_of(&self, row: &MachineRow, verb: &str, point: &str) -> pb::ReadinessReply {
        let verb = if verb.is_empty() { "test-failover" } else { verb };
        let mut checks = Vec::new();
        let mut check = |name: &str, state: &str, detail: String, remedy: &str| {
            checks.push(pb::Check { name: name.into(), state: state.into(), detail, remedy: remedy.into() });
        };
        let possible = crate::estate::orders_of(row);
        if possible.iter().any(|order| order == verb) {
            check("state", "ok", format!("{verb} is possible"), "");
        } else {
            check(
                "state",
                "failed",
                format!("{verb} is not possible now"),
                &format!("possible now: {}", possible.join(", ")),
            );
        }
        let needs_target =
            matches!(verb, "test-failover" | "failover" | "cleanup" | "commit" | "verify" | "unprotect");
        if needs_target {
            if self.shared.registry.is_connected(&row.master_target) {
                check("master target", "ok", "connected".into(), "");
            } else {
                check(
                    "master target",
                    "failed",
                    "not connected".into(),
                    "see the server in `continuum get servers`",
                );
            }
        }
        let mut preview = None;
        if matches!(verb, "test-failover" | "failover") {
            match self.preview_of(row, point).await {
                Ok(found) => {
                    let at = found.point.as_ref().map_or(0, |point| point.time_us);
                    let at = continuum_model::time::Timestamp::from_micros(at);
                    check(
                        "recovery point",
                        "ok",
                        format!(
                            "{at}, {:.1} s and {} before the newest change received",
                            found.loss_seconds,
                            continuum_model::units::Bytes(found.loss_bytes)
                        ),
                        "",
                    );
                    preview = Some(found);
                }
                Err(fault) => check("recovery point", "failed", fault.message, &fault.remedy),
            }
        }
        if verb == "failover" {
            let runs = self.shared.estate.live(row.id, |live| live.agent_connected).unwrap_or(false);
            if runs {
                check(
                    "source",
                    "warning",
                    "its agent answers: the machine may still be running there".into(),
                    "an unplanned failover gives up what is not yet at the target",
                );
            } else {
                check("source", "ok", "it does not answer".into(), "");
            }
        }
        let destroys = matches!(verb, "failover" | "commit" | "unprotect");
        let name = shown(&row.name);
        let summary = match verb {
            "test-failover" => {
                format!("{name} comes up beside its replica at {}; replication goes on", row.target_site)
            }
            "failover" => format!(
                "{name} comes up at {} for good; the source is fenced and what is not at the target is given up",
                row.target_site
            ),
            "commit" => {
                format!("the failover of {name} becomes final: no other point can be chosen any more")
            }
            "unprotect" => format!("the replica of {name} and all its history are removed"),
            "cleanup" => format!("the test failover of {name} is stopped and removed"),
            other => format!("{other} {name}"),
        };
        let order = match verb {
            "failover" => "failover --unplanned",
            other => other,
        };
        let point = if point.is_empty() || !matches!(verb, "test-failover" | "failover") {
            String::new()
        } else {
            format!(" --point {}", shown(point))
        };
        pb::ReadinessReply {
            ready: !checks.iter().any(|check| check.state == "failed"),
            checks,
            preview,
            forecast_seconds: order_of(verb)
                .and_then(|order| orders::forecast(&self.shared.estate, &order, row.id)),
            summary,
            confirm: if destroys { row.name.clone() } else { String::new() },
            destroys,
            command: format!("continuum {order} {name}{point}"),
            machine_version: row.version,
        }
    }

    async fn order_job(
        &self,
        key: &str,
        row: &MachineRow,
        by: &str,
        order: Order,
        detail: String,
        done: bool,
    ) -> Result<pb::OrderReply, Fault> {
        let estate = &self.shared.estate;
        let now = estate.clock.wall().micros();
        let job = JobRow {
            id: orders::new_job_id(estate),
            forecast_seconds: orders::forecast(estate, &order, row.id),
            order,
            machine: row.id,
            machine_name: row.name.clone(),
            state: if done { JobState::Succeeded } else { JobState::Queued },
            created_us: now,
            started_us: done.then_some(now),
            ended_us: done.then_some(now),
            steps: Vec::new(),
            by: by.to_owned(),
            detail,
            fault: None,
            outcome: None,
            verified: Vec::new(),
            waiting_for: String::new(),
            cancel: false,
        };
        let body = serde_json::to_string(&job)
            .map_err(|error| Fault::new(FaultClass::Failed, "vault.store", error.to_string()))?;
        let id = job.id.to_string();
        let key = if key.is_empty() { id.clone() } else { key.to_owned() };
        if !estate.store.add_job(&id, &key, job.state.name(), now, &body).await? {
            return self.job_of_key(&key).await;
        }
        estate.show_job(&job);
        let shown = job.shown();
        if !done {
            orders::begin(estate, &self.shared.registry, &self.tasks, &self.stop, job);
        }
        Ok(pb::OrderReply { job: Some(shown), repeated_key: false })
    }

    async fn job_of_key(&self, key: &str) -> Result<pb::OrderReply, Fault> {
        let id = self.shared.estate.store.job_of_key(key).await?;
        let job = id.and_then(|id| id.parse().ok()).and_then(|id| self.shared.estate.job(id));
        let job = job.ok_or_else(|| {
            Fault::new(
                FaultClass::Conflict,
                "order.key",
                "this order was given before and its job is no longer kept",
            )
        })?;
        Ok(pb::OrderReply { job: Some(job.shown()), repeated_key: true })
    }

    async fn give(&self, role: &str, name: &str, request: pb::OrderRequest) -> Result<pb::OrderReply, Fault> {
        let estate = &self.shared.estate;
        let by = format!("{name} ({role})");
        let ordered = request
            .order
            .ok_or_else(|| Fault::new(FaultClass::Usage, "order.empty", "the order names nothing to do"))?;
        let verb = verb_of(&ordered);
        let now = estate.clock.wall().micros();
        if !may(role, verb) {
            estate.store.audit(now, &by, &format!("refused: {verb} {}", shown(&request.machine))).await?;
            return Err(Fault::new(
                FaultClass::Refused,
                "access.denied",
                format!("the role {role} may not order {verb}"),
            )
            .affects("this order; nothing was changed")
            .remedy("ask someone whose role may, or an owner for the role"));
        }
        if !request.key.is_empty() && estate.store.job_of_key(&request.key).await?.is_some() {
            return self.job_of_key(&request.key).await;
        }
        // Intent before effect.
        estate.store.audit(now, &by, &format!("ordered: {verb} {}", shown(&request.machine))).await?;
        match &ordered {
            Ordered::CancelJob(order) => return self.cancel(&order.job).await,
            Ordered::RetryJob(order) => return self.retry(&request.key, &order.job, &by).await,
            Ordered::AcknowledgeAlert(order) => {
                let alert = estate.alerts().into_iter().find(|alert| alert.id == order.alert);
                let alert = alert.ok_or_else(|| {
                    Fault::new(FaultClass::NotFound, "alert.unknown", "there is no such alert")
                })?;
                estate.put_alert(pb::Alert { acknowledged: true, ..alert }).await?;
                return Ok(pb::OrderReply::default());
            }
            Ordered::SetPolicy(order) => {
                let policy = order.policy.clone().unwrap_or_default();
                estate.put_policy(&policy.name, policy_from_proto(&policy)).await?;
                return Ok(pb::OrderReply::default());
            }
            _ => {}
        }
        let row = estate.find_machine(&request.machine)?;
        if request.expected_version != 0 && request.expected_version != row.version {
            return Err(Fault::new(
                FaultClass::Conflict,
                "machine.changed",
                format!("{} changed since you looked", shown(&row.name)),
            )
            .affects("this order; nothing was changed")
            .remedy("look again, and order again if it still holds"));
        }
        if matches!(verb, "failover" | "commit" | "unprotect")
            && request.confirm != row.name
            && request.confirm != row.id.to_string()
        {
            return Err(Fault::new(
                FaultClass::Usage,
                "order.unconfirmed",
                format!("{verb} {} needs its name typed out", shown(&row.name)),
            )
            .affects("this order; nothing was changed")
            .remedy(format!("confirm with the machine's exact name: {}", shown(&row.name))));
        }
        let possible = crate::estate::orders_of(&row);
        if verb != "pin-point" && !possible.iter().any(|order| order == verb) {
            let state = row.protection.as_ref().map_or("unprotected", ProtectionState::name);
            let test = if row.test_state == TestState::None {
                String::new()
            } else {
                format!(", with a test failover {}", row.test_state.name())
            };
            return Err(Fault::new(
                FaultClass::NotReady,
                "order.not-now",
                format!("{verb} is not possible while {} is {state}{test}", shown(&row.name)),
            )
            .affects("this order; nothing was changed")
            .spares("the machine and its replica")
            .remedy(format!("possible now: {}", possible.join(", "))));
        }
        let machine = row.id;
        let move_now = async |event: Event, text: &str| {
            estate
                .change(machine, &by, |row| {
                    let state = row.protection.clone().ok_or_else(|| {
                        Fault::new(FaultClass::NotReady, "machine.unprotected", "it is not protected")
                    })?;
                    row.protection = Some(state.next(event).map_err(|error| orders::refused(&error))?);
                    Ok(((), Some(text.to_owned())))
                })
                .await
        };
        let at_once = |verb: &str| Order::AtOnce { verb: verb.to_owned() };
        let (order, detail, done) = match ordered {
            Ordered::Protect(order) => {
                let policy = if order.policy.is_empty() { "default".to_owned() } else { order.policy };
                estate.policy(&policy)?;
                let target_site = estate.recovery_site(&order.target_site)?;
                let detail = format!("to {} under {}", shown(&target_site), shown(&policy));
                (Order::Protect { policy, target_site }, detail, false)
            }
            Ordered::Unprotect(order) => {
                (Order::Unprotect { keep_replica: order.keep_replica }, String::new(), false)
            }
            Ordered::Bookmark(order) => {
                if order.app_consistent {
                    return Err(Fault::new(FaultClass::NotReady, "bookmark.app", "application-consistent points need a guest that can be frozen, which no guest here offers")
                        .remedy("set a crash-consistent bookmark"));
                }
                if order.name.is_empty() || order.name.len() > 200 {
                    return Err(Fault::new(
                        FaultClass::Usage,
                        "bookmark.name",
                        "a bookmark needs a name of 1 to 200 bytes",
                    ));
                }
                let detail = shown(&order.name);
                (Order::Bookmark { name: order.name }, detail, false)
            }
            Ordered::TestFailover(order) => {
                let point = default_point(order.point);
                check_point(&point)?;
                let detail = format!("at {}", shown(&point));
                (Order::TestFailover { point }, detail, false)
            }
            Ordered::Cleanup(order) => {
                let detail = shown(&order.note);
                (Order::Cleanup { note: order.note }, detail, false)
            }
            Ordered::Failover(order) => {
                if order.kind == "planned" {
                    return Err(Fault::new(
                        FaultClass::NotReady,
                        "failover.planned",
                        "a planned failover is not available in this version",
                    )
                    .affects("this order; nothing was changed")
                    .remedy(
                        "stop the machine, wait until its RPO is current, and fail over with --unplanned",
                    ));
                }
                let point = default_point(order.point);
                check_point(&point)?;
                let detail = format!("unplanned, at {}", shown(&point));
                (Order::Failover { point }, detail, false)
            }
            Ordered::Commit(_) => (Order::Commit, String::new(), false),
            Ordered::Verify(_) => (Order::Verify, "as of a barrier that is cut now".into(), false),
            Ordered::Pause(_) => {
                move_now(Event::Pause, "paused").await?;
                (at_once("pause"), String::new(), true)
            }
            Ordered::Resume(_) => {
                move_now(Event::Resume, "resumed").await?;
                (at_once("resume"), String::new(), true)
            }
            Ordered::RetryNow(_) => {
                let act = Act::ReconnectNow(pb::ReconnectNow {});
                self.shared.registry.command(&machine.to_string(), &self.query_id(), act, QUICK).await?;
                (at_once("retry-now"), String::new(), true)
            }
            Ordered::PinPoint(order) => {
                let act = Act::MarkPoint(pb::MarkPoint {
                    machine_id: machine.to_string(),
                    point_id: order.point,
                    pinned: Some(order.pinned),
                    proofs: None,
                });
                self.ask_target(&row, &self.query_id(), act).await?;
                (at_once("pin-point"), String::new(), true)
            }
            Ordered::CancelJob(_)
            | Ordered::RetryJob(_)
            | Ordered::AcknowledgeAlert(_)
            | Ordered::SetPolicy(_) => {
                return Err(Fault::new(FaultClass::Usage, "order.empty", "the order names nothing to do"));
            }
        };
        self.order_job(&request.key, &row, &by, order, detail, done).await
    }

    async fn cancel(&self, job: &str) -> Result<pb::OrderReply, Fault> {
        let mut job = self.find_job(job)?;
        if !job.state.may_cancel() {
            return Err(Fault::new(
                FaultClass::NotReady,
                "job.over",
                format!("the job is {}: there is nothing to cancel", job.state.name()),
            ));
        }
        job.cancel = true;
        self.shared.estate.show_job(&job);
        Ok(pb::OrderReply { job: Some(job.shown()), repeated_key: false })
    }

    async fn retry(&self, key: &str, job: &str, by: &str) -> Result<pb::OrderReply, Fault> {
        let job = self.find_job(job)?;
        if !job.state.may_retry() {
            return Err(Fault::new(
                FaultClass::NotReady,
                "job.no-retry",
                format!("the job is {}: only a failed one can be tried again", job.state.name()),
            ));
        }
        let row = self.shared.estate.machine(job.machine)?;
        self.order_job(key, &row, by, job.order, job.detail, false).await
    }

    fn find_job(&self, id: &str) -> Result<JobRow, Fault> {
        let job = id.parse().ok().and_then(|id: JobId| self.shared.estate.job(id));
        job.ok_or_else(|| {
            Fault::new(FaultClass::NotFound, "job.unknown", format!("there is no job {}", shown(id)))
                .remedy("`continuum get jobs` shows what there is")
        })
    }
}

fn default_point(point: String) -> String {
    if point.is_empty() { "latest".into() } else { point }
}

fn check_point(point: &str) -> Result<(), Fault> {
    let parsed: Result<PointChoice, _> = point.parse();
    parsed.map(drop).map_err(|error| {
        Fault::new(FaultClass::Usage, "point.invalid", error.to_string())
            .affects("this order; nothing was changed")
    })
}

fn order_of(verb: &str) -> Option<Order> {
    match verb {
        "test-failover" => Some(Order::TestFailover { point: String::new() }),
        "failover" => Some(Order::Failover { point: String::new() }),
        "cleanup" => Some(Order::Cleanup { note: String::new() }),
        "verify" => Some(Order::Verify),
        _ => None,
    }
}

fn verb_of(order: &Ordered) -> &'static str {
    match order {
        Ordered::Protect(_) => "protect",
        Ordered::Unprotect(_) => "unprotect",
        Ordered::Pause(_) => "pause",
        Ordered::Resume(_) => "resume",
        Ordered::Bookmark(_) => "bookmark",
        Ordered::TestFailover(_) => "test-failover",
        Ordered::Cleanup(_) => "cleanup",
        Ordered::Failover(_) => "failover",
        Ordered::Commit(_) => "commit",
        Ordered::Verify(_) => "verify",
        Ordered::RetryNow(_) => "retry-now",
        Ordered::CancelJob(_) => "cancel-job",
        Ordered::RetryJob(_) => "retry-job",
        Ordered::AcknowledgeAlert(_) => "acknowledge-alert",
        Ordered::PinPoint(_) => "pin-point",
        Ordered::SetPolicy(_) => "set-policy",
    }
}

fn kind_of(entity: &E) -> (pb::Kind, String, String) {
    match entity {
        E::Site(site) => (pb::Kind::Site, site.id.clone(), site.name.clone()),
        E::Server(server) => (pb::Kind::Server, server.id.clone(), server.name.clone()),
        E::Machine(machine) => (pb::Kind::Machine, machine.id.clone(), machine.name.clone()),
        E::Policy(policy) => (pb::Kind::Policy, policy.id.clone(), policy.name.clone()),
        E::Job(job) => (pb::Kind::Job, job.id.clone(), job.machine.clone()),
        E::Alert(alert) => (pb::Kind::Alert, alert.id.clone(), alert.object.clone()),
        E::Event(event) => (pb::Kind::Event, event.id.to_string(), event.object.clone()),
    }
}

fn wanted(kinds: &[i32], kind: pb::Kind) -> bool {
    kinds.is_empty() || kinds.contains(&(kind as i32))
}

#[tonic::async_trait]
impl pb::operator_server::Operator for OperatorApi {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::WatchEvent, Status>> + Send>>;

    async fn snapshot(&self, request: Request<pb::SnapshotRequest>) -> Reply<pb::SnapshotReply> {
        Self::operator(&request)?;
        let request = request.into_inner();
        let (_, sequence, all) = self.shared.estate.watch();
        let fits = |entity: &E| {
            let (kind, id, name) = kind_of(entity);
            wanted(&request.kinds, kind)
                && (request.name.is_empty() || request.name == id || request.name == name)
        };
        let entities =
            all.into_iter().filter(fits).map(|entity| pb::Entity { entity: Some(entity) }).collect();
        Ok(Response::new(pb::SnapshotReply { sequence, entities }))
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Reply<Self::WatchStream> {
        Self::operator(&request)?;
        let kinds = request.into_inner().kinds;
        let (out, stream) = mpsc::channel(OUTBOX);
        let (estate, stop) = (self.shared.estate.clone(), self.stop.clone());
        tokio::spawn(async move {
            // A watcher that falls behind gets a snapshot again: never an endless queue.
            loop {
                let (mut news, sequence, all) = estate.watch();
                let event = |event| Ok(pb::WatchEvent { sequence, event: Some(event) });
                let begin = News::SnapshotBegin(pb::SnapshotBegin { run: estate.run.clone() });
                let shown = all.into_iter().filter(|entity| wanted(&kinds, kind_of(entity).0));
                let shown = shown.map(|entity| News::Changed(pb::Entity { entity: Some(entity) }));
                for item in std::iter::once(begin).chain(shown).chain([News::SnapshotEnd(pb::SnapshotEnd {})])
                {
                    if out.send(event(item)).await.is_err() {
                        return;
                    }
                }
                loop {
                    let item = tokio::select! {
                        () = stop.cancelled() => return,
                        () = out.closed() => return,
                        item = news.recv() => item,
                    };
                    match item {
                        Ok(item) => {
                            let fits = match &item.event {
                                Some(News::Changed(pb::Entity { entity: Some(entity) })) => {
                                    wanted(&kinds, kind_of(entity).0)
                                }
                                _ => true,
                            };
                            if fits && out.send(Ok(item)).await.is_err() {
                                return;
                            }
                        }
                        Err(broadcast::error::RecvError::Lagged(_)) => break,
                        Err(broadcast::error::RecvError::Closed) => return,
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn timeline(&self, request: Request<pb::TimelineRequest>) -> Reply<pb::TimelineReply> {
        Self::operator(&request)?;
        let request = request.into_inner();
        let answer = async {
            let row = self.shared.estate.find_machine(&request.machine)?;
            let query = pb::TimelineRequest { machine: row.id.to_string(), ..request };
            let act = Act::QueryTimeline(pb::QueryTimeline { request: Some(query) });
            match self.ask_target(&row, &self.query_id(), act).await? {
                Answer::Timeline(timeline) => Ok(timeline),
                _ => Err(Fault::new(FaultClass::Failed, "command.answer", "the target gave another answer")),
            }
        };
        answer.await.map(Response::new).map_err(Self::fail)
    }

    async fn preview(&self, request: Request<pb::PreviewRequest>) -> Reply<pb::PreviewReply> {
        Self::operator(&request)?;
        let request = request.into_inner();
        let row = self.shared.estate.find_machine(&request.machine).map_err(Self::fail)?;
        self.preview_of(&row, &request.point).await.map(Response::new).map_err(Self::fail)
    }

    async fn readiness(&self, request: Request<pb::ReadinessRequest>) -> Reply<pb::ReadinessReply> {
        Self::operator(&request)?;
        let request = request.into_inner();
        let row = self.shared.estate.find_machine(&request.machine).map_err(Self::fail)?;
        Ok(Response::new(self.readiness_of(&row, &request.order, &request.point).await))
    }

    async fn order(&self, request: Request<pb::OrderRequest>) -> Reply<pb::OrderReply> {
        let (_, role, name) = Self::operator(&request)?;
        self.give(&role, &name, request.into_inner()).await.map(Response::new).map_err(Self::fail)
    }

    async fn who_am_i(&self, request: Request<pb::WhoAmIRequest>) -> Reply<pb::WhoAmIReply> {
        let (_, role, name) = Self::operator(&request)?;
        let estate = &self.shared.estate;
        Ok(Response::new(pb::WhoAmIReply {
            name,
            may: VERBS.iter().filter(|verb| may(&role, verb)).map(|verb| (*verb).to_owned()).collect(),
            role,
            vault_id: estate.vault.to_string(),
            vault_name: estate.name.clone(),
            environment: estate.environment.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            run: estate.run.clone(),
            started_us: self.started_us,
        }))
    }

    async fn create_token(&self, request: Request<pb::CreateTokenRequest>) -> Reply<pb::CreateTokenReply> {
        let (_, role, name) = Self::operator(&request)?;
        let request = request.into_inner();
        let made = async {
            if !may(&role, "create-token") {
                return Err(Fault::new(
                    FaultClass::Refused,
                    "access.denied",
                    format!("the role {role} may not make tokens"),
                ));
            }
            let known =
                Role::named(&request.role).filter(|role| !matches!(role, Role::Vault | Role::Operator));
            let known = known.ok_or_else(|| {
                Fault::new(FaultClass::Usage, "token.role", "choose agent, process-server or master-target")
            })?;
            let now = self.shared.estate.clock.wall();
            let seconds =
                if request.lifetime_seconds == 0 { 3600 } else { request.lifetime_seconds.min(5 * 86_400) };
            let expires_us = now.plus(Duration::from_secs(seconds.into())).micros();
            let print = self.shared.authority.fingerprint();
            let token = Token::make(&self.enrolment_address, print, &mut SystemEntropy);
            let hash: String = token.hash().iter().map(|byte| format!("{byte:02x}")).collect();
            let row = crate::store::TokenRow {
                role: known.name().into(),
                site: request.site.clone(),
                machine: request.machine.clone(),
                expires_us,
            };
            let text = format!("made an enrolment token for {} at {}", known.name(), shown(&request.site));
            self.shared.estate.store.audit(now.micros(), &format!("{name} ({role})"), &text).await?;
            self.shared.estate.store.add_token(&hash, &row).await?;
            Ok(pb::CreateTokenReply { token: token.reveal().to_string(), expires_us })
        };
        made.await.map(Response::new).map_err(Self::fail)
    }
}

/// For whoever assembles the vault.
pub fn service(api: OperatorApi) -> pb::operator_server::OperatorServer<OperatorApi> {
    pb::operator_server::OperatorServer::from_arc(Arc::new(api))
        .max_decoding_message_size(continuum_wire::grpc::MESSAGE_BYTES_MAX)
}
