use std::io::{self, BufRead, IsTerminal, Write};

use super::{
    client::change,
    failure::{Code, Failure},
    find::Place,
    progress::Teller,
    screen::{Screen, visible_lines},
    settle,
    words::{Apps, Waiting},
};
use crate::domain::api::Request;

/// Stop apps; they stay stopped until started by hand
#[derive(Debug, clap::Args)]
pub struct Stop {
    #[command(flatten)]
    apps: Apps,
    /// Also where it hurts other apps
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Stop {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        match self.ask(place, self.yes) {
            Err(failure) if failure.code == Code::Unconfirmed => {
                if agreed(&format!("{}\nStop all the same?", failure.message))? {
                    self.ask(place, true)
                } else {
                    Err(Failure::usage(format!("{}; nothing was stopped, -y stops all the same", failure.message)))
                }
            }
            done => done,
        }
    }

    fn ask(&self, place: &Place, confirmed: bool) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let mut teller = Teller::default();
        let request = Request::Stop { apps: self.apps.targets(), confirmed };
        let reply = change(place, &mut screen, request, &self.waiting, |screen, said| teller.tell(screen, said))?;
        settle(&mut screen, reply)
    }
}

/// Asks whoever sits at the terminal; without one nobody agrees.
pub fn agreed(question: &str) -> io::Result<bool> {
    let (stdin, mut stderr) = (io::stdin(), io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Ok(false);
    }
    write!(stderr, "{} [y/N] ", visible_lines(question))?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
