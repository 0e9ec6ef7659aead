use super::{deploy::carry_out, failure::Failure, find::Place, preview::preview, words::Waiting};
use crate::domain::{
    api::Request,
    model::{AppName, ReleaseId},
};

/// Go back to the release before, or to the one that is named
#[derive(Debug, clap::Args)]
pub struct Rollback {
    app: AppName,
    /// Such as 7-1a2b3c4; `everhook history` shows what was live
    #[arg(long, value_name = "RELEASE")]
    to: Option<ReleaseId>,
    /// Change nothing: show what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    waiting: Waiting,
}

impl Rollback {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let request = Request::Rollback { app: self.app.clone(), to: self.to.clone(), dry_run: self.dry_run };
        if self.dry_run {
            return preview(place, request, self.waiting.timeout);
        }
        carry_out(place, request, &self.waiting)
    }
}
