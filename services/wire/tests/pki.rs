//! The authority and the files of credentials: what is issued, what is refused, what a kill leaves.

mod common;

use common::{Estate, days, machine, now};
use continuum_model::id::VaultId;
use continuum_wire::ca::{self, Authority, PkiError};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::Credentials;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use x509_parser::prelude::*;

fn openssl(dir: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_authority_survives_its_process_and_tells_when_its_files_do_not_belong_together() {
    let estate = Estate::new();
    let again = Authority::open_or_create(&estate.file("ca"), estate.vault, now()).unwrap();
    assert_eq!(again.certificate_pem(), estate.authority.certificate_pem());
    let key = estate.file("ca/ca.key.pem");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = Authority::open_or_create(&estate.file("ca"), estate.vault, now()).err().unwrap();
    assert!(
        matches!(exposed, PkiError::Exposed { .. }) && exposed.to_string().contains("chmod 600"),
        "{exposed}"
    );
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    let other = VaultId::from_bytes([8; 16]);
    let error = Authority::open_or_create(&estate.file("ca"), other, now()).err().unwrap().to_string();
    assert!(error.contains("another vault"), "{error}");

    let stranger = Estate::new();
    std::fs::copy(stranger.file("ca/ca.key.pem"), &key).unwrap();
    let error = Authority::open_or_create(&estate.file("ca"), estate.vault, now()).err().unwrap().to_string();
    assert!(error.contains("does not belong"), "{error}");
}

#[test]
fn names_come_from_the_identity_and_never_from_the_request() {
    let estate = Estate::new();
    // A request that asks for everything: to be an authority, the vault, any name.
    openssl(
        estate.path(),
        &[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "k.pem",
            "-outform",
            "DER",
            "-out",
            "r.der",
            "-subj",
            "/CN=vault/O=*",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "subjectAltName=DNS:*.example.invalid,URI:continuum://07070707-0707-0707-0707-070707070707/vault/vault",
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth",
        ],
    );
    let request = std::fs::read(estate.file("r.der")).unwrap();
    let identity = estate.identity(Role::Agent, &machine(3).to_string());
    let pem = estate.authority.issue(&request, &identity, now()).unwrap();
    let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    assert_eq!(Identity::of_certificate(&pem.contents).unwrap(), identity);
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap();
    // An agent asks, and answers the members of its consistency group: nothing else, whatever was asked for.
    let usage = usage.value;
    assert!(
        usage.client_auth && usage.server_auth && !usage.any && !usage.code_signing && usage.other.is_empty()
    );
    let text = format!("{certificate:?}");
    assert!(!text.contains("example.invalid") && certificate.subject().iter_organization().next().is_none());
    // Seven days for an agent, begun a little early for clocks that run behind.
    let life = certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp();
    assert_eq!(life, 7 * 86_400 + 600);
}

#[test]
fn weak_forged_and_giant_requests_are_refused_with_the_reason() {
    let estate = Estate::new();
    let identity = estate.identity(Role::Agent, &machine(3).to_string());
    let refused =
        |request: &[u8]| estate.authority.issue(request, &identity, now()).err().unwrap().to_string();
    for bits in ["1024", "2048"] {
        let key = format!("rsa:{bits}");
        let args = [
            "req", "-new", "-newkey", &key, "-nodes", "-keyout", "k.pem", "-outform", "DER", "-out", "r.der",
            "-subj", "/CN=x",
        ];
        openssl(estate.path(), &args);
        let error = refused(&std::fs::read(estate.file("r.der")).unwrap());
        assert!(error.contains("P-256"), "{bits}: {error}");
    }
    let (good, _) = ca::request().unwrap();
    let key_of = |pem: &str| {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        pem.parse_x509().unwrap().public_key().raw.to_vec()
    };
    let key = key_of(&estate.authority.issue(&good, &identity, now()).unwrap());
    // Its own key signed it: no flipped bit makes us certify another one.
    let mut refusals = 0;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x20;
        match estate.authority.issue(&bad, &identity, now()) {
            Ok(pem) => assert_eq!(key_of(&pem), key, "byte {at}"),
            Err(_) => refusals += 1,
        }
    }
    assert!(refusals > good.len() * 9 / 10, "{refusals} of {}", good.len());
    assert!(refused(&vec![0x30; 1 << 20]).contains("longer than 16 KiB"));
    assert!(refused(b"").contains("signing request"));
}

