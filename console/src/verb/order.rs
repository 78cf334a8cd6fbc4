//! Orders: given once, followed to their end, told in the shape of the contract.
//!
//! An order that may have arrived is sent again under the same key, so that a lost answer never means a
//! second job.

use super::args::{self, Consent, Wait};
use super::consent::{self, AtTerminal};
use super::follow::{self, News};
use super::output::doc::Doc;
use super::output::human;
use super::output::table::{Cell, Table};
use super::output::{self};
use super::progress::{Progress, toned};
use super::vault::Vault;
use super::{Setting, contract};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::order_request::Order;
use std::io::{self, Write};
use std::time::Duration;

/// An order that may have arrived is sent again for this long.
const ORDER_AGAIN_MAX: Duration = Duration::from_secs(60);

/// Orders that first show the readiness report and ask.
pub struct Danger<'a> {
    /// The order's name on the wire.
    pub order: &'static str,
    /// At which moment.
    pub point: &'a str,
    /// What the command line says.
    pub consent: &'a Consent,
}

/// Gives one order and ends with its outcome.
pub async fn give(
    setting: &Setting,
    machine: &str,
    order: Order,
    wait: &Wait,
    danger: Option<Danger<'_>>,
) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let mut request = pb::OrderRequest {
        key: key(wait),
        machine: machine.to_owned(),
        order: Some(order),
        ..Default::default()
    };
    if let Some(danger) = danger {
        let report = vault
            .readiness(pb::ReadinessRequest {
                machine: machine.to_owned(),
                order: danger.order.to_owned(),
                point: danger.point.to_owned(),
                ..Default::default()
            })
            .await?;
        // Reads a line from the terminal: on a thread of its own, so that the connection stays alive.
        let (yes, consent, what) = (setting.yes, danger.consent.clone(), danger.order);
        let name = machine.to_owned();
        let agreed = tokio::task::spawn_blocking(move || {
            consent::obtain(what, &name, &report, yes, &consent, &mut AtTerminal)
        })
        .await
        .map_err(|error| {
            Fault::new(FaultClass::Failed, "consent.unread", format!("the question failed: {error}"))
        })??;
        request.confirm = agreed.confirm;
        request.expected_version = agreed.version;
    }
    let job = send(setting, &mut vault, request).await?;
    finish(setting, vault, vec![job], wait).await
}

/// Gives the same order to several machines, then follows all of them.
pub async fn protect(setting: &Setting, protect: &args::Protect) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let policy = match &protect.policy {
        Some(policy) => policy.clone(),
        None => only(&mut vault, pb::Kind::Policy, "policy", "--policy").await?,
    };
    let target_site = match &protect.to {
        Some(site) => site.clone(),
        None => only(&mut vault, pb::Kind::Site, "recovery site", "--to").await?,
    };
    let several = protect.machines.len() > 1;
    let mut jobs = Vec::new();
    for (at, machine) in protect.machines.iter().enumerate() {
        let key = match &protect.wait.key {
            Some(key) if several => format!("{key}.{at}"),
            _ => key(&protect.wait),
        };
        let request = pb::OrderRequest {
            key,
            machine: machine.clone(),
            order: Some(Order::Protect(pb::Protect {
                policy: policy.clone(),
                target_site: target_site.clone(),
                start_at_us: protect.start_at,
            })),
            ..Default::default()
        };
        let sent = send(setting, &mut vault, request).await;
        jobs.push(sent.map_err(|fault| {
            if jobs.is_empty() { fault } else { half_done(fault, &protect.machines[..at]) }
        })?);
    }
    finish(setting, vault, jobs, &protect.wait).await
}

/// `wait`: follows a job that was begun elsewhere.
pub async fn wait(setting: &Setting, wanted: &args::WaitFor) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let job = follow::find(&mut vault, &wanted.job).await?;
    finish(setting, vault, vec![job], &Wait { timeout: wanted.timeout, ..Wait::default() }).await
}

pub(super) fn half_done(fault: Fault, done: &[String]) -> Fault {
    let done = done.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    let affected = if fault.affected.is_empty() { String::new() } else { format!("{}; ", fault.affected) };
    Fault {
        affected: format!("{affected}this machine and those after it; the order was given for {done}"),
        ..fault
    }
}

pub(super) fn key(wait: &Wait) -> String {
    wait.key.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string())
}

