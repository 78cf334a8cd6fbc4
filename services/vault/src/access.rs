//! Who calls, and what they may do.
//!
//! Lives here: the one road from a certificate to a caller, and the table of operator roles. Rights are on
//! the object: a server speaks for itself only (`coordination`), an operator's order is checked against
//! this table before anything is looked up.

use crate::core::Core;
use crate::jobs::plan::JobKind;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::ServerId;
use continuum_wire::grpc::{Peer, status_of};
use continuum_wire::identity::{Identity, Role};
use std::sync::Arc;
use tonic::Status;

/// Somebody whose certificate was verified and is not revoked.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    Server { id: ServerId, role: Role, identity: Identity },
    Operator(Operator),
}

/// A person or a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operator {
    pub(crate) name: String,
    pub(crate) role: OperatorRole,
}

/// What an operator may do, in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorRole {
    Reader,
    Operator,
    Recoverer,
    Contributor,
    Approver,
    Owner,
    Auditor,
}

/// Something an operator may or may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    Read,
    Order(JobKind),
    /// An unprotect that deletes recovery points.
    DeletePoints,
    Cancel,
    Retry,
    CreateToken,
    /// Operators and tokens: seen, made, revoked.
    Access,
    /// The audit log.
    Audit,
    /// The answer to somebody else's order that waits for one.
    Approve,
}

