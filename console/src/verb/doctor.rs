//! `doctor`: what this machine and this installation lack, and how to mend it.
//!
//! Every check tells what was measured. A check that cannot be made here says so; nothing is guessed.

use super::Setting;
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, human};
use super::vault::Vault;
use crate::profile::{self, Target, secret};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Clocks further apart than this deserve a look.
const SKEW_SECONDS_MAX: f64 = 2.0;
/// A certificate that ends sooner than this should be renewed.
const CERTIFICATE_LEFT_MIN: Duration = Duration::from_secs(3 * 24 * 3600);
/// Free space below this is too little for a lab.
const FREE_BYTES_MIN: u64 = 2 << 30;
/// How long a vault may take to answer a doctor.
const ANSWER_MAX: Duration = Duration::from_secs(12);

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with less.
    Warning,
    /// Something does not work.
    Failed,
}

impl Verdict {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    remedy: String,
}

impl Finding {
    fn new(name: &'static str, verdict: Verdict, detail: impl Into<String>, remedy: &str) -> Self {
        let remedy = if verdict == Verdict::Ok { "" } else { remedy };
        Self { name, verdict, detail: detail.into(), remedy: remedy.to_owned() }
    }
}

/// Runs all checks.
pub async fn run(setting: &Setting) -> Result<(), Fault> {
    let mut findings = vec![terminal(), locale(), colour()];
    findings.extend(directories());
    findings.push(keyring());
    findings.extend(programs());
    findings.push(sockets());
    findings.extend(vault(setting).await);
    let docs = || {
        findings
            .iter()
            .map(|finding| {
                Doc::Map(vec![
                    ("check", finding.name.into()),
                    ("state", finding.verdict.name().into()),
                    ("detail", Doc::text(&finding.detail)),
                    ("remedy", Doc::text(&finding.remedy)),
                ])
            })
            .collect()
    };
    let blank = Doc::Map(["check", "state", "detail", "remedy"].map(|name| (name, Doc::Null)).to_vec());
    setting.write(|out| {
        output::list(out, setting.style, docs, &blank, |wide| {
            let mut table = Table::new(&["CHECK", "STATE", "FOUND"], "").whole(wide);
            for finding in &findings {
                table.row([
                    finding.name.into(),
                    Cell::state(finding.verdict.name()),
                    Cell::new(&finding.detail),
                ]);
            }
            table
        })?;
        if setting.style.format.for_programs() {
            return Ok(());
        }
        for finding in findings.iter().filter(|finding| !finding.remedy.is_empty()) {
            writeln!(out, "{}: {}", finding.name, shown(&finding.remedy))?;
        }
        Ok(())
    })?;
    let failed: Vec<&Finding> =
        findings.iter().filter(|finding| finding.verdict == Verdict::Failed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let names = failed.iter().map(|finding| finding.name).collect::<Vec<_>>().join(", ");
    Err(Fault::new(FaultClass::Failed, "doctor.failed", format!("to be mended: {names}"))
        .affects("what needs it")
        .spares("everything else")
        .remedy(failed.iter().map(|finding| finding.remedy.as_str()).collect::<Vec<_>>().join("; ")))
}

fn terminal() -> Finding {
    let term = std::env::var("TERM").unwrap_or_default();
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Finding::new(
            "terminal",
            Verdict::Ok,
            "none here (verbs do not need one, the console does)",
            "",
        );
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).map(|size| (size.ws_col, size.ws_row));
    let remedy = "the console needs 80x24 or more and a TERM such as xterm-256color";
    match (term.as_str(), size) {
        ("" | "dumb", _) => {
            Finding::new("terminal", Verdict::Failed, format!("TERM is `{}`", shown(&term)), remedy)
        }
        (_, Ok((columns, rows))) if columns >= 80 && rows >= 24 => {
            Finding::new("terminal", Verdict::Ok, format!("{}, {columns}x{rows}", shown(&term)), "")
        }
        (_, Ok((columns, rows))) => {
            Finding::new("terminal", Verdict::Warning, format!("{}, {columns}x{rows}", shown(&term)), remedy)
        }
        (_, Err(error)) => {
            Finding::new("terminal", Verdict::Warning, format!("its size is not known: {error}"), remedy)
        }
    }
}

