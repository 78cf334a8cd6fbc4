//! Requests and replies of one connection.
//!
//! A few workers share the connection. Whoever holds the input takes one request and puts the input back; it
//! wakes another worker only when more is at hand or when requests are slow here: a quick request at depth one
//! never changes threads, and a slow disk still gets as many requests as there are workers. Input goes through
//! one buffer: a burst of small requests costs one system call. A reply that is ready while another one is
//! being written goes out together with the next. Buffers belong to the worker and are used again.
//!
//! Memory: a read goes out in pieces of 1 MiB; a write's data is taken as it comes, so that a client that
//! promises 32 MiB and sends nothing costs nothing, and all large writes of a server share one limit.

use super::handshake::{Agreed, CONTEXT_ID, violation};
use super::server::{Connection, LargeGuard, Socket};
use super::{Extent, REQUEST_BYTES_MAX};
use std::io::{self, IoSlice, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_CACHE: u16 = 5;
const CMD_WRITE_ZEROES: u16 = 6;
const CMD_BLOCK_STATUS: u16 = 7;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 2;
const FLAG_DF: u16 = 4;
const FLAG_REQ_ONE: u16 = 8;
const FLAG_FAST_ZERO: u16 = 16;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = 0x8001;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

/// Workers of one connection.
const WORKERS: usize = 4;
/// Runs in one answer about allocation.
const EXTENTS_MAX: usize = 1024;
/// Reads go out in pieces of this size; a buffer that grew beyond it for one write is given back after it.
const PIECE: usize = 1 << 20;
/// A request over more than this is worth another thread.
const LARGE: u32 = 128 << 10;
/// Requests that take longer than this are, too.
const QUICK_NANOS: u64 = 40_000;
/// Replies up to this size may wait for the one being written; all that wait, up to [`READY_BYTES_MAX`].
const REPLY_WAITS: usize = 32 << 10;
const READY_BYTES_MAX: usize = 256 << 10;
/// Input that is read ahead: a few small writes.
const INPUT_BYTES: usize = 32 << 10;

#[derive(Clone, Copy)]
struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Request {
    /// Sure to take longer than it takes to wake a thread.
    const fn is_slow(&self) -> bool {
        self.flags & FLAG_FUA != 0 || self.command == CMD_FLUSH || self.length > LARGE
    }
}

struct Shared<'a> {
    connection: &'a Connection,
    agreed: &'a Agreed,
    turn: Mutex<Turn>,
    returned: Condvar,
    output: Mutex<Output>,
    written: Condvar,
    over: AtomicBool,
    /// How long a request took lately, in ns.
    recent: AtomicU64,
}

/// Who may take the next request.
struct Turn {
    /// `None`: a worker has it.
    input: Option<Input>,
    parked: usize,
}

/// What goes to the client.
#[derive(Default)]
struct Output {
    /// A worker is writing.
    busy: bool,
    /// Whole replies for it to write next.
    ready: Vec<u8>,
}

/// Serves requests until the client leaves or breaks the rules.
pub(super) fn serve(connection: &Connection, agreed: &Agreed) -> io::Result<()> {
    let shared = Shared {
        connection,
        agreed,
        turn: Mutex::new(Turn { input: Some(Input::default()), parked: 0 }),
        returned: Condvar::new(),
        output: Mutex::new(Output::default()),
        written: Condvar::new(),
        over: AtomicBool::new(false),
        // Until it has shown itself to be quick, the disk is taken to be slow.
        recent: AtomicU64::new(16 * QUICK_NANOS),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..WORKERS)
            .filter_map(|_| {
                std::thread::Builder::new().name("nbd".into()).spawn_scoped(scope, || shared.work()).ok()
            })
            .collect();
        let mut outcome = shared.work();
        for worker in workers {
            let ended = worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker died")));
            outcome = outcome.and(ended);
        }
        outcome
    })
}

/// What was read from the socket and not yet taken.
struct Input {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: vec![0; INPUT_BYTES].into(), start: 0, end: 0 }
    }
}

impl Input {
    const fn holds_more(&self) -> bool {
        self.end > self.start
    }

