//! A small crash-safe ledger: what a guest of the lab does with its disks.
//!
//! Accounts in pages, moved between by numbered transactions, each in the log before it is in the table.
//!
//! - [`format`]: the bytes
//! - [`open`]: what is on the disks after whatever happened, and whether it can be true
//! - here: formatting, transactions, checkpoints
//!
//! ```text
//! transaction   log record, durable   ─► acknowledged ─► its pages in the table, any time later
//! checkpoint    table durable ─► superblock, durable ─► the ring before it is free
//! ```
//!
//! Invariants: a page never reaches the table before its record is durable in the log; the ring is reused
//! only behind a durable checkpoint; the sum of all balances never changes. Because one record is in
//! flight at a time, the log has no hole at any moment: one that is found was made by whoever kept the disks.

pub mod format;
pub mod open;

use format::{ACCOUNTS, BLOCK, DATA_OFFSET, IMAGES_MAX, Page, RecordHead, Superblock};
use std::io;

/// A disk under a ledger.
pub trait Disk {
    /// Its size in bytes.
    fn size(&self) -> u64;
    /// Fills `out`.
    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes; with `durable` it returns only when the data is on stable storage.
    fn write(&mut self, offset: u64, data: &[u8], durable: bool) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn flush(&mut self) -> io::Result<()>;
    /// How often the connection to it was lost: writes before, not made durable, may be gone.
    fn interruptions(&self) -> u64;
}

/// Why a ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// There is none.
    #[error("the disks hold no ledger: they were never formatted")]
    Unformatted,
    /// There is something else.
    #[error("{0}; it is left as it is")]
    Foreign(String),
    /// What is there cannot have been written by a ledger in this order.
    #[error("the ledger is not consistent: {}", .0.join("; "))]
    Inconsistent(Vec<String>),
    /// Too small, or too many.
    #[error("{0}")]
    Unsuitable(String),
    /// A disk failed.
    #[error("disk {place}: {what}")]
    Disk {
        /// Which, counted from 0.
        place: usize,
        /// What was attempted.
        what: &'static str,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

/// What was found when a ledger was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The newest transaction.
    pub sequence: u64,
    /// When it was made, in µs of UTC.
    pub time_us: i64,
    /// Transactions taken from the log.
    pub replayed: u64,
    /// Pages read and checked.
    pub pages: u64,
    /// How often the ledger was opened, this time included.
    pub boots: u64,
}

/// An open ledger on disks `D`.
pub struct Ledger<D> {
    disks: Vec<D>,
    superblock: Superblock,
    pages: Vec<Page>,
    table_sum: u128,
    /// The newest transaction.
    sequence: u64,
    /// Where in the ring the next record goes, and where the oldest one that is needed begins.
    head: u64,
    tail: u64,
    /// Records since the checkpoint.
    since_checkpoint: u64,
    /// Pages written to the table since it was flushed last.
    unflushed: Vec<u32>,
    interruptions: u64,
}

const RECORD_BYTES_MAX: u64 = ((1 + IMAGES_MAX) * BLOCK) as u64;
/// A checkpoint at the latest after so many records.
const CHECKPOINT_EVERY: u64 = 256;

/// Where things go on disks of these sizes.
fn plan(ledger: [u8; 16], sizes: &[u64]) -> Result<Superblock, LedgerError> {
    let smallest = sizes.iter().copied().min().unwrap_or(0);
    if smallest < 4 << 20 || sizes.len() > 16 {
        return Err(LedgerError::Unsuitable(format!(
            "a ledger needs 1 to 16 disks of at least 4 MiB each, and has {} with {smallest} bytes in the smallest",
            sizes.len()
        )));
    }
    // An eighth each: room to grow, and a table that is read in a moment at every start.
    let part = (smallest / 8).min(8 << 20) / BLOCK as u64 * BLOCK as u64;
    let tables = (sizes.len() - 1).max(1) as u64;
    Ok(Superblock {
        ledger,
        generation: 1,
        place: 0,
        disks: sizes.len() as u32,
        pages: u32::try_from(part * tables / BLOCK as u64).unwrap_or(u32::MAX),
        log_offset: DATA_OFFSET,
        log_bytes: part,
        table_offset: if sizes.len() == 1 { DATA_OFFSET + part } else { DATA_OFFSET },
        boots: 0,
        checkpoint: 0,
        position: 0,
        table_sum: 0,
        time_us: 0,
    })
}

