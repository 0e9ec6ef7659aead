//! Folders whose changes restart an app, and what in them never counts.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use globset::{GlobBuilder, GlobMatcher};

use super::{judge::Judge, raw};

/// What versions control systems and editors leave behind, none of which an app reads.
const NEVER: [&str; 9] = [".git", ".hg", ".svn", "*.swp", "*.swx", "*~", ".#*", "#*#", "4913"];

/// What is watched for an app.
#[derive(Debug, Clone, PartialEq)]
pub struct Watch {
    /// Folders with all that is below them, and files; absolute.
    pub paths: Vec<PathBuf>,
    pub ignore: Ignore,
    /// A change counts when nothing else has changed for so long.
    pub debounce: Duration,
    /// Look this often instead of being told, where the kernel tells nothing.
    pub poll: Option<Duration>,
}

/// Globs of what does not count.
#[derive(Debug, Clone)]
pub struct Ignore {
    texts: Vec<String>,
    /// Fit a name at any depth.
    names: Vec<GlobMatcher>,
    /// Fit a path from the watched folder on.
    paths: Vec<GlobMatcher>,
}

impl PartialEq for Ignore {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl Ignore {
    /// # Errors
    /// The number of the glob that is none, and why.
    pub fn new(texts: &[String]) -> Result<Self, (usize, String)> {
        let mut ignore = Self { texts: texts.to_vec(), names: Vec::new(), paths: Vec::new() };
        let own = texts.iter().enumerate().map(|(i, text)| (i, text.as_str()));
        for (i, text) in own.chain(NEVER.map(|text| (0, text))) {
            let glob = text.strip_prefix("./").unwrap_or(text).trim_end_matches('/');
            let (list, glob) = match glob.strip_prefix('/') {
                Some(rooted) => (&mut ignore.paths, rooted),
                None if glob.contains('/') => (&mut ignore.paths, glob),
                None => (&mut ignore.names, glob),
            };
            let built = GlobBuilder::new(glob).literal_separator(true).build();
            let built = built.map_err(|error| (i, format!("{text:?} is no pattern: {}", error.kind())))?;
            if glob.is_empty() {
                return Err((i, "this pattern is empty".into()));
            }
            list.push(built.compile_matcher());
        }
        Ok(ignore)
    }

    /// Does this path, or a folder that it is in, not count? `relative`: from the watched folder on.
    #[must_use]
    pub fn fits(&self, relative: &Path) -> bool {
        let folders = relative.ancestors().filter(|path| !path.as_os_str().is_empty());
        folders.into_iter().any(|path| {
            let name = path.file_name().is_some_and(|name| self.names.iter().any(|glob| glob.is_match(name)));
            name || self.paths.iter().any(|glob| glob.is_match(path))
        })
    }
}

/// An app's `watch`, judged.
pub fn watch(judge: &mut Judge<'_>, name: &str, raw: &raw::App) -> Option<Watch> {
    let written = raw.watch.as_ref()?;
    let top = ["apps", name, "watch"];
    for (there, why) in [
        (raw.command.is_none(), "there is no `command` to restart"),
        (raw.deploy.is_some(), "a release never changes; it is a deploy that brings the next one"),
        (raw.schedule.is_some(), "a scheduled app runs at its times only"),
    ] {
        judge.require(!there, &top, why);
    }
    let field = |field: &'static str| ["apps", name, "watch", field];
    let paths_at: Vec<&str> = if written.is_full { field("paths").to_vec() } else { top.to_vec() };
    judge.require(!written.paths.is_empty(), &paths_at, "no path is named: what is to be watched?");
    let mut paths: Vec<PathBuf> = Vec::new();
    for (i, text) in written.paths.iter().enumerate() {
        let path = judge.path(&[paths_at.as_slice(), &[&i.to_string()]].concat(), text);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    judge.require(written.poll.is_none_or(|poll| !poll.0.is_zero()), &field("poll"), "this time cannot be zero");
    let ignore = Ignore::new(&written.ignore).unwrap_or_else(|(i, message)| {
        judge.error(&[&field("ignore")[..], &[&i.to_string()]].concat(), message);
        Ignore { texts: Vec::new(), names: Vec::new(), paths: Vec::new() }
    });
    let debounce = written.debounce.map_or(Duration::from_millis(500), |span| span.0);
    Some(Watch { paths, ignore, debounce, poll: written.poll.map(|span| span.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_count() {
        let ignore =
            Ignore::new(&["node_modules/".into(), "*.log".into(), "/dist".into(), "tmp/**/cache".into()]).unwrap();
        for (path, ignored) in [
            ("src/main.js", false),
            ("node_modules", true),
            ("lib/node_modules/x/index.js", true),
            ("logs/app.log", true),
            ("dist/app.js", true),
            ("src/dist/app.js", false),
            ("tmp/a/b/cache/x", true),
            ("tmp/a", false),
            (".git/index.lock", true),
            (".gitignore", false),
            ("src/.main.js.swp", true),
            ("src/main.js~", true),
            ("4913", true),
            ("", false),
        ] {
            assert_eq!(ignore.fits(Path::new(path)), ignored, "{path}");
        }
        assert_eq!(Ignore::new(&["a".into(), "[".into()]).unwrap_err().0, 1);
    }
}
