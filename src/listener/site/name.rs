//! What a URL's path means inside the folder. Pure.

use std::{
    ffi::OsString,
    fmt::Write,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use crate::domain::hook::percent_decode;

/// A name that may be looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// Relative; `.` for the folder itself.
    pub path: PathBuf,
    /// It ends with a slash: a folder is meant.
    pub slash: bool,
}

impl Name {
    /// `None` for names that are never served: with a dot at the front (`..` among them), NUL,
    /// backslash or an encoded slash in a part, or broken encoding.
    pub(super) fn new(url_path: &str) -> Option<Self> {
        let mut path = PathBuf::new();
        for part in url_path.strip_prefix('/')?.split('/').filter(|part| !part.is_empty()) {
            let part = percent_decode(part.as_bytes(), false).ok()?;
            let hidden = part.starts_with(b".") && *part != *b".well-known";
            if hidden || part.iter().any(|b| matches!(b, b'/' | b'\\' | 0)) {
                return None;
            }
            path.push(OsString::from_vec(part.into_owned()));
        }
        if path.as_os_str().is_empty() {
            path.push(".");
        }
        Some(Self { path, slash: url_path.ends_with('/') })
    }

    /// The URL's path with the slash at its end, for `Location`. It starts with one slash: two would
    /// name another host.
    pub(super) fn location(&self) -> String {
        let mut location = String::from("/");
        for byte in self.path.as_os_str().as_bytes() {
            if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
                location.push(char::from(*byte));
            } else {
                // Writing into a string cannot fail.
                let _ = write!(location, "%{byte:02X}");
            }
        }
        location.push('/');
        location
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    fn path(url: &str) -> Option<String> {
        Name::new(url).map(|name| name.path.to_str().unwrap().to_owned())
    }

    #[test]
    fn names_are_decoded_and_plain() {
        assert_eq!(path("/").as_deref(), Some("."));
        assert_eq!(path("/a/b.html").as_deref(), Some("a/b.html"));
        assert_eq!(path("//a///b/").as_deref(), Some("a/b"));
        assert_eq!(path("/a%20b+c/%C3%BC").as_deref(), Some("a b+c/ü"));
        assert_eq!(path("/.well-known/x").as_deref(), Some(".well-known/x"));
        assert!(Name::new("/a/").unwrap().slash && !Name::new("/a").unwrap().slash);
    }

    #[test]
    fn what_leads_out_or_hides_is_not_there() {
        for bad in [
            "",
            "a",
            "*",
            "/..",
            "/a/../b",
            "/%2e%2e/x",
            "/.",
            "/.git/config",
            "/a/.env",
            "/a%2f..%2fb",
            "/a%00",
            "/a\\b",
            "/a%5cb",
            "/%",
            "/%2",
            "/.well-known2",
        ] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_location_stays_on_this_host() {
        assert_eq!(Name::new("//evil.example/x").unwrap().location(), "/evil.example/x/");
        assert_eq!(Name::new("/a%20b/%0d%0ac").unwrap().location(), "/a%20b/%0D%0Ac/");
    }

    proptest! {
        #[test]
        fn no_path_leads_out(url in "/[a-z./%2e5c\\\\]{0,30}") {
            if let Some(name) = Name::new(&url) {
                prop_assert!(name.path.is_relative());
                prop_assert!(name.path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)));
                prop_assert!(!name.location().starts_with("//"));
            }
        }
    }
}
