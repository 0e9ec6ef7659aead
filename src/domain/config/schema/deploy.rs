//! How an app is deployed: from where, when, by which steps.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::SecretRef;
use crate::domain::{
    config::{Dialect, Status},
    model::Glob,
};

/// How an app gets new commits.
#[derive(Debug, Clone)]
pub struct Deploy {
    /// URL, or absolute path.
    pub repo: String,
    pub access: Access,
    pub layout: Layout,
    /// Empty: the remote's default branch.
    pub on: Vec<Trigger>,
    /// Patterns of [`Globs::of_paths`]: only where such a file differs from what is live.
    pub paths: Vec<String>,
    /// Patterns of [`Globs::of_people`]: only where one of these wrote something that is not live.
    pub authors: Vec<String>,
    pub track: Track,
    /// How often the branch is looked at without being told.
    pub poll: Option<Duration>,
    pub secret: Option<SecretRef>,
    pub previous_secret: Option<SecretRef>,
    /// Whose webhooks are taken; `None`: of whoever is known by its headers.
    pub dialect: Option<Dialect>,
    pub check: Vec<Step>,
    pub build: Vec<Step>,
    /// The last ones before the release's instances are started.
    pub before_switch: Vec<Step>,
    /// Once the release is live, which their failure does not change.
    pub after_live: Vec<Step>,
    /// Once a deploy has failed or was rolled back.
    pub on_failure: Vec<Step>,
    /// The steps' own variables.
    pub env: BTreeMap<String, String>,
    /// Names of the app's variables that its steps have as well.
    pub env_from: Vec<String>,
    /// Paths inside a release, relative, no `..`, that are links into `shared/`; a folder where one
    /// ends in a slash.
    pub shared: Vec<PathBuf>,
    /// Folders inside a release, relative, no `..`, in which files of the releases before stay reachable.
    pub bridge: Vec<PathBuf>,
    /// Limit of a whole deploy up to the switch, and of each step that names none.
    pub timeout: Duration,
    /// How long a new release must stay healthy after it was ready.
    pub settle: Duration,
    /// What no person asked for awaits the approval of one.
    pub approve: bool,
    /// Patterns over files: where one that fits differs from what is live, somebody is asked before the switch.
    pub irreversible: Vec<String>,
    /// Whom it is told to.
    pub status: Option<Status>,
}

/// Where commits are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Each into a folder of its own; so many of those that were live are kept.
    Releases { keep: u32 },
    /// All into this working tree, which the app's user owns. Absolute.
    InPlace(PathBuf),
}

/// What proves us to a remote, and a remote to us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    pub ssh_key: Option<SecretRef>,
    /// Type and key of each that the host may have; empty: as the machine's known_hosts say.
    pub host_key: Vec<String>,
    pub https_token: Option<HttpsToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsToken {
    pub user: String,
    pub token: SecretRef,
}

/// What starts a deploy. Names are those after `refs/heads/` or `refs/tags/`, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// A push to a branch.
    Push(Glob),
    /// A tag that is made or moved.
    Tag(Glob),
    /// A release that the forge publishes, of whatever tag.
    Release,
    /// A pipeline at the forge that succeeds for a branch.
    Pipeline(Glob),
}

/// Which commit of its ref a deploy takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Track {
    /// The one that was delivered.
    Commit,
    /// The newest at the time of the fetch.
    Head,
}

impl Deploy {
    /// The working tree that every commit is put into.
    #[must_use]
    pub fn tree(&self) -> Option<&Path> {
        match &self.layout {
            Layout::InPlace(tree) => Some(tree),
            Layout::Releases { .. } => None,
        }
    }

    /// Releases that were live and stay. None of them holds what a working tree has by now.
    #[must_use]
    pub fn kept(&self) -> u32 {
        match &self.layout {
            Layout::Releases { keep } => *keep,
            Layout::InPlace(_) => 1,
        }
    }

    /// The one branch that `on` names; `None`: none, several, or the remote's default branch.
    #[must_use]
    pub fn branch(&self) -> Option<&str> {
        let mut branches = self.on.iter().filter_map(|trigger| match trigger {
            Trigger::Push(glob) | Trigger::Pipeline(glob) => Some(glob),
            Trigger::Tag(_) | Trigger::Release => None,
        });
        let first = branches.next()?.single()?;
        branches.all(|other| other.as_str() == first).then_some(first)
    }

    /// Why its branch is not looked at without being told: there is no single one, or not every commit
    /// of it may be deployed. Such an app has no first deploy either.
    #[must_use]
    pub fn unlooked(&self) -> Option<&'static str> {
        if self.on.is_empty() {
            return None;
        }
        let Some(branch) = self.branch() else { return Some("`on` names no single branch") };
        (!self.takes_every(&format!("refs/heads/{branch}"))).then_some("`on` asks for a pipeline that succeeds")
    }

    /// Is any commit of this ref deployed, whatever became of its pipeline?
    #[must_use]
    pub fn takes_every(&self, ref_name: &str) -> bool {
        let branch = ref_name.strip_prefix("refs/heads/");
        let fits = |trigger: &Trigger| match trigger {
            Trigger::Push(glob) => branch.is_some_and(|name| glob.fits(name)),
            Trigger::Tag(_) | Trigger::Release => branch.is_none(),
            Trigger::Pipeline(_) => false,
        };
        self.on.is_empty() || self.on.iter().any(fits)
    }
}

impl PartialEq for Deploy {
    fn eq(&self, other: &Self) -> bool {
        let key = |d: &Self| {
            // As they are written: a slash at the end makes a difference here, and none to a path.
            let shared: Vec<_> = d.shared.iter().map(|path| path.clone().into_os_string()).collect();
            (
                (d.repo.clone(), d.access.clone(), d.layout.clone()),
                (d.secret.clone(), d.previous_secret.clone(), d.dialect.clone()),
                (
                    [&d.check, &d.build, &d.before_switch, &d.after_live, &d.on_failure].map(Clone::clone),
                    (d.env.clone(), d.env_from.clone()),
                    shared,
                    d.timeout,
                    d.settle,
                    d.approve,
                    d.irreversible.clone(),
                ),
            )
        };
        let which = |d: &Self| (d.on.clone(), d.paths.clone(), d.authors.clone(), d.track, d.poll);
        let rest = self.bridge == other.bridge && self.status == other.status;
        rest && which(self) == which(other) && key(self) == key(other)
    }
}

/// One command of a team in its deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// For `/bin/sh -e -c`.
    pub run: String,
    /// Shown instead of the command; `None`: the command.
    pub name: Option<String>,
    /// Patterns of [`Globs::of_paths`]: only where such a file differs from what is live; empty: always.
    pub changed: Vec<String>,
    pub timeout: Option<Duration>,
}

impl Step {
    /// What it is called.
    #[must_use]
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.run)
    }
}
