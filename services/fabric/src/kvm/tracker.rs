//! Interval capture by QEMU's own dirty bitmaps. How disks are attached to the guest is not touched.
//!
//! A cycle, all of it by the monitor:
//!
//! ```text
//! clear away    what a killed process left: exports, jobs, nodes; a guest left frozen is thawed
//! views         per disk a scratch qcow2 with the disk as its backing
//! at rest       guest agent: file systems frozen (where an application-consistent point is due)
//! transaction   per disk: bitmap n+1 begins, all older bitmaps of ours end, backup job sync=none from disk to view:
//!               from now on what the guest overwrites is first copied to the view
//! thaw
//! read          NBD export of the view with the older bitmaps: what changed, and what there was
//! forget        `tracking`: n+1 counts, the older ones do not (durable; before, all of them count)
//! end           exports, jobs, nodes, scratch files and bitmaps that do not count are removed
//! ```
//!
//! **What is believed.** `tracking`, a file in the agent's folder, names the bitmap that must be there on every disk,
//! consistent: its name is of one freeze only, so a disk that was replaced by another one, by an older copy of itself, or
//! whose QEMU ended without storing its bitmaps does not have it. Then nobody knows what changed. Bitmaps of ours beside
//! it are of a cycle that was cut: what they say counts as well. In a qcow2 image bitmaps are stored when QEMU ends in good
//! order; in a raw one they live as long as their QEMU.
//!
//! A disk that became read-only has an external snapshot above it, whose writes are not in our bitmap: that is refused.
//!
//! **Scratch space.** A guest that overwrites much while a cycle runs fills it. Where it runs short the cycle ends before it is
//! full; should it be full nevertheless, QEMU pauses the guest rather than fail its write, and it is let go on as soon as
//! the cycle was cleared away.

use super::guest_agent;
use super::qmp::{Qmp, QmpError};
use crate::nbd::{self, Client, Uri};
use continuum_capture::interval::{ChangeTracker, Changed, Consistency, Frozen, FrozenDisk, FrozenView};
use continuum_capture::nbd::Extent;
use continuum_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What everything of ours in a QEMU begins with.
const OURS: &str = "ctm-";
/// A bit of a bitmap stands for as much as a bit of the change map.
const GRANULARITY: u64 = continuum_model::units::REGION_BYTES;
/// A cycle does not begin with less scratch space than this (or the disks' size, if that is less), and ends with less
/// than the other.
const SCRATCH: (u64, u64) = (256 << 20, 64 << 20);
/// How long a job of QEMU may take to begin or to end.
const JOB: Duration = Duration::from_secs(10);
/// How long NBD may take for one answer.
const NBD_PATIENCE: Duration = Duration::from_secs(30);
/// How much is asked of a bitmap at once.
const STATUS_BYTES: u64 = 1 << 30;
/// What is between two cycles where nobody said.
const INTERVAL: Duration = Duration::from_secs(30);

/// Which machine, and what may be used for it.
#[derive(Debug, Clone)]
pub struct KvmMachine {
    /// QEMU's monitor: a socket of our own, nobody else's.
    pub monitor: PathBuf,
    /// The guest agent's socket, where there is one.
    pub guest_agent: Option<PathBuf>,
    /// Its disks: names of nodes, of drives, or ids of devices.
    pub disks: Vec<String>,
    /// Where QEMU may make files that live for a cycle.
    pub scratch: PathBuf,
    /// The agent's folder.
    pub dir: PathBuf,
    /// How long the guest may take to shut down before it is paused.
    pub stop_within: Duration,
}

/// What is known of earlier cycles, on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Tracking {
    /// The bitmap that has everything since the last freeze whose changes are durable in the change map.
    bitmap: Option<String>,
    /// Bitmaps that do not count any more.
    over: Vec<String>,
}

impl Tracking {
    fn open(path: &Path) -> Self {
        // One that cannot be read is doubt, and that is what nothing known means.
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn store(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    }
}

/// A disk as QEMU has it.
#[derive(Debug, Clone)]
struct Node {
    name: String,
    size: u64,
    /// Whether bitmaps can be stored in its image.
    stores: bool,
    bitmaps: Vec<Bitmap>,
}

#[derive(Debug, Clone)]
struct Bitmap {
    name: String,
    recording: bool,
    consistent: bool,
}

/// A machine whose changes are followed.
pub struct KvmTracker {
    machine: KvmMachine,
    tracking: Tracking,
    /// While a cycle is under way.
    cycle: Option<Cycle>,
    freezes: u64,
    /// The scratch space ran short in this cycle.
    is_short: bool,
}

struct Cycle {
    qmp: Qmp,
    /// What begins to count when this cycle's changes are durable.
    bitmap: String,
    older: Vec<String>,
}

impl KvmTracker {
    /// Follows a machine. Nothing is asked of it yet.
    pub fn new(machine: KvmMachine) -> Self {
        let tracking = Tracking::open(&machine.dir.join("tracking"));
        Self { machine, tracking, cycle: None, freezes: 0, is_short: false }
    }

