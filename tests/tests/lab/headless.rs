//! Services from configuration files, as the README says it: no lab, every step by a person's commands.

use continuum_tests::lab::binary;
use continuum_tests::oracle;
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Estate {
    dir: tempfile::TempDir,
}

impl Estate {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn daemon(&self) -> Command {
        Command::new(binary().with_file_name("continuumd"))
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.daemon().args(words).stdin(Stdio::null()).output().expect("continuumd runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn serve(&self, config: &Path, role: &str) -> Service {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let mut command = self.daemon();
        command.args(["serve", "--role", role, "--config"]).arg(config).stdin(Stdio::null());
        Service(command.stdout(Stdio::null()).stderr(log).spawn().expect("continuumd runs"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    #[track_caller]
    fn json(&self, words: &[&str]) -> Value {
        let output = self.verb(words).output().expect("continuum runs");
        assert!(output.status.success(), "{words:?}: {output:?}\n{}", self.log());
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.env("HOME", self.dir.path()).env("CONTINUUM_CONFIG_DIR", self.path("config"));
        command.env_remove("CONTINUUM_DIR").args(words).args(["-o", "json"]).stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !check() {
            assert!(Instant::now() < deadline, "never: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A token, used up by a server.
    fn enrol(&self, role: &str, name: &str, site: &str) {
        let token = self.json(&["token", role, "--site", site]);
        let file = self.path("token");
        std::fs::write(&file, token["token"].as_str().expect("a token")).expect("a file");
        let identity = self.path(&format!("{name}/identity"));
        let paths = [file.to_str().expect("UTF-8"), identity.to_str().expect("UTF-8")];
        let words = ["--role", role, "--name", name, "--identity", paths[1], "--token-file", paths[0]];
        self.done(&[&["enroll"][..], &words].concat());
    }
}

fn ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

#[test]
fn services_from_configuration_files_protect_a_disk() {
    let estate =
        Estate { dir: tempfile::Builder::new().prefix("ct-hl-").tempdir_in("/tmp").expect("a folder") };
    let [vault, enrolment, process, target] = ports();
    let root = estate.dir.path().display();
    let config = estate.path("continuumd.toml");
    let text = format!(
        r#"
[vault]
dir = "{root}/vault"
listen = "127.0.0.1:{vault}"
listen_enrolment = "127.0.0.1:{enrolment}"
[[vault.sites]]
name = "here"
fabric = "physical"
[[vault.sites]]
name = "there"
fabric = "physical"
recovery = true
[process_server]
name = "ps"
site = "here"
dir = "{root}/ps/spool"
identity = "{root}/ps/identity"
listen = "127.0.0.1:{process}"
vault = "127.0.0.1:{vault}"
[master_target]
name = "mt"
site = "there"
dir = "{root}/mt/replicas"
run_dir = "{root}/mt/run"
identity = "{root}/mt/identity"
listen = "127.0.0.1:{target}"
vault = "127.0.0.1:{vault}"
[[agent]]
name = "app1"
site = "here"
dir = "{root}/app1/agent"
socket = "{root}/app1.sock"
identity = "{root}/app1/identity"
vault = "127.0.0.1:{vault}"
[[agent.disks]]
name = "disk0"
path = "{root}/app1/disk0.raw"
create_bytes = 33554432
"#
    );
    std::fs::write(&config, text).expect("a file");
    let config_path = config.to_str().expect("UTF-8");

    // Whole, it cannot be started before its servers are enrolled; its vault can.
    let refused = estate.daemon().args(["check-config", "--config", config_path]).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("enrol first"), "{refused:?}");
    estate.done(&["check-config", "--role", "vault", "--config", config_path]);
    let vault_service = estate.serve(&config, "vault");
    estate.until("the vault listens", || estate.path("vault/address.json").exists());
    let (vault_dir, ada) = (estate.path("vault"), estate.path("ada"));
    let (vault_dir, ada) = (vault_dir.to_str().expect("UTF-8"), ada.to_str().expect("UTF-8"));
    estate.done(&[
        "operator",
        "make",
        "--vault-dir",
        vault_dir,
        "--role",
        "owner",
        "--name",
        "ada",
        "--out",
        ada,
    ]);
    estate.json(&["login", &format!("127.0.0.1:{vault}"), "--credentials", ada, "--name", "main"]);
    estate.enrol("process-server", "ps", "here");
    estate.enrol("master-target", "mt", "there");
    std::fs::create_dir_all(estate.path("app1")).expect("a folder");
    estate.enrol("agent", "app1", "here");
    estate.done(&["check-config", "--config", config_path]);
    let _servers = estate.serve(&config, "process,target");
    let _agent = estate.serve(&config, "agent");
    estate.until("all are connected", || {
        let servers = estate.json(&["get", "servers"]);
        let servers = servers.as_array().expect("a list").clone();
        servers.iter().filter(|server| server["connected"] == true).count() == 4
    });

    // A foreign client writes; the machine is protected, and a moment of it is served elsewhere.
    let source = format!("nbd+unix:///disk0?socket={root}/app1.sock");
    let written = |pattern: &str| {
        let write = format!("write -P {pattern} 1M 1M");
        let output =
            Command::new("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush", &source]).output();
        assert!(output.expect("qemu-io runs").status.success());
    };
    written("0x11");
    estate.json(&["protect", "app1", "--to", "there"]);
    let healthy = || {
        let machine = estate.json(&["describe", "machine", "app1"]);
        machine["state"] == "protected" && machine["mode"] == "data" && machine["health"] == "healthy"
    };
    estate.until("it is protected", healthy);
    // The vault dies and comes back: nobody else notices.
    drop(vault_service);
    let _vault = estate.serve(&config, "vault");
    written("0x22");
    estate.until("it is healthy again", || {
        estate.verb(&["describe", "machine", "app1"]).output().is_ok_and(|output| output.status.success())
            && healthy()
    });
    let drill = estate.json(&["test-failover", "app1"]);
    let endpoint = drill["machines"][0]["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();
    let image = oracle::read_image(&endpoint).expect("the replica is read");
    assert!(image[1 << 20..2 << 20].iter().all(|byte| *byte == 0x22), "the newest write is there");
    assert!(image[2 << 20..].iter().all(|byte| *byte == 0), "and nothing else");
    estate.json(&["cleanup", "app1"]);
    let verified = estate.json(&["verify", "app1"]);
    assert_eq!(verified["disks"][0]["equal"], true, "{verified}");

    // A guest that writes another format's header, with a file of ours in it, gets no file of ours: a disk is raw,
    // whatever it looks like.
    let trap = estate.path("trap.qcow2");
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"]).arg(&trap).arg("32M");
    assert!(create.status().expect("qemu-img runs").success());
    let header = std::fs::read(&trap).expect("a file");
    let mut copy = Command::new("nbdcopy").arg(&trap).arg(&source).spawn().expect("nbdcopy runs");
    assert!(copy.wait().expect("it ends").success());
    let drill = estate.json(&["test-failover", "app1"]);
    let endpoint = drill["machines"][0]["disks"][0]["endpoint"].as_str().expect("an endpoint").to_owned();
    let image = oracle::read_image(&endpoint).expect("the replica is read");
    assert!(image.len() == 32 << 20 && image.starts_with(&header), "the header is data");
    estate.json(&["cleanup", "app1"]);

    // Access that is taken away is away.
    estate.done(&["operator", "revoke", "--vault-dir", vault_dir, "--name", "ada"]);
    estate.until("she is turned away", || {
        estate.verb(&["get", "machines"]).output().is_ok_and(|output| output.status.code() == Some(5))
    });
    let audit = estate.done(&["audit", "--vault-dir", vault_dir]);
    assert!(audit.contains("revoke-operator") && audit.contains("the chain holds"), "{audit}");
}