    fn read_exact(&mut self, mut socket: &Socket, mut out: &mut [u8]) -> io::Result<()> {
        loop {
            let at_hand = out.len().min(self.end - self.start);
            let (filled, rest) = out.split_at_mut(at_hand);
            filled.copy_from_slice(&self.bytes[self.start..self.start + at_hand]);
            self.start += at_hand;
            out = rest;
            if out.is_empty() {
                return Ok(());
            }
            // Much goes where it belongs without a detour.
            if out.len() >= self.bytes.len() {
                return socket.read_exact(out);
            }
            self.start = 0;
            self.end = 0;
            self.end = match socket.read(&mut self.bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
        }
    }
}

/// What a worker took from the input.
enum Taken<'a> {
    Request(Request, Option<LargeGuard<'a>>),
    /// A write for whose data there is no room: it was read and dropped.
    TooMuch(Request),
    Goodbye,
}

impl<'a> Shared<'a> {
    fn work(&self) -> io::Result<()> {
        let mut buffer = Vec::new();
        let mut extents = Vec::new();
        let worked = loop {
            let Some(mut input) = self.take_input() else { break Ok(()) };
            let taken = self.take(&mut input, &mut buffer);
            let goes_on = matches!(taken, Ok(Taken::Request(..) | Taken::TooMuch(_)));
            let wakes = match &taken {
                Ok(Taken::Request(request, _)) => {
                    input.holds_more()
                        || request.is_slow()
                        || self.recent.load(Ordering::Relaxed) > QUICK_NANOS
                }
                Ok(Taken::TooMuch(_) | Taken::Goodbye) | Err(_) => true,
            };
            self.return_input(input, goes_on, wakes);
            let answered = match taken {
                Ok(Taken::Request(request, _room)) => {
                    let started = Instant::now();
                    let answered = self.answer(request, &mut buffer, &mut extents);
                    let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    let before = self.recent.load(Ordering::Relaxed);
                    self.recent.store(before - before / 4 + took / 4, Ordering::Relaxed);
                    answered
                }
                Ok(Taken::TooMuch(request)) => self.reply_error(&request, ENOMEM),
                Ok(Taken::Goodbye) => break Ok(()),
                Err(error) => break Err(error),
            };
            if let Err(error) = answered {
                self.end();
                break Err(error);
            }
            if buffer.len() > PIECE {
                buffer = Vec::new();
            }
        };
        match worked {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            worked => worked,
        }
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the input. `None`: it is over.
    fn take_input(&self) -> Option<Input> {
        let mut turn = self.turn();
        loop {
            if self.over.load(Ordering::Acquire) {
                return None;
            }
            if let Some(input) = turn.input.take() {
                return Some(input);
            }
            turn.parked += 1;
            turn = self.returned.wait(turn).unwrap_or_else(PoisonError::into_inner);
            turn.parked -= 1;
        }
    }

    fn return_input(&self, input: Input, goes_on: bool, wakes: bool) {
        let mut turn = self.turn();
        turn.input = Some(input);
        if !goes_on {
            self.over.store(true, Ordering::Release);
            self.returned.notify_all();
        } else if wakes && turn.parked > 0 {
            self.returned.notify_one();
        }
    }

    /// Ends the connection: also the worker that waits for input, and those that wait for that one.
    fn end(&self) {
        self.connection.socket_ref().shutdown();
        let _turn = self.turn();
        self.over.store(true, Ordering::Release);
        self.returned.notify_all();
    }

    /// Takes a request, and a write's data into `buffer`.
    fn take(&self, input: &mut Input, buffer: &mut Vec<u8>) -> io::Result<Taken<'a>> {
        let socket = self.connection.socket_ref();
        let mut head = [0; 28];
        input.read_exact(socket, &mut head)?;
        let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if word(0) != REQUEST_MAGIC {
            return Err(violation("a request does not begin with its magic"));
        }
        let request = Request {
            flags: (word(4) >> 16) as u16,
            command: (word(4) & 0xffff) as u16,
            cookie: long(8),
            offset: long(16),
            length: word(24),
        };
        let length = request.length as usize;
        match request.command {
            CMD_DISC => return Ok(Taken::Goodbye),
            CMD_WRITE => {}
            _ => return Ok(Taken::Request(request, None)),
        }
        if request.length > REQUEST_BYTES_MAX {
            // Its data would have to be read to go on.
            return Err(violation("a write longer than 32 MiB"));
        }
        if length <= PIECE {
            grow(buffer, length);
            input.read_exact(socket, &mut buffer[..length])?;
            return Ok(Taken::Request(request, None));
        }
        let room = self.connection.reserve_large(length as u64);
        let mut at = 0;
        while at < length {
            let piece = PIECE.min(length - at);
            let start = if room.is_some() { at } else { 0 };
            grow(buffer, start + piece);
            input.read_exact(socket, &mut buffer[start..start + piece])?;
            at += piece;
        }
        Ok(if room.is_some() { Taken::Request(request, room) } else { Taken::TooMuch(request) })
    }

