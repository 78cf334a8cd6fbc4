//! `login`, `profiles`, `logout`, `token`: who may speak to which vault from this machine.

use super::args::{Login, Logout, Profiles, ProfilesAction, TokenArgs};
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, human};
use super::vault::Vault;
use super::{Setting, contract};
use crate::profile::{self, KeyPlace, Target, secret, store};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The longest file that is read as a token.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Lists profiles, or chooses one.
pub fn profiles(setting: &Setting, profiles: &Profiles) -> Result<(), Fault> {
    if let Some(ProfilesAction::Use { name }) = &profiles.action {
        store::choose(Some(name))?;
        setting.say(&format!("{name} is in use from now on"));
        return Ok(());
    }
    let list = store::list()?;
    let told = |profile: &store::Listed| {
        let file = profile.file.as_ref();
        Doc::Map(vec![
            ("name", Doc::text(&profile.name)),
            ("current", profile.current.into()),
            ("address", file.ok().map(|file| file.address.as_str()).into()),
            ("key", file.ok().map(|file| key_name(file.key)).into()),
            ("error", file.err().map(contract::fault).into()),
        ])
    };
    let blank =
        Doc::Map(["name", "current", "address", "key", "error"].map(|name| (name, Doc::Null)).to_vec());
    let docs = list.iter().map(told).collect();
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| {
            let empty = "No profiles yet: make one with `continuum login`. Without one the lab is meant.";
            let mut table = Table::new(&["IN USE", "NAME", "ADDRESS", "KEY"], empty).whole(wide);
            for profile in &list {
                let (address, key) = match &profile.file {
                    Ok(file) => (Cell::new(&file.address), Cell::new(key_name(file.key))),
                    Err(fault) => (Cell::new(&fault.message), Cell::new("")),
                };
                table.row([
                    if profile.current { "*" } else { "" }.into(),
                    profile.name.as_str().into(),
                    address,
                    key,
                ]);
            }
            table
        })
    })
}

const fn key_name(key: KeyPlace) -> &'static str {
    match key {
        KeyPlace::File => "file",
        KeyPlace::Keyring => "keyring",
    }
}

/// Removes a profile.
pub fn logout(setting: &Setting, logout: &Logout) -> Result<(), Fault> {
    let name = match &logout.name {
        Some(name) => name.clone(),
        None => store::current()?.ok_or_else(|| {
            Fault::new(FaultClass::Usage, "profile.none", "no profile is in use")
                .spares("nothing was changed")
                .remedy("name one: see `continuum profiles`")
        })?,
    };
    store::remove(&name)?;
    setting.say(&format!(
        "{name} and its key are gone from this machine; where the key may have been seen, have its certificate revoked"
    ));
    Ok(())
}

