//! A store kept as objects: two writers, interruptions at every call, hostile catalogs, rot.

use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch};
use continuum_replica::remote::archive::{Archived, archive};
use continuum_replica::remote::folder;
use continuum_replica::remote::{ArchiveError, Objects, Tag};
use continuum_replica::{DiskSpec, Folder, Store, bare};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
/// More than one part, and the last one short.
const SIZE: u64 = (9 << 20) + 512;

fn disks() -> Vec<DiskSpec> {
    vec![DiskSpec { index: DiskIndex(0), id: DiskId::from_bytes([1; 16]), size: SIZE }]
}

fn open(path: &Path) -> Store {
    let folder = Arc::new(Folder::open_or_create(path).unwrap());
    let (store, _) = Store::open_or_create(folder, MACHINE, &disks()).unwrap();
    store.fence(Epoch(1)).unwrap();
    store
}

/// Writes `fill` at some offsets, closed by a barrier at `number` seconds.
fn append(store: &Store, offsets: &[u64], fill: u8) {
    let last = store.state().last;
    let number = last.number.next();
    let mut builder = FrameBuilder::default();
    let mut sequence = last.sequence;
    let mut push = |change, micros: i64| {
        sequence = sequence.next();
        let time = Timestamp::from_micros(number.0 as i64 * 1_000_000 - 500 + micros);
        builder.push(&Record { sequence, time, change });
    };
    for (at, offset) in offsets.iter().enumerate() {
        let data: Vec<u8> = (0..4096u32).map(|at| fill ^ (at * 7 % 251) as u8).collect();
        push(
            Change::Write { disk: DiskIndex(0), offset: *offset, data: data.into(), injected: false },
            at as i64,
        );
    }
    push(Change::Barrier(Barrier::time_mark(true)), 500);
    let identity = Identity { machine: MACHINE, epoch: Epoch(1), number, session: 1, previous: last.digest };
    store.append(&[Envelope::plain(&builder.finish(identity).unwrap())]).unwrap();
}

fn small(path: &Path) {
    let store = open(path);
    append(&store, &[0, 5 << 20, SIZE - 4096], 1);
    append(&store, &[4096, 8 << 20], 2);
    append(&store, &[0], 3);
    store.fold(Timestamp::from_micros(2_000_000), None).unwrap();
}

/// By name: content, and which version it is.
type Held = BTreeMap<String, (Vec<u8>, u64)>;

/// Objects in memory that count calls, and fail or lie when they are told to.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<World>>);

type BeforeReplace = Box<dyn FnOnce(&mut Held) + Send>;

#[derive(Default)]
struct World {
    objects: Held,
    versions: u64,
    calls: u64,
    /// The call from which on nothing works.
    dies_at: Option<u64>,
    puts: u64,
    /// Done once, just before the next catalog is replaced.
    before_replace: Option<BeforeReplace>,
}

impl Memory {
    fn call<T>(&self, act: impl FnOnce(&mut World) -> T) -> io::Result<T> {
        let mut world = self.0.lock().unwrap();
        world.calls += 1;
        if world.dies_at.is_some_and(|at| world.calls >= at) {
            return Err(io::Error::other("the network went away"));
        }
        Ok(act(&mut world))
    }
    fn objects(&self) -> Held {
        self.0.lock().unwrap().objects.clone()
    }
}

impl World {
    fn store(&mut self, name: &str, bytes: Vec<u8>) {
        self.versions += 1;
        self.objects.insert(name.to_owned(), (bytes, self.versions));
    }
}

impl Objects for Memory {
    fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<(Vec<u8>, Tag)>> {
        let read = self.call(|world| world.objects.get(name).cloned())?;
        Ok(read.map(|(bytes, version)| {
            assert!(bytes.len() as u64 <= bytes_max);
            (bytes, Tag(version.to_string()))
        }))
    }
    fn put(&self, name: &str, bytes: Vec<u8>) -> io::Result<()> {
        self.call(|world| {
            world.puts += 1;
            world.store(name, bytes);
        })
    }
    fn replace(&self, name: &str, bytes: Vec<u8>, expected: Option<&Tag>) -> io::Result<bool> {
        self.call(|world| {
            if let Some(act) = world.before_replace.take() {
                act(&mut world.objects);
            }
            let now = world.objects.get(name).map(|(_, version)| Tag(version.to_string()));
            let fits = now.as_ref() == expected;
            if fits {
                world.store(name, bytes);
            }
            fits
        })
    }
    fn list(&self, prefix: &str) -> io::Result<Vec<(String, u64)>> {
        self.call(|world| {
            let names = world.objects.iter().filter(|(name, _)| name.starts_with(prefix));
            names.map(|(name, (bytes, _))| (name.clone(), bytes.len() as u64)).collect()
        })
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(|world| drop(world.objects.remove(name)))
    }
}