    fn answer(&self, request: Request, buffer: &mut Vec<u8>, extents: &mut Vec<Extent>) -> io::Result<()> {
        let device = &*self.agreed.device;
        let durable = request.flags & FLAG_FUA != 0;
        let (offset, length) = (request.offset, u64::from(request.length));
        if let Err(code) = self.check(&request) {
            return self.reply_error(&request, code);
        }
        let done = match request.command {
            CMD_READ => return self.read(&request, buffer),
            CMD_WRITE => device.write(offset, &buffer[..request.length as usize], durable),
            CMD_FLUSH => device.flush(),
            CMD_TRIM => device.zero(offset, length, true, durable),
            CMD_WRITE_ZEROES => device.zero(offset, length, request.flags & FLAG_NO_HOLE == 0, durable),
            CMD_CACHE => Ok(()),
            // Checked above: nothing else is left.
            _ => {
                extents.clear();
                match device.extents(offset, length, extents) {
                    Ok(()) => return self.reply_extents(&request, extents),
                    Err(error) => Err(error),
                }
            }
        };
        match done {
            Ok(()) => self.reply_done(&request),
            Err(error) => self.reply_error(&request, code_of(&error)),
        }
    }

    fn check(&self, request: &Request) -> Result<(), u32> {
        let device = &*self.agreed.device;
        let (known, writes, ranged) = match request.command {
            CMD_READ => (FLAG_DF, false, true),
            CMD_WRITE => (FLAG_FUA, true, true),
            CMD_FLUSH => (0, false, false),
            CMD_TRIM => (FLAG_FUA, true, true),
            CMD_CACHE => (0, false, true),
            CMD_WRITE_ZEROES => (FLAG_FUA | FLAG_NO_HOLE, true, true),
            CMD_BLOCK_STATUS if self.agreed.allocation => (FLAG_REQ_ONE, false, true),
            _ => return Err(EINVAL),
        };
        if request.command == CMD_WRITE_ZEROES && request.flags & FLAG_FAST_ZERO != 0 {
            return Err(ENOTSUP);
        }
        // FUA on a read is allowed to be ignored.
        if request.flags & !(known | FLAG_FUA) != 0 {
            return Err(EINVAL);
        }
        if writes && device.read_only() {
            return Err(EPERM);
        }
        if !ranged {
            return if request.offset == 0 && request.length == 0 { Ok(()) } else { Err(EINVAL) };
        }
        let inside =
            request.offset.checked_add(request.length.into()).is_some_and(|end| end <= device.size());
        if request.length == 0 || (request.command == CMD_READ && request.length > REQUEST_BYTES_MAX) {
            return Err(EINVAL);
        }
        if !inside {
            return Err(if writes { ENOSPC } else { EINVAL });
        }
        Ok(())
    }

    fn reply_done(&self, request: &Request) -> io::Result<()> {
        if self.agreed.structured {
            self.chunk(request, CHUNK_DONE, CHUNK_NONE, &[], &[])
        } else {
            self.simple(request, 0)
        }
    }

    /// Reads and replies, in pieces where it is much.
    fn read(&self, request: &Request, buffer: &mut Vec<u8>) -> io::Result<()> {
        let device = &*self.agreed.device;
        let mut left = request.length as usize;
        let mut offset = request.offset;
        let whole = request.flags & FLAG_DF != 0;
        let mut writing = None;
        loop {
            let piece = if whole { left } else { left.min(PIECE) };
            grow(buffer, piece);
            let data = &mut buffer[..piece];
            let last = piece == left;
            match (device.read(offset, data), &writing) {
                (Ok(()), _) if self.agreed.structured => {
                    let done = if last { CHUNK_DONE } else { 0 };
                    self.chunk(request, done, CHUNK_OFFSET_DATA, &offset.to_be_bytes(), data)?;
                }
                (Ok(()), None) if last => return self.send(&[&simple_head(request, 0), data]),
                (Ok(()), None) => {
                    let socket = self.write_alone();
                    let head = simple_head(request, 0);
                    write_all_of(socket.shared.socket(), &mut [IoSlice::new(&head), IoSlice::new(data)])?;
                    // The rest of a simple reply belongs right behind.
                    writing = Some(socket);
                }
                (Ok(()), Some(socket)) => write_all_of(socket.shared.socket(), &mut [IoSlice::new(data)])?,
                (Err(error), None) => return self.reply_error(request, code_of(&error)),
                // A simple reply that began well cannot become an error any more.
                (Err(error), Some(_)) => return Err(error),
            }
            if last {
                return writing.map_or(Ok(()), Writing::done);
            }
            left -= piece;
            offset += piece as u64;
        }
    }

