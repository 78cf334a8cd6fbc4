//! The history of one machine as a stretch of time with a cursor in it.
//!
//! Lives here: which stretch is shown, where the cursor stands, what is to be asked of the vault and when.
//! Lives elsewhere: the drawing (`ui::timeline`), the asking (`net`).
//!
//! The cursor names any moment, also one between points: the feed is continuous. Invariant: what the loss
//! preview says belongs to the moment at the cursor; while another moment's answer is all there is, nothing
//! is shown.

use continuum_model::fault::Fault;
use continuum_model::time::Timestamp;
use continuum_proto::v1 as pb;

/// The cursor must rest this long before the vault is asked, in microseconds.
pub const PREVIEW_AFTER_US: i64 = 120_000;
/// The stretch is fetched again this long after news of the machine, in microseconds.
const FETCH_AFTER_US: i64 = 2_000_000;
const SECOND: i64 = 1_000_000;
/// Stretches that can be shown, in seconds.
const ZOOMS: [i64; 11] = [30, 120, 300, 900, 3600, 21_600, 86_400, 259_200, 604_800, 2_592_000, 7_776_000];

/// What one press of a key moves the cursor by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// To the neighbouring point.
    Point,
    /// A minute.
    Minute,
    /// A second.
    Second,
}

impl Step {
    /// The next one round.
    pub const fn next(self) -> Self {
        match self {
            Self::Point => Self::Minute,
            Self::Minute => Self::Second,
            Self::Second => Self::Point,
        }
    }
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Point => "point",
            Self::Minute => "minute",
            Self::Second => "second",
        }
    }
}

/// What is known of a moment.
#[derive(Debug, Clone, PartialEq)]
pub enum Preview {
    /// Nothing yet.
    None,
    /// What would be brought up and given up, for the moment that was asked for.
    Told(i64, Box<pb::PreviewReply>),
    /// Why nothing is known, for that moment.
    Failed(i64, Box<Fault>),
}

/// The stretch and the cursor.
#[derive(Debug, Clone)]
pub struct Timeline {
    /// Whose.
    pub machine: String,
    /// The last answer.
    pub reply: Option<pb::TimelineReply>,
    /// Why there is none.
    pub fault: Option<Fault>,
    /// The moment at the cursor.
    pub cursor_us: i64,
    /// The cursor stays on the newest moment, whatever comes.
    pub newest: bool,
    /// What it moves by.
    pub step: Step,
    /// What is known of the moment at the cursor.
    pub preview: Preview,
    /// The stretch that is shown.
    pub from_us: i64,
    /// Its end.
    pub to_us: i64,
    zoom: usize,
    chosen_zoom: bool,
    asked_preview: Option<u64>,
    asked_fetch: Option<u64>,
    preview_due: Option<i64>,
    fetch_due: Option<i64>,
}

impl Timeline {
    /// The timeline of a machine, at its newest moment.
    pub fn new(machine: &pb::Machine, now: i64) -> Self {
        let newest = machine.newest_point_us.unwrap_or(now);
        let mut timeline = Self {
            machine: machine.id.clone(),
            reply: None,
            fault: None,
            cursor_us: newest,
            newest: true,
            step: Step::Point,
            preview: Preview::None,
            from_us: newest,
            to_us: newest,
            zoom: 3,
            chosen_zoom: false,
            asked_preview: None,
            asked_fetch: None,
            preview_due: Some(now),
            fetch_due: Some(now),
        };
        timeline.fit_zoom(machine.history_seconds.unwrap_or(0.0) as i64);
        timeline.show_end(newest);
        timeline
    }

    fn fit_zoom(&mut self, history_seconds: i64) {
        if !self.chosen_zoom {
            // Never longer than a day of its own accord: detail is what the newest moments are wanted for.
            self.zoom = ZOOMS.iter().take(7).position(|zoom| *zoom >= history_seconds).unwrap_or(6);
        }
    }

    /// The stretch's length, in microseconds.
    pub fn length(&self) -> i64 {
        ZOOMS.get(self.zoom).copied().unwrap_or(3600) * SECOND
    }

    fn show_end(&mut self, end: i64) {
        // A little room behind the newest, so that its mark is not at the edge.
        self.to_us = end.saturating_add(self.length() / 50);
        self.from_us = self.to_us.saturating_sub(self.length());
    }

    /// The machine has news: newer moments, perhaps other points.
    pub fn machine_changed(&mut self, machine: &pb::Machine, now: i64) {
        if let Some(newest) = machine.newest_point_us
            && self.newest
            && newest != self.cursor_us
        {
            self.cursor_us = newest;
            self.fit_zoom(machine.history_seconds.unwrap_or(0.0) as i64);
            self.show_end(newest);
        }
        if self.fetch_due.is_none() && self.asked_fetch.is_none() {
            self.fetch_due = Some(now + FETCH_AFTER_US);
        }
        if self.newest && self.preview_due.is_none() && self.asked_preview.is_none() {
            self.preview_due = Some(now + FETCH_AFTER_US);
        }
    }

