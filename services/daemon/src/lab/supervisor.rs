//! All of a lab, from its start to its end.
//!
//! ```text
//! lock ─► lab.json ─► vault up (address) ─► process server, master target, agents ─► guests ─► protections
//! end: guests ─► agents ─► process server ─► master target ─► vault ─► whatever else is on record ─► lock
//! ```

use super::control::{self, AddMachine, Added, Status};
use super::enrol::{self, Known};
use super::estate::{Estate, FABRIC, HISTORY_BYTES_MAX, Machine, PRIMARY, RECOVERY, trouble};
use super::keeper::{GRACE, Kept, Table, failed};
use super::{LabOptions, Progress, Stage};
use crate::role::{DiskOrders, Orders, RoleOrders, Server, own_program};
use continuum_fabric::compute::{Compute, GuestDisk, GuestSettings, GuestSpec};
use continuum_fabric::lab::LabCompute;
use continuum_fabric::process::{ProcessRecord, replace_file};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::policy::Policy;
use continuum_model::units::Bytes;
use continuum_model::untrusted::shown;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A running lab.
pub(super) struct Lab {
    dir: PathBuf,
    program: PathBuf,
    estate: Mutex<Estate>,
    table: Table,
    /// It is to end.
    pub(super) stop: CancellationToken,
    /// It has ended, but for the lock.
    pub(super) ended: CancellationToken,
    address: watch::Sender<Option<String>>,
    known: watch::Sender<Known>,
    progress: mpsc::Sender<Progress>,
    told: Mutex<Option<Progress>>,
    compute: Arc<LabCompute>,
    guests: Tier,
    agents: Tier,
}

/// Processes that are ended together.
#[derive(Default)]
struct Tier {
    stop: CancellationToken,
    tasks: Mutex<JoinSet<()>>,
}

impl Tier {
    fn keep(&self, keeping: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(keeping);
    }
    async fn end(&self) {
        self.stop.cancel();
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        while tasks.join_next().await.is_some() {}
    }
}

/// Runs the lab until `stop`, or until somebody stops it over its socket. Made where there is none, else
/// taken up where it was left.
///
/// `progress` is told how far the start is; what it does not take is left out.
/// Errors: `Conflict` (`lab.running`) where it runs already: whoever wants it can use it.
pub async fn run(
    options: LabOptions,
    progress: mpsc::Sender<Progress>,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let dir = std::path::absolute(&options.dir).map_err(|error| trouble(&options.dir, error))?;
    let _ = progress.try_send(Progress {
        stage: Stage::Preparing,
        detail: format!("the lab in {}", shown(&dir.display().to_string())),
        done: 0,
        total: 1,
    });
    super::estate::private_folder(&dir)?;
    let lock = hold(&dir).await?;
    let estate = match Estate::read(&dir)? {
        Some(estate) => estate,
        None => {
            let guest = options.guests.as_deref().unwrap_or("process");
            let estate = Estate::make(&dir, options.machines.unwrap_or(4), guest, options.seed)?;
            // First of all: what says that everything else is ours to remove.
            estate.write(&dir)?;
            estate
        }
    };
    estate.make_folders(&dir)?;
    let program = match options.program {
        Some(program) => program,
        None => own_program()?,
    };
    let listener = listen(&estate)?;
    let compute = LabCompute::new(&program, dir.join("guests"), &estate.run_dir)
        .living_with(Some(dir.join("lab.lock")));
    let lab = Arc::new(Lab {
        dir,
        program,
        estate: Mutex::new(estate),
        table: Table::default(),
        stop,
        ended: CancellationToken::new(),
        address: watch::Sender::new(None),
        known: watch::Sender::default(),
        progress,
        told: Mutex::default(),
        compute: Arc::new(compute),
        guests: Tier::default(),
        agents: Tier::default(),
    });
    let answering = tokio::spawn(control::serve(lab.clone(), listener));
    lab.clone().live().await;
    lab.ended.cancel();
    let _ = answering.await;
    let socket = control::socket(&lab.estate());
    let _ = std::fs::remove_file(socket);
    drop(lock);
    Ok(())
}

