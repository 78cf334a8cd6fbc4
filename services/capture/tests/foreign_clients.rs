//! Other people's clients against our server: what they read, write and list must be right. They have to be
//! installed: a test that skips proves nothing.

mod common;

use common::scratch;
use continuum_capture::FileDisk;
use continuum_capture::block_server::{BlockServer, Listen, PlainDisk};
use continuum_capture::nbd::Server;
use continuum_capture::source::{Source, SourceConfig, SourceSpec};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::world::{SystemClock, SystemEntropy};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Runs a program in `dir`, where it may leave files, and returns its output. Its error output is part of a
/// failure.
fn run(dir: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} must be installed for this test: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

const SIZE: u64 = 64 << 20;

/// A machine with two disks on a block server.
fn machine(dir: &Path) -> BlockServer {
    let disks = ["a", "b"]
        .iter()
        .enumerate()
        .map(|(index, name)| SourceSpec {
            id: DiskId::from_bytes([index as u8 + 1; 16]),
            disk: Box::new(FileDisk::open_or_create(&dir.join(name), SIZE).unwrap()),
        })
        .collect();
    let config = SourceConfig { machine: MachineId::from_bytes([7; 16]), dir: dir.join("state"), disks };
    let source = Source::open(config, Arc::new(SystemClock::default()), &mut SystemEntropy).unwrap();
    let listen = Listen::Unix(dir.join("nbd"));
    BlockServer::start(Arc::new(source), &listen, &["disk a", "disk-b"]).unwrap()
}

/// 20 MiB of data that does not repeat, with holes around it.
fn image(path: &Path) {
    let mut state = 1u64;
    let mut data = Vec::with_capacity(20 << 20);
    while data.len() < 20 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&state.to_le_bytes());
    }
    let file = std::fs::File::create(path).unwrap();
    file.set_len(SIZE).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &data, 9 << 20).unwrap();
}

#[test]
fn nbdinfo_reads_our_answers() {
    let dir = scratch();
    let server = machine(dir.path());
    let listed = run(dir.path(), "nbdinfo", &["--list", "--json", &server.endpoint().uri("")]);
    for wanted in
        ["disk a", "disk-b", "\"export-size\": 67108864", "base:allocation", "\"can_multi_conn\": true"]
    {
        assert!(listed.contains(wanted), "{wanted} in {listed}");
    }
    let one = run(dir.path(), "nbdinfo", &["--json", &server.endpoint().uri("disk a")]);
    for wanted in [
        "\"is_read_only\": false",
        "\"can_flush\": true",
        "\"can_fua\": true",
        "\"can_trim\": true",
        "\"can_zero\": true",
        "\"can_cache\": true",
    ] {
        assert!(one.contains(wanted), "{wanted} in {one}");
    }
}

#[test]
fn nbdcopy_there_and_back_is_the_same_with_its_holes() {
    let dir = scratch();
    let server = machine(dir.path());
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    image(Path::new(&path("in")));
    let uri = server.endpoint().uri("disk a");
    run(dir.path(), "nbdcopy", &["--connections=4", "--flush", &path("in"), &uri]);
    run(dir.path(), "nbdcopy", &["--connections=4", &uri, &path("out")]);
    assert!(std::fs::read(path("in")).unwrap() == std::fs::read(path("out")).unwrap());
    run(dir.path(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", &path("in"), &uri]);
    let map = run(dir.path(), "nbdinfo", &["--map", &uri]);
    assert_eq!(
        map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>(),
        ["0 9437184 3 hole,zero", "9437184 20971520 0 data", "30408704 36700160 3 hole,zero"]
    );
}

#[test]
fn qemu_io_and_fio_find_what_they_wrote() {
    let dir = scratch();
    let server = machine(dir.path());
    let uri = server.endpoint().uri("disk-b");
    let script = [
        "write -P 0x11 0 1M",
        "write -P 0x22 -f 4k 12k",
        "aio_write -P 0x33 2M 64k",
        "aio_write -P 0x44 3M 64k",
        "aio_flush",
        "write -z -u 8k 4k",
        "discard 2M 32k",
        "flush",
        "read -P 0x11 0 4k",
        "read -P 0x22 4k 4k",
        "read -P 0 8k 4k",
        "read -P 0x22 12k 4k",
        "read -P 0x11 16k 1008k",
        "read -P 0 2M 32k",
        "read -P 0x33 2080k 32k",
        "read -P 0x44 3M 64k",
    ];
    let mut arguments = vec!["-f", "raw"];
    for line in &script {
        arguments.extend_from_slice(&["-c", line]);
    }
    arguments.push(&uri);
    let output = run(dir.path(), "qemu-io", &arguments);
    assert!(!output.contains("Pattern verification failed"), "{output}");

    let option = format!("--uri={uri}");
    let output = run(
        dir.path(),
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &option,
            "--rw=randwrite",
            "--bsrange=512-64k",
            "--iodepth=16",
            "--size=32M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--randseed=7",
            "--minimal",
        ],
    );
    assert!(!output.contains("verify failed"), "{output}");
}

#[test]
fn a_tcp_server_and_a_plain_disk_serve_them_as_well() {
    let dir = scratch();
    let server = Server::on_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let path = dir.path().join("raw");
    image(&path);
    let disk = FileDisk::open(&path).unwrap();
    server.export("ü/%20", Arc::new(PlainDisk::new(Box::new(disk), true).unwrap()));
    let uri = server.endpoint().uri("ü/%20");
    let path = path.to_string_lossy().into_owned();
    run(dir.path(), "qemu-img", &["compare", "-f", "raw", "-F", "raw", &path, &uri]);
    let out = dir.path().join("out").to_string_lossy().into_owned();
    run(dir.path(), "nbdcopy", &[&uri, &out]);
    assert!(std::fs::read(path).unwrap() == std::fs::read(out).unwrap());
}
