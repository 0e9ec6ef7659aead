//! A host whose key is not the known one, in words that name the key it offers and where to put it.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use super::git::PATH;

/// Best first.
const KINDS: [&str; 3] = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"];

/// Why this host is not spoken to. `pinned`: the config says which key it has.
pub(super) fn unproven(repo: &str, pinned: bool, changed: bool) -> String {
    let (host, port) = address(repo);
    let offered = offered(host, port);
    let (shown, line) = match &offered {
        Some((key, fingerprint)) => (format!("it offers {fingerprint}"), format!("host_key: \"{key}\"")),
        None => ("it offers none that can be read now".into(), "host_key: \"…\"".into()),
    };
    let put = format!("put this into the app's `deploy`: {line}");
    if pinned {
        format!("{host} does not have the key of `host_key`: {shown}. If its operators say that it is theirs, {put}")
    } else if changed {
        format!(
            "{host} has another key than the one in known_hosts: {shown}. If its operators say that it is theirs, {put}"
        )
    } else {
        format!("the key of {host} is not known: {shown}. If its operators say that it is theirs, {put}")
    }
}

/// The key that the host shows, and its fingerprint.
fn offered(host: &str, port: Option<&str>) -> Option<(String, String)> {
    let port = port.map_or(vec![], |port| vec!["-p", port]);
    let kinds = ["-T", "10", "-t", "ed25519,ecdsa,rsa"];
    let args: Vec<&str> = kinds.into_iter().chain(port).chain(["--", host]).collect();
    let scanned = String::from_utf8(run("ssh-keyscan", &args, b"")?.stdout).ok()?;
    let keys = || scanned.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    let best = KINDS.iter().find_map(|kind| keys().find(|(_, key)| key.starts_with(kind)));
    let (_, key) = best.or_else(|| keys().next())?;
    let told = String::from_utf8(run("ssh-keygen", &["-l", "-f", "-"], key.as_bytes())?.stdout).ok()?;
    let fingerprint = told.split_ascii_whitespace().find(|word| word.starts_with("SHA256:"))?;
    let kind = key.split(' ').next()?;
    Some((key.trim().to_owned(), format!("{kind} {fingerprint}")))
}

fn run(program: &str, args: &[&str], input: &[u8]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", PATH).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    // A key is shorter than a pipe is deep.
    let _ = child.stdin.take()?.write_all(input);
    child.wait_with_output().ok()
}

/// Host and port of a URL or of `user@host:path`.
pub(super) fn address(repo: &str) -> (&str, Option<&str>) {
    let (rest, is_url) = repo.split_once("://").map_or((repo, false), |(_, rest)| (rest, true));
    let authority = rest.split('/').next().unwrap_or(rest);
    let place = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, after) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, after)) => (host, after.strip_prefix(':')),
        None => place.split_once(':').map_or((place, None), |(host, after)| (host, Some(after))),
    };
    (host, after.filter(|port| is_url && !port.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_every_form() {
        for (repo, want) in [
            ("git@h.org:a/b.git", ("h.org", None)),
            ("ssh://git@h.org:22/a", ("h.org", Some("22"))),
            ("https://u:p@h.org/a", ("h.org", None)),
            ("ssh://git@[::1]:22/a", ("::1", Some("22"))),
        ] {
            assert_eq!(address(repo), want, "{repo}");
        }
    }
}
