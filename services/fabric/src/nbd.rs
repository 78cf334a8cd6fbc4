//! A blocking NBD client: fixed newstyle, one request at a time for a connection; simple replies, or structured ones
//! with metadata contexts where those are asked for ([`Client::connect_with`]): what is allocated, what a bitmap says.
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
/// The longest chunk that is taken: more is never asked for at once.
const CHUNK_MAX: u32 = (32 << 20) + 8;
/// What of a range is not allocated reads as zeroes: a flag of the context `base:allocation`.
pub const ZERO: u32 = 2;
/// What changed: a flag of the contexts `qemu:dirty-bitmap:…`.
pub const DIRTY: u32 = 1;

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
    /// An export on a socket of this host.
    pub fn on_unix(socket: &std::path::Path, export: &str) -> Self {
        Self { place: Place::Unix(socket.to_owned()), export: export.to_owned() }
    }

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
    structured: bool,
    /// The server's ids of the contexts that were asked for.
    contexts: Vec<u32>,
}

/// What a context says of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Bytes.
    pub length: u32,
    /// What they are, in the context's own flags.
    pub flags: u32,
}

impl Client {
    /// Connects. Every read and write ends after `patience` without progress.
    pub fn connect(uri: &Uri, patience: Duration) -> io::Result<Self> {
        Self::connect_with(uri, patience, &[])
    }

    /// The same with metadata contexts, of which [`Client::status`] tells by their place in this list.
    ///
    /// Errors: the server does not offer one of them.
    pub fn connect_with(uri: &Uri, patience: Duration, contexts: &[&str]) -> io::Result<Self> {
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
        let mut client =
            Self { stream, size: 0, read_only: false, cookie: 0, structured: false, contexts: Vec::new() };
        client.haggle(&uri.export, contexts)?;
        Ok(client)
    }

