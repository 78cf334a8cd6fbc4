//! Reading an order: what kind of job it makes, and whether its words make sense.

use super::*;

/// How far ahead a first copy may be put off.
const START_MAX: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
/// The longest lock.
const LOCK_SECONDS_MAX: u64 = 3660 * 24 * 3600;

/// What an order asks for, read and checked for sense.
pub(super) struct Asked {
    pub(super) kind: JobKind,
    pub(super) params: Params,
    pub(super) detail: String,
}

/// The kind of job that an order makes.
pub(super) fn kind_of(order: &Order, machine: &str) -> JobKind {
    let is_group = crate::groups::named(machine).is_some();
    match order {
        Order::Protect(_) => JobKind::Protect,
        Order::Unprotect(_) => JobKind::Unprotect,
        Order::Resync(_) => JobKind::Resync,
        Order::Pause(_) => JobKind::Pause,
        Order::Resume(_) => JobKind::Resume,
        Order::Bookmark(_) if is_group => JobKind::GroupBookmark,
        Order::Bookmark(_) => JobKind::Bookmark,
        Order::TestFailover(_) => JobKind::TestFailover,
        Order::Cleanup(_) => JobKind::Cleanup,
        Order::Failover(_) => JobKind::Failover,
        Order::Commit(_) => JobKind::Commit,
        Order::ChangePoint(_) => JobKind::ChangePoint,
        Order::CancelFailover(_) => JobKind::CancelFailover,
        Order::Reprotect(_) => JobKind::Reprotect,
        Order::Failback(_) => JobKind::Failback,
        Order::CompleteMigration(_) => JobKind::Migrate,
        Order::Verify(_) => JobKind::Verify,
        Order::PinPoint(_) => JobKind::Pin,
        Order::MoveMachine(_) => JobKind::Move,
        Order::AcknowledgeAlert(_) => JobKind::Acknowledge,
        Order::SetPolicy(_) => JobKind::SetPolicy,
        Order::ApplyPlan(order) if order.dry_run => JobKind::CheckPlan,
        Order::ApplyPlan(_) => JobKind::ApplyPlan,
        Order::DeletePlan(_) => JobKind::DeletePlan,
        Order::SetGroup(_) => JobKind::SetGroup,
        Order::DeleteGroup(_) => JobKind::DeleteGroup,
        Order::AssignPolicy(_) => JobKind::AssignPolicy,
        Order::DeletePolicy(_) => JobKind::DeletePolicy,
        Order::RunPlan(order) => match order.kind.as_str() {
            "cleanup" => JobKind::PlanCleanup,
            "failover" => JobKind::PlanFailover,
            _ => JobKind::PlanDrill,
        },
        // Retrying, cancelling and going on make no job of their own.
        Order::RetryNow(_)
        | Order::CancelJob(_)
        | Order::RetryJob(_)
        | Order::Proceed(_)
        | Order::Approve(_) => JobKind::RetryNow,
    }
}

