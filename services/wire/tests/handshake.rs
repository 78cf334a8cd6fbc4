//! Who gets in and who does not, with a reason of its own for each; and other people's TLS as the judge.

mod common;

use common::{Estate, days, machine, now};
use continuum_model::fault::FaultClass;
use continuum_model::id::VaultId;
use continuum_model::units::Epoch;
use continuum_wire::channel::{self, Hello};
use continuum_wire::handshake::HandshakeError as E;
use continuum_wire::identity::Role;
use continuum_wire::peers::Barred;
use continuum_wire::tls::{self, ALPN_CHANNEL, ALPN_GRPC, Credentials};
use rcgen::{ExtendedKeyUsagePurpose as Use, SanType};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::mpsc;

/// A process server's listener that tells how each handshake went and keeps good connections open.
async fn listener(credentials: &Credentials) -> (SocketAddr, mpsc::Receiver<Result<String, E>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = credentials.acceptor().unwrap();
    let (tell, told) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (acceptor.clone(), tell.clone());
            tokio::spawn(async move {
                match tls::accept(&acceptor, stream).await {
                    Ok(mut entered) => {
                        let who = entered.peer.as_ref().map(|(who, _)| who.to_string());
                        let _ = tell.send(Ok(who.unwrap_or_default())).await;
                        let _ = entered.stream.read_u8().await;
                    }
                    Err(error) => drop(tell.send(Err(error)).await),
                }
            });
        }
    });
    (address, told)
}

fn hello() -> Hello {
    Hello { machine: machine(1), epoch: Epoch(1), session: 1 }
}

#[tokio::test]
async fn every_bad_certificate_is_refused_with_its_own_reason_on_both_sides() {
    let estate = Estate::new();
    let server = estate.credentials(Role::ProcessServer, "ps");
    let (address, mut told) = listener(&server).await;
    let address = address.to_string();

    let foreign = Estate::new(); // The same vault id, another key: the subject of its authority is the same.
    let elsewhere = Estate::of(VaultId::from_bytes([9; 16]));
    let uri = estate.identity(Role::Agent, &machine(1).to_string()).uri();
    elsewhere.forge("theirs", |params| params.subject_alt_names[0] = SanType::URI(uri.try_into().unwrap()));
    foreign.forge("theirs", |_| {});
    let under_our_ca = |other: &Estate, name: &str| {
        let dir = estate.file(name);
        std::fs::create_dir_all(&dir).unwrap();
        for file in ["certificate.pem", "key.pem"] {
            std::fs::copy(other.file("theirs").join(file), dir.join(file)).unwrap();
        }
        std::fs::write(dir.join("ca.pem"), estate.authority.certificate_pem()).unwrap();
        Credentials::open(&dir).unwrap()
    };
    type Expected = fn(&E) -> bool;
    let rows: Vec<(&str, Credentials, Expected, &str)> = vec![
        (
            "expired",
            estate.forge("expired", |params| (params.not_before, params.not_after) = (days(-9), days(-2))),
            |error| matches!(error, E::Expired { .. }),
            "not valid at this time by its clock",
        ),
        (
            "not yet valid",
            estate.forge("early", |params| (params.not_before, params.not_after) = (days(2), days(9))),
            |error| matches!(error, E::NotYetValid { .. }),
            "refuses our certificate",
        ),
        (
            "for answering only",
            estate.forge("server-only", |params| params.extended_key_usages = vec![Use::ServerAuth]),
            |error| matches!(error, E::Purpose),
            "refuses our certificate",
        ),
        (
            "foreign authority of the same name",
            under_our_ca(&foreign, "foreign"),
            |error| matches!(error, E::Forged | E::Foreign),
            "refuses our certificate",
        ),
        (
            "foreign authority",
            under_our_ca(&elsewhere, "elsewhere"),
            |error| matches!(error, E::Foreign),
            "it is of another authority",
        ),
    ];
    for (why, credentials, expected, said) in rows {
        let fault =
            channel::connect(&credentials, &address, Role::ProcessServer, None, hello()).await.err().unwrap();
        let reason = told.recv().await.unwrap().err().unwrap();
        assert!(expected(&reason), "{why}: {reason:?}");
        assert_eq!(
            (fault.code.as_str(), fault.class),
            ("tls.refused", FaultClass::Refused),
            "{why}: {fault}"
        );
        assert!(fault.message.contains(said), "{why}: {fault}");
        // The clock of either side stands in what that side says.
        assert!(fault.message.contains("the clock here says"), "{why}: {fault}");
        if matches!(reason, E::Expired { .. } | E::NotYetValid { .. }) {
            assert!(reason.to_string().contains("the clock here says"), "{why}: {reason}");
        }
    }
    // And after all of them, an honest one.
    let (_stream, peer) = estate
        .agent(machine(1))
        .connect(&address, ALPN_CHANNEL, Role::ProcessServer, Some("ps"))
        .await
        .unwrap();
    assert_eq!(peer.id, "ps");
    assert_eq!(told.recv().await.unwrap().unwrap(), format!("agent {}", machine(1)));
}

