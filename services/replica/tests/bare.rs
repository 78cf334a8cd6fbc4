//! A store without its owner: looked at, damaged in every way, and never changed.

use bytes::Bytes;
use continuum_model::feed::{Barrier, BarrierKind, Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId, PointId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::inspect::{Affects, Content, Depth, StoreFacts, look};
use continuum_replica::{DiskSpec, Folder, Store, bare};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
const SIZES: [u64; 2] = [136 << 10, 70 << 10];
const ALL: Depth = Depth { frames: true, verify: true };

fn disks() -> Vec<DiskSpec> {
    let spec = |(index, size): (usize, &u64)| DiskSpec {
        index: DiskIndex(index as u16),
        id: DiskId::from_bytes([index as u8 + 1; 16]),
        size: *size,
    };
    SIZES.iter().enumerate().map(spec).collect()
}

fn write(disk: u16, offset: u64, data: Vec<u8>) -> Change {
    Change::Write { disk: DiskIndex(disk), offset, data: data.into(), injected: false }
}

fn point(name: &str) -> Change {
    Change::Barrier(Barrier {
        kind: BarrierKind::Bookmark,
        consistent: true,
        point: Some(PointId::from_bytes([9; 16])),
        name: name.to_owned(),
    })
}

/// A store in `path` with the given frames; every record a second after the one before.
fn store(path: &Path, frames: Vec<Vec<Change>>) -> Store {
    let medium = Arc::new(Folder::open_or_create(path).unwrap());
    let (store, _) = Store::open_or_create(medium, MACHINE, &disks()).unwrap();
    store.fence(Epoch(1)).unwrap();
    append(&store, frames, 1, 0, 0);
    store
}

fn append(store: &Store, frames: Vec<Vec<Change>>, first: u64, mut sequence: u64, mut previous: u128) {
    let mut builder = FrameBuilder::default();
    for (number, changes) in frames.into_iter().enumerate() {
        for change in changes {
            sequence += 1;
            let time = Timestamp::from_micros(sequence as i64 * 1_000_000);
            builder.push(&Record { sequence: Sequence(sequence), time, change });
        }
        let number = FrameNumber(first + number as u64);
        let identity = Identity { machine: MACHINE, epoch: Epoch(1), number, session: 1, previous };
        let frame = builder.finish(identity).unwrap();
        previous = frame.head.digest;
        let mut envelope = Envelope::plain(&frame);
        if number.0.is_multiple_of(2) {
            let packed = zstd::bulk::compress(&frame.payload, 1).unwrap();
            if packed.len() < frame.payload.len() {
                (envelope.codec, envelope.stored) = (Codec::Zstd, Bytes::from(packed));
            }
        }
        store.append(&[envelope]).unwrap();
    }
}

/// Four frames of two disks, a named point, and a base that holds the first two of them.
fn small(path: &Path) {
    let mark = || Change::Barrier(Barrier::time_mark(true));
    let frames = vec![
        vec![mark(), write(0, 0, vec![1; 8192]), write(1, 512, vec![2; 600 * 8])],
        vec![write(0, 65_536, (0..4096u32).map(|at| (at * 7 % 255) as u8).collect()), mark()],
        vec![
            write(0, 4096, vec![3; 2048]),
            point("a\u{1b}[2Jb"),
            Change::Zero { disk: DiskIndex(1), offset: 0, length: 4096, injected: false },
        ],
        vec![write(1, 65_536, vec![4; 1024]), mark()],
    ];
    let store = store(path, frames);
    store.fold(Timestamp::from_micros(5_000_000), None).unwrap();
}

/// Every file below a folder: its length, times and a digest of its content.
fn fingerprint(dir: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime, u128)> {
    let mut out = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let meta = std::fs::metadata(&folder).unwrap();
        out.insert(folder.clone(), (0, meta.modified().unwrap(), 0));
        for entry in std::fs::read_dir(&folder).unwrap() {
            let (path, meta) = {
                let entry = entry.unwrap();
                (entry.path(), entry.metadata().unwrap())
            };
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() {
                out.insert(
                    path.clone(),
                    (meta.len(), meta.modified().unwrap(), xxh3_128(&std::fs::read(path).unwrap())),
                );
            }
        }
    }
    out
}

