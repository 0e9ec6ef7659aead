//! Starting processes without a copy of anything: DESIGN.md section 5, "Spawning".

use std::{
    ffi::CString,
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
    sync::Arc,
};

/// Whom the child becomes. Absent: whoever we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Everything about a process that is to be started. Nothing of the supervisor's environment,
/// descriptors, dispositions or mask reaches it but what stands here.
#[derive(Debug, Clone)]
pub struct SpawnSpec {
    /// The file to execute, absolute (or `/proc/self/exe`).
    pub program: CString,
    pub args: Vec<CString>,
    /// `NAME=value`.
    pub env: Vec<CString>,
    /// Entered as the child's user.
    pub directory: PathBuf,
    pub credentials: Option<Credentials>,
    /// Descriptors of the child: `(ours, its number)`. Numbers not named are closed.
    pub fds: Vec<(Arc<OwnedFd>, RawFd)>,
    /// Folder of a cgroup v2 to be born in.
    pub cgroup: Option<Arc<OwnedFd>>,
    /// A file that the child writes its run record into before exec, from offset 0; see [`RunRecord`].
    pub record: Option<Arc<OwnedFd>>,
    /// Die with the thread that spawned (jobs and internal processes).
    pub die_with_parent: bool,
    pub no_new_privs: bool,
    /// Drop every capability and the bounding set (internal processes).
    pub no_capabilities: bool,
    pub umask: u32,
    pub nice: i32,
    pub oom_score_adj: i32,
    /// `(resource, soft, hard)`.
    pub rlimits: Vec<(u32, u64, u64)>,
}
