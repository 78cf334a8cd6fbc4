//! `apply`, `set-policy`, `delete policy`, versions: policies and plans as texts.
//!
//! Everything is read before anything is ordered: what is wrong in any file is told at once, and nothing was changed.

use super::args::{self, Get, Noun, Wait};
use super::consent::{self, AtTerminal};
use super::order::{finish, half_done, key, send};
use super::output::doc::Doc;
use super::output::table::{Cell, Table};
use super::output::{self, Format, human};
use super::vault::Vault;
use super::{Setting, get};
use continuum_document::{Body, Document, diff, policy as document};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::untrusted::shown;
use continuum_proto::v1 as pb;
use pb::entity::Entity;
use pb::order_request::Order;
use std::io::{self, Read as _};
use std::path::Path;

/// Runs `apply`.
pub async fn run(setting: &Setting, apply: &args::Apply) -> Result<(), Fault> {
    let mut documents: Vec<(String, Document)> = Vec::new();
    let mut wrong = Vec::new();
    for path in &apply.files {
        let file = shown(&path.display().to_string());
        match continuum_document::read(&text_of(path)?) {
            Ok(read) => documents.extend(read.into_iter().map(|document| (file.clone(), document))),
            Err(problems) => wrong.extend(problems.iter().map(|problem| format!("{file}: {problem}"))),
        }
    }
    for (at, (file, document)) in documents.iter().enumerate() {
        let same = |(_, other): &&(String, Document)| {
            other.kind() == document.kind() && other.name() == document.name()
        };
        if let Some((first, _)) = documents[..at].iter().find(same) {
            let (kind, name) = (document.kind(), shown(document.name()));
            wrong.push(format!(
                "{file}: line {}: {kind} {name} stands in {first}, too; keep one",
                document.line
            ));
        }
    }
    if !wrong.is_empty() {
        return Err(invalid(&wrong));
    }
    let mut vault = Vault::connect(&setting.choice).await?;
    let known = vault.snapshot(&[pb::Kind::Policy, pb::Kind::Plan], "", 0).await?;
    let mut orders = Vec::new();
    let mut dry = Vec::new();
    for (at, (file, document)) in documents.iter().enumerate() {
        let before = before(&known, document);
        let after = match &document.body {
            Body::Policy(name, policy) => document::write(name, policy),
            Body::Plan(_) => document.text.clone(),
        };
        let told = told(document, before.as_deref(), &after);
        setting.say(&format!("{file}: {told}"));
        if !setting.style.format.for_programs() {
            let lines = diff::text(before.as_deref().unwrap_or_default(), &after);
            lines.iter().for_each(|line| setting.say(&format!("  {line}")));
        }
        let mut request = match &document.body {
            Body::Policy(name, policy) => set_policy(&known, name, policy),
            Body::Plan(_) => {
                let order = pb::ApplyPlan { text: document.text.clone(), dry_run: apply.dry_run };
                pb::OrderRequest { order: Some(Order::ApplyPlan(order)), ..Default::default() }
            }
        };
        request.key = match &apply.wait.key {
            Some(key) if documents.len() > 1 => format!("{key}.{at}"),
            _ => key(&apply.wait),
        };
        if let Some(Order::SetPolicy(order)) = &request.order {
            let asked = pb::ReadinessRequest {
                order: "set-policy".into(),
                policy: order.policy.clone(),
                ..Default::default()
            };
            let report = vault.readiness(asked).await.map_err(|fault| at_file(file, fault))?;
            report
                .checks
                .iter()
                .filter(|check| check.state != "ok")
                .for_each(|check| setting.say(&check.detail));
            if apply.dry_run {
                dry.push(dry_doc(document, &told, &report));
                continue;
            }
            if report.destroys {
                let (name, yes) = (document.name().to_owned(), setting.yes);
                let consent = apply.consent.clone();
                let agreed = tokio::task::spawn_blocking(move || {
                    consent::obtain("apply", &name, &report, yes, &consent, &mut AtTerminal)
                });
                let agreed = agreed.await.map_err(|error| {
                    Fault::new(FaultClass::Failed, "consent.unread", format!("the question failed: {error}"))
                })??;
                request.confirm = agreed.confirm;
                request.expected_version = agreed.version;
            }
        }
        orders.push((file.clone(), document.name().to_owned(), request));
    }
    let mut jobs = Vec::new();
    let mut done = Vec::new();
    for (file, name, request) in orders {
        let sent = send(setting, &mut vault, request).await;
        let job = sent.map_err(|fault| {
            let fault = at_file(&file, fault);
            if done.is_empty() { fault } else { half_done(fault, &done) }
        })?;
        setting.say(&job.detail);
        done.push(name);
        jobs.push(job);
    }
    if apply.dry_run && jobs.is_empty() {
        return setting.write(|out| output::one(out, setting.style, Doc::List(dry), |_, _| Ok(())));
    }
    finish(setting, vault, jobs, &apply.wait).await
}