fn send(path: &Path, objects: &Memory) -> Result<Archived, ArchiveError> {
    archive(&bare::open(path, None).unwrap(), objects, &mut |_, _| true)
}

/// The disk at every second of the history that is kept, as an opened store reads it.
fn states(bare: &bare::Bare) -> Vec<Vec<u8>> {
    states_of(&bare.store)
}

fn states_of(store: &Store) -> Vec<Vec<u8>> {
    let state = store.state();
    let second = |at: Option<Timestamp>| at.unwrap().micros() / 1_000_000;
    (second(state.oldest_legal)..=second(state.newest_legal))
        .map(|second| {
            let at = PointChoice::Moment(Timestamp::from_micros(second * 1_000_000));
            let view = store.open_view(store.resolve(&at).unwrap().position).unwrap();
            let mut out = vec![0; SIZE as usize];
            view.read_at(DiskIndex(0), 0, &mut out).unwrap();
            out
        })
        .collect()
}

fn archived(objects: &Memory) -> Vec<Vec<u8>> {
    states(&folder::open(Arc::new(objects.clone()), Path::new("archive"), None).unwrap())
}

#[test]
fn an_archive_is_the_store_and_only_what_is_new_travels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let objects = Memory::default();
    let first = send(&path, &objects).unwrap();
    assert_eq!((first.version, first.sent_bytes, first.removed), (1, first.bytes, 0));
    assert!(first.bytes < 16 << 20, "holes do not travel: {first:?}");
    assert!(archived(&objects) == states(&bare::open(&path, None).unwrap()));
    let again = send(&path, &objects).unwrap();
    assert_eq!((again.version, again.sent_bytes, again.removed), (2, 0, 0));
    // A little more history: the base does not travel again.
    append(&open(&path), &[1 << 20], 4);
    let more = send(&path, &objects).unwrap();
    assert!(more.sent_bytes > 0 && more.sent_bytes < 64 << 10, "{more:?}");
    assert!(archived(&objects) == states(&bare::open(&path, None).unwrap()));
    // What was superseded stays for those who read the catalog before, and goes with the next.
    assert_eq!(more.removed, 0, "{more:?}");
    let last = send(&path, &objects).unwrap();
    assert!(last.removed > 0, "{last:?}");
    let parts = objects.objects().keys().filter(|name| name.starts_with("parts/")).count();
    assert!(archived(&objects) == states(&bare::open(&path, None).unwrap()));
    assert_eq!(send(&path, &objects).unwrap().removed, 0);
    assert_eq!(objects.objects().keys().filter(|name| name.starts_with("parts/")).count(), parts);
}

#[test]
fn an_interruption_at_any_call_leaves_the_archive_before_and_the_next_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let objects = Memory::default();
    send(&path, &objects).unwrap();
    append(&open(&path), &[1 << 20, 6 << 20], 4);
    send(&path, &objects).unwrap();
    let before = archived(&objects);
    let store = open(&path);
    append(&store, &[2 << 20, 7 << 20], 5);
    store.fold(Timestamp::from_micros(3_000_000), None).unwrap();
    drop(store);
    let after = states(&bare::open(&path, None).unwrap());
    let mut died = 0;
    for nth in 1.. {
        // The same beginning each time; the objects themselves stay as an interruption leaves them.
        let copy = Memory::default();
        copy.0.lock().unwrap().objects = objects.objects();
        copy.0.lock().unwrap().versions = 1000;
        copy.0.lock().unwrap().dies_at = Some(nth);
        let ended = send(&path, &copy);
        copy.0.lock().unwrap().dies_at = None;
        let now = archived(&copy);
        // Taking away what nobody needs may fail, and the archive stands.
        assert!(now == if ended.is_ok() { after.clone() } else { before.clone() }, "call {nth}");
        let finished = copy.0.lock().unwrap().calls < nth;
        if ended.is_err() {
            died += 1;
            send(&path, &copy).unwrap_or_else(|error| panic!("after call {nth}: {error}"));
        }
        assert!(archived(&copy)[..] == after[..], "call {nth}");
        if ended.is_ok() && finished {
            break;
        }
    }
    assert!(died >= 4, "{died}");
}

