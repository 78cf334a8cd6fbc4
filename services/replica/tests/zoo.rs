//! Stores of every released version keep opening, with everything that was in them.
//!
//! `zoo/VERSION/store` is a store as that version wrote it: history in the journal, thinned and folded, points with
//! marks, an overlay and kept sums. `zoo/VERSION/expected` says what is in it. For a new version:
//! `UPDATE_ZOO=1 cargo test -p continuum-replica --test zoo` adds its own; what is there is never made anew.

mod source;

use continuum_model::digest::Digest;
use continuum_model::id::{PointId, ViewId};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes, DiskIndex, Sequence};
use continuum_replica::inspect::{Content, Depth, look};
use continuum_replica::{Folder, Limits, Overlay, Store, View, bare};
use serde::{Deserialize, Serialize};
use source::{SIZES, Source, open_limited};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const VIEW: ViewId = ViewId::from_bytes([9; 16]);

/// What a store holds.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Expected {
    /// Every position that can be brought up of those that were looked at, with the digests of its disks.
    positions: BTreeMap<u64, Vec<String>>,
    /// Listed points: id, position, name, pinned, proven.
    points: Vec<(PointId, u64, String, bool, bool)>,
    /// Where the overlay lies, and the digest of its first disk.
    overlay: (u64, String),
    /// The last record.
    last: u64,
}

fn zoo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo")
}

fn open(path: &Path) -> Store {
    let limits = Limits { segment_bytes: 20_000, fold_blocks: 1, ..Limits::default() };
    open_limited(Folder::open_or_create(path).expect("a folder"), limits)
}

fn digests(view: &View) -> Vec<String> {
    let disk = |at: usize| view.digest(DiskIndex(at as u16)).expect("it is read").to_string();
    (0..SIZES.len()).map(disk).collect()
}

fn digest_of(overlay: &Overlay) -> String {
    let mut content = vec![0; SIZES[0] as usize];
    overlay.read_at(DiskIndex(0), 0, &mut content).expect("it is read");
    Digest(xxhash_rust::xxh3::xxh3_128(&content)).to_string()
}

fn found(store: &Store, asked: impl Iterator<Item = u64>, overlay: u64) -> Expected {
    let positions = asked.filter_map(|position| {
        let view = store.open_view(Sequence(position)).ok()?;
        Some((position, digests(&view)))
    });
    let point = |point: continuum_replica::PointInfo| {
        let proven = point.mark.proofs.booted == Some(true);
        (point.id, point.position.0, point.name, point.mark.pinned, proven)
    };
    let view = store.open_view(Sequence(overlay)).expect("the overlay's position opens");
    let laid = store.open_overlay(view, VIEW).expect("the overlay opens");
    Expected {
        positions: positions.collect(),
        points: store.points_after(Sequence(0)).into_iter().map(point).collect(),
        overlay: (overlay, digest_of(&laid)),
        last: store.state().last.sequence.0,
    }
}

/// A store with one of everything.
fn make(path: &Path) -> Expected {
    let store = open(path);
    let mut source = Source::new(41);
    for _ in 0..30 {
        source.frame(7);
        store.append(&source.frames[source.frames.len() - 1..]).expect("it is taken");
    }
    let time = |share: usize| source.states.values().nth(source.states.len() * share / 8).expect("a time").0;
    let (fold, thin) = (time(1), time(6).micros());
    while store.fold(fold, None).expect("it folds") {}
    assert!(source.thin(&store, thin, 15_000).expect("it is thinned") > 1);
    let points = store.points_after(Sequence(0));
    let [.., pinned, proven, _] = &points[..] else { panic!("too few points") };
    store.mark(pinned.id, |mark| mark.pinned = true).expect("it is pinned");
    store.mark(proven.id, |mark| mark.proofs.booted = Some(true)).expect("it is proven");
    let view = store.open_view(pinned.position).expect("a view");
    let overlay = store.open_overlay(view, VIEW).expect("an overlay");
    overlay.write_at(DiskIndex(0), 700, &[77; 9000]).expect("it is written");
    overlay.flush().expect("it is flushed");
    let at = pinned.position.0;
    drop(overlay);
    while !store.tend_digests(Bytes(1 << 20)).expect("it is summed").done {}
    while !store.scrub(Bytes(1 << 20)).expect("it is scrubbed").round_done {}
    found(&store, 1..=store.state().last.sequence.0, at)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("it is there").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("it is copied");
        }
    }
}

#[test]
fn a_store_of_every_version_opens_with_all_that_was_in_it() {
    let ours = zoo().join(env!("CARGO_PKG_VERSION"));
    if std::env::var_os("UPDATE_ZOO").is_some() && !ours.exists() {
        let expected = make(&ours.join("store"));
        std::fs::remove_file(ours.join("store/lock")).expect("the lock");
        let text = serde_json::to_string_pretty(&expected).expect("words");
        std::fs::write(ours.join("expected"), text).expect("it is written");
    }
    assert!(ours.exists(), "this version has no store in the zoo: UPDATE_ZOO=1 adds it");
    let mut versions = 0;
    for version in std::fs::read_dir(zoo()).expect("the zoo").flatten() {
        let name = version.file_name();
        let text = std::fs::read_to_string(version.path().join("expected")).expect("what is expected");
        let expected: Expected = serde_json::from_str(&text).expect("words");
        assert!(expected.positions.len() > 40 && expected.points.len() > 2, "{name:?}: {expected:?}");
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store");
        copy(&version.path().join("store"), &path);

        // Without its owner.
        let looked = look(&path, Depth { frames: true, verify: true }, &mut |_, _| {}).expect("looked at");
        let Content::Store(facts) = looked else { panic!("{name:?}: {looked:?}") };
        assert_eq!(facts.problems, [], "{name:?}");
        let bare = bare::open(&path, None).unwrap_or_else(|error| panic!("{name:?}: {error}"));
        assert_eq!(bare.store.state().last.sequence.0, expected.last, "{name:?}");
        drop(bare);

        // By its owner, who goes on with it.
        let store = open(&path);
        let asked = || expected.positions.keys().copied();
        assert_eq!(found(&store, 1..=expected.last, expected.overlay.0), expected, "{name:?}");
        let newest = store.state().newest_legal.expect("a moment");
        while store.fold(newest, None).expect("it folds") {}
        let pinned = expected.points.iter().find(|point| point.3).map_or(u64::MAX, |point| point.1);
        for position in asked().filter(|position| *position >= pinned) {
            let view = store.open_view(Sequence(position)).expect("it is kept");
            assert_eq!(digests(&view), expected.positions[&position], "{name:?}: {position} after folding");
        }
        assert!(store.state().oldest_legal > Some(Timestamp::from_micros(0)));
        versions += 1;
    }
    assert!(versions > 0);
}
