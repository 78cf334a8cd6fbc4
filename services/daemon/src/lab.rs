//! The lab: two sites on this machine, every service and guest a process of its own.
//!
//! ```text
//! <dir>/lab.json               what this lab consists of; replaced atomically
//! <dir>/lock                   held by the one supervisor
//! <dir>/vault, process, target services' own
//! <dir>/machines/<name>/       disks, change maps, identity
//! <dir>/guest/                 kernel and settings of QEMU guests, where there are some
//! <dir>/profile/               how console and verbs reach the vault (see the console's profiles)
//! <dir>/logs/                  what each process said
//! <run>/                       sockets; short, because socket paths are
//! ```
//!
//! A process that ends is started again within 50 ms; they die with their supervisor. Machine names that
//! become folders are checked when a machine is added.

use crate::control::{Answer, Ask, NewMachine, Process};
use crate::role::{Hooks, Published, Role};
use continuum_fabric::lab::qemu;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{DiskId, JobId};
use continuum_model::policy::Policy;
use continuum_model::units::Bytes;
use continuum_model::world::{Clock, SystemClock, SystemEntropy};
use continuum_proto::v1 as pb;
use continuum_wire::tls::Credentials;
use pb::operator_client::OperatorClient;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

/// History that a lab keeps, in all.
const HISTORY: Bytes = Bytes::gib(1);
const RESTART_AFTER: Duration = Duration::from_millis(50);
const RESTART_AFTER_MAX: Duration = Duration::from_secs(2);
const PRIMARY: &str = "primary";
const SECONDARY: &str = "secondary";

/// What a lab is started with.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// Its directory.
    pub dir: PathBuf,
    /// How many machines a new one has.
    pub machines: u32,
    /// What runs on them: `process`, `qemu`, `none`.
    pub guests: String,
    /// How QEMU accelerates; `None`: as before, at first `tcg`.
    pub accel: Option<String>,
    /// A kernel for QEMU guests (a `.deb`, or where one was unpacked); `None`: fetched by apt.
    pub kernel: Option<PathBuf>,
}

/// How far the start is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// In words.
    pub text: String,
    /// Steps that are done.
    pub done: u32,
    /// Steps in all.
    pub total: u32,
}

/// What a lab consists of.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    machines: Vec<Machine>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Machine {
    name: String,
    guest: String,
    protect: bool,
    disks: Vec<(DiskId, String, u64)>,
}

struct Lab {
    dir: PathBuf,
    accel: Option<String>,
    kernel: Option<PathBuf>,
    run_dir: PathBuf,
    program: PathBuf,
    spec: Mutex<Spec>,
    processes: Mutex<BTreeMap<(String, String), Process>>,
    state: Mutex<&'static str>,
    vault: Mutex<Option<Published>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The directory of the lab that is meant where none is named.
pub fn default_dir() -> Result<PathBuf, Fault> {
    let dirs = directories::ProjectDirs::from("", "", "continuum");
    dirs.map(|dirs| dirs.data_dir().join("lab")).ok_or_else(|| {
        Fault::new(FaultClass::Configuration, "lab.home", "there is no home directory for the lab")
            .remedy("set HOME, or name a directory with --dir")
    })
}

fn failed(what: &str, error: impl std::fmt::Display) -> Fault {
    Fault::new(FaultClass::Failed, "lab.failed", format!("{what}: {error}"))
        .affects("the lab")
        .spares("everything outside its directory")
        .remedy("mend the cause and start it again; its state is kept")
}

/// Where a lab's sockets are: short, and different for every directory.
pub fn run_dir(dir: &Path) -> Result<PathBuf, Fault> {
    let hash = xxhash(dir.to_string_lossy().as_bytes());
    let base = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(|base| base.as_os_str().len() < 40 && base.is_dir());
    let path = base.unwrap_or_else(|| PathBuf::from("/tmp")).join(format!("continuum-{hash:012x}"));
    match std::fs::DirBuilder::new().mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let metadata =
                std::fs::symlink_metadata(&path).map_err(|error| failed("the folder for sockets", error))?;
            let ours = metadata.is_dir()
                && metadata.uid() == rustix::process::getuid().as_raw()
                && metadata.mode() & 0o077 == 0;
            if ours {
                Ok(path)
            } else {
                Err(failed("the folder for sockets", format!("{} belongs to someone else", path.display())))
            }
        }
        Err(error) => Err(failed("the folder for sockets", error)),
    }
}

