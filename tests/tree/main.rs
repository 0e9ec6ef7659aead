//! The tree helper on real repositories: what it answers, what it writes, and what it does not touch.
#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use everhook::domain::{
    api::{DAMAGED, Fetch, Fetched, Filters, Tip, TreeTask, Verdict, Wanted},
    model::CommitId,
};
use tempfile::TempDir;

/// A repository, a mirror, and an app's folders.
struct World {
    dir: TempDir,
    /// No file that it writes is larger, in bytes.
    limit: Option<u64>,
    /// Fetches as this uid, works as that one.
    users: Option<(u32, u32)>,
}

fn wanted(branches: &[&str], ref_name: Option<&str>) -> Wanted {
    let branches = branches.iter().map(|&branch| branch.into()).collect();
    Wanted { branches, tags: vec![], ref_name: ref_name.map(Into::into) }
}

struct Ran {
    ok: bool,
    code: Option<i32>,
    answer: Vec<u8>,
    stderr: String,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let world = Self { dir, limit: None, users: None };
        for folder in ["mirror", "release", "shared", "repo"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        world.git(&["init", "-q", "-b", "master"]);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "safe.directory=*"])
            .args(args)
            .current_dir(self.path("repo"))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn commit(&self, files: &[(&str, &str)], subject: &str) -> CommitId {
        for (name, text) in files {
            self.write(&format!("repo/{name}"), text);
        }
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", subject]);
        self.git(&["rev-parse", "HEAD"]).parse().unwrap()
    }

    fn repo(&self) -> String {
        self.path("repo").to_str().unwrap().to_owned()
    }

    fn run(&self, task: &TreeTask) -> Ran {
        let fetches = matches!(task, TreeTask::Fetch(_) | TreeTask::LsRemote { .. } | TreeTask::Tidy { .. });
        let answer = self.path("answer");
        File::create(&answer).unwrap();
        let mut command = match self.users {
            None => Command::new("/bin/sh"),
            Some((fetcher, app)) => {
                let uid = if fetches { fetcher } else { app };
                let mut command = Command::new("setpriv");
                command.args([&format!("--reuid={uid}"), &format!("--regid={app}"), "--clear-groups", "/bin/sh"]);
                fs::set_permissions(&answer, fs::Permissions::from_mode(0o666)).unwrap();
                command
            }
        };
        // As the supervisor does: whatever the path, it is executed from where it can be.
        let limit = self.limit.map(|bytes| format!("prlimit --fsize={bytes}:")).unwrap_or_default();
        let script = format!("exec {limit} \"$0\" tree \"$1\" 3>'{}'", answer.display());
        let Output { status, stderr, .. } = command
            .args(["-c", &script, &self.binary(), &serde_json::to_string(task).unwrap()])
            .env("HOME", self.path("home"))
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "core.hooksPath")
            .env("GIT_CONFIG_VALUE_0", "/evil")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        Ran { ok: status.success(), code: status.code(), answer: fs::read(answer).unwrap(), stderr }
    }

    /// The binary under test, where other users may execute it.
    fn binary(&self) -> String {
        let built = env!("CARGO_BIN_EXE_everhook");
        if self.users.is_none() {
            return built.to_owned();
        }
        let copy = self.path("everhook");
        if !copy.exists() {
            fs::copy(built, &copy).unwrap();
        }
        copy.to_str().unwrap().to_owned()
    }

    fn task(&self) -> Fetch {
        Fetch {
            deploy: 1,
            repo: self.repo(),
            mirror: self.path("mirror"),
            wanted: wanted(&["master"], None),
            commit: None,
            also: vec![],
            rev: None,
            asked: false,
            damaged: None,
            live: None,
            changes: vec![],
            filters: None,
        }
    }

    fn try_fetch(&self, change: impl FnOnce(&mut Fetch)) -> Ran {
        let mut task = self.task();
        change(&mut task);
        self.run(&TreeTask::Fetch(Box::new(task)))
    }

    fn fetch(&self, change: impl FnOnce(&mut Fetch)) -> Fetched {
        let ran = self.try_fetch(change);
        assert!(ran.ok, "{}", ran.stderr);
        serde_json::from_slice(&ran.answer).unwrap()
    }

    /// The sentence that a refused fetch ends with.
    fn refused(&self, change: impl FnOnce(&mut Fetch)) -> String {
        let ran = self.try_fetch(change);
        assert!(!ran.ok, "{:?}", String::from_utf8_lossy(&ran.answer));
        ran.last_words()
    }

    fn checkout(&self, commit: &CommitId) {
        let (mirror, release) = (self.path("mirror"), self.path("release"));
        let ran = self.run(&TreeTask::Checkout { mirror, release, commit: commit.clone() });
        assert!(ran.ok, "{}", ran.stderr);
    }

    fn share(&self, previous: Option<&str>, release: &str, paths: &[&str]) -> Ran {
        self.run(&TreeTask::Share {
            release: self.path(release),
            shared: self.path("shared"),
            previous: previous.map(|name| self.path(name)),
            paths: paths.iter().map(PathBuf::from).collect(),
        })
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn entries(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Ran {
    fn last_words(&self) -> String {
        self.stderr.trim_end().lines().next_back().unwrap_or_default().to_owned()
    }
}

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

#[test]
fn addresses_and_refs_are_never_options() {
    let world = World::new();
    let commit = world.commit(&[], "one");
    let witness = world.path("witness");
    let attack = format!("--upload-pack=touch {}", witness.display());
    for repo in [attack.clone(), format!("ext::sh -c touch% {}", witness.display()), "a\nb".into(), String::new()] {
        world.refused(|task| task.repo = repo);
    }
    for name in [attack.as_str(), "refs/heads/--upload-pack=x", "refs/heads/a\nb", "refs/tags/v1", "refs/heads/a..b"] {
        let fetched = world.fetch(|task| {
            task.wanted = wanted(&["**"], Some(name));
            task.commit = Some(commit.clone());
        });
        assert!(matches!(fetched.verdict, Verdict::NotWanted { .. }), "{name}: {fetched:?}");
    }
    world.refused(|task| task.wanted.branches = vec![attack]);
    assert!(!witness.exists());
}

#[test]
fn what_is_missing_is_named() {
    let world = World::new();
    world.commit(&[], "one");
    let missing = world.path("nothing").to_str().unwrap().to_owned();
    let words = world.refused(|task| task.repo.clone_from(&missing));
    assert_eq!(words, format!("there is no repository at {missing}: check `repo`"));
    let words = world.refused(|task| task.repo = world.path("shared").to_str().unwrap().into());
    assert!(words.contains("is no git repository"), "{words}");
    let words = world.refused(|task| task.wanted.branches = vec!["nope".into()]);
    assert_eq!(words, format!("{} has no branch \"nope\"", world.repo()));
    let words = world.refused(|task| task.wanted.branches = vec!["a*".into(), "b".into()]);
    assert!(words.contains("--rev"), "{words}");
    let words = World::new().refused(|task| task.wanted.branches.clear());
    assert!(words.contains("no default branch"), "{words}");
    let words = world.refused(|task| task.repo = "http://me:hunter2@127.0.0.1:1/a.git".into());
    assert!(words.contains("could not be reached") && !words.contains("hunter2"), "{words}");
}

#[test]
fn submodules_and_large_files_are_refused_by_name() {
    let world = World::new();
    let commit = world.commit(&[("a", "1")], "one");
    world.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{commit},vendor/lib")]);
    world.git(&["commit", "-q", "-m", "submodule"]);
    let words = world.refused(|_| {});
    assert!(words.contains("\"vendor/lib\"") && words.contains("submodule"), "{words}");
    world.git(&["reset", "-q", "--hard", commit.as_str()]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    world.commit(&[("docs/example", pointer)], "looks like one");
    assert_eq!(world.fetch(|_| {}).verdict, Verdict::Deploy);
    world.git(&["rm", "-q", "docs/example"]);
    world.commit(&[("art/.gitattributes", "*.psd filter=lfs diff=lfs\n")], "none yet");
    assert_eq!(world.fetch(|_| {}).verdict, Verdict::Deploy);
    // Git would call the filter, were it there; the pointer is committed as it is.
    world.git(&["config", "filter.lfs.clean", "cat"]);
    world.commit(&[("art/big.psd", pointer)], "one");
    let words = world.refused(|_| {});
    assert!(words.contains("\"art/big.psd\"") && words.contains("LFS"), "{words}");
}

#[test]
fn a_damaged_mirror_is_made_anew() {
    let world = World::new();
    let commit = world.commit(&[("a", "1")], "one");
    world.fetch(|_| {});
    let damage: [fn(&Path); 4] = [
        |mirror| fs::remove_dir_all(mirror.join("objects")).unwrap(),
        |mirror| fs::write(mirror.join("HEAD"), "nonsense").unwrap(),
        |mirror| fs::write(mirror.join("config"), "[[[").unwrap(),
        |mirror| {
            for folder in fs::read_dir(mirror.join("objects")).unwrap().flatten() {
                for file in fs::read_dir(folder.path()).unwrap().flatten() {
                    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o600)).unwrap();
                    fs::write(file.path(), "").unwrap();
                }
            }
        },
    ];
    for (number, damage) in damage.into_iter().enumerate() {
        damage(&world.path("mirror"));
        let ran = world.try_fetch(|_| {});
        assert!(ran.ok, "damage {number}: {}", ran.stderr);
        let fetched: Fetched = serde_json::from_slice(&ran.answer).unwrap();
        assert_eq!(fetched.commit, Some(commit.clone()), "damage {number}");
    }
}

#[test]
fn damage_that_a_checkout_finds_is_told_apart() {
    let world = World::new();
    let commit = world.commit(&[("a", "some text")], "one");
    world.fetch(|_| {});
    let blob = world.git(&["rev-parse", "HEAD:a"]);
    fs::remove_file(world.path("mirror/objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    let ran = world.run(&TreeTask::Checkout {
        mirror: world.path("mirror"),
        release: world.path("release"),
        commit: commit.clone(),
    });
    assert_eq!(ran.code, Some(DAMAGED.into()), "{}", ran.stderr);
    let fetched = world.fetch(|task| (task.damaged, task.commit) = (Some(ran.last_words()), Some(commit.clone())));
    assert_eq!(fetched.commit, Some(commit.clone()));
    fs::remove_dir_all(world.path("release")).unwrap();
    fs::create_dir(world.path("release")).unwrap();
    world.checkout(&commit);
    assert_eq!(world.read("release/a"), "some text");
    let gone = "9".repeat(40).parse().unwrap();
    let again = TreeTask::Checkout { mirror: world.path("mirror"), release: world.path("release"), commit: gone };
    assert_eq!(world.run(&again).code, Some(1), "what is in the way is no damage");
}

#[test]
fn a_fetch_brings_no_more_than_it_may() {
    let mut world = World::new();
    let commit = world.commit(&[("a", "1")], "one");
    world.fetch(|_| {});
    // What no packing makes smaller.
    let mut state = 1_u64;
    let noise: String = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(33 + u8::try_from((state >> 33) % 90).unwrap())
        })
        .collect();
    world.commit(&[("noise", &noise)], "a large one");
    world.limit = Some(100 << 10);
    let before = size(&world.path("mirror"));
    let words = world.refused(|_| {});
    assert!(words.contains("brings more than 100 KiB at once") && words.contains("10 GiB"), "{words}");
    assert!(size(&world.path("mirror")) < before + (20 << 10), "nothing of it is left");
    world.limit = None;
    assert_ne!(world.fetch(|_| {}).commit, Some(commit));
}

