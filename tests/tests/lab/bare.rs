//! The day on which only a folder is left: a replica that a real lab made, told, exported and served by hand.

use continuum_tests::lab::{Answer, Lab, binary, endpoints};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SIZE: usize = 16 << 20;

/// Content of which no two sectors are alike.
fn pattern(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let word = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 24).to_le_bytes()
    };
    (0..SIZE / 8).flat_map(word).collect()
}

#[track_caller]
fn program(name: &str, words: &[&str]) -> String {
    let ran = Command::new(name).args(words).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{name} {words:?}\n{out}{err}");
    out.into_owned()
}

/// A verb in a world without any vault.
fn alone(words: &[&str], home: &Path) -> Answer {
    let ran = Command::new(binary())
        .args(words)
        .env_remove("CONTINUUM_DIR")
        .env("HOME", home)
        .env("XDG_CONFIG_HOME", home)
        .env("XDG_DATA_HOME", home)
        .stdin(Stdio::null())
        .output()
        .expect("the verb runs");
    Answer {
        code: ran.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&ran.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&ran.stderr).into_owned(),
    }
}

#[test]
fn a_replica_is_told_exported_and_served_when_nothing_else_is_left() {
    let mut lab = Lab::empty();
    lab.add("vol-01", "none", &["16M"]);
    lab.wait_healthy(1, Duration::from_secs(60));
    let home = tempfile::tempdir().expect("a folder");
    let file = |name: &str| home.path().join(name).to_str().expect("text").to_owned();
    let source = endpoints(&lab.machine("vol-01"))[0].clone();
    let write = |name: &str, seed: u64| {
        std::fs::write(home.path().join(name), pattern(seed)).expect("written");
        program("nbdcopy", &["--flush", &file(name), &source]);
        // A barrier that the replica has, and so everything before it.
        assert_eq!(lab.run(&["verify", "vol-01"]).code, 0);
    };
    write("first", 1);
    assert_eq!(lab.run(&["bookmark", "vol-01", "before"]).code, 0);
    write("second", 2);

    let replicas = std::fs::read_dir(lab.dir().join("target/replicas")).expect("replicas").flatten();
    let stores: Vec<_> = replicas.map(|entry| entry.path()).collect();
    let [store] = &stores[..] else { panic!("one replica: {stores:?}") };
    let store = store.to_str().expect("text");

    // Beside its owner: it can be told, and nothing else.
    let owner = lab.processes().into_iter().find(|(role, ..)| role == "master-target").expect("it runs").2;
    let told = alone(&["inspect", store, "--points", "-o", "json"], home.path()).json();
    assert_eq!((told["kind"].as_str(), told["owner_pid"].as_i64()), (Some("store"), Some(owner.into())));
    let points = told["points"].as_array().expect("points");
    let bookmark = points.iter().find(|point| point["name"] == "before").expect("the bookmark")["id"].clone();
    let refused = alone(&["export", store, &file("x.raw"), "-o", "json"], home.path());
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(
        refused.stderr.contains("store.in-use") && refused.stderr.contains(&owner.to_string()),
        "{refused:?}"
    );

    lab.stop();
    let told = alone(&["inspect", store, "--verify", "--segments", "-o", "json"], home.path()).json();
    assert_eq!((told["problems_total"].as_u64(), &told["owner_pid"]), (Some(0), &Value::Null), "{told}");
    assert!(told["verified"]["frames"].as_u64().is_some_and(|frames| frames > 0), "{told}");
    let words = alone(&["inspect", store, "--verify"], home.path());
    assert!(words.code == 0 && words.stdout.contains("any moment of it"), "{words:?}");

    // Two moments in two formats, equal to what was written by other programs' word.
    let latest = alone(&["export", store, &file("latest.raw"), "-o", "json"], home.path()).json();
    assert_eq!((latest["size_bytes"].as_u64(), latest["checked"].as_bool()), (Some(SIZE as u64), Some(true)));
    program("qemu-img", &["compare", "-f", "raw", "-F", "raw", &file("second"), &file("latest.raw")]);
    let bookmark = bookmark.as_str().expect("an id");
    let before = ["export", store, &file("before.qcow2"), "--at", bookmark, "-o", "json"];
    let before = alone(&before, home.path()).json();
    assert_eq!(
        (before["point"]["name"].as_str(), before["format"].as_str()),
        (Some("before"), Some("qcow2"))
    );
    program("qemu-img", &["check", "-f", "qcow2", &file("before.qcow2")]);
    program("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &file("first"), &file("before.qcow2")]);
    let refused = alone(&["export", store, &file("latest.raw")], home.path());
    assert!(refused.code == 3 && refused.stderr.contains("--force"), "{refused:?}");

    // Served until somebody ends it.
    let socket = file("rescue.sock");
    let mut rescue = Command::new(binary())
        .args(["rescue", store, "--at", bookmark, "--socket", &socket, "-o", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut out = BufReader::new(rescue.stdout.take().expect("its output"));
    let mut answer = String::new();
    while out.read_line(&mut answer).is_ok_and(|bytes| bytes > 0) && !answer.ends_with("\n]\n") {}
    let served: Value = serde_json::from_str(&answer).unwrap_or_else(|error| {
        let mut err = String::new();
        let _ = rescue.kill();
        let _ = rescue.stderr.take().map(|mut pipe| pipe.read_to_string(&mut err));
        panic!("{error}: {answer}{err}")
    });
    let uri = served[0]["endpoint"].as_str().expect("an endpoint");
    assert!(program("nbdinfo", &[uri]).contains("is_read_only: true"));
    program("nbdcopy", &[uri, &file("served")]);
    assert!(std::fs::read(home.path().join("served")).expect("copy") == pattern(1));
    let pid = rustix::process::Pid::from_child(&rescue);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it can be ended");
    assert!(rescue.wait().expect("it ends").success());
    assert!(!Path::new(&socket).exists(), "its socket is gone");

    // A byte of rot in the journal is found and named.
    let segment = format!("{store}/journal/00000001");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).expect("damaged");
    let found = alone(&["inspect", store, "--verify", "-o", "json"], home.path());
    assert!(found.code == 1 && found.stderr.contains("inspect.damaged"), "{found:?}");
    let told: Value = serde_json::from_str(&found.stdout).expect("the answer comes all the same");
    let problem = &told["problems"][0];
    let at = problem["offset"].as_u64().expect("a place");
    assert_eq!(problem["file"], "journal/00000001");
    assert!(
        at <= middle as u64 && middle as u64 <= at + problem["bytes"].as_u64().expect("a length"),
        "{problem}"
    );
    assert_eq!(problem["affects"]["kind"], "moments");
}

#[test]
fn a_log_of_another_program_is_told_converted_and_put_onto_an_image() {
    let home = tempfile::tempdir().expect("a folder");
    let file = |name: &str| home.path().join(name).to_str().expect("text").to_owned();
    let (first, second, image) = (file("first.hrl"), file("second.hrl"), file("disk.raw"));
    // Made by a writer that knows the published layout and nothing of ours.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services/capture/tests/common/hrl.py");
    let mut child = Command::new("/usr/bin/python3")
        .arg(script)
        .args(["write", &first, "1048576", "empty-first"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("python3 runs");
    let lines = "0 1700000000 0102030405\n1048575 1700000001 ff\n3 1700000002 aabb\n";
    child.stdin.take().expect("its input").write_all(lines.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success());

    let looked = alone(&["inspect", &first, "--verify", "--frames", "-o", "json"], home.path()).json();
    assert_eq!((&looked["kind"], &looked["closed"]), (&"replication-log".into(), &true.into()));
    assert_eq!((&looked["writes_total"], &looked["verified"]), (&3.into(), &true.into()));
    assert_eq!(looked["writes"][1]["offset"], 1_048_575);
    assert_eq!(looked["writes"][2]["time"], "2023-11-14T22:13:22.000000Z");
    let told = alone(&["inspect", &first], home.path());
    assert!(told.stdout.contains("3 writes, 8 B") && told.stdout.contains("by `test`"), "{}", told.stdout);

    // Into frames and back, as a log that goes on from the first.
    let feed = file("first.feed");
    let made = alone(&["hrl", "convert", &first, &feed, "-o", "json"], home.path()).json();
    assert_eq!(made["frames"], 1);
    let frames = alone(&["inspect", &feed, "-o", "json"], home.path()).json();
    assert_eq!((&frames["kind"], &frames["machine"]), (&"frames".into(), &made["machine"]));
    let unsaid = alone(&["hrl", "convert", &feed, &second], home.path());
    assert!(unsaid.code == 2 && unsaid.stderr.contains("--disk-size"), "{}", unsaid.stderr);
    let words = ["hrl", "convert", &feed, &second, "--disk-size", "1M", "--after", &first, "-o", "json"];
    let made = alone(&words, home.path()).json();
    assert_eq!((&made["writes"], &made["lost"]["barriers"]), (&3.into(), &1.into()));

    // Never in place without being told to.
    std::fs::write(&image, vec![9; 1 << 20]).expect("an image");
    let asked = alone(&["hrl", "apply", &second, &first, &image], home.path());
    assert!(asked.code == 5 && asked.stderr.contains("--yes"), "{}", asked.stderr);
    assert!(std::fs::read(&image).expect("it").iter().all(|byte| *byte == 9), "nothing was written");
    let done = alone(&["hrl", "apply", &second, &first, &image, "--yes", "-o", "json"], home.path()).json();
    assert_eq!((&done["writes"], &done["read_back_bytes"]), (&6.into(), &6.into()));
    let bytes = std::fs::read(&image).expect("it");
    assert_eq!(bytes[..6], [1, 2, 3, 0xaa, 0xbb, 9]);
    assert_eq!((bytes[(1 << 20) - 1], bytes[(1 << 20) - 2]), (0xff, 9));
    // qemu-img finds the same.
    let mut expected = vec![9; 1 << 20];
    expected[..5].copy_from_slice(&[1, 2, 3, 0xaa, 0xbb]);
    expected[(1 << 20) - 1] = 0xff;
    std::fs::write(file("expected"), expected).expect("an image");
    program("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &file("expected")]);

    // Damaged, it is told and not applied; the image stays.
    let mut bytes = std::fs::read(&first).expect("a log");
    bytes[8192] ^= 1;
    std::fs::write(&first, bytes).expect("written");
    let looked = alone(&["inspect", &first, "--verify"], home.path());
    assert!(looked.code == 1 && looked.stdout.contains("does not match its checksum"), "{}", looked.stdout);
    let refused = alone(&["hrl", "apply", &first, &image, "--yes"], home.path());
    assert!(refused.code == 1 && refused.stderr.contains("hrl.damaged"), "{}", refused.stderr);
    program("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &file("expected")]);
}
