//! How a repository is reached: keys, pinned hosts, tokens. DESIGN.md section 7, "Git".

use std::{collections::BTreeMap, sync::Arc};

use super::{Access, App, HttpsToken, Identity, judge::Judge, raw};
use crate::domain::model::AppName;

/// `ssh_key`, `host_key` and `https_token` of the app of this name.
pub fn access(judge: &mut Judge<'_>, name: &str, raw: &raw::Deploy, repo: &str) -> Access {
    let keys = |field: &'static str| ["apps", name, "deploy", field];
    let host_key = raw.host_key.as_deref().map_or(Ok(Vec::new()), host_keys);
    let host_key = judge.take(&keys("host_key"), host_key, Vec::new());
    let (ssh, web) = (is_ssh(repo), repo.starts_with("https://") || repo.starts_with("http://"));
    for (field, given, fits, kind) in [
        ("ssh_key", raw.ssh_key.is_some(), ssh, "ssh"),
        ("host_key", raw.host_key.is_some(), ssh, "ssh"),
        ("https_token", raw.https_token.is_some(), web, "https"),
    ] {
        if given && !fits && !repo.is_empty() {
            judge.warn(&keys(field), format!("app \"{name}\": `{field}` is of no use, `repo` is no {kind} address"));
        }
    }
    Access {
        ssh_key: raw.ssh_key.as_ref().map(|secret| judge.secret(&keys("ssh_key"), secret)),
        host_key,
        https_token: raw.https_token.as_ref().and_then(|token| https_token(judge, name, token, repo)),
    }
}

/// Warns of repositories that nobody can fetch: ssh refuses whom the user database does not know.
pub fn nameless(judge: &mut Judge<'_>, fetch_as: Option<&Identity>, apps: &BTreeMap<AppName, Arc<App>>) {
    for (name, app) in apps {
        let fetcher = fetch_as.unwrap_or(&app.work_as);
        if fetcher.name.is_none() && app.deploy.as_ref().is_some_and(|deploy| is_ssh(&deploy.repo)) {
            let message = format!(
                "app \"{name}\": ssh works for users with a name only, and uid {}, which fetches this, has none: make \
                 the user everhook, or set `user`",
                fetcher.uid
            );
            judge.warn(&["apps", name.as_str(), "deploy", "repo"], message);
        }
    }
}

fn https_token(judge: &mut Judge<'_>, name: &str, raw: &raw::HttpsToken, repo: &str) -> Option<HttpsToken> {
    let keys = ["apps", name, "deploy", "https_token"];
    let (Some(user), Some(token)) = (&raw.user, &raw.token) else {
        judge.error(&keys, "a token needs `user` and `token`, such as (user: \"deploy\", token: File(\"token\"))");
        return None;
    };
    let plain = !user.is_empty() && !user.contains(char::is_control);
    judge.require(plain, &keys, "this is no name of a user");
    let authority = repo.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or(rest));
    let double = authority.rsplit_once('@').is_some_and(|(login, _)| login.contains(':'));
    judge.require(!double, &keys, "`repo` holds a password as well: leave it out there");
    if repo.starts_with("http://") && !is_loopback(authority) {
        judge.error(&keys, "anybody on the way could read the token: use an https:// address");
    }
    Some(HttpsToken { user: user.clone(), token: judge.secret(&keys, token) })
}

pub fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// As git reads it: `ssh://…`, or a colon before the first slash.
fn is_ssh(repo: &str) -> bool {
    repo.starts_with("ssh://")
        || !repo.contains("://") && repo.split('/').next().is_some_and(|before_slash| before_slash.contains(':'))
}

/// The keys in what `ssh-keyscan` prints or a `.pub` file holds: the type and the key itself.
fn host_keys(text: &str) -> Result<Vec<String>, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys = lines.map(host_key).collect::<Option<Vec<_>>>().filter(|keys| !keys.is_empty());
    keys.ok_or_else(|| {
        "this is no host key; expected one such as \"ssh-ed25519 AAAAC3…\", as `ssh-keyscan HOST` prints it".to_owned()
    })
}

