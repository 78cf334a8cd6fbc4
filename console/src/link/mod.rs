//! The line to one vault: dialling, calls with a deadline, orders that are never given twice, and a watch
//! that reconnects for ever.
//!
//! Lives here: what the operator API is over a network that breaks. Lives elsewhere: which vault is meant
//! (`profile`), what the answers mean (`tui`, `verb`).
//!
//! Invariants: every call ends, with an answer or a fault. An order is sent again only under the key it was
//! first sent with. A target is opened anew for every dial, because the address of a lab changes when its
//! vault starts again.

pub mod watch;

use crate::profile::{Choice, Target};
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use continuum_proto::v1::operator_client::OperatorClient;
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// The largest answer we take: a hundred thousand machines with all their symptoms.
const ANSWER_BYTES_MAX: usize = 512 << 20;
/// How long a call may take. What takes longer than this is a job, never a call.
const CALL_MAX: Duration = Duration::from_secs(15);
/// How long the first dial may take, with its handshake and the first answer.
const DIAL_MAX: Duration = Duration::from_secs(12);
/// An order that may have arrived is sent again for this long.
const ORDER_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Finds and reads whom to dial. Called for every dial, on a thread where blocking is allowed.
pub type Opener = Arc<dyn Fn() -> Result<Target, Fault> + Send + Sync>;

/// Opens what the command line means.
pub fn opener(choice: Choice) -> Opener {
    Arc::new(move || Target::open(&choice))
}

/// A connected vault. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Link {
    client: OperatorClient<Channel>,
    /// Whom we dialled.
    pub target: Target,
}

/// Opens the target and dials it.
///
/// Errors: what the target's reading says; `NotConnected` when nobody answered in time.
pub async fn connect(open: &Opener) -> Result<Link, Fault> {
    let open = open.clone();
    // Reads files and may ask a keyring.
    let target = tokio::task::spawn_blocking(move || open()).await.map_err(|error| {
        Fault::new(FaultClass::Failed, "profile.read", format!("the profile could not be read: {error}"))
    })??;
    let dialled = in_time(DIAL_MAX, grpc::channel(&target.credentials, &target.address, Role::Vault)).await?;
    let client = OperatorClient::new(dialled).max_decoding_message_size(ANSWER_BYTES_MAX);
    Ok(Link { client, target })
}

impl Link {
    /// Who we are there, and what it is.
    pub async fn who_am_i(&self) -> Result<pb::WhoAmIReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.who_am_i(pb::WhoAmIRequest {}).await }).await
    }

    /// The history of a machine.
    pub async fn timeline(&self, request: pb::TimelineRequest) -> Result<pb::TimelineReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.timeline(request).await }).await
    }

    /// Which moment would be brought up, and what would be given up.
    pub async fn preview(&self, request: pb::PreviewRequest) -> Result<pb::PreviewReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.preview(request).await }).await
    }

    /// What an order would do.
    pub async fn readiness(&self, request: pb::ReadinessRequest) -> Result<pb::ReadinessReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.readiness(request).await }).await
    }

    /// Gives an order once.
    pub async fn order(&self, request: pb::OrderRequest) -> Result<pb::OrderReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.order(request).await }).await
    }

    /// Who is let in.
    pub async fn access(&self) -> Result<pb::AccessReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.access(pb::AccessRequest {}).await }).await
    }

    /// A page of the audit log.
    pub async fn audit(&self, request: pb::AuditRequest) -> Result<pb::AuditReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.audit(request).await }).await
    }

    /// Whether an order is allowed.
    pub async fn can_i(&self, request: pb::CanIRequest) -> Result<pb::CanIReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.can_i(request).await }).await
    }

    /// Makes a token.
    pub async fn create_token(&self, request: pb::CreateTokenRequest) -> Result<pb::CreateTokenReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.create_token(request).await }).await
    }

    /// Takes access away.
    pub async fn revoke(&self, request: pb::RevokeRequest) -> Result<pb::RevokeReply, Fault> {
        let mut client = self.client.clone();
        call(async move { client.revoke(request).await }).await
    }

    /// Opens the stream of changes.
    pub async fn changes(
        &self,
        request: pb::WatchRequest,
    ) -> Result<tonic::Streaming<pb::WatchEvent>, Fault> {
        let mut client = self.client.clone();
        call(async move { client.watch(request).await }).await
    }
}

/// Gives an order until its answer is here: sent again under its own key where the answer was lost.
///
/// Errors: what the vault says; `NotConnected`, naming the key, when for a minute nobody answered: then it
/// is not known whether the order arrived.
pub async fn order_until_answered(
    link: Link,
    open: &Opener,
    request: pb::OrderRequest,
) -> Result<pb::OrderReply, Fault> {
    let begun = tokio::time::Instant::now();
    let mut result = link.order(request.clone()).await;
    loop {
        let fault = match result {
            Err(fault) if fault.class == FaultClass::NotConnected => fault,
            other => return other,
        };
        if begun.elapsed() > ORDER_AGAIN_MAX {
            return Err(Fault {
                affected: "this order: whether it arrived is not known".into(),
                unaffected: "no order is ever carried out twice under one key".into(),
                remedy: format!("look at the jobs before ordering again (key {})", request.key),
                ..fault
            });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        result = match connect(open).await {
            Ok(link) => link.order(request.clone()).await,
            Err(fault) => Err(Fault { class: FaultClass::NotConnected, ..fault }),
        };
    }
}

async fn call<T>(
    asking: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Fault> {
    in_time(CALL_MAX, async {
        asking.await.map(tonic::Response::into_inner).map_err(|status| grpc::fault_of(&status))
    })
    .await
}

async fn in_time<T>(limit: Duration, doing: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    match tokio::time::timeout(limit, doing).await {
        Ok(result) => result,
        Err(_) => Err(Fault::new(
            FaultClass::NotConnected,
            "vault.silent",
            format!("the vault did not answer within {} s", limit.as_secs()),
        )
        .affects("this request")
        .spares("replication and jobs, which go on in the vault")
        .remedy("it is tried again; see whether the vault runs")),
    }
}
