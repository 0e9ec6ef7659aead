//! Files without a name: results that a helper writes, and bodies too large for a frame.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// An empty file in memory, which can be sealed. `name` shows in `/proc` alone.
///
/// # Errors
/// When descriptors or memory run out.
pub fn anonymous(name: &str) -> io::Result<OwnedFd> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?)
}

/// A sealed one that holds this.
///
/// # Errors
/// When descriptors or memory run out.
pub fn holding(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(anonymous(name)?);
    file.write_all(bytes)?;
    seal(&file)?;
    Ok(file.into())
}

/// Makes its content final, for whoever holds it.
///
/// # Errors
/// When it is mapped for writing somewhere.
pub fn seal(fd: impl AsFd) -> io::Result<()> {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    Ok(fcntl_add_seals(fd, all)?)
}

/// The whole content of a file of ours, from its start, whatever its offset is.
///
/// # Errors
/// `InvalidData` when it holds more than `limit` bytes.
pub fn read_all(fd: impl AsFd, limit: usize) -> io::Result<Vec<u8>> {
    let file = File::from(fd.as_fd().try_clone_to_owned()?);
    // A call that processes behind seccomp have too.
    let length = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(usize::MAX);
    if length > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("more than {limit} bytes")));
    }
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The content of a descriptor that a less trusted process passed: a memfd that it cannot change
/// any more.
///
/// # Errors
/// `InvalidData` when it is no sealed memfd, or holds more than `limit` bytes.
pub fn read_sealed(fd: OwnedFd, limit: usize) -> io::Result<Vec<u8>> {
    let needed = SealFlags::SHRINK | SealFlags::WRITE;
    if fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(needed)) {
        return read_all(fd, limit);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "no sealed memfd"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsealed(bytes: &[u8]) -> OwnedFd {
        let mut file = File::from(anonymous("test").unwrap());
        file.write_all(bytes).unwrap();
        file.into()
    }

    #[test]
    fn content_is_read_from_the_start() {
        assert_eq!(read_all(unsealed(b"result"), 6).unwrap(), b"result");
        assert_eq!(read_all(unsealed(b""), 6).unwrap(), b"");
        assert_eq!(read_all(unsealed(b"results"), 6).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_sealed_is_final() {
        let fd = unsealed(b"body");
        let mut writer = File::from(fd.try_clone().unwrap());
        seal(&fd).unwrap();
        assert!(writer.write_all(b"x").is_err());
        assert!(writer.set_len(0).is_err());
        assert_eq!(read_sealed(fd, 4).unwrap(), b"body");
    }

    #[test]
    fn only_what_is_sealed_is_trusted() {
        assert!(read_sealed(unsealed(b"body"), 10).is_err());
        assert!(read_sealed(tempfile::tempfile().unwrap().into(), 10).is_err());
        assert!(read_sealed(File::open("/dev/zero").unwrap().into(), 10).is_err());
        let (read, _write) = std::io::pipe().unwrap();
        assert!(read_sealed(read.into(), 10).is_err());
    }
}
