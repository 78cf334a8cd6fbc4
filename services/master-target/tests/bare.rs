//! Bare stores, exported and served, judged by other people's programs: qemu-img, nbdinfo, nbdcopy, fio.

use continuum_master_target::bare::export::{Export, ImageFormat, Phase, run};
use continuum_master_target::bare::rescue::{Place, Rescue};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::{DiskSpec, Folder, Store};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
/// The second is no multiple of a block, of 4 KiB, or of what other formats round to.
const SIZES: [u64; 2] = [8 << 20, (1 << 20) + 512];

/// A store of two disks, and what each held at 2, 4 and 6 seconds. Some of it lies in the base.
struct World {
    dir: tempfile::TempDir,
    /// By second: the disks.
    states: Vec<(i64, Vec<Vec<u8>>)>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (store, _) = open(&dir.path().join("store"));
        store.fence(Epoch(1)).expect("fenced");
        let mut disks: Vec<Vec<u8>> = SIZES.iter().map(|size| vec![0; *size as usize]).collect();
        let (mut states, mut previous, mut sequence) = (Vec::new(), 0, 0);
        let mut builder = FrameBuilder::default();
        for number in 1..=3u64 {
            let mut changes = Vec::new();
            for disk in 0..2u16 {
                for part in 0..12u64 {
                    let length = 512 * (1 + (part * 37 + number) % 40);
                    let room = SIZES[usize::from(disk)] - length;
                    let offset = (part * 700_001 * number) % room / 512 * 512;
                    // Not compressible to nothing, and not alike: a byte of another place is noticed.
                    let data: Vec<u8> = (0..length)
                        .map(|at| ((offset + at).wrapping_mul(2_654_435_761 + number) >> 13) as u8)
                        .collect();
                    disks[usize::from(disk)][offset as usize..][..data.len()].copy_from_slice(&data);
                    changes.push(Change::Write {
                        disk: DiskIndex(disk),
                        offset,
                        data: data.into(),
                        injected: false,
                    });
                }
            }
            // The last bytes of the odd disk.
            let offset = SIZES[1] - 512;
            disks[1][offset as usize..].fill(number as u8);
            let data = vec![number as u8; 512].into();
            changes.push(Change::Write { disk: DiskIndex(1), offset, data, injected: false });
            for (place, change) in changes.into_iter().enumerate() {
                sequence += 1;
                let time = Timestamp::from_micros((number as i64 * 2 - 1) * 1_000_000 + place as i64);
                builder.push(&Record { sequence: Sequence(sequence), time, change });
            }
            sequence += 1;
            let time = Timestamp::from_micros(number as i64 * 2_000_000);
            let change = Change::Barrier(Barrier::time_mark(true));
            builder.push(&Record { sequence: Sequence(sequence), time, change });
            let number_of = FrameNumber(number);
            let identity =
                Identity { machine: MACHINE, epoch: Epoch(1), number: number_of, session: 1, previous };
            let frame = builder.finish(identity).expect("records were pushed");
            previous = frame.head.digest;
            store.append(&[Envelope::plain(&frame)]).expect("appended");
            states.push((number as i64 * 2, disks.clone()));
        }
        store.fold(Timestamp::from_micros(2_000_000), None).expect("folded");
        Self { dir, states }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A raw file with a disk's true content.
    fn truth(&self, second: i64, disk: usize) -> PathBuf {
        let path = self.path(&format!("truth-{second}-{disk}"));
        let (_, disks) = self.states.iter().find(|(at, _)| *at == second).expect("such a state");
        std::fs::write(&path, &disks[disk]).expect("written");
        path
    }