#[tokio::test]
async fn a_certificate_that_names_nobody_or_two_opens_nothing() {
    let estate = Estate::new();
    let server = estate.credentials(Role::ProcessServer, "ps");
    let (address, mut told) = listener(&server).await;
    let shared = || SanType::DnsName("continuum.internal".try_into().unwrap());
    let uri = |id: &str| SanType::URI(estate.identity(Role::Agent, id).uri().try_into().unwrap());
    // Such certificates cannot even be opened as credentials here: openssl shows them.
    for (why, names) in [("nobody", vec![shared()]), ("two", vec![uri("a"), uri("b"), shared()])] {
        let pem = std::fs::read_to_string(estate.file("ca/ca.key.pem")).unwrap();
        let key = rcgen::KeyPair::from_pem(&pem).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(estate.authority.certificate_pem(), key).unwrap();
        let pair = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names;
        params.extended_key_usages = vec![Use::ClientAuth];
        std::fs::write(estate.file("n.pem"), params.signed_by(&pair, &issuer).unwrap().pem()).unwrap();
        std::fs::write(estate.file("n.key"), pair.serialize_pem()).unwrap();
        let mut client = s_client(&estate, address, &["-cert", "n.pem", "-key", "n.key"]);
        let reason = told.recv().await.unwrap().err().unwrap();
        assert!(matches!(reason, E::Nameless(_)), "{why}: {reason:?}");
        client.kill().await.unwrap();
    }
}

#[tokio::test]
async fn the_peer_must_have_the_role_and_the_id_that_were_expected() {
    let estate = Estate::new();
    let (address, _told) = listener(&estate.credentials(Role::ProcessServer, "ps-1")).await;
    let agent = estate.agent(machine(1));
    let address = address.to_string();
    for (role, id, good) in [
        (Role::ProcessServer, None, true),
        (Role::ProcessServer, Some("ps-1"), true),
        (Role::ProcessServer, Some("ps-2"), false),
        (Role::MasterTarget, None, false),
        (Role::Vault, Some("ps-1"), false),
    ] {
        let outcome = agent.connect(&address, ALPN_CHANNEL, role, id).await;
        assert_eq!(outcome.is_ok(), good, "{role} {id:?}");
        if let Err(fault) = outcome {
            assert!(fault.message.contains("answered where"), "{fault}");
        }
    }
    // An agent that answers is taken for that agent, and for nothing else.
    let (address, _told) = listener(&agent).await;
    let (address, other) = (address.to_string(), estate.agent(machine(2)));
    for (role, id, good) in [
        (Role::Agent, Some(machine(1).to_string()), true),
        (Role::Agent, Some(machine(3).to_string()), false),
        (Role::ProcessServer, None, false),
        (Role::Vault, None, false),
    ] {
        let outcome = other.connect(&address, ALPN_CHANNEL, role, id.as_deref()).await;
        assert_eq!(outcome.is_ok(), good, "{role} {id:?}");
    }
    // An operator's certificate is good for dialling only: nobody is taken in by it.
    let (address, _told) = listener(&estate.credentials(Role::Operator, "owner:ada")).await;
    let fault = other.connect(&address.to_string(), ALPN_CHANNEL, Role::Operator, None).await.err().unwrap();
    assert!(fault.message.contains("not for this use"), "{fault}");
}

