//! A small crash-safe ledger on one or two disks: accounts, transfers, and a log that is replayed at start.
//!
//! ```text
//! disk 0 (with one disk: its first half holds this, its second half the accounts)
//!   block 0         superblock: magic "CTMLEDG1" · version u32 · accounts u32 · log blocks u64 · sum
//!   block 1         checkpoint: magic "CTMCHKPT" · sequence u64 · sum: every transfer up to it is in the accounts
//!   blocks 2…       log, a ring: transfer n in block 2 + n mod log blocks:
//!                   magic "CTMTRANS" · sequence u64 · from u32 · to u32 · amount u64 · balances after u64 u64 · sum
//! disk 1 (or the second half)
//!   block a         account a: magic "CTMACCNT" · account u32 · balance u64 · sequence u64 · sum
//! ```
//!
//! A block is 4 KiB; sums are xxh3-64 of the bytes before. A transfer is durable in the log before either
//! account is written. Start: read the checkpoint, replay every newer transfer in order, check each account
//! and that the balances add up to what was there at first. A replayed history with a hole, or accounts
//! newer than the log, is reported as what it is: corruption.

use xxhash_rust::xxh3::xxh3_64;

/// The block size of everything on these disks.
pub const BLOCK: usize = 4096;
/// What every account holds at first.
pub const OPENING_BALANCE: u64 = 1_000_000;
/// A checkpoint is written this often, in transfers.
const CHECKPOINT_EVERY: u64 = 256;

/// Blocks, by disk.
pub trait Disks {
    /// How many blocks a disk has; `None`: no such disk.
    fn blocks(&self, disk: usize) -> Option<u64>;
    /// Reads a block.
    fn read(&mut self, disk: usize, block: u64) -> std::io::Result<[u8; BLOCK]>;
    /// Writes a block; with `durable` it is on stable storage when this returns.
    fn write(&mut self, disk: usize, block: u64, content: &[u8; BLOCK], durable: bool)
    -> std::io::Result<()>;
    /// Makes all writes durable.
    fn flush(&mut self) -> std::io::Result<()>;
}

/// What was found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The last transfer.
    pub sequence: u64,
    /// How many transfers were replayed from the log.
    pub replayed: u64,
}

/// Why the disks hold no good ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Never formatted.
    #[error("the disk holds no ledger")]
    Empty,
    /// Formatted once, and now wrong.
    #[error("the ledger is corrupt: {0}")]
    Corrupt(String),
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[from] std::io::Error),
}

/// An open ledger.
pub struct Ledger {
    accounts: Vec<(u64, u64)>,
    log_blocks: u64,
    sequence: u64,
    accounts_at: (usize, u64),
}

fn sealed(magic: &[u8; 8], fields: &[u64]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(magic);
    for (at, field) in fields.iter().enumerate() {
        block[8 + at * 8..16 + at * 8].copy_from_slice(&field.to_le_bytes());
    }
    let sum = xxh3_64(&block[..BLOCK - 8]);
    block[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
    block
}

/// The fields of a block; `None` when it is not a whole block of this kind.
fn unsealed<const N: usize>(magic: &[u8; 8], block: &[u8; BLOCK]) -> Option<[u64; N]> {
    let sum = xxh3_64(&block[..BLOCK - 8]);
    if &block[..8] != magic || block[BLOCK - 8..] != sum.to_le_bytes() {
        return None;
    }
    let mut fields = [0; N];
    for (at, field) in fields.iter_mut().enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(&block[8 + at * 8..16 + at * 8]);
        *field = u64::from_le_bytes(word);
    }
    Some(fields)
}

impl Ledger {
    fn layout(disks: &dyn Disks) -> Option<(u64, u64, (usize, u64))> {
        let first = disks.blocks(0)?;
        let (log_blocks, accounts_at, room) = match disks.blocks(1) {
            Some(second) => (first - 2, (1, 0), second),
            None => (first / 2 - 2, (0, first / 2), first - first / 2),
        };
        Some((log_blocks, room.min(512), accounts_at))
    }

    /// Writes an empty ledger over whatever is there.
    pub fn format(disks: &mut dyn Disks) -> Result<(), LedgerError> {
        let too_small = || LedgerError::Corrupt("the disk is too small".into());
        let (log_blocks, accounts, (disk, at)) = Self::layout(disks).ok_or_else(too_small)?;
        for account in 0..accounts {
            disks.write(disk, at + account, &sealed(b"CTMACCNT", &[account, OPENING_BALANCE, 0]), false)?;
        }
        disks.write(0, 1, &sealed(b"CTMCHKPT", &[0]), false)?;
        disks.flush()?;
        // Last: a disk with a superblock is a ledger.
        disks.write(0, 0, &sealed(b"CTMLEDG1", &[1, accounts, log_blocks]), true)?;
        Ok(())
    }