#[test]
fn names_that_were_in_the_way_are_gone_and_nothing_else() {
    let world = World::new();
    let base = world.commit(&[("a", "1")], "one");
    world.fetch(|_| {});
    for (gone, names) in [(vec![], vec!["x"]), (vec!["x"], vec!["x/y", "x/z"]), (vec!["x/y", "x/z"], vec!["x"])] {
        gone.iter().for_each(|name| drop(world.git(&["branch", "-D", name])));
        for name in names {
            world.git(&["branch", name]);
            let full = format!("refs/heads/{name}");
            let ran = world.try_fetch(|task| {
                (task.wanted, task.commit) = (wanted(&["**"], Some(&full)), Some(base.clone()));
            });
            assert!(ran.ok && !ran.stderr.contains("damaged"), "{name}: {}", ran.stderr);
        }
    }
    let mirrored = world.path("mirror/refs/remotes/origin");
    assert!(mirrored.join("x").is_file() && mirrored.join("master").is_file());
}

#[test]
fn locks_of_the_dead_hold_nobody_up() {
    let world = World::new();
    world.commit(&[], "one");
    world.fetch(|_| {});
    let left = [
        "HEAD.lock",
        "packed-refs.lock",
        "config.lock",
        "shallow.lock",
        "refs/remotes/origin/master.lock",
        "objects/pack/tmp_pack_x",
    ];
    for name in left {
        world.write(&format!("mirror/{name}"), "");
    }
    let commit = world.commit(&[], "two");
    assert_eq!(world.fetch(|_| {}).commit, Some(commit));
    for name in left {
        assert!(!world.path("mirror").join(name).exists(), "{name}");
    }
}

