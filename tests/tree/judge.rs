//! What is deployed, of all that a remote has.

use everhook::domain::{
    api::{Fetch, Fetched, Filters, Tip, TreeTask, Verdict, Wanted},
    model::CommitId,
};

use super::world::{World, wanted};

#[test]
fn the_tip_of_the_branch_is_found_and_described() {
    let world = World::new();
    let commit = world.commit(&[("a", "12345"), ("b/c", "123")], "first, and best");
    let fetched = world.fetch(|_| {});
    assert_eq!(fetched.verdict, Verdict::Deploy);
    assert_eq!(fetched.ref_name, "refs/heads/master");
    assert_eq!(fetched.commit, Some(commit.clone()));
    assert_eq!(fetched.subject.as_deref(), Some("first, and best"));
    assert_eq!(fetched.author.as_deref(), Some("Ann <ann@example.org>"));
    assert_eq!(fetched.tree_bytes, Some(8));
    let next = world.commit(&[("a", "2")], "second");
    assert_eq!(world.fetch(|task| task.live = Some(commit)).commit, Some(next));
}

#[test]
fn the_default_branch_is_the_remotes() {
    let world = World::new();
    let commit = world.commit(&[], "first");
    let fetched = world.fetch(|task| task.wanted.branches.clear());
    assert_eq!((fetched.ref_name.as_str(), fetched.commit), ("refs/heads/master", Some(commit.clone())));
    let other = world.fetch(|task| {
        task.wanted = wanted(&[], Some("refs/heads/dev"));
        task.commit = Some(commit.clone());
    });
    let Verdict::NotWanted { reason } = other.verdict else { panic!("{other:?}") };
    assert!(reason.contains("\"dev\"") && reason.contains("\"master\""), "{reason}");
    let (repo, mirror) = (world.repo(), world.path("mirror"));
    let ran = world.run(&TreeTask::LsRemote { repo, mirror, wanted: wanted(&[], None), live: Some(commit.clone()) });
    let tip: Tip = serde_json::from_slice(&ran.answer).unwrap();
    assert_eq!(tip, Tip { ref_name: "refs/heads/master".into(), commit, behind: Some(0) });
}

#[test]
fn a_late_delivery_is_older_and_a_forced_push_back_is_not() {
    let world = World::new();
    let one = world.commit(&[], "one");
    let two = world.commit(&[], "two");
    let three = world.commit(&[], "three");
    let judge = |commit: &CommitId, live: &CommitId| {
        world.fetch(|task| (task.commit, task.live) = (Some(commit.clone()), Some(live.clone()))).verdict
    };
    assert_eq!(judge(&two, &one), Verdict::Deploy);
    assert_eq!(judge(&one, &two), Verdict::Older);
    assert_eq!(judge(&three, &three), Verdict::Older);
    world.git(&["reset", "-q", "--hard", one.as_str()]);
    assert_eq!(judge(&one, &three), Verdict::Deploy);
    assert_eq!(judge(&three, &one), Verdict::Gone);
    let forced = world.commit(&[], "another two");
    assert_eq!(judge(&forced, &three), Verdict::Deploy);
    let unknown: CommitId = "1".repeat(40).parse().unwrap();
    assert_eq!(judge(&unknown, &three), Verdict::Gone);
}

#[test]
fn a_live_commit_that_the_remote_has_lost_is_no_obstacle() {
    let world = World::new();
    let commit = world.commit(&[], "one");
    world.commit(&[], "two");
    let lost: CommitId = "2".repeat(40).parse().unwrap();
    let fetched = world.fetch(|task| (task.commit, task.live) = (Some(commit), Some(lost)));
    assert_eq!(fetched.verdict, Verdict::Deploy);
}

#[test]
fn a_branch_that_is_gone_takes_its_commit_along() {
    let world = World::new();
    world.commit(&[], "one");
    world.git(&["checkout", "-q", "-b", "feature/x"]);
    let commit = world.commit(&[], "two");
    let judge = || {
        let fetched = world.fetch(|task| {
            task.wanted = wanted(&["feature/*"], Some("refs/heads/feature/x"));
            task.commit = Some(commit.clone());
        });
        fetched.verdict
    };
    assert_eq!(judge(), Verdict::Deploy);
    world.git(&["checkout", "-q", "master"]);
    world.git(&["branch", "-q", "-D", "feature/x"]);
    assert_eq!(judge(), Verdict::Gone);
    // A branch takes the name of what was a folder of branches.
    world.git(&["branch", "-q", "feature", "master"]);
    assert_eq!(world.fetch(|task| task.wanted.branches = vec!["feature".into()]).verdict, Verdict::Deploy);
}

