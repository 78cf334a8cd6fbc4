//! The whole path from one seed: the feed of an agent, a process server's course of a stream, and a target's store
//! (see `world`).
//!
//! `CONTINUUM_SEED=n` runs one seed and tells its steps; `CONTINUUM_SEEDS=n` says how many are run. A seed that ever
//! failed goes to `path.seeds`, and is run first from then on.

mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use world::{Bug, Counts, run};

const SEEDS: u64 = 1000;
const CORPUS: &str = include_str!("path.seeds");

#[test]
fn every_write_arrives_in_order_whatever_happens_between_the_sites() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("CONTINUUM_SEED") {
        match run(seed, None) {
            Ok(counts) => println!("seed {seed}: {counts:?}"),
            Err(why) => panic!("{why}"),
        }
        return;
    }
    let corpus = CORPUS.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    let seeds: Vec<u64> = corpus.chain(0..number("CONTINUUM_SEEDS").unwrap_or(SEEDS)).collect();
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let counts = std::thread::scope(|scope| {
        let work = || {
            let mut counts = Counts::default();
            while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                match run(*seed, None) {
                    Ok(more) => counts.add(&more),
                    Err(why) => panic!("{why}"),
                }
            }
            counts
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Counts::default();
        for worker in workers {
            match worker.join() {
                Ok(counts) => all.add(&counts),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    println!("{} seeds: {counts:?}", seeds.len());
    // Whatever does not happen is not tested.
    if seeds.len() >= 500 {
        for (what, count) in counts.rows() {
            assert!(count > 20, "only {count} × {what}");
        }
    }
}

#[test]
fn every_planted_bug_is_noticed() {
    for bug in [Bug::AckBeforeDurable, Bug::RelayAcknowledges, Bug::DuplicateTwice, Bug::StaleEpochTaken] {
        let noticed = (0..300).find_map(|seed| run(seed, Some(bug)).err());
        let why = noticed.unwrap_or_else(|| panic!("{bug:?} was not noticed in 300 seeds"));
        println!("{bug:?}: {}", why.lines().next().unwrap_or_default());
    }
}