    fn haggle(&mut self, export: &str, contexts: &[&str]) -> io::Result<()> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        if &greeting[..8] != b"NBDMAGIC" || greeting[8..16] != OPTION_MAGIC.to_be_bytes() {
            return Err(violation("no NBD greeting"));
        }
        self.stream.write_all(&3u32.to_be_bytes())?;
        if !contexts.is_empty() {
            self.ask_contexts(export, contexts)?;
        }
        let mut hello = OPTION_MAGIC.to_be_bytes().to_vec();
        hello.extend_from_slice(&7u32.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32 + 6).to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        hello.extend_from_slice(&0u16.to_be_bytes());
        self.stream.write_all(&hello)?;
        for _ in 0..64 {
            let (kind, body) = self.option_reply(7)?;
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

    fn option_reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..8] != REPLY_MAGIC.to_be_bytes() || word(8) != option {
            return Err(violation("an answer to something else"));
        }
        let (kind, length) = (word(12), word(16));
        if length > OPTION_REPLY_MAX {
            return Err(violation("an answer longer than 64 KiB"));
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body)?;
        Ok((kind, body))
    }

    fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.stream.write_all(&out)
    }

    /// Agrees on structured replies, then on the contexts.
    fn ask_contexts(&mut self, export: &str, contexts: &[&str]) -> io::Result<()> {
        let refused = |what: String| io::Error::new(io::ErrorKind::Unsupported, what);
        self.option(8, &[])?;
        match self.option_reply(8)?.0 {
            1 => self.structured = true,
            kind if kind & 0x8000_0000 != 0 => {
                return Err(refused(format!("the server has no structured replies (NBD error {kind:#x})")));
            }
            _ => return Err(violation("an unknown answer")),
        }
        let mut asked = (export.len() as u32).to_be_bytes().to_vec();
        asked.extend_from_slice(export.as_bytes());
        asked.extend_from_slice(&(contexts.len() as u32).to_be_bytes());
        for context in contexts {
            asked.extend_from_slice(&(context.len() as u32).to_be_bytes());
            asked.extend_from_slice(context.as_bytes());
        }
        self.option(10, &asked)?;
        let mut offered: Vec<(u32, Vec<u8>)> = Vec::new();
        while offered.len() <= contexts.len() {
            match self.option_reply(10)? {
                (1, _) => {
                    for context in contexts {
                        let found = offered.iter().find(|(_, name)| name == context.as_bytes());
                        let (id, _) =
                            found.ok_or_else(|| refused(format!("the server does not tell {context}")))?;
                        self.contexts.push(*id);
                    }
                    return Ok(());
                }
                (4, body) if body.len() > 4 => {
                    offered
                        .push((u32::from_be_bytes([body[0], body[1], body[2], body[3]]), body[4..].to_vec()));
                }
                (kind, _) if kind & 0x8000_0000 != 0 => {
                    return Err(refused(format!(
                        "the server tells nothing of its content (NBD error {kind:#x})"
                    )));
                }
                _ => return Err(violation("an unknown answer")),
            }
        }
        Err(violation("more contexts than were asked for"))
    }

    /// What a context, by its place among those asked for, says from `offset` on: for the whole range or, as servers
    /// may, only for the beginning of it; never nothing.
    pub fn status(&mut self, context: usize, offset: u64, length: u32) -> io::Result<Vec<Status>> {
        let id = self.contexts.get(context).copied();
        let id =
            id.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such context was asked for"))?;
        self.request(0, 7, offset, length, &[])?;
        let mut found = Vec::new();
        self.chunks(|kind, body| {
            if kind != 5 {
                return Err(violation("a chunk that is no block status"));
            }
            let word = |part: &[u8]| u32::from_be_bytes([part[0], part[1], part[2], part[3]]);
            if body.len() < 12 || body.len() % 8 != 4 {
                return Err(violation("a block status of an odd length"));
            }
            if word(body) == id {
                let parts = body[4..].chunks_exact(8);
                found.extend(parts.map(|part| Status { length: word(part), flags: word(&part[4..]) }));
            }
            Ok(())
        })?;
        if found.is_empty() || found.iter().any(|status| status.length == 0) {
            return Err(violation("a block status without a range"));
        }
        Ok(found)
    }

    /// Takes the chunks of one structured reply.
    fn chunks(&mut self, mut take: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut failed = None;
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head)?;
            if head[..4] != 0x668e_33efu32.to_be_bytes() {
                return Err(violation("a chunk does not begin with its magic"));
            }
            if head[8..16] != self.cookie.to_be_bytes() {
                return Err(violation("a chunk of another reply"));
            }
            let (flags, kind) =
                (u16::from_be_bytes([head[4], head[5]]), u16::from_be_bytes([head[6], head[7]]));
            let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            if length > CHUNK_MAX {
                return Err(violation("a chunk that is too long"));
            }
            let mut body = vec![0; length as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                0 => {}
                kind if kind & 0x8000 != 0 => {
                    if body.len() < 4 {
                        return Err(violation("an error without a number"));
                    }
                    let code = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    failed = Some(io::Error::from_raw_os_error(i32::try_from(code).unwrap_or(5)));
                }
                kind => take(kind, &body)?,
            }
            if flags & 1 != 0 {
                return failed.map_or(Ok(()), Err);
            }
        }
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
        if !self.structured {
            self.reply()?;
            return self.stream.read_exact(out);
        }
        let mut missing = out.len();
        self.chunks(|kind, body| {
            let (at, rest) = body.split_at_checked(8).ok_or_else(|| violation("data without a place"))?;
            let at = u64::from_be_bytes(at.try_into().unwrap_or_default());
            let length = match kind {
                1 => rest.len(),
                2 if rest.len() == 4 => u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize,
                _ => return Err(violation("a chunk that is no data")),
            };
            let place = at.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
            let place = place.and_then(|at| out.get_mut(at..at.checked_add(length)?));
            let place = place.ok_or_else(|| violation("data that were not asked for"))?;
            if kind == 1 {
                place.copy_from_slice(rest)
            } else {
                place.fill(0)
            }
            missing = missing.saturating_sub(length);
            Ok(())
        })?;
        if missing > 0 { Err(violation("data are missing")) } else { Ok(()) }
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
        if self.structured {
            return self.chunks(|_, _| Err(violation("a chunk that is no answer to this")));
        }
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
