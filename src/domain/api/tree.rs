//! What the tree helper is asked to do, as JSON on its command line, and what it answers, as JSON
//! on the descriptor that [`RESULT_FD`] names. Exit 0: an answer is there; anything else: the last
//! lines of stderr say why. One that [`READS_TASKS`] does one after the other, and says there how far it is.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::domain::model::{CommitId, DeployId};

/// Where the helper writes its answer.
pub const RESULT_FD: i32 = 3;
/// It exits with this where a mirror does not hold what it should: another fetch may help.
pub const DAMAGED: u8 = 3;

/// `everhook tree -`: standard input is a socket, from which it reads its tasks, a line of JSON each, and on
/// which it says [`TreeWord`]s. It ends where no more comes, and at a task that cannot be done.
pub const READS_TASKS: &str = "-";

/// What a helper that reads its tasks says of the one that it does, in a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeWord {
    /// Little is left to be done by it itself.
    Begun,
    /// It is done, and this is the answer where there is one.
    Done(Option<Box<RawValue>>),
}

/// Names the folder, if any, that proves the helper to a remote and the remote to it, in these files.
pub const KEYS_VARIABLE: &str = "EVERHOOK_KEYS";
/// A private key for ssh.
pub const KEY_FILE: &str = "key";
/// The keys that the host may have, as known_hosts of sshd(8).
pub const HOSTS_FILE: &str = "hosts";
/// User and token for http, as git-credential(1) reads them.
pub const LOGIN_FILE: &str = "login";

/// `everhook tree '<this as JSON>'`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TreeTask {
    /// As the fetch user: bring the mirror up to date and judge what is asked for. Answer: [`Fetched`].
    Fetch(Box<Fetch>),
    /// As the fetch user: the remote's tip of a ref without fetching. Answer: [`Tip`].
    LsRemote { repo: String, mirror: PathBuf, wanted: Wanted, live: Option<CommitId> },
    /// As the fetch user: what lies between two commits of a mirror. Answer: [`Compared`].
    Compare { mirror: PathBuf, repo: String, from: Option<CommitId>, to: CommitId },
    /// As the fetch user: put together what many fetches brought, where that is due and nobody else
    /// works in the mirror. Answer: none.
    Tidy { mirror: PathBuf },
    /// As the app's user: fill `release` (made, empty, its own) from the mirror. Answer: none.
    Checkout { mirror: PathBuf, release: PathBuf, commit: CommitId },
    /// As the app's user: make `paths` in `release` links into `shared`, carrying over what the live
    /// release replaced by a file. Answer: none.
    Share { release: PathBuf, shared: PathBuf, previous: Option<PathBuf>, paths: Vec<PathBuf> },
    /// As the app's user: have the files below `paths` that `previous` has and `release` has not in that too,
    /// as long as they are of the last `keep` releases. Answer: none.
    Bridge { release: PathBuf, previous: PathBuf, shared: PathBuf, paths: Vec<PathBuf>, keep: u32 },
    /// As the app's user: bring its working tree to a commit. Where that fails the tree is as it was,
    /// unless it could not be brought back. Answer: none.
    Place(Box<Place>),
    /// As the app's user: note what its steps have changed of tracked files of the working tree, so that
    /// the next commit takes it back. Answer: none.
    Built { tree: PathBuf, mirror: PathBuf },
    /// As the app's user: flush the file system below `release`. Answer: none.
    Sync { release: PathBuf },
    /// As their owner: how much is below these folders. Answer: [`Measured`].
    Measure { paths: Vec<PathBuf> },
    /// As the app's user: remove everything in this folder (the folder itself is root's to remove). Answer: none.
    Empty { path: PathBuf },
    /// As the app's user, with the right to it: what is in these folders and their owner's becomes this user's.
    /// Answer: none.
    TakeOver { paths: Vec<PathBuf> },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fetch {
    pub deploy: DeployId,
    /// URL or absolute path.
    pub repo: String,
    /// A folder of the fetch user's; made into a bare repository when it is none.
    pub mirror: PathBuf,
    pub wanted: Wanted,
    /// The commit to judge; `None`: the tip.
    pub commit: Option<CommitId>,
    /// Others that were delivered before it: where one of them is newer, it is judged.
    pub also: Vec<CommitId>,
    /// By hand: any name or (short) commit of the allowed refs, instead of `commit`.
    pub rev: Option<String>,
    /// A person wants this commit, whatever is live.
    pub asked: bool,
    /// What is wrong with the mirror, which is thrown away first.
    pub damaged: Option<String>,
    /// What is live now.
    pub live: Option<CommitId>,
    /// Its folder, where the next one gets one of its own too.
    pub live_release: Option<PathBuf>,
    /// `None`: nothing keeps it from being deployed, since somebody asked for it or nothing is live.
    pub filters: Option<Filters>,
    /// Lists of patterns: of each, does a file that fits differ between what is live and the commit?
    pub changes: Vec<Vec<String>>,
}