    /// Everything must be asked again: the vault answers again after a silence.
    pub const fn ask_again(&mut self, now: i64) {
        self.asked_fetch = None;
        self.asked_preview = None;
        self.fetch_due = Some(now);
        self.preview_due = Some(now);
    }

    /// When something is to be asked next.
    pub fn due(&self) -> Option<i64> {
        [self.preview_due, self.fetch_due].into_iter().flatten().min()
    }

    /// The stretch to be fetched now, if one is due.
    pub fn take_fetch(&mut self, now: i64, tag: u64, width: u16) -> Option<pb::TimelineRequest> {
        if self.fetch_due.is_none_or(|due| due > now) {
            return None;
        }
        self.fetch_due = None;
        self.asked_fetch = Some(tag);
        Some(pb::TimelineRequest {
            machine: self.machine.clone(),
            from_us: Some(self.from_us),
            to_us: Some(self.to_us),
            buckets: u32::from(width.clamp(8, 400)),
            points_max: 2000,
            before_id: String::new(),
        })
    }

    /// The moment to be asked about now, if one is due.
    pub fn take_preview(&mut self, now: i64, tag: u64) -> Option<pb::PreviewRequest> {
        if self.preview_due.is_none_or(|due| due > now) {
            return None;
        }
        self.preview_due = None;
        self.asked_preview = Some(tag);
        Some(pb::PreviewRequest { machine: self.machine.clone(), point: self.choice() })
    }

