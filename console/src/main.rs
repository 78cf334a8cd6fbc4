//! The binary `continuum`: the terminal console, the same verbs as commands, and, started again under
//! another role, the services of a lab.
//!
//! Lives here: what must happen before anything else, and the way to the verbs. Everything else lives in
//! the library.

fn main() -> std::process::ExitCode {
    if let Some(ended) = continuum_daemon::role::thaw_watchdog(std::env::args_os())
        .or_else(continuum_daemon::role::freeze_keeper)
    {
        return ended;
    }
    continuum_wire::tls::install_provider();
    continuum_console::verb::main(std::env::args_os())
}
