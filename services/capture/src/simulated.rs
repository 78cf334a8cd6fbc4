//! A disk in memory that fails when told, and loses power: for tests and simulations.
//!
//! Like a real one it has a cache: a write is in the cache at once and on the medium after a flush. At a power
//! cut each sector of the cache reaches the medium or does not, as the seed says.

use crate::disk::{Activity, SourceDisk, Stamp};
use crate::kept::Kept;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;

/// What goes wrong, and at which operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operation fails and changes nothing.
    Error,
    /// A write stops half-way, and fails.
    Short,
}

/// A disk in memory. Clones are the same disk, as seen by a process that starts again.
#[derive(Clone)]
pub struct SimulatedDisk {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    cache: Vec<u8>,
    /// What the medium holds where it differs from the cache.
    unflushed: BTreeMap<usize, [u8; SECTOR]>,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    bad: Option<(u64, u64)>,
    failed: u64,
    identity: u64,
    power: Power,
}

/// The power of a simulated machine. It goes out after so many operations of what hangs on it: from then on all
/// of them fail, until it comes back.
#[derive(Clone)]
pub struct Power {
    left: Arc<AtomicU64>,
}

impl Default for Power {
    fn default() -> Self {
        Self { left: Arc::new(AtomicU64::new(u64::MAX)) }
    }
}

impl Power {
    /// Lets so many operations pass.
    pub fn out_after(&self, operations: u64) {
        self.left.store(operations, Ordering::SeqCst);
    }
    /// It is back.
    pub fn restore(&self) {
        self.out_after(u64::MAX);
    }
    /// Whether it is out.
    pub fn is_out(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }
    /// One operation.
    pub fn spend(&self) -> io::Result<()> {
        let spent = self.left.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
            u64::MAX => Some(left),
            left => left.checked_sub(1),
        });
        spent.map(drop).map_err(|_| io::Error::other("the power is out"))
    }
}

/// A small file in memory that loses power like a disk. Clones are the same file. It is as durable as its length:
/// at once.
#[derive(Clone)]
pub struct SimulatedFile {
    disk: SimulatedDisk,
    length: Arc<AtomicU64>,
}

impl SimulatedFile {
    /// An empty one, which hangs on this power.
    pub fn new(power: &Power) -> Self {
        let disk = SimulatedDisk::new(0);
        disk.lock().power = power.clone();
        Self { disk, length: Arc::new(AtomicU64::new(0)) }
    }
    /// Fails the `nth` operation from now (1: the next one).
    pub fn fail(&self, nth: u64) {
        self.disk.fail(nth, Fault::Error);
    }
    /// See [`SimulatedDisk::cut_power`].
    pub fn cut_power(&self, survives: impl FnMut() -> bool) {
        self.disk.cut_power(survives);
    }
    /// All its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.disk.bytes();
        bytes.truncate(self.length.load(Ordering::SeqCst) as usize);
        bytes
    }
    /// Its bytes where nothing of what was not synced reached the medium.
    pub fn synced_bytes(&self) -> Vec<u8> {
        let mut bytes = self.disk.bytes();
        for (sector, old) in &self.disk.lock().unflushed {
            bytes[sector * SECTOR..][..SECTOR].copy_from_slice(old);
        }
        bytes.truncate(self.length.load(Ordering::SeqCst) as usize);
        bytes
    }
    /// Puts other bytes in their place, as somebody would who brings back a copy.
    pub fn put(&self, bytes: &[u8]) {
        let mut inner = self.disk.lock();
        inner.unflushed.clear();
        inner.cache = bytes.to_vec();
        inner.cache.resize(bytes.len().next_multiple_of(SECTOR), 0);
        self.length.store(bytes.len() as u64, Ordering::SeqCst);
    }
}

impl Kept for SimulatedFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.length.load(Ordering::SeqCst))
    }
    fn allocate(&self, length: u64) -> io::Result<()> {
        self.disk.operate().1?;
        self.disk.resize((length as usize).next_multiple_of(SECTOR));
        self.length.store(length, Ordering::SeqCst);
        Ok(())
    }
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        if at + out.len() as u64 > self.length()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read(at, out)
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write(at, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn remove(&self) -> io::Result<()> {
        let (mut inner, outcome) = self.disk.operate();
        outcome?;
        // Whoever has it open goes on writing, to nobody's use.
        inner.unflushed.clear();
        self.length.store(0, Ordering::SeqCst);
        Ok(())
    }
    fn name(&self) -> String {
        "a simulated file".into()
    }
}

