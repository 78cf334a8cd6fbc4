//! A disk of a bare store as of a moment, into an image file that other people's programs read.
//!
//! Raw images are written by ourselves. For the other formats the view is served on a private socket and
//! `qemu-img` converts it, with both formats said: nothing is ever guessed from content. Whatever the format, the
//! image is read back and compared before it gets its name; until then it is a hidden file beside it, which is
//! removed when anything goes wrong.

use super::{ViewDisk, chain, open, view_at};
use continuum_capture::nbd;
use continuum_model::digest::Digest;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::point::PointChoice;
use continuum_model::units::DiskIndex;
use continuum_model::untrusted::shown;
use continuum_replica::export::{ExportError, check_raw, write_raw};
use continuum_replica::{DiskSpec, Resolved};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

/// How often progress is told while another program works.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// What is kept of another program's complaints.
const COMPLAINT_BYTES_MAX: u64 = 16 << 10;

/// Which kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// Byte for byte, sparse.
    Raw,
    /// QEMU, KVM, Proxmox, OpenStack.
    Qcow2,
    /// Hyper-V.
    Vhdx,
    /// VMware.
    Vmdk,
}

impl ImageFormat {
    /// Its name, as `qemu-img` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
        }
    }
}

/// What is to be exported.
#[derive(Debug, Clone)]
pub struct Export {
    /// The store's folder.
    pub store: PathBuf,
    /// Which disk; may be left out where there is one.
    pub disk: Option<DiskIndex>,
    /// As of when.
    pub at: PointChoice,
    /// Into what.
    pub format: ImageFormat,
    /// Where to.
    pub out: PathBuf,
    /// Whether a file that is there is replaced.
    pub force: bool,
}

/// What was exported.
#[derive(Debug, Clone)]
pub struct Exported {
    /// Whose disk.
    pub machine: MachineId,
    /// Which.
    pub disk: DiskSpec,
    /// The moment it was.
    pub moment: Resolved,
    /// The digest of its content, as `verify` tells it for a replica.
    pub digest: Digest,
    /// What the image takes on its disk.
    pub file_bytes: u64,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The image is being written.
    Writing,
    /// It is being read back and compared.
    Checking,
}

/// Hears what is being done, how far it is, of how much; answers whether to go on.
pub type Told<'a> = &'a mut dyn FnMut(Phase, u64, u64) -> bool;

/// Exports a disk. The image has its name only when it is whole, durable and was read back.
pub fn run(order: &Export, told: Told<'_>) -> Result<Exported, Fault> {
    let place = Place::choose(&order.out, order.force, Some(&order.store))?;
    let bare = open(&order.store, None)?;
    let disk = choose(&bare.manifest.disks, order.disk)?;
    let (view, moment) = view_at(&bare, &order.at)?;
    let mut part = Part::make(&place)?;
    let failed = |error: ExportError| refused(&place.path, error);
    let digest = if order.format == ImageFormat::Raw {
        let mut write = |done, all| told(Phase::Writing, done, all);
        let digest = write_raw(&view, disk.index, &part.file, &mut write).map_err(failed)?;
        let mut check = |done, all| told(Phase::Checking, done, all);
        check_raw(&part.file, disk.size, digest, &mut check).map_err(failed)?;
        digest
    } else {
        let device = Arc::new(ViewDisk::new(Arc::new(view), disk.index, disk.size));
        convert(order.format, &place.path, &part, &device, told)?;
        device.view.digest(disk.index).map_err(|error| failed(error.into()))?
    };
    let file_bytes = part.name_it(&place)?;
    Ok(Exported { machine: bare.manifest.machine, disk, moment, digest, file_bytes })
}

fn choose(disks: &[DiskSpec], wanted: Option<DiskIndex>) -> Result<DiskSpec, Fault> {
    let known = disks.iter().map(|disk| disk.index.to_string()).collect::<Vec<_>>().join(", ");
    match (wanted, disks) {
        (None, [only]) => Ok(*only),
        (None, _) => Err(Fault::new(
            FaultClass::Usage,
            "export.disk",
            format!("this machine has {} disks, and none was named", disks.len()),
        )
        .spares("nothing was written")
        .remedy(format!("name one with --disk: {known}"))),
        (Some(index), disks) => disks.iter().find(|disk| disk.index == index).copied().ok_or_else(|| {
            Fault::new(FaultClass::NotFound, "export.disk", format!("this machine has no disk {index}"))
                .spares("nothing was written")
                .remedy(format!("its disks are {known}"))
        }),
    }
}

