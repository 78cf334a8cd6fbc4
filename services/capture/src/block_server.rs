//! A source with its disks on NBD: what a machine is attached to.

use crate::nbd::{Endpoint, Server};
use crate::source::Source;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a block server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
    /// TCP; port 0 takes any free one.
    Tcp(SocketAddr),
}

/// A source and the server of its disks.
pub struct BlockServer {
    /// Before the source: clients leave before the disks are closed.
    server: Server,
    source: Arc<Source>,
}

impl BlockServer {
    /// Serves the source's disks under `names`, in their order.
    pub fn start(source: Arc<Source>, listen: &Listen, names: &[&str]) -> io::Result<Self> {
        let server = match listen {
            Listen::Unix(path) => Server::on_unix(Path::new(path))?,
            Listen::Tcp(address) => Server::on_tcp(*address)?,
        };
        for (index, name) in names.iter().enumerate() {
            let device = source.device(index).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("there is no disk {index} to serve as {name:?}"),
                )
            })?;
            server.export(name, device);
        }
        Ok(Self { server, source })
    }

    /// The source.
    pub const fn source(&self) -> &Arc<Source> {
        &self.source
    }
    /// Where it listens.
    pub const fn endpoint(&self) -> &Endpoint {
        self.server.endpoint()
    }
    /// The server.
    pub const fn server(&self) -> &Server {
        &self.server
    }
}
