//! What an administrator does on the vault's own machine, beside a vault that may be running: whoever can
//! read the CA's key and the store can do this.

use crate::grants;
use crate::store::Store;
use crate::store::access::AuditLine;
use crate::store::inventory::ServerRow;
use crate::vault::AUTHORITY;
use crate::world::World;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::{ServerId, VaultId};
use continuum_model::untrusted::shown;
use continuum_wire::ca::Authority;
use continuum_wire::identity::Role;
use std::path::{Path, PathBuf};

/// The store and the CA of a vault, which may be running.
pub struct Keeper {
    dir: PathBuf,
    store: Store,
    world: World,
    vault: VaultId,
}

/// An operator, as lists show them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownOperator {
    /// Their name.
    pub name: String,
    /// Their role.
    pub role: String,
    /// Whether their access was taken away.
    pub revoked: bool,
}

/// A server, as lists show them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownServer {
    /// Its id.
    pub id: ServerId,
    /// Its role.
    pub role: String,
    /// Its name: text from outside.
    pub name: String,
    /// Whether its access was taken away.
    pub revoked: bool,
}

impl Keeper {
    /// Opens what a vault keeps in `dir`; `database` where it is not embedded. Makes nothing.
    ///
    /// Errors: there is no vault, or its store cannot be read.
    pub async fn open(dir: &Path, database: Option<&str>) -> Result<Self, Fault> {
        let absent = || {
            Fault::new(FaultClass::NotFound, "vault.absent", format!("{} holds no vault", dir.display()))
                .affects("this request")
                .spares("nothing was changed")
                .remedy("name the vault's directory, and its database where it is not embedded")
        };
        let embedded = dir.join(crate::vault::STORE);
        let store = match database {
            Some(url) => Store::open_url(url).await?,
            None if !embedded.exists() => return Err(absent()),
            None => Store::open(&embedded).await?,
        };
        let vault = match store.meta("vault").await? {
            Some(text) => crate::store::parsed("vault id", &text)?,
            None => return Err(absent()),
        };
        Ok(Self { dir: dir.to_owned(), store, world: World::default(), vault })
    }

    /// Makes credentials for an operator in `into` (key 0600), and lets them in. Making them again replaces
    /// the role.
    pub async fn make_operator(&self, name: &str, role: &str, into: &Path) -> Result<(), Fault> {
        let authority = Authority::open_or_create(&self.dir.join(AUTHORITY), self.vault, self.world.now())
            .map_err(crate::vault::pki)?;
        grants::make_operator(&self.store, &authority, &self.world, name, role, into).await.map(drop)
    }

    /// Takes an operator's access away. A vault that runs ends their connections within a beat.
    pub async fn revoke_operator(&self, name: &str) -> Result<(), Fault> {
        grants::revoke_operator(&self.store, &self.world, name, "vault").await
    }

    /// Takes a server's access away, by its id or its whole name. A vault that runs ends its session within a
    /// beat. Returns what was revoked.
    pub async fn revoke_server(&self, server: &str) -> Result<KnownServer, Fault> {
        let all = self.servers().await?;
        let mut found = all.iter().filter(|known| known.id.to_string() == server || known.name == server);
        let known = match (found.next(), found.next()) {
            (Some(known), None) => known.clone(),
            (Some(_), Some(_)) => {
                return Err(Fault::new(
                    FaultClass::Usage,
                    "server.ambiguous",
                    format!("several servers are called {}", shown(server)),
                )
                .affects("this request")
                .spares("nothing was changed")
                .remedy("give the id; see `continuumd server list`"));
            }
            (None, _) => {
                return Err(Fault::new(
                    FaultClass::NotFound,
                    "server.unknown",
                    format!("no server is called {}", shown(server)),
                )
                .affects("this request")
                .spares("nothing was changed")
                .remedy("names and ids are told by `continuumd server list`"));
            }
        };
        grants::revoke_server(&self.store, &self.world, known.id).await?;
        Ok(KnownServer { revoked: true, ..known })
    }

    /// All operators.
    pub async fn operators(&self) -> Result<Vec<KnownOperator>, Fault> {
        let rows = self.store.operators().await?;
        Ok(rows
            .into_iter()
            .map(|row| KnownOperator { name: row.name, role: row.role, revoked: row.revoked })
            .collect())
    }

    /// All servers but vaults.
    pub async fn servers(&self) -> Result<Vec<KnownServer>, Fault> {
        let known =
            |row: ServerRow| KnownServer { id: row.id, role: row.role, name: row.name, revoked: row.revoked };
        let rows = self.store.servers().await?;
        Ok(rows.into_iter().filter(|row| row.role != Role::Vault.name()).map(known).collect())
    }

    /// The newest lines of the audit log, oldest first.
    pub async fn audit(&self, most: u32) -> Result<Vec<AuditLine>, Fault> {
        self.store.audit_lines(most).await.map_err(|error| error.fault())
    }

    /// Closes the store.
    pub async fn close(self) {
        self.store.close().await;
    }
}
