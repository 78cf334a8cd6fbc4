//! Opening a ledger: what is on the disks after whatever happened to them, and whether it can be true.
//!
//! Lives here: the reading, the replay and every check. Everything that a crash may leave is mended
//! (a torn superblock, a torn tail of the log, torn pages that the log still has); everything that no
//! crash can leave is told and nothing is written: it was made by whoever kept the disks.

use super::format::{BLOCK, OPENING_BALANCE, Page, RecordHead, Superblock};
use super::{ACCOUNTS, Disk, Ledger, LedgerError, Recovered, failed, place_of, plan};
use std::collections::HashMap;

/// Only so many findings are told: a ruined disk has thousands of the same.
const FINDINGS_MAX: usize = 8;

impl<D: Disk> Ledger<D> {
    /// Reads everything, replays the log, checks, and writes the new superblock.
    ///
    /// Errors: [`LedgerError::Unformatted`] where no ledger was ever made; [`LedgerError::Inconsistent`]
    /// names what cannot be. Nothing is written before all checks have passed.
    pub fn open(mut disks: Vec<D>, now_us: i64) -> Result<(Self, Recovered), LedgerError> {
        let superblock = find_superblock(&mut disks)?;
        let mut findings = Findings::default();
        let (mut pages, torn) = read_table(&mut disks, &superblock)?;
        let log = read_log(&mut disks[0], &superblock)?;
        let (records, next) = walk(&log, &superblock, &mut findings);
        let newest = records.last().map_or(superblock.checkpoint, |record| record.sequence);

        let mut images: HashMap<u32, (u64, Page)> = HashMap::new();
        for record in &records {
            for (at, number) in record.pages.iter().enumerate() {
                let from = record.position as usize + (1 + at) * BLOCK;
                match log
                    .get(from..from + BLOCK)
                    .and_then(|bytes| Page::decode(bytes, superblock.ledger, *number))
                {
                    Some(image) => {
                        // A page that says it is of this record must be what the record says.
                        let written = pages.get(*number as usize).and_then(Option::as_ref);
                        if written.is_some_and(|page| page.sequence() == record.sequence && *page != image) {
                            findings.add(format!("page {number} differs from record {}", record.sequence));
                        }
                        images.insert(*number, (record.sequence, image));
                    }
                    None => findings.add(format!("record {} holds no valid page {number}", record.sequence)),
                }
            }
        }
        for (number, page) in pages.iter().enumerate() {
            if let Some(page) = page
                && page.sequence() > newest
            {
                findings.add(format!(
                    "page {number} is of transaction {}, but the log ends at {newest}: a write overtook another",
                    page.sequence()
                ));
            }
        }
        for number in torn {
            if !images.contains_key(&number) {
                findings.add(format!("page {number} is damaged and not in the log"));
            }
        }
        let mut mended = Vec::new();
        for (number, (_, image)) in images {
            if let Some(slot) = pages.get_mut(number as usize)
                && slot.as_ref() != Some(&image)
            {
                *slot = Some(image);
                mended.push(number);
            }
        }
        let pages: Vec<Page> = pages.into_iter().flatten().collect();
        if findings.0.is_empty() {
            let table_sum = pages.iter().fold(0, |sum, page| sum ^ page.sum());
            let expected = records.last().map_or(superblock.table_sum, |record| record.table_sum);
            if table_sum != expected {
                findings.add(format!(
                    "the table is not that of transaction {newest}: a write was lost or misplaced"
                ));
            }
            let total: i128 = pages.iter().map(Page::total).sum();
            let opening = pages.len() as i128 * ACCOUNTS as i128 * i128::from(OPENING_BALANCE);
            if total != opening {
                findings.add(format!("the accounts hold {total} together and must hold {opening}"));
            }
        }
        findings.end()?;

        let recovered = Recovered {
            sequence: newest,
            time_us: records.last().map_or(superblock.time_us, |record| record.time_us),
            replayed: records.len() as u64,
            pages: pages.len() as u64,
            boots: superblock.boots + 1,
        };
        let mut ledger = Self {
            table_sum: pages.iter().fold(0, |sum, page| sum ^ page.sum()),
            sequence: newest,
            head: next,
            tail: superblock.position,
            since_checkpoint: recovered.replayed,
            unflushed: Vec::new(),
            interruptions: disks.iter().map(Disk::interruptions).sum(),
            superblock: Superblock { boots: recovered.boots, ..superblock },
            pages,
            disks,
        };
        mended.sort_unstable();
        for number in mended {
            ledger.write_page(number)?;
        }
        ledger.checkpoint(now_us)?;
        Ok((ledger, recovered))
    }
}

