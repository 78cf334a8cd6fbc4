//! `get`: what there is, worst first.

use super::args::{Get, Noun};
use super::columns::{self, Names, point_row, row};
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, Format, human, json};
use super::vault::Vault;
use super::{Setting, contract};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use std::cmp::Ordering;
use std::time::Duration;

/// Points listed where no limit is given.
const POINTS_DEFAULT: u32 = 1000;
/// Points asked for at once.
const POINTS_PAGE: u32 = 1000;
/// Jobs and events listed where no limit is given.
const PAST_DEFAULT: u32 = 200;
/// A lost connection is tried again this often.
const AGAIN_EVERY: Duration = Duration::from_millis(500);
/// A stream that says nothing for this long is dead: the vault ticks more often.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Runs `get`.
pub async fn run(setting: &Setting, get: &Get) -> Result<(), Fault> {
    let points_only = get.since.is_some() || get.until.is_some();
    if points_only && get.noun != Noun::Points {
        return Err(usage(format!(
            "--since and --until are for points; {} have no such range",
            get.noun.plural()
        )));
    }
    if get.watch {
        return watch(setting, get).await;
    }
    let mut vault = Vault::connect(&setting.choice).await?;
    if get.noun == Noun::Points {
        return points(setting, get, &mut vault).await;
    }
    let name = get.name.as_deref().unwrap_or_default();
    let mut entities = vault.snapshot(&[kind_of(get.noun)], name, get.limit.unwrap_or(PAST_DEFAULT)).await?;
    if entities.is_empty() && !name.is_empty() {
        return Err(unknown(get.noun, name));
    }
    worst_first(&mut entities);
    let now = SystemClock::default().wall();
    let docs = || entities.iter().map(doc).collect();
    let blank = doc(&blank(get.noun));
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| columns::table(get.noun, &entities, wide, now))
    })
}

/// There is none of that name.
pub fn unknown(noun: Noun, name: &str) -> Fault {
    Fault::new(
        FaultClass::NotFound,
        &format!("{}.unknown", noun.singular()),
        format!("there is no {} called {}", noun.singular(), shown(name)),
    )
    .spares("nothing was changed")
    .remedy(format!("see `continuum get {}`", noun.plural()))
}

fn usage(message: String) -> Fault {
    Fault::new(FaultClass::Usage, "usage", message)
        .spares("nothing was changed")
        .remedy("see `continuum get --help`")
}

/// The kind on the wire. Points have none: they are asked of their machine.
pub const fn kind_of(noun: Noun) -> pb::Kind {
    match noun {
        Noun::Sites => pb::Kind::Site,
        Noun::Machines => pb::Kind::Machine,
        Noun::Policies => pb::Kind::Policy,
        Noun::Jobs => pb::Kind::Job,
        Noun::Alerts => pb::Kind::Alert,
        Noun::Servers => pb::Kind::Server,
        Noun::Events => pb::Kind::Event,
        Noun::Points => pb::Kind::Unspecified,
    }
}

fn blank(noun: Noun) -> Entity {
    match noun {
        Noun::Sites => Entity::Site(pb::Site::default()),
        Noun::Machines | Noun::Points => Entity::Machine(pb::Machine::default()),
        Noun::Policies => Entity::Policy(pb::Policy::default()),
        Noun::Jobs => Entity::Job(pb::Job::default()),
        Noun::Alerts => Entity::Alert(pb::Alert::default()),
        Noun::Servers => Entity::Server(pb::Server::default()),
        Noun::Events => Entity::Event(pb::Event::default()),
    }
}

/// An entity in the shape of the contract.
pub fn doc(entity: &Entity) -> Doc {
    match entity {
        Entity::Site(site) => contract::site(site),
        Entity::Server(server) => contract::server(server),
        Entity::Machine(machine) => contract::machine(machine),
        Entity::Policy(policy) => contract::policy(policy),
        Entity::Job(job) => contract::order(job),
        Entity::Alert(alert) => contract::alert(alert),
        Entity::Event(event) => contract::event(event),
    }
}

