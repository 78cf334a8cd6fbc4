//! The vault's certificate authority: it turns an identity and a public key into a certificate.
//!
//! ```text
//! <dir>/ca.pem       the CA's certificate: public
//! <dir>/ca.key.pem   its private key: 0600, never leaves the vault, never printed
//! ```
//!
//! Of a signing request only the public key is used, after its self-signature was verified: names come
//! from the enrolment token or the renewing identity, never from the request.

use crate::identity::{Identity, Role, SHARED_NAME};
use continuum_model::id::VaultId;
use continuum_model::time::Timestamp;
use continuum_model::world::{Entropy, SystemEntropy};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

/// A clock that runs behind ours still accepts what we issue.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The authority of one vault.
pub struct Authority {
    vault: VaultId,
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    fingerprint: [u8; 32],
}

/// How long a certificate of each role lives. Services renew at half of it by themselves.
pub const fn lifetime(role: Role) -> Duration {
    match role {
        Role::Vault | Role::ProcessServer | Role::MasterTarget | Role::Provider => DAY,
        Role::Agent => Duration::from_secs(7 * 24 * 3600),
        Role::Operator => Duration::from_secs(30 * 24 * 3600),
    }
}

/// Why a certificate or key could not be made, read or stored.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key that others can read is no secret.
    #[error(
        "{path} can be read by others (mode {mode:o}): make it 0600 with `chmod 600`, and renew it if anyone may have read it"
    )]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not a key or certificate, or they do not belong together.
    #[error("{what} is not usable: {reason}")]
    Invalid {
        /// Which.
        what: String,
        /// Why.
        reason: String,
    },
}

