//! The store against a naive one in memory: random histories, crashes at every operation, rot at every byte.
//!
//! `CONTINUUM_SEED=n` replays one seed; `CONTINUUM_SEEDS=n` says how many are run.

mod source;

use bytes::Bytes;
use continuum_model::feed::{Change, Codec, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::ViewId;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::medium::{Fault, Simulated};
use continuum_replica::{ReplicaError, Store};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

use source::{MACHINE, SIZES, Source, disks, open};

fn seeds(default: u64) -> Vec<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("CONTINUUM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("CONTINUUM_SEEDS").unwrap_or(default)).collect(),
    }
}

/// Runs a history with a fault at the `nth` operation; returns whether the fault fired.
fn run(seed: u64, nth: Option<(u64, Fault)>) -> bool {
    let replay = format!(
        "seed {seed} fault {nth:?}: CONTINUUM_SEED={seed} cargo test -p continuum-replica --test store"
    );
    let world = Simulated::default();
    let mut source = Source::new(seed);
    let mut store = open(world.clone());
    if let Some((nth, fault)) = nth {
        world.fault_at(nth, fault);
    }
    let mut acked = Sequence(0);
    let mut sent = 0;
    for round in 0..5 {
        (0..3).for_each(|_| source.frame(6));
        let mut failed = match store.append(&source.frames[sent..]) {
            Ok(appended) => {
                acked = appended.sequence;
                sent = source.frames.len();
                false
            }
            Err(_) => true,
        };
        if round >= 2 && !failed {
            let until = Timestamp::from_micros(source.time / 2 + 500_000);
            failed = store.fold(until, None).is_err();
        }
        if failed {
            drop(store);
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xdead);
            world.crash(|| rng.random());
            store = open(world.clone());
            source.check(&store, acked, &replay);
            // The sender resends from what is durable.
            sent = store.state().last.number.0 as usize;
        }
    }
    let appended = store.append(&source.frames[sent..]).unwrap_or_else(|error| panic!("{replay}: {error}"));
    acked = acked.max(appended.sequence);
    source.check(&store, acked, &replay);
    drop(store);
    world.disarm();
    source.check(&open(world.clone()), acked, &replay);
    nth.is_none_or(|_| world.fired() > 0)
}

#[test]
fn every_position_is_what_the_source_was() {
    for seed in seeds(30) {
        assert!(run(seed, None));
    }
}

#[test]
fn a_power_cut_or_error_at_any_operation_loses_nothing_acknowledged() {
    for seed in seeds(2) {
        for fault in [Fault::PowerCut, Fault::Error] {
            let mut nth = 1;
            while run(seed, Some((nth, fault))) {
                nth += 1;
            }
            assert!(nth > 20, "the faults must have fired: {nth}");
        }
    }
}

#[test]
fn a_flip_of_any_byte_is_never_served() {
    let mut source = Source::new(1);
    let pristine = || {
        let world = Simulated::default();
        let store = open(world.clone());
        (world, store)
    };
    let (world, store) = pristine();
    (0..4).for_each(|_| source.frame(5));
    store.append(&source.frames).unwrap();
    store.fold(source.states.values().nth(8).unwrap().0, None).unwrap();
    drop(store);
    let names: Vec<String> = world.names().into_iter().filter(|name| !name.starts_with("views")).collect();
    let contents: Vec<_> = names.iter().map(|name| world.content(name).unwrap()).collect();
    let mut found = 0;
    for (name, content) in names.iter().zip(&contents) {
        let step = (content.len() / 100).max(1);
        for at in (0..content.len()).step_by(step) {
            world.corrupt(name, |bytes| bytes[at] ^= 0x20);
            let opened = Store::open_or_create(Arc::new(world.clone()), MACHINE, &disks());
            if let Ok((store, findings)) = opened {
                let mut bad = !findings.is_empty();
                for (position, (_, disks)) in &source.states {
                    let Ok(view) = store.open_view(*position) else { continue };
                    for (disk, expected) in disks.iter().enumerate() {
                        let mut out = vec![0; expected.len()];
                        match view.read_at(DiskIndex(disk as u16), 0, &mut out) {
                            Ok(()) => {
                                assert!(out == *expected, "{name} byte {at}: served although it is wrong")
                            }
                            Err(_) => bad = true,
                        }
                    }
                }
                found += u32::from(bad);
            } else {
                found += 1;
            }
            for (name, content) in names.iter().zip(&contents) {
                world.corrupt(name, |bytes| bytes.clone_from(content));
            }
            for name in world.names() {
                if !names.contains(&name) {
                    use continuum_replica::Medium;
                    world.remove(&name).unwrap();
                }
            }
        }
    }
    assert!(found > 200, "the flips must have been found: {found}");
}