/// On which disk and where a page is.
fn place_of(superblock: &Superblock, page: u32) -> (usize, u64) {
    let tables = superblock.disks.saturating_sub(1).max(1);
    let disk = if superblock.disks == 1 { 0 } else { 1 + page % tables };
    (disk as usize, superblock.table_offset + u64::from(page / tables) * BLOCK as u64)
}

fn failed(place: usize, what: &'static str) -> impl FnOnce(io::Error) -> LedgerError {
    move |cause| LedgerError::Disk { place, what, cause }
}

/// Writes an empty ledger. The disks must hold none: whoever calls has looked.
pub fn format<D: Disk>(disks: &mut [D], ledger: [u8; 16], now_us: i64) -> Result<(), LedgerError> {
    let sizes: Vec<u64> = disks.iter().map(Disk::size).collect();
    let mut superblock = plan(ledger, &sizes)?;
    superblock.time_us = now_us;
    let tables = superblock.disks.saturating_sub(1).max(1) as usize;
    // Pages of one table disk lie side by side: written in runs.
    for table in 0..tables {
        let numbers: Vec<u32> =
            (0..superblock.pages).filter(|page| *page as usize % tables == table).collect();
        for run in numbers.chunks(128) {
            let mut bytes = Vec::with_capacity(run.len() * BLOCK);
            for number in run {
                let page = Page::opening(ledger, *number);
                superblock.table_sum ^= page.sum();
                bytes.extend_from_slice(page.bytes());
            }
            let (disk, offset) = place_of(&superblock, run[0]);
            disks[disk]
                .write(offset, &bytes, false)
                .map_err(failed(disk, "the table could not be written"))?;
        }
    }
    for (place, disk) in disks.iter_mut().enumerate() {
        disk.flush().map_err(failed(place, "the table could not be made durable"))?;
    }
    // The first disk's superblock last: it is what makes a ledger of it all.
    for place in (0..disks.len()).rev() {
        let own = Superblock { place: place as u32, ..superblock.clone() };
        disks[place]
            .write(0, &own.encode(), true)
            .map_err(failed(place, "the superblock could not be written"))?;
    }
    Ok(())
}

impl<D: Disk> Ledger<D> {
    /// The newest transaction.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Its disks.
    pub fn disks(&self) -> &[D] {
        &self.disks
    }

    /// How many accounts there are.
    pub fn accounts(&self) -> u64 {
        u64::from(self.superblock.pages) * ACCOUNTS as u64
    }

