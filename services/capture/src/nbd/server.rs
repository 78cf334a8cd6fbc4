//! Listening, exports that come and go, connections and their limits.
//!
//! A connection has 10 seconds to choose an export. A client that stops reading is cut off when its socket
//! has been full for 30. When an export is withdrawn its connections are closed.

use super::{BlockDevice, handshake, transmission};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 256;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
    /// TCP. Without TLS: for the loopback.
    Tcp(SocketAddr),
}

impl Endpoint {
    /// The URI of an export, as NBD tools take it.
    pub fn uri(&self, export: &str) -> String {
        let escape = |text: &str| {
            text.bytes().fold(String::new(), |mut out, byte| {
                match byte {
                    b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => {
                        out.push(byte.into())
                    }
                    _ => out.push_str(&format!("%{byte:02X}")),
                }
                out
            })
        };
        match self {
            Self::Unix(path) => {
                format!("nbd+unix:///{}?socket={}", escape(export), escape(&path.to_string_lossy()))
            }
            Self::Tcp(address) => format!("nbd://{address}/{}", escape(export)),
        }
    }
}

pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    pub(super) fn shutdown(&self) {
        // Already gone is as good.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }
    fn deadlines(&self, read: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(Some(WRITE_DEADLINE))
            }
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(Some(WRITE_DEADLINE))
            }
        }
    }
}
impl Read for &Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => (&*stream).read(out),
            Socket::Tcp(stream) => (&*stream).read(out),
        }
    }
}
impl Write for &Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => (&*stream).write(data),
            Socket::Tcp(stream) => (&*stream).write(data),
        }
    }
    fn write_vectored(&mut self, data: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => (&*stream).write_vectored(data),
            Socket::Tcp(stream) => (&*stream).write_vectored(data),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One client.
pub(super) struct Connection {
    id: u64,
    socket: Socket,
    export: Mutex<Option<String>>,
    exports: Arc<Exports>,
}

impl Connection {
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
    pub(super) fn socket_ref(&self) -> &Socket {
        &self.socket
    }
    pub(super) fn find(&self, name: &str) -> Option<Arc<dyn BlockDevice>> {
        let list = self.exports.list.lock().unwrap_or_else(PoisonError::into_inner);
        match list.get(name) {
            // An empty name means the default: the only export there is.
            None if name.is_empty() && list.len() == 1 => list.values().next().cloned(),
            found => found.cloned(),
        }
    }
    pub(super) fn names(&self) -> Vec<String> {
        self.exports.list.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

#[derive(Default)]
struct Exports {
    list: Mutex<BTreeMap<String, Arc<dyn BlockDevice>>>,
    connections: Mutex<Vec<Weak<Connection>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    next_id: AtomicU64,
}

/// A listening server. Stops when dropped.
pub struct Server {
    endpoint: Endpoint,
    exports: Arc<Exports>,
    wake: Arc<OwnedFd>,
    accepting: Option<JoinHandle<()>>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Server {
    /// Listens on a Unix socket that only its owner can open. A socket that a dead process left is replaced.
    pub fn on_unix(path: &Path) -> io::Result<Self> {
        match UnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("{} is served by another process", path.display()),
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Self::start(Endpoint::Unix(path.to_owned()), Listener::Unix(listener))
    }

    /// Listens on TCP; port 0 takes any free one.
    pub fn on_tcp(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        Self::start(Endpoint::Tcp(listener.local_addr()?), Listener::Tcp(listener))
    }

    fn start(endpoint: Endpoint, listener: Listener) -> io::Result<Self> {
        let exports = Arc::new(Exports::default());
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (exports_of, wake_of) = (exports.clone(), wake.clone());
        let accepting = std::thread::Builder::new()
            .name("nbd-accept".into())
            .spawn(move || accept(&listener, &exports_of, &wake_of))?;
        Ok(Self { endpoint, exports, wake, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Offers a disk. Replaces one of the same name; clients of that one are closed.
    pub fn export(&self, name: &str, device: Arc<dyn BlockDevice>) {
        self.withdraw(name);
        self.exports.list.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), device);
    }

    /// Withdraws a disk and closes its clients.
    pub fn withdraw(&self, name: &str) {
        self.exports.list.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        let connections = self.exports.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in connections.iter().filter_map(Weak::upgrade) {
            if connection.export.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(name) {
                connection.socket.shutdown();
            }
        }
    }

    /// Clients at this moment.
    pub fn connections(&self) -> usize {
        let connections = self.exports.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().filter(|connection| connection.strong_count() > 0).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for connection in self.exports.connections.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(connection) = connection.upgrade() {
                connection.socket.shutdown();
            }
        }
        let threads =
            std::mem::take(&mut *self.exports.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
        if let Endpoint::Unix(path) = &self.endpoint {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn accept(listener: &Listener, exports: &Arc<Exports>, wake: &OwnedFd) {
    loop {
        let fd = match listener {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        };
        let mut fds = [PollFd::new(&fd, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the NBD listener cannot wait for clients any more");
                return;
            }
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        let accepted = match listener {
            Listener::Unix(listener) => listener.accept().map(|(stream, _)| Socket::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Socket::Tcp(stream)),
        };
        match accepted {
            Ok(socket) => welcome(socket, exports),
            // Out of descriptors, say: existing clients go on; new ones wait.
            Err(error) => {
                tracing::warn!(%error, "an NBD client could not be accepted");
                std::thread::park_timeout(Duration::from_millis(50));
            }
        }
    }
}

fn welcome(socket: Socket, exports: &Arc<Exports>) {
    let mut connections = exports.connections.lock().unwrap_or_else(PoisonError::into_inner);
    connections.retain(|connection| connection.strong_count() > 0);
    if connections.len() >= CONNECTIONS_MAX {
        return;
    }
    let connection = Arc::new(Connection {
        id: exports.next_id.fetch_add(1, Ordering::Relaxed),
        socket,
        export: Mutex::new(None),
        exports: exports.clone(),
    });
    connections.push(Arc::downgrade(&connection));
    drop(connections);
    let served = std::thread::Builder::new().name("nbd".into()).spawn(move || {
        if let Err(error) = serve(&connection) {
            tracing::debug!(connection = connection.id, "NBD client closed: {error}");
        }
        connection.socket.shutdown();
    });
    let mut threads = exports.threads.lock().unwrap_or_else(PoisonError::into_inner);
    threads.retain(|thread| !thread.is_finished());
    match served {
        Ok(thread) => threads.push(thread),
        Err(error) => tracing::warn!(%error, "no thread for an NBD client"),
    }
}

fn serve(connection: &Connection) -> io::Result<()> {
    connection.socket.deadlines(Some(HANDSHAKE_DEADLINE))?;
    let Some(agreed) = handshake::haggle(connection)? else { return Ok(()) };
    connection.socket.deadlines(None)?;
    *connection.export.lock().unwrap_or_else(PoisonError::into_inner) = Some(agreed.export.clone());
    transmission::serve(connection, &agreed)
}
