//! Who is let in and what was done: `get operators|tokens|audit`, `revoke`, `can-i`, `approve`, `audit`.

use super::args::{self, Get, Noun};
use super::output::doc::Doc;
use super::output::table::{Cell, Table, Tone};
use super::output::{self, human};
use super::vault::Vault;
use super::{Setting, order};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::time::Timestamp;
use continuum_model::untrusted::shown;
use continuum_model::world::{Clock, SystemClock};
use continuum_proto::v1 as pb;
use continuum_wire::audit::{Chain, Line};
use pb::order_request::Order;
use std::io::{self, BufRead, Read};

/// Lines of the audit log that are asked for at once.
const PAGE: u32 = 1000;

/// Runs `get` of what is no entity of the estate.
pub async fn get(setting: &Setting, get: &Get) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let name = get.name.as_deref();
    match get.noun {
        Noun::Audit => audit(setting, &mut vault, get).await,
        Noun::Tokens => {
            let mut tokens = vault.access().await?.tokens;
            tokens.retain(|token| name.is_none_or(|name| token.id == name || token.name == name));
            list_tokens(setting, &tokens)
        }
        _ => {
            let mut operators = vault.access().await?.operators;
            operators.retain(|operator| name.is_none_or(|name| operator.name == name));
            list_operators(setting, &operators)
        }
    }
}

fn list_operators(setting: &Setting, operators: &[pb::KnownOperator]) -> Result<(), Fault> {
    let told = |operator: &pb::KnownOperator| {
        Doc::Map(vec![
            ("name", Doc::text(&operator.name)),
            ("role", Doc::text(&operator.role)),
            ("revoked", operator.revoked.into()),
            ("made", Doc::time(operator.made_us)),
            ("certificate_expires", operator.certificate_expires_us.map_or(Doc::Null, Doc::time)),
        ])
    };
    let now = SystemClock::default().wall();
    let blank = told(&pb::KnownOperator::default());
    setting.write(|out| {
        output::list(out, setting.style, operators.iter().map(told).collect(), &blank, |wide| {
            let mut table =
                Table::new(&["NAME", "ROLE", "ACCESS", "CERTIFICATE UNTIL"], "No operators.").whole(wide);
            for operator in operators {
                let (until, ended) = expiry(operator.certificate_expires_us, now);
                let access = match (operator.revoked, ended) {
                    (true, _) => Cell::new("revoked").toned(Tone::Dim),
                    (false, true) => Cell::new("ended").toned(Tone::Warning),
                    (false, false) => Cell::new("yes"),
                };
                table.row([
                    operator.name.as_str().into(),
                    operator.role.as_str().into(),
                    access,
                    until.into(),
                ]);
            }
            table
        })
    })
}

/// Until when, and whether that is past.
fn expiry(until: Option<i64>, now: Timestamp) -> (String, bool) {
    let ended = until.is_some_and(|until| Timestamp::from_micros(until) <= now);
    (until.map_or_else(|| "not known".to_owned(), |until| human::moment(Some(until))), ended)
}

/// What can still be done with a token.
pub fn token_state(token: &pb::KnownToken, now_us: i64) -> &'static str {
    match (token.revoked, token.used_us, token.expires_us <= now_us) {
        (true, ..) => "revoked",
        (_, Some(_), _) => "used",
        (_, _, true) => "ended",
        _ => "waits",
    }
}

fn list_tokens(setting: &Setting, tokens: &[pb::KnownToken]) -> Result<(), Fault> {
    let now = SystemClock::default().wall();
    let told = |token: &pb::KnownToken| {
        Doc::Map(vec![
            ("id", Doc::text(&token.id)),
            ("state", token_state(token, now.micros()).into()),
            ("role", Doc::text(&token.role)),
            ("operator_role", Doc::text(&token.operator_role)),
            ("name", Doc::text(&token.name)),
            ("site", Doc::text(&token.site)),
            ("made_by", Doc::text(&token.made_by)),
            ("made", Doc::time(token.made_us)),
            ("expires", Doc::time(token.expires_us)),
            ("used", token.used_us.map_or(Doc::Null, Doc::time)),
        ])
    };
    let blank = told(&pb::KnownToken::default());
    setting.write(|out| {
        output::list(out, setting.style, tokens.iter().map(told).collect(), &blank, |wide| {
            let head = ["ID", "STATE", "FOR", "NAME", "SITE", "MADE BY", "UNTIL"];
            let mut table = Table::new(&head, "No tokens.").whole(wide);
            for token in tokens {
                let what = match token.operator_role.as_str() {
                    "" => token.role.clone(),
                    role => format!("operator ({role})"),
                };
                table.row([
                    token.id.as_str().into(),
                    Cell::state(token_state(token, now.micros())),
                    what.into(),
                    token.name.as_str().into(),
                    token.site.as_str().into(),
                    token.made_by.as_str().into(),
                    human::moment(Some(token.expires_us)).into(),
                ]);
            }
            table
        })
    })
}