fn facts(path: &Path, depth: Depth) -> StoreFacts {
    match look(path, depth, &mut |_, _| {}).unwrap() {
        Content::Store(facts) => *facts,
        other => panic!("a store is there: {other:?}"),
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    fingerprint(path).into_keys().filter(|path| path.is_file()).collect()
}

#[test]
fn a_store_is_told_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let before = fingerprint(&path);
    let facts = facts(&path, ALL);
    assert_eq!((facts.problems_total, &facts.problems[..]), (0, &[][..]));
    let verified = facts.verified.unwrap();
    assert_eq!((verified.frames, verified.blocks), (2, 3), "{verified:?}");
    assert_eq!(facts.segments.len(), 1);
    assert_eq!(facts.segments[0].frames_total, 4, "folded ones are still in their file");
    let history = facts.history.unwrap();
    assert_eq!(history.points.len(), 1);
    assert_eq!(history.points[0].name, "a\u{1b}[2Jb", "raw here, made harmless where it is shown");
    assert_eq!(history.state.oldest_legal, Some(Timestamp::from_micros(5_000_000)));
    assert_eq!(history.state.newest_legal, Some(Timestamp::from_micros(10_000_000)));
    for file in files(&path) {
        look(&file, ALL, &mut |_, _| {}).unwrap();
    }
    let bare = bare::open(&path, None).unwrap();
    let view = bare.store.open_view(bare.store.resolve(&PointChoice::Latest).unwrap().position).unwrap();
    view.digest(DiskIndex(0)).unwrap();
    drop(view);
    drop(bare);
    assert_eq!(fingerprint(&path), before);
}

#[test]
fn a_torn_tail_and_an_interrupted_fold_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let journal = path.join("journal/00000001");
    let whole = std::fs::read(&journal).unwrap();
    let digest = |path: &Path| {
        let bare = bare::open(path, None).unwrap();
        let view = bare.store.open_view(bare.store.resolve(&PointChoice::Latest).unwrap().position).unwrap();
        (view.digest(DiskIndex(0)).unwrap(), view.digest(DiskIndex(1)).unwrap())
    };
    let expected = digest(&path);
    // The beginning of a record that never became whole.
    std::fs::write(&journal, [&whole[..], &whole[64..300]].concat()).unwrap();
    let before = fingerprint(&path);
    let facts = facts(&path, ALL);
    assert_eq!(facts.problems.iter().map(|found| found.affects).collect::<Vec<_>>(), [Affects::Tail]);
    assert_eq!(digest(&path), expected);
    assert_eq!(fingerprint(&path), before);
}

#[test]
fn beside_an_owner_it_can_be_looked_at_and_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let owner =
        store(&path, vec![vec![Change::Barrier(Barrier::time_mark(true)), write(0, 0, vec![1; 512])]]);
    let facts = facts(&path, ALL);
    assert_eq!((facts.owner, facts.problems_total), (Some(std::process::id()), 0));
    let refused = bare::open(&path, None).err().map(|error| error.to_string()).unwrap();
    assert!(refused.contains("is open in another process") && refused.contains("master target"), "{refused}");
    drop(owner);
    assert!(bare::open(&path, None).is_ok());
}

#[test]
fn damage_is_named_with_its_place_and_its_moments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    // Block 0 of disk 0 lies in the base; nothing in the journal covers it whole.
    let image = path.join("base/0.img");
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    let found = facts(&path, ALL);
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    let problem = &found.problems[0];
    assert_eq!((problem.file.as_str(), problem.at, problem.bytes), ("base/0.img", Some(0), Some(65_536)));
    assert_eq!(problem.affects, Affects::Moments(None, None));
    assert_eq!(facts(&path, Depth::default()).problems_total, 0, "without reading it nobody can know");
    bytes[100] ^= 1;
    std::fs::write(&image, &bytes).unwrap();
    // A sum that says zeroes where there is data would be believed by a reader.
    let sums = path.join("base/0.sum");
    let good = std::fs::read(&sums).unwrap();
    std::fs::write(&sums, [&[0; 8], &good[8..]].concat()).unwrap();
    let found = facts(&path, ALL);
    assert!(found.problems.iter().any(|found| found.what.contains("says zeroes")), "{:?}", found.problems);
    // And a missing end of the sums would read as zeroes, too.
    std::fs::write(&sums, &good[..8]).unwrap();
    let refused = bare::open(&path, None).err().map(|error| error.to_string()).unwrap();
    assert!(refused.contains("base/0.sum") && refused.contains("8 bytes"), "{refused}");
    std::fs::write(&sums, &good).unwrap();
    assert_eq!(facts(&path, ALL).problems_total, 0);
}

