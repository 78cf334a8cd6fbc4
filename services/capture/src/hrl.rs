//! The Hyper-V Replica Log: the writes of one disk in a file that others write and read, too ([MS-HRL] 5.0).
//!
//! All fields little-endian, packed.
//!
//! ```text
//! file      header (4096 bytes), then any number of [ data of n writes ][ metadata block (4096 bytes) ]
//! header    0  "msctlog "               8  version u32 = 0x00020000    12 created u32, s since 2000 UTC
//!           16 creator [4]              20 creator version u32         24 original size of the disk u64
//!           32 its current size u64     40 checksum u32                44 end of the log u64; 0: not closed
//!           52 error code i32           56 metadata size u32 = 4096    60 id [16]
//!           76 the log before [16]      92 last modified u32           96 writes in total u64
//!           104 file type u32 = 0       108 flags u16 = 0              110 the disk's data-write GUID [16]
//!           126 zero to the end
//! metadata  0 distance back to the block before u64; 0: the first     8 writes u32
//!           12 checksum u32             16 zero [16]                   32 127 entries
//! entry     0 offset on the disk u64    8  checksum u32                12 length u32
//!           16 time u32                 20 operation u8 = 1 (write)    21 checksum of the data u32
//!           25 location u8 = 0          26 zero [6]
//! ```
//!
//! A checksum is the complement of the sum of all bytes but its own four: of the header's 4096 bytes, of a
//! block's first 32, of an entry's 32, of the data. Any one byte that changed is found. Bytes that were
//! exchanged with one another are *not*: the format is weak there, which is why a feed is staged as frames.
//!
//! A block describes the data between the block before (or the header) and itself, without a hole. So a log
//! can be read only from its end, which is in the header only when it was closed: one that was not tells
//! nothing of what it holds, and its disk has to be compared. We begin each log with an empty block, as the
//! original does.
//!
//! Lives here: the bytes of one log, and the order of several. What is made of them: [`crate::exchange`].
//! Invariant: a limit is checked before anything is allocated for it, and no distance is followed that does
//! not lead back by exactly what its block says it describes.

use continuum_model::time::Timestamp;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt;
use uuid::Uuid;

/// Bytes of the header.
pub const HEADER_BYTES: u64 = 4096;
/// Bytes of a metadata block.
pub const BLOCK_BYTES: u64 = 4096;
/// Writes that one block describes.
pub const ENTRIES_MAX: usize = 127;
/// Blocks that are followed: 500 million writes, 32 MiB of their places in memory.
pub const BLOCKS_MAX: usize = 1 << 22;
const ENTRY_BYTES: usize = 32;
const COOKIE: &[u8; 8] = b"msctlog ";
const VERSION: u32 = 0x0002_0000;
/// 2000-01-01 in seconds of Unix.
const EPOCH: i64 = 946_684_800;
/// Data is read and written in pieces of this.
const PIECE: usize = 1 << 20;

/// A GUID as the format keeps it: the first three parts little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Guid(Uuid);

impl Guid {
    /// A new one.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
    /// From its bytes in a file.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes_le(bytes))
    }
    /// Its bytes in a file.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_bytes_le()
    }
    /// The same id, as others in Continuum are written.
    pub const fn uuid(self) -> Uuid {
        self.0
    }
    /// Whether it names nothing.
    pub const fn is_nil(self) -> bool {
        self.0.is_nil()
    }
}

impl From<Uuid> for Guid {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a log says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// When it was begun.
    pub created: Timestamp,
    /// When it was written to last.
    pub modified: Timestamp,
    /// Which program made it. Text from outside.
    pub creator: [u8; 4],
    /// Of which version.
    pub creator_version: u32,
    /// The size of the disk when it was made, in bytes.
    pub original_size: u64,
    /// Its size now, in bytes.
    pub size: u64,
    /// Where the log ends; `None`: it was not closed.
    pub end: Option<u64>,
    /// What went wrong while it was written; 0: nothing.
    pub error: i32,
    /// Which log.
    pub id: Guid,
    /// The log that it goes on from; nil: none.
    pub previous: Guid,
    /// How many writes it holds.
    pub writes: u64,
    /// Changes whenever a virtual disk is written to. Another one on the disk than here: nobody looked.
    pub data_write: Guid,
}

/// A write of a log; its data is read with [`Log::read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Byte offset on the disk.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// When, to the second.
    pub time: Timestamp,
    /// Where its data is in the file.
    pub data_at: u64,
    /// The data's checksum.
    pub sum: u32,
}

