//! Who is let in: operators made and revoked, servers revoked.
//!
//! ```text
//! Vault (this process)       ─┐
//! Keeper (a process beside it) ┴─► store: row, audit line, count of grants, in one transaction
//!                                    └─► every vault on that store: Core::heed_grants ─► gate, sessions
//! ```
//!
//! A running vault looks at the count with every beat, so what a process beside it revoked is out within one.
//! Revoked means: certificates issued up to that moment are refused for ever, those issued later count.

use crate::access::OperatorRole;
use crate::store::access::OperatorRow;
use crate::store::inventory::ServerRow;
use crate::store::{Store, StoreError, Tx};
use crate::world::World;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{ServerId, VaultId};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_wire::ca::{self, Authority, PkiError};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::tls::Credentials;
use std::path::Path;

const SECOND_MICROS: i64 = 1_000_000;

/// Counts changes of grants; a vault that sees it rise reads them again.
pub(crate) const COUNT: &str = "grants";

/// The moment at which a certificate is issued so that it counts: certificates tell whole seconds, so it is
/// in a later one than what is denied.
pub(crate) fn issue_at(now: Timestamp, denied_until: Option<Timestamp>) -> Timestamp {
    let after = |until: Timestamp| {
        Timestamp::from_micros((until.micros().div_euclid(SECOND_MICROS) + 1).saturating_mul(SECOND_MICROS))
    };
    denied_until.map_or(now, |until| now.max(after(until)))
}

/// Up to where certificates are refused when a new one is issued at `now`.
pub(crate) fn deny_before(now: Timestamp, denied_until: Option<Timestamp>) -> Timestamp {
    let before = Timestamp::from_micros(now.micros().div_euclid(SECOND_MICROS) * SECOND_MICROS - 1);
    denied_until.map_or(before, |until| until.max(before))
}

/// Tells every vault on this store to read the grants again, once this transaction is durable.
pub(crate) async fn count(tx: &mut Tx) -> Result<(), StoreError> {
    let before: u64 = tx.meta(COUNT).await?.and_then(|text| text.parse().ok()).unwrap_or(0);
    tx.set_meta(COUNT, &(before + 1).to_string()).await
}

/// Makes credentials for an operator in `dir` (key 0600), and lets them in.
pub(crate) async fn make_operator(
    store: &Store,
    authority: &Authority,
    world: &World,
    name: &str,
    role: &str,
    dir: &Path,
) -> Result<Credentials, Fault> {
    let usage = |message: String| {
        Fault::new(FaultClass::Usage, "operator.request", message)
            .affects("this operator")
            .spares("nothing was changed")
            .remedy("use letters, digits and -_.@ in the name, and a role such as owner")
    };
    let role = OperatorRole::named(role).ok_or_else(|| usage(format!("there is no role {}", shown(role))))?;
    if !is_operator_name(name) {
        return Err(usage(format!("{} is no name for an operator", shown(name))));
    }
    let now = world.now();
    let mut tx = store.begin().await?;
    let denied_until = tx.operator(name).await?.and_then(|row| row.denied_until);
    let identity = operator_identity(authority.vault(), role.name(), name);
    let (certificate, key) =
        authority.make(&identity, issue_at(now, denied_until)).map_err(|error| not_made(&error))?;
    let row = OperatorRow {
        name: name.to_owned(),
        role: role.name().into(),
        revoked: false,
        denied_until,
        made: now,
        certificate_expires: Some(now.plus(ca::lifetime(Role::Operator))),
    };
    tx.save_operator(&row).await?;
    tx.audit(now, "vault", "make-operator", name, "done", role.name()).await?;
    count(&mut tx).await?;
    tx.commit().await?;
    Credentials::store(dir, authority.certificate_pem(), &certificate, &key).map_err(|error| not_made(&error))
}

/// Whether an operator can be called so.
pub(crate) fn is_operator_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
}

/// Takes an operator's access away.
pub(crate) async fn revoke_operator(store: &Store, world: &World, name: &str, by: &str) -> Result<(), Fault> {
    let mut tx = store.begin().await?;
    let row = tx.operator(name).await?.ok_or_else(|| {
        Fault::new(FaultClass::NotFound, "operator.unknown", format!("no operator is called {}", shown(name)))
            .affects("this request")
            .spares("nothing was changed")
            .remedy("names are told by `continuum get operators`")
    })?;
    let now = world.now();
    tx.save_operator(&OperatorRow { revoked: true, denied_until: Some(now), ..row }).await?;
    tx.audit(now, by, "revoke-operator", name, "done", "").await?;
    count(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Takes a server's access away.
pub(crate) async fn revoke_server(store: &Store, world: &World, id: ServerId) -> Result<(), Fault> {
    let mut tx = store.begin().await?;
    let row = tx.server(id).await?.filter(|row| row.role != Role::Vault.name());
    let row = row.ok_or_else(|| {
        Fault::new(FaultClass::NotFound, "server.unknown", format!("no server has the id {id}"))
            .affects("this request")
            .spares("nothing was changed")
            .remedy("ids are told by `continuumd server list`")
    })?;
    let (now, name) = (world.now(), shown(&row.name));
    tx.save_server(ServerRow { revoked: true, denied_until: Some(now), ..row }).await?;
    tx.audit(now, "vault", "revoke-server", &name, "done", &id.to_string()).await?;
    count(&mut tx).await?;
    // Told to watchers and servers by `Core::heed_grants`, in every vault on this store.
    tx.news.clear();
    tx.commit().await?;
    Ok(())
}

/// What the certificates of a server say.
pub(crate) fn server_identity(vault: VaultId, row: &ServerRow) -> Option<Identity> {
    Some(Identity { vault, role: Role::named(&row.role)?, id: row.id.to_string() })
}

/// What the certificates of an operator say.
pub(crate) fn operator_identity(vault: VaultId, role: &str, name: &str) -> Identity {
    Identity { vault, role: Role::Operator, id: format!("{role}:{name}") }
}

fn not_made(error: &PkiError) -> Fault {
    Fault::new(FaultClass::Failed, "operator.make", format!("the credentials were not made: {error}"))
        .affects("this operator")
        .spares("all others")
        .remedy("mend what is named and make them again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn what_is_issued_after_a_denial_counts_and_what_was_issued_before_does_not() {
        for (why, now, denied, issued) in [
            ("never denied", 5_500_000, None, 5_500_000),
            ("denied long ago", 5_500_000, Some(1_000_000), 5_500_000),
            ("denied in the same second", 5_500_000, Some(5_400_000), 6_000_000),
            ("denied at the turn of a second", 5_000_000, Some(4_999_999), 5_000_000),
        ] {
            assert_eq!(issue_at(at(now), denied.map(at)), at(issued), "{why}");
        }
        // A certificate tells whole seconds: that of the same second as the new one stays good, for it may be it.
        assert_eq!(deny_before(at(5_500_000), None), at(4_999_999));
        assert_eq!(deny_before(at(5_500_000), Some(at(5_400_000))), at(5_400_000));
        assert_eq!(issue_at(at(5_500_000), Some(deny_before(at(5_500_000), None))), at(5_500_000));
    }
}
