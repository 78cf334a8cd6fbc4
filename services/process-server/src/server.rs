//! Which machines a process server relays, who may send what, and how it goes.
//!
//! Lives here: assignments and their end, rights, the one stream of each machine, counters. Lives elsewhere:
//! how a stream flows (`relay`), who tells us the assignments (`control`, or a test).
//!
//! ```text
//! <dir>/assignments.json   what was last told, so that a restart without the vault goes on
//! <dir>/…                  the spool's files, which have no name
//! ```
//!
//! Invariants: a machine has at most one stream, the newest; a stream ends as soon as its assignment does.

use crate::compress::Bottleneck;
use crate::order::{no_right, other_epoch};
use crate::pace::{Held, Pace};
use crate::relay::{self, Means};
use crate::spool::Pool;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::policy::BandwidthLimit;
use continuum_model::units::{Epoch, FrameNumber};
use continuum_wire::ca;
use continuum_wire::channel::{self, Incoming};
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Where a machine's frames go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Whose frames.
    pub machine: MachineId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// `host:port` of the target's channel.
    pub target_address: String,
    /// The target's id.
    pub target_id: String,
    /// Whether to compress.
    pub compression: bool,
    /// How fast its frames may leave, by this server's hours. Changes without a break of the stream.
    #[serde(default)]
    pub bandwidth: Vec<BandwidthLimit>,
    /// It is being failed over: where not everybody can go at once, it goes first.
    #[serde(default)]
    pub urgent: bool,
}

impl Assigned {
    /// Whether a stream under one of these is a stream under the other.
    fn same_stream(&self, other: &Self) -> bool {
        let Self { machine, epoch, target_address, target_id, compression, bandwidth: _, urgent: _ } = self;
        (machine, epoch, target_address, target_id, compression)
            == (&other.machine, &other.epoch, &other.target_address, &other.target_id, &other.compression)
    }
}

/// How much may wait here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that all streams together may have in the spool.
    pub spool_bytes_max: u64,
    /// Bytes that one machine may. Beyond that its agent waits, and stages.
    pub machine_bytes_max: u64,
    /// Of these, in memory.
    pub machine_memory_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { spool_bytes_max: 2 << 30, machine_bytes_max: 256 << 20, machine_memory_bytes_max: 4 << 20 }
    }
}

/// How a process server does.
#[derive(Debug, Clone)]
pub struct Status {
    /// Bytes that wait in all streams.
    pub spool_bytes: u64,
    /// How many may.
    pub spool_bytes_max: u64,
    /// How fast frames of all machines together may leave now; `None`: as fast as the link.
    pub limit_bytes_per_sec: Option<u64>,
    /// The relays, ordered by machine.
    pub relays: Vec<RelayStatus>,
}

/// How one relay does.
#[derive(Debug, Clone)]
pub struct RelayStatus {
    /// What it is.
    pub assigned: Assigned,
    /// Its agent is here.
    pub agent_connected: bool,
    /// Its target is.
    pub target_connected: bool,
    /// Bytes that wait for the target.
    pub backlog_bytes: u64,
    /// Bytes received since this process started.
    pub received_bytes: u64,
    /// Bytes sent to the target since this process started.
    pub forwarded_bytes: u64,
    /// The newest moments received, given to the link to the target, and durable there, in microseconds; 0: none yet.
    pub times: (i64, i64, i64),
    /// Bytes given to that link and not acknowledged.
    pub on_way_bytes: u64,
    /// It takes nothing more until there is room.
    pub full: bool,
    /// What frames waited for last: `link`, `work`, or nothing.
    pub held_up_by: &'static str,
    /// Frames that came again and were dropped.
    pub duplicates: u64,
    /// The last acknowledgement that was passed on.
    pub acknowledged: FrameNumber,
    /// How fast its frames may leave now by its policy; `None`: as fast as the link.
    pub limit_bytes_per_sec: Option<u64>,
    /// Which limit holds its frames up at this moment.
    pub held: Option<Held>,
    /// Why it last ended; `None` while all is well.
    pub fault: Option<Fault>,
}

/// Counters of one relay.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    pub agent: AtomicU64,
    pub target: AtomicU64,
    pub backlog: AtomicU64,
    pub received: AtomicU64,
    pub forwarded: AtomicU64,
    pub received_time: AtomicI64,
    pub forwarded_time: AtomicI64,
    pub acknowledged_time: AtomicI64,
    pub on_way: AtomicU64,
    pub full: AtomicBool,
    held_up: AtomicU8,
    pub duplicates: AtomicU64,
    pub acknowledged: AtomicU64,
    disk_failed: AtomicBool,
    fault: Mutex<Option<Fault>>,
}

