//! Sockets that are bound here and used by others: made blocking, as whoever gets them expects, and
//! never accepted from.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, getsockopt, listen, setsockopt,
    socket,
    sockopt::{AcceptConn, ReuseAddr, ReusePort, SockType as SockTypeOf},
};

use super::{
    pidfd,
    socket::{reach, remove_stale},
};

/// What names a file whatever its path: device and inode.
pub type FileId = (u64, u64);

/// Binds a port and listens; returns the socket and its real address (port 0 resolved).
///
/// # Errors
/// `AddrInUse`, `PermissionDenied` (ports below 1024), `AddrNotAvailable`.
pub fn tcp(address: SocketAddr, reuse_port: bool, backlog: i32) -> io::Result<(OwnedFd, SocketAddr)> {
    let (fd, address) = bound(address, SockType::Stream, reuse_port)?;
    listen(&fd, Backlog::new(backlog)?)?;
    Ok((fd, address))
}

/// Binds a port for datagrams.
///
/// # Errors
/// As [`tcp`].
pub fn udp(address: SocketAddr, reuse_port: bool) -> io::Result<(OwnedFd, SocketAddr)> {
    bound(address, SockType::Datagram, reuse_port)
}

fn bound(address: SocketAddr, kind: SockType, reuse_port: bool) -> io::Result<(OwnedFd, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if kind == SockType::Stream {
        // Connections of a server that has just ended must not keep the port.
        setsockopt(&fd, ReuseAddr, &true)?;
    }
    if reuse_port {
        setsockopt(&fd, ReusePort, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let real = ip_address(&name).ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    Ok((fd, real))
}

fn ip_address(name: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = name.as_sockaddr_in().map(|name| SocketAddr::from((name.ip(), name.port())));
    let v6 = name.as_sockaddr_in6().map(|name| SocketAddr::from((name.ip(), name.port())));
    v4.or(v6)
}

/// The second name of a socket's file, beside the first: a file that has lost all its names can never
/// be connected to again.
fn second_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".held");
    path.with_file_name(name)
}

/// Gives a socket's file its name back, where somebody has removed it; true where it stands again.
#[must_use]
pub fn put_back(path: &Path, id: FileId) -> bool {
    let second = second_name(path);
    is_at(&second, id) && fs::hard_link(second, path).is_ok()
}

/// Removes a socket's file, unless it is another one by now.
pub fn remove(path: &Path, id: FileId) {
    for name in [path, &second_name(path)] {
        if is_at(name, id) {
            // Whoever removes it in this moment has the same in mind.
            let _ = fs::remove_file(name);
        }
    }
}

/// The same of one that an earlier process of ours has held: only one that surely is that, or that nobody serves.
pub fn remove_left(path: &Path, id: FileId) {
    let unserved = || reach(path, |path| UnixStream::connect(path)).is_err();
    if is_at(&second_name(path), id) || (is_at(path, id) && unserved()) {
        remove(path, id);
    }
}

/// Binds a unix socket and listens. A socket file that nobody listens on any more is replaced.
///
/// # Errors
/// `AddrInUse` when somebody listens there, `AlreadyExists` when it is no socket.
pub fn unix(path: &Path, mode: u32, owner: Option<(u32, u32)>, backlog: i32) -> io::Result<(OwnedFd, FileId)> {
    remove_stale(path)?;
    let listener = reach(path, |path| UnixListener::bind(path))?;
    let id = dress(path, mode, owner)?;
    let second = second_name(path);
    // Without it, it is only lost for good when an app removes it: no reason not to run.
    let _ = remove_stale(&second).and_then(|()| fs::hard_link(path, second));
    listen(&listener, Backlog::new(backlog)?)?;
    Ok((listener.into(), id))
}

/// Gives a socket's file its mode and owner. The folder may be somebody else's: no link is followed.
///
/// # Errors
/// As the system says.
pub fn dress(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<FileId> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)?;
    let facts = file.metadata()?;
    if !facts.file_type().is_socket() {
        // Whose folder it is may have put something else there since it was bound.
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no socket", path.display())));
    }
    let held = format!("/proc/self/fd/{}", file.as_raw_fd());
    if let Some((uid, gid)) = owner {
        chown(&held, Some(uid), Some(gid))?;
    }
    fs::set_permissions(&held, Permissions::from_mode(mode))?;
    Ok((facts.dev(), facts.ino()))
}

/// Listens again, with another backlog.
///
/// # Errors
/// As the system says.
pub fn relisten(fd: &OwnedFd, backlog: i32) -> io::Result<()> {
    Ok(listen(fd, Backlog::new(backlog)?)?)
}

/// Is this the file at the path?
#[must_use]
pub fn is_at(path: &Path, id: FileId) -> bool {
    fs::symlink_metadata(path).is_ok_and(|facts| (facts.dev(), facts.ino()) == id)
}

