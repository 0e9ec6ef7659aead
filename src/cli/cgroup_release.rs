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
        if let Some((group, given)) = released {
            screen.line(&format!(
                "cgroup {} hands down nothing any more; it was {}",
                group.display(),
                given.join(", ")
            ))?;
        }
        Ok(screen.flush()?)
    }
}
