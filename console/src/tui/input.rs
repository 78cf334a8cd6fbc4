//! Keys as they arrive: crossterm's events to chords, and escape sequences that a slow line tore apart.
//!
//! A read may end behind ESC; the rest of an arrow key then arrives as letters, and letters are commands. So
//! an Esc is held back for a moment: what follows at once is joined to it again, or thrown away.

use super::cmd::keys::{Chord, Code};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::time::Duration;

/// How long an Esc is held back.
pub fn window(over_ssh: bool) -> Duration {
    Duration::from_millis(if over_ssh { 100 } else { 25 })
}

/// A key event as a chord; `None` for what means nothing here.
pub fn chord(key: KeyEvent) -> Option<Chord> {
    let code = match key.code {
        KeyCode::Char(c) => Code::Char(c),
        KeyCode::Enter => Code::Enter,
        KeyCode::Esc => Code::Esc,
        KeyCode::Tab => Code::Tab,
        KeyCode::BackTab => Code::BackTab,
        KeyCode::Backspace => Code::Backspace,
        KeyCode::Delete => Code::Delete,
        KeyCode::Insert => Code::Insert,
        KeyCode::Up => Code::Up,
        KeyCode::Down => Code::Down,
        KeyCode::Left => Code::Left,
        KeyCode::Right => Code::Right,
        KeyCode::PageUp => Code::PageUp,
        KeyCode::PageDown => Code::PageDown,
        KeyCode::Home => Code::Home,
        KeyCode::End => Code::End,
        KeyCode::F(n) => Code::F(n),
        _ => return None,
    };
    let held = |modifier| key.modifiers.contains(modifier);
    Some(Chord { code, ctrl: held(KeyModifiers::CONTROL), alt: held(KeyModifiers::ALT) })
}

/// Joins what was torn.
#[derive(Debug, Default)]
pub struct Joiner {
    /// What came behind an Esc that is held back.
    held: Option<String>,
}

impl Joiner {
    /// Whether something is held back: then [`Joiner::timeout`] is due after [`window`].
    pub const fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// Takes a chord; returns what is certain now.
    pub fn take(&mut self, chord: Chord) -> Vec<Chord> {
        let esc = Chord::plain(Code::Esc);
        let Some(held) = &mut self.held else {
            if chord == esc {
                self.held = Some(String::new());
                return Vec::new();
            }
            return vec![chord];
        };
        let Some(letter) = chord.typed() else {
            // Another key: the Esc was one.
            let first = if held.is_empty() { Some(esc) } else { None };
            self.held = None;
            let mut out: Vec<Chord> = first.into_iter().collect();
            out.extend(self.take(chord));
            return out;
        };
        match (held.is_empty(), letter) {
            (true, '[' | 'O') => {
                held.push(letter);
                Vec::new()
            }
            (true, _) => {
                self.held = None;
                vec![esc, chord]
            }
            (false, '0'..='9' | ';') if held.len() < 12 => {
                held.push(letter);
                Vec::new()
            }
            (false, _) => {
                let parameters = held.get(1..).unwrap_or_default();
                let code = match (letter, parameters.split(';').next().unwrap_or_default()) {
                    ('A', _) => Some(Code::Up),
                    ('B', _) => Some(Code::Down),
                    ('C', _) => Some(Code::Right),
                    ('D', _) => Some(Code::Left),
                    ('H', _) | ('~', "1" | "7") => Some(Code::Home),
                    ('F', _) | ('~', "4" | "8") => Some(Code::End),
                    ('Z', _) => Some(Code::BackTab),
                    ('~', "2") => Some(Code::Insert),
                    ('~', "3") => Some(Code::Delete),
                    ('~', "5") => Some(Code::PageUp),
                    ('~', "6") => Some(Code::PageDown),
                    // Some other sequence: none of its letters is a command.
                    _ => None,
                };
                self.held = None;
                code.map(Chord::plain).into_iter().collect()
            }
        }
    }

    /// Nothing followed in time: a lone Esc was pressed. What was held of a sequence is thrown away.
    pub fn timeout(&mut self) -> Option<Chord> {
        self.held.take().filter(String::is_empty).map(|_| Chord::plain(Code::Esc))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(joiner: &mut Joiner, text: &str) -> Vec<Chord> {
        text.chars()
            .flat_map(|c| joiner.take(if c == '\u{1b}' { Chord::plain(Code::Esc) } else { Chord::char(c) }))
            .collect()
    }

    #[test]
    fn a_torn_arrow_is_an_arrow_and_its_letters_are_no_commands() {
        let mut joiner = Joiner::default();
        assert_eq!(typed(&mut joiner, "\u{1b}[B"), [Chord::plain(Code::Down)]);
        assert_eq!(typed(&mut joiner, "\u{1b}OA"), [Chord::plain(Code::Up)]);
        assert_eq!(typed(&mut joiner, "\u{1b}[5~"), [Chord::plain(Code::PageUp)]);
        assert_eq!(typed(&mut joiner, "\u{1b}[1;5C"), [Chord::plain(Code::Right)]);
        assert_eq!(typed(&mut joiner, "\u{1b}[99x"), [], "an unknown sequence means nothing");
        assert_eq!(typed(&mut joiner, "j"), [Chord::char('j')]);
    }

    #[test]
    fn a_lone_escape_is_one() {
        let mut joiner = Joiner::default();
        assert_eq!(typed(&mut joiner, "\u{1b}"), []);
        assert_eq!(joiner.timeout(), Some(Chord::plain(Code::Esc)));
        assert_eq!(joiner.timeout(), None);
        assert_eq!(typed(&mut joiner, "\u{1b}q"), [Chord::plain(Code::Esc), Chord::char('q')]);
        assert_eq!(typed(&mut joiner, "\u{1b}\u{1b}"), [Chord::plain(Code::Esc)]);
        assert!(joiner.is_holding());
        typed(&mut joiner, "[");
        assert_eq!(joiner.timeout(), None, "a sequence that never ended is no Esc");
    }
}