impl Gauge {
    pub fn held_up_by(&self, what: Bottleneck) {
        self.held_up.store(what as u8, Ordering::Relaxed);
    }
    pub fn well(&self) {
        self.disk_failed.store(false, Ordering::Relaxed);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
    fn ended(&self, fault: &Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault.clone());
    }
    /// The spool's disk took nothing (`Err`), or takes frames again. Says whether that is news.
    pub fn disk(&self, taken: Result<(), &std::io::Error>) -> bool {
        let was_failing = self.disk_failed.swap(taken.is_err(), Ordering::Relaxed);
        match taken {
            Ok(()) if was_failing => self.well(),
            Err(error) if !was_failing => self.ended(
                &Fault::new(
                    FaultClass::Failed,
                    "spool.disk",
                    format!("the spool's disk takes nothing: {error}"),
                )
                .affects("the reserve for a slow link: frames wait in memory only, then at the source")
                .spares("all data, and replication as fast as the link is")
                .remedy("free space on the process server, or mend its disk"),
            ),
            Ok(()) | Err(_) => return false,
        }
        true
    }
}

/// Counts a side as present for as long as it lives, however that ends.
pub(crate) struct Presence {
    gauge: Arc<Gauge>,
    side: fn(&Gauge) -> &AtomicU64,
}

impl Presence {
    pub fn of(gauge: &Arc<Gauge>, side: fn(&Gauge) -> &AtomicU64) -> Self {
        side(gauge).fetch_add(1, Ordering::Relaxed);
        Self { gauge: gauge.clone(), side }
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        (self.side)(&self.gauge).fetch_sub(1, Ordering::Relaxed);
        self.gauge.backlog.store(0, Ordering::Relaxed);
        self.gauge.on_way.store(0, Ordering::Relaxed);
        self.gauge.full.store(false, Ordering::Relaxed);
        self.gauge.held_up_by(Bottleneck::Nothing);
    }
}

/// The process server. Clones are the same one.
#[derive(Clone)]
pub struct ProcessServer {
    shared: Arc<Shared>,
}

struct Shared {
    means: Means,
    relays: Mutex<HashMap<MachineId, Relay>>,
    /// What stands in the file. Held while it is written, so that the newest state is the one that stays.
    written: Mutex<Vec<u8>>,
}

