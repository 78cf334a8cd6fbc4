//! Replication logs: what was written is read, by us and by a reader that was written from the published layout
//! alone; whatever was changed in a file is found; and no lie in one costs memory or time.

use continuum_capture::hrl::{
    About, BLOCK_BYTES, ENTRIES_MAX, Guid, HEADER_BYTES, HrlError, Log, Writer, look,
};
use continuum_model::time::Timestamp;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

const SIZE: u64 = 64 << 20;
const PYTHON: &str = "/usr/bin/python3";

#[derive(Debug, Clone, PartialEq)]
struct Written {
    offset: u64,
    data: Vec<u8>,
    second: i64,
}

fn moment(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn about(id: u8, previous: u8) -> About {
    let guid = |byte| Guid::from_bytes([byte; 16]);
    let created = moment(1_700_000_000);
    About { id: guid(id), previous: guid(previous), size: SIZE, data_write: guid(7), created }
}

fn some(rng: &mut ChaCha8Rng, count: usize, longest: usize) -> Vec<Written> {
    let mut second = 1_700_000_000;
    (0..count)
        .map(|_| {
            let mut data = vec![0; rng.random_range(1..=longest)];
            if rng.random_bool(0.8) {
                rng.fill_bytes(&mut data);
            }
            second += rng.random_range(0..3);
            Written { offset: rng.random_range(0..=SIZE - data.len() as u64), data, second }
        })
        .collect()
}

fn write(path: &Path, writes: &[Written], about: About) -> u64 {
    let mut writer = Writer::begin(File::create_new(path).unwrap(), about).unwrap();
    for write in writes {
        // Microseconds are cut: the format knows seconds.
        let time = moment(write.second).plus(std::time::Duration::from_micros(999_999));
        writer.write(write.offset, &write.data, time).unwrap();
    }
    let header = writer.close().unwrap();
    assert_eq!((header.writes, header.id), (writes.len() as u64, about.id));
    header.end.unwrap()
}

fn read(log: &Log) -> Result<Vec<Written>, HrlError> {
    let mut piece = Vec::new();
    log.writes()
        .map(|write| {
            let write = write?;
            let mut data = Vec::new();
            log.read(&write, &mut piece, |_, bytes| {
                data.extend_from_slice(bytes);
                Ok::<(), HrlError>(())
            })?;
            Ok(Written { offset: write.offset, data, second: write.time.micros() / 1_000_000 })
        })
        .collect()
}

fn open(path: &Path) -> Result<Vec<Written>, HrlError> {
    read(&Log::open(File::open(path).unwrap())?)
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let dir = scratch();
    for seed in 0..40 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Around full blocks above all.
        let count = match seed % 5 {
            0 => seed as usize % 3,
            1 => ENTRIES_MAX * (1 + seed as usize % 4),
            2 => ENTRIES_MAX * 2 + 1,
            _ => rng.random_range(0..1000),
        };
        let writes = some(&mut rng, count, 3000);
        let path = dir.path().join(format!("{seed}.hrl"));
        let end = write(&path, &writes, about(1, 0));
        let log = Log::open(File::open(&path).unwrap()).unwrap();
        assert_eq!(log.blocks(), 1 + count.div_ceil(ENTRIES_MAX), "an empty one, then one for each 127");
        assert_eq!(log.bytes(), end);
        assert_eq!(log.data_bytes(), writes.iter().map(|write| write.data.len() as u64).sum::<u64>());
        assert_eq!(log.header().created, moment(1_700_000_000));
        assert_eq!(read(&log).unwrap(), writes, "seed {seed}");
    }
}

#[test]
fn long_writes_go_in_pieces_and_zeroes_are_data() {
    let dir = scratch();
    let path = dir.path().join("long.hrl");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut data = vec![0; 5 << 20];
    rng.fill_bytes(&mut data);
    let mut writer = Writer::begin(File::create_new(&path).unwrap(), about(1, 0)).unwrap();
    writer.write(0, &data, moment(1_700_000_000)).unwrap();
    writer.zero(SIZE - (3 << 20) - 1, (3 << 20) + 1, moment(1_700_000_001)).unwrap();
    writer.close().unwrap();
    let log = Log::open(File::open(&path).unwrap()).unwrap();
    assert!(!log.header().is_over_half(log.bytes()), "8 MiB of 64");
    assert!(log.header().is_over_half(SIZE / 2 + 1));
    let writes = read(&log).unwrap();
    assert_eq!(writes.len(), 5);
    assert!(writes[0].data == data && writes[1..].iter().all(|zero| zero.data.iter().all(|byte| *byte == 0)));
    assert_eq!(writes[4].offset + writes[4].data.len() as u64, SIZE);
}

