//! Old history keeps one state of each hour: what is kept is right, what goes gives its space back, and what it is told
//! as without its owner.

mod source;

use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, Sequence};
use continuum_replica::inspect::{Content, Depth, look};
use continuum_replica::medium::Simulated;
use continuum_replica::{Folder, Limits, Medium, Store, View, bare};
use source::{SIZES, Source, open_limited};

/// A store with several segments.
fn open(medium: impl Medium + 'static) -> Store {
    open_limited(medium, Limits { segment_bytes: 20_000, fold_blocks: 1, ..Limits::default() })
}

fn content(view: &View) -> Vec<Vec<u8>> {
    let read = |(disk, size): (usize, &u64)| {
        let mut out = vec![0xee; *size as usize];
        view.read_at(DiskIndex(disk as u16), 0, &mut out).expect("it is read");
        out
    };
    SIZES.iter().enumerate().map(read).collect()
}

/// Forty frames; hours of 60 ms.
fn scene(store: &Store) -> Source {
    let mut source = Source::new(31);
    for _ in 0..40 {
        source.frame(7);
    }
    for frame in &source.frames {
        store.append(std::slice::from_ref(frame)).expect("it is taken");
    }
    source
}

#[test]
fn it_gives_space_back_and_keeps_what_it_says() {
    let world = Simulated::default();
    let store = open(world.clone());
    let mut source = scene(&store);
    let before = store.state();
    let points = store.points_after(Sequence(0));
    let pinned = &points[points.len() / 4];
    store.mark(pinned.id, |mark| mark.pinned = true).expect("it is pinned");
    let proven = &points[points.len() / 3];
    store.mark(proven.id, |mark| mark.proofs.booted = Some(true)).expect("it is proven");
    let opened = source.states.keys().nth(source.states.len() / 2).copied().expect("a position");
    let view = store.open_view(opened).expect("a view");
    let expected = content(&view);
    let until = source.time - 30_000;
    assert!(source.thin(&store, until, 20_000).expect("it is thinned") > 3);
    let after = store.state();
    assert!(after.history_bytes < before.history_bytes / 4 * 3, "{before:?} {after:?}");
    assert_eq!((after.last, after.newest_legal), (before.last, before.newest_legal));
    // What is needed is there: what is open, pinned, proven, newer, and one listed point of every hour.
    assert_eq!(content(&view), expected);
    let left = store.points_after(Sequence(0));
    for kept in [pinned, proven] {
        assert!(left.iter().any(|point| point.id == kept.id), "{kept:?} is gone");
    }
    for hour in points.iter().map(|point| point.time.micros() / 20_000) {
        assert!(left.iter().any(|point| point.time.micros() / 20_000 == hour), "of {hour} no point is left");
    }
    assert!(left.len() < points.len());
    source.check(&store, before.last.sequence, "thinned");
    // A moment that is gone is told as the one before it, and that it lies in a gap.
    let (after, to) = source.thinned[0];
    let inside = source.states.range(after.next()..to).next_back().expect("a position").1.0;
    let told = store.resolve(&continuum_model::point::PointChoice::Moment(inside));
    if let Ok(told) = told {
        assert!(told.position <= after && told.gap.is_some(), "{told:?}");
    }
    // Nothing is left to do; a longer step finds more.
    assert_eq!(source.thin(&store, until, 20_000).expect("nothing"), 0);
    drop(view);
    store.mark(pinned.id, |mark| mark.pinned = false).expect("it is unpinned");
    assert!(source.thin(&store, until, 80_000).expect("it is thinned again") > 0);
    source.check(&store, before.last.sequence, "thinned twice");
    // As another process finds it, and all of it in the base.
    drop(store);
    let store = open(world.clone());
    source.check(&store, before.last.sequence, "opened again");
    let mut slices = 0;
    while store.fold(Timestamp::from_micros(source.time), None).expect("it folds") {
        source.check(&store, before.last.sequence, "while it is folded");
        slices += 1;
    }
    assert!(slices > 4, "a stretch is folded in slices: {slices}");
    source.check(&store, before.last.sequence, "folded");
    let mut found = Vec::new();
    while let Ok(slice) = store.scrub(Bytes(50_000)) {
        found.extend(slice.found);
        if slice.round_done {
            break;
        }
    }
    assert_eq!(found, []);
}

#[test]
fn a_scrub_goes_on_while_history_is_thinned() {
    let world = Simulated::default();
    let store = open(world.clone());
    let mut source = scene(&store);
    let (mut rounds, mut step) = (0, 10_000);
    while rounds < 6 {
        let slice = store.scrub(Bytes(3_000)).expect("its place is noted");
        assert_eq!(slice.found, [], "nothing is wrong");
        rounds += usize::from(slice.round_done);
        let until = source.time;
        source.thin(&store, until, step).expect("it is thinned");
        step += 700;
    }
}

