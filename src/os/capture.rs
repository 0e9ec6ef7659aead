//! A buffer that outlives its process: a file mapped shared, which survives kill -9 of everybody who
//! mapped it. It holds bytes on their way from a pipe to a file, and a note of what is being done with
//! them. A note is replaced as a whole: two slots and one word that tells which of them counts.
//!
//! What a note means is its owner's business; here it is numbers and a path.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, posix_fallocate};
use rustix::fs::{FallocateFlags, FlockOperation};

/// Numbers in a note.
pub const WORDS: usize = 16;
/// Bytes of data that the buffer holds.
pub const CAPACITY: usize = 512 * 1024;
/// The longest path that fits into a note, in bytes.
pub const MAX_PATH: usize = SLOT - (WORDS + 1) * 8;

const PAGE: usize = 4096;
const SLOT: usize = PAGE;
/// Page 0 holds the magic and which slot counts, pages 1 and 2 the slots; data follows.
const DATA: usize = 3 * PAGE;
const LENGTH: usize = DATA + CAPACITY;
const MAGIC: u64 = u64::from_le_bytes(*b"everhk02");

/// What its owner was about to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub words: [u64; WORDS],
    pub path: PathBuf,
}

/// The mapped file. One process has it at a time.
pub struct Buffer {
    map: NonNull<u8>,
    /// Keeps the lock.
    _file: File,
    random: u64,
}

impl Buffer {
    /// Opens the file, or makes it (0600, allocated in full, so that a full disk never stops the
    /// capture), and waits until no other process has it.
    ///
    /// # Errors
    /// When it cannot be opened, locked, allocated or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        posix_fallocate(&file, 0, LENGTH as libc::off_t)?;
        // SAFETY: a new mapping of LENGTH bytes at an address the kernel chooses; the file is at least as long.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let mut buffer = Self { map, _file: file, random: getrandom::u64().map_err(io::Error::other)? };
        if buffer.word(0).load(Ordering::Acquire) != MAGIC {
            buffer.note(&[0; WORDS], Path::new(""));
            buffer.word(0).store(MAGIC, Ordering::Release);
        }
        Ok(buffer)
    }

    /// Word `i` of page 0: the magic, and the number of the slot that counts.
    fn word(&self, i: usize) -> &AtomicU64 {
        // SAFETY: page 0 is mapped for the life of self, aligned, and only ever accessed through this function.
        unsafe { AtomicU64::from_ptr(self.map.as_ptr().cast::<u64>().add(i)) }
    }

    fn slot(&self, number: u64) -> *mut u8 {
        let page = if number & 1 == 0 { 1 } else { 2 };
        // SAFETY: pages 1 and 2 are inside of the mapping.
        unsafe { self.map.as_ptr().add(page * PAGE) }
    }

    /// Replaces the note. A kill at any instruction leaves either the old or the new one.
    /// A path over [`MAX_PATH`] is cut: check before.
    pub fn note(&mut self, words: &[u64; WORDS], path: &Path) {
        let path = path.as_os_str().as_bytes();
        let path = &path[..path.len().min(MAX_PATH)];
        let next = self.word(1).load(Ordering::Relaxed).wrapping_add(1);
        let slot = self.slot(next);
        // SAFETY: WORDS numbers, a length and at most MAX_PATH bytes fit into a slot; the slot is ours alone
        // (&mut self, and the lock), page-aligned, and does not overlap the sources.
        unsafe {
            let numbers = slot.cast::<u64>();
            std::ptr::copy_nonoverlapping(words.as_ptr(), numbers, WORDS);
            numbers.add(WORDS).write(path.len() as u64);
            std::ptr::copy_nonoverlapping(path.as_ptr(), slot.add((WORDS + 1) * 8), path.len());
        }
        self.word(1).store(next, Ordering::Release);
        // What is noted stands in memory before the system call that it announces.
        fence(Ordering::SeqCst);
    }

    /// The note that counts.
    #[must_use]
    pub fn noted(&self) -> Note {
        let slot = self.slot(self.word(1).load(Ordering::Acquire));
        let mut words = [0; WORDS];
        // SAFETY: the slot is mapped and aligned; the length is held within it whatever stands there.
        let path = unsafe {
            let numbers = slot.cast::<u64>();
            std::ptr::copy_nonoverlapping(numbers, words.as_mut_ptr(), WORDS);
            let length = usize::try_from(numbers.add(WORDS).read()).unwrap_or(0).min(MAX_PATH);
            std::slice::from_raw_parts(slot.add((WORDS + 1) * 8), length)
        };
        Note { words, path: PathBuf::from(OsStr::from_bytes(path)) }
    }

    /// The data.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        // SAFETY: mapped for the life of self; changed only through &mut self, as the lock keeps others out.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(DATA), CAPACITY) }
    }

    /// The data, to change it.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in data(); &mut self makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_ptr().add(DATA), CAPACITY) }
    }

    /// Prepares a read into `data[from..to]`: puts a random mark where its last bytes will land, and
    /// touches every page, so that the read meets no page fault, which a kill could cut short.
    /// Text never looks like a mark: its last byte is none that UTF-8 has.
    pub fn mark(&mut self, from: usize, to: usize) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mark = self.random;
        mark = (mark ^ (mark >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mark = (mark ^ (mark >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mark |= 0xf8 << 56;
        let data = self.data_mut();
        for page in (from..to).step_by(PAGE) {
            // SAFETY: a byte of the data, which page < to <= CAPACITY holds (the slice below checks).
            unsafe { std::ptr::from_mut(&mut data[page]).write_volatile(0) };
        }
        let bytes = mark.to_le_bytes();
        let length = (to - from).min(bytes.len());
        data[to - length..to].copy_from_slice(&bytes[bytes.len() - length..]);
        mark
    }

    /// Is the mark of [`Buffer::mark`] still there: did the read not happen?
    #[must_use]
    pub fn is_marked(&self, from: usize, to: usize, mark: u64) -> bool {
        let bytes = mark.to_le_bytes();
        let length = (to - from).min(bytes.len());
        self.data()[to - length..to] == bytes[bytes.len() - length..]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping that open() made; no reference outlives self.
        unsafe { libc::munmap(self.map.as_ptr().cast(), LENGTH) };
    }
}

/// How many bytes a pipe holds now.
///
/// # Errors
/// When it is no pipe.
pub fn readable(pipe: impl AsFd) -> io::Result<usize> {
    Ok(usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX))
}

/// Makes sure that `length` bytes at `offset` fit onto the disk; the file's size stays. A file system
/// that cannot promise it is believed.
///
/// # Errors
/// When they do not fit.
pub fn reserve(file: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, offset, length) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

/// Takes a descriptor that was passed over exec; non-blocking from here on and not passed further.
///
/// # Errors
/// When that number is not open.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks whether the number is open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the contract of the process's start it is the caller's to own.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    set_nonblocking(&owned)?;
    Ok(owned)
}