/// Why a file is no log that can be used.
#[derive(Debug, thiserror::Error)]
pub enum HrlError {
    /// The file itself.
    #[error("it cannot be read or written")]
    Io(#[from] io::Error),
    /// Something else.
    #[error("it is no replication log: it does not begin with `msctlog `")]
    Other,
    /// Shorter than what it says.
    #[error("it is cut: {there} bytes are there, and {needed} are needed")]
    Cut {
        /// Bytes that are there.
        there: u64,
        /// Bytes that should be.
        needed: u64,
    },
    /// A checksum does not match.
    #[error("{part} at byte {at} does not match its checksum")]
    Sum {
        /// Of what.
        part: &'static str,
        /// Where that begins in the file.
        at: u64,
    },
    /// A field says what cannot be, or what this program does not know.
    #[error("{field} at byte {at} is not what it can be")]
    Field {
        /// Which field.
        field: &'static str,
        /// Where the part of the file that holds it begins.
        at: u64,
    },
    /// Nobody ended it in good order.
    #[error(
        "it was not closed: whoever wrote it ended in the middle, and what it holds cannot be told; the disk has \
         to be compared (a resync)"
    )]
    NotClosed,
    /// Its writer noted an error.
    #[error("its writer noted error {0}: writes are missing, and the disk has to be compared (a resync)")]
    Failed(i32),
    /// A write that no log can hold.
    #[error("a write of {length} bytes at {offset} does not fit a disk of {size} bytes")]
    Bounds {
        /// Its offset.
        offset: u64,
        /// Its length.
        length: u64,
        /// The disk's size.
        size: u64,
    },
    /// A moment that no log can hold.
    #[error("the moment {0} is not between 2000 and 2136, and a log knows no other")]
    Moment(Timestamp),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

fn guid(bytes: &[u8], at: usize) -> Guid {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Guid::from_bytes(id)
}

/// The sum that checksums are the complement of, over one piece after the other.
#[derive(Debug, Clone, Copy, Default)]
struct Sum(u32);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        // Chunks short enough for 32 bits: summed without an overflow in sight, so in vector registers.
        for chunk in bytes.chunks(1 << 16) {
            self.0 = self.0.wrapping_add(chunk.iter().map(|byte| u32::from(*byte)).sum());
        }
    }
    const fn checksum(self) -> u32 {
        !self.0
    }
}

/// The checksum of data.
pub fn checksum(data: &[u8]) -> u32 {
    let mut sum = Sum::default();
    sum.add(data);
    sum.checksum()
}

/// The checksum of a structure that holds it itself, at `field`.
fn checksum_around(bytes: &[u8], field: usize) -> u32 {
    let mut sum = Sum::default();
    sum.add(&bytes[..field]);
    sum.add(&bytes[field + 4..]);
    sum.checksum()
}

fn seconds(moment: Timestamp) -> Result<u32, HrlError> {
    let seconds = moment.micros().div_euclid(1_000_000) - EPOCH;
    u32::try_from(seconds).map_err(|_| HrlError::Moment(moment))
}

fn moment(seconds: u32) -> Timestamp {
    Timestamp::from_micros((i64::from(seconds) + EPOCH) * 1_000_000)
}

impl Header {
    /// Whether a log of `bytes` has outgrown what is worth keeping: over half of its disk, comparing costs less.
    pub const fn is_over_half(&self, bytes: u64) -> bool {
        bytes > self.size / 2
    }

    fn decode(bytes: &[u8]) -> Result<Self, HrlError> {
        if bytes.get(..8) != Some(COOKIE) {
            return Err(HrlError::Other);
        }
        if bytes.len() < HEADER_BYTES as usize {
            return Err(HrlError::Cut { there: bytes.len() as u64, needed: HEADER_BYTES });
        }
        if checksum_around(bytes, 40) != word(bytes, 40) {
            return Err(HrlError::Sum { part: "the header", at: 0 });
        }
        let known = [
            ("the version (this program reads 2.0)", word(bytes, 8) == VERSION),
            ("the size of metadata (this program reads 4096)", u64::from(word(bytes, 56)) == BLOCK_BYTES),
            ("the file type", word(bytes, 104) == 0),
            ("the flags", bytes[108..110] == [0; 2]),
            ("the size of the disk", (1..=i64::MAX as u64).contains(&long(bytes, 32))),
        ];
        if let Some((field, _)) = known.iter().find(|(_, is_known)| !is_known) {
            return Err(HrlError::Field { field, at: 0 });
        }
        Ok(Self {
            created: moment(word(bytes, 12)),
            creator: bytes[16..20].try_into().unwrap_or_default(),
            creator_version: word(bytes, 20),
            original_size: long(bytes, 24),
            size: long(bytes, 32),
            end: Some(long(bytes, 44)).filter(|end| *end != 0),
            error: word(bytes, 52).cast_signed(),
            id: guid(bytes, 60),
            previous: guid(bytes, 76),
            modified: moment(word(bytes, 92)),
            writes: long(bytes, 96),
            data_write: guid(bytes, 110),
        })
    }

