//! What the steps of a deploy write, shown while somebody waits for its end.

use std::thread::{self, JoinHandle};

use super::{
    find::Place,
    logs,
    screen::{DIM, Screen, visible},
};
use crate::domain::{api::LogsRequest, model::DeployId};

/// Follows the log of one deploy after the other, over a connection of its own.
pub struct Output<'a> {
    place: &'a Place,
    followed: Option<(DeployId, JoinHandle<bool>)>,
}

impl<'a> Output<'a> {
    pub fn new(place: &'a Place) -> Self {
        Self { place, followed: None }
    }

    /// Shows what this deploy writes, from its beginning on; once.
    pub fn follow(&mut self, id: DeployId) {
        if self.followed.as_ref().is_some_and(|(followed, _)| *followed == id) {
            return;
        }
        let place = self.place.clone();
        self.followed = Some((id, thread::spawn(move || show(&place, id))));
    }

    /// Waits until all of it is shown: the deploy is over. False: nothing was, or not all.
    pub fn finish(self) -> bool {
        self.followed.is_some_and(|(_, shown)| shown.join().unwrap_or(false))
    }
}

fn show(place: &Place, id: DeployId) -> bool {
    let mut screen = Screen::stdout();
    let request = LogsRequest {
        apps: Vec::new(),
        follow: true,
        n: None,
        previous: false,
        stderr: false,
        since: None,
        grep: None,
        deploy: Some(id),
        resume: Vec::new(),
    };
    let told = logs::read(place, &mut screen, request, |screen, line| {
        let text = if screen.terminal { visible(&line.line) } else { line.line.clone() };
        screen.line(&format!("  {} {text}", screen.paint(DIM, "|")))
    });
    // Whoever waits hears from the supervisor itself how it ended.
    told.is_ok() && screen.flush().is_ok()
}
