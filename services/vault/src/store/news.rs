//! What a commit makes known; events and alerts.

use super::{Store, StoreError, Tx, groups, inventory, jobs, parsed, plans, signed, unsigned};
use continuum_model::id::AlertId;
use continuum_model::time::Timestamp;
use sqlx::Row;
use sqlx::any::AnyRow;

/// One thing that a commit changed.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Site(inventory::SiteRow),
    Policy(inventory::PolicyRow),
    PolicyGone(inventory::PolicyRow),
    Plan(Box<plans::PlanRow>),
    Group(groups::GroupRow),
    GroupPoint(groups::GroupPointRow),
    /// Those of a group before this moment.
    GroupPointsGone {
        group: String,
        before: Timestamp,
    },
    Server(inventory::ServerRow),
    Machine(Box<inventory::MachineRow>),
    Job(Box<jobs::JobRow>),
    Alert(AlertRow),
    Event(EventRow),
}

/// Something that happened. Texts may hold names from outside, raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EventRow {
    pub(crate) id: u64,
    pub(crate) time: Timestamp,
    pub(crate) kind: String,
    pub(crate) object: String,
    pub(crate) object_id: String,
    pub(crate) text: String,
    pub(crate) by: String,
}

/// An alert, open or cleared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlertRow {
    pub(crate) id: AlertId,
    pub(crate) severity: String,
    pub(crate) code: String,
    pub(crate) object_kind: String,
    pub(crate) object: String,
    pub(crate) object_id: String,
    pub(crate) opened: Timestamp,
    pub(crate) cleared: Option<Timestamp>,
    pub(crate) text: String,
    pub(crate) cause: String,
    pub(crate) remedy: String,
    pub(crate) acknowledged: bool,
}

impl Tx {
    /// Adds an event; its number is given here.
    pub(crate) async fn add_event(&mut self, mut event: EventRow) -> Result<(), StoreError> {
        let row = sqlx::query("SELECT CAST(COALESCE(MAX(id), 0) AS BIGINT) FROM event")
            .fetch_one(&mut *self.inner)
            .await?;
        event.id = unsigned(row.try_get(0)?) + 1;
        sqlx::query(
            "INSERT INTO event (id, time_us, kind, object, object_id, what, actor) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(signed(event.id))
        .bind(event.time.micros())
        .bind(event.kind.clone())
        .bind(event.object.clone())
        .bind(event.object_id.clone())
        .bind(event.text.clone())
        .bind(event.by.clone())
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::Event(event));
        Ok(())
    }

    /// Writes an alert, new or changed.
    pub(crate) async fn save_alert(&mut self, alert: AlertRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO alert (id, severity, code, object_kind, object, object_id, opened_us, cleared_us, what, cause, \
             remedy, acknowledged) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
             ON CONFLICT (id) DO UPDATE SET severity = excluded.severity, cleared_us = excluded.cleared_us, \
             what = excluded.what, cause = excluded.cause, remedy = excluded.remedy, acknowledged = excluded.acknowledged",
        )
        .bind(alert.id.to_string())
        .bind(alert.severity.clone())
        .bind(alert.code.clone())
        .bind(alert.object_kind.clone())
        .bind(alert.object.clone())
        .bind(alert.object_id.clone())
        .bind(alert.opened.micros())
        .bind(alert.cleared.map(Timestamp::micros))
        .bind(alert.text.clone())
        .bind(alert.cause.clone())
        .bind(alert.remedy.clone())
        .bind(i64::from(alert.acknowledged))
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::Alert(alert));
        Ok(())
    }
}

impl Tx {
    /// Forgets events and cleared alerts before one moment, and idempotency keys and tokens before another.
    pub(crate) async fn forget_news(&mut self, news: Timestamp, keys: Timestamp) -> Result<(), StoreError> {
        for (sql, before) in [
            ("DELETE FROM event WHERE time_us < $1", news),
            ("DELETE FROM alert WHERE cleared_us < $1", news),
            ("DELETE FROM order_key WHERE made_us < $1", keys),
            ("DELETE FROM token WHERE expires_us < $1", keys),
        ] {
            sqlx::query(sql).bind(before.micros()).execute(&mut *self.inner).await?;
        }
        Ok(())
    }
}

impl Store {
    /// The newest events, oldest first.
    pub(crate) async fn events(&self, most: u32) -> Result<Vec<EventRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, time_us, kind, object, object_id, what, actor FROM event ORDER BY id DESC LIMIT $1",
        )
        .bind(i64::from(most))
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .rev()
            .map(|row| {
                Ok(EventRow {
                    id: unsigned(row.try_get(0)?),
                    time: Timestamp::from_micros(row.try_get(1)?),
                    kind: row.try_get(2)?,
                    object: row.try_get(3)?,
                    object_id: row.try_get(4)?,
                    text: row.try_get(5)?,
                    by: row.try_get(6)?,
                })
            })
            .collect()
    }

    /// Open alerts and the newest of the cleared ones.
    pub(crate) async fn alerts(&self, most_cleared: u32) -> Result<Vec<AlertRow>, StoreError> {
        let open = sqlx::query("SELECT * FROM alert WHERE cleared_us IS NULL").fetch_all(self.pool()).await?;
        let cleared =
            sqlx::query("SELECT * FROM alert WHERE cleared_us IS NOT NULL ORDER BY cleared_us DESC LIMIT $1")
                .bind(i64::from(most_cleared))
                .fetch_all(self.pool())
                .await?;
        open.iter().chain(&cleared).map(alert).collect()
    }
}

fn alert(row: &AnyRow) -> Result<AlertRow, StoreError> {
    Ok(AlertRow {
        id: parsed("alert id", row.try_get("id")?)?,
        severity: row.try_get("severity")?,
        code: row.try_get("code")?,
        object_kind: row.try_get("object_kind")?,
        object: row.try_get("object")?,
        object_id: row.try_get("object_id")?,
        opened: Timestamp::from_micros(row.try_get("opened_us")?),
        cleared: row.try_get::<Option<i64>, _>("cleared_us")?.map(Timestamp::from_micros),
        text: row.try_get("what")?,
        cause: row.try_get("cause")?,
        remedy: row.try_get("remedy")?,
        acknowledged: row.try_get::<i64, _>("acknowledged")? != 0,
    })
}
