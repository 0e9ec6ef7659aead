//! What an internal process gives up by itself, for good, once it has what it needs: files by Landlock,
//! system calls by seccomp, its memory's readers. The rest was taken from it before exec: own user, no
//! capabilities, no_new_privs, limits (see [`super::spawn`]). DESIGN.md section 3.
//!
//! What the kernel lacks is told, and the others still hold.

mod calls;

use std::{io, path::Path};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::sys::prctl;

pub use calls::Calls;

/// What a process keeps.
#[derive(Debug)]
pub struct Keeps<'a> {
    pub calls: Calls,
    /// Below these it may do everything with files.
    pub writes: &'a [&'a Path],
    /// Below these it may read. What is not there is left out.
    pub reads: &'a [&'a Path],
}

/// Gives everything else up. Threads that are started later have no more either; there must be none yet.
/// Returns a sentence for each thing that this kernel cannot take away.
///
/// # Errors
/// When the kernel has it and refuses it, or a path cannot be opened.
pub fn enter(keeps: &Keeps<'_>) -> io::Result<Vec<String>> {
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    let mut lacks = Vec::new();
    if !fence(keeps)? {
        lacks.push("this kernel has no Landlock: only system calls are fenced".into());
    }
    if !calls::allow(keeps.calls)? {
        lacks.push("seccomp cannot be used here: no system call is forbidden".into());
    }
    Ok(lacks)
}

