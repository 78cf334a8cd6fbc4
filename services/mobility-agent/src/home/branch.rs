//! A branch: what the blocks of a machine's disks held before the way home overwrote them.
//!
//! ```text
//! <agent's folder>/branches/<name>.branch
//! "CTBRANCH" · version u32 = 1 · length u32 · JSON (machine, view, when, sizes of the disks)        (little-endian)
//! entry  = disk u16 · kind u16 (0 zeroes, 1 data) · length u32 · block u64 · sum u128 · data
//! ```
//!
//! A block is 64 KiB; the last one of a disk may be shorter. The sum is over place and data. Each block stands here
//! once: as it was when the direction was reversed. Only appended to, and synced before anything is overwritten; a
//! torn end is cut. After a forced failover this is where the writes of the losing side are.

use continuum_model::bits::Bits;
use continuum_model::units::REGION_BYTES;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"CTBRANCH";
const VERSION: u32 = 1;
const ABOUT_BYTES_MAX: u32 = 64 << 10;
const ENTRY_BYTES: usize = 32;

/// What a branch is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The machine's id.
    pub machine: String,
    /// What ran at the recovery site meanwhile.
    pub view: String,
    /// When the direction was reversed; RFC 3339.
    pub made: String,
    /// Sizes of the disks in bytes, in order.
    pub sizes: Vec<u64>,
}

/// A branch that is being written.
pub struct Branch {
    file: File,
    end: u64,
    kept: Vec<Bits>,
    unsynced: bool,
}

/// A branch on disk.
#[derive(Debug)]
pub struct Found {
    /// What it is called.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is of.
    pub about: About,
    /// Blocks, a disk each.
    pub blocks: Vec<u64>,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Where branches are kept.
pub fn folder(dir: &Path) -> PathBuf {
    dir.join("branches")
}

impl Branch {
    /// Opens or makes the branch of this name below an agent's folder.
    ///
    /// Errors: the file cannot be used, or is of something else.
    pub fn open(dir: &Path, name: &str, about: &About) -> io::Result<Self> {
        let folder = folder(dir);
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{name}.branch"));
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut kept: Vec<Bits> =
            about.sizes.iter().map(|size| Bits::new(size.div_ceil(REGION_BYTES))).collect();
        let end = match read_about(&mut file) {
            Ok(found) if found.view == about.view && found.sizes == about.sizes => {
                let mut end = file.stream_position()?;
                let entries = Entries { input: BufReader::new(&file), sizes: &about.sizes };
                for (disk, block, data) in entries {
                    kept[usize::from(disk)].set(block);
                    end += (ENTRY_BYTES + data.map_or(0, |data| data.len())) as u64;
                }
                end
            }
            Ok(_) => return Err(io::Error::other(format!("{} is of something else", path.display()))),
            // Made, and cut off before anything was overwritten: nothing is lost by beginning anew.
            Err(_) => {
                file.set_len(0)?;
                file.seek(SeekFrom::Start(0))?;
                let text = serde_json::to_vec(about).map_err(io::Error::other)?;
                file.write_all(MAGIC)?;
                file.write_all(&VERSION.to_le_bytes())?;
                file.write_all(&(text.len() as u32).to_le_bytes())?;
                file.write_all(&text)?;
                file.sync_all()?;
                File::open(&folder)?.sync_all()?;
                file.stream_position()?
            }
        };
        file.set_len(end)?;
        Ok(Self { file, end, kept, unsynced: true })
    }

    /// Whether a block is kept already.
    pub fn has(&self, disk: u16, block: u64) -> bool {
        self.kept.get(usize::from(disk)).is_some_and(|kept| kept.get(block))
    }