#[test]
fn what_a_log_cannot_hold_is_refused() {
    let dir = scratch();
    let begin =
        |name: &str| Writer::begin(File::create_new(dir.path().join(name)).unwrap(), about(1, 0)).unwrap();
    let mut writer = begin("a");
    for (offset, length) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (0, 0)] {
        let refused = writer.write(offset, &vec![0; length], moment(1_700_000_000));
        assert!(matches!(refused, Err(HrlError::Bounds { .. })), "{offset} {length}");
    }
    for second in [0, 946_684_799, 946_684_800 + (1 << 32), i64::MAX / 1_000_000] {
        let refused = writer.write(0, &[1], moment(second));
        assert!(matches!(refused, Err(HrlError::Moment(_))), "{second}");
    }
    writer.write(0, &[1], moment(946_684_800)).unwrap();
    writer.write(SIZE - 1, &[2], moment(946_684_799 + (1 << 32))).unwrap();
    let header = writer.close().unwrap();
    assert_eq!(header.writes, 2, "what was refused is not in it");
    assert_eq!(open(&dir.path().join("a")).unwrap().len(), 2);
}

#[test]
fn any_byte_that_is_changed_is_found_or_harmless() {
    let dir = scratch();
    let path = dir.path().join("log.hrl");
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let writes = some(&mut rng, ENTRIES_MAX + 5, 60);
    let end = write(&path, &writes, about(1, 2));
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let (mut found, mut harmless) = (0, 0);
    for at in 0..end {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        let with = match rng.random_bool(0.5) {
            true => byte[0] ^ (1 << rng.random_range(0..8)),
            false => byte[0].wrapping_add(rng.random_range(1..=255)),
        };
        file.write_all_at(&[with], at).unwrap();
        match open(&path) {
            Err(_) => found += 1,
            Ok(read) => {
                assert_eq!(read, writes, "byte {at} was changed, and something else is read");
                harmless += 1;
            }
        }
        file.write_all_at(&byte, at).unwrap();
    }
    // Harmless are the places of entries that a block has not got.
    let unused = (3 * ENTRIES_MAX - writes.len()) * 32;
    assert_eq!((harmless, found), (unused, end as usize - unused));
}

#[test]
fn a_log_that_is_cut_or_was_not_closed_says_so() {
    let dir = scratch();
    let path = dir.path().join("log.hrl");
    let writes = some(&mut ChaCha8Rng::seed_from_u64(3), 200, 500);
    let end = write(&path, &writes, about(1, 0));
    let whole = std::fs::read(&path).unwrap();
    for cut in (0..end).step_by(97).chain([end - 1, HEADER_BYTES, HEADER_BYTES - 1, 8, 7]) {
        std::fs::write(&path, &whole[..cut as usize]).unwrap();
        match open(&path).unwrap_err() {
            HrlError::Other => assert!(cut < 8),
            HrlError::Cut { there, needed } => {
                assert_eq!((there, needed), (cut, if cut < HEADER_BYTES { HEADER_BYTES } else { end }));
            }
            other => panic!("{cut}: {other}"),
        }
    }
    // What is behind its end does not count: a file may be longer than its log.
    std::fs::write(&path, [&whole[..], &[1; 1000]].concat()).unwrap();
    assert_eq!(open(&path).unwrap(), writes);
    // Its writer dies.
    let open_path = dir.path().join("open.hrl");
    let mut writer = Writer::begin(File::create_new(&open_path).unwrap(), about(1, 0)).unwrap();
    for write in &writes {
        writer.write(write.offset, &write.data, moment(write.second)).unwrap();
    }
    drop(writer);
    assert!(matches!(open(&open_path), Err(HrlError::NotClosed)));
    let header = look(&File::open(&open_path).unwrap()).unwrap().unwrap().unwrap();
    assert_eq!((header.end, header.id), (None, Guid::from_bytes([1; 16])));
}

