//! The bytes of a ledger on its disks.
//!
//! ```text
//! block 0, 1     superblock, written in turn: the newer whole one counts
//! first disk     … log: a ring of records
//! other disks    … table: pages of accounts, page p on table disk p mod k; with one disk, behind the log
//!
//! superblock   "CTLEDGER" version u32 · crc u32 · ledger [16] · generation u64 · place u32 · disks u32 ·
//!              pages u32 · _ u32 · log offset u64 · log bytes u64 · table offset u64 · boots u64 ·
//!              checkpoint sequence u64 · checkpoint position u64 · table sum u128 · time µs i64
//! record       "CTRECORD" crc u32 · images u32 · ledger [16] · sequence u64 · time µs i64 ·
//!              table sum u128 · position u64 · page numbers u32 × 8; then `images` whole pages
//! page         "CTPAGE01" crc u32 · number u32 · ledger [16] · sequence u64 · _ [24] · balances i64 × 504
//! ```
//!
//! Little-endian; a block is 4 KiB. A crc is CRC-32C of the whole thing with its own field zero. A table
//! sum is the exclusive-or of the XXH3-128 of every page: what the whole table must be at that record.

use xxhash_rust::xxh3::xxh3_128;

/// Bytes of a block, of a page, and of the head of a record.
pub const BLOCK: usize = 4096;
/// Accounts in a page.
pub const ACCOUNTS: usize = 504;
/// What each account holds at the beginning.
pub const OPENING_BALANCE: i64 = 1_000;
/// Most page images in a record.
pub const IMAGES_MAX: usize = 8;
/// Where log and table may begin: the superblocks are before.
pub const DATA_OFFSET: u64 = 64 << 10;

const SUPERBLOCK: &[u8; 8] = b"CTLEDGER";
const RECORD: &[u8; 8] = b"CTRECORD";
const PAGE: &[u8; 8] = b"CTPAGE01";
const VERSION: u32 = 1;

/// Where everything is, and up to where the table is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Which ledger.
    pub ledger: [u8; 16],
    /// Rises with each superblock written.
    pub generation: u64,
    /// Which of the machine's disks this is.
    pub place: u32,
    /// How many there are.
    pub disks: u32,
    /// Pages of the table.
    pub pages: u32,
    /// Where the ring begins on the first disk.
    pub log_offset: u64,
    /// Its length.
    pub log_bytes: u64,
    /// Where pages begin on a table disk.
    pub table_offset: u64,
    /// How often the ledger was opened.
    pub boots: u64,
    /// Everything up to here is in the table, durable.
    pub checkpoint: u64,
    /// Where in the ring the record after it begins.
    pub position: u64,
    /// Of the table at the checkpoint.
    pub table_sum: u128,
    /// When it was written, in µs of UTC.
    pub time_us: i64,
}

impl Superblock {
    /// Its block.
    pub fn encode(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut at = Writer { out: &mut block, at: 0 };
        at.put(SUPERBLOCK).put(&VERSION.to_le_bytes()).put(&[0; 4]).put(&self.ledger);
        at.put(&self.generation.to_le_bytes()).put(&self.place.to_le_bytes()).put(&self.disks.to_le_bytes());
        at.put(&self.pages.to_le_bytes()).put(&[0; 4]).put(&self.log_offset.to_le_bytes());
        at.put(&self.log_bytes.to_le_bytes()).put(&self.table_offset.to_le_bytes());
        at.put(&self.boots.to_le_bytes())
            .put(&self.checkpoint.to_le_bytes())
            .put(&self.position.to_le_bytes());
        at.put(&self.table_sum.to_le_bytes()).put(&self.time_us.to_le_bytes());
        seal(&mut block, 12);
        block
    }

