//! Which vault is meant, and with whose credentials.
//!
//! ```text
//! <config>/config.toml               profile = "berlin"         the one in use
//! <config>/profiles/berlin/          0700
//!     profile.toml                   address = "vault.example:443"
//!                                    key = "file" | "keyring"
//!     ca.pem  certificate.pem        the vault's CA, and the operator's certificate
//!     key.pem                        0600; not there where the key is in the keyring
//! <lab directory>/profile/           the same four files, written by the lab
//! ```
//!
//! `<config>` is `CONTINUUM_CONFIG_DIR`, else the user's configuration directory.
//!
//! Lives here: reading and choosing. Lives elsewhere: making and removing profiles (`store`), where the
//! key is kept (`secret`), the connection itself (`link`).
//!
//! Invariant: a path is built from a profile's name only after the name was checked.

pub mod secret;
pub mod store;

use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_wire::tls::Credentials;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What the command line and the environment say about which vault is meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// `--profile`, else `CONTINUUM_PROFILE`.
    pub profile: Option<String>,
    /// `--connect`: the address, in place of the profile's.
    pub connect: Option<String>,
    /// `--dir`, else `CONTINUUM_DIR`.
    pub dir: Option<PathBuf>,
}

impl Choice {
    /// Fills from the environment what the command line leaves open. A flag for one of profile and
    /// directory speaks against the environment's other.
    #[must_use]
    pub fn with_environment(mut self) -> Self {
        if self.profile.is_none() && self.dir.is_none() {
            let named = |name| std::env::var_os(name).filter(|value| !value.is_empty());
            self.profile = named("CONTINUUM_PROFILE").map(|name| name.to_string_lossy().into_owned());
            self.dir = named("CONTINUUM_DIR").map(PathBuf::from);
        }
        self
    }
}

/// A vault that can be dialled.
///
/// The address of a lab changes when its vault starts again: whoever reconnects opens the target anew.
#[derive(Debug, Clone)]
pub struct Target {
    /// What it is called: the profile's name, or the lab's directory.
    pub label: String,
    /// `host:port`.
    pub address: String,
    /// Ours, and the CA we trust.
    pub credentials: Credentials,
}

/// Where a target's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it is called.
    pub label: String,
    /// The directory with `profile.toml`.
    pub dir: PathBuf,
    /// Whether it is a lab's: its files come and go with the lab.
    pub lab: bool,
}

/// The content of `profile.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileFile {
    /// `host:port`.
    pub address: String,
    /// Where the private key is.
    #[serde(default)]
    pub key: KeyPlace,
}

/// Where a private key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyPlace {
    /// In `key.pem`, readable by its owner only.
    #[default]
    File,
    /// In the keyring of the desktop.
    Keyring,
}

/// The largest file that is read as a profile.
const PROFILE_BYTES_MAX: u64 = 64 << 10;

impl Target {
    /// Finds and reads what is meant. Blocking: reads files, may ask the keyring.
    ///
    /// Errors: class `Configuration` where there is no such profile or it is not usable, `NotConnected`
    /// where the lab in the directory does not run.
    pub fn open(choice: &Choice) -> Result<Self, Fault> {
        let place = place(choice)?;
        let file: ProfileFile = match read(&place.dir.join("profile.toml")) {
            Ok(file) => file,
            Err(fault) if place.lab && fault.class == FaultClass::NotFound => return Err(no_lab(&place)),
            Err(fault) => return Err(Fault { class: FaultClass::Configuration, ..fault }),
        };
        let address = match &choice.connect {
            Some(url) => address(url)?,
            None => address(&file.address)?,
        };
        let credentials = secret::open(&place, file.key)?;
        Ok(Self { label: place.label, address, credentials })
    }
}

/// Which directory is meant: a lab's, a profile's, or the default lab's.
pub fn place(choice: &Choice) -> Result<Place, Fault> {
    match (&choice.dir, &choice.profile) {
        (Some(_), Some(_)) => Err(Fault::new(
            FaultClass::Usage,
            "usage.vault",
            "both a directory and a profile were named, and they are two vaults",
        )
        .remedy("leave out --dir or --profile")),
        (Some(dir), None) => Ok(lab(dir)),
        (None, Some(name)) => store::place(name),
        (None, None) => {
            if let Some(name) = store::current()? {
                return store::place(&name);
            }
            match default_lab() {
                Some(dir) => Ok(lab(&dir)),
                None => Err(no_home()),
            }
        }
    }
}