fn at_file(file: &str, fault: Fault) -> Fault {
    Fault { message: format!("{file}: {}", fault.message), ..fault }
}

fn dry_doc(document: &Document, told: &str, report: &pb::ReadinessReply) -> Doc {
    let check = |check: &pb::Check| {
        Doc::Map(vec![
            ("field", Doc::text(&check.name)),
            ("change", Doc::text(&check.detail)),
            ("loses_points", (check.state == "warning").into()),
        ])
    };
    Doc::Map(vec![
        ("kind", document.kind().into()),
        ("name", Doc::text(document.name())),
        ("outcome", Doc::text(told)),
        ("changes", Doc::list(&report.checks, check)),
        ("confirm", Doc::text(&report.confirm)),
    ])
}

fn told(document: &Document, before: Option<&str>, after: &str) -> String {
    let (kind, name) = (document.kind(), shown(document.name()));
    match before {
        None => format!("{kind} {name} is new"),
        Some(before) if before == after => format!("{kind} {name}: nothing changes"),
        Some(_) => format!("{kind} {name} changes"),
    }
}

/// The text of what is there under the document's name.
fn before(known: &[Entity], document: &Document) -> Option<String> {
    known.iter().find_map(|entity| match (entity, &document.body) {
        (Entity::Policy(policy), Body::Policy(name, _)) if policy.name == *name && !policy.deleted => {
            export(policy).ok()
        }
        (Entity::Plan(plan), Body::Plan(wanted)) if plan.name == wanted.name && !plan.deleted => {
            Some(plan.text.clone())
        }
        _ => None,
    })
}

fn set_policy(known: &[Entity], name: &str, policy: &continuum_model::policy::Policy) -> pb::OrderRequest {
    let there = known.iter().find_map(|entity| match entity {
        Entity::Policy(policy) if policy.name == name && !policy.deleted => Some(policy),
        _ => None,
    });
    let message = pb::Policy {
        name: name.to_owned(),
        id: there.map(|policy| policy.id.clone()).unwrap_or_default(),
        ..continuum_wire::policy::to_message(policy)
    };
    pb::OrderRequest {
        expected_version: there.map_or(0, |policy| policy.version),
        order: Some(Order::SetPolicy(pb::SetPolicy { policy: Some(message) })),
        ..Default::default()
    }
}

/// A policy as the text that `apply` takes.
pub fn export(policy: &pb::Policy) -> Result<String, Fault> {
    let read = continuum_wire::policy::from_message(policy).map_err(|why| {
        Fault::new(FaultClass::Failed, "policy.unread", format!("the vault's answer is no policy: {why}"))
            .remedy("see that vault and console are of the same version")
    })?;
    Ok(document::write(&policy.name, &read))
}

