//! git's complaints about a remote, in plain words and with the fix.

use super::{
    TreeError,
    access::Access,
    git::{self, Done},
    host_key, limit,
};

/// What a failed `fetch` or `ls-remote` means. What is no complaint about the remote is one about the
/// mirror.
pub(super) fn explain(repo: &str, access: &Access, done: &Done) -> TreeError {
    let words = about_keys(repo, access, &done.stderr).or_else(|| about_remote(repo, &done.stderr, &done.last_words()));
    words.map_or_else(|| TreeError::Mirror(done.last_words()), TreeError::Refused)
}

/// Who we are to the remote, and it to us.
fn about_keys(repo: &str, access: &Access, stderr: &str) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let (shown, host) = (git::shown(repo), host_key::address(repo).0);
    let user = rustix::process::geteuid().as_raw();
    let changed = has(&["HOST IDENTIFICATION HAS CHANGED"]);
    Some(if changed || has(&["Host key verification failed", "host key is known for"]) {
        host_key::unproven(repo, access.hosts.is_some(), changed)
    } else if has(&["No user exists for uid"]) {
        format!("ssh works for users with a name only, and uid {user} has none: set `user`, or make the user everhook")
    } else if access.key.is_some() && has(&["Load key ", "error in libcrypto", "invalid format"]) {
        "`ssh_key` is no key that ssh can read: try `ssh-keygen -y -f` on it".to_owned()
    } else if has(&["Permission denied (", "Too many authentication failures"]) {
        if access.key.is_some() {
            format!("{host} does not take `ssh_key`: add its public half to the repository as a deploy key")
        } else {
            format!("{host} takes no ssh key of the fetch user (uid {user}): set `ssh_key` to a deploy key")
        }
    } else if has(&[
        "could not read Username",
        "could not read Password",
        "Authentication failed",
        "terminal prompts disabled",
    ]) {
        if access.login.is_some() {
            format!("{shown} does not take `https_token`: it has expired, is mistyped, or may not read this repository")
        } else {
            format!("{shown} wants a login, or does not exist: set `https_token`, or use ssh with `ssh_key`")
        }
    } else {
        return None;
    })
}

fn about_remote(repo: &str, stderr: &str, last: &str) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let shown = git::shown(repo);
    let user = rustix::process::geteuid().as_raw();
    if let Some(told) = limit::reached(&shown, stderr) {
        return Some(told);
    }
    Some(if has(&["dubious ownership"]) {
        format!("git refuses {shown}, which belongs to another user: give `repo` the folder itself, not a link into it")
    } else if let Some((_, name)) = stderr.split_once("couldn't find remote ref ") {
        let name = name.lines().next().unwrap_or_default();
        format!("{shown} has no branch {:?}", name.strip_prefix("refs/heads/").unwrap_or(name))
    } else if has(&[
        "does not appear to be a git repository",
        "epository not found",
        "' not found",
        "could not be found",
    ]) {
        missing(repo, user)
    } else if has(&["No space left on device", "Disk quota exceeded"]) {
        format!("the disk is full, so {shown} could not be fetched: make room below the state folder")
    } else if has(&["not allowed", "nable to find remote helper"]) {
        format!("{shown} is no address that is fetched from ({last}): use https, ssh or a path")
    } else if git::local(repo).is_some() && has(&["Permission denied"]) {
        format!("the fetch user (uid {user}) may not read {shown}: let it read the folder and everything in it")
    } else if has(REACH) {
        format!("{shown} could not be reached: {last}")
    } else {
        return None;
    })
}

/// The remote, or the way to it, did not do its part.
const REACH: &[&str] = &[
    "unable to access",
    "Could not resolve host",
    "Could not read from remote repository",
    "Connection refused",
    "Connection reset",
    "Connection closed",
    "timed out",
    "No route to host",
    "Network is unreachable",
    "unable to connect",
    "unable to look up",
    "early EOF",
    "unexpected disconnect",
    "hung up unexpectedly",
    "remote error",
    "protocol error",
];

fn missing(repo: &str, user: u32) -> String {
    let shown = git::shown(repo);
    match git::local(repo).map(std::path::Path::read_dir) {
        Some(Ok(_)) => {
            format!("{shown} is no git repository that uid {user} can read: check `repo` and who may read it")
        }
        Some(Err(e)) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("the fetch user (uid {user}) may not enter {shown}: let it read the folder and those above it")
        }
        Some(Err(_)) => format!("there is no repository at {shown}: check `repo`"),
        None => format!("there is no repository at {shown}, or it may not be read: check `repo` and the access to it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_the_host_and_the_fix() {
        let key = "git@example.org: Permission denied (publickey).\nfatal: Could not read from remote repository.";
        let said = |access: &Access| about_keys("git@example.org:me/blog.git", access, key).unwrap();
        assert!(said(&Access::default()).contains("set `ssh_key`"));
        let given = Access { key: Some("/k".into()), ..Access::default() };
        assert!(said(&given).contains("example.org does not take `ssh_key`"));
        let said = |stderr: &str| about_remote("git@example.org:me/blog.git", stderr, "x");
        assert!(said("fatal: couldn't find remote ref refs/heads/x\n").unwrap().contains("no branch \"x\""));
        assert_eq!(said("fatal: bad object 1234"), None);
    }
}
