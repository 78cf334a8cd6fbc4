//! Every call that an operation makes to its disk fails once, or is where the power goes: whatever was acknowledged
//! is there afterwards, nothing wrong is read, and what was started is done or undone.
//!
//! On the simulated medium with power cuts, a failing and a full disk; on the real file system with failing calls.

mod source;

use continuum_model::id::{PointId, ViewId};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, Sequence};
use continuum_replica::medium::{Fault, MediumFile, Simulated};
use continuum_replica::{Folder, Limits, Medium, ReplicaError, Store};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use source::{Source, open_limited};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

const VIEW: ViewId = ViewId::from_bytes([9; 16]);

/// A store with several segments.
fn open(medium: impl Medium + 'static) -> Store {
    open_limited(medium, Limits { segment_bytes: 20_000, fold_blocks: 1, ..Limits::default() })
}

/// Something that a store does, as one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Append,
    Fold,
    Thin,
    FoldThinned,
    Mark,
    Overlay,
    Compact,
    Scrub,
    Start,
}

const ACTS: [Act; 9] = [
    Act::Append,
    Act::Fold,
    Act::Thin,
    Act::FoldThinned,
    Act::Mark,
    Act::Overlay,
    Act::Compact,
    Act::Scrub,
    Act::Start,
];

impl Act {
    fn calls_min(self) -> u64 {
        // One write and one sync are all that an append is.
        if self == Self::Append { 2 } else { 5 }
    }
}

/// A store with some history, a pinned point and an overlay that was flushed.
struct Scene {
    source: Source,
    acked: Sequence,
    pinned: PointId,
    position: Sequence,
    /// The first disk of the overlay as it was flushed; and as it may be, too.
    flushed: Vec<u8>,
    written: Vec<u8>,
}

impl Scene {
    fn set(store: &Store) -> Self {
        let mut source = Source::new(11);
        (0..6).for_each(|_| source.frame(6));
        let one = |frame| store.append(std::slice::from_ref(frame)).expect("it is taken").sequence;
        let acked = source.frames.iter().map(one).last().expect("there are frames");
        let points = store.points_after(Sequence(0));
        let middle = &points[points.len() / 2];
        store.mark(middle.id, |mark| mark.pinned = true).expect("it is pinned");
        let position = middle.position;
        let overlay =
            store.open_overlay(store.open_view(position).expect("a view"), VIEW).expect("an overlay");
        for fill in 1..40 {
            overlay.write_at(DiskIndex(0), 512, &[fill; 4000]).expect("it is written");
        }
        overlay.flush().expect("it is flushed");
        let mut flushed = source.states[&position].1[0].clone();
        flushed[512..4512].fill(39);
        Self { acked, pinned: middle.id, position, written: flushed.clone(), flushed, source }
    }

    fn act(&mut self, act: Act, store: &Store) -> Result<(), ReplicaError> {
        match act {
            Act::Append => {
                let acked = store.append(&self.source.frames)?.sequence;
                self.acked = self.acked.max(acked);
            }
            Act::Fold | Act::FoldThinned => {
                let until = Timestamp::from_micros(self.source.time);
                while store.fold(until, None)? {}
            }
            Act::Thin => {
                let thinned = self.source.thin(store, self.source.time, 40_000)?;
                assert!(thinned > 0, "{thinned} stretches are too few");
            }
            Act::Mark => store.mark(self.pinned, |mark| mark.proofs.booted = Some(true))?,
            Act::Overlay | Act::Compact => {
                let view = store.open_view(self.position)?;
                let overlay = store.open_overlay(view, VIEW)?;
                if act == Act::Compact {
                    assert!(overlay.compact(1000)?, "it is compacted");
                }
                overlay.write_at(DiskIndex(0), 2000, &[77; 600])?;
                self.written[2000..2600].fill(77);
                overlay.flush()?;
                self.flushed.clone_from(&self.written);
            }
            Act::Scrub => while !store.scrub(Bytes(100_000))?.round_done {},
            Act::Start => {}
        }
        Ok(())
    }

    fn check(&self, store: &Store, why: &str) {
        self.source.check(store, self.acked, why);
        let points = store.points_after(Sequence(0));
        assert!(points.iter().any(|point| point.id == self.pinned && point.mark.pinned), "{why}: the pin");
        let view = store.open_view(self.position).expect("a pinned point opens");
        let overlay = store.open_overlay(view, VIEW).expect("the overlay opens");
        let mut found = vec![0; self.flushed.len()];
        overlay.read_at(DiskIndex(0), 0, &mut found).expect("the overlay reads");
        assert!(found == self.flushed || found == self.written, "{why}: the overlay is neither of the two");
    }
}

#[test]
fn the_nth_call_of_everything_fails_or_cuts_the_power() {
    for act in ACTS {
        for fault in [Fault::Error, Fault::Full, Fault::PowerCut] {
            let mut nth = 1;
            while one(act, fault, nth) {
                nth += 1;
            }
            assert!(nth > act.calls_min(), "{act:?}: {nth} calls are too few to have tested anything");
        }
    }
}

