//! An agent that compares asks for sums of its replica; the vault asks the master target that keeps it.
//!
//! An agent gets those of its own machine only, one answer at a time: while one is under way, a second request is
//! refused. Nothing is stored here, and nothing of it is remembered.

use crate::core::Core;
use crate::estate::machine_of;
use continuum_model::digest::NODES_MAX;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_proto::v1 as pb;
use continuum_wire::grpc::fault_to_proto;
use pb::command::Act;
use pb::{command_result, vault_message};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a target may take: it may have to read what was not summed yet.
const DEADLINE: Duration = Duration::from_secs(60);

/// Machines whose agent waits for sums.
#[derive(Default)]
pub(crate) struct UnderWay(Mutex<HashSet<MachineId>>);

impl UnderWay {
    fn begin(&self, machine: MachineId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(machine)
    }
    fn end(&self, machine: MachineId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
    }
}

/// Takes an agent's request, and answers it in its session when the target has.
pub(crate) fn relay(core: &Arc<Core>, agent: ServerId, request: pb::SumsRequest) {
    let machine = machine_of(agent);
    if !core.sums.begin(machine) {
        let fault = refused("one request is under way already");
        return answer(core, agent, request.id, Err(fault));
    }
    let core = core.clone();
    let task = core.clone();
    core.tasks.spawn(async move {
        let asked = tokio::select! {
            asked = ask(&task, machine, &request) => asked,
            () = task.stop.cancelled() => Err(refused("the vault stops")),
        };
        task.sums.end(machine);
        answer(&task, agent, request.id, asked);
    });
}

async fn ask(core: &Core, machine: MachineId, request: &pb::SumsRequest) -> Result<pb::Sums, Fault> {
    if u64::from(request.count) > NODES_MAX {
        return Err(refused("more is asked for than is told at once"));
    }
    let target = {
        let estate = core.estate();
        let protection = estate.machines.get(&machine).and_then(|entry| entry.row.protection.as_ref());
        protection.map(|protection| protection.master_target)
    };
    let target = target.ok_or_else(|| refused("this machine is not protected"))?;
    if !core.estate().connected(target) {
        return Err(refused("the master target is not connected to the vault"));
    }
    let act = Act::ReplicaSums(pb::ReplicaSums {
        machine_id: machine.to_string(),
        disk: request.disk,
        level: request.level,
        first: request.first,
        count: request.count,
    });
    let command =
        pb::Command { id: format!("sums/{machine}/{}", core.world.stamp().micros()), act: Some(act) };
    match core.hands.command(target, command, DEADLINE, Arc::new(|_, _| {})).await? {
        command_result::Result::Sums(sums) => Ok(sums),
        _ => Err(refused("the master target answered something else than was asked")),
    }
}

fn answer(core: &Core, agent: ServerId, id: u64, asked: Result<pb::Sums, Fault>) {
    let (fault, sums) = match asked {
        Ok(sums) => (None, Some(sums)),
        Err(fault) => (Some(fault_to_proto(&fault)), None),
    };
    let reply = pb::SumsReply { id, fault, sums };
    core.sessions.reply(agent, vault_message::Message::Sums(reply));
}

fn refused(why: &str) -> Fault {
    Fault::new(FaultClass::NotReady, "sums.refused", format!("the replica's sums cannot be told: {why}"))
        .affects("this comparison: everything that may differ is sent")
        .spares("replication and the machine's writes")
        .remedy("nothing: it only takes longer")
}
