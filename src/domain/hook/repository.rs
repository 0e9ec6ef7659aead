//! Which repository a delivery is about, and whether a configured one is the same.

use super::text;

/// A repository as a delivery names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repository {
    /// `owner/name`; empty where the body has none.
    pub full_name: String,
    /// Every address that the body has for it.
    pub urls: Vec<String>,
}

impl Repository {
    pub(super) fn new(full_name: Option<String>, urls: impl IntoIterator<Item = Option<String>>) -> Self {
        Self {
            full_name: text::line(&full_name.unwrap_or_default(), 300),
            urls: urls.into_iter().flatten().filter_map(|url| text::some_line(&url, 1024)).collect(),
        }
    }
}

/// Is the configured repository the one of the delivery? Host and path count, in any case; the way of
/// access (ssh, https, `git@host:path`), user, port, `.git` and slashes at the end do not. A local
/// path is the same only as itself.
#[must_use]
pub fn same_repository(configured: &str, repository: &Repository) -> bool {
    let Some(ours) = place(configured) else { return false };
    repository.urls.iter().any(|url| place(url).as_ref() == Some(&ours))
}

#[derive(PartialEq, Eq)]
enum Place {
    Local(String),
    Remote { host: String, path: String },
}

fn place(url: &str) -> Option<Place> {
    let url = url.trim();
    if let Some(path) = url.strip_prefix("file://").or_else(|| url.starts_with('/').then_some(url)) {
        return Some(Place::Local(path.trim_end_matches('/').to_owned())).filter(|p| *p != Place::Local(String::new()));
    }
    let (authority, path) = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?,
        // git's short form for ssh: a colon ends the host.
        None => scp(url)?,
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next()?,
        None => host.split(':').next()?,
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
    if host.is_empty() || path.is_empty() {
        return None;
    }
    Some(Place::Remote { host: host.to_lowercase(), path: path.to_lowercase() })
}

fn scp(url: &str) -> Option<(&str, &str)> {
    let start = url.find('[').and_then(|open| Some(open + url[open..].find(']')?)).unwrap_or(0);
    let colon = start + url[start..].find(':')?;
    let (authority, path) = (&url[..colon], &url[colon + 1..]);
    (!authority.contains('/')).then_some((authority, path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(urls: &[&str]) -> Repository {
        Repository { full_name: String::new(), urls: urls.iter().map(|u| (*u).to_owned()).collect() }
    }

    const SAME: [&str; 11] = [
        "git@host.example:foo/bar.git",
        "git@host.example:/foo/bar",
        "host.example:Foo/Bar.git",
        "ssh://git@host.example/foo/bar.git",
        "ssh://git@Host.Example:2222/foo/bar/",
        "https://host.example/Foo/Bar",
        "https://host.example/foo/bar.git/",
        "https://user:pass@host.example:8443/foo/bar.git",
        "http://host.example/foo/bar/",
        "git://host.example/foo/bar.git",
        "git+ssh://git@host.example/FOO/BAR.git",
    ];

    #[test]
    fn every_way_of_access_is_the_same_repository() {
        for configured in SAME {
            for sent in SAME {
                assert!(same_repository(configured, &at(&["https://other.example/x/y", sent])), "{configured} {sent}");
            }
        }
    }

    #[test]
    fn another_repository_is_not() {
        for other in [
            "https://host.example/foo/bar2",
            "https://host.example/foo",
            "https://host.example/x/foo/bar",
            "https://evil.example/foo/bar",
            "https://host.example.evil.example/foo/bar",
            "https://host.example@evil.example/foo/bar",
            "git@host.example:bar.git",
            "/foo/bar",
            "file:///foo/bar.git",
            "https://host.example",
            "",
        ] {
            for configured in SAME {
                assert!(!same_repository(configured, &at(&[other])), "{configured} {other}");
            }
        }
        assert!(!same_repository("https://host/", &at(&["https://host/"])));
        assert!(!same_repository(SAME[0], &at(&[])));
    }

    #[test]
    fn a_local_path_is_itself_alone() {
        assert!(same_repository("/srv/git/blog.git", &at(&["/srv/git/blog.git/"])));
        assert!(same_repository("/srv/git/blog.git", &at(&["file:///srv/git/blog.git"])));
        for other in ["/srv/git/Blog.git", "/srv/git/blog", "https://srv/git/blog.git", "srv:git/blog.git"] {
            assert!(!same_repository("/srv/git/blog.git", &at(&[other])), "{other}");
        }
    }

    #[test]
    fn an_address_in_brackets_is_a_host() {
        assert!(same_repository("ssh://git@[::1]:22/foo/bar", &at(&["git@[::1]:foo/bar.git"])));
    }

    proptest! {
        #[test]
        fn any_text_is_judged(configured: String, sent: String) {
            let _ = same_repository(&configured, &at(&[&sent]));
        }

        #[test]
        fn what_is_the_same_is_so_both_ways(a in "[a-z@:/.]{1,20}", b in "[a-z@:/.]{1,20}") {
            prop_assert_eq!(same_repository(&a, &at(&[&b])), same_repository(&b, &at(&[&a])));
        }
    }
}
