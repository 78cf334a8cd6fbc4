//! Everything that the vault told, as it was told last.
//!
//! Lives here: taking changes and snapshots, and making every text from outside harmless on the way in, so
//! that nothing behind this file needs to think of it. Lives elsewhere: what is made of it (`rows`, `ui`).
//!
//! Invariants: a snapshot replaces the whole in one instant, never piece by piece. `shape` changes whenever
//! a row's place may have changed.

use continuum_model::untrusted::{is_dangerous, shown};
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use pb::watch_event::Event;
use std::collections::{HashMap, HashSet, VecDeque};

/// So many events are kept.
const EVENTS_MAX: usize = 2000;

/// Things of one kind, by id, in a place that stays until one is removed.
#[derive(Debug, Clone)]
pub struct Shelf<T> {
    items: Vec<T>,
    places: HashMap<String, usize>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { items: Vec::new(), places: HashMap::new() }
    }
}

impl<T> Shelf<T> {
    /// The thing with this id.
    pub fn get(&self, id: &str) -> Option<&T> {
        self.places.get(id).and_then(|at| self.items.get(*at))
    }
    /// The thing at a place.
    pub fn at(&self, place: usize) -> Option<&T> {
        self.items.get(place)
    }
    /// All of them, by place.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.items.iter()
    }
    /// How many.
    pub const fn len(&self) -> usize {
        self.items.len()
    }
    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
    /// Puts one in. Whether its place is new.
    fn put(&mut self, id: &str, item: T) -> bool {
        match self.places.get(id).copied().and_then(|at| self.items.get_mut(at)) {
            Some(old) => {
                *old = item;
                false
            }
            None => {
                self.places.insert(id.to_owned(), self.items.len());
                self.items.push(item);
                true
            }
        }
    }
    fn remove(&mut self, id: &str, id_of: impl Fn(&T) -> &str) -> bool {
        let Some(at) = self.places.remove(id) else { return false };
        self.items.swap_remove(at);
        if let Some(moved) = self.items.get(at) {
            self.places.insert(id_of(moved).to_owned(), at);
        }
        true
    }
}

/// What is known.
#[derive(Debug, Clone, Default)]
pub struct Estate {
    /// Places where machines run or are recovered.
    pub sites: Shelf<pb::Site>,
    /// Processes of ours.
    pub servers: Shelf<pb::Server>,
    /// Machines and their protections.
    pub machines: Shelf<pb::Machine>,
    /// Policies.
    pub policies: Shelf<pb::Policy>,
    /// Recovery plans, by name.
    pub plans: Shelf<pb::Plan>,
    /// Who is let in, as it was told last.
    pub access: pb::AccessReply,
    /// The audit log as far as it was asked for, newest first.
    pub audit: Vec<pb::AuditLine>,
    /// The keys of those lines.
    pub audit_keys: Vec<String>,
    /// Jobs, running and past.
    pub jobs: Shelf<pb::Job>,
    /// Alerts, open and cleared.
    pub alerts: Shelf<pb::Alert>,
    /// The newest events, oldest first.
    pub events: VecDeque<pb::Event>,
    /// Rises when rows come, go or move.
    pub shape: u64,
    /// Rises with every change.
    pub revision: u64,
    /// Ids of machines whose name was changed to be shown.
    odd_names: HashSet<String>,
    arriving: Option<Box<Estate>>,
}

/// What came of a batch of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    /// A snapshot was completed.
    pub snapshot: bool,
    /// So many things were told.
    pub changes: usize,
    /// The vault's own clock, where it told it.
    pub vault_time_us: Option<i64>,
}

impl Estate {
    /// Takes changes, in order. `changed` hears of every job as it was and as it is.
    pub fn apply(
        &mut self,
        events: Vec<pb::WatchEvent>,
        mut changed: impl FnMut(Option<&pb::Job>, &pb::Job),
    ) -> Applied {
        let mut applied = Applied::default();
        for event in events {
            match event.event {
                Some(Event::SnapshotBegin(_)) => self.arriving = Some(Box::default()),
                Some(Event::SnapshotEnd(_)) => {
                    if let Some(mut arrived) = self.arriving.take() {
                        arrived.shape = self.shape + 1;
                        arrived.revision = self.revision + 1;
                        for job in arrived.jobs.iter() {
                            if let Some(before) = self.jobs.get(&job.id).filter(|before| *before != job) {
                                changed(Some(before), job);
                            }
                        }
                        *self = *arrived;
                        applied.snapshot = true;
                    }
                }
                Some(Event::Changed(entity)) => {
                    applied.changes += 1;
                    if let Some(entity) = entity.entity {
                        match &mut self.arriving {
                            Some(arriving) => arriving.take(entity, |_, _| ()),
                            None => self.take(entity, &mut changed),
                        }
                    }
                }
                Some(Event::Removed(removed)) => {
                    applied.changes += 1;
                    match &mut self.arriving {
                        Some(arriving) => arriving.drop_one(&removed),
                        None => self.drop_one(&removed),
                    }
                }
                Some(Event::Tick(tick)) => applied.vault_time_us = Some(tick.vault_time_us),
                None => {}
            }
        }
        applied
    }

