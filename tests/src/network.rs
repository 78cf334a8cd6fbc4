//! Networks of our own for a test: namespaces with a link between each and a far side, and faults on those links.
//!
//! ```text
//! near 1 ── wan ── n1 ┐
//! near 2 ── wan ── n2 ├─ far (10.77.0.1)
//! near 3 ── wan ── n3 ┘
//! ```
//!
//! Lives here: namespaces, links, faults and their counters; a fault that never fired is told by its counter.
//! Needs root, iproute2 and nftables. Everything is removed when dropped.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The address of the far side, from everywhere.
pub const FAR: &str = "10.77.0.1";

/// Namespaces and their links.
pub struct Network {
    prefix: String,
    near: usize,
}

impl Network {
    /// A far side and so many near ones, all of them well connected.
    #[track_caller]
    pub fn make(near: usize) -> Self {
        assert!(rustix::process::geteuid().is_root(), "tests with network namespaces need root");
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let network = Self { prefix: format!("ct{}-{number}-", std::process::id()), near };
        let far = network.far();
        ip(&["netns", "add", &far]);
        ip(&["-n", &far, "link", "set", "lo", "up"]);
        ip(&["-n", &far, "addr", "add", "10.77.0.1/32", "dev", "lo"]);
        for n in 1..=near {
            let (name, here, there) = (network.near(n), format!("10.77.{n}.2/24"), format!("10.77.{n}.1/24"));
            let link = format!("n{n}");
            ip(&["netns", "add", &name]);
            ip(&["-n", &name, "link", "set", "lo", "up"]);
            ip(&["link", "add", &link, "netns", &far, "type", "veth", "peer", "name", "wan", "netns", &name]);
            ip(&["-n", &far, "addr", "add", &there, "dev", &link]);
            ip(&["-n", &far, "link", "set", &link, "up"]);
            ip(&["-n", &name, "addr", "add", &here, "dev", "wan"]);
            ip(&["-n", &name, "link", "set", "wan", "up"]);
            ip(&["-n", &name, "route", "add", "default", "via", &format!("10.77.{n}.1")]);
        }
        network
    }

    /// The far namespace.
    pub fn far(&self) -> String {
        format!("{}far", self.prefix)
    }
    /// A near one, from 1.
    pub fn near(&self, n: usize) -> String {
        format!("{}{n}", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in (1..=self.near).map(|n| self.near(n)).chain([self.far()]) {
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

/// A program that is to run in a namespace. The process that is started *is* the program.
pub fn within(namespace: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

#[track_caller]
fn ip(words: &[&str]) {
    let done = Command::new("ip").args(words).output().expect("`tests/run` installs iproute2");
    assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Rules of nftables in a namespace: `out` holds what leaves over the link, `into` what arrives. Each holds a
/// counter. Replaces the rules before.
#[track_caller]
pub fn rules(namespace: &str, out: &str, into: &str) {
    let script = format!(
        "table inet fault\ndelete table inet fault\ntable inet fault {{\n\
         chain out {{ type filter hook output priority 0; policy accept; {} }}\n\
         chain into {{ type filter hook input priority 0; policy accept; {} }}\n}}\n",
        rule("oifname", out),
        rule("iifname", into)
    );
    nft(namespace, &script);
}

fn rule(which: &str, what: &str) -> String {
    if what.is_empty() { String::new() } else { format!("{which} \"wan\" {what}") }
}

/// Ends the fault. Returns how often its rules had something to do.
#[track_caller]
pub fn clear(namespace: &str) -> u64 {
    let listed = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "list", "table", "inet", "fault"])
        .output()
        .expect("nft runs");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    nft(namespace, "table inet fault\ndelete table inet fault\n");
    let counts = text.split("packets ").skip(1);
    counts.filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

#[track_caller]
fn nft(namespace: &str, script: &str) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("`tests/run` installs nftables");
    let mut input = child.stdin.take().expect("its input");
    std::io::Write::write_all(&mut input, script.as_bytes()).expect("nft reads");
    drop(input);
    assert!(child.wait().expect("nft ends").success(), "nft does not take:\n{script}");
}

/// Holds what leaves over the link at this rate, such as `1mbit`.
#[track_caller]
pub fn narrow(namespace: &str, rate: &str) {
    let words = ["add", "dev", "wan", "root", "tbf", "rate", rate, "burst", "16kb", "latency", "200ms"];
    tc(namespace, &[&["qdisc"][..], &words].concat());
}

/// Lets everything through again. Returns how often something had to wait.
#[track_caller]
pub fn widen(namespace: &str) -> u64 {
    let text = tc(namespace, &["-s", "qdisc", "show", "dev", "wan"]);
    tc(namespace, &["qdisc", "del", "dev", "wan", "root"]);
    let waited = text.split("overlimits ").nth(1).and_then(|rest| rest.split_whitespace().next());
    waited.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[track_caller]
fn tc(namespace: &str, words: &[&str]) -> String {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "tc"]).args(words);
    let done = command.output().expect("tc runs");
    assert!(done.status.success(), "tc {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
