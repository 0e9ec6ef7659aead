//! How an app is deployed, judged.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    App, Deploy, Layout, Track, Trigger, access, dialect,
    judge::{Judge, absolute},
    raw, status,
    steps::{changed, steps},
};
use crate::domain::model::{AppName, BadGlob, Glob, Globs};

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
    let access = access::access(judge, name, raw, &repo);
    let status = raw.status.as_ref().and_then(|status| status::status(judge, name, status, &repo));
    let layout = layout(judge, &keys("layout"), raw.layout.as_ref());
    if matches!(layout, Layout::InPlace(_)) {
        let stay = "nothing is shared in a working tree: what git does not track stays there by itself";
        judge.require(raw.shared.is_none(), &keys("shared"), stay);
        let one = "a working tree is but one folder: what git does not track stays there by itself";
        judge.require(raw.bridge.is_none(), &keys("bridge"), one);
        let asked = "what cannot be taken back needs releases of their own: leave `irreversible` out";
        judge.require(raw.irreversible.is_none(), &keys("irreversible"), asked);
    }
    if hooks && raw.secret.is_none() && raw.poll.is_none() {
        let message = format!("app \"{name}\" has no `secret` in its `deploy`: its webhooks cannot be accepted");
        judge.warn(&keys("secret"), message);
    }
    judge.env(&keys("env"), &raw.env);
    let timeout = raw.timeout.map_or(Duration::from_secs(15 * 60), |span| span.0);
    judge.require(!timeout.is_zero(), &keys("timeout"), "a deploy needs some time");
    let shared = inside(judge, &keys("shared"), raw.shared.as_deref().unwrap_or_default());
    let bridge = inside(judge, &keys("bridge"), raw.bridge.as_deref().unwrap_or_default());
    for (i, path) in bridge.iter().enumerate() {
        if shared.iter().any(|other| other.starts_with(path) || path.starts_with(other)) {
            let message = format!("{:?} is shared: every release has the same files there", path.display().to_string());
            judge.error(&["apps", name, "deploy", "bridge", &i.to_string()], message);
        }
    }
    let deploy = Deploy {
        repo,
        access,
        layout,
        on: triggers(judge, name, raw.on.as_deref().unwrap_or_default()),
        paths: globs(judge, &keys("paths"), raw.paths.as_deref(), Globs::of_paths),
        authors: globs(judge, &keys("authors"), raw.authors.as_deref(), Globs::of_people),
        track: raw.track.unwrap_or(Track::Commit),
        poll: raw.poll.map(|span| span.0),
        secret: raw.secret.as_ref().map(|secret| judge.secret(&keys("secret"), secret)),
        previous_secret: raw.previous_secret.as_ref().map(|secret| judge.secret(&keys("previous_secret"), secret)),
        dialect: dialect::dialect(judge, &keys("dialect"), raw.dialect.as_ref()),
        check: steps(judge, &keys("check"), raw.check.as_deref()),
        build: steps(judge, &keys("build"), raw.build.as_deref()),
        before_switch: steps(judge, &keys("before_switch"), raw.before_switch.as_deref()),
        after_live: steps(judge, &keys("after_live"), raw.after_live.as_deref()),
        on_failure: steps(judge, &keys("on_failure"), raw.on_failure.as_deref()),
        env: raw.env.clone(),
        env_from: raw.env_from.clone().unwrap_or_default(),
        shared,
        bridge,
        timeout,
        settle: raw.settle.map_or(Duration::from_secs(5), |span| span.0),
        approve: raw.approve.unwrap_or(false),
        irreversible: changed(judge, &keys("irreversible"), raw.irreversible.as_ref()),
        status,
    };
    let pipelines = deploy.on.iter().any(|trigger| matches!(trigger, Trigger::Pipeline(_)));
    let blind = "`Head` would deploy commits whose pipeline has not succeeded: leave it out, or say `Push`";
    judge.require(!(pipelines && deploy.track == Track::Head), &keys("track"), blind);
    if let Some(poll) = deploy.poll {
        judge.require(poll >= SHORTEST_POLL, &keys("poll"), "a repository is asked every second at most");
        let why = deploy.unlooked().map(|why| format!("there is nothing to look at: {why}"));
        judge.require(why.is_none(), &keys("poll"), why.as_deref().unwrap_or_default());
    }
    deploy
}

fn layout(judge: &mut Judge<'_>, keys: &[&str], raw: Option<&raw::Layout>) -> Layout {
    match raw {
        Some(raw::Layout::InPlace(path)) => Layout::InPlace(judge.path(keys, path)),
        Some(raw::Layout::Releases { keep: Some(keep) }) => {
            judge.require(*keep > 0, keys, "at least one release must be kept");
            Layout::Releases { keep: *keep }
        }
        Some(raw::Layout::Releases { keep: None }) | None => Layout::Releases { keep: KEPT },
    }
}