/// Mends all checksums of a log that was changed, so that only what it claims is wrong.
fn seal(bytes: &mut [u8], at: usize, length: usize, field: usize) {
    let part = &bytes[at..at + length];
    let sum = part.iter().enumerate().filter(|(i, _)| !(field..field + 4).contains(i));
    let sum = !sum.map(|(_, byte)| u32::from(*byte)).fold(0, u32::wrapping_add);
    bytes[at + field..at + field + 4].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn lies_with_right_checksums_are_refused_before_they_cost_anything() {
    let dir = scratch();
    let path = dir.path().join("log.hrl");
    let writes = some(&mut ChaCha8Rng::seed_from_u64(4), 130, 500);
    let end = write(&path, &writes, about(1, 0)) as usize;
    let whole = std::fs::read(&path).unwrap();
    let last = end - BLOCK_BYTES as usize;
    let header = |at: usize, value: &[u8]| (0, 4096, 40, at, value.to_vec());
    let block = |at: usize, value: &[u8]| (last, 32, 12, at, value.to_vec());
    let entry = |at: usize, value: &[u8]| (last + 32, 32, 8, at, value.to_vec());
    let rows = [
        ("a version to come", header(8, &[0, 0, 3, 0])),
        ("blocks of another size", header(56, &8192u32.to_le_bytes())),
        ("another type of file", header(104, &[1])),
        ("unknown flags", header(108, &[1])),
        ("a disk of nothing", header(32, &[0; 8])),
        ("a disk without end", header(32, &[255; 8])),
        ("a disk smaller than its writes", header(32, &512u64.to_le_bytes())),
        ("an end inside the header", header(44, &4095u64.to_le_bytes())),
        ("an end that leaves no block", header(44, &8191u64.to_le_bytes())),
        ("an end beyond the file", header(44, &(end as u64 + 1).to_le_bytes())),
        ("an end beyond everything", header(44, &[255; 8])),
        ("an end in the middle", header(44, &(end as u64 - 512).to_le_bytes())),
        ("a noted error", header(52, &[1])),
        ("a count too high", header(96, &131u64.to_le_bytes())),
        ("a count without end", header(96, &[255; 8])),
        ("a distance of its own length, to itself in the end", block(0, &4096u64.to_le_bytes())),
        ("a short distance", block(0, &1u64.to_le_bytes())),
        ("a distance before the file", block(0, &(last as u64 + 1).to_le_bytes())),
        ("a distance into the header", block(0, &(last as u64 - 4095).to_le_bytes())),
        ("a distance that wraps", block(0, &[255; 8])),
        ("the first, which it is not", block(0, &[0; 8])),
        ("more writes than a block has", block(8, &128u32.to_le_bytes())),
        ("four billion writes", block(8, &[255; 4])),
        ("fewer writes", block(8, &[2])),
        ("a length of nothing", entry(12, &[0; 4])),
        ("a length of four gigabytes", entry(12, &[255; 4])),
        ("a write over the end", entry(0, &(SIZE - 1).to_le_bytes())),
        ("a write that wraps", entry(0, &[255; 8])),
        ("an unknown operation", entry(20, &[2])),
        ("data that is elsewhere", entry(25, &[1])),
    ];
    for (why, (part, length, field, at, value)) in rows {
        let mut bytes = whole.clone();
        bytes[part + at..part + at + value.len()].copy_from_slice(&value);
        seal(&mut bytes, part, length, field);
        std::fs::write(&path, &bytes).unwrap();
        let refused = open(&path);
        assert!(refused.is_err(), "{why}");
        let error = refused.unwrap_err().to_string();
        // In the middle of nowhere stands no block with a right sum.
        assert!(
            why == "an end in the middle" || !error.contains("checksum"),
            "{why}: the checksum was mended: {error}"
        );
    }
    // As they were, they are read: the rows above differ by what they say, and by nothing else.
    let mut bytes = whole.clone();
    seal(&mut bytes, 0, 4096, 40);
    seal(&mut bytes, last, 32, 12);
    assert_eq!(bytes, whole);
    // A hole of a terabyte with a last block in it costs one read.
    let file = File::create(dir.path().join("sparse")).unwrap();
    let far = 1u64 << 40;
    let mut head = whole[..4096].to_vec();
    head[44..52].copy_from_slice(&far.to_le_bytes());
    seal(&mut head, 0, 4096, 40);
    file.write_all_at(&head, 0).unwrap();
    file.set_len(far).unwrap();
    assert!(matches!(
        open(&dir.path().join("sparse")),
        Err(HrlError::Sum { part: "the metadata block", .. })
    ));
    // Noise behind a good header, and noise alone.
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..200 {
        let mut noise = whole.clone();
        let from = if rng.random_bool(0.5) { 4096 } else { 0 };
        rng.fill_bytes(&mut noise[from..]);
        std::fs::write(&path, &noise).unwrap();
        assert!(open(&path).is_err());
    }
}

fn python(args: &[&str], input: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/hrl.py");
    let mut child = Command::new(PYTHON)
        .arg(script)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tests need /usr/bin/python3");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn lines(writes: &[Written]) -> String {
    let hex = |data: &[u8]| data.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    writes.iter().map(|write| format!("{} {} {}\n", write.offset, write.second, hex(&write.data))).collect()
}

#[test]
fn another_program_reads_what_we_write_and_we_read_what_it_writes() {
    let dir = scratch();
    for (count, empty_first) in [(0, true), (1, false), (127, true), (300, false), (300, true)] {
        let writes = some(&mut ChaCha8Rng::seed_from_u64(count as u64), count, 700);
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let _ = (std::fs::remove_file(&ours), std::fs::remove_file(&theirs));
        write(&ours, &writes, about(1, 2));
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        assert_eq!(python(&["read", &path(&ours)], ""), lines(&writes), "{count}");
        let first = if empty_first { "empty-first" } else { "plain" };
        python(&["write", &path(&theirs), &SIZE.to_string(), first], &lines(&writes));
        // A log of no writes needs its one block.
        assert_eq!(open(&theirs).unwrap(), writes, "{count} {first}");
        if empty_first && count > 0 {
            let differ = std::fs::read(&ours).unwrap()[4096..] == std::fs::read(&theirs).unwrap()[4096..];
            assert!(differ, "behind the header both are the same, byte for byte");
        }
    }
}
