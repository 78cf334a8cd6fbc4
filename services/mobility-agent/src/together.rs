//! Points that several machines share: the leader of a consistency group, and its members.
//!
//! ```text
//! leader                                member (each of the others)
//!   hold(point) ───────────────────────►  barrier, and from there on nothing is acknowledged
//!   (its own barrier and hold)
//!   ◄─────────────────── held(sequence)
//!   every member has cut:
//!   release(complete) ─────────────────►  acknowledge what waits
//!   ◄────────────────── released(whole)   whole: nothing was acknowledged before → told to the vault, by each for itself
//! ```
//!
//! Members dial the leader, whom the vault names with its address; both sides know each other by their certificates. One
//! round trip holds everybody: a barrier is cut as the hold begins (why that is enough stands in `capture::hold`).
//!
//! Invariant: a member tells the vault of a shared point only if every member has cut it while this one held, and this one
//! held until it was told so. Each goes by its own clock, and none waits longer than the hold's limit: one that is late or
//! dead costs the point, and nobody's writes more than that limit.
//!
//! Not in scope: a member that says it held and did not. It is an agent of this vault, and could falsify its disks as well.

use continuum_capture::{Cut, Source, Ticket};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::BarrierKind;
use continuum_model::id::{MachineId, PointId};
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use continuum_proto::v1 as pb;
use continuum_wire::grpc::{self, Peer, status_of};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::{ALPN_GRPC, Credentials};
use pb::together_client::TogetherClient;
use pb::together_server::{Together as Api, TogetherServer};
use pb::{leader_message, member_message};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// So many points are told again in each report.
const TOLD: usize = 32;
/// A member that lost its leader dials again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the last answers of a round are waited for; nobody holds meanwhile.
const ANSWERS: Duration = Duration::from_secs(2);
/// Messages on their way to a member, or from all of them.
const QUEUE: usize = 64;
/// The longest hold that is obeyed, whoever asks for it.
pub const HOLD_MAX: Duration = Duration::from_secs(5);

/// The way to a member.
type ToMember = mpsc::Sender<Result<pb::LeaderMessage, Status>>;

/// What is told to the vault.
#[derive(Default)]
struct Told {
    cuts: VecDeque<pb::GroupCut>,
    misses: VecDeque<pb::GroupMiss>,
}

/// One agent's part in its group.
pub(crate) struct Together {
    machine: MachineId,
    source: Arc<Source>,
    group: watch::Sender<Option<pb::GroupAssignment>>,
    told: Mutex<Told>,
    /// Where it listens, as others reach it.
    address: Mutex<String>,
    /// Members that joined, and the number of their connection.
    joined: Mutex<HashMap<MachineId, (u64, ToMember)>>,
    /// What they answer; taken by the round that is under way.
    answers: mpsc::Sender<(MachineId, member_message::Message)>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<(MachineId, member_message::Message)>>,
}

