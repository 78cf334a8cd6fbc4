//! The lab's verbs: start it, ask it, end it. What a lab is belongs to the daemon; here are its words.

use super::Setting;
use super::args::{Guest, Lab, LabAction, LabAdd, LabGuests};
use super::consent::{AtTerminal, Person};
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, human};
use crate::profile;
use continuum_daemon::lab::{self, AddMachine, LabOptions, ProcessStatus, Progress, Stage, Status};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Messages of a start that may wait to be told; more are left out.
const PROGRESS_MAX: usize = 64;

/// Runs `lab …`.
pub async fn run(setting: &Setting, lab: &Lab) -> Result<(), Fault> {
    let dir = dir(setting)?;
    match &lab.action {
        None => headless(setting, options(lab, dir)).await,
        Some(LabAction::Status) => status(setting, &dir).await,
        Some(LabAction::Stop) => {
            lab::stop(&dir).await?;
            setting.say(&format!("the lab in {} is stopped; what it holds stays", dir.display()));
            Ok(())
        }
        Some(LabAction::Reset) => reset(setting, &dir).await,
        Some(LabAction::Add(wanted)) => add(setting, &dir, wanted).await,
    }
}

/// Which lab is meant.
fn dir(setting: &Setting) -> Result<PathBuf, Fault> {
    if setting.choice.profile.is_some() && setting.choice.dir.is_none() {
        return Err(Fault::new(
            FaultClass::Usage,
            "usage.vault",
            "a profile names a vault elsewhere, and a lab is here",
        )
        .spares("nothing was changed")
        .remedy("leave out --profile (and CONTINUUM_PROFILE), or name the lab with --dir"));
    }
    let dir = setting.choice.dir.clone().or_else(profile::default_lab);
    dir.ok_or_else(|| {
        Fault::new(FaultClass::Configuration, "profile.home", "there is no home directory for a lab")
            .remedy("set HOME, or name a directory with --dir")
    })
}

/// What a new lab is made of.
pub fn options(lab: &Lab, dir: PathBuf) -> LabOptions {
    LabOptions {
        machines: lab.machines,
        guests: lab.guests.map(|guests| match guests {
            LabGuests::Process => Guest::Process.name().to_owned(),
            LabGuests::Qemu => Guest::Qemu.name().to_owned(),
        }),
        seed: lab.seed,
        ..LabOptions::in_dir(dir)
    }
}

/// Runs a lab in this process until it is stopped, told to end, or killed.
async fn headless(setting: &Setting, options: LabOptions) -> Result<(), Fault> {
    let logs = options.dir.join("logs/lab.log");
    let stop = continuum_daemon::signals::stop_token(None)?;
    let (tell, mut told) = mpsc::channel::<Progress>(PROGRESS_MAX);
    let name = options.dir.display().to_string();
    let running = lab::run(options, tell, stop);
    tokio::pin!(running);
    let mut logging = false;
    loop {
        tokio::select! {
            result = &mut running => return result,
            Some(progress) = told.recv() => {
                // From here on the folder is the lab's own.
                if progress.stage > Stage::Preparing && !logging {
                    logging = true;
                    if let Err(error) = continuum_daemon::logs::to_file(&logs) {
                        setting.say(&format!("the lab goes on without a log: {}: {error}", logs.display()));
                    }
                }
                setting.say(&line(&progress));
                if progress.stage == Stage::Ready {
                    setting.say(&format!("the lab in {name} runs; `continuum lab stop` ends it"));
                }
            }
        }
    }
}

/// A message of a start as a line.
pub fn line(progress: &Progress) -> String {
    let stage = match progress.stage {
        Stage::Preparing => "preparing",
        Stage::Vault => "vault",
        Stage::Enrolling => "enrolling",
        Stage::Protecting => "protecting",
        Stage::Ready => "ready",
        Stage::Stopping => "stopping",
    };
    let count =
        if progress.total > 1 { format!(" ({}/{})", progress.done, progress.total) } else { String::new() };
    format!("{stage}{count}: {}", progress.detail)
}

