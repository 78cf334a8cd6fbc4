//! The terminal console.
use continuum_daemon::lab::LabOptions;
use continuum_model::fault::Fault;
/// What the command line says about looks.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Colours may be used.
    pub colour: bool,
}
/// On a lab.
pub fn on_lab(_: LabOptions, _: Options) -> Result<(), Fault> {
    Ok(())
}
/// On a vault.
pub fn on_target(_: crate::profile::Choice, _: Options) -> Result<(), Fault> {
    Ok(())
}
