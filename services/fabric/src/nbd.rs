//! A blocking NBD client: fixed newstyle, simple replies, one request at a time for a connection.
//!
//! The server is not trusted: whatever does not fit the protocol ends the connection with the reason, and
//! nothing is allocated by its word.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x3_e889_0455_65a9;
const OPTION_REPLY_MAX: u32 = 64 << 10;

/// Where an export is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    place: Place,
    /// The export's name.
    pub export: String,
}

/// How an export is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A socket on this host.
    Unix(PathBuf),
    /// `host:port`.
    Tcp(String),
}

impl Uri {
    /// How it is reached.
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// Reads `nbd+unix:///export?socket=/path` or `nbd://host:port/export`.
    pub fn parse(text: &str) -> io::Result<Self> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "not an NBD URI: write nbd://host:port/export or nbd+unix:///export?socket=/path",
            )
        };
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?').ok_or_else(wrong)?;
            let socket = query.split('&').find_map(|part| part.strip_prefix("socket=")).ok_or_else(wrong)?;
            let (export, socket) = (unescape(export).ok_or_else(wrong)?, unescape(socket).ok_or_else(wrong)?);
            return Ok(Self { place: Place::Unix(socket.into()), export });
        }
        let rest = text.strip_prefix("nbd://").ok_or_else(wrong)?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:10809") };
        Ok(Self { place: Place::Tcp(host), export: unescape(export).ok_or_else(wrong)? })
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
        } else {
            byte
        });
    }
    String::from_utf8(out).ok()
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection to one export.
pub struct Client {
    stream: Box<dyn Stream>,
    size: u64,
    read_only: bool,
    cookie: u64,
}

impl Client {
    /// Connects. Every read and write ends after `patience` without progress.
    pub fn connect(uri: &Uri, patience: Duration) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match &uri.place {
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                Box::new(stream)
            }
            Place::Tcp(host) => {
                let stream = TcpStream::connect(host)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(patience))?;
                stream.set_write_timeout(Some(patience))?;
                Box::new(stream)
            }
        };
        let mut client = Self { stream, size: 0, read_only: false, cookie: 0 };
        client.haggle(&uri.export)?;
        Ok(client)
    }

    fn haggle(&mut self, export: &str) -> io::Result<()> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        if &greeting[..8] != b"NBDMAGIC" || greeting[8..16] != OPTION_MAGIC.to_be_bytes() {
            return Err(violation("no NBD greeting"));
        }
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
        hello.extend_from_slice(&7u32.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&0u16.to_be_bytes());
        self.stream.write_all(&hello)?;
        for _ in 0..64 {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head)?;
            let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            if head[..8] != REPLY_MAGIC.to_be_bytes() || word(8) != 7 {
                return Err(violation("an answer to something else"));
            }
            let (kind, length) = (word(12), word(16));
            if length > OPTION_REPLY_MAX {
                return Err(violation("an answer longer than 64 KiB"));
            }
            let mut body = vec![0; length as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                1 if self.size > 0 => return Ok(()),
                1 => return Err(violation("no export information")),
                3 if body.len() >= 12 && body[..2] == [0, 0] => {
                    let mut size = [0; 8];
                    size.copy_from_slice(&body[2..10]);
                    self.size = u64::from_be_bytes(size);
                    self.read_only = u16::from_be_bytes([body[10], body[11]]) & 2 != 0;
                }
                3 => {}
                kind if kind & 0x8000_0000 != 0 => {
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("the export is not offered (NBD error {kind:#x})"),
                    ));
                }
                _ => return Err(violation("an unknown answer")),
            }
        }
        Err(violation("no end of answers"))
    }

    /// The disk's size.
    pub const fn size(&self) -> u64 {
        self.size
    }
    /// Whether it refuses writes.
    pub const fn read_only(&self) -> bool {
        self.read_only
    }

    /// Fills `out` from `offset`.
    pub fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.request(0, 0, offset, out.len() as u32, &[])?;
        self.reply()?;
        self.stream.read_exact(out)
    }
    /// Writes; with `durable` it is on stable storage when this returns.
    pub fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> io::Result<()> {
        self.request(u16::from(durable), 1, offset, data.len() as u32, data)?;
        self.reply()
    }
    /// Makes what was written durable.
    pub fn flush(&mut self) -> io::Result<()> {
        self.request(0, 3, 0, 0, &[])?;
        self.reply()
    }
    /// Gives a range back; it reads as zeroes here.
    pub fn trim(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.request(0, 4, offset, length, &[])?;
        self.reply()
    }
    /// Makes a range read as zeroes.
    pub fn zero(&mut self, offset: u64, length: u32) -> io::Result<()> {
        self.request(0, 6, offset, length, &[])?;
        self.reply()
    }

    fn request(&mut self, flags: u16, command: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<()> {
        self.cookie += 1;
        let mut out = Vec::with_capacity(28 + data.len());
        out.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(data);
        self.stream.write_all(&out)
    }

    fn reply(&mut self) -> io::Result<()> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        if head[..4] != 0x6744_6698u32.to_be_bytes() {
            return Err(violation("a reply does not begin with its magic"));
        }
        if head[8..] != self.cookie.to_be_bytes() {
            return Err(violation("a reply to another request"));
        }
        match u32::from_be_bytes([head[4], head[5], head[6], head[7]]) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(5))),
        }
    }
}

fn violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol violation by server: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read() {
        let uri = Uri::parse("nbd+unix:///data%2Fx?socket=/tmp/a%20b.sock").unwrap();
        assert_eq!((uri.export.as_str(), uri.place), ("data/x", Place::Unix("/tmp/a b.sock".into())));
        assert_eq!(Uri::parse("nbd://localhost/x").unwrap().place, Place::Tcp("localhost:10809".into()));
        for wrong in ["http://x", "nbd+unix:///x", "nbd+unix:///x?socket=%zz", ""] {
            assert!(Uri::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// A server that says whatever it likes.
    fn against(script: Vec<u8>) -> io::Error {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.write_all(&script);
            let mut sink = [0; 1024];
            while matches!(stream.read(&mut sink), Ok(n) if n > 0) {}
        });
        let uri = Uri::parse(&format!("nbd://{address}/x")).unwrap();
        let error = Client::connect(&uri, Duration::from_millis(500)).err().expect("refused");
        server.join().unwrap();
        error
    }

    #[test]
    fn a_hostile_server_gets_nowhere() {
        let greeting =
            |rest: &[u8]| [&b"NBDMAGIC"[..], &OPTION_MAGIC.to_be_bytes(), &3u16.to_be_bytes(), rest].concat();
        let answer = |option: u32, kind: u32, length: u32| {
            [
                &REPLY_MAGIC.to_be_bytes()[..],
                &option.to_be_bytes(),
                &kind.to_be_bytes(),
                &length.to_be_bytes(),
            ]
            .concat()
        };
        for (why, script) in [
            ("no greeting", b"HTTP/1.1 200 OK\r\n\r\n".to_vec()),
            ("an answer to another option", greeting(&answer(6, 1, 0))),
            ("an endless answer", greeting(&answer(7, 3, u32::MAX))),
            ("success without a size", greeting(&answer(7, 1, 0))),
            ("an unknown answer", greeting(&answer(7, 99, 0))),
        ] {
            let error = against(script);
            assert!(error.to_string().contains("protocol violation by server"), "{why}: {error}");
        }
        assert!(against(greeting(&answer(7, 0x8000_0006, 0))).to_string().contains("not offered"));
    }
}
