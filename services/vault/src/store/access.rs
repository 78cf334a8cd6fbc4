//! Tokens, operators, idempotency keys, and the audit log.
//!
//! The audit log is append-only and chained: a line's hash covers the hash of the line before it, so that
//! a line cannot be changed, left out or put in later without breaking every hash after it.

use super::{Store, StoreError, Tx, parsed, signed, unsigned};
use continuum_model::id::JobId;
use continuum_model::time::Timestamp;
use sqlx::Row;
use sqlx::any::AnyRow;

/// An enrolment token's row. Of its secret only the hash is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRow {
    pub(crate) hash: String,
    pub(crate) role: String,
    pub(crate) site: String,
    /// Bound to this machine name; empty: any.
    pub(crate) machine: String,
    pub(crate) made_by: String,
    pub(crate) made: Timestamp,
    pub(crate) expires: Timestamp,
    pub(crate) used: Option<Timestamp>,
    /// Of an operator's token: what they will be.
    pub(crate) operator_role: String,
    pub(crate) revoked: bool,
}

impl TokenRow {
    /// Tells tokens apart, and is of no use to whoever wants to enrol: the head of the hash of the secret.
    pub(crate) fn id(&self) -> &str {
        self.hash.get(..TOKEN_ID_CHARS).unwrap_or(&self.hash)
    }
}

/// Letters of a token's id.
pub(crate) const TOKEN_ID_CHARS: usize = 12;

/// An operator's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OperatorRow {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) revoked: bool,
    /// Its certificates that were issued up to here are refused.
    pub(crate) denied_until: Option<Timestamp>,
    pub(crate) made: Timestamp,
    /// When the newest certificate ends; `None`: made before that was written down, or not made yet.
    pub(crate) certificate_expires: Option<Timestamp>,
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditLine {
    /// Its place, from 1.
    pub seq: u64,
    /// When.
    pub time: Timestamp,
    /// Who.
    pub actor: String,
    /// What was asked for.
    pub act: String,
    /// Of what.
    pub object: String,
    /// `intent`, `done`, `refused`, or a job's end.
    pub outcome: String,
    /// The rest.
    pub detail: String,
    /// SHA-256 over the hash before it and all of the above.
    pub hash: String,
}

impl AuditLine {
    fn sum(&self, before: &str) -> String {
        let texts = [&self.actor, &self.act, &self.object, &self.outcome, &self.detail].map(String::as_str);
        continuum_wire::audit::sum(before, self.seq, self.time.micros(), texts)
    }
}

