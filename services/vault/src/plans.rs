//! Recovery plans: from text to what is run, and what is known of one now.
//!
//! Lives here: freezing a plan for a run. Lives elsewhere: what a plan is (`model::recovery_plan`), its YAML
//! (`document::plan`), its row (`store::plans`), its runs (`jobs`).

use crate::estate::Estate;
use crate::store::jobs::{FrozenGroup, FrozenPlan};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::recovery_plan::Plan;
use continuum_model::untrusted::shown;

/// Reads a plan's text.
///
/// Errors: everything that is wrong, with its field or line; nothing was changed.
pub(crate) fn parse(text: &str) -> Result<Plan, Fault> {
    let wrong = |problems: &[String]| {
        let text = problems.iter().map(|problem| shown(problem)).collect::<Vec<_>>().join("; ");
        Fault::new(FaultClass::Usage, "plan.invalid", format!("this is no plan that can be run: {text}"))
            .affects("this order")
            .spares("plans that are there, and their runs")
            .remedy("mend the file and apply it again; --dry-run checks it")
    };
    continuum_document::plan::read(text).map_err(|problems| {
        let told: Vec<String> = problems.iter().take(20).map(ToString::to_string).collect();
        wrong(&told)
    })
}

/// What a run of a plan will do, whatever becomes of the plan meanwhile: groups in their order, machines by id.
/// Beside it the names that no machine has.
pub(crate) fn freeze(plan: &Plan, estate: &Estate) -> (FrozenPlan, Vec<String>) {
    let mut unknown = Vec::new();
    let order = plan.order().unwrap_or_default();
    let groups = order.into_iter().filter_map(|place| plan.groups.get(place)).map(|group| {
        let machines = group.machines.iter().filter_map(|name| {
            let found = estate.machine_named(name).map(|entry| (entry.row.id, entry.row.name.clone()));
            if found.is_none() {
                unknown.push(name.clone());
            }
            found
        });
        FrozenGroup {
            name: group.name.clone(),
            machines: machines.collect(),
            manual: group.manual.trim().to_owned(),
        }
    });
    let groups = groups.collect();
    let frozen = FrozenPlan {
        name: plan.name.clone(),
        rto_seconds: plan.rto_seconds,
        rpo_seconds: plan.rpo_seconds,
        groups,
        ..FrozenPlan::default()
    };
    (frozen, unknown)
}

/// The name in `plan/NAME`.
pub(crate) fn named(text: &str) -> Option<&str> {
    text.strip_prefix("plan/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use continuum_model::recovery_plan::TEXT_BYTES_MAX;

    #[test]
    fn hostile_yaml_is_refused_within_bounds() {
        let bomb = format!(
            "name: x\ndescription: &a {}\ngroups:\n{}",
            "y".repeat(1000),
            (0..20_000).map(|n| format!("  - {{name: *a, machines: [m{n}]}}\n")).collect::<String>()
        );
        let deep = format!("name: {}x{}", "[".repeat(100_000), "]".repeat(100_000));
        let laughs = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nname: *e\n";
        let large = "x".repeat(TEXT_BYTES_MAX + 1);
        for (why, text) in [
            ("a bomb of aliases", bomb.as_str()),
            ("laughs", laughs),
            ("depth", &deep),
            ("size", &large),
            ("nothing", ""),
            ("no YAML", "\u{0}\u{1}: ["),
            ("an unknown field", "name: x\ngroups: [{name: a, machines: [m], sript: run}]"),
            ("a field twice", "name: x\nname: y\ngroups: [{name: a, machines: [m]}]"),
            ("two documents", "name: x\ngroups: [{name: a, machines: [m]}]\n---\nname: y\n"),
            ("a wrong type", "name: x\nrto_seconds: soon\ngroups: [{name: a, machines: [m]}]"),
            ("a tag", "name: !!python/object x\ngroups: [{name: a, machines: !!binary m}]"),
        ] {
            let fault = parse(text).err().unwrap_or_else(|| panic!("{why} was taken"));
            assert_eq!((fault.code.as_str(), fault.class), ("plan.invalid", FaultClass::Usage), "{why}");
            assert!(fault.message.len() < 4096, "{why}: {} bytes of words", fault.message.len());
        }
        let plan = parse("name: no\ngroups: [{name: a, machines: [on, 'off', 1e3]}]").unwrap();
        assert_eq!(plan.name, "no");
        assert_eq!(plan.groups[0].machines, ["on", "off", "1e3"], "names stay what was written");
    }
}
