//! Migrations: one folder of SQL for both databases.
//!
//! Lives here: the dialect, and what was applied. Lives elsewhere: the tables (`migrations/*.sql`).
//! SQLite gets STRICT tables, so that it refuses what PostgreSQL would refuse.

use super::StoreError;
use sha2::{Digest, Sha256};
use sqlx::{AnyConnection, AssertSqlSafe, Executor, Row};

/// Which database is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

const MIGRATIONS: [(i64, &str); 6] = [
    (1, include_str!("../../migrations/0001_vault.sql")),
    (2, include_str!("../../migrations/0002_plan.sql")),
    (3, include_str!("../../migrations/0003_report.sql")),
    (4, include_str!("../../migrations/0004_spike.sql")),
    (5, include_str!("../../migrations/0005_group.sql")),
    (6, include_str!("../../migrations/0006_versions.sql")),
];

impl Dialect {
    fn text(self, sql: &str) -> String {
        match self {
            Self::Postgres => sql.to_owned(),
            Self::Sqlite => sql.replace(" BIGINT", " INTEGER").replace("\n);", "\n) STRICT;"),
        }
    }

    /// How a transaction that will write begins. On SQLite the right to write is taken at once: one that
    /// reads first and then writes would fail whenever another wrote in between.
    pub(crate) const fn begin(self) -> &'static str {
        match self {
            Self::Sqlite => "BEGIN IMMEDIATE",
            Self::Postgres => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        }
    }
}

/// Brings the schema up to what this program knows. Runs inside the caller's transaction.
///
/// Errors: [`StoreError::Newer`] where a newer program has been here; nothing is touched.
pub(crate) async fn migrate(connection: &mut AnyConnection, dialect: Dialect) -> Result<(), StoreError> {
    let table = "CREATE TABLE IF NOT EXISTS schema_migration (\n  version BIGINT NOT NULL PRIMARY KEY,\n  sum TEXT NOT NULL\n);";
    connection.execute(AssertSqlSafe(dialect.text(table))).await?;
    let applied = sqlx::query("SELECT version, sum FROM schema_migration ORDER BY version")
        .fetch_all(&mut *connection)
        .await?;
    for row in &applied {
        let (version, sum): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        match MIGRATIONS.iter().find(|(known, _)| *known == version) {
            None => return Err(StoreError::Newer { version }),
            Some((_, sql)) if sum_of(sql) != sum => {
                return Err(StoreError::Corrupt {
                    what: format!("migration {version}"),
                    reason: "it is not the one that was applied".into(),
                });
            }
            Some(_) => {}
        }
    }
    for (version, sql) in MIGRATIONS.iter().skip(applied.len()) {
        for statement in statements(&dialect.text(sql)) {
            connection.execute(AssertSqlSafe(statement)).await?;
        }
        sqlx::query("INSERT INTO schema_migration (version, sum) VALUES ($1, $2)")
            .bind(*version)
            .bind(sum_of(sql))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// Single statements without their comments: PostgreSQL's extended protocol takes one at a time.
fn statements(sql: &str) -> Vec<String> {
    let bare: String =
        sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
    bare.split(";\n")
        .map(|part| part.trim().trim_end_matches(';').to_owned())
        .filter(|part| !part.is_empty())
        .collect()
}

fn sum_of(sql: &str) -> String {
    super::hex(&Sha256::digest(sql.as_bytes()))
}
