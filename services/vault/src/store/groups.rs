//! Consistency groups, and the points that their members share.

use super::news::News;
use super::{Store, StoreError, Tx, from_json, parsed, signed, to_json, unsigned};
use continuum_model::id::{MachineId, PointId};
use continuum_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::any::AnyRow;

/// Shared points that are kept in memory.
pub(crate) const POINTS_MAX: u32 = 10_000;

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupRow {
    /// Text from outside.
    pub(crate) name: String,
    /// Rises with every change.
    pub(crate) version: u64,
    pub(crate) body: GroupBody,
    pub(crate) deleted: bool,
}

/// What a group consists of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct GroupBody {
    pub(crate) machines: Vec<MachineId>,
    /// 0: only when asked.
    pub(crate) every_seconds: u64,
    pub(crate) hold_millis: u32,
}

/// A point that every machine of the group has cut while all held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupPointRow {
    pub(crate) id: PointId,
    pub(crate) group: String,
    /// The latest of its members' moments.
    pub(crate) time: Timestamp,
    pub(crate) machines: Vec<MachineId>,
}

const COLUMNS: &str = "SELECT name, version, body, deleted FROM machine_group";

fn group_of(row: &AnyRow) -> Result<GroupRow, StoreError> {
    let name: String = row.try_get(0)?;
    let body: String = row.try_get(2)?;
    Ok(GroupRow {
        version: unsigned(row.try_get(1)?),
        body: from_json(&format!("group {name}"), &body)?,
        deleted: row.try_get::<i64, _>(3)? != 0,
        name,
    })
}

impl Tx {
    /// A group, deleted ones, too.
    pub(crate) async fn group(&mut self, name: &str) -> Result<Option<GroupRow>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE name = $1")))
            .bind(name.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.as_ref().map(group_of).transpose()
    }

    /// Writes a group, new or changed.
    pub(crate) async fn save_group(&mut self, row: GroupRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO machine_group (name, version, body, deleted) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (name) DO UPDATE SET version = excluded.version, body = excluded.body, deleted = excluded.deleted",
        )
        .bind(row.name.clone())
        .bind(signed(row.version))
        .bind(to_json("group", &row.body)?)
        .bind(i64::from(row.deleted))
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::Group(row));
        Ok(())
    }

    /// Lists a point that all have cut. One that is listed stays as it is.
    pub(crate) async fn add_group_point(&mut self, row: GroupPointRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO group_point (id, machine_group, time_us, machines) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
        )
        .bind(row.id.to_string())
        .bind(row.group.clone())
        .bind(row.time.micros())
        .bind(to_json("group point", &row.machines)?)
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::GroupPoint(row));
        Ok(())
    }

    /// Forgets the shared points of a group before a moment.
    pub(crate) async fn forget_group_points(
        &mut self,
        group: &str,
        before: Timestamp,
    ) -> Result<(), StoreError> {
        let gone = sqlx::query("DELETE FROM group_point WHERE machine_group = $1 AND time_us < $2")
            .bind(group.to_owned())
            .bind(before.micros())
            .execute(&mut *self.inner)
            .await?;
        if gone.rows_affected() > 0 {
            self.news.push(News::GroupPointsGone { group: group.to_owned(), before });
        }
        Ok(())
    }
}

impl Store {
    /// All groups that were not deleted.
    pub(crate) async fn groups(&self) -> Result<Vec<GroupRow>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE deleted = 0 ORDER BY name")))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(group_of).collect()
    }

    /// The newest shared points.
    pub(crate) async fn group_points(&self) -> Result<Vec<GroupPointRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, machine_group, time_us, machines FROM group_point ORDER BY time_us DESC LIMIT $1",
        )
        .bind(i64::from(POINTS_MAX))
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                let (id, machines): (String, String) = (row.try_get(0)?, row.try_get(3)?);
                Ok(GroupPointRow {
                    id: parsed("point id", &id)?,
                    group: row.try_get(1)?,
                    time: Timestamp::from_micros(row.try_get(2)?),
                    machines: from_json("group point", &machines)?,
                })
            })
            .collect()
    }
}
