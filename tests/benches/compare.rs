//! What comparing a disk of 1 TiB costs when both sides keep sums: nothing different, one block different, and, beside
//! it, reading everything. The disk is simulated where that is all the same to the comparison: its sums are real, in a
//! store's own files of sums as far as there is data (`CONTINUUM_BENCH_MIB`, 512), and the rest of the terabyte is holes.
//! Run with `cargo bench -p continuum-tests --bench compare` (row R8 of the targets).

use bytes::Bytes;
use continuum_model::digest::{BlockSum, DiskDigest, Nodes, differing};
use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{Bytes as Size, DiskIndex, Epoch, FrameNumber, REGION_BYTES, Sequence};
use continuum_replica::{DiskSpec, Folder, Store};
use std::sync::Arc;
use std::time::Instant;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
const DISK: DiskIndex = DiskIndex(0);
const SIZE: u64 = 1 << 40;
const BLOCKS: u64 = SIZE / REGION_BYTES;
/// Blocks that are compared at once, as a source does: one node of level 2.
const AT_ONCE: u64 = 65_536;
const LEVELS: u8 = 2;

fn main() {
    // `cargo test --benches` only wants to know that it builds.
    if !std::env::args().any(|word| word == "--bench") {
        return;
    }
    let mib: u64 =
        std::env::var("CONTINUUM_BENCH_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(512);
    let dir = tempfile::tempdir().expect("a folder");
    let disk = DiskSpec { index: DISK, id: DiskId::from_bytes([1; 16]), size: SIZE };
    let folder = Folder::open_or_create(dir.path()).expect("a store's folder");
    let (store, _) = Store::open_or_create(Arc::new(folder), MACHINE, &[disk]).expect("a store");
    store.fence(Epoch(1)).expect("an epoch");
    let mut source = vec![BlockSum::of_zeroes(); BLOCKS as usize];
    let blocks = (mib << 20) / REGION_BYTES;
    let mut previous = 0;
    for block in 0..blocks {
        let mut builder = FrameBuilder::default();
        let data: Vec<u8> = (0..REGION_BYTES).map(|at| ((at * (block + 1)) >> 7) as u8).collect();
        // Spread over the disk.
        let place = block * (BLOCKS / blocks);
        source[place as usize] = BlockSum::of(&data);
        let change =
            Change::Write { disk: DISK, offset: place * REGION_BYTES, data: data.into(), injected: false };
        previous = append(&store, &mut builder, block + 1, previous, change);
    }
    let before = Instant::now();
    assert!(store.tend_digests(Size(u64::MAX)).expect("it sums").done);
    println!("first sums of 1 TiB with {mib} MiB of data: {:.2} s", before.elapsed().as_secs_f64());
    let digest = || {
        let mut digest = DiskDigest::new(SIZE);
        source.iter().for_each(|sum| digest.push(*sum));
        digest.finish()
    };
    let position = store.state().last.sequence;
    let before = Instant::now();
    let kept = store.digest_at(position).expect("a digest")[0];
    println!(
        "R8 digest of 1 TiB from kept sums: {:.3} s, {} bytes of the replica read, 16 bytes exchanged",
        before.elapsed().as_secs_f64(),
        kept.bytes_read
    );
    assert_eq!(kept.digest, digest());
    let (found, took, bytes) = compare(&store, &source);
    println!("R8 nothing differs: {took:.3} s, {bytes} bytes exchanged");
    assert!(found.is_empty());
    let different = BLOCKS / 3;
    let mut other = source.clone();
    other[different as usize] = BlockSum(1);
    let (found, took, bytes) = compare(&store, &other);
    println!("R8 one block differs: {took:.3} s, {bytes} bytes exchanged");
    assert_eq!(found, [different]);
    // One block changes at the replica: it is read, and nothing else.
    let change = Change::Write { disk: DISK, offset: 0, data: Bytes::from(vec![9; 512]), injected: false };
    append(&store, &mut FrameBuilder::default(), blocks + 1, previous, change);
    let before = Instant::now();
    let kept = store.digest_at(store.state().last.sequence).expect("a digest")[0];
    println!(
        "R8 digest after one write: {:.3} s, {} bytes of the replica read",
        before.elapsed().as_secs_f64(),
        kept.bytes_read
    );
    let view = store.open_view(position).expect("a view");
    let before = Instant::now();
    let read = view.digest(DISK).expect("a digest");
    assert_eq!(read, digest());
    println!(
        "beside it, everything read ({mib} MiB of data, the rest holes): {:.2} s",
        before.elapsed().as_secs_f64()
    );
}

fn append(store: &Store, builder: &mut FrameBuilder, frame: u64, previous: u128, change: Change) -> u128 {
    let at = |sequence: u64| (Sequence(sequence), Timestamp::from_micros(sequence as i64));
    for (place, change) in [Change::Barrier(Barrier::time_mark(true)), change].into_iter().enumerate() {
        let (sequence, time) = at(frame * 2 + place as u64);
        builder.push(&Record { sequence, time, change });
    }
    let number = FrameNumber(frame);
    let identity = Identity { machine: MACHINE, epoch: Epoch(1), number, session: 1, previous };
    let frame = builder.finish(identity).expect("a frame");
    store.append(&[Envelope::plain(&frame)]).expect("it is appended");
    frame.head.digest
}

/// As a source compares: what differs, how long it took, and the bytes of sums that travelled.
fn compare(store: &Store, source: &[BlockSum]) -> (Vec<u64>, f64, u64) {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let before = Instant::now();
    for first in (0..BLOCKS).step_by(AT_ONCE as usize) {
        let mine = &source[first as usize..(first + AT_ONCE).min(BLOCKS) as usize];
        let differ = differing(first, mine, LEVELS, |nodes: Nodes| {
            bytes += (nodes.range.end - nodes.range.start) * 16;
            store.sums(DISK, &nodes, Size(1 << 20)).map(|told| told.sums)
        });
        let differ = differ.expect("it is told");
        found.extend((0..differ.len()).filter(|at| differ.get(*at)).map(|at| first + at));
    }
    (found, before.elapsed().as_secs_f64(), bytes)
}