/// The directory of the lab that is meant where none is named.
pub fn default_lab() -> Option<PathBuf> {
    Some(directories::ProjectDirs::from("", "", "continuum")?.data_dir().join("lab"))
}

/// The directory of configuration.
pub fn config_dir() -> Option<PathBuf> {
    match std::env::var_os("CONTINUUM_CONFIG_DIR").filter(|value| !value.is_empty()) {
        Some(dir) => Some(PathBuf::from(dir)),
        None => Some(directories::ProjectDirs::from("", "", "continuum")?.config_dir().to_owned()),
    }
}

fn lab(dir: &Path) -> Place {
    Place { label: dir.display().to_string(), dir: dir.join("profile"), lab: true }
}

/// Reads an address as people write it: `https://host`, `https://host:port/`, `host:port`. Port 443
/// where none is named.
pub fn address(url: &str) -> Result<String, Fault> {
    let wrong = |why: &str| {
        Fault::new(
            FaultClass::Usage,
            "profile.address",
            format!("`{}` is no address of a vault: {why}", shown(url)),
        )
        .spares("nothing was changed")
        .remedy("write https://HOST:PORT or HOST:PORT")
    };
    let rest = match url.trim().split_once("://") {
        Some(("https", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some((scheme, _)) => return Err(wrong(&format!("{} is not spoken", shown(scheme)))),
        None => url.trim(),
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, _)) if host.contains(':') && !host.starts_with('[') => (rest, None),
        Some((host, port)) if !rest.ends_with(']') => (host, Some(port)),
        Some(_) | None => (rest, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let plain = !bare.is_empty()
        && bare.len() <= 253
        && !bare.starts_with('-')
        && bare.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:%".contains(&byte));
    if !plain {
        return Err(wrong("the host is missing or holds what no host name holds"));
    }
    let port = match port {
        Some(port) => port
            .parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong("the port is not 1 to 65535"))?,
        None => 443,
    };
    if bare.contains(':') { Ok(format!("[{bare}]:{port}")) } else { Ok(format!("{bare}:{port}")) }
}

/// Reads a TOML file of ours: bounded, strict, every problem with its line and column.
pub fn read<T: serde::de::DeserializeOwned + Fields>(path: &Path) -> Result<T, Fault> {
    let shown_path = shown(&path.display().to_string());
    let failed = |class, reason: &str| {
        Fault::new(class, "profile.file", format!("{shown_path}: {reason}"))
            .affects("commands that use it")
            .spares("vaults, machines and replicas")
            .remedy("mend the file, or make the profile again with `continuum login`")
    };
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(failed(FaultClass::NotFound, "there is no such file"));
        }
        Err(error) => return Err(failed(FaultClass::Configuration, &error.to_string())),
    };
    if size > PROFILE_BYTES_MAX {
        return Err(failed(FaultClass::Configuration, "larger than 64 KiB, so it is none of ours"));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|error| failed(FaultClass::Configuration, &error.to_string()))?;
    parse(&text).map_err(|problems| failed(FaultClass::Configuration, &problems.join("; ")))
}

/// A file's fields, each with what is wrong with a value, if anything.
pub trait Fields {
    /// `None`: there is no such field.
    fn problem(field: &str, value: &toml::Value) -> Option<Result<(), &'static str>>;
}

impl Fields for ProfileFile {
    fn problem(field: &str, value: &toml::Value) -> Option<Result<(), &'static str>> {
        match field {
            "address" => {
                Some(value.as_str().map(|_| ()).ok_or("must be a text such as \"vault.example:443\""))
            }
            "key" => {
                let known = matches!(value.as_str(), Some("file" | "keyring"));
                Some(if known { Ok(()) } else { Err("must be \"file\" or \"keyring\"") })
            }
            _ => None,
        }
    }
}

