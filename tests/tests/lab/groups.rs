//! Consistency groups: three machines under writes that depend on one another, points that all of them share, and what
//! happens to everybody's writes when one member hangs or dies.

use crate::prove::EndOfWork;
use continuum_fabric::nbd::{Client, Uri};
use continuum_tests::lab::{Lab, brought_up, endpoints};
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, History, Workload};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["web", "app", "db"];
const OPENING: u64 = 1_000_000;
const RUN: u64 = 0x6a0;

/// What one machine's account holds after a write: which write of all it was, and the balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    write: u64,
    balance: u64,
}

impl Entry {
    fn block(self) -> [u8; 4096] {
        let mut block = [0; 4096];
        block[..8].copy_from_slice(&self.write.to_le_bytes());
        block[8..16].copy_from_slice(&self.balance.to_le_bytes());
        block
    }
    fn read(uri: &str) -> Self {
        let mut client = Client::connect(&Uri::parse(uri).unwrap(), Duration::from_secs(30)).unwrap();
        let mut block = [0; 4096];
        client.read(0, &mut block).unwrap();
        let field = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        Self { write: field(0), balance: field(8) }
    }
}

/// Moves money between machines: first it leaves one, and once that is acknowledged it arrives at the other. Returns
/// every write of every machine, and the longest that one took.
struct Bank {
    over: AtomicBool,
    writes: AtomicU64,
}

impl Bank {
    fn run(&self, uris: &[String]) -> (Vec<Vec<Entry>>, Duration) {
        let connect =
            |uri: &String| Client::connect(&Uri::parse(uri).unwrap(), Duration::from_secs(60)).unwrap();
        let mut clients: Vec<Client> = uris.iter().map(connect).collect();
        let mut log = vec![vec![Entry { write: 0, balance: 0 }]; uris.len()];
        let mut write = 0;
        let mut longest = Duration::ZERO;
        let mut put = |log: &mut Vec<Vec<Entry>>, machine: usize, balance: u64| {
            write += 1;
            let entry = Entry { write, balance };
            let begun = Instant::now();
            while clients[machine].write(0, &entry.block(), true).is_err() {
                // Its agent was killed: the same write again, as a guest does.
                clients[machine] = connect(&uris[machine]);
            }
            longest = longest.max(begun.elapsed());
            self.writes.store(write, Ordering::Release);
            log[machine].push(entry);
        };
        for machine in 0..uris.len() {
            put(&mut log, machine, OPENING);
        }
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        while !self.over.load(Ordering::Acquire) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let from = (random % 3) as usize;
            let to = (from + 1 + (random >> 8) as usize % 2) % 3;
            let holds = |log: &[Vec<Entry>], machine: usize| log[machine].last().unwrap().balance;
            let amount = (random >> 16) % 1000;
            let amount = amount.min(holds(&log, from));
            let after = (holds(&log, from) - amount, holds(&log, to) + amount);
            put(&mut log, from, after.0);
            put(&mut log, to, after.1);
            std::thread::sleep(Duration::from_millis(1));
        }
        (log, longest)
    }
}

/// Whether these are, together, what the accounts held after some number of writes, and how many.
fn one_state(found: &[Entry], log: &[Vec<Entry>]) -> Option<u64> {
    let mut newest = 0;
    let mut next = u64::MAX;
    for (entry, history) in found.iter().zip(log) {
        let at = history.iter().position(|known| known == entry)?;
        newest = newest.max(entry.write);
        next = next.min(history.get(at + 1).map_or(u64::MAX, |entry| entry.write));
    }
    (newest < next).then_some(newest)
}

