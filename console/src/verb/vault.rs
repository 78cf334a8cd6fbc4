//! One vault, for as long as a verb runs: ask, order, watch.
//!
//! Lives here: dialling what the command line means, and turning every refusal into a fault. Lives
//! elsewhere: following a job through restarts (`follow`).

use crate::profile::{Choice, Target};
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use continuum_proto::v1::operator_client::OperatorClient;
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use tonic::transport::Channel;

/// The largest answer we take: a hundred thousand machines with all their symptoms.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// A connected vault.
pub struct Vault {
    client: OperatorClient<Channel>,
    /// Whom we dialled.
    pub target: Target,
}

impl Vault {
    /// Reads the profile and connects.
    pub async fn connect(choice: &Choice) -> Result<Self, Fault> {
        let choice = choice.clone();
        // Reads files and may ask the keyring: not on a thread that serves connections.
        let target =
            tokio::task::spawn_blocking(move || Target::open(&choice)).await.map_err(|error| {
                Fault::new(
                    FaultClass::Failed,
                    "profile.read",
                    format!("the profile could not be read: {error}"),
                )
            })??;
        Self::dial(target).await
    }

    /// Connects to a target that was opened before.
    pub async fn dial(target: Target) -> Result<Self, Fault> {
        let channel = grpc::channel(&target.credentials, &target.address, Role::Vault).await?;
        let client = OperatorClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { client, target })
    }

    /// All entities of some kinds; of one name or id where it is not empty.
    pub async fn snapshot(
        &mut self,
        kinds: &[pb::Kind],
        name: &str,
        limit: u32,
    ) -> Result<Vec<pb::entity::Entity>, Fault> {
        let request = pb::SnapshotRequest {
            kinds: kinds.iter().map(|kind| *kind as i32).collect(),
            name: name.to_owned(),
            events_max: limit,
            jobs_max: limit,
        };
        let reply =
            self.client.snapshot(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner();
        Ok(reply.entities.into_iter().filter_map(|entity| entity.entity).collect())
    }

    /// Changes of some kinds, after what was seen before.
    pub async fn watch(
        &mut self,
        request: pb::WatchRequest,
    ) -> Result<tonic::Streaming<pb::WatchEvent>, Fault> {
        Ok(self.client.watch(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// The history of a machine.
    pub async fn timeline(&mut self, request: pb::TimelineRequest) -> Result<pb::TimelineReply, Fault> {
        Ok(self.client.timeline(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// What an order would do.
    pub async fn readiness(&mut self, request: pb::ReadinessRequest) -> Result<pb::ReadinessReply, Fault> {
        Ok(self.client.readiness(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// Gives an order.
    pub async fn order(&mut self, request: pb::OrderRequest) -> Result<pb::OrderReply, Fault> {
        Ok(self.client.order(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// Reports of drills and failovers.
    pub async fn reports(&mut self, request: pb::ReportsRequest) -> Result<Vec<pb::Report>, Fault> {
        let reply = self.client.reports(request).await.map_err(|status| grpc::fault_of(&status))?;
        Ok(reply.into_inner().reports)
    }

    /// Who we are there.
    pub async fn who_am_i(&mut self) -> Result<pb::WhoAmIReply, Fault> {
        Ok(self
            .client
            .who_am_i(pb::WhoAmIRequest {})
            .await
            .map_err(|status| grpc::fault_of(&status))?
            .into_inner())
    }

    /// Makes an enrolment token.
    pub async fn create_token(
        &mut self,
        request: pb::CreateTokenRequest,
    ) -> Result<pb::CreateTokenReply, Fault> {
        Ok(self.client.create_token(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// Versions of a policy or a plan.
    pub async fn versions(&mut self, request: pb::VersionsRequest) -> Result<pb::VersionsReply, Fault> {
        Ok(self.client.versions(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// Operators and tokens.
    pub async fn access(&mut self) -> Result<pb::AccessReply, Fault> {
        let reply = self.client.access(pb::AccessRequest {}).await;
        Ok(reply.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// A page of the audit log.
    pub async fn audit(&mut self, request: pb::AuditRequest) -> Result<pb::AuditReply, Fault> {
        Ok(self.client.audit(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }

    /// Takes an operator's or a token's access away.
    pub async fn revoke(&mut self, request: pb::RevokeRequest) -> Result<(), Fault> {
        self.client.revoke(request).await.map_err(|status| grpc::fault_of(&status))?;
        Ok(())
    }

    /// Whether an order is allowed.
    pub async fn can_i(&mut self, request: pb::CanIRequest) -> Result<pb::CanIReply, Fault> {
        Ok(self.client.can_i(request).await.map_err(|status| grpc::fault_of(&status))?.into_inner())
    }
}
