//! Sites, servers, policies, machines with their disks and protection, and points.
//!
//! A machine is one aggregate: row, disks and protection are read together and written together, under the
//! machine's version.

use super::news::News;
use super::{Store, StoreError, Tx, from_json, parsed, signed, to_json, unsigned};
use continuum_model::id::{DiskId, JobId, MachineId, PointId, PolicyId, ServerId, SiteId, ViewId};
use continuum_model::point::PointKind;
use continuum_model::policy::Policy;
use continuum_model::protection::{FailoverKind, ProtectionState, TestState};
use continuum_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use std::collections::BTreeMap;

/// A site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SiteRow {
    pub(crate) id: SiteId,
    pub(crate) name: String,
    pub(crate) fabric: String,
    pub(crate) recovery: bool,
}

/// A server; an agent stands here under the id of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerRow {
    pub(crate) id: ServerId,
    pub(crate) role: String,
    pub(crate) name: String,
    pub(crate) site: SiteId,
    pub(crate) version: String,
    pub(crate) address: String,
    pub(crate) enrolled: Timestamp,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) certificate_expires: Timestamp,
    pub(crate) revoked: bool,
    /// Its certificates that were issued up to here are refused.
    pub(crate) denied_until: Option<Timestamp>,
}

/// A policy under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PolicyRow {
    pub(crate) id: PolicyId,
    pub(crate) name: String,
    pub(crate) policy: Policy,
    /// Rises with every change.
    pub(crate) version: u64,
}

/// A machine with its disks and its protection.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MachineRow {
    pub(crate) id: MachineId,
    /// As it was read; rises with every write.
    pub(crate) version: u64,
    /// Text from outside.
    pub(crate) name: String,
    pub(crate) site: SiteId,
    pub(crate) fabric: String,
    pub(crate) guest: String,
    /// The newest epoch that was issued. Never goes back.
    pub(crate) epoch: u64,
    pub(crate) last_drill: Option<Timestamp>,
    pub(crate) last_drill_passed: bool,
    pub(crate) disks: Vec<DiskRow>,
    pub(crate) protection: Option<Protection>,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskRow {
    pub(crate) id: DiskId,
    pub(crate) index: u16,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
}

/// A protection, as it stands in `protection.body`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Protection {
    pub(crate) state: ProtectionState,
    /// Since when it is in this state.
    pub(crate) since: Timestamp,
    pub(crate) policy: PolicyId,
    pub(crate) target_site: SiteId,
    pub(crate) process_server: ServerId,
    pub(crate) master_target: ServerId,
    /// The source must not write under the old epoch: it is told so.
    pub(crate) fenced: bool,
    pub(crate) test: TestState,
    pub(crate) test_run: Option<BroughtUp>,
    pub(crate) failed_over: Option<BroughtUp>,
    /// The agent's doubt that was already answered by a resync: boot id and text.
    pub(crate) answered_doubt: Option<String>,
    /// When the first copy begins, while it waits for that.
    #[serde(default)]
    pub(crate) start_at: Option<Timestamp>,
    /// The resync does not wait for its window.
    #[serde(default)]
    pub(crate) resync_now: bool,
}

/// A replica that was brought up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BroughtUp {
    pub(crate) job: JobId,
    pub(crate) view: ViewId,
    pub(crate) kind: Option<FailoverKind>,
    pub(crate) at: Timestamp,
    pub(crate) point: Option<PointRow>,
    pub(crate) disks: Vec<ServedDisk>,
    pub(crate) probes: Vec<ProbeRow>,
    /// What was brought up before another point was chosen; stopped, and kept until the choice is final.
    #[serde(default)]
    pub(crate) former: Vec<ViewId>,
}

/// A disk as it was brought up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServedDisk {
    pub(crate) id: String,
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) endpoint: String,
}

/// The answer of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProbeRow {
    pub(crate) name: String,
    pub(crate) passed: bool,
    pub(crate) detail: String,
}

/// A recovery point; without an id it is a moment between points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PointRow {
    pub(crate) id: Option<PointId>,
    pub(crate) time: Timestamp,
    pub(crate) position: u64,
    pub(crate) kind: PointKind,
    pub(crate) name: String,
    pub(crate) pinned: bool,
    pub(crate) booted: Option<bool>,
    pub(crate) probed: Option<bool>,
    pub(crate) digest_equal: Option<bool>,
}