#[test]
fn a_checkout_is_what_a_clone_has_and_nothing_of_git() {
    let world = World::new();
    world.write("repo/run.sh", "#!/bin/sh\n");
    fs::set_permissions(world.path("repo/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../outside", world.path("repo/link")).unwrap();
    let files = [
        (".gitattributes", "* filter=evil\ntests export-ignore\n*.txt text eol=crlf\n"),
        ("tests/a", "kept"),
        ("dos.txt", "a\nb\n"),
        ("deep/er/file", "x"),
        ("ünï cödé", "y"),
    ];
    let commit = world.commit(&files, "one");
    world.fetch(|_| {});
    world.checkout(&commit);
    let mode = |name: &str| fs::metadata(world.path("release").join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("deep/er/file"), mode("deep")), (0o755, 0o644, 0o755));
    assert_eq!(fs::read_link(world.path("release/link")).unwrap(), Path::new("../outside"));
    assert_eq!(world.read("release/dos.txt"), "a\r\nb\r\n");
    assert_eq!(world.read("release/ünï cödé"), "y");
    assert_eq!(world.read("release/tests/a"), "kept");
    assert_eq!(world.entries("release"), [".gitattributes", "deep", "dos.txt", "link", "run.sh", "tests", "ünï cödé"]);
    let again = TreeTask::Checkout { mirror: world.path("mirror"), release: world.path("release"), commit };
    assert!(world.run(&again).last_words().contains("not empty"));
}