    fn encode(&self) -> Result<Vec<u8>, HrlError> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        put(8, &VERSION.to_le_bytes());
        put(12, &seconds(self.created)?.to_le_bytes());
        put(16, &self.creator);
        put(20, &self.creator_version.to_le_bytes());
        put(24, &self.original_size.to_le_bytes());
        put(32, &self.size.to_le_bytes());
        put(44, &self.end.unwrap_or(0).to_le_bytes());
        put(52, &self.error.to_le_bytes());
        put(56, &(BLOCK_BYTES as u32).to_le_bytes());
        put(60, &self.id.to_bytes());
        put(76, &self.previous.to_bytes());
        put(92, &seconds(self.modified)?.to_le_bytes());
        put(96, &self.writes.to_le_bytes());
        put(110, &self.data_write.to_bytes());
        let sum = checksum_around(&bytes, 40);
        bytes[40..44].copy_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }
}

/// Reads the header alone, for whoever looks. `None`: the file is no log.
pub fn look(file: &File) -> io::Result<Option<Result<Header, HrlError>>> {
    let there = file.metadata()?.len().min(HEADER_BYTES) as usize;
    let mut bytes = vec![0; there];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(match Header::decode(&bytes) {
        Err(HrlError::Other) => None,
        read => Some(read),
    })
}

/// A log that was closed, and whose structure is whole. Its data is verified where it is read.
#[derive(Debug)]
pub struct Log {
    file: File,
    header: Header,
    bytes: u64,
    /// Where the blocks are, the oldest first.
    blocks: Vec<u64>,
}

/// A metadata block, verified.
struct Block {
    at: u64,
    distance: u64,
    entries: Vec<u8>,
}

impl Block {
    fn read(file: &File, at: u64, size: u64) -> Result<Self, HrlError> {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        file.read_exact_at(&mut bytes, at)?;
        let head = &bytes[..ENTRY_BYTES];
        if checksum_around(head, 12) != word(head, 12) {
            return Err(HrlError::Sum { part: "the metadata block", at });
        }
        let (distance, count) = (long(head, 0), word(head, 8) as usize);
        if count > ENTRIES_MAX {
            return Err(HrlError::Field { field: "the number of writes in the metadata block", at });
        }
        bytes.truncate((count + 1) * ENTRY_BYTES);
        bytes.drain(..ENTRY_BYTES);
        let block = Self { at, distance, entries: bytes };
        // Whatever this block says: what it describes is what lies between it and the one before.
        let described = block.described();
        let from = match distance {
            0 => HEADER_BYTES,
            _ => at
                .checked_sub(distance)
                .filter(|before| *before >= HEADER_BYTES && distance >= BLOCK_BYTES)
                .ok_or(HrlError::Field { field: "the distance in the metadata block", at })?
                .saturating_add(BLOCK_BYTES),
        };
        if from.checked_add(described) != Some(at) {
            return Err(HrlError::Field { field: "the distance or a length in the metadata block", at });
        }
        for (index, entry) in block.entries.chunks_exact(ENTRY_BYTES).enumerate() {
            let entry_at = at + ((index + 1) * ENTRY_BYTES) as u64;
            if checksum_around(entry, 8) != word(entry, 8) {
                return Err(HrlError::Sum { part: "the entry", at: entry_at });
            }
            let field = |field| Err(HrlError::Field { field, at: entry_at });
            if entry[20] != 1 || entry[25] != 0 {
                return field("the operation or location of the entry");
            }
            let (offset, length) = (long(entry, 0), u64::from(word(entry, 12)));
            if length == 0 || offset.checked_add(length).is_none_or(|end| end > size) {
                return field("the range of the entry");
            }
        }
        Ok(block)
    }

