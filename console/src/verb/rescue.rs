//! `rescue`: disks of replica stores, as of any moment, served over NBD until a person ends it.
//!
//! Lives here: the words and the answer. Serving is the master target's business; no vault is asked.

use super::Setting;
use super::args::Rescue;
use super::export::{moment, moment_in_words, told_moment};
use super::output::doc::Doc;
use super::output::{self, human};
use continuum_daemon::bare::rescue::{self, Place, Served};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{self, Write};
use std::path::PathBuf;

/// Runs `rescue`.
pub fn run(setting: &Setting, wanted: &Rescue) -> Result<(), Fault> {
    continuum_daemon::log::start(false);
    let at = moment(&wanted.at)?;
    let place = match (&wanted.socket, wanted.tcp) {
        (Some(path), _) => Place::Unix(path.clone()),
        (None, Some(address)) => Place::Tcp(address),
        (None, None) => Place::Unix(own_socket()),
    };
    // Caught before anything is served: from then on every end is in good order.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(|error| {
        Fault::new(FaultClass::Failed, "rescue.signals", format!("Ctrl-C could not be arranged for: {error}"))
            .spares("nothing was opened")
            .remedy("try again")
    })?;
    let rescue = rescue::Rescue::start(&wanted.stores, &at, &place, wanted.scratch.as_deref())?;
    let docs = rescue.served().iter().map(told).collect();
    setting.write(|out| {
        let doc = Doc::List(docs);
        match setting.style.format {
            output::Format::Table | output::Format::Wide => text(out, rescue.served()),
            output::Format::Json => output::json::write(out, &doc),
            output::Format::Yaml => output::yaml::write(out, &doc),
            output::Format::Csv => {
                let Doc::List(docs) = doc else { return Ok(()) };
                output::csv::write(out, &docs, docs.first().unwrap_or(&Doc::Null))
            }
        }
    })?;
    setting.say("serving; Ctrl-C ends it");
    let _ = signals.forever().next();
    rescue.stop();
    setting.say("ended; the stores are as they were");
    Ok(())
}

/// A socket in the directory that the system has for such.
fn own_socket() -> PathBuf {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    dir.join(format!("continuum-rescue-{}.sock", std::process::id()))
}

fn told(served: &Served) -> Doc {
    Doc::Map(vec![
        ("store", Doc::text(&served.store.display().to_string())),
        ("machine", served.machine.to_string().into()),
        ("disk", u64::from(served.disk.index.0).into()),
        ("size_bytes", served.disk.size.into()),
        ("point", told_moment(&served.moment)),
        ("export", Doc::text(&served.export)),
        ("endpoint", Doc::text(&served.uri)),
        ("writable", served.writable.into()),
    ])
}

fn text(out: &mut dyn Write, served: &[Served]) -> io::Result<()> {
    let mut last = None;
    for disk in served {
        if last != Some(&disk.store) {
            last = Some(&disk.store);
            writeln!(out, "{}: machine {}", shown(&disk.store.display().to_string()), disk.machine)?;
            writeln!(out, "  moment    {}", moment_in_words(&disk.moment))?;
            let manner =
                if disk.writable { "writable; what is written is gone at the end" } else { "read only" };
            writeln!(out, "  manner    {manner}")?;
        }
        let size = human::bytes(Some(disk.disk.size));
        writeln!(out, "  disk {:<4} {size}  {}", disk.disk.index, shown(&disk.uri))?;
    }
    Ok(())
}