/// Takes the lock. Where processes of a lab that was killed are still on their way out, waits for them.
async fn hold(dir: &Path) -> Result<File, Fault> {
    let path = dir.join("lab.lock");
    let file =
        File::options().create(true).append(true).open(&path).map_err(|error| trouble(&path, error))?;
    for _ in 0..40 {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(trouble(&path, error)),
        }
        // Whoever waits for the lock to find out that the lab is gone has it for an instant. There is no
        // event for `somebody else holds it only in passing`.
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Err(Fault::new(
        FaultClass::Conflict,
        "lab.running",
        format!("the lab in {} runs already", shown(&dir.display().to_string())),
    )
    .spares("the running lab")
    .remedy("use it, or end it with `continuum lab stop`"))
}

fn listen(estate: &Estate) -> Result<UnixListener, Fault> {
    let path = control::socket(estate);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).map_err(|error| trouble(&path, error))?;
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&path, owner_only).map_err(|error| trouble(&path, error))?;
    Ok(listener)
}

impl Lab {
    fn estate(&self) -> Estate {
        self.estate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub(super) fn machines(&self) -> Vec<Machine> {
        self.estate().machines
    }
    pub(super) fn id(&self) -> String {
        self.estate().id
    }
    pub(super) fn profile(&self) -> PathBuf {
        self.dir.join("profile")
    }

    /// Tells how far it is, when that changed. Ready stays ready: what goes wrong later is health, not a start.
    pub(super) fn tell(&self, progress: Progress) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let news = told.as_ref().is_none_or(|told| {
            *told != progress && (told.stage != Stage::Ready || progress.stage == Stage::Stopping)
        });
        if news {
            let _ = self.progress.try_send(progress.clone());
            *told = Some(progress);
        }
    }

    /// The order to protect a machine was given: never again by itself.
    pub(super) fn was_ordered(&self, number: u32) {
        let mut estate = self.estate.lock().unwrap_or_else(PoisonError::into_inner);
        for machine in estate.machines.iter_mut().filter(|machine| machine.number == number) {
            machine.protect = false;
        }
        if let Err(fault) = estate.write(&self.dir) {
            tracing::error!(code = fault.code, "{}", fault.message);
        }
    }

    pub(super) fn status(&self) -> Status {
        Status {
            dir: self.dir.clone(),
            running: true,
            supervisor: i32::try_from(std::process::id()).ok(),
            processes: self.table.list(),
        }
    }

    async fn live(self: Arc<Self>) {
        let (vault, gateway, target) = (Tier::default(), Tier::default(), Tier::default());
        self.tell(Progress { stage: Stage::Vault, detail: "the vault starts".into(), done: 0, total: 1 });
        vault.keep(self.clone().keep_vault(vault.stop.clone()));
        gateway.keep(self.clone().keep_server("process-server", gateway.stop.clone()));
        target.keep(self.clone().keep_server("master-target", target.stop.clone()));
        for machine in self.machines() {
            self.begin(machine);
        }
        let following =
            tokio::spawn(enrol::follow(self.clone(), self.address.subscribe(), self.known.clone()));
        self.stop.cancelled().await;
        self.tell(Progress {
            stage: Stage::Stopping,
            detail: "ending all processes".into(),
            done: 0,
            total: 1,
        });
        let _ = following.await;
        for tier in [&self.guests, &self.agents, &gateway, &target, &vault] {
            tier.end().await;
        }
        let dir = self.dir.clone();
        let _ = tokio::task::spawn_blocking(move || sweep(&dir)).await;
    }

    fn begin(self: &Arc<Self>, machine: Machine) {
        self.agents.keep(self.clone().keep_agent(machine.clone()));
        if machine.guest != "none" {
            self.guests.keep(self.clone().keep_guest(machine));
        }
    }

    fn kept(&self, role: &'static str, name: &str, dir: PathBuf, log: &str, stop: CancellationToken) -> Kept {
        Kept {
            role,
            name: name.to_owned(),
            program: self.program.clone(),
            log: self.dir.join("logs").join(format!("{log}.log")),
            table: self.table.clone(),
            dir,
            stop,
        }
    }

    fn write_orders(&self, dir: &Path, role: RoleOrders) -> Result<(), Fault> {
        super::estate::private_folder(dir)?;
        let orders = Orders { lives_with: self.dir.join("lab.lock"), run_dir: self.estate().run_dir, role };
        let path = dir.join("role.json");
        let text = serde_json::to_vec_pretty(&orders).map_err(|error| trouble(&path, error))?;
        replace_file(&path, &text).map_err(|error| trouble(&path, error))
    }

