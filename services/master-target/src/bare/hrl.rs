//! Replication logs by hand: told, made from and to a feed's staged frames, put onto an image.
//!
//! Lives here: names of files, and words for what goes wrong. The work: `continuum_capture::exchange`.

use super::Depth;
use super::chain;
use super::export::{Part, Place};
use continuum_capture::exchange::{self, Chain, ExchangeError, Frames, ToFrames, ToLog};
pub use continuum_capture::exchange::{Applied, Lost};
use continuum_capture::hrl::{self, HrlError, Log};
pub use continuum_capture::hrl::{Guid, Header, Write};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::id::MachineId;
use continuum_model::units::DiskIndex;
use continuum_model::untrusted::shown;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Writes that are told one by one, at most.
const WRITES_TOLD_MAX: usize = 100_000;

/// What a log is and holds.
#[derive(Debug)]
pub struct LogFacts {
    /// Its header, where that can be read.
    pub header: Option<Header>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Blocks that describe writes; with an empty one that begins it.
    pub blocks: Option<u64>,
    /// Bytes of data.
    pub data_bytes: Option<u64>,
    /// Whether all data was read against its checksums.
    pub verified: bool,
    /// The writes, where they were asked for; at most the first 100,000.
    pub writes: Vec<Write>,
    /// Why its disk has to be compared, with no damage to the log.
    pub doubt: Option<String>,
    /// What is damaged.
    pub damage: Option<String>,
}

/// Tells what a log is. `None`: the file is none.
pub(super) fn look(file: File, depth: Depth, told: &mut dyn FnMut(u64, u64)) -> io::Result<Option<LogFacts>> {
    let Some(header) = hrl::look(&file)? else { return Ok(None) };
    let mut facts = LogFacts {
        header: None,
        file_bytes: file.metadata()?.len(),
        blocks: None,
        data_bytes: None,
        verified: false,
        writes: Vec::new(),
        doubt: None,
        damage: None,
    };
    let looked = header.and_then(|header| {
        facts.header = Some(header);
        let log = Log::open(file)?;
        facts.blocks = Some(log.blocks() as u64);
        facts.data_bytes = Some(log.data_bytes());
        if depth.frames {
            facts.writes = log.writes().take(WRITES_TOLD_MAX).collect::<Result<_, _>>()?;
        }
        if log.header().is_over_half(log.bytes()) {
            facts.doubt = Some(
                "it is larger than half of its disk: comparing the disk (a resync) costs less than the log"
                    .into(),
            );
        }
        if depth.verify {
            let all = log.data_bytes();
            facts.verified = log.verify(&mut |done| {
                told(done, all);
                true
            })?;
        }
        Ok(())
    });
    match looked {
        Ok(()) => {}
        Err(HrlError::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        Err(error @ (HrlError::NotClosed | HrlError::Failed(_))) => facts.doubt = Some(chain(&error)),
        Err(error) => facts.damage = Some(chain(&error)),
    }
    Ok(Some(facts))
}

/// Into what is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A replication log.
    Hrl,
    /// Frames of a feed, as an agent stages them.
    Feed,
}

/// What is converted, and how.
#[derive(Debug, Clone)]
pub struct Convert {
    /// Logs, in any order; or files of frames, in theirs.
    pub inputs: Vec<PathBuf>,
    /// What is made.
    pub out: PathBuf,
    /// Whether another file may lose its name to it.
    pub force: bool,
    /// Into what.
    pub form: Form,
    /// Which disk: of the frames that are read, or that are made.
    pub disk: Option<DiskIndex>,
    /// Its size in bytes; needed for a log.
    pub size: Option<u64>,
    /// The log that the new one goes on from.
    pub after: Option<PathBuf>,
    /// Bytes of zero ranges that may be written out.
    pub zero_bytes_max: u64,
    /// Whose frames are made; else a machine is named after the log.
    pub machine: Option<MachineId>,
}

/// What was made.
#[derive(Debug)]
pub struct Converted {
    /// Bytes of the file.
    pub bytes: u64,
    /// Writes in a log, frames in a file of them.
    pub count: u64,
    /// The log's id, where one was made.
    pub log: Option<Guid>,
    /// The machine, where frames were made.
    pub machine: Option<MachineId>,
    /// What did not survive.
    pub lost: Lost,
}