/// FNV-1a: only to tell directories apart, 48 bits of it.
fn xxhash(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash >> 16
}

/// The socket on which a lab answers.
pub fn socket(dir: &Path) -> Result<PathBuf, Fault> {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    Ok(run_dir(&dir)?.join("lab.sock"))
}

/// Asks a running lab.
pub fn ask(dir: &Path, ask: &Ask) -> Result<Answer, Fault> {
    let patience = Duration::from_secs(if matches!(ask, Ask::Status) { 10 } else { 120 });
    let answer = crate::control::ask(&socket(dir)?, ask, patience).map_err(|error| {
        Fault::new(
            FaultClass::NotConnected,
            "lab.absent",
            format!("no lab answers in {}: {error}", dir.display()),
        )
        .spares("nothing was changed")
        .remedy(format!("start it with `continuum lab --dir {}`", dir.display()))
    })?;
    if answer.error.is_empty() {
        Ok(answer)
    } else {
        Err(Fault::new(FaultClass::NotReady, "lab.refused", answer.error))
    }
}

/// Removes what a lab made. It must not run.
pub fn reset(dir: &Path) -> Result<(), Fault> {
    if !dir.join("lab.json").exists() {
        return Err(Fault::new(
            FaultClass::NotFound,
            "lab.absent",
            format!("{} holds no lab; nothing was removed", dir.display()),
        ));
    }
    let _lock = lock(dir)?;
    for name in ["vault", "process", "target", "machines", "profile", "logs", "guest"] {
        match std::fs::remove_dir_all(dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("a folder could not be removed", error));
            }
            _ => {}
        }
    }
    for name in ["lab.json", "lock", "vault.json", "process.json", "target.json", "vault.address"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let canonical = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let _ = std::fs::remove_dir_all(run_dir(&canonical)?);
    Ok(())
}

/// Holds the lab's directory, against a second supervisor.
fn lock(dir: &Path) -> Result<File, Fault> {
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))
        .map_err(|error| failed("the lock", error))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Fault::new(FaultClass::Conflict, "lab.running", format!("a lab runs in {} already", dir.display()))
            .spares("it goes on")
            .remedy("use it, or stop it first: `continuum lab stop`")
    })?;
    Ok(lock)
}