    /// Keeps a block. Durable after [`Branch::sync`].
    pub fn keep(&mut self, disk: u16, block: u64, data: &[u8]) -> io::Result<()> {
        let zeroes = data.iter().all(|byte| *byte == 0);
        let stored = if zeroes { &[][..] } else { data };
        let mut entry = Vec::with_capacity(ENTRY_BYTES + stored.len());
        entry.extend_from_slice(&disk.to_le_bytes());
        entry.extend_from_slice(&u16::from(!zeroes).to_le_bytes());
        entry.extend_from_slice(&(data.len() as u32).to_le_bytes());
        entry.extend_from_slice(&block.to_le_bytes());
        entry.extend_from_slice(&sum(&entry[..16], stored).to_le_bytes());
        entry.extend_from_slice(stored);
        self.file.write_all_at(&entry, self.end)?;
        self.end += entry.len() as u64;
        self.unsynced = true;
        self.kept[usize::from(disk)].set(block);
        Ok(())
    }

    /// Makes what was kept durable.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.unsynced {
            self.file.sync_data()?;
            self.unsynced = false;
        }
        Ok(())
    }

    /// Bytes of the file.
    pub const fn bytes(&self) -> u64 {
        self.end
    }
}

fn sum(place: &[u8], data: &[u8]) -> u128 {
    let mut state = Xxh3::new();
    state.update(place);
    state.update(data);
    state.digest128()
}

fn read_about(file: &mut File) -> io::Result<About> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("no branch: {what}"));
    file.seek(SeekFrom::Start(0))?;
    let mut head = [0; 16];
    file.read_exact(&mut head)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if &head[..8] != MAGIC || word(8) != VERSION || word(12) > ABOUT_BYTES_MAX {
        return Err(bad("its head is of another kind or version"));
    }
    let mut text = vec![0; word(12) as usize];
    file.read_exact(&mut text)?;
    serde_json::from_slice(&text).map_err(|error| bad(&error.to_string()))
}

/// Entries up to the end, or up to where it is torn.
struct Entries<'a, R> {
    input: R,
    sizes: &'a [u64],
}

impl<R: Read> Iterator for Entries<'_, R> {
    type Item = (u16, u64, Option<Vec<u8>>);

    fn next(&mut self) -> Option<Self::Item> {
        let mut head = [0; ENTRY_BYTES];
        self.input.read_exact(&mut head).ok()?;
        let disk = u16::from_le_bytes([head[0], head[1]]);
        let kind = u16::from_le_bytes([head[2], head[3]]);
        let length = u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        let block = u64::from_le_bytes(head[8..16].try_into().ok()?);
        let size = *self.sizes.get(usize::from(disk))?;
        let start = block.checked_mul(REGION_BYTES).filter(|start| *start < size)?;
        if length != REGION_BYTES.min(size - start) || kind > 1 {
            return None;
        }
        let mut data = vec![0; if kind == 1 { length as usize } else { 0 }];
        self.input.read_exact(&mut data).ok()?;
        let told = u128::from_le_bytes(head[16..].try_into().ok()?);
        (told == sum(&head[..16], &data)).then_some((disk, block, (kind == 1).then_some(data)))
    }
}

/// The branches below an agent's folder, oldest first. What cannot be read is told with its reason.
pub fn list(dir: &Path) -> io::Result<Vec<Result<Found, (PathBuf, String)>>> {
    let entries = match std::fs::read_dir(folder(dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "branch"));
    paths.sort();
    Ok(paths.into_iter().map(|path| look(&path).map_err(|error| (path, error.to_string()))).collect())
}

/// How many there are below an agent's folder, and their bytes. Looks at their names only.
pub fn weight(dir: &Path) -> (u32, u64) {
    let entries = std::fs::read_dir(folder(dir)).into_iter().flatten().flatten();
    let branches = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "branch"));
    branches.fold((0, 0), |(count, bytes), entry| {
        (count + 1, bytes + entry.metadata().map_or(0, |about| about.len()))
    })
}

