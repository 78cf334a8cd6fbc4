//! The gRPC service of the operator API.
//!
//! Every call: who is it, may they, then the work; every error leaves as a fault with a correlation id that
//! stands in the log, too. Work that commits runs in a task of its own: a caller who hangs up drops nothing.

use super::{access as lists, orders, readiness, watch};
use crate::access::{self, Caller, Operator, Right};
use crate::coordination::enrolment::Registrar;
use crate::coordination::service::reply;
use crate::core::Core;
use crate::project;
use crate::report;
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use continuum_wire::grpc::status_of;
use pb::operator_server::Operator as Api;
use std::sync::Arc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// The service.
pub(crate) struct Service {
    pub(crate) core: Arc<Core>,
    pub(crate) registrar: Arc<Registrar>,
}

impl Service {
    async fn operator<T>(&self, request: &Request<T>, right: Right) -> Result<Operator, Status> {
        match access::caller(&self.core, request.extensions()).await? {
            Caller::Operator(operator) if operator.role.may(right) => Ok(operator),
            Caller::Operator(operator) => Err(self.told(orders::not_allowed(&operator, "do this"))),
            Caller::Server { .. } => {
                Err(status_of(&access::not_for(&self.core, "the operator API is for operators")))
            }
        }
    }

    /// A fault on its way out: it gets a correlation id, and stands in the log.
    fn told(&self, fault: Fault) -> Status {
        status_of(&correlated(&self.core, fault))
    }
}

fn correlated(core: &Core, fault: Fault) -> Fault {
    let fault = if fault.correlation.is_empty() { fault.correlated(core.world.correlation()) } else { fault };
    tracing::info!(code = fault.code, correlation = fault.correlation, "refused: {}", fault.message);
    fault
}

#[tonic::async_trait]
impl Api for Service {
    async fn snapshot(
        &self,
        request: Request<pb::SnapshotRequest>,
    ) -> Result<Response<pb::SnapshotReply>, Status> {
        self.operator(&request, Right::Read).await?;
        Ok(Response::new(watch::snapshot(&self.core, request.get_ref())))
    }

    type WatchStream = ReceiverStream<Result<pb::WatchEvent, Status>>;

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.operator(&request, Right::Read).await?;
        Ok(Response::new(watch::watch(&self.core, request.into_inner())))
    }

    async fn timeline(
        &self,
        request: Request<pb::TimelineRequest>,
    ) -> Result<Response<pb::TimelineReply>, Status> {
        self.operator(&request, Right::Read).await?;
        let reply = readiness::timeline(&self.core, request.into_inner()).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn preview(
        &self,
        request: Request<pb::PreviewRequest>,
    ) -> Result<Response<pb::PreviewReply>, Status> {
        self.operator(&request, Right::Read).await?;
        let request = request.into_inner();
        let reply = readiness::preview(&self.core, &request.machine, &request.point).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn readiness(
        &self,
        request: Request<pb::ReadinessRequest>,
    ) -> Result<Response<pb::ReadinessReply>, Status> {
        self.operator(&request, Right::Read).await?;
        let reply = readiness::report(&self.core, request.get_ref()).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn order(&self, request: Request<pb::OrderRequest>) -> Result<Response<pb::OrderReply>, Status> {
        let by = self.operator(&request, Right::Read).await?;
        let (core, request) = (self.core.clone(), request.into_inner());
        let work = async move {
            let given = orders::give(&core, &by, request).await;
            let (id, repeated_key) = given.map_err(|fault| correlated(&core, fault))?;
            let known = {
                let estate = core.estate();
                estate.jobs.get(&id).map(|entry| project::job(entry, &estate))
            };
            let job = match known {
                Some(job) => job,
                // So old that only the store remembers it.
                None => {
                    let row = core.store.job(id).await?.ok_or_else(|| {
                        Fault::new(FaultClass::NotFound, "job.unknown", format!("job {id} is gone"))
                    })?;
                    project::job(&crate::estate::JobEntry { row, progress: None }, &core.estate())
                }
            };
            Ok(pb::OrderReply { job: Some(job), repeated_key })
        };
        reply(self.core.whole(work).await)
    }

    async fn reports(
        &self,
        request: Request<pb::ReportsRequest>,
    ) -> Result<Response<pb::ReportsReply>, Status> {
        self.operator(&request, Right::Read).await?;
        let reply = report::told(&self.core, request.get_ref()).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn who_am_i(
        &self,
        request: Request<pb::WhoAmIRequest>,
    ) -> Result<Response<pb::WhoAmIReply>, Status> {
        let by = self.operator(&request, Right::Read).await?;
        let about = &self.core.about;
        Ok(Response::new(pb::WhoAmIReply {
            name: by.name,
            role: by.role.name().to_owned(),
            may: by.role.rights(),
            vault_id: about.vault.to_string(),
            vault_name: about.name.clone(),
            environment: about.environment.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run: about.run.clone(),
            started_us: about.started.micros(),
        }))
    }

    async fn create_token(
        &self,
        request: Request<pb::CreateTokenRequest>,
    ) -> Result<Response<pb::CreateTokenReply>, Status> {
        let by = self.operator(&request, Right::CreateToken).await?;
        let (core, registrar, request) = (self.core.clone(), self.registrar.clone(), request.into_inner());
        let work = async move {
            registrar.make_token(&core, &request, &by.name).await.map_err(|fault| correlated(&core, fault))
        };
        reply(self.core.whole(work).await)
    }

    async fn versions(
        &self,
        request: Request<pb::VersionsRequest>,
    ) -> Result<Response<pb::VersionsReply>, Status> {
        self.operator(&request, Right::Read).await?;
        let reply = lists::versions(&self.core, request.get_ref()).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn access(&self, request: Request<pb::AccessRequest>) -> Result<Response<pb::AccessReply>, Status> {
        let by = self.operator(&request, Right::Read).await?;
        if !by.role.may(Right::Access) && !by.role.may(Right::Audit) {
            return Err(self.told(orders::not_allowed(&by, "see who is let in")));
        }
        lists::list(&self.core).await.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn audit(&self, request: Request<pb::AuditRequest>) -> Result<Response<pb::AuditReply>, Status> {
        self.operator(&request, Right::Audit).await?;
        let reply = lists::audit(&self.core, request.get_ref()).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }

    async fn revoke(&self, request: Request<pb::RevokeRequest>) -> Result<Response<pb::RevokeReply>, Status> {
        let by = self.operator(&request, Right::Access).await?;
        let (core, request) = (self.core.clone(), request.into_inner());
        let work = async move {
            lists::revoke(&core, &by, &request).await.map_err(|fault| correlated(&core, fault))?;
            Ok(pb::RevokeReply {})
        };
        reply(self.core.whole(work).await)
    }

    async fn can_i(&self, request: Request<pb::CanIRequest>) -> Result<Response<pb::CanIReply>, Status> {
        let by = self.operator(&request, Right::Read).await?;
        let reply = lists::can_i(&self.core, &by, request.get_ref()).await;
        reply.map(Response::new).map_err(|fault| self.told(fault))
    }
}
