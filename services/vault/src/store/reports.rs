//! Reports of drills and failovers: written once, chained, never changed.
//!
//! Lives elsewhere: what one says and how it is chained (`model::report`), making one (`crate::report`).

use super::{Store, StoreError, Tx, signed, unsigned};
use continuum_model::report::Report;
use continuum_model::time::Timestamp;
use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row};

/// A report, and what a list shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReportRow {
    pub(crate) sequence: u64,
    pub(crate) job: String,
    pub(crate) kind: String,
    /// Text from outside.
    pub(crate) subject: String,
    pub(crate) made: Timestamp,
    pub(crate) outcome: String,
    pub(crate) passed: bool,
    pub(crate) digest: String,
    /// JSON; empty in lists.
    pub(crate) body: String,
}

const COLUMNS: &str = "seq, job, kind, subject, made_us, outcome, passed, digest";

fn report_of(row: &AnyRow, with_body: bool) -> Result<ReportRow, StoreError> {
    Ok(ReportRow {
        sequence: unsigned(row.try_get(0)?),
        job: row.try_get(1)?,
        kind: row.try_get(2)?,
        subject: row.try_get(3)?,
        made: Timestamp::from_micros(row.try_get(4)?),
        outcome: row.try_get(5)?,
        passed: row.try_get::<i64, _>(6)? != 0,
        digest: row.try_get(7)?,
        body: if with_body { row.try_get(8)? } else { String::new() },
    })
}

impl Tx {
    /// The place and digest of the newest report; nothing where there is none.
    pub(crate) async fn last_report(&mut self) -> Result<(u64, String), StoreError> {
        let row = sqlx::query("SELECT seq, digest FROM report ORDER BY seq DESC LIMIT 1")
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map_or(Ok((0, String::new())), |row| Ok((unsigned(row.try_get(0)?), row.try_get(1)?)))
    }

    /// Adds a sealed report.
    pub(crate) async fn add_report(&mut self, report: &Report) -> Result<(), StoreError> {
        sqlx::query(AssertSqlSafe(format!(
            "INSERT INTO report ({COLUMNS}, body) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        )))
        .bind(signed(report.sequence))
        .bind(report.run.clone())
        .bind(report.kind.clone())
        .bind(report.subject.clone())
        .bind(report.ended_us)
        .bind(report.outcome.clone())
        .bind(i64::from(report.passed))
        .bind(report.digest.clone())
        .bind(super::to_json("report", report)?)
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }
}

impl Store {
    /// The newest report of a job, or of a subject.
    pub(crate) async fn report(&self, name: &str) -> Result<Option<ReportRow>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS}, body FROM report WHERE job = $1 OR subject = $1 ORDER BY seq DESC LIMIT 1"
        )))
        .bind(name.to_owned())
        .fetch_optional(self.pool())
        .await?;
        row.map(|row| report_of(&row, true)).transpose()
    }

    /// The newest reports, newest first, without their bodies.
    pub(crate) async fn reports(&self, most: u32) -> Result<Vec<ReportRow>, StoreError> {
        let rows =
            sqlx::query(AssertSqlSafe(format!("SELECT {COLUMNS} FROM report ORDER BY seq DESC LIMIT $1")))
                .bind(i64::from(most))
                .fetch_all(self.pool())
                .await?;
        rows.iter().map(|row| report_of(row, false)).collect()
    }
}
