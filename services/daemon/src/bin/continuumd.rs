//! `continuumd`: the services, headless.

use std::process::ExitCode;

fn main() -> ExitCode {
    continuum_daemon::command::main(std::env::args_os())
}
