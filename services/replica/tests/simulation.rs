//! The store, a clock and a medium from one seed, against a naive model (see `world`).
//!
//! `CONTINUUM_SEED=n` replays one seed and tells its steps; `CONTINUUM_SEEDS=n` says how many are run. A seed that
//! ever failed goes to `simulation.seeds`, and is run first from then on.

mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use world::{Counts, Options, run};

const SEEDS: u64 = 2000;
const CORPUS: &str = include_str!("simulation.seeds");

#[test]
fn the_store_is_what_the_model_says_through_anything() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let options = Options::default();
    if let Some(seed) = number("CONTINUUM_SEED") {
        match run(seed, &options) {
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
                match run(*seed, &options) {
                    Ok(more) => counts += more,
                    Err(why) => panic!("{why}"),
                }
            }
            counts
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Counts::default();
        for worker in workers {
            match worker.join() {
                Ok(counts) => all += counts,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    println!("{} seeds: {counts:?}", seeds.len());
    // Whatever does not happen is not tested.
    let Counts {
        faults,
        crashes,
        starts,
        folds,
        folds_under_views,
        thinned,
        thinned_under_views,
        views,
        overlays,
        compactions,
        refused,
        rot,
        digests,
    } = counts;
    for (what, happened) in [
        ("faults", faults),
        ("crashes", crashes),
        ("starts", starts),
        ("folds", folds),
        ("folds under views", folds_under_views),
        ("thinned stretches", thinned),
        ("thinned stretches under views", thinned_under_views),
        ("views", views),
        ("overlays", overlays),
        ("compactions", compactions),
        ("refused frames", refused),
        ("rot", rot),
        ("digests", digests),
    ] {
        assert!(happened > seeds.len() as u64 / 20, "too little of {what}: {counts:?}");
    }
}