impl Right {
    /// Those that are no order of a kind of job, by name.
    pub(crate) const NAMED: [(Self, &'static str); 7] = [
        (Self::Cancel, "cancel-job"),
        (Self::Retry, "retry-job"),
        (Self::DeletePoints, "delete-points"),
        (Self::CreateToken, "create-token"),
        (Self::Access, "access"),
        (Self::Audit, "audit"),
        (Self::Approve, "approve"),
    ];
}

impl OperatorRole {
    pub(crate) const ALL: [Self; 7] = [
        Self::Reader,
        Self::Operator,
        Self::Recoverer,
        Self::Contributor,
        Self::Approver,
        Self::Owner,
        Self::Auditor,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Recoverer => "recoverer",
            Self::Contributor => "contributor",
            Self::Approver => "approver",
            Self::Owner => "owner",
            Self::Auditor => "auditor",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The table of control-plane §7.
    pub(crate) const fn may(self, right: Right) -> bool {
        use JobKind as K;
        let runs = matches!(
            right,
            Right::Cancel
                | Right::Retry
                | Right::Order(
                    K::Pause
                        | K::Resume
                        | K::Resync
                        | K::RetryNow
                        | K::Move
                        | K::TestFailover
                        | K::Cleanup
                        | K::Bookmark
                        | K::Verify
                        | K::Acknowledge
                        | K::PlanDrill
                        | K::PlanCleanup
                        | K::CheckPlan
                        | K::GroupBookmark
                )
        );
        match self {
            Self::Reader => matches!(right, Right::Read),
            Self::Approver => matches!(right, Right::Read | Right::Approve),
            // Who was let in belongs to what was done.
            Self::Auditor => matches!(right, Right::Read | Right::Audit),
            Self::Operator => runs || matches!(right, Right::Read),
            Self::Recoverer => {
                runs || matches!(
                    right,
                    Right::Read
                        | Right::Order(
                            K::Failover
                                | K::Commit
                                | K::ChangePoint
                                | K::CancelFailover
                                | K::Reprotect
                                | K::Failback
                                | K::PlanFailover
                        )
                )
            }
            Self::Contributor => matches!(
                right,
                Right::Read
                    | Right::Cancel
                    | Right::Retry
                    | Right::Order(
                        K::Protect
                            | K::Unprotect
                            | K::SetPolicy
                            | K::AssignPolicy
                            | K::DeletePolicy
                            | K::Pause
                            | K::Resume
                            | K::Resync
                            | K::Move
                            | K::Bookmark
                            | K::Pin
                            | K::Acknowledge
                            | K::ApplyPlan
                            | K::CheckPlan
                            | K::DeletePlan
                            | K::SetGroup
                            | K::DeleteGroup
                            | K::GroupBookmark
                    )
            ),
            Self::Owner => true,
        }
    }

    /// Everything it may, in words.
    pub(crate) fn rights(self) -> Vec<String> {
        let mut rights = vec!["read".to_owned()];
        rights.extend(
            JobKind::ALL
                .into_iter()
                .filter(|kind| self.may(Right::Order(*kind)))
                .map(|kind| kind.name().to_owned()),
        );
        for (right, name) in Right::NAMED {
            if self.may(right) {
                rights.push(name.to_owned());
            }
        }
        rights
    }
}

/// Who calls. The only road from a connection to a caller.
pub(crate) async fn caller(core: &Arc<Core>, extensions: &tonic::Extensions) -> Result<Caller, Status> {
    let identity = extensions.get::<Peer>().and_then(|peer| peer.0.clone());
    let Some(identity) = identity.filter(|identity| identity.vault == core.about.vault) else {
        return Err(status_of(&not_for(core, "no certificate of this vault")));
    };
    match identity.role {
        Role::Agent | Role::ProcessServer | Role::MasterTarget | Role::Provider => {
            let id: ServerId = identity
                .id
                .parse()
                .map_err(|_| status_of(&not_for(core, "the certificate names no server")))?;
            let known =
                core.estate().servers.get(&id).map(|entry| (entry.row.revoked, entry.row.role.clone()));
            match known {
                Some((false, role)) if role == identity.role.name() => {
                    Ok(Caller::Server { id, role: identity.role, identity })
                }
                _ => Err(status_of(&not_for(
                    core,
                    "this server is not registered here, or its access was revoked",
                ))),
            }
        }
        Role::Operator => {
            let (role, name) = identity
                .operator()
                .ok_or_else(|| status_of(&not_for(core, "the certificate names no operator")))?;
            let role = OperatorRole::named(role)
                .ok_or_else(|| status_of(&not_for(core, "the certificate's role is not known here")))?;
            let known = core.store.operator(name).await.map_err(|error| status_of(&error.fault()))?;
            match known {
                Some(row) if !row.revoked && row.role == role.name() => {
                    Ok(Caller::Operator(Operator { name: name.to_owned(), role }))
                }
                _ => Err(status_of(&not_for(core, "this operator is not known here, or was revoked"))),
            }
        }
        Role::Vault => Err(status_of(&not_for(core, "a vault calls nobody"))),
    }
}

/// A refusal. The peer is not told more than the code and the correlation.
pub(crate) fn not_for(core: &Core, reason: &str) -> Fault {
    let correlation = core.world.correlation();
    tracing::warn!(correlation, "refused: {reason}");
    Fault::new(FaultClass::Refused, "access.refused", "the vault refused this identity")
        .affects("this request")
        .spares("everything else")
        .remedy("use a certificate of this vault that was not revoked; the vault's log has the reason")
        .correlated(correlation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_deletes_points_and_makes_tokens_and_readers_only_read() {
        for role in OperatorRole::ALL {
            assert!(role.may(Right::Read));
            assert_eq!(role.may(Right::DeletePoints), role == OperatorRole::Owner, "{}", role.name());
            assert_eq!(role.may(Right::CreateToken), role == OperatorRole::Owner, "{}", role.name());
            let recovers = matches!(role, OperatorRole::Owner | OperatorRole::Recoverer);
            assert_eq!(role.may(Right::Order(JobKind::Failover)), recovers, "{}", role.name());
        }
        assert_eq!(OperatorRole::Reader.rights(), ["read"]);
        assert_eq!(OperatorRole::Auditor.rights(), ["read", "audit"]);
        assert_eq!(OperatorRole::Approver.rights(), ["read", "approve"]);
    }
}
