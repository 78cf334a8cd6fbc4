//! `inspect`: what a replica store, or one file of it, is and holds; and what of it is damaged.
//!
//! Lives here: the answer's shape. Looking itself is the store's business; no vault is asked.

use super::Setting;
use super::args::Inspect;
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, Format, human};
use super::progress::Percent;
use continuum_daemon::bare::hrl::{LogFacts, Write as LogWrite};
use continuum_daemon::bare::{
    self, Affects, Codec, Content, Depth, EntryFacts, FrameFacts, History, Looked, Manifest, MapFacts,
    PointInfo, Problem, SegmentFacts, StoreFacts,
};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use std::io::{self, Write};

/// Runs `inspect`.
pub fn run(setting: &Setting, wanted: &Inspect) -> Result<(), Fault> {
    let name = shown(&wanted.path.display().to_string());
    let depth = Depth { frames: wanted.frames, verify: wanted.verify };
    let mut percent = Percent::new("verified", setting.style.format.for_programs());
    let looked = bare::look(&wanted.path, depth, &mut |done, total| percent.tell(done, total));
    let looked = looked.map_err(|error| {
        let class = match error.kind() {
            io::ErrorKind::NotFound => FaultClass::NotFound,
            _ => FaultClass::Failed,
        };
        Fault::new(class, "inspect.unreadable", format!("{name} cannot be inspected: {error}"))
            .affects("this answer")
            .spares("what is there, which is only read")
            .remedy("name a folder or a regular file that this user may read")
    })?;
    let doc = told(&wanted.path.display().to_string(), &looked, wanted);
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, _| {
            Text { out, name: &name, setting, wanted }.looked(&looked)
        })
    })?;
    damage(&looked).map_or(Ok(()), |(count, what)| {
        Err(Fault::new(FaultClass::Failed, "inspect.damaged", format!("{name}: {what}"))
            .affects(match count {
                0 => "whatever needs it",
                _ => "the moments that are told beside each problem",
            })
            .spares("every other moment, and all files, which were only read")
            .remedy(
                "bring up or export a moment that is not affected; a whole replica is made again by replicating \
                 anew, or taken from a copy of this folder",
            ))
    })
}

/// What is wrong, if anything is that a crash alone does not explain.
fn damage(looked: &Looked) -> Option<(u64, String)> {
    let of = |problems: &[Problem], total: u64| {
        let tails = problems.iter().filter(|problem| problem.affects == Affects::Tail).count() as u64;
        let count = total - tails;
        (count > 0).then(|| (count, format!("{count} places are not as they should be")))
    };
    match looked {
        Looked::Map(facts) => facts.damage.as_ref().map(|damage| (0, shown(damage))),
        Looked::Log(facts) => facts.damage.as_ref().map(|damage| (0, shown(damage))),
        Looked::Replica(content) => match content {
            Content::Store(facts) => of(&facts.problems, facts.problems_total),
            Content::Segment(facts) | Content::Frames(facts) => of(&facts.problems, facts.problems_total),
            Content::Manifest(Err(error)) | Content::Marks(Err(error)) => Some((0, shown(error))),
            Content::Manifest(Ok(_))
            | Content::Marks(Ok(_))
            | Content::Part(_)
            | Content::Folder(..)
            | Content::Unknown(_) => None,
        },
    }
}

fn time(at: Timestamp) -> Doc {
    Doc::time(at.micros())
}

const fn codec(codec: Codec) -> &'static str {
    match codec {
        Codec::Plain => "plain",
        Codec::Lz4 => "lz4",
        Codec::Zstd => "zstd",
    }
}