    fn export(&self, out: &str, disk: u16, second: i64, format: ImageFormat) -> Export {
        Export {
            store: self.path("store"),
            disk: Some(DiskIndex(disk)),
            at: at(second),
            format,
            out: self.path(out),
            force: false,
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).expect("a folder").flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn open(path: &Path) -> (Store, Vec<String>) {
    let spec = |(index, size): (usize, &u64)| DiskSpec {
        index: DiskIndex(index as u16),
        id: DiskId::from_bytes([index as u8 + 1; 16]),
        size: *size,
    };
    let disks: Vec<DiskSpec> = SIZES.iter().enumerate().map(spec).collect();
    let folder = Arc::new(Folder::open_or_create(path).expect("a folder"));
    Store::open_or_create(folder, MACHINE, &disks).expect("the store opens")
}

fn at(second: i64) -> PointChoice {
    // A little later: the newest moment at or before is meant.
    PointChoice::Moment(Timestamp::from_micros(second * 1_000_000 + 7))
}

fn go_on(_: Phase, _: u64, _: u64) -> bool {
    true
}

/// Runs a program that must end well; its standard output.
#[track_caller]
fn program(name: &str, words: &[&str]) -> String {
    let ran = Command::new(name).args(words).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{name} {words:?}\n{out}{err}");
    out.into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours is text")
}

#[test]
fn a_raw_image_is_the_moment_sparse_and_never_replaces_anything_unasked() {
    let world = World::new();
    for second in [2, 4, 6] {
        for disk in 0..2u16 {
            let name = format!("image-{second}-{disk}");
            let exported =
                run(&world.export(&name, disk, second, ImageFormat::Raw), &mut go_on).expect("exported");
            let truth = std::fs::read(world.truth(second, disk.into())).expect("truth");
            assert!(std::fs::read(world.path(&name)).expect("image") == truth, "{name}");
            assert_eq!(exported.moment.time, Timestamp::from_micros(second * 1_000_000));
            assert!(disk == 1 || exported.file_bytes < 4 << 20, "sparse: {}", exported.file_bytes);
            let compared = program(
                "qemu-img",
                &[
                    "compare",
                    "-f",
                    "raw",
                    "-F",
                    "raw",
                    text(&world.path(&name)),
                    text(&world.truth(second, disk.into())),
                ],
            );
            assert!(compared.contains("identical"), "{compared}");
        }
    }
    // The digest is the one that the store itself tells.
    let (store, _) = open(&world.path("store"));
    let view = store.open_view(store.resolve(&at(4)).expect("there").position).expect("opens");
    let expected = view.digest(DiskIndex(1)).expect("digest");
    drop((view, store));
    let again = run(&world.export("again", 1, 4, ImageFormat::Raw), &mut go_on).expect("exported");
    assert_eq!(again.digest, expected);
    // What is there stays, unless it is said otherwise.
    std::fs::write(world.path("mine"), b"precious").expect("written");
    let refused = run(&world.export("mine", 0, 4, ImageFormat::Raw), &mut go_on).expect_err("it is there");
    assert_eq!((refused.class, refused.code.as_str()), (FaultClass::Conflict, "export.exists"));
    assert_eq!(std::fs::read(world.path("mine")).expect("still there"), b"precious");
    let forced = Export { force: true, ..world.export("mine", 0, 4, ImageFormat::Raw) };
    run(&forced, &mut go_on).expect("forced");
    assert!(
        std::fs::read(world.path("mine")).expect("image") == std::fs::read(world.truth(4, 0)).expect("truth")
    );
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(world.path("mine")).expect("meta"));
    assert_eq!(mode & 0o777, 0o600, "a disk is nobody else's business");
}

#[test]
fn images_of_other_kinds_are_equal_by_their_own_programs_word() {
    let world = World::new();
    for format in [ImageFormat::Qcow2, ImageFormat::Vhdx, ImageFormat::Vmdk] {
        for disk in 0..2u16 {
            let name = format!("image-{disk}.{}", format.name());
            let exported = run(&world.export(&name, disk, 4, format), &mut go_on)
                .unwrap_or_else(|fault| panic!("{name}: {fault}"));
            assert_eq!(exported.disk.index, DiskIndex(disk));
            let image = world.path(&name);
            program("qemu-img", &["check", "-f", format.name(), text(&image)]);
            let truth = world.truth(4, disk.into());
            let words = ["compare", "-f", "raw", "-F", format.name(), text(&truth), text(&image)];
            let compared = program("qemu-img", &words);
            assert!(compared.contains("identical"), "{compared}");
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&image).expect("meta"));
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }
    assert!(!world.names().iter().any(|name| name.contains(".part")), "{:?}", world.names());
}

