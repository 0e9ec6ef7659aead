//! When a scheduled app runs: a cron expression read in a time zone. Days of the month and days of the
//! week together mean either, as in every classic cron. A time that the clock skips in spring comes at
//! the first moment after the gap, one that it repeats in autumn comes once; expressions with a
//! wildcard in their hours go by real time instead.

use croner::{
    Cron, Direction,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, Zoned, tz::TimeZone};
use serde::Deserialize;

use super::{Policy, judge::Judge, raw};
use crate::domain::model::At;

/// When an app runs.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The expression as it was written.
    pub text: String,
    pub missed: Missed,
    cron: Cron,
    zone: TimeZone,
}

/// What becomes of moments at which the machine was off, asleep, or its clock set past them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Missed {
    #[default]
    Skip,
    /// They are made up for by one run.
    Run,
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, self.missed, &self.zone) == (&other.text, other.missed, &other.zone)
    }
}

/// The fields of an expression, the second left out.
const FIELDS: [&str; 5] = ["minute", "hour", "day of the month", "month", "day of the week"];

impl Schedule {
    /// Reads a cron expression of five or six fields (the first of six is the second), or `@daily` and
    /// its kin.
    ///
    /// # Errors
    /// One sentence that names the field that is wrong.
    pub fn new(text: &str, zone: TimeZone, missed: Missed) -> Result<Self, String> {
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let fields = text.split_whitespace().count();
        if !text.trim_start().starts_with('@') && !(5..=6).contains(&fields) {
            let fields = if fields == 1 { "one field".into() } else { format!("{fields} fields") };
            return Err(format!(
                "{text:?} has {fields}; a cron expression has {}, or a second before them",
                FIELDS.join(", ")
            ));
        }
        let Ok(cron) = parser.parse(text) else {
            return Err(format!("{text:?} is no cron expression{}", wrong_field(&parser, text)));
        };
        Ok(Self { text: text.to_owned(), missed, cron, zone })
    }

    /// Does the other one come at the same moments?
    #[must_use]
    pub fn is_as_often_as(&self, other: &Self) -> bool {
        (&self.cron, &self.zone) == (&other.cron, &other.zone)
    }

    /// The first moment after this one; `None` where none ever comes, as on 30 February.
    #[must_use]
    pub fn next(&self, after: At) -> Option<At> {
        let from = self.at(after)?;
        self.cron.find_next_occurrence(&from, false).ok().map(|at| At(at.timestamp().as_millisecond()))
    }

    /// The last moment up to and with this one.
    #[must_use]
    pub fn last(&self, until: At) -> Option<At> {
        let from = self.at(until)?;
        // Inclusive holds for a whole second only, so a fraction of it must not count.
        let from =
            from.round(jiff::ZonedRound::new().smallest(jiff::Unit::Second).mode(jiff::RoundMode::Trunc)).ok()?;
        self.cron.find_previous_occurrence(&from, true).ok().map(|at| At(at.timestamp().as_millisecond()))
    }

    /// The next moments, as the zone's clocks show them.
    #[must_use]
    pub fn shown(&self, after: At, count: usize) -> Vec<String> {
        let Some(from) = self.at(after) else { return Vec::new() };
        let moments =
            self.cron.iter_from(from, Direction::Forward).skip_while(|at| at.timestamp().as_millisecond() <= after.0);
        moments.take(count).map(|at| at.strftime("%Y-%m-%d %H:%M:%S %:z").to_string()).collect()
    }

    fn at(&self, at: At) -> Option<Zoned> {
        Some(Timestamp::from_millisecond(at.0).ok()?.to_zoned(self.zone.clone()))
    }
}

/// The first field that cannot be read beside wildcards in all others.
fn wrong_field(parser: &CronParser, text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let names = ["second"].into_iter().chain(FIELDS).skip(6usize.saturating_sub(words.len()));
    for (i, (word, name)) in words.iter().zip(names).enumerate() {
        let mut alone = vec!["*"; words.len()];
        alone[i] = word;
        if parser.parse(&alone.join(" ")).is_err() {
            return format!(": {word:?} is no {name}");
        }
    }
    String::new()
}

