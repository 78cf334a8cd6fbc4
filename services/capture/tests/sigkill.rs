//! The block server as a process of its own, killed at random moments while clients write to it over NBD and a
//! target takes its feed. The child is this test, started again.
//!
//! What must hold: every legal position that the target reaches is a state that the disks could have had; what
//! is sent again after a kill is what the map says, and the map says what was written; and in the end both sides
//! are equal.

mod common;

use common::target::Held;
use common::{Client, Endpoint, WRITE, scratch};
use continuum_capture::block_server::{BlockServer, Listen};
use continuum_capture::source::{Source, SourceConfig, SourceSpec, Timing};
use continuum_capture::{FileDisk, Next, ReplicaState};
use continuum_model::feed::Envelope;
use continuum_model::feed::envelope::{ENVELOPE_BYTES, EnvelopePrefix};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::time::Timestamp;
use continuum_model::units::{Epoch, FrameNumber, REGION_BYTES, Sequence};
use continuum_model::world::{SystemClock, SystemEntropy};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Idle feeds mark the time more often than usual: no test has to wait for it.
const QUICK_MARKS: Timing =
    Timing { frame_age: Duration::from_millis(20), time_mark: Duration::from_millis(50) };

const SIZE: u64 = 24 << 20;
const DISKS: usize = 2;
const BLOCK: usize = 4096;
const FOLDER: &str = "CAPTURE_SIGKILL_CHILD";

/// Not a test of its own: the process that is killed. Without its folder in the environment it does nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(FOLDER) else { return };
    let dir = Path::new(&dir);
    // Should the test itself be killed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let disks = (0..DISKS)
        .map(|index| SourceSpec {
            id: DiskId::from_bytes([index as u8 + 1; 16]),
            disk: Box::new(FileDisk::open_or_create(&dir.join(format!("disk{index}")), SIZE).unwrap()),
        })
        .collect();
    let config = SourceConfig { machine: MachineId::from_bytes([7; 16]), dir: dir.join("state"), disks };
    let source = Arc::new(
        Source::open_with(config, QUICK_MARKS, Arc::new(SystemClock::default()), &mut SystemEntropy).unwrap(),
    );
    if let Some(doubt) = source.status().doubt {
        // Once, for the first start.
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("doubts"))
            .and_then(|mut file| writeln!(file, "{doubt}"))
            .unwrap();
    }
    let _server =
        BlockServer::start(source.clone(), &Listen::Unix(dir.join("nbd")), &["disk0", "disk1"]).unwrap();
    loop {
        let Ok(stream) = UnixStream::connect(dir.join("target")) else { return };
        if send(&source, stream).is_err() {
            return;
        }
    }
}

/// number u64 · digest u128 · sequence u64 · newest i64
fn send(source: &Arc<Source>, mut stream: UnixStream) -> io::Result<()> {
    let mut hello = [0; 40];
    stream.read_exact(&mut hello)?;
    let long = |at: usize| u64::from_le_bytes(hello[at..at + 8].try_into().unwrap());
    let state = ReplicaState {
        number: FrameNumber(long(0)),
        digest: u128::from_le_bytes(hello[8..24].try_into().unwrap()),
        sequence: Sequence(long(24)),
        newest: Timestamp::from_micros(long(32).cast_signed()),
    };
    let (_, stretch) = source.connect(Epoch(1), state).unwrap();
    let mut acks = stream.try_clone()?;
    let acknowledging = source.clone();
    std::thread::spawn(move || {
        let mut number = [0; 8];
        while acks.read_exact(&mut number).is_ok() {
            acknowledging.acknowledged(FrameNumber(u64::from_le_bytes(number))).unwrap();
        }
    });
    let mut after = state.number;
    loop {
        match source.next_frame(stretch, after, Duration::from_millis(100)) {
            Next::Frame(envelope) => {
                after = envelope.head.identity.number;
                stream.write_all(&envelope.encode())?;
            }
            Next::Idle => {}
            Next::Reset => return Ok(()),
        }
    }
}

/// A write as its writer knows it. `complete` is 0 while or when nobody knows.
#[derive(Clone, Copy)]
struct Written {
    id: u64,
    issue: u64,
    complete: u64,
}

/// All writes to each block, in order: a block's writer never has two under way.
type Histories = Vec<Vec<Vec<Written>>>;

/// What stands in each block: the id of the write that it is of, 0 for none.
type Visible = Vec<Vec<u64>>;

