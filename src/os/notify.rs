//! The datagram socket behind `NOTIFY_SOCKET`: sd_notify(3), at the service manager's end. One for
//! each instance, so that the socket says who speaks even when the sender is gone; the kernel says as
//! which user.

use std::{
    fs, io,
    io::IoSliceMut,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, PermissionsExt, lchown},
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind, recvmsg,
    setsockopt, socket, sockopt,
};

/// No message is longer, as with systemd (`PIPE_BUF`).
const LONGEST: usize = 4096;
/// `SCM_MAX_FD`: no message brings more descriptors.
const MOST_FDS: usize = 253;

/// One message.
#[derive(Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub pid: u32,
    pub uid: u32,
    /// What was passed with it. Whoever waits for a barrier waits until these are closed.
    pub fds: Vec<OwnedFd>,
}

/// Makes the socket anew; only `uid` (and root) may send to it. It does not block.
///
/// # Errors
/// `AlreadyExists` when something else has the name; `ENAMETOOLONG` beyond 107 bytes.
pub fn make(path: &Path, uid: u32, gid: u32) -> io::Result<UnixDatagram> {
    match fs::symlink_metadata(path) {
        Ok(old) if old.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no socket", path.display())));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    // Before it has a name, so that no message comes without its sender.
    setsockopt(&fd, sockopt::PassCred, &true)?;
    bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    lchown(path, Some(uid), Some(gid))?;
    Ok(fd.into())
}

/// Says something to whoever manages us and named a socket for it, such as systemd: sd_notify(3). A name
/// that begins with `@` is no file's.
///
/// # Errors
/// As the kernel says; nothing is said where nobody asked for it.
pub fn tell_manager(text: &str) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

/// The next message; `None` when there is none. One that is too long comes empty.
///
/// # Errors
/// As the kernel says.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Message>> {
    let mut buffer = [0u8; LONGEST];
    let mut space = nix::cmsg_space!(UnixCredentials, [RawFd; MOST_FDS]);
    let mut slice = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let (length, whole, mut message) = loop {
        let received = match recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slice, Some(&mut space), flags) {
            Err(nix::Error::EINTR) => continue,
            Err(nix::Error::EAGAIN) => return Ok(None),
            other => other?,
        };
        let mut message = Message { bytes: Vec::new(), pid: 0, uid: u32::MAX, fds: Vec::new() };
        for control in received.cmsgs()? {
            match control {
                ControlMessageOwned::ScmRights(raws) => {
                    // SAFETY: the kernel made these descriptors for us in this very call; nobody else owns them.
                    message.fds.extend(raws.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
                }
                ControlMessageOwned::ScmCredentials(who) => {
                    message.pid = who.pid().unsigned_abs();
                    message.uid = who.uid();
                }
                _ => {}
            }
        }
        break (received.bytes, !received.flags.contains(MsgFlags::MSG_TRUNC), message);
    };
    if whole {
        message.bytes = buffer[..length].to_vec();
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::fs::MetadataExt,
        process::{Command, id},
    };

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    fn socket_in(folder: &Path) -> UnixDatagram {
        make(&folder.join("a.1"), id_of().0, id_of().1).unwrap()
    }

    fn id_of() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

    fn next(socket: &UnixDatagram) -> Message {
        receive(socket).unwrap().expect("a message")
    }

    #[test]
    fn the_sender_is_known_even_when_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket_in(folder.path());
        assert!(receive(&socket).unwrap().is_none());
        let status = Command::new("systemd-notify")
            .args(["--ready", "--no-block", "--status=up"])
            .env("NOTIFY_SOCKET", folder.path().join("a.1"))
            .status();
        let Ok(status) = status else { return println!("no systemd-notify here") };
        assert!(status.success());
        let message = next(&socket);
        assert_eq!(message.bytes, b"READY=1\nSTATUS=up");
        assert_eq!(message.uid, id_of().0);
        // As root it speaks in the name of its parent.
        assert!(message.pid > 0);
    }

    #[test]
    fn descriptors_are_taken_and_closed_with_the_message() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket_in(folder.path());
        let client = UnixDatagram::unbound().unwrap();
        client.connect(folder.path().join("a.1")).unwrap();
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let bytes = [io::IoSlice::new(b"BARRIER=1")];
        let fds = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(client.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        drop(theirs);
        let message = next(&socket);
        assert_eq!((message.fds.len(), message.pid), (1, id()));
        drop(message);
        assert_eq!(ours.read(&mut [0]).unwrap(), 0, "the barrier is open");
    }

    #[test]
    fn what_is_too_long_comes_empty() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket_in(folder.path());
        let client = UnixDatagram::unbound().unwrap();
        client.connect(folder.path().join("a.1")).unwrap();
        client.send(&[b'x'; LONGEST + 1]).unwrap();
        client.send(&[b'x'; LONGEST]).unwrap();
        assert_eq!(next(&socket).bytes.len(), 0);
        assert_eq!(next(&socket).bytes.len(), LONGEST);
    }

    #[test]
    fn it_is_made_anew_but_replaces_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let old = socket_in(folder.path());
        let client = UnixDatagram::unbound().unwrap();
        client.connect(folder.path().join("a.1")).unwrap();
        drop(old);
        let socket = socket_in(folder.path());
        let facts = fs::metadata(folder.path().join("a.1")).unwrap();
        assert_eq!((facts.mode() & 0o777, facts.uid()), (0o600, id_of().0));
        client.connect(folder.path().join("a.1")).unwrap();
        client.send(b"READY=1").unwrap();
        assert_eq!(next(&socket).bytes, b"READY=1");
        fs::write(folder.path().join("file"), "").unwrap();
        let refused = make(&folder.path().join("file"), 0, 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert!(make(&folder.path().join("a".repeat(120)), 0, 0).is_err());
    }
}
