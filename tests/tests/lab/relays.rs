//! Two process servers: a machine is moved between them by hand and by loss while it is written to; the one that lost
//! it and does not know has no right any more; a schedule that changes holds, and is told.

use crate::prove::{EndOfWork, bring_up_and_prove};
use continuum_model::fault::FaultClass;
use continuum_model::policy::BandwidthLimit;
use continuum_model::units::Epoch;
use continuum_proto::v1 as pb;
use continuum_tests::lab::{Lab, binary, endpoints};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, History, Workload};
use continuum_wire::channel::{self, Hello};
use continuum_wire::grpc;
use continuum_wire::identity::Role;
use continuum_wire::policy::limit_to_message;
use continuum_wire::tls::{self, Credentials};
use serde_json::Value;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A second process server, beside those of the lab.
struct Second<'a> {
    lab: &'a Lab,
    port: u16,
    child: Option<Child>,
}

impl<'a> Second<'a> {
    /// Enrols it as a person does.
    fn enrol(lab: &'a Lab) -> Self {
        let token = lab.json(&["token", "process-server", "--site", "primary"]);
        let second = Self {
            lab,
            port: TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port(),
            child: None,
        };
        std::fs::create_dir_all(second.path("")).expect("a folder");
        std::fs::write(second.path("token"), token["token"].as_str().expect("a token")).expect("a file");
        let enrolled = Command::new(binary().with_file_name("continuumd"))
            .args(["enroll", "--role", "process-server", "--name", "ps-2", "--identity"])
            .arg(second.path("identity"))
            .arg("--token-file")
            .arg(second.path("token"))
            .stdin(Stdio::null())
            .output()
            .expect("continuumd runs");
        assert!(enrolled.status.success(), "{enrolled:?}");
        second
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.dir().join("second").join(name)
    }

    /// Starts it with this vault.
    fn start(&mut self, vault: &str) {
        let (dir, identity, port) = (self.path("spool"), self.path("identity"), self.port);
        let text = format!(
            "[process_server]\nname = \"ps-2\"\nsite = \"primary\"\ndir = {dir:?}\nidentity = {identity:?}\n\
             listen = \"127.0.0.1:{port}\"\nvault = \"{vault}\"\n"
        );
        std::fs::write(self.path("continuumd.toml"), text).expect("a file");
        let log =
            std::fs::File::options().create(true).append(true).open(self.path("second.log")).expect("a log");
        let child = Command::new(binary().with_file_name("continuumd"))
            .args(["serve", "--config"])
            .arg(self.path("continuumd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("continuumd runs"));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it ran until now");
            child.wait().expect("it ends");
        }
    }
}

impl Drop for Second<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn whole(lab: &Lab) -> Value {
    lab.json(&["describe", "machine", "vol-01"])
}

fn verified(lab: &Lab) -> bool {
    let verified = lab.run(&["verify", "vol-01", "-o", "json"]);
    let equal = |disks: &Vec<Value>| !disks.is_empty() && disks.iter().all(|disk| disk["equal"] == true);
    verified.code == 0 && verified.json()["disks"].as_array().is_some_and(equal)
}

