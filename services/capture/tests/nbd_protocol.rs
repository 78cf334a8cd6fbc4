//! The NBD server against our own client: every command, every violation.

mod common;

use common::*;
use continuum_capture::block_server::PlainDisk;
use continuum_capture::nbd::{BlockDevice, Extent, Server};
use continuum_capture::simulated::SimulatedDisk;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const SIZE: usize = 40 << 20;

struct Setup {
    dir: tempfile::TempDir,
    disk: SimulatedDisk,
    server: Server,
}

fn setup() -> Setup {
    let dir = scratch();
    let disk = SimulatedDisk::new(SIZE);
    let server = Server::on_unix(&dir.path().join("s")).unwrap();
    server.export("disk", plain(&disk, false));
    Setup { dir, disk, server }
}

fn plain(disk: &SimulatedDisk, read_only: bool) -> Arc<PlainDisk> {
    Arc::new(PlainDisk::new(Box::new(disk.clone()), read_only).unwrap())
}

#[test]
fn every_command_does_what_it_says() {
    let setup = setup();
    for structured in [false, true] {
        let mut client = Client::connect(setup.server.endpoint(), "disk", structured).unwrap();
        assert_eq!(client.size, SIZE as u64);
        assert_eq!(client.write(4096, &[7; 8192]), Ok(vec![]));
        assert_eq!(client.read(0, 4097).unwrap()[4095..], [0, 7]);
        assert_eq!(client.call(WRITE, FUA, 1, 3, b"abc"), Ok(vec![]));
        assert_eq!(client.read(0, 5).unwrap(), b"\0abc\0");
        assert_eq!(client.flush(), Ok(vec![]));
        assert_eq!(client.call(TRIM, 0, 4096, 4096, &[]), Ok(vec![]));
        assert_eq!(client.call(WRITE_ZEROES, 2, 8192, 1, &[]), Ok(vec![]));
        assert_eq!(client.read(8190, 4).unwrap(), [0, 0, 0, 7]);
        assert_eq!(client.call(CACHE, 0, 0, 4096, &[]), Ok(vec![]));
        // Longer than any piece and any buffer, up to the limit.
        let long: Vec<u8> = (0..32 << 20).map(|i: u32| (i / 7) as u8).collect();
        assert_eq!(client.write(100, &long), Ok(vec![]));
        assert!(client.read(100, 32 << 20).unwrap() == long);
        if structured {
            let status = client.call(BLOCK_STATUS, 8, 0, 65536, &[]).unwrap();
            assert_eq!(status, [65536u32.to_be_bytes(), [0; 4]].concat(), "memory has no holes");
        }
        assert_eq!(client.zero(0, SIZE as u32), Ok(vec![]));
    }
    let failing = &setup.disk;
    for structured in [false, true] {
        let mut client = Client::connect(setup.server.endpoint(), "", structured).unwrap();
        failing.set_bad(Some((0, 512)));
        assert_eq!(client.read(0, 512), Err(5), "EIO, and the connection goes on");
        assert_eq!(client.read(512, 512), Ok(vec![0; 512]));
        if structured {
            failing.set_bad(Some((5 << 20, (5 << 20) + 1)));
            assert_eq!(client.read(0, 8 << 20), Err(5), "bad in the middle of a long read");
            assert_eq!(client.read(0, 512), Ok(vec![0; 512]));
        }
        failing.set_bad(None);
    }
}

#[test]
fn requests_of_one_connection_go_side_by_side() {
    /// A disk on which the first read waits until a second one came.
    struct Patient {
        reads: Mutex<u32>,
        second: Condvar,
    }
    impl BlockDevice for Patient {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn read(&self, _: u64, out: &mut [u8]) -> io::Result<()> {
            let mut reads = self.reads.lock().unwrap();
            *reads += 1;
            self.second.notify_all();
            while *reads < 2 {
                let (held, waited) = self.second.wait_timeout(reads, Duration::from_secs(20)).unwrap();
                reads = held;
                if waited.timed_out() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            out.fill(1);
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8], _: bool) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
            Ok(())
        }
        fn extents(&self, _: u64, length: u64, out: &mut Vec<Extent>) -> io::Result<()> {
            out.push(Extent { length, data: true });
            Ok(())
        }
    }
    let server = Server::on_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    server.export("p", Arc::new(Patient { reads: Mutex::new(0), second: Condvar::new() }));
    let mut client = Client::connect(server.endpoint(), "p", true).unwrap();
    let one = client.send(READ, 0, 0, 512, &[]).unwrap();
    let two = client.send(READ, 0, 512, 512, &[]).unwrap();
    let mut answered = [client.receive().unwrap(), client.receive().unwrap()];
    answered.sort_by_key(|(cookie, _)| *cookie);
    assert_eq!(answered, [(one, Ok(vec![1; 512])), (two, Ok(vec![1; 512]))]);
}

