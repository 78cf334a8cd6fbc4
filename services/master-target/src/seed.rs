//! Seeds: images of disks that were carried here, so that a first copy need not travel.
//!
//! Somebody puts `<dir>/seeds/<machine id>/<disk index>.raw` there before the machine is protected. The first time that
//! its replica is opened the images go into it; every block is compared with the source before it counts (see
//! `continuum_replica::seed`). The images stay where they are: they may be removed afterwards.

use crate::estate::Replica;
use crate::fault;
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex};
use continuum_model::world::{Clock, SystemClock};
use continuum_replica::Store;
use continuum_replica::seed::{SeedError, seed};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Begins to take in a new replica's seed, where there is one. No stream is admitted until that is done.
pub(crate) fn begin(dir: &Path, replica: Replica) -> Arc<Replica> {
    let replica = Arc::new(replica);
    let machine = replica.assigned().machine;
    let folder = dir.join("seeds").join(machine.to_string());
    let Ok(store) = replica.store() else { return replica };
    if store.state().last.number.0 > 0 || !folder.is_dir() {
        return replica;
    }
    replica.seeding.store(true, Ordering::Release);
    let weak = Arc::downgrade(&replica);
    let name = "seed".to_owned();
    let taken = std::thread::Builder::new().name(name).spawn(move || {
        let done = take(&folder, &store, &weak);
        let Some(replica) = weak.upgrade() else { return };
        match done {
            Ok(taken) => {
                tracing::info!(%machine, bytes = taken, "the seed is taken in; the source compares it")
            }
            Err(error) => {
                tracing::error!(%machine, "the seed: {error}");
                let told = fault("seed.failed", error)
                    .affects("the first copy, more of which travels")
                    .spares("what was taken in, which is compared as well")
                    .remedy("see to the image; to begin anew, unprotect the machine and protect it again");
                replica.warn("seed.failed", Some(told));
            }
        }
        replica.seeding.store(false, Ordering::Release);
    });
    if let Err(error) = taken {
        tracing::error!(%machine, %error, "no thread for the seed: everything travels");
        replica.seeding.store(false, Ordering::Release);
    }
    replica
}

fn take(folder: &Path, store: &Arc<Store>, replica: &Weak<Replica>) -> Result<u64, String> {
    let mut images: Vec<(DiskIndex, Box<dyn Read>)> = Vec::new();
    for disk in store.disks() {
        let path = folder.join(format!("{}.raw", disk.index));
        match File::open(&path) {
            Ok(file) => images.push((disk.index, Box::new(file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    let now: Timestamp = SystemClock::default().wall();
    let mut next = 0;
    let machine = store.machine();
    seed(store, images, now, &mut |read| {
        if read >= next {
            tracing::info!(%machine, read = %Bytes(read), "taking in the seed");
            next = read + (1 << 30);
        }
        replica.strong_count() > 0
    })
    .map_err(|error: SeedError| crate::bare::chain(&error))
}
