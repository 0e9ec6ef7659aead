//! Paths: which of SURFACE.md section 5 is meant. Pure.

use std::borrow::Cow;

use crate::domain::hook::percent_decode;

/// Of what is looked at.
const READ: &str = "GET, HEAD";

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// A delivery, for the app of this name or for whichever follows its repository.
    Hook(Option<String>),
    Health,
    Change(String, Action),
    /// What is to become of a deploy.
    Judge(String, Sentence),
    Redeliver(String),
    Status,
    App(String),
    Events,
    /// Of an app or an instance.
    Logs(String),
    Deploys,
    Deploy(String),
    Deliveries,
    Delivery(String),
    OpenApi,
    Metrics,
}

/// What people change over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Restart,
    Start,
    Stop,
    Deploy,
    Rollback,
    Freeze,
    Unfreeze,
}

/// What people say of a deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sentence {
    Cancel,
    Approve,
}

impl Action {
    pub(super) const ALL: [Self; 7] =
        [Self::Restart, Self::Start, Self::Stop, Self::Deploy, Self::Rollback, Self::Freeze, Self::Unfreeze];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Deploy => "deploy",
            Self::Rollback => "rollback",
            Self::Freeze => "freeze",
            Self::Unfreeze => "unfreeze",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// No app's name is longer than 63 characters: one more keeps a longer one wrong.
const NAME: usize = 64;
/// No path has more parts.
const LONGEST: usize = 5;

impl Route {
    /// Slashes at the end and doubled ones make no difference.
    pub(super) fn find(path: &str) -> Option<Self> {
        let mut parts = [const { Cow::Borrowed("") }; LONGEST];
        let mut named = path.split('/').filter(|part| !part.is_empty());
        let there = parts.iter_mut().zip(named.by_ref()).map(|(part, name)| *part = plain(name)).count();
        if named.next().is_some() {
            return None;
        }
        Some(match parts.each_ref().map(|part| &**part)[..there] {
            ["hooks" | "deploy"] => Self::Hook(None),
            ["hooks" | "deploy", app] => Self::Hook(Some(app.chars().take(NAME).collect())),
            ["healthz"] => Self::Health,
            ["api", "v1", "apps", app, action] => Self::Change(app.to_owned(), Action::from_name(action)?),
            ["api", "v1", "apps", app] => Self::App(app.to_owned()),
            ["api", "v1", "status"] => Self::Status,
            ["api", "v1", "events"] => Self::Events,
            ["api", "v1", "logs", app] => Self::Logs(app.to_owned()),
            ["api", "v1", "deploys"] => Self::Deploys,
            ["api", "v1", "deploys", id] => Self::Deploy(id.to_owned()),
            ["api", "v1", "deploys", id, "cancel"] => Self::Judge(id.to_owned(), Sentence::Cancel),
            ["api", "v1", "deploys", id, "approve"] => Self::Judge(id.to_owned(), Sentence::Approve),
            ["api", "v1", "deliveries", id, "redeliver"] => Self::Redeliver(id.to_owned()),
            ["api", "v1", "deliveries"] => Self::Deliveries,
            ["api", "v1", "deliveries", id] => Self::Delivery(id.to_owned()),
            ["api", "v1", "openapi.json"] => Self::OpenApi,
            ["metrics"] => Self::Metrics,
            _ => return None,
        })
    }

    /// The methods that are understood, as the `Allow` header has them.
    pub(super) fn methods(&self) -> &'static str {
        match self {
            Self::Hook(_) | Self::Change(..) | Self::Judge(..) | Self::Redeliver(_) => "POST",
            _ => READ,
        }
    }
}

/// One part of a path, decoded; as it is where its encoding is broken, which no name is.
fn plain(part: &str) -> Cow<'_, str> {
    match percent_decode(part.as_bytes(), false) {
        Ok(Cow::Owned(bytes)) => String::from_utf8_lossy(&bytes).into_owned().into(),
        Ok(Cow::Borrowed(_)) | Err(_) => part.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slashes_and_encoding_make_no_difference() {
        let blog = Some(Route::Hook(Some("blog".into())));
        for path in
            ["/hooks/blog", "/deploy/blog", "/hooks/blog/", "//hooks///blog//", "/hooks/%62log", "/%68ooks/blog"]
        {
            assert_eq!(Route::find(path), blog, "{path}");
        }
        for path in ["/hooks", "/deploy/", "//hooks//"] {
            assert_eq!(Route::find(path), Some(Route::Hook(None)), "{path}");
        }
        assert_eq!(Route::find("/api//v1/apps/blog/restart/"), Some(Route::Change("blog".into(), Action::Restart)));
        assert_eq!(Route::find("/api/v1/deploys/7"), Some(Route::Deploy("7".into())));
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        for path in [
            "/",
            "",
            "*",
            "/hooks/a/b",
            "/hook",
            "/api",
            "/api/v1",
            "/api/v1/apps/blog/explode",
            "/api/v2/status",
            "/healthz/x",
            "/HOOKS/blog",
            "/hooks%2Fblog",
            "/../hooks/blog",
        ] {
            assert_eq!(Route::find(path), None, "{path}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_one_stays_so() {
        let name = |path: &str| match Route::find(path) {
            Some(Route::Hook(Some(name))) => name,
            other => panic!("{other:?}"),
        };
        for path in ["/hooks/a%2Fb", "/hooks/%zz", "/hooks/%ff", "/hooks/..", &format!("/hooks/{}", "a".repeat(5000))] {
            assert!(name(path).parse::<crate::domain::model::AppName>().is_err(), "{path}");
            assert!(name(path).len() <= NAME * 4);
        }
    }

    proptest! {
        #[test]
        fn any_path_is_judged(path: String) {
            let _ = Route::find(&path);
        }
    }
}