#[tokio::test]
async fn no_certificate_old_tls_and_other_protocols_are_told_apart() {
    let estate = Estate::new();
    let (address, mut told) = listener(&estate.credentials(Role::ProcessServer, "ps")).await;
    let agent = estate.agent(machine(1));
    drop(agent);
    let cert = format!("agent-{}/certificate.pem", machine(1));
    let key = format!("agent-{}/key.pem", machine(1));
    type Expected = fn(&E) -> bool;
    let rows: [(&str, Vec<&str>, Expected); 4] = [
        ("no certificate", vec![], |error| matches!(error, E::NoCertificate)),
        ("TLS 1.2", vec!["-tls1_2", "-cert", &cert, "-key", &key], |error| matches!(error, E::OldTls)),
        ("TLS 1.1", vec!["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], |error| matches!(error, E::OldTls)),
        ("other protocol", vec!["-alpn", "http/1.1", "-cert", &cert, "-key", &key], |error| {
            matches!(error, E::Protocol)
        }),
    ];
    for (why, args, expected) in rows {
        let mut client = s_client(&estate, address, &args);
        let reason = told.recv().await.unwrap().err().unwrap();
        assert!(expected(&reason), "{why}: {reason:?}");
        let _ = client.kill().await;
    }
    for (why, bytes) in [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice()),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n"),
        ("random", &[0xa7; 64]),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let reason = told.recv().await.unwrap().err().unwrap();
        assert!(matches!(reason, E::NotTls), "{why}: {reason:?}");
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[22, 3, 1]).await.unwrap();
    drop(stream);
    assert!(matches!(told.recv().await.unwrap(), Err(E::Broken(_))));
}

#[tokio::test]
async fn other_peoples_tls_agrees_with_ours_in_both_directions() {
    let estate = Estate::new();
    let (address, mut told) = listener(&estate.credentials(Role::ProcessServer, "ps")).await;
    estate.agent(machine(1));
    let (cert, key) =
        (format!("agent-{}/certificate.pem", machine(1)), format!("agent-{}/key.pem", machine(1)));
    let args = [
        "-cert",
        &cert,
        "-key",
        &key,
        "-alpn",
        "h2",
        "-verify_return_error",
        "-verify_hostname",
        "continuum.internal",
        "-sess_out",
        "session.pem",
    ];
    let mut client = s_client(&estate, address, &args);
    assert_eq!(told.recv().await.unwrap().unwrap(), format!("agent {}", machine(1)));
    // Nothing is given out by which a later handshake could skip the certificate.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!estate.file("session.pem").exists(), "a session can be resumed");
    client.kill().await.unwrap();

    // Our client with openssl as the master target.
    estate.credentials(Role::MasterTarget, "mt");
    let port = free_port().await;
    let mut server = Command::new("openssl")
        .args([
            "s_server",
            "-accept",
            &format!("127.0.0.1:{port}"),
            "-tls1_3",
            "-Verify",
            "3",
            "-verify_return_error",
        ])
        .args([
            "-CAfile",
            "ca/ca.pem",
            "-cert",
            "master-target-mt/certificate.pem",
            "-key",
            "master-target-mt/key.pem",
        ])
        .args(["-alpn", "continuum-channel/1", "-quiet"])
        .current_dir(estate.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let agent = estate.credentials(Role::ProcessServer, "ps-2");
    let (mut stream, peer) = loop {
        match agent.connect(&format!("127.0.0.1:{port}"), ALPN_CHANNEL, Role::MasterTarget, Some("mt")).await
        {
            Ok(connected) => break connected,
            Err(fault) if fault.code == "connect.failed" => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(fault) => panic!("{fault}"),
        }
    };
    assert_eq!(peer.role, Role::MasterTarget);
    stream.write_all(b"seen by openssl\n").await.unwrap();
    let mut seen = [0; 16];
    server.stdout.as_mut().unwrap().read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"seen by openssl\n");
    server.kill().await.unwrap();
}

#[tokio::test]
async fn certificates_rotate_under_a_live_listener() {
    let estate = Estate::new();
    let server = estate.credentials(Role::ProcessServer, "ps");
    let (address, mut told) = listener(&server).await;
    let agent = estate.agent(machine(1));
    let serial = |stream: &tokio_rustls::TlsStream<TcpStream>| {
        let chain = stream.get_ref().1.peer_certificates().unwrap();
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
        leaf.raw_serial().to_vec()
    };
    let address = address.to_string();
    let connect = || agent.connect(&address, ALPN_CHANNEL, Role::ProcessServer, Some("ps"));
    let mut seen = Vec::new();
    let mut open = Vec::new();
    for round in 0..4 {
        let (stream, _) = connect().await.unwrap();
        told.recv().await.unwrap().unwrap();
        seen.push(serial(&stream));
        open.push(stream);
        // Both sides renew; connections that stand are not touched.
        let (certificate, key) = estate.authority.make(&server.identity(), now()).unwrap();
        server.renew(&certificate, &key).unwrap();
        let (certificate, key) = estate.authority.make(&agent.identity(), now()).unwrap();
        agent.renew(&certificate, &key).unwrap();
        for stream in &mut open {
            stream.write_all(b"").await.unwrap();
        }
        assert_eq!(open.len(), round + 1);
    }
    seen.dedup();
    assert_eq!(seen.len(), 4, "each handshake after a renewal shows the new certificate");
}

#[tokio::test]
async fn a_revoked_certificate_does_not_get_in_and_a_new_one_does() {
    let estate = Estate::new();
    let server = estate.credentials(Role::ProcessServer, "ps");
    let (address, mut told) = listener(&server).await;
    let address = address.to_string();
    let stolen = estate.agent(machine(1));
    server.peers().deny(&stolen.identity(), now());
    let _ = stolen.connect(&address, ALPN_CHANNEL, Role::ProcessServer, None).await;
    let refused = told.recv().await.unwrap().err().unwrap();
    assert!(matches!(refused, E::Barred { why: Barred::Revoked, .. }), "{refused}");
    // Enrolled again: issued after the denial.
    let later = now().plus(Duration::from_secs(2));
    let (certificate, key) = estate.authority.make(&stolen.identity(), later).unwrap();
    let fresh = estate.stored("fresh", &certificate, &key);
    let (_stream, _) = fresh.connect(&address, ALPN_CHANNEL, Role::ProcessServer, None).await.unwrap();
    assert!(told.recv().await.unwrap().is_ok());
}

#[tokio::test]
async fn a_newcomer_knows_its_vault_by_the_fingerprint_in_its_token_only() {
    let estate = Estate::new();
    let vault = estate.credentials(Role::Vault, "vault");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = vault.enrolment_acceptor();
    let accepting = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(entered) = tls::accept(&acceptor, stream).await {
                assert!(entered.peer.is_none());
            }
        }
    });
    let (_, pem) = x509_parser::pem::parse_x509_pem(estate.authority.certificate_pem().as_bytes()).unwrap();
    let fingerprint = continuum_wire::ca::fingerprint(&pem.contents);
    assert!(tls::connect_pinned(&address, fingerprint).await.is_ok());
    let mut wrong = fingerprint;
    wrong[0] ^= 1;
    let fault = tls::connect_pinned(&address, wrong).await.err().unwrap();
    assert!(fault.message.contains("not the vault that the token is of"), "{fault}");
    // A server or an agent of the same vault is not the vault: it gets to see no token.
    for credentials in [estate.agent(machine(1)), estate.credentials(Role::ProcessServer, "ps")] {
        let acceptor = credentials.enrolment_acceptor();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let posing = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = tls::accept(&acceptor, stream).await;
        });
        let fault = tls::connect_pinned(&address, fingerprint).await.err().unwrap();
        assert!(fault.message.contains("answered where"), "{fault}");
        posing.await.unwrap();
    }
    // Whoever shows the right authority beside a certificate of its own making is found out.
    let impostor = estate.file("impostor");
    let other = Estate::new();
    other.credentials(Role::Vault, "vault");
    std::fs::create_dir_all(&impostor).unwrap();
    for file in ["certificate.pem", "key.pem"] {
        std::fs::copy(other.file("vault-vault").join(file), impostor.join(file)).unwrap();
    }
    std::fs::write(impostor.join("ca.pem"), estate.authority.certificate_pem()).unwrap();
    let acceptor = Credentials::open(&impostor).unwrap().enrolment_acceptor();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other_accepting = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = tls::accept(&acceptor, stream).await;
    });
    assert!(tls::connect_pinned(&address, fingerprint).await.is_err());
    other_accepting.await.unwrap();
    accepting.abort();
}

#[tokio::test]
async fn a_port_where_nobody_listens_says_so_and_may_be_tried_again() {
    let estate = Estate::new();
    let port = free_port().await;
    let agent = estate.agent(machine(1));
    let address = format!("127.0.0.1:{port}");
    let fault = agent.connect(&address, ALPN_GRPC, Role::Vault, None).await.err().unwrap();
    assert_eq!((fault.code.as_str(), fault.class), ("connect.failed", FaultClass::NotConnected));
    assert!(fault.message.contains(&address), "{fault}");
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn s_client(estate: &Estate, address: SocketAddr, args: &[&str]) -> tokio::process::Child {
    let path: &Path = estate.path();
    Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &address.to_string(),
            "-CAfile",
            "ca/ca.pem",
            "-servername",
            "continuum.internal",
        ])
        .args(args)
        .current_dir(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