impl Tx {
    /// Adds a site.
    pub(crate) async fn add_site(&mut self, site: SiteRow) -> Result<(), StoreError> {
        sqlx::query("INSERT INTO site (id, name, fabric, recovery) VALUES ($1, $2, $3, $4)")
            .bind(site.id.to_string())
            .bind(site.name.clone())
            .bind(site.fabric.clone())
            .bind(i64::from(site.recovery))
            .execute(&mut *self.inner)
            .await?;
        self.news.push(News::Site(site));
        Ok(())
    }

    /// Writes a policy, new or changed. `false`: it is not the version before this one any more.
    pub(crate) async fn save_policy(&mut self, row: PolicyRow) -> Result<bool, StoreError> {
        let written = sqlx::query(
            "INSERT INTO policy (id, name, body, version) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, body = excluded.body, \
             version = excluded.version WHERE policy.version = excluded.version - 1",
        )
        .bind(row.id.to_string())
        .bind(row.name.clone())
        .bind(to_json("policy", &row.policy)?)
        .bind(signed(row.version))
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::Policy(row));
        Ok(written.rows_affected() == 1)
    }

    /// Removes a policy. `false`: it is another version by now.
    pub(crate) async fn delete_policy(&mut self, row: &PolicyRow) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM policy WHERE id = $1 AND version = $2")
            .bind(row.id.to_string())
            .bind(signed(row.version))
            .execute(&mut *self.inner)
            .await?;
        self.news.push(News::PolicyGone(row.clone()));
        Ok(gone.rows_affected() == 1)
    }

    /// Whether a protection names the policy.
    pub(crate) async fn policy_is_used(&mut self, id: PolicyId) -> Result<bool, StoreError> {
        let rows = sqlx::query("SELECT body FROM protection").fetch_all(&mut *self.inner).await?;
        for row in rows {
            let protection: Protection = from_json("protection", row.try_get(0)?)?;
            if protection.policy == id {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes a server, new or changed.
    pub(crate) async fn save_server(&mut self, row: ServerRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO server (id, role, name, site, version, address, enrolled_us, last_seen_us, \
             certificate_expires_us, revoked, denied_until_us) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, site = excluded.site, version = excluded.version, \
             address = excluded.address, enrolled_us = excluded.enrolled_us, last_seen_us = excluded.last_seen_us, \
             certificate_expires_us = excluded.certificate_expires_us, revoked = excluded.revoked, \
             denied_until_us = excluded.denied_until_us",
        )
        .bind(row.id.to_string())
        .bind(row.role.clone())
        .bind(row.name.clone())
        .bind(row.site.to_string())
        .bind(row.version.clone())
        .bind(row.address.clone())
        .bind(row.enrolled.micros())
        .bind(row.last_seen.map(Timestamp::micros))
        .bind(row.certificate_expires.micros())
        .bind(i64::from(row.revoked))
        .bind(row.denied_until.map(Timestamp::micros))
        .execute(&mut *self.inner)
        .await?;
        self.news.push(News::Server(row));
        Ok(())
    }

    /// The server of a role and name.
    pub(crate) async fn server_named(
        &mut self,
        role: &str,
        name: &str,
    ) -> Result<Option<ServerRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM server WHERE role = $1 AND name = $2")
            .bind(role.to_owned())
            .bind(name.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| server(&row)).transpose()
    }

    /// The server of an id.
    pub(crate) async fn server(&mut self, id: ServerId) -> Result<Option<ServerRow>, StoreError> {
        let row = sqlx::query("SELECT * FROM server WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| server(&row)).transpose()
    }

    /// All servers, as this transaction sees them.
    pub(crate) async fn servers(&mut self) -> Result<Vec<ServerRow>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM server ORDER BY role, name").fetch_all(&mut *self.inner).await?;
        rows.iter().map(server).collect()
    }

    /// The machine of an id, with all that belongs to it.
    pub(crate) async fn machine(&mut self, id: MachineId) -> Result<Option<MachineRow>, StoreError> {
        Ok(machines(&mut self.inner, Some(id)).await?.pop())
    }

    /// The machine of a name, exactly.
    pub(crate) async fn machine_named(&mut self, name: &str) -> Result<Option<MachineRow>, StoreError> {
        let row = sqlx::query("SELECT id FROM machine WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        match row {
            Some(row) => self.machine(parsed("machine id", row.try_get(0)?)?).await,
            None => Ok(None),
        }
    }

    /// Adds a machine; its version becomes 1.
    pub(crate) async fn add_machine(&mut self, mut row: MachineRow) -> Result<MachineRow, StoreError> {
        row.version = 1;
        sqlx::query(
            "INSERT INTO machine (id, version, name, site, fabric, guest, epoch, last_drill_us, last_drill_passed) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(row.id.to_string())
        .bind(1i64)
        .bind(row.name.clone())
        .bind(row.site.to_string())
        .bind(row.fabric.clone())
        .bind(row.guest.clone())
        .bind(signed(row.epoch))
        .bind(row.last_drill.map(Timestamp::micros))
        .bind(i64::from(row.last_drill_passed))
        .execute(&mut *self.inner)
        .await?;
        self.save_parts(&row).await?;
        self.news.push(News::Machine(Box::new(row.clone())));
        Ok(row)
    }

    /// Writes a machine that was read in this transaction or before. Its version rises.
    ///
    /// Errors: [`StoreError::Changed`] where somebody else wrote it since it was read.
    pub(crate) async fn save_machine(&mut self, mut row: MachineRow) -> Result<MachineRow, StoreError> {
        let written = sqlx::query(
            "UPDATE machine SET version = version + 1, name = $1, site = $2, fabric = $3, guest = $4, epoch = $5, \
             last_drill_us = $6, last_drill_passed = $7 WHERE id = $8 AND version = $9",
        )
        .bind(row.name.clone())
        .bind(row.site.to_string())
        .bind(row.fabric.clone())
        .bind(row.guest.clone())
        .bind(signed(row.epoch))
        .bind(row.last_drill.map(Timestamp::micros))
        .bind(i64::from(row.last_drill_passed))
        .bind(row.id.to_string())
        .bind(signed(row.version))
        .execute(&mut *self.inner)
        .await?;
        if written.rows_affected() != 1 {
            return Err(StoreError::Changed { what: "the machine".into() });
        }
        row.version += 1;
        self.save_parts(&row).await?;
        self.news.push(News::Machine(Box::new(row.clone())));
        Ok(row)
    }

    async fn save_parts(&mut self, row: &MachineRow) -> Result<(), StoreError> {
        let machine = row.id.to_string();
        sqlx::query("DELETE FROM disk WHERE machine = $1")
            .bind(machine.clone())
            .execute(&mut *self.inner)
            .await?;
        for disk in &row.disks {
            sqlx::query(
                "INSERT INTO disk (id, machine, place, name, size_bytes) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(disk.id.to_string())
            .bind(machine.clone())
            .bind(i64::from(disk.index))
            .bind(disk.name.clone())
            .bind(signed(disk.size_bytes))
            .execute(&mut *self.inner)
            .await?;
        }
        match &row.protection {
            Some(protection) => {
                sqlx::query(
                    "INSERT INTO protection (machine, state, body) VALUES ($1, $2, $3) \
                     ON CONFLICT (machine) DO UPDATE SET state = excluded.state, body = excluded.body",
                )
                .bind(machine)
                .bind(protection.state.name())
                .bind(to_json("protection", protection)?)
                .execute(&mut *self.inner)
                .await?;
            }
            None => {
                sqlx::query("DELETE FROM protection WHERE machine = $1")
                    .bind(machine)
                    .execute(&mut *self.inner)
                    .await?;
            }
        }
        Ok(())
    }

    /// Records a point, or what became known of it. Returns whether it was new.
    pub(crate) async fn save_point(
        &mut self,
        machine: MachineId,
        point: &PointRow,
    ) -> Result<bool, StoreError> {
        let Some(id) = point.id else { return Ok(false) };
        let flag = |value: Option<bool>| value.map(i64::from);
        let inserted = sqlx::query(
            "INSERT INTO point (machine, id, time_us, position, kind, name, pinned, booted, probed, digest_equal) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (machine, id) DO NOTHING",
        )
        .bind(machine.to_string())
        .bind(id.to_string())
        .bind(point.time.micros())
        .bind(signed(point.position))
        .bind(point.kind.name())
        .bind(point.name.clone())
        .bind(i64::from(point.pinned))
        .bind(flag(point.booted))
        .bind(flag(point.probed))
        .bind(flag(point.digest_equal))
        .execute(&mut *self.inner)
        .await?;
        if inserted.rows_affected() == 0 {
            sqlx::query(
                "UPDATE point SET pinned = $1, booted = COALESCE($2, booted), probed = COALESCE($3, probed), \
                 digest_equal = COALESCE($4, digest_equal) WHERE machine = $5 AND id = $6",
            )
            .bind(i64::from(point.pinned))
            .bind(flag(point.booted))
            .bind(flag(point.probed))
            .bind(flag(point.digest_equal))
            .bind(machine.to_string())
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?;
        }
        Ok(inserted.rows_affected() == 1)
    }

    /// Forgets points after a moment, up to another. Pinned ones stay.
    pub(crate) async fn forget_thinned(
        &mut self,
        machine: MachineId,
        after: Timestamp,
        to: Timestamp,
    ) -> Result<u64, StoreError> {
        let query = sqlx::query(
            "DELETE FROM point WHERE machine = $1 AND time_us > $2 AND time_us <= $3 AND pinned = 0",
        );
        let query = query.bind(machine.to_string()).bind(after.micros()).bind(to.micros());
        Ok(query.execute(&mut *self.inner).await?.rows_affected())
    }

    /// Forgets points before a moment; `None`: all. Pinned ones stay unless all go.
    pub(crate) async fn forget_points(
        &mut self,
        machine: MachineId,
        before: Option<Timestamp>,
    ) -> Result<u64, StoreError> {
        let query = match before {
            Some(before) => {
                sqlx::query("DELETE FROM point WHERE machine = $1 AND time_us < $2 AND pinned = 0")
                    .bind(machine.to_string())
                    .bind(before.micros())
            }
            None => sqlx::query("DELETE FROM point WHERE machine = $1").bind(machine.to_string()),
        };
        Ok(query.execute(&mut *self.inner).await?.rows_affected())
    }
}

impl Store {
    /// All sites.
    pub(crate) async fn sites(&self) -> Result<Vec<SiteRow>, StoreError> {
        let rows = sqlx::query("SELECT id, name, fabric, recovery FROM site ORDER BY name")
            .fetch_all(self.pool())
            .await?;
        rows.iter()
            .map(|row| {
                Ok(SiteRow {
                    id: parsed("site id", row.try_get(0)?)?,
                    name: row.try_get(1)?,
                    fabric: row.try_get(2)?,
                    recovery: row.try_get::<i64, _>(3)? != 0,
                })
            })
            .collect()
    }

    /// All policies.
    pub(crate) async fn policies(&self) -> Result<Vec<PolicyRow>, StoreError> {
        let rows = sqlx::query("SELECT id, name, body, version FROM policy ORDER BY name")
            .fetch_all(self.pool())
            .await?;
        rows.iter()
            .map(|row| {
                Ok(PolicyRow {
                    id: parsed("policy id", row.try_get(0)?)?,
                    name: row.try_get(1)?,
                    policy: from_json("policy", row.try_get(2)?)?,
                    version: unsigned(row.try_get(3)?),
                })
            })
            .collect()
    }

    /// All servers.
    pub(crate) async fn servers(&self) -> Result<Vec<ServerRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM server ORDER BY role, name").fetch_all(self.pool()).await?;
        rows.iter().map(server).collect()
    }

    /// All machines.
    pub(crate) async fn machines(&self) -> Result<Vec<MachineRow>, StoreError> {
        let mut connection = self.pool().acquire().await?;
        machines(&mut connection, None).await
    }

    /// Points of a machine, newest first, older than `before` where it is given.
    pub(crate) async fn points(
        &self,
        machine: MachineId,
        before: Option<Timestamp>,
        most: u32,
    ) -> Result<Vec<PointRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, time_us, position, kind, name, pinned, booted, probed, digest_equal FROM point \
             WHERE machine = $1 AND time_us < $2 ORDER BY time_us DESC LIMIT $3",
        )
        .bind(machine.to_string())
        .bind(before.map_or(i64::MAX, Timestamp::micros))
        .bind(i64::from(most))
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(point).collect()
    }

    /// The point of an id.
    pub(crate) async fn point(
        &self,
        machine: MachineId,
        id: PointId,
    ) -> Result<Option<PointRow>, StoreError> {
        let row = sqlx::query(
            "SELECT id, time_us, position, kind, name, pinned, booted, probed, digest_equal FROM point \
             WHERE machine = $1 AND id = $2",
        )
        .bind(machine.to_string())
        .bind(id.to_string())
        .fetch_optional(self.pool())
        .await?;
        row.map(|row| point(&row)).transpose()
    }
}

