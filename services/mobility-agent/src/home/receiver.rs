//! The stream from the master target: dialled from here, frames in, acknowledgements out; opened again whenever it breaks.
//!
//! Invariant: nothing lands after [`Receiver::shut`] returned, so that a guest can be let back onto the disks.

use super::landing::{Landed, Landing};
use continuum_capture::Source;
use continuum_capture::nbd::BlockDevice;
use continuum_model::digest::Nodes;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::Envelope;
use continuum_model::id::MachineId;
use continuum_model::retry::{RetryClass, RetrySchedule};
use continuum_model::units::{DiskIndex, Epoch};
use continuum_model::world::{Clock, Entropy, SystemClock, SystemEntropy};
use continuum_proto::v1 as pb;
use continuum_wire::channel::{self, Ack, Hello, Message, Sender, Sums, Welcome};
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use continuum_wire::tls::Credentials;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Messages that wait for the disks.
const QUEUE: usize = 32;
/// Most frames, and most bytes, in one group.
const GROUP: usize = 256;
const GROUP_BYTES: usize = 16 << 20;

/// What to follow, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) epoch: Epoch,
    pub(crate) address: String,
    pub(crate) target: String,
    pub(crate) view: String,
}

/// The receiving side of a machine's way home.
pub(crate) struct Receiver {
    source: Arc<Source>,
    machine: MachineId,
    dir: PathBuf,
    disks: usize,
    wanted: watch::Sender<Option<Wanted>>,
    /// Who applies holds this. Empty: nothing lands.
    landing: Mutex<Option<(Wanted, Landing)>>,
    link: Mutex<Link>,
}

#[derive(Default, Clone)]
struct Link {
    connected: bool,
    fault: Option<Fault>,
    landed: Landed,
}

enum In {
    Frame(Envelope),
    Ask(DiskIndex, Nodes),
}

impl Receiver {
    pub(crate) fn new(source: Arc<Source>, machine: MachineId, dir: PathBuf, disks: usize) -> Self {
        let (wanted, _) = watch::channel(None);
        Self { source, machine, dir, disks, wanted, landing: Mutex::default(), link: Mutex::default() }
    }

