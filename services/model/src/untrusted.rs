//! Text from outside: machine names, guest output, peers' errors, file names, certificate subjects.
//!
//! The raw text can be compared and stored; it can be *shown* only through the escaper, because
//! `Display` and `Debug` are the escaper. What comes out holds no control character, no bidirectional
//! override and no invisible character, so that it can drive no terminal and forge no log line.

use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};

/// Text from outside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Untrusted(String);

impl Untrusted {
    /// Takes any text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
    /// Takes bytes that claim to be text; what is not UTF-8 becomes U+FFFD.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(String::from_utf8_lossy(bytes).into_owned())
    }
    /// The raw text: to compare, to store, to send on. Never to print.
    pub fn raw(&self) -> &str {
        &self.0
    }
    /// The text made harmless.
    pub fn shown(&self) -> String {
        self.to_string()
    }
    /// Whether showing it changes it.
    pub fn is_plain(&self) -> bool {
        !self.0.chars().any(is_dangerous)
    }
}

impl From<&str> for Untrusted {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}
impl From<String> for Untrusted {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            write_escaped(f, c)?;
        }
        Ok(())
    }
}
impl fmt::Debug for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Makes any text harmless. For text that never becomes an [`Untrusted`], such as a foreign error.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = write_escaped(&mut out, c);
    }
    out
}

fn write_escaped(out: &mut impl Write, c: char) -> fmt::Result {
    match c {
        // Control pictures: ␀ … ␟ and ␡, one cell each, so that columns stay where they are.
        '\0'..='\x1f' => out.write_char(char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}')),
        '\x7f' => out.write_char('␡'),
        c if is_dangerous(c) => write!(out, "\\u{{{:x}}}", c as u32),
        c => out.write_char(c),
    }
}

/// Control, bidirectional, invisible, or a format character that changes what its neighbours look like.
pub fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_dangerous_is_ever_shown() {
        let hostile = "web\x1b]52;c;ZXZpbA==\x07\u{9b}31m\r\n\u{202e}gpj\u{200b}\0\x7f\u{2028}";
        let shown = Untrusted::new(hostile).to_string();
        assert!(!shown.chars().any(is_dangerous), "{shown}");
        assert_eq!(shown, "web␛]52;c;ZXZpbA==␇\\u{9b}31m␍␊\\u{202e}gpj\\u{200b}␀␡\\u{2028}");
        assert_eq!(format!("{:?}", Untrusted::new("a\nb")), "\"a␊b\"");
        for c in (0..=0x10ffff).filter_map(char::from_u32) {
            assert!(!super::shown(&c.to_string()).chars().any(is_dangerous), "{:x}", c as u32);
        }
    }

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["web-01", "Größe 北京", "naïve ✓", ""] {
            assert_eq!(Untrusted::new(text).to_string(), text);
            assert!(Untrusted::new(text).is_plain());
        }
    }
}
