//! Where the commits of an app have their statuses: which forge, where its API is, and what the
//! repository is called there.

use serde::{Deserialize, Serialize};

use super::{SecretRef, access::is_loopback, judge::Judge, raw};

/// Whose API it is. Forgejo's is Gitea's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forge {
    #[serde(alias = "Github")]
    GitHub,
    #[serde(alias = "Gitlab")]
    GitLab,
    #[serde(alias = "Forgejo")]
    Gitea,
}

impl Forge {
    /// As its owners write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::GitHub => "GitHub",
            Self::GitLab => "GitLab",
            Self::Gitea => "Gitea",
        }
    }
}

/// Whom an app's deploys are told to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub forge: Forge,
    /// Base of its API, without a slash at its end.
    pub api: String,
    /// `owner/name`, at GitLab with all its groups.
    pub project: String,
    pub token: SecretRef,
}

/// `status` of the app of this name.
pub fn status(judge: &mut Judge<'_>, name: &str, raw: &raw::Status, repo: &str) -> Option<Status> {
    let keys = ["apps", name, "deploy", "status"];
    let api_keys = ["apps", name, "deploy", "status", "api"];
    let Some(token) = &raw.token else {
        judge.error(&keys, "a status needs a token, such as (forge: GitHub, token: File(\"token\"))");
        return None;
    };
    let token = judge.secret(&["apps", name, "deploy", "status", "token"], token);
    // What is wrong with it is said where it stands.
    let remote = Remote::of(repo).filter(|_| !repo.is_empty());
    if let (None, false) = (&remote, repo.is_empty()) {
        let message = "`repo` names no repository at a forge: expected an address such as \
                       \"git@example.org:owner/name.git\"";
        judge.error(&keys, message);
    }
    let remote = remote?;
    let Some(forge) = raw.forge.or_else(|| known(remote.host)) else {
        let message = format!(
            "`forge` is missing: whose API does {} have, GitHub's, GitLab's or Gitea's (which is Forgejo's too)?",
            remote.host
        );
        judge.error(&keys, message);
        return None;
    };
    let given = raw.api.as_deref().map(api).transpose();
    let given = given.map_err(|message| judge.error(&api_keys, message)).ok()?;
    let placed = place(forge, &remote, given.as_deref()).map_err(|message| judge.error(&keys, message)).ok()?;
    let (api, project) = placed;
    if let Err(message) = self::api(&api) {
        judge.error(&keys, message);
    }
    Some(Status { forge, api, project, token })
}

/// The parts of a repository's address that count.
struct Remote<'a> {
    /// Scheme and authority where it is a web address.
    web: Option<(&'a str, &'a str)>,
    host: &'a str,
    path: &'a str,
}

impl<'a> Remote<'a> {
    /// `None` for a path on this machine, or an address without a path.
    fn of(repo: &'a str) -> Option<Self> {
        let (scheme, authority, path) = match repo.split_once("://") {
            Some(("file", _)) => return None,
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/')?;
                (scheme, authority, path)
            }
            None if repo.starts_with('/') => return None,
            // git's short form for ssh: a colon ends the host.
            None => {
                let start = repo.find('[').and_then(|open| Some(open + repo[open..].find(']')?)).unwrap_or(0);
                let colon = start + repo[start..].find(':')?;
                ("ssh", &repo[..colon], &repo[colon + 1..])
            }
        };
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let host = match authority.find(']') {
            Some(end) => &authority[..=end],
            None => authority.split(':').next()?,
        };
        let path = path.trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
        let web = matches!(scheme, "http" | "https").then_some((scheme, authority));
        (!host.is_empty() && !path.is_empty()).then_some(Self { web, host, path })
    }

    /// Where the forge's pages are.
    fn base(&self) -> String {
        match self.web {
            Some((scheme, authority)) => format!("{scheme}://{authority}"),
            None => match self.host {
                // Where ssh is taken on the port of https too.
                "ssh.github.com" => "https://github.com".to_owned(),
                "altssh.gitlab.com" => "https://gitlab.com".to_owned(),
                host => format!("https://{host}"),
            },
        }
    }
}

/// Forges that everybody knows.
fn known(host: &str) -> Option<Forge> {
    match host.to_ascii_lowercase().as_str() {
        "github.com" | "ssh.github.com" => Some(Forge::GitHub),
        "gitlab.com" | "altssh.gitlab.com" => Some(Forge::GitLab),
        "codeberg.org" | "gitea.com" => Some(Forge::Gitea),
        _ => None,
    }
}