fn the_sum_holds(found: &[Entry], log: &[Vec<Entry>]) {
    let writes = one_state(found, log).unwrap_or_else(|| panic!("no one state: {found:?}"));
    let sum: u64 = found.iter().map(|entry| entry.balance).sum();
    // The opening writes, then two for each transfer: with an odd one, what left has not arrived.
    let under_way = if (writes - 3) % 2 == 1 {
        let all: Vec<&Entry> = log.iter().flatten().collect();
        let leaves = all.iter().find(|entry| entry.write == writes).unwrap();
        let before = log.iter().find(|history| history.contains(leaves)).unwrap();
        let at = before.iter().position(|entry| entry == *leaves).unwrap();
        before[at - 1].balance - leaves.balance
    } else {
        0
    };
    assert_eq!(sum + under_way, 3 * OPENING, "money was made or lost: {found:?}");
    println!("{found:?}: the state after {writes} writes, {under_way} under way");
}

fn group(lab: &Lab) -> serde_json::Value {
    lab.json(&["describe", "group", "shop"])
}

fn shared_point(lab: &Lab, name: &str) -> String {
    let job = lab.json(&["bookmark", "group/shop", name]);
    assert_eq!(job["state"], "succeeded", "{job}");
    group(lab)["newest_point_id"].as_str().unwrap().to_owned()
}

/// Brings all of them up at one shared point by their plan: the images of the first disks, the accounts on the second ones,
/// the latest of their moments.
fn all_up(lab: &Lab, point: &str) -> (Vec<Vec<u8>>, Vec<Entry>, i64) {
    let run = lab.json(&["test-failover", "plan/shop", "--point", point]);
    assert_eq!(run["state"], "succeeded", "{run}");
    let mut found: Vec<(usize, Vec<u8>, Entry, i64)> = Vec::new();
    for machine in run["machines"].as_array().unwrap() {
        let place = NAMES.iter().position(|name| machine["name"] == *name).unwrap();
        let disks = endpoints(machine);
        let one = serde_json::json!({ "machines": [machine] });
        let image = oracle::read_image(&disks[0]).expect("the disk is served");
        found.push((place, image, Entry::read(&disks[1]), brought_up(&one).1));
    }
    found.sort_by_key(|(place, ..)| *place);
    assert_eq!(found.len(), 3, "{run}");
    let latest = found.iter().map(|(.., at)| *at).max().unwrap();
    assert_eq!(lab.run(&["cleanup", "plan/shop"]).code, 0);
    let accounts = found.iter().map(|(_, _, entry, _)| *entry).collect();
    (found.into_iter().map(|(_, image, ..)| image).collect(), accounts, latest)
}

fn shop() -> Lab {
    let lab = Lab::empty();
    for name in NAMES {
        lab.add(name, "none", &["8MiB", "1MiB"]);
    }
    lab.wait_healthy(3, Duration::from_secs(120));
    lab
}

