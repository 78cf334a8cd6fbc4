//! `inspect`: what a replication file holds, frame by frame.
//!
//! Every file through which a feed passes (staging at the agent, the spool of a process server, the
//! journal of a master target) holds envelopes; what stands between them is its owner's business. So a
//! file is read by looking for envelopes: each is verified whole, and what is damaged is named with its
//! place. Reads only, never more than one frame in memory, and nothing but regular files.

use super::Setting;
use super::args::Inspect;
use super::output::doc::Doc;
use super::output::human;
use super::output::table::{Cell, Table};
use super::output::{self, Format};
use bytes::Bytes;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use continuum_model::feed::frame::RowKind;
use continuum_model::feed::{Barrier, Change, Codec, Envelope};
use continuum_model::untrusted::shown;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How an envelope begins.
const MAGIC: &[u8; 4] = b"CTME";
/// Bytes looked through at once.
const WINDOW_BYTES: usize = 1 << 20;
/// Frames that are told one by one; what follows is counted.
const FRAMES_MAX: usize = 200_000;
/// How deep a folder is looked into, and how many files it may hold.
const DEPTH_MAX: usize = 4;
const FILES_MAX: usize = 100_000;
/// Problems that are told one by one.
const PROBLEMS_MAX: usize = 1_000;

/// A whole frame that was found.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    at: u64,
    length: u64,
    envelope: EnvelopeFacts,
}

/// What is told of a frame; its payload is let go.
#[derive(Debug, Clone, PartialEq)]
struct EnvelopeFacts {
    machine: String,
    epoch: u64,
    number: u64,
    digest: u128,
    previous: u128,
    codec: &'static str,
    records: u64,
    writes: u64,
    zeroes: u64,
    injected: u64,
    breaks: u64,
    points: Vec<Mark>,
    first_sequence: u64,
    last_sequence: u64,
    first_us: i64,
    last_us: i64,
    stored_bytes: u64,
    payload_bytes: u64,
}

/// A barrier that makes a recovery point. Kind, name and id stand in the payload: known only where it is
/// not compressed.
#[derive(Debug, Clone, PartialEq)]
struct Mark {
    sequence: u64,
    time_us: i64,
    consistent: bool,
    barrier: Option<Barrier>,
}

/// What a file holds.
#[derive(Debug, Default)]
struct Content {
    size: u64,
    begins: String,
    frames: Vec<Found>,
    frames_total: u64,
    frame_bytes: u64,
    problems: Vec<(u64, String)>,
    problems_total: u64,
}

/// Runs `inspect`.
pub fn run(setting: &Setting, wanted: &Inspect) -> Result<(), Fault> {
    let name = shown(&wanted.path.display().to_string());
    let failed = |reason: String| {
        Fault::new(FaultClass::Failed, "inspect.unreadable", format!("{name} cannot be inspected: {reason}"))
            .spares("the files, which are only read")
            .remedy("name a regular file, or a folder, that this user may read")
    };
    let folder = wanted.path.is_dir();
    let paths = if folder {
        files(&wanted.path).map_err(|error| failed(error.to_string()))?
    } else {
        vec![wanted.path.clone()]
    };
    let mut contents = Vec::new();
    for path in paths {
        let content = open(&path).and_then(|file| scan(&file));
        let content = content.map_err(|error| {
            failed(if folder {
                format!("{}: {error}", shown(&path.display().to_string()))
            } else {
                error.to_string()
            })
        })?;
        // A folder has other files, too; what holds no frame is no news there.
        if !folder || content.frames_total + content.problems_total > 0 {
            contents.push((path, content));
        }
    }
    let docs: Vec<Doc> = contents.iter().map(|(path, content)| told(path, content)).collect();
    let doc = match docs.as_slice() {
        [one] if !folder => one.clone(),
        _ => Doc::List(docs),
    };
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, wide| {
            if contents.is_empty() {
                writeln!(out, "{name}: no file in it holds a frame")?;
            }
            contents.iter().try_for_each(|(path, content)| {
                text(out, &shown(&path.display().to_string()), content, setting, wide)
            })
        })
    })?;
    let problems: u64 = contents.iter().map(|(_, content)| content.problems_total).sum();
    if problems == 0 {
        return Ok(());
    }
    Err(Fault::new(
        FaultClass::Failed,
        "inspect.damaged",
        format!("{problems} places in {name} are not as they should be"),
    )
    .affects("the frames there, and what follows them in the feed")
    .spares("the frames that were told")
    .remedy("an end that is cut off is normal after a crash, and its owner repairs it; other damage means a bad disk"))
}