    fn take(&mut self, entity: Entity, mut changed: impl FnMut(Option<&pb::Job>, &pb::Job)) {
        self.revision += 1;
        let new = match entity {
            Entity::Site(mut site) => {
                harmless([&mut site.name, &mut site.fabric]);
                self.sites.put(&site.id.clone(), site)
            }
            Entity::Server(mut server) => {
                harmless_server(&mut server);
                self.servers.put(&server.id.clone(), server)
            }
            Entity::Machine(mut machine) => {
                if machine.name.chars().any(is_dangerous) {
                    self.odd_names.insert(machine.id.clone());
                } else {
                    self.odd_names.remove(&machine.id);
                }
                harmless_machine(&mut machine);
                self.machines.put(&machine.id.clone(), machine)
            }
            Entity::Policy(policy) if policy.deleted => {
                let known = self.policies.remove(&policy.id, |policy| &policy.id);
                self.shape += u64::from(known);
                false
            }
            Entity::Policy(mut policy) => {
                harmless([&mut policy.name]);
                self.policies.put(&policy.id.clone(), policy)
            }
            Entity::Plan(plan) if plan.deleted => {
                let known = self.plans.remove(&plan.name, |plan| &plan.name);
                self.shape += u64::from(known);
                false
            }
            Entity::Plan(mut plan) => {
                // The vault takes plain names only: they are ids, too.
                harmless([&mut plan.name, &mut plan.description]);
                for group in &mut plan.groups {
                    harmless([&mut group.name, &mut group.manual]);
                    group.depends_on.iter_mut().for_each(|name| harmless([name]));
                    group.machines.iter_mut().for_each(|machine| harmless([&mut machine.name]));
                }
                plan.problems.iter_mut().for_each(|problem| harmless([problem]));
                self.plans.put(&plan.name.clone(), plan)
            }
            // No screen of their own yet: a machine says which one it is in.
            Entity::Group(_) => false,
            Entity::Job(mut job) => {
                harmless_job(&mut job);
                changed(self.jobs.get(&job.id), &job);
                self.jobs.put(&job.id.clone(), job)
            }
            Entity::Alert(mut alert) => {
                harmless([
                    &mut alert.severity,
                    &mut alert.code,
                    &mut alert.object_kind,
                    &mut alert.object,
                    &mut alert.text,
                    &mut alert.cause,
                    &mut alert.remedy,
                ]);
                self.alerts.put(&alert.id.clone(), alert)
            }
            Entity::Event(mut event) => {
                harmless([&mut event.kind, &mut event.object, &mut event.text, &mut event.by]);
                self.put_event(event);
                true
            }
        };
        if new {
            self.shape += 1;
        }
    }

