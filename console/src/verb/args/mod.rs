//! The command line: every verb, flag and example. What `--help`, the man pages and the completions say
//! is written here, once.
//!
//! Lives here: the verbs, and what is common to them. In `order`, `session` and `lab`: the words
//! of each.

mod lab;
mod order;
mod session;

pub use lab::*;
pub use order::*;
pub use session::*;

use super::output::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// What every help ends with.
const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed
  2   wrong usage
  3   not ready, not found, or changed meanwhile: nothing was done
  4   not connected
  5   refused
  6   waiting for another person's approval
  78  configuration";

/// Continuum keeps a running copy of whole machines at another site and brings them up there at any moment of the past.
///
/// Without a verb it opens the console. With a verb it does one thing and exits.
#[derive(Debug, Parser)]
#[command(
    name = "continuum",
    version,
    max_term_width = 100,
    subcommand_help_heading = "Verbs",
    arg_required_else_help = false,
    after_help = EXIT_CODES,
    after_long_help = "\
Examples:
  continuum                            the console (the lab, where nothing is configured)
  continuum get machines               is everything recoverable right now?
  continuum readiness web-01           what would a drill of web-01 do?
  continuum test-failover web-01       bring a copy of web-01 up, isolated, and prove it
  continuum cleanup web-01             end that drill
  continuum get machines -o json | jq '.[].rpo_seconds'

A name that begins with a dash goes behind `--`:
  continuum describe machine -- -rf

Exit codes:
  0   done
  1   failed
  2   wrong usage
  3   not ready, not found, or changed meanwhile: nothing was done
  4   not connected
  5   refused
  6   waiting for another person's approval
  78  configuration"
)]
pub struct Cli {
    /// What to do; nothing opens the console.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// Flags of every verb.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of every verb.
#[derive(Debug, Clone, Default, Args)]
pub struct Common {
    /// The vault of this profile (see `continuum profiles`)
    #[arg(long, global = true, value_name = "NAME", help_heading = "Which vault")]
    pub profile: Option<String>,
    /// The vault at this address, with the profile's credentials
    #[arg(long, global = true, value_name = "HOST:PORT", help_heading = "Which vault")]
    pub connect: Option<String>,
    /// The installation (lab) in this directory [env: CONTINUUM_DIR]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Which vault")]
    pub dir: Option<PathBuf>,
    /// How to write the answer: table, wide, json, yaml or csv
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table, hide_possible_values = true, help_heading = "Output")]
    pub output: Format,
    /// Do not ask; where data can be lost, --confirm NAME is needed, too
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// No colour, on a terminal either (NO_COLOR does the same)
    #[arg(long, global = true, help_heading = "Output")]
    pub no_color: bool,
}

/// One thing to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List what there is, worst first
    #[command(after_help = "\
Examples:
  continuum get machines
  continuum get machines web-01 -o json
  continuum get points web-01 --since 2026-11-23T03:00:00Z
  continuum get alerts -o wide
  continuum get machines --watch -o json           one line of JSON for every change")]
    Get(Get),
    /// Tell everything about one thing
    #[command(after_help = "\
Examples:
  continuum describe machine web-01
  continuum describe job 01920b5e-7a3c-7cc1-9a37-3e5b0f6d2c11
  continuum describe machine -- -rf                a name that begins with a dash")]
    Describe(Describe),
    /// Begin to replicate machines to a recovery site
    #[command(after_help = "\
Returns when the first recovery point exists; the first full copy of a big machine takes its time, and
Ctrl-C only stops watching it.

Examples:
  continuum protect web-01 --policy standard --to berlin
  continuum protect web-01 db-01 --no-wait")]
    Protect(Protect),
    /// Stop replicating a machine and remove its replica and its recovery points
    #[command(after_help = "\
Asks for the machine's name typed out, because its recovery points are lost. In a script:
  continuum unprotect web-01 --yes --confirm web-01
  continuum unprotect web-01 --keep-replica")]
    Unprotect(Unprotect),
    /// Hold replication of a machine; what changes meanwhile is remembered
    #[command(after_help = "Examples:\n  continuum pause web-01")]
    Pause(MachineOrder),
    /// Let a paused machine replicate again
    #[command(after_help = "Examples:\n  continuum resume web-01")]
    Resume(MachineOrder),
    /// Give the present moment of a machine a name
    #[command(after_help = "\
