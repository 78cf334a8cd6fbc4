//! Which machines run here: plain QEMU, by the monitor sockets in a folder.

use super::qmp::Qmp;
use continuum_model::untrusted::shown;
use serde_json::{Value, json};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a socket may take to show that it is a monitor.
const PATIENCE: Duration = Duration::from_secs(2);

/// A machine that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its monitor.
    pub monitor: PathBuf,
    /// What it told, or why it told nothing.
    pub told: Result<Told, String>,
}

/// What a machine tells of itself. All text is made harmless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its name; empty where it was given none.
    pub name: String,
    /// Its id.
    pub uuid: String,
    /// Such as `running`, `paused`, `shutdown`.
    pub status: String,
    /// QEMU's version.
    pub version: String,
    /// Its disks: name of the node, size in bytes, format.
    pub disks: Vec<(String, u64, String)>,
}

/// Asks every monitor in `folder`, in the order of their names.
pub fn look(folder: &Path) -> std::io::Result<Vec<Found>> {
    let mut monitors: Vec<PathBuf> = std::fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path())
        .collect();
    monitors.sort();
    Ok(monitors.into_iter().map(|monitor| Found { told: ask(&monitor), monitor }).collect())
}

fn ask(monitor: &Path) -> Result<Told, String> {
    let mut qmp = Qmp::connect_within(monitor, PATIENCE).map_err(|error| error.to_string())?;
    let mut run = |command: &str| qmp.run(command, json!({})).map_err(|error| error.to_string());
    let text = |value: &Value| shown(value.as_str().unwrap_or_default());
    let (name, uuid, status, blocks) =
        (run("query-name")?, run("query-uuid")?, run("query-status")?, run("query-block")?);
    let blocks = blocks.as_array().cloned().unwrap_or_default();
    let disk = |device: &Value| {
        let inserted = &device["inserted"];
        let size = inserted["image"]["virtual-size"].as_u64()?;
        (inserted["ro"] != true).then(|| (text(&inserted["node-name"]), size, text(&inserted["drv"])))
    };
    Ok(Told {
        name: text(&name["name"]),
        uuid: text(&uuid["UUID"]),
        status: text(&status["status"]),
        disks: blocks.iter().filter_map(disk).collect(),
        version: shown(&qmp.version),
    })
}
