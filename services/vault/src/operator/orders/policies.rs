//! Orders about policies: made, changed, deleted, and put over another machine.
//!
//! Rule: a change by which recovery points of a machine go is agreed to with a name, typed out: the policy's where it
//! is changed, the machine's where it goes under another one. What goes is `document::policy::changes`' to say, for the
//! report, the dialog and this check alike.

use super::asked::Asked;
use super::*;
use crate::estate::Estate;
use crate::store::versions::VersionRow;
use continuum_document::policy::{self as document, Change};
use continuum_model::policy::Policy;
use continuum_model::time::Timestamp;

/// The policy of a name or an id.
pub(crate) fn find<'a>(estate: &'a Estate, named: &str) -> Option<&'a PolicyRow> {
    estate.policies.values().find(|row| row.name == named || row.id.to_string() == named)
}

pub(crate) fn no_policy(name: &str) -> Fault {
    not_found(
        "policy.unknown",
        format!("there is no policy {}", shown(&limited(name, 300))),
        "see `continuum get policies`",
    )
}

/// Names of the machines under a policy.
pub(crate) fn under(estate: &Estate, policy: PolicyId) -> Vec<String> {
    let of = |entry: &&crate::estate::MachineEntry| {
        entry.row.protection.as_ref().is_some_and(|protection| protection.policy == policy)
    };
    let mut names: Vec<String> =
        estate.machines.values().filter(of).map(|entry| entry.row.name.clone()).collect();
    names.sort();
    names
}

/// A policy as an order wants it: which one it replaces, and what that changes.
pub(crate) struct Wanted {
    pub(crate) known: Option<PolicyRow>,
    pub(crate) policy: Policy,
    pub(crate) changes: Vec<Change>,
    pub(crate) machines: Vec<String>,
}

impl Wanted {
    /// Whether recovery points go.
    pub(crate) fn loses(&self) -> bool {
        self.changes.iter().any(|change| change.loses)
    }
}

/// Reads what a message wants.
pub(crate) fn wanted(estate: &Estate, message: &pb::Policy) -> Result<Wanted, Fault> {
    let policy = continuum_wire::policy::from_message(message).map_err(|why| {
        usage("policy.invalid", &format!("the policy is not valid: {why}"), "mend the field named")
    })?;
    let problems = policy.problems();
    if !problems.is_empty() {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(usage(
            "policy.invalid",
            &format!("the policy is not valid: {}", all.join("; ")),
            "mend every field named",
        ));
    }
    if let Some(why) = document::name_problem(&message.name) {
        return Err(usage(
            "policy.name",
            &format!("the policy's name: {why}"),
            "give it one of 1 to 253 bytes",
        ));
    }
    let known = estate
        .policies
        .values()
        .find(|row| row.id.to_string() == message.id || (message.id.is_empty() && row.name == message.name));
    if known.is_none() && !message.id.is_empty() {
        return Err(not_found(
            "policy.unknown",
            format!("no policy has the id {}", shown(&limited(&message.id, 100))),
            "leave the id out for a new one",
        ));
    }
    let other = estate
        .policies
        .values()
        .any(|row| row.name == message.name && known.is_none_or(|known| known.id != row.id));
    if other {
        return Err(Fault::new(
            FaultClass::Conflict,
            "policy.name",
            format!("another policy is called {}", shown(&message.name)),
        )
        .affects("this order")
        .spares("nothing was changed")
        .remedy("choose another name"));
    }
    let machines = known.map(|known| under(estate, known.id)).unwrap_or_default();
    let mut changes =
        known.map_or_else(Vec::new, |known| document::changes(&known.policy, &policy, machines.len()));
    if let Some(known) = known.filter(|known| known.name != message.name) {
        changes.insert(0, renamed(&known.name, &message.name));
    }
    Ok(Wanted { known: known.cloned(), policy, changes, machines })
}

fn renamed(from: &str, to: &str) -> Change {
    Change { field: "name", from: shown(from), to: shown(to), means: String::new(), loses: false }
}

