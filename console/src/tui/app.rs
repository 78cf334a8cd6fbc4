//! The loop: messages in, effects out, a picture when something changed.
//!
//! One task owns the state. Network and lab tell it over bounded queues; calls are tasks whose answers are
//! messages. A picture is made at most once a frame slot, and sent only when it differs from the last one: a
//! still screen sends no bytes.

use super::core::reduce::update;
use super::core::state::{Answer, Effect, Message, Start, State, Tone};
use super::settings::{Change, Settings};
use super::term::{self, Terminal};
use super::theme::Depth;
use super::{Options, input, ui};
use crate::link::{self, Link, Opener, watch};
use crate::profile;
use continuum_daemon::lab::{self, LabOptions, Stage};
use continuum_model::fault::{Fault, FaultClass};
use continuum_model::world::{Clock, SystemClock};
use crossterm::event::{Event, EventStream, KeyEventKind, MouseButton, MouseEventKind};
use futures::{FutureExt, StreamExt};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// At most one picture in this time.
const FRAME: Duration = Duration::from_millis(33);

struct App {
    state: State,
    settings: Settings,
    open: Opener,
    link: Option<Link>,
    messages: mpsc::Sender<Message>,
    nudge: Arc<Notify>,
    clock: SystemClock,
    leaving: bool,
    /// A dialog waits for the next picture; what was typed before it is thrown away then.
    arm: bool,
    title: String,
}

