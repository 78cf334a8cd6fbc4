//! What orders set: who carries a new protection, alerts.

use super::*;

/// A new protection: who carries it, under which policy.
pub(super) fn protect(core: &Core, row: &MachineRow, order: &pb::Protect) -> Result<Write, Fault> {
    let estate = core.estate();
    let not_ready = |code: &str, message: String, remedy: &str| {
        Fault::new(FaultClass::NotReady, code, message)
            .affects("this order")
            .spares("nothing was changed")
            .remedy(remedy)
    };
    let mut policies = estate.policies.values().filter(|policy| {
        order.policy.is_empty() || policy.name == order.policy || policy.id.to_string() == order.policy
    });
    let policy = match (policies.next(), policies.next()) {
        (Some(policy), None) => policy.id,
        (None, _) => {
            return Err(not_found(
                "policy.unknown",
                format!("there is no policy {}", shown(&order.policy)),
                "see `continuum get policies`",
            ));
        }
        (Some(_), Some(_)) => return Err(usage("policy.missing", "there are several policies", "name one")),
    };
    let mut sites = estate.sites.values().filter(|site| site.recovery).filter(|site| {
        order.target_site.is_empty()
            || site.name == order.target_site
            || site.id.to_string() == order.target_site
    });
    let site = match (sites.next(), sites.next()) {
        (Some(site), None) => site.id,
        (None, _) => {
            let what = if order.target_site.is_empty() {
                "no site is a recovery site".to_owned()
            } else {
                format!("{} is no recovery site", shown(&order.target_site))
            };
            return Err(not_found("site.unknown", what, "see `continuum get sites`"));
        }
        (Some(_), Some(_)) => {
            return Err(usage("site.missing", "there are several recovery sites", "name one"));
        }
    };
    let master_target = estate.least_loaded("master-target", site, false).ok_or_else(|| {
        not_ready(
            "target.none",
            format!("no master target is enrolled at {}", shown(&estate.site_name(site))),
            "enrol one with a token for that site",
        )
    })?;
    let process_server = estate.least_loaded("process-server", row.site, true).ok_or_else(|| {
        not_ready(
            "process-server.none",
            "no process server is enrolled".into(),
            "enrol one with a token for the machine's site",
        )
    })?;
    Ok(Write::Protect(Box::new(Protection {
        state: ProtectionState::Enabling,
        since: core.world.now(),
        policy,
        target_site: site,
        process_server,
        master_target,
        fenced: false,
        test: TestState::None,
        test_run: None,
        failed_over: None,
        answered_doubt: None,
        start_at: None,
        resync_now: false,
    })))
}

/// What an order without steps changes in the store.
pub(super) async fn at_once_effects(
    core: &Arc<Core>,
    tx: &mut Tx,
    order: &Order,
    row: Option<&MachineRow>,
) -> Result<(), Fault> {
    match order {
        Order::AcknowledgeAlert(order) => {
            let alert = {
                let estate = core.estate();
                order.alert.parse().ok().and_then(|id| estate.alerts.get(&id).cloned())
            };
            let mut alert = alert.ok_or_else(|| {
                not_found(
                    "alert.unknown",
                    format!("no open alert has the id {}", shown(&order.alert)),
                    "see `continuum get alerts`",
                )
            })?;
            alert.acknowledged = true;
            tx.save_alert(alert).await?;
        }
        Order::SetGroup(order) => crate::groups::set(core, tx, order).await?,
        Order::DeleteGroup(order) => crate::groups::delete(tx, &order.group).await?,
        Order::RetryNow(_) if row.is_some_and(|row| row.protection.is_none()) => {}
        _ => {}
    }
    Ok(())
}