async fn status(setting: &Setting, dir: &Path) -> Result<(), Fault> {
    let status = lab::status(dir).await?;
    let doc = told(&status);
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, wide| {
            let state = if status.running { "runs" } else { "does not run" };
            writeln!(out, "The lab in {} {state}.", shown(&status.dir.display().to_string()))?;
            let mut table = Table::new(&["ROLE", "NAME", "STATE", ">PID", ">STARTS", "?WHY"], "")
                .whole(wide)
                .fit(setting.style.room);
            for process in &status.processes {
                table.row([
                    process.role.as_str().into(),
                    process.name.as_str().into(),
                    Cell::new(state_of(process)),
                    process.pid.map_or_else(String::new, |pid| pid.to_string()).into(),
                    process.starts.to_string().into(),
                    process.reason.as_str().into(),
                ]);
            }
            table.write(out, setting.style.colour)
        })
    })
}

const fn state_of(process: &ProcessStatus) -> &'static str {
    match (process.pid, process.up) {
        (Some(_), true) => "up",
        (Some(_), false) => "starting",
        (None, _) => "down",
    }
}

fn told(status: &Status) -> Doc {
    let process = |process: &ProcessStatus| {
        Doc::Map(vec![
            ("role", Doc::text(&process.role)),
            ("name", Doc::text(&process.name)),
            ("state", state_of(process).into()),
            ("pid", process.pid.map(i64::from).into()),
            ("starts", process.starts.into()),
            ("reason", Doc::text(&process.reason)),
        ])
    };
    Doc::Map(vec![
        ("dir", Doc::text(&status.dir.display().to_string())),
        ("running", status.running.into()),
        ("supervisor", status.supervisor.map(i64::from).into()),
        ("processes", Doc::list(&status.processes, process)),
    ])
}

/// All history of the lab's machines goes: a person says yes, or `--yes` does.
async fn reset(setting: &Setting, dir: &Path) -> Result<(), Fault> {
    let name = shown(&dir.display().to_string());
    lab::status(dir).await?;
    if !setting.yes {
        let refused = |why: &str| {
            Fault::new(
                FaultClass::Refused,
                "consent.missing",
                format!("the lab in {name} was not removed: {why}"),
            )
            .spares("nothing was changed")
            .remedy("give --yes, or run it at a terminal and type yes")
        };
        let question = format!(
            "The lab in {name} is stopped and removed, with its machines and their history.\nGo on? Type yes: "
        );
        let answer =
            tokio::task::spawn_blocking(move || AtTerminal.is_there().then(|| AtTerminal.ask(&question)))
                .await
                .map_err(|error| refused(&error.to_string()))?;
        match answer {
            None => return Err(refused("nobody can be asked here")),
            Some(Ok(answer)) if answer == "yes" => {}
            Some(Ok(_)) => return Err(refused("the answer was another one")),
            Some(Err(error)) => return Err(refused(&error.to_string())),
        }
    }
    lab::reset(dir).await?;
    setting.say(&format!("the lab in {} is gone", dir.display()));
    Ok(())
}

async fn add(setting: &Setting, dir: &Path, wanted: &LabAdd) -> Result<(), Fault> {
    let machine = AddMachine {
        name: wanted.name.clone(),
        disks: wanted.disks.clone(),
        guest: wanted.guest.name().to_owned(),
        protect: wanted.protect,
    };
    let added = lab::add(dir, machine).await?;
    let disk = |(name, bytes, endpoint): &(String, u64, String)| {
        Doc::Map(vec![
            ("name", Doc::text(name)),
            ("size_bytes", (*bytes).into()),
            ("endpoint", Doc::text(endpoint)),
        ])
    };
    let doc = Doc::Map(vec![("name", Doc::text(&added.name)), ("disks", Doc::list(&added.disks, disk))]);
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, _| {
            writeln!(out, "{} is there:", shown(&added.name))?;
            for (name, bytes, endpoint) in &added.disks {
                writeln!(
                    out,
                    "  disk {} ({}) at {}",
                    shown(name),
                    human::bytes(Some(*bytes)),
                    shown(endpoint)
                )?;
            }
            Ok(())
        })
    })
}