/// The regular files below a folder, in order. Links are not followed.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && depth < DEPTH_MAX {
                folders.push((entry.path(), depth + 1));
            } else if kind.is_file() {
                found.push(entry.path());
            }
            if found.len() > FILES_MAX {
                return Err(io::Error::other(format!("there are more than {FILES_MAX} files in it")));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Opens a regular file; anything else might block or never end.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    Ok(file)
}

fn scan(file: &File) -> io::Result<Content> {
    let size = file.metadata()?.len();
    let mut content = Content { size, begins: begins(file)?, ..Content::default() };
    let mut window = vec![0; WINDOW_BYTES];
    let mut last: Option<EnvelopeFacts> = None;
    let (mut at, mut frame_end) = (0, 0);
    while at < size {
        let count = read_at_most(file, &mut window, at)?;
        let Some(offset) = window[..count].windows(MAGIC.len()).position(|bytes| bytes == MAGIC) else {
            if count < window.len() {
                break;
            }
            // The last bytes may be the beginning of a magic.
            at += (count - (MAGIC.len() - 1)) as u64;
            continue;
        };
        at += offset as u64;
        match frame_at(file, at, size)? {
            Look::Frame(found) => {
                let follows = last.as_ref().is_none_or(|last| {
                    last.machine != found.envelope.machine
                        || (last.number.checked_add(1) == Some(found.envelope.number)
                            && last.digest == found.envelope.previous)
                });
                if !follows {
                    let before = last.as_ref().map_or(0, |last| last.number);
                    content.problem(
                        at,
                        format!(
                            "frame {} does not follow frame {before}: the chain is broken here",
                            found.envelope.number
                        ),
                    );
                }
                at += found.length;
                frame_end = at;
                content.frames_total += 1;
                content.frame_bytes += found.length;
                last = Some(found.envelope.clone());
                if content.frames.len() < FRAMES_MAX {
                    content.frames.push(*found);
                }
            }
            Look::Damaged(reason) => {
                content.problem(at, reason);
                at += MAGIC.len() as u64;
            }
            // Where one frame ends another begins, or something that is not ours: here it is damage.
            Look::Chance if at > 0 && at == frame_end => {
                content.problem(at, "an envelope's own first bytes are damaged".into());
                at += MAGIC.len() as u64;
            }
            // Four bytes of somebody's data that look like ours.
            Look::Chance => at += MAGIC.len() as u64,
        }
    }
    Ok(content)
}

impl Content {
    fn problem(&mut self, at: u64, reason: String) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((at, reason));
        }
    }
}

enum Look {
    Frame(Box<Found>),
    Damaged(String),
    Chance,
}

fn frame_at(file: &File, at: u64, size: u64) -> io::Result<Look> {
    let mut prefix = [0; ENVELOPE_BYTES];
    if read_at_most(file, &mut prefix, at)? < prefix.len() {
        return Ok(Look::Damaged(format!("an envelope is cut after {} bytes", size.saturating_sub(at))));
    }
    // A prefix that does not carry its own sum is no envelope of ours, or one whose beginning is gone.
    let Ok(prefix) = EnvelopePrefix::decode(&prefix) else { return Ok(Look::Chance) };
    let needed = (ENVELOPE_BYTES + prefix.body_len()) as u64;
    if size.saturating_sub(at) < needed {
        return Ok(Look::Damaged(format!(
            "a frame is cut: {} bytes where {needed} are needed",
            size.saturating_sub(at)
        )));
    }
    let mut body = vec![0; prefix.body_len()];
    if read_at_most(file, &mut body, at + ENVELOPE_BYTES as u64)? < body.len() {
        return Ok(Look::Damaged("the file became shorter while it was read".into()));
    }
    Ok(match prefix.open(Bytes::from(body)) {
        Ok(envelope) => Look::Frame(Box::new(Found { at, length: needed, envelope: facts(&envelope) })),
        Err(error) => Look::Damaged(shown(&error.to_string())),
    })
}