/// Runs a lab until `stop`. `stages` hears how the start goes; a full queue is fine.
pub async fn run(
    options: LabOptions,
    stages: mpsc::Sender<Stage>,
    stop: CancellationToken,
) -> Result<(), Fault> {
    std::fs::create_dir_all(&options.dir).map_err(|error| failed("the directory of the lab", error))?;
    let dir =
        std::fs::canonicalize(&options.dir).map_err(|error| failed("the directory of the lab", error))?;
    let _lock = lock(&dir)?;
    let run_dir = run_dir(&dir)?;
    for name in ["logs", "machines"] {
        std::fs::create_dir_all(dir.join(name)).map_err(|error| failed("a folder of the lab", error))?;
    }
    let spec = match std::fs::read(dir.join("lab.json")) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed("lab.json", error))?,
        Err(_) => Spec { machines: first_machines(options.machines, &options.guests) },
    };
    let lab = Arc::new(Lab {
        program: std::env::current_exe().map_err(|error| failed("our own program", error))?,
        dir,
        accel: options.accel,
        kernel: options.kernel,
        run_dir,
        spec: Mutex::new(spec),
        processes: Mutex::default(),
        state: Mutex::new("starting"),
        vault: Mutex::new(None),
        stop: stop.child_token(),
        tasks: TaskTracker::new(),
    });
    lab.store_spec()?;
    let control = lab.clone().answer();
    let started = async {
        let started = lab.start(&stages).await;
        if started.is_ok() {
            *lab.state.lock().unwrap_or_else(PoisonError::into_inner) = "running";
        }
        started
    };
    let outcome = tokio::select! {
        started = started => match started {
            Ok(()) => {
                tokio::select! {
                    () = lab.stop.cancelled() => Ok(()),
                    ended = control => ended,
                }
            }
            Err(fault) => Err(fault),
        },
        () = lab.stop.cancelled() => Ok(()),
    };
    lab.stop.cancel();
    lab.tasks.close();
    lab.tasks.wait().await;
    lab.stop_brought_up();
    let _ = std::fs::remove_file(lab.run_dir.join("lab.sock"));
    let _ = std::fs::remove_file(lab.dir.join("profile/profile.toml"));
    outcome
}

fn first_machines(count: u32, guest: &str) -> Vec<Machine> {
    let names = [("web-01", vec![64]), ("app-01", vec![64]), ("db-01", vec![64, 32]), ("files-01", vec![96])];
    (0..count)
        .map(|n| {
            let (name, sizes) = names.get(n as usize).map_or_else(
                || (format!("node-{:02}", n + 1), vec![32]),
                |(name, sizes)| ((*name).to_owned(), sizes.clone()),
            );
            new_machine(&NewMachine {
                name,
                disks: sizes.iter().map(|size| size << 20).collect(),
                guest: guest.to_owned(),
                protect: true,
            })
        })
        .collect()
}

fn new_machine(new: &NewMachine) -> Machine {
    let clock = SystemClock::default();
    let disk = |(n, size): (usize, &u64)| {
        (DiskId::make(clock.wall(), &mut SystemEntropy), format!("disk{n}"), *size)
    };
    Machine {
        name: new.name.clone(),
        guest: new.guest.clone(),
        protect: new.protect,
        disks: new.disks.iter().enumerate().map(disk).collect(),
    }
}

/// A name that may become a folder: nothing else of a name ever becomes a path.
fn check_name(name: &str) -> Result<(), String> {
    let plain = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !name.starts_with('-');
    if plain {
        Ok(())
    } else {
        Err("a machine's name in the lab has 1 to 63 letters, digits and hyphens, and does not begin with a hyphen".into())
    }
}

impl Lab {
    fn spec(&self) -> MutexGuard<'_, Spec> {
        self.spec.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store_spec(&self) -> Result<(), Fault> {
        let text = serde_json::to_vec_pretty(&*self.spec()).map_err(|error| failed("lab.json", error))?;
        continuum_wire::ca::write_file(&self.dir.join("lab.json"), &text, 0o600)
            .map_err(|error| failed("lab.json", error))
    }