#[test]
fn a_machine_is_moved_between_process_servers_by_hand_and_by_loss_and_nothing_is_lost() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["16M"]);
    let published = std::fs::read(lab.dir().join("vault.address")).expect("the vault's address");
    let published: Value = serde_json::from_slice(&published).expect("JSON");
    let vault = published["address"].as_str().expect("an address").to_owned();
    let mut second = Second::enrol(&lab);
    second.start(&vault);
    lab.wait_for("the second one is connected", Duration::from_secs(60), |lab| {
        let servers = lab.json(&["get", "servers", "ps-2"]);
        servers.as_array().is_some_and(|list| list.iter().any(|server| server["connected"] == true))
    });
    lab.wait_healthy(1, Duration::from_secs(60));
    let relay = |lab: &Lab| whole(lab)["process_server"].as_str().unwrap_or_default().to_owned();
    let first = relay(&lab);
    let (from, to) = if first == "ps-2" { ("ps-2", "ps-1") } else { ("ps-1", "ps-2") };

    // What cannot be is refused, with what would be right, and changes nothing.
    for (server, code, fault) in [(from, 3, "process-server.same"), ("nobody", 3, "process-server.unknown")] {
        let refused = lab.run(&["move", "vol-01", "--process-server", server, "-o", "json"]);
        assert_eq!(refused.code, code, "{refused:?}");
        assert!(refused.stderr.contains(fault) || refused.stdout.contains(fault), "{refused:?}");
    }
    assert_eq!(relay(&lab), first);

    let log = lab.dir().join("acks");
    let workload = Workload::new(0x1ab2, &log).expect("a log");
    let (mut moved, mut killed) = (0, 0);
    std::thread::scope(|scope| {
        let _end = EndOfWork(&workload);
        let uri = endpoints(&lab.machine("vol-01")).remove(0);
        let writer = Writer { uri, disk: 0, blocks: 0..30_000, bytes_per_sec: 1 << 20, seed: 7 };
        let writing = &workload;
        scope.spawn(move || writing.write(&writer).expect("the workload runs"));

        // By hand, there and back, so that it is on the second one whichever it began on.
        let ready = lab.json(&["readiness", "vol-01", "--for", "move", "--process-server", to]);
        assert_eq!(ready["ready"], true, "{ready}");
        let hops = if to == "ps-2" { vec!["ps-2"] } else { vec!["ps-1", "ps-2"] };
        for hop in hops {
            let answer = lab.run(&["move", "vol-01", "--process-server", hop, "-o", "json"]);
            assert_eq!(answer.code, 0, "{answer:?}");
            assert_eq!(relay(&lab), hop);
        }
        moved = oracle::now_us();
        lab.wait_for("both sides agree after the move", Duration::from_secs(60), verified);

        // By loss: it dies, and its disk with it. What it knew is kept by somebody else.
        let known = std::fs::read(second.path("spool/assignments.json")).expect("what it was told");
        assert!(String::from_utf8_lossy(&known).contains("target_address"), "it relays the machine");
        second.kill();
        std::fs::remove_dir_all(second.path("spool")).expect("its disk");
        killed = oracle::now_us();
        lab.wait_for("the vault moves the machine", Duration::from_secs(120), |lab| relay(lab) == "ps-1");
        lab.wait_for("both sides agree after the loss", Duration::from_secs(60), verified);
        let events = lab.run(&["get", "events", "-o", "json"]).stdout;
        assert!(events.contains("has been away for") && events.contains("ps-1 relays it now"), "{events}");

        // It comes back on the other side of a partition, and goes by what it knew.
        std::fs::create_dir_all(second.path("spool")).expect("a new disk");
        std::fs::write(second.path("spool/assignments.json"), &known).expect("what it knew");
        second.start("127.0.0.1:1");
        let fault = through_the_stale_one(&lab, second.port);
        assert_eq!((fault.code.as_str(), fault.class), ("relay.superseded", FaultClass::NotReady), "{fault}");
        assert!(fault.message.starts_with(channel::TO_TARGET), "{fault}");
        lab.wait_for("both sides agree after all", Duration::from_secs(60), verified);
        assert_eq!(relay(&lab), "ps-1", "it is moved back by hand only");
        workload.stop();
    });

    let history = History::read(&[&log]).expect("the log");
    assert!(history.writes.len() > 500, "the workload ran: {}", history.writes.len());
    // Around the move, while nobody relayed (staged at the source), and the newest.
    for asked in [moved + 500_000, killed + 5_000_000, killed + 20_000_000] {
        let lost = bring_up_and_prove(&lab, "vol-01", &history, asked);
        assert!(lost < 1.0, "history is missing: {lost} s");
    }
}

