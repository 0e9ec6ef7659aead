//! What the run of an instance that failed said last: it goes with the event of its end, and into its status.
//! The logger reads it, so that the event waits for a moment, and the later ones of its seat with it.

use super::{Supervisor, ledger::NewEvent, seats::SeatId};
use crate::domain::{api::Stream, model::At};

/// Lines that are kept, and of each at most so many characters.
const LINES: u32 = 10;
const LENGTH: usize = 400;

/// Of a seat.
pub struct Words {
    /// When the run was marked in the logs.
    run: At,
    /// The next event is due to a failure.
    expected: bool,
    pub last: Box<[String]>,
}

impl Words {
    #[must_use]
    pub fn of(run: At) -> Self {
        Self { run, expected: false, last: Box::default() }
    }
}

/// An event that waits, and of which run it is due to the failure.
pub type Waiting = (Option<At>, NewEvent);

impl Supervisor {
    /// The next event of this seat is due to a failure.
    pub fn expect_words(&mut self, id: &SeatId) {
        if let Some(seat) = self.seat_mut(id) {
            seat.words.expected = true;
        }
    }

    /// Has an event written down, after those of its seat that wait.
    pub fn remember(&mut self, id: &SeatId, event: NewEvent) {
        let words = self.seat_mut(id).map(|seat| &mut seat.words);
        let failed = words.and_then(|words| std::mem::take(&mut words.expected).then_some(words.run));
        if let Some(waiting) = self.unworded.get_mut(id) {
            waiting.push((failed, event));
        } else if let Some(run) = failed {
            self.unworded.insert(id.clone(), vec![(failed, event)]);
            self.read_words(id, run);
        } else {
            self.put_down(event);
        }
    }

    fn read_words(&mut self, id: &SeatId, run: At) {
        let (id, out) = (id.clone(), self.layout.log(&id.instance(), Stream::Out));
        let run = Some(run);
        self.tail(self.layout.log(&id.instance(), Stream::Err), LINES, run, move |supervisor, lines| {
            if lines.is_empty() {
                return supervisor.tail(out, LINES, run, move |supervisor, lines| supervisor.hear_words(&id, &lines));
            }
            supervisor.hear_words(&id, &lines);
        });
    }

    fn hear_words(&mut self, id: &SeatId, lines: &[String]) {
        let lines: Vec<String> = lines.iter().map(|line| line.chars().take(LENGTH).collect()).collect();
        let detail = (!lines.is_empty()).then(|| lines.join("\n"));
        let mut events = self.unworded.remove(id).unwrap_or_default();
        if let Some((_, first)) = events.first_mut() {
            first.detail = detail;
        }
        // What it said before the next failure is to be read for that.
        let next = events.iter().enumerate().skip(1).find_map(|(at, (failed, _))| Some((at, (*failed)?)));
        let later = next.map(|(at, run)| (events.split_off(at), run));
        for (_, event) in events {
            self.put_down(event);
        }
        if let Some(seat) = self.seat_mut(id) {
            seat.words.last = lines.into();
        }
        if let Some((later, run)) = later {
            self.unworded.insert(id.clone(), later);
            self.read_words(id, run);
        }
        self.write_down();
    }

    /// Nobody reads any more what would belong to these events.
    pub fn go_without_words(&mut self) {
        for (_, events) in std::mem::take(&mut self.unworded) {
            events.into_iter().for_each(|(_, event)| self.put_down(event));
        }
        self.write_down();
    }
}