impl SimulatedDisk {
    /// A disk of zeroes; its size is a multiple of 512.
    pub fn new(size: usize) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                cache: vec![0; size],
                unflushed: BTreeMap::new(),
                operations: 0,
                faults: BTreeMap::new(),
                bad: None,
                failed: 0,
                identity: 1,
                power: Power::default(),
            })),
        }
    }
    /// Fails the `nth` operation from now (1: the next one).
    pub fn fail(&self, nth: u64, fault: Fault) {
        let mut inner = self.lock();
        let at = inner.operations + nth;
        inner.faults.insert(at, fault);
    }
    /// Makes a range unreadable, or all readable again.
    pub fn set_bad(&self, range: Option<(u64, u64)>) {
        self.lock().bad = range;
    }
    /// How many operations failed: a fault test asks whether its fault fired.
    pub fn failures(&self) -> u64 {
        self.lock().failed
    }
    /// All its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().cache.clone()
    }
    /// Changes its size, as an administrator would.
    pub fn resize(&self, size: usize) {
        self.lock().cache.resize(size, 0);
    }
    /// Cuts the power: `survives` says of each unflushed sector whether it reached the medium.
    pub fn cut_power(&self, mut survives: impl FnMut() -> bool) {
        let mut inner = self.lock();
        for (sector, old) in std::mem::take(&mut inner.unflushed) {
            if !survives() {
                inner.cache[sector * SECTOR..][..SECTOR].copy_from_slice(&old);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// An operation begins: whether it fails, and how.
    fn operate(&self) -> (MutexGuard<'_, Inner>, Result<(), Failed>) {
        let mut inner = self.lock();
        if let Err(error) = inner.power.spend() {
            return (inner, Err(Failed { short: false, error }));
        }
        inner.operations += 1;
        let at = inner.operations;
        let Some(fault) = inner.faults.remove(&at) else { return (inner, Ok(())) };
        inner.failed += 1;
        (inner, Err(Failed { short: fault == Fault::Short, error: injected() }))
    }
}

struct Failed {
    short: bool,
    error: io::Error,
}

impl From<Failed> for io::Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

fn injected() -> io::Error {
    io::Error::other("injected I/O error")
}

impl Inner {
    fn change(&mut self, offset: u64, length: usize, mut fill: impl FnMut(&mut [u8])) {
        if length == 0 {
            return;
        }
        let start = offset as usize;
        for sector in start / SECTOR..=(start + length - 1) / SECTOR {
            if !self.unflushed.contains_key(&sector) {
                let mut old = [0; SECTOR];
                old.copy_from_slice(&self.cache[sector * SECTOR..][..SECTOR]);
                self.unflushed.insert(sector, old);
            }
        }
        fill(&mut self.cache[start..start + length]);
    }
}

impl SourceDisk for SimulatedDisk {
    fn size(&self) -> io::Result<u64> {
        Ok(self.lock().cache.len() as u64)
    }
    fn stamp(&self) -> io::Result<Stamp> {
        Ok(Stamp { identity: self.lock().identity, activity: Activity::Unknown })
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut inner, outcome) = self.operate();
        let end = offset + out.len() as u64;
        if inner.bad.is_some_and(|(from, to)| offset < to && from < end) {
            inner.failed += 1;
            return Err(injected());
        }
        outcome?;
        out.copy_from_slice(&inner.cache[offset as usize..][..out.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut inner, outcome) = self.operate();
        let data = match &outcome {
            Ok(()) => data,
            Err(failed) if failed.short => &data[..data.len() / 2],
            Err(_) => &[],
        };
        inner.change(offset, data.len(), |out| out.copy_from_slice(data));
        Ok(outcome?)
    }
    fn zero(&self, offset: u64, length: u64, _may_trim: bool) -> io::Result<()> {
        let (mut inner, outcome) = self.operate();
        let length = match &outcome {
            Ok(()) => length,
            Err(failed) if failed.short => length / 2,
            Err(_) => 0,
        };
        inner.change(offset, length as usize, |out| out.fill(0));
        Ok(outcome?)
    }
    fn flush(&self) -> io::Result<()> {
        let (mut inner, outcome) = self.operate();
        outcome?;
        inner.unflushed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cut_takes_what_was_not_flushed() {
        let disk = SimulatedDisk::new(4096);
        disk.write(0, &[1; 1024]).unwrap();
        disk.flush().unwrap();
        disk.write(0, &[2; 1024]).unwrap();
        let mut turn = false;
        disk.cut_power(|| {
            turn = !turn;
            turn
        });
        assert_eq!((disk.bytes()[0], disk.bytes()[512]), (2, 1));
        disk.fail(1, Fault::Short);
        assert!(disk.write(0, &[3; 1024]).is_err());
        assert_eq!((disk.bytes()[0], disk.bytes()[512], disk.failures()), (3, 1, 1));
    }
}
