//! First copies that were put off begin when their time has come.

use super::plan::Write;
use super::writes;
use crate::core::Core;
use crate::store::StoreError;
use continuum_model::id::MachineId;
use continuum_model::protection::{Event, ProtectionState};

/// Begins what is due. Called at every beat; what was due while no vault ran begins with the first one.
pub(crate) async fn begin_due(core: &Core) -> Result<(), StoreError> {
    let now = core.world.now();
    let due: Vec<MachineId> = core
        .estate()
        .machines
        .values()
        .filter(|entry| {
            entry.row.protection.as_ref().is_some_and(|protection| {
                protection.state == ProtectionState::InitialReplication { paused: true }
                    && protection.start_at.is_some_and(|at| at <= now)
            })
        })
        .map(|entry| entry.row.id)
        .collect();
    for machine in due {
        let mut tx = core.store.begin().await?;
        let begun = vec![Write::StartAt(None), Write::MoveIfLegal(Event::Resume)];
        match writes::make(core, &mut tx, machine, begun, "").await {
            Ok(()) => core.commit(tx).await?,
            Err(writes::Refused::Store(error)) => return Err(error),
            // Somebody else was faster.
            Err(writes::Refused::Illegal(_)) => {}
        }
    }
    Ok(())
}