/// A working tree is one app's, and lies in no folder of ours.
pub fn trees(judge: &mut Judge<'_>, state_dir: &Path, apps: &BTreeMap<AppName, Arc<App>>) {
    let trees = apps.values().filter_map(|app| Some((&app.name, app.deploy.as_ref()?.tree()?)));
    let trees: Vec<_> = trees.collect();
    let meet = |one: &Path, other: &Path| one.starts_with(other) || other.starts_with(one);
    for (i, (name, tree)) in trees.iter().enumerate() {
        let keys = ["apps", name.as_str(), "deploy", "layout"];
        if let Some((other, _)) = trees[..i].iter().find(|(_, known)| meet(tree, known)) {
            judge.error(&keys, format!("{} is the working tree of app \"{other}\" already", tree.display()));
        }
        let ours = format!("{} holds everhook's own files: name another folder", state_dir.display());
        judge.require(!meet(tree, state_dir), &keys, &ours);
    }
}

/// Releases that were live and stay, unless the config says how many.
const KEPT: u32 = 5;
const SHORTEST_POLL: Duration = Duration::from_secs(1);

fn globs(
    judge: &mut Judge<'_>,
    keys: &[&str],
    raw: Option<&[String]>,
    read: fn(&[String]) -> Result<Globs, BadGlob>,
) -> Vec<String> {
    let texts = raw.unwrap_or_default();
    if let Err(BadGlob { place, why }) = read(texts) {
        judge.error(&[keys, &[&place.to_string()]].concat(), why);
    }
    texts.to_vec()
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
    for (i, trigger) in raw.iter().enumerate() {
        let i = i.to_string();
        let keys = ["apps", name, "deploy", "on", &i, "branch"];
        let (keys, read) = match trigger {
            raw::Trigger::Push { branch } => (&keys[..], branch_glob(branch.as_deref()).map(Trigger::Push)),
            raw::Trigger::Pipeline { branch } => (&keys[..], branch_glob(branch.as_deref()).map(Trigger::Pipeline)),
            raw::Trigger::Tag(tag) => (&keys[..5], tag_glob(tag).map(Trigger::Tag)),
            raw::Trigger::Release => (&keys[..5], Ok(Trigger::Release)),
        };
        match read {
            Ok(trigger) => triggers.push(trigger),
            Err(message) => judge.error(keys, message),
        }
    }
    triggers
}

fn branch_glob(text: Option<&str>) -> Result<Glob, String> {
    let text = text.ok_or("`branch` is missing")?;
    if text.is_empty() || text.starts_with("refs/") {
        return Err(format!("{text:?} is no branch; expected its name alone, such as \"master\" or \"release/*\""));
    }
    Glob::new(text)
}

fn tag_glob(text: &str) -> Result<Glob, String> {
    if text.is_empty() || text.starts_with("refs/") {
        return Err(format!("{text:?} is no tag; expected its name alone, such as \"v*\""));
    }
    Glob::new(text)
}

/// Paths inside the release, none inside another. The slash at the end of one stays: it says that this is a
/// folder.
fn inside(judge: &mut Judge<'_>, keys: &[&str], raw: &[String]) -> Vec<PathBuf> {
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
    fn branches_and_tags_are_names_alone() {
        assert!(branch_glob(Some("release/*")).unwrap().fits("release/1") && tag_glob("v*").unwrap().fits("v1"));
        for bad in ["", "refs/heads/master", "refs/tags/v1", "a[", "{a"] {
            assert!(branch_glob(Some(bad)).is_err() && tag_glob(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_branch_is_looked_at_where_all_its_commits_may_go_live() {
        let push = |text: &str| Trigger::Push(branch_glob(Some(text)).unwrap());
        let pipeline = |text: &str| Trigger::Pipeline(branch_glob(Some(text)).unwrap());
        let tag = || Trigger::Tag(tag_glob("v*").unwrap());
        let said = |on: Vec<Trigger>| {
            let deploy = deploy_on(on);
            (deploy.branch().map(str::to_owned), deploy.unlooked().is_none())
        };
        let main = || Some("main".to_owned());
        assert_eq!(said(vec![]), (None, true));
        assert_eq!(said(vec![push("main"), tag(), Trigger::Release]), (main(), true));
        assert_eq!(said(vec![push("main"), pipeline("main")]), (main(), true));
        assert_eq!(said(vec![pipeline("main")]), (main(), false));
        for several in [vec![push("main"), push("dev")], vec![push("m*")], vec![tag()], vec![Trigger::Release]] {
            assert_eq!(said(several), (None, false));
        }
        assert!(!deploy_on(vec![pipeline("main"), push("dev")]).takes_every("refs/heads/main"));
        assert!(deploy_on(vec![pipeline("main"), tag()]).takes_every("refs/tags/v1"));
    }

    fn deploy_on(on: Vec<Trigger>) -> Deploy {
        Deploy { on, ..Deploy::plain("/repo") }
    }

    impl Deploy {
        /// Of this repository, with nothing else said and no time to settle.
        pub(crate) fn plain(repo: &str) -> Self {
            Self {
                repo: repo.into(),
                access: crate::domain::config::Access::default(),
                layout: Layout::Releases { keep: KEPT },
                on: vec![],
                paths: vec![],
                authors: vec![],
                track: Track::Commit,
                poll: None,
                secret: None,
                previous_secret: None,
                dialect: None,
                check: vec![],
                build: vec![],
                before_switch: vec![],
                after_live: vec![],
                on_failure: vec![],
                env: std::collections::BTreeMap::new(),
                env_from: vec![],
                shared: vec![],
                bridge: vec![],
                timeout: Duration::from_secs(900),
                settle: Duration::ZERO,
                approve: false,
                irreversible: vec![],
                status: None,
            }
        }
    }
}
