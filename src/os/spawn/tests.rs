//! Every detail of a child, read back from the kernel by the child itself.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::{
        signal::{SigHandler, SigSet, Signal as Number, kill, signal},
        stat::Mode,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use super::*;
use crate::os::{
    alone::{NOBODY, alone, alone_as_nobody},
    pidfd,
    record::RunRecord,
};

const PATIENCE: Duration = Duration::from_secs(20);

impl Spawner {
    /// Returns when it has executed its program.
    pub fn spawn(&mut self, spec: &SpawnSpec) -> Result<Spawned, SpawnError> {
        let result = self.make(spec)?.end(spec);
        self.rest();
        result
    }
}

fn shell(script: &str) -> SpawnSpec {
    let text = |t: &str| CString::new(t).unwrap();
    let mut spec = SpawnSpec::new(text("/bin/sh"), vec![text("sh"), text("-c"), text(script)]);
    spec.env = vec![text("PATH=/usr/bin:/bin"), text("LANG=C.UTF-8")];
    spec
}

fn file(file: File) -> Arc<OwnedFd> {
    Arc::new(file.into())
}

fn null() -> Arc<OwnedFd> {
    file(fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap())
}

fn nobody() -> Option<Credentials> {
    Some(Credentials { uid: NOBODY, gid: NOBODY, groups: vec![NOBODY, 12_345] })
}

fn is_root() -> bool {
    geteuid().is_root()
}

fn wait(spawned: &Spawned) -> WaitStatus {
    assert!(pidfd::wait_ended(&spawned.pidfd, PATIENCE), "still alive");
    waitid(Id::Pid(Pid::from_raw(spawned.pid.cast_signed())), WaitPidFlag::WEXITED).unwrap()
}

fn no_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) == Err(nix::Error::ECHILD)
}

/// Runs it to its end with streams of our own and returns what it wrote.
fn output(spawner: &mut Spawner, mut spec: SpawnSpec) -> String {
    let written = tempfile::tempfile().unwrap();
    let stream = file(written.try_clone().unwrap());
    spec.fds.extend([(null(), 0), (stream.clone(), 1), (stream, 2)]);
    let spawned = spawner.spawn(&spec).unwrap();
    let end = wait(&spawned);
    let text = text_of(&written);
    assert!(matches!(end, WaitStatus::Exited(_, 0)), "{end:?}: {text}");
    text
}