fn told(path: &str, looked: &Looked, wanted: &Inspect) -> Doc {
    let head = |kind: &str| vec![("path", Doc::Text(path.to_owned())), ("kind", kind.into())];
    let (kind, fields) = match looked {
        Looked::Map(facts) => ("change-map", map(facts)),
        Looked::Log(facts) => ("replication-log", log(facts, wanted)),
        Looked::Replica(content) => match content {
            Content::Store(facts) => ("store", store(facts, wanted)),
            Content::Segment(facts) => ("segment", segment(facts, true)),
            Content::Frames(facts) => ("frames", segment(facts, true)),
            Content::Manifest(read) => ("manifest", manifest(read.as_deref().map_err(String::as_str))),
            Content::Marks(Ok(marks)) => ("marks", vec![("points", (marks.points.len() as u64).into())]),
            Content::Marks(Err(error)) => ("marks", vec![("damage", Doc::text(error))]),
            Content::Part(what) => ("part", vec![("what", (*what).into())]),
            Content::Folder(entries, total) => {
                ("folder", vec![("entries_total", (*total).into()), ("entries", Doc::list(entries, entry))])
            }
            Content::Unknown(begins) => ("unknown", vec![("begins_with", Doc::text(begins))]),
        },
    };
    Doc::Map(head(kind)).with(fields)
}

fn entry(entry: &EntryFacts) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&entry.name)),
        ("what", entry.what.into()),
        ("bytes", entry.bytes.into()),
    ])
}

fn map(facts: &MapFacts) -> Vec<(&'static str, Doc)> {
    vec![
        ("disk", facts.disk.to_string().into()),
        ("size_bytes", facts.size.into()),
        ("closed", facts.closed.into()),
        ("same_boot", facts.same_boot.into()),
        ("logged", facts.logged.into()),
        ("alive", time(facts.alive)),
        ("regions", facts.regions.into()),
        ("changed", facts.changed.into()),
        ("damage", facts.damage.as_deref().map_or(Doc::Null, Doc::text)),
    ]
}

fn log(facts: &LogFacts, wanted: &Inspect) -> Vec<(&'static str, Doc)> {
    let text = |text: &Option<String>| text.as_deref().map_or(Doc::Null, Doc::text);
    let mut fields = vec![("bytes", facts.file_bytes.into())];
    if let Some(header) = &facts.header {
        fields.extend([
            ("id", header.id.to_string().into()),
            ("previous", Some(header.previous).filter(|id| !id.is_nil()).map(|id| id.to_string()).into()),
            ("disk_bytes", header.size.into()),
            ("original_disk_bytes", header.original_size.into()),
            ("created", time(header.created)),
            ("modified", time(header.modified)),
            ("creator", Doc::text(&creator(header.creator))),
            ("creator_version", u64::from(header.creator_version).into()),
            ("closed", header.end.is_some().into()),
            ("data_write_id", header.data_write.to_string().into()),
            ("writes_total", header.writes.into()),
        ]);
    }
    fields.extend([
        ("data_bytes", facts.data_bytes.into()),
        ("blocks", facts.blocks.into()),
        ("verified", facts.verified.into()),
        ("resync_due", text(&facts.doubt)),
        ("damage", text(&facts.damage)),
    ]);
    if wanted.frames {
        let write = |write: &LogWrite| {
            Doc::Map(vec![
                ("offset", write.offset.into()),
                ("bytes", u64::from(write.length).into()),
                ("time", time(write.time)),
                ("data_at", write.data_at.into()),
            ])
        };
        fields.push(("writes", Doc::list(&facts.writes, write)));
    }
    fields
}

fn creator(name: [u8; 4]) -> String {
    String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned()
}

fn manifest(read: Result<&Manifest, &str>) -> Vec<(&'static str, Doc)> {
    let manifest = match read {
        Ok(manifest) => manifest,
        Err(error) => return vec![("damage", Doc::text(error))],
    };
    let disks = Doc::list(&manifest.disks, |disk| {
        Doc::Map(vec![
            ("index", u64::from(disk.index.0).into()),
            ("id", disk.id.to_string().into()),
            ("size_bytes", disk.size.into()),
        ])
    });
    let base = Doc::Map(vec![
        ("sequence", manifest.base_sequence.0.into()),
        ("time", time(manifest.base_time)),
        ("frame", manifest.base_frame.0.into()),
        ("can_be_brought_up", manifest.base_legal.into()),
    ]);
    vec![
        ("format", manifest.format.into()),
        ("machine", manifest.machine.to_string().into()),
        ("epoch", manifest.epoch.0.into()),
        ("disks", disks),
        ("base", base),
    ]
}