    /// Opens the ledger: replays, checks everything, writes back what was replayed.
    pub fn open(disks: &mut dyn Disks) -> Result<(Self, Recovery), LedgerError> {
        let corrupt = |what: String| LedgerError::Corrupt(what);
        let superblock = disks.read(0, 0)?;
        if superblock == [0; BLOCK] {
            return Err(LedgerError::Empty);
        }
        let [version, count, log_blocks] = unsealed::<3>(b"CTMLEDG1", &superblock)
            .ok_or_else(|| corrupt("the superblock is damaged".into()))?;
        let (expected_log, expected_count, accounts_at) =
            Self::layout(disks).ok_or_else(|| corrupt("the disk is too small".into()))?;
        if (version, count, log_blocks) != (1, expected_count, expected_log) {
            return Err(corrupt("the superblock is of another disk".into()));
        }
        let [checkpoint] = unsealed::<1>(b"CTMCHKPT", &disks.read(0, 1)?)
            .ok_or_else(|| corrupt("the checkpoint is damaged".into()))?;
        let mut accounts = Vec::with_capacity(count as usize);
        for account in 0..count {
            let block = disks.read(accounts_at.0, accounts_at.1 + account)?;
            let [number, balance, sequence] = unsealed::<3>(b"CTMACCNT", &block)
                .ok_or_else(|| corrupt(format!("account {account} is damaged")))?;
            if number != account {
                return Err(corrupt(format!("account {number} stands where account {account} should")));
            }
            accounts.push((balance, sequence));
        }
        let mut ledger = Self { accounts, log_blocks, sequence: checkpoint, accounts_at };
        let mut replayed = 0;
        loop {
            let next = ledger.sequence + 1;
            let block = disks.read(0, 2 + next % log_blocks)?;
            let Some(fields) = unsealed::<6>(b"CTMTRANS", &block).filter(|fields| fields[0] == next) else {
                break;
            };
            ledger.replay(fields).map_err(corrupt)?;
            replayed += 1;
        }
        // Nothing may stand behind the end of the log that was durable before: a hole.
        for ahead in 2..=CHECKPOINT_EVERY.min(log_blocks - 1) {
            let beyond = ledger.sequence + ahead;
            let block = disks.read(0, 2 + beyond % log_blocks)?;
            if unsealed::<6>(b"CTMTRANS", &block).is_some_and(|fields| fields[0] == beyond) {
                return Err(corrupt(format!(
                    "transfer {} is missing, but transfer {beyond} is there",
                    ledger.sequence + 1
                )));
            }
        }
        if let Some(account) = ledger.accounts.iter().position(|(_, sequence)| *sequence > ledger.sequence) {
            return Err(corrupt(format!("account {account} is newer than the log")));
        }
        let sum: u64 = ledger.accounts.iter().map(|(balance, _)| balance).sum();
        if sum != count * OPENING_BALANCE {
            return Err(corrupt(format!(
                "the balances add up to {sum} where {} was put in",
                count * OPENING_BALANCE
            )));
        }
        for account in 0..count {
            ledger.store(disks, account as usize)?;
        }
        disks.flush()?;
        disks.write(0, 1, &sealed(b"CTMCHKPT", &[ledger.sequence]), true)?;
        Ok((Self { ..ledger }, Recovery { sequence: ledger.sequence, replayed }))
    }

    fn replay(&mut self, [sequence, from, to, amount, from_after, to_after]: [u64; 6]) -> Result<(), String> {
        let count = self.accounts.len() as u64;
        if from >= count || to >= count || from == to {
            return Err(format!("transfer {sequence} names accounts {from} and {to}"));
        }
        for (account, after) in [(from, from_after), (to, to_after)] {
            let (balance, seen) = &mut self.accounts[account as usize];
            // An account that was written after the transfer already holds it.
            if *seen < sequence {
                let expected =
                    if account == from { balance.checked_sub(amount) } else { balance.checked_add(amount) };
                if expected != Some(after) {
                    return Err(format!(
                        "transfer {sequence} leaves {after} in account {account}, which held {balance}"
                    ));
                }
                (*balance, *seen) = (after, sequence);
            }
        }
        self.sequence = sequence;
        Ok(())
    }

    fn store(&self, disks: &mut dyn Disks, account: usize) -> std::io::Result<()> {
        let (balance, sequence) = self.accounts[account];
        let block = sealed(b"CTMACCNT", &[account as u64, balance, sequence]);
        disks.write(self.accounts_at.0, self.accounts_at.1 + account as u64, &block, false)
    }

    /// Moves an amount, durably. `random` picks who and how much.
    pub fn transfer(&mut self, disks: &mut dyn Disks, random: u64) -> Result<u64, LedgerError> {
        let count = self.accounts.len() as u64;
        let from = random % count;
        let to = (from + 1 + (random >> 16) % (count - 1)) % count;
        let amount = ((random >> 32) % 1000).min(self.accounts[from as usize].0);
        let sequence = self.sequence + 1;
        let after = (self.accounts[from as usize].0 - amount, self.accounts[to as usize].0 + amount);
        let block = sealed(b"CTMTRANS", &[sequence, from, to, amount, after.0, after.1]);
        disks.write(0, 2 + sequence % self.log_blocks, &block, true)?;
        self.sequence = sequence;
        self.accounts[from as usize] = (after.0, sequence);
        self.accounts[to as usize] = (after.1, sequence);
        self.store(disks, from as usize)?;
        self.store(disks, to as usize)?;
        if sequence.is_multiple_of(CHECKPOINT_EVERY) {
            self.checkpoint(disks)?;
        }
        Ok(sequence)
    }