/// Converts. The file has its name only when it is whole and durable.
pub fn convert(order: &Convert, told: exchange::Told<'_>) -> Result<Converted, Fault> {
    let place = Place::choose(&order.out, order.force, None)?;
    let file = |part: &Part| part.file.try_clone().map_err(|error| place.fault("opened", &error));
    let out = &order.out;
    match order.form {
        Form::Hrl => {
            let frames = Frames::open(&order.inputs).map_err(|error| told_of(&error))?;
            let size = order.size.ok_or_else(|| {
                Fault::new(
                    FaultClass::Usage,
                    "hrl.size",
                    "a log tells the size of its disk, and frames do not hold it",
                )
                .spares("nothing was written")
                .remedy("say how large the disk is: --disk-size 64G")
            })?;
            let previous = match &order.after {
                Some(path) => previous(path)?,
                None => Guid::default(),
            };
            let wanted = ToLog { disk: order.disk, size, previous, zero_bytes_max: order.zero_bytes_max };
            let mut part = Part::make(&place)?;
            let (header, lost) = exchange::frames_to_log(&frames, &wanted, (file(&part)?, out), told)
                .map_err(|error| told_of(&error))?;
            part.name_it(&place)?;
            let bytes = header.end.unwrap_or(0);
            Ok(Converted { bytes, count: header.writes, log: Some(header.id), machine: None, lost })
        }
        Form::Feed => {
            let logs = Chain::open(&order.inputs).map_err(|error| told_of(&error))?;
            let named = logs.newest().map_or(Guid::default(), |header| header.id);
            let machine = order.machine.unwrap_or_else(|| MachineId::from_uuid(named.uuid()));
            let wanted = ToFrames { machine, disk: order.disk.unwrap_or(DiskIndex(0)) };
            let mut part = Part::make(&place)?;
            let (count, lost) = exchange::log_to_frames(&logs, wanted, (&part.file, out), told)
                .map_err(|error| told_of(&error))?;
            let bytes = part.file.metadata().map_or(0, |meta| meta.len());
            part.name_it(&place)?;
            Ok(Converted { bytes, count, log: None, machine: Some(machine), lost })
        }
    }
}

fn previous(path: &Path) -> Result<Guid, Fault> {
    let wrong = |cause| told_of(&ExchangeError::Log { path: path.to_owned(), cause });
    let file = File::open(path).map_err(|error| wrong(error.into()))?;
    let header =
        hrl::look(&file).map_err(|error| wrong(error.into()))?.ok_or_else(|| wrong(HrlError::Other))?;
    header.map(|header| header.id).map_err(wrong)
}

/// Logs that are about to be put onto an image.
#[derive(Debug)]
pub struct Ready {
    chain: Chain,
    image: PathBuf,
}

impl Ready {
    /// Verifies the logs to their last byte, and that the image fits. Writes nothing.
    pub fn check(logs: &[PathBuf], image: &Path, told: exchange::Told<'_>) -> Result<Self, Fault> {
        let chain = Chain::open(logs).map_err(|error| told_of(&error))?;
        exchange::check(&chain, image, told).map_err(|error| told_of(&error))?;
        Ok(Self { chain, image: image.to_owned() })
    }
    /// The logs in their order, each with its header.
    pub fn logs(&self) -> impl Iterator<Item = (&Path, &Header)> {
        self.chain.logs().map(|(path, log)| (path.as_path(), log.header()))
    }
    /// Writes in all of them, and their bytes.
    pub fn writes(&self) -> (u64, u64) {
        (self.chain.writes(), self.chain.data_bytes())
    }
    /// Puts them onto the image.
    pub fn apply(&self, told: exchange::Told<'_>) -> Result<Applied, Fault> {
        exchange::apply(&self.chain, &self.image, told).map_err(|error| {
            told_of(&error)
                .affects("the image, of which a part may be written: put the same logs onto it again")
        })
    }
}

fn told_of(error: &ExchangeError) -> Fault {
    let (class, code, remedy) = match error {
        ExchangeError::Log { cause: HrlError::NotClosed | HrlError::Failed(_), .. } => (
            FaultClass::NotReady,
            "hrl.not-closed",
            "compare the disk instead: a resync, or a copy of the whole of it",
        ),
        ExchangeError::Log { cause: HrlError::Bounds { .. }, .. } => {
            (FaultClass::Usage, "hrl.bounds", "say how large the disk really is")
        }
        ExchangeError::Log { cause: HrlError::Moment(_), .. } => (
            FaultClass::Failed,
            "hrl.moment",
            "set right the clock of the source; these frames cannot become a log",
        ),
        ExchangeError::Log { .. } => (
            FaultClass::Failed,
            "hrl.damaged",
            "`continuum inspect FILE --verify` tells what is wrong; take another copy, or compare the disk",
        ),
        ExchangeError::Frames { .. } => (
            FaultClass::Failed,
            "hrl.frames",
            "`continuum inspect FILE --frames` tells what is whole; an agent that runs uses up what it staged",
        ),
        ExchangeError::Unchained(_) => (
            FaultClass::Usage,
            "hrl.unchained",
            "name all logs of one disk, from one moment to another, each once",
        ),
        ExchangeError::Disks { .. } => (FaultClass::Usage, "hrl.disk", "name one with --disk"),
        ExchangeError::Zeroes { .. } => (
            FaultClass::Refused,
            "hrl.zeroes",
            "allow more with --zeroes-max, where the log may become so large",
        ),
        ExchangeError::Size { .. } => (
            FaultClass::Refused,
            "hrl.image-size",
            "name the image of this disk, of its size and in raw format",
        ),
        ExchangeError::Differs { .. } => {
            (FaultClass::Failed, "hrl.differs", "do not use this image; see to the disk that it lies on")
        }
        ExchangeError::File { .. } => {
            (FaultClass::Failed, "hrl.file", "see to the file's rights, its disk and the space there")
        }
        ExchangeError::Stopped => (FaultClass::Failed, "interrupted", "order it again"),
    };
    Fault::new(
        class,
        code,
        match error {
            ExchangeError::Stopped => "it was stopped".to_owned(),
            error => shown(&chain(error)),
        },
    )
    .affects("what was to be made")
    .spares("what was read")
    .remedy(remedy)
}