/// The API's base, and the repository's path there.
fn place(forge: Forge, remote: &Remote<'_>, given: Option<&str>) -> Result<(String, String), String> {
    let parts: Vec<&str> = remote.path.split('/').collect();
    let named = |part: &&str| !part.is_empty() && *part != "." && *part != ".." && !part.contains(char::is_whitespace);
    if parts.len() < 2 || !parts.iter().all(named) {
        return Err(format!(
            "`repo` names no repository at {}: its path is {:?}, not owner/name",
            forge.name(),
            remote.path
        ));
    }
    let base = remote.base();
    if forge == Forge::GitLab {
        let api = given.map_or_else(|| format!("{base}/api/v4"), str::to_owned);
        // A GitLab below a folder of its host has that in both addresses.
        let folder = api.splitn(4, '/').nth(3).and_then(|path| path.strip_suffix("api/v4")).unwrap_or_default();
        let project = remote.path.strip_prefix(folder).filter(|rest| rest.contains('/')).unwrap_or(remote.path);
        return Ok((api, project.to_owned()));
    }
    let (folder, project) = parts.split_at(parts.len() - 2);
    let folder: String = folder.iter().map(|part| format!("/{part}")).collect();
    let host = base.strip_prefix("https://").unwrap_or_default().to_ascii_lowercase();
    let api = match forge {
        _ if given.is_some() => given.unwrap_or_default().to_owned(),
        Forge::GitHub if host == "github.com" || host.ends_with(".ghe.com") => format!("https://api.{host}"),
        Forge::GitHub => format!("{base}{folder}/api/v3"),
        _ => format!("{base}{folder}/api/v1"),
    };
    Ok((api, project.join("/")))
}

/// The address of an API, without the slash at its end.
fn api(text: &str) -> Result<String, String> {
    let bad = |why: &str| Err(format!("{text:?} is no address of an API: {why}"));
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "https" | "http")) else {
        return bad("expected one such as \"https://git.example.org/api/v1\"");
    };
    let rest = rest.trim_end_matches('/');
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return bad("it must hold no user, the token is enough");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~%/:[]".contains(&b);
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map(|(_, port)| port);
    if authority.is_empty() || !rest.bytes().all(plain) || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return bad("expected a host, a port where that is another, and a path");
    }
    if scheme == "http" && !is_loopback(authority) {
        return bad("anybody on the way could read the token: use https");
    }
    Ok(format!("{scheme}://{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(forge: Forge, repo: &str, given: Option<&str>) -> Result<(String, String), String> {
        place(forge, &Remote::of(repo).unwrap(), given)
    }

    #[test]
    fn the_api_follows_from_the_repository() {
        use Forge::{GitHub, GitLab, Gitea};
        for (forge, repo, api, project) in [
            (GitHub, "git@github.com:Me/blog.git", "https://api.github.com", "Me/blog"),
            (GitHub, "https://x:y@github.com/me/b.c/", "https://api.github.com", "me/b.c"),
            (GitHub, "ssh://git@ssh.github.com:443/me/blog.git", "https://api.github.com", "me/blog"),
            (GitHub, "git@me.ghe.com:a/b.git", "https://api.me.ghe.com", "a/b"),
            (GitHub, "https://git.example.org/me/blog", "https://git.example.org/api/v3", "me/blog"),
            (GitLab, "git@gitlab.com:a/b/c/d.git", "https://gitlab.com/api/v4", "a/b/c/d"),
            (GitLab, "ssh://git@altssh.gitlab.com:443/a/b.git", "https://gitlab.com/api/v4", "a/b"),
            (GitLab, "https://h.example:8443/a/b.git", "https://h.example:8443/api/v4", "a/b"),
            (Gitea, "ssh://git@h.example:2222/a/b.git", "https://h.example/api/v1", "a/b"),
            (Gitea, "https://h.example/git/a/b.git", "https://h.example/git/api/v1", "a/b"),
            (Gitea, "git@[::1]:a/b.git", "https://[::1]/api/v1", "a/b"),
            (Gitea, "http://127.0.0.1:3000/a/b", "http://127.0.0.1:3000/api/v1", "a/b"),
        ] {
            assert_eq!(placed(forge, repo, None), Ok((api.to_owned(), project.to_owned())), "{repo}");
        }
        let below = placed(GitLab, "https://h.example/git/a/b.git", Some("https://h.example/git/api/v4"));
        assert_eq!(below.unwrap().1, "a/b");
        let group = placed(GitLab, "https://h.example/git/a", Some("https://h.example/git/api/v4"));
        assert_eq!(group.unwrap().1, "git/a", "a group may be called as the folder");
        for bad in ["git@github.com:blog.git", "https://h.example/a//b", "https://h.example/../b", "https://h/a/b c"] {
            assert!(placed(GitHub, bad, None).is_err(), "{bad}");
        }
        for local in ["/srv/a/b.git", "file:///srv/a/b.git", "https://h.example", "h:"] {
            assert!(Remote::of(local).is_none(), "{local}");
        }
    }

    #[test]
    fn an_api_is_a_plain_address() {
        for good in ["https://h.example/api/v1/", "https://h:8443", "http://localhost:1/x", "https://[::1]:2/api"] {
            assert_eq!(api(good).as_deref(), Ok(good.trim_end_matches('/')));
        }
        for bad in [
            "",
            "h.example",
            "ftp://h/x",
            "https://",
            "https:///x",
            "https://u:p@h/x",
            "https://h/x?y",
            "https://h/x y",
            "https://h:99999/",
            "http://h.example/x",
        ] {
            assert!(api(bad).is_err(), "{bad}");
        }
    }
}
