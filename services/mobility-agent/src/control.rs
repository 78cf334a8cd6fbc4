//! Seeing the disks' changes, by serving them or by whoever follows them, and the session with the vault.

use crate::home::{Receiver, Wanted, branch};
use crate::hooks::{Hooks, Outcome};
use crate::sender::{self, Course, Link, Route};
use crate::sums::Sums;
use crate::together::Together;
use continuum_capture::block_server::Listen;
use continuum_capture::source::{IntervalConfig, SourceSpec, Timing};
use continuum_capture::{
    BlockServer, ChangeTracker, FileDisk, Intervals, Source, SourceConfig, SourceStatus,
};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::BarrierKind;
use continuum_model::health::Mode;
use continuum_model::hours::Weekday;
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::point::PointKind;
use continuum_model::units::{Bytes, DiskIndex, Epoch};
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use continuum_proto::v1 as pb;
use continuum_wire::grpc;
use continuum_wire::session::{self, Handler, Outbox, Progress};
use continuum_wire::tls::Credentials;
use pb::{command_result, server_message, vault_message};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// One disk of the machine.
#[derive(Debug, Clone)]
pub struct AgentDisk {
    /// Its id, made once and kept.
    pub id: DiskId,
    /// Its name: of the export, and in lists.
    pub name: String,
    /// The file or block device; of no meaning where the disks are not served here.
    pub path: PathBuf,
    /// Made with this size where there is none.
    pub create_bytes: Option<u64>,
}

/// What an agent needs to run.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The machine's name.
    pub name: String,
    /// The name of its site.
    pub site: String,
    /// The kind of its site.
    pub fabric: String,
    /// What runs on it.
    pub guest: String,
    /// Its disks, in order.
    pub disks: Vec<AgentDisk>,
    /// Change maps and staging.
    pub dir: PathBuf,
    /// The socket where guests find their disks, if they are served here.
    pub socket: PathBuf,
    /// `host:port` of the vault.
    pub vault_address: String,
    /// What is done for application-consistent points.
    pub hooks: Hooks,
    /// Where members of a consistency group are let in; `None`: this agent leads none.
    pub group_listen: Option<SocketAddr>,
    /// Where they reach it, when that is not what it binds.
    pub group_advertise: Option<String>,
}

/// An application-consistent point that came to nothing is tried again after this, and then ever more seldom.
const APP_AGAIN: Duration = Duration::from_secs(10);
/// How the machine's changes are seen.
pub enum FrontEnd {
    /// Its disks are served here, and every write passes.
    BlockServer,
    /// Somebody else follows what changes; it comes in cycles.
    Tracker(Box<dyn ChangeTracker>),
}

struct Agent {
    config: AgentConfig,
    machine: MachineId,
    source: Arc<Source>,
    /// `None`: the disks are not served here.
    server: Option<BlockServer>,
    boot_id: String,
    course: watch::Sender<Course>,
    assigned: Mutex<pb::AgentAssignment>,
    link: Arc<Mutex<Link>>,
    retry_now: Arc<Notify>,
    report_now: Arc<Notify>,
    sums: Arc<Sums>,
    /// A resync that was ordered does not wait for its window.
    resync_now: AtomicBool,
    /// A resync waits for its window.
    waits: AtomicBool,
    together: Arc<Together>,
    /// How the newest attempt at an application-consistent point went.
    app_point: Mutex<Option<pb::AppPoint>>,
    /// One at a time: what is frozen twice is thawed too early.
    hooking: tokio::sync::Mutex<()>,
    home: Arc<Receiver>,
}

