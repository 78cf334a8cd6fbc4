//! The terminal console.
//!
//! - [`core`]: what is known and how messages change it; pure
//! - [`cmd`]: the one registry of actions, and the live key map
//! - [`ui`]: drawing a state; changes nothing
//! - [`theme`]: colours and marks from TOML
//! - [`app`]: the loop: messages in, effects out, pictures when something changed
//! - [`settings`]: the operator's own key map and themes, read again when they change
//! - [`input`]: keys as they arrive over a slow line
//! - [`term`]: taking the terminal over and giving it back, whatever happens

pub mod app;
pub mod cmd;
pub mod core;
pub mod input;
pub mod settings;
pub mod term;
pub mod theme;
pub mod ui;

use crate::link;
use crate::profile::Choice;
use continuum_daemon::lab::LabOptions;
use continuum_model::fault::{Fault, FaultClass};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the command line says about looks.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Colours may be used.
    pub colour: bool,
}

/// The console on a lab, started here where none runs in its directory.
pub fn on_lab(options: LabOptions, looks: Options) -> Result<(), Fault> {
    let choice = Choice { dir: Some(options.dir.clone()), ..Choice::default() };
    run(link::opener(choice), looks, Some(options))
}

/// The console on a vault.
pub fn on_target(choice: Choice, looks: Options) -> Result<(), Fault> {
    run(link::opener(choice), looks, None)
}

fn run(open: link::Opener, looks: Options, lab: Option<LabOptions>) -> Result<(), Fault> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Fault::new(FaultClass::Failed, "console.terminal", format!("{what}: {error}"))
            .spares("the vault and all jobs, which go on")
            .remedy("use the verbs: `continuum get machines`")
    };
    if !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err(failed("the console needs a terminal", &"standard output is none"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| failed("threads could not be started", &error))?;
    let mut terminal =
        term::Terminal::take().map_err(|error| failed("the terminal could not be taken over", &error))?;
    let stop = CancellationToken::new();
    let ended = runtime.block_on(app::run(&mut terminal, open, looks, lab, stop.clone()));
    drop(terminal);
    stop.cancel();
    // A lab of ours ends in good order, within its own deadlines.
    runtime.shutdown_timeout(Duration::from_secs(10));
    ended.map_err(|error| failed("the terminal failed", &error))
}