#[test]
fn what_goes_wrong_leaves_nothing_behind_and_says_why() {
    let world = World::new();
    let mut order = world.export("image", 0, 4, ImageFormat::Raw);
    let before = world.names();
    let fails = |order: &Export, code: &str| -> Fault {
        let fault = run(order, &mut go_on).expect_err(code);
        assert_eq!(fault.code, code, "{fault}");
        assert!(!fault.remedy.is_empty() && !fault.unaffected.is_empty(), "{fault}");
        assert_eq!(world.names(), before);
        fault
    };
    fails(&Export { disk: Some(DiskIndex(9)), ..order.clone() }, "export.disk");
    fails(&Export { disk: None, ..order.clone() }, "export.disk");
    fails(&Export { at: at(0), ..order.clone() }, "point.unavailable");
    fails(&Export { store: world.path("nowhere"), ..order.clone() }, "store.none");
    fails(&Export { out: world.path("store/journal/x"), ..order.clone() }, "export.inside");
    fails(&Export { out: world.path("no/folder"), ..order.clone() }, "export.folder");
    fails(&Export { out: "/dev/null".into(), force: true, ..order.clone() }, "export.not-a-file");
    let owner = open(&world.path("store"));
    let fault = fails(&order, "store.in-use");
    assert!(fault.message.contains(&std::process::id().to_string()), "{fault}");
    drop(owner);
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        order.format = format;
        let stopped = run(&order, &mut |_, _, _| false);
        // The other program may be done before it is asked for the first time.
        match stopped {
            Err(fault) => assert_eq!((fault.code.as_str(), world.names() == before), ("interrupted", true)),
            Ok(_) => {
                assert_eq!(format, ImageFormat::Qcow2);
                std::fs::remove_file(world.path("image")).expect("it is there");
            }
        }
    }
    // A damaged byte of the base: no image, whichever program makes it, and the store's own word for it.
    let base = world.path("store/base/0.img");
    let mut bytes = std::fs::read(&base).expect("base");
    let data = bytes.iter().position(|byte| *byte != 0).expect("the base holds data");
    bytes[data] ^= 1;
    std::fs::write(&base, bytes).expect("damaged");
    for (format, code) in [(ImageFormat::Raw, "replica.damaged"), (ImageFormat::Qcow2, "export.convert")] {
        let fault = run(&Export { format, at: at(2), ..order.clone() }, &mut go_on).expect_err("damaged");
        assert_eq!(fault.code, code, "{fault}");
        assert!(fault.message.contains("checksum"), "{fault}");
        assert_eq!(world.names(), before);
    }
}