#[test]
fn strangers_old_writers_and_gaps_are_refused() {
    let mut source = Source::new(3);
    (0..3).for_each(|_| source.frame(4));
    let store = open(Simulated::default());
    assert!(matches!(store.append(&source.frames[1..2]), Err(ReplicaError::Gap { .. })));
    store.append(&source.frames[..1]).unwrap();
    let again = store.append(&source.frames[..1]).unwrap();
    assert_eq!((again.duplicates, again.number), (1, FrameNumber(1)));
    let mut other = Source::new(4);
    (0..2).for_each(|_| other.frame(4));
    assert!(matches!(store.append(&other.frames[1..]), Err(ReplicaError::Chain(_))));
    // Another frame of a number that is held is no duplicate, nor is it acknowledged as one.
    assert!(matches!(store.append(&other.frames[..1]), Err(ReplicaError::Chain(FrameNumber(1)))));
    store.fence(Epoch(2)).unwrap();
    let refused = store.append(&source.frames[1..]).unwrap_err();
    assert!(matches!(refused, ReplicaError::EpochSuperseded { .. }), "{refused}");
    source.check(&store, Sequence(1), "after all refusals");
}

#[test]
fn a_write_outside_its_disk_and_a_bomb_are_refused() {
    let identity = |number, previous| Identity {
        machine: MACHINE,
        epoch: Epoch(1),
        number: FrameNumber(number),
        session: 1,
        previous,
    };
    let store = open(Simulated::default());
    let mut builder = FrameBuilder::default();
    let data = Bytes::from(vec![1; 4096]);
    let change = Change::Write { disk: DiskIndex(0), offset: SIZES[0] - 512, data, injected: false };
    builder.push(&Record { sequence: Sequence(1), time: Timestamp::from_micros(1), change });
    let frame = builder.finish(identity(1, 0)).unwrap();
    let refused = store.append(&[Envelope::plain(&frame)]).unwrap_err();
    assert!(refused.to_string().contains("outside disk 0"), "{refused}");
    let change =
        Change::Write { disk: DiskIndex(0), offset: 0, data: Bytes::from(vec![0; 65_536]), injected: false };
    builder.push(&Record { sequence: Sequence(1), time: Timestamp::from_micros(1), change });
    let mut bomb = Envelope::plain(&builder.finish(identity(1, 0)).unwrap());
    (bomb.codec, bomb.stored) = (Codec::Zstd, zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap().into());
    let refused = store.append(&[bomb]).unwrap_err();
    assert!(refused.to_string().contains("expands beyond"), "{refused}");
    assert_eq!(store.state().last.number, FrameNumber(0));
}

#[test]
fn an_overlay_keeps_what_was_flushed_and_leaves_the_replica_alone() {
    let world = Simulated::default();
    let mut source = Source::new(5);
    (0..3).for_each(|_| source.frame(6));
    let store = open(world.clone());
    store.append(&source.frames).unwrap();
    let id = ViewId::from_bytes([9; 16]);
    let (position, (_, disks)) = source.states.iter().nth(9).unwrap();
    let mut expected = disks[0].clone();
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let overlay = store.open_overlay(store.open_view(*position).unwrap(), id).unwrap();
    for _ in 0..60 {
        let length = rng.random_range(1..9000usize);
        let offset = rng.random_range(0..expected.len() - length);
        if rng.random_range(0..5) == 0 {
            overlay.zero(DiskIndex(0), offset as u64, length as u64).unwrap();
            expected[offset..offset + length].fill(0);
        } else {
            let data = vec![rng.random(); length];
            overlay.write_at(DiskIndex(0), offset as u64, &data).unwrap();
            expected[offset..offset + length].copy_from_slice(&data);
        }
    }
    overlay.flush().unwrap();
    overlay.write_at(DiskIndex(0), 0, &[1; 5000]).unwrap();
    drop(overlay);
    drop(store);
    world.crash(|| 1);
    let store = open(world.clone());
    let overlay = store.open_overlay(store.open_view(*position).unwrap(), id).unwrap();
    let mut out = vec![0; expected.len()];
    overlay.read_at(DiskIndex(0), 0, &mut out).unwrap();
    assert!(out == expected, "what was flushed is there, what was not is not half there");
    drop(overlay);
    store.remove_overlay(id).unwrap();
    source.check(&store, Sequence(1), "after an overlay");
    assert!(!world.names().iter().any(|name| name.ends_with(".cow")));
}
