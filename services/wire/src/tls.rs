//! Mutual TLS 1.3 on every connection; one crypto provider, chosen here.
//!
//! Lives here: credentials on disk and their renewal under live listeners, server and client handshakes
//! with a deadline, and the reason when one fails. Lives elsewhere: what an identity may do.
//!
//! A peer is known by the identity in its certificate, never by its address: the standard verification
//! checks chain, time and usage against the vault's CA and the one shared name, then role and vault are
//! compared.

use crate::ca::{self, PkiError};
use crate::identity::{Identity, Role, SHARED_NAME};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, version};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// A handshake that takes longer is given up.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// Makes ring the provider of this process. First thing in every `main`; calling it again is harmless.
pub fn install_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Our own certificate and key, and the CA we trust: three files in a folder, read again after a renewal.
///
/// ```text
/// <dir>/ca.pem   <dir>/certificate.pem   <dir>/key.pem (0600)
/// ```
#[derive(Clone)]
pub struct Credentials {
    dir: PathBuf,
    current: Arc<RwLock<Arc<Loaded>>>,
}

struct Loaded {
    identity: Identity,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    expires: i64,
}

impl Credentials {
    /// Stores what enrolment gave, and opens it.
    pub fn store(dir: &Path, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
        ca::write_file(&dir.join("ca.pem"), ca_pem.as_bytes(), 0o644)?;
        ca::write_file(&dir.join("key.pem"), key_pem.as_bytes(), 0o600)?;
        ca::write_file(&dir.join("certificate.pem"), certificate_pem.as_bytes(), 0o644)?;
        Self::open(dir)
    }