fn facts(envelope: &Envelope) -> EnvelopeFacts {
    let head = &envelope.head;
    let count = |kind: RowKind| head.rows.iter().filter(|row| row.kind == kind).count() as u64;
    let opened = match envelope.codec {
        Codec::Plain => head.clone().open(envelope.stored.clone()).ok(),
        Codec::Lz4 | Codec::Zstd => None,
    };
    let points = head.rows.iter().filter(|row| row.kind == RowKind::Barrier && row.point).map(|row| {
        let barrier = opened.as_ref().and_then(|frame| match frame.record(row).change {
            Change::Barrier(barrier) => Some(barrier),
            Change::Write { .. } | Change::Zero { .. } | Change::Break => None,
        });
        Mark { sequence: row.sequence.0, time_us: row.time.micros(), consistent: row.consistent, barrier }
    });
    EnvelopeFacts {
        machine: head.identity.machine.to_string(),
        epoch: head.identity.epoch.0,
        number: head.identity.number.0,
        digest: head.digest,
        previous: head.identity.previous,
        codec: match envelope.codec {
            Codec::Plain => "plain",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        },
        records: head.rows.len() as u64,
        writes: count(RowKind::Write),
        zeroes: count(RowKind::Zero),
        injected: head.rows.iter().filter(|row| row.injected).count() as u64,
        breaks: count(RowKind::Break),
        points: points.collect(),
        first_sequence: head.first_sequence.0,
        last_sequence: head.last_sequence().0,
        first_us: head.first_time.micros(),
        last_us: head.last_time.micros(),
        stored_bytes: envelope.stored.len() as u64,
        payload_bytes: head.payload_len.into(),
    }
}

