//! What the machine knows and the core may ask: handed in as functions, so that the core stays pure.

use std::path::{Path, PathBuf};

/// A row of the user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// `None` for a bare number that no row has.
    pub name: Option<String>,
    pub uid: u32,
    pub gid: u32,
    pub home: PathBuf,
    pub shell: PathBuf,
    /// All groups of the account, `gid` included.
    pub groups: Vec<u32>,
}

/// A row of the group database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub name: Option<String>,
    pub gid: u32,
}

/// Files and what they say.
pub type Texts = Vec<(PathBuf, String)>;

/// Questions to the machine. `os::facts()` answers them truly, tests as they like.
#[derive(Clone, Copy)]
pub struct Facts {
    /// Effective uid of this process.
    pub uid: u32,
    /// Looks up a user by name or number.
    pub user: fn(&str) -> Option<Account>,
    /// Looks up a group by name or number.
    pub group: fn(&str) -> Option<Group>,
    /// Is this a directory? `None`: nothing is there.
    pub is_directory: fn(&Path) -> Option<bool>,
    /// What surely keeps a user with this uid, gid and groups from entering a directory, or from executing a file.
    pub closed: fn(&Path, u32, u32, &[u32]) -> Option<PathBuf>,
    /// Does this program exist and may it be executed (a name is looked for in the fixed PATH)?
    pub is_program: fn(&str) -> bool,
    /// Can a tree's `memory`, `cpu` or `tasks` be limited here; else why not.
    pub can_limit: fn(&str) -> Result<(), String>,
    /// The files whose paths fit a glob, in order, and their texts; that nothing fits is no error unless
    /// the glob is a plain path.
    pub matching: fn(&Path) -> Result<Texts, String>,
    /// A time zone by its name, the machine's own without one.
    pub zone: fn(Option<&str>) -> Option<jiff::tz::TimeZone>,
}
