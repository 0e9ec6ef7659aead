use super::{deploy::carry_out, failure::Failure, find::Place, words::Waiting};
use crate::domain::{api::Request, model::DeployId};

/// Let a deploy go on that awaits approval
#[derive(Debug, clap::Args)]
pub struct Approve {
    /// The deploy's number; `everhook history` shows it
    id: DeployId,
    #[command(flatten)]
    waiting: Waiting,
}

impl Approve {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        carry_out(place, Request::Approve { id: self.id }, &self.waiting)
    }
}
