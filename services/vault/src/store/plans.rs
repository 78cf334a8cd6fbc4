//! Recovery plans: their text, and how their last drill went.

use super::news::News;
use super::{Store, StoreError, Tx, signed, unsigned};
use continuum_model::recovery_plan::Plan;
use continuum_model::time::Timestamp;
use sqlx::Row;
use sqlx::any::AnyRow;
use std::time::Duration;

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlanRow {
    /// Text from outside, as everything in it.
    pub(crate) name: String,
    /// Rises with every change of its text.
    pub(crate) version: u64,
    /// YAML, as it was applied.
    pub(crate) text: String,
    /// The same, read.
    pub(crate) plan: Plan,
    pub(crate) deleted: bool,
    pub(crate) last_drill: Option<DrillRow>,
}

/// How a drill went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DrillRow {
    pub(crate) at: Timestamp,
    pub(crate) passed: bool,
    /// Until the last machine answered.
    pub(crate) took: Option<Duration>,
}

const COLUMNS: &str =
    "SELECT name, version, body, deleted, last_drill_us, last_drill_passed, last_drill_took_us FROM plan";

fn plan_of(row: &AnyRow) -> Result<PlanRow, StoreError> {
    let (name, text): (String, String) = (row.try_get(0)?, row.try_get(2)?);
    let plan = crate::plans::parse(&text)
        .map_err(|fault| StoreError::Corrupt { what: format!("plan {name}"), reason: fault.message })?;
    let (at, took): (Option<i64>, Option<i64>) = (row.try_get(4)?, row.try_get(6)?);
    let passed = row.try_get::<i64, _>(5)? != 0;
    let drill = |at| DrillRow {
        at: Timestamp::from_micros(at),
        passed,
        took: took.map(|took| Duration::from_micros(unsigned(took))),
    };
    Ok(PlanRow {
        name,
        version: unsigned(row.try_get(1)?),
        text,
        plan,
        deleted: row.try_get::<i64, _>(3)? != 0,
        last_drill: at.map(drill),
    })
}

impl Tx {
    /// A plan, deleted ones, too.
    pub(crate) async fn plan(&mut self, name: &str) -> Result<Option<PlanRow>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE name = $1")))
            .bind(name.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.as_ref().map(plan_of).transpose()
    }

    /// Writes a plan, new or changed.
    pub(crate) async fn save_plan(&mut self, row: PlanRow) -> Result<(), StoreError> {
        let took = row.last_drill.and_then(|drill| drill.took);
        sqlx::query(
            "INSERT INTO plan (name, version, body, deleted, last_drill_us, last_drill_passed, last_drill_took_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (name) DO UPDATE SET version = excluded.version, body = excluded.body, \
             deleted = excluded.deleted, last_drill_us = excluded.last_drill_us, \
             last_drill_passed = excluded.last_drill_passed, last_drill_took_us = excluded.last_drill_took_us",
        )
        .bind(row.name.clone())
        .bind(signed(row.version))
        .bind(row.text.clone())
        .bind(i64::from(row.deleted))
        .bind(row.last_drill.map(|drill| drill.at.micros()))
        .bind(i64::from(row.last_drill.is_some_and(|drill| drill.passed)))
        .bind(took.and_then(|took| i64::try_from(took.as_micros()).ok()))
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::Plan(Box::new(row)));
        Ok(())
    }
}

impl Store {
    /// All plans that were not deleted.
    pub(crate) async fn plans(&self) -> Result<Vec<PlanRow>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE deleted = 0 ORDER BY name")))
            .fetch_all(self.pool())
            .await?;
        rows.iter().map(plan_of).collect()
    }
}
