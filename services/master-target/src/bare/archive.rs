//! A bare store into object storage, and opened where it lies there.
//!
//! Lives here: words for people. What an archive is and why two writers cannot harm one another: the replica crate.

use super::{Told, bare_fault, chain, open};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::untrusted::shown;
use continuum_objects::Bucket;
use continuum_replica::bare::Bare;
use continuum_replica::remote::archive::{Archived, archive};
use continuum_replica::remote::{ArchiveError, folder};
use std::path::Path;
use std::sync::Arc;

/// Archives the store in `path` below an address. Only what is not there yet travels.
pub fn run(path: &Path, address: &str, told: Told<'_>) -> Result<(MachineId, Archived), Fault> {
    let bucket = bucket(address)?;
    let bare = open(path, None)?;
    if let Some(damage) = bare.store.state().damage {
        return Err(Fault::new(
            FaultClass::Refused,
            "archive.damaged",
            format!("the store is damaged, and a good archive is not replaced by it: {}", shown(&damage)),
        )
        .affects("this archive")
        .spares("the archive before, and the store, which was only read")
        .remedy("`continuum inspect STORE --verify` tells what is whole"));
    }
    let archived = archive(&bare, &bucket, told).map_err(|error| fault(address, &error))?;
    Ok((bare.manifest.machine, archived))
}

/// Opens the store of an archive.
pub(super) fn open_address(address: &str, scratch: Option<&Path>) -> Result<Bare, Fault> {
    let bucket = Arc::new(bucket(address)?);
    folder::open(bucket, Path::new(address), scratch).map_err(|error| match error {
        folder::OpenError::Archive(error) => fault(address, &error),
        folder::OpenError::Store(error) => bare_fault(&error),
    })
}

pub(crate) fn bucket(address: &str) -> Result<Bucket, Fault> {
    Bucket::open(address).map_err(|error| {
        Fault::new(FaultClass::Configuration, "archive.address", chain(&error))
            .spares("nothing was read or written")
            .remedy(
                "credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and \
                 AWS_ENDPOINT, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
            )
    })
}

pub(crate) fn fault(address: &str, error: &ArchiveError) -> Fault {
    let (class, code, remedy) = match error {
        ArchiveError::Objects { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => (
            FaultClass::Refused,
            "archive.denied",
            "see to the credentials in the environment and what they allow",
        ),
        ArchiveError::Objects { .. } => (
            FaultClass::NotConnected,
            "archive.storage",
            "see to the network and the storage, and order it again",
        ),
        ArchiveError::NoArchive => {
            (FaultClass::NotFound, "archive.none", "name the prefix that was given to `continuum archive`")
        }
        ArchiveError::Claim(_) => (
            FaultClass::Failed,
            "archive.damaged",
            "take an earlier version of the object `catalog`, if the storage keeps some",
        ),
        ArchiveError::Foreign { .. } => {
            (FaultClass::Refused, "archive.foreign", "name another prefix: each machine has its own")
        }
        ArchiveError::Newer { .. } => (
            FaultClass::Refused,
            "archive.newer",
            "use the newer store, or keep this one below another prefix",
        ),
        ArchiveError::Raced => {
            (FaultClass::Conflict, "archive.raced", "order it again, if it is still needed")
        }
        ArchiveError::Stopped => {
            (FaultClass::Failed, "interrupted", "order it again: what was sent is not sent twice")
        }
        ArchiveError::Store(_) => {
            (FaultClass::Failed, "store.damaged", "`continuum inspect STORE --verify` tells what is whole")
        }
    };
    Fault::new(class, code, format!("{}: {}", shown(address), chain(error)))
        .affects("this archive")
        .spares("the archive before, where there was one, and the store, which is only read")
        .remedy(remedy)
}
