//! The verbs: one command, one answer, one exit code.
//!
//! - [`args`]: the command line and its help
//! - [`get`], [`describe`]: what there is
//! - [`apply`]: policies and plans as texts; [`access`]: who is let in, what was done, four eyes
//! - [`order`], `consent`, [`follow`], [`progress`]: what is to be done, agreed to, and watched
//! - [`inspect`], [`export`], [`rescue`], [`archive`], [`hrl`]: stores and logs by hand, where no vault is alive
//! - [`report`]: how drills and failovers went
//! - [`doctor`], [`session`], [`manual`]: this machine, its profiles, its documentation
//! - [`contract`], [`output`]: the shape of answers
//! - [`fault`]: the shape of errors
//!
//! Invariants: the answer goes to standard output, everything else to standard error. Without a terminal
//! there is no colour and no question. Nothing from outside reaches a terminal unescaped.

pub mod access;
pub mod apply;
pub mod archive;
pub mod args;
pub mod branch;
mod consent;
pub mod contract;
pub mod describe;
pub mod doctor;
pub mod export;
pub mod fault;
pub mod follow;
pub mod get;
pub mod hrl;
pub mod inspect;
pub mod lab;
pub mod manual;
pub mod order;
pub mod output;
pub mod progress;
pub mod report;
pub mod rescue;
pub mod session;
pub mod vault;

use crate::profile::Choice;
use args::{Cli, Verb};
use clap::Parser;
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use order::Danger;
use output::{Format, Style};
use pb::order_request::Order;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// What every verb gets from the command line and the environment.
pub struct Setting {
    /// Which vault.
    pub choice: Choice,
    /// How to write.
    pub style: Style,
    /// Whether standard error takes colour.
    pub colour_err: bool,
    /// `--yes`.
    pub yes: bool,
    /// `--dir`, as it stood on the command line.
    pub dir: Option<PathBuf>,
}

impl Setting {
    fn of(common: &args::Common) -> Self {
        let choice = Choice {
            profile: common.profile.clone(),
            connect: common.connect.clone(),
            dir: common.dir.clone(),
        };
        let style = Style::choose(common.output, common.no_color);
        let colour_err = Style::allowed(common.no_color) && io::stderr().is_terminal();
        Self {
            choice: choice.with_environment(),
            style,
            colour_err,
            yes: common.yes,
            dir: common.dir.clone(),
        }
    }

    /// Writes to standard output. A reader that went away is no error of ours.
    pub fn write(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Fault> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        match write(&mut out).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Fault::new(
                FaultClass::Failed,
                "output.failed",
                format!("the answer could not be written: {error}"),
            )
            .affects("this answer")
            .spares("what it is about")),
        }
    }

    /// What the console takes over from the command line.
    pub fn style_options(&self) -> crate::tui::Options {
        crate::tui::Options { colour: self.colour_err }
    }

    /// A line for a person, beside the answer; nothing where a program reads.
    pub fn say(&self, line: &str) {
        if !self.style.format.for_programs() {
            let _ = writeln!(io::stderr(), "{}", shown(line));
        }
    }
}

/// Parses, runs, and says how it went.
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) => return fault::usage(&error, &words),
    };
    let setting = Setting::of(&cli.common);
    match run(&setting, cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => fault::report(&fault, &setting),
    }
}

fn run(setting: &Setting, verb: Option<Verb>) -> Result<(), Fault> {
    match verb {
        None => lab::console(setting),
        Some(Verb::Lab(lab)) => lab::run(setting, &lab),
        Some(Verb::Role(role)) => lab::role(&role),
        Some(Verb::Completions { shell }) => manual::completions(setting, shell),
        Some(Verb::Man) => manual::pages(setting),
        Some(Verb::Audit(args::Audit { act: args::AuditAct::Verify(wanted) })) => {
            access::verify(setting, &wanted)
        }
        Some(Verb::Inspect(wanted)) => inspect::run(setting, &wanted),
        Some(Verb::Export(wanted)) => export::run(setting, &wanted),
        Some(Verb::Report(args::Report { verb: args::ReportVerb::Verify { files } })) => {
            report::verify(setting, &files)
        }
        Some(Verb::Archive(wanted)) => archive::run(setting, &wanted),
        Some(Verb::Hrl(wanted)) => hrl::run(setting, &wanted),
        Some(Verb::Rescue(wanted)) => rescue::run(setting, &wanted),
        Some(Verb::Branch(wanted)) => branch::run(setting, &wanted),
        Some(Verb::Profiles(profiles)) => session::profiles(setting, &profiles),
        Some(Verb::Logout(logout)) => session::logout(setting, &logout),
        Some(verb) => {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(
                    |error| {
                        Fault::new(
                            FaultClass::Failed,
                            "runtime",
                            format!("threads could not be started: {error}"),
                        )
                        .remedy("see the limits of this user: `ulimit -a`")
                    },
                )?;
            let result = runtime.block_on(ask(setting, verb));
            // A question or a name lookup may still hold a thread; nothing waits for it.
            runtime.shutdown_background();
            result
        }
    }
}

