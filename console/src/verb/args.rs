//! The command line: every verb, flag and example. What `--help`, the man pages and the completions say
//! is written here, once.

use super::output::Format;
use clap::{Args, Parser, Subcommand, ValueEnum};
use continuum_model::point::PointChoice;
use continuum_model::units::Bytes;
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
    disable_help_subcommand = true,
    subcommand_help_heading = "Verbs",
    arg_required_else_help = false,
    after_help = EXIT_CODES,
    after_long_help = "\
Examples:
  continuum                                        the console (the lab, where nothing is configured)
  continuum get machines                           is everything recoverable right now?
  continuum readiness web-01                       what would a drill of web-01 do?
  continuum test-failover web-01                   bring web-01 up beside itself, isolated, and prove it
  continuum cleanup web-01                         end that drill
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
    /// How to write the answer
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table, help_heading = "Output")]
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
  continuum protect web-01 db-01 --no-wait
  continuum protect web-01 --start-at 2026-11-29T01:00:00Z --no-wait
  continuum protect web-01 --start-at +6h --no-wait    `resume web-01` begins it now")]
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
    /// Compare all of a machine with its replica and send what differs; all recovery points stay
    #[command(after_help = "\
Waits for the policy's resync window unless --now is given. `pause` suspends it, an unplanned failover cancels it.

Examples:
  continuum resync web-01
  continuum resync web-01 --now --no-wait")]
    Resync(Resync),
    /// Give the present moment of a machine a name
    #[command(after_help = "\
Examples:
  continuum bookmark web-01 before-upgrade
  continuum bookmark db-01 nightly --app-consistent   with the hooks of the machine's agent around it
  continuum bookmark group/shop before-upgrade        one moment of all machines of the group
  continuum test-failover web-01 --point ID        with the id that `get points web-01` tells")]
    Bookmark(Bookmark),
    /// Keep a recovery point beyond its retention, or let it go again
    #[command(
        after_help = "Examples:\n  continuum pin web-01 POINT\n  continuum pin web-01 POINT --remove\n  continuum pin web-01 POINT --lock-days 30 --yes"
    )]
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

Another point can be tried until `continuum commit web-01` makes the choice final.")]
    Failover(Failover),
    /// Make a failover final: the other recovery points are given up
    #[command(after_help = "Examples:\n  continuum commit web-01 --yes --confirm web-01")]
    Commit(MachineDanger),
    /// Bring another moment up instead, while a failover waits for its commit
    #[command(after_help = "\
What runs now is stopped first: one copy at a time. Its disks are kept until the commit.

Examples:
  continuum change-point web-01 --point 2026-11-23T03:15:00Z --yes --confirm web-01")]
    ChangePoint(ChangePoint),
    /// Take a failover back before its commit: the machine runs at its source again
    #[command(after_help = "\
What it wrote at the recovery site is given up. The agent of the source must answer.

Examples:
  continuum cancel-failover web-01 --yes --confirm web-01")]
    CancelFailover(MachineDanger),
    /// Reverse the direction: what runs at the recovery site is brought to the old source
    #[command(after_help = "\
Only what differs travels. What the old source held is kept there in a branch (`continuum branch`).

Examples:
  continuum reprotect web-01 --yes --confirm web-01")]
    Reprotect(MachineDanger),
    /// Bring a machine home: stopped at the recovery site, compared, and running at its old source again
    #[command(after_help = "\
Needs `continuum reprotect` before. Where the recovery site is lost, --unplanned takes what had arrived.

Examples:
  continuum failback web-01 --yes --confirm web-01
  continuum failback web-01 --unplanned --yes --confirm web-01")]
    Failback(Failback),
    /// Let a machine stay at the recovery site for good; there is no way back
    #[command(after_help = "Examples:\n  continuum complete-migration web-01 --yes --confirm web-01")]
    CompleteMigration(MachineDanger),
    /// What an old source held before the way home overwrote it: list, lay over an image, drop
    #[command(after_help = "\
Works on the agent's folder, on the old host. After a forced failover the writes of the losing side are here.

Examples:
  continuum branch list /var/lib/continuum/agent
  continuum branch export /var/lib/continuum/agent NAME --disk 0 --onto copy-of-the-disk.raw
  continuum branch drop /var/lib/continuum/agent NAME --yes --confirm NAME")]
    Branch(Branch),
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
    /// Have another process server relay a machine; nothing is lost, what was on its way is sent again
    #[command(after_help = "\
Without --process-server the vault chooses another one at the machine's site, the one that carries least.
`continuum readiness MACHINE --for move` tells before what would happen.

Examples:
  continuum move web-01
  continuum move web-01 --process-server ps-2")]
    Move(Move),
    /// Stop a job; what it did is undone
    #[command(after_help = "Examples:\n  continuum cancel JOB")]
    Cancel(Cancel),
    /// Make or change policies and recovery plans from YAML files
    #[command(after_help = "\
