//! Who is let in, what was done, and what somebody may: questions of the access screen and its verbs.
//!
//! Lives here: lists, pages of the audit log, `can-i`. Lives elsewhere: the table of roles (`access`), making and
//! revoking (`grants`, `coordination::enrolment`).

use super::orders::policies::find;
use super::orders::{no_machine, no_plan, usage};
use crate::access::{Operator, OperatorRole, Right};
use crate::core::Core;
use crate::jobs::plan::{self, JobKind};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use std::sync::Arc;

/// Lines of the audit log that are told at once.
const AUDIT_PAGE: u32 = 200;
const AUDIT_PAGE_MAX: u32 = 5000;

/// Operators and tokens.
pub(crate) async fn list(core: &Arc<Core>) -> Result<pb::AccessReply, Fault> {
    let operators = core.store.operators().await?.into_iter().map(|row| pb::KnownOperator {
        name: row.name,
        role: row.role,
        revoked: row.revoked,
        certificate_expires_us: row.certificate_expires.map(Timestamp::micros),
        made_us: row.made.micros(),
    });
    let operators = operators.collect();
    let tokens = core.store.tokens().await?;
    let estate = core.estate();
    let tokens = tokens.into_iter().map(|row| pb::KnownToken {
        id: row.id().to_owned(),
        site: row.site.parse().map_or_else(|_| String::new(), |site| estate.site_name(site)),
        role: row.role,
        name: row.machine,
        operator_role: row.operator_role,
        made_by: row.made_by,
        made_us: row.made.micros(),
        expires_us: row.expires.micros(),
        used_us: row.used.map(Timestamp::micros),
        revoked: row.revoked,
    });
    Ok(pb::AccessReply { operators, tokens: tokens.collect() })
}

/// A page of the audit log.
pub(crate) async fn audit(core: &Arc<Core>, request: &pb::AuditRequest) -> Result<pb::AuditReply, Fault> {
    let limit = if request.limit == 0 { AUDIT_PAGE } else { request.limit.min(AUDIT_PAGE_MAX) };
    if request.contains.len() > 200 {
        return Err(usage("audit.contains", "the words looked for are too long", "look for fewer"));
    }
    let page = core.store.audit_page(request.before, limit + 1, &request.contains, request.oldest_first);
    let mut lines = page.await?;
    let more = lines.len() > limit as usize;
    lines.truncate(limit as usize);
    let told = |line: crate::store::access::AuditLine| pb::AuditLine {
        seq: line.seq,
        time_us: line.time.micros(),
        actor: line.actor,
        act: line.act,
        object: line.object,
        outcome: line.outcome,
        detail: line.detail,
        hash: line.hash,
    };
    Ok(pb::AuditReply { lines: lines.into_iter().map(told).collect(), more })
}

/// The versions of a policy or a plan.
pub(crate) async fn versions(
    core: &Arc<Core>,
    request: &pb::VersionsRequest,
) -> Result<pb::VersionsReply, Fault> {
    let kind = match request.kind.as_str() {
        "policy" => "policy",
        "plan" => "plan",
        other => {
            let said = format!("of {} no versions are kept", shown(other));
            return Err(usage("version.kind", &said, "ask for those of a policy or a plan"));
        }
    };
    let mut object = request.name.clone();
    let present = {
        let estate = core.estate();
        match kind {
            "policy" => find(&estate, &request.name).map(|row| {
                object = row.id.to_string();
                let text = continuum_document::policy::write(&row.name, &row.policy);
                (row.version, row.name.clone(), text)
            }),
            _ => estate.plans.get(&request.name).map(|row| (row.version, row.name.clone(), row.text.clone())),
        }
    };
    let rows = core.store.versions(kind, &object).await?;
    let mut versions: Vec<pb::Version> = rows
        .into_iter()
        .map(|row| pb::Version {
            version: row.version,
            time_us: row.at.micros(),
            by: row.by,
            name: row.name,
            text: row.body,
        })
        .collect();
    match present {
        // Never changed since versions are kept.
        Some((version, name, text)) if versions.is_empty() => {
            versions.push(pb::Version { version, name, text, ..Default::default() });
        }
        None if versions.is_empty() => {
            return Err(if kind == "plan" {
                no_plan(&request.name)
            } else {
                super::orders::policies::no_policy(&request.name)
            });
        }
        _ => {}
    }
    Ok(pb::VersionsReply { versions })
}

