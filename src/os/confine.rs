//! What a command of a deploy gives up before it begins: the files of others, signals to others, and its
//! turn before others at the disk. What internal processes give up stands in [`super::sandbox`].

use std::{io, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

/// Files and folders, with all below them, that a confined process may open.
#[derive(Debug)]
pub struct Reach {
    /// And execute.
    pub reads: Vec<PathBuf>,
    /// And read and execute.
    pub writes: Vec<PathBuf>,
}

/// Gives up every other file, and signals to whoever is not confined with us. What is not there is no
/// error. Whether it holds: not where the kernel has no Landlock, or the first version of it, with which
/// nothing can be moved from one folder to another.
///
/// # Errors
/// When the kernel has it and refuses.
pub fn confine(reach: &Reach) -> Result<bool, RulesetError> {
    let (all, read) = (AccessFs::from_all(ABI::V3), AccessFs::from_read(ABI::V3));
    let confined = Ruleset::default()
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::from_all(ABI::V2))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .scope(Scope::Signal)?
        .create()?
        .add_rules(path_beneath_rules(&reach.reads, read))?
        .add_rules(path_beneath_rules(&reach.writes, all))?
        .restrict_self()?;
    Ok(confined.ruleset != RulesetStatus::NotEnforced)
}

/// What we read and write comes after everybody else's.
///
/// # Errors
/// `EINVAL` where the kernel knows no such priorities.
pub fn idle_io() -> io::Result<()> {
    // ioprio_set(2), which has no wrapper: this process, the class `idle`.
    const WHO_PROCESS: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    // SAFETY: the call takes numbers alone.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, IDLE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
