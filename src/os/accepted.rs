//! Who has accepted a connection of ours. Where a listening socket is shared, an answer does not tell
//! which process gave it, and a connection stands before anybody has accepted it. But the socket at
//! the far end has an inode from then on, and whoever accepted it has it among their descriptors.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use rustix::fs::fstat;

/// The inode of the socket at the far end of a TCP connection to this machine; `None` while nobody has
/// accepted it, or when it is closed there.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn tcp_inode(near: SocketAddr, far: SocketAddr) -> io::Result<Option<u64>> {
    let wanted = (canonical(far), canonical(near));
    // A socket for both families stands in the second table, whichever one the connection is of.
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        let text = match fs::read_to_string(table) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            text => text?,
        };
        if let Some(inode) = text.lines().skip(1).find_map(|line| row(line).filter(|row| row.ends == wanted)) {
            return Ok(Some(inode.inode).filter(|inode| *inode != 0));
        }
    }
    Ok(None)
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A line of `/proc/net/tcp`.
struct Row {
    /// Here, and there.
    ends: (SocketAddr, SocketAddr),
    inode: u64,
}

fn row(line: &str) -> Option<Row> {
    let fields: Vec<&str> = line.split_ascii_whitespace().take(10).collect();
    let [_, here, there, .., inode] = fields[..] else { return None };
    Some(Row { ends: (canonical(address(here)?), canonical(address(there)?)), inode: inode.parse().ok()? })
}

/// `0100007F:0BB8`: words of four bytes as the machine reads them, in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The same for a connected unix socket of ours: `sock_diag(7)` tells the inode of its peer.
///
/// # Errors
/// `NotFound` or `Unsupported` where the kernel has no such diagnosis for unix sockets.
pub fn unix_inode(near: impl AsFd) -> io::Result<Option<u64>> {
    let inode = u32::try_from(fstat(near)?.st_ino).map_err(|_| io::ErrorKind::Unsupported)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let diag = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkSockDiag)?;
    send(diag.as_raw_fd(), &peer_question(inode), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(diag.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    peer_answer(&answer[..length])
}

/// `struct nlmsghdr` and `struct unix_diag_req`, for one socket by its inode.
fn peer_question(inode: u32) -> Vec<u8> {
    const LENGTH: u32 = 16 + 24;
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST: u16 = 1;
    const SHOW_PEER: u32 = 4;
    const AF_UNIX: [u8; 4] = [1, 0, 0, 0];
    let mut bytes = Vec::with_capacity(40);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port.
    bytes.extend([0; 8]);
    bytes.extend(AF_UNIX);
    // In any state.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(inode.to_ne_bytes());
    bytes.extend(SHOW_PEER.to_ne_bytes());
    // Whatever its cookie.
    bytes.extend([0xff; 8]);
    bytes
}

/// `struct nlmsghdr`, `struct unix_diag_msg`, then attributes.
fn peer_answer(bytes: &[u8]) -> io::Result<Option<u64>> {
    const ERROR: u16 = 2;
    const PEER: u16 = 2;
    let broken = || io::Error::from(io::ErrorKind::InvalidData);
    let short = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if short(4).ok_or_else(broken)? == ERROR {
        let error = word(16).ok_or_else(broken)?.cast_signed();
        return Err(io::Error::from_raw_os_error(-error));
    }
    let mut at = 16 + 16;
    while let Some((length, kind)) = short(at).zip(short(at + 2)) {
        if kind == PEER {
            let inode = u64::from(word(at + 4).ok_or_else(broken)?);
            return Ok(Some(inode).filter(|inode| *inode != 0));
        }
        at += usize::from(length.max(4)).next_multiple_of(4);
    }
    Ok(None)
}

/// Does the process hold this socket? Who may not look into it cannot know, and is told no.
#[must_use]
pub fn holds(pid: u32, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    targets.any(|target| target.as_os_str() == wanted.as_str())
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::{UnixListener, UnixStream},
        process::id,
    };

    use super::*;
    use crate::os::alone::alone;

    fn inode_of(socket: impl AsFd) -> u64 {
        fstat(socket).unwrap().st_ino
    }

    #[test]
    fn a_tcp_connection_has_an_inode_once_it_is_accepted() {
        alone("os::accepted::tests::a_tcp_connection_has_an_inode_once_it_is_accepted", || {
            for (bind, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
                let Ok(listener) = TcpListener::bind(bind) else { continue };
                let port = listener.local_addr().unwrap().port();
                let client = TcpStream::connect((connect, port)).unwrap();
                let (near, far) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
                assert_eq!(tcp_inode(near, far).unwrap(), None, "{bind}: nobody has accepted");
                let (server, _) = listener.accept().unwrap();
                assert_eq!(tcp_inode(near, far).unwrap(), Some(inode_of(&server)), "{bind}");
                assert!(holds(id(), inode_of(&server)) && !holds(1, inode_of(&server)));
                drop(server);
                assert_eq!(tcp_inode(near, far).unwrap(), None, "{bind}: closed");
            }
        });
    }

    #[test]
    fn a_unix_connection_has_an_inode_once_it_is_accepted() {
        alone("os::accepted::tests::a_unix_connection_has_an_inode_once_it_is_accepted", || {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            let others: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
            let client = UnixStream::connect(&path).unwrap();
            match unix_inode(&client) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return println!("no unix_diag here"),
                answer => assert_eq!(answer.unwrap(), None),
            }
            let accepted: Vec<_> = (0..4).map(|_| listener.accept().unwrap().0).collect();
            for (client, server) in others.iter().chain([&client]).zip(&accepted) {
                assert_eq!(unix_inode(client).unwrap(), Some(inode_of(server)));
            }
            drop(accepted);
            assert_eq!(unix_inode(&client).unwrap(), None);
        });
    }

    #[test]
    fn rows_are_read_and_nonsense_is_not() {
        let line = "  3: 0100007F:0BB8 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1";
        let read = row(line).unwrap();
        assert_eq!((read.ends.0.to_string(), read.inode), ("127.0.0.1:3000".into(), 4711));
        for bad in [
            "",
            "  sl  local_address rem_address",
            "0: 0100007F 0:0 a b c d e f g",
            "0: é100007F:0BB8 x b c d e f g h i",
        ] {
            assert!(row(bad).is_none(), "{bad}");
        }
    }
}