fn look(path: &Path) -> io::Result<Found> {
    let mut file = File::open(path)?;
    let about = read_about(&mut file)?;
    let mut blocks = vec![0; about.sizes.len()];
    for (disk, ..) in (Entries { input: BufReader::new(&file), sizes: &about.sizes }) {
        blocks[usize::from(disk)] += 1;
    }
    let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Found { name, path: path.to_owned(), about, blocks, bytes: file.metadata()?.len() })
}

/// Lays the blocks of one disk of a branch over an image of that disk. Returns how many.
///
/// Errors: the branch has no such disk, the image is smaller than the disk, or either cannot be read or written.
pub fn lay_over(branch: &Path, disk: u16, image: &Path) -> io::Result<u64> {
    let mut file = File::open(branch)?;
    let about = read_about(&mut file)?;
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, format!("it has no disk {disk}"));
    let size = *about.sizes.get(usize::from(disk)).ok_or_else(missing)?;
    let out = OpenOptions::new().write(true).open(image)?;
    if out.metadata()?.is_file() && out.metadata()?.len() < size {
        let why = format!("the image is smaller than the disk, which has {size} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut places: BTreeMap<u64, ()> = BTreeMap::new();
    for (of, block, data) in (Entries { input: BufReader::new(&file), sizes: &about.sizes }) {
        if of != disk {
            continue;
        }
        let start = block * REGION_BYTES;
        let data = data.unwrap_or_else(|| vec![0; REGION_BYTES.min(size - start) as usize]);
        out.write_all_at(&data, start)?;
        places.insert(block, ());
    }
    out.sync_all()?;
    Ok(places.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        let sizes = vec![3 * REGION_BYTES + 512, REGION_BYTES];
        About { machine: "m".into(), view: "v".into(), made: "now".into(), sizes }
    }

    #[test]
    fn what_was_kept_is_there_again_and_a_torn_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut branch = Branch::open(dir.path(), "a", &about()).unwrap();
        branch.keep(0, 1, &[7; REGION_BYTES as usize]).unwrap();
        branch.keep(0, 3, &[9; 512]).unwrap();
        branch.keep(1, 0, &[0; REGION_BYTES as usize]).unwrap();
        branch.sync().unwrap();
        let whole = branch.bytes();
        drop(branch);
        let path = folder(dir.path()).join("a.branch");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[1; 40], whole).unwrap();
        let again = Branch::open(dir.path(), "a", &about()).unwrap();
        assert!(again.has(0, 1) && again.has(0, 3) && again.has(1, 0) && !again.has(0, 0));
        assert_eq!(again.bytes(), whole);
        drop(again);
        let found = list(dir.path()).unwrap().remove(0).unwrap();
        assert_eq!((found.name.as_str(), found.blocks.as_slice()), ("a", &[2, 1][..]));
        let image = dir.path().join("image");
        std::fs::write(&image, vec![1; about().sizes[0] as usize]).unwrap();
        assert_eq!(lay_over(&path, 0, &image).unwrap(), 2);
        let bytes = std::fs::read(&image).unwrap();
        let expected = |at: usize| match at as u64 / REGION_BYTES {
            1 => 7,
            3 => 9,
            _ => 1,
        };
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == expected(at)));
        assert!(lay_over(&path, 2, &image).is_err(), "there is no such disk");
        let other = About { view: "w".into(), ..about() };
        assert!(Branch::open(dir.path(), "a", &other).is_err(), "a branch is of one thing");
    }

    #[test]
    fn a_flipped_byte_ends_what_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let mut branch = Branch::open(dir.path(), "a", &about()).unwrap();
        let start = branch.bytes();
        branch.keep(0, 1, &[7; REGION_BYTES as usize]).unwrap();
        branch.keep(0, 2, &[8; REGION_BYTES as usize]).unwrap();
        let path = folder(dir.path()).join("a.branch");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[6], start + 1000).unwrap();
        assert_eq!(list(dir.path()).unwrap().remove(0).unwrap().blocks, [0, 0]);
    }
}
