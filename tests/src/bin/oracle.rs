//! `oracle write` stamps disks on any NBD server and logs what was acknowledged; `oracle prove` says whether disks
//! are a state of that history.

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use continuum_model::time::Timestamp;
use continuum_tests::oracle::workload::Writer;
use continuum_tests::oracle::{self, BLOCK, History, Workload};
use std::path::PathBuf;
use std::time::Duration;

/// Proves that a disk is a state in which another disk was
#[derive(Parser)]
#[command(after_help = "\
Examples:
  oracle write --log acks --run 1 --seconds 60 nbd://localhost/a nbd://localhost/b
  oracle prove --log acks --at 2026-11-23T03:00:00Z 'nbd+unix:///a?socket=/run/copy.sock' 'nbd+unix:///b?socket=/run/copy.sock'

Exit codes: 0 legal, 1 not legal or failed, 2 wrong usage")]
struct Cli {
    #[command(subcommand)]
    act: Act,
}

#[derive(Subcommand)]
enum Act {
    /// Write stamped blocks to the disks of a group
    Write {
        /// Where to log what was acknowledged: another medium than the disks
        #[arg(long)]
        log: PathBuf,
        /// Tells runs apart
        #[arg(long)]
        run: u64,
        /// For how long
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        /// How fast, over all disks
        #[arg(long, default_value_t = 8 << 20)]
        bytes_per_sec: u64,
        /// The disks, in order
        #[arg(required = true)]
        uris: Vec<String>,
    },
    /// Prove that the disks are the state at a moment
    Prove {
        /// The logs of all writers
        #[arg(long, required = true)]
        log: Vec<PathBuf>,
        /// The moment
        #[arg(long)]
        at: Timestamp,
        /// The disks, in order
        #[arg(required = true)]
        uris: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().act {
        Act::Write { log, run, seconds, bytes_per_sec, uris } => {
            let workload = Workload::new(run, &log).with_context(|| format!("{}", log.display()))?;
            let share = bytes_per_sec / uris.len() as u64;
            std::thread::scope(|scope| -> anyhow::Result<()> {
                let mut writers = Vec::new();
                for (disk, uri) in (0u32..).zip(&uris) {
                    let size = oracle::workload::size(uri).with_context(|| format!("connecting to {uri}"))?;
                    let blocks = 0..size / BLOCK as u64;
                    let seed = run ^ u64::from(disk) << 32;
                    let writer = Writer { uri: uri.clone(), disk, blocks, bytes_per_sec: share, seed };
                    let workload = &workload;
                    writers.push(scope.spawn(move || workload.write(&writer)));
                }
                std::thread::sleep(Duration::from_secs(seconds));
                workload.stop();
                for writer in writers {
                    writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
                }
                Ok(())
            })
        }
        Act::Prove { log, at, uris } => {
            let paths: Vec<_> = log.iter().map(PathBuf::as_path).collect();
            let history = History::read(&paths)?;
            let images = uris
                .iter()
                .map(|uri| oracle::read_image(uri).with_context(|| format!("reading {uri}")))
                .collect::<anyhow::Result<Vec<_>>>()?;
            let slices: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
            let found = oracle::prove(&slices, &history, at.micros());
            for violation in found.iter().take(20) {
                println!("{violation:?}");
            }
            if !found.is_empty() {
                bail!("{} violations: not a state in which the source was at {at}", found.len());
            }
            println!("legal: {} writes, {} disks, at {at}", history.writes.len(), images.len());
            Ok(())
        }
    }
}