fn text_of(path: &Path) -> Result<String, Fault> {
    let unread = |why: String| {
        let path = shown(&path.display().to_string());
        Fault::new(FaultClass::Usage, "file.unread", format!("{path}: {why}"))
            .spares("nothing was changed")
            .remedy("name a file of UTF-8 text that you may read")
    };
    // One byte more than is taken, so that what is too large is told and not read.
    let most = continuum_document::TEXT_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|error| unread(error.to_string()))?;
    if bytes.len() as u64 == most {
        return Err(unread(format!("larger than {} KiB", continuum_document::TEXT_BYTES_MAX >> 10)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n');
        unread(format!("no UTF-8 in line {}", line.count() + 1))
    })
}

fn invalid(problems: &[String]) -> Fault {
    let several = if problems.len() == 1 { "this is wrong" } else { "these are wrong" };
    Fault::new(FaultClass::Usage, "document.invalid", format!("{several}: {}", problems.join("\n  ")))
        .affects("this command")
        .spares("everything: nothing was ordered")
        .remedy("mend what is named and apply it again; --dry-run checks it")
}

/// Puts machines under another policy.
pub async fn assign(setting: &Setting, assign: &args::SetPolicy) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let mut requests = Vec::new();
    // All reports first: with one machine that cannot, or that nobody agreed to, nothing is ordered.
    for (at, machine) in assign.machines.iter().enumerate() {
        let report = vault
            .readiness(pb::ReadinessRequest {
                machine: machine.clone(),
                order: "assign-policy".into(),
                policy: Some(pb::Policy { name: assign.policy.clone(), ..Default::default() }),
                ..Default::default()
            })
            .await?;
        let (name, yes, mut consent) = (machine.clone(), setting.yes, assign.consent.clone());
        // For several, `--confirm` names the policy: that is what is looked at once.
        if assign.machines.len() > 1 && consent.confirm.as_deref() == Some(&*assign.policy) {
            consent.confirm = Some(report.confirm.clone());
        }
        let agreed = tokio::task::spawn_blocking(move || {
            consent::obtain("set-policy", &name, &report, yes, &consent, &mut AtTerminal)
        });
        let agreed = agreed.await.map_err(|error| {
            Fault::new(FaultClass::Failed, "consent.unread", format!("the question failed: {error}"))
        })??;
        let key = match &assign.wait.key {
            Some(key) if assign.machines.len() > 1 => format!("{key}.{at}"),
            _ => key(&assign.wait),
        };
        requests.push(pb::OrderRequest {
            key,
            machine: machine.clone(),
            confirm: agreed.confirm,
            expected_version: agreed.version,
            order: Some(Order::AssignPolicy(pb::AssignPolicy { policy: assign.policy.clone() })),
        });
    }
    let mut jobs = Vec::new();
    for (at, request) in requests.into_iter().enumerate() {
        let sent = send(setting, &mut vault, request).await;
        jobs.push(
            sent.map_err(|fault| if at == 0 { fault } else { half_done(fault, &assign.machines[..at]) })?,
        );
    }
    finish(setting, vault, jobs, &assign.wait).await
}

/// Deletes a policy.
pub async fn delete_policy(setting: &Setting, name: &str, wait: &Wait) -> Result<(), Fault> {
    let mut vault = Vault::connect(&setting.choice).await?;
    let request = pb::OrderRequest {
        key: key(wait),
        order: Some(Order::DeletePolicy(pb::DeletePolicy { policy: name.to_owned() })),
        ..Default::default()
    };
    let job = send(setting, &mut vault, request).await?;
    finish(setting, vault, vec![job], wait).await
}

