//! `export`: a disk of a replica store, as of any moment, into an image file.
//!
//! Lives here: the words and the answer. Writing the image is the master target's business; no vault is asked.

use super::Setting;
use super::args::{Export, Image};
use super::output::doc::Doc;
use super::output::{self, human};
use super::progress::Percent;
use continuum_daemon::bare::export::{self, Exported, ImageFormat, Phase};
use continuum_daemon::bare::{PointInfo, Resolved};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::point::PointChoice;
use continuum_model::units::DiskIndex;
use continuum_model::untrusted::shown;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Runs `export`.
pub fn run(setting: &Setting, wanted: &Export) -> Result<(), Fault> {
    let format = format(wanted)?;
    let order = export::Export {
        store: wanted.store.clone(),
        disk: wanted.disk.map(DiskIndex),
        at: moment(&wanted.at)?,
        format,
        out: wanted.out.clone(),
        force: wanted.force,
    };
    // Ctrl-C leaves no half of an image behind.
    let stop = stop_on_signals();
    let quiet = setting.style.format.for_programs();
    let (mut writing, mut checking) = (Percent::new("written", quiet), Percent::new("checked", quiet));
    let exported = export::run(&order, &mut |phase, done, all| {
        match phase {
            Phase::Writing => writing.tell(done, all),
            Phase::Checking => checking.tell(done, all),
        }
        !stop.load(Ordering::Relaxed)
    })?;
    let path = wanted.out.display().to_string();
    setting.write(|out| {
        let doc = told(&path, format, &exported);
        output::one(out, setting.style, doc, |out, _| text(out, &path, format, &exported))
    })
}

/// Set when a person ends this command: what is under way then ends in good order.
pub fn stop_on_signals() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Where it cannot be caught, it ends this process as ever.
        let _ = signal_hook::flag::register(signal, stop.clone());
    }
    stop
}

/// The moment that was asked for; the words were checked with the command line.
pub fn moment(text: &str) -> Result<PointChoice, Fault> {
    text.parse().map_err(|error| {
        Fault::new(FaultClass::Usage, "usage", format!("{}: {error}", shown(text))).spares("nothing was done")
    })
}

fn format(wanted: &Export) -> Result<ImageFormat, Fault> {
    let by_name = || match wanted.out.extension()?.to_str()? {
        "raw" | "img" => Some(Image::Raw),
        "qcow2" => Some(Image::Qcow2),
        "vhdx" => Some(Image::Vhdx),
        "vmdk" => Some(Image::Vmdk),
        _ => None,
    };
    match wanted.format.or_else(by_name) {
        Some(Image::Raw) => Ok(ImageFormat::Raw),
        Some(Image::Qcow2) => Ok(ImageFormat::Qcow2),
        Some(Image::Vhdx) => Ok(ImageFormat::Vhdx),
        Some(Image::Vmdk) => Ok(ImageFormat::Vmdk),
        None => Err(Fault::new(
            FaultClass::Usage,
            "export.format",
            format!(
                "the name {} does not say which kind of image it is",
                shown(&wanted.out.display().to_string())
            ),
        )
        .spares("nothing was written")
        .remedy("say --format raw, qcow2, vhdx or vmdk")),
    }
}

/// A moment as it stands in an answer.
pub fn told_moment(moment: &Resolved) -> Doc {
    let point = moment.point.as_ref();
    let gap = moment
        .gap
        .map(|(from, to)| Doc::Map(vec![("from", Doc::time(from.micros())), ("to", Doc::time(to.micros()))]));
    Doc::Map(vec![
        ("id", point.map(|point| point.id.to_string()).into()),
        ("time", Doc::time(moment.time.micros())),
        ("kind", point.map_or("crash", |point| point.kind.name()).into()),
        ("name", point.map_or(Doc::Null, |point| Doc::text(&point.name))),
        ("sequence", moment.position.0.into()),
        ("gap", gap.unwrap_or(Doc::Null)),
        ("loss_bytes", moment.loss.0.into()),
    ])
}

/// A moment in words.
pub fn moment_in_words(moment: &Resolved) -> String {
    let name = |point: &PointInfo| match point.name.as_str() {
        "" => format!(" ({})", point.kind.name()),
        name => format!(" ({} `{}`)", point.kind.name(), shown(name)),
    };
    let mut text = moment.time.to_string();
    text += &moment.point.as_ref().map(name).unwrap_or_default();
    if let Some((from, to)) = moment.gap {
        text += &format!("; what was asked for lies in a gap from {from} to {to}");
    }
    text
}

fn told(path: &str, format: ImageFormat, exported: &Exported) -> Doc {
    Doc::Map(vec![
        ("path", Doc::text(path)),
        ("format", format.name().into()),
        ("machine", exported.machine.to_string().into()),
        ("disk", u64::from(exported.disk.index.0).into()),
        ("size_bytes", exported.disk.size.into()),
        ("file_bytes", exported.file_bytes.into()),
        ("point", told_moment(&exported.moment)),
        ("digest", exported.digest.to_string().into()),
        ("checked", true.into()),
    ])
}

fn text(out: &mut dyn Write, path: &str, format: ImageFormat, exported: &Exported) -> io::Result<()> {
    writeln!(
        out,
        "{}: disk {} of machine {} ({}), {} image",
        shown(path),
        exported.disk.index,
        exported.machine,
        human::bytes(Some(exported.disk.size)),
        format.name()
    )?;
    writeln!(out, "  moment    {}", moment_in_words(&exported.moment))?;
    writeln!(out, "  takes     {} on its disk", human::bytes(Some(exported.file_bytes)))?;
    writeln!(out, "  digest    {} (xxh3-128 of all blocks, as `verify` tells it)", exported.digest)?;
    writeln!(out, "  checked   it was read back, and is equal")
}
