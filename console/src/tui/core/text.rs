//! Numbers, moments and names as an operator reads them, and how they are cut to their column.
//!
//! What is not known is shown as a dash, never as zero. All moments are UTC.

use continuum_model::units::Bytes;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// What stands where nothing is known.
pub const UNKNOWN: &str = "-";
/// More marks than this on one letter are cut off: ten thousand of them would be one cell of a megabyte.
const MARKS_PER_LETTER_MAX: usize = 4;

/// How many cells a text takes.
pub fn width(text: &str) -> usize {
    text.graphemes(true).map(letter_width).sum()
}

fn letter_width(letter: &str) -> usize {
    UnicodeWidthStr::width(letter).min(2)
}

/// The letters of a text, each with its width, none of unbounded length.
pub fn letters(text: &str) -> impl Iterator<Item = (&str, usize)> {
    text.graphemes(true).map(|letter| {
        let end = letter.char_indices().nth(MARKS_PER_LETTER_MAX).map_or(letter.len(), |(at, _)| at);
        let cut = letter.get(..end).unwrap_or(letter);
        (cut, letter_width(cut))
    })
}

/// Cuts a text to `cells`; `ellipsis` tells that something is missing.
pub fn fit(text: &str, cells: usize, ellipsis: char) -> String {
    if width(text) <= cells {
        return letters(text).map(|(letter, _)| letter).collect();
    }
    let mut out = String::new();
    let mut used = 0;
    for (letter, wide) in letters(text) {
        if used + wide + 1 > cells {
            break;
        }
        out.push_str(letter);
        used += wide;
    }
    if cells > 0 {
        out.push(ellipsis);
    }
    out
}

/// Breaks a text into lines of at most `cells`, between words where possible.
pub fn wrap(text: &str, cells: usize) -> Vec<String> {
    let cells = cells.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let wide = width(word);
        if used > 0 && used + 1 + wide > cells {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        for (letter, wide) in letters(word) {
            if used + wide > cells {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push_str(letter);
            used += wide;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// A span in words: `0.4 s`, `12 s`, `3 m 20 s`, `2 h 05 m`, `3 d 4 h`.
pub fn span(seconds: f64) -> String {
    if !seconds.is_finite() {
        return UNKNOWN.into();
    }
    let seconds = seconds.max(0.0);
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} m {:02} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {:02} m", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A span in one column: `0.4s`, `12s`, `3m20s`, `2h05m`, `3d04h`.
pub fn short_span(seconds: f64) -> String {
    if !seconds.is_finite() {
        return UNKNOWN.into();
    }
    let seconds = seconds.max(0.0);
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// [`short_span`], where it is known.
pub fn short_span_of(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| UNKNOWN.into(), short_span)
}

/// An age that changes seldom: seconds below a minute, then minutes, hours, days.
pub fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} m", whole / 60),
        3600..86_400 => format!("{} h", whole / 3600),
        _ => format!("{} d", whole / 86_400),
    }
}

/// A size: `512 B`, `12.3 MiB`.
pub fn bytes(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// A size in one column: `512B`, `12M`, `1.5G`.
pub fn short_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "K", "M", "G", "T", "P"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit_name = UNITS.get(unit).copied().unwrap_or("");
    if unit > 0 && value < 9.95 { format!("{value:.1}{unit_name}") } else { format!("{value:.0}{unit_name}") }
}

/// [`short_bytes`], where it is known.
pub fn short_bytes_of(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| UNKNOWN.into(), short_bytes)
}

/// Bytes in a second.
pub fn rate(bytes_per_sec: u64) -> String {
    format!("{}/s", short_bytes(bytes_per_sec))
}

/// [`rate`], where it is known.
pub fn rate_of(bytes_per_sec: Option<u64>) -> String {
    bytes_per_sec.map_or_else(|| UNKNOWN.into(), rate)
}

/// `03:12` of a moment.
pub fn hour_minute(micros: i64) -> String {
    formatted(micros, "%H:%M")
}