fn locale() -> Finding {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| (name, value))
    });
    let remedy = "set LANG=C.UTF-8, so that marks and names are shown as they are";
    match set {
        Some((name, value)) => {
            let utf8 = value.to_ascii_lowercase().replace('-', "").contains("utf8");
            let verdict = if utf8 { Verdict::Ok } else { Verdict::Warning };
            Finding::new("locale", verdict, format!("{name}={}", shown(&value)), remedy)
        }
        None => Finding::new("locale", Verdict::Warning, "none is set", remedy),
    }
}

fn colour() -> Finding {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let depth = std::env::var("COLORTERM").unwrap_or_default();
    let detail = match (no_colour, depth.as_str()) {
        (true, _) => "off: NO_COLOR is set".to_owned(),
        (false, "truecolor" | "24bit") => "true colour".to_owned(),
        (false, _) => "what TERM promises; COLORTERM=truecolor would promise more".to_owned(),
    };
    Finding::new("colour", Verdict::Ok, detail, "")
}

fn directories() -> Vec<Finding> {
    let mut findings = Vec::new();
    let config = profile::config_dir();
    findings.push(match &config {
        Some(dir) => writable("configuration", dir),
        None => Finding::new("configuration", Verdict::Failed, "there is no home directory", "set HOME"),
    });
    findings.push(match profile::default_lab() {
        Some(dir) => writable("data", &dir),
        None => Finding::new(
            "data",
            Verdict::Failed,
            "there is no home directory",
            "set HOME, or name a directory with --dir",
        ),
    });
    if let Some(dir) = profile::default_lab() {
        findings.push(space(&dir));
    }
    findings
}

/// The nearest directory that is there already.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn writable(name: &'static str, dir: &Path) -> Finding {
    let base = existing(dir);
    let shown_dir = shown(&dir.display().to_string());
    let allowed = rustix::fs::access(&base, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    match allowed {
        Ok(()) => Finding::new(name, Verdict::Ok, shown_dir, ""),
        Err(error) => Finding::new(
            name,
            Verdict::Failed,
            format!("{shown_dir} cannot be written: {error}"),
            &format!("make {} writable for this user", shown(&base.display().to_string())),
        ),
    }
}

fn space(dir: &Path) -> Finding {
    match rustix::fs::statvfs(existing(dir)) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let verdict = if free >= FREE_BYTES_MIN { Verdict::Ok } else { Verdict::Warning };
            Finding::new(
                "space",
                verdict,
                format!("{} free for data", human::bytes(Some(free))),
                "a lab wants 2 GiB: free some, or name another directory with --dir",
            )
        }
        Err(error) => Finding::new(
            "space",
            Verdict::Warning,
            format!("not known: {error}"),
            "see whether the directory is there",
        ),
    }
}

fn keyring() -> Finding {
    match secret::keyring_missing() {
        None => Finding::new("keyring", Verdict::Ok, "there is one", ""),
        Some(reason) => Finding::new(
            "keyring",
            Verdict::Ok,
            format!("none ({reason}): keys are kept in files that only their owner can read"),
            "",
        ),
    }
}

fn programs() -> Vec<Finding> {
    // Only the lab's Linux guests need a program; the rest is for looking at disks by hand.
    let needed = [
        ("qemu-system-x86_64", "the lab's Linux guests (`--guests qemu`)", "apt-get install qemu-system-x86"),
        ("qemu-img", "looking at disks by hand", "apt-get install qemu-utils"),
        ("nbdinfo", "looking at disks by hand", "apt-get install libnbd-bin"),
    ];
    let mut findings = Vec::new();
    for (program, what_for, remedy) in needed {
        findings.push(match on_path(program) {
            Some(path) => Finding::new(program, Verdict::Ok, shown(&path.display().to_string()), ""),
            None => {
                Finding::new(program, Verdict::Warning, format!("not there; needed for {what_for}"), remedy)
            }
        });
    }
    findings
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok())
}

fn sockets() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    match limit {
        Some(limit) if limit < 1024 => Finding::new(
            "open files",
            Verdict::Warning,
            format!("at most {limit}"),
            "raise it: `ulimit -n 4096`",
        ),
        Some(limit) => Finding::new("open files", Verdict::Ok, format!("at most {limit}"), ""),
        None => Finding::new("open files", Verdict::Ok, "not limited", ""),
    }
}

