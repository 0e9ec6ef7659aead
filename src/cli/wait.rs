use std::time::Duration;

use super::{
    client::change,
    failure::Failure,
    find::Place,
    screen::Screen,
    settle,
    words::{Waiting, state_parser, target},
};
use crate::domain::{
    api::{InstanceState, Request, Target},
    model::parse_span,
};

/// Wait until an app or instance is in a state
#[derive(Debug, clap::Args)]
pub struct Wait {
    /// App (blog) or instance (blog.2)
    #[arg(value_name = "APP", value_parser = target)]
    app: Target,
    /// The state to wait for
    #[arg(long = "for", value_name = "STATE", value_parser = state_parser())]
    state: InstanceState,
    /// Give up after this long, such as 30s
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    timeout: Option<Duration>,
}

impl Wait {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let request = Request::WaitFor { app: self.app.clone(), state: self.state };
        let waiting = Waiting { no_wait: false, timeout: self.timeout };
        let reply = change(place, &mut screen, request, &waiting, |_, _| Ok(()))?;
        settle(&mut screen, reply)
    }
}