    fn described(&self) -> u64 {
        self.entries.chunks_exact(ENTRY_BYTES).map(|entry| u64::from(word(entry, 12))).sum()
    }

    const fn before(&self) -> Option<u64> {
        match self.distance {
            0 => None,
            distance => Some(self.at - distance),
        }
    }

    fn writes(&self) -> impl Iterator<Item = Write> + '_ {
        let mut data_at = self.at - self.described();
        self.entries.chunks_exact(ENTRY_BYTES).map(move |entry| {
            let length = word(entry, 12);
            let at = data_at;
            data_at += u64::from(length);
            Write {
                offset: long(entry, 0),
                length,
                time: moment(word(entry, 16)),
                data_at: at,
                sum: word(entry, 21),
            }
        })
    }
}

impl Log {
    /// Opens a log and reads all of its structure, from the end to the beginning.
    ///
    /// Errors: [`HrlError::NotClosed`] and [`HrlError::Failed`] are not damage: the log cannot be relied on, and
    /// the disk has to be compared.
    pub fn open(file: File) -> Result<Self, HrlError> {
        let header = look(&file)?.ok_or(HrlError::Other)??;
        let bytes = file.metadata()?.len();
        let Some(end) = header.end else { return Err(HrlError::NotClosed) };
        if header.error != 0 {
            return Err(HrlError::Failed(header.error));
        }
        if end < HEADER_BYTES + BLOCK_BYTES || end > i64::MAX as u64 {
            return Err(HrlError::Field { field: "the end of the log", at: 0 });
        }
        if end > bytes {
            return Err(HrlError::Cut { there: bytes, needed: end });
        }
        let (mut blocks, mut writes) = (Vec::new(), 0u64);
        let mut next = Some(end - BLOCK_BYTES);
        while let Some(at) = next {
            if blocks.len() == BLOCKS_MAX {
                return Err(HrlError::Field { field: "the number of blocks", at });
            }
            let block = Block::read(&file, at, header.size)?;
            blocks.push(at);
            writes += (block.entries.len() / ENTRY_BYTES) as u64;
            next = block.before();
        }
        if writes != header.writes {
            return Err(HrlError::Field { field: "the number of writes in the header", at: 0 });
        }
        blocks.reverse();
        Ok(Self { file, header, bytes: end, blocks })
    }

    /// What it says of itself.
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Bytes up to its end.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Metadata blocks.
    pub const fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Bytes of data in it.
    pub const fn data_bytes(&self) -> u64 {
        self.bytes - HEADER_BYTES - self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// All writes, in the order in which they happened.
    pub fn writes(&self) -> impl Iterator<Item = Result<Write, HrlError>> + '_ {
        self.blocks.iter().flat_map(|at| self.block(*at, false))
    }