impl Authority {
    /// Opens the authority in `dir`, or makes one for `vault`.
    pub fn open_or_create(dir: &Path, vault: VaultId, now: Timestamp) -> Result<Self, PkiError> {
        let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key.pem"));
        let there = key.try_exists().map_err(|source| PkiError::File { path: key.clone(), source })?;
        if !there {
            std::fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
            let pair = KeyPair::generate().map_err(|error| invalid("a new CA key", &error))?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, common_name(vault));
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            (params.not_before, params.not_after) = validity(now, DAY * 3650);
            params.serial_number = Some(serial());
            let own = params.self_signed(&pair).map_err(|error| invalid("a new CA certificate", &error))?;
            // The certificate first: a key without its certificate would be mistaken for a whole authority.
            write_file(&certificate, own.pem().as_bytes(), 0o644)?;
            write_file(&key, Zeroizing::new(pair.serialize_pem()).as_bytes(), 0o600)?;
        }
        let certificate_pem = read_text(&certificate)?;
        let pair = read_key(&key)?;
        let fingerprint = check_own(&certificate, &certificate_pem, &pair, vault)?;
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, pair).map_err(|error| invalid("ca.pem", &error))?;
        Ok(Self { vault, issuer, certificate_pem, fingerprint })
    }

    /// The CA's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The fingerprint of the CA's certificate, as a newcomer's token carries it.
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// Whose authority this is.
    pub const fn vault(&self) -> VaultId {
        self.vault
    }

    /// Issues a certificate for the public key of a signing request, for the usual lifetime of the role.
    /// Returns PEM.
    ///
    /// Errors: [`PkiError::Invalid`] where the request is not signed by its own key, is longer than 16 KiB, or
    /// its key is not of a kind that is accepted.
    pub fn issue(&self, csr_der: &[u8], identity: &Identity, now: Timestamp) -> Result<String, PkiError> {
        self.issue_for(csr_der, identity, now, lifetime(identity.role))
    }

    /// As [`Authority::issue`], for another lifetime (operators: as the policy of the vault says).
    pub fn issue_for(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, PkiError> {
        if csr_der.len() > 16 << 10 {
            return Err(PkiError::Invalid {
                what: "signing request".into(),
                reason: "longer than 16 KiB".into(),
            });
        }
        let kind = || PkiError::Invalid {
            what: "signing request".into(),
            reason: "its key is of a kind that is not accepted: use ECDSA on P-256 or P-384, or Ed25519"
                .into(),
        };
        // Before the signature is looked at, so that an RSA key is told what is wrong with it.
        if let Ok((_, parsed)) = X509CertificationRequest::from_der(csr_der) {
            let algorithm = &parsed.certification_request_info.subject_pki.algorithm.algorithm;
            if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY && *algorithm != OID_SIG_ED25519 {
                return Err(kind());
            }
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|error| invalid("signing request", &error))?;
        let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !accepted.contains(&request.public_key.algorithm()) {
            return Err(kind());
        }
        self.certify(&request.public_key, identity, now, life)
    }

    /// Makes key and certificate for an identity of this vault itself: the vault's own, or an operator's.
    pub fn make(&self, identity: &Identity, now: Timestamp) -> Result<(String, Zeroizing<String>), PkiError> {
        self.make_for(identity, now, lifetime(identity.role))
    }

    /// As [`Authority::make`], for another lifetime.
    pub fn make_for(
        &self,
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<(String, Zeroizing<String>), PkiError> {
        let pair = KeyPair::generate().map_err(|error| invalid("a new key", &error))?;
        let certificate = self.certify(&pair, identity, now, life)?;
        Ok((certificate, Zeroizing::new(pair.serialize_pem())))
    }

    fn certify(
        &self,
        key: &impl rcgen::PublicKeyData,
        identity: &Identity,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, PkiError> {
        if identity.vault != self.vault || Identity::parse(&identity.uri()).as_ref() != Some(identity) {
            return Err(PkiError::Invalid {
                what: "identity".into(),
                reason: format!(
                    "{identity} is not a name of this vault, or holds characters that a name may not"
                ),
            });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{} {}", identity.role, identity.id));
        let name = |error: rcgen::Error| invalid("identity", &error);
        let uri = identity.uri().try_into().map_err(name)?;
        let shared = SHARED_NAME.try_into().map_err(name)?;
        params.subject_alt_names = vec![SanType::URI(uri), SanType::DnsName(shared)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity.role {
            // Process servers listen to agents and dial targets; an agent that leads a consistency group listens to its
            // members. Whoever dials compares the role: an agent that answers is taken for an agent, and for nothing
            // else. Operators and providers only dial.
            Role::ProcessServer | Role::MasterTarget | Role::Vault | Role::Agent => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
            Role::Operator | Role::Provider => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        (params.not_before, params.not_after) = validity(now, life);
        params.serial_number = Some(serial());
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(key, &self.issuer).map_err(|error| invalid("certificate", &error))?;
        Ok(certificate.pem())
    }
}

/// The SHA-256 of a CA certificate, by which a newcomer knows it.
pub fn fingerprint(certificate_der: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate_der).into()
}

/// Makes a key pair and a signing request for it. The names in the request mean nothing.
pub fn request() -> Result<(Vec<u8>, Zeroizing<String>), PkiError> {
    let pair = KeyPair::generate().map_err(|error| invalid("a new key", &error))?;
    let csr = CertificateParams::default()
        .serialize_request(&pair)
        .map_err(|error| invalid("signing request", &error))?;
    Ok((csr.der().to_vec(), Zeroizing::new(pair.serialize_pem())))
}

/// Writes a file whole, with this mode from the start, durable before it appears under its name.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let failed = |source| PkiError::File { path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

/// Reads a private key, after making sure that nobody else can.
pub fn read_key(path: &Path) -> Result<KeyPair, PkiError> {
    let metadata =
        std::fs::metadata(path).map_err(|source| PkiError::File { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(PkiError::Exposed { path: path.to_owned(), mode });
    }
    let text = Zeroizing::new(read_text(path)?);
    KeyPair::from_pem(&text).map_err(|error| invalid(&path.display().to_string(), &error))
}

fn common_name(vault: VaultId) -> String {
    format!("Continuum vault {vault}")
}

/// A certificate, its key, and the vault that wants to use them must belong together. Returns the fingerprint.
fn check_own(path: &Path, pem: &str, pair: &KeyPair, vault: VaultId) -> Result<[u8; 32], PkiError> {
    let wrong = |reason: String| PkiError::Invalid { what: path.display().to_string(), reason };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| wrong(error.to_string()))?;
    let (_, own) = X509Certificate::from_der(&der).map_err(|error| wrong(error.to_string()))?;
    if own.public_key().raw != pair.subject_public_key_info() {
        return Err(wrong("ca.key.pem does not belong to it: put both back from the same backup".into()));
    }
    let named = own.subject().iter_common_name().any(|name| name.as_str() == Ok(common_name(vault).as_str()));
    if !named {
        return Err(wrong(format!("it is the authority of another vault than {vault}")));
    }
    Ok(fingerprint(&der))
}

fn invalid(what: &str, error: &rcgen::Error) -> PkiError {
    PkiError::Invalid { what: what.to_owned(), reason: error.to_string() }
}

fn serial() -> SerialNumber {
    let mut bytes = [0; 16];
    SystemEntropy.fill(&mut bytes);
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn validity(now: Timestamp, life: Duration) -> (time::OffsetDateTime, time::OffsetDateTime) {
    let at = |moment: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(moment.micros() / 1_000_000)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    (at(now.minus(CLOCK_TOLERANCE)), at(now.plus(life)))
}
