//! Which file systems are mounted from which block devices, as the kernel tells in `mountinfo` and `/sys`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its device: a block device's number, or an anonymous one.
    pub device: (u32, u32),
    /// Where.
    pub at: PathBuf,
    /// Its kind, such as `ext4`.
    pub kind: String,
    /// What it was mounted from, such as `/dev/sda1`.
    pub from: PathBuf,
    /// Mount options, the superblock's after the mount's.
    pub options: String,
}

/// All file systems that this process sees.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The file systems on these devices, each once however often it is mounted, in the order in which they were.
pub fn on(devices: &BTreeSet<(u32, u32)>) -> io::Result<Vec<Mount>> {
    let mut seen = BTreeSet::new();
    let on_them = |mount: &Mount| devices.contains(&mount.device) && seen.insert(mount.device);
    Ok(all()?.into_iter().filter(on_them).collect())
}

/// A block device with what stands on it: its partitions, and what is stacked on either (LVM, encryption, RAID).
pub fn devices_of(path: &Path) -> io::Result<BTreeSet<(u32, u32)>> {
    let meta = std::fs::metadata(path)?;
    if !meta.file_type().is_block_device() {
        let why = format!("{} is no block device", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let rdev = meta.rdev();
    let mut devices = BTreeSet::new();
    add(&mut devices, (rustix::fs::major(rdev), rustix::fs::minor(rdev)));
    Ok(devices)
}

fn add(devices: &mut BTreeSet<(u32, u32)>, device: (u32, u32)) {
    if !devices.insert(device) {
        return;
    }
    let folder = PathBuf::from(format!("/sys/dev/block/{}:{}", device.0, device.1));
    let below = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let partitions = below(&folder).into_iter().filter(|path| path.join("partition").exists());
    let holders = below(&folder.join("holders"));
    let number = |path: PathBuf| {
        let text = std::fs::read_to_string(path.join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let found: Vec<_> = partitions.chain(holders).filter_map(number).collect();
    found.into_iter().for_each(|device| add(devices, device));
}

/// `36 35 98:0 /root /at rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
fn parse(text: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |at: usize| Some(String::from_utf8_lossy(fields.get(at)?).into_owned());
        let device = text(2)?;
        let (major, minor) = device.split_once(':')?;
        Some(Mount {
            device: (major.parse().ok()?, minor.parse().ok()?),
            at: unescape(fields.get(4)?),
            kind: text(dash + 1)?,
            from: unescape(fields.get(dash + 2)?),
            options: format!("{},{}", text(5)?, text(dash + 3).unwrap_or_default()),
        })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes as `\` and three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match octal {
            Some(digits) if *byte == b'\\' => {
                out.push(digits.iter().fold(0u8, |value, digit| value.wrapping_mul(8) + (digit - b'0')));
                rest = &after[3..];
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_blanks_in_their_names_and_without_optional_fields() {
        let text =
            b"36 35 98:0 / /mnt/my\\040disk rw,noatime master:1 - ext4 /dev/vd\\134b rw,errors=continue\n\
                     40 35 0:31 / /run rw - tmpfs tmpfs rw\nnonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].device, mounts[0].at.as_path()), ((98, 0), Path::new("/mnt/my disk")));
        assert_eq!((mounts[0].kind.as_str(), mounts[0].from.as_path()), ("ext4", Path::new("/dev/vd\\b")));
        assert_eq!(mounts[0].options, "rw,noatime,rw,errors=continue");
        assert_eq!(mounts[1].device, (0, 31));
    }
}
