//! An agent that lost what it knew of its replica compares, and sends what differs instead of everything.

use continuum_tests::lab::{Lab, endpoints};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path()),
            Ok(kind) if kind.is_file() => vec![entry.path()],
            _ => Vec::new(),
        })
        .collect()
}

/// What the replica's journal takes: everything that travelled is in it.
fn journal(lab: &Lab) -> u64 {
    let in_journal = |path: &PathBuf| path.parent().is_some_and(|folder| folder.ends_with("journal"));
    let files = files(lab.dir()).into_iter().filter(in_journal);
    files.map(|path| path.metadata().map_or(0, |file| file.len())).sum()
}

fn verified(lab: &Lab) -> bool {
    let verified = lab.run(&["verify", "vol-01", "-o", "json"]);
    let equal =
        |disks: &Vec<serde_json::Value>| !disks.is_empty() && disks.iter().all(|disk| disk["equal"] == true);
    verified.code == 0 && verified.json()["disks"].as_array().is_some_and(equal)
}

#[test]
fn an_agent_in_doubt_compares_and_sends_what_differs() {
    let lab = Lab::empty();
    lab.add("vol-01", "none", &["64M"]);
    lab.wait_healthy(1, Duration::from_secs(60));
    // It does not compress.
    let mut data = vec![0; 48 * MIB as usize];
    ChaCha8Rng::seed_from_u64(48).fill_bytes(&mut data);
    let image = lab.dir().join("data");
    std::fs::write(&image, &data).expect("an image");
    let uri = endpoints(&lab.machine("vol-01")).remove(0);
    let copied = Command::new("nbdcopy").arg(&image).arg(&uri).status().expect("nbdcopy runs");
    assert!(copied.success());
    lab.wait_for("the replica has it", Duration::from_secs(60), verified);
    let before = journal(&lab);
    assert!(before > 48 * MIB, "{before} bytes travelled at first");

    // The agent loses what it knew of the replica, and three places of its disk change behind its back.
    let all = files(lab.dir());
    let named = |name: &str| all.iter().find(|path| path.ends_with(name)).expect("a file of the agent's");
    lab.signal("agent", "vol-01", Signal::STOP);
    let disk = std::fs::File::options().write(true).open(named("disk0.img")).expect("the disk");
    for at in [5 * MIB, 17 * MIB + 4096, 40 * MIB] {
        disk.write_all_at(b"behind its back", at).expect("it is written");
    }
    std::fs::remove_file(named("progress")).expect("it is removed");
    lab.end("agent", "vol-01", Signal::KILL);
    lab.wait_for("both sides agree again", Duration::from_secs(60), verified);
    let sent = journal(&lab) - before;
    assert!((3 * 65_536..MIB).contains(&sent), "{sent} bytes travelled for three regions that differ");
}
