//! Which scheduled app is due when. The wall clock may jump: it is looked at anew whenever its alarm
//! rings or it was set, and then each app runs at most once, whatever was jumped over.

use std::{collections::BTreeMap, time::Duration};

use crate::domain::{
    config::{Missed, Schedule},
    model::{AppName, At, show_span},
};

/// A run this late is still on time: the machine was busy, or its clock was put right a little. A
/// clock put back by no more than this repeats no run.
const SLACK: i64 = 60_000;

/// The scheduled apps.
#[derive(Debug, Clone, Default)]
pub struct Timetable {
    entries: BTreeMap<AppName, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    schedule: Schedule,
    /// Every moment up to here is dealt with.
    until: At,
    next: Option<At>,
}

/// What is to be done for an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub app: AppName,
    /// The moment whose run is to begin now.
    pub run: Option<At>,
    /// What was missed, in a sentence.
    pub missed: Option<String>,
    /// Every moment up to here is dealt with.
    pub until: At,
}

impl Timetable {
    /// Takes an app in, or its new schedule. `until`: every moment up to here was dealt with earlier;
    /// `None`: nothing is known, so nothing was missed.
    pub fn set(&mut self, app: &AppName, schedule: &Schedule, until: Option<At>, now: At) {
        // What the future has dealt with was written by a clock that was wrong.
        let until = until.filter(|until| *until <= now).unwrap_or(now);
        let next = schedule.next(until);
        self.entries.insert(app.clone(), Entry { schedule: schedule.clone(), until, next });
    }

    pub fn remove(&mut self, app: &AppName) {
        self.entries.remove(app);
    }

    /// The schedule that counts for an app.
    #[must_use]
    pub fn schedule(&self, app: &AppName) -> Option<&Schedule> {
        self.entries.get(app).map(|entry| &entry.schedule)
    }

    /// Up to when an app's moments are dealt with, where it has this very schedule.
    #[must_use]
    pub fn dealt_with(&self, app: &AppName, schedule: &Schedule) -> Option<At> {
        let same = self.entries.get(app).filter(|entry| entry.schedule.is_as_often_as(schedule))?;
        Some(same.until)
    }

    /// When an app runs next.
    #[must_use]
    pub fn next_of(&self, app: &AppName) -> Option<At> {
        self.entries.get(app)?.next
    }

    /// When the clock is to be looked at again.
    #[must_use]
    pub fn alarm(&self) -> Option<At> {
        self.entries.values().filter_map(|entry| entry.next).min()
    }

    /// What has become due; the clock may have been set since the last look, forward or back.
    pub fn look(&mut self, now: At) -> Vec<Due> {
        self.entries.iter_mut().filter_map(|(app, entry)| entry.look(app, now)).collect()
    }
}