/// Where a socket listens, or takes datagrams from anybody.
#[derive(Debug, PartialEq, Eq)]
pub enum Bound {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

/// Where this one does; `None` for any other descriptor.
#[must_use]
pub fn bound_at(fd: &OwnedFd) -> Option<Bound> {
    let listens = getsockopt(fd, AcceptConn).ok()?;
    let kind = getsockopt(fd, SockTypeOf).ok()?;
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    if let Some(name) = name.as_unix_addr() {
        return name.path().filter(|_| listens).map(|path| Bound::Unix(path.to_owned()));
    }
    let address = ip_address(&name)?;
    match kind {
        SockType::Stream if listens => Some(Bound::Tcp(address)),
        SockType::Datagram if address.port() != 0 => Some(Bound::Udp(address)),
        _ => None,
    }
}

/// The place of the socket of this name among those that a process was passed, as its `LISTEN_FDNAMES` says.
#[must_use]
pub fn passed(pid: u32, name: &str) -> Option<i32> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let names = environment.split(|b| *b == 0).find_map(|variable| variable.strip_prefix(b"LISTEN_FDNAMES="))?;
    let place = names.split(|b| *b == b':').position(|known| known == name.as_bytes())?;
    i32::try_from(place).ok()
}

/// Every socket that a process has. Of one that we may not look into, none.
pub fn sockets_of(pid: u32, pidfd: &OwnedFd) -> impl Iterator<Item = OwnedFd> + use<'_> {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let is_socket = |entry: &fs::DirEntry| {
        fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    let numbers = open.filter(is_socket).filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(move |number: i32| pidfd::take_file(pidfd, number).ok())
}

/// The file of a socket that was bound by [`unix`], by whichever of its names it still has.
///
/// # Errors
/// `NotFound` where it has none.
pub fn file_of(path: &Path) -> io::Result<FileId> {
    let facts = fs::symlink_metadata(second_name(path)).or_else(|_| fs::symlink_metadata(path))?;
    if facts.file_type().is_socket() { Ok((facts.dev(), facts.ino())) } else { Err(io::ErrorKind::NotFound.into()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream, UdpSocket},
    };

    use super::*;

    #[test]
    fn a_port_is_held_and_shared_only_when_asked() {
        let (fd, address) = tcp("127.0.0.1:0".parse().unwrap(), false, 8).unwrap();
        assert_eq!(tcp(address, false, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut client = TcpStream::connect(address).unwrap();
        let (mut served, _) = TcpListener::from(fd).accept().unwrap();
        client.write_all(b"x").unwrap();
        served.read_exact(&mut [0]).unwrap();
        let (_first, address) = tcp("[::1]:0".parse().unwrap(), true, 8).unwrap();
        tcp(address, true, 8).unwrap();
    }

    #[test]
    fn datagrams_reach_a_held_port() {
        let (fd, address) = udp("127.0.0.1:0".parse().unwrap(), false).unwrap();
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"hello", address).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(UdpSocket::from(fd).recv(&mut buffer).unwrap(), 5);
    }

    #[test]
    fn where_a_socket_of_a_process_listens_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let (listens, address) = tcp("127.0.0.1:0".parse().unwrap(), false, 8).unwrap();
        let (hears, other) = udp("[::1]:0".parse().unwrap(), false).unwrap();
        let (file, id) = unix(&path, 0o600, None, 8).unwrap();
        assert_eq!(bound_at(&listens), Some(Bound::Tcp(address)));
        assert_eq!(bound_at(&hears), Some(Bound::Udp(other)));
        assert_eq!(bound_at(&file), Some(Bound::Unix(path.clone())));
        let client: OwnedFd = TcpStream::connect(address).unwrap().into();
        let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        assert_eq!((bound_at(&client), bound_at(&null)), (None, None));
        fs::remove_file(&path).unwrap();
        assert_eq!(file_of(&path).unwrap(), id, "by its second name");
        let own = pidfd::open(std::process::id()).unwrap();
        let found: Vec<_> = sockets_of(std::process::id(), &own).filter_map(|fd| bound_at(&fd)).collect();
        assert!(found.contains(&Bound::Tcp(address)) && found.contains(&Bound::Unix(path)), "{found:?}");
        assert_eq!(passed(std::process::id(), "nothing"), None);
    }

    #[test]
    fn a_unix_socket_has_its_mode_and_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let (_fd, id) = unix(&path, 0o620, None, 8).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o620);
        assert!(is_at(&path, id));
        UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&path, id));
        assert!(put_back(&path, id) && is_at(&path, id));
        UnixStream::connect(&path).unwrap();
        remove(&path, id);
        assert!(!put_back(&path, id));
        unix(&path, 0o600, None, 8).unwrap();
    }

    #[test]
    fn only_a_socket_gets_its_mode_and_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        fs::write(&path, "private").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(dress(&path, 0o666, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_somebody_else_has_put_there_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let (held, id) = unix(&path, 0o600, None, 8).unwrap();
        remove_left(&path, (id.0, id.1 + 1));
        assert!(path.exists());
        fs::remove_file(second_name(&path)).unwrap();
        remove_left(&path, id);
        assert!(path.exists(), "it is served, and nothing tells that it is ours");
        // A child that a test beside this one starts may have it still when we have not.
        nix::sys::socket::shutdown(held.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        drop(held);
        remove_left(&path, id);
        assert!(!path.exists());
        let (_held, id) = unix(&path, 0o600, None, 8).unwrap();
        remove_left(&path, id);
        assert!(!path.exists() && !second_name(&path).exists());
    }
}