/// Where the image goes.
pub(super) struct Place {
    /// As it was given.
    pub path: PathBuf,
    /// The folder, absolute and with no link in it.
    folder: PathBuf,
    name: OsString,
    force: bool,
}

impl Place {
    /// Checks the name; `inside` must not hold it.
    pub fn choose(path: &Path, force: bool, inside: Option<&Path>) -> Result<Self, Fault> {
        let text = shown(&path.display().to_string());
        let refused = |class, code: &str, message: String, remedy: &str| {
            Fault::new(class, code, message).spares("nothing was written").remedy(remedy)
        };
        let name = path.file_name().ok_or_else(|| {
            refused(FaultClass::Usage, "export.name", format!("{text} is no name of a file"), "name a file")
        })?;
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.is_file() => {
                return Err(refused(
                    FaultClass::Refused,
                    "export.not-a-file",
                    format!("{text} is there, and is no regular file"),
                    "name a file; onto a device an image is copied with a program made for it, such as nbdcopy from \
                     `continuum rescue`",
                ));
            }
            Ok(_) if !force => {
                return Err(refused(
                    FaultClass::Conflict,
                    "export.exists",
                    format!("{text} is there already"),
                    "name another file, or say --force to replace it",
                ));
            }
            _ => {}
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = std::fs::canonicalize(parent).map_err(|error| {
            let parent = shown(&parent.display().to_string());
            refused(
                FaultClass::NotFound,
                "export.folder",
                format!("{parent}: {error}"),
                "make the folder first",
            )
        })?;
        let inside = inside.and_then(|store| std::fs::canonicalize(store).ok());
        if inside.is_some_and(|store| folder.starts_with(store)) {
            return Err(refused(
                FaultClass::Refused,
                "export.inside",
                format!("{text} lies inside the store, which is only read"),
                "name a file elsewhere",
            ));
        }
        Ok(Self { path: path.to_owned(), folder, name: name.to_owned(), force })
    }

    pub fn fault(&self, doing: &str, error: &io::Error) -> Fault {
        let text = shown(&self.path.display().to_string());
        Fault::new(FaultClass::Failed, "export.file", format!("{text} could not be {doing}: {error}"))
            .affects("this image; what was written of it is removed")
            .spares("the store, and whatever had this name before")
            .remedy("see to the folder's space and rights, or name a file elsewhere")
    }
}

/// The image before it has its name. Removed when dropped.
pub(super) struct Part {
    path: PathBuf,
    pub file: File,
    named: bool,
}

impl Part {
    pub fn make(place: &Place) -> Result<Self, Fault> {
        let mut name = OsString::from(".");
        name.push(&place.name);
        name.push(format!(".{}.part", std::process::id()));
        // Absolute, so that no program takes the beginning of a name for a protocol.
        let path = place.folder.join(name);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|error| place.fault("made", &error))?;
        Ok(Self { path, file, named: false })
    }

    /// Gives the image its name, durably. Returns what it takes on its disk.
    pub fn name_it(&mut self, place: &Place) -> Result<u64, Fault> {
        let target = place.folder.join(&place.name);
        let flags = if place.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let renamed = match renameat_with(CWD, &self.path, CWD, &target, flags) {
            // A file system that cannot promise it: a link does, and leaves what is there alone.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if place.force => {
                std::fs::rename(&self.path, &target)
            }
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                std::fs::hard_link(&self.path, &target).and_then(|()| std::fs::remove_file(&self.path))
            }
            renamed => renamed.map_err(io::Error::from),
        };
        renamed.map_err(|error| place.fault("given its name", &error))?;
        self.named = true;
        let synced = File::open(&place.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| place.fault("made durable", &error))?;
        Ok(self.file.metadata().map_or(0, |meta| meta.blocks() * 512))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.named {
            // Already gone is as good.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn refused(out: &Path, error: ExportError) -> Fault {
    let text = shown(&out.display().to_string());
    match &error {
        ExportError::Stopped => stopped(),
        ExportError::Replica(replica) => crate::replica_fault(replica)
            .affects("this moment of this disk")
            .spares("the store, which was only read; other moments may be whole")
            .remedy("`continuum inspect STORE --verify` tells which moments are not affected: export one of those"),
        ExportError::File { .. } | ExportError::Differs { .. } => {
            Fault::new(FaultClass::Failed, "export.file", format!("{text}: {}", chain(&error)))
                .affects("this image; what was written of it is removed")
                .spares("the store, and whatever had this name before")
                .remedy("see to the disk below the image: its space and its health")
        }
    }
}

fn stopped() -> Fault {
    Fault::new(FaultClass::Failed, "interrupted", "the export was stopped")
        .affects("this image; what was written of it is removed")
        .spares("the store, and whatever had this name before")
        .remedy("order it again")
}