impl Tx {
    /// Adds a line to the audit log.
    pub(crate) async fn audit(
        &mut self,
        time: Timestamp,
        actor: &str,
        act: &str,
        object: &str,
        outcome: &str,
        detail: &str,
    ) -> Result<(), StoreError> {
        let last = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *self.inner)
            .await?;
        let (seq, before) = match last {
            Some(row) => (unsigned(row.try_get(0)?), row.try_get::<String, _>(1)?),
            None => (0, String::new()),
        };
        let mut line = AuditLine {
            seq: seq + 1,
            time,
            actor: actor.to_owned(),
            act: act.to_owned(),
            object: object.to_owned(),
            outcome: outcome.to_owned(),
            detail: detail.to_owned(),
            hash: String::new(),
        };
        line.hash = line.sum(&before);
        sqlx::query(
            "INSERT INTO audit (seq, time_us, actor, act, object, outcome, detail, hash) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(signed(line.seq))
        .bind(line.time.micros())
        .bind(line.actor)
        .bind(line.act)
        .bind(line.object)
        .bind(line.outcome)
        .bind(line.detail)
        .bind(line.hash)
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    /// Adds a token.
    pub(crate) async fn add_token(&mut self, token: &TokenRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO token (hash, role, site, machine, made_by, made_us, expires_us, operator_role) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(token.hash.clone())
        .bind(token.role.clone())
        .bind(token.site.clone())
        .bind(token.machine.clone())
        .bind(token.made_by.clone())
        .bind(token.made.micros())
        .bind(token.expires.micros())
        .bind(token.operator_role.clone())
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }

    /// What is known of a token.
    pub(crate) async fn token(&mut self, hash: &str) -> Result<Option<TokenRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM token WHERE hash = $1")
            .bind(hash.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.as_ref().map(token).transpose()
    }

    /// Takes a token that was not used back, by its id; its row. `None`: there is none.
    pub(crate) async fn revoke_token(&mut self, id: &str) -> Result<Option<TokenRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM token WHERE used_us IS NULL AND revoked = 0")
            .fetch_all(&mut *self.inner)
            .await?;
        for row in &rows {
            let known = token(row)?;
            if known.id() == id {
                sqlx::query("UPDATE token SET revoked = 1 WHERE hash = $1 AND used_us IS NULL")
                    .bind(known.hash.clone())
                    .execute(&mut *self.inner)
                    .await?;
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// Uses a token up. `false`: somebody else was first.
    pub(crate) async fn use_token(
        &mut self,
        hash: &str,
        by: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let used = sqlx::query(
            "UPDATE token SET used_us = $1, used_by = $2 WHERE hash = $3 AND used_us IS NULL AND revoked = 0",
        )
        .bind(now.micros())
        .bind(by.to_owned())
        .bind(hash.to_owned())
        .execute(&mut *self.inner)
        .await?;
        Ok(used.rows_affected() == 1)
    }

    /// Claims an idempotency key for a job. `None`: it is ours; else the job that has it, and its body.
    pub(crate) async fn claim_key(
        &mut self,
        key: &str,
        job: JobId,
        body: &str,
        now: Timestamp,
    ) -> Result<Option<(JobId, String)>, StoreError> {
        let claimed = sqlx::query(
            "INSERT INTO order_key (key, job, body, made_us) VALUES ($1, $2, $3, $4) ON CONFLICT (key) DO NOTHING",
        )
        .bind(key.to_owned())
        .bind(job.to_string())
        .bind(body.to_owned())
        .bind(now.micros())
        .execute(&mut *self.inner)
        .await?;
        if claimed.rows_affected() == 1 {
            return Ok(None);
        }
        let row = sqlx::query("SELECT job, body FROM order_key WHERE key = $1")
            .bind(key.to_owned())
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(Some((parsed("job id", row.try_get(0)?)?, row.try_get(1)?)))
    }

    /// An operator by name, as this transaction sees it.
    pub(crate) async fn operator(&mut self, name: &str) -> Result<Option<OperatorRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM operator WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| operator(&row)).transpose()
    }

    /// Writes an operator, new or changed.
    pub(crate) async fn save_operator(&mut self, operator: &OperatorRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO operator (name, role, made_us, revoked, denied_until_us, certificate_expires_us) \
             VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (name) DO UPDATE SET role = excluded.role, made_us = excluded.made_us, \
             revoked = excluded.revoked, denied_until_us = excluded.denied_until_us, \
             certificate_expires_us = excluded.certificate_expires_us",
        )
        .bind(operator.name.clone())
        .bind(operator.role.clone())
        .bind(operator.made.micros())
        .bind(i64::from(operator.revoked))
        .bind(operator.denied_until.map(Timestamp::micros))
        .bind(operator.certificate_expires.map(Timestamp::micros))
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }
}

