//! A guest of the lab as a program of its own, for tests of this crate. Installed, `continuum role guest`
//! is the same.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    match words.as_slice() {
        [role, guest, flag, dir] if role == "role" && guest == "guest" && flag == "--dir" => {
            ExitCode::from(continuum_fabric::lab::guest::run(Path::new(dir)))
        }
        _ => {
            eprintln!("usage: continuum-guest role guest --dir FOLDER");
            ExitCode::from(2)
        }
    }
}
