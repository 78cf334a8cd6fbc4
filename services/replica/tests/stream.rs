//! Passes over a disk whose history is scattered: what is read ahead, or straight from cached frames, is what was
//! written, whatever the cache holds, however the client asks, and while history is folded.

use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch, FrameNumber, Sequence};
use continuum_replica::medium::Simulated;
use continuum_replica::{Cache, DiskSpec, Store};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
const DISK: DiskIndex = DiskIndex(0);
/// More than a region of the index; the last chunk and the last block are short ones.
const SIZE: u64 = (20 << 20) + 75 * 512;
/// After every fourth part of them the state is kept.
const FRAMES: u64 = 24;

fn moment(sequence: u64) -> Timestamp {
    Timestamp::from_micros(sequence as i64)
}

/// Writes and zeroes all over the disk, a state after every frame. Returns the states.
fn history(rng: &mut ChaCha8Rng) -> (Vec<Envelope>, Vec<(Sequence, Vec<u8>)>) {
    let (mut disk, mut states, mut frames) = (vec![0; SIZE as usize], Vec::new(), Vec::<Envelope>::new());
    let (mut builder, mut sequence) = (FrameBuilder::default(), 0);
    for number in 1..=FRAMES {
        let mut push = |change| {
            sequence += 1;
            builder.push(&Record { sequence: Sequence(sequence), time: moment(sequence), change });
        };
        for _ in 0..60 {
            let length = 512 * rng.random_range(1..80u64);
            let offset = 512 * rng.random_range(0..=(SIZE - length) / 512);
            let place = &mut disk[offset as usize..][..length as usize];
            if rng.random_range(0..8) == 0 {
                place.fill(0);
                push(Change::Zero { disk: DISK, offset, length: length as u32, injected: false });
            } else {
                rng.fill(&mut place[..]);
                let data = place.to_vec().into();
                push(Change::Write { disk: DISK, offset, data, injected: false });
            }
        }
        push(Change::Barrier(Barrier::time_mark(true)));
        let identity = Identity {
            machine: MACHINE,
            epoch: Epoch(1),
            number: FrameNumber(number),
            session: 1,
            previous: frames.last().map_or(0, |frame| frame.head.digest),
        };
        frames.push(Envelope::plain(&builder.finish(identity).expect("records were pushed")));
        if number.is_multiple_of(FRAMES / 4) {
            states.push((Sequence(sequence), disk.clone()));
        }
    }
    (frames, states)
}

#[test]
fn a_pass_reads_what_was_written() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (frames, states) = history(&mut rng);
    for cache_bytes in [0, 3 << 20, 256 << 20] {
        let spec = DiskSpec { index: DISK, id: DiskId::from_bytes([1; 16]), size: SIZE };
        let world = Arc::new(Simulated::default());
        let (store, _) =
            Store::open_with(world, MACHINE, &[spec], Cache::new(cache_bytes)).expect("the store opens");
        store.fence(Epoch(1)).expect("the epoch is recorded");
        store.append(&frames).expect("the frames are taken");
        for (length, (position, disk)) in [1 << 20, 64 << 10, 256 << 10, 100_000].iter().zip(&states) {
            // Two passes side by side, the second from the middle on; then the same in another view, which finds
            // frames in the cache.
            let middle = SIZE / 2 / length * length;
            for round in 0..2 {
                let view = store.open_view(*position).expect("the view opens");
                let mut at = 0;
                while at < SIZE - middle {
                    for start in [at, middle + at] {
                        let wanted = &disk[start as usize..(start + length).min(SIZE) as usize];
                        let mut out = vec![0xee; wanted.len()];
                        view.read_at(DISK, start, &mut out).expect("it reads");
                        assert!(
                            out == wanted,
                            "cache of {cache_bytes}, round {round}: {length} bytes at {start} of {position}"
                        );
                        if start + length >= SIZE {
                            break;
                        }
                    }
                    at += length;
                    if at / length == 9 && round == 0 {
                        // A half of what lies below the view moves to the base meanwhile.
                        while store.fold(moment(position.0 / 2), None).expect("it folds") {}
                    }
                }
            }
        }
    }
}
