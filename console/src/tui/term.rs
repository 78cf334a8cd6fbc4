//! Taking the terminal over and giving it back: at the end, after a panic, on every signal.
//!
//! Traps that are avoided here: the terminal is never asked where its cursor is; a hang-up is noticed by a
//! thread of its own, which restores once and ends the process, because reading a terminal that is gone may
//! never return; paste arrives as paste.

use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste};
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use crossterm::{cursor, execute};
use ratatui::backend::CrosstermBackend;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use std::io::{self, Stdout, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// End.
    Leave,
    /// We were stopped and go on.
    Resumed,
}

/// The terminal, ours until dropped.
pub struct Terminal {
    inner: ratatui::Terminal<CrosstermBackend<Stdout>>,
    signals: Option<mpsc::Receiver<Signal>>,
}

impl Terminal {
    /// Takes it over.
    pub fn take() -> io::Result<Self> {
        // NO_COLOR is decided in the theme; crossterm's own way of it would end bold and reverse, too.
        crossterm::style::force_color_output(true);
        let before = std::panic::take_hook();
        let main = std::thread::current().id();
        std::panic::set_hook(Box::new(move |panic| {
            // A task that dies is caught by its runtime; only our own end gives the terminal back.
            if std::thread::current().id() == main {
                restore();
            }
            before(panic);
        }));
        let (told, signals) = mpsc::channel(8);
        let mut caught = Signals::new([SIGHUP, SIGINT, SIGTERM, SIGQUIT, SIGTSTP, SIGCONT])?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in &mut caught {
                match signal {
                    SIGTSTP => {
                        restore();
                        let _ = signal_hook::low_level::emulate_default_handler(SIGTSTP);
                    }
                    SIGCONT => {
                        let _ = told.blocking_send(Signal::Resumed);
                    }
                    SIGHUP => {
                        restore();
                        // Nobody is there any more; jobs live in the vault.
                        std::process::exit(129);
                    }
                    _ => {
                        if told.try_send(Signal::Leave).is_err() {
                            restore();
                            std::process::exit(1);
                        }
                    }
                }
            }
        })?;
        enter()?;
        let inner = ratatui::Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(Self { inner, signals: Some(signals) })
    }

    /// Signals, for the one who asks first.
    pub fn signals(&mut self) -> mpsc::Receiver<Signal> {
        self.signals.take().unwrap_or_else(|| mpsc::channel(1).1)
    }

    /// Draws.
    pub fn draw(&mut self, picture: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
        self.inner.draw(picture).map(drop)
    }

    /// Takes it over again after we were stopped, and paints everything.
    pub fn retake(&mut self) -> io::Result<()> {
        enter()?;
        // Everything anew, without asking the terminal anything.
        let area = self.inner.get_frame().area();
        self.inner.resize(area)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste, cursor::Hide)
}

/// Gives it back, once.
pub fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // The terminal may be gone: then there is nothing to give back.
        let _ = execute!(io::stdout(), DisableBracketedPaste, LeaveAlternateScreen, cursor::Show);
        let _ = disable_raw_mode();
    }
}

/// Names the terminal's window. The text is harmless already.
pub fn title(text: &str) {
    let _ = execute!(io::stdout(), crossterm::terminal::SetTitle(text));
}

/// Sends a text to the terminal's clipboard (OSC 52), through tmux where we are in one.
pub fn copy(text: &str) {
    use std::fmt::Write as _;
    const MAX: usize = 50_000;
    let text: String = text.chars().take(MAX).collect();
    let mut encoded = String::new();
    for chunk in text.as_bytes().chunks(3) {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * at) & 63) as usize];
            encoded.push(if at <= chunk.len() { digit.into() } else { '=' });
        }
    }
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = if std::env::var_os("TMUX").is_some() {
        write!(out, "\x1bPtmux;\x1b\x1b]52;c;{encoded}\x07\x1b\\")
    } else {
        write!(out, "\x1b]52;c;{encoded}\x07")
    };
    let _ = io::stdout().write_all(out.as_bytes()).and_then(|()| io::stdout().flush());
}
