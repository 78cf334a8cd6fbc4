//! A token becomes a certificate.
//!
//! Names, role and site come from the token and the request's label, never from the signing request: of
//! that only the public key counts. A peer that is refused learns only that it was; the audit log has the
//! exact reason. Of two that race with one token exactly one wins.

use super::reports::limited;
use crate::access::OperatorRole;
use crate::core::Core;
use crate::estate::{agent_of, machine_of};
use crate::grants;
use crate::store::access::{OperatorRow, TokenRow};
use crate::store::inventory::{MachineRow, ServerRow};
use crate::store::{StoreError, Tx, hex, parsed};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{MachineId, ServerId};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use continuum_wire::ca::{self, Authority};
use continuum_wire::identity::{Identity, Role};
use continuum_wire::token::Token;
use std::sync::Arc;
use std::time::Duration;

/// Tokens live at most this long.
const LIFETIME_MAX: Duration = Duration::from_secs(5 * 24 * 3600);
const LIFETIME: Duration = Duration::from_secs(3600);
/// Longest name of a machine or server.
pub(crate) const NAME_BYTES_MAX: usize = 253;

/// The vault's power to certify, and where newcomers and servers reach it.
pub(crate) struct Registrar {
    pub(crate) authority: Authority,
    pub(crate) address: String,
    pub(crate) enrolment_address: String,
}

impl Registrar {
    /// Makes a token. It is shown once: only its hash is stored.
    pub(crate) async fn make_token(
        &self,
        core: &Arc<Core>,
        request: &pb::CreateTokenRequest,
        by: &str,
    ) -> Result<pb::CreateTokenReply, Fault> {
        let usage = |message: String, remedy: &str| {
            Fault::new(FaultClass::Usage, "token.request", message)
                .affects("this request")
                .spares("nothing was changed")
                .remedy(remedy)
        };
        if request.role == Role::Operator.name() {
            return self.make_operator_token(core, request, by).await;
        }
        let role = Role::named(&request.role)
            .filter(|role| matches!(role, Role::Agent | Role::ProcessServer | Role::MasterTarget))
            .ok_or_else(|| {
                usage(
                    format!("no server has the role {}", shown(&request.role)),
                    "choose agent, process-server, master-target or operator",
                )
            })?;
        let site = {
            let estate = core.estate();
            estate
                .sites
                .values()
                .find(|site| site.name == request.site || site.id.to_string() == request.site)
                .cloned()
        };
        let site = site.ok_or_else(|| {
            usage(format!("there is no site {}", shown(&request.site)), "see `continuum get sites`")
        })?;
        if request.machine.len() > NAME_BYTES_MAX {
            return Err(usage("the name is too long".into(), "choose one of at most 253 bytes"));
        }
        let lifetime = lifetime_of(request)?;
        let token = core.world.with_entropy(|entropy| {
            Token::make(&self.enrolment_address, self.authority.fingerprint(), entropy)
        });
        let now = core.world.now();
        let expires = now.plus(lifetime);
        let mut tx = core.store.begin().await?;
        tx.add_token(&TokenRow {
            hash: hex(&token.hash()),
            role: role.name().to_owned(),
            site: site.id.to_string(),
            machine: request.machine.clone(),
            made_by: by.to_owned(),
            made: now,
            expires,
            used: None,
            operator_role: String::new(),
            revoked: false,
        })
        .await?;
        tx.audit(now, by, "create-token", role.name(), "done", &format!("site {}", shown(&site.name)))
            .await?;
        core.commit(tx).await?;
        Ok(pb::CreateTokenReply { token: token.reveal().to_string(), expires_us: expires.micros() })
    }