    async fn start(self: &Arc<Self>, stages: &mpsc::Sender<Stage>) -> Result<(), Fault> {
        let machines = self.spec().machines.clone();
        let total = 4 + machines.len() as u32;
        let tell = |done: u32, text: &str| {
            let _ = stages.try_send(Stage { text: text.to_owned(), done, total });
        };
        tell(0, "starting the vault");
        let address_file = self.dir.join("vault.address");
        let _ = std::fs::remove_file(&address_file);
        let machine_share = HISTORY.0 / machines.len().max(4) as u64;
        let mut vault = Role::Vault {
            dir: self.dir.join("vault"),
            name: "lab".into(),
            environment: "lab".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            listen_enrolment: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            sites: vec![(PRIMARY.into(), "lab".into(), false), (SECONDARY.into(), "lab".into(), true)],
            policy: Policy {
                history_bytes_max: Some(Bytes(machine_share)),
                crash_point_seconds: 60,
                rpo_threshold_seconds: 60,
                app_point_seconds: 600,
                ..Policy::default()
            },
            database: None,
            four_eyes: Vec::new(),
            process_server_lost_seconds: None,
            publish: Some(address_file.clone()),
        };
        let ports = free_ports().map_err(|error| failed("no free port", error))?;
        // Chosen anew at each start, and kept while it runs: a vault that is started again is found again.
        if let Role::Vault { listen, listen_enrolment, .. } = &mut vault {
            listen.set_port(ports.0);
            listen_enrolment.set_port(ports.1);
        }
        self.supervise("vault", "vault", self.role_command("vault", &vault)?);
        let published = self.wait_published(&address_file).await?;
        *self.vault.lock().unwrap_or_else(PoisonError::into_inner) = Some(published.clone());
        self.write_profile(&published).await?;
        tell(1, "starting the process server");
        let identity =
            self.identity("process-server", "ps-1", PRIMARY, &self.dir.join("process/identity")).await?;
        let role = Role::ProcessServer {
            name: "ps-1".into(),
            site: PRIMARY.into(),
            dir: self.dir.join("process"),
            identity,
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            vault_address: published.address.clone(),
            bandwidth: Vec::new(),
        };
        self.supervise("process-server", "ps-1", self.role_command("process", &role)?);
        tell(2, "starting the master target");
        let identity =
            self.identity("master-target", "mt-1", SECONDARY, &self.dir.join("target/identity")).await?;
        let role = Role::MasterTarget {
            name: "mt-1".into(),
            site: SECONDARY.into(),
            dir: self.dir.join("target"),
            run_dir: self.run_dir.clone(),
            identity,
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            vault_address: published.address.clone(),
            archive: None,
            machine: Some(self.machine_dir()),
        };
        self.supervise("master-target", "mt-1", self.role_command("target", &role)?);
        if machines.iter().any(|machine| machine.guest == "qemu") {
            tell(3, "preparing the Linux guests");
        }
        for (n, machine) in machines.iter().enumerate() {
            tell(3 + n as u32, &format!("starting {}", machine.name));
            self.start_machine(machine).await?;
        }
        tell(total, "running");
        Ok(())
    }

    async fn start_machine(self: &Arc<Self>, machine: &Machine) -> Result<(), Fault> {
        let published = self.vault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let vault_address = published.map(|published| published.address).unwrap_or_default();
        let home = self.dir.join("machines").join(&machine.name);
        std::fs::create_dir_all(&home).map_err(|error| failed("a machine's folder", error))?;
        let identity = self.identity("agent", &machine.name, PRIMARY, &home.join("identity")).await?;
        let number = self.spec().machines.iter().position(|other| other.name == machine.name).unwrap_or(0);
        let socket = self.run_dir.join(format!("m{number}.sock"));
        let hook = self.run_dir.join(format!("m{number}.hook"));
        if machine.guest == "qemu" {
            self.prepare_qemu(&home, &machine.disks).await?;
        }
        let role = Role::Agent {
            name: machine.name.clone(),
            site: PRIMARY.into(),
            fabric: "lab".into(),
            guest: machine.guest.clone(),
            disks: machine
                .disks
                .iter()
                .map(|(id, name, size)| (*id, name.clone(), home.join(format!("{name}.img")), Some(*size)))
                .collect(),
            follow: None,
            dir: home.join("agent"),
            socket: socket.clone(),
            identity: identity.clone(),
            vault_address,
            hooks: (machine.guest == "process").then(|| Hooks {
                socket: Some(hook.clone()),
                quiet: true,
                ..Hooks::default()
            }),
            group_listen: Some(([127, 0, 0, 1], 0).into()),
            group_advertise: None,
        };
        self.supervise(
            "agent",
            &machine.name,
            self.role_command(&format!("machines/{}/agent", machine.name), &role)?,
        );
        if machine.guest != "none" {
            let mut words = vec![
                "role".to_owned(),
                "guest".into(),
                "--with-parent".into(),
                "--format".into(),
                "--rate".into(),
                "20".into(),
            ];
            words.extend([
                "--heartbeat".into(),
                self.run_dir.join(format!("m{number}.hb")).display().to_string(),
            ]);
            if machine.guest == "process" {
                words.extend(["--hook".into(), hook.display().to_string()]);
            }
            if machine.guest == "qemu" {
                words.extend(["--machine".into(), self.machine_dir().display().to_string()]);
            }
            for (_, name, _) in &machine.disks {
                words.extend(["--disk".into(), format!("nbd+unix:///{name}?socket={}", socket.display())]);
            }
            self.supervise("guest", &machine.name, words);
        }
        if machine.protect {
            let id = Credentials::open(&identity)
                .map_err(|error| failed("a machine's identity", error))?
                .identity()
                .id;
            self.protect(&id).await?;
        }
        Ok(())
    }