impl Store {
    /// An operator by name.
    pub(crate) async fn operator(&self, name: &str) -> Result<Option<OperatorRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM operator WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(self.pool())
            .await?;
        row.map(|row| operator(&row)).transpose()
    }

    /// All operators, revoked ones among them.
    pub(crate) async fn operators(&self) -> Result<Vec<OperatorRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM operator ORDER BY name").fetch_all(self.pool()).await?;
        rows.iter().map(operator).collect()
    }

    /// All tokens that are remembered, newest first.
    pub(crate) async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM token ORDER BY made_us DESC LIMIT 1000")
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(token).collect()
    }

    /// A page of the audit log. Newest first: lines before `from` (0: from the newest on); oldest first: those after it.
    pub(crate) async fn audit_page(
        &self,
        from: u64,
        most: u32,
        contains: &str,
        oldest_first: bool,
    ) -> Result<Vec<AuditLine>, StoreError> {
        // Looked for as it is written: no sign in it means anything.
        let words = contains.to_lowercase().replace('!', "!!").replace('%', "!%").replace('_', "!_");
        let (side, order) = if oldest_first { (">", "ASC") } else { ("<", "DESC") };
        let from = if from == 0 && !oldest_first { i64::MAX } else { signed(from) };
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT seq, time_us, actor, act, object, outcome, detail, hash FROM audit WHERE seq {side} $1 AND \
             lower(actor || ' ' || act || ' ' || object || ' ' || outcome || ' ' || detail) LIKE $2 ESCAPE '!' \
             ORDER BY seq {order} LIMIT $3"
        )))
        .bind(from)
        .bind(format!("%{words}%"))
        .bind(i64::from(most))
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(line).collect()
    }

    /// The newest lines of the audit log, oldest first.
    pub(crate) async fn audit_lines(&self, most: u32) -> Result<Vec<AuditLine>, StoreError> {
        let rows = sqlx::query(
            "SELECT seq, time_us, actor, act, object, outcome, detail, hash FROM audit ORDER BY seq DESC LIMIT $1",
        )
        .bind(i64::from(most))
        .fetch_all(self.pool())
        .await?;
        rows.iter().rev().map(line).collect()
    }
}

fn line(row: &AnyRow) -> Result<AuditLine, StoreError> {
    Ok(AuditLine {
        seq: unsigned(row.try_get(0)?),
        time: Timestamp::from_micros(row.try_get(1)?),
        actor: row.try_get(2)?,
        act: row.try_get(3)?,
        object: row.try_get(4)?,
        outcome: row.try_get(5)?,
        detail: row.try_get(6)?,
        hash: row.try_get(7)?,
    })
}

fn token(row: &AnyRow) -> Result<TokenRow, StoreError> {
    Ok(TokenRow {
        hash: row.try_get("hash")?,
        role: row.try_get("role")?,
        site: row.try_get("site")?,
        machine: row.try_get("machine")?,
        made_by: row.try_get("made_by")?,
        made: Timestamp::from_micros(row.try_get("made_us")?),
        expires: Timestamp::from_micros(row.try_get("expires_us")?),
        used: row.try_get::<Option<i64>, _>("used_us")?.map(Timestamp::from_micros),
        operator_role: row.try_get("operator_role")?,
        revoked: row.try_get::<i64, _>("revoked")? != 0,
    })
}

fn operator(row: &AnyRow) -> Result<OperatorRow, StoreError> {
    Ok(OperatorRow {
        name: row.try_get("name")?,
        role: row.try_get("role")?,
        revoked: row.try_get::<i64, _>("revoked")? != 0,
        denied_until: row.try_get::<Option<i64>, _>("denied_until_us")?.map(Timestamp::from_micros),
        made: Timestamp::from_micros(row.try_get("made_us")?),
        certificate_expires: row
            .try_get::<Option<i64>, _>("certificate_expires_us")?
            .map(Timestamp::from_micros),
    })
}

/// The place of the first line that does not follow from the one before it; `None`: the chain holds.
/// `lines` begin with the first line of all.
pub fn broken_at(lines: &[AuditLine]) -> Option<u64> {
    let mut before = String::new();
    for (place, line) in (1..).zip(lines) {
        if line.seq != place || line.hash != line.sum(&before) {
            return Some(place);
        }
        before.clone_from(&line.hash);
    }
    None
}
