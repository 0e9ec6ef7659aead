use super::{
    client::{change, look},
    failure::{Code, Failure},
    find::Place,
    logs,
    progress::Teller,
    screen::{Screen, complain},
    settle,
    words::{Apps, Waiting},
};
use crate::domain::api::{InstanceState, LogsRequest, Reply, Request, Target};

/// Last lines of each stream shown after a start that failed.
const LAST_WORDS: u32 = 10;

/// Start apps that were stopped or have failed
#[derive(Debug, clap::Args)]
pub struct Start {
    #[command(flatten)]
    apps: Apps,
    #[command(flatten)]
    waiting: Waiting,
}

impl Start {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let apps = self.apps.targets();
        bring_up(place, Request::Start { apps: apps.clone() }, &apps, &self.waiting)
    }
}

/// For `start` and `restart`: when an app does not come up, the cause and its last log lines.
///
/// # Errors
/// As the supervisor says.
pub fn bring_up(place: &Place, request: Request, apps: &[Target], waiting: &Waiting) -> Result<(), Failure> {
    let mut screen = Screen::stdout();
    let mut teller = Teller::default();
    match change(place, &mut screen, request, waiting, |screen, said| teller.tell(screen, said)) {
        Ok(reply) => settle(&mut screen, reply),
        Err(failure) => {
            if failure.code == Code::Failed {
                screen.flush()?;
                // They only help to understand the failure, which is told in any case.
                let _ = last_words(place, &mut screen, apps);
            }
            Err(failure)
        }
    }
}

fn last_words(place: &Place, screen: &mut Screen, targets: &[Target]) -> Result<(), Failure> {
    let Reply::Status(status) = look(place, screen, Request::Status { apps: targets.to_vec() })? else { return Ok(()) };
    let down = |state| matches!(state, InstanceState::Failed | InstanceState::Backoff | InstanceState::Starting);
    let instances = status.apps.iter().flat_map(|app| &app.instances).filter(|one| down(one.state));
    let apps: Vec<Target> = instances.map(|one| Target::Instance(one.name.clone())).collect();
    // Where one was to take over and did not, its words stand among those of the one that runs on.
    let apps = if apps.is_empty() { targets.to_vec() } else { apps };
    let request = LogsRequest { apps, n: Some(LAST_WORDS), ..LogsRequest::default() };
    logs::read(place, screen, request, |_, line| {
        complain(&format!("{} | {}", line.instance, line.line));
        Ok(())
    })
}
