//! One line of text under edit: letters, a cursor, and a length that is bounded.

use super::super::cmd::keys::{Chord, Code};
use continuum_model::untrusted::is_dangerous;
use unicode_segmentation::UnicodeSegmentation;

/// The longest line that can be typed, in characters.
const CHARS_MAX: usize = 512;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Line {
    text: String,
    /// Where the cursor is, in bytes; always between two letters.
    at: usize,
}

/// What a key did to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// Text or cursor changed.
    Done,
    /// The key means nothing to a line.
    NotMine,
}

impl Line {
    /// A line with this text, and the cursor behind it.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), at: text.len() }
    }
    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }
    /// The text before and after the cursor.
    pub fn around(&self) -> (&str, &str) {
        self.text.split_at_checked(self.at).unwrap_or((&self.text, ""))
    }
    /// Replaces the text.
    pub fn set(&mut self, text: &str) {
        *self = Self::new(text);
    }

    /// Takes pasted text: what would drive a terminal or end the line becomes a space.
    pub fn paste(&mut self, text: &str) {
        for c in text.trim_matches(['\r', '\n']).chars() {
            self.insert(if is_dangerous(c) { ' ' } else { c });
        }
    }

    fn insert(&mut self, c: char) {
        if self.text.chars().count() < CHARS_MAX {
            self.text.insert(self.at, c);
            self.at += c.len_utf8();
        }
    }

    /// Takes a key.
    pub fn key(&mut self, chord: Chord) -> Edit {
        match chord {
            Chord { code: Code::Char('u'), ctrl: true, alt: false } => {
                self.text.replace_range(..self.at, "");
                self.at = 0;
            }
            Chord { code: Code::Char('w'), ctrl: true, alt: false } => {
                let start = self.around().0.trim_end().rfind(' ').map_or(0, |at| at + 1);
                self.text.replace_range(start..self.at, "");
                self.at = start;
            }
            Chord { code: Code::Char('a'), ctrl: true, alt: false } | Chord { code: Code::Home, .. } => {
                self.at = 0
            }
            Chord { code: Code::Char('e'), ctrl: true, alt: false } | Chord { code: Code::End, .. } => {
                self.at = self.text.len();
            }
            Chord { code: Code::Backspace, .. } => {
                let start = self.before();
                self.text.replace_range(start..self.at, "");
                self.at = start;
            }
            Chord { code: Code::Delete, .. } => {
                let end = self.after();
                self.text.replace_range(self.at..end, "");
            }
            Chord { code: Code::Left, .. } => self.at = self.before(),
            Chord { code: Code::Right, .. } => self.at = self.after(),
            chord => match chord.typed().filter(|c| !is_dangerous(*c)) {
                Some(c) => self.insert(c),
                None => return Edit::NotMine,
            },
        }
        Edit::Done
    }

    fn before(&self) -> usize {
        self.around().0.grapheme_indices(true).next_back().map_or(0, |(at, _)| at)
    }
    fn after(&self) -> usize {
        let (_, rest) = self.around();
        self.at + rest.graphemes(true).next().map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn letters_are_edited_as_letters() {
        let mut line = Line::new("ae\u{301}北");
        line.key(Chord::plain(Code::Left));
        line.key(Chord::plain(Code::Backspace));
        assert_eq!(line.around(), ("a", "北"));
        line.paste("x\u{1b}[31m\ny\n");
        assert_eq!(line.text(), "ax [31m y北");
        line.key(Chord::ctrl('u'));
        assert_eq!(line.text(), "北");
    }

    proptest! {
        #[test]
        fn no_key_ever_leaves_the_cursor_inside_a_letter(text in "\\PC{0,12}", keys in prop::collection::vec(0_u8..9, 0..40)) {
            let mut line = Line::new(&text);
            for key in keys {
                line.key(match key {
                    0 => Chord::plain(Code::Left), 1 => Chord::plain(Code::Right), 2 => Chord::plain(Code::Backspace),
                    3 => Chord::plain(Code::Delete), 4 => Chord::plain(Code::Home), 5 => Chord::plain(Code::End),
                    6 => Chord::ctrl('w'), 7 => Chord::char('é'), _ => Chord::char('\u{301}'),
                });
                prop_assert!(line.text.is_char_boundary(line.at));
            }
        }
    }
}
