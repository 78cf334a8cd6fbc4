//! What a store costs beside the plainest thing that does the same: rows R1, R2, R3, R6 and R7 of the targets.
//! R4 and R5 are in `store_read`.
//!
//! Peers run in turns with what they are held against, in the same run, in the same folder; a figure is the
//! median of the rounds. Run with `cargo bench -p continuum-tests --bench store`, in a folder on a real disk
//! (`TMPDIR`). `CONTINUUM_BENCH_ENTRIES` (1000000) is how many records R3 has in range;
//! `CONTINUUM_BENCH_ROWS=R1,R3` runs only those.

use bytes::Bytes;
use continuum_model::feed::Envelope;
use continuum_model::units::{Bytes as Size, Sequence};
use continuum_tests::feed::{DISK, Feed, Frames, half_noise, mixed, open};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;

/// Bytes that this process holds. What the system says of a process has what was freed in it, too.
static HELD: AtomicI64 = AtomicI64::new(0);

struct Counted;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

// SAFETY: everything is done by the system's allocator; here it is only counted.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_add(size as i64 - layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(place, layout, size) }
    }
}

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let entries = std::env::var("CONTINUUM_BENCH_ENTRIES").ok().and_then(|text| text.parse().ok());
    let rows = std::env::var("CONTINUUM_BENCH_ROWS").unwrap_or_default();
    let wanted = |row: &str| rows.is_empty() || rows.split(',').any(|word| word == row);
    let dir = tempfile::tempdir().expect("a folder");
    if wanted("R1") {
        large_frames(dir.path());
    }
    if wanted("R2") {
        many_machines(dir.path());
    }
    if wanted("R3") {
        many_entries(dir.path(), entries.unwrap_or(1_000_000));
    }
    if wanted("R6") {
        while_folding(dir.path());
    }
    if wanted("R7") {
        journal_bytes(dir.path());
    }
}

/// R1: frames of 1 MiB, each durable before the next, beside the same bytes appended to a plain file.
fn large_frames(dir: &Path) {
    const COUNT: usize = 192;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for compressed in [false, true] {
        let mut frames = Frames::default();
        let envelopes: Vec<Envelope> = (0..COUNT)
            .map(|at| {
                frames.write((at as u64) << 20, half_noise(&mut rng, 1 << 20));
                frames.finish(compressed)
            })
            .collect();
        let stored: u64 = envelopes.iter().map(|envelope| envelope.len() as u64).sum();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let place = dir.join(format!("large-{compressed}-{round}"));
            let store = open(&place, (COUNT as u64) << 20);
            let before = Instant::now();
            for envelope in &envelopes {
                store.append(std::slice::from_ref(envelope)).expect("it is taken");
            }
            ours.push(before.elapsed());
            drop(store);
            remove(&place);
            let plain = dir.join("plain");
            let file = File::create(&plain).expect("a file");
            let before = Instant::now();
            let mut at = 0;
            for envelope in &envelopes {
                file.write_all_at(&envelope.stored, at).expect("it is written");
                file.sync_data().expect("it is durable");
                at += envelope.stored.len() as u64;
            }
            theirs.push(before.elapsed());
            remove(&plain);
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "R1 1 MiB frames, {}: {} stored, plain append and fdatasync {}: {:.2} ×",
            if compressed { "zstd" } else { "as they are" },
            rate(stored, ours),
            rate(stored, theirs),
            times(theirs, ours)
        );
    }
}