async fn audit(setting: &Setting, vault: &mut Vault, get: &Get) -> Result<(), Fault> {
    let most = get.limit.unwrap_or(200);
    let mut lines: Vec<pb::AuditLine> = Vec::new();
    // What is exported whole begins with the first line, so that the chain can be verified.
    let mut before = 0;
    loop {
        let left = most.saturating_sub(u32::try_from(lines.len()).unwrap_or(most));
        let request = pb::AuditRequest {
            before,
            limit: left.min(PAGE),
            contains: get.name.clone().unwrap_or_default(),
            oldest_first: get.all,
        };
        let limit = if get.all { PAGE } else { request.limit };
        let page = vault.audit(pb::AuditRequest { limit, ..request }).await?;
        before = page.lines.last().map_or(before, |line| line.seq);
        lines.extend(page.lines);
        if !page.more || (!get.all && lines.len() >= most as usize) {
            break;
        }
    }
    let told = |line: &pb::AuditLine| {
        Doc::Map(vec![
            ("seq", line.seq.into()),
            ("time", Doc::time(line.time_us)),
            ("time_us", line.time_us.into()),
            ("actor", Doc::text(&line.actor)),
            ("act", Doc::text(&line.act)),
            ("object", Doc::text(&line.object)),
            ("outcome", Doc::text(&line.outcome)),
            ("detail", Doc::text(&line.detail)),
            ("hash", Doc::text(&line.hash)),
        ])
    };
    let blank = told(&pb::AuditLine::default());
    setting.write(|out| {
        output::list(out, setting.style, lines.iter().map(told).collect(), &blank, |wide| {
            let head = [">SEQ", "TIME", "WHO", "WHAT", "OF", "OUTCOME", "DETAIL"];
            let mut table = Table::new(&head, "Nothing was written down.").whole(wide);
            for line in &lines {
                let refused = line.outcome == "refused";
                table.row([
                    line.seq.to_string().into(),
                    human::moment(Some(line.time_us)).into(),
                    line.actor.as_str().into(),
                    line.act.as_str().into(),
                    line.object.as_str().into(),
                    Cell::new(&line.outcome).toned(if refused { Tone::Warning } else { Tone::Plain }),
                    line.detail.as_str().into(),
                ]);
            }
            table
        })
    })
}

/// `audit verify FILE`: whether an exported log is whole, without any vault.
pub fn verify(setting: &Setting, verify: &args::AuditVerify) -> Result<(), Fault> {
    let path = shown(&verify.file.display().to_string());
    let unread = |why: String| {
        Fault::new(FaultClass::Usage, "file.unread", format!("{path}: {why}"))
            .spares("nothing was changed")
            .remedy("export one with `continuum get audit --all -o json`")
    };
    let file = std::fs::File::open(&verify.file).map_err(|error| unread(error.to_string()))?;
    let lines = read(io::BufReader::new(file)).map_err(unread)?;
    let mut chain = Chain::default();
    for line in &lines {
        if let Err(why) = chain.next(line) {
            return Err(Fault::new(
                FaultClass::Failed,
                "audit.broken",
                format!("line {} is the first that does not follow: {why}", line.seq),
            )
            .affects("that line and all after it: they prove nothing")
            .spares(format!("the {} lines before it", chain.count()))
            .remedy("compare with an earlier export, and with the vault's own: continuumd audit"));
        }
    }
    let head = chain.head().to_owned();
    if let Some(expected) = &verify.head
        && !lines.iter().any(|line| line.hash == *expected)
    {
        return Err(Fault::new(
            FaultClass::Failed,
            "audit.cut",
            "the chain holds, but the line that was the last one elsewhere is not in it: its end was cut off",
        )
        .affects("the lines after the last one here")
        .remedy("compare with the copy from which the head was taken"));
    }
    let doc = Doc::Map(vec![
        ("lines", (lines.len() as u64).into()),
        ("whole", true.into()),
        ("head", Doc::text(&head)),
    ]);
    setting.write(|out| {
        output::one(out, setting.style, doc, |out, _| {
            writeln!(out, "{} lines, each follows from the one before it.", lines.len())?;
            writeln!(out, "The last one's hash is {head}")?;
            if verify.head.is_none() {
                writeln!(
                    out,
                    "Whether the end was cut off only a hash kept elsewhere can tell: --head HASH compares."
                )?;
            }
            Ok(())
        })
    })
}