#[test]
fn shared_paths_become_links_and_fill_shared_once() {
    let world = World::new();
    world.write("release/db.json", "tracked");
    world.write("release/uploads/.keep", "");
    let ran = world.share(None, "release", &["db.json", "uploads", "log/app.log", "tmp/"]);
    assert!(ran.ok, "{}", ran.stderr);
    for name in ["db.json", "uploads", "log/app.log", "tmp"] {
        let target = fs::read_link(world.path("release").join(name)).unwrap();
        assert_eq!(target, world.path("shared").join(name));
    }
    assert_eq!(world.read("shared/db.json"), "tracked");
    assert!(world.path("shared/uploads/.keep").exists() && world.path("shared/tmp").is_dir());
    world.write("release/log/app.log", "through the link");
    assert_eq!(world.read("shared/log/app.log"), "through the link");

    world.write("shared/db.json", "grown");
    world.write("next/db.json", "tracked anew");
    assert!(world.share(Some("release"), "next", &["db.json"]).ok);
    assert_eq!(world.read("next/db.json"), "grown");
}

#[test]
fn a_link_in_a_commit_leads_nowhere() {
    let world = World::new();
    fs::create_dir(world.path("outside")).unwrap();
    symlink(world.path("outside"), world.path("repo/config")).unwrap();
    let commit = world.commit(&[], "hostile");
    world.fetch(|_| {});
    world.checkout(&commit);
    let ran = world.share(None, "release", &["config/app.conf"]);
    assert!(!ran.ok && ran.last_words().contains("\"config/app.conf\""), "{}", ran.stderr);
    assert!(world.entries("outside").is_empty());
    for bad in ["/etc/passwd", "../x", "a/../../x", "", "."] {
        assert!(!world.share(None, "release", &[bad]).ok, "{bad}");
    }
    assert!(!world.path("x").exists());
}

