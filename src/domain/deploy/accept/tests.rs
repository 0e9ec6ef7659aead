use proptest::prelude::*;

use super::*;
use crate::domain::model::Glob;

fn branch(text: &str) -> Trigger {
    Trigger::Push(Glob::new(text).unwrap())
}

fn app(name: &str, repo: &str, on: &[&str], secrets: &[&str]) -> App {
    App {
        name: name.parse().unwrap(),
        repo: repo.to_owned(),
        on: on.iter().map(|glob| branch(glob)).collect(),
        secrets: secrets.iter().map(|text| Secret::new(text.as_bytes().to_vec())).collect(),
        dialect: None,
    }
}

fn name(text: &str) -> AppName {
    text.parse().unwrap()
}

fn commit(digit: char) -> CommitId {
    digit.to_string().repeat(40).parse().unwrap()
}

fn push(ref_name: &str, after: Option<CommitId>) -> Change {
    let (what, ref_name) = (What::Push, ref_name.to_owned());
    Change { what, ref_name, before: None, deleted: after.is_none(), after, subject: None, author: None }
}

fn names(apps: &[&App]) -> Vec<String> {
    apps.iter().map(|app| app.name.to_string()).collect()
}

fn at(full_name: &str, url: &str) -> Repository {
    Repository { full_name: full_name.to_owned(), urls: vec![url.to_owned()] }
}

/// As [`super::judge`] does with what is known already.
fn judge(app: &App, change: &Change, known: &Known) -> Judgement {
    super::judge(app, change, || Ok::<_, ()>(known.clone())).unwrap()
}

const GITHUB: Option<&Dialect> = Some(&Dialect::GitHub);

fn three() -> Snapshot {
    Snapshot::new(vec![
        app("blog", "git@host.example:foo/bar.git", &[], &["one", "old"]),
        app("docs", "https://host.example/foo/bar", &["main"], &["one"]),
        app("api", "https://host.example/foo/api", &[], &["two"]),
        app("closed", "https://host.example/foo/closed", &[], &[]),
    ])
}

#[test]
fn a_named_app_is_proven_by_its_own_secrets_alone() {
    let snapshot = three();
    let with = |name, secret: &str| {
        let fits = |_: Option<&Dialect>, tried: &Secret| tried.matches(secret.as_bytes());
        snapshot.proven(Some(name), GITHUB, fits).map(|sender| names(&sender.apps))
    };
    assert_eq!(with("blog", "one"), Ok(vec!["blog".to_owned()]));
    assert_eq!(with("blog", "old"), Ok(vec!["blog".to_owned()]));
    assert_eq!(with("blog", "two"), Err(Unproven::NoneFits));
    assert_eq!(with("closed", "one"), Err(Unproven::NoSecret));
    assert_eq!(with("nobody", "one"), Err(Unproven::NoSuchApp));
}

#[test]
fn a_failure_costs_the_same_whether_the_app_exists_or_not() {
    let snapshot = three();
    for name in ["blog", "docs", "closed", "nobody"] {
        let mut tries = 0;
        let outcome = snapshot.proven(Some(name), GITHUB, |_, _| {
            tries += 1;
            false
        });
        assert!(outcome.is_err());
        assert_eq!(tries, 2, "{name}");
    }
}

#[test]
fn nobodys_secret_opens_nothing() {
    assert!(three().proven(Some("nobody"), GITHUB, |_, _| true).is_err());
    assert!(three().proven(Some("closed"), GITHUB, |_, _| true).is_err());
}

#[test]
fn without_a_name_the_first_fitting_secret_says_which_apps() {
    let snapshot = three();
    let with = |secret: &str| {
        let fits = |_: Option<&Dialect>, tried: &Secret| tried.matches(secret.as_bytes());
        snapshot.proven(None, GITHUB, fits).map(|sender| names(&sender.apps))
    };
    assert_eq!(with("one"), Ok(vec!["blog".to_owned(), "docs".to_owned()]));
    assert_eq!(with("two"), Ok(vec!["api".to_owned()]));
    assert_eq!(with("three"), Err(Unproven::NoneFits));
}