/// What needs a person comes first; then by name, or newest first.
pub fn worst_first(entities: &mut [Entity]) {
    entities.sort_by(|a, b| match (a, b) {
        (Entity::Machine(a), Entity::Machine(b)) => health_rank(&a.health)
            .cmp(&health_rank(&b.health))
            .then_with(|| b.protected.cmp(&a.protected))
            .then_with(|| b.rpo_seconds.partial_cmp(&a.rpo_seconds).unwrap_or(Ordering::Equal))
            .then_with(|| (&a.name, &a.id).cmp(&(&b.name, &b.id))),
        (Entity::Server(a), Entity::Server(b)) => health_rank(&a.health)
            .cmp(&health_rank(&b.health))
            .then_with(|| a.connected.cmp(&b.connected))
            .then_with(|| (&a.role, &a.name, &a.id).cmp(&(&b.role, &b.name, &b.id))),
        (Entity::Alert(a), Entity::Alert(b)) => {
            (a.cleared_us.is_some(), a.acknowledged, health_rank(&a.severity))
                .cmp(&(b.cleared_us.is_some(), b.acknowledged, health_rank(&b.severity)))
                .then_with(|| b.opened_us.cmp(&a.opened_us))
        }
        (Entity::Job(a), Entity::Job(b)) => super::follow::is_over(a)
            .cmp(&super::follow::is_over(b))
            .then_with(|| (b.created_us, &b.id).cmp(&(a.created_us, &a.id))),
        (Entity::Event(a), Entity::Event(b)) => (b.time_us, b.id).cmp(&(a.time_us, a.id)),
        (Entity::Site(a), Entity::Site(b)) => (&a.name, &a.id).cmp(&(&b.name, &b.id)),
        (Entity::Policy(a), Entity::Policy(b)) => (&a.name, &a.id).cmp(&(&b.name, &b.id)),
        _ => Ordering::Equal,
    });
}

fn health_rank(health: &str) -> u8 {
    match health {
        "critical" => 0,
        "warning" => 1,
        "healthy" => 3,
        "not-applicable" => 4,
        _ => 2,
    }
}

async fn points(setting: &Setting, get: &Get, vault: &mut Vault) -> Result<(), Fault> {
    let Some(machine) = get.name.as_deref().filter(|name| !name.is_empty()) else {
        return Err(usage("points of which machine? write `continuum get points MACHINE`".into()));
    };
    let wanted = get.limit.unwrap_or(POINTS_DEFAULT);
    let mut points: Vec<pb::Point> = Vec::new();
    let mut gaps = Vec::new();
    let mut more = true;
    while more && points.len() < wanted as usize {
        let left = wanted - u32::try_from(points.len()).unwrap_or(wanted);
        let reply = vault
            .timeline(pb::TimelineRequest {
                machine: machine.to_owned(),
                from_us: get.since,
                to_us: get.until,
                buckets: 0,
                points_max: left.min(POINTS_PAGE),
                before_id: points.last().map(|point| point.id.clone()).unwrap_or_default(),
            })
            .await?;
        if points.is_empty() {
            gaps = reply.gaps;
        }
        more = reply.more && !reply.points.is_empty();
        points.extend(reply.points);
    }
    points.truncate(wanted as usize);
    let now = SystemClock::default().wall();
    let docs = || points.iter().map(contract::point).collect();
    let blank = contract::point(&pb::Point::default());
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| {
            let mut table = Table::new(columns::head(Noun::Points, wide), "No points yet.").whole(wide);
            points.iter().for_each(|point| table.row(point_row(point, wide, now)));
            table
        })?;
        if !setting.style.format.for_programs() {
            for gap in &gaps {
                writeln!(
                    out,
                    "No moment between {} and {} can be brought up: {}",
                    human::moment(Some(gap.from_us)),
                    human::moment(Some(gap.to_us)),
                    shown(&gap.reason)
                )?;
            }
        }
        Ok(())
    })?;
    if more {
        setting.say(&format!("older points are not listed: use --limit, or --until with the time of the last one ({wanted} shown)"));
    }
    Ok(())
}