Examples:
  continuum bookmark web-01 before-upgrade
  continuum test-failover web-01 --point ID        with the id that `get points web-01` tells")]
    Bookmark(Bookmark),
    /// Keep a recovery point beyond its retention, or let it go again
    #[command(after_help = "Examples:\n  continuum pin web-01 POINT\n  continuum pin web-01 POINT --remove")]
    Pin(Pin),
    /// Tell what an order would do, what would be lost, and what is not ready; changes nothing
    #[command(after_help = "\
Exit code 0: ready. 3: not ready, and the report says what is missing.

Examples:
  continuum readiness web-01
  continuum readiness web-01 --for failover --point 2026-11-23T03:15:00Z")]
    Readiness(Readiness),
    /// Bring a machine up at the recovery site, isolated, while replication goes on
    #[command(after_help = "\
The machine at its own site is not touched. End the test with `continuum cleanup MACHINE`.

Examples:
  continuum test-failover web-01
  continuum test-failover web-01 --point 2026-11-23T03:15:00.250Z
  continuum test-failover web-01 --point app -o json")]
    TestFailover(TestFailover),
    /// End a test failover and remove everything it made
    #[command(after_help = "Examples:\n  continuum cleanup web-01 --note 'quarterly drill, passed'")]
    Cleanup(Cleanup),
    /// Bring a machine up at the recovery site in place of its source
    #[command(after_help = "\
Shows the readiness report first and asks for the machine's name typed out. In a script:
  continuum failover web-01 --unplanned --point latest --yes --confirm web-01

`continuum commit web-01` makes it final.")]
    Failover(Failover),
    /// Make a failover final: the other recovery points are given up
    #[command(after_help = "Examples:\n  continuum commit web-01 --yes --confirm web-01")]
    Commit(MachineDanger),
    /// Compare the replica with its source, block for block
    #[command(after_help = "\
Exit code 0: every disk is equal. 1: at least one differs, or the comparison failed.

Examples:
  continuum verify web-01
  continuum verify web-01 -o json")]
    Verify(Verify),
    /// Try a stopped replication or a failed job again, now
    #[command(after_help = "Examples:\n  continuum retry web-01\n  continuum retry --job JOB")]
    Retry(Retry),
    /// Stop a job; what it did is undone
    #[command(after_help = "Examples:\n  continuum cancel JOB")]
    Cancel(Cancel),
    /// Mark an alert as seen
    #[command(after_help = "Examples:\n  continuum acknowledge ALERT")]
    Acknowledge(Acknowledge),
    /// Follow a job to its end
    #[command(after_help = "Examples:\n  continuum wait JOB\n  continuum wait JOB --timeout 600")]
    Wait(WaitFor),
    /// Make a one-use token with which a server enrols
    #[command(after_help = "\
The token is shown once. It is good for an hour unless told otherwise, at most five days.

Examples:
  continuum token agent --site paris --machine web-01
  continuum token master-target --site berlin --lifetime 86400")]
    Token(TokenArgs),
    /// Tell what a replication file holds: staged feeds, spools, journal segments
    #[command(after_help = "\
Only reads. Exit code 0: everything in it is whole. 1: something is cut or damaged, and the answer says where.

Examples:
  continuum inspect staging/00000000000000000042.feed
  continuum inspect journal/00000007 -o wide        every frame
  continuum inspect FILE -o json")]
    Inspect(Inspect),
    /// A whole installation on this machine, with two sites and machines at work
    #[command(after_help = "\
Its state is under the user's data directory, or where --dir (CONTINUUM_DIR) says, and is taken up again
at the next start. No root, no hypervisor, no network beyond loopback.

Examples:
  continuum lab                                    the lab and the console
  continuum lab --headless --dir /tmp/lab          the lab alone, until `continuum lab stop`
  continuum lab status
  continuum lab add disk-01 --disk 64M --guest none --protect
  continuum lab stop
  continuum lab reset")]
    Lab(Lab),
    /// Tell who we are at the vault, and what we may do there
    #[command(after_help = "Examples:\n  continuum whoami\n  continuum whoami -o json")]
    Whoami,
    /// Make a profile for a vault, with the credentials that its owner made for you
    #[command(after_help = "\
