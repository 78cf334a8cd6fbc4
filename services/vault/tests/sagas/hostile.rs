//! Bad input, a rolled-back store, and a vault that is killed for real.

use super::*;
use continuum_vault::Keeper;
use std::net::SocketAddr;

#[test]
fn a_wrong_configuration_is_told_whole_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = config(dir.path());
    wrong.listen = SocketAddr::from(([127, 0, 0, 1], 4443));
    wrong.listen_enrolment = wrong.listen;
    wrong.sites.push(wrong.sites[0].clone());
    wrong.policies.push(("gold".into(), Policy { retention_seconds: 1, ..Policy::default() }));
    wrong.database = Some("mysql://x".into());
    wrong.name = String::new();
    let fault = wrong.check().unwrap_err();
    assert_eq!((fault.code.as_str(), fault.class.exit_code()), ("vault.configuration", 78));
    for named in ["listen_enrolment", "east", "gold", "retention_seconds", "database", "name"] {
        assert!(fault.message.contains(named), "{named} is not in {}", fault.message);
    }
    wrong.dir = "relative".into();
    assert!(wrong.problems().iter().any(|problem| problem.starts_with("dir")));
    assert!(!dir.path().join("vault").exists(), "nothing was touched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_and_a_key_that_others_can_read_stop_the_start() {
    use std::os::unix::fs::PermissionsExt;
    continuum_wire::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut clash = config(dir.path());
    clash.listen = taken.local_addr().unwrap();
    let fault = Vault::start(clash, CancellationToken::new()).await.err().unwrap();
    assert!(
        fault.code == "vault.start" && fault.message.contains(&taken.local_addr().unwrap().to_string()),
        "{fault}"
    );
    let key = dir.path().join("vault/authority/ca.key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let fault = Vault::start(config(dir.path()), CancellationToken::new()).await.err().unwrap();
    assert!(fault.message.contains("ca.key.pem") && fault.message.contains("chmod 600"), "{fault}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_whose_store_was_rolled_back_issues_no_epoch_twice() {
    let lab = Lab::start().await;
    lab.protect().await;
    // The estate has seen epochs that this store forgot.
    lab.world.lock().replicas.values_mut().for_each(|replica| replica.epoch = 41);
    eventually("the vault goes on above it", async || (lab.machine().await.epoch == 42).then_some(())).await;
    eventually("the source writes under it", async || {
        (lab.world.lock().source.assignment.epoch == 42).then_some(())
    })
    .await;
    assert_eq!(lab.world.lock().replicas.values().next().unwrap().epoch, 42);
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_are_refused_and_others_are_served() {
    let lab = Lab::start().await;
    let giant = pb::OrderRequest { machine: "x".repeat(6 << 20), ..lab.request(Order::Pause(pb::Pause {})) };
    let status = lab.operator.clone().order(giant).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    let long = pb::OrderRequest { key: "k".repeat(129), ..lab.request(Order::Pause(pb::Pause {})) };
    assert_eq!(grpc::fault_of(&lab.operator.clone().order(long).await.unwrap_err()).code, "order.key");
    assert_eq!(lab.servers_connected().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_server_is_out_at_once_and_stays_out() {
    let lab = Lab::start().await;
    let id = lab.servers[0].credentials.identity().id.parse().unwrap();
    lab.vault().revoke_server(id).await.unwrap();
    eventually("its session ends", async || (lab.servers_connected().await == 2).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lab.servers_connected().await, 2, "it dials again and is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_keeper_does_beside_a_running_vault_holds_there() {
    let mut lab = Lab::start().await;
    lab.protect().await;
    let address = lab.vault().addresses().main.clone();
    let database = postgres::database(lab.dir.path());
    let keeper = Keeper::open(&lab.dir.path().join("vault"), database.as_deref()).await.unwrap();
    keeper.make_operator("eve", "reader", &lab.dir.path().join("eve")).await.unwrap();
    let eve = Credentials::open(&lab.dir.path().join("eve")).unwrap();
    let me = client(&eve, &address).await.who_am_i(pb::WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!((me.name.as_str(), me.role.as_str()), ("eve", "reader"));
    keeper.revoke_operator("eve").await.unwrap();
    eventually("she is turned away", async || {
        (access::refused(&eve, &address).await.class.name() == "refused").then_some(())
    })
    .await;

    let revoked = keeper.revoke_server("ps-1").await.unwrap();
    assert!(revoked.revoked && revoked.role == "process-server");
    eventually("its session ends", async || (lab.servers_connected().await == 2).then_some(())).await;
    eventually("the target takes nothing from it", async || {
        lab.world.lock().replicas.values().all(|replica| replica.process_server.is_empty()).then_some(())
    })
    .await;
    for unknown in ["ps-2", "lab"] {
        assert_eq!(keeper.revoke_server(unknown).await.unwrap_err().code, "server.unknown");
    }
    let old = lab.servers.remove(0);
    old.stop.cancel();
    let _ = old.task.await;
    // A token that is bound to its name lets it in again; its old certificate stays out.
    let token = lab.token("process-server", "east", "ps-1").await;
    let server = fake::ProcessServer(lab.world.clone());
    let dir = lab.dir.path().join("ps-again");
    let again = fake::start(server, Some(&token), "process-server", "ps-1", &dir, &address).await;
    assert_eq!(again.credentials.identity(), old.credentials.identity());
    eventually("it is back", async || (lab.servers_connected().await == 3).then_some(())).await;
    lab.servers.push(again);
    let turned_away = access::refused(&old.credentials, &address).await;
    assert_eq!(turned_away.class.name(), "refused", "{turned_away}");
    lab.done(Order::Bookmark(pb::Bookmark { name: "after".into(), app_consistent: false })).await;

    let lines = keeper.audit(u32::MAX).await.unwrap();
    assert_eq!(continuum_vault::broken_at(&lines), None);
    for (act, object) in [("make-operator", "eve"), ("revoke-operator", "eve"), ("revoke-server", "ps-1")] {
        assert!(lines.iter().any(|line| line.act == act && line.object == object), "{act}");
    }
    keeper.close().await;
    let nowhere = Keeper::open(&lab.dir.path().join("nowhere"), None).await.err().unwrap();
    assert_eq!(nowhere.code, "vault.absent");
}

/// In its own process this is the vault; in the suite it is nothing.
#[test]
fn the_vault_as_a_process() {
    let Ok(dir) = std::env::var("CONTINUUM_TEST_VAULT_DIR") else { return };
    continuum_wire::tls::install_provider();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let dir = PathBuf::from(dir);
        let vault = Vault::start(config(&dir), CancellationToken::new()).await.unwrap();
        vault.make_operator("ada", "owner", &dir.join("ada")).await.unwrap();
        let addresses = vault.addresses().main.clone();
        continuum_wire::ca::write_file(&dir.join("ready"), addresses.as_bytes(), 0o600).unwrap();
        std::future::pending::<()>().await;
    });
}

struct Killed(std::process::Child);
impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn vault_process(dir: &std::path::Path) -> (Killed, String) {
    let _ = std::fs::remove_file(dir.join("ready"));
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hostile::the_vault_as_a_process", "--nocapture"])
        .env("CONTINUUM_TEST_VAULT_DIR", dir)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let child = Killed(child);
    let address =
        eventually("the vault's process is ready", async || std::fs::read_to_string(dir.join("ready")).ok())
            .await;
    (child, address)
}

/// Every job reaches its end although the vault is killed over and over; nothing is left, nothing is doubled.
#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_killed_again_and_again_finishes_what_was_ordered() {
    let mut lab = Lab::start().await;
    lab.vault.take().unwrap().stop().await;
    let dir = lab.dir.path().to_owned();
    let (mut process, address) = vault_process(&dir).await;
    lab.operator = client(&Credentials::open(&dir.join("ada")).unwrap(), &address).await;
    let orders = [
        Order::Protect(pb::Protect::default()),
        Order::Bookmark(pb::Bookmark { name: "one".into(), app_consistent: false }),
        Order::TestFailover(pb::TestFailoverOrder::default()),
        Order::Cleanup(pb::Cleanup::default()),
        Order::Verify(pb::Verify::default()),
        Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: "latest".into() }),
        Order::Commit(pb::Commit {}),
        Order::Unprotect(pb::Unprotect { keep_replica: false }),
    ];
    let mut killed = 0;
    for (at, order) in orders.into_iter().enumerate() {
        let request = lab.request(order);
        let mut kills = 0;
        let job = loop {
            // Asked again under one key until it is known to have arrived; killed at another moment each time.
            let sent = lab.operator.clone().order(request.clone()).await;
            if kills < 2 {
                tokio::time::sleep(Duration::from_millis(7 + 29 * (2 * at as u64 + kills))).await;
                drop(process);
                killed += 1;
                kills += 1;
                (process, _) = vault_process(&dir).await;
                lab.operator = client(&Credentials::open(&dir.join("ada")).unwrap(), &address).await;
                continue;
            }
            break sent.unwrap().into_inner().job.unwrap();
        };
        let job = lab.ended(&job.id).await;
        assert_eq!(job.state, "succeeded", "{} {:?}", job.kind, job.fault);
    }
    drop(process);
    assert_eq!(killed, 16);
    let world = lab.world.lock();
    assert!(world.views.is_empty() && world.replicas.is_empty(), "nothing is left");
    let once = |name: &str| {
        let ids: std::collections::BTreeSet<_> =
            world.acts.iter().filter(|(_, act)| *act == name).map(|(id, _)| id.clone()).collect();
        ids.len()
    };
    assert_eq!(
        (once("barrier"), once("fence"), once("drop"), once("remove")),
        (1, 1, 1, 1),
        "{:?}",
        world.acts
    );
}
