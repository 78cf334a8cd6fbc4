//! A picture as text, and its comparison with the stored one.

use continuum_console::tui::theme::{Depth, Library};
use continuum_console::tui::{core::state::State, ui};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use std::fmt::Write as _;
use std::path::PathBuf;

/// What is drawn of a state.
pub fn draw(state: &State, theme: &str, depth: Depth, ascii: bool) -> Buffer {
    let (columns, rows) = state.size;
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
    let (library, wrong) = Library::open(None);
    assert!(wrong.is_empty(), "{wrong:?}");
    let theme = library.theme(theme, depth, ascii).expect("a built-in theme");
    ui::draw(state, &theme, &mut buffer);
    buffer
}

/// The lines of a picture, without styles.
pub fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    (0..area.height)
        .map(|y| {
            let mut line = String::new();
            let mut covered = 0;
            for x in 0..area.width {
                if covered > 0 {
                    covered -= 1;
                    continue;
                }
                let symbol = buffer[(x, y)].symbol();
                covered = unicode_width::UnicodeWidthStr::width(symbol).saturating_sub(1);
                line.push_str(symbol);
            }
            line.trim_end().to_owned()
        })
        .collect()
}

/// Text, and below it the styles: for every line its runs that are not plain.
pub fn written(buffer: &Buffer) -> String {
    let mut out = lines(buffer).join("\n");
    out.push_str("\n-- styles: line, columns, colours, attributes\n");
    let area = buffer.area;
    for y in 0..area.height {
        let mut x = 0;
        while x < area.width {
            let style = buffer[(x, y)].style();
            let from = x;
            while x < area.width && buffer[(x, y)].style() == style {
                x += 1;
            }
            let words = words(style);
            if !words.is_empty() {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "{y:02} {from}-{}{words}", x - 1);
            }
        }
    }
    out
}

fn words(style: Style) -> String {
    let mut words = String::new();
    let colour = |colour: Option<Color>| colour.filter(|colour| *colour != Color::Reset);
    if let Some(colour) = colour(style.fg) {
        let _ = write!(words, " {colour}");
    }
    if let Some(colour) = colour(style.bg) {
        let _ = write!(words, " on {colour}");
    }
    for (modifier, word) in [
        (Modifier::BOLD, "bold"),
        (Modifier::DIM, "dim"),
        (Modifier::REVERSED, "reverse"),
        (Modifier::UNDERLINED, "underline"),
        (Modifier::ITALIC, "italic"),
    ] {
        if style.add_modifier.contains(modifier) {
            let _ = write!(words, " {word}");
        }
    }
    words
}

/// Compares a picture with the stored one. `UPDATE_PICTURES=1` stores it.
#[track_caller]
pub fn is_as_stored(name: &str, buffer: &Buffer) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/screens/pictures");
    let path = folder.join(format!("{name}-{}x{}.txt", buffer.area.width, buffer.area.height));
    let now = written(buffer);
    if std::env::var_os("UPDATE_PICTURES").is_some() {
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(&path, now).expect("a picture");
        return;
    }
    let stored = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; UPDATE_PICTURES=1 makes it", path.display()));
    if stored != now {
        let differing: Vec<String> = stored
            .lines()
            .zip(now.lines())
            .filter(|(stored, now)| stored != now)
            .take(12)
            .map(|(stored, now)| format!("- {stored}\n+ {now}"))
            .collect();
        panic!(
            "{name} looks different; look at it, and UPDATE_PICTURES=1 when it is right:\n{}",
            differing.join("\n")
        );
    }
}
