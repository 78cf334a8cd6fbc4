//! Recovery plans: groups of machines that are brought up in an order, with what people do in between.
//!
//! Lives here: what a plan is, what may be wrong with it, and the order of its groups. Lives elsewhere: its YAML
//! (whoever takes it), its runs (the vault's jobs).
//!
//! ```yaml
//! name: shop
//! description: everything that takes orders
//! rto_seconds: 600
//! rpo_seconds: 60
//! groups:
//!   - name: databases
//!     machines: [db-01]
//!     manual: Look at the replication slots before the application starts.
//!   - name: application
//!     machines: [app-01, files-01]
//!   - name: front
//!     depends_on: [application]
//!     machines: [web-01]
//! ```

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest text of a plan, in bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;
/// Most groups.
pub const GROUPS_MAX: usize = 200;
/// Most machines in all groups.
pub const MACHINES_MAX: usize = 5000;
const NAME_BYTES_MAX: usize = 253;

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// What it is called.
    pub name: String,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// How long a run may take until its last machine answers.
    #[serde(default)]
    pub rto_seconds: Option<u64>,
    /// How old the moments that a run brings up may be.
    #[serde(default)]
    pub rpo_seconds: Option<u64>,
    /// Its groups.
    #[serde(default)]
    pub groups: Vec<Group>,
}

/// Machines that are brought up together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What it is called.
    pub name: String,
    /// Groups that must have been brought up before; where it is left out: the group above.
    #[serde(default)]
    pub depends_on: Option<Vec<String>>,
    /// Names of machines.
    #[serde(default)]
    pub machines: Vec<String>,
    /// What a person does once the group is up, before anything that depends on it begins.
    #[serde(default)]
    pub manual: String,
}