#[test]
fn the_authority_signs_for_its_own_vault_and_for_plain_names_only() {
    let estate = Estate::new();
    let (request, _) = ca::request().unwrap();
    let other = Identity { vault: VaultId::from_bytes([9; 16]), ..estate.identity(Role::Vault, "vault") };
    assert!(estate.authority.issue(&request, &other, now()).is_err());
    for id in ["", "../vault", "a/b", "a b", "a\u{1b}[31m", "\u{202e}x", &"x".repeat(200)] {
        let identity = estate.identity(Role::Operator, id);
        assert!(estate.authority.issue(&request, &identity, now()).is_err(), "{id:?}");
    }
}

#[test]
fn credentials_tell_which_file_is_wrong() {
    let estate = Estate::new();
    let good = estate.credentials(Role::ProcessServer, "ps");
    let dir = estate.file("process-server-ps");
    assert_eq!(Credentials::open(&dir).unwrap().identity(), good.identity());
    let broken = |name: &str, content: &[u8], expected: &str| {
        let before = std::fs::read(dir.join(name)).unwrap();
        std::fs::write(dir.join(name), content).unwrap();
        let error = Credentials::open(&dir).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
        std::fs::write(dir.join(name), before).unwrap();
    };
    broken("certificate.pem", b"", "empty");
    broken(
        "certificate.pem",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "cannot be read",
    );
    broken("key.pem", b"no key", "not usable");
    let (_, other) = ca::request().unwrap();
    broken("key.pem", other.as_bytes(), "does not belong");
    broken("ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not usable");
    std::fs::set_permissions(dir.join("key.pem"), std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Credentials::open(&dir), Err(PkiError::Exposed { mode: 0o640, .. })));
    // Nothing that is printed shows a key.
    let shown = format!("{good:?}");
    assert!(!shown.contains("PRIVATE") && shown.len() < 200, "{shown}");
}

#[test]
fn a_kill_at_any_step_of_a_renewal_leaves_credentials_that_open() {
    let estate = Estate::new();
    let identity = estate.identity(Role::ProcessServer, "ps");
    let credentials = estate.credentials(Role::ProcessServer, "ps");
    let dir = estate.file("process-server-ps");
    let (certificate, key) = estate.authority.make(&identity, now()).unwrap();
    let first = credentials.presented().serial;
    // The steps of a renewal, in its order, with a start of another process after each.
    ca::write_file(&dir.join("key.next.pem"), key.as_bytes(), 0o600).unwrap();
    assert_eq!(Credentials::open(&dir).unwrap().presented().serial, first, "the old pair");
    ca::write_file(&dir.join("certificate.pem"), certificate.as_bytes(), 0o644).unwrap();
    let second = Credentials::open(&dir).unwrap().presented().serial;
    assert_ne!(second, first, "the new pair, before its key got its name");
    // A renewal that follows such a kill ends well, too.
    let (certificate, key) = estate.authority.make(&identity, now()).unwrap();
    credentials.renew(&certificate, &key).unwrap();
    assert!(!dir.join("key.next.pem").exists());
    assert_ne!(Credentials::open(&dir).unwrap().presented().serial, second);
    // What cannot be used is refused, and what is in use stays in use.
    let serial = credentials.presented().serial;
    std::fs::write(dir.join("certificate.pem"), "rot").unwrap();
    assert!(credentials.reload().is_err());
    assert_eq!(credentials.presented().serial, serial);
}

#[test]
fn a_certificate_knows_when_it_was_issued() {
    let estate = Estate::new();
    let presented = estate.credentials(Role::Operator, "owner:ada").presented();
    assert!(now().since(presented.issued).as_secs() <= 2, "{presented:?}");
    assert_eq!(
        presented.ends.micros() / 1_000_000,
        days(30).unix_timestamp() - now().since(presented.issued).as_secs() as i64
    );
}
