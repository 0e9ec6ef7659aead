//! How an app is deployed, judged.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use globset::GlobBuilder;

use super::{
    BranchGlob, Deploy, Step, Trigger,
    judge::{Judge, absolute},
    raw,
};

/// `deploy` of the app of this name; `hooks`: some listener takes webhooks.
pub fn deploy(judge: &mut Judge<'_>, name: &str, raw: &raw::Deploy, hooks: bool) -> Deploy {
    let keys = |field: &'static str| ["apps", name, "deploy", field];
    let read = raw.repo.as_deref().ok_or_else(|| "`repo` is missing: the URL or path of the repository".to_owned());
    let repo = read.and_then(|text| repo(&judge.base(&["apps", name, "deploy", "repo"]), text));
    let repo = judge.take(&keys("repo"), repo, String::new());
    if has_password(&repo) {
        let message = format!("app \"{name}\": the password in `repo` can be read in lists of processes and in logs");
        judge.warn(&keys("repo"), message);
    }
    let keep = match &raw.layout {
        Some(raw::Layout::Releases { keep }) => keep.unwrap_or(5),
        None => 5,
    };
    judge.require(keep > 0, &keys("layout"), "at least one release must be kept");
    if hooks && raw.secret.is_none() {
        let message = format!("app \"{name}\" has no `secret` in its `deploy`: its webhooks cannot be accepted");
        judge.warn(&keys("secret"), message);
    }
    judge.env(&keys("env"), &raw.env);
    let timeout = raw.timeout.map_or(Duration::from_secs(15 * 60), |span| span.0);
    judge.require(!timeout.is_zero(), &keys("timeout"), "a deploy needs some time");
    Deploy {
        repo,
        keep,
        on: triggers(judge, name, raw.on.as_deref().unwrap_or_default()),
        secret: raw.secret.as_ref().map(|secret| judge.secret(&keys("secret"), secret)),
        previous_secret: raw.previous_secret.as_ref().map(|secret| judge.secret(&keys("previous_secret"), secret)),
        check: steps(judge, &keys("check"), raw.check.as_deref().unwrap_or_default()),
        build: steps(judge, &keys("build"), raw.build.as_deref().unwrap_or_default()),
        env: raw.env.clone(),
        shared: shared(judge, &keys("shared"), raw.shared.as_deref().unwrap_or_default()),
        timeout,
        settle: raw.settle.map_or(Duration::from_secs(5), |span| span.0),
        approve: raw.approve.unwrap_or(false),
    }
}

/// A URL as it is, or an absolute path.
fn repo(base: &Path, text: &str) -> Result<String, String> {
    let bad = |why: &str| Err(format!("{text:?} is no repository: {why}"));
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return bad("expected a URL or a path");
    }
    if text.starts_with('-') {
        return bad("git would take it for an option");
    }
    let before_slash = text.split('/').next().unwrap_or(text);
    if before_slash.contains("::") {
        return bad("commands of git's own (`ext::…`) are never run");
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        if !["https", "http", "ssh", "git", "file"].contains(&scheme) {
            return bad("expected https://, ssh://, git://, http:// or file://");
        }
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let hostile = rest.starts_with('-') || host.starts_with('-');
        return if rest.is_empty() || hostile { bad("this is no host") } else { Ok(text.to_owned()) };
    }
    // As git reads it: a colon before the first slash separates a host from a path there.
    if let Some((host, path)) = before_slash.split_once(':') {
        let address = host.rsplit('@').next().unwrap_or(host);
        let hostile = address.is_empty() || address.starts_with('-');
        let empty = path.is_empty() && !text.contains('/');
        return if hostile || empty { bad("expected user@host:path") } else { Ok(text.to_owned()) };
    }
    absolute(base, text).into_os_string().into_string().map_err(|_| format!("{text:?} is no repository"))
}

fn has_password(repo: &str) -> bool {
    let authority = repo.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    let user = authority.and_then(|authority| authority.rsplit_once('@')).map(|(user, _)| user);
    user.is_some_and(|user| user.contains(':'))
}

