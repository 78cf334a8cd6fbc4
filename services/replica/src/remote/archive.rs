//! A store into objects: what is not there yet travels, then one conditional put makes it count.

use super::{ArchiveError, CATALOG, Catalog, FORMAT, Objects, PART_BYTES, Parts, object_of, part_of};
use crate::bare::{self, Bare, BareError};
use crate::base;
use crate::manifest;
use crate::medium::Medium;
use crate::segment;
use crate::store::{ReplicaError, Store};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

/// What an archive took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archived {
    /// The catalog's version.
    pub version: u64,
    /// Bytes that the archive holds in parts, each counted once.
    pub bytes: u64,
    /// Of these, what had to travel.
    pub sent_bytes: u64,
    /// Parts taken away, which no catalog needs any more.
    pub removed: u64,
}

impl Store {
    /// Archives this store, which lies in `path`, while it goes on taking frames and serving views. History is not
    /// folded or thinned meanwhile.
    ///
    /// Errors: as [`archive`]; and where the store is damaged, so that a good archive is not replaced by it.
    pub fn archive(
        &self,
        path: &Path,
        objects: &dyn Objects,
        told: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Archived, ArchiveError> {
        let _still = {
            // One that failed half-way is finished by the next start.
            let folding = self.core.folding.lock().unwrap_or_else(PoisonError::into_inner);
            if folding.half_way {
                return Err(ReplicaError::Poisoned.into());
            }
            Still::of(self)
        };
        let bare = bare::open_beside(path).map_err(|error| match error {
            BareError::Store(error) => error,
            other => ReplicaError::Damaged { file: path.display().to_string(), reason: other.to_string() },
        })?;
        if let Some(reason) = bare.store.state().damage {
            return Err(ReplicaError::Damaged { file: "journal".into(), reason }.into());
        }
        archive(&bare, objects, told)
    }
}

/// While one is held, history is neither folded nor thinned.
struct Still<'a>(&'a Store);