/// The only thing of a kind, where the command line leaves it open.
async fn only(vault: &mut Vault, kind: pb::Kind, what: &str, flag: &str) -> Result<String, Fault> {
    use pb::entity::Entity;
    let names: Vec<String> = vault
        .snapshot(&[kind], "", 0)
        .await?
        .into_iter()
        .filter_map(|entity| match entity {
            Entity::Policy(policy) => Some(policy.name),
            Entity::Site(site) if site.recovery => Some(site.name),
            _ => None,
        })
        .collect();
    match names.as_slice() {
        [name] => Ok(name.clone()),
        [] => Err(Fault::new(FaultClass::NotReady, "usage.choice", format!("there is no {what} yet"))
            .spares("nothing was changed")
            .remedy(format!("make one first, then name it with {flag}"))),
        several => {
            let list = several.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
            Err(Fault::new(
                FaultClass::Usage,
                "usage.choice",
                format!("there is more than one {what}: {list}"),
            )
            .spares("nothing was changed")
            .remedy(format!("name one with {flag}")))
        }
    }
}

pub(super) async fn send(
    setting: &Setting,
    vault: &mut Vault,
    request: pb::OrderRequest,
) -> Result<pb::Job, Fault> {
    let begun = tokio::time::Instant::now();
    let mut result = vault.order(request.clone()).await;
    while let Err(fault) = &result {
        if fault.class != FaultClass::NotConnected {
            break;
        }
        if begun.elapsed() > ORDER_AGAIN_MAX {
            return Err(Fault {
                affected: "this order: whether it arrived is not known".into(),
                unaffected: "no order is ever carried out twice under one key".into(),
                remedy: format!(
                    "look at `continuum get jobs`, or repeat the command with --key {}",
                    request.key
                ),
                ..fault.clone()
            });
        }
        setting.say(&format!("the answer was lost, asking again under the same key: {}", fault.message));
        tokio::time::sleep(Duration::from_millis(500)).await;
        match Vault::connect(&setting.choice).await {
            Ok(again) => {
                *vault = again;
                result = vault.order(request.clone()).await;
            }
            Err(fault) => result = Err(Fault { class: FaultClass::NotConnected, ..fault }),
        }
    }
    let reply = result?;
    if reply.repeated_key {
        setting.say("this key was used before: here is its job, and nothing new was begun");
    }
    reply.job.ok_or_else(|| {
        Fault::new(FaultClass::Failed, "vault.answer", "the vault accepted the order but named no job")
            .remedy("look at `continuum get jobs`")
    })
}

/// Follows jobs unless told not to, writes them, and turns their outcome into an exit.
pub(super) async fn finish(
    setting: &Setting,
    vault: Vault,
    jobs: Vec<pb::Job>,
    wait: &Wait,
) -> Result<(), Fault> {
    let several = jobs.len() > 1;
    let mut vault = Some(vault);
    let mut ended = Vec::new();
    for job in jobs {
        if (wait.no_wait || waits_for_approval(&job)) && !follow::is_over(&job) {
            ended.push(job);
            continue;
        }
        let connected = match vault.take() {
            Some(vault) => vault,
            None => Vault::connect(&setting.choice).await?,
        };
        ended.push(follow_with_progress(setting, connected, job, wait).await?);
    }
    let docs: Vec<Doc> = ended.iter().map(told).collect();
    let doc = match docs.as_slice() {
        [one] if !several => one.clone(),
        _ => Doc::List(docs),
    };
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, _| {
            ended.iter().try_for_each(|job| text(out, job, setting.style.colour))
        })
    })?;
    ended.iter().try_for_each(verdict)
}

async fn follow_with_progress(
    setting: &Setting,
    vault: Vault,
    job: pb::Job,
    wait: &Wait,
) -> Result<pb::Job, Fault> {
    let id = job.id.clone();
    let mut progress = Progress::new(io::stderr(), setting.style.format.for_programs(), setting.colour_err);
    let limit = wait.timeout.map(Duration::from_secs);
    let mut tell = |news: News<'_>| progress.tell(&news);
    let following = follow::follow(&setting.choice, vault, job, limit, &mut tell);
    tokio::select! {
        followed = following => followed,
        _ = tokio::signal::ctrl_c() => Err(Fault::new(FaultClass::Failed, INTERRUPTED, "you stopped watching")
            .affects("this command only")
            .spares(format!("job {}, which goes on", shown(&id)))
            .remedy(format!("follow it again with `continuum wait {0}`, or stop it with `continuum cancel {0}`", shown(&id)))),
    }
}

/// The code of a fault that only says that Ctrl-C was pressed.
pub const INTERRUPTED: &str = "interrupted";

fn told(job: &pb::Job) -> Doc {
    if job.kind == "verify" { contract::verify(job) } else { contract::order(job) }
}

/// Whether a second person must agree before anything happens.
fn waits_for_approval(job: &pb::Job) -> bool {
    job.state == "waiting" && job.approval.is_some()
}