#[test]
fn haggling_by_the_book() {
    let setup = setup();
    let mut stream = Stream::connect(setup.server.endpoint()).unwrap();
    stream.greet(3).unwrap();
    let mut ask = |option: u32, data: &[u8]| {
        stream.option(option, data).unwrap();
        let mut replies = vec![stream.option_reply(option).unwrap()];
        while matches!(replies.last().unwrap().0, 2..=4) {
            replies.push(stream.option_reply(option).unwrap());
        }
        replies
            .into_iter()
            .map(|(kind, data)| (kind, String::from_utf8_lossy(&data).into_owned()))
            .collect::<Vec<_>>()
    };
    let refused = |replies: &[(u32, String)]| replies.last().unwrap().0;
    let query = |name: &str, queries: &[&str]| {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&(queries.len() as u32).to_be_bytes());
        for query in queries {
            data.extend_from_slice(&(query.len() as u32).to_be_bytes());
            data.extend_from_slice(query.as_bytes());
        }
        data
    };
    assert_eq!(ask(3, &[]), [(2, "\0\0\0\u{4}disk".into()), (1, String::new())], "LIST");
    assert_eq!(refused(&ask(3, b"x")), 0x8000_0003, "LIST with data");
    assert_eq!(refused(&ask(5, &[])), 0x8000_0001, "STARTTLS is not offered");
    assert_eq!(refused(&ask(77, b"whatever")), 0x8000_0001, "unknown option");
    assert_eq!(refused(&ask(9, &query("disk", &[]))), 0x8000_0003, "contexts before structured replies");
    assert_eq!(refused(&ask(8, b"x")), 0x8000_0003, "STRUCTURED_REPLY with data");
    assert_eq!(refused(&ask(8, &[])), 1);
    assert_eq!(ask(9, &query("disk", &[])), [(4, "\0\0\0\0base:allocation".into()), (1, String::new())]);
    assert_eq!(ask(9, &query("disk", &["base:"])).len(), 2, "a name space");
    assert_eq!(ask(10, &query("disk", &["qemu:dirty-bitmap:x"])), [(1, String::new())], "none of ours");
    assert_eq!(ask(10, &query("disk", &["base:allocation"])).len(), 2);
    assert_eq!(refused(&ask(10, &query("other", &["base:allocation"]))), 0x8000_0006);
    assert_eq!(refused(&ask(6, &go_data("other"))), 0x8000_0006, "INFO on what is not there");
    assert_eq!(refused(&ask(6, &go_data("disk"))), 1, "INFO");
    assert_eq!(refused(&ask(7, &go_data("../disk"))), 0x8000_0006, "a name is never a path");
    assert_eq!(refused(&ask(7, &go_data(&"x".repeat(4097)))), 0x8000_0003, "a name over 4096 bytes");
    assert_eq!(refused(&ask(7, b"\0\0\0\x02\xff\xfe\0\0")), 0x8000_0003, "a name that is not UTF-8");
    assert_eq!(refused(&ask(7, b"\xff\xff\xff\xff")), 0x8000_0003, "a length beyond the option");
    assert_eq!(
        refused(&ask(10, b"\0\0\0\x04disk\xff\xff\xff\xff")),
        0x8000_0003,
        "a count beyond the option"
    );
    // The old way, with its 124 zeroes.
    let mut old = Stream::connect(setup.server.endpoint()).unwrap();
    old.greet(1).unwrap();
    old.option(1, b"disk").unwrap();
    let mut answer = [0; 134];
    old.read_exact(&mut answer).unwrap();
    assert_eq!(u64::from_be_bytes(answer[..8].try_into().unwrap()), SIZE as u64);
    old.request(READ, 0, 9, 0, 16, &[]).unwrap();
    let mut reply = [0; 32];
    old.read_exact(&mut reply).unwrap();
}