A file holds one document or several, with --- between them; all of all files is read before anything is
ordered, and everything wrong is told at once. A policy:

  kind: policy
  name: gold
  retention_seconds: 86400    # any moment of a day; what is left out has its default
  steps:                      # then one state an hour for a week
    - every_seconds: 3600
      for_seconds: 604800
  bandwidth:                  # during these hours; else as fast as the link
    - {days: [mon, tue, wed, thu, fri], from: \"08:00\", to: \"18:00\", bytes_per_sec: 2000000}

`continuum get policy NAME -o yaml` writes what apply takes. Where recovery points would go, the policy's
name is asked for; in a script: --yes --confirm gold.

A plan brings groups of machines up one after another:

  name: shop
  rto_seconds: 600            # objectives; a run is measured against them
  rpo_seconds: 60
  groups:
    - name: databases
      machines: [db-01]
      manual: Look at the replication slots.    # the run waits until `continuum proceed`
    - name: front             # after the group above; depends_on: [databases, …] says it otherwise
      machines: [web-01, web-02]

Examples:
  continuum apply -f gold.yaml -f shop.yaml --dry-run      what would change, line by line
  continuum apply -f shop.yaml
  continuum test-failover plan/shop
  continuum get plans")]
    Apply(Apply),
    /// Delete a policy that nobody is under, a recovery plan or a consistency group; machines stay as they are
    #[command(
        after_help = "Examples:\n  continuum delete policy bronze\n  continuum delete plan shop --yes --confirm shop\n  continuum delete group shop"
    )]
    Delete(Delete),
    /// Put protected machines under another policy
    #[command(after_help = "\
Where recovery points would go, each machine's name is asked for. In a script: --yes --confirm NAME, or for
several machines --yes --confirm POLICY.

Examples:
  continuum set-policy web-01 --policy gold
  continuum set-policy web-01 web-02 db-01 --policy bronze --yes --confirm bronze")]
    SetPolicy(SetPolicy),
    /// Say whether you may give an order, why not, and who could
    #[command(after_help = "\
Exit code 0: yes. 5: no.

Examples:
  continuum can-i failover
  continuum can-i unprotect web-01 -o json")]
    CanI(CanI),
    /// Agree to an order that waits for a second person, or refuse it
    #[command(after_help = "\
Shows what is agreed to, and asks for the first letters of its digest typed out. In a script:
  continuum approve JOB --yes --confirm DIGEST-HEAD

Examples:
  continuum get jobs                               state waiting: approval
  continuum approve JOB
  continuum approve JOB --refuse --reason 'not during the audit'")]
    Approve(Approve),
    /// Take an operator's access, or a token, away
    #[command(
        after_help = "Examples:\n  continuum get operators\n  continuum revoke operator eve\n  continuum revoke token 1f0c2a9be417"
    )]
    Revoke(Revoke),
    /// Verify an exported audit log, without any vault
    #[command(after_help = "\
Exit code 0: every line follows from the one before it. 1: the first that does not is named.

Examples:
  continuum get audit --all -o json > audit.json
  continuum audit verify audit.json
  continuum audit verify audit.json --head HASH    a hash kept elsewhere: tells whether the end was cut off")]
    Audit(Audit),
    /// Make machines share recovery points, or set which and how often
    #[command(after_help = "\
All machines of a group cut a point at the same time, while none of them is told that a newer write is done: together
they are in one state there. Such points are for `--point group:NAME`.

Examples:
  continuum group set shop --machines web-01,app-01,db-01 --every 60s
  continuum get groups
  continuum bookmark group/shop before-upgrade
  continuum test-failover web-01 --point group:shop
  continuum test-failover plan/shop --point group")]
    Group(Group),
    /// Tell a run of a plan that what it waits for was done by hand
    #[command(after_help = "Examples:\n  continuum get jobs\n  continuum proceed JOB")]
    Proceed(Proceed),
    /// Tell how a drill or failover went, for people, programs and auditors
    #[command(after_help = "\
Every drill and failover leaves a report as it ends: times against objectives, moments, what would have been given up,
probes, problems, each step beside what earlier runs took. Reports are numbered, each names the SHA-256 of the one
before it, and each digest stands in the vault's audit log: one that was changed or left out shows.

Examples:
  continuum report list
  continuum report show plan/shop                      the newest one of a plan, a machine or a run
  continuum report show plan/shop --to shop.html       one page that needs nothing else; also .json, .txt
  continuum report verify shop-1.json shop-2.json      asks no vault")]
    Report(Report),
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
  continuum token operator --name ada --as recoverer        with it Ada runs: continuum login --token …
  continuum token master-target --site berlin --lifetime 86400")]
    Token(TokenArgs),
    /// Make a profile for a vault and its credentials
    #[command(after_help = "\
An owner makes the token. It is used up by this, and the key never leaves this machine.

Examples:
  continuum login https://vault.example:443 --token ct1.…
  continuum login --token-file /run/token --name berlin
  continuum login vault.example:443 --credentials ./from-the-owner")]
    Login(Login),
    /// List the profiles, or choose one
    #[command(after_help = "Examples:\n  continuum profiles\n  continuum profiles use berlin")]
    Profiles(Profiles),
    /// Remove a profile and its credentials from this machine
    #[command(after_help = "Examples:\n  continuum logout berlin")]
    Logout(Logout),
    /// Tell what a replica store, or a file of one, is and holds, without any vault; changes nothing
    #[command(after_help = "\
