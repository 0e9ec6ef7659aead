//! git's complaints about a remote, in plain words and with the fix.

use super::{
    TreeError,
    git::{self, Done},
};

/// What a failed `fetch` or `ls-remote` means. What is no complaint about the remote is one about the
/// mirror.
pub(super) fn explain(repo: &str, done: &Done) -> TreeError {
    match about_remote(repo, &done.stderr, &done.last_words()) {
        Some(words) => TreeError::Refused(words),
        None => TreeError::Mirror(done.last_words()),
    }
}

fn about_remote(repo: &str, stderr: &str, last: &str) -> Option<String> {
    let has = |words: &[&str]| words.iter().any(|word| stderr.contains(word));
    let (shown, host) = (git::shown(repo), host(repo));
    let user = rustix::process::geteuid().as_raw();
    Some(if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED", "HOST IDENTIFICATION HAS CHANGED"]) {
        format!(
            "{host} shows another host key than the known one: if it was replaced on purpose, replace it in /etc/ssh/ssh_known_hosts or the fetch user's known_hosts"
        )
    } else if has(&["Host key verification failed", "host key is known for"]) {
        format!(
            "the host key of {host} is not known: compare what `ssh-keyscan {host}` prints and add it to /etc/ssh/ssh_known_hosts"
        )
    } else if has(&["Permission denied (", "Too many authentication failures"]) {
        format!(
            "{host} takes no ssh key of the fetch user (uid {user}): give that user a key that the repository knows as a deploy key"
        )
    } else if has(&[
        "could not read Username",
        "could not read Password",
        "Authentication failed",
        "terminal prompts disabled",
    ]) {
        format!("{shown} wants a login, or does not exist: use an address that needs none, or ssh with a deploy key")
    } else if has(&["dubious ownership"]) {
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

/// The host of a URL or of `user@host:path`.
fn host(repo: &str) -> &str {
    let rest = repo.split_once("://").map_or(repo, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') { host } else { host.split(':').next().unwrap_or(host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_name_the_host_and_the_fix() {
        let said = |stderr: &str| about_remote("git@example.org:me/blog.git", stderr, "x");
        let known = said("No ED25519 host key is known for example.org and you have requested strict checking.\nHost key verification failed.\nfatal: Could not read from remote repository.").unwrap();
        assert!(known.contains("ssh-keyscan example.org"), "{known}");
        let key =
            said("git@example.org: Permission denied (publickey).\nfatal: Could not read from remote repository.");
        assert!(key.unwrap().contains("deploy key"));
        assert!(said("fatal: couldn't find remote ref refs/heads/x\n").unwrap().contains("no branch \"x\""));
        assert_eq!(said("fatal: bad object 1234"), None);
    }

    #[test]
    fn hosts_are_found_in_every_form() {
        for (repo, want) in [
            ("git@h.org:a/b.git", "h.org"),
            ("ssh://git@h.org:22/a", "h.org"),
            ("https://u:p@h.org/a", "h.org"),
            ("ssh://git@[::1]:22/a", "[::1]:22"),
        ] {
            assert_eq!(host(repo), want, "{repo}");
        }
    }
}