    /// Makes the token with which a person logs in: name and role are those of the token, the key is theirs.
    async fn make_operator_token(
        &self,
        core: &Arc<Core>,
        request: &pb::CreateTokenRequest,
        by: &str,
    ) -> Result<pb::CreateTokenReply, Fault> {
        let usage = |message: String, remedy: &str| {
            Fault::new(FaultClass::Usage, "token.request", message)
                .affects("this request")
                .spares("nothing was changed")
                .remedy(remedy)
        };
        let role = OperatorRole::named(&request.operator_role).ok_or_else(|| {
            let known = OperatorRole::ALL.map(OperatorRole::name).join(", ");
            usage(
                format!("there is no role {}", shown(&request.operator_role)),
                &format!("choose one of {known}"),
            )
        })?;
        let name = &request.machine;
        if !grants::is_operator_name(name) {
            return Err(usage(
                format!("{} is no name for an operator", shown(&limited(name, NAME_BYTES_MAX))),
                "use 1 to 100 letters, digits and -_.@",
            ));
        }
        if name == by {
            return Err(usage(
                "nobody makes a token for themselves".into(),
                "another owner does, or `continuumd operator make` on the vault's machine",
            ));
        }
        let lifetime = lifetime_of(request)?;
        let token = core.world.with_entropy(|entropy| {
            Token::make(&self.enrolment_address, self.authority.fingerprint(), entropy)
        });
        let now = core.world.now();
        let expires = now.plus(lifetime);
        let mut tx = core.store.begin().await?;
        tx.add_token(&TokenRow {
            hash: hex(&token.hash()),
            role: Role::Operator.name().to_owned(),
            site: String::new(),
            machine: name.clone(),
            made_by: by.to_owned(),
            made: now,
            expires,
            used: None,
            operator_role: role.name().to_owned(),
            revoked: false,
        })
        .await?;
        tx.audit(now, by, "create-token", name, "done", &format!("operator, {}", role.name())).await?;
        core.commit(tx).await?;
        Ok(pb::CreateTokenReply { token: token.reveal().to_string(), expires_us: expires.micros() })
    }

    /// An operator's token becomes their certificate.
    async fn let_in(
        &self,
        core: &Arc<Core>,
        mut tx: Tx,
        known: &TokenRow,
        csr_der: &[u8],
    ) -> Result<pb::EnrollReply, Refusal> {
        let because = |reason: &str| Refusal::Because(reason.to_owned());
        let now = core.world.now();
        let role = OperatorRole::named(&known.operator_role)
            .ok_or_else(|| because("the token's operator role is not known"))?;
        // Whoever made it may have lost the right since.
        let maker = tx.operator(&known.made_by).await?;
        if maker.is_some_and(|maker| maker.revoked || maker.role != OperatorRole::Owner.name()) {
            return Err(because("whoever made the token is no owner any more"));
        }
        let name = &known.machine;
        let before = tx.operator(name).await?;
        // Whoever held this name before does not hold it any more.
        let denied_until = before.map(|row| grants::deny_before(now, row.denied_until));
        let identity = grants::operator_identity(core.about.vault, role.name(), name);
        let certificate_pem =
            self.authority
                .issue(csr_der, &identity, grants::issue_at(now, denied_until))
                .map_err(|error| Refusal::Because(format!("the signing request is not usable: {error}")))?;
        if !tx.use_token(&known.hash, name, now).await? {
            return Err(because("somebody else used the token in the same moment, or it was taken back"));
        }
        tx.save_operator(&OperatorRow {
            name: name.clone(),
            role: role.name().into(),
            revoked: false,
            denied_until,
            made: now,
            certificate_expires: Some(now.plus(ca::lifetime(Role::Operator))),
        })
        .await?;
        grants::count(&mut tx).await?;
        tx.audit(now, name, "enroll", "operator", "done", role.name()).await?;
        tx.add_event(core.event(
            "operator",
            name,
            "",
            format!("{name} ({}) logged in first", role.name()),
            "",
        ))
        .await?;
        core.commit(tx).await?;
        core.heed_grants().await?;
        Ok(self.reply(core, &identity, certificate_pem))
    }