    fn reply_error(&self, request: &Request, code: u32) -> io::Result<()> {
        if self.agreed.structured {
            let mut body = code.to_be_bytes().to_vec();
            body.extend_from_slice(&0u16.to_be_bytes());
            self.chunk(request, CHUNK_DONE, CHUNK_ERROR, &body, &[])
        } else {
            self.simple(request, code)
        }
    }

    fn reply_extents(&self, request: &Request, extents: &[Extent]) -> io::Result<()> {
        let most = if request.flags & FLAG_REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let mut body = CONTEXT_ID.to_be_bytes().to_vec();
        let mut left = u64::from(request.length);
        for extent in extents.iter().take(most) {
            let length = extent.length.min(left);
            if length == 0 {
                break;
            }
            left -= length;
            body.extend_from_slice(&(length as u32).to_be_bytes());
            // A hole that reads as zeroes: both flags.
            body.extend_from_slice(&(if extent.data { 0u32 } else { 3 }).to_be_bytes());
        }
        self.chunk(request, CHUNK_DONE, CHUNK_BLOCK_STATUS, &body, &[])
    }

    fn simple(&self, request: &Request, code: u32) -> io::Result<()> {
        self.send(&[&simple_head(request, code)])
    }

    fn chunk(&self, request: &Request, flags: u16, kind: u16, body: &[u8], data: &[u8]) -> io::Result<()> {
        let mut head = [0; 20];
        head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        head[4..6].copy_from_slice(&flags.to_be_bytes());
        head[6..8].copy_from_slice(&kind.to_be_bytes());
        head[8..16].copy_from_slice(&request.cookie.to_be_bytes());
        head[16..].copy_from_slice(&((body.len() + data.len()) as u32).to_be_bytes());
        self.send(&[&head, body, data])
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self) -> &Socket {
        self.connection.socket_ref()
    }

    /// Sends a whole reply, or leaves a small one to the worker that is writing.
    fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        {
            let mut output = self.output();
            if output.busy && length <= REPLY_WAITS && output.ready.len() + length <= READY_BYTES_MAX {
                parts.iter().for_each(|part| output.ready.extend_from_slice(part));
                return Ok(());
            }
        }
        let writing = self.write_alone();
        let mut slices = [IoSlice::new(&[]); 3];
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        write_all_of(self.socket(), &mut slices)?;
        writing.done()
    }

    /// Waits until nobody writes.
    fn write_alone(&self) -> Writing<'_, 'a> {
        let mut output = self.output();
        while output.busy {
            output = self.written.wait(output).unwrap_or_else(PoisonError::into_inner);
        }
        output.busy = true;
        Writing { shared: self, held: true }
    }
}

/// The right to write to the client.
struct Writing<'s, 'a> {
    shared: &'s Shared<'a>,
    held: bool,
}

impl Writing<'_, '_> {
    /// Writes what others left meanwhile, too, and gives the right back.
    fn done(mut self) -> io::Result<()> {
        let mut batch = Vec::new();
        loop {
            batch.clear();
            {
                let mut output = self.shared.output();
                if output.ready.is_empty() {
                    // In one step with looking: who comes now writes itself.
                    output.busy = false;
                    self.held = false;
                    drop(output);
                    self.shared.written.notify_one();
                    return Ok(());
                }
                std::mem::swap(&mut output.ready, &mut batch);
            }
            let mut socket = self.shared.socket();
            socket.write_all(&batch)?;
        }
    }
}

impl Drop for Writing<'_, '_> {
    /// Writing failed: the connection ends, and nobody may wait for this worker.
    fn drop(&mut self) {
        if self.held {
            self.shared.output().busy = false;
            self.shared.written.notify_one();
        }
    }
}

/// Makes a buffer at least this long; what it holds does not matter.
fn grow(buffer: &mut Vec<u8>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
}

fn simple_head(request: &Request, code: u32) -> [u8; 16] {
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&code.to_be_bytes());
    head[8..].copy_from_slice(&request.cookie.to_be_bytes());
    head
}

fn write_all_of(mut socket: &Socket, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
    while parts.iter().any(|part| !part.is_empty()) {
        match socket.write_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut parts, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn code_of(error: &io::Error) -> u32 {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => EPERM,
        io::ErrorKind::OutOfMemory => ENOMEM,
        io::ErrorKind::InvalidInput => EINVAL,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ENOSPC,
        _ => EIO,
    }
}
