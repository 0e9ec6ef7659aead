//! `everhook step '<JSON>'`: becomes one step of a deploy. As the app's user it gives up what a step may not
//! have, and then executes the shell, so that its main process is the command's own. DESIGN.md section 7,
//! "Steps".
//!
//! A step writes in its release, its app's `shared` and cache and in temporary folders; it opens no other
//! app's files and no secret, whoever these belong to; it reaches no process but its own. Kernels without
//! Landlock, or whose first version of it breaks renames between folders, leave it all that its user has.

use std::{
    fs,
    os::unix::{fs::DirBuilderExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use crate::{
    domain::api::StepTask,
    os::confine::{self, Reach},
};

/// What shells say of a command that cannot be executed.
const NOT_EXECUTED: u8 = 126;

/// Where programs put what is temporary whatever `TMPDIR` says, unless something that is hidden lies there.
const TEMPORARY: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// What is written to without a change on any disk.
const DEVICES: [&str; 7] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts"];

/// Becomes the step that the first argument describes.
#[must_use]
pub fn main(args: &[String]) -> ExitCode {
    let task: StepTask = match args.first().map(|text| serde_json::from_str(text)) {
        Some(Ok(task)) => task,
        _ => {
            eprintln!("everhook step: a part of everhook that is not called by hand");
            return ExitCode::from(2);
        }
    };
    make_tmp(&task.tmp);
    if let Err(error) = confine::idle_io() {
        eprintln!("everhook: its input and output have no low priority: {error}");
    }
    match confine::confine(&reach(&task)) {
        Ok(true) => {}
        Ok(false) => eprintln!("everhook: steps are not confined to their folders: this kernel's Landlock cannot"),
        Err(error) => {
            eprintln!("everhook: the step cannot be confined to its folders: {error}");
            return ExitCode::from(NOT_EXECUTED);
        }
    }
    let error = Command::new("/bin/sh").args(["-e", "-c", &task.run]).exec();
    eprintln!("everhook: /bin/sh: {error}");
    ExitCode::from(NOT_EXECUTED)
}

/// Makes the temporary folder; those of deploys that a crash ended go.
fn make_tmp(tmp: &Path) {
    let others = tmp.parent().and_then(|all| fs::read_dir(all).ok()).into_iter().flatten().flatten();
    for other in others.map(|entry| entry.path()).filter(|path| path != tmp) {
        // What cannot be removed is tried again by the next one.
        let _ = fs::remove_dir_all(other);
    }
    if let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(tmp) {
        eprintln!("everhook: {}: {error}", tmp.display());
    }
}

fn reach(task: &StepTask) -> Reach {
    // By their real names, as those who are hidden may lie behind links.
    let real = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let hidden: Vec<PathBuf> = task.hidden.iter().map(real).collect();
    let mut reads = task.reads.clone();
    around(Path::new("/"), &hidden, &mut reads);
    let free = |path: &&&str| !hidden.iter().any(|hidden| hidden.starts_with(**path));
    let common = TEMPORARY.iter().filter(free).chain(&DEVICES).map(PathBuf::from);
    let writes = task.writes.iter().cloned().chain([task.tmp.clone()]).chain(common).collect();
    Reach { reads, writes }
}

/// Adds all of `folder` but what is hidden. Links are no way around: what they lead to is found itself.
fn around(folder: &Path, hidden: &[PathBuf], found: &mut Vec<PathBuf>) {
    if hidden.iter().any(|hidden| hidden == folder) {
        return;
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(folder)) {
        found.push(folder.to_owned());
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
            around(&entry.path(), hidden, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_what_is_hidden_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(folder.path()).unwrap();
        for path in ["a/secret", "a/b/c", "d"] {
            fs::create_dir_all(base.join(path)).unwrap();
        }
        fs::write(base.join("a/key"), "").unwrap();
        std::os::unix::fs::symlink(base.join("a/secret"), base.join("way")).unwrap();
        let hidden = [base.join("a/secret"), base.join("a/key"), "/nowhere/else".into()];
        let mut found = Vec::new();
        around(&base, &hidden, &mut found);
        found.sort();
        assert_eq!(found, [base.join("a/b"), base.join("d")]);
        found.clear();
        around(&base.join("a/secret"), &hidden, &mut found);
        assert!(found.is_empty());
    }
}
