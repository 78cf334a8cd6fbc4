//! A process server that is really killed, with SIGKILL, again and again while frames pass, and its directory
//! wiped: what was acknowledged is at the target, and all of the feed arrives in the end.

mod common;

use common::*;
use continuum_process_server::pace::Pace;
use continuum_process_server::{Limits, ProcessServer};
use continuum_wire::identity::Role;
use continuum_wire::tls::{self, Credentials};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const DIR: &str = "CONTINUUM_TEST_PROCESS_SERVER";
const TARGET: &str = "CONTINUUM_TEST_TARGET";

/// Not a test by itself: the process that is killed. Tells where it listens, and serves.
#[test]
fn the_process_that_is_killed() {
    let (Ok(dir), Ok(target)) = (std::env::var(DIR), std::env::var(TARGET)) else { return };
    tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let dir = std::path::PathBuf::from(dir);
        let credentials = Credentials::open(&dir.join("process-server-ps")).unwrap();
        let limits = Limits { machine_memory_bytes_max: 1 << 20, ..Limits::default() };
        let server = ProcessServer::open(&dir.join("spool"), credentials, limits, Pace::new(vec![])).unwrap();
        server.assign(assigned(machine(1), 1, target.parse::<SocketAddr>().unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listens at {}", listener.local_addr().unwrap());
        server.serve(listener, CancellationToken::new()).await.unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_it_at_any_moment_loses_nothing() {
    let estate = Estate::new();
    estate.credentials(Role::ProcessServer, "ps");
    let (target, at_target, _t) = Target::start(&estate.credentials(Role::MasterTarget, "mt")).await;
    let address = Arc::new(Mutex::new(String::from("127.0.0.1:1")));
    let start = || async {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_that_is_killed", "--nocapture"])
            .env(DIR, estate.dir.path())
            .env(TARGET, at_target.to_string())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = lines.next_line().await.unwrap().expect("it ended before it listened");
            if let Some((_, at)) = line.split_once("listens at ") {
                *address.lock().unwrap() = at.to_owned();
                return child;
            }
        }
    };
    let (agent, feed) = (estate.agent(machine(1)), feed(machine(1), 1, 600, 100_000));
    let mut child = start().await;
    let streaming = stream_all(&agent, || address.lock().unwrap().clone(), 1, &feed, &target);
    tokio::pin!(streaming);
    let (mut kills, mut wait) = (0u32, 7u64);
    let connections = loop {
        wait = wait * 31 % 97;
        tokio::select! {
            connections = &mut streaming => break connections,
            () = tokio::time::sleep(Duration::from_millis(30 + wait)) => {}
        }
        child.kill().await.unwrap();
        kills += 1;
        if kills.is_multiple_of(2) {
            std::fs::remove_dir_all(estate.spool()).unwrap();
        }
        child = tokio::select! {
            connections = &mut streaming => break connections,
            child = start() => child,
        };
    };
    target.assert_holds(machine(1), &feed);
    let _ = child.kill().await;
    assert!(kills >= 3 && connections > 3, "{kills} kills, {connections} connections");
}
