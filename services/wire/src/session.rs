//! A server's session with its vault: one stream that is opened again whenever it breaks.
//!
//! Lives here: dialling and re-dialling, reports at the vault's pace, assignments handed on, commands run
//! once each. Lives elsewhere: what a server does with them (its own crate), the vault's side (`vault`).
//!
//! A server without its vault goes on with what it was last told; nothing here ever stops it.
//! Invariant: a command id is carried out by at most one task at a time. When a session breaks, the vault
//! sends its open commands again; one that was already answered is answered again from memory, one that
//! is still under way is not begun twice. Across a restart of the server, acts are idempotent by nature
//! (they name the view, point or epoch they are about).

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::retry::{RetryClass, RetrySchedule};
use continuum_model::world::SystemEntropy;
use continuum_proto::v1 as pb;
use pb::coordination_client::CoordinationClient;
use pb::{command_result, server_message, vault_message};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Answers that are remembered, so that a command which is sent again is answered and not repeated.
const ANSWERS_KEPT: usize = 512;
/// Messages on their way to the vault. Reports wait for room; the newest state is reported anyway.
const OUTBOX: usize = 64;
/// A vault that says nothing about its pace gets a report this often.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// What a server does in its session.
pub trait Handler: Send + Sync + 'static {
    /// Who we are; asked for at each new session.
    fn hello(&self) -> pb::ServerHello;
    /// How we are; asked for at the vault's pace.
    fn report(&self) -> impl Future<Output = server_message::Message> + Send;
    /// What should be, whole. Called in order; must be quick.
    fn assigned(&self, message: vault_message::Message) -> impl Future<Output = ()> + Send;
    /// One act. Several run at once. Dropped only when the whole server stops.
    fn command(
        &self,
        command: pb::Command,
        progress: Progress,
    ) -> impl Future<Output = Result<command_result::Result, Fault>> + Send;
    /// Told once, before the first session: what a server says of its own accord goes in there.
    fn speaks(&self, outbox: Outbox) {
        let _ = outbox;
    }
    /// The session was opened or lost (with the reason).
    fn connected(&self, state: Result<(), &Fault>) {
        let _ = state;
    }
}

/// What a server says to the vault of its own accord.
#[derive(Clone)]
pub struct Outbox(mpsc::Sender<server_message::Message>);

impl Outbox {
    /// Says it in this session, or the next one. Never waits: `false` where there is no room.
    pub fn say(&self, message: server_message::Message) -> bool {
        self.0.try_send(message).is_ok()
    }
}

/// Tells the vault how far a command is. Never waits: what does not fit is left out.
#[derive(Clone)]
pub struct Progress {
    id: String,
    outbox: mpsc::Sender<server_message::Message>,
}

impl Progress {
    /// `fraction` from 0 to 1.
    pub fn tell(&self, fraction: f64, detail: impl Into<String>) {
        let progress = pb::Progress { command_id: self.id.clone(), fraction, detail: detail.into() };
        let _ = self.outbox.try_send(server_message::Message::Progress(progress));
    }
}

/// Keeps the session until `stop`. `dial` makes a fresh, authenticated connection to the vault;
/// `report_now` asks for a report out of turn.
pub async fn run<H, D, F>(dial: D, handler: Arc<H>, report_now: Arc<Notify>, stop: CancellationToken)
where
    H: Handler,
    D: Fn() -> F + Send + Sync,
    F: Future<Output = Result<Channel, Fault>> + Send,
{
    let (outbox, mut outgoing) = mpsc::channel(OUTBOX);
    handler.speaks(Outbox(outbox.clone()));
    let mut commands = Commands {
        handler: handler.clone(),
        outbox,
        under_way: HashSet::new(),
        answers: Answers::default(),
        tasks: JoinSet::new(),
    };
    let mut schedule = RetrySchedule::default();
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            () = stop.cancelled() => break,
            ended = one_session(&dial, &mut commands, &mut outgoing, &report_now, &mut schedule) => ended,
        };
        tracing::info!(code = ended.code, "session with the vault ended: {}", ended.message);
        handler.connected(Err(&ended));
        // A refusal may end (a renewed certificate, a vault that is being restored): try on, slowly.
        let class = if ended.class == FaultClass::Refused {
            RetryClass::Recoverable
        } else {
            RetryClass::ConnectionLost
        };
        let wait =
            schedule.next(class, &mut SystemEntropy).unwrap_or(REPORT_EVERY).min(Duration::from_secs(60));
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
            // Commands go on while there is no session; their answers are kept for the next one.
            () = commands.drain() => {}
        }
    }
    commands.tasks.shutdown().await;
}

