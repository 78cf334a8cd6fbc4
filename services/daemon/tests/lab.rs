//! A lab from its start to its end, with real processes.

use continuum_daemon::lab::{self, LabOptions, Progress, Stage};
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type Ended = JoinHandle<Result<(), continuum_model::fault::Fault>>;

fn start(dir: &Path, machines: u32) -> (Ended, mpsc::Receiver<Progress>, CancellationToken) {
    let (told, progress) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let options = LabOptions {
        machines: Some(machines),
        program: Some(env!("CARGO_BIN_EXE_continuumd").into()),
        ..LabOptions::in_dir(dir)
    };
    (tokio::spawn(lab::run(options, told, stop.clone())), progress, stop)
}

async fn until(progress: &mut mpsc::Receiver<Progress>, stage: Stage) {
    let waiting = async {
        while let Some(progress) = progress.recv().await {
            eprintln!("{progress:?}");
            if progress.stage >= stage {
                return;
            }
        }
        panic!("the lab ended before {stage:?}");
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lab_starts_answers_and_leaves_nothing() {
    let dir = tempfile::Builder::new().prefix("ct-lab-").tempdir().unwrap();
    let (ended, mut progress, _stop) = start(dir.path(), 0);
    until(&mut progress, Stage::Enrolling).await;
    let status = lab::status(dir.path()).await.unwrap();
    assert!(status.running);
    eprintln!("{status:?}");
    let vault = status.processes.iter().find(|process| process.role == "vault").unwrap();
    assert!(vault.up && vault.pid.is_some());
    assert!(dir.path().join("profile/profile.toml").exists());
    lab::stop(dir.path()).await.unwrap();
    ended.await.unwrap().unwrap();
    lab::reset(dir.path()).await.unwrap();
    assert!(!dir.path().exists() || std::fs::read_dir(dir.path()).unwrap().count() == 0);
}