    fn nodes(&self, qmp: &mut Qmp) -> Result<Vec<Node>, String> {
        let said = |error: QmpError| error.to_string();
        let devices = qmp.run("query-block", json!({})).map_err(said)?;
        let nodes = qmp.run("query-named-block-nodes", json!({ "flat": true })).map_err(said)?;
        self.machine.disks.iter().map(|name| node(name, &devices, &nodes)).collect()
    }

    fn scratch_file(&self, index: usize) -> PathBuf {
        self.machine.scratch.join(format!("{OURS}scratch-{index}.qcow2"))
    }

    fn socket(&self) -> PathBuf {
        self.machine.scratch.join(format!("{OURS}views.sock"))
    }

    fn free(&self) -> Option<u64> {
        let stat = rustix::fs::statvfs(&self.machine.scratch).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Removes what is there of a cycle, ours or an earlier process's; says whether anything was.
    fn clear(&self, qmp: &mut Qmp) -> Result<bool, QmpError> {
        let ids = |list: &Value, field: &str| -> Vec<String> {
            let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
            let ours = list.iter().filter_map(|item| item[field].as_str()).filter(|id| id.starts_with(OURS));
            ours.map(str::to_owned).collect()
        };
        let exports = qmp.run("query-block-exports", json!({}))?;
        let (ours, all) = (ids(&exports, "id"), exports.as_array().map_or(0, Vec::len));
        qmp.forget_events();
        for id in &ours {
            qmp.run("block-export-del", json!({ "id": id, "mode": "hard" }))?;
        }
        for id in &ours {
            qmp.wait_for(JOB, |event| {
                event["event"] == "BLOCK_EXPORT_DELETED" && event["data"]["id"] == **id
            })?;
        }
        if all == ours.len() {
            // Refused where it does not run.
            let _ = qmp.run("nbd-server-stop", json!({}));
        }
        let _ = std::fs::remove_file(self.socket());
        let jobs = qmp.run("query-jobs", json!({}))?;
        for id in ids(&jobs, "id") {
            let done = |event: &Value| {
                event["event"] == "JOB_STATUS_CHANGE"
                    && event["data"]["id"] == *id
                    && event["data"]["status"] == "null"
            };
            if qmp.run("block-job-cancel", json!({ "device": id, "force": true })).is_err() {
                // No block job, or one that is over.
                qmp.run("job-dismiss", json!({ "id": id }))?;
            }
            qmp.wait_for(JOB, done)?;
        }
        let nodes = qmp.run("query-named-block-nodes", json!({ "flat": true }))?;
        let mut names = ids(&nodes, "node-name");
        // Views stand on files.
        names.sort_by_key(|name| !name.starts_with("ctm-view"));
        let was = !ours.is_empty() || !names.is_empty();
        for name in names {
            qmp.run("blockdev-del", json!({ "node-name": name }))?;
        }
        for index in 0..self.machine.disks.len() {
            let _ = std::fs::remove_file(self.scratch_file(index));
        }
        Ok(was)
    }

    /// Removes bitmaps that do not count.
    fn drop_bitmaps(&self, qmp: &mut Qmp, nodes: &[Node]) {
        for node in nodes {
            for bitmap in &node.bitmaps {
                if self.tracking.over.contains(&bitmap.name)
                    && let Err(error) = qmp
                        .run("block-dirty-bitmap-remove", json!({ "node": node.name, "name": bitmap.name }))
                {
                    tracing::warn!(%error, bitmap = bitmap.name, "a bitmap that is over stays");
                }
            }
        }
    }

    /// A job that makes an image, from beginning to end.
    fn make(qmp: &mut Qmp, options: Value) -> Result<(), String> {
        let id = format!("{OURS}make");
        let said = |error: QmpError| error.to_string();
        qmp.run("blockdev-create", json!({ "job-id": id, "options": options })).map_err(said)?;
        let concluded = |event: &Value| {
            event["event"] == "JOB_STATUS_CHANGE"
                && event["data"]["id"] == *id
                && event["data"]["status"] == "concluded"
        };
        let over = qmp.wait_for(JOB, concluded).map_err(said)?;
        let jobs = qmp.run("query-jobs", json!({})).map_err(said)?;
        let mut jobs = jobs.as_array().map(Vec::as_slice).unwrap_or_default().iter();
        let error =
            jobs.find(|job| job["id"] == *id).and_then(|job| job["error"].as_str().map(str::to_owned));
        qmp.run("job-dismiss", json!({ "id": id })).map_err(said)?;
        match (over, error) {
            (Some(_), None) => Ok(()),
            (_, Some(error)) => Err(continuum_model::untrusted::shown(&error)),
            (None, None) => Err("QEMU did not make it in time".into()),
        }
    }

    /// A view of each disk, which shows what the disk has until the transaction.
    fn make_views(&self, qmp: &mut Qmp, nodes: &[Node]) -> Result<(), String> {
        for (index, node) in nodes.iter().enumerate() {
            let path = self.scratch_file(index);
            let made = |error: String| {
                format!(
                    "no scratch file {} can be made by QEMU: {error}; `scratch` names a folder where QEMU's user may write",
                    path.display()
                )
            };
            let said = |error: QmpError| made(error.to_string());
            let (file, view) = (format!("{OURS}file-{index}"), format!("{OURS}view-{index}"));
            Self::make(qmp, json!({ "driver": "file", "filename": path, "size": 0 })).map_err(made)?;
            let add = json!({ "driver": "file", "node-name": file, "filename": path });
            qmp.run("blockdev-add", add).map_err(said)?;
            Self::make(qmp, json!({ "driver": "qcow2", "file": file, "size": node.size })).map_err(made)?;
            let add = json!({ "driver": "qcow2", "node-name": view, "file": file, "backing": node.name });
            qmp.run("blockdev-add", add).map_err(said)?;
        }
        Ok(())
    }

    /// The instant.
    fn transaction(&self, qmp: &mut Qmp, nodes: &[Node], bitmap: &str) -> Result<(), String> {
        let mut actions = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let add = json!({
                "node": node.name, "name": bitmap, "granularity": GRANULARITY, "persistent": node.stores,
            });
            actions.push(json!({ "type": "block-dirty-bitmap-add", "data": add }));
            for older in self.older(node).filter(|older| older.recording && older.consistent) {
                let end = json!({ "node": node.name, "name": older.name });
                actions.push(json!({ "type": "block-dirty-bitmap-disable", "data": end }));
            }
            let backup = json!({
                "job-id": format!("{OURS}job-{index}"), "device": node.name,
                "target": format!("{OURS}view-{index}"), "sync": "none",
            });
            actions.push(json!({ "type": "blockdev-backup", "data": backup }));
        }
        qmp.run("transaction", json!({ "actions": actions })).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// Bitmaps of ours that count.
    fn older<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Bitmap> {
        let ours = node.bitmaps.iter().filter(|bitmap| bitmap.name.starts_with(&self.prefix()));
        ours.filter(|bitmap| !self.tracking.over.contains(&bitmap.name))
    }

    /// Of this agent's bitmaps: a clone of the machine may have those of another one.
    fn prefix(&self) -> String {
        let folder = self.machine.dir.canonicalize().unwrap_or_else(|_| self.machine.dir.clone());
        let sum = xxhash_rust::xxh3::xxh3_64(folder.as_os_str().as_encoded_bytes());
        format!("{OURS}{sum:016x}-")
    }

    /// Why what the bitmaps say of a disk is not all that changed, if so.
    fn doubt(&self, node: &Node) -> Option<String> {
        let Some(expected) = &self.tracking.bitmap else {
            return Some(format!("no change of {} was followed so far", node.name));
        };
        let lost = if node.stores {
            "removed, or QEMU ended without storing it, or the image is another one or an older one"
        } else {
            "removed, or QEMU was started again (a raw image cannot keep it), or the image is another one"
        };
        match node.bitmaps.iter().find(|bitmap| bitmap.name == *expected) {
            None => Some(format!("the bitmap of {} is gone: {lost}", node.name)),
            Some(bitmap) if !bitmap.consistent => {
                Some(format!("the bitmap of {} is not whole: QEMU ended without storing it", node.name))
            }
            Some(_) => self
                .older(node)
                .any(|bitmap| !bitmap.consistent)
                .then(|| format!("a bitmap of {} is not whole", node.name)),
        }
    }

    fn read_view(&self, index: usize, node: &Node, doubt: Option<String>) -> Result<FrozenDisk, String> {
        let export = format!("{OURS}view-{index}");
        let uri = Uri::on_unix(&self.socket(), &export);
        let bitmaps: Vec<String> = match doubt {
            Some(_) => Vec::new(),
            None => self.older(node).map(|bitmap| format!("qemu:dirty-bitmap:{}", bitmap.name)).collect(),
        };
        let contexts: Vec<&str> =
            std::iter::once("base:allocation").chain(bitmaps.iter().map(String::as_str)).collect();
        let said = |error: io::Error| format!("the view of {} cannot be read: {error}", node.name);
        let mut client = Client::connect_with(&uri, NBD_PATIENCE, &contexts).map_err(said)?;
        if client.size() != node.size {
            return Err(format!("the view of {} has another size", node.name));
        }
        let changed = match doubt {
            Some(why) => Changed::Unknown(why),
            None => {
                let mut ranges = Vec::new();
                for context in 1..contexts.len() {
                    dirty(&mut client, context, &mut ranges).map_err(said)?;
                }
                Changed::Ranges(ranges)
            }
        };
        Ok(FrozenDisk { view: Arc::new(View { client: Mutex::new(client) }), size: node.size, changed })
    }

    fn begin(&mut self, qmp: &mut Qmp, quiesce: bool) -> Result<(Frozen, String, Vec<String>), String> {
        if let Some(socket) = &self.machine.guest_agent
            && self.freezes == 0
            && guest_agent::thaw_left(socket) == Ok(true)
        {
            tracing::warn!("the guest was left frozen by an earlier process, and was thawed");
        }
        let left = self.clear(qmp);
        let left =
            left.map_err(|error| format!("what an earlier cycle left cannot be cleared away: {error}"))?;
        if left && Self::status(qmp).is_ok_and(|status| status == "io-error") {
            // It may wait for scratch space that a killed process's cycle used up.
            let _ = qmp.run("cont", json!({}));
        }
        let scratch = std::fs::create_dir_all(&self.machine.scratch);
        scratch.map_err(|error| format!("{}: {error}", self.machine.scratch.display()))?;
        let nodes = self.nodes(qmp)?;
        self.drop_bitmaps(qmp, &nodes);
        // One that is not whole says nothing, and can only be removed.
        for node in &nodes {
            for bitmap in self.older(node).filter(|bitmap| !bitmap.consistent) {
                let remove = json!({ "node": node.name, "name": bitmap.name });
                let _ = qmp.run("block-dirty-bitmap-remove", remove);
            }
        }
        let wanted = nodes.iter().map(|node| node.size).sum::<u64>().min(SCRATCH.0);
        if let Some(free) = self.free().filter(|free| *free < wanted) {
            return Err(format!(
                "{} has {} MiB free, and a cycle begins with {} at least: make room, or name another folder as `scratch`",
                self.machine.scratch.display(),
                free >> 20,
                wanted >> 20
            ));
        }
        self.make_views(qmp, &nodes)?;
        let doubts: Vec<Option<String>> = nodes.iter().map(|node| self.doubt(node)).collect();
        self.freezes += 1;
        let now = || {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            Timestamp::from_micros(since.map_or(0, |since| since.as_micros() as i64))
        };
        let bitmap = format!("{}{:x}", self.prefix(), now().micros());
        let at_rest = match (&self.machine.guest_agent, quiesce) {
            (Some(socket), true) => Some(guest_agent::freeze(socket, guest_agent::HOLD)),
            _ => None,
        };
        let moment = now();
        let frozen = self.transaction(qmp, &nodes, &bitmap);
        let consistency = match at_rest {
            None => Consistency::Crash(None),
            Some(Err(why)) => Consistency::Crash(Some(why)),
            Some(Ok(at_rest)) => match at_rest.thaw() {
                Ok(()) => Consistency::Application,
                Err(why) => Consistency::Crash(Some(why)),
            },
        };
        frozen?;
        let said = |error: QmpError| error.to_string();
        let address = json!({ "type": "unix", "data": { "path": self.socket() } });
        qmp.run("nbd-server-start", json!({ "addr": address })).map_err(|error| {
            format!("{error}; QEMU has one NBD server only: stop what else uses it, or let it wait")
        })?;
        let mut disks = Vec::new();
        for ((index, node), doubt) in nodes.iter().enumerate().zip(doubts) {
            let bitmaps: Vec<&str> = match &doubt {
                Some(_) => Vec::new(),
                None => self.older(node).map(|bitmap| bitmap.name.as_str()).collect(),
            };
            let view = format!("{OURS}view-{index}");
            let export = json!({
                "type": "nbd", "id": format!("{OURS}export-{index}"), "node-name": view, "name": view,
                "bitmaps": bitmaps,
            });
            qmp.run("block-export-add", export).map_err(said)?;
            disks.push(self.read_view(index, node, doubt)?);
        }
        let mut older: Vec<String> =
            nodes.iter().flat_map(|node| self.older(node)).map(|bitmap| bitmap.name.clone()).collect();
        older.sort();
        older.dedup();
        Ok((Frozen { moment, consistency, disks }, bitmap, older))
    }

    fn status(qmp: &mut Qmp) -> Result<String, QmpError> {
        let status = qmp.run("query-status", json!({}))?;
        Ok(status["status"].as_str().unwrap_or_default().to_owned())
    }

    fn connect(&self) -> Result<Qmp, String> {
        Qmp::connect(&self.machine.monitor).map_err(|error| error.to_string())
    }
}

impl ChangeTracker for KvmTracker {
    fn default_interval(&self) -> Duration {
        INTERVAL
    }