Works on a backup, on a read-only disk, and beside a master target that is at work. Only reads.

Exit code 0: nothing wrong was seen (without --verify only the structure is looked at). 1: something is
damaged, and the answer names the file, the place in it and the moments that need it.

Examples:
  continuum inspect /srv/continuum/replicas/MACHINE-ID
  continuum inspect ./MACHINE-ID --verify          read every byte against its checksum
  continuum inspect ./MACHINE-ID --points -o json | jq '.points[].time'
  continuum inspect ./MACHINE-ID/journal/00000001 --frames -o wide
  continuum inspect web-01.hrl --verify            a replication log, whoever wrote it")]
    Inspect(Inspect),
    /// Write a disk of a replica store, as of any moment, into an image file, without any vault
    #[command(after_help = "\
The image gets its name only when it is whole, durable and was read back and compared. The store is only
read, and must not be open in a master target. raw needs no other program; the other kinds need qemu-img.

--at TIME means the newest moment at or before TIME that can be brought up; the answer says which.

Examples:
  continuum export ./MACHINE-ID disk.raw
  continuum export ./MACHINE-ID web-01.qcow2 --disk 0 --at 2026-11-23T03:15:00Z
  continuum export ./MACHINE-ID web-01.vhdx --at app --force -o json")]
    Export(Export),
    /// Serve the disks of replica stores, as of any moment, over NBD until Ctrl-C, without any vault
    #[command(after_help = "\
For the day on which vault, servers and source are gone and a folder is left. The stores are only read and
locked meanwhile; they must not be open in a master target. No network is used but what --tcp says.

Examples:
  continuum rescue ./MACHINE-ID                        tells the URIs, and serves
  continuum rescue ./MACHINE-ID --at 2026-11-23T03:15:00Z --tcp 127.0.0.1:10809
  nbdcopy nbd://127.0.0.1:10809/disk0 disk.raw         in another terminal
  continuum rescue ./MACHINE-ID --scratch /var/tmp     writable: boot it, and lose what it writes
  qemu-system-x86_64 -m 2G -drive 'file=URI,format=raw'")]
    Rescue(Rescue),
    /// Convert replication logs (.hrl) to and from a feed's frames, and put them onto an image, without any vault
    #[command(
        subcommand,
        after_help = "Examples:\n  continuum hrl convert 1.hrl 2.hrl all.feed\n  continuum hrl apply 1.hrl 2.hrl disk.raw --yes"
    )]
    Hrl(Hrl),
    /// Copy a replica store with its whole history into object storage, without any vault
    #[command(after_help = "\
Only what is not there yet travels. The archive counts when all of it is there; until then, and whatever
goes wrong, the one before stands. Of two that archive at once one wins, and the other is told.
`export` and `rescue` take the address in place of a folder.

Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT;
or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.

Examples:
  continuum archive ./MACHINE-ID s3://replicas/berlin/web-01
  continuum export s3://replicas/berlin/web-01 web-01.qcow2 --at 2026-11-23T03:15:00Z
  continuum rescue s3://replicas/berlin/web-01")]
    Archive(Archive),
    /// Tell what this machine and this installation lack, and how to mend it
    #[command(after_help = "\
Exit code 0: nothing that matters is missing. 1: something is.

Examples:
  continuum doctor
  continuum doctor -o json")]
    Doctor,
    /// Run a lab: two sites on this machine with machines that replicate for real; or ask, stop, remove one
    #[command(after_help = "\
Examples:
  continuum lab                                    the console, on a lab of four machines
  continuum lab --headless --dir /tmp/lab &        without a console
  continuum lab --machines 1 --guests qemu         a real Linux on ext4, in QEMU
  continuum lab status
  continuum lab add disk-01 --disk 64M --guest none --protect
  continuum lab stop
  continuum lab reset                              stop first; removes what the lab made")]
    Lab(Lab),
    /// Run one service or guest of a lab (used by the lab itself)
    #[command(hide = true)]
    Role(Role),
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
    /// Recovery plans
    #[value(name = "plans", alias = "plan")]
    Plans,
    /// Consistency groups: machines that share recovery points
    #[value(name = "groups", alias = "group")]
    Groups,
    /// Who is let in, as which role
    #[value(name = "operators", alias = "operator")]
    Operators,
    /// Enrolment tokens; never their secrets
    #[value(name = "tokens", alias = "token")]
    Tokens,
    /// Who did what: a name here looks for words in it
    #[value(name = "audit")]
    Audit,
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
            Self::Plans => "plan",
            Self::Groups => "group",
            Self::Operators => "operator",
            Self::Tokens => "token",
            Self::Audit => "audit line",
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
            Self::Plans => "plans",
            Self::Groups => "groups",
            Self::Operators => "operators",
            Self::Tokens => "tokens",
            Self::Audit => "audit lines",
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
    /// Policies, plans: the versions of one, who made them and when
    #[arg(long)]
    pub history: bool,
    /// Policies, plans: what changed from each version to the next
    #[arg(long, conflicts_with = "history")]
    pub diff: bool,
    /// Audit: all of it, oldest first, as `audit verify` takes it with -o json
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
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