fn visible(images: &[Vec<u8>]) -> Visible {
    let block = |bytes: &[u8]| {
        assert!(bytes[8..] == bytes[..BLOCK - 8], "a torn block");
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    images.iter().map(|image| image.chunks(BLOCK).map(block).collect()).collect()
}

/// Whether this is a state that the disks could have had (reliability rules: no hole, nothing unknown).
fn prove(visible: &Visible, histories: &Histories) {
    let blocks = || {
        visible.iter().zip(histories).enumerate().flat_map(|(disk, (ids, histories))| {
            ids.iter().zip(histories).enumerate().map(move |(block, (id, history))| {
                let at = history.iter().position(|write| write.id == *id);
                assert!(
                    *id == 0 || at.is_some(),
                    "write {id} in block {block} of disk {disk} is not of there"
                );
                (disk, block, history, at)
            })
        })
    };
    let newest = blocks().filter_map(|(_, _, history, at)| Some(history[at?].issue)).max().unwrap_or(0);
    for (disk, block, history, at) in blocks() {
        let after = &history[at.map_or(0, |at| at + 1)..];
        if let Some(hole) = after.iter().find(|write| write.complete != 0 && write.complete < newest) {
            panic!(
                "hole: {} of block {block} of disk {disk} was complete before {newest} was issued",
                hole.id
            );
        }
    }
}

struct HangUp<'a>(&'a AtomicBool, &'a Path);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
        drop(UnixStream::connect(self.1.join("target")));
    }
}

/// A child that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Dead already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path) -> Killed {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).env(FOLDER, dir).stdout(Stdio::null());
    Killed(command.spawn().unwrap())
}

fn dirty_bytes(dir: &Path) -> u64 {
    let mut dirty = 0;
    for disk in 0..DISKS {
        let id = DiskId::from_bytes([disk as u8 + 1; 16]);
        let map = std::fs::read(dir.join("state").join(format!("{id}.map"))).unwrap();
        dirty += map[4096..].iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>() * REGION_BYTES;
    }
    dirty
}

#[test]
fn killed_at_any_moment_it_resends_what_the_map_says_and_never_lies() {
    const ROUNDS: u64 = 10;
    let dir = scratch();
    let listener = UnixListener::bind(dir.path().join("target")).unwrap();
    let held = Mutex::new(Held::new(&[SIZE; DISKS]));
    let kept: Mutex<Vec<Visible>> = Mutex::new(Vec::new());
    let histories: Mutex<Histories> = Mutex::new(vec![vec![Vec::new(); SIZE as usize / BLOCK]; DISKS]);
    let (clock, ids) = (AtomicU64::new(1), AtomicU64::new(1));
    let (done, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (mut amounts, mut resumed) = (Vec::new(), 0);

    std::thread::scope(|scope| {
        // Also when something below fails: the listener must end.
        let _hang_up = HangUp(&done, dir.path());
        scope.spawn(|| {
            for stream in listener.incoming() {
                if done.load(Ordering::Acquire) {
                    return;
                }
                take(stream.unwrap(), &held, &kept);
                ended.store(true, Ordering::Release);
            }
        });
        for round in 0..ROUNDS {
            let dirty = if round == 0 { SIZE * DISKS as u64 } else { dirty_bytes(dir.path()) };
            let before = {
                let held = held.lock().unwrap();
                (held.injected_bytes, held.breaks, held.state.number)
            };
            ended.store(false, Ordering::Release);
            let mut child = start(dir.path());
            let stop = AtomicBool::new(false);
            // Each writer has its own half of each disk, and this round's small place in it.
            let base: u64 = rng.random_range(0..SIZE / 2 - (1 << 20)) / BLOCK as u64;
            let touched: u64 = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..4u64)
                    .map(|writer| {
                        let (stop, clock, ids, histories, dir) =
                            (&stop, &clock, &ids, &histories, dir.path());
                        scope.spawn(move || {
                            let disk = (writer % 2) as usize;
                            let first = base + (writer / 2) * (SIZE / 2 / BLOCK as u64);
                            write(dir, disk, first, stop, clock, ids, histories, round * 10 + writer)
                        })
                    })
                    .collect();
                // Now and then before it has even started, now and then long after it has caught up.
                let life = match round % 5 {
                    0 => 2_600,
                    1 => rng.random_range(100..400),
                    _ => rng.random_range(200..1_200),
                };
                std::thread::sleep(Duration::from_millis(life));
                child.0.kill().unwrap();
                child.0.wait().unwrap();
                stop.store(true, Ordering::Release);
                writers.into_iter().map(|writer| writer.join().unwrap()).sum()
            });
            // Whatever was under way to the target has arrived when its stream ends.
            let patience = Instant::now() + Duration::from_secs(5);
            while held.lock().unwrap().state.number > before.2 && !ended.load(Ordering::Acquire) {
                assert!(Instant::now() < patience, "the stream of a dead process does not end");
                std::thread::yield_now();
            }
            let held = held.lock().unwrap();
            amounts.push((dirty, touched, held.injected_bytes - before.0));
            println!(
                "round {round}: {} breaks, {} frames, {:?}",
                held.breaks - before.1,
                held.state.number.0 - before.2.0,
                amounts.last()
            );
            resumed += u64::from(held.breaks > before.1 && held.state.number > before.2);
        }
        // The last one is left alone.
        let _child = start(dir.path());
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            assert!(Instant::now() < deadline, "never equal in the end");
            let held = held.lock().unwrap();
            let equal = held.legality.is_legal()
                && (0..DISKS).all(|disk| {
                    std::fs::read(dir.path().join(format!("disk{disk}")))
                        .is_ok_and(|bytes| bytes == held.images[disk])
                });
            drop(held);
            if equal {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });

    let histories = histories.into_inner().unwrap();
    let kept = kept.into_inner().unwrap();
    println!("{} legal positions", kept.len());
    assert!(kept.len() > 20, "only {} legal positions to prove", kept.len());
    kept.iter().for_each(|visible| prove(visible, &histories));
    prove(&visible(&held.lock().unwrap().images), &histories);
    let writes: usize = histories.iter().flatten().map(Vec::len).sum();
    assert!(writes > 2_000, "only {writes} writes");
    assert!(resumed > 2, "the kills did not break the feed");

    println!("dirty at the start, touched, injected: {amounts:?}");
    for (dirty, touched, injected) in &amounts {
        assert!(*injected <= dirty + touched, "more was sent again than changed: {amounts:?}");
    }
    // Small beside the disks, though each round wrote elsewhere.
    assert!(amounts[1..].iter().any(|(dirty, ..)| *dirty < 8 << 20), "{amounts:?}");
    let doubts = std::fs::read_to_string(dir.path().join("doubts")).unwrap();
    assert_eq!(doubts.lines().count(), 1, "only the first start may doubt: {doubts}");
}

