//! Every operation as a saga. What each step does can be repeated.

use crate::estate::{BroughtUp, DiskRow, Estate, MachineRow, PointRow, ProbeRow};
use crate::saga::{CANCELLED, Context, JobRow, Order, OutcomeRow, Saga, said};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{PointId, ViewId};
use continuum_model::job::JobState;
use continuum_model::protection::{Event, FailoverKind, IllegalMove, ProtectionState, TestState};
use continuum_model::time::Timestamp;
use continuum_model::units::Epoch;
use continuum_model::world::SystemEntropy;
use continuum_proto::v1 as pb;
use pb::command::Act;
use pb::command_result::Result as Answer;
use std::sync::Arc;
use std::time::Duration;

/// An act of a server that only has to look something up or write a record.
const QUICK: Duration = Duration::from_secs(30);
/// An act that reads whole disks.
const LONG: Duration = Duration::from_secs(3600);
/// How long a machine may take until its probes pass.
const PROBE_SECONDS: u32 = 60;
/// How often a state is looked at that no message tells of.
const LOOK: Duration = Duration::from_millis(50);

/// Carries a job to its end, whatever that is.
pub async fn carry(mut saga: Saga) {
    let estate = saga.estate.clone();
    saga.job.state = JobState::Running;
    saga.job.started_us = saga.job.started_us.or(Some(estate.clock.wall().micros()));
    let outcome = match saga.job.order.clone() {
        Order::Protect { policy, target_site } => protect(&mut saga, policy, target_site).await,
        Order::Unprotect { keep_replica } => unprotect(&mut saga, keep_replica).await,
        Order::Bookmark { name } => bookmark(&mut saga, name).await,
        Order::TestFailover { point } => test_failover(&mut saga, point).await,
        Order::Cleanup { .. } => cleanup(&mut saga).await,
        Order::Failover { point } => failover(&mut saga, point).await,
        Order::Commit => commit(&mut saga).await,
        Order::Verify => verify(&mut saga).await,
        Order::AtOnce { .. } => Ok(()),
    };
    saga.job.ended_us = Some(estate.clock.wall().micros());
    saga.job.waiting_for.clear();
    let (name, by) = (saga.job.machine_name.clone(), saga.job.by.clone());
    let text = match outcome {
        Ok(()) => {
            saga.job.state = JobState::Succeeded;
            format!("{} succeeded", saga.job.order.kind())
        }
        Err(fault) => {
            let cancelled = fault.code == CANCELLED;
            saga.job.state = if cancelled { JobState::Cancelled } else { JobState::Failed };
            let text = format!("{} {}: {}", saga.job.order.kind(), saga.job.state.name(), fault.message);
            saga.job.fault = Some(fault.correlated(saga.job.id.to_string()));
            text
        }
    };
    let machine = saga.job.machine.to_string();
    for written in [estate.put_job(&saga.job).await, estate.tell("job", &name, &machine, text, &by).await] {
        if let Err(fault) = written {
            tracing::error!(job = %saga.job.id, code = fault.code, "a job's end could not be stored: {}", fault.message);
        }
    }
}

/// A refusal by the state machine, in words.
pub fn refused(error: &IllegalMove) -> Fault {
    Fault::new(FaultClass::NotReady, "protection.illegal-move", error.to_string())
        .affects("this order; nothing was changed")
        .spares("the machine and its replica")
        .remedy("choose one of the orders that are possible now")
}

async fn moves(context: &Context, event: Event, text: &str) -> Result<(), Fault> {
    let by = format!("job {}", context.job);
    context
        .estate
        .change(context.machine, &by, |row| {
            let state = row.protection.clone().ok_or_else(not_protected)?;
            row.protection = Some(state.next(event).map_err(|error| refused(&error))?);
            Ok(((), (!text.is_empty()).then(|| text.to_owned())))
        })
        .await
}

fn not_protected() -> Fault {
    Fault::new(FaultClass::NotReady, "machine.unprotected", "the machine is not protected")
        .remedy("protect it first: `continuum protect`")
}

