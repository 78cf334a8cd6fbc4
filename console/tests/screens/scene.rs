//! An estate on a bad night, told to the console as a vault tells it.

use continuum_console::link::watch::News;
use continuum_console::tui::cmd::keys::{Chord, Code};
use continuum_console::tui::core::reduce::update;
use continuum_console::tui::core::state::{Answer, Connection, Effect, Message, State};
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use pb::watch_event::Event;

/// 2026-11-21T03:12:45Z
pub const NOW: i64 = 1_795_230_765_000_000;
pub const SECOND: i64 = 1_000_000;
pub const MINUTE: i64 = 60 * SECOND;
pub const HOUR: i64 = 60 * MINUTE;

/// A console and what it asked of the outside.
pub struct Console {
    pub state: State,
    pub effects: Vec<Effect>,
    pub now: i64,
}

impl Console {
    /// Connected, before anything was told.
    pub fn connected(size: (u16, u16)) -> Self {
        let mut state = State::new(NOW, size);
        state.connection = Connection::Live;
        state.heard = Some(NOW);
        state.who = Some(pb::WhoAmIReply {
            name: "ada".into(),
            role: "owner".into(),
            vault_name: "vault".into(),
            environment: "production".into(),
            version: "0.1.0".into(),
            ..Default::default()
        });
        Self { state, effects: Vec::new(), now: NOW }
    }

    /// Connected, and told all about the estate.
    pub fn night(size: (u16, u16)) -> Self {
        Self::with(size, estate())
    }

    /// Connected, and told this.
    pub fn with(size: (u16, u16), entities: Vec<Entity>) -> Self {
        let mut console = Self::connected(size);
        console.told(snapshot(entities));
        console.state.refresh();
        console
    }

    pub fn take(&mut self, message: Message) {
        let effects = update(&mut self.state, message, self.now);
        self.state.refresh();
        for effect in effects {
            if effect == Effect::Arm {
                self.take(Message::Armed);
            }
            self.effects.push(effect);
        }
    }

    pub fn told(&mut self, events: Vec<pb::WatchEvent>) {
        self.take(Message::News(1, Box::new(News::Events(events))));
    }

    pub fn changed(&mut self, entity: Entity) {
        self.told(vec![event(Event::Changed(pb::Entity { entity: Some(entity) }))]);
    }

    /// Presses keys: letters, and names in angle brackets.
    pub fn press(&mut self, keys: &str) {
        for chord in chords(keys) {
            self.take(Message::Key(chord));
        }
    }

    /// Time goes on.
    pub fn later(&mut self, micros: i64) {
        self.now += micros;
        self.take(Message::Tick);
    }

    /// Answers every question about readiness and history that is open, as the vault of that night would.
    pub fn answered(&mut self) {
        loop {
            let open: Vec<Effect> = std::mem::take(&mut self.effects);
            let mut orders = Vec::new();
            let mut asked = false;
            for effect in open {
                match effect {
                    Effect::Readiness(tag, request) => {
                        asked = true;
                        let machine = self.state.estate.machines.get(&request.machine).cloned();
                        // A plan stands in a machine's place.
                        let plan = request
                            .machine
                            .strip_prefix("plan/")
                            .map(|name| pb::Machine { name: name.into(), ..Default::default() });
                        let report = readiness(&machine.or(plan).unwrap_or_default(), &request);
                        self.take(Message::Answer(tag, Box::new(Answer::Readiness(Ok(report)))));
                    }
                    Effect::Timeline(tag, request) => {
                        asked = true;
                        self.take(Message::Answer(
                            tag,
                            Box::new(Answer::Timeline(Ok(history(request.buckets)))),
                        ));
                    }
                    Effect::Preview(tag, _) => {
                        asked = true;
                        self.take(Message::Answer(tag, Box::new(Answer::Preview(Ok(preview())))));
                    }
                    other => orders.push(other),
                }
            }
            self.effects.splice(0..0, orders);
            if !asked {
                return;
            }
        }
    }