fn store(facts: &StoreFacts, wanted: &Inspect) -> Vec<(&'static str, Doc)> {
    let history = facts.history.as_ref();
    let mut fields = manifest(facts.manifest.as_ref().map_err(String::as_str));
    fields.extend([
        ("owner_pid", facts.owner.into()),
        ("history", history.map_or(Doc::Null, told_history)),
        ("points_total", history.map_or(Doc::Null, |history| (history.points.len() as u64).into())),
        ("segments_total", (facts.segments.len() as u64).into()),
        (
            "space",
            Doc::Map(vec![
                ("disk_bytes", facts.space.disk_bytes.into()),
                ("base_bytes", facts.space.base_bytes.into()),
                ("journal_bytes", facts.space.journal_bytes.into()),
                ("overlay_bytes", facts.space.overlay_bytes.into()),
            ]),
        ),
        (
            "verified",
            facts.verified.map_or(Doc::Null, |verified| {
                Doc::Map(vec![
                    ("frames", verified.frames.into()),
                    ("frame_bytes", verified.frame_bytes.into()),
                    ("blocks", verified.blocks.into()),
                ])
            }),
        ),
        ("problems_total", facts.problems_total.into()),
        ("problems", Doc::list(&facts.problems, problem)),
    ]);
    if wanted.points {
        fields.push(("points", history.map_or(Doc::Null, |history| Doc::list(&history.points, point))));
    }
    if wanted.segments || wanted.frames {
        fields
            .push(("segments", Doc::list(&facts.segments, |facts| Doc::Map(segment(facts, wanted.frames)))));
    }
    fields
}

fn told_history(history: &History) -> Doc {
    let state = &history.state;
    let seconds = state.oldest_legal.zip(state.newest_legal).map(|(from, to)| to.since(from).as_secs_f64());
    let gap = |gap: &(Timestamp, Timestamp)| Doc::Map(vec![("from", time(gap.0)), ("to", time(gap.1))]);
    Doc::Map(vec![
        ("from", state.oldest_legal.map_or(Doc::Null, time)),
        ("to", state.newest_legal.map_or(Doc::Null, time)),
        ("seconds", seconds.into()),
        ("received_to", time(state.last.newest)),
        ("last_frame", state.last.number.0.into()),
        ("last_sequence", state.last.sequence.0.into()),
        ("newest_app_point", state.newest_app.map_or(Doc::Null, time)),
        ("gaps", Doc::list(&history.gaps, gap)),
        ("damage", state.damage.as_deref().map_or(Doc::Null, Doc::text)),
        ("findings", Doc::list(&history.findings, |text| Doc::text(text))),
    ])
}

fn point(point: &PointInfo) -> Doc {
    let proofs = point.mark.proofs;
    Doc::Map(vec![
        ("id", point.id.to_string().into()),
        ("time", time(point.time)),
        ("sequence", point.position.0.into()),
        ("kind", point.kind.name().into()),
        ("name", Doc::text(&point.name)),
        ("pinned", point.mark.pinned.into()),
        (
            "proofs",
            Doc::Map(vec![
                ("booted", proofs.booted.into()),
                ("probed", proofs.probed.into()),
                ("digest_equal", proofs.digest_equal.into()),
            ]),
        ),
    ])
}

fn segment(facts: &SegmentFacts, with_frames: bool) -> Vec<(&'static str, Doc)> {
    let span = |tell: &dyn Fn(&FrameFacts, &FrameFacts) -> Doc| {
        facts.span.as_ref().map_or(Doc::Null, |(first, last)| tell(first, last))
    };
    let mut fields = vec![
        ("file", Doc::text(&facts.file)),
        ("number", facts.number.into()),
        ("machine", facts.machine.map(|machine| machine.to_string()).into()),
        ("bytes", facts.bytes.into()),
        ("frames_total", facts.frames_total.into()),
        ("records", facts.records.into()),
        ("first_frame", span(&|first, _| first.number.into())),
        ("last_frame", span(&|_, last| last.number.into())),
        ("first_epoch", span(&|first, _| first.epoch.into())),
        ("last_epoch", span(&|_, last| last.epoch.into())),
        ("first_time", span(&|first, _| time(first.first.1))),
        ("last_time", span(&|_, last| time(last.last.1))),
        ("problems_total", facts.problems_total.into()),
        ("problems", Doc::list(&facts.problems, problem)),
    ];
    if with_frames {
        fields.push(("frames", Doc::list(&facts.frames, frame)));
    }
    fields
}