fn row(context: &Context) -> Result<MachineRow, Fault> {
    context.estate.machine(context.machine)
}

async fn target(context: &Context, suffix: &str, act: Act, patience: Duration) -> Result<Answer, Fault> {
    let server = row(context)?.master_target;
    context.registry.command(&server, &format!("{}{suffix}", context.id), act, patience).await
}

fn unexpected() -> Fault {
    Fault::new(FaultClass::Failed, "command.answer", "a server gave an answer to another question")
        .remedy("update the older of the two")
}

async fn protect(saga: &mut Saga, policy: String, target_site: String) -> Result<(), Fault> {
    let (process_server, master_target, site): (String, String, String) = saga
        .step("check", |context| async move {
            let row = row(&context)?;
            let site = context.estate.recovery_site(&target_site)?;
            let process_server = find_server(&context.estate, "process-server", Some(&row.site))
                .or_else(|_| find_server(&context.estate, "process-server", None))?;
            let master_target = find_server(&context.estate, "master-target", Some(&site))?;
            let detail = format!("recovered at {site}");
            Ok(said((process_server, master_target, site), detail))
        })
        .await?;
    saga.step("relate", |context| async move {
        let by = format!("job {}", context.job);
        context
            .estate
            .change(context.machine, &by, |row| {
                if row.protection.is_none() {
                    row.protection = Some(ProtectionState::Enabling);
                    row.epoch = Epoch(row.epoch.0 + 1);
                    (row.policy, row.target_site) = (policy, site);
                    (row.process_server, row.master_target) = (process_server, master_target);
                }
                if row.protection == Some(ProtectionState::Enabling) {
                    let state =
                        ProtectionState::Enabling.next(Event::Related).map_err(|error| refused(&error))?;
                    row.protection = Some(state);
                    return Ok(((), Some("protection began".into())));
                }
                Ok(((), None))
            })
            .await?;
        Ok(said((), "agent, process server and master target know of it"))
    })
    .await?;
    saga.step("initial replication", |context| async move {
        wait(&context, LONG * 24, "the first recovery point", |row, _| {
            matches!(row.protection, Some(ProtectionState::Protected { .. })).then_some(())
        })
        .await?;
        Ok(said((), "the first recovery point exists"))
    })
    .await
}

/// A connected server of a role, at a site where one is named.
fn find_server(estate: &Estate, role: &str, site: Option<&str>) -> Result<String, Fault> {
    let servers = estate.servers();
    let found = servers.iter().find(|server| {
        server.shown.role == role
            && server.shown.connected
            && site.is_none_or(|site| server.shown.site == site)
    });
    found.map(|server| server.shown.id.clone()).ok_or_else(|| {
        let place = site.map(|site| format!(" at site {site}")).unwrap_or_default();
        Fault::new(FaultClass::NotReady, "protect.no-server", format!("no {role} is connected{place}"))
            .affects("this order; nothing was changed")
            .remedy("start one, or see why it does not connect, then retry the job")
    })
}