impl<'a> Still<'a> {
    fn of(store: &'a Store) -> Self {
        store.core.archiving.fetch_add(1, Ordering::AcqRel);
        Self(store)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.core.archiving.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Archives an opened store. `told` hears how many bytes of its files are done, of how many; its answer says whether
/// to go on.
///
/// Errors: the archive before stands, whole, in every case.
pub fn archive(
    bare: &Bare,
    objects: &dyn Objects,
    told: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Archived, ArchiveError> {
    let medium = &*bare.snapshot;
    let state = bare.store.state();
    let (epoch, sequence) = (state.epoch, state.last.sequence);
    let before = Catalog::read(objects)?;
    if let Some((before, _)) = &before {
        if before.machine != bare.manifest.machine {
            return Err(ArchiveError::Foreign { found: before.machine, ours: bare.manifest.machine });
        }
        if (before.epoch, before.sequence) > (epoch, sequence) {
            return Err(ArchiveError::Newer { epoch: before.epoch, sequence: before.sequence });
        }
    }
    let version = before.as_ref().map_or(1, |(before, _)| before.version.saturating_add(1));
    let listed = listed(objects)?;
    let there = trusted(before.as_ref().map(|(before, _)| before), &listed, version);
    let mut sender = Sender { objects, there, version, used: BTreeMap::new(), sent: 0 };
    let names = names(bare)?;
    let total = names.iter().map(|(_, length)| length).sum();
    let (mut files, mut done) = (BTreeMap::new(), 0);
    for (name, length) in names {
        let mut on = |bytes| {
            done += bytes;
            if told(done, total) { Ok(()) } else { Err(ArchiveError::Stopped) }
        };
        files.insert(name.clone(), sender.file(medium, &name, length, &mut on)?);
    }
    let machine = bare.manifest.machine;
    let catalog = Catalog { format: FORMAT, version, machine, epoch, sequence, files };
    let bytes = manifest::encode(&catalog)
        .map_err(|error| ArchiveError::objects(CATALOG)(std::io::Error::other(error)))?;
    if !objects
        .replace(CATALOG, bytes, before.as_ref().map(|(_, tag)| tag))
        .map_err(ArchiveError::objects(CATALOG))?
    {
        return Err(ArchiveError::Raced);
    }
    let readers = before.as_ref().map(|(before, _)| before.parts()).unwrap_or_default();
    let mut removed = 0;
    for part in listed.keys() {
        let old = part_of(part).is_some_and(|(_, sent_for)| sent_for < version);
        if !old || sender.used.contains_key(part) || readers.contains(part.as_str()) {
            continue;
        }
        // The archive stands. What cannot be taken away now is tried again by the next one.
        match objects.remove(&object_of(part)) {
            Ok(()) => removed += 1,
            Err(error) => tracing::warn!(part, %error, "a part that nobody needs could not be removed"),
        }
    }
    Ok(Archived { version, bytes: sender.used.values().sum(), sent_bytes: sender.sent, removed })
}

/// The parts that are there, with their lengths.
fn listed(objects: &dyn Objects) -> Result<BTreeMap<String, u64>, ArchiveError> {
    let listed = objects.list("parts/").map_err(ArchiveError::objects("parts/"))?;
    let parts = listed.into_iter().filter_map(|(name, length)| {
        let part = name.strip_prefix("parts/")?;
        part_of(part).map(|_| (part.to_owned(), length))
    });
    Ok(parts.collect())
}

/// Parts that are there and stay, by content: of the catalog before, and of an archive of this version that was
/// interrupted.
fn trusted(
    before: Option<&Catalog>,
    listed: &BTreeMap<String, u64>,
    version: u64,
) -> HashMap<String, (String, u64)> {
    let named = before.map(Catalog::parts).unwrap_or_default();
    let kept = listed.iter().filter_map(|(part, length)| {
        let (digest, sent_for) = part_of(part)?;
        let stays = sent_for == version || named.contains(part.as_str());
        stays.then(|| (digest.to_owned(), (part.clone(), *length)))
    });
    kept.collect()
}

/// A store's files with their lengths; overlays are no part of history.
fn names(bare: &Bare) -> Result<Vec<(String, u64)>, ArchiveError> {
    let medium = &*bare.snapshot;
    let mut names = vec!["manifest".to_owned(), "marks".to_owned()];
    names.extend(bare.manifest.disks.iter().flat_map(base::files_of).map(|(name, _)| name));
    // Those that it was opened with: an owner that is at work makes more.
    names.extend(bare.store.core.index().segments.keys().map(|number| segment::file_name(*number)));
    let mut files = Vec::new();
    for name in names {
        match medium.open(&name, false).and_then(|file| file.len()) {
            Ok(length) => files.push((name, length)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && name == "marks" => {}
            Err(error) => return Err(ReplicaError::io(&name, error).into()),
        }
    }
    Ok(files)
}

struct Sender<'a> {
    objects: &'a dyn Objects,
    /// By content: the part, and its length.
    there: HashMap<String, (String, u64)>,
    version: u64,
    used: BTreeMap<String, u64>,
    sent: u64,
}

impl Sender<'_> {
    fn file(
        &mut self,
        medium: &crate::snapshot::Snapshot,
        name: &str,
        length: u64,
        on: &mut dyn FnMut(u64) -> Result<(), ArchiveError>,
    ) -> Result<Parts, ArchiveError> {
        let io = |error| ReplicaError::io(name, error);
        let file = medium.open(name, false).map_err(io)?;
        let holds = medium.data_of(name).map_err(io)?;
        let mut parts = Vec::with_capacity(length.div_ceil(PART_BYTES) as usize);
        let mut at = 0;
        while at < length {
            let part = (length - at).min(PART_BYTES);
            let first = holds.partition_point(|(_, end)| *end <= at);
            if holds.get(first).is_some_and(|(start, _)| *start < at + part) {
                let mut bytes = vec![0; part as usize];
                file.read_at(at, &mut bytes).map_err(io)?;
                parts.push(if bytes.iter().all(|byte| *byte == 0) { None } else { Some(self.part(bytes)?) });
            } else {
                parts.push(None);
            }
            at += part;
            on(part)?;
        }
        Ok(Parts { length, parts })
    }

    fn part(&mut self, bytes: Vec<u8>) -> Result<String, ArchiveError> {
        let digest = digest_of(&bytes);
        let length = bytes.len() as u64;
        let part = match self.there.get(&digest) {
            Some((part, there)) if *there == length => part.clone(),
            _ => {
                let part = format!("{digest}-{}", self.version);
                let object = object_of(&part);
                self.objects.put(&object, bytes).map_err(ArchiveError::objects(&object))?;
                self.sent += length;
                self.there.insert(digest, (part.clone(), length));
                part
            }
        };
        self.used.insert(part.clone(), length);
        Ok(part)
    }
}

/// What a part with this content is called.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
