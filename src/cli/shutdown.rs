use super::{
    client::{Client, strange},
    failure::Failure,
    find::Place,
    progress::Teller,
    screen::Screen,
    settle,
    words::Waiting,
};
use crate::domain::api::{Request, Said, Saying};

/// Stop every app, then the supervisor
#[derive(Debug, clap::Args)]
pub struct Shutdown {
    /// Kill what still runs instead of waiting for its stop time-out
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Shutdown {
    /// The end of the connection is the supervisor's end, whether or not it could still answer.
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let mut teller = Teller::default();
        let mut client = Client::connect(place)?;
        client.ask(Request::Shutdown { now: self.now }, !self.waiting.no_wait, self.waiting.timeout);
        client.heed_interrupt()?;
        while let Some(frame) = client.frame(&mut screen)? {
            match frame.message::<Said>().map_err(|_| strange())?.what {
                Saying::Refused(refusal) => return Err(refusal.into()),
                Saying::Done(reply) => {
                    settle(&mut screen, reply)?;
                    if self.waiting.no_wait {
                        break;
                    }
                }
                said => teller.tell(&mut screen, said)?,
            }
        }
        Ok(screen.flush()?)
    }
}
