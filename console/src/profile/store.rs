//! The profiles in the configuration directory: list, choose, add, remove.

use super::{Fields, KeyPlace, Place, ProfileFile, config_dir, read, secret};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_wire::ca;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The content of `config.toml`. Other parts of the console keep their settings there, too: what is not
/// known here is kept as it is.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
    #[serde(flatten)]
    rest: toml::Table,
}

impl Fields for Config {
    fn problem(field: &str, value: &toml::Value) -> Option<Result<(), &'static str>> {
        match field {
            "profile" => Some(value.as_str().map(|_| ()).ok_or("must be the name of a profile")),
            _ => Some(Ok(())),
        }
    }
}

/// A profile as `continuum profiles` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whether it is the one in use.
    pub current: bool,
    /// What its file says, or why it cannot be read.
    pub file: Result<ProfileFile, Fault>,
}

/// Makes sure that a name can be a folder's name.
pub fn check(name: &str) -> Result<(), Fault> {
    let plain = (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if plain {
        return Ok(());
    }
    Err(Fault::new(
        FaultClass::Usage,
        "profile.name",
        format!("`{}` cannot be a profile's name", shown(name)),
    )
    .spares("nothing was changed")
    .remedy("write 1 to 64 letters, digits, -, _ or ., beginning with a letter or digit"))
}

/// Where a profile is.
pub fn place(name: &str) -> Result<Place, Fault> {
    check(name)?;
    let dir = profiles()?.join(name);
    if !dir.join("profile.toml").exists() {
        let known = list()?.into_iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ");
        let known =
            if known.is_empty() { "there is none yet".to_owned() } else { format!("there are: {known}") };
        return Err(Fault::new(
            FaultClass::Configuration,
            "profile.unknown",
            format!("no profile is called {name}; {known}"),
        )
        .spares("nothing was changed")
        .remedy("see `continuum profiles`, or make it with `continuum login`"));
    }
    Ok(Place { label: name.to_owned(), dir, lab: false })
}

/// The profile in use.
pub fn current() -> Result<Option<String>, Fault> {
    let Some(path) = config_dir().map(|dir| dir.join("config.toml")) else { return Ok(None) };
    match read::<Config>(&path) {
        Ok(config) => Ok(config.profile),
        Err(fault) if fault.class == FaultClass::NotFound => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// All profiles, by name.
pub fn list() -> Result<Vec<Listed>, Fault> {
    let dir = profiles()?;
    let current = current()?;
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&dir, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| failed(&dir, &error))?.file_name();
        let Some(name) = name.to_str().filter(|name| check(name).is_ok()) else { continue };
        let file = read(&dir.join(name).join("profile.toml"));
        found.push(Listed { name: name.to_owned(), current: current.as_deref() == Some(name), file });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Uses a profile from now on; `None`: none, which means the lab.
pub fn choose(name: Option<&str>) -> Result<(), Fault> {
    if let Some(name) = name {
        place(name)?;
    }
    let dir = config_dir().ok_or_else(super::no_home)?;
    let path = dir.join("config.toml");
    let mut config = match read::<Config>(&path) {
        Ok(config) => config,
        Err(fault) if fault.class == FaultClass::NotFound => Config::default(),
        Err(fault) => return Err(fault),
    };
    config.profile = name.map(str::to_owned);
    make(&dir)?;
    let text = toml::to_string(&config).map_err(|error| {
        Fault::new(
            FaultClass::Configuration,
            "profile.config",
            format!("the configuration cannot be written: {error}"),
        )
    })?;
    ca::write_file(&path, text.as_bytes(), 0o600).map_err(|error| pki(&error))
}

/// A directory in which the credentials of a new profile are put together; a sibling of where it goes.
pub fn staging() -> Result<PathBuf, Fault> {
    let profiles = profiles()?;
    make(&profiles)?;
    let dir = profiles.join(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    make(&dir)?;
    Ok(dir)
}

/// Makes a profile of a staging directory, in place of an older one of that name. Returns where the key went.
pub fn adopt(staging: &Path, name: &str, address: &str, keyring: bool) -> Result<KeyPlace, Fault> {
    check(name)?;
    let dir = profiles()?.join(name);
    let key =
        if keyring && secret::into_keyring(staging, &dir)? { KeyPlace::Keyring } else { KeyPlace::File };
    let file = ProfileFile { address: address.to_owned(), key };
    let text = toml::to_string(&file).map_err(|error| {
        Fault::new(
            FaultClass::Configuration,
            "profile.file",
            format!("the profile cannot be written: {error}"),
        )
    })?;
    ca::write_file(&staging.join("profile.toml"), text.as_bytes(), 0o600).map_err(|error| pki(&error))?;
    if dir.exists() {
        std::fs::remove_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
    }
    std::fs::rename(staging, &dir).map_err(|error| failed(&dir, &error))?;
    choose(Some(name))?;
    Ok(key)
}

/// Removes a profile and its key.
pub fn remove(name: &str) -> Result<(), Fault> {
    let place = place(name)?;
    let in_keyring =
        read::<ProfileFile>(&place.dir.join("profile.toml")).is_ok_and(|file| file.key == KeyPlace::Keyring);
    if in_keyring {
        secret::forget(&place.dir)?;
    }
    if current()?.as_deref() == Some(name) {
        choose(None)?;
    }
    std::fs::remove_dir_all(&place.dir).map_err(|error| failed(&place.dir, &error))
}

fn profiles() -> Result<PathBuf, Fault> {
    Ok(config_dir().ok_or_else(super::no_home)?.join("profiles"))
}

fn make(dir: &Path) -> Result<(), Fault> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(dir, &error))
}

fn pki(error: &ca::PkiError) -> Fault {
    Fault::new(FaultClass::Configuration, "profile.file", shown(&error.to_string()))
        .remedy("see `continuum doctor`")
}

fn failed(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        FaultClass::Configuration,
        "profile.file",
        format!("{}: {error}", shown(&path.display().to_string())),
    )
    .affects("profiles on this machine")
    .spares("vaults, machines and replicas")
    .remedy("see `continuum doctor`")
}