fn host_key(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let is_kind = |word: &str| {
        ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|kind| word.starts_with(kind))
            && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-@.".contains(&b))
    };
    let at = words.iter().take(2).position(|word| is_kind(word))?;
    let key = words.get(at + 1)?;
    let is_key = key.starts_with("AAAA") && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
    is_key.then(|| format!("{} {key}", words[at]))
}

/// A private key as ssh takes it, whatever a copy through mail or Windows did to it.
///
/// # Errors
/// What else was given, in words that follow the name of the secret.
pub fn deploy_key(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no text, and so no private key of ssh".to_owned())?;
    let text = text.trim_start_matches('\u{feff}').trim();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let (first, last) = (lines.first().copied().unwrap_or_default(), lines.last().copied().unwrap_or_default());
    if ["ssh-", "ecdsa-"].iter().any(|kind| first.starts_with(kind)) {
        return Err("is a public key; name the private one, whose file has no .pub at its end".into());
    }
    if !first.starts_with("-----BEGIN ") || !first.ends_with("PRIVATE KEY-----") {
        return Err("is no private key of ssh; expected one as `ssh-keygen -t ed25519` makes it".into());
    }
    if !last.starts_with("-----END ") {
        return Err("is cut off: its last line is no \"-----END … PRIVATE KEY-----\"".into());
    }
    // In a key without a passphrase the format's name is followed by the cipher `none`, in base64.
    let plain = first != "-----BEGIN OPENSSH PRIVATE KEY-----"
        || lines.get(1).is_some_and(|line| line.starts_with("b3BlbnNzaC1rZXktdjEAAAAABG5vbmU"));
    if !plain || first.contains("ENCRYPTED") || lines.iter().take(4).any(|line| line.ends_with(",ENCRYPTED")) {
        return Err("has a passphrase, which nobody is there to type: take it off with `ssh-keygen -p`".into());
    }
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_taken_from_every_usual_form() {
        for text in [
            "ssh-ed25519 AAAAC3Nz",
            "example.org ssh-ed25519 AAAAC3Nz",
            "# example.org:22 SSH-2.0\n[example.org]:2222 ssh-ed25519 AAAAC3Nz root@host\r\n",
        ] {
            assert_eq!(host_keys(text), Ok(vec!["ssh-ed25519 AAAAC3Nz".to_owned()]), "{text}");
        }
        assert_eq!(host_keys("ssh-ed25519 AAAA1\necdsa-sha2-nistp256 AAAA2").map(|keys| keys.len()), Ok(2));
        for bad in ["", "SHA256:abc", "ssh-ed25519", "ssh-ed25519 key", "ssh-ed25519 AAAA\nx"] {
            assert!(host_keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_survives_what_editors_do_to_it() {
        let body = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAE";
        let good = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n");
        let variants =
            [good.clone(), good.trim_end().to_owned(), good.replace('\n', "\r\n"), format!("\u{feff}{good}\n")];
        for text in variants {
            assert_eq!(deploy_key(text.as_bytes()).as_deref(), Ok(good.as_str()));
        }
        let locked = good.replace(body, "b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHI");
        for (bad, word) in [
            ("ssh-ed25519 AAAA me@here", "public key"),
            ("0123456789abcdef", "no private key"),
            (&good[..good.len() - 40], "cut off"),
            (&locked, "passphrase"),
        ] {
            assert!(deploy_key(bad.as_bytes()).unwrap_err().contains(word), "{bad}");
        }
    }

    #[test]
    fn ssh_addresses_and_this_machine_are_known() {
        assert!(is_ssh("git@h.org:a/b.git") && is_ssh("ssh://h/a") && !is_ssh("/srv/a:b") && !is_ssh("https://h:1/a"));
        assert!(is_loopback("127.0.0.1:80") && is_loopback("u@localhost") && is_loopback("[::1]:3"));
        assert!(!is_loopback("localhost.example.org") && !is_loopback("10.0.0.1"));
    }
}