impl Together {
    pub(crate) fn new(machine: MachineId, source: Arc<Source>) -> Arc<Self> {
        let (answers, inbox) = mpsc::channel(QUEUE);
        Arc::new(Self {
            machine,
            source,
            group: watch::Sender::new(None),
            told: Mutex::default(),
            address: Mutex::default(),
            joined: Mutex::default(),
            answers,
            inbox: tokio::sync::Mutex::new(inbox),
        })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to tell.
    pub(crate) fn report(&self) -> (Vec<pb::GroupCut>, Vec<pb::GroupMiss>) {
        let told = self.told();
        (told.cuts.iter().cloned().collect(), told.misses.iter().cloned().collect())
    }

    /// Where members reach this one; empty: it cannot lead.
    pub(crate) fn address(&self) -> String {
        self.address.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the vault says of the group.
    pub(crate) fn assigned(&self, group: Option<pb::GroupAssignment>) {
        self.group.send_if_modified(|now| {
            let changed = *now != group;
            *now = group;
            changed
        });
    }

    fn group(&self) -> Option<pb::GroupAssignment> {
        self.group.borrow().clone()
    }

    fn leads(&self, group: &pb::GroupAssignment) -> bool {
        group.leader_id == self.machine.to_string()
    }

    /// Binds where members are let in. What cannot be bound keeps nobody from being a member: another one leads.
    pub(crate) async fn bind(
        &self,
        listen: SocketAddr,
        advertise: Option<String>,
        vault: &str,
    ) -> Option<TcpListener> {
        let bound = async {
            let listener = TcpListener::bind(listen).await?;
            let at = listener.local_addr()?;
            Ok::<_, std::io::Error>((listener, at))
        };
        match bound.await {
            Ok((listener, at)) => {
                let address = advertise.unwrap_or_else(|| reached_at(at, vault));
                tracing::info!(%address, "members of a consistency group are let in");
                *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
                Some(listener)
            }
            Err(error) => {
                tracing::warn!(%listen, "this agent can lead no consistency group: it cannot listen: {error}");
                None
            }
        }
    }

    /// Lets members in, joins, and cuts points as the vault says, until `stop`.
    pub(crate) async fn run(
        self: Arc<Self>,
        credentials: Credentials,
        listener: Option<TcpListener>,
        stop: CancellationToken,
    ) {
        let serving = self.clone().serve(&credentials, listener, stop.clone());
        tokio::join!(serving, self.follow(&credentials, &stop), self.lead(&stop));
    }

    async fn serve(
        self: Arc<Self>,
        credentials: &Credentials,
        listener: Option<TcpListener>,
        stop: CancellationToken,
    ) {
        let Some(listener) = listener else { return };
        let acceptor = match credentials.acceptor() {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::error!("members of a consistency group are not let in: {error}");
                return;
            }
        };
        let incoming = grpc::incoming(listener, acceptor, stop.clone());
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(5)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_service(TogetherServer::new(Leader(self)))
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!("members of a consistency group are not let in any more: {error}");
        }
    }