    /// Uses up a token.
    pub(crate) async fn enroll(
        &self,
        core: &Arc<Core>,
        request: &pb::EnrollRequest,
    ) -> Result<pb::EnrollReply, Fault> {
        match self.try_enroll(core, request).await {
            Ok(reply) => Ok(reply),
            Err(Refusal::Store(error)) => Err(error.fault()),
            Err(Refusal::Because(reason)) => {
                let correlation = core.world.correlation();
                let who = shown(&limited(&request.name, NAME_BYTES_MAX));
                tracing::warn!(correlation, name = who, "enrolment refused: {reason}");
                let mut tx = core.store.begin().await?;
                let detail = format!("{reason} ({correlation})");
                tx.audit(
                    core.world.now(),
                    &who,
                    "enroll",
                    &shown(&limited(&request.role, 32)),
                    "refused",
                    &detail,
                )
                .await?;
                core.commit(tx).await?;
                // The same words for every reason: a stranger learns nothing about our tokens.
                Err(Fault::new(FaultClass::Refused, "enrolment.refused", "the vault refused this enrolment")
                    .affects("this server: it has no identity")
                    .spares("everything that is enrolled")
                    .remedy("make a new token for this role and name; the vault's audit log has the reason")
                    .correlated(correlation))
            }
        }
    }

    async fn try_enroll(
        &self,
        core: &Arc<Core>,
        request: &pb::EnrollRequest,
    ) -> Result<pb::EnrollReply, Refusal> {
        let because = |reason: &str| Refusal::Because(reason.to_owned());
        let token = Token::parse(&request.token).map_err(|_| because("the token is cut or mistyped"))?;
        if token.ca_fingerprint != self.authority.fingerprint() {
            return Err(because("the token is of another vault"));
        }
        if request.name.is_empty() || request.name.len() > NAME_BYTES_MAX {
            return Err(because("the name is empty or longer than 253 bytes"));
        }
        let now = core.world.now();
        let hash = hex(&token.hash());
        let mut tx = core.store.begin().await?;
        let known = tx.token(&hash).await?.ok_or_else(|| because("the token is not known"))?;
        if known.used.is_some() {
            return Err(because("the token was used before"));
        }
        if known.revoked {
            return Err(because("the token was taken back"));
        }
        if known.expires <= now {
            return Err(Refusal::Because(format!("the token ended at {}", known.expires)));
        }
        if known.role != request.role {
            return Err(Refusal::Because(format!("the token is for the role {}", known.role)));
        }
        if known.role == Role::Operator.name() {
            return self.let_in(core, tx, &known, &request.csr_der).await;
        }
        if !known.machine.is_empty() && known.machine != request.name {
            return Err(because("the token is bound to another name"));
        }
        let role = Role::named(&known.role).ok_or_else(|| because("the token's role is not known"))?;
        let (row, machine) = newcomer(core, &mut tx, &known, &request.name, role, now).await?;
        let identity = Identity { vault: core.about.vault, role, id: row.id.to_string() };
        let certificate_pem = self
            .authority
            .issue(&request.csr_der, &identity, grants::issue_at(now, row.denied_until))
            .map_err(|error| Refusal::Because(format!("the signing request is not usable: {error}")))?;
        if !tx.use_token(&hash, &row.id.to_string(), now).await? {
            return Err(because("somebody else used the token in the same moment"));
        }
        let (id, name) = (row.id, row.name.clone());
        if let Some(machine) = machine {
            tx.add_machine(machine).await?;
        }
        tx.save_server(row).await?;
        grants::count(&mut tx).await?;
        tx.audit(now, &shown(&name), "enroll", role.name(), "done", &format!("id {id}")).await?;
        tx.add_event(core.event("server", &name, id, format!("{role} enrolled"), "")).await?;
        core.commit(tx).await?;
        core.sessions.expel(id);
        core.heed_grants().await?;
        Ok(self.reply(core, &identity, certificate_pem))
    }