    async fn keep_vault(self: Arc<Self>, stop: CancellationToken) {
        let dir = self.dir.join("vault");
        let kept = self.kept("vault", "vault", dir.clone(), "vault", stop);
        let machines = u64::try_from(self.machines().len()).unwrap_or(4).max(4);
        let policy = Policy {
            history_bytes_max: Some(Bytes(HISTORY_BYTES_MAX / machines)),
            crash_point_seconds: 30,
            rpo_threshold_seconds: 15,
            staging_bytes_max: Bytes::mib(256),
            ..Policy::default()
        };
        let prepare = || {
            let role = RoleOrders::Vault {
                name: "lab".into(),
                sites: vec![(PRIMARY.into(), FABRIC.into(), false), (RECOVERY.into(), FABRIC.into(), true)],
                policy: policy.clone(),
                profile: self.profile(),
            };
            std::future::ready(self.write_orders(&dir, role))
        };
        let up = |up: crate::role::Up| {
            self.address.send_if_modified(|address| {
                let changed = *address != up.address;
                *address = up.address;
                changed
            });
        };
        kept.keep(prepare, up, std::future::pending).await;
    }

    /// Waits until the vault listens somewhere.
    async fn vault_address(&self) -> Result<String, Fault> {
        let mut address = self.address.subscribe();
        let address = address.wait_for(Option::is_some).await.map_err(|_| failed("the lab ends"))?;
        Ok(address.clone().unwrap_or_default())
    }