/// The newest superblock of the first disk, after a look at the others.
fn find_superblock<D: Disk>(disks: &mut [D]) -> Result<Superblock, LedgerError> {
    let mut newest = Vec::new();
    let mut blank = Vec::new();
    for (place, disk) in disks.iter_mut().enumerate() {
        let mut blocks = vec![0; 2 * BLOCK];
        disk.read(0, &mut blocks).map_err(failed(place, "the superblock could not be read"))?;
        let found = blocks.chunks(BLOCK).filter_map(Superblock::decode).max_by_key(|found| found.generation);
        blank.push(blocks.iter().all(|byte| *byte == 0));
        newest.push(found);
    }
    // A ledger is one from the moment its first disk's superblock is there: it is written last.
    let Some(superblock) = newest.first().cloned().flatten() else {
        return Err(match blank.first() {
            Some(true) => LedgerError::Unformatted,
            _ => LedgerError::Foreign("the first disk holds something that is no ledger".into()),
        });
    };
    let mut findings = Findings::default();
    let sizes: Vec<u64> = disks.iter().map(Disk::size).collect();
    if superblock.disks as usize != disks.len() {
        findings.add(format!("the ledger has {} disks and the machine {}", superblock.disks, disks.len()));
    }
    let fits = plan(superblock.ledger, &sizes)?;
    if (fits.pages, fits.log_bytes, fits.table_offset)
        != (superblock.pages, superblock.log_bytes, superblock.table_offset)
    {
        findings.add("the disks have other sizes than when the ledger was made".into());
    }
    for (place, found) in newest.iter().enumerate() {
        match found {
            Some(found) if found.ledger == superblock.ledger && found.place as usize == place => {}
            Some(found) if found.ledger == superblock.ledger => {
                findings
                    .add(format!("disk {place} is disk {} of this ledger: they were swapped", found.place));
            }
            Some(_) => findings.add(format!("disk {place} is of another ledger")),
            None => findings.add(format!("disk {place} has no superblock")),
        }
    }
    findings.end()?;
    Ok(superblock)
}

type Table = (Vec<Option<Page>>, Vec<u32>);

/// All pages, and the numbers of those that are not whole.
fn read_table<D: Disk>(disks: &mut [D], superblock: &Superblock) -> Result<Table, LedgerError> {
    let tables = superblock.disks.saturating_sub(1).max(1);
    let mut pages = vec![None; superblock.pages as usize];
    let mut torn = Vec::new();
    for table in 0..tables {
        let numbers: Vec<u32> = (0..superblock.pages).filter(|page| page % tables == table).collect();
        for run in numbers.chunks(128) {
            let (place, offset) = place_of(superblock, run[0]);
            let mut bytes = vec![0; run.len() * BLOCK];
            disks[place].read(offset, &mut bytes).map_err(failed(place, "the table could not be read"))?;
            for (number, block) in run.iter().zip(bytes.chunks(BLOCK)) {
                match Page::decode(block, superblock.ledger, *number) {
                    Some(page) => pages[*number as usize] = Some(page),
                    None => torn.push(*number),
                }
            }
        }
    }
    Ok((pages, torn))
}

fn read_log<D: Disk>(disk: &mut D, superblock: &Superblock) -> Result<Vec<u8>, LedgerError> {
    let mut log = vec![0; superblock.log_bytes as usize];
    for (at, part) in log.chunks_mut(512 << 10).enumerate() {
        let offset = superblock.log_offset + (at * (512 << 10)) as u64;
        disk.read(offset, part).map_err(failed(0, "the log could not be read"))?;
    }
    Ok(log)
}

/// The records after the checkpoint, in order, and where the next one goes. Looks at the whole ring for
/// records behind the end: one of them without its forerunners is a hole in history.
fn walk(log: &[u8], superblock: &Superblock, findings: &mut Findings) -> (Vec<RecordHead>, u64) {
    let record_at = |position: usize| -> Option<RecordHead> {
        let head = RecordHead::decode(log.get(position..position + BLOCK)?)?;
        let record = log.get(position..position + head.bytes())?;
        let right = head.ledger == superblock.ledger && head.position == position as u64;
        (right && RecordHead::is_whole(record)).then_some(head)
    };
    let mut records: Vec<RecordHead> = Vec::new();
    let mut position = superblock.position;
    let mut sequence = superblock.checkpoint;
    loop {
        let wanted = |head: &RecordHead| head.sequence == sequence + 1;
        // A record that did not fit before the end of the ring is at its beginning.
        let found = record_at(position as usize).filter(wanted).or_else(|| record_at(0).filter(wanted));
        let Some(head) = found else { break };
        sequence = head.sequence;
        position = head.position + head.bytes() as u64;
        records.push(head);
    }
    for at in (0..log.len()).step_by(BLOCK) {
        if let Some(head) = record_at(at)
            && head.sequence > sequence
        {
            findings.add(format!(
                "the log has transaction {} but not {}: history has a hole",
                head.sequence,
                sequence + 1
            ));
        }
    }
    (records, position)
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn add(&mut self, finding: String) {
        if self.0.len() < FINDINGS_MAX {
            self.0.push(finding);
        }
    }
    fn end(self) -> Result<(), LedgerError> {
        if self.0.is_empty() { Ok(()) } else { Err(LedgerError::Inconsistent(self.0)) }
    }
}
