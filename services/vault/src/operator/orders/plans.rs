//! Orders about recovery plans.

use super::asked::Asked;
use super::*;
use crate::plans::{freeze, parse};
use crate::store::jobs::FrozenPlan;
use crate::store::plans::PlanRow;
use crate::store::versions::VersionRow;
use continuum_model::time::Timestamp;

/// Whether an order about a plan is possible now; what a run needs is put into its parameters.
pub(super) async fn check(
    core: &Arc<Core>,
    tx: &mut Tx,
    asked: &mut Asked,
    request: &pb::OrderRequest,
) -> Result<(), Fault> {
    let name = asked.params.name.clone();
    let known = tx.plan(&name).await?.filter(|plan| !plan.deleted);
    if matches!(asked.kind, JobKind::ApplyPlan | JobKind::CheckPlan) {
        let Some(Order::ApplyPlan(order)) = &request.order else { return Ok(()) };
        let (_, unknown) = freeze(&parse(&order.text)?, &core.estate());
        asked.detail = match &known {
            None => format!("{}: it is new", asked.detail),
            Some(plan) if plan.text == order.text => format!("{}: nothing changes", asked.detail),
            Some(plan) => format!("{}: version {} follows {}", asked.detail, plan.version + 1, plan.version),
        };
        if !unknown.is_empty() {
            let unknown: Vec<String> = unknown.iter().take(10).map(|name| shown(name)).collect();
            asked.detail.push_str(&format!("; no machine is called {}", unknown.join(", ")));
        }
        return Ok(());
    }
    let plan = known.ok_or_else(|| no_plan(&name))?;
    if request.expected_version != 0 && request.expected_version != plan.version {
        return Err(Fault::new(
            FaultClass::Conflict,
            "plan.changed",
            format!(
                "plan {} changed since you looked (version {}, you saw {})",
                shown(&plan.name),
                plan.version,
                request.expected_version
            ),
        )
        .affects("this order")
        .spares("nothing was changed")
        .remedy("look at it again and decide again"));
    }
    if must_be_typed(asked.kind) && request.confirm != plan.name {
        return Err(usage(
            "order.unconfirmed",
            &format!("{} of plan {} needs the plan's name, typed out", asked.kind.name(), shown(&plan.name)),
            &format!("give it exactly, such as --confirm {}", quoted(&plan.name)),
        ));
    }
    let running = {
        let estate = core.estate();
        let mut jobs = estate
            .jobs
            .values()
            .map(|entry| &entry.row)
            // One that waits for somebody's agreement has not begun.
            .filter(|job| !job.state.is_over() && job.state != JobState::Waiting);
        jobs.find(|job| job.params.plan.as_ref().is_some_and(|run| run.name == plan.name)).map(|job| job.id)
    };
    if let Some(job) = running {
        return Err(Fault::new(
            FaultClass::Conflict,
            "plan.running",
            format!("a run of plan {} is under way (job {job})", shown(&plan.name)),
        )
        .affects("this order")
        .spares("that run, which goes on")
        .remedy(format!("wait for it (continuum wait {job}), or cancel it")));
    }
    if asked.kind == JobKind::DeletePlan {
        return Ok(());
    }
    let (frozen, unknown) = freeze(&plan.plan, &core.estate());
    if !unknown.is_empty() {
        let unknown: Vec<String> = unknown.iter().take(10).map(|name| shown(name)).collect();
        return Err(Fault::new(
            FaultClass::NotReady,
            "plan.machines",
            format!("plan {} names machines that there are not: {}", shown(&plan.name), unknown.join(", ")),
        )
        .affects("this order")
        .spares("nothing was changed")
        .remedy("mend the plan (continuum get plans -o yaml, continuum apply -f), or register them"));
    }
    if let Some(wanted) = crate::groups::wanted(&asked.params.point) {
        let estate = core.estate();
        for (id, _) in frozen.machines() {
            // Who is not in that group is brought up at its latest moment.
            let group = estate.group_of(*id).map(|entry| entry.row.name.as_str());
            let shares = match wanted.parse() {
                Ok(point) => estate.group_points.get(&point).is_some_and(|point| point.machines.contains(id)),
                Err(_) => group.is_some_and(|group| wanted.is_empty() || group == wanted),
            };
            if shares {
                asked.params.shared.insert(*id, crate::groups::resolve(&estate, *id, wanted)?.id);
            }
        }
        if asked.params.shared.is_empty() {
            return Err(Fault::new(
                FaultClass::NotReady,
                "group.no-point",
                format!("no machine of plan {} has such a shared point", shown(&plan.name)),
            )
            .affects("this order")
            .spares("nothing was changed")
            .remedy("see `continuum get groups`, or choose another point"));
        }
    }
    let sha256 = crate::store::sha256(plan.text.as_bytes());
    asked.params.plan = Some(FrozenPlan { version: plan.version, sha256, ..frozen });
    Ok(())
}

/// What an order about a plan changes at once.
pub(super) async fn effects(tx: &mut Tx, order: &Order, by: &str, now: Timestamp) -> Result<(), Fault> {
    match order {
        Order::ApplyPlan(order) if !order.dry_run => {
            let plan = parse(&order.text)?;
            let known = tx.plan(&plan.name).await?;
            let unchanged = known.as_ref().is_some_and(|row| !row.deleted && row.text == order.text);
            if !unchanged {
                if let Some(known) = known.as_ref().filter(|known| !known.deleted) {
                    // What was there before versions were kept is one, too.
                    let kept =
                        version(&known.name, known.version, &known.text, "", Timestamp::from_micros(0));
                    tx.add_version(&kept).await?;
                }
                let number = known.as_ref().map_or(1, |row| row.version + 1);
                tx.add_version(&version(&plan.name, number, &order.text, by, now)).await?;
                tx.save_plan(PlanRow {
                    name: plan.name.clone(),
                    version: known.as_ref().map_or(1, |row| row.version + 1),
                    text: order.text.clone(),
                    plan,
                    deleted: false,
                    last_drill: known.and_then(|row| row.last_drill),
                })
                .await?;
            }
        }
        Order::DeletePlan(order) => {
            let known = tx.plan(&order.plan).await?.ok_or_else(|| no_plan(&order.plan))?;
            tx.add_version(&version(&known.name, known.version + 1, "", by, now)).await?;
            tx.save_plan(PlanRow { deleted: true, version: known.version + 1, ..known }).await?;
        }
        _ => {}
    }
    Ok(())
}

fn version(name: &str, version: u64, text: &str, by: &str, at: Timestamp) -> VersionRow {
    VersionRow {
        kind: "plan",
        object: name.to_owned(),
        version,
        name: name.to_owned(),
        body: text.to_owned(),
        by: by.to_owned(),
        at,
    }
}

pub(crate) fn no_plan(name: &str) -> Fault {
    not_found(
        "plan.unknown",
        format!("there is no plan {}", shown(&limited(name, 300))),
        "see `continuum get plans`",
    )
}