    /// Writes a checkpoint: from this state nothing has to be replayed.
    pub fn checkpoint(&self, disks: &mut dyn Disks) -> Result<(), LedgerError> {
        disks.flush()?;
        disks.write(0, 1, &sealed(b"CTMCHKPT", &[self.sequence]), true)?;
        Ok(())
    }

    /// The last transfer.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Disks that keep a log of writes, so that any prefix of it can be looked at.
    struct Logged {
        now: Vec<Vec<[u8; BLOCK]>>,
        log: Vec<(usize, u64, [u8; BLOCK])>,
    }

    impl Logged {
        fn new(blocks: &[usize]) -> Self {
            Self { now: blocks.iter().map(|count| vec![[0; BLOCK]; *count]).collect(), log: Vec::new() }
        }
    }

    impl Disks for Logged {
        fn blocks(&self, disk: usize) -> Option<u64> {
            self.now.get(disk).map(|blocks| blocks.len() as u64)
        }
        fn read(&mut self, disk: usize, block: u64) -> std::io::Result<[u8; BLOCK]> {
            Ok(self.now[disk][block as usize])
        }
        fn write(&mut self, disk: usize, block: u64, content: &[u8; BLOCK], _: bool) -> std::io::Result<()> {
            self.now[disk][block as usize] = *content;
            self.log.push((disk, block, *content));
            Ok(())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    type Image = Vec<Vec<[u8; BLOCK]>>;

    fn run(layout: &[usize]) -> Logged {
        let mut disks = Logged::new(layout);
        Ledger::format(&mut disks).unwrap();
        let (mut ledger, _) = Ledger::open(&mut disks).unwrap();
        for n in 0..600u64 {
            ledger.transfer(&mut disks, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).unwrap();
        }
        disks
    }

    #[test]
    fn every_prefix_of_the_writes_recovers() {
        for layout in [&[1200, 600][..], &[1300][..]] {
            let disks = run(layout);
            let formatted = disks.log.iter().position(|(_, _, block)| &block[..8] == b"CTMLEDG1").unwrap();
            let mut replica = Logged::new(layout);
            let mut newest = 0;
            for (at, (disk, block, content)) in disks.log.iter().enumerate() {
                replica.now[*disk][*block as usize] = *content;
                if at > formatted && at % 7 == 0 {
                    let mut copy = Logged { now: replica.now.clone(), log: Vec::new() };
                    let (_, recovery) =
                        Ledger::open(&mut copy).unwrap_or_else(|error| panic!("after write {at}: {error}"));
                    assert!(recovery.sequence >= newest, "the ledger went back");
                    newest = recovery.sequence;
                }
            }
            assert!(newest > 500);
        }
    }

    #[test]
    fn a_checkpoint_leaves_nothing_to_replay() {
        let mut disks = run(&[1200, 600]);
        let (mut ledger, recovery) = Ledger::open(&mut disks).unwrap();
        assert!(recovery.replayed > 0, "600 transfers end between two checkpoints");
        ledger.transfer(&mut disks, 7).unwrap();
        ledger.checkpoint(&mut disks).unwrap();
        let (_, recovery) = Ledger::open(&mut disks).unwrap();
        assert_eq!((recovery.sequence, recovery.replayed), (601, 0));
    }

    #[test]
    fn a_hole_rot_and_a_stale_account_are_found() {
        let disks = run(&[1200, 600]);
        let log_blocks = 1198;
        let spoilt = |change: &dyn Fn(&mut Image)| {
            let mut copy = Logged { now: disks.now.clone(), log: Vec::new() };
            change(&mut copy.now);
            Ledger::open(&mut copy).map(|(_, recovery)| recovery).map_err(|error| error.to_string())
        };
        assert_eq!(spoilt(&|_| {}).unwrap().sequence, 600);
        let found = spoilt(&|now| now[0][2 + 560 % log_blocks] = [0; BLOCK]).unwrap_err();
        assert!(found.contains("missing") || found.contains("newer"), "{found}");
        assert!(spoilt(&|now| now[1][3][20] ^= 1).unwrap_err().contains("account 3"));
        assert!(spoilt(&|now| now[1].swap(3, 4)).unwrap_err().contains("stands where"));
        assert!(spoilt(&|now| now[0][0][9] ^= 1).unwrap_err().contains("superblock"));
        assert!(matches!(Ledger::open(&mut Logged::new(&[1200])), Err(LedgerError::Empty)));
    }
}