/// An app's `schedule`, judged; `own`: what the app itself says, without `defaults`. A time that cannot be
/// read, or a zone that the machine does not know, keeps that app alone from running.
pub fn schedule(
    judge: &mut Judge<'_>,
    name: &str,
    raw: &raw::App,
    own: &raw::App,
) -> (Option<Schedule>, Option<(&'static str, String)>) {
    let Some(written) = &raw.schedule else { return (None, None) };
    let keys = ["apps", name, "schedule"];
    judge.require(raw.command.is_some(), &keys, "there is no `command` to run at these times");
    if own.restart.policy == Some(Policy::Always) {
        let message = "a scheduled app ends and runs again at its next time; expected Never or OnFailure";
        judge.error(&["apps", name, "restart", "policy"], message);
    }
    let Some(text) = &written.cron else {
        judge.error(&keys, "`cron` is missing: when to run, such as \"0 3 * * *\"");
        return (None, None);
    };
    let Some(zone) = (judge.facts.zone)(written.zone.as_deref()) else {
        let wanted = written.zone.as_deref().unwrap_or_default();
        let message = format!("time zone {wanted:?} is not known (is the package tzdata installed?)");
        return (None, Some(("schedule", message)));
    };
    match Schedule::new(text, zone, written.missed.unwrap_or_default()) {
        // Any moment serves to find out whether one ever comes.
        Ok(schedule) if schedule.next(At(0)).is_none() => {
            (None, Some(("schedule", format!("{text:?} is a time that never comes"))))
        }
        Ok(schedule) => (Some(schedule), None),
        Err(message) => (None, Some(("schedule", message))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn berlin(text: &str) -> Schedule {
        Schedule::new(text, TimeZone::get("Europe/Berlin").unwrap(), Missed::Skip).unwrap()
    }

    fn at(text: &str) -> At {
        text.parse().unwrap()
    }

    fn following(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
        schedule.shown(at(from), count)
    }

    #[test]
    fn a_time_in_the_gap_of_spring_comes_right_after_it() {
        let nightly = berlin("30 2 * * *");
        let days = following(&nightly, "2026-03-27T12:00:00Z", 3);
        assert_eq!(days, ["2026-03-28 02:30:00 +01:00", "2026-03-29 03:00:00 +02:00", "2026-03-30 02:30:00 +02:00"]);
    }

    #[test]
    fn a_time_that_autumn_repeats_comes_once_and_an_interval_goes_on() {
        let nightly = berlin("30 2 * * *");
        let days = following(&nightly, "2026-10-24T12:00:00Z", 2);
        assert_eq!(days, ["2026-10-25 02:30:00 +02:00", "2026-10-26 02:30:00 +01:00"]);
        let often = berlin("*/30 * * * *");
        let times = following(&often, "2026-10-25T00:00:00Z", 4);
        let want = ["02:30:00 +02:00", "02:00:00 +01:00", "02:30:00 +01:00", "03:00:00 +01:00"];
        assert_eq!(times, want.map(|time| format!("2026-10-25 {time}")));
    }

    /// As every classic cron has it: on the 13th, and on every Friday.
    #[test]
    fn day_of_month_and_day_of_week_mean_either() {
        let both = berlin("0 0 13 * 5");
        let days = following(&both, "2026-11-25T00:00:00Z", 4);
        let days: Vec<_> = days.iter().map(|day| &day[..10]).collect();
        assert_eq!(days, ["2026-11-27", "2026-12-04", "2026-12-11", "2026-12-13"]);
    }

    #[test]
    fn six_fields_begin_with_the_second() {
        let schedule = berlin("*/20 * * * * *");
        assert_eq!(schedule.next(at("2026-11-25T00:00:20.500Z")), Some(at("2026-11-25T00:00:40Z")));
        assert_eq!(schedule.next(at("2026-11-25T00:00:20Z")), Some(at("2026-11-25T00:00:40Z")));
        assert_eq!(schedule.last(at("2026-11-25T00:00:20Z")), Some(at("2026-11-25T00:00:20Z")));
        assert_eq!(schedule.last(at("2026-11-25T00:00:39.999Z")), Some(at("2026-11-25T00:00:20Z")));
        assert_eq!(berlin("@hourly").next(at("2026-11-25T00:00:00Z")), Some(at("2026-11-25T01:00:00Z")));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |text: &str| Schedule::new(text, TimeZone::UTC, Missed::Skip).unwrap_err();
        assert!(said("61 * * * *").ends_with("\"61\" is no minute"), "{}", said("61 * * * *"));
        assert!(said("0 3 * * FOO").ends_with("\"FOO\" is no day of the week"));
        assert!(said("x 0 3 * * *").ends_with("\"x\" is no second"));
        assert!(said("* * *").contains("3 fields"));
        assert!(said("0 0 0 1 1 * 2027").contains("7 fields"));
        assert!(said("").contains("0 fields"));
        assert!(said("@sometimes").contains("no cron expression"));
    }

    proptest! {
        /// The next moment lies ahead, and looking back from it finds it again.
        #[test]
        fn next_and_last_agree(minute in 0..60u32, hour in 0..24u32, from in 1_700_000_000_000i64..1_800_000_000_000, wild in any::<bool>()) {
            let text = if wild { format!("{minute} * * * *") } else { format!("{minute} {hour} * * *") };
            let schedule = berlin(&text);
            let next = schedule.next(At(from)).unwrap();
            prop_assert!(next > At(from));
            prop_assert!(next.0 - from <= 25 * 3_600_000);
            prop_assert_eq!(schedule.last(next), Some(next));
            prop_assert!(schedule.last(At(next.0 - 1)).unwrap() <= At(from));
        }
    }
}
