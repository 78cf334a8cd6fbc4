//! Object storage for archives of replicas: S3 and whatever speaks its protocol, Azure Blob.
//!
//! Lives here: addresses, credentials, and the five calls of [`Objects`] over the network. What an archive is: the
//! replica crate. Credentials come from the environment, in the names that the services' own programs use
//! (`AWS_ACCESS_KEY_ID`, `AZURE_STORAGE_ACCOUNT_NAME`, …); nothing of them is ever printed.

use continuum_replica::remote::{Objects, Tag};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use std::io;
use tokio::runtime::Runtime;
use url::Url;

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It is none of ours.
    #[error("{0} is no address of an object storage: write s3://BUCKET/PREFIX or az://CONTAINER/PREFIX")]
    Unknown(String),
    /// What it needs is missing.
    #[error("{address} cannot be used as the environment is")]
    Settings {
        /// Which.
        address: String,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// This machine lacks something.
    #[error("no threads for the network could be started")]
    Runtime(#[source] io::Error),
}

/// A prefix in a bucket or container.
///
/// For threads that may block: every call waits for its answer. Not to be used or dropped in async code.
pub struct Bucket {
    store: Box<dyn ObjectStore>,
    prefix: Path,
    runtime: Runtime,
}

/// Whether a text is meant as an address of an object storage.
pub fn is_address(text: &str) -> bool {
    ["s3://", "az://"].iter().any(|scheme| text.starts_with(scheme))
}

impl Bucket {
    /// A bucket by its address, with the settings in this process's environment.
    pub fn open(address: &str) -> Result<Self, AddressError> {
        let settings = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?.to_ascii_lowercase(), value.into_string().ok()?))
        });
        Self::with_settings(address, settings)
    }

    /// The same with other settings; names in small letters, those that are not known are passed over.
    pub fn with_settings(
        address: &str,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown(address.to_owned());
        if !is_address(address) {
            return Err(unknown());
        }
        // Whoever came first chose the same: there is one provider in this program.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = Url::parse(address).map_err(|_| unknown())?;
        let (store, prefix) = object_store::parse_url_opts(&url, settings).map_err(|source| {
            AddressError::Settings { address: address.to_owned(), source: Box::new(source) }
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Ok(Self { store, prefix, runtime: runtime.map_err(AddressError::Runtime)? })
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }
}

fn io_error(error: object_store::Error) -> io::Error {
    let kind = match &error {
        object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

impl Objects for Bucket {
    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<(Vec<u8>, Tag)>> {
        self.runtime.block_on(async {
            let got = match self.store.get(&self.path(name)).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                got => got.map_err(io_error)?,
            };
            if got.meta.size > bytes_max {
                let what = format!("it is {} bytes long, more than it can be", got.meta.size);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let tag = got.meta.e_tag.clone().unwrap_or_default();
            let bytes = got.bytes().await.map_err(io_error)?;
            Ok(Some((bytes.to_vec(), Tag(tag))))
        })
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        self.runtime.block_on(self.store.put(&self.path(name), bytes.into())).map(drop).map_err(io_error)
    }

    fn replace(&self, name: &str, bytes: Vec<u8>, expected: Option<&Tag>) -> io::Result<bool> {
        let mode = match expected {
            None => PutMode::Create,
            // Without a tag nothing could be held against it: every writer would win.
            Some(Tag(tag)) if tag.is_empty() => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this object storage tells no versions, so that a single writer cannot be made sure of",
                ));
            }
            Some(Tag(tag)) => PutMode::Update(UpdateVersion { e_tag: Some(tag.clone()), version: None }),
        };
        let options = PutOptions { mode, ..PutOptions::default() };
        match self.runtime.block_on(self.store.put_opts(&self.path(name), bytes.into(), options)) {
            Ok(_) => Ok(true),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. }
                // What was to be replaced is gone: another's business, too.
                | object_store::Error::NotFound { .. },
            ) => Ok(false),
            Err(error) => Err(io_error(error)),
        }
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<(String, u64)>> {
        let below = self.path(prefix.trim_end_matches('/'));
        self.runtime.block_on(async {
            let mut names = Vec::new();
            let mut listed = self.store.list(Some(&below));
            while let Some(object) = listed.try_next().await.map_err(io_error)? {
                if let Some(name) = object.location.prefix_match(&self.prefix) {
                    let parts: Vec<String> = name.map(|part| part.as_ref().to_owned()).collect();
                    names.push((parts.join("/"), object.size));
                }
            }
            Ok(names)
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match self.runtime.block_on(self.store.delete(&self.path(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(io_error(error)),
        }
    }
}