#[test]
fn a_thinned_store_can_be_looked_at_and_opened_bare() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("store");
    let store = open(Folder::open_or_create(&path).expect("a folder"));
    let mut source = scene(&store);
    let until = source.time - 20_000;
    assert!(source.thin(&store, until, 25_000).expect("it is thinned") > 2);
    let last = store.state().last.sequence;
    drop(store);
    // What a crash in the middle of it leaves.
    std::fs::write(path.join("journal/rewritten"), b"half of a segment").expect("written");
    let looked =
        look(&path, Depth { frames: true, verify: true }, &mut |_, _| {}).expect("it can be looked at");
    let Content::Store(facts) = looked else { panic!("{looked:?}") };
    assert_eq!(facts.problems, []);
    let bare = bare::open(&path, None).expect("it opens");
    source.check(&bare.store, last, "bare");
    drop(bare);
    // Rot in what stands for a stretch is named, with its file; and never served.
    let segments: Vec<_> = std::fs::read_dir(path.join("journal")).expect("a folder").flatten().collect();
    let mut flips = 0;
    for segment in segments {
        let Ok(whole) = std::fs::read(segment.path()) else { continue };
        let Some(at) = whole.windows(4).position(|word| word == b"CTMT") else { continue };
        for skip in (0..220).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at + skip] ^= 4;
            std::fs::write(segment.path(), &bytes).expect("written");
            let looked = look(&path, Depth { frames: false, verify: true }, &mut |_, _| {});
            let Ok(Content::Store(facts)) = looked else { panic!("byte {skip}: {looked:?}") };
            let name = format!("journal/{}", segment.file_name().display());
            assert!(
                facts.problems.iter().any(|problem| problem.file == name),
                "byte {skip}: {:?}",
                facts.problems
            );
            if let Ok(bare) = bare::open(&path, None) {
                let state = bare.store.state();
                for (position, (time, disks)) in source.states.iter().filter(|(at, _)| at.0 % 11 == 0) {
                    if state.oldest_legal.is_none_or(|oldest| *time < oldest) {
                        continue;
                    }
                    let Ok(view) = bare.store.open_view(*position) else { continue };
                    for (disk, expected) in disks.iter().enumerate() {
                        let mut out = vec![0xee; expected.len()];
                        if view.read_at(DiskIndex(disk as u16), 0, &mut out).is_ok() {
                            assert!(out == *expected, "byte {skip}: {position} is served as it never was");
                        }
                    }
                }
            }
            flips += 1;
        }
        std::fs::write(segment.path(), &whole).expect("written");
    }
    assert!(flips > 80, "{flips} flips are too few");
}

#[test]
fn a_flip_in_a_thinned_stretch_is_found_and_never_served() {
    let world = Simulated::default();
    let store = open(world.clone());
    let mut source = scene(&store);
    let until = source.time - 20_000;
    assert!(source.thin(&store, until, 25_000).expect("it is thinned") > 2);
    drop(store);
    let mut flips = 0;
    for name in world.names().into_iter().filter(|name| name.starts_with("journal/")) {
        let whole = world.content(&name).expect("it is there");
        let Some(at) = whole.windows(4).position(|word| word == b"CTMT") else { continue };
        let store = open(world.clone());
        for place in (at..at + 300).step_by(9).chain((at..whole.len()).step_by(997)) {
            world.corrupt(&name, |bytes| bytes[place] ^= 4);
            let mut found = Vec::new();
            loop {
                let slice = store.scrub(Bytes(1 << 20)).expect("its place is noted");
                found.extend(slice.found);
                if slice.round_done {
                    break;
                }
            }
            assert!(found.iter().any(|finding| finding.file == name), "byte {place} of {name}: {found:?}");
            world.corrupt(&name, |bytes| bytes[place] ^= 4);
            flips += 1;
        }
    }
    assert!(flips > 60, "{flips} flips are too few");
    let store = open(world);
    source.check(&store, Sequence(1), "mended");
}

#[test]
fn what_does_not_shrink_is_left_alone_and_an_order_can_be_stopped() {
    let world = Simulated::default();
    let limits = Limits { segment_bytes: 3 << 20, ..Limits::default() };
    let store = open_limited(world.clone(), limits);
    let mut source = scene(&store);
    let bytes = store.state().history_bytes;
    let everything = |_: Timestamp| Some((1, 1));
    assert_eq!(store.thinnable(&everything), None, "the segment that is written is left alone");
    drop(store);
    let store = open(world);
    for _ in 0..6 {
        source.frame(7);
    }
    store.append(&source.frames[40..]).expect("it is taken");
    if let Some(stretch) = store.thinnable(&everything) {
        assert!(!store.thin(&stretch, &|| true).expect("it is stopped"));
        assert!(store.state().history_bytes > bytes);
        source.check(&store, store.state().last.sequence, "stopped");
    } else {
        panic!("there is something to thin");
    }
}