fn parse<T: serde::de::DeserializeOwned + Fields>(text: &str) -> Result<T, Vec<String>> {
    type Table = std::collections::BTreeMap<toml::Spanned<String>, toml::Spanned<toml::Value>>;
    let told = |error: &toml::de::Error| match error.span() {
        Some(span) => {
            let (line, column) = position(text, span.start);
            format!("line {line}, column {column}: {}", shown(error.message()))
        }
        None => shown(error.message()),
    };
    let table: Table = toml::from_str(text).map_err(|error| vec![told(&error)])?;
    let mut problems = Vec::new();
    for (field, value) in &table {
        let name = shown(field.get_ref());
        let (at, problem) = match T::problem(field.get_ref(), value.get_ref()) {
            None => (field.span().start, format!("there is no field `{name}`")),
            Some(Err(problem)) => (value.span().start, format!("`{name}` {problem}")),
            Some(Ok(())) => continue,
        };
        problems.push((position(text, at), problem));
    }
    if problems.is_empty() {
        return toml::from_str(text).map_err(|error| vec![told(&error)]);
    }
    problems.sort();
    Err(problems
        .into_iter()
        .map(|((line, column), problem)| format!("line {line}, column {column}: {problem}"))
        .collect())
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

fn no_lab(place: &Place) -> Fault {
    let dir = shown(&place.label);
    if Some(Path::new(&place.label)) == default_lab().as_deref() {
        return Fault::new(
            FaultClass::NotConnected,
            "profile.none",
            "no vault is configured, and no lab runs on this machine",
        )
        .spares("nothing was changed")
        .remedy("start the lab with `continuum lab`, or use a vault of yours: see `continuum login --help`");
    }
    Fault::new(FaultClass::NotConnected, "lab.absent", format!("no lab runs in {dir}"))
        .spares("nothing was changed")
        .remedy(format!("start it with `continuum lab --dir {dir}`"))
}

fn no_home() -> Fault {
    Fault::new(
        FaultClass::Configuration,
        "profile.home",
        "there is no home directory to look for profiles in",
    )
    .remedy("set HOME, or name the installation with --dir")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, expected) in [
            ("https://vault.example", "vault.example:443"),
            ("https://vault.example:8443/", "vault.example:8443"),
            ("127.0.0.1:4443", "127.0.0.1:4443"),
            ("vault", "vault:443"),
            ("[::1]:5000", "[::1]:5000"),
            ("https://[::1]", "[::1]:443"),
            ("::1", "[::1]:443"),
        ] {
            assert_eq!(address(text).as_deref(), Ok(expected), "{text}");
        }
        for wrong in [
            "",
            "http://vault",
            "https://",
            "vault:0",
            "vault:70000",
            "vault:x",
            "a b:1",
            "-rf:1",
            "v\u{1b}[m:1",
            "https://vault/path",
        ] {
            let fault = address(wrong).unwrap_err();
            assert_eq!(fault.class, FaultClass::Usage, "{wrong}");
            assert!(!fault.message.contains('\u{1b}'));
        }
    }

    #[test]
    fn a_wrong_profile_file_is_told_with_line_and_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("profile.toml");
        for (content, part) in [
            ("address = 5\n", "line 1, column 11: `address` must be a text"),
            ("address = \"v:1\"\nkeys = \"file\"\n", "line 2, column 1: there is no field `keys`"),
            (
                "key = \"pocket\"\naddress = 5\n",
                "line 1, column 7: `key` must be \"file\" or \"keyring\"; line 2, column 11: `address` must",
            ),
            ("address = \"v:1\"\naddress = \"v:2\"\n", "line 2, column 1: duplicate key"),
            ("address = \"v:1\n", "line 1, column 15"),
            (&format!("address = {}1{}", "[".repeat(5000), "]".repeat(5000)), "recursion"),
            ("\"a\\u001b\" = 1\n", "there is no field `a␛`"),
            ("", "missing field `address`"),
        ] {
            std::fs::write(&path, content).unwrap();
            let fault = read::<ProfileFile>(&path).unwrap_err();
            assert!(fault.message.contains(part), "{}", fault.message);
            assert_eq!(fault.class, FaultClass::Configuration);
        }
        std::fs::write(&path, " ".repeat(70 << 10)).unwrap();
        assert!(read::<ProfileFile>(&path).unwrap_err().message.contains("64 KiB"));
    }
}
