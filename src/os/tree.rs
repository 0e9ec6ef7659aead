//! Who belongs to an instance: DESIGN.md section 5, "Tree membership". With a cgroup the kernel
//! says; else descent and the environment do, and for whoever scrubbed that, the output that it was
//! given: the very open file, which nobody outside has. A process that gave up all three is not found.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::OwnedFd,
};

use super::{cgroup::Cgroup, holder, pidfd, record};
use crate::domain::model::Signal;

/// How often the table is listed at most, as on a busy machine somebody new is always there.
const LISTINGS: u32 = 100;

/// Whose tree.
#[derive(Debug, Clone, Copy)]
pub struct TreeQuery<'a> {
    /// The main process, as long as it is not reaped; its descendants are members.
    pub root: Option<u32>,
    /// Processes with these in `EVERHOOK_BOOT` and `EVERHOOK_INSTANCE` are members, and their descendants.
    pub boot: &'a str,
    pub instance: &'a str,
    /// Whoever bears no mark, of this tree or another, and has one of these open files is a member too.
    pub outputs: &'a [&'a OwnedFd],
    /// Whoever bears no mark, or is another user's and shows none, and is in this session is a member too.
    pub session: Option<u32>,
    /// Where there is one, it alone decides.
    pub cgroup: Option<&'a Cgroup>,
}

/// A living process of the tree, held.
#[derive(Debug)]
pub struct Member {
    pub pid: u32,
    pub pidfd: OwnedFd,
    /// Its name as the kernel has it, at most 15 bytes.
    pub name: String,
}

/// Everybody alive in the tree, never ourselves. Who forks meanwhile may be missed: whoever wants
/// the tree empty asks again.
///
/// # Errors
/// When the cgroup or `/proc` cannot be read.
pub fn members(query: &TreeQuery) -> io::Result<Vec<Member>> {
    find(query, false)
}

/// The same, and whoever is found by its marks is killed at once: who forks without end would be gone by the
/// time that all are found.
///
/// # Errors
/// As [`members`].
pub fn kill(query: &TreeQuery) -> io::Result<Vec<Member>> {
    let members = find(query, true)?;
    for member in &members {
        // Whoever is gone by now needs no signal; whom we may not kill is still there the next time.
        let _ = pidfd::signal(&member.pidfd, Signal::KILL);
    }
    Ok(members)
}

fn find(query: &TreeQuery, killing: bool) -> io::Result<Vec<Member>> {
    let Some(cgroup) = query.cgroup else { return by_descent(query, killing) };
    let own = std::process::id();
    let members = cgroup.open_members()?.into_iter().filter(|(pid, _)| *pid != own);
    Ok(members.map(|(pid, pidfd)| Member { pid, pidfd, name: name_of(pid) }).collect())
}