fn text_of(mut file: &File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// A line of `/proc/self/status`.
fn status_of(text: &str, key: &str) -> String {
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_program_waits_at_the_gate() {
    let (read, write) = std::io::pipe().unwrap();
    let (done, hear) = std::sync::mpsc::channel();
    let mut order = shell(":");
    order.gate = Some(Arc::new(read.into()));
    let begun = std::time::Instant::now();
    let waiter = std::thread::spawn(move || {
        let child = Spawner::new().unwrap().spawn(&order).unwrap();
        done.send(()).unwrap();
        child
    });
    let early = hear.recv_timeout(Duration::from_millis(10)).is_ok();
    // On a busy machine we may come back only when its wait is over.
    assert!(!early || begun.elapsed() >= super::child::GATE, "not before it is open");
    drop(write);
    if !early {
        hear.recv_timeout(PATIENCE).unwrap();
    }
    wait(&waiter.join().unwrap());
}

#[test]
fn nothing_but_the_spec_reaches_the_child() {
    alone("os::spawn::tests::nothing_but_the_spec_reaches_the_child", || {
        // A descriptor that is not closed at exec, as a careless parent of ours leaves it.
        let stray = File::open("/dev/null").unwrap();
        fcntl(&stray, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        nix::sys::stat::umask(Mode::from_bits_truncate(0o777));
        let mut spawner = Spawner::new().unwrap();
        let spec = SpawnSpec { umask: 0o027, directory: "/usr".into(), ..shell("umask; pwd; ls /proc/self/fd; env") };
        let text = output(&mut spawner, spec);
        // 3 is what `ls` reads the list from.
        assert_eq!(text, "0027\n/usr\n0\n1\n2\n3\nPATH=/usr/bin:/bin\nLANG=C.UTF-8\nPWD=/usr\n");
        assert!(no_children());
    });
}

#[test]
fn it_finds_its_own_pid_in_its_environment() {
    let mut spawner = Spawner::new().unwrap();
    for clone3 in [true, false] {
        spawner.clone3 = clone3;
        let spec = SpawnSpec {
            pid_env: vec!["LISTEN_PID", "WATCHDOG_PID"],
            ..shell("test $LISTEN_PID = $$ && test $WATCHDOG_PID = $$ && env | grep -c _PID=")
        };
        // Twice, since nothing of the first child's may be left.
        for _ in 0..2 {
            assert_eq!(output(&mut spawner, spec.clone()), "2\n");
        }
    }
}

#[test]
fn signals_are_neither_blocked_nor_ignored() {
    alone("os::spawn::tests::signals_are_neither_blocked_nor_ignored", || {
        for number in [Number::SIGTERM, Number::SIGHUP, Number::SIGPIPE, Number::SIGCHLD, Number::SIGUSR1] {
            // SAFETY: no handler of ours is called.
            unsafe { signal(number, SigHandler::SigIgn) }.unwrap();
        }
        // SAFETY: realtime signals have no names in nix; no handler is called.
        unsafe { libc::signal(40, libc::SIG_IGN) };
        SigSet::all().thread_block().unwrap();
        // With SIGCHLD ignored the kernel reaps, so that only the text tells.
        let mut spec = shell("exec cat /proc/self/status");
        let written = tempfile::tempfile().unwrap();
        spec.fds = vec![(file(written.try_clone().unwrap()), 1)];
        let spawned = Spawner::new().unwrap().spawn(&spec).unwrap();
        assert!(pidfd::wait_ended(&spawned.pidfd, PATIENCE));
        let text = text_of(&written);
        for set in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
            assert_eq!(status_of(&text, set), "0000000000000000", "{set}");
        }
        assert!(SigSet::thread_get_mask().unwrap().contains(Number::SIGTERM), "ours is as before");
    });
}

#[test]
fn it_leads_a_session_with_the_limits_it_was_given() {
    let mut spec = shell("cut -d' ' -f1,5,6,19 /proc/self/stat; ulimit -Sn; ulimit -c; cat /proc/self/oom_score_adj");
    (spec.nice, spec.oom_score_adj) = (Tuning::exactly(7), Tuning::exactly(300));
    spec.rlimits = vec![(libc::RLIMIT_CORE, 0, 0)];
    let mut spawner = Spawner::new().unwrap();
    let text = output(&mut spawner, spec);
    let mut lines = text.lines();
    let stat: Vec<&str> = lines.next().unwrap().split(' ').collect();
    assert_eq!(stat[1], stat[2], "process group and session");
    assert_eq!(stat[3], "7");
    assert_eq!(lines.collect::<Vec<_>>(), ["1024", "0", "300"]);
    let text = output(
        &mut spawner,
        SpawnSpec { rlimits: vec![(libc::RLIMIT_NOFILE, 77, 99)], ..shell("ulimit -n; ulimit -Hn") },
    );
    assert_eq!(text, "77\n99\n");
}

#[test]
fn a_score_is_that_of_one_child_alone() {
    let score = || fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let ours = score();
    let other = (ours.trim_end().parse::<i32>().unwrap() + 77).min(1000);
    let (gate, opens) = std::io::pipe().unwrap();
    let written = tempfile::tempfile().unwrap();
    let mut waits = shell("cat /proc/self/oom_score_adj");
    waits.gate = Some(Arc::new(gate.into()));
    waits.oom_score_adj = Tuning::exactly(ours.trim_end().parse().unwrap());
    waits.fds.extend([(null(), 0), (file(written.try_clone().unwrap()), 1)]);
    let first = Spawner::new().unwrap();
    assert!(!first.waits_for(&waits));
    let underway = first.begin(waits);
    let mut scored = shell("cat /proc/self/oom_score_adj");
    scored.oom_score_adj = Tuning::exactly(other);
    assert_eq!(output(&mut Spawner::new().unwrap(), scored), format!("{other}\n"));
    assert_eq!(score(), ours);
    drop(opens);
    wait(&underway.wait().1.unwrap());
    assert_eq!(text_of(&written), ours);
}

#[test]
fn what_may_not_be_lowered_stays() {
    alone_as_nobody("os::spawn::tests::what_may_not_be_lowered_stays", || {
        fs::write("/proc/self/oom_score_adj", "500").unwrap();
        let mut spec = shell("cat /proc/self/oom_score_adj");
        (spec.nice, spec.oom_score_adj) = (Tuning::at_best(-5), Tuning::at_best(-500));
        let mut spawner = Spawner::new().unwrap();
        assert_eq!(output(&mut spawner, spec), "500\n");
        let (nice, oom_score_adj) = (Tuning::exactly(-5), Tuning::exactly(-500));
        let rlimits = vec![(libc::RLIMIT_NOFILE, u64::MAX, u64::MAX)];
        let failures = [
            (SpawnSpec { nice, ..shell("") }, "setting nice -5".to_owned()),
            (SpawnSpec { oom_score_adj, ..shell("") }, "setting oom_score_adj -500".to_owned()),
            (SpawnSpec { rlimits, ..shell("") }, format!("setting the limit of open files to {}", u64::MAX)),
        ];
        for (spec, step) in failures {
            assert_eq!(spawner.spawn(&spec).unwrap_err().step, step);
        }
    });
}

#[test]
fn it_becomes_the_user_with_its_groups() {
    if !is_root() {
        return;
    }
    alone("os::spawn::tests::it_becomes_the_user_with_its_groups", || {
        let mut spawner = Spawner::new().unwrap();
        let text = output(&mut spawner, SpawnSpec { credentials: nobody(), ..shell("cat /proc/self/status") });
        for key in ["Uid", "Gid"] {
            assert_eq!(status_of(&text, key), "65534 65534 65534 65534");
        }
        assert_eq!(status_of(&text, "Groups"), "12345 65534");
        assert_eq!((status_of(&text, "CapEff"), status_of(&text, "CapPrm")), ("0".repeat(16), "0".repeat(16)));
        assert_eq!(status_of(&text, "NoNewPrivs"), "0");
        // The kernel made our shared memory undumpable meanwhile.
        assert!(nix::sys::prctl::get_dumpable().unwrap());
    });
}

#[test]
fn its_own_user_is_no_change() {
    alone_as_nobody("os::spawn::tests::its_own_user_is_no_change", || {
        let me = Credentials { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups: vec![1, 2, 3] };
        let mut spawner = Spawner::new().unwrap();
        let text = output(&mut spawner, SpawnSpec { credentials: Some(me), ..shell("id -u") });
        assert_eq!(text.trim(), geteuid().to_string());
        if !is_root() {
            let error = spawner
                .spawn(&SpawnSpec { credentials: Some(Credentials { uid: 0, gid: 0, groups: vec![] }), ..shell("") });
            assert_eq!(error.unwrap_err().step, "setting groups");
            assert!(no_children());
        }
    });
}

#[test]
fn privileges_go_for_good() {
    let mut spawner = Spawner::new().unwrap();
    let bare = SpawnSpec { capabilities: Some(0), no_new_privs: true, ..shell("cat /proc/self/status") };
    for credentials in [None, nobody().filter(|_| is_root())] {
        let text = output(&mut spawner, SpawnSpec { credentials, ..bare.clone() });
        let sets = if is_root() { &["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"][..] } else { &["CapEff"] };
        for set in sets {
            assert_eq!(status_of(&text, set), "0".repeat(16), "{set}");
        }
        assert_eq!(status_of(&text, "NoNewPrivs"), "1");
    }
}

#[test]
fn a_capability_is_all_that_it_has() {
    if !is_root() {
        return;
    }
    // CAP_NET_BIND_SERVICE, in every set of whoever it becomes.
    let capabilities = Some(1 << 10);
    let mut spawner = Spawner::new().unwrap();
    for credentials in [None, nobody()] {
        let spec = SpawnSpec { credentials, capabilities, ..shell("exec cat /proc/self/status") };
        let text = output(&mut spawner, spec);
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_of(&text, set), "0000000000000400", "{set}");
        }
    }
}