struct Relay {
    assigned: Assigned,
    gauge: Arc<Gauge>,
    /// The stream that is there, or was last.
    stream: End,
    /// Held by the stream: the next one begins when the one before is gone.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Ends a stream from outside, and says why.
#[derive(Clone, Default)]
struct End {
    token: CancellationToken,
    why: Arc<OnceLock<Fault>>,
}

impl End {
    fn because(&self, fault: Fault) {
        let _ = self.why.set(fault);
        self.token.cancel();
    }
    async fn come(&self) -> Fault {
        self.token.cancelled().await;
        self.why
            .get()
            .cloned()
            .unwrap_or_else(|| Fault::new(FaultClass::NotConnected, "relay.ended", "the stream was ended"))
    }
}

impl ProcessServer {
    /// A process server with its spool and memory in `dir`. What was last assigned is assigned again.
    pub fn open(dir: &Path, credentials: Credentials, limits: Limits, pace: Pace) -> Result<Self, Fault> {
        let failed = |what: &str, reason: String| {
            Fault::new(
                FaultClass::Failed,
                "process-server.start",
                format!("{what} {}: {}", dir.display(), continuum_model::untrusted::shown(&reason)),
            )
            .affects("this process server: it does not start")
            .spares("replication over other process servers")
            .remedy("mend the directory or name another one; everything in it may be deleted")
        };
        std::fs::create_dir_all(dir)
            .map_err(|error| failed("cannot make the directory", error.to_string()))?;
        let hands = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        let means = Means {
            credentials,
            dir: dir.to_owned(),
            pool: Pool::new(
                limits.spool_bytes_max,
                limits.machine_bytes_max,
                limits.machine_memory_bytes_max,
            ),
            hands: Arc::new(Semaphore::new(hands)),
            pace,
        };
        let server =
            Self { shared: Arc::new(Shared { means, relays: Mutex::default(), written: Mutex::default() }) };
        match std::fs::read(server.file()) {
            Ok(bytes) => match serde_json::from_slice::<Vec<Assigned>>(&bytes) {
                Ok(assigned) => assigned.into_iter().for_each(|assigned| server.place(assigned)),
                // The vault says it all again: what cannot be read is no reason not to start.
                Err(error) => {
                    tracing::warn!(%error, "assignments.json cannot be read: waiting for the vault")
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("cannot read assignments.json in", error.to_string())),
        }
        Ok(server)
    }

    /// Relays a machine from now on, or differently. A stream under another assignment is ended; its agent
    /// comes again at once.
    pub fn assign(&self, assigned: Assigned) {
        self.place(assigned);
        self.remember();
    }

    /// Relays a machine no more. Its stream is ended.
    pub fn unassign(&self, machine: MachineId) {
        self.remove(machine);
        self.remember();
    }

    /// Relays exactly these machines. Streams whose assignment stays are not touched.
    pub fn assign_exactly(&self, assigned: Vec<Assigned>) {
        let gone: Vec<MachineId> = {
            let relays = self.relays();
            let stays = |machine: &MachineId| assigned.iter().any(|assigned| assigned.machine == *machine);
            relays.keys().filter(|machine| !stays(machine)).copied().collect()
        };
        for machine in gone {
            self.remove(machine);
        }
        assigned.into_iter().for_each(|assigned| self.place(assigned));
        self.remember();
    }

    /// How it goes.
    pub fn status(&self) -> Status {
        let (relays, means) = (self.relays(), &self.shared.means);
        let mut relays: Vec<RelayStatus> = relays.values().map(|relay| relay.status(&means.pace)).collect();
        relays.sort_unstable_by_key(|relay| relay.assigned.machine);
        Status {
            spool_bytes: means.pool.bytes(),
            spool_bytes_max: means.pool.bytes_max(),
            limit_bytes_per_sec: means.pace.limit(),
            relays,
        }
    }

    /// Serves agents until `stop`.
    pub async fn serve(&self, listener: TcpListener, stop: CancellationToken) -> Result<(), Fault> {
        let acceptor = self.shared.means.credentials.acceptor().map_err(|error| {
            Fault::new(FaultClass::Configuration, "process-server.start", error.to_string())
                .affects("this process server: it takes no streams")
                .remedy("enrol it again with a new token")
        })?;
        let server = self.clone();
        channel::serve(listener, acceptor, stop, move |incoming| server.clone().stream(incoming)).await;
        Ok(())
    }

    /// One stream. The part before the future is run in the order of arrival.
    fn stream(self, incoming: Incoming) -> impl Future<Output = ()> + Send + 'static {
        let machine = incoming.hello.machine;
        let admitted = self.admit(&incoming);
        async move {
            let (assigned, gauge, end, turn) = match admitted {
                Ok(admitted) => admitted,
                Err(fault) => {
                    tracing::warn!(%machine, peer = %incoming.peer, code = fault.code, "stream refused: {}", fault.message);
                    incoming.refuse(&fault).await;
                    return;
                }
            };
            let (mut waiting, to_agent) = (Some(incoming), Arc::default());
            let ended = tokio::select! {
                biased;
                fault = end.come() => Err(fault),
                ended = async {
                    let _turn = turn.lock().await;
                    relay::carry(&self.shared.means, &mut waiting, &assigned, &gauge, &to_agent).await
                } => ended,
            };
            let Err(fault) = ended else { return };
            tracing::info!(%machine, code = fault.code, "stream ended: {}", fault.message);
            if !end.token.is_cancelled() {
                gauge.ended(&fault);
            }
            if let Some(incoming) = waiting {
                incoming.refuse(&fault).await;
            }
            if let Some(mut agent) = to_agent.lock().await.take() {
                agent.refuse(&fault).await;
            }
        }
    }