/// What else must hold of a commit that nobody asked for: `paths` and `authors` of the config, none:
/// any; and that its message does not say `[skip deploy]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    pub paths: Vec<String>,
    pub authors: Vec<String>,
}

/// What folders hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    pub deploy: DeployId,
    /// Made a clone where it is missing or empty.
    pub tree: PathBuf,
    pub mirror: PathBuf,
    /// What such a clone is one of.
    pub repo: String,
    pub to: To,
    /// Do steps follow that may change something?
    pub builds: bool,
    /// Bytes that must be free there; nothing where it goes back, which no full disk is to prevent.
    pub needs_bytes: u64,
}

/// Where a working tree is brought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum To {
    /// By this full ref, whose branch the tree is on then; `None`: the one that it is on.
    Commit { commit: CommitId, ref_name: Option<String> },
    /// Back, after a deploy that came to nothing: to what is live, else to where the deploy found it.
    Back { live: Option<CommitId> },
}

/// Which refs are fetched and which one is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Globs of the config; without any of both it is the remote's default branch.
    pub branches: Vec<String>,
    pub tags: Vec<String>,
    /// The full ref that was pushed, `refs/heads/…`; `None`: the one branch that `branches` names.
    pub ref_name: Option<String>,
}

/// What a fetch found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetched {
    pub verdict: Verdict,
    /// The full ref.
    pub ref_name: String,
    pub commit: Option<CommitId>,
    pub subject: Option<String>,
    /// `Name <mail>`.
    pub author: Option<String>,
    /// Bytes of the commit's tree, and of all that the live release has become, for the free-space check.
    pub tree_bytes: Option<u64>,
    pub live_bytes: Option<u64>,
    /// How many commits this one, and what is live, are behind the tip of the ref, where that is known.
    pub behind: BTreeMap<CommitId, u64>,
    /// Answers [`Fetch::changes`], in their order: what differs, in a sentence; `None`: nothing. Empty where
    /// nothing is live, or the commit is not to be deployed.
    pub changes: Vec<Option<String>>,
}

/// DESIGN.md section 7, "what is deployed".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is the tip, or reachable from it and no ancestor of what is live.
    Deploy,
    /// It is what is live, or an ancestor of it.
    Older,
    /// It is not reachable from its ref any more.
    Gone,
    /// The ref is none that is deployed (the remote's default branch is another), or a filter keeps the
    /// commit back.
    NotWanted { reason: String },
}

/// What a release would bring, from one commit to another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Compared {
    /// The first commit is there to be compared with; else all of the second one counts.
    pub known: bool,
    /// The newest that are in the second and not in the first, newest first.
    pub commits: Vec<CommitView>,
    pub commits_total: u64,
    /// Commits of the first that are not in the second.
    pub taken_back: u64,
    /// The first paths, in order, that differ.
    pub files: Vec<String>,
    pub files_total: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CommitView {
    pub commit: CommitId,
    pub subject: String,
    /// `Name <mail>`.
    pub author: String,
}

/// A ref and where it points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    pub ref_name: String,
    pub commit: CommitId,
    /// How many commits `live` is behind it, where the mirror knows it already.
    pub behind: Option<u64>,
}
