//! Versions of policies and plans: who changed one, when, to what.
//!
//! Only ever added to. A body is YAML that can be applied again; an empty one says that it was deleted.

use super::{Store, StoreError, Tx, signed, unsigned};
use continuum_model::time::Timestamp;
use sqlx::Row;

/// Most versions that are told of one object.
const TOLD_MAX: i64 = 500;

/// One version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionRow {
    /// `policy` or `plan`.
    pub(crate) kind: &'static str,
    /// What stays when the name changes: a policy's id, a plan's name.
    pub(crate) object: String,
    pub(crate) version: u64,
    pub(crate) name: String,
    pub(crate) body: String,
    /// Who changed it; empty where that was not written down.
    pub(crate) by: String,
    pub(crate) at: Timestamp,
}

impl Tx {
    /// Adds a version, unless there is one of that number.
    pub(crate) async fn add_version(&mut self, row: &VersionRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO version (kind, object, version, name, body, actor, at_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (kind, object, version) DO NOTHING",
        )
        .bind(row.kind)
        .bind(row.object.clone())
        .bind(signed(row.version))
        .bind(row.name.clone())
        .bind(row.body.clone())
        .bind(row.by.clone())
        .bind(row.at.micros())
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }
}

impl Store {
    /// The versions of what has this id, or ever had this name; newest first.
    pub(crate) async fn versions(
        &self,
        kind: &'static str,
        name: &str,
    ) -> Result<Vec<VersionRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT object, version, name, body, actor, at_us FROM version WHERE kind = $1 AND object IN \
             (SELECT object FROM version WHERE kind = $1 AND (name = $2 OR object = $2)) \
             ORDER BY at_us DESC, version DESC LIMIT $3",
        )
        .bind(kind)
        .bind(name.to_owned())
        .bind(TOLD_MAX)
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(VersionRow {
                    kind,
                    object: row.try_get(0)?,
                    version: unsigned(row.try_get(1)?),
                    name: row.try_get(2)?,
                    body: row.try_get(3)?,
                    by: row.try_get(4)?,
                    at: Timestamp::from_micros(row.try_get(5)?),
                })
            })
            .collect()
    }
}