    /// Takes the answer to a fetch.
    pub fn fetched(&mut self, tag: u64, answer: Result<pb::TimelineReply, Fault>) {
        if self.asked_fetch != Some(tag) {
            return;
        }
        self.asked_fetch = None;
        match answer {
            Ok(reply) => {
                self.reply = Some(reply);
                self.fault = None;
            }
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// Takes the answer to a preview.
    pub fn previewed(&mut self, tag: u64, answer: Result<pb::PreviewReply, Fault>) {
        if self.asked_preview != Some(tag) {
            return;
        }
        self.asked_preview = None;
        self.preview = match answer {
            Ok(reply) => Preview::Told(self.cursor_us, Box::new(reply)),
            Err(fault) => Preview::Failed(self.cursor_us, Box::new(fault)),
        };
    }

    /// What is known of the moment at the cursor; nothing while only another one's answer is here.
    pub fn told(&self) -> Option<&pb::PreviewReply> {
        match &self.preview {
            // The newest moment moves on by itself; what was told a moment ago still tells.
            Preview::Told(at, reply) if *at == self.cursor_us || self.newest => Some(reply),
            Preview::Told(..) | Preview::Failed(..) | Preview::None => None,
        }
    }

    /// The choice of a moment as the operator API reads it.
    pub fn choice(&self) -> String {
        if self.newest {
            return "latest".into();
        }
        match self.point_at_cursor() {
            Some(point) if !point.id.is_empty() => point.id.clone(),
            _ => Timestamp::from_micros(self.cursor_us).to_string(),
        }
    }

    /// The listed point exactly at the cursor.
    pub fn point_at_cursor(&self) -> Option<&pb::Point> {
        self.points().iter().find(|point| point.time_us == self.cursor_us)
    }

    /// The points in the stretch, newest first.
    pub fn points(&self) -> &[pb::Point] {
        self.reply.as_ref().map_or(&[], |reply| &reply.points)
    }

    /// The gap that the cursor stands in.
    pub fn gap_at_cursor(&self) -> Option<&pb::Gap> {
        let reply = self.reply.as_ref()?;
        reply.gaps.iter().find(|gap| gap.from_us < self.cursor_us && self.cursor_us < gap.to_us)
    }

    /// The oldest and newest moment that can be brought up.
    pub fn extent(&self) -> Option<(i64, i64)> {
        let reply = self.reply.as_ref()?;
        (reply.oldest_us > 0 && reply.newest_us >= reply.oldest_us)
            .then_some((reply.oldest_us, reply.newest_us))
    }

    /// Moves the cursor by steps: earlier where negative.
    pub fn move_by(&mut self, steps: i64, now: i64) {
        let target = match self.step {
            Step::Minute => self.cursor_us.saturating_add(steps.saturating_mul(60 * SECOND)),
            Step::Second => self.cursor_us.saturating_add(steps.saturating_mul(SECOND)),
            Step::Point => {
                let mut at = self.cursor_us;
                for _ in 0..steps.unsigned_abs().min(1000) {
                    match self.neighbour(at, steps < 0) {
                        Some(next) => at = next,
                        None => break,
                    }
                }
                at
            }
        };
        self.move_to(target, now);
    }

    fn neighbour(&self, at: i64, earlier: bool) -> Option<i64> {
        let listed = self.points().iter().map(|point| point.time_us);
        let loaded = if earlier {
            listed.filter(|time| *time < at).max()
        } else {
            listed.filter(|time| *time > at).min()
        };
        // The edge of what was fetched: the vault told the neighbours, too.
        let told = || {
            let reply = self.told()?;
            let point = if earlier { reply.before.as_ref() } else { reply.after.as_ref() };
            point.map(|point| point.time_us).filter(|time| if earlier { *time < at } else { *time > at })
        };
        loaded.or_else(told)
    }

    /// Puts the cursor on a moment, within what can be brought up.
    pub fn move_to(&mut self, moment: i64, now: i64) {
        let moment = match self.extent() {
            Some((oldest, newest)) => moment.clamp(oldest, newest),
            None => moment,
        };
        self.newest = self.extent().is_some_and(|(_, newest)| moment >= newest);
        if moment != self.cursor_us {
            self.cursor_us = moment;
            self.preview_due = Some(now + PREVIEW_AFTER_US);
            self.asked_preview = None;
        }
        if moment < self.from_us || moment > self.to_us {
            let half = self.length() / 2;
            self.from_us = moment.saturating_sub(half);
            self.to_us = self.from_us.saturating_add(self.length());
            self.fetch_soon(now);
        }
    }

    /// The newest moment, and it stays there.
    pub fn to_newest(&mut self, now: i64) {
        if let Some((_, newest)) = self.extent() {
            self.move_to(newest, now);
            self.show_end(newest);
        }
        self.newest = true;
        self.fetch_soon(now);
        self.preview_due = Some(now + PREVIEW_AFTER_US);
    }

    /// The oldest moment.
    pub fn to_oldest(&mut self, now: i64) {
        if let Some((oldest, _)) = self.extent() {
            self.move_to(oldest, now);
        }
    }

    /// A shorter or a longer stretch, round the cursor.
    pub fn zoom(&mut self, closer: bool, now: i64) {
        let zoom = if closer { self.zoom.saturating_sub(1) } else { (self.zoom + 1).min(ZOOMS.len() - 1) };
        if zoom == self.zoom {
            return;
        }
        self.zoom = zoom;
        self.chosen_zoom = true;
        if self.newest {
            self.show_end(self.cursor_us);
        } else {
            self.from_us = self.cursor_us.saturating_sub(self.length() / 2);
            self.to_us = self.from_us.saturating_add(self.length());
        }
        self.fetch_soon(now);
    }

    const fn fetch_soon(&mut self, now: i64) {
        self.asked_fetch = None;
        self.fetch_due = Some(now + PREVIEW_AFTER_US);
    }

    /// The column of a moment in a stretch drawn `width` wide.
    pub fn column(&self, moment: i64, width: u16) -> Option<u16> {
        let length = self.to_us.saturating_sub(self.from_us);
        if moment < self.from_us || moment > self.to_us || length <= 0 || width == 0 {
            return None;
        }
        let at = i128::from(moment - self.from_us) * i128::from(width) / i128::from(length);
        Some(u16::try_from(at).unwrap_or(width).min(width - 1))
    }
}

/// Reads a moment as people write it: RFC 3339, `2026-11-23 03:12:45`, `03:12:45` or `03:12` of the newest
/// day it can mean, `-90s`, `-5m`, `-2h`, `-1d`. UTC.
pub fn moment(text: &str, now: i64) -> Option<i64> {
    let text = text.trim();
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at.micros());
    }
    if let Some(back) = text.strip_prefix('-') {
        let digits = back.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let amount: i64 = digits.parse().ok()?;
        let seconds = match &back[digits.len()..] {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        return Some(now.saturating_sub(amount.checked_mul(seconds)?.checked_mul(SECOND)?));
    }
    if let Ok(at) = format!("{}Z", text.replacen(' ', "T", 1)).parse::<Timestamp>() {
        return Some(at.micros());
    }
    let full = if text.matches(':').count() == 1 { format!("{text}:00") } else { text.to_owned() };
    let today = Timestamp::from_micros(now).to_string();
    let at = format!("{}T{full}Z", today.get(..10)?).parse::<Timestamp>().ok()?.micros();
    Some(if at > now { at - 86_400 * SECOND } else { at })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_700_000_000_000_000;

    fn timeline(points: &[i64]) -> Timeline {
        let newest = points.iter().max().copied().unwrap_or(0);
        let machine = pb::Machine {
            id: "m".into(),
            newest_point_us: Some(newest),
            history_seconds: Some(100.0),
            ..Default::default()
        };
        let mut timeline = Timeline::new(&machine, NOW);
        let request = timeline.take_fetch(NOW, 1, 80).unwrap();
        assert_eq!(request.to_us.unwrap() - request.from_us.unwrap(), 120 * SECOND);
        let mut listed: Vec<pb::Point> = points
            .iter()
            .map(|at| pb::Point { id: format!("p{at}"), time_us: *at, ..Default::default() })
            .collect();
        listed.reverse();
        timeline.fetched(
            1,
            Ok(pb::TimelineReply {
                oldest_us: points[0],
                newest_us: newest,
                points: listed,
                ..Default::default()
            }),
        );
        timeline
    }

    #[test]
    fn the_cursor_moves_by_point_minute_and_second() {
        let base = NOW - 100 * SECOND;
        let mut line = timeline(&[base, base + 40 * SECOND, base + 90 * SECOND]);
        assert!(line.newest);
        assert_eq!(line.choice(), "latest");
        line.move_by(-1, NOW);
        assert_eq!((line.cursor_us, line.newest), (base + 40 * SECOND, false));
        assert_eq!(line.choice(), format!("p{}", base + 40 * SECOND));
        line.step = Step::Second;
        line.move_by(-7, NOW);
        assert_eq!(line.choice(), Timestamp::from_micros(base + 33 * SECOND).to_string(), "between points");
        line.step = Step::Minute;
        line.move_by(-1, NOW);
        assert_eq!(line.cursor_us, base, "never before the oldest");
        line.move_by(5, NOW);
        assert!(line.newest);
    }

    #[test]
    fn an_answer_about_another_moment_is_not_shown() {
        let base = NOW - 100 * SECOND;
        let mut line = timeline(&[base, base + 40 * SECOND, base + 90 * SECOND]);
        line.move_by(-1, NOW);
        assert!(line.take_preview(NOW, 5).is_none(), "not before the cursor rests");
        assert!(line.take_preview(NOW + PREVIEW_AFTER_US, 5).is_some());
        line.move_by(-1, NOW + PREVIEW_AFTER_US);
        line.previewed(5, Ok(pb::PreviewReply::default()));
        assert!(line.told().is_none(), "the answer is about where the cursor was");
        assert!(line.take_preview(NOW + 3 * PREVIEW_AFTER_US, 6).is_some());
        line.previewed(6, Ok(pb::PreviewReply::default()));
        assert!(line.told().is_some());
        line.move_by(1, NOW + SECOND);
        assert!(line.told().is_none());
    }

    #[test]
    fn moments_as_people_write_them() {
        let now: i64 = "2026-11-23T03:15:00Z".parse::<Timestamp>().unwrap().micros();
        for (text, expected) in [
            ("03:12:45", "2026-11-23T03:12:45.000000Z"),
            ("03:12", "2026-11-23T03:12:00.000000Z"),
            ("03:12:45.25", "2026-11-23T03:12:45.250000Z"),
            ("23:59", "2026-11-22T23:59:00.000000Z"),
            ("-90s", "2026-11-23T03:13:30.000000Z"),
            ("-1d", "2026-11-22T03:15:00.000000Z"),
            ("2026-11-20 10:00:00", "2026-11-20T10:00:00.000000Z"),
            ("2026-11-23T04:12:45+01:00", "2026-11-23T03:12:45.000000Z"),
        ] {
            let told = moment(text, now).map(|at| Timestamp::from_micros(at).to_string());
            assert_eq!(told.as_deref(), Some(expected), "{text}");
        }
        for wrong in ["", "yesterday", "25:00", "-5y", "-99999999999999999999h", "-é", "03"] {
            assert_eq!(moment(wrong, now), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn the_cursor_is_always_in_the_stretch(moves in prop::collection::vec((0_u8..7, -20_i64..20), 1..60)) {
            let base = NOW - 100 * SECOND;
            let mut line = timeline(&[base, base + 40 * SECOND, base + 90 * SECOND]);
            for (what, by) in moves {
                match what {
                    0 => line.zoom(true, NOW),
                    1 => line.zoom(false, NOW),
                    2 => line.step = line.step.next(),
                    3 => line.to_newest(NOW),
                    4 => line.to_oldest(NOW),
                    _ => line.move_by(by, NOW),
                }
                prop_assert!(line.column(line.cursor_us, 80).is_some());
                let (oldest, newest) = line.extent().unwrap();
                prop_assert!((oldest..=newest).contains(&line.cursor_us));
            }
        }
    }
}