    fn sizes(&mut self) -> Result<Vec<u64>, String> {
        let mut qmp = self.connect()?;
        Ok(self.nodes(&mut qmp)?.iter().map(|node| node.size).collect())
    }

    fn freeze(&mut self, quiesce: bool) -> Result<Frozen, String> {
        let mut qmp = self.connect()?;
        match self.begin(&mut qmp, quiesce) {
            Ok((frozen, bitmap, older)) => {
                self.cycle = Some(Cycle { qmp, bitmap, older });
                Ok(frozen)
            }
            Err(why) => {
                if let Err(error) = self.clear(&mut qmp) {
                    tracing::warn!(%error, "what is left of a cycle that could not begin is cleared away by the next one");
                }
                Err(why)
            }
        }
    }

    fn forget(&mut self) -> Result<(), String> {
        let Some(cycle) = &self.cycle else { return Ok(()) };
        let tracking = Tracking { bitmap: Some(cycle.bitmap.clone()), over: cycle.older.clone() };
        let path = self.machine.dir.join("tracking");
        tracking.store(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        self.tracking = tracking;
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        if let Some(free) = self.free().filter(|free| *free < SCRATCH.1) {
            self.is_short = true;
            return Err(format!(
                "{} has {} MiB free only: the guest overwrites more than fits there",
                self.machine.scratch.display(),
                free >> 20
            ));
        }
        let disks = self.machine.disks.len();
        let Some(cycle) = &mut self.cycle else { return Ok(()) };
        let jobs = cycle.qmp.run("query-jobs", json!({})).map_err(|error| error.to_string())?;
        let jobs = jobs.as_array().map(Vec::as_slice).unwrap_or_default();
        let runs = |index: &usize| {
            let id = format!("{OURS}job-{index}");
            jobs.iter().any(|job| job["id"] == *id && job["status"] != "concluded")
        };
        match (0..disks).find(|index| !runs(index)) {
            None => Ok(()),
            Some(index) => {
                self.is_short = true;
                Err(format!("QEMU does not keep the view of {} any more", self.machine.disks[index]))
            }
        }
    }

    fn end(&mut self) {
        let Some(mut cycle) = self.cycle.take() else { return };
        let qmp = &mut cycle.qmp;
        let mut clear = || -> Result<(), String> {
            self.clear(qmp).map_err(|error| error.to_string())?;
            let nodes = self.nodes(qmp)?;
            self.drop_bitmaps(qmp, &nodes);
            // The guest waits where its write found no scratch space. There is none needed any more.
            if self.is_short && Self::status(qmp).is_ok_and(|status| status == "io-error") {
                qmp.run("cont", json!({})).map_err(|error| error.to_string())?;
            }
            Ok(())
        };
        if let Err(error) = clear() {
            tracing::warn!(error, "what is left of a cycle is cleared away by the next one");
        }
        self.is_short = false;
    }

    fn stop_machine(&mut self) -> Result<String, String> {
        let said = |error: QmpError| error.to_string();
        let mut qmp = self.connect()?;
        let is_running = |qmp: &mut Qmp| -> Result<bool, String> {
            Ok(qmp.run("query-status", json!({})).map_err(said)?["running"] == true)
        };
        if !is_running(&mut qmp)? {
            return Ok("it does not run".into());
        }
        // QEMU must stay when the guest has shut down: its disks are looked at once more.
        qmp.run("set-action", json!({ "shutdown": "pause" })).map_err(said)?;
        qmp.run("system_powerdown", json!({})).map_err(said)?;
        let within = self.machine.stop_within;
        let shut = qmp.wait_for(within, |event| event["event"] == "SHUTDOWN").map_err(said)?;
        if shut.is_some() {
            qmp.wait_for(JOB, |event| event["event"] == "STOP").map_err(said)?;
        }
        if is_running(&mut qmp)? {
            qmp.run("stop", json!({})).map_err(said)?;
        }
        Ok(match shut {
            Some(_) => "it shut down".into(),
            None => format!("it did not shut down within {} s, and was paused as it is", within.as_secs()),
        })
    }

    fn start_machine(&mut self) -> Result<(), String> {
        let said = |error: QmpError| error.to_string();
        let mut qmp = self.connect()?;
        qmp.run("set-action", json!({ "shutdown": "poweroff" })).map_err(said)?;
        match Self::status(&mut qmp).map_err(said)?.as_str() {
            "running" => return Ok(()),
            "shutdown" => drop(qmp.run("system_reset", json!({})).map_err(said)?),
            _ => {}
        }
        qmp.run("cont", json!({})).map_err(said)?;
        Ok(())
    }
}

/// Finds a disk by the name of its node or drive, or by the id of its device.
fn node(name: &str, devices: &Value, nodes: &Value) -> Result<Node, String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (devices, nodes) = (list(devices), list(nodes));
    let of_device = devices.iter().find(|device| {
        let qdev = device["qdev"].as_str().unwrap_or_default();
        device["device"] == *name || qdev.split('/').any(|part| part == name)
    });
    let wanted = of_device.and_then(|device| device["inserted"]["node-name"].as_str()).unwrap_or(name);
    let Some(found) = nodes.iter().find(|node| node["node-name"] == *wanted) else {
        let known = nodes.iter().filter_map(|node| node["node-name"].as_str());
        let known: Vec<&str> = known.filter(|known| !known.starts_with('#')).collect();
        return Err(continuum_model::untrusted::shown(&format!(
            "QEMU has no disk {name}; its nodes are {}",
            known.join(", ")
        )));
    };
    if found["ro"] == true {
        return Err(format!(
            "disk {name} is read-only: an external snapshot may stand above it, whose node is to be named instead"
        ));
    }
    let size = found["image"]["virtual-size"].as_u64().ok_or_else(|| format!("disk {name} has no size"))?;
    let bitmap = |bitmap: &Value| {
        Some(Bitmap {
            name: bitmap["name"].as_str()?.to_owned(),
            recording: bitmap["recording"] == true,
            consistent: bitmap["inconsistent"] != true,
        })
    };
    Ok(Node {
        name: wanted.to_owned(),
        size,
        stores: found["drv"] == "qcow2" && found["image"]["format-specific"]["data"]["compat"] != "0.10",
        bitmaps: list(&found["dirty-bitmaps"]).iter().filter_map(bitmap).collect(),
    })
}

/// Adds what a bitmap says of a whole disk.
fn dirty(client: &mut Client, context: usize, ranges: &mut Vec<Range<u64>>) -> io::Result<()> {
    let (mut at, size) = (0, client.size());
    while at < size {
        let most = STATUS_BYTES.min(size - at);
        for status in client.status(context, at, most as u32)? {
            let end = (at + u64::from(status.length)).min(size);
            if status.flags & nbd::DIRTY != 0 {
                ranges.push(at..end);
            }
            at = end;
        }
    }
    Ok(())
}

/// A disk as it was, over NBD.
struct View {
    client: Mutex<Client>,
}

impl FrozenView for View {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).read(offset, out)
    }

    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut at, end) = (offset, offset + length);
        while at < end {
            for status in client.status(0, at, (end - at).min(STATUS_BYTES) as u32)? {
                let length = u64::from(status.length).min(end - at);
                if length > 0 {
                    out.push(Extent { length, data: status.flags & nbd::ZERO == 0 });
                }
                at += length;
            }
        }
        Ok(())
    }
}