#[test]
fn points_that_machines_share_are_one_state_of_all_and_a_member_that_hangs_holds_up_nobody() {
    let lab = shop();
    // One of them in no group, or too few of them: nothing is made.
    assert_eq!(lab.run(&["group", "set", "shop", "--machines", "web"]).code, 2);
    let unknown = lab.run(&["group", "set", "shop", "--machines", "web,nobody"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    let set = ["group", "set", "shop", "--machines", "web,app,db", "--every", "0"];
    assert_eq!(lab.run(&set).code, 0);
    let twice = lab.run(&["group", "set", "other", "--machines", "web,app"]);
    assert!(twice.stderr.contains("is in group shop already"), "{}", twice.stderr);
    let none = lab.run(&["test-failover", "web", "--point", "group:shop"]);
    assert!(none.stderr.contains("no point that web shares"), "{}", none.stderr);
    let plan = lab.dir().join("shop.yaml");
    std::fs::write(&plan, "name: shop\ngroups:\n  - name: all\n    machines: [web, app, db]\n").unwrap();
    assert_eq!(lab.run(&["apply", "-f", plan.to_str().unwrap()]).code, 0);

    let uris: Vec<Vec<String>> = NAMES.iter().map(|name| endpoints(&lab.machine(name))).collect();
    let accounts: Vec<String> = uris.iter().map(|disks| disks[1].clone()).collect();
    let log = lab.dir().join("acks");
    let workload = Workload::new(RUN, &log).expect("a log");
    let bank = Bank { over: AtomicBool::new(false), writes: AtomicU64::new(0) };
    let (points, log_of_bank, stuck) = std::thread::scope(|scope| {
        let _end = EndOfWork(&workload);
        for (disk, disks) in (0u32..).zip(&uris) {
            let (uri, seed) = (disks[0].clone(), 11 + u64::from(disk));
            let writer = Writer { uri, disk, blocks: 0..8_000, bytes_per_sec: 2 << 20, seed };
            let workload = &workload;
            scope.spawn(move || workload.write(&writer).expect("the workload runs"));
        }
        let (bank_, accounts_) = (&bank, &accounts);
        let working = scope.spawn(move || bank_.run(accounts_));
        lab.wait_for("all accounts are open", Duration::from_secs(30), |_| {
            bank.writes.load(Ordering::Acquire) > 50
        });
        // Members need a moment to find their leader; then every order gives one.
        lab.wait_for("a first shared point", Duration::from_secs(60), |lab| {
            lab.run(&["bookmark", "group/shop", "first"]).code == 0
        });
        let mut points = vec![group(&lab)["newest_point_id"].as_str().unwrap().to_owned()];
        points.extend((0..3).map(|n| shared_point(&lab, &format!("point {n}"))));
        points.dedup();
        assert_eq!(points.len(), 4);

        // One member hangs: no point, the others write on, and it is told who it was.
        lab.signal("agent", "app", Signal::STOP);
        let refused = lab.run(&["bookmark", "group/shop", "without app"]);
        assert_ne!(refused.code, 0);
        assert!(refused.stderr.contains("app did not answer"), "{}", refused.stderr);
        let mut client =
            Client::connect(&Uri::parse(&accounts[2]).unwrap(), Duration::from_secs(10)).unwrap();
        let begun = Instant::now();
        client.write(4096, &[1; 4096], true).expect("the others' writes go on while it hangs");
        let stuck = begun.elapsed();
        lab.signal("agent", "app", Signal::CONT);
        lab.wait_for("it is told", Duration::from_secs(30), |lab| {
            let events = lab.json(&["get", "events"]);
            events.as_array().unwrap().iter().any(|event| {
                event["kind"] == "group" && event["text"].as_str().unwrap().contains("app did not answer")
            })
        });
        assert!(group(&lab)["missed_reason"].as_str().unwrap().contains("app did not answer"));
        lab.wait_for("a shared point again", Duration::from_secs(60), |lab| {
            lab.run(&["bookmark", "group/shop", "with app"]).code == 0
        });
        points.push(group(&lab)["newest_point_id"].as_str().unwrap().to_owned());
        bank.over.store(true, Ordering::Release);
        let (log, longest) = working.join().unwrap();
        println!("the longest write took {longest:?}, one beside a member that hangs {stuck:?}");
        workload.stop();
        (points, log, stuck)
    });
    assert!(stuck < Duration::from_secs(30), "a write waited for another machine: {stuck:?}");
    let history = History::read(&[log.as_path()]).expect("the log");
    assert!(history.writes.len() > 100);
    let mut states = Vec::new();
    for point in &points {
        let (images, accounts, latest) = all_up(&lab, point);
        let slices: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
        let violations = oracle::prove(&slices, &history, latest);
        assert!(
            violations.is_empty(),
            "{point}: {} violations, first {:?}",
            violations.len(),
            violations.first()
        );
        the_sum_holds(&accounts, &log_of_bank);
        states.push((images, accounts, latest));
    }
    // What proves this can fail: machines at moments of their own are no one state.
    let mixed = [states[0].1[0], states[2].1[1], states[1].1[2]];
    assert_eq!(one_state(&mixed, &log_of_bank), None);
    let mixed: Vec<&[u8]> = vec![&states[0].0[0], &states[2].0[1], &states[1].0[2]];
    assert!(!oracle::prove(&mixed, &history, states[2].2).is_empty());
    // The newest one, named by the group, for the plan and for one machine.
    let run = lab.json(&["test-failover", "web", "--point", "group"]);
    assert_eq!(run["machines"][0]["point"]["id"], points[4].as_str(), "{run}");
    assert_eq!(lab.run(&["cleanup", "web"]).code, 0);
    let listed = lab.json(&["get", "points", "web"]);
    let shared = listed.as_array().unwrap().iter().filter(|point| point["group"] == "shop").count();
    assert_eq!(shared, 5, "{listed}");
    // The one that came to nothing is an ordinary point of those who cut it.
    let lonely = |point: &&serde_json::Value| point["name"] == "without app" && point["group"].is_null();
    assert_eq!(listed.as_array().unwrap().iter().filter(lonely).count(), 1, "{listed}");
    let told = group(&lab);
    assert!(told["hold_p99_ms"].as_f64().unwrap() > 0.0, "{told}");
    println!(
        "held: p50 {} ms, p99 {} ms, max {} ms",
        told["hold_p50_ms"], told["hold_p99_ms"], told["hold_max_ms"]
    );
}

#[test]
fn a_leader_that_dies_while_all_hold_lets_everybody_go_on_and_another_one_follows() {
    let lab = shop();
    let set = ["group", "set", "shop", "--machines", "web,app,db", "--every", "0", "--hold-ms", "5000"];
    assert_eq!(lab.run(&set).code, 0);
    lab.wait_for("a first shared point", Duration::from_secs(60), |lab| {
        lab.run(&["bookmark", "group/shop", "first"]).code == 0
    });
    assert_eq!(group(&lab)["leader"], "web");
    let uri = endpoints(&lab.machine("db"))[1].clone();
    let (writes, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = Client::connect(&Uri::parse(&uri).unwrap(), Duration::from_secs(30)).unwrap();
            while !over.load(Ordering::Acquire) {
                client.write(0, &[7; 4096], false).expect("the disk of a machine that nothing happened to");
                writes.fetch_add(1, Ordering::Release);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let now = || writes.load(Ordering::Acquire);
        // The round stays open for as long as one member does not answer.
        lab.signal("agent", "app", Signal::STOP);
        let order = scope.spawn(|| lab.run(&["bookmark", "group/shop", "never"]));
        let begun = Instant::now();
        let mut before = now();
        loop {
            std::thread::sleep(Duration::from_millis(300));
            if now() == before && before > 0 {
                break;
            }
            before = now();
            assert!(begun.elapsed() < Duration::from_secs(30), "nobody ever held: the fault did not fire");
        }
        let held = Instant::now();
        lab.signal("agent", "web", Signal::KILL);
        lab.wait_for("the machine that held goes on", Duration::from_secs(20), |_| now() > before);
        println!(
            "after the leader's death writes went on within {:?}; they may be held for 5 s",
            held.elapsed()
        );
        lab.signal("agent", "app", Signal::CONT);
        assert_ne!(order.join().unwrap().code, 0, "no point without its leader");
        over.store(true, Ordering::Release);
    });
    lab.wait_for("a shared point again", Duration::from_secs(90), |lab| {
        lab.run(&["bookmark", "group/shop", "again"]).code == 0
    });
    let listed = lab.json(&["get", "points", "db"]);
    let never = listed.as_array().unwrap().iter().find(|point| point["name"] == "never");
    assert!(never.is_none_or(|point| point["group"].is_null()), "{listed}");
    assert_eq!(lab.run(&["delete", "group", "shop"]).code, 0);
    assert_eq!(lab.json(&["get", "groups"]).as_array().unwrap().len(), 0);
}
