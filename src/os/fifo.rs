//! FIFOs, through which apps' output travels: what is written waits in them while anybody holds one open.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    },
    path::Path,
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use rustix::pipe::fcntl_getpipe_size;

use super::holder;

/// Makes a FIFO where none is, and gives it to this owner with mode 0600 (the owner opens it by
/// name too, as `/dev/stdout`). One that is there is kept with what it holds. Returns the end that a child
/// writes to. It can be read too, so that a write never fails for want of a reader: at worst it blocks.
/// It bears the mark of [`holder`].
///
/// # Errors
/// `AlreadyExists` when something else has the name, or as the file system says.
pub fn make(path: &Path, uid: u32, gid: u32) -> io::Result<OwnedFd> {
    let fifo = match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) => open(path, 0)?,
        Err(nix::Error::EEXIST) => open_known(path, 0)?,
        Err(e) => return Err(e.into()),
    };
    let metadata = fifo.metadata()?;
    if !metadata.file_type().is_fifo() {
        return Err(is_other(path));
    }
    if (metadata.uid(), metadata.gid()) != (uid, gid) {
        fchown(&fifo, Some(uid), Some(gid))?;
    }
    if metadata.mode() & 0o7777 != 0o600 {
        fifo.set_permissions(Permissions::from_mode(0o600))?;
    }
    let fifo = fifo.into();
    holder::mark(&fifo);
    Ok(fifo)
}

/// Bytes that wait in it at most: 64 KiB, or less where the kernel saves on its owner.
///
/// # Errors
/// As `F_GETPIPE_SZ` of fcntl(2) says.
pub fn room(fifo: impl AsFd) -> io::Result<usize> {
    Ok(fcntl_getpipe_size(fifo)?)
}

/// The end that the logger reads, non-blocking, of the FIFO that this end belongs to: another open file, as
/// blocking is a property of that. It can be written too, so that it never ends.
///
/// # Errors
/// Where `/proc` is not mounted, and when descriptors run out.
pub fn read_end(of: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", of.as_fd().as_raw_fd());
    let options = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(options.into())
}

/// Adds a line to what waits in it, whole or not at all, and never blocks.
///
/// # Errors
/// `WouldBlock` when it is full, `InvalidInput` when the line is so long that the kernel may split it.
pub fn add_line(path: &Path, line: &str) -> io::Result<()> {
    let line = format!("{line}\n");
    if line.len() > libc::PIPE_BUF {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the line is too long"));
    }
    // Opened anew: the children's ends block, and whether it blocks is a property of the open file.
    open_known(path, libc::O_NONBLOCK)?.write_all(line.as_bytes())
}

/// Opens what may be something else: looked at before, as opening that may act on it, and after, as it may
/// have changed.
fn open_known(path: &Path, flags: i32) -> io::Result<File> {
    if !std::fs::symlink_metadata(path)?.file_type().is_fifo() {
        return Err(is_other(path));
    }
    let file = open(path, flags)?;
    if file.metadata()?.file_type().is_fifo() { Ok(file) } else { Err(is_other(path)) }
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(flags | libc::O_NOFOLLOW).open(path)
}

fn is_other(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is no FIFO", path.display()))
}

/// What the FIFO of a flood holds, in bytes.
pub const WIDE: usize = 256 * 1024;

/// Sets how much it holds, in bytes, rounded up by the kernel to a power of two pages.
///
/// # Errors
/// `EPERM` above `/proc/sys/fs/pipe-max-size` without privilege, `EBUSY` when it holds more.
pub fn set_pipe_size(fifo: impl AsFd, bytes: usize) -> io::Result<()> {
    rustix::pipe::fcntl_setpipe_size(fifo, bytes)?;
    Ok(())
}

/// How many bytes wait in it.
///
/// # Errors
/// When it is closed.
pub fn bytes_waiting(fifo: impl AsFd) -> io::Result<u64> {
    Ok(rustix::io::ioctl_fionread(fifo)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn me() -> (u32, u32) {
        (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
    }

    #[test]
    fn what_is_written_waits_for_a_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let child = make(&path, me().0, me().1).unwrap();
        let kept = read_end(&child).unwrap();
        let mut writer = File::from(child);
        writer.write_all(b"line\n").unwrap();
        drop(writer);
        // Made again with what it holds, as a restart does.
        let again = make(&path, me().0, me().1).unwrap();
        assert_eq!(bytes_waiting(&kept).unwrap(), 5);
        let mut reader = File::from(read_end(&again).unwrap());
        drop(kept);
        let mut buffer = [0; 16];
        assert_eq!(reader.read(&mut buffer).unwrap(), 5);
        assert_eq!(reader.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock, "it never ends");
    }

    #[test]
    fn the_size_is_ours_to_choose() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let child = make(&path, me().0, me().1).unwrap();
        let fifo = read_end(&child).unwrap();
        set_pipe_size(&fifo, WIDE).unwrap();
        File::from(child).write_all(&vec![b'x'; 200_000]).unwrap();
        assert_eq!(bytes_waiting(&fifo).unwrap(), 200_000);
    }

    #[test]
    fn owner_and_mode_are_mended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let (uid, gid) = if me().0 == 0 { (65534, 65534) } else { me() };
        make(&path, uid, gid).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        make(&path, uid, gid).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (uid, gid, 0o600));
    }

    #[test]
    fn nothing_else_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, link, file) = (folder.path().join("fifo"), folder.path().join("link"), folder.path().join("file"));
        make(&fifo, me().0, me().1).unwrap();
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        std::fs::write(&file, "").unwrap();
        for path in [&link, &file] {
            assert_eq!(make(path, me().0, me().1).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(add_line(path, "a line").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
    }
}
