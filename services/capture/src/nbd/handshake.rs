//! Option haggling: from the greeting until a client has chosen an export.

use super::server::{Connection, Socket};
use super::{BlockDevice, REQUEST_BYTES_MAX};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x3_e889_0455_65a9;
const OPTION_BYTES_MAX: u32 = 64 << 10;
const NAME_BYTES_MAX: usize = 4096;
/// Options before a client must have made up its mind.
const OPTIONS_MAX: usize = 64;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED_REPLY: u32 = 8;
const OPT_LIST_META_CONTEXT: u32 = 9;
const OPT_SET_META_CONTEXT: u32 = 10;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const REP_ERR_INVALID: u32 = 0x8000_0003;
const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

/// The one context we know.
pub(super) const CONTEXT_NAME: &str = "base:allocation";
/// Its number in replies.
pub(super) const CONTEXT_ID: u32 = 1;

/// What was agreed on.
pub(super) struct Agreed {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) export: String,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

/// A socket that is given up at a moment, however busy its peer looks.
struct Until<'a> {
    socket: &'a Socket,
    deadline: Instant,
}

impl Until<'_> {
    fn arm(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "handshake not finished in 10 s"));
        }
        self.socket.deadlines(Some(left), left)
    }
}

impl Read for Until<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        let mut socket = self.socket;
        socket.read(out)
    }
}

impl Write for Until<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.arm()?;
        let mut socket = self.socket;
        socket.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Haggles until `deadline`. `None`: the client left in good order.