    /// Reads a block. `None`: it is torn, rotten or something else.
    pub fn decode(block: &[u8]) -> Option<Self> {
        let whole = block.len() == BLOCK && block.starts_with(SUPERBLOCK) && is_sealed(block, 12);
        if !whole || u32_at(block, 8) != VERSION {
            return None;
        }
        Some(Self {
            ledger: id_at(block, 16),
            generation: u64_at(block, 32),
            place: u32_at(block, 40),
            disks: u32_at(block, 44),
            pages: u32_at(block, 48),
            log_offset: u64_at(block, 56),
            log_bytes: u64_at(block, 64),
            table_offset: u64_at(block, 72),
            boots: u64_at(block, 80),
            checkpoint: u64_at(block, 88),
            position: u64_at(block, 96),
            table_sum: u128_at(block, 104),
            time_us: u64_at(block, 120).cast_signed(),
        })
    }
}

/// The head of a record; its images follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordHead {
    /// Which ledger.
    pub ledger: [u8; 16],
    /// The transaction's number.
    pub sequence: u64,
    /// When it was made, in µs of UTC.
    pub time_us: i64,
    /// Of the whole table once this record is applied.
    pub table_sum: u128,
    /// Where in the ring it was written.
    pub position: u64,
    /// Whose images follow.
    pub pages: Vec<u32>,
}

impl RecordHead {
    /// Bytes of the whole record.
    pub fn bytes(&self) -> usize {
        (1 + self.pages.len()) * BLOCK
    }

    /// The whole record, images in the order of `pages`.
    pub fn encode<'a>(&self, images: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut out = vec![0; BLOCK];
        let mut at = Writer { out: &mut out, at: 0 };
        let count = u32::try_from(self.pages.len()).unwrap_or(u32::MAX);
        at.put(RECORD).put(&[0; 4]).put(&count.to_le_bytes()).put(&self.ledger);
        at.put(&self.sequence.to_le_bytes()).put(&self.time_us.to_le_bytes());
        at.put(&self.table_sum.to_le_bytes()).put(&self.position.to_le_bytes());
        for page in &self.pages {
            at.put(&page.to_le_bytes());
        }
        for image in images {
            out.extend_from_slice(image);
        }
        seal(&mut out, 8);
        out
    }

    /// Reads a head. Says nothing yet about the images: see [`RecordHead::is_whole`].
    pub fn decode(block: &[u8]) -> Option<Self> {
        if block.len() < BLOCK || !block.starts_with(RECORD) {
            return None;
        }
        let count = u32_at(block, 12) as usize;
        (1..=IMAGES_MAX).contains(&count).then(|| Self {
            ledger: id_at(block, 16),
            sequence: u64_at(block, 32),
            time_us: u64_at(block, 40).cast_signed(),
            table_sum: u128_at(block, 48),
            position: u64_at(block, 64),
            pages: (0..count).map(|image| u32_at(block, 72 + 4 * image)).collect(),
        })
    }

    /// Whether `record`, head and images, is as it was written.
    pub fn is_whole(record: &[u8]) -> bool {
        is_sealed(record, 8)
    }
}

/// A page of accounts, as its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Page(Box<[u8; BLOCK]>);

impl Page {
    /// A page as it is at the beginning.
    pub fn opening(ledger: [u8; 16], number: u32) -> Self {
        let mut page = Self(Box::new([0; BLOCK]));
        let mut at = Writer { out: &mut page.0[..], at: 0 };
        at.put(PAGE).put(&[0; 4]).put(&number.to_le_bytes()).put(&ledger);
        for account in 0..ACCOUNTS {
            page.set(account, OPENING_BALANCE);
        }
        page.seal(0);
        page
    }

    /// Reads a page and makes sure that it is page `number` of this ledger, whole.
    pub fn decode(block: &[u8], ledger: [u8; 16], number: u32) -> Option<Self> {
        let right = block.starts_with(PAGE)
            && is_sealed(block, 8)
            && u32_at(block, 12) == number
            && id_at(block, 16) == ledger;
        Some(Self(Box::new(block.try_into().ok().filter(|_| right)?)))
    }