#[test]
fn what_the_app_wrote_in_place_of_a_link_is_carried_over() {
    let world = World::new();
    world.write("shared/db.json", "old");
    assert!(world.share(None, "release", &["db.json", "data"]).ok);
    world.write("release/db.json.tmp", "new");
    fs::rename(world.path("release/db.json.tmp"), world.path("release/db.json")).unwrap();
    fs::create_dir(world.path("next")).unwrap();
    let ran = world.share(Some("release"), "next", &["db.json", "data"]);
    assert!(ran.ok, "{}", ran.stderr);
    assert_eq!((world.read("shared/db.json").as_str(), world.read("next/db.json").as_str()), ("new", "new"));
    assert_eq!(world.read("release/db.json"), "new");

    fs::remove_file(world.path("next/data")).unwrap();
    world.write("next/data/file", "x");
    fs::create_dir(world.path("third")).unwrap();
    let ran = world.share(Some("next"), "third", &["db.json", "data"]);
    assert!(!ran.ok && ran.last_words().contains("\"data\""), "{}", ran.stderr);
}

#[test]
fn what_is_shared_again_is_as_new_as_anything_in_its_place() {
    let world = World::new();
    world.write("shared/db", "old");
    world.write("shared/conf", "old");
    let paths = ["db", "conf", "none", "tmp/"];
    for (previous, release) in [(None, "release"), (Some("release"), "next")] {
        fs::create_dir_all(world.path(release)).unwrap();
        assert!(world.share(previous, release, &paths).ok);
    }
    // The app saves in the live release, a step in the new one.
    for (path, text) in [("release/db", "saved"), ("next/conf", "edited")] {
        fs::remove_file(world.path(path)).unwrap();
        world.write(path, text);
    }
    for _ in 0..2 {
        let ran = world.share(Some("release"), "next", &paths);
        assert!(ran.ok, "{}", ran.stderr);
        for (path, text) in [("db", "saved"), ("conf", "edited")] {
            assert_eq!(
                (world.read(&format!("next/{path}")), world.read(&format!("shared/{path}"))),
                (text.into(), text.into())
            );
        }
        for path in paths {
            let path = path.trim_end_matches('/');
            assert_eq!(fs::read_link(world.path("next").join(path)).unwrap(), world.path("shared").join(path));
        }
        assert!(!world.path("shared/none").exists(), "a link to nothing stays one");
    }
    fs::remove_file(world.path("next/db")).unwrap();
    world.write("next/db/x", "of a step");
    let ran = world.share(Some("release"), "next", &paths);
    assert!(!ran.ok && ran.last_words().contains("\"db\" by a folder"), "{}", ran.stderr);
    assert_eq!(world.read("next/db/x"), "of a step");
}