fn frame(frame: &FrameFacts) -> Doc {
    Doc::Map(vec![
        ("offset", frame.at.into()),
        ("bytes", frame.bytes.into()),
        ("number", frame.number.into()),
        ("machine", frame.machine.to_string().into()),
        ("epoch", frame.epoch.into()),
        ("codec", codec(frame.codec).into()),
        ("records", frame.records().into()),
        ("writes", frame.writes.into()),
        ("zeroes", frame.zeroes.into()),
        ("injected", frame.injected.into()),
        ("breaks", frame.breaks.into()),
        ("barriers", frame.barriers.into()),
        ("points", frame.points.into()),
        ("first_sequence", frame.first.0.0.into()),
        ("last_sequence", frame.last.0.0.into()),
        ("first_time", time(frame.first.1)),
        ("last_time", time(frame.last.1)),
        ("payload_bytes", frame.payload_bytes.into()),
        ("digest", format!("{:032x}", frame.digest).into()),
    ])
}

fn problem(problem: &Problem) -> Doc {
    let (kind, from, until) = match problem.affects {
        Affects::Tail => ("tail", Doc::Null, Doc::Null),
        Affects::NoMoment => ("nothing", Doc::Null, Doc::Null),
        Affects::Unknown => ("unknown", Doc::Null, Doc::Null),
        Affects::Moments(from, until) => {
            ("moments", from.map_or(Doc::Null, time), until.map_or(Doc::Null, time))
        }
    };
    Doc::Map(vec![
        ("file", Doc::text(&problem.file)),
        ("offset", problem.at.into()),
        ("bytes", problem.bytes.into()),
        ("what", Doc::text(&problem.what)),
        ("affects", Doc::Map(vec![("kind", kind.into()), ("from", from), ("until", until)])),
    ])
}

fn affected(affects: Affects) -> String {
    match affects {
        Affects::Tail => {
            "no moment that was acknowledged: an end that was being written, cut when it is opened".into()
        }
        Affects::NoMoment => "no moment".into(),
        Affects::Unknown => "what cannot be said".into(),
        Affects::Moments(None, None) => "every moment".into(),
        Affects::Moments(Some(from), None) => format!("every moment after {from}"),
        Affects::Moments(None, Some(until)) => format!("every moment before {until}"),
        Affects::Moments(Some(from), Some(until)) => format!("moments from {from} until {until}"),
    }
}

/// The answer in words.
struct Text<'a> {
    out: &'a mut dyn Write,
    name: &'a str,
    setting: &'a Setting,
    wanted: &'a Inspect,
}

