//! Mutual TLS 1.3 on every connection; one crypto provider, chosen here.
//!
//! Lives here: credentials on disk and their renewal under live listeners, server and client handshakes
//! with a deadline, and the reason when one fails. Lives elsewhere: what an identity may do.
//!
//! A peer is known by the identity in its certificate, never by its address: the standard verification
//! checks chain, time and usage against the vault's CA and the one shared name, then role and vault are
//! compared, and the deny-list (`peers`) is asked.
//!
//! Sessions are never resumed: a resumed handshake would not look at the certificate's validity again.

use crate::ca::{self, PkiError};
use crate::handshake::HandshakeError;
use crate::identity::{Identity, Role, SHARED_NAME};
use crate::peers::{Pass, Peers, Presented};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    version,
};
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
/// Clones are the same credentials, and share one gate ([`Credentials::peers`]).
///
/// ```text
/// <dir>/ca.pem             the authority's certificate
/// <dir>/certificate.pem    ours: public
/// <dir>/key.pem            its key: 0600
/// <dir>/key.next.pem       while both are being replaced: the key of the certificate that comes
/// ```
///
/// Both are replaced in an order that a kill cannot break: next key, certificate, key. Whoever opens the
/// folder takes the key that belongs to the certificate.
#[derive(Clone)]
pub struct Credentials {
    dir: PathBuf,
    current: Arc<RwLock<Arc<Loaded>>>,
    peers: Peers,
}

struct Loaded {
    presented: Presented,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
}

/// Turns accepted connections into trusted ones. Made by [`Credentials`].
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    peers: Peers,
}

impl Credentials {
    /// Stores what enrolment gave, and opens it.
    pub fn store(dir: &Path, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
        ca::write_file(&dir.join("ca.pem"), ca_pem.as_bytes(), 0o644)?;
        replace(dir, certificate_pem, key_pem)?;
        Self::open(dir)
    }

    /// Opens the files.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        let loaded = Arc::new(load(dir)?);
        Ok(Self { dir: dir.to_owned(), current: Arc::new(RwLock::new(loaded)), peers: Peers::default() })
    }

    /// Whether there is something to open.
    pub fn exist(dir: &Path) -> bool {
        let there = |name: &str| dir.join(name).exists();
        there("ca.pem") && there("certificate.pem") && (there("key.pem") || there("key.next.pem"))
    }

    /// Takes a renewed certificate and key: new handshakes use them at once, on listeners that stand as well.
    pub fn renew(&self, certificate_pem: &str, key_pem: &str) -> Result<(), PkiError> {
        replace(&self.dir, certificate_pem, key_pem)?;
        self.reload()
    }

    /// Reads the files again, where another process renewed them. On an error the old ones stay in use.
    pub fn reload(&self) -> Result<(), PkiError> {
        let loaded = Arc::new(load(&self.dir)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    fn now(&self) -> Arc<Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.now().presented.identity.clone()
    }

    /// What our certificate says.
    pub fn presented(&self) -> Presented {
        self.now().presented.clone()
    }

    /// When our certificate ends, in seconds of Unix time.
    pub fn expires_at(&self) -> i64 {
        self.now().presented.ends.micros() / 1_000_000
    }

    /// Who is let in by the listeners of these credentials.
    pub const fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Accepts connections; every peer must show a certificate of our vault.
    pub fn acceptor(&self) -> Result<Acceptor, PkiError> {
        let verifier = WebPkiClientVerifier::builder(self.now().roots.clone())
            .build()
            .map_err(|error| PkiError::Invalid { what: "ca.pem".into(), reason: error.to_string() })?;
        let config = ServerConfig::builder_with_protocol_versions(&[&version::TLS13])
            .with_client_cert_verifier(Arc::new(Gated { verifier, peers: self.peers.clone() }))
            .with_cert_resolver(Arc::new(self.clone()));
        Ok(self.accepting(config, &[ALPN_GRPC, ALPN_CHANNEL]))
    }

    /// Accepts newcomers, who have no certificate yet. Only enrolment is served behind it.
    pub fn enrolment_acceptor(&self) -> Acceptor {
        let config = ServerConfig::builder_with_protocol_versions(&[&version::TLS13])
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(WithCa(self.clone())));
        self.accepting(config, &[ALPN_GRPC])
    }

    fn accepting(&self, mut config: ServerConfig, protocols: &[&[u8]]) -> Acceptor {
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Acceptor { tls: TlsAcceptor::from(Arc::new(config)), peers: self.peers.clone() }
    }

    fn connector(&self, alpn: &[u8]) -> TlsConnector {
        let mut config = ClientConfig::builder_with_protocol_versions(&[&version::TLS13])
            .with_root_certificates(self.now().roots.clone())
            .with_client_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
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
        let stream = shake(self.connector(alpn), stream).await.map_err(|error| {
            let own = self.presented();
            error.about_us(own.issued, own.ends).fault(address)
        })?;
        let found = presented_by(&stream).map_err(|error| error.fault(address))?.identity;
        let vault = self.identity().vault;
        if found.vault != vault || found.role != role || id.is_some_and(|id| id != found.id) {
            let expected = format!("{role} {}", id.unwrap_or("of this vault"));
            return Err(HandshakeError::WrongPeer { found: found.to_string(), expected }.fault(address));
        }
        Ok((stream, found))
    }
}