    /// Kernel and settings of QEMU guests.
    fn machine_dir(&self) -> PathBuf {
        self.dir.join("guest")
    }

    /// What a QEMU guest needs: a kernel, and disks with a file system.
    async fn prepare_qemu(&self, home: &Path, disks: &[(DiskId, String, u64)]) -> Result<(), Fault> {
        let machine = self.machine_dir();
        let (accel, kernel) = (self.accel.clone(), self.kernel.clone());
        let disks: Vec<_> =
            disks.iter().map(|(_, name, size)| (home.join(format!("{name}.img")), *size)).collect();
        let prepare = move || {
            let stored = |error: std::io::Error| failed("guest.json", error);
            let mut hypervisor = qemu::Hypervisor::open(&machine).map_err(stored)?;
            hypervisor.check()?;
            qemu::image::prepare(&machine, kernel.as_deref())?;
            if let Some(accel) = accel {
                hypervisor.accel = accel;
            }
            hypervisor.store(&machine).map_err(stored)?;
            disks.iter().try_for_each(|(path, size)| qemu::make_disk(path, *size))
        };
        tokio::task::spawn_blocking(prepare)
            .await
            .map_err(|error| failed("preparing the Linux guest", error))?
    }

    /// Orders protection, as an operator would; the same order again gives the same job.
    async fn protect(&self, machine: &str) -> Result<(), Fault> {
        let mut client = self.client().await?;
        for _ in 0..600 {
            let request = pb::OrderRequest {
                key: format!("lab-protect-{machine}"),
                machine: machine.to_owned(),
                order: Some(pb::order_request::Order::Protect(pb::Protect {
                    policy: "default".into(),
                    target_site: SECONDARY.into(),
                    start_at_us: None,
                })),
                ..Default::default()
            };
            match client.order(request).await {
                Ok(_) => return Ok(()),
                Err(status) => {
                    let fault = continuum_wire::grpc::fault_of(&status);
                    // Protected already, by an earlier start.
                    if fault.code == "machine.protected" {
                        return Ok(());
                    }
                    if fault.code != "machine.unknown" {
                        return Err(fault);
                    }
                }
            }
            // Its agent has not told of it yet.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(failed("a machine did not appear in the inventory", machine))
    }

    async fn client(&self) -> Result<OperatorClient<Channel>, Fault> {
        let address = self
            .vault
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
            .map(|published| published.address)
            .unwrap_or_default();
        let credentials =
            Credentials::open(&self.dir.join("profile")).map_err(|error| failed("the profile", error))?;
        let channel =
            continuum_wire::grpc::channel(&credentials, &address, continuum_wire::identity::Role::Vault)
                .await?;
        Ok(OperatorClient::new(channel))
    }

    async fn write_profile(&self, published: &Published) -> Result<(), Fault> {
        let profile = self.dir.join("profile");
        let keeper = continuum_vault::Keeper::open(&self.dir.join("vault"), None).await?;
        keeper.make_operator("lab", "owner", &profile).await?;
        keeper.close().await;
        let text = format!("address = \"{}\"\nkey = \"file\"\n", published.address);
        continuum_wire::ca::write_file(&profile.join("profile.toml"), text.as_bytes(), 0o600)
            .map_err(|error| failed("the profile", error))
    }

    /// The identity in a folder, enrolled with a real one-use token where there is none.
    async fn identity(&self, role: &str, name: &str, site: &str, dir: &Path) -> Result<PathBuf, Fault> {
        if !Credentials::exist(dir) {
            let request = pb::CreateTokenRequest {
                role: role.into(),
                site: site.into(),
                machine: name.into(),
                lifetime_seconds: 600,
                ..Default::default()
            };
            let reply = self
                .client()
                .await?
                .create_token(request)
                .await
                .map_err(|status| continuum_wire::grpc::fault_of(&status))?;
            continuum_wire::enroll::enroll(&reply.into_inner().token, role, name, dir).await?;
        }
        Ok(dir.to_owned())
    }

    async fn wait_published(&self, path: &Path) -> Result<Published, Fault> {
        for _ in 0..1200 {
            if let Some(published) =
                std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
            {
                return Ok(published);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Err(failed(
            "the vault did not start within 30 s",
            format!("see {}", self.dir.join("logs/vault-vault.log").display()),
        ))
    }

    fn role_command(&self, file: &str, role: &Role) -> Result<Vec<String>, Fault> {
        let path = self.dir.join(format!("{file}.json"));
        let text = serde_json::to_vec_pretty(role).map_err(|error| failed("a role's file", error))?;
        continuum_wire::ca::write_file(&path, &text, 0o600)
            .map_err(|error| failed("a role's file", error))?;
        Ok(vec![
            "role".into(),
            "service".into(),
            "--with-parent".into(),
            "--config".into(),
            path.display().to_string(),
        ])
    }

    /// Keeps a process running until the lab stops.
    fn supervise(self: &Arc<Self>, role: &str, name: &str, words: Vec<String>) {
        let key = (role.to_owned(), name.to_owned());
        let entry = Process { role: role.into(), name: name.into(), pid: 0, restarts: 0 };
        self.processes.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), entry);
        let lab = self.clone();
        self.tasks.spawn(async move {
            let mut wait = RESTART_AFTER;
            while !lab.stop.is_cancelled() {
                let began = std::time::Instant::now();
                if let Err(error) = lab.run_once(&key, &words).await {
                    tracing::error!(role = key.0, name = key.1, %error, "a process could not be started");
                }
                lab.note(&key, |process| {
                    process.pid = 0;
                    process.restarts += 1;
                });
                // One that lived was killed or crashed for a reason of its own: start it again at once.
                wait = if began.elapsed() > Duration::from_secs(5) {
                    RESTART_AFTER
                } else {
                    (wait * 2).min(RESTART_AFTER_MAX)
                };
                tokio::select! {
                    () = lab.stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        });
    }

    fn note(&self, key: &(String, String), change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.processes.lock().unwrap_or_else(PoisonError::into_inner).get_mut(key) {
            change(process);
        }
    }

    async fn run_once(&self, key: &(String, String), words: &[String]) -> std::io::Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("logs").join(format!("{}-{}.log", key.0, key.1)))?;
        let mut child = Command::new(&self.program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.note(key, |process| {
            process.pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or(0)
        });
        tokio::select! {
            ended = child.wait() => {
                tracing::info!(role = key.0, name = key.1, "ended: {}", ended?);
                Ok(())
            }
            () = self.stop.cancelled() => {
                // In good order first.
                if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
                if tokio::time::timeout(Duration::from_secs(7), child.wait()).await.is_err() {
                    child.kill().await?;
                }
                Ok(())
            }
        }
    }

    /// Machines that were brought up are processes of their own: they end with the lab, too. Their views stay
    /// on record, and they come up again with it.
    fn stop_brought_up(&self) {
        let compute = continuum_fabric::lab::LabCompute::new(self.program.clone(), None);
        let views = std::fs::read_dir(self.dir.join("target/views")).into_iter().flatten().flatten();
        for view in views {
            let record = std::fs::read(view.path())
                .ok()
                .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok());
            let guest = record.and_then(|mut record| serde_json::from_value(record["guest"].take()).ok());
            if let Some(guest) = guest
                && let Err(error) = continuum_fabric::compute::Compute::stop(&compute, &guest)
            {
                tracing::error!(%error, "a machine that was brought up does not end");
            }
        }
    }

    /// Answers on the control socket.
    async fn answer(self: Arc<Self>) -> Result<(), Fault> {
        let path = self.run_dir.join("lab.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(|error| failed("the control socket", error))?;
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let lab = self.clone();
            tokio::spawn(async move {
                let (input, mut output) = stream.into_split();
                let mut line = String::new();
                if BufReader::new(input.take(1 << 20)).read_line(&mut line).await.is_err() {
                    return;
                }
                let answer = match serde_json::from_str::<Ask>(&line) {
                    Ok(ask) => lab.heard(ask).await,
                    Err(error) => Err(error.to_string()),
                };
                let answer = Answer {
                    error: answer.err().unwrap_or_default(),
                    state: (*lab.state.lock().unwrap_or_else(PoisonError::into_inner)).into(),
                    dir: lab.dir.display().to_string(),
                    processes: lab
                        .processes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .values()
                        .cloned()
                        .collect(),
                };
                let text = serde_json::to_string(&answer).unwrap_or_default();
                // Whoever asked may be gone.
                let _ = output.write_all((text + "\n").as_bytes()).await;
            });
        }
    }

    async fn heard(self: &Arc<Self>, ask: Ask) -> Result<(), String> {
        match ask {
            Ask::Status => Ok(()),
            Ask::Stop => {
                self.stop.cancel();
                Ok(())
            }
            Ask::Add(new) => {
                check_name(&new.name)?;
                if !matches!(new.guest.as_str(), "process" | "qemu" | "none") {
                    return Err(format!(
                        "a lab runs no guests of the kind '{}': choose process, qemu or none",
                        continuum_model::untrusted::shown(&new.guest)
                    ));
                }
                if new.disks.is_empty()
                    || new.disks.len() > 16
                    || new.disks.iter().any(|size| !(1 << 20..=1 << 40).contains(size) || size % 4096 != 0)
                {
                    return Err(
                        "a machine has 1 to 16 disks of 1 MiB to 1 TiB, in whole blocks of 4 KiB".into()
                    );
                }
                let least = match new.guest.as_str() {
                    "process" => 8 << 20,
                    "qemu" => 16 << 20,
                    _ => 0,
                };
                if new.disks.iter().any(|size| *size < least) {
                    return Err(format!("such a guest needs disks of at least {} MiB", least >> 20));
                }
                let machine = new_machine(&new);
                {
                    let mut spec = self.spec();
                    if spec.machines.iter().any(|other| other.name == new.name) {
                        return Err(format!("there is a machine {} already", new.name));
                    }
                    spec.machines.push(machine.clone());
                }
                self.store_spec().map_err(|fault| fault.to_string())?;
                self.start_machine(&machine).await.map_err(|fault| fault.to_string())
            }
        }
    }
}

/// Two ports that are free now.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let first = std::net::TcpListener::bind("127.0.0.1:0")?;
    let second = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

/// A key that no order had before.
pub fn order_key() -> String {
    JobId::make(SystemClock::default().wall(), &mut SystemEntropy).to_string()
}