/// A process and everybody below it, without a look at anybody else: those who left it are not found.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    /// A tree that forks while it is read must not keep us for ever.
    const MOST: usize = 10_000;
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).filter(|_| next < MOST) {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        // Not there in every kernel: then nobody is found.
        let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
        let children: Vec<u32> = children
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// Lists again until nobody is new: a process of the tree may have forked, and be gone, since it was listed,
/// and only once all that there are were seen alive is nobody there who was born behind our back.
fn by_descent(query: &TreeQuery, killing: bool) -> io::Result<Vec<Member>> {
    let mut table = Table::default();
    for _ in 0..LISTINGS {
        if table.list(query, killing)? || (!killing && table.has_living()) {
            break;
        }
    }
    Ok(table.members())
}

/// Everybody who was seen.
#[derive(Default)]
struct Table {
    processes: HashMap<u32, Process>,
    /// Those by whom others are of the tree too: who bear the marks, and the root.
    seeds: HashMap<u32, Option<Member>>,
    /// Who showed no environment, as in the middle of an exec, and is asked once more.
    blank: HashSet<u32>,
}

impl Table {
    /// Reads those who are not in it yet, the youngest first, who may be the soonest gone; true when there
    /// was nobody.
    fn list(&mut self, query: &TreeQuery, killing: bool) -> io::Result<bool> {
        let mut unseen = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let pid = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            unseen.extend(pid.filter(|pid| !self.processes.contains_key(pid)));
        }
        let newest = newest_pid().unwrap_or(u32::MAX);
        // Numbers start over: those above the newest one are the oldest.
        unseen.sort_unstable_by_key(|pid| newest.wrapping_sub(*pid));
        unseen.iter().for_each(|pid| self.see(*pid, query, killing));
        Ok(unseen.is_empty())
    }

    /// Whoever is gone, or cannot be told yet, is left out.
    fn see(&mut self, pid: u32, query: &TreeQuery, killing: bool) {
        let Some(process) = Process::read(pid) else { return };
        let root = query.root == Some(pid);
        let marked = !process.kernel && !process.zombie && pid != std::process::id() && {
            let environment = match environment(pid) {
                Environment::Gone => return,
                Environment::Shown(text) if text.is_empty() && self.blank.insert(pid) => return,
                environment => environment,
            };
            is_marked(pid, &process, &environment, query)
        };
        if marked {
            let Some(member) = hold(pid, &process).filter(|_| is_seed(pid, &process, query)) else { return };
            if killing {
                let _ = pidfd::signal(&member.pidfd, Signal::KILL);
            }
            self.seeds.insert(pid, Some(member));
        } else if root {
            self.seeds.insert(pid, hold(pid, &process));
        }
        self.processes.insert(pid, process);
    }

    fn has_living(&self) -> bool {
        self.seeds.values().flatten().any(|member| !pidfd::has_ended(&member.pidfd))
    }

    fn members(mut self) -> Vec<Member> {
        let own = std::process::id();
        let alive = self.processes.iter().filter(|(pid, process)| **pid != own && !process.zombie);
        let found: Vec<_> = alive.filter(|(pid, _)| self.descends(**pid)).map(|(pid, _)| *pid).collect();
        let mut held = |pid| match self.seeds.remove(&pid) {
            Some(Some(member)) => Some(member),
            Some(None) | None => hold(pid, self.processes.get(&pid)?),
        };
        let members = found.into_iter().filter_map(&mut held);
        members.filter(|member| !pidfd::has_ended(&member.pidfd)).collect()
    }

    /// Is it a seed, or is one above it?
    fn descends(&self, mut pid: u32) -> bool {
        // The table is not of one moment: a bound, lest reused numbers make a circle.
        for _ in 0..self.processes.len() {
            if self.seeds.contains_key(&pid) {
                return true;
            }
            match self.processes.get(&pid) {
                Some(process) if process.parent != 0 => pid = process.parent,
                _ => return false,
            }
        }
        false
    }
}

/// Opens it, then looks whether it still is who it was.
fn hold(pid: u32, was: &Process) -> Option<Member> {
    let pidfd = pidfd::open(pid).ok()?;
    let now = Process::read(pid)?;
    (now.start_time == was.start_time && !now.zombie).then(|| Member { pid, pidfd, name: now.name })
}

/// The number that was given out last: the fifth field of proc_loadavg(5).
fn newest_pid() -> Option<u32> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
}

/// One row of the process table.
#[derive(Debug)]
struct Process {
    name: String,
    parent: u32,
    start_time: u64,
    session: u32,
    zombie: bool,
    kernel: bool,
}

impl Process {
    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// proc_pid_stat(5): `pid (name) state ppid pgrp session tty tpgid flags …`.
    fn parse(stat: &[u8]) -> Option<Self> {
        /// `PF_KTHREAD`.
        const KERNEL_THREAD: u64 = 0x0020_0000;
        let (open, close) = (stat.iter().position(|b| *b == b'(')?, stat.iter().rposition(|b| *b == b')')?);
        let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().take(7).collect();
        let [state, parent, _, session, _, _, flags] = fields[..] else { return None };
        Some(Self {
            name: String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned(),
            parent: parent.parse().ok()?,
            start_time: record::start_time_of(stat)?,
            session: session.parse().ok()?,
            zombie: matches!(state, "Z" | "X"),
            kernel: flags.parse::<u64>().ok()? & KERNEL_THREAD != 0,
        })
    }
}