#[test]
fn a_path_that_is_shared_from_now_on_loses_nothing() {
    let world = World::new();
    world.write("release/kept.db", "live data");
    world.write("release/prepared", "tracked");
    world.write("release/up/.keep", "");
    world.write("shared/prepared", "by a person");
    for (name, text) in [("kept.db", "tracked"), ("prepared", "tracked"), ("up/.keep", "")] {
        world.write(&format!("next/{name}"), text);
    }
    let ran = world.share(Some("release"), "next", &["kept.db", "prepared", "up"]);
    assert!(ran.ok, "{}", ran.stderr);
    assert_eq!(world.read("next/kept.db"), "live data");
    assert_eq!(world.read("next/prepared"), "by a person");
    world.write("release/files/upload", "precious");
    fs::create_dir(world.path("third")).unwrap();
    let ran = world.share(Some("release"), "third", &["files"]);
    assert!(!ran.ok && ran.last_words().contains("\"files\""), "{}", ran.stderr);
}

#[test]
fn emptying_follows_no_link_and_fears_no_depth() {
    let world = World::new();
    world.write("outside/file", "kept");
    symlink(world.path("outside"), world.path("release/link")).unwrap();
    let deep: PathBuf = std::iter::repeat_n("directory", 300).collect();
    fs::create_dir_all(world.path("release").join(deep)).unwrap();
    world.write("release/locked/inner/file", "x");
    for locked in ["release/locked/inner", "release/locked"] {
        fs::set_permissions(world.path(locked), fs::Permissions::from_mode(0o000)).unwrap();
    }
    let ran = world.run(&TreeTask::Empty { path: world.path("release") });
    assert!(ran.ok, "{}", ran.stderr);
    assert!(world.entries("release").is_empty());
    assert_eq!(world.read("outside/file"), "kept");
    assert!(world.run(&TreeTask::Empty { path: world.path("never") }).ok);
    symlink(world.path("outside"), world.path("way")).unwrap();
    assert!(!world.run(&TreeTask::Empty { path: world.path("way") }).ok);
    assert!(world.run(&TreeTask::Sync { release: world.path("release") }).ok);
}