    /// Ends when the vault listens elsewhere than it did.
    async fn vault_moved(&self) {
        let mut address = self.address.subscribe();
        let first = address.borrow_and_update().clone();
        if address.wait_for(|now| *now != first).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn keep_server(self: Arc<Self>, role: &'static str, stop: CancellationToken) {
        let dir = self.dir.join(role);
        let (name, site) =
            if role == "master-target" { ("target-01", RECOVERY) } else { ("gateway-01", PRIMARY) };
        let kept = self.kept(role, name, dir.clone(), role, stop);
        let prepare = || async {
            let vault = self.vault_address().await?;
            let server = Server { name: name.into(), site: site.into(), vault: vault.clone() };
            let orders = if role == "master-target" {
                RoleOrders::MasterTarget(server)
            } else {
                RoleOrders::ProcessServer(server)
            };
            self.write_orders(&dir, orders)?;
            enrol::token(&self, &vault, &dir, role, name).await
        };
        kept.keep(prepare, |_| {}, || self.vault_moved()).await;
    }

    async fn keep_agent(self: Arc<Self>, machine: Machine) {
        let dir = machine.dir(&self.dir);
        let log = format!("agent-m{:04}", machine.number);
        let kept = self.kept("agent", &machine.name, dir.clone(), &log, self.agents.stop.clone());
        let prepare = || async {
            let vault = self.vault_address().await?;
            let disks = machine.disks.iter().enumerate().map(|(at, disk)| DiskOrders {
                id: disk.id,
                name: disk.name.clone(),
                path: dir.join(format!("disk-{at}.raw")),
                bytes: disk.bytes,
            });
            let role = RoleOrders::Agent {
                server: Server { name: machine.name.clone(), site: PRIMARY.into(), vault: vault.clone() },
                fabric: FABRIC.into(),
                guest: machine.guest.clone(),
                disks: disks.collect(),
                socket: machine.socket(&self.estate().run_dir),
            };
            self.write_orders(&dir, role)?;
            enrol::token(&self, &vault, &dir, "agent", &machine.name).await
        };
        kept.keep(prepare, |_| {}, || self.vault_moved()).await;
    }

    /// A guest is a process that nobody owns: it is watched by its record.
    async fn keep_guest(self: Arc<Self>, machine: Machine) {
        let estate = self.estate();
        let disk = |disk: &super::estate::Disk| GuestDisk {
            name: disk.name.clone(),
            uri: machine.endpoint(&estate.run_dir, disk),
        };
        let spec = GuestSpec {
            id: format!("source-m{:04}", machine.number),
            name: machine.name.clone(),
            kind: machine.guest.clone(),
            disks: machine.disks.iter().map(disk).collect(),
            isolated: false,
            replica: false,
            settings: GuestSettings {
                writes_per_second: machine.writes_per_second,
                seed: estate.seed.wrapping_add(u64::from(machine.number)),
                ..GuestSettings::default()
            },
        };
        let stop = self.guests.stop.clone();
        let mut pause = Duration::from_millis(50);
        while !stop.is_cancelled() {
            let (compute, wanted) = (self.compute.clone(), spec.clone());
            let started = tokio::task::spawn_blocking(move || compute.start(&wanted)).await;
            let reason = match started {
                Ok(Ok(guest)) => {
                    let process = guest.process.clone();
                    self.table.update("guest", &machine.name, |status| {
                        (status.pid, status.up) = (process.as_ref().map(|process| process.pid), true);
                        status.starts += 1;
                        status.reason.clear();
                    });
                    pause = Duration::from_millis(50);
                    tokio::select! {
                        () = gone(process) => "it died".to_owned(),
                        () = stop.cancelled() => {
                            let compute = self.compute.clone();
                            let ended = tokio::task::spawn_blocking(move || compute.stop(&guest, GRACE)).await;
                            if let Ok(Err(error)) = ended {
                                tracing::error!(name = shown(&machine.name), "{error}");
                            }
                            "ended".to_owned()
                        }
                    }
                }
                Ok(Err(error)) => chain(&error),
                Err(error) => error.to_string(),
            };
            tracing::info!(name = shown(&machine.name), "guest: {reason}");
            self.table.update("guest", &machine.name, |status| {
                (status.pid, status.up, status.reason) = (None, false, reason);
            });
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// Adds a machine while the lab runs.
    pub(super) async fn add(self: &Arc<Self>, wanted: AddMachine) -> Result<Added, Fault> {
        let machine = {
            let mut estate = self.estate.lock().unwrap_or_else(PoisonError::into_inner);
            let mut changed = estate.clone();
            let disks =
                wanted.disks.iter().enumerate().map(|(at, bytes)| (format!("disk-{}", at + 1), *bytes));
            let at = changed.add(wanted.name, &wanted.guest, disks, wanted.protect)?;
            changed.write(&self.dir)?;
            *estate = changed;
            estate.machines[at].clone()
        };
        self.begin(machine.clone());
        let mut known = self.known.subscribe();
        let there = known.wait_for(|known| {
            known
                .machines
                .get(&machine.name)
                .is_some_and(|seen| !seen.disks.is_empty() && (!machine.protect || seen.protected))
        });
        let limit = Duration::from_secs(45);
        if tokio::time::timeout(limit, there).await.is_err() {
            return Err(Fault::new(
                FaultClass::Failed,
                "machine.slow",
                format!(
                    "{} was added, but is not known to the vault after {} s",
                    shown(&machine.name),
                    limit.as_secs()
                ),
            )
            .affects("this machine")
            .spares("all others")
            .remedy("look at `continuum lab status` and at its log in the lab's folder `logs`"));
        }
        let run_dir = self.estate().run_dir;
        let disks = machine
            .disks
            .iter()
            .map(|disk| (disk.name.clone(), disk.bytes, machine.endpoint(&run_dir, disk)));
        Ok(Added { disks: disks.collect(), name: machine.name.clone() })
    }
}

/// Waits until a process has ended.
async fn gone(process: Option<ProcessRecord>) {
    let Some(process) = process else { return std::future::pending().await };
    loop {
        let watched = process.clone();
        // In slices, so that the end of the lab does not have to wait for the thread.
        let ended = tokio::task::spawn_blocking(move || watched.wait(Duration::from_secs(1))).await;
        match ended {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => return,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// Ends whatever guest is still on record in the lab's folder: replicas that were up belong to it, too.
fn sweep(dir: &Path) {
    let mut folders = vec![(dir.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < 5 {
                folders.push((entry.path(), depth + 1));
            } else if entry.file_name() == "process.json"
                && let Ok(bytes) = std::fs::read(entry.path())
                && let Ok(process) = serde_json::from_slice::<ProcessRecord>(&bytes)
                && !matches!(process.end(Duration::from_secs(3)), Ok(true))
            {
                tracing::warn!(pid = process.pid, "a guest did not end");
            }
        }
    }
}