impl Text<'_> {
    fn looked(&mut self, looked: &Looked) -> io::Result<()> {
        let name = self.name;
        match looked {
            Looked::Map(facts) => self.map(facts),
            Looked::Log(facts) => self.log(facts),
            Looked::Replica(content) => match content {
                Content::Store(facts) => self.store(facts),
                Content::Segment(facts) => {
                    let number = facts.number.map(|number| format!(" {number}")).unwrap_or_default();
                    writeln!(self.out, "{name}: segment{number} of a journal")?;
                    self.segment(facts)
                }
                Content::Frames(facts) => {
                    writeln!(self.out, "{name}: frames of a feed, {} in all", facts.frames_total)?;
                    self.segment(facts)
                }
                Content::Manifest(Ok(manifest)) => {
                    writeln!(self.out, "{name}: manifest of a replica store")?;
                    self.manifest(manifest)
                }
                Content::Marks(Ok(marks)) => {
                    writeln!(self.out, "{name}: pins and proofs of {} recovery points", marks.points.len())
                }
                Content::Manifest(Err(error)) | Content::Marks(Err(error)) => {
                    writeln!(self.out, "{name}: {}", shown(error))
                }
                Content::Part(what) => writeln!(self.out, "{name}: {what}"),
                Content::Unknown(begins) if begins.is_empty() => {
                    writeln!(self.out, "{name}: nothing that this program writes")
                }
                Content::Unknown(begins) => writeln!(
                    self.out,
                    "{name}: nothing that this program writes; it begins with `{}`",
                    shown(begins)
                ),
                Content::Folder(entries, total) => self.folder(entries, *total),
            },
        }
    }

    fn folder(&mut self, entries: &[EntryFacts], total: u64) -> io::Result<()> {
        writeln!(self.out, "{}: a folder of {total} entries, and no replica store itself", self.name)?;
        let mut table = Table::new(&["NAME", "WHAT", ">SIZE"], "it is empty").whole(true);
        for entry in entries {
            table.row([Cell::new(&entry.name), entry.what.into(), human::bytes(entry.bytes).into()]);
        }
        table.write(self.out, self.setting.style.colour)
    }

    fn map(&mut self, facts: &MapFacts) -> io::Result<()> {
        writeln!(self.out, "{}: change map of disk {}", self.name, facts.disk)?;
        writeln!(self.out, "  disk      {}", human::bytes(Some(facts.size)))?;
        let state = match (facts.closed, facts.same_boot) {
            (true, _) => "closed in good order",
            (false, true) => "in use, or left by a process that died: good, its bits survive that",
            (false, false) if facts.logged => {
                "in use when its machine went down: what its activity log names counts as changed, too"
            }
            (false, false) => "in use when its machine went down: everything counts as changed",
        };
        writeln!(self.out, "  state     {state}; last sign of life {}", facts.alive)?;
        writeln!(
            self.out,
            "  changed   {} of {} regions of 64 KiB may differ from the target",
            facts.changed, facts.regions
        )?;
        match &facts.damage {
            Some(damage) => writeln!(
                self.out,
                "  problem   {}: its agent will not believe it and compares everything",
                shown(damage)
            ),
            None => Ok(()),
        }
    }

    fn manifest(&mut self, manifest: &Manifest) -> io::Result<()> {
        writeln!(
            self.out,
            "  machine   {} (format {}, epoch {})",
            manifest.machine, manifest.format, manifest.epoch
        )?;
        for disk in &manifest.disks {
            let size = human::bytes(Some(disk.size));
            writeln!(self.out, "  disk {:<4} {size}, {}", disk.index, disk.id)?;
        }
        if manifest.base_frame.0 == 0 {
            return writeln!(self.out, "  base      empty: all history is in the journal");
        }
        let legal = if manifest.base_legal { "" } else { ", which cannot be brought up by itself" };
        writeln!(self.out, "  base      everything up to {}{legal}", manifest.base_time)
    }

    fn log(&mut self, facts: &LogFacts) -> io::Result<()> {
        writeln!(self.out, "{}: replication log", self.name)?;
        if let Some(header) = &facts.header {
            let after = match header.previous.is_nil() {
                true => "the first".to_owned(),
                false => format!("goes on from {}", header.previous),
            };
            writeln!(self.out, "  log       {}, {after}", header.id)?;
            writeln!(self.out, "  disk      {}", human::bytes(Some(header.size)))?;
            writeln!(
                self.out,
                "  written   by `{}` from {} to {}",
                shown(&creator(header.creator)),
                header.created,
                header.modified
            )?;
            if let Some(data) = facts.data_bytes {
                let data = human::bytes(Some(data));
                writeln!(
                    self.out,
                    "  holds     {} writes, {data}; moments are whole seconds",
                    header.writes
                )?;
            }
        }
        if facts.verified {
            writeln!(self.out, "  verified  all data was read against its checksums")?;
        }
        for (what, text) in [("resync", &facts.doubt), ("damage", &facts.damage)] {
            if let Some(text) = text {
                writeln!(self.out, "  {what}    {}", shown(text))?;
            }
        }
        if self.wanted.frames {
            let mut table = Table::new(&[">OFFSET", ">BYTES", "MOMENT"], "it holds no write").whole(true);
            for write in &facts.writes {
                table.row([
                    write.offset.to_string().into(),
                    write.length.to_string().into(),
                    write.time.to_string().into(),
                ]);
            }
            table.write(self.out, self.setting.style.colour)?;
        }
        Ok(())
    }

    fn store(&mut self, facts: &StoreFacts) -> io::Result<()> {
        writeln!(self.out, "{}: replica store", self.name)?;
        match facts.owner {
            Some(pid) => writeln!(
                self.out,
                "  owner     process {pid} has it open: what it writes meanwhile may be told half"
            )?,
            None => writeln!(self.out, "  owner     nobody has it open, as far as this machine tells")?,
        }
        if let Ok(manifest) = &facts.manifest {
            self.manifest(manifest)?;
        }
        if let Ok(history) = &facts.history {
            self.history(history)?;
        }
        let space = &facts.space;
        let [base, journal, overlay] = [space.base_bytes, space.journal_bytes, space.overlay_bytes]
            .map(|bytes| human::bytes(Some(bytes)));
        let segments = facts.segments.len();
        writeln!(
            self.out,
            "  space     base {base}, journal {journal} in {segments} segments, overlays {overlay}"
        )?;
        if let Some(verified) = facts.verified {
            let blocks = human::bytes(Some(verified.blocks << 16));
            let frames = human::bytes(Some(verified.frame_bytes));
            writeln!(
                self.out,
                "  verified  {} frames ({frames}) and {} base blocks ({blocks}) were read whole",
                verified.frames, verified.blocks
            )?;
        }
        self.problems(&facts.problems, facts.problems_total)?;
        if self.wanted.segments {
            self.segments(&facts.segments)?;
        }
        if self.wanted.points
            && let Ok(history) = &facts.history
        {
            self.points(&history.points)?;
        }
        if self.wanted.frames {
            let frames = facts
                .segments
                .iter()
                .flat_map(|segment| segment.frames.iter().map(|frame| (segment.file.as_str(), frame)));
            self.frames(frames)?;
        }
        Ok(())
    }

    fn history(&mut self, history: &History) -> io::Result<()> {
        let state = &history.state;
        match state.oldest_legal.zip(state.newest_legal) {
            Some((from, to)) => {
                let span = human::seconds(Some(to.since(from).as_secs_f64()));
                writeln!(self.out, "  history   {from} to {to} ({span}): any moment of it")?;
            }
            None => writeln!(self.out, "  history   none: the first copy never became complete")?,
        }
        writeln!(
            self.out,
            "  received  to {} (frame {}, record {})",
            state.last.newest, state.last.number, state.last.sequence
        )?;
        let count = |name: &str| history.points.iter().filter(|point| point.kind.name() == name).count();
        let pinned = history.points.iter().filter(|point| point.mark.pinned).count();
        let proven = history.points.iter().filter(|point| point.mark.proofs.booted == Some(true)).count();
        writeln!(
            self.out,
            "  points    {} ({} crash, {} app, {} bookmarks); {pinned} pinned, {proven} booted",
            history.points.len(),
            count("crash"),
            count("app"),
            count("bookmark")
        )?;
        for (from, to) in history.gaps.iter().take(20) {
            writeln!(self.out, "  gap       {from} to {to}: nothing in between can be brought up")?;
        }
        if history.gaps.len() > 20 {
            writeln!(self.out, "  gap       and {} more: see -o json", history.gaps.len() - 20)?;
        }
        for finding in &history.findings {
            writeln!(self.out, "  finding   {}", shown(finding))?;
        }
        Ok(())
    }

    fn segment(&mut self, facts: &SegmentFacts) -> io::Result<()> {
        if let Some(machine) = facts.machine {
            writeln!(self.out, "  machine   {machine}")?;
        }
        writeln!(self.out, "  size      {}", human::bytes(Some(facts.bytes)))?;
        if let Some((first, last)) = &facts.span {
            writeln!(
                self.out,
                "  frames    {} to {} (epoch {} to {}), {} records",
                first.number, last.number, first.epoch, last.epoch, facts.records
            )?;
            writeln!(self.out, "  moments   {} to {}", first.first.1, last.last.1)?;
        } else {
            writeln!(self.out, "  frames    none")?;
        }
        self.problems(&facts.problems, facts.problems_total)?;
        if self.wanted.frames {
            self.frames(facts.frames.iter().map(|frame| ("", frame)))?;
        }
        Ok(())
    }

    fn problems(&mut self, problems: &[Problem], total: u64) -> io::Result<()> {
        for problem in problems {
            let file =
                if problem.file.is_empty() { String::new() } else { format!("{} ", shown(&problem.file)) };
            let place = match (problem.at, problem.bytes) {
                (Some(at), Some(bytes)) => format!("at byte {at}, {bytes} bytes: "),
                (Some(at), None) => format!("at byte {at}: "),
                (None, _) => String::new(),
            };
            writeln!(self.out, "  problem   {file}{place}{}", shown(&problem.what))?;
            writeln!(self.out, "            affects {}", affected(problem.affects))?;
        }
        match total - problems.len() as u64 {
            0 => Ok(()),
            more => writeln!(self.out, "  problem   and {more} more"),
        }
    }

    fn segments(&mut self, segments: &[SegmentFacts]) -> io::Result<()> {
        let head =
            ["FILE", ">SIZE", ">FRAMES", ">FIRST", ">LAST", "FIRST MOMENT", "LAST MOMENT", ">PROBLEMS"];
        let mut table = Table::new(&head, "the journal is empty").whole(true);
        for segment in segments {
            let of = |tell: &dyn Fn(&(FrameFacts, FrameFacts)) -> String| {
                Cell::new(&segment.span.as_ref().map(tell).unwrap_or_default())
            };
            table.row([
                Cell::new(&segment.file),
                human::bytes(Some(segment.bytes)).into(),
                segment.frames_total.to_string().into(),
                of(&|span| span.0.number.to_string()),
                of(&|span| span.1.number.to_string()),
                of(&|span| span.0.first.1.to_string()),
                of(&|span| span.1.last.1.to_string()),
                segment.problems_total.to_string().into(),
            ]);
        }
        table.write(self.out, self.setting.style.colour)
    }

    fn points(&mut self, points: &[PointInfo]) -> io::Result<()> {
        let head = ["TIME", "KIND", "NAME", "PINNED", "BOOTED", "PROBED", "DIGEST", "ID"];
        let mut table = Table::new(&head, "there are no listed points").whole(true);
        let word = |proof: Option<bool>| match proof {
            Some(true) => Cell::state("passed"),
            Some(false) => Cell::state("failed"),
            None => Cell::new(""),
        };
        for point in points {
            let proofs = point.mark.proofs;
            table.row([
                point.time.to_string().into(),
                point.kind.name().into(),
                Cell::new(&point.name),
                (if point.mark.pinned { "pinned" } else { "-" }).into(),
                word(proofs.booted),
                word(proofs.probed),
                word(proofs.digest_equal),
                point.id.to_string().into(),
            ]);
        }
        table.write(self.out, self.setting.style.colour)
    }

    fn frames<'f>(&mut self, frames: impl Iterator<Item = (&'f str, &'f FrameFacts)>) -> io::Result<()> {
        let head = [
            "FILE",
            ">AT",
            ">FRAME",
            ">EPOCH",
            ">RECORDS",
            ">INJECTED",
            ">BREAKS",
            ">POINTS",
            "CODEC",
            ">SIZE",
            "FIRST MOMENT",
            "LAST MOMENT",
        ];
        let mut table = Table::new(&head, "there are no frames").whole(true);
        let wide = self.setting.style.format == Format::Wide;
        for (file, frame) in frames {
            let number = |value: u64| Cell::from(value.to_string());
            let size = if wide { frame.bytes.to_string() } else { human::bytes(Some(frame.bytes)) };
            table.row([
                Cell::new(file),
                number(frame.at),
                number(frame.number),
                number(frame.epoch),
                number(frame.records()),
                number(frame.injected),
                number(frame.breaks),
                number(frame.points),
                codec(frame.codec).into(),
                size.into(),
                frame.first.1.to_string().into(),
                frame.last.1.to_string().into(),
            ]);
        }
        table.write(self.out, self.setting.style.colour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Choice;
    use crate::verb::output::Style;
    use std::path::PathBuf;

    const EVIL: &str = "a\u{1b}[2J\u{202e}\nb";

    fn said(content: Content, format: Format) -> String {
        let setting = Setting {
            choice: Choice { profile: None, connect: None, dir: None },
            style: Style { format, colour: false },
            colour_err: false,
            yes: false,
            dir: None,
        };
        let wanted =
            Inspect { path: PathBuf::from(EVIL), segments: true, points: true, frames: true, verify: true };
        let (looked, name) = (Looked::Replica(content), shown(EVIL));
        let mut out = Vec::new();
        output::one(&mut out, setting.style, told(EVIL, &looked, &wanted), |out, _| {
            Text { out, name: &name, setting: &setting, wanted: &wanted }.looked(&looked)
        })
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    fn problem() -> Problem {
        Problem {
            file: EVIL.into(),
            at: Some(7),
            bytes: Some(9),
            what: EVIL.into(),
            affects: Affects::Moments(Some(Timestamp::from_micros(1)), None),
        }
    }

    #[test]
    fn whatever_stands_in_a_store_drives_no_terminal() {
        let dir = tempfile::tempdir().unwrap();
        let segment = || SegmentFacts {
            file: EVIL.into(),
            problems: vec![problem()],
            problems_total: 3,
            ..SegmentFacts::default()
        };
        let entry = || EntryFacts { name: EVIL.into(), what: "file", bytes: Some(1) };
        let look = |path: &std::path::Path| match bare::look(path, Depth::default(), &mut |_, _| {}) {
            Ok(Looked::Replica(content)) => content,
            other => panic!("{other:?}"),
        };
        // A folder that claims to be a store, with names as they can be made by anybody.
        let store = dir.path().join("store");
        std::fs::create_dir_all(store.join("journal")).unwrap();
        std::fs::write(store.join("manifest"), EVIL).unwrap();
        std::fs::write(store.join("journal").join(EVIL), EVIL).unwrap();
        std::fs::write(dir.path().join(EVIL), EVIL).unwrap();
        for format in [Format::Table, Format::Wide, Format::Json, Format::Yaml, Format::Csv] {
            for content in [
                Content::Folder(vec![entry()], 1),
                Content::Unknown(EVIL.into()),
                Content::Segment(Box::new(segment())),
                Content::Frames(Box::new(segment())),
                Content::Manifest(Err(EVIL.into())),
                Content::Marks(Err(EVIL.into())),
                look(&store),
                look(dir.path()),
                look(&dir.path().join(EVIL)),
            ] {
                let what = format!("{content:?}");
                let text = said(content, format);
                let bad = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
                assert!(!text.chars().any(bad), "{format:?} of {what}: {text:?}");
            }
        }
    }

    #[test]
    fn damage_decides_the_exit_and_a_torn_tail_does_not() {
        let facts = |affects| {
            let problems = vec![Problem { affects, ..problem() }];
            Looked::Replica(Content::Segment(Box::new(SegmentFacts {
                problems,
                problems_total: 1,
                ..SegmentFacts::default()
            })))
        };
        assert_eq!(damage(&facts(Affects::Tail)), None);
        for affects in [Affects::Moments(None, None), Affects::Unknown, Affects::NoMoment] {
            assert_eq!(damage(&facts(affects)).map(|found| found.0), Some(1));
        }
        assert!(
            damage(&Looked::Replica(Content::Marks(Err(EVIL.into()))))
                .is_some_and(|found| !found.1.contains('\u{1b}'))
        );
    }
}