/// The right that an order needs, by its name as verbs and `whoami` tell it.
fn right_of(order: &str) -> Option<Right> {
    let planned = order == plan::PLANNED_FAILOVER;
    let kind = JobKind::named(if planned { JobKind::Failover.name() } else { order });
    kind.map(Right::Order)
        .or_else(|| Right::NAMED.into_iter().find(|(_, name)| *name == order).map(|(right, _)| right))
}

/// Whether somebody may give an order, and whether its object allows it now.
pub(crate) async fn can_i(
    core: &Arc<Core>,
    by: &Operator,
    request: &pb::CanIRequest,
) -> Result<pb::CanIReply, Fault> {
    let right = right_of(&request.order).ok_or_else(|| {
        let known: Vec<&str> = JobKind::ALL.iter().map(|kind| kind.name()).collect();
        usage(
            "order.unknown",
            &format!("there is no order {}", shown(&request.order)),
            &format!("name one of {}", known.join(", ")),
        )
    })?;
    let plan = crate::plans::named(&request.machine);
    let right = match (right, plan) {
        (Right::Order(JobKind::TestFailover), Some(_)) => Right::Order(JobKind::PlanDrill),
        (Right::Order(JobKind::Cleanup), Some(_)) => Right::Order(JobKind::PlanCleanup),
        (Right::Order(JobKind::Failover), Some(_)) => Right::Order(JobKind::PlanFailover),
        // As it is ordered by default: with its points.
        (Right::Order(JobKind::Unprotect), None) => Right::DeletePoints,
        (right, _) => right,
    };
    let roles: Vec<OperatorRole> = OperatorRole::ALL.into_iter().filter(|role| role.may(right)).collect();
    let operators = core.store.operators().await?.into_iter();
    let operators = operators
        .filter(|row| !row.revoked && roles.iter().any(|role| role.name() == row.role))
        .map(|row| row.name)
        .collect();
    let estate = core.estate();
    let state = match (right, plan) {
        _ if request.machine.is_empty() => Ok(()),
        (_, Some(name)) => estate.plans.get(name).map(|_| ()).ok_or_else(|| no_plan(name)),
        (right, None) => {
            let entry = estate.machine_named(&request.machine).ok_or_else(|| no_machine(&request.machine))?;
            let kind = match right {
                Right::DeletePoints => Some(JobKind::Unprotect),
                Right::Order(kind) => Some(kind),
                _ => None,
            };
            kind.map_or(Ok(()), |kind| plan::possible(kind, &entry.row))
        }
    };
    let allowed = by.role.may(right);
    let reason = match (allowed, &state) {
        (false, _) => format!("the role {} may not {}", by.role.name(), shown(&request.order)),
        (true, Err(fault)) => format!("the role may, but not now: {}", fault.message),
        (true, Ok(())) => format!("the role {} may {}", by.role.name(), shown(&request.order)),
    };
    Ok(pb::CanIReply {
        allowed: allowed && state.is_ok(),
        reason,
        roles: roles.iter().map(|role| role.name().to_owned()).collect(),
        operators,
        needs_approval: super::orders::approval::needed(core, right, &request.order),
    })
}

/// Takes an operator's or a token's access away.
pub(crate) async fn revoke(
    core: &Arc<Core>,
    by: &Operator,
    request: &pb::RevokeRequest,
) -> Result<(), Fault> {
    match (request.operator.as_str(), request.token.as_str()) {
        (name, "") if name == by.name => {
            Err(usage("operator.self", "nobody takes their own access away", "another owner does"))
        }
        (name, "") if !name.is_empty() => {
            crate::grants::revoke_operator(&core.store, &core.world, name, &by.name).await?;
            core.heed_grants().await?;
            Ok(())
        }
        ("", id) if !id.is_empty() => {
            let now = core.world.now();
            let mut tx = core.store.begin().await?;
            let known = tx.revoke_token(id).await?.ok_or_else(|| {
                Fault::new(
                    FaultClass::NotFound,
                    "token.unknown",
                    format!("no token that can still be used has the id {}", shown(id)),
                )
                .affects("this request")
                .spares("nothing was changed")
                .remedy("see `continuum get tokens`")
            })?;
            tx.audit(now, &by.name, "revoke-token", &shown(&known.machine), "done", &known.role).await?;
            core.commit(tx).await?;
            Ok(())
        }
        _ => Err(usage("revoke.empty", "name an operator or a token", "see `continuum get operators`")),
    }
}
