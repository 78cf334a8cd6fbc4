//! Durations, sizes and ages as a person reads them. Never for programs: they get plain numbers.

use continuum_model::time::Timestamp;
use continuum_model::units::Bytes;

/// `0.4 s`, `48 s`, `12 min`, `3.2 h`, `5.1 d`; `-` where it is not known.
pub fn seconds(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return "-".into() };
    match value.abs() {
        size if size < 9.95 => format!("{value:.1} s"),
        size if size < 119.5 => format!("{value:.0} s"),
        size if size < 7_170.0 => format!("{:.0} min", value / 60.0),
        size if size < 172_800.0 => format!("{:.1} h", value / 3600.0),
        _ => format!("{:.1} d", value / 86_400.0),
    }
}

/// `64.0 MiB`; `-` where it is not known.
pub fn bytes(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |value| Bytes(value).to_string())
}

/// `1.5 MiB/s`; `-` where it is not known.
pub fn rate(value: Option<u64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{}/s", Bytes(value)))
}

/// How long ago; `-` where it is not known.
pub fn age(moment: Option<i64>, now: Timestamp) -> String {
    let Some(micros) = moment.filter(|micros| *micros != 0) else { return "-".into() };
    seconds(Some(now.micros().saturating_sub(micros) as f64 / 1e6))
}

/// The moment itself, to the second.
pub fn moment(micros: Option<i64>) -> String {
    micros
        .filter(|micros| *micros != 0)
        .and_then(chrono::DateTime::from_timestamp_micros)
        .map_or_else(|| "-".into(), |at| at.format("%Y-%m-%d %H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_in_words() {
        for (value, text) in [
            (0.04, "0.0 s"),
            (0.44, "0.4 s"),
            (9.96, "10 s"),
            (119.0, "119 s"),
            (120.0, "2 min"),
            (7_169.0, "119 min"),
            (7_200.0, "2.0 h"),
            (172_800.0, "2.0 d"),
            (-3.0, "-3.0 s"),
        ] {
            assert_eq!(seconds(Some(value)), text);
        }
        assert_eq!((seconds(None), seconds(Some(f64::NAN))), ("-".into(), "-".into()));
        assert_eq!(age(Some(0), Timestamp::from_micros(5)), "-");
        assert_eq!(age(Some(1_000_000), Timestamp::from_micros(61_000_000)), "60 s");
    }
}