async fn machines(
    connection: &mut AnyConnection,
    one: Option<MachineId>,
) -> Result<Vec<MachineRow>, StoreError> {
    // The empty text stands for all: one query for both, on both databases.
    let wanted = one.map(|id| id.to_string()).unwrap_or_default();
    let rows = sqlx::query(
        "SELECT m.id, m.version, m.name, m.site, m.fabric, m.guest, m.epoch, m.last_drill_us, m.last_drill_passed, p.body \
         FROM machine m LEFT JOIN protection p ON p.machine = m.id WHERE $1 = '' OR m.id = $1 ORDER BY m.name",
    )
    .bind(wanted.clone())
    .fetch_all(&mut *connection)
    .await?;
    let disks = sqlx::query(
        "SELECT machine, id, place, name, size_bytes FROM disk WHERE $1 = '' OR machine = $1 ORDER BY machine, place",
    )
    .bind(wanted)
    .fetch_all(&mut *connection)
    .await?;
    let mut by_machine: BTreeMap<String, Vec<DiskRow>> = BTreeMap::new();
    for row in &disks {
        by_machine.entry(row.try_get(0)?).or_default().push(DiskRow {
            id: parsed("disk id", row.try_get(1)?)?,
            index: u16::try_from(row.try_get::<i64, _>(2)?).unwrap_or(u16::MAX),
            name: row.try_get(3)?,
            size_bytes: unsigned(row.try_get(4)?),
        });
    }
    rows.iter()
        .map(|row| {
            let id: String = row.try_get(0)?;
            let body: Option<String> = row.try_get(9)?;
            Ok(MachineRow {
                disks: by_machine.remove(&id).unwrap_or_default(),
                id: parsed("machine id", &id)?,
                version: unsigned(row.try_get(1)?),
                name: row.try_get(2)?,
                site: parsed("site id", row.try_get(3)?)?,
                fabric: row.try_get(4)?,
                guest: row.try_get(5)?,
                epoch: unsigned(row.try_get(6)?),
                last_drill: row.try_get::<Option<i64>, _>(7)?.map(Timestamp::from_micros),
                last_drill_passed: row.try_get::<i64, _>(8)? != 0,
                protection: body.map(|body| from_json("protection", &body)).transpose()?,
            })
        })
        .collect()
}

