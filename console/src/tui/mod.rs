//! The terminal console.
//!
//! - [`state`]: everything the console knows and what keys do to it. No terminal types but key events
//! - [`ui`]: drawing a state; changes nothing
//! - [`theme`]: colours and marks from TOML
//! - [`term`]: taking the terminal over and giving it back, whatever happens
//!
//! One task owns the state. Network and lab tell it news over bounded queues; it draws when something
//! changed, at most once a frame slot, and not at all when nothing did. Keys are never waited on by a call:
//! calls are tasks whose answers are news.

pub mod state;
pub mod term;
pub mod theme;
pub mod ui;

use crate::link::{self, Opener, watch};
use crate::profile::Choice;
use continuum_daemon::lab::{self, LabOptions, Stage};
use continuum_model::fault::{Fault, FaultClass};
use continuum_proto::v1 as pb;
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures::StreamExt;
use state::{Ask, Banner, News, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

/// What the command line says about looks.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Colours may be used.
    pub colour: bool,
}

/// At most one picture in this time.
const FRAME: Duration = Duration::from_millis(33);

/// The console on a lab, started here where none runs in its directory.
pub fn on_lab(options: LabOptions, looks: Options) -> Result<(), Fault> {
    let choice = Choice { dir: Some(options.dir.clone()), ..Choice::default() };
    run(link::opener(choice), looks, Some(options))
}

/// The console on a vault.
pub fn on_target(choice: Choice, looks: Options) -> Result<(), Fault> {
    run(link::opener(choice), looks, None)
}

fn run(open: Opener, looks: Options, lab: Option<LabOptions>) -> Result<(), Fault> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Fault::new(FaultClass::Failed, "console.terminal", format!("{what}: {error}"))
            .spares("the vault and all jobs, which go on")
            .remedy("use the verbs: `continuum get machines`")
    };
    if !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err(failed("the console needs a terminal", &"standard output is none"));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| failed("threads could not be started", &error))?;
    let mut terminal =
        term::Terminal::take().map_err(|error| failed("the terminal could not be taken over", &error))?;
    let stop = CancellationToken::new();
    let ended = runtime.block_on(session(&mut terminal, open, looks, lab, stop.clone()));
    drop(terminal);
    stop.cancel();
    // A lab of ours ends in good order, within its own deadlines.
    runtime.shutdown_timeout(Duration::from_secs(10));
    ended.map_err(|error| failed("the terminal failed", &error))
}

async fn session(
    terminal: &mut term::Terminal,
    open: Opener,
    looks: Options,
    lab: Option<LabOptions>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let mut state =
        State::new(theme::Theme::load(looks.colour), std::env::var_os("CONTINUUM_ASCII").is_some());
    // First paint before anything else is asked.
    terminal.draw(|frame| ui::draw(frame, &state))?;
    let (news, mut told) = mpsc::channel::<News>(256);
    let nudge = Arc::new(Notify::new());
    let lab_task = lab.map(|options| tokio::spawn(keep_lab(options, news.clone(), stop.clone())));
    let (watched, mut watching) = mpsc::channel(64);
    tokio::spawn(watch::run(open.clone(), watched, nudge.clone(), stop.clone()));
    let passing = news.clone();
    tokio::spawn(async move {
        while let Some((_, item)) = watching.recv().await {
            if passing.send(News::Watch(Box::new(item))).await.is_err() {
                return;
            }
        }
    });
    let mut keys = EventStream::new();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let mut drawn = tokio::time::Instant::now();
    let mut dirty = true;
    let mut signals = terminal.signals();
    while !state.leaving {
        let slot = drawn + FRAME;
        tokio::select! {
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                    for ask in state.key(key) {
                        carry(ask, &state, &open, &nudge, &news);
                    }
                    dirty = true;
                }
                Some(Ok(Event::Paste(text))) => {
                    state.paste(&text);
                    dirty = true;
                }
                Some(Ok(Event::Resize(..))) => dirty = true,
                Some(Ok(_)) => {}
                // The terminal is gone.
                Some(Err(_)) | None => break,
            },
            Some(item) = told.recv() => {
                dirty |= state.news(item);
                while let Ok(item) = told.try_recv() {
                    dirty |= state.news(item);
                }
                for ask in state.follow_up() {
                    carry(ask, &state, &open, &nudge, &news);
                }
            }
            _ = second.tick() => {
                dirty |= state.tick();
            }
            signal = signals.recv() => match signal {
                Some(term::Signal::Resumed) => {
                    terminal.retake()?;
                    dirty = true;
                }
                Some(term::Signal::Leave) | None => break,
            },
            () = tokio::time::sleep_until(slot), if dirty => {
                terminal.draw(|frame| ui::draw(frame, &state))?;
                drawn = tokio::time::Instant::now();
                dirty = false;
            }
        }
    }
    stop.cancel();
    if let Some(lab) = lab_task {
        // The lab's processes end in good order.
        let _ = tokio::time::timeout(Duration::from_secs(9), lab).await;
    }
    Ok(())
}

/// Runs a lab beside the console, unless one runs in its directory already.
async fn keep_lab(options: LabOptions, news: mpsc::Sender<News>, stop: CancellationToken) {
    let (stages, mut told) = mpsc::channel::<Stage>(16);
    let passing = news.clone();
    tokio::spawn(async move {
        while let Some(stage) = told.recv().await {
            let _ = passing.send(News::Lab(stage)).await;
        }
    });
    if let Err(fault) = lab::run(options, stages, stop).await
        && fault.code != "lab.running"
    {
        let _ = news.send(News::Banner(Banner { text: fault.to_string() })).await;
    }
}

/// Carries out what a key asked for, beside the console; its answer is news.
fn carry(ask: Ask, state: &State, open: &Opener, nudge: &Arc<Notify>, news: &mpsc::Sender<News>) {
    let (news, open) = (news.clone(), open.clone());
    let link = state.link.clone();
    match ask {
        Ask::Reconnect => nudge.notify_one(),
        Ask::Copy(text) => term::copy(&text),
        Ask::Readiness { machine, verb, point } => {
            tokio::spawn(async move {
                let Some(link) = link else { return };
                let request = pb::ReadinessRequest {
                    machine: machine.clone(),
                    order: verb.clone(),
                    point: point.clone(),
                };
                let _ = news
                    .send(News::Readiness { machine, verb, point, reply: link.readiness(request).await })
                    .await;
            });
        }
        Ask::Timeline { machine, from_us } => {
            tokio::spawn(async move {
                let Some(link) = link else { return };
                let request = pb::TimelineRequest {
                    machine: machine.clone(),
                    from_us,
                    buckets: 72,
                    points_max: 200,
                    ..Default::default()
                };
                let _ = news.send(News::Timeline { machine, reply: link.timeline(request).await }).await;
            });
        }
        Ask::Preview { machine, point } => {
            tokio::spawn(async move {
                let Some(link) = link else { return };
                let request = pb::PreviewRequest { machine: machine.clone(), point: point.clone() };
                let _ = news.send(News::Preview { machine, point, reply: link.preview(request).await }).await;
            });
        }
        Ask::Order(request) => {
            tokio::spawn(async move {
                let Some(link) = link else { return };
                let reply = link::order_until_answered(link, &open, *request).await;
                let _ = news.send(News::Ordered(reply.map(Box::new))).await;
            });
        }
    }
}
