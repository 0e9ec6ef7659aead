//! The two clocks, read together.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;

use crate::domain::model::{At, Now};

/// A time zone of the machine's database by its name; without one the machine's own, UTC where it says
/// nothing. `TZ` counts.
#[must_use]
pub fn zone(name: Option<&str>) -> Option<TimeZone> {
    match name {
        Some(name) => TimeZone::get(name).ok(),
        None => Some(TimeZone::try_system().unwrap_or(TimeZone::UTC)),
    }
}

/// This moment. A calendar before 1970 reads as 1970.
#[must_use]
pub fn now() -> Now {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: At(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)) }
}
