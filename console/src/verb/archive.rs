//! `archive`: a replica store with its whole history into object storage.
//!
//! Lives here: the words and the answer. What an archive is: the replica store's business; no vault is asked.

use super::Setting;
use super::args::Archive;
use super::export::stop_on_signals;
use super::output::doc::Doc;
use super::output::{self, human};
use super::progress::Percent;
use continuum_daemon::bare::archive;
use continuum_model::fault::Fault;
use continuum_model::untrusted::shown;
use std::sync::atomic::Ordering;

/// Runs `archive`.
pub fn run(setting: &Setting, wanted: &Archive) -> Result<(), Fault> {
    let stop = stop_on_signals();
    let mut percent = Percent::new("archived", setting.style.format.for_programs());
    let (machine, archived) = archive::run(&wanted.store, &wanted.address, &mut |done, all| {
        percent.tell(done, all);
        !stop.load(Ordering::Relaxed)
    })?;
    setting.write(|out| {
        let doc = Doc::Map(vec![
            ("address", Doc::text(&wanted.address)),
            ("machine", machine.to_string().into()),
            ("version", archived.version.into()),
            ("bytes", archived.bytes.into()),
            ("sent_bytes", archived.sent_bytes.into()),
            ("removed_parts", archived.removed.into()),
        ]);
        output::one(out, setting.style, doc, |out, _| {
            writeln!(out, "{}: machine {machine}, version {}", shown(&wanted.address), archived.version)?;
            let (all, sent) = (human::bytes(Some(archived.bytes)), human::bytes(Some(archived.sent_bytes)));
            writeln!(out, "  holds     {all}, of which {sent} had to travel")
        })
    })
}