#[test]
fn descriptors_come_under_their_numbers() {
    alone("os::spawn::tests::descriptors_come_under_their_numbers", || {
        let mut spawner = Spawner::new().unwrap();
        let named = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(&file, text).unwrap();
            Arc::new(OwnedFd::from(file.into_file()))
        };
        // Crosswise, more than there were slots, a hole between, and numbers that slots have.
        let mut spec = shell("for n in 3 4 5 6 7 8 9; do cat <&$n; done; ls /proc/self/fd");
        spec.fds = [9, 3, 8, 4, 7, 5, 6].map(|n: RawFd| (named(&format!("{n} ")), n)).to_vec();
        assert_eq!(output(&mut spawner, spec.clone()), "3 4 5 6 7 8 9 0\n1\n10\n2\n3\n4\n5\n6\n7\n8\n9\n");
        spec.fds = vec![(named("far"), 200)];
        spec.args[2] = c"cat /proc/self/fd/200; ls /proc/self/fd".into();
        assert_eq!(output(&mut spawner, spec.clone()), "far0\n1\n2\n200\n3\n");
        spec.fds = vec![(null(), 5), (null(), 5)];
        assert!(spawner.spawn(&spec).is_err());
        // Nothing stays behind in the slots: the reader sees the end.
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let spec = SpawnSpec { fds: vec![(Arc::new(write), 1)], ..shell("echo out") };
        let spawned = spawner.spawn(&spec).unwrap();
        drop(spec);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "out\n");
        wait(&spawned);
    });
}