/// Makes reads and writes on this open file description return at once.
///
/// # Errors
/// Hardly ever: the descriptor is open.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_owner_finds_note_and_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buffer");
        let mut words = [7; WORDS];
        {
            let mut buffer = Buffer::open(&path).unwrap();
            assert_eq!(buffer.noted(), Note { words: [0; WORDS], path: PathBuf::new() });
            for i in 0..5 {
                words[0] = i;
                buffer.note(&words, Path::new("/a/b"));
                assert_eq!(buffer.noted().words[0], i);
            }
            buffer.data_mut()[CAPACITY - 2..].copy_from_slice(b"ok");
        }
        let buffer = Buffer::open(&path).unwrap();
        assert_eq!(buffer.noted(), Note { words, path: "/a/b".into() });
        assert_eq!(&buffer.data()[CAPACITY - 2..], b"ok");
    }

    #[test]
    fn a_mark_tells_whether_the_read_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut buffer = Buffer::open(&dir.path().join("buffer")).unwrap();
        for length in [1, 3, 8, 9, 5000] {
            let mark = buffer.mark(100, 100 + length);
            assert!(buffer.is_marked(100, 100 + length, mark));
            assert!(std::str::from_utf8(&buffer.data()[100..100 + length]).is_err());
            buffer.data_mut()[100 + length - 1] = b'\n';
            assert!(!buffer.is_marked(100, 100 + length, mark));
        }
    }
}
