use super::{client::change, failure::Failure, find::Place, screen::Screen, settle, words::Waiting};
use crate::domain::{api::Request, model::AppName};

/// Start no deploy of an app until it is unfrozen; pushes are kept, and a rollback goes on
#[derive(Debug, clap::Args)]
pub struct Freeze {
    app: AppName,
    /// For whoever finds it frozen, in a line
    #[arg(long, value_name = "TEXT")]
    why: String,
}

/// Let an app's deploys start again, first the newest that came meanwhile
#[derive(Debug, clap::Args)]
pub struct Unfreeze {
    app: AppName,
}

impl Freeze {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        ask(place, Request::Freeze { app: self.app.clone(), why: self.why.clone() })
    }
}

impl Unfreeze {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        ask(place, Request::Unfreeze { app: self.app.clone() })
    }
}

fn ask(place: &Place, request: Request) -> Result<(), Failure> {
    let mut screen = Screen::stdout();
    let reply = change(place, &mut screen, request, &Waiting::default(), |_, _| Ok(()))?;
    settle(&mut screen, reply)
}
