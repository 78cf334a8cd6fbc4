//! Archives on real servers that speak S3 and Azure Blob: moto and Azurite, as `tests/run` installs them.

use continuum_model::feed::{Barrier, Change, Envelope, FrameBuilder, Identity, Record};
use continuum_model::id::{DiskId, MachineId};
use continuum_model::point::PointChoice;
use continuum_model::time::Timestamp;
use continuum_model::units::{DiskIndex, Epoch};
use continuum_objects::Bucket;
use continuum_replica::remote::archive::archive;
use continuum_replica::remote::{ArchiveError, Objects, Tag, folder};
use continuum_replica::{DiskSpec, Folder, Store, bare};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const MACHINE: MachineId = MachineId::from_bytes([7; 16]);
const SIZE: u64 = 9 << 20;
/// The account that every Azurite has; published, and no secret.
const ACCOUNT: &str = "devstoreaccount1";
const ACCOUNT_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// A server of its own for a test; ends with it.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Starts a program that tells on which port it listens.
    fn start(mut command: Command) -> Self {
        // Both its outputs into one pipe: which one it talks on is its own business.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        command.stdin(Stdio::null()).stderr(writer.try_clone().expect("a pipe")).stdout(writer);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("{command:?}: {error}; `tests/run` installs the servers of these tests")
        });
        drop(command);
        let mut said = String::new();
        let mut lines = BufReader::new(reader);
        // Stopped and waited for, however this ends.
        let mut server = Self { child, port: 0 };
        while server.port == 0 {
            let mut line = String::new();
            let read = lines.read_line(&mut line).expect("its words");
            said += &line;
            assert!(read > 0, "the server ended without listening:\n{said}");
            server.port = line
                .split("http://127.0.0.1:")
                .nth(1)
                .and_then(|rest| {
                    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
                })
                .unwrap_or(0);
        }
        // What else it says must not fill the pipe and stop it.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        server
    }

    fn request(&self, head: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        let request =
            format!("{head}Host: 127.0.0.1:{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", self.port);
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where `tests/run` put the servers.
fn installed(what: &str) -> PathBuf {
    if let Some(path) = std::env::var_os("CONTINUUM_OBJECT_SERVERS") {
        return Path::new(&path).join(what);
    }
    // target/<profile>/deps/servers-…
    let here = std::env::current_exe().expect("a test has a path");
    let target = here.ancestors().nth(3).expect("tests live in target/<profile>/deps");
    target.join("objects").join(what)
}

fn s3() -> (Server, Bucket, Bucket) {
    let mut command = Command::new(installed("venv/bin/moto_server"));
    command.args(["-H", "127.0.0.1", "-p", "0"]).env("NO_COLOR", "1");
    let server = Server::start(command);
    let made = server.request("PUT /replicas HTTP/1.1\r\n");
    assert!(made.starts_with("HTTP/1.1 200"), "{made}");
    let open = || {
        let settings = [
            ("aws_endpoint", format!("http://127.0.0.1:{}", server.port)),
            ("aws_allow_http", "true".into()),
            ("aws_region", "us-east-1".into()),
            ("aws_access_key_id", "test".into()),
            ("aws_secret_access_key", "test".into()),
            ("path", "/somewhere".into()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        Bucket::with_settings("s3://replicas/berlin/web-01", settings).expect("an address")
    };
    let (one, two) = (open(), open());
    (server, one, two)
}

fn azure() -> (Server, Bucket, Bucket) {
    let mut command = Command::new(installed("node_modules/.bin/azurite-blob"));
    command.args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]);
    command.args(["--skipApiVersionCheck", "--disableTelemetry"]);
    let server = Server::start(command);
    // A container is made with a signed request; Python has what signing takes.
    let sign = "import base64,email.utils,hashlib,hmac,sys\n\
        account,key=sys.argv[1:]\n\
        date=email.utils.formatdate(usegmt=True)\n\
        text='PUT'+'\\n'*12+f'x-ms-date:{date}\\nx-ms-version:2021-08-06\\n/{account}/{account}/replicas\\nrestype:container'\n\
        mac=hmac.new(base64.b64decode(key),text.encode(),hashlib.sha256).digest()\n\
        print(date);print(base64.b64encode(mac).decode())";
    let signed = Command::new("python3").args(["-c", sign, ACCOUNT, ACCOUNT_KEY]).output().expect("python3");
    let signed = String::from_utf8(signed.stdout).expect("text");
    let mut signed = signed.lines();
    let (date, mac) = (signed.next().expect("a date"), signed.next().expect("a signature"));
    let made = server.request(&format!(
        "PUT /{ACCOUNT}/replicas?restype=container HTTP/1.1\r\nx-ms-date: {date}\r\nx-ms-version: 2021-08-06\r\n\
         Authorization: SharedKey {ACCOUNT}:{mac}\r\n"
    ));
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    let open = || {
        let settings = [
            ("azure_storage_account_name", ACCOUNT.to_owned()),
            ("azure_storage_account_key", ACCOUNT_KEY.to_owned()),
            ("azure_storage_endpoint", format!("http://127.0.0.1:{}/{ACCOUNT}", server.port)),
            ("azure_allow_http", "true".into()),
            ("allow_http", "true".into()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        Bucket::with_settings("az://replicas/berlin/web-01", settings).expect("an address")
    };
    let (one, two) = (open(), open());
    (server, one, two)
}

/// What an archive asks of a space of objects.
fn keeps_its_word(one: &Bucket, two: &Bucket) {
    assert_eq!(one.read("none", 100).expect("asked"), None);
    one.remove("none").expect("one that is not there is fine");
    one.put("parts/a", b"first".to_vec()).expect("put");
    one.put("parts/a", b"first".to_vec()).expect("put again");
    one.put("parts/b", vec![7; 1000]).expect("put");
    assert_eq!(two.read("parts/a", 5).expect("read").expect("there").0, b"first");
    assert!(two.read("parts/a", 4).is_err(), "longer than it may be");
    let mut listed = two.list("parts/").expect("listed");
    listed.sort();
    assert_eq!(listed, [("parts/a".to_owned(), 5), ("parts/b".to_owned(), 1000)]);
    // One writer: of two that saw the same, the second is told.
    assert!(one.replace("catalog", b"1".to_vec(), None).expect("made"));
    assert!(!two.replace("catalog", b"x".to_vec(), None).expect("asked"), "it is there already");
    let (_, tag) = one.read("catalog", 100).expect("read").expect("there");
    assert!(one.replace("catalog", b"2".to_vec(), Some(&tag)).expect("replaced"));
    assert!(!two.replace("catalog", b"y".to_vec(), Some(&tag)).expect("asked"), "it is another by now");
    assert_eq!(two.read("catalog", 100).expect("read").expect("there").0, b"2");
    assert!(two.replace("catalog", b"z".to_vec(), Some(&Tag(String::new()))).is_err(), "no tag, no promise");
    for name in ["parts/a", "parts/b", "catalog"] {
        one.remove(name).expect("removed");
    }
    assert!(one.list("parts/").expect("listed").is_empty());
}

fn append(store: &Store, offsets: &[u64]) {
    let last = store.state().last;
    let number = last.number.next();
    let mut builder = FrameBuilder::default();
    let (mut sequence, mut micros) = (last.sequence, number.0 as i64 * 1_000_000);
    let mut push = |change| {
        (sequence, micros) = (sequence.next(), micros + 1);
        builder.push(&Record { sequence, time: Timestamp::from_micros(micros), change });
    };
    for offset in offsets {
        let data: Vec<u8> =
            (0..8192u64).map(|at| ((at + offset) * 31 % 253) as u8 ^ number.0 as u8).collect();
        push(Change::Write { disk: DiskIndex(0), offset: *offset, data: data.into(), injected: false });
    }
    push(Change::Barrier(Barrier::time_mark(true)));
    let identity = Identity { machine: MACHINE, epoch: Epoch(1), number, session: 1, previous: last.digest };
    store.append(&[Envelope::plain(&builder.finish(identity).expect("records"))]).expect("appended");
}

fn open(path: &Path) -> Store {
    let disk = DiskSpec { index: DiskIndex(0), id: DiskId::from_bytes([1; 16]), size: SIZE };
    let folder = Arc::new(Folder::open_or_create(path).expect("a folder"));
    let (store, _) = Store::open_or_create(folder, MACHINE, &[disk]).expect("opens");
    store.fence(Epoch(1)).expect("fenced");
    store
}

/// The digest of the disk at the newest moment and at the oldest.
fn digests(bare: &bare::Bare) -> Vec<String> {
    let oldest = bare.store.state().oldest_legal.expect("history");
    [PointChoice::Latest, PointChoice::Moment(oldest)]
        .map(|at| {
            let view = bare.store.open_view(bare.store.resolve(&at).expect("there").position).expect("opens");
            view.digest(DiskIndex(0)).expect("whole").to_string()
        })
        .to_vec()
}

/// A store there and back, a second archive of it, and a race.
fn carries_an_archive(one: Bucket, two: &Bucket) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("store");
    let store = open(&path);
    append(&store, &[0, 5 << 20]);
    append(&store, &[4096, 8 << 20]);
    store.fold(Timestamp::from_micros(1_500_000), None).expect("folded");
    drop(store);
    let one = Arc::new(one);
    let ours = bare::open(&path, None).expect("opens");
    let first = archive(&ours, &*one, &mut |_, _| true).expect("archived");
    assert_eq!((first.version, first.sent_bytes), (1, first.bytes));
    let theirs = folder::open(one.clone(), Path::new("archive"), None).expect("opens where it lies");
    assert_eq!(digests(&theirs), digests(&ours));
    drop((ours, theirs));
    append(&open(&path), &[1 << 20]);
    let ours = bare::open(&path, None).expect("opens");
    // Another writer comes between what was read and what is replaced.
    let mut raced = false;
    let lost = archive(&ours, &*one, &mut |_, _| {
        if !raced {
            raced = true;
            archive(&ours, two, &mut |_, _| true).expect("the other is first");
        }
        true
    });
    assert!(matches!(lost, Err(ArchiveError::Raced)), "{lost:?}");
    let last = archive(&ours, &*one, &mut |_, _| true).expect("archived");
    assert_eq!((last.version, last.sent_bytes), (3, 0), "the other sent it all");
    let theirs = folder::open(one, Path::new("archive"), None).expect("opens where it lies");
    assert_eq!(digests(&theirs), digests(&ours));
}

#[test]
fn s3_keeps_its_word_and_carries_an_archive() {
    let (_server, one, two) = s3();
    keeps_its_word(&one, &two);
    carries_an_archive(one, &two);
}

#[test]
fn azure_blob_keeps_its_word_and_carries_an_archive() {
    let (_server, one, two) = azure();
    keeps_its_word(&one, &two);
    carries_an_archive(one, &two);
}

#[test]
fn an_address_that_is_none_is_told_so() {
    for address in ["", "replicas/web-01", "http://x/y", "s3:/x", "file:///tmp"] {
        let error = Bucket::with_settings(address, []).err().map(|error| error.to_string());
        assert!(error.is_some_and(|error| error.contains("s3://BUCKET")), "{address}");
    }
    let secret = [("aws_endpoint".to_owned(), "http://127.0.0.1:1".to_owned())];
    assert!(Bucket::with_settings("s3://bucket/x", secret).is_ok());
}
