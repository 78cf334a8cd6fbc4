//! Whatever byte of whatever file changes: the scrub names it, tells which moments need it, and the others stay good.

mod source;

use continuum_model::id::ViewId;
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, Epoch, Sequence};
use continuum_replica::medium::Simulated;
use continuum_replica::{Affects, Cache, Finding, Store};
use source::{MACHINE, Source, disks, open};
use std::sync::Arc;

/// A store whose base, journal, marks and overlay all hold something.
fn scene() -> (Simulated, Store, Source, continuum_replica::Overlay) {
    let world = Simulated::default();
    // Without a cache, so that what is damaged is read.
    let medium = Arc::new(world.clone());
    let (store, _) = Store::open_with(medium, MACHINE, &disks(), Cache::new(0)).expect("the store opens");
    store.fence(Epoch(1)).expect("the epoch is recorded");
    let mut source = Source::new(21);
    (0..12).for_each(|_| source.frame(7));
    store.append(&source.frames).expect("it is taken");
    let middle = source.states.values().nth(source.states.len() / 2).expect("a moment").0;
    while store.fold(middle, None).expect("it folds") {}
    let point = store.points_after(Sequence(0)).pop().expect("a point");
    store.mark(point.id, |mark| mark.proofs.booted = Some(true)).expect("it is marked");
    let view = store.open_view(point.position).expect("a view");
    let overlay = store.open_overlay(view, ViewId::from_bytes([4; 16])).expect("an overlay");
    for fill in 1..20 {
        overlay.write_at(DiskIndex(0), u64::from(fill) * 700, &[fill; 900]).expect("it is written");
    }
    overlay.flush().expect("it is flushed");
    (world, store, source, overlay)
}

fn round(store: &Store) -> Vec<Finding> {
    let mut found = Vec::new();
    for _ in 0..100_000 {
        let slice = store.scrub(Bytes(20_000)).expect("its place is noted");
        found.extend(slice.found);
        if slice.round_done {
            return found;
        }
    }
    panic!("a round does not come to its end");
}

#[test]
fn a_flip_of_any_byte_of_any_file_is_found_and_named() {
    let (world, store, source, _overlay) = scene();
    assert_eq!(round(&store), [], "nothing is found where nothing is wrong");
    let names: Vec<String> = world.names().into_iter().filter(|name| name != "scrub").collect();
    for kind in ["manifest", "marks", "journal/", "base/0.img", "base/0.sum", "base/1.img", "views/"] {
        assert!(names.iter().any(|name| name.starts_with(kind)), "no {kind} in {names:?}");
    }
    let mut flips = 0;
    for name in &names {
        let content = world.content(name).expect("it is there");
        // Every class of place: all of the first records and headers, then here and there.
        let step = (content.len() / 60).max(1);
        let places = (0..content.len().min(200)).step_by(7).chain((0..content.len()).step_by(step));
        for at in places {
            let why = format!("byte {at} of {name}");
            world.corrupt(name, |bytes| bytes[at] ^= 1 << (at % 8));
            let found = round(&store);
            let here = |finding: &&Finding| {
                finding.file.trim_end_matches(".img")
                    == name.trim_end_matches(".img").trim_end_matches(".sum")
            };
            let finding = found.iter().find(here).unwrap_or_else(|| panic!("{why} was not found: {found:?}"));
            assert_eq!(found.len(), 1, "{why}: {found:?}");
            assert_eq!(store.state().findings, found, "{why} is told");
            if !name.ends_with(".sum") {
                assert!(finding.offset <= at as u64, "{why}: {finding}");
            }
            if name == "manifest" || name == "marks" {
                assert_eq!(world.content(name).as_ref(), Some(&content), "{why} is mended");
            }
            if flips % 9 == 0 {
                others_are_good(&store, &source, finding, &why);
            }
            world.corrupt(name, |bytes| bytes.clone_from(&content));
            flips += 1;
        }
    }
    assert!(flips > 400, "{flips} flips");
    assert_eq!(round(&store), []);
    assert_eq!(store.state().findings, [], "what is mended is no longer told");
}

/// Moments that are not named read as they were; those that are never read wrong.
fn others_are_good(store: &Store, source: &Source, finding: &Finding, why: &str) {
    let oldest = store.state().oldest_legal.expect("a moment");
    for (position, (time, disks)) in source.states.iter().filter(|(_, (time, _))| *time >= oldest).step_by(3)
    {
        let named = match finding.affects {
            Affects::Moments { from, until, .. } => *time >= from && until.is_none_or(|until| *time < until),
            Affects::Nothing | Affects::Overlay => false,
        };
        let view = store.open_view(*position).unwrap_or_else(|error| panic!("{why}: {error}"));
        for (disk, expected) in disks.iter().enumerate() {
            let mut out = vec![0; expected.len()];
            match view.read_at(DiskIndex(disk as u16), 0, &mut out) {
                Ok(()) => assert!(out == *expected, "{why}: served although it is wrong"),
                Err(error) => assert!(named, "{why}: {position} is not named, but {error}"),
            }
        }
    }
}

#[test]
fn a_scrub_goes_on_where_it_was_and_keeps_what_it_found() {
    let (world, store, source, overlay) = scene();
    world.corrupt("journal/00000001", |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    });
    let mut slices = 0;
    while store.scrub(Bytes(20_000)).expect("its place is noted").found.is_empty() {
        slices += 1;
    }
    assert!(slices > 3, "slices are small");
    let found = store.state().findings;
    assert!(matches!(found[0].affects, Affects::Moments { until: None, .. }), "{}", found[0]);
    drop(overlay);
    // Mended behind its back: what was found stands until a whole round did not find it again.
    let before = world.content("scrub").expect("the place is on record");
    world.corrupt("journal/00000001", |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    });
    drop(store);
    let store = open(world.clone());
    assert_eq!(store.state().findings, found);
    assert_eq!(world.content("scrub"), Some(before));
    let left = round(&store);
    assert_eq!(left, [], "it went on behind what it had found");
    assert_eq!(store.state().findings, found, "a whole round is needed");
    round(&store);
    assert_eq!(store.state().findings, []);
    source.check(&store, Sequence(1), "after the scrub");
    // A place that cannot be read is no reason not to open.
    drop(store);
    world.corrupt("scrub", |bytes| bytes[3] ^= 1);
    assert_eq!(round(&open(world)), []);
}

#[test]
fn a_scrub_goes_on_under_appends_and_folds() {
    let (_, store, mut source, overlay) = scene();
    for _ in 0..30 {
        store.scrub(Bytes(30_000)).expect("its place is noted");
        source.frame(5);
        store.append(&source.frames).expect("it is taken");
        store.fold(Timestamp::from_micros(source.time - 20_000), None).expect("it folds");
        overlay.write_at(DiskIndex(0), 900, &[7; 3000]).expect("it is written");
        overlay.compact(1000).expect("it is compacted");
    }
    assert_eq!(round(&store), []);
    assert_eq!(store.state().findings, []);
}