/// `get policies NAME --history` and `--diff`.
pub async fn versions(setting: &Setting, get: &Get) -> Result<(), Fault> {
    let kind = match get.noun {
        Noun::Policies => "policy",
        Noun::Plans => "plan",
        _ => return Err(get::usage(format!("of {} no versions are kept", get.noun.plural()))),
    };
    let Some(name) = &get.name else {
        return Err(get::usage(format!("name the {kind} whose versions you want")));
    };
    let mut vault = Vault::connect(&setting.choice).await?;
    let request = pb::VersionsRequest { kind: kind.into(), name: name.clone() };
    let versions = vault.versions(request).await?.versions;
    if get.diff {
        return differences(setting, &versions);
    }
    let told = |version: &pb::Version| {
        Doc::Map(vec![
            ("version", version.version.into()),
            ("time", Doc::time(version.time_us)),
            ("by", Doc::text(&version.by)),
            ("name", Doc::text(&version.name)),
            ("deleted", version.text.is_empty().into()),
            ("text", Doc::text(&version.text)),
        ])
    };
    let blank = told(&pb::Version::default());
    setting.write(|out| {
        output::list(out, setting.style, versions.iter().map(told).collect(), &blank, |wide| {
            let mut table =
                Table::new(&[">VERSION", "TIME", "BY", "NAME", "CHANGES"], "No versions.").whole(wide);
            for (at, version) in versions.iter().enumerate() {
                let before = versions.get(at + 1).map_or("", |before| before.text.as_str());
                let lines = diff::text(before, &version.text);
                let count = |sign: &str| lines.iter().filter(|line| line.starts_with(sign)).count();
                let changes = match (version.text.is_empty(), at + 1 == versions.len()) {
                    (true, _) => "deleted".to_owned(),
                    (_, true) => String::new(),
                    _ => format!("+{} -{} lines", count("+ "), count("- ")),
                };
                let time =
                    if version.time_us == 0 { "before".into() } else { human::moment(Some(version.time_us)) };
                table.row([
                    version.version.to_string().into(),
                    Cell::from(time),
                    version.by.as_str().into(),
                    version.name.as_str().into(),
                    changes.into(),
                ]);
            }
            table
        })
    })
}

fn differences(setting: &Setting, versions: &[pb::Version]) -> Result<(), Fault> {
    let docs: Vec<Doc> = versions
        .windows(2)
        .map(|pair| {
            let lines = diff::text(&pair[1].text, &pair[0].text);
            Doc::Map(vec![
                ("version", pair[0].version.into()),
                ("time", Doc::time(pair[0].time_us)),
                ("by", Doc::text(&pair[0].by)),
                ("diff", Doc::List(lines.into_iter().map(Doc::from).collect())),
            ])
        })
        .collect();
    setting.write(|out| {
        output::one(out, setting.style, Doc::List(docs), |out, _| {
            if versions.len() < 2 {
                writeln!(out, "There is one version only: nothing differs.")?;
            }
            for pair in versions.windows(2) {
                let (new, old) = (&pair[0], &pair[1]);
                writeln!(
                    out,
                    "version {} of {}, {} by {}",
                    new.version,
                    shown(&new.name),
                    human::moment(Some(new.time_us)),
                    shown(&new.by)
                )?;
                for line in diff::text(&old.text, &new.text) {
                    writeln!(out, "  {}", shown(&line))?;
                }
            }
            Ok(())
        })
    })
}

/// `get policies NAME -o yaml`: what `apply` takes. `None`: not asked for.
pub fn exported(setting: &Setting, get: &Get, entities: &[Entity]) -> Option<Result<(), Fault>> {
    if setting.style.format != Format::Yaml || !matches!(get.noun, Noun::Policies | Noun::Plans) {
        return None;
    }
    let texts: Result<Vec<String>, Fault> = entities
        .iter()
        .filter_map(|entity| match entity {
            Entity::Policy(policy) => Some(export(policy)),
            Entity::Plan(plan) => Some(Ok(plan.text.clone())),
            _ => None,
        })
        .collect();
    Some(texts.and_then(|texts| {
        setting.write(|out| {
            for (at, text) in texts.iter().enumerate() {
                if at > 0 {
                    writeln!(out, "---")?;
                }
                // It was read within bounds when it was applied; at a terminal what drives one is shown, not sent.
                for line in text.lines() {
                    writeln!(out, "{}", shown(line))?;
                }
            }
            Ok(())
        })
    }))
}
