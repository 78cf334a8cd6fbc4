//! A lab guest: the ledger as a process of its own, with a heartbeat on a socket.
//!
//! It reconnects for ever when its block server goes away, and repeats the request that got no answer: every
//! write of the ledger may be repeated. It stops for SIGTERM, and when its disk is found corrupt it says so
//! on its heartbeat instead of going on.

use super::hook::Hook;
use super::ledger::{BLOCK, Disks, Ledger, LedgerError};
use crate::nbd::{Client, Uri};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a guest needs to run.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Its disks.
    pub disks: Vec<String>,
    /// Where it answers.
    pub heartbeat: PathBuf,
    /// Transfers a second.
    pub rate: u32,
    /// An empty disk is formatted. Never for a replica.
    pub format: bool,
    /// Where it can be told to hold still.
    pub hook: Option<PathBuf>,
}

/// What a guest answers: one line of JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// `starting`, `running`, `failed`.
    pub state: String,
    /// The transfer it recovered to.
    pub recovered: u64,
    /// Transfers it replayed at the start.
    pub replayed: u64,
    /// The newest transfer.
    pub sequence: u64,
    /// Why it failed.
    pub error: String,
    /// Requests that were repeated because the block server went away.
    pub reconnects: u64,
    /// How its file system is, where it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filesystem: String,
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs until killed, or until its disks are found corrupt; then it only answers.
pub fn run(config: &GuestConfig) -> io::Result<()> {
    let state = Arc::new(Mutex::new(Heartbeat { state: "starting".into(), ..Heartbeat::default() }));
    let _ = std::fs::remove_file(&config.heartbeat);
    let listener = UnixListener::bind(&config.heartbeat)?;
    let answering = state.clone();
    std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
            let now = answering.lock().unwrap_or_else(PoisonError::into_inner).clone();
            // A client that went away needs no answer.
            let _ = serde_json::to_string(&now).map(|line| stream.write_all((line + "\n").as_bytes()));
        }
    })?;
    let hook = Hook::serve(config.hook.as_deref())?;
    let tell =
        |change: &dyn Fn(&mut Heartbeat)| change(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
    let uris = config.disks.iter().map(|disk| Uri::parse(disk)).collect::<io::Result<Vec<_>>>()?;
    let mut disks = Remote::connect(uris);
    let opened = match Ledger::open(&mut disks) {
        Err(LedgerError::Empty) if config.format => {
            Ledger::format(&mut disks).and_then(|()| Ledger::open(&mut disks))
        }
        opened => opened,
    };
    let (mut ledger, recovery) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tell(&|beat| {
                beat.state = "failed".into();
                beat.error = error.to_string();
            });
            loop {
                std::thread::park();
            }
        }
    };
    tell(&|beat| {
        beat.state = "running".into();
        beat.recovered = recovery.sequence;
        beat.replayed = recovery.replayed;
        beat.sequence = recovery.sequence;
    });
    let pace = Duration::from_secs(1) / config.rate.max(1);
    let mut due = Instant::now();
    loop {
        hook.hold_if_asked(|| ledger.checkpoint(&mut disks).map_err(|error| error.to_string()));
        let random = ledger.sequence().wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        match ledger.transfer(&mut disks, random ^ (random >> 29)) {
            Ok(sequence) => tell(&|beat| {
                beat.sequence = sequence;
                beat.reconnects = disks.reconnects;
            }),
            Err(error) => tell(&|beat| {
                beat.state = "failed".into();
                beat.error = error.to_string();
            }),
        }
        due = (due + pace).max(Instant::now().checked_sub(Duration::from_secs(1)).unwrap_or(due));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Disks on NBD, connected again for ever.
struct Remote {
    disks: Vec<(Uri, Option<Client>, u64)>,
    reconnects: u64,
}

impl Remote {
    fn connect(uris: Vec<Uri>) -> Self {
        let mut remote = Self { disks: uris.into_iter().map(|uri| (uri, None, 0)).collect(), reconnects: 0 };
        for disk in 0..remote.disks.len() {
            // Learns its size.
            let _ = remote.with(disk, |_| Ok(()));
        }
        remote
    }

    fn with<T>(&mut self, disk: usize, mut act: impl FnMut(&mut Client) -> io::Result<T>) -> io::Result<T> {
        let (uri, client, size) = &mut self.disks[disk];
        loop {
            if client.is_none() {
                match Client::connect(uri, PATIENCE) {
                    Ok(connected) => {
                        *size = connected.size();
                        *client = Some(connected);
                    }
                    Err(_) => {
                        std::thread::sleep(Duration::from_millis(20));
                        continue;
                    }
                }
            }
            let Some(connected) = client.as_mut() else { continue };
            match act(connected) {
                Ok(done) => return Ok(done),
                // The server answered: it is the disk that failed.
                Err(error)
                    if error.raw_os_error().is_some_and(|code| code == 5 || code == 28 || code == 1) =>
                {
                    return Err(error);
                }
                Err(_) => {
                    *client = None;
                    self.reconnects += 1;
                }
            }
        }
    }
}

impl Disks for Remote {
    fn blocks(&self, disk: usize) -> Option<u64> {
        self.disks.get(disk).map(|(_, _, size)| size / BLOCK as u64)
    }
    fn read(&mut self, disk: usize, block: u64) -> io::Result<[u8; BLOCK]> {
        self.with(disk, |client| {
            let mut out = [0; BLOCK];
            client.read(block * BLOCK as u64, &mut out)?;
            Ok(out)
        })
    }
    fn write(&mut self, disk: usize, block: u64, content: &[u8; BLOCK], durable: bool) -> io::Result<()> {
        self.with(disk, |client| client.write(block * BLOCK as u64, content, durable))
    }
    fn flush(&mut self) -> io::Result<()> {
        (0..self.disks.len()).try_for_each(|disk| self.with(disk, Client::flush))
    }
}
