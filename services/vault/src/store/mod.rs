//! What the vault keeps: one relational schema, on SQLite or PostgreSQL.
//!
//! Lives here: opening, transactions, and what a commit made known. Lives beside it: the tables, one concept
//! a file (`inventory`, `jobs`, `news`, `access`). Lives elsewhere: what the rows mean (`crate::estate`,
//! `crate::jobs`).
//!
//! Invariants: every change of a state and the event that tells of it are in one transaction; a row that
//! was read and changed is written only `WHERE version = <what was read>`; nobody hears of a change before
//! it is durable, and everybody hears of changes in the order of their commits (the writer's turn is held
//! until they were told).

pub(crate) mod access;
pub(crate) mod groups;
pub(crate) mod inventory;
pub(crate) mod jobs;
pub(crate) mod news;
pub(crate) mod plans;
pub(crate) mod reports;
mod schema;
pub(crate) mod spikes;
pub(crate) mod versions;

use continuum_model::fault::{Fault, FaultClass};
use schema::Dialect;
use sqlx::any::AnyPoolOptions;
use sqlx::{Any, AnyPool, Executor, Row};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or is gone.
    #[error("the vault's database failed; nothing of this change was kept")]
    Database(#[from] sqlx::Error),
    /// What was read makes no sense.
    #[error("{what} in the vault's database is not usable: {reason}; restore the newest copy")]
    Corrupt {
        /// What.
        what: String,
        /// Why.
        reason: String,
    },
    /// A newer program has been here.
    #[error(
        "the vault's database has schema {version}, which is newer than this program; start the newer program"
    )]
    Newer {
        /// Its version.
        version: i64,
    },
    /// Somebody else changed it since it was read.
    #[error("{what} changed meanwhile; look again and repeat the order")]
    Changed {
        /// What.
        what: String,
    },
    /// A test ended the process here.
    #[error("interrupted at {0}")]
    Interrupted(&'static str),
}

impl StoreError {
    /// For people.
    pub fn fault(&self) -> Fault {
        let text = match self {
            Self::Database(error) => format!("{self}: {error}"),
            other => other.to_string(),
        };
        match self {
            Self::Changed { .. } => Fault::new(FaultClass::Conflict, "vault.changed", text)
                .affects("this order")
                .spares("nothing was changed")
                .remedy("look at the present state and give the order again"),
            _ => Fault::new(FaultClass::Failed, "vault.store", text)
                .affects("orders and jobs of this vault")
                .spares("replication, which goes on without it")
                .remedy(
                    "look at the vault's volume and its log; jobs go on where they were once it writes again",
                ),
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        error.fault()
    }
}

/// Ends a simulated process at a named place. Real ones never do.
pub(crate) trait Interrupt: Send + Sync {
    /// Passes, or ends the process here.
    fn pass(&self, place: &'static str) -> Result<(), StoreError>;
}

/// The real one.
pub(crate) struct NeverInterrupted;
impl Interrupt for NeverInterrupted {
    fn pass(&self, _: &'static str) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The open store.
pub(crate) struct Store {
    pool: AnyPool,
    dialect: Dialect,
    turn: Arc<Mutex<()>>,
    interrupt: Arc<dyn Interrupt>,
}

/// A transaction that may write. Dropped without a commit it leaves nothing.
pub(crate) struct Tx {
    pub(crate) inner: sqlx::Transaction<'static, Any>,
    pub(crate) news: Vec<news::News>,
    turn: OwnedMutexGuard<()>,
    interrupt: Arc<dyn Interrupt>,
}

/// What a commit made known, in order. Whoever holds it holds the writer's turn.
pub(crate) struct Committed {
    pub(crate) news: Vec<news::News>,
    _turn: OwnedMutexGuard<()>,
}

impl Store {
    /// Opens `<dir>/vault.db`, or makes it.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let mut url = String::from("sqlite://");
        for byte in path.as_os_str().as_encoded_bytes() {
            match byte {
                b'/' | b'-' | b'_' | b'.' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                    url.push(char::from(*byte))
                }
                other => url.push_str(&format!("%{other:02X}")),
            }
        }
        url.push_str("?mode=rwc");
        Self::connect(&url, Dialect::Sqlite).await
    }

