//! `lab`, `role`, and the console itself where no verb is given.
//!
//! Lives here: handing this process over. What a lab is and does lives in `continuum-daemon`.

use super::Setting;
use super::args::{Guest, Lab, LabAction, Role, RoleKind};
use continuum_daemon::control::{Answer, Ask, NewMachine};
use continuum_daemon::lab::{self, LabOptions};
use continuum_daemon::role::GuestConfig;
use continuum_daemon::{log, role};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Machines of a new lab, unless told otherwise.
const MACHINES: u32 = 4;

fn dir(setting: &Setting) -> Result<PathBuf, Fault> {
    setting.choice.dir.clone().map_or_else(lab::default_dir, Ok)
}

/// Does what `continuum lab …` says.
pub fn run(setting: &Setting, words: &Lab) -> Result<(), Fault> {
    let dir = dir(setting)?;
    match &words.action {
        Some(LabAction::Status) => status(setting, &lab::ask(&dir, &Ask::Status)?),
        Some(LabAction::Stop) => {
            lab::ask(&dir, &Ask::Stop)?;
            wait_stopped(&dir)?;
            setting.say("the lab is stopped; its state is kept");
            Ok(())
        }
        Some(LabAction::Reset) => {
            lab::reset(&dir)?;
            setting.say("what the lab made is removed");
            Ok(())
        }
        Some(LabAction::Add(add)) => {
            let machine = NewMachine {
                name: add.name.clone(),
                disks: add.disks.clone(),
                guest: add.guest.name().to_owned(),
                protect: add.protect,
            };
            status(setting, &lab::ask(&dir, &Ask::Add(machine))?)
        }
        None => {
            let options = LabOptions {
                dir,
                machines: words.machines.unwrap_or(MACHINES),
                guests: words.guests.name().into(),
                accel: words.accel.clone(),
                kernel: words.kernel.clone(),
            };
            if words.headless {
                headless(options)
            } else {
                crate::tui::on_lab(options, setting.style_options())
            }
        }
    }
}

/// The console: on the profile or directory that is meant, else on the lab.
pub fn console(setting: &Setting) -> Result<(), Fault> {
    let configured = setting.choice.profile.is_some() || crate::profile::store::current()?.is_some();
    if configured {
        return crate::tui::on_target(setting.choice.clone(), setting.style_options());
    }
    let options = LabOptions {
        dir: dir(setting)?,
        machines: MACHINES,
        guests: Guest::default().name().into(),
        accel: None,
        kernel: None,
    };
    crate::tui::on_lab(options, setting.style_options())
}

/// Becomes a service or a guest.
pub fn role(words: &Role) -> Result<(), Fault> {
    log::start(false);
    match &words.role {
        RoleKind::Service { config, with_parent } => role::main(role::read(config)?, *with_parent),
        RoleKind::Guest { disks, heartbeat, rate, format, hook, machine, with_parent } => {
            let config = GuestConfig {
                disks: disks.clone(),
                heartbeat: heartbeat.clone(),
                rate: *rate,
                format: *format,
                hook: hook.clone(),
            };
            role::guest(&config, machine.as_deref(), *with_parent)
        }
    }
}

fn headless(options: LabOptions) -> Result<(), Fault> {
    log::start(false);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| {
        Fault::new(FaultClass::Failed, "runtime", format!("threads could not be started: {error}"))
    })?;
    let ended = runtime.block_on(async {
        let stop = CancellationToken::new();
        let signals = stop.clone();
        tokio::spawn(async move {
            role::signalled().await;
            signals.cancel();
        });
        let (stages, mut told) = mpsc::channel::<lab::Stage>(64);
        tokio::spawn(async move {
            while let Some(stage) = told.recv().await {
                eprintln!("[{}/{}] {}", stage.done, stage.total, shown(&stage.text));
            }
        });
        lab::run(options, stages, stop).await
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}

fn wait_stopped(dir: &std::path::Path) -> Result<(), Fault> {
    let socket = lab::socket(dir)?;
    for _ in 0..400 {
        if !socket.exists() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    Err(Fault::new(FaultClass::Failed, "lab.stop", "the lab did not end within 20 s")
        .remedy("see its processes with `continuum lab status`"))
}

fn status(setting: &Setting, answer: &Answer) -> Result<(), Fault> {
    if setting.style.format.for_programs() {
        let text = serde_json::to_string_pretty(answer).unwrap_or_default();
        return setting.write(|out| writeln!(out, "{text}"));
    }
    setting.write(|out| {
        writeln!(out, "lab in {}: {}", shown(&answer.dir), answer.state)?;
        for process in &answer.processes {
            let pid = if process.pid == 0 { "starting".to_owned() } else { process.pid.to_string() };
            writeln!(
                out,
                "  {:<15} {:<12} pid {:<9} restarts {}",
                process.role,
                shown(&process.name),
                pid,
                process.restarts
            )?;
        }
        Ok(())
    })
}