/// Profile, certificate, connection, clock: each needs the one before it.
async fn vault(setting: &Setting) -> Vec<Finding> {
    let choice = setting.choice.clone();
    let opened = tokio::task::spawn_blocking(move || Target::open(&choice)).await;
    let target = match opened {
        Ok(Ok(target)) => target,
        // A fresh machine lacks nothing: it has just not been given a vault yet.
        Ok(Err(fault)) if fault.code == "profile.none" => {
            return vec![Finding::new("profile", Verdict::Warning, fault.message, &fault.remedy)];
        }
        Ok(Err(fault)) => {
            return vec![Finding::new("profile", Verdict::Failed, fault.message, &fault.remedy)];
        }
        Err(error) => {
            return vec![Finding::new("profile", Verdict::Failed, error.to_string(), "run it again")];
        }
    };
    let mut findings = vec![
        Finding::new(
            "profile",
            Verdict::Ok,
            format!("{} at {}", shown(&target.label), shown(&target.address)),
            "",
        ),
        certificate(&target),
    ];
    let asked = async {
        let mut vault = Vault::dial(target).await?;
        let who = vault.who_am_i().await?;
        let skew = skew(&mut vault).await;
        Ok::<_, Fault>((who, skew))
    };
    match tokio::time::timeout(ANSWER_MAX, asked).await {
        Err(_) => findings.push(Finding::new(
            "vault",
            Verdict::Failed,
            "no answer in 12 s",
            "see whether the vault runs",
        )),
        Ok(Err(fault)) => findings.push(Finding::new("vault", Verdict::Failed, fault.message, &fault.remedy)),
        Ok(Ok((who, skew))) => {
            findings.push(Finding::new(
                "vault",
                Verdict::Ok,
                format!(
                    "{} {}, as {} ({})",
                    shown(&who.vault_name),
                    shown(&who.version),
                    shown(&who.name),
                    shown(&who.role)
                ),
                "",
            ));
            findings.push(version(&who));
            findings.extend(skew.map(clock));
        }
    }
    findings
}

fn certificate(target: &Target) -> Finding {
    let left = target.credentials.expires_at() - SystemClock::default().wall().micros() / 1_000_000;
    let until = human::moment(Some(target.credentials.expires_at().saturating_mul(1_000_000)));
    let verdict = match left {
        left if left <= 0 => Verdict::Failed,
        left if left < CERTIFICATE_LEFT_MIN.as_secs() as i64 => Verdict::Warning,
        _ => Verdict::Ok,
    };
    Finding::new(
        "certificate",
        verdict,
        format!("good until {until}"),
        "log in again: `continuum login` (a lab makes a new one when it starts again)",
    )
}

fn version(who: &pb::WhoAmIReply) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    let verdict = if who.version.is_empty() || who.version == ours { Verdict::Ok } else { Verdict::Warning };
    Finding::new(
        "version",
        verdict,
        format!("this command {ours}, the vault {}", shown(&who.version)),
        "use the same version on both sides",
    )
}

fn clock(skew_seconds: f64) -> Finding {
    let verdict = if skew_seconds.abs() <= SKEW_SECONDS_MAX { Verdict::Ok } else { Verdict::Warning };
    let side = if skew_seconds >= 0.0 { "behind" } else { "ahead of" };
    Finding::new(
        "clock",
        verdict,
        format!("{:.1} s {side} the vault's", skew_seconds.abs()),
        "set this machine's clock, best with NTP",
    )
}

/// How far the vault's clock is ahead of ours, in seconds; half of the round trip is the error.
async fn skew(vault: &mut Vault) -> Option<f64> {
    let request = pb::WatchRequest { kinds: vec![pb::Kind::Site as i32], ..Default::default() };
    let mut stream = vault.watch(request).await.ok()?;
    loop {
        let message = tokio::time::timeout(ANSWER_MAX / 2, stream.message()).await.ok()?.ok()??;
        if let Some(pb::watch_event::Event::Tick(tick)) = message.event {
            let now: Timestamp = SystemClock::default().wall();
            return Some((tick.vault_time_us - now.micros()) as f64 / 1e6);
        }
    }
}
