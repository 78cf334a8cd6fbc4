//! Services from configuration files, as the README says it: no lab, every step by a person's commands.

use continuum_tests::lab::binary;
use continuum_tests::oracle;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub(super) struct Service(pub(super) Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) struct Estate {
    pub(super) dir: tempfile::TempDir,
    /// For every program of it.
    variables: Vec<(&'static str, String)>,
}

impl Estate {
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ct-hl-").tempdir_in("/tmp").expect("a folder");
        Self { dir, variables: Vec::new() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn daemon(&self) -> Command {
        let mut command = Command::new(binary().with_file_name("continuumd"));
        command.envs(self.variables.iter().cloned());
        command
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.daemon().args(words).stdin(Stdio::null()).output().expect("continuumd runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(super) fn serve(&self, config: &Path, role: &str) -> Service {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).expect("a log");
        let mut command = self.daemon();
        command.args(["serve", "--role", role, "--config"]).arg(config).stdin(Stdio::null());
        Service(command.stdout(Stdio::null()).stderr(log).spawn().expect("continuumd runs"))
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    #[track_caller]
    pub(super) fn json(&self, words: &[&str]) -> Value {
        let output = self.verb(words).output().expect("continuum runs");
        assert!(output.status.success(), "{words:?}: {output:?}\n{}", self.log());
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub(super) fn verb(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.env("HOME", self.dir.path()).env("CONTINUUM_CONFIG_DIR", self.path("config"));
        command.envs(self.variables.iter().cloned());
        command.env_remove("CONTINUUM_DIR").args(words).args(["-o", "json"]).stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub(super) fn until(&self, what: &str, mut check: impl FnMut() -> bool) {
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
    /// Starts everything in its order, and lets everybody in.
    pub(super) fn up(&self, config: &Path, vault: u16) -> [Service; 3] {
        let config_path = config.to_str().expect("UTF-8");
        self.done(&["check-config", "--role", "vault", "--config", config_path]);
        let vault_service = self.serve(config, "vault");
        self.until("the vault listens", || self.path("vault/address.json").exists());
        let (vault_dir, ada) = (self.path("vault"), self.path("ada"));
        let (vault_dir, ada) = (vault_dir.to_str().expect("UTF-8"), ada.to_str().expect("UTF-8"));
        let make =
            ["operator", "make", "--vault-dir", vault_dir, "--role", "owner", "--name", "ada", "--out", ada];
        self.done(&make);
        self.json(&["login", &format!("127.0.0.1:{vault}"), "--credentials", ada, "--name", "main"]);
        self.enrol("process-server", "ps", "here");
        self.enrol("master-target", "mt", "there");
        std::fs::create_dir_all(self.path("app1")).expect("a folder");
        self.enrol("agent", "app1", "here");
        self.done(&["check-config", "--config", config_path]);
        let servers = self.serve(config, "process,target");
        let agent = self.serve(config, "agent");
        self.until("all are connected", || {
            let servers = self.json(&["get", "servers"]);
            let servers = servers.as_array().expect("a list").clone();
            servers.iter().filter(|server| server["connected"] == true).count() == 4
        });
        [vault_service, servers, agent]
    }

    fn is_healthy(&self) -> bool {
        let output = self.verb(&["describe", "machine", "app1"]).output().expect("continuum runs");
        let machine: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        machine["state"] == "protected" && machine["mode"] == "data" && machine["health"] == "healthy"
    }
}

pub(super) fn ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

/// A file with every role; its disk is of 32 MiB.
pub(super) fn configuration(
    root: &Path,
    [vault, enrolment, process, target]: [u16; 4],
    archive: &str,
) -> String {
    let root = root.display();
    format!(
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
{archive}
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
    )
}

#[test]
fn services_from_configuration_files_protect_a_disk() {
    let estate = Estate::new();
    let ports = ports();
    let root = estate.dir.path().display();
    let config = estate.path("continuumd.toml");
    let text = configuration(estate.dir.path(), ports, "");
    std::fs::write(&config, text).expect("a file");
    let config_path = config.to_str().expect("UTF-8");

    // Whole, it cannot be started before its servers are enrolled; its vault can.
    let refused = estate.daemon().args(["check-config", "--config", config_path]).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("enrol first"), "{refused:?}");
    let [vault_service, _servers, _agent] = estate.up(&config, ports[0]);
    let vault_dir = estate.path("vault");
    let vault_dir = vault_dir.to_str().expect("UTF-8");

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
    estate.until("it is protected", || estate.is_healthy());
    // The vault dies and comes back: nobody else notices.
    drop(vault_service);
    let _vault = estate.serve(&config, "vault");
    written("0x22");
    estate.until("it is healthy again", || estate.is_healthy());
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

/// A server that speaks S3, with a bucket.
fn object_storage() -> (Service, u16) {
    let [port] = ports();
    let target = binary().ancestors().nth(2).expect("target/<profile>/continuum").to_owned();
    let mut command = Command::new(target.join("objects/venv/bin/moto_server"));
    command.args(["-H", "127.0.0.1", "-p", &port.to_string()]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let service = Service(command.spawn().expect("`tests/run` installs moto"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "it does not listen: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let request = format!(
        "PUT /replicas HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("it is asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    (service, port)
}

/// Bytes below every folder called `journal`.
pub(super) fn journals(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => journals(&entry.path()),
            Ok(_) if dir.ends_with("journal") => entry.metadata().map_or(0, |file| file.len()),
            Ok(_) | Err(_) => 0,
        })
        .sum()
}

#[test]
fn a_seed_is_compared_and_a_replica_is_archived_while_it_goes_on() {
    const MIB: usize = 1 << 20;
    let (_storage, port) = object_storage();
    let mut estate = Estate::new();
    estate.variables = vec![
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".into()),
        ("AWS_REGION", "us-east-1".into()),
        ("AWS_ACCESS_KEY_ID", "test".into()),
        ("AWS_SECRET_ACCESS_KEY", "test".into()),
    ];
    let ports = ports();
    let config = estate.path("continuumd.toml");
    let archive = "archive = \"s3://replicas/berlin\"\narchive_seconds = 10";
    std::fs::write(&config, configuration(estate.dir.path(), ports, archive)).expect("a file");
    let _services = estate.up(&config, ports[0]);

    // The disk holds what does not compress; its seed is of yesterday, and differs in two places.
    let source = format!("nbd+unix:///disk0?socket={}/app1.sock", estate.dir.path().display());
    let mut data = vec![0; 16 * MIB];
    ChaCha8Rng::seed_from_u64(16).fill_bytes(&mut data);
    let image = estate.path("data");
    std::fs::write(&image, &data).expect("an image");
    let copied = Command::new("nbdcopy").arg(&image).arg(&source).status().expect("nbdcopy runs");
    assert!(copied.success());
    let machines = estate.json(&["get", "machines"]);
    let id = machines[0]["id"].as_str().expect("an id").to_owned();
    let seeds = estate.path("mt/replicas/seeds").join(&id);
    std::fs::create_dir_all(&seeds).expect("a folder");
    data[3 * MIB..3 * MIB + 100].fill(7);
    data[9 * MIB - 5..9 * MIB + 5].fill(8);
    std::fs::write(seeds.join("0.raw"), &data).expect("a seed");

    estate.json(&["protect", "app1", "--to", "there"]);
    estate.until("it is protected", || estate.is_healthy());
    let verified = estate.json(&["verify", "app1"]);
    assert_eq!(verified["disks"][0]["equal"], true, "{verified}");
    // The seed is in the journal, and beside it what differed; not everything twice.
    let bytes = journals(estate.dir.path()) as usize;
    assert!((16 * MIB..18 * MIB).contains(&bytes), "{bytes} bytes of journal");
    // Of the seed alone nothing can be brought up.
    let oldest = estate.json(&["describe", "machine", "app1"])["oldest_point"].clone();
    assert!(oldest.is_string(), "{oldest}");

    // The machine writes on, and is archived; what lies there is opened without anything of ours.
    let write = ["-f", "raw", "-c", "write -P 0x33 20M 1M", "-c", "flush", &source];
    assert!(Command::new("qemu-io").args(write).output().expect("qemu-io runs").status.success());
    let address = format!("s3://replicas/berlin/{id}");
    let exported = estate.path("exported.raw");
    let path = exported.to_str().expect("UTF-8");
    let newest = |image: &[u8]| image[20 * MIB..21 * MIB].iter().all(|byte| *byte == 0x33);
    estate.until("the newest write is in the archive", || {
        let _ = std::fs::remove_file(&exported);
        let done = estate.verb(&["export", &address, path]).output().expect("continuum runs");
        done.status.success() && newest(&std::fs::read(&exported).expect("an image"))
    });
    let image = std::fs::read(&exported).expect("an image");
    let now = oracle::read_image(&source).expect("the source is read");
    assert!(image == now, "the archive is the disk");

    // A point that is locked stays, and its replica with it, whatever an operator orders.
    estate.json(&["bookmark", "app1", "audit"]);
    let points = estate.json(&["get", "points", "app1"]);
    let point = points.as_array().and_then(|points| points.iter().find(|point| point["name"] == "audit"));
    let point = point.expect("a bookmark")["id"].as_str().expect("an id").to_owned();
    estate.json(&["pin", "app1", &point, "--lock-days", "1", "--yes"]);
    estate.json(&["pin", "app1", &point, "--remove"]);
    let points = estate.json(&["get", "points", "app1"]);
    let is_locked = |point: &&Value| point["locked_until"].is_string() && point["pinned"] == false;
    assert_eq!(points.as_array().expect("a list").iter().filter(is_locked).count(), 1, "{points}");
    let refused =
        estate.verb(&["unprotect", "app1", "--yes", "--confirm", "app1"]).output().expect("it runs");
    let told =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("replica.locked"), "{told}");
    estate.until("its replica is there", || {
        estate.path("mt/replicas/replicas").join(&id).join("manifest").exists()
    });
}
