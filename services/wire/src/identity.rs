//! Who is at the other end: role and id, as the vault's CA wrote them into a certificate.
//!
//! Text form, the one URI in a certificate's subject alternative names:
//! `continuum://<vault id>/<role>/<id>`. An agent's id is its machine's id, so that a machine's certificate
//! opens that machine's data only. An operator's id is `<operator role>:<name>`.

use continuum_model::id::VaultId;
use continuum_model::untrusted::Untrusted;
use std::fmt;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The name that every certificate of a vault also carries as a DNS name, so that the standard
/// verification of names has something to verify. Who is who is told by [`Identity`].
pub const SHARED_NAME: &str = "continuum.internal";

/// What a certificate's holder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The control plane.
    Vault,
    /// Receives from agents, forwards to targets.
    ProcessServer,
    /// Keeps replicas.
    MasterTarget,
    /// Sees the writes of one machine.
    Agent,
    /// A person or a script.
    Operator,
    /// Speaks to a fabric for the vault.
    Provider,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Vault, Self::ProcessServer, Self::MasterTarget, Self::Agent, Self::Operator, Self::Provider];
    /// Its name in certificates, tokens and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vault => "vault",
            Self::ProcessServer => "process-server",
            Self::MasterTarget => "master-target",
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Provider => "provider",
        }
    }
    /// The role of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A verified peer, or ourselves.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Whose estate.
    pub vault: VaultId,
    /// What it is.
    pub role: Role,
    /// Server id, machine id, or `<operator role>:<name>`.
    pub id: String,
}

impl Identity {
    /// The URI that stands in the certificate.
    pub fn uri(&self) -> String {
        format!("continuum://{}/{}/{}", self.vault, self.role, self.id)
    }

    /// Reads the URI form.
    pub fn parse(uri: &str) -> Option<Self> {
        let mut parts = uri.strip_prefix("continuum://")?.splitn(3, '/');
        let vault = parts.next()?.parse().ok()?;
        let role = Role::named(parts.next()?)?;
        let id = parts.next()?;
        let plain = !id.is_empty()
            && id.len() <= 128
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte));
        plain.then(|| Self { vault, role, id: id.to_owned() })
    }

    /// Reads the identity of a certificate that was already verified against the vault's CA.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| IdentityError::Unreadable)?
            .ok_or(IdentityError::Missing)?;
        let mut uris = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::parse(uri).ok_or(IdentityError::Missing),
            _ => Err(IdentityError::Missing),
        }
    }

    /// An operator's role and name.
    pub fn operator(&self) -> Option<(&str, &str)> {
        (self.role == Role::Operator).then(|| self.id.split_once(':')).flatten()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, Untrusted::new(self.id.as_str()))
    }
}
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// A certificate of something else.
    #[error("the certificate names no Continuum identity; it was not issued by a vault")]
    Missing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_uri_and_odd_ones_are_refused() {
        let identity = Identity {
            vault: VaultId::from_bytes([1; 16]),
            role: Role::Operator,
            id: "owner:ada@lab".into(),
        };
        assert_eq!(Identity::parse(&identity.uri()), Some(identity.clone()));
        assert_eq!(identity.operator(), Some(("owner", "ada@lab")));
        let vault = VaultId::from_bytes([1; 16]);
        for wrong in [
            "https://example.invalid/".to_owned(),
            format!("continuum://{vault}/emperor/1"),
            format!("continuum://{vault}/agent/"),
            format!("continuum://{vault}/agent/a/b"),
            format!("continuum://{vault}/agent/a\u{1b}b"),
            "continuum://x/agent/1".to_owned(),
        ] {
            assert_eq!(Identity::parse(&wrong), None, "{wrong}");
        }
    }
}
