use super::{client::change, failure::Failure, find::Place, progress::Teller, screen::Screen, settle, words::Waiting};
use crate::domain::{api::Request, model::DeployId};

/// End a deploy that has not switched yet
#[derive(Debug, clap::Args)]
pub struct Cancel {
    /// The deploy's number; `everhook history` shows it
    id: DeployId,
    #[command(flatten)]
    waiting: Waiting,
}

impl Cancel {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let mut teller = Teller::default();
        let request = Request::Cancel { id: self.id };
        let reply = change(place, &mut screen, request, &self.waiting, |screen, said| teller.tell(screen, said))?;
        settle(&mut screen, reply)
    }
}