/// The machine's own agent, as a clone would, through a process server that does not know that it is not any more.
fn through_the_stale_one(lab: &Lab, port: u16) -> continuum_model::fault::Fault {
    tls::install_provider();
    let credentials =
        Credentials::open(&lab.dir().join("machines/vol-01/identity")).expect("the agent's identity");
    let machine = whole(lab);
    let hello = Hello {
        machine: machine["id"].as_str().and_then(|id| id.parse().ok()).expect("an id"),
        epoch: Epoch(machine["epoch"].as_u64().expect("an epoch")),
        session: 7,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let address = format!("127.0.0.1:{port}");
    runtime.block_on(async {
        for _ in 0..200 {
            match channel::connect(&credentials, &address, Role::ProcessServer, None, hello).await {
                Ok(_) => panic!("two process servers for one machine"),
                // It starts.
                Err(fault) if fault.code == "connect.failed" => {
                    tokio::time::sleep(Duration::from_millis(100)).await
                }
                Err(fault) => return fault,
            }
        }
        panic!("it never listened");
    })
}

#[test]
fn a_bandwidth_limit_is_obeyed_told_and_lifted_while_everything_runs() {
    const LIMIT: u64 = 1 << 20;
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["64M"]);
    lab.wait_healthy(1, Duration::from_secs(60));
    let at = |time: &str| time.parse().expect("a time of day");
    let always = BandwidthLimit { days: vec![], from: at("00:00"), to: at("24:00"), bytes_per_sec: LIMIT };
    limit(&lab, &[always]);
    lab.wait_for("the limit is told", Duration::from_secs(30), |lab| {
        whole(lab)["limit_bytes_per_sec"] == LIMIT
    });
    // 24 MiB that do not shrink: 24 s of the limit.
    let image = lab.dir().join("data");
    let noise: Vec<u8> =
        (0..24u64 << 17).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ n).to_le_bytes()).collect();
    std::fs::write(&image, &noise).expect("an image");
    let uri = endpoints(&lab.machine("vol-01")).remove(0);
    assert!(Command::new("nbdcopy").arg(&image).arg(&uri).status().expect("nbdcopy runs").success());
    lab.wait_for("it says what it waits for", Duration::from_secs(30), |lab| {
        whole(lab)["held_by"].as_str().is_some_and(|held| held.contains("bandwidth limit of its policy"))
    });
    limit(&lab, &[]);
    lab.wait_for("the limit is lifted", Duration::from_secs(60), |lab| {
        let machine = whole(lab);
        machine["limit_bytes_per_sec"].is_null() && machine["held_by"].is_null() && verified(lab)
    });
}

/// Sets the bandwidth of every policy over the API, as whatever edits policies does.
fn limit(lab: &Lab, limits: &[BandwidthLimit]) {
    tls::install_provider();
    let credentials = Credentials::open(&lab.dir().join("profile")).expect("the operator's credentials");
    let published = std::fs::read(lab.dir().join("vault.address")).expect("the vault's address");
    let published: Value = serde_json::from_slice(&published).expect("JSON");
    let address = published["address"].as_str().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let channel = grpc::channel(&credentials, address, Role::Vault).await.expect("the vault answers");
        let mut operator = pb::operator_client::OperatorClient::new(channel);
        let asked = pb::SnapshotRequest { kinds: vec![pb::Kind::Policy as i32], ..Default::default() };
        let told = operator.snapshot(asked).await.expect("a snapshot").into_inner();
        for entity in told.entities {
            let Some(pb::entity::Entity::Policy(mut policy)) = entity.entity else { continue };
            policy.bandwidth = limits.iter().map(limit_to_message).collect();
            let order = pb::OrderRequest {
                key: format!("limit-{}-{}", policy.name, limits.len()),
                order: Some(pb::order_request::Order::SetPolicy(pb::SetPolicy { policy: Some(policy) })),
                ..Default::default()
            };
            operator.order(order).await.expect("it is set");
        }
    });
}