async fn one_session<H, D, F>(
    dial: &D,
    commands: &mut Commands<H>,
    outgoing: &mut mpsc::Receiver<server_message::Message>,
    report_now: &Notify,
    schedule: &mut RetrySchedule,
) -> Fault
where
    H: Handler,
    D: Fn() -> F + Send + Sync,
    F: Future<Output = Result<Channel, Fault>> + Send,
{
    let channel = match dial().await {
        Ok(channel) => channel,
        Err(fault) => return fault,
    };
    let handler = commands.handler.clone();
    let (to_vault, stream) = mpsc::channel::<pb::ServerMessage>(OUTBOX);
    let hello = server_message::Message::Hello(handler.hello());
    // The channel is new and has room.
    let _ = to_vault.try_send(pb::ServerMessage { message: Some(hello) });
    let requests = futures::stream::unfold(stream, |mut stream| async move {
        stream.recv().await.map(|message| (message, stream))
    });
    let mut from_vault = match CoordinationClient::new(channel).session(requests).await {
        Ok(response) => response.into_inner(),
        Err(status) => return crate::grpc::fault_of(&status),
    };
    handler.connected(Ok(()));
    let mut pace = tokio::time::interval(REPORT_EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let report = tokio::select! {
            message = from_vault.message() => match message {
                Ok(Some(pb::VaultMessage { message: Some(message) })) => {
                    schedule.reset();
                    match message {
                        vault_message::Message::Command(command) => commands.begin(command),
                        vault_message::Message::Welcome(welcome) => {
                            if welcome.report_millis > 0 {
                                pace = tokio::time::interval(Duration::from_millis(welcome.report_millis.into()));
                                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                            }
                        }
                        assignment => handler.assigned(assignment).await,
                    }
                    continue;
                }
                Ok(Some(pb::VaultMessage { message: None })) => continue,
                Ok(None) => return Fault::new(FaultClass::NotConnected, "session.closed", "the vault closed the session"),
                Err(status) => return crate::grpc::fault_of(&status),
            },
            Some(message) = outgoing.recv() => message,
            () = commands.finished() => continue,
            _ = pace.tick() => handler.report().await,
            () = report_now.notified() => handler.report().await,
        };
        if to_vault.send(pb::ServerMessage { message: Some(report) }).await.is_err() {
            return Fault::new(
                FaultClass::NotConnected,
                "session.closed",
                "the session with the vault broke",
            );
        }
    }
}

struct Commands<H> {
    handler: Arc<H>,
    outbox: mpsc::Sender<server_message::Message>,
    under_way: HashSet<String>,
    answers: Answers,
    tasks: JoinSet<(String, pb::CommandResult)>,
}

impl<H: Handler> Commands<H> {
    fn begin(&mut self, command: pb::Command) {
        if let Some(answer) = self.answers.get(&command.id) {
            let _ = self.outbox.try_send(server_message::Message::Result(answer));
            return;
        }
        if !self.under_way.insert(command.id.clone()) {
            return;
        }
        let handler = self.handler.clone();
        let progress = Progress { id: command.id.clone(), outbox: self.outbox.clone() };
        self.tasks.spawn(async move {
            let id = command.id.clone();
            let result = match handler.command(command, progress).await {
                Ok(result) => pb::CommandResult { id: id.clone(), fault: None, result: Some(result) },
                Err(fault) => pb::CommandResult {
                    id: id.clone(),
                    fault: Some(crate::grpc::fault_to_proto(&fault)),
                    result: None,
                },
            };
            (id, result)
        });
    }

    /// Waits until one command ends, remembers its answer and queues it. Cancel safe.
    async fn finished(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok((id, result))) => {
                self.under_way.remove(&id);
                // A success is final; a failure may be tried again under the same id. Sums are many, and only read.
                let is_kept = !matches!(result.result, Some(command_result::Result::Sums(_)));
                if result.fault.is_none() && is_kept {
                    self.answers.put(id, result.clone());
                }
                if self.outbox.try_send(server_message::Message::Result(result)).is_err() {
                    tracing::warn!("the vault does not take answers: it will ask again");
                }
            }
            Some(Err(error)) => {
                // A panic in a handler: the vault's deadline ends the step, and the id may be used again.
                tracing::error!("a command died: {error}");
                self.under_way.clear();
            }
            None => std::future::pending().await,
        }
    }

    async fn drain(&mut self) {
        loop {
            self.finished().await;
        }
    }
}

#[derive(Default)]
struct Answers {
    by_id: HashMap<String, pb::CommandResult>,
    order: VecDeque<String>,
}

impl Answers {
    fn get(&self, id: &str) -> Option<pb::CommandResult> {
        self.by_id.get(id).cloned()
    }
    fn put(&mut self, id: String, result: pb::CommandResult) {
        if self.by_id.insert(id.clone(), result).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > ANSWERS_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

/// Dials the vault, and renews our certificate when half of its life is over.
pub async fn dial_and_renew(credentials: &crate::tls::Credentials, vault: &str) -> Result<Channel, Fault> {
    let channel = crate::grpc::channel(credentials, vault, crate::identity::Role::Vault).await?;
    let now = continuum_model::world::Clock::wall(&continuum_model::world::SystemClock::default());
    match crate::enroll::renew_when_due(credentials, &channel, now).await {
        Ok(true) => tracing::info!("the certificate was renewed"),
        Ok(false) => {}
        Err(fault) => {
            tracing::warn!(code = fault.code, "the certificate could not be renewed: {}", fault.message)
        }
    }
    Ok(channel)
}

/// This process and the volume of its data, for reports.
pub fn load(dir: &std::path::Path) -> pb::Load {
    let memory_bytes = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()))
        .map_or(0, |pages| pages * rustix::param::page_size() as u64);
    let free_bytes = rustix::fs::statvfs(dir).map_or(0, |volume| volume.f_bavail * volume.f_frsize);
    pb::Load { cpu_percent: cpu_percent(), memory_bytes, free_bytes }
}

/// Share of one core that this process used since the last call.
fn cpu_percent() -> f64 {
    use std::sync::Mutex;
    static LAST: Mutex<Option<(std::time::Instant, Duration)>> = Mutex::new(None);
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let used = Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.unsigned_abs() as u32);
    let now = std::time::Instant::now();
    let mut last = LAST.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let percent = last.map_or(0.0, |(at, before)| {
        let span = now.duration_since(at).as_secs_f64().max(0.001);
        100.0 * used.saturating_sub(before).as_secs_f64() / span
    });
    *last = Some((now, used));
    percent
}
