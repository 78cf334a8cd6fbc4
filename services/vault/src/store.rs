//! The schema and its queries.
//!
//! One set of SQL for SQLite and PostgreSQL, within the subset that both take (see `migrations/`). A write
//! that must not be lost is in one transaction with what it belongs to; SQLite syncs every commit.

use continuum_model::fault::{Fault, FaultClass};
use sha2::{Digest, Sha256};
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, Executor, Row};
use std::path::Path;

/// The vault's memory.
#[derive(Clone)]
pub struct Store {
    pool: AnyPool,
}

/// An enrolment token as it is kept: never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    /// What it enrols.
    pub role: String,
    /// At which site.
    pub site: String,
    /// Bound to one machine name; empty: any.
    pub machine: String,
    /// When it ends.
    pub expires_us: i64,
}

fn failed(error: sqlx::Error) -> Fault {
    Fault::new(FaultClass::Failed, "vault.store", format!("the vault's database failed: {error}"))
        .affects("this request; nothing was changed")
        .spares("replication, which goes on without the vault")
        .remedy("see to the disk of the vault and try again")
}

impl Store {
    /// Opens the database, made and brought up to date where needed.
    pub async fn open(dir: &Path) -> Result<Self, Fault> {
        sqlx::any::install_default_drivers();
        let url = format!("sqlite://{}?mode=rwc", dir.join("vault.db").display());
        let options = AnyPoolOptions::new().max_connections(4).after_connect(|connection, _| {
            Box::pin(async move {
                for pragma in
                    ["journal_mode = WAL", "synchronous = FULL", "busy_timeout = 10000", "foreign_keys = ON"]
                {
                    connection.execute(sqlx::AssertSqlSafe(format!("PRAGMA {pragma}"))).await?;
                }
                Ok(())
            })
        });
        let pool = options.connect(&url).await.map_err(failed)?;
        sqlx::migrate!("./migrations").run(&pool).await.map_err(|error| failed(error.into()))?;
        Ok(Self { pool })
    }

    /// A value by name.
    pub async fn meta(&self, name: &str) -> Result<Option<String>, Fault> {
        let row =
            sqlx::query("SELECT value FROM meta WHERE name = $1").bind(name).fetch_optional(&self.pool).await;
        row.map_err(failed)?.map(|row| row.try_get(0)).transpose().map_err(failed)
    }