/// The protocol name of the replication channel.
pub const ALPN_CHANNEL: &[u8] = b"continuum-channel/1";
/// The protocol name of gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";

/// A connection that was let in.
pub struct Entered {
    /// The connection.
    pub stream: TlsStream<TcpStream>,
    /// Who is at the other end, and its place; `None`: a newcomer at the enrolment listener.
    pub peer: Option<(Identity, Pass)>,
}

/// Finishes the handshake of an accepted connection.
pub async fn accept(acceptor: &Acceptor, stream: TcpStream) -> Result<Entered, HandshakeError> {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.tls.accept(stream)).await {
        Ok(Ok(stream)) => TlsStream::from(stream),
        Ok(Err(error)) => return Err(HandshakeError::of_io(&error)),
        Err(_) => return Err(HandshakeError::Deadline),
    };
    let has_certificate = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
    if !has_certificate {
        return Ok(Entered { stream, peer: None });
    }
    let presented = presented_by(&stream)?;
    let pass = acceptor
        .peers
        .admit(&presented)
        .map_err(|why| HandshakeError::Barred { who: presented.identity.to_string(), why })?;
    Ok(Entered { stream, peer: Some((presented.identity, pass)) })
}

async fn shake(connector: TlsConnector, stream: TcpStream) -> Result<TlsStream<TcpStream>, HandshakeError> {
    let name = ServerName::try_from(SHARED_NAME).map_err(|error| HandshakeError::Other(error.to_string()))?;
    match tokio::time::timeout(HANDSHAKE_DEADLINE, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(TlsStream::from(stream)),
        Ok(Err(error)) => Err(HandshakeError::of_io(&error)),
        Err(_) => Err(HandshakeError::Deadline),
    }
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

fn presented_by(stream: &TlsStream<TcpStream>) -> Result<Presented, HandshakeError> {
    let (_, session) = stream.get_ref();
    let leaf =
        session.peer_certificates().and_then(|chain| chain.first()).ok_or(HandshakeError::NoCertificate)?;
    Ok(Presented::of_certificate(leaf)?)
}

/// Puts a new certificate and its key into the folder, so that a kill between any two steps leaves a pair.
fn replace(dir: &Path, certificate_pem: &str, key_pem: &str) -> Result<(), PkiError> {
    let (key, next) = (dir.join("key.pem"), dir.join("key.next.pem"));
    ca::write_file(&next, key_pem.as_bytes(), 0o600)?;
    ca::write_file(&dir.join("certificate.pem"), certificate_pem.as_bytes(), 0o644)?;
    std::fs::rename(&next, &key)
        .and_then(|()| std::fs::File::open(dir))
        .and_then(|folder| folder.sync_all())
        .map_err(|source| PkiError::File { path: key, source })
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
    let presented =
        Presented::of_certificate(leaf).map_err(|error| invalid("certificate.pem", error.to_string()))?;
    let key = match certified(&dir.join("key.pem"), &chain) {
        // A kill while both were replaced: the key of this certificate still has its other name.
        Err(reason) if dir.join("key.next.pem").exists() => {
            certified(&dir.join("key.next.pem"), &chain).map_err(|_| reason)?
        }
        other => other?,
    };
    Ok(Loaded { presented, key: Arc::new(key), roots: Arc::new(roots) })
}

fn certified(path: &Path, chain: &[CertificateDer<'static>]) -> Result<CertifiedKey, PkiError> {
    let invalid = |reason| PkiError::Invalid { what: path.display().to_string(), reason };
    // Also makes sure that nobody else can read it.
    let pair = ca::read_key(path)?;
    let key = PrivateKeyDer::try_from(pair.serialize_der()).map_err(|error| invalid(error.to_owned()))?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain.to_vec(), key, &provider)
        .map_err(|error| invalid(format!("it does not belong to certificate.pem: {error}")))
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

/// The standard verification, and then the deny-list: within the handshake, so that somebody who is turned
/// away learns why.
#[derive(Debug)]
struct Gated {
    verifier: Arc<dyn ClientCertVerifier>,
    peers: Peers,
}
impl ClientCertVerifier for Gated {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        match Presented::of_certificate(end_entity) {
            Ok(presented) if self.peers.denies(&presented) => {
                tracing::info!("{} dials with a certificate that was revoked", presented.identity);
                Err(rustls::CertificateError::Revoked.into())
            }
            // A certificate that names nobody is refused with its own reason after the handshake.
            _ => Ok(verified),
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(message, certificate, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(message, certificate, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
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
    config.resumption = Resumption::disabled();
    let stream = dial(address).await?;
    let stream =
        shake(TlsConnector::from(Arc::new(config)), stream).await.map_err(|error| error.fault(address))?;
    // Others of this vault answer connections, too: a token is told to the vault itself only.
    let found = presented_by(&stream).map_err(|error| error.fault(address))?.identity;
    if found.role != Role::Vault {
        let expected = "the vault".to_owned();
        return Err(HandshakeError::WrongPeer { found: found.to_string(), expected }.fault(address));
    }
    Ok(stream)
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