/// Runs the console until the operator leaves.
pub async fn run(
    terminal: &mut Terminal,
    open: Opener,
    looks: Options,
    lab: Option<LabOptions>,
    stop: CancellationToken,
) -> io::Result<()> {
    let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let depth = if looks.colour { Depth::of_environment(get) } else { Depth::None };
    let ascii = get("CONTINUUM_ASCII").is_some() || !speaks_utf8(get);
    let wanted = get("CONTINUUM_THEME");
    let (settings, change) = Settings::open(profile::config_dir(), depth, wanted.as_deref(), ascii);
    let clock = SystemClock::default();
    let size = crossterm::terminal::size().unwrap_or((80, 24));
    let (messages, mut told) = mpsc::channel::<Message>(256);
    let mut state = State::new(clock.wall().micros(), size);
    state.ascii = ascii;
    let nudge = Arc::new(Notify::new());
    let mut app = App {
        state,
        settings,
        open,
        link: None,
        messages,
        nudge,
        clock,
        leaving: false,
        arm: false,
        title: String::new(),
    };
    app.settings_changed(change);
    let mut last = Buffer::empty(Rect::ZERO);
    // First paint before anything else is asked.
    app.paint(terminal, &mut last)?;
    let (watched, mut watching) = mpsc::channel(64);
    let ready = CancellationToken::new();
    let lab_task =
        lab.map(|options| tokio::spawn(keep_lab(options, app.messages.clone(), ready.clone(), stop.clone())));
    if lab_task.is_none() {
        ready.cancel();
    }
    let (opener, nudge, ended) = (app.open.clone(), app.nudge.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = ready.cancelled() => watch::run(opener, watched, nudge, ended).await,
            () = ended.cancelled() => {}
        }
    });
    let mut keys = EventStream::new();
    let mut joiner = input::Joiner::default();
    let window = input::window(get("SSH_CONNECTION").is_some() || get("SSH_TTY").is_some());
    let mut held_until = Instant::now();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    let (mut drawn, mut dirty) = (Instant::now(), false);
    let mut signals = terminal.signals();
    while !app.leaving {
        let due = app.state.due().map(|at| {
            let left = at.saturating_sub(app.clock.wall().micros()).max(0);
            Instant::now() + Duration::from_micros(left.unsigned_abs())
        });
        tokio::select! {
            event = keys.next() => match event {
                Some(Ok(event)) => {
                    for message in app.event(event, &mut joiner) {
                        app.take(message);
                    }
                    held_until = Instant::now() + window;
                    dirty = true;
                }
                // The terminal is gone.
                Some(Err(_)) | None => break,
            },
            () = tokio::time::sleep_until(held_until), if joiner.is_holding() => {
                if let Some(chord) = joiner.timeout() {
                    app.take(Message::Key(chord));
                    dirty = true;
                }
            }
            Some((generation, news)) = watching.recv() => {
                if let watch::News::Connected { link, .. } = &news {
                    app.link = Some((**link).clone());
                }
                app.take(Message::News(generation, Box::new(news)));
                dirty = true;
            }
            Some(message) = told.recv() => {
                app.take(message);
                dirty = true;
            }
            _ = second.tick() => {
                if let Some(change) = app.settings.look_again() {
                    app.settings_changed(change);
                }
                app.take(Message::Tick);
                dirty = true;
            }
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                app.take(Message::Tick);
                dirty = true;
            }
            signal = signals.recv() => match signal {
                Some(term::Signal::Resumed) => {
                    terminal.retake()?;
                    last = Buffer::empty(Rect::ZERO);
                    dirty = true;
                }
                Some(term::Signal::Leave) | None => break,
            },
            () = tokio::time::sleep_until(drawn + FRAME), if dirty => {
                app.paint(terminal, &mut last)?;
                drawn = Instant::now();
                dirty = false;
                if app.arm {
                    app.arm = false;
                    // Typed before the question stood there: no answer to it.
                    while let Some(Some(Ok(event))) = keys.next().now_or_never() {
                        if let Event::Resize(..) = event {
                            for message in app.event(event, &mut joiner) {
                                app.take(message);
                            }
                        }
                    }
                    joiner = input::Joiner::default();
                    app.take(Message::Armed);
                    dirty = true;
                }
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

/// Whether the locale can show more than ASCII; one that says nothing is taken to.
fn speaks_utf8(get: impl Fn(&str) -> Option<String>) -> bool {
    let locale = get("LC_ALL").or_else(|| get("LC_CTYPE")).or_else(|| get("LANG"));
    locale.is_none_or(|locale| {
        let locale = locale.to_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

impl App {
    fn take(&mut self, message: Message) {
        for effect in update(&mut self.state, message, self.clock.wall().micros()) {
            self.carry(effect);
        }
    }

    /// What an event of the terminal says.
    fn event(&self, event: Event, joiner: &mut input::Joiner) -> Vec<Message> {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => {
                #[cfg(debug_assertions)]
                panic_on_request(key);
                let chords = input::chord(key).map(|chord| joiner.take(chord)).unwrap_or_default();
                chords.into_iter().map(Message::Key).collect()
            }
            Event::Paste(text) => vec![Message::Paste(text)],
            Event::Resize(columns, rows) => vec![Message::Resize(columns, rows)],
            Event::Mouse(mouse) => match mouse.kind {
                MouseEventKind::ScrollUp => vec![Message::Wheel(-3)],
                MouseEventKind::ScrollDown => vec![Message::Wheel(3)],
                MouseEventKind::Down(MouseButton::Left) => vec![Message::Click(mouse.column, mouse.row)],
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Makes a picture, and sends it where it differs from the last one.
    fn paint(&mut self, terminal: &mut Terminal, last: &mut Buffer) -> io::Result<()> {
        self.state.refresh();
        let (columns, rows) = self.state.size;
        let mut picture = Buffer::empty(Rect::new(0, 0, columns, rows));
        ui::draw(&self.state, &self.settings.theme, &mut picture);
        if picture != *last {
            terminal.draw(|frame| {
                let area = frame.area().intersection(picture.area);
                let buffer = frame.buffer_mut();
                for y in area.top()..area.bottom() {
                    for x in area.left()..area.right() {
                        buffer[(x, y)] = picture[(x, y)].clone();
                    }
                }
            })?;
            *last = picture;
        }
        let title = ui::window_title(&self.state);
        if title != self.title {
            term::title(&title);
            self.title = title;
        }
        Ok(())
    }

    fn settings_changed(&mut self, change: Change) {
        if let Some(keys) = change.keys {
            self.take(Message::Keys(Box::new(keys)));
        }
        if change.themes {
            self.take(Message::Themes(self.settings.names(), self.settings.theme.name.clone()));
        }
        for why in change.wrong {
            self.take(Message::Say(Tone::Bad, continuum_model::untrusted::shown(&why)));
        }
    }

    /// Carries out what is to be done outside; what comes of it is a message.
    fn carry(&mut self, effect: Effect) {
        match effect {
            Effect::Quit => self.leaving = true,
            Effect::Arm => self.arm = true,
            Effect::Nudge => self.nudge.notify_one(),
            Effect::Copy(text) => {
                term::copy(&text);
                self.take(Message::Say(Tone::Note, format!("sent to the terminal's clipboard: {text}")));
            }
            Effect::Export(stem, ending, content) => {
                let said = match export(&stem, ending, &content) {
                    Ok(path) => Message::Say(Tone::Good, format!("written to {path}")),
                    Err(error) => {
                        Message::Say(Tone::Bad, format!("{stem}.{ending} was not written: {error}"))
                    }
                };
                self.take(said);
            }
            Effect::Theme(name) => match self.settings.choose(&name, self.state.ascii) {
                Ok(()) => self.take(Message::Themes(self.settings.names(), name)),
                Err(why) => self.take(Message::Say(Tone::Bad, continuum_model::untrusted::shown(&why))),
            },
            Effect::Ascii(ascii) => self.settings.theme.ascii = ascii,
            Effect::Timeline(tag, request) => {
                self.call(tag, Answer::Timeline, |link, _| async move { link.timeline(request).await });
            }
            Effect::Preview(tag, request) => {
                self.call(tag, Answer::Preview, |link, _| async move { link.preview(request).await });
            }
            Effect::Readiness(tag, request) => {
                self.call(tag, Answer::Readiness, |link, _| async move { link.readiness(*request).await });
            }
            Effect::Access(tag) => {
                self.call(tag, Answer::Access, |link, _| async move { link.access().await });
            }
            Effect::Audit(tag, request) => {
                self.call(tag, Answer::Audit, |link, _| async move { link.audit(request).await });
            }
            Effect::CanI(tag, request) => {
                self.call(tag, Answer::CanI, |link, _| async move { link.can_i(request).await });
            }
            Effect::Token(tag, request) => {
                self.call(tag, Answer::Token, |link, _| async move { link.create_token(request).await });
            }
            Effect::Revoke(tag, request) => {
                self.call(tag, Answer::Revoked, |link, _| async move { link.revoke(request).await });
            }
            Effect::Order(tag, mut request) => {
                request.key = uuid::Uuid::now_v7().to_string();
                self.call(tag, Answer::Order, |link, open| async move {
                    link::order_until_answered(link, &open, *request).await
                });
            }
        }
    }

    fn call<T, F>(
        &self,
        tag: u64,
        answer: fn(Result<T, Fault>) -> Answer,
        asking: impl FnOnce(Link, Opener) -> F + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send,
    {
        let (link, open, messages) = (self.link.clone(), self.open.clone(), self.messages.clone());
        tokio::spawn(async move {
            let result = match link {
                Some(link) => asking(link, open).await,
                None => Err(Fault::new(FaultClass::NotConnected, "vault.none", "no vault was reached yet")
                    .remedy("wait until it is; ctrl+r tries at once")),
            };
            // The console may be gone; then nobody asks any more.
            let _ = messages.send(Message::Answer(tag, Box::new(answer(result)))).await;
        });
    }
}

/// A new file for its owner only; never over another one.
fn export(stem: &str, ending: &str, content: &str) -> io::Result<String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = std::env::current_dir()?.join(format!("{stem}.{ending}"));
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(content.as_bytes())?;
    Ok(path.display().to_string())
}

/// A test of what is left after a panic needs one.
#[cfg(debug_assertions)]
fn panic_on_request(key: crossterm::event::KeyEvent) {
    let asked =
        key.code == crossterm::event::KeyCode::F(12) && std::env::var_os("CONTINUUM_TEST_PANIC").is_some();
    assert!(!asked, "a panic, as the test asked for");
}

/// Runs a lab beside the console, unless one runs in its directory already. `ready`: its vault can be dialled.
async fn keep_lab(
    options: LabOptions,
    messages: mpsc::Sender<Message>,
    ready: CancellationToken,
    stop: CancellationToken,
) {
    let (stages, mut told) = mpsc::channel::<Stage>(16);
    let (passing, vault_up) = (messages.clone(), ready.clone());
    tokio::spawn(async move {
        while let Some(stage) = told.recv().await {
            if stage.done > 0 {
                vault_up.cancel();
            }
            let _ = passing.send(Message::Start(Start::Progress(stage.text))).await;
        }
    });
    match lab::run(options, stages, stop).await {
        Ok(()) => {}
        Err(fault) if fault.code == "lab.running" => ready.cancel(),
        Err(fault) => {
            let _ = messages.send(Message::Start(Start::Failed(Box::new(fault)))).await;
        }
    }
}