    fn put_event(&mut self, event: pb::Event) {
        let at = self.events.partition_point(|known| known.id < event.id);
        match self.events.get_mut(at) {
            Some(known) if known.id == event.id => *known = event,
            _ => self.events.insert(at, event),
        }
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    fn drop_one(&mut self, removed: &pb::Removed) {
        self.revision += 1;
        self.shape += 1;
        let id = &removed.id;
        match pb::Kind::try_from(removed.kind).unwrap_or(pb::Kind::Unspecified) {
            pb::Kind::Site => self.sites.remove(id, |site| &site.id),
            pb::Kind::Server => self.servers.remove(id, |server| &server.id),
            pb::Kind::Machine => self.machines.remove(id, |machine| &machine.id),
            pb::Kind::Policy => self.policies.remove(id, |policy| &policy.id),
            pb::Kind::Plan => self.plans.remove(id, |plan| &plan.name),
            pb::Kind::Job => self.jobs.remove(id, |job| &job.id),
            pb::Kind::Alert => self.alerts.remove(id, |alert| &alert.id),
            pb::Kind::Event | pb::Kind::Group | pb::Kind::Unspecified => false,
        };
    }

    /// Takes a job that an answer told; the stream will tell it again.
    pub fn know_job(&mut self, job: pb::Job) {
        self.take(Entity::Job(job), |_, _| ());
    }

    /// Whether this machine's name had to be changed to be shown: it cannot be typed, nor stand in a
    /// command.
    pub fn has_odd_name(&self, machine_id: &str) -> bool {
        self.odd_names.contains(machine_id)
    }

    /// Whether another machine's name looks like this one's.
    pub fn has_twin(&self, machine: &pb::Machine) -> bool {
        let looks = skeleton(&machine.name);
        self.machines.iter().any(|other| other.id != machine.id && skeleton(&other.name) == looks)
    }

    /// The machine with this id, else with this name.
    pub fn machine(&self, id_or_name: &str) -> Option<&pb::Machine> {
        self.machines
            .get(id_or_name)
            .or_else(|| self.machines.iter().find(|machine| machine.name == id_or_name))
    }

    /// Alerts that are open, worst and newest first.
    pub fn open_alerts(&self) -> Vec<&pb::Alert> {
        let mut open: Vec<&pb::Alert> =
            self.alerts.iter().filter(|alert| alert.cleared_us.is_none()).collect();
        open.sort_by_key(|alert| {
            (alert.acknowledged, alert.severity != "critical", std::cmp::Reverse(alert.opened_us))
        });
        open
    }

    /// Takes what is told of who is let in.
    pub fn know_access(&mut self, mut reply: pb::AccessReply) {
        for operator in &mut reply.operators {
            harmless([&mut operator.name, &mut operator.role]);
        }
        for token in &mut reply.tokens {
            harmless([&mut token.id, &mut token.role, &mut token.site, &mut token.name]);
            harmless([&mut token.operator_role, &mut token.made_by]);
        }
        self.access = reply;
        self.shape += 1;
        self.revision += 1;
    }

    /// Takes a page of the audit log; one that begins with newer lines replaces what was there.
    pub fn know_audit(&mut self, reply: pb::AuditReply) {
        let oldest = self.audit.last().map_or(u64::MAX, |line| line.seq);
        if reply.lines.first().is_some_and(|line| line.seq >= oldest) {
            self.audit.clear();
        }
        for mut line in reply.lines {
            harmless([&mut line.actor, &mut line.act, &mut line.object, &mut line.outcome]);
            harmless([&mut line.detail]);
            self.audit.push(line);
        }
        self.audit_keys = self.audit.iter().map(|line| line.seq.to_string()).collect();
        self.shape += 1;
        self.revision += 1;
    }

    /// Machines under the policy of this name.
    pub fn machines_under(&self, policy: &str) -> Vec<&pb::Machine> {
        let mut under: Vec<&pb::Machine> =
            self.machines.iter().filter(|machine| machine.protected && machine.policy == policy).collect();
        under.sort_by(|a, b| a.name.cmp(&b.name));
        under
    }

    /// Jobs that are not over, newest first.
    pub fn running_jobs(&self) -> Vec<&pb::Job> {
        let mut running: Vec<&pb::Job> = self.jobs.iter().filter(|job| !is_over(job)).collect();
        running.sort_by_key(|job| std::cmp::Reverse(job.created_us));
        running
    }
}

/// Whether nothing more will happen.
pub fn is_over(job: &pb::Job) -> bool {
    continuum_model::job::JobState::named(&job.state).is_some_and(continuum_model::job::JobState::is_over)
}

fn harmless<const N: usize>(texts: [&mut String; N]) {
    for text in texts {
        clean(text);
    }
}

fn clean(text: &mut String) {
    if text.chars().any(is_dangerous) {
        *text = shown(text);
    }
}

fn harmless_symptoms(symptoms: &mut [pb::Symptom]) {
    for symptom in symptoms {
        harmless([&mut symptom.code, &mut symptom.severity, &mut symptom.text, &mut symptom.remedy]);
    }
}

fn harmless_disks(disks: &mut [pb::Disk]) {
    for disk in disks {
        harmless([&mut disk.name, &mut disk.endpoint]);
    }
}

fn harmless_probes(probes: &mut [pb::Probe]) {
    for probe in probes {
        harmless([&mut probe.name, &mut probe.detail]);
    }
}

/// Makes the texts of a point harmless.
pub fn harmless_point(point: &mut pb::Point) {
    harmless([&mut point.kind, &mut point.name, &mut point.group]);
}

fn harmless_server(server: &mut pb::Server) {
    harmless([
        &mut server.name,
        &mut server.role,
        &mut server.site,
        &mut server.version,
        &mut server.address,
        &mut server.health,
        &mut server.machine,
    ]);
    harmless_symptoms(&mut server.symptoms);
}

fn harmless_machine(machine: &mut pb::Machine) {
    harmless([
        &mut machine.group,
        &mut machine.name,
        &mut machine.site,
        &mut machine.fabric,
        &mut machine.guest,
        &mut machine.state,
        &mut machine.state_reason,
        &mut machine.mode,
        &mut machine.mode_reason,
        &mut machine.health,
        &mut machine.direction,
        &mut machine.target_site,
        &mut machine.policy,
        &mut machine.process_server,
        &mut machine.master_target,
        &mut machine.test_state,
        &mut machine.estimate_note,
        &mut machine.phase,
        &mut machine.held_by,
    ]);
    for hop in &mut machine.hops {
        harmless([&mut hop.name, &mut hop.note]);
    }
    for spike in &mut machine.spikes {
        harmless([&mut spike.hop, &mut spike.cause]);
    }
    machine.link_fault.iter_mut().for_each(harmless_fault);
    harmless_symptoms(&mut machine.symptoms);
    harmless_disks(&mut machine.disks);
    if let Some(test) = &mut machine.test {
        harmless_disks(&mut test.disks);
        harmless_probes(&mut test.probes);
        test.point.iter_mut().for_each(harmless_point);
    }
    if let Some(failed_over) = &mut machine.failed_over {
        harmless([&mut failed_over.kind]);
        harmless_disks(&mut failed_over.disks);
        harmless_probes(&mut failed_over.probes);
        failed_over.point.iter_mut().for_each(harmless_point);
    }
}

fn harmless_fault(fault: &mut pb::Fault) {
    harmless([
        &mut fault.code,
        &mut fault.message,
        &mut fault.affected,
        &mut fault.unaffected,
        &mut fault.remedy,
        &mut fault.correlation,
    ]);
}

/// Makes the texts of a job harmless.
pub fn harmless_job(job: &mut pb::Job) {
    harmless([
        &mut job.kind,
        &mut job.machine,
        &mut job.state,
        &mut job.by,
        &mut job.detail,
        &mut job.waiting_for,
    ]);
    if let Some(approval) = &mut job.approval {
        harmless([&mut approval.digest, &mut approval.by]);
        approval.about.iter_mut().for_each(clean);
    }
    for step in &mut job.steps {
        harmless([&mut step.name, &mut step.state, &mut step.detail]);
    }
    job.fault.iter_mut().for_each(harmless_fault);
    for machine in &mut job.machines {
        harmless([&mut machine.name, &mut machine.note]);
        harmless_disks(&mut machine.disks);
        harmless_probes(&mut machine.probes);
        machine.point.iter_mut().for_each(harmless_point);
    }
    for disk in &mut job.verified {
        harmless([&mut disk.name, &mut disk.source_digest, &mut disk.replica_digest]);
    }
}

/// Makes the texts of a readiness report harmless, but for `confirm`: that one is compared, and never shown.
pub fn harmless_readiness(report: &mut pb::ReadinessReply) {
    harmless([&mut report.summary, &mut report.command]);
    for check in &mut report.checks {
        harmless([&mut check.name, &mut check.state, &mut check.detail, &mut check.remedy]);
    }
    report.preview.iter_mut().for_each(harmless_preview);
}

/// Makes the texts of a preview harmless.
pub fn harmless_preview(preview: &mut pb::PreviewReply) {
    for point in [&mut preview.point, &mut preview.before, &mut preview.after] {
        point.iter_mut().for_each(harmless_point);
    }
    if let Some(gap) = &mut preview.gap {
        harmless([&mut gap.reason]);
    }
}

/// Makes the texts of a timeline harmless.
pub fn harmless_timeline(timeline: &mut pb::TimelineReply) {
    timeline.points.iter_mut().for_each(harmless_point);
    for gap in &mut timeline.gaps {
        harmless([&mut gap.reason]);
    }
}

/// What a name looks like at a glance: compatibility forms, case, separators and the common look-alikes
/// of other alphabets folded together. Two machines with one skeleton are told apart by their ids.
fn skeleton(name: &str) -> String {
    use unicode_normalization::UnicodeNormalization;
    name.nfkd()
        .filter(|c| !unicode_normalization::char::is_combining_mark(*c))
        .flat_map(char::to_lowercase)
        .filter(|c| !matches!(c, '-' | '_' | ' ' | '.' | '\u{2010}'..='\u{2015}'))
        .map(|c| match c {
            'а' | 'α' => 'a',
            'в' => 'b',
            'с' | 'ϲ' => 'c',
            'е' | 'ё' | 'ε' => 'e',
            'һ' => 'h',
            'і' | 'ι' | 'l' | '1' | '|' | 'ı' => 'i',
            'ј' => 'j',
            'к' | 'κ' => 'k',
            'м' => 'm',
            'о' | 'ο' | '0' | 'σ' => 'o',
            'р' | 'ρ' => 'p',
            'ѕ' => 's',
            'т' | 'τ' => 't',
            'υ' => 'u',
            'ν' | 'ѵ' => 'v',
            'ѡ' | 'ω' => 'w',
            'х' | 'χ' => 'x',
            'у' | 'γ' => 'y',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, event: Event) -> pb::WatchEvent {
        pb::WatchEvent { sequence, event: Some(event) }
    }
    fn machine(id: &str, name: &str) -> Event {
        let machine = pb::Machine { id: id.into(), name: name.into(), ..Default::default() };
        Event::Changed(pb::Entity { entity: Some(Entity::Machine(machine)) })
    }

    #[test]
    fn a_snapshot_replaces_everything_at_once() {
        let mut estate = Estate::default();
        estate.apply(vec![event(1, machine("a", "old"))], |_, _| ());
        let begin = || event(2, Event::SnapshotBegin(pb::SnapshotBegin { run: "r".into() }));
        estate.apply(vec![begin(), event(2, machine("b", "new"))], |_, _| ());
        assert!(estate.machines.get("a").is_some(), "the old stays until the new is whole");
        assert!(estate.machines.get("b").is_none());
        let shape = estate.shape;
        let applied = estate.apply(vec![event(2, Event::SnapshotEnd(pb::SnapshotEnd {}))], |_, _| ());
        assert!(applied.snapshot && estate.shape > shape);
        assert!(estate.machines.get("a").is_none() && estate.machines.get("b").is_some());
        // A second snapshot that breaks off leaves the first.
        estate.apply(vec![begin()], |_, _| ());
        estate.apply(vec![begin(), event(3, machine("c", "x"))], |_, _| ());
        assert!(estate.machines.get("b").is_some());
    }

    #[test]
    fn removal_keeps_every_other_row_findable() {
        let mut estate = Estate::default();
        for id in ["a", "b", "c", "d"] {
            estate.apply(vec![event(1, machine(id, id))], |_, _| ());
        }
        for gone in ["b", "d", "a"] {
            let removed = pb::Removed { kind: pb::Kind::Machine as i32, id: gone.into() };
            estate.apply(vec![event(2, Event::Removed(removed))], |_, _| ());
            assert!(estate.machines.get(gone).is_none());
            for (place, machine) in estate.machines.iter().enumerate() {
                assert_eq!(estate.machines.get(&machine.id).map(|found| &found.id), Some(&machine.id));
                assert_eq!(estate.machines.at(place).map(|found| &found.id), Some(&machine.id));
            }
        }
        assert_eq!(estate.machines.len(), 1);
    }

    #[test]
    fn names_from_outside_are_harmless_from_here_on() {
        let mut estate = Estate::default();
        estate.apply(vec![event(1, machine("a", "x\u{1b}]52;c;AA\u{7}\n\u{202e}y"))], |_, _| ());
        assert!(!estate.machines.get("a").unwrap().name.chars().any(is_dangerous));
        assert!(estate.has_odd_name("a"));
        estate.apply(vec![event(2, machine("a", "plain"))], |_, _| ());
        assert!(!estate.has_odd_name("a"));
    }

    #[test]
    fn names_that_look_alike_are_twins() {
        for (one, other, twins) in [
            ("web-01", "web-02", false),
            ("web-01", "wеb-01", true), // Cyrillic
            ("web-01", "WEB_01", true),
            ("caf\u{e9}", "cafe\u{301}", true),
            ("db-l", "db-1", true),
        ] {
            let mut estate = Estate::default();
            estate.apply(vec![event(1, machine("a", one)), event(2, machine("b", other))], |_, _| ());
            assert_eq!(estate.has_twin(estate.machines.get("a").unwrap()), twins, "{one} {other}");
        }
    }
}
