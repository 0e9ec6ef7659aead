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

/// The kernel's monotonic clock, in microseconds: what `MONOTONIC_USEC` of sd_notify(3) is compared with.
#[must_use]
pub fn monotonic_micros() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000
}

/// This moment. A calendar before 1970 reads as 1970.
#[must_use]
pub fn now() -> Now {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: At(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)) }
}
