//! Where an operator's private key is kept: in the desktop's keyring where there is one, else in a file
//! readable by its owner only.
//!
//! Credentials are made of files. A key from the keyring touches a file only in the user's runtime
//! directory (memory, not disk), for as long as it takes to read it.

use super::{KeyPlace, Place};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_wire::ca::{self, PkiError};
use continuum_wire::tls::Credentials;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The keyring's name for everything of ours.
const SERVICE: &str = "continuum";

/// Why there is no keyring, in words; `None` where there is one.
pub fn keyring_missing() -> Option<String> {
    keyring::Entry::store_status().as_ref().err().map(|error| shown(&error.to_string()))
}

/// Opens a target's credentials.
pub fn open(place: &Place, key: KeyPlace) -> Result<Credentials, Fault> {
    match key {
        KeyPlace::File => Credentials::open(&place.dir).map_err(|error| unusable(place, &error)),
        KeyPlace::Keyring => {
            let key = fetch(&place.dir)?;
            let scratch = Scratch::make()?;
            for name in ["ca.pem", "certificate.pem"] {
                let text = ca::read_text(&place.dir.join(name)).map_err(|error| unusable(place, &error))?;
                ca::write_file(&scratch.0.join(name), text.as_bytes(), 0o600)
                    .map_err(|error| unusable(place, &error))?;
            }
            ca::write_file(&scratch.0.join("key.pem"), &key, 0o600)
                .map_err(|error| unusable(place, &error))?;
            Credentials::open(&scratch.0).map_err(|error| unusable(place, &error))
        }
    }
}

/// Moves `key.pem` of a profile into the keyring. `Ok(false)`: there is none, and the file stays.
pub fn into_keyring(dir: &Path, entry_for: &Path) -> Result<bool, Fault> {
    if keyring_missing().is_some() {
        return Ok(false);
    }
    let path = dir.join("key.pem");
    let key = std::fs::read(&path).map_err(|error| local(&path, &error))?;
    let Ok(entry) = entry(entry_for) else { return Ok(false) };
    if entry.set_secret(&key).is_err() {
        return Ok(false);
    }
    // Some stores take what they cannot give back.
    match entry.get_secret() {
        Ok(stored) if stored == key => {}
        Ok(_) | Err(_) => return Ok(false),
    }
    std::fs::remove_file(&path).map_err(|error| local(&path, &error))?;
    Ok(true)
}

/// Takes a key out of the keyring for good.
pub fn forget(dir: &Path) -> Result<(), Fault> {
    let removed = entry(dir).and_then(|entry| entry.delete_credential());
    match removed {
        Ok(()) | Err(keyring::Error::NoEntry) => Ok(()),
        Err(error) => Err(keyring_fault(&error)),
    }
}

fn fetch(dir: &Path) -> Result<Vec<u8>, Fault> {
    entry(dir).and_then(|entry| entry.get_secret()).map_err(|error| keyring_fault(&error))
}

fn entry(dir: &Path) -> keyring::Result<keyring::Entry> {
    keyring::Entry::new(SERVICE, &dir.display().to_string())
}

fn keyring_fault(error: &keyring::Error) -> Fault {
    Fault::new(
        FaultClass::Configuration,
        "profile.keyring",
        format!("the keyring does not give the operator's key: {}", shown(&error.to_string())),
    )
    .affects("commands that use this profile")
    .spares("vaults, machines and replicas")
    .remedy("unlock the keyring, or log in again with `continuum login … --no-keyring`")
}

fn unusable(place: &Place, error: &PkiError) -> Fault {
    Fault::new(
        FaultClass::Configuration,
        "profile.credentials",
        format!("the credentials of {} are not usable: {}", shown(&place.label), shown(&error.to_string())),
    )
    .affects("commands that use them")
    .spares("vaults, machines and replicas")
    .remedy("mend them, or log in again with `continuum login`")
}

fn local(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        FaultClass::Configuration,
        "profile.file",
        format!("{}: {error}", shown(&path.display().to_string())),
    )
    .remedy("see `continuum doctor`")
}

/// A directory of our own in memory, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self, Fault> {
        let base = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|dir| dir.is_dir())
            .unwrap_or_else(|| PathBuf::from("/dev/shm"));
        let path = base.join(format!("continuum-{}", uuid::Uuid::new_v4().simple()));
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| local(&path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
