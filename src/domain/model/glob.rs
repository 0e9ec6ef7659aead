//! Patterns over names and paths.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// What makes a text a pattern.
const WILDCARDS: [char; 5] = ['*', '?', '[', '{', '\\'];

/// A pattern over names of branches, of tags, or of files: `*` stops at `/`, `**` does not.
#[derive(Clone)]
pub struct Glob {
    text: String,
    matcher: GlobMatcher,
}

impl Glob {
    /// # Errors
    /// When it is no pattern: why, in a few words.
    pub fn new(text: &str) -> Result<Self, String> {
        Self::build(text, text, true)
    }

    fn build(text: &str, pattern: &str, stops_at_slash: bool) -> Result<Self, String> {
        let glob = GlobBuilder::new(pattern).literal_separator(stops_at_slash).build();
        let glob = glob.map_err(|error| format!("{text:?} is no pattern: {}", error.kind()))?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn fits(&self, name: &str) -> bool {
        self.matcher.is_match(name)
    }

    /// The one name that fits, where there is no wildcard.
    #[must_use]
    pub fn single(&self) -> Option<&str> {
        (!self.text.contains(WILDCARDS)).then_some(self.text.as_str())
    }

    /// What every name that fits begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.text.find(WILDCARDS).map_or(self.text.as_str(), |end| &self.text[..end])
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Glob {}

/// One of several texts that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct BadGlob {
    /// Counted from 0.
    pub place: usize,
    pub why: String,
}

/// Patterns of which the last that fits decides; one that begins with `!` takes away what the others
/// take in. What none fits is in where all of them take away, and out where one takes in. No pattern
/// at all is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Globs(Vec<(bool, Glob)>);

impl Globs {
    /// Over the paths of files in a repository.
    ///
    /// # Errors
    /// At the first text that is no pattern: its place, and why.
    pub fn of_paths(texts: &[String]) -> Result<Self, BadGlob> {
        Self::all(texts, |text| {
            let inside = !text.starts_with('/') && !text.split('/').any(|part| part == "." || part == "..");
            let place = || format!("{text:?} fits no file: paths are those of the repository, such as \"app/**\"");
            if inside && !text.is_empty() { Glob::new(text) } else { Err(place()) }
        })
    }

    /// Over people. `*` and `?` are the only wildcards: `[bot]` is a part of names.
    ///
    /// # Errors
    /// As [`Globs::of_paths`].
    pub fn of_people(texts: &[String]) -> Result<Self, BadGlob> {
        let special = |c: char| "[]{}\\!".contains(c);
        Self::all(texts, |text| {
            if text.is_empty() {
                return Err("a name, a mail address or a pattern is expected".to_owned());
            }
            let literal = |c: char| if special(c) { format!("\\{c}") } else { c.to_string() };
            Glob::build(text, &text.chars().map(literal).collect::<String>(), false)
        })
    }

    fn all(texts: &[String], glob: impl Fn(&str) -> Result<Glob, String>) -> Result<Self, BadGlob> {
        let one = |(i, text): (usize, &String)| {
            let (excludes, rest) = text.strip_prefix('!').map_or((false, text.as_str()), |rest| (true, rest));
            glob(rest).map(|glob| (excludes, glob)).map_err(|why| BadGlob { place: i, why })
        };
        texts.iter().enumerate().map(one).collect::<Result<_, _>>().map(Self)
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn take(&self, name: &str) -> bool {
        self.take_any(&[name])
    }

    /// The same for something that has several names.
    #[must_use]
    pub fn take_any(&self, names: &[&str]) -> bool {
        let last = self.0.iter().rfind(|(_, glob)| names.iter().any(|name| glob.fits(name)));
        last.map_or_else(|| self.0.iter().all(|(excludes, _)| *excludes), |(excludes, _)| !excludes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Globs {
        Globs::of_paths(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_glob_stops_at_a_slash_and_knows_its_beginning() {
        let glob = |text: &str| Glob::new(text).unwrap();
        assert!(glob("release/*").fits("release/1") && !glob("release/*").fits("release/1/x"));
        assert!(glob("feature/**").fits("feature/a/b"));
        assert_eq!((glob("v*").single(), glob("main").single()), (None, Some("main")));
        assert_eq!((glob("v[0-9]*").prefix(), glob("main").prefix(), glob("**").prefix()), ("v", "main", ""));
        for bad in ["a[", "{a"] {
            assert!(Glob::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_pattern_that_fits_decides() {
        assert!(paths(&[]).take("anything"));
        let app = paths(&["app/**", "!app/docs/**", "app/docs/api.md"]);
        for (path, taken) in
            [("app/a/b.js", true), ("app/docs/x.md", false), ("app/docs/api.md", true), ("README.md", false)]
        {
            assert_eq!(app.take(path), taken, "{path}");
        }
        let all_but = paths(&["!docs/**", "!*.md"]);
        for (path, taken) in [("docs/a", false), ("README.md", false), ("src/README.md", true), ("a", true)] {
            assert_eq!(all_but.take(path), taken, "{path}");
        }
        for bad in ["/app/**", "../x", "./a", "a/../b", "", "!"] {
            assert_eq!(Globs::of_paths(&["a".into(), bad.into()]).unwrap_err().place, 1, "{bad}");
        }
    }

    #[test]
    fn people_may_have_brackets() {
        let people = |texts: &[&str]| {
            Globs::of_people(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
        };
        let no_bots = people(&["!*[bot]*"]);
        assert!(no_bots.take("Ann <ann@example.org>") && no_bots.take("bob"));
        assert!(!no_bots.take("dependabot[bot] <49+dependabot[bot]@users.example>"));
        let ours = people(&["*@example.org"]);
        assert!(ours.take_any(&["Ann", "ann@example.org"]) && !ours.take_any(&["Ann", "ann@example.org.evil"]));
    }
}