fn name_of(pid: u32) -> String {
    Process::read(pid).map(|process| process.name).unwrap_or_default()
}

fn is_seed(pid: u32, process: &Process, query: &TreeQuery) -> bool {
    is_marked(pid, process, &environment(pid), query)
}

enum Environment {
    Gone,
    /// Of another user, to whoever is not root.
    Hidden,
    Shown(Vec<u8>),
}

fn environment(pid: u32) -> Environment {
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(text) => Environment::Shown(text),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => Environment::Gone,
        Err(_) => Environment::Hidden,
    }
}

/// Does it bear the marks, or none and is in the session or has the output?
fn is_marked(pid: u32, process: &Process, environment: &Environment, query: &TreeQuery) -> bool {
    let in_session = query.session == Some(process.session);
    let Environment::Shown(text) = environment else {
        return in_session && matches!(environment, Environment::Hidden);
    };
    let value = |name: &str| text.split(|b| *b == 0).find_map(|v| v.strip_prefix(name.as_bytes()));
    match (value("EVERHOOK_BOOT="), value("EVERHOOK_INSTANCE=")) {
        (None, None) => in_session || (!query.outputs.is_empty() && holder::holds(pid, query.outputs)),
        (boot, instance) => boot == Some(query.boot.as_bytes()) && instance == Some(query.instance.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;

    /// Tells its pid and waits.
    const WAIT: &str = "echo $$; exec sleep 1000";

    /// A shell whose tree tells its pids, a line each, and then waits.
    fn tree(script: &str, boot: &str, lines: usize) -> (Child, Vec<u32>) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("EVERHOOK_BOOT", boot).env("EVERHOOK_INSTANCE", "blog.1").env("WAIT", WAIT);
        command.env("BARE", "exec env -i PATH=$PATH sh -c \"$WAIT\"");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap()).lines().take(lines);
        let pids = told.map(|line| line.unwrap().trim().parse().unwrap()).collect();
        (child, pids)
    }

    fn end(members: &[Member], mut child: Child) {
        for member in members {
            pidfd::signal(&member.pidfd, Signal::KILL).unwrap();
            assert!(pidfd::wait_ended(&member.pidfd, std::time::Duration::from_secs(20)));
        }
        child.wait().unwrap();
    }

    fn pids(members: &[Member]) -> Vec<u32> {
        let mut pids: Vec<u32> = members.iter().map(|m| m.pid).collect();
        pids.sort_unstable();
        pids
    }

    fn sorted(mut pids: Vec<u32>) -> Vec<u32> {
        pids.sort_unstable();
        pids
    }

    #[test]
    fn the_tree_is_who_descends_or_carries_its_marks() {
        // A bare child, and one that left session and parent and has a bare child of its own.
        let script = r#"(setsid sh -c 'sh -c "$BARE" & eval "$WAIT"' &); sh -c "$BARE" & eval "$WAIT""#;
        let boot = format!("descent-{}", std::process::id());
        let (child, told) = tree(script, &boot, 4);
        // Who is just executing another program shows no environment.
        let shown = |pid: &u32| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|text| !text.is_empty());
        while !told.iter().all(|pid| name_of(*pid) == "sleep" && shown(pid)) {
            std::thread::yield_now();
        }
        let query = TreeQuery {
            root: Some(child.id()),
            boot: &boot,
            instance: "blog.1",
            outputs: &[],
            session: None,
            cgroup: None,
        };
        let all = members(&query).unwrap();
        assert_eq!(pids(&all), sorted(told));
        assert_eq!(pids(&members(&TreeQuery { root: None, ..query }).unwrap()), pids(&all), "the marks alone do");
        // All but the one that left, and its child.
        let below = descendants(child.id());
        assert!(below.contains(&child.id()) && below.iter().all(|pid| pids(&all).contains(pid)), "{below:?}");
        for other in [TreeQuery { boot: "another", ..query }, TreeQuery { instance: "blog.11", ..query }] {
            assert!(members(&TreeQuery { root: None, ..other }).unwrap().is_empty());
        }
        end(&all, child);
        assert!(members(&query).unwrap().is_empty(), "who has ended is no member");
    }

    #[test]
    fn a_cgroup_decides_alone() {
        let Ok(base) = crate::os::cgroup::find_base() else { return };
        let cgroup = base.make(&format!("everhook-test-{}-tree", std::process::id())).unwrap();
        let boot = format!("cgroup-{}", std::process::id());
        let (child, _) = tree(WAIT, &boot, 1);
        // It tells its pid as the shell that it still is.
        while name_of(child.id()) != "sleep" {
            std::thread::yield_now();
        }
        let query = TreeQuery {
            root: Some(child.id()),
            boot: &boot,
            instance: "blog.1",
            outputs: &[],
            session: None,
            cgroup: Some(&cgroup),
        };
        assert!(members(&query).unwrap().is_empty());
        fs::write(cgroup.path().join("cgroup.procs"), child.id().to_string()).unwrap();
        let found = members(&query).unwrap();
        assert_eq!((pids(&found), found[0].name.as_str()), (vec![child.id()], "sleep"));
        end(&found, child);
        cgroup.remove().unwrap();
    }

    #[test]
    fn whoever_scrubbed_its_environment_is_known_by_its_output() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("out");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let ours =
            crate::os::fifo::make(&fifo, nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()).unwrap();
        let boot = format!("output-{}", std::process::id());
        // It left its session and its parent, and forgot all. Beside it somebody writes into the same FIFO.
        let script = r#"(setsid sh -c "$BARE" &)"#;
        let mut outside = Command::new("sh");
        outside.args(["-c", &format!("exec 5<>{0}; echo up; exec env -i PATH=$PATH sleep 1000", fifo.display())]);
        let mut outside = outside.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(outside.stdout.take().unwrap()).read_line(&mut line).unwrap();

        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).env("WAIT", WAIT);
        command.env("BARE", "exec env -i PATH=$PATH sh -c \"$WAIT\"").stdout(ours.try_clone().unwrap());
        assert!(command.status().unwrap().success());
        let mut told = BufReader::new(fs::File::from(ours.try_clone().unwrap()));
        let mut pid = String::new();
        told.read_line(&mut pid).unwrap();
        let query =
            TreeQuery { root: None, boot: &boot, instance: "blog.1", outputs: &[], session: None, cgroup: None };
        assert!(members(&query).unwrap().is_empty());
        let found = members(&TreeQuery { outputs: &[&ours], ..query }).unwrap();
        assert_eq!(pids(&found), [pid.trim().parse::<u32>().unwrap()]);
        pidfd::signal(&found[0].pidfd, Signal::KILL).unwrap();
        outside.kill().unwrap();
        outside.wait().unwrap();
    }

    #[test]
    fn a_row_is_read_whatever_the_name() {
        let fields = "R 7 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 99 1";
        for name in ["sh", "a b", ") R 1 ("] {
            let process = Process::parse(format!("42 ({name}) {fields}").as_bytes()).unwrap();
            assert_eq!((process.name.as_str(), process.parent, process.start_time), (name, 7, 99));
            assert!(!process.zombie && !process.kernel);
        }
        assert!(Process::parse(b"42 (sh) Z 1").is_none());
        let own = Process::read(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(Process::read(2).is_none_or(|p| p.kernel || p.name != "kthreadd"));
    }
}