    /// Its block.
    pub fn bytes(&self) -> &[u8] {
        &self.0[..]
    }
    /// What an account holds.
    pub fn balance(&self, account: usize) -> i64 {
        u64_at(&self.0[..], 64 + 8 * account).cast_signed()
    }
    /// Changes what an account holds; the page must be sealed afterwards.
    pub fn set(&mut self, account: usize, balance: i64) {
        self.0[64 + 8 * account..72 + 8 * account].copy_from_slice(&balance.to_le_bytes());
    }
    /// The record that changed it last.
    pub fn sequence(&self) -> u64 {
        u64_at(&self.0[..], 32)
    }
    /// Makes it whole again after changes.
    pub fn seal(&mut self, sequence: u64) {
        self.0[32..40].copy_from_slice(&sequence.to_le_bytes());
        seal(&mut self.0[..], 8);
    }
    /// Its part of the table sum.
    pub fn sum(&self) -> u128 {
        xxh3_128(&self.0[..])
    }
    /// What its accounts hold together.
    pub fn total(&self) -> i128 {
        (0..ACCOUNTS).map(|account| i128::from(self.balance(account))).sum()
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}
impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }
}

fn crc(bytes: &[u8], field: usize) -> u32 {
    let head = crc32c::crc32c(&bytes[..field]);
    crc32c::crc32c_append(crc32c::crc32c_append(head, &[0; 4]), &bytes[field + 4..])
}
fn seal(bytes: &mut [u8], field: usize) {
    let sum = crc(bytes, field);
    bytes[field..field + 4].copy_from_slice(&sum.to_le_bytes());
}
fn is_sealed(bytes: &[u8], field: usize) -> bool {
    bytes.len() >= BLOCK && crc(bytes, field) == u32_at(bytes, field)
}
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
fn u128_at(bytes: &[u8], at: usize) -> u128 {
    u128::from(u64_at(bytes, at)) | u128::from(u64_at(bytes, at + 8)) << 64
}
fn id_at(bytes: &[u8], at: usize) -> [u8; 16] {
    u128_at(bytes, at).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            ledger: [7; 16],
            generation: 3,
            place: 1,
            disks: 2,
            pages: 77,
            log_offset: DATA_OFFSET,
            log_bytes: 1 << 20,
            table_offset: 9 << 20,
            boots: 4,
            checkpoint: 1 << 40,
            position: 12_288,
            table_sum: u128::MAX - 5,
            time_us: -1,
        }
    }

    #[test]
    fn everything_survives_its_bytes_and_no_flipped_byte_is_taken() {
        let block = superblock().encode();
        assert_eq!(Superblock::decode(&block), Some(superblock()));
        let mut page = Page::opening([7; 16], 5);
        page.set(503, -9);
        page.seal(11);
        assert!(
            Page::decode(page.bytes(), [7; 16], 5).is_some_and(|read| read == page && read.sequence() == 11)
        );
        assert!(Page::decode(page.bytes(), [7; 16], 6).is_none(), "another page's place");
        assert!(Page::decode(page.bytes(), [8; 16], 5).is_none(), "another ledger's page");
        let head = RecordHead {
            ledger: [7; 16],
            sequence: 11,
            time_us: 5,
            table_sum: page.sum(),
            position: 8192,
            pages: vec![5, 5],
        };
        let record = head.encode([page.bytes(), page.bytes()]);
        assert_eq!((record.len(), RecordHead::decode(&record)), (head.bytes(), Some(head)));
        for at in 0..BLOCK {
            let flip = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                bytes[at] ^= 0x10;
                bytes
            };
            assert_eq!(Superblock::decode(&flip(&block)), None, "superblock byte {at}");
            assert!(Page::decode(&flip(page.bytes()), [7; 16], 5).is_none(), "page byte {at}");
            assert!(!RecordHead::is_whole(&flip(&record)), "record byte {at}");
        }
    }
}