/// Whether to follow the job.
#[derive(Debug, Clone, Default, Args)]
pub struct Wait {
    /// Follow the job and end with its outcome (the default)
    #[arg(long, overrides_with = "no_wait", help_heading = "Job")]
    pub wait: bool,
    /// Return as soon as the order is accepted
    #[arg(long, help_heading = "Job")]
    pub no_wait: bool,
    /// Follow no longer than this; the job goes on
    #[arg(long, value_name = "SECONDS", conflicts_with = "no_wait", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Job")]
    pub timeout: Option<u64>,
    /// Idempotency key: the same key never begins a second job
    #[arg(long, value_name = "KEY", value_parser = key, help_heading = "Job")]
    pub key: Option<String>,
}

/// How a dangerous order is agreed to.
#[derive(Debug, Clone, Default, Args)]
pub struct Consent {
    /// The name of what it happens to, exactly; needed with --yes where data can be lost
    #[arg(long, value_name = "NAME", allow_hyphen_values = true, help_heading = "Consent")]
    pub confirm: Option<String>,
}

/// An order to one machine.
#[derive(Debug, Args)]
pub struct MachineOrder {
    /// Which machine, by name or id
    pub machine: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// A dangerous order to one machine.
#[derive(Debug, Args)]
pub struct MachineDanger {
    /// Which machine, by name or id
    pub machine: String,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `protect`
#[derive(Debug, Args)]
pub struct Protect {
    /// Which machines, by name or id
    #[arg(required = true, value_name = "MACHINE")]
    pub machines: Vec<String>,
    /// Under which policy; may be left out where there is only one
    #[arg(long)]
    pub policy: Option<String>,
    /// To which recovery site; may be left out where there is only one
    #[arg(long, value_name = "SITE")]
    pub to: Option<String>,
    /// When the first copy begins: a time up to seven days ahead, or +N followed by s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = ahead)]
    pub start_at: Option<i64>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `resync`
#[derive(Debug, Args)]
pub struct Resync {
    /// Which machine, by name or id
    pub machine: String,
    /// Do not wait for the policy's resync window
    #[arg(long)]
    pub now: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `report`
#[derive(Debug, Args)]
pub struct Report {
    /// What about reports.
    #[command(subcommand)]
    pub verb: ReportVerb,
}

/// What about reports.
#[derive(Debug, Subcommand)]
pub enum ReportVerb {
    /// List reports, newest first
    List {
        /// At most so many
        #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        most: u32,
    },
    /// Show a report, or write it into a file
    Show {
        /// A run's job, a machine's name, or plan/NAME: the newest report of it
        #[arg(value_name = "RUN|MACHINE|plan/NAME")]
        of: String,
        /// Write it there; its ending says how: .html, .json or .txt
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        /// Replace a file that is there
        #[arg(long, requires = "to")]
        force: bool,
    },
    /// Check that reports are what the vault wrote, without asking it
    Verify {
        /// Files that `report show --to FILE.json` wrote, in their order
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// `unprotect`
#[derive(Debug, Args)]
pub struct Unprotect {
    /// Which machine, by name or id
    pub machine: String,
    /// Stop replicating, but keep the replica and its points
    #[arg(long)]
    pub keep_replica: bool,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `bookmark`
#[derive(Debug, Args)]
pub struct Bookmark {
    /// Which machine, by name or id; or group/NAME
    pub machine: String,
    /// What to call the moment
    pub name: String,
    /// Freeze the machine's applications for it
    #[arg(long)]
    pub app_consistent: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `move`
#[derive(Debug, Args)]
pub struct Move {
    /// Which machine, by name or id
    pub machine: String,
    /// Through which process server from now on, by name or id
    #[arg(long, default_value = "", hide_default_value = true)]
    pub process_server: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `pin`
#[derive(Debug, Args)]
pub struct Pin {
    /// Which machine, by name or id
    pub machine: String,
    /// Which point, by id
    pub point: String,
    /// Let it go again; a lock stays
    #[arg(long, conflicts_with = "lock_days")]
    pub remove: bool,
    /// Lock it as well: for so many days nobody can let it go, no clock, no lack of space, no operator. Cannot be undone
    #[arg(long, value_name = "DAYS", requires = "yes", value_parser = clap::value_parser!(u64).range(1..=3660))]
    pub lock_days: Option<u64>,
    /// Yes, lock it
    #[arg(long)]
    pub yes: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// Orders that `readiness` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Rehearsed {
    /// A test failover
    #[default]
    TestFailover,
    /// An unplanned failover
    Failover,
    /// Making a failover final
    Commit,
    /// Ending a protection
    Unprotect,
    /// Ending a test failover
    Cleanup,
    /// Comparing all of source and replica
    Resync,
    /// Another process server
    Move,
    /// Bringing another moment up instead
    ChangePoint,
    /// Taking a failover back
    CancelFailover,
    /// Reversing the direction
    Reprotect,
    /// Bringing it home
    Failback,
    /// Letting it stay for good
    CompleteMigration,
}

impl Rehearsed {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TestFailover => "test-failover",
            Self::Failover => "failover",
            Self::Commit => "commit",
            Self::Unprotect => "unprotect",
            Self::Cleanup => "cleanup",
            Self::Resync => "resync",
            Self::Move => "move",
            Self::ChangePoint => "change-point",
            Self::CancelFailover => "cancel-failover",
            Self::Reprotect => "reprotect",
            Self::Failback => "failback",
            Self::CompleteMigration => "complete-migration",
        }
    }
}

/// `readiness`
#[derive(Debug, Args)]
pub struct Readiness {
    /// Which machine, by name or id, or plan/NAME
    pub machine: String,
    /// For which order
    #[arg(long = "for", value_enum, default_value_t, value_name = "ORDER")]
    pub order: Rehearsed,
    /// At which moment: latest, processed, app, a point's id, a time, or group:NAME for what its group shares
    #[arg(long, value_parser = shared, default_value = "latest")]
    pub point: String,
    /// Of a move: through which process server
    #[arg(long, default_value = "", hide_default_value = true)]
    pub process_server: String,
}

/// `test-failover`
#[derive(Debug, Args)]
pub struct TestFailover {
    /// Which machine, by name or id, or plan/NAME
    pub machine: String,
    /// Which moment: latest (least loss), processed (least wait), app, group or group:NAME (what its group shares), a point's id, or a time: the newest moment at or before it
    #[arg(long, value_parser = shared, default_value = "latest")]
    pub point: String,
    /// Where it fails, leave everything as it is, to be looked at
    #[arg(long)]
    pub keep: bool,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `cleanup`
#[derive(Debug, Args)]
pub struct Cleanup {
    /// Which machine, by name or id, or plan/NAME
    pub machine: String,
    /// What was learned; kept with the drill
    #[arg(long, default_value = "", allow_hyphen_values = true, hide_default_value = true)]
    pub note: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `failover`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("kind").required(true).args(["unplanned", "planned"]))]
pub struct Failover {
    /// Which machine, by name or id, or plan/NAME
    pub machine: String,
    /// The source is not asked; it is kept out when it returns
    #[arg(long)]
    pub unplanned: bool,
    /// The source is stopped first, over restarts, and nothing is lost
    #[arg(long)]
    pub planned: bool,
    /// Which moment: latest (least loss), processed (least wait), app, group or group:NAME (what its group shares), a point's id, or a time: the newest moment at or before it
    #[arg(long, value_parser = shared, required_if_eq("unplanned", "true"))]
    pub point: Option<String>,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `change-point`
#[derive(Debug, Args)]
pub struct ChangePoint {
    /// Which machine, by name or id
    pub machine: String,
    /// Which moment: latest, processed, app, a point's id, or a time
    #[arg(long, value_parser = shared)]
    pub point: String,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `failback`
#[derive(Debug, Args)]
pub struct Failback {
    /// Which machine, by name or id
    pub machine: String,
    /// The recovery site is not asked: what had arrived at the old source is taken
    #[arg(long)]
    pub unplanned: bool,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `branch`
#[derive(Debug, Args)]
pub struct Branch {
    /// What to do with it.
    #[command(subcommand)]
    pub act: BranchAct,
}

/// What is done with branches.
#[derive(Debug, Subcommand)]
pub enum BranchAct {
    /// Which there are
    List {
        /// The agent's folder
        dir: PathBuf,
    },
    /// Lay a branch over an image of the disk: what it held before, where it was overwritten
    Export {
        /// The agent's folder
        dir: PathBuf,
        /// Which branch
        name: String,
        /// Which disk
        #[arg(long, default_value_t = 0)]
        disk: u16,
        /// A raw image of the disk, which is changed: a copy of the disk, or an export of the replica
        #[arg(long, value_name = "IMAGE")]
        onto: PathBuf,
    },
    /// Remove a branch; what is in it is nowhere else
    Drop {
        /// The agent's folder
        dir: PathBuf,
        /// Which branch
        name: String,
        /// Agreement.
        #[command(flatten)]
        consent: Consent,
    },
}

/// `verify`
#[derive(Debug, Args)]
pub struct Verify {
    /// Which machine, by name or id
    pub machine: String,
    /// At which point; left out: a new one is cut for the comparison
    #[arg(long, value_parser = point)]
    pub point: Option<String>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `retry`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["machine", "job"]))]
pub struct Retry {
    /// The replication of this machine, by name or id
    pub machine: Option<String>,
    /// This job
    #[arg(long)]
    pub job: Option<String>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `cancel`
#[derive(Debug, Args)]
pub struct Cancel {
    /// Which job, by id
    pub job: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `apply`
#[derive(Debug, Args)]
pub struct Apply {
    /// A file; `-` is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    pub files: Vec<std::path::PathBuf>,
    /// Only check, and say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `delete`
#[derive(Debug, Args)]
pub struct Delete {
    /// What
    #[arg(value_enum, value_name = "KIND")]
    pub what: Deletable,
    /// Its name
    pub name: String,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `group`
#[derive(Debug, Args)]
pub struct Group {
    /// What.
    #[command(subcommand)]
    pub act: GroupAct,
}

/// What is done with a group.
#[derive(Debug, Subcommand)]
pub enum GroupAct {
    /// Make it, or set its machines and times
    Set(GroupSet),
}

/// `group set`
#[derive(Debug, Args)]
pub struct GroupSet {
    /// Its name
    pub name: String,
    /// All its machines, by name or id; a machine is in one group
    #[arg(long, value_delimiter = ',', required = true, value_name = "MACHINE,…")]
    pub machines: Vec<String>,
    /// How often they share a point, such as 60s, 5m, 1h; 0: only when asked
    #[arg(long, default_value = "60s", value_parser = span)]
    pub every: u64,
    /// The longest that a write waits for the other machines, in milliseconds
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=5000))]
    pub hold_ms: u32,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// Seconds from a text such as `60s`.
fn span(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("write seconds, minutes or hours, such as 60s, 5m or 1h".into()),
    };
    let number: u64 = number.parse().map_err(|_| "write a number, such as 60s".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is too long".to_owned())
}

/// What can be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Deletable {
    /// A recovery plan
    Plan,
    /// A consistency group; the points that were shared stay with each machine
    Group,
    /// A policy
    Policy,
}

/// `set-policy`
#[derive(Debug, Args)]
pub struct SetPolicy {
    /// Which machines, by name or id
    #[arg(required = true, value_name = "MACHINE")]
    pub machines: Vec<String>,
    /// Under which policy they go
    #[arg(long)]
    pub policy: String,
    /// Agreement.
    #[command(flatten)]
    pub consent: Consent,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `can-i`
#[derive(Debug, Args)]
pub struct CanI {
    /// Which order, such as failover, unprotect, set-policy
    pub order: String,
    /// To which machine, or plan/NAME
    pub machine: Option<String>,
}

/// `approve`
#[derive(Debug, Args)]
pub struct Approve {
    /// Which job
    pub job: String,
    /// Refuse it instead
    #[arg(long)]
    pub refuse: bool,
    /// Why
    #[arg(long, requires = "refuse")]
    pub reason: Option<String>,
    /// The first eight letters of the digest that was looked at; needed with --yes
    #[arg(long = "confirm", value_name = "DIGEST", help_heading = "Consent")]
    pub digest: Option<String>,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `revoke`
#[derive(Debug, Args)]
pub struct Revoke {
    /// What
    #[arg(value_enum, value_name = "KIND")]
    pub what: Revocable,
    /// The operator's name, or the token's id
    pub name: String,
}

/// What can be revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Revocable {
    /// An operator
    Operator,
    /// A token that was not used yet
    Token,
}

/// `audit`
#[derive(Debug, Args)]
pub struct Audit {
    /// What
    #[command(subcommand)]
    pub act: AuditAct,
}

/// What is done with an audit log.
#[derive(Debug, Subcommand)]
pub enum AuditAct {
    /// Whether an export is whole
    Verify(AuditVerify),
}

/// `audit verify`
#[derive(Debug, Args)]
pub struct AuditVerify {
    /// What `continuum get audit --all -o json` wrote
    pub file: PathBuf,
    /// A hash that was the last one at some time, kept elsewhere
    #[arg(long, value_name = "HASH")]
    pub head: Option<String>,
}

/// `proceed`
#[derive(Debug, Args)]
pub struct Proceed {
    /// Which run, by the id of its job
    pub job: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `acknowledge`
#[derive(Debug, Args)]
pub struct Acknowledge {
    /// Which alert, by id
    pub alert: String,
    /// Following.
    #[command(flatten)]
    pub wait: Wait,
}

/// `wait`
#[derive(Debug, Args)]
pub struct WaitFor {
    /// Which job, by id
    pub job: String,
    /// Follow no longer than this; the job goes on
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: Option<u64>,
}

/// Who can enrol with a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Newcomer {
    /// Sees the writes of one machine
    Agent,
    /// Receives from agents, forwards to targets
    ProcessServer,
    /// Keeps replicas
    MasterTarget,
    /// A person or a script
    Operator,
}

impl Newcomer {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::ProcessServer => "process-server",
            Self::MasterTarget => "master-target",
            Self::Operator => "operator",
        }
    }
}

/// `token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Who will use it
    #[arg(value_enum)]
    pub role: Newcomer,
    /// At which site the newcomer will be
    #[arg(long, default_value = "", hide_default_value = true)]
    pub site: String,
    /// Only a machine of this name may use it
    #[arg(long, default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub machine: String,
    /// Operator: what they are called
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub name: String,
    /// Operator: their role (reader, operator, recoverer, contributor, approver, owner, auditor)
    #[arg(long = "as", value_name = "ROLE", default_value = "", hide_default_value = true)]
    pub operator_role: String,
    /// How long it is good
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=432_000))]
    pub lifetime: u32,
}

/// `inspect`
#[derive(Debug, Args)]
pub struct Inspect {
    /// A replica store's folder, or any one file: a segment, a change map, staged frames, a manifest, a replication log
    pub path: PathBuf,
    /// Tell every segment of the journal
    #[arg(long)]
    pub segments: bool,
    /// Tell every recovery point
    #[arg(long)]
    pub points: bool,
    /// Tell every frame; of a replication log, every write
    #[arg(long)]
    pub frames: bool,
    /// Read everything and hold it against its checksums; name what is damaged, and the moments that need it
    #[arg(long)]
    pub verify: bool,
}

/// Which kind of image is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Image {
    /// Byte for byte, sparse; needs no other program
    Raw,
    /// QEMU, KVM, Proxmox, OpenStack
    Qcow2,
    /// Hyper-V
    Vhdx,
    /// VMware
    Vmdk,
}

/// `export`
#[derive(Debug, Args)]
pub struct Export {
    /// The folder of one replica store, or the address of an archive
    pub store: PathBuf,
    /// The image to make
    pub out: PathBuf,
    /// Which disk, by its number; may be left out where there is only one
    #[arg(long, value_name = "N")]
    pub disk: Option<u16>,
    /// As of when: latest, app, a point's id, or a time
    #[arg(long, value_name = "MOMENT", default_value = "latest", value_parser = point)]
    pub at: String,
    /// Which kind of image; may be left out where its name ends in .raw, .img, .qcow2, .vhdx or .vmdk
    #[arg(long, value_enum, value_name = "KIND")]
    pub format: Option<Image>,
    /// Replace an image that is there
    #[arg(long)]
    pub force: bool,
}

/// `hrl`
#[derive(Debug, Subcommand)]
pub enum Hrl {
    /// Make a replication log of an agent's staged frames, or frames of logs
    #[command(after_help = "\
The name of what is made says the form: .hrl or .feed. Inputs are verified first; what the form cannot hold is
told. A log knows writes and whole seconds only: barriers do not survive, zero ranges become written zeroes.
Frames made of logs count at their end only. Several logs of one disk are put in order by their ids.

Examples:
  continuum hrl convert AGENT/staging/00000000000000000042.feed web-01.hrl --disk-size 64G
  continuum hrl convert next.feed second.hrl --disk-size 64G --after first.hrl
  continuum hrl convert 1.hrl 2.hrl all.feed --machine MACHINE-ID --disk 0 -o json")]
    Convert(HrlConvert),
    /// Put the writes of replication logs onto a raw image of their disk, in place, and read it back
    #[command(after_help = "\
Logs are put in order by their ids and verified to the last byte before the image is touched; one that was not
closed is refused. Without --yes nothing is written. Done again after a crash, it ends the same.

Examples:
  continuum hrl apply 1.hrl 2.hrl disk.raw               verify, and tell what would happen
  continuum hrl apply 1.hrl 2.hrl disk.raw --yes")]
    Apply(HrlApply),
}

/// `hrl convert`
#[derive(Debug, Args)]
pub struct HrlConvert {
    /// Logs of one disk, or files of frames in their order
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    /// What to make: NAME.hrl or NAME.feed
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// Which disk: of the frames that are read (where they are of several), or of those that are made [default: 0]
    #[arg(long, value_name = "N")]
    pub disk: Option<u16>,
    /// How large the disk is, such as 64G; needed for a log
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub disk_size: Option<u64>,
    /// The log that the new one goes on from
    #[arg(long, value_name = "LOG")]
    pub after: Option<PathBuf>,
    /// How many bytes of zero ranges may be written out as data
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1G")]
    pub zeroes_max: u64,
    /// Whose frames are made [default: a machine named after the last log]
    #[arg(long, value_name = "MACHINE-ID")]
    pub machine: Option<continuum_model::id::MachineId>,
    /// Replace what has the name already
    #[arg(long)]
    pub force: bool,
}

/// `hrl apply`
#[derive(Debug, Args)]
pub struct HrlApply {
    /// The logs, in any order, and last the image
    #[arg(required = true, num_args = 2.., value_name = "LOG... IMAGE")]
    pub paths: Vec<PathBuf>,
}

/// `archive`
#[derive(Debug, Args)]
pub struct Archive {
    /// The folder of one replica store
    pub store: PathBuf,
    /// Where to: s3://BUCKET/PREFIX or az://CONTAINER/PREFIX, a prefix for each machine
    pub address: String,
}

/// `rescue`
#[derive(Debug, Args)]
pub struct Rescue {
    /// The folders of replica stores, or addresses of archives
    #[arg(required = true, value_name = "STORE")]
    pub stores: Vec<PathBuf>,
    /// As of when, for all of them: latest, app, a point's id, or a time
    #[arg(long, value_name = "MOMENT", default_value = "latest", value_parser = point)]
    pub at: String,
    /// Serve on this Unix socket, which only this user can open [default: one in the directory for such]
    #[arg(long, value_name = "PATH", conflicts_with = "tcp")]
    pub socket: Option<PathBuf>,
    /// Serve on TCP on the loopback, such as 127.0.0.1:10809 (port 0: any free one); anyone on this machine may read
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub tcp: Option<std::net::SocketAddr>,
    /// Let clients write: into an unnamed file in this folder, gone when this ends; the store stays as it is
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
}

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

/// `role`
#[derive(Debug, Args)]
pub struct Role {
    /// Which.
    #[command(subcommand)]
    pub role: RoleKind,
}

/// What this process becomes.
#[derive(Debug, Subcommand)]
pub enum RoleKind {
    /// A service.
    Service {
        /// What it needs.
        #[arg(long)]
        config: PathBuf,
        /// Die with the one who started it.
        #[arg(long)]
        with_parent: bool,
    },
    /// A lab guest.
    Guest {
        /// Its disks.
        #[arg(long = "disk")]
        disks: Vec<String>,
        /// Where it answers.
        #[arg(long)]
        heartbeat: PathBuf,
        /// Transfers a second.
        #[arg(long, default_value_t = 20)]
        rate: u32,
        /// An empty disk is formatted.
        #[arg(long)]
        format: bool,
        /// Where it can be told to hold still.
        #[arg(long)]
        hook: Option<PathBuf>,
        /// Run as a machine of its own, in QEMU, with the kernel in this folder.
        #[arg(long)]
        machine: Option<PathBuf>,
        /// Die with the one who started it.
        #[arg(long)]
        with_parent: bool,
    },
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
    /// What runs on the machines of a new lab
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    pub guests: Guest,
    /// How QEMU accelerates: tcg, or kvm where that works (never guessed)
    #[arg(long, value_name = "NAME", value_parser = ["tcg", "kvm"])]
    pub accel: Option<String>,
    /// Kernel of QEMU guests: a .deb of linux-image-…-cloud-amd64, or where one was unpacked [default: fetched by apt]
    #[arg(long, value_name = "PATH")]
    pub kernel: Option<PathBuf>,
    /// No console: run until `continuum lab stop`
    #[arg(long)]
    pub headless: bool,
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

/// `login`
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("by").required(true).args(["token", "token_file", "credentials"]))]
pub struct Login {
    /// Where the vault is: https://HOST:PORT or HOST:PORT; a token knows it
    pub url: Option<String>,
    /// The one-use token (others may see it in the list of processes: prefer --token-file)
    #[arg(long)]
    pub token: Option<String>,
    /// A file with the one-use token; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A directory with ca.pem, certificate.pem and key.pem made for this operator
    #[arg(long, value_name = "DIR", requires = "url")]
    pub credentials: Option<PathBuf>,
    /// What to call the profile; else the vault's host name
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the key in a file readable by its owner only, though there is a keyring
    #[arg(long)]
    pub no_keyring: bool,
}

/// `profiles`
#[derive(Debug, Args)]
pub struct Profiles {
    /// Nothing lists them.
    #[command(subcommand)]
    pub action: Option<ProfilesAction>,
}

/// What can be done with profiles.
#[derive(Debug, Subcommand)]
pub enum ProfilesAction {
    /// Use this one from now on
    Use {
        /// Which
        name: String,
    },
}

/// `logout`
#[derive(Debug, Args)]
pub struct Logout {
    /// Which; else the one in use
    pub name: Option<String>,
}

/// A moment, or the one that a consistency group shares: which that is, the vault says.
fn shared(text: &str) -> Result<String, String> {
    let of_group = text == "group" || text.strip_prefix("group:").is_some_and(|name| !name.is_empty());
    if of_group { Ok(text.to_owned()) } else { point(text) }
}

fn point(text: &str) -> Result<String, String> {
    let choice: PointChoice = text.parse().map_err(|error| format!("{error}"))?;
    Ok(choice.to_string())
}

/// A moment to come: a time, or how long from now.
fn ahead(text: &str) -> Result<i64, String> {
    let Some(span) = text.strip_prefix('+') else { return moment(text) };
    let wrong = || format!("{text:?} is no time ahead: write such as +90m, +6h or +2d, or RFC 3339");
    let unit = match span.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let number: u32 = span[..span.len() - 1].parse().map_err(|_| wrong())?;
    let span = std::time::Duration::from_secs(u64::from(number) * unit);
    let now = continuum_model::world::Clock::wall(&continuum_model::world::SystemClock::default());
    Ok(now.plus(span).micros())
}

fn moment(text: &str) -> Result<i64, String> {
    text.parse::<continuum_model::time::Timestamp>()
        .map(continuum_model::time::Timestamp::micros)
        .map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    text.parse::<Bytes>().map(|bytes| bytes.0).map_err(|error| error.to_string())
}

fn key(text: &str) -> Result<String, String> {
    let plain = (1..=128).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
    if plain { Ok(text.to_owned()) } else { Err("write 1 to 128 letters, digits or -_.:".into()) }
}
