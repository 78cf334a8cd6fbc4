//! The command line of `continuumd`.

use continuum_model::fault::FaultClass;
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs `continuumd` to its end.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().skip(1).collect();
    match words.split_first() {
        // As in `continuum role …`: a lab may be run by either binary.
        Some((role, rest)) if role == "role" => crate::role::main(rest),
        Some(_) | None => {
            eprintln!("usage: continuumd role ROLE --dir FOLDER");
            ExitCode::from(FaultClass::Usage.exit_code())
        }
    }
}
