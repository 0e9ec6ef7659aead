use std::{fs::File, os::fd::OwnedFd, path::PathBuf, time::Duration};

use super::{
    client::Client,
    failure::{Code, Failure},
    find::Place,
    progress::Teller,
    screen::Screen,
    settle,
};
use crate::domain::{
    api::{Request, Saying},
    model::parse_span,
};

/// Run a newer binary in the supervisor's place; apps run on
#[derive(Debug, clap::Args)]
#[command(after_help = "Without --binary the file is executed that the supervisor was started from, as a package\n\
                        has replaced it. First it has to prove that it can read the config and the database.")]
pub struct Upgrade {
    /// This binary; the supervisor runs a copy of it
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Give up waiting after this long, such as 30s; the work goes on
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    timeout: Option<Duration>,
}

impl Upgrade {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let open = |path: &PathBuf| {
            let file = File::open(path).map_err(|e| Failure::new(Code::Failed, format!("{}: {e}", path.display())))?;
            Ok::<OwnedFd, Failure>(file.into())
        };
        let binary = self.binary.as_ref().map(open).transpose()?;
        let mut screen = Screen::stdout();
        let mut teller = Teller::default();
        let mut client = Client::connect(place)?;
        client.ask_with(Request::Upgrade, Vec::from_iter(binary), self.timeout);
        client.heed_interrupt()?;
        loop {
            match client.hear(&mut screen)? {
                Saying::Done(reply) => return settle(&mut screen, reply),
                said => teller.tell(&mut screen, said)?,
            }
        }
    }
}