    /// May this peer send this? If so its stream is the machine's newest, and an older one ends.
    #[expect(clippy::type_complexity, reason = "what a stream needs, used once")]
    fn admit(
        &self,
        incoming: &Incoming,
    ) -> Result<(Assigned, Arc<Gauge>, End, Arc<tokio::sync::Mutex<()>>), Box<Fault>> {
        let machine = incoming.hello.machine;
        if incoming.peer.role != Role::Agent || incoming.peer.id != machine.to_string() {
            return Err(Box::new(no_right(&incoming.peer, machine)));
        }
        let mut relays = self.relays();
        let relay = relays.get_mut(&machine).ok_or_else(|| Box::new(unknown(machine)))?;
        if incoming.hello.epoch != relay.assigned.epoch {
            return Err(Box::new(other_epoch(incoming.hello.epoch, relay.assigned.epoch)));
        }
        let end = End::default();
        std::mem::replace(&mut relay.stream, end.clone()).because(
            Fault::new(
                FaultClass::NotConnected,
                "relay.replaced",
                format!("a newer stream of machine {machine} takes the place of this one"),
            )
            .spares("what was acknowledged"),
        );
        Ok((relay.assigned.clone(), relay.gauge.clone(), end, relay.turn.clone()))
    }

    fn remove(&self, machine: MachineId) {
        if let Some(relay) = self.relays().remove(&machine) {
            relay.stream.because(unknown(machine));
        }
        self.shared.means.pace.forget(machine);
    }

    fn place(&self, assigned: Assigned) {
        self.shared.means.pace.set(assigned.machine, &assigned.bandwidth, assigned.urgent);
        let mut relays = self.relays();
        match relays.get_mut(&assigned.machine) {
            Some(relay) if relay.assigned.same_stream(&assigned) => relay.assigned = assigned,
            Some(relay) => {
                relay.stream.because(
                    Fault::new(
                        FaultClass::NotReady,
                        "relay.reassigned",
                        format!("the relay of machine {} was changed", assigned.machine),
                    )
                    .spares("what was acknowledged")
                    .remedy("nothing: the stream is opened again"),
                );
                relay.assigned = assigned;
            }
            None => {
                let (gauge, stream, turn) = (Arc::default(), End::default(), Arc::default());
                relays.insert(assigned.machine, Relay { assigned, gauge, stream, turn });
            }
        }
    }

    /// Writes down what is assigned. Losing it costs a wait for the vault after a restart, and nothing else.
    fn remember(&self) {
        let mut last = self.shared.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut assigned: Vec<Assigned> =
            self.relays().values().map(|relay| relay.assigned.clone()).collect();
        assigned.sort_unstable_by_key(|assigned| assigned.machine);
        let written =
            serde_json::to_vec_pretty(&assigned).map_err(|error| error.to_string()).and_then(|bytes| {
                if bytes != *last {
                    ca::write_file(&self.file(), &bytes, 0o600).map_err(|error| error.to_string())?;
                    *last = bytes;
                }
                Ok(())
            });
        if let Err(error) = written {
            tracing::warn!("assignments could not be written down: {error}");
        }
    }

    fn file(&self) -> PathBuf {
        self.shared.means.dir.join("assignments.json")
    }

    fn relays(&self) -> MutexGuard<'_, HashMap<MachineId, Relay>> {
        self.shared.relays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Relay {
    fn status(&self, pace: &Pace) -> RelayStatus {
        let gauge = &self.gauge;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayStatus {
            assigned: self.assigned.clone(),
            agent_connected: read(&gauge.agent) > 0,
            target_connected: read(&gauge.target) > 0,
            backlog_bytes: read(&gauge.backlog),
            received_bytes: read(&gauge.received),
            forwarded_bytes: read(&gauge.forwarded),
            times: (
                gauge.received_time.load(Ordering::Relaxed),
                gauge.forwarded_time.load(Ordering::Relaxed),
                gauge.acknowledged_time.load(Ordering::Relaxed),
            ),
            on_way_bytes: read(&gauge.on_way),
            full: gauge.full.load(Ordering::Relaxed),
            held_up_by: match gauge.held_up.load(Ordering::Relaxed) {
                n if n == Bottleneck::Link as u8 => "link",
                n if n == Bottleneck::Work as u8 => "work",
                _ => "",
            },
            duplicates: read(&gauge.duplicates),
            acknowledged: FrameNumber(read(&gauge.acknowledged)),
            fault: gauge.fault.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            limit_bytes_per_sec: pace.limits(self.assigned.machine).0,
            held: pace.holds(self.assigned.machine),
        }
    }
}

fn unknown(machine: MachineId) -> Fault {
    Fault::new(
        FaultClass::NotReady,
        "relay.unknown",
        format!("this process server was not told to relay machine {machine}"),
    )
    .affects("this stream; it is tried again")
    .spares("writes of the machine, which are remembered")
    .remedy("wait for the vault, or see whether it runs")
}