#[test]
fn a_rescue_serves_any_moment_to_anybodys_client_and_changes_nothing() {
    let world = World::new();
    let socket = Place::Unix(world.path("rescue.sock"));
    let stores = [world.path("store")];
    let before = program(
        "sh",
        &["-c", &format!("cd {} && find . -type f | sort | xargs sha256sum", text(&stores[0]))],
    );
    for second in [2, 4, 6] {
        let rescue = Rescue::start(&stores, &at(second), &socket, None).expect("it serves");
        assert_eq!(rescue.served().len(), 2);
        for served in rescue.served() {
            let disk = usize::from(served.disk.index.0);
            let told = program("nbdinfo", &["--json", &served.uri]);
            assert!(told.contains(&format!("\"export-size\": {}", SIZES[disk])), "{told}");
            assert!(told.contains("\"is_read_only\": true"), "{told}");
            let copy = world.path("copy");
            program("nbdcopy", &[&served.uri, text(&copy)]);
            assert!(
                std::fs::read(&copy).expect("copy")
                    == std::fs::read(world.truth(second, disk)).expect("truth")
            );
        }
        let refused =
            Command::new("nbdcopy").args([text(&world.truth(6, 0)), &rescue.served()[0].uri]).output();
        assert!(!refused.expect("nbdcopy").status.success(), "nobody writes");
        // Its owner must not start meanwhile; a second rescue may.
        assert!(Folder::open_or_create(&stores[0]).is_err());
        let tcp = Place::Tcp("127.0.0.1:0".parse().expect("an address"));
        let beside = Rescue::start(&stores, &at(second), &tcp, None).expect("beside the first");
        program("nbdinfo", &[&beside.served()[1].uri]);
        beside.stop();
        rescue.stop();
    }
    let after = program(
        "sh",
        &["-c", &format!("cd {} && find . -type f | sort | xargs sha256sum", text(&stores[0]))],
    );
    assert_eq!(after, before);
    assert!(Folder::open_or_create(&stores[0]).is_ok(), "the store is let go");
}

#[test]
fn a_rescue_with_scratch_space_takes_writes_and_forgets_them() {
    let world = World::new();
    let stores = [world.path("store")];
    let scratch = world.path("scratch");
    std::fs::create_dir(&scratch).expect("a folder");
    let start = || {
        let socket = Place::Unix(world.path("rescue.sock"));
        Rescue::start(&stores, &at(4), &socket, Some(&scratch)).expect("it serves")
    };
    let rescue = start();
    let uri = rescue.served()[0].uri.clone();
    assert!(rescue.served()[0].writable);
    // Writes with a pattern of its own, and reads every block back against it.
    program(
        "fio",
        &[
            "--name=w",
            "--ioengine=nbd",
            &format!("--uri={uri}"),
            "--rw=randwrite",
            "--bs=4k",
            "--size=4m",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--do_verify=1",
            "--iodepth=4",
            "--output-format=terse",
        ],
    );
    assert_eq!(std::fs::read_dir(&scratch).expect("a folder").count(), 0, "unnamed: gone with the process");
    rescue.stop();
    let rescue = start();
    let copy = world.path("copy");
    program("nbdcopy", &[&rescue.served()[0].uri, text(&copy)]);
    assert!(
        std::fs::read(&copy).expect("copy") == std::fs::read(world.truth(4, 0)).expect("truth"),
        "as it was"
    );
    rescue.stop();
}

#[test]
fn a_rescue_is_refused_where_it_would_harm() {
    let world = World::new();
    let stores = [world.path("store")];
    let socket = Place::Unix(world.path("rescue.sock"));
    let fails = |stores: &[PathBuf], place: &Place, code: &str| {
        let fault = Rescue::start(stores, &at(4), place, None).err().unwrap_or_else(|| panic!("{code}"));
        assert_eq!(fault.code, code, "{fault}");
        assert!(!fault.remedy.is_empty(), "{fault}");
    };
    fails(&stores, &Place::Tcp("0.0.0.0:0".parse().expect("an address")), "rescue.address");
    fails(&[world.path("store"), world.path("none")], &socket, "store.none");
    let owner = open(&stores[0]);
    fails(&stores, &socket, "store.in-use");
    drop(owner);
    let two = [world.path("store"), world.path("store")];
    let rescue = Rescue::start(&two, &at(4), &socket, None).expect("several");
    let names: Vec<&str> = rescue.served().iter().map(|served| served.export.as_str()).collect();
    assert_eq!(names, ["1-disk0", "1-disk1", "2-disk0", "2-disk1"]);
    rescue.stop();
}