/// B36. After each violation: an error code or a closed connection, the image as before, and the next client served.
#[test]
fn violators_harm_nobody() {
    let setup = setup();
    let mut honest = Client::connect(setup.server.endpoint(), "disk", true).unwrap();
    honest.write(0, &[42; 1 << 20]).unwrap();
    let before = xxhash_rust::xxh3::xxh3_128(&setup.disk.bytes());
    let closed = |stream: &mut Stream| {
        let mut rest = Vec::new();
        // A reset is as closed as an end.
        let _ = stream.read_to_end(&mut rest);
    };
    let fresh = || {
        let mut stream = Stream::connect(setup.server.endpoint()).unwrap();
        stream.greet(3).unwrap();
        stream
    };
    let chosen = || Client::connect(setup.server.endpoint(), "disk", false).unwrap();

    let mut stream = Stream::connect(setup.server.endpoint()).unwrap();
    stream.greet(0xffff_ffff).unwrap();
    closed(&mut stream);

    let mut stream = fresh();
    stream.write_all(&[0x55; 16]).unwrap();
    closed(&mut stream);

    let mut stream = fresh();
    let mut option = 0x4948_4156_454f_5054u64.to_be_bytes().to_vec();
    option.extend_from_slice(&7u32.to_be_bytes());
    option.extend_from_slice(&u32::MAX.to_be_bytes());
    stream.write_all(&option).unwrap();
    assert_eq!(stream.option_reply(7).unwrap().0, 0x8000_0009, "an option of 4 GiB");
    closed(&mut stream);

    let mut stream = fresh();
    for _ in 0..200 {
        // It may be gone before all of them are out.
        if stream.option(3, &[]).is_err() {
            break;
        }
    }
    closed(&mut stream);

    let mut stream = fresh();
    stream.option(1, b"no such export").unwrap();
    closed(&mut stream);

    let mut client = chosen();
    client.stream.write_all(&[0xaa; 28]).unwrap();
    closed(&mut client.stream);

    let mut client = chosen();
    client.send(WRITE, 0, 0, u32::MAX, &[1; 4096]).unwrap();
    closed(&mut client.stream);

    // Half a write, then gone: nothing of it is applied.
    let mut client = chosen();
    client.send(WRITE, 0, 0, 1 << 20, &[9; 1000]).unwrap();
    drop(client);
    let mut client = chosen();
    client.send(WRITE, 0, 0, 30 << 20, &[9; 2 << 20]).unwrap();
    drop(client);

    let mut client = chosen();
    let size = SIZE as u64;
    let rows: [(&str, u16, u16, u64, u32, u32); 14] = [
        ("a read past the end", READ, 0, size - 1, 2, 22),
        ("a read that wraps", READ, 0, u64::MAX - 1, 4, 22),
        ("a read of 4 GiB", READ, 0, 0, u32::MAX, 22),
        ("a read of nothing", READ, 0, 0, 0, 22),
        ("a trim past the end", TRIM, 0, size, 1, 28),
        ("zeroes that wrap", WRITE_ZEROES, 0, u64::MAX, u32::MAX, 28),
        ("zeroes of 4 GiB", WRITE_ZEROES, 0, 0, u32::MAX, 28),
        ("fast zeroes", WRITE_ZEROES, 16, 0, 4096, 95),
        ("an unknown command", 99, 0, 0, 0, 22),
        ("an unknown flag", READ, 0x8000, 0, 512, 22),
        ("a flush with a range", FLUSH, 0, 512, 512, 22),
        ("block status that was not agreed on", BLOCK_STATUS, 0, 0, 512, 22),
        ("a cache past the end", CACHE, 0, size, 512, 22),
        ("block status past the end", BLOCK_STATUS, 0, size, 512, 22),
    ];
    for (why, command, flags, offset, length, code) in rows {
        assert_eq!(client.call(command, flags, offset, length, &[]), Err(code), "{why}");
    }
    assert_eq!(
        client.write(size - 1, &[1, 2]),
        Err(28),
        "a write past the end; its data does not become a request"
    );
    assert_eq!(client.read(0, 1), Ok(vec![42]));

    setup.server.export("ro", plain(&setup.disk, true));
    let mut client = Client::connect(setup.server.endpoint(), "ro", false).unwrap();
    assert_eq!(client.flags & 2, 2);
    assert_eq!(client.write(0, &[1]), Err(1));
    assert_eq!(client.zero(0, 1), Err(1));
    assert_eq!(client.call(TRIM, 0, 0, 1, &[]), Err(1));

    // After a goodbye nothing counts.
    let mut client = chosen();
    client.send(DISC, 0, 0, 0, &[]).unwrap();
    let _ = client.send(WRITE, 0, 0, 4, b"evil");
    closed(&mut client.stream);

    assert_eq!(honest.read(0, 1), Ok(vec![42]), "the honest client never noticed");
    assert_eq!(xxhash_rust::xxh3::xxh3_128(&setup.disk.bytes()), before);
}