#[test]
fn data_that_was_written_over_is_needed_until_then() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mark = || Change::Barrier(Barrier::time_mark(true));
    let noise: Vec<u8> = (0..4096u32).map(|at| (at * 31 % 253) as u8).collect();
    let frames = vec![
        vec![mark()],
        vec![write(0, 8192, noise.clone()), write(1, 0, noise.clone())],
        vec![write(0, 8192, noise.clone())],
        vec![write(1, 0, noise.clone()), mark()],
    ];
    drop(store(&path, frames));
    // A second segment, so that the first is not the newest: its data is read only when it is needed.
    let first = std::fs::read(path.join("journal/00000001")).unwrap();
    {
        let medium = Arc::new(Folder::open_or_create(&path).unwrap());
        let (store, _) = Store::open_or_create(medium, MACHINE, &disks()).unwrap();
        let last = store.state().last;
        assert_eq!(last.number, FrameNumber(4));
    }
    let second = continuum_replica::segment::Segment::create(
        &Folder::open_or_create(&path).unwrap(),
        MACHINE,
        2,
        FrameNumber(5),
    );
    drop(second.unwrap());
    let at =
        first.windows(64).position(|part| part == &noise[..64]).expect("the second frame is not compressed");
    let place = first[..at].windows(4).rposition(|part| part == b"CTME").unwrap();
    let mut damaged = first.clone();
    damaged[at + 10] ^= 1;
    std::fs::write(path.join("journal/00000001"), &damaged).unwrap();
    let found = facts(&path, ALL);
    assert_eq!(found.problems.len(), 1, "{:?}", found.problems);
    let problem = &found.problems[0];
    assert_eq!((problem.file.as_str(), problem.at), ("journal/00000001", Some(place as u64)));
    let second = |second: i64| Some(Timestamp::from_micros(second * 1_000_000));
    // Written at 2 s and 3 s, written over at 4 s and 5 s.
    assert_eq!(problem.affects, Affects::Moments(second(2), second(5)));
}

/// What must hold for any content: an answer, soon, and nothing served that is not what was written.
fn survives(path: &Path, good: &BTreeMap<i64, Vec<Vec<u8>>>, why: &str) {
    let _ = look(path, ALL, &mut |_, _| {}).map(|content| format!("{content:?}"));
    for file in files(path) {
        let _ = look(&file, ALL, &mut |_, _| {});
    }
    let Ok(bare) = bare::open(path, None) else { return };
    for (time, expected) in good {
        let Ok(resolved) = bare.store.resolve(&PointChoice::Moment(Timestamp::from_micros(*time))) else {
            continue;
        };
        // Part of history may be gone; then an earlier moment is told, and told as that.
        if resolved.time.micros() != *time {
            continue;
        }
        let Ok(view) = bare.store.open_view(resolved.position) else { continue };
        for (disk, expected) in expected.iter().enumerate() {
            let mut out = vec![0; expected.len()];
            if view.read_at(DiskIndex(disk as u16), 0, &mut out).is_ok() {
                assert!(out == *expected, "{why}: disk {disk} at {time} is not what it was");
            }
        }
    }
}

fn states(path: &Path) -> BTreeMap<i64, Vec<Vec<u8>>> {
    let bare = bare::open(path, None).unwrap();
    let read = |second: i64| {
        let time = second * 1_000_000;
        let resolved = bare.store.resolve(&PointChoice::Moment(Timestamp::from_micros(time))).unwrap();
        let view = bare.store.open_view(resolved.position).unwrap();
        let disks = SIZES.iter().enumerate().map(|(disk, size)| {
            let mut out = vec![0; *size as usize];
            view.read_at(DiskIndex(disk as u16), 0, &mut out).unwrap();
            out
        });
        (resolved.time.micros(), disks.collect())
    };
    [5, 7, 10].map(read).into_iter().collect()
}

