//! A guest's disk: an NBD client that never gives up.
//!
//! Lives here: connecting, one request at a time, asking again after the connection was lost or the disk
//! failed. A request that was not answered is sent again as it was: nothing overlaps it, so doing it
//! twice is doing it once. Lives elsewhere: what is read and written.
//!
//! Source: the NBD protocol document; fixed newstyle, simple replies.

use super::Life;
use crate::lab::ledger::Disk;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Where a disk is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    place: Place,
    export: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp(String),
}

impl Address {
    /// Reads `nbd+unix:///EXPORT?socket=PATH` or `nbd://HOST:PORT/EXPORT`.
    pub fn parse(uri: &str) -> Option<Self> {
        if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?')?;
            let socket = query.split('&').find_map(|part| part.strip_prefix("socket="))?;
            return Some(Self { place: Place::Unix(decode(socket)?.into()), export: decode(export)? });
        }
        let (authority, export) = uri.strip_prefix("nbd://")?.split_once('/').unwrap_or((&uri[6..], ""));
        let authority =
            if authority.contains(':') { authority.to_owned() } else { format!("{authority}:10809") };
        Some(Self { place: Place::Tcp(authority), export: decode(export)? })
    }
}

fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// A stream that can be cut from another thread.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn open(place: &Place) -> io::Result<Self> {
        match place {
            Place::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
            Place::Tcp(authority) => {
                let stream = TcpStream::connect(authority)?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
        }
    }
    fn another(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }
    pub(super) fn cut(&self) {
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
    fn deadline(&self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(limit),
            Self::Tcp(stream) => stream.set_read_timeout(limit),
        }
    }
}
impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(out),
            Self::Tcp(stream) => stream.read(out),
        }
    }
}
impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(data),
            Self::Tcp(stream) => stream.write(data),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
const REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;
const GO: u32 = 7;
const CAN_FLUSH: u16 = 1 << 2;
const CAN_FUA: u16 = 1 << 3;
const REQUEST_BYTES_MAX: usize = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// An open export.
struct Connection {
    stream: Stream,
    size: u64,
    flags: u16,
    cookie: u64,
}

/// A request that the server answered with an error: the connection is as good as before.
#[derive(Debug, thiserror::Error)]
#[error("the disk answered with error {0}")]
struct Refused(u32);

impl Connection {
    fn open(address: &Address, register: impl FnOnce(Stream)) -> io::Result<Self> {
        let mut stream = Stream::open(&address.place)?;
        register(stream.another()?);
        stream.deadline(Some(Duration::from_secs(10)))?;
        let violation = |what: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the server is no NBD server: {what}"))
        };
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        if &greeting[..8] != b"NBDMAGIC" || number(&greeting[8..16]) != OPTION_MAGIC || greeting[17] & 1 == 0
        {
            return Err(violation("its greeting is another"));
        }
        let mut hello = vec![0, 0, 0, 1];
        hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        hello.extend_from_slice(&GO.to_be_bytes());
        let name = address.export.as_bytes();
        hello.extend_from_slice(&(name.len() as u32 + 6).to_be_bytes());
        hello.extend_from_slice(&(name.len() as u32).to_be_bytes());
        hello.extend_from_slice(name);
        hello.extend_from_slice(&[0, 0]);
        stream.write_all(&hello)?;
        let mut export = None;
        // An export, some block sizes, a description: more is no honest answer.
        for _ in 0..16 {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let length = number(&head[16..20]) as usize;
            if number(&head[..8]) != REPLY_MAGIC || length > 8 << 10 {
                return Err(violation("its answer is another"));
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            match number(&head[12..16]) {
                1 => {
                    let (size, flags) =
                        export.ok_or_else(|| violation("it does not say how large the disk is"))?;
                    stream.deadline(None)?;
                    return Ok(Self { stream, size, flags, cookie: 0 });
                }
                3 if body.len() >= 12 && body[..2] == [0, 0] => {
                    export = Some((number(&body[2..10]), number(&body[10..12]) as u16));
                }
                3 => {}
                error => {
                    let text = String::from_utf8_lossy(&body);
                    let text = continuum_model::untrusted::shown(&text);
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("the disk is not served: {error:#x} {text}"),
                    ));
                }
            }
        }
        Err(violation("it never ends its answer"))
    }

    fn request(
        &mut self,
        command: Command,
        durable: bool,
        offset: u64,
        length: usize,
        data: &[u8],
        out: &mut [u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + data.len());
        request.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        request.extend_from_slice(&u16::from(durable && self.flags & CAN_FUA != 0).to_be_bytes());
        request.extend_from_slice(&(command as u16).to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&offset.to_be_bytes());
        request.extend_from_slice(&(length as u32).to_be_bytes());
        request.extend_from_slice(data);
        self.stream.write_all(&request)?;
        if command == Command::Disconnect {
            return Ok(());
        }
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        if number(&reply[..4]) != 0x6744_6698 || number(&reply[8..16]) != self.cookie {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the server answered something that was not asked",
            ));
        }
        match number(&reply[4..8]) as u32 {
            0 => self.stream.read_exact(out),
            error => Err(io::Error::other(Refused(error))),
        }
    }
}

