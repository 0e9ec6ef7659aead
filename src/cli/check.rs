use super::{
    client::look,
    failure::{Code, Failure},
    find::{Place, load},
    screen::{Screen, complain, visible_lines},
    settle,
};
use crate::{
    domain::{
        api::Request,
        config::{Severity, describe},
    },
    os::clock,
};

/// What is wrong in the config, with place and fix; delays and warnings
#[derive(Debug, clap::Args)]
pub struct Check {
    /// What a reload would do to whom; asks the supervisor
    #[arg(long)]
    diff: bool,
}

impl Check {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let path = place.config()?;
        let loaded = load(&path).map_err(|faults| Failure::new(Code::Failed, faults))?;
        let mut screen = Screen::stdout();
        if self.diff {
            let reply = look(place, &mut screen, Request::Plan)?;
            return settle(&mut screen, reply);
        }
        loaded.warnings.iter().for_each(|finding| complain(&finding.to_string()));
        for line in describe(&loaded.config, clock::now().wall) {
            screen.line(&visible_lines(&line))?;
        }
        let mut lame = loaded.warnings.iter().filter_map(|finding| match &finding.severity {
            Severity::AppProblem(app) => Some(app.as_str()),
            _ => None,
        });
        let name = path.display();
        if let Some(first) = lame.next() {
            let apps = lame.fold(first.to_owned(), |apps, app| format!("{apps}, {app}"));
            screen.flush()?;
            return Err(Failure::new(
                Code::Failed,
                format!("{name} can be applied, but these apps cannot run: {apps}"),
            ));
        }
        screen.line(&format!("{name} is good"))?;
        Ok(screen.flush()?)
    }
}
