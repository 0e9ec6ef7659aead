use std::{io, os::fd::AsFd};

use super::{
    client::{Client, strange},
    failure::{Code, Failure},
    find::Place,
    screen::Screen,
    words::target,
};
use crate::domain::{
    api::{Reply, Request, Saying, Target},
    model::Exit,
};

/// Run a command as an app: its user, directory and environment
#[derive(Debug, clap::Args)]
#[command(after_help = "Ends with the command's exit code. When this ends, so does the command.")]
pub struct Exec {
    /// App (blog) or instance (blog.2)
    #[arg(value_name = "APP", value_parser = target)]
    app: Target,
    /// The command and its arguments, after --
    #[arg(value_name = "CMD", last = true, required = true)]
    command: Vec<String>,
}

impl Exec {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut client = Client::connect(place)?;
        let copied = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let streams = [copied(io::stdin().as_fd()), copied(io::stdout().as_fd()), copied(io::stderr().as_fd())];
        let streams = streams.into_iter().collect::<io::Result<Vec<_>>>();
        let streams = streams.map_err(|e| Failure::new(Code::Failed, format!("cannot pass the streams on: {e}")))?;
        client.ask_with(Request::Exec { app: self.app.clone(), command: self.command.clone() }, streams, None);
        let Saying::Done(Reply::Exited { exit }) = client.hear(&mut Screen::stdout())? else { return Err(strange()) };
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) => Err(Failure::new(Code::Of(u8::try_from(code).unwrap_or(1)), "")),
            // As shells report it.
            Exit::Signal(_) | Exit::OutOfMemory => {
                let code = exit.signal().and_then(|signal| u8::try_from(128 + signal).ok()).unwrap_or(1);
                Err(Failure::new(Code::Of(code), exit.to_string()))
            }
            Exit::Unknown => Err(Failure::new(Code::Failed, "how it ended is not known")),
        }
    }
}