/// R2: writes of 4 KiB from 64 machines, each to its own store, beside 64 files with one fdatasync a write.
fn many_machines(dir: &Path) {
    const MACHINES: usize = 64;
    let data = half_noise(&mut ChaCha8Rng::seed_from_u64(2), 4096);
    // (what it is, writes in a frame, frames in a group, groups)
    let shapes = [
        ("one write a frame, one frame a sync", 1, 1, 60),
        ("one write a frame, 32 frames a sync (what waits at a master target)", 1, 32, 30),
        ("64 writes a frame, 32 frames a sync", 64, 32, 4),
    ];
    for (what, writes, frames_at_once, groups) in shapes {
        let groups: Vec<Vec<Envelope>> = {
            let mut frames = Frames::default();
            let mut offset = 0;
            let mut next = || {
                for _ in 0..writes {
                    frames.write(offset, data.clone());
                    offset = (offset + 4096) % (1 << 30);
                }
                frames.finish(false)
            };
            (0..groups).map(|_| (0..frames_at_once).map(|_| next()).collect()).collect()
        };
        let written = (groups.len() * frames_at_once * writes * MACHINES) as f64;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..3 {
            let place = dir.join(format!("machines-{round}"));
            let stores: Vec<_> =
                (0..MACHINES).map(|machine| open(&place.join(machine.to_string()), 1 << 30)).collect();
            let took = at_once(&stores, |store| {
                for group in &groups {
                    store.append(group).expect("it is taken");
                }
            });
            ours.push(written / took.as_secs_f64());
            drop(stores);
            remove(&place);
            std::fs::create_dir_all(&place).expect("a folder");
            let files: Vec<File> = (0..MACHINES)
                .map(|machine| File::create(place.join(machine.to_string())).expect("a file"))
                .collect();
            const EACH: u64 = 60;
            let took = at_once(&files, |file| {
                for at in 0..EACH {
                    file.write_all_at(&data, at * 4096).expect("it is written");
                    file.sync_data().expect("it is durable");
                }
            });
            theirs.push((EACH * MACHINES as u64) as f64 / took.as_secs_f64());
            drop(files);
            remove(&place);
        }
        ours.sort_unstable_by(f64::total_cmp);
        theirs.sort_unstable_by(f64::total_cmp);
        println!(
            "R2 4 KiB writes of {MACHINES} machines, {what}: {:.0}/s, one fdatasync each {:.0}/s: {:.1} ×",
            ours[1],
            theirs[1],
            ours[1] / theirs[1]
        );
    }
}

/// Does the same with each on a thread of its own; tells how long until the last was done.
fn at_once<T: Sync>(each: &[T], work: impl Fn(&T) + Sync) -> Duration {
    let ready = Barrier::new(each.len() + 1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = each
            .iter()
            .map(|one| {
                scope.spawn(|| {
                    ready.wait();
                    work(one);
                })
            })
            .collect();
        ready.wait();
        let before = Instant::now();
        threads.into_iter().for_each(|thread| thread.join().expect("it works"));
        before.elapsed()
    })
}

const MANY_SIZE: u64 = 64 << 30;

/// R3 with many records in range, and R7's memory: small writes all over a large disk.
fn many_entries(dir: &Path, entries: u64) {
    const AT_ONCE: u64 = 2000;
    let mut feed = Feed::new(&dir.join("many"), MANY_SIZE);
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let data = Bytes::from(vec![3; 512]);
    feed.frames.mark();
    for _ in 0..entries / AT_ONCE {
        for _ in 0..AT_ONCE {
            feed.frames.write(rng.random_range(0..feed.size / 512) * 512, data.clone());
        }
        feed.ship(true);
    }
    let mut out = vec![0; 65_536];
    let newest = feed.store.state().last.sequence.0;
    let mut took = Vec::new();
    for back in [entries / 2, entries / 2 - 1, 0] {
        let before = Instant::now();
        let view = feed.store.open_view(Sequence(newest - back)).expect("a view");
        view.read_at(DISK, 0, &mut out).expect("it reads");
        took.push(format!("{:.2} ms", before.elapsed().as_secs_f64() * 1e3));
    }
    // A machine that starts reads all over its disk.
    let view = feed.view();
    let before = Instant::now();
    for _ in 0..1000 {
        let offset = rng.random_range(0..feed.size / 65_536) * 65_536;
        view.read_at(DISK, offset, &mut out).expect("it reads");
    }
    println!(
        "R3 {entries} records, open and first read: {}; a thousand reads of 64 KiB all over it {:.2} ms each",
        took.join(", "),
        before.elapsed().as_secs_f64()
    );
    drop(view);
    let place = feed.dir.clone();
    drop(feed);
    let (held, before) = (HELD.load(Ordering::Relaxed), Instant::now());
    let store = open(&place, MANY_SIZE);
    println!(
        "R7 index memory: {:.1} MB a million entries; their store opens in {:.2} s",
        (HELD.load(Ordering::Relaxed) - held) as f64 / entries as f64,
        before.elapsed().as_secs_f64()
    );
    drop(store);
    remove(&place);
}