/// A folder of our own for a socket. Removed when dropped.
struct Private(PathBuf);

impl Private {
    fn make() -> io::Result<Self> {
        let base = std::env::temp_dir();
        for attempt in 0..64 {
            let path = base.join(format!("continuum-{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // Nothing but our socket was in it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Lets `qemu-img` write the image from a served view, and compare it afterwards.
fn convert(
    format: ImageFormat,
    out: &Path,
    part: &Part,
    device: &Arc<ViewDisk>,
    told: Told<'_>,
) -> Result<(), Fault> {
    let text = shown(&out.display().to_string());
    let failed = |doing: &str, why: String| {
        // The program only saw an I/O error; the store said why.
        let why = device.error().unwrap_or(why);
        Fault::new(FaultClass::Failed, "export.convert", format!("{text} could not be {doing}: {why}"))
            .affects("this image; what was written of it is removed")
            .spares("the store, and whatever had this name before")
            .remedy("`continuum inspect STORE --verify` tells which moments are whole; --format raw needs no other program")
    };
    let private = Private::make().map_err(|error| failed("made", format!("a private folder: {error}")))?;
    let server = nbd::Server::on_unix(&private.0.join("disk.sock"))
        .map_err(|error| failed("made", format!("the disk cannot be served to qemu-img: {error}")))?;
    server.export("disk", device.clone());
    let uri = server.endpoint().uri("disk");
    let size = device.size.max(1);
    let mut work = |phase, words: &[&str]| {
        device.seen.store(0, Ordering::Relaxed);
        let mut command = Command::new("qemu-img");
        command.args(words).arg(&part.path).env("LC_ALL", "C");
        run_to_end(command, &mut || told(phase, device.seen.load(Ordering::Relaxed), size))
    };
    match work(Phase::Writing, &["convert", "-f", "raw", "-O", format.name(), &uri]) {
        Ended::Well => {}
        Ended::Stopped => return Err(stopped()),
        Ended::Badly(why) => return Err(failed("written", why)),
        Ended::Missing => {
            return Err(Fault::new(
                FaultClass::NotReady,
                "export.qemu-img",
                format!("qemu-img is not on this machine, and {} images are made with it", format.name()),
            )
            .affects("this image")
            .spares("the store; nothing was written")
            .remedy("install it (`apt-get install qemu-utils`), or say --format raw, which needs nothing"));
        }
    }
    // By name: the program may have made the file anew.
    let sync = || -> io::Result<()> {
        let file = File::open(&part.path)?;
        file.sync_all()?;
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(())
    };
    sync().map_err(|error| failed("made durable", error.to_string()))?;
    match work(Phase::Checking, &["compare", "-f", "raw", "-F", format.name(), &uri]) {
        Ended::Well => Ok(()),
        Ended::Stopped => Err(stopped()),
        Ended::Badly(why) => Err(failed("read back as it was written", why)),
        Ended::Missing => Err(failed("read back", "qemu-img went away meanwhile".into())),
    }
}

enum Ended {
    Well,
    Badly(String),
    Stopped,
    Missing,
}

/// Runs a program to its end, or ends it when `told` answers no.
fn run_to_end(mut command: Command, told: &mut dyn FnMut() -> bool) -> Ended {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ended::Missing,
        Err(error) => return Ended::Badly(error.to_string()),
    };
    let Some(stderr) = child.stderr.take() else { return Ended::Badly("it cannot be listened to".into()) };
    let (ended, end) = mpsc::channel();
    // Ends with the program: its end closes the pipe.
    let listener = std::thread::spawn(move || {
        let mut stderr = stderr;
        let mut text = Vec::new();
        let _ = stderr.by_ref().take(COMPLAINT_BYTES_MAX).read_to_end(&mut text);
        let _ = io::copy(&mut stderr, &mut io::sink());
        let _ = ended.send(shown(String::from_utf8_lossy(&text).trim()));
    });
    let complaint = loop {
        match end.recv_timeout(TELL_EVERY) {
            Err(mpsc::RecvTimeoutError::Timeout) if told() => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = listener.join();
                return Ended::Stopped;
            }
            Ok(text) => break text,
            Err(mpsc::RecvTimeoutError::Disconnected) => break String::new(),
        }
    };
    let _ = listener.join();
    match child.wait() {
        Ok(status) if status.success() => Ended::Well,
        Ok(status) if complaint.is_empty() => Ended::Badly(format!("qemu-img ended with {status}")),
        Ok(_) => Ended::Badly(complaint),
        Err(error) => Ended::Badly(error.to_string()),
    }
}
