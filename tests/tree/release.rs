//! What a release has on disk, and what it shares.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt, symlink},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command},
};

use everhook::domain::api::{DAMAGED, Fetched, READS_TASKS, TreeTask, TreeWord};

use super::world::World;

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

/// A helper that reads its tasks, and where.
fn waiting(world: &World) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(world.binary());
    command.args(["tree", READS_TASKS]).env("HOME", world.path("home")).stdin(OwnedFd::from(theirs));
    (command.spawn().unwrap(), ours)
}

#[test]
fn one_that_waits_does_one_task_after_the_other() {
    let world = World::new();
    let commit = world.commit(&[("a", "1")], "one");
    let (mut helper, socket) = waiting(&world);
    let tell = |task: &TreeTask| writeln!(&socket, "{}", serde_json::to_string(task).unwrap()).unwrap();
    let mut words =
        BufReader::new(&socket).lines().map(|line| serde_json::from_str::<TreeWord>(&line.unwrap()).unwrap());
    tell(&TreeTask::Fetch(Box::new(world.task())));
    assert!(matches!(words.next(), Some(TreeWord::Begun)));
    let Some(TreeWord::Done(Some(fetched))) = words.next() else { panic!("the fetch has no answer") };
    assert_eq!(serde_json::from_str::<Fetched>(fetched.get()).unwrap().commit.as_ref(), Some(&commit));
    let checkout = TreeTask::Checkout { mirror: world.path("mirror"), release: world.path("release"), commit };
    tell(&checkout);
    assert!(matches!(words.next(), Some(TreeWord::Done(None))));
    assert_eq!(world.read("release/a"), "1");
    // What keeps a fetch from filling the disk is none of a checkout's.
    let limit = |pid: &str| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        limits.lines().find(|line| line.starts_with("Max file size")).unwrap().to_owned()
    };
    assert_eq!(limit(&helper.id().to_string()), limit("self"));
    tell(&checkout);
    assert!(words.next().is_none(), "it is not empty any more");
    assert_eq!(helper.wait().unwrap().code(), Some(1));
}

#[test]
fn one_that_waits_in_vain_ends() {
    let (mut helper, socket) = waiting(&World::new());
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(helper.wait().unwrap().success());
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
