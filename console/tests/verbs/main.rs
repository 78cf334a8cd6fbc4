//! The verbs as a person or a script runs them: the real binary, against a vault of the test's own.

#![allow(clippy::result_large_err, reason = "faults are made once")]

#[path = "../fake/mod.rs"]
mod fake;

mod answers;
mod danger;
mod errors;
mod following;
mod hostile;
mod reports;
mod sessions;

use fake::FakeVault;
use serde_json::Value;
use std::process::{Command, Stdio};

/// What a verb answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        self.out_json()
    }
    #[track_caller]
    pub(crate) fn out_json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
    #[track_caller]
    pub(crate) fn fault(&self) -> Value {
        serde_json::from_str(&self.err).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A command with an environment of its own: no profile, no vault, no terminal.
pub(crate) fn command(home: &std::path::Path) -> Command {
    let mut command = Command::new(fake::binary());
    command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("CONTINUUM_CONFIG_DIR", home.join("config")).env("XDG_DATA_HOME", home.join("data"));
    command.stdin(Stdio::null());
    command
}

pub(crate) fn finish(mut command: Command) -> Answer {
    let output = command.output().expect("the verb runs");
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Runs a verb against this vault.
pub(crate) fn run(vault: &FakeVault, words: &[&str]) -> Answer {
    let mut command = command(vault.path());
    command.env("CONTINUUM_DIR", vault.path()).args(words);
    finish(command)
}
