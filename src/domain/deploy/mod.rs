//! The life of a deploy: which one runs when, what it does next, and what becomes of it. DESIGN.md
//! section 7.
//!
//! [`Deploys`] takes [`Event`]s and the time, and gives back [`Action`]s, which the shell carries out
//! and answers with events. It runs nothing and reads nothing itself; how an app is replaced is
//! decided in `service`, what a commit is worth by the tree helper, which has the repository.
//!
//! Each step is persisted and acted on only when that is durable: so whatever a crash leaves behind
//! was announced before, and [`resume`] knows what to do with it.

pub mod accept;
mod freeze;
mod pipeline;
pub mod preview;
mod queue;
mod record;
mod status;
mod task;
#[cfg(test)]
mod tests;

pub use freeze::Freeze;
pub use queue::Deploys;
pub use record::{Found, Resumption, resume};
pub use status::{status, statuses};

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use crate::domain::{
    api::{By, DeployView, TreeTask, Wanted},
    config::{self, Trigger},
    model::{AppName, CommitId, DeployId, Exit, ReleaseId},
};

/// Which refs an app's deploys come from; `ref_name`: the one that is meant.
#[must_use]
pub fn wanted(deploy: &config::Deploy, ref_name: Option<String>) -> Wanted {
    let mut wanted = Wanted { branches: Vec::new(), tags: Vec::new(), ref_name };
    for trigger in &deploy.on {
        let (list, glob) = match trigger {
            Trigger::Push(glob) | Trigger::Pipeline(glob) => (&mut wanted.branches, glob.as_str()),
            Trigger::Tag(glob) => (&mut wanted.tags, glob.as_str()),
            Trigger::Release => (&mut wanted.tags, "**"),
        };
        if !list.iter().any(|known| known == glob) {
            list.push(glob.to_owned());
        }
    }
    wanted
}

/// A deploy that is to be run, as it stands in the store.
#[derive(Debug, Clone)]
pub struct Queued {
    /// Where `release` names one that another deploy made, this is a rollback to it: `commit` is its
    /// commit, and nothing is fetched, checked or built.
    pub view: DeployView,
    /// How often it was started before.
    pub attempts: u32,
    /// By hand: what a person named instead of a commit.
    pub rev: Option<String>,
    /// The number by which it stands in the line where that is not its own: of the one that it repeats.
    pub since: Option<DeployId>,
    /// The app as it was configured then: the deploy keeps it over reloads.
    pub app: Arc<config::App>,
    pub places: Places,
}

impl Queued {
    /// Does it go back to a release that another deploy made?
    #[must_use]
    pub fn is_rollback(&self) -> bool {
        self.view.release.as_ref().is_some_and(|release| release.deploy != self.view.id)
    }

    /// Of two, the one with the higher rank was asked for later.
    fn rank(&self) -> DeployId {
        self.since.unwrap_or(self.view.id)
    }

    /// Must somebody let it start? What a deployer asks for needs nobody else.
    fn is_gated(&self) -> bool {
        self.app.deploy.as_ref().is_some_and(|deploy| deploy.approve) && !self.view.by.is_person()
    }

    fn needs_approval(&self) -> bool {
        self.is_gated() && self.view.approved_by.is_none()
    }

    /// Has somebody let it switch, though it cannot be taken back then? Who only let it start has not.
    fn may_switch(&self) -> bool {
        self.view.approved_by.is_some() && !self.is_gated()
    }
}

/// The folders that a deploy works in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `mirrors/<hash>.git`, the fetch user's.
    pub mirror: PathBuf,
    /// `apps/<app>`, which holds `releases/` and `shared/`.
    pub app: PathBuf,
}

impl Places {
    fn release(&self, release: &ReleaseId) -> PathBuf {
        self.app.join("releases").join(release.to_string())
    }
}

