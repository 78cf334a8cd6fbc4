//! `branch`: what the disks of an old source held before the way home overwrote them.
//!
//! Lives here: the words and the answer. The files are the mobility agent's business; no vault is asked.

use super::Setting;
use super::args::{Branch, BranchAct};
use super::consent::{self, AtTerminal};
use super::output::doc::Doc;
use super::output::{self, human};
use continuum_daemon::branch::{self, Found};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use std::io::{self, Write};
use std::path::Path;

/// Runs `branch`.
pub fn run(setting: &Setting, wanted: &Branch) -> Result<(), Fault> {
    match &wanted.act {
        BranchAct::List { dir } => list(setting, dir),
        BranchAct::Export { dir, name, disk, onto } => {
            let found = named(dir, name)?;
            let blocks = branch::lay_over(&found.path, *disk, onto).map_err(|error| {
                fault(
                    "branch.export",
                    format!("branch {} could not be laid over {}: {error}", shown(name), onto.display()),
                )
                .affects("the image, which may hold a part of it")
                .spares("the branch, and the machine's disks")
                .remedy("mend what is named and order it again: doing it twice does no harm")
            })?;
            setting.say(&format!("{blocks} blocks of 64 KiB are as they were"));
            Ok(())
        }
        BranchAct::Drop { dir, name, consent } => {
            let found = named(dir, name)?;
            let report = pb::ReadinessReply {
                ready: true,
                summary: format!(
                    "branch {name} of {} is removed; what is in it is nowhere else",
                    human::bytes(Some(found.bytes))
                ),
                confirm: name.clone(),
                destroys: true,
                ..Default::default()
            };
            consent::obtain("drop branch", name, &report, setting.yes, consent, &mut AtTerminal)?;
            std::fs::remove_file(&found.path).map_err(|error| {
                fault("branch.drop", format!("{}: {error}", found.path.display())).spares("the branch")
            })
        }
    }
}

fn list(setting: &Setting, dir: &Path) -> Result<(), Fault> {
    let found =
        branch::list(dir).map_err(|error| fault("branch.list", format!("{}: {error}", dir.display())))?;
    let mut branches = Vec::new();
    for branch in found {
        match branch {
            Ok(branch) => branches.push(branch),
            Err((path, why)) => setting.say(&format!("{} is left alone: {why}", path.display())),
        }
    }
    let docs: Vec<Doc> = branches.iter().map(told).collect();
    setting.write(|out| match setting.style.format {
        output::Format::Table | output::Format::Wide => text(out, &branches),
        output::Format::Json => output::json::write(out, &Doc::List(docs)),
        output::Format::Yaml => output::yaml::write(out, &Doc::List(docs)),
        output::Format::Csv => output::csv::write(out, &docs, docs.first().unwrap_or(&Doc::Null)),
    })
}

fn named(dir: &Path, name: &str) -> Result<Found, Fault> {
    let found =
        branch::list(dir).map_err(|error| fault("branch.list", format!("{}: {error}", dir.display())))?;
    found.into_iter().flatten().find(|branch| branch.name == name).ok_or_else(|| {
        Fault::new(
            FaultClass::NotFound,
            "branch.unknown",
            format!("there is no branch {} in {}", shown(name), dir.display()),
        )
        .spares("nothing was changed")
        .remedy(format!("see `continuum branch list {}`", dir.display()))
    })
}

fn told(found: &Found) -> Doc {
    Doc::Map(vec![
        ("name", Doc::text(&found.name)),
        ("machine", Doc::text(&found.about.machine)),
        ("made", Doc::text(&found.about.made)),
        ("bytes", found.bytes.into()),
        ("blocks", Doc::list(&found.blocks, |blocks| (*blocks).into())),
    ])
}

fn text(out: &mut dyn Write, branches: &[Found]) -> io::Result<()> {
    if branches.is_empty() {
        return writeln!(out, "no branches");
    }
    for found in branches {
        writeln!(
            out,
            "{}: {}, made {}",
            shown(&found.name),
            human::bytes(Some(found.bytes)),
            shown(&found.about.made)
        )?;
        for (disk, blocks) in found.blocks.iter().enumerate() {
            writeln!(out, "  disk {disk:<4} {blocks} blocks of 64 KiB")?;
        }
    }
    Ok(())
}

fn fault(code: &'static str, message: String) -> Fault {
    Fault::new(FaultClass::Failed, code, message).affects("this request").spares("the machine's disks")
}