    /// Opens the three files.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let loaded = Arc::new(load(dir)?);
        Ok(Self { dir: dir.to_owned(), current: Arc::new(RwLock::new(loaded)) })
    }

    /// Whether there is something to open.
    pub fn exist(dir: &Path) -> bool {
        ["ca.pem", "certificate.pem", "key.pem"].iter().all(|name| dir.join(name).exists())
    }

    /// Takes a renewed certificate and key: new handshakes use them at once.
    pub fn renew(&self, certificate_pem: &str, key_pem: &str) -> Result<(), PkiError> {
        ca::write_file(&self.dir.join("key.pem"), key_pem.as_bytes(), 0o600)?;
        ca::write_file(&self.dir.join("certificate.pem"), certificate_pem.as_bytes(), 0o644)?;
        let loaded = Arc::new(load(&self.dir)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    fn now(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.now().identity.clone()
    }

    /// When our certificate ends, in seconds of Unix time.
    pub fn expires_at(&self) -> i64 {
        self.now().expires
    }

    /// Accepts connections; every peer must show a certificate of our vault.
    pub fn acceptor(&self) -> Result<TlsAcceptor, PkiError> {
        let verifier = WebPkiClientVerifier::builder(self.now().roots.clone())
            .build()
            .map_err(|error| PkiError::Invalid { what: "ca.pem".into(), reason: error.to_string() })?;
        let mut config = ServerConfig::builder_with_protocol_versions(&[&version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), ALPN_CHANNEL.to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Accepts newcomers, who have no certificate yet. Only enrolment is served behind it.
    pub fn enrolment_acceptor(&self) -> TlsAcceptor {
        let mut config = ServerConfig::builder_with_protocol_versions(&[&version::TLS13])
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(WithCa(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn connector(&self, alpn: &[u8]) -> TlsConnector {
        let mut config = ClientConfig::builder_with_protocol_versions(&[&version::TLS13])
            .with_root_certificates(self.now().roots.clone())
            .with_client_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// Connects and makes sure that the peer is of our vault, has this role, and this id where one is named.
    pub async fn connect(
        &self,
        address: &str,
        alpn: &[u8],
        role: Role,
        id: Option<&str>,
    ) -> Result<(TlsStream<TcpStream>, Identity), Fault> {
        let stream = dial(address).await?;
        let name = ServerName::try_from(SHARED_NAME)
            .map_err(|error| handshake_fault(address, &error.to_string()))?;
        let handshake = self.connector(alpn).connect(name, stream);
        let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
            Ok(Ok(stream)) => TlsStream::from(stream),
            Ok(Err(error)) => return Err(handshake_fault(address, &error.to_string())),
            Err(_) => return Err(handshake_fault(address, "not finished in 10 s")),
        };
        let peer = peer_of(&stream).map_err(|reason| handshake_fault(address, &reason))?;
        let own = self.identity();
        if peer.vault != own.vault || peer.role != role || id.is_some_and(|id| id != peer.id) {
            return Err(handshake_fault(
                address,
                &format!("{peer} answered where {role} {} was expected", id.unwrap_or_default()),
            ));
        }
        Ok((stream, peer))
    }
}

/// The protocol name of the replication channel.
pub const ALPN_CHANNEL: &[u8] = b"continuum-channel/1";
/// The protocol name of gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";

/// Finishes the handshake of an accepted connection.
pub async fn accept(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> Result<(TlsStream<TcpStream>, Option<Identity>), String> {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => TlsStream::from(stream),
        Ok(Err(error)) => return Err(with_clock(&shown(&error.to_string()))),
        Err(_) => return Err("handshake not finished in 10 s".into()),
    };
    let has_certificate = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
    if !has_certificate {
        return Ok((stream, None));
    }
    let peer = peer_of(&stream)?;
    Ok((stream, Some(peer)))
}

/// A TCP connection with a deadline and no delay.
async fn dial(address: &str) -> Result<TcpStream, Fault> {
    let failed = |reason: String| {
        Fault::new(
            FaultClass::NotConnected,
            "connect.failed",
            format!("could not connect to {}: {reason}", shown(address)),
        )
        .affects("this connection")
        .spares("everything that is already running")
        .remedy("see whether the other side runs and a firewall lets this port through; it is tried again")
    };
    match tokio::time::timeout(HANDSHAKE_DEADLINE, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("no answer in 10 s".into())),
    }
}

fn peer_of(stream: &TlsStream<TcpStream>) -> Result<Identity, String> {
    let (_, session) = stream.get_ref();
    let leaf = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .ok_or("the peer showed no certificate")?;
    Identity::of_certificate(leaf).map_err(|error| error.to_string())
}

fn handshake_fault(address: &str, reason: &str) -> Fault {
    let reason = with_clock(&shown(reason));
    Fault::new(
        FaultClass::Refused,
        "tls.refused",
        format!("no trusted connection to {}: {reason}", shown(address)),
    )
    .affects("this connection")
    .spares("everything that is already running")
    .remedy("see `continuum doctor`; a certificate that ended or was revoked needs a new enrolment")
}

/// Trouble with validity needs the clock beside it: often it is the clock that is wrong.
fn with_clock(reason: &str) -> String {
    if reason.contains("xpired") || reason.contains("NotValidYet") || reason.contains("not valid yet") {
        format!("{reason} (the clock here says {})", SystemClock::default().wall())
    } else {
        reason.to_owned()
    }
}

fn load(dir: &Path) -> Result<Loaded, PkiError> {
    let invalid =
        |what: &str, reason: String| PkiError::Invalid { what: dir.join(what).display().to_string(), reason };
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>, PkiError> {
        CertificateDer::pem_file_iter(dir.join(name))
            .and_then(Iterator::collect)
            .map_err(|error| invalid(name, error.to_string()))
    };
    let mut roots = RootCertStore::empty();
    for ca in certificates("ca.pem")? {
        roots.add(ca).map_err(|error| invalid("ca.pem", error.to_string()))?;
    }
    let chain = certificates("certificate.pem")?;
    let leaf = chain.first().ok_or_else(|| invalid("certificate.pem", "it is empty".into()))?;
    let identity =
        Identity::of_certificate(leaf).map_err(|error| invalid("certificate.pem", error.to_string()))?;
    let expires = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| invalid("certificate.pem", error.to_string()))?
        .1
        .validity()
        .not_after
        .timestamp();
    // Also makes sure that nobody else can read it.
    let pair = ca::read_key(&dir.join("key.pem"))?;
    let key = PrivateKeyDer::try_from(pair.serialize_der())
        .map_err(|error| invalid("key.pem", error.to_owned()))?;
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(chain, key, &provider)
        .map_err(|error| invalid("key.pem", format!("it does not belong to certificate.pem: {error}")))?;
    Ok(Loaded { identity, key: Arc::new(key), roots: Arc::new(roots), expires })
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?})", self.identity())
    }
}
impl ResolvesServerCert for Credentials {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now().key.clone())
    }
}
impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.now().key.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// Shows the CA's certificate, too, so that a newcomer can compare it with the fingerprint in its token.
#[derive(Debug)]
struct WithCa(Credentials);
impl ResolvesServerCert for WithCa {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let key = self.0.now().key.clone();
        let mut chain = key.cert.clone();
        chain.extend(CertificateDer::pem_file_iter(self.0.dir.join("ca.pem")).ok()?.flatten());
        Some(Arc::new(CertifiedKey { cert: chain, ..(*key).clone() }))
    }
}

/// Connects as a newcomer: the vault is known by its CA's fingerprint only.
pub async fn connect_pinned(address: &str, ca_fingerprint: [u8; 32]) -> Result<TlsStream<TcpStream>, Fault> {
    let mut config = ClientConfig::builder_with_protocol_versions(&[&version::TLS13])
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa(ca_fingerprint)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_GRPC.to_vec()];
    let stream = dial(address).await?;
    let name =
        ServerName::try_from(SHARED_NAME).map_err(|error| handshake_fault(address, &error.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match tokio::time::timeout(HANDSHAKE_DEADLINE, handshake).await {
        Ok(Ok(stream)) => Ok(TlsStream::from(stream)),
        Ok(Err(error)) => Err(handshake_fault(address, &error.to_string())),
        Err(_) => Err(handshake_fault(address, "not finished in 10 s")),
    }
}

/// Trusts exactly the CA whose fingerprint is known, and verifies the rest as usual.
#[derive(Debug)]
struct PinnedCa([u8; 32]);
impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| ca::fingerprint(certificate) == self.0)
            .ok_or_else(|| rustls::Error::General("this is not the vault that the token is of".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = rustls::client::WebPkiServerVerifier::builder(Arc::new(roots))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
