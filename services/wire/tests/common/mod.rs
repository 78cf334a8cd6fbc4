//! An estate for tests: a real authority, credentials of every kind, and certificates that should never be.
#![allow(dead_code, reason = "every test crate uses its own part")]

use continuum_model::feed::{Change, Envelope, FrameBuilder, Identity as Place, Record};
use continuum_model::id::{MachineId, VaultId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_model::world::{Clock, SystemClock};
use continuum_wire::ca::Authority;
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::{self, Credentials};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose as Use, IsCa, Issuer, KeyPair, SanType};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub struct Estate {
    pub dir: TempDir,
    pub vault: VaultId,
    pub authority: Authority,
}

pub fn now() -> Timestamp {
    SystemClock::default().wall()
}

impl Estate {
    pub fn new() -> Self {
        Self::of(VaultId::from_bytes([7; 16]))
    }

    pub fn of(vault: VaultId) -> Self {
        tls::install_provider();
        let dir = tempfile::Builder::new().prefix("ct-wire-").tempdir().unwrap();
        let authority = Authority::open_or_create(&dir.path().join("ca"), vault, now()).unwrap();
        Self { dir, vault, authority }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn identity(&self, role: Role, id: &str) -> Identity {
        Identity { vault: self.vault, role, id: id.to_owned() }
    }

    pub fn credentials(&self, role: Role, id: &str) -> Credentials {
        let (certificate, key) = self.authority.make(&self.identity(role, id), now()).unwrap();
        self.stored(&format!("{role}-{id}"), &certificate, &key)
    }

    pub fn stored(&self, name: &str, certificate: &str, key: &str) -> Credentials {
        Credentials::store(&self.path().join(name), self.authority.certificate_pem(), certificate, key)
            .unwrap()
    }

    pub fn agent(&self, machine: MachineId) -> Credentials {
        self.credentials(Role::Agent, &machine.to_string())
    }

    /// Signs whatever a test asks for with the key of the real authority.
    pub fn forge(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Credentials {
        let pem = std::fs::read_to_string(self.path().join("ca/ca.key.pem")).unwrap();
        let issuer =
            Issuer::from_ca_cert_pem(self.authority.certificate_pem(), KeyPair::from_pem(&pem).unwrap())
                .unwrap();
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = self.identity(Role::Agent, &machine(1).to_string()).uri();
        params.subject_alt_names = vec![
            SanType::URI(uri.try_into().unwrap()),
            SanType::DnsName("continuum.internal".try_into().unwrap()),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![Use::ClientAuth];
        params.not_before = days(-1);
        params.not_after = days(1);
        change(&mut params);
        let certificate = params.signed_by(&pair, &issuer).unwrap().pem();
        self.stored(name, &certificate, &pair.serialize_pem())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

pub fn days(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(now().micros() / 1_000_000 + days * 86_400).unwrap()
}

pub fn machine(byte: u8) -> MachineId {
    MachineId::from_bytes([byte; 16])
}

/// Frame `number` of a feed, one write of `size` bytes, chained to the digest of the frame before.
pub fn frame(machine: MachineId, epoch: u64, number: u64, previous: u128, size: usize) -> Envelope {
    let mut builder = FrameBuilder::default();
    let data: Vec<u8> = (0..size).map(|at| (at as u64 * 31 + number) as u8).collect();
    builder.push(&Record {
        sequence: Sequence(number),
        time: Timestamp::from_micros(number as i64),
        change: Change::Write { disk: DiskIndex(0), offset: 0, data: data.into(), injected: false },
    });
    let place = Place { machine, epoch: Epoch(epoch), number: FrameNumber(number), session: 1, previous };
    Envelope::plain(&builder.finish(place).unwrap())
}
