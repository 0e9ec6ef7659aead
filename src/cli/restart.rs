use super::{
    failure::Failure,
    find::Place,
    start::bring_up,
    words::{Apps, Waiting},
};
use crate::domain::api::Request;

/// Stop apps and start them again; revives failed ones
#[derive(Debug, clap::Args)]
pub struct Restart {
    #[command(flatten)]
    apps: Apps,
    #[command(flatten)]
    waiting: Waiting,
}

impl Restart {
    pub fn run(&self, place: &Place) -> Result<(), Failure> {
        let apps = self.apps.targets();
        bring_up(place, Request::Restart { apps: apps.clone() }, &apps, &self.waiting)
    }
}
