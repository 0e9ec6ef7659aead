use super::{
    failure::{Code, Failure},
    screen::Screen,
};
use crate::os::cgroup;

/// Make the cgroup of a unit fit for its next main process: for `ExecStopPost` of the systemd unit
#[derive(Debug, clap::Args)]
pub struct CgroupRelease {}

impl CgroupRelease {
    pub fn run() -> Result<(), Failure> {
        let mut screen = Screen::stdout();
        let released = cgroup::release().map_err(|why| Failure::new(Code::Failed, why))?;
        for (group, given) in released {
            let (group, given) = (group.display(), given.join(", "));
            screen.line(&format!("cgroup {group} hands down nothing any more; it was {given}"))?;
        }
        Ok(screen.flush()?)
    }
}