    /// Opens a database by its URL: `sqlite://…` or `postgres://…`.
    pub(crate) async fn open_url(url: &str) -> Result<Self, StoreError> {
        let dialect = if url.starts_with("sqlite:") { Dialect::Sqlite } else { Dialect::Postgres };
        Self::connect(url, dialect).await
    }

    async fn connect(url: &str, dialect: Dialect) -> Result<Self, StoreError> {
        sqlx::any::install_default_drivers();
        let pool = AnyPoolOptions::new()
            .max_connections(4)
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if dialect == Dialect::Sqlite {
                        for pragma in [
                            "PRAGMA busy_timeout = 10000",
                            "PRAGMA journal_mode = WAL",
                            "PRAGMA synchronous = FULL",
                            "PRAGMA foreign_keys = ON",
                        ] {
                            connection.execute(pragma).await?;
                        }
                    }
                    Ok(())
                })
            })
            .connect(url)
            .await?;
        let store = Self { pool, dialect, turn: Arc::default(), interrupt: Arc::new(NeverInterrupted) };
        let mut tx = store.begin().await?;
        schema::migrate(&mut tx.inner, dialect).await?;
        tx.commit().await?;
        Ok(store)
    }

    /// The same store under an interrupt.
    #[cfg(test)]
    pub(crate) fn interrupted_by(mut self, interrupt: Arc<dyn Interrupt>) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Whose turn to end the process it is; for effects beside writes.
    pub(crate) fn interrupt(&self) -> &dyn Interrupt {
        &*self.interrupt
    }

    /// Begins a transaction that may write. Writers of this process take turns.
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        let turn = self.turn.clone().lock_owned().await;
        let inner = self.pool.begin_with(self.dialect.begin()).await?;
        Ok(Tx { inner, news: Vec::new(), turn, interrupt: self.interrupt.clone() })
    }

    /// A value of the vault itself.
    pub(crate) async fn meta(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT value FROM meta WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.try_get(0)).transpose().map_err(Into::into)
    }

    /// For reads.
    pub(crate) const fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

impl Tx {
    /// Makes it durable.
    pub(crate) async fn commit(self) -> Result<Committed, StoreError> {
        self.interrupt.pass("before a commit")?;
        self.inner.commit().await?;
        self.interrupt.pass("after a commit")?;
        Ok(Committed { news: self.news, _turn: self.turn })
    }

    /// A value of the vault itself.
    pub(crate) async fn meta(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT value FROM meta WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| row.try_get(0)).transpose().map_err(Into::into)
    }

    /// Sets a value of the vault itself.
    pub(crate) async fn set_meta(&mut self, name: &str, value: &str) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )
        .bind(name.to_owned())
        .bind(value.to_owned())
        .execute(&mut *self.inner)
        .await?;
        Ok(())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256, in hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes))
}

/// A value as JSON text. Rows hold nothing that JSON cannot say.
pub(crate) fn to_json<T: serde::Serialize>(what: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Corrupt { what: what.to_owned(), reason: error.to_string() })
}

/// A value from JSON text.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text)
        .map_err(|error| StoreError::Corrupt { what: what.to_owned(), reason: error.to_string() })
}

/// Reads a text that must have a certain form, such as an id.
pub(crate) fn parsed<T: std::str::FromStr>(what: &str, text: &str) -> Result<T, StoreError>
where
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| StoreError::Corrupt { what: what.to_owned(), reason: error.to_string() })
}

/// The database counts in signed numbers; ours that do not fit are saturated, and none of them does in practice.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The other way.
pub(crate) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