    /// All writes, the last one first.
    pub fn newest_first(&self) -> impl Iterator<Item = Result<Write, HrlError>> + '_ {
        self.blocks.iter().rev().flat_map(|at| self.block(*at, true))
    }

    /// The writes of one block. Read anew, and so verified anew: memory holds one block at a time.
    fn block(&self, at: u64, newest_first: bool) -> impl Iterator<Item = Result<Write, HrlError>> + use<> {
        let (mut writes, error) = match Block::read(&self.file, at, self.header.size) {
            Ok(block) => (block.writes().collect(), None),
            Err(error) => (Vec::new(), Some(Err(error))),
        };
        if newest_first {
            writes.reverse();
        }
        writes.into_iter().map(Ok).chain(error)
    }

    /// Reads the data of a write, piece by piece, and hands on what is *not yet verified*: whoever uses it takes
    /// it back on an error.
    pub fn read<E: From<HrlError>>(
        &self,
        write: &Write,
        piece: &mut Vec<u8>,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut sum, mut done) = (Sum::default(), 0);
        while done < u64::from(write.length) {
            piece.resize((u64::from(write.length) - done).min(PIECE as u64) as usize, 0);
            self.file.read_exact_at(piece, write.data_at + done).map_err(|error| E::from(error.into()))?;
            sum.add(piece);
            take(done, piece)?;
            done += piece.len() as u64;
        }
        match sum.checksum() == write.sum {
            true => Ok(()),
            false => Err(HrlError::Sum { part: "the data", at: write.data_at }.into()),
        }
    }

    /// Reads and verifies everything. `told` hears the bytes of data that were read.
    pub fn verify(&self, told: &mut dyn FnMut(u64) -> bool) -> Result<bool, HrlError> {
        let (mut piece, mut done) = (Vec::new(), 0);
        for write in self.writes() {
            let write = write?;
            self.read(&write, &mut piece, |_, _| Ok::<(), HrlError>(()))?;
            done += u64::from(write.length);
            if !told(done) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What a new log is about.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// Its id.
    pub id: Guid,
    /// The log that it goes on from; nil: none.
    pub previous: Guid,
    /// The disk's size in bytes.
    pub size: u64,
    /// The disk's data-write GUID; nil where it has none.
    pub data_write: Guid,
    /// When it is begun.
    pub created: Timestamp,
}

/// Writes a log. Dropped without [`Writer::close`] it stays one that was not closed, and says so to every reader.
#[derive(Debug)]
pub struct Writer {
    out: BufWriter<File>,
    header: Header,
    at: u64,
    /// Where the last block is.
    block: u64,
    entries: Vec<u8>,
}

impl Writer {
    /// Begins a log in an empty file.
    pub fn begin(file: File, about: About) -> Result<Self, HrlError> {
        let header = Header {
            created: about.created,
            modified: about.created,
            creator: *b"ct\0\0",
            creator_version: 1,
            original_size: about.size,
            size: about.size,
            end: None,
            error: 0,
            id: about.id,
            previous: about.previous,
            writes: 0,
            data_write: about.data_write,
        };
        let mut out = BufWriter::with_capacity(PIECE, file);
        out.write_all(&header.encode()?)?;
        let mut writer = Self { out, header, at: HEADER_BYTES, block: 0, entries: Vec::new() };
        writer.end_block()?;
        Ok(writer)
    }

    /// Appends a write.
    pub fn write(&mut self, offset: u64, data: &[u8], time: Timestamp) -> Result<(), HrlError> {
        let length = data.len() as u64;
        let bounds = HrlError::Bounds { offset, length, size: self.header.size };
        if offset.checked_add(length).is_none_or(|end| end > self.header.size) {
            return Err(bounds);
        }
        let Ok(short) = u32::try_from(length) else { return Err(bounds) };
        if short == 0 {
            return Err(bounds);
        }
        let mut entry = [0; ENTRY_BYTES];
        entry[..8].copy_from_slice(&offset.to_le_bytes());
        entry[12..16].copy_from_slice(&short.to_le_bytes());
        entry[16..20].copy_from_slice(&seconds(time)?.to_le_bytes());
        entry[20] = 1;
        entry[21..25].copy_from_slice(&checksum(data).to_le_bytes());
        let sum = checksum_around(&entry, 8);
        entry[8..12].copy_from_slice(&sum.to_le_bytes());
        self.out.write_all(data)?;
        self.at += length;
        self.entries.extend_from_slice(&entry);
        self.header.writes += 1;
        self.header.modified = self.header.modified.max(time);
        match self.entries.len() == ENTRIES_MAX * ENTRY_BYTES {
            true => self.end_block(),
            false => Ok(()),
        }
    }

    /// Appends zeroes, which the format knows only as data.
    pub fn zero(&mut self, offset: u64, length: u64, time: Timestamp) -> Result<(), HrlError> {
        let zeroes = vec![0; length.min(PIECE as u64) as usize];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(PIECE as u64);
            self.write(offset.saturating_add(done), &zeroes[..part as usize], time)?;
            done += part;
        }
        Ok(())
    }

    /// Bytes so far.
    pub const fn bytes(&self) -> u64 {
        self.at
    }

    /// Ends the log: durable, and only then closed.
    pub fn close(mut self) -> Result<Header, HrlError> {
        if !self.entries.is_empty() {
            self.end_block()?;
        }
        self.out.flush()?;
        self.out.get_ref().sync_all()?;
        self.header.end = Some(self.at);
        self.out.get_ref().write_all_at(&self.header.encode()?, 0)?;
        self.out.get_ref().sync_all()?;
        Ok(self.header)
    }

    fn end_block(&mut self) -> Result<(), HrlError> {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        let distance = if self.block == 0 { 0 } else { self.at - self.block };
        bytes[..8].copy_from_slice(&distance.to_le_bytes());
        bytes[8..12].copy_from_slice(&((self.entries.len() / ENTRY_BYTES) as u32).to_le_bytes());
        let sum = checksum_around(&bytes[..ENTRY_BYTES], 12);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes[ENTRY_BYTES..ENTRY_BYTES + self.entries.len()].copy_from_slice(&self.entries);
        self.out.write_all(&bytes)?;
        self.block = self.at;
        self.at += BLOCK_BYTES;
        self.entries.clear();
        Ok(())
    }
}