/// What the file `live` of an app names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    pub release: ReleaseId,
    pub commit: CommitId,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A deploy was stored as queued.
    Queue(Box<Queued>),
    /// The deploys that the last supervisor left unfinished, oldest first: all of them are in the line
    /// before one starts.
    Resume(Vec<Queued>),
    /// What is live of this app; told at the start, later known from [`Event::LiveWritten`].
    Live { app: AppName, live: Option<Live> },
    /// May this app's deploys start? Until told, those of an app with `after` may not.
    Gate { app: AppName, open: bool },
    /// Nothing of this app starts but a rollback, until it is told otherwise; told at the start too.
    Freeze { app: AppName, freeze: Option<Freeze> },
    /// One [`Action::Persist`] of this deploy is durable. Each is answered, in order.
    Committed { deploy: DeployId },
    /// The job of [`Action::Run`] has ended, and nothing is left of its tree.
    JobEnded { deploy: DeployId, end: JobEnd },
    /// Answers [`Action::MakeRelease`]: the folder is there, or a sentence why not.
    ReleaseMade { deploy: DeployId, result: Result<PathBuf, String> },
    /// The new release's instances are started: it is being proven from here on. Not told where
    /// nothing runs.
    Switched { deploy: DeployId },
    /// Answers [`Action::StartTrial`]: the release is proven (with a note where nothing was started,
    /// `not running`), or a sentence why not; the service then goes back by itself.
    Trial { deploy: DeployId, result: Result<Option<String>, String> },
    /// Answers [`Action::WriteLive`].
    LiveWritten { deploy: DeployId, result: Result<(), String> },
    /// End it, unless it switches already.
    Cancel { deploy: DeployId, why: String },
    /// A person lets one go on that awaits approval.
    Approve { deploy: DeployId, by: By },
    /// A reload changed the app: what waits is deployed by the new config, what has not switched yet
    /// begins anew with it. From another repository comes nothing that was asked for before.
    Reconfigure { app: Arc<config::App>, places: Places },
    /// A reload removed the app: its deploys end, but one that switches already goes on.
    Forget { app: AppName },
    /// Start nothing more. What has not switched goes back into the queue, and so does what is being
    /// proven: the service stops everything anyway, and the old release is still the live one.
    Shutdown,
    /// The moment of [`Deploys::deadline`] has come.
    Timer,
}

/// How a job ended.
#[derive(Debug, Clone)]
pub struct JobEnd {
    pub exit: Exit,
    /// It could not even be started: why.
    pub error: Option<String>,
    /// What the tree helper wrote to its result descriptor; empty for steps.
    pub answer: Vec<u8>,
    /// Of what did not succeed, the last lines that it wrote to stderr: of the helper, the last one is why.
    pub last_lines: Vec<String>,
}

/// What is to be done, in this order.
#[derive(Debug, Clone)]
pub enum Action {
    /// Store this; answered by [`Event::Committed`].
    Persist { view: Box<DeployView>, attempts: u32 },
    /// A fetch follows once what was persisted is durable: whatever can be ready for it may be by then.
    Expect { deploy: DeployId },
    /// Run a job; answered by [`Event::JobEnded`]. One at a time per deploy.
    Run { deploy: DeployId, job: Job },
    /// End the tree of the job that runs; its end is told as ever.
    EndJob { deploy: DeployId },
    /// Add a line to the deploy's log; a trouble is told where its team looks as well.
    Note { deploy: DeployId, app: AppName, line: String, trouble: bool },
    /// Look for free space and make the release's folder, the app's user's; an empty one of that name
    /// is as good. Answered by [`Event::ReleaseMade`].
    MakeRelease { deploy: DeployId, app: AppName, release: ReleaseId, needs_bytes: u64 },
    /// Replace the app's instances by ones of this release and prove them, `settle` included.
    /// `stands`: it cannot be taken back, so nothing goes back where it fails, over a crash of ours too.
    /// Answered by [`Event::Trial`], at once where nothing is to run.
    StartTrial { deploy: DeployId, app: AppName, release: ReleaseId, commit: CommitId, settle: Duration, stands: bool },
    /// Write the file `live` durably, then switch `current`; answered by [`Event::LiveWritten`].
    WriteLive { deploy: DeployId, app: AppName, release: ReleaseId, commit: CommitId },
    /// Run what `live` names: it could not be written for a proven release, or somebody decided about one
    /// that was not.
    RunLive { deploy: DeployId, app: AppName },
    /// Remove a release that never was live, once nothing runs from it.
    RemoveRelease { app: AppName, release: ReleaseId },
    /// Remove releases that were live, but the newest `keep` and whatever runs.
    Prune { app: AppName, keep: u32 },
    /// A reload ends this one: queue another deploy of the same. Comes before its end is recorded, so
    /// that no crash loses it.
    Anew(Box<Queued>),
    /// The fetch knows how many commits these are behind the tip of their ref.
    Behind { app: AppName, behind: BTreeMap<CommitId, u64> },
    /// This deploy has ended: for whoever waits.
    Ended(Box<DeployView>),
}

/// One process of a deploy.
#[derive(Debug, Clone)]
pub enum Job {
    /// The tree helper.
    Tree { task: TreeTask, who: Who },
    /// A command for `/bin/sh -e -c` in the release, as the app's user.
    Step { kind: StepKind, run: String },
}

/// Whom the tree helper runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    FetchUser,
    AppUser,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    Check,
    Build,
    BeforeSwitch,
    AfterLive,
    OnFailure,
}

impl StepKind {
    /// As in a deploy's steps, and in the config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Build => "build",
            Self::BeforeSwitch => "before_switch",
            Self::AfterLive => "after_live",
            Self::OnFailure => "on_failure",
        }
    }
}