#[test]
fn each_user_does_its_part_and_no_more() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become two other users");
        return;
    }
    let mut world = World::new();
    let (fetcher, app) = (60_801, 60_802);
    world.users = Some((fetcher, app));
    let own = |path: &str, uid, mode| {
        std::os::unix::fs::chown(world.path(path), Some(uid), Some(app)).unwrap();
        fs::set_permissions(world.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    own("mirror", fetcher, 0o2750);
    own("release", app, 0o755);
    own("shared", app, 0o755);
    let commit = world.commit(&[("db.json", "{}"), ("run", "x")], "one");
    // The repository belongs to root, which git refuses unless told otherwise.
    assert_eq!(world.fetch(|_| {}).commit, Some(commit.clone()));
    world.checkout(&commit);
    let ran = world.share(None, "release", &["db.json"]);
    assert!(ran.ok, "{}", ran.stderr);
    let owner = |path: &str| fs::symlink_metadata(world.path(path)).unwrap().uid();
    assert_eq!((owner("mirror/HEAD"), owner("release/run"), owner("shared/db.json")), (fetcher, app, app));
    let mirrored = fs::metadata(world.path("mirror/HEAD")).unwrap();
    assert_eq!((mirrored.gid(), mirrored.mode() & 0o777), (app, 0o640));

    // The app's user changes no mirror, and a folder that is not its own stays.
    assert!(!world.run(&TreeTask::Empty { path: world.path("mirror") }).ok);
    assert_eq!(world.fetch(|_| {}).commit, Some(commit));
    fs::set_permissions(world.path("repo"), fs::Permissions::from_mode(0o700)).unwrap();
    let words = world.refused(|_| {});
    assert!(words.contains(&format!("uid {fetcher}")), "{words}");
}

#[test]
fn a_release_is_to_the_byte_what_a_clone_has() {
    let world = World::new();
    let files = [
        (
            ".gitattributes",
            "* text=auto\n*.sh eol=crlf\n*.u16 working-tree-encoding=UTF-16LE\n*.id ident\ntests export-ignore\nsub export-subst\n",
        ),
        ("tests/a", "kept"),
        ("windows.txt", "a\r\nb\r\n"),
        ("mixed.txt", "a\r\nb\n"),
        ("run.sh", "a\nb\n"),
        ("text.id", "$Id$ $Format:%H$\n"),
        ("Case", "A"),
        ("case", "a"),
        ("z/-first", "x\n"),
        ("z/.gitattributes", "-first eol=crlf\n"),
    ];
    world.git(&["config", "core.autocrlf", "false"]);
    world.commit(&files, "one");
    // As somebody committed it who had no attributes then.
    fs::write(world.path("repo/old.txt"), "a\r\nb\r\n").unwrap();
    world.git(&["-c", "core.attributesFile=/dev/null", "update-index", "--add", "old.txt"]);
    let raw = world.git(&["hash-object", "-w", "--no-filters", "old.txt"]);
    world.git(&["update-index", "--cacheinfo", &format!("100644,{raw},old.txt")]);
    world.git(&["commit", "-q", "-m", "two"]);
    let commit = world.git(&["rev-parse", "HEAD"]).parse().unwrap();
    world.fetch(|_| {});
    world.checkout(&commit);
    let clone = world.path("clone");
    world.git(&["clone", "-q", "--no-local", &world.repo(), clone.to_str().unwrap()]);
    fs::remove_dir_all(clone.join(".git")).unwrap();
    let diff =
        Command::new("diff").args(["-r", "--no-dereference"]).args([&clone, &world.path("release")]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
    assert_eq!(world.read("release/old.txt"), "a\r\nb\r\n");
}

#[test]
fn a_default_branch_that_moves_is_followed() {
    let world = World::new();
    world.commit(&[], "one");
    assert_eq!(world.fetch(|task| task.wanted.branches.clear()).ref_name, "refs/heads/master");
    world.git(&["checkout", "-q", "-b", "main"]);
    let commit = world.commit(&[], "two");
    let fetched = world.fetch(|task| task.wanted.branches.clear());
    assert_eq!((fetched.ref_name.as_str(), fetched.commit), ("refs/heads/main", Some(commit)));
    let old = world.fetch(|task| {
        task.wanted.branches.clear();
        task.wanted.ref_name = Some("refs/heads/master".into());
    });
    assert!(matches!(old.verdict, Verdict::NotWanted { .. }), "{old:?}");
}

#[test]
fn what_a_repository_or_a_home_says_is_to_be_run_is_not() {
    let world = World::new();
    let witness = world.path("witness");
    let trap = world.path("trap");
    world.write("trap", &format!("#!/bin/sh\necho \"$0 $*\" >> {}\n", witness.display()));
    fs::set_permissions(&trap, fs::Permissions::from_mode(0o755)).unwrap();
    let commit = world.commit(&[(".gitattributes", "* filter=evil diff=evil\n"), ("a", "1"), ("dir/b", "2")], "one");
    let trap = trap.to_str().unwrap();
    let config = format!(
        "[core]\nfsmonitor = {trap}\nsshCommand = {trap}\ngitProxy = {trap}\npager = {trap}\neditor = {trap}\n\
         hooksPath = {hooks}\nalternateRefsCommand = {trap}\n[uploadpack]\npackObjectsHook = {trap}\n\
         [filter \"evil\"]\nsmudge = {trap}\nclean = {trap}\nprocess = {trap}\nrequired = true\n\
         [diff \"evil\"]\ncommand = {trap}\ntextconv = {trap}\n[credential]\nhelper = !{trap}\n\
         [alias]\nfetch = !{trap}\n[gc]\nauto = 1\n[protocol]\nallow = always\n",
        hooks = world.path("hooks").display()
    );
    let promisor = format!(
        "[extensions]\npartialClone = evil\n[remote \"evil\"]\nurl = ext::{trap}\nuploadpack = {trap}\npromisor = true\n"
    );
    for hook in ["post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc", "fsmonitor-watchman"] {
        for folder in ["hooks", "repo/.git/hooks"] {
            fs::create_dir_all(world.path(folder)).unwrap();
            fs::copy(trap, world.path(folder).join(hook)).unwrap();
        }
    }
    world.write("home/.gitconfig", &config);
    world.write("home/.config/git/config", &config);
    let own = world.read("repo/.git/config");
    world.write("repo/.git/config", &format!("{own}{config}{promisor}"));
    // A file that it has promised to fetch from its own remote.
    let blob =
        Command::new("git").args(["-C", &world.repo(), "rev-parse", "HEAD:a"]).env("HOME", "/nonexistent").output();
    let blob = String::from_utf8(blob.unwrap().stdout).unwrap().trim().to_owned();
    fs::remove_file(&witness).ok();
    fs::rename(world.path("repo/.git/objects").join(&blob[..2]).join(&blob[2..]), world.path("blob")).unwrap();
    let ran = world.try_fetch(|_| {});
    assert!(!ran.ok && !witness.exists(), "{} {:?}", ran.stderr, fs::read_to_string(&witness));
    fs::rename(world.path("blob"), world.path("repo/.git/objects").join(&blob[..2]).join(&blob[2..])).unwrap();
    assert_eq!(world.fetch(|_| {}).commit, Some(commit.clone()));
    world.checkout(&commit);
    assert_eq!((world.read("release/a").as_str(), world.read("release/dir/b").as_str()), ("1", "2"));
    assert!(!witness.exists(), "{:?}", fs::read_to_string(&witness));
}

/// Bytes below a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|e| if e.file_type().unwrap().is_dir() { size(&e.path()) } else { e.metadata().unwrap().len() }).sum()
}

#[test]
fn many_forced_pushes_leave_a_small_mirror() {
    let world = World::new();
    world.commit(&[("a", "1")], "one");
    let mirror = world.path("mirror");
    let mut most = 0;
    for round in 0..30_u32 {
        for n in 0..45_u32 {
            let mut noise = vec![0; 2000];
            getrandom::fill(&mut noise).unwrap();
            fs::create_dir_all(world.path("repo/files")).unwrap();
            fs::write(world.path(&format!("repo/files/{n}")), noise).unwrap();
        }
        world.git(&["add", "-A"]);
        world.git(&["commit", "-q", "--amend", "-m", &format!("round {round}")]);
        let commit = world.git(&["rev-parse", "HEAD"]).parse().unwrap();
        assert_eq!(world.fetch(|_| {}).commit, Some(commit));
        world.write("mirror/objects/pack/tmp_pack_killed", "half");
        let tidied = world.run(&TreeTask::Tidy { mirror: mirror.clone() });
        assert!(tidied.ok, "{}", tidied.stderr);
        assert!(!mirror.join("objects/pack/tmp_pack_killed").exists());
        most = most.max(size(&mirror));
        // Two hours go by.
        let mut aged = Command::new("find");
        aged.arg(mirror.join("objects")).args(["-type", "f", "-exec", "touch", "-d", "2 hours ago", "{}", "+"]);
        assert!(aged.status().unwrap().success());
    }
    // 30 rounds brought 2.7 MB, one is 90 kB; at most 400 loose objects wait, and what came with them.
    assert!(most < 1_500_000, "{most}");
    assert!(world.entries("mirror/objects/pack").iter().filter(|name| name.ends_with(".pack")).count() <= 3);
    world.checkout(&world.git(&["rev-parse", "HEAD"]).parse().unwrap());
}
