//! How an error ends a verb: in words on standard error, with `-o json` as one JSON object there, and
//! with the exit code of its class.

use super::order::INTERRUPTED;
use super::output::json;
use super::{Setting, contract, errors_in_json, wants_json};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// The exit code of a command that a person stopped: what shells expect of Ctrl-C.
const EXIT_INTERRUPTED: u8 = 130;

/// Writes a fault and gives its exit code.
pub fn report(fault: &Fault, setting: &Setting) -> ExitCode {
    write(fault, errors_in_json(setting.style.format), setting.colour_err);
    ExitCode::from(exit_code(fault))
}

/// The exit code of a fault.
pub fn exit_code(fault: &Fault) -> u8 {
    if fault.code == INTERRUPTED { EXIT_INTERRUPTED } else { fault.class.exit_code() }
}

/// What the parser of the command line has to say: help and version are answers, the rest is wrong usage.
pub fn usage(error: &clap::Error, words: &[OsString]) -> ExitCode {
    use clap::error::ErrorKind;
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let text = error.render();
        let allowed = super::Style::allowed(false) && io::stdout().is_terminal();
        let text = if allowed { text.ansi().to_string() } else { text.to_string() };
        let _ = io::stdout().write_all(text.as_bytes());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    if wants_json(words) {
        let message = text.lines().next().unwrap_or_default();
        let message = message.strip_prefix("error: ").unwrap_or(message);
        let fault = Fault::new(FaultClass::Usage, "usage", shown(message))
            .spares("nothing was changed")
            .remedy("see `continuum --help`, or --help of the verb");
        write(&fault, true, false);
    } else {
        // The words stand in the text as they were given.
        let mut err = io::stderr().lock();
        for line in text.lines() {
            let _ = writeln!(err, "{}", shown(line));
        }
    }
    ExitCode::from(FaultClass::Usage.exit_code())
}

fn write(fault: &Fault, as_json: bool, colour: bool) {
    let mut err = io::stderr().lock();
    let _ =
        if as_json { json::write(&mut err, &contract::fault(fault)) } else { words(&mut err, fault, colour) };
}

fn words(out: &mut dyn Write, fault: &Fault, colour: bool) -> io::Result<()> {
    let (begin, end) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    writeln!(out, "{begin}error:{end} {} [{}]", shown(&fault.message), shown(&fault.code))?;
    for (label, text) in [
        ("affected", &fault.affected),
        ("not affected", &fault.unaffected),
        ("what to do", &fault.remedy),
        ("correlation", &fault.correlation),
    ] {
        if !text.is_empty() {
            writeln!(out, "  {label}: {}", shown(text))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_exit_code() {
        for (class, code) in [
            (FaultClass::Failed, 1),
            (FaultClass::Usage, 2),
            (FaultClass::NotReady, 3),
            (FaultClass::NotFound, 3),
            (FaultClass::Conflict, 3),
            (FaultClass::NotConnected, 4),
            (FaultClass::Refused, 5),
            (FaultClass::WaitingForApproval, 6),
            (FaultClass::Configuration, 78),
        ] {
            assert_eq!(exit_code(&Fault::new(class, "x", "y")), code);
        }
        assert_eq!(exit_code(&Fault::new(FaultClass::Failed, INTERRUPTED, "y")), 130);
    }

    #[test]
    fn words_say_everything_and_drive_nothing() {
        let fault = Fault::new(FaultClass::Failed, "a.b", "it \u{1b}[2Jbroke\n")
            .affects("this")
            .spares("that")
            .remedy("do")
            .correlated("c1");
        let mut out = Vec::new();
        words(&mut out, &fault, false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "error: it ␛[2Jbroke␊ [a.b]\n  affected: this\n  not affected: that\n  what to do: do\n  correlation: c1\n"
        );
    }
}
