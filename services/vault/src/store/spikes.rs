//! Times in which a machine's RPO was far above the usual, with their cause. The newest ones are kept.

use super::{Store, StoreError, Tx, from_json, parsed, to_json};
use crate::truth::{Hop, SPIKES_KEPT};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use sqlx::Row;

/// A spike.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SpikeRow {
    pub(crate) machine: MachineId,
    /// The last moment before it that could be brought up.
    pub(crate) started: Timestamp,
    /// `None`: it goes on, and is not stored yet.
    pub(crate) ended: Option<Timestamp>,
    pub(crate) worst_seconds: f64,
    pub(crate) hop: Hop,
    /// In words; names in it are harmless already.
    pub(crate) cause: String,
}

impl Tx {
    /// Writes a spike that ended, and forgets what is too much.
    pub(crate) async fn save_spike(&mut self, row: &SpikeRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO spike (machine, started_us, ended_us, worst_ms, hop, cause) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (machine, started_us) DO UPDATE SET ended_us = excluded.ended_us, \
             worst_ms = excluded.worst_ms, hop = excluded.hop, cause = excluded.cause",
        )
        .bind(row.machine.to_string())
        .bind(row.started.micros())
        .bind(row.ended.unwrap_or(row.started).micros())
        .bind((row.worst_seconds * 1000.0) as i64)
        .bind(to_json("hop", &row.hop)?)
        .bind(row.cause.clone())
        .execute(&mut *self.inner)
        .await?;
        sqlx::query(
            "DELETE FROM spike WHERE machine = $1 AND started_us NOT IN \
             (SELECT started_us FROM spike WHERE machine = $1 ORDER BY started_us DESC LIMIT $2)",
        )
        .bind(row.machine.to_string())
        .bind(SPIKES_KEPT as i64)
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }
}

impl Store {
    /// All spikes, newest first.
    pub(crate) async fn spikes(&self) -> Result<Vec<SpikeRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT machine, started_us, ended_us, worst_ms, hop, cause FROM spike ORDER BY started_us DESC",
        )
        .fetch_all(self.pool())
        .await?;
        rows.iter()
            .map(|row| {
                Ok(SpikeRow {
                    machine: parsed("machine id", row.try_get(0)?)?,
                    started: Timestamp::from_micros(row.try_get(1)?),
                    ended: Some(Timestamp::from_micros(row.try_get(2)?)),
                    worst_seconds: row.try_get::<i64, _>(3)? as f64 / 1000.0,
                    hop: from_json("hop", row.try_get(4)?)?,
                    cause: row.try_get(5)?,
                })
            })
            .collect()
    }
}