    /// A new certificate for a server that still has a good one.
    pub(crate) async fn renew(
        &self,
        core: &Arc<Core>,
        identity: &Identity,
        csr_der: &[u8],
    ) -> Result<pb::EnrollReply, Fault> {
        let now = core.world.now();
        let refused = |what: String| {
            Fault::new(FaultClass::Refused, "renewal.refused", what)
                .affects("this server's certificate")
                .spares("its session, until the certificate ends")
                .remedy("make a new enrolment token and enrol it again")
        };
        let id: ServerId = identity.id.parse().map_err(|_| refused("the identity names no server".into()))?;
        let mut tx = core.store.begin().await?;
        let row = tx.server(id).await?.filter(|row| !row.revoked && row.role == identity.role.name());
        let mut row = row
            .ok_or_else(|| refused("this server is not registered here, or its access was revoked".into()))?;
        let certificate_pem = self
            .authority
            .issue(csr_der, identity, now)
            .map_err(|error| refused(format!("the signing request is not usable: {error}")))?;
        row.certificate_expires = now.plus(ca::lifetime(identity.role));
        tx.save_server(row).await?;
        core.commit(tx).await?;
        Ok(self.reply(core, identity, certificate_pem))
    }

    fn reply(&self, core: &Core, identity: &Identity, certificate_pem: String) -> pb::EnrollReply {
        pb::EnrollReply {
            certificate_pem,
            ca_pem: self.authority.certificate_pem().to_owned(),
            vault_id: core.about.vault.to_string(),
            id: identity.id.clone(),
            vault_address: self.address.clone(),
        }
    }
}

fn lifetime_of(request: &pb::CreateTokenRequest) -> Result<Duration, Fault> {
    let lifetime = match request.lifetime_seconds {
        0 => LIFETIME,
        seconds => Duration::from_secs(seconds.into()),
    };
    if lifetime <= LIFETIME_MAX {
        return Ok(lifetime);
    }
    Err(Fault::new(
        FaultClass::Usage,
        "token.request",
        format!("{} s is too long for a token", lifetime.as_secs()),
    )
    .affects("this request")
    .spares("nothing was changed")
    .remedy("choose at most five days (432000 s)"))
}

enum Refusal {
    Because(String),
    Store(StoreError),
}
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The rows of a newcomer. A name that is taken is given again only to its owner: with a token bound to
/// it, or while nobody ever came under it (an answer that was lost on its way).
async fn newcomer(
    core: &Core,
    tx: &mut Tx,
    token: &TokenRow,
    name: &str,
    role: Role,
    now: Timestamp,
) -> Result<(ServerRow, Option<MachineRow>), Refusal> {
    let expires = now.plus(ca::lifetime(role));
    let site = parsed("site id", &token.site)?;
    if let Some(mut known) = tx.server_named(role.name(), name).await? {
        if token.machine != name && known.last_seen.is_some() {
            return Err(Refusal::Because(
                "the name is taken; only a token that is bound to it may have it again".into(),
            ));
        }
        known.enrolled = now;
        known.certificate_expires = expires;
        known.revoked = false;
        // Whoever held this identity before does not hold it any more.
        known.denied_until = Some(grants::deny_before(now, known.denied_until));
        return Ok((known, None));
    }
    let (id, machine) = if role == Role::Agent {
        if tx.machine_named(name).await?.is_some() {
            return Err(Refusal::Because("a machine has this name already".into()));
        }
        let id = core.world.id(MachineId::make);
        let machine = MachineRow {
            id,
            version: 0,
            name: name.to_owned(),
            site,
            fabric: String::new(),
            guest: String::new(),
            epoch: 0,
            last_drill: None,
            last_drill_passed: false,
            disks: Vec::new(),
            protection: None,
        };
        (agent_of(id), Some(machine))
    } else {
        (core.world.id(ServerId::make), None)
    };
    debug_assert!(machine.as_ref().is_none_or(|machine| machine.id == machine_of(id)));
    let row = ServerRow {
        id,
        role: role.name().to_owned(),
        name: name.to_owned(),
        site,
        version: String::new(),
        address: String::new(),
        enrolled: now,
        last_seen: None,
        certificate_expires: expires,
        revoked: false,
        denied_until: None,
    };
    Ok((row, machine))
}
