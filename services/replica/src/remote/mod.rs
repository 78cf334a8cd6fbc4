//! A store kept as objects: an archive in S3, Azure Blob or anything that offers as little as [`Objects`].
//!
//! ```text
//! parts/<sha256>-<version>   up to 4 MiB of a file of the store: its content, and the catalog it was sent for
//! catalog                    which parts make up which file; JSON and a sum, as a store's small files
//! ```
//!
//! - [`archive`]: a store into objects; only parts that are not there yet travel
//! - [`folder`]: an archive as a folder that is only read, so that the store's own code opens it where it lies
//!
//! **One writer.** Parts come first; then the catalog is replaced on the condition that it is still the one that was
//! read before (a conditional put). Of two writers one wins whole, and the other is told. Until then nothing that
//! the catalog names is touched, so an archive that is interrupted anywhere leaves the one before.
//!
//! **Giving space back.** The archive of version *n* takes away, after its catalog stands, what neither it nor the
//! catalog before it names: whoever reads that one still finds its parts. Only parts of versions before *n* are taken
//! away, and a writer relies only on parts that the catalog before it names or that were sent for its own version. So
//! a writer that is slow to take away can take nothing from a later one.
//!
//! Knows no network: whoever does lends an [`Objects`].

pub mod archive;
pub mod folder;

use crate::store::ReplicaError;
use continuum_model::id::MachineId;
use continuum_model::units::{Epoch, Sequence};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The version of the format.
pub const FORMAT: u32 = 1;
/// Files are cut into parts of this length; only the last of a file may be shorter.
pub const PART_BYTES: u64 = 4 << 20;
const CATALOG: &str = "catalog";
/// A catalog that is longer is none of ours; this many bytes name 3 TiB.
const CATALOG_BYTES_MAX: u64 = 64 << 20;

/// Which version of an object was read: what its server calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag(pub String);

/// What can be asked of a space of objects. Every call blocks until it is answered for good; what may be tried again
/// was tried again by then.
pub trait Objects: Send + Sync {
    /// A whole object and which version of it; `None` where there is none. Longer than `bytes_max` is an error.
    fn read(&self, name: &str, bytes_max: u64) -> std::io::Result<Option<(Vec<u8>, Tag)>>;
    /// Makes an object, or replaces it with what it holds already.
    fn put(&self, name: &str, bytes: Vec<u8>) -> std::io::Result<()>;
    /// Replaces an object if it is still this version (`None`: if there is none). Answers whether it was.
    fn replace(&self, name: &str, bytes: Vec<u8>, expected: Option<&Tag>) -> std::io::Result<bool>;
    /// The names below a prefix, with their lengths.
    fn list(&self, prefix: &str) -> std::io::Result<Vec<(String, u64)>>;
    /// Removes an object; one that is not there is fine.
    fn remove(&self, name: &str) -> std::io::Result<()>;
}

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The objects cannot be reached.
    #[error("{name}: the object storage did not do it")]
    Objects {
        /// Which object.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no archive.
    #[error("there is no archive: it has no catalog")]
    NoArchive,
    /// It claims what cannot be.
    #[error("the archive's catalog cannot be right: {0}; nothing was made of it")]
    Claim(String),
    /// It belongs to another machine.
    #[error("the archive there is of machine {found}, and this store is of {ours}; nothing was written")]
    Foreign {
        /// Whose archive.
        found: MachineId,
        /// Whose store.
        ours: MachineId,
    },
    /// It is ahead of the store.
    #[error(
        "the archive there is newer (epoch {epoch}, record {sequence}) than this store: this is an old copy, and nothing was written"
    )]
    Newer {
        /// The archive's epoch.
        epoch: Epoch,
        /// Its last record.
        sequence: Sequence,
    },
    /// Somebody else archived meanwhile.
    #[error("another process replaced the catalog meanwhile: its archive stands, and this one was given up")]
    Raced,
    /// Whoever ordered it changed their mind.
    #[error("it was stopped; the archive before stands")]
    Stopped,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] ReplicaError),
}

impl ArchiveError {
    fn objects(name: &str) -> impl Fn(std::io::Error) -> Self + '_ {
        move |source| Self::Objects { name: name.to_owned(), source }
    }
}

/// Which parts make up which file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Must be [`FORMAT`].
    pub format: u32,
    /// How often it was replaced.
    pub version: u64,
    /// Whose store.
    pub machine: MachineId,
    /// The newest epoch that the store knew.
    pub epoch: Epoch,
    /// Its last record.
    pub sequence: Sequence,
    /// Its files, by name.
    pub files: BTreeMap<String, Parts>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Its length.
    pub length: u64,
    /// Its parts in order; `null`: all zeroes.
    pub parts: Vec<Option<String>>,
}

impl Parts {
    /// How long a part is.
    fn length_of(&self, part: usize) -> u64 {
        (self.length - part as u64 * PART_BYTES).min(PART_BYTES)
    }
}

/// The content and the version that a part's name tells.
fn part_of(name: &str) -> Option<(&str, u64)> {
    let (digest, version) = name.split_once('-')?;
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let plain = digest.len() == 64 && digest.bytes().all(hex);
    let number: u64 = version.parse().ok()?;
    // One name for one part.
    (plain && number.to_string() == version).then_some((digest, number))
}

/// The object that holds a part.
fn object_of(part: &str) -> String {
    format!("parts/{part}")
}

impl Catalog {
    /// Every part that it names.
    fn parts(&self) -> BTreeSet<&str> {
        self.files.values().flat_map(|file| &file.parts).flatten().map(String::as_str).collect()
    }

    /// Reads the catalog there, with its version; `None`: there is none yet.
    fn read(objects: &dyn Objects) -> Result<Option<(Self, Tag)>, ArchiveError> {
        let read = objects.read(CATALOG, CATALOG_BYTES_MAX).map_err(ArchiveError::objects(CATALOG))?;
        let Some((bytes, tag)) = read else { return Ok(None) };
        let catalog: Self = crate::manifest::decode(&bytes).map_err(ArchiveError::Claim)?;
        catalog.check().map_err(ArchiveError::Claim)?;
        Ok(Some((catalog, tag)))
    }

    /// Refuses what no archive of ours can say.
    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("it is of format {}, and this program reads format {FORMAT}", self.format));
        }
        for (name, file) in &self.files {
            let known = match name.split_once('/') {
                None => matches!(name.as_str(), "manifest" | "marks"),
                Some(("journal", number)) => number.len() >= 8 && number.bytes().all(|b| b.is_ascii_digit()),
                Some(("base", file)) => file
                    .split_once('.')
                    .is_some_and(|(disk, end)| disk.parse::<u16>().is_ok() && matches!(end, "img" | "sum")),
                Some(_) => false,
            };
            if !known {
                return Err("it names a file that no store has".into());
            }
            if file.parts.len() as u64 != file.length.div_ceil(PART_BYTES) {
                return Err(format!("{name} has {} parts for {} bytes", file.parts.len(), file.length));
            }
            if !file.parts.iter().flatten().all(|part| part_of(part).is_some()) {
                return Err(format!("{name} has a part with an impossible name"));
            }
        }
        Ok(())
    }
}