#[test]
fn a_dialect_that_the_config_fixes_decides() {
    let fixed = |name: &str, dialect: Option<Dialect>| App { dialect, ..app(name, "/r", &[], &["one"]) };
    let snapshot = Snapshot::new(vec![fixed("any", None), fixed("lab", Some(Dialect::GitLab))]);
    let with = |name, recognised: Option<Dialect>, spoken: Dialect| {
        let fits = |tried: Option<&Dialect>, _: &Secret| tried == Some(&spoken);
        let sender = snapshot.proven(name, recognised.as_ref(), fits);
        sender.map(|sender| (names(&sender.apps).join(" "), sender.dialect.name())).map_err(|why| why.to_string())
    };
    use Dialect::{GitHub, GitLab};
    assert_eq!(with(Some("lab"), Some(GitHub), GitLab), Ok(("lab".into(), "gitlab")));
    assert_eq!(with(Some("lab"), None, GitLab), Ok(("lab".into(), "gitlab")));
    assert_eq!(with(Some("lab"), Some(GitHub), GitHub), Err("no secret fits".into()));
    assert_eq!(with(Some("any"), Some(GitHub), GitHub), Ok(("any".into(), "github")));
    assert!(with(Some("any"), None, GitHub).unwrap_err().contains("no header tells"));
    assert_eq!(with(None, Some(GitHub), GitHub), Ok(("any".into(), "github")));
    assert_eq!(with(None, Some(GitHub), GitLab), Ok(("lab".into(), "gitlab")));
    assert_eq!(with(None, Some(GitLab), GitLab), Ok(("any lab".into(), "gitlab")));
    assert_eq!(with(None, None, GitLab), Ok(("lab".into(), "gitlab")));
    assert_eq!(with(None, None, GitHub), Err("no secret fits".into()));
}

#[test]
fn no_more_than_64_distinct_secrets_are_tried() {
    let apps = (0..100).map(|i| app(&format!("a{i}"), "/srv/x", &[], &[&format!("secret {}", i % 80)])).collect();
    let mut tries = 0;
    let snapshot = Snapshot::new(apps);
    let outcome = snapshot.proven(None, GITHUB, |_, _| {
        tries += 1;
        false
    });
    assert!(outcome.unwrap_err().to_string().contains("call /hooks/<app>"));
    assert_eq!(tries, MOST_SECRETS);
}

#[test]
fn the_repository_says_which_apps_where_no_name_does() {
    let snapshot = three();
    let all: Vec<&App> = snapshot.apps.iter().collect();
    let same = at("Foo/Bar", "ssh://git@host.example:2222/Foo/Bar.git");
    assert_eq!(names(&snapshot.matching(&all, false, &same).unwrap()), ["blog", "docs"]);
    let other = at("x/y", "https://host.example/x/y");
    assert_eq!(names(&snapshot.matching(&all[..1], true, &other).unwrap()), ["blog"]);
    let single = Snapshot::new(vec![app("only", "/srv/git/only", &[], &["s"])]);
    let only: Vec<&App> = single.apps.iter().collect();
    assert_eq!(names(&single.matching(&only, false, &other).unwrap()), ["only"]);
}

