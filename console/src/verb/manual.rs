//! Completions and manual pages, made from the one description of the command line.

use super::Setting;
use super::args::Cli;
use clap::CommandFactory;
use clap_complete::Shell;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use std::path::Path;

/// Completions for a shell, on standard output.
pub fn completions(setting: &Setting, shell: Shell) -> Result<(), Fault> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "continuum", &mut text);
    setting.write(|out| out.write_all(&text))
}

/// The manual page on standard output, or every page into `--dir`.
pub fn pages(setting: &Setting) -> Result<(), Fault> {
    let Some(dir) = &setting.dir else {
        let mut text = Vec::new();
        let written = clap_mangen::Man::new(Cli::command()).render(&mut text);
        written.map_err(|error| failed("the page", &error))?;
        return setting.write(|out| out.write_all(&text));
    };
    let name = dir.display().to_string();
    std::fs::create_dir_all(dir).map_err(|error| failed(&name, &error))?;
    let count = write_pages(dir).map_err(|error| failed(&name, &error))?;
    setting.write(|out| writeln!(out, "{count} pages in {}", shown(&name)))
}

fn write_pages(dir: &Path) -> std::io::Result<usize> {
    clap_mangen::generate_to(Cli::command(), dir)?;
    let pages = std::fs::read_dir(dir)?.flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("continuum") && name.ends_with(".1")
    });
    Ok(pages.count())
}

/// What `continuum` alone says where there is no terminal for a console.
pub fn short_help() -> Result<(), Fault> {
    Err(Fault::new(FaultClass::Usage, "usage.verb", "no verb was given, and the console needs a terminal")
        .spares("nothing was changed")
        .remedy("see `continuum --help` for the verbs"))
}

fn failed(what: &str, error: &std::io::Error) -> Fault {
    Fault::new(FaultClass::Failed, "manual.failed", format!("{} could not be written: {error}", shown(what)))
        .remedy("name a directory of yours with --dir")
}