impl Connection {
    fn flush(&mut self) -> io::Result<()> {
        // A server that cannot flush has nothing that a flush would make durable.
        if self.flags & CAN_FLUSH == 0 {
            return Ok(());
        }
        self.request(Command::Flush, false, 0, 0, &[], &mut [])
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A disk that is there again sooner or later.
pub struct Drive {
    name: String,
    address: Address,
    life: Life,
    connection: Option<Connection>,
    size: u64,
    interruptions: u64,
}

impl Drive {
    /// Waits until the disk is served. Errors: only the end of the guest.
    pub fn open(name: &str, address: Address, life: Life) -> io::Result<Self> {
        let mut drive =
            Self { name: name.to_owned(), address, life, connection: None, size: 0, interruptions: 0 };
        drive.insist(|_| Ok(()))?;
        drive.size = drive.connection.as_ref().map_or(0, |connection| connection.size);
        Ok(drive)
    }

    /// Does `act` until it is done. Errors: only the end of the guest.
    fn insist(&mut self, mut act: impl FnMut(&mut Connection) -> io::Result<()>) -> io::Result<()> {
        const SHORTEST: Duration = Duration::from_millis(10);
        const LONGEST: Duration = Duration::from_millis(500);
        let mut pause = SHORTEST;
        let mut ill = false;
        loop {
            let Err(error) = self.attempt(&mut act) else {
                if ill {
                    self.life.well_again();
                }
                return Ok(());
            };
            // At the end it leaves its disks in order where they answer, and waits for nothing any more.
            if self.life.is_over() {
                return Err(error);
            }
            let refused = error.get_ref().is_some_and(|inner| inner.is::<Refused>());
            if !refused && self.connection.take().is_some() {
                self.interruptions += 1;
                pause = SHORTEST;
            }
            self.life.ill(&format!("disk {}: {error}", self.name), refused);
            ill = true;
            self.life.pause(pause);
            pause = (pause * 2).min(LONGEST);
        }
    }

    fn attempt(&mut self, act: &mut impl FnMut(&mut Connection) -> io::Result<()>) -> io::Result<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let opened = Connection::open(&self.address, |stream| self.life.register(stream))?;
                if self.size != 0 && opened.size != self.size {
                    let changed = format!("it had {} bytes and has {} now", self.size, opened.size);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, changed));
                }
                self.connection.insert(opened)
            }
        };
        act(connection)
    }
}

impl Disk for Drive {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        for part in out.chunks_mut(REQUEST_BYTES_MAX) {
            let length = part.len();
            self.insist(|connection| connection.request(Command::Read, false, at, length, &[], part))?;
            at += length as u64;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        let mut at = offset;
        for part in data.chunks(REQUEST_BYTES_MAX) {
            self.insist(|connection| {
                connection.request(Command::Write, durable, at, part.len(), part, &mut [])?;
                if durable && connection.flags & CAN_FUA == 0 {
                    connection.flush()?;
                }
                Ok(())
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.insist(Connection::flush)
    }

    fn interruptions(&self) -> u64 {
        self.interruptions
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection {
            let _ = connection.request(Command::Disconnect, false, 0, 0, &[], &mut []);
        }
    }
}

/// Reads the first and the last block of a disk, within `limit`. Returns its size.
pub fn look_at(uri: &str, limit: Duration) -> io::Result<u64> {
    let address = Address::parse(uri)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "that is no NBD address"))?;
    let mut connection = Connection::open(&address, |_| {})?;
    connection.stream.deadline(Some(limit.max(Duration::from_millis(1))))?;
    let mut block = [0; 512];
    connection.request(Command::Read, false, 0, 512, &[], &mut block)?;
    connection.request(Command::Read, false, connection.size.saturating_sub(512), 512, &[], &mut block)?;
    connection.request(Command::Disconnect, false, 0, 0, &[], &mut [])?;
    Ok(connection.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let unix = Address::parse("nbd+unix:///disk%2001?socket=/tmp/a%3f.sock").unwrap();
        assert_eq!(unix, Address { place: Place::Unix("/tmp/a?.sock".into()), export: "disk 01".into() });
        let tcp = Address::parse("nbd://127.0.0.1:1234/x").unwrap();
        assert_eq!(tcp, Address { place: Place::Tcp("127.0.0.1:1234".into()), export: "x".into() });
        for wrong in ["", "http://x/y", "nbd+unix:///x", "nbd+unix:///%zz?socket=/x", "nbd+unix:///%4"] {
            assert_eq!(Address::parse(wrong), None, "{wrong}");
        }
    }
}