#[test]
fn of_two_writers_one_wins_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("store"), dir.path().join("other"));
    small(&path);
    small(&other);
    append(&open(&other), &[3 << 20], 9);
    for there in [false, true] {
        let objects = Memory::default();
        if there {
            send(&path, &objects).unwrap();
        }
        let second = Memory::default();
        second.0.lock().unwrap().objects = objects.objects();
        second.0.lock().unwrap().versions = 100;
        send(&other, &second).unwrap();
        let theirs = second.objects();
        objects.0.lock().unwrap().before_replace = Some(Box::new(move |objects| objects.extend(theirs)));
        let raced = send(&path, &objects);
        assert!(matches!(raced, Err(ArchiveError::Raced)), "{raced:?}");
        assert!(archived(&objects) == states(&bare::open(&other, None).unwrap()));
        // And the loser's store is an older copy now.
        let older = send(&path, &objects);
        assert!(matches!(older, Err(ArchiveError::Newer { .. })), "{older:?}");
    }
}

#[test]
fn rot_and_lies_are_named_and_never_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let objects = Memory::default();
    send(&path, &objects).unwrap();
    let good = archived(&objects);
    let whole = objects.objects();
    let read = |objects: &Memory| -> Result<Vec<Vec<u8>>, String> {
        let bare = folder::open(Arc::new(objects.clone()), Path::new("archive"), None)
            .map_err(|error| error.to_string())?;
        let newest = bare.store.resolve(&PointChoice::Latest).map_err(|error| error.to_string())?;
        let view = bare.store.open_view(newest.position).map_err(|error| error.to_string())?;
        let mut out = vec![0; SIZE as usize];
        view.read_at(DiskIndex(0), 0, &mut out).map_err(|error| format!("{error:?}"))?;
        Ok(vec![out])
    };
    for name in whole.keys() {
        for how in 0..3 {
            let mut broken = whole.clone();
            match how {
                0 => drop(broken.remove(name)),
                1 => broken.get_mut(name).unwrap().0[20] ^= 1,
                _ => broken.get_mut(name).unwrap().0.truncate(30),
            }
            let damaged = Memory::default();
            damaged.0.lock().unwrap().objects = broken;
            if let Ok(read) = read(&damaged) {
                // A part that no newest state needs.
                assert!(read.last() == good.last(), "{name}, {how}");
            }
        }
    }
    let (catalog, version) = whole["catalog"].clone();
    let text = String::from_utf8(catalog).unwrap();
    let body = &text[..text.len() - 22];
    for (why, from, to) in [
        ("a newer format", "\"format\": 1", "\"format\": 2"),
        ("a huge file", &format!("\"length\": {SIZE}"), "\"length\": 18446744073709551615"),
        ("a file elsewhere", "\"journal/00000001\"", "\"journal/../../x\""),
        ("a folder elsewhere", "\"base/0.img\"", "\"/etc/passwd\""),
    ] {
        assert!(body.contains(from), "{why}: {body}");
        let lie = body.replacen(from, to, 1);
        let sum = xxhash_rust::xxh3::xxh3_64(lie.as_bytes());
        let lying = Memory::default();
        lying.0.lock().unwrap().objects = whole.clone();
        let bytes = format!("{lie}xxh3 {sum:016x}\n").into_bytes();
        lying.0.lock().unwrap().objects.insert("catalog".into(), (bytes, version));
        assert!(read(&lying).unwrap_err().contains("cannot be right"), "{why}");
    }
    let empty = read(&Memory::default()).unwrap_err();
    assert!(empty.contains("no archive"), "{empty}");
}

#[test]
fn a_store_is_archived_while_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    small(&path);
    let store = open(&path);
    let objects = Memory::default();
    let mut went_on = 0u8;
    let first = store
        .archive(&path, &objects, &mut |_, _| {
            // In the middle of it: history grows, and stays where it is.
            append(&store, &[u64::from(went_on) * 4096], 4 + went_on);
            assert!(!store.fold(Timestamp::from_micros(i64::MAX), None).unwrap());
            went_on += 1;
            true
        })
        .unwrap();
    assert!(went_on > 1 && first.version == 1);
    // What is there is what it was when it began.
    let then = archived(&objects);
    assert!(!then.is_empty() && states_of(&store).starts_with(&then), "{} states", then.len());
    store.archive(&path, &objects, &mut |_, _| true).unwrap();
    assert!(archived(&objects) == states_of(&store));
    let stopped = store.archive(&path, &objects, &mut |_, _| false);
    assert!(matches!(stopped, Err(ArchiveError::Stopped)), "{stopped:?}");
    assert!(archived(&objects) == states_of(&store));
    assert!(store.fold(Timestamp::from_micros(4_000_000), None).is_ok());
}