The credentials are tried before anything older gives way to them. The key goes into this desktop's
keyring where there is one, else into a file that only you can read.

Examples:
  continuum login https://vault.example:443 --credentials ./from-the-owner
  continuum login 10.0.0.5:4443 --credentials ./from-the-owner --name berlin")]
    Login(Login),
    /// List the profiles, or choose one
    #[command(after_help = "Examples:\n  continuum profiles\n  continuum profiles use berlin")]
    Profiles(Profiles),
    /// Remove a profile and its credentials from this machine
    #[command(after_help = "Examples:\n  continuum logout berlin")]
    Logout(Logout),
    /// Tell what this machine and this installation lack, and how to mend it
    #[command(after_help = "\
Exit code 0: nothing that matters is missing. 1: something is.

Examples:
  continuum doctor
  continuum doctor -o json")]
    Doctor,
    /// Write shell completions to standard output
    #[command(after_help = "\
Examples:
  continuum completions bash > ~/.local/share/bash-completion/completions/continuum
  continuum completions zsh > ~/.zfunc/_continuum
  continuum completions fish > ~/.config/fish/completions/continuum.fish")]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output, or with --dir one page for each verb into a directory
    #[command(after_help = "\
Examples:
  continuum man | man -l -
  continuum man --dir ~/.local/share/man/man1")]
    Man,
    /// Run one process of a lab (started by the lab itself)
    #[command(hide = true, disable_help_flag = true)]
    Role {
        /// The role and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        words: Vec<OsString>,
    },
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Noun {
    /// Places where machines run or are recovered
    #[value(name = "sites", alias = "site")]
    Sites,
    /// Machines and their protections
    #[value(name = "machines", aliases = ["machine", "m"])]
    Machines,
    /// Recovery points of one machine
    #[value(name = "points", alias = "point")]
    Points,
    /// Protection policies
    #[value(name = "policies", alias = "policy")]
    Policies,
    /// Operations, running and past
    #[value(name = "jobs", alias = "job")]
    Jobs,
    /// What needs a person, open first
    #[value(name = "alerts", alias = "alert")]
    Alerts,
    /// Vault, process servers, master targets, agents
    #[value(name = "servers", alias = "server")]
    Servers,
    /// What happened
    #[value(name = "events", alias = "event")]
    Events,
}

impl Noun {
    /// Its name, for one.
    pub const fn singular(self) -> &'static str {
        match self {
            Self::Sites => "site",
            Self::Machines => "machine",
            Self::Points => "point",
            Self::Policies => "policy",
            Self::Jobs => "job",
            Self::Alerts => "alert",
            Self::Servers => "server",
            Self::Events => "event",
        }
    }
    /// Its name, for several.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Sites => "sites",
            Self::Machines => "machines",
            Self::Points => "points",
            Self::Policies => "policies",
            Self::Jobs => "jobs",
            Self::Alerts => "alerts",
            Self::Servers => "servers",
            Self::Events => "events",
        }
    }
}

/// `get`
#[derive(Debug, Args)]
pub struct Get {
    /// What
    #[arg(value_enum, value_name = "KIND")]
    pub noun: Noun,
    /// Only this one, by name or id; for points: of this machine
    pub name: Option<String>,
    /// How many at most, newest first (points, jobs, events)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: Option<u32>,
    /// Points: none older than this
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<i64>,
    /// Points: none newer than this
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<i64>,
    /// Go on and tell every change as it happens
    #[arg(short, long)]
    pub watch: bool,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// Which file
    pub file: PathBuf,
}

/// `describe`
#[derive(Debug, Args)]
pub struct Describe {
    /// What
    #[arg(value_enum, value_name = "KIND")]
    pub noun: Noun,
    /// Its name or id; a point is named MACHINE/ID
    pub name: String,
}

fn moment(text: &str) -> Result<i64, String> {
    text.parse::<continuum_model::time::Timestamp>()
        .map(continuum_model::time::Timestamp::micros)
        .map_err(|error| error.to_string())
}
