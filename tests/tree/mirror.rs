//! What is fetched, what is refused, and what a mirror outlives.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use everhook::domain::api::{Fetched, TreeTask, Verdict};

use super::world::{World, wanted};

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