fn triggers(judge: &mut Judge<'_>, name: &str, raw: &[raw::Trigger]) -> Vec<Trigger> {
    let mut triggers = Vec::new();
    for (i, raw::Trigger::Push { branch }) in raw.iter().enumerate() {
        let i = i.to_string();
        let read = branch.as_deref().ok_or_else(|| "`branch` is missing".to_owned()).and_then(glob);
        match read {
            Ok(glob) => triggers.push(Trigger::Push(glob)),
            Err(message) => judge.error(&["apps", name, "deploy", "on", &i, "branch"], message),
        }
    }
    triggers
}

fn glob(text: &str) -> Result<BranchGlob, String> {
    if text.is_empty() || text.starts_with("refs/") {
        return Err(format!("{text:?} is no branch; expected its name alone, such as \"master\" or \"release/*\""));
    }
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    let glob = glob.map_err(|error| format!("{text:?} is no pattern: {}", error.kind()))?;
    Ok(BranchGlob { text: text.to_owned(), matcher: glob.compile_matcher() })
}

fn steps(judge: &mut Judge<'_>, keys: &[&str], raw: &[raw::Step]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (i, step) in raw.iter().enumerate() {
        let i = i.to_string();
        let keys = [keys, &[&i]].concat();
        let run = step.run.clone().unwrap_or_default();
        judge.require(!run.trim().is_empty() && !run.contains('\0'), &keys, "the step has no command");
        judge.require(step.timeout.is_none_or(|span| !span.0.is_zero()), &keys, "a step needs some time");
        steps.push(Step { run, name: step.name.clone(), timeout: step.timeout.map(|span| span.0) });
    }
    steps
}

/// Paths that are links into `shared/`: inside the release, none inside another. The slash at the end
/// of one stays: it says that this is a folder.
fn shared(judge: &mut Judge<'_>, keys: &[&str], raw: &[String]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for (i, text) in raw.iter().enumerate() {
        let i = i.to_string();
        let keys = [keys, &[&i]].concat();
        let mut path: PathBuf = Path::new(text).components().filter(|part| *part != Component::CurDir).collect();
        let inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !inside || path.as_os_str().is_empty() || text.contains('\0') {
            judge.error(&keys, format!("{text:?} must be a path inside the release, without `..`"));
            continue;
        }
        if path.starts_with(".git") {
            judge.error(&keys, format!("{text:?} belongs to git"));
        }
        if let Some(other) = paths.iter().find(|other| other.starts_with(&path) || path.starts_with(other)) {
            judge.error(&keys, format!("{text:?} and \"{}\" lie in each other", other.display()));
        }
        if text.ends_with('/') {
            path.push("");
        }
        paths.push(path);
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_urls_or_paths() {
        let base = Path::new("/etc/everhook");
        for (text, want) in [
            ("https://example.org/a.git", "https://example.org/a.git"),
            ("ssh://git@example.org:22/a", "ssh://git@example.org:22/a"),
            ("git@example.org:a/b.git", "git@example.org:a/b.git"),
            ("host:a", "host:a"),
            ("/srv/a b", "/srv/a b"),
            ("./a", "/etc/everhook/a"),
            ("./a:b", "/etc/everhook/a:b"),
        ] {
            assert_eq!(repo(base, text).as_deref(), Ok(want));
        }
        for bad in [
            "",
            " ",
            "ext::sh -c x",
            "fd::3",
            "-x",
            "--upload-pack=x",
            "ftp://x/y",
            "ssh://-oProxyCommand=x/y",
            "ssh://u@-oProxyCommand=x/y",
            "-oProxyCommand=x:y",
            "u@-x:y",
            "a\nb",
            "https://",
            "host:",
            ":x",
            "https::x",
        ] {
            assert!(repo(base, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn branches_are_globs_that_stop_at_a_slash() {
        let glob = glob("release/*").unwrap();
        assert!(glob.matcher.is_match("release/1"));
        assert!(!glob.matcher.is_match("release/1/x"));
        assert!(super::glob("feature/**").unwrap().matcher.is_match("feature/a/b"));
        for bad in ["", "refs/heads/master", "a[", "{a"] {
            assert!(super::glob(bad).is_err(), "{bad}");
        }
    }
}