#[test]
fn an_unmatched_one_names_the_nearest_app() {
    let snapshot = three();
    let all: Vec<&App> = snapshot.apps.iter().collect();
    let nearest = |full: &str, apps: &[&App]| {
        let place = at(full, &format!("https://host.example/{full}"));
        snapshot.matching(apps, false, &place).unwrap_err().nearest.map(|app| app.to_string())
    };
    assert_eq!(nearest("foo/baz", &all).as_deref(), Some("blog"));
    assert_eq!(nearest("somewhere-else/api", &all).as_deref(), Some("api"));
    assert_eq!(nearest("a-quite-other/thing", &all), None);
    assert_eq!(nearest("a-quite-other/thing", &all[2..3]).as_deref(), Some("api"));
    let text = snapshot.matching(&all, false, &at("foo/baz", "https://host.example/foo/baz")).unwrap_err().to_string();
    assert_eq!(text, r#"repository "foo/baz" is no app's; the nearest app is "blog""#);
}

#[test]
fn only_the_whole_name_of_a_branch_counts() {
    for (on, ref_name, want) in [
        (&["x"][..], "refs/heads/x", None),
        (&["x"], "refs/heads/feature/x", Some(r#"branch "feature/x" is not deployed"#)),
        (&["feature/x"], "refs/heads/x", Some(r#"branch "x" is not deployed"#)),
        (&["feature/x"], "refs/heads/feature/x", None),
        (&["feature/*"], "refs/heads/feature/a/b", Some(r#"branch "feature/a/b" is not deployed"#)),
        (&["feature/**"], "refs/heads/feature/a/b", None),
        (&["main", "x"], "refs/heads/x", None),
        (&["X"], "refs/heads/x", Some(r#"branch "x" is not deployed"#)),
        (&["refs/heads/x"], "refs/heads/x", Some(r#"branch "x" is not deployed"#)),
        (&["x"], "refs/heads/refs/heads/x", Some(r#"branch "refs/heads/x" is not deployed"#)),
        (&[], "refs/heads/any", None),
        (&[], "refs/tags/v1", Some(r#"tag "v1" is not deployed"#)),
        (&["v1"], "refs/tags/v1", Some(r#"tag "v1" is not deployed"#)),
        (&["x"], "refs/notes/x", Some(r#"ref "refs/notes/x" is not deployed"#)),
    ] {
        let judged = judge(&app("a", "/r", on, &["s"]), &push(ref_name, Some(commit('a'))), &Known::default());
        let want = want.map_or(Judgement::Deploy, |reason| Judgement::Skip(reason.to_owned()));
        assert_eq!(judged, want, "{on:?} {ref_name}");
    }
    let deletion = judge(&app("a", "/r", &[], &["s"]), &push("refs/heads/x", None), &Known::default());
    assert_eq!(deletion, Judgement::Skip(r#"branch "x" was deleted"#.to_owned()));
}

#[test]
fn a_known_id_repeats_unless_its_deploy_came_to_nothing() {
    use DeployState::*;
    let a = app("a", "/r", &[], &["s"]);
    for (state, again) in [
        (Accepted, false),
        (Queued, false),
        (AwaitingApproval, false),
        (Fetching, false),
        (Checking, false),
        (Building, false),
        (Switching, false),
        (Verifying, false),
        (Live, false),
        (Superseded, false),
        (Failed, true),
        (RolledBack, true),
        (Cancelled, true),
        (Skipped, true),
    ] {
        let known = Known { same_id: Some((31, state)), ..Known::default() };
        let want = if again { Judgement::Deploy } else { Judgement::Duplicate(Some(31)) };
        assert_eq!(judge(&a, &push("refs/heads/x", Some(commit('a'))), &known), want, "{state}");
    }
}

#[test]
fn what_is_live_repeats_unless_something_else_is_on_its_way() {
    let a = app("a", "/r", &[], &["s"]);
    let x = |c| push("refs/heads/x", Some(commit(c)));
    let known = Known { live: Some(commit('a')), live_by: Some(7), ..Known::default() };
    assert_eq!(judge(&a, &x('a'), &known), Judgement::Duplicate(Some(7)));
    assert_eq!(judge(&a, &x('b'), &known), Judgement::Deploy);
    assert_eq!(judge(&a, &x('a'), &Known { live_by: None, ..known.clone() }), Judgement::Duplicate(None));
    assert_eq!(judge(&a, &x('a'), &Known { under_way: true, ..known }), Judgement::Deploy);
}

fn any_state() -> impl Strategy<Value = DeployState> {
    use DeployState::*;
    proptest::sample::select(vec![Queued, Building, Live, Superseded, Failed, RolledBack, Cancelled, Skipped])
}

fn any_known() -> impl Strategy<Value = Known> {
    let live = proptest::option::of(proptest::sample::select(vec!['a', 'b'])).prop_map(|digit| digit.map(commit));
    let id = proptest::option::of((1i64..5, any_state()));
    (id, live, proptest::option::of(1i64..5), any::<bool>()).prop_map(|(same_id, live, live_by, under_way)| Known {
        same_id,
        live,
        live_by,
        under_way,
    })
}

proptest! {
    /// An accepted delivery leads to exactly one deploy of each app that deploys it, in the config's
    /// order; one that leads to none is a duplicate where an app has had it, and skipped otherwise.
    #[test]
    fn every_app_is_judged_alone(
        knowns in proptest::collection::vec((any_known(), any::<bool>()), 1..6),
        deleted in any::<bool>(),
    ) {
        let push = push("refs/heads/x", (!deleted).then(|| commit('a')));
        let mut judged = Vec::new();
        for (i, (known, wanted)) in knowns.iter().enumerate() {
            let app = app(&format!("app{i}"), "/r", &[if *wanted { "x" } else { "y" }], &["s"]);
            let judgement = judge(&app, &push, known);
            if deleted || !wanted {
                prop_assert!(matches!(judgement, Judgement::Skip(_)));
            }
            judged.push((app.name.clone(), judgement));
        }
        let deployed: Vec<AppName> =
            judged.iter().filter(|(_, j)| *j == Judgement::Deploy).map(|(name, _)| name.clone()).collect();
        let repeated = judged.iter().any(|(_, j)| matches!(j, Judgement::Duplicate(_)));
        match outcome(judged) {
            Outcome::Accepted(apps) => prop_assert_eq!(apps, deployed),
            Outcome::Duplicate(_) => prop_assert!(deployed.is_empty() && repeated),
            Outcome::Skipped(reason) => prop_assert!(deployed.is_empty() && !repeated && !reason.is_empty()),
        }
    }

    /// The same delivery twice in a row never deploys twice.
    #[test]
    fn a_repeat_at_once_is_a_duplicate(known in any_known(), number in 1i64..9) {
        let a = app("a", "/r", &[], &["s"]);
        let push = push("refs/heads/x", Some(commit('a')));
        if judge(&a, &push, &known) == Judgement::Deploy {
            let after = Known { same_id: Some((number, DeployState::Queued)), under_way: true, ..known };
            prop_assert_eq!(judge(&a, &push, &after), Judgement::Duplicate(Some(number)));
        }
    }
}

#[test]
fn of_no_app_it_is_skipped() {
    assert_eq!(outcome(vec![(name("a"), Judgement::Deploy)]), Outcome::Accepted(vec![name("a")]));
    assert_eq!(outcome(Vec::<((), _)>::new()), Outcome::Skipped("no app deploys it".to_owned()));
    let skip = |why: &str| ((), Judgement::Skip(why.to_owned()));
    let several = ["a", "b", "a", "c", "d", "e"].map(skip);
    assert_eq!(outcome(several.into()), Outcome::Skipped("a; b; c; and 2 more".to_owned()));
}

#[test]
fn each_trigger_wants_its_own_and_nothing_else() {
    let glob = |text: &str| Glob::new(text).unwrap();
    let wanted = |trigger: Trigger, what: What, ref_name: &str| {
        let app = App { on: vec![trigger], ..app("a", "/r", &[], &["one"]) };
        let change = Change { what, after: None, deleted: false, ..push(ref_name, None) };
        judge(&app, &change, &Known::default()) == Judgement::Deploy
    };
    let (branch, tag) = ("refs/heads/v1", "refs/tags/v1");
    for (what, ref_name) in
        [(What::Push, branch), (What::Push, tag), (What::Release, tag), (What::Pipeline, branch), (What::Pipeline, tag)]
    {
        let is = |other: What, name: &str| what == other && ref_name == name;
        assert_eq!(wanted(Trigger::Push(glob("v*")), what, ref_name), is(What::Push, branch));
        assert_eq!(wanted(Trigger::Tag(glob("v*")), what, ref_name), is(What::Push, tag));
        assert_eq!(wanted(Trigger::Release, what, ref_name), is(What::Release, tag));
        assert_eq!(wanted(Trigger::Pipeline(glob("v*")), what, ref_name), is(What::Pipeline, branch));
    }
    assert!(!wanted(Trigger::Tag(glob("v*")), What::Push, "refs/tags/x/v1"));
    let default = app("a", "/r", &[], &["one"]);
    let release = Change { what: What::Release, deleted: false, ..push(tag, None) };
    assert!(matches!(judge(&default, &release, &Known::default()), Judgement::Skip(why) if why.contains("Release")));
}
