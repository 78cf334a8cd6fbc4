//! A plain NBD client, written from the protocol document and sharing no code with the server; scratch folders.
#![allow(dead_code)] // each test takes what it needs

pub mod target;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

pub use continuum_capture::nbd::Endpoint;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;
pub const FUA: u16 = 1;

/// In memory where there is such a place: a test should not wait for the disk of whoever runs it.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

pub enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        let stream = match endpoint {
            Endpoint::Unix(path) => Self::Unix(UnixStream::connect(path)?),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
        };
        // Against tests that hang.
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    }
    pub fn set_read_timeout(&self, after: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.set_read_timeout(after),
            Self::Tcp(stream) => stream.set_read_timeout(after),
        }
    }
    pub fn u16(&mut self) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.read_exact(&mut bytes)?;
        Ok(u16::from_be_bytes(bytes))
    }
    pub fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }
    pub fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
    /// Reads the greeting and answers with our flags.
    pub fn greet(&mut self, flags: u32) -> io::Result<()> {
        assert_eq!(self.u64()?, 0x4e42_444d_4147_4943);
        assert_eq!(self.u64()?, 0x4948_4156_454f_5054);
        assert_eq!(self.u16()? & 1, 1, "fixed newstyle");
        self.write_all(&flags.to_be_bytes())
    }
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut out = 0x4948_4156_454f_5054u64.to_be_bytes().to_vec();
        out.extend_from_slice(&option.to_be_bytes());
        out.extend_from_slice(&(data.len() as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.write_all(&out)
    }
    /// One option reply: its kind and data.
    pub fn option_reply(&mut self, option: u32) -> io::Result<(u32, Vec<u8>)> {
        assert_eq!(self.u64()?, 0x3_e889_0455_65a9);
        assert_eq!(self.u32()?, option);
        let kind = self.u32()?;
        let mut data = vec![0; self.u32()? as usize];
        self.read_exact(&mut data)?;
        Ok((kind, data))
    }
    pub fn request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<()> {
        let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&command.to_be_bytes());
        out.extend_from_slice(&cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(data);
        self.write_all(&out)
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

/// A client that has an export.
pub struct Client {
    pub stream: Stream,
    pub size: u64,
    pub flags: u16,
    structured: bool,
    lengths: HashMap<u64, (u32, u64)>,
    next: u64,
}

/// The outcome of a request: what was read (or the block status words), or an NBD error code.
pub type Outcome = Result<Vec<u8>, u32>;

pub fn go_data(export: &str) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&0u16.to_be_bytes());
    data
}

impl Client {
    pub fn connect(endpoint: &Endpoint, export: &str, structured: bool) -> io::Result<Self> {
        let mut stream = Stream::connect(endpoint)?;
        stream.greet(3)?;
        if structured {
            stream.option(8, &[])?;
            assert_eq!(stream.option_reply(8)?.0, 1);
            let mut data = (export.len() as u32).to_be_bytes().to_vec();
            data.extend_from_slice(export.as_bytes());
            data.extend_from_slice(&1u32.to_be_bytes());
            data.extend_from_slice(&15u32.to_be_bytes());
            data.extend_from_slice(b"base:allocation");
            stream.option(10, &data)?;
            while stream.option_reply(10)?.0 == 4 {}
        }
        stream.option(7, &go_data(export))?;
        let (mut size, mut flags) = (0, 0);
        loop {
            match stream.option_reply(7)? {
                (1, _) => break,
                (3, info) if info[..2] == [0, 0] => {
                    size = u64::from_be_bytes(info[2..10].try_into().unwrap());
                    flags = u16::from_be_bytes(info[10..12].try_into().unwrap());
                }
                (3, _) => {}
                (error, text) => {
                    let text = String::from_utf8_lossy(&text).into_owned();
                    return Err(io::Error::other(format!("{error:x} {text}")));
                }
            }
        }
        Ok(Self { stream, size, flags, structured, lengths: HashMap::new(), next: 1 })
    }

    /// Sends a request and returns its cookie.
    pub fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        data: &[u8],
    ) -> io::Result<u64> {
        let cookie = self.next;
        self.next += 1;
        if command == READ {
            self.lengths.insert(cookie, (length, offset));
        }
        self.stream.request(command, flags, cookie, offset, length, data)?;
        Ok(cookie)
    }

    /// The next whole reply, to whichever request.
    pub fn receive(&mut self) -> io::Result<(u64, Outcome)> {
        let magic = self.stream.u32()?;
        if magic == 0x6744_6698 {
            let code = self.stream.u32()?;
            let cookie = self.stream.u64()?;
            let read = self.lengths.remove(&cookie);
            if code != 0 {
                return Ok((cookie, Err(code)));
            }
            let mut data = vec![0; read.map_or(0, |(length, _)| length as usize)];
            self.stream.read_exact(&mut data)?;
            return Ok((cookie, Ok(data)));
        }
        // Chunks of different requests may come in turns; whoever asks for such must ask for one at a time.
        assert!(self.structured && magic == 0x668e_33ef, "reply magic {magic:x}");
        let (mut out, mut failed) = (Vec::new(), None);
        let mut flags = self.stream.u16()?;
        loop {
            let kind = self.stream.u16()?;
            let cookie = self.stream.u64()?;
            let mut body = vec![0; self.stream.u32()? as usize];
            self.stream.read_exact(&mut body)?;
            match kind {
                0 => {}
                1 => {
                    let (length, start) = self.lengths[&cookie];
                    out.resize(length as usize, 0);
                    let at = (u64::from_be_bytes(body[..8].try_into().unwrap()) - start) as usize;
                    out[at..at + body.len() - 8].copy_from_slice(&body[8..]);
                }
                5 => out = body[4..].to_vec(),
                0x8001 => failed = Some(u32::from_be_bytes(body[..4].try_into().unwrap())),
                kind => panic!("chunk kind {kind:x}"),
            }
            if flags & 1 == 1 {
                self.lengths.remove(&cookie);
                return Ok((cookie, failed.map_or(Ok(out), Err)));
            }
            assert_eq!(self.stream.u32()?, 0x668e_33ef);
            flags = self.stream.u16()?;
        }
    }

    /// One request and its outcome.
    pub fn call(&mut self, command: u16, flags: u16, offset: u64, length: u32, data: &[u8]) -> Outcome {
        let cookie = self.send(command, flags, offset, length, data).unwrap();
        let (answered, outcome) = self.receive().unwrap();
        assert_eq!(answered, cookie);
        outcome
    }
    pub fn read(&mut self, offset: u64, length: u32) -> Outcome {
        self.call(READ, 0, offset, length, &[])
    }
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Outcome {
        self.call(WRITE, 0, offset, data.len() as u32, data)
    }
    pub fn zero(&mut self, offset: u64, length: u32) -> Outcome {
        self.call(WRITE_ZEROES, 0, offset, length, &[])
    }
    pub fn flush(&mut self) -> Outcome {
        self.call(FLUSH, 0, 0, 0, &[])
    }
}
