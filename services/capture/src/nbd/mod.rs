//! An NBD server: fixed newstyle, structured replies, Unix sockets and TCP.
//!
//! - [`server`]: listening, exports that come and go, connections and their limits
//! - [`handshake`]: option haggling until a client has an export
//! - [`transmission`]: requests and replies
//!
//! Source: the NBD protocol document. Every number from a client is checked before it is used; a
//! violation ends that connection or gets an error, never more.

pub mod handshake;
pub mod server;
pub mod transmission;

pub use server::{Endpoint, Server};

use std::io;

/// A disk that can be served.
pub trait BlockDevice: Send + Sync {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool {
        false
    }
    /// Fills `out` from `offset`. The range is inside the disk.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes; with `durable` it returns only when the data is on stable storage.
    fn write(&self, offset: u64, data: &[u8], durable: bool) -> io::Result<()>;
    /// Makes everything that was acknowledged durable.
    fn flush(&self) -> io::Result<()>;
    /// Makes a range read as zeroes; with `may_trim` its space may be given back.
    fn zero(&self, offset: u64, length: u64, may_trim: bool, durable: bool) -> io::Result<()>;
    /// What of a range holds data. Appends runs that cover at least a part of the range from its start on.
    fn extents(&self, offset: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
        let _ = offset;
        out.push(Extent { length, data: true });
        Ok(())
    }
}

/// A run of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// Holds data; else a hole that reads as zeroes.
    pub data: bool,
}

/// The longest read or write in one request.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
