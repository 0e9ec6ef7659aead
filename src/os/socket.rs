//! Listening and connecting: held TCP sockets, `control.sock`, sockets that were passed to us.

use std::{
    env,
    fs::{self, File, OpenOptions, Permissions},
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{Backlog, listen},
};

/// Connections that may wait while nobody accepts, as in a restart of the listener.
const BACKLOG: i32 = 1024;
/// `sun_path` holds 108 bytes, the last of them zero.
const LONGEST_PATH: usize = 107;
/// The first passed descriptor: `sd_listen_fds(3)`.
const FIRST_PASSED: RawFd = 3;

/// Binds and listens, non-blocking; returns the socket and its real address (port 0 resolved).
///
/// # Errors
/// `AddrInUse`, `PermissionDenied` (ports below 1024), `AddrNotAvailable`.
pub fn listen_tcp(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    // The standard library listens with a shorter backlog; listening again changes it.
    listen(&listener, Backlog::new(BACKLOG)?)?;
    let actual = listener.local_addr()?;
    Ok((listener.into(), actual))
}

/// Where a TCP socket that somebody else made is bound.
///
/// # Errors
/// When it is none.
pub fn bound_tcp(socket: &OwnedFd) -> io::Result<SocketAddr> {
    TcpListener::from(socket.try_clone()?).local_addr()
}

/// Binds a unix socket of this mode and listens, non-blocking. A socket file that nobody listens
/// on any more is replaced.
///
/// # Errors
/// `AddrInUse` when somebody listens there, `AlreadyExists` when it is no socket.
pub fn listen_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    remove_stale(path)?;
    let listener = reach(path, |path| UnixListener::bind(path))?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}

pub(super) fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no socket", path.display())));
        }
        Ok(_) => {}
    }
    match connect_unix(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there")),
    }
}

/// Connects to a unix socket, blocking.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when nobody listens there.
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    reach(path, |path| UnixStream::connect(path))
}

/// A path that is too long for a socket's address is reached through a descriptor of its folder.
pub(super) fn reach<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    if path.as_os_str().as_bytes().len() <= LONGEST_PATH {
        return act(path);
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no path of a socket", path.display()));
    let (folder, name) = (path.parent().ok_or_else(invalid)?, path.file_name().ok_or_else(invalid)?);
    let folder: File = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
    act(&PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name))
}

/// Sockets that whoever executed us passed by `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`, with
/// their names (`unknown` where they have none). None when they were meant for another process.
/// Call it once, before anything else is opened: the descriptors belong to the caller from then on.
#[must_use]
pub fn passed_sockets() -> Vec<(String, OwnedFd)> {
    let text = |name| env::var(name).unwrap_or_default();
    if text("LISTEN_PID") != std::process::id().to_string() {
        return Vec::new();
    }
    let count = text("LISTEN_FDS").parse().unwrap_or(0);
    let names = text("LISTEN_FDNAMES");
    let names = names.split(':').filter(|name| !name.is_empty()).chain(std::iter::repeat("unknown"));
    (FIRST_PASSED..).take(count).zip(names).filter_map(|(fd, name)| Some((name.to_owned(), adopt(fd)?))).collect()
}

/// Takes a descriptor that is open by its number, to be closed at exec from now on.
fn adopt(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: borrowed for this one call, which fails where it is not open.
    fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    // SAFETY: it is open, and by the protocol it is ours.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        os::fd::AsFd,
        process::Command,
    };

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;
    use crate::os::alone::alone;

    #[test]
    fn a_port_is_bound_once_and_again_at_once() {
        alone("os::socket::tests::a_port_is_bound_once_and_again_at_once", || {
            let (socket, address) = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            assert_ne!(address.port(), 0);
            assert_eq!(listen_tcp(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            let client = TcpStream::connect(address).unwrap();
            let listener = TcpListener::from(socket);
            // The client may be through a moment before the last of its packets is heard here.
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 20_000u16).unwrap(), 1);
            let (served, _) = listener.accept().unwrap();
            assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            // The server closes first, so that the port is left in TIME_WAIT.
            drop((served, listener, client));
            listen_tcp(address).unwrap();
        });
    }

    #[test]
    fn a_unix_socket_of_any_length_is_reached() {
        alone("os::socket::tests::a_unix_socket_of_any_length_is_reached", || {
            let folder = tempfile::tempdir().unwrap();
            let long = folder.path().join("x".repeat(120));
            fs::create_dir(&long).unwrap();
            for path in [folder.path().join("short.sock"), long.join("control.sock")] {
                let listener = listen_unix(&path, 0o666).unwrap();
                assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o666);
                let mut client = connect_unix(&path).unwrap();
                client.write_all(b"hello").unwrap();
                drop(client);
                let mut text = String::new();
                listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello");
                assert_eq!(listen_unix(&path, 0o666).unwrap_err().kind(), io::ErrorKind::AddrInUse);
                drop(listener);
                listen_unix(&path, 0o600).unwrap();
            }
        });
    }

    #[test]
    fn nothing_but_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert_eq!(listen_unix(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(connect_unix(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// Is its own second process: a shell passes it the socket that it was given as stdin.
    #[test]
    fn passed_sockets_are_ours_only_if_meant_for_us() {
        alone("os::socket::tests::passed_sockets_are_ours_only_if_meant_for_us", || {
            if let Ok(address) = env::var("PASSED_ADDRESS") {
                let passed = passed_sockets();
                assert_eq!(passed.len(), 1);
                let (name, socket) = passed.into_iter().next().unwrap();
                assert_eq!(
                    (name.as_str(), TcpListener::from(socket).local_addr().unwrap().to_string()),
                    ("http", address)
                );
                return;
            }
            assert!(passed_sockets().is_empty());
            let (socket, address) = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
            let test = env::args().nth(2).unwrap();
            for (pid, succeeds) in [("$$", true), ("1", false)] {
                let passing = format!("export LISTEN_PID={pid} LISTEN_FDS=1 LISTEN_FDNAMES=http");
                let script = format!("{passing}; exec /proc/{}/exe --exact {test} 3<&0 </dev/null", std::process::id());
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &script]).env("PASSED_ADDRESS", address.to_string());
                let output = shell.stdin(socket.try_clone().unwrap()).output().unwrap();
                assert_eq!(output.status.success(), succeeds, "{}", String::from_utf8_lossy(&output.stdout));
            }
        });
    }
}
