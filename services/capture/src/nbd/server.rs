//! Listening, exports that come and go, connections and their limits.
//!
//! A connection has 10 seconds in all to choose an export. A client that stops reading is cut off when its
//! socket has been full for 30. When an export is withdrawn its connections are closed, and when that call
//! returns none of their requests is under way any more.

use super::{BlockDevice, handshake, transmission};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
const CONNECTIONS_MAX: usize = 256;
/// What the data of all large writes under way may take; more is refused with "no memory".
const LARGE_BYTES_MAX: u64 = 512 << 20;

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
    pub(super) fn deadlines(&self, read: Option<Duration>, write: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(Some(write))
            }
            Self::Tcp(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(Some(write))
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
    /// What it chose.
    chosen: Mutex<Option<(String, Arc<dyn BlockDevice>)>>,
    exports: Arc<Exports>,
}

impl Connection {
    /// Sets room aside for the data of a large write; `None`: there is none left.
    pub(super) fn reserve_large(&self, bytes: u64) -> Option<LargeGuard<'_>> {
        let used = &self.exports.large_bytes;
        if used.fetch_add(bytes, Ordering::AcqRel) + bytes > LARGE_BYTES_MAX {
            used.fetch_sub(bytes, Ordering::AcqRel);
            return None;
        }
        Some(LargeGuard { used, bytes })
    }
    pub(super) fn socket_ref(&self) -> &Socket {
        &self.socket
    }
    /// The export of that name, with the name it is listed under.
    pub(super) fn find(&self, name: &str) -> Option<(String, Arc<dyn BlockDevice>)> {
        let list = self.exports.list();
        let found = match list.get_key_value(name) {
            // An empty name means the default: the only export there is.
            None if name.is_empty() && list.len() == 1 => list.iter().next(),
            found => found,
        };
        found.map(|(name, device)| (name.clone(), device.clone()))
    }
    pub(super) fn names(&self) -> Vec<String> {
        self.exports.list().keys().cloned().collect()
    }
}

/// Room for a large write, given back when dropped.
pub(super) struct LargeGuard<'a> {
    used: &'a AtomicU64,
    bytes: u64,
}

impl Drop for LargeGuard<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[derive(Default)]
struct Exports {
    list: Mutex<BTreeMap<String, Arc<dyn BlockDevice>>>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// A connection has ended.
    left: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
    next_id: AtomicU64,
    large_bytes: AtomicU64,
}

impl Exports {
    fn list(&self) -> MutexGuard<'_, BTreeMap<String, Arc<dyn BlockDevice>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listening server. Stops when dropped.
pub struct Server {
    endpoint: Endpoint,
    exports: Arc<Exports>,
    wake: Arc<OwnedFd>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Server {
    /// Listens on a Unix socket that only its owner can open. A socket that a dead process left is replaced.
    pub fn on_unix(path: &Path) -> io::Result<Self> {
        let in_use =
            |what: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{} {what}", path.display())));
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            // A file would refuse the connection, too: only a socket may be removed.
            Ok(meta) if !meta.file_type().is_socket() => return in_use("is there already, and is no socket"),
            Ok(_) => match UnixStream::connect(path) {
                Ok(_) => return in_use("is served by another process"),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(error) => return Err(error),
            },
        }
        let listener = bind_private(path)?;
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
        Ok(Self { endpoint, exports, wake, accepting: Mutex::new(Some(accepting)) })
    }

    /// Where it listens.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Offers a disk. Replaces one of the same name; clients of that one are closed.
    pub fn export(&self, name: &str, device: Arc<dyn BlockDevice>) {
        self.withdraw(name);
        self.exports.list().insert(name.to_owned(), device);
    }

    /// Withdraws a disk and closes its clients. When it returns, none of their requests is under way.
    pub fn withdraw(&self, name: &str) {
        let Some(device) = self.exports.list().remove(name) else { return };
        let mut connections = self.exports.connections();
        let serves = |connection: &Connection| {
            let chosen = connection.chosen.lock().unwrap_or_else(PoisonError::into_inner);
            chosen.as_ref().is_some_and(|chosen| chosen.0 == name && Arc::ptr_eq(&chosen.1, &device))
        };
        while connections.iter().any(|connection| serves(connection)) {
            for connection in connections.iter().filter(|connection| serves(connection)) {
                connection.socket.shutdown();
            }
            connections = self.exports.left.wait(connections).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Clients at this moment.
    pub fn connections(&self) -> usize {
        self.exports.connections().len()
    }

    /// Stops listening, closes all clients and waits until their requests are done. So does dropping it.
    pub fn stop(&self) {
        // Already gone is as good; the eventfd cannot be full.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        let accepting = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(accepting) = accepting else { return };
        let _ = accepting.join();
        for connection in self.exports.connections().iter() {
            connection.socket.shutdown();
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

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A listening socket that only its owner can open, from its first moment on.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file that `bind` makes takes the socket's own mode.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket.into())
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
    let connection = {
        let mut connections = exports.connections();
        if connections.len() >= CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "an NBD client was turned away: too many are connected");
            return;
        }
        let connection = Arc::new(Connection {
            id: exports.next_id.fetch_add(1, Ordering::Relaxed),
            socket,
            chosen: Mutex::new(None),
            exports: exports.clone(),
        });
        connections.push(connection.clone());
        connection
    };
    let exports_of = exports.clone();
    let served = std::thread::Builder::new().name("nbd".into()).spawn(move || {
        // Leaves the list whatever happens: others wait for that.
        let _leave = Leave(&exports_of, connection.id);
        if let Err(error) = serve(&connection) {
            tracing::debug!(connection = connection.id, "NBD client closed: {error}");
        }
    });
    let mut threads = exports.threads.lock().unwrap_or_else(PoisonError::into_inner);
    threads.retain(|thread| !thread.is_finished());
    match served {
        Ok(thread) => threads.push(thread),
        Err(error) => {
            let newest = exports.next_id.load(Ordering::Relaxed) - 1;
            drop(Leave(exports, newest));
            tracing::warn!(%error, "no thread for an NBD client");
        }
    }
}

struct Leave<'a>(&'a Exports, u64);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut connections = self.0.connections();
        if let Some(at) = connections.iter().position(|connection| connection.id == self.1) {
            connections.swap_remove(at).socket.shutdown();
        }
        self.0.left.notify_all();
    }
}

fn serve(connection: &Connection) -> io::Result<()> {
    let Some(agreed) = handshake::haggle(connection, Instant::now() + HANDSHAKE_DEADLINE)? else {
        return Ok(());
    };
    connection.socket.deadlines(None, WRITE_DEADLINE)?;
    // Said first, looked up again then: whoever withdraws the export now either sees this client or is seen.
    let chosen = (agreed.export.clone(), agreed.device.clone());
    *connection.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(chosen);
    let still =
        connection.find(&agreed.export).is_some_and(|(_, device)| Arc::ptr_eq(&device, &agreed.device));
    if still { transmission::serve(connection, &agreed) } else { Ok(()) }
}