/// Runs until `stop`. Disks that are served here are so from the first moment.
pub async fn run(
    config: AgentConfig,
    front_end: FrontEnd,
    credentials: Credentials,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let start = |what: &str, reason: String| {
        Fault::new(FaultClass::Failed, "agent.start", format!("{what}: {reason}"))
            .affects("this machine: its disks are not served")
            .spares("all other machines")
            .remedy("mend what is named and start the agent again")
    };
    let machine: MachineId = credentials
        .identity()
        .id
        .parse()
        .map_err(|_| start("the certificate names no machine", credentials.identity().uri()))?;
    let clock = Arc::new(SystemClock::default());
    let opened = |opened: Result<Source, continuum_capture::SourceError>| {
        let opened = opened
            .map_err(|error| start("the source cannot be opened", format!("{error}{}", cause(&error))))?;
        Ok::<_, Fault>(Arc::new(opened))
    };
    let (source, server) = match front_end {
        FrontEnd::Tracker(tracker) => {
            let disks = config.disks.iter().map(|disk| disk.id).collect();
            let source = IntervalConfig { machine, dir: config.dir.clone(), disks, tracker };
            // It asks the machine, which may take its time to answer.
            let source = tokio::task::spawn_blocking(move || {
                Source::open_interval(source, Timing::default(), clock, &mut SystemEntropy)
            });
            let source =
                source.await.map_err(|error| start("the source cannot be opened", error.to_string()))?;
            tracing::info!(disks = config.disks.len(), "changes of the disks are followed");
            (opened(source)?, None)
        }
        FrontEnd::BlockServer => {
            let disks = open_disks(&config).map_err(|(what, reason)| start(&what, reason))?;
            let source = SourceConfig { machine, dir: config.dir.clone(), disks };
            let source = opened(Source::open(source, clock, &mut SystemEntropy))?;
            let names: Vec<&str> = config.disks.iter().map(|disk| disk.name.as_str()).collect();
            let server = BlockServer::start(source.clone(), &Listen::Unix(config.socket.clone()), &names)
                .map_err(|error| start("the disks cannot be served", error.to_string()))?;
            tracing::info!(socket = %config.socket.display(), disks = config.disks.len(), "disks are served");
            (source, Some(server))
        }
    };
    let (course, courses) = watch::channel(Course::Wait);
    let home = Arc::new(Receiver::new(source.clone(), machine, config.dir.clone(), config.disks.len()));
    let agent = Arc::new(Agent {
        home: home.clone(),
        machine,
        source: source.clone(),
        server,
        boot_id: format!("{}-{}", std::process::id(), SystemClock::default().wall().micros()),
        course,
        assigned: Mutex::default(),
        link: Arc::default(),
        retry_now: Arc::default(),
        report_now: Arc::default(),
        sums: Arc::default(),
        resync_now: AtomicBool::new(false),
        waits: AtomicBool::new(false),
        together: Together::new(machine, source.clone()),
        app_point: Mutex::default(),
        hooking: tokio::sync::Mutex::default(),
        config,
    });
    agent.make_up_for().await;
    let group_listener = match agent.config.group_listen {
        None => None,
        Some(listen) => {
            let (advertise, vault) = (agent.config.group_advertise.clone(), &agent.config.vault_address);
            agent.together.bind(listen, advertise, vault).await
        }
    };
    let sums = agent.sums.clone();
    source.set_ask_replica(move |disk, nodes| sums.ask(disk, nodes));
    let sending = sender::run(
        source,
        credentials.clone(),
        courses,
        agent.link.clone(),
        agent.retry_now.clone(),
        stop.clone(),
    );
    let receiving = home.run(credentials.clone(), agent.retry_now.clone(), stop.clone());
    let vault = agent.config.vault_address.clone();
    let credentials_of_group = credentials.clone();
    let dial = move || {
        let (credentials, vault) = (credentials.clone(), vault.clone());
        async move { session::dial_and_renew(&credentials, &vault).await }
    };
    let session = session::run(dial, agent.clone(), agent.report_now.clone(), stop.clone());
    let together = agent.together.clone().run(credentials_of_group, group_listener, stop.clone());
    let points = async { tokio::join!(agent.cut_points(stop.clone()), agent.cut_app_points(stop.clone())) };
    let steering = agent.keep_steering(stop.clone());
    tokio::join!(sending, receiving, session, points, together, steering);
    // Guests leave first; then what waits is staged and the maps are closed, so that the next start believes them.
    agent.sums.close();
    let closed = tokio::task::spawn_blocking(move || match &agent.server {
        Some(server) => server.close(),
        None => agent.source.close(),
    });
    match closed.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(unclean(error.to_string())),
        Err(error) => Err(unclean(error.to_string())),
    }
}