#[test]
fn no_cut_of_any_file_panics_loops_or_shows_what_never_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let good = states(&path);
    for file in files(&path) {
        let whole = std::fs::read(&file).unwrap();
        // Every length of what is small and dense; of the images, whose middle is all alike, every border.
        let dense = whole.len() < 8192;
        for length in (0..whole.len()).filter(|length| dense || length % 4096 < 2) {
            std::fs::write(&file, &whole[..length]).unwrap();
            survives(&path, &good, &format!("{} cut to {length}", file.display()));
        }
        std::fs::write(&file, [&whole[..], &whole[..]].concat()).unwrap();
        survives(&path, &good, &format!("{} twice in itself", file.display()));
        std::fs::write(&file, &whole).unwrap();
    }
    assert_eq!(facts(&path, ALL).problems_total, 0);
}

#[test]
fn no_flip_in_any_file_panics_loops_or_shows_what_never_was() {
    let seed = std::env::var("CONTINUUM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(11);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let good = states(&path);
    for file in files(&path) {
        let whole = std::fs::read(&file).unwrap();
        for _ in 0..150 {
            let mut bytes = whole.clone();
            for _ in 0..random.random_range(1..4) {
                if !bytes.is_empty() {
                    let at = random.random_range(0..bytes.len());
                    bytes[at] ^= 1 << random.random_range(0..8);
                }
            }
            std::fs::write(&file, &bytes).unwrap();
            survives(&path, &good, &format!("{} flipped, CONTINUUM_SEED={seed}", file.display()));
        }
        std::fs::write(&file, &whole).unwrap();
    }
}

#[test]
fn lies_in_a_manifest_are_refused_before_anything_is_made_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let good = std::fs::read_to_string(path.join("manifest")).unwrap();
    let body = &good[..good.len() - 22];
    for (why, from, to) in [
        ("a huge disk", "\"size\": 139264", "\"size\": 18446744073709551615"),
        ("another length", "\"size\": 139264", "\"size\": 139265"),
        ("one disk twice", "\"index\": 1", "\"index\": 0"),
        ("a newer format", "\"format\": 1", "\"format\": 99"),
        ("a base beyond numbers", "\"base_frame\": 2", "\"base_frame\": 18446744073709551615"),
        ("another machine", "0707", "0808"),
    ] {
        assert!(body.contains(from), "{why}: {body}");
        let lie = body.replacen(from, to, 1);
        let sum = xxhash_rust::xxh3::xxh3_64(lie.as_bytes());
        std::fs::write(path.join("manifest"), format!("{lie}xxh3 {sum:016x}\n")).unwrap();
        let found = facts(&path, ALL);
        assert!(found.problems_total > 0, "{why}");
        let served = bare::open(&path, None).is_ok_and(|bare| bare.store.state().damage.is_none());
        assert!(!served, "{why}");
    }
}

#[test]
fn hostile_files_end_soon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    // Whole of beginnings of records and of envelopes.
    std::fs::write(path.join("journal/00000002"), b"CTMRCTME".repeat(1 << 17)).unwrap();
    std::fs::write(path.join("journal/18446744073709551615"), b"x").unwrap();
    std::fs::write(path.join("journal/1"), b"x").unwrap();
    std::os::unix::fs::symlink("/dev/zero", path.join("journal/00000003")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, path.join("journal/00000004"), rustix::fs::Mode::RUSR).unwrap();
    let found = facts(&path, ALL);
    let named = |name: &str| found.problems.iter().any(|found| found.file.ends_with(name));
    for name in ["00000002", "00000003", "00000004", "/1", "18446744073709551615"] {
        assert!(named(name), "{name}: {:?}", found.problems);
    }
    let flood = path.join("flood");
    std::fs::write(&flood, b"CTME".repeat(1 << 19)).unwrap();
    assert!(matches!(look(&flood, ALL, &mut |_, _| {}), Ok(Content::Frames(_))));
    assert!(look(Path::new("/dev/zero"), ALL, &mut |_, _| {}).is_err());
    assert!(look(&path.join("journal/00000004"), ALL, &mut |_, _| {}).is_err());
    assert!(
        matches!(look(dir.path(), ALL, &mut |_, _| {}), Ok(Content::Folder(entries, 1)) if entries[0].what == "replica store")
    );
}