impl Entry {
    fn look(&mut self, app: &AppName, now: At) -> Option<Due> {
        if now.0 < self.until.0 - SLACK {
            self.until = now;
            self.next = self.schedule.next(now);
            return None;
        }
        let first = self.next.filter(|first| *first <= now)?;
        let last = self.schedule.last(now).unwrap_or(first).max(first);
        self.until = last;
        self.next = self.schedule.next(last.max(now));
        let late = now.0 - last.0;
        if late <= SLACK {
            let missed = (first < last).then(|| format!("runs from {first} on were missed"));
            return Some(Due { app: app.clone(), run: Some(last), missed, until: last });
        }
        let late = show_span(Duration::from_millis(late.unsigned_abs()));
        let (run, what) = match self.schedule.missed {
            Missed::Run => (Some(last), "is made up for now"),
            Missed::Skip => (None, "is skipped"),
        };
        let missed = format!("the run of {last} {what}: its time was missed by {late}");
        Some(Due { app: app.clone(), run, missed: Some(missed), until: last })
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    const MINUTE: i64 = 60_000;
    const HOUR: i64 = 60 * MINUTE;
    /// 2026-11-25T12:00:00Z.
    const NOON: At = At(1_795_608_000_000);

    fn table(text: &str, missed: Missed, until: Option<At>) -> (Timetable, AppName) {
        let app: AppName = "a".parse().unwrap();
        let mut table = Timetable::default();
        table.set(&app, &Schedule::new(text, TimeZone::UTC, missed).unwrap(), until, NOON);
        (table, app)
    }

    fn after(millis: i64) -> At {
        At(NOON.0 + millis)
    }

    #[test]
    fn a_run_begins_at_its_time_and_not_twice() {
        let (mut table, app) = table("*/5 * * * *", Missed::Skip, None);
        assert_eq!(table.alarm(), Some(after(5 * MINUTE)));
        assert_eq!(table.look(after(MINUTE)), []);
        let due = table.look(after(5 * MINUTE));
        let want = Due { app, run: Some(after(5 * MINUTE)), missed: None, until: after(5 * MINUTE) };
        assert_eq!(due, [want]);
        assert_eq!(table.look(after(5 * MINUTE + 1)), []);
        // A clock that is put back a little repeats nothing.
        assert_eq!(table.look(after(5 * MINUTE - 2_000)), []);
        assert_eq!(table.look(after(5 * MINUTE + 2_000)), []);
        assert_eq!(table.alarm(), Some(after(10 * MINUTE)));
    }

    #[test]
    fn a_jump_of_the_clock_runs_at_most_once_and_realigns() {
        for (missed, runs) in [(Missed::Skip, 0), (Missed::Run, 1)] {
            let (mut table, _) = table("*/5 * * * *", missed, None);
            let jumped = after(HOUR + 3 * MINUTE);
            let due = table.look(jumped);
            assert_eq!(due.iter().filter(|due| due.run.is_some()).count(), runs);
            assert!(due[0].missed.as_ref().unwrap().contains("missed by 3m"), "{due:?}");
            assert_eq!(table.alarm(), Some(after(HOUR + 5 * MINUTE)));
            // Eight hours back: the next run is at most five minutes away again.
            assert_eq!(table.look(after(-7 * HOUR)), []);
            assert_eq!(table.alarm(), Some(after(-7 * HOUR + 5 * MINUTE)));
        }
    }

    #[test]
    fn what_was_missed_while_nothing_ran_is_known_from_the_record() {
        let (mut table, _) = table("0 3 * * *", Missed::Run, Some(after(-33 * HOUR)));
        let due = table.look(NOON);
        assert_eq!(due[0].run, Some(after(-9 * HOUR)));
        assert_eq!(table.look(NOON), []);
        let (mut future, _) = self::table("0 3 * * *", Missed::Run, Some(after(100 * HOUR)));
        assert_eq!(future.look(NOON), []);
        assert_eq!(future.alarm(), Some(after(15 * HOUR)));
    }

    proptest! {
        /// Whatever the clock does, an app is due at most once a look, never twice for one moment
        /// unless the clock goes back far, and its next time always lies ahead.
        #[test]
        fn the_alarm_always_lies_ahead(steps in prop::collection::vec(-3 * HOUR..3 * HOUR, 1..60), run in any::<bool>()) {
            let (mut table, _) = table("*/7 * * * *", if run { Missed::Run } else { Missed::Skip }, None);
            let mut now = NOON;
            let mut last_run: Option<At> = None;
            for step in steps {
                now = At(now.0 + step);
                let due = table.look(now);
                prop_assert!(due.len() <= 1);
                if step < -SLACK {
                    last_run = None;
                }
                if let Some(at) = due.first().and_then(|due| due.run) {
                    prop_assert!(at <= now);
                    prop_assert!(last_run != Some(at));
                    last_run = Some(at);
                }
                let alarm = table.alarm().unwrap();
                prop_assert!(alarm > now && alarm.0 - now.0 <= 7 * MINUTE + SLACK);
            }
        }
    }
}