/// What changes for a machine that goes under another policy.
pub(crate) fn assigned(
    estate: &Estate,
    row: &MachineRow,
    policy: &str,
) -> Result<(PolicyId, Vec<Change>), Fault> {
    let next = find(estate, policy).ok_or_else(|| no_policy(policy))?;
    let before = row.protection.as_ref().and_then(|protection| estate.policies.get(&protection.policy));
    let changes = before.map_or_else(Vec::new, |before| document::changes(&before.policy, &next.policy, 1));
    Ok((next.id, changes))
}

/// Whether an order about a policy is possible now; what it needs is put into its parameters.
pub(super) fn check(
    core: &Arc<Core>,
    asked: &mut Asked,
    request: &pb::OrderRequest,
    row: Option<&MachineRow>,
) -> Result<(), Fault> {
    match (&request.order, row) {
        (Some(Order::SetPolicy(order)), _) => {
            let message = order.policy.as_ref().ok_or_else(|| {
                usage("policy.empty", "the order holds no policy", "give its name and fields")
            })?;
            let wanted = wanted(&core.estate(), message)?;
            match &wanted.known {
                None => asked.detail = format!("{}: it is new", asked.detail),
                Some(known) => {
                    same_version(known, request.expected_version)?;
                    asked.detail = format!("{}: {}", asked.detail, told(&wanted.changes));
                }
            }
            if wanted.loses() && request.confirm != message.name {
                return Err(unconfirmed("set-policy", &message.name, &wanted.changes));
            }
        }
        (Some(Order::DeletePolicy(order)), _) => {
            let estate = core.estate();
            let known = find(&estate, &order.policy).ok_or_else(|| no_policy(&order.policy))?;
            same_version(known, request.expected_version)?;
            in_use(&estate, known)?;
            asked.detail = format!("delete policy {}", shown(&known.name));
        }
        (Some(Order::AssignPolicy(order)), Some(row)) => {
            let (id, changes) = assigned(&core.estate(), row, &order.policy)?;
            if changes.iter().any(|change| change.loses) && request.confirm != row.name {
                return Err(unconfirmed("set-policy", &row.name, &changes));
            }
            asked.params.policy = Some(id);
            asked.detail = format!("policy {}: {}", shown(&order.policy), told(&changes));
        }
        _ => {}
    }
    Ok(())
}

/// Refuses to delete what somebody needs.
pub(crate) fn in_use(estate: &Estate, policy: &PolicyRow) -> Result<(), Fault> {
    let machines = under(estate, policy.id);
    let name = shown(&policy.name);
    if machines.is_empty() && estate.policies.len() > 1 {
        return Ok(());
    }
    if machines.is_empty() {
        return Err(Fault::new(
            FaultClass::NotReady,
            "policy.last",
            format!("{name} is the only policy: without one nothing can be protected"),
        )
        .affects("this order")
        .spares("nothing was changed")
        .remedy("make another one first"));
    }
    let listed: Vec<String> = machines.iter().take(10).map(|name| shown(name)).collect();
    let more = machines.len().saturating_sub(listed.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Fault::new(
        FaultClass::NotReady,
        "policy.in-use",
        format!("policy {name} is in use by {}{more}", listed.join(", ")),
    )
    .affects("this order")
    .spares("nothing was changed")
    .remedy(format!(
        "put them under another one: continuum set-policy {} --policy OTHER",
        quoted(&machines[0])
    )))
}

fn same_version(known: &PolicyRow, expected: u64) -> Result<(), Fault> {
    if expected == 0 || expected == known.version {
        return Ok(());
    }
    Err(changed(known, expected))
}

fn changed(known: &PolicyRow, expected: u64) -> Fault {
    let name = shown(&known.name);
    Fault::new(
        FaultClass::Conflict,
        "policy.changed",
        format!("policy {name} changed since you looked (version {}, you saw {expected})", known.version),
    )
    .affects("this order")
    .spares("nothing was changed")
    .remedy("look at it again and decide again")
}