    /// Moves `amount` from one account to another, for each of `transfers`, as one transaction. Returns its
    /// number once it is durable.
    pub fn transact(&mut self, transfers: &[(u64, u64, i64)], now_us: i64) -> Result<u64, LedgerError> {
        let sequence = self.sequence + 1;
        let mut touched: Vec<u32> = Vec::new();
        let mut changed: Vec<Page> = Vec::new();
        for (from, to, amount) in transfers {
            for (account, amount) in [(from, -amount), (to, *amount)] {
                let number =
                    u32::try_from(account / ACCOUNTS as u64 % u64::from(self.superblock.pages)).unwrap_or(0);
                let at = touched.iter().position(|page| *page == number).unwrap_or_else(|| {
                    touched.push(number);
                    changed.push(self.pages[number as usize].clone());
                    changed.len() - 1
                });
                let slot = (account % ACCOUNTS as u64) as usize;
                let balance = changed[at].balance(slot);
                changed[at].set(slot, balance.wrapping_add(amount));
            }
        }
        if touched.is_empty() || touched.len() > IMAGES_MAX {
            return Err(LedgerError::Unsuitable(format!("a transaction touches 1 to {IMAGES_MAX} pages")));
        }
        let mut table_sum = self.table_sum;
        for (number, page) in touched.iter().zip(&mut changed) {
            page.seal(sequence);
            table_sum ^= self.pages[*number as usize].sum() ^ page.sum();
        }
        let bytes = ((1 + touched.len()) * BLOCK) as u64;
        self.make_room(bytes, now_us)?;
        let position = if self.head + bytes > self.superblock.log_bytes { 0 } else { self.head };
        let head = RecordHead {
            ledger: self.superblock.ledger,
            sequence,
            time_us: now_us,
            table_sum,
            position,
            pages: touched.clone(),
        };
        let record = head.encode(changed.iter().map(Page::bytes));
        self.disks[0]
            .write(self.superblock.log_offset + position, &record, true)
            .map_err(failed(0, "a log record could not be written"))?;
        // Durable: from here on it has happened.
        self.sequence = sequence;
        self.head = position + bytes;
        self.table_sum = table_sum;
        self.since_checkpoint += 1;
        for (number, page) in touched.into_iter().zip(changed) {
            self.pages[number as usize] = page;
            self.write_page(number)?;
        }
        Ok(sequence)
    }

    /// Makes the table durable and the ring free.
    pub fn checkpoint(&mut self, now_us: i64) -> Result<(), LedgerError> {
        loop {
            let before = self.interruptions();
            if before != self.interruptions {
                // Whoever served the disks died meanwhile: what it had not made durable may be gone.
                self.interruptions = before;
                let mut again = std::mem::take(&mut self.unflushed);
                again.sort_unstable();
                again.dedup();
                for number in again {
                    self.write_page(number)?;
                }
            }
            for (place, disk) in self.disks.iter_mut().enumerate() {
                disk.flush().map_err(failed(place, "the table could not be made durable"))?;
            }
            if self.interruptions() == before {
                break;
            }
        }
        self.unflushed.clear();
        let next = Superblock {
            generation: self.superblock.generation + 1,
            checkpoint: self.sequence,
            position: self.head,
            table_sum: self.table_sum,
            time_us: now_us,
            ..self.superblock.clone()
        };
        // In turn, so that a torn one leaves the other.
        let slot = next.generation % 2 * BLOCK as u64;
        self.disks[0]
            .write(slot, &next.encode(), true)
            .map_err(failed(0, "the superblock could not be written"))?;
        self.superblock = next;
        self.tail = self.head;
        self.since_checkpoint = 0;
        Ok(())
    }

    fn interruptions(&self) -> u64 {
        self.disks.iter().map(Disk::interruptions).sum()
    }

    fn write_page(&mut self, number: u32) -> Result<(), LedgerError> {
        let (disk, offset) = place_of(&self.superblock, number);
        self.unflushed.push(number);
        self.disks[disk]
            .write(offset, self.pages[number as usize].bytes(), false)
            .map_err(failed(disk, "a page could not be written"))
    }

    /// Checkpoints where the ring has too little room, or it was long ago.
    fn make_room(&mut self, bytes: u64, now_us: i64) -> Result<(), LedgerError> {
        let ring = self.superblock.log_bytes;
        let used = if self.since_checkpoint == 0 {
            0
        } else if self.head > self.tail {
            self.head - self.tail
        } else {
            ring - self.tail + self.head
        };
        // What the wrap leaves unused at the end counts as used, at most once.
        if self.since_checkpoint >= CHECKPOINT_EVERY || used + bytes + 2 * RECORD_BYTES_MAX > ring {
            self.checkpoint(now_us)?;
        }
        Ok(())
    }
}