/// Why logs are not one history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unchained {
    /// None was given.
    #[error("there is no log")]
    None,
    /// The same one twice, or two that go on from the same one.
    #[error("two logs go on from the same place ({0}): only one of them can be what happened")]
    Fork(Guid),
    /// What lies between is missing.
    #[error("log {0} goes on from log {1}, which is not among them: what lies between is missing")]
    Gap(Guid, Guid),
    /// A log that comes before itself.
    #[error("the logs go round in a circle: none of them is the first")]
    Circle,
}

/// The order in which logs follow one another, as places in `logs` (each its id and the one before).
pub fn in_order(logs: &[(Guid, Guid)]) -> Result<Vec<usize>, Unchained> {
    let is_there = |id: Guid| logs.iter().any(|(other, _)| *other == id);
    for (index, (id, previous)) in logs.iter().enumerate() {
        if logs[..index].iter().any(|(other, _)| other == id) {
            return Err(Unchained::Fork(*id));
        }
        if logs[..index].iter().any(|(_, other)| other == previous) && is_there(*previous) {
            return Err(Unchained::Fork(*previous));
        }
    }
    let mut firsts = (0..logs.len()).filter(|at| !is_there(logs[*at].1));
    let first = match (firsts.next(), firsts.next()) {
        (Some(first), None) => first,
        (Some(_), Some(other)) => return Err(Unchained::Gap(logs[other].0, logs[other].1)),
        (None, _) if logs.is_empty() => return Err(Unchained::None),
        (None, _) => return Err(Unchained::Circle),
    };
    let mut order = vec![first];
    let follows = |at: usize| logs.iter().position(|(_, previous)| *previous == logs[at].0);
    while let Some(next) = order.last().and_then(|at| follows(*at)) {
        order.push(next);
    }
    // Each log follows one other, so whatever was not reached goes round by itself.
    if order.len() == logs.len() { Ok(order) } else { Err(Unchained::Circle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_published_ones() {
        for (distance, writes, expected) in [(0u64, 0u32, 4_294_967_295), (324_096, 58, 4_294_966_991)] {
            let mut head = [0; ENTRY_BYTES];
            head[..8].copy_from_slice(&distance.to_le_bytes());
            head[8..12].copy_from_slice(&writes.to_le_bytes());
            // Whatever stands in the field itself does not count.
            head[12..16].copy_from_slice(&[9; 4]);
            assert_eq!(checksum_around(&head, 12), expected);
        }
        assert_eq!(checksum(&vec![255; 20 << 20]), !(255u32.wrapping_mul(20 << 20)), "it wraps");
    }

    #[test]
    fn logs_are_put_in_order_or_refused() {
        let id = |n: u128| Guid::from(Uuid::from_u128(n));
        type Row = (&'static str, &'static [(u128, u128)], Result<&'static [usize], Unchained>);
        let rows: &[Row] = &[
            ("one", &[(5, 0)], Ok(&[0])),
            ("three, mixed", &[(3, 2), (1, 9), (2, 1)], Ok(&[1, 2, 0])),
            ("a hole", &[(1, 0), (3, 2)], Err(Unchained::Gap(id(3), id(2)))),
            ("two beginnings", &[(1, 0), (2, 0)], Err(Unchained::Gap(id(2), id(0)))),
            ("the same twice", &[(1, 0), (1, 0)], Err(Unchained::Fork(id(1)))),
            ("a fork", &[(1, 0), (2, 1), (3, 1)], Err(Unchained::Fork(id(1)))),
            ("a circle", &[(1, 2), (2, 1)], Err(Unchained::Circle)),
            ("its own", &[(1, 1)], Err(Unchained::Circle)),
            ("a circle beside", &[(7, 0), (1, 2), (2, 1)], Err(Unchained::Circle)),
            ("nothing", &[], Err(Unchained::None)),
        ];
        for (why, logs, expected) in rows {
            let logs: Vec<_> = logs.iter().map(|(one, before)| (id(*one), id(*before))).collect();
            assert_eq!(in_order(&logs), expected.clone().map(<[usize]>::to_vec), "{why}");
        }
    }
}