#[test]
fn whoever_makes_a_child_goes_on_meanwhile() {
    alone("os::spawn::tests::whoever_makes_a_child_goes_on_meanwhile", || {
        let mut spawner = Spawner::new().unwrap();
        for n in 0..50 {
            let (read, write) = std::io::pipe().unwrap();
            let order = SpawnSpec { gate: Some(Arc::new(read.into())), directory: "/no/such".into(), ..shell("") };
            let underway = spawner.begin(order);
            drop(write);
            // The child fails at another error meanwhile.
            for _ in 0..n {
                assert_eq!(File::open("/dev/null/x").unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
            }
            let (back, result) = underway.wait();
            spawner = back;
            assert_eq!(result.unwrap_err().errno.raw_os_error(), Some(libc::ENOENT));
        }
        drop(spawner.begin(shell("exit 3")));
    });
}

#[test]
fn many_descriptors_are_no_hindrance() {
    alone("os::spawn::tests::many_descriptors_are_no_hindrance", || {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        let mut early = Spawner::new().unwrap();
        let open: Vec<File> = (0..3_000.min(hard - 100)).map(|_| File::open("/dev/null").unwrap()).collect();
        let mut late = Spawner::new().unwrap();
        for spawner in [&mut early, &mut late] {
            let mut spec = shell("ulimit -n; ls /proc/self/fd");
            spec.fds = vec![(null(), 3)];
            assert_eq!(output(spawner, spec), "1024\n0\n1\n2\n3\n4\n");
        }
        // What a child opens is its own, though the tables were one.
        let before = fs::read_dir("/proc/self/fd").unwrap().count();
        let spawned = early.spawn(&shell("exec 7</dev/null 8</dev/null; exec sleep 1000")).unwrap();
        assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), before + 1, "the pidfd alone");
        pidfd::signal(&spawned.pidfd, crate::domain::model::Signal::KILL).unwrap();
        wait(&spawned);
        drop(open);
    });
}

