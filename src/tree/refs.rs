//! Which refs are deployed, and where the mirror has them. A branch and a tag may have one name: refs
//! are always full names here.

use super::{
    TreeError,
    git::{self, is_ref_name},
    mirror::Mirror,
};
use crate::domain::{api::Wanted, model::Glob};

pub(super) const HEADS: &str = "refs/heads/";
pub(super) const TAGS: &str = "refs/tags/";
/// Where the remote's branches are in the mirror; its tags are where they are there.
pub(super) const MIRRORED: &str = "refs/remotes/origin/";

/// The mirror's name of one of the remote's refs.
pub(super) fn mirrored(full: &str) -> String {
    full.strip_prefix(HEADS).map_or_else(|| full.to_owned(), |name| format!("{MIRRORED}{name}"))
}

/// The remote's name of one of the mirror's refs.
pub(super) fn remote_name(mirrored: &str) -> String {
    mirrored.strip_prefix(MIRRORED).map_or_else(|| mirrored.to_owned(), |name| format!("{HEADS}{name}"))
}

/// Brings a ref, or all that fit where it ends in a `*`, whatever it was before: a tag may move too.
pub(super) fn refspec(full: &str) -> String {
    format!("+{full}:{}", mirrored(full))
}

/// The refs that are deployed.
pub(super) struct Refs {
    branches: Branches,
    tags: Vec<Glob>,
}

enum Branches {
    Default(String),
    Globs(Vec<Glob>),
}

impl Refs {
    /// `default`: asks the remote for its default branch, where the config names no ref.
    pub(super) fn of(wanted: &Wanted, default: impl FnOnce() -> Result<String, TreeError>) -> Result<Self, TreeError> {
        let globs = |texts: &[String], what: &str| {
            let glob = |text: &String| {
                let glob = Glob::new(text).map_err(TreeError::Refused)?;
                let good = glob.single().is_none() || is_ref_name(text);
                if good { Ok(glob) } else { Err(TreeError::Refused(format!("{text:?} is no name of a {what}"))) }
            };
            texts.iter().map(glob).collect::<Result<Vec<_>, _>>()
        };
        let branches = if wanted.branches.is_empty() && wanted.tags.is_empty() {
            Branches::Default(default()?)
        } else {
            Branches::Globs(globs(&wanted.branches, "branch")?)
        };
        Ok(Self { branches, tags: globs(&wanted.tags, "tag")? })
    }

    pub(super) fn fit(&self, full: &str) -> bool {
        match (full.strip_prefix(HEADS), full.strip_prefix(TAGS)) {
            (Some(name), _) => match &self.branches {
                Branches::Default(default) => default == name,
                Branches::Globs(globs) => globs.iter().any(|glob| glob.fits(name)),
            },
            (_, Some(name)) => self.tags.iter().any(|glob| glob.fits(name)),
            _ => false,
        }
    }

    /// Why this ref is not deployed.
    pub(super) fn judge(&self, full: &str) -> Result<(), String> {
        let (kind, name) = match (full.strip_prefix(HEADS), full.strip_prefix(TAGS)) {
            (Some(name), _) if is_ref_name(name) => ("branch", name),
            (_, Some(name)) if is_ref_name(name) => ("tag", name),
            _ => return Err(format!("{full:?} is no branch and no tag")),
        };
        if self.fit(full) {
            return Ok(());
        }
        Err(match &self.branches {
            Branches::Default(default) if kind == "branch" => {
                format!("branch {name:?} is not deployed: the repository's default branch is {default:?}")
            }
            _ => format!("{kind} {name:?} is not deployed"),
        })
    }

    /// The one branch that is meant when no commit of another was asked for.
    pub(super) fn meant(&self, wanted: &Wanted) -> Result<String, TreeError> {
        if let Some(full) = &wanted.ref_name {
            return Ok(full.clone());
        }
        let only = match &self.branches {
            Branches::Default(name) => Some(name.as_str()),
            Branches::Globs(globs) => match &globs[..] {
                [only] => only.single(),
                _ => None,
            },
        };
        let why = "`on` names no single branch: name a branch, a tag or a commit with --rev";
        only.map(|name| format!("{HEADS}{name}")).ok_or_else(|| TreeError::Refused(why.into()))
    }

    /// What to fetch so that every ref that is deployed is there. Of a glob what its names begin with
    /// counts: what comes along too much is never looked at.
    pub(super) fn refspecs(&self) -> Vec<String> {
        let spec = |space: &str, glob: &Glob| match glob.single() {
            Some(name) => refspec(&format!("{space}{name}")),
            None => refspec(&format!("{space}{}*", glob.prefix())),
        };
        // A tag need not be there yet: with the `*` that is no error.
        let tags = self.tags.iter().map(|glob| refspec(&format!("{TAGS}{}*", glob.prefix())));
        match &self.branches {
            Branches::Default(name) => tags.chain([refspec(&format!("{HEADS}{name}"))]).collect(),
            Branches::Globs(globs) => tags.chain(globs.iter().map(|glob| spec(HEADS, glob))).collect(),
        }
    }
}

/// What a remote says of its `HEAD`.
pub(super) fn default_branch(mirror: &Mirror, repo: &str) -> Result<String, TreeError> {
    let listed = super::fetch::remote(mirror, repo, &["ls-remote", "--quiet", "--symref", "--", repo, "HEAD"])?;
    let target = listed.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
    target.and_then(|name| name.strip_prefix(HEADS)).filter(|name| is_ref_name(name)).map(str::to_owned).ok_or_else(
        || {
            let shown = git::shown(repo);
            TreeError::Refused(format!(
                "{shown} has no default branch: push a first commit, or name a branch, `on: [Push(branch: \"main\")]`"
            ))
        },
    )
}
