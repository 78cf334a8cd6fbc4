//! The words of the lab.

use clap::{Args, Subcommand, ValueEnum};
use continuum_model::units::Bytes;

/// What runs on a machine of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Guest {
    /// A program with a crash-safe ledger
    #[default]
    Process,
    /// A real Linux in QEMU
    Qemu,
    /// Nothing: any NBD client may write
    None,
}

impl Guest {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Qemu => "qemu",
            Self::None => "none",
        }
    }
}

/// `lab`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Lab {
    /// What to do with a lab; nothing starts it (again).
    #[command(subcommand)]
    pub action: Option<LabAction>,
    /// How many machines a new lab has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub machines: Option<u32>,
    /// What runs on them
    #[arg(long, value_enum)]
    pub guests: Option<LabGuests>,
    /// No console: run until `continuum lab stop`
    #[arg(long)]
    pub headless: bool,
    /// From which all choices of the lab's workload follow
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What runs on the machines that a new lab has from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LabGuests {
    /// Programs with a crash-safe ledger
    Process,
    /// Real Linux in QEMU
    Qemu,
}

/// What can be done with a lab.
#[derive(Debug, Subcommand)]
pub enum LabAction {
    /// Its processes
    Status,
    /// End all its processes; its state stays
    Stop,
    /// Stop it and remove what it made
    Reset,
    /// Add a machine
    #[command(after_help = "\
Examples:
  continuum lab add disk-01 --disk 64M --guest none --protect
  continuum lab add db-02 --disk 128M --disk 64M --protect")]
    Add(LabAdd),
}

/// `lab add`
#[derive(Debug, Args)]
pub struct LabAdd {
    /// What to call it
    pub name: String,
    /// The size of a disk, such as 64M; once for each disk
    #[arg(long = "disk", required = true, value_name = "SIZE", value_parser = size)]
    pub disks: Vec<u64>,
    /// What runs on it
    #[arg(long, value_enum, default_value_t)]
    pub guest: Guest,
    /// Protect it at once
    #[arg(long)]
    pub protect: bool,
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<Bytes>().map(|bytes| bytes.0).map_err(|error| error.to_string())
}