/// The job's own fault, where it did not end well.
fn verdict(job: &pb::Job) -> Result<(), Fault> {
    if waits_for_approval(job) {
        return Err(Fault::new(
            FaultClass::WaitingForApproval,
            "job.waiting-for-approval",
            format!("{} of {} waits until a second person agrees", shown(&job.kind), shown(&job.machine)),
        )
        .affects("this order: nothing has happened yet")
        .spares("everything")
        .remedy(format!("an approver or another owner answers: continuum approve {}", shown(&job.id))));
    }
    if !follow::is_over(job) {
        return Ok(());
    }
    let carried = job.fault.as_ref().map(continuum_wire::grpc::fault_from_proto);
    match job.state.as_str() {
        "failed" => Err(carried.unwrap_or_else(|| {
            Fault::new(
                FaultClass::Failed,
                "job.failed",
                format!("{} of {} failed", shown(&job.kind), shown(&job.machine)),
            )
            .remedy(format!("see `continuum describe job {}`", shown(&job.id)))
        })),
        "cancelled" => Err(Fault::new(
            FaultClass::Failed,
            "job.cancelled",
            format!("{} of {} was cancelled", shown(&job.kind), shown(&job.machine)),
        )
        .spares("everything: what it had done was undone")),
        _ => match job.verified.iter().find(|disk| !disk.equal) {
            Some(disk) => Err(Fault::new(
                FaultClass::Failed,
                "verify.differs",
                format!("disk {} of {} differs from its source", shown(&disk.name), shown(&job.machine)),
            )
            .affects("the point that was compared")
            .remedy("see `continuum describe machine` for its symptoms; do not trust this point")),
            None => Ok(()),
        },
    }
}

/// A job's end as a person reads it.
fn text(out: &mut dyn Write, job: &pb::Job, colour: bool) -> io::Result<()> {
    let took =
        job.ended_us.zip(job.started_us).map(|(ended, started)| ended.saturating_sub(started) as f64 / 1e6);
    let after = took.map_or_else(String::new, |took| format!(" after {}", human::seconds(Some(took))));
    let of = if job.machine.is_empty() { String::new() } else { format!(" of {}", shown(&job.machine)) };
    writeln!(
        out,
        "{}{of}: {}{after}  (job {})",
        shown(&job.kind),
        toned(&job.state, colour),
        shown(&job.id)
    )?;
    for machine in &job.machines {
        machine_text(out, machine, colour)?;
    }
    if !job.verified.is_empty() {
        let mut table = Table::new(&["DISK", "RESULT", "SOURCE", "REPLICA"], "").whole(true);
        for disk in &job.verified {
            let result = Cell::state(if disk.equal { "equal" } else { "differs" });
            table.row([
                disk.name.as_str().into(),
                result,
                disk.source_digest.as_str().into(),
                disk.replica_digest.as_str().into(),
            ]);
        }
        table.write_indented(out, colour, "  ")?;
    }
    if !follow::is_over(job) {
        writeln!(out, "  follow it with `continuum wait {}`", shown(&job.id))?;
    }
    Ok(())
}

fn machine_text(out: &mut dyn Write, machine: &pb::MachineOutcome, colour: bool) -> io::Result<()> {
    if let Some(point) = &machine.point {
        let name = if point.name.is_empty() { String::new() } else { format!(" \"{}\"", shown(&point.name)) };
        writeln!(
            out,
            "  moment    {} ({}{name})",
            continuum_model::time::Timestamp::from_micros(point.time_us),
            shown(&point.kind)
        )?;
    }
    if machine.rto_seconds.is_some() {
        writeln!(out, "  answered  {} after the order", human::seconds(machine.rto_seconds))?;
    }
    if machine.loss_seconds.is_some() || machine.loss_bytes.is_some() {
        writeln!(
            out,
            "  given up  {}, {}",
            human::seconds(machine.loss_seconds),
            human::bytes(machine.loss_bytes)
        )?;
    }
    if !machine.note.is_empty() {
        writeln!(out, "  note      {}", shown(&machine.note))?;
    }
    for probe in &machine.probes {
        let passed = toned(if probe.passed { "passed" } else { "failed" }, colour);
        writeln!(out, "  probe     {}: {passed}  {}", shown(&probe.name), shown(&probe.detail))?;
    }
    for disk in machine.disks.iter().filter(|disk| !disk.endpoint.is_empty()) {
        writeln!(
            out,
            "  disk      {} ({}) at {}",
            shown(&disk.name),
            human::bytes(Some(disk.size_bytes)),
            shown(&disk.endpoint)
        )?;
    }
    Ok(())
}