pub(super) fn haggle(connection: &Connection, deadline: Instant) -> io::Result<Option<Agreed>> {
    let mut io = Until { socket: connection.socket_ref(), deadline };
    let mut greeting = Vec::with_capacity(18);
    greeting.extend_from_slice(&MAGIC.to_be_bytes());
    greeting.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    greeting.extend_from_slice(&3u16.to_be_bytes()); // fixed newstyle, no zeroes
    io.write_all(&greeting)?;
    let flags = read_u32(&mut io)?;
    if flags & !3 != 0 {
        return Err(violation("unknown client flags"));
    }
    let no_zeroes = flags & 2 != 0;
    let (mut structured, mut context_of) = (false, None::<String>);
    for _ in 0..OPTIONS_MAX {
        if read_u64(&mut io)? != OPTION_MAGIC {
            return Err(violation("an option does not begin with IHAVEOPT"));
        }
        let option = read_u32(&mut io)?;
        let length = read_u32(&mut io)?;
        if length > OPTION_BYTES_MAX {
            // Not read: nothing of it is worth the time.
            let _ = reply(&mut io, option, REP_ERR_TOO_BIG, b"option is longer than 64 KiB");
            return Err(violation("an option longer than 64 KiB"));
        }
        let mut data = vec![0; length as usize];
        io.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => {
                // The old way has no error reply: an unknown name ends the connection.
                let name = export_name(&data).ok_or_else(|| violation("a bad export name"))?;
                let (export, device) =
                    connection.find(&name).ok_or_else(|| violation("an unknown export"))?;
                let mut out = Vec::with_capacity(134);
                out.extend_from_slice(&device.size().to_be_bytes());
                out.extend_from_slice(&transmission_flags(&*device).to_be_bytes());
                if !no_zeroes {
                    out.resize(out.len() + 124, 0);
                }
                io.write_all(&out)?;
                return Ok(Some(Agreed {
                    device,
                    allocation: context_of.as_ref() == Some(&name),
                    export,
                    structured,
                }));
            }
            OPT_ABORT => {
                let _ = reply(&mut io, option, REP_ACK, &[]);
                return Ok(None);
            }
            OPT_LIST => {
                if !data.is_empty() {
                    reply(&mut io, option, REP_ERR_INVALID, b"LIST takes no data")?;
                    continue;
                }
                for name in connection.names() {
                    let mut body = (name.len() as u32).to_be_bytes().to_vec();
                    body.extend_from_slice(name.as_bytes());
                    reply(&mut io, option, REP_SERVER, &body)?;
                }
                reply(&mut io, option, REP_ACK, &[])?;
            }
            OPT_INFO | OPT_GO => {
                let Some(name) = info_name(&data) else {
                    reply(
                        &mut io,
                        option,
                        REP_ERR_INVALID,
                        b"malformed request, or a name over 4096 bytes or not UTF-8",
                    )?;
                    continue;
                };
                let Some((export, device)) = connection.find(&name) else {
                    reply(&mut io, option, REP_ERR_UNKNOWN, b"no such export")?;
                    continue;
                };
                let mut info = 0u16.to_be_bytes().to_vec();
                info.extend_from_slice(&device.size().to_be_bytes());
                info.extend_from_slice(&transmission_flags(&*device).to_be_bytes());
                reply(&mut io, option, REP_INFO, &info)?;
                let mut sizes = 3u16.to_be_bytes().to_vec();
                for size in [1u32, 4096, REQUEST_BYTES_MAX] {
                    sizes.extend_from_slice(&size.to_be_bytes());
                }
                reply(&mut io, option, REP_INFO, &sizes)?;
                reply(&mut io, option, REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(Some(Agreed {
                        device,
                        allocation: context_of.as_ref() == Some(&name),
                        export,
                        structured,
                    }));
                }
            }
            OPT_STRUCTURED_REPLY => {
                if data.is_empty() {
                    structured = true;
                    reply(&mut io, option, REP_ACK, &[])?;
                } else {
                    reply(&mut io, option, REP_ERR_INVALID, b"STRUCTURED_REPLY takes no data")?;
                }
            }
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => {
                let set = option == OPT_SET_META_CONTEXT;
                if set {
                    // Each attempt replaces the one before, also one that fails.
                    context_of = None;
                }
                let Some((name, queries)) = context_queries(&data) else {
                    reply(&mut io, option, REP_ERR_INVALID, b"malformed query")?;
                    continue;
                };
                if !structured {
                    reply(&mut io, option, REP_ERR_INVALID, b"ask for structured replies first")?;
                    continue;
                }
                if connection.find(&name).is_none() {
                    reply(&mut io, option, REP_ERR_UNKNOWN, b"no such export")?;
                    continue;
                }
                let wanted = queries.iter().any(|query| query == CONTEXT_NAME || (!set && query == "base:"))
                    || (!set && queries.is_empty());
                if set {
                    context_of = wanted.then_some(name);
                }
                if wanted {
                    let mut body = (if set { CONTEXT_ID } else { 0 }).to_be_bytes().to_vec();
                    body.extend_from_slice(CONTEXT_NAME.as_bytes());
                    reply(&mut io, option, REP_META_CONTEXT, &body)?;
                }
                reply(&mut io, option, REP_ACK, &[])?;
            }
            _ => reply(&mut io, option, REP_ERR_UNSUP, b"not supported")?,
        }
    }
    Err(violation("more than 64 options"))
}

fn transmission_flags(device: &dyn BlockDevice) -> u16 {
    // has flags, flush, FUA, trim, write zeroes, multi-connection, cache
    let flags = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
    if device.read_only() { flags | 1 << 1 } else { flags }
}

fn reply(io: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(20 + data.len());
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    io.write_all(&out)
}

fn export_name(bytes: &[u8]) -> Option<String> {
    (bytes.len() <= NAME_BYTES_MAX).then(|| String::from_utf8(bytes.to_vec()).ok()).flatten()
}

fn split_name(data: &[u8]) -> Option<(String, &[u8])> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some((export_name(name)?, rest))
}

fn info_name(data: &[u8]) -> Option<String> {
    let (name, rest) = split_name(data)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    (rest.len() == usize::from(u16::from_be_bytes(*count)) * 2).then_some(name)
}

fn context_queries(data: &[u8]) -> Option<(String, Vec<String>)> {
    let (name, rest) = split_name(data)?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    // Each query takes at least its length: a count beyond that is a lie.
    if count as usize > rest.len() / 4 {
        return None;
    }
    let mut queries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (query, after) = split_name(rest)?;
        queries.push(query);
        rest = after;
    }
    rest.is_empty().then_some((name, queries))
}

pub(super) fn violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("protocol violation by the client: {what}"))
}

pub(super) fn read_u32(io: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    io.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(io: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    io.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