    /// Sets a value.
    pub async fn set_meta(&self, name: &str, value: &str) -> Result<(), Fault> {
        let sql = "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        sqlx::query(sql).bind(name).bind(value).execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// All sites: id, name, fabric, recovery.
    pub async fn sites(&self) -> Result<Vec<(String, String, String, bool)>, Fault> {
        let rows = sqlx::query("SELECT id, name, fabric, recovery FROM site ORDER BY name")
            .fetch_all(&self.pool)
            .await;
        let read = |row: &sqlx::any::AnyRow| {
            Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get::<i64, _>(3)? != 0))
        };
        rows.map_err(failed)?.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// Adds a site; one of this name is left as it is.
    pub async fn add_site(&self, id: &str, name: &str, fabric: &str, recovery: bool) -> Result<(), Fault> {
        let sql = "INSERT INTO site (id, name, fabric, recovery) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING";
        let query = sqlx::query(sql).bind(id).bind(name).bind(fabric).bind(i64::from(recovery));
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// All servers: id, name, role, site.
    pub async fn servers(&self) -> Result<Vec<[String; 4]>, Fault> {
        let rows = sqlx::query("SELECT id, name, role, site FROM server")
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let read = |row: &sqlx::any::AnyRow| {
            Ok([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?])
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// Adds or renames a server.
    pub async fn put_server(&self, [id, name, role, site]: [&str; 4], now_us: i64) -> Result<(), Fault> {
        let sql = "INSERT INTO server (id, name, role, site, created_us) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT (id) DO UPDATE SET name = excluded.name, site = excluded.site";
        let query = sqlx::query(sql).bind(id).bind(name).bind(role).bind(site).bind(now_us);
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// All policies: id, name, JSON.
    pub async fn policies(&self) -> Result<Vec<[String; 3]>, Fault> {
        let rows = sqlx::query("SELECT id, name, body FROM policy ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let read = |row: &sqlx::any::AnyRow| Ok([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?]);
        rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)
    }

    /// Adds or changes a policy.
    pub async fn put_policy(&self, id: &str, name: &str, body: &str) -> Result<(), Fault> {
        let sql = "INSERT INTO policy (id, name, body) VALUES ($1, $2, $3) \
                   ON CONFLICT (name) DO UPDATE SET body = excluded.body";
        sqlx::query(sql).bind(id).bind(name).bind(body).execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// All machines' JSON.
    pub async fn machines(&self) -> Result<Vec<String>, Fault> {
        let rows = sqlx::query("SELECT body FROM machine").fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
    }

    /// Writes a machine, with the event that tells of it, in one transaction.
    pub async fn put_machine(
        &self,
        id: &str,
        name: &str,
        version: i64,
        body: &str,
        event: Option<(i64, i64, &str)>,
    ) -> Result<(), Fault> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let sql = "INSERT INTO machine (id, name, version, body) VALUES ($1, $2, $3, $4) \
                   ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version, body = excluded.body";
        let query = sqlx::query(sql).bind(id).bind(name).bind(version).bind(body);
        query.execute(&mut *transaction).await.map_err(failed)?;
        if let Some((id, time_us, body)) = event {
            let query = sqlx::query("INSERT INTO event (id, time_us, body) VALUES ($1, $2, $3)")
                .bind(id)
                .bind(time_us)
                .bind(body);
            query.execute(&mut *transaction).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)
    }

    /// Forgets a machine.
    pub async fn remove_machine(&self, id: &str) -> Result<(), Fault> {
        sqlx::query("DELETE FROM machine WHERE id = $1")
            .bind(id)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed)
    }

    /// The newest jobs' JSON, oldest first.
    pub async fn jobs(&self, most: i64) -> Result<Vec<String>, Fault> {
        let rows = sqlx::query("SELECT body FROM job ORDER BY created_us DESC LIMIT $1")
            .bind(most)
            .fetch_all(&self.pool)
            .await;
        let rows = rows.map_err(failed)?;
        rows.iter().rev().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
    }

    /// Adds a job. `false`: its key is taken, by a job that is there already.
    pub async fn add_job(
        &self,
        id: &str,
        key: &str,
        state: &str,
        created_us: i64,
        body: &str,
    ) -> Result<bool, Fault> {
        let sql = "INSERT INTO job (id, order_key, state, created_us, body) VALUES ($1, $2, $3, $4, $5) \
                   ON CONFLICT (order_key) DO NOTHING";
        let query = sqlx::query(sql).bind(id).bind(key).bind(state).bind(created_us).bind(body);
        query.execute(&self.pool).await.map(|done| done.rows_affected() == 1).map_err(failed)
    }

    /// The id of the job with a key.
    pub async fn job_of_key(&self, key: &str) -> Result<Option<String>, Fault> {
        let row =
            sqlx::query("SELECT id FROM job WHERE order_key = $1").bind(key).fetch_optional(&self.pool).await;
        row.map_err(failed)?.map(|row| row.try_get(0)).transpose().map_err(failed)
    }

    /// Writes a job's progress.
    pub async fn put_job(&self, id: &str, state: &str, body: &str) -> Result<(), Fault> {
        let query =
            sqlx::query("UPDATE job SET state = $2, body = $3 WHERE id = $1").bind(id).bind(state).bind(body);
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// Open alerts, and those that were cleared since.
    pub async fn alerts(&self, cleared_since_us: i64) -> Result<Vec<String>, Fault> {
        let sql = "SELECT body FROM alert WHERE cleared_us IS NULL OR cleared_us >= $1";
        let rows = sqlx::query(sql).bind(cleared_since_us).fetch_all(&self.pool).await.map_err(failed)?;
        rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
    }

    /// Adds or changes an alert.
    pub async fn put_alert(&self, id: &str, cleared_us: Option<i64>, body: &str) -> Result<(), Fault> {
        let sql = "INSERT INTO alert (id, cleared_us, body) VALUES ($1, $2, $3) \
                   ON CONFLICT (id) DO UPDATE SET cleared_us = excluded.cleared_us, body = excluded.body";
        sqlx::query(sql)
            .bind(id)
            .bind(cleared_us)
            .bind(body)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed)
    }

    /// The newest events' JSON, oldest first.
    pub async fn events(&self, most: i64) -> Result<Vec<String>, Fault> {
        let rows = sqlx::query("SELECT body FROM event ORDER BY id DESC LIMIT $1")
            .bind(most)
            .fetch_all(&self.pool)
            .await;
        let rows = rows.map_err(failed)?;
        rows.iter().rev().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed)
    }

    /// Adds an event.
    pub async fn add_event(&self, id: i64, time_us: i64, body: &str) -> Result<(), Fault> {
        let query = sqlx::query("INSERT INTO event (id, time_us, body) VALUES ($1, $2, $3)")
            .bind(id)
            .bind(time_us)
            .bind(body);
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// Keeps a token.
    pub async fn add_token(&self, hash: &str, token: &TokenRow) -> Result<(), Fault> {
        let sql = "INSERT INTO token (hash, role, site, machine, expires_us, used_us) VALUES ($1, $2, $3, $4, $5, NULL)";
        let query = sqlx::query(sql)
            .bind(hash)
            .bind(&token.role)
            .bind(&token.site)
            .bind(&token.machine)
            .bind(token.expires_us);
        query.execute(&self.pool).await.map(drop).map_err(failed)
    }

    /// Uses up a token: exactly one caller gets it, however many try at once.
    pub async fn use_token(&self, hash: &str, now_us: i64) -> Result<Option<TokenRow>, Fault> {
        let sql = "UPDATE token SET used_us = $2 WHERE hash = $1 AND used_us IS NULL AND expires_us > $2 \
                   RETURNING role, site, machine, expires_us";
        let row =
            sqlx::query(sql).bind(hash).bind(now_us).fetch_optional(&self.pool).await.map_err(failed)?;
        let read = |row: sqlx::any::AnyRow| {
            Ok(TokenRow {
                role: row.try_get(0)?,
                site: row.try_get(1)?,
                machine: row.try_get(2)?,
                expires_us: row.try_get(3)?,
            })
        };
        row.map(read).transpose().map_err(failed)
    }

    /// Appends to the audit log; each entry holds the digest of the one before.
    pub async fn audit(&self, time_us: i64, by: &str, text: &str) -> Result<(), Fault> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
        let last = sqlx::query("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1");
        let last = last.fetch_optional(&mut *transaction).await.map_err(failed)?;
        let (number, before): (i64, String) = match last {
            Some(row) => (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?),
            None => (0, String::new()),
        };
        let number = number + 1;
        let digest = audit_digest(&before, number, time_us, by, text);
        let sql = "INSERT INTO audit (number, time_us, by_whom, text, digest) VALUES ($1, $2, $3, $4, $5)";
        let query = sqlx::query(sql).bind(number).bind(time_us).bind(by).bind(text).bind(digest);
        query.execute(&mut *transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)
    }

    /// Checks the chain of the audit log; names the first entry that does not fit.
    pub async fn audit_verify(&self) -> Result<Result<i64, i64>, Fault> {
        let rows = sqlx::query("SELECT number, time_us, by_whom, text, digest FROM audit ORDER BY number")
            .fetch_all(&self.pool)
            .await;
        let (mut before, mut expected) = (String::new(), 0);
        for row in rows.map_err(failed)? {
            expected += 1;
            let number: i64 = row.try_get(0).map_err(failed)?;
            let (by, text, digest): (String, String, String) = (
                row.try_get(2).map_err(failed)?,
                row.try_get(3).map_err(failed)?,
                row.try_get(4).map_err(failed)?,
            );
            let time_us = row.try_get(1).map_err(failed)?;
            if number != expected || audit_digest(&before, number, time_us, &by, &text) != digest {
                return Ok(Err(expected));
            }
            before = digest;
        }
        Ok(Ok(expected))
    }
}

fn audit_digest(before: &str, number: i64, time_us: i64, by: &str, text: &str) -> String {
    let mut state = Sha256::new();
    for part in [before, &number.to_string(), &time_us.to_string(), by, text] {
        state.update((part.len() as u64).to_le_bytes());
        state.update(part);
    }
    state.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_used_by_exactly_one_and_a_key_gives_one_job() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let token =
            TokenRow { role: "agent".into(), site: "a".into(), machine: String::new(), expires_us: 100 };
        store.add_token("h", &token).await.unwrap();
        assert_eq!(store.use_token("h", 101).await.unwrap(), None, "expired");
        let tries = futures::future::join_all((0..16).map(|_| store.use_token("h", 50))).await;
        assert_eq!(tries.into_iter().filter(|used| used.as_ref().unwrap().is_some()).count(), 1);
        assert_eq!(store.use_token("unknown", 50).await.unwrap(), None);
        let jobs: Vec<String> = (0..16).map(|n| format!("job{n}")).collect();
        let tries =
            futures::future::join_all(jobs.iter().map(|id| store.add_job(id, "key", "queued", 1, "{}")))
                .await;
        assert_eq!(tries.into_iter().filter(|added| *added.as_ref().unwrap()).count(), 1);
        assert!(store.job_of_key("key").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_changed_audit_entry_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        for n in 0..5 {
            store.audit(n, "ada", "did something").await.unwrap();
        }
        assert_eq!(store.audit_verify().await.unwrap(), Ok(5));
        sqlx::query("UPDATE audit SET text = 'did nothing' WHERE number = 3")
            .execute(&store.pool)
            .await
            .unwrap();
        assert_eq!(store.audit_verify().await.unwrap(), Err(3));
    }
}
