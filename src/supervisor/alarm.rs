//! The one alarm by the wall clock, for all that has a moment there: runs of scheduled apps, and the ends of
//! tokens and certificates. It also rings when that clock is set. DESIGN.md section 5, "Timers".

use std::{io, sync::Arc};

use tracing::error;

use super::{Supervisor, event::Event};
use crate::{
    domain::model::At,
    os::{clock, timer},
};

/// What wakes us, once there is something to be woken for.
#[derive(Default)]
pub struct Alarm {
    timer: Option<Arc<timer::Alarm>>,
    armed: Option<At>,
}

impl Supervisor {
    /// Does what is due, and sets the alarm anew: it has rung, the clock was set, or something else has another
    /// moment now.
    pub fn look_at_clock(&mut self) {
        if !self.begun || self.is_ending() {
            return;
        }
        // The clock may be set while we look.
        for _ in 0..3 {
            let now = clock::now().wall;
            self.run_scheduled(now);
            let expired = self.tokens.expire(now);
            self.end_streams(&expired);
            self.look_after_certificates(now);
            if self.arm(now) {
                return;
            }
        }
    }

    /// False where the clock was set meanwhile.
    fn arm(&mut self, now: At) -> bool {
        let moments = [self.timetable.alarm(), self.tokens.next_end(now), self.certificates.next_moment(now)];
        let next = moments.into_iter().flatten().min();
        if next.is_none() && self.alarm.armed.is_none() {
            return true;
        }
        match self.timer().and_then(|timer| timer.set(next)) {
            Ok(in_time) => {
                self.alarm.armed = next;
                in_time
            }
            Err(error) => {
                error!(%error, "no scheduled app runs, and no end of a token or certificate is noticed");
                true
            }
        }
    }

    fn timer(&mut self) -> io::Result<Arc<timer::Alarm>> {
        if let Some(timer) = &self.alarm.timer {
            return Ok(Arc::clone(timer));
        }
        let timer = Arc::new(timer::Alarm::new()?);
        self.alarm.timer = Some(Arc::clone(&timer));
        let (ringing, events) = (Arc::clone(&timer), self.events.clone());
        tokio::spawn(async move {
            while ringing.rung().await.is_ok() {
                if events.send(Event::Then(Box::new(Supervisor::look_at_clock))).is_err() {
                    return;
                }
            }
        });
        Ok(timer)
    }
}
