//! Times, sizes and rates as people write them: `15 min`, `24 h`, `10 GiB`, `2 MB/s`.
//!
//! What is written here is exact: reading it gives the same number. Sizes are in powers of 1024 under either name, as
//! everywhere in the verbs; rates are in powers of 1000, as networks are sold, unless they say `KiB/s`.

const SPANS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
const SIZES: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
const RATES: [(u64, &str); 6] = [
    (1 << 30, "GiB/s"),
    (1_000_000_000, "GB/s"),
    (1 << 20, "MiB/s"),
    (1_000_000, "MB/s"),
    (1 << 10, "KiB/s"),
    (1000, "kB/s"),
];

/// Seconds in words.
pub fn span(seconds: u64) -> String {
    let fits = |unit: u64| seconds.is_multiple_of(unit) && seconds > 0;
    match SPANS.iter().find(|(unit, _)| fits(*unit) && (*unit < 86_400 || seconds > 2 * 86_400)) {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} s"),
    }
}

/// Bytes in words.
pub fn size(bytes: u64) -> String {
    exact(bytes, &SIZES).unwrap_or_else(|| format!("{bytes} B"))
}

/// Bytes a second in words.
pub fn rate(bytes: u64) -> String {
    // Whichever family gives the shorter number.
    let best = RATES.iter().filter(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    match best.min_by_key(|(unit, _)| bytes / unit) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} B/s"),
    }
}

fn exact(number: u64, units: &[(u64, &str)]) -> Option<String> {
    let (unit, name) = units.iter().find(|(unit, _)| number > 0 && number.is_multiple_of(*unit))?;
    Some(format!("{} {name}", number / unit))
}

/// The seconds that a text says: `90`, `90 s`, `1 h 30 min`.
///
/// Errors: what to write, in words.
pub fn to_span(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "write a time, such as 30 s, 15 min, 24 h or 7 d";
    let unit = |name: &str| match name {
        "" | "s" | "sec" | "second" | "seconds" => Some(1),
        "m" | "min" | "minute" | "minutes" => Some(60),
        "h" | "hour" | "hours" => Some(3600),
        "d" | "day" | "days" => Some(86_400),
        "w" | "week" | "weeks" => Some(7 * 86_400),
        _ => None,
    };
    sum(text, unit).ok_or(WRONG)
}

/// The bytes that a text says: `512 MiB`, `10G`.
pub fn to_size(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "write a size, such as 512 MiB or 10 GiB";
    let unit = |name: &str| match name.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kb" | "kib" => Some(1 << 10),
        "m" | "mb" | "mib" => Some(1 << 20),
        "g" | "gb" | "gib" => Some(1 << 30),
        "t" | "tb" | "tib" => Some(1 << 40),
        _ => None,
    };
    sum(text, unit).ok_or(WRONG)
}

/// The bytes a second that a text says: `2 MB/s`, `512 KiB/s`, `100 Mbit/s`.
pub fn to_rate(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "write a rate, such as 2 MB/s, 512 KiB/s or 100 Mbit/s";
    let text = text.trim();
    let bare = text.strip_suffix("/s").unwrap_or(text).trim_end();
    if let Some(bits) = bare.to_ascii_lowercase().strip_suffix("bit") {
        let unit = |name: &str| match name {
            "" => Some(1),
            "k" => Some(1000),
            "m" => Some(1_000_000),
            "g" => Some(1_000_000_000),
            _ => None,
        };
        return sum(bits, unit).map(|bits| bits / 8).ok_or(WRONG);
    }
    let unit = |name: &str| match name.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kb" => Some(1000),
        "m" | "mb" => Some(1_000_000),
        "g" | "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    };
    sum(bare, unit).ok_or(WRONG)
}

/// Numbers with their units, added up.
fn sum(text: &str, unit: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().ok()?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        total = total.checked_add(number.checked_mul(unit(&rest[..letters])?)?)?;
        rest = rest[letters..].trim_start();
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_units() {
        for (text, seconds) in
            [("15 min", 900), ("24h", 86_400), ("1 h 30 min", 5400), ("90", 90), ("2 w", 1_209_600)]
        {
            assert_eq!(to_span(text), Ok(seconds), "{text}");
        }
        for (text, bytes) in [("10 GiB", 10 << 30), ("512M", 512 << 20), ("7", 7)] {
            assert_eq!(to_size(text), Ok(bytes), "{text}");
        }
        for (text, bytes) in [("2 MB/s", 2_000_000), ("512 KiB/s", 512 << 10), ("100 Mbit/s", 12_500_000)] {
            assert_eq!(to_rate(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "h", "-1 h", "1.5 h", "1 x", "99999999999999999999 s", "9999999999999999 w"] {
            assert!(to_span(wrong).is_err(), "{wrong}");
        }
        assert_eq!((span(86_400), span(7 * 86_400), span(0)), ("24 h".into(), "7 d".into(), "0 s".into()));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(number in prop_oneof![0_u64..100_000, any::<u64>().prop_map(|n| n >> 8)]) {
            prop_assert_eq!(to_span(&span(number)), Ok(number));
            prop_assert_eq!(to_size(&size(number)), Ok(number));
            prop_assert_eq!(to_rate(&rate(number)), Ok(number));
        }
    }
}