#[test]
fn by_hand_a_branch_or_a_commit_of_one_is_taken_and_nothing_else() {
    let world = World::new();
    let one = world.commit(&[], "one");
    let two = world.commit(&[], "two");
    world.git(&["checkout", "-q", "-b", "secret"]);
    let hidden = world.commit(&[], "hidden");
    let by_hand = |rev: &str| world.fetch(|task| (task.rev, task.live) = (Some(rev.into()), Some(two.clone())));
    assert_eq!(by_hand("master").commit, Some(two.clone()));
    let short = by_hand(&one.as_str()[..8]);
    assert_eq!((short.verdict, short.commit), (Verdict::Deploy, Some(one)));
    assert_eq!(short.ref_name, "refs/heads/master");
    assert_eq!(by_hand(two.as_str()).verdict, Verdict::Deploy);
    for bad in ["secret", hidden.as_str(), "--upload-pack=touch /tmp/x", "master\nx", "", "HEAD~1", "deadbeef"] {
        let words = world.refused(|task| task.rev = Some(bad.into()));
        assert!(words.contains("no branch or tag that is deployed"), "{bad}: {words}");
    }
}

#[test]
fn by_hand_a_tag_names_its_commit() {
    let world = World::new();
    let one = world.commit(&[], "one");
    world.git(&["tag", "-a", "-m", "x", "v1"]);
    let two = world.commit(&[], "two");
    world.git(&["tag", "master", one.as_str()]);
    world.git(&["checkout", "-q", "-b", "other"]);
    let hidden = world.commit(&[], "hidden");
    world.git(&["tag", "hidden"]);
    let tags = |task: &mut Fetch| task.wanted.tags = ["v*", "master", "not-yet"].map(Into::into).to_vec();
    let by_hand = |rev: &str| {
        world.fetch(|task| {
            tags(task);
            task.rev = Some(rev.into());
        })
    };
    let named = |rev: &str| {
        let fetched = by_hand(rev);
        (fetched.ref_name, fetched.commit.unwrap())
    };
    assert_eq!(named("v1"), ("refs/tags/v1".into(), one.clone()));
    assert_eq!(named("refs/tags/master"), ("refs/tags/master".into(), one.clone()));
    assert_eq!(named("refs/heads/master"), ("refs/heads/master".into(), two));
    let words = world.refused(|task| {
        tags(task);
        task.rev = Some("master".into());
    });
    assert!(words.contains("a branch and a tag") && words.contains("refs/tags/master"), "{words}");
    // A tag that is not deployed itself names a commit of the branch that is, and no other.
    let fetched = world.fetch(|task| task.rev = Some("v1".into()));
    assert_eq!((fetched.ref_name.as_str(), fetched.commit), ("refs/heads/master", Some(one)));
    for hidden in ["hidden", "refs/tags/hidden", hidden.as_str(), "refs/heads/other"] {
        let words = world.refused(|task| task.rev = Some(hidden.into()));
        assert!(words.contains("no branch or tag that is deployed"), "{words}");
    }
}

/// The judgement of a push of this ref to what `commit` names.
fn pushed(world: &World, ref_name: &str, commit: &str, live: Option<&CommitId>) -> Fetched {
    world.fetch(|task| {
        task.wanted = Wanted { tags: vec!["v*".into()], ..wanted(&["v*"], Some(ref_name)) };
        (task.commit, task.live) = (Some(commit.parse().unwrap()), live.cloned());
    })
}

#[test]
fn a_tag_is_peeled_followed_and_no_branch_of_its_name() {
    let world = World::new();
    let one = world.commit(&[], "one");
    let two = world.commit(&[], "two");
    world.git(&["branch", "v1", two.as_str()]);
    world.git(&["tag", "-a", "-m", "x", "v1", one.as_str()]);
    let object = world.git(&["rev-parse", "refs/tags/v1"]);
    assert_ne!(object, one.as_str());
    for commit in [object.as_str(), one.as_str()] {
        let fetched = pushed(&world, "refs/tags/v1", commit, None);
        assert_eq!((fetched.verdict, fetched.commit.as_ref()), (Verdict::Deploy, Some(&one)), "{commit}");
        assert_eq!((fetched.ref_name.as_str(), fetched.subject.as_deref()), ("refs/tags/v1", Some("one")));
    }
    assert_eq!(pushed(&world, "refs/heads/v1", two.as_str(), None).commit, Some(two.clone()));
    // An older commit is deployed where a tag is put onto it: it is the tag's tip.
    assert_eq!(pushed(&world, "refs/tags/v1", &object, Some(&two)).verdict, Verdict::Deploy);

    // Moved away, to where nothing leads from the old one, and back.
    world.git(&["checkout", "-q", "--orphan", "apart"]);
    let apart = world.commit(&[], "apart");
    world.git(&["tag", "-f", "-a", "-m", "y", "v1", apart.as_str()]);
    let moved = world.git(&["rev-parse", "refs/tags/v1"]);
    assert_eq!(pushed(&world, "refs/tags/v1", &moved, Some(&one)).commit, Some(apart.clone()));
    assert_eq!(pushed(&world, "refs/tags/v1", &object, Some(&apart)).verdict, Verdict::Gone, "a late delivery");
    world.git(&["tag", "-f", "v1", one.as_str()]);
    assert_eq!(pushed(&world, "refs/tags/v1", one.as_str(), Some(&apart)).verdict, Verdict::Deploy);

    world.git(&["tag", "-d", "v1"]);
    assert_eq!(pushed(&world, "refs/tags/v1", one.as_str(), None).verdict, Verdict::Gone);
    let blob = world.git(&["hash-object", "-w", "-t", "blob", "/dev/null"]);
    world.git(&["tag", "v2", &blob]);
    let words = world.refused(|task| {
        task.wanted = Wanted { tags: vec!["v*".into()], ..wanted(&[], Some("refs/tags/v2")) };
    });
    assert_eq!(words, "refs/tags/v2 leads to no commit");
}