/// False where the kernel covers nothing of it; an older one has fewer kinds of access to take away.
fn fence(keeps: &Keeps<'_>) -> io::Result<bool> {
    let everything = AccessFs::from_all(ABI::V6);
    let fenced = || -> Result<RulesetCreated, landlock::RulesetError> {
        Ruleset::default()
            .handle_access(everything)?
            .handle_access(if keeps.calls.connect() {
                BitFlags::from(AccessNet::BindTcp)
            } else {
                AccessNet::from_all(ABI::V6)
            })?
            .scope(Scope::AbstractUnixSocket | Scope::Signal)?
            .create()
    };
    let mut rules = fenced().map_err(io::Error::other)?;
    for path in keeps.writes {
        rules = add(rules, path, everything).map_err(io::Error::other)?;
    }
    for path in keeps.reads.iter().filter(|path| path.exists()) {
        // A library that looks a name up is mapped, which is reading.
        rules = add(rules, path, AccessFs::ReadFile | AccessFs::ReadDir).map_err(io::Error::other)?;
    }
    let status = rules.restrict_self().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

fn add(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, Box<dyn std::error::Error + Send + Sync>> {
    Ok(rules.add_rule(PathBeneath::new(PathFd::new(path)?, access))?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
        os::unix::net::{UnixDatagram, UnixListener, UnixStream},
        process::Command,
        thread,
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::*;
    use crate::os::alone::{alone, alone_as_nobody};

    /// Every way out that a process of this user had before.
    fn ways_out(neighbour: Pid, door: SocketAddr, unix: &Path) -> Vec<(&'static str, bool)> {
        vec![
            ("read a file", File::open("/etc/passwd").is_ok()),
            ("read its memory as a file", File::open("/proc/self/mem").is_ok()),
            ("write a file", File::create(unix.with_extension("new")).is_ok()),
            ("list a folder", fs::read_dir("/").is_ok()),
            ("run a program", Command::new("/bin/true").status().is_ok()),
            ("connect by TCP", TcpStream::connect(door).is_ok()),
            ("listen by TCP", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_ok()),
            ("send by UDP", UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_ok()),
            ("connect by a path", UnixStream::connect(unix).is_ok()),
            ("send to a path", sends(&unix.with_extension("datagrams"))),
            ("trace a neighbour", traces(neighbour)),
            ("signal a neighbour", kill(neighbour, Signal::SIGCONT).is_ok()),
        ]
    }

    /// By one of a pair of sockets, which needs no other one.
    fn sends(unix: &Path) -> bool {
        UnixDatagram::pair().is_ok_and(|(one, _other)| one.send_to(b"x", unix).is_ok())
    }

    fn traces(neighbour: Pid) -> bool {
        // SAFETY: no memory is read or written by it.
        unsafe { libc::ptrace(libc::PTRACE_ATTACH, neighbour.as_raw(), 0, 0) == 0 }
    }

    #[test]
    fn a_listener_has_no_way_out() {
        alone_as_nobody("os::sandbox::tests::a_listener_has_no_way_out", || {
            let folder = tempfile::tempdir().unwrap();
            let unix = folder.path().join("socket");
            let _bound = UnixListener::bind(&unix).unwrap();
            let _told = UnixDatagram::bind(unix.with_extension("datagrams")).unwrap();
            let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let at = door.local_addr().unwrap();
            let mut children = [0, 1].map(|_| Command::new("sleep").arg("1000").spawn().unwrap());
            let [free, other] = [0, 1].map(|n| Pid::from_raw(i32::try_from(children[n].id()).unwrap()));
            // Once from outside, so that what follows shows something; whom it traces is no neighbour for the next try.
            for (way, open) in ways_out(free, at, &unix) {
                assert!(open, "{way}");
            }
            // A thread of its own has no way out, so that this one can still tidy up.
            let inside = thread::spawn(move || {
                let lacks = enter(&Keeps { calls: Calls::Listener, writes: &[], reads: &[] }).unwrap();
                assert_eq!(lacks, Vec::<String>::new());
                let open = ways_out(other, at, &unix).into_iter().filter(|(_, open)| *open).collect::<Vec<_>>();
                // What it is there for goes on.
                let pair = crate::os::channel::Channel::pair().is_ok();
                let body = crate::os::memfd::anonymous("body").and_then(crate::os::memfd::seal).is_ok();
                (open, pair, body)
            });
            let (open, pair, body) = inside.join().unwrap();
            for child in &mut children {
                child.kill().unwrap();
            }
            assert_eq!(open, []);
            assert!(pair && body);
        });
    }

    #[test]
    fn a_courier_connects_and_looks_names_up_and_writes_nothing() {
        alone("os::sandbox::tests::a_courier_connects_and_looks_names_up_and_writes_nothing", || {
            let folder = tempfile::tempdir().unwrap();
            let (kept, other) = (folder.path().join("kept"), folder.path().join("other"));
            fs::write(&kept, "roots").unwrap();
            fs::write(&other, "secret").unwrap();
            let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let at = door.local_addr().unwrap();
            let inside = thread::spawn(move || {
                let reads = [Path::new("/etc"), Path::new("/usr"), Path::new("/lib"), &kept, Path::new("/nowhere")];
                enter(&Keeps { calls: Calls::Courier, writes: &[], reads: &reads }).unwrap();
                assert!(TcpStream::connect(at).is_ok());
                assert!(thread::spawn(|| ("localhost", 1).to_socket_addrs().is_ok()).join().unwrap());
                assert_eq!(fs::read(&kept).unwrap(), b"roots");
                assert!(fs::read(&other).is_err() && fs::write(&kept, "x").is_err());
                assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).is_err());
                assert!(Command::new("/bin/true").status().is_err());
            });
            inside.join().unwrap();
        });
    }

    #[test]
    fn a_logger_has_its_folder_and_threads_and_nothing_else() {
        alone("os::sandbox::tests::a_logger_has_its_folder_and_threads_and_nothing_else", || {
            let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (inside, outside) = (folder.path().join("log"), other.path().join("log"));
            fs::write(&outside, "x").unwrap();
            thread::spawn(move || {
                enter(&Keeps { calls: Calls::Logger, writes: &[folder.path()], reads: &[] }).unwrap();
                let write = move || {
                    fs::create_dir(folder.path().join("blog")).unwrap();
                    fs::write(&inside, "line").unwrap();
                    fs::rename(&inside, folder.path().join("blog/log.1")).unwrap();
                    assert_eq!(fs::read(folder.path().join("blog/log.1")).unwrap(), b"line");
                    fs::remove_dir_all(folder.path().join("blog")).unwrap();
                };
                thread::spawn(write).join().unwrap();
                assert!(fs::read(&outside).is_err() && fs::write(&outside, "y").is_err());
                assert!(fs::remove_file(&outside).is_err());
                assert!(Command::new("/bin/true").status().is_err());
                assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).is_err());
            })
            .join()
            .unwrap();
            assert_eq!(fs::read(other.path().join("log")).unwrap(), b"x");
        });
    }
}