#[test]
fn it_dies_with_the_thread_that_made_it() {
    let make = |die_with_parent: bool| {
        let credentials = nobody().filter(|_| is_root());
        let spec = SpawnSpec { die_with_parent, credentials, ..shell("exec sleep 1000") };
        let thread = std::thread::spawn(move || Spawner::new().unwrap().spawn(&spec).unwrap());
        thread.join().unwrap()
    };
    assert!(matches!(wait(&make(true)), WaitStatus::Signaled(_, Number::SIGKILL, _)));
    let survivor = make(false);
    assert!(!pidfd::wait_ended(&survivor.pidfd, Duration::from_millis(50)));
    pidfd::signal(&survivor.pidfd, crate::domain::model::Signal::KILL).unwrap();
    wait(&survivor);
}

#[test]
fn a_failure_names_its_step_and_leaves_nothing() {
    alone("os::spawn::tests::a_failure_names_its_step_and_leaves_nothing", || {
        let mut spawner = Spawner::new().unwrap();
        let closed = tempfile::tempdir().unwrap();
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let mut cases = vec![
            (SpawnSpec { program: c"/no/such".into(), ..shell("") }, "executing \"/no/such\"".into(), libc::ENOENT),
            (
                SpawnSpec { program: c"/etc/passwd".into(), ..shell("") },
                "executing \"/etc/passwd\"".into(),
                libc::EACCES,
            ),
            (SpawnSpec { directory: "/no/such".into(), ..shell("") }, "chdir to \"/no/such\"".into(), libc::ENOENT),
            (SpawnSpec { fds: vec![(null(), 5_000_000)], ..shell("") }, "setting up descriptors".into(), libc::EINVAL),
        ];
        if is_root() {
            let directory = closed.path().to_owned();
            let step = format!("chdir to {directory:?}");
            cases.push((SpawnSpec { directory, credentials: nobody(), ..shell("") }, step, libc::EACCES));
        }
        let unwritable =
            RecordFile { file: file(File::open("/dev/null").unwrap()), everhook_boot: "x".into(), started_as: None };
        cases.push((SpawnSpec { record: Some(unwritable), ..shell("") }, "writing its run record".into(), libc::EBADF));
        let script = closed.path().join("script");
        fs::write(&script, "no first line").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        let program = CString::new(script.to_str().unwrap()).unwrap();
        cases.push((
            SpawnSpec { program, ..shell("") },
            format!("executing {script:?}, which is no program and has no line `#!`"),
            libc::ENOEXEC,
        ));
        let other = closed.path().join("other");
        fs::write(&other, "#!/no/such/interpreter\n").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o700)).unwrap();
        let program = CString::new(other.to_str().unwrap()).unwrap();
        let step = format!("executing {other:?}, whose interpreter is missing");
        cases.push((SpawnSpec { program, ..shell("") }, step, libc::ENOENT));
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        for clone3 in [true, false] {
            spawner.clone3 = clone3;
            for (spec, step, errno) in &cases {
                let error = spawner.spawn(spec).unwrap_err();
                assert_eq!((&error.step, error.errno.raw_os_error()), (step, Some(*errno)));
                assert!(no_children(), "{step}");
            }
        }
        assert_eq!(fs::read_dir("/proc/self/fd").unwrap().count(), descriptors);
    });
}

/// From here on `number` ends the calling thread's children, or fails, as `action` says.
fn filter(number: libc::c_long, action: u32) {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code.try_into().unwrap(), jt, jf, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number.try_into().unwrap()),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, action),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    raw::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).unwrap();
    // SAFETY: the program and its instructions are valid, and copied by the call.
    let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, ptr::from_ref(&program)) };
    assert_eq!(set, 0);
}

#[test]
fn one_killed_before_its_program_is_told_so() {
    alone("os::spawn::tests::one_killed_before_its_program_is_told_so", || {
        let mut spawner = Spawner::new().unwrap();
        filter(libc::SYS_setsid, libc::SECCOMP_RET_KILL_PROCESS);
        let error = spawner.spawn(&shell("")).unwrap_err();
        assert_eq!(error.to_string(), "executing \"/bin/sh\": it was killed before");
        assert!(no_children());
    });
}

