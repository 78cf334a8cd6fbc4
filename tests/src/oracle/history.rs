//! What was written when and with what outcome: a log on another medium than the disks.
//!
//! ```text
//! run R
//! i SEQUENCE DISK BLOCK BLOCKS w|z MICROSECONDS      before the write (z: zeroes) is sent
//! c SEQUENCE ok|failed MICROSECONDS                  when its answer came; none: unknown
//! ```

use super::now_us;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Stamped blocks.
    Data,
    /// Zeroes (WRITE_ZEROES or TRIM that zeroes).
    Zeroes,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged then.
    Ok(i64),
    /// An error was answered: it may have happened in part.
    Failed,
    /// No answer came: it may have happened in part.
    Unknown,
}

/// One write of the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// Its place among all writes of all disks.
    pub sequence: u64,
    /// On which disk.
    pub disk: u32,
    /// Its first block.
    pub block: u64,
    /// How many blocks.
    pub blocks: u64,
    /// What it does.
    pub what: What,
    /// When it was sent.
    pub issued_us: i64,
    /// What became of it.
    pub outcome: Outcome,
}

impl Write {
    /// When it was acknowledged.
    pub const fn completed_us(&self) -> Option<i64> {
        match self.outcome {
            Outcome::Ok(at) => Some(at),
            Outcome::Failed | Outcome::Unknown => None,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Tells runs apart.
    pub run: u64,
    /// All writes, in the order in which they were issued.
    pub writes: Vec<Write>,
}

impl History {
    /// Reads logs of one run, of several writers.
    pub fn read(paths: &[&Path]) -> io::Result<Self> {
        let mut history = Self::default();
        for path in paths {
            history.take(path)?;
        }
        history.writes.sort_by_key(|write| write.issued_us);
        Ok(history)
    }

    fn take(&mut self, path: &Path) -> io::Result<()> {
        let wrong = |number: usize, why: &str| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}:{}: {why}", path.display(), number + 1))
        };
        let mut known: HashMap<u64, usize> = HashMap::new();
        for (number, line) in BufReader::new(File::open(path)?).lines().enumerate() {
            let line = line?;
            let words: Vec<&str> = line.split(' ').collect();
            let number_of = |at: usize| {
                words
                    .get(at)
                    .and_then(|word| word.parse::<u64>().ok())
                    .ok_or_else(|| wrong(number, "no number"))
            };
            match words.first() {
                Some(&"run") => self.run = number_of(1)?,
                Some(&"i") => {
                    let what = match words.get(5) {
                        Some(&"w") => What::Data,
                        Some(&"z") => What::Zeroes,
                        _ => return Err(wrong(number, "neither w nor z")),
                    };
                    let write = Write {
                        sequence: number_of(1)?,
                        disk: number_of(2)? as u32,
                        block: number_of(3)?,
                        blocks: number_of(4)?,
                        what,
                        issued_us: number_of(6)? as i64,
                        outcome: Outcome::Unknown,
                    };
                    known.insert(write.sequence, self.writes.len());
                    self.writes.push(write);
                }
                Some(&"c") => {
                    let at = known.get(&number_of(1)?).ok_or_else(|| wrong(number, "it was never issued"))?;
                    self.writes[*at].outcome = match words.get(2) {
                        Some(&"ok") => Outcome::Ok(number_of(3)? as i64),
                        Some(&"failed") => Outcome::Failed,
                        _ => return Err(wrong(number, "neither ok nor failed")),
                    };
                }
                _ => return Err(wrong(number, "not a line of this log")),
            }
        }
        Ok(())
    }
}

/// The log of writers of one process.
pub struct Log(Mutex<File>);

impl Log {
    /// A new one.
    pub fn create(path: &Path, run: u64) -> io::Result<Self> {
        let mut file = File::create(path)?;
        writeln!(file, "run {run}")?;
        Ok(Self(Mutex::new(file)))
    }

    fn line(&self, line: &str) -> io::Result<()> {
        // One call for a line: a reader never sees half of one but at the very end.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes())
    }

    /// Before a write is sent.
    pub fn issue(&self, sequence: u64, disk: u32, block: u64, blocks: u64, what: What) -> io::Result<()> {
        let what = if what == What::Data { 'w' } else { 'z' };
        self.line(&format!("i {sequence} {disk} {block} {blocks} {what} {}\n", now_us()))
    }

    /// When it was answered.
    pub fn answer(&self, sequence: u64, ok: bool) -> io::Result<()> {
        self.line(&format!("c {sequence} {} {}\n", if ok { "ok" } else { "failed" }, now_us()))
    }
}