/// Fills as much of `buffer` as there is.
fn read_at_most(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The first bytes, as far as they are a word: most formats say there what they are.
fn begins(file: &File) -> io::Result<String> {
    let mut first = [0; 8];
    let count = read_at_most(file, &mut first, 0)?;
    let word = first[..count].iter().take_while(|byte| byte.is_ascii_graphic());
    Ok(word.map(|byte| char::from(*byte)).collect())
}

fn told(path: &Path, content: &Content) -> Doc {
    let frame = |found: &Found| {
        let frame = &found.envelope;
        Doc::Map(vec![
            ("offset", found.at.into()),
            ("bytes", found.length.into()),
            ("number", frame.number.into()),
            ("machine", Doc::text(&frame.machine)),
            ("epoch", frame.epoch.into()),
            ("codec", frame.codec.into()),
            ("records", frame.records.into()),
            ("writes", frame.writes.into()),
            ("zeroes", frame.zeroes.into()),
            ("injected", frame.injected.into()),
            ("breaks", frame.breaks.into()),
            ("first_sequence", frame.first_sequence.into()),
            ("last_sequence", frame.last_sequence.into()),
            ("first_time", Doc::time(frame.first_us)),
            ("last_time", Doc::time(frame.last_us)),
            ("stored_bytes", frame.stored_bytes.into()),
            ("payload_bytes", frame.payload_bytes.into()),
            ("digest", format!("{:032x}", frame.digest).into()),
            ("points", Doc::list(&frame.points, mark)),
        ])
    };
    let problem = |(at, reason): &(u64, String)| {
        Doc::Map(vec![("offset", (*at).into()), ("reason", Doc::text(reason))])
    };
    Doc::Map(vec![
        ("file", Doc::text(&path.display().to_string())),
        ("size_bytes", content.size.into()),
        ("begins_with", Doc::text(&content.begins)),
        ("frames_total", content.frames_total.into()),
        ("frame_bytes", content.frame_bytes.into()),
        ("other_bytes", content.size.saturating_sub(content.frame_bytes).into()),
        ("problems_total", content.problems_total.into()),
        ("problems", Doc::list(&content.problems, problem)),
        ("frames", Doc::list(&content.frames, frame)),
    ])
}

fn mark(mark: &Mark) -> Doc {
    let barrier = mark.barrier.as_ref();
    Doc::Map(vec![
        ("id", barrier.and_then(|barrier| barrier.point).map(|point| point.to_string()).into()),
        ("name", barrier.map(|barrier| barrier.name.as_str()).filter(|name| !name.is_empty()).into()),
        ("sequence", mark.sequence.into()),
        ("time", Doc::time(mark.time_us)),
        ("consistent", mark.consistent.into()),
    ])
}

fn text(out: &mut dyn Write, name: &str, content: &Content, setting: &Setting, wide: bool) -> io::Result<()> {
    writeln!(out, "{name}: {}, begins with {:?}", human::bytes(Some(content.size)), content.begins)?;
    writeln!(
        out,
        "{} whole frames in {}; {} around them",
        content.frames_total,
        human::bytes(Some(content.frame_bytes)),
        human::bytes(Some(content.size.saturating_sub(content.frame_bytes)))
    )?;
    if let (Some(first), Some(last)) = (content.frames.first(), content.frames.last()) {
        let sum = |field: fn(&EnvelopeFacts) -> u64| {
            content.frames.iter().map(|found| field(&found.envelope)).sum::<u64>()
        };
        writeln!(
            out,
            "  machine   {} (epoch {} to {})",
            first.envelope.machine, first.envelope.epoch, last.envelope.epoch
        )?;
        writeln!(out, "  frames    {} to {}", first.envelope.number, last.envelope.number)?;
        writeln!(out, "  records   {} to {}", first.envelope.first_sequence, last.envelope.last_sequence)?;
        writeln!(
            out,
            "  moments   {} to {}",
            continuum_model::time::Timestamp::from_micros(first.envelope.first_us),
            continuum_model::time::Timestamp::from_micros(last.envelope.last_us)
        )?;
        writeln!(
            out,
            "  holds     {} writes, {} zeroes ({} of both injected), {} breaks, {} recovery points",
            sum(|frame| frame.writes),
            sum(|frame| frame.zeroes),
            sum(|frame| frame.injected),
            sum(|frame| frame.breaks),
            sum(|frame| frame.points.len() as u64)
        )?;
        writeln!(
            out,
            "  payload   {} in {}",
            human::bytes(Some(sum(|frame| frame.payload_bytes))),
            human::bytes(Some(sum(|frame| frame.stored_bytes)))
        )?;
    }
    for (at, reason) in &content.problems {
        writeln!(out, "  problem   at byte {at}: {}", shown(reason))?;
    }
    if wide && setting.style.format == Format::Wide {
        let head = [
            ">AT",
            ">FRAME",
            ">RECORDS",
            ">INJECTED",
            ">BREAKS",
            ">POINTS",
            "CODEC",
            ">STORED",
            "FIRST MOMENT",
            "LAST MOMENT",
        ];
        let mut table = Table::new(&head, "").whole(true);
        for found in &content.frames {
            let frame = &found.envelope;
            let number = |value: u64| Cell::from(value.to_string());
            table.row([
                number(found.at),
                number(frame.number),
                number(frame.records),
                number(frame.injected),
                number(frame.breaks),
                number(frame.points.len() as u64),
                frame.codec.into(),
                human::bytes(Some(frame.stored_bytes)).into(),
                continuum_model::time::Timestamp::from_micros(frame.first_us).to_string().into(),
                continuum_model::time::Timestamp::from_micros(frame.last_us).to_string().into(),
            ]);
        }
        table.write(out, setting.style.colour)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::feed::{BarrierKind, FrameBuilder, Identity, Record};
    use continuum_model::id::{MachineId, PointId};
    use continuum_model::time::Timestamp;
    use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};

    /// `count` chained frames, each with a write and a named point.
    fn feed(count: u64) -> Vec<Vec<u8>> {
        let mut previous = 0;
        (1..=count)
            .map(|number| {
                let mut builder = FrameBuilder::default();
                let data = Bytes::from(vec![number as u8; 4096]);
                let at = |step: u64| {
                    (Sequence(number * 2 + step), Timestamp::from_micros((number * 10 + step) as i64))
                };
                let (sequence, time) = at(0);
                let change = Change::Write { disk: DiskIndex(0), offset: 0, data, injected: number == 1 };
                builder.push(&Record { sequence, time, change });
                let (sequence, time) = at(1);
                let barrier = Barrier {
                    kind: BarrierKind::Bookmark,
                    consistent: true,
                    point: Some(PointId::from_bytes([number as u8; 16])),
                    name: "a\u{1b}[2Jb".into(),
                };
                builder.push(&Record { sequence, time, change: Change::Barrier(barrier) });
                let identity = Identity {
                    machine: MachineId::from_bytes([3; 16]),
                    epoch: Epoch(1),
                    number: FrameNumber(number),
                    session: 9,
                    previous,
                };
                let frame = builder.finish(identity).unwrap();
                previous = frame.head.digest;
                Envelope::plain(&frame).encode().to_vec()
            })
            .collect()
    }

    fn scanned(bytes: &[u8]) -> Content {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), bytes).unwrap();
        scan(&open(path.path()).unwrap()).unwrap()
    }

    #[test]
    fn frames_are_found_whatever_stands_between_them() {
        let frames = feed(3);
        for between in [
            &b""[..],
            b"CTMSEG01 a header",
            b"xxCTMECTME",
            &vec![0; (1 << 20) - 2],
            &[vec![1; (1 << 20) - 2], b"CTME".to_vec()].concat(),
        ] {
            let file: Vec<u8> = frames.iter().flat_map(|frame| [between, frame].concat()).collect();
            let content = scanned(&file);
            assert_eq!(
                (content.frames_total, content.problems.as_slice()),
                (3, &[][..]),
                "{} between",
                between.len()
            );
            assert_eq!(
                content.frames.iter().map(|found| found.envelope.number).collect::<Vec<_>>(),
                [1, 2, 3]
            );
            assert_eq!(content.frames[0].envelope.injected, 1);
            let point = content.frames[1].envelope.points[0].barrier.as_ref().unwrap();
            assert_eq!(point.point, Some(PointId::from_bytes([2; 16])));
        }
    }

    #[test]
    fn a_cut_end_damage_and_a_hole_are_told_with_their_place() {
        let frames = feed(3);
        let whole = frames.concat();
        for cut in [1, 31, 33, 4000] {
            let content = scanned(&whole[..whole.len() - cut]);
            assert_eq!((content.frames_total, content.problems_total), (2, 1), "cut by {cut}");
            assert_eq!(content.problems[0].0, (frames[0].len() + frames[1].len()) as u64);
        }
        // Every byte of the middle frame behind its prefix counts.
        for at in [ENVELOPE_BYTES, 200, frames[1].len() - 1] {
            let mut damaged = whole.clone();
            damaged[frames[0].len() + at] ^= 1;
            let content = scanned(&damaged);
            let reasons: Vec<&str> = content.problems.iter().map(|(_, reason)| reason.as_str()).collect();
            assert_eq!((content.frames_total, reasons.len()), (2, 2), "{reasons:?}");
            assert!(reasons[1].contains("frame 3 does not follow frame 1"), "{reasons:?}");
        }
        let mut prefix = whole.clone();
        prefix[frames[0].len() + frames[1].len() + 20] ^= 1;
        let content = scanned(&prefix);
        assert_eq!((content.frames_total, content.problems_total), (2, 1), "the last one's beginning");
        let hole = scanned(&[frames[0].clone(), frames[2].clone()].concat());
        assert!(hole.problems[0].1.contains("does not follow"), "{:?}", hole.problems);
        assert_eq!(scanned(b"").frames_total, 0);
    }

    #[test]
    fn what_is_no_regular_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(dir.path()).is_err());
        assert!(open(Path::new("/dev/zero")).is_err());
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        assert!(open(&fifo).is_err(), "and it does not wait for a writer");
    }
}
