//! `hrl`: replication logs, made from and to a feed's staged frames, and put onto an image.
//!
//! Lives here: the words and the answers. No vault is asked.

use super::Setting;
use super::args::{Hrl, HrlApply, HrlConvert};
use super::export::stop_on_signals;
use super::output::doc::Doc;
use super::output::{self, human};
use super::progress::Percent;
use continuum_daemon::bare::hrl::{self, Convert, Converted, Form, Ready};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::units::DiskIndex;
use continuum_model::untrusted::shown;
use std::io::{self, Write};
use std::sync::atomic::Ordering;

/// Runs `hrl`.
pub fn run(setting: &Setting, wanted: &Hrl) -> Result<(), Fault> {
    match wanted {
        Hrl::Convert(wanted) => convert(setting, wanted),
        Hrl::Apply(wanted) => apply(setting, wanted),
    }
}

fn convert(setting: &Setting, wanted: &HrlConvert) -> Result<(), Fault> {
    let path = wanted.out.display().to_string();
    let form = match wanted.out.extension().and_then(|end| end.to_str()) {
        Some("hrl") => Form::Hrl,
        Some("feed") => Form::Feed,
        _ => {
            let message = format!("the name {} does not say what it is to become", shown(&path));
            return Err(Fault::new(FaultClass::Usage, "hrl.form", message)
                .spares("nothing was written")
                .remedy("end it with .hrl for a replication log, or .feed for frames"));
        }
    };
    let stop = stop_on_signals();
    let mut percent = Percent::new("converted", setting.style.format.for_programs());
    let order = Convert {
        inputs: wanted.inputs.clone(),
        out: wanted.out.clone(),
        force: wanted.force,
        form,
        disk: wanted.disk.map(DiskIndex),
        size: wanted.disk_size,
        after: wanted.after.clone(),
        zero_bytes_max: wanted.zeroes_max,
        machine: wanted.machine,
    };
    let made = hrl::convert(&order, &mut |done, all| {
        percent.tell(done, all);
        !stop.load(Ordering::Relaxed)
    })?;
    setting.write(|out| {
        output::one(out, setting.style, told(&path, form, &made), |out, _| text(out, &path, form, &made))
    })
}

fn told(path: &str, form: Form, made: &Converted) -> Doc {
    let lost = &made.lost;
    Doc::Map(vec![
        ("path", Doc::text(path)),
        ("form", if form == Form::Hrl { "hrl" } else { "feed" }.into()),
        ("bytes", made.bytes.into()),
        (if form == Form::Hrl { "writes" } else { "frames" }, made.count.into()),
        ("log", made.log.map(|id| id.to_string()).into()),
        ("machine", made.machine.map(|id| id.to_string()).into()),
        (
            "lost",
            Doc::Map(vec![
                ("barriers", lost.barriers.into()),
                ("breaks", lost.breaks.into()),
                ("injected_marks", lost.injected.into()),
                ("zero_ranges_written", lost.zeroes.into()),
                ("zero_bytes_written", lost.zero_bytes.into()),
                ("records_of_other_disks", lost.others.into()),
                ("moments_changed", lost.moments.into()),
            ]),
        ),
    ])
}

fn text(out: &mut dyn Write, path: &str, form: Form, made: &Converted) -> io::Result<()> {
    let (lost, size) = (&made.lost, human::bytes(Some(made.bytes)));
    match form {
        Form::Hrl => {
            writeln!(out, "{}: replication log of {} writes, {size}", shown(path), made.count)?;
            if let Some(id) = made.log {
                writeln!(out, "  log       {id}")?;
            }
        }
        Form::Feed => {
            writeln!(out, "{}: {} frames of a feed, {size}", shown(path), made.count)?;
            if let Some(machine) = made.machine {
                writeln!(out, "  machine   {machine}")?;
            }
        }
    }
    let zeroes = human::bytes(Some(lost.zero_bytes));
    let rows = [
        (lost.barriers, "barriers: only the end is a moment that counts".to_owned()),
        (lost.breaks, "marks of a break in the feed".into()),
        (lost.injected, "marks of injected writes".into()),
        (lost.zeroes, format!("zero ranges, which are written zeroes now ({zeroes})")),
        (lost.others, "records of other disks".into()),
    ];
    for (count, what) in rows.iter().filter(|(count, _)| *count > 0) {
        writeln!(out, "  lost      {count} {what}")?;
    }
    match form {
        Form::Hrl if lost.moments > 0 => {
            writeln!(out, "  lost      microseconds of {} moments", lost.moments)
        }
        Form::Feed if lost.moments > 0 => {
            writeln!(out, "  made up   microseconds of {} moments, so that they rise", lost.moments)
        }
        Form::Hrl | Form::Feed => Ok(()),
    }
}

fn apply(setting: &Setting, wanted: &HrlApply) -> Result<(), Fault> {
    let stop = stop_on_signals();
    let quiet = setting.style.format.for_programs();
    let (mut verified, mut applied) = (Percent::new("verified", quiet), Percent::new("applied", quiet));
    let Some((image, logs)) = wanted.paths.split_last() else { return Ok(()) };
    let ready = Ready::check(logs, image, &mut |done, all| {
        verified.tell(done, all);
        !stop.load(Ordering::Relaxed)
    })?;
    let (writes, bytes) = ready.writes();
    let name = shown(&image.display().to_string());
    if !setting.yes {
        let bytes = human::bytes(Some(bytes));
        let message =
            format!("{name} would be changed in place by {writes} writes ({bytes}); the logs are whole");
        return Err(Fault::new(FaultClass::Refused, "consent.missing", message)
            .affects("the image, for good: keep a copy if you need what it holds now")
            .spares("everything: nothing was written")
            .remedy("give --yes"));
    }
    let done = ready.apply(&mut |done, all| {
        applied.tell(done, all);
        !stop.load(Ordering::Relaxed)
    })?;
    setting.write(|out| {
        let logs: Vec<_> = ready.logs().collect();
        let doc = Doc::Map(vec![
            ("image", Doc::text(&image.display().to_string())),
            (
                "logs",
                Doc::list(&logs, |(path, header)| {
                    Doc::Map(vec![
                        ("path", Doc::text(&path.display().to_string())),
                        ("id", header.id.to_string().into()),
                    ])
                }),
            ),
            ("writes", done.writes.into()),
            ("bytes", done.bytes.into()),
            ("read_back_bytes", done.compared.into()),
            ("to", Doc::time(logs.last().map_or(0, |(_, header)| header.modified.micros()))),
        ]);
        output::one(out, setting.style, doc, |out, _| {
            writeln!(out, "{name}: {} logs were put onto it", logs.len())?;
            let (bytes, compared) = (human::bytes(Some(done.bytes)), human::bytes(Some(done.compared)));
            writeln!(out, "  writes    {} ({bytes})", done.writes)?;
            writeln!(out, "  checked   {compared} were read back and compared")?;
            match logs.last() {
                Some((_, header)) => writeln!(out, "  as of     {}, to the second", header.modified),
                None => Ok(()),
            }
        })
    })
}
