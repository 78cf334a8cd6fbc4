//! NBD servers that break the protocol after an honest greeting: whatever they say, our client ends the request with
//! an error within its patience, and takes nothing for an answer that is none.

use continuum_fabric::nbd::{Client, Uri};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_millis(400);

fn exact<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Greets, and agrees to whatever `GO` names.
fn greet(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03")?;
    exact::<4>(stream)?;
    loop {
        let head = exact::<16>(stream)?;
        let option = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        let length = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body)?;
        let mut answer = |kind: u32, body: &[u8]| {
            let mut out = 0x3_e889_0455_65a9u64.to_be_bytes().to_vec();
            for word in [option, kind, body.len() as u32] {
                out.extend_from_slice(&word.to_be_bytes());
            }
            out.extend_from_slice(body);
            stream.write_all(&out)
        };
        // 7: go. Anything else that a client may ask for first is not known here.
        if option != 7 {
            answer(0x8000_0001, &[])?;
            continue;
        }
        let info = [&0u16.to_be_bytes()[..], &SIZE.to_be_bytes(), &1u16.to_be_bytes()].concat();
        answer(3, &info)?;
        answer(1, &[])?;
        return Ok(());
    }
}

/// What a read of 4 KiB comes to, and how long that takes.
fn read_from(
    reply: impl FnOnce(&mut TcpStream, [u8; 8]) -> io::Result<()> + Send,
) -> (io::Result<()>, Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = Uri::parse(&format!("nbd://{}/x", listener.local_addr().unwrap())).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            greet(&mut stream).unwrap();
            let request = exact::<28>(&mut stream).unwrap();
            let cookie = request[8..16].try_into().unwrap();
            // The client may have had enough before all of it is out.
            let _ = reply(&mut stream, cookie);
            let mut sink = [0; 1024];
            while matches!(stream.read(&mut sink), Ok(n) if n > 0) {}
        });
        let mut client = Client::connect(&uri, PATIENCE).unwrap();
        assert_eq!(client.size(), SIZE);
        let started = Instant::now();
        let mut out = [0; 4096];
        let read = client.read(0, &mut out);
        (read, started.elapsed())
    })
}

fn simple(magic: u32, error: u32, cookie: [u8; 8]) -> Vec<u8> {
    [&magic.to_be_bytes()[..], &error.to_be_bytes(), &cookie].concat()
}

#[test]
fn whatever_a_server_answers_is_an_answer_or_an_error() {
    const MAGIC: u32 = 0x6744_6698;
    let (read, _) = read_from(|stream, cookie| {
        stream.write_all(&simple(MAGIC, 0, cookie))?;
        stream.write_all(&[7; 4096])
    });
    assert!(read.is_ok(), "an honest one: {read:?}");
    let other = |cookie: [u8; 8]| (u64::from_be_bytes(cookie) ^ 1).to_be_bytes();
    type Reply = Box<dyn FnOnce(&mut TcpStream, [u8; 8]) -> io::Result<()> + Send>;
    let rows: [(&str, Reply); 7] = [
        (
            "another cookie",
            Box::new(move |s, c| s.write_all(&[simple(MAGIC, 0, other(c)), vec![7; 4096]].concat())),
        ),
        ("no magic", Box::new(|s, c| s.write_all(&[simple(0x1234_5678, 0, c), vec![7; 4096]].concat()))),
        ("an error", Box::new(|s, c| s.write_all(&simple(MAGIC, 5, c)))),
        ("an error that is no number of anything", Box::new(|s, c| s.write_all(&simple(MAGIC, u32::MAX, c)))),
        (
            "half of the data, then silence",
            Box::new(|s, c| s.write_all(&[simple(MAGIC, 0, c), vec![7; 2000]].concat())),
        ),
        ("nothing", Box::new(|_, _| Ok(()))),
        ("noise without end", Box::new(|s, _| (0..20_000).try_for_each(|_| s.write_all(&[0x5a; 4096])))),
    ];
    for (why, reply) in rows {
        let (read, took) = read_from(reply);
        let error = read.expect_err(why);
        assert!(took < PATIENCE * 25, "{why}: it waited {took:?}");
        assert!(!error.to_string().is_empty(), "{why}");
    }
}