/// Whether the fault fired.
fn one(act: Act, fault: Fault, nth: u64) -> bool {
    let why = format!("{act:?}, {fault:?} at call {nth}");
    let world = Simulated::default();
    let mut rng = ChaCha8Rng::seed_from_u64(nth);
    let mut store = open(world.clone());
    let mut scene = Scene::set(&store);
    if act == Act::Append {
        (0..3).for_each(|_| scene.source.frame(5));
    }
    if act == Act::FoldThinned {
        scene.source.thin(&store, scene.source.time, 40_000).expect("it is thinned");
    }
    if act == Act::Start {
        // A fold that was cut short is what a start has most to do with.
        world.fault_at(12, Fault::PowerCut);
        assert!(scene.act(Act::Fold, &store).is_err(), "the fold is cut short");
        drop(store);
        world.crash(|| rng.random());
        world.fault_at_call(nth, fault);
        let started = Store::open_or_create(Arc::new(world.clone()), source::MACHINE, &source::disks());
        drop(started);
    } else {
        world.fault_at_call(nth, fault);
        if scene.act(act, &store).is_err() && fault != Fault::PowerCut && nth.is_multiple_of(2) {
            // It goes on without a start: what is read is right, or is not.
            world.disarm();
            if let Ok(view) = store.open_view(scene.position) {
                let mut out = vec![0; scene.flushed.len()];
                view.read_at(DiskIndex(0), 0, &mut out).unwrap_or_else(|error| panic!("{why}: {error}"));
                assert!(out == scene.source.states[&scene.position].1[0], "{why}");
            }
        }
        drop(store);
    }
    let fired = world.fired() > u64::from(act == Act::Start);
    world.disarm();
    if world.is_dead() || nth.is_multiple_of(3) {
        world.crash(|| rng.random());
    }
    store = open(world.clone());
    scene.check(&store, &why);
    // Healed: everything arrives, everything folds.
    scene.acked =
        store.append(&scene.source.frames[store.state().last.number.0 as usize..]).expect(&why).sequence;
    while store.fold(Timestamp::from_micros(scene.source.time), None).expect(&why) {}
    scene.check(&store, &why);
    drop(store);
    world.crash(|| rng.random());
    scene.check(&open(world), &why);
    fired
}

#[test]
fn the_nth_call_fails_on_a_real_file_system() {
    for act in ACTS.into_iter().filter(|act| *act != Act::Start) {
        for nth in 1.. {
            let why = format!("{act:?}, call {nth}");
            let dir = tempfile::tempdir().expect("a folder");
            let calls = Arc::new(AtomicI64::new(0));
            let store = open(Failing::open(dir.path(), &calls));
            let mut scene = Scene::set(&store);
            if act == Act::Append {
                (0..3).for_each(|_| scene.source.frame(5));
            }
            if act == Act::FoldThinned {
                scene.source.thin(&store, scene.source.time, 40_000).expect("it is thinned");
            }
            calls.store(nth, Ordering::SeqCst);
            let done = scene.act(act, &store);
            let fired = calls.swap(0, Ordering::SeqCst) < 0;
            assert!(done.is_ok() || fired, "{why}: {done:?}");
            drop(store);
            let store = open(Failing::open(dir.path(), &calls));
            scene.check(&store, &why);
            scene.acked = store
                .append(&scene.source.frames[store.state().last.number.0 as usize..])
                .expect(&why)
                .sequence;
            while store.fold(Timestamp::from_micros(scene.source.time), None).expect(&why) {}
            scene.check(&store, &why);
            if !fired {
                let least = i64::try_from(act.calls_min()).expect("a small number");
                assert!(nth > least, "{act:?}: {nth} calls are too few to have tested anything");
                break;
            }
        }
    }
}

/// A real folder of which one call fails. `calls` counts down; the call that takes it to zero fails, and marks that
/// it did by going on below.
struct Failing {
    folder: Folder,
    calls: Arc<AtomicI64>,
}

struct FailingFile {
    file: Box<dyn MediumFile>,
    calls: Arc<AtomicI64>,
}

fn count(calls: &AtomicI64) -> io::Result<()> {
    // 0: nothing is counted; below: it fired.
    let before = calls.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| match left {
        1 => Some(-1),
        left if left > 1 => Some(left - 1),
        _ => None,
    });
    if before == Ok(1) { Err(io::Error::other("this call fails")) } else { Ok(()) }
}

impl Failing {
    fn open(path: &Path, calls: &Arc<AtomicI64>) -> Self {
        Self { folder: Folder::open_or_create(path).expect("a folder"), calls: calls.clone() }
    }
}

impl Medium for Failing {
    fn open(&self, name: &str, create: bool) -> io::Result<Box<dyn MediumFile>> {
        count(&self.calls)?;
        Ok(Box::new(FailingFile { file: self.folder.open(name, create)?, calls: self.calls.clone() }))
    }
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        count(&self.calls).and_then(|()| self.folder.list(folder))
    }
    fn make_folder(&self, name: &str) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.folder.make_folder(name))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.folder.rename(from, to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.folder.remove(name))
    }
    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.folder.sync_folder(folder))
    }
}

impl MediumFile for FailingFile {
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.file.read_at(offset, out))
    }
    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        if let Err(error) = count(&self.calls) {
            // The first part got through.
            if let Some(first) = parts.first() {
                self.file.write_at(offset, &[&first[..first.len() / 2]])?;
            }
            return Err(error);
        }
        self.file.write_at(offset, parts)
    }
    fn len(&self) -> io::Result<u64> {
        count(&self.calls).and_then(|()| self.file.len())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.file.set_len(length))
    }
    fn sync(&self) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.file.sync())
    }
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        count(&self.calls).and_then(|()| self.file.punch(offset, length))
    }
}