/// Errors: what, and why.
fn open_disks(config: &AgentConfig) -> Result<Vec<SourceSpec>, (String, String)> {
    let open = |disk: &AgentDisk| {
        let opened = match disk.create_bytes {
            Some(bytes) => FileDisk::open_or_create(&disk.path, bytes),
            None => FileDisk::open(&disk.path),
        };
        let what = |error: std::io::Error| {
            (format!("disk {} cannot be opened", disk.path.display()), error.to_string())
        };
        Ok(SourceSpec { id: disk.id, disk: Box::new(opened.map_err(what)?) })
    };
    config.disks.iter().map(open).collect()
}

fn unclean(reason: String) -> Fault {
    Fault::new(FaultClass::Failed, "agent.stop", format!("the disks were not closed in good order: {reason}"))
        .affects("the next start of this agent: it sends more than what changed")
        .spares("what the machine wrote")
        .remedy("see to the disk that holds the agent's folder, and to the machine's own disks")
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|source| format!(": {source}")).unwrap_or_default()
}

impl Agent {
    fn assigned_now(&self) -> pb::AgentAssignment {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets what the feed is to do by what was assigned, by what it doubts, and by the hour.
    fn steer(&self) {
        let assignment = self.assigned_now();
        let in_doubt = self.source.is_in_doubt();
        if !in_doubt {
            self.resync_now.store(false, Ordering::Relaxed);
        }
        let at_once = assignment.initial || assignment.resync_now || self.resync_now.load(Ordering::Relaxed);
        let window = assignment
            .policy
            .as_ref()
            .filter(|_| in_doubt && !at_once)
            .and_then(|policy| policy.resync_window.as_ref())
            // What the vault took as valid is; what is not is no reason to wait for ever.
            .and_then(|hours| continuum_wire::policy::hours_from(hours).ok());
        let (day, minute) = local_now();
        let window = window.filter(|window| !window.contains(day, minute));
        self.waits.store(window.is_some(), Ordering::Relaxed);
        let course = if assignment.machine_id.is_empty() {
            Course::Wait
        } else if assignment.receive {
            Course::Hold(
                "the direction is reversed: this machine takes in what runs at the recovery site".into(),
            )
        } else if assignment.fenced {
            Course::Hold(
                "this machine was failed over: its writes are remembered here and not replicated".into(),
            )
        } else if !assignment.replicate {
            Course::Hold("this machine is not protected".into())
        } else if assignment.paused {
            Course::Hold(if assignment.hold_reason.is_empty() {
                "an operator paused replication".into()
            } else {
                assignment.hold_reason.clone()
            })
        } else if let Some(window) = window {
            Course::Hold(format!("resync required, and it waits for its window ({window}, local time)"))
        } else if assignment.process_server_address.is_empty() {
            Course::Wait
        } else {
            Course::Ship(Route {
                machine: self.machine,
                epoch: Epoch(assignment.epoch),
                address: assignment.process_server_address,
                server: assignment.process_server_id,
            })
        };
        self.course.send_if_modified(|current| {
            let changed = *current != course;
            *current = course;
            changed
        });
    }

    /// Steers twice a second: the feed may have come to doubt its replica, and the hours pass.
    async fn keep_steering(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => self.steer(),
            }
        }
    }

    /// Cuts crash-consistent points as often as the policy asks, whenever the feed is whole.
    async fn cut_points(&self, stop: CancellationToken) {
        if self.source.is_interval() {
            // There they are cut with the cycles.
            return stop.cancelled().await;
        }
        let clock = SystemClock::default();
        let mut last: Option<std::time::Instant> = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            let every = self.assigned_now().policy.map_or(0, |policy| policy.crash_point_seconds);
            let due = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(every));
            if every == 0 || !due || self.source.status().mode != Mode::Data {
                continue;
            }
            let point = PointId::make(clock.wall(), &mut SystemEntropy);
            match self.source.barrier(BarrierKind::Crash, "", point) {
                Ok(_) => last = Some(std::time::Instant::now()),
                Err(error) => tracing::debug!(%error, "no point was cut"),
            }
        }
    }

    /// Cuts application-consistent points as often as the policy asks, whenever the feed is whole. One that came to
    /// nothing is tried again sooner.
    async fn cut_app_points(&self, stop: CancellationToken) {
        let mut due: Option<std::time::Instant> = None;
        let mut again = APP_AGAIN;
        while self.config.hooks.exist() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
            let every =
                Duration::from_secs(self.assigned_now().policy.map_or(0, |policy| policy.app_point_seconds));
            let is_due = due.is_none_or(|due| std::time::Instant::now() >= due);
            if every.is_zero() || !is_due || self.source.status().mode != Mode::Data {
                continue;
            }
            let point = PointId::make(SystemClock::default().wall(), &mut SystemEntropy);
            let went = tokio::select! {
                () = stop.cancelled() => return,
                went = self.app_point(point, "") => went,
            };
            let consistent = match went {
                Ok(outcome) => outcome.reason.is_none(),
                Err(fault) => {
                    tracing::debug!("no application-consistent point: {}", fault.message);
                    continue;
                }
            };
            again = if consistent { APP_AGAIN } else { (again * 2).min(every) };
            let wait = if consistent { every } else { again.min(every) };
            due = Some(std::time::Instant::now() + wait);
        }
    }

    /// One such point, with the hooks around it.
    ///
    /// Errors: no point can be cut now.
    async fn app_point(&self, point: PointId, name: &str) -> Result<Outcome, Fault> {
        let _one = self.hooking.lock().await;
        let (hooks, source) = (self.config.hooks.clone(), self.source.clone());
        let (dir, name) = (self.config.dir.clone(), name.to_owned());
        let cut = tokio::task::spawn_blocking(move || hooks.cut(&source, &dir, point, &name)).await;
        let outcome = cut
            .map_err(|error| refused("hooks.died", error.to_string()))?
            .map_err(|error| refused("barrier.refused", error.to_string()))?;
        match &outcome.reason {
            None => tracing::info!(%point, "an application-consistent point"),
            Some(why) => {
                tracing::warn!(%point, why, "a crash-consistent point in place of an application-consistent one")
            }
        }
        if let Some(why) = &outcome.thaw {
            tracing::error!(%point, why, "after an application-consistent point");
        }
        if !outcome.output.is_empty() {
            tracing::info!(%point, "the scripts said: {}", outcome.output);
        }
        *self.app_point.lock().unwrap_or_else(PoisonError::into_inner) = Some(pb::AppPoint {
            point_id: point.to_string(),
            time_us: outcome.cut.time.micros(),
            consistent: outcome.reason.is_none(),
            reason: outcome.reason.clone().unwrap_or_default(),
            thaw: outcome.thaw.clone().unwrap_or_default(),
            output: outcome.output.clone(),
        });
        self.report_now.notify_one();
        Ok(outcome)
    }

    /// An agent that died in the middle of such a point: what it left frozen is thawed before anything else.
    async fn make_up_for(&self) {
        let (hooks, dir) = (self.config.hooks.clone(), self.config.dir.clone());
        match tokio::task::spawn_blocking(move || hooks.make_up_for(&dir)).await {
            Ok(Some(done)) => tracing::warn!("{done}"),
            Ok(None) => {}
            Err(error) => tracing::error!("what may be frozen was not thawed: {error}"),
        }
    }

    /// Begins or ends taking in what runs at the recovery site, as the vault says. `false`: it could not be begun.
    async fn on_its_way_home(&self, assignment: &pb::AgentAssignment) -> bool {
        let (home, source) = (self.home.clone(), self.source.clone());
        let wanted = assignment.receive.then(|| Wanted {
            epoch: Epoch(assignment.epoch),
            address: assignment.target_address.clone(),
            target: assignment.target_id.clone(),
            view: assignment.view_id.clone(),
        });
        let done = tokio::task::spawn_blocking(move || match wanted {
            None => {
                home.shut();
                Ok(())
            }
            Some(wanted) => {
                // First the guest: from here on its writes would be overwritten.
                source.halt()?;
                home.follow(wanted);
                Ok(())
            }
        });
        match done.await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let error: std::io::Error = error;
                tracing::error!("this machine cannot be stopped here, so nothing is taken in: {error}");
                false
            }
            Err(error) => {
                tracing::error!(%error, "an assignment could not be taken");
                false
            }
        }
    }

    fn disks(&self) -> Vec<pb::Disk> {
        let sizes = self.source.sizes();
        self.config
            .disks
            .iter()
            .zip(sizes)
            .enumerate()
            .map(|(index, (disk, size))| pb::Disk {
                id: disk.id.to_string(),
                index: index as u32,
                name: disk.name.clone(),
                size_bytes: *size,
                endpoint: self
                    .server
                    .as_ref()
                    .map(|server| server.endpoint().uri(&disk.name))
                    .unwrap_or_default(),
            })
            .collect()
    }
}