/// Makes a profile, and proves that it works.
pub async fn login(setting: &Setting, login: &Login) -> Result<(), Fault> {
    let given = login.url.as_deref().map(profile::address).transpose()?;
    if let Some(name) = &login.name {
        store::check(name)?;
    }
    let staging = Staging(store::staging()?);
    let address = match &login.credentials {
        Some(dir) => {
            copy_credentials(dir, &staging.0)?;
            given.unwrap_or_default()
        }
        None => {
            let token = token_text(login)?;
            let who = std::env::var("USER").unwrap_or_else(|_| "operator".into());
            let (_, address) = continuum_wire::enroll::enroll(&token, "operator", &who, &staging.0).await?;
            given.unwrap_or(address)
        }
    };
    let name = match &login.name {
        Some(name) => name.clone(),
        None => {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            host.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect()
        }
    };
    // What was just made must open a connection before anything older gives way to it.
    let credentials = continuum_wire::tls::Credentials::open(&staging.0).map_err(|error| {
        Fault::new(FaultClass::Configuration, "profile.credentials", shown(&error.to_string()))
            .spares("profiles that were there before")
            .remedy("have the credentials made again")
    })?;
    let mut vault =
        Vault::dial(Target { label: name.clone(), address: address.clone(), credentials }).await?;
    let who = vault.who_am_i().await?;
    let (folder, keyring) = (staging.0.clone(), !login.no_keyring);
    let (profile, place) = (name.clone(), address.clone());
    let key = tokio::task::spawn_blocking(move || store::adopt(&folder, &profile, &place, keyring))
        .await
        .map_err(|error| {
        Fault::new(FaultClass::Failed, "profile.write", format!("the profile could not be written: {error}"))
    })??;
    let doc = Doc::Map(vec![
        ("profile", Doc::text(&name)),
        ("address", Doc::text(&address)),
        ("vault", Doc::text(&who.vault_name)),
        ("operator", Doc::text(&who.name)),
        ("role", Doc::text(&who.role)),
        ("key", key_name(key).into()),
    ]);
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, _| {
            writeln!(
                out,
                "Logged in to {} at {} as {} ({}).",
                shown(&who.vault_name),
                shown(&address),
                shown(&who.name),
                shown(&who.role)
            )?;
            match key {
                KeyPlace::Keyring => writeln!(out, "The key is in this desktop's keyring."),
                KeyPlace::File => {
                    let why = if login.no_keyring {
                        "as asked".into()
                    } else {
                        secret::keyring_missing().unwrap_or_else(|| "the keyring refused it".into())
                    };
                    writeln!(
                        out,
                        "The key is in a file that only you can read, not encrypted: no keyring ({why})."
                    )
                }
            }
        })
    })
}

fn token_text(login: &Login) -> Result<String, Fault> {
    if let Some(token) = &login.token {
        return Ok(token.clone());
    }
    let path = login.token_file.clone().unwrap_or_else(|| PathBuf::from("-"));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(&path).and_then(|file| file.take(TOKEN_BYTES_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| {
        Fault::new(
            FaultClass::Usage,
            "token.unread",
            format!("the token could not be read from {}: {error}", shown(&path.display().to_string())),
        )
        .spares("the token, which was not used")
    })?;
    Ok(text.trim().to_owned())
}

fn copy_credentials(from: &Path, to: &Path) -> Result<(), Fault> {
    for (name, mode) in [("ca.pem", 0o644), ("certificate.pem", 0o644), ("key.pem", 0o600)] {
        let failed = |reason: String| {
            Fault::new(FaultClass::Configuration, "profile.credentials", reason)
                .spares("profiles that were there before")
                .remedy("name a directory with ca.pem, certificate.pem and key.pem (0600)")
        };
        // Opening makes sure that the key was not readable by others on its way here.
        if name == "key.pem" {
            continuum_wire::ca::read_key(&from.join(name))
                .map_err(|error| failed(shown(&error.to_string())))?;
        }
        let text = continuum_wire::ca::read_text(&from.join(name))
            .map_err(|error| failed(shown(&error.to_string())))?;
        continuum_wire::ca::write_file(&to.join(name), text.as_bytes(), mode)
            .map_err(|error| failed(shown(&error.to_string())))?;
    }
    Ok(())
}

/// A directory that is gone when it was not adopted.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Makes an enrolment token.
pub async fn token(setting: &Setting, wanted: &TokenArgs) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let reply = vault
        .create_token(pb::CreateTokenRequest {
            role: wanted.role.name().to_owned(),
            site: wanted.site.clone(),
            machine: if wanted.name.is_empty() { wanted.machine.clone() } else { wanted.name.clone() },
            lifetime_seconds: wanted.lifetime,
            operator_role: wanted.operator_role.clone(),
        })
        .await?;
    let doc = Doc::Map(vec![
        ("token", Doc::text(&reply.token)),
        ("role", wanted.role.name().into()),
        ("expires", Doc::time(reply.expires_us)),
    ]);
    setting.say(&format!(
        "This token enrols one {} until {}. It is not shown again.",
        wanted.role.name(),
        human::moment(Some(reply.expires_us))
    ));
    setting
        .write(|out| output::one(out, setting.style, doc, |out, _| writeln!(out, "{}", shown(&reply.token))))
}
