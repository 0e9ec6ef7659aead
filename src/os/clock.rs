//! The two clocks, read together.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::domain::model::{At, Now};

/// This moment. A calendar before 1970 reads as 1970.
#[must_use]
pub fn now() -> Now {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: Instant::now(), wall: At(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)) }
}
