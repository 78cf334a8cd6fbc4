//! How long the writes of eight machines wait for a point that all of them share.
//!
//! `cargo bench -p continuum-tests --bench group [-- SECONDS]`: a lab of eight machines, a writer on each, a shared point
//! every second. Prints what the vault measured: the longest hold of each point, and how many there were.

use continuum_fabric::nbd::{Client, Uri};
use continuum_tests::lab::{Lab, endpoints};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const MACHINES: usize = 8;

fn main() {
    let seconds: u64 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(60);
    let lab = Lab::empty();
    let names: Vec<String> = (0..MACHINES).map(|n| format!("m{n}")).collect();
    for name in &names {
        lab.add(name, "none", &["8MiB"]);
    }
    lab.wait_healthy(MACHINES, Duration::from_secs(300));
    let members = names.join(",");
    assert_eq!(lab.run(&["group", "set", "all", "--machines", &members, "--every", "1s"]).code, 0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in &names {
            let (uri, over) = (endpoints(&lab.machine(name))[0].clone(), &over);
            scope.spawn(move || {
                let mut client = Client::connect(&Uri::parse(&uri).expect("a uri"), Duration::from_secs(30))
                    .expect("the disk");
                let mut at = 0u64;
                while !over.load(Ordering::Acquire) {
                    client.write(at % 2000 * 4096, &[at as u8; 4096], false).expect("a write");
                    at += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        std::thread::sleep(Duration::from_secs(seconds));
        over.store(true, Ordering::Release);
    });
    let group = lab.json(&["describe", "group", "all"]);
    println!(
        "{MACHINES} machines, {} shared points in {seconds} s; held: p50 {} ms, p99 {} ms, max {} ms; last miss: {}",
        group["points"],
        group["hold_p50_ms"],
        group["hold_p99_ms"],
        group["hold_max_ms"],
        group["missed_reason"]
    );
}
