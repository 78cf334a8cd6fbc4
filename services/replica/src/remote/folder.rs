//! An archive as a folder that is only read.
//!
//! What is read is whole parts, each held against its name (its SHA-256) before a byte of it is used; a few of them
//! are kept. The catalog is read once: an archive that is replaced meanwhile still has the parts of this one, until
//! it is replaced twice.

use super::{ArchiveError, Catalog, Objects, PART_BYTES, archive::digest_of, object_of, part_of};
use crate::bare::{self, Bare, BareError};
use crate::snapshot::{Below, BelowFile, Snapshot};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Parts that are kept: 64 MiB.
const KEPT_PARTS: usize = 16;

/// Opens the store of an archive where it lies. Overlays go to `scratch`. `name` is what errors call it.
pub fn open(objects: Arc<dyn Objects>, name: &Path, scratch: Option<&Path>) -> Result<Bare, OpenError> {
    let (catalog, _) = Catalog::read(&*objects)?.ok_or(ArchiveError::NoArchive)?;
    let archive = Archive { objects, catalog, kept: Mutex::default() };
    let snapshot = Snapshot::over(Box::new(Arc::new(archive)), scratch);
    Ok(bare::open_snapshot(name, snapshot)?)
}

/// Why an archive cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The archive itself.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store in it.
    #[error(transparent)]
    Store(#[from] BareError),
}

struct Archive {
    objects: Arc<dyn Objects>,
    catalog: Catalog,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    parts: HashMap<String, Arc<Vec<u8>>>,
    order: VecDeque<String>,
}

impl Archive {
    fn part(&self, part: &str, length: u64) -> io::Result<Arc<Vec<u8>>> {
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).parts.get(part) {
            return Ok(kept.clone());
        }
        let name = object_of(part);
        let (bytes, _) = self.objects.read(&name, PART_BYTES)?.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{name} is gone: the archive was replaced meanwhile; open it again"),
            )
        })?;
        let told = part_of(part).map(|(digest, _)| digest);
        if bytes.len() as u64 != length || told != Some(digest_of(&bytes).as_str()) {
            let what = format!("{name} does not hold what its name says: the object storage damaged it");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let bytes = Arc::new(bytes);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.parts.insert(part.to_owned(), bytes.clone()).is_none() {
            kept.order.push_back(part.to_owned());
        }
        while kept.order.len() > KEPT_PARTS
            && let Some(oldest) = kept.order.pop_front()
        {
            kept.parts.remove(&oldest);
        }
        Ok(bytes)
    }
}

impl Below for Arc<Archive> {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn BelowFile>>> {
        let there = self.catalog.files.contains_key(name);
        Ok(there.then(|| -> Box<dyn BelowFile> {
            Box::new(ArchivedFile { archive: self.clone(), name: name.to_owned() })
        }))
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let names = self.catalog.files.keys();
        Ok(names
            .filter_map(|name| match folder {
                "" => Some(name.as_str()).filter(|name| !name.contains('/')),
                folder => name.strip_prefix(folder)?.strip_prefix('/'),
            })
            .map(str::to_owned)
            .collect())
    }
}

struct ArchivedFile {
    archive: Arc<Archive>,
    name: String,
}

impl ArchivedFile {
    fn parts(&self) -> io::Result<&super::Parts> {
        self.archive.catalog.files.get(&self.name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl BelowFile for ArchivedFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.parts()?.length)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.parts()?;
        let end = offset.checked_add(out.len() as u64).filter(|end| *end <= file.length);
        end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (mut at, mut rest) = (offset, out);
        while !rest.is_empty() {
            let number = (at / PART_BYTES) as usize;
            let within = (at % PART_BYTES) as usize;
            let length = file.length_of(number);
            let (piece, after) = rest.split_at_mut(rest.len().min(length as usize - within));
            match &file.parts[number] {
                None => piece.fill(0),
                Some(part) => {
                    let part = self.archive.part(part, length)?;
                    piece.copy_from_slice(&part[within..within + piece.len()]);
                }
            }
            at += piece.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn data(&self, end: u64) -> io::Result<Vec<(u64, u64)>> {
        let file = self.parts()?;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (number, _) in file.parts.iter().enumerate().filter(|(_, part)| part.is_some()) {
            let start = number as u64 * PART_BYTES;
            let stop = (start + file.length_of(number)).min(end);
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = stop,
                _ if start < stop => ranges.push((start, stop)),
                _ => {}
            }
        }
        Ok(ranges)
    }
}