#[test]
fn filters_are_judged_on_everything_that_is_not_live() {
    let world = World::new();
    let live = world.commit(&[("app/a", "1"), ("docs/a", "1")], "first");
    let app = world.commit(&[("app/a", "2")], "app");
    let docs = world.commit(&[("docs/a", "2")], "docs");
    let judge = |live: Option<&CommitId>, commit: &CommitId, paths: &[&str], authors: &[&str]| {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.into()).collect();
        let fetched = world.fetch(|task| {
            (task.commit, task.live) = (Some(commit.clone()), live.cloned());
            task.filters = Some(Filters { paths: texts(paths), authors: texts(authors) });
        });
        match fetched.verdict {
            Verdict::NotWanted { reason } => reason,
            verdict => format!("{verdict:?}"),
        }
    };
    let of_app = ["app/**"];
    assert_eq!(judge(Some(&live), &docs, &of_app, &[]), "Deploy", "it holds a change of app");
    let why = judge(Some(&app), &docs, &of_app, &[]);
    assert!(why.contains("`paths`") && why.contains(app.short()), "{why}");
    assert_eq!(judge(Some(&app), &docs, &["**", "!app/**"], &[]), "Deploy");
    assert!(judge(Some(&app), &docs, &["!docs/**"], &[]).contains("`paths`"));
    assert_eq!(judge(None, &docs, &of_app, &[]), "Deploy", "nothing is live");
    let lost: CommitId = "2".repeat(40).parse().unwrap();
    assert_eq!(judge(Some(&lost), &docs, &of_app, &["nobody"]), "Deploy", "what is live is known no more");

    assert_eq!(judge(Some(&app), &docs, &[], &["*@example.org"]), "Deploy");
    assert!(judge(Some(&app), &docs, &[], &["!Ann"]).contains("`authors`"));
    world.git(&["commit", "-q", "--allow-empty", "--author", "renovate[bot] <bot@example.org>", "-m", "bump"]);
    let bot: CommitId = world.git(&["rev-parse", "HEAD"]).parse().unwrap();
    assert!(judge(Some(&docs), &bot, &[], &["!*[bot]"]).contains("`authors`"));
    assert_eq!(judge(Some(&app), &bot, &[], &["!*[bot]"]), "Deploy", "a person's commit is not live either");

    let skip = world.commit(&[("app/a", "3")], "wip\n\nnot yet [Skip Deploy]");
    assert!(judge(Some(&bot), &skip, &[], &[]).contains("[skip deploy]"));
    let next = world.commit(&[], "done");
    assert_eq!(judge(Some(&bot), &next, &[], &[]), "Deploy");
    // By hand nothing of this counts.
    assert_eq!(world.fetch(|task| (task.commit, task.live) = (Some(skip), Some(bot))).verdict, Verdict::Deploy);
}

#[test]
fn of_several_that_were_delivered_the_newest_is_taken() {
    let world = World::new();
    let [one, two, three] = ["one", "two", "three"].map(|subject| world.commit(&[], subject));
    let chosen = |commit: &CommitId, also: &[&CommitId]| {
        let fetched = world.fetch(|task| {
            task.commit = Some(commit.clone());
            task.also = also.iter().map(|&commit| commit.clone()).collect();
        });
        assert_eq!(fetched.verdict, Verdict::Deploy);
        fetched.commit.unwrap()
    };
    let lost: CommitId = "2".repeat(40).parse().unwrap();
    assert_eq!(chosen(&two, &[&one]), two);
    assert_eq!(chosen(&one, &[&two]), two, "the older one came late");
    assert_eq!(chosen(&lost, &[&one, &two, &lost]), two);
    assert_ne!(chosen(&one, &[&two]), three, "nobody delivered the tip");
}

#[test]
fn how_far_behind_is_known_where_the_commits_are() {
    let world = World::new();
    let [one, two, three] = ["one", "two", "three"].map(|subject| world.commit(&[], subject));
    let fetched = world.fetch(|task| (task.commit, task.live) = (Some(two.clone()), Some(one.clone())));
    assert_eq!(fetched.behind, [(one.clone(), 2), (two, 1)].into());
    let tip = |live: &CommitId| {
        let (repo, mirror) = (world.repo(), world.path("mirror"));
        let task = TreeTask::LsRemote { repo, mirror, wanted: wanted(&["master"], None), live: Some(live.clone()) };
        serde_json::from_slice::<Tip>(&world.run(&task).answer).unwrap().behind
    };
    assert_eq!((tip(&one), tip(&three)), (Some(2), Some(0)));
    world.commit(&[], "four");
    assert_eq!(tip(&one), None, "the mirror does not have the tip");
}
