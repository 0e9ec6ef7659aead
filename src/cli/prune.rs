use super::{
    client::change,
    failure::Failure,
    find::Place,
    screen::Screen,
    settle,
    stop::agreed,
    words::{Waiting, bytes},
};
use crate::domain::api::{Remains, Reply, Request};

/// Remove the files of apps that the config has no more
#[derive(Debug, clap::Args)]
pub struct Prune {
    /// Without asking
    #[arg(short, long)]
    yes: bool,
}

impl Prune {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let Reply::Remains(remains) = ask(place, &mut screen, None)? else { return Err(super::client::strange()) };
        if remains.is_empty() {
            screen.line("nothing is left of apps that are gone")?;
            return Ok(screen.flush()?);
        }
        for Remains { path, size_bytes } in &remains {
            screen.line(&format!("{:>9}  {}", bytes(*size_bytes), path.display()))?;
        }
        let all = remains.iter().map(|one| one.size_bytes).sum();
        screen.line(&format!("{:>9}  of apps that the config has no more", bytes(all)))?;
        screen.flush()?;
        if !self.yes && !agreed("Remove all of it?")? {
            return Err(Failure::usage("nothing was removed; -y removes without asking".to_owned()));
        }
        let paths = remains.into_iter().map(|one| one.path).collect();
        let reply = ask(place, &mut screen, Some(paths))?;
        settle(&mut screen, reply)
    }
}

fn ask(place: &Place, screen: &mut Screen, paths: Option<Vec<std::path::PathBuf>>) -> Result<Reply, Failure> {
    change(place, screen, Request::Prune { paths }, &Waiting { no_wait: false, timeout: None }, |_, _| Ok(()))
}