async fn ask(setting: &Setting, verb: Verb) -> Result<(), Fault> {
    match verb {
        Verb::Get(get) => get::run(setting, &get).await,
        Verb::Report(wanted) => report::run(setting, &wanted).await,
        Verb::Describe(describe) => describe::run(setting, &describe).await,
        Verb::Readiness(readiness) => describe::readiness(setting, &readiness).await,
        Verb::Doctor => doctor::run(setting).await,
        Verb::Login(login) => session::login(setting, &login).await,
        Verb::Token(token) => session::token(setting, &token).await,
        Verb::Wait(wait) => order::wait(setting, &wait).await,
        Verb::Protect(protect) => order::protect(setting, &protect).await,
        Verb::Pause(o) => order::give(setting, &o.machine, Order::Pause(pb::Pause {}), &o.wait, None).await,
        Verb::Resume(o) => {
            order::give(setting, &o.machine, Order::Resume(pb::Resume {}), &o.wait, None).await
        }
        Verb::Resync(o) => {
            order::give(setting, &o.machine, Order::Resync(pb::Resync { now: o.now }), &o.wait, None).await
        }
        Verb::Bookmark(o) => {
            let order = pb::Bookmark { name: o.name, app_consistent: o.app_consistent };
            order::give(setting, &o.machine, Order::Bookmark(order), &o.wait, None).await
        }
        Verb::Pin(o) => {
            let lock_seconds = o.lock_days.unwrap_or(0) * 24 * 3600;
            let order = pb::PinPoint { point: o.point, pinned: !o.remove, lock_seconds };
            order::give(setting, &o.machine, Order::PinPoint(order), &o.wait, None).await
        }
        Verb::TestFailover(o) if plan_of(&o.machine).is_some() => {
            let order = run_plan(&o.machine, "test-failover", &o.point);
            order::give(setting, &o.machine, order, &o.wait, None).await
        }
        Verb::Cleanup(o) if plan_of(&o.machine).is_some() => {
            let order = run_plan(&o.machine, "cleanup", "");
            order::give(setting, &o.machine, order, &o.wait, None).await
        }
        Verb::Apply(apply) => apply::run(setting, &apply).await,
        Verb::SetPolicy(o) => apply::assign(setting, &o).await,
        Verb::CanI(can) => access::can_i(setting, &can).await,
        Verb::Approve(o) => access::approve(setting, &o).await,
        Verb::Revoke(o) => access::revoke(setting, &o).await,
        Verb::Delete(o) if o.what == args::Deletable::Policy => {
            apply::delete_policy(setting, &o.name, &o.wait).await
        }
        Verb::Delete(o) => {
            if o.what == args::Deletable::Group {
                let order = Order::DeleteGroup(pb::DeleteGroup { group: o.name });
                return order::give(setting, "", order, &o.wait, None).await;
            }
            let name = format!("plan/{}", o.name);
            let danger = Danger { order: "delete", point: "", consent: &o.consent };
            let order = Order::DeletePlan(pb::DeletePlan { plan: o.name });
            order::give(setting, &name, order, &o.wait, Some(danger)).await
        }
        Verb::Group(args::Group { act: args::GroupAct::Set(o) }) => {
            let order = pb::SetGroup {
                name: o.name,
                machines: o.machines,
                every_seconds: o.every,
                hold_millis: o.hold_ms,
            };
            order::give(setting, "", Order::SetGroup(order), &o.wait, None).await
        }
        Verb::Proceed(o) => {
            order::give(setting, "", Order::Proceed(pb::Proceed { job: o.job }), &o.wait, None).await
        }
        Verb::TestFailover(o) => {
            let order = pb::TestFailoverOrder { point: o.point, keep_on_failure: o.keep };
            order::give(setting, &o.machine, Order::TestFailover(order), &o.wait, None).await
        }
        Verb::Cleanup(o) => {
            order::give(setting, &o.machine, Order::Cleanup(pb::Cleanup { note: o.note }), &o.wait, None)
                .await
        }
        Verb::Verify(o) => {
            let order = pb::Verify { point: o.point.unwrap_or_default() };
            order::give(setting, &o.machine, Order::Verify(order), &o.wait, None).await
        }
        Verb::Retry(o) => match (o.job, o.machine) {
            (Some(job), _) => {
                order::give(setting, "", Order::RetryJob(pb::RetryJob { job }), &o.wait, None).await
            }
            (None, machine) => {
                let machine = machine.unwrap_or_default();
                order::give(setting, &machine, Order::RetryNow(pb::RetryNow {}), &o.wait, None).await
            }
        },
        Verb::Move(o) => {
            let order = pb::MoveMachine { process_server: o.process_server };
            order::give(setting, &o.machine, Order::MoveMachine(order), &o.wait, None).await
        }
        Verb::Cancel(o) => {
            order::give(setting, "", Order::CancelJob(pb::CancelJob { job: o.job }), &o.wait, None).await
        }
        Verb::Acknowledge(o) => {
            let order = pb::AcknowledgeAlert { alert: o.alert };
            order::give(setting, "", Order::AcknowledgeAlert(order), &o.wait, None).await
        }
        Verb::Unprotect(o) => {
            let danger = Danger { order: "unprotect", point: "", consent: &o.consent };
            let order = pb::Unprotect { keep_replica: o.keep_replica };
            order::give(setting, &o.machine, Order::Unprotect(order), &o.wait, Some(danger)).await
        }
        Verb::Commit(o) => {
            let danger = Danger { order: "commit", point: "", consent: &o.consent };
            order::give(setting, &o.machine, Order::Commit(pb::Commit {}), &o.wait, Some(danger)).await
        }
        Verb::ChangePoint(o) => {
            let danger = Danger { order: "change-point", point: &o.point, consent: &o.consent };
            let order = Order::ChangePoint(pb::ChangePoint { point: o.point.clone() });
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        Verb::CancelFailover(o) => {
            let danger = Danger { order: "cancel-failover", point: "", consent: &o.consent };
            let order = Order::CancelFailover(pb::CancelFailover {});
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        Verb::Reprotect(o) => {
            let danger = Danger { order: "reprotect", point: "", consent: &o.consent };
            let order = Order::Reprotect(pb::Reprotect {});
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        Verb::Failback(o) => {
            let asked = if o.unplanned { "unplanned-failback" } else { "failback" };
            let kind = if o.unplanned { "unplanned" } else { "planned" };
            let danger = Danger { order: asked, point: "", consent: &o.consent };
            let order = Order::Failback(pb::Failback { kind: kind.into() });
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        Verb::CompleteMigration(o) => {
            let danger = Danger { order: "complete-migration", point: "", consent: &o.consent };
            let order = Order::CompleteMigration(pb::CompleteMigration {});
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        Verb::Failover(o) if o.planned => {
            let danger = Danger { order: "planned-failover", point: "", consent: &o.consent };
            let order = Order::Failover(pb::FailoverOrder { kind: "planned".into(), point: String::new() });
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        Verb::Failover(o) => {
            let point = o.point.unwrap_or_default();
            let danger = Danger { order: "failover", point: &point, consent: &o.consent };
            let order = match plan_of(&o.machine) {
                Some(_) => run_plan(&o.machine, "failover", &point),
                None => Order::Failover(pb::FailoverOrder { kind: "unplanned".into(), point: point.clone() }),
            };
            order::give(setting, &o.machine, order, &o.wait, Some(danger)).await
        }
        // Handled before the runtime was made.
        Verb::Completions { .. }
        | Verb::Man
        | Verb::Audit(_)
        | Verb::Inspect(_)
        | Verb::Branch(_)
        | Verb::Export(_)
        | Verb::Rescue(_)
        | Verb::Archive(_)
        | Verb::Hrl(_)
        | Verb::Profiles(_)
        | Verb::Logout(_)
        | Verb::Lab(_)
        | Verb::Role(_) => Ok(()),
    }
}

/// The name in `plan/NAME`.
fn plan_of(name: &str) -> Option<&str> {
    name.strip_prefix("plan/")
}

fn run_plan(name: &str, kind: &str, point: &str) -> Order {
    let plan = plan_of(name).unwrap_or_default().to_owned();
    Order::RunPlan(pb::RunPlan { plan, kind: kind.into(), point: point.into() })
}

/// Whether `-o json` stands among the words; for errors of the words themselves.
fn wants_json(words: &[OsString]) -> bool {
    let words: Vec<_> =
        words.iter().map(|word| word.to_string_lossy()).take_while(|word| word != "--").collect();
    words.iter().enumerate().any(|(at, word)| {
        let next = || words.get(at + 1).is_some_and(|next| next == "json");
        matches!(&**word, "-ojson" | "-o=json" | "--output=json")
            || (matches!(&**word, "-o" | "--output") && next())
    })
}

/// Whether a format was asked for whose errors are JSON, too.
const fn errors_in_json(format: Format) -> bool {
    matches!(format, Format::Json)
}