/// R6: ingest of compressed frames, alone and while another thread folds what is old and scrubs what is there.
fn while_folding(dir: &Path) {
    const MIB: u64 = 192;
    /// A round of upkeep folds one slice and scrubs this much.
    const SCRUB_BYTES: u64 = 16 << 20;
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut frames = Frames::default();
    let mut make = || -> Vec<Envelope> {
        (0..MIB)
            .map(|_| {
                while frames.pending < 1 << 20 {
                    let length = 4096 * rng.random_range(1..=16u64);
                    let offset = rng.random_range(0..=((MIB << 20) - length) / 4096) * 4096;
                    frames.write(offset, half_noise(&mut rng, length as usize));
                }
                frames.mark();
                frames.finish(true)
            })
            .collect()
    };
    let (history, new) = (make(), make());
    // What passes a second between two rounds: as upkeep does it, and as bad as it can be.
    for (what, pause) in [("a slice a second", Duration::from_secs(1)), ("without a pause", Duration::ZERO)] {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        let (folded, scrubbed) = (AtomicU64::new(0), AtomicU64::new(0));
        for round in 0..6 {
            let place = dir.join(format!("folding-{round}"));
            let store = open(&place, MIB << 20);
            for group in history.chunks(16) {
                store.append(group).expect("it is taken");
            }
            let until = store.state().last.newest;
            let busy = round % 2 == 1;
            let stop = AtomicBool::new(false);
            let took = std::thread::scope(|scope| {
                let upkeep = scope.spawn(|| {
                    while busy && !stop.load(Ordering::Relaxed) {
                        store.fold(until, None).expect("it folds");
                        folded.fetch_add(1, Ordering::Relaxed);
                        let done = store.scrub(Size(SCRUB_BYTES)).expect("it scrubs");
                        assert!(done.found.is_empty(), "nothing is damaged");
                        scrubbed.fetch_add(done.bytes, Ordering::Relaxed);
                        std::thread::park_timeout(pause);
                    }
                });
                let before = Instant::now();
                for envelope in &new {
                    store.append(std::slice::from_ref(envelope)).expect("it is taken");
                }
                let took = before.elapsed();
                stop.store(true, Ordering::Relaxed);
                upkeep.thread().unpark();
                took
            });
            if busy { &mut beside } else { &mut alone }.push(took);
            drop(store);
            remove(&place);
        }
        let (alone, beside) = (median(alone), median(beside));
        println!(
            "R6 ingest alone {}, beside folding and scrubbing {what} ({} slices, {} MB scrubbed) {}: {:.2} ×",
            rate(MIB << 20, alone),
            folded.load(Ordering::Relaxed),
            scrubbed.load(Ordering::Relaxed) / 1_000_000,
            rate(MIB << 20, beside),
            times(alone, beside)
        );
    }
}

/// R7: bytes of journal for a byte that changed.
fn journal_bytes(dir: &Path) {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for (what, longest) in [("4–64 KiB", 16u64), ("4 KiB", 1)] {
        let place = dir.join("bytes");
        let mut feed = Feed::new(&place, 1 << 30);
        let mut changed = 0;
        while changed < 128 << 20 {
            while feed.frames.pending < 1 << 20 {
                let length = 4096 * rng.random_range(1..=longest);
                let offset = rng.random_range(0..=(feed.size - length) / 4096) * 4096;
                feed.frames.write(offset, mixed(&mut rng, length as usize));
                changed += length;
            }
            feed.ship(true);
        }
        println!(
            "R7 journal bytes a changed byte, mixed data in writes of {what}: {:.2}",
            feed.store.state().history_bytes as f64 / changed as f64
        );
        drop(feed);
        remove(&place);
    }
}

fn remove(place: &Path) {
    if place.is_dir() { std::fs::remove_dir_all(place) } else { std::fs::remove_file(place) }
        .expect("it goes");
}

fn median(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[took.len() / 2]
}

fn times(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

fn rate(bytes: u64, took: Duration) -> String {
    format!("{:.0} MB/s", bytes as f64 / took.as_secs_f64() / 1e6)
}