fn told(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing changes".into();
    }
    let told = changes.iter().map(|change| {
        let means = if change.means.is_empty() { String::new() } else { format!(" ({})", change.means) };
        format!("{} {} to {}{means}", change.field, change.from, change.to)
    });
    limited(&told.collect::<Vec<_>>().join("; "), 2000)
}

fn unconfirmed(order: &str, name: &str, changes: &[Change]) -> Fault {
    let means = changes.iter().find(|change| change.loses && !change.means.is_empty());
    let means = means.map_or_else(|| "recovery points go".to_owned(), |change| change.means.clone());
    usage(
        "order.unconfirmed",
        &format!("{order} needs the name {}, typed out: {means}", shown(name)),
        &format!("give it exactly, such as --confirm {}", quoted(name)),
    )
}

/// What an order about a policy changes at once.
pub(super) async fn effects(
    core: &Arc<Core>,
    tx: &mut Tx,
    by: &str,
    order: &Order,
    now: Timestamp,
) -> Result<(), Fault> {
    match order {
        Order::SetPolicy(pb::SetPolicy { policy: Some(message) }) => {
            let wanted = wanted(&core.estate(), message)?;
            let unchanged = |known: &PolicyRow| known.policy == wanted.policy && known.name == message.name;
            if wanted.known.as_ref().is_some_and(unchanged) {
                return Ok(());
            }
            save(core, tx, by, message.name.clone(), wanted, now).await
        }
        Order::DeletePolicy(order) => {
            let known = find(&core.estate(), &order.policy).cloned();
            let known = known.ok_or_else(|| no_policy(&order.policy))?;
            keep(tx, &known).await?;
            let gone =
                VersionRow { version: known.version + 1, body: String::new(), ..version(&known, by, now) };
            // A protection that begins in the same moment names it: the row decides, not what we remember.
            if tx.policy_is_used(known.id).await? || !tx.delete_policy(&known).await? {
                return Err(changed(&known, known.version));
            }
            tx.add_version(&gone).await?;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn save(
    core: &Arc<Core>,
    tx: &mut Tx,
    by: &str,
    name: String,
    wanted: Wanted,
    now: Timestamp,
) -> Result<(), Fault> {
    if let Some(known) = &wanted.known {
        keep(tx, known).await?;
    }
    let row = PolicyRow {
        id: wanted.known.as_ref().map_or_else(|| core.world.id(PolicyId::make), |known| known.id),
        name,
        policy: wanted.policy,
        version: wanted.known.as_ref().map_or(1, |known| known.version + 1),
    };
    tx.add_version(&version(&row, by, now)).await?;
    if !tx.save_policy(row.clone()).await? {
        return Err(changed(&row, row.version - 1));
    }
    Ok(())
}

/// What was there before versions were kept is one, too.
async fn keep(tx: &mut Tx, known: &PolicyRow) -> Result<(), StoreError> {
    tx.add_version(&version(known, "", Timestamp::from_micros(0))).await
}

fn version(row: &PolicyRow, by: &str, at: Timestamp) -> VersionRow {
    VersionRow {
        kind: "policy",
        object: row.id.to_string(),
        version: row.version,
        name: row.name.clone(),
        body: document::write(&row.name, &row.policy),
        by: by.to_owned(),
        at,
    }
}

/// Whether recovery points go by an order about a policy.
pub(super) fn loses(core: &Core, order: &Order, row: Option<&MachineRow>) -> bool {
    match (order, row) {
        (Order::SetPolicy(pb::SetPolicy { policy: Some(message) }), _) => {
            wanted(&core.estate(), message).is_ok_and(|wanted| wanted.loses())
        }
        (Order::AssignPolicy(order), Some(row)) => assigned(&core.estate(), row, &order.policy)
            .is_ok_and(|(_, changes)| changes.iter().any(|change| change.loses)),
        _ => false,
    }
}