    /// Keeps a connection to the leader.
    async fn follow(&self, credentials: &Credentials, stop: &CancellationToken) {
        let mut changes = self.group.subscribe();
        loop {
            let group = changes.borrow_and_update().clone();
            let group = group.filter(|group| !group.leader_address.is_empty() && !self.leads(group));
            let following = async {
                match &group {
                    Some(group) => {
                        let ended = self.join(credentials, group).await;
                        tracing::info!(
                            code = ended.code,
                            "not with the leader of the group: {}",
                            ended.message
                        );
                        tokio::time::sleep(AGAIN).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = following => {}
            }
        }
    }

    async fn join(&self, credentials: &Credentials, group: &pb::GroupAssignment) -> Fault {
        let dialled =
            credentials.connect(&group.leader_address, ALPN_GRPC, Role::Agent, Some(&group.leader_id)).await;
        let channel = match dialled {
            Ok((stream, _)) => grpc::channel_over(stream).await,
            Err(fault) => return fault,
        };
        let channel = match channel {
            Ok(channel) => channel,
            Err(fault) => return fault,
        };
        let (say, said) = mpsc::channel(QUEUE);
        let join = pb::GroupJoin { group: group.name.clone(), version: group.version };
        let _ = say.try_send(member(member_message::Message::Join(join)));
        let joined = TogetherClient::new(channel).join(ReceiverStream::new(said)).await;
        let mut orders = match joined {
            Ok(orders) => orders.into_inner(),
            Err(status) => return grpc::fault_of(&status),
        };
        tracing::info!(group = shown(&group.name), "with the leader of the group");
        let mut held: Option<(PointId, Ticket, Cut)> = None;
        loop {
            let answer = match orders.message().await {
                Ok(Some(pb::LeaderMessage { message: Some(leader_message::Message::Hold(hold)) })) => {
                    let answer = match self.hold(&hold) {
                        Ok(cut) => {
                            let answer = pb::GroupHeld {
                                point_id: hold.point_id.clone(),
                                sequence: cut.2.sequence.0,
                                time_us: cut.2.time.micros(),
                                refused: String::new(),
                            };
                            held = Some(cut);
                            answer
                        }
                        Err(refused) => {
                            pb::GroupHeld { point_id: hold.point_id.clone(), refused, ..Default::default() }
                        }
                    };
                    member_message::Message::Held(answer)
                }
                Ok(Some(pb::LeaderMessage { message: Some(leader_message::Message::Release(release)) })) => {
                    let Some((point, ticket, cut)) =
                        held.take_if(|(point, ..)| point.to_string() == release.point_id)
                    else {
                        continue;
                    };
                    let (whole, held_us) = self.release(group, point, ticket, &cut, release.complete);
                    member_message::Message::Released(pb::GroupReleased {
                        point_id: release.point_id,
                        whole,
                        held_us,
                    })
                }
                Ok(Some(pb::LeaderMessage { message: None })) => continue,
                Ok(None) => {
                    return Fault::new(
                        FaultClass::NotConnected,
                        "group.closed",
                        "the leader closed the stream",
                    );
                }
                Err(status) => return grpc::fault_of(&status),
            };
            if say.send(member(answer)).await.is_err() {
                return Fault::new(
                    FaultClass::NotConnected,
                    "group.closed",
                    "the stream to the leader broke",
                );
            }
        }
    }

    fn hold(&self, hold: &pb::GroupHold) -> Result<(PointId, Ticket, Cut), String> {
        let point: PointId = hold.point_id.parse().map_err(|_| "the point's id is none".to_owned())?;
        let most = Duration::from_millis(hold.hold_millis.into()).min(HOLD_MAX);
        let kind = if hold.name.is_empty() { BarrierKind::Crash } else { BarrierKind::Bookmark };
        let cut = self.source.barrier_and_hold(point, most, |_, _| (kind, hold.name.clone()));
        cut.map(|(ticket, cut)| (point, ticket, cut)).map_err(|error| error.to_string())
    }

    fn release(
        &self,
        group: &pb::GroupAssignment,
        point: PointId,
        ticket: Ticket,
        cut: &Cut,
        complete: bool,
    ) -> (bool, u64) {
        let held = self.source.end_hold(ticket);
        let held_us = u64::try_from(held.lasted.as_micros()).unwrap_or(u64::MAX);
        if held.whole && complete {
            let mut told = self.told();
            told.cuts.push_back(pb::GroupCut {
                group: group.name.clone(),
                version: group.version,
                point_id: point.to_string(),
                sequence: cut.sequence.0,
                time_us: cut.time.micros(),
                held_us,
            });
            if told.cuts.len() > TOLD {
                told.cuts.pop_front();
            }
        }
        (held.whole, held_us)
    }

    /// Cuts points as often as the group wants them, while this member leads it.
    async fn lead(&self, stop: &CancellationToken) {
        let mut changes = self.group.subscribe();
        let mut last: Option<Instant> = None;
        loop {
            let group = changes.borrow_and_update().clone();
            let group = group.filter(|group| self.leads(group) && group.every_seconds > 0);
            let due = async {
                match &group {
                    // The first one when those who dial had the time to.
                    Some(group) => {
                        let every = Duration::from_secs(group.every_seconds);
                        let first = Instant::now() + AGAIN;
                        tokio::time::sleep_until(last.map_or(first, |last| last + every)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    continue;
                }
                () = due => {}
            }
            last = Some(Instant::now());
            let point = PointId::make(SystemClock::default().wall(), &mut SystemEntropy);
            // Told to the vault, which tells it to people.
            if let Err(reason) = self.round(point, "").await {
                tracing::debug!(reason, "no shared point");
            }
        }
    }

    /// One point of the whole group, asked for by the vault.
    pub(crate) async fn ordered(&self, order: &pb::MakeGroupPoint) -> Result<pb::Barrier, Fault> {
        let refused = |message: String| {
            Fault::new(FaultClass::NotReady, "group.no-point", message)
                .affects("this point")
                .spares("earlier points; the machines' writes, and the replication of each")
                .remedy("see `continuum describe group`, mend what it names, then retry the job")
        };
        let leads = self.group().filter(|group| group.name == order.group && self.leads(group));
        leads.ok_or_else(|| refused("this agent does not lead that group any more".into()))?;
        let point = order.point_id.parse().map_err(|_| refused("the point's id is none".into()))?;
        let cut = self.round(point, &order.name).await.map_err(refused)?;
        Ok(pb::Barrier {
            point_id: order.point_id.clone(),
            sequence: cut.sequence.0,
            time_us: cut.time.micros(),
            consistent: true,
            ..Default::default()
        })
    }

    /// All hold and cut, all release. Returns our own cut.
    ///
    /// Errors: why the group has no such point; it stands among what is told, too.
    async fn round(&self, point: PointId, name: &str) -> Result<Cut, String> {
        let mut inbox = self.inbox.lock().await;
        let group = self.group().ok_or("this machine is in no group any more")?;
        let went = self.try_round(&mut inbox, &group, point, name).await;
        if let Err(reason) = &went {
            let mut told = self.told();
            told.misses.push_back(pb::GroupMiss {
                group: group.name.clone(),
                point_id: point.to_string(),
                time_us: SystemClock::default().wall().micros(),
                reason: reason.clone(),
            });
            if told.misses.len() > TOLD {
                told.misses.pop_front();
            }
        }
        went
    }

    async fn try_round(
        &self,
        inbox: &mut mpsc::Receiver<(MachineId, member_message::Message)>,
        group: &pb::GroupAssignment,
        point: PointId,
        name: &str,
    ) -> Result<Cut, String> {
        // What answered an earlier round too late.
        while inbox.try_recv().is_ok() {}
        let mut others: HashMap<MachineId, &str> = HashMap::new();
        for member in &group.members {
            let id: MachineId = member.id.parse().map_err(|_| "a member's id is none".to_owned())?;
            others.insert(id, &member.name);
        }
        others.remove(&self.machine);
        let mut senders = HashMap::new();
        {
            let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, name) in &others {
                let Some((_, sender)) = joined.get(id) else {
                    return Err(format!("{} is not connected to the member that leads", shown(name)));
                };
                senders.insert(*id, sender.clone());
            }
        }
        let order = pb::GroupHold {
            point_id: point.to_string(),
            hold_millis: group.hold_millis,
            name: name.to_owned(),
        };
        let deadline = Instant::now() + Duration::from_millis(group.hold_millis.into()).min(HOLD_MAX);
        let mut reason = None;
        for (id, sender) in &senders {
            let hold = leader_message::Message::Hold(order.clone());
            if sender.try_send(Ok(pb::LeaderMessage { message: Some(hold) })).is_err() {
                reason = Some(format!("{} takes no messages", shown(others[id])));
            }
        }
        let own = self.hold(&order).map_err(|why| format!("the member that leads: {why}"));
        if let Err(why) = &own {
            reason.get_or_insert_with(|| why.clone());
        }
        let mut missing: HashMap<MachineId, &str> = others.clone();
        while reason.is_none() && !missing.is_empty() {
            match tokio::time::timeout_at(deadline, inbox.recv()).await {
                Ok(Some((id, member_message::Message::Held(held)))) if held.point_id == order.point_id => {
                    if held.refused.is_empty() {
                        missing.remove(&id);
                    } else {
                        let name = others.get(&id).copied().unwrap_or_default();
                        reason = Some(format!("{}: {}", shown(name), shown(&held.refused)));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let names: Vec<String> = missing.values().map(|name| shown(name)).collect();
                    let within = group.hold_millis;
                    reason = Some(format!("{} did not answer within {within} ms", names.join(", ")));
                }
            }
        }
        let complete = reason.is_none();
        for sender in senders.values() {
            let release = pb::GroupRelease { point_id: order.point_id.clone(), complete };
            let message = leader_message::Message::Release(release);
            let _ = sender.try_send(Ok(pb::LeaderMessage { message: Some(message) }));
        }
        let mut late: Vec<String> = Vec::new();
        let own = match own {
            Ok((point, ticket, cut)) => {
                let (whole, _) = self.release(group, point, ticket, &cut, complete);
                if !whole {
                    late.push("the member that leads".into());
                }
                cut
            }
            Err(why) => return Err(why),
        };
        if let Some(reason) = reason {
            return Err(reason);
        }
        let mut missing = others.clone();
        let deadline = Instant::now() + ANSWERS;
        while !missing.is_empty() {
            match tokio::time::timeout_at(deadline, inbox.recv()).await {
                Ok(Some((id, member_message::Message::Released(released))))
                    if released.point_id == order.point_id =>
                {
                    if let Some(name) = missing.remove(&id).filter(|_| !released.whole) {
                        late.push(shown(name));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    late.extend(missing.drain().map(|(_, name)| shown(name)));
                }
            }
        }
        if late.is_empty() {
            Ok(own)
        } else {
            Err(format!("{} did not hold until all had cut", late.join(", ")))
        }
    }
}

fn member(message: member_message::Message) -> pb::MemberMessage {
    pb::MemberMessage { message: Some(message) }
}

/// Where others reach a listener that was told no address: by the one from which we reach the vault.
fn reached_at(at: SocketAddr, vault: &str) -> String {
    let ours = || -> std::io::Result<IpAddr> {
        // Sends nothing: it only asks the kernel which address it would send from.
        let socket = UdpSocket::bind(if at.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" })?;
        socket.connect(vault)?;
        Ok(socket.local_addr()?.ip())
    };
    let ip = if at.ip().is_unspecified() { ours().unwrap_or(at.ip()) } else { at.ip() };
    SocketAddr::new(ip, at.port()).to_string()
}

/// The side that members dial.
struct Leader(Arc<Together>);

#[tonic::async_trait]
impl Api for Leader {
    type JoinStream = ReceiverStream<Result<pb::LeaderMessage, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<pb::MemberMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let refused = |why: &str| {
            status_of(
                &Fault::new(FaultClass::Refused, "group.member", why)
                    .affects("points that this machine shares with others")
                    .spares("its replication")
                    .remedy("see `continuum get groups`; it is tried again"),
            )
        };
        let peer = request.extensions().get::<Peer>().cloned().and_then(|Peer(identity)| identity);
        let Some(Identity { role: Role::Agent, id, .. }) = peer else {
            return Err(refused("only agents join a consistency group"));
        };
        let mut said = request.into_inner();
        let first = tokio::time::timeout(ANSWERS, said.message()).await;
        let Ok(Ok(Some(pb::MemberMessage { message: Some(member_message::Message::Join(join)) }))) = first
        else {
            return Err(refused("a member begins with the name of its group"));
        };
        let group = self.0.group().filter(|group| self.0.leads(group));
        let group = group.ok_or_else(|| refused("this agent leads no group now"))?;
        let known = group.name == join.group
            && group.version == join.version
            && group.members.iter().any(|member| member.id == id);
        if !known {
            return Err(refused("this agent does not know that machine as a member of its group"));
        }
        let machine: MachineId = id.parse().map_err(|_| refused("the certificate names no machine"))?;
        let (say, stream) = mpsc::channel(QUEUE);
        static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let joined = || self.0.joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined().insert(machine, (number, say));
        let together = self.0.clone();
        let mut changes = together.group.subscribe();
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = said.message() => message,
                    // Whoever stays a member joins again.
                    () = async { drop(changes.wait_for(|now| now.as_ref() != Some(&group)).await) } => break,
                };
                let Ok(Some(pb::MemberMessage { message: Some(message) })) = message else { break };
                // Nobody listens between rounds, and nothing is said then either.
                if together.answers.try_send((machine, message)).is_err() {
                    break;
                }
            }
            let mut joined = together.joined.lock().unwrap_or_else(PoisonError::into_inner);
            if joined.get(&machine).is_some_and(|(now, _)| *now == number) {
                joined.remove(&machine);
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