    fn landing(&self) -> MutexGuard<'_, Option<(Wanted, Landing)>> {
        self.landing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut Link)) {
        change(&mut self.link.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Follows this from now on. The machine must take no guest's writes. Blocks.
    pub(crate) fn follow(&self, wanted: Wanted) {
        if self.wanted.borrow().as_ref() != Some(&wanted) {
            self.shut();
            self.wanted.send_replace(Some(wanted));
        }
    }

    /// Nothing lands any more once this returns. Blocks for as long as a group of frames takes.
    pub(crate) fn shut(&self) {
        self.wanted.send_replace(None);
        *self.landing() = None;
        self.tell(|link| *link = Link::default());
    }

    /// How it is; `None` while nothing is followed.
    pub(crate) fn report(&self) -> Option<pb::Receiving> {
        let wanted = self.wanted.borrow().clone()?;
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Some(pb::Receiving {
            view_id: wanted.view,
            epoch: wanted.epoch.0,
            connected: link.connected,
            fault: link.fault.as_ref().map(grpc::fault_to_proto),
            whole: link.landed.whole,
            sequence: link.landed.sequence,
            newest_us: link.landed.newest_us,
            received_bytes: link.landed.received_bytes,
            kept_bytes: link.landed.kept_bytes,
            branch: link.landed.branch,
        })
    }

    /// Receives until `stop`, whatever is to be followed.
    pub(crate) async fn run(
        self: Arc<Self>,
        credentials: Credentials,
        retry_now: Arc<Notify>,
        stop: CancellationToken,
    ) {
        let mut changes = self.wanted.subscribe();
        let mut schedule = RetrySchedule::default();
        loop {
            let wanted = changes.borrow_and_update().clone();
            let Some(wanted) = wanted else {
                schedule.reset();
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let fault = tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    continue;
                }
                fault = self.stream(&credentials, &wanted, &mut schedule) => fault,
            };
            let class = match fault.class {
                FaultClass::NotConnected | FaultClass::NotReady => RetryClass::ConnectionLost,
                _ => RetryClass::Recoverable,
            };
            let wait = schedule.next(class, &mut SystemEntropy).unwrap_or(Duration::from_secs(60));
            tracing::info!(
                code = fault.code,
                ?wait,
                "the stream from the recovery site ended: {}",
                fault.message
            );
            if self.wanted.borrow().as_ref() == Some(&wanted) {
                self.tell(|link| (link.connected, link.fault) = (false, Some(fault)));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                () = retry_now.notified() => schedule.reset(),
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn stream(
        self: &Arc<Self>,
        credentials: &Credentials,
        wanted: &Wanted,
        schedule: &mut RetrySchedule,
    ) -> Fault {
        let (this, of) = (self.clone(), wanted.clone());
        let opened = tokio::task::spawn_blocking(move || this.open(&of)).await;
        let held = match opened {
            Ok(Ok(held)) => held,
            Ok(Err(fault)) => return fault,
            Err(error) => return died(&error.to_string()),
        };
        let hello =
            Hello { machine: self.machine, epoch: wanted.epoch, session: u64::from(std::process::id()) };
        let target = Some(wanted.target.as_str()).filter(|id| !id.is_empty());
        let opened = channel::connect(credentials, &wanted.address, Role::MasterTarget, target, hello).await;
        let (_, mut sender, mut receiver) = match opened {
            Ok(opened) => opened,
            Err(fault) => return fault,
        };
        if let Err(fault) = sender.holds(held).await {
            return fault;
        }
        tracing::info!(after = %held.number, "stream from the recovery site open");
        self.tell(|link| (link.connected, link.fault) = (true, None));
        schedule.reset();
        let (queue, inbox) = mpsc::channel(QUEUE);
        let take = async {
            loop {
                let item = match receiver.next().await {
                    Ok(Some(Message::Frame(envelope))) => In::Frame(envelope),
                    Ok(Some(Message::Ask(disk, nodes))) => In::Ask(disk, nodes),
                    Ok(Some(Message::Refused(fault))) | Err(fault) => return fault,
                    Ok(Some(Message::Ack(_) | Message::Holds(_) | Message::Sums(_))) => {
                        return died("the recovery site sent what it should receive");
                    }
                    Ok(None) => {
                        let what = "the master target closed the stream";
                        return Fault::new(FaultClass::NotConnected, "channel.closed", what);
                    }
                };
                if queue.send(item).await.is_err() {
                    return died("the disks are closed");
                }
            }
        };
        tokio::select! {
            fault = take => fault,
            fault = self.keep(wanted, inbox, sender) => fault,
        }
    }

    /// Opens the landing, where it is not open.
    fn open(&self, wanted: &Wanted) -> Result<Welcome, Fault> {
        let mut landing = self.landing();
        if self.wanted.borrow().as_ref() != Some(wanted) {
            return Err(closed());
        }
        if landing.as_ref().is_none_or(|(of, _)| of != wanted) {
            self.source
                .pause("the direction is reversed: this machine takes in what runs at the recovery site");
            let disks: Option<Vec<Arc<dyn BlockDevice>>> =
                (0..self.disks).map(|index| self.source.homeward(index)).collect();
            let disks = disks.ok_or_else(|| {
                let what = "the disks of this machine are followed and not served by its agent: nothing can be brought to them";
                Fault::new(FaultClass::NotReady, "home.not-served", what)
                    .affects("the way home of this machine")
                    .spares("the machine at the recovery site, and these disks")
                    .remedy("cancel the reprotect; let the machine stay, or bring its disks home by `continuum export`")
            })?;
            let mut never_fed = [0; 16];
            SystemEntropy.fill(&mut never_fed);
            let now = SystemClock::default().wall();
            let never_fed = u128::from_le_bytes(never_fed) | 1;
            let opened = Landing::open(&self.dir, self.machine, disks, &wanted.view, now, never_fed)?;
            *landing = Some((wanted.clone(), opened));
        }
        self.with(&mut landing, wanted, |landing| Ok(landing.held(wanted.epoch)))
    }

    fn with<T>(
        &self,
        open: &mut Option<(Wanted, Landing)>,
        wanted: &Wanted,
        act: impl FnOnce(&mut Landing) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let Some((of, landing)) = open.as_mut().filter(|(of, _)| of == wanted) else { return Err(closed()) };
        debug_assert_eq!(of, wanted);
        let done = act(landing);
        let landed = landing.landed();
        self.tell(|link| link.landed = landed);
        if done.is_err() {
            // What a failed disk holds is known only after its redo.
            *open = None;
        }
        done
    }

    async fn keep(
        self: &Arc<Self>,
        wanted: &Wanted,
        mut inbox: mpsc::Receiver<In>,
        mut sender: Sender,
    ) -> Fault {
        let mut next = None;
        loop {
            let item = match next.take() {
                Some(item) => item,
                None => match inbox.recv().await {
                    Some(item) => item,
                    None => return died("the stream ended"),
                },
            };
            let (this, wanted) = (self.clone(), wanted.clone());
            let done = match item {
                In::Ask(disk, nodes) => {
                    let told = tokio::task::spawn_blocking(move || -> Result<Sums, Fault> {
                        this.with(&mut this.landing(), &wanted, |landing| landing.sums(disk, &nodes))
                    });
                    match told.await {
                        Ok(Ok(told)) => sender.sums(&told).await,
                        Ok(Err(fault)) => Err(fault),
                        Err(error) => Err(died(&error.to_string())),
                    }
                }
                In::Frame(first) => {
                    let mut bytes = first.len();
                    let mut group = vec![first];
                    while group.len() < GROUP && bytes < GROUP_BYTES {
                        match inbox.try_recv() {
                            Ok(In::Frame(frame)) => {
                                bytes += frame.len();
                                group.push(frame);
                            }
                            Ok(ask @ In::Ask(..)) => {
                                next = Some(ask);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    let landed = tokio::task::spawn_blocking(move || {
                        this.with(&mut this.landing(), &wanted, |landing| {
                            landing.apply(&group)?;
                            Ok(landing.held(wanted.epoch))
                        })
                    });
                    match landed.await {
                        Ok(Ok(held)) => {
                            let Welcome { number, sequence, newest, .. } = held;
                            sender.ack(Ack { number, sequence, newest }).await
                        }
                        Ok(Err(fault)) => {
                            sender.refuse(&fault).await;
                            Err(fault)
                        }
                        Err(error) => Err(died(&error.to_string())),
                    }
                }
            };
            if let Err(fault) = done {
                return fault;
            }
        }
    }
}

fn closed() -> Fault {
    Fault::new(FaultClass::NotReady, "home.closed", "this machine takes in nothing now")
}

fn died(reason: &str) -> Fault {
    Fault::new(FaultClass::Failed, "home.stream", format!("the way home was interrupted: {reason}"))
        .affects("this stream, which is opened again")
        .spares("what has landed, and the machine at the recovery site")
}
