//! Makes the changes of rows that a step's end brings, with the events that tell of them.
//!
//! The only road by which a protection's state changes.

use super::plan::Write;
use crate::core::Core;
use crate::store::inventory::{MachineRow, Protection};
use crate::store::{StoreError, Tx};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::protection::{Event, ProtectionState};
use continuum_model::untrusted::shown;

/// Why a change was not made.
pub(crate) enum Refused {
    /// The state does not allow it (any more).
    Illegal(Fault),
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Refused {
    /// For people.
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Illegal(fault) => fault,
            Self::Store(error) => error.fault(),
        }
    }
}

/// Makes the changes to a machine's rows in this transaction. All or, with an error, none: the caller then
/// drops the transaction.
pub(crate) async fn make(
    core: &Core,
    tx: &mut Tx,
    machine: MachineId,
    writes: Vec<Write>,
    by: &str,
) -> Result<(), Refused> {
    if writes.is_empty() {
        return Ok(());
    }
    let gone = || {
        Refused::Illegal(
            Fault::new(FaultClass::NotFound, "machine.unknown", "the machine is no longer registered")
                .affects("this job")
                .spares("everything else"),
        )
    };
    let mut row = tx.machine(machine).await?.ok_or_else(gone)?;
    let before = row.clone();
    for write in writes {
        match write {
            Write::Point(point) => {
                tx.save_point(machine, &point).await?;
            }
            Write::ForgetPoints => {
                tx.forget_points(machine, None).await?;
            }
            Write::Forget { points } => {
                row.protection = None;
                if points {
                    tx.forget_points(machine, None).await?;
                }
            }
            Write::Drill { passed } => {
                row.last_drill = Some(core.world.now());
                row.last_drill_passed = passed;
            }
            Write::Epoch => row.epoch += 1,
            Write::ProcessServer(server) => protect(&mut row)?.process_server = server,
            Write::Protect(protection) => row.protection = Some(*protection),
            Write::Move(event) => protect(&mut row)?.step(event, core, true)?,
            Write::MoveIfLegal(event) => {
                if let Some(protection) = &mut row.protection {
                    protection.step(event, core, false)?;
                }
            }
            Write::Policy(policy) => protect(&mut row)?.policy = policy,
            Write::Fenced(fenced) => protect(&mut row)?.fenced = fenced,
            Write::Test(state) => protect(&mut row)?.test = state,
            Write::TestRun(run) => protect(&mut row)?.test_run = run.map(|run| *run),
            Write::StartAt(at) => protect(&mut row)?.start_at = at,
            Write::ResyncNow(now) => protect(&mut row)?.resync_now = now,
            Write::BroughtDown => protect(&mut row)?.failed_over = None,
            Write::FailedOver(run) => protect(&mut row)?.failed_over = Some(*run),
        }
    }
    if row == before {
        return Ok(());
    }
    for (kind, text) in told(core, &before, &row) {
        tx.add_event(core.event(kind, &row.name, row.id, text, by)).await?;
    }
    tx.save_machine(row).await?;
    Ok(())
}

impl Protection {
    fn step(&mut self, event: Event, core: &Core, must: bool) -> Result<(), Refused> {
        // What a person ordered is not put off until a window.
        let ordered = matches!(event, Event::CameHome | Event::CancelFailover);
        match self.state.clone().next(event) {
            Ok(state) => {
                if state.name() != self.state.name() || state.is_paused() != self.state.is_paused() {
                    self.since = core.world.now();
                }
                self.state = state;
                self.resync_now = match self.state {
                    ProtectionState::Resync { .. } => self.resync_now || ordered,
                    _ => false,
                };
                if matches!(self.state, ProtectionState::Protected { .. }) {
                    self.start_at = None;
                }
                Ok(())
            }
            Err(_) if !must => Ok(()),
            Err(illegal) => Err(Refused::Illegal(
                Fault::new(FaultClass::NotReady, "protection.illegal-move", illegal.to_string())
                    .affects("this order")
                    .spares("the state is as it was")
                    .remedy("look at the machine's present state"),
            )),
        }
    }
}

fn protect(row: &mut MachineRow) -> Result<&mut Protection, Refused> {
    let name = shown(&row.name);
    row.protection.as_mut().ok_or_else(|| {
        Refused::Illegal(
            Fault::new(
                FaultClass::NotReady,
                "machine.unprotected",
                format!("{name} is not protected any more"),
            )
            .affects("this job")
            .spares("everything else"),
        )
    })
}

/// What changed, in words.
fn told(core: &Core, before: &MachineRow, after: &MachineRow) -> Vec<(&'static str, String)> {
    let mut told = Vec::new();
    let words = |row: &MachineRow| {
        row.protection.as_ref().map_or_else(
            || "unprotected".to_owned(),
            |protection| {
                let paused = match protection.start_at {
                    Some(at) if protection.state.is_paused() => format!(", begins at {at}"),
                    _ if protection.state.is_paused() => ", paused".into(),
                    _ => String::new(),
                };
                format!("{}{paused}", protection.state.name())
            },
        )
    };
    let (was, is) = (words(before), words(after));
    if was != is {
        let why = match after.protection.as_ref().map(|protection| &protection.state) {
            Some(ProtectionState::Resync { reason, .. }) => format!(": {reason}"),
            _ => String::new(),
        };
        told.push(("state", format!("{was} → {is}{why}")));
    }
    let test = |row: &MachineRow| row.protection.as_ref().map_or("none", |protection| protection.test.name());
    if test(before) != test(after) {
        told.push(("test", format!("test failover {}", test(after))));
    }
    let relay = |row: &MachineRow| row.protection.as_ref().map(|protection| protection.process_server);
    if let (Some(was), Some(is)) = (relay(before), relay(after))
        && was != is
    {
        let estate = core.estate();
        let name = |server| shown(&estate.server_name(server));
        told.push(("process-server", format!("relayed by {} → {}", name(was), name(is))));
    }
    if before.epoch != after.epoch {
        told.push(("epoch", format!("epoch {} issued: earlier writers are refused", after.epoch)));
    }
    told
}