    /// The orders that went out.
    pub fn orders(&self) -> Vec<&pb::OrderRequest> {
        fn order(effect: &Effect) -> Option<&pb::OrderRequest> {
            match effect {
                Effect::Order(_, request) => Some(&**request),
                _ => None,
            }
        }
        self.effects.iter().filter_map(order).collect()
    }
}

/// Keys from text: `t`, `<enter>`, `<esc>`, `<tab>`, `<down>`, `<space>`, `<ctrl+c>` …
pub fn chords(keys: &str) -> Vec<Chord> {
    let mut out = Vec::new();
    let mut rest = keys;
    while let Some(c) = rest.chars().next() {
        if let Some((name, after)) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
            out.push(match name {
                "enter" => Chord::plain(Code::Enter),
                "esc" => Chord::plain(Code::Esc),
                "tab" => Chord::plain(Code::Tab),
                "backtab" => Chord::plain(Code::BackTab),
                "down" => Chord::plain(Code::Down),
                "up" => Chord::plain(Code::Up),
                "left" => Chord::plain(Code::Left),
                "right" => Chord::plain(Code::Right),
                "space" => Chord::char(' '),
                "backspace" => Chord::plain(Code::Backspace),
                "pagedown" => Chord::plain(Code::PageDown),
                other => other
                    .strip_prefix("ctrl+")
                    .and_then(|rest| rest.chars().next())
                    .map(Chord::ctrl)
                    .unwrap_or_else(|| panic!("no key {other}")),
            });
            rest = after;
        } else {
            out.push(Chord::char(c));
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

pub fn event(event: Event) -> pb::WatchEvent {
    pb::WatchEvent { sequence: 1, event: Some(event) }
}

pub fn snapshot(entities: Vec<Entity>) -> Vec<pb::WatchEvent> {
    let mut events = vec![event(Event::SnapshotBegin(pb::SnapshotBegin { run: "run".into() }))];
    events.extend(
        entities.into_iter().map(|entity| event(Event::Changed(pb::Entity { entity: Some(entity) }))),
    );
    events.push(event(Event::SnapshotEnd(pb::SnapshotEnd {})));
    events.push(event(Event::Tick(pb::Tick { vault_time_us: NOW })));
    events
}

const ORDERS: [&str; 11] = [
    "test-failover",
    "failover",
    "planned-failover",
    "pause",
    "resume",
    "bookmark",
    "verify",
    "unprotect",
    "assign-policy",
    "retry-now",
    "cleanup",
];

/// A machine that does well.
pub fn machine(id: u8, name: &str) -> pb::Machine {
    pb::Machine {
        id: format!("01a20000-0000-7000-8000-0000000000{id:02x}"),
        version: 7,
        name: name.into(),
        site: "primary".into(),
        fabric: "lab".into(),
        guest: "process".into(),
        protected: true,
        state: "protected".into(),
        mode: "data".into(),
        health: "healthy".into(),
        direction: "forward".into(),
        target_site: "recovery".into(),
        policy: "default".into(),
        disks: vec![pb::Disk {
            id: format!("01a20000-0000-7000-8000-0000000001{id:02x}"),
            index: 0,
            name: "disk0".into(),
            size_bytes: 16 << 20,
            endpoint: format!("nbd+unix:///disk0?socket=/tmp/continuum-lab/{name}.sock"),
        }],
        rpo_seconds: Some(0.4),
        rpo_p50_seconds: Some(0.2),
        rpo_p99_seconds: Some(0.9),
        rpo_max_seconds: Some(2.5),
        newest_received_us: Some(NOW - 300_000),
        newest_point_us: Some(NOW - 400_000),
        oldest_point_us: Some(NOW - 26 * HOUR),
        history_seconds: Some(26.0 * 3600.0),
        history_promised_seconds: Some(24.0 * 3600.0),
        history_bytes: Some(3 << 30),
        churn_bytes_per_sec: Some(2 << 20),
        churn_recent: (0..60).map(|n| (n % 13) << 18).collect(),
        rpo_recent: (0..60).map(|n| f64::from(n % 7) / 10.0).collect(),
        points: 312,
        dirty_bytes: Some(0),
        in_flight_bytes: Some(96 << 10),
        staged_bytes: Some(0),
        staged_bytes_max: Some(8 << 20),
        sent_bytes_total: Some(71 << 30),
        process_server: "ps-1".into(),
        master_target: "mt-1".into(),
        epoch: 3,
        test_state: "none".into(),
        last_drill_us: Some(NOW - 9 * 24 * HOUR),
        last_drill_passed: true,
        orders: ORDERS.iter().map(|order| (*order).to_owned()).collect(),
        rpo_threshold_seconds: Some(15),
        ..Default::default()
    }
}

/// Two sites, six machines in six conditions, servers, jobs, alerts, policies, events.
pub fn estate() -> Vec<Entity> {
    let symptom = |code: &str, severity: &str, text: &str, remedy: &str| pb::Symptom {
        code: code.into(),
        severity: severity.into(),
        text: text.into(),
        remedy: remedy.into(),
    };
    let db = pb::Machine {
        health: "critical".into(),
        rpo_seconds: Some(252.0),
        mode: "bitmap".into(),
        mode_reason: "the process server is away".into(),
        dirty_bytes: Some(412 << 20),
        symptoms: vec![symptom(
            "rpo.exceeded",
            "critical",
            "the newest recoverable moment is 4 min 12 s old; 15 s are promised",
            "see whether process server ps-1 runs; replication goes on by itself when it is back",
        )],
        disks: (0..3)
            .map(|n| pb::Disk {
                id: format!("01a20000-0000-7000-8000-00000000020{n}"),
                index: n,
                name: format!("disk{n}"),
                size_bytes: (n as u64 + 1) * (40 << 30),
                endpoint: format!("nbd+unix:///disk{n}?socket=/tmp/continuum-lab/db-01.sock"),
            })
            .collect(),
        ..machine(1, "db-01")
    };
    let file = pb::Machine {
        health: "warning".into(),
        symptoms: vec![symptom(
            "drill.old",
            "warning",
            "the last test failover was 44 d ago; 30 d are promised",
            "start one: t",
        )],
        last_drill_us: Some(NOW - 44 * 24 * HOUR),
        ..machine(2, "file-01")
    };
    let seeding = pb::Machine {
        state: "initial-replication".into(),
        initial_bytes_done: Some(31 << 30),
        initial_bytes_total: Some(80 << 30),
        points: 0,
        newest_point_us: None,
        oldest_point_us: None,
        history_seconds: None,
        rpo_seconds: None,
        last_drill_us: None,
        orders: vec!["pause".into(), "unprotect".into()],
        ..machine(4, "mail-01")
    };
    let testing = pb::Machine {
        test_state: "running".into(),
        test: Some(pb::TestFailover {
            job: "01a20000-0000-7000-8000-00000000f001".into(),
            started_us: NOW - 3 * MINUTE,
            point: Some(point(1)),
            probes: probes(),
            ..Default::default()
        }),
        ..machine(5, "web-01")
    };
    let free = pb::Machine {
        protected: false,
        state: "unprotected".into(),
        health: "not-applicable".into(),
        rpo_seconds: None,
        newest_point_us: None,
        oldest_point_us: None,
        history_seconds: None,
        points: 0,
        mode: String::new(),
        policy: String::new(),
        target_site: String::new(),
        last_drill_us: None,
        orders: vec!["protect".into()],
        ..machine(6, "web-02")
    };
    let server = |id: u8, name: &str, role: &str, site: &str, connected: bool| pb::Server {
        id: format!("01a20000-0000-7000-8000-0000000003{id:02x}"),
        name: name.into(),
        role: role.into(),
        site: site.into(),
        connected,
        version: "0.1.0".into(),
        last_seen_us: if connected { NOW - SECOND } else { NOW - 252 * SECOND },
        address: format!("10.0.0.{id}:8445"),
        certificate_expires_us: NOW + 300 * 24 * HOUR,
        cpu_percent: Some(12.0),
        memory_bytes: Some(310 << 20),
        buffer_bytes: Some(20 << 20),
        buffer_bytes_max: Some(1 << 30),
        free_bytes: Some(900 << 30),
        bytes_per_sec: Some(11 << 20),
        health: if connected { "healthy" } else { "critical" }.into(),
        machines: 5,
        ..Default::default()
    };
    let policy = pb::Policy {
        id: "01a20000-0000-7000-8000-000000000401".into(),
        name: "default".into(),
        retention_seconds: 24 * 3600,
        crash_point_seconds: 5,
        rpo_threshold_seconds: 15,
        staging_bytes_max: 64 << 20,
        compression: true,
        machines: 5,
        version: 3,
        ..Default::default()
    };
    let alert = |id: u8, severity: &str, object: &str, text: &str, acknowledged: bool| pb::Alert {
        id: format!("01a20000-0000-7000-8000-0000000005{id:02x}"),
        severity: severity.into(),
        code: "rpo.exceeded".into(),
        object_kind: "machine".into(),
        object: object.into(),
        object_id: "01a20000-0000-7000-8000-000000000001".into(),
        opened_us: NOW - 250 * SECOND,
        text: text.into(),
        cause: "the process server ps-1 is away since 03:08:33".into(),
        remedy: "see whether process server ps-1 runs".into(),
        acknowledged,
        ..Default::default()
    };
    let event = |id: u64, kind: &str, text: &str, ago: i64| pb::Event {
        id,
        time_us: NOW - ago,
        kind: kind.into(),
        object: "db-01".into(),
        object_id: "01a20000-0000-7000-8000-000000000001".into(),
        text: text.into(),
        by: "vault".into(),
    };
    vec![
        Entity::Site(site(1, "primary", false)),
        Entity::Site(site(2, "recovery", true)),
        Entity::Server(server(1, "vault", "vault", "recovery", true)),
        Entity::Server(server(2, "ps-1", "process-server", "primary", false)),
        Entity::Server(server(3, "mt-1", "master-target", "recovery", true)),
        Entity::Machine(machine(3, "app-01")),
        Entity::Machine(db),
        Entity::Machine(file),
        Entity::Machine(seeding),
        Entity::Machine(testing),
        Entity::Machine(free),
        Entity::Policy(policy),
        Entity::Plan(plan()),
        Entity::Job(drill("running")),
        Entity::Job(pb::Job {
            id: "01a20000-0000-7000-8000-00000000f002".into(),
            kind: "bookmark".into(),
            machine: "app-01".into(),
            created_us: NOW - HOUR,
            started_us: Some(NOW - HOUR),
            ended_us: Some(NOW - HOUR + SECOND),
            steps: Vec::new(),
            ..drill("succeeded")
        }),
        Entity::Alert(alert(
            1,
            "critical",
            "db-01",
            "the newest recoverable moment is 4 min 12 s old",
            false,
        )),
        Entity::Alert(alert(2, "warning", "file-01", "the last test failover was 44 d ago", true)),
        Entity::Event(event(1, "mode", "bitmap: the process server is away", 252 * SECOND)),
        Entity::Event(event(2, "mode", "data: replication is continuous", 5 * HOUR)),
        Entity::Event(event(3, "bookmark", "bookmark before-upgrade", 6 * HOUR)),
    ]
}

/// Three groups, the last of which waits for the other two.
pub fn plan() -> pb::Plan {
    let machine = |id: u8, name: &str| pb::PlanMachine { name: name.into(), id: machine(id, name).id };
    let group = |name: &str, after: &[&str], machines: Vec<pb::PlanMachine>, manual: &str| pb::PlanGroup {
        name: name.into(),
        depends_on: after.iter().map(|name| (*name).to_owned()).collect(),
        machines,
        manual: manual.into(),
    };
    pb::Plan {
        name: "shop".into(),
        version: 4,
        description: "everything that takes orders".into(),
        rto_objective_seconds: Some(600.0),
        groups: vec![
            group("databases", &[], vec![machine(1, "db-01")], "Look at the replication slots."),
            group("files", &[], vec![machine(2, "file-01")], ""),
            group("front", &["databases", "files"], vec![machine(3, "app-01"), machine(5, "web-01")], ""),
        ],
        last_drill_us: Some(NOW - 12 * 24 * HOUR),
        last_drill_passed: true,
        last_drill_seconds: Some(84.0),
        forecast_seconds: Some(90.0),
        orders: ["test-failover", "failover", "cleanup", "delete"].map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

pub fn site(id: u8, name: &str, recovery: bool) -> pb::Site {
    pb::Site {
        id: format!("01a20000-0000-7000-8000-0000000006{id:02x}"),
        name: name.into(),
        fabric: "lab".into(),
        recovery,
    }
}

fn probes() -> Vec<pb::Probe> {
    let probe =
        |name: &str, detail: &str| pb::Probe { name: name.into(), passed: true, detail: detail.into() };
    vec![
        probe("heartbeat", "it answers"),
        probe("ledger", "recovered to transfer 225, every record checked"),
        probe("writes", "it goes on: transfer 227"),
    ]
}

/// A test failover of web-01 under way, or over.
pub fn drill(state: &str) -> pb::Job {
    let step = |name: &str, state: &str, from: i64, seconds: Option<i64>, detail: &str| pb::Step {
        name: name.into(),
        state: state.into(),
        started_us: Some(NOW - from),
        ended_us: seconds.map(|seconds| NOW - from + seconds * SECOND),
        detail: detail.into(),
        progress: None,
    };
    pb::Job {
        id: "01a20000-0000-7000-8000-00000000f001".into(),
        kind: "test-failover".into(),
        machine: "web-01".into(),
        machine_id: "01a20000-0000-7000-8000-000000000005".into(),
        state: state.into(),
        created_us: NOW - 12 * SECOND,
        started_us: Some(NOW - 12 * SECOND),
        ended_us: (state != "running").then_some(NOW - SECOND),
        steps: vec![
            step("check-target", "succeeded", 12 * SECOND, Some(1), "the master target is there"),
            step("resolve-point", "succeeded", 11 * SECOND, Some(1), "crash point of 03:12:44"),
            step("open-view", "succeeded", 10 * SECOND, Some(1), "1 disk(s) served as of the point"),
            step("start-guest", "succeeded", 9 * SECOND, Some(2), "it runs"),
            step("probe", "running", 7 * SECOND, None, "waiting for the heartbeat"),
            pb::Step { name: "running".into(), state: "pending".into(), ..Default::default() },
        ],
        by: "ada".into(),
        detail: "test failover to the latest moment".into(),
        may_cancel: state == "running",
        forecast_seconds: Some(21.0),
        machines: if state == "running" {
            Vec::new()
        } else {
            vec![pb::MachineOutcome {
                name: "web-01".into(),
                point: Some(point(1)),
                rto_seconds: Some(11.0),
                loss_seconds: Some(0.4),
                loss_bytes: Some(96 << 10),
                probes: probes(),
                ..Default::default()
            }]
        },
        ..Default::default()
    }
}

pub fn point(minutes_ago: i64) -> pb::Point {
    pb::Point {
        id: format!("01a20000-0000-7000-8000-00000000a{minutes_ago:03x}"),
        time_us: NOW - minutes_ago * MINUTE,
        kind: if minutes_ago % 60 == 0 { "bookmark" } else { "crash" }.into(),
        name: if minutes_ago % 60 == 0 { "before-upgrade" } else { "" }.into(),
        pinned: minutes_ago == 120,
        proofs: Some(pb::Proofs {
            booted: (minutes_ago == 60).then_some(true),
            probed: (minutes_ago == 60).then_some(true),
            digest_equal: None,
        }),
        position: 100_000 - minutes_ago as u64,
        locked_until_us: None,
        group: String::new(),
    }
}

pub fn history(buckets: u32) -> pb::TimelineReply {
    pb::TimelineReply {
        oldest_us: NOW - 26 * HOUR,
        newest_us: NOW - 400_000,
        points: (1..=300).map(point).collect(),
        gaps: vec![pb::Gap {
            from_us: NOW - 100 * MINUTE,
            to_us: NOW - 88 * MINUTE,
            reason: "changes of this stretch were repaired as a whole".into(),
        }],
        churn: (0..u64::from(buckets)).map(|n| (n * 37 % 101) << 16).collect(),
        from_us: NOW - 26 * HOUR,
        to_us: NOW,
        more: false,
    }
}

pub fn preview() -> pb::PreviewReply {
    pb::PreviewReply {
        point: Some(point(60)),
        loss_seconds: 3600.0,
        loss_bytes: 7 << 30,
        ..Default::default()
    }
}

pub fn readiness(machine: &pb::Machine, request: &pb::ReadinessRequest) -> pb::ReadinessReply {
    let destroys = matches!(request.order.as_str(), "failover" | "planned-failover" | "commit" | "unprotect");
    let check = |name: &str, state: &str, detail: &str, remedy: &str| pb::Check {
        name: name.into(),
        state: state.into(),
        detail: detail.into(),
        remedy: remedy.into(),
    };
    if let Some(policy) = request.policy.as_ref().filter(|_| request.order == "set-policy") {
        return policy_report(policy);
    }
    pb::ReadinessReply {
        ready: true,
        confirm: if destroys { machine.name.clone() } else { String::new() },
        destroys,
        machine_version: machine.version,
        summary: format!("{} is brought up at recovery; replication goes on.", machine.name),
        preview: Some(preview()),
        checks: vec![
            check("target", "ok", "mt-1 is there", ""),
            check("point", "ok", "1 h ago, probed before", ""),
            check("space", "warning", "11 GiB are free for the overlay", "free some space at mt-1"),
        ],
        ..Default::default()
    }
}

/// What the vault of that night would say about a changed policy, for three machines.
fn policy_report(policy: &pb::Policy) -> pb::ReadinessReply {
    let known = estate().into_iter().find_map(|entity| match entity {
        Entity::Policy(known) if known.id == policy.id => Some(known),
        _ => None,
    });
    let read = |policy: &pb::Policy| continuum_wire::policy::from_message(policy).expect("a policy");
    let changes = known
        .as_ref()
        .map_or_else(Vec::new, |known| continuum_document::policy::changes(&read(known), &read(policy), 3));
    let loses = changes.iter().any(|change| change.loses);
    let check = |change: &continuum_document::policy::Change| pb::Check {
        name: continuum_document::policy::label(change.field).into(),
        state: if change.loses { "warning" } else { "ok" }.into(),
        detail: format!("{} to {}: {}", change.from, change.to, change.means),
        remedy: String::new(),
    };
    pb::ReadinessReply {
        ready: true,
        confirm: if loses { policy.name.clone() } else { String::new() },
        destroys: loses,
        summary: format!("policy {} is changed, for 3 machines", policy.name),
        checks: changes.iter().map(check).collect(),
        command: "continuum apply -f FILE".into(),
        machine_version: known.map_or(0, |known| known.version),
        ..Default::default()
    }
}
