use super::{client::change, failure::Failure, find::Place, progress::Teller, screen::Screen, settle, words::Waiting};
use crate::domain::api::Request;

/// Apply the config, all or nothing
#[derive(Debug, clap::Args)]
pub struct Reload {
    #[command(flatten)]
    waiting: Waiting,
}

impl Reload {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let mut teller = Teller::default();
        let reply =
            change(place, &mut screen, Request::Reload, &self.waiting, |screen, said| teller.tell(screen, said))?;
        settle(&mut screen, reply)
    }
}