/// `03:12:45` of a moment.
pub fn clock(micros: i64) -> String {
    formatted(micros, "%H:%M:%S")
}

/// `2026-11-23 03:12:45` of a moment.
pub fn moment(micros: i64) -> String {
    formatted(micros, "%Y-%m-%d %H:%M:%S")
}

/// `2026-11-23 03:12:45.123456` of a moment.
pub fn exact(micros: i64) -> String {
    formatted(micros, "%Y-%m-%d %H:%M:%S%.6f")
}

/// `11-23 03:12:45`, or only the time where it is the same day as `now`.
pub fn near(micros: i64, now: i64) -> String {
    let day = |micros: i64| micros.div_euclid(86_400_000_000);
    if day(micros) == day(now) { clock(micros) } else { formatted(micros, "%m-%d %H:%M:%S") }
}

fn formatted(micros: i64, pattern: &str) -> String {
    match chrono::DateTime::from_timestamp_micros(micros) {
        Some(at) => at.format(pattern).to_string(),
        None => UNKNOWN.into(),
    }
}

/// `1 machine`, `4 machines`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The last eight digits of an id: enough for a person to tell two apart on a screen.
pub fn short_id(id: &str) -> String {
    let digits: Vec<char> = id.chars().filter(|c| *c != '-').collect();
    digits[digits.len().saturating_sub(8)..].iter().collect()
}

/// A word for the shell: quoted where it holds anything but plain characters.
pub fn quoted(word: &str) -> String {
    let plain = !word.is_empty()
        && !word.starts_with('-')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@/".contains(c));
    if plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_keep_their_width_in_a_column() {
        for (seconds, words, short) in [
            (0.0, "0.0 s", "0.0s"),
            (0.42, "0.4 s", "0.4s"),
            (9.97, "10 s", "10s"),
            (59.4, "59 s", "59s"),
            (59.6, "1 m 00 s", "1m00s"),
            (200.0, "3 m 20 s", "3m20s"),
            (7500.0, "2 h 05 m", "2h05m"),
            (270_000.0, "3 d 3 h", "3d03h"),
            (-3.0, "0.0 s", "0.0s"),
            (f64::NAN, "-", "-"),
            (f64::INFINITY, "-", "-"),
        ] {
            assert_eq!((span(seconds).as_str(), short_span(seconds).as_str()), (words, short), "{seconds}");
        }
        assert_eq!(short_bytes(0), "0B");
        assert_eq!(short_bytes(1023), "1.0K");
        assert_eq!(short_bytes(5 << 20), "5.0M");
        assert_eq!(short_bytes(u64::MAX), "16384P");
    }

    #[test]
    fn text_is_cut_by_cells_and_never_grows() {
        assert_eq!(fit("web-01", 6, '…'), "web-01");
        assert_eq!(fit("web-01", 5, '…'), "web-…");
        assert_eq!(fit("北京机房", 5, '…'), "北京…");
        assert_eq!(fit("北京机房", 4, '…'), "北…");
        assert_eq!(fit("abc", 0, '…'), "");
        let zalgo = format!("a{}b", "\u{301}".repeat(10_000));
        let cut = fit(&zalgo, 10, '…');
        assert!(cut.len() < 32 && width(&cut) == 2, "{}", cut.len());
        for cells in 0..12 {
            for text in ["hello world", "北京 机房 dc", "e\u{301}e\u{301}e\u{301}e\u{301}e\u{301}"] {
                assert!(width(&fit(text, cells, '~')) <= cells, "{text} {cells}");
                assert!(wrap(text, cells.max(2)).iter().all(|line| width(line) <= cells.max(2)));
            }
        }
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("", 7), [""]);
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
    }

    #[test]
    fn what_a_shell_reads_is_one_word() {
        assert_eq!(quoted("web-01"), "web-01");
        assert_eq!(quoted("a b'; rm -rf /"), "'a b'\\''; rm -rf /'");
        assert_eq!(quoted("-rf"), "'-rf'");
        assert_eq!(quoted(""), "''");
    }
}