/// The weekday and the minute of the day here, by local time.
fn local_now() -> (Weekday, u32) {
    use chrono::{Datelike, Timelike};
    let now = chrono::Local::now();
    (Weekday::from_monday(now.weekday().num_days_from_monday()), now.hour() * 60 + now.minute())
}

/// Why the feed is not whole, and what of the agent's own files does not work, in one text.
fn reason(status: &SourceStatus) -> String {
    // Why everything is sent again: of interest until that is done.
    let doubt = status.doubt.as_deref().filter(|_| !status.mode.is_whole());
    let parts =
        [status.reason.as_str()].into_iter().chain(doubt).chain(status.faults.iter().map(String::as_str));
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

fn refused(code: &str, message: String) -> Fault {
    Fault::new(FaultClass::NotReady, code, message)
        .affects("this request")
        .spares("replication and the machine's writes")
        .remedy("wait until the machine is in data mode, then try again")
}

impl Handler for Agent {
    fn hello(&self) -> pb::ServerHello {
        pb::ServerHello {
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            name: self.config.name.clone(),
            site: self.config.site.clone(),
            fabric: self.config.fabric.clone(),
            guest: self.config.guest.clone(),
            disks: self.disks(),
            clock_us: SystemClock::default().wall().micros(),
            group_address: self.together.address(),
            app_consistent: self.config.hooks.exist(),
            ..Default::default()
        }
    }

    fn speaks(&self, outbox: Outbox) {
        self.sums.speaks(outbox);
    }

    async fn report(&self) -> server_message::Message {
        let status = self.source.status();
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let assigned = self.assigned_now();
        let (group_cuts, group_misses) = self.together.report();
        let (branches, branch_bytes) = branch::weight(&self.config.dir);
        server_message::Message::Agent(pb::AgentReport {
            load: Some(session::load(&self.config.dir)),
            disks: self.disks(),
            protected: assigned.replicate,
            mode: status.mode.name().into(),
            mode_reason: reason(&status),
            dirty_bytes: status.dirty_bytes,
            in_flight_bytes: status.waiting_bytes,
            staged_bytes: status.staged_bytes,
            staged_bytes_max: status.staging_max,
            written_bytes_total: status.totals.written,
            sent_bytes_total: status.totals.sent,
            injected_bytes_total: status.totals.injected,
            initial_bytes_done: status.totals.round_done.min(status.totals.round_total),
            initial_bytes_total: status.totals.round_total,
            channel_connected: link.connected,
            channel_fault: link.fault.as_ref().map(grpc::fault_to_proto),
            next_retry_us: link.next_retry.map_or(0, |at| at.micros()),
            newest_sequence: status.newest.0.0,
            newest_time_us: status.newest.1.micros(),
            unsent_bytes: status.unsent_bytes,
            sent_time_us: status.sent_time.micros(),
            acknowledged_time_us: status.acknowledged_time.micros(),
            mode_changes: status
                .changes
                .iter()
                .map(|change| pb::ModeChange {
                    at_us: change.at.micros(),
                    mode: change.mode.name().into(),
                    reason: change.reason.clone(),
                })
                .collect(),
            phase: match status.resync {
                Some(_) if self.waits.load(Ordering::Relaxed) => "waiting-for-window".into(),
                Some(resync) => resync.phase.name().into(),
                None => String::new(),
            },
            compared_bytes: status.resync.map_or(0, |resync| resync.compared_bytes),
            to_compare_bytes: status.resync.map_or(0, |resync| resync.to_compare_bytes),
            equal_bytes_total: status.totals.equal,
            doubt: status.doubt.unwrap_or_default(),
            epoch: assigned.epoch,
            fenced: link.fenced || assigned.fenced,
            stopped: status.halted,
            app_point: self.app_point.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            group_cuts,
            group_misses,
            receiving: self.home.report(),
            branches,
            branch_bytes,
        })
    }

    async fn assigned(&self, message: vault_message::Message) {
        let assignment = match message {
            vault_message::Message::Agent(assignment) => assignment,
            vault_message::Message::Sums(reply) => return self.sums.answer(reply),
            _ => return,
        };
        if assignment.machine_id != self.machine.to_string() {
            tracing::error!("an assignment for another machine was ignored");
            return;
        }
        if let Some(policy) = &assignment.policy {
            let disks: u64 = self.source.sizes().iter().sum();
            let budget = continuum_model::policy::staging_for(Bytes(policy.staging_bytes_max), Bytes(disks));
            self.source.set_staging_max(budget.0);
            self.source.set_intervals(Intervals {
                cycle: Duration::from_secs(policy.replication_interval_seconds),
                crash_point: Duration::from_secs(policy.crash_point_seconds),
                app_point: Duration::from_secs(policy.app_point_seconds),
            });
        }
        if !self.on_its_way_home(&assignment).await {
            return;
        }
        // Replicated from here again, under a newer epoch than that in which it was stopped: the move was undone,
        // or it was protected anew.
        let released = self.source.halted_under().is_some_and(|under| Epoch(assignment.epoch) > under);
        if released && assignment.replicate && !assignment.fenced {
            let source = self.source.clone();
            let release = move || {
                if let Err(error) = source.release() {
                    tracing::error!("the machine still does not write: {error}");
                }
            };
            if self.source.is_interval() {
                // It may take as long as a cycle; what should be is heard meanwhile. Told again with each assignment.
                drop(tokio::task::spawn_blocking(release));
            } else {
                release();
            }
        }
        self.together.assigned(assignment.group.clone());
        *self.assigned.lock().unwrap_or_else(PoisonError::into_inner) = assignment;
        self.steer();
    }

    async fn command(
        &self,
        command: pb::Command,
        progress: Progress,
    ) -> Result<command_result::Result, Fault> {
        use pb::command::Act;
        let point =
            |text: &str| text.parse::<PointId>().map_err(|error| refused("point.invalid", error.to_string()));
        match command.act {
            Some(Act::MakeBarrier(order)) => {
                let id = point(&order.point_id)?;
                if order.kind == PointKind::App.name() {
                    if !self.config.hooks.exist() {
                        return Err(refused(
                            "hooks.none",
                            "this machine's agent has no hooks for application-consistent points".into(),
                        )
                        .remedy("configure them at the agent ([agent.hooks]), or order the point without"));
                    }
                    let outcome = self.app_point(id, &order.name).await?;
                    let cut = outcome.cut;
                    return Ok(command_result::Result::Barrier(pb::Barrier {
                        point_id: order.point_id,
                        sequence: cut.sequence.0,
                        time_us: cut.time.micros(),
                        consistent: true,
                        kind: PointKind::of(cut.kind).name().into(),
                        name: cut.name,
                        reason: outcome.reason.unwrap_or_default(),
                    }));
                }
                let kind = if order.name.is_empty() { BarrierKind::Crash } else { BarrierKind::Bookmark };
                let (source, name) = (self.source.clone(), order.name);
                // Where changes come in cycles, it waits for one.
                let cut = tokio::task::spawn_blocking(move || source.barrier(kind, &name, id)).await;
                let (sequence, time) = cut
                    .map_err(|error| refused("barrier.refused", error.to_string()))?
                    .map_err(|error| refused("barrier.refused", error.to_string()))?;
                Ok(command_result::Result::Barrier(pb::Barrier {
                    point_id: order.point_id,
                    sequence: sequence.0,
                    time_us: time.micros(),
                    consistent: true,
                    ..Default::default()
                }))
            }
            Some(Act::MakeGroupPoint(order)) => {
                let cut = self.together.ordered(&order).await;
                self.report_now.notify_one();
                cut.map(command_result::Result::Barrier)
            }
            Some(Act::StopSource(order)) if order.release => {
                let (home, source) = (self.home.clone(), self.source.clone());
                let released = tokio::task::spawn_blocking(move || {
                    // Nothing lands any more once the machine may write.
                    home.shut();
                    source.release()
                });
                let released =
                    released.await.map_err(|error| refused("source.release", error.to_string()))?;
                released.map_err(|error| refused("source.release", error.to_string()))?;
                Ok(command_result::Result::Done(pb::Done { detail: "the machine may write again".into() }))
            }
            Some(Act::StopSource(order)) => {
                let (source, id) = (self.source.clone(), point(&order.point_id)?);
                let stopped = tokio::task::spawn_blocking(move || {
                    source.halt().map_err(|error| refused("source.stop", error.to_string()))?;
                    source.barrier(BarrierKind::Crash, "planned failover", id).map_err(|error| {
                        // It cannot be moved without loss now: it goes on where it is.
                        let _ = source.release();
                        refused("barrier.refused", error.to_string())
                    })
                });
                let (sequence, time) =
                    stopped.await.map_err(|error| refused("source.died", error.to_string()))??;
                Ok(command_result::Result::Barrier(pb::Barrier {
                    point_id: order.point_id,
                    sequence: sequence.0,
                    time_us: time.micros(),
                    consistent: true,
                    ..Default::default()
                }))
            }
            Some(Act::SendAgain(order)) => {
                let lost: Option<Vec<_>> = order
                    .blocks
                    .iter()
                    .map(|blocks| {
                        let disk = DiskIndex(u16::try_from(blocks.disk).ok()?);
                        Some((disk, blocks.first..blocks.first.checked_add(blocks.count)?))
                    })
                    .collect();
                let lost =
                    lost.ok_or_else(|| refused("blocks.invalid", "there are no such blocks".into()))?;
                let marked = self.source.send_again(&lost);
                marked.map_err(|error| refused("blocks.invalid", error.to_string()))?;
                Ok(command_result::Result::Done(pb::Done { detail: "they are sent again".into() }))
            }
            Some(Act::CompareAll(order)) => {
                self.resync_now.store(order.now, Ordering::Relaxed);
                self.source
                    .compare_all("an operator ordered a resync: all of source and replica is compared");
                self.steer();
                Ok(command_result::Result::Done(pb::Done { detail: "everything is compared".into() }))
            }
            Some(Act::ReconnectNow(_)) => {
                self.retry_now.notify_waiters();
                self.retry_now.notify_one();
                Ok(command_result::Result::Done(pb::Done { detail: "trying now".into() }))
            }
            Some(Act::HomeDigest(_)) => {
                let source = self.source.clone();
                progress.tell(0.0, "reading the disks");
                let digested = tokio::task::spawn_blocking(move || source.digest_at_rest()).await;
                let digests = digested
                    .map_err(|error| refused("digest.died", error.to_string()))?
                    .map_err(|error| refused("digest.refused", format!("{error}{}", cause(&error))))?;
                let disks = (0..).zip(&digests).map(|(index, digest)| pb::DiskDigest {
                    index,
                    digest: digest.to_string(),
                    bytes_read: 0,
                });
                Ok(command_result::Result::Digests(pb::Digests {
                    disks: disks.collect(),
                    ..Default::default()
                }))
            }
            Some(Act::SourceDigest(order)) => {
                let (source, point) = (self.source.clone(), point(&order.point_id)?);
                progress.tell(0.0, "digesting the source");
                let digested = tokio::task::spawn_blocking(move || source.digest_at_barrier(point)).await;
                let (sequence, time, digests) = digested
                    .map_err(|error| refused("digest.died", error.to_string()))?
                    .map_err(|error| refused("digest.refused", format!("{error}{}", cause(&error))))?;
                let disks = digests
                    .iter()
                    .enumerate()
                    .map(|(index, digest)| pb::DiskDigest {
                        index: index as u32,
                        digest: digest.to_string(),
                        bytes_read: 0,
                    })
                    .collect();
                Ok(command_result::Result::Digests(pb::Digests {
                    disks,
                    position: sequence.0,
                    time_us: time.micros(),
                }))
            }
            _ => Err(Fault::new(FaultClass::Usage, "command.unknown", "an agent does not do that")),
        }
    }
}