/// Waits until something holds of a machine.
async fn wait<T>(
    context: &Context,
    patience: Duration,
    what: &str,
    holds: impl Fn(&MachineRow, &pb::ReplicaReport) -> Option<T>,
) -> Result<T, Fault> {
    let started = context.estate.clock.uptime();
    loop {
        let row = row(context)?;
        let report = context
            .estate
            .live(context.machine, |live| live.replica.as_ref().map(|(report, _)| report.clone()));
        if let Some(found) = holds(&row, &report.flatten().unwrap_or_default()) {
            return Ok(found);
        }
        if context.estate.job(context.job).is_some_and(|job| job.cancel) {
            return Err(Fault::new(FaultClass::Failed, CANCELLED, "the job was cancelled by an operator"));
        }
        if context.estate.clock.uptime().saturating_sub(started) > patience {
            return Err(Fault::new(
                FaultClass::NotReady,
                "job.timeout",
                format!("{what} did not come within {} s", patience.as_secs()),
            )
            .remedy("see the machine's symptoms, then retry the job"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn unprotect(saga: &mut Saga, keep_replica: bool) -> Result<(), Fault> {
    saga.step("stop replication", |context| async move {
        if row(&context)?.protection != Some(ProtectionState::Disabling) {
            moves(&context, Event::Disable, "protection ends").await?;
        }
        Ok(said((), "the source is no longer shipped"))
    })
    .await?;
    saga.step("remove replica", |context| async move {
        if keep_replica {
            return Ok(said((), "kept, as ordered; remove it by hand when it is no longer needed"));
        }
        let act = Act::RemoveReplica(pb::RemoveReplica { machine_id: context.machine.to_string() });
        match target(&context, "", act, LONG).await? {
            Answer::Done(done) => Ok(said((), done.detail)),
            _ => Err(unexpected()),
        }
    })
    .await?;
    saga.step("forget", |context| async move {
        let by = format!("job {}", context.job);
        context
            .estate
            .change(context.machine, &by, |row| {
                row.protection = None;
                (row.test_state, row.test, row.failed_over) = (TestState::None, None, None);
                Ok(((), Some("no longer protected".into())))
            })
            .await?;
        context.estate.set_live(context.machine, |_, live| live.replica = None);
        Ok(said((), "nothing is left at the vault but its events"))
    })
    .await
}

async fn bookmark(saga: &mut Saga, name: String) -> Result<(), Fault> {
    let point = point_of(saga);
    let cut = saga
        .step("barrier", |context| async move {
            let act = Act::MakeBarrier(pb::MakeBarrier {
                point_id: point.clone(),
                kind: "bookmark".into(),
                name: name.clone(),
            });
            match context.registry.command(&context.machine.to_string(), &context.id, act, QUICK).await? {
                Answer::Barrier(barrier) => {
                    let row = PointRow {
                        id: point,
                        time_us: barrier.time_us,
                        kind: "bookmark".into(),
                        name,
                        position: barrier.sequence,
                    };
                    Ok(said(row, "cut in the feed"))
                }
                _ => Err(unexpected()),
            }
        })
        .await?;
    durable(saga, cut.position).await?;
    saga.job.outcome = Some(OutcomeRow {
        name: saga.job.machine_name.clone(),
        note: format!("point {}", cut.id),
        ..Default::default()
    });
    Ok(())
}

/// The id of the point that a job makes: the same every time the job is taken up.
fn point_of(saga: &Saga) -> String {
    PointId::from_bytes(*saga.job.id.as_bytes()).to_string()
}

async fn durable(saga: &mut Saga, position: u64) -> Result<(), Fault> {
    saga.step("durable at the target", |context| async move {
        wait(&context, QUICK, "the point at the master target", |_, report| {
            (report.last_sequence >= position).then_some(())
        })
        .await?;
        Ok(said((), "the target made it durable"))
    })
    .await
}

fn view_of(saga: &Saga) -> String {
    ViewId::from_bytes(*saga.job.id.as_bytes()).to_string()
}

/// Finds the moment that is asked for.
async fn resolve(saga: &mut Saga, point: String) -> Result<(PointRow, f64, u64, String), Fault> {
    saga.step("choose point", |context| async move {
        let act = Act::ResolvePoint(pb::ResolvePoint {
            machine_id: context.machine.to_string(),
            point: point.clone(),
        });
        let Answer::Resolved(pb::Resolved { preview: Some(preview) }) =
            target(&context, "", act, QUICK).await?
        else {
            return Err(unexpected());
        };
        let chosen = preview.point.unwrap_or_default();
        let row = PointRow {
            id: chosen.id,
            time_us: chosen.time_us,
            kind: chosen.kind,
            name: chosen.name,
            position: chosen.position,
        };
        let note = preview.gap.map_or_else(String::new, |gap| {
            format!(
                "the moment asked for lies in a gap from {} to {}; this is the newest before it",
                Timestamp::from_micros(gap.from_us),
                Timestamp::from_micros(gap.to_us)
            )
        });
        let detail = format!(
            "{} ({}){}",
            Timestamp::from_micros(row.time_us),
            row.kind,
            if note.is_empty() { String::new() } else { format!("; {note}") }
        );
        Ok(said((row, preview.loss_seconds, preview.loss_bytes, note), detail))
    })
    .await
}

/// View, guest, probes: the part that tests and failovers share.
async fn bring_up(
    saga: &mut Saga,
    chosen: (PointRow, f64, u64, String),
    keep: bool,
) -> Result<BroughtUp, Fault> {
    let view = view_of(saga);
    let (point, loss_seconds, loss_bytes, note) = chosen;
    let (view_of_step, position) = (view.clone(), point.position);
    let disks: Vec<DiskRow> = saga
        .step("open disks", |context| async move {
            let act = Act::OpenView(pb::OpenView {
                machine_id: context.machine.to_string(),
                view_id: view_of_step,
                position,
                keep,
            });
            let Answer::Opened(opened) = target(&context, "", act, QUICK).await? else {
                return Err(unexpected());
            };
            let disk = |disk: pb::Disk| {
                let id = disk.id.parse().map_err(|_| unexpected())?;
                Ok(DiskRow {
                    index: disk.index,
                    id,
                    name: disk.name,
                    size_bytes: disk.size_bytes,
                    endpoint: disk.endpoint,
                })
            };
            let disks = opened.disks.into_iter().map(disk).collect::<Result<Vec<_>, Fault>>()?;
            let count = disks.len();
            Ok(said(disks, format!("{count} served, as of that moment")))
        })
        .await?;
    let view_of_step = view.clone();
    saga.step("start machine", |context| async move {
        let row = row(&context)?;
        let act = Act::StartGuest(pb::StartGuest {
            view_id: view_of_step,
            guest: row.guest.clone(),
            machine_name: row.name,
            isolated: !keep,
        });
        target(&context, "", act, QUICK).await?;
        Ok(said((), if row.guest == "none" { "no guest: only its disks" } else { "it runs" }))
    })
    .await?;
    let view_of_step = view.clone();
    let probes: Vec<ProbeRow> = saga
        .step("probe", |context| async move {
            let act =
                Act::ProbeGuest(pb::ProbeGuest { view_id: view_of_step, timeout_seconds: PROBE_SECONDS });
            let patience = Duration::from_secs(u64::from(PROBE_SECONDS) + 30);
            let Answer::Probed(probed) = target(&context, "", act, patience).await? else {
                return Err(unexpected());
            };
            let probes: Vec<ProbeRow> = probed
                .probes
                .into_iter()
                .map(|probe| ProbeRow {
                    name: probe.name,
                    passed: probe.passed,
                    detail: continuum_model::untrusted::shown(&probe.detail),
                })
                .collect();
            if let Some(failed) = probes.iter().find(|probe| !probe.passed) {
                return Err(Fault::new(
                    FaultClass::Failed,
                    "probe.failed",
                    format!("probe {} failed: {}", failed.name, failed.detail),
                )
                .affects("this bring-up")
                .spares("the replica and replication")
                .remedy("try an earlier point: --point TIME"));
            }
            let names: Vec<&str> = probes.iter().map(|probe| probe.name.as_str()).collect();
            let detail = format!("passed: {}", names.join(", "));
            Ok(said(probes, detail))
        })
        .await?;
    let now = saga.estate.clock.wall();
    let up = BroughtUp { job: saga.job.id, view, at_us: now.micros(), point, disks, probes };
    if saga.job.outcome.is_none() {
        saga.job.outcome = Some(OutcomeRow {
            name: saga.job.machine_name.clone(),
            up: Some(up.clone()),
            rto_seconds: Some(now.since(Timestamp::from_micros(saga.job.created_us)).as_secs_f64()),
            loss_seconds: Some(loss_seconds),
            loss_bytes: Some(loss_bytes),
            note,
        });
    }
    let (machine, server, id) = (
        saga.job.machine.to_string(),
        saga.estate.machine(saga.job.machine)?.master_target,
        format!("{}/proof", saga.job.id),
    );
    if !up.point.id.is_empty() {
        let proofs = pb::Proofs { booted: Some(true), probed: Some(true), digest_equal: None };
        let act = Act::MarkPoint(pb::MarkPoint {
            machine_id: machine,
            point_id: up.point.id.clone(),
            pinned: None,
            proofs: Some(proofs),
        });
        if let Err(fault) = saga.registry.command(&server, &id, act, QUICK).await {
            tracing::warn!(code = fault.code, "the proof could not be put on record: {}", fault.message);
        }
    }
    Ok(up)
}

/// Takes a bring-up back. Its own steps, so that a crash in between continues it.
async fn take_down(saga: &mut Saga) -> Result<(), Fault> {
    let view = view_of(saga);
    saga.undoing();
    saga.step("take back", |context| async move {
        target(&context, "", Act::CloseView(pb::CloseView { view_id: view }), QUICK * 2).await?;
        Ok(said((), "nothing is left of it"))
    })
    .await
}

async fn test_failover(saga: &mut Saga, point: String) -> Result<(), Fault> {
    // Interrupted in the middle of its first step: what that step set is its own.
    let again = !saga.job.steps.is_empty();
    saga.step("check", |context| async move {
        let by = format!("job {}", context.job);
        context
            .estate
            .change(context.machine, &by, |row| {
                match &row.protection {
                    Some(ProtectionState::Protected { .. } | ProtectionState::Resync { .. }) => {}
                    Some(state) => {
                        return Err(not_now(&format!(
                            "a test failover is not possible while {}",
                            state.name()
                        )));
                    }
                    None => return Err(not_protected()),
                }
                if row.test_state != TestState::None && !(again && row.test_state == TestState::Starting) {
                    return Err(not_now(
                        "a test failover of this machine is there already; clean it up first",
                    ));
                }
                row.test_state = TestState::Starting;
                Ok(((), Some("test failover begins".into())))
            })
            .await?;
        Ok(said((), "ready"))
    })
    .await?;
    let brought_up = match resolve(saga, point).await {
        Ok(chosen) => bring_up(saga, chosen, false).await,
        Err(fault) => Err(fault),
    };
    match brought_up {
        Ok(up) => {
            saga.step("hand over", |context| async move {
                let by = format!("job {}", context.job);
                context
                    .estate
                    .change(context.machine, &by, |row| {
                        row.test_state = TestState::Running;
                        row.last_drill = Some((up.at_us, true));
                        row.test = Some(up);
                        Ok(((), Some("test failover runs, every probe passed".into())))
                    })
                    .await?;
                Ok(said((), "it runs until it is cleaned up; replication went on"))
            })
            .await
        }
        Err(fault) => {
            let undone = take_down(saga).await;
            let (id, by) = (saga.job.machine, format!("job {}", saga.job.id));
            let at = saga.estate.clock.wall().micros();
            let left = undone.is_err();
            saga.estate
                .change(id, &by, |row| {
                    row.test_state = if left { TestState::Failed } else { TestState::None };
                    row.last_drill = Some((at, false));
                    Ok(((), Some("test failover failed".into())))
                })
                .await?;
            Err(fault)
        }
    }
}

fn not_now(message: &str) -> Fault {
    Fault::new(FaultClass::NotReady, "order.not-now", message)
        .affects("this order; nothing was changed")
        .spares("the machine and its replica")
}

async fn cleanup(saga: &mut Saga) -> Result<(), Fault> {
    let view = saga
        .step("check", |context| async move {
            let by = format!("job {}", context.job);
            let view = context
                .estate
                .change(context.machine, &by, |row| {
                    if row.test_state == TestState::None {
                        return Err(not_now("there is no test failover to clean up"));
                    }
                    row.test_state = TestState::Cleaning;
                    Ok((row.test.as_ref().map(|test| test.view.clone()).unwrap_or_default(), None))
                })
                .await?;
            Ok(said(view, "found"))
        })
        .await?;
    saga.step("stop and remove", |context| async move {
        if view.is_empty() {
            return Ok(said((), "nothing had been brought up"));
        }
        target(&context, "", Act::CloseView(pb::CloseView { view_id: view }), QUICK * 2).await?;
        Ok(said((), "guest, disks and sockets are gone"))
    })
    .await?;
    saga.step("forget", |context| async move {
        let by = format!("job {}", context.job);
        context
            .estate
            .change(context.machine, &by, |row| {
                (row.test_state, row.test) = (TestState::None, None);
                Ok(((), Some("test failover cleaned up".into())))
            })
            .await?;
        Ok(said((), "nothing is left"))
    })
    .await
}

async fn failover(saga: &mut Saga, point: String) -> Result<(), Fault> {
    let again = !saga.job.steps.is_empty();
    saga.step("check", |context| async move {
        let begun = matches!(row(&context)?.protection, Some(ProtectionState::FailingOver { .. }));
        if !(again && begun) {
            moves(&context, Event::FailOver { kind: FailoverKind::Unplanned }, "unplanned failover begins")
                .await?;
        }
        Ok(said((), "ready"))
    })
    .await?;
    // From here on a failure goes back to where it was.
    match fail_over_now(saga, point).await {
        Ok(up) => {
            saga.step("hand over", |context| async move {
                let by = format!("job {}", context.job);
                context
                    .estate
                    .change(context.machine, &by, |row| {
                        let state = row.protection.clone().ok_or_else(not_protected)?;
                        if matches!(state, ProtectionState::FailingOver { .. }) {
                            row.protection =
                                Some(state.next(Event::BroughtUp).map_err(|error| refused(&error))?);
                        }
                        row.failed_over = Some(up);
                        Ok(((), Some("failed over; commit it, or it can still be undone".into())))
                    })
                    .await?;
                Ok(said((), "it runs at the recovery site; waiting for commit"))
            })
            .await
        }
        Err(fault) => {
            let _ = take_down(saga).await;
            saga.step("go back", |context| async move {
                let by = format!("job {}", context.job);
                context
                    .estate
                    .change(context.machine, &by, |row| {
                        let state = row.protection.clone().ok_or_else(not_protected)?;
                        if matches!(state, ProtectionState::FailingOver { .. }) {
                            row.protection =
                                Some(state.next(Event::FailOverFailed).map_err(|error| refused(&error))?);
                        }
                        Ok(((), Some("the failover failed; the machine is protected as before".into())))
                    })
                    .await?;
                Ok(said((), "as before; replication goes on"))
            })
            .await?;
            Err(fault)
        }
    }
}

async fn fail_over_now(saga: &mut Saga, point: String) -> Result<BroughtUp, Fault> {
    saga.step("fence the source", |context| async move {
        let by = format!("job {}", context.job);
        // The new epoch is on record here before any server hears of it.
        let epoch = context
            .estate
            .change(context.machine, &by, |row| {
                row.epoch = Epoch(row.epoch.0 + 1);
                Ok((row.epoch, None))
            })
            .await?;
        let act =
            Act::FenceReplica(pb::FenceReplica { machine_id: context.machine.to_string(), epoch: epoch.0 });
        target(&context, "", act, QUICK).await?;
        Ok(said((), format!("epoch {epoch}: the old source is refused from now on, whenever it returns")))
    })
    .await?;
    let chosen = resolve(saga, point).await?;
    bring_up(saga, chosen, true).await
}

async fn commit(saga: &mut Saga) -> Result<(), Fault> {
    saga.step("commit", |context| async move {
        let committed = row(&context)?.protection == Some(ProtectionState::Committed);
        if !committed {
            moves(&context, Event::Commit, "the failover is final").await?;
        }
        Ok(said((), "active at the recovery site; the choice of point has ended"))
    })
    .await
}

async fn verify(saga: &mut Saga) -> Result<(), Fault> {
    let point = point_of(saga);
    let point_of_step = point.clone();
    let (source, position): (Vec<String>, u64) = saga
        .step("digest the source", |context| async move {
            let act = Act::SourceDigest(pb::SourceDigest { point_id: point_of_step });
            match context.registry.command(&context.machine.to_string(), &context.id, act, LONG).await? {
                Answer::Digests(digests) => {
                    let list = digests.disks.into_iter().map(|disk| disk.digest).collect();
                    Ok(said((list, digests.position), "as of one barrier, while the machine ran on"))
                }
                _ => Err(unexpected()),
            }
        })
        .await?;
    durable(saga, position).await?;
    let point_of_step = point.clone();
    let replica: Vec<String> = saga
        .step("digest the replica", |context| async move {
            let act = Act::ReplicaDigest(pb::ReplicaDigest {
                machine_id: context.machine.to_string(),
                position,
                point_id: point_of_step,
            });
            match target(&context, "", act, LONG).await? {
                Answer::Digests(digests) => {
                    let list = digests.disks.into_iter().map(|disk| disk.digest).collect();
                    Ok(said(list, "every byte verified on the way"))
                }
                _ => Err(unexpected()),
            }
        })
        .await?;
    let disks = saga.estate.machine(saga.job.machine)?.disks;
    saga.job.verified = disks
        .iter()
        .zip(source.iter().zip(&replica))
        .map(|(disk, (source, replica))| (disk.name.clone(), source.clone(), replica.clone()))
        .collect();
    let equal = source == replica && source.len() == disks.len();
    saga.step("compare", |context| async move {
        let proofs = pb::Proofs { digest_equal: Some(equal), ..Default::default() };
        let act = Act::MarkPoint(pb::MarkPoint {
            machine_id: context.machine.to_string(),
            point_id: point,
            pinned: None,
            proofs: Some(proofs),
        });
        target(&context, "", act, QUICK).await?;
        if equal {
            return Ok(said((), "equal, bit for bit"));
        }
        Err(Fault::new(
            FaultClass::Failed,
            "verify.different",
            "source and replica differ at the same moment",
        )
        .affects("this machine's replica: do not rely on it")
        .spares("other machines")
        .remedy("end and begin its protection anew, and report this: it must not happen"))
    })
    .await
}

/// How long the same kind of job took on this machine before: the median of the last five.
pub fn forecast(estate: &Estate, order: &Order, machine: continuum_model::id::MachineId) -> Option<f64> {
    let mut spans: Vec<f64> = estate
        .jobs()
        .iter()
        .rev()
        .filter(|job| {
            job.machine == machine && job.order.kind() == order.kind() && job.state == JobState::Succeeded
        })
        .filter_map(|job| Some((job.ended_us? - job.created_us) as f64 / 1e6))
        .take(5)
        .collect();
    spans.sort_by(f64::total_cmp);
    (!spans.is_empty()).then(|| spans[spans.len() / 2])
}

/// A job that was interrupted, or a new one, carried by a task of its own.
pub fn begin(
    estate: &Arc<Estate>,
    registry: &Arc<crate::registry::Registry>,
    tasks: &tokio_util::task::TaskTracker,
    stop: &tokio_util::sync::CancellationToken,
    job: JobRow,
) {
    let saga = Saga::new(estate.clone(), registry.clone(), job);
    let stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            // A vault that stops leaves the job as it is on record; the next start takes it up.
            () = stop.cancelled() => {}
            () = carry(saga) => {}
        }
    });
}

/// For making ids.
pub fn new_job_id(estate: &Estate) -> continuum_model::id::JobId {
    continuum_model::id::JobId::make(estate.clock.wall(), &mut SystemEntropy)
}