/// Tells every change as it happens, over restarts of the vault, until nobody reads.
async fn watch(setting: &Setting, get: &Get) -> Result<(), Fault> {
    if get.noun == Noun::Points {
        return Err(usage("points cannot be watched; watch events: `continuum get events --watch`".into()));
    }
    if setting.style.format == Format::Csv {
        return Err(usage("changes are written as lines or as JSON, not as CSV".into()));
    }
    let mut vault = Vault::connect(&setting.choice).await?;
    let mut seen = pb::WatchRequest { kinds: vec![kind_of(get.noun) as i32], ..Default::default() };
    loop {
        match tell_changes(setting, get, vault, &mut seen).await {
            Ok(()) => return Ok(()),
            Err(fault) if fault.class != FaultClass::NotConnected => return Err(fault),
            Err(fault) => setting.say(&format!("connection lost, trying again: {}", fault.message)),
        }
        vault = loop {
            tokio::time::sleep(AGAIN_EVERY).await;
            if let Ok(vault) = Vault::connect(&setting.choice).await {
                break vault;
            }
        };
        setting.say("connected again");
    }
}

/// Ends well when nobody reads any more.
async fn tell_changes(
    setting: &Setting,
    get: &Get,
    mut vault: Vault,
    seen: &mut pb::WatchRequest,
) -> Result<(), Fault> {
    use pb::watch_event::Event;
    let only = get.name.as_deref();
    let programs = setting.style.format.for_programs();
    let mut stream = vault.watch(seen.clone()).await?;
    loop {
        let message = match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
            Ok(Ok(Some(message))) => message,
            Ok(Err(status)) => return Err(continuum_wire::grpc::fault_of(&status)),
            Ok(Ok(None)) | Err(_) => {
                return Err(Fault::new(
                    FaultClass::NotConnected,
                    "vault.stream",
                    "the vault says nothing any more",
                ));
            }
        };
        seen.after_sequence = message.sequence;
        let line = match message.event {
            Some(Event::SnapshotBegin(begin)) => {
                seen.run = begin.run;
                continue;
            }
            Some(Event::Changed(pb::Entity { entity: Some(entity) })) => {
                if only.is_some_and(|only| !is_called(&entity, only)) {
                    continue;
                }
                if programs {
                    json::line(&doc(&entity))
                } else {
                    let wide = setting.style.format == Format::Wide;
                    let cells = row(&entity, wide, SystemClock::default().wall(), &Names::default());
                    cells.iter().map(Cell::text).collect::<Vec<_>>().join("  ")
                }
            }
            Some(Event::Removed(removed)) if programs => {
                json::line(&Doc::Map(vec![("removed", removed.id.into())]))
            }
            Some(Event::Removed(removed)) => format!("removed  {}", shown(&removed.id)),
            Some(Event::Changed(_) | Event::SnapshotEnd(_) | Event::Tick(_)) | None => continue,
        };
        let mut gone = false;
        setting.write(|out| {
            let written = writeln!(out, "{line}").and_then(|()| out.flush());
            gone = written.is_err();
            written
        })?;
        if gone {
            return Ok(());
        }
    }
}

/// Whether an entity has this name or id.
pub fn is_called(entity: &Entity, name: &str) -> bool {
    let (id, called) = match entity {
        Entity::Site(site) => (site.id.as_str(), site.name.as_str()),
        Entity::Server(server) => (server.id.as_str(), server.name.as_str()),
        Entity::Machine(machine) => (machine.id.as_str(), machine.name.as_str()),
        Entity::Policy(policy) => (policy.id.as_str(), policy.name.as_str()),
        Entity::Job(job) => (job.id.as_str(), job.machine.as_str()),
        Entity::Alert(alert) => (alert.id.as_str(), alert.object.as_str()),
        Entity::Event(event) => return event.object == name || event.object_id == name,
    };
    id == name || called == name
}