fn server(row: &AnyRow) -> Result<ServerRow, StoreError> {
    Ok(ServerRow {
        id: parsed("server id", row.try_get("id")?)?,
        role: row.try_get("role")?,
        name: row.try_get("name")?,
        site: parsed("site id", row.try_get("site")?)?,
        version: row.try_get("version")?,
        address: row.try_get("address")?,
        enrolled: Timestamp::from_micros(row.try_get("enrolled_us")?),
        last_seen: row.try_get::<Option<i64>, _>("last_seen_us")?.map(Timestamp::from_micros),
        certificate_expires: Timestamp::from_micros(row.try_get("certificate_expires_us")?),
        revoked: row.try_get::<i64, _>("revoked")? != 0,
        denied_until: row.try_get::<Option<i64>, _>("denied_until_us")?.map(Timestamp::from_micros),
    })
}

fn point(row: &AnyRow) -> Result<PointRow, StoreError> {
    let flag = |at: usize| -> Result<Option<bool>, StoreError> {
        Ok(row.try_get::<Option<i64>, _>(at)?.map(|value| value != 0))
    };
    let kind: String = row.try_get(3)?;
    Ok(PointRow {
        id: Some(parsed("point id", row.try_get(0)?)?),
        time: Timestamp::from_micros(row.try_get(1)?),
        position: unsigned(row.try_get(2)?),
        kind: PointKind::named(&kind)
            .ok_or_else(|| StoreError::Corrupt { what: "kind of a point".into(), reason: kind })?,
        name: row.try_get(4)?,
        pinned: row.try_get::<i64, _>(5)? != 0,
        booted: flag(6)?,
        probed: flag(7)?,
        digest_equal: flag(8)?,
    })
}
