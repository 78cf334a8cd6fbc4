//! A source with its disks on NBD: what a machine is attached to. Beside it, a plain disk on NBD.

use crate::disk::SourceDisk;
use crate::nbd::{BlockDevice, Endpoint, Extent, Server};
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

/// A disk served as it is, without a splitter: replicas being written, images being looked at.
pub struct PlainDisk {
    disk: Box<dyn SourceDisk>,
    size: u64,
    read_only: bool,
}

impl PlainDisk {
    /// Takes a disk. Errors: it does not say its size.
    pub fn new(disk: Box<dyn SourceDisk>, read_only: bool) -> io::Result<Self> {
        let size = disk.size()?;
        Ok(Self { disk, size, read_only })
    }
}

impl BlockDevice for PlainDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out)
    }
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        self.disk.write(offset, data)?;
        if durable { self.disk.flush() } else { Ok(()) }
    }
    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn zero(&self, offset: u64, length: u64, may_trim: bool, durable: bool) -> io::Result<()> {
        self.disk.zero(offset, length, may_trim)?;
        if durable { self.disk.flush() } else { Ok(()) }
    }
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        self.disk.extents(offset, length, out)
    }
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

    /// Clients leave, then the source is closed (see [`Source::close`]).
    pub fn close(&self) -> io::Result<()> {
        self.server.stop();
        self.source.close()
    }
}
