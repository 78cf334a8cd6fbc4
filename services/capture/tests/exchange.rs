//! Logs and frames are made into one another, and logs are put onto images: what comes out is the disk.

use bytes::Bytes;
use continuum_capture::exchange::{
    self, Chain, ExchangeError, Frames, Lost, ToFrames, ToLog, apply, frames_to_log, log_to_frames,
};
use continuum_capture::hrl::{About, Guid, Writer};
use continuum_capture::staging::{FileStage, Stage};
use continuum_model::feed::record::Legality;
use continuum_model::feed::{Barrier, Change, Envelope, Frame, FrameBuilder, Identity, Record};
use continuum_model::id::MachineId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fs::File;
use std::path::{Path, PathBuf};

const SIZE: usize = 8 << 20;
const MACHINE: MachineId = MachineId::from_bytes([3; 16]);

fn moment(second: i64) -> Timestamp {
    Timestamp::from_micros((1_700_000_000 + second) * 1_000_000)
}

fn on(changes: &[Change], disk: u16, image: &mut [u8]) {
    for change in changes {
        match change {
            Change::Write { disk: of, offset, data, .. } if of.0 == disk => {
                image[*offset as usize..][..data.len()].copy_from_slice(data);
            }
            Change::Zero { disk: of, offset, length, .. } if of.0 == disk => {
                image[*offset as usize..][..*length as usize].fill(0);
            }
            _ => {}
        }
    }
}

fn some(rng: &mut ChaCha8Rng, count: usize) -> Vec<Change> {
    (0..count)
        .map(|_| {
            let length = rng.random_range(1..40_000);
            let offset = rng.random_range(0..=(SIZE - length) as u64);
            let disk = DiskIndex(u16::from(rng.random_bool(0.2)));
            match rng.random_range(0..20) {
                0 => Change::Break,
                1 | 2 => Change::Barrier(Barrier::time_mark(true)),
                3 | 4 => Change::Zero { disk, offset, length: length as u32, injected: rng.random_bool(0.5) },
                _ => {
                    let mut data = vec![0; length];
                    rng.fill_bytes(&mut data);
                    Change::Write { disk, offset, data: data.into(), injected: rng.random_bool(0.3) }
                }
            }
        })
        .collect()
}

/// Stages changes as an agent does.
fn stage(dir: &Path, changes: &[Change]) -> Vec<PathBuf> {
    let (mut stage, _) = FileStage::open(dir, MACHINE).unwrap();
    let (mut builder, mut previous) = (FrameBuilder::default(), 0);
    for (number, part) in changes.chunks(7).enumerate() {
        for (index, change) in part.iter().enumerate() {
            let at = number * 7 + index;
            let time = Timestamp::from_micros(moment(0).micros() + at as i64 * 300_000);
            builder.push(&Record { sequence: Sequence(at as u64 + 1), time, change: change.clone() });
        }
        let number = FrameNumber(number as u64 + 40);
        let place = Identity { machine: MACHINE, epoch: Epoch(2), number, session: 1, previous };
        let frame = Envelope::plain(&builder.finish(place).unwrap());
        previous = frame.head.digest;
        stage.reserve(number, frame.len() as u64).unwrap().write(&frame).unwrap();
    }
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn frames_of(path: &Path) -> Vec<Frame> {
    let mut bytes = Bytes::from(std::fs::read(path).unwrap());
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (envelope, length) = Envelope::decode(&bytes).unwrap();
        frames.push(envelope.head.open(envelope.stored).unwrap());
        let _ = bytes.split_to(length);
    }
    frames
}

fn never(_: u64, _: u64) -> bool {
    true
}

fn to_log(paths: &[PathBuf], out: &Path, disk: Option<u16>, max: u64) -> Result<Lost, ExchangeError> {
    let wanted = ToLog {
        disk: disk.map(DiskIndex),
        size: SIZE as u64,
        previous: Guid::default(),
        zero_bytes_max: max,
    };
    let frames = Frames::open(paths)?;
    frames_to_log(&frames, &wanted, (File::create(out).unwrap(), out), &mut never).map(|(_, lost)| lost)
}