#[test]
fn clone_serves_where_clone3_is_refused() {
    alone("os::spawn::tests::clone_serves_where_clone3_is_refused", || {
        let mut spawner = Spawner::new().unwrap();
        filter(libc::SYS_clone3, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs());
        for _ in 0..2 {
            assert_eq!(output(&mut spawner, shell("echo here; ls /proc/self/fd")), "here\n0\n1\n2\n3\n");
            assert!(!spawner.clone3);
        }
    });
}

#[test]
fn the_record_is_there_before_the_program() {
    let record = tempfile::NamedTempFile::new().unwrap();
    let mut spec = shell("cat <&3; echo $$; cut -d' ' -f22 /proc/$$/stat; cut -d' ' -f1 /proc/uptime");
    spec.credentials = nobody().filter(|_| is_root());
    spec.record =
        Some(RecordFile { file: file(record.reopen().unwrap()), everhook_boot: "a1b2".into(), started_as: None });
    let mut spawner = Spawner::new().unwrap();
    for _ in 0..2 {
        spec.fds = vec![(file(File::open(&record).unwrap()), 3)];
        let text = output(&mut spawner, spec.clone());
        let lines: Vec<&str> = text.lines().collect();
        let record = RunRecord::parse(lines[0]).unwrap();
        assert_eq!(record.pid.to_string(), lines[1]);
        let (begun, now): (u64, f64) = (lines[2].parse().unwrap(), lines[3].parse().unwrap());
        assert!((begun..=(now * 100.0) as u64 + 1).contains(&record.noted_at), "{begun} {record:?} {now}");
        assert_eq!(record.everhook_boot, "a1b2");
        assert!(record.is_alive_and_same().is_none(), "it has ended");
    }
    let spawned = spawner.spawn(&SpawnSpec { args: shell("exec sleep 1000").args, ..spec }).unwrap();
    let living = RunRecord::read(record.path()).unwrap().unwrap();
    assert_eq!(living.pid, spawned.pid);
    let fd = living.is_alive_and_same().unwrap();
    kill(Pid::from_raw(spawned.pid.cast_signed()), Number::SIGKILL).unwrap();
    assert!(pidfd::wait_ended(&fd, PATIENCE));
    assert!(living.is_alive_and_same().is_none(), "a zombie is not alive");
    wait(&spawned);
}

#[test]
fn it_is_born_in_its_cgroup() {
    alone("os::spawn::tests::it_is_born_in_its_cgroup", || {
        let Ok(base) = crate::os::cgroup::find_base() else { return };
        let cgroup = Arc::new(base.make(&format!("everhook-test-{}-born", std::process::id())).unwrap());
        let mut spawner = Spawner::new().unwrap();
        for clone3 in [true, false] {
            spawner.clone3 = clone3;
            let credentials = nobody().filter(|_| is_root());
            let record =
                RecordFile { file: file(tempfile::tempfile().unwrap()), everhook_boot: "x".into(), started_as: None };
            let mut spec = shell("grep ^0:: /proc/self/cgroup; ls /proc/self/fd");
            (spec.credentials, spec.record, spec.cgroup) = (credentials, Some(record), Some(Arc::clone(&cgroup)));
            let text = output(&mut spawner, spec);
            let (group, descriptors) = text.split_once('\n').unwrap();
            assert!(group.ends_with(cgroup.path().file_name().unwrap().to_str().unwrap()), "{text}");
            assert_eq!(descriptors, "0\n1\n2\n3\n");
        }
        cgroup.remove().unwrap();
        for clone3 in [true, false] {
            spawner.clone3 = clone3;
            let spec = SpawnSpec { cgroup: Some(Arc::clone(&cgroup)), ..shell("") };
            let gone = spawner.spawn(&spec).unwrap_err();
            let step = "making a process for \"/bin/sh\" in its cgroup, which somebody has removed";
            assert_eq!((gone.step.as_str(), gone.part), (step, Part::Cgroup));
        }
    });
}