pub(super) fn asked(order: &Order, machine: &str, now: Timestamp) -> Result<Asked, Fault> {
    let kind = kind_of(order, machine);
    let mut params = Params::default();
    let at = |point: &str| -> Result<String, Fault> {
        let point = if point.is_empty() { "latest" } else { point };
        // Which point that is, is settled with the order.
        if crate::groups::wanted(point).is_some() {
            return Ok(limited(point, NAME_BYTES_MAX));
        }
        let choice: PointChoice =
            point.parse().map_err(|error: continuum_model::point::InvalidPointChoice| {
                usage("point.invalid", &error.to_string(), "see `continuum get points`")
            })?;
        Ok(choice.to_string())
    };
    let detail = match order {
        Order::Protect(order) => {
            params.start_at = match order.start_at_us.map(Timestamp::from_micros) {
                Some(at) if at.since(now) > START_MAX => {
                    return Err(usage(
                        "protect.start-at",
                        &format!("{at} is more than seven days ahead"),
                        "name a moment within the next seven days, or leave it out to begin at once",
                    ));
                }
                at => at.filter(|at| *at > now),
            };
            let start = params.start_at.map_or(String::new(), |at| format!(", first copy from {at} on"));
            format!("policy {}, to {}{start}", shown(&order.policy), shown(&order.target_site))
        }
        Order::Resync(order) => {
            params.now = order.now;
            let when = if order.now { "now" } else { "in its window" };
            format!("compare all of source and replica {when}, and send what differs")
        }
        Order::Unprotect(order) => {
            params.keep_replica = order.keep_replica;
            if order.keep_replica {
                "the replica is kept".to_owned()
            } else {
                "with its replica and recovery points".to_owned()
            }
        }
        Order::Bookmark(order) => {
            params.app_consistent = order.app_consistent;
            params.group = crate::groups::named(machine).unwrap_or_default().to_owned();
            if order.app_consistent && kind == JobKind::GroupBookmark {
                return Err(Fault::new(
                    FaultClass::NotReady,
                    "not-available",
                    "a point that a whole group shares is crash-consistent",
                )
                .affects("this order")
                .spares("nothing was changed")
                .remedy("order it without --app-consistent, or order one for each machine"));
            }
            if order.name.len() > NAME_BYTES_MAX {
                return Err(usage(
                    "bookmark.name",
                    "the name is longer than 253 bytes",
                    "choose a shorter one",
                ));
            }
            // A bookmark without a name could not be told from a point without one.
            params.name = if order.name.is_empty() { "bookmark".into() } else { order.name.clone() };
            let kind = if order.app_consistent { "application-consistent bookmark" } else { "bookmark" };
            format!("{kind} {}", shown(&params.name))
        }
        Order::TestFailover(order) => {
            params.point = at(&order.point)?;
            params.keep_on_failure = order.keep_on_failure;
            format!("test failover to {}", params.point)
        }
        Order::Cleanup(order) => match order.note.as_str() {
            "" => "clean up the test failover".to_owned(),
            note => format!("clean up the test failover: {}", shown(&limited(note, 1000))),
        },
        Order::Failover(order) => {
            if order.kind == "planned" {
                if !matches!(order.point.as_str(), "" | "latest") {
                    return Err(usage(
                        "failover.point",
                        "a planned failover stops the source and takes its last moment",
                        "leave the point out, or order an unplanned failover to it",
                    ));
                }
                params.planned = true;
                params.point = at("latest")?;
                return Ok(Asked {
                    kind,
                    params,
                    detail: "planned failover: the source is stopped, nothing is lost".into(),
                });
            }
            if !matches!(order.kind.as_str(), "unplanned" | "") {
                return Err(usage(
                    "failover.kind",
                    &format!("there is no {} failover", shown(&order.kind)),
                    "write planned or unplanned",
                ));
            }
            params.point = at(&order.point)?;
            format!("unplanned failover to {}", params.point)
        }
        Order::Verify(order) => {
            if !matches!(order.point.as_str(), "" | "latest") {
                return Err(usage(
                    "verify.point",
                    "a verification compares both sides as of now",
                    "leave the point out, or write latest",
                ));
            }
            "compare source and replica as of now".to_owned()
        }
        Order::PinPoint(order) => {
            let choice: Result<PointChoice, _> = order.point.parse();
            let Ok(PointChoice::Id(id)) = choice else {
                return Err(usage(
                    "point.invalid",
                    "only a listed recovery point can be pinned",
                    "give its id; see `continuum get points`",
                ));
            };
            params.point = id.to_string();
            if order.lock_seconds > LOCK_SECONDS_MAX || (order.lock_seconds > 0 && !order.pinned) {
                return Err(usage(
                    "point.lock",
                    "a point is locked for at most ten years, and is pinned with it",
                    "name a shorter time; a lock that was set cannot be taken back",
                ));
            }
            params.pinned = order.pinned;
            params.lock_seconds = order.lock_seconds;
            match order.lock_seconds {
                0 => format!("{} {id}", if order.pinned { "pin" } else { "unpin" }),
                seconds => format!("lock {id} for {seconds} s"),
            }
        }
        Order::Commit(_) => "make the failover final".to_owned(),
        Order::ChangePoint(order) => {
            params.point = at(&order.point)?;
            format!("bring up {} instead", params.point)
        }
        Order::CancelFailover(_) => "take the failover back".to_owned(),
        Order::Reprotect(_) => "bring what runs at the recovery site to the old source".to_owned(),
        Order::Failback(order) => match order.kind.as_str() {
            "planned" | "" => {
                params.planned = true;
                "planned failback: nothing is lost".to_owned()
            }
            "unplanned" => "unplanned failback: the newest state at the old source".to_owned(),
            other => {
                return Err(usage(
                    "failback.kind",
                    &format!("there is no {} failback", shown(&limited(other, 100))),
                    "write planned or unplanned",
                ));
            }
        },
        Order::CompleteMigration(_) => "it stays at the recovery site for good".to_owned(),
        Order::Pause(_) => "pause replication".to_owned(),
        Order::Resume(_) => "resume replication".to_owned(),
        Order::RetryNow(_) => "try connections again now".to_owned(),
        Order::MoveMachine(order) if order.process_server.is_empty() => {
            "move to another process server of its site".to_owned()
        }
        Order::MoveMachine(order) => {
            format!("move to process server {}", shown(&limited(&order.process_server, NAME_BYTES_MAX)))
        }
        Order::AcknowledgeAlert(order) => format!("acknowledge alert {}", shown(&order.alert)),
        Order::SetPolicy(order) => {
            format!(
                "set policy {}",
                order.policy.as_ref().map(|policy| shown(&policy.name)).unwrap_or_default()
            )
        }
        Order::ApplyPlan(order) => {
            let plan = crate::plans::parse(&order.text)?;
            let act = if order.dry_run { "check" } else { "apply" };
            params.name = plan.name.clone();
            format!("{act} plan {}", shown(&plan.name))
        }
        Order::DeletePlan(order) => {
            params.name = order.plan.clone();
            format!("delete plan {}", shown(&limited(&order.plan, NAME_BYTES_MAX)))
        }
        Order::SetGroup(order) => {
            let machines: Vec<String> =
                order.machines.iter().take(32).map(|name| shown(&limited(name, NAME_BYTES_MAX))).collect();
            format!("set group {}: {}", shown(&limited(&order.name, NAME_BYTES_MAX)), machines.join(", "))
        }
        Order::DeleteGroup(order) => {
            format!("delete group {}", shown(&limited(&order.group, NAME_BYTES_MAX)))
        }
        Order::RunPlan(order) => {
            if !matches!(order.kind.as_str(), "test-failover" | "cleanup" | "failover") {
                return Err(usage(
                    "plan.kind",
                    &format!("a plan is not run as {}", shown(&limited(&order.kind, 100))),
                    "write test-failover, cleanup or failover",
                ));
            }
            params.name = order.plan.clone();
            params.point = at(&order.point)?;
            match kind {
                JobKind::PlanCleanup => format!("clean up the drill of plan {}", shown(&order.plan)),
                JobKind::PlanFailover => {
                    format!("unplanned failover of plan {} to {}", shown(&order.plan), params.point)
                }
                _ => format!("drill of plan {} to {}", shown(&order.plan), params.point),
            }
        }
        Order::AssignPolicy(order) => format!("policy {}", shown(&limited(&order.policy, NAME_BYTES_MAX))),
        Order::DeletePolicy(order) => {
            format!("delete policy {}", shown(&limited(&order.policy, NAME_BYTES_MAX)))
        }
        Order::CancelJob(_) | Order::RetryJob(_) | Order::Proceed(_) | Order::Approve(_) => String::new(),
    };
    Ok(Asked { kind, params, detail })
}