#[test]
fn who_never_reads_replies_costs_a_bounded_amount_and_delays_nobody() {
    let setup = setup();
    let mut deaf = Client::connect(setup.server.endpoint(), "disk", false).unwrap();
    // Its socket and its workers fill up; nothing is read from it any more.
    match &deaf.stream {
        Stream::Unix(stream) => stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap(),
        Stream::Tcp(_) => unreachable!(),
    }
    let asked = (0..1_000_000).take_while(|_| deaf.send(READ, 0, 0, 16 << 20, &[]).is_ok()).count();
    assert!(asked < 100_000, "{asked} requests of 16 MiB were taken in");
    let mut honest = Client::connect(setup.server.endpoint(), "disk", true).unwrap();
    let started = Instant::now();
    for _ in 0..100 {
        honest.read(0, 4096).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 300 << 10, "{line}");
    // Stopping does not wait for it.
    let Setup { server, .. } = setup;
    let started = Instant::now();
    drop(server);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_handshake_has_ten_seconds_however_busy_it_looks() {
    let setup = setup();
    let mut slow = Stream::connect(setup.server.endpoint()).unwrap();
    slow.greet(3).unwrap();
    let started = Instant::now();
    // A byte of an option now and then: each read succeeds, the whole never ends.
    let mut option = 0x4948_4156_454f_5054u64.to_be_bytes().to_vec();
    option.extend_from_slice(&3u32.to_be_bytes());
    option.extend_from_slice(&60_000u32.to_be_bytes());
    slow.write_all(&option).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut byte = [0];
    while started.elapsed() < Duration::from_secs(20) {
        let _ = slow.write_all(&[0]);
        match slow.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    let took = started.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(13), "{took:?}");
    assert_eq!(setup.server.connections(), 0);
}

#[test]
fn a_socket_is_its_owners_and_replaces_only_a_dead_one() {
    let setup = setup();
    let path = setup.dir.path().join("s");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Server::on_unix(&path).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    let file = setup.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_eq!(Server::on_unix(&file).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let dead = setup.dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let server = Server::on_unix(&dead).unwrap();
    drop(server);
    assert!(!dead.exists());
}

#[test]
fn a_withdrawn_export_has_no_request_under_way() {
    /// Counts writes under way; each takes a moment.
    struct Slow {
        under_way: AtomicU64,
        withdrawn: Arc<AtomicBool>,
    }
    impl BlockDevice for Slow {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8], _: bool) -> io::Result<()> {
            assert!(!self.withdrawn.load(Ordering::SeqCst), "a write after the export was withdrawn");
            self.under_way.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
        fn zero(&self, _: u64, _: u64, _: bool, _: bool) -> io::Result<()> {
            Ok(())
        }
    }
    let server = Server::on_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    for _ in 0..20 {
        let withdrawn = Arc::new(AtomicBool::new(false));
        let device = Arc::new(Slow { under_way: AtomicU64::new(0), withdrawn: withdrawn.clone() });
        server.export("s", device.clone());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let Ok(mut client) = Client::connect(server.endpoint(), "s", false) else { return };
                    while client.send(WRITE, 0, 0, 512, &[0; 512]).is_ok() && client.receive().is_ok() {}
                });
            }
            while device.under_way.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            server.withdraw("s");
            withdrawn.store(true, Ordering::SeqCst);
        });
        assert_eq!(device.under_way.load(Ordering::SeqCst), 0);
        assert!(Client::connect(server.endpoint(), "s", false).is_err());
    }
}