#[test]
fn frames_become_a_log_and_a_log_frames_and_an_image_the_disk() {
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let changes = some(&mut rng, 150);
        let mut truth = vec![0; SIZE];
        on(&changes, 1, &mut truth);
        let staged = stage(&dir.path().join("staging"), &changes);
        let path = dir.path().join("a.hrl");
        let lost = to_log(&staged, &path, Some(1), 1 << 30).unwrap();
        let count = |is: fn(&Change) -> bool| changes.iter().filter(|change| is(change)).count() as u64;
        assert_eq!(lost.barriers, count(|change| matches!(change, Change::Barrier(_))));
        assert_eq!(lost.breaks, count(|change| matches!(change, Change::Break)));
        assert_eq!(
            lost.others,
            count(|change| matches!(change,
                Change::Write { disk, .. } | Change::Zero { disk, .. } if disk.0 == 0))
        );

        // Onto an image that holds something else where nothing was written.
        let image = dir.path().join("image");
        std::fs::write(&image, vec![0; SIZE]).unwrap();
        let chain = Chain::open(std::slice::from_ref(&path)).unwrap();
        exchange::check(&chain, &image, &mut never).unwrap();
        assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 0), "checking writes nothing");
        let applied = apply(&chain, &image, &mut never).unwrap();
        assert!(std::fs::read(&image).unwrap() == truth, "seed {seed}");
        assert_eq!(applied.writes, chain.writes());
        assert!(applied.compared > 0 && applied.compared <= applied.bytes);

        // And back: the same disk, of which only the end is offered.
        let feed = dir.path().join("b.feed");
        let out = File::create(&feed).unwrap();
        let wanted = ToFrames { machine: MACHINE, disk: DiskIndex(4) };
        let (number, lost) = log_to_frames(&chain, wanted, (&out, &feed), &mut never).unwrap();
        assert_eq!((lost.barriers, lost.zeroes), (0, 0));
        let frames = frames_of(&feed);
        assert_eq!(frames.len() as u64, number);
        let (mut again, mut legality, mut legal, mut digest) = (vec![0; SIZE], Legality::default(), 0, 0);
        for frame in &frames {
            assert_eq!(frame.head.identity.previous, digest);
            digest = frame.head.digest;
            for record in frame.records() {
                on(std::slice::from_ref(&record.change), 4, &mut again);
                legal += u64::from(legality.after(&record.change));
            }
        }
        assert!(again == truth && legal == 1, "seed {seed}: {legal}");
        // Which an agent's staging takes for its own.
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        std::fs::rename(&feed, own.join("00000000000000000001.feed")).unwrap();
        assert_eq!(FileStage::open(&own, MACHINE).unwrap().1.len() as u64, number);
    }
}

#[test]
fn several_logs_are_one_history_in_whatever_order_they_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for id in 1..=3u8 {
        let path = dir.path().join(format!("{id}"));
        let guid = |byte| Guid::from_bytes([byte; 16]);
        let about = About {
            id: guid(id),
            previous: guid(id - 1),
            size: SIZE as u64,
            data_write: guid(9),
            created: moment(0),
        };
        let mut writer = Writer::begin(File::create(&path).unwrap(), about).unwrap();
        writer.write(100, &[id; 50], moment(i64::from(id))).unwrap();
        writer.write(1000 * u64::from(id), &[id; 10], moment(i64::from(id))).unwrap();
        writer.close().unwrap();
        paths.push(path);
    }
    paths.rotate_left(1);
    let image = dir.path().join("image");
    std::fs::write(&image, vec![0; SIZE]).unwrap();
    let applied = apply(&Chain::open(&paths).unwrap(), &image, &mut never).unwrap();
    assert_eq!((applied.writes, applied.bytes, applied.compared), (6, 180, 80));
    assert_eq!(std::fs::read(&image).unwrap()[100..150], [3; 50]);
    paths.remove(0);
    assert!(
        matches!(Chain::open(&paths), Err(ExchangeError::Unchained(_))),
        "the one in the middle is missing"
    );
}

#[test]
fn nothing_is_written_for_a_log_that_is_damaged_or_an_image_of_another_size() {
    let dir = tempfile::tempdir().unwrap();
    let changes = some(&mut ChaCha8Rng::seed_from_u64(1), 60);
    let staged = stage(&dir.path().join("staging"), &changes);
    let path = dir.path().join("a.hrl");
    to_log(&staged, &path, Some(0), 1 << 30).unwrap();
    let image = dir.path().join("image");
    for (why, size, flip) in
        [("too short", SIZE - 512, None), ("too long", SIZE + 1, None), ("data", SIZE, Some(9000))]
    {
        let whole = std::fs::read(&path).unwrap();
        if let Some(at) = flip {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        std::fs::write(&image, vec![7; size]).unwrap();
        let refused = apply(&Chain::open(std::slice::from_ref(&path)).unwrap(), &image, &mut never);
        assert!(refused.is_err(), "{why}");
        assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 7), "{why}");
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn what_cannot_be_made_a_log_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let changes = some(&mut ChaCha8Rng::seed_from_u64(2), 60);
    let staged = stage(&dir.path().join("staging"), &changes);
    let out = dir.path().join("out");
    match to_log(&staged, &out, None, 1 << 30) {
        Err(ExchangeError::Disks { found }) => assert_eq!(found, [0, 1]),
        other => panic!("{other:?}"),
    }
    assert!(matches!(to_log(&staged, &out, Some(0), 1), Err(ExchangeError::Zeroes { .. })));
    let small = ToLog { disk: None, size: 512, previous: Guid::default(), zero_bytes_max: 0 };
    let one = stage(
        &dir.path().join("one"),
        &[Change::Write { disk: DiskIndex(0), offset: 512, data: vec![1].into(), injected: false }],
    );
    let frames = Frames::open(&one).unwrap();
    let refused = frames_to_log(&frames, &small, (File::create(&out).unwrap(), &out), &mut never);
    assert!(matches!(refused, Err(ExchangeError::Log { .. })), "a write over the end");
    // Every cut and flipped byte of frames.
    let whole = std::fs::read(&one[0]).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        for bytes in [&bytes[..], &whole[..at]] {
            std::fs::write(&one[0], bytes).unwrap();
            if !bytes.is_empty() {
                assert!(to_log(&one, &out, None, 0).is_err(), "byte {at}");
            }
        }
    }
    // Files out of their order.
    let other = stage(&dir.path().join("other"), &changes);
    std::fs::write(&one[0], &whole).unwrap();
    assert!(matches!(
        to_log(&[other[0].clone(), one[0].clone()], &out, Some(0), 1 << 30),
        Err(ExchangeError::Frames { .. })
    ));
}