/// Takes frames until the stream ends; keeps copies of some legal states.
fn take(mut stream: UnixStream, held: &Mutex<Held>, kept: &Mutex<Vec<Visible>>) {
    let mut hello = Vec::new();
    {
        let state = held.lock().unwrap().state;
        hello.extend_from_slice(&state.number.0.to_le_bytes());
        hello.extend_from_slice(&state.digest.to_le_bytes());
        hello.extend_from_slice(&state.sequence.0.to_le_bytes());
        hello.extend_from_slice(&state.newest.micros().to_le_bytes());
    }
    if stream.write_all(&hello).is_err() {
        return;
    }
    let mut legal = 0;
    loop {
        let mut prefix = [0; ENVELOPE_BYTES];
        if stream.read_exact(&mut prefix).is_err() {
            return;
        }
        let decoded = EnvelopePrefix::decode(&prefix).unwrap();
        let mut body = vec![0; decoded.body_len()];
        // A killed sender leaves half a frame.
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let envelope: Envelope = decoded.open(body.into()).unwrap();
        let mut held = held.lock().unwrap();
        held.take(&envelope);
        if held.legality.is_legal() {
            legal += 1;
            if legal % 5 == 1 {
                kept.lock().unwrap().push(visible(&held.images));
            }
        }
        let number = held.state.number;
        drop(held);
        if stream.write_all(&number.0.to_le_bytes()).is_err() {
            return;
        }
    }
}

/// Writes until told to stop, or until the server is gone. Returns the bytes of the regions it touched.
#[expect(clippy::too_many_arguments)]
fn write(
    dir: &Path,
    disk: usize,
    first: u64,
    stop: &AtomicBool,
    clock: &AtomicU64,
    ids: &AtomicU64,
    histories: &Mutex<Histories>,
    seed: u64,
) -> u64 {
    let endpoint = Endpoint::Unix(dir.join("nbd"));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut client = loop {
        if stop.load(Ordering::Acquire) {
            return 0;
        }
        match Client::connect(&endpoint, &format!("disk{disk}"), true) {
            Ok(client) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut regions = std::collections::HashSet::new();
    while !stop.load(Ordering::Acquire) {
        let block = first + rng.random_range(0..256);
        let offset = block * BLOCK as u64;
        regions.insert(offset / REGION_BYTES);
        let id = ids.fetch_add(1, Ordering::SeqCst);
        let data = id.to_le_bytes().repeat(BLOCK / 8);
        let issue = clock.fetch_add(1, Ordering::SeqCst);
        histories.lock().unwrap()[disk][block as usize].push(Written { id, issue, complete: 0 });
        let answered = client
            .send(WRITE, 0, offset, BLOCK as u32, &data)
            .and_then(|_| client.receive())
            .is_ok_and(|(_, outcome)| outcome.is_ok());
        if !answered {
            break;
        }
        let complete = clock.fetch_add(1, Ordering::SeqCst);
        if let Some(write) = histories.lock().unwrap()[disk][block as usize].last_mut() {
            write.complete = complete;
        }
    }
    regions.len() as u64 * REGION_BYTES
}
