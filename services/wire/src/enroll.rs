//! A newcomer's side of enrolment, and renewal.

use crate::ca;
use crate::grpc;
use crate::tls::{self, Credentials};
use crate::token::Token;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_proto::v1 as pb;
use std::path::Path;
use tonic::transport::Channel;

/// Uses up a token: makes a key that never leaves this machine, and gets a certificate for it.
///
/// Returns the credentials, stored in `dir`, and where the vault takes sessions.
pub async fn enroll(token: &str, role: &str, name: &str, dir: &Path) -> Result<(Credentials, String), Fault> {
    let token = Token::parse(token).map_err(|error| {
        Fault::new(FaultClass::Usage, "token.invalid", error.to_string()).spares("the vault was not asked")
    })?;
    let (csr_der, key) = ca::request().map_err(|error| local(&error))?;
    let stream = tls::connect_pinned(&token.address, token.ca_fingerprint).await?;
    let channel = grpc::channel_over(stream).await?;
    let request = pb::EnrollRequest {
        token: token.reveal().to_string(),
        csr_der,
        role: role.to_owned(),
        name: name.to_owned(),
    };
    let reply = pb::enrolment_client::EnrolmentClient::new(channel)
        .enroll(request)
        .await
        .map_err(|status| grpc::fault_of(&status))?
        .into_inner();
    let credentials = Credentials::store(dir, &reply.ca_pem, &reply.certificate_pem, &key)
        .map_err(|error| local(&error))?;
    Ok((credentials, reply.vault_address))
}

/// Renews the certificate when half of its life is over. Returns whether it did.
pub async fn renew_when_due(
    credentials: &Credentials,
    channel: &Channel,
    now: Timestamp,
) -> Result<bool, Fault> {
    let left = credentials.expires_at() - now.micros() / 1_000_000;
    let life = i64::try_from(ca::lifetime(credentials.identity().role).as_secs()).unwrap_or(i64::MAX);
    if left > life / 2 {
        return Ok(false);
    }
    let (csr_der, key) = ca::request().map_err(|error| local(&error))?;
    let reply = pb::coordination_client::CoordinationClient::new(channel.clone())
        .renew(pb::RenewRequest { csr_der })
        .await
        .map_err(|status| grpc::fault_of(&status))?
        .into_inner();
    credentials.renew(&reply.certificate_pem, &key).map_err(|error| local(&error))?;
    Ok(true)
}

fn local(error: &ca::PkiError) -> Fault {
    Fault::new(FaultClass::Failed, "credentials.local", error.to_string())
        .affects("this server: it has no identity")
        .remedy("mend the directory and enrol again with a new token")
}
