//! Hours of the week: when something may happen, or how fast it may go.
//!
//! Lives here: the days, the times of day, what lies within. Lives elsewhere: which clock is asked, and in which time
//! zone (whoever carries it out: the local time of that server).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

impl Weekday {
    /// All of them, Monday first.
    pub const ALL: [Self; 7] = [Self::Mon, Self::Tue, Self::Wed, Self::Thu, Self::Fri, Self::Sat, Self::Sun];

    /// The one with this number, counted from Monday as 0; any number, counted on around the week.
    pub const fn from_monday(number: u32) -> Self {
        Self::ALL[(number % 7) as usize]
    }

    /// Its name: `mon` to `sun`.
    pub const fn name(self) -> &'static str {
        ["mon", "tue", "wed", "thu", "fri", "sat", "sun"][self as usize]
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|day| day.name() == name)
    }

    /// The day before it.
    pub const fn before(self) -> Self {
        Self::from_monday(self as u32 + 6)
    }
}

/// A time of day: minutes after midnight, 0 to 1440. Written `HH:MM`; `24:00` is the end of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TimeOfDay(u16);

impl TimeOfDay {
    /// Of so many minutes after midnight; `None` beyond the end of the day.
    pub const fn from_minutes(minutes: u32) -> Option<Self> {
        if minutes <= 1440 { Some(Self(minutes as u16)) } else { None }
    }

    /// Minutes after midnight.
    pub const fn minutes(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

impl FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no time of day: write HH:MM, from 00:00 to 24:00");
        let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
        let number = |part: &str| -> Result<u32, String> {
            let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse().map_err(|_| wrong()) } else { Err(wrong()) }
        };
        let (hours, minutes) = (number(hours)?, number(minutes)?);
        if minutes > 59 {
            return Err(wrong());
        }
        Self::from_minutes(hours * 60 + minutes).ok_or_else(wrong)
    }
}

impl TryFrom<String> for TimeOfDay {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TimeOfDay> for String {
    fn from(time: TimeOfDay) -> Self {
        time.to_string()
    }
}

/// A stretch of every day named: from a time of day up to another, which is on the next day where it is not later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hours {
    /// On which days it begins; none named: on all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Weekday>,
    /// When it begins.
    pub from: TimeOfDay,
    /// When it ends.
    pub to: TimeOfDay,
}

impl Hours {
    /// Whether a minute of a day lies within.
    pub fn contains(&self, day: Weekday, minute: u32) -> bool {
        let on = |day: Weekday| self.days.is_empty() || self.days.contains(&day);
        let (from, to) = (self.from.minutes(), self.to.minutes());
        if from < to {
            on(day) && (from..to).contains(&minute)
        } else {
            (on(day) && minute >= from) || (on(day.before()) && minute < to)
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.days.is_empty() {
            let days: Vec<_> = self.days.iter().map(|day| day.name()).collect();
            write!(out, "{} ", days.join(","))?;
        }
        write!(out, "{}–{}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(days: &[Weekday], from: &str, to: &str) -> Hours {
        Hours { days: days.to_vec(), from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    #[test]
    fn a_stretch_over_midnight_belongs_to_the_day_on_which_it_begins() {
        use Weekday::*;
        for (why, hours, day, minute, expected) in [
            ("within", hours(&[], "08:00", "18:00"), Mon, 8 * 60, true),
            ("its end is outside", hours(&[], "08:00", "18:00"), Mon, 18 * 60, false),
            ("another day", hours(&[Tue], "08:00", "18:00"), Mon, 9 * 60, false),
            ("the evening", hours(&[Fri], "18:30", "06:00"), Fri, 23 * 60, true),
            ("the morning after", hours(&[Fri], "18:30", "06:00"), Sat, 5 * 60, true),
            ("the morning before", hours(&[Fri], "18:30", "06:00"), Fri, 5 * 60, false),
            ("around the week", hours(&[Sun], "22:00", "06:00"), Mon, 60, true),
            ("all day", hours(&[Sat], "00:00", "24:00"), Sat, 1439, true),
            ("the same time twice is a whole day", hours(&[Sat], "12:00", "12:00"), Sun, 0, true),
        ] {
            assert_eq!(hours.contains(day, minute), expected, "{why}");
        }
    }

    #[test]
    fn times_of_day_are_read_strictly_and_written_as_they_were() {
        for good in ["00:00", "08:30", "24:00"] {
            assert_eq!(good.parse::<TimeOfDay>().unwrap().to_string(), good);
        }
        for wrong in ["8:00", "24:01", "12:60", "-1:00", "+1:00", "12", "12:00:00", "", "١٢:٠٠"] {
            assert!(wrong.parse::<TimeOfDay>().is_err(), "{wrong}");
        }
    }
}