fn read(mut file: impl BufRead) -> Result<Vec<Line>, String> {
    const BYTES_MAX: u64 = 1 << 30;
    let mut text = String::new();
    file.by_ref().take(BYTES_MAX).read_to_string(&mut text).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| format!("no export of an audit log: {error}"))
}

/// `revoke`.
pub async fn revoke(setting: &Setting, revoke: &args::Revoke) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let (request, said) = match revoke.what {
        args::Revocable::Operator => (
            pb::RevokeRequest { operator: revoke.name.clone(), ..Default::default() },
            "their connections end, and their certificates are refused from now on",
        ),
        args::Revocable::Token => (
            pb::RevokeRequest { token: revoke.name.clone(), ..Default::default() },
            "nobody can enrol with it any more",
        ),
    };
    vault.revoke(request).await?;
    setting.say(&format!("{} is revoked: {said}", shown(&revoke.name)));
    Ok(())
}

/// `can-i`: exit code 0 for yes, 5 for no.
pub async fn can_i(setting: &Setting, can: &args::CanI) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let machine = can.machine.clone().unwrap_or_default();
    let reply = vault.can_i(pb::CanIRequest { order: can.order.clone(), machine }).await?;
    let names = |names: &[String]| Doc::List(names.iter().map(|name| Doc::text(name)).collect());
    let doc = Doc::Map(vec![
        ("order", Doc::text(&can.order)),
        ("machine", can.machine.as_deref().map_or(Doc::Null, Doc::text)),
        ("allowed", reply.allowed.into()),
        ("reason", Doc::text(&reply.reason)),
        ("needs_approval", reply.needs_approval.into()),
        ("roles", names(&reply.roles)),
        ("operators", names(&reply.operators)),
    ]);
    setting
        .write(|out| output::one(out, setting.style, doc, |out, _| write!(out, "{}", in_words(&reply))))?;
    if reply.allowed {
        return Ok(());
    }
    Err(Fault::new(FaultClass::Refused, "access.no", shown(&reply.reason))
        .affects("this order, if you gave it")
        .spares("nothing was ordered")
        .remedy("ask one of those named, or see what is in the way"))
}

/// The answer as a person reads it.
pub fn in_words(reply: &pb::CanIReply) -> String {
    let mut text = format!("{}: {}\n", if reply.allowed { "yes" } else { "no" }, shown(&reply.reason));
    if reply.allowed && reply.needs_approval {
        text += "  a second person (approver or owner) must agree to it\n";
    }
    let list = |names: &[String]| names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    text += &format!("  roles that may: {}\n", list(&reply.roles));
    if !reply.operators.is_empty() {
        text += &format!("  who has one: {}\n", list(&reply.operators));
    }
    text
}

/// `approve`: shows what waits, and answers.
pub async fn approve(setting: &Setting, approve: &args::Approve) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let job = super::follow::find(&mut vault, &approve.job).await?;
    let Some(approval) = job.approval.clone().filter(|_| job.state == "waiting") else {
        return Err(Fault::new(
            FaultClass::NotReady,
            "approval.not-waiting",
            "that job waits for nobody's agreement",
        )
        .spares("nothing was changed")
        .remedy("see what waits: continuum get jobs"));
    };
    for line in &approval.about {
        setting.say(line);
    }
    setting.say(&format!("digest: {}", approval.digest));
    setting.say(&format!("waits until {}", human::moment(Some(approval.expires_us))));
    let consent = args::Consent { confirm: approve.digest.clone() };
    let report = pb::ReadinessReply {
        ready: true,
        summary: format!("{} of {}", job.kind, job.machine),
        // What is agreed to is named by the head of its digest, typed out.
        confirm: approval.digest.chars().take(8).collect(),
        destroys: true,
        ..Default::default()
    };
    if !approve.refuse {
        let (yes, name) = (setting.yes, job.machine.clone());
        tokio::task::spawn_blocking(move || {
            super::consent::obtain("approve", &name, &report, yes, &consent, &mut super::consent::AtTerminal)
        })
        .await
        .map_err(|error| {
            Fault::new(FaultClass::Failed, "consent.unread", format!("the question failed: {error}"))
        })??;
    }
    let answer = pb::Approve {
        job: job.id.clone(),
        digest: approval.digest,
        refuse: approve.refuse,
        reason: approve.reason.clone().unwrap_or_default(),
    };
    let request = pb::OrderRequest {
        key: order::key(&approve.wait),
        order: Some(Order::Approve(answer)),
        ..Default::default()
    };
    let job = order::send(setting, &mut vault, request).await?;
    if approve.refuse {
        setting.say("refused: it is not carried out");
        return Ok(());
    }
    order::finish(setting, vault, vec![job], &approve.wait).await
}
