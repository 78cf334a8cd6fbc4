//! A disk in memory that fails when told, and loses power: for tests and simulations.
//!
//! Like a real one it has a cache: a write is in the cache at once and on the medium after a flush. At a power
//! cut each sector of the cache reaches the medium or does not, as the seed says.

use crate::disk::{Activity, SourceDisk, Stamp};
use std::collections::BTreeMap;
use std::io;
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
    fn operate(&self) -> (MutexGuard<'_, Inner>, Option<Fault>) {
        let mut inner = self.lock();
        inner.operations += 1;
        let at = inner.operations;
        let fault = inner.faults.remove(&at);
        inner.failed += u64::from(fault.is_some());
        (inner, fault)
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
        let (mut inner, fault) = self.operate();
        let end = offset + out.len() as u64;
        if inner.bad.is_some_and(|(from, to)| offset < to && from < end) {
            inner.failed += 1;
            return Err(injected());
        }
        if fault.is_some() {
            return Err(injected());
        }
        out.copy_from_slice(&inner.cache[offset as usize..][..out.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut inner, fault) = self.operate();
        let data = match fault {
            None => data,
            Some(Fault::Short) => &data[..data.len() / 2],
            Some(Fault::Error) => return Err(injected()),
        };
        inner.change(offset, data.len(), |out| out.copy_from_slice(data));
        if fault.is_some() { Err(injected()) } else { Ok(()) }
    }
    fn zero(&self, offset: u64, length: u64, _may_trim: bool) -> io::Result<()> {
        let (mut inner, fault) = self.operate();
        let length = match fault {
            None => length,
            Some(Fault::Short) => length / 2,
            Some(Fault::Error) => return Err(injected()),
        };
        inner.change(offset, length as usize, |out| out.fill(0));
        if fault.is_some() { Err(injected()) } else { Ok(()) }
    }
    fn flush(&self) -> io::Result<()> {
        let (mut inner, fault) = self.operate();
        if fault.is_some() {
            return Err(injected());
        }
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