impl Plan {
    /// Everything that is wrong with it, each with its field. Empty: it can be run.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        // It stands in commands, ids and addresses.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let first = self.name.chars().next();
        if self.name.len() > 100
            || !self.name.chars().all(plain)
            || !first.is_some_and(|c| c.is_alphanumeric())
        {
            problems.push("name: give it one of 1 to 100 letters, digits, dots, - and _".into());
        }
        if self.rto_seconds == Some(0) {
            problems.push("rto_seconds: 0 cannot be met; leave it out, or name a time".into());
        }
        if self.rpo_seconds == Some(0) {
            problems.push("rpo_seconds: 0 cannot be met; leave it out, or name a time".into());
        }
        if self.groups.is_empty() {
            problems.push("groups: there is none; add one with at least one machine".into());
        }
        if self.groups.len() > GROUPS_MAX {
            problems.push(format!("groups: there are {}, at most {GROUPS_MAX} are taken", self.groups.len()));
            return problems;
        }
        let machines: usize = self.groups.iter().map(|group| group.machines.len()).sum();
        if machines > MACHINES_MAX {
            problems.push(format!("groups: they hold {machines} machines, at most {MACHINES_MAX} are taken"));
            return problems;
        }
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        let mut held: BTreeMap<&str, &str> = BTreeMap::new();
        for (place, group) in self.groups.iter().enumerate() {
            let field = format!("groups[{place}]");
            if group.name.is_empty() || group.name.len() > NAME_BYTES_MAX {
                problems.push(format!("{field}.name: give it one of 1 to 253 bytes"));
            } else if places.insert(&group.name, place).is_some() {
                problems.push(format!("{field}.name: another group is called {} already", group.name));
            }
            if group.machines.is_empty() {
                problems.push(format!("{field}.machines: the group is empty"));
            }
            for machine in &group.machines {
                if machine.is_empty() {
                    problems.push(format!("{field}.machines: a name is empty"));
                } else if let Some(other) = held.insert(machine, &group.name) {
                    problems.push(format!("{field}.machines: {machine} is in group {other} already"));
                }
            }
        }
        for (place, group) in self.groups.iter().enumerate() {
            for wanted in group.depends_on.iter().flatten() {
                if !places.contains_key(wanted.as_str()) {
                    problems.push(format!("groups[{place}].depends_on: there is no group {wanted}"));
                }
            }
        }
        if problems.is_empty()
            && let Err(cycle) = self.order()
        {
            problems.push(format!("groups: {} wait for one another in a circle", cycle.join(" → ")));
        }
        problems
    }

    /// The groups that one waits for, as places.
    pub fn waits_for(&self, place: usize) -> Vec<usize> {
        match self.groups.get(place).map(|group| &group.depends_on) {
            Some(Some(names)) => names
                .iter()
                .filter_map(|name| self.groups.iter().position(|group| group.name == *name))
                .collect(),
            Some(None) => place.checked_sub(1).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Places of the groups in the order in which they run: none before one that it waits for, else as written.
    ///
    /// Errors: the names of groups in a circle.
    pub fn order(&self) -> Result<Vec<usize>, Vec<String>> {
        let mut order: Vec<usize> = Vec::new();
        while order.len() < self.groups.len() {
            let next = (0..self.groups.len()).find(|place| {
                !order.contains(place) && self.waits_for(*place).iter().all(|wanted| order.contains(wanted))
            });
            match next {
                Some(place) => order.push(place),
                None => return Err(self.circle(&order)),
            }
        }
        Ok(order)
    }

    /// One circle among the groups that are not in `done`.
    fn circle(&self, done: &[usize]) -> Vec<String> {
        let mut path: Vec<usize> = Vec::new();
        let mut at = (0..self.groups.len()).find(|place| !done.contains(place));
        while let Some(place) = at {
            if let Some(begin) = path.iter().position(|known| *known == place) {
                path.drain(..begin);
                path.push(place);
                break;
            }
            path.push(place);
            at = self.waits_for(place).into_iter().find(|wanted| !done.contains(wanted));
        }
        path.into_iter().map(|place| self.groups[place].name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, depends_on: Option<&[&str]>, machines: &[&str]) -> Group {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Group {
            name: name.into(),
            depends_on: depends_on.map(owned),
            machines: owned(machines),
            manual: String::new(),
        }
    }

    fn plan(groups: Vec<Group>) -> Plan {
        Plan { name: "p".into(), description: String::new(), rto_seconds: None, rpo_seconds: None, groups }
    }

    #[test]
    fn groups_run_as_written_or_as_they_depend() {
        let plain = plan(vec![group("a", None, &["1"]), group("b", None, &["2"]), group("c", None, &["3"])]);
        assert_eq!(plain.order().unwrap(), [0, 1, 2]);
        assert_eq!((plain.waits_for(0), plain.waits_for(2)), (vec![], vec![1]));
        let graph = plan(vec![
            group("web", Some(&["app", "files"]), &["1"]),
            group("app", Some(&["db"]), &["2"]),
            group("db", Some(&[]), &["3"]),
            group("files", Some(&[]), &["4"]),
        ]);
        assert!(graph.problems().is_empty());
        assert_eq!(graph.order().unwrap(), [2, 1, 3, 0]);
    }

    #[test]
    fn everything_wrong_is_told_with_its_field() {
        let circle = plan(vec![
            group("a", Some(&["c"]), &["1"]),
            group("b", Some(&["a"]), &["2"]),
            group("c", Some(&["b"]), &["3"]),
            group("d", Some(&["c"]), &["4"]),
        ]);
        assert_eq!(circle.problems(), ["groups: a → c → b → a wait for one another in a circle"]);
        let own = plan(vec![group("a", Some(&["a"]), &["1"])]);
        assert_eq!(own.problems(), ["groups: a → a wait for one another in a circle"]);
        let mut wrong = plan(vec![
            group("a", None, &["1", "1"]),
            group("a", Some(&["nowhere"]), &[]),
            group("", None, &["", "1"]),
        ]);
        wrong.name = String::new();
        wrong.rto_seconds = Some(0);
        let told = wrong.problems().join("\n");
        for field in [
            "name: give",
            "rto_seconds",
            "groups[0].machines: 1 is in group a",
            "groups[1].name: another",
            "groups[1].machines: the group is empty",
            "groups[1].depends_on: there is no group nowhere",
            "groups[2].name",
            "groups[2].machines: a name is empty",
        ] {
            assert!(told.contains(field), "{field} is not in {told}");
        }
        assert_eq!(plan(Vec::new()).problems().len(), 1);
        let many = plan((0..=GROUPS_MAX).map(|n| group(&n.to_string(), None, &["x"])).collect());
        assert_eq!(many.problems().len(), 1, "a flood is told once");
    }
}
