use super::{
    client::change,
    failure::Failure,
    find::Place,
    screen::Screen,
    settle,
    words::{Waiting, target},
};
use crate::domain::{
    api::{Request, Target},
    model,
};

/// Send a signal to the main process of an app or instance
#[derive(Debug, clap::Args)]
pub struct Signal {
    /// App (blog) or instance (blog.2)
    #[arg(value_name = "APP", value_parser = target)]
    app: Target,
    /// Such as SIGHUP, HUP or 1
    #[arg(value_name = "SIG")]
    signal: model::Signal,
}

impl Signal {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let request = Request::Signal { app: self.app.clone(), signal: self.signal };
        let reply = change(place, &mut screen, request, &Waiting::default(), |_, _| Ok(()))?;
        settle(&mut screen, reply)
    }
}
